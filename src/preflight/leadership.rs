//! Who leads: the destination is opened and its lock waited for.
//!
//! The first thing that an attempt does. While another instance leads, this one stands by and asks once a second. When it has
//! the lock, it ends what an earlier leader has left and sweeps its staging. The writing session is opened later, when there is
//! something to stream ([`open_writer`]).

use std::time::{Duration, Instant};

use crate::config::Config;
use crate::destination::{
    Bookkeeping, Candidate, DestinationError, Holder, Lead, Led, LockHolders, LockSettings, Marking, ReplicationRole,
    StagingSchema, Writer, WritingSettings, check_bookkeeping, refuse_foreign_event_triggers, sweep, terminate,
    terminate_leftovers,
};
use crate::error_policy::Fault;
use crate::pg::{Ident, counted};
use crate::preflight::addresses::Addresses;
use crate::session::SqlClient;
use crate::telemetry::{State, Telemetry};

/// How often a candidate asks for the lock.
const STANDBY_POLL: Duration = Duration::from_secs(1);

/// Opens the destination and waits for the lock.
pub(crate) async fn lead(
    config: &Config,
    addresses: &Addresses,
    telemetry: &Telemetry,
) -> Result<(Bookkeeping, Lead), Fault> {
    let bookkeeping = Bookkeeping::connect_checked(&addresses.destination, &config.destination.trusted_roles).await?;
    refuse_foreign_event_triggers(bookkeeping.client(), &config.destination.trusted_roles).await?;
    let settings = lock_settings(config);
    let mut candidate = Candidate::connect(&settings).await?;
    let mut frozen = FrozenLeader::default();
    let mut known = KnownHolders::default();
    let lead = loop {
        let LockHolders { leader: held_by, foreign } = match candidate.try_lead(&bookkeeping).await? {
            Led::Lead(lead, holders) => {
                known.report(telemetry, &holders);
                break lead;
            }
            Led::Candidate(still, holders) => {
                candidate = still;
                holders
            }
        };
        telemetry.set_state(State::Standby, None);
        known.report(telemetry, &LockHolders { leader: held_by.clone(), foreign });
        if let Some(process_id) = frozen.observe(held_by, Instant::now(), 2 * config.leader_timeout) {
            let text = format!(
                "the leader's session (process {process_id}) is frozen in the middle of a pipelined request: ended"
            );
            telemetry.event("takeover", text);
            terminate(bookkeeping.client(), process_id).await?;
        }
        tokio::time::sleep(STANDBY_POLL).await;
    };
    if telemetry.state() == State::Standby {
        telemetry.event("takeover", "this instance leads now");
        // The look above is as old as the wait.
        check_bookkeeping(bookkeeping.client(), &config.destination.trusted_roles).await?;
        refuse_foreign_event_triggers(bookkeeping.client(), &config.destination.trusted_roles).await?;
    }
    let left = terminate_leftovers(bookkeeping.client()).await?;
    if left.ended > 0 {
        telemetry
            .event("takeover", format!("ended {} that an earlier leader had left", counted(left.ended, "session")));
    }
    for process_id in left.lingering {
        let text = format!("process {process_id} of an earlier leader was told to end and has not ended yet");
        telemetry.warning("takeover", text);
    }
    // Staging of an earlier attempt belongs to nobody now.
    for StagingSchema { name, owner } in sweep_staging(bookkeeping.client(), telemetry).await? {
        let text =
            format!("schema {name} (role {owner}) is named as staging is, but headwater did not make it: it stays");
        telemetry.warning("staging", text);
    }
    if lead.role() == ReplicationRole::Origin {
        tracing::debug!("session_replication_role cannot be set: foreign keys and triggers act on what is applied");
    }
    Ok((bookkeeping, lead))
}

/// Drops staging of attempts that have ended, each schema with a line in the log; returns those that only have such a name.
pub(crate) async fn sweep_staging(
    client: &SqlClient,
    telemetry: &Telemetry,
) -> Result<Vec<StagingSchema>, DestinationError> {
    let swept = sweep(client).await?;
    for StagingSchema { name, owner } in swept.dropped {
        telemetry
            .event("staging", format!("dropped schema {name} (role {owner}): staging of an attempt that has ended"));
    }
    Ok(swept.unmarked)
}

/// How the lock's session is set up.
pub(crate) fn lock_settings(config: &Config) -> LockSettings {
    LockSettings {
        connection: config.destination.url.clone(),
        slot: config.source.slot.clone(),
        leader_timeout: config.leader_timeout,
        timeout: config.destination.timeout,
    }
}

/// Silence inside a transaction after which the server ends a writing session. Nothing of leadership depends on it: only locks
/// of a process that is frozen, or whose machine has gone without a word, while no other instance is there to end its sessions.
/// A process that is merely starved is silent for seconds.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// How the writing session is set up.
pub(crate) fn writing_settings(config: &Config) -> WritingSettings {
    WritingSettings {
        connection: config.destination.url.clone(),
        slot: config.source.slot.clone(),
        positions: Ident::new("headwater"),
        silence_max: SILENCE_MAX.max(config.leader_timeout),
        lock_timeout: config.destination.lock_timeout,
        timeout: config.destination.answer_max(),
        synchronous_commit: config.destination.synchronous_commit,
    }
}

/// Opens the session that writes.
pub(crate) async fn open_writer(config: &Config, bookkeeping: &Bookkeeping, lead: &Lead) -> Result<Writer, Fault> {
    // It is recorded there, and an earlier version may have made the bookkeeping with less in it.
    bookkeeping.ensure().await?;
    let writer = lead.open_writer(&writing_settings(config)).await?;
    match writer.marking() {
        Marking::Origin(name) => tracing::debug!("what is applied is marked with replication origin {name}"),
        Marking::None(why) => tracing::debug!("what is applied is not marked with a replication origin: {why}"),
    }
    Ok(writer)
}

/// Which holders of the lock have been reported.
#[derive(Default)]
struct KnownHolders {
    leader: Option<String>,
    foreign: Vec<String>,
}

impl KnownHolders {
    /// Reports each holder once.
    fn report(&mut self, telemetry: &Telemetry, holders: &LockHolders) {
        let leader = holders.leader.as_ref().map(ToString::to_string);
        if let Some(leader) = leader.as_ref().filter(|_| leader != self.leader) {
            telemetry.event("takeover", format!("standing by: {leader} leads"));
        }
        self.leader = leader;
        for holder in &holders.foreign {
            let name = holder.to_string();
            if !self.foreign.contains(&name) {
                let report = holder.foreign_report();
                telemetry.warning("takeover", format!("{}. {}", report.message, report.detail.unwrap_or_default()));
                self.foreign.push(name);
            }
        }
    }
}

/// Finds a leader that froze in the middle of a pipelined request: for too long it is in one statement and waits for its client.
#[derive(Default)]
struct FrozenLeader {
    since: Option<(Instant, Holder)>,
}

impl FrozenLeader {
    /// The process to end, if any.
    fn observe(&mut self, holder: Option<Holder>, now: Instant, patience: Duration) -> Option<i32> {
        let stuck = holder.filter(|holder| holder.waits_for_client);
        match (&self.since, stuck) {
            (Some((since, known)), Some(holder)) if *known == holder => {
                holder.process_id.filter(|_| now.duration_since(*since) > patience)
            }
            (_, Some(holder)) => {
                self.since = Some((now, holder));
                None
            }
            (_, None) => {
                self.since = None;
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leader_is_frozen_when_one_statement_waits_for_its_client_for_too_long() {
        let holder = |statement: &str, waits| {
            let statement_started = statement.to_owned();
            Some(Holder { process_id: Some(7), statement_started, waits_for_client: waits, ..Holder::default() })
        };
        let began = Instant::now();
        let at = |seconds| began + Duration::from_secs(seconds);
        let patience = Duration::from_secs(10);
        let mut frozen = FrozenLeader::default();
        assert_eq!(frozen.observe(holder("a", true), at(0), patience), None);
        assert_eq!(frozen.observe(holder("a", true), at(9), patience), None);
        assert_eq!(frozen.observe(holder("b", true), at(11), patience), None, "another statement is progress");
        assert_eq!(frozen.observe(holder("b", false), at(15), patience), None);
        assert_eq!(frozen.observe(holder("b", true), at(20), patience), None);
        assert_eq!(frozen.observe(holder("b", true), at(31), patience), Some(7));
    }
}

//! The monitor: how far the source is, how the slot fares, the heartbeat, and whether the destination answers.
//!
//! Runs next to the replication loop, never in it, on sessions of its own that it opens again when they break. It lives as long
//! as the process, so lag keeps rising while the destination is down. Tasks of their own check the stream's
//! [`crate::supervisor::stream_health`] and, at either end, what our sessions wait for ([`crate::preflight::waits`]).
//! [`StreamHealth`] carries what ends a stream; everything else goes to telemetry. What the first task asks the source needs no lock
//! but on catalogs and statistics views: it waits only where somebody locks one of those.
//!
//! A task that ends, for any reason, ends the stream with a message ([`Monitor::ended`]), and the next attempt starts the monitor
//! again: no stream runs unwatched. An answer of the source that is not understood ends the stream, too.
//!
//! A server that does not answer a task is reported ([`crate::preflight::watch_failures`]), unless it holds the stream up, too.
//!
//! Bounds: each question has the session's; the questions are a few a second.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use crate::apply_worker::heartbeat::{HEARTBEAT_PREFIX, Instance};
use crate::config::{Config, ConnectionSettings};
use crate::destination::{DestinationError, OtherTables, Silent, Writes, bookkeeping_report, other_tables};
use crate::error_policy::Fault;
use crate::pg::{ErrorReport, Lsn};
use crate::preflight::waits::{
    LOOK_EVERY as WAITS_EVERY, ServerEnd, ToldWaits, forget_waits, tell_connections, tell_waits,
};
use crate::preflight::watch_failures::WatchFailure;
use crate::session::{SessionError, Sql, SqlClient, SqlState};
use crate::source::{SchemaLooks, SourceError, find_slot, schema_looks};
use crate::supervisor::looks::LookWait;
use crate::supervisor::stream_health::{HealthWatch, StreamHealth, ToldTruncations, Watched, WatchedNow};
use crate::telemetry::{SlotHealth, Telemetry, failpoint};

const SOURCE_EVERY: Duration = Duration::from_secs(1);
const SLOT_EVERY: Duration = Duration::from_secs(5);
const DESTINATION_EVERY: Duration = Duration::from_secs(10);
/// A consumer that is connected and confirms nothing keeps the source from shutting down.
const DESTINATION_SILENT_MAX: Duration = Duration::from_secs(30);
/// Looking for code of others takes half a second where there are thousands of tables, and so a hundredth of the time at most.
const CODE_LOOK_SHARE: u32 = 99;
/// But it is never put off for longer, since the owner of a table decides how long it takes.
const CODE_LOOK_WITHIN: Duration = Duration::from_secs(60);
/// Looks in a row that may fail, some 20 s each, before the stream stops: code that is attached meanwhile runs.
const CODE_LOOKS_FAILED_MAX: u32 = 3;
const QUERY_MAX: Duration = Duration::from_secs(10);

/// A handle on the running monitor. Dropping it ends it.
pub(crate) struct Monitor {
    connection: Arc<Mutex<ConnectionSettings>>,
    watched: WatchedNow,
    health: watch::Sender<StreamHealth>,
    instance: Instance,
    truncations: ToldTruncations,
    looks: SchemaLooks,
    tasks: JoinHandle<()>,
    ended: watch::Receiver<bool>,
}

impl Drop for Monitor {
    fn drop(&mut self) {
        // The tasks end with the one that waits for them.
        self.tasks.abort();
    }
}

impl Monitor {
    /// Starts watching both servers.
    pub(crate) fn start(config: Arc<Config>, telemetry: Arc<Telemetry>) -> Monitor {
        let watched = WatchedNow::default();
        let (health, _) = watch::channel(StreamHealth::Healthy);
        let truncations = ToldTruncations::default();
        let (looks, asked) = schema_looks();
        let instance = Instance::new();
        if config.source.heartbeat_every.is_none() {
            telemetry.heartbeats_off(Some("source.heartbeat_every is off"));
        }
        let connection = Arc::new(Mutex::new(config.source.url.clone()));
        let source = SourceWatch {
            config: Arc::clone(&config),
            connection: Arc::clone(&connection),
            telemetry: Arc::clone(&telemetry),
            instance,
            slot_rate: WalRate::default(),
            waits: ToldWaits::default(),
            failure: WatchFailure::new(Arc::clone(&telemetry), "the source's position, its slot and what waits there"),
            health: health.clone(),
        };
        let health_watch = HealthWatch {
            config: Arc::clone(&config),
            connection: Arc::clone(&connection),
            telemetry: Arc::clone(&telemetry),
            watched: Arc::clone(&watched),
            health: health.clone(),
            unidentified: Vec::new(),
            truncations: truncations.clone(),
            doubts: HashMap::new(),
            ahead: HashMap::new(),
            reached_xid: None,
            asked,
            look_wait: LookWait::default(),
            failure: WatchFailure::new(Arc::clone(&telemetry), "the publication and the tables at the source"),
            destination_failure: WatchFailure::new(Arc::clone(&telemetry), "what is remembered of the source's tables"),
        };
        let failure = WatchFailure::new(Arc::clone(&telemetry), "the destination's tables and the code on them");
        let waits = tell_waits(Arc::clone(&config), Arc::clone(&telemetry));
        let connections = tell_connections(telemetry);
        let destination = watch_destination(config, Arc::clone(&watched), health.clone(), failure);
        let mut tasks = JoinSet::new();
        tasks.spawn(source.run());
        tasks.spawn(health_watch.run());
        tasks.spawn(destination);
        tasks.spawn(waits);
        tasks.spawn(connections);
        let (ending, ended) = watch::channel(false);
        let tasks = tokio::spawn(async move {
            // None of them ends by itself. Where one has, the others go with it.
            let _ = tasks.join_next().await;
            tracing::error!("{ENDED}");
            ending.send_replace(true);
        });
        Monitor { connection, watched, health, instance, truncations, looks, tasks, ended }
    }

    /// Whether one of its tasks has ended, so that it is to be started again.
    pub(crate) fn has_ended(&self) -> bool {
        *self.ended.borrow()
    }

    /// Resolves when one of its tasks ends, with the reason to end the stream.
    pub(crate) fn ended(&self) -> impl Future<Output = Fault> + use<> {
        let mut ended = self.ended.clone();
        async move {
            // Without a sender it has ended as well.
            let _ = ended.wait_for(|ended| *ended).await;
            Fault::Unwatched(
                ErrorReport::new(ENDED)
                    .detail(
                        "Nobody would see a slot that is about to be lost, a table that leaves the publication, or code of others at the \
                         destination, so nothing is applied until it runs again.",
                    )
                    .hint("Report it with the lines of the log before it. headwater starts the monitor again by itself."),
            )
        }
    }

    pub(crate) fn instance(&self) -> Instance {
        self.instance
    }

    /// From now on this is the source that is watched.
    pub(crate) fn lead_to(&self, source: &ConnectionSettings) {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner).clone_from(source);
    }

    /// The truncations that the stream has reported.
    pub(crate) fn truncations(&self) -> ToldTruncations {
        self.truncations.clone()
    }

    /// Who looks at the tables when the stream comes to a mark of a schema change.
    pub(crate) fn looks(&self) -> SchemaLooks {
        self.looks.clone()
    }

    /// From now on a stream stands on this.
    pub(crate) fn watch(&self, watched: Watched) -> watch::Receiver<StreamHealth> {
        self.looks.forget_followed();
        self.health.send_replace(StreamHealth::Healthy);
        *self.watched.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(watched));
        self.health.subscribe()
    }

    /// The stream has ended.
    pub(crate) fn unwatch(&self) {
        *self.watched.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

const ENDED: &str = "the monitor ended unexpectedly";

/// What a question of the monitor has met: an answer that is not understood ends the stream, since whatever else it would have said is
/// not known. A server that does not answer is the ring's to report.
pub(crate) fn misunderstood(health: &watch::Sender<StreamHealth>, error: SessionError) {
    if let SessionError::Answer { doing, what } = error {
        health.send_replace(StreamHealth::Misunderstood { doing, what });
    }
}

struct SourceWatch {
    config: Arc<Config>,
    /// Where the attempt's sessions lead to.
    connection: Arc<Mutex<ConnectionSettings>>,
    telemetry: Arc<Telemetry>,
    instance: Instance,
    slot_rate: WalRate,
    /// What sessions of ours wait for at the source.
    waits: ToldWaits,
    failure: WatchFailure,
    health: watch::Sender<StreamHealth>,
}

impl SourceWatch {
    async fn run(mut self) {
        loop {
            if let Err(error) = self.session().await {
                self.failure.failed(&error);
                misunderstood(&self.health, error);
            }
            forget_waits(ServerEnd::Source, &self.telemetry);
            self.heartbeat_missed();
            tokio::time::sleep(SOURCE_EVERY).await;
        }
    }

    async fn session(&mut self) -> Result<(), SessionError> {
        let connection = self.connection();
        let sql = Sql { connection: connection.clone(), purpose: "monitor", timeout: QUERY_MAX };
        let client = sql.connect().await?;
        client.batch("setting up the monitor", "SET synchronous_commit = off").await?;
        let mut slot_due = Instant::now();
        let mut waits_due = Instant::now();
        let mut heartbeat_due = Instant::now();
        loop {
            if self.connection() != connection {
                // Another of source.url's hosts is the source now.
                return Ok(());
            }
            failpoint::panic("monitor.looking");
            let now = Instant::now();
            let in_recovery = self.ask_position(&client).await?;
            if now >= slot_due {
                let found = self.ask_slot(&client).await?;
                // One that is being made is shown as soon as it is there.
                slot_due = now + if found { SLOT_EVERY } else { SOURCE_EVERY };
            }
            if now >= waits_due {
                waits_due = now + WAITS_EVERY;
                self.waits.look(&client, ServerEnd::Source, &connection.application_name, &self.telemetry).await?;
            }
            self.failure.works();
            if let Some(every) = self.config.source.heartbeat_every
                && now >= heartbeat_due
                && self.telemetry.expects_heartbeats()
            {
                heartbeat_due = now + every;
                self.send_heartbeat(&client, in_recovery).await?;
            }
            let heartbeat_in = heartbeat_due.saturating_duration_since(Instant::now());
            tokio::time::sleep(SOURCE_EVERY.min(heartbeat_in.max(Duration::from_millis(50)))).await;
        }
    }

    fn connection(&self) -> ConnectionSettings {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
    /// Tells how far the source is; returns whether it is a standby.
    async fn ask_position(&self, client: &SqlClient) -> Result<bool, SessionError> {
        // pg_last_wal_replay_lsn() keeps its last value after a promotion, so it is asked on a standby only.
        let sql = "SELECT (CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn()
                           ELSE pg_catalog.pg_current_wal_flush_lsn() END)::text, pg_catalog.pg_is_in_recovery()";
        let row = client.query_one("asking how far the source is", sql, &[]).await?;
        if let Some(position) = row.parse_nullable::<Lsn>(0)? {
            self.telemetry.source_at(position);
        }
        row.get(1)
    }

    /// Tells how the slot fares; returns whether there is one.
    async fn ask_slot(&mut self, client: &SqlClient) -> Result<bool, SessionError> {
        let slot = match find_slot(client, &self.config.source.slot).await {
            Ok(Some(slot)) => slot,
            Ok(None) => {
                self.telemetry.no_slot();
                return Ok(false);
            }
            Err(SourceError::Session(error @ SessionError::Answer { .. })) => return Err(error),
            Err(_) => return Ok(false),
        };
        let retained = slot.retained_wal_bytes.and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or(0);
        let safe = slot.safe_wal_size.map(|bytes| u64::try_from(bytes).unwrap_or(0));
        let rate = self.slot_rate.observe(retained, Instant::now());
        self.telemetry.slot(SlotHealth {
            wal_status: slot.wal_status,
            retained_wal_bytes: retained,
            safe_wal_bytes: safe,
            seconds_until_lost: safe.map(|safe| if rate > 0.0 { safe as f64 / rate } else { f64::INFINITY }),
        });
        Ok(true)
    }

    async fn send_heartbeat(&mut self, client: &SqlClient, in_recovery: bool) -> Result<(), SessionError> {
        if in_recovery {
            // A standby writes no WAL; it may be promoted, so this is asked every time.
            self.telemetry.heartbeats_off(Some("the source is a standby, where nothing can be written"));
            return Ok(());
        }
        let sql = "SELECT pg_catalog.pg_logical_emit_message(true, $1, $2::text)";
        self.telemetry.heartbeat_sent();
        match client.query("writing a heartbeat", sql, &[&HEARTBEAT_PREFIX, &self.instance.heartbeat()]).await {
            Ok(_) => {
                self.telemetry.heartbeats_off(None);
                Ok(())
            }
            Err(error) => {
                let refused = [b"25006", b"42501"].iter().any(|code| error.code() == Some(SqlState::new(code)));
                if refused {
                    self.telemetry.heartbeats_off(Some(&error.to_string()));
                    return Ok(());
                }
                Err(error)
            }
        }
    }

    /// The source does not answer: what is due cannot come back either.
    fn heartbeat_missed(&self) {
        if self.config.source.heartbeat_every.is_some() && self.telemetry.expects_heartbeats() {
            self.telemetry.heartbeat_sent();
        }
    }
}

/// How fast the WAL that a slot keeps grows.
#[derive(Default)]
struct WalRate {
    last: Option<(u64, Instant)>,
    bytes_per_second: f64,
}

impl WalRate {
    /// The smoothed rate, in bytes per second; a slot that moves on has none.
    fn observe(&mut self, retained: u64, now: Instant) -> f64 {
        if let Some((before, at)) = self.last.replace((retained, now)) {
            let seconds = now.duration_since(at).as_secs_f64().max(0.001);
            let rate = retained.saturating_sub(before) as f64 / seconds;
            self.bytes_per_second = if rate > 0.0 { 0.7 * self.bytes_per_second + 0.3 * rate } else { rate };
        }
        self.bytes_per_second
    }
}

/// What to report when nobody knows whether code of others runs.
fn unseen_code(error: &DestinationError) -> ErrorReport {
    ErrorReport::new(format!("cannot look for code of others at the destination: {error}"))
        .detail("Code that is attached to a table meanwhile would run with headwater's rights, so nothing is applied.")
        .hint(
            "See what makes the look slow: the load of the server, or checks, defaults and indexes with very long expressions on the \
             tables and on those that inherit from them.",
        )
}

/// What is at the destination that must not be there while rows are written.
async fn look_at_destination(client: &SqlClient, writes: &Writes) -> Result<Option<StreamHealth>, DestinationError> {
    if let Some(report) = bookkeeping_report(client, &writes.trusted_roles).await? {
        return Ok(Some(StreamHealth::ForeignCode(report)));
    }
    let others = other_tables(client).await?;
    if !others.is_empty() {
        return Ok(Some(StreamHealth::OtherTables(OtherTables(others))));
    }
    Ok(writes.foreign_code_report(client).await?.map(StreamHealth::ForeignCode))
}

/// A session with the destination that has just answered.
async fn alive(sql: &Sql, client: Option<SqlClient>) -> Result<SqlClient, SessionError> {
    let client = match client {
        Some(client) => client,
        None => sql.connect().await?,
    };
    client.query("asking for a sign of life", "SELECT 1", &[]).await?;
    Ok(client)
}

async fn watch_destination(
    config: Arc<Config>,
    watched: WatchedNow,
    health: watch::Sender<StreamHealth>,
    mut failure: WatchFailure,
) {
    let sql = Sql { connection: config.destination.url.clone(), purpose: "monitor", timeout: QUERY_MAX };
    let mut client: Option<SqlClient> = None;
    let mut answered_at = Instant::now();
    let mut code_due = Instant::now();
    let mut looks_failed = 0;
    loop {
        tokio::time::sleep(DESTINATION_EVERY).await;
        let watched = watched.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(watched) = watched else {
            client = None;
            answered_at = Instant::now();
            failure.rests();
            continue;
        };
        let error = match alive(&sql, client.take()).await {
            Ok(answering) => {
                client = Some(answering);
                answered_at = Instant::now();
                failure.works();
                None
            }
            Err(error) => {
                failure.failed(&error);
                Some(error)
            }
        };
        if let Some(asked) = client.take_if(|_| code_due <= Instant::now()) {
            let asked_at = Instant::now();
            let looked = look_at_destination(&asked, &watched.writes).await;
            code_due = Instant::now() + CODE_LOOK_WITHIN.min(CODE_LOOK_SHARE * asked_at.elapsed());
            if let Ok(found) = &looked {
                looks_failed = 0;
                client = Some(asked);
                if let Some(found) = found {
                    health.send_replace(found.clone());
                }
            }
            // A slow answer to this says nothing of the destination, which has just given a sign of life.
            if let Err(error) = looked {
                tracing::warn!("cannot look for code of others at the destination: {error}");
                code_due = Instant::now();
                looks_failed += 1;
                if looks_failed >= CODE_LOOKS_FAILED_MAX {
                    health.send_replace(StreamHealth::ForeignCode(unseen_code(&error)));
                }
            }
        }
        if let Some(error) = error.filter(|_| answered_at.elapsed() >= DESTINATION_SILENT_MAX) {
            let silent = Silent { within: DESTINATION_SILENT_MAX, error: Arc::new(error) };
            health.send_replace(StreamHealth::DestinationSilent(silent));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_of_wal_is_smoothed_and_gone_when_the_slot_moves_on() {
        let began = Instant::now();
        let mut rate = WalRate::default();
        assert_eq!(rate.observe(0, began), 0.0);
        for second in 1..50 {
            rate.observe(second * 1000, began + Duration::from_secs(second));
        }
        let steady = rate.observe(50_000, began + Duration::from_secs(50));
        assert!((990.0..=1010.0).contains(&steady), "{steady}");
        assert_eq!(rate.observe(10, began + Duration::from_secs(51)), 0.0);
    }
}

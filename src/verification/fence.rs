//! A fence: one state of both databases, held by a snapshot on each side, while both are being written.
//!
//! The leader makes it, in this order:
//!
//! ```text
//! hold                       apply stands at its position P
//! temporary slot             its consistent point C > P: asked for earlier, the stream would often have passed C
//! run to C                   every transaction with commit_lsn < C is applied, and none other
//! export the destination     now both snapshots show exactly those transactions
//! resume
//! settle the source          imported, waited for, exported again; then the slot goes
//! ```
//!
//! Neither side needs to be quiet. The source is written to all the time, and apply stands still only until the slot is made,
//! at most `fence_timeout`; on the way to C it works. A slot waits for the transactions that run at
//! the source. When one of them takes longer, the leader gives up the attempt and the slot, and names the transaction.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::apply_worker::heartbeat::HEARTBEAT_PREFIX;
use crate::apply_worker::pause::{BrokenOff, Control, PauseGuard};
use crate::config::Config;
use crate::destination::{DestinationError, HeldDestination, MadeFence, hold_destination};
use crate::error_policy::{Fault, report};
use crate::pg::{ErrorReport, Lsn, SlotName};
use crate::preflight::addresses::Addresses;
use crate::preflight::replication_session::connect_replication;
use crate::session::{ReplicationSession, SessionError, SlotSnapshot, Sql, SqlClient};
use crate::source::{HeldSnapshot, SourceError, explain_slot_wait, hold_snapshot, running_transactions};

/// Both snapshots, for as long as this lives.
pub(crate) struct Fence {
    pub(crate) source: HeldSnapshot,
    pub(crate) destination: HeldDestination,
    pub(crate) consistent_point: Lsn,
}

impl Fence {
    /// As it is handed over.
    pub(crate) fn made(&self) -> MadeFence {
        MadeFence {
            source_snapshot: self.source.snapshot_name.clone(),
            destination_snapshot: self.destination.snapshot_name.clone(),
            consistent_point: self.consistent_point,
        }
    }

    /// Whether both snapshots are still held.
    pub(crate) fn is_held(&self) -> bool {
        self.source.is_held() && self.destination.is_held()
    }
}

/// What the making of a fence waits for, for its requester. Holds the last message only.
#[derive(Debug, Default)]
pub(crate) struct FenceProgress {
    waits_for: Mutex<Option<ErrorReport>>,
    /// The requester waits no longer.
    abandoned: watch::Sender<bool>,
}

impl FenceProgress {
    fn set(&self, report: ErrorReport) {
        *self.waits_for.lock().unwrap_or_else(PoisonError::into_inner) = Some(report);
    }

    /// Nobody waits for this fence any more: it is given up in good order.
    pub(crate) fn abandon(&self) {
        self.abandoned.send_replace(true);
    }

    async fn abandoned(&self) {
        let mut abandoned = self.abandoned.subscribe();
        if abandoned.wait_for(|abandoned| *abandoned).await.is_err() {
            std::future::pending().await
        }
    }

    /// Does a part of the work, unless nobody waits for the fence any more.
    async fn unless_abandoned<T>(&self, work: impl Future<Output = T>) -> Result<T, NoFence> {
        tokio::select! {
            done = work => Ok(done),
            () = self.abandoned() => Err(NoFence::Later(abandoned())),
        }
    }

    /// What it waits for now; `None` before anything takes time.
    pub(crate) fn get(&self) -> Option<ErrorReport> {
        self.waits_for.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Why no fence was made.
#[derive(Debug)]
pub(crate) enum NoFence {
    /// It may be there the next time.
    Later(ErrorReport),
    /// The stream ended meanwhile.
    StreamEnded,
}

impl From<BrokenOff> for NoFence {
    fn from(_: BrokenOff) -> NoFence {
        NoFence::StreamEnded
    }
}

impl<E> From<E> for NoFence
where
    Fault: From<E>,
{
    fn from(error: E) -> NoFence {
        NoFence::Later(report(&Fault::from(error)))
    }
}

/// Makes a fence, and lets apply resume.
pub(crate) async fn make(
    config: &Config,
    addresses: &Addresses,
    control: &Control,
    progress: &FenceProgress,
) -> Result<Fence, NoFence> {
    let (fence, held) = make_and_hold(config, addresses, control, progress).await?;
    drop(held);
    Ok(fence)
}

/// Makes a fence at which apply stands still until `PauseGuard` is dropped.
pub(crate) async fn make_and_hold(
    config: &Config,
    addresses: &Addresses,
    control: &Control,
    progress: &FenceProgress,
) -> Result<(Fence, PauseGuard), NoFence> {
    // What takes time and needs no standing still comes first.
    let sql = sql_for(&addresses.source, "fence");
    let observer = sql.connect().await.map_err(SourceError::Session)?;
    let mut slot_session = connect_replication(config, "fence").await?;
    let began = Instant::now();
    let left = || config.fence_timeout.saturating_sub(began.elapsed());
    progress.set(ErrorReport::new("the fence waits for the transaction that is being applied"));
    let held = progress.unless_abandoned(bounded(left(), control.hold())).await?;
    let mut held = held.ok_or_else(|| NoFence::Later(busy(config)))??;
    let slot = temporary_slot(config);
    let created = tokio::select! {
        created = slot_session.create_slot(&slot, SlotSnapshot::ExportTemporary, left()) => created,
        never = tell_slot_wait(&observer, progress) => match never {},
        () = progress.abandoned() => {
            end_slot_session(&observer, slot_session).await;
            return Err(NoFence::Later(abandoned()));
        }
    };
    let created = match created {
        Ok(created) => created,
        Err(SessionError::Timeout { .. }) => {
            return Err(NoFence::Later(give_up(config, &observer, slot_session).await));
        }
        Err(error) => return Err(SourceError::Session(error).into()),
    };
    let consistent_point = created.consistent_point;
    if consistent_point <= held.position() {
        // A slot that is asked for while apply stands begins behind its position, unless the source is another one now.
        let text = format!("a new slot begins at {consistent_point}, before the position {}", held.position());
        return Err(NoFence::Later(ErrorReport::new(text)));
    }
    nudge(&observer).await;
    progress.set(ErrorReport::new(format!("the fence is at {consistent_point}: apply is on its way there")));
    // From here on apply works: what it had not applied yet is on its way to C.
    let reached = progress.unless_abandoned(bounded(CATCH_UP_MAX, held.run_to(consistent_point))).await?;
    let Some(reached) = reached else { return Err(NoFence::Later(behind(is_standby(&observer).await))) };
    reached?;
    let destination = hold_destination(&sql_for(&addresses.destination, "fence"), None).await?;
    let source = hold_snapshot(&sql, &created.snapshot_name).await?;
    slot_session.close().await;
    Ok((Fence { source, destination, consistent_point }, held))
}

/// The source at a new slot's consistent point, and the destination as it stands: no fence, for when nobody leads.
pub(crate) async fn without_leader(config: &Config, addresses: &Addresses) -> Result<Fence, Fault> {
    let sql = sql_for(&addresses.source, "fence");
    let observer = sql.connect().await.map_err(SourceError::Session)?;
    let mut slot_session = connect_replication(config, "fence").await?;
    let within = config.fence_timeout;
    let created = slot_session.create_slot(&temporary_slot(config), SlotSnapshot::ExportTemporary, within).await;
    let created = match created {
        Ok(created) => created,
        Err(SessionError::Timeout { .. }) => {
            return Err(Fault::Refused(give_up(config, &observer, slot_session).await));
        }
        Err(error) => return Err(SourceError::Session(error).into()),
    };
    let destination = hold_destination(&sql_for(&addresses.destination, "fence"), None).await?;
    let source = hold_snapshot(&sql, &created.snapshot_name).await?;
    slot_session.close().await;
    Ok(Fence { source, destination, consistent_point: created.consistent_point })
}

/// How often the wait for a slot is looked at.
const SLOT_WAIT_EVERY: Duration = Duration::from_secs(2);

/// Keeps saying which transactions a new slot waits for.
async fn tell_slot_wait(observer: &SqlClient, progress: &FenceProgress) -> std::convert::Infallible {
    loop {
        tokio::time::sleep(SLOT_WAIT_EVERY).await;
        let waits = ErrorReport::new("the fence waits for a temporary replication slot at the source");
        progress.set(match running_transactions(observer).await {
            Ok(running) if !running.is_empty() => explain_slot_wait(waits, &running),
            Ok(_) if is_standby(observer).await => of_standby(waits),
            Ok(_) | Err(_) => waits,
        });
    }
}

/// Takes a fence over from its maker, which may let go then.
pub(crate) async fn take_over(addresses: &Addresses, made: &MadeFence) -> Result<Fence, Fault> {
    let destination =
        hold_destination(&sql_for(&addresses.destination, "fence"), Some(&made.destination_snapshot)).await;
    let destination: HeldDestination = destination.map_err(|error: DestinationError| Fault::from(error))?;
    let source = hold_snapshot(&sql_for(&addresses.source, "fence"), &made.source_snapshot).await?;
    Ok(Fence { source, destination, consistent_point: made.consistent_point })
}

pub(crate) fn sql_for(address: &Sql, purpose: &'static str) -> Sql {
    Sql { purpose, ..address.clone() }
}

fn temporary_slot(config: &Config) -> SlotName {
    let name = format!("headwater_fence_{:016x}", fastrand::u64(..));
    name.parse().unwrap_or_else(|_| config.source.slot.clone())
}

async fn bounded<T>(within: Duration, work: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(within, work).await.ok()
}

/// How long apply may take from where it stood to a fence; a backlog is honest work.
const CATCH_UP_MAX: Duration = Duration::from_secs(600);

fn behind(is_standby: bool) -> ErrorReport {
    let within = humantime::format_duration(CATCH_UP_MAX);
    let report = ErrorReport::new(format!("no fence could be made: the destination did not reach it within {within}"));
    if is_standby {
        return report.detail("The source is a standby: it sends what its primary has written.").hint(
            "Have the primary write something (SELECT pg_log_standby_snapshot(); does), and see whether the standby replays: \
             pg_stat_wal_receiver.",
        );
    }
    report.hint("Try again once the destination has caught up (headwater_replication_lag_bytes).")
}

/// Whether the source is a standby; `false` where it does not say.
async fn is_standby(observer: &SqlClient) -> bool {
    let row = observer.query_one("asking for the kind of server", "SELECT pg_catalog.pg_is_in_recovery()", &[]).await;
    row.and_then(|row| row.get(0)).unwrap_or(false)
}

fn abandoned() -> ErrorReport {
    ErrorReport::new("the fence was given up: its requester waits no longer")
}

fn busy(config: &Config) -> ErrorReport {
    ErrorReport::new("no fence could be made: the transaction that is being applied took too long")
        .detail(format!("fence_timeout is {}.", humantime::format_duration(config.fence_timeout)))
        .hint("Try again when less is being written, or raise fence_timeout.")
}

/// An idle source has nothing to send behind C; one message makes the stream pass it at once. Where none can be written
/// (a standby), a keepalive tells.
async fn nudge(observer: &SqlClient) {
    let sql = "SELECT pg_catalog.pg_logical_emit_message(true, $1, 'fence')";
    if let Err(error) = observer.query("passing the fence", sql, &[&HEARTBEAT_PREFIX]).await {
        tracing::debug!("no message behind the fence: {error}");
    }
}

/// A slot took too long: says whom it waits for, and ends the session, which would create it all the same.
async fn give_up(config: &Config, observer: &SqlClient, slot_session: ReplicationSession) -> ErrorReport {
    let report = slot_not_created(config, observer).await;
    end_slot_session(observer, slot_session).await;
    report
}

async fn end_slot_session(observer: &SqlClient, slot_session: ReplicationSession) {
    if let Err(error) = observer.terminate("giving up a slot", slot_session.process_id()).await {
        tracing::warn!("the session that waits for a slot could not be ended: {error}");
    }
    drop(slot_session);
}

/// What a new slot at a standby waits for.
fn of_standby(report: ErrorReport) -> ErrorReport {
    report
        .detail(
            "The source is a standby: a new slot there waits until its primary writes which transactions run, and for their end. An idle \
             primary writes nothing.",
        )
        .hint("Run at the primary:\nSELECT pg_log_standby_snapshot();")
}

/// What to say of a slot that was not created within `fence_timeout`, with what it waited for.
pub(crate) async fn slot_not_created(config: &Config, observer: &SqlClient) -> ErrorReport {
    let within = humantime::format_duration(config.fence_timeout);
    let report = ErrorReport::new(format!("no fence could be made: the slot was not created within {within}"));
    match running_transactions(observer).await {
        Ok(running) if running.is_empty() && is_standby(observer).await => of_standby(report),
        Ok(running) => explain_slot_wait(report.hint("Try again, or raise fence_timeout."), &running),
        Err(error) => report.detail(format!("The source does not say for what: {error}.")),
    }
}

//! The live stream: the source's messages in, steps out, positions back.
//!
//! Task 1 of the replication loop. It owns the socket and the assembler; `supervisor` gives it the sending end of the step
//! channel and the watch on which the destination's progress comes back.
//!
//! ```text
//!  walsender ──▶ session ──▶ Decoder ──▶ Assembler ──▶ StepRouter ──▶ StepSender (bounded) ──▶ task 2
//!      ▲                                                 ║ spool                         │
//!      └── StandbyStatusUpdate ◀── Feedback ◀── watch: stored, flushed ◀─────────────────┘
//! ```
//!
//! While the step router waits (the channel or the spool is full) the task reads nothing but keeps sending status updates, so
//! the source never takes a busy destination for a dead one. The task only receives, calls and forwards; `progress` decides
//! what to confirm and when.
//!
//! Bounds: those of the step router; full means wait. A source that says nothing for `timeout` is given up; until then it is asked
//! for a sign of life again and again.

use std::ops::ControlFlow;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::watch;

use super::error::SourceError;
use super::parallel_apply::SharedCoordinator;
use super::relation_tracker::RelationTracker;
use super::schema_looks::SchemaLooks;
use super::step_channel::StepSender;
use super::step_router::{InProgressEnds, StepRouter};
use super::subtransactions::{SubtransactionOutcome, SubtransactionOutcomes, SubtransactionQuestion};
use crate::catalog::truncation::Truncation;
use crate::pg::{Lsn, PgTimestamp, RelationId};
use crate::progress::{Feedback, Positions};
use crate::session::{Awaiting, ReplicationSession, StreamedMessage};
use crate::spool::Spool;
use crate::telemetry::failpoint;
use crate::transaction::Assembler;
use crate::wire::{Decoder, Message, ReplicationMessage, StandbyStatusUpdate};

/// What the destination has reached: task 1 confirms nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Confirmed {
    /// Stored and visible.
    pub stored: Lsn,
    /// Stored and durable.
    pub flushed: Lsn,
}

/// What the stream reports in addition to its steps, for lag and metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StreamReport {
    /// A message came, with the source's clock at sending and ours at receipt.
    Heard {
        /// The source's clock.
        source: PgTimestamp,
        /// Ours.
        local: PgTimestamp,
    },
    /// A transaction has begun to arrive: it is committed at the source.
    Received {
        /// Its commit_lsn.
        final_lsn: Lsn,
        /// When it committed, on the source's clock.
        committed_at: PgTimestamp,
    },
    /// A transaction that has committed has truncated a table.
    Truncated {
        /// The table.
        table: RelationId,
        /// What it says of the table's partitions.
        truncation: Truncation,
    },
}

/// How a stream is read.
#[derive(Clone, Copy, Debug)]
pub struct StreamSettings {
    /// A source that says nothing for so long is given up.
    pub timeout: Duration,
    /// The walsender's own patience with us.
    pub sender_timeout: Duration,
}

/// What task 1 owns.
pub struct StreamTask {
    /// A session on which START_REPLICATION has been answered.
    pub session: ReplicationSession,
    /// Reads its messages.
    pub decoder: Decoder,
    /// Assembles them.
    pub assembler: Assembler,
    /// Completes steps with what the catalog says of tables that have changed.
    pub tracker: RelationTracker,
    /// Where steps go.
    pub steps: StepSender,
    /// Where transactions go that arrive before they commit; `None`: streaming was not asked for.
    pub spool: Option<Spool>,
    /// Who decides on parallel apply of them; `None`: there is none.
    pub coordinator: Option<SharedCoordinator>,
    /// Who looks at the catalog at a mark of a schema change; `None`: nobody.
    pub looks: Option<SchemaLooks>,
    /// Where the destination's progress comes from.
    pub confirmed: watch::Receiver<Confirmed>,
    /// How the stream is read.
    pub settings: StreamSettings,
    /// Becomes true when reading is to end.
    pub stop: watch::Receiver<bool>,
}

/// Reads the stream until `stop` fires or something fails; `report` hears what passes by.
///
/// When `stop` fires, reading ends, `steps` is closed, and the last positions are confirmed once `confirmed`'s sender
/// is dropped; then the stream is ended in good order.
///
/// # Errors
/// [`SourceError`] says why the stream broke off. Everything that was sent into `steps` is good.
pub async fn stream(task: StreamTask, mut report: impl FnMut(StreamReport)) -> Result<(), SourceError> {
    let StreamTask {
        session,
        decoder,
        assembler,
        tracker,
        steps,
        spool,
        coordinator,
        looks,
        mut confirmed,
        settings,
        mut stop,
    } = task;
    let began = Instant::now();
    let start = *confirmed.borrow_and_update();
    let mut reading = StreamReader {
        session,
        decoder,
        assembler,
        outcomes: SubtransactionOutcomes::new(tracker.sql().clone()),
        router: StepRouter::new(tracker, steps, InProgressEnds { spool, coordinator }, start.stored),
        looking: Looking { looks, number: None, last: None },
        feedback: Feedback::new(settings.sender_timeout, start.flushed, start.stored, began.elapsed()),
        silence: Silence::new(began.elapsed(), settings.timeout),
        awaiting: None,
        is_first_status: true,
        began,
    };
    while !*stop.borrow() && !reading.router.is_gone() {
        reading.take_ready(&mut report)?;
        reading.queue_status()?;
        if reading.next(&mut stop, &mut confirmed, &mut report).await?.is_break() {
            break;
        }
    }
    let StreamReader { session, router, feedback, .. } = reading;
    router.close().await;
    finish(session, confirmed, feedback, began).await
}

/// The stream while it is read.
struct StreamReader {
    session: ReplicationSession,
    decoder: Decoder,
    assembler: Assembler,
    outcomes: SubtransactionOutcomes,
    router: StepRouter,
    looking: Looking,
    feedback: Feedback,
    silence: Silence,
    /// While the source was asked for a sign of life that has not come.
    awaiting: Option<Awaiting>,
    /// No status update was sent yet.
    is_first_status: bool,
    began: Instant,
}

impl StreamReader {
    /// Whether more may be read from the source: nothing waits for room or for an answer.
    fn has_room(&self) -> bool {
        self.router.is_clear() && self.looking.is_over() && self.outcomes.is_over()
    }

    /// Takes whatever has arrived without asking the runtime.
    fn take_ready(&mut self, report: &mut impl FnMut(StreamReport)) -> Result<(), SourceError> {
        while self.has_room()
            && let Some(message) = self.session.ready()?
        {
            self.take(message, report)?;
        }
        Ok(())
    }

    fn take(&mut self, message: StreamedMessage, report: &mut impl FnMut(StreamReport)) -> Result<(), SourceError> {
        self.silence.heard(self.began.elapsed());
        self.awaiting = None;
        let Some(message) = take_in(message, &mut self.decoder, &mut self.assembler, &mut self.feedback, report)?
        else {
            return self.looking.forward(&mut self.router, &mut self.assembler);
        };
        if let Message::StreamCommit { xid, commit } = &message {
            let subtransactions = self.assembler.subtransactions(*xid, commit);
            if !subtransactions.is_empty() {
                let (transaction, commit) = (*xid, *commit);
                self.outcomes.ask(SubtransactionQuestion { transaction, commit, subtransactions });
                return Ok(());
            }
        }
        self.assemble(message, report)
    }

    /// A message that needs no answer, or has it.
    fn assemble(&mut self, message: Message, report: &mut impl FnMut(StreamReport)) -> Result<(), SourceError> {
        self.assembler.message(message)?;
        for (table, truncation) in self.assembler.take_truncated() {
            report(StreamReport::Truncated { table, truncation });
        }
        self.looking.forward(&mut self.router, &mut self.assembler)
    }

    /// Queues a status update when one is due, or when the source has said nothing for long.
    fn queue_status(&mut self) -> Result<(), SourceError> {
        let now = self.began.elapsed();
        self.feedback.received(self.assembler.received());
        if !self.has_room() {
            // It is we who are not listening.
            self.silence.heard(now);
            self.awaiting = None;
        }
        // The first update asks for a keepalive, so that an idle source says at once how far it is.
        let reply_requested = self.silence.check(now)? || self.is_first_status;
        self.is_first_status = false;
        if reply_requested && self.awaiting.is_none() {
            self.awaiting = Some(self.session.awaits(self.silence.lasts(now), self.silence.timeout));
        }
        if reply_requested || self.feedback.due_in(now).is_zero() {
            let Positions { written, flushed, applied } = self.feedback.take(now);
            let sent_at = clock();
            self.session.queue_status(&StandbyStatusUpdate { written, flushed, applied, sent_at, reply_requested });
            failpoint::reached("stream.feedback_sent");
        }
        Ok(())
    }

    /// Waits for the next thing to happen; `Break`: nobody takes steps any more.
    async fn next(
        &mut self,
        stop: &mut watch::Receiver<bool>,
        confirmed: &mut watch::Receiver<Confirmed>,
        report: &mut impl FnMut(StreamReport),
    ) -> Result<ControlFlow<()>, SourceError> {
        let now = self.began.elapsed();
        let timeout = self.feedback.due_in(now).min(self.silence.check_in(now)).max(Duration::from_millis(1));
        let (is_clear, has_room) = (self.router.is_clear(), self.has_room());
        tokio::select! {
            _ = stop.changed() => {}
            changed = confirmed.changed() => {
                if changed.is_err() {
                    return Ok(ControlFlow::Break(()));
                }
                let reached = *confirmed.borrow_and_update();
                self.feedback.progressed(reached.stored, reached.flushed);
            }
            moved = self.router.progress(), if !is_clear => {
                moved?;
                self.looking.forward(&mut self.router, &mut self.assembler)?;
            }
            () = self.looking.answered() => self.looking.forward(&mut self.router, &mut self.assembler)?,
            outcome = self.outcomes.answered() => {
                let SubtransactionOutcome { transaction, commit, rolled_back } = outcome?;
                self.assembler.leave_out(transaction, &rolled_back);
                self.assemble(Message::StreamCommit { xid: transaction, commit }, report)?;
            }
            turn = turn(&mut self.session, has_room) => {
                if let Some(message) = turn? {
                    self.take(message, report)?;
                }
            }
            () = tokio::time::sleep(timeout) => {}
        }
        Ok(ControlFlow::Continue(()))
    }
}

/// The look that the stream waits for at a mark of a schema change.
struct Looking {
    looks: Option<SchemaLooks>,
    /// The question that is out.
    number: Option<u64>,
    /// The transaction that the last one was about: its other marks are covered by the same answer.
    last: Option<u32>,
}

impl Drop for Looking {
    fn drop(&mut self) {
        if let (Some(looks), Some(number)) = (&self.looks, self.number) {
            looks.withdraw(number);
        }
    }
}

impl Looking {
    /// Whether nothing is waited for.
    fn is_over(&self) -> bool {
        self.number.is_none()
    }

    /// Hands on what is ready, unless it is behind a mark: then a look comes first.
    fn forward(&mut self, router: &mut StepRouter, assembler: &mut Assembler) -> Result<(), SourceError> {
        if let Some(looks) = &self.looks
            && let Some(mark) = assembler.take_schema_mark().filter(|mark| self.last != Some(mark.transaction))
        {
            self.number = looks.ask(&mark);
            if self.number.is_some() {
                self.last = Some(mark.transaction);
            }
        }
        if self.is_over() { router.forward(assembler) } else { Ok(()) }
    }

    /// Waits for the answer; pending when none is waited for. Cancel-safe.
    async fn answered(&mut self) {
        match &mut self.looks {
            Some(looks) => looks.answered(self.number).await,
            None => std::future::pending().await,
        }
        self.number = None;
    }
}

/// Confirms what the destination still reaches, then ends the stream.
async fn finish(
    mut session: ReplicationSession,
    mut confirmed: watch::Receiver<Confirmed>,
    mut feedback: Feedback,
    began: Instant,
) -> Result<(), SourceError> {
    while confirmed.changed().await.is_ok() {}
    let reached = *confirmed.borrow();
    feedback.progressed(reached.stored, reached.flushed);
    let Positions { written, flushed, applied } = feedback.take(began.elapsed());
    session.queue_status(&StandbyStatusUpdate { written, flushed, applied, sent_at: clock(), reply_requested: false });
    Ok(session.stop(STOP_MAX).await?)
}

/// A walsender in the middle of a large transaction may not listen: then the socket is simply closed.
const STOP_MAX: Duration = Duration::from_secs(2);

/// Reads the next message; or, while there is no room for what it would become, only sends what is queued.
async fn turn(session: &mut ReplicationSession, reading: bool) -> Result<Option<StreamedMessage>, SourceError> {
    if reading {
        return Ok(Some(session.next().await?));
    }
    if session.queued_bytes() == 0 {
        return std::future::pending().await;
    }
    session.send().await?;
    Ok(None)
}

/// Takes a message in; out goes one that is for the assembler.
fn take_in(
    message: StreamedMessage,
    decoder: &mut Decoder,
    assembler: &mut Assembler,
    feedback: &mut Feedback,
    report: &mut impl FnMut(StreamReport),
) -> Result<Option<Message>, SourceError> {
    match message {
        StreamedMessage::Message(ReplicationMessage::XLogData(data)) => {
            let message = decoder.read(&data.data)?;
            let mut committed = None;
            if let Message::Begin(begin) = &message {
                committed = Some((begin.final_lsn, begin.committed_at));
            } else if let Message::StreamCommit { commit, .. } = &message {
                // A transaction in progress counts only from here on.
                committed = Some((commit.commit_lsn, commit.committed_at));
            }
            if let Some((final_lsn, committed_at)) = committed {
                report(StreamReport::Heard { source: data.sent_at, local: clock() });
                report(StreamReport::Received { final_lsn, committed_at });
            }
            Ok(Some(message))
        }
        StreamedMessage::Message(ReplicationMessage::PrimaryKeepalive(keepalive)) => {
            report(StreamReport::Heard { source: keepalive.sent_at, local: clock() });
            assembler.keepalive(keepalive.wal_end);
            if keepalive.reply_requested {
                feedback.asked();
            }
            Ok(None)
        }
        StreamedMessage::Done => Err(SourceError::Ended),
    }
}

/// Our clock.
fn clock() -> PgTimestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    PgTimestamp::from_unix_micros(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}

/// A walsender that is behind says nothing of the WAL that it decodes and that is not for us, or not committed yet, until
/// it has caught up (`WalSndWaitForWal` in walsender.c), but it answers. Asked so often, lag does not grow and the slot does not
/// stand still meanwhile.
const ASK_EVERY: Duration = Duration::from_secs(3);

/// How long the source has said nothing.
struct Silence {
    heard_at: Duration,
    asked_at: Duration,
    timeout: Duration,
}

impl Silence {
    fn new(now: Duration, timeout: Duration) -> Silence {
        Silence { heard_at: now, asked_at: now, timeout }
    }

    fn heard(&mut self, now: Duration) {
        self.heard_at = now;
    }

    /// How long it has lasted by now.
    fn lasts(&self, now: Duration) -> Duration {
        now.saturating_sub(self.heard_at)
    }

    fn ask_every(&self) -> Duration {
        ASK_EVERY.min(self.timeout / 2)
    }

    fn last(&self) -> Duration {
        self.heard_at.max(self.asked_at)
    }

    /// Whether to ask for a sign of life now.
    fn check(&mut self, now: Duration) -> Result<bool, SourceError> {
        if self.lasts(now) >= self.timeout {
            return Err(SourceError::Silent(self.timeout));
        }
        let ask = now.saturating_sub(self.last()) >= self.ask_every();
        if ask {
            self.asked_at = now;
        }
        Ok(ask)
    }

    fn check_in(&self, now: Duration) -> Duration {
        let due = (self.last() + self.ask_every()).min(self.heard_at + self.timeout);
        due.saturating_sub(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_source_is_asked_every_three_seconds_and_given_up_at_the_timeout() {
        let at = Duration::from_secs;
        let mut silence = Silence::new(at(0), at(60));
        assert!(!silence.check(at(2)).unwrap());
        assert_eq!(silence.check_in(at(2)), at(1));
        assert!(silence.check(at(3)).unwrap());
        assert!(!silence.check(at(4)).unwrap(), "asked a second ago");
        assert!(silence.check(at(6)).unwrap(), "and again");
        silence.heard(at(40));
        assert!(!silence.check(at(42)).unwrap());
        assert!(silence.check(at(98)).unwrap(), "58 s of silence");
        assert_eq!(silence.check_in(at(98)), at(2));
        assert!(matches!(silence.check(at(100)), Err(SourceError::Silent(_))));
        // One that is soon given up is asked sooner.
        let mut hasty = Silence::new(at(0), at(2));
        assert!(hasty.check(at(1)).unwrap());
    }
}

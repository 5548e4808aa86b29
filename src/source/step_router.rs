//! Routes steps: what the assembler hands out, to where it belongs, in order.
//!
//! Held by `stream`. Steps go through the relation tracker, which completes them, into the step channel; changes of transactions
//! in progress go to the spool, and when one commits it is read back from there, step by step. While anything of that waits
//! for room, nothing after it goes out and nothing more is read from the source; [`StepRouter::progress`] is what to await then.
//! A stream that was applied in parallel is not read back: a single step stands for it, and the spool lets go of it once that is
//! committed at the destination. Before that the relation tracker confirms that its tables are what they were. What may be done with
//! which stream is the coordinator's to say ([`SharedCoordinator`]); the router reports to it what the spool has.
//!
//! Bounds: one step or order waits here and one step in the relation tracker, or one transaction is read back, a piece at a time.

use super::error::SourceError;
use super::parallel_apply::{Changes, SharedCoordinator};
use super::relation_tracker::RelationTracker;
use super::step_channel::StepSender;
use crate::apply_core::{Appended, CommitBy, Coordinator, Knowledge, Settlement};
use crate::pg::{Lsn, Relation, length_u64};
use crate::spool::{Chunks, Spool, SpoolError, Waiting};
use crate::transaction::{Assembler, Output, Replay, SpoolOrder, Step, Transaction, TransactionError};

/// Where transactions go that arrive before they commit.
pub(super) struct InProgressEnds {
    /// Where their records are kept; `None`: streaming was not asked for.
    pub(super) spool: Option<Spool>,
    /// Who decides on parallel apply; `None`: there is none.
    pub(super) coordinator: Option<SharedCoordinator>,
}

/// A stream that is read back.
struct ReadBack {
    replay: Box<Replay>,
    /// Where from, while there is more.
    chunks: Option<Chunks>,
}

/// Reports to the coordinator, and hears from it.
struct Parallel {
    coordinator: SharedCoordinator,
    changes: Changes,
}

pub(super) struct StepRouter {
    tracker: RelationTracker,
    steps: StepSender,
    spool: Option<Spool>,
    step: Option<Step>,
    order: Option<Waiting>,
    replay: Option<ReadBack>,
    parallel: Option<Parallel>,
    /// A stream that was applied in parallel, while its tables are asked about.
    confirming: Option<Box<Replay>>,
    /// A stream whose commit is left to the second session; it is read back if that does not come to pass.
    settling: Option<Box<Replay>>,
    /// The end_lsn of the last transaction that was handed out.
    handed_out: Lsn,
    gone: bool,
}

impl StepRouter {
    /// A router into a step channel, and to a spool if streaming was asked for; everything up to `resumed` was handed out
    /// before.
    pub(super) fn new(tracker: RelationTracker, steps: StepSender, ends: InProgressEnds, resumed: Lsn) -> StepRouter {
        let InProgressEnds { spool, coordinator } = ends;
        let parallel = coordinator.map(|coordinator| Parallel { changes: coordinator.watch(), coordinator });
        StepRouter {
            tracker,
            steps,
            spool,
            step: None,
            order: None,
            replay: None,
            parallel,
            confirming: None,
            settling: None,
            handed_out: resumed,
            gone: false,
        }
    }

    /// Whether nothing waits: more may be read from the source.
    pub(super) fn is_clear(&self) -> bool {
        self.step.is_none()
            && self.order.is_none()
            && self.replay.is_none()
            && self.confirming.is_none()
            && self.settling.is_none()
            && self.tracker.is_clear()
    }

    /// Whether nobody takes steps any more.
    pub(super) fn is_gone(&self) -> bool {
        self.gone
    }

    /// Passes on what the assembler has ready, as far as there is room.
    pub(super) fn forward(&mut self, assembler: &mut Assembler) -> Result<(), SourceError> {
        while self.is_clear()
            && let Some(output) = assembler.poll()
        {
            match output {
                Output::Step(step) => self.send(step),
                Output::Spool(order) => {
                    self.report(&order, assembler);
                    self.spool(order)?;
                }
            }
        }
        Ok(())
    }

    /// Reports to the coordinator what becomes of a stream's records.
    fn report(&self, order: &SpoolOrder, assembler: &Assembler) {
        let Some(Parallel { coordinator, .. }) = &self.parallel else { return };
        let knowledge = |relation: &Relation| match self.tracker.knows(relation) {
            true => Knowledge::Known,
            false => Knowledge::News,
        };
        let after = self.handed_out;
        coordinator.with(|coordinator| match order {
            SpoolOrder::Append { xid, records } => {
                if let Some((end, relations)) = assembler.in_progress(*xid) {
                    let bytes = length_u64(records.len());
                    coordinator.appended(Appended { xid: *xid, bytes, end, after, relations }, knowledge);
                }
            }
            SpoolOrder::Cut { xid, at } => coordinator.truncated(*xid, *at),
            SpoolOrder::Discard { xid } => coordinator.aborted(*xid),
            // What was applied of it in parallel is undone, and it is read back without those records.
            SpoolOrder::Replay(replay) if replay.has_gaps() => coordinator.truncated(replay.xid(), 0),
            SpoolOrder::Replay(_) => {}
        });
    }

    /// Asks the coordinator; `None`: there is none.
    fn ask<T>(&self, question: impl FnOnce(&mut Coordinator) -> T) -> Option<T> {
        self.parallel.as_ref().map(|parallel| parallel.coordinator.with(question))
    }

    fn send(&mut self, step: Step) {
        match &step {
            Step::Transaction(Transaction { commit, .. })
            | Step::Commit { commit, .. }
            | Step::AppliedInParallel { commit, .. } => {
                self.handed_out = commit.end_lsn;
            }
            Step::Begin(_) | Step::Chunk(_) | Step::Schema(_) | Step::Reached(_) => {}
        }
        self.tracker.push(step);
        self.send_complete();
    }

    /// Sends what the relation tracker has completed, as far as there is room.
    fn send_complete(&mut self) {
        while self.step.is_none()
            && let Some(step) = self.tracker.poll()
        {
            match self.steps.try_send(step) {
                Ok(()) => {}
                Err(Some(step)) => self.step = Some(step),
                Err(None) => self.gone = true,
            }
        }
    }

    fn spool(&mut self, order: SpoolOrder) -> Result<(), SourceError> {
        let Some(spool) = &mut self.spool else {
            // The assembler refuses streams that were not asked for, and no spool means that none were.
            let place = "although streaming was not asked for";
            return Err(TransactionError::Misplaced { message: "Stream", place }.into());
        };
        self.order = match order {
            SpoolOrder::Append { xid, records } => spool.append(xid, records)?,
            SpoolOrder::Cut { xid, at } => spool.cut(xid, at)?,
            SpoolOrder::Discard { xid } => spool.discard(xid)?,
            SpoolOrder::Replay(replay) => {
                if self.ask(|coordinator| coordinator.may_commit(replay.xid())) == Some(true) {
                    self.tracker.confirm(replay.relations(), replay.xid());
                    self.confirming = Some(replay);
                    return self.confirmed();
                }
                return self.commit(replay);
            }
        };
        Ok(())
    }

    /// Continues with a stream that was applied in parallel, once it is known whether its tables have changed.
    fn confirmed(&mut self) -> Result<(), SourceError> {
        let Some(unchanged) = self.tracker.take_confirmed() else { return Ok(()) };
        let Some(replay) = self.confirming.take() else { return Ok(()) };
        if !unchanged {
            self.ask(|coordinator| coordinator.table_changed(replay.xid()));
        }
        self.commit(replay)
    }

    /// A stream has committed: its own commit is all that is left to do, or it is read back.
    fn commit(&mut self, replay: Box<Replay>) -> Result<(), SourceError> {
        match self.ask(|coordinator| coordinator.committed(replay.xid())) {
            Some(CommitBy::SecondSession) => {
                self.send(replay.applied_in_parallel());
                self.settling = Some(replay);
                Ok(())
            }
            Some(CommitBy::Leader) | None => self.read_back(replay),
        }
    }

    fn read_back(&mut self, replay: Box<Replay>) -> Result<(), SourceError> {
        let Some(spool) = &mut self.spool else { return Ok(()) };
        let (chunks, order) = spool.read(replay.xid())?;
        self.replay = Some(ReadBack { replay, chunks: Some(chunks) });
        self.order = order;
        Ok(())
    }

    /// Waits until the first item has moved on. Cancel-safe.
    pub(super) async fn progress(&mut self) -> Result<(), SourceError> {
        if let Some(step) = &self.step {
            match (self.steps.room_for(step).await, self.step.take()) {
                (Some(room), Some(step)) => room.send(step),
                (_, _) => self.gone = true,
            }
            self.send_complete();
            return Ok(());
        }
        if !self.tracker.is_clear() {
            self.tracker.answered().await?;
            self.send_complete();
            return self.confirmed();
        }
        if self.settling.is_some() {
            return self.settle().await;
        }
        let Some(spool) = &mut self.spool else { return Ok(()) };
        if self.order.is_some() {
            return Ok(spool.give(&mut self.order).await?);
        }
        let Some(ReadBack { replay, chunks }) = &mut self.replay else { return Ok(()) };
        if let Some(step) = replay.poll() {
            self.send(step);
            return Ok(());
        }
        let Some(more) = chunks else {
            self.replay = None;
            return Ok(());
        };
        match more.next().await {
            Ok(Some(chunk)) => replay.chunk(&chunk)?,
            Ok(None) => {
                replay.end()?;
                *chunks = None;
            }
            Err(SpoolError::Gone) => return Err(spool.failure().into()),
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Waits until the destination has committed the stream that was applied in parallel, or has left it to be read back.
    async fn settle(&mut self) -> Result<(), SourceError> {
        let (Some(parallel), Some(spool)) = (&mut self.parallel, &mut self.spool) else { return Ok(()) };
        let settled = parallel.changes.settled(&parallel.coordinator).await;
        let Some(replay) = self.settling.take() else { return Ok(()) };
        match settled {
            Some(Settlement::Applied) => self.order = spool.discard(replay.xid())?,
            Some(Settlement::ReadBack) => return self.read_back(replay),
            None => self.gone = true,
        }
        Ok(())
    }

    /// Closes the step channel, and ends the spool.
    pub(super) async fn close(self) {
        // Its thread may be waiting for us to take a chunk.
        drop((self.steps, self.replay));
        if let Some(spool) = self.spool {
            spool.close().await;
        }
    }
}

//! Parallel apply: what is known of a streamed transaction that is applied while it is still arriving.
//!
//! Three tasks meet here. The step router (task 1) reports what of the stream is in the spool. The task that applies the
//! stream on a session of its own (`apply_worker::parallel_apply`) asks what it may read next. The apply loop (task 2) reports
//! how far the live tables are, says when it is the stream's turn to commit, and may give it up at any moment:
//!
//! ```text
//!            appended, cut, dropped          read, commit
//!  router ────────────────▶ ParallelApplyQueue ◀────────────── the second writing session
//!     ▲                                ▲
//!     └── settled: applied, or replay  └── stored · due · give up ── apply loop
//! ```
//!
//! The spool keeps everything until the commit is answered, so giving up costs only the work done: task 1 reads the stream
//! back, as without parallel apply. Records may be applied once everything received before them has committed at the
//! destination ([`Mark`]): what they depend on had committed at the source by then, since its sessions held the row locks.
//!
//! Bounds: one stream at a time, the first that comes; [`MARKS_MAX`] marks.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use tokio::sync::watch;

use crate::pg::{Lsn, Relation};
use crate::wire::Commit;

/// Marks kept at most; beyond that the oldest two become one, which waits for the later of their positions.
const MARKS_MAX: usize = 1000;

/// Records up to here may be applied after that position is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mark {
    until: u64,
    after: Lsn,
}

/// How far the stream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// It is in progress at the source.
    Arriving,
    /// It has committed there, and waits for its turn.
    Committed,
    /// It is its turn: to be committed here, from this position on.
    Due(Lsn, Commit),
    /// It is committed here.
    Applied,
    /// It is not to be applied in parallel, and this is why.
    GivenUp(&'static str),
    /// The apply loop has drawn its conclusion: applied, or to be replayed.
    Settled(bool),
}

#[derive(Debug)]
struct Stream {
    xid: u32,
    relations: Vec<Arc<Relation>>,
    marks: VecDeque<Mark>,
    /// Where its records end.
    end: u64,
    /// Where those end that were asked for.
    asked: u64,
    stage: Stage,
}

impl Stream {
    fn is_sound(&self) -> bool {
        self.stage == Stage::Arriving && self.asked > 0
    }

    fn give_up(&mut self, why: &'static str) {
        if matches!(self.stage, Stage::Arriving | Stage::Committed | Stage::Due(..)) {
            tracing::debug!(xid = self.xid, why, "a stream waits for its commit");
            self.stage = Stage::GivenUp(why);
        }
    }

    fn mark(&mut self, after: Lsn) {
        let mark = Mark { until: self.end, after };
        match self.marks.back_mut() {
            Some(last) if last.after >= after => last.until = mark.until,
            Some(_) | None => self.marks.push_back(mark),
        }
        if self.marks.len() > MARKS_MAX {
            self.marks.pop_front();
        }
    }

    /// Where what may be applied ends once `stored` is stored.
    fn free_until(&self, stored: Lsn) -> u64 {
        let free = self.marks.partition_point(|mark| mark.after <= stored);
        free.checked_sub(1).and_then(|at| self.marks.get(at)).map_or(0, |mark| mark.until)
    }
}

#[derive(Debug, Default)]
struct State {
    stream: Option<Stream>,
    /// The position of the live tables.
    stored: Lsn,
    /// The second session is at work.
    working: bool,
    /// Nothing is applied any more.
    closed: bool,
}

impl State {
    fn of(&mut self, xid: u32) -> Option<&mut Stream> {
        self.stream.as_mut().filter(|stream| stream.xid == xid)
    }
}

/// What the parallel applier does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Apply the records that stand here; their relations by number.
    Read {
        /// From this byte of the stream.
        from: u64,
        /// Up to this one at most; between the two it may be read only as far as the spool gives it, in whole records.
        until: u64,
        /// The relations that they name.
        relations: Vec<Arc<Relation>>,
    },
    /// Nothing before something changes.
    Wait,
    /// Everything is applied: commit it, from this position on.
    Commit(Lsn, Commit),
    /// Leave it.
    GiveUp,
}

/// A handle; all of them mean the same stream.
#[derive(Clone, Debug)]
pub struct ParallelApplyQueue {
    state: Arc<watch::Sender<State>>,
    /// Smaller streams are not worth a session.
    worth_bytes: u64,
}

impl ParallelApplyQueue {
    /// Nothing is followed yet; the live tables stand at `stored`. Streams below `worth_bytes` are left alone.
    pub fn new(stored: Lsn, worth_bytes: u64) -> ParallelApplyQueue {
        let state = State { stored, ..State::default() };
        ParallelApplyQueue { state: Arc::new(watch::Sender::new(state)), worth_bytes }
    }

    /// Something to wait on.
    pub fn watch(&self) -> Changes {
        Changes(self.state.subscribe())
    }

    fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut result = None;
        self.state.send_modify(|state| result = Some(change(state)));
        result.expect("the change was made")
    }

    // The step router's side.

    /// `bytes` of records were given to the spool, which end at `end` of their stream; everything up to `after` was handed
    /// out before. `known` tells whether a relation is what it was when it was described last.
    pub(super) fn appended(
        &self,
        xid: u32,
        (bytes, end): (u64, u64),
        after: Lsn,
        relations: &[Arc<Relation>],
        known: impl Fn(&Relation) -> bool,
    ) {
        self.with(|state| {
            if state.stream.is_none() && !state.closed && bytes == end {
                state.stream = Some(Stream {
                    xid,
                    relations: Vec::new(),
                    marks: VecDeque::new(),
                    end: 0,
                    asked: 0,
                    stage: Stage::Arriving,
                });
            }
            let Some(stream) = state.of(xid) else { return };
            let new = relations.get(stream.relations.len()..).unwrap_or_default();
            if !new.iter().all(|relation| known(relation)) {
                stream.give_up("a table is not what it was");
            }
            stream.relations.extend(new.iter().cloned());
            let mut ids = HashSet::new();
            if !stream.relations.iter().all(|relation| ids.insert(relation.id)) {
                stream.give_up("a table may have changed in it");
            }
            stream.end = end;
            stream.mark(after);
        });
    }

    /// Of a stream only the first `at` bytes are left.
    pub(super) fn cut(&self, xid: u32, at: u64) {
        self.with(|state| {
            let Some(stream) = state.of(xid) else { return };
            if at < stream.asked {
                stream.give_up("a part of it was rolled back");
            }
            stream.end = at;
            while let Some(last) = stream.marks.back_mut()
                && last.until > at
            {
                let before = stream.marks.len().checked_sub(2).and_then(|place| stream.marks.get(place));
                if before.is_some_and(|before| before.until >= at) {
                    stream.marks.pop_back();
                } else if let Some(last) = stream.marks.back_mut() {
                    last.until = at;
                }
            }
        });
    }

    /// A stream was rolled back.
    pub(super) fn dropped(&self, xid: u32) {
        self.with(|state| state.stream.take_if(|stream| stream.xid == xid));
    }

    /// Whether a stream is applied as far as it goes: it only needs to commit here, if its tables are what they were.
    pub(super) fn is_applied_so_far(&self, xid: u32) -> bool {
        let state = self.state.borrow();
        let stream = state.stream.as_ref().filter(|stream| stream.xid == xid);
        stream.is_some_and(Stream::is_sound)
    }

    /// A stream has committed at the source; whether it is applied, as far as it goes, so that it only needs to commit
    /// here. Otherwise it is replayed.
    pub(super) fn committed(&self, xid: u32) -> bool {
        self.with(|state| {
            let Some(stream) = state.of(xid) else { return false };
            let sound = stream.is_sound();
            if sound {
                stream.stage = Stage::Committed;
            } else {
                state.stream = None;
            }
            sound
        })
    }

    // The second session's side.

    /// The stream that is worth a session now, by its xid.
    pub fn candidate(&self) -> Option<u32> {
        let state = self.state.borrow();
        let stream = state.stream.as_ref()?;
        let free = stream.free_until(state.stored);
        (stream.stage == Stage::Arriving && free >= self.worth_bytes.max(1)).then_some(stream.xid)
    }

    /// What to do next for a stream; what it says to read counts as asked for.
    pub fn next(&self, xid: u32) -> Next {
        let mut next = Next::GiveUp;
        self.state.send_if_modified(|state| {
            let stored = state.stored;
            let Some(stream) = state.of(xid) else { return false };
            next = match stream.stage {
                Stage::Arriving | Stage::Committed | Stage::Due(..) if stream.asked < stream.end => {
                    let until = stream.free_until(stored);
                    if until > stream.asked {
                        Next::Read { from: stream.asked, until, relations: stream.relations.clone() }
                    } else {
                        Next::Wait
                    }
                }
                Stage::Due(from, commit) => Next::Commit(from, commit),
                Stage::Arriving | Stage::Committed => Next::Wait,
                Stage::Applied | Stage::GivenUp(_) | Stage::Settled(_) => Next::GiveUp,
            };
            if let Next::Read { until, .. } = &next {
                stream.asked = *until;
            }
            false
        });
        next
    }

    /// Whether a stream is still to be applied, without asking for more of it.
    pub fn still(&self, xid: u32) -> Next {
        let state = self.state.borrow();
        match state.stream.as_ref().filter(|stream| stream.xid == xid).map(|stream| stream.stage) {
            Some(Stage::Arriving | Stage::Committed | Stage::Due(..)) => Next::Wait,
            Some(Stage::Applied | Stage::GivenUp(_) | Stage::Settled(_)) | None => Next::GiveUp,
        }
    }

    /// Whether more of a stream may come.
    pub fn is_arriving(&self, xid: u32) -> bool {
        let state = self.state.borrow();
        state.stream.as_ref().is_some_and(|stream| stream.xid == xid && stream.stage == Stage::Arriving)
    }

    /// Of what was asked for, only what stands before `at` has come: the rest is to be asked for again.
    pub fn read(&self, xid: u32, at: u64) {
        self.state.send_if_modified(|state| {
            if let Some(stream) = state.of(xid) {
                stream.asked = at;
            }
            false
        });
    }

    /// A stream is not applied any further by its session.
    pub fn give_up_stream(&self, xid: u32, why: &'static str) {
        self.with(|state| {
            if let Some(stream) = state.of(xid) {
                stream.give_up(why);
            }
        });
    }

    /// Whether nothing is applied any more.
    pub fn is_closed(&self) -> bool {
        self.state.borrow().closed
    }

    /// Whether the second session holds locks at the destination.
    pub fn working(&self, working: bool) {
        self.with(|state| state.working = working);
    }

    /// The stream is committed here.
    pub fn applied(&self, xid: u32) {
        self.with(|state| {
            if let Some(stream) = state.of(xid) {
                stream.stage = Stage::Applied;
            }
        });
    }

    // The apply loop's side.

    /// The live tables stand here now.
    pub fn stored(&self, position: Lsn) {
        self.state.send_if_modified(|state| {
            state.stored = position;
            state.stream.is_some()
        });
    }

    /// Whatever is applied in parallel is to be rolled back, and replayed at its commit.
    pub fn give_up(&self, why: &'static str) {
        self.state.send_if_modified(|state| {
            let before = state.stream.as_ref().map(|stream| stream.stage);
            if let Some(stream) = &mut state.stream {
                stream.give_up(why);
            }
            before != state.stream.as_ref().map(|stream| stream.stage)
        });
    }

    /// Whether the second session holds locks at the destination.
    pub fn is_working(&self) -> bool {
        self.state.borrow().working
    }

    /// It is the turn of the stream that has committed.
    pub fn due(&self, from: Lsn, commit: Commit) {
        self.with(|state| {
            if let Some(stream) = &mut state.stream
                && stream.stage == Stage::Committed
            {
                stream.stage = Stage::Due(from, commit);
            }
        });
    }

    /// What became of the stream whose turn it is, once that is known: applied, or not.
    pub fn outcome(&self) -> Option<bool> {
        match self.state.borrow().stream.as_ref().map(|stream| stream.stage) {
            Some(Stage::Applied) => Some(true),
            Some(Stage::Arriving | Stage::Committed | Stage::Due(..)) => None,
            Some(Stage::GivenUp(_) | Stage::Settled(_)) | None => Some(false),
        }
    }

    /// The apply loop has taken note of the outcome.
    pub fn settle(&self, applied: bool) {
        self.with(|state| {
            if let Some(stream) = &mut state.stream {
                stream.stage = Stage::Settled(applied);
            }
        });
    }

    /// Nothing is applied any more.
    pub fn close(&self) {
        self.with(|state| {
            state.closed = true;
            if let Some(stream) = &mut state.stream {
                stream.give_up("the stream ends");
            }
        });
    }
}

/// Waits for changes.
#[derive(Clone, Debug)]
pub struct Changes(watch::Receiver<State>);

impl Changes {
    /// Resolves after the next change that this handle has not seen. Cancel-safe.
    pub async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// What is there now counts as seen.
    pub fn seen(&mut self) {
        self.0.mark_unchanged();
    }

    /// Whether the stream that has committed was applied, once the apply loop says so; it is forgotten then. `None`: nothing
    /// is applied any more. Cancel-safe.
    pub(super) async fn settled(&mut self, ahead: &ParallelApplyQueue) -> Option<bool> {
        loop {
            let (settled, closed) = {
                let state = self.0.borrow_and_update();
                let stage = state.stream.as_ref().map(|stream| stream.stage);
                let settled = match stage {
                    Some(Stage::Settled(applied)) => Some(applied),
                    Some(_) | None => None,
                };
                (settled, state.closed)
            };
            if settled.is_some() {
                ahead.with(|state| state.stream = None);
                return settled;
            }
            if closed || self.0.changed().await.is_err() {
                return None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::{PgTimestamp, QualifiedName, RelationId, ReplicaIdentity};

    fn relation(id: u32) -> Arc<Relation> {
        Arc::new(Relation {
            leaves: Default::default(),
            id: RelationId(id),
            name: QualifiedName::new("public", "t"),
            replica_identity: ReplicaIdentity::Default,
            columns: Vec::new(),
        })
    }

    fn commit(lsn: u64) -> Commit {
        Commit { commit_lsn: Lsn::new(lsn), end_lsn: Lsn::new(lsn + 1), committed_at: PgTimestamp::from_micros(0) }
    }

    fn read(ahead: &ParallelApplyQueue) -> Option<(u64, u64)> {
        match ahead.next(7) {
            Next::Read { from, until, .. } => Some((from, until)),
            Next::Wait | Next::Commit(..) | Next::GiveUp => None,
        }
    }

    fn append(ahead: &ParallelApplyQueue, end: u64, bytes: u64, after: u64) {
        ahead.appended(7, (bytes, end), Lsn::new(after), &[relation(1)], |_| true);
    }

    #[test]
    fn records_are_read_once_everything_received_before_them_is_stored() {
        let ahead = ParallelApplyQueue::new(Lsn::new(10), 1);
        append(&ahead, 100, 100, 10);
        assert_eq!(ahead.candidate(), Some(7));
        append(&ahead, 150, 50, 20);
        append(&ahead, 170, 20, 20);
        append(&ahead, 200, 30, 30);
        assert_eq!(read(&ahead), Some((0, 100)));
        assert_eq!(ahead.next(7), Next::Wait);
        ahead.stored(Lsn::new(20));
        assert_eq!(read(&ahead), Some((100, 170)));
        ahead.stored(Lsn::new(35));
        assert_eq!(read(&ahead), Some((170, 200)));
        assert_eq!(ahead.next(7), Next::Wait, "it has not committed");
        assert!(ahead.committed(7));
        assert_eq!(ahead.next(7), Next::Wait, "it is not its turn");
        ahead.due(Lsn::new(35), commit(40));
        assert_eq!(ahead.next(7), Next::Commit(Lsn::new(35), commit(40)));
        assert_eq!(ahead.outcome(), None);
        ahead.applied(7);
        assert_eq!(ahead.outcome(), Some(true));
    }

    #[test]
    fn a_rolled_back_part_is_not_read_and_once_read_cancels_parallel_apply() {
        let ahead = ParallelApplyQueue::new(Lsn::new(10), 1);
        append(&ahead, 100, 100, 10);
        assert_eq!(read(&ahead), Some((0, 100)));
        append(&ahead, 200, 100, 10);
        append(&ahead, 300, 100, 20);
        ahead.cut(7, 150);
        ahead.stored(Lsn::new(20));
        assert_eq!(read(&ahead), Some((100, 150)));
        append(&ahead, 180, 30, 20);
        assert_eq!(read(&ahead), Some((150, 180)));
        ahead.cut(7, 170);
        assert_eq!(ahead.next(7), Next::GiveUp);
        assert!(!ahead.committed(7), "it is replayed");
    }

    #[test]
    fn a_second_description_of_a_table_or_one_that_is_news_gives_the_stream_up() {
        let ahead = ParallelApplyQueue::new(Lsn::new(10), 1);
        ahead.appended(7, (100, 100), Lsn::new(10), &[relation(1), relation(1)], |_| true);
        assert_eq!(ahead.next(7), Next::GiveUp);
        let ahead = ParallelApplyQueue::new(Lsn::new(10), 1);
        append(&ahead, 100, 100, 10);
        ahead.appended(7, (100, 200), Lsn::new(10), &[relation(1), relation(2)], |relation| relation.id.0 == 1);
        assert_eq!(ahead.next(7), Next::GiveUp);
    }

    #[test]
    fn one_stream_is_followed_from_its_beginning_and_small_ones_are_left_alone() {
        let ahead = ParallelApplyQueue::new(Lsn::new(10), 1000);
        append(&ahead, 100, 100, 10);
        assert_eq!(ahead.candidate(), None);
        assert!(!ahead.committed(7), "nothing of it was applied");
        ahead.appended(8, (500, 900), Lsn::new(10), &[], |_| true);
        assert_eq!(ahead.candidate(), None, "it did not begin here");
        ahead.appended(9, (2000, 2000), Lsn::new(10), &[], |_| true);
        append(&ahead, 2000, 2000, 10);
        assert_eq!(ahead.candidate(), Some(9));
        ahead.dropped(9);
        assert_eq!(ahead.next(9), Next::GiveUp);
    }

    #[test]
    fn many_marks_become_fewer_and_never_free_anything_early() {
        let mut rng = fastrand::Rng::with_seed(1);
        let ahead = ParallelApplyQueue::new(Lsn::new(0), 1);
        let mut freed = Vec::new();
        for number in 1..=3000_u64 {
            append(&ahead, number * 10, 10, number);
            freed.push(number * 10);
        }
        for _ in 0..100 {
            let stored = rng.u64(0..=3000);
            let free = ahead.state.borrow().stream.as_ref().unwrap().free_until(Lsn::new(stored));
            assert!(free <= stored * 10, "{free} after {stored}");
        }
        let free = ahead.state.borrow().stream.as_ref().unwrap().free_until(Lsn::new(3000));
        assert_eq!(free, 30_000);
    }
}

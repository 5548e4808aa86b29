//! Steps into work for the destination: natural batches, whole transactions each.
//!
//! Stands between the channel and `destination::apply`. Whatever whole transactions have arrived when the destination
//! is ready form the next batch, bounded in rows and bytes; there is no timer. At light load each transaction is a
//! batch at once; in a backlog batches grow by themselves. A transaction larger than a chunk passes through chunk by
//! chunk; one with a TRUNCATE stands alone, because its lock lasts until the commit.
//!
//! Bounds: at most [`BatchLimits`] are queued here, then the channel is left to fill; full means wait.

use std::collections::VecDeque;

use crate::pg::{Lsn, PgTimestamp};
use crate::transaction::{Change, Chunk, Heartbeat, SchemaChange, Step, Transaction};
use crate::wire::{Begin, Commit};

/// How much goes into one batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchLimits {
    /// Most changes, unless one transaction alone has more.
    pub rows_max: usize,
    /// Most bytes, unless one transaction alone has more (it has less than a chunk).
    pub bytes_max: usize,
}

/// A source transaction inside a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchMember {
    /// Its begin.
    pub begin: Begin,
    /// Its commit.
    pub commit: Commit,
    /// Where its changes end in the batch's list.
    pub changes_end: usize,
    /// A heartbeat in it.
    pub heartbeat: Option<Heartbeat>,
}

/// Whole source transactions that are committed together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// The transactions, in commit order. Never empty in a batch that leaves this module.
    pub members: Vec<BatchMember>,
    /// All their changes, in order.
    pub changes: Vec<Change>,
    /// What the changes weigh, in bytes.
    pub size_bytes: usize,
}

/// A transaction of a batch, with its changes.
#[derive(Clone, Copy, Debug)]
pub struct BatchedTransaction<'a> {
    /// The transaction.
    pub member: &'a BatchMember,
    /// Where its changes begin in the batch's list.
    pub first: usize,
    /// Its changes.
    pub changes: &'a [Change],
}

impl Batch {
    /// The end_lsn of the last transaction: the position that the batch stands for.
    pub fn end_lsn(&self) -> Lsn {
        self.members.last().map_or(Lsn::INVALID, |member| member.commit.end_lsn)
    }

    /// The commit time of the first transaction, on the source's clock.
    pub fn oldest_commit(&self) -> Option<PgTimestamp> {
        self.members.first().map(|member| member.commit.committed_at)
    }

    /// The transaction that made the change at `index`.
    pub fn member_of(&self, index: usize) -> Option<&BatchMember> {
        self.members.iter().find(|member| index < member.changes_end)
    }

    /// The batch's transactions, each with its changes.
    pub fn transactions(&self) -> impl Iterator<Item = BatchedTransaction<'_>> {
        let mut first = 0;
        self.members.iter().map(move |member| {
            let changes = self.changes.get(first..member.changes_end);
            let changes = changes.expect("the changes of one transaction end behind those of the one before");
            let transaction = BatchedTransaction { member, first, changes };
            first = member.changes_end;
            transaction
        })
    }

    /// The batch's transactions as batches of one.
    pub fn split(self) -> impl Iterator<Item = Batch> {
        let mut changes = self.changes.into_iter();
        let mut taken = 0;
        self.members.into_iter().map(move |member| {
            let own: Vec<Change> = changes.by_ref().take(member.changes_end - taken).collect();
            taken = member.changes_end;
            let size_bytes = own.iter().map(Change::size_bytes).sum();
            Batch { members: vec![BatchMember { changes_end: own.len(), ..member }], changes: own, size_bytes }
        })
    }

    /// The batch, or the batch of each of its transactions if one of several is `wanted` by itself.
    pub fn split_if(self, wanted: impl Fn(&Commit) -> bool) -> Vec<Batch> {
        if self.members.len() < 2 || !self.members.iter().any(|member| wanted(&member.commit)) {
            return vec![self];
        }
        self.split().collect()
    }

    fn add(&mut self, transaction: Transaction) {
        let Transaction { begin, commit, changes, size_bytes, heartbeat } = transaction;
        self.changes.extend(changes);
        self.size_bytes += size_bytes;
        self.members.push(BatchMember { begin, commit, changes_end: self.changes.len(), heartbeat });
    }
}

/// What is to be done next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Work {
    /// Apply changes.
    Apply(ApplyTask),
    /// Commit a transaction whose changes were applied in parallel, on a session of its own.
    CommitParallel(TransactionEnd),
    /// Nothing to apply; this far the stream has nothing for us.
    Reached(Lsn),
}

/// What the destination is to apply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ApplyTask {
    /// Whole transactions, to be committed together.
    Batch(Batch),
    /// The next step of a transaction that comes in chunks.
    Large(LargeStep),
}

/// A step of a transaction that comes in chunks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LargeStep {
    /// It begins.
    Begin(Begin),
    /// Its next changes.
    Chunk(Chunk),
    /// In it a table changes: bring the destination's to the same state before the chunks that follow.
    ChangeSchema(SchemaChange),
    /// It commits.
    Commit(TransactionEnd),
}

/// The end of a transaction whose changes came before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransactionEnd {
    /// Its commit.
    pub commit: Commit,
    /// A heartbeat in it.
    pub heartbeat: Option<Heartbeat>,
}

impl ApplyTask {
    /// Its changes.
    pub fn changes(&self) -> &[Change] {
        match self {
            ApplyTask::Batch(batch) => &batch.changes,
            ApplyTask::Large(LargeStep::Chunk(chunk)) => &chunk.changes,
            ApplyTask::Large(LargeStep::Begin(_) | LargeStep::ChangeSchema(_) | LargeStep::Commit(_)) => &[],
        }
    }

    /// The commit_lsn of the last transaction that it names; chunks and schema changes name none.
    pub fn last_commit_lsn(&self) -> Option<Lsn> {
        match self {
            ApplyTask::Batch(batch) => batch.members.last().map(|member| member.commit.commit_lsn),
            ApplyTask::Large(LargeStep::Begin(begin)) => Some(begin.final_lsn),
            ApplyTask::Large(LargeStep::Commit(end)) => Some(end.commit.commit_lsn),
            ApplyTask::Large(LargeStep::Chunk(_) | LargeStep::ChangeSchema(_)) => None,
        }
    }
}

/// Queues steps and hands out work.
#[derive(Debug)]
pub struct Batcher {
    limits: BatchLimits,
    queue: VecDeque<Step>,
    queued_rows: usize,
    queued_bytes: usize,
    /// Nothing that committed at or behind this is handed out.
    fence: Option<Lsn>,
}

impl Batcher {
    /// An empty batcher.
    pub fn new(limits: BatchLimits) -> Batcher {
        Batcher { limits, queue: VecDeque::new(), queued_rows: 0, queued_bytes: 0, fence: None }
    }

    /// Whether another step may be pushed. One is always taken when nothing is queued, whatever its size.
    pub fn has_room(&self) -> bool {
        self.queued_rows < self.limits.rows_max && self.queued_bytes < self.limits.bytes_max
    }

    /// Takes in the next step of the stream.
    pub fn push(&mut self, step: Step) {
        // Of several positions in a row only the newest matters.
        if let (Step::Reached(newer), Some(Step::Reached(last))) = (&step, self.queue.back_mut()) {
            *last = (*last).max(*newer);
            return;
        }
        self.queued_rows += rows(&step);
        self.queued_bytes += step.size_bytes();
        self.queue.push_back(step);
    }

    /// Whether there is anything to hand out.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Whether at least `rows` changes are queued, or all that there is room for, or what is next is no batch.
    pub fn holds(&self, rows: usize) -> bool {
        self.queued_rows >= rows || !self.has_room() || !matches!(self.queue.front(), Some(Step::Transaction(_)))
    }

    /// From now on only transactions with commit_lsn before `fence` are handed out; `None`: all of them.
    pub fn set_fence(&mut self, fence: Option<Lsn>) {
        self.fence = fence;
    }

    /// Whether what comes next committed at or behind the fence.
    pub fn at_fence(&self) -> bool {
        self.queue.front().is_some_and(|step| self.is_behind_fence(step))
    }

    fn is_behind_fence(&self, step: &Step) -> bool {
        let final_lsn = match step {
            Step::Transaction(transaction) => transaction.begin.final_lsn,
            Step::Begin(begin) | Step::AppliedInParallel { begin, .. } => begin.final_lsn,
            // What belongs to a transaction that has begun goes with it; a position is no transaction.
            Step::Chunk(_) | Step::Schema(_) | Step::Commit { .. } | Step::Reached(_) => return false,
        };
        self.fence.is_some_and(|fence| final_lsn >= fence)
    }

    /// What to do next, with everything that has arrived.
    pub fn next_work(&mut self) -> Option<Work> {
        let mut batch = Batch::default();
        while let Some(step) = self.queue.front() {
            // A position between transactions says nothing that the next transaction's does not.
            if matches!(step, Step::Reached(_)) && self.queue.len() > 1 {
                self.pop();
                continue;
            }
            let Step::Transaction(transaction) = step else { break };
            if self.is_behind_fence(step) {
                break;
            }
            let alone = transaction.changes.iter().any(|change| matches!(change, Change::Truncate { .. }));
            let full = batch.changes.len() + transaction.changes.len() > self.limits.rows_max
                || batch.size_bytes + transaction.size_bytes > self.limits.bytes_max;
            if (alone || full) && !batch.members.is_empty() {
                break;
            }
            if let Some(Step::Transaction(transaction)) = self.pop() {
                batch.add(transaction);
            }
            if alone {
                break;
            }
        }
        if !batch.members.is_empty() {
            return Some(Work::Apply(ApplyTask::Batch(batch)));
        }
        if self.at_fence() {
            return None;
        }
        let large = |step| Work::Apply(ApplyTask::Large(step));
        Some(match self.pop()? {
            Step::Begin(begin) => large(LargeStep::Begin(begin)),
            Step::Chunk(chunk) => large(LargeStep::Chunk(chunk)),
            Step::Schema(change) => large(LargeStep::ChangeSchema(change)),
            Step::Commit { commit, heartbeat } => large(LargeStep::Commit(TransactionEnd { commit, heartbeat })),
            Step::AppliedInParallel { begin: _, commit, heartbeat } => {
                Work::CommitParallel(TransactionEnd { commit, heartbeat })
            }
            Step::Reached(position) => Work::Reached(position),
            Step::Transaction(transaction) => {
                batch.add(transaction);
                Work::Apply(ApplyTask::Batch(batch))
            }
        })
    }

    fn pop(&mut self) -> Option<Step> {
        let step = self.queue.pop_front()?;
        self.queued_rows -= rows(&step);
        self.queued_bytes -= step.size_bytes();
        Some(step)
    }
}

fn rows(step: &Step) -> usize {
    match step {
        Step::Transaction(transaction) => transaction.changes.len(),
        Step::Chunk(chunk) => chunk.changes.len(),
        Step::Begin(_) | Step::Schema(_) | Step::Commit { .. } | Step::AppliedInParallel { .. } | Step::Reached(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;

    use super::*;
    use crate::pg::{QualifiedName, Relation, RelationId, ReplicaIdentity, Tuple};
    use crate::transaction::RowChange;

    fn relation() -> Arc<Relation> {
        Arc::new(Relation {
            leaves: Default::default(),
            id: RelationId(1),
            name: QualifiedName::new("public", "t"),
            replica_identity: ReplicaIdentity::Default,
            columns: Vec::new(),
        })
    }

    fn insert() -> Change {
        Change::Row(RowChange::Insert { relation: relation(), new: Tuple::new(0, Bytes::new()).unwrap() })
    }

    fn truncate() -> Change {
        Change::Truncate { relations: vec![relation()], restart_identity: false }
    }

    fn transaction(end: u64, changes: Vec<Change>) -> Step {
        let at = PgTimestamp::from_micros(0);
        let size_bytes = changes.iter().map(Change::size_bytes).sum();
        Step::Transaction(Transaction {
            begin: Begin { final_lsn: Lsn::new(end - 1), committed_at: at, xid: 1 },
            commit: Commit { commit_lsn: Lsn::new(end - 1), end_lsn: Lsn::new(end), committed_at: at },
            changes,
            size_bytes,
            heartbeat: None,
        })
    }

    fn batcher(rows_max: usize) -> Batcher {
        Batcher::new(BatchLimits { rows_max, bytes_max: 1 << 20 })
    }

    fn ends(batcher: &mut Batcher) -> Vec<Vec<u64>> {
        std::iter::from_fn(|| batcher.next_work())
            .map(|work| match &work {
                Work::Apply(ApplyTask::Batch(batch)) => {
                    batch.members.iter().map(|m| m.commit.end_lsn.as_u64()).collect()
                }
                Work::Reached(position) => vec![position.as_u64()],
                Work::Apply(ApplyTask::Large(_)) | Work::CommitParallel(_) => panic!("{work:?}"),
            })
            .collect()
    }

    #[test]
    fn what_has_arrived_together_is_committed_together() {
        let mut batcher = batcher(100);
        assert_eq!(batcher.next_work(), None);
        for end in [10, 20, 30] {
            batcher.push(transaction(end, vec![insert()]));
        }
        assert_eq!(ends(&mut batcher), [vec![10, 20, 30]]);
    }

    #[test]
    fn a_full_batch_ends_between_transactions_never_inside_one() {
        let mut batcher = batcher(3);
        for end in [10, 20, 30, 40] {
            batcher.push(transaction(end, vec![insert(), insert()]));
        }
        batcher.push(transaction(50, vec![insert(); 9]));
        assert_eq!(ends(&mut batcher), [vec![10], vec![20], vec![30], vec![40], vec![50]]);
    }

    #[test]
    fn a_transaction_with_a_truncate_stands_alone() {
        let mut batcher = batcher(100);
        for (end, change) in [(10, insert()), (20, truncate()), (30, insert()), (40, insert())] {
            batcher.push(transaction(end, vec![change]));
        }
        assert_eq!(ends(&mut batcher), [vec![10], vec![20], vec![30, 40]]);
    }

    #[test]
    fn a_position_counts_only_when_nothing_follows_it() {
        let mut batcher = batcher(100);
        batcher.push(transaction(10, vec![insert()]));
        batcher.push(Step::Reached(Lsn::new(15)));
        batcher.push(Step::Reached(Lsn::new(17)));
        batcher.push(transaction(20, vec![insert()]));
        batcher.push(Step::Reached(Lsn::new(25)));
        batcher.push(Step::Reached(Lsn::new(27)));
        assert_eq!(ends(&mut batcher), [vec![10, 20], vec![27]]);
    }

    #[test]
    fn a_fence_lets_pass_what_committed_before_it_and_nothing_else() {
        let mut batcher = batcher(100);
        for end in [10, 20, 30] {
            batcher.push(transaction(end, vec![insert()]));
        }
        // The second commits at 19: a fence there keeps it back, one behind it lets it pass.
        batcher.set_fence(Some(Lsn::new(19)));
        assert!(!batcher.at_fence());
        assert_eq!(ends(&mut batcher), [vec![10]]);
        assert!(batcher.at_fence());
        batcher.push(Step::Reached(Lsn::new(35)));
        assert_eq!(batcher.next_work(), None, "a position behind it does not pass either");
        batcher.set_fence(Some(Lsn::new(20)));
        assert_eq!(ends(&mut batcher), [vec![20]]);
        batcher.set_fence(None);
        assert!(!batcher.at_fence());
        assert_eq!(ends(&mut batcher), [vec![30], vec![35]]);
    }

    #[test]
    fn a_fence_stops_before_a_large_transaction_and_never_inside_one() {
        let begin =
            |lsn| Step::Begin(Begin { final_lsn: Lsn::new(lsn), committed_at: PgTimestamp::from_micros(0), xid: 1 });
        let chunk = || Step::Chunk(crate::transaction::Chunk { changes: vec![insert()], size_bytes: 1 });
        let mut batcher = batcher(100);
        batcher.push(begin(50));
        batcher.push(chunk());
        batcher.set_fence(Some(Lsn::new(50)));
        assert_eq!(batcher.next_work(), None);
        batcher.set_fence(None);
        assert!(matches!(batcher.next_work(), Some(Work::Apply(ApplyTask::Large(LargeStep::Begin(_))))));
        batcher.set_fence(Some(Lsn::new(50)));
        let chunk = batcher.next_work();
        assert!(matches!(chunk, Some(Work::Apply(ApplyTask::Large(LargeStep::Chunk(_))))), "it has begun");
    }

    #[test]
    fn room_is_bounded_in_rows_and_bytes() {
        let mut batcher = batcher(4);
        assert!(batcher.has_room());
        batcher.push(transaction(10, vec![insert(); 4]));
        assert!(!batcher.has_room());
        batcher.next_work();
        assert!(batcher.has_room());
        let mut small = Batcher::new(BatchLimits { rows_max: 100, bytes_max: 10 });
        small.push(transaction(10, vec![insert()]));
        assert!(!small.has_room());
    }

    #[test]
    fn a_queue_holds_so_many_changes_or_all_it_has_room_for_or_what_is_no_batch() {
        let mut batcher = batcher(100);
        batcher.push(transaction(10, vec![insert(); 2]));
        assert!(batcher.holds(2) && !batcher.holds(3));
        batcher.push(transaction(20, vec![insert(); 1]));
        assert!(batcher.holds(3));
        batcher.push(transaction(30, vec![insert(); 97]));
        assert!(batcher.holds(1_000), "more does not go in");
        while batcher.next_work().is_some() {}
        batcher.push(Step::Reached(Lsn::new(40)));
        assert!(batcher.holds(1), "a position waits for nothing");
    }

    #[test]
    fn a_batch_splits_into_its_transactions() {
        let mut batch = Batch::default();
        for (end, changes) in [(10, 2), (20, 0), (30, 1)] {
            if let Step::Transaction(transaction) = transaction(end, vec![insert(); changes]) {
                batch.add(transaction);
            }
        }
        assert_eq!(batch.member_of(2).map(|m| m.commit.end_lsn), Some(Lsn::new(30)));
        let parts = |batches: &mut dyn Iterator<Item = Batch>| -> Vec<(u64, usize, usize)> {
            batches.map(|batch| (batch.end_lsn().as_u64(), batch.members.len(), batch.changes.len())).collect()
        };
        let split = [(10, 1, 2), (20, 1, 0), (30, 1, 1)];
        assert_eq!(parts(&mut batch.clone().split()), split);
        assert_eq!(parts(&mut batch.clone().split_if(|_| false).into_iter()), [(30, 3, 3)]);
        let of = |end| move |commit: &Commit| commit.end_lsn == Lsn::new(end);
        for end in [10, 20, 30] {
            assert_eq!(
                parts(&mut batch.clone().split_if(of(end)).into_iter()),
                split,
                "the transaction at {end} is wanted"
            );
        }
    }
}

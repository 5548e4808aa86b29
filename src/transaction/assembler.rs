//! The assembler: one message in, at most two steps out.
//!
//! Stands between `wire::Decoder` and the channel to `plan`. Events go in by [`Assembler::message`] and
//! [`Assembler::keepalive`], work comes out of [`Assembler::poll`]. Which relations are wanted is decided once, at
//! their Relation message; changes to others are dropped there and then.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use super::change::{Change, Heartbeat, Piece, Step, Transaction};
use crate::pg::{Lsn, QualifiedName, Relation, RelationId};
use crate::wire::{Begin, Commit, Message};

/// The tables that are kept equal, by their OIDs at the source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TableSet {
    by_id: BTreeMap<RelationId, QualifiedName>,
}

impl TableSet {
    /// A set of tables with the names under which they are configured.
    pub fn new(tables: impl IntoIterator<Item = (RelationId, QualifiedName)>) -> TableSet {
        TableSet { by_id: tables.into_iter().collect() }
    }

    /// The name under which a table is configured, if it is in the set.
    pub fn name(&self, id: RelationId) -> Option<&QualifiedName> {
        self.by_id.get(&id)
    }

    /// The tables, by OID.
    pub fn iter(&self) -> impl Iterator<Item = (RelationId, &QualifiedName)> {
        self.by_id.iter().map(|(id, name)| (*id, name))
    }

    fn id(&self, name: &QualifiedName) -> Option<RelationId> {
        self.by_id.iter().find(|(_, known)| *known == name).map(|(id, _)| *id)
    }
}

/// A message that does not fit what came before it, or a table that is not the one it was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TransactionError {
    /// A message stands where it cannot stand.
    #[error("{message} message {place} (protocol violation)")]
    Misplaced {
        /// The message.
        message: &'static str,
        /// Where it stood.
        place: &'static str,
    },
    /// A change names a relation that was never described.
    #[error("a change names relation {0}, which no Relation message described")]
    UnknownRelation(RelationId),
    /// A row has another number of columns than its relation.
    #[error("a row of table {table} has {found} columns, but its relation has {expected} (commit {final_lsn})")]
    ColumnCount {
        /// The table.
        table: QualifiedName,
        /// Columns of the relation.
        expected: usize,
        /// Columns of the row.
        found: usize,
        /// The transaction's commit_lsn.
        final_lsn: Lsn,
    },
    /// Begin and Commit do not tell of the same commit.
    #[error("transaction began with final_lsn {final_lsn} but committed at {commit_lsn}")]
    CommitMismatch {
        /// From Begin.
        final_lsn: Lsn,
        /// From Commit.
        commit_lsn: Lsn,
    },
    /// A table was dropped and created anew under the same name.
    #[error("table {table} was dropped and created anew at the source (OID {old}, now {new})")]
    Replaced {
        /// The table.
        table: QualifiedName,
        /// The OID that we knew.
        old: RelationId,
        /// The OID that it has now.
        new: RelationId,
    },
}

/// Assembles one replication session's messages into steps.
#[derive(Debug)]
pub struct Assembler {
    tables: TableSet,
    piece_bytes_max: usize,
    heartbeat_prefix: &'static str,
    relations: HashMap<RelationId, Known>,
    open: Option<Open>,
    steps: VecDeque<Step>,
    received: Lsn,
}

#[derive(Debug)]
enum Known {
    Wanted(Arc<Relation>),
    /// Published, but not in the set.
    Unwanted,
}

/// The transaction between its Begin and its Commit.
#[derive(Debug)]
struct Open {
    begin: Begin,
    changes: Vec<Change>,
    size_bytes: usize,
    heartbeat: Option<Heartbeat>,
    /// Its begin has already left as a step.
    large: bool,
}

impl Assembler {
    /// An assembler for a session that was just started at `resumed_from`.
    ///
    /// Transactions of more than `piece_bytes_max` leave in pieces of about that size. Logical messages with
    /// `heartbeat_prefix` are ours; all others are ignored.
    pub fn new(
        tables: TableSet,
        piece_bytes_max: usize,
        heartbeat_prefix: &'static str,
        resumed_from: Lsn,
    ) -> Assembler {
        Assembler {
            tables,
            piece_bytes_max,
            heartbeat_prefix,
            relations: HashMap::new(),
            open: None,
            steps: VecDeque::new(),
            received: resumed_from,
        }
    }

    /// How far the stream has been received: the end of the last transaction or the last keepalive.
    pub fn received(&self) -> Lsn {
        self.received
    }

    /// Takes in the stream's next message.
    ///
    /// # Errors
    /// [`TransactionError`]; the session cannot be continued then.
    pub fn message(&mut self, message: Message) -> Result<(), TransactionError> {
        match message {
            Message::Insert { xid: _, relation, new } => {
                if let Some(relation) = self.wanted(relation)? {
                    self.check_columns(&relation, new.len())?;
                    self.change(Change::Insert { relation, new })?;
                }
            }
            Message::Update { xid: _, relation, old, new } => {
                if let Some(relation) = self.wanted(relation)? {
                    self.check_columns(&relation, new.len())?;
                    if let Some(old) = &old {
                        self.check_columns(&relation, old.tuple().len())?;
                    }
                    self.change(Change::Update { relation, old, new })?;
                }
            }
            Message::Delete { xid: _, relation, old } => {
                if let Some(relation) = self.wanted(relation)? {
                    self.check_columns(&relation, old.tuple().len())?;
                    self.change(Change::Delete { relation, old })?;
                }
            }
            Message::Truncate { xid: _, truncate } => {
                let mut relations = Vec::new();
                for id in truncate.relations {
                    relations.extend(self.wanted(id)?);
                }
                if !relations.is_empty() {
                    // CASCADE is resolved at the source: the message names every published table that it reached.
                    self.change(Change::Truncate { relations, restart_identity: truncate.restart_identity })?;
                }
            }
            Message::Begin(begin) => {
                if self.open.is_some() {
                    return Err(TransactionError::Misplaced { message: "Begin", place: "inside a transaction" });
                }
                self.open = Some(Open { begin, changes: Vec::new(), size_bytes: 0, heartbeat: None, large: false });
            }
            Message::Commit(commit) => self.commit(commit)?,
            Message::Relation { xid: _, relation } => self.relation(relation)?,
            Message::Logical { xid: _, message } => {
                if message.prefix == self.heartbeat_prefix
                    && let Some(open) = &mut self.open
                {
                    open.heartbeat = Some(Heartbeat { content: message.content.to_vec() });
                }
            }
            // Types are matched by the catalogs of both ends; origins are filtered by the source itself.
            Message::Type { .. } | Message::Origin { .. } => {}
            Message::StreamStart { .. } => return Err(unasked("Stream Start")),
            Message::StreamStop => return Err(unasked("Stream Stop")),
            Message::StreamCommit { .. } => return Err(unasked("Stream Commit")),
            Message::StreamAbort(_) => return Err(unasked("Stream Abort")),
        }
        Ok(())
    }

    /// Takes in a keepalive: outside of a transaction everything up to its `wal_end` has been seen.
    pub fn keepalive(&mut self, wal_end: Lsn) {
        // After a restart keepalives may begin below what was confirmed; inside a transaction they say nothing of it.
        if self.open.is_none() && wal_end > self.received {
            self.received = wal_end;
            self.reached(wal_end);
        }
    }

    /// The next step, if one is ready.
    pub fn poll(&mut self) -> Option<Step> {
        self.steps.pop_front()
    }

    fn commit(&mut self, commit: Commit) -> Result<(), TransactionError> {
        let Some(open) = self.open.take() else {
            return Err(TransactionError::Misplaced { message: "Commit", place: "outside a transaction" });
        };
        let Open { begin, changes, size_bytes, heartbeat, large } = open;
        if begin.final_lsn != commit.commit_lsn {
            return Err(TransactionError::CommitMismatch { final_lsn: begin.final_lsn, commit_lsn: commit.commit_lsn });
        }
        self.received = self.received.max(commit.end_lsn);
        if large {
            if !changes.is_empty() {
                self.steps.push_back(Step::Piece(Piece { changes, size_bytes }));
            }
            self.steps.push_back(Step::Commit { commit, heartbeat });
        } else if changes.is_empty() && heartbeat.is_none() {
            self.reached(commit.end_lsn);
        } else {
            self.steps.push_back(Step::Transaction(Transaction { begin, commit, changes, size_bytes, heartbeat }));
        }
        Ok(())
    }

    /// Only the newest of several in a row is kept.
    fn reached(&mut self, position: Lsn) {
        match self.steps.back_mut() {
            Some(Step::Reached(last)) => *last = (*last).max(position),
            Some(_) | None => self.steps.push_back(Step::Reached(position)),
        }
    }

    fn relation(&mut self, relation: Relation) -> Result<(), TransactionError> {
        let known = match self.tables.name(relation.id) {
            Some(_) => match self.relations.remove(&relation.id) {
                // The same description again: changes keep sharing one relation.
                Some(Known::Wanted(known)) if *known == relation => Known::Wanted(known),
                Some(_) | None => Known::Wanted(Arc::new(relation.clone())),
            },
            None => {
                if let Some(old) = self.tables.id(&relation.name) {
                    return Err(TransactionError::Replaced { table: relation.name, old, new: relation.id });
                }
                Known::Unwanted
            }
        };
        self.relations.insert(relation.id, known);
        Ok(())
    }

    fn wanted(&self, id: RelationId) -> Result<Option<Arc<Relation>>, TransactionError> {
        match self.relations.get(&id) {
            Some(Known::Wanted(relation)) => Ok(Some(Arc::clone(relation))),
            Some(Known::Unwanted) => Ok(None),
            None => Err(TransactionError::UnknownRelation(id)),
        }
    }

    fn check_columns(&self, relation: &Relation, found: usize) -> Result<(), TransactionError> {
        if relation.columns.len() == found {
            return Ok(());
        }
        Err(TransactionError::ColumnCount {
            table: relation.name.clone(),
            expected: relation.columns.len(),
            found,
            final_lsn: self.open.as_ref().map_or(Lsn::INVALID, |open| open.begin.final_lsn),
        })
    }

    fn change(&mut self, change: Change) -> Result<(), TransactionError> {
        let Some(open) = &mut self.open else {
            return Err(TransactionError::Misplaced { message: "change", place: "outside a transaction" });
        };
        open.size_bytes += change.size_bytes();
        open.changes.push(change);
        if open.size_bytes >= self.piece_bytes_max {
            if !open.large {
                open.large = true;
                self.steps.push_back(Step::Begin(open.begin));
            }
            let changes = std::mem::take(&mut open.changes);
            let size_bytes = std::mem::take(&mut open.size_bytes);
            self.steps.push_back(Step::Piece(Piece { changes, size_bytes }));
        }
        Ok(())
    }
}

fn unasked(message: &'static str) -> TransactionError {
    TransactionError::Misplaced { message, place: "although streaming was not asked for" }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::pg::{Column, Ident, PgTimestamp, ReplicaIdentity, Tuple, TypeId};
    use crate::wire::{LogicalMessage, OldTuple, Truncate};

    fn relation(id: u32, name: &str) -> Relation {
        let column = Column { name: Ident::new("id"), in_identity: true, type_id: TypeId(23), type_modifier: -1 };
        Relation {
            id: RelationId(id),
            name: QualifiedName::new("public", name),
            replica_identity: ReplicaIdentity::Default,
            columns: vec![column],
        }
    }

    fn row(value: u8) -> Tuple {
        Tuple::new(1, Bytes::from(vec![b't', 0, 0, 0, 1, value])).unwrap()
    }

    fn begin(lsn: u64) -> Message {
        Message::Begin(Begin { final_lsn: Lsn::new(lsn), committed_at: PgTimestamp::from_micros(0), xid: 1 })
    }

    fn commit(lsn: u64) -> Message {
        let (commit_lsn, end_lsn) = (Lsn::new(lsn), Lsn::new(lsn + 8));
        Message::Commit(Commit { commit_lsn, end_lsn, committed_at: PgTimestamp::from_micros(0) })
    }

    fn insert(id: u32, value: u8) -> Message {
        Message::Insert { xid: None, relation: RelationId(id), new: row(value) }
    }

    fn described(id: u32, name: &str) -> Message {
        Message::Relation { xid: None, relation: relation(id, name) }
    }

    fn assembler(piece: usize) -> Assembler {
        let tables = TableSet::new([(RelationId(1), QualifiedName::new("public", "t"))]);
        Assembler::new(tables, piece, "hw", Lsn::new(10))
    }

    fn run(assembler: &mut Assembler, messages: Vec<Message>) -> Vec<Step> {
        for message in messages {
            assembler.message(message).unwrap();
        }
        std::iter::from_fn(|| assembler.poll()).collect()
    }

    #[test]
    fn a_small_transaction_comes_out_whole_at_its_commit() {
        let mut assembler = assembler(1 << 20);
        let steps = run(&mut assembler, vec![begin(100), described(1, "t"), insert(1, b'1'), insert(1, b'2')]);
        assert!(steps.is_empty(), "nothing before the commit");
        let steps = run(&mut assembler, vec![commit(100)]);
        let [Step::Transaction(transaction)] = steps.as_slice() else { panic!("{steps:?}") };
        assert_eq!(transaction.changes.len(), 2);
        assert_eq!(transaction.commit.end_lsn, Lsn::new(108));
        assert_eq!(assembler.received(), Lsn::new(108));
    }

    #[test]
    fn a_large_transaction_comes_out_in_pieces_that_hold_all_of_it() {
        let mut assembler = assembler(300);
        let mut messages = vec![begin(100), described(1, "t")];
        messages.extend((0..10).map(|i| insert(1, b'0' + i)));
        messages.push(commit(100));
        let steps = run(&mut assembler, messages);
        assert!(matches!(steps.first(), Some(Step::Begin(_))));
        assert!(matches!(steps.last(), Some(Step::Commit { .. })));
        let changes: usize =
            steps.iter().map(|step| if let Step::Piece(piece) = step { piece.changes.len() } else { 0 }).sum();
        assert_eq!((changes, steps.len()), (10, 2 + 4), "four pieces of at most three changes");
    }

    #[test]
    fn other_tables_are_left_out_and_their_transactions_only_move_the_position() {
        let mut assembler = assembler(1 << 20);
        let steps = run(&mut assembler, vec![begin(100), described(2, "other"), insert(2, b'1'), commit(100)]);
        assert_eq!(steps, [Step::Reached(Lsn::new(108))]);
    }

    #[test]
    fn a_keepalive_counts_only_between_transactions_and_never_backwards() {
        let mut assembler = assembler(1 << 20);
        assembler.keepalive(Lsn::new(5));
        assert_eq!(assembler.poll(), None, "below what was resumed from");
        assembler.keepalive(Lsn::new(50));
        assembler.keepalive(Lsn::new(60));
        assert_eq!(run(&mut assembler, vec![begin(100)]), [Step::Reached(Lsn::new(60))], "only the newest");
        assembler.keepalive(Lsn::new(99));
        assert_eq!(assembler.poll(), None, "inside a transaction");
    }

    #[test]
    fn a_changed_relation_holds_from_its_message_on() {
        let mut assembler = assembler(1 << 20);
        let mut renamed = relation(1, "t");
        renamed.columns[0].name = Ident::new("key");
        let steps = run(
            &mut assembler,
            vec![
                begin(100),
                described(1, "t"),
                insert(1, b'1'),
                described(1, "t"),
                insert(1, b'2'),
                Message::Relation { xid: None, relation: renamed },
                insert(1, b'3'),
                commit(100),
            ],
        );
        let [Step::Transaction(transaction)] = steps.as_slice() else { panic!("{steps:?}") };
        let relations: Vec<_> = transaction
            .changes
            .iter()
            .map(|change| if let Change::Insert { relation, .. } = change { relation } else { panic!() })
            .collect();
        assert!(Arc::ptr_eq(relations[0], relations[1]), "the same description is shared");
        assert_eq!(relations[2].columns[0].name, Ident::new("key"));
        assert_eq!(relations[0].columns[0].name, Ident::new("id"));
    }

    #[test]
    fn heartbeats_of_ours_travel_with_their_transaction() {
        let mut assembler = assembler(1 << 20);
        let message = |prefix: &str| Message::Logical {
            xid: None,
            message: LogicalMessage {
                transactional: true,
                message_lsn: Lsn::new(99),
                prefix: prefix.into(),
                content: Bytes::from_static(b"7"),
            },
        };
        let steps = run(&mut assembler, vec![begin(100), message("hw"), commit(100)]);
        let [Step::Transaction(transaction)] = steps.as_slice() else { panic!("{steps:?}") };
        assert_eq!(transaction.heartbeat, Some(Heartbeat { content: b"7".to_vec() }));
        let steps = run(&mut assembler, vec![begin(200), message("foreign"), commit(200)]);
        assert_eq!(steps, [Step::Reached(Lsn::new(208))]);
    }

    #[test]
    fn what_has_no_place_ends_the_run() {
        let wrong_width = Message::Delete {
            xid: None,
            relation: RelationId(1),
            old: OldTuple::Key(Tuple::new(2, Bytes::from_static(b"nn")).unwrap()),
        };
        let truncate = Truncate { relations: vec![RelationId(9)], cascade: false, restart_identity: false };
        for messages in [
            vec![commit(100)],
            vec![begin(100), begin(200)],
            vec![begin(100), commit(200)],
            vec![begin(100), insert(1, b'1')],
            vec![described(1, "t"), insert(1, b'1')],
            vec![begin(100), described(1, "t"), wrong_width],
            vec![begin(100), described(3, "t")],
            vec![begin(100), Message::Truncate { xid: None, truncate }],
            vec![Message::StreamStop],
        ] {
            let mut assembler = assembler(1 << 20);
            let shown = format!("{messages:?}");
            let failed = messages.into_iter().any(|message| assembler.message(message).is_err());
            assert!(failed, "{shown}");
        }
    }
}

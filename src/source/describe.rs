//! Steps on their way out, completed with what the source's catalog says of tables that have changed.
//!
//! Stands between the assembler and the step channel. Whenever the changes of a step come with a new description of their
//! relation, the catalog is asked; if the table is not what it was, the step is cut there and a [`Step::Schema`] put in
//! between. So source and destination never meet, and everything goes on in the stream's order.
//!
//! A Relation message comes after every change of the table and, without any, after whatever made the source forget that it
//! had sent one (VACUUM, ANALYZE): then the catalog's answer is the known one, and nothing happens. After a TRUNCATE it comes
//! too, and says the same as ever: then nobody is asked, since no row is left that could differ, and an application that
//! truncates all the time would otherwise be followed at the speed of questions.
//!
//! The walsender may send a commit a moment before others see it. An answer that knows neither the new description nor the
//! old one is asked for again until the transaction is seen, at most for [`SETTLE_MAX`]; then the catalog is ahead of the
//! stream. (To wait for that time whenever it is ahead would hold up a backlog with many changes in it by minutes.)
//!
//! Bounds: one step is held here, and at most one question is out.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

use super::error::SourceError;
use super::snapshot::sees;
use crate::pg::{Relation, RelationId};
use crate::plan::schema::TableDefinition;
use crate::plan::shape::Shape;
use crate::session::{SessionError, Sql, SqlClient, describe_relation, read_description};
use crate::transaction::{Change, Piece, SchemaChange, Step, Transaction};

/// How long the catalog may take to show what the stream already tells.
const SETTLE_MAX: Duration = Duration::from_secs(3);
const ASK_AGAIN: Duration = Duration::from_millis(20);

/// A session that was not used for so long may be gone without anybody having said so.
const SESSION_IDLE_MAX: Duration = Duration::from_secs(30);

/// What becomes of a question.
type Answer = Result<Option<(SchemaChange, Shape)>, SessionError>;

/// A question that is out: where in the held step, about what, and what becomes of it and of its session.
type Asking = (usize, Arc<Relation>, JoinHandle<(Answer, Option<SqlClient>)>);

/// Completes steps.
pub struct Describer {
    sql: Sql,
    /// The tables as they are remembered, and as they were described since.
    shapes: HashMap<RelationId, Shape>,
    /// The relations by which each table's changes came last.
    seen: HashMap<RelationId, Arc<Relation>>,
    /// Tables that were truncated since, and whose next description is therefore no news by itself.
    truncated: HashSet<RelationId>,
    held: Option<Step>,
    /// The transaction that it belongs to, by its xid.
    transaction: u32,
    /// Changes of it up to here need nothing more.
    looked_at: usize,
    /// Where the held step is cut.
    cuts: Vec<(usize, SchemaChange)>,
    asking: Option<Asking>,
    /// The session of the last question, and when that was.
    session: Option<(SqlClient, Instant)>,
    ready: VecDeque<Step>,
}

impl Drop for Describer {
    fn drop(&mut self) {
        if let Some((_, _, asking)) = &self.asking {
            asking.abort();
        }
    }
}

impl Describer {
    /// A describer that knows these shapes and asks through sessions of its own.
    pub fn new(sql: Sql, shapes: HashMap<RelationId, Shape>) -> Describer {
        Describer {
            sql,
            shapes,
            seen: HashMap::new(),
            truncated: HashSet::new(),
            held: None,
            transaction: 0,
            looked_at: 0,
            cuts: Vec::new(),
            asking: None,
            session: None,
            ready: VecDeque::new(),
        }
    }

    /// Whether the next step may be given.
    pub(super) fn is_clear(&self) -> bool {
        self.held.is_none() && self.ready.is_empty()
    }

    /// Whether a relation is what is known of its table: nobody would be asked, or the answer would be the known one.
    pub(super) fn knows(&self, relation: &Relation) -> bool {
        self.shapes.get(&relation.id).is_some_and(|shape| shape.describes(relation))
    }

    /// Takes the next step; only when clear.
    pub(super) fn push(&mut self, step: Step) {
        debug_assert!(self.is_clear(), "one step at a time");
        match &step {
            Step::Transaction(Transaction { begin, .. }) | Step::Begin(begin) => self.transaction = begin.xid,
            Step::Piece(_) | Step::Schema(_) | Step::Commit { .. } | Step::Ahead { .. } | Step::Reached(_) => {}
        }
        self.held = Some(step);
        self.looked_at = 0;
        self.go_on();
    }

    /// The next complete step.
    pub(super) fn poll(&mut self) -> Option<Step> {
        self.ready.pop_front()
    }

    /// Waits for the answer that the held step needs; pending when it needs none. Cancel-safe.
    pub(super) async fn answered(&mut self) -> Result<(), SourceError> {
        let Some((place, relation, asking)) = &mut self.asking else { return std::future::pending().await };
        let answer = match asking.await {
            Ok((answer, session)) => {
                self.session = session.map(|session| (session, Instant::now()));
                answer?
            }
            Err(ended) if ended.is_panic() => std::panic::resume_unwind(ended.into_panic()),
            Err(_) => None,
        };
        let (place, relation) = (*place, Arc::clone(relation));
        self.asking = None;
        let change = answer.map(|(change, shape)| {
            self.shapes.insert(relation.id, shape);
            change
        });
        self.learn(place, &relation, change);
        self.go_on();
        Ok(())
    }

    /// Takes in what is known now of a relation.
    fn learn(&mut self, place: usize, relation: &Arc<Relation>, change: Option<SchemaChange>) {
        self.looked_at = place;
        self.cuts.extend(change.map(|change| (place, change)));
        self.seen.insert(relation.id, Arc::clone(relation));
    }

    /// Asks for the next relation that was not seen; without one the held step is complete.
    fn go_on(&mut self) {
        match self.next_unseen() {
            Some((place, relation)) => {
                let known = self.shapes.get(&relation.id).cloned();
                let fresh = |(_, used): &(SqlClient, Instant)| used.elapsed() < SESSION_IDLE_MAX;
                let session = self.session.take().filter(fresh).map(|(session, _)| session);
                let (sql, about, transaction) = (self.sql.clone(), Arc::clone(&relation), self.transaction);
                let asking = tokio::spawn(async move {
                    let session = match session.filter(|session| !session.is_closed()) {
                        Some(session) => session,
                        None => match sql.connect().await {
                            Ok(session) => session,
                            Err(error) => return (Err(error), None),
                        },
                    };
                    (ask(&session, about, known, transaction).await, Some(session))
                });
                self.asking = Some((place, relation, asking));
            }
            None => self.release(),
        }
    }

    fn next_unseen(&mut self) -> Option<(usize, Arc<Relation>)> {
        let Describer { held, looked_at, seen, truncated, .. } = self;
        let changes = match held {
            Some(Step::Transaction(transaction)) => transaction.changes.as_slice(),
            Some(Step::Piece(piece)) => piece.changes.as_slice(),
            Some(Step::Begin(_) | Step::Schema(_) | Step::Commit { .. } | Step::Ahead { .. } | Step::Reached(_))
            | None => &[],
        };
        let mut last: Option<&Arc<Relation>> = None;
        for (place, change) in changes.iter().enumerate().skip(*looked_at) {
            for relation in relations(change) {
                // Runs of one table are the rule.
                if last.is_some_and(|last| Arc::ptr_eq(last, relation)) {
                    continue;
                }
                match seen.get(&relation.id) {
                    Some(known) if Arc::ptr_eq(known, relation) => {}
                    Some(known) if truncated.remove(&relation.id) && **known == **relation => {
                        seen.insert(relation.id, Arc::clone(relation));
                    }
                    Some(_) | None => return Some((place, Arc::clone(relation))),
                }
                last = Some(relation);
            }
            if let Change::Truncate { relations, .. } = change {
                truncated.extend(relations.iter().map(|relation| relation.id));
            }
        }
        None
    }

    /// Hands the held step on, cut where tables have changed.
    fn release(&mut self) {
        let cuts = std::mem::take(&mut self.cuts);
        match self.held.take() {
            Some(Step::Transaction(transaction)) if !cuts.is_empty() => {
                let Transaction { begin, commit, changes, size_bytes: _, heartbeat } = transaction;
                self.ready.push_back(Step::Begin(begin));
                self.cut(changes, cuts);
                self.ready.push_back(Step::Commit { commit, heartbeat });
            }
            Some(Step::Piece(piece)) if !cuts.is_empty() => self.cut(piece.changes, cuts),
            step => self.ready.extend(step),
        }
    }

    fn cut(&mut self, changes: Vec<Change>, cuts: Vec<(usize, SchemaChange)>) {
        let mut changes = changes.into_iter();
        let mut taken = 0;
        for (place, change) in cuts {
            self.piece(changes.by_ref().take(place - taken).collect());
            taken = place;
            self.ready.push_back(Step::Schema(change));
        }
        self.piece(changes.collect());
    }

    fn piece(&mut self, changes: Vec<Change>) {
        if !changes.is_empty() {
            let size_bytes = changes.iter().map(Change::size_bytes).sum();
            self.ready.push_back(Step::Piece(Piece { changes, size_bytes }));
        }
    }
}

fn relations(change: &Change) -> &[Arc<Relation>] {
    match change {
        Change::Insert { relation, .. } | Change::Update { relation, .. } | Change::Delete { relation, .. } => {
            std::slice::from_ref(relation)
        }
        Change::Truncate { relations, .. } => relations,
    }
}

/// Asks the catalog for a relation of a transaction; `None` when the table is what it was.
async fn ask(client: &SqlClient, relation: Arc<Relation>, known: Option<Shape>, transaction: u32) -> Answer {
    let began = Instant::now();
    // Whether the answer is as new as the transaction, or newer.
    let mut settled = false;
    loop {
        let description = describe_relation(client, relation.id).await?;
        if let Some(description) = description {
            let (table, types) = read_description(&description)?;
            let shape = Shape::of(&table, &types, |name| relation.columns.iter().any(|column| column.name == *name));
            if shape.describes(&relation) {
                let change = SchemaChange { relation, description };
                // A promise that the rows do not keep yet is made again when the table is described next.
                let shape = (known.as_ref() != Some(&shape)).then(|| shape.without_new_promises(known.as_ref()));
                return Ok(shape.map(|shape| (change, shape)));
            }
            let as_before = known.as_ref().is_some_and(|known| known.describes(&relation));
            if as_before && !is_renamed_or_replaced(&table, known.as_ref()) {
                // The catalog is ahead: what it tells comes later in the stream, too.
                return Ok(None);
            }
            if settled {
                let known = known.unwrap_or(shape);
                return Ok(Some((SchemaChange { relation, description }, known)));
            }
        } else if settled {
            // Dropped since. What the stream still brings is what was known.
            return Ok(None);
        }
        settled = sees(client, transaction).await? || began.elapsed() >= SETTLE_MAX;
        if !settled {
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }
}

/// Whether a column that is known by name has another number now.
fn is_renamed_or_replaced(table: &TableDefinition, known: Option<&Shape>) -> bool {
    known.is_some_and(|known| {
        known.columns.iter().any(|known| table.column(&known.name).is_some_and(|column| column.number != known.number))
    })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::pg::{Column, Description, Ident, Lsn, PgTimestamp, QualifiedName, ReplicaIdentity, Tuple, TypeId};
    use crate::wire::{Begin, Commit};

    fn relation(id: u32) -> Arc<Relation> {
        let column = Column { name: Ident::new("id"), in_identity: true, type_id: TypeId(23), type_modifier: -1 };
        Arc::new(Relation {
            id: RelationId(id),
            name: QualifiedName::new("public", "t"),
            replica_identity: ReplicaIdentity::Default,
            columns: vec![column],
        })
    }

    fn insert(relation: &Arc<Relation>) -> Change {
        let new = Tuple::new(1, Bytes::from_static(b"t\0\0\0\x011")).unwrap();
        Change::Insert { relation: Arc::clone(relation), new }
    }

    fn transaction(changes: Vec<Change>) -> Step {
        let at = PgTimestamp::from_micros(0);
        Step::Transaction(Transaction {
            begin: Begin { final_lsn: Lsn::new(10), committed_at: at, xid: 1 },
            commit: Commit { commit_lsn: Lsn::new(10), end_lsn: Lsn::new(20), committed_at: at },
            size_bytes: changes.iter().map(Change::size_bytes).sum(),
            changes,
            heartbeat: None,
        })
    }

    /// A describer that asks nobody: the answers are given by the test.
    struct Asked {
        describer: Describer,
        questions: Vec<(usize, RelationId)>,
    }

    impl Asked {
        fn push(&mut self, step: Step, mut changed: impl FnMut(usize) -> bool) -> Vec<Step> {
            self.describer.held = Some(step);
            self.describer.looked_at = 0;
            while let Some((place, relation)) = self.describer.next_unseen() {
                self.questions.push((place, relation.id));
                assert!(self.questions.len() < 100, "asked for ever");
                let description = Description { table: String::new(), types: String::new() };
                let change = SchemaChange { relation: Arc::clone(&relation), description };
                self.describer.learn(place, &relation, changed(place).then_some(change));
            }
            self.describer.release();
            std::iter::from_fn(|| self.describer.poll()).collect()
        }
    }

    fn asked() -> Asked {
        let sql = Sql {
            connection: crate::config::ConnectionSettings::default(),
            purpose: "testing",
            timeout: Duration::from_secs(1),
        };
        Asked { describer: Describer::new(sql, HashMap::new()), questions: Vec::new() }
    }

    #[tokio::test]
    async fn every_description_is_asked_for_once_also_when_two_of_a_table_take_turns() {
        let mut asked = asked();
        let (first, again, other) = (relation(1), relation(1), relation(2));
        let changes = [&first, &other, &again, &other, &again].map(insert);
        let steps = asked.push(transaction(changes.to_vec()), |_| false);
        assert_eq!(asked.questions, [(0, RelationId(1)), (1, RelationId(2)), (2, RelationId(1))]);
        assert!(matches!(steps.as_slice(), [Step::Transaction(_)]), "nothing has changed");
        asked.push(transaction(vec![insert(&again), insert(&other)]), |_| false);
        assert_eq!(asked.questions.len(), 3, "known by now");
    }

    #[tokio::test]
    async fn what_a_truncate_makes_the_source_repeat_is_no_question() {
        let mut asked = asked();
        let truncate = |relation: &Arc<Relation>| Change::Truncate {
            relations: vec![Arc::clone(relation)],
            restart_identity: false,
        };
        let (first, second, third) = (relation(1), relation(1), relation(1));
        asked.push(transaction(vec![insert(&first), truncate(&first), insert(&second), truncate(&second)]), |_| false);
        asked.push(transaction(vec![truncate(&third)]), |_| false);
        assert_eq!(asked.questions, [(0, RelationId(1))]);
        let mut altered = Relation::clone(&first);
        altered.columns.clear();
        asked.push(transaction(vec![insert(&Arc::new(altered))]), |_| false);
        assert_eq!(asked.questions.len(), 2, "another description is a question");
        asked.push(transaction(vec![insert(&relation(1))]), |_| false);
        assert_eq!(asked.questions.len(), 3, "without a truncate so is the same one");
    }

    #[tokio::test]
    async fn a_transaction_is_cut_where_a_table_changes() {
        let mut asked = asked();
        let (first, again) = (relation(1), relation(1));
        let changes = [&first, &first, &again].map(insert);
        let steps = asked.push(transaction(changes.to_vec()), |place| place > 0);
        let [Step::Begin(_), Step::Piece(before), Step::Schema(change), Step::Piece(after), Step::Commit { .. }] =
            steps.as_slice()
        else {
            panic!("{steps:?}")
        };
        assert_eq!((before.changes.len(), after.changes.len()), (2, 1));
        assert!(Arc::ptr_eq(&change.relation, &again));
    }
}

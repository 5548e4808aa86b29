//! Completes steps on their way out with what the source's catalog says of tables that have changed.
//!
//! Stands between the assembler and the step channel. Whenever the changes of a step come with a new description of their
//! relation, the tracker asks the catalog. If the table has changed, it cuts the step there and puts a [`Step::Schema`] in
//! between. So source and destination never meet, and everything stays in the stream's order.
//!
//! A Relation message comes after every change of the table and, without any, after whatever made the source forget that it
//! had sent one (VACUUM, ANALYZE): then the catalog's answer is the known one, and nothing happens. After a TRUNCATE it comes
//! too, and says the same as before: the first description behind one is not asked about, since no row is left that could
//! differ, and an application that truncates all the time would otherwise be followed at the speed of questions.
//!
//! **Where nobody is asked.** A table may be known not to have changed ([`UnchangedTables`]): its shape is what the catalog said under a
//! fingerprint that held at a moment which the stream has passed, and that holds at another moment, of which it is known which
//! transactions were visible. A fingerprint never comes back once it was another one (it has the catalog rows' xmin, files and OIDs), so
//! the table was the same all the time, and a description in a transaction that was visible then is of that table. Of a later
//! transaction the fingerprints are asked again: of some tables in one question, since others come next. What differs is asked about
//! as above. A standby does not say which transactions were in progress, so there each table is asked about.
//!
//! The source names each new partition behind a description of its own, hundreds of them where a transaction fills hundreds. So the
//! first question about a table is about all partitions that the rest of the step names behind the same description.
//!
//! **When an answer counts.** The walsender may send a commit before others see it: a moment before, or for as long as a
//! synchronous standby does not answer. The catalog of before may look like the known one, so no answer counts that was given
//! without seeing the transaction; after [`SEEN_MAX`] the stream gives up and says why. From then on the catalog may be ahead
//! of the stream. That it equals what is known proves nothing by itself: [`numbers`] says which columns the relation means.
//!
//! A transaction that was applied in parallel is confirmed here first: whether each table that it names is still what
//! it was can only be asked once it is committed ([`RelationTracker::confirm`]).
//!
//! Bounds: one step is held here, or the relations of one transaction; at most one question is out.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

use super::error::SourceError;
use super::snapshot::VisibleTransactions;
use super::unseen::held_back_words;
use crate::catalog::leaves::{self, KnownLeaves, Measured};
use crate::catalog::schema::Partition;
use crate::catalog::shape::Shape;
use crate::pg::{Ident, Lsn, Relation, RelationId};
use crate::schema_change::{followed, numbers};
use crate::session::{
    NamedPartition, Sql, SqlClient, describe_relation, fingerprint_digests, read_description, unproven, vacancy,
};
use crate::transaction::{Change, ChunkBuilder, SchemaChange, Step, Transaction};

/// How long a transaction may take to become visible after the stream has brought it. Usually no time at all; with a
/// synchronous standby, until that has answered.
const SEEN_MAX: Duration = Duration::from_secs(30);
const ASK_AGAIN: Duration = Duration::from_millis(20);
/// A transaction that is not visible by then is worth a line in the log.
const SEEN_LATE: Duration = Duration::from_secs(1);

/// A session that was not used for so long may be gone without anybody having said so.
const SESSION_IDLE_MAX: Duration = Duration::from_secs(30);

/// Hears what a question waits for; `None` once it is over.
pub type UnseenReport = Arc<dyn Fn(Option<&str>) + Send + Sync>;

/// A wait that is over sooner is not told.
const TOLD_AFTER: Duration = Duration::from_secs(5);

/// How many tables and partitions a question about fingerprints has: they cost the source less than one description. It has twice as many
/// where the one before has saved another question, so that all tables are asked about soon where all are written, and a trickle of first
/// changes, each of a transaction that commits behind the last question, costs no more than descriptions.
const LOOKED_AT_FIRST: usize = 16;
const LOOKED_AT_MAX: usize = 1 << 14;

/// What the catalog said of a table that it describes otherwise than is known; `None`: it does not.
type Described = Option<(SchemaChange, Shape)>;

/// What a question brings.
enum CatalogAnswer {
    Described(Described),
    /// The digests of fingerprints, and a moment before they were read.
    Digests {
        visible: VisibleTransactions,
        digests: HashMap<RelationId, String>,
    },
}

/// A question that is out.
struct Asking {
    /// The index of the change in the held step.
    index: usize,
    relation: Arc<Relation>,
    /// The tables whose fingerprints are asked for; none where the relation is.
    looked_at: Vec<RelationId>,
    /// What becomes of it, and of its session.
    answer: JoinHandle<(Result<CatalogAnswer, SourceError>, Option<SqlClient>)>,
}

/// Tables whose shapes are what the catalog said under the fingerprints with these digests. Each held at a moment that the stream has
/// passed, and was read once these transactions were visible.
#[derive(Clone, Debug)]
pub struct UnchangedTables {
    /// The digests.
    pub digests: HashMap<RelationId, String>,
    /// What was visible.
    pub visible: VisibleTransactions,
    /// The fingerprints are of tables in this publication.
    pub publication: Ident,
}

/// The same of one table.
struct Unchanged {
    digest: String,
    /// It was read once these were visible.
    visible: Arc<VisibleTransactions>,
}

/// The last question about fingerprints.
#[derive(Default)]
struct Looked {
    /// How many tables and partitions it was to have.
    most: usize,
    /// The table that it was asked for.
    table: Option<RelationId>,
    /// What was visible.
    visible: Option<Arc<VisibleTransactions>>,
    /// Another table's change has passed by what it brought.
    has_saved: bool,
}

impl Looked {
    /// Takes in that a table's change has passed without a question, by what is known of it.
    fn note(&mut self, table: RelationId, known: Option<&Unchanged>) {
        let is_by_this =
            |visible: &Arc<VisibleTransactions>| known.is_some_and(|known| Arc::ptr_eq(visible, &known.visible));
        self.has_saved |= self.table != Some(table) && self.visible.as_ref().is_some_and(is_by_this);
    }
}

/// Where the held step is cut: in front of this change, since its table has changed.
struct StepCut {
    index: usize,
    change: SchemaChange,
}

/// A transaction that is applied already if its tables are what they were.
enum Confirming {
    /// These relations are still to be asked about.
    Asking(VecDeque<Arc<Relation>>),
    /// Whether they are.
    Answered(bool),
}

/// Completes steps.
pub struct RelationTracker {
    sql: Sql,
    waits: UnseenReport,
    /// The tables as they are remembered, and as they were described since.
    shapes: HashMap<RelationId, Shape>,
    /// The relations by which each table's changes came last.
    seen: HashMap<RelationId, Arc<Relation>>,
    /// Tables that were truncated since, and whose next description is therefore no news by itself.
    truncated: HashSet<RelationId>,
    held: Option<Step>,
    /// The transaction that it belongs to, by its xid.
    transaction: u32,
    /// The partitions that it names of which nothing was known before: the last description, and whether there was one before that.
    named: BTreeMap<u32, (Arc<Relation>, bool)>,
    /// Changes of it up to here need nothing more.
    looked_at: usize,
    /// Tables that were asked about for this step, with the partitions that the rest of it names.
    asked: HashSet<RelationId>,
    /// Where the held step is cut.
    cuts: Vec<StepCut>,
    asking: Option<Asking>,
    confirming: Option<Confirming>,
    /// Tables that are known to be what their shapes say.
    unchanged: HashMap<RelationId, Unchanged>,
    /// Of what their fingerprints are.
    publication: Option<Ident>,
    /// The last question about fingerprints.
    looked: Looked,
    /// The session of the last question, and when that was.
    session: Option<(SqlClient, Instant)>,
    ready: VecDeque<Step>,
}

impl Drop for RelationTracker {
    fn drop(&mut self) {
        if let Some(asking) = &self.asking {
            asking.answer.abort();
        }
    }
}

impl RelationTracker {
    /// A tracker that knows these shapes and asks through sessions of its own.
    pub fn new(sql: Sql, shapes: HashMap<RelationId, Shape>) -> RelationTracker {
        RelationTracker {
            sql,
            waits: Arc::new(|_| {}),
            shapes,
            seen: HashMap::new(),
            truncated: HashSet::new(),
            held: None,
            transaction: 0,
            named: BTreeMap::new(),
            looked_at: 0,
            asked: HashSet::new(),
            cuts: Vec::new(),
            asking: None,
            confirming: None,
            unchanged: HashMap::new(),
            publication: None,
            looked: Looked::default(),
            session: None,
            ready: VecDeque::new(),
        }
    }

    /// With tables of which nothing needs to be asked at first.
    pub fn with_unchanged(mut self, tables: UnchangedTables) -> RelationTracker {
        let UnchangedTables { digests, visible, publication } = tables;
        if visible.in_recovery() {
            return self;
        }
        let visible = Arc::new(visible);
        let unchanged = |digest| Unchanged { digest, visible: Arc::clone(&visible) };
        self.unchanged = digests.into_iter().map(|(table, digest)| (table, unchanged(digest))).collect();
        self.publication = Some(publication);
        self
    }

    /// With somebody who hears of transactions that are waited for.
    pub fn with_waits(mut self, waits: UnseenReport) -> RelationTracker {
        self.waits = waits;
        self
    }

    /// How the source is asked.
    pub(super) fn sql(&self) -> &Sql {
        &self.sql
    }

    /// Whether the next step may be given.
    pub(super) fn is_clear(&self) -> bool {
        self.held.is_none() && self.ready.is_empty() && self.confirming.is_none()
    }

    /// Whether a relation is what is known of its table: nobody would be asked, or the answer would be the known one.
    pub(super) fn knows(&self, relation: &Relation) -> bool {
        let known = self.shapes.get(&relation.id);
        known.is_some_and(|shape| shape.describes(relation) && unknown_leaves(shape, relation).next().is_none())
    }

    /// Takes the next step; only when clear.
    pub(super) fn push(&mut self, step: Step) {
        debug_assert!(self.is_clear(), "one step at a time");
        match &step {
            Step::Transaction(Transaction { begin, .. }) | Step::Begin(begin) => {
                self.transaction = begin.xid;
                self.named.clear();
            }
            Step::Chunk(_)
            | Step::Schema(_)
            | Step::Commit { .. }
            | Step::AppliedInParallel { .. }
            | Step::Reached(_) => {}
        }
        self.held = Some(step);
        self.looked_at = 0;
        self.asked.clear();
        self.note_named();
        self.go_on();
    }

    /// Takes in which unknown partitions the held step names, and which of them again: something was between their rows.
    fn note_named(&mut self) {
        let mut last: Option<&Arc<Relation>> = None;
        for relation in changes_of(self.held.as_ref()).iter().flat_map(Change::relations) {
            if relation.leaves.is_empty() || last.is_some_and(|last| Arc::ptr_eq(last, relation)) {
                continue;
            }
            last = Some(relation);
            for leaf in relation.leaves.iter() {
                match self.named.get_mut(&leaf.0) {
                    Some((known, _)) if Arc::ptr_eq(known, relation) => {}
                    Some(named) => *named = (Arc::clone(relation), true),
                    None if self.shapes.get(&relation.id).is_some_and(|shape| shape.partitions.contains(&leaf.0)) => {}
                    None => drop(self.named.insert(leaf.0, (Arc::clone(relation), false))),
                }
            }
        }
    }

    /// The next complete step.
    pub(super) fn poll(&mut self) -> Option<Step> {
        self.ready.pop_front()
    }

    /// Asks whether the tables of a transaction that has committed are what they were; only when clear.
    pub(super) fn confirm(&mut self, relations: &[Arc<Relation>], transaction: u32) {
        debug_assert!(self.is_clear(), "one transaction at a time");
        self.transaction = transaction;
        self.named.clear();
        self.confirming = Some(Confirming::Asking(relations.iter().map(Arc::clone).collect()));
        self.ask_next_to_confirm();
    }

    /// Whether they are, once that is known.
    pub(super) fn take_confirmed(&mut self) -> Option<bool> {
        match self.confirming {
            Some(Confirming::Answered(unchanged)) => {
                self.confirming = None;
                Some(unchanged)
            }
            Some(Confirming::Asking(_)) | None => None,
        }
    }

    fn ask_next_to_confirm(&mut self) {
        let Some(Confirming::Asking(relations)) = &mut self.confirming else { return };
        while let Some(relation) = relations.pop_front() {
            if !is_unchanged(&self.unchanged, &self.shapes, &relation, self.transaction) {
                return self.ask(0, relation);
            }
            self.looked.note(relation.id, self.unchanged.get(&relation.id));
            self.seen.insert(relation.id, relation);
        }
        self.confirming = Some(Confirming::Answered(true));
    }

    /// Waits for the answer that the held step, or the transaction to be confirmed, needs; pending when it needs none.
    /// Cancel-safe.
    pub(super) async fn answered(&mut self) -> Result<(), SourceError> {
        let Some(asking) = &mut self.asking else { return std::future::pending().await };
        let answer = match (&mut asking.answer).await {
            Ok((answer, session)) => {
                self.session = session.map(|session| (session, Instant::now()));
                answer?
            }
            Err(ended) if ended.is_panic() => std::panic::resume_unwind(ended.into_panic()),
            // Nobody aborts it before this is dropped.
            Err(_) => return Err(SourceError::Ended),
        };
        let (index, relation) = (asking.index, Arc::clone(&asking.relation));
        let looked_at = std::mem::take(&mut asking.looked_at);
        self.asking = None;
        let answer = match answer {
            CatalogAnswer::Described(described) => described,
            CatalogAnswer::Digests { visible, digests } => {
                self.looked_at_fingerprints(&looked_at, visible, &digests);
                // By now it is known to be unchanged, or it is asked about itself.
                match &mut self.confirming {
                    Some(Confirming::Asking(relations)) => {
                        relations.push_front(relation);
                        self.ask_next_to_confirm();
                    }
                    Some(Confirming::Answered(_)) | None => self.go_on(),
                }
                return Ok(());
            }
        };
        // Nothing but its own description is asked of it from here on.
        self.unchanged.remove(&relation.id);
        if self.confirming.is_some() {
            if answer.is_some() {
                self.confirming = Some(Confirming::Answered(false));
            } else {
                self.seen.insert(relation.id, relation);
                self.ask_next_to_confirm();
            }
            return Ok(());
        }
        let change = answer.map(|(change, shape)| {
            self.shapes.insert(relation.id, shape);
            change
        });
        self.learn(index, &relation, change);
        self.go_on();
        Ok(())
    }

    /// Takes in the digests of fingerprints: a table that has another one, or none, is asked about by itself, and on a standby each is.
    fn looked_at_fingerprints(
        &mut self,
        tables: &[RelationId],
        visible: VisibleTransactions,
        digests: &HashMap<RelationId, String>,
    ) {
        let visible = Arc::new(visible);
        self.looked.visible = Some(Arc::clone(&visible));
        for table in tables {
            match self.unchanged.get_mut(table) {
                Some(unchanged) if digests.get(table) == Some(&unchanged.digest) && !visible.in_recovery() => {
                    unchanged.visible = Arc::clone(&visible);
                }
                Some(_) | None => drop(self.unchanged.remove(table)),
            }
        }
    }

    /// The tables whose fingerprints are worth a question instead of one about this relation; none if that is not.
    fn tables_to_look_at(&mut self, relation: &Relation) -> Vec<RelationId> {
        if !self.unchanged.contains_key(&relation.id) || !self.knows(relation) {
            return Vec::new();
        }
        let most = match self.looked.has_saved {
            true => (2 * self.looked.most).min(LOOKED_AT_MAX),
            false => LOOKED_AT_FIRST,
        };
        self.looked = Looked { most, table: Some(relation.id), ..Looked::default() };
        let others = self.unchanged.iter().filter(|(table, _)| **table != relation.id);
        let mut others: Vec<(&RelationId, &Unchanged)> =
            others.filter(|(table, _)| !self.seen.contains_key(*table)).collect();
        // Those first that were not asked about lately, and are not known of this transaction.
        others.sort_by_key(|(table, unchanged)| (unchanged.visible.newest(), **table));
        let mut room = most.saturating_sub(self.members(relation.id));
        let others = others.into_iter().map(|(table, _)| *table).take_while(|table| {
            let members = self.members(*table);
            let fits = members <= room;
            room = room.saturating_sub(members);
            fits
        });
        std::iter::once(relation.id).chain(others).collect()
    }

    /// A table and the partitions that it is known to have.
    fn members(&self, table: RelationId) -> usize {
        1 + self.shapes.get(&table).map_or(0, |shape| shape.partitions.len())
    }

    /// Takes in what is known now of a relation.
    fn learn(&mut self, index: usize, relation: &Arc<Relation>, change: Option<SchemaChange>) {
        self.looked_at = index;
        self.cuts.extend(change.map(|change| StepCut { index, change }));
        self.seen.insert(relation.id, Arc::clone(relation));
        self.asked.insert(relation.id);
    }

    /// A relation with all partitions that the held step names from `index` on behind the same description.
    fn with_named(&self, index: usize, relation: &Arc<Relation>) -> Arc<Relation> {
        let mut named = relation.leaves.clone();
        let mut last = relation;
        for other in changes_of(self.held.as_ref()).iter().skip(index).flat_map(Change::relations) {
            if !Arc::ptr_eq(last, other) && other.id == relation.id && **other == **relation {
                other.leaves.iter().for_each(|leaf| named.add(leaf));
                last = other;
            }
        }
        match named.iter().count() == relation.leaves.iter().count() {
            true => Arc::clone(relation),
            false => Arc::new(Relation { leaves: named, ..Relation::clone(relation) }),
        }
    }

    /// Asks for the next relation that was not seen; without one the held step is complete.
    fn go_on(&mut self) {
        match self.next_unseen() {
            Some((index, relation)) => self.ask(index, relation),
            None => self.release(),
        }
    }

    fn ask(&mut self, index: usize, relation: Arc<Relation>) {
        let known = self.shapes.get(&relation.id).cloned();
        let fresh = |(_, used): &(SqlClient, Instant)| used.elapsed() < SESSION_IDLE_MAX;
        let session = self.session.take().filter(fresh).map(|(session, _)| session);
        let (sql, about, transaction) = (self.sql.clone(), self.with_named(index, &relation), self.transaction);
        let named = about.leaves.iter().filter_map(|leaf| Some((leaf.0, self.named.get(&leaf.0)?.1))).collect();
        let named =
            Named { transaction, again: named, ends_truncated: ends_truncated(self.held.as_ref(), relation.id) };
        let waits = Arc::clone(&self.waits);
        let looked_at = self.tables_to_look_at(&relation);
        let look = self.publication.clone().filter(|_| !looked_at.is_empty()).map(|of| (looked_at.clone(), of));
        let answer = tokio::spawn(async move {
            let session = match session.filter(|session| !session.is_closed()) {
                Some(session) => session,
                None => match sql.connect().await {
                    Ok(session) => session,
                    Err(error) => return (Err(error.into()), None),
                },
            };
            let visible = match wait_until_seen(&session, transaction, &waits).await {
                Ok(visible) => visible,
                Err(error) => return (Err(error), Some(session)),
            };
            let answer = match look {
                Some((tables, publication)) => {
                    let digests = fingerprint_digests(&session, &tables, &publication).await;
                    digests.map(|digests| CatalogAnswer::Digests { visible, digests }).map_err(SourceError::from)
                }
                None => ask(&session, about, known, named).await.map(CatalogAnswer::Described),
            };
            (answer, Some(session))
        });
        self.asking = Some(Asking { index, relation, looked_at, answer });
    }

    fn next_unseen(&mut self) -> Option<(usize, Arc<Relation>)> {
        let RelationTracker { held, looked_at, seen, truncated, shapes, asked, unchanged, looked, transaction, .. } =
            self;
        let changes = changes_of(held.as_ref());
        let mut last: Option<&Arc<Relation>> = None;
        for (index, change) in changes.iter().enumerate().skip(*looked_at) {
            for relation in change.relations() {
                // Runs of one table are the rule.
                if last.is_some_and(|last| Arc::ptr_eq(last, relation)) {
                    continue;
                }
                match seen.get(&relation.id) {
                    Some(known) if Arc::ptr_eq(known, relation) => {
                        // A row behind the TRUNCATE without a description before it: the next one is news.
                        truncated.remove(&relation.id);
                    }
                    Some(known)
                        if truncated.remove(&relation.id)
                            && **known == **relation
                            && knows_leaves(shapes.get(&relation.id), relation) =>
                    {
                        seen.insert(relation.id, Arc::clone(relation));
                    }
                    // The answer has seen this transaction whole, and was about this partition, too.
                    Some(known)
                        if asked.contains(&relation.id)
                            && **known == **relation
                            && !relation.leaves.is_empty()
                            && knows_leaves(shapes.get(&relation.id), relation) =>
                    {
                        seen.insert(relation.id, Arc::clone(relation));
                    }
                    Some(_) | None if is_unchanged(unchanged, shapes, relation, *transaction) => {
                        looked.note(relation.id, unchanged.get(&relation.id));
                        seen.insert(relation.id, Arc::clone(relation));
                    }
                    Some(_) | None => return Some((index, Arc::clone(relation))),
                }
                last = Some(relation);
            }
            if let Change::Truncate { relations, .. } = change {
                truncated.extend(relations.iter().map(|relation| relation.id));
                // The next row is looked at, whether the table is described before it or not.
                last = None;
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
            Some(Step::Chunk(chunk)) if !cuts.is_empty() => self.cut(chunk.changes, cuts),
            step => self.ready.extend(step),
        }
    }

    fn cut(&mut self, changes: Vec<Change>, cuts: Vec<StepCut>) {
        let mut changes = changes.into_iter();
        let mut chunk = ChunkBuilder::default();
        let mut taken = 0;
        for StepCut { index, change } in cuts {
            chunk.extend(changes.by_ref().take(index - taken));
            taken = index;
            self.ready.extend(chunk.take().map(Step::Chunk));
            self.ready.push_back(Step::Schema(change));
        }
        chunk.extend(changes);
        self.ready.extend(chunk.take().map(Step::Chunk));
    }
}

/// The changes of a step.
fn changes_of(step: Option<&Step>) -> &[Change] {
    match step {
        Some(Step::Transaction(transaction)) => transaction.changes.as_slice(),
        Some(Step::Chunk(chunk)) => chunk.changes.as_slice(),
        Some(
            Step::Begin(_) | Step::Schema(_) | Step::Commit { .. } | Step::AppliedInParallel { .. } | Step::Reached(_),
        )
        | None => &[],
    }
}

/// Whether a transaction that is here as a whole brings a TRUNCATE of a table, and no row of it behind that.
fn ends_truncated(step: Option<&Step>, table: RelationId) -> bool {
    let Some(Step::Transaction(transaction)) = step else { return false };
    let mut changes = transaction.changes.iter().rev();
    let last = changes.find(|change| change.relations().iter().any(|relation| relation.id == table));
    matches!(last, Some(Change::Truncate { .. }))
}

/// The partitions that a description names and of which no row is known to have come.
fn unknown_leaves<'a>(known: &'a Shape, relation: &'a Relation) -> impl Iterator<Item = RelationId> + 'a {
    relation.leaves.iter().filter(|leaf| !known.partitions.contains(&leaf.0))
}

fn knows_leaves(known: Option<&Shape>, relation: &Relation) -> bool {
    relation.leaves.is_empty() || known.is_some_and(|known| unknown_leaves(known, relation).next().is_none())
}

/// Whether a relation of a transaction is what is known of its table, without a question.
fn is_unchanged(
    unchanged: &HashMap<RelationId, Unchanged>,
    shapes: &HashMap<RelationId, Shape>,
    relation: &Relation,
    transaction: u32,
) -> bool {
    unchanged.get(&relation.id).is_some_and(|unchanged| unchanged.visible.covers(transaction))
        && shapes.get(&relation.id).is_some_and(|shape| shape.describes(relation))
        && knows_leaves(shapes.get(&relation.id), relation)
}

/// Asks the catalog for a relation of a transaction; `None` when the table is what it was.
async fn ask(
    client: &SqlClient,
    relation: Arc<Relation>,
    known: Option<Shape>,
    named: Named,
) -> Result<Described, SourceError> {
    // Dropped since. What the stream still brings is what was known.
    let Some(description) = describe_relation(client, relation.id).await? else { return Ok(None) };
    let (table, types) = read_description(&description)?;
    let shape = Shape::of(&table, &types, |name| relation.columns.iter().any(|column| column.name == *name));
    let is_current = shape.describes(&relation);
    let Some(known) = known else {
        return Ok(Some((SchemaChange { relation, description, measured: Box::default() }, shape)));
    };
    let known_leaves = known.leaves();
    let leaves = match &table.partitions {
        Some(now) => LeavesAnswer::ask(client, &known_leaves, &relation, now, named).await?,
        None => LeavesAnswer { measured: Measured::default(), after: Some(known_leaves.clone()) },
    };
    let has_new_leaves = leaves.after.as_ref() != Some(&known_leaves);
    if is_current && !has_new_leaves && known == shape.clone().with_leaves(known_leaves.clone()) {
        return Ok(None);
    }
    let numbers = numbers(&known, &relation, &table);
    let means_the_known = known.describes(&relation)
        && numbers
            .as_ref()
            .is_ok_and(|found| known.columns.iter().map(|column| column.number).eq(found.iter().copied()));
    if !is_current && means_the_known && !has_new_leaves {
        // The catalog is ahead: what it tells comes later in the stream, too.
        return Ok(None);
    }
    // What the destination will know of the table, too. A promise that the rows do not keep yet is made again when the table is
    // described next.
    let shape = match numbers {
        Ok(numbers) => followed(&known, &relation, &numbers, &table, &types).without_new_promises(Some(&known)),
        // The destination cannot follow that, and asks for a copy.
        Err(_) => known,
    };
    let after = leaves.after.unwrap_or_else(|| {
        let named = relation.leaves.iter().map(|leaf| leaf.0);
        KnownLeaves { known: known_leaves.known.iter().copied().chain(named).collect(), empty: known_leaves.empty }
    });
    let shape = shape.with_leaves(after);
    Ok(Some((SchemaChange { relation, description, measured: Box::new(leaves.measured) }, shape)))
}

/// The partitions that a transaction has named.
struct Named {
    transaction: u32,
    /// Those of which nothing was known before it: whether it has named them again.
    again: BTreeMap<u32, bool>,
    /// No row of the table comes behind its last TRUNCATE in it.
    ends_truncated: bool,
}

/// What a description says of a table's partitions.
struct LeavesAnswer {
    /// What was asked of them.
    measured: Measured,
    /// What is known of them from here on; `None`: the destination asks for a copy, unless it knows more than was known when this session
    /// began.
    after: Option<KnownLeaves>,
}

impl LeavesAnswer {
    async fn ask(
        client: &SqlClient,
        known: &KnownLeaves,
        relation: &Relation,
        now: &[Partition],
        named: Named,
    ) -> Result<LeavesAnswer, SourceError> {
        let unknown = leaves::to_measure(known, &relation.leaves, now);
        let vacant = vacancy(client, &unknown).await?.vacant;
        let created = now.iter().filter(|leaf| !leaf.attached).filter_map(|leaf| {
            let is_named_again = *named.again.get(&leaf.id)?;
            Some(NamedPartition { id: leaf.id, name: leaf.name.clone(), is_named_again })
        });
        let (truncated, created): (Vec<_>, Vec<_>) = created.partition(|_| named.ends_truncated);
        let with_rows: Vec<_> = created.into_iter().filter(|leaf| !vacant.contains(&leaf.id)).collect();
        let unproven = unproven(client, relation.id, named.transaction, &with_rows).await?;
        let measured = Measured { vacant, unproven, truncated: truncated.into_iter().map(|leaf| leaf.id).collect() };
        // Whether what was seen empty was emptied is the destination's to say.
        let after = leaves::named(known, &relation.leaves, now, &measured, Lsn::new(u64::MAX));
        Ok(LeavesAnswer { measured, after: after.ok() })
    }
}

/// Waits until this session sees a transaction that the stream has brought; returns all that it sees.
async fn wait_until_seen(
    client: &SqlClient,
    transaction: u32,
    waits: &UnseenReport,
) -> Result<VisibleTransactions, SourceError> {
    let began = Instant::now();
    let mut told = false;
    let mut shown = Shown { waits, is_shown: false };
    loop {
        let visible = VisibleTransactions::read(client).await?;
        if visible.contains(transaction) {
            return Ok(visible);
        }
        if began.elapsed() >= SEEN_MAX {
            return Err(SourceError::Unseen { transaction, within: SEEN_MAX });
        }
        if began.elapsed() >= SEEN_LATE && !std::mem::replace(&mut told, true) {
            tracing::info!(
                "transaction {transaction} has come through the stream and is not visible at the source yet"
            );
        }
        if began.elapsed() >= TOLD_AFTER && !shown.is_shown {
            let words = held_back_words(client, transaction).await?;
            shown.show(&format!(
                "source: a question about a changed table waits for transaction {transaction}: {words}"
            ));
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

/// A wait that is shown until this is dropped.
struct Shown<'a> {
    waits: &'a UnseenReport,
    is_shown: bool,
}

impl Shown<'_> {
    fn show(&mut self, text: &str) {
        self.is_shown = true;
        (self.waits)(Some(text));
    }
}

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        if self.is_shown {
            (self.waits)(None);
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use std::collections::BTreeSet;

    use super::*;
    use crate::catalog::shape::ShapeColumn;
    use crate::pg::{Column, Description, Ident, Lsn, PgTimestamp, QualifiedName, ReplicaIdentity, Tuple, TypeId};
    use crate::transaction::RowChange;
    use crate::wire::{Begin, Commit};

    fn relation(id: u32) -> Arc<Relation> {
        let column = Column { name: Ident::new("id"), in_identity: true, type_id: TypeId(23), type_modifier: -1 };
        Arc::new(Relation {
            leaves: Default::default(),
            id: RelationId(id),
            name: QualifiedName::new("public", "t"),
            replica_identity: ReplicaIdentity::Default,
            columns: vec![column],
        })
    }

    fn insert(relation: &Arc<Relation>) -> Change {
        let new = Tuple::new(1, Bytes::from_static(b"t\0\0\0\x011")).unwrap();
        Change::Row(RowChange::Insert { relation: Arc::clone(relation), new })
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

    /// A tracker that asks nobody: the answers are given by the test.
    struct Asked {
        tracker: RelationTracker,
        questions: Vec<(usize, RelationId)>,
    }

    impl Asked {
        fn push(&mut self, step: Step, mut changed: impl FnMut(usize) -> bool) -> Vec<Step> {
            self.tracker.held = Some(step);
            self.tracker.looked_at = 0;
            self.tracker.asked.clear();
            self.tracker.note_named();
            while let Some((index, relation)) = self.tracker.next_unseen() {
                self.questions.push((index, relation.id));
                assert!(self.questions.len() < 100, "asked without end");
                let description = Description { table: String::new(), types: String::new() };
                let measured = Box::default();
                let change = SchemaChange { relation: Arc::clone(&relation), description, measured };
                self.tracker.learn(index, &relation, changed(index).then_some(change));
            }
            self.tracker.release();
            std::iter::from_fn(|| self.tracker.poll()).collect()
        }
    }

    fn asked() -> Asked {
        let sql = Sql {
            connection: crate::config::ConnectionSettings::default(),
            purpose: "testing",
            timeout: Duration::from_secs(1),
        };
        Asked { tracker: RelationTracker::new(sql, HashMap::new()), questions: Vec::new() }
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
        let mut named = Relation::clone(&relation(1));
        named.leaves.add(RelationId(11));
        asked.push(transaction(vec![truncate(&relation(1)), insert(&Arc::new(named))]), |_| false);
        assert_eq!(asked.questions.len(), 5, "and so is one that names a partition");
    }

    #[tokio::test]
    async fn partitions_that_one_step_names_are_asked_for_together() {
        let mut asked = asked();
        let named = |leaf: u32| {
            let mut relation = Relation::clone(&relation(1));
            relation.leaves.add(RelationId(leaf));
            Arc::new(relation)
        };
        let relations: Vec<Arc<Relation>> = (11..15).map(named).collect();
        let changes: Vec<Change> = relations.iter().map(insert).collect();
        asked.tracker.held = Some(transaction(changes.clone()));
        let leaves = |relation: &Relation| relation.leaves.iter().map(|leaf| leaf.0).collect::<Vec<u32>>();
        assert_eq!(leaves(&asked.tracker.with_named(1, &relations[1])), [12, 13, 14]);
        assert_eq!(leaves(&asked.tracker.with_named(3, &relations[3])), [14]);
        // What the answer is kept as.
        let shape = Shape {
            name: QualifiedName::new("public", "t"),
            attributes: 1,
            storage: String::new(),
            files: None,
            partitions: (11..14).collect(),
            empty_partitions: Default::default(),
            columns: Vec::new(),
            unique: Default::default(),
            keys: Default::default(),
            labels: Default::default(),
        };
        asked.tracker.shapes.insert(RelationId(1), shape);
        asked.push(transaction(changes.clone()), |_| false);
        assert_eq!(asked.questions, [(0, RelationId(1)), (3, RelationId(1))], "the last one is not known by then");
        asked.push(transaction(vec![insert(&named(11))]), |_| false);
        assert_eq!(asked.questions.len(), 3, "another transaction is another question");
    }

    /// A tracker of tables 1 to `tables`, of which it is known that they had not changed when transactions before 5 were visible.
    fn asked_of_unchanged(tables: u32, in_recovery: bool) -> Asked {
        let mut asked = asked();
        let column = ShapeColumn {
            number: 1,
            name: Ident::new("id"),
            type_id: TypeId(23),
            type_modifier: -1,
            not_null: true,
            sequence: false,
        };
        let shape = Shape {
            name: QualifiedName::new("public", "t"),
            attributes: 1,
            storage: String::new(),
            files: None,
            partitions: BTreeSet::from([11]),
            empty_partitions: Default::default(),
            columns: vec![column],
            unique: Default::default(),
            keys: Default::default(),
            labels: Default::default(),
        };
        asked.tracker.shapes.extend((1..=tables).map(|table| (RelationId(table), shape.clone())));
        let digests = (1..=tables).map(|table| (RelationId(table), "d".to_owned())).collect();
        let visible = VisibleTransactions::parse("5:5:", in_recovery).unwrap();
        let unchanged = UnchangedTables { digests, visible, publication: Ident::new("p") };
        asked.tracker = asked.tracker.with_unchanged(unchanged);
        asked.tracker.transaction = 4;
        asked
    }

    #[tokio::test]
    async fn a_table_known_not_to_have_changed_is_asked_about_by_later_transactions_alone() {
        let mut asked = asked_of_unchanged(2, false);
        let mut named = Relation::clone(&relation(1));
        named.leaves.add(RelationId(11));
        let mut unknown = named.clone();
        unknown.leaves.add(RelationId(12));
        let mut altered = Relation::clone(&relation(2));
        altered.columns.clear();
        let changes = [relation(1), relation(2), relation(1), Arc::new(named)];
        asked.push(transaction(changes.iter().map(insert).collect()), |_| false);
        assert!(asked.questions.is_empty(), "{:?}", asked.questions);
        asked.push(transaction(vec![insert(&Arc::new(unknown)), insert(&Arc::new(altered))]), |_| false);
        assert_eq!(asked.questions, [(0, RelationId(1)), (1, RelationId(2))], "an unknown partition, other columns");
        let mut asked = asked_of_unchanged(2, false);
        asked.tracker.transaction = 5;
        asked.push(transaction(vec![insert(&relation(1))]), |_| false);
        assert_eq!(asked.questions, [(0, RelationId(1))], "it has committed since");
    }

    #[tokio::test]
    async fn what_has_another_fingerprint_is_asked_about_itself() {
        let mut asked = asked_of_unchanged(200, false);
        asked.tracker.transaction = 7;
        // Each table has one partition.
        let looked_at = asked.tracker.tables_to_look_at(&relation(50));
        assert_eq!((looked_at.len(), looked_at.first()), (LOOKED_AT_FIRST / 2, Some(&RelationId(50))));
        assert_eq!(asked.tracker.tables_to_look_at(&relation(51)).len(), LOOKED_AT_FIRST / 2, "it has saved none");
        let tables = [51, 1, 2, 3].map(RelationId);
        let digest = |(table, digest): (u32, &str)| (RelationId(table), digest.to_owned());
        let digests = [(51, "d"), (1, "d"), (2, "e")].map(digest).into_iter().collect();
        let visible = VisibleTransactions::parse("9:9:", false).unwrap();
        asked.tracker.looked_at_fingerprints(&tables, visible, &digests);
        asked.push(transaction(vec![insert(&relation(51))]), |_| false);
        assert!(!asked.tracker.looked.has_saved, "the table that was asked for");
        let changes = [relation(1), relation(2), relation(3), relation(4)];
        asked.push(transaction(changes.iter().map(insert).collect()), |_| false);
        let numbers: Vec<u32> = asked.questions.iter().map(|(_, table)| table.0).collect();
        assert_eq!(numbers, [2, 3, 4], "another one, none any more, not asked for");
        let again = asked.tracker.tables_to_look_at(&relation(2));
        assert!(again.is_empty(), "its own description is asked for from here on");
    }

    #[tokio::test]
    async fn a_question_that_saves_another_is_followed_by_one_about_twice_as_many() {
        let mut asked = asked_of_unchanged(200, false);
        asked.tracker.transaction = 7;
        let mut most = LOOKED_AT_FIRST / 2;
        for table in [100, 110, 120] {
            let looked_at = asked.tracker.tables_to_look_at(&relation(table));
            assert_eq!(looked_at.len(), most);
            let digests = looked_at.iter().map(|table| (*table, "d".to_owned())).collect();
            let visible = VisibleTransactions::parse(&format!("{0}:{0}:", 9 + table), false).unwrap();
            asked.tracker.looked_at_fingerprints(&looked_at, visible, &digests);
            let saved = looked_at.last().unwrap().0;
            asked.push(transaction(vec![insert(&relation(saved))]), |_| false);
            assert!(asked.questions.is_empty(), "{:?}", asked.questions);
            most *= 2;
        }
    }

    #[tokio::test]
    async fn on_a_standby_no_table_is_known_not_to_have_changed() {
        let mut asked = asked_of_unchanged(2, true);
        asked.push(transaction(vec![insert(&relation(1))]), |_| false);
        assert_eq!(asked.questions, [(0, RelationId(1))], "at the start");
        let mut asked = asked_of_unchanged(2, false);
        asked.tracker.transaction = 7;
        let visible = VisibleTransactions::parse("9:9:", true).unwrap();
        let digests = [(RelationId(1), "d".to_owned())].into_iter().collect();
        asked.tracker.looked_at_fingerprints(&[RelationId(1)], visible, &digests);
        assert!(asked.tracker.tables_to_look_at(&relation(1)).is_empty(), "it was no standby at the start");
        asked.push(transaction(vec![insert(&relation(1))]), |_| false);
        assert_eq!(asked.questions, [(0, RelationId(1))]);
    }

    #[test]
    fn a_truncate_at_the_end_is_told_from_one_with_rows_behind_it() {
        let truncate = |id| Change::Truncate { relations: vec![relation(2), relation(id)], restart_identity: false };
        let ends = |changes: Vec<Change>| ends_truncated(Some(&transaction(changes)), RelationId(1));
        assert!(ends(vec![insert(&relation(1)), truncate(1), insert(&relation(3))]));
        assert!(!ends(vec![truncate(1), insert(&relation(1))]), "a row comes behind it");
        assert!(!ends(vec![insert(&relation(1)), truncate(3)]), "of another table");
        let Step::Transaction(Transaction { begin, .. }) = transaction(Vec::new()) else { panic!() };
        assert!(!ends_truncated(Some(&Step::Begin(begin)), RelationId(1)), "the rest comes later");
    }

    #[tokio::test]
    async fn a_description_behind_rows_that_followed_a_truncate_is_asked_for() {
        let mut asked = asked();
        let (first, later) = (relation(1), relation(1));
        let truncate = Change::Truncate { relations: vec![Arc::clone(&first)], restart_identity: false };
        // A stream does not describe the table once more behind its TRUNCATE.
        asked.push(transaction(vec![truncate, insert(&first)]), |_| false);
        asked.push(transaction(vec![insert(&later)]), |_| false);
        assert_eq!(asked.questions.len(), 2);
    }

    #[tokio::test]
    async fn a_transaction_is_cut_where_a_table_changes() {
        let mut asked = asked();
        let (first, again) = (relation(1), relation(1));
        let changes = [&first, &first, &again].map(insert);
        let steps = asked.push(transaction(changes.to_vec()), |index| index > 0);
        let [Step::Begin(_), Step::Chunk(before), Step::Schema(change), Step::Chunk(after), Step::Commit { .. }] =
            steps.as_slice()
        else {
            panic!("{steps:?}")
        };
        assert_eq!((before.changes.len(), after.changes.len()), (2, 1));
        assert!(Arc::ptr_eq(&change.relation, &again));
    }
}

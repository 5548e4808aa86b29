//! The stream's health: whether the publication, its tables and our own standing at the source are still what the stream began on.
//!
//! Run by `monitor` as a task of its own, on a session of its own: printing a row filter needs ACCESS SHARE on its table from 17 on, and
//! what a publication sends is only known from a view on servers newer than 18, so a look may wait while somebody alters a table, and lag,
//! slot and heartbeats must not wait with it.
//! In come what a stream was started on ([`Watched`]) and the truncations that it has reported; out goes [`StreamHealth`], which ends a
//! stream that has lost that basis. It also checks whether the tables' rows may differ from those that the stream reports
//! ([`crate::preflight::fingerprints`]), since nothing comes of tables that nobody writes, or of their partitions.
//!
//! The stream may wait for a look ([`super::looks`]), which then waits for no lock unless it finds something.
//!
//! Bounds: one look every [`LOOK_EVERY`] and those that the stream waits for, each question [`QUERY_MAX`]. A look that fails is
//! made again after [`RETRY_AFTER`]; what it waits for is said by [`crate::preflight::waits`], and why it fails by
//! [`crate::preflight::watch_failures`]. Invariant: what was found of one stream's
//! basis never ends another stream.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::looks::{Due, GivenUp, LookPace, LookWait, Unanswered, objects};
use crate::catalog::truncation::Truncation;
use crate::config::{Config, ConnectionSettings};
use crate::destination::{
    Bookkeeping, OtherTables, RememberedTable, Silent, Writes, remember_fingerprints, remembered_fingerprints,
    renamed_report, set_passed,
};
use crate::error_policy::report;
use crate::pg::{ErrorReport, Ident, Lsn, QualifiedName, RelationId, SlotName};
use crate::preflight::cascades;
use crate::preflight::fingerprints::{
    Comparison, Doubt, SeenInDoubt, Truncations, ask_for_comparison, look, table_called,
};
use crate::preflight::prepare::Prepared;
use crate::preflight::watch_failures::WatchFailure;
use crate::preflight::whereabouts::{Whereabouts, lost_report, whereabouts};
use crate::session::{SessionError, Sql, SqlClient, SystemIdentification};
use crate::source::{GAP_OF_ALL, Identities, LooksAsked, Unidentified, VisibleTransactions, published_tables};
use crate::telemetry::Telemetry;

/// A table that has left the publication is noticed within this and a look's own time.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// After a look that failed, and until there is a stream.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// A question to the catalog takes milliseconds; one that waits for a lock is asked again.
const QUERY_MAX: Duration = Duration::from_secs(10);

/// Whether what the stream stands on is still there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum StreamHealth {
    /// It is.
    Healthy,
    /// It is not, and an operator must act.
    Gone {
        /// What is to be done.
        report: ErrorReport,
        /// Changes were not sent, so that the copy has gaps now: what is remembered of the publication.
        gap: Option<String>,
    },
    /// These tables are not sent any more.
    Unpublished {
        /// The publication that has lost them.
        publication: Ident,
        /// The tables.
        tables: Vec<QualifiedName>,
    },
    /// Another table bears the name of one that is followed.
    Replaced {
        /// The table.
        table: QualifiedName,
        /// Its OID.
        old: RelationId,
        /// The other's.
        new: RelationId,
    },
    /// A table's rows may be others than the stream has told of.
    Changed {
        /// The table.
        table: QualifiedName,
        /// Why.
        reason: String,
    },
    /// The stream waits at a schema change of this transaction, and the look that it waits for could not be taken.
    NotLooked {
        /// The transaction, by its xid.
        transaction: u32,
        /// Why not.
        reason: GivenUp,
    },
    /// The destination has not answered for so long.
    DestinationSilent(Silent),
    /// Code of others would run with our rights at the destination.
    ForeignCode(ErrorReport),
    /// Foreign keys of the destination would change rows that the source keeps.
    Cascades(ErrorReport),
    /// Tables at the destination are not those that headwater has filled.
    OtherTables(OtherTables),
    /// The source has answered a question of the monitor with something else than was asked for.
    Misunderstood {
        /// What was asked.
        doing: &'static str,
        /// What is wrong with the answer.
        what: String,
    },
}

/// What the monitor compares with while a stream runs.
#[derive(Clone, Debug)]
pub(super) struct Watched {
    publication: Ident,
    /// The walsender's process.
    process_id: u32,
    /// Whose walsender that is.
    source: SystemIdentification,
    tables: Vec<WatchedTable>,
    pub(super) writes: Writes,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct WatchedTable {
    name: QualifiedName,
    id: RelationId,
    /// It waits for a copy, so that for now only the copy needs it in the publication.
    waits: bool,
    columns: Vec<String>,
    row_filter: Option<String>,
}

impl Watched {
    pub(super) fn new(prepared: &Prepared, publication: Ident) -> Watched {
        let tables = prepared.source_catalog.tables.iter().map(|table| {
            let mut columns: Vec<String> = table.columns.iter().map(|column| column.as_str().to_owned()).collect();
            columns.sort();
            let name = table.definition.name();
            WatchedTable {
                waits: prepared.suspended.contains(&name) || prepared.added.contains(&name),
                name,
                id: table.definition.relation_id(),
                columns,
                row_filter: table.row_filter.clone(),
            }
        });
        Watched {
            publication,
            process_id: prepared.replication.process_id(),
            source: prepared.identification.clone(),
            tables: tables.collect(),
            writes: prepared.writes.clone(),
        }
    }
}

/// The truncations that the stream has reported, for the comparison of fingerprints. All handles share them.
#[derive(Clone, Debug, Default)]
pub(super) struct ToldTruncations(Arc<Mutex<Truncations>>);

/// Kept of each table: a file bears the mark of its last truncation, and the stream may be further than the catalog was.
const TRUNCATIONS_KEPT: usize = 16;

impl ToldTruncations {
    /// The stream has told of one.
    pub(super) fn note(&self, table: RelationId, truncation: Truncation) {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let told = &mut told.entry(table).or_default().truncations;
        told.push(truncation);
        if told.len() > TRUNCATIONS_KEPT {
            told.remove(0);
        }
    }

    /// Those that there are now, for what is watched.
    fn of(&self, watched: &Watched) -> Truncations {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for table in watched.tables.iter().filter(|table| table.row_filter.is_some()) {
            if let Some(told) = told.get_mut(&table.id) {
                told.is_filtered = true;
            }
        }
        told
    }
}

/// A table whose rows are in doubt.
#[derive(Clone, Debug)]
pub(super) struct InDoubt {
    /// The digest that made it so.
    digest: String,
    seen: SeenInDoubt,
    /// A partition was locked then that would have told.
    is_locked: bool,
    /// How far the source was then.
    read_at: Lsn,
    /// Since when it is in doubt without a break.
    since: Instant,
}

impl InDoubt {
    fn new(doubt: &Doubt, read_at: Lsn, since: Instant) -> InDoubt {
        let (digest, seen) = (doubt.digest.clone(), doubt.seen.clone());
        InDoubt { digest, seen, is_locked: doubt.is_locked, read_at, since }
    }
}

/// The tables that a look has found in doubt, and what they are judged by.
struct SeenDoubts {
    doubts: Vec<Doubt>,
    /// How far the source was.
    read_at: Lsn,
    /// How far the stream is.
    position: Option<Lsn>,
    remembered: HashMap<RelationId, RememberedTable>,
    truncations: Truncations,
}

/// A partition that would tell whether its rows are in doubt may be locked for so long: then the table is compared.
const LOCKED_MAX: Duration = Duration::from_secs(300);

/// What a stream stands on now; `None` while there is none.
pub(super) type WatchedNow = Arc<Mutex<Option<Arc<Watched>>>>;

/// The task that looks.
pub(super) struct HealthWatch {
    pub(super) config: Arc<Config>,
    /// Where the attempt's sessions lead to.
    pub(super) connection: Arc<Mutex<ConnectionSettings>>,
    pub(super) telemetry: Arc<Telemetry>,
    pub(super) watched: WatchedNow,
    pub(super) health: watch::Sender<StreamHealth>,
    /// Identities that were found wrong and told.
    pub(super) unidentified: Vec<Unidentified>,
    pub(super) truncations: ToldTruncations,
    /// Tables whose rows are in doubt.
    pub(super) doubts: HashMap<RelationId, InDoubt>,
    /// Tables of which more is remembered than the stream has passed, in the same way.
    pub(super) ahead: HashMap<RelationId, (String, Lsn)>,
    /// Waits for the position.
    pub(super) reached_xid: Option<ReachedXid>,
    /// Looks that the stream waits for.
    pub(super) asked: LooksAsked,
    /// How long the stream has waited for one.
    pub(super) look_wait: LookWait,
    /// Whether the source cannot be looked at.
    pub(super) failure: WatchFailure,
    /// Whether the destination cannot be asked what is remembered of it.
    pub(super) destination_failure: WatchFailure,
}

type Session = (ConnectionSettings, SqlClient);

/// What comes of comparing the tables with what is remembered of them.
enum HealthFound {
    Found(StreamHealth),
    /// The destination cannot be asked what is remembered, as this says.
    Unread(String),
}

impl HealthWatch {
    /// Looks until it is dropped: on its clock, and between whenever the stream has come to a mark of a schema change.
    pub(super) async fn run(mut self) {
        let mut session: Option<Session> = None;
        let mut pace = LookPace::begin();
        let mut due = Instant::now();
        loop {
            let watched = self.watched();
            let is_watched = watched.is_some();
            let open = self.asked.open().filter(|_| is_watched);
            if let (Some((transaction, reason)), Some(watched)) =
                (self.look_wait.observe(open, &self.telemetry), &watched)
            {
                self.tell(watched, StreamHealth::NotLooked { transaction, reason });
            }
            match watched {
                Some(watched) => {
                    let is_asked = open.is_some();
                    let looked = match is_asked {
                        true => self.look_as_asked(session.take(), &watched, &mut pace).await,
                        false if Instant::now() >= due => {
                            due = Instant::now() + LOOK_EVERY;
                            self.look(session.take(), &watched).await
                        }
                        false => self.session(session.take()).await,
                    };
                    match &looked {
                        Ok(_) => self.failure.works(),
                        Err(error) => {
                            self.failure.failed(error);
                            self.look_wait.because(Unanswered::Unread(error.to_string()));
                        }
                    }
                    match looked {
                        Ok(kept) => session = Some(kept),
                        Err(SessionError::Answer { doing, what }) => {
                            self.tell(&watched, StreamHealth::Misunderstood { doing, what });
                            due = Instant::now() + RETRY_AFTER;
                        }
                        Err(_) if is_asked => {
                            pace = LookPace::begin();
                            pace.later(RETRY_AFTER);
                        }
                        Err(_) => due = Instant::now() + RETRY_AFTER,
                    }
                }
                None => {
                    session = None;
                    self.failure.rests();
                    self.destination_failure.rests();
                    due = Instant::now() + RETRY_AFTER;
                }
            }
            self.asked.sleep(due.saturating_duration_since(Instant::now()), is_watched).await;
        }
    }

    /// Looks because the stream waits at a mark. Nothing of this waits for a lock on a table, except for a tenth of a second for one of a
    /// partition that is new ([`crate::session::vacancy`]), unless something has been found: then the publication is looked at first, as
    /// always.
    async fn look_as_asked(
        &mut self,
        session: Option<Session>,
        watched: &Arc<Watched>,
        pace: &mut LookPace,
    ) -> Result<Session, SessionError> {
        let (connection, client) = self.session(session).await?;
        let due = pace.due(&client, &self.asked).await?;
        match due {
            Due::Nothing | Due::Look(_) => {}
            Due::Paced => self.look_wait.because(Unanswered::Paced),
            Due::Unseen(asked) => self.look_wait.unseen(&client, asked).await?,
        }
        if let Due::Look(asked) = due {
            let began = Instant::now();
            let seen = VisibleTransactions::read(&client).await?;
            match self.look_at_tables(&client, watched).await? {
                HealthFound::Found(StreamHealth::Healthy) => {
                    tracing::debug!(
                        "transaction {} has changed a schema, and the tables were looked at",
                        asked.transaction
                    );
                    self.asked.answer(asked);
                    pace.looked(seen, began.elapsed());
                }
                HealthFound::Found(found) => {
                    pace.later(RETRY_AFTER);
                    let health = read_stream_health(&client, watched).await?;
                    self.tell(watched, if health == StreamHealth::Healthy { found } else { health });
                }
                HealthFound::Unread(error) => {
                    self.look_wait.because(Unanswered::Unread(error));
                    pace.later(RETRY_AFTER);
                }
            }
        }
        Ok((connection, client))
    }

    /// A session with what is the source now.
    async fn session(&self, session: Option<Session>) -> Result<Session, SessionError> {
        let connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner).clone();
        // Another of source.url's hosts may be the source now.
        let client = match session.filter(|(to, _)| *to == connection) {
            Some((_, client)) => client,
            None => Sql { connection: connection.clone(), purpose: "catalog", timeout: QUERY_MAX }.connect().await?,
        };
        Ok((connection, client))
    }

    fn watched(&self) -> Option<Arc<Watched>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Looks once; returns the session for the next time.
    async fn look(&mut self, session: Option<Session>, watched: &Arc<Watched>) -> Result<Session, SessionError> {
        let (connection, client) = self.session(session).await?;
        let mut health = read_stream_health(&client, watched).await?;
        if health == StreamHealth::Healthy
            && let HealthFound::Found(found) = self.look_at_tables(&client, watched).await?
        {
            health = found;
        }
        if health == StreamHealth::Healthy {
            health = self.look_at_cascades(&client, watched).await;
        }
        if health != StreamHealth::Healthy {
            self.tell(watched, health);
        }
        self.ask_identities(&client, watched).await?;
        Ok((connection, client))
    }

    /// Tells what was found of a stream's health, unless another stream runs by now.
    fn tell(&self, watched: &Arc<Watched>, health: StreamHealth) {
        if self.watched().is_some_and(|now| Arc::ptr_eq(&now, watched)) {
            self.health.send_replace(health);
        }
    }

    /// Compares the tables with what is remembered of them at the destination, and says when that cannot be read.
    async fn look_at_tables(&mut self, client: &SqlClient, watched: &Watched) -> Result<HealthFound, SessionError> {
        let looked = self.compare_tables(client, watched).await?;
        match &looked {
            HealthFound::Found(_) => self.destination_failure.works(),
            HealthFound::Unread(error) => self.destination_failure.failed(error),
        }
        Ok(looked)
    }

    async fn compare_tables(&mut self, client: &SqlClient, watched: &Watched) -> Result<HealthFound, SessionError> {
        let destination =
            Sql { connection: self.config.destination.url.clone(), purpose: "monitor", timeout: QUERY_MAX };
        let bookkeeping = match Bookkeeping::connect(&destination).await {
            Ok(bookkeeping) => bookkeeping,
            Err(error) => return Ok(HealthFound::Unread(error.to_string())),
        };
        let remembered = match remembered_fingerprints(bookkeeping.client()).await {
            Ok(remembered) => remembered,
            Err(error) => return Ok(HealthFound::Unread(error.to_string())),
        };
        let found = look(client, &watched.publication, &remembered, &self.truncations.of(watched)).await?;
        if self.asked.wants_followed() || !found.harmless.is_empty() {
            self.asked.follow(objects(&remembered, &found.harmless)?);
        }
        if let Err(error) = remember_fingerprints(bookkeeping.client(), &found.harmless).await {
            tracing::warn!("what the source's catalog says of tables could not be stored: {error}");
        }
        if let Some((table, reason)) = found.differ.into_iter().next() {
            return Ok(HealthFound::Found(StreamHealth::Changed { table, reason }));
        }
        if let Some((table, old, renamed)) = found.renamed.into_iter().next() {
            return Ok(HealthFound::Found(match table_called(client, &table).await? {
                Some(new) => StreamHealth::Replaced { table, old, new },
                None => {
                    let is_followed = self.config.tables.contains(&renamed);
                    StreamHealth::Gone { report: renamed_report(&table, &renamed, is_followed), gap: None }
                }
            }));
        }
        let position = match bookkeeping.position().await {
            Ok(position) => position,
            Err(error) => return Ok(HealthFound::Unread(error.to_string())),
        };
        self.note_passed(&bookkeeping, found.ahead, found.read_at, position).await;
        self.remember_xid(client, &bookkeeping, watched, position).await?;
        let truncations = self.truncations.of(watched);
        let seen = SeenDoubts { doubts: found.doubt, read_at: found.read_at, position, remembered, truncations };
        self.judge_doubts(&bookkeeping, seen).await?;
        Ok(HealthFound::Found(StreamHealth::Healthy))
    }

    /// Asks for comparisons of tables in doubt. A TRUNCATE that explains one may be on its way: what was seen first is judged once the
    /// stream has passed it.
    async fn judge_doubts(&mut self, bookkeeping: &Bookkeeping, seen: SeenDoubts) -> Result<(), SessionError> {
        let SeenDoubts { doubts, read_at, position, remembered, truncations } = seen;
        let mut before = std::mem::take(&mut self.doubts);
        let mut uncompared = BTreeSet::new();
        let is_passed = |read_at: Lsn| position.is_some_and(|position| position >= read_at);
        for doubt in doubts {
            let (before, known) = (before.remove(&doubt.table), remembered.get(&doubt.table));
            let since = before.as_ref().map_or_else(Instant::now, |before| before.since);
            let may_wait = since.elapsed() < LOCKED_MAX;
            let is_explained = |seen: &SeenInDoubt| {
                known.map_or(Ok(true), |known| seen.is_explained(doubt.table, known, &truncations))
            };
            let new = || InDoubt::new(&doubt, read_at, since);
            let first = before.clone();
            let open = match before {
                // What was seen first is judged first, however often the table is changed since.
                Some(before) if !is_passed(before.read_at) => Some(before),
                Some(before) if before.digest == doubt.digest => (doubt.is_locked && may_wait).then_some(before),
                Some(before) if !(is_explained(&before.seen)? || before.is_locked && may_wait) => None,
                Some(_) | None => (!is_passed(read_at) || doubt.is_locked && may_wait).then(new),
            };
            if let Some(open) = open {
                if doubt.is_locked {
                    uncompared.insert(doubt.name);
                }
                self.doubts.insert(doubt.table, open);
                continue;
            }
            let asked = ask_for_comparison(bookkeeping, &self.telemetry, &doubt).await.unwrap_or_else(|error| {
                tracing::debug!("a comparison could not be asked for: {error}");
                Comparison::OfOthers
            });
            if asked == Comparison::OfOthers {
                self.doubts.insert(doubt.table, first.unwrap_or_else(new));
                uncompared.insert(doubt.name);
            }
        }
        self.telemetry.uncompared(uncompared);
        Ok(())
    }

    /// What is remembered of tables counts as passed once the stream is where the source was when its catalog was seen to say so.
    async fn note_passed(
        &mut self,
        bookkeeping: &Bookkeeping,
        ahead: Vec<(RelationId, String)>,
        read_at: Lsn,
        position: Option<Lsn>,
    ) {
        let seen = std::mem::take(&mut self.ahead);
        let mut passed = Vec::new();
        for (table, digest) in ahead {
            let since = seen.get(&table).filter(|(before, _)| *before == digest).map_or(read_at, |(_, since)| *since);
            match position.is_some_and(|position| position >= since) {
                true => passed.push((table, digest)),
                false => drop(self.ahead.insert(table, (digest, since))),
            }
        }
        if !passed.is_empty()
            && let Err(error) = set_passed(bookkeeping.client(), &passed).await
        {
            tracing::warn!("how far the stream is could not be stored with what the source's catalog says: {error}");
        }
    }

    /// Somebody may add a foreign key at the destination, or drop the source's, while the stream runs.
    async fn look_at_cascades(&self, client: &SqlClient, watched: &Watched) -> StreamHealth {
        let destination =
            Sql { connection: self.config.destination.url.clone(), purpose: "monitor", timeout: QUERY_MAX };
        let here = match destination.connect().await {
            Ok(here) => here,
            Err(error) => {
                tracing::debug!("cannot look at the actions of foreign keys: {error}");
                return StreamHealth::Healthy;
            }
        };
        match cascades::report(client, &here, &watched.writes).await {
            Ok(None) => StreamHealth::Healthy,
            Ok(Some(report)) => StreamHealth::Cascades(report),
            Err(fault) => {
                tracing::warn!("cannot look at the actions of foreign keys: {}", report(&fault).lines());
                StreamHealth::Healthy
            }
        }
    }

    /// Remembers how many transaction IDs the source had assigned, once the position has passed that moment.
    async fn remember_xid(
        &mut self,
        client: &SqlClient,
        bookkeeping: &Bookkeeping,
        watched: &Watched,
        position: Option<Lsn>,
    ) -> Result<(), SessionError> {
        if let Some(reached) =
            self.reached_xid.take_if(|reached| position.is_some_and(|position| position >= reached.at))
        {
            let ReachedXid { xid, at, source } = reached;
            if let Err(error) = bookkeeping.set_source_xid(xid, at, &source).await {
                tracing::warn!("the transaction ID that the source has reached could not be stored: {error}");
            }
        }
        if self.reached_xid.as_ref().is_none_or(|reached| reached.source != watched.source) {
            self.reached_xid = read_reached_xid(client, &self.config.source.slot, watched).await?;
        }
        Ok(())
    }

    /// Leaves may be added, and identities changed: says on which tables the source's own UPDATE and DELETE fail since, once
    /// for each, and ends a stream that would take rows for others.
    async fn ask_identities(&mut self, client: &SqlClient, watched: &Arc<Watched>) -> Result<(), SessionError> {
        let ids = || watched.tables.iter().map(|table| table.id);
        let identities = Identities::read(client, &watched.publication, ids()).await?;
        let found: Vec<Unidentified> = identities.problems(true, ids()).collect();
        for new in found.iter().filter(|found| !self.unidentified.contains(found)) {
            match new.misleads_the_stream() {
                true => {
                    self.tell(watched, StreamHealth::Gone { report: new.report.clone(), gap: None });
                }
                false => self.telemetry.warning("replica identity", new.report.lines()),
            }
        }
        self.unidentified = found.into_iter().filter(|found| !found.misleads_the_stream()).collect();
        Ok(())
    }
}

/// The source had assigned all transaction IDs before `xid`, and its WAL up to `at` says so: commits and aborts write their records
/// before they count as ended.
pub(super) struct ReachedXid {
    xid: i64,
    at: Lsn,
    source: SystemIdentification,
}

/// Nothing on a standby, and nothing where this session leads to another server than the stream does.
async fn read_reached_xid(
    client: &SqlClient,
    slot: &SlotName,
    watched: &Watched,
) -> Result<Option<ReachedXid>, SessionError> {
    // The statement's snapshot is taken first.
    let sql = "SELECT pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())::text::int8,
                      pg_catalog.pg_current_wal_insert_lsn()::text
               FROM pg_catalog.pg_replication_slots s
               WHERE s.slot_name = $1::text AND s.active_pid = $2 AND NOT pg_catalog.pg_is_in_recovery()";
    let Ok(process_id) = i32::try_from(watched.process_id) else { return Ok(None) };
    let row = client.query_opt("asking for transaction IDs", sql, &[&slot.as_str(), &process_id]).await?;
    let Some(row) = row else { return Ok(None) };
    let at = row
        .get::<&str>(1)?
        .parse()
        .map_err(|_| SessionError::answer("asking for transaction IDs", "a malformed position"))?;
    Ok(Some(ReachedXid { xid: row.get(0)?, at, source: watched.source.clone() }))
}

/// Compares the publication, its tables and our own standing with what the stream was started on.
async fn read_stream_health(client: &SqlClient, watched: &Watched) -> Result<StreamHealth, SessionError> {
    let gap = |report, remembered| StreamHealth::Gone { report, gap: Some(remembered) };
    let no_gap = |report| StreamHealth::Gone { report, gap: None };
    let doing = "looking at the publication";
    let sql = "SELECT sync_state::text FROM pg_catalog.pg_stat_replication WHERE pid = $1 AND sync_state <> 'async'";
    let process_id = i32::try_from(watched.process_id).unwrap_or(0);
    if let Some(row) = client.query_opt("looking at our walsender", sql, &[&process_id]).await? {
        return Ok(no_gap(
            ErrorReport::new("headwater has become a synchronous standby of the source")
                .detail(format!(
                    "Its sync_state is {}: every COMMIT there would wait for headwater.",
                    row.get::<&str>(0)?
                ))
                .hint("Name the real standbys in synchronous_standby_names instead of '*'."),
        ));
    }
    let ids = || watched.tables.iter().map(|table| table.id);
    let published = published_tables(client, &watched.publication, ids()).await?;
    if published.is_empty() {
        let sql = "SELECT EXISTS (SELECT FROM pg_catalog.pg_publication WHERE pubname = $1::text)";
        let exists: bool = client.query_one(doing, sql, &[&watched.publication.as_str()]).await?.get(0)?;
        if !exists {
            return Ok(gap(publication_gone(watched), GAP_OF_ALL.to_owned()));
        }
    }
    let missing = watched.tables.iter().filter(|table| !published.contains_key(&table.id));
    let missing: Vec<(&QualifiedName, RelationId)> = missing.map(|table| (&table.name, table.id)).collect();
    if !missing.is_empty() {
        let found = whereabouts(client, missing.into_iter()).await?;
        let found = unpublished(watched, found);
        if found != StreamHealth::Healthy {
            return Ok(found);
        }
    }
    let live = columns_of(client, ids()).await?;
    for table in &watched.tables {
        let Some(now) = published.get(&table.id) else { continue };
        let live = live.get(&table.id).map_or(&[] as &[String], Vec::as_slice);
        let leaves_out = now.columns.as_ref().is_some_and(|sent| !covers(sent, live, &table.columns));
        if now.row_filter != table.row_filter || leaves_out {
            // What was not sent meanwhile is missing, whatever is sent by now; the copy has what is sent then.
            let reason = format!(
                "publication {} sends other rows or columns of it than when the stream began",
                watched.publication
            );
            return Ok(StreamHealth::Changed { table: table.name.clone(), reason });
        }
    }
    Ok(StreamHealth::Healthy)
}

/// Why tables are in the publication no longer. DROP TABLE takes a table out; another one of its name is in it only where the
/// publication names no tables.
fn unpublished(watched: &Watched, tables: Vec<Whereabouts>) -> StreamHealth {
    if let Some(Whereabouts { table, id, bearer: Some(new), .. }) =
        tables.iter().find(|found| found.bearer.is_some_and(|bearer| bearer != found.id))
    {
        return StreamHealth::Replaced { table: table.clone(), old: *id, new: *new };
    }
    let (lost, left): (Vec<Whereabouts>, Vec<Whereabouts>) =
        tables.into_iter().partition(|found| found.name_now.as_ref() != Some(&found.table));
    if let Some(report) = lost_report(&lost, &watched.writes.tables) {
        return StreamHealth::Gone { report, gap: None };
    }
    let waiting: BTreeSet<RelationId> =
        watched.tables.iter().filter(|table| table.waits).map(|table| table.id).collect();
    let left = left.into_iter().filter(|table| !waiting.contains(&table.id));
    let tables: Vec<QualifiedName> = left.map(|left| left.table).collect();
    match tables.is_empty() {
        true => StreamHealth::Healthy,
        false => StreamHealth::Unpublished { publication: watched.publication.clone(), tables },
    }
}

/// The columns that tables have now, by name.
async fn columns_of(
    client: &SqlClient,
    tables: impl Iterator<Item = RelationId>,
) -> Result<HashMap<RelationId, Vec<String>>, SessionError> {
    let ids: Vec<u32> = tables.map(|table| table.0).collect();
    let sql = "SELECT a.attrelid, pg_catalog.array_agg(a.attname::text) FROM pg_catalog.pg_attribute a
               WHERE a.attrelid = ANY ($1::oid[]) AND a.attnum > 0 AND NOT a.attisdropped GROUP BY a.attrelid";
    let rows = client.query("looking at the columns of tables", sql, &[&ids]).await?;
    rows.iter().map(|row| Ok((RelationId(row.get(0)?), row.get(1)?))).collect()
}

/// Columns may be added, renamed and dropped: the stream itself reports that. But what is still there must be sent.
fn covers(now: &[String], live: &[String], then: &[String]) -> bool {
    then.iter().all(|column| now.contains(column) || !live.contains(column))
}

fn publication_gone(watched: &Watched) -> ErrorReport {
    let tables: Vec<String> = watched.tables.iter().map(|table| table.name.to_string()).collect();
    ErrorReport::new(format!("publication {} does not exist at the source any more", watched.publication))
        .detail("What was written since it was dropped is not sent.")
        .hint(format!(
            "Start headwater once with --resnapshot, which finds what is missing. Before that, run at the source as the owner of the \
             tables:\nCREATE PUBLICATION {} FOR TABLE {} WITH (publish_via_partition_root = true);",
            watched.publication,
            tables.join(", ")
        ))
}

//! The monitor: how far the source is, how the slot fares, whether the stream's ground still holds, and the heartbeat.
//!
//! Stands beside the ring, never in it, on sessions of its own that it opens again when they break. It lives as long
//! as the process, so lag goes on rising while the destination is down. What ends a stream it tells by [`Ground`];
//! everything else goes to telemetry. It looks, too, whether the rows of the tables may be others than the stream tells of
//! ([`super::fingerprints`]), since nothing comes of tables that nobody writes, or of their partitions.
//!
//! Bounds: each question has the session's; the questions are a few a second.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::attempt::HEARTBEAT_PREFIX;
use super::fingerprints::{Truncations, ask_for_comparison, look, table_called};
use super::prepare::Prepared;
use super::waits::tell_waits;
use crate::config::{Config, ConnectionSettings};
use crate::destination::{
    Bookkeeping, Writes, bookkeeping_owner_report, remember_fingerprints, remembered_fingerprints, renamed_report,
};
use crate::pg::{ErrorReport, Ident, Lsn, QualifiedName, RelationId, SlotName};
use crate::session::{SessionError, Sql, SqlClient, SqlState, SystemIdentification};
use crate::source::{Identities, Unidentified, find_slot};
use crate::telemetry::{SlotHealth, Telemetry};
use crate::transaction::Heartbeat;

const SOURCE_EVERY: Duration = Duration::from_secs(1);
const SLOT_EVERY: Duration = Duration::from_secs(5);
const PUBLICATION_EVERY: Duration = Duration::from_secs(10);
const DESTINATION_EVERY: Duration = Duration::from_secs(10);
/// A consumer that is connected and confirms nothing keeps the source from shutting down.
const DESTINATION_SILENT_MAX: Duration = Duration::from_secs(30);
/// Looking for code of others takes half a second where there are thousands of tables, and so a hundredth of the time at most.
const CODE_LOOK_SHARE: u32 = 99;
const QUERY_MAX: Duration = Duration::from_secs(10);

/// Whether what the stream stands on is still there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ground {
    /// It is.
    Firm,
    /// It is not, and an operator must act.
    Gone {
        /// What is to be done.
        report: ErrorReport,
        /// Changes were not sent: the copy has gaps now.
        gap: bool,
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
    /// The destination has not answered for so long.
    DestinationSilent(Duration),
    /// Code of others would run with our rights at the destination.
    ForeignCode(ErrorReport),
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
    writes: Writes,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct WatchedTable {
    name: QualifiedName,
    id: RelationId,
    columns: Vec<String>,
    row_filter: Option<String>,
}

impl Watched {
    pub(super) fn new(prepared: &Prepared, publication: Ident) -> Watched {
        let tables = prepared.source_catalog.tables.iter().map(|table| {
            let mut columns: Vec<String> = table.columns.iter().map(|column| column.as_str().to_owned()).collect();
            columns.sort();
            WatchedTable {
                name: table.definition.name(),
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

/// This process, as heartbeats name it: a random number, and times since it began.
#[derive(Clone, Copy, Debug)]
pub(super) struct Instance {
    id: u64,
    began: Instant,
}

impl Instance {
    fn heartbeat(&self) -> String {
        format!("{:016x} {}", self.id, self.began.elapsed().as_micros())
    }

    /// How long ago a heartbeat of this process was written.
    pub(super) fn since(&self, heartbeat: &Heartbeat) -> Option<Duration> {
        let text = std::str::from_utf8(&heartbeat.content).ok()?;
        let (id, micros) = text.split_once(' ')?;
        let ours = u64::from_str_radix(id, 16).ok()? == self.id;
        let sent = Duration::from_micros(micros.parse().ok()?);
        ours.then(|| self.began.elapsed().saturating_sub(sent))
    }
}

/// A handle on the running monitor. Dropping it ends it.
pub(super) struct Monitor {
    connection: Arc<Mutex<ConnectionSettings>>,
    watched: Arc<Mutex<Option<Watched>>>,
    ground: watch::Sender<Ground>,
    instance: Instance,
    truncations: ToldTruncations,
    tasks: Vec<JoinHandle<()>>,
}

/// The truncations of which the stream has told, for whoever compares fingerprints. All handles mean the same ones.
#[derive(Clone, Debug, Default)]
pub(super) struct ToldTruncations(Arc<Mutex<Truncations>>);

/// Kept of each table: a file bears the mark of its last truncation, and the stream may be further than the catalog was.
const TRUNCATIONS_KEPT: usize = 16;

impl ToldTruncations {
    /// The stream has told of one.
    pub(super) fn note(&self, table: RelationId, transaction: u32) {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let told = told.entry(table).or_default();
        told.push_back(transaction);
        if told.len() > TRUNCATIONS_KEPT {
            told.pop_front();
        }
    }

    fn now(&self) -> Truncations {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Monitor {
    /// Starts watching both servers.
    pub(super) fn start(config: Arc<Config>, telemetry: Arc<Telemetry>) -> Monitor {
        let watched = Arc::new(Mutex::new(None));
        let (ground, _) = watch::channel(Ground::Firm);
        let truncations = ToldTruncations::default();
        let instance = Instance { id: fastrand::u64(..), began: Instant::now() };
        if config.source.heartbeat_every.is_none() {
            telemetry.heartbeats_off(Some("source.heartbeat_every is off"));
        }
        let connection = Arc::new(Mutex::new(config.source.url.clone()));
        let source = SourceWatch {
            config: Arc::clone(&config),
            connection: Arc::clone(&connection),
            telemetry,
            watched: Arc::clone(&watched),
            ground: ground.clone(),
            instance,
            slot_rate: WalRate::default(),
            unidentified: Vec::new(),
            truncations: truncations.clone(),
            doubts: HashMap::new(),
            reached_xid: None,
        };
        let waits = tell_waits(Arc::clone(&config), Arc::clone(&source.telemetry));
        let destination = watch_destination(config, Arc::clone(&watched), ground.clone());
        let tasks = vec![tokio::spawn(source.run()), tokio::spawn(destination), tokio::spawn(waits)];
        Monitor { connection, watched, ground, instance, truncations, tasks }
    }

    pub(super) fn instance(&self) -> Instance {
        self.instance
    }

    /// From now on this is the source that is watched.
    pub(super) fn lead_to(&self, source: &ConnectionSettings) {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner).clone_from(source);
    }

    /// Where the stream's truncations are told.
    pub(super) fn truncations(&self) -> ToldTruncations {
        self.truncations.clone()
    }

    /// From now on a stream stands on this.
    pub(super) fn watch(&self, watched: Watched) -> watch::Receiver<Ground> {
        self.ground.send_replace(Ground::Firm);
        *self.watched.lock().unwrap_or_else(PoisonError::into_inner) = Some(watched);
        self.ground.subscribe()
    }

    /// The stream has ended.
    pub(super) fn unwatch(&self) {
        *self.watched.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

struct SourceWatch {
    config: Arc<Config>,
    /// Where the attempt's sessions lead to.
    connection: Arc<Mutex<ConnectionSettings>>,
    telemetry: Arc<Telemetry>,
    watched: Arc<Mutex<Option<Watched>>>,
    ground: watch::Sender<Ground>,
    instance: Instance,
    slot_rate: WalRate,
    /// Identities that were found wrong and told.
    unidentified: Vec<Unidentified>,
    truncations: ToldTruncations,
    /// Tables whose rows are in doubt, by the digest that made it so, and how far the source was then.
    doubts: HashMap<RelationId, (String, Lsn)>,
    /// Waits for the position.
    reached_xid: Option<ReachedXid>,
}

impl SourceWatch {
    async fn run(mut self) {
        loop {
            // Its failures are the ring's, which reports them; here they only mean: later.
            let _ = self.session().await;
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
        let mut publication_due = Instant::now() + PUBLICATION_EVERY;
        let mut heartbeat_due = Instant::now();
        loop {
            if self.connection() != connection {
                // Another of source.url's hosts is the source now.
                return Ok(());
            }
            let now = Instant::now();
            let in_recovery = self.ask_position(&client).await?;
            if now >= slot_due {
                let found = self.ask_slot(&client).await?;
                // One that is being made is shown as soon as it is there.
                slot_due = now + if found { SLOT_EVERY } else { SOURCE_EVERY };
            }
            let watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner).clone();
            if let Some(watched) = watched.filter(|_| now >= publication_due) {
                publication_due = now + PUBLICATION_EVERY;
                let mut ground = look_at_ground(&client, &watched).await?;
                if ground == Ground::Firm {
                    ground = self.look_at_tables(&client, &watched).await?;
                }
                if ground != Ground::Firm {
                    self.ground.send_replace(ground);
                }
                self.ask_identities(&client, &watched).await?;
            }
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

    /// Compares the tables with what is remembered of them.
    async fn look_at_tables(&mut self, client: &SqlClient, watched: &Watched) -> Result<Ground, SessionError> {
        let destination =
            Sql { connection: self.config.destination.url.clone(), purpose: "monitor", timeout: QUERY_MAX };
        // Whatever is wrong with the destination, the ring meets it too, and says so.
        let Ok(bookkeeping) = Bookkeeping::connect(&destination).await else { return Ok(Ground::Firm) };
        let Ok(remembered) = remembered_fingerprints(bookkeeping.client()).await else { return Ok(Ground::Firm) };
        let found = look(client, &watched.publication, &remembered, &self.truncations.now()).await?;
        if let Err(error) = remember_fingerprints(bookkeeping.client(), &found.harmless).await {
            tracing::warn!("what the source's catalog says of tables could not be stored: {error}");
        }
        if let Some((table, reason)) = found.differ.into_iter().next() {
            return Ok(Ground::Changed { table, reason });
        }
        if let Some((table, old, renamed)) = found.renamed.into_iter().next() {
            return Ok(match table_called(client, &table).await? {
                Some(new) => Ground::Replaced { table, old, new },
                None => {
                    let is_followed = self.config.tables.contains(&renamed);
                    Ground::Gone { report: renamed_report(&table, &renamed, is_followed), gap: false }
                }
            });
        }
        // A TRUNCATE that explains it may be on its way: what was seen first is judged once the stream has passed it.
        let seen = std::mem::take(&mut self.doubts);
        let Ok(position) = bookkeeping.position().await else { return Ok(Ground::Firm) };
        self.remember_xid(client, &bookkeeping, watched, position).await?;
        for doubt in found.doubt {
            let since = seen.get(&doubt.table).filter(|(digest, _)| *digest == doubt.digest).map(|(_, since)| *since);
            let since = since.unwrap_or(found.read_at);
            if position.is_none_or(|position| position < since) {
                self.doubts.insert(doubt.table, (doubt.digest, since));
            } else if let Err(error) = ask_for_comparison(&bookkeeping, &self.telemetry, &doubt).await {
                tracing::debug!("a comparison could not be asked for: {error}");
            }
        }
        Ok(Ground::Firm)
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

    /// Tells how far the source is; returns whether it is a standby.
    async fn ask_position(&self, client: &SqlClient) -> Result<bool, SessionError> {
        // pg_last_wal_replay_lsn() keeps its last value after a promotion, so it is asked on a standby only.
        let sql = "SELECT (CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn()
                           ELSE pg_catalog.pg_current_wal_flush_lsn() END)::text, pg_catalog.pg_is_in_recovery()";
        let row = client.query_one("asking how far the source is", sql, &[]).await?;
        if let Some(position) = row.get::<_, Option<&str>>(0).and_then(|text| text.parse::<Lsn>().ok()) {
            self.telemetry.source_at(position);
        }
        Ok(row.get(1))
    }

    /// Tells how the slot fares; returns whether there is one.
    async fn ask_slot(&mut self, client: &SqlClient) -> Result<bool, SessionError> {
        let slot = match find_slot(client, &self.config.source.slot).await {
            Ok(Some(slot)) => slot,
            Ok(None) => {
                self.telemetry.no_slot();
                return Ok(false);
            }
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

    /// Leaves may be added, and identities changed: says on which tables the source's own UPDATE and DELETE fail since, once
    /// for each, and ends a stream that would take rows for others.
    async fn ask_identities(&mut self, client: &SqlClient, watched: &Watched) -> Result<(), SessionError> {
        let ids = || watched.tables.iter().map(|table| table.id);
        let identities = Identities::read(client, &watched.publication, ids()).await?;
        let found: Vec<Unidentified> = identities.problems(true, ids()).collect();
        for new in found.iter().filter(|found| !self.unidentified.contains(found)) {
            match new.misleads_the_stream() {
                true => {
                    let _ = self.ground.send_replace(Ground::Gone { report: new.report.clone(), gap: false });
                }
                false => self.telemetry.warning("replica identity", new.report.lines()),
            }
        }
        self.unidentified = found.into_iter().filter(|found| !found.misleads_the_stream()).collect();
        Ok(())
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

/// The source had assigned all transaction IDs before `xid`, and its WAL up to `at` says so: commits and aborts write their records
/// before they count as ended.
struct ReachedXid {
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
        .get::<_, &str>(1)
        .parse()
        .map_err(|_| SessionError::protocol("asking for transaction IDs", "a malformed position"))?;
    Ok(Some(ReachedXid { xid: row.get(0), at, source: watched.source.clone() }))
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

/// Compares the publication, its tables and our own standing with what the stream was started on.
async fn look_at_ground(client: &SqlClient, watched: &Watched) -> Result<Ground, SessionError> {
    let gap = |report| Ground::Gone { report, gap: true };
    let no_gap = |report| Ground::Gone { report, gap: false };
    let doing = "looking at the publication";
    let sql = "SELECT sync_state::text FROM pg_catalog.pg_stat_replication WHERE pid = $1 AND sync_state <> 'async'";
    let process_id = i32::try_from(watched.process_id).unwrap_or(0);
    if let Some(row) = client.query_opt("looking at our walsender", sql, &[&process_id]).await? {
        return Ok(no_gap(
            ErrorReport::new("headwater has become a synchronous standby of the source")
                .detail(format!(
                    "Its sync_state is {}: every COMMIT there would wait for headwater.",
                    row.get::<_, &str>(0)
                ))
                .hint("Name the real standbys in synchronous_standby_names instead of '*'."),
        ));
    }
    let sql = "SELECT t.schemaname::text, t.tablename::text, c.oid,
                      ARRAY(SELECT pg_catalog.jsonb_array_elements_text(pg_catalog.to_jsonb(t) -> 'attnames') ORDER BY 1),
                      pg_catalog.to_jsonb(t) ->> 'rowfilter', pg_catalog.to_jsonb(t) ? 'attnames',
                      ARRAY(SELECT a.attname::text FROM pg_catalog.pg_attribute a
                            WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped)
               FROM pg_catalog.pg_publication_tables t
               JOIN pg_catalog.pg_namespace n ON n.nspname = t.schemaname
               JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = t.tablename
               WHERE t.pubname = $1::text";
    let rows = client.query(doing, sql, &[&watched.publication.as_str()]).await?;
    if rows.is_empty() {
        let sql = "SELECT EXISTS (SELECT FROM pg_catalog.pg_publication WHERE pubname = $1::text)";
        let exists: bool = client.query_one(doing, sql, &[&watched.publication.as_str()]).await?.get(0);
        if !exists {
            return Ok(gap(publication_gone(watched)));
        }
    }
    for table in &watched.tables {
        let row = rows.iter().find(|row| row.get::<_, u32>(2) == table.id.0);
        let Some(row) = row else {
            // DROP TABLE takes a table out of a publication; one that is created anew is in it only where it names no tables.
            let sql = "SELECT pg_catalog.to_regclass($1)::oid";
            let now: Option<u32> = client.query_one(doing, sql, &[&table.name.sql()]).await?.get(0);
            return Ok(match now {
                Some(new) if new != table.id.0 => {
                    Ground::Replaced { table: table.name.clone(), old: table.id, new: RelationId(new) }
                }
                Some(_) | None => gap(table_left(watched, table)),
            });
        };
        let lists_columns: bool = row.get(5);
        let row_filter: Option<String> = row.get(4);
        let (sent, live): (Vec<String>, Vec<String>) = (row.get(3), row.get(6));
        if row_filter != table.row_filter || (lists_columns && !covers(&sent, &live, &table.columns)) {
            return Ok(gap(ErrorReport::new(format!(
                "publication {} sends other rows or columns of table {} than when the stream began",
                watched.publication, table.name
            ))
            .hint("Put it back, or start once with --resnapshot to follow what it sends now.")));
        }
    }
    Ok(Ground::Firm)
}

/// Columns may be added, renamed and dropped: the stream tells of that itself. But what is still there must be sent.
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

fn table_left(watched: &Watched, table: &WatchedTable) -> ErrorReport {
    ErrorReport::new(format!("table {} has left publication {} at the source", table.name, watched.publication))
        .detail("What is written to it is not sent.")
        .hint(format!(
            "Start headwater once with --resnapshot, which finds what is missing. Before that, run at the source as its owner:\n\
             ALTER PUBLICATION {} ADD TABLE {};",
            watched.publication, table.name
        ))
}

async fn watch_destination(config: Arc<Config>, watched: Arc<Mutex<Option<Watched>>>, ground: watch::Sender<Ground>) {
    let sql = Sql { connection: config.destination.url.clone(), purpose: "monitor", timeout: QUERY_MAX };
    let mut client: Option<SqlClient> = None;
    let mut answered_at = Instant::now();
    let mut code_due = Instant::now();
    loop {
        tokio::time::sleep(DESTINATION_EVERY).await;
        let watched = watched.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(Watched { writes, .. }) = watched else {
            client = None;
            answered_at = Instant::now();
            continue;
        };
        if client.is_none() {
            client = sql.connect().await.ok();
        }
        let alive = match &client {
            Some(client) => client.query("asking for a sign of life", "SELECT 1", &[]).await.is_ok(),
            None => false,
        };
        if alive {
            answered_at = Instant::now();
        } else {
            client = None;
        }
        if let Some(asked) = client.take_if(|_| code_due <= Instant::now()) {
            let asked_at = Instant::now();
            let looked = match bookkeeping_owner_report(&asked, &writes.trusted_roles).await {
                Ok(None) => writes.foreign_code_report(&asked).await,
                found => found,
            };
            code_due = Instant::now() + CODE_LOOK_SHARE * asked_at.elapsed();
            match looked {
                Ok(None) => client = Some(asked),
                Ok(Some(report)) => {
                    client = Some(asked);
                    ground.send_replace(Ground::ForeignCode(report));
                }
                // A slow answer to this says nothing of the destination, which has just given a sign of life.
                Err(error) => tracing::warn!("cannot look for code of others at the destination: {error}"),
            }
        }
        if answered_at.elapsed() >= DESTINATION_SILENT_MAX {
            ground.send_replace(Ground::DestinationSilent(DESTINATION_SILENT_MAX));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_heartbeat_of_another_process_is_not_ours() {
        let ours = Instance { id: 7, began: Instant::now() };
        let other = Instance { id: 8, began: Instant::now() };
        let heartbeat = Heartbeat { content: ours.heartbeat().into_bytes() };
        assert!(ours.since(&heartbeat).is_some());
        assert!(other.since(&heartbeat).is_none());
        assert!(ours.since(&Heartbeat { content: b"rubbish".to_vec() }).is_none());
    }

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

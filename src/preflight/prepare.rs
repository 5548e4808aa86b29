//! Both ends, checked and compared, before anything is changed.
//!
//! First part of an attempt. In come the bookkeeping and the settings; out goes a [`Prepared`]: open sessions, both
//! catalogs, the format in which values travel, and what to do: stream from a position, or snapshot first. Every
//! refusal is a report that an operator can act on; the destination is written to by nobody here, the source only by
//! creating a publication that is missing.

use std::collections::{BTreeSet, HashMap};

use super::cascades;
use super::collations;
use super::fingerprints::{Look, Truncations, look};
use super::history::{Course, FoundSource, of_copy, of_stream, stored_history};
use super::replication_session::connect_replication;
use super::unconfigured::{Published, split, unfollow};
use super::whereabouts::read_catalog;
use crate::catalog::fit::{self, End, Transfer};
use crate::catalog::schema::Types;
use crate::catalog::shape::Shape;
use crate::config::{Config, SchemaChanges};
use crate::destination::{
    Bookkeeping, BoundAnew, Catalog, DestinationError, DestinationServer, RememberedTable, SourceDatabaseRecord,
    Stream, StreamState, TableRecord, TableState, TableToCount, Writes, misfit_report, named_collations, named_types,
    position_missing_report, refuse_other_tables, remember_fingerprints, remembered_fingerprints, types_of,
};
use crate::error_policy::Fault;
use crate::pg::{
    ErrorReport, Ident, Lsn, QualifiedName, RelationId, Timeline, TypeId, counted, shell_word, toml_string,
};
use crate::preflight::addresses::Addresses;
use crate::preflight::attribute_names::{AllowedChanges, follow_types};
use crate::preflight::generated_columns::computed_otherwise;
use crate::preflight::missing_objects::{lacking, to_create};
use crate::preflight::resync_requests::ResyncRequests;
use crate::preflight::suspended_tables::suspended;
use crate::session::{Clients, ReplicationSession, SqlClient, SystemIdentification, describe_types, refuse_endless};
use crate::source::{
    Gap, Notice, Relied, Slot, SourceCatalog, SourceDatabase, SourceError, SourceServer, SourceTable, UnchangedTables,
    VisibleTransactions, ensure_publication, find_slot, gap_report, release_slot, same_database, slot_unknown_report,
};
use crate::telemetry::Telemetry;
use crate::transaction::TransactionError;

/// What to do, now that both ends are known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    /// Copy everything first.
    Snapshot {
        /// A stream exists: the copy uses a temporary slot, and the stream's slot stays.
        live: bool,
    },
    /// Stream on.
    Stream {
        /// From here.
        position: Lsn,
    },
}

/// Both ends.
pub(crate) struct Prepared {
    pub(crate) source: SqlClient,
    pub(crate) server: SourceServer,
    pub(crate) replication: ReplicationSession,
    pub(crate) identification: SystemIdentification,
    pub(crate) database: SourceDatabase,
    pub(crate) source_catalog: SourceCatalog,
    pub(crate) destination_catalog: Catalog,
    pub(crate) slot: Option<Slot>,
    pub(crate) transfer: Transfer,
    pub(crate) stream: Option<Stream>,
    pub(crate) start: Start,
    /// Configured tables that are not followed yet.
    pub(crate) added: Vec<QualifiedName>,
    /// Tables whose rows may be others than the stream has told of, and why.
    pub(crate) changed: Vec<(QualifiedName, String)>,
    /// Tables of which the catalog says what it has said since a moment that the stream has passed: also when they were described.
    pub(crate) unchanged: Option<UnchangedTables>,
    /// Tables that are suspended until a copy is published.
    pub(crate) suspended: Vec<QualifiedName>,
    /// What is written, and whose code may run when it is.
    pub(crate) writes: Writes,
}

/// As the bookkeeping remembers it.
pub(crate) fn record_of(database: &SourceDatabase) -> SourceDatabaseRecord<'_> {
    let SourceDatabase { name, id, server_version, .. } = database;
    SourceDatabaseRecord { name, id: *id, server_version: *server_version }
}

impl Prepared {
    /// The configured tables, by their names.
    pub(crate) fn tables(&self) -> impl Iterator<Item = QualifiedName> {
        self.source_catalog.tables.iter().map(|table| table.definition.name())
    }

    /// Takes in what is remembered of the tables: the catalog may be ahead of the stream, which then still brings columns of
    /// types that no table has any more. Those are followed, too; returns what was done, for the log.
    pub(crate) async fn remember(
        &mut self,
        shapes: &HashMap<RelationId, Shape>,
        destination: &SqlClient,
        follow: bool,
    ) -> Result<Vec<String>, Fault> {
        let mut told = Vec::new();
        let types = &mut self.source_catalog.types;
        let columns = shapes.values().flat_map(|shape| &shape.columns);
        let gone: BTreeSet<TypeId> =
            columns.map(|column| column.type_id).filter(|id| !types.contains_key(id)).collect();
        if !gone.is_empty() {
            let gone: Vec<TypeId> = gone.into_iter().collect();
            types.extend(describe_types(&self.source, &gone).await.map_err(SourceError::Session)?);
            refuse_endless(types).map_err(SourceError::Session)?;
            let clients = Clients { source: &self.source, destination };
            let allowed = AllowedChanges { renamed_labels: self.changed.is_empty(), follow };
            told = follow_types(clients, types, &mut self.destination_catalog, allowed).await?;
        }
        let here = |shape: &Shape| self.destination_catalog.table(&shape.name);
        for (shape, table) in shapes.values().filter_map(|shape| Some((shape, here(shape)?))) {
            let end = End { table, types: &self.destination_catalog.types };
            let format = fit::remembered_format(shape, &self.source_catalog.types, end);
            self.transfer = self.transfer.max(format);
        }
        Ok(told)
    }

    /// Records the source's timeline and database as they are now: both continue what was recorded.
    pub(crate) async fn remember_source(
        &self,
        bookkeeping: &Bookkeeping,
        telemetry: &Telemetry,
    ) -> Result<(), DestinationError> {
        let Some(stream) = &self.stream else { return Ok(()) };
        let (now, database) = (&self.identification.timeline, &self.database);
        // A history that was known is not forgotten because the server has lost its file.
        let remembered = stream.timeline.history.as_ref().filter(|_| stream.timeline.number == now.number);
        let timeline = Timeline { number: now.number, history: now.history.as_ref().or(remembered).cloned() };
        let same_database = stream.source_database == database.name && stream.source_database_id == Some(database.id);
        let same_version = stream.source_version == Some(database.server_version);
        if stream.timeline == timeline && same_database && same_version {
            return Ok(());
        }
        if stream.source_database != database.name {
            let text = format!(
                "database {} at the source is called {} now: it is the same one",
                stream.source_database, database.name
            );
            telemetry.event("source", text);
        }
        if stream.timeline.number != timeline.number {
            let text = format!(
                "the source is on timeline {} now, at {}: it continues timeline {} from the stored position",
                timeline.number, self.identification.host, stream.timeline.number
            );
            telemetry.event("source", text);
        }
        bookkeeping.set_source(&timeline, record_of(database)).await
    }
}

/// Checks both ends and decides what to do, with the snapshots in mind that are asked for.
pub(crate) async fn prepare(
    config: &Config,
    addresses: &Addresses,
    bookkeeping: &Bookkeeping,
    telemetry: &Telemetry,
    asked: &ResyncRequests,
) -> Result<Prepared, Fault> {
    let stream = bookkeeping.stream().await?;
    let live = matches!(stream, Some(Stream { state: StreamState::Live { .. }, .. }));
    let preparing = Preparing { config, addresses, bookkeeping, telemetry, asked, stream: stream.as_ref(), live };
    // Before the tables are described: what is the same before and behind that was the same meanwhile.
    let remembered = if live { remembered_fingerprints(bookkeeping.client()).await? } else { HashMap::new() };
    // Neither server waits for the other; what the source says comes first.
    let (source, catalog) = tokio::join!(preparing.open_source(), preparing.read_destination());
    let mut source = source?;
    preparing.check_bookkeeping(&source)?;
    let mut destination = preparing.check_destination(&source, catalog?).await?;
    let known = if live { bookkeeping.tables().await? } else { Vec::new() };
    let (known, unconfigured) = split(known, &config.tables);
    let Beginning { start, added } = preparing.decide(&source, &destination.catalog, &known).await?;
    let copies = matches!(start, Start::Snapshot { .. });
    preparing.publish(&mut source, &known, copies).await?;
    if (copies || !added.is_empty())
        && let Some(report) =
            computed_otherwise(bookkeeping.client(), &source.catalog, &destination.catalog).await?.into_iter().next()
    {
        return Err(Fault::Refused(report));
    }
    if (copies || !added.is_empty())
        && let Some(report) = lacking(&source.client, bookkeeping.client(), &source.catalog, &destination.catalog)
            .await?
            .into_iter()
            .next()
    {
        return Err(Fault::Refused(report));
    }
    preparing.unfollow(&source, &unconfigured).await?;
    let (mut changed, mut unchanged) = (Vec::new(), None);
    let transfer = if copies {
        // The copy's readers and locks depend on how large the tables are, and it locks them all.
        source.catalog.measure(&source.client).await?;
        check_fit(&source.catalog, &destination.catalog)?
    } else {
        let publication = &config.source.publication;
        let found = changed_tables(&source.client, bookkeeping, publication, &remembered).await?;
        changed = found.changed;
        unchanged = Some(found.unchanged);
        preparing.follow_types(&source, &mut destination.catalog, changed.is_empty()).await?;
        // The stream reports misfits relation by relation: the source may be ahead of it.
        stream_format(&source.catalog, &destination.catalog)
    };
    Ok(Prepared {
        source: source.client,
        server: source.server,
        replication: source.replication,
        identification: source.identification,
        database: source.database,
        source_catalog: source.catalog,
        destination_catalog: destination.catalog,
        slot: source.slot,
        transfer,
        stream,
        start,
        added,
        changed,
        unchanged,
        suspended: suspended(&known),
        writes: destination.writes,
    })
}

/// What preparing goes by.
struct Preparing<'a> {
    config: &'a Config,
    addresses: &'a Addresses,
    bookkeeping: &'a Bookkeeping,
    telemetry: &'a Telemetry,
    asked: &'a ResyncRequests,
    /// As the bookkeeping has it.
    stream: Option<&'a Stream>,
    /// A snapshot was published.
    live: bool,
}

/// The source, as it was found.
struct OpenSource {
    client: SqlClient,
    server: SourceServer,
    replication: ReplicationSession,
    identification: SystemIdentification,
    database: SourceDatabase,
    catalog: SourceCatalog,
    slot: Option<Slot>,
}

/// The destination, before anything of it is checked against the source.
struct ReadDestination {
    server: DestinationServer,
    catalog: Catalog,
}

/// The destination, as it was found.
struct FoundDestination {
    catalog: Catalog,
    writes: Writes,
}

/// How the stream is to begin.
struct Beginning {
    start: Start,
    /// Configured tables that are not followed yet.
    added: Vec<QualifiedName>,
}

impl Beginning {
    fn copy(live: bool) -> Beginning {
        Beginning { start: Start::Snapshot { live }, added: Vec::new() }
    }
}

impl Preparing<'_> {
    /// Opens both sessions to the source, and reads what it has.
    async fn open_source(&self) -> Result<OpenSource, Fault> {
        let config = self.config;
        let client = self.addresses.source.connect().await.map_err(SourceError::Session)?;
        let lock_timeout = format!("SET lock_timeout = {}", config.destination.lock_timeout.as_millis());
        client.statement("setting up a session", &lock_timeout).await.map_err(SourceError::Session)?;
        let slot = find_slot(&client, &config.source.slot).await?;
        let server = SourceServer::check(&client, slot.is_none() || self.asked.all || self.asked.lost).await?;
        let application_name = format!("{} {} streaming", config.source.url.application_name, config.source.slot);
        server.check_not_synchronous(&application_name)?;
        let catalog = read_catalog(config, self.addresses, &client, &config.tables).await?;
        let mut replication = connect_replication(config, "streaming").await?;
        let identification = replication.identify_system().await.map_err(SourceError::Session)?;
        let (from, to) = (&config.source.url, &config.destination.url);
        let same = same_database(&identification, self.bookkeeping.client(), from, to).await;
        if let Some(report) = same.map_err(DestinationError::Session)? {
            return Err(SourceError::Refused(report).into());
        }
        let remembered = self.stream.map_or("", |stream| stream.source_database.as_str());
        let database = SourceDatabase::read(&client, remembered).await?;
        Ok(OpenSource { client, server, replication, identification, database, catalog, slot })
    }

    /// The configuration and the slot must be those of the stream that is known.
    fn check_bookkeeping(&self, source: &OpenSource) -> Result<(), Fault> {
        match (self.stream, &source.slot) {
            (Some(stream), _) => check_configured(self.config, stream),
            (None, Some(slot)) => Err(Fault::Refused(slot_unknown_report(slot))),
            (None, None) => Ok(()),
        }
    }

    /// Reads what the destination has.
    async fn read_destination(&self) -> Result<ReadDestination, Fault> {
        let (tables, client) = (&self.config.tables, self.bookkeeping.client());
        let server = DestinationServer::check(client, tables).await?;
        Ok(ReadDestination { server, catalog: Catalog::read(client, tables).await? })
    }

    /// Refuses what may run others' code at the destination or lose rows.
    async fn check_destination(&self, source: &OpenSource, read: ReadDestination) -> Result<FoundDestination, Fault> {
        let (config, client) = (self.config, self.bookkeeping.client());
        let ReadDestination { server, mut catalog } = read;
        let writes = writes(config, &source.catalog, &catalog, !server.replica_role)?;
        writes.refuse_foreign_code(client).await?;
        cascades::refuse(&source.client, client, &writes).await?;
        catalog.learn_types(client, &source.catalog.types).await?;
        let clients = Clients { source: &source.client, destination: client };
        collations::refuse(clients, &source.catalog, &catalog).await?;
        // A first copy that failed has left the tables as they were.
        if !self.stream.is_some_and(|stream| self.live || stream.agreed) {
            check_empty(client, catalog.tables.keys().filter(|name| !self.asked.covers(name))).await?;
        }
        Ok(FoundDestination { catalog, writes })
    }

    /// Whether to stream on from the stored position, or to copy all tables first.
    async fn decide(
        &self,
        source: &OpenSource,
        destination: &Catalog,
        known: &[TableRecord],
    ) -> Result<Beginning, Fault> {
        let (asked, client) = (self.asked, self.bookkeeping.client());
        let found = source.found();
        let position = bookkeeping_position(self.bookkeeping, self.live).await?;
        // Once it is known that the bookkeeping is whole.
        if position.is_some() {
            self.bind_tables().await?;
        }
        let (Some(stream), Some(position)) = (self.stream.filter(|_| self.live), position) else {
            // Nobody but an operator takes it away: what is here now is of an unknown moment.
            if self.live && !asked.all {
                return Err(Fault::Refused(position_missing_report()));
            }
            of_copy(found, self.stream, asked)?;
            return Ok(Beginning::copy(false));
        };
        match of_stream(found, &stored_history(stream, position), asked, self.config.on_slot_lost)? {
            Course::Stream => {
                refuse_other_tables(client, false).await?;
                let added = check_tables(known, &source.catalog, asked)?;
                let existing = added.iter().filter(|name| destination.table(name).is_some());
                check_added_empty(client, existing.filter(|name| !asked.covers(name))).await?;
                Ok(Beginning { start: Start::Stream { position }, added })
            }
            Course::Copy => {
                refuse_other_tables(client, true).await?;
                Ok(Beginning::copy(true))
            }
            Course::StartOver => {
                refuse_other_tables(client, true).await?;
                // Tables that were never followed may hold somebody else's rows.
                let followed: BTreeSet<&QualifiedName> = known.iter().map(|table| &table.name).collect();
                let others = destination.tables.keys().filter(|name| !followed.contains(name));
                check_empty(client, others.filter(|name| !asked.covers(name))).await?;
                Ok(Beginning::copy(false))
            }
        }
    }

    /// Takes tables for followed as they are now, where their OIDs say nothing.
    async fn bind_tables(&self) -> Result<(), Fault> {
        if let Some(BoundAnew { tables, is_restored }) = self.bookkeeping.bind_tables().await? {
            let why = match is_restored {
                true => "the destination was restored from a dump",
                false => "an earlier version has not compared the OIDs of tables at the destination",
            };
            let tables = if tables == 1 { "1 table is".to_owned() } else { format!("{tables} tables are") };
            self.telemetry.event("tables", format!("{why}: {tables} taken for followed as they are now"));
        }
        Ok(())
    }

    /// Makes sure that the publication sends what is needed. A table that has missed something is reported and remembered.
    async fn publish(&self, source: &mut OpenSource, known: &[TableRecord], copies: bool) -> Result<(), Fault> {
        let publication = &self.config.source.publication;
        // What is copied anyway may have missed something; what is another table now was never published.
        let relied = if copies { Relied::default() } else { relied(known, &source.catalog) };
        if self.live
            && !copies
            && let Some(gap) = self.stream.and_then(|stream| stream.gap.as_deref())
        {
            let report = gap_report(publication, &Gap::Before(gap.to_owned()), &source.catalog);
            return Err(SourceError::Gap { report, remembered: gap.to_owned() }.into());
        }
        match ensure_publication(&source.client, publication, &mut source.catalog, &relied).await {
            Ok(told) => told.iter().for_each(|told| match told {
                Notice::SendsLess(text) => self.telemetry.warning("publication", text),
                Notice::Changed(_) | Notice::Unidentified(_) => self.telemetry.event("publication", told.text()),
            }),
            Err(SourceError::Gap { report, remembered }) => {
                self.bookkeeping.set_gap(&remembered).await?;
                return Err(SourceError::Gap { report, remembered }.into());
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Follows tables no longer that are not configured any more.
    async fn unfollow(&self, source: &OpenSource, unconfigured: &[TableRecord]) -> Result<(), Fault> {
        // OIDs of another cluster mean nothing.
        let is_same_cluster =
            self.stream.is_some_and(|stream| stream.system_identifier == source.identification.system_identifier);
        let configured: Vec<RelationId> =
            source.catalog.tables.iter().map(|table| table.definition.relation_id()).collect();
        let published = Published {
            source: is_same_cluster.then_some(&source.client),
            publication: &self.config.source.publication,
            slot: &self.config.source.slot,
            configured: &configured,
        };
        unfollow(self.bookkeeping, self.telemetry, unconfigured, published).await
    }

    async fn follow_types(
        &self,
        source: &OpenSource,
        destination: &mut Catalog,
        may_rename: bool,
    ) -> Result<(), Fault> {
        let clients = Clients { source: &source.client, destination: self.bookkeeping.client() };
        let follow = self.config.schema_changes == SchemaChanges::Follow;
        let allowed = AllowedChanges { renamed_labels: may_rename, follow };
        for told in follow_types(clients, &source.catalog.types, destination, allowed).await? {
            self.telemetry.event("schema", told);
        }
        Ok(())
    }
}

impl OpenSource {
    fn found(&self) -> FoundSource<'_> {
        FoundSource { identification: &self.identification, database: &self.database, slot: self.slot.as_ref() }
    }
}

/// The tables that a stream brings changes of, so that they may miss none.
fn relied(known: &[TableRecord], source: &SourceCatalog) -> Relied {
    let others: BTreeSet<&QualifiedName> = replaced(known, source).map(|(table, _)| &table.name).collect();
    Relied {
        live: live_names(known).filter(|name| !others.contains(name)).cloned().collect(),
        suspended: suspended(known).into_iter().collect(),
    }
}

/// What has become of the tables since they were looked at last.
struct ChangedTables {
    /// Their rows may be others, and why.
    changed: Vec<(QualifiedName, String)>,
    unchanged: UnchangedTables,
}

/// The tables that were changed at the source since they were looked at last, so that their rows may be others, and why. The
/// stream may not have come to the change yet: a copy has it all the same.
async fn changed_tables(
    source: &SqlClient,
    bookkeeping: &Bookkeeping,
    publication: &Ident,
    remembered: &HashMap<RelationId, RememberedTable>,
) -> Result<ChangedTables, Fault> {
    // An earlier version may have made it, with less in it.
    bookkeeping.ensure().await?;
    let visible = VisibleTransactions::read(source).await.map_err(SourceError::Session)?;
    let found = look(source, publication, remembered, &Truncations::default()).await;
    let Look { differ, harmless, same, .. } = found.map_err(SourceError::Session)?;
    // A label must be known by its OID before a row can have it at the destination.
    remember_fingerprints(bookkeeping.client(), &harmless).await?;
    let unchanged = UnchangedTables { digests: same.into_iter().collect(), visible, publication: publication.clone() };
    Ok(ChangedTables { changed: differ, unchanged })
}

async fn bookkeeping_position(bookkeeping: &Bookkeeping, live: bool) -> Result<Option<Lsn>, DestinationError> {
    if live { bookkeeping.position().await } else { Ok(None) }
}

/// What is written of these tables at the destination.
/// # Errors
/// [`Fault`]: the source has not said what a type is.
pub(crate) fn writes(
    config: &Config,
    source: &SourceCatalog,
    destination: &Catalog,
    foreign_keys_act: bool,
) -> Result<Writes, Fault> {
    let existing = |table: &SourceTable| destination.table(&table.definition.name());
    let columns = || source.tables.iter().flat_map(|table| to_create(table, existing(table)));
    let types = types_of(&source.types, columns())?;
    let new = source.tables.iter().filter(|table| existing(table).is_none());
    let indexes = new.flat_map(|table| &table.definition.indexes);
    let supplied = source.tables.iter().flat_map(|table| {
        let name = table.definition.name();
        table.columns.iter().map(move |column| (name.clone(), column.clone()))
    });
    Ok(Writes {
        tables: config.tables.clone(),
        supplied: supplied.collect(),
        types: named_types(&types),
        collations: named_collations(columns(), indexes, &types),
        foreign_keys_act,
        trusted_roles: config.destination.trusted_roles.clone(),
        names_owners: config.destination.names_owners(),
    })
}

/// The configuration must name the stream that feeds this destination.
pub(crate) fn check_configured(config: &Config, stream: &Stream) -> Result<(), Fault> {
    let differs = |key: &str, stored: &str, configured: &str| {
        Fault::Refused(
            ErrorReport::new(format!(
                "this destination is fed through {key} {stored}, but the configuration names {configured}"
            ))
            .hint(format!(
                "Set source.{key} = {}; or, to feed it again, run headwater teardown with the old configuration first.",
                toml_string(stored)
            )),
        )
    };
    if stream.slot != config.source.slot {
        return Err(differs("slot", stream.slot.as_str(), config.source.slot.as_str()));
    }
    if stream.publication != config.source.publication {
        return Err(differs("publication", stream.publication.as_str(), config.source.publication.as_str()));
    }
    Ok(())
}

/// Nobody's rows are deleted by a typing error: tables with rows need the operator's word.
pub(crate) async fn check_empty(client: &SqlClient, tables: impl Iterator<Item = &QualifiedName>) -> Result<(), Fault> {
    match rows_found(client, tables).await?.as_slice() {
        [] => Ok(()),
        found => Err(rows_report(found, "--resnapshot")),
    }
}

/// The same for tables that are added to a live stream: the word is asked for them alone.
pub(crate) async fn check_added_empty(
    client: &SqlClient,
    tables: impl Iterator<Item = &QualifiedName>,
) -> Result<(), Fault> {
    let found = rows_found(client, tables).await?;
    if found.is_empty() {
        return Ok(());
    }
    let names: Vec<String> = found.iter().map(|(name, _)| name.to_string()).collect();
    Err(rows_report(&found, &format!("--resnapshot={}", shell_word(&names.join(",")))))
}

/// The tables that have rows, and how many.
async fn rows_found<'a>(
    client: &SqlClient,
    tables: impl Iterator<Item = &'a QualifiedName>,
) -> Result<Vec<(&'a QualifiedName, String)>, Fault> {
    const COUNTED_MAX: i64 = 100_000;
    let tables: Vec<TableToCount<'_>> = tables.map(|name| TableToCount { name, most: COUNTED_MAX }).collect();
    let counts = Catalog::count_rows_of_each(client, &tables).await?;
    let mut found = Vec::new();
    for (TableToCount { name, .. }, rows) in tables.into_iter().zip(counts) {
        match rows {
            0 => {}
            rows if rows < COUNTED_MAX => found.push((name, counted(rows, "row"))),
            rows => found.push((name, format!("about {rows} rows"))),
        }
    }
    Ok(found)
}

fn rows_report(found: &[(&QualifiedName, String)], flag: &str) -> Fault {
    let found: Vec<String> = found.iter().map(|(name, rows)| format!("{name} has {rows}")).collect();
    Fault::Refused(
        ErrorReport::new("destination tables already have rows")
            .detail(format!("Table {}.", found.join("; table ")))
            .hint(format!(
                "If they are to become equal to the source's, start once with {flag}: rows that the source lacks are then \
                 deleted, differing ones updated, missing ones inserted."
            )),
    )
}

const TEXT_HINT: &str = "Take out of the publication the columns that keep values from travelling in binary (headwater check names \
     them), or these columns; or bring both servers to the same side of PostgreSQL 15.";

/// Compares every table that exists at the destination, and decides the format for the whole stream.
pub(crate) fn check_fit(source: &SourceCatalog, destination: &Catalog) -> Result<Transfer, Fault> {
    let mut transfer = Transfer::Binary;
    let mut reports: Vec<ErrorReport> = Vec::new();
    let created = fit::as_created(&source.types, &destination.types);
    for table in &source.tables {
        let (from, to) = to_compare(table, source, destination, &created);
        match fit::table_fit(from, &table.published(), to) {
            Ok(format) => transfer = transfer.max(format),
            Err(misfits) => reports.push(misfit_report(&table.definition.name(), &misfits)),
        }
    }
    if reports.is_empty() && transfer == Transfer::Text {
        let misfits = |table: &SourceTable| {
            let (from, to) = to_compare(table, source, destination, &created);
            let misfits = fit::text_misfits(from, &table.published(), to);
            (!misfits.is_empty()).then(|| misfit_report(&table.definition.name(), &misfits).hint(TEXT_HINT))
        };
        reports.extend(source.tables.iter().filter_map(misfits));
    }
    match reports.as_slice() {
        [] => Ok(transfer),
        [report] => Err(Fault::Refused(report.clone())),
        reports => {
            let details: Vec<String> = reports
                .iter()
                .map(|report| format!("{}: {}", report.message, report.detail.as_deref().unwrap_or_default()))
                .collect();
            let text = format!("{} tables at the destination do not fit the source", reports.len());
            Err(Fault::Refused(ErrorReport::new(text).detail(details.join("\n")).hint(joined_hints(reports))))
        }
    }
}

/// A table at both ends; one that is missing will be created, with these types.
pub(crate) fn to_compare<'a>(
    table: &'a SourceTable,
    source: &'a SourceCatalog,
    destination: &'a Catalog,
    created: &'a Types,
) -> (End<'a>, End<'a>) {
    let from = End { table: &table.definition, types: &source.types };
    let to = match destination.table(&table.definition.name()) {
        Some(existing) => End { table: existing, types: &destination.types },
        None => End { table: &table.definition, types: created },
    };
    (from, to)
}

/// One hint of several: all statements after one line of words, so that they can be run as they stand.
fn joined_hints(reports: &[ErrorReport]) -> String {
    let hints = reports.iter().filter_map(|report| report.hint.as_deref());
    let (with, without): (Vec<&str>, Vec<&str>) = hints.partition(|hint| hint.contains('\n'));
    let words = with.first().and_then(|hint| hint.lines().next()).unwrap_or_default();
    // A statement is one line. One that fixes a type of several tables runs once.
    let mut statements: Vec<&str> = Vec::new();
    for statement in with.iter().flat_map(|hint| hint.lines().skip(1)) {
        if !statements.contains(&statement) {
            statements.push(statement);
        }
    }
    let words = without.first().map_or(words.to_owned(), |other| format!("{other} {words}"));
    std::iter::once(words.trim_end()).chain(statements).collect::<Vec<_>>().join("\n")
}

fn stream_format(source: &SourceCatalog, destination: &Catalog) -> Transfer {
    let created = fit::as_created(&source.types, &destination.types);
    let formats = source.tables.iter().map(|table| table_format(table, source, destination, &created));
    formats.max().unwrap_or(Transfer::Binary)
}

/// The format in which a table's own values can travel; a table that is missing will be created, with these types.
pub(crate) fn table_format(
    table: &SourceTable,
    source: &SourceCatalog,
    destination: &Catalog,
    created: &Types,
) -> Transfer {
    let (from, to) = to_compare(table, source, destination, created);
    fit::stream_format(from, &table.published(), to, created)
}

/// The tables that are followed.
pub(crate) fn live_names(known: &[TableRecord]) -> impl Iterator<Item = &QualifiedName> {
    known.iter().filter(|table| table.state != TableState::Staging).map(|table| &table.name)
}

/// The followed tables must be the same as before, unless they are to be copied again. Returns the tables that are configured but not
/// followed yet.
pub(crate) fn check_tables(
    followed: &[TableRecord],
    source: &SourceCatalog,
    asked: &ResyncRequests,
) -> Result<Vec<QualifiedName>, Fault> {
    let configured: BTreeSet<QualifiedName> = source.tables.iter().map(|table| table.definition.name()).collect();
    let known: BTreeSet<QualifiedName> = followed.iter().map(|table| table.name.clone()).collect();
    match replaced(followed, source).find(|(table, _)| !asked.covers(&table.name)) {
        Some((_, error)) => Err(SourceError::Transaction(error).into()),
        None => Ok(configured.difference(&known).cloned().collect()),
    }
}

/// The followed tables whose names are another table's at the source now.
pub(crate) fn replaced<'a>(
    followed: &'a [TableRecord],
    source: &'a SourceCatalog,
) -> impl Iterator<Item = (&'a TableRecord, TransactionError)> {
    followed.iter().filter(|table| table.state != TableState::Staging).filter_map(|table| {
        let new = source.table(&table.name)?.definition.relation_id();
        let error = TransactionError::Replaced { table: table.name.clone(), old: table.source_id, new };
        (new != table.source_id).then_some((table, error))
    })
}

/// Makes sure that nobody else streams from the slot.
pub(crate) async fn free_slot(prepared: &Prepared, config: &Config, telemetry: &Telemetry) -> Result<(), Fault> {
    if prepared.slot.as_ref().is_some_and(|slot| slot.active_pid.is_some()) {
        for text in release_slot(&prepared.source, &config.source.slot).await? {
            telemetry.warning("slot", text);
        }
    }
    Ok(())
}

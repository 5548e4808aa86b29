//! The hand-over: copies tables again, or for the first time, while the stream continues.
//!
//! Runs next to the replication loop, for as long as one stream lasts. It looks for requests in the bookkeeping and fulfils them:
//!
//! ```text
//! source      C ─ slot, snapshot      temporary slot's stream from C on
//!               │                       │
//! staging       └─ copied ─ indexed ────┴─ to D1 ─┬────── to D2, D3, … ────────── to D ─┐
//!                                                 │ list what differs                   │ publish: what is listed
//! live     ═══════ the stream runs ══════════ held at D1 ═══ runs ═════════════ held at D ╪══ runs
//! ```
//!
//! Nothing of this begins before the live tables have reached C: a stream that lags is waited for. So it is when the tables do
//! not fit: then the source's catalog may be ahead of the stream.
//!
//! # Why the publish may go by a list
//! Both sides stand at D1 for a moment in which a snapshot of the destination is taken. Under it the keys of rows that differ
//! are listed while the stream continues. Staging's own triggers put on the same list the keys of all rows that the stream
//! changes *in staging* from D1 on. One transaction at D makes the listed rows equal. So the stream is held for the last
//! few transactions and for what differs, and not for the size of the tables. Nothing is assumed of what the live table does
//! between D1 and D: it may take the same changes, or fewer (suspended, just added, a skipped transaction), or in another way
//! (`source-wins`). What a list promises, and how that is held and checked, is written at [`Lists`].
//!
//! A table without a key is compared whole while the stream is held; one that is empty or missing is published from staging
//! alone. A hold that takes long is reported.
//!
//! # Failures
//! A failure leaves everything as it was, and the old data serves: the request stays, with the reason, and is taken up
//! again. A table that headwater has copied again and again, also in vain, waits first ([`Pace`]). Which requests
//! are taken up together, and which wait by themselves, is [`Turns`]' to say: one table that waits for an
//! operator keeps no other waiting. A request that only an operator can make possible is given up, unless its table is suspended
//! ([`crate::preflight::suspended_tables`]), which nothing else brings back. Such a table gets the source's columns first, as far as that
//! loses nothing. When the stream does not follow a table yet, or under another OID, the stream is set up again from the position.
//!
//! Bounds: one hand-over at a time; a hold waits at most `fence_timeout` for staging; [`ROUNDS_MAX`] rounds.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::catch_up::{CatchUp, SlotStream};
use super::{
    TELL_EVERY, after, begin_showing, begin_staging, finish, load, publish, publishing_session, tell_large_differences,
    temporary_slot,
};
use crate::apply_worker::pause::{Control, PauseGuard};
use crate::catalog::schema::BothTypes;
use crate::catalog::shape::Shape;
use crate::config::{OnSlotLost, SchemaChanges};
use crate::destination::{
    Bookkeeping, Catalog, Comparison, Deletes, DestinationError, ListedDifferences, Lists, Original, Pace, Publication,
    PublishPosition, Request, RequestOrigin, Scope, Staging, TableRecord, refuse_unasked, reshape, shapes,
};
use crate::error_policy::{Decision, Fault, Phase, decide, gives_up_copy, report};
use crate::pg::{Lsn, QualifiedName};
use crate::preflight::attribute_names::follow_attributes;
use crate::preflight::leadership::sweep_staging;
use crate::preflight::prepare::check_fit;
use crate::preflight::suspended_tables::suspended;
use crate::preflight::violated_constraints::explained;
use crate::preflight::whereabouts::read_catalog;
use crate::session::{SessionError, SqlClient};
use crate::source::{Relied, SourceCatalog, SourceError, SourceServer, ensure_publication};
use crate::table_sync::copied_partitions::CopiedPartitions;
use crate::table_sync::ends::{Ends, Staged, Tables};
use crate::table_sync::resync_queue::{CopyFailure, FailedAt, Turns};
use crate::telemetry::{SnapshotPhase, failpoint};

/// How often requests are looked for that no notification has announced (one is lost with its session), or whose turn may have come.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long others may have the stream held that is waited for.
const PASS_EVERY: Duration = Duration::from_millis(200);
/// Staging has caught up when a round takes no longer.
const CAUGHT_UP: Duration = Duration::from_millis(300);
/// Rounds in which staging may try to catch up: with a source that writes faster than staging follows it never does.
const ROUNDS_MAX: u32 = 1000;
/// How often a hold is tried for staging that does not reach the position in time.
const HOLDS_MAX: u32 = 5;

/// A request was fulfilled for tables that the running stream does not follow yet, or that have lost partitions, so the stream must
/// restart. Until then it is held: it would pass over their changes.
#[derive(Debug)]
pub(crate) struct Restart {
    _held: PauseGuard,
}

/// Fulfils requests until one needs the stream to be set up again, once `may_begin` has resolved: a copy needs the stream to be
/// published. Where the stream halts every few seconds for the same reason, each copy would lock and read the source's tables in
/// vain.
pub(crate) async fn serve(
    ends: Ends<'_>,
    control: &Control,
    generation: &str,
    may_begin: impl Future<Output = ()>,
) -> Restart {
    may_begin.await;
    let began = Instant::now();
    let mut turns = Turns::default();
    let mut told = ToldFailures::default();
    let mut paced = BTreeSet::new();
    let mut bookkeeping: Option<Bookkeeping> = None;
    let mut pause = Duration::ZERO;
    loop {
        // Whatever is wrong with the destination, the apply loop meets it too, and says so.
        let client = match bookkeeping.take() {
            Some(client) => {
                client.client().notified(LOOK_EVERY).await;
                client
            }
            None => {
                tokio::time::sleep(pause).await;
                pause = LOOK_EVERY;
                let Ok(client) = listening(ends).await else { continue };
                client
            }
        };
        let Ok(requests) = client.requests().await else { continue };
        ends.telemetry.in_doubt(Request::tables_in_doubt(&requests));
        let Ok(requests) = unpaced(ends, &client, requests, &mut paced).await else { continue };
        let requests = turns.next(requests, began.elapsed());
        if requests.is_empty() {
            bookkeeping = Some(client);
            continue;
        }
        let scope = wanted(ends, &requests);
        let ids: Vec<i64> = requests.iter().map(|request| request.id).collect();
        let begins = format!("copying {scope} again while the stream continues");
        match told.has_failed(&scope, &ids) {
            false => ends.telemetry.event("snapshot", begins),
            true => tracing::debug!("{begins}"),
        }
        let begun = Instant::now();
        let reads = AtomicBool::new(false);
        let hand_over =
            HandOver { ends, control, bookkeeping: &client, scope: &scope, requests: &ids, generation, reads: &reads };
        let ended = hand_over.run().await;
        ends.telemetry.snapshot_ends();
        match ended {
            Ok(Some(again)) => return again,
            Ok(None) => {
                told.forget(&scope);
                bookkeeping = Some(client);
            }
            Err(fault) => {
                let fault = explained(ends.config, ends.addresses, fault).await;
                let has_read = reads.into_inner();
                let failure = settle_failure(ends, &mut told, &client, &requests, &scope, &fault, has_read).await;
                let failed = FailedAt { now: began.elapsed(), took: begun.elapsed(), chance: fastrand::f64() };
                turns.failed(&requests, failure, failed);
                // Staging of this attempt is nobody's. The next attempt sweeps too.
                if let Err(error) = sweep_staging(client.client(), ends.telemetry).await {
                    tracing::debug!("staging could not be swept: {error}");
                }
            }
        }
    }
}

/// A session that learns of new requests.
async fn listening(ends: Ends<'_>) -> Result<Bookkeeping, DestinationError> {
    let bookkeeping = Bookkeeping::connect(&ends.addresses.destination).await?;
    bookkeeping.client().listen().await?;
    Ok(bookkeeping)
}

/// The requests that need not wait because their tables were copied again and again; says once of each that waits, `paced`, why,
/// and again once another of its copies was given up. Tables of
/// another request that is taken up now are copied with it.
async fn unpaced(
    ends: Ends<'_>,
    client: &Bookkeeping,
    requests: Vec<Request>,
    paced: &mut BTreeSet<(i64, u32)>,
) -> Result<Vec<Request>, DestinationError> {
    if requests.iter().all(|request| request.origin != RequestOrigin::Changed) {
        return Ok(requests);
    }
    let copies = client.automatic_copies().await?;
    let (waiting, mut now): (Vec<Request>, Vec<Request>) =
        requests.into_iter().partition(|request| Pace::of(request, &copies).is_some());
    let of_now = now.iter().map(|request| request.scope.clone()).reduce(Scope::and);
    for request in waiting {
        let is_copied = match (&request.scope, &of_now) {
            (Scope::Tables(tables), Some(of_now)) => tables.iter().all(|table| of_now.contains(table)),
            (Scope::All | Scope::Tables(_), _) => false,
        };
        match Pace::of(&request, &copies) {
            Some(Pace { copies, given_up, wait }) if !is_copied => {
                if paced.insert((request.id, given_up)) {
                    let text = format!(
                        "{} was {}, since it changes at the source in ways that the stream does not \
                         carry: its next copy begins in {} s, and the other tables stream on",
                        request.scope,
                        Pace::words(copies, given_up),
                        wait.as_secs() + 1
                    );
                    ends.telemetry.warning("snapshot", text);
                }
            }
            Some(_) | None => now.push(request),
        }
    }
    Ok(now)
}

/// What was said last of each scope whose copy has failed: a request that waits for an operator is tried every few seconds, and says the
/// same each time. Another request for the same says it once, too. Bound: as many entries as there are requests in one stream.
#[derive(Debug, Default)]
struct ToldFailures(BTreeMap<String, Failed>);

#[derive(Debug, Default)]
struct Failed {
    text: String,
    requests: BTreeSet<i64>,
}

impl ToldFailures {
    /// Whether it was said of all these requests that they have failed.
    fn has_failed(&self, scope: &Scope, requests: &[i64]) -> bool {
        let failed = self.0.get(&scope.to_string());
        failed.is_some_and(|failed| requests.iter().all(|id| failed.requests.contains(id)))
    }

    /// Whether this was not said last of these requests.
    fn is_new(&mut self, scope: &Scope, requests: &[i64], text: &str) -> bool {
        let failed = self.0.entry(scope.to_string()).or_default();
        if failed.text != text {
            *failed = Failed { text: text.to_owned(), ..Failed::default() };
        }
        let known = failed.requests.len();
        failed.requests.extend(requests);
        failed.requests.len() > known
    }

    fn forget(&mut self, scope: &Scope) {
        self.0.remove(&scope.to_string());
    }
}

/// What the requests together ask for; all of the set when they name all of it.
fn wanted(ends: Ends<'_>, requests: &[Request]) -> Scope {
    let scope = requests.iter().map(|request| request.scope.clone()).reduce(Scope::and);
    match scope {
        Some(scope) if ends.config.tables.iter().all(|table| scope.contains(table)) => Scope::All,
        Some(scope) => scope,
        None => Scope::All,
    }
}

/// Says that the old data serves, and settles the requests that are not taken up again.
async fn settle_failure(
    ends: Ends<'_>,
    told: &mut ToldFailures,
    client: &Bookkeeping,
    requests: &[Request],
    scope: &Scope,
    fault: &Fault,
    has_read: bool,
) -> CopyFailure {
    let reason = report(fault);
    let failure = match decide(fault, Phase::Starting, OnSlotLost::Stop) {
        Decision::Retry(_) => CopyFailure::Passing,
        Decision::Halt(_) | Decision::End | Decision::Resnapshot => CopyFailure::Operators,
    };
    let gives_up = gives_up_copy(fault);
    // Which of several requests cannot be fulfilled is found out next, each by itself. Nothing but a copy brings a suspended
    // table back.
    let (given_up, again): (Vec<&Request>, Vec<&Request>) = requests
        .iter()
        .partition(|request| gives_up && requests.len() == 1 && request.origin != RequestOrigin::Changed);
    let what = if given_up.is_empty() { "is tried again" } else { "is given up" };
    let text = format!("the snapshot of {scope} failed and {what}; the old data is still there: {}", reason.lines());
    let asked: Vec<i64> = requests.iter().map(|request| request.id).collect();
    // A copy that has read the source in vain is paced, and each one is reported.
    let is_given_up = has_read && failure == CopyFailure::Passing;
    match told.is_new(scope, &asked, &text) || is_given_up {
        true => ends.telemetry.warning("snapshot", text),
        false => tracing::debug!("the snapshot of {scope} failed as before"),
    }
    let ids = |requests: &[&Request]| requests.iter().map(|request| request.id).collect::<Vec<i64>>();
    let noted = async {
        client.fail_requests(&ids(&given_up), &reason.lines()).await?;
        if is_given_up {
            client.note_given_up(&ids(&again), &reason.lines()).await?;
        }
        client.note_requests(&ids(&again), &reason.lines()).await
    };
    if let Err(error) = noted.await {
        tracing::debug!("the failure could not be noted: {error}");
    }
    failure
}

/// One hand-over: a copy of the tables of `scope`, made while the stream runs.
struct HandOver<'a> {
    ends: Ends<'a>,
    control: &'a Control,
    bookkeeping: &'a Bookkeeping,
    scope: &'a Scope,
    requests: &'a [i64],
    /// The stream's.
    generation: &'a str,
    /// The source's rows were read.
    reads: &'a AtomicBool,
}

impl HandOver<'_> {
    async fn run(&self) -> Result<Option<Restart>, Fault> {
        let HandOver { ends, bookkeeping, .. } = *self;
        let source = ends.addresses.source.connect().await.map_err(SourceError::Session)?;
        let lock_timeout = format!("SET lock_timeout = {}", ends.config.destination.lock_timeout.as_millis());
        source.statement("setting up a session", &lock_timeout).await.map_err(SourceError::Session)?;
        let server = SourceServer::check(&source, true).await?;
        let mut shapes = self.fitting_shapes(&source).await?;
        let transfer = check_fit(&shapes.source, &shapes.destination)?;
        // The copy's readers and locks depend on how large the tables are, and it locks them all.
        shapes.source.measure(&source).await?;

        begin_showing(ends, &shapes.source);
        let tables = Tables { source: &shapes.source, destination: &shapes.destination, transfer, alone: false };
        let slot = temporary_slot()?;
        let name = format!("{}_again", self.generation);
        let (taken, staging) = begin_staging(ends, &source, bookkeeping.client(), &tables, &slot, true, &name).await?;
        self.reads.store(true, Ordering::Relaxed);
        let partitions = CopiedPartitions::begin(ends, &staging);
        let Staged { mut staging, sent, through_root, slot_session, consistent_point } =
            load(ends, taken, staging, slot.as_str()).await?;
        partitions.read_through_root(&through_root, &staging);
        finish(ends, bookkeeping.client(), &staging).await?;
        // Before the stream changes them: as many rows as were sent.
        staging.check_counts(bookkeeping.client(), &sent).await?;

        let stream = SlotStream { slot: &slot, session: slot_session, staging: &staging, consistent_point };
        let mut catch_up = CatchUp::begin(ends, bookkeeping.client(), &server, &tables, stream, partitions).await?;
        ends.telemetry.snapshot_phase(SnapshotPhase::CatchingUp, []);
        failpoint::reached("handover.catching_up");
        pass(ends, self.control, consistent_point).await?;
        catch_up_with(bookkeeping, &mut catch_up, None).await?;
        let client = publishing_session(ends).await?;
        let differences = self.differences(&client, &mut catch_up, &staging).await?;
        let version = server.version;
        let restart = self.publish(&client, &mut catch_up, &mut staging, &differences, &shapes, version).await?;
        catch_up.close().await;
        after(ends, staging, &differences).await?;
        Ok(restart)
    }

    /// Both ends, once they fit or the stream has passed what the source's catalog says now.
    async fn fitting_shapes(&self, source: &SqlClient) -> Result<Shapes, Fault> {
        let HandOver { ends, bookkeeping, scope, .. } = *self;
        let mut shapes = look(ends, source, bookkeeping, scope).await?;
        let follow = ends.config.schema_changes == SchemaChanges::Follow;
        let types = BothTypes { source: &shapes.source.types, destination: &shapes.destination.types };
        let renamed = follow_attributes(bookkeeping.client(), types, follow).await?;
        if !renamed.is_empty() {
            renamed.into_iter().for_each(|told| ends.telemetry.event("schema", told));
            shapes = look(ends, source, bookkeeping, scope).await?;
        }
        if check_fit(&shapes.source, &shapes.destination).is_err() {
            // The catalog may know of a change that the stream has not come to: it brings the table along, or suspends it.
            pass(ends, self.control, end_of_wal(source).await?).await?;
            shapes = look(ends, source, bookkeeping, scope).await?;
        }
        Ok(shapes)
    }

    /// The lists of what differs, made while the stream runs on.
    async fn differences(
        &self,
        client: &SqlClient,
        catch_up: &mut CatchUp,
        staging: &Staging,
    ) -> Result<ListedDifferences, Fault> {
        let HandOver { ends, bookkeeping, .. } = *self;
        let lists = Lists::keep(bookkeeping.client(), staging).await?;
        if lists.is_empty() {
            return Ok(ListedDifferences::default());
        }
        let held = hold(ends, self.control, catch_up, "handover.comparing_held").await?;
        let comparison = Comparison::begin(&ends.addresses.destination_for("staging"), lists).await?;
        drop(held);
        let differences = compare_beside(ends, bookkeeping, catch_up, comparison, staging).await?;
        ends.telemetry.snapshot_phase(SnapshotPhase::CatchingUp, []);
        failpoint::reached("handover.compared");
        catch_up_with(bookkeeping, catch_up, None).await?;
        tell_large_differences(ends, client, staging, &differences).await?;
        Ok(differences)
    }

    /// Publishes while the stream is held. It must restart where the set of followed tables is another one then.
    async fn publish(
        &self,
        client: &SqlClient,
        catch_up: &mut CatchUp,
        staging: &mut Staging,
        differences: &ListedDifferences,
        shapes: &Shapes,
        version: i32,
    ) -> Result<Option<Restart>, Fault> {
        let HandOver { ends, bookkeeping, scope, .. } = *self;
        let destination = &ends.config.destination;
        let held_at = Instant::now();
        let held = hold(ends, self.control, catch_up, "handover.publishing").await?;
        failpoint::reached("handover.held");
        let position = held.position();
        catch_up.settle(staging);
        let is_other_session = other_partitions(bookkeeping, staging, version).await?;
        let publication = Publication {
            staging,
            sent: None,
            differences,
            generation: self.generation,
            place: PublishPosition::Held { position },
            requests: self.requests,
            deletes: Deletes::All,
            lock_timeout_millis: destination.lock_timeout.as_millis(),
            types: &shapes.source.types,
            trusted_roles: &destination.trusted_roles,
            names_owners: destination.names_owners(),
        };
        tell_while_held(ends, scope, position, publish(ends, client, &publication)).await?;
        let restart = (shapes.set_differs() || is_other_session).then_some(Restart { _held: held });
        let held_for = held_at.elapsed();
        ends.telemetry.event(
            "snapshot",
            format!("published {scope} at {position}; the stream was held for {} ms", held_for.as_millis()),
        );
        Ok(restart)
    }
}

/// Whether the running stream must begin again for the sake of partitions. It counts those as known that it has named, and would not tell
/// of their rows if they were attached again; so they stay known, also those that are empty by now, and one that the copy has not found is
/// a reason. Up to 14 a session does not send the rows of a table that it has met before it was attached.
async fn other_partitions(bookkeeping: &Bookkeeping, staging: &mut Staging, version: i32) -> Result<bool, Fault> {
    let remembered = shapes(bookkeeping.client()).await?;
    let mut begins_again = false;
    for (table, copied) in &mut staging.leaves {
        let Some(remembered) = remembered.get(table).map(Shape::leaves) else { continue };
        let named: Vec<u32> = copied.empty.keys().copied().filter(|leaf| remembered.known.contains(leaf)).collect();
        copied.known.extend(named);
        copied.empty.retain(|leaf, _| !remembered.known.contains(leaf));
        begins_again |= !remembered.known.is_subset(&copied.known);
        let mut all = copied.known.iter().chain(copied.empty.keys());
        begins_again |= version / 10_000 < 15 && all.any(|leaf| remembered.is_unknown(*leaf));
    }
    Ok(begins_again)
}

/// Lists what differs, while staging follows the live tables, so that there is little left to do at the end.
async fn compare_beside(
    ends: Ends<'_>,
    bookkeeping: &Bookkeeping,
    catch_up: &mut CatchUp,
    comparison: Comparison,
    staging: &Staging,
) -> Result<ListedDifferences, Fault> {
    let (over, mut is_over) = oneshot::channel::<()>();
    let comparing = async {
        failpoint::pause("handover.comparing").await;
        let compared = comparison.run(staging, ends.telemetry).await?;
        drop(over);
        Ok::<_, Fault>(compared)
    };
    let following = async {
        loop {
            let position = position(bookkeeping).await?;
            catch_up.advance_to(position).await?;
            tokio::select! {
                _ = &mut is_over => return Ok(()),
                () = tokio::time::sleep(CAUGHT_UP) => {}
            }
        }
    };
    // Both at once: a TRUNCATE that is applied to staging waits for the comparison, which must not wait for us.
    let (differences, ()) = tokio::try_join!(comparing, following)?;
    Ok(differences)
}

/// Says for how long the stream is held, when the publish takes long.
async fn tell_while_held<T>(ends: Ends<'_>, scope: &Scope, position: Lsn, work: impl Future<Output = T>) -> T {
    let began = Instant::now();
    let mut work = std::pin::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return done,
            () = tokio::time::sleep(TELL_EVERY) => {
                let seconds = began.elapsed().as_secs();
                let text = format!(
                    "the stream has been held at {position} for {seconds} s, until {scope} is published; the source keeps its WAL"
                );
                ends.telemetry.event("snapshot", text);
            }
        }
    }
}

/// The tables of a hand-over as they are at both ends.
struct Shapes {
    source: SourceCatalog,
    destination: Catalog,
    followed: Vec<TableRecord>,
    suspended: Vec<QualifiedName>,
}

impl Shapes {
    /// Whether the running stream does not follow one of these tables yet, or under another OID.
    fn set_differs(&self) -> bool {
        let is_followed = |table: &QualifiedName, source_id| {
            let destination_id = self.destination.table(table).map(|table| table.id);
            let mut known = self.followed.iter().filter(|known| !self.suspended.contains(&known.name));
            known.any(|known| {
                known.name == *table && known.source_id == source_id && Some(known.destination_id) == destination_id
            })
        };
        let mut tables = self.source.tables.iter();
        tables.any(|table| !is_followed(&table.definition.name(), table.definition.relation_id()))
    }
}

/// Looks at both ends. A table that is not the one that was filled is left alone unless an operator has asked for a copy into it;
/// what is suspended gets the source's columns, and what the publication lacks is published.
async fn look(ends: Ends<'_>, source: &SqlClient, bookkeeping: &Bookkeeping, scope: &Scope) -> Result<Shapes, Fault> {
    let config = ends.config;
    let names: Vec<QualifiedName> = config.tables.iter().filter(|table| scope.contains(table)).cloned().collect();
    let mut source_catalog = read_catalog(config, ends.addresses, source, &names).await?;
    refuse_unasked(bookkeeping.client(), scope).await?;
    let followed = bookkeeping.tables().await?;
    // What the publication lacks of these tables is no gap: all of them are copied.
    let others = followed.iter().map(|table| table.name.clone()).filter(|name| !scope.contains(name));
    let others = Relied { live: others.collect(), suspended: BTreeSet::new() };
    let told = ensure_publication(source, &config.source.publication, &mut source_catalog, &others).await?;
    told.iter().for_each(|told| ends.telemetry.event("publication", told.text()));
    let mut destination_catalog = Catalog::read(bookkeeping.client(), &config.tables).await?;
    let suspended = suspended(&followed);
    for table in source_catalog.tables.iter().filter(|table| suspended.contains(&table.definition.name())) {
        let original = Original { table: &table.definition, columns: &table.columns, types: &source_catalog.types };
        let lock_timeout = config.destination.lock_timeout;
        let told = reshape(bookkeeping.client(), original, &destination_catalog, lock_timeout).await?;
        told.into_iter().for_each(|told| ends.telemetry.event("schema", told));
    }
    if !suspended.is_empty() {
        destination_catalog = Catalog::read(bookkeeping.client(), &config.tables).await?;
    }
    destination_catalog.learn_types(bookkeeping.client(), &source_catalog.types).await?;
    Ok(Shapes { source: source_catalog, destination: destination_catalog, followed, suspended })
}

/// How far the source's WAL is written.
async fn end_of_wal(source: &SqlClient) -> Result<Lsn, Fault> {
    let sql = "SELECT (CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn()
               ELSE pg_catalog.pg_current_wal_flush_lsn() END)::text";
    let row = source.query_one("asking how far the source is", sql, &[]).await.map_err(SourceError::Session)?;
    Ok(row.parse(0).map_err(SourceError::Session)?)
}

/// Waits until the live tables have reached the snapshot. While the stream lags, staging is the newer side, and cannot go
/// back: published then, the stream would do once more what is there already.
async fn pass(ends: Ends<'_>, control: &Control, consistent_point: Lsn) -> Result<(), Fault> {
    loop {
        let passing = async {
            let mut held = control.hold().await?;
            held.run_to(consistent_point).await
        };
        // Others that want a turn get it in between.
        if let Ok(passed) = tokio::time::timeout(ends.config.fence_timeout, passing).await {
            return Ok(passed.map_err(|_| SourceError::Ended)?);
        }
        tokio::time::sleep(PASS_EVERY).await;
    }
}

async fn position(bookkeeping: &Bookkeeping) -> Result<Lsn, Fault> {
    let position = bookkeeping.position().await?;
    Ok(position.ok_or_else(|| DestinationError::StagingLost("the position is gone".to_owned()))?)
}

/// Rounds, each to where the live tables stand, until one is short.
async fn catch_up_with(bookkeeping: &Bookkeeping, catch_up: &mut CatchUp, rounds: Option<u32>) -> Result<(), Fault> {
    for _ in 0..rounds.unwrap_or(ROUNDS_MAX) {
        let began = Instant::now();
        let position = position(bookkeeping).await?;
        catch_up.advance_to(position).await?;
        if began.elapsed() <= CAUGHT_UP {
            return Ok(());
        }
    }
    Ok(())
}

/// Holds the stream, and brings staging to exactly where it stands. In between a test may `pause` it.
async fn hold(
    ends: Ends<'_>,
    control: &Control,
    catch_up: &mut CatchUp,
    pause: &'static str,
) -> Result<PauseGuard, Fault> {
    let most = ends.config.fence_timeout;
    for _ in 0..HOLDS_MAX {
        // A long transaction that is being applied is finished first, and lets nobody wait but us.
        let Ok(held) = tokio::time::timeout(most, control.hold()).await else { continue };
        let held = held.map_err(|_| SourceError::Ended)?;
        failpoint::pause(pause).await;
        let mut reaching = std::pin::pin!(catch_up.advance_to(held.position()));
        match tokio::time::timeout(most, &mut reaching).await {
            Ok(reached) => {
                reached?;
                return Ok(held);
            }
            Err(_) => {
                // The stream resumes, and staging continues to its target.
                drop(held);
                reaching.await?;
            }
        }
    }
    let doing = "bringing staging to the position";
    Err(DestinationError::Session(SessionError::Timeout { doing, within: most * HOLDS_MAX, process_id: None }).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope(name: &str) -> Scope {
        Scope::Tables(vec![QualifiedName::new("public", name)])
    }

    #[test]
    fn a_copy_that_fails_says_why_once_and_again_when_the_reason_is_another() {
        let mut told = ToldFailures::default();
        assert!(!told.has_failed(&scope("t"), &[1]));
        let says = [("t", 1, "a"), ("t", 1, "a"), ("u", 2, "a"), ("t", 1, "b"), ("t", 1, "a"), ("t", 1, "a")];
        let new = says.map(|(table, request, text)| told.is_new(&scope(table), &[request], text));
        assert_eq!(new, [true, false, true, true, true, false]);
        assert!(told.has_failed(&scope("t"), &[1]));
        told.forget(&scope("t"));
        assert!(!told.has_failed(&scope("t"), &[1]));
        assert!(told.is_new(&scope("t"), &[1], "a") && !told.is_new(&scope("u"), &[2], "a"));
    }

    #[test]
    fn another_request_that_fails_as_the_one_before_says_so_once_again() {
        let mut told = ToldFailures::default();
        assert!(told.is_new(&scope("t"), &[1], "a"));
        assert!(!told.has_failed(&scope("t"), &[2]) && !told.has_failed(&scope("t"), &[1, 2]));
        let says: [&[i64]; 5] = [&[2], &[2], &[1], &[1, 2], &[1, 2, 3]];
        assert_eq!(says.map(|requests| told.is_new(&scope("t"), requests, "a")), [true, false, false, false, true]);
    }
}

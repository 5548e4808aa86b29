//! Verify: whether the destination equals the source, exactly, while both are being written.
//!
//! Both sides are read under the two snapshots of a [`super::fence`], so they are the same state or they differ; there
//! is no quiet period, no re-check loop and no false alarm. The comparison is [`crate::plan::verify`]'s: sums of
//! hashes, computed by the servers over ranges of pages, drilled down to keys where they differ.
//!
//! ```text
//! look at both tables' files ─▶ fence ─▶ compare ─▶ look at the files again ─▶ verdict
//!      ▲                                                      │ another file: TRUNCATE or a rewrite in between, which
//!      └──────────────── that table once more ◀───────────────┘ no snapshot protects from (they are not MVCC-safe)
//! ```
//!
//! A table whose changes do not arrive at the fence has nothing to be compared with: it is left out, and the verdict says so
//! ([`LeftOut`]). Whether they do is read under the destination's own snapshot, so a table that is set aside in the moment
//! of the fence is no false alarm either.
//!
//! No lock is held on any table for longer than one range of pages is read; so neither the source's own DDL nor the
//! apply of a TRUNCATE waits for a verify.
//!
//! Who makes the fence: the instance that leads, asked through the bookkeeping ([`run`]) or by itself
//! (`verify_every`, [`service`]). When none leads, the source at C is compared with the destination as it stands, and
//! what was not applied yet counts as a difference; where some are found, it is made sure once more that none leads, since a
//! service that sets its stream up anew leads nothing for a moment.
//!
//! Bounds: `fence_timeout` for a fence, and for a lock that somebody else holds; what is waited for is said ([`super::waits`]);
//! `workers` sessions a side; one range of pages a statement; [`Bounds`] of what is looked at row by row.

mod compare;
mod images;
mod left_out;
mod parts;
pub(super) mod repair;
mod repair_loop;
pub(super) mod service;
mod tables;
mod workers;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};

use super::control::Control;
use super::fence::{self, Fence, FenceProgress, NoFence, sql_for};
use super::hosts::settle;
use super::prepare::Addresses;
use super::waits::{End, LOOK_EVERY, ToldWaits, waits};
use super::{RunOptions, run as run_service};
use crate::config::{Config, ConnectionSettings};
use crate::destination::{
    Bookkeeping, DestinationError, FenceAnswer, FenceKind, LockHolders, RepairOutcome, StreamState, ask_for_fence,
    beat, ensure_fence_requests, open_conflict, withdraw_fence,
};
use crate::fault::Fault;
use crate::pg::{ErrorReport, Ident, Lsn, QualifiedName};
use crate::plan::verify::{Bounds, Differences, Key};
use crate::session::{Sql, SqlClient, SqlState};
use crate::source::SourceError;
use crate::telemetry::Telemetry;

pub use left_out::LeftOut;

/// What the operator asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VerifyOptions {
    /// These tables only; all when empty.
    pub tables: Vec<QualifiedName>,
    /// Sessions a side; `None`: as many as this machine has cores, at most 4.
    pub workers: Option<usize>,
    /// Most bytes read a second, on each side.
    pub max_rate: Option<u64>,
    /// Name the columns that differ.
    pub columns: bool,
    /// Put the differing rows right, at a second fence.
    pub repair: bool,
    /// Without a running service: apply up to the fence first.
    pub catch_up: bool,
    /// Compare both sides as they stand, without a fence.
    pub no_fence: bool,
    /// How much is looked at row by row.
    pub bounds: Bounds,
}

/// How far a verify is; read by whoever shows it.
#[derive(Debug, Default)]
pub struct VerifyProgress {
    /// Bytes of both sides' tables that are to be read, as far as known.
    pub bytes_total: AtomicU64,
    /// Bytes read.
    pub bytes_done: AtomicU64,
}

impl VerifyProgress {
    fn expect(&self, bytes: u64) {
        self.bytes_total.fetch_add(bytes, Ordering::Relaxed);
    }

    fn read(&self, bytes: u64) {
        self.bytes_done.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// A table's comparison.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableVerdict {
    /// The table.
    pub table: QualifiedName,
    /// Rows at the source.
    pub source_rows: u64,
    /// Rows at the destination.
    pub destination_rows: u64,
    /// How they differ.
    pub differences: Differences,
    /// The columns of the key; empty for a table without one.
    pub key: Vec<Ident>,
    /// Which columns differ, for keys whose rows do, when asked for.
    pub columns: Vec<(Key, Vec<Ident>)>,
    /// Columns that only one side has, so that they were not compared.
    pub not_compared: Vec<Ident>,
    /// Columns of which so many values are not what their text says, so that they could not be compared exactly.
    pub inexact: Vec<(Ident, u64)>,
    /// Columns that the destination generates.
    pub generated: Vec<Ident>,
}

/// Why a repair is given up while rows differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RepairStop {
    /// Just the rows that were repaired differ: the destination generates or changes what is written.
    Unchanged,
    /// Rows differ that did not before: something else writes to the destination.
    Disturbed,
    /// Too many rows differ to be repaired one by one.
    TooMany,
}

/// What a repair has done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repaired {
    /// What it wrote.
    pub outcome: RepairOutcome,
    /// The tables that differ all the same, as they were found afterwards.
    pub left: Vec<TableVerdict>,
    /// Why it was given up; `None` where nothing is left, or where tables could not be compared.
    pub stop: Option<RepairStop>,
    /// Tables that could not be compared afterwards.
    pub left_out: Vec<LeftOut>,
    /// Where both sides were compared afterwards.
    pub consistent_point: Lsn,
}

/// What a verify has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The source's state: every transaction with commit_lsn before this.
    pub consistent_point: Lsn,
    /// The destination's stored position in the state that was compared.
    pub destination_position: Lsn,
    /// Both states are the same one; otherwise what was not applied yet counts as a difference.
    pub at_fence: bool,
    /// The tables.
    pub tables: Vec<TableVerdict>,
    /// Tables that could not be compared, because their changes do not arrive.
    pub left_out: Vec<LeftOut>,
    /// What a repair has done about it.
    pub repaired: Option<Repaired>,
    /// From the fence on.
    pub took: Duration,
}

impl Verdict {
    /// Rows that differ, as far as they are listed.
    pub fn rows(&self) -> u64 {
        self.tables.iter().map(|table| table.differences.rows()).sum()
    }

    /// Whether all that was compared is equal.
    pub fn is_equal(&self) -> bool {
        self.tables.iter().all(|table| table.differences.is_empty())
    }

    /// Whether both sides are shown to be equal, after the repair if there was one: no table differs, none was left out, and all values
    /// could be compared.
    pub fn is_proof(&self) -> bool {
        let equal = match &self.repaired {
            Some(repaired) => repaired.left.is_empty() && repaired.left_out.is_empty(),
            None => self.is_equal(),
        };
        equal && self.left_out.is_empty() && self.tables.iter().all(|table| table.inexact.is_empty())
    }
}

/// Hears what is being waited for.
type Tell<'a> = dyn FnMut(&str) + Send + 'a;

/// Who makes a fence.
enum Maker<'a> {
    /// The instance that leads, asked through the bookkeeping.
    Leader { client: &'a SqlClient, tell: &'a mut Tell<'a> },
    /// This instance, which leads.
    Ourselves(&'a Control),
    /// Nobody leads: the destination is taken as it stands.
    WithoutLeader,
}

impl Maker<'_> {
    /// A fence, and whether it is one.
    async fn make(&mut self, ends: Ends<'_>) -> Result<(Fence, bool), Fault> {
        match self {
            Maker::Leader { client, tell } => Ok((ask(ends, client, *tell).await?, true)),
            Maker::Ourselves(control) => {
                match fence::make(ends.config, ends.addresses, control, &FenceProgress::default()).await {
                    Ok(fence) => Ok((fence, true)),
                    Err(NoFence::Later(report)) => Err(Fault::Refused(report)),
                    Err(NoFence::StreamEnded) => Err(Fault::Refused(ErrorReport::new("the stream broke off"))),
                }
            }
            Maker::WithoutLeader => Ok((fence::without_leader(ends.config, ends.addresses).await?, false)),
        }
    }
}

/// What a comparison needs of its surroundings.
#[derive(Clone, Copy)]
struct Ends<'a> {
    config: &'a Config,
    addresses: &'a Addresses,
    options: &'a VerifyOptions,
    progress: &'a Arc<VerifyProgress>,
}

/// Fences for tables that were rewritten while they were read.
const FENCES_MAX: usize = 5;
/// How often a waiting request is looked at, and its heartbeat renewed.
const BEAT_EVERY: Duration = Duration::from_millis(100);
/// How long a service takes to set its stream up anew when nothing is wrong, with room for a busy machine. Where `leader_timeout`
/// is longer, that counts: on a machine of 2 cores with a load of 16 it was seen to take more than this.
const LEADS_SOON_MIN: Duration = Duration::from_secs(2);
/// Words that nobody has read yet: they are printed at once.
const WORDS_MAX: usize = 64;

/// Compares both sides; `tell` hears what is being waited for, at either end too.
///
/// # Errors
/// [`Fault`]: a side is not reachable, nothing is followed yet, or no fence could be made.
pub async fn run(
    config: &Arc<Config>,
    options: &VerifyOptions,
    progress: &Arc<VerifyProgress>,
    tell: &mut (dyn FnMut(&str) + Send),
) -> Result<Verdict, Fault> {
    let (words, mut said) = mpsc::channel::<String>(WORDS_MAX);
    let own = words.clone();
    // Full means that nobody reads: a word less.
    let mut own = move |text: &str| drop(own.try_send(text.to_owned()));
    let mut verifying = std::pin::pin!(verify(config, options, progress, &mut own));
    let mut watching = std::pin::pin!(tell_waits(config, &words));
    let verified = loop {
        tokio::select! {
            biased;
            Some(text) = said.recv() => tell(&text),
            verified = &mut verifying => break verified,
            never = &mut watching => match never {},
        }
    };
    while let Ok(text) = said.try_recv() {
        tell(&text);
    }
    verified
}

/// Says what sessions of headwater's wait for at either end: those of this verify, and those of the service on which a fence depends.
async fn tell_waits(config: &Config, words: &mpsc::Sender<String>) -> std::convert::Infallible {
    let watch = async |end: End, connection: &ConnectionSettings| {
        let sql = Sql { connection: connection.clone(), purpose: "monitor", timeout: WAITS_MAX };
        let mut told = ToldWaits::default();
        loop {
            // A server that does not answer is the comparison's to report.
            if let Ok(client) = sql.connect().await {
                while let Ok(found) = waits(&client, end, &connection.application_name).await {
                    for wait in told.new_ones(&found) {
                        let _ = words.try_send(wait.text());
                    }
                    tokio::time::sleep(LOOK_EVERY).await;
                }
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    let (never, _): (std::convert::Infallible, std::convert::Infallible) =
        tokio::join!(watch(End::Source, &config.source.url), watch(End::Destination, &config.destination.url));
    never
}

/// What a look at the waits may take.
const WAITS_MAX: Duration = Duration::from_secs(10);

async fn verify(
    config: &Arc<Config>,
    options: &VerifyOptions,
    progress: &Arc<VerifyProgress>,
    tell: &mut Tell<'_>,
) -> Result<Verdict, Fault> {
    let bookkeeping =
        Bookkeeping::connect_checked(&Addresses::new(config).destination, &config.destination.trusted_roles).await?;
    let bound = format!("SET lock_timeout = {}", config.fence_timeout.as_millis());
    let setting = bookkeeping.client().statement("setting up a session", &bound).await;
    setting.map_err(DestinationError::Session)?;
    // The same host that a running service has chosen: its snapshots are that server's.
    let settled = settle(config, &bookkeeping).await?;
    let config = &settled.config;
    let addresses = Addresses::new(config);
    let ends = Ends { config, addresses: &addresses, options, progress };
    match bookkeeping.stream().await? {
        Some(stream) if matches!(stream.state, StreamState::Live { .. }) => {}
        Some(_) | None => {
            return Err(Fault::Refused(
                ErrorReport::new("nothing is followed yet: there is no snapshot to verify")
                    .hint("Start headwater run, and wait until it streams."),
            ));
        }
    }
    let client = bookkeeping.client();
    if options.no_fence {
        tell("comparing both sides as they stand");
        let began = Instant::now();
        let (verdict, _) = compare::compare(ends, Maker::WithoutLeader, None).await?;
        return Ok(Verdict { took: began.elapsed(), ..verdict });
    }
    let leads = LockHolders::look(client, &config.source.slot).await?.leader.is_some();
    if !leads && options.catch_up {
        tell("no service runs: catching up");
        return catch_up(ends, &bookkeeping, tell).await;
    }
    if leads {
        return at_fences(ends, client, tell).await;
    }
    if options.repair {
        if leads_soon(config, client).await? {
            return at_fences(ends, client, tell).await;
        }
        return Err(Fault::Refused(
            ErrorReport::new("a repair needs a fence, and no service runs that could make one")
                .hint("Start headwater run, or add --catch-up."),
        ));
    }
    match open_conflict(client).await? {
        Some(_) => {
            tell("a conflict halts the service (headwater conflict show): comparing with the destination as it stands")
        }
        None => tell("no service runs: comparing with the destination as it stands"),
    }
    let began = Instant::now();
    let (verdict, _) = compare::compare(ends, Maker::WithoutLeader, None).await?;
    if !verdict.is_equal() && leads_soon(config, client).await? {
        tell("a service runs after all: comparing at a fence");
        return at_fences(ends, client, tell).await;
    }
    Ok(Verdict { took: began.elapsed(), ..verdict })
}

/// Whether an instance leads, now or in a moment: one that sets its stream up anew comes back.
async fn leads_soon(config: &Config, client: &SqlClient) -> Result<bool, Fault> {
    let began = Instant::now();
    let most = LEADS_SOON_MIN.max(config.leader_timeout);
    loop {
        if LockHolders::look(client, &config.source.slot).await?.leader.is_some() {
            return Ok(true);
        }
        if began.elapsed() >= most {
            return Ok(false);
        }
        tokio::time::sleep(BEAT_EVERY).await;
    }
}

/// Runs the service inside this process for as long as the verify takes.
async fn catch_up(ends: Ends<'_>, bookkeeping: &Bookkeeping, tell: &mut Tell<'_>) -> Result<Verdict, Fault> {
    let telemetry = Arc::new(Telemetry::new(ends.config.http.ready_lag_max));
    let (stop, stopping) = watch::channel(false);
    let service = run_service(Arc::new(ends.config.clone()), RunOptions::default(), telemetry, stopping);
    let mut service = std::pin::pin!(service);
    let verified = tokio::select! {
        verified = at_fences(ends, bookkeeping.client(), tell) => verified,
        ended = &mut service => {
            return match ended {
                Err(fault) => Err(fault),
                Ok(()) => Err(Fault::Refused(ErrorReport::new("the service ended before the fence was made"))),
            };
        }
    };
    stop.send_replace(true);
    service.await?;
    verified
}

/// Compares at a fence that the leader makes, as often as tables were rewritten meanwhile; then repairs, if asked to.
async fn at_fences(ends: Ends<'_>, client: &SqlClient, tell: &mut Tell<'_>) -> Result<Verdict, Fault> {
    ensure_fence_requests(client).await?;
    let began = Instant::now();
    let (mut verdict, _) = compare::compare(ends, Maker::Leader { client, tell }, None).await?;
    verdict.took = began.elapsed();
    if ends.options.repair && !verdict.is_equal() {
        verdict.repaired = Some(repair_loop::until_equal(ends, client, &verdict, tell).await?);
    }
    Ok(verdict)
}

/// Asks the leader for a fence and takes it over; for another one when its snapshots are gone before we have them, because the
/// stream was set up anew in that moment.
async fn ask(ends: Ends<'_>, client: &SqlClient, tell: &mut Tell<'_>) -> Result<Fence, Fault> {
    let mut left = FENCES_MAX;
    loop {
        left = left.saturating_sub(1);
        match ask_once(ends, client, tell).await {
            Err(fault) if left > 0 && is_gone(&fault) => {
                tracing::debug!("the fence was gone before it was taken over: {fault}");
            }
            asked => return asked,
        }
    }
}

/// Whether an exported snapshot does not exist any more: invalid_parameter_value up to 16, undefined_object since.
fn is_gone(fault: &Fault) -> bool {
    let (Fault::Source(SourceError::Session(error)) | Fault::Destination(DestinationError::Session(error))) = fault
    else {
        return false;
    };
    [b"22023", b"42704"].iter().any(|code| error.code() == Some(SqlState::new(code)))
}

async fn ask_once(ends: Ends<'_>, client: &SqlClient, tell: &mut Tell<'_>) -> Result<Fence, Fault> {
    let id = request_id();
    ask_for_fence(client, &id, FenceKind::Verify, &[]).await?;
    let taken = async {
        match answer(ends.config, client, &id, tell).await? {
            FenceAnswer::Made(made) => fence::take_over(ends.addresses, &made).await,
            other @ (FenceAnswer::Waiting(_)
            | FenceAnswer::Repaired(_)
            | FenceAnswer::Refused(_)
            | FenceAnswer::Dropped) => Err(unexpected(&other)),
        }
    };
    let taken = taken.await;
    withdraw_fence(client, &id).await?;
    taken
}

async fn ask_for_repair(
    config: &Config,
    client: &SqlClient,
    keys: &[(QualifiedName, Vec<Key>)],
    tell: &mut Tell<'_>,
) -> Result<RepairOutcome, Fault> {
    let id = request_id();
    ask_for_fence(client, &id, FenceKind::Repair, keys).await?;
    let repaired = match answer(config, client, &id, tell).await {
        Ok(FenceAnswer::Repaired(outcome)) => Ok(outcome),
        Ok(other) => Err(unexpected(&other)),
        Err(fault) => Err(fault),
    };
    withdraw_fence(client, &id).await?;
    repaired
}

/// How a repair that was not done within `fence_timeout` is answered: fewer keys may be.
const TOO_SLOW: &str = "the repair took longer than";

fn request_id() -> String {
    format!("{:016x}{:016x}", fastrand::u64(..), fastrand::u64(..))
}

fn unexpected(answer: &FenceAnswer) -> Fault {
    Fault::Refused(match answer {
        FenceAnswer::Refused(report) => report.clone(),
        FenceAnswer::Waiting(_) | FenceAnswer::Made(_) | FenceAnswer::Repaired(_) | FenceAnswer::Dropped => {
            ErrorReport::new("the request for a fence was dropped by the service")
                .hint("This process was too slow to renew it; try again.")
        }
    })
}

/// Waits for an answer that is one, and tells what it waits for.
///
/// Bound: `fence_timeout`, by which an attempt is given up, and then the verify. Only while apply is on its way to a fence that is
/// known, which is honest work, it waits on for as long as the stored position moves within that time.
async fn answer(config: &Config, client: &SqlClient, id: &str, tell: &mut Tell<'_>) -> Result<FenceAnswer, Fault> {
    let began = Instant::now();
    let mut told: Option<ErrorReport> = None;
    let mut moved = (began, None);
    loop {
        match beat(client, id).await? {
            FenceAnswer::Waiting(report) => {
                // A failed attempt says what to do, and is told at once.
                let failed = report.as_ref().is_some_and(|report| report.hint.is_some());
                if began.elapsed() >= config.fence_timeout {
                    if let Some(report) = report.clone().filter(|_| failed) {
                        return Err(Fault::Refused(or_as_they_stand(report)));
                    }
                    let position = stored_position(client).await?;
                    if moved.1 != Some(position.clone()) {
                        moved = (Instant::now(), Some(position));
                    }
                    // A service that streams takes a request up at once; then its own bounds count.
                    let bound = config.fence_timeout + TAKEN_UP_WITHIN;
                    if report.is_none() && began.elapsed() > bound {
                        return Err(Fault::Refused(not_taken_up(bound)));
                    }
                    if let Some(report) = report.clone().filter(|_| moved.0.elapsed() > bound) {
                        return Err(Fault::Refused(or_as_they_stand(report)));
                    }
                }
                if report != told && (failed || began.elapsed() >= TELL_AFTER) {
                    if let Some(report) = &report {
                        tell(&report.lines());
                    }
                    told = report;
                }
            }
            answer @ (FenceAnswer::Made(_)
            | FenceAnswer::Repaired(_)
            | FenceAnswer::Refused(_)
            | FenceAnswer::Dropped) => return Ok(answer),
        }
        tokio::time::sleep(BEAT_EVERY).await;
    }
}

/// Where the destination is, as text: whether it moves.
async fn stored_position(client: &SqlClient) -> Result<Option<String>, DestinationError> {
    let row = client.query_opt("reading the position", "SELECT position::text FROM headwater.position", &[]).await?;
    Ok(row.map(|row| row.get(0)).transpose()?)
}

/// Why there was no fence, with the way to compare all the same.
fn or_as_they_stand(report: ErrorReport) -> ErrorReport {
    let hint = match &report.hint {
        Some(hint) if hint.contains(NO_FENCE_HINT) => return report,
        Some(hint) => format!("{hint}\n{NO_FENCE_HINT}"),
        None => format!("See what holds it up: headwater explain\n{NO_FENCE_HINT}"),
    };
    report.hint(hint)
}

/// A service that has just failed to make a fence pauses before it looks for the next request.
const TAKEN_UP_WITHIN: Duration = Duration::from_secs(5);

fn not_taken_up(within: Duration) -> ErrorReport {
    let within = humantime::format_duration(within);
    ErrorReport::new(format!("the running service took up no request for a fence within {within}"))
        .detail("A fence needs a service that streams.")
        .hint(format!("See what holds it up: headwater explain\n{NO_FENCE_HINT}"))
}

/// How to verify beside a service that cannot make a fence.
pub(super) const NO_FENCE_HINT: &str = "Or compare both sides as they stand: headwater verify --no-fence";

/// A wait that lasts so long is told.
const TELL_AFTER: Duration = Duration::from_secs(2);

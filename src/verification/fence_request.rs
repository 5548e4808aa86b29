//! A fence for a verify: the leader makes it, asked through the bookkeeping, or this instance does.
//!
//! In comes a session with the bookkeeping; out goes a fence that was taken over, or the reason why there is none. A request lives as
//! long as its heartbeat, so one whose process is gone holds nothing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::apply_worker::pause::Control;
use crate::comparison::Key;
use crate::config::Config;
use crate::destination::{
    DestinationError, FenceAnswer, FenceKind, RepairOutcome, ask_for_fence, beat, withdraw_fence,
};
use crate::error_policy::Fault;
use crate::pg::{ErrorReport, QualifiedName};
use crate::preflight::addresses::Addresses;
use crate::session::{SqlClient, SqlState};
use crate::source::SourceError;
use crate::verification::fence::{self, Fence, FenceProgress, NoFence};
use crate::verification::verdict::{VerifyOptions, VerifyProgress};

/// Hears what is being waited for.
pub(crate) type Tell<'a> = dyn FnMut(&str) + Send + 'a;

/// Who makes a fence.
pub(crate) enum Maker<'a> {
    /// The instance that leads, asked through the bookkeeping.
    Leader { client: &'a SqlClient, tell: &'a mut Tell<'a> },
    /// This instance, which leads.
    Ourselves(&'a Control),
    /// Nobody leads: the destination is taken as it stands.
    WithoutLeader,
}

impl Maker<'_> {
    /// A fence, and whether it is one.
    pub(crate) async fn make(&mut self, ends: VerifyContext<'_>) -> Result<(Fence, bool), Fault> {
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
pub(crate) struct VerifyContext<'a> {
    pub(crate) config: &'a Config,
    pub(crate) addresses: &'a Addresses,
    pub(crate) options: &'a VerifyOptions,
    pub(crate) progress: &'a Arc<VerifyProgress>,
}

/// Fences for tables that were rewritten while they were read.
pub(crate) const FENCES_MAX: usize = 5;

/// How often a waiting request is looked at, and its heartbeat renewed.
pub(crate) const BEAT_EVERY: Duration = Duration::from_millis(100);

/// Asks the leader for a fence and takes it over. Asks for another one when its snapshots are gone before we have them, because the
/// stream restarted in that moment.
pub(crate) async fn ask(ends: VerifyContext<'_>, client: &SqlClient, tell: &mut Tell<'_>) -> Result<Fence, Fault> {
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
pub(crate) fn is_gone(fault: &Fault) -> bool {
    let (Fault::Source(SourceError::Session(error)) | Fault::Destination(DestinationError::Session(error))) = fault
    else {
        return false;
    };
    [b"22023", b"42704"].iter().any(|code| error.code() == Some(SqlState::new(code)))
}

pub(crate) async fn ask_once(ends: VerifyContext<'_>, client: &SqlClient, tell: &mut Tell<'_>) -> Result<Fence, Fault> {
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

pub(crate) async fn ask_for_repair(
    config: &Config,
    client: &SqlClient,
    keys: &[(QualifiedName, Vec<Key>)],
    tell: &mut Tell<'_>,
) -> Result<RepairOutcome, Fault> {
    let mut attempts = 1;
    loop {
        let id = request_id();
        ask_for_fence(client, &id, FenceKind::Repair, keys).await?;
        let repaired = match answer(config, client, &id, tell).await {
            Ok(FenceAnswer::Repaired(outcome)) => Ok(outcome),
            Ok(other) => Err(unexpected(&other)),
            Err(fault) => Err(fault),
        };
        withdraw_fence(client, &id).await?;
        match repaired {
            Err(Fault::Refused(report)) if report.message.starts_with(OTHER_FILES) && attempts < FENCES_MAX => {
                tell(&format!("{}: repairing at another fence", report.message));
                attempts += 1;
            }
            repaired => return repaired,
        }
    }
}

/// How a repair is answered that has read a table as it never was; nothing was written.
pub(crate) const OTHER_FILES: &str = "source: another session truncated, rewrote or repartitioned table";

/// The same of a table.
pub(crate) fn other_files(table: &QualifiedName) -> ErrorReport {
    ErrorReport::new(format!(
        "source: another session truncated, rewrote or repartitioned table {table} while its rows were read"
    ))
}

/// How a repair that was not done within `fence_timeout` is answered: fewer keys may be.
pub(crate) const TOO_SLOW: &str = "the repair took longer than";

pub(crate) fn request_id() -> String {
    format!("{:016x}{:016x}", fastrand::u64(..), fastrand::u64(..))
}

pub(crate) fn unexpected(answer: &FenceAnswer) -> Fault {
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
pub(crate) async fn answer(
    config: &Config,
    client: &SqlClient,
    id: &str,
    tell: &mut Tell<'_>,
) -> Result<FenceAnswer, Fault> {
    let began = Instant::now();
    let mut told: Option<ErrorReport> = None;
    let mut moved = (began, None);
    loop {
        match beat(client, id).await? {
            FenceAnswer::Waiting(report) => {
                // A failed attempt has a hint, and is reported at once.
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
                        return Err(Fault::Refused(or_as_they_stand(not_made(bound, report))));
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
pub(crate) async fn stored_position(client: &SqlClient) -> Result<Option<String>, DestinationError> {
    let row = client.query_opt("reading the position", "SELECT position::text FROM headwater.position", &[]).await?;
    Ok(row.map(|row| row.get(0)).transpose()?)
}

/// Why there was no fence, with the way to compare all the same.
pub(crate) fn or_as_they_stand(report: ErrorReport) -> ErrorReport {
    let hint = match &report.hint {
        Some(hint) if hint.contains(NO_FENCE_HINT) => return report,
        Some(hint) => format!("{hint}\n{NO_FENCE_HINT}"),
        None => format!("See what holds it up: headwater explain\n{NO_FENCE_HINT}"),
    };
    report.hint(hint)
}

/// A service that has just failed to make a fence pauses before it looks for the next request.
pub(crate) const TAKEN_UP_WITHIN: Duration = Duration::from_secs(5);

/// What the service was at when the wait was over, as the reason.
fn not_made(within: Duration, report: ErrorReport) -> ErrorReport {
    let within = humantime::format_duration(within);
    ErrorReport { message: format!("no fence within {within}: {}", report.message), ..report }
}

pub(crate) fn not_taken_up(within: Duration) -> ErrorReport {
    let within = humantime::format_duration(within);
    ErrorReport::new(format!("the running service took up no request for a fence within {within}"))
        .detail("A fence needs a service that streams.")
        .hint(format!("See what holds it up: headwater explain\n{NO_FENCE_HINT}"))
}

/// How to verify when the service cannot make a fence.
pub(crate) const NO_FENCE_HINT: &str = "Or compare both sides as they stand: headwater verify --no-fence";

/// A wait that lasts this long is reported.
pub(crate) const TELL_AFTER: Duration = Duration::from_secs(2);

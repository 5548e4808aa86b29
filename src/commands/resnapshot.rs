//! `headwater resnapshot`: asks the running service to copy tables again, and waits until the copy is done.
//!
//! The request is a row in the destination's bookkeeping, which the leader polls. So the command reaches the service through the
//! database alone, the request survives a stop of the service, and any machine can watch it. Ctrl-C ends the
//! wait, not the request. The command shows the copy's progress where it can ask the service.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::cli::ResnapshotArguments;
use super::lock_waits::telling;
use super::{display, observe, settings};
use crate::commands::exit::ExitStatus;
use crate::config::Config;
use crate::destination::{Bookkeeping, DestinationError, LockHolders, RequestOrigin, RequestState, Scope};
use crate::error_policy::Fault;
use crate::pg::QualifiedName;
use crate::session::Sql;
use crate::telemetry::SnapshotPhase;

/// How often the request is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How long a statement may take: far longer than any of these does.
const STATEMENT_MAX: Duration = Duration::from_secs(60);

/// How often to ask the service for its progress, and how often to print it while the phase stays the same.
const ASK_EVERY: Duration = Duration::from_secs(1);
const TELL_EVERY: Duration = Duration::from_secs(10);

/// What was told of a copy's progress.
#[derive(Default)]
struct RequestProgress {
    asked: Option<Instant>,
    told: Option<(SnapshotPhase, Instant)>,
}

impl RequestProgress {
    /// Prints a new phase, and now and then one that takes long; only for a copy that includes all of these tables.
    async fn tell(&mut self, config: &Config, scope: &Scope) {
        if self.asked.is_some_and(|asked| asked.elapsed() < ASK_EVERY) {
            return;
        }
        // One that cannot be asked copies all the same.
        if let Ok(status) = observe::service(config).await
            && let (Some(snapshot), Some(seconds)) = (status.snapshot, status.snapshot_seconds)
            && config
                .tables
                .iter()
                .filter(|table| scope.contains(table))
                .all(|table| snapshot.tables.contains(&table.unquoted()))
            && !self.told.is_some_and(|(phase, at)| phase == snapshot.phase && at.elapsed() < TELL_EVERY)
        {
            display::line(&display::progress(&snapshot, seconds));
            self.told = Some((snapshot.phase, Instant::now()));
        }
        self.asked = Some(Instant::now());
    }
}

/// Table names as typed, which must be configured.
pub(super) fn scope<'a>(config: &Config, names: impl Iterator<Item = &'a str>) -> Result<Scope, ExitStatus> {
    let mut tables = Vec::new();
    for name in names {
        match name.trim().parse::<QualifiedName>() {
            Ok(table) if config.tables.contains(&table) => tables.push(table),
            Ok(table) => {
                let configured: Vec<String> = config.tables.iter().map(QualifiedName::to_string).collect();
                display::error(&format!("table {table} is not configured"));
                display::line(&format!("detail: These tables are: {}.", configured.join(", ")));
                return Err(ExitStatus::Usage);
            }
            Err(error) => {
                display::error(&format!("{name:?} is not a table's name: {error}"));
                return Err(ExitStatus::Usage);
            }
        }
    }
    tables.sort_unstable();
    tables.dedup();
    Ok(if tables.is_empty() { Scope::All } else { Scope::Tables(tables) })
}

/// Asks, and waits.
pub(super) async fn resnapshot(path: &Option<PathBuf>, options: &ResnapshotArguments) -> ExitStatus {
    let config = match settings::load(path.as_deref()) {
        Ok(config) => config,
        Err(exit) => return exit,
    };
    let scope = match scope(&config, options.tables.iter().map(String::as_str)) {
        Ok(scope) => scope,
        Err(exit) => return exit,
    };
    let (asked, waits) = telling(&config, ask(&config, &scope, options.no_wait)).await;
    match asked {
        Ok(exit) => exit,
        Err(error) => {
            display::error(&waits.report(&Fault::Destination(error)).lines());
            ExitStatus::OperatorMustAct
        }
    }
}

async fn ask(config: &Config, scope: &Scope, no_wait: bool) -> Result<ExitStatus, DestinationError> {
    let connection = config.destination.url.clone();
    let destination = Sql { connection, purpose: "asking", timeout: STATEMENT_MAX };
    let bookkeeping = Bookkeeping::connect_checked(&destination, &config.destination.trusted_roles).await?;
    if bookkeeping.stream().await?.is_none() || !bookkeeping.takes_requests().await? {
        display::error("this destination is not fed by a headwater that could be asked");
        display::line("hint: Start headwater run: it makes the first snapshot by itself.");
        return Ok(ExitStatus::OperatorMustAct);
    }
    let leads = LockHolders::look(bookkeeping.client(), &config.source.slot).await?.leader.is_some();
    let request = bookkeeping.request(scope, RequestOrigin::Command, None).await?;
    display::line(&format!("asked for a new snapshot of {scope} (request {request})"));
    if !leads {
        display::warning("no instance leads at the moment: the next one that does takes the request up");
        return Ok(ExitStatus::Done);
    }
    if no_wait {
        return Ok(ExitStatus::Done);
    }
    let mut told = None;
    let mut progress = RequestProgress::default();
    loop {
        progress.tell(config, scope).await;
        match bookkeeping.request_state(request).await? {
            Some(RequestState::Done) => {
                display::line(&format!("{scope}: published"));
                return Ok(ExitStatus::Done);
            }
            Some(RequestState::Failed(reason)) => {
                display::error(&format!("the snapshot of {scope} was given up: {reason}"));
                display::line("detail: The old data is still there.");
                return Ok(ExitStatus::OperatorMustAct);
            }
            Some(RequestState::Requested(reason)) => {
                if let Some(reason) = reason.filter(|reason| told.as_ref() != Some(reason)) {
                    display::warning(&format!("it is tried again: {reason}"));
                    told = Some(reason);
                }
            }
            None => {
                display::error(&format!("request {request} is gone from headwater.resnapshots"));
                return Ok(ExitStatus::OperatorMustAct);
            }
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

//! `headwater run`: the service.
//!
//! Configuration, logs, HTTP, then the pipeline until SIGTERM or SIGINT; says at its end which ending it was. A
//! second signal ends it at once: everything it does is safe to break off.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::cli::{LogStyle, RunArguments};
use super::{config_file, display, resnapshot, settings};
use crate::commands::exit::ExitStatus;
use crate::error_policy::{Fault, report};
use crate::pg::{counted, split_names};
use crate::supervisor::{self, RunOptions};
use crate::telemetry::{self, LogFormat, State, StreamRoute, Telemetry, start_logging};

/// Runs the service.
pub(super) async fn run(path: &Option<PathBuf>, options: &RunArguments) -> ExitStatus {
    let config = match settings::load(path.as_deref()) {
        Ok(config) => Arc::new(config),
        Err(exit) => return exit,
    };
    let resnapshot = match &options.resnapshot {
        Some(tables) => match resnapshot::scope(&config, split_names(tables).filter(|name| !name.trim().is_empty())) {
            Ok(scope) => Some(scope),
            Err(exit) => return exit,
        },
        None => None,
    };
    let format = match options.log_format {
        LogStyle::Human => LogFormat::Human,
        LogStyle::Json => LogFormat::Json,
    };
    start_logging(format, || display::AboveBars);
    let telemetry = Arc::new(Telemetry::new(config.http.ready_lag_max));
    telemetry.set_route(StreamRoute {
        source: config.source.url.to_string(),
        destination: config.destination.url.to_string(),
        slot: config.source.slot.to_string(),
        publication: config.source.publication.as_str().to_owned(),
    });
    let (stop, stopping) = watch::channel(false);
    if let Err(error) = stop_on_signals(stop) {
        display::error(&format!("cannot listen for signals: {error}"));
        return ExitStatus::OperatorMustAct;
    }
    if let (None, Some(found)) = (path, config_file::file(path.as_deref())) {
        tracing::info!("the configuration is {}", found.display());
    }
    tracing::info!(
        "headwater {} copies {} from {} to {}",
        env!("CARGO_PKG_VERSION"),
        counted(config.tables.len(), "table"),
        config.source.url,
        config.destination.url
    );
    if let Some(address) = config.http.listen {
        match telemetry::serve(address, Arc::clone(&telemetry), stopping.clone()).await {
            Ok(bound) => tracing::info!("metrics, health and status at http://{bound}/"),
            Err(error) => {
                display::error(&error.report().lines());
                return ExitStatus::OperatorMustAct;
            }
        }
    }
    telemetry::notify_service_manager(Arc::clone(&telemetry), stopping.clone());
    let shown = tokio::spawn(display::show_snapshots(Arc::clone(&telemetry)));
    let log_format = options.log_format;
    let wanted = RunOptions { resnapshot, accept_source_identity: options.accept_source_identity };
    let ended = supervisor::run(config, wanted, Arc::clone(&telemetry), stopping).await;
    display::end(shown).await;
    telemetry.set_state(State::Stopped, None);
    match ended {
        Ok(()) => ExitStatus::Done,
        Err(fault) => {
            tell(&fault, log_format);
            ExitStatus::OperatorMustAct
        }
    }
}

/// Says why the service ended.
fn tell(fault: &Fault, log_format: LogStyle) {
    let report = report(fault);
    match log_format {
        LogStyle::Human => display::error(&report.lines()),
        LogStyle::Json => {
            tracing::error!(detail = report.detail.as_deref(), hint = report.hint.as_deref(), "{report}");
        }
    }
}

/// Turns the first SIGTERM or SIGINT into a stop, and the second into an end. Signals that others give a meaning to, and that would
/// end a process which knows nothing of them, change nothing: SIGHUP (a terminal that is closed, `systemctl reload`), SIGUSR1, SIGUSR2.
fn stop_on_signals(stop: watch::Sender<bool>) -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (mut hang_up, mut user1, mut user2) =
        (signal(SignalKind::hangup())?, signal(SignalKind::user_defined1())?, signal(SignalKind::user_defined2())?);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                Some(()) = hang_up.recv() => {
                    tracing::info!(
                        "SIGHUP changes nothing: the configuration is read at the start, restart headwater to have it read again"
                    );
                }
                Some(()) = user1.recv() => tracing::debug!("SIGUSR1 is ignored"),
                Some(()) = user2.recv() => tracing::debug!("SIGUSR2 is ignored"),
                else => return,
            }
        }
    });
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
        stop.send_replace(true);
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        std::process::exit(1);
    });
    Ok(())
}

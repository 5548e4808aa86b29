//! What a command waits for: said on standard error while it lasts, and in the hint of the error that ends it.
//!
//! Wraps the work of every command that asks the servers for more than a moment. In comes the work; out goes what came of it, with the
//! waits that were seen last. The waits of a running service are reported, too, since a command may wait for that. An error comes with what
//! its own session has waited for, and nobody else's.
//!
//! Bounds: those of the work. Two sessions are opened once it has lasted for [`LOOKED_AFTER`], and end with it. A host that takes no
//! session is said for all sessions of the command alike.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::pin::pin;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::display;
use crate::config::{Config, ConnectionSettings};
use crate::error_policy::{Fault, report};
use crate::pg::ErrorReport;
use crate::preflight::waits::{
    LOOK_EVERY, LateSession, ServerEnd, ToldWaits, Wait, print_slow_connections, waits, working,
};
use crate::session::Sql;

/// Most commands are over by then. A wait is said once it has lasted for 5 s.
const LOOKED_AFTER: Duration = Duration::from_secs(3);
/// What a look at the waits may take.
const QUERY_MAX: Duration = Duration::from_secs(10);
/// More waits than a command has sessions.
const REMEMBERED_MAX: usize = 100;

/// What sessions wait for, or were waiting for when they were last seen: those of this command, and of a service that runs.
#[derive(Debug, Default)]
pub(super) struct LastWaits(Vec<Wait>);

/// Does the work of a command, and says meanwhile what headwater's sessions wait for at either end.
pub(super) async fn telling<T>(config: &Config, work: impl Future<Output = T>) -> (T, LastWaits) {
    // Large as it is, it is not moved with each layer around it.
    let work = Box::pin(work);
    let (source, destination) = (Mutex::default(), Mutex::default());
    let watching = async {
        tokio::time::sleep(LOOKED_AFTER).await;
        let (never, _): (Infallible, Infallible) = tokio::join!(
            watch(ServerEnd::Source, &config.source.url, &source),
            watch(ServerEnd::Destination, &config.destination.url, &destination)
        );
        never
    };
    let done = unless_over(telling_connections(work), watching).await;
    let last = [source, destination].map(|waits| waits.into_inner().unwrap_or_else(PoisonError::into_inner));
    (done, LastWaits(last.concat()))
}

/// Does work that asks servers, and says meanwhile which of them it waits for to connect.
pub(super) async fn telling_connections<T>(work: impl Future<Output = T>) -> T {
    unless_over(Box::pin(work), print_slow_connections(display::line)).await
}

async fn unless_over<T>(work: impl Future<Output = T>, watching: impl Future<Output = Infallible>) -> T {
    let (mut work, mut watching) = (pin!(work), pin!(watching));
    tokio::select! {
        biased;
        done = &mut work => done,
        never = &mut watching => match never {},
    }
}

async fn watch(end: ServerEnd, connection: &ConnectionSettings, last: &Mutex<Vec<Wait>>) -> Infallible {
    let sql = Sql { connection: connection.clone(), purpose: "monitor", timeout: QUERY_MAX };
    let mut told = ToldWaits::default();
    loop {
        if let Ok(client) = sql.connect().await {
            while let Ok(found) = waits(&client, end, &connection.application_name).await {
                for wait in told.new_ones(&found) {
                    display::line(&wait.text());
                }
                let mut before = last.lock().unwrap_or_else(PoisonError::into_inner).clone();
                before.retain(|wait| found.iter().all(|found| found.process_id() != wait.process_id()));
                let Ok(working) = working(&client, &before.iter().map(Wait::process_id).collect::<Vec<_>>()).await
                else {
                    break;
                };
                before.retain(|wait| !working.contains(&wait.process_id()));
                before.truncate(REMEMBERED_MAX);
                *last.lock().unwrap_or_else(PoisonError::into_inner) = [found, before].concat();
                tokio::time::sleep(LOOK_EVERY).await;
            }
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

impl LastWaits {
    /// A fault, with what was waited for where it is the end of a wait.
    pub(super) fn report(&self, fault: &Fault) -> ErrorReport {
        match LateSession::of(fault) {
            Some(late) => self.explain(late, report(fault)),
            None => report(fault),
        }
    }

    /// The end of a wait, with what that session has waited for.
    pub(super) fn explain(&self, late: LateSession, report: ErrorReport) -> ErrorReport {
        let waits: Vec<&Wait> = self.0.iter().filter(|wait| late.has_met(wait)).collect();
        if waits.is_empty() {
            return report;
        }
        let texts: Vec<String> = waits.iter().map(|wait| wait.text()).collect();
        let statements: BTreeSet<&str> = waits.iter().filter_map(|wait| wait.ending()).collect();
        let report = report.detail(format!("It has waited: {}.", texts.join("; ")));
        if statements.is_empty() {
            return report.hint("Bring the standby back, or set synchronous_standby_names of that server otherwise.");
        }
        let statements: Vec<&str> = statements.into_iter().collect();
        report.hint(format!(
            "Let what is in the way end, and try again (headwater explain shows it, too); or end it:\n{}",
            statements.join("\n")
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_comes_with_what_its_own_session_at_its_own_end_has_waited_for() {
        // Processes of two servers may have one number.
        let waits = LastWaits(vec![
            Wait::example(ServerEnd::Source, 7, "ROLLBACK PREPARED 'one';"),
            Wait::example(ServerEnd::Destination, 7, "ROLLBACK PREPARED 'two';"),
            Wait::example(ServerEnd::Destination, 8, "ROLLBACK PREPARED 'three';"),
        ]);
        for (end, own) in [(ServerEnd::Source, "'one'"), (ServerEnd::Destination, "'two'")] {
            let report = waits.explain(LateSession::example(end, 7), ErrorReport::new("no answer"));
            let lines = report.lines();
            let others = ["'one'", "'two'", "'three'"].into_iter().filter(|other| *other != own);
            assert!(lines.contains(own) && lines.contains(&format!("{}: a session waits", end.as_str())), "{lines}");
            assert!(others.into_iter().all(|other| !lines.contains(other)), "{lines}");
        }
        let report = waits.explain(LateSession::example(ServerEnd::Source, 8), ErrorReport::new("no answer"));
        assert_eq!(report.lines(), ErrorReport::new("no answer").lines());
    }
}

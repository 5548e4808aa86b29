//! Sequences follow: at once when a stream begins, every half minute, and once more when the service stops.
//!
//! Runs next to the replication loop while this instance leads. No stream carries the owned sequences of replicated columns; a
//! destination that takes over must not issue again the values that the source issued. [`follow`] is one round; `cutover` makes the
//! last one after the source's last write.
//!
//! Bounds: sessions are opened for a round and closed after it; each question has the session's bound.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::catalog::sequences::Widening;
use crate::config::SchemaChanges;
use crate::destination::{DestinationError, FollowedSequences, follow_sequences};
use crate::error_policy::Fault;
use crate::pg::QualifiedName;
use crate::preflight::addresses::Addresses;
use crate::session::SqlClient;
use crate::source::{SourceError, source_sequences};
use crate::telemetry::Telemetry;

/// How often sequences are compared.
const FOLLOW_EVERY: Duration = Duration::from_secs(30);
/// How long the last round may take once stopping.
const LAST_ROUND_MAX: Duration = Duration::from_secs(3);

/// Makes one round.
///
/// # Errors
/// [`Fault`] of either end; another round makes up for it.
pub async fn follow(
    source: &SqlClient,
    destination: &SqlClient,
    tables: &[QualifiedName],
    changes: SchemaChanges,
) -> Result<FollowedSequences, Fault> {
    let standing = source_sequences(source, tables).await?;
    Ok(follow_sequences(destination, tables, &standing, changes).await?)
}

/// A task that follows while a stream runs. Dropping it ends it.
pub(crate) struct Sequences {
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Drop for Sequences {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Sequences {
    pub(crate) fn start(
        addresses: Addresses,
        tables: Vec<QualifiedName>,
        changes: SchemaChanges,
        telemetry: Arc<Telemetry>,
    ) -> Sequences {
        let (stop, mut stopped) = watch::channel(false);
        let task = tokio::spawn(async move {
            let mut told = BTreeSet::new();
            loop {
                let last = *stopped.borrow_and_update();
                tell(round(&addresses, &tables, changes).await, &mut told, &telemetry);
                if last {
                    return;
                }
                tokio::select! {
                    () = tokio::time::sleep(FOLLOW_EVERY) => {}
                    _ = stopped.changed() => {}
                }
            }
        });
        Sequences { stop, task }
    }

    /// Makes the last round and ends.
    pub(crate) async fn finish(mut self) {
        let _ = self.stop.send(true);
        let _ = tokio::time::timeout(LAST_ROUND_MAX, &mut self.task).await;
    }
}

async fn round(
    addresses: &Addresses,
    tables: &[QualifiedName],
    changes: SchemaChanges,
) -> Result<FollowedSequences, Fault> {
    let source = addresses.source.connect().await.map_err(SourceError::Session)?;
    let destination = addresses.destination.connect().await.map_err(DestinationError::Session)?;
    follow(&source, &destination, tables, changes).await
}

/// Each thing is said once.
fn tell(round: Result<FollowedSequences, Fault>, told: &mut BTreeSet<String>, telemetry: &Telemetry) {
    match round {
        Ok(FollowedSequences { moved, widened, reports }) => {
            if moved > 0 {
                tracing::debug!("{moved} sequences moved");
            }
            for Widening { name, data_type } in widened {
                let text = format!("sequence {name} at the destination is {} now, as at the source", data_type.sql());
                telemetry.event("sequence", text);
            }
            for report in reports {
                if told.insert(report.message.clone()) {
                    telemetry.event("sequence", report.lines());
                }
            }
        }
        // What a server refuses, it will refuse again.
        Err(Fault::Source(SourceError::Session(error)) | Fault::Destination(DestinationError::Session(error)))
            if error.server().is_some_and(|server| !server.fatal) =>
        {
            if told.insert(error.to_string()) {
                telemetry.event("sequence", format!("sequences are not followed: {error}"));
            }
        }
        // Lost links are the ring's, which reports them; here they only mean: later.
        Err(fault) => tracing::debug!("sequences are compared later: {fault}"),
    }
}

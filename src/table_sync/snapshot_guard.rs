//! While a snapshot is being copied: does its holder live, and what does it cost the source?
//!
//! Runs next to `copy`, and notices within a second, not at the end of the copy, that a snapshot's holder is gone. While the
//! snapshot is held, the source's vacuum cannot remove what was deleted since, and the slot keeps the WAL. The guard measures both,
//! and reports them once `snapshot.max_duration` has passed.

use std::time::{Duration, Instant};

use crate::error_policy::Fault;
use crate::session::{SessionError, SqlClient};
use crate::source::{HeldSnapshot, SourceError};
use crate::table_sync::ends::Ends;

const ASK_EVERY: Duration = Duration::from_secs(1);
const MEASURE_EVERY: Duration = Duration::from_secs(2);

/// Lives as long as the snapshot's holder; resolves with its loss.
pub(super) async fn keep_holder(ends: Ends<'_>, held: &HeldSnapshot, slot: &str) -> Fault {
    let began = Instant::now();
    let mut measured_at: Option<Instant> = None;
    let mut told = false;
    // A question that fails here is asked again: only the holder's own silence ends a snapshot.
    let mut observer: Option<SqlClient> = None;
    loop {
        if let Err(error) = held.client().batch("keeping the snapshot", "SELECT").await {
            return Fault::Source(SourceError::SnapshotLost(error));
        }
        let overdue = ends.config.snapshot.max_duration.is_some_and(|most| began.elapsed() > most);
        if measured_at.is_none_or(|at| at.elapsed() >= MEASURE_EVERY) || (overdue && !told) {
            measured_at = Some(Instant::now());
            let measured = async {
                let client = match observer.take() {
                    Some(client) => client,
                    None => ends.addresses.source.connect().await?,
                };
                let cost = measure(&client, held, slot).await?;
                Ok::<_, SessionError>((client, cost))
            };
            if let Ok((client, (transactions, wal_bytes))) = measured.await {
                observer = Some(client);
                ends.telemetry.snapshot_holds(transactions, wal_bytes);
                if overdue && !told {
                    told = true;
                    tracing::warn!(
                        transactions,
                        wal_bytes,
                        "the snapshot is older than snapshot.max_duration ({}): it holds back the source's vacuum by {transactions} \
                         transactions and keeps {:.0} MB of its WAL",
                        humantime::format_duration(ends.config.snapshot.max_duration.unwrap_or_default()),
                        wal_bytes as f64 / 1e6
                    );
                }
            }
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
}

/// Transactions since the snapshot, and WAL since the slot's restart position, in bytes.
async fn measure(observer: &SqlClient, held: &HeldSnapshot, slot: &str) -> Result<(u64, u64), SessionError> {
    let doing = "measuring what the snapshot holds";
    let sql = "SELECT pg_catalog.pg_snapshot_xmin(pg_catalog.pg_current_snapshot())::text";
    let xmin: String = held.client().query_one(doing, sql, &[]).await?.get(0)?;
    let sql = "SELECT (pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())::text::numeric - $1::text::numeric)::bigint,
                      (SELECT pg_catalog.pg_wal_lsn_diff(CASE WHEN pg_catalog.pg_is_in_recovery()
                                  THEN pg_catalog.pg_last_wal_replay_lsn() ELSE pg_catalog.pg_current_wal_lsn() END, restart_lsn)::bigint
                       FROM pg_catalog.pg_replication_slots WHERE slot_name = $2::text)";
    let row = observer.query_one(doing, sql, &[&xmin, &slot]).await?;
    let count = |value: Option<i64>| value.and_then(|value| u64::try_from(value).ok()).unwrap_or(0);
    Ok((count(row.get(0)?), count(row.get(1)?)))
}

//! What happens at both ends while tables are copied again: writes at the source, reads at the destination.
//!
//! The writer commits 500 one-row transactions a second and leaves the source as it was, but for authors; the reader asks one
//! thing after another as long as it is let, and remembers how long it waited at most, before the copy and during it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use headwater::session::SqlClient;
use tokio::task::JoinHandle;

use super::Bench;
use super::measure::UnderLoad;
use super::peers::{PATIENCE, run, value};

/// How long the reader reads before the copy begins.
const BEFORE: Duration = Duration::from_secs(5);
/// Between two writes.
const WRITE_EVERY: Duration = Duration::from_millis(2);

/// One row in a hundred: changed, missing, and one that is nobody's.
pub(super) fn drift(messages: u64) -> String {
    format!(
        "UPDATE messages SET body = 'drifted' WHERE id % 300 = 0;
         DELETE FROM messages WHERE id % 300 = 1;
         INSERT INTO messages SELECT -i, topic_id, author, created_at, body FROM messages, LATERAL (SELECT id / 300 + 1 AS i) AS n
         WHERE id % 300 = 2 AND id <= {messages};"
    )
}

/// A writer and a reader at work.
pub(super) struct Load {
    done: Arc<AtomicBool>,
    writes: JoinHandle<u64>,
    reads: JoinHandle<Duration>,
    before: Duration,
    began: Instant,
}

impl Bench {
    /// Starts both; returns once it is known how long the reader waits while nothing is copied.
    pub(super) async fn begin_load(&self, database: &str) -> Load {
        let done = Arc::new(AtomicBool::new(false));
        let (source, destination) = (self.client(true, "forum").await, self.client(false, database).await);
        let writes = tokio::spawn(write(source, self.messages, Arc::clone(&done)));
        let calm = Arc::new(AtomicBool::new(false));
        let reading = tokio::spawn(read(destination, self.messages, Arc::clone(&calm)));
        tokio::time::sleep(BEFORE).await;
        calm.store(true, Ordering::Relaxed);
        let before = reading.await.unwrap();
        let destination = self.client(false, database).await;
        let reads = tokio::spawn(read(destination, self.messages, Arc::clone(&done)));
        Load { done, writes, reads, before, began: Instant::now() }
    }

    /// Waits until both sides have the same rows.
    pub(super) async fn assert_becomes_equal(&self, source: &SqlClient, destination: &SqlClient) {
        let sql = "SELECT (SELECT count(*) || ' ' || sum(hashtext(m::text)::bigint) FROM messages AS m)
                   || ' ' || (SELECT sum(hashtext(t::text)::bigint) FROM topics AS t)";
        let began = Instant::now();
        while value(source, sql).await != value(destination, sql).await {
            assert!(began.elapsed() < PATIENCE, "both sides are equal again");
        }
    }
}

impl Load {
    /// Ends both. `log` tells how long the stream was held.
    pub(super) async fn end(self, log: &str) -> UnderLoad {
        let seconds = self.began.elapsed().as_secs_f64();
        self.done.store(true, Ordering::Relaxed);
        let (writes, during) = (self.writes.await.unwrap(), self.reads.await.unwrap());
        let held = log.rsplit("the stream was held for ").next().and_then(|rest| rest.split(' ').next()?.parse().ok());
        UnderLoad {
            held_ms: held.unwrap_or_else(|| panic!("how long the stream was held is not in the log: {log}")),
            longest_read_before_ms: self.before.as_secs_f64() * 1e3,
            longest_read_ms: during.as_secs_f64() * 1e3,
            writes_per_second: writes as f64 / (seconds + BEFORE.as_secs_f64()),
        }
    }
}

async fn write(client: SqlClient, messages: u64, done: Arc<AtomicBool>) -> u64 {
    let mut random = fastrand::Rng::with_seed(1);
    let mut clock = tokio::time::interval(WRITE_EVERY);
    let mut written = 0;
    while !done.load(Ordering::Relaxed) {
        clock.tick().await;
        // Rows that are missing at the destination are left alone: a change of one would be a conflict, which stops the stream.
        let old = 3 + random.u64(..messages / 300) * 300 + random.u64(..290);
        let new = messages + 1 + written / 4;
        let sql = match written % 4 {
            0 => format!(
                "INSERT INTO messages SELECT {new}, topic_id, author, created_at, body FROM messages WHERE id = {old}"
            ),
            1 => format!("DELETE FROM messages WHERE id = {new}"),
            _ => format!("UPDATE messages SET author = {} WHERE id = {old}", random.u32(..50_000)),
        };
        run(&client, &sql).await;
        written += 1;
    }
    run(&client, &format!("DELETE FROM messages WHERE id > {messages}")).await;
    written
}

async fn read(client: SqlClient, messages: u64, done: Arc<AtomicBool>) -> Duration {
    let mut random = fastrand::Rng::with_seed(2);
    let mut longest = Duration::ZERO;
    while !done.load(Ordering::Relaxed) {
        let id = 1 + random.u64(..messages);
        let sql = format!(
            "SELECT ((SELECT count(*) FROM sections) > 0 AND (SELECT count(*) FROM messages WHERE id BETWEEN {id} AND {id} + 1000) > 0)::text"
        );
        let began = Instant::now();
        let there = value(&client, &sql).await;
        longest = longest.max(began.elapsed());
        assert_eq!(there.as_deref(), Some("true"), "a reader never sees an empty table");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    longest
}

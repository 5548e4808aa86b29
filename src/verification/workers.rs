//! Statements over the ranges of a comparison, by several sessions a side, within a rate.
//!
//! `compare` gives a list of [`CompareTask`]s for both sides and hears every answer; each task runs in a transaction of its
//! own under its side's snapshot, so that no table stays locked for longer than one range takes.
//!
//! Bounds: as many sessions a side as there are workers; at most as many answers wait to be heard; a statement has the
//! bound of a snapshot's.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::destination::{DestinationError, STATEMENT_MAX};
use crate::error_policy::Fault;
use crate::pg::quote_literal;
use crate::session::{Row, SessionError, Sql, SqlClient};
use crate::source::SourceError;
use crate::verification::verdict::VerifyProgress;

/// Which database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Side {
    Source,
    Destination,
}

impl Side {
    pub(crate) fn fault(self, error: SessionError) -> Fault {
        match self {
            Side::Source => SourceError::Session(error).into(),
            Side::Destination => DestinationError::Session(error).into(),
        }
    }
}

/// One statement over one range.
#[derive(Clone, Debug)]
pub(crate) struct CompareTask {
    pub(crate) side: Side,
    /// Which of the tables that are compared.
    pub(crate) table: usize,
    pub(crate) sql: String,
    /// What it reads.
    pub(crate) bytes: u64,
}

/// The answer to a task.
#[derive(Debug)]
pub(crate) struct TableAnswer {
    /// Which of the tables that are compared.
    pub(crate) table: usize,
    pub(crate) side: Side,
    /// Columns as text.
    pub(crate) rows: Vec<Vec<Option<String>>>,
}

/// A side's sessions.
#[derive(Clone, Debug)]
pub(crate) struct SideSessions {
    pub(crate) sql: Sql,
    pub(crate) snapshot_name: String,
    /// How long a statement waits for a lock that somebody else holds.
    pub(crate) lock_timeout: Duration,
}

/// How the work is shared.
#[derive(Clone, Debug)]
pub(crate) struct Workers {
    pub(crate) source: SideSessions,
    pub(crate) destination: SideSessions,
    pub(crate) count: usize,
    pub(crate) max_rate: Option<u64>,
    pub(crate) progress: Arc<VerifyProgress>,
}

impl Workers {
    /// Runs all tasks; `heard` takes each answer, in any order.
    pub(crate) async fn run(
        &self,
        tasks: Vec<CompareTask>,
        mut heard: impl FnMut(TableAnswer) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let (answers, mut incoming) = mpsc::channel(2 * self.count);
        let mut running = JoinSet::new();
        for (side, reading) in [(Side::Source, &self.source), (Side::Destination, &self.destination)] {
            let own: VecDeque<CompareTask> = tasks.iter().filter(|task| task.side == side).cloned().collect();
            let shared = Arc::new(SharedTasks {
                side,
                count: self.count.min(own.len()),
                reading: reading.clone(),
                rate: Mutex::new(ReadRate { bytes_per_second: self.max_rate, earned_at: Instant::now() }),
                tasks: Mutex::new(own),
                progress: Arc::clone(&self.progress),
            });
            for _ in 0..shared.count {
                running.spawn(work_off(Arc::clone(&shared), answers.clone()));
            }
        }
        drop(answers);
        while let Some(answer) = incoming.recv().await {
            heard(answer)?;
        }
        while let Some(done) = running.join_next().await {
            match done {
                Ok(done) => done?,
                Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                Err(_) => {}
            }
        }
        Ok(())
    }
}

struct SharedTasks {
    side: Side,
    count: usize,
    reading: SideSessions,
    tasks: Mutex<VecDeque<CompareTask>>,
    rate: Mutex<ReadRate>,
    progress: Arc<VerifyProgress>,
}

/// A session that reads tables, and waits for nobody's lock for longer than this.
pub(crate) async fn session(sql: &Sql, lock_timeout: Duration) -> Result<SqlClient, SessionError> {
    let client = sql.connect().await?;
    let bound = format!("SET lock_timeout = {}", lock_timeout.as_millis());
    client.statement("setting up a session", &bound).await?;
    Ok(client)
}

async fn work_off(shared: Arc<SharedTasks>, answers: mpsc::Sender<TableAnswer>) -> Result<(), Fault> {
    let fault = |error| shared.side.fault(error);
    let client =
        session(&shared.reading.sql, shared.reading.lock_timeout).await.map_err(fault)?.with_timeout(STATEMENT_MAX);
    loop {
        let tasks = shared.next();
        if tasks.is_empty() {
            return Ok(());
        }
        let read = read(&client, &shared.reading.snapshot_name, &tasks).await.map_err(fault)?;
        for (task, rows) in tasks.into_iter().zip(read) {
            shared.progress.read(task.bytes);
            if answers.send(TableAnswer { table: task.table, side: task.side, rows }).await.is_err() {
                // The receiver has given up.
                return Ok(());
            }
            let wait = shared.rate.lock().unwrap_or_else(PoisonError::into_inner).spend(task.bytes, Instant::now());
            tokio::time::sleep(wait).await;
        }
    }
}

impl SharedTasks {
    /// The next task, and those behind it while they are small, each worker's share of them at most.
    fn next(&self) -> Vec<CompareTask> {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        let is_limited = self.rate.lock().unwrap_or_else(PoisonError::into_inner).bytes_per_second.is_some();
        let most = if is_limited { 1 } else { tasks.len().div_ceil(self.count.max(1)).min(TOGETHER_MAX) };
        let (mut next, mut bytes) = (Vec::new(), 0_u64);
        while let Some(task) = tasks.front() {
            bytes = bytes.saturating_add(task.bytes);
            if next.len() >= most || !next.is_empty() && bytes > TOGETHER_BYTES_MAX {
                break;
            }
            next.extend(tasks.pop_front());
        }
        next
    }
}

/// Tasks whose statements are sent without waiting for answers in between at most, and what they read: their rows wait in memory together.
const TOGETHER_MAX: usize = 32;
const TOGETHER_BYTES_MAX: u64 = 4 << 20;

/// Reads each task in a transaction of its own. Where one of its statements fails the answers are not looked at, whatever else was run.
async fn read(
    client: &SqlClient,
    snapshot_name: &str,
    tasks: &[CompareTask],
) -> Result<Vec<Vec<Vec<Option<String>>>>, SessionError> {
    const BEGIN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
    let import = format!("SET TRANSACTION SNAPSHOT {}", quote_literal(snapshot_name));
    let statements = tasks.iter().flat_map(|task| [BEGIN, &import, &task.sql, "COMMIT"]);
    let answers = client.query_each("comparing tables", &statements.collect::<Vec<&str>>()).await?;
    let of_tasks = answers.iter().skip(2).step_by(4);
    of_tasks.map(|rows| rows.iter().map(Row::texts).collect()).collect()
}

/// A year: a server may say of a table that it is of any size.
const WAIT_SECONDS_MAX: f64 = 31_536_000.0;

/// Reads at most so many bytes a second, over all workers of a side.
#[derive(Debug)]
struct ReadRate {
    bytes_per_second: Option<u64>,
    /// When everything read so far will have been earned.
    earned_at: Instant,
}

impl ReadRate {
    /// How long to wait after having read `bytes`.
    fn spend(&mut self, bytes: u64, now: Instant) -> Duration {
        let Some(rate) = self.bytes_per_second.filter(|rate| *rate > 0) else { return Duration::ZERO };
        self.earned_at =
            self.earned_at.max(now) + Duration::from_secs_f64((bytes as f64 / rate as f64).min(WAIT_SECONDS_MAX));
        self.earned_at.duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_kept_over_all_that_is_read() {
        let now = Instant::now();
        let mut rate = ReadRate { bytes_per_second: Some(1000), earned_at: now };
        assert_eq!(rate.spend(500, now), Duration::from_millis(500));
        assert_eq!(rate.spend(500, now), Duration::from_secs(1));
        assert_eq!(rate.spend(0, now + Duration::from_secs(9)), Duration::ZERO);
        let mut without = ReadRate { bytes_per_second: None, earned_at: now };
        assert_eq!(without.spend(u64::MAX, now), Duration::ZERO);
    }
}

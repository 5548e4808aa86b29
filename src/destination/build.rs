//! Finishing what is staged: indexes, keys, foreign keys and statistics, tables side by side.
//!
//! Called by `table_sync` between the load and the publish. Building an index in one go after the load costs a
//! third of keeping it up to date row by row. The sessions' maintenance settings are raised: they are ours alone.
//!
//! ```text
//! side by side   CREATE INDEX …                    all tables, all indexes, the largest table's first
//! in order       … ADD CONSTRAINT … USING INDEX    no time
//! in order       … ADD CHECK … NOT VALID           no time, where the source has it so
//! in order       … ADD FOREIGN KEY … NOT VALID     no time, among the new tables
//! side by side   … VALIDATE CONSTRAINT, ANALYZE    table by table
//! ```
//!
//! The server reports the progress of an index build (pg_stat_progress_create_index), and nothing of the other statements.
//!
//! A foreign key that the copied rows violate stays NOT VALID: the source says that it is valid, and has such rows all the same
//! (they were written where foreign keys do not act).

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinSet;

use super::compare::{TOGETHER_BYTES_MAX, TOGETHER_MAX};
use super::error::DestinationError;
use super::orphans::{is_orphaned, orphans_told};
use super::sessions::connect_recorded;
use super::staging::{Mode, NewForeignKey, STATEMENT_MAX, StagedTable, Staging};
use crate::comparison::reconcile_sql as sql;
use crate::schema_change::ddl;
use crate::session::{Row, SessionError, Sql, SqlClient, SqlState};
use crate::telemetry::{SnapshotPhase, Telemetry, failpoint};

/// How often the server is asked how far its indexes are.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Steps that one session runs one after another.
type Job = Vec<BuildStep>;

/// One of them.
struct BuildStep {
    doing: &'static str,
    statement: String,
    /// What it works through: the bytes of its table.
    bytes: u64,
    /// The message about a foreign key that the rows violate; `None` for other steps.
    orphans: Option<String>,
}

impl BuildStep {
    fn new(doing: &'static str, statement: String, table: &StagedTable) -> BuildStep {
        BuildStep { doing, statement, bytes: table.source.bytes, orphans: None }
    }
}

impl Staging {
    /// Builds what the loaded rows need, with so many sessions: indexes and keys of new tables, foreign keys among them,
    /// an index on the key of what will be reconciled, and statistics. Returns what an operator should know of them.
    ///
    /// # Errors
    /// [`DestinationError`].
    pub async fn finish(
        &self,
        destination: &Sql,
        sessions: usize,
        telemetry: &Arc<Telemetry>,
    ) -> Result<Vec<String>, DestinationError> {
        let mut by_size: Vec<&StagedTable> = self.tables.iter().collect();
        by_size.sort_by_key(|table| std::cmp::Reverse(table.source.bytes));
        let mut builds: Vec<Job> = Vec::new();
        for table in &by_size {
            let statements: Vec<String> = match table.mode {
                Mode::Move => self.indexes(table).map(|indexes| indexes.builds.clone()).unwrap_or_default(),
                Mode::Fill | Mode::Reconcile => table.matching.index(&table.staging).into_iter().collect(),
            };
            builds.extend(
                statements.into_iter().map(|statement| vec![BuildStep::new("building an index", statement, table)]),
            );
        }
        begin_phase(telemetry, SnapshotPhase::Indexing, &builds);
        failpoint::pause("snapshot.indexing").await;
        let (client, _) = maintenance_session(destination, 1).await?;
        let under_way = JobsUnderWay::default();
        let built = tokio::select! {
            built = side_by_side(destination, builds, sessions, telemetry, &under_way) => built,
            never = under_way.keep_told(&client, telemetry) => match never {},
        };
        telemetry.snapshot_steps_under_way(0.0);
        built.map_err(|error| self.key_refused(error))?;

        self.attach(&client).await?;
        let mut jobs: Vec<Job> = Vec::new();
        for table in &by_size {
            let mut job = Job::new();
            for NewForeignKey { table: owner, constraint, target } in self.new_foreign_keys() {
                if owner.live == table.live && constraint.validated && self.moved(&target.table()).is_some() {
                    let statement = ddl::validate_constraint(&table.staging, &constraint.name);
                    let orphans = Some(orphans_told(&table.live, &constraint.name));
                    job.push(BuildStep { orphans, ..BuildStep::new("validating a foreign key", statement, table) });
                }
            }
            job.push(BuildStep::new("analyzing a staging table", sql::analyze(&table.staging), table));
            jobs.push(job);
        }
        begin_phase(telemetry, SnapshotPhase::Validating, &jobs);
        side_by_side(destination, jobs, sessions, telemetry, &JobsUnderWay::default()).await
    }

    /// Adds what takes no time. Behind a statement that fails the others of its kind are carried out: staging is dropped then.
    async fn attach(&self, client: &SqlClient) -> Result<(), DestinationError> {
        let indexes = || self.tables.iter().filter_map(|table| self.indexes(table));
        let attaches: Vec<&String> = indexes().flat_map(|indexes| &indexes.attaches).collect();
        client.execute_each("adding a key", &attaches).await?;
        let not_valid: Vec<&String> = indexes().flat_map(|indexes| &indexes.not_valid).collect();
        client.execute_each("adding a constraint", &not_valid).await?;
        let foreign_keys = self.new_foreign_keys().filter_map(|NewForeignKey { table, constraint, target }| {
            let parent = self.moved(&target.table())?;
            let statement = ddl::add_foreign_key(&table.staging, constraint, target, &parent.staging);
            Some(ddl::unvalidated(&statement))
        });
        client.execute_each("adding a foreign key", &foreign_keys.collect::<Vec<_>>()).await?;
        Ok(())
    }
}

fn begin_phase(telemetry: &Telemetry, phase: SnapshotPhase, jobs: &[Job]) {
    if !jobs.is_empty() {
        telemetry.snapshot_phase(phase, jobs.iter().flatten().map(|step| step.bytes));
    }
}

/// What sessions are at: the bytes of their step's table, by process.
#[derive(Clone, Debug, Default)]
struct JobsUnderWay(Arc<Mutex<BTreeMap<i32, u64>>>);

impl JobsUnderWay {
    fn begins(&self, process: i32, bytes: u64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(process, bytes);
    }

    fn ends(&self, process: i32) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&process);
    }

    /// Reports the progress of running index builds, for as long as the server does. A build reads the table's pages first, then
    /// writes the entries in order.
    async fn keep_told(&self, client: &SqlClient, telemetry: &Telemetry) -> Infallible {
        const SQL: &str = "
             SELECT pid, (COALESCE(blocks_done::float8 / NULLIF(blocks_total, 0), 0)
                          + COALESCE(tuples_done::float8 / NULLIF(tuples_total, 0), 0)) / 2
             FROM pg_catalog.pg_stat_progress_create_index WHERE pid = ANY ($1)";
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let processes: Vec<i32> = bytes.keys().copied().collect();
            let rows = client.query("asking how far the indexes are", SQL, &[&processes]).await;
            let parts = rows.and_then(|rows| {
                let part = |row: &Row| Ok((row.get::<i32>(0)?, row.get::<f64>(1)?));
                rows.iter().map(part).collect::<Result<Vec<_>, SessionError>>()
            });
            match parts {
                Ok(parts) => {
                    let done = parts.iter().filter_map(|(process, part)| Some(*bytes.get(process)? as f64 * part));
                    telemetry.snapshot_steps_under_way(done.sum());
                }
                // This only reports; the build meets any fault, too.
                Err(error) => {
                    tracing::debug!("how far the indexes are is not known: {error}");
                    return std::future::pending().await;
                }
            }
        }
    }
}

impl Staging {
    /// The source has a key like the live table's, but with another type or collation: rows that differ there are equal here. Said of
    /// the live table, since staging is nobody's.
    fn key_refused(&self, error: DestinationError) -> DestinationError {
        let DestinationError::Session(session) = &error else { return error };
        if session.code() != Some(SqlState::new(b"23505")) {
            return error;
        }
        let named = session.server().and_then(|server| server.violated().table);
        let table = self.tables.iter().filter(|table| table.mode != Mode::Move);
        match table.clone().find(|table| named.as_ref() == Some(&table.staging)) {
            Some(table) => DestinationError::KeyRefuses(table.key_refusal(None)),
            None => error,
        }
    }
}

/// Runs jobs in order in at most `sessions` sessions; returns the messages about violated foreign keys.
async fn side_by_side(
    destination: &Sql,
    jobs: Vec<Job>,
    sessions: usize,
    telemetry: &Arc<Telemetry>,
    under_way: &JobsUnderWay,
) -> Result<Vec<String>, DestinationError> {
    let sessions = sessions.min(jobs.len());
    let queue = Arc::new(Mutex::new(VecDeque::from(jobs)));
    let mut running: JoinSet<Result<Vec<String>, DestinationError>> = JoinSet::new();
    for _ in 0..sessions {
        let (queue, destination) = (Arc::clone(&queue), destination.clone());
        let (telemetry, under_way) = (Arc::clone(telemetry), under_way.clone());
        running.spawn(async move {
            let (client, process) = maintenance_session(&destination, sessions).await?;
            let mut told = Vec::new();
            loop {
                let steps = next_steps(&mut queue.lock().unwrap_or_else(PoisonError::into_inner), sessions);
                if steps.is_empty() {
                    return Ok(told);
                }
                let steps: Vec<Vec<BuildStep>> = together(steps);
                for steps in steps {
                    let bytes: u64 = steps.iter().map(|step| step.bytes).sum();
                    under_way.begins(process, bytes);
                    let doing = steps.first().map_or("building", |step| step.doing);
                    let statements: Vec<&String> = steps.iter().map(|step| &step.statement).collect();
                    let orphans = steps.first().and_then(|step| step.orphans.clone());
                    match (client.execute_each(doing, &statements).await, orphans) {
                        (Ok(_), _) => {}
                        (Err(error), Some(orphans)) if is_orphaned(&error) => told.push(orphans),
                        (Err(error), _) => return Err(error.into()),
                    }
                    under_way.ends(process);
                    steps.iter().for_each(|step| telemetry.snapshot_step_done(step.bytes));
                }
            }
        });
    }
    let mut told = Vec::new();
    while let Some(done) = running.join_next().await {
        match done {
            Ok(done) => told.extend(done?),
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => {}
        }
    }
    Ok(told)
}

/// The steps of the next job, and of the jobs behind it while they are small: a session sends those together. None has more of them than
/// its share.
fn next_steps(queue: &mut VecDeque<Job>, sessions: usize) -> Vec<BuildStep> {
    let share = queue.len().div_ceil(sessions.max(1)).min(TOGETHER_MAX);
    let mut steps = Vec::new();
    let mut bytes: u64 = 0;
    for _ in 0..share {
        let small = |job: &Job| job.iter().map(|step| step.bytes).sum::<u64>();
        let Some(next) = queue.front().map(small) else { break };
        bytes = bytes.saturating_add(next);
        if !steps.is_empty() && bytes > TOGETHER_BYTES_MAX {
            break;
        }
        steps.extend(queue.pop_front().into_iter().flatten());
    }
    steps
}

/// Steps that go to the server without waiting for answers in between; one whose failure is only told stands by itself.
fn together(steps: Vec<BuildStep>) -> Vec<Vec<BuildStep>> {
    let mut groups: Vec<Vec<BuildStep>> = Vec::new();
    for step in steps {
        let joins = |last: &BuildStep| last.orphans.is_none() && step.orphans.is_none() && last.doing == step.doing;
        match groups.last_mut() {
            Some(group) if group.last().is_some_and(joins) => group.push(step),
            Some(_) | None => groups.push(vec![step]),
        }
    }
    groups
}

/// All sessions together use at most as much memory as the server's shared buffers, and never less each than the server
/// gives anyway. Returns the session's process, too.
async fn maintenance_session(destination: &Sql, sessions: usize) -> Result<(SqlClient, i32), DestinationError> {
    let client = connect_recorded(destination).await?.with_timeout(STATEMENT_MAX);
    let sql = "
         SELECT pg_catalog.pg_backend_pid(),
                pg_catalog.set_config('synchronous_commit', 'off', false),
                pg_catalog.set_config('maintenance_work_mem', GREATEST(own, LEAST(shared, 1048576) / $1::bigint) || 'kB', false),
                pg_catalog.set_config('max_parallel_maintenance_workers', GREATEST(1, parallel / $1::bigint)::text, false)
         FROM (SELECT pg_catalog.max(setting::bigint) FILTER (WHERE name = 'maintenance_work_mem') AS own,
                      pg_catalog.max(setting::bigint * 8) FILTER (WHERE name = 'shared_buffers') AS shared,
                      pg_catalog.max(setting::bigint) FILTER (WHERE name = 'max_parallel_workers') AS parallel
               FROM pg_catalog.pg_settings) AS settings";
    let sessions = i64::try_from(sessions.max(1)).unwrap_or(i64::MAX);
    let process = client.query_one("setting up a session", sql, &[&sessions]).await?.get(0)?;
    Ok((client, process))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(doing: &'static str, bytes: u64) -> BuildStep {
        BuildStep { doing, statement: String::new(), bytes, orphans: None }
    }

    #[test]
    fn a_session_takes_its_share_of_small_jobs_and_a_large_one_alone() {
        let mut queue: VecDeque<Job> = (0..10).map(|_| vec![step("building", 1)]).collect();
        let taken: Vec<usize> = (0..5).map(|_| next_steps(&mut queue, 2).len()).collect();
        assert_eq!(taken, [5, 3, 1, 1, 0]);
        let mut queue: VecDeque<Job> = [TOGETHER_BYTES_MAX + 1, 1, 1].map(|bytes| vec![step("building", bytes)]).into();
        assert_eq!(next_steps(&mut queue, 1).len(), 1);
        assert_eq!(next_steps(&mut queue, 1).len(), 2);
    }

    #[test]
    fn a_step_whose_failure_is_only_told_stands_by_itself() {
        let told = || BuildStep { orphans: Some("rows".to_owned()), ..step("validating", 1) };
        let steps = vec![step("analyzing", 1), step("analyzing", 1), told(), told(), step("analyzing", 1)];
        let groups: Vec<usize> = together(steps).iter().map(Vec::len).collect();
        assert_eq!(groups, [2, 1, 1, 1]);
    }
}

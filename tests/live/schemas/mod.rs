//! Random schemas and random sequences of what ALTER TABLE and ALTER TYPE can do, among random writes, in one transaction or in
//! several, while the service runs, is stopped, or dies. After each sequence both sides are equal: at once, by a copy, or after the
//! statement that a halt has printed was run as printed. Whatever else happens is a defect: a difference that nobody tells, a
//! halt without a way out, a statement that does not help.
//!
//! `HEADWATER_SEED` replays an episode; `SCHEMA_SECONDS` makes it as many as fit (`make fuzz-schema`).

mod changes;
mod world;
mod writes;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use fastrand::Rng;
use futures_util::{StreamExt, stream};

use crate::support::{Database, Service, Setup, seed};
use world::{TABLES, World};

/// How a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    /// Equal, and no table was copied.
    Followed,
    /// Equal after a copy.
    Copied,
    /// Equal after a printed statement was run.
    Halted,
}

/// Kinds of changes that the source took, and how often each outcome followed one of them.
type Counts = BTreeMap<&'static str, BTreeMap<Outcome, u32>>;

/// Longer than the monitor's clock, a copy's back-off and a busy machine together.
const SETTLING_MAX: Duration = Duration::from_secs(120);
/// How long both sides may differ while every table is followed and nothing is told: until the monitor has looked twice.
const SILENT_MAX: Duration = Duration::from_secs(45);
/// How long a halt may last before its hint is taken: the stream may get past it by itself.
const HALT_MIN: Duration = Duration::from_secs(4);
const SEQUENCES: u32 = 6;

/// One database pair, one service, several sequences of changes.
struct Episode {
    seed: u64,
    database: Database,
    setup: Setup,
    service: Option<Service>,
    /// Logs of services that are gone.
    logs: String,
    rng: Rng,
    /// What was done, for a failure's report.
    story: String,
}

impl Episode {
    async fn begin(seed: u64) -> Episode {
        let mut rng = Rng::with_seed(seed);
        let schema = world::schema(&mut rng);
        let database = Database::new("schemas", TABLES, &schema).await;
        database.at_destination("CREATE EXTENSION citext; CREATE EXTENSION hstore").await;
        let setup = Setup::of(&database);
        let service = setup.start();
        service.streams().await;
        database.caught_up().await;
        Episode { seed, setup, service: Some(service), logs: String::new(), rng, story: schema, database }
    }

    fn log(&self) -> String {
        format!("{}{}", self.logs, self.service.as_ref().map(Service::log).unwrap_or_default())
    }

    async fn stop(&mut self, kill: bool) {
        let Some(mut service) = self.service.take() else { return };
        if kill {
            service.kill();
        } else {
            service.signal("TERM");
            service.ended().await;
        }
        self.logs.push_str(&service.log());
    }

    fn start(&mut self) {
        if self.service.is_none() {
            self.service = Some(self.setup.start());
        }
    }

    /// Runs statements at the source, each behind a savepoint; the kinds of those that it took.
    async fn change(&mut self) -> Vec<&'static str> {
        let mut taken = Vec::new();
        self.run("BEGIN").await;
        for _ in 0..self.rng.usize(1..6) {
            if self.rng.u32(..5) == 0 {
                self.run("COMMIT; BEGIN").await;
            }
            let world = World::read(&self.database).await;
            if self.rng.u32(..5) < 2 {
                let write = writes::write(&world, &mut self.rng);
                self.attempt(&write).await;
                continue;
            }
            let Some((kind, change)) = changes::change(&world, &mut self.rng) else { continue };
            if changes::stands_alone(&change) {
                self.run("COMMIT").await;
                if self.run_or_not(&change).await {
                    taken.push(kind);
                }
                self.run("BEGIN").await;
            } else if self.attempt(&change).await {
                taken.push(kind);
            }
        }
        let end = if self.rng.u32(..12) == 0 { "ROLLBACK" } else { "COMMIT" };
        if !self.run_or_not(end).await {
            self.run("ROLLBACK").await;
        }
        // A table is described again when it is written.
        for _ in 0..self.rng.u32(..3) {
            let world = World::read(&self.database).await;
            let write = writes::write(&world, &mut self.rng);
            self.run_or_not(&write).await;
        }
        taken
    }

    async fn run(&mut self, sql: &str) {
        self.database.at_source(sql).await;
        let _ = writeln!(self.story, "{sql};");
    }

    async fn run_or_not(&mut self, sql: &str) -> bool {
        let taken = world::accepts(&self.database.source, sql).await;
        if taken {
            let _ = writeln!(self.story, "{sql};");
        }
        taken
    }

    /// Inside a transaction: what is refused is as if it had not been.
    async fn attempt(&mut self, sql: &str) -> bool {
        self.database.at_source("SAVEPOINT s").await;
        let taken = self.run_or_not(sql).await;
        if !taken {
            self.database.at_source("ROLLBACK TO s").await;
        }
        taken
    }

    /// Waits until both sides are equal, taking a halt's way out where there is one.
    ///
    /// `known`: how long the log was before the changes; a halt is said once.
    async fn settle(&mut self, known: usize) -> Result<Outcome, String> {
        let began = Instant::now();
        let (mut halted, mut quiet_since, mut waiting_since) = (false, None, None);
        let mut tried: Vec<String> = Vec::new();
        loop {
            let now = self.database.source_value("SELECT pg_current_wal_insert_lsn()::text").await.expect("a position");
            // Something must come after it, or an idle source would say so only after seconds.
            self.database.at_source("SELECT pg_logical_emit_message(true, 'test', 'caught up?')").await;
            tokio::time::sleep(Duration::from_millis(200)).await;
            let is_over = world::is_followed(&self.database, &now).await;
            let difference = world::difference(&self.database).await;
            if is_over && difference.is_none() {
                // A change that nobody has noticed yet is noticed later: both must still be equal then.
                let copied = self.log().get(known..).is_some_and(|log| log.contains("copied again"));
                return Ok(if halted {
                    Outcome::Halted
                } else if copied {
                    Outcome::Copied
                } else {
                    Outcome::Followed
                });
            }
            if let Some(service) = &mut self.service
                && service.has_ended()
            {
                self.logs.push_str(&service.log());
                self.service = None;
            }
            let since = waiting_since.get_or_insert_with(Instant::now);
            let log = self.log();
            let hint = Hint::untried(log.get(known..).unwrap_or_default(), &tried);
            if since.elapsed() >= HALT_MIN
                && !is_over
                && let Some(hint) = hint
            {
                let _ = writeln!(self.story, "-- said, and done: {}", hint.text);
                self.follow(&hint).await.map_err(|error| format!("the hint does not run: {error}\n{}", hint.text))?;
                tried.push(hint.text);
                (halted, waiting_since, quiet_since) = (true, None, None);
                self.start();
                continue;
            }
            if self.service.is_none() && since.elapsed() > HALT_MIN {
                return Err("it has ended, and no hint is left".to_owned());
            }
            if is_over {
                let quiet = quiet_since.get_or_insert_with(Instant::now);
                self.touch_tables().await;
                if quiet.elapsed() > SILENT_MAX {
                    return Err(format!("SILENT: {}", difference.unwrap_or_default()));
                }
            } else {
                quiet_since = None;
            }
            if began.elapsed() > SETTLING_MAX {
                return Err(format!("STUCK: {}", difference.unwrap_or_else(|| "not followed".to_owned())));
            }
        }
    }

    /// New names and columns come with the next row of their table.
    async fn touch_tables(&self) {
        let source = &self.database.source;
        let world = World::read(&self.database).await;
        // Not the draw's own numbers: how often this is done depends on the machine.
        let mut rng = Rng::with_seed(1);
        for table in &world.tables {
            let name = &table.name;
            // Nothing comes of an empty table, of one without replica identity, and where a trigger suppresses the update.
            let update = format!("UPDATE {name} SET id = id WHERE id = (SELECT min(id) FROM {name}) RETURNING 1");
            let updated = source.query("touching a table", &update, &[]).await;
            let mut has_come = updated.is_ok_and(|rows| !rows.is_empty());
            let starts = format!(
                "SELECT substring(pg_get_expr(c.relpartbound, c.oid) from '\\((\\d+)\\) TO')::bigint
                 FROM pg_partition_tree(to_regclass('{name}')) p JOIN pg_class c ON c.oid = p.relid WHERE p.isleaf"
            );
            // Keys that some leaf takes, among others.
            let starts = source.query("reading bounds", &starts, &[]).await.unwrap_or_default();
            let starts = starts.iter().filter_map(|row| row.get::<Option<i64>>(0).ok().flatten().map(Some));
            for id in std::iter::repeat_n(None, 20).chain(starts) {
                has_come = has_come || world::accepts(source, &writes::insert_at(&world, table, id, &mut rng)).await;
            }
        }
    }

    /// Does what a hint says.
    async fn follow(&mut self, hint: &Hint) -> Result<(), String> {
        let first = hint.text.lines().next().unwrap_or_default().to_owned();
        // Of several ways the last one.
        let ways = hint.text.lines().skip(1).collect::<Vec<_>>().join("\n");
        let statements =
            ways.rsplit("-- ").next().and_then(|way| if ways.contains("-- ") { way.split_once('\n') } else { None });
        let statements = statements.map_or(ways.clone(), |(_, statements)| statements.to_owned());
        // Sentences may stand behind them.
        let last = statements.lines().collect::<Vec<_>>().iter().rposition(|line| line.ends_with(';'));
        let statements =
            statements.lines().take(last.map_or(usize::MAX, |last| last + 1)).collect::<Vec<_>>().join("\n");
        let client = if first.contains("at the source") { &self.database.source } else { &self.database.destination };
        if !statements.is_empty() && (first.contains("at the source") || first.contains("at the destination")) {
            return world::try_script(client, &statements).await;
        }
        if first.contains("--resnapshot") {
            self.stop(false).await;
            if first.contains("pg_drop_replication_slot") {
                let drop = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = current_database()";
                self.database.at_source(drop).await;
            }
            let with = Setup { arguments: vec!["--resnapshot".to_owned()], ..self.setup.clone() };
            self.service = Some(with.start());
            return Ok(());
        }
        Err("nothing in it can be run".to_owned())
    }
}

/// The way out that a halt has printed.
struct Hint {
    /// The words, then one line for each statement.
    text: String,
}

impl Hint {
    /// The last one of a log that was not tried and can be followed.
    fn untried(log: &str, tried: &[String]) -> Option<Hint> {
        let mut found: Vec<String> = Vec::new();
        let mut lines = log.lines().peekable();
        while let Some(line) = lines.next() {
            let Some((_, first)) = line.split_once("HINT:") else { continue };
            let mut text = first.trim().to_owned();
            while let Some(more) = lines.next_if(|line| line.starts_with("        ")) {
                text = format!("{text}\n{}", more.trim());
            }
            found.push(text);
        }
        let can_be_followed =
            |text: &String| text.contains("--resnapshot") || text.lines().any(|line| line.ends_with(';'));
        found.retain(|text| !tried.contains(text) && can_be_followed(text));
        found.pop().map(|text| Hint { text })
    }
}

/// Runs one episode.
async fn episode(seed: u64) -> Result<Counts, String> {
    let mut counts = Counts::new();
    let mut episode = Episode::begin(seed).await;
    for sequence in 0..SEQUENCES {
        let _ = writeln!(episode.story, "-- sequence {sequence}");
        let known = episode.log().len();
        // The service sees it, comes back to it, or dies over it.
        let way = episode.rng.u32(..6);
        if way == 0 {
            episode.stop(episode.seed.is_multiple_of(2)).await;
        }
        let mut taken = episode.change().await;
        if way == 1 {
            episode.stop(true).await;
        }
        if way == 2 {
            // The monitor comes between.
            tokio::time::sleep(Duration::from_secs(11)).await;
        }
        episode.start();
        if way >= 4 {
            taken.extend(episode.change().await);
        }
        let outcome = match episode.settle(known).await {
            Ok(outcome) => outcome,
            Err(problem) => {
                return Err(format!(
                    "seed {seed}, sequence {sequence}: {problem}\n{}\n---- log\n{}",
                    episode.story,
                    without_debug(&episode.log())
                ));
            }
        };
        for kind in taken {
            *counts.entry(kind).or_default().entry(outcome).or_default() += 1;
        }
    }
    Ok(counts)
}

fn without_debug(log: &str) -> String {
    let lines: Vec<&str> = log.lines().filter(|line| !line.contains(" DEBUG ")).collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_altered_both_sides_are_equal_or_a_sentence_says_what_to_do() {
    let first = seed("schemas");
    let seconds: u64 = std::env::var("SCHEMA_SECONDS").map_or(0, |text| text.parse().expect("seconds"));
    let began = Instant::now();
    let mut seeds = Rng::with_seed(first);
    // One episode is replayed by its own seed.
    let more = std::iter::once(first)
        .chain(std::iter::from_fn(|| (began.elapsed() < Duration::from_secs(seconds)).then(|| seeds.u64(..) >> 16)));
    let mut results = stream::iter(more).map(episode).buffer_unordered(4);
    let (mut counts, mut episodes, mut problems) = (Counts::new(), 0, Vec::new());
    while let Some(result) = results.next().await {
        episodes += 1;
        match result {
            Ok(found) => {
                for (kind, outcomes) in found {
                    for (outcome, count) in outcomes {
                        *counts.entry(kind).or_default().entry(outcome).or_default() += count;
                    }
                }
            }
            Err(problem) => {
                println!("{problem}\n");
                problems.push(problem.lines().next().unwrap_or_default().to_owned());
            }
        }
    }
    println!("{episodes} episodes");
    for (kind, outcomes) in &counts {
        println!("{kind}: {outcomes:?}");
    }
    assert!(problems.is_empty(), "{} of {episodes} episodes failed:\n{}", problems.len(), problems.join("\n"));
}

//! Transactions that arrive before they commit: interleaved, nested, rolled back in part, prepared, too big for the spool.
//!
//! The source decodes in so little memory that whatever is larger than 64 kB is streamed; `pg_stat_replication_slots` tells
//! whether it was.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use fastrand::Rng;
use headwater::commands::demo::Cluster;
use headwater::session::SqlClient;

use crate::support::disk::Disk;
use crate::support::streamed::{STREAMED, STREAMED_SCHEMA};
use crate::support::{Database, Script, Setup, eventually, new_destination, new_source, seed};

async fn streaming_source() -> Cluster {
    new_source(&[("logical_decoding_work_mem", "64kB"), ("max_prepared_transactions", "50")]).await
}

/// What the source counts of the slot: transactions that it streamed, and those that it kept on its own disk.
async fn streamed(database: &Database) -> (u64, u64) {
    let sql = |column: &str| {
        format!("SELECT {column}::text FROM pg_stat_replication_slots WHERE slot_name = '{}'", database.name)
    };
    let streamed = database.source_value(&sql("stream_txns")).await.expect("statistics of the slot");
    let spilled = database.source_value(&sql("spill_txns")).await.expect("statistics of the slot");
    (streamed.parse().unwrap(), spilled.parse().unwrap())
}

/// A directory for one test's spool.
struct SpoolDir(PathBuf);

impl SpoolDir {
    fn new() -> SpoolDir {
        SpoolDir(std::env::temp_dir().join("headwater-tests").join(format!("spool-{:08x}", fastrand::u32(..))))
    }

    fn section(&self, memory: &str, disk: &str) -> String {
        format!("[spool]\ndir = {:?}\nmemory_bytes_max = \"{memory}\"\nbytes_max = \"{disk}\"", self.0)
    }

    /// Directories of processes in it.
    fn instances(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.0).into_iter().flatten().flatten();
        let directories = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        directories.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }

    /// Files of streams in it.
    fn files(&self) -> usize {
        self.paths().iter().filter(|path| path.file_name().is_some_and(|name| name != "marker")).count()
    }

    /// All files in directories of processes.
    fn paths(&self) -> Vec<PathBuf> {
        let files = |name: &String| std::fs::read_dir(self.0.join(name)).into_iter().flatten().flatten();
        self.instances().iter().flat_map(files).map(|entry| entry.path()).collect()
    }
}

impl Drop for SpoolDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
        let _ = std::fs::remove_file(&self.0);
    }
}

/// One session's random transactions: hundreds of rows each, under savepoints inside savepoints.
struct Session {
    client: SqlClient,
    number: u64,
    rng: Rng,
    next_id: u64,
    prepared: Vec<String>,
}

impl Session {
    async fn transaction(&mut self, round: u32) {
        let mut open: Vec<String> = Vec::new();
        self.run("BEGIN").await;
        for step in 0..self.rng.u32(2..25) {
            match self.rng.u8(..10) {
                0..3 if open.len() < 5 => {
                    let name = format!("s{step}");
                    self.run(&format!("SAVEPOINT {name}")).await;
                    open.push(name);
                }
                3 if !open.is_empty() => {
                    // Back to one of them, not always the innermost; it stays defined.
                    let back = self.rng.usize(..open.len());
                    self.run(&format!("ROLLBACK TO SAVEPOINT {}", open[back])).await;
                    open.truncate(back + 1);
                }
                4 if !open.is_empty() => {
                    let name = open.pop().unwrap();
                    self.run(&format!("RELEASE SAVEPOINT {name}")).await;
                }
                _ => {
                    let statement = self.statement();
                    self.run(&statement).await;
                }
            }
        }
        match self.rng.u8(..10) {
            0..2 => self.run("ROLLBACK").await,
            2..4 => {
                let name = format!("p{}_{round}", self.number);
                self.run(&format!("PREPARE TRANSACTION '{name}'")).await;
                self.prepared.push(name);
                // Its locks would hold the next transaction up.
                self.finish_prepared().await;
            }
            _ => self.run("COMMIT").await,
        }
    }

    async fn finish_prepared(&mut self) {
        for name in std::mem::take(&mut self.prepared) {
            let verb = if self.rng.bool() { "COMMIT" } else { "ROLLBACK" };
            self.run(&format!("{verb} PREPARED '{name}'")).await;
        }
    }

    /// A statement on rows of this session alone, so that sessions never wait for each other.
    fn statement(&mut self) -> String {
        let number = self.number;
        match self.rng.u8(..12) {
            0..5 => {
                let (first, count) = (self.next_id, self.rng.u64(1..300));
                self.next_id += count;
                format!(
                    "INSERT INTO events SELECT {number} + 10 * i, {number}, md5(i::text), repeat(md5(i::text), {}) \
                     FROM generate_series({first}, {}) i",
                    self.rng.u8(0..8),
                    first + count - 1
                )
            }
            5..8 => format!(
                "UPDATE events SET value = md5(value || id) WHERE session = {number} AND id % 7 = {}",
                self.rng.u8(..7)
            ),
            8 => {
                // New keys for some rows; unchanged TOAST values are not sent along.
                // New rows stay below 10^12, so what is moved by multiples of it never meets another.
                let rest = self.rng.u8(..11);
                format!("UPDATE events SET id = id + 1000000000000 WHERE session = {number} AND id % 11 = {rest}")
            }
            9 => format!("DELETE FROM events WHERE session = {number} AND id % 5 = {}", self.rng.u8(..5)),
            10 => format!("INSERT INTO loose SELECT 'session {number}', i % 3 FROM generate_series(1, 20) i"),
            _ => format!(
                "DELETE FROM loose WHERE ctid IN (SELECT ctid FROM loose WHERE what = 'session {number}' LIMIT 7)"
            ),
        }
    }

    async fn run(&self, sql: &str) {
        if let Err(error) = self.client.script("a session's statement", sql).await {
            panic!("{error} ({:?}) in:\n{sql}", error.server());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn interleaved_streams_with_savepoints_rollbacks_and_key_changes_arrive_exactly() {
    let seed = seed("interleaved_streams");
    let (source, destination) = (streaming_source().await, new_destination(&[]).await);
    let database = Database::on(&source, &destination, "interleaved", STREAMED, STREAMED_SCHEMA).await;
    let spool = SpoolDir::new();
    // Most of what is streamed goes through files.
    let setup = Setup::of(&database).section(&spool.section("100kB", "1GB"));
    let mut service = setup.start();
    service.streams().await;
    let mut sessions = Vec::new();
    for number in 0..10 {
        let client = source.connect(&database.name).await.unwrap();
        client.batch("setting up", "SET search_path = public").await.unwrap();
        let rng = Rng::with_seed(seed + number);
        sessions.push(Session { client, number, rng, next_id: 1000, prepared: Vec::new() });
    }
    for round in 0..3 {
        let work = sessions.iter_mut().map(|session| async move {
            for transaction in 0..6 {
                session.transaction(round * 100 + transaction).await;
            }
        });
        futures(work).await;
        if round == 1 {
            // Streams that are in progress now come again, from their first change.
            service.kill();
            service = setup.start();
        }
    }
    database.assert_catches_up().await;
    // The statistics start anew with the walsender of the second half.
    eventually("many transactions have been streamed", || async { (streamed(&database).await.0 > 20).then_some(()) })
        .await;
    let kept = service.metric("headwater_spool_bytes").await;
    assert_eq!(kept, Some(0.0), "all transactions have ended");
    service.stop().await;
    assert_eq!(spool.instances(), [""; 0], "nothing is left behind");
}

/// All of them at once.
async fn futures(work: impl Iterator<Item = impl Future<Output = ()>>) {
    let mut work: Vec<_> = work.map(Box::pin).collect();
    std::future::poll_fn(|context| {
        work.retain_mut(|work| work.as_mut().poll(context).is_pending());
        if work.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
}

/// A table of large values that are not compressed.
const FILES: &str = "CREATE TABLE files (id int PRIMARY KEY, content bytea);
    ALTER TABLE files ALTER COLUMN content SET STORAGE EXTERNAL;";

/// A row of so many kilobytes.
fn file(id: u32, kilobytes: u32) -> String {
    format!("INSERT INTO files SELECT {id}, convert_to(repeat(md5('{id}'), {kilobytes} * 32), 'UTF8');")
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_rolled_back_value_of_which_the_source_sends_no_stream_abort_is_not_applied() {
    let (source, destination) = (streaming_source().await, new_destination(&[]).await);
    let database = Database::on(&source, &destination, "unsaid", &["files"], FILES).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    let first = [
        "BEGIN; SAVEPOINT s;".to_owned(),
        file(51, 16_000),
        "ROLLBACK TO s;".to_owned(),
        file(52, 1200),
        "COMMIT".to_owned(),
    ];
    database.at_source(&first.concat()).await;
    // The same key again, and one savepoint inside another that is rolled back.
    let second = [
        "BEGIN; SAVEPOINT s; SAVEPOINT t;".to_owned(),
        file(53, 10_000),
        "RELEASE t;".to_owned(),
        file(54, 100),
        "ROLLBACK TO s;".to_owned(),
        file(53, 200),
        "SAVEPOINT u;".to_owned(),
        file(55, 10_000),
        "RELEASE u; COMMIT".to_owned(),
    ];
    database.at_source(&second.concat()).await;
    // Nothing of it is kept.
    database.at_source(&format!("BEGIN; SAVEPOINT s; {} ROLLBACK TO s; COMMIT", file(56, 10_000))).await;
    database.assert_catches_up().await;
    let ids = "SELECT string_agg(id::text, ' ' ORDER BY id) FROM files";
    assert_eq!(database.destination_value(ids).await.as_deref(), Some("52 53 55"));
    assert!(streamed(&database).await.0 >= 2, "they were streamed");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn values_of_many_megabytes_under_random_savepoints_arrive_exactly() {
    let mut rng = Rng::with_seed(seed("large_savepoints"));
    let (source, destination) = (streaming_source().await, new_destination(&[]).await);
    let database = Database::on(&source, &destination, "savepoints", &["files"], FILES).await;
    let spool = SpoolDir::new();
    // Little memory makes each of them worth being applied in parallel.
    let service = Setup::of(&database).section(&spool.section("100kB", "1GB")).start();
    service.streams().await;
    for transaction in 0..8 {
        let mut sql = "BEGIN;".to_owned();
        let mut open: Vec<u32> = Vec::new();
        for step in 0..rng.u32(4..10) {
            match rng.u8(..6) {
                0..2 => {
                    sql += &format!("SAVEPOINT s{step};");
                    open.push(step);
                }
                2 if !open.is_empty() => {
                    let back = rng.usize(..open.len());
                    sql += &format!("ROLLBACK TO s{};", open[back]);
                    open.truncate(back + 1);
                }
                3 if !open.is_empty() => sql += &format!("RELEASE s{};", open.pop().unwrap()),
                _ => sql += &file(transaction * 100 + step, *rng.choice(&[500, 1000, 9000, 20_000]).unwrap()),
            }
        }
        if let Some(back) = open.first().filter(|_| rng.bool()) {
            sql += &format!("ROLLBACK TO s{back};");
        }
        database.at_source(&format!("{sql} {} COMMIT", file(transaction * 100 + 99, 500))).await;
    }
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_table_altered_inside_a_rolled_back_savepoint_of_a_stream_keeps_its_shape() {
    let (source, destination) = (streaming_source().await, new_destination(&[]).await);
    let database = Database::on(&source, &destination, "altered", STREAMED, STREAMED_SCHEMA).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    let rows = |from: u32| {
        format!("INSERT INTO events SELECT i, 1, md5(i::text), NULL FROM generate_series({from}, {from} + 999) i;")
    };
    database
        .at_source(&format!(
            "BEGIN; {} SAVEPOINT s; ALTER TABLE events ADD COLUMN extra int;
             INSERT INTO events SELECT i, 1, md5(i::text), NULL, 7 FROM generate_series(20001, 21000) i;
             ROLLBACK TO SAVEPOINT s; {} COMMIT",
            rows(10001),
            rows(30001)
        ))
        .await;
    // The same, and all of it is rolled back; then the table is described by the next transaction alone.
    database
        .at_source(&format!(
            "BEGIN; ALTER TABLE events ADD COLUMN extra int; {} ROLLBACK",
            rows(40001).replace("NULL", "NULL, 7")
        ))
        .await;
    database.at_source("INSERT INTO events VALUES (50001, 1, 'x', 'y')").await;
    database.assert_catches_up().await;
    // From 18 on, one that is rolled back by the time it is decoded is not streamed.
    eventually("the source counts its streams", || async { (streamed(&database).await.0 >= 1).then_some(()) }).await;
    // After a stream has committed, the source does not describe the table again for what follows.
    database.at_source(&format!("BEGIN; {} COMMIT", rows(60001))).await;
    database.at_source("UPDATE events SET value = 'after a stream' WHERE id = 60001").await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_prepared_transaction_is_applied_at_commit_and_not_at_rollback_prepared() {
    let (source, destination) = (streaming_source().await, new_destination(&[]).await);
    let database = Database::on(&source, &destination, "prepared", STREAMED, STREAMED_SCHEMA).await;
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    let prepare = |name: &str, from: u32, count: u32| {
        format!(
            "BEGIN; INSERT INTO events SELECT i, 1, md5(i::text), NULL FROM generate_series({from}, {from} + {count} - 1) i;
             SAVEPOINT s; UPDATE events SET value = 'no' WHERE id >= {from}; ROLLBACK TO SAVEPOINT s; PREPARE TRANSACTION '{name}'"
        )
    };
    // Small ones come at their commit, large ones before.
    let all = [("small", 10_001, 3), ("large", 20_001, 2000), ("small not", 30_001, 3), ("large not", 40_001, 2000)];
    for (name, from, count) in all {
        database.at_source(&prepare(name, from, count)).await;
    }
    database.caught_up().await;
    assert_eq!(database.destination_value("SELECT count(*)::text FROM events").await.as_deref(), Some("1000"));
    // Prepared before a restart, finished after it.
    service.stop().await;
    let service = setup.start();
    service.streams().await;
    for (name, _, _) in all {
        let verb = if name.ends_with("not") { "ROLLBACK" } else { "COMMIT" };
        database.at_source(&format!("{verb} PREPARED '{name}'")).await;
    }
    database.assert_catches_up().await;
    assert_eq!(database.destination_value("SELECT count(*)::text FROM events").await.as_deref(), Some("3003"));
    service.stop().await;
}

const LARGE: &str = "INSERT INTO events SELECT i, 1, md5(i::text), md5(i::text) FROM generate_series(100001, 130000) i";

#[tokio::test(flavor = "multi_thread")]
async fn a_full_spool_leaves_large_transactions_to_the_source_and_loses_nothing() {
    let (source, destination) = (streaming_source().await, new_destination(&[]).await);
    let database = Database::on(&source, &destination, "full", STREAMED, STREAMED_SCHEMA).await;
    let spool = SpoolDir::new();
    let service = Setup::of(&database).section(&spool.section("100kB", "500kB")).start();
    service.streams().await;
    database.at_source(LARGE).await;
    service.says("that spool.bytes_max allows").await;
    service.says("Raise spool.bytes_max").await;
    database.assert_catches_up().await;
    eventually("the source has streamed first, and then kept it itself", || async {
        let (streamed, spilled) = streamed(&database).await;
        (streamed > 0 && spilled > 0).then_some(())
    })
    .await;
    service.streams().await;
    service.stop().await;
    assert_eq!(spool.instances(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_disk_that_is_full_leaves_large_transactions_to_the_source_until_there_is_room() {
    let (source, destination) = (streaming_source().await, new_destination(&[]).await);
    let database = Database::on(&source, &destination, "nospace", STREAMED, STREAMED_SCHEMA).await;
    let spool = SpoolDir::new();
    let Some(disk) = Disk::mount(&spool.0, "1m") else { return };
    let setup = Setup::of(&database).section(&spool.section("100kB", "1GB"));
    let service = setup.start();
    service.streams().await;
    database.at_source(LARGE).await;
    service.says("No space left on device").await;
    service.says("See spool.dir: it must exist or be creatable, be writable, and have room.").await;
    database.assert_catches_up().await;
    service.streams().await;
    assert!(streamed(&database).await.0 > 0, "the source has streamed first");
    // Others find the disk free of what did not fit.
    database.at_source("UPDATE events SET id = -id WHERE id > 100000").await;
    database.assert_catches_up().await;
    service.stop().await;
    assert_eq!(spool.instances(), [""; 0]);
    disk.enlarge("200m");
    let (before, _) = streamed(&database).await;
    let service = setup.start();
    service.streams().await;
    database.at_source("DELETE FROM events WHERE id < 0").await;
    database.at_source(LARGE).await;
    database.assert_catches_up().await;
    eventually("the source streams again", || async { (streamed(&database).await.0 > before).then_some(()) }).await;
    assert!(!service.log().contains("No space left"), "{}", service.log());
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_disk_of_the_spool_that_is_slow_but_moves_is_waited_for() {
    let (source, destination) = (streaming_source().await, new_destination(&[]).await);
    let schema = "CREATE TABLE large (id int PRIMARY KEY, v bytea); ALTER TABLE large ALTER v SET STORAGE EXTERNAL";
    let database = Database::on(&source, &destination, "slowdisk", &["large"], schema).await;
    let spool = SpoolDir::new();
    let mut setup = Setup::of(&database).section(&spool.section("100kB", "1GB"));
    // One row takes 72 s, and each piece of it 6.
    setup.environment.push(("HEADWATER_FAILPOINT_BLOCK".to_owned(), "spool.piece=6000*12".to_owned()));
    let service = setup.start();
    service.streams().await;
    database.at_source("INSERT INTO large SELECT 1, decode(repeat('ab', 14000000), 'hex')").await;
    service.says("the stream waits for the disk of ").await;
    database.assert_catches_up().await;
    assert!(!service.log().contains("has not answered"), "{}", service.log());
    assert!(streamed(&database).await.0 > 0, "the source has streamed it");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spool_directory_that_cannot_be_written_is_named_and_nothing_is_streamed() {
    let (source, destination) = (streaming_source().await, new_destination(&[]).await);
    let database = Database::on(&source, &destination, "unwritable", STREAMED, STREAMED_SCHEMA).await;
    let spool = SpoolDir::new();
    std::fs::write(&spool.0, "a file stands where the directory should").unwrap();
    let service = Setup::of(&database).section(&spool.section("100kB", "1GB")).start();
    service.streams().await;
    assert!(service.log().contains("could not create the directory"), "{}", service.log());
    assert!(service.log().contains("See spool.dir"), "{}", service.log());
    database.at_source(LARGE).await;
    database.assert_catches_up().await;
    assert_eq!(streamed(&database).await.0, 0);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_spool_directory_that_goes_away_while_streaming_loses_nothing() {
    let (source, destination) = (streaming_source().await, new_destination(&[]).await);
    let database = Database::on(&source, &destination, "goesaway", STREAMED, STREAMED_SCHEMA).await;
    let spool = SpoolDir::new();
    let service = Setup::of(&database).section(&spool.section("100kB", "1GB")).start();
    service.streams().await;
    std::fs::remove_dir_all(&spool.0).unwrap();
    std::fs::write(&spool.0, "a file stands where the directory should").unwrap();
    database.at_source(LARGE).await;
    service.says("could not open").await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn files_of_a_killed_process_are_swept_by_the_next_start() {
    let (source, destination) = (streaming_source().await, new_destination(&[]).await);
    let database = Database::on(&source, &destination, "swept", STREAMED, STREAMED_SCHEMA).await;
    let spool = SpoolDir::new();
    let setup = Setup::of(&database).section(&spool.section("100kB", "1GB"));
    let mut service = setup.start();
    service.streams().await;
    let writer = source.connect(&database.name).await.unwrap();
    writer.script("a transaction in progress", &format!("SET search_path = public; BEGIN; {LARGE}")).await.unwrap();
    eventually("some of it is in a file", || async { (spool.files() > 0).then_some(()) }).await;
    let spooled = service.metric("headwater_spool_bytes").await.unwrap();
    assert!(spooled > 100_000.0, "{spooled}");
    let left = spool.instances();
    service.kill();
    assert_eq!(spool.instances(), left, "nobody was there to remove it");
    let service = setup.start();
    service.streams().await;
    assert!(!spool.instances().contains(&left[0]), "{:?}", spool.instances());
    // The transaction comes again from its first change.
    eventually("it is in a file again", || async { (spool.files() > 0).then_some(()) }).await;
    writer.batch("its end", "COMMIT").await.unwrap();
    database.assert_catches_up().await;
    service.stop().await;
    assert_eq!(spool.instances(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn what_is_spooled_is_readable_by_us_alone_whatever_the_umask() {
    let (source, destination) = (streaming_source().await, new_destination(&[]).await);
    let database = Database::on(&source, &destination, "umask", STREAMED, STREAMED_SCHEMA).await;
    let writer = source.connect(&database.name).await.unwrap();
    for umask in ["0", "022", "077", "0777"] {
        let spool = SpoolDir::new();
        let nested = SpoolDir(spool.0.join("made/by us"));
        let service = Setup::of(&database).section(&nested.section("100kB", "1GB")).umask(umask).start();
        service.streams().await;
        writer.script("a transaction in progress", &format!("SET search_path = public; BEGIN; {LARGE}")).await.unwrap();
        eventually("some of it is in a file", || async { (nested.files() > 0).then_some(()) }).await;
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        for file in nested.paths().into_iter().chain([nested.0.join("spool.lock")]) {
            assert_eq!(mode(&file), 0o600, "umask {umask}: {}", file.display());
            for directory in file.ancestors().skip(1).take_while(|path| path.starts_with(&spool.0)) {
                assert_eq!(mode(directory), 0o700, "umask {umask}: {}", directory.display());
            }
        }
        writer.batch("its end", "ROLLBACK").await.unwrap();
        service.stop().await;
        assert_eq!(nested.instances(), [""; 0], "umask {umask}");
    }
}

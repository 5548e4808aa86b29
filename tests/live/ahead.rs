//! Transactions that are applied while they are still in progress at the source, and committed here in their turn.
//!
//! The source decodes in so little memory that whatever is larger than 64 kB is streamed; the session beside the leader's is
//! recognised by its name, and its transaction by the xmin of its rows.

use headwater::commands::demo::{Cluster, StopMode};
use headwater::session::SqlClient;

use crate::support::roles::Roles;
use crate::support::streamed::{STREAMED, STREAMED_SCHEMA};
use crate::support::{Database, Script, Service, Setup, eventually, new_destination, new_source};

/// About a megabyte of rows.
const LARGE: &str =
    "INSERT INTO events SELECT i, 1, md5(i::text), md5(i::text) FROM generate_series(100001, 110000) i;";

struct Pair {
    source: Cluster,
    destination: Cluster,
    database: Database,
    setup: Setup,
}

async fn pair(name: &str) -> Pair {
    pair_of(name, STREAMED, STREAMED_SCHEMA).await
}

async fn pair_of(name: &str, tables: &[&str], schema: &str) -> Pair {
    let source = new_source(&[("logical_decoding_work_mem", "64kB")]).await;
    let destination = new_destination(&[]).await;
    // Where foreign keys and triggers act, nothing is applied ahead.
    let roles = match Roles::wanted() {
        Roles::Superuser => Roles::Superuser,
        Roles::Least { .. } => Roles::Least { replica: true },
    };
    let database = Database::under(roles, &source, &destination, name, tables, schema).await;
    // A sixteenth of its memory makes a stream worth a session.
    let spool = std::env::temp_dir().join("headwater-tests").join("spool");
    let setup = Setup::of(&database).section(&format!("[spool]\ndir = {spool:?}\nmemory_bytes_max = \"100kB\""));
    Pair { source, destination, database, setup }
}

impl Pair {
    /// A session at the source inside a transaction that has done this.
    async fn in_progress(&self, sql: &str) -> SqlClient {
        let writer = self.source.connect(&self.database.name).await.unwrap();
        writer.script("a transaction in progress", &format!("SET search_path = public; BEGIN; {sql}")).await.unwrap();
        writer
    }

    /// The transaction of the session that applies ahead, once it has one.
    async fn applied_ahead(&self) -> String {
        let sql = "SELECT max(backend_xid::text) FROM pg_stat_activity
                   WHERE datname = current_database() AND application_name LIKE '% parallel apply' AND state = 'idle in transaction'";
        eventually("it is applied ahead", || async { self.database.destination_value(sql).await }).await
    }

    /// Waits until no session applies ahead.
    async fn given_up(&self) {
        let sql = "SELECT count(*)::text FROM pg_stat_activity
                   WHERE datname = current_database() AND application_name LIKE '% parallel apply'";
        let none = || async { (self.database.destination_value(sql).await.as_deref() == Some("0")).then_some(()) };
        eventually("nothing is applied ahead any more", none).await;
    }

    async fn started(&self) -> Service {
        let service = self.setup.start();
        service.streams().await;
        service
    }

    /// A row by its value, as others see it at the destination.
    async fn sees(&self, value: &str) {
        let sql = format!("SELECT max(id::text) FROM events WHERE value = '{value}'");
        eventually(value, || async { self.database.destination_value(&sql).await }).await;
    }

    async fn visible(&self) -> String {
        self.database.destination_value("SELECT count(*)::text FROM events WHERE id > 100000").await.unwrap()
    }
}

/// What the log says of a transaction that was applied in parallel, and that the operator wants skipped.
const SKIPPED: &str = "why=it is to be skipped";
/// The same of one whose rows a table's snapshot holds already.
const IN_SNAPSHOT: &str = "why=a snapshot holds a part of it";

/// A transaction that has committed while nobody streamed, so that its end_lsn is known. Between its rows and its commit stands
/// more than can be on its way at once: the commit comes only once that is stored.
struct Backlog {
    pair: Pair,
    end_lsn: String,
}

async fn backlog(name: &str, sql: &str) -> Backlog {
    let schema = format!("{STREAMED_SCHEMA} CREATE TABLE between (n int PRIMARY KEY, filler text);");
    let mut pair = pair_of(name, &["events", "loose", "between"], &schema).await;
    pair.setup = pair.setup.section("[apply]\nbatch_bytes_max = \"64kB\"");
    let service = pair.started().await;
    pair.database.assert_catches_up().await;
    service.stop().await;
    let writer = pair.in_progress(sql).await;
    for n in 0..40 {
        pair.database.at_source(&format!("INSERT INTO between VALUES ({n}, repeat('x', 30000))")).await;
    }
    writer.batch("its end", "COMMIT").await.unwrap();
    // protocol-logicalrep-message-formats, Commit: 'C', flags, commit_lsn, end_lsn, time.
    let last_commit = format!(
        "SELECT substr(end_lsn, 1, 8) || '/' || substr(end_lsn, 9, 8) FROM (
             SELECT encode(substr(data, 11, 8), 'hex') AS end_lsn, row_number() OVER () AS place
             FROM pg_logical_slot_peek_binary_changes('{0}', NULL, NULL, 'proto_version', '1', 'publication_names', '{0}')
             WHERE get_byte(data, 0) = ascii('C')) AS commits
         ORDER BY place DESC LIMIT 1",
        pair.database.name
    );
    let end_lsn = pair.database.source_value(&last_commit).await.unwrap();
    Backlog { pair, end_lsn }
}

impl Backlog {
    /// Starts the service, and lets the stream go on to the commit once the transaction is applied ahead of it.
    async fn applied_ahead(&self) -> Service {
        let lock = self.pair.destination.connect(&self.pair.database.name).await.unwrap();
        lock.batch("holding the stream up", "BEGIN; LOCK TABLE public.between IN SHARE MODE").await.unwrap();
        let service = self.pair.setup.start();
        self.pair.applied_ahead().await;
        lock.batch("letting it go on", "COMMIT").await.unwrap();
        service
    }
}

fn count(service: &Service, what: &str) -> usize {
    service.log().matches(what).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_transaction_is_applied_in_progress_and_visible_only_after_its_commit() {
    let pair = pair("ahead").await;
    let service = pair.started().await;
    let change =
        "UPDATE events SET value = 'changed ' || id WHERE id <= 500; DELETE FROM events WHERE id BETWEEN 501 AND 600;";
    let writer =
        pair.in_progress(&format!("{LARGE} {change} UPDATE events SET id = -id WHERE id BETWEEN 601 AND 700;")).await;
    let xid = pair.applied_ahead().await;
    // Others go on meanwhile, and what comes after depends on them.
    for number in 0..5 {
        pair.database
            .at_source(&format!("UPDATE events SET value = 'meanwhile {number}' WHERE id = {}", 801 + number))
            .await;
        pair.sees(&format!("meanwhile {number}")).await;
    }
    pair.database.at_source("INSERT INTO events VALUES (5000, 5, 'new meanwhile', NULL)").await;
    writer.batch("more of it", "UPDATE events SET session = 7 WHERE id IN (801, 5000); INSERT INTO loose SELECT 'more', i FROM generate_series(1, 3000) i")
        .await
        .unwrap();
    pair.sees("new meanwhile").await;
    assert_eq!(pair.visible().await, "0", "it has not committed");
    assert_eq!(pair.applied_ahead().await, xid);
    writer.batch("its end", "COMMIT").await.unwrap();
    pair.database.assert_catches_up().await;
    let by = pair
        .database
        .destination_value("SELECT string_agg(DISTINCT xmin::text, ' ') FROM events WHERE id > 100000")
        .await;
    assert_eq!(by.as_deref(), Some(xid.as_str()), "its rows are those that were written before");
    assert_eq!(service.metric("headwater_spool_bytes").await, Some(0.0));
    // And the next one, and small ones behind it.
    pair.database
        .at_source("UPDATE events SET large = NULL WHERE id > 100000; UPDATE events SET session = 0 WHERE id < 10")
        .await;
    pair.database.assert_catches_up().await;
    eventually("both were applied ahead", || async {
        (count(&service, "applied ahead of its commit") == 2).then_some(())
    })
    .await;
    let rows = "headwater_rows_applied_total{operation=\"insert\",table=\"public.events\"}";
    assert_eq!(service.metric(rows).await, Some(10_001.0));
    pair.given_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn what_cannot_be_applied_ahead_is_applied_at_its_commit() {
    let pair = pair("unfit").await;
    let service = pair.started().await;
    let delete = "DELETE FROM loose WHERE ctid IN (SELECT ctid FROM loose WHERE what = 'what' LIMIT 20);";
    let alter = "ALTER TABLE events ADD COLUMN extra int DEFAULT 5; UPDATE events SET extra = 6 WHERE id > 109000;";
    // What comes before so much is on its way before the commit.
    let more = "INSERT INTO loose SELECT 'more', i FROM generate_series(1, 3000) i;";
    let again = format!("DELETE FROM events WHERE id > 100000; {LARGE}");
    for (sql, why) in [
        (format!("{LARGE} {delete} {more}"), "it changes rows of a table without a key"),
        (format!("{again} TRUNCATE loose; UPDATE events SET session = 3 WHERE id > 100000;"), "it has a TRUNCATE"),
        (format!("{again} {alter} {more}"), "a table is not what it was"),
    ] {
        let writer = pair.in_progress(&sql).await;
        service.says(why).await;
        pair.given_up().await;
        assert_eq!(pair.visible().await.parse::<u32>().unwrap() % 10_000, 0);
        writer.batch("its end", "COMMIT").await.unwrap();
        pair.database.assert_catches_up().await;
    }
    // A part that is rolled back when it is applied already.
    let updated = format!("{again} SAVEPOINT s; UPDATE events SET value = 'no' WHERE id < 1000; {more}");
    let writer = pair.in_progress(&updated).await;
    let free = "SELECT count(*)::text FROM (SELECT FROM events WHERE id = 1 FOR UPDATE SKIP LOCKED) AS row";
    eventually("the row is taken", || async {
        (pair.database.destination_value(free).await.as_deref() == Some("0")).then_some(())
    })
    .await;
    writer.batch("taking it back", "ROLLBACK TO SAVEPOINT s; DELETE FROM events WHERE id = 100001").await.unwrap();
    service.says("a part of it was rolled back").await;
    writer.batch("its end", "COMMIT").await.unwrap();
    pair.database.assert_catches_up().await;
    assert_eq!(count(&service, "applied ahead of its commit"), 0, "{}", service.log());
    // What is rolled back leaves nothing.
    let writer = pair.in_progress("UPDATE events SET value = 'rolled back' WHERE id > 100000;").await;
    pair.applied_ahead().await;
    writer.batch("its end", "ROLLBACK").await.unwrap();
    pair.given_up().await;
    pair.database.assert_catches_up().await;
    // And where a trigger acts, it acts in the order of commits.
    pair.database
        .at_destination(
            "CREATE FUNCTION stamp() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
             CREATE TRIGGER stamp BEFORE UPDATE ON events FOR EACH ROW EXECUTE FUNCTION stamp();
             ALTER TABLE events ENABLE ALWAYS TRIGGER stamp",
        )
        .await;
    service.stop().await;
    let service = pair.started().await;
    pair.database.at_source("UPDATE events SET value = 'triggered' WHERE id > 100000").await;
    pair.database.assert_catches_up().await;
    assert_eq!(count(&service, "applied ahead of its commit"), 0, "{}", service.log());
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_rolled_back_part_and_a_local_constraint_hold_up_nobody_who_commits_before() {
    let pair = pair("gives_way").await;
    let service = pair.started().await;
    // The source lets go of the row; so do we.
    let writer =
        pair.in_progress(&format!("{LARGE} SAVEPOINT s; UPDATE events SET value = 'not to be' WHERE id < 700;")).await;
    pair.applied_ahead().await;
    writer.batch("rolling back a part", "ROLLBACK TO SAVEPOINT s").await.unwrap();
    pair.database.at_source("UPDATE events SET value = 'to be' WHERE id = 5").await;
    pair.sees("to be").await;
    writer.batch("its end", "COMMIT").await.unwrap();
    pair.database.assert_catches_up().await;
    // Only here are these values unique, so only here does somebody wait for the transaction in progress.
    pair.database.at_destination("CREATE UNIQUE INDEX ON events (value)").await;
    let clash = "INSERT INTO events VALUES (200001, 1, 'clash', NULL);";
    let fill = "INSERT INTO events SELECT i, 1, 'fill ' || i, NULL FROM generate_series(300001, 310000) i;";
    let writer = pair.in_progress(&format!("{clash} {fill}")).await;
    pair.applied_ahead().await;
    writer.batch("letting go of it", "UPDATE events SET value = 'another' WHERE id = 200001").await.unwrap();
    pair.database.at_source("INSERT INTO events VALUES (200002, 2, 'clash', NULL)").await;
    pair.sees("clash").await;
    assert_eq!(count(&service, "may be waiting for it"), 1, "{}", service.log());
    writer
        .batch("taking it out of the way", "UPDATE events SET value = 'first' WHERE id = 200001; COMMIT")
        .await
        .unwrap();
    // In the order of commits the first one's insert clashes; the operator takes the local constraint away.
    pair.database.at_destination("DROP INDEX events_value_idx").await;
    pair.database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn dying_around_the_commit_of_what_was_applied_ahead_loses_and_doubles_nothing() {
    let mut pair = pair("ahead_dies").await;
    for (number, point) in ["ahead.commit", "ahead.committed"].into_iter().enumerate() {
        let mut service = pair.setup.clone().failing_at(point).start();
        service.streams().await;
        // Rows of a table without a key would be there twice, and those of another would be in the way of themselves.
        let counted = format!(
            "UPDATE events SET session = session + 1 WHERE id <= 1000; INSERT INTO loose SELECT '{point}', i FROM generate_series(1, 50) i;
             {}",
            LARGE.replace("SELECT i,", &format!("SELECT i + {},", 10_000 * number))
        );
        let writer = pair.in_progress(&counted).await;
        pair.applied_ahead().await;
        writer.batch("its end", "COMMIT").await.unwrap();
        pair.database.at_source("UPDATE events SET session = session + 1 WHERE id <= 10").await;
        service.ended().await;
        let service = pair.started().await;
        pair.database.assert_catches_up().await;
        service.stop().await;
    }
    // The session beside is ended by somebody; the server goes away; we are killed: each only costs the work.
    let mut service = pair.started().await;
    for how in ["terminated", "crashed", "killed"] {
        let counted = format!("INSERT INTO loose VALUES ('{how}', 1); UPDATE events SET session = session + 1;");
        let writer = pair.in_progress(&counted).await;
        pair.applied_ahead().await;
        match how {
            "terminated" => {
                let sql = "SELECT bool_and(pg_terminate_backend(pid))::text FROM pg_stat_activity WHERE application_name LIKE '% parallel apply'";
                pair.database.destination_value(sql).await;
            }
            "crashed" => {
                pair.destination.stop(StopMode::Immediate).await.unwrap();
                pair.destination.start().await.unwrap();
                pair.database.reconnect_destination(&pair.destination).await;
            }
            _ => {
                service.kill();
                service = pair.started().await;
            }
        }
        writer.batch("its end", "COMMIT").await.unwrap();
        pair.database.at_source("UPDATE events SET session = session + 1 WHERE id <= 10").await;
        pair.database.assert_catches_up().await;
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn what_the_operator_wants_left_out_is_left_out_although_it_was_applied_ahead() {
    // By the name that only its end tells; it comes again in pieces.
    let backlog = backlog("ahead_skipped", LARGE).await;
    let Backlog { pair, end_lsn } = &backlog;
    pair.setup.command(&["skip", "--end-lsn", end_lsn]).await.exits(0);
    pair.database.at_source("UPDATE events SET value = 'behind it' WHERE id = 1").await;
    let service = backlog.applied_ahead().await;
    pair.sees("behind it").await;
    assert_eq!(pair.visible().await, "0", "nothing of it");
    let letter = format!(
        "SELECT bool_and(end_lsn = '{end_lsn}')::text || ' ' || sum(changes) || ' ' ||
                (SELECT count(*) FROM headwater.skip) FROM headwater.dead_letter"
    );
    assert_eq!(pair.database.destination_value(&letter).await.as_deref(), Some("true 10000 0"));
    assert!(count(&service, SKIPPED) > 0, "{}", service.log());
    assert_eq!(count(&service, "applied ahead of its commit"), 0);
    pair.given_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn parallel_apply_skips_changes_already_in_a_tables_snapshot() {
    let first = "UPDATE events SET value = repeat('first ', 50);";
    let then = "UPDATE events SET value = 'then' WHERE id <= 50";
    let backlog = backlog("ahead_held", &format!("{first} INSERT INTO loose VALUES ('first', 1);")).await;
    let Backlog { pair, .. } = &backlog;
    pair.database.at_source(then).await;
    // One table is here as a copy has brought it from a moment behind both; the other one is not.
    let position = pair.database.source_value("SELECT pg_current_wal_insert_lsn()::text").await.unwrap();
    pair.database
        .at_destination(&format!(
            "{first} {then}; UPDATE headwater.tables SET snapshot_position = '{position}' WHERE table_name = 'events'"
        ))
        .await;
    pair.database.at_source("UPDATE events SET value = 'behind it' WHERE id = 1").await;
    let service = backlog.applied_ahead().await;
    pair.sees("behind it").await;
    pair.database.assert_catches_up().await;
    assert_eq!(count(&service, IN_SNAPSHOT), 1, "{}", service.log());
    assert_eq!(count(&service, "applied ahead of its commit"), 0);
    pair.given_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn what_was_rolled_back_without_a_stream_abort_cancels_parallel_apply() {
    let schema = format!("{STREAMED_SCHEMA} ALTER TABLE events ALTER COLUMN large SET STORAGE EXTERNAL;");
    let pair = pair_of("aheadunsaid", STREAMED, &schema).await;
    let service = pair.started().await;
    let row =
        |id: u32, times: u32| format!("INSERT INTO events VALUES ({id}, 1, '{id}', repeat(md5('{id}'), {times}));");
    // So large a value is no longer in the source's memory when it is rolled back, and the source then sends no Stream Abort.
    let writer = pair.in_progress(&format!("SAVEPOINT s; {}", row(200_001, 500_000))).await;
    pair.applied_ahead().await;
    let end = format!("ROLLBACK TO s; {} COMMIT", row(200_002, 30_000));
    writer.script("its end", &end).await.unwrap();
    pair.database.assert_catches_up().await;
    let ids = "SELECT string_agg(id::text, ' ') FROM events WHERE id > 200000";
    assert_eq!(pair.database.destination_value(ids).await.as_deref(), Some("200002"));
    assert!(count(&service, "why=a part of it was rolled back") > 0, "{}", service.log());
    service.stop().await;
}

//! `verify` beside every state of the service: it ends, within `fence_timeout` where there is a fence to wait for, with an exit code and
//! words that say what it has compared, or why nothing was and how both sides are compared as they stand.

use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};

use crate::support::command::Finished;
use crate::support::pause::Pause;
use crate::support::suspension::all_live;
use crate::support::{Database, Setup, destination, eventually};

const SCHEMA: &str = "CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE big (id int PRIMARY KEY, v text);
    INSERT INTO t VALUES (1, 'a'), (2, 'b'); INSERT INTO big SELECT i, repeat(md5(i::text), 100) FROM generate_series(1, 1500) i";
const TABLES: &[&str] = &["t", "big"];

/// Long enough for a wait of 5 s to be told before the verify is given up.
const FENCE_TIMEOUT: Duration = Duration::from_secs(8);

#[derive(Clone, Copy, Debug)]
enum State {
    Streaming,
    /// Another instance stands by.
    LedElsewhere,
    /// A conflict halts it.
    Halted,
    /// A table is suspended until its copy is published.
    Suspended,
    /// The first copy is made.
    Copying,
    /// A batch waits for somebody's lock.
    WaitingForLock,
    /// A table is locked at the destination, and is compared without a fence.
    TableLocked,
    /// It has streamed, and was stopped.
    Stopped,
    /// It has never run.
    NeverRun,
}

const STATES: &[State] = &[
    State::Streaming,
    State::LedElsewhere,
    State::Halted,
    State::Suspended,
    State::Copying,
    State::WaitingForLock,
    State::TableLocked,
    State::Stopped,
    State::NeverRun,
];

async fn verifies(setup: &Setup, arguments: &[&str], code: i32, said: &[&str]) -> Finished {
    let began = Instant::now();
    let finished = setup.command(&[&["verify"], arguments].concat()).await.exits(code).says(said);
    // What it was given, and what a busy machine takes to compare two tables.
    assert!(began.elapsed() < FENCE_TIMEOUT + Duration::from_secs(22), "{said:?} after {:?}", began.elapsed());
    finished
}

async fn beside(state: State) {
    let database = Database::new("verifystate", TABLES, SCHEMA).await;
    let setup = Setup::of(&database).setting(&format!("fence_timeout = \"{}s\"", FENCE_TIMEOUT.as_secs()));
    let slow = setup.clone().section("[snapshot]\nmax_rate = \"100kB\"");
    match state {
        State::Streaming => {
            let service = setup.start_streaming(&database).await;
            verifies(&setup, &[], 0, &["equal: both sides compared at"]).await;
            service.stop().await;
        }
        State::LedElsewhere => {
            let leader = setup.start_streaming(&database).await;
            let standby = setup.start();
            standby.is("standby").await;
            verifies(&setup, &[], 0, &["equal: both sides compared at"]).await;
            standby.stop().await;
            leader.stop().await;
        }
        State::Halted => {
            let service = setup.start_streaming(&database).await;
            database.at_destination("INSERT INTO t VALUES (3, 'mine')").await;
            database.at_source("INSERT INTO t VALUES (3, 'theirs')").await;
            service.is("waiting").await;
            // Whether it asks while a retry leads or between two of them.
            let finished = verifies(&setup, &[], 1, &[]).await;
            let said = format!("{}{}", finished.out, finished.err);
            let refused = ["no fence can be made: the service is halted", "no fence within "]
                .iter()
                .any(|why| said.contains(why))
                && said.contains("headwater verify --no-fence");
            let compared = said.contains("a conflict halts the service") && said.contains("1 row differs");
            assert!(refused || compared, "{said}");
            verifies(&setup, &["--no-fence"], 1, &["comparing both sides as they stand", "1 row differs"]).await;
            service.stop().await;
        }
        State::Suspended => {
            setup.start_streaming(&database).await.stop().await;
            let service = slow.start();
            service.streams().await;
            database
                .at_source("ALTER TABLE big ADD COLUMN r float8 DEFAULT random(); UPDATE big SET v = '' WHERE id = 1")
                .await;
            service.says("table public.big").await;
            eventually("the table is suspended", || async {
                (!service.status().await?["suspended"].as_array()?.is_empty()).then_some(())
            })
            .await;
            verifies(
                &setup,
                &[],
                1,
                &["table public.big is suspended until it is copied again: not compared", "equal"],
            )
            .await;
            service.stop().await;
        }
        State::Copying => {
            let service = slow.start();
            eventually("the copy has begun", || async {
                (service.metric("headwater_snapshot_rows_total{table=\"public.big\"}").await? > 1.0).then_some(())
            })
            .await;
            verifies(
                &setup,
                &[],
                1,
                &["nothing is followed yet: there is no snapshot to verify", "wait until it streams"],
            )
            .await;
            service.stop().await;
        }
        State::WaitingForLock => {
            let service = setup.start_streaming(&database).await;
            let holder = destination().await.connect(&database.name).await.unwrap();
            holder.batch("holding", "BEGIN; LOCK TABLE public.t IN EXCLUSIVE MODE").await.unwrap();
            database.at_source("UPDATE t SET v = 'c' WHERE id = 1").await;
            eventually("the batch waits", || async {
                let sql = "SELECT max(pid)::text FROM pg_locks WHERE relation = 't'::regclass AND NOT granted";
                database.destination_value(sql).await
            })
            .await;
            let said = [
                "writing waits for RowExclusiveLock on public.t, held by process",
                "no fence could be made: the transaction that is being applied took too long",
                "fence_timeout is 8s",
                "headwater verify --no-fence",
            ];
            verifies(&setup, &[], 1, &said).await;
            holder.batch("letting go", "ROLLBACK").await.unwrap();
            database.caught_up().await;
            verifies(&setup, &[], 0, &["equal: both sides compared at"]).await;
            service.stop().await;
        }
        State::TableLocked => {
            setup.start_streaming(&database).await.stop().await;
            let holder = destination().await.connect(&database.name).await.unwrap();
            holder.batch("holding", "BEGIN; LOCK TABLE public.t").await.unwrap();
            let said = [
                "verifying waits for AccessShareLock on public.t, held by process",
                "lock timeout",
                "headwater explain",
            ];
            verifies(&setup, &["--no-fence"], 1, &said).await;
            holder.batch("letting go", "ROLLBACK").await.unwrap();
            verifies(&setup, &["--no-fence"], 0, &["equal: the source at"]).await;
        }
        State::Stopped => {
            setup.start_streaming(&database).await.stop().await;
            let said = ["no service runs: comparing with the destination as it stands", "equal: the source at"];
            verifies(&setup, &[], 0, &said).await;
        }
        State::NeverRun => {
            verifies(&setup, &[], 1, &["nothing is followed yet: there is no snapshot to verify"]).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_ends_beside_every_state_of_the_service_and_says_what_it_has_compared() {
    stream::iter(STATES).map(|state| beside(*state)).buffer_unordered(3).collect::<()>().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_without_a_key_are_put_right_by_the_command_that_a_repair_prints() {
    let schema = "CREATE TABLE keyed (id int PRIMARY KEY, v text); INSERT INTO keyed SELECT i, 'v' FROM generate_series(1, 9) i;
        CREATE TABLE loose (a int, b text); ALTER TABLE loose REPLICA IDENTITY FULL; INSERT INTO loose VALUES (1, 'x'), (1, 'x'), (NULL, NULL)";
    let database = Database::new("unkeyed", &["keyed", "loose"], schema).await;
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    database.caught_up().await;
    database.at_destination("UPDATE keyed SET v = 'w' WHERE id = 3; INSERT INTO loose VALUES (1, 'x')").await;
    let refused = setup.command(&["verify", "--repair"]).await.exits(1);
    let refused = refused.says(&["rows of table public.loose have no key", "Nothing was repaired."]);
    let mut lines = refused.err.lines().map(str::trim);
    let printed = lines.find_map(|line| line.strip_prefix("headwater ")).expect("a command");
    let words: Vec<&str> = printed.split(' ').collect();
    setup.command(&words).await.exits(0);
    setup.command(&["verify", "--repair"]).await.exits(0);
    database.assert_equal().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repair_deletes_no_row_of_a_table_that_was_truncated_or_detached_meanwhile() {
    let schema = |name: &str| {
        format!(
            "CREATE TABLE {name} (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
             CREATE TABLE {name}_1 PARTITION OF {name} FOR VALUES FROM (0) TO (100); INSERT INTO {name} SELECT i, 'v' FROM generate_series(1, 50) i;"
        )
    };
    let plain = "CREATE TABLE plain (id int PRIMARY KEY, v text); INSERT INTO plain SELECT i, 'v' FROM generate_series(1, 50) i;
        CREATE TABLE other (id int PRIMARY KEY, v text); INSERT INTO other SELECT i, 'v' FROM generate_series(1, 50) i;";
    let tables = ["plain", "leaf", "detached", "rewritten", "other"];
    let trees = format!("{}{}{}", schema("leaf"), schema("detached"), schema("rewritten"));
    let database = Database::new("repairtruncate", &tables, &format!("{plain}{trees}")).await;
    let (setup, pause) = Pause::at("repair.fenced", Setup::of(&database));
    let service = setup.start();
    service.streams().await;
    database.caught_up().await;
    for table in tables {
        database.at_destination(&format!("UPDATE {table} SET v = 'drifted' WHERE id % 3 = 0")).await;
    }
    // Whatever the command says of tables that are copied again by then: the rows count.
    let command = setup.clone();
    let repairing = tokio::spawn(async move { command.command(&["verify", "--repair"]).await });
    pause.reached().await;
    let changes = "TRUNCATE plain; TRUNCATE leaf_1; ALTER TABLE detached DETACH PARTITION detached_1; ALTER TABLE rewritten ALTER v TYPE text USING v || '.'";
    database.at_source(changes).await;
    let behind = database.source_value("SELECT pg_current_wal_insert_lsn()::text").await.expect("a position");
    pause.end();
    let ended = repairing.await.expect("a command");
    // What is refused is done at another fence, which has the changes.
    ended.says(&["another session truncated, rewrote or repartitioned table public."]);
    let log = service.log();
    for line in log.lines().filter_map(|line| line.split_once("repaired rows at ")) {
        let at = line.1.split(':').next().expect("a position");
        let is_behind = format!("SELECT ('{at}'::pg_lsn >= '{behind}')::text");
        assert_eq!(database.source_value(&is_behind).await.as_deref(), Some("true"), "{log}");
    }
    assert!(log.contains("repaired rows at "), "{log}");
    // Whichever tables were suspended by then, the others are repaired.
    let drifted = "SELECT count(*)::text FROM other WHERE v = 'drifted'";
    assert_eq!(database.destination_value(drifted).await.as_deref(), Some("0"), "{log}");
    // The TRUNCATE of a leaf alone is a doubt until the stream has passed it.
    eventually("the leaf's rows are gone", || async {
        (database.destination_value("SELECT count(*)::text FROM leaf").await.as_deref() == Some("0")).then_some(())
    })
    .await;
    all_live(&database).await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repair_beside_a_vacuum_full_repairs_all_rows() {
    let database = Database::new("repairvacuum", TABLES, SCHEMA).await;
    let (setup, pause) = Pause::at("repair.fenced", Setup::of(&database));
    let service = setup.start();
    service.streams().await;
    database.caught_up().await;
    database.at_destination("UPDATE big SET v = 'drifted' WHERE id % 3 = 0").await;
    let command = setup.clone();
    let repairing = tokio::spawn(async move { command.command(&["verify", "--repair"]).await });
    pause.reached().await;
    database.at_source("VACUUM FULL big").await;
    pause.end();
    repairing.await.expect("a command").exits(0).says(&["500 updated"]);
    service.stop().await;
}

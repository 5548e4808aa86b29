//! Links that are cut, stalled and slow; servers that restart; and the source, which must not be hurt by any of it.

use std::time::{Duration, Instant};

use fastrand::Rng;
use headwater::commands::demo::StopMode;

use crate::support::forum::{FORUM, FORUM_SCHEMA};
use crate::support::proxy::{Mode, Proxy};
use crate::support::{
    Database, Setup, destination, eventually, let_pass, new_destination, new_source, seed, source, workload,
};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn cut_stalled_and_slow_links_lose_and_double_nothing() {
    let seed = seed("cut_stalled_and_slow_links");
    let database = Database::new("links", workload::TABLES, workload::SCHEMA).await;
    let (to_source, to_destination) =
        (Proxy::to(source().await.port()).await, Proxy::to(destination().await.port()).await);
    let mut setup = Setup::of(&database)
        .source("timeout = \"2s\"")
        .destination("timeout = \"3s\"")
        .setting("leader_timeout = \"2s\"");
    setup.source_url = to_source.in_place_of(&setup.source_url);
    setup.destination_url = to_destination.in_place_of(&setup.destination_url);
    let service = setup.start();
    service.streams().await;
    let mut rng = Rng::with_seed(seed);
    workload::while_running(&database, seed, async {
        for _ in 0..12 {
            let proxy = if rng.bool() { &to_source } else { &to_destination };
            match rng.u32(..4) {
                0 => proxy.cut_once(),
                1 => {
                    proxy.set(Mode::Cut);
                    let_pass(rng.u64(100..800)).await;
                }
                2 => {
                    proxy.set(Mode::Stalled);
                    let_pass(rng.u64(100..5000)).await;
                }
                _ => {
                    proxy.set(Mode::Delayed(rng.u64(1..30)));
                    let_pass(rng.u64(100..1500)).await;
                }
            }
            proxy.set(Mode::Open);
            let_pass(rng.u64(50..600)).await;
        }
    })
    .await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn restarts_of_either_server_are_waited_for_with_one_line_a_change() {
    let (mut source, mut destination) = (new_source(&[]).await, new_destination(&[]).await);
    let mut database = Database::on(&source, &destination, "restarts", FORUM, FORUM_SCHEMA).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    for round in 0..2 {
        source.stop(StopMode::Fast).await.unwrap();
        service.is("connecting").await;
        let_pass(3000).await;
        source.start().await.unwrap();
        database.reconnect_source(&source).await;
        service.streams().await;
        destination.stop(StopMode::Fast).await.unwrap();
        service.is("connecting").await;
        destination.start().await.unwrap();
        database.reconnect_destination(&destination).await;
        service.streams().await;
        database.at_source(&format!("UPDATE messages SET score = {round} WHERE id < 50")).await;
        database.assert_catches_up().await;
    }
    // Lost, cannot connect, (starting up,) back: not one line per attempt.
    let log = service.log();
    let warnings = log.matches(" WARN ").count();
    assert!(warnings <= 14, "{warnings} warnings for four restarts:\n{log}");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_that_are_not_there_yet_are_waited_for_at_the_first_start() {
    let (mut source, destination) = (new_source(&[]).await, destination().await);
    let mut database = Database::on(&source, destination, "later", FORUM, FORUM_SCHEMA).await;
    source.stop(StopMode::Fast).await.unwrap();
    let service = Setup::of(&database).start();
    service.says("cannot connect").await;
    source.start().await.unwrap();
    service.streams().await;
    database.reconnect_source(&source).await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn the_source_is_answered_while_the_destination_is_busy() {
    let source = new_source(&[]).await;
    let database = Database::on(&source, destination().await, "busy", FORUM, FORUM_SCHEMA).await;
    let service = Setup::of(&database).source("timeout = \"3s\"").start();
    service.streams().await;
    // A local lock holds the apply up for longer than the walsender's patience.
    let local = destination().await.connect(&database.name).await.unwrap();
    local.batch("a local lock", "BEGIN; LOCK TABLE public.messages IN EXCLUSIVE MODE").await.unwrap();
    let walsender = format!("SELECT active_pid::text FROM pg_replication_slots WHERE slot_name = '{}'", database.name);
    let before = database.source_value(&walsender).await;
    database.at_source("UPDATE messages SET body = 'x' WHERE id < 3000").await;
    let_pass(8000).await;
    assert_eq!(database.source_value(&walsender).await, before, "the same walsender, never ended by its timeout");
    local.batch("the lock goes", "ROLLBACK").await.unwrap();
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_silent_destination_does_not_keep_the_source_from_shutting_down() {
    let mut source = new_source(&[]).await;
    let mut database = Database::on(&source, destination().await, "silent", FORUM, FORUM_SCHEMA).await;
    let to_destination = Proxy::to(destination().await.port()).await;
    let mut setup = Setup::of(&database);
    setup.destination_url = to_destination.in_place_of(&setup.destination_url);
    let service = setup.start();
    service.streams().await;
    to_destination.set(Mode::Stalled);
    database.at_source("UPDATE messages SET body = 'x' WHERE id < 100").await;
    // Connected and not confirming, it would hold up a fast shutdown; after 30 s it is not connected any more.
    let walsender = format!("SELECT active::text FROM pg_replication_slots WHERE slot_name = '{}'", database.name);
    eventually("the replication session is closed", || async {
        (database.source_value(&walsender).await.as_deref() == Some("false")).then_some(())
    })
    .await;
    source.stop(StopMode::Fast).await.unwrap();
    source.start().await.unwrap();
    to_destination.set(Mode::Open);
    database.reconnect_source(&source).await;
    service.streams().await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_locked_at_the_source_is_named_with_its_holder() {
    let database = Database::new("locked", FORUM, FORUM_SCHEMA).await;
    let holder = source().await.connect(&database.name).await.unwrap();
    holder.batch("a lock", "BEGIN; LOCK TABLE public.topics IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let setup = Setup::of(&database).destination("lock_timeout = \"500ms\"");
    // The catalog can be read; the lock is what the snapshot needs.
    let output = setup.start().ends_with(1).await;
    assert!(output.contains("table public.topics is locked at the source"), "{output}");
    assert!(output.contains("ACCESS EXCLUSIVE is held by process"), "{output}");
    holder.batch("the lock goes", "ROLLBACK").await.unwrap();
    let service = setup.start();
    service.streams().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_cannot_be_rewritten_between_the_slot_and_its_first_read() {
    let database = Database::new("rewrite", FORUM, FORUM_SCHEMA).await;
    // Slow enough that the ALTER falls into the copy of messages.
    let service = Setup::of(&database).section("[snapshot]\nmax_rate = \"300kB\"\nworkers = 1").start();
    service.is("snapshot").await;
    eventually("the copy has begun", || async {
        (service.metric("headwater_snapshot_rows_total{table=\"public.messages\"}").await? > 10.0).then_some(())
    })
    .await;
    // It rewrites the table: read afterwards under the older snapshot, it would look empty. So it waits for the copy.
    let began = Instant::now();
    database.at_source("ALTER TABLE sections ADD COLUMN r float8 DEFAULT random()").await;
    let waited = began.elapsed();
    assert!(waited > Duration::from_millis(500), "the ALTER did not wait for the copy ({waited:?})");
    service.says("published").await;
    assert_eq!(database.destination_value("SELECT count(*)::text FROM sections").await.as_deref(), Some("10"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_altered_while_the_slot_waits_is_let_go_and_read_as_it_is_then() {
    // A server of its own: who waits for a slot here would wait for this transaction, too.
    let cluster = new_source(&[]).await;
    let database = Database::on(&cluster, destination().await, "letgo", FORUM, FORUM_SCHEMA).await;
    let long = cluster.connect(&database.name).await.expect("a session");
    // The slot waits for this one, and meanwhile somebody wants a table that the snapshot has locked already.
    long.batch("test", "CREATE TABLE public.elsewhere (i int)").await.expect("a table");
    long.batch("test", "BEGIN; INSERT INTO public.elsewhere VALUES (1)").await.expect("a long transaction");
    let service = Setup::of(&database).start();
    service.says("locked in ACCESS SHARE mode").await;
    database.at_source("ALTER TABLE sections ADD COLUMN r float8 DEFAULT random()").await;
    long.batch("test", "COMMIT").await.expect("the end of the long transaction");
    service.is("streaming").await;
    service.says("waits for table public.sections, which the snapshot has locked").await;
    let filled = "SELECT count(r)::text FROM sections";
    assert_eq!(database.destination_value(filled).await.as_deref(), Some("10"));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_reader_that_is_lost_while_its_table_is_waited_for_does_not_wait_behind_that() {
    let database = Database::new("behind", FORUM, FORUM_SCHEMA).await;
    let service = Setup::of(&database).section("[snapshot]\nmax_rate = \"300kB\"\nworkers = 1").start();
    eventually("the copy has begun", || async {
        (service.metric("headwater_snapshot_rows_total{table=\"public.messages\"}").await? > 10.0).then_some(())
    })
    .await;
    let other = source().await.connect(&database.name).await.expect("a session");
    let waiting = database.at_source("ALTER TABLE messages ADD COLUMN r float8 DEFAULT random()");
    let cutting = async {
        let waits = "SELECT FROM pg_locks WHERE relation = 'public.messages'::regclass AND NOT granted";
        eventually("the ALTER waits", || async { other.query_opt("test", waits, &[]).await.ok().flatten() }).await;
        let reader = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                      WHERE datname = current_database() AND query LIKE 'COPY%'";
        assert_eq!(other.query("test", reader, &[]).await.expect("readers").len(), 1, "one reader is ended");
    };
    tokio::join!(waiting, cutting);
    service.is("streaming").await;
    database.assert_catches_up().await;
    let empty = "SELECT count(*)::text FROM messages WHERE r IS NULL";
    assert_eq!(database.destination_value(empty).await.as_deref(), Some("0"));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_host_that_never_answers_keeps_no_other_from_being_the_source() {
    let database = Database::of_superuser("silenthost", FORUM, FORUM_SCHEMA).await;
    // The operating system takes connections for it, and nobody ever answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut setup = Setup::of(&database);
    setup.source_url = format!(
        "postgresql://postgres@127.0.0.1:{},127.0.0.1:{}/{}?connect_timeout=%201%20",
        silent.local_addr().unwrap().port(),
        source().await.port(),
        database.name
    );
    setup.command(&["check"]).await.exits(0).says(&["no answer within 1s"]);
    let service = setup.start();
    service.streams().await;
    database.at_source("UPDATE messages SET body = 'x' WHERE id = 7").await;
    database.assert_catches_up().await;
    setup.command(&["verify"]).await.exits(0);
    service.stop().await;
    setup.command(&["teardown"]).await.exits(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_abstract_socket_leads_to_the_source() {
    let mut cluster = new_source(&[]).await;
    let name = format!("@headwater-test-{}", cluster.port());
    cluster.stop(StopMode::Fast).await.unwrap();
    cluster.set("unix_socket_directories", &format!("{},{name}", cluster.dir().display()));
    cluster.start().await.unwrap();
    let database = Database::on(&cluster, destination().await, "abstract", FORUM, FORUM_SCHEMA).await;
    let mut setup = Setup::of(&database);
    setup.source_url = format!("postgresql://postgres@/{}?host={name}&port={}", database.name, cluster.port());
    setup.command(&["check"]).await.exits(0).says(&["over a Unix socket"]);
    let service = setup.start();
    service.streams().await;
    database.at_source("UPDATE messages SET body = 'x' WHERE id = 7").await;
    database.assert_catches_up().await;
    service.stop().await;
}

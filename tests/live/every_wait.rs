//! Whatever headwater waits for is said: once in the log, in /status and by `status` while it lasts, by `explain` with who is in the
//! way and what ends it; and SIGTERM is obeyed within ten seconds in the middle of it. Two tables, a row for each kind of wait: behind
//! somebody's transaction, and for a server, a slot, a disk or the lead.

use std::fmt::Debug;
use std::process::Stdio;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use headwater::commands::demo::{Cluster, StopMode, installed_bin};

use crate::support::disk::Disk;
use crate::support::marks::printed_marks;
use crate::support::proxy::{Mode, Proxy};
use crate::support::waits::{holding, process_of, waits_for_standby};
use crate::support::{Database, Script, Service, Setup, destination, eventually, new_destination, new_source, source};

const TABLE: &str = "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a'), (2, 'b')";

/// A kind of wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A first start publishes the table, and somebody alters it at the source.
    StartBehindAlter,
    /// The same, by a prepared transaction.
    StartBehindPrepared,
    /// CREATE PUBLICATION needs a lock that somebody else's excludes.
    Publication,
    /// A new slot waits for a transaction that runs.
    SlotBehindOpen,
    /// The same, for a prepared one of another database.
    SlotBehindPrepared,
    /// The slot of a fence, which `verify` has asked for.
    Fence,
    /// The monitor's look at the publication, while the stream runs on.
    Ground,
    /// A batch, behind a lock on a table.
    Batch,
    /// A batch, behind a lock on the bookkeeping, which `explain` itself meets.
    Bookkeeping,
    /// A start, behind a lock on the bookkeeping.
    StartBehindBookkeeping,
    /// A publish that writes a row which somebody else has locked.
    Publish,
    /// The stream at a mark of a schema change whose COMMIT waits for a synchronous standby.
    SchemaMark,
    /// A question about a changed table, for the same reason.
    Describing,
    /// The COMMIT of headwater's own session at the source.
    StandbyOfSource,
    /// The COMMIT of a publish at the destination.
    StandbyOfDestination,
    /// The monitor has no session, while the stream runs on.
    Unwatched,
    /// A change of the source's table is made at the destination, where somebody reads the table.
    SchemaChange,
    /// A label of an enum comes, and somebody adds one at the destination.
    Label,
    /// A table is copied again while the stream runs, and somebody has locked it at the destination.
    Comparing,
    /// The same, and somebody has locked a row that the hand-over writes.
    HandOver,
    /// A start drops the staging that an earlier one has left, and somebody reads it.
    StagingSweep,
}

const KINDS: &[Kind] = &[
    Kind::StartBehindAlter,
    Kind::StartBehindPrepared,
    Kind::Publication,
    Kind::SlotBehindOpen,
    Kind::SlotBehindPrepared,
    Kind::Fence,
    Kind::Ground,
    Kind::Batch,
    Kind::Bookkeeping,
    Kind::StartBehindBookkeeping,
    Kind::Publish,
    Kind::SchemaMark,
    Kind::Describing,
    Kind::StandbyOfSource,
    Kind::StandbyOfDestination,
    Kind::Unwatched,
    Kind::SchemaChange,
    Kind::Label,
    Kind::Comparing,
    Kind::HandOver,
    Kind::StagingSweep,
];

/// What is said of a wait.
struct Said {
    /// In one line of the log, and no other line has them: the first of them begins it.
    log: Vec<String>,
    /// In /status.
    status: Vec<String>,
    /// By `explain`, with this exit code.
    explain: Vec<String>,
    code: i32,
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// What is said of a lock that a session holds.
fn said_of_lock(end: &str, purpose: &str, lock: &str, process: &str) -> Said {
    let waits = format!("{end}: headwater{purpose} waits for {lock}");
    let held = format!("held by process {process}");
    let ends = format!("SELECT pg_terminate_backend({process});");
    Said {
        log: words(&[&waits, &held, "'night job'", " since ", &ends]),
        status: words(&[&waits, &held, &ends]),
        explain: words(&["BLOCKS", &format!("waits for {lock}"), &held, &ends]),
        code: 1,
    }
}

fn said_of_prepared(end: &str, purpose: &str, lock: &str, gid: &str) -> Said {
    let waits = format!("{end}: headwater{purpose} waits for {lock}");
    let held = format!("prepared transaction '{gid}'");
    let ends = format!("ROLLBACK PREPARED '{gid}';");
    Said {
        log: words(&[&waits, &held, "since ", &ends]),
        status: words(&[&waits, &held, &ends]),
        explain: words(&["BLOCKS", &held, &ends]),
        code: 1,
    }
}

/// Waits until everything is said, and asserts that it is said once and that the service can be stopped.
async fn assert_said(kind: impl Debug, service: Service, said: &Said) {
    is_said(&kind, &service, said).await;
    // The wait goes on, whatever was given up and tried again meanwhile.
    is_said_once(&kind, &service, said);
    service.stop().await;
}

fn is_said_once(kind: impl Debug, service: &Service, said: &Said) {
    let times = service.log().lines().filter(|line| line.contains(&said.log[0])).count();
    assert_eq!(times, 1, "{kind:?}: {:?} in the log:\n{}", said.log[0], service.log());
}

async fn is_said(kind: impl Debug, service: &Service, said: &Said) {
    let has = |text: &str, words: &[String]| words.iter().all(|word| text.contains(word));
    eventually(&format!("{kind:?}: the log says {:?}", said.log), || async {
        service.log().lines().any(|line| has(line, &said.log)).then_some(())
    })
    .await;
    eventually(&format!("{kind:?}: /status says {:?}", said.status), || async {
        has(&service.status().await?.to_string().replace("\\\"", "\""), &said.status).then_some(())
    })
    .await;
    eventually(&format!("{kind:?}: status says {:?}", said.status), || async {
        let (_, text) = service.command(&["status"]).await;
        has(&text, &said.status).then_some(())
    })
    .await;
    eventually(&format!("{kind:?}: explain says {:?}", said.explain), || async {
        let (code, text) = service.command(&["explain"]).await;
        (code == Some(said.code) && has(&text, &said.explain)).then_some(())
    })
    .await;
}

async fn one(kind: Kind) {
    let own = match kind {
        Kind::Batch | Kind::Bookkeeping | Kind::StartBehindBookkeeping | Kind::Publish | Kind::Unwatched => None,
        Kind::StandbyOfDestination | Kind::SchemaChange | Kind::Label | Kind::Comparing => None,
        Kind::HandOver | Kind::StagingSweep => None,
        // A lock on a table takes an xid, for which every new slot of the cluster waits.
        Kind::StartBehindAlter
        | Kind::StartBehindPrepared
        | Kind::Publication
        | Kind::SlotBehindOpen
        | Kind::SlotBehindPrepared
        | Kind::Fence
        | Kind::Ground
        | Kind::SchemaMark
        | Kind::Describing
        | Kind::StandbyOfSource => Some(new_source(&[("max_prepared_transactions", "5")]).await),
    };
    let from = match &own {
        Some(own) => own,
        None => source().await,
    };
    let own_destination = match kind {
        Kind::StandbyOfDestination => Some(new_destination(&[]).await),
        Kind::StartBehindAlter
        | Kind::StartBehindPrepared
        | Kind::Publication
        | Kind::SlotBehindOpen
        | Kind::SlotBehindPrepared
        | Kind::Fence
        | Kind::Ground
        | Kind::Batch
        | Kind::Bookkeeping
        | Kind::StartBehindBookkeeping
        | Kind::Publish
        | Kind::SchemaMark
        | Kind::Describing
        | Kind::StandbyOfSource
        | Kind::Unwatched
        | Kind::SchemaChange
        | Kind::Label
        | Kind::Comparing
        | Kind::HandOver
        | Kind::StagingSweep => None,
    };
    let to = match &own_destination {
        Some(own) => own,
        None => destination().await,
    };
    let database = Database::on(from, to, "everywait", &["t"], TABLE).await;
    match kind {
        Kind::StartBehindAlter => {
            let (_holder, process) = holding(from, &database, "ALTER TABLE t ADD more int").await;
            let service = Setup::of(&database).start();
            let said = said_of_lock("source", " control", "ShareUpdateExclusiveLock on public.t", &process);
            assert_said(kind, service, &said).await;
        }
        Kind::StartBehindPrepared => {
            let (_holder, _) = holding(from, &database, "LOCK TABLE t; PREPARE TRANSACTION 'left over'").await;
            let service = Setup::of(&database).start();
            let said = said_of_prepared("source", " control", "ShareUpdateExclusiveLock on public.t", "left over");
            assert_said(kind, service, &said).await;
        }
        Kind::Publication => {
            let (_holder, process) = holding(from, &database, "LOCK TABLE t IN SHARE MODE").await;
            let service = Setup::of(&database).start();
            let said = said_of_lock("source", " control", "ShareUpdateExclusiveLock on public.t", &process);
            assert_said(kind, service, &said).await;
        }
        Kind::SlotBehindOpen => {
            let (_holder, process) = holding(from, &database, "CREATE TABLE elsewhere (id int)").await;
            let service = Setup::of(&database).start();
            let (waits, ends) = (
                format!("process {process} of role postgres in database {}, since 20", database.name),
                format!("SELECT pg_terminate_backend({process});"),
            );
            let what = "the copy waits for its replication slot at the source";
            let said = Said {
                log: words(&[what]),
                status: words(&[what, &waits, &ends]),
                explain: words(&["BLOCKS", what, &waits, &ends]),
                code: 1,
            };
            assert_said(kind, service, &said).await;
        }
        Kind::SlotBehindPrepared => {
            let other = from.connect("postgres").await.unwrap();
            let sql = "BEGIN; CREATE TABLE public.elsewhere (id int); PREPARE TRANSACTION 'left over'";
            other.script("preparing", sql).await.unwrap();
            let service = Setup::of(&database).start();
            let what = "the copy waits for its replication slot at the source";
            let all = words(&[
                what,
                "prepared transaction 'left over'",
                "ROLLBACK PREPARED 'left over'; -- in database postgres",
            ]);
            let said = Said { log: words(&[what]), status: all.clone(), explain: all, code: 1 };
            assert_said(kind, service, &said).await;
        }
        Kind::Fence => {
            let service = Setup::of(&database).start_streaming(&database).await;
            let (_holder, process) = holding(from, &database, "CREATE TABLE elsewhere (id int)").await;
            let config = service.configuration_file().to_owned();
            let mut verify = tokio::process::Command::new(crate::support::headwater());
            verify.arg("verify").arg("--config").arg(config).env_remove("PGPASSWORD").kill_on_drop(true);
            let _verify = verify.stdout(Stdio::null()).spawn().unwrap();
            let purpose = format!(" {} fence", database.name);
            let said = said_of_lock("source", &purpose, "ShareLock on a transactionid", &process);
            assert_said(kind, service, &said).await;
        }
        Kind::Ground => {
            let service = Setup::of(&database).start_streaming(&database).await;
            let (_holder, process) = holding(from, &database, "LOCK TABLE pg_catalog.pg_publication").await;
            let said = said_of_lock("source", " catalog", "AccessShareLock on pg_catalog.pg_publication", &process);
            // Lag and slot are looked at all the same, and the stream goes on.
            let at = service.status().await.unwrap()["source_flush_lsn"].clone();
            eventually("the source's position is still asked for", || async {
                (service.status().await?["source_flush_lsn"] != at).then_some(())
            })
            .await;
            assert_said(kind, service, &said).await;
        }
        Kind::Batch => {
            let service = Setup::of(&database).start_streaming(&database).await;
            let (_holder, process) = holding(to, &database, "LOCK TABLE t").await;
            database.at_source("UPDATE t SET v = 'c' WHERE id = 1").await;
            let purpose = format!(" {} writing", database.name);
            let said = said_of_lock("destination", &purpose, "RowExclusiveLock on public.t", &process);
            assert_said(kind, service, &said).await;
        }
        Kind::Bookkeeping => {
            let service = Setup::of(&database).start_streaming(&database).await;
            let (_holder, process) = holding(to, &database, "LOCK TABLE headwater.position").await;
            database.at_source("UPDATE t SET v = 'c' WHERE id = 1").await;
            let purpose = format!(" {} writing", database.name);
            let said = said_of_lock("destination", &purpose, "RowExclusiveLock on headwater.\"position\"", &process);
            assert_said(kind, service, &said).await;
        }
        Kind::StartBehindBookkeeping => {
            Setup::of(&database).start_streaming(&database).await.stop().await;
            let (_holder, process) = holding(to, &database, "LOCK TABLE headwater.resnapshots").await;
            let service = Setup::of(&database).start();
            let lock = "AccessShareLock on headwater.resnapshots";
            let said = said_of_lock("destination", " bookkeeping", lock, &process);
            assert_said(kind, service, &said).await;
        }
        Kind::Publish => {
            Setup::of(&database).start_streaming(&database).await.stop().await;
            let sql = "UPDATE t SET v = 'mine' WHERE id = 2";
            database.at_destination("UPDATE t SET v = 'other' WHERE id = 2").await;
            let (_holder, process) = holding(to, &database, sql).await;
            let service = Setup::of(&database).argument("--resnapshot").start();
            let purpose = format!(" {} publishing", database.name);
            let said = said_of_lock("destination", &purpose, "ShareLock on a transactionid", &process);
            assert_said(kind, service, &said).await;
        }
        Kind::SchemaMark => {
            database.at_source(&printed_marks().await.0).await;
            let service = Setup::of(&database).start_streaming(&database).await;
            waits_for_standby(from, &database).await;
            let (committing, process) =
                committing(from, &database, "ALTER TABLE t ADD more int; INSERT INTO t VALUES (9, 'x')").await;
            let what = "source: the stream waits at the schema change of transaction ";
            let waits =
                format!("its COMMIT waits for a synchronous standby, in process {process} of role postgres, since ");
            let said = said_of_standby(what, &waits);
            is_said(kind, &service, &said).await;
            // It has a bound, and the next attempt comes to the same mark.
            eventually("the attempt ends", || service.restarts("transaction_unseen")).await;
            service.says("is not visible at the source after 30s").await;
            is_said(kind, &service, &Said { code: 1, ..said_of_standby(what, &waits) }).await;
            assert_said(kind, service, &said).await;
            committing.abort();
        }
        Kind::Describing => {
            let service = Setup::of(&database).start_streaming(&database).await;
            waits_for_standby(from, &database).await;
            let (committing, process) =
                committing(from, &database, "ALTER TABLE t ADD more int; INSERT INTO t VALUES (9, 'x')").await;
            let what = "source: a question about a changed table waits for transaction ";
            let waits =
                format!("its COMMIT waits for a synchronous standby, in process {process} of role postgres, since ");
            let said = said_of_standby(what, &waits);
            assert_said(kind, service, &said).await;
            committing.abort();
        }
        Kind::StandbyOfSource => {
            waits_for_standby(from, &database).await;
            let service = Setup::of(&database).start();
            let what = "source: headwater control waits for a synchronous standby of the source to confirm a COMMIT";
            assert_said(kind, service, &said_of_standby(what, "since ")).await;
        }
        Kind::StandbyOfDestination => {
            Setup::of(&database).start_streaming(&database).await.stop().await;
            waits_for_standby(to, &database).await;
            let service = Setup::of(&database).argument("--resnapshot").start();
            let what = "waits for a synchronous standby of the destination to confirm a COMMIT";
            assert_said(kind, service, &said_of_standby(what, "since ")).await;
        }
        Kind::Unwatched => {
            let role = format!("reader_{}", database.name);
            let create = format!(
                "CREATE ROLE {role} LOGIN REPLICATION; GRANT SELECT ON t TO {role}; GRANT pg_monitor TO {role};
                 CREATE PUBLICATION {} FOR TABLE t WITH (publish_via_partition_root = true)",
                database.name
            );
            database.at_source(&create).await;
            let mut setup = Setup::of(&database);
            setup.source_url = setup.source_url.replace("postgres@", &format!("{role}@"));
            let service = setup.start();
            service.streams().await;
            database.caught_up().await;
            // The walsender keeps its session, and there is no other: the limit holds before the others end.
            database.at_source(&format!("ALTER ROLE {role} CONNECTION LIMIT 1")).await;
            let sql = format!(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                 WHERE usename = '{role}' AND backend_type = 'client backend'"
            );
            database.at_source(&sql).await;
            let what = "headwater cannot look at the source's position, its slot and what waits there: ";
            let why = format!("too many connections for role \"{role}\"");
            let all = words(&[what, &why, "It has tried since "]);
            let explain = words(&["BLOCKS", "the source's position, its slot and what waits there", &why]);
            assert_said(kind, service, &Said { log: all.clone(), status: all, explain, code: 1 }).await;
        }
        Kind::SchemaChange => {
            let service = Setup::of(&database).start_streaming(&database).await;
            let (_holder, process) = holding(to, &database, "SELECT FROM t").await;
            database.at_source("ALTER TABLE t ADD more int; INSERT INTO t VALUES (9, 'x')").await;
            let purpose = format!(" {} writing", database.name);
            let said = said_of_lock("destination", &purpose, "AccessExclusiveLock on public.t", &process);
            assert_said(kind, service, &said).await;
        }
        Kind::Label => {
            let mood = "CREATE TYPE mood AS ENUM ('fine'); ALTER TABLE t ADD m mood";
            database.at_source(mood).await;
            let service = Setup::of(&database).start_streaming(&database).await;
            let (_holder, process) = holding(to, &database, "ALTER TYPE mood ADD VALUE 'mine'").await;
            database.at_source("ALTER TYPE mood ADD VALUE 'theirs'").await;
            database.at_source("INSERT INTO t VALUES (9, 'x', 'theirs')").await;
            assert_said(kind, service, &said_of_any("destination", "ExclusiveLock on a object", &process)).await;
        }
        Kind::Comparing => {
            let service = Setup::of(&database).start_streaming(&database).await;
            let (_holder, process) = holding(to, &database, "LOCK TABLE t").await;
            service.command(&["resnapshot", "--no-wait", "t"]).await;
            assert_said(kind, service, &said_of_any("destination", "AccessShareLock on public.t", &process)).await;
        }
        Kind::HandOver => {
            let service = Setup::of(&database).start_streaming(&database).await;
            database.at_destination("UPDATE t SET v = 'other' WHERE id = 2").await;
            let (_holder, process) = holding(to, &database, "UPDATE t SET v = 'mine' WHERE id = 2").await;
            service.command(&["resnapshot", "--no-wait", "t"]).await;
            assert_said(kind, service, &said_of_any("destination", "ShareLock on a transactionid", &process)).await;
        }
        Kind::StagingSweep => {
            Setup::of(&database).failing_at("snapshot.staged").start().ended().await;
            let staging =
                "SELECT schemaname::text FROM pg_tables WHERE schemaname LIKE 'headwater\\_%' AND tablename = 't'";
            let staging = database.destination_value(staging).await.unwrap();
            let (_holder, process) = holding(to, &database, &format!("SELECT FROM {staging}.t")).await;
            let service = Setup::of(&database).start();
            let lock = format!("AccessExclusiveLock on {staging}.t");
            assert_said(kind, service, &said_of_any("destination", &lock, &process)).await;
        }
    }
}

/// The same as [`said_of_lock`], whichever session of headwater's waits.
fn said_of_any(end: &str, lock: &str, process: &str) -> Said {
    let waits = format!(" waits for {lock}, held by process {process}");
    let Said { log, status, explain, code } = said_of_lock(end, "", lock, process);
    let all = |words: Vec<String>| [vec![waits.clone(), format!("{end}: headwater")], words[2..].to_vec()].concat();
    Said { log: all(log), status: all(status), explain, code }
}

/// A session whose COMMIT of this waits.
async fn committing(cluster: &Cluster, database: &Database, sql: &str) -> (tokio::task::JoinHandle<()>, String) {
    let session = cluster.connect(&database.name).await.unwrap().with_timeout(Duration::from_secs(600));
    let process = process_of(&session).await;
    let sql = format!("SET search_path = public; BEGIN; {sql}; COMMIT");
    let committing = tokio::spawn(async move {
        let _ = session.script("committing", &sql).await;
    });
    (committing, process)
}

fn said_of_standby(what: &str, waits: &str) -> Said {
    let ends = "bring a standby of synchronous_standby_names back ('nobody'), or set that otherwise";
    let all = words(&[what, waits, ends]);
    Said { log: all.clone(), status: all, explain: words(&["BLOCKS", what, ends]), code: 1 }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 8)]
#[ignore = "takes long: make test-long"]
async fn every_wait_is_said_once_and_explained_and_obeys_sigterm() {
    // They wait most of the time, and each has a server of its own.
    // A server that is being made blocks its thread, and each kind has a clock.
    let kinds = stream::iter(KINDS).map(|kind| tokio::spawn(one(*kind)));
    kinds.buffer_unordered(3).for_each(async |ended| ended.expect("a kind of wait")).await;
}

/// What is waited for that nobody's transaction holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outage {
    /// Nobody listens there.
    Refused,
    /// Somebody takes the connection and says nothing.
    BlackHole,
    /// The first of two hosts takes the connection and says nothing.
    SeveralHosts,
    /// The role may not log in any more.
    Authentication,
    /// Another role streams from the slot.
    SlotHeld,
    /// The destination has become a standby.
    ReadOnly,
    /// The link to the source passes nothing on any more.
    SilentLink,
    /// The destination's disk is full.
    DiskFull,
    /// Another instance leads.
    LedElsewhere,
    /// The disk of transactions in progress answers nothing.
    SlowSpool,
}

const OUTAGES: &[Outage] = &[
    // It takes longest.
    Outage::SlowSpool,
    Outage::Refused,
    Outage::BlackHole,
    Outage::SeveralHosts,
    Outage::Authentication,
    Outage::SlotHeld,
    Outage::ReadOnly,
    Outage::SilentLink,
    Outage::DiskFull,
    Outage::LedElsewhere,
];

/// The same is said everywhere; the first of these once in the log.
fn said_of_outage(all: &[&str]) -> Said {
    Said { log: words(&all[..1]), status: words(all), explain: words(&[&["BLOCKS"], all].concat()), code: 1 }
}

async fn outage(outage: Outage) {
    let database = Database::of_superuser("everyoutage", &["t"], TABLE).await;
    let mut setup = Setup::of(&database);
    match outage {
        Outage::Refused => {
            setup.source_url = "postgresql://postgres@127.0.0.1:1/x".to_owned();
            let service = setup.start();
            let said =
                said_of_outage(&["source: cannot connect to", "127.0.0.1:1", "Start the server, or correct host"]);
            assert_said(outage, service, &said).await;
        }
        Outage::BlackHole => {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let port = listener.local_addr().unwrap().port();
            setup.source_url = format!("postgresql://postgres@127.0.0.1:{port}/x?connect_timeout=2");
            let service = setup.start();
            let said = said_of_outage(&[
                "source: cannot connect to",
                "no answer within 2s",
                "Start the server, or correct host",
            ]);
            assert_said(outage, service, &said).await;
        }
        Outage::SeveralHosts => {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let port = listener.local_addr().unwrap().port();
            let good = source().await.tcp_url(&database.name);
            let both = good.replace("127.0.0.1:", &format!("127.0.0.1:{port},127.0.0.1:"));
            setup.source_url = format!("{both}?connect_timeout=60");
            let service = setup.start();
            let what = format!("connecting: no answer from 127.0.0.1:{port} yet, since ");
            let said =
                said_of_outage(&[&what, "A host is given up after connect_timeout, 1m; then the next one is tried"]);
            assert_said(outage, service, &said).await;
        }
        Outage::Authentication => {
            let role = format!("reader_{}", database.name);
            let create = format!("CREATE ROLE {role} LOGIN REPLICATION SUPERUSER");
            database.at_source(&create).await;
            setup.source_url = setup.source_url.replace("postgres@", &format!("{role}@"));
            let service = setup.start();
            service.streams().await;
            database.at_source(&format!("ALTER ROLE {role} NOLOGIN")).await;
            let ends = format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{role}'");
            database.at_source(&ends).await;
            let refused = format!("role \"{role}\" is not permitted to log in");
            assert_said(outage, service, &said_of_outage(&[&refused, "Correct the user in source.url"])).await;
        }
        Outage::SlotHeld => {
            let role = format!("reader_{}", database.name);
            let create = format!(
                "CREATE ROLE {role} LOGIN REPLICATION; GRANT SELECT ON t TO {role}; GRANT pg_monitor TO {role};
                 CREATE PUBLICATION {} FOR TABLE t WITH (publish_via_partition_root = true)",
                database.name
            );
            database.at_source(&create).await;
            setup.source_url = setup.source_url.replace("postgres@", &format!("{role}@"));
            let service = setup.start();
            service.streams().await;
            // It is frozen for the moment in which the other one takes the slot.
            service.signal("STOP");
            let active =
                format!("SELECT active_pid::text FROM pg_replication_slots WHERE slot_name = '{}'", database.name);
            database.at_source(&format!("SELECT pg_terminate_backend(({active})::int)")).await;
            eventually("the slot is free", || async { database.source_value(&active).await.is_none().then_some(()) })
                .await;
            let mut pump = tokio::process::Command::new(installed_bin().unwrap().join("pg_recvlogical"));
            pump.args(["--start", "--slot", &database.name, "--file", "/dev/null"]);
            pump.args(["--dbname", &source().await.tcp_url(&database.name), "-o", "proto_version=1"]);
            pump.args(["-o", &format!("publication_names={}", database.name)]).kill_on_drop(true).stderr(Stdio::null());
            let _pump = pump.spawn().unwrap();
            let process = eventually("the slot is in use", || database.source_value(&active)).await;
            service.signal("CONT");
            let what = format!("replication slot {} is in use by process {process}", database.name);
            let ends = format!("SELECT pg_terminate_backend({process});");
            let said = said_of_outage(&[&what, "role postgres (", "from 127.0.0.1), since ", &ends]);
            assert_said(outage, service, &said).await;
        }
        Outage::ReadOnly => {
            let mut to = new_destination(&[]).await;
            let database = Database::on(source().await, &to, "everyreadonly", &["t"], TABLE).await;
            let service = Setup::of(&database).start_streaming(&database).await;
            to.stop(StopMode::Fast).await.unwrap();
            std::fs::write(to.dir().join("data/standby.signal"), "").unwrap();
            to.start().await.unwrap();
            let said = said_of_outage(&[
                "in a read-only transaction (SQLSTATE 25006)",
                "Let destination.url name the primary",
            ]);
            assert_said(outage, service, &said).await;
        }
        Outage::SilentLink => {
            let proxy = Proxy::to(source().await.port()).await;
            let direct = source().await.tcp_url(&database.name);
            let port = format!(":{}/", source().await.port());
            setup.source_url = format!("{}?connect_timeout=5", direct.replace(&port, &format!(":{}/", proxy.port)));
            let service = setup.source("timeout = \"6s\"").start();
            service.streams().await;
            database.caught_up().await;
            proxy.set(Mode::Stalled);
            service.says("the source has said nothing for 6s").await;
            let said = said_of_outage(&[
                "source: cannot connect to",
                "no answer within 5s",
                "Start the server, or correct host",
            ]);
            assert_said(outage, service, &said).await;
        }
        Outage::DiskFull => {
            let to = new_destination(&[]).await;
            let place = to.dir().join("small");
            let Some(_disk) = Disk::mount(&place, "6m") else { return };
            let database = Database::on(source().await, &to, "everydisk", &["t"], TABLE).await;
            let admin = to.connect(&database.name).await.unwrap();
            let tablespace = format!("CREATE TABLESPACE small LOCATION '{}'", place.display());
            admin.script("a small tablespace", &tablespace).await.unwrap();
            let service = Setup::of(&database).start_streaming(&database).await;
            admin.batch("moving a table there", "ALTER TABLE public.t SET TABLESPACE small").await.unwrap();
            let large = "INSERT INTO t SELECT i, repeat(md5(i::text), 30) FROM generate_series(3, 20000) i";
            database.at_source(large).await;
            let said = said_of_outage(&["No space left on device", "Make room on the destination's disk"]);
            assert_said(outage, service, &said).await;
        }
        Outage::LedElsewhere => {
            let leader = Setup::of(&database).start_streaming(&database).await;
            let standby = setup.start();
            let led = "leads";
            let said = Said {
                log: words(&["standing by: process ", led]),
                status: words(&["standing by: ", led]),
                explain: words(&[
                    "nother instance leads",
                    " leads: it holds the lock at the destination",
                    "If that is no headwater of this slot, run at the destination:",
                    "SELECT pg_terminate_backend(",
                ]),
                code: 0,
            };
            assert_said(outage, standby, &said).await;
            leader.stop().await;
        }
        Outage::SlowSpool => {
            let streamed = format!("ALTER DATABASE \"{}\" SET logical_decoding_work_mem = '64kB'", database.name);
            database.at_source(&streamed).await;
            setup.environment.push(("HEADWATER_FAILPOINT_BLOCK".to_owned(), "spool.order=300000".to_owned()));
            let service = setup.start();
            service.streams().await;
            let large = "INSERT INTO t SELECT i, repeat(md5(i::text), 10) FROM generate_series(3, 40000) i";
            database.at_source(large).await;
            let what = "the stream waits for the disk of ";
            let said =
                said_of_outage(&[what, "where transactions in progress are kept, since ", "It is given up after 1m"]);
            is_said(outage, &service, &said).await;
            is_said_once(outage, &service, &said);
            service.says("the spool's disk has not answered for 1m").await;
            database.assert_catches_up().await;
            service.stop().await;
            let service = setup.start();
            service.streams().await;
            database.at_source("UPDATE t SET v = v || 'x'").await;
            assert_said(outage, service, &said).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 8)]
#[ignore = "takes long: make test-long"]
async fn every_outage_is_said_once_and_explained_and_obeys_sigterm() {
    let kinds = stream::iter(OUTAGES).map(|kind| tokio::spawn(outage(*kind)));
    kinds.buffer_unordered(3).for_each(async |ended| ended.expect("an outage")).await;
}

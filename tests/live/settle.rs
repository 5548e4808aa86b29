//! The snapshot settles: what it shows is exactly what committed before the slot's consistent point, whoever commits at that
//! very moment.
//!
//! A few rounds in `make test`; hundreds, on every server major, in `make stress-settle` (HEADWATER_ROUNDS).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use fastrand::Rng;
use headwater::config::{ConnectionSettings, Environment};
use headwater::pg::{Ident, Lsn};
use headwater::session::{ReplicationSession, SlotSnapshot, Sql, SqlClient, StreamOptions, StreamedMessage};
use headwater::source::hold_snapshot;
use headwater::wire::{Decoder, Message, ReplicationMessage};

use crate::support::{Database, Script, destination, eventually, new_source, seed};

/// The process that waits for a transaction to end.
async fn waits_for(database: &Database, xid: &str) {
    let sql = format!(
        "SELECT count(*)::text FROM pg_locks WHERE locktype = 'transactionid' AND transactionid::text = '{xid}' AND NOT granted"
    );
    eventually(&format!("the slot's creation waits for transaction {xid}"), || async {
        (database.source_value(&sql).await.as_deref() == Some("1")).then_some(())
    })
    .await;
}

/// Begins a transaction and returns its xid.
async fn begin(client: &SqlClient, id: i64) -> String {
    client.script("beginning", &format!("BEGIN; INSERT INTO public.t VALUES ({id})")).await.unwrap();
    client.query_one("its xid", "SELECT pg_current_xact_id()::text", &[]).await.unwrap().get(0).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn nobody_reads_while_a_transaction_that_the_snapshot_shows_is_still_running() {
    // A commit that waits for a synchronous standby is in the WAL, decoded, and still among the running transactions: the
    // same place in which a commit is for a few microseconds without one.
    let source = new_source(&[("synchronous_commit", "local")]).await;
    let database =
        Database::on(&source, destination().await, "hangs", &[], "CREATE TABLE t (id bigint PRIMARY KEY)").await;
    database.at_source("ALTER SYSTEM SET synchronous_standby_names = 'nobody'").await;
    database.at_source("SELECT pg_reload_conf()").await;
    let connection = ConnectionSettings::parse(&source.url(&database.name), &Environment::new()).unwrap();
    let timeout = Duration::from_secs(60);
    let sql = Sql { connection: connection.clone(), purpose: "settle", timeout };
    let mut sessions = Vec::new();
    for _ in 0..3 {
        sessions.push(source.connect(&database.name).await.unwrap());
    }
    let [first, second, hanging] = sessions.as_slice() else { unreachable!() };

    // The slot waits for what runs when it is asked for, and then for what runs when that has ended; what begins only then
    // and commits before that ends is committed for its snapshot, without having been waited for.
    let first_xid = begin(first, 1).await;
    let slot = "hangs".parse().unwrap();
    let mut session = ReplicationSession::connect(&connection, "settle", timeout, timeout).await.unwrap();
    let creating = tokio::spawn(async move {
        let created = session.create_slot(&slot, SlotSnapshot::ExportTemporary, timeout).await.unwrap();
        (session, created)
    });
    waits_for(&database, &first_xid).await;
    let second_xid = begin(second, 2).await;
    first.batch("ending", "COMMIT").await.unwrap();
    waits_for(&database, &second_xid).await;
    begin(hanging, 3).await;
    let hanging = async {
        hanging.batch("a commit that hangs", "SET LOCAL synchronous_commit = on; COMMIT").await.unwrap();
    };
    let observing = async {
        let in_wal = "SELECT count(*)::text FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
        eventually("the commit hangs", || async {
            (database.source_value(in_wal).await.as_deref() == Some("1")).then_some(())
        })
        .await;
        second.batch("ending", "COMMIT").await.unwrap();
        let (session, created) = creating.await.unwrap();
        let mut holding = Box::pin(hold_snapshot(&sql, &created.snapshot_name));
        let early = tokio::time::timeout(Duration::from_millis(1500), &mut holding).await;
        assert!(early.is_err(), "the snapshot was lent out while transaction 3 was still running");
        source
            .connect("postgres")
            .await
            .unwrap()
            .batch("letting go", "ALTER SYSTEM SET synchronous_standby_names = ''")
            .await
            .unwrap();
        database.at_source("SELECT pg_reload_conf()").await;
        let held = holding.await.unwrap();
        let rows = held.client().query("reading", "SELECT id FROM public.t ORDER BY id", &[]).await.unwrap();
        let ids: Vec<i64> = rows.iter().map(|row| row.get(0).unwrap()).collect();
        assert_eq!(ids, [1, 2, 3], "everything that committed before the consistent point is visible");
        held.release().await.unwrap();
        session.close().await;
    };
    tokio::join!(hanging, observing);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_snapshot_shows_exactly_the_rows_committed_before_the_consistent_point() {
    let rounds: usize = std::env::var("HEADWATER_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(25);
    let seed = seed("the_snapshot_shows_a_row");
    let source = new_source(&[]).await;
    let database =
        Database::on(&source, destination().await, "settle", &[], "CREATE TABLE t (id bigint PRIMARY KEY)").await;
    database.at_source("CREATE PUBLICATION settle FOR TABLE t").await;
    let connection = ConnectionSettings::parse(&source.url(&database.name), &Environment::new()).unwrap();
    let timeout = Duration::from_secs(60);
    let connect = || ReplicationSession::connect(&connection, "settle", timeout, timeout);
    let all = "settle_all".parse().unwrap();
    let mut session = connect().await.unwrap();
    session.create_slot(&all, SlotSnapshot::ExportPermanent, timeout).await.unwrap();
    session.close().await;

    // Six writers of one-row transactions; a fifth of them in a savepoint, a tenth rolled back, a few pausing before COMMIT.
    let done = Arc::new(AtomicBool::new(false));
    let next = Arc::new(AtomicI64::new(1));
    let mut writers = Vec::new();
    for writer in 0..6 {
        let client = source.connect(&database.name).await.unwrap();
        let (done, next) = (Arc::clone(&done), Arc::clone(&next));
        writers.push(tokio::spawn(async move {
            let mut rng = Rng::with_seed(seed + writer);
            while !done.load(Ordering::Relaxed) {
                let id = next.fetch_add(1, Ordering::Relaxed);
                let savepoint = if rng.u8(..5) == 0 { "SAVEPOINT s;" } else { "" };
                let begin = format!("BEGIN; {savepoint} INSERT INTO public.t VALUES ({id})");
                let end = if rng.u8(..10) == 0 { "ROLLBACK" } else { "COMMIT" };
                if rng.u8(..20) == 0 {
                    client.script("a slow insert", &begin).await.unwrap();
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    client.script("its end", end).await.unwrap();
                } else {
                    client.script("an insert", &format!("{begin}; {end}")).await.unwrap();
                }
            }
        }));
    }

    let sql = Sql { connection: connection.clone(), purpose: "settle", timeout };
    let mut seen: Vec<(Lsn, BTreeSet<i64>)> = Vec::new();
    for round in 0..rounds {
        let mut session = connect().await.unwrap();
        let slot = format!("settle_{round}").parse().unwrap();
        let created = session.create_slot(&slot, SlotSnapshot::ExportTemporary, timeout).await.unwrap();
        let held = hold_snapshot(&sql, &created.snapshot_name).await.unwrap();
        let rows = held.client().query("reading all ids", "SELECT id FROM public.t", &[]).await.unwrap();
        seen.push((created.consistent_point, rows.iter().map(|row| row.get(0).unwrap()).collect()));
        held.release().await.unwrap();
        session.close().await;
    }
    done.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }

    // The stream knows where each row committed.
    database.at_source("SELECT pg_logical_emit_message(true, 'settle', 'the end')").await;
    let mut session = connect().await.unwrap();
    let options = StreamOptions {
        protocol_version: 1,
        publication: Ident::new("settle"),
        binary: true,
        streaming: false,
        origin_none: false,
    };
    session.start(&all, Lsn::INVALID, &options).await.unwrap();
    let mut decoder = Decoder::new(false);
    let mut committed: BTreeMap<i64, Lsn> = BTreeMap::new();
    let mut final_lsn = Lsn::INVALID;
    loop {
        let StreamedMessage::Message(ReplicationMessage::XLogData(data)) = session.next().await.unwrap() else {
            continue;
        };
        match decoder.read(&data.data).unwrap() {
            Message::Begin(begin) => final_lsn = begin.final_lsn,
            Message::Insert { new, .. } => {
                let id = new.columns().next().unwrap().bytes().unwrap();
                committed.insert(i64::from_be_bytes(id.try_into().unwrap()), final_lsn);
            }
            Message::Logical { message, .. } if message.content == "the end" => break,
            _ => {}
        }
    }
    let mut lost = 0;
    for (point, visible) in &seen {
        for (id, commit_lsn) in &committed {
            let expected = commit_lsn < point;
            if visible.contains(id) != expected {
                lost += 1;
                println!("id {id}, commit_lsn {commit_lsn}, consistent point {point}: visible {}", !expected);
            }
        }
        assert!(visible.iter().all(|id| committed.contains_key(id)), "a row that never committed was visible");
    }
    assert_eq!(lost, 0, "rows in the wrong place in {rounds} rounds over {} transactions", committed.len());
    // And nothing was marked dead at the source by whoever read too early.
    let count = database.source_value("SELECT count(*)::text FROM t").await.unwrap();
    assert_eq!(count, committed.len().to_string(), "rows were lost at the source");
    println!("{rounds} rounds, {} transactions", committed.len());
}

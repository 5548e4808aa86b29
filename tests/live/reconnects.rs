//! What many reconnects leave behind: nothing.
//!
//! `HEADWATER_RECONNECTS` says how many (60 by default; `make reconnects` 1,000).

use std::time::Duration;

use headwater::session::SqlClient;

use crate::support::proxy::Proxy;
use crate::support::{Database, Service, Setup, destination, eventually, source};

/// What the service holds on to: descriptors, threads, and its sessions at either end by what they are for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Held {
    descriptors: usize,
    threads: usize,
    at_source: Vec<String>,
    at_destination: Vec<String>,
}

impl Held {
    fn size(&self) -> usize {
        self.descriptors + self.threads + self.at_source.len() + self.at_destination.len()
    }
}

async fn sessions(client: &SqlClient) -> Option<Vec<String>> {
    let sql = "SELECT application_name FROM pg_stat_activity
               WHERE datname = current_database() AND application_name LIKE 'headwater%' AND pid <> pg_backend_pid() ORDER BY 1";
    let rows = client.query("listing sessions", sql, &[]).await.ok()?;
    Some(rows.iter().map(|row| row.get(0).unwrap()).collect())
}

/// How many entries a directory of the process has.
fn entries(service: &Service, directory: &str) -> usize {
    std::fs::read_dir(format!("/proc/{}/{directory}", service.process_id())).map_or(0, Iterator::count)
}

async fn held_now(database: &Database, service: &Service) -> Option<Held> {
    let streams = service.status().await?["state"] == "streaming";
    let held = Held {
        descriptors: entries(service, "fd"),
        threads: entries(service, "task"),
        at_source: sessions(&database.source).await?,
        at_destination: sessions(&database.destination).await?,
    };
    streams.then_some(held)
}

/// What it holds while it streams: the least of many readings, for each of which it answers over HTTP.
async fn held_at_rest(database: &Database, service: &Service) -> Held {
    let mut least: Option<Held> = None;
    for _ in 0..40 {
        let held = eventually("the service streams", || held_now(database, service)).await;
        if least.as_ref().is_none_or(|least| held.size() < least.size()) {
            least = Some(held);
        }
    }
    least.expect("a reading")
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn descriptors_memory_and_sessions_are_the_same_after_many_reconnects() {
    let reconnects = std::env::var("HEADWATER_RECONNECTS").ok().and_then(|n| n.parse().ok()).unwrap_or(30);
    // Rows of some size, so that buffers which were kept would be seen.
    let schema = "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, repeat(md5(i::text), 3000) FROM generate_series(1, 20) i";
    let database = Database::of_superuser("reconnects", &["t"], schema).await;
    let to_source = Proxy::to(source().await.port()).await;
    let to_destination = Proxy::to(destination().await.port()).await;
    let mut setup = Setup::of(&database).quiet();
    setup.source_url = to_source.in_place_of(&setup.source_url);
    setup.destination_url = to_destination.in_place_of(&setup.destination_url);
    let service = setup.start();
    service.streams().await;

    // Allocators and caches find their size first.
    let warm = 20;
    let mut at_first = None;
    for n in 0..warm + reconnects {
        if n == warm {
            database.assert_catches_up().await;
            at_first = Some((held_at_rest(&database, &service).await, service.resident_bytes()));
        }
        let before = service.all_restarts().await.unwrap();
        // Now the one, now the other, now both, in the middle of rows.
        database.at_source("UPDATE t SET v = repeat(md5(random()::text), 3000) WHERE id <= 5").await;
        eventually("the cut is noticed", || async {
            // One that meets bytes just being passed on is not; then again.
            if n % 3 != 1 {
                to_source.cut_once();
            }
            if n % 3 != 0 {
                to_destination.cut_once();
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
            (service.all_restarts().await? > before).then_some(())
        })
        .await;
        database.caught_up().await;
    }
    database.assert_catches_up().await;
    let (held, resident) = at_first.unwrap();
    let now = held_at_rest(&database, &service).await;
    // What is kept at each reconnect would be there once for each. The monitor looks now and then, through a session and a socket.
    let told = format!("{held:?} became {now:?}");
    assert!(now.descriptors <= held.descriptors + 2 && now.threads <= held.threads, "{told}");
    // Two that look may meet: of each kind of session there is at most one more.
    for (before, after) in [(&held.at_source, &now.at_source), (&held.at_destination, &now.at_destination)] {
        for kind in after {
            let of_kind = |sessions: &[String]| sessions.iter().filter(|session| *session == kind).count();
            assert!(of_kind(after) <= of_kind(before) + 1, "{told}");
        }
    }
    let grown = service.resident_bytes().saturating_sub(resident);
    println!(
        "{reconnects} reconnects: {held:?} became {now:?}; {} kB resident before, {} kB more after",
        resident >> 10,
        grown >> 10
    );
    assert!(grown < 6 << 20, "{grown} bytes more than the {resident} of before");
    service.stop().await;
}

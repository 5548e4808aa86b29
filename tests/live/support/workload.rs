//! Random transactions, from a seed: what an application might do, and then some.
//!
//! Tables: the forum of `basics`, and `pairs` with a composite key and a unique column whose values change hands. Sessions
//! work side by side; conflicts between them (deadlocks, unique violations) are rolled back, as an application would.

use super::Script;
use std::sync::atomic::{AtomicBool, Ordering};

use fastrand::Rng;
use headwater::session::SqlClient;

use super::Database;

pub const TABLES: &[&str] = &["public.sections", "public.topics", "public.messages", "public.pairs", "public.notes"];

pub const SCHEMA: &str = "
    CREATE TABLE sections (id int PRIMARY KEY, name text NOT NULL UNIQUE, place int);
    CREATE TABLE topics (id int PRIMARY KEY, section_id int NOT NULL REFERENCES sections ON DELETE CASCADE, title text);
    CREATE TABLE messages (id bigint PRIMARY KEY, topic_id int NOT NULL REFERENCES topics ON DELETE CASCADE,
        body text, score numeric, large text);
    CREATE TABLE pairs (a int, b int, code int UNIQUE DEFERRABLE, value text, PRIMARY KEY (a, b));
    CREATE TABLE notes (what text, n int);
    ALTER TABLE notes REPLICA IDENTITY FULL;
    INSERT INTO sections SELECT i, 'section ' || i, i FROM generate_series(1, 10) i;
    INSERT INTO topics SELECT i, 1 + i % 10, 'topic ' || i FROM generate_series(1, 100) i;
    INSERT INTO messages SELECT i, 1 + i % 100, md5(i::text), i, repeat(md5(i::text), 100) FROM generate_series(1, 1000) i;
    INSERT INTO pairs SELECT i, i % 7, i, 'v' FROM generate_series(1, 100) i;
    INSERT INTO notes SELECT 'note', i % 5 FROM generate_series(1, 50) i;";

/// Runs the random workload on the database's source session while `then` runs.
pub async fn while_running<T>(database: &Database, seed: u64, then: impl Future<Output = T>) -> T {
    let done = AtomicBool::new(false);
    let mut rng = Rng::with_seed(seed);
    let load = run(&database.source, &mut rng, || done.load(Ordering::Relaxed));
    let work = async {
        let result = then.await;
        done.store(true, Ordering::Relaxed);
        result
    };
    tokio::join!(load, work).1
}

/// Makes random transactions on one session until `enough` says so; returns how many committed.
pub async fn run(client: &SqlClient, rng: &mut Rng, mut enough: impl FnMut() -> bool) -> u64 {
    let mut committed = 0;
    while !enough() {
        let script = transaction(rng);
        match client.script("a random transaction", &script).await {
            Ok(()) => committed += u64::from(script.ends_with("COMMIT")),
            // A deadlock or a violated constraint: the application rolls back and goes on.
            Err(error) if error.server().is_some() => {
                let _ = client.batch("rolling back", "ROLLBACK").await;
            }
            Err(_) => break,
        }
    }
    committed
}

/// One transaction, as a script.
pub fn transaction(rng: &mut Rng) -> String {
    let mut script = vec!["BEGIN".to_owned(), "SET LOCAL search_path = public".to_owned()];
    let statements = match rng.u32(..100) {
        0..70 => rng.usize(1..4),
        70..97 => rng.usize(1..30),
        _ => 100,
    };
    for number in 0..statements {
        match rng.u32(..20) {
            0 => {
                // A subtransaction that is rolled back, or kept.
                script.push(format!("SAVEPOINT s{number}"));
                script.push(statement(rng));
                script.push(format!("{} SAVEPOINT s{number}", if rng.bool() { "ROLLBACK TO" } else { "RELEASE" }));
            }
            _ => script.push(statement(rng)),
        }
    }
    script.push(if rng.u32(..10) == 0 { "ROLLBACK" } else { "COMMIT" }.to_owned());
    script.join("; ")
}

fn statement(rng: &mut Rng) -> String {
    let message = rng.u32(1..3000);
    let topic = rng.u32(1..150);
    let pair = rng.u32(1..150);
    match rng.u32(..100) {
        0..20 => format!(
            "INSERT INTO messages SELECT {message}, (SELECT id FROM topics ORDER BY random() LIMIT 1), md5('{topic}'), {pair}.50, \
             repeat(md5('{message}'), 100) WHERE EXISTS (SELECT FROM topics) ON CONFLICT DO NOTHING"
        ),
        20..40 => format!("UPDATE messages SET body = md5('{pair}'), score = score + 1 WHERE id = {message}"),
        40..45 => format!("UPDATE messages SET large = repeat(md5('{pair}'), 150) WHERE id = {message}"),
        45..55 => format!("DELETE FROM messages WHERE id BETWEEN {message} AND {message} + {}", rng.u32(..5)),
        55..60 => format!("UPDATE messages SET id = id + 5000 WHERE id = {message}"),
        60..63 => format!("UPDATE messages SET id = id - 5000 WHERE id > 5000 AND id < {message} + 5000"),
        63..66 => format!(
            "INSERT INTO topics SELECT {topic}, (SELECT id FROM sections ORDER BY random() LIMIT 1), 'topic {topic}' \
             WHERE EXISTS (SELECT FROM sections) ON CONFLICT DO NOTHING"
        ),
        66..69 => format!("UPDATE topics SET title = title || '!' WHERE id = {topic}"),
        69..70 => format!("DELETE FROM topics WHERE id = {topic}"),
        70..71 => format!("DELETE FROM sections WHERE id = {}", rng.u32(1..12)),
        71..73 => {
            let section = rng.u32(1..12);
            format!("INSERT INTO sections VALUES ({section}, 'section {section}', {topic}) ON CONFLICT DO NOTHING")
        }
        73..78 => format!("INSERT INTO pairs VALUES ({pair}, {pair} % 7, {pair}, 'new') ON CONFLICT DO NOTHING"),
        78..82 => {
            // Two rows swap their unique values, and two swap their keys.
            let other = rng.u32(1..150);
            format!(
                "SET CONSTRAINTS ALL DEFERRED; UPDATE pairs SET code = CASE code WHEN {pair} THEN {other} ELSE {pair} END \
                 WHERE code IN ({pair}, {other})"
            )
        }
        82..85 => {
            let other = rng.u32(1..150);
            format!(
                "UPDATE pairs SET a = -1 WHERE a = {pair}; UPDATE pairs SET a = {pair} WHERE a = {other}; \
                 UPDATE pairs SET a = {other} WHERE a = -1"
            )
        }
        85..88 => format!(
            "DELETE FROM pairs WHERE a = {pair}; INSERT INTO pairs VALUES ({pair}, {pair} % 7, {pair}, 'again') ON CONFLICT DO NOTHING"
        ),
        88..94 => {
            format!("INSERT INTO notes SELECT 'note', {} FROM generate_series(1, {})", rng.u32(..5), rng.u32(1..4))
        }
        94..96 => format!("DELETE FROM notes WHERE ctid IN (SELECT ctid FROM notes LIMIT {})", rng.u32(1..5)),
        96..98 => "UPDATE notes SET n = n + 1 WHERE ctid IN (SELECT ctid FROM notes LIMIT 2)".to_owned(),
        98 => "TRUNCATE notes".to_owned(),
        _ => format!(
            "INSERT INTO messages SELECT 10000 + i, (SELECT id FROM topics LIMIT 1), 'bulk', i, NULL \
             FROM generate_series({message}, {message} + 300) i WHERE EXISTS (SELECT FROM topics) ON CONFLICT DO NOTHING"
        ),
    }
}

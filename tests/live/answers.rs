//! A source that answers questions by SQL with something else than was asked for, or without end: no stream runs unwatched, memory stays
//! bounded, and once the answers make sense everything goes on. A proxy in front of the real source changes rows of its answers.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::support::{Database, Service, Setup, eventually, parent, source};

const SCHEMA: &str = "
    CREATE TABLE parents (id serial PRIMARY KEY, v text, n numeric(8,2) DEFAULT 1.5);
    CREATE TABLE children (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, parent int REFERENCES parents ON DELETE CASCADE);
    INSERT INTO parents (v) SELECT 'v' FROM generate_series(1, 50);
    INSERT INTO children (parent) SELECT 1 + i % 50 FROM generate_series(1, 200) i;";

const SSL_REQUEST: [u8; 4] = 80_877_103_u32.to_be_bytes();

/// What the proxy does with the rows of answers.
#[derive(Debug)]
enum Lies {
    /// Nothing.
    Never,
    /// Answers questions with this text in them with NULLs.
    Nulls { about: &'static str },
    /// Says that the last column of the answer to such a question is of a type of its own.
    Types { about: &'static str },
    /// Repeats the first row of the answer to such a question without end.
    Endless { about: &'static str },
}

/// A running proxy. Dropping it ends it.
struct Liar {
    port: u16,
    lies: Arc<Mutex<Lies>>,
    task: JoinHandle<()>,
}

impl Drop for Liar {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Liar {
    async fn in_front_of(server_port: u16) -> Liar {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let lies = Arc::new(Mutex::new(Lies::Never));
        let shared = Arc::clone(&lies);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, server_port)).await else { continue };
                let lies = Arc::clone(&shared);
                // How it ends is the other sides' affair.
                tokio::spawn(async move {
                    let _ = session(client, server, lies).await;
                });
            }
        });
        Liar { port, lies, task }
    }

    fn setup(&self, database: &Database) -> Setup {
        let mut setup = Setup::of(database);
        let (url, _) = setup.source_url.split_once('?').unwrap_or((&setup.source_url, ""));
        let (role, place) = url.split_once('@').expect("an address with a role");
        let (_, name) = place.rsplit_once('/').expect("an address with a database");
        setup.source_url = format!("{role}@127.0.0.1:{}/{name}", self.port);
        setup
    }

    fn tells(&self, lies: Lies) {
        *self.lies.lock().unwrap_or_else(PoisonError::into_inner) = lies;
    }
}

async fn session(mut client: TcpStream, mut server: TcpStream, lies: Arc<Mutex<Lies>>) -> std::io::Result<()> {
    let startup = loop {
        let length = client.read_u32().await?;
        let mut startup = vec![0; usize::try_from(length - 4).expect("a length")];
        client.read_exact(&mut startup).await?;
        if !startup.starts_with(&SSL_REQUEST) {
            break [&length.to_be_bytes()[..], &startup].concat();
        }
        client.write_all(b"N").await?;
    };
    server.write_all(&startup).await?;
    let question = Arc::new(Mutex::new(String::new()));
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::select! {
        done = listen(from_client, to_server, &question) => done,
        done = answer(from_server, to_client, &question, &lies) => done,
    }
}

async fn read_message(from: &mut OwnedReadHalf) -> std::io::Result<(u8, Vec<u8>)> {
    let tag = from.read_u8().await?;
    let length = from.read_u32().await?;
    let mut body = vec![0; usize::try_from(length - 4).expect("a length")];
    from.read_exact(&mut body).await?;
    Ok((tag, body))
}

async fn write_message(to: &mut OwnedWriteHalf, tag: u8, body: &[u8]) -> std::io::Result<()> {
    let length = u32::try_from(body.len() + 4).expect("a length");
    to.write_all(&[&[tag][..], &length.to_be_bytes(), body].concat()).await
}

/// Passes on what the client asks, and remembers it: a statement that was parsed before is asked by its name.
async fn listen(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, question: &Mutex<String>) -> std::io::Result<()> {
    let mut parsed: HashMap<Vec<u8>, String> = HashMap::new();
    loop {
        let (tag, body) = read_message(&mut from).await?;
        let mut names = body.split(|byte| *byte == 0);
        let asked = match tag {
            b'P' => {
                let text = String::from_utf8_lossy(&body).into_owned();
                parsed.insert(names.next().unwrap_or_default().to_vec(), text.clone());
                Some(text)
            }
            b'B' => names.nth(1).and_then(|statement| parsed.get(statement).cloned()),
            b'Q' => Some(String::from_utf8_lossy(&body).into_owned()),
            _ => None,
        };
        if let Some(asked) = asked {
            *question.lock().unwrap_or_else(PoisonError::into_inner) = asked;
        }
        write_message(&mut to, tag, &body).await?;
    }
}

/// Passes on what the server answers, or something else.
async fn answer(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    question: &Mutex<String>,
    lies: &Mutex<Lies>,
) -> std::io::Result<()> {
    loop {
        let (tag, body) = read_message(&mut from).await?;
        if tag == b'D' && is_endless(&question.lock().unwrap_or_else(PoisonError::into_inner), lies) {
            let length = u32::try_from(body.len() + 4).expect("a length");
            let rows = [&[tag][..], &length.to_be_bytes(), &body].concat().repeat(1000);
            loop {
                to.write_all(&rows).await?;
            }
        }
        let body = match tag {
            b'D' => spoilt(body, &question.lock().unwrap_or_else(PoisonError::into_inner), lies),
            b'T' => retyped(body, &question.lock().unwrap_or_else(PoisonError::into_inner), lies),
            _ => body,
        };
        write_message(&mut to, tag, &body).await?;
    }
}

/// A RowDescription as it goes on.
fn retyped(mut description: Vec<u8>, question: &str, lies: &Mutex<Lies>) -> Vec<u8> {
    let lies = lies.lock().unwrap_or_else(PoisonError::into_inner);
    // The last column ends with type, length, modifier and format.
    let place = description.len().saturating_sub(12);
    if let (Lies::Types { about }, Some(oid)) = (&*lies, description.get_mut(place..place + 4))
        && question.contains(*about)
    {
        oid.copy_from_slice(&100_000_u32.to_be_bytes());
    }
    description
}

fn is_endless(question: &str, lies: &Mutex<Lies>) -> bool {
    let lies = lies.lock().unwrap_or_else(PoisonError::into_inner);
    matches!(&*lies, Lies::Endless { about } if question.contains(*about))
}

/// A DataRow as it goes on.
fn spoilt(row: Vec<u8>, question: &str, lies: &Mutex<Lies>) -> Vec<u8> {
    let lies = lies.lock().unwrap_or_else(PoisonError::into_inner);
    let mut fields = fields(&row);
    match &*lies {
        Lies::Never | Lies::Endless { .. } | Lies::Types { .. } => return row,
        Lies::Nulls { about } if question.contains(*about) => fields.fill(None),
        Lies::Nulls { .. } => return row,
    }
    written(&fields)
}

fn fields(row: &[u8]) -> Vec<Option<Vec<u8>>> {
    let (count, mut rest) = row.split_first_chunk::<2>().expect("a count");
    let mut fields = Vec::new();
    for _ in 0..u16::from_be_bytes(*count) {
        let (length, behind) = rest.split_first_chunk::<4>().expect("a length");
        rest = behind;
        fields.push(usize::try_from(i32::from_be_bytes(*length)).ok().map(|length| {
            let (value, behind) = rest.split_at(length);
            rest = behind;
            value.to_vec()
        }));
    }
    fields
}

fn written(fields: &[Option<Vec<u8>>]) -> Vec<u8> {
    let mut row = u16::try_from(fields.len()).expect("a count").to_be_bytes().to_vec();
    for field in fields {
        let length = field.as_ref().map_or(-1, |field| i32::try_from(field.len()).expect("a length"));
        row.extend(length.to_be_bytes());
        row.extend(field.iter().flatten());
    }
    row
}

/// Waits until the stream has ended by an answer once more, and names it.
async fn ends_by_an_answer(service: &Service, doing: &str, times: f64) {
    service.says(&format!("source: {doing}: could not understand the server's answer: column ")).await;
    let ended = || service.restarts("answer");
    eventually("the stream has ended", || async { ended().await.filter(|count| *count >= times) }).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn an_answer_that_the_monitor_does_not_understand_ends_the_stream_with_words() {
    let database = Database::new("answerswatch", &["parents", "children"], SCHEMA).await;
    let liar = Liar::in_front_of(source().await.port()).await;
    // The look at the tables that are published comes with each start of a stream.
    liar.tells(Lies::Nulls { about: "SELECT a.attrelid, pg_catalog.array_agg(" });
    let service = liar.setup(&database).start();
    ends_by_an_answer(&service, "looking at the columns of tables", 1.0).await;
    liar.tells(Lies::Never);
    service.streams().await;
    database.at_source("INSERT INTO parents (v) VALUES ('more')").await;
    database.assert_catches_up().await;
    liar.tells(Lies::Nulls { about: "pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn()" });
    ends_by_an_answer(&service, "asking how far the source is", 2.0).await;
    liar.tells(Lies::Never);
    service.streams().await;
    database.at_source("INSERT INTO parents (v) VALUES ('and more')").await;
    database.assert_catches_up().await;
    assert!(!service.log().contains("panicked"), "{}", service.log());
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_monitor_that_ends_ends_the_stream_and_is_started_again() {
    let database = Database::new("answersends", &["parents", "children"], SCHEMA).await;
    let due = parent().join(format!("{}.panic", database.name));
    let mut setup = Setup::of(&database);
    let panic = format!("monitor.looking={}", due.display());
    setup.environment.push(("HEADWATER_FAILPOINT_PANIC".to_owned(), panic));
    let service = setup.start();
    service.streams().await;
    std::fs::write(&due, "").expect("a file");
    service.says("the monitor ended unexpectedly").await;
    eventually("the stream has ended", || service.restarts("monitor")).await;
    service.streams().await;
    std::fs::remove_file(&due).expect("the file");
    database.at_source("INSERT INTO parents (v) VALUES ('more')").await;
    database.assert_catches_up().await;
    // It is there again.
    let sql = "SELECT count(*)::text FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE '% monitor'";
    eventually("the monitor looks", || async {
        (database.source_value(sql).await.as_deref() == Some("1")).then_some(())
    })
    .await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn an_answer_whose_rows_have_no_end_is_refused_before_it_fills_the_memory() {
    let database = Database::new("answersendless", &["parents", "children"], SCHEMA).await;
    let liar = Liar::in_front_of(source().await.port()).await;
    let mut setup = liar.setup(&database);
    // Where nothing bounds it, its own limit ends it, and not the machine's.
    setup.wrapper = vec!["prlimit".to_owned(), format!("--as={}", 4_u64 << 30)];
    // An ordinary session, and one with the walsender.
    let asked = [
        ("SELECT a.attrelid, pg_catalog.array_agg(", "looking at the columns of tables"),
        ("IDENTIFY_SYSTEM", "identifying the source"),
    ];
    for (about, doing) in asked {
        liar.tells(Lies::Endless { about });
        let refused = format!("{doing}: could not understand the server's answer: its rows take more than 512 MiB");
        let mut service = setup.start();
        let said = format!("source: {refused}");
        eventually("it refuses the answer", || {
            let ended = service.has_ended();
            assert!(!ended, "it has ended:\n{}", service.log());
            let seen = service.log().contains(&said).then_some(());
            async move { seen }
        })
        .await;
        liar.tells(Lies::Never);
        service.streams().await;
        database.at_source("INSERT INTO parents (v) VALUES ('more')").await;
        database.assert_catches_up().await;
        let bytes = service.resident_max_bytes();
        assert!(bytes < 700 << 20, "{doing}: {bytes} bytes for an answer that nobody wants");
        service.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn an_answer_of_an_unexpected_type_is_refused_before_the_type_is_looked_up() {
    let database = Database::new("answerstypes", &["parents", "children"], SCHEMA).await;
    let liar = Liar::in_front_of(source().await.port()).await;
    let setup = liar.setup(&database);
    liar.tells(Lies::Types { about: "SELECT a.attrelid, pg_catalog.array_agg(" });
    let service = setup.start();
    let said =
        "could not understand the server's answer: the server sends values of type 100000, which was not asked for";
    service.says(said).await;
    liar.tells(Lies::Never);
    service.streams().await;
    database.at_source("INSERT INTO parents (v) VALUES ('more')").await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn types_that_are_made_of_themselves_or_of_too_much_are_refused() {
    // What no server makes, its superuser writes into the catalog.
    let circle = "CREATE TYPE c AS (a int); CREATE TABLE t (id int PRIMARY KEY, v c);
                  UPDATE pg_attribute SET atttypid = 'c'::regtype WHERE attrelid = 'c'::regclass AND attname = 'a';";
    let tree = "CREATE TYPE c1 AS (a int, b int); CREATE TABLE t (id int PRIMARY KEY, v c1);
                DO $$ BEGIN FOR i IN 2..28 LOOP
                    EXECUTE format('CREATE TYPE c%s AS (a int, b int)', i);
                    UPDATE pg_attribute SET atttypid = format('c%s', i - 1)::regtype
                    WHERE attrelid = format('c%s', i)::regclass AND attnum > 0;
                END LOOP; END $$;
                UPDATE pg_attribute SET atttypid = 'c28'::regtype WHERE attrelid = 't'::regclass AND attname = 'v';";
    for (name, made) in [("answerscircle", circle), ("answerstree", tree)] {
        let database = Database::new(name, &[], "CREATE TABLE other (id int PRIMARY KEY)").await;
        database.at_source(made).await;
        let setup = Setup { tables: vec!["t".to_owned()], ..Setup::of(&database) };
        let said = setup.command(&["check"]).await.exits(1);
        said.says(&["describing types: could not understand the server's answer", "is made of itself"]);
        let service = setup.start();
        service.says("is made of itself").await;
        service.stop().await;
    }
}

//! A server that is none, and configurations with mistakes around a password: headwater ends in time, in little memory, and shows neither
//! what steers a terminal nor what is secret.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use headwater::pg::is_printable;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::{Database, Setup, headwater};

/// Clears a screen, forges an event, reads backwards, ends quotes.
const HOSTILE: &str =
    "a\u{1b}[2J\n2026-01-01T00:00:00.000000Z  INFO streaming state=\"streaming\"\u{202e}\r'\";\u{200b}";
const SECRET: &str = "sEcrEt";

/// What the impostor does once it has read the startup message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Does {
    /// Refuses the session in hostile words.
    Refuses,
    /// The same, with the password that it has asked for in its words.
    TellsThePassword,
    /// Lets the session in with hostile parameters and notices, and answers every question with hostile words.
    LetsIn,
    /// Sends notices without end.
    Notices,
    /// Begins a message of 1 GB.
    HugeMessage,
    /// Sends messages whose lengths cannot be.
    Lengths(u32),
    /// Asks for a method that there is not.
    Method(u32),
    /// Asks for SCRAM with so many rounds.
    Rounds(u32),
    /// Offers mechanisms of hostile names.
    Mechanisms,
    /// Speaks another protocol.
    Http,
    /// Says nothing.
    Silent,
}

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).expect("short");
    [&[tag][..], &length.to_be_bytes(), body].concat()
}

/// An ErrorResponse, or a notice, all of whose fields are hostile.
fn words(tag: u8, said: &str) -> Vec<u8> {
    let mut body = Vec::new();
    for field in *b"SVMDHWPpqscdtnFLR" {
        let number_or_kind = match field {
            b'V' => Some("FATAL"),
            b'P' | b'p' | b'L' => Some("7"),
            _ => None,
        };
        body.extend([field]);
        body.extend(number_or_kind.unwrap_or(&said.replace('\0', "")).as_bytes());
        body.push(0);
    }
    body.extend([b'C']);
    body.extend(b"42501\0\0");
    message(tag, &body)
}

fn parameter(name: &str, value: &str) -> Vec<u8> {
    message(b'S', format!("{name}\0{value}\0").as_bytes())
}

async fn read_message(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut head = [0; 5];
    stream.read_exact(&mut head).await?;
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) - 4;
    let mut body = vec![0; usize::try_from(length).expect("a length")];
    stream.read_exact(&mut body).await?;
    Ok(body)
}

async fn play(stream: &mut TcpStream, does: Does) -> std::io::Result<()> {
    let length = stream.read_u32().await?;
    let mut startup = vec![0; usize::try_from(length - 4).expect("a length")];
    stream.read_exact(&mut startup).await?;
    let authenticate = |method: u32, rest: &[u8]| message(b'R', &[&method.to_be_bytes()[..], rest].concat());
    match does {
        Does::Refuses => stream.write_all(&words(b'E', HOSTILE)).await?,
        Does::TellsThePassword => {
            stream.write_all(&authenticate(3, b"")).await?;
            let password = read_message(stream).await?;
            stream.write_all(&words(b'E', &format!("wrong: {}", String::from_utf8_lossy(&password)))).await?;
        }
        Does::LetsIn => {
            let mut said = authenticate(0, b"");
            for name in ["server_version", "server_encoding", "TimeZone", "in_hot_standby", HOSTILE] {
                said.extend(parameter(name, &format!("15{HOSTILE}")));
            }
            said.extend(words(b'N', HOSTILE));
            said.extend(message(b'K', &[0; 8]));
            said.extend(message(b'Z', b"I"));
            stream.write_all(&said).await?;
            loop {
                read_message(stream).await?;
                stream.write_all(&words(b'E', HOSTILE)).await?;
                stream.write_all(&message(b'Z', b"I")).await?;
            }
        }
        Does::Notices => loop {
            stream.write_all(&words(b'N', &HOSTILE.repeat(100))).await?;
        },
        Does::HugeMessage => {
            stream.write_all(&[b'E', 0x40, 0, 0, 0]).await?;
            let some = vec![b'x'; 1 << 20];
            loop {
                stream.write_all(&some).await?;
            }
        }
        Does::Lengths(length) => {
            stream.write_all(&[&b"R"[..], &length.to_be_bytes(), &[0; 64]].concat()).await?;
        }
        Does::Method(method) => stream.write_all(&authenticate(method, HOSTILE.as_bytes())).await?,
        Does::Mechanisms => {
            let names = format!("{HOSTILE}\0SCRAM-SHA-256{HOSTILE}\0\0");
            stream.write_all(&authenticate(10, names.as_bytes())).await?;
        }
        Does::Rounds(rounds) => {
            stream.write_all(&authenticate(10, b"SCRAM-SHA-256\0\0")).await?;
            let first = String::from_utf8_lossy(&read_message(stream).await?).into_owned();
            let nonce = first.rsplit_once("r=").map_or("", |(_, nonce)| nonce);
            let challenge = format!("r={nonce}x,s=c2FsdA==,i={rounds}");
            stream.write_all(&authenticate(11, challenge.as_bytes())).await?;
            read_message(stream).await?;
            stream.write_all(&authenticate(12, format!("v={HOSTILE}").as_bytes())).await?;
        }
        Does::Http => stream.write_all(format!("HTTP/1.1 400 {HOSTILE}\r\n\r\n").as_bytes()).await?,
        Does::Silent => {}
    }
    // Until the other side has had enough.
    let mut rest = [0; 4096];
    while stream.read(&mut rest).await? > 0 {}
    Ok(())
}

/// The port of an impostor that does this to every session.
async fn impostor(does: Does) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            // How it ends is the other side's affair.
            tokio::spawn(async move { play(&mut stream, does).await });
        }
    });
    port
}

fn assert_shown(does: &str, text: &str) {
    let odd: Vec<char> = text.chars().filter(|c| !is_printable(*c) && *c != '\n').collect();
    assert!(odd.is_empty(), "{does}: {odd:?} in\n{text:?}");
    assert!(!text.contains(SECRET), "{does}: the password is in\n{text}");
    let forged = text.lines().any(|line| line.starts_with("2026-01-01"));
    assert!(!forged, "{does}: a line is forged in\n{text}");
}

const ALL: &[Does] = &[
    Does::Refuses,
    Does::TellsThePassword,
    Does::LetsIn,
    Does::Notices,
    Does::HugeMessage,
    Does::Lengths(0),
    Does::Lengths(3),
    Does::Lengths(u32::MAX),
    Does::Lengths(0x7fff_ffff),
    Does::Lengths(8),
    Does::Method(7),
    Does::Method(u32::MAX),
    Does::Rounds(u32::MAX),
    Does::Rounds(0),
    Does::Mechanisms,
    Does::Http,
    Does::Silent,
];

/// What the memory of a run may grow to: much less than what an impostor sends.
const MEMORY_MAX: u64 = 400 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_none_is_refused_in_time_printably_and_without_the_password() {
    let database = Database::of_superuser("impostor", &["t"], "CREATE TABLE t (id int PRIMARY KEY)").await;
    let mut tried = tokio::task::JoinSet::new();
    for does in ALL {
        let port = impostor(*does).await;
        let url = format!("postgres://someone:{SECRET}@127.0.0.1:{port}/any?connect_timeout=2&sslmode=disable");
        for as_source in [true, false] {
            let mut setup = Setup::of(&database);
            *if as_source { &mut setup.source_url } else { &mut setup.destination_url } = url.clone();
            tried.spawn(meets(*does, setup));
        }
    }
    while let Some(ended) = tried.join_next().await {
        ended.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
    }
}

async fn meets(does: Does, setup: Setup) {
    let name = format!("{does:?}");
    for command in [&["check"][..], &["check", "--json"]] {
        let began = Instant::now();
        let finished = setup.command(command).await;
        assert_ne!(finished.code, Some(0), "{name}: {}", finished.out);
        assert_shown(&name, &finished.out);
        assert_shown(&name, &finished.err);
        assert!(finished.out.len() < 100_000, "{name}: {} bytes", finished.out.len());
        assert!(began.elapsed() < Duration::from_secs(60), "{name} took {:?}", began.elapsed());
    }
    if !matches!(does, Does::LetsIn | Does::Notices | Does::HugeMessage | Does::Rounds(_)) {
        return;
    }
    let mut service = setup.start();
    // It ends, or waits for another server.
    crate::support::eventually("it has met the impostor", || async {
        let log = service.log();
        (log.contains(" WARN ") || log.contains("headwater: error")).then_some(())
    })
    .await;
    // Of a process that has ended nothing is known any more.
    if !service.log().contains("headwater: error") {
        assert!(service.resident_max_bytes() < MEMORY_MAX, "{name}: {} bytes", service.resident_max_bytes());
    }
    service.kill();
    assert_shown(&name, &service.log());
}

/// Configurations with a mistake next to the password, as files and as the environment's variable.
#[tokio::test(flavor = "multi_thread")]
async fn a_mistake_in_a_configuration_is_named_without_the_password() {
    let urls = [
        format!("postgres://u:{SECRET}@h:port/d"),
        format!("postgres://u:{SECRET}@h:99999/d"),
        format!("postgres://u:{SECRET}%zz@h/d"),
        format!("postgres://u:{SECRET}%@h/d"),
        format!("postgres://u:{SECRET}/x@h/d"),
        format!("postgres://u:{SECRET}#x@h/d"),
        format!("postgres://u:{SECRET}?x@h/d"),
        format!("postgres://u:{SECRET}@@h/d"),
        format!("postgres://u:{SECRET}[@h/d"),
        format!("postgres://u:{SECRET} x@h/d"),
        format!("postgres:/u:{SECRET}@h/d"),
        format!("postgress://u:{SECRET}@h/d"),
        format!("mysql://u:{SECRET}@h/d"),
        format!("u:{SECRET}@h/d"),
        SECRET.to_owned(),
        format!("postgres://u:123/{SECRET}@h/d"),
        format!("postgres://u:p/{SECRET}@h/d"),
        format!("postgres://u:p?{SECRET}@h/d"),
        format!("postgres://u:p?{}=1@h/d", SECRET.to_lowercase()),
        format!("postgres://u:p#{SECRET}@h/d?x=y"),
        format!("postgres://u:p@{SECRET}@h:x/d"),
        format!("postgres://u:p:{SECRET}@h:x/d"),
        format!("postgres://u:p%{SECRET}@h/d"),
        format!("postgres://u:{SECRET}@/d?port=x"),
        format!("postgres://u@h/d?password={SECRET}&nonsense=1"),
        format!("postgres://u@h/d?passwort={SECRET}"),
        format!("postgres://u@h/d?password={SECRET}%zz"),
        format!("postgres://u@h/d?sslpassword={SECRET}"),
        format!("postgres://u@h/d?sslmode=disabled&password={SECRET}"),
        format!("host=h user=u password={SECRET} port=x"),
        format!("host=h user=u password='{SECRET}"),
        format!("host=h user=u password='{SECRET}\\"),
        format!("host=h user=u password={SECRET} {SECRET}"),
        format!("host=h user=u password = {SECRET} dbname"),
        format!("host=h user=u passwort={SECRET}"),
        format!("host=h user=u pass word={SECRET}"),
        format!("host=h,h2 port=1,2,3 user=u password={SECRET}"),
        format!("password={SECRET}"),
        format!("postgres://u:{SECRET}@h1,h2:1:2/d"),
    ];
    let valid = "tables = [\"t\"]\n[destination]\nurl = \"postgres://u@h/d\"\n[source]\n";
    let mut files: Vec<String> = urls.iter().map(|url| format!("{valid}url = {url:?}\n")).collect();
    files.extend([
        format!("{valid}url = \"postgres://u:{SECRET}@h/d\n"),
        format!("{valid}url = postgres://u:{SECRET}@h/d\n"),
        format!("{valid}url = \"postgres://u:{SECRET}@h/d\" x\n"),
        format!("{valid}url = \"postgres://u:{SECRET}@h/d\\q\"\n"),
        format!("{valid}url = [\"postgres://u:{SECRET}@h/d\"]\n"),
        format!("{valid}ulr = \"postgres://u:{SECRET}@h/d\"\n"),
        format!("{valid}url = \"postgres://u:{SECRET}@h/d\"\nurl = \"postgres://u:{SECRET}@h/d\"\n"),
        format!("{valid}password = \"{SECRET}\"\n"),
        format!("{valid}url = {{ password = \"{SECRET}\" }}\n"),
        format!("[sorce]\nurl = \"postgres://u:{SECRET}@h/d\"\n"),
        format!("source = \"postgres://u:{SECRET}@h/d\"\n"),
        format!("\"postgres://u:{SECRET}@h/d\" = 1\n"),
        format!("[\"postgres://u:{SECRET}@h/d\"]\n"),
        format!("tables = \"postgres://u:{SECRET}@h/d\"\n"),
    ]);
    let dir = crate::support::parent();
    let (file, empty) = (dir.join("mistaken.toml"), dir.join("mistaken-empty.toml"));
    std::fs::write(&empty, format!("{valid}url = \"postgres://u@h/d\"\n")).expect("a file");
    let run = |config: std::path::PathBuf, variable: Option<(String, String)>| async move {
        let mut command = tokio::process::Command::new(headwater());
        command.args(["check", "--config"]).arg(&config).env_remove("PGPASSWORD").envs(variable).kill_on_drop(true);
        let output =
            tokio::time::timeout(Duration::from_secs(60), command.output()).await.expect("it ends").expect("it runs");
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    };
    let mut leaks = Vec::new();
    for text in &files {
        std::fs::write(&file, text).expect("a file");
        let said = run(file.clone(), None).await;
        assert!(!said.is_empty());
        if said.to_lowercase().contains(&SECRET.to_lowercase()) {
            leaks.push(format!("{text}\n=> {said}"));
        }
    }
    for url in &urls {
        for name in ["HEADWATER_SOURCE_URL", "HEADWATER_DESTINATION_URL"] {
            let said = run(empty.clone(), Some((name.to_owned(), url.clone()))).await;
            if said.to_lowercase().contains(&SECRET.to_lowercase()) {
                leaks.push(format!("{name}={url}\n=> {said}"));
            }
        }
    }
    assert!(leaks.is_empty(), "{} leaks:\n{}", leaks.len(), leaks.join("\n\n"));
}

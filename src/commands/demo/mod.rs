//! `headwater demo`: two throw-away clusters, a forum, a steady writer, and headwater between them.
//!
//! What a newcomer sees first. Everything is started for it and removed after it: the clusters are [`Cluster`]s, the service
//! is the same pipeline that `run` runs. At the end both sides are compared by content; only equal sides end with exit
//! code 0.
//!
//! ```text
//! source cluster ◀─ fill, then Writer          destination cluster
//!        └────────── supervisor::run ───────────────────▶┘
//!                        └─ telemetry ─▶ View, http://…/metrics
//! ```

mod cluster;
mod forum;
pub(crate) mod output;
mod view;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::display;
use crate::commands::demo::output::say;
use crate::commands::exit::ExitStatus;
use crate::config::{Config, Environment, FileText};
use crate::error_policy::{Fault, report};
use crate::pg::{Lsn, counted};
use crate::session::{SessionError, SqlClient};
use crate::supervisor::{self, RunOptions};
use crate::telemetry::{self, Telemetry};
use forum::ForumWriter;
use view::View;

pub use cluster::{Cluster, StopMode, free_port, installed_bin};

const DATABASE: &str = "forum";
/// Pause between two transactions of the writer.
const WRITE_EVERY: Duration = Duration::from_millis(4);
/// How long the copy may take to catch up once the writer has stopped.
const CATCH_UP_MAX: Duration = Duration::from_secs(60);

/// What went wrong in a demo.
#[derive(Debug, thiserror::Error)]
enum DemoError {
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("{0}")]
    Session(#[from] SessionError),
    #[error("PostgreSQL's server programs are not installed (apt-get install postgresql)")]
    NoServer,
    #[error("{0}")]
    Other(String),
}

/// Runs the demo for so long, or until Ctrl-C.
pub(super) async fn demo(seconds: Option<u64>) -> ExitStatus {
    let dir = std::env::temp_dir().join(format!("headwater-demo-{:08x}", fastrand::u32(..)));
    let ended = run(&dir, seconds).await;
    // The clusters are gone by now, and their directories with them.
    let _ = std::fs::remove_dir_all(&dir);
    match ended {
        Ok(true) => ExitStatus::Done,
        Ok(false) => ExitStatus::OperatorMustAct,
        Err(error) => {
            display::error(&error.to_string());
            ExitStatus::OperatorMustAct
        }
    }
}

async fn run(dir: &Path, seconds: Option<u64>) -> Result<bool, DemoError> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let stopped = async {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    };
    tokio::select! {
        ended = play(dir, seconds) => ended,
        () = stopped => {
            say("\nstopping …");
            Ok(true)
        }
    }
}

/// Everything that the demo started; dropping it stops the servers and removes them.
struct DemoStage {
    source: Cluster,
    destination: Cluster,
}

async fn play(dir: &Path, seconds: Option<u64>) -> Result<bool, DemoError> {
    let bin = installed_bin().ok_or(DemoError::NoServer)?;
    std::fs::create_dir_all(dir)?;
    say("starting two PostgreSQL clusters …");
    let settings = [("fsync", "off"), ("log_min_messages", "warning")];
    let logical: Vec<_> = settings.iter().copied().chain([("wal_level", "logical")]).collect();
    let (source, destination) = tokio::join!(
        Cluster::start_new(&bin, dir, "source", &logical, &[]),
        Cluster::start_new(&bin, dir, "destination", &settings, &[])
    );
    let stage = DemoStage { source: source?, destination: destination? };
    for cluster in [&stage.source, &stage.destination] {
        cluster
            .connect("postgres")
            .await?
            .statement("creating a database", &format!("CREATE DATABASE {DATABASE}"))
            .await?;
    }
    let seed = fastrand::u64(..);
    say("filling a forum at the source: 20 sections, 2,000 topics, 200,000 messages …");
    forum::fill(&stage.source.connect(DATABASE).await?, seed, |_| {}).await?;
    watch_it(&stage, dir, seconds, seed).await
}

/// Runs headwater and the writer until the time is up, then compares.
async fn watch_it(stage: &DemoStage, dir: &Path, seconds: Option<u64>, seed: u64) -> Result<bool, DemoError> {
    let config = Arc::new(configuration(stage, dir)?);
    let telemetry = Arc::new(Telemetry::new(config.http.ready_lag_max));
    let (stop, stopping) = watch::channel(false);
    let listen = config.http.listen.ok_or_else(|| DemoError::Other("no address to listen on".to_owned()))?;
    let bound = match telemetry::serve(listen, Arc::clone(&telemetry), stopping.clone()).await {
        Ok(bound) => bound,
        // Somebody has the usual port: any other will do.
        Err(_) => telemetry::serve(([127, 0, 0, 1], 0).into(), Arc::clone(&telemetry), stopping.clone())
            .await
            .map_err(|error| DemoError::Other(error.to_string()))?,
    };
    let (writing, written) = watch::channel(true);
    let writer = ForumWriter::new(stage.source.connect(DATABASE).await?, seed);
    let writer = tokio::spawn(write(writer, written));
    let service: JoinHandle<Result<(), Fault>> =
        tokio::spawn(supervisor::run(config, RunOptions::default(), Arc::clone(&telemetry), stopping));

    let (there, here) = (stage.source.connect(DATABASE).await?, stage.destination.connect(DATABASE).await?);
    let mut view = View::new(format!("metrics and status: http://{bound}/metrics  http://{bound}/status"));
    say(&format!("headwater copies the forum and follows it; metrics at http://{bound}/metrics"));
    let began = Instant::now();
    loop {
        let left = seconds.map(|seconds| seconds.saturating_sub(began.elapsed().as_secs()));
        let (source, destination) = tokio::join!(view::count(&there), view::count(&here));
        view.show(&telemetry.status(), source, destination, left);
        if left == Some(0) {
            break;
        }
        if service.is_finished() {
            let ended = service.await.map_err(|error| DemoError::Other(error.to_string()))?;
            let reason = ended.err().map_or("it stopped by itself".to_owned(), |fault| report(&fault).lines());
            return Err(DemoError::Other(format!("headwater has ended: {reason}")));
        }
        tokio::time::sleep(view.every()).await;
    }
    writing.send_replace(false);
    let transactions = writer.await.map_err(|error| DemoError::Other(error.to_string()))??;
    say(&format!("the writer has stopped after {}; comparing both sides …", counted(transactions, "transaction")));
    catch_up(&there, &here).await?;
    let equal = compare(&there, &here).await?;
    stop.send_replace(true);
    let ended = service.await.map_err(|error| DemoError::Other(error.to_string()))?;
    if let Err(fault) = ended {
        return Err(DemoError::Other(report(&fault).lines()));
    }
    Ok(equal)
}

fn configuration(stage: &DemoStage, dir: &Path) -> Result<Config, DemoError> {
    let text = format!(
        "[source]\nurl = {:?}\nheartbeat_every = \"1s\"\n[destination]\nurl = {:?}\n[spool]\ndir = {:?}\n",
        stage.source.url(DATABASE),
        stage.destination.url(DATABASE),
        dir.join("spool")
    );
    Config::parse(Some(FileText { name: "demo", text: &text }), &Environment::new())
        .map_err(|problems| DemoError::Other(problems.to_string()))
}

/// Writes until `go_on` turns false; returns the number of transactions.
async fn write(mut writer: ForumWriter, mut go_on: watch::Receiver<bool>) -> Result<u64, SessionError> {
    let mut transactions = 0;
    while *go_on.borrow_and_update() {
        writer.write().await?;
        transactions += 1;
        tokio::time::sleep(WRITE_EVERY).await;
    }
    Ok(transactions)
}

/// Waits until the destination has everything that the source has now.
async fn catch_up(source: &SqlClient, destination: &SqlClient) -> Result<(), DemoError> {
    let now = source.query_one("reading the position", "SELECT pg_current_wal_insert_lsn()::text", &[]).await?;
    let now: Lsn = now.parse(0)?;
    let began = Instant::now();
    loop {
        let row =
            destination.query_opt("reading the position", "SELECT position::text FROM headwater.position", &[]).await?;
        let position = row.map(|row| row.parse::<Lsn>(0)).transpose()?;
        if position >= Some(now) {
            return Ok(());
        }
        if began.elapsed() > CATCH_UP_MAX {
            return Err(DemoError::Other("the destination did not catch up".to_owned()));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Compares all rows of all tables by content, and says so.
async fn compare(source: &SqlClient, destination: &SqlClient) -> Result<bool, DemoError> {
    let mut equal = true;
    for table in ["sections", "topics", "messages"] {
        let sql = format!("SELECT count(*), md5(string_agg(t::text, E'\\n' ORDER BY id)) FROM public.{table} AS t");
        let (there, here) =
            tokio::join!(source.query_one("comparing", &sql, &[]), destination.query_one("comparing", &sql, &[]));
        let (there, here) = (there?, here?);
        let (rows, hash): (i64, Option<String>) = (there.get(0)?, there.get(1)?);
        let (rows_here, hash_here): (i64, Option<String>) = (here.get(0)?, here.get(1)?);
        if rows == rows_here && hash == hash_here {
            say(&format!("  {table:<10} equal, {rows} rows"));
        } else {
            equal = false;
            say(&format!("  {table:<10} DIFFERENT: {rows} rows at the source, {rows_here} at the destination"));
        }
    }
    say(if equal { "both sides are equal" } else { "the sides differ" });
    Ok(equal)
}

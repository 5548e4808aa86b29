//! Figures into tables: medians with their extremes, and ratios of medians.

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::time::Duration;

use crate::Bench;
use crate::items::Item;
use crate::peers::Peer;

/// One drain.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    pub seconds: f64,
    pub sender_cpu: f64,
    /// The apply worker's, or the writing backend's.
    pub writer_cpu: f64,
    /// headwater's, or pg_recvlogical's.
    pub client_cpu: f64,
    pub wal_megabytes: f64,
    pub resident_megabytes: u64,
    /// Why it does not count.
    pub unequal: Option<String>,
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.unequal {
            Some(why) => write!(f, "NOT EQUAL: {why}"),
            None => write!(
                f,
                "{:.2} s; CPU: walsender {:.2}, writer {:.2}, client {:.2}; WAL {:.0} MB; resident {} MB",
                self.seconds,
                self.sender_cpu,
                self.writer_cpu,
                self.client_cpu,
                self.wal_megabytes,
                self.resident_megabytes
            ),
        }
    }
}

/// One latency run.
#[derive(Clone, Copy, Debug)]
pub struct Latency {
    pub p50: Duration,
    pub p99: Duration,
    pub max: Duration,
}

/// Everything that was measured.
pub struct Report {
    heading: String,
    rounds: usize,
    scale: f64,
    peers: Vec<Peer>,
    drains: BTreeMap<&'static str, ItemDrains>,
    latencies: BTreeMap<(u64, &'static str), Vec<Latency>>,
}

struct ItemDrains {
    what: &'static str,
    unit: &'static str,
    units: u64,
    runs: Vec<(Peer, bool, Measured)>,
}

fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        n if n % 2 == 1 => values.get(middle).copied(),
        _ => Some((values[middle - 1] + values[middle]) / 2.0),
    }
}

impl ItemDrains {
    fn of(&self, peer: Peer, old_snapshot: bool) -> impl Iterator<Item = &Measured> {
        self.runs
            .iter()
            .filter(move |(of, old, run)| *of == peer && *old == old_snapshot && run.unequal.is_none())
            .map(|(_, _, run)| run)
    }

    fn seconds(&self, peer: Peer) -> Option<f64> {
        median(self.of(peer, false).map(|run| run.seconds))
    }

    fn lines(&self, name: &str, peers: &[Peer]) -> String {
        let mut text = String::new();
        let wall = self.seconds(Peer::Wall);
        let native = self.seconds(Peer::Native);
        for (peer, old_snapshot) in peers.iter().flat_map(|peer| [(*peer, false), (*peer, true)]) {
            let count = self.of(peer, old_snapshot).count();
            let unequal =
                self.runs.iter().filter(|(of, old, run)| *of == peer && *old == old_snapshot && run.unequal.is_some());
            if unequal.count() > 0 {
                let _ = writeln!(text, "| {name} | {} | – | not equal | | | | | | | | |", peer.key());
                continue;
            }
            let of = |figure: fn(&Measured) -> f64| median(self.of(peer, old_snapshot).map(figure));
            let Some(seconds) = of(|run| run.seconds) else { continue };
            let least = self.of(peer, old_snapshot).map(|run| run.seconds).fold(f64::MAX, f64::min);
            let most = self.of(peer, old_snapshot).map(|run| run.seconds).fold(0.0, f64::max);
            let ratio = |other: Option<f64>| other.map_or("–".to_owned(), |other| format!("{:.2}", other / seconds));
            #[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
            let rate = self.units as f64 / seconds / 1000.0;
            #[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
            let resident = of(|run| run.resident_megabytes as f64).unwrap_or(0.0);
            let shown = |value: Option<f64>, digits: usize| match value {
                Some(value) if value > 0.0 => format!("{value:.digits$}"),
                Some(_) | None => "–".to_owned(),
            };
            let _ = writeln!(
                text,
                "| {name} | {}{} | {count} | {seconds:.2} | {least:.2}–{most:.2} | {rate:.1}k {} | {} | {} | {} | {} | {} | {} | {} |",
                peer.key(),
                if old_snapshot { ", old snapshot open" } else { "" },
                self.unit,
                ratio(wall),
                ratio(native),
                shown(of(|run| run.sender_cpu), 2),
                shown(of(|run| run.writer_cpu), 2),
                shown(of(|run| run.client_cpu), 2),
                shown(of(|run| run.wal_megabytes), 0),
                if resident > 0.0 { format!("{resident:.0}") } else { "–".to_owned() },
            );
        }
        text
    }
}

const HEAD: &str = "| item | peer | n | median s | min–max s | rate | of the wall | times native | walsender CPU s | writer CPU s | \
                    client CPU s | WAL MB | resident MB |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|\n";

impl Report {
    pub fn new(bench: &Bench, peers: &[Peer]) -> Report {
        let version = std::process::Command::new(bench.bin.join("postgres")).arg("--version").output();
        let version =
            version.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default();
        let model = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = model.lines().find_map(|line| line.strip_prefix("model name")?.split(':').nth(1));
        let cores = std::thread::available_parallelism().map_or(0, |cores| cores.get());
        let heading = format!(
            "{cores} cores ({}), {version}, headwater {}, scale {}, {} rounds.",
            model.unwrap_or("unknown").trim(),
            env!("CARGO_PKG_VERSION"),
            bench.scale,
            bench.rounds
        );
        Report {
            heading,
            rounds: bench.rounds,
            scale: bench.scale,
            peers: peers.to_vec(),
            drains: BTreeMap::new(),
            latencies: BTreeMap::new(),
        }
    }

    pub fn drained(&mut self, item: &Item, units: u64, peer: Peer, old_snapshot: bool, measured: Measured) {
        let drains = self.drains.entry(item.name).or_insert_with(|| ItemDrains {
            what: item.what,
            unit: item.unit,
            units,
            runs: Vec::new(),
        });
        drains.runs.push((peer, old_snapshot, measured));
    }

    pub fn latency(&mut self, rate: u64, peer: Peer, sample: Latency) {
        eprintln!("L{rate} {}: p50 {:?} p99 {:?} max {:?}", peer.key(), sample.p50, sample.p99, sample.max);
        self.latencies.entry((rate, peer.key())).or_default().push(sample);
    }

    pub fn print_item(&self, item: &Item) {
        if let Some(drains) = self.drains.get(item.name) {
            eprintln!("{}", drains.lines(item.name, &self.peers));
        }
    }

    /// The tables.
    pub fn markdown(&self) -> String {
        let mut text = format!("{}\n", self.heading);
        if !self.drains.is_empty() {
            let _ = write!(text, "\n{HEAD}");
            for (name, drains) in &self.drains {
                text.push_str(&drains.lines(name, &self.peers));
            }
            text.push('\n');
            for (name, drains) in &self.drains {
                let _ = writeln!(text, "- {name}: {}", drains.what);
            }
        }
        if !self.latencies.is_empty() {
            text.push_str("\n| tx/s | peer | n | p50 ms | p99 ms | max ms |\n|---|---|---|---|---|---|\n");
            for ((rate, peer), samples) in &self.latencies {
                let of = |figure: fn(&Latency) -> Duration| {
                    let figures: Vec<f64> =
                        samples.iter().map(|sample| figure(sample).as_secs_f64() * 1000.0).collect();
                    let least = figures.iter().copied().fold(f64::MAX, f64::min);
                    let most = figures.iter().copied().fold(0.0, f64::max);
                    format!("{:.2} ({least:.2}–{most:.2})", median(figures.into_iter()).unwrap_or(0.0))
                };
                let (p50, p99, max) = (of(|l| l.p50), of(|l| l.p99), of(|l| l.max));
                let _ = writeln!(text, "| {rate} | {peer} | {} | {p50} | {p99} | {max} |", samples.len());
            }
        }
        text
    }

    /// docs/benchmarks.md.
    pub fn page(&self) -> String {
        let note = if self.scale < 1.0 || self.rounds < 3 {
            "\n**A short run: smaller than the full one, or fewer rounds. Its figures do not count.**\n"
        } else {
            ""
        };
        format!(
            "# Benchmarks\n\n\
             Printed by `make bench`, which measures everything below side by side on throw-away clusters: the wall \
             (`pg_recvlogical` discarding the backlog, with the options that headwater asks for), PostgreSQL's own \
             CREATE SUBSCRIPTION in text and binary, pglogical where its package is installed, and headwater. Each drains the \
             same backlog from a slot of its own into a fresh copy of the destination, peers taking turns; after each drain both sides are compared by content, and one \
             that is not equal has no figure. A drain counts from the peer's start (headwater's process, ALTER SUBSCRIPTION \
             … ENABLE) until the backlog's last row is visible. *Of the wall* and *times native* are ratios of medians; above 1 \
             is faster. *Writer* is the apply worker or headwater's backend, *client* headwater itself (or pg_recvlogical). \
             Both servers and everything else share the machine's cores.\n{note}\n{}",
            self.markdown()
        )
    }
}

//! What a copy has cost, and the table of it.

use std::fmt::{self, Write};
use std::path::Path;

use super::peers::Peer;

/// One copy.
#[derive(Clone, Copy, Debug)]
pub struct Figure {
    pub seconds: f64,
    pub cpu_seconds: f64,
    pub wal_bytes: u64,
    pub resident_bytes: u64,
    pub under_load: Option<UnderLoad>,
}

/// What others noticed of a copy.
#[derive(Clone, Copy, Debug)]
pub struct UnderLoad {
    pub held_ms: u64,
    pub longest_read_before_ms: f64,
    pub longest_read_ms: f64,
    pub writes_per_second: f64,
}

impl Figure {
    pub fn new(seconds: f64, cpu_seconds: f64, wal_bytes: u64) -> Figure {
        Figure { seconds, cpu_seconds, wal_bytes, resident_bytes: 0, under_load: None }
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Figure { seconds, cpu_seconds, wal_bytes, resident_bytes, under_load } = self;
        write!(f, "{seconds:.2} s, {cpu_seconds:.1} s CPU, {:.0} MB WAL", *wal_bytes as f64 / 1e6)?;
        if *resident_bytes > 0 {
            write!(f, ", {:.0} MB resident", *resident_bytes as f64 / 1e6)?;
        }
        if let Some(UnderLoad { held_ms, longest_read_before_ms, longest_read_ms, writes_per_second }) = under_load {
            write!(
                f,
                ", held for {held_ms} ms, longest read {longest_read_ms:.1} ms (before: {longest_read_before_ms:.1}), \
                 {writes_per_second:.0} writes/s"
            )?;
        }
        Ok(())
    }
}

/// CPU that servers have used, with all their processes, dead ones too.
pub struct Cpu(f64);

impl Cpu {
    pub fn of(postmasters: &[Option<u32>]) -> Cpu {
        let postmasters: Vec<u32> = postmasters.iter().flatten().copied().collect();
        let mut seconds: f64 = postmasters.iter().map(|pid| ticks(*pid, true)).sum();
        for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
            if parent(pid).is_some_and(|parent| postmasters.contains(&parent)) {
                seconds += ticks(pid, false);
            }
        }
        Cpu(seconds)
    }

    pub fn since(&self, before: &Cpu) -> f64 {
        self.0 - before.0
    }
}

/// The fields of /proc/PID/stat behind the name.
fn stat(pid: &str) -> Vec<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    text.rsplit(')').next().unwrap_or_default().split_whitespace().map(str::to_owned).collect()
}

fn parent(pid: u32) -> Option<u32> {
    stat(&pid.to_string()).get(1)?.parse().ok()
}

/// utime and stime; with `children` also those of children that have ended. In seconds, at 100 ticks each (Linux).
fn ticks(pid: u32, children: bool) -> f64 {
    let fields = stat(&pid.to_string());
    let last = if children { 15 } else { 13 };
    (11..last).filter_map(|place| fields.get(place)?.parse::<f64>().ok()).sum::<f64>() / 100.0
}

/// CPU of a process that runs.
pub fn process_cpu(pid: u32) -> f64 {
    ticks(pid, false)
}

/// CPU of our own children that have ended.
pub fn children_cpu() -> f64 {
    let fields = stat("self");
    (13..15).filter_map(|place| fields.get(place)?.parse::<f64>().ok()).sum::<f64>() / 100.0
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// All figures, medians with their ranges, and how they compare.
pub fn table(figures: &[(Peer, Vec<Figure>)], messages: u64, rounds: usize) -> String {
    let of = |peer: Peer| {
        let taken = figures.iter().find(|(other, taken)| *other == peer && !taken.is_empty())?;
        Some(median(taken.1.iter().map(|figure| figure.seconds).collect()))
    };
    let ratio = |against: Option<f64>, seconds: f64| match against {
        Some(against) => format!("{:.2}", against / seconds),
        None => "-".to_owned(),
    };
    let pgcopydb = figures
        .iter()
        .filter(|(peer, _)| matches!(peer, Peer::Pgcopydb(_)))
        .filter_map(|(peer, _)| of(*peer))
        .min_by(f64::total_cmp);
    let mut text = format!(
        "{messages} messages of about 300 bytes; {rounds} rounds, peers taking turns; medians (least–most). Above 1 is faster.\n\n\
         | peer | seconds | CPU s | WAL at the destination, MB | resident, MB | times native | times best pgcopydb | of the limit |\n\
         |---|---|---|---|---|---|---|---|\n"
    );
    for (peer, taken) in figures.iter().filter(|(_, taken)| !taken.is_empty()) {
        let all = |of: fn(&Figure) -> f64| median(taken.iter().map(of).collect());
        let seconds = all(|figure| figure.seconds);
        let least = taken.iter().map(|figure| figure.seconds).fold(f64::INFINITY, f64::min);
        let most = taken.iter().map(|figure| figure.seconds).fold(0.0, f64::max);
        let resident = all(|figure| figure.resident_bytes as f64 / 1e6);
        let resident = if resident > 0.0 { format!("{resident:.0}") } else { "-".to_owned() };
        let _ = writeln!(
            text,
            "| {} | {seconds:.2} ({least:.2}–{most:.2}) | {:.1} | {:.1} | {resident} | {} | {} | {} |",
            peer.name(),
            all(|figure| figure.cpu_seconds),
            all(|figure| figure.wal_bytes as f64 / 1e6),
            ratio(of(Peer::Native), seconds),
            ratio(pgcopydb, seconds),
            ratio(of(Peer::Limit), seconds),
        );
    }
    for (peer, taken) in figures {
        let loads: Vec<UnderLoad> = taken.iter().filter_map(|figure| figure.under_load).collect();
        if loads.is_empty() {
            continue;
        }
        let most = |of: fn(&UnderLoad) -> f64| loads.iter().map(of).fold(0.0, f64::max);
        let _ = writeln!(
            text,
            "\n*{}*: {:.0} writes a second at the source and a reader at the destination that asks all the time. Its longest wait in any \
             round was {:.1} ms (in the five seconds before the copy: {:.1} ms); the stream was held for at most {:.0} ms. Both sides were \
             equal afterwards.",
            peer.name(),
            median(loads.iter().map(|load| load.writes_per_second).collect()),
            most(|load| load.longest_read_ms),
            most(|load| load.longest_read_before_ms),
            most(|load| load.held_ms as f64),
        );
    }
    text
}

const BEGIN: &str = "<!-- make bench-snapshot -->";
const END: &str = "<!-- end of make bench-snapshot -->";

/// Writes the section of a page that is ours; the rest of it is others'.
pub fn write_section(page: &Path, text: &str) {
    let old = std::fs::read_to_string(page).unwrap_or_default();
    let section = format!(
        "{BEGIN}\n## First copy and resync\n\n\
         Printed by `make bench-snapshot`: a forum is copied into a fresh database by each peer in turn, until everything is visible \
         with keys, secondary indexes and foreign keys. PostgreSQL's own and *tables there* find the tables with their indexes; the \
         others make them. *The limit* is psql into psql, binary, indexes afterwards, in one transaction. CPU is that of both servers \
         and the peer together.\n\n{text}\n{END}\n"
    );
    let new = match (old.find(BEGIN), old.find(END)) {
        (Some(begin), Some(end)) if begin < end => {
            let (before, after) =
                (old.get(..begin).unwrap_or_default(), old.get(end + END.len()..).unwrap_or_default());
            format!("{before}{}{after}", section.trim_end())
        }
        (_, _) => format!("{old}\n{section}"),
    };
    std::fs::write(page, new).unwrap();
}

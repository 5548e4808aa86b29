//! The replication loop, simulated: the real pure parts between a fake source and a fake destination, on thousands of seeded schedules.
//!
//! The apply loop and parallel apply are the shipped cores (`apply_core`), the assembler, the batches, the ledger and the feedback
//! those of the service; the schedule plays the tasks around them ([`leader`]), the source ([`source`]) and the destination
//! ([`destination`]).
//!
//! Every step of a schedule is drawn by chance: a message arrives, a pipelined request is executed, an answer comes or is lost, WAL is
//! flushed, the source checkpoints, apply is to stand still, somebody crashes. After each step the invariants are checked:
//!
//! - I1, I2: whatever the destination shows is a state that the source was in, and it only goes forward (but for a crash of a
//!   destination that had not flushed);
//! - I3: the position names exactly that state;
//! - I4: what the source was told is durable at the destination;
//! - I5: once the crashes end, both sides become equal;
//! - I6: the slot passes WAL that is not for us;
//! - where apply stands still, nothing is under way, and at a fence the destination shows what had committed before it.
//!
//! The source sends again what it has sent, whole transactions that are applied already, keepalives, inside transactions too,
//! and commits without what they commit; the last breaks the session off.
//!
//! A leader that is frozen, or cut off, leaves pipelined requests of both its sessions behind which arrive late, while the next one
//! leads.
//!
//! Some transactions arrive before they commit, in blocks between others, with subtransactions and whole transactions that
//! are rolled back. They are applied in parallel on a second session, which fails, waits, is waited for, and is cancelled.
//!
//! `HEADWATER_SEED=n` replays one schedule; `HEADWATER_SCHEDULES=n` runs so many.

mod destination;
mod leader;
mod source;

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use fastrand::Rng;
use headwater::apply_core::ApplyCommand;
use headwater::apply_plan::ApplyTask;
use headwater::pg::Lsn;

use crate::destination::{Content, Destination, PipelinedRequest};
use crate::leader::{Life, Second, Tally};
use crate::source::Source;

/// What a frozen leader has left behind: what is in a session comes in order, whenever it comes.
struct Late {
    requests: VecDeque<PipelinedRequest>,
    second: Option<Second>,
}

struct World {
    rng: Rng,
    source: Source,
    destination: Destination,
    life: Option<Life>,
    late: Vec<Late>,
    /// How far readers of the destination have seen it.
    seen: u64,
    tally: Tally,
}

impl World {
    fn new(seed: u64) -> World {
        World {
            rng: Rng::with_seed(seed),
            source: Source::new(),
            destination: Destination::new(),
            life: None,
            late: Vec::new(),
            seen: 1000,
            tally: Tally::default(),
        }
    }

    /// One step of the schedule; `calm`: nobody crashes any more, and the source is idle.
    fn step(&mut self, calm: bool) {
        if !calm && self.disturb() {
            return;
        }
        if self.rng.u8(..4) == 0 {
            let up_to = self.rng.u64(self.destination.flush_lsn..=self.destination.insert_lsn);
            self.destination.flush(if calm { u64::MAX } else { up_to });
        }
        if self.life.as_ref().is_none_or(|life| life.failed) {
            self.end_life();
            self.life = Some(Life::start(&self.source, &mut self.destination, &mut self.rng));
        }
        if calm && let Some(life) = &mut self.life {
            life.command = ApplyCommand::Run;
        }
        self.live();
    }

    /// What comes from outside; whether it was the end of a life.
    fn disturb(&mut self) -> bool {
        match self.rng.u8(..100) {
            0 => {
                // SIGKILL: answers on their way are lost, pipelined requests on their way may still be executed.
                self.lose_sessions();
                return true;
            }
            1 => {
                self.destination.crash();
                self.seen = self.destination.position;
                self.end_life();
                self.late.clear();
                return true;
            }
            2 => {
                self.source.confirmed = self.source.saved;
                self.lose_sessions();
                return true;
            }
            18 => {
                // SIGSTOP, or a link that is cut: the next one leads while pipelined requests are still on their way.
                if let Some(mut life) = self.end_life() {
                    self.late.push(Late { requests: std::mem::take(&mut life.requests), second: life.second.take() });
                    self.destination.open = None;
                }
                return true;
            }
            19..25 => self.arrive_late(),
            3..13 => self.source.commit(&mut self.rng),
            13..16 => self.source.wal_end += self.rng.u64(100..10_000_000),
            16..18 => self.source.saved = self.source.confirmed,
            25 => self.command(),
            26 => {
                // Nothing comes for a long time.
                if let Some(life) = &mut self.life {
                    life.now += Duration::from_secs(61);
                }
            }
            _ => {}
        }
        false
    }

    /// Somebody wants apply to stand still, or to continue.
    fn command(&mut self) {
        let Some(life) = &mut self.life else { return };
        life.command = match (life.command, self.rng.u8(..3)) {
            (ApplyCommand::Run, 0) => ApplyCommand::Hold { turn: 1 },
            (ApplyCommand::Run | ApplyCommand::Hold { .. }, 1) => {
                ApplyCommand::RunTo { turn: 1, point: Lsn::new(self.source.wal_end) }
            }
            (ApplyCommand::Run | ApplyCommand::Hold { .. } | ApplyCommand::RunTo { .. }, _) => ApplyCommand::Run,
        };
    }

    /// One of the tasks of a life gets its turn.
    fn live(&mut self) {
        let World { rng, source, destination, life: Some(life), .. } = self else { return };
        life.now += Duration::from_millis(rng.u64(1..100));
        match rng.u8(..8) {
            0 => {
                for _ in 0..rng.usize(1..12) {
                    if !life.failed {
                        life.receive(source, rng);
                    }
                }
            }
            1 => life.feed(source, destination, rng),
            2 if life.is_blocked() => {}
            2 => {
                if let Some(request) = life.requests.pop_front() {
                    let answer = destination.execute(&request, rng);
                    life.answers.push_back(answer);
                }
            }
            3 => life.answered(),
            4 => (0..rng.usize(1..4)).for_each(|_| life.act_second(rng)),
            5 => life.execute_second(destination, rng),
            6 => life.answered_second(),
            _ => {
                if life.feedback.due_in(life.now).is_zero() {
                    let flushed = life.feedback.take(life.now).flushed;
                    assert!(flushed.as_u64() >= source.confirmed || source.confirmed <= source.saved);
                    source.confirmed = source.confirmed.max(flushed.as_u64());
                }
            }
        }
    }

    fn end_life(&mut self) -> Option<Life> {
        let mut life = self.life.take()?;
        self.tally.add(std::mem::take(&mut life.tally));
        Some(life)
    }

    /// A pipelined request of a frozen leader arrives, in its own session. While another has a transaction open there, which has written
    /// the position, it waits.
    fn arrive_late(&mut self) {
        if self.destination.open.is_some() || self.late.is_empty() {
            return;
        }
        let index = self.rng.usize(..self.late.len());
        let Late { requests, second } = &mut self.late[index];
        if let Some(session) = second
            && self.rng.bool()
        {
            let goes_well = match session.requests.pop_front() {
                Some(request) => session.execute(&request, &mut self.destination, &mut self.rng),
                None => false,
            };
            if !goes_well {
                *second = None;
            }
            return;
        }
        let Some(request) = requests.pop_front() else {
            if second.is_none() {
                self.late.remove(index);
            }
            return;
        };
        // A transaction in several pipelined requests is never whole here: what its session has left open is rolled back.
        let whole = match &request.content {
            Content::Task(ApplyTask::Batch(_)) | Content::Position | Content::Ping => true,
            Content::Task(ApplyTask::Large(_)) => false,
        };
        if !whole || self.destination.execute(&request, &mut self.rng).failed {
            requests.clear();
        }
    }

    fn lose_sessions(&mut self) {
        let Some(mut life) = self.end_life() else { return };
        while let Some(request) = life.requests.pop_front() {
            if self.rng.bool() {
                break;
            }
            let _ = self.destination.execute(&request, &mut self.rng);
        }
        self.destination.open = None;
        if let Some(mut second) = life.second.take() {
            while let Some(request) = second.requests.pop_front() {
                if self.rng.bool() || !second.execute(&request, &mut self.destination, &mut self.rng) {
                    break;
                }
            }
        }
    }

    fn check(&mut self) {
        let Destination { rows, position, .. } = &self.destination;
        assert_eq!(*rows, self.source.state_at(*position), "what is shown is not the state at the position {position}");
        assert!(*position >= self.seen, "readers saw {} before {position}", self.seen);
        self.seen = *position;
        let durable = self.destination.durable_position();
        assert!(self.source.confirmed <= durable, "confirmed {} but only {durable} is durable", self.source.confirmed);
    }
}

/// What came of a schedule.
struct Ran {
    steps: usize,
    tally: Tally,
}

fn run(seed: u64) -> Ran {
    let mut world = World::new(seed);
    let steps = 600;
    for _ in 0..steps {
        world.step(false);
        world.check();
    }
    // Everything heals: both sides become equal, and the slot passes whatever WAL there is.
    let end = world.source.wal_end;
    for extra in 0.. {
        world.step(true);
        world.check();
        let arrived = world.destination.rows == world.source.state_at(end) && world.destination.position >= end;
        if arrived && world.source.confirmed >= end {
            world.end_life();
            return Ran { steps: steps + extra, tally: world.tally };
        }
        assert!(
            extra < 100_000,
            "position {} and slot {} do not reach {end}",
            world.destination.position,
            world.source.confirmed
        );
    }
    unreachable!("the loop returns")
}

#[test]
fn the_invariants_hold_on_every_schedule() {
    let variable = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    if let Some(seed) = variable("HEADWATER_SEED") {
        run(seed);
        return;
    }
    let schedules = variable("HEADWATER_SCHEDULES").unwrap_or(500);
    let first = fastrand::u64(..1 << 48);
    let began = Instant::now();
    let (next, steps) = (AtomicU64::new(first), AtomicUsize::new(0));
    let tally = Mutex::new(Tally::default());
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= first + schedules {
                return;
            }
            match std::panic::catch_unwind(|| run(seed)) {
                Ok(ran) => {
                    steps.fetch_add(ran.steps, Ordering::Relaxed);
                    tally.lock().expect("no schedule fails inside").add(ran.tally);
                }
                Err(error) => {
                    // The others need not go on.
                    next.store(first + schedules, Ordering::Relaxed);
                    let text = error.downcast_ref::<String>().cloned().unwrap_or_default();
                    panic!("HEADWATER_SEED={seed} replays it: {text}");
                }
            }
        }
    };
    std::thread::scope(|scope| {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let all: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        for thread in all {
            thread.join().unwrap_or_else(|error| std::panic::resume_unwind(error));
        }
    });
    let steps = steps.into_inner();
    let tally = tally.into_inner().expect("no schedule fails inside");
    eprintln_summary(first, schedules, steps, began.elapsed().as_secs_f64());
    eprintln_tally(&tally);
    assert!(steps > 0);
    if schedules >= 500 {
        assert!(tally.committed_in_parallel > 0 && tally.pauses > 0, "{tally:?}");
        for why in CANCELLED_BY {
            assert!(tally.cancelled.contains_key(*why), "nothing was cancelled by {why}: {tally:?}");
        }
    }
}

/// What cancels parallel apply in these schedules.
const CANCELLED_BY: &[&str] = &[
    "DescribedTwice",
    "InSnapshot",
    "LiveStreamWaits",
    "NoSession",
    "Pause",
    "Quiet",
    "RolledBack",
    "SchemaChange",
    "SessionFailed",
    "TableChanged",
];

#[allow(clippy::print_stderr, reason = "shown by --nocapture")]
fn eprintln_tally(tally: &Tally) {
    eprintln!("{tally:?}");
}

#[allow(clippy::print_stderr, reason = "shown by --nocapture")]
fn eprintln_summary(first: u64, schedules: u64, steps: usize, seconds: f64) {
    let speed = schedules as f64 / seconds;
    eprintln!("{schedules} schedules from seed {first} on, {steps} steps, {speed:.0} schedules per second");
}

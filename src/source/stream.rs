//! The live stream: the source's messages in, steps out, positions back.
//!
//! Task 1 of the ring. It owns the socket and the assembler; `pipeline` gives it the sending end of the step channel
//! and the watch on which the destination's progress comes back.
//!
//! ```text
//!  walsender ──▶ session ──▶ Decoder ──▶ Assembler ──▶ Steps (bounded) ──▶ task 2
//!      ▲                                                                     │
//!      └── StandbyStatusUpdate ◀── Feedback ◀── watch: stored, flushed ◀─────┘
//! ```
//!
//! While the channel is full it does not read, but goes on sending status updates, so the source never takes a busy
//! destination for a dead one. It only receives, calls and forwards; what to confirm and when is `progress`'s to say.
//!
//! Bounds: [`Steps`] holds so many steps and bytes; full means wait. A source that says nothing for `timeout` is
//! given up; it is asked for a sign of life at half of it.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};

use super::error::SourceError;
use crate::pg::{Lsn, PgTimestamp};
use crate::progress::Feedback;
use crate::session::{ReplicationSession, StreamedMessage};
use crate::telemetry::failpoint;
use crate::transaction::{Assembler, Step};
use crate::wire::{Decoder, ReplicationMessage, StandbyStatusUpdate};

/// Steps in the channel at most, whatever their size.
const STEPS_MAX: usize = 4096;

/// What the destination has reached: task 1 confirms nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Confirmed {
    /// Stored and visible.
    pub stored: Lsn,
    /// Stored and durable.
    pub flushed: Lsn,
}

/// The sending end of the step channel: bounded in steps and in bytes.
pub struct Steps {
    steps: mpsc::Sender<(Step, OwnedSemaphorePermit)>,
    bytes: Arc<Semaphore>,
    bytes_max: u32,
}

/// The receiving end. A step's bytes are free again once it is taken.
pub struct StepReceiver {
    steps: mpsc::Receiver<(Step, OwnedSemaphorePermit)>,
}

/// A channel that holds at most so many bytes of steps; a larger step passes alone.
pub fn step_channel(bytes_max: usize) -> (Steps, StepReceiver) {
    let bytes_max = u32::try_from(bytes_max).unwrap_or(u32::MAX >> 4).min(u32::MAX >> 4);
    let (sender, receiver) = mpsc::channel(STEPS_MAX);
    let bytes = Arc::new(Semaphore::new(usize::try_from(bytes_max).unwrap_or(Semaphore::MAX_PERMITS)));
    (Steps { steps: sender, bytes, bytes_max }, StepReceiver { steps: receiver })
}

impl Steps {
    fn weight(&self, step: &Step) -> u32 {
        u32::try_from(step.size_bytes()).unwrap_or(u32::MAX).min(self.bytes_max)
    }

    /// Sends without waiting; gives the step back when there is no room. `Err(None)`: the receiver is gone.
    fn try_send(&self, step: Step) -> Result<(), Option<Step>> {
        let Ok(permit) = Arc::clone(&self.bytes).try_acquire_many_owned(self.weight(&step)) else {
            return Err(Some(step));
        };
        self.steps.try_send((step, permit)).map_err(|refused| match refused {
            mpsc::error::TrySendError::Full((step, _)) => Some(step),
            mpsc::error::TrySendError::Closed(_) => None,
        })
    }

    /// Waits for room for `step`. `None`: the receiver is gone.
    async fn room_for(&self, step: &Step) -> Option<Room> {
        let permit = Arc::clone(&self.bytes).acquire_many_owned(self.weight(step)).await.ok()?;
        let slot = self.steps.clone().reserve_owned().await.ok()?;
        Some(Room { slot, permit })
    }
}

/// A place in the channel.
struct Room {
    slot: mpsc::OwnedPermit<(Step, OwnedSemaphorePermit)>,
    permit: OwnedSemaphorePermit,
}

impl StepReceiver {
    /// The next step; `None` when the stream has ended and everything was taken. Cancel-safe.
    pub async fn next(&mut self) -> Option<Step> {
        self.steps.recv().await.map(|(step, _)| step)
    }

    /// The next step if it is already there.
    pub fn ready(&mut self) -> Option<Step> {
        self.steps.try_recv().ok().map(|(step, _)| step)
    }
}

/// What the stream tells beside its steps, for lag and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamReport {
    /// A message came, with the source's clock at sending and ours at receipt.
    Heard {
        /// The source's clock.
        source: PgTimestamp,
        /// Ours.
        local: PgTimestamp,
    },
    /// A transaction has begun to arrive: it is committed at the source.
    Received {
        /// Its commit_lsn.
        final_lsn: Lsn,
        /// When it committed, on the source's clock.
        committed_at: PgTimestamp,
    },
}

/// How a stream is read.
#[derive(Clone, Copy, Debug)]
pub struct StreamSettings {
    /// A source that says nothing for so long is given up.
    pub timeout: Duration,
    /// The walsender's own patience with us.
    pub sender_timeout: Duration,
}

/// What task 1 owns.
pub struct StreamTask {
    /// A session on which START_REPLICATION has been answered.
    pub session: ReplicationSession,
    /// Reads its messages.
    pub decoder: Decoder,
    /// Assembles them.
    pub assembler: Assembler,
    /// Where steps go.
    pub steps: Steps,
    /// Where the destination's progress comes from.
    pub confirmed: watch::Receiver<Confirmed>,
    /// How the stream is read.
    pub settings: StreamSettings,
    /// Becomes true when reading is to end.
    pub stop: watch::Receiver<bool>,
}

/// Reads the stream until `stop` fires or something fails; `report` hears what passes by.
///
/// When `stop` fires, reading ends, `steps` is closed, and the last positions are confirmed once `confirmed`'s sender
/// is dropped; then the stream is ended in good order.
///
/// # Errors
/// [`SourceError`] says why the stream broke off. Everything that was sent into `steps` is good.
pub async fn stream(task: StreamTask, mut report: impl FnMut(StreamReport)) -> Result<(), SourceError> {
    let StreamTask { mut session, mut decoder, mut assembler, steps, mut confirmed, settings, mut stop } = task;
    let began = Instant::now();
    let start = *confirmed.borrow_and_update();
    let mut feedback = Feedback::new(settings.sender_timeout, start.flushed, start.stored, began.elapsed());
    let mut silence = Silence::new(began.elapsed(), settings.timeout);
    let mut waiting: Option<Step> = None;
    let mut receiver_gone = false;
    let mut greeted = false;

    while !*stop.borrow() && !receiver_gone {
        // Whatever has arrived is taken without asking the runtime.
        while waiting.is_none()
            && let Some(message) = session.ready()?
        {
            silence.heard(began.elapsed());
            take_in(message, &mut decoder, &mut assembler, &mut feedback, &mut report)?;
            receiver_gone |= forward(&mut assembler, &steps, &mut waiting);
        }
        let now = began.elapsed();
        feedback.received(assembler.received());
        if waiting.is_some() {
            // It is we who are not listening.
            silence.heard(now);
        }
        // The first update asks for a keepalive, so that an idle source says at once how far it is.
        let ask = silence.check(now)? || !greeted;
        greeted = true;
        if ask || feedback.due_in(now).is_zero() {
            let (written, flushed, applied) = feedback.take(now);
            session.queue_status(&StandbyStatusUpdate {
                written,
                flushed,
                applied,
                sent_at: clock(),
                reply_requested: ask,
            });
            failpoint::reached("stream.feedback_sent");
        }
        let nap = feedback.due_in(now).min(silence.check_in(now)).max(Duration::from_millis(1));
        tokio::select! {
            _ = stop.changed() => {}
            changed = confirmed.changed() => {
                if changed.is_err() {
                    receiver_gone = true;
                } else {
                    let reached = *confirmed.borrow_and_update();
                    feedback.progressed(reached.stored, reached.flushed);
                }
            }
            room = room_for(&steps, &waiting), if waiting.is_some() => match (room, waiting.take()) {
                (Some(room), Some(step)) => {
                    room.slot.send((step, room.permit));
                    receiver_gone |= forward(&mut assembler, &steps, &mut waiting);
                }
                (_, _) => receiver_gone = true,
            },
            turn = turn(&mut session, waiting.is_none()) => {
                if let Some(message) = turn? {
                    silence.heard(began.elapsed());
                    take_in(message, &mut decoder, &mut assembler, &mut feedback, &mut report)?;
                    receiver_gone |= forward(&mut assembler, &steps, &mut waiting);
                }
            }
            () = tokio::time::sleep(nap) => {}
        }
    }
    drop(steps);
    finish(session, confirmed, feedback, began).await
}

/// Confirms what the destination still reaches, then ends the stream.
async fn finish(
    mut session: ReplicationSession,
    mut confirmed: watch::Receiver<Confirmed>,
    mut feedback: Feedback,
    began: Instant,
) -> Result<(), SourceError> {
    while confirmed.changed().await.is_ok() {}
    let reached = *confirmed.borrow();
    feedback.progressed(reached.stored, reached.flushed);
    let (written, flushed, applied) = feedback.take(began.elapsed());
    session.queue_status(&StandbyStatusUpdate { written, flushed, applied, sent_at: clock(), reply_requested: false });
    Ok(session.stop(STOP_MAX).await?)
}

/// A walsender in the middle of a large transaction may not listen: then the socket is simply closed.
const STOP_MAX: Duration = Duration::from_secs(2);

/// Reads the next message; or, while there is no room for what it would become, only sends what is queued.
async fn turn(session: &mut ReplicationSession, reading: bool) -> Result<Option<StreamedMessage>, SourceError> {
    if reading {
        return Ok(Some(session.next().await?));
    }
    if session.queued_bytes() == 0 {
        return std::future::pending().await;
    }
    session.send().await?;
    Ok(None)
}

async fn room_for(steps: &Steps, waiting: &Option<Step>) -> Option<Room> {
    match waiting {
        Some(step) => steps.room_for(step).await,
        None => std::future::pending().await,
    }
}

/// Sends what the assembler has ready; what finds no room waits. Returns whether the receiver is gone.
fn forward(assembler: &mut Assembler, steps: &Steps, waiting: &mut Option<Step>) -> bool {
    while waiting.is_none()
        && let Some(step) = assembler.poll()
    {
        match steps.try_send(step) {
            Ok(()) => {}
            Err(Some(step)) => *waiting = Some(step),
            Err(None) => return true,
        }
    }
    false
}

fn take_in(
    message: StreamedMessage,
    decoder: &mut Decoder,
    assembler: &mut Assembler,
    feedback: &mut Feedback,
    report: &mut impl FnMut(StreamReport),
) -> Result<(), SourceError> {
    match message {
        StreamedMessage::Message(ReplicationMessage::XLogData(data)) => {
            let message = decoder.read(&data.data)?;
            if let crate::wire::Message::Begin(begin) = &message {
                report(StreamReport::Heard { source: data.sent_at, local: clock() });
                report(StreamReport::Received { final_lsn: begin.final_lsn, committed_at: begin.committed_at });
            }
            assembler.message(message)?;
        }
        StreamedMessage::Message(ReplicationMessage::PrimaryKeepalive(keepalive)) => {
            report(StreamReport::Heard { source: keepalive.sent_at, local: clock() });
            assembler.keepalive(keepalive.wal_end);
            if keepalive.reply_requested {
                feedback.asked();
            }
        }
        StreamedMessage::Done => return Err(SourceError::Ended),
    }
    Ok(())
}

/// Our clock.
fn clock() -> PgTimestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    PgTimestamp::from_unix_micros(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}

/// How long the source has said nothing.
struct Silence {
    heard_at: Duration,
    asked: bool,
    timeout: Duration,
}

impl Silence {
    fn new(now: Duration, timeout: Duration) -> Silence {
        Silence { heard_at: now, asked: false, timeout }
    }

    fn heard(&mut self, now: Duration) {
        self.heard_at = now;
        self.asked = false;
    }

    /// Whether to ask for a sign of life now.
    fn check(&mut self, now: Duration) -> Result<bool, SourceError> {
        let silent_for = now.saturating_sub(self.heard_at);
        if silent_for >= self.timeout {
            return Err(SourceError::Silent(self.timeout));
        }
        let ask = !self.asked && silent_for >= self.timeout / 2;
        self.asked |= ask;
        Ok(ask)
    }

    fn check_in(&self, now: Duration) -> Duration {
        let due = if self.asked { self.timeout } else { self.timeout / 2 };
        due.saturating_sub(now.saturating_sub(self.heard_at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_source_is_asked_at_half_of_the_timeout_and_given_up_at_its_end() {
        let at = Duration::from_secs;
        let mut silence = Silence::new(at(0), at(60));
        assert!(!silence.check(at(29)).unwrap());
        assert!(silence.check(at(30)).unwrap());
        assert!(!silence.check(at(31)).unwrap(), "asked once");
        assert_eq!(silence.check_in(at(31)), at(29));
        silence.heard(at(40));
        assert!(!silence.check(at(69)).unwrap());
        assert!(matches!(silence.check(at(100)), Err(SourceError::Silent(_))));
    }

    #[tokio::test]
    async fn a_full_channel_makes_the_sender_wait_and_loses_nothing() {
        let step = |position| Step::Reached(Lsn::new(position));
        let (steps, mut receiver) = step_channel(2 * step(0).size_bytes());
        assert!(steps.try_send(step(1)).is_ok());
        assert!(steps.try_send(step(2)).is_ok());
        let refused = steps.try_send(step(3)).unwrap_err().unwrap();
        assert_eq!(refused, step(3));
        assert_eq!(receiver.next().await, Some(step(1)));
        let room = steps.room_for(&refused).await.unwrap();
        room.slot.send((refused, room.permit));
        drop(steps);
        assert_eq!(receiver.ready(), Some(step(2)));
        assert_eq!(receiver.next().await, Some(step(3)));
        assert_eq!(receiver.next().await, None);
    }
}

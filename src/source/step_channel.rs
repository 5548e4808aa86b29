//! The step channel: from task 1, which reads the source, to task 2, which writes the destination.
//!
//! Bounds: so many steps and so many bytes; full means wait. A step's bytes are free again once it is taken.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::transaction::Step;

/// Steps in the channel at most, whatever their size.
const STEPS_MAX: usize = 4096;

/// The sending end of the step channel: bounded in steps and in bytes.
pub struct StepSender {
    steps: mpsc::Sender<(Step, OwnedSemaphorePermit)>,
    bytes: Arc<Semaphore>,
    bytes_max: u32,
}

/// The receiving end. A step's bytes are free again once it is taken.
pub struct StepReceiver {
    steps: mpsc::Receiver<(Step, OwnedSemaphorePermit)>,
}

/// A channel that holds at most so many bytes of steps; a larger step passes alone.
pub fn step_channel(bytes_max: usize) -> (StepSender, StepReceiver) {
    let bytes_max = u32::try_from(bytes_max).unwrap_or(u32::MAX >> 4).min(u32::MAX >> 4);
    let (sender, receiver) = mpsc::channel(STEPS_MAX);
    let bytes = Arc::new(Semaphore::new(usize::try_from(bytes_max).unwrap_or(Semaphore::MAX_PERMITS)));
    (StepSender { steps: sender, bytes, bytes_max }, StepReceiver { steps: receiver })
}

impl StepSender {
    fn weight(&self, step: &Step) -> u32 {
        u32::try_from(step.size_bytes()).unwrap_or(u32::MAX).min(self.bytes_max)
    }

    /// Sends without waiting; gives the step back when there is no room. `Err(None)`: the receiver is gone.
    pub(super) fn try_send(&self, step: Step) -> Result<(), Option<Step>> {
        let Ok(permit) = Arc::clone(&self.bytes).try_acquire_many_owned(self.weight(&step)) else {
            return Err(Some(step));
        };
        self.steps.try_send((step, permit)).map_err(|refused| match refused {
            mpsc::error::TrySendError::Full((step, _)) => Some(step),
            mpsc::error::TrySendError::Closed(_) => None,
        })
    }

    /// Waits for room for `step`. `None`: the receiver is gone.
    pub(super) async fn room_for(&self, step: &Step) -> Option<Room> {
        let permit = Arc::clone(&self.bytes).acquire_many_owned(self.weight(step)).await.ok()?;
        let slot = self.steps.clone().reserve_owned().await.ok()?;
        Some(Room { slot, permit })
    }
}

/// A place in the channel.
pub(super) struct Room {
    slot: mpsc::OwnedPermit<(Step, OwnedSemaphorePermit)>,
    permit: OwnedSemaphorePermit,
}

impl Room {
    /// Takes the place.
    pub(super) fn send(self, step: Step) {
        self.slot.send((step, self.permit));
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::Lsn;

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
        room.send(refused);
        drop(steps);
        assert_eq!(receiver.ready(), Some(step(2)));
        assert_eq!(receiver.next().await, Some(step(3)));
        assert_eq!(receiver.next().await, None);
    }
}

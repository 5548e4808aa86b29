//! Run, hold, or run to C: the control value of the replication loop.
//!
//! A task that needs apply to stand still (a fence for verify or repair, the last step of a resnapshot) asks for a turn by
//! [`Control::hold`]; [`super::apply_loop`] reads the [`ApplyCommand`] through its [`ApplyPause`] and answers with its
//! position. One turn at a time: others wait for theirs. Dropping the guard of a turn resumes apply, however the turn
//! ended.
//!
//! ```text
//!   Run ──hold()──▶ Hold ──▶ PausedAt P ──run_to(C)──▶ RunTo C ──▶ PausedAt C
//!    ▲                 └──────────── drop ────────────────────┴──────────────┘
//!    └───────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! Every turn has a number of its own, and an answer repeats the command that it answers. So an answer to an earlier
//! turn is never taken for one to this. Bounds: none here; the holder bounds its turn (`fence_timeout`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{Mutex, OwnedMutexGuard, watch};

use crate::apply_core::ApplyCommand;
use crate::pg::Lsn;

/// Where apply stands still, and by which command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PausedAt {
    /// The command that is carried out.
    pub(crate) by: ApplyCommand,
    /// The stored position.
    pub(crate) position: Lsn,
}

/// The stream broke off while apply was to stand still.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the stream broke off")]
pub(crate) struct BrokenOff;

/// The end of those who hold. Cloned freely; lives as long as the stream's attempt.
#[derive(Clone, Debug)]
pub(crate) struct Control {
    command: Arc<watch::Sender<ApplyCommand>>,
    paused_at: watch::Receiver<PausedAt>,
    turns: Arc<AtomicU64>,
    turn: Arc<Mutex<()>>,
}

/// The apply loop's end.
#[derive(Debug)]
pub(crate) struct ApplyPause {
    command: watch::Receiver<ApplyCommand>,
    paused_at: watch::Sender<PausedAt>,
}

/// Both ends, for one stream.
pub(crate) fn control() -> (Control, ApplyPause) {
    let (command, commands) = watch::channel(ApplyCommand::Run);
    let (reports, paused_at) = watch::channel(PausedAt { by: ApplyCommand::Run, position: Lsn::INVALID });
    let control = Control {
        command: Arc::new(command),
        paused_at,
        turns: Arc::new(AtomicU64::new(0)),
        turn: Arc::new(Mutex::new(())),
    };
    (control, ApplyPause { command: commands, paused_at: reports })
}

impl Control {
    /// Waits for its turn, and until apply stands still. Cancel-safe: apply resumes.
    ///
    /// # Errors
    /// [`BrokenOff`] when the stream has ended.
    pub(crate) async fn hold(&self) -> Result<PauseGuard, BrokenOff> {
        let mine = Arc::clone(&self.turn).lock_owned().await;
        let turn = self.turns.fetch_add(1, Ordering::Relaxed);
        let mut held = PauseGuard { control: self.clone(), turn, position: Lsn::INVALID, _mine: mine };
        held.position = held.command(ApplyCommand::Hold { turn }).await?;
        Ok(held)
    }
}

/// Apply stands still until this is dropped.
#[derive(Debug)]
pub(crate) struct PauseGuard {
    control: Control,
    turn: u64,
    position: Lsn,
    _mine: OwnedMutexGuard<()>,
}

impl PauseGuard {
    /// The stored position at which apply stands.
    pub(crate) fn position(&self) -> Lsn {
        self.position
    }

    /// Lets apply run to `point`, and waits until it stands there.
    ///
    /// # Errors
    /// [`BrokenOff`] when the stream has ended.
    pub(crate) async fn run_to(&mut self, point: Lsn) -> Result<(), BrokenOff> {
        self.position = self.command(ApplyCommand::RunTo { turn: self.turn, point }).await?;
        Ok(())
    }

    async fn command(&mut self, command: ApplyCommand) -> Result<Lsn, BrokenOff> {
        self.control.command.send_replace(command);
        let paused_at = self.control.paused_at.wait_for(|paused_at| paused_at.by == command).await;
        paused_at.map(|paused_at| paused_at.position).map_err(|_| BrokenOff)
    }
}

impl Drop for PauseGuard {
    fn drop(&mut self) {
        self.control.command.send_replace(ApplyCommand::Run);
    }
}

impl ApplyPause {
    /// What to do now.
    pub(crate) fn command(&self) -> ApplyCommand {
        *self.command.borrow()
    }

    /// Resolves when there is another command. Cancel-safe.
    pub(crate) async fn changed(&mut self) {
        if self.command.changed().await.is_err() {
            // Nobody is left who could ask for anything.
            std::future::pending().await
        }
    }

    /// Apply stands still, as `by` says.
    pub(crate) fn stands(&self, by: ApplyCommand, position: Lsn) {
        self.paused_at.send_if_modified(|last| {
            let now = PausedAt { by, position };
            let changed = *last != now;
            *last = now;
            changed
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A loop that obeys each command at once.
    async fn obedient(mut apply_pause: ApplyPause, position: Lsn) {
        loop {
            apply_pause.changed().await;
            match apply_pause.command() {
                ApplyCommand::Run => {}
                by @ ApplyCommand::Hold { .. } => apply_pause.stands(by, position),
                by @ ApplyCommand::RunTo { point, .. } => apply_pause.stands(by, point),
            }
        }
    }

    #[tokio::test]
    async fn dropping_a_turn_lets_apply_go_on() {
        let (control, apply_pause) = control();
        let commands = apply_pause.command.clone();
        tokio::spawn(obedient(apply_pause, Lsn::new(10)));
        let mut held = control.hold().await.unwrap();
        assert_eq!(held.position(), Lsn::new(10));
        held.run_to(Lsn::new(20)).await.unwrap();
        assert_eq!(held.position(), Lsn::new(20));
        drop(held);
        assert_eq!(*commands.borrow(), ApplyCommand::Run);
    }

    #[tokio::test]
    async fn a_turn_that_is_given_up_while_waiting_lets_apply_go_on() {
        let (control, apply_pause) = control();
        let waited = tokio::time::timeout(std::time::Duration::from_millis(20), control.hold()).await;
        assert!(waited.is_err(), "nobody answers");
        assert_eq!(apply_pause.command(), ApplyCommand::Run);
    }

    #[tokio::test]
    async fn an_answer_to_an_earlier_turn_is_not_taken_for_one_to_this() {
        let (control, apply_pause) = control();
        apply_pause.stands(ApplyCommand::Hold { turn: 0 }, Lsn::new(1));
        drop(control.hold().await.unwrap());
        let second = tokio::time::timeout(std::time::Duration::from_millis(20), control.hold()).await;
        assert!(second.is_err(), "apply has not said anything to the second turn");
    }

    #[tokio::test]
    async fn turns_come_one_at_a_time_and_end_with_the_stream() {
        let (control, apply_pause) = control();
        let running = tokio::spawn(obedient(apply_pause, Lsn::new(10)));
        let first = control.hold().await.unwrap();
        let second = tokio::time::timeout(std::time::Duration::from_millis(20), control.hold()).await;
        assert!(second.is_err(), "the first turn is not over");
        drop(first);
        let mut second = control.hold().await.unwrap();
        running.abort();
        assert!(running.await.is_err());
        assert_eq!(second.run_to(Lsn::new(30)).await, Err(BrokenOff));
    }
}

//! Run, hold, or run to a point: what apply is to do.
//!
//! Given by `apply_worker::pause` to the apply loop, which reads it before each decision. Plain data.

use crate::pg::Lsn;

/// What apply is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApplyCommand {
    /// Apply what comes.
    Run,
    /// Begin nothing more: answer what is under way, and stand still.
    Hold {
        /// Whose turn it is.
        turn: u64,
    },
    /// Apply every transaction with commit_lsn before `point` and none other, and stand still.
    RunTo {
        /// Whose turn it is.
        turn: u64,
        /// A slot's consistent point.
        point: Lsn,
    },
}

impl ApplyCommand {
    /// Nothing that committed at or behind this may be handed out.
    pub fn fence(self) -> Option<Lsn> {
        match self {
            ApplyCommand::RunTo { point, .. } => Some(point),
            ApplyCommand::Run | ApplyCommand::Hold { .. } => None,
        }
    }
}

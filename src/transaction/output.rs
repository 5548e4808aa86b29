//! What the assembler gives out: steps for the destination, and orders for the spool between them.
//!
//! Taken by `source`, which passes either on in their order. Plain data.

use crate::transaction::change::Step;
use crate::transaction::spool_order::SpoolOrder;

/// What the assembler hands out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// For the channel to `apply_plan`.
    Step(Step),
    /// For `spool`: it concerns a transaction that arrives before it commits.
    Spool(SpoolOrder),
}

//! What an expression is for, which decides what is allowed in it.
//!
//! Named by the caller that passes an expression in; asked by `check` and [`super::catalog`]. Plain data.

/// What an expression is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A check, a predicate, an index or a generated column: what it returns must depend on the row alone.
    ///
    /// At least one variant of a function or operator must be immutable, none volatile. Which variant is meant follows from the
    /// types: for indexes and generated columns the server refuses one that is only stable, in a check PostgreSQL allows it.
    Immutable,
    /// A default: evaluated where a row is inserted, so it may depend on settings, on the clock and on chance.
    Default,
}

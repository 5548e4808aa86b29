//! Expressions of the source's catalog: defaults, checks, generated columns, indexes, domains.
//!
//! They come as SQL text from a server that may be hostile, and are to become part of statements that run at the destination
//! with headwater's rights. So the text itself is never sent anywhere:
//!
//! ```text
//! text ── lexer, parser ──▶ tree ── check against the destination's catalog ──▶ printer ──▶ SQL of our own
//! ```
//!
//! What the grammar does not know, or what uses anything that is not listed as harmless, is not taken over, and the operator
//! is told. Asked by `plan::sql` and `destination::schema`. Pure: what the destination has is read by
//! `destination::expressions`.

pub mod catalog;
mod check;
pub mod lexer;
mod parser;
mod printer;
#[cfg(test)]
mod tests;
pub mod tree;
mod types;

use std::collections::BTreeSet;
use std::sync::Arc;

pub use catalog::Catalog;
pub use check::{BOOLEAN, Refusal, Scope};
pub use parser::parse;

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

/// Decides on expressions for one destination.
#[derive(Clone, Debug)]
pub struct Expressions {
    catalog: Arc<Catalog>,
}

impl Expressions {
    /// For a destination that has this.
    pub fn new(catalog: Catalog) -> Expressions {
        Expressions { catalog: Arc::new(catalog) }
    }

    /// The expression as SQL for the destination.
    ///
    /// # Errors
    /// [`Refusal`]: it is not taken over.
    pub fn accept(&self, text: &str, purpose: Purpose, scope: &Scope<'_>) -> Result<String, Refusal> {
        let expression = parse(text).ok_or(Refusal::NotUnderstood)?;
        check::check(&expression, &self.catalog, scope, purpose)?;
        Ok(expression.to_string())
    }

    /// The destination's `server_version_num`.
    pub fn version(&self) -> u32 {
        self.catalog.version
    }

    /// The functions that accepted expressions may call, by the destination's OIDs.
    pub fn functions(&self) -> BTreeSet<u32> {
        self.catalog.allowed_functions()
    }
}

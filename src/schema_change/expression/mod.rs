//! Expressions of the source's catalog: defaults, checks, generated columns, indexes, domains.
//!
//! They come as SQL text from a server that may be hostile, and are to become part of statements that run at the destination
//! with headwater's rights. So the text itself is never sent anywhere:
//!
//! ```text
//! text ── lexer, parser ──▶ tree ── check against the destination's catalog ──▶ printer ──▶ SQL of our own
//! ```
//!
//! An expression that the grammar does not know, or that uses anything not listed as harmless, is not taken over, and the
//! operator gets a report. Asked by `sql` and `destination::schema`. Pure: what the destination has is read by
//! `destination::expressions`.

pub mod catalog;
mod check;
pub mod lexer;
mod parser;
mod printer;
pub mod purpose;
#[cfg(test)]
mod tests;
pub mod tree;
mod types;

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::schema_change::expression::purpose::Purpose;

pub use catalog::ExpressionCatalog;
pub use check::{BOOLEAN, ExpressionScope, Refusal};
pub use parser::parse;

/// Decides on expressions for one destination.
#[derive(Clone, Debug)]
pub struct Expressions {
    catalog: Arc<ExpressionCatalog>,
}

impl Expressions {
    /// For a destination that has this.
    pub fn new(catalog: ExpressionCatalog) -> Expressions {
        Expressions { catalog: Arc::new(catalog) }
    }

    /// The expression as SQL for the destination.
    ///
    /// # Errors
    /// [`Refusal`]: it is not taken over.
    pub fn accept(&self, text: &str, purpose: Purpose, scope: &ExpressionScope<'_>) -> Result<String, Refusal> {
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

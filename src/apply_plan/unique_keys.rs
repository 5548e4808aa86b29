//! Unique keys that both ends have, as far as the source's rows may win by them.
//!
//! Found by [`super::source_wins`], written as SQL by [`super::source_wins_sql`]. Plain data.

use crate::pg::{Ident, QualifiedName};

/// A unique key that both ends have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unique {
    /// Its parts.
    pub parts: Vec<UniquePart>,
    /// WHERE, as SQL of the destination's catalog.
    pub predicate: Option<String>,
    /// NULLS NOT DISTINCT
    pub nulls_not_distinct: bool,
}

/// A part of a unique key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UniquePart {
    /// A column.
    Column {
        /// Its name.
        name: Ident,
        /// The operator that finds equal values.
        equality: Option<QualifiedName>,
    },
    /// An expression.
    Expression {
        /// SQL of the destination's catalog.
        sql: String,
        /// The operator that finds equal values.
        equality: Option<QualifiedName>,
    },
}

impl UniquePart {
    /// The operator that finds equal values.
    pub fn equality(&self) -> QualifiedName {
        let (UniquePart::Column { equality, .. } | UniquePart::Expression { equality, .. }) = self;
        equality.clone().unwrap_or_else(|| QualifiedName::new("pg_catalog", "="))
    }
}

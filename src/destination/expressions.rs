//! What the destination has of what expressions may use.
//!
//! Asked once by each caller that creates something from the source's definitions, on an ordinary session ([`read`]) or on
//! the writing session, which takes no parameters ([`ask`], [`parse`]). [`crate::schema_change::expression`] judges the answer.

use super::error::DestinationError;
use crate::pg::quote_literal;
use crate::schema_change::expression::Expressions;
use crate::schema_change::expression::catalog::{ExpressionCatalog, FUNCTIONS};
use crate::session::{SessionError, SqlClient, fill_in};

const CATALOG: &str = include_str!("../../sql/expression_catalog.sql");

const DOING: &str = "reading what expressions may use";

/// Reads it.
///
/// # Errors
/// [`DestinationError`].
pub async fn read(client: &SqlClient) -> Result<Expressions, DestinationError> {
    let names: Vec<&str> = FUNCTIONS.keys().copied().collect();
    let row = client.query_one(DOING, CATALOG, &[&names]).await?;
    parse(row.get(0)?)
}

/// The question for a session that takes no parameters; the answer is a row of one text, for [`parse`].
pub(super) fn ask() -> String {
    let names: Vec<String> = FUNCTIONS.keys().map(|name| quote_literal(name)).collect();
    fill_in(CATALOG, &[format!("ARRAY[{}]", names.join(", "))])
}

/// Reads the answer.
///
/// # Errors
/// [`DestinationError`] when it is none.
pub(super) fn parse(text: &str) -> Result<Expressions, DestinationError> {
    let catalog: ExpressionCatalog =
        serde_json::from_str(text).map_err(|error| SessionError::from_json(DOING, &error))?;
    Ok(Expressions::new(catalog))
}

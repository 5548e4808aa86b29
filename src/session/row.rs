//! A row that answers a question of a SQL session, read column by column.
//!
//! In come tokio-postgres' rows, out go values, for callers of [`crate::session::sql::SqlClient`]. A server may answer with anything:
//! NULL where there is always a value, a text where a number stands, bytes of another length. tokio-postgres' own `Row::get` panics
//! then, so nothing calls it (clippy.toml). [`Row::get`] gives an error that names the question and the column, and never the value.

use std::str::FromStr;

use tokio_postgres::types::{FromSql, WasNull, WrongType};

use super::error::SessionError;

/// A row of an answer.
pub struct Row {
    doing: &'static str,
    row: tokio_postgres::Row,
}

impl Row {
    pub(super) fn new(doing: &'static str, row: tokio_postgres::Row) -> Row {
        Row { doing, row }
    }

    /// The value of a column, counted from 0. What may be NULL is asked for as an `Option`.
    ///
    /// # Errors
    /// [`SessionError::Answer`] when there is no such value.
    pub fn get<'a, T: FromSql<'a>>(&'a self, column: usize) -> Result<T, SessionError> {
        self.row.try_get(column).map_err(|error| self.not_understood(column, &error))
    }

    /// The value of a text column, as what it says.
    ///
    /// # Errors
    /// [`SessionError::Answer`] when there is no such value, or it says something else.
    pub fn parse<T: FromStr>(&self, column: usize) -> Result<T, SessionError> {
        let parsed = self.get::<&str>(column)?.parse();
        parsed.map_err(|_| SessionError::answer(self.doing, format!("column {} is malformed", column + 1)))
    }

    /// The same, where it may be NULL.
    ///
    /// # Errors
    /// [`SessionError::Answer`] when there is no such column, or it says something else.
    pub fn parse_nullable<T: FromStr>(&self, column: usize) -> Result<Option<T>, SessionError> {
        let text = self.get::<Option<&str>>(column)?;
        text.map(|_| self.parse(column)).transpose()
    }

    /// All columns, which are texts or NULL.
    ///
    /// # Errors
    /// [`SessionError::Answer`] when one is not.
    pub fn texts(&self) -> Result<Vec<Option<String>>, SessionError> {
        (0..self.row.len()).map(|column| self.get(column)).collect()
    }

    fn not_understood(&self, column: usize, error: &tokio_postgres::Error) -> SessionError {
        let cause = std::error::Error::source(error);
        // The cause of anything else may quote the value.
        let what = match cause {
            None => "is missing",
            Some(cause) if cause.is::<WasNull>() => "is NULL",
            Some(cause) if cause.is::<WrongType>() => "is of another type than was asked for",
            Some(_) => "is malformed",
        };
        SessionError::answer(self.doing, format!("column {} {what}", column + 1))
    }
}

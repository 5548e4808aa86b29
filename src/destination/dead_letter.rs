//! headwater.skip and headwater.dead_letter: transactions that an operator wants left out, and those that were.
//!
//! The command `skip` writes a wish; `apply` meets the transaction, writes it as a letter instead of applying it, and
//! takes the wish back, all in the transaction that moves the position past it. The commands `dead-letter` and
//! `replay` read the letters and apply them.
//!
//! ```text
//! headwater skip ──▶ headwater.skip ──read at the start of an attempt──▶ apply: the transaction is left out
//!                                                                          │ same destination transaction
//! headwater dead-letter show, replay ◀── headwater.dead_letter ◀───────────┘
//! ```
//!
//! A transaction has two names: its end_lsn, and its commit_lsn, by which one that comes in pieces is known before its
//! end. Both are unique among transactions, but not across each other, so they are kept apart.

use std::collections::BTreeSet;

use super::error::DestinationError;
use crate::pg::{ErrorReport, Lsn, PgTimestamp, TypeId};
use crate::session::{Format, PipelinedRequest, Row, SessionError, SqlClient, StatementName};
use crate::transaction::{Change, read_letter, write_letter};

/// How an operator names a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum WantedLetters {
    /// By its commit_lsn.
    CommitLsn(Lsn),
    /// By its end_lsn.
    EndLsn(Lsn),
}

impl WantedLetters {
    /// The position in the name.
    pub const fn lsn(self) -> Lsn {
        match self {
            WantedLetters::CommitLsn(lsn) | WantedLetters::EndLsn(lsn) => lsn,
        }
    }

    /// The column of both tables that holds it.
    const fn column(self) -> &'static str {
        match self {
            WantedLetters::CommitLsn(_) => "commit_lsn",
            WantedLetters::EndLsn(_) => "end_lsn",
        }
    }
}

impl std::fmt::Display for WantedLetters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.column(), self.lsn())
    }
}

/// The transactions that are to be left out; `left_out` is the commit_lsn of one that is known by its end_lsn there.
///
/// # Errors
/// [`DestinationError`].
pub async fn skips(client: &SqlClient, left_out: Option<Lsn>) -> Result<BTreeSet<WantedLetters>, DestinationError> {
    let sql = "SELECT commit_lsn::text, end_lsn::text FROM headwater.skip";
    let rows = client.query("reading headwater.skip", sql, &[]).await?;
    let wanted = rows.iter().filter_map(|row| wanted(row).transpose());
    Ok(wanted.chain(left_out.map(|left_out| Ok(WantedLetters::CommitLsn(left_out)))).collect::<Result<_, _>>()?)
}

/// What a row of headwater.skip asks for, by its first two columns; nothing where it names no position.
fn wanted(row: &Row) -> Result<Option<WantedLetters>, SessionError> {
    let lsn = |text: Option<&str>| text.and_then(|text| text.parse::<Lsn>().ok());
    let (commit_lsn, end_lsn) = (lsn(row.get(0)?), lsn(row.get(1)?));
    Ok(commit_lsn.map(WantedLetters::CommitLsn).or(end_lsn.map(WantedLetters::EndLsn)))
}

/// A transaction that an operator wants skipped and that has not come yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PendingSkip {
    /// Which transaction.
    pub wanted: WantedLetters,
    /// When it was asked for, as text.
    pub requested_at: String,
    /// The role that asked.
    pub requested_by: String,
}

/// The transactions that are still to be skipped, oldest wish first.
///
/// # Errors
/// [`DestinationError`].
pub async fn pending_skips(client: &SqlClient) -> Result<Vec<PendingSkip>, DestinationError> {
    let sql = "SELECT commit_lsn::text, end_lsn::text, requested_at::text, requested_by
               FROM headwater.skip ORDER BY requested_at";
    let rows = client.query("reading headwater.skip", sql, &[]).await?;
    let mut pending = Vec::new();
    for row in &rows {
        if let Some(wanted) = wanted(row)? {
            pending.push(PendingSkip { wanted, requested_at: row.get(2)?, requested_by: row.get(3)? });
        }
    }
    Ok(pending)
}

/// Asks for a transaction to be left out when it comes.
///
/// # Errors
/// [`DestinationError`]; also when it was applied already.
pub async fn request_skip(client: &SqlClient, wanted: WantedLetters) -> Result<(), DestinationError> {
    let sql = "SELECT position::text FROM headwater.position";
    let row = client.query_opt("reading headwater.position", sql, &[]).await?;
    let position: Option<Lsn> = row.map(|row| row.parse(0)).transpose()?;
    if let Some(position) = position.filter(|position| wanted.lsn() <= *position) {
        return Err(DestinationError::Refused(
            ErrorReport::new(format!("the source transaction with {wanted} was applied already"))
                .detail(format!("The destination stands at {position}."))
                .hint("Give the end_lsn of the transaction that the service names in its conflict."),
        ));
    }
    let sql = format!(
        "INSERT INTO headwater.skip ({}) VALUES ($1::text::pg_catalog.pg_lsn) ON CONFLICT DO NOTHING",
        wanted.column()
    );
    client.execute("writing headwater.skip", &sql, &[&wanted.lsn().to_string()]).await?;
    Ok(())
}

/// A transaction that is being left out, or a part of it.
pub(super) struct Letter<'a> {
    pub(super) commit_lsn: Lsn,
    /// `None` for a part that is not the only one.
    pub(super) end_lsn: Option<Lsn>,
    pub(super) part: u32,
    pub(super) committed_at: PgTimestamp,
    pub(super) xid: u32,
    pub(super) changes: &'a [Change],
}

/// pg_lsn, int4, timestamptz, int8, _text, bytea
const TYPES: [TypeId; 8] =
    [TypeId(3220), TypeId(23), TypeId(3220), TypeId(1184), TypeId(20), TypeId(20), TypeId(1009), TypeId(17)];

/// Writes the letter into a pipelined request.
pub(super) fn write(request: &mut PipelinedRequest, letter: &Letter<'_>) {
    request.parse(
        "",
        "INSERT INTO headwater.dead_letter (commit_lsn, part, end_lsn, committed_at, xid, changes, tables, letter) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        &TYPES,
    );
    let tables: BTreeSet<String> = letter.changes.iter().flat_map(tables_of).collect();
    let tables: Vec<String> = tables.iter().map(|name| array_element(name)).collect();
    let count = u64::try_from(letter.changes.len()).unwrap_or(u64::MAX);
    let bytes = write_letter(letter.changes);
    let formats = [[Format::Text; 7].as_slice(), &[Format::Binary]].concat();
    request.execute(StatementName::UNNAMED, &formats, TYPES.len(), |values| {
        let mut text = |value: Option<String>| values.put(value.as_deref().map(str::as_bytes));
        text(Some(letter.commit_lsn.to_string()));
        text(Some(letter.part.to_string()));
        text(letter.end_lsn.map(|lsn| lsn.to_string()));
        text(Some(timestamp(letter.committed_at)));
        text(Some(letter.xid.to_string()));
        text(Some(count.to_string()));
        text(Some(format!("{{{}}}", tables.join(","))));
        values.put(Some(&bytes));
    });
}

/// Ends the leaving out: the parts get their end_lsn, and the wish is granted.
pub(super) fn finish(request: &mut PipelinedRequest, commit_lsn: Lsn, end_lsn: Lsn) {
    // Positions are numbers as text: nothing in them needs quoting.
    request.run(&format!(
        "UPDATE headwater.dead_letter SET end_lsn = '{end_lsn}' WHERE commit_lsn = '{commit_lsn}' AND end_lsn IS NULL"
    ));
    request.run(&format!("DELETE FROM headwater.skip WHERE commit_lsn = '{commit_lsn}' OR end_lsn = '{end_lsn}'"));
}

/// PostgreSQL reads it whatever DateStyle is set.
fn timestamp(at: PgTimestamp) -> String {
    let micros = at.as_unix_micros();
    let seconds = u64::try_from(micros.max(0)).unwrap_or(0);
    let at = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_micros(seconds);
    humantime::format_rfc3339_micros(at).to_string()
}

fn tables_of(change: &Change) -> Vec<String> {
    change.relations().iter().map(|relation| relation.name.to_string()).collect()
}

fn array_element(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

/// A transaction in headwater.dead_letter, without its changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// Its commit_lsn.
    pub commit_lsn: Lsn,
    /// Its end_lsn.
    pub end_lsn: Lsn,
    /// When it was committed at the source, as text.
    pub committed_at: String,
    /// When it was left out, as text.
    pub moved_at: String,
    /// How many changes it has.
    pub changes: i64,
    /// The tables that it changes.
    pub tables: Vec<String>,
}

/// What was left out, oldest first.
///
/// # Errors
/// [`DestinationError`].
pub async fn dead_letters(client: &SqlClient) -> Result<Vec<DeadLetter>, DestinationError> {
    let sql = "SELECT commit_lsn::text, pg_catalog.max(end_lsn)::text, pg_catalog.min(committed_at)::text,
                      pg_catalog.max(moved_at)::text, pg_catalog.sum(changes)::bigint,
                      ARRAY(SELECT DISTINCT t FROM headwater.dead_letter p, pg_catalog.unnest(p.tables) AS t
                            WHERE p.commit_lsn = d.commit_lsn AND t IS NOT NULL ORDER BY t)
               FROM headwater.dead_letter d GROUP BY commit_lsn ORDER BY commit_lsn";
    let rows = client.query("reading headwater.dead_letter", sql, &[]).await?;
    let lsn = |text: Option<&str>| text.and_then(|text| text.parse().ok()).unwrap_or_default();
    rows.iter()
        .map(|row| {
            Ok(DeadLetter {
                commit_lsn: lsn(row.get(0)?),
                end_lsn: lsn(row.get(1)?),
                committed_at: row.get::<Option<String>>(2)?.unwrap_or_default(),
                moved_at: row.get::<Option<String>>(3)?.unwrap_or_default(),
                changes: row.get::<Option<i64>>(4)?.unwrap_or_default(),
                tables: row.get(5)?,
            })
        })
        .collect()
}

/// How many parts a dead letter has; 0 when there is none of that name.
///
/// # Errors
/// [`DestinationError`].
pub async fn parts(client: &SqlClient, wanted: WantedLetters) -> Result<i32, DestinationError> {
    let sql = format!(
        "SELECT COALESCE(pg_catalog.max(part), 0) FROM headwater.dead_letter WHERE {} = $1::text::pg_catalog.pg_lsn",
        wanted.column()
    );
    let row = client.query_one("reading headwater.dead_letter", &sql, &[&wanted.lsn().to_string()]).await?;
    Ok(row.get(0)?)
}

/// The changes of one part of a dead letter.
///
/// # Errors
/// [`DestinationError`]; also when it is damaged.
pub async fn read_part(client: &SqlClient, wanted: WantedLetters, part: i32) -> Result<Vec<Change>, DestinationError> {
    let sql = format!(
        "SELECT letter FROM headwater.dead_letter WHERE {} = $1::text::pg_catalog.pg_lsn AND part = $2",
        wanted.column()
    );
    let row = client.query_one("reading a dead letter", &sql, &[&wanted.lsn().to_string(), &part]).await?;
    read_letter(row.get(0)?).map_err(|error| {
        DestinationError::Refused(ErrorReport::new(format!(
            "part {part} of the dead letter with {wanted} cannot be read: {error}"
        )))
    })
}

/// The statement that removes a dead letter, for the transaction that has applied it.
pub(super) fn remove(wanted: WantedLetters) -> String {
    format!("DELETE FROM headwater.dead_letter WHERE {} = '{}'", wanted.column(), wanted.lsn())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_tables_survive_an_array() {
        assert_eq!(array_element("public.\"a\\b\""), r#""public.\"a\\b\"""#);
    }

    #[test]
    fn a_commit_time_is_written_as_postgresql_reads_it() {
        assert_eq!(timestamp(PgTimestamp::from_unix_micros(1_700_000_000_000_001)), "2023-11-14T22:13:20.000001Z");
    }
}

//! Changes as lines for people: which rows of which tables, and on request their values.
//!
//! Used by the command `dead-letter show`. Values are shown only because an operator asks for them, and only to that
//! operator; no log, error or page calls this. How a binary value reads is asked of the server, which knows all types.

use super::error::DestinationError;
use super::leadership::{Candidate, WritingSettings};
use crate::pg::{Datum, Relation, Tuple, TypeId};
use crate::session::{Flight, Format, SessionError, StatementAnswer};
use crate::transaction::Change;
use crate::wire::OldTuple;

/// The changes by table and operation, without values.
pub fn describe(changes: &[Change]) -> Vec<String> {
    changes.iter().map(|change| line(change, &mut |relation, tuple| columns(relation, tuple))).collect()
}

fn columns(relation: &Relation, tuple: &Tuple) -> String {
    let sent = tuple.columns().zip(&relation.columns).filter(|(value, _)| *value != Datum::UnchangedToast);
    let names: Vec<String> = sent.map(|(_, column)| column.name.to_string()).collect();
    format!("({})", names.join(", "))
}

/// The changes with their values.
///
/// # Errors
/// [`DestinationError`] when the server cannot be asked.
pub async fn describe_with_values(
    settings: &WritingSettings,
    changes: &[Change],
) -> Result<Vec<String>, DestinationError> {
    const CHANGES_AT_ONCE: usize = 500;
    let (mut session, _) = Candidate::connect(settings).await?.into_session().await?;
    let mut lines = Vec::new();
    for some in changes.chunks(CHANGES_AT_ONCE) {
        let mut flight = Flight::new();
        for change in some {
            line(change, &mut |relation, tuple| {
                ask(&mut flight, relation, tuple);
                String::new()
            });
        }
        session.send(flight);
        let answer = tokio::time::timeout(settings.timeout, session.answer()).await;
        let doing = "asking how values read";
        let answer = answer.map_err(|_| SessionError::Timeout { doing, within: settings.timeout })??;
        if let Some((_, error)) = answer.failure {
            return Err(SessionError::Server { doing, error: Box::new(error) }.into());
        }
        let mut rows = answer.answers.into_iter().map(|answer| match answer {
            StatementAnswer::Row(row) => row.unwrap_or_default(),
            StatementAnswer::Count(_) => Vec::new(),
        });
        let mut shown = |relation: &Relation, tuple: &Tuple| {
            let mut read = rows.next().unwrap_or_default().into_iter();
            let values = tuple.columns().zip(&relation.columns).map(|(value, column)| {
                let name = &column.name;
                match value {
                    Datum::UnchangedToast => format!("{name} unchanged"),
                    Datum::Null => format!("{name} = NULL"),
                    Datum::Text(value) => format!("{name} = {}", literal(&String::from_utf8_lossy(value))),
                    Datum::Binary(value) if column.type_id.is_built_in() => {
                        let text = read.next().flatten().unwrap_or_else(|| format!("{} bytes", value.len()));
                        format!("{name} = {}", literal(&text))
                    }
                    Datum::Binary(value) => format!("{name} = '\\x{}'", hex(value)),
                }
            });
            format!("({})", values.collect::<Vec<_>>().join(", "))
        };
        lines.extend(some.iter().map(|change| line(change, &mut shown)));
    }
    session.close().await;
    Ok(lines)
}

/// A change as a line; `row` says what is said of a row, old ones first.
fn line(change: &Change, row: &mut dyn FnMut(&Relation, &Tuple) -> String) -> String {
    match change {
        Change::Insert { relation, new } => format!("insert into {}: {}", relation.name, row(relation, new)),
        Change::Update { relation, old: Some(old), new } => {
            let old = row(relation, OldTuple::tuple(old));
            format!("update {}: old {old}, new {}", relation.name, row(relation, new))
        }
        Change::Update { relation, old: None, new } => format!("update {}: {}", relation.name, row(relation, new)),
        Change::Delete { relation, old } => {
            format!("delete from {}: {}", relation.name, row(relation, OldTuple::tuple(old)))
        }
        Change::Truncate { relations, restart_identity } => {
            let names: Vec<String> = relations.iter().map(|relation| relation.name.to_string()).collect();
            let restart = if *restart_identity { " restart identity" } else { "" };
            format!("truncate {}{restart}", names.join(", "))
        }
    }
}

/// Asks how the binary values of built-in types read.
fn ask(flight: &mut Flight, relation: &Relation, tuple: &Tuple) {
    let values = tuple.columns().zip(&relation.columns).filter_map(|(value, column)| match value {
        Datum::Binary(value) if column.type_id.is_built_in() => Some((value, column.type_id)),
        Datum::Binary(_) | Datum::Null | Datum::Text(_) | Datum::UnchangedToast => None,
    });
    let values: Vec<(&[u8], TypeId)> = values.collect();
    let types: Vec<TypeId> = values.iter().map(|(_, id)| *id).collect();
    let asked: Vec<String> = (1..=values.len()).map(|n| format!("${n}::pg_catalog.text")).collect();
    flight.parse("", &format!("SELECT {}", asked.join(", ")), &types);
    flight.execute_returning("", &[Format::Binary], values.len(), |parameters| {
        values.iter().for_each(|(value, _)| parameters.put(Some(value)));
    });
}

/// A value as SQL would quote it, on one line.
fn literal(text: &str) -> String {
    let quoted = crate::pg::quote_literal(text);
    quoted.chars().map(|c| if c.is_control() { c.escape_default().to_string() } else { c.to_string() }).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;

    use super::*;
    use crate::pg::{Column, Ident, QualifiedName, RelationId, ReplicaIdentity};

    #[test]
    fn without_being_asked_no_value_is_shown() {
        let column = |name: &str| Column {
            name: Ident::new(name),
            in_identity: name == "id",
            type_id: TypeId(25),
            type_modifier: -1,
        };
        let relation = Arc::new(Relation {
            id: RelationId(1),
            name: QualifiedName::new("public", "t"),
            replica_identity: ReplicaIdentity::Default,
            columns: vec![column("id"), column("Body")],
        });
        let tuple = |data: &'static [u8]| Tuple::new(2, Bytes::from_static(data)).unwrap();
        let changes = [
            Change::Insert { relation: Arc::clone(&relation), new: tuple(b"t\0\0\0\x06s3cretn") },
            Change::Update { relation: Arc::clone(&relation), old: None, new: tuple(b"t\0\0\0\x06s3cretu") },
            Change::Truncate { relations: vec![relation], restart_identity: true },
        ];
        assert_eq!(
            describe(&changes),
            ["insert into public.t: (id, \"Body\")", "update public.t: (id)", "truncate public.t restart identity"]
        );
    }

    #[test]
    fn a_value_stays_on_its_line() {
        assert_eq!(literal("it's\n\x1b[31m"), "'it''s\\n\\u{1b}[31m'");
    }
}

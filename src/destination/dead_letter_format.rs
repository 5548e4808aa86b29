//! Changes as lines for people: which rows of which tables, and on request their values.
//!
//! Used by the commands `dead-letter show` and `conflict show`. Values are shown only because an operator asks for them,
//! and only to that operator; no log, error or page calls this.

use std::sync::Arc;

use super::error::DestinationError;
use super::row_values::{ShownChange, ShownRow, ShownValue, shown_changes};
use super::writer::WritingSettings;
use crate::pg::{Datum, Ident, Relation, Tuple, shown_literal};
use crate::session::SqlClient;
use crate::transaction::{Change, RowChange};
use crate::wire::OldTuple;

/// The changes by table and operation, without values.
pub fn describe(changes: &[Change]) -> Vec<String> {
    changes.iter().map(line).collect()
}

fn line(change: &Change) -> String {
    match change {
        Change::Row(row) => row_line(row),
        Change::Truncate { relations, restart_identity } => truncate_line(relations, *restart_identity),
    }
}

fn row_line(change: &RowChange) -> String {
    match change {
        RowChange::Insert { relation, new } => {
            format!("insert into {}: {}", relation.name, columns(relation, new, false))
        }
        RowChange::Update { relation, old, new } => {
            let new = columns(relation, new, false);
            match old {
                Some(old) => format!("update {}: old {}, new {new}", relation.name, old_columns(relation, old)),
                None => format!("update {}: {new}", relation.name),
            }
        }
        RowChange::Delete { relation, old } => {
            format!("delete from {}: {}", relation.name, old_columns(relation, old))
        }
    }
}

fn old_columns(relation: &Relation, old: &OldTuple) -> String {
    columns(relation, old.tuple(), matches!(old, OldTuple::Key(_)))
}

fn columns(relation: &Relation, tuple: &Tuple, only_identity: bool) -> String {
    let sent = tuple
        .columns()
        .zip(&relation.columns)
        .filter(|(value, column)| *value != Datum::UnchangedToast && (column.in_identity || !only_identity));
    let names: Vec<String> = sent.map(|(_, column)| column.name.to_string()).collect();
    format!("({})", names.join(", "))
}

fn truncate_line(relations: &[Arc<Relation>], restart_identity: bool) -> String {
    let names: Vec<String> = relations.iter().map(|relation| relation.name.to_string()).collect();
    let restart = if restart_identity { " restart identity" } else { "" };
    format!("truncate {}{restart}", names.join(", "))
}

/// The changes with their values; of an update whose old row is known, the key and the columns that changed.
///
/// # Errors
/// [`DestinationError`] when the server cannot be asked.
pub async fn describe_with_values(
    client: &SqlClient,
    settings: &WritingSettings,
    changes: &[Change],
) -> Result<Vec<String>, DestinationError> {
    let shown = shown_changes(client, settings, changes).await?;
    Ok(changes.iter().zip(&shown).map(|(change, shown)| line_with_values(change, shown)).collect())
}

fn line_with_values(change: &Change, shown: &ShownChange) -> String {
    match change {
        Change::Row(row) => row_line_with_values(row, shown),
        Change::Truncate { relations, restart_identity } => truncate_line(relations, *restart_identity),
    }
}

fn row_line_with_values(change: &RowChange, shown: &ShownChange) -> String {
    match (change, shown) {
        (RowChange::Insert { relation, .. }, ShownChange::Insert(row)) => {
            format!("insert into {}: {}", relation.name, row_text(row))
        }
        (
            RowChange::Update { relation, old: Some(OldTuple::Row(_)), .. },
            ShownChange::Update { old: Some(old), new },
        ) => {
            format!("update {}: {}", relation.name, changed_text(relation, old, new))
        }
        (RowChange::Update { relation, .. }, ShownChange::Update { old: Some(old), new }) => {
            format!("update {}: old {}, new {}", relation.name, row_text(old), row_text(new))
        }
        (RowChange::Update { relation, .. }, ShownChange::Update { old: None, new }) => {
            format!("update {}: {}", relation.name, row_text(new))
        }
        (RowChange::Delete { relation, .. }, ShownChange::Delete(row)) => {
            format!("delete from {}: {}", relation.name, row_text(row))
        }
        (change, _) => row_line(change),
    }
}

/// The old row, and the columns in which the new one differs; the old row identifies it (replica identity full).
fn changed_text(relation: &Relation, old: &ShownRow, new: &ShownRow) -> String {
    let changed: Vec<String> = old
        .iter()
        .zip(new)
        .filter(|((_, old), (_, new))| old != new && *new != ShownValue::Unchanged)
        .map(|((name, old), (_, new))| format!("{name} {} -> {}", value_text(old), value_text(new)))
        .collect();
    let key: Vec<&(Ident, ShownValue)> = old
        .iter()
        .zip(&relation.columns)
        .filter(|((name, old), _)| {
            new.iter().any(|(other, new)| name == other && (old == new || *new == ShownValue::Unchanged))
        })
        .map(|(column, _)| column)
        .collect();
    let key: Vec<String> = key.iter().map(|(name, value)| format!("{name} = {}", value_text(value))).collect();
    format!("({}), where ({})", changed.join(", "), key.join(", "))
}

/// A row as `(id = '1', body = 'text')`.
pub fn row_text(row: &ShownRow) -> String {
    let values = row.iter().map(|(name, value)| match value {
        ShownValue::Unchanged => format!("{name} unchanged"),
        ShownValue::Null | ShownValue::Text(_) | ShownValue::Unreadable(_) => format!("{name} = {}", value_text(value)),
    });
    format!("({})", values.collect::<Vec<_>>().join(", "))
}

fn value_text(value: &ShownValue) -> String {
    match value {
        ShownValue::Unchanged => "unchanged".to_owned(),
        ShownValue::Null => "NULL".to_owned(),
        ShownValue::Text(text) => shown_literal(text),
        ShownValue::Unreadable(digits) => format!("'\\x{digits}'"),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;

    use super::*;
    use crate::pg::{Column, QualifiedName, RelationId, ReplicaIdentity, TypeId};

    fn relation() -> Arc<Relation> {
        let column = |name: &str| Column {
            name: Ident::new(name),
            in_identity: name == "id",
            type_id: TypeId(25),
            type_modifier: -1,
        };
        Arc::new(Relation {
            leaves: Default::default(),
            id: RelationId(1),
            name: QualifiedName::new("public", "t"),
            replica_identity: ReplicaIdentity::Default,
            columns: vec![column("id"), column("Body")],
        })
    }

    fn tuple(data: &'static [u8]) -> Tuple {
        Tuple::new(2, Bytes::from_static(data)).unwrap()
    }

    #[test]
    fn without_being_asked_no_value_is_shown() {
        let relation = relation();
        let changes = [
            Change::Row(RowChange::Insert { relation: Arc::clone(&relation), new: tuple(b"t\0\0\0\x06s3cretn") }),
            Change::Row(RowChange::Update {
                relation: Arc::clone(&relation),
                old: None,
                new: tuple(b"t\0\0\0\x06s3cretu"),
            }),
            Change::Row(RowChange::Delete {
                relation: Arc::clone(&relation),
                old: OldTuple::Key(tuple(b"t\0\0\0\x06s3cretn")),
            }),
            Change::Truncate { relations: vec![relation], restart_identity: true },
        ];
        assert_eq!(
            describe(&changes),
            [
                "insert into public.t: (id, \"Body\")",
                "update public.t: (id)",
                "delete from public.t: (id)",
                "truncate public.t restart identity"
            ]
        );
    }

    #[test]
    fn an_update_with_its_old_row_shows_only_what_changed() {
        let text = |text: &str| ShownValue::Text(text.to_owned());
        let row = |id: &str, body: ShownValue| vec![(Ident::new("id"), text(id)), (Ident::new("Body"), body)];
        let old = row("1", text("old"));
        let shown = changed_text(&relation(), &old, &row("1", ShownValue::Null));
        assert_eq!(shown, "(\"Body\" 'old' -> NULL), where (id = '1')");
        let shown = changed_text(&relation(), &old, &row("2", ShownValue::Unchanged));
        assert_eq!(shown, "(id '1' -> '2'), where (\"Body\" = 'old')");
    }

    #[test]
    fn a_value_stays_on_its_line() {
        assert_eq!(shown_literal("it's\n\x1b[31m"), "E'it''s\\u000a\\u001b[31m'");
    }
}

//! What to tell the operator of a conflict: what stands in the way, and every way out of it.
//!
//! Asked by `report`. The message is the manual of a bad night: it names the table, the constraint, the key's columns
//! and the transaction, never a value. Since headwater tries again by itself, the operator only has to fix the row.

use crate::config::OnConflict;
use crate::destination::{Conflict, ConflictKind};
use crate::pg::{ErrorReport, Lsn};

/// The report of a conflict.
pub(super) fn report(conflict: &Conflict) -> ErrorReport {
    let report = ErrorReport::new(conflict.to_string());
    let named = conflict.constraint.as_ref().map(|constraint| format!("Constraint or column: {constraint}."));
    let why = conflict.difference.as_ref().map(|difference| format!("{}.", difference.why));
    let detail: Vec<String> = named.into_iter().chain(why).collect();
    let report = if detail.is_empty() { report } else { report.detail(detail.join(" ")) };
    let mut ways = vec![match &conflict.difference {
        // The row is as the source has it: nothing is to be done to rows.
        Some(difference) => {
            format!("Run at the destination:\n{}\nheadwater then continues by itself.", difference.shown())
        }
        None => remedy(conflict),
    }];
    if conflict.change.is_some() {
        ways.push("See the key's values and the rows at both ends: headwater conflict show".to_owned());
    }
    let of_rows = matches!(conflict.kind, ConflictKind::UniqueViolation | ConflictKind::MissingRow);
    if of_rows && conflict.difference.is_none() {
        ways.push(match conflict.on_conflict {
            OnConflict::Stop => "Or set on_conflict = \"source-wins\".".to_owned(),
            OnConflict::SourceWins => "on_conflict = \"source-wins\" has not helped: it removes rows that a unique key of the source \
                                       forbids, one that is checked at once, and none that foreign keys would take others with."
                .to_owned(),
        });
    }
    if conflict.commit_lsn == Lsn::INVALID {
        return report.hint(ways.join("\n"));
    }
    ways.push(match conflict.end_lsn {
        Some(end_lsn) => format!("Or leave the transaction out: headwater skip --end-lsn {end_lsn}"),
        None => format!("Or leave the transaction out: headwater skip --commit-lsn {}", conflict.commit_lsn),
    });
    report.hint(ways.join("\n"))
}

/// The way to make the transaction possible.
fn remedy(conflict: &Conflict) -> String {
    let table = conflict.table.as_ref().map_or("…".to_owned(), ToString::to_string);
    let on = "headwater then continues by itself.";
    let constraint = conflict.constraint.as_deref().map(without_columns);
    match conflict.kind {
        ConflictKind::UniqueViolation | ConflictKind::ExclusionViolation => format!(
            "A row of the destination is in the way. Unless the source has that row, delete it at the destination, or give it other \
             values; {on}"
        ),
        ConflictKind::MissingRow => {
            format!("The row was deleted at the destination. Insert it there again, as the source had it; {on}")
        }
        ConflictKind::ForeignKeyViolation => format!(
            "A row that the source has is missing at the destination, or one that only the destination has refers to it. \
             Insert or delete it there; {on}"
        ),
        ConflictKind::CheckViolation => format!(
            "The source does not have this constraint, or had it otherwise. Run at the destination:\n\
             ALTER TABLE {table} DROP CONSTRAINT {};\n{on}",
            constraint.unwrap_or("…")
        ),
        ConflictKind::NotNullViolation => format!(
            "The source allows NULL there, or lacks the column. Run at the destination:\n\
             ALTER TABLE {table} ALTER COLUMN {} DROP NOT NULL;\nor give the column a default; {on}",
            constraint.unwrap_or("…")
        ),
        ConflictKind::DataException => format!(
            "A column of the destination does not take the source's value. Give the columns of {table} the source's types \
             with ALTER TABLE; {on}"
        ),
        ConflictKind::PermissionDenied => format!(
            "Run at the destination as the owner of the table:\n\
             GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON {table} TO {};\n\
             and where row-level security is enabled, give the role BYPASSRLS or a policy; {on}",
            conflict.user.as_ref().map_or("…".to_owned(), ToString::to_string)
        ),
        ConflictKind::Other => format!("Change what refuses the row at the destination; {on}"),
    }
}

/// The name in `name (columns)`; a quoted name may have a parenthesis of its own.
fn without_columns(named: &str) -> &str {
    let mut in_quotes = false;
    let end = named.find(|c| {
        in_quotes ^= c == '"';
        c == ' ' && !in_quotes
    });
    end.map_or(named, |end| &named[..end])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::{Ident, QualifiedName};
    use crate::schema_change::constraint_difference::Violated;
    use crate::session::SqlState;

    fn shown(kind: ConflictKind, end_lsn: Option<Lsn>) -> String {
        report(&Conflict {
            kind,
            table: Some(QualifiedName::new("public", "messages")),
            operation: Some("insert"),
            key: vec![Ident::new("id")],
            constraint: Some("messages_pkey (id)".into()),
            message: "duplicate key value violates unique constraint \"messages_pkey\"".into(),
            code: SqlState::new(b"23505"),
            commit_lsn: Lsn::new(0x10),
            end_lsn,
            will_win: false,
            on_conflict: OnConflict::Stop,
            violated: Violated::default(),
            difference: None,
            user: Some(Ident::new("Writer")),
            change: None,
        })
        .lines()
    }

    #[test]
    fn a_constraint_is_named_whole_whatever_its_name() {
        for (named, name) in [
            ("messages_pkey (id)", "messages_pkey"),
            ("\"a (b) \"\"c\" (id, \"x (y)\")", "\"a (b) \"\"c\""),
            ("U&\"a\\000a (\" (id)", "U&\"a\\000a (\""),
            ("body", "body"),
        ] {
            assert_eq!(without_columns(named), name);
        }
    }

    #[test]
    fn a_conflict_names_table_key_constraint_position_and_every_way_out() {
        let text = shown(ConflictKind::UniqueViolation, Some(Lsn::new(0x18)));
        for part in [
            "insert on table public.messages (key id)",
            "messages_pkey (id)",
            "end_lsn 0/18",
            "headwater skip --end-lsn 0/18",
            "on_conflict = \"source-wins\"",
            "continues by itself",
        ] {
            assert!(text.contains(part), "{part} in:\n{text}");
        }
        let large = shown(ConflictKind::CheckViolation, None);
        assert!(large.contains("headwater skip --commit-lsn 0/10"), "{large}");
        assert!(large.contains("ALTER TABLE public.messages DROP CONSTRAINT messages_pkey;"), "{large}");
        assert!(!large.contains("source-wins"), "it would not help:\n{large}");
        let denied = shown(ConflictKind::PermissionDenied, None);
        assert!(
            denied.contains("GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON public.messages TO \"Writer\";"),
            "{denied}"
        );
    }
}

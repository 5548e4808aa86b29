//! Statements that read and move sequences.

use crate::catalog::sequences::{Move, Widening};
use crate::pg::{QualifiedName, quote_literal};

/// The OIDs of the sequences with the names in `$1`, a text array, locked until the transaction ends (sequence.c:
/// lock_and_open_sequence); fails where a name does not stand for a sequence. Once it has given the same OIDs twice, the names keep
/// standing for these: a name that has changed hands while the lock was waited for gives another one. A statement that names a
/// sequence in FROM comes behind it, since its owner may put a view under the name, whose query would run with our rights.
pub const HOLD: &str =
    "SELECT name::pg_catalog.regclass::oid, pg_catalog.pg_sequence_last_value(name::pg_catalog.regclass)
    FROM pg_catalog.unnest($1::text[]) WITH ORDINALITY AS named (name, at) ORDER BY at";

/// Reads where these sequences stand: index in the list, last_value, is_called.
pub fn read_states<'a>(names: impl IntoIterator<Item = &'a QualifiedName>) -> String {
    let selects = names.into_iter().enumerate();
    let selects = selects
        .map(|(index, name)| format!("SELECT {index}::pg_catalog.int4, last_value, is_called FROM {}", name.sql()));
    selects.collect::<Vec<_>>().join("\nUNION ALL ")
}

/// Moves a sequence, unless it has got as far by itself meanwhile.
pub fn move_forward(sequence: &Move) -> String {
    let Move { name, ascending, to } = sequence;
    let (name, value, called) = (name.sql(), to.last_value, to.is_called);
    let further = if *ascending { '<' } else { '>' };
    format!(
        "SELECT pg_catalog.setval({}::pg_catalog.regclass, {value}, {called}) FROM {name} \
         WHERE last_value {further} {value} OR (last_value = {value} AND NOT is_called AND {called})",
        quote_literal(&name)
    )
}

/// Gives a sequence the source's type, and with it the type's limits where it had those of its own type.
pub fn widen(sequence: &Widening) -> String {
    format!("ALTER SEQUENCE {} AS {}", sequence.name.sql(), sequence.data_type.sql())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::sequences::SequenceState;

    #[test]
    fn an_odd_name_stays_a_name() {
        let name = QualifiedName::new("public", "x'\"; y");
        let to = SequenceState { last_value: -5, is_called: true };
        assert_eq!(
            move_forward(&Move { name: name.clone(), ascending: false, to }),
            "SELECT pg_catalog.setval('\"public\".\"x''\"\"; y\"'::pg_catalog.regclass, -5, true) FROM \"public\".\"x'\"\"; y\" \
             WHERE last_value > -5 OR (last_value = -5 AND NOT is_called AND true)"
        );
        assert_eq!(
            read_states([&name, &name]),
            "SELECT 0::pg_catalog.int4, last_value, is_called FROM \"public\".\"x'\"\"; y\"\n\
             UNION ALL SELECT 1::pg_catalog.int4, last_value, is_called FROM \"public\".\"x'\"\"; y\""
        );
    }
}

//! Statements that read and move sequences.

use crate::pg::{QualifiedName, quote_literal};
use crate::plan::sequences::Move;

/// Reads where these sequences stand: place in the list, last_value, is_called.
pub fn read_states<'a>(names: impl IntoIterator<Item = &'a QualifiedName>) -> String {
    let selects = names.into_iter().enumerate();
    let selects = selects
        .map(|(place, name)| format!("SELECT {place}::pg_catalog.int4, last_value, is_called FROM {}", name.sql()));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::sequences::SequenceState;

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

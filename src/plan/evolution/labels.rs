//! Enum labels that the source has and the destination lacks.
//!
//! Asked at every start, before rows are applied: a label cannot be told from the rows that are under way, so it is added as
//! soon as it is seen, in its place.

use crate::plan::schema::Types;
use crate::plan::sql::evolve as sql;

/// What the destination's enums lack.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels {
    /// Statements that add labels in their places.
    pub added: Vec<String>,
    /// Statements that rename labels: rows that are under way still have the old names.
    pub renamed: Vec<String>,
    /// What has changed, for the operator.
    pub told: Vec<String>,
}

/// Compares the enums that both ends have.
pub fn labels(source: &Types, destination: &Types) -> Labels {
    let mut found = Labels::default();
    for from in source.values() {
        let Some(wanted) = &from.labels else { continue };
        let name = from.qualified_name();
        let here = destination.values().find(|to| to.qualified_name() == name).and_then(|to| to.labels.as_ref());
        let Some(here) = here else { continue };
        let extra: Vec<&String> = here.iter().filter(|label| !wanted.contains(label)).collect();
        let lacking: Vec<(usize, &String)> =
            wanted.iter().enumerate().filter(|(_, label)| !here.contains(label)).collect();
        if !extra.is_empty() && !lacking.is_empty() && here.len() == wanted.len() {
            for (label, (place, new)) in extra.iter().zip(&lacking) {
                if here.get(*place) == Some(label) {
                    found.renamed.push(sql::rename_label(&name, label, new));
                    found.told.push(format!("a label of enum {name} has another name at the source"));
                }
            }
            continue;
        }
        for (place, label) in lacking {
            // The ones before it are there by now.
            let after = place.checked_sub(1).and_then(|before| wanted.get(before));
            let before = here.first().filter(|_| after.is_none());
            found.added.push(sql::add_label(&name, label, after, before));
            found.told.push(format!("enum {name} has got a label at the source"));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::{Ident, TypeId};
    use crate::plan::schema::TypeDefinition;
    use crate::plan::testing::types;

    const TEXT: u32 = 25;

    #[test]
    fn labels_are_added_in_their_places_and_new_names_are_the_operators() {
        let mood = |labels: &[&str]| {
            let mut types = types();
            let text = types.get(&TypeId(TEXT)).cloned().unwrap();
            let labels = Some(labels.iter().map(|label| (*label).to_owned()).collect());
            types.insert(TypeId(20_000), TypeDefinition { name: Ident::new("mood"), labels, ..text });
            types
        };
        assert_eq!(
            labels(&mood(&["a", "b", "c", "d"]), &mood(&["b", "d"])).added,
            [
                "ALTER TYPE \"pg_catalog\".\"mood\" ADD VALUE IF NOT EXISTS 'a' BEFORE 'b'",
                "ALTER TYPE \"pg_catalog\".\"mood\" ADD VALUE IF NOT EXISTS 'c' AFTER 'b'",
            ]
        );
        let renamed = labels(&mood(&["a", "x"]), &mood(&["a", "b"]));
        assert_eq!(renamed.renamed, ["ALTER TYPE \"pg_catalog\".\"mood\" RENAME VALUE 'b' TO 'x'"]);
        assert!(renamed.added.is_empty());
    }
}

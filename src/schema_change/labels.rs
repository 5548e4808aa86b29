//! Enum labels that the source has and the destination lacks.
//!
//! Asked at every start, before rows are applied: a label cannot be told from the rows that are under way, so it is added as
//! soon as it is seen, in its place.

use crate::catalog::schema::Types;
use crate::pg::{QualifiedName, TypeId};
use crate::schema_change::sql;

/// The labels of an enum of the source that were known, by OID, in their order of now: a label keeps its OID when it is renamed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownLabels {
    /// The enum, by the source's OID.
    pub type_id: TypeId,
    /// What they were called.
    pub before: Vec<String>,
    /// What they are called.
    pub now: Vec<String>,
}

/// What the destination's enums lack.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels {
    /// Statements that rename labels which are known by their OIDs: for when no rows are under way that have the old names.
    pub renamed: Vec<String>,
    /// Statements that may rename labels, as their places say: for the operator.
    pub presumed: Vec<String>,
    /// Statements that add labels in their places.
    pub added: Vec<String>,
    /// What has changed, for the operator.
    pub told: Vec<String>,
}

impl Labels {
    /// All statements, in the order in which they can be run.
    pub fn statements(&self) -> impl Iterator<Item = &String> {
        self.renamed.iter().chain(&self.presumed).chain(&self.added)
    }
}

/// Compares the enums that both ends have.
pub fn labels(source: &Types, destination: &Types, known: &[KnownLabels]) -> Labels {
    let mut found = Labels::default();
    for from in source.values() {
        let Some(wanted) = &from.labels else { continue };
        let name = from.qualified_name();
        let here = destination.values().find(|to| to.qualified_name() == name).and_then(|to| to.labels.clone());
        let Some(mut here) = here else { continue };
        if let Some(known) = known.iter().find(|known| known.type_id == from.id) {
            rename(&name, &mut here, known, &mut found);
        }
        let extra: Vec<&String> = here.iter().filter(|label| !wanted.contains(label)).collect();
        let lacking: Vec<(usize, &String)> =
            wanted.iter().enumerate().filter(|(_, label)| !here.contains(label)).collect();
        if !extra.is_empty() && !lacking.is_empty() && here.len() == wanted.len() {
            for (label, (index, new)) in extra.iter().zip(&lacking) {
                if here.get(*index) == Some(label) {
                    found.presumed.push(sql::rename_label(&name, label, new));
                    found.told.push(format!("a label of enum {name} has another name at the source"));
                }
            }
            continue;
        }
        for (index, label) in lacking {
            // The ones before it are there by now.
            let after = index.checked_sub(1).and_then(|before| wanted.get(before));
            let before = here.first().filter(|_| after.is_none());
            found.added.push(sql::add_label(&name, label, after, before));
            found.told.push(format!("enum {name} has got a label at the source"));
        }
    }
    found
}

/// Renames the labels that have other names than before, unless they have them here already. Names may have changed hands: then
/// each goes by way of another.
fn rename(name: &QualifiedName, here: &mut [String], known: &KnownLabels, found: &mut Labels) {
    let KnownLabels { before, now, .. } = known;
    let ours: Vec<&String> = here.iter().filter(|label| before.contains(label) || now.contains(label)).collect();
    if before == now || !ours.into_iter().eq(before) {
        return;
    }
    let pairs: Vec<(&String, &String)> = before.iter().zip(now).filter(|(before, now)| before != now).collect();
    let hands_change = pairs.iter().any(|(_, now)| before.contains(now));
    let mut second = Vec::new();
    for (number, (old, new)) in pairs.iter().enumerate() {
        if hands_change {
            let between = format!("headwater renames {number}");
            found.renamed.push(sql::rename_label(name, old, &between));
            second.push(sql::rename_label(name, &between, new));
        } else {
            second.push(sql::rename_label(name, old, new));
        }
        found.told.push(format!("a label of enum {name} has another name at the source"));
    }
    found.renamed.extend(second);
    for label in here.iter_mut() {
        if let Some((_, new)) = pairs.iter().find(|(old, _)| *old == label) {
            (*new).clone_into(label);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::schema::TypeDefinition;
    use crate::pg::Ident;
    use crate::testing::types;

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
            labels(&mood(&["a", "b", "c", "d"]), &mood(&["b", "d"]), &[]).added,
            [
                "ALTER TYPE \"pg_catalog\".\"mood\" ADD VALUE IF NOT EXISTS 'a' BEFORE 'b'",
                "ALTER TYPE \"pg_catalog\".\"mood\" ADD VALUE IF NOT EXISTS 'c' AFTER 'b'",
            ]
        );
        let renamed = labels(&mood(&["a", "x"]), &mood(&["a", "b"]), &[]);
        assert_eq!(renamed.presumed, ["ALTER TYPE \"pg_catalog\".\"mood\" RENAME VALUE 'b' TO 'x'"]);
        assert!(renamed.added.is_empty());
    }

    #[test]
    fn labels_known_by_oid_are_renamed_even_next_to_new_ones_and_when_swapped() {
        let mood = |labels: &[&str]| {
            let mut types = types();
            let text = types.get(&TypeId(TEXT)).cloned().unwrap();
            let labels = Some(labels.iter().map(|label| (*label).to_owned()).collect());
            let definition = TypeDefinition { id: TypeId(20_000), name: Ident::new("mood"), labels, ..text };
            types.insert(TypeId(20_000), definition);
            types
        };
        let known = |before: &[&str], now: &[&str]| {
            let owned = |labels: &[&str]| labels.iter().map(|label| (*label).to_owned()).collect();
            vec![KnownLabels { type_id: TypeId(20_000), before: owned(before), now: owned(now) }]
        };
        let rename =
            |from: &str, to: &str| format!("ALTER TYPE \"pg_catalog\".\"mood\" RENAME VALUE '{from}' TO '{to}'");
        let renamed = known(&["sad", "ok"], &["sad", "fine"]);
        let found = labels(&mood(&["sad", "fine", "great"]), &mood(&["sad", "ok"]), &renamed);
        assert_eq!((found.renamed, found.presumed), (vec![rename("ok", "fine")], vec![]));
        assert_eq!(found.added, ["ALTER TYPE \"pg_catalog\".\"mood\" ADD VALUE IF NOT EXISTS 'great' AFTER 'fine'"]);
        let done = labels(&mood(&["sad", "fine"]), &mood(&["sad", "fine"]), &renamed);
        assert_eq!(done, Labels::default(), "it is so here already");
        let swapped = labels(&mood(&["b", "a"]), &mood(&["a", "b"]), &known(&["a", "b"], &["b", "a"]));
        let between = |number| format!("headwater renames {number}");
        let expected =
            [rename("a", &between(0)), rename("b", &between(1)), rename(&between(0), "b"), rename(&between(1), "a")];
        assert_eq!(swapped.renamed, expected);
        // The old name is another label's now.
        let reused = labels(&mood(&["x", "a"]), &mood(&["a"]), &known(&["a"], &["x"]));
        assert_eq!((reused.renamed, reused.added.len()), (vec![rename("a", "x")], 1));
    }
}

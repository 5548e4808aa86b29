//! The order in which foreign keys let tables be filled: parents first.
//!
//! Asked by the snapshot (fill parents first, empty children first) and by everything that adds foreign keys. A cycle
//! has no such order: its tables come together, by name, and are reported; their foreign keys must be deferred or
//! added afterwards. Self-references order nothing.

use std::collections::{BTreeMap, BTreeSet};

use crate::pg::QualifiedName;

/// Tables in an order in which parents come before their children.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignKeyOrder {
    /// All tables, parents first.
    pub tables: Vec<QualifiedName>,
    /// The groups of tables that refer to one another in a circle.
    pub cycles: Vec<Vec<QualifiedName>>,
}

/// Orders `tables` by `references`, pairs of a child and a parent. Pairs that leave the set are ignored.
///
/// The order is the same for the same input, whatever its order: names decide between equals.
pub fn foreign_key_order(
    tables: impl IntoIterator<Item = QualifiedName>,
    references: impl IntoIterator<Item = (QualifiedName, QualifiedName)>,
) -> ForeignKeyOrder {
    let mut parents: BTreeMap<QualifiedName, BTreeSet<QualifiedName>> =
        tables.into_iter().map(|table| (table, BTreeSet::new())).collect();
    for (child, parent) in references {
        if child != parent
            && parents.contains_key(&parent)
            && let Some(of_child) = parents.get_mut(&child)
        {
            of_child.insert(parent);
        }
    }
    let mut order = ForeignKeyOrder { tables: Vec::new(), cycles: Vec::new() };
    while !parents.is_empty() {
        let free: Vec<QualifiedName> =
            parents.iter().filter(|(_, waits_for)| waits_for.is_empty()).map(|(table, _)| table.clone()).collect();
        let next = if free.is_empty() {
            let cycle = smallest_cycle(&parents);
            order.cycles.push(cycle.clone());
            cycle
        } else {
            free
        };
        for table in &next {
            parents.remove(table);
        }
        for waits_for in parents.values_mut() {
            waits_for.retain(|parent| !next.contains(parent));
        }
        order.tables.extend(next);
    }
    order
}

/// Tables that all reach one another and wait for nobody else. Exists when every table waits for another.
fn smallest_cycle(parents: &BTreeMap<QualifiedName, BTreeSet<QualifiedName>>) -> Vec<QualifiedName> {
    let reach = |start: &QualifiedName| {
        let mut seen = BTreeSet::new();
        let mut open: Vec<&QualifiedName> = vec![start];
        while let Some(table) = open.pop() {
            for parent in parents.get(table).into_iter().flatten() {
                if seen.insert(parent.clone()) {
                    open.push(parent);
                }
            }
        }
        seen
    };
    // A table that waits for as few as possible waits only for its own circle.
    parents.keys().map(reach).min_by_key(BTreeSet::len).map(|cycle| cycle.into_iter().collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(tables: &[&str], references: &[(&str, &str)]) -> (String, String) {
        let name = |name: &str| QualifiedName::new("s", name);
        let order = foreign_key_order(
            tables.iter().map(|table| name(table)),
            references.iter().map(|(child, parent)| (name(child), name(parent))),
        );
        let join =
            |tables: &[QualifiedName]| tables.iter().map(|t| t.name.as_str().to_owned()).collect::<Vec<_>>().join(" ");
        (join(&order.tables), order.cycles.iter().map(|cycle| join(cycle)).collect::<Vec<_>>().join(", "))
    }

    #[test]
    fn parents_come_before_their_children() {
        assert_eq!(
            order(&["messages", "topics", "sections"], &[("messages", "topics"), ("topics", "sections")]),
            ("sections topics messages".into(), String::new())
        );
    }

    #[test]
    fn self_references_and_references_out_of_the_set_order_nothing() {
        assert_eq!(order(&["b", "a"], &[("a", "a"), ("a", "elsewhere")]), ("a b".into(), String::new()));
    }

    #[test]
    fn a_cycle_is_named_and_its_dependents_come_after_it() {
        assert_eq!(
            order(&["d", "c", "b", "a"], &[("a", "b"), ("b", "c"), ("c", "a"), ("d", "a")]),
            ("a b c d".into(), "a b c".into())
        );
        assert_eq!(
            order(&["x", "a", "b"], &[("a", "b"), ("b", "a"), ("a", "x")]),
            ("x a b".into(), "a b".into()),
            "what a circle waits for comes before it"
        );
    }
}

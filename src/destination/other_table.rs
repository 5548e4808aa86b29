//! Tables that have the names of followed tables and are other ones.
//!
//! Found by [`super::other_tables()`], reported by `error`. Plain data, and the statements that give the tables their names back. Pure.

use std::collections::BTreeSet;

use crate::pg::{Ident, QualifiedName};

/// What became of the table that headwater has filled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Filled {
    /// It was dropped.
    Dropped,
    /// It has this name now.
    Called(QualifiedName),
    /// Nobody has looked yet.
    Unknown,
}

/// A table that is not the one that headwater has filled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtherTable {
    /// Its name.
    pub table: QualifiedName,
    /// The table that had the name before.
    pub filled: Filled,
}

/// All of them that are in the way; at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtherTables(pub Vec<OtherTable>);

impl OtherTables {
    /// Their names.
    pub fn names(&self) -> impl Iterator<Item = &QualifiedName> {
        self.0.iter().map(|other| &other.table)
    }

    /// The statements that give the filled tables that are called otherwise now their names back, in this order. What stands under such a
    /// name is renamed: for good, or where it was filled for another name, until that name is free.
    pub fn renames(&self) -> Vec<String> {
        let called = self.0.iter().filter_map(|other| match &other.filled {
            Filled::Called(now) => Some((&other.table, now.clone())),
            Filled::Dropped | Filled::Unknown => None,
        });
        let mut filled: Vec<(&QualifiedName, QualifiedName)> = called.collect();
        let mut free = BTreeSet::new();
        let mut statements = Vec::new();
        for index in 0..filled.len() {
            let (table, now) = filled[index].clone();
            if !free.contains(table) {
                let renamed = QualifiedName { schema: table.schema.clone(), name: not_filled_name(&table.name) };
                statements.push(format!("ALTER TABLE {table} RENAME TO {};", renamed.name));
                if let Some((_, there)) = filled.iter_mut().find(|(_, there)| there == table) {
                    *there = renamed;
                }
            }
            if now.schema != table.schema {
                statements.push(format!("ALTER TABLE {now} SET SCHEMA {};", table.schema));
            }
            if now.name != table.name {
                let moved = QualifiedName { schema: table.schema.clone(), name: now.name.clone() };
                statements.push(format!("ALTER TABLE {moved} RENAME TO {};", table.name));
            }
            free.insert(now);
            free.remove(table);
        }
        statements
    }
}

impl std::fmt::Display for OtherTables {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<String> = self.names().map(QualifiedName::to_string).collect();
        match names.as_slice() {
            [name] => write!(f, "table {name} at the destination is not the one that headwater has filled"),
            names => {
                write!(f, "tables {} at the destination are not those that headwater has filled", names.join(", "))
            }
        }
    }
}

/// A name for what is moved out of the way. The server cuts names after 63 bytes.
fn not_filled_name(name: &Ident) -> Ident {
    const KEPT_MAX: usize = 63 - "_not_filled".len();
    let name = name.as_str();
    let ends = name.char_indices().map(|(at, c)| at + c.len_utf8()).take_while(|end| *end <= KEPT_MAX);
    Ident::new(format!("{}_not_filled", &name[..ends.last().unwrap_or(0)]))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn name(text: &str) -> QualifiedName {
        text.parse().expect("a name")
    }

    /// Runs the statements on names, each of which stands for a table; `was`: the table that is called so was filled for that name.
    fn after(others: &OtherTables, tables: &[(&str, &str)]) -> BTreeMap<QualifiedName, String> {
        let mut tables: BTreeMap<_, _> = tables.iter().map(|(at, was)| (name(at), (*was).to_owned())).collect();
        for statement in others.renames() {
            let words: Vec<&str> = statement.trim_end_matches(';').split(' ').collect();
            let (from, to) = (name(words[2]), Ident::new(words[5]));
            let to = match words[3..5].join(" ").as_str() {
                "RENAME TO" => QualifiedName { schema: from.schema.clone(), name: to },
                "SET SCHEMA" => QualifiedName { schema: to, name: from.name.clone() },
                other => panic!("{other}"),
            };
            let table = tables.remove(&from).unwrap_or_else(|| panic!("{statement}: no such table"));
            assert_eq!(tables.insert(to, table), None, "{statement}: the name is taken");
        }
        tables
    }

    #[test]
    fn filled_tables_get_their_names_back_however_these_were_exchanged() {
        // Where which table stands, by the name that it was filled for; `-` is somebody else's.
        let cases: &[&[(&str, &str)]] = &[
            &[("s.t", "-"), ("s.t_old", "s.t")],
            &[("s.t", "s.u"), ("s.u", "s.t")],
            &[("s.a", "s.b"), ("s.b", "s.c"), ("s.c", "s.a")],
            &[("s.a", "s.c"), ("s.b", "s.a"), ("s.c", "s.b")],
            // A chain, in both directions.
            &[("s.t", "-"), ("s.u", "s.t"), ("s.u_old", "s.u")],
            &[("s.u", "-"), ("s.t", "s.u"), ("s.t_old", "s.t")],
            // Two exchanges, and a table that was dropped.
            &[("s.a", "s.b"), ("s.b", "s.a"), ("s.c", "s.d"), ("s.d", "s.c"), ("s.e", "-")],
            &[("s.t", "s.u"), ("s.u", "-")],
            // Across schemas.
            &[("s.t", "r.t"), ("r.t", "s.t")],
            &[("s.t", "-"), ("r.t_old", "s.t")],
        ];
        for case in cases {
            let followed = case.iter().filter(|(at, _)| !at.ends_with("_old"));
            let others = followed.filter(|(at, was)| at != was).map(|(at, _)| OtherTable {
                table: name(at),
                filled: case
                    .iter()
                    .find(|(_, was)| was == at)
                    .map_or(Filled::Dropped, |(now, _)| Filled::Called(name(now))),
            });
            let others = OtherTables(others.collect());
            let tables = after(&others, case);
            for other in others.0.iter().filter(|other| other.filled != Filled::Dropped) {
                assert_eq!(
                    tables.get(&other.table),
                    Some(&other.table.to_string()),
                    "{case:?}: {:?}",
                    others.renames()
                );
            }
        }
    }

    #[test]
    fn a_name_for_what_is_moved_aside_is_another_one_after_the_server_has_cut_it() {
        for long in ["t".repeat(63), "ä".repeat(31), "€".repeat(21), "t".to_owned()] {
            let renamed = not_filled_name(&Ident::new(long.clone()));
            assert!(renamed.as_str().len() <= 63 && renamed.as_str().ends_with("_not_filled"), "{renamed}");
        }
    }
}

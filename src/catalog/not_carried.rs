//! What belongs to the tables and is not carried by replication: triggers, policies, grants, and what was changed since a table
//! was created.
//!
//! In comes what each end has, as sql/not_carried.sql tells it; out goes what the destination lacks, or has otherwise, with the SQL
//! that makes it as it is at the source. For `check`, `init` and `cutover` alike. Pure.
//!
//! Invariant: the SQL is the source's text, for an operator to read; it is shown printably and nothing of headwater ever runs it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Deserialize;

use crate::pg::{Ident, is_printable, printable_lines, shown_sql};

/// What kind of thing it is. In this order they can be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// PARTITION BY, and the partitions.
    Partitioning,
    /// A function that one of the others calls.
    Function,
    /// COLLATE of a column
    Collation,
    /// SET DEFAULT
    Default,
    /// A primary key, unique or exclusion constraint.
    Key,
    /// CHECK, also of a domain.
    Check,
    /// An index that no constraint has made.
    Index,
    /// FOREIGN KEY
    #[serde(rename = "foreign key")]
    ForeignKey,
    /// INHERIT
    Inheritance,
    /// REPLICA IDENTITY
    #[serde(rename = "replica identity")]
    ReplicaIdentity,
    /// CREATE STATISTICS
    Statistics,
    /// Of the table, and of its TOAST table.
    #[serde(rename = "storage parameter")]
    StorageParameter,
    /// STATISTICS, STORAGE, COMPRESSION and n_distinct of a column.
    #[serde(rename = "column option")]
    ColumnOption,
    /// A view that reads the table, materialized or not.
    View,
    /// CREATE TRIGGER
    Trigger,
    /// CREATE RULE
    Rule,
    /// CREATE POLICY
    Policy,
    /// ENABLE and FORCE ROW LEVEL SECURITY
    #[serde(rename = "row security")]
    RowSecurity,
    /// GRANT on the table or a column.
    Grant,
    /// OWNER TO
    Owner,
    /// COMMENT ON the table or a column.
    Comment,
    /// COMMENT ON an index or a constraint.
    #[serde(rename = "comment of a part")]
    PartComment,
    /// CREATE EVENT TRIGGER; the database's.
    #[serde(rename = "event trigger")]
    EventTrigger,
    /// CREATE PUBLICATION; the database's, without headwater's own.
    Publication,
}

impl Class {
    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Class::Partitioning => "partitioning",
            Class::Function => "functions",
            Class::Collation => "collations",
            Class::Default => "defaults",
            Class::Key => "keys",
            Class::Check => "checks",
            Class::Index => "indexes",
            Class::ForeignKey => "foreign keys",
            Class::Inheritance => "inheritance",
            Class::ReplicaIdentity => "replica identity",
            Class::Statistics => "statistics objects",
            Class::StorageParameter => "storage parameters",
            Class::ColumnOption => "column options",
            Class::View => "views",
            Class::Trigger => "triggers",
            Class::Rule => "rules",
            Class::Policy => "policies",
            Class::RowSecurity => "row-level security",
            Class::Grant => "grants",
            Class::Owner => "owners",
            Class::Comment => "comments",
            Class::PartComment => "comments of indexes and constraints",
            Class::EventTrigger => "event triggers",
            Class::Publication => "publications",
        }
    }

    /// Whether a table that headwater creates gets it, as far as it is understood.
    const fn comes_with_a_new_table(self) -> bool {
        match self {
            Class::Collation
            | Class::Default
            | Class::Key
            | Class::Check
            | Class::Index
            | Class::ForeignKey
            | Class::ReplicaIdentity
            | Class::Comment => true,
            Class::Partitioning
            | Class::Function
            | Class::Inheritance
            | Class::Statistics
            | Class::StorageParameter
            | Class::ColumnOption
            | Class::View
            | Class::Trigger
            | Class::Rule
            | Class::Policy
            | Class::RowSecurity
            | Class::Grant
            | Class::Owner
            | Class::PartComment
            | Class::EventTrigger
            | Class::Publication => false,
        }
    }

    /// Whether the name is SQL, and not the bare name that the catalog holds.
    const fn is_named_in_sql(self) -> bool {
        match self {
            Class::Partitioning
            | Class::Function
            | Class::Inheritance
            | Class::Statistics
            | Class::ColumnOption
            | Class::View
            | Class::Grant => true,
            Class::Collation
            | Class::Default
            | Class::Key
            | Class::Check
            | Class::Index
            | Class::ForeignKey
            | Class::ReplicaIdentity
            | Class::StorageParameter
            | Class::Trigger
            | Class::Rule
            | Class::Policy
            | Class::RowSecurity
            | Class::Owner
            | Class::Comment
            | Class::PartComment
            | Class::EventTrigger
            | Class::Publication => false,
        }
    }

    /// Whether the destination has what the source has, where both have something of the name.
    fn is_same(self, source: &str, here: &str) -> bool {
        match self {
            // The destination's have no actions before the cut-over, on purpose.
            Class::ForeignKey => true,
            // A column's type may be another one on purpose.
            Class::Collation => collation(source) == collation(here),
            Class::Partitioning
            | Class::Function
            | Class::Default
            | Class::Key
            | Class::Check
            | Class::Index
            | Class::Inheritance
            | Class::ReplicaIdentity
            | Class::Statistics
            | Class::StorageParameter
            | Class::ColumnOption
            | Class::View
            | Class::Trigger
            | Class::Rule
            | Class::Policy
            | Class::RowSecurity
            | Class::Grant
            | Class::Owner
            | Class::Comment
            | Class::PartComment
            | Class::EventTrigger
            | Class::Publication => source == here,
        }
    }
}

/// The collation in the statement that gives it to a column: its last word.
fn collation(statement: &str) -> Option<&str> {
    statement.rsplit_once(" COLLATE ").map(|(_, collation)| collation)
}

/// A thing that one end has.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Thing {
    /// What it is.
    pub class: Class,
    /// Whose it is, as SQL; none where it is the database's.
    pub table: Option<String>,
    /// Its name, as SQL or bare, by its class; none where a table has one of the class.
    pub name: Option<String>,
    /// The SQL that makes it, as this server's catalog has it.
    pub makes: String,
    /// The SQL that takes it away.
    pub undoes: Option<String>,
}

/// Something that the source has and the destination has not, or not so. Its texts are printable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotCarried {
    /// What it is.
    pub class: Class,
    /// The table that it belongs to.
    pub table: Option<String>,
    /// Its name.
    pub name: Option<String>,
    /// The destination has one of the name, which is another.
    pub differs: bool,
    /// The SQL that makes it at the destination.
    pub sql: String,
}

impl fmt::Display for NotCarried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [self.name.as_deref(), self.table.as_deref()];
        f.write_str(&parts.into_iter().flatten().collect::<Vec<_>>().join(" of "))
    }
}

/// What the destination lacks of the source's, in an order in which it can be made. `created` says of a table, as SQL, whether headwater is
/// still to create it.
pub fn not_carried(source: Vec<Thing>, here: &[Thing], created: impl Fn(&str) -> bool) -> Vec<NotCarried> {
    let key = |thing: &Thing| (thing.class, thing.table.clone(), thing.name.clone());
    let known: BTreeMap<_, &Thing> = here.iter().map(|thing| (key(thing), thing)).collect();
    // A catalog may name one thing for several tables.
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for thing in source {
        let comes = thing.class.comes_with_a_new_table() && thing.table.as_deref().is_some_and(&created);
        let other = known.get(&key(&thing));
        let is_same = other.is_some_and(|other| thing.class.is_same(&thing.makes, &other.makes));
        // A column that the destination does not have is reported elsewhere.
        let lacks_column = thing.class == Class::Collation && other.is_none();
        if comes || is_same || lacks_column || !seen.insert(key(&thing)) {
            continue;
        }
        let undoes = other.and_then(|other| other.undoes.as_deref());
        let text = undoes.map_or_else(|| thing.makes.clone(), |undoes| format!("{undoes}\n{}", thing.makes));
        let sql = printable_lines(&shown_sql(&text)).into_owned();
        let sql = if thing.class == Class::Function {
            format!("{};", sql.trim_end())
        } else if sql.starts_with("-- ") {
            // Every line break that is left stands outside of quotes, where a space means the same.
            sql.replace('\n', " ")
        } else {
            sql
        };
        found.push(NotCarried {
            class: thing.class,
            table: thing.table.map(|table| printable_lines(&shown_sql(&table)).into_owned()),
            name: thing.name.map(|name| shown_name(thing.class, name)),
            differs: other.is_some(),
            sql,
        });
    }
    // Inside a class in the order of the source's answer: a view after those that it reads.
    found.sort_by_key(|thing| thing.class);
    found
}

/// The name as it is shown: with characters that would not be seen as `U&"…"`, which SQL reads as that name.
fn shown_name(class: Class, name: String) -> String {
    match class.is_named_in_sql() {
        true => printable_lines(&shown_sql(&name)).into_owned(),
        false if name.chars().all(is_printable) => name,
        false => Ident::new(name).to_string(),
    }
}

/// Names told of a class: more would hide the line that follows.
const NAMED_MAX: usize = 4;

/// A line for each class: how many, and the first of them.
pub fn summary(found: &[NotCarried]) -> Vec<(Class, String)> {
    let mut by_class: BTreeMap<Class, Vec<&NotCarried>> = BTreeMap::new();
    found.iter().for_each(|thing| by_class.entry(thing.class).or_default().push(thing));
    let line = |(class, things): (Class, Vec<&NotCarried>)| {
        let mut names: Vec<String> = things.iter().take(NAMED_MAX).map(ToString::to_string).collect();
        if things.len() > NAMED_MAX {
            names.push(format!("{} more", things.len() - NAMED_MAX));
        }
        (class, format!("{}: {} not carried ({})", class.as_str(), things.len(), names.join(", ")))
    };
    by_class.into_iter().map(line).collect()
}

/// All of it, to be read and run by hand.
pub fn script(found: &[NotCarried]) -> String {
    let mut lines = vec![
        "-- What the source has and the destination has not, as text of the source's catalog. Read each statement before you run \
         it."
            .to_owned(),
    ];
    for thing in found {
        let how = if thing.differs { " (the destination has another one)" } else { "" };
        lines.push(format!("\n-- {}: {thing}{how}", thing.class.as_str()));
        lines.push(thing.sql.clone());
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn thing(class: Class, name: &str, makes: &str) -> Thing {
        let undoes = Some(format!("DROP {name};"));
        Thing { class, table: Some("public.t".into()), name: Some(name.into()), makes: makes.into(), undoes }
    }

    #[test]
    fn what_is_equal_or_comes_with_the_table_is_not_listed() {
        let source = || {
            vec![
                thing(Class::Trigger, "a", "CREATE TRIGGER a;"),
                thing(Class::Trigger, "b", "CREATE TRIGGER b;"),
                thing(Class::Index, "i", "CREATE INDEX i;"),
                thing(Class::ForeignKey, "f", "ADD CONSTRAINT f ON DELETE CASCADE;"),
                thing(Class::Collation, "c", "ALTER TABLE t ALTER COLUMN c TYPE text COLLATE s.one;"),
                thing(Class::Collation, "d", "ALTER TABLE t ALTER COLUMN d TYPE text COLLATE s.one;"),
                thing(Class::Collation, "e", "ALTER TABLE t ALTER COLUMN e TYPE text COLLATE s.one;"),
            ]
        };
        let here = [
            thing(Class::Trigger, "a", "CREATE TRIGGER a;"),
            thing(Class::Trigger, "b", "CREATE TRIGGER b otherwise;"),
            thing(Class::ForeignKey, "f", "ADD CONSTRAINT f;"),
            thing(Class::Collation, "c", "ALTER TABLE t ALTER COLUMN c TYPE varchar(9) COLLATE s.one;"),
            Thing {
                undoes: None,
                ..thing(Class::Collation, "d", "ALTER TABLE t ALTER COLUMN d TYPE text COLLATE s.other;")
            },
        ];
        let told = |created: bool| {
            let found = not_carried(source(), &here, |_| created);
            found.into_iter().map(|found| found.sql).collect::<Vec<_>>()
        };
        assert_eq!(told(true), ["DROP b;\nCREATE TRIGGER b;"]);
        let collation = "ALTER TABLE t ALTER COLUMN d TYPE text COLLATE s.one;";
        assert_eq!(told(false), [collation, "CREATE INDEX i;", "DROP b;\nCREATE TRIGGER b;"]);
    }

    #[test]
    fn text_of_the_source_cannot_reach_the_terminal() {
        let name = "\u{1b}]0;x\u{7}";
        let source = vec![
            thing(Class::Trigger, name, &format!("CREATE TRIGGER \"{name}\";")),
            thing(Class::Function, name, &format!("CREATE FUNCTION f() AS $$\n'{name}\n$$")),
        ];
        let text = script(&not_carried(source, &[], |_| false));
        assert!(!text.contains('\u{1b}') && !text.contains('\u{7}'), "{text}");
    }
}

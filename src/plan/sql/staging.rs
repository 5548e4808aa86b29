//! Statements of a snapshot: rows out of the source, into staging, and from there into the live tables.
//!
//! Reconciling writes only what differs. Two rows are the same row when their keys are equal by the key's own
//! operator; they are equal when their record images are (`*=`): 1.0 and 1.00 differ, -0 and 0 differ, and json,
//! point and xml can be compared at all. Without a key, tables are compared as multisets of whole rows, by their
//! text: every type has one, and within one session equal images have equal texts.

use super::apply::record;
use crate::pg::{Ident, QualifiedName};
use crate::plan::fit::Transfer;

/// A table on its way from the source to the destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The columns that travel, in the order of the source's table.
    pub columns: Vec<Ident>,
    /// The format in which they travel.
    pub transfer: Transfer,
}

impl Route {
    fn names(&self) -> String {
        list(self.columns.iter().map(Ident::sql))
    }

    fn format(&self) -> &'static str {
        match self.transfer {
            Transfer::Binary => "FORMAT binary",
            Transfer::Text => "FORMAT text",
        }
    }
}

/// Copies the table's rows out of the source: those of a row filter, of a range of pages, or all.
///
/// `whole_tree`: rows of partitions belong to the table. `condition` is SQL of the source's own catalog (a row
/// filter) or ours (a ctid range).
pub fn copy_out(table: &QualifiedName, route: &Route, whole_tree: bool, condition: Option<&str>) -> String {
    let format = route.format();
    if condition.is_none() && !whole_tree && !route.columns.is_empty() {
        return format!("COPY {} ({}) TO STDOUT ({format})", table.sql(), route.names());
    }
    let only = if whole_tree { "" } else { "ONLY " };
    let condition = condition.map(|condition| format!(" WHERE {condition}")).unwrap_or_default();
    format!("COPY (SELECT {} FROM {only}{}{condition}) TO STDOUT ({format})", route.names(), table.sql())
}

/// Takes rows in.
pub fn copy_in(table: &QualifiedName, route: &Route) -> String {
    let names = if route.columns.is_empty() { String::new() } else { format!(" ({})", route.names()) };
    format!("COPY {}{names} FROM STDIN ({})", table.sql(), route.format())
}

/// A staging table for rows that will be reconciled with, or filled into, an existing table: its columns and nothing
/// else.
///
/// Unlogged: after a crash it is empty, which the publish notices, and the copy starts over.
pub fn create_plain(staging: &QualifiedName, live: &QualifiedName, columns: &[Ident]) -> String {
    let columns = list(columns.iter().map(Ident::sql));
    // Types come from the live table itself; no constraint, default or identity comes along.
    format!("CREATE UNLOGGED TABLE {} AS SELECT {columns} FROM {} WITH NO DATA", staging.sql(), live.sql())
}

/// How rows of staging and of the live table are recognised as the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Matching {
    /// The key's columns, each with the operator that finds equal values (schema and name).
    pub key: Vec<(Ident, QualifiedName)>,
    /// Columns that reconciling compares and writes, key included.
    pub columns: Vec<Ident>,
    /// Columns of it that no UPDATE can set (GENERATED ALWAYS AS IDENTITY).
    pub fixed: Vec<Ident>,
    /// The live table is partitioned.
    pub partitioned: bool,
}

impl Matching {
    fn same_key(&self, a: &str, b: &str) -> String {
        let conditions = self.key.iter().map(|(column, operator)| {
            let name = column.sql();
            format!("{a}.{name} OPERATOR({}.{}) {b}.{name}", operator.schema.sql(), operator.name.as_str())
        });
        conditions.collect::<Vec<_>>().join(" AND ")
    }

    fn image(&self, of: &str) -> String {
        record(&list(self.columns.iter().map(|column| format!("{of}.{}", column.sql()))))
    }

    fn text(&self, of: &str) -> String {
        format!("{}::pg_catalog.text", self.image(of))
    }

    fn only(&self) -> &'static str {
        if self.partitioned { "" } else { "ONLY " }
    }

    /// An index on staging's key: reconciling looks every live row up in it.
    pub fn index(&self, staging: &QualifiedName) -> Option<String> {
        if self.key.is_empty() {
            return None;
        }
        let key = list(self.key.iter().map(|(column, _)| column.sql()));
        Some(format!("CREATE INDEX ON {} ({key})", staging.sql()))
    }

    /// Deletes the live rows that staging lacks.
    pub fn delete_extra(&self, staging: &QualifiedName, live: &QualifiedName) -> String {
        let (staging, live, only) = (staging.sql(), live.sql(), self.only());
        if !self.key.is_empty() {
            let same = self.same_key("s", "l");
            return format!("DELETE FROM {only}{live} AS l WHERE NOT EXISTS (SELECT FROM {staging} AS s WHERE {same})");
        }
        // Equal rows are numbered on both sides: the live rows whose number staging does not reach are too many.
        let (mine, theirs) = (self.text("l"), self.text("s"));
        format!(
            "WITH counted AS (SELECT {theirs} AS image, pg_catalog.count(*) AS n FROM {staging} AS s GROUP BY 1), \
             numbered AS (SELECT l.tableoid AS part, l.ctid AS place, {mine} AS image, \
             pg_catalog.row_number() OVER (PARTITION BY {mine}) AS n FROM {only}{live} AS l) \
             DELETE FROM {only}{live} AS l USING numbered LEFT JOIN counted ON counted.image = numbered.image \
             WHERE l.tableoid = numbered.part AND l.ctid = numbered.place AND numbered.n > COALESCE(counted.n, 0)"
        )
    }

    /// Updates the live rows that differ from staging's.
    pub fn update_different(&self, staging: &QualifiedName, live: &QualifiedName) -> Option<String> {
        let set: Vec<String> = self
            .columns
            .iter()
            .filter(|column| !self.fixed.contains(column))
            .map(|column| format!("{0} = s.{0}", column.sql()))
            .collect();
        if self.key.is_empty() || set.is_empty() {
            return None;
        }
        Some(format!(
            "UPDATE {}{} AS l SET {} FROM {} AS s WHERE {} AND {} OPERATOR(pg_catalog.*<>) {}",
            self.only(),
            live.sql(),
            set.join(", "),
            staging.sql(),
            self.same_key("s", "l"),
            self.image("l"),
            self.image("s")
        ))
    }

    /// Inserts the rows that the live table lacks.
    pub fn insert_missing(&self, staging: &QualifiedName, live: &QualifiedName) -> String {
        let names = list(self.columns.iter().map(Ident::sql));
        let values = list(self.columns.iter().map(|column| format!("s.{}", column.sql())));
        let overriding = if self.fixed.is_empty() { "" } else { " OVERRIDING SYSTEM VALUE" };
        let (staging, live, only) = (staging.sql(), live.sql(), self.only());
        if !self.key.is_empty() {
            let same = self.same_key("s", "l");
            return format!(
                "INSERT INTO {live} ({names}){overriding} SELECT {values} FROM {staging} AS s \
                 WHERE NOT EXISTS (SELECT FROM {only}{live} AS l WHERE {same})"
            );
        }
        let (mine, theirs) = (self.text("l"), self.text("s"));
        format!(
            "WITH counted AS (SELECT {mine} AS image, pg_catalog.count(*) AS n FROM {only}{live} AS l GROUP BY 1) \
             INSERT INTO {live} ({names}){overriding} SELECT {values} FROM (SELECT s.*, {theirs} AS headwater_image, \
             pg_catalog.row_number() OVER (PARTITION BY {theirs}) AS headwater_n FROM {staging} AS s) AS s \
             LEFT JOIN counted ON counted.image = s.headwater_image \
             WHERE s.headwater_n > COALESCE(counted.n, 0)"
        )
    }
}

/// Fills an empty table from staging.
pub fn fill(staging: &QualifiedName, live: &QualifiedName, columns: &[Ident], overrides_identity: bool) -> String {
    let names = list(columns.iter().map(Ident::sql));
    let overriding = if overrides_identity { " OVERRIDING SYSTEM VALUE" } else { "" };
    format!("INSERT INTO {} ({names}){overriding} SELECT {names} FROM {}", live.sql(), staging.sql())
}

/// Moves a finished table to where it belongs.
pub fn move_to(staging: &QualifiedName, schema: &Ident) -> String {
    format!("ALTER TABLE {} SET SCHEMA {}", staging.sql(), schema.sql())
}

/// Counts a staging table's rows.
pub fn count(staging: &QualifiedName) -> String {
    format!("SELECT pg_catalog.count(*) FROM {}", staging.sql())
}

/// Refreshes the planner's statistics.
pub fn analyze(table: &QualifiedName) -> String {
    format!("ANALYZE {}", table.sql())
}

fn list(items: impl Iterator<Item = String>) -> String {
    items.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(columns: &[&str]) -> Route {
        Route { columns: columns.iter().map(|c| Ident::new(*c)).collect(), transfer: Transfer::Binary }
    }

    #[test]
    fn a_plain_copy_names_the_table_and_a_filtered_one_selects() {
        let table = QualifiedName::new("public", "messages");
        assert_eq!(
            copy_out(&table, &route(&["id", "body"]), false, None),
            "COPY \"public\".\"messages\" (\"id\", \"body\") TO STDOUT (FORMAT binary)"
        );
        assert_eq!(
            copy_out(&table, &route(&["id"]), true, Some("(id > 5)")),
            "COPY (SELECT \"id\" FROM \"public\".\"messages\" WHERE (id > 5)) TO STDOUT (FORMAT binary)"
        );
        assert_eq!(
            copy_out(&table, &route(&[]), false, None),
            "COPY (SELECT  FROM ONLY \"public\".\"messages\") TO STDOUT (FORMAT binary)"
        );
    }

    #[test]
    fn reconciling_by_key_touches_only_what_differs() {
        let matching = Matching {
            key: vec![(Ident::new("id"), QualifiedName::new("pg_catalog", "="))],
            columns: vec![Ident::new("id"), Ident::new("body")],
            fixed: Vec::new(),
            partitioned: false,
        };
        let (staging, live) = (QualifiedName::new("hw", "t"), QualifiedName::new("public", "t"));
        assert_eq!(
            matching.update_different(&staging, &live).unwrap(),
            "UPDATE ONLY \"public\".\"t\" AS l SET \"id\" = s.\"id\", \"body\" = s.\"body\" FROM \"hw\".\"t\" AS s \
             WHERE s.\"id\" OPERATOR(\"pg_catalog\".=) l.\"id\" AND \
             ROW(l.\"id\", l.\"body\")::pg_catalog.record OPERATOR(pg_catalog.*<>) \
             ROW(s.\"id\", s.\"body\")::pg_catalog.record"
        );
    }
}

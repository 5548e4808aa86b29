//! Statements of a snapshot: rows out of the source, into staging, and from there into the live tables.
//!
//! Reconciling writes only what differs. Two rows are the same row when their keys are equal by the key's own
//! operator; they are equal when their record images are (`*=`): 1.0 and 1.00 differ, -0 and 0 differ, and json,
//! point and xml can be compared at all. Without a key, tables are compared as multisets of whole rows, by their
//! text: every type has one, and within one session equal images have equal texts.

use crate::apply_plan::sql::record;
use crate::catalog::fit::Transfer;
use crate::pg::{Ident, QualifiedName, quote_literal};
use crate::sql::table_guard::is_table;

/// A table on its way from the source to the destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableRoute {
    /// The columns that travel, in the order of the source's table.
    pub columns: Vec<Ident>,
    /// The format in which they travel.
    pub transfer: Transfer,
}

impl TableRoute {
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

/// Some of a table's pages, from the first to before `end`; without an end, also those that are added later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRange {
    /// The first page.
    pub first: u32,
    /// The page behind the last one.
    pub end: Option<u32>,
}

impl PageRange {
    /// A table of so many pages in ranges of `most` at most. A small table is one range.
    pub fn split(pages: u32, most: u32) -> Vec<PageRange> {
        let most = most.max(1);
        let mut ranges: Vec<PageRange> = (0..pages.div_ceil(most).max(1))
            .map(|number| PageRange { first: number * most, end: Some((number + 1).saturating_mul(most)) })
            .collect();
        // Rows that the snapshot sees are on the pages that were counted after it; an open end costs nothing.
        if let Some(last) = ranges.last_mut() {
            last.end = None;
        }
        ranges
    }

    /// All pages.
    pub fn is_whole(self) -> bool {
        self.first == 0 && self.end.is_none()
    }

    /// A condition that a TID range scan reads (14 and later); `None` for all pages.
    fn condition(self) -> Option<String> {
        let from = (self.first > 0).then(|| format!("ctid >= '({},0)'::pg_catalog.tid", self.first));
        let to = self.end.map(|end| format!("ctid < '({end},0)'::pg_catalog.tid"));
        match (from, to) {
            (Some(from), Some(to)) => Some(format!("{from} AND {to}")),
            (from, to) => from.or(to),
        }
    }
}

/// Copies rows out of the source: those of a row filter, of a range of pages, or all.
///
/// `whole_tree`: rows of partitions belong to the table. `row_filter` is SQL of the source's own catalog.
pub fn copy_out(
    table: &QualifiedName,
    route: &TableRoute,
    whole_tree: bool,
    row_filter: Option<&str>,
    pages: PageRange,
) -> String {
    let format = route.format();
    let conditions: Vec<String> =
        row_filter.map(|filter| format!("({filter})")).into_iter().chain(pages.condition()).collect();
    if conditions.is_empty() && !whole_tree && !route.columns.is_empty() {
        return format!("COPY {} ({}) TO STDOUT ({format})", table.sql(), route.names());
    }
    let only = if whole_tree { "" } else { "ONLY " };
    let condition = if conditions.is_empty() { String::new() } else { format!(" WHERE {}", conditions.join(" AND ")) };
    format!("COPY (SELECT {} FROM {only}{}{condition}) TO STDOUT ({format})", route.names(), table.sql())
}

/// Keeps others from writing into a table until the transaction ends; readers are not in its way.
pub fn lock_against_writers(table: &QualifiedName) -> String {
    format!("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE", table.sql())
}

/// Takes rows in.
pub fn copy_in(table: &QualifiedName, route: &TableRoute) -> String {
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
    /// The index of the live table that makes it unique.
    pub index: Option<Ident>,
    /// The key is unique and never NULL at the source too, so staging can have it as its primary key.
    pub unique: bool,
    /// Columns of the key that may be NULL at the source.
    pub nullable: Vec<Ident>,
    /// Without a key: the columns by which the stream finds rows of staging.
    pub lookup: Vec<Ident>,
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

    /// An index on staging's key, by which the stream and reconciling find its rows.
    pub fn index(&self, staging: &QualifiedName) -> Option<String> {
        let key = list(self.key.iter().map(|(column, _)| column.sql()));
        let lookup = list(self.lookup.iter().map(Ident::sql));
        match (key.as_str(), lookup.as_str(), self.unique) {
            ("", "", _) => None,
            ("", columns, _) | (columns, _, false) => Some(format!("CREATE INDEX ON {} ({columns})", staging.sql())),
            (columns, _, true) => Some(format!("ALTER TABLE {} ADD PRIMARY KEY ({columns})", staging.sql())),
        }
    }

    /// Lists the keys of the rows that differ: those that only one side has, and those whose images are not equal. In one
    /// pass over both, and in two: a full join needs operators by which rows can be merged or hashed, as all built-in types have
    /// them. Without a key there is no such list.
    pub fn differences(
        &self,
        staging: &QualifiedName,
        live: &QualifiedName,
        into: &QualifiedName,
    ) -> Option<[String; 2]> {
        if self.key.is_empty() {
            return None;
        }
        let is_table = is_table(live);
        let (staging, live, only, same) = (staging.sql(), live.sql(), self.only(), self.same_key("s", "l"));
        let key = |of: &str| list(self.key.iter().map(|(column, _)| format!("{of}.{}", column.sql())));
        let either = list(self.key.iter().map(|(column, _)| format!("COALESCE(l.{0}, s.{0}) AS {0}", column.sql())));
        let differ = format!("{} OPERATOR(pg_catalog.*<>) {}", self.image("l"), self.image("s"));
        let into = into.sql();
        Some([
            format!(
                "CREATE UNLOGGED TABLE {into} AS SELECT {either} FROM {only}{live} AS l FULL JOIN {staging} AS s ON {same} \
                 WHERE (l.ctid IS NULL OR s.ctid IS NULL OR {differ}) AND {is_table}"
            ),
            format!(
                "CREATE UNLOGGED TABLE {into} AS \
                 SELECT {} FROM {only}{live} AS l LEFT JOIN {staging} AS s ON {same} WHERE (s.ctid IS NULL OR {differ}) AND {is_table} \
                 UNION ALL SELECT {} FROM {staging} AS s WHERE NOT EXISTS (SELECT FROM {only}{live} AS l WHERE {same})",
                key("l"),
                key("s"),
            ),
        ])
    }

    /// Begins a list of keys, empty, and has `staging` put on it the key of every row that is written there from now on: both
    /// keys of an update, and all of them before a TRUNCATE. The triggers also fire for a session in the replica role. Without a
    /// key there is no list.
    pub fn keep_list(&self, staging: &QualifiedName, into: &QualifiedName) -> Option<Vec<String>> {
        if self.key.is_empty() {
            return None;
        }
        let key = list(self.key.iter().map(|(column, _)| column.sql()));
        let function = list_function(&staging.schema).sql();
        let arguments = format!("{}, {}", quote_literal(&into.sql()), quote_literal(&key));
        let table = staging.sql();
        let trigger = |(name, event): (&str, &str)| {
            format!("CREATE TRIGGER {name} {event} FOR EACH STATEMENT EXECUTE FUNCTION {function}({arguments})")
        };
        let events = [
            ("lists_insert", format!("AFTER INSERT ON {table} REFERENCING NEW TABLE AS rows_after")),
            (
                "lists_update",
                format!("AFTER UPDATE ON {table} REFERENCING OLD TABLE AS rows_before NEW TABLE AS rows_after"),
            ),
            ("lists_delete", format!("AFTER DELETE ON {table} REFERENCING OLD TABLE AS rows_before")),
            ("lists_truncate", format!("BEFORE TRUNCATE ON {table}")),
        ];
        let always = list(events.iter().map(|(name, _)| format!("ENABLE ALWAYS TRIGGER {name}")));
        let mut statements =
            vec![format!("CREATE UNLOGGED TABLE {} AS SELECT {key} FROM {table} WITH NO DATA", into.sql())];
        statements.extend(events.iter().map(|(name, event)| trigger((name, event))));
        statements.push(format!("ALTER TABLE {table} {always}"));
        Some(statements)
    }

    /// Asks whether rows of staging share a key: among the listed ones, where they are listed. `None` where none can.
    pub fn key_is_shared(&self, staging: &QualifiedName, listed: Option<&QualifiedName>) -> Option<String> {
        if self.key.is_empty() || self.unique {
            return None;
        }
        let (table, same) = (staging.sql(), self.same_key("s", "other"));
        let among = listed.map_or_else(String::new, |list| {
            format!(" WHERE EXISTS (SELECT FROM {} AS d WHERE {})", list.sql(), self.same_key("s", "d"))
        });
        Some(format!(
            "SELECT EXISTS (SELECT FROM {table} AS s JOIN {table} AS other ON {same} AND s.ctid <> other.ctid{among})"
        ))
    }

    /// Asks, for each column of the key that may be NULL at the source, whether it is in any of these keys: those of staging's rows, or
    /// those on its list.
    pub fn key_is_null(&self, keys: &QualifiedName) -> Vec<(&Ident, String)> {
        let is_null = |column: &Ident| {
            format!("SELECT EXISTS (SELECT FROM {} AS k WHERE k.{} IS NULL)", keys.sql(), column.sql())
        };
        self.nullable.iter().map(|column| (column, is_null(column))).collect()
    }

    /// Counts the listed keys whose rows are not the same in staging and in the live table.
    pub fn still_different(&self, staging: &QualifiedName, live: &QualifiedName, list: &QualifiedName) -> String {
        format!(
            "SELECT pg_catalog.count(*) FROM {} AS d LEFT JOIN {} AS s ON {} LEFT JOIN {}{} AS l ON {} \
             WHERE ((s.ctid IS NULL) <> (l.ctid IS NULL) OR {} OPERATOR(pg_catalog.*<>) {}) AND {}",
            list.sql(),
            staging.sql(),
            self.same_key("s", "d"),
            self.only(),
            live.sql(),
            self.same_key("l", "d"),
            self.image("l"),
            self.image("s"),
            is_table(live)
        )
    }

    /// Deletes the live rows that staging lacks: those among `differences`, where they are listed.
    pub fn delete_extra(
        &self,
        staging: &QualifiedName,
        live: &QualifiedName,
        differences: Option<&QualifiedName>,
    ) -> String {
        let is_table = is_table(live);
        let (staging, live, only) = (staging.sql(), live.sql(), self.only());
        if !self.key.is_empty() {
            let same = self.same_key("s", "l");
            let lacking = format!("NOT EXISTS (SELECT FROM {staging} AS s WHERE {same}) AND {is_table}");
            return match differences {
                Some(listed) => {
                    let (listed, same) = (listed.sql(), self.same_key("d", "l"));
                    format!("DELETE FROM {only}{live} AS l USING {listed} AS d WHERE {same} AND {lacking}")
                }
                None => format!("DELETE FROM {only}{live} AS l WHERE {lacking}"),
            };
        }
        // Equal rows are numbered on both sides: the live rows whose number staging does not reach are too many.
        let (mine, theirs) = (self.text("l"), self.text("s"));
        format!(
            "WITH counted AS (SELECT {theirs} AS image, pg_catalog.count(*) AS n FROM {staging} AS s GROUP BY 1), \
             numbered AS (SELECT l.tableoid AS part, l.ctid AS place, {mine} AS image, \
             pg_catalog.row_number() OVER (PARTITION BY {mine}) AS n FROM {only}{live} AS l) \
             DELETE FROM {only}{live} AS l USING numbered LEFT JOIN counted ON counted.image = numbered.image \
             WHERE l.tableoid = numbered.part AND l.ctid = numbered.place AND numbered.n > COALESCE(counted.n, 0) AND {is_table}"
        )
    }

    /// The rows that differ in `columns`: FROM and WHERE, of live rows l and staged rows s.
    fn different(
        &self,
        staging: &QualifiedName,
        differences: Option<&QualifiedName>,
        columns: &[&Ident],
    ) -> (String, String) {
        let image = |of: &str| record(&list(columns.iter().map(|column| format!("{of}.{}", column.sql()))));
        let images = format!("{} OPERATOR(pg_catalog.*<>) {}", image("l"), image("s"));
        let (mut from, mut condition) = (format!("{} AS s", staging.sql()), self.same_key("s", "l"));
        if let Some(listed) = differences {
            from.push_str(&format!(", {} AS d", listed.sql()));
            condition.push_str(&format!(" AND {} AND {}", self.same_key("d", "l"), self.same_key("s", "d")));
        }
        (from, format!("{condition} AND {images}"))
    }

    /// Updates the live rows that differ from staging's.
    pub fn update_different(
        &self,
        staging: &QualifiedName,
        live: &QualifiedName,
        differences: Option<&QualifiedName>,
    ) -> Option<String> {
        let set: Vec<String> = self
            .columns
            .iter()
            .filter(|column| !self.fixed.contains(column))
            .map(|column| format!("{0} = s.{0}", column.sql()))
            .collect();
        if self.key.is_empty() || set.is_empty() {
            return None;
        }
        let (from, condition) = self.different(staging, differences, &self.columns.iter().collect::<Vec<_>>());
        let set = set.join(", ");
        let (only, table, is_table) = (self.only(), live.sql(), is_table(live));
        Some(format!("UPDATE {only}{table} AS l SET {set} FROM {from} WHERE {is_table} AND {condition}"))
    }

    /// The columns outside the key that no UPDATE can set.
    fn fixed_values(&self) -> Vec<&Ident> {
        let is_key = |name: &Ident| self.key.iter().any(|(column, _)| column == name);
        self.columns.iter().filter(|name| self.fixed.contains(name) && !is_key(name)).collect()
    }

    /// Whether any live row differs from staging's in a column that no UPDATE can set; `None` without such columns.
    pub fn fixed_differ(
        &self,
        staging: &QualifiedName,
        live: &QualifiedName,
        differences: Option<&QualifiedName>,
    ) -> Option<String> {
        let fixed = self.fixed_values();
        if self.key.is_empty() || fixed.is_empty() {
            return None;
        }
        let (from, condition) = self.different(staging, differences, &fixed);
        let (only, table, is_table) = (self.only(), live.sql(), is_table(live));
        Some(format!("SELECT EXISTS (SELECT FROM {only}{table} AS l, {from} WHERE {is_table} AND {condition})"))
    }

    /// Updates rows where no UPDATE can: they are kept with all that they hold, deleted, and inserted again. Either because
    /// unique values change hands among them, so that no order of updating them one by one will do; or, with `only_fixed`,
    /// those in which a column differs that no UPDATE can set. `all` are the live table's columns that are not generated.
    pub fn exchange_different(
        &self,
        staging: &QualifiedName,
        live: &QualifiedName,
        differences: Option<&QualifiedName>,
        removed: &QualifiedName,
        all: &[Ident],
        only_fixed: bool,
    ) -> [String; 3] {
        let columns = if only_fixed { self.fixed_values() } else { self.columns.iter().collect() };
        let (from, condition) = self.different(staging, differences, &columns);
        let is_table = is_table(live);
        let (only, live, removed) = (self.only(), live.sql(), removed.sql());
        let kept = list(all.iter().map(|column| format!("l.{}", column.sql())));
        let names = list(all.iter().map(Ident::sql));
        let values = list(all.iter().map(|column| {
            let of = if self.columns.contains(column) { "s" } else { "l" };
            format!("{of}.{}", column.sql())
        }));
        let same = self.same_key("s", "l");
        let gone = self.same_key("a", "l");
        [
            format!(
                "CREATE UNLOGGED TABLE {removed} AS SELECT {kept} FROM {only}{live} AS l, {from} WHERE {is_table} AND {condition}"
            ),
            format!("DELETE FROM {only}{live} AS l USING {removed} AS a WHERE {is_table} AND {gone}"),
            format!(
                "INSERT INTO {live} ({names}) OVERRIDING SYSTEM VALUE SELECT {values} FROM {removed} AS l, {} AS s \
                 WHERE {is_table} AND {same}",
                staging.sql()
            ),
        ]
    }

    /// Inserts the rows that the live table lacks.
    pub fn insert_missing(
        &self,
        staging: &QualifiedName,
        live: &QualifiedName,
        differences: Option<&QualifiedName>,
    ) -> String {
        let names = list(self.columns.iter().map(Ident::sql));
        let values = list(self.columns.iter().map(|column| format!("s.{}", column.sql())));
        let overriding = if self.fixed.is_empty() { "" } else { " OVERRIDING SYSTEM VALUE" };
        let is_table = is_table(live);
        let (staging, live, only) = (staging.sql(), live.sql(), self.only());
        if !self.key.is_empty() {
            let same = self.same_key("s", "l");
            // A key may be listed more than once; here that would insert its row as often.
            let listed = differences.map_or_else(String::new, |listed| {
                format!("EXISTS (SELECT FROM {} AS d WHERE {}) AND ", listed.sql(), self.same_key("s", "d"))
            });
            return format!(
                "INSERT INTO {live} ({names}){overriding} SELECT {values} FROM {staging} AS s \
                 WHERE {is_table} AND {listed}NOT EXISTS (SELECT FROM {only}{live} AS l WHERE {same})"
            );
        }
        let (mine, theirs) = (self.text("l"), self.text("s"));
        format!(
            "WITH counted AS (SELECT {mine} AS image, pg_catalog.count(*) AS n FROM {only}{live} AS l GROUP BY 1) \
             INSERT INTO {live} ({names}){overriding} SELECT {values} FROM (SELECT s.*, {theirs} AS headwater_image, \
             pg_catalog.row_number() OVER (PARTITION BY {theirs}) AS headwater_n FROM {staging} AS s) AS s \
             LEFT JOIN counted ON counted.image = s.headwater_image \
             WHERE s.headwater_n > COALESCE(counted.n, 0) AND {is_table}"
        )
    }
}

/// Fills an empty table from staging.
pub fn fill(staging: &QualifiedName, live: &QualifiedName, columns: &[Ident], overrides_identity: bool) -> String {
    let names = list(columns.iter().map(Ident::sql));
    let overriding = if overrides_identity { " OVERRIDING SYSTEM VALUE" } else { "" };
    let (table, is_table) = (live.sql(), is_table(live));
    format!("INSERT INTO {table} ({names}){overriding} SELECT {names} FROM {} WHERE {is_table}", staging.sql())
}

/// Moves a finished table to where it belongs.
pub fn move_to(staging: &QualifiedName, schema: &Ident) -> String {
    format!("ALTER TABLE {} SET SCHEMA {}", staging.sql(), schema.sql())
}

fn list_function(schema: &Ident) -> QualifiedName {
    QualifiedName { schema: schema.clone(), name: Ident::new("list_keys") }
}

/// The function behind the triggers that keep lists; their arguments are the list and the key's columns, as SQL.
pub fn create_list_function(schema: &Ident) -> String {
    format!(
        "CREATE FUNCTION {}() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
         BEGIN
             IF TG_OP IN ('UPDATE', 'DELETE') THEN
                 EXECUTE 'INSERT INTO ' || TG_ARGV[0] || ' SELECT ' || TG_ARGV[1] || ' FROM rows_before';
             END IF;
             IF TG_OP IN ('UPDATE', 'INSERT') THEN
                 EXECUTE 'INSERT INTO ' || TG_ARGV[0] || ' SELECT ' || TG_ARGV[1] || ' FROM rows_after';
             END IF;
             IF TG_OP = 'TRUNCATE' THEN
                 EXECUTE 'INSERT INTO ' || TG_ARGV[0] || ' SELECT ' || TG_ARGV[1] || ' FROM '
                     || pg_catalog.quote_ident(TG_TABLE_SCHEMA) || '.' || pg_catalog.quote_ident(TG_TABLE_NAME);
             END IF;
             RETURN NULL;
         END $$",
        list_function(schema).sql()
    )
}

/// Adds keys to a list.
pub fn add_to_list(list: &QualifiedName, found: &QualifiedName) -> String {
    format!("INSERT INTO {} SELECT * FROM {}", list.sql(), found.sql())
}

/// The numbers, from 0 on, of those lists that have no key on them.
pub fn empty_lists(lists: &[&QualifiedName]) -> String {
    let each = lists
        .iter()
        .enumerate()
        .map(|(number, list)| format!("SELECT {number} WHERE NOT EXISTS (SELECT FROM {})", list.sql()));
    each.collect::<Vec<_>>().join(" UNION ALL ")
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

    fn route(columns: &[&str]) -> TableRoute {
        TableRoute { columns: columns.iter().map(|c| Ident::new(*c)).collect(), transfer: Transfer::Binary }
    }

    const ALL: PageRange = PageRange { first: 0, end: None };

    #[test]
    fn pages_are_split_without_a_gap_and_the_last_range_is_open() {
        let range = |first, end| PageRange { first, end };
        assert_eq!(PageRange::split(0, 100), [ALL], "an empty table is one range");
        assert_eq!(PageRange::split(1, 100), [ALL]);
        assert_eq!(PageRange::split(100, 100), [ALL]);
        assert_eq!(PageRange::split(101, 100), [range(0, Some(100)), range(100, None)]);
        let table = QualifiedName::new("public", "messages");
        assert_eq!(
            copy_out(&table, &route(&["id"]), false, Some("id > 5 OR id < 2"), range(100, Some(200))),
            "COPY (SELECT \"id\" FROM ONLY \"public\".\"messages\" WHERE (id > 5 OR id < 2) AND \
             ctid >= '(100,0)'::pg_catalog.tid AND ctid < '(200,0)'::pg_catalog.tid) TO STDOUT (FORMAT binary)"
        );
    }

    #[test]
    fn a_plain_copy_names_the_table_and_a_filtered_one_selects() {
        let table = QualifiedName::new("public", "messages");
        assert_eq!(
            copy_out(&table, &route(&["id", "body"]), false, None, ALL),
            "COPY \"public\".\"messages\" (\"id\", \"body\") TO STDOUT (FORMAT binary)"
        );
        assert_eq!(
            copy_out(&table, &route(&["id"]), true, Some("id > 5"), ALL),
            "COPY (SELECT \"id\" FROM \"public\".\"messages\" WHERE (id > 5)) TO STDOUT (FORMAT binary)"
        );
        assert_eq!(
            copy_out(&table, &route(&[]), false, None, ALL),
            "COPY (SELECT  FROM ONLY \"public\".\"messages\") TO STDOUT (FORMAT binary)"
        );
    }

    #[test]
    fn reconciling_by_key_touches_only_what_differs() {
        let matching = Matching {
            key: vec![(Ident::new("id"), QualifiedName::new("pg_catalog", "="))],
            columns: vec![Ident::new("id"), Ident::new("body")],
            index: Some(Ident::new("t_pkey")),
            unique: true,
            nullable: Vec::new(),
            lookup: Vec::new(),
            fixed: Vec::new(),
            partitioned: false,
        };
        let (staging, live) = (QualifiedName::new("hw", "t"), QualifiedName::new("public", "t"));
        assert_eq!(
            matching.update_different(&staging, &live, None).unwrap().replace(&is_table(&live), "is_table"),
            "UPDATE ONLY \"public\".\"t\" AS l SET \"id\" = s.\"id\", \"body\" = s.\"body\" FROM \"hw\".\"t\" AS s \
             WHERE is_table AND s.\"id\" OPERATOR(\"pg_catalog\".=) l.\"id\" AND \
             ROW(l.\"id\", l.\"body\")::pg_catalog.record OPERATOR(pg_catalog.*<>) \
             ROW(s.\"id\", s.\"body\")::pg_catalog.record"
        );
    }
}

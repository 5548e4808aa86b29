//! Statements of verify and repair: hashes of rows, sums of hashes, the rows behind them, and rows put right.
//!
//! A row's hash is taken over the text of its columns, as their output functions give it: 1.0 and 1.00 differ, -0 and
//! 0 differ, trailing blanks count, json and point and xml have one; and values that are the same on two servers have
//! the same text there, whatever the types' OIDs and binary forms. NULLs are marked apart from empty strings, and a
//! separator that is drawn anew for each run keeps the borders between columns.
//!
//! `concat_ws` is used, not `ROW(…)::text`: it does not look at each character for quotes, which makes the whole
//! comparison three times as fast.

use std::ops::Range;

use crate::pg::{Ident, QualifiedName, quote_literal};

/// How text becomes 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HashFunction {
    /// PostgreSQL's own hash of text: fast; the same on two servers of one encoding and byte order.
    Native,
    /// Half of an MD5 over the text in UTF-8: the same everywhere.
    Md5,
}

/// The columns of a row, as they are hashed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hashing {
    /// The columns, in the same order on both sides, and whether they may be NULL on either.
    pub columns: Vec<(Ident, bool)>,
    /// What stands between two values.
    pub separator: String,
    /// How text becomes 64 bits.
    pub function: HashFunction,
}

/// A function takes at most 100 arguments, and a column may need two.
const COLUMNS_MAX: usize = 40;

impl Hashing {
    fn text(&self, columns: &[(Ident, bool)]) -> String {
        let values = columns.iter().map(|(column, nullable)| {
            let name = column.sql();
            if *nullable { format!("{name}, {name} IS NULL") } else { name }
        });
        format!("pg_catalog.concat_ws({}, {})", quote_literal(&self.separator), values.collect::<Vec<_>>().join(", "))
    }

    /// The hash of these columns.
    fn of(&self, columns: &[(Ident, bool)]) -> String {
        match self.function {
            HashFunction::Native => columns.chunks(COLUMNS_MAX).fold("0".to_owned(), |seed, columns| {
                format!("pg_catalog.hashtextextended({} COLLATE \"C\", {seed})", self.text(columns))
            }),
            HashFunction::Md5 => {
                let texts: Vec<String> = columns.chunks(COLUMNS_MAX).map(|columns| self.text(columns)).collect();
                let text = texts.join(" || ");
                let text = if text.is_empty() { "''".to_owned() } else { text };
                format!(
                    "('x' || pg_catalog.substr(pg_catalog.md5(pg_catalog.convert_to({text}, 'UTF8')), 1, 16))\
                     ::pg_catalog.bit(64)::pg_catalog.int8"
                )
            }
        }
    }

    /// The hash of a row.
    pub fn row(&self) -> String {
        self.of(&self.columns)
    }

    /// A hash of each column by itself, as an array.
    fn each(&self) -> String {
        let each: Vec<String> = self.columns.iter().map(|column| self.of(std::slice::from_ref(column))).collect();
        format!("ARRAY[{}]::pg_catalog.int8[]", each.join(", "))
    }
}

/// Which rows of a table are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part<'a> {
    /// The table, or one of its partitions.
    pub table: &'a QualifiedName,
    /// Rows of partitions belong to it.
    pub whole_tree: bool,
    /// The rows that count, as SQL of the server's own catalog.
    pub row_filter: Option<&'a str>,
    /// The pages.
    pub pages: Range<Option<u64>>,
}

impl Part<'_> {
    fn from(&self, more: Option<&str>) -> String {
        let only = if self.whole_tree { "" } else { "ONLY " };
        let mut conditions: Vec<String> = Vec::new();
        conditions.extend(self.row_filter.map(|filter| format!("({filter})")));
        conditions.extend(self.pages.start.map(|page| format!("ctid >= '({page},0)'::pg_catalog.tid")));
        conditions.extend(self.pages.end.map(|page| format!("ctid < '({page},0)'::pg_catalog.tid")));
        conditions.extend(more.map(str::to_owned));
        let conditions =
            if conditions.is_empty() { String::new() } else { format!(" WHERE {}", conditions.join(" AND ")) };
        format!("FROM {only}{}{conditions}", self.table.sql())
    }
}

/// Number of rows, and the sum of their hashes.
pub fn sums(part: &Part<'_>, hashing: &Hashing) -> String {
    format!(
        "SELECT pg_catalog.count(*)::text, COALESCE(pg_catalog.sum({}), 0)::text {}",
        hashing.row(),
        part.from(None)
    )
}

/// The same by bucket. OFFSET 0 keeps the hash from being computed twice.
pub fn bucket_sums(part: &Part<'_>, hashing: &Hashing, buckets: u64) -> String {
    format!(
        "SELECT (h & {})::text, pg_catalog.count(*)::text, pg_catalog.sum(h)::text \
         FROM (SELECT {} AS h {} OFFSET 0) AS hashed GROUP BY h & {}",
        buckets - 1,
        hashing.row(),
        part.from(None),
        buckets - 1
    )
}

/// Hash and key of the rows in some buckets.
pub fn rows_in_buckets(part: &Part<'_>, hashing: &Hashing, key: &[Ident], buckets: u64, wanted: &[u64]) -> String {
    let names: String = key.iter().map(|column| format!(", pg_catalog.concat({})", column.sql())).collect();
    let outer: String = (0..key.len()).map(|at| format!(", k{at}")).collect();
    let inner: Vec<String> = (0..key.len()).map(|at| format!("k{at}")).collect();
    let columns: String = inner.iter().map(|name| format!(", {name}")).collect();
    let wanted: Vec<String> = wanted.iter().map(u64::to_string).collect();
    format!(
        "SELECT h::text{outer} FROM (SELECT {}{names} {} OFFSET 0) AS hashed (h{columns}) \
         WHERE h & {} = ANY ('{{{}}}'::pg_catalog.int8[])",
        hashing.row(),
        part.from(None),
        buckets - 1,
        wanted.join(",")
    )
}

/// A key's column on one server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyPart {
    /// Its name.
    pub name: Ident,
    /// Its type, as SQL.
    pub type_sql: String,
    /// The operator that finds equal values.
    pub equality: QualifiedName,
}

/// `w.k0::type OPERATOR(…) t.key AND …`
fn same_key(key: &[KeyPart], table: &str) -> String {
    let parts = key.iter().enumerate().map(|(at, part)| {
        let QualifiedName { schema, name } = &part.equality;
        format!("{table}.{} OPERATOR({}.{}) w.k{at}::{}", part.name.sql(), schema.sql(), name.as_str(), part.type_sql)
    });
    parts.collect::<Vec<_>>().join(" AND ")
}

/// The keys in `$1`, a JSON array of arrays of texts, each with its place from 1 on.
fn wanted_keys(count: usize) -> String {
    let values: Vec<String> = (0..count).map(|at| format!("e ->> {at} AS k{at}")).collect();
    format!(
        "(SELECT {}, place FROM pg_catalog.jsonb_array_elements($1::pg_catalog.text::pg_catalog.jsonb) \
         WITH ORDINALITY AS x (e, place) OFFSET 0) AS w",
        values.join(", ")
    )
}

/// For each of the keys in `$1`: its place, and the hashes of the row's columns; no row for a key without one.
pub fn column_hashes(table: &QualifiedName, whole_tree: bool, key: &[KeyPart], hashing: &Hashing) -> String {
    let only = if whole_tree { "" } else { "ONLY " };
    format!(
        "SELECT w.place, h.each FROM {} CROSS JOIN LATERAL (SELECT {} AS each FROM {only}{} AS t WHERE {}) AS h",
        wanted_keys(key.len()),
        hashing.each(),
        table.sql(),
        same_key(key, "t")
    )
}

/// For each of the keys in `$1`: its place and the row's columns as text, or no row.
pub fn rows_by_key(
    table: &QualifiedName,
    whole_tree: bool,
    row_filter: Option<&str>,
    key: &[KeyPart],
    columns: &[Ident],
) -> String {
    let only = if whole_tree { "" } else { "ONLY " };
    let values: Vec<String> = columns
        .iter()
        .map(|column| {
            let name = column.sql();
            // The output function's text: a cast of char(n) to text would cut its blanks off.
            format!("CASE WHEN {name} IS NULL THEN NULL ELSE pg_catalog.concat({name}) END")
        })
        .collect();
    let filter = row_filter.map(|filter| format!(" AND ({filter})")).unwrap_or_default();
    format!(
        "SELECT w.place, r.row FROM {} CROSS JOIN LATERAL \
         (SELECT ARRAY[{}]::pg_catalog.text[] AS row FROM {only}{} AS t WHERE {}{filter}) AS r",
        wanted_keys(key.len()),
        values.join(", "),
        table.sql(),
        same_key(key, "t")
    )
}

/// A table whose rows are put right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repaired {
    /// The table.
    pub table: QualifiedName,
    /// Rows of partitions belong to it.
    pub whole_tree: bool,
    /// Its key.
    pub key: Vec<KeyPart>,
    /// The columns that are written, with their types as SQL.
    pub columns: Vec<(Ident, String)>,
    /// Columns of them that no UPDATE can set (GENERATED ALWAYS AS IDENTITY).
    pub fixed: Vec<Ident>,
}

impl Repaired {
    fn only(&self) -> &'static str {
        if self.whole_tree { "" } else { "ONLY " }
    }

    /// Deletes the rows with the keys in `$1`.
    pub fn delete(&self) -> String {
        let wanted = wanted_keys(self.key.len());
        format!(
            "DELETE FROM {}{} AS t USING {wanted} WHERE {}",
            self.only(),
            self.table.sql(),
            same_key(&self.key, "t")
        )
    }

    /// The source's rows: `$1` is a JSON array of arrays of texts.
    fn rows(&self) -> String {
        let values: Vec<String> = self
            .columns
            .iter()
            .enumerate()
            .map(|(at, (column, type_sql))| format!("(e ->> {at})::{type_sql} AS {}", column.sql()))
            .collect();
        format!(
            "(SELECT {} FROM pg_catalog.jsonb_array_elements($1::pg_catalog.text::pg_catalog.jsonb) AS e OFFSET 0) AS s",
            values.join(", ")
        )
    }

    fn matches(&self) -> String {
        let parts = self.key.iter().map(|part| {
            let (name, QualifiedName { schema, name: operator }) = (part.name.sql(), &part.equality);
            format!("t.{name} OPERATOR({}.{}) s.{name}", schema.sql(), operator.as_str())
        });
        parts.collect::<Vec<_>>().join(" AND ")
    }

    fn image(&self, of: &str) -> String {
        let columns: Vec<String> = self.columns.iter().map(|(column, _)| format!("{of}.{}", column.sql())).collect();
        format!("ROW({})::pg_catalog.record", columns.join(", "))
    }

    /// Updates the rows that differ from the source's.
    pub fn update(&self) -> Option<String> {
        let set: Vec<String> = self
            .columns
            .iter()
            .filter(|(column, _)| !self.fixed.contains(column))
            .map(|(column, _)| format!("{0} = s.{0}", column.sql()))
            .collect();
        if set.is_empty() {
            return None;
        }
        Some(format!(
            "UPDATE {}{} AS t SET {} FROM {} WHERE {} AND {} OPERATOR(pg_catalog.*<>) {}",
            self.only(),
            self.table.sql(),
            set.join(", "),
            self.rows(),
            self.matches(),
            self.image("t"),
            self.image("s")
        ))
    }

    /// Inserts the source's rows that are missing.
    pub fn insert(&self) -> String {
        let names: Vec<String> = self.columns.iter().map(|(column, _)| column.sql()).collect();
        let values: Vec<String> = names.iter().map(|name| format!("s.{name}")).collect();
        let overriding = if self.fixed.is_empty() { "" } else { " OVERRIDING SYSTEM VALUE" };
        format!(
            "INSERT INTO {} ({}){overriding} SELECT {} FROM {} WHERE NOT EXISTS (SELECT FROM {}{} AS t WHERE {})",
            self.table.sql(),
            names.join(", "),
            values.join(", "),
            self.rows(),
            self.only(),
            self.table.sql(),
            self.matches()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hashing(columns: &[(&str, bool)]) -> Hashing {
        Hashing {
            columns: columns.iter().map(|(name, nullable)| (Ident::new(*name), *nullable)).collect(),
            separator: "|".to_owned(),
            function: HashFunction::Native,
        }
    }

    #[test]
    fn a_null_is_marked_apart_from_an_empty_string() {
        assert_eq!(
            hashing(&[("id", false), ("body", true)]).row(),
            "pg_catalog.hashtextextended(pg_catalog.concat_ws('|', \"id\", \"body\", \"body\" IS NULL) COLLATE \"C\", 0)"
        );
    }

    #[test]
    fn wide_tables_are_hashed_in_links_of_a_chain() {
        let names: Vec<String> = (0..90).map(|n| format!("c{n}")).collect();
        let columns: Vec<(&str, bool)> = names.iter().map(|name| (name.as_str(), true)).collect();
        let sql = hashing(&columns).row();
        assert_eq!(sql.matches("hashtextextended").count(), 3);
        assert!(sql.ends_with("COLLATE \"C\", 0)))"), "{sql}");
    }

    #[test]
    fn a_part_reads_its_pages_and_the_rows_that_count() {
        let table = QualifiedName::new("public", "t");
        let part = Part { table: &table, whole_tree: false, row_filter: Some("(id > 5)"), pages: Some(8)..None };
        assert_eq!(part.from(None), "FROM ONLY \"public\".\"t\" WHERE ((id > 5)) AND ctid >= '(8,0)'::pg_catalog.tid");
    }

    #[test]
    fn repair_finds_rows_by_the_keys_own_operator_and_writes_only_what_differs() {
        let repaired = Repaired {
            table: QualifiedName::new("public", "t"),
            whole_tree: false,
            key: vec![KeyPart {
                name: Ident::new("id"),
                type_sql: "bigint".to_owned(),
                equality: QualifiedName::new("pg_catalog", "="),
            }],
            columns: vec![(Ident::new("id"), "bigint".to_owned()), (Ident::new("v"), "text".to_owned())],
            fixed: vec![Ident::new("id")],
        };
        assert_eq!(
            repaired.delete(),
            "DELETE FROM ONLY \"public\".\"t\" AS t USING (SELECT e ->> 0 AS k0, place FROM \
             pg_catalog.jsonb_array_elements($1::pg_catalog.text::pg_catalog.jsonb) WITH ORDINALITY AS x (e, place) OFFSET 0) \
             AS w WHERE t.\"id\" OPERATOR(\"pg_catalog\".=) w.k0::bigint"
        );
        let update = repaired.update().unwrap();
        assert!(update.starts_with("UPDATE ONLY \"public\".\"t\" AS t SET \"v\" = s.\"v\" FROM (SELECT"), "{update}");
        assert!(repaired.insert().contains("OVERRIDING SYSTEM VALUE"));
    }
}

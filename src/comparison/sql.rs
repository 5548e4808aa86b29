//! Statements of verify and repair: sums of hashes, the rows behind them, and rows put right.
//!
//! What is hashed of a row is [`crate::comparison::images`]'s to say.

use std::ops::Range;

use crate::comparison::images::Hashing;
use crate::pg::{Ident, QualifiedName};
use crate::sql::table_guard::{has_type, is_table};
use crate::sql::text_value::ValueType;

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
        let mut conditions: Vec<String> = vec![is_table(self.table)];
        conditions.extend(self.row_filter.map(|filter| format!("({filter})")));
        conditions.extend(self.pages.start.map(|page| format!("ctid >= '({page},0)'::pg_catalog.tid")));
        conditions.extend(self.pages.end.map(|page| format!("ctid < '({page},0)'::pg_catalog.tid")));
        conditions.extend(more.map(str::to_owned));
        format!("FROM {only}{} WHERE {}", self.table.sql(), conditions.join(" AND "))
    }
}

/// Number of rows, the sum of their hashes, and for each doubtful column how many of its values are not what their text says.
pub fn sums(part: &Part<'_>, hashing: &Hashing) -> String {
    let doubtful = hashing.columns.iter().filter_map(|column| {
        let (name, value_type) = (column.name.sql(), column.doubtful.as_ref()?);
        // The output function's text, as a cast to text would be the one that somebody has created.
        let again = value_type.of_text(&format!("pg_catalog.concat({name})"));
        // The images of a domain and of its base type cannot be compared.
        let read = format!("{name}::{}", value_type.sql);
        Some(format!(
            ", pg_catalog.count(*) FILTER (WHERE {name} IS DISTINCT FROM NULL AND ROW({read})::pg_catalog.record \
             OPERATOR(pg_catalog.*<>) ROW({again})::pg_catalog.record)::text"
        ))
    });
    format!(
        "SELECT pg_catalog.count(*)::text, COALESCE(pg_catalog.sum({}), 0)::text{} {}",
        hashing.row(),
        doubtful.collect::<String>(),
        part.from(None)
    )
}

/// Number of rows and sum of their hashes by bucket of the key's hash. OFFSET 0 keeps the hashes from being computed twice.
pub fn bucket_sums(part: &Part<'_>, hashing: &Hashing, buckets: u64) -> String {
    format!(
        "SELECT (k & {})::text, pg_catalog.count(*)::text, pg_catalog.sum(h)::text \
         FROM (SELECT {} AS k, {} AS h {} OFFSET 0) AS hashed GROUP BY k & {}",
        buckets - 1,
        hashing.key_hash(),
        hashing.row(),
        part.from(None),
        buckets - 1
    )
}

/// Those buckets of a table whose rows are read.
#[derive(Clone, Copy, Debug)]
pub struct WantedBuckets<'a> {
    /// How many buckets the table has: a power of two.
    pub count: u64,
    /// The numbers of those that are wanted.
    pub numbers: &'a [u64],
}

/// The hashes of the keys and of the rows in some buckets, or in all of them.
pub fn hashes(part: &Part<'_>, hashing: &Hashing, buckets: Option<WantedBuckets<'_>>) -> String {
    let wanted = buckets.map_or_else(String::new, |WantedBuckets { count, numbers }| {
        let wanted: Vec<String> = numbers.iter().map(u64::to_string).collect();
        format!(" WHERE k & {} = ANY ('{{{}}}'::pg_catalog.int8[])", count - 1, wanted.join(","))
    });
    format!(
        "SELECT k::text, h::text FROM (SELECT {} AS k, {} AS h {} OFFSET 0) AS hashed{wanted}",
        hashing.key_hash(),
        hashing.row(),
        part.from(None)
    )
}

/// Hash and key of the rows whose keys have one of these hashes.
pub fn keys(part: &Part<'_>, hashing: &Hashing, wanted: &[i64]) -> String {
    let key = &hashing.key;
    let names: String = key.iter().map(|column| format!(", pg_catalog.concat({})", column.sql())).collect();
    let columns: String = (0..key.len()).map(|at| format!(", k{at}")).collect();
    let wanted: Vec<String> = wanted.iter().map(i64::to_string).collect();
    format!(
        "SELECT h::text{columns} FROM (SELECT {}, {}{names} {} OFFSET 0) AS hashed (k, h{columns}) \
         WHERE k = ANY ('{{{}}}'::pg_catalog.int8[])",
        hashing.key_hash(),
        hashing.row(),
        part.from(None),
        wanted.join(",")
    )
}

/// A key's column on one server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ComparisonKeyPart {
    /// Its name.
    pub name: Ident,
    /// The type into which texts are made.
    pub value_type: ValueType,
    /// The type that it was found to have, as SQL.
    pub declared: String,
    /// The operator that finds equal values.
    pub equality: QualifiedName,
}

/// `t.key OPERATOR(…) w.k0 AND …`, of columns that have the types which were looked at.
fn same_key(key: &[ComparisonKeyPart], table: &str) -> String {
    let parts = key.iter().enumerate().map(|(at, part)| {
        let QualifiedName { schema, name } = &part.equality;
        let column = format!("{table}.{}", part.name.sql());
        format!(
            "{column} OPERATOR({}.{}) w.k{at} AND {}",
            schema.sql(),
            name.as_str(),
            has_type(&column, &part.declared)
        )
    });
    parts.collect::<Vec<_>>().join(" AND ")
}

/// The keys in `$1`, a JSON array of arrays of texts, each with its place from 1 on.
fn wanted_keys(key: &[ComparisonKeyPart]) -> String {
    let values = key.iter().enumerate().map(|(at, part)| format!("{} AS k{at}", part.value_type.of_element("e", at)));
    let values: Vec<String> = values.collect();
    format!(
        "(SELECT {}, place FROM pg_catalog.jsonb_array_elements($1::pg_catalog.text::pg_catalog.jsonb) \
         WITH ORDINALITY AS x (e, place) OFFSET 0) AS w",
        values.join(", ")
    )
}

/// For each of the keys in `$1`: its place, and the hashes of the row's columns; no row for a key without one.
pub fn column_hashes(table: &QualifiedName, whole_tree: bool, key: &[ComparisonKeyPart], hashing: &Hashing) -> String {
    let only = if whole_tree { "" } else { "ONLY " };
    format!(
        "SELECT w.place, h.each FROM {} CROSS JOIN LATERAL (SELECT {} AS each FROM {only}{} AS t WHERE {} AND {}) AS h",
        wanted_keys(key),
        hashing.each(),
        table.sql(),
        same_key(key, "t"),
        is_table(table)
    )
}

/// For each of the keys in `$1`: its place and the row's columns as text, or no row.
pub fn rows_by_key(
    table: &QualifiedName,
    whole_tree: bool,
    row_filter: Option<&str>,
    key: &[ComparisonKeyPart],
    columns: &[Ident],
) -> String {
    let only = if whole_tree { "" } else { "ONLY " };
    let values: Vec<String> = columns
        .iter()
        .map(|column| {
            let name = column.sql();
            // The output function's text: a cast of char(n) to text would cut its blanks off.
            // `IS NULL` of a row is true for one of NULLs, too.
            format!("CASE WHEN {name} IS DISTINCT FROM NULL THEN pg_catalog.concat({name}) END")
        })
        .collect();
    let filter = row_filter.map(|filter| format!(" AND ({filter})")).unwrap_or_default();
    format!(
        "SELECT w.place, r.row FROM {} CROSS JOIN LATERAL \
         (SELECT ARRAY[{}]::pg_catalog.text[] AS row FROM {only}{} AS t WHERE {} AND {}{filter}) AS r",
        wanted_keys(key),
        values.join(", "),
        table.sql(),
        same_key(key, "t"),
        is_table(table)
    )
}

/// A table whose rows are put right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepairedTable {
    /// The table.
    pub table: QualifiedName,
    /// Rows of partitions belong to it.
    pub whole_tree: bool,
    /// Its key.
    pub key: Vec<ComparisonKeyPart>,
    /// The columns that are written, with their types.
    pub columns: Vec<(Ident, ValueType)>,
    /// Columns of them that no UPDATE can set (GENERATED ALWAYS AS IDENTITY).
    pub fixed: Vec<Ident>,
    /// All columns of the table that are not generated, local ones too.
    pub stored: Vec<Ident>,
}

impl RepairedTable {
    fn only(&self) -> &'static str {
        if self.whole_tree { "" } else { "ONLY " }
    }

    /// Deletes the rows with the keys in `$1`.
    pub fn delete(&self) -> String {
        let wanted = wanted_keys(&self.key);
        format!(
            "DELETE FROM {}{} AS t USING {wanted} WHERE {} AND {}",
            self.only(),
            self.table.sql(),
            same_key(&self.key, "t"),
            is_table(&self.table)
        )
    }

    /// The source's rows: `$1` is a JSON array of arrays of texts.
    fn rows(&self) -> String {
        let values: Vec<String> = self
            .columns
            .iter()
            .enumerate()
            .map(|(at, (column, value_type))| format!("{} AS {}", value_type.of_element("e", at), column.sql()))
            .collect();
        format!(
            "(SELECT {} FROM pg_catalog.jsonb_array_elements($1::pg_catalog.text::pg_catalog.jsonb) AS e OFFSET 0) AS s",
            values.join(", ")
        )
    }

    fn matches(&self, row: &str) -> String {
        let parts = self.key.iter().map(|part| {
            let (name, QualifiedName { schema, name: operator }) = (part.name.sql(), &part.equality);
            format!("{row}.{name} OPERATOR({}.{}) s.{name}", schema.sql(), operator.as_str())
        });
        parts.collect::<Vec<_>>().join(" AND ")
    }

    /// Whether the rows t and s differ in these columns.
    fn differ<'a>(columns: impl Iterator<Item = &'a Ident>) -> String {
        let columns: Vec<String> = columns.map(Ident::sql).collect();
        let image = |of: &str| {
            let values: Vec<String> = columns.iter().map(|column| format!("{of}.{column}")).collect();
            format!("ROW({})::pg_catalog.record", values.join(", "))
        };
        format!("{} OPERATOR(pg_catalog.*<>) {}", image("t"), image("s"))
    }

    /// The columns outside the key that no UPDATE can set.
    fn fixed_values(&self) -> Vec<&Ident> {
        let is_key = |name: &Ident| self.key.iter().any(|part| part.name == *name);
        self.fixed.iter().filter(|name| !is_key(name)).collect()
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
            "UPDATE {}{} AS t SET {} FROM {} WHERE {} AND {} AND {}",
            self.only(),
            self.table.sql(),
            set.join(", "),
            self.rows(),
            is_table(&self.table),
            self.matches("t"),
            Self::differ(self.columns.iter().map(|(column, _)| column))
        ))
    }

    /// Whether any row differs from the source's in a column that no UPDATE can set; `None` without such columns.
    pub fn fixed_differ(&self) -> Option<String> {
        let fixed = self.fixed_values();
        if fixed.is_empty() {
            return None;
        }
        Some(format!(
            "SELECT EXISTS (SELECT FROM {}{} AS t, {} WHERE {} AND {} AND {})",
            self.only(),
            self.table.sql(),
            self.rows(),
            is_table(&self.table),
            self.matches("t"),
            Self::differ(fixed.into_iter())
        ))
    }

    /// Deletes rows that differ and inserts them again, with what else they hold: where no UPDATE will do. All of them, since unique
    /// values change hands among them; or, with `only_fixed`, those that differ in a column that no UPDATE can set.
    pub fn exchange(&self, only_fixed: bool) -> String {
        let differ = if only_fixed {
            Self::differ(self.fixed_values().into_iter())
        } else {
            Self::differ(self.columns.iter().map(|(column, _)| column))
        };
        let names = |of: &str| {
            let names: Vec<String> = self.stored.iter().map(|column| format!("{of}{}", column.sql())).collect();
            names.join(", ")
        };
        let values = self.stored.iter().map(|column| {
            let of = if self.columns.iter().any(|(written, _)| written == column) { "s" } else { "d" };
            format!("{of}.{}", column.sql())
        });
        let order: Vec<String> =
            self.key.iter().map(|part| format!("pg_catalog.concat({})", part.name.sql())).collect();
        // Sorted, so that all are deleted before the first one is inserted.
        format!(
            "WITH gone AS (DELETE FROM {}{} AS t USING {} WHERE {} AND {} AND {differ} RETURNING {}) \
             INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM (SELECT * FROM gone ORDER BY {} OFFSET 0) AS d, {} WHERE {}",
            self.only(),
            self.table.sql(),
            self.rows(),
            is_table(&self.table),
            self.matches("t"),
            names("t."),
            self.table.sql(),
            names(""),
            values.collect::<Vec<_>>().join(", "),
            order.join(", "),
            self.rows(),
            self.matches("d")
        )
    }

    /// Inserts the source's rows that are missing.
    pub fn insert(&self) -> String {
        let names: Vec<String> = self.columns.iter().map(|(column, _)| column.sql()).collect();
        let values: Vec<String> = names.iter().map(|name| format!("s.{name}")).collect();
        let overriding = if self.fixed.is_empty() { "" } else { " OVERRIDING SYSTEM VALUE" };
        format!(
            "INSERT INTO {} ({}){overriding} SELECT {} FROM {} WHERE {} AND NOT EXISTS (SELECT FROM {}{} AS t WHERE {})",
            self.table.sql(),
            names.join(", "),
            values.join(", "),
            self.rows(),
            is_table(&self.table),
            self.only(),
            self.table.sql(),
            self.matches("t")
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value_type(sql: &str, built_in: bool) -> ValueType {
        ValueType { sql: sql.to_owned(), built_in }
    }

    #[test]
    fn a_part_reads_its_pages_and_the_rows_that_count() {
        let table = QualifiedName::new("public", "t");
        let part = Part { table: &table, whole_tree: false, row_filter: Some("(id > 5)"), pages: Some(8)..None };
        assert_eq!(
            part.from(None).replace(&is_table(&table), "is_table"),
            "FROM ONLY \"public\".\"t\" WHERE is_table AND ((id > 5)) AND ctid >= '(8,0)'::pg_catalog.tid"
        );
    }

    #[test]
    fn repair_finds_rows_by_the_keys_own_operator_and_writes_only_what_differs() {
        let repaired = RepairedTable {
            table: QualifiedName::new("public", "t"),
            whole_tree: false,
            key: vec![ComparisonKeyPart {
                name: Ident::new("id"),
                value_type: value_type("bigint", true),
                declared: "bigint".to_owned(),
                equality: QualifiedName::new("pg_catalog", "="),
            }],
            columns: vec![
                (Ident::new("id"), value_type("bigint", true)),
                (Ident::new("v"), value_type("public.mood", false)),
            ],
            fixed: vec![Ident::new("id")],
            stored: vec![Ident::new("id"), Ident::new("v"), Ident::new("local")],
        };
        assert_eq!(
            repaired
                .delete()
                .replace(&is_table(&repaired.table), "is_table")
                .replace(&has_type("t.\"id\"", "bigint"), "has_type"),
            "DELETE FROM ONLY \"public\".\"t\" AS t USING (SELECT (e ->> 0)::bigint AS k0, place FROM \
             pg_catalog.jsonb_array_elements($1::pg_catalog.text::pg_catalog.jsonb) WITH ORDINALITY AS x (e, place) OFFSET 0) \
             AS w WHERE t.\"id\" OPERATOR(\"pg_catalog\".=) w.k0 AND has_type AND is_table"
        );
        let update = repaired.update().unwrap();
        assert!(update.starts_with("UPDATE ONLY \"public\".\"t\" AS t SET \"v\" = s.\"v\" FROM (SELECT"), "{update}");
        assert!(!update.contains("::public.mood") && update.contains("AS r (v public.mood)) AS \"v\""), "{update}");
        assert!(repaired.insert().contains("OVERRIDING SYSTEM VALUE"));
        assert_eq!(repaired.fixed_differ(), None, "a key's column is found, not set");
        let exchange = repaired.exchange(false);
        assert!(exchange.contains("SELECT s.\"id\", s.\"v\", d.\"local\" FROM (SELECT * FROM gone"), "{exchange}");
    }
}

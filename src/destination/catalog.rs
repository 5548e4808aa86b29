//! The destination's tables as they are now.
//!
//! Read by `supervisor` at every start, and again when a relation changes; handed to `apply_plan` as data. Nothing is cached
//! beyond that: the catalog is the truth, also after an operator's ALTER TABLE.

use std::collections::BTreeMap;

use super::error::DestinationError;
use crate::catalog::schema::{TableDefinition, TypeDefinition, Types};
use crate::pg::{QualifiedName, TypeId};
use crate::session::{Row, SessionError, SqlClient, describe_named_types, describe_tables, describe_types};
use crate::sql::table_guard::is_table;

/// A destination table, and whether it has rows.
#[derive(Clone, Debug)]
pub struct DestinationTable {
    /// What it is.
    pub definition: TableDefinition,
}

/// A table whose rows are counted.
#[derive(Clone, Copy, Debug)]
pub struct TableToCount<'a> {
    /// Its name.
    pub name: &'a QualifiedName,
    /// Up to so many are counted.
    pub most: i64,
}

/// The tables of the set that exist at the destination, and their types.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    /// The tables by name.
    pub tables: BTreeMap<QualifiedName, DestinationTable>,
    /// The types that their columns have, and what was learnt of others.
    pub types: Types,
}

impl Catalog {
    /// Reads the tables among `names` that exist.
    ///
    /// # Errors
    /// [`DestinationError`].
    pub async fn read(client: &SqlClient, names: &[QualifiedName]) -> Result<Catalog, DestinationError> {
        let definitions = describe_tables(client, names).await?;
        let mut ids: Vec<TypeId> =
            definitions.iter().flat_map(|table| table.columns.iter().map(|column| column.type_id)).collect();
        ids.sort_unstable();
        ids.dedup();
        let types = describe_types(client, &ids).await?;
        let tables =
            definitions.into_iter().map(|definition| (definition.name(), DestinationTable { definition })).collect();
        Ok(Catalog { tables, types })
    }

    /// Learns what the destination has of the source's types, also of those that none of its tables uses yet.
    ///
    /// # Errors
    /// [`DestinationError`].
    pub async fn learn_types(&mut self, client: &SqlClient, source: &Types) -> Result<(), DestinationError> {
        let (built_in, named): (Vec<&TypeDefinition>, Vec<&TypeDefinition>) =
            source.values().partition(|definition| definition.id.is_built_in());
        let built_in: Vec<TypeId> = built_in.into_iter().map(|definition| definition.id).collect();
        let named: Vec<QualifiedName> = named.into_iter().map(TypeDefinition::qualified_name).collect();
        self.types.extend(describe_types(client, &built_in).await?);
        self.types.extend(describe_named_types(client, &named).await?);
        Ok(())
    }

    /// Reads the types again that are known.
    ///
    /// # Errors
    /// [`DestinationError`].
    pub async fn read_types_again(&mut self, client: &SqlClient) -> Result<(), DestinationError> {
        let ids: Vec<TypeId> = self.types.keys().copied().collect();
        self.types.extend(describe_types(client, &ids).await?);
        Ok(())
    }

    /// The table of a name, if it exists.
    pub fn table(&self, name: &QualifiedName) -> Option<&TableDefinition> {
        self.tables.get(name).map(|table| &table.definition)
    }

    /// Takes in a table that has changed, and its types.
    pub(super) fn replace(&mut self, definition: TableDefinition, types: Types) {
        self.types.extend(types);
        self.tables.insert(definition.name(), DestinationTable { definition });
    }

    /// Roughly how many rows a table has: its exact number up to `most`, otherwise the planner's estimate. Those of tables that
    /// inherit from it are not its own, as in everything that is written to it; those of partitions are.
    ///
    /// # Errors
    /// [`DestinationError`].
    pub async fn count_rows(client: &SqlClient, name: &QualifiedName, most: i64) -> Result<i64, DestinationError> {
        let counts = Catalog::count_rows_of_each(client, &[TableToCount { name, most }]).await?;
        Ok(counts.into_iter().next().expect("one count for each table"))
    }

    /// The same of each of these tables.
    ///
    /// # Errors
    /// [`DestinationError`].
    pub async fn count_rows_of_each(
        client: &SqlClient,
        tables: &[TableToCount<'_>],
    ) -> Result<Vec<i64>, DestinationError> {
        const DOING: &str = "counting rows";
        if tables.is_empty() {
            return Ok(Vec::new());
        }
        let names: Vec<String> = tables.iter().map(|table| table.name.sql()).collect();
        let sql = "SELECT c.relkind = 'p', c.reltuples::bigint
                   FROM pg_catalog.unnest($1::text[]) WITH ORDINALITY AS t (name, number)
                   JOIN pg_catalog.pg_class c ON c.oid = t.name::regclass ORDER BY t.number";
        let found = client.query(DOING, sql, &[&names]).await?;
        let mut questions = Vec::new();
        for (found, TableToCount { name, most }) in found.iter().zip(tables) {
            let only = if found.get(0)? { "" } else { "ONLY " };
            let estimate: i64 = found.get(1)?;
            questions.push(format!(
                "SELECT CASE WHEN n < {most} THEN n ELSE GREATEST(n, {estimate}) END
                 FROM (SELECT pg_catalog.count(*) AS n FROM (SELECT FROM {only}{} WHERE {} LIMIT {most}) AS sample) AS counted",
                name.sql(),
                is_table(name)
            ));
        }
        let counts = client.query_each(DOING, &questions).await?;
        if counts.len() != tables.len() {
            return Err(SessionError::answer(DOING, "not one row for each table").into());
        }
        let count = |rows: &Vec<Row>| match rows.first() {
            Some(row) => row.get(0),
            None => Err(SessionError::answer(DOING, "no row")),
        };
        Ok(counts.iter().map(count).collect::<Result<_, SessionError>>()?)
    }
}

//! Collations of the destination that make keys equal which the source tells apart: found and refused.
//!
//! Called by `prepare` before an attempt, and by `check`. In come both catalogs; out goes a report, or nothing. Tables that both ends
//! have are compared by [`determinism::looser`], which says what is compared and why. Tables and columns to come are made by the
//! names of types and collations, so the destination's of these names are compared; what was made of them is compared again before a
//! row comes into it, by `destination::staging` and `destination::apply::schema_follower`. Invariant: so many statements at either
//! end as there are kinds of things, whatever the number of tables.

use std::collections::{BTreeMap, BTreeSet};

use crate::catalog::determinism;
use crate::catalog::fit::End;
use crate::catalog::schema::{ColumnDefinition, TypeDefinition};
use crate::destination::{Catalog, DestinationError, LooserCollations, needed_types, nondeterministic_collations};
use crate::error_policy::Fault;
use crate::pg::{ErrorReport, QualifiedName, shown_sql};
use crate::preflight::missing_objects::to_create;
use crate::session::Clients;
use crate::source::{SourceCatalog, collation_statements};

/// What is to be done about collations; `None` where there is nothing. `existing` has learnt the source's types.
///
/// # Errors
/// [`Fault`] when a server does not answer.
pub(crate) async fn report(
    Clients { source, destination }: Clients<'_>,
    catalog: &SourceCatalog,
    existing: &Catalog,
) -> Result<Option<ErrorReport>, Fault> {
    let mut found = LooserCollations::default();
    for table in &catalog.tables {
        let from = End { table: &table.definition, types: &catalog.types };
        if let Some(to) = existing.table(&table.definition.name()) {
            let looser = determinism::looser(from, End { table: to, types: &existing.types }, |_| false);
            found.add_table(&to.name(), End { table: to, types: &existing.types }, &looser);
        }
    }
    let mut users: BTreeMap<QualifiedName, BTreeSet<String>> = BTreeMap::new();
    for table in &catalog.tables {
        let name = table.definition.name();
        let columns = to_create(table, existing.table(&name));
        for column in &columns {
            let user = format!("{name}.{}", column.name);
            for collation in types_to_come(catalog, existing, column, &user, &mut found)? {
                users.entry(collation).or_default().insert(user.clone());
            }
            if let (Some(collation), None) = (&column.collation, &column.nondeterministic) {
                users.entry(collation.clone()).or_default().insert(user);
            }
        }
        if existing.table(&name).is_none() {
            for index in &table.definition.indexes {
                let deterministic = index.parts.iter().filter(|part| part.nondeterministic.is_none());
                for collation in deterministic.filter_map(|part| part.collation.clone()) {
                    users.entry(collation).or_default().insert(format!("index {} of {name}", index.name));
                }
            }
        }
    }
    let names: Vec<QualifiedName> = users.keys().cloned().collect();
    let loose = match names.is_empty() {
        true => BTreeSet::new(),
        false => nondeterministic_collations(destination, &names).await?,
    };
    if !loose.is_empty() {
        let loose: Vec<QualifiedName> = loose.into_iter().collect();
        let statements = collation_statements(source, &loose).await?;
        for name in &loose {
            let users: Vec<&str> = users.get(name).into_iter().flatten().map(String::as_str).collect();
            let creation = statements.get(name).map(|statement| shown_sql(statement));
            found.add_collation(name, &users.join(", "), creation);
        }
    }
    Ok(found.report())
}

/// Compares the destination's types that a column to come would have; returns the source's deterministic collations by whose names those
/// will be created that are missing.
fn types_to_come(
    catalog: &SourceCatalog,
    existing: &Catalog,
    column: &ColumnDefinition,
    user: &str,
    found: &mut LooserCollations,
) -> Result<Vec<QualifiedName>, DestinationError> {
    let mut collations = Vec::new();
    for id in needed_types(&catalog.types, std::iter::once(column.type_id))? {
        let Some(definition) = catalog.types.get(&id).filter(|definition| definition.element.is_none()) else {
            continue;
        };
        let name = definition.qualified_name();
        let is_it = |here: &&TypeDefinition| here.qualified_name() == name && here.element.is_none();
        match existing.types.values().find(is_it) {
            None => collations.extend(definition.deterministic_collations().cloned()),
            Some(here) => {
                if let Some((collation, of_type)) =
                    determinism::looser_type(id, &catalog.types, here.id, &existing.types)
                {
                    found.add_type(of_type, collation, user);
                }
            }
        }
    }
    Ok(collations)
}

/// Refuses what [`report`] finds.
pub(crate) async fn refuse(clients: Clients<'_>, catalog: &SourceCatalog, existing: &Catalog) -> Result<(), Fault> {
    match report(clients, catalog, existing).await? {
        Some(report) => Err(Fault::Destination(DestinationError::Refused(report))),
        None => Ok(()),
    }
}

//! What to say where a collation of the destination takes values for equal that the source tells apart, and which collations do.
//!
//! In come the places that [`crate::catalog::determinism`] has found, by `preflight` for whole tables and by
//! `apply::schema_follower` for what a schema change has just made; out goes one report with the statements that end them.
//! Collations of tables to come are asked for by name, since the destination's of that name is what they would get.

use std::collections::BTreeSet;

use super::error::DestinationError;
use crate::catalog::determinism::{Looser, LooserPart};
use crate::catalog::fit::{End, type_sql};
use crate::catalog::schema::{IndexDefinition, IndexPart, TypeDefinition, TypeKind};
use crate::pg::{ErrorReport, QualifiedName};
use crate::schema_change::constraint_difference::index_drops;
use crate::session::SqlClient;

/// Lines of a report at most: it is for a terminal.
const LISTED_MAX: usize = 20;
/// What is put behind the name of what is in the way.
const MOVED: &str = "_nondeterministic";

/// What a report says, before it is one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LooserCollations {
    lines: Vec<String>,
    /// What no statement does.
    words: BTreeSet<String>,
    statements: Vec<String>,
}

impl LooserCollations {
    /// Takes in the places of a table of the destination, which is called `name` or will be.
    pub fn add_table(&mut self, name: &QualifiedName, End { table, types }: End<'_>, found: &[Looser<'_>]) {
        for Looser { place, collation } in found {
            match place {
                LooserPart::Column { column, of_type, is_new } => {
                    self.lines.push(equal(&format!("Column {} of table {name}: values", column.name), collation));
                    match (of_type, is_new) {
                        (Some(of_type), true) => self.move_type(of_type),
                        (None, true) => self.move_collation(collation),
                        // It is part of a value, whose type cannot be changed while a column has it.
                        (Some(of_type), false) if of_type.kind != TypeKind::Domain => self.remake(of_type),
                        (_, false) => {
                            let wanted = type_sql(column.type_id, column.type_modifier, types).unwrap_or_default();
                            self.run(format!(
                                "ALTER TABLE {name} ALTER COLUMN {} TYPE {wanted} COLLATE pg_catalog.\"default\";",
                                column.name
                            ));
                        }
                    }
                }
                LooserPart::Index(index) => {
                    self.lines.push(equal(&format!("Index {} of table {name}: keys", index.name), collation));
                    index_drops(table, index).into_iter().for_each(|drop| self.run(format!("{drop};")));
                    if let Some(columns) = plain_columns(index) {
                        self.run(format!("CREATE UNIQUE INDEX {} ON {name} ({columns});", index.name));
                    }
                }
            }
        }
    }

    /// Takes in a type of the destination that a column to come would get.
    pub fn add_type(&mut self, definition: &TypeDefinition, collation: &QualifiedName, users: &str) {
        let name = definition.qualified_name();
        self.lines.push(equal(&format!("Type {name}, which the destination would use for {users}: values"), collation));
        self.move_type(definition);
    }

    /// Takes in a collation of the destination that a column or an index to come would get. `creation`: what creates the source's.
    pub fn add_collation(&mut self, name: &QualifiedName, users: &str, creation: Option<String>) {
        self.lines.push(equal(&format!("What the destination would create for {users}: values"), name));
        self.move_collation(name);
        creation.into_iter().for_each(|statement| self.run(statement));
    }

    /// The report; `None` where nothing was taken in.
    pub fn report(mut self) -> Option<ErrorReport> {
        if self.lines.is_empty() {
            return None;
        }
        let more = self.lines.len().saturating_sub(LISTED_MAX);
        self.lines.truncate(LISTED_MAX);
        if more > 0 {
            self.lines.push(format!("{more} more likewise."));
        }
        self.lines.push(
            "These collations are nondeterministic, the source's are not. Rows whose keys differ at the source alone would be refused, \
             overwritten, or changed and deleted together."
                .to_owned(),
        );
        let mut words: Vec<String> = self.words.into_iter().collect();
        if !self.statements.is_empty() {
            words.push(format!("Run at the destination, as the owner of these:\n{}", self.statements.join("\n")));
        }
        let report = ErrorReport::new("collations of the destination make values equal that differ at the source");
        Some(report.detail(self.lines.join("\n")).hint(words.join(" ")))
    }

    fn run(&mut self, statement: String) {
        if !self.statements.contains(&statement) {
            self.statements.push(statement);
        }
    }

    /// Columns that have it keep it; headwater finds none under the name, and says what creates the source's.
    fn move_collation(&mut self, name: &QualifiedName) {
        self.run(format!("ALTER COLLATION {name} RENAME TO {};", name.name.with_suffix(MOVED)));
    }

    /// headwater creates the source's then.
    fn move_type(&mut self, definition: &TypeDefinition) {
        let (name, moved) = (definition.qualified_name(), definition.name.with_suffix(MOVED));
        match definition.kind {
            TypeKind::Domain => self.run(format!("ALTER DOMAIN {name} RENAME TO {moved};")),
            TypeKind::Composite => self.run(format!("ALTER TYPE {name} RENAME TO {moved};")),
            TypeKind::Base | TypeKind::Enum | TypeKind::Multirange | TypeKind::Pseudo | TypeKind::Range => {
                self.remake(definition);
            }
        }
    }

    fn remake(&mut self, definition: &TypeDefinition) {
        let name = definition.qualified_name();
        self.words.insert(format!("Create type {name} again at the destination, as it is at the source."));
    }
}

fn equal(what: &str, collation: &QualifiedName) -> String {
    format!("{what} that the source tells apart are equal by collation {collation}.")
}

/// The columns of a unique index that can be made again without its collations.
fn plain_columns(index: &IndexDefinition) -> Option<String> {
    if !index.unique || index.primary || index.predicate.is_some() || index.method.as_str() != "btree" {
        return None;
    }
    if index.parts.iter().any(|part| part.included || part.operator_class.is_some()) {
        return None;
    }
    let column = |part: &IndexPart| {
        let name = part.column.as_ref()?;
        Some(match part.nondeterministic {
            Some(_) => format!("{name} COLLATE pg_catalog.\"default\""),
            None => name.to_string(),
        })
    };
    Some(index.parts.iter().map(column).collect::<Option<Vec<_>>>()?.join(", "))
}

/// The collations among `names` that are nondeterministic.
///
/// # Errors
/// [`DestinationError`].
pub async fn nondeterministic_collations(
    client: &SqlClient,
    names: &[QualifiedName],
) -> Result<BTreeSet<QualifiedName>, DestinationError> {
    let sql = "SELECT n.nspname::text, c.collname::text
               FROM ROWS FROM (pg_catalog.unnest($1::text[]), pg_catalog.unnest($2::text[])) AS wanted (schema, name)
               JOIN pg_catalog.pg_namespace n ON n.nspname = wanted.schema
               JOIN pg_catalog.pg_collation c ON c.collnamespace = n.oid AND c.collname = wanted.name
               WHERE NOT c.collisdeterministic";
    let schemas: Vec<&str> = names.iter().map(|name| name.schema.as_str()).collect();
    let collations: Vec<&str> = names.iter().map(|name| name.name.as_str()).collect();
    let rows = client.query("comparing collations", sql, &[&schemas, &collations]).await?;
    rows.iter().map(|row| Ok(QualifiedName::new(row.get::<&str>(0)?, row.get::<&str>(1)?))).collect()
}

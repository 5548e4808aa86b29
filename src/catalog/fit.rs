//! Whether a destination table fits its source, column by column, and in which format its values can travel.
//!
//! Asked by preflight for whole tables and again whenever a Relation message differs from the last one. Values travel
//! in binary when both ends have the same built-in type, or an enum or domain over one; otherwise as text. All misfits
//! of a table are reported at once, each with the statement that fixes it.
//!
//! Why so narrow: a binary value is the type's memory, near enough. Arrays and composites over user types carry OIDs
//! that differ between servers; extensions may differ in version; the reg* types are OIDs. Text is understood by
//! every server.

use std::collections::BTreeMap;

use crate::catalog::attribute_names::{attribute_names, replace_attributes};
use crate::catalog::schema::{
    ColumnDefinition, GeneratedColumn, Identity, IdentityColumn, TableDefinition, TypeDefinition, TypeKind, Types,
};
use crate::catalog::shape::{Shape, ShapeColumn};
use crate::catalog::value_format::{Carried, carries, definition_sql, text_differs};
use crate::pg::{Column, Ident, QualifiedName, Relation, ReplicaIdentity, TypeId};

pub use crate::catalog::value_format::{Transfer, modifier_at, modifier_sql, type_sql};

pub(crate) use crate::catalog::value_format::{modifier_fits, widens};

/// Whether the destination has a type of the same name that is not the same type; what it is at both ends.
pub fn type_misfit(id: TypeId, source_types: &Types, destination_types: &Types) -> Option<String> {
    let from = Carried::of(id, -1, source_types)?;
    let name = from.definition.qualified_name();
    let to = destination_types.values().find(|other| other.qualified_name() == name && other.element.is_none())?;
    let to = Carried::of(to.id, -1, destination_types)?;
    if from.definition.element.is_some() || carries(from, to).is_some() {
        return None;
    }
    let what = |carried| definition_sql(carried).unwrap_or_else(|| "something else".to_owned());
    Some(format!("type {name} is {} at the source, but {} at the destination", what(from), what(to)))
}

/// A column that cannot take what the source sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misfit {
    /// What is wrong.
    pub problem: String,
    /// The statement that fixes it, at the destination; `None` where that is the operator's choice.
    pub remedy: Option<String>,
}

/// One end's tables and types.
#[derive(Clone, Copy, Debug)]
pub struct End<'a> {
    /// The table.
    pub table: &'a TableDefinition,
    /// The types that it uses.
    pub types: &'a Types,
}

/// The source's types as a table that is created at the destination gets them: by their names, in the destination's forms and
/// versions. `destination` holds what it has of them.
pub fn as_created(source: &Types, destination: &Types) -> Types {
    let mut created = source.clone();
    let named: BTreeMap<QualifiedName, &TypeDefinition> =
        destination.values().map(|definition| (definition.qualified_name(), definition)).collect();
    for definition in created.values_mut() {
        let there = if definition.id.is_built_in() {
            destination.get(&definition.id)
        } else {
            named.get(&definition.qualified_name()).copied()
        };
        if let Some(there) = there {
            definition.has_binary = there.has_binary;
            definition.binary_form = there.binary_form;
            definition.text_form = there.text_form;
            definition.extension_version.clone_from(&there.extension_version);
        }
    }
    created
}

/// Compares a destination table with the source's, over the columns that are published.
///
/// # Errors
/// Every [`Misfit`] of the table.
pub fn table_fit(
    source: End<'_>,
    published: &[&ColumnDefinition],
    destination: End<'_>,
) -> Result<Transfer, Vec<Misfit>> {
    let name = destination.table.name();
    let mut misfits = Vec::new();
    let mut transfer = Transfer::Binary;
    for from in published {
        let Some(to) = destination.table.column(&from.name) else {
            misfits.push(missing(&name, &PublishedColumn::from(*from), source.types));
            continue;
        };
        match column_fit(&name, &PublishedColumn::from(*from), source.types, to, destination.types) {
            Ok(format) => transfer = transfer.max(format),
            Err(misfit) => misfits.push(misfit),
        }
        // A table to come is described by the source's own definition; its identities will be BY DEFAULT.
        let exists = !std::ptr::eq(source.table, destination.table);
        misfits.extend(always_misfit(&name, to, !exists || is_known_by(source.table, &to.name)));
    }
    for local in &destination.table.columns {
        if published.iter().any(|column| column.name == local.name) {
            continue;
        }
        let at_source = source.table.column(&local.name);
        if at_source.is_some_and(|column| column.generated.is_some()) && local.generated.is_none() {
            misfits.push(Misfit {
                problem: format!(
                    "column {} is generated at the source and not published, but an ordinary column here",
                    local.name
                ),
                // A copy adds it as the source has it.
                remedy: Some(format!("ALTER TABLE {name} DROP COLUMN {};", local.name)),
            });
        } else if local.not_null && local.default.is_none() && local.identity.is_none() && local.generated.is_none() {
            misfits.push(Misfit {
                problem: format!(
                    "column {} does not come from the source, and is NOT NULL without a default",
                    local.name
                ),
                remedy: Some(format!("ALTER TABLE {name} ALTER COLUMN {} DROP NOT NULL;", local.name)),
            });
        }
    }
    if misfits.is_empty() { Ok(transfer) } else { Err(misfits) }
}

/// Compares a destination table with a relation as the stream has just described it.
///
/// # Errors
/// Every [`Misfit`] of the columns that the relation has.
pub fn relation_fit(relation: &Relation, source_types: &Types, destination: End<'_>) -> Result<Transfer, Vec<Misfit>> {
    let name = destination.table.name();
    let mut misfits = Vec::new();
    let mut transfer = Transfer::Binary;
    for column in &relation.columns {
        let from = PublishedColumn {
            name: &column.name,
            type_id: column.type_id,
            type_modifier: column.type_modifier,
            // A stream that carries a generated column wants it stored or recomputed: the destination's kind decides.
            generated: destination.table.column(&column.name).is_some_and(|to| to.generated.is_some()),
        };
        let fit = match destination.table.column(&column.name) {
            Some(to) => column_fit(&name, &from, source_types, to, destination.types),
            None => Err(missing(&name, &from, source_types)),
        };
        match fit {
            Ok(format) => transfer = transfer.max(format),
            Err(misfit) => misfits.push(misfit),
        }
        // Where the source sends whole old rows, a change of it is seen, and refused by the server.
        let known = column.in_identity || relation.replica_identity == ReplicaIdentity::Full;
        misfits.extend(destination.table.column(&column.name).and_then(|to| always_misfit(&name, to, known)));
    }
    if misfits.is_empty() { Ok(transfer) } else { Err(misfits) }
}

/// The column of a destination's table that may be one that it lacks, renamed: the only one of its type that the source does not have.
pub fn renamed_column<'a>(
    type_id: TypeId,
    type_modifier: i32,
    source_types: &Types,
    destination: End<'a>,
    is_known: impl Fn(&Ident) -> bool,
) -> Option<&'a Ident> {
    let from = Carried::of(type_id, type_modifier, source_types)?;
    let wanted = type_sql(type_id, type_modifier, source_types)?;
    let mut candidates = destination.table.columns.iter().filter(|column| {
        let to = Carried::of(column.type_id, column.type_modifier, destination.types);
        !is_known(&column.name)
            && column.generated.is_none()
            && to.is_some_and(|to| carries(from, to).is_some())
            && type_sql(column.type_id, column.type_modifier, destination.types).is_some_and(|found| found == wanted)
    });
    candidates.next().filter(|_| candidates.next().is_none()).map(|column| &column.name)
}

/// No UPDATE can set a GENERATED ALWAYS identity, and outside of the key nothing tells whether the source has changed it.
fn always_misfit(table: &QualifiedName, to: &ColumnDefinition, known: bool) -> Option<Misfit> {
    (to.identity == Some(IdentityColumn::Always) && !known).then(|| Misfit {
        problem: format!("column {} is GENERATED ALWAYS AS IDENTITY here, so no update could set it", to.name),
        remedy: Some(format!("ALTER TABLE {table} ALTER COLUMN {} SET GENERATED BY DEFAULT;", to.name)),
    })
}

/// Whether the source identifies rows by this column.
fn is_known_by(table: &TableDefinition, column: &Ident) -> bool {
    match table.identity_columns() {
        Identity::Key(key) => key.contains(&column),
        Identity::WholeRow => {
            table.indexes.iter().any(|index| index.primary && index.key_columns().any(|name| name == column))
        }
        Identity::None => true,
    }
}

/// The columns whose values must not travel as text, because it means something else to the other server's major.
pub fn text_misfits(source: End<'_>, published: &[&ColumnDefinition], destination: End<'_>) -> Vec<Misfit> {
    let differs = |from: &&&ColumnDefinition| {
        let to = destination.table.column(&from.name);
        let to = to.and_then(|to| Carried::of(to.type_id, to.type_modifier, destination.types));
        let from = Carried::of(from.type_id, from.type_modifier, source.types);
        from.zip(to).is_some_and(|(from, to)| text_differs(from, to))
    };
    let misfit = |from: &&ColumnDefinition| Misfit {
        problem: format!(
            "column {} is {}, whose text differs between the two servers' majors, and another column keeps values from \
             travelling in binary",
            from.name,
            type_sql(from.type_id, from.type_modifier, source.types).unwrap_or_else(|| "?".to_owned())
        ),
        remedy: None,
    };
    published.iter().filter(differs).map(misfit).collect()
}

/// The format for a stream of a table: binary if everything that is published can travel so now. What does not fit yet,
/// because the stream has not come to it, travels as text; what is missing yet will be created, with these types.
pub fn stream_format(
    source: End<'_>,
    published: &[&ColumnDefinition],
    destination: End<'_>,
    created: &Types,
) -> Transfer {
    let name = destination.table.name();
    let format = |from: &&ColumnDefinition| {
        let (to, types) = destination.table.column(&from.name).map_or((*from, created), |to| (to, destination.types));
        column_fit(&name, &PublishedColumn::from(*from), source.types, to, types).unwrap_or(Transfer::Text)
    };
    published.iter().map(format).max().unwrap_or(Transfer::Binary)
}

/// The format for what the stream may still bring of a table as it was when it was last described: the catalog may be ahead.
pub fn remembered_format(shape: &Shape, source_types: &Types, destination: End<'_>) -> Transfer {
    let name = destination.table.name();
    let format = |column: &ShapeColumn| {
        let to = destination.table.column(&column.name)?;
        let from = PublishedColumn {
            name: &column.name,
            type_id: column.type_id,
            type_modifier: column.type_modifier,
            generated: to.generated.is_some(),
        };
        Some(column_fit(&name, &from, source_types, to, destination.types).unwrap_or(Transfer::Text))
    };
    shape.columns.iter().filter_map(format).max().unwrap_or(Transfer::Binary)
}

/// The published columns whose values travel as text, with their types as SQL.
pub fn text_columns(
    source: End<'_>,
    published: &[&ColumnDefinition],
    destination: End<'_>,
    created: &Types,
) -> Vec<(Ident, String)> {
    let name = destination.table.name();
    let text = |from: &&&ColumnDefinition| {
        let (to, types) = destination.table.column(&from.name).map_or((**from, created), |to| (to, destination.types));
        column_fit(&name, &PublishedColumn::from(**from), source.types, to, types) == Ok(Transfer::Text)
    };
    let shown = |from: &&ColumnDefinition| {
        let sql = type_sql(from.type_id, from.type_modifier, source.types);
        (from.name.clone(), sql.unwrap_or_else(|| "?".to_owned()))
    };
    published.iter().filter(text).map(shown).collect()
}

/// Whether a destination's column takes what a relation's column brings.
pub fn column_takes(column: &Column, source_types: &Types, to: &ColumnDefinition, destination_types: &Types) -> bool {
    let from = PublishedColumn {
        name: &column.name,
        type_id: column.type_id,
        type_modifier: column.type_modifier,
        generated: to.generated.is_some(),
    };
    let nowhere = QualifiedName::new("", "");
    column_fit(&nowhere, &from, source_types, to, destination_types).is_ok()
}

fn missing(table: &QualifiedName, column: &PublishedColumn<'_>, types: &Types) -> Misfit {
    let name = column.name;
    Misfit {
        problem: format!("column {name} is missing at the destination"),
        remedy: type_sql(column.type_id, column.type_modifier, types)
            .map(|sql| format!("ALTER TABLE {table} ADD COLUMN {name} {sql};")),
    }
}

/// What the source says of a column that it sends.
struct PublishedColumn<'a> {
    name: &'a Ident,
    type_id: TypeId,
    type_modifier: i32,
    generated: bool,
}

impl<'a> From<&'a ColumnDefinition> for PublishedColumn<'a> {
    fn from(column: &'a ColumnDefinition) -> PublishedColumn<'a> {
        let ColumnDefinition { name, type_id, type_modifier, generated, .. } = column;
        PublishedColumn { name, type_id: *type_id, type_modifier: *type_modifier, generated: generated.is_some() }
    }
}

fn column_fit(
    table: &QualifiedName,
    from: &PublishedColumn<'_>,
    source_types: &Types,
    to: &ColumnDefinition,
    destination_types: &Types,
) -> Result<Transfer, Misfit> {
    if to.generated.is_some() && !from.generated {
        return Err(Misfit {
            problem: format!("column {} is an ordinary column at the source, but generated here", to.name),
            remedy: Some(match to.generated {
                Some(GeneratedColumn::Virtual) => format!("ALTER TABLE {table} DROP COLUMN {};", to.name),
                Some(GeneratedColumn::Stored) | None => {
                    format!("ALTER TABLE {table} ALTER COLUMN {} DROP EXPRESSION;", to.name)
                }
            }),
        });
    }
    let unknown =
        |id: TypeId| Misfit { problem: format!("column {} has an unknown type ({id})", to.name), remedy: None };
    let from_type = Carried::of(from.type_id, from.type_modifier, source_types).ok_or_else(|| unknown(from.type_id))?;
    let to_type = Carried::of(to.type_id, to.type_modifier, destination_types).ok_or_else(|| unknown(to.type_id))?;
    carries(from_type, to_type).ok_or_else(|| {
        let shown = |id, modifier, types| type_sql(id, modifier, types).unwrap_or_else(|| "?".to_owned());
        let wanted = shown(from.type_id, from.type_modifier, source_types);
        let found = shown(to.type_id, to.type_modifier, destination_types);
        if wanted == found {
            return other_definition(table, &to.name, &wanted, from_type, to_type);
        }
        // Between other types there may be no cast that an assignment calls, or one that rounds.
        let is_read = from.type_id == to.type_id || widens(to.type_id, from.type_id);
        let name = &to.name;
        let remedy = match is_read {
            true => format!("ALTER TABLE {table} ALTER COLUMN {name} TYPE {wanted};"),
            false => format!("ALTER TABLE {table} ALTER COLUMN {name} TYPE {wanted} USING {name}::text::{wanted};"),
        };
        Misfit { problem: format!("column {name} is {wanted} at the source, but {found} here"), remedy: Some(remedy) }
    })
}

/// The types have one name, and are not one type.
fn other_definition(table: &QualifiedName, column: &Ident, whole: &str, from: Carried<'_>, to: Carried<'_>) -> Misfit {
    let (from, to) = (from.innermost(), to.innermost());
    let name = from.definition.qualified_name();
    let (wanted, found) = (definition_sql(from), definition_sql(to));
    let what = |definition: Option<&str>| definition.unwrap_or("something else").to_owned();
    let problem = format!(
        "column {column} is of type {name} at both ends, which is {} at the source, but {} here",
        what(wanted.as_deref()),
        what(found.as_deref())
    );
    let recreate = |kind: &str| {
        let (wanted, old) = (wanted.as_deref()?, name.name.with_suffix("_old"));
        Some(format!(
            "ALTER {kind} {name} RENAME TO {old};\nCREATE {kind} {name} AS {wanted};\n\
             ALTER TABLE {table} ALTER COLUMN {column} TYPE {whole} USING {column}::text::{whole};"
        ))
    };
    let remedy = match from.definition.kind {
        TypeKind::Composite => composite_remedy(from, to),
        TypeKind::Domain => recreate("DOMAIN"),
        TypeKind::Range => recreate("TYPE"),
        TypeKind::Base | TypeKind::Enum | TypeKind::Multirange | TypeKind::Pseudo => None,
    };
    Misfit { problem, remedy }
}

/// New names where that is all, which keeps the values; otherwise other attributes, whose values a copy brings.
fn composite_remedy(from: Carried<'_>, to: Carried<'_>) -> Option<String> {
    let name = from.definition.qualified_name();
    let renamed = attribute_names(from.types, to.types).into_iter().find(|renamed| renamed.name == name);
    let Some(renamed) = renamed else { return replace_attributes(from, to) };
    let statements: Vec<String> = renamed.statements.iter().map(|statement| format!("{statement};")).collect();
    Some(statements.join("\n"))
}

#[cfg(test)]
mod tests {
    use std::slice;

    use super::*;
    use crate::testing::{TestColumn, table, types};

    fn fit(source: &[TestColumn], destination: &[TestColumn]) -> Result<Transfer, String> {
        let (from, to) = (table("t", source), table("t", destination));
        let published: Vec<&ColumnDefinition> = from.columns.iter().collect();
        let types = types();
        table_fit(End { table: &from, types: &types }, &published, End { table: &to, types: &types }).map_err(
            |misfits| {
                misfits
                    .into_iter()
                    .map(|m| format!("{} | {}", m.problem, m.remedy.unwrap_or_default()))
                    .collect::<Vec<_>>()
                    .join("\n")
            },
        )
    }

    #[test]
    fn same_built_in_types_travel_in_binary_and_widened_ones_as_text() {
        let id = TestColumn::new("id", 23);
        assert_eq!(fit(slice::from_ref(&id), slice::from_ref(&id)), Ok(Transfer::Binary));
        assert_eq!(fit(slice::from_ref(&id), &[TestColumn::new("id", 20)]), Ok(Transfer::Text));
        assert_eq!(fit(&[TestColumn::new("x", 1043).modifier(24)], &[TestColumn::new("x", 25)]), Ok(Transfer::Text));
        assert_eq!(fit(&[TestColumn::new("x", 142)], &[TestColumn::new("x", 142)]), Ok(Transfer::Text), "xml");
    }

    #[test]
    fn columns_are_matched_by_name_in_any_order_with_local_ones_between() {
        let (a, b) = (TestColumn::new("a", 23), TestColumn::new("b", 25));
        assert_eq!(fit(&[a.clone(), b.clone()], &[b, TestColumn::new("local", 23), a]), Ok(Transfer::Binary));
    }

    #[test]
    fn every_misfit_is_listed_with_its_remedy() {
        let source = [
            TestColumn::new("id", 23),
            TestColumn::new("name", 1043).modifier(24),
            TestColumn::new("price", 1700).modifier(655366),
            TestColumn::new("gone", 1114),
        ];
        let destination = [
            TestColumn::new("id", 21),
            TestColumn::new("name", 1043).modifier(14),
            TestColumn::new("price", 1700).modifier(655365),
            TestColumn::new("mine", 23).not_null(),
        ];
        assert_eq!(
            fit(&source, &destination).unwrap_err(),
            "column id is int4 at the source, but int2 here | ALTER TABLE public.t ALTER COLUMN id TYPE int4;\n\
             column name is varchar(20) at the source, but varchar(10) here | \
             ALTER TABLE public.t ALTER COLUMN name TYPE varchar(20);\n\
             column price is numeric(10,2) at the source, but numeric(10,1) here | \
             ALTER TABLE public.t ALTER COLUMN price TYPE numeric(10,2);\n\
             column gone is missing at the destination | ALTER TABLE public.t ADD COLUMN gone timestamp;\n\
             column mine does not come from the source, and is NOT NULL without a default | \
             ALTER TABLE public.t ALTER COLUMN mine DROP NOT NULL;"
        );
    }

    #[test]
    fn a_wider_modifier_fits_and_a_narrower_one_does_not() {
        for (id, from, to, fits) in [
            (1043, 14, 24, true),
            (1043, 24, 14, false),
            (1043, -1, 24, false),
            (1043, 24, -1, true),
            (1042, 14, 24, false),
            (1700, 655366, 786438, true),
            (1700, 655366, 655367, false),
            (1114, 3, 6, true),
            (1114, 6, 3, false),
        ] {
            let fit = fit(&[TestColumn::new("x", id).modifier(from)], &[TestColumn::new("x", id).modifier(to)]);
            assert_eq!(fit.is_ok(), fits, "{id} {from} {to}");
        }
    }
}

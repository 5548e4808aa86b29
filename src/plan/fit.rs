//! Whether a destination table fits its source, column by column, and in which format its values can travel.
//!
//! Asked by preflight for whole tables and again whenever a Relation message differs from the last one. Values travel
//! in binary when both ends have the same built-in type, or an enum or domain over one; otherwise as text. What does
//! not fit is reported with the statement that mends it, all columns at once.
//!
//! Why so narrow: a binary value is the type's memory, near enough. Arrays and composites over user types carry OIDs
//! that differ between servers; extensions may differ in version; the reg* types are OIDs. Text is understood by
//! every server.

use crate::pg::{Column, Ident, QualifiedName, Relation, TypeId};
use crate::plan::schema::{ColumnDefinition, GeneratedColumn, TableDefinition, TypeDefinition, TypeKind, Types};
use crate::plan::shape::{Shape, ShapeColumn};

/// The format in which values travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Transfer {
    /// The types' send and receive functions.
    Binary,
    /// The types' output and input functions.
    Text,
}

/// A column that cannot take what the source sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misfit {
    /// What is wrong.
    pub problem: String,
    /// The statement that mends it, at the destination; `None` where that is the operator's choice.
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
            misfits.push(missing(&name, &Published::from(*from), source.types));
            continue;
        };
        match column_fit(&name, (&Published::from(*from), source.types), (to, destination.types)) {
            Ok(format) => transfer = transfer.max(format),
            Err(misfit) => misfits.push(misfit),
        }
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
                remedy: None,
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
        let from = Published {
            name: &column.name,
            type_id: column.type_id,
            type_modifier: column.type_modifier,
            // A stream that carries a generated column wants it stored or recomputed: the destination's kind decides.
            generated: destination.table.column(&column.name).is_some_and(|to| to.generated.is_some()),
        };
        let fit = match destination.table.column(&column.name) {
            Some(to) => column_fit(&name, (&from, source_types), (to, destination.types)),
            None => Err(missing(&name, &from, source_types)),
        };
        match fit {
            Ok(format) => transfer = transfer.max(format),
            Err(misfit) => misfits.push(misfit),
        }
    }
    if misfits.is_empty() { Ok(transfer) } else { Err(misfits) }
}

/// The format for a stream of a table: binary if everything that is published can travel so now. What does not fit yet,
/// because the stream has not come to it, travels as text; what is missing yet will be created with the source's type.
pub fn stream_format(source: End<'_>, published: &[&ColumnDefinition], destination: End<'_>) -> Transfer {
    let name = destination.table.name();
    let format = |from: &&ColumnDefinition| {
        let of = (&Published::from(*from), source.types);
        let to = destination.table.column(&from.name).map_or((*from, source.types), |to| (to, destination.types));
        column_fit(&name, of, to).unwrap_or(Transfer::Text)
    };
    published.iter().map(format).max().unwrap_or(Transfer::Binary)
}

/// The format for what the stream may still bring of a table as it was when it was last described: the catalog may be ahead.
pub fn remembered_format(shape: &Shape, source_types: &Types, destination: End<'_>) -> Transfer {
    let name = destination.table.name();
    let format = |column: &ShapeColumn| {
        let to = destination.table.column(&column.name)?;
        let from = Published {
            name: &column.name,
            type_id: column.type_id,
            type_modifier: column.type_modifier,
            generated: to.generated.is_some(),
        };
        Some(column_fit(&name, (&from, source_types), (to, destination.types)).unwrap_or(Transfer::Text))
    };
    shape.columns.iter().filter_map(format).max().unwrap_or(Transfer::Binary)
}

/// The published columns whose values travel as text, with their types as SQL.
pub fn text_columns(source: End<'_>, published: &[&ColumnDefinition], destination: End<'_>) -> Vec<(Ident, String)> {
    let name = destination.table.name();
    let text = |from: &&&ColumnDefinition| {
        let of = (&Published::from(**from), source.types);
        let to = destination.table.column(&from.name).map_or((**from, source.types), |to| (to, destination.types));
        column_fit(&name, of, to) == Ok(Transfer::Text)
    };
    let shown = |from: &&ColumnDefinition| {
        let sql = type_sql(from.type_id, from.type_modifier, source.types);
        (from.name.clone(), sql.unwrap_or_else(|| "?".to_owned()))
    };
    published.iter().filter(text).map(shown).collect()
}

/// Whether a destination's column takes what a relation's column brings.
pub(super) fn column_takes(
    column: &Column,
    source_types: &Types,
    to: &ColumnDefinition,
    destination_types: &Types,
) -> bool {
    let from = Published {
        name: &column.name,
        type_id: column.type_id,
        type_modifier: column.type_modifier,
        generated: to.generated.is_some(),
    };
    let nowhere = QualifiedName::new("", "");
    column_fit(&nowhere, (&from, source_types), (to, destination_types)).is_ok()
}

fn missing(table: &QualifiedName, column: &Published<'_>, types: &Types) -> Misfit {
    let name = column.name;
    Misfit {
        problem: format!("column {name} is missing at the destination"),
        remedy: type_sql(column.type_id, column.type_modifier, types)
            .map(|sql| format!("ALTER TABLE {table} ADD COLUMN {name} {sql};")),
    }
}

/// What the source says of a column that it sends.
struct Published<'a> {
    name: &'a Ident,
    type_id: TypeId,
    type_modifier: i32,
    generated: bool,
}

impl<'a> From<&'a ColumnDefinition> for Published<'a> {
    fn from(column: &'a ColumnDefinition) -> Published<'a> {
        let ColumnDefinition { name, type_id, type_modifier, generated, .. } = column;
        Published { name, type_id: *type_id, type_modifier: *type_modifier, generated: generated.is_some() }
    }
}

fn column_fit(
    table: &QualifiedName,
    (from, source_types): (&Published<'_>, &Types),
    (to, destination_types): (&ColumnDefinition, &Types),
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
    let from_type = source_types.get(&from.type_id).ok_or_else(|| unknown(from.type_id))?;
    let to_type = destination_types.get(&to.type_id).ok_or_else(|| unknown(to.type_id))?;
    let same = same_type((from_type, source_types), (to_type, destination_types));
    let fits = if same {
        modifier_fits(from_type, from.type_modifier, to.type_modifier)
    } else {
        widens(from.type_id, to.type_id) && to.type_modifier == -1
    };
    if !fits {
        let shown = |id, modifier, types| type_sql(id, modifier, types).unwrap_or_else(|| "?".to_owned());
        let wanted = shown(from.type_id, from.type_modifier, source_types);
        let found = shown(to.type_id, to.type_modifier, destination_types);
        return Err(Misfit {
            problem: format!("column {} is {wanted} at the source, but {found} here", to.name),
            remedy: Some(format!("ALTER TABLE {table} ALTER COLUMN {} TYPE {wanted};", to.name)),
        });
    }
    let binary = same && binary_safe((from_type, source_types), (to_type, destination_types));
    Ok(if binary { Transfer::Binary } else { Transfer::Text })
}

type SidedType<'a> = (&'a TypeDefinition, &'a Types);

fn element<'a>((definition, types): SidedType<'a>) -> Option<SidedType<'a>> {
    Some((types.get(&definition.element?)?, types))
}

/// The same type on both servers: a built-in one by its OID, another by its name (an array by its element).
pub fn same_type(source: SidedType<'_>, destination: SidedType<'_>) -> bool {
    let (from, to) = (source.0, destination.0);
    if from.id.is_built_in() || to.id.is_built_in() {
        return from.id == to.id;
    }
    match (element(source), element(destination)) {
        (Some(from), Some(to)) => same_type(from, to),
        (None, None) => from.kind == to.kind && from.qualified_name() == to.qualified_name(),
        (Some(_), None) | (None, Some(_)) => false,
    }
}

/// The reg* types, and arrays of them, are OIDs that mean nothing on another server; xml's binary form names an
/// encoding; an empty tsquery is sent in a form that tsqueryrecv refuses (tried on 15 to 18).
const TEXT_ONLY: [u32; 26] = [
    24, 2202, 2203, 2204, 2205, 2206, 3734, 3769, 4089, 4096, 4191, 1008, 2207, 2208, 2209, 2210, 2211, 3735, 3770,
    4090, 4097, 4192, 142, 143, 3615, 3645,
];

/// Whether the source's binary values are the destination's. The types are known to be the same.
fn binary_safe(source: SidedType<'_>, destination: SidedType<'_>) -> bool {
    let (from, to) = (source.0, destination.0);
    if !from.has_binary || !to.has_binary || TEXT_ONLY.contains(&from.id.0) {
        return false;
    }
    match from.kind {
        TypeKind::Enum => true,
        TypeKind::Domain => {
            let base = |(definition, types): SidedType<'_>| definition.base.and_then(|id| types.get(&id)).cloned();
            match (base(source), base(destination)) {
                (Some(from), Some(to)) => {
                    same_type((&from, source.1), (&to, destination.1))
                        && binary_safe((&from, source.1), (&to, destination.1))
                }
                (None, _) | (_, None) => false,
            }
        }
        TypeKind::Base | TypeKind::Range | TypeKind::Multirange => from.id.is_built_in(),
        TypeKind::Composite | TypeKind::Pseudo => false,
    }
}

const BPCHAR: u32 = 1042;
const VARCHAR: u32 = 1043;
const TEXT: u32 = 25;
const VARBIT: u32 = 1562;
const NUMERIC: u32 = 1700;
/// timestamp, timestamptz, time, timetz: the modifier is the number of digits after the second.
const WITH_PRECISION: [u32; 4] = [1114, 1184, 1083, 1266];

/// Whether every value of the source's modifier is a value of the destination's, unchanged.
pub(super) fn modifier_fits(definition: &TypeDefinition, from: i32, to: i32) -> bool {
    if from == to || to == -1 {
        return true;
    }
    if from == -1 {
        return false;
    }
    match definition.id.0 {
        VARCHAR | VARBIT => to > from,
        // ((precision << 16) | scale) + 4
        NUMERIC => (to - 4) & 0xFFFF == (from - 4) & 0xFFFF && to > from,
        id if WITH_PRECISION.contains(&id) => to > from,
        _ => false,
    }
}

/// Types that hold every value of another with the same meaning, read from its text.
pub(super) fn widens(from: TypeId, to: TypeId) -> bool {
    const INT2: u32 = 21;
    const INT4: u32 = 23;
    const INT8: u32 = 20;
    const FLOAT4: u32 = 700;
    const FLOAT8: u32 = 701;
    matches!(
        (from.0, to.0),
        (INT2, INT4 | INT8 | NUMERIC)
            | (INT4, INT8 | NUMERIC)
            | (INT8, NUMERIC)
            | (VARCHAR, TEXT)
            | (TEXT, VARCHAR)
            | (FLOAT4, FLOAT8)
    )
}

/// A type as SQL, for people to read and run.
pub(super) fn type_sql(id: TypeId, modifier: i32, types: &Types) -> Option<String> {
    let definition = types.get(&id)?;
    let name = match (definition.element, definition.id.is_built_in()) {
        (Some(element), _) => return type_sql(element, modifier, types).map(|sql| format!("{sql}[]")),
        (None, true) => definition.name.as_str().to_owned(),
        (None, false) => return Some(definition.qualified_name().to_string()),
    };
    Some(match definition.id.0 {
        _ if modifier == -1 => name,
        VARCHAR | BPCHAR => format!("{name}({})", modifier - 4),
        NUMERIC => format!("{name}({},{})", ((modifier - 4) >> 16) & 0xFFFF, (modifier - 4) & 0x7FF),
        id if WITH_PRECISION.contains(&id) || id == VARBIT || id == 1560 => format!("{name}({modifier})"),
        _ => name,
    })
}

#[cfg(test)]
mod tests {
    use std::slice;

    use super::*;
    use crate::plan::testing::{Column, table, types};

    fn fit(source: &[Column], destination: &[Column]) -> Result<Transfer, String> {
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
        let id = Column::new("id", 23);
        assert_eq!(fit(slice::from_ref(&id), slice::from_ref(&id)), Ok(Transfer::Binary));
        assert_eq!(fit(slice::from_ref(&id), &[Column::new("id", 20)]), Ok(Transfer::Text));
        assert_eq!(fit(&[Column::new("x", 1043).modifier(24)], &[Column::new("x", 25)]), Ok(Transfer::Text));
        assert_eq!(fit(&[Column::new("x", 142)], &[Column::new("x", 142)]), Ok(Transfer::Text), "xml");
    }

    #[test]
    fn columns_are_matched_by_name_in_any_order_with_local_ones_between() {
        let (a, b) = (Column::new("a", 23), Column::new("b", 25));
        assert_eq!(fit(&[a.clone(), b.clone()], &[b, Column::new("local", 23), a]), Ok(Transfer::Binary));
    }

    #[test]
    fn every_misfit_is_listed_with_its_remedy() {
        let source = [
            Column::new("id", 23),
            Column::new("name", 1043).modifier(24),
            Column::new("price", 1700).modifier(655366),
            Column::new("gone", 1114),
        ];
        let destination = [
            Column::new("id", 21),
            Column::new("name", 1043).modifier(14),
            Column::new("price", 1700).modifier(655365),
            Column::new("mine", 23).not_null(),
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
            let fit = fit(&[Column::new("x", id).modifier(from)], &[Column::new("x", id).modifier(to)]);
            assert_eq!(fit.is_ok(), fits, "{id} {from} {to}");
        }
    }
}

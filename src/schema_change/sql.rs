//! Statements that change a destination table as its source was changed.
//!
//! Names are quoted, types are what the destination has resolved, values are literals; an expression of the source is
//! parsed and printed by [`crate::schema_change::expression`], or left out.

use crate::apply_plan::sql::record;
use crate::catalog::schema::{ColumnDefinition, SequenceOptions, TableDefinition};
use crate::pg::{Ident, QualifiedName, quote_literal};
use crate::schema_change::ddl::{Creation, Statements, create_sequence, generated, next_value};

/// Renames a column.
pub fn rename_column(table: &QualifiedName, from: &Ident, to: &Ident) -> String {
    format!("ALTER TABLE {} RENAME COLUMN {} TO {}", table.sql(), from.sql(), to.sql())
}

/// Gives a column another type.
pub fn alter_type(table: &QualifiedName, column: &Ident, wanted: &str) -> String {
    format!("ALTER TABLE {} ALTER COLUMN {} TYPE {wanted}", table.sql(), column.sql())
}

/// Gives a column another type by way of its text, with the source's default. What that makes of its values is for a copy to put
/// right.
pub fn cast_type(
    table: &QualifiedName,
    column: &ColumnDefinition,
    here: &ColumnDefinition,
    wanted: &str,
    creation: &Creation<'_>,
) -> Vec<String> {
    let (table, name) = (table.sql(), column.name.sql());
    let mut statements = Vec::new();
    let draws = column.own_sequence().is_some() || column.identity.is_some();
    let of_its_own = draws && (here.own_sequence().is_some() || here.identity.is_some());
    if here.identity.is_some() && !of_its_own {
        statements.push(drop_identity(&table, &name));
    } else if here.default.is_some() && !of_its_own {
        statements.push(format!("ALTER TABLE {table} ALTER COLUMN {name} DROP DEFAULT"));
    }
    statements.push(format!(
        "ALTER TABLE {table} ALTER COLUMN {name} TYPE {wanted} USING CAST(CAST({name} AS text) AS {wanted})"
    ));
    let default = column
        .default
        .as_deref()
        .filter(|_| !of_its_own && column.own_sequence().is_none() && column.generated.is_none());
    // One that is not taken over is among what the destination lacks.
    if let Some(Ok(expression)) = default.map(|text| creation.default(column, text)) {
        statements.push(format!("ALTER TABLE {table} ALTER COLUMN {name} SET DEFAULT {expression}"));
    }
    statements
}

fn drop_identity(table: &str, column: &str) -> String {
    format!("ALTER TABLE {table} ALTER COLUMN {column} DROP IDENTITY")
}

/// Gives a column of the destination another type whatever its values are, as an operator may run it: a copy brings them.
pub fn empty_type(table: &QualifiedName, here: &ColumnDefinition, column: &Ident, wanted: &str) -> String {
    // What an earlier statement of the same transaction had done is undone by then.
    let (table_sql, column_sql) = (table.to_string(), column.to_string());
    let first = match (here.generated, here.identity) {
        (Some(_), _) => format!("{};\n", drop_expression(table, column)),
        (None, Some(_)) => format!("{};\n", drop_identity(&table_sql, &column_sql)),
        (None, None) => String::new(),
    };
    format!(
        "{first}ALTER TABLE {table} ALTER COLUMN {column} DROP NOT NULL;\nALTER TABLE {table} ALTER COLUMN {column} DROP DEFAULT;\n\
         ALTER TABLE {table} ALTER COLUMN {column} TYPE {wanted} USING NULL;"
    )
}

/// Gives a generated column another expression (17 and later).
pub fn set_expression(table: &QualifiedName, column: &Ident, expression: &str) -> String {
    format!("ALTER TABLE {} ALTER COLUMN {} SET EXPRESSION AS ({expression})", table.sql(), column.sql())
}

/// Drops a column.
pub fn drop_column(table: &QualifiedName, column: &Ident) -> String {
    format!("ALTER TABLE {} DROP COLUMN {}", table.sql(), column.sql())
}

/// Makes a generated column an ordinary one; its values stay.
pub fn drop_expression(table: &QualifiedName, column: &Ident) -> String {
    format!("ALTER TABLE {} ALTER COLUMN {} DROP EXPRESSION", table.sql(), column.sql())
}

/// Forbids NULLs.
pub fn set_not_null(table: &QualifiedName, column: &Ident) -> String {
    format!("ALTER TABLE {} ALTER COLUMN {} SET NOT NULL", table.sql(), column.sql())
}

/// Allows NULLs.
pub fn drop_not_null(table: &QualifiedName, column: &Ident) -> String {
    format!("ALTER TABLE {} ALTER COLUMN {} DROP NOT NULL", table.sql(), column.sql())
}

/// What rows hold that are older than the column; `None` for NULL.
pub fn missing_value(column: &ColumnDefinition, wanted: &str) -> Option<String> {
    let value = only_element(column.missing_value.as_deref()?)?;
    Some(format!("{}::{wanted}", quote_literal(&value).trim_start()))
}

/// The text of an array's only element (array_out: in braces, quoted where it holds anything special).
fn only_element(array: &str) -> Option<String> {
    let inner = array.strip_prefix('{')?.strip_suffix('}')?;
    let Some(quoted) = inner.strip_prefix('"') else { return Some(inner.to_owned()) };
    let mut value = String::with_capacity(quoted.len());
    let mut chars = quoted.strip_suffix('"')?.chars();
    while let Some(c) = chars.next() {
        value.push(if c == '\\' { chars.next()? } else { c });
    }
    Some(value)
}

/// Adds a column. Old rows get what the source's have; without a rewrite, since that is a constant.
pub fn add_column(
    table: &QualifiedName,
    column: &ColumnDefinition,
    wanted: &str,
    creation: &Creation<'_>,
) -> Statements {
    let (table, name) = (table.sql(), column.name.sql());
    let mut statements = Statements::default();
    let mut add = format!("ALTER TABLE {table} ADD COLUMN {name} {wanted}");
    if let Some(collation) = &column.collation {
        add.push_str(&format!(" COLLATE {}", collation.sql()));
    }
    if let Some(kind) = column.generated {
        match creation.generated(column) {
            Ok(expression) => add.push_str(&generated(kind, &expression, creation.expressions.version())),
            // Without its expression it is an ordinary column, and takes the values that are sent.
            Err(refusal) => {
                let what = format!("the expression of generated column {} ({refusal})", column.name);
                statements.left_out.push(what);
            }
        }
        statements.sql.push(add);
        return statements;
    }
    let value = missing_value(column, wanted);
    if let Some(value) = &value {
        add.push_str(&format!(" DEFAULT {value}"));
        // Without a value to put in, rows that are to come may bring it before anything forbids NULLs.
        add.push_str(if column.is_never_null() { " NOT NULL" } else { "" });
    }
    statements.sql.push(add);
    // A sequence of its own comes afterwards.
    let text = column.default.as_deref().filter(|_| column.own_sequence().is_none());
    match text.map(|text| creation.default(column, text)) {
        Some(Ok(expression)) => {
            statements.sql.push(format!("ALTER TABLE {table} ALTER COLUMN {name} SET DEFAULT {expression}"));
            return statements;
        }
        Some(Err(refusal)) => statements.left_out.push(format!("the default of column {} ({refusal})", column.name)),
        None => {}
    }
    if value.is_some() {
        statements.sql.push(format!("ALTER TABLE {table} ALTER COLUMN {name} DROP DEFAULT"));
    }
    statements
}

/// Gives a column a sequence of its own, as its default. Not as an identity: that asks for NOT NULL, which rows that are
/// under way may not keep, and added together with the column it would rewrite the table. A role that may insert may draw
/// values, as from an identity.
pub fn give_sequence(
    table: &TableDefinition,
    column: &Ident,
    sequence: &Ident,
    options: Option<&SequenceOptions>,
) -> Vec<String> {
    let sequence = QualifiedName { schema: table.schema.clone(), name: sequence.clone() };
    let (table_sql, column, name) = (table.name().sql(), column.sql(), sequence.sql());
    let mut statements = vec![
        create_sequence(&sequence, options),
        // It can be owned by a column of its own owner's tables alone.
        format!("ALTER SEQUENCE {name} OWNER TO {}", table.owner.sql()),
        format!("ALTER SEQUENCE {name} OWNED BY {table_sql}.{column}"),
        format!("ALTER TABLE {table_sql} ALTER COLUMN {column} SET DEFAULT {}", next_value(&sequence)),
    ];
    if !table.inserters.is_empty() {
        let role = |role: &Option<Ident>| role.as_ref().map_or_else(|| "PUBLIC".to_owned(), Ident::sql);
        let roles: Vec<String> = table.inserters.iter().map(role).collect();
        statements.push(format!("GRANT USAGE ON SEQUENCE {name} TO {}", roles.join(", ")));
    }
    statements
}

/// Lets a column draw from its sequence no more.
pub fn draw_no_more(table: &QualifiedName, column: &Ident, identity: bool) -> String {
    let what = if identity { "IDENTITY" } else { "DEFAULT" };
    format!("ALTER TABLE {} ALTER COLUMN {} DROP {what}", table.sql(), column.sql())
}

/// Adds a label to an enum: behind another one, before another one, or as its only one.
pub fn add_label(name: &QualifiedName, label: &str, after: Option<&String>, before: Option<&String>) -> String {
    let place = match (after, before) {
        (Some(after), _) => format!(" AFTER {}", quote_literal(after)),
        (None, Some(before)) => format!(" BEFORE {}", quote_literal(before)),
        (None, None) => String::new(),
    };
    format!("ALTER TYPE {} ADD VALUE IF NOT EXISTS {}{place}", name.sql(), quote_literal(label))
}

/// Gives a label another name.
pub fn rename_label(name: &QualifiedName, from: &str, to: &str) -> String {
    format!("ALTER TYPE {} RENAME VALUE {} TO {}", name.sql(), quote_literal(from), quote_literal(to))
}

/// Sets a column that is there already to what the source's old rows hold in it. `whole_tree`: rows of partitions belong to the table.
pub fn reset(table: &QualifiedName, whole_tree: bool, column: &Ident, value: Option<&str>, wanted: &str) -> String {
    let only = if whole_tree { "" } else { "ONLY " };
    let (table, column) = (table.sql(), column.sql());
    let value = value.map_or_else(|| format!("CAST(NULL AS {wanted})"), str::to_owned);
    let (here, there) = (record(&column), record(&value));
    format!("UPDATE {only}{table} SET {column} = {value} WHERE {here} OPERATOR(pg_catalog.*<>) {there}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_only_element_of_an_array_is_its_text() {
        for (array, element) in [
            ("{3}", "3"),
            ("{it's}", "it's"),
            (r#"{"a \"b\" \\ c"}"#, r#"a "b" \ c"#),
            (r#"{"{1,NULL,3}"}"#, "{1,NULL,3}"),
            (r#"{""}"#, ""),
        ] {
            assert_eq!(only_element(array).as_deref(), Some(element), "{array}");
        }
        for none in ["", "3", "{\"open}", "{\"a\\\"}"] {
            assert_eq!(only_element(none), None, "{none}");
        }
    }
}

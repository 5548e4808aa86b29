//! A condition that holds of the table that a relation is bound to, and of no other that has its name.
//!
//! Used by every statement that writes rows of a bound relation; what it is made of is [`crate::sql::table_guard`]'s. Pure.

use crate::apply_plan::target::Target;
use crate::pg::quote_literal;
use crate::sql::table_guard::is_table;

/// A condition for WHERE, true if the name stands for the very table that the target was bound to; otherwise the server refuses the
/// statement. Costs nothing when it runs, as [`is_table`]: regclass is resolved by the parser, and the planner folds the rest.
pub fn is_target(target: &Target) -> String {
    let (name, id) = (quote_literal(&target.table.sql()), target.table_id);
    let (schema, table) = (quote_literal(target.table.schema.as_str()), quote_literal(target.table.name.as_str()));
    format!(
        "{} AND CASE WHEN {name}::pg_catalog.regclass::pg_catalog.oid OPERATOR(pg_catalog.=) {id}::pg_catalog.oid THEN true \
         ELSE headwater.other_table({schema}, {table}) END",
        is_table(&target.table)
    )
}

//! Statements that create a table like the source's.
//!
//! Built from the catalog's facts, never from a table's own DDL text: names are quoted, types are those that the
//! destination has resolved, expressions are parsed and printed by [`crate::schema_change::expression`]. What is left out is
//! returned as sentences for the operator.
//!
//! Differences on purpose: identity columns are BY DEFAULT, because no UPDATE can set one that is ALWAYS; foreign
//! keys are NO ACTION DEFERRABLE, because the source's cascades arrive as rows (`cutover` puts both back); a
//! partitioned table becomes an ordinary one.

use crate::catalog::features::{Feature, feature_of, too_new};
use crate::catalog::schema::{
    ColumnDefinition, ConstraintDefinition, ConstraintKind, ForeignKeyAction, ForeignKeyTarget, GeneratedColumn,
    IndexDefinition, IndexPart, SequenceOptions, TableDefinition, Types,
};
use crate::pg::{Ident, QualifiedName, quote_literal};
use crate::schema_change::expression::purpose::Purpose;
use crate::schema_change::expression::{BOOLEAN, ExpressionScope, Expressions, Refusal};

/// What is needed to write a table's DDL for one destination.
pub struct Creation<'a> {
    /// The source's table.
    pub table: &'a TableDefinition,
    /// The schema in which it is created: a staging schema, or its own.
    pub schema: &'a Ident,
    /// Each column's type as the destination writes it.
    pub type_sql: &'a dyn Fn(&ColumnDefinition) -> String,
    /// The source's types.
    pub types: &'a Types,
    /// Which expressions may be taken over.
    pub expressions: &'a Expressions,
    /// The published columns; others are not created.
    pub columns: &'a [Ident],
}

/// A primary key or unique constraint, out of the index that was built for it, or with it.
struct AddConstraint {
    using_index: String,
    whole: String,
}

/// How indexes and keys come about once the rows are there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Indexes {
    /// Builds: they read the table, and may run side by side, also those of one table.
    pub builds: Vec<String>,
    /// What holds an expression or a condition, or may lack an operator class: is made on the empty table, and undone.
    pub trials: Vec<Trial>,
    /// Then, one after another: what is built becomes primary key and unique constraints, which takes no time; keys WITHOUT
    /// OVERLAPS cannot be built before.
    pub attaches: Vec<String>,
    /// At last the constraints that hold for new rows only.
    pub not_valid: Vec<String>,
    /// What of the source's indexes is not taken over.
    pub left_out: Vec<String>,
}

/// A statement that is tried on a table without rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trial {
    /// The statement.
    pub statement: String,
    /// The one that undoes it.
    pub undo: String,
}

/// Statements, and what they leave out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Statements {
    /// To be run in this order.
    pub sql: Vec<String>,
    /// What of the source's table is not taken over, each a sentence without its full stop.
    pub left_out: Vec<String>,
}

impl Creation<'_> {
    fn name(&self) -> String {
        QualifiedName { schema: self.schema.clone(), name: self.table.table.clone() }.sql()
    }

    fn has(&self, column: &Ident) -> bool {
        self.columns.contains(column)
    }

    /// Whether the destination's table gets this column: what is published, and what it can compute by itself.
    fn creates(&self, column: &ColumnDefinition) -> bool {
        self.has(&column.name) || (column.generated.is_some() && self.generated(column).is_ok())
    }

    /// What an index or a check may name.
    fn scope(&self) -> ExpressionScope<'_> {
        ExpressionScope::table(self.table.columns.iter().filter(|column| self.creates(column)), self.types)
    }

    /// A generated column's expression as SQL; it may name no other generated column.
    ///
    /// # Errors
    /// [`Refusal`]: it is not taken over.
    pub fn generated(&self, column: &ColumnDefinition) -> Result<String, Refusal> {
        let stored = |column: &&ColumnDefinition| self.has(&column.name) && column.generated.is_none();
        let scope =
            ExpressionScope::table(self.table.columns.iter().filter(stored), self.types).assigned_to(column.type_id);
        let text = column.default.as_deref().unwrap_or_default();
        self.expressions.accept(text, Purpose::Immutable, &scope)
    }

    /// A default as SQL.
    ///
    /// # Errors
    /// [`Refusal`]: it is not taken over.
    pub fn default(&self, column: &ColumnDefinition, text: &str) -> Result<String, Refusal> {
        let scope = ExpressionScope::table([column], self.types).without_columns().assigned_to(column.type_id);
        self.expressions.accept(text, Purpose::Default, &scope)
    }

    /// CREATE TABLE with columns, defaults and checks, and the sequences that its defaults draw from.
    pub fn create(&self) -> Statements {
        let mut statements = Statements::default();
        let mut lines = Vec::new();
        let mut owned = Vec::new();
        for column in &self.table.columns {
            if !self.has(&column.name) && column.generated.is_none() {
                continue;
            }
            if let Some(line) = self.column(column, &mut statements, &mut owned) {
                lines.push(line);
            }
        }
        for constraint in self.table.constraints.iter().filter(|constraint| !is_for_new_rows_only(constraint)) {
            lines.extend(self.check_constraint(constraint, &mut statements.left_out));
        }
        statements.left_out.extend(too_new(self.table, self.expressions.version()).iter().map(ToString::to_string));
        let name = self.name();
        statements.sql.push(format!("CREATE TABLE {name} ({})", lines.join(", ")));
        statements.sql.extend(owned);
        if !self.has_key() {
            // A publication at the destination (FOR ALL TABLES) refuses updates and deletes of a table without an identity.
            statements.sql.push(format!("ALTER TABLE {name} REPLICA IDENTITY FULL"));
        }
        if let Some(comment) = &self.table.comment {
            statements.sql.push(format!("COMMENT ON TABLE {name} IS {}", quote_literal(comment)));
        }
        for column in &self.table.columns {
            if let (true, Some(comment)) = (self.has(&column.name), &column.comment) {
                let comment = quote_literal(comment);
                statements.sql.push(format!("COMMENT ON COLUMN {name}.{} IS {comment}", column.name.sql()));
            }
        }
        statements
    }

    fn column(
        &self,
        column: &ColumnDefinition,
        statements: &mut Statements,
        owned: &mut Vec<String>,
    ) -> Option<String> {
        let name = column.name.sql();
        let mut line = format!("{name} {}", (self.type_sql)(column));
        if let Some(collation) = &column.collation {
            line.push_str(&format!(" COLLATE {}", collation.sql()));
        }
        match (&column.generated, &column.default) {
            (Some(kind), _) => match self.generated(column) {
                Ok(expression) => line.push_str(&generated(*kind, &expression, self.expressions.version())),
                Err(refusal) if self.has(&column.name) => {
                    let what = format!("the expression of generated column {} ({refusal})", column.name);
                    statements.left_out.push(what);
                }
                Err(refusal) => {
                    statements.left_out.push(format!("generated column {} ({refusal})", column.name));
                    return None;
                }
            },
            (None, _) if column.identity.is_some() => {
                line.push_str(" GENERATED BY DEFAULT AS IDENTITY");
                if let Some(options) = &column.sequence_options {
                    line.push_str(&format!(" ({})", counting(options)));
                }
            }
            (None, Some(text)) if text.starts_with("nextval(") => {
                if let Some(sequence) = column.own_sequence() {
                    let sequence = QualifiedName { schema: self.schema.clone(), name: sequence };
                    statements.sql.push(create_sequence(&sequence, column.sequence_options.as_ref()));
                    line.push_str(&format!(" DEFAULT {}", next_value(&sequence)));
                    owned.push(format!("ALTER SEQUENCE {} OWNED BY {}.{name}", sequence.sql(), self.name()));
                } else {
                    statements.left_out.push(format!("the default of column {} (its sequence is shared)", column.name));
                }
            }
            (None, Some(text)) => match self.default(column, text) {
                Ok(expression) => line.push_str(&format!(" DEFAULT {expression}")),
                Err(refusal) => {
                    statements.left_out.push(format!("the default of column {} ({refusal})", column.name));
                }
            },
            (None, None) => {}
        }
        if column.is_never_null() {
            line.push_str(&self.not_null(column));
        }
        Some(line)
    }

    /// NOT NULL, by the source's name where the destination keeps names of it.
    fn not_null(&self, column: &ColumnDefinition) -> String {
        match &column.not_null_constraint {
            Some(constraint) if Feature::NotNullNotValid.is_known_to(self.expressions.version()) => {
                let inherit = if constraint.no_inherit { " NO INHERIT" } else { "" };
                format!(" CONSTRAINT {} NOT NULL{inherit}", constraint.name.sql())
            }
            Some(_) | None => " NOT NULL".to_owned(),
        }
    }

    /// A check as the source has it, but for NOT VALID; `None` where it is none, or is not taken over.
    pub(crate) fn check_constraint(
        &self,
        constraint: &ConstraintDefinition,
        left_out: &mut Vec<String>,
    ) -> Option<String> {
        let text = constraint.expression.as_ref()?;
        // What is not enforced there must not refuse a row here.
        if feature_of(constraint).is_some_and(|feature| !feature.is_known_to(self.expressions.version())) {
            return None;
        }
        let scope = self.scope().assigned_to(BOOLEAN);
        let expression = match self.expressions.accept(text, Purpose::Immutable, &scope) {
            Ok(expression) => expression,
            Err(refusal) => {
                left_out.push(format!("check constraint {} ({refusal})", constraint.name));
                return None;
            }
        };
        let inherit = if constraint.no_inherit { " NO INHERIT" } else { "" };
        let enforced = if constraint.enforced { "" } else { " NOT ENFORCED" };
        Some(format!("CONSTRAINT {} CHECK ({expression}){inherit}{enforced}", constraint.name.sql()))
    }

    /// The constraints that older rows may violate.
    fn not_valid(&self, indexes: &mut Indexes) {
        let name = self.name();
        for constraint in self.table.constraints.iter().filter(|constraint| is_for_new_rows_only(constraint)) {
            if let Some(check) = self.check_constraint(constraint, &mut indexes.left_out) {
                let statement = format!("ALTER TABLE {name} ADD {check} NOT VALID");
                let undo = drop_constraint(&name, &constraint.name);
                indexes.trials.push(Trial { statement: statement.clone(), undo });
                indexes.not_valid.push(statement);
            }
        }
        let may_be_null = self.table.columns.iter().filter(|column| self.has(&column.name) && !column.is_never_null());
        for column in may_be_null.filter(|_| Feature::NotNullNotValid.is_known_to(self.expressions.version())) {
            if let Some(constraint) = &column.not_null_constraint {
                let inherit = if constraint.no_inherit { " NO INHERIT" } else { "" };
                let (constraint, column) = (constraint.name.sql(), column.name.sql());
                let add =
                    format!("ALTER TABLE {name} ADD CONSTRAINT {constraint} NOT NULL {column}{inherit} NOT VALID");
                indexes.not_valid.push(add);
            }
        }
    }

    /// One index, or the constraint that it enforces; `None` where it holds what is not understood.
    pub fn index_of(&self, index: &IndexDefinition) -> Option<String> {
        let constraint = self.constraint_of(index);
        if index.exclusion && !constraint.is_some_and(|constraint| constraint.period) {
            return None;
        }
        let (build, attach) = self.index(index, constraint).ok()?;
        Some(attach.map_or(build, |constraint| constraint.whole))
    }

    /// Whether a key looks at overlaps at the destination, too.
    fn is_without_overlaps(&self, constraint: Option<&ConstraintDefinition>) -> bool {
        let feature = constraint.and_then(feature_of);
        feature == Some(Feature::WithoutOverlaps) && Feature::WithoutOverlaps.is_known_to(self.expressions.version())
    }

    fn constraint_of(&self, index: &IndexDefinition) -> Option<&ConstraintDefinition> {
        self.table.constraints.iter().find(|constraint| {
            constraint.index == Some(index.id)
                && matches!(
                    constraint.kind,
                    ConstraintKind::PrimaryKey | ConstraintKind::Unique | ConstraintKind::Exclusion
                )
        })
    }

    /// Whether the table gets a primary key that serves as its replica identity; one that is DEFERRABLE does not.
    fn has_key(&self) -> bool {
        self.table.indexes.iter().any(|index| {
            index.primary && index.valid && index.immediate && index.key_columns().all(|column| self.has(column))
        })
    }

    /// Primary key, unique constraints and indexes, to be made once the rows are there.
    pub fn indexes(&self) -> Indexes {
        let mut statements = Indexes::default();
        for index in self.table.indexes.iter().filter(|index| index.valid) {
            let constraint = self.constraint_of(index);
            if index.exclusion && !constraint.is_some_and(|constraint| constraint.period) {
                statements.left_out.push(format!("exclusion constraint {}", index.name));
                continue;
            }
            match self.index(index, constraint) {
                Ok((_, Some(add))) if self.is_without_overlaps(constraint) => {
                    let undo = drop_constraint(&self.name(), &index.name);
                    statements.trials.push(Trial { statement: add.whole.clone(), undo });
                    statements.attaches.push(add.whole);
                }
                Ok((build, attach)) => {
                    if index.predicate.is_some() || index.parts.iter().any(|part| part.column.is_none()) {
                        let name = QualifiedName { schema: self.schema.clone(), name: index.name.clone() };
                        let undo = format!("DROP INDEX {}", name.sql());
                        statements.trials.push(Trial { statement: build.clone(), undo });
                    }
                    statements.builds.push(build);
                    statements.attaches.extend(attach.map(|constraint| constraint.using_index));
                    if index.replica_identity && !self.has_key() {
                        let (table, index) = (self.name(), index.name.sql());
                        statements.attaches.push(format!("ALTER TABLE {table} REPLICA IDENTITY USING INDEX {index}"));
                    }
                }
                Err(refusal) => statements.left_out.push(format!("index {} ({refusal})", index.name)),
            }
        }
        self.not_valid(&mut statements);
        statements
    }

    /// A column or an expression of an index, with how it is sorted.
    fn part(
        &self,
        index: &IndexDefinition,
        part: &IndexPart,
        scope: &ExpressionScope<'_>,
        as_key: bool,
    ) -> Result<String, Refusal> {
        let mut sql = match (&part.column, &part.expression) {
            (Some(column), _) if self.table.column(column).is_some_and(|column| self.creates(column)) => column.sql(),
            (Some(column), _) => return Err(Refusal::Column(column.clone())),
            (None, Some(text)) => format!("({})", self.expressions.accept(text, Purpose::Immutable, scope)?),
            (None, None) => return Err(Refusal::NotUnderstood),
        };
        if part.included {
            return Ok(sql);
        }
        if let Some(collation) = part.collation.as_ref().filter(|_| part.column.is_some()) {
            sql.push_str(&format!(" COLLATE {}", collation.sql()));
        }
        if let Some(class) = part.operator_class.as_ref().filter(|_| !as_key) {
            sql.push_str(&format!(" {}", class.sql()));
        }
        if index.method.as_str() == "btree" {
            sql.push_str(if part.descending { " DESC" } else { "" });
            sql.push_str(if part.nulls_first { " NULLS FIRST" } else { " NULLS LAST" });
        }
        Ok(sql)
    }

    /// The statement that builds an index, and the one that makes it a constraint.
    fn index(
        &self,
        index: &IndexDefinition,
        constraint: Option<&ConstraintDefinition>,
    ) -> Result<(String, Option<AddConstraint>), Refusal> {
        let scope = self.scope();
        // Where a key WITHOUT OVERLAPS is not known, one over the same columns holds too: an ordinary one.
        let as_key = constraint.is_some_and(|constraint| constraint.period);
        let parts = |included: bool| -> Result<String, Refusal> {
            let parts = index.parts.iter().filter(|part| part.included == included);
            let parts: Result<Vec<String>, Refusal> =
                parts.map(|part| self.part(index, part, &scope, as_key)).collect();
            Ok(parts?.join(", "))
        };
        let key = parts(false)?;
        let include = match parts(true)?.as_str() {
            "" => String::new(),
            columns => format!(" INCLUDE ({columns})"),
        };
        let knows_nulls = Feature::NullsNotDistinct.is_known_to(self.expressions.version());
        let nulls = if index.nulls_not_distinct && knows_nulls { " NULLS NOT DISTINCT" } else { "" };
        let options = storage_options(index.options.as_deref());
        let table = self.name();
        let name = index.name.sql();
        let attach = constraint.map(|constraint| {
            let kind = if index.primary { "PRIMARY KEY" } else { "UNIQUE" };
            let deferrable = match (constraint.deferrable, constraint.deferred) {
                (true, true) => " DEFERRABLE INITIALLY DEFERRED",
                (true, false) => " DEFERRABLE",
                (false, _) => "",
            };
            let distinct = if index.primary { "" } else { nulls };
            let mut names: Vec<String> = index.key_columns().map(Ident::sql).collect();
            if let (true, Some(last)) = (self.is_without_overlaps(Some(constraint)), names.last_mut()) {
                last.push_str(" WITHOUT OVERLAPS");
            }
            let add = format!("ALTER TABLE {table} ADD CONSTRAINT {name} {kind}");
            AddConstraint {
                using_index: format!("{add} USING INDEX {name}{deferrable}"),
                whole: format!("{add}{distinct} ({}){include}{options}{deferrable}", names.join(", ")),
            }
        });
        let unique = if index.unique { "UNIQUE " } else { "" };
        let predicate = match &index.predicate {
            Some(text) => {
                let scope = scope.assigned_to(BOOLEAN);
                format!(" WHERE {}", self.expressions.accept(text, Purpose::Immutable, &scope)?)
            }
            None => String::new(),
        };
        let method = if as_key { Ident::new("btree").sql() } else { index.method.sql() };
        let build = format!(
            "CREATE {unique}INDEX {name} ON {table} USING {method} ({key}){include}{nulls}{options}{predicate}"
        );
        Ok((build, attach))
    }
}

/// Whether older rows may violate a check that is enforced.
pub(crate) fn is_for_new_rows_only(constraint: &ConstraintDefinition) -> bool {
    constraint.kind == ConstraintKind::Check && constraint.enforced && !constraint.validated
}

fn drop_constraint(table: &str, name: &Ident) -> String {
    format!("ALTER TABLE {table} DROP CONSTRAINT {}", name.sql())
}

/// What keeps a foreign key from being made at a destination of this `server_version_num`.
pub fn foreign_key_obstacle(constraint: &ConstraintDefinition, version: u32) -> Option<Feature> {
    feature_of(constraint).filter(|feature| !feature.is_known_to(version))
}

/// The first `server_version_num` that knows virtual generated columns.
const VIRTUAL_COLUMNS: u32 = 180_000;

/// What makes a column a generated one. `version`: the destination's. One that cannot compute it as it is read stores it: the values
/// are the same.
pub(crate) fn generated(kind: GeneratedColumn, expression: &str, version: u32) -> String {
    let kind = match kind {
        GeneratedColumn::Virtual if version >= VIRTUAL_COLUMNS => "VIRTUAL",
        GeneratedColumn::Virtual | GeneratedColumn::Stored => "STORED",
    };
    format!(" GENERATED ALWAYS AS ({expression}) {kind}")
}

/// `WITH (fillfactor='70')`; storage parameters of index methods are names and plain values.
fn storage_options(options: Option<&[String]>) -> String {
    let options: Vec<String> = options
        .into_iter()
        .flatten()
        .filter_map(|option| option.split_once('='))
        .map(|(name, value)| format!("{} = {}", Ident::new(name).sql(), quote_literal(value)))
        .collect();
    if options.is_empty() { String::new() } else { format!(" WITH ({})", options.join(", ")) }
}

/// Adds a foreign key as the destination has them: NO ACTION DEFERRABLE.
pub fn add_foreign_key(
    table: &QualifiedName,
    constraint: &ConstraintDefinition,
    target: &ForeignKeyTarget,
    parent: &QualifiedName,
) -> String {
    let names = |columns: &[Ident]| {
        let mut names: Vec<String> = columns.iter().map(Ident::sql).collect();
        if let (true, Some(last)) = (constraint.period, names.last_mut()) {
            last.insert_str(0, "PERIOD ");
        }
        names.join(", ")
    };
    let matching = if target.matching == 'f' { " MATCH FULL" } else { "" };
    let deferred = if constraint.deferred { " INITIALLY DEFERRED" } else { "" };
    let validated = match (constraint.enforced, constraint.validated) {
        (false, _) => " NOT ENFORCED NOT VALID",
        (true, false) => " NOT VALID",
        (true, true) => "",
    };
    format!(
        "ALTER TABLE {} ADD CONSTRAINT {} FOREIGN KEY ({}) REFERENCES {} ({}){matching} ON DELETE {} ON UPDATE {} \
         DEFERRABLE{deferred}{validated}",
        table.sql(),
        constraint.name.sql(),
        names(constraint.columns.as_deref().unwrap_or_default()),
        parent.sql(),
        names(&target.columns),
        ForeignKeyAction::NoAction.as_sql(),
        ForeignKeyAction::NoAction.as_sql(),
    )
}

/// The same constraint, for now without looking at the rows.
pub fn unvalidated(add_constraint: &str) -> String {
    if add_constraint.ends_with(" NOT VALID") {
        add_constraint.to_owned()
    } else {
        format!("{add_constraint} NOT VALID")
    }
}

/// Looks at the rows of a constraint that was added without.
pub fn validate_constraint(table: &QualifiedName, constraint: &Ident) -> String {
    format!("ALTER TABLE {} VALIDATE CONSTRAINT {}", table.sql(), constraint.sql())
}

/// Creates a sequence.
pub(crate) fn create_sequence(sequence: &QualifiedName, options: Option<&SequenceOptions>) -> String {
    let create = format!("CREATE SEQUENCE {}", sequence.sql());
    let Some(options) = options else { return create };
    format!("{create} AS {} {}", options.type_name.sql(), counting(options))
}

/// The default of a column that draws from a sequence.
pub(crate) fn next_value(sequence: &QualifiedName) -> String {
    format!("pg_catalog.nextval({}::pg_catalog.regclass)", quote_literal(&sequence.sql()))
}

/// How a sequence counts, as CREATE SEQUENCE and identity columns have it.
fn counting(options: &SequenceOptions) -> String {
    let SequenceOptions { type_name: _, start, increment, least, most, cache, cycles } = options;
    let cycle = if *cycles { "CYCLE" } else { "NO CYCLE" };
    format!("INCREMENT BY {increment} MINVALUE {least} MAXVALUE {most} START WITH {start} CACHE {cache} {cycle}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::TypeId;
    use crate::testing::{TestColumn, expressions, table};

    #[test]
    fn a_table_is_created_with_what_is_understood_and_reports_the_rest() {
        let mut source = table(
            "to\"pics",
            &[
                TestColumn::new("id", 23).not_null(),
                TestColumn::new("title", 25),
                TestColumn::new("sum", 23),
                TestColumn::new("x", 23),
            ],
        );
        if let [id, title, sum, x] = source.columns.as_mut_slice() {
            id.default = Some("nextval('topics_id_seq'::regclass)".into());
            id.sequence = Some("public.topics_id_seq".into());
            title.default = Some("'new'::text".into());
            title.comment = Some("it's".into());
            sum.generated = Some(GeneratedColumn::Stored);
            sum.default = Some("(id + 1)".into());
            x.default = Some("evil()".into());
        }
        let expressions = expressions();
        let columns: Vec<Ident> = ["id", "title", "x"].map(Ident::new).into();
        let creation = Creation {
            table: &source,
            schema: &Ident::new("hw"),
            types: &Types::new(),
            type_sql: &|column| if column.type_id == TypeId(23) { "integer".into() } else { "text".into() },
            expressions: &expressions,
            columns: &columns,
        };
        let statements = creation.create();
        assert_eq!(
            statements.sql,
            [
                "CREATE SEQUENCE \"hw\".\"topics_id_seq\"",
                "CREATE TABLE \"hw\".\"to\"\"pics\" (\"id\" integer DEFAULT \
                 pg_catalog.nextval('\"hw\".\"topics_id_seq\"'::pg_catalog.regclass) NOT NULL, \
                 \"title\" text DEFAULT 'new'::pg_catalog.\"text\", \"sum\" integer GENERATED ALWAYS AS \
                 ((\"id\" OPERATOR(pg_catalog.+) 1)) STORED, \"x\" integer)",
                "ALTER SEQUENCE \"hw\".\"topics_id_seq\" OWNED BY \"hw\".\"to\"\"pics\".\"id\"",
                "COMMENT ON COLUMN \"hw\".\"to\"\"pics\".\"title\" IS 'it''s'",
            ]
        );
        assert_eq!(statements.left_out, ["the default of column x (it calls function evil)"]);

        // Without a primary key the whole row identifies it for subscribers of the destination.
        source.indexes.clear();
        let keyless = Creation {
            table: &source,
            schema: &Ident::new("hw"),
            type_sql: &|_| "text".into(),
            types: &Types::new(),
            expressions: &expressions,
            columns: &columns,
        };
        assert!(
            keyless.create().sql.iter().any(|sql| sql == "ALTER TABLE \"hw\".\"to\"\"pics\" REPLICA IDENTITY FULL")
        );
    }
}

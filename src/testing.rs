//! Tables and types for unit tests, without a server.

#![allow(missing_docs, reason = "compiled for tests only")]

use crate::catalog::schema::{
    ColumnDefinition, IndexDefinition, IndexPart, RowFile, TableDefinition, TableKind, TypeDefinition, TypeKind, Types,
};
use crate::pg::{Ident, ReplicaIdentity, TypeId};
use crate::schema_change::expression::Expressions;
use crate::schema_change::expression::catalog::{
    ExpressionCatalog, FUNCTIONS, FunctionVariant, OPERATORS, OperatorVariants, TYPES,
};

#[derive(Clone, Debug)]
pub(crate) struct TestColumn(ColumnDefinition);

impl TestColumn {
    pub(crate) fn new(name: &str, type_id: u32) -> TestColumn {
        TestColumn(ColumnDefinition {
            number: 0,
            name: Ident::new(name),
            type_id: TypeId(type_id),
            type_modifier: -1,
            not_null: false,
            not_null_constraint: None,
            identity: None,
            generated: None,
            default: None,
            missing_value: None,
            collation: None,
            nondeterministic: None,
            sequence: None,
            sequence_options: None,
            comment: None,
        })
    }

    pub(crate) fn modifier(mut self, modifier: i32) -> TestColumn {
        self.0.type_modifier = modifier;
        self
    }

    pub(crate) fn not_null(mut self) -> TestColumn {
        self.0.not_null = true;
        self
    }
}

/// A table of these columns; the first is its primary key.
pub(crate) fn table(name: &str, columns: &[TestColumn]) -> TableDefinition {
    let columns: Vec<ColumnDefinition> =
        (1..).zip(columns).map(|(number, column)| ColumnDefinition { number, ..column.0.clone() }).collect();
    let key = columns.first().map(|column| column.name.clone());
    TableDefinition {
        id: 1,
        schema: Ident::new("public"),
        table: Ident::new(name),
        kind: TableKind::Ordinary,
        owner: Ident::new("owner"),
        inserters: Vec::new(),
        persistence: 'p',
        attributes: i16::try_from(columns.len()).unwrap_or(i16::MAX),
        storage: Some("1".to_owned()),
        files: vec![RowFile { table: 1, file: 1, toast: 0 }],
        replica_identity: ReplicaIdentity::Default,
        row_security: false,
        is_partition: false,
        has_children: false,
        comment: None,
        options: None,
        bytes: 0,
        partitions: None,
        indexes: key.into_iter().map(|key| unique_index(&format!("{name}_pkey"), &[key], true)).collect(),
        columns,
        constraints: Vec::new(),
        referenced_by: Vec::new(),
        triggers: Vec::new(),
    }
}

pub(crate) fn unique_index(name: &str, columns: &[Ident], primary: bool) -> IndexDefinition {
    let part = |column: &Ident| IndexPart {
        column: Some(column.clone()),
        expression: None,
        included: false,
        descending: false,
        nulls_first: false,
        operator_class: None,
        collation: None,
        nondeterministic: None,
        equality: None,
        compared_as: None,
        excludes_by: None,
    };
    IndexDefinition {
        id: 1,
        name: Ident::new(name),
        method: Ident::new("btree"),
        unique: true,
        primary,
        exclusion: false,
        replica_identity: false,
        immediate: true,
        valid: true,
        nulls_not_distinct: false,
        predicate: None,
        options: None,
        parts: columns.iter().map(part).collect(),
    }
}

/// The built-in types that tests use.
pub(crate) fn types() -> Types {
    [
        (20, "int8"),
        (21, "int2"),
        (23, "int4"),
        (25, "text"),
        (142, "xml"),
        (1042, "bpchar"),
        (1043, "varchar"),
        (1114, "timestamp"),
        (1700, "numeric"),
    ]
    .into_iter()
    .map(|(id, name)| {
        let definition = TypeDefinition {
            id: TypeId(id),
            schema: Ident::new("pg_catalog"),
            name: Ident::new(name),
            kind: TypeKind::Base,
            category: 'U',
            base: None,
            base_modifier: -1,
            element: None,
            subtype: None,
            binary_form: 0,
            text_form: 0,
            array: None,
            delimiter: ',',
            not_null: false,
            not_null_name: None,
            default: None,
            collation: None,
            nondeterministic: None,
            has_binary: true,
            labels: None,
            attributes: None,
            checks: None,
            equality: None,
            extension: None,
            extension_version: None,
        };
        (TypeId(id), definition)
    })
    .collect()
}

/// A destination that has exactly what expressions may use.
pub(crate) fn catalog() -> ExpressionCatalog {
    let functions =
        FUNCTIONS.iter().flat_map(|(name, listed)| listed.variants().map(move |arguments| (name, listed, arguments)));
    let functions = (1..).zip(functions).map(|(id, (name, listed, arguments))| {
        let count = if arguments.is_empty() { 0 } else { arguments.split(", ").count() };
        FunctionVariant {
            id,
            name: (*name).to_owned(),
            arguments: arguments.to_owned(),
            least: count,
            most: count,
            variadic: arguments.ends_with("\"any\""),
            volatility: if listed.changes { 'v' } else { 'i' },
            built_in: true,
        }
    });
    let operators = OPERATORS.iter().flat_map(|group| group.names).flat_map(|name| {
        [1, 2].map(|operands| OperatorVariants {
            name: (*name).to_owned(),
            operands,
            functions: vec![9_000],
            volatility: "is".to_owned(),
            built_in: true,
        })
    });
    ExpressionCatalog {
        version: 180_000,
        functions: functions.collect(),
        operators: operators.collect(),
        types: TYPES.iter().map(|name| (*name).to_owned()).collect(),
        cast_functions: Vec::new(),
        foreign_casts: Vec::new(),
        configurations: ["english".to_owned()].into(),
        collations: [(None, "C".to_owned())].into(),
    }
}

/// The same, asked.
pub(crate) fn expressions() -> Expressions {
    Expressions::new(catalog())
}

//! Whether an expression may be created at the destination: every name in it is looked up.
//!
//! Comes in from [`super::Expressions`] with the tree and the place where the expression belongs; out goes nothing, or why not.
//! Pure.
//!
//! | in the tree | is allowed where |
//! |---|---|
//! | a column | the table has it, and headwater creates it |
//! | a function, an operator | all variants that could be meant are on the lists of [`super::catalog`] and came with the server |
//! | a cast to a type of pg_catalog | it is on the list |
//! | a cast to another type | the type is one of the table's columns, which `destination::schema` has resolved |
//! | any cast, any operand, a column that is assigned to | no function of the destination's own stands behind the conversion |
//! | a collation, a text search configuration | the destination has it; a configuration came with the server |
//!
//! Values are followed as far as needed for the conversions: a column and a cast have a type; what functions and operators
//! of pg_catalog return is of pg_catalog, or polymorphic and then an operand's.

use std::collections::BTreeSet;
use std::fmt;

use super::catalog::{CONFIGURATION_TYPE, ExpressionCatalog};
use super::tree::{BaseType, Expression, Special, Subscript, Test, TypeName};
use crate::catalog::schema::{ColumnDefinition, TypeDefinition, Types};
use crate::pg::{Ident, QualifiedName, TypeId};
use crate::schema_change::expression::purpose::Purpose;

/// The type of a check and of a predicate: the condition is converted as an assigned value is.
pub const BOOLEAN: TypeId = TypeId(16);

/// Where an expression belongs: what it may name.
#[derive(Clone, Debug)]
pub struct ExpressionScope<'a> {
    columns: Vec<(Ident, TypeId)>,
    /// The types of other schemas than pg_catalog that these columns are made of.
    own: BTreeSet<QualifiedName>,
    types: &'a Types,
    /// The type of the column that the value is assigned to.
    assigned_to: Option<TypeId>,
}

impl<'a> ExpressionScope<'a> {
    /// A table with these columns, whose types have been resolved at the destination.
    pub fn table<'c>(columns: impl IntoIterator<Item = &'c ColumnDefinition>, types: &'a Types) -> ExpressionScope<'a> {
        ExpressionScope::new(columns.into_iter().map(|column| (column.name.clone(), column.type_id)).collect(), types)
    }

    /// A domain's check, which calls the value VALUE.
    pub fn domain(base: TypeId, types: &'a Types) -> ExpressionScope<'a> {
        ExpressionScope::new(vec![(Ident::new("value"), base)], types)
    }

    /// The same without its columns: a default may name none.
    pub fn without_columns(&self) -> ExpressionScope<'a> {
        ExpressionScope { columns: Vec::new(), ..self.clone() }
    }

    /// The same for a value that is assigned to a column of this type.
    pub fn assigned_to(self, id: TypeId) -> ExpressionScope<'a> {
        ExpressionScope { assigned_to: Some(id), ..self }
    }

    fn new(columns: Vec<(Ident, TypeId)>, types: &'a Types) -> ExpressionScope<'a> {
        let mut open: Vec<TypeId> = columns.iter().map(|(_, id)| *id).collect();
        let mut seen = BTreeSet::new();
        let mut own = BTreeSet::new();
        while let Some(id) = open.pop() {
            let Some(definition) = types.get(&id).filter(|_| !id.is_built_in() && seen.insert(id)) else { continue };
            open.extend(definition.base.into_iter().chain(definition.element));
            open.extend(definition.attributes.iter().flatten().map(|attribute| attribute.type_id));
            if definition.element.is_none() && !is_of_catalog(definition) {
                own.insert(definition.qualified_name());
            }
        }
        ExpressionScope { columns, own, types, assigned_to: None }
    }
}

/// Why an expression is not taken over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It is not of the grammar.
    NotUnderstood,
    /// It names a column that does not exist, or is not published.
    Column(Ident),
    /// A function is not on the list, or could mean another.
    Function(Ident),
    /// An operator is not on the list.
    Operator(&'static str),
    /// A type is not on the list, and not one of the table's.
    Type(String),
    /// A function of the destination's own would convert a value.
    Conversion(String),
    /// The destination lacks a collation.
    Collation(String),
    /// It reads the clock where the result must always be the same.
    Clock,
    /// The destination's version lacks it.
    Version(&'static str),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::NotUnderstood => f.write_str("its form is not known to headwater"),
            Refusal::Column(name) => write!(f, "it uses column {name}"),
            Refusal::Function(name) => write!(f, "it calls function {name}"),
            Refusal::Operator(name) => write!(f, "it uses operator {name}"),
            Refusal::Type(name) => write!(f, "it uses type {name}"),
            Refusal::Conversion(name) => {
                write!(f, "a function of the destination would convert a value of type {name}")
            }
            Refusal::Collation(name) => write!(f, "it uses collation {name}"),
            Refusal::Clock => f.write_str("it reads the clock"),
            Refusal::Version(what) => write!(f, "it uses {what}, which the destination's version lacks"),
        }
    }
}

/// The type of a value, as far as conversions depend on it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum KnownType {
    /// A string or NULL, which becomes a value by the input function of the type that is asked for.
    Untyped,
    /// Some type of pg_catalog.
    BuiltIn,
    /// This type, or an array of it.
    Own(QualifiedName),
}

/// Looks an expression through.
///
/// # Errors
/// [`Refusal`]: the first thing that is not allowed.
pub(super) fn check(
    expression: &Expression,
    catalog: &ExpressionCatalog,
    scope: &ExpressionScope<'_>,
    purpose: Purpose,
) -> Result<(), Refusal> {
    let check = Check { catalog, scope, purpose };
    let value = check.value(expression)?;
    check.assignment(&value)
}

struct Check<'a> {
    catalog: &'a ExpressionCatalog,
    scope: &'a ExpressionScope<'a>,
    purpose: Purpose,
}

impl Check<'_> {
    fn value(&self, expression: &Expression) -> Result<KnownType, Refusal> {
        match expression {
            Expression::Column(name) => self.column(name),
            Expression::Text(_) | Expression::Null => Ok(KnownType::Untyped),
            Expression::Number(_) | Expression::Bits(_) | Expression::Boolean(_) => Ok(KnownType::BuiltIn),
            Expression::Cast(value, to) => self.cast(value, to),
            Expression::Function(call) => {
                self.function(&call.name, call.arguments.len())?;
                self.operands(call.arguments.iter().map(|argument| &argument.value))
            }
            Expression::Special(special, arguments) => self.special(*special, arguments),
            Expression::Prefix(operator, value) => {
                self.operator(operator, 1)?;
                self.operands([&**value])
            }
            Expression::Infix(operator, sides) | Expression::Elements(operator, _, sides) => {
                self.operator(operator, 2)?;
                self.operands([&sides.0, &sides.1])
            }
            Expression::Distinct(sides, _) => {
                self.operator("=", 2)?;
                self.operands([&sides.0, &sides.1])
            }
            Expression::Junction(_, terms) => self.operands(terms).map(|_| KnownType::BuiltIn),
            Expression::Not(value) => self.operands([&**value]).map(|_| KnownType::BuiltIn),
            Expression::Is(value, test, _) => self.is(value, *test),
            Expression::Case(case) => {
                if case.subject.is_some() {
                    self.operator("=", 2)?;
                }
                let conditions = case.subject.iter().chain(case.branches.iter().map(|(condition, _)| condition));
                self.operands(conditions)?;
                self.one_of(case.branches.iter().map(|(_, value)| value).chain(&case.otherwise))
            }
            Expression::Choice(_, arguments) => self.one_of(arguments),
            Expression::Array(elements) => self.one_of(elements),
            Expression::Row(values) => self.operands(values).map(|_| KnownType::BuiltIn),
            Expression::Subscript(value, subscripts) => {
                for subscript in subscripts {
                    match subscript {
                        Subscript::Index(index) => self.operands([index])?,
                        Subscript::Slice(first, last) => self.operands(first.iter().chain(last))?,
                    };
                }
                self.one_of([&**value])
            }
            Expression::Collate(value, collation) => {
                if !self.catalog.has_collation(collation) {
                    return Err(Refusal::Collation(collation.name.to_string()));
                }
                self.value(value)
            }
            Expression::Clock(..) if self.purpose == Purpose::Immutable => Err(Refusal::Clock),
            Expression::Clock(..) => Ok(KnownType::BuiltIn),
        }
    }

    /// A value that is assigned is converted unasked, by a cast of somebody's own where there is one.
    fn assignment(&self, value: &KnownType) -> Result<(), Refusal> {
        let Some(id) = self.scope.assigned_to else { return Ok(()) };
        let Some(column) = self.known(id) else { return Ok(()) };
        let is_planted = |from: &dyn Fn(&QualifiedName) -> bool, to: &dyn Fn(&QualifiedName) -> bool| {
            self.catalog.foreign_casts.iter().any(|cast| !cast.of_extension && from(&cast.from) && to(&cast.to))
        };
        let of_catalog = |name: &QualifiedName| name.schema.as_str() == "pg_catalog";
        let (name, converts) = match (value, &column) {
            // The input function is no cast, and between types of pg_catalog nobody may create one.
            (KnownType::Untyped, _) | (_, KnownType::Untyped) | (KnownType::BuiltIn, KnownType::BuiltIn) => {
                return Ok(());
            }
            (KnownType::BuiltIn, KnownType::Own(to)) => (to, is_planted(&of_catalog, &|name| name == to)),
            (KnownType::Own(from), KnownType::BuiltIn) => (from, is_planted(&|name| name == from, &of_catalog)),
            (KnownType::Own(from), KnownType::Own(to)) => (to, is_planted(&|name| name == from, &|name| name == to)),
        };
        if converts { Err(Refusal::Conversion(name.to_string())) } else { Ok(()) }
    }

    fn column(&self, name: &Ident) -> Result<KnownType, Refusal> {
        let found = self.scope.columns.iter().find(|(column, _)| column == name);
        let Some((_, id)) = found else { return Err(Refusal::Column(name.clone())) };
        self.known(*id).ok_or_else(|| Refusal::Column(name.clone()))
    }

    /// What a type of the source's is made of, through domains and arrays.
    fn known(&self, id: TypeId) -> Option<KnownType> {
        let mut id = id;
        // Domains over domains end; a source that lies about it is not followed for long.
        for _ in 0..32 {
            let Some(definition) = self.scope.types.get(&id) else {
                return id.is_built_in().then_some(KnownType::BuiltIn);
            };
            match definition.element.or(definition.base) {
                Some(inner) => id = inner,
                None if is_of_catalog(definition) => return Some(KnownType::BuiltIn),
                None => return Some(KnownType::Own(definition.qualified_name())),
            }
        }
        None
    }

    fn function(&self, name: &Ident, arguments: usize) -> Result<(), Refusal> {
        let allowed = self.catalog.allows_function(name, arguments, self.purpose);
        if allowed { Ok(()) } else { Err(Refusal::Function(name.clone())) }
    }

    fn operator(&self, name: &'static str, operands: usize) -> Result<(), Refusal> {
        let allowed = self.catalog.allows_operator(name, operands, self.purpose);
        if allowed { Ok(()) } else { Err(Refusal::Operator(name)) }
    }

    /// Values that a function or an operator of pg_catalog takes: what it returns is of pg_catalog. No value may be of a type
    /// that a function of the destination's own would convert unasked.
    fn operands<'e>(&self, values: impl IntoIterator<Item = &'e Expression>) -> Result<KnownType, Refusal> {
        for value in values {
            if let KnownType::Own(name) = self.value(value)?
                && self.catalog.foreign_casts.iter().any(|cast| cast.implicit && cast.from == name)
            {
                return Err(Refusal::Conversion(name.to_string()));
            }
        }
        Ok(KnownType::BuiltIn)
    }

    /// Values of which one is the result.
    fn one_of<'e>(&self, values: impl IntoIterator<Item = &'e Expression>) -> Result<KnownType, Refusal> {
        let mut known = KnownType::Untyped;
        for value in values {
            let next = self.value(value)?;
            match (&next, &known) {
                (KnownType::Untyped, _) => {}
                (_, KnownType::Untyped) => known = next,
                (KnownType::BuiltIn, KnownType::BuiltIn) => {}
                (KnownType::Own(a), KnownType::Own(b)) if a == b => {}
                // Of two types one is converted to the other.
                (KnownType::Own(name), _) | (_, KnownType::Own(name)) => {
                    return Err(Refusal::Conversion(name.to_string()));
                }
            }
        }
        Ok(known)
    }

    fn is(&self, value: &Expression, test: Test) -> Result<KnownType, Refusal> {
        if matches!(test, Test::Json(..)) && self.catalog.version < 160_000 {
            return Err(Refusal::Version("IS JSON"));
        }
        if test == Test::Null {
            // Looks at no value, whatever its type is.
            return self.value(value).map(|_| KnownType::BuiltIn);
        }
        self.operands([value])
    }

    fn special(&self, special: Special, arguments: &[Expression]) -> Result<KnownType, Refusal> {
        if special == Special::AtLocal && self.catalog.version < 170_000 {
            return Err(Refusal::Version("AT LOCAL"));
        }
        let (name, count) = special.function(arguments.len());
        self.function(&Ident::new(name), count)?;
        self.operands(arguments)
    }

    fn cast(&self, value: &Expression, to: &TypeName) -> Result<KnownType, Refusal> {
        let from = self.value(value)?;
        let target = match &to.base {
            BaseType::Interval(_) => QualifiedName::new("pg_catalog", "interval"),
            BaseType::BuiltIn(name) if name.as_str() == CONFIGURATION_TYPE => {
                return if let Expression::Text(text) = value
                    && !to.array
                    && self.catalog.has_configuration(text)
                {
                    Ok(KnownType::BuiltIn)
                } else {
                    Err(Refusal::Type(CONFIGURATION_TYPE.to_owned()))
                };
            }
            // A string or NULL of no type, as functions of any type get it.
            BaseType::BuiltIn(name) if name.as_str() == "unknown" && from == KnownType::Untyped => return Ok(from),
            BaseType::BuiltIn(name) if self.catalog.allows_type(name) => {
                QualifiedName { schema: Ident::new("pg_catalog"), name: name.clone() }
            }
            BaseType::BuiltIn(name) => return Err(Refusal::Type(name.to_string())),
            BaseType::Named(name) if self.scope.own.contains(name) => name.clone(),
            BaseType::Named(name) => return Err(Refusal::Type(name.to_string())),
        };
        let converts = self.catalog.foreign_casts.iter().any(|cast| {
            cast.to == target
                && match &from {
                    // The input function is no cast.
                    KnownType::Untyped => false,
                    KnownType::BuiltIn => cast.from.schema.as_str() == "pg_catalog",
                    KnownType::Own(name) => cast.from == *name,
                }
        });
        if converts {
            return Err(Refusal::Conversion(target.to_string()));
        }
        Ok(if target.schema.as_str() == "pg_catalog" { KnownType::BuiltIn } else { self.named(&target) })
    }

    /// What a type of the table's is made of.
    fn named(&self, name: &QualifiedName) -> KnownType {
        let found = self.scope.types.values().find(|definition| definition.qualified_name() == *name);
        found.and_then(|definition| self.known(definition.id)).unwrap_or_else(|| KnownType::Own(name.clone()))
    }
}

fn is_of_catalog(definition: &TypeDefinition) -> bool {
    definition.schema.as_str() == "pg_catalog"
}

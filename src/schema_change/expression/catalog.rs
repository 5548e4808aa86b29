//! What an expression may use: the lists of what is harmless, and what the destination has of it.
//!
//! The lists are this program's: functions by name and arguments (`functions.txt`), operators and types by name, each group
//! with the reason why it is harmless. "Harmless" means that a call does nothing but return a value: it writes nothing, reads
//! no table, file, sequence, setting of other people's or secret, waits for nothing, and is not told anything that outlives
//! it. How long it takes is not bounded here; statements are.
//!
//! What the lists name is looked up at the destination (sql/expression_catalog.sql, asked by `destination::expressions`),
//! because a name is no identity: a function counts as harmless only when every variant that could be meant by so many
//! arguments is listed, is one that came with the server (an OID below 16384, written in C or by initdb) and has no side
//! effect by its own declaration. Pure; `super::check` asks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use serde::Deserialize;

use super::tree::CollationName;
use crate::pg::{Ident, QualifiedName};
use crate::schema_change::expression::purpose::Purpose;

/// Operators that have the same reason for being harmless.
pub struct OperatorGroup {
    /// Why they are.
    pub reason: &'static str,
    /// Their names.
    pub names: &'static [&'static str],
}

/// Operators that are allowed. All variants of a name that come with the server are C functions over their arguments.
pub const OPERATORS: &[OperatorGroup] = &[
    OperatorGroup {
        reason: "Comparisons of values, and of rows byte by byte.",
        names: &["=", "<>", "<", "<=", ">", ">=", "*=", "*<>", "*<", "*<=", "*>", "*>=", "~<~", "~<=~", "~>~", "~>=~"],
    },
    OperatorGroup {
        reason: "Arithmetic on numbers, bits, dates, intervals and addresses.",
        names: &["+", "-", "*", "/", "%", "^", "|/", "||/", "@", "&", "|", "#", "~", "<<", ">>"],
    },
    OperatorGroup {
        reason: "Texts, patterns and regular expressions.",
        names: &["||", "~~", "!~~", "~~*", "!~~*", "!~", "~*", "!~*", "^@"],
    },
    OperatorGroup {
        reason: "Parts of JSON values, arrays and ranges, and what they contain.",
        names: &[
            "->", "->>", "#>", "#>>", "#-", "?", "?|", "?&", "@>", "<@", "@?", "@@", "&&", "-|-", "&<", "&>", "<->",
            "@@@", "!!", "<<=", ">>=",
        ],
    },
    OperatorGroup {
        reason: "Geometry.",
        names: &["##", "@-@", "&<|", "|&>", "<<|", "|>>", "<^", ">^", "?#", "?-", "?-|", "?||", "~="],
    },
];

/// Types to which values may be cast, by their names in pg_catalog. Their input functions read the text and the session's
/// settings, nothing else. Left out are those that look names up (regclass, regproc, regrole and their like, aclitem), those
/// that hold a server's inner state (pg_node_tree and its like) and pseudo-types.
pub const TYPES: &[&str] = &[
    // Numbers and truth.
    "bool",
    "int2",
    "int4",
    "int8",
    "float4",
    "float8",
    "numeric",
    "money",
    "oid",
    "xid",
    "xid8",
    "cid",
    "tid",
    "pg_lsn",
    // Texts and bytes.
    "text",
    "varchar",
    "bpchar",
    "char",
    "name",
    "bytea",
    "bit",
    "varbit",
    "refcursor",
    // Dates and times.
    "date",
    "time",
    "timetz",
    "timestamp",
    "timestamptz",
    "interval",
    // Documents.
    "json",
    "jsonb",
    "jsonpath",
    "xml",
    "tsvector",
    "tsquery",
    // Identifiers and addresses.
    "uuid",
    "inet",
    "cidr",
    "macaddr",
    "macaddr8",
    // Geometry.
    "point",
    "line",
    "lseg",
    "box",
    "path",
    "polygon",
    "circle",
    // Ranges.
    "int4range",
    "int8range",
    "numrange",
    "daterange",
    "tsrange",
    "tstzrange",
    "int4multirange",
    "int8multirange",
    "nummultirange",
    "datemultirange",
    "tsmultirange",
    "tstzmultirange",
];

/// A text search configuration is looked up by its name, so only those names are cast that came with the server.
pub const CONFIGURATION_TYPE: &str = "regconfig";

/// The functions that are allowed, by name.
pub static FUNCTIONS: LazyLock<BTreeMap<&'static str, ListedFunction>> =
    LazyLock::new(|| parse_functions(include_str!("functions.txt")));

/// A function of the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedFunction {
    /// A default may use it though it gives another value each time: the clock, random UUIDs.
    pub changes: bool,
    /// The arguments of each variant, as `pg_catalog.oidvectortypes` writes them.
    variants: BTreeSet<&'static str>,
    /// Variants that some version declares volatile because they read the clock for a time zone's offset.
    reads_clock: BTreeSet<&'static str>,
}

impl ListedFunction {
    /// The arguments of each variant.
    pub fn variants(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.variants.iter().copied()
    }
}

/// Reads the list: `# reason`, then `name: (arguments) | (arguments)`, long entries on indented lines. A `~` before the
/// parenthesis: see [`ListedFunction::reads_clock`]. Below a line `# changes …` stand those that only defaults may use.
fn parse_functions(text: &'static str) -> BTreeMap<&'static str, ListedFunction> {
    let mut functions: BTreeMap<&'static str, ListedFunction> = BTreeMap::new();
    let mut changes = false;
    let mut current = "";
    for line in text.lines() {
        if line.starts_with('#') || line.is_empty() {
            changes = !line.is_empty() && (changes || line.starts_with("# changes "));
            continue;
        }
        let variants = if line.starts_with(' ') {
            line
        } else {
            let Some((name, variants)) = line.split_once(": ") else { continue };
            current = name;
            variants
        };
        let function = functions.entry(current).or_insert_with(|| ListedFunction {
            changes,
            variants: BTreeSet::new(),
            reads_clock: BTreeSet::new(),
        });
        for variant in variants.split('|').map(str::trim) {
            let (reads_clock, variant) = match variant.strip_prefix('~') {
                Some(variant) => (true, variant),
                None => (false, variant),
            };
            let Some(arguments) = variant.strip_prefix('(').and_then(|rest| rest.strip_suffix(')')) else { continue };
            function.variants.insert(arguments);
            if reads_clock {
                function.reads_clock.insert(arguments);
            }
        }
    }
    functions
}

/// What the destination has of all this. Read by `destination::expressions`.
#[derive(Clone, Debug, Deserialize)]
pub struct ExpressionCatalog {
    /// `server_version_num`
    pub version: u32,
    /// All variants of the listed functions that pg_catalog has, listed or not.
    pub functions: Vec<FunctionVariant>,
    /// All variants of operators that pg_catalog has, by name and number of operands.
    pub operators: Vec<OperatorVariants>,
    /// Names of types of pg_catalog that came with the server.
    pub types: BTreeSet<String>,
    /// Functions that came with the server and convert to a type, by its name.
    pub cast_functions: Vec<(String, u32)>,
    /// Casts by a function that did not come with the server.
    pub foreign_casts: Vec<ForeignCast>,
    /// Text search configurations that came with the server.
    pub configurations: BTreeSet<String>,
    /// Collations: the schema is missing where it is pg_catalog.
    pub collations: BTreeSet<(Option<String>, String)>,
}

/// A function of pg_catalog.
#[derive(Clone, Debug, Deserialize)]
pub struct FunctionVariant {
    /// Its OID.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// Its arguments, as `pg_catalog.oidvectortypes` writes them.
    pub arguments: String,
    /// How many arguments a call has at least.
    pub least: usize,
    /// How many at most, unless it is variadic.
    pub most: usize,
    /// It takes any number of further arguments.
    pub variadic: bool,
    /// `provolatile`
    pub volatility: char,
    /// It came with the server, is an ordinary function, returns one value, and runs with nobody else's rights or settings.
    pub built_in: bool,
}

/// The operators of one name and number of operands in pg_catalog.
#[derive(Clone, Debug, Deserialize)]
pub struct OperatorVariants {
    /// The name.
    pub name: String,
    /// How many operands.
    pub operands: usize,
    /// The functions behind them.
    pub functions: Vec<u32>,
    /// Their `provolatile`, each letter once.
    pub volatility: String,
    /// All of them, and their functions, came with the server.
    pub built_in: bool,
}

/// A cast of the destination's own that calls a function. An array counts as its element.
#[derive(Clone, Debug, Deserialize)]
pub struct ForeignCast {
    /// From which type.
    pub from: QualifiedName,
    /// To which type.
    pub to: QualifiedName,
    /// It is used without being asked for: at least where a value is assigned, or stands for a condition.
    pub implicit: bool,
    /// It is an extension's, and not of somebody who happens to own a type.
    pub of_extension: bool,
}

impl ExpressionCatalog {
    /// Whether a call of this name with so many arguments can only mean functions that are allowed.
    pub(crate) fn allows_function(&self, name: &Ident, arguments: usize, purpose: Purpose) -> bool {
        let Some(listed) = FUNCTIONS.get(name.as_str()) else { return false };
        if listed.changes && purpose == Purpose::Immutable {
            return false;
        }
        let mut variants = self
            .functions
            .iter()
            .filter(|f| f.name == name.as_str() && f.least <= arguments && (arguments <= f.most || f.variadic))
            .peekable();
        let mut immutable = purpose == Purpose::Default;
        if variants.peek().is_none() {
            return false;
        }
        for variant in variants {
            let arguments = variant.arguments.as_str();
            let declared = variant.volatility != 'v' || listed.changes || listed.reads_clock.contains(arguments);
            if !variant.built_in || !declared || !listed.variants.contains(arguments) {
                return false;
            }
            immutable |= variant.volatility == 'i';
        }
        immutable
    }

    /// Whether an operator with so many operands can only mean operators that are allowed.
    pub(crate) fn allows_operator(&self, name: &str, operands: usize, purpose: Purpose) -> bool {
        let listed = OPERATORS.iter().any(|group| group.names.contains(&name));
        let mut variants = self.operators.iter().filter(|o| o.name == name && o.operands == operands);
        let fits = |variants: &OperatorVariants| {
            variants.built_in
                && !variants.volatility.contains('v')
                && (purpose == Purpose::Default || variants.volatility.contains('i'))
        };
        listed && variants.next().is_some_and(fits) && variants.next().is_none()
    }

    /// Whether values may be cast to this type of pg_catalog.
    pub(crate) fn allows_type(&self, name: &Ident) -> bool {
        TYPES.contains(&name.as_str()) && self.types.contains(name.as_str())
    }

    /// Whether this is the name of a text search configuration that came with the server.
    pub(crate) fn has_configuration(&self, text: &str) -> bool {
        self.configurations.contains(text.strip_prefix("pg_catalog.").unwrap_or(text))
    }

    /// Whether the destination has a collation.
    pub(crate) fn has_collation(&self, name: &CollationName) -> bool {
        let schema = name.schema.as_ref().map(|schema| schema.as_str().to_owned());
        self.collations.contains(&(schema, name.name.as_str().to_owned()))
    }

    /// The functions that an accepted expression may call, by OID: what is created is compared with these.
    pub fn allowed_functions(&self) -> BTreeSet<u32> {
        let listed = |f: &&FunctionVariant| {
            let listed = FUNCTIONS.get(f.name.as_str());
            f.built_in && listed.is_some_and(|listed| listed.variants.contains(f.arguments.as_str()))
        };
        let operators = self.operators.iter().filter(|operator| {
            operator.built_in && OPERATORS.iter().any(|group| group.names.contains(&operator.name.as_str()))
        });
        let casts = self.cast_functions.iter().filter(|(to, _)| TYPES.contains(&to.as_str())).map(|(_, id)| *id);
        let functions = self.functions.iter().filter(listed).map(|f| f.id);
        functions.chain(operators.flat_map(|o| o.functions.iter().copied())).chain(casts).collect()
    }
}

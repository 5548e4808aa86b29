//! What an expression is made of, once it is understood.
//!
//! Made by `super::parser` out of a server's text, looked through by `super::check`, written as SQL by
//! `super::printer`. Plain data: whatever cannot be said here is never sent to the destination.
//!
//! Invariant: there is no node that holds SQL. Names, strings and numbers are values, which the printer quotes; operators,
//! keywords and special forms are of this program's own lists. Qualified names are only types, collations and functions of
//! pg_catalog; there are no fields of values, no subselects, no aggregates.

use crate::pg::{Ident, QualifiedName};

/// An expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expression {
    /// A column of the table, or a domain's VALUE.
    Column(Ident),
    /// A string whose type follows from where it stands.
    Text(String),
    /// A number, as digits.
    Number(String),
    /// A bit string, `b'…'` or `x'…'` with digits only.
    Bits(String),
    /// NULL
    Null,
    /// TRUE or FALSE
    Boolean(bool),
    /// A value of another type: `x::type`.
    Cast(Box<Expression>, TypeName),
    /// A function of pg_catalog.
    Function(Call),
    /// A function that SQL gives words instead of commas.
    Special(Special, Vec<Expression>),
    /// An operator of pg_catalog before a value.
    Prefix(&'static str, Box<Expression>),
    /// An operator of pg_catalog between two values.
    Infix(&'static str, Box<(Expression, Expression)>),
    /// An operator between a value and some or all elements of an array.
    Elements(&'static str, Quantifier, Box<(Expression, Expression)>),
    /// AND or OR over two or more.
    Junction(Junction, Vec<Expression>),
    /// NOT
    Not(Box<Expression>),
    /// IS …, or IS NOT … where `negated`.
    Is(Box<Expression>, Test, bool),
    /// IS DISTINCT FROM, or IS NOT DISTINCT FROM where `negated`.
    Distinct(Box<(Expression, Expression)>, bool),
    /// CASE
    Case(Box<Case>),
    /// COALESCE, GREATEST, LEAST or NULLIF.
    Choice(Choice, Vec<Expression>),
    /// ARRAY[…]
    Array(Vec<Expression>),
    /// ROW(…)
    Row(Vec<Expression>),
    /// Elements of an array or of a JSON value.
    Subscript(Box<Expression>, Vec<Subscript>),
    /// COLLATE
    Collate(Box<Expression>, CollationName),
    /// CURRENT_DATE and its like, with a precision where it has one.
    Clock(Clock, Option<u32>),
}

/// A call of a function of pg_catalog.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Its name.
    pub name: Ident,
    /// What it is given.
    pub arguments: Vec<Argument>,
    /// The last argument is an array of all the others (VARIADIC).
    pub variadic: bool,
}

/// What a function is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Argument {
    /// The parameter's name, where it is given (`days => 7`).
    pub name: Option<Ident>,
    /// The value.
    pub value: Expression,
}

/// ANY or ALL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantifier {
    /// ANY
    Any,
    /// ALL
    All,
}

/// AND or OR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Junction {
    /// AND
    And,
    /// OR
    Or,
}

/// What is tested by IS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Test {
    /// NULL
    Null,
    /// TRUE
    True,
    /// FALSE
    False,
    /// UNKNOWN
    Unknown,
    /// DOCUMENT
    Document,
    /// JSON (16 and later)
    Json(JsonKind, bool),
}

/// Which JSON value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JsonKind {
    /// Any.
    Any,
    /// SCALAR
    Scalar,
    /// ARRAY
    Array,
    /// OBJECT
    Object,
}

/// CASE
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// What the branches are compared with; without it they are conditions.
    pub subject: Option<Expression>,
    /// WHEN and THEN, one or more.
    pub branches: Vec<(Expression, Expression)>,
    /// ELSE
    pub otherwise: Option<Expression>,
}

/// Forms that choose one of their arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// COALESCE
    Coalesce,
    /// GREATEST
    Greatest,
    /// LEAST
    Least,
    /// NULLIF, of two.
    NullIf,
}

/// An index, or the bounds of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subscript {
    /// `[1]`
    Index(Expression),
    /// `[1:2]`, either of which may be missing.
    Slice(Option<Expression>, Option<Expression>),
}

/// A collation; without a schema it is pg_catalog's.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CollationName {
    /// The schema.
    pub schema: Option<Ident>,
    /// The name.
    pub name: Ident,
}

/// A type, with its modifiers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TypeName {
    /// Which type.
    pub base: BaseType,
    /// What stands in parentheses: a length, or a precision and a scale.
    pub modifiers: Vec<i32>,
    /// An array of it.
    pub array: bool,
}

/// A type without its modifiers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BaseType {
    /// One of pg_catalog, by its name there (`int4`, not `integer`).
    BuiltIn(Ident),
    /// An interval that keeps only some of its fields; the words are of this program's own list.
    Interval(&'static str),
    /// One of another schema.
    Named(QualifiedName),
}

/// SQL's words for the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// CURRENT_DATE
    CurrentDate,
    /// CURRENT_TIME
    CurrentTime,
    /// CURRENT_TIMESTAMP
    CurrentTimestamp,
    /// LOCALTIME
    LocalTime,
    /// LOCALTIMESTAMP
    LocalTimestamp,
}

impl Clock {
    /// All of them.
    pub const ALL: [Clock; 5] =
        [Clock::CurrentDate, Clock::CurrentTime, Clock::CurrentTimestamp, Clock::LocalTime, Clock::LocalTimestamp];

    /// As SQL spells it.
    pub const fn sql(self) -> &'static str {
        match self {
            Clock::CurrentDate => "CURRENT_DATE",
            Clock::CurrentTime => "CURRENT_TIME",
            Clock::CurrentTimestamp => "CURRENT_TIMESTAMP",
            Clock::LocalTime => "LOCALTIME",
            Clock::LocalTimestamp => "LOCALTIMESTAMP",
        }
    }
}

/// A function that SQL gives words instead of commas. Its arguments stand in the order in which they are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    /// EXTRACT(field FROM x)
    Extract(Field),
    /// SUBSTRING(x FROM y [FOR z])
    Substring,
    /// SUBSTRING(x SIMILAR y ESCAPE z)
    SubstringSimilar,
    /// POSITION(x IN y)
    Position,
    /// OVERLAY(w PLACING x FROM y [FOR z])
    Overlay,
    /// `TRIM(side [y] FROM x)`: x, and y where it is there.
    Trim(TrimSide),
    /// NORMALIZE(x, form)
    Normalize(NormalForm),
    /// x IS form NORMALIZED
    IsNormalized(NormalForm),
    /// x AT TIME ZONE y
    AtTimeZone,
    /// x AT LOCAL (17 and later)
    AtLocal,
    /// (w, x) OVERLAPS (y, z)
    Overlaps,
}

impl Special {
    /// The function of pg_catalog that is called, and with how many arguments when so many are written.
    pub const fn function(self, written: usize) -> (&'static str, usize) {
        match self {
            Special::Extract(_) => ("extract", 2),
            Special::Substring | Special::SubstringSimilar => ("substring", written),
            Special::Position => ("position", 2),
            Special::Overlay => ("overlay", written),
            Special::Trim(TrimSide::Both) => ("btrim", written),
            Special::Trim(TrimSide::Leading) => ("ltrim", written),
            Special::Trim(TrimSide::Trailing) => ("rtrim", written),
            // The form has a default, which is given too.
            Special::Normalize(_) => ("normalize", 2),
            Special::IsNormalized(_) => ("is_normalized", 2),
            Special::AtTimeZone => ("timezone", 2),
            Special::AtLocal => ("timezone", 1),
            Special::Overlaps => ("overlaps", 4),
        }
    }
}

/// Which end is trimmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrimSide {
    /// BOTH
    Both,
    /// LEADING
    Leading,
    /// TRAILING
    Trailing,
}

/// A Unicode normalization form; without one it is NFC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormalForm {
    /// Not said.
    Default,
    /// NFC
    Nfc,
    /// NFD
    Nfd,
    /// NFKC
    Nfkc,
    /// NFKD
    Nfkd,
}

impl NormalForm {
    /// Those that are said.
    pub const ALL: [NormalForm; 4] = [NormalForm::Nfc, NormalForm::Nfd, NormalForm::Nfkc, NormalForm::Nfkd];

    /// As SQL spells it.
    pub const fn sql(self) -> Option<&'static str> {
        match self {
            NormalForm::Default => None,
            NormalForm::Nfc => Some("NFC"),
            NormalForm::Nfd => Some("NFD"),
            NormalForm::Nfkc => Some("NFKC"),
            NormalForm::Nfkd => Some("NFKD"),
        }
    }
}

/// What is extracted from a date or a time: an index into `FIELDS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field(usize);

/// The fields that dates and times have ("Date/Time Functions", extract).
const FIELDS: &[&str] = &[
    "century",
    "day",
    "decade",
    "dow",
    "doy",
    "epoch",
    "hour",
    "isodow",
    "isoyear",
    "julian",
    "microseconds",
    "millennium",
    "milliseconds",
    "minute",
    "month",
    "quarter",
    "second",
    "timezone",
    "timezone_hour",
    "timezone_minute",
    "week",
    "year",
];

impl Field {
    /// The field of a name.
    pub fn named(name: &str) -> Option<Field> {
        FIELDS.iter().position(|field| *field == name).map(Field)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        FIELDS.get(self.0).expect("a field is an index into FIELDS")
    }
}

/// The words by which an interval keeps only some of its fields, longest first where one begins another.
pub const INTERVAL_FIELDS: &[&str] = &[
    "year to month",
    "day to hour",
    "day to minute",
    "day to second",
    "hour to minute",
    "hour to second",
    "minute to second",
    "year",
    "month",
    "day",
    "hour",
    "minute",
    "second",
];

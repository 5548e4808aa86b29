//! An expression's tree as SQL.
//!
//! Comes in from [`super::Expressions`] once [`super::check`] has looked it through; out goes a text that is one expression,
//! whatever the session's search_path, standard_conforming_strings and encoding of ASCII supersets are. Pure.
//!
//! Invariants: names go through [`Ident::sql`], strings through [`quote_literal`]; functions, operators, types and collations
//! are qualified with their schema; every operator stands in parentheses. What is printed parses to the same tree again.

use std::fmt::{self, Display as _, Write as _};

use super::tree::{
    Argument, BaseType, Call, Case, Choice, CollationName, Expression, JsonKind, Junction, NormalForm, Quantifier,
    Special, Subscript, Test, TrimSide, TypeName,
};
use crate::pg::{Ident, quote_literal};

impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Long: an arm for each kind of expression.
        match self {
            Expression::Column(name) => f.write_str(&name.sql()),
            Expression::Text(text) => f.write_str(quote_literal(text).trim_start()),
            Expression::Number(digits) => f.write_str(digits),
            Expression::Bits(bits) => f.write_str(bits),
            Expression::Null => f.write_str("NULL"),
            Expression::Boolean(value) => f.write_str(if *value { "TRUE" } else { "FALSE" }),
            Expression::Cast(value, to) => {
                // A string or NULL takes the type at once; everything else is converted.
                if matches!(**value, Expression::Text(_) | Expression::Null) {
                    write!(f, "{value}::{to}")
                } else {
                    write!(f, "({value})::{to}")
                }
            }
            Expression::Function(call) => call.fmt(f),
            Expression::Special(special, arguments) => write_special(f, *special, arguments),
            Expression::Prefix(operator, value) => write!(f, "({} {value})", qualified(operator)),
            Expression::Infix(operator, sides) => write!(f, "({} {} {})", sides.0, qualified(operator), sides.1),
            Expression::Elements(operator, quantifier, sides) => {
                let quantifier = match quantifier {
                    Quantifier::Any => "ANY",
                    Quantifier::All => "ALL",
                };
                write!(f, "({} {} {quantifier} ({}))", sides.0, qualified(operator), sides.1)
            }
            Expression::Junction(junction, terms) => {
                let word = match junction {
                    Junction::And => " AND ",
                    Junction::Or => " OR ",
                };
                f.write_char('(')?;
                write_list(f, terms, word)?;
                f.write_char(')')
            }
            Expression::Not(value) => write!(f, "(NOT {value})"),
            Expression::Is(value, test, negated) => {
                write!(f, "({value} IS {}", not(*negated))?;
                write_test(f, *test)
            }
            Expression::Distinct(sides, negated) => {
                write!(f, "({} IS {}DISTINCT FROM {})", sides.0, not(*negated), sides.1)
            }
            Expression::Case(case) => case.fmt(f),
            Expression::Choice(choice, arguments) => {
                f.write_str(match choice {
                    Choice::Coalesce => "COALESCE(",
                    Choice::Greatest => "GREATEST(",
                    Choice::Least => "LEAST(",
                    Choice::NullIf => "NULLIF(",
                })?;
                write_list(f, arguments, ", ")?;
                f.write_char(')')
            }
            Expression::Array(elements) => {
                f.write_str("ARRAY[")?;
                write_list(f, elements, ", ")?;
                f.write_char(']')
            }
            Expression::Row(values) => {
                f.write_str("ROW(")?;
                write_list(f, values, ", ")?;
                f.write_char(')')
            }
            Expression::Subscript(value, subscripts) => {
                if matches!(**value, Expression::Column(_)) {
                    write!(f, "{value}")?;
                } else {
                    write!(f, "({value})")?;
                }
                subscripts.iter().try_for_each(|subscript| write_subscript(f, subscript))
            }
            Expression::Collate(value, collation) => write!(f, "({value} COLLATE {collation})"),
            Expression::Clock(clock, precision) => {
                f.write_str(clock.sql())?;
                precision.map_or(Ok(()), |precision| write!(f, "({precision})"))
            }
        }
    }
}

/// `OPERATOR(pg_catalog.=)`: names of operators are of our own list.
fn qualified(operator: &str) -> String {
    format!("OPERATOR(pg_catalog.{operator})")
}

const fn not(negated: bool) -> &'static str {
    if negated { "NOT " } else { "" }
}

fn write_list(f: &mut fmt::Formatter<'_>, items: &[Expression], separator: &str) -> fmt::Result {
    for (number, item) in items.iter().enumerate() {
        if number > 0 {
            f.write_str(separator)?;
        }
        item.fmt(f)?;
    }
    Ok(())
}

fn write_test(f: &mut fmt::Formatter<'_>, test: Test) -> fmt::Result {
    match test {
        Test::Null => f.write_str("NULL)"),
        Test::True => f.write_str("TRUE)"),
        Test::False => f.write_str("FALSE)"),
        Test::Unknown => f.write_str("UNKNOWN)"),
        Test::Document => f.write_str("DOCUMENT)"),
        Test::Json(kind, unique) => {
            f.write_str(match kind {
                JsonKind::Any => "JSON",
                JsonKind::Scalar => "JSON SCALAR",
                JsonKind::Array => "JSON ARRAY",
                JsonKind::Object => "JSON OBJECT",
            })?;
            f.write_str(if unique { " WITH UNIQUE KEYS)" } else { ")" })
        }
    }
}

fn write_subscript(f: &mut fmt::Formatter<'_>, subscript: &Subscript) -> fmt::Result {
    match subscript {
        Subscript::Index(index) => write!(f, "[{index}]"),
        Subscript::Slice(first, last) => {
            f.write_char('[')?;
            first.iter().try_for_each(|first| first.fmt(f))?;
            f.write_char(':')?;
            last.iter().try_for_each(|last| last.fmt(f))?;
            f.write_char(']')
        }
    }
}

fn write_special(f: &mut fmt::Formatter<'_>, special: Special, arguments: &[Expression]) -> fmt::Result {
    let words: &[&str] = match special {
        Special::Extract(field) => {
            write!(f, "EXTRACT({} FROM ", field.name())?;
            &["", ")"]
        }
        Special::Substring if arguments.len() == 2 => &["SUBSTRING(", " FROM ", ")"],
        Special::Substring => &["SUBSTRING(", " FROM ", " FOR ", ")"],
        Special::SubstringSimilar => &["SUBSTRING(", " SIMILAR ", " ESCAPE ", ")"],
        Special::Position => &["POSITION((", ") IN (", "))"],
        Special::Overlay if arguments.len() == 3 => &["OVERLAY(", " PLACING ", " FROM ", ")"],
        Special::Overlay => &["OVERLAY(", " PLACING ", " FROM ", " FOR ", ")"],
        Special::Trim(side) => return write_trim(f, side, arguments),
        Special::Normalize(form) => {
            f.write_str("NORMALIZE(")?;
            write_list(f, arguments, "")?;
            form.sql().iter().try_for_each(|form| write!(f, ", {form}"))?;
            return f.write_char(')');
        }
        Special::IsNormalized(form) => {
            f.write_char('(')?;
            write_list(f, arguments, "")?;
            f.write_str(" IS ")?;
            write_form(f, form)?;
            return f.write_str("NORMALIZED)");
        }
        Special::AtTimeZone => &["(", " AT TIME ZONE ", ")"],
        Special::AtLocal => &["(", " AT LOCAL)"],
        Special::Overlaps => &["((", ", ", ") OVERLAPS (", ", ", "))"],
    };
    for (number, word) in words.iter().enumerate() {
        f.write_str(word)?;
        arguments.get(number).iter().try_for_each(|argument| argument.fmt(f))?;
    }
    Ok(())
}

fn write_form(f: &mut fmt::Formatter<'_>, form: NormalForm) -> fmt::Result {
    form.sql().iter().try_for_each(|form| write!(f, "{form} "))
}

/// The characters stand before the text, though they are the second argument.
fn write_trim(f: &mut fmt::Formatter<'_>, side: TrimSide, arguments: &[Expression]) -> fmt::Result {
    f.write_str(match side {
        TrimSide::Both => "TRIM(BOTH ",
        TrimSide::Leading => "TRIM(LEADING ",
        TrimSide::Trailing => "TRIM(TRAILING ",
    })?;
    arguments.iter().skip(1).try_for_each(|characters| write!(f, "{characters} "))?;
    f.write_str("FROM ")?;
    arguments.iter().take(1).try_for_each(|text| text.fmt(f))?;
    f.write_char(')')
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pg_catalog.{}(", self.name.sql())?;
        for (number, Argument { name, value }) in self.arguments.iter().enumerate() {
            let separator = if number > 0 { ", " } else { "" };
            let last = self.variadic && number + 1 == self.arguments.len();
            let variadic = if last { "VARIADIC " } else { "" };
            let name = name.as_ref().map_or_else(String::new, |name| format!("{} => ", name.sql()));
            write!(f, "{separator}{variadic}{name}{value}")?;
        }
        f.write_char(')')
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CASE")?;
        self.subject.iter().try_for_each(|subject| write!(f, " {subject}"))?;
        self.branches.iter().try_for_each(|(condition, value)| write!(f, " WHEN {condition} THEN {value}"))?;
        self.otherwise.iter().try_for_each(|otherwise| write!(f, " ELSE {otherwise}"))?;
        f.write_str(" END")
    }
}

impl fmt::Display for CollationName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let schema = self.schema.as_ref().map_or_else(|| "pg_catalog".to_owned(), Ident::sql);
        write!(f, "{schema}.{}", self.name.sql())
    }
}

impl fmt::Display for TypeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.base {
            BaseType::BuiltIn(name) => write!(f, "pg_catalog.{}", name.sql())?,
            // A keyword, which is pg_catalog's by itself.
            BaseType::Interval("") => f.write_str("interval")?,
            BaseType::Interval(fields) => write!(f, "interval {fields}")?,
            BaseType::Named(name) => f.write_str(&name.sql())?,
        }
        if !self.modifiers.is_empty() {
            let modifiers: Vec<String> = self.modifiers.iter().map(i32::to_string).collect();
            write!(f, "({})", modifiers.join(", "))?;
        }
        f.write_str(if self.array { "[]" } else { "" })
    }
}

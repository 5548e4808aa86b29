//! Names of types, as `format_type` prints them, into what they mean.
//!
//! A part of [`super::parser`]. SQL's own spellings (`character varying(20)`, `timestamp(3) with time zone`) become the name
//! in pg_catalog that they stand for; a name without a schema is one of pg_catalog, since the sessions that print expressions
//! have an empty search_path.

use super::lexer::Token;
use super::parser::Parser;
use super::tree::{BaseType, INTERVAL_FIELDS, TypeName};
use crate::pg::{Ident, QualifiedName};

/// SQL's spellings of one word, and the names of pg_catalog that they stand for.
const SPELLINGS: &[(&str, &str)] = &[
    ("bigint", "int8"),
    ("boolean", "bool"),
    ("dec", "numeric"),
    ("decimal", "numeric"),
    ("int", "int4"),
    ("integer", "int4"),
    ("json", "json"),
    ("numeric", "numeric"),
    ("real", "float4"),
    ("smallint", "int2"),
    ("varchar", "varchar"),
];

impl Parser {
    /// A type with its modifiers and brackets.
    pub(super) fn type_name(&mut self) -> Option<TypeName> {
        let (base, modifiers) = self.base_type()?;
        let mut array = false;
        while self.take(&Token::OpenBracket) {
            self.expect(&Token::CloseBracket)?;
            array = true;
        }
        Some(TypeName { base, modifiers, array })
    }

    fn base_type(&mut self) -> Option<(BaseType, Vec<i32>)> {
        let word = self.peek_word().unwrap_or_default().to_owned();
        if let Some((_, name)) = SPELLINGS.iter().find(|(spelling, _)| *spelling == word) {
            self.next();
            return self.built_in(name);
        }
        match word.as_str() {
            "double" => {
                self.next();
                if self.take_word("precision") { self.built_in("float8") } else { None }
            }
            "character" | "char" => {
                self.next();
                if self.take_word("varying") { self.built_in("varchar") } else { self.of_length_one("bpchar") }
            }
            "bit" => {
                self.next();
                if self.take_word("varying") { self.built_in("varbit") } else { self.of_length_one("bit") }
            }
            "time" => self.clock("time", "timetz"),
            "timestamp" => self.clock("timestamp", "timestamptz"),
            "interval" => {
                self.next();
                self.interval()
            }
            _ => self.any_type(),
        }
    }

    fn built_in(&mut self, name: &'static str) -> Option<(BaseType, Vec<i32>)> {
        Some((BaseType::BuiltIn(Ident::new(name)), self.modifiers()?))
    }

    /// Without a length it is 1.
    fn of_length_one(&mut self, name: &'static str) -> Option<(BaseType, Vec<i32>)> {
        let (base, mut modifiers) = self.built_in(name)?;
        if modifiers.is_empty() {
            modifiers.push(1);
        }
        Some((base, modifiers))
    }

    fn clock(&mut self, without: &'static str, with: &'static str) -> Option<(BaseType, Vec<i32>)> {
        self.next();
        let modifiers = self.modifiers()?;
        let name = if self.take_words("with time zone") {
            with
        } else {
            self.take_words("without time zone");
            without
        };
        Some((BaseType::BuiltIn(Ident::new(name)), modifiers))
    }

    fn interval(&mut self) -> Option<(BaseType, Vec<i32>)> {
        let fields = INTERVAL_FIELDS.iter().find(|fields| self.take_words(fields)).copied();
        let modifiers = self.modifiers()?;
        let base = match fields {
            // Only seconds have a precision.
            Some(fields) if modifiers.is_empty() || fields.ends_with("second") => BaseType::Interval(fields),
            Some(_) => return None,
            None if modifiers.is_empty() => BaseType::BuiltIn(Ident::new("interval")),
            None => BaseType::Interval(""),
        };
        (modifiers.len() <= 1).then_some((base, modifiers))
    }

    /// A type by its name, of pg_catalog where no schema is said.
    fn any_type(&mut self) -> Option<(BaseType, Vec<i32>)> {
        let name = self.name()?;
        let base = if self.take(&Token::Dot) {
            let (schema, name) = (name, self.name()?);
            match schema.as_str() {
                "pg_catalog" => BaseType::BuiltIn(name),
                _ => BaseType::Named(QualifiedName { schema, name }),
            }
        } else {
            BaseType::BuiltIn(name)
        };
        Some((base, self.modifiers()?))
    }

    fn modifiers(&mut self) -> Option<Vec<i32>> {
        let mut modifiers = Vec::new();
        if !self.take(&Token::Open) {
            return Some(modifiers);
        }
        loop {
            let negative = self.take(&Token::Operator("-"));
            let Token::Number(digits) = self.next()? else { return None };
            let modifier: i32 = digits.parse().ok()?;
            modifiers.push(if negative { -modifier } else { modifier });
            if !self.take(&Token::Comma) {
                self.expect(&Token::Close)?;
                return Some(modifiers);
            }
        }
    }
}

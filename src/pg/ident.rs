//! Names of database objects, and the only way in which a name gets into SQL.
//!
//! Comes in as text from the configuration (SQL identifier syntax) or from a server (already exact); goes out quoted.
//! A hostile source may name a table `x"; DROP TABLE y; --`: because every name passes through [`Ident::sql`], that
//! is only an odd name.
//!
//! Two forms: `Display` quotes where PostgreSQL's `quote_ident` would, for people to read and to paste, and writes
//! characters that would not be seen as `U&"\000a"`, which is the same name to PostgreSQL and to [`FromStr`]; `sql()` always
//! quotes, for SQL that we send ourselves to servers whose future keywords we do not know.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::printable::is_printable;
use super::shown_sql::shown_identifier;

/// Longest name that PostgreSQL keeps, in bytes: NAMEDATALEN - 1. It cuts longer ones silently; we refuse them.
const NAME_BYTES_MAX: usize = 63;

/// Keywords that `quote_ident` quotes (all but the unreserved), from `pg_get_keywords()` of PostgreSQL 18.
const KEYWORDS: &str = " all analyse analyze and any array as asc asymmetric authorization between bigint binary bit \
    boolean both case cast char character check coalesce collate collation column concurrently constraint create cross \
    current_catalog current_date current_role current_schema current_time current_timestamp current_user dec decimal \
    default deferrable desc distinct do else end except exists extract false fetch float for foreign freeze from full \
    grant greatest group grouping having ilike in initially inner inout int integer intersect interval into is isnull \
    join json json_array json_arrayagg json_exists json_object json_objectagg json_query json_scalar json_serialize \
    json_table json_value lateral leading least left like limit localtime localtimestamp merge_action national natural \
    nchar none normalize not notnull null nullif numeric offset on only or order out outer overlaps overlay placing \
    position precision primary real references returning right row select session_user setof similar smallint some \
    substring symmetric system_user table tablesample then time timestamp to trailing treat trim true union unique user \
    using values varchar variadic verbose when where window with xmlattributes xmlconcat xmlelement xmlexists xmlforest \
    xmlnamespaces xmlparse xmlpi xmlroot xmlserialize xmltable ";

/// The name of a schema, table, column, type, constraint or publication, exactly as the catalog holds it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Ident(Box<str>);

/// The text is not an SQL identifier, or not one that PostgreSQL can keep.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentError {
    /// Nothing, or `""`.
    #[error("a name cannot be empty")]
    Empty,
    /// More than 63 bytes.
    #[error("\"{0}\" is longer than the 63 bytes that PostgreSQL keeps of a name")]
    TooLong(String),
    /// A character that needs double quotes, or quotes that do not match.
    #[error(
        "\"{0}\" is not an SQL identifier: put names with other characters than letters, digits, _ and $ into double quotes"
    )]
    Syntax(String),
    /// An asterisk outside of double quotes.
    #[error("\"{0}\" is a pattern, and each name must be given by itself")]
    Pattern(String),
    /// More parts than schema and table.
    #[error("\"{0}\" has more parts than schema.table")]
    TooManyParts(String),
}

impl Ident {
    /// The name as the catalog holds it, or as it will hold it.
    ///
    /// For names that come from a server or from our own constants; text from people goes through [`FromStr`].
    pub fn new(name: impl Into<Box<str>>) -> Ident {
        Ident(name.into())
    }

    /// The bare name, for comparing and for labels; never for SQL.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name in double quotes, for SQL that is sent to a server.
    pub fn sql(&self) -> String {
        let mut quoted = String::with_capacity(self.0.len() + 2);
        quoted.push('"');
        // A NUL cannot be part of a name on any server, and would end the statement's text on the wire.
        for c in self.0.chars().filter(|c| *c != '\0') {
            if c == '"' {
                quoted.push('"');
            }
            quoted.push(c);
        }
        quoted.push('"');
        quoted
    }

    /// The name with this behind it, shortened before it to what PostgreSQL keeps (as `makeObjectName` does).
    #[must_use]
    pub fn with_suffix(&self, suffix: &str) -> Ident {
        let bytes_max = NAME_BYTES_MAX.saturating_sub(suffix.len());
        let kept = self.0.char_indices().take_while(|(at, c)| at + c.len_utf8() <= bytes_max).map(|(_, c)| c);
        Ident(kept.chain(suffix.chars()).collect::<String>().into())
    }

    /// Whether `quote_ident` would quote this word because it is a keyword: then without quotes it may mean something else
    /// than a name.
    pub fn is_keyword(word: &str) -> bool {
        KEYWORDS.contains(&format!(" {word} "))
    }

    fn needs_quotes(&self) -> bool {
        let mut bytes = self.0.bytes();
        let first = bytes.next().is_some_and(|b| b.is_ascii_lowercase() || b == b'_');
        let rest = bytes.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
        !first || !rest || Ident::is_keyword(&self.0)
    }
}

impl fmt::Display for Ident {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.needs_quotes() { f.write_str(&shown_identifier(&self.0)) } else { f.write_str(&self.0) }
    }
}

impl fmt::Debug for Ident {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Ident {
    type Err = IdentError;

    /// Parses one name in SQL identifier syntax: `messages`, `"Mixed Case"`.
    fn from_str(text: &str) -> Result<Ident, IdentError> {
        match parse_parts(text)?.as_slice() {
            [name] => Ok(name.clone()),
            _ => Err(IdentError::Syntax(shortened(text))),
        }
    }
}

/// The name of a table, type or other object with its schema.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct QualifiedName {
    /// The schema.
    pub schema: Ident,
    /// The name within the schema.
    pub name: Ident,
}

impl QualifiedName {
    /// A name in a schema, both exact.
    pub fn new(schema: impl Into<Box<str>>, name: impl Into<Box<str>>) -> QualifiedName {
        QualifiedName { schema: Ident::new(schema), name: Ident::new(name) }
    }

    /// `"schema"."name"`, for SQL that is sent to a server.
    pub fn sql(&self) -> String {
        format!("{}.{}", self.schema.sql(), self.name.sql())
    }

    /// `schema.name` without any quotes, for metric labels and keys; with them where it would not be seen as it is, or could be
    /// another table's. No two tables have the same: with quotes it holds a `"`, without them none and one dot.
    pub fn unquoted(&self) -> String {
        let is_plain = |name: &Ident| name.as_str().chars().all(|c| is_printable(c) && c != '.' && c != '"');
        match is_plain(&self.schema) && is_plain(&self.name) {
            true => format!("{}.{}", self.schema.as_str(), self.name.as_str()),
            false => self.to_string(),
        }
    }
}

impl fmt::Display for QualifiedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.schema, self.name)
    }
}

impl fmt::Debug for QualifiedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for QualifiedName {
    type Err = IdentError;

    /// Parses `schema.table` or `table` (then in `public`) in SQL identifier syntax.
    fn from_str(text: &str) -> Result<QualifiedName, IdentError> {
        match parse_parts(text)?.as_slice() {
            [name] => Ok(QualifiedName { schema: Ident::new("public"), name: name.clone() }),
            [schema, name] => Ok(QualifiedName { schema: schema.clone(), name: name.clone() }),
            _ => Err(IdentError::TooManyParts(shortened(text))),
        }
    }
}

/// The names in a list with commas, which do not count within double quotes.
pub fn split_names(list: &str) -> impl Iterator<Item = &str> {
    let mut in_quotes = false;
    let is_comma = move |c: char| {
        in_quotes ^= c == '"';
        c == ',' && !in_quotes
    };
    list.split(is_comma)
}

/// A text as an SQL string literal, safe whatever `standard_conforming_strings` says.
pub fn quote_literal(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    if text.contains('\\') {
        quoted.push_str(" E");
    }
    quoted.push('\'');
    for c in text.chars().filter(|c| *c != '\0') {
        if c == '\'' || c == '\\' {
            quoted.push(c);
        }
        quoted.push(c);
    }
    quoted.push('\'');
    quoted
}

/// Splits `a."b.c".d` into its names, folding unquoted letters as PostgreSQL does (ASCII only).
fn parse_parts(text: &str) -> Result<Vec<Ident>, IdentError> {
    let syntax = || IdentError::Syntax(shortened(text));
    let mut parts = Vec::new();
    let mut rest = text.trim();
    loop {
        let name;
        let unicode = rest.strip_prefix("U&\"").or_else(|| rest.strip_prefix("u&\""));
        if let Some(quoted) = unicode.or_else(|| rest.strip_prefix('"')) {
            let mut unescaped = String::new();
            let mut chars = quoted.char_indices().peekable();
            let end = loop {
                match chars.next() {
                    Some((_, '"')) if chars.next_if(|(_, c)| *c == '"').is_some() => unescaped.push('"'),
                    Some((at, '"')) => break at + 1,
                    Some((_, '\0')) | None => return Err(syntax()),
                    Some((_, c)) => unescaped.push(c),
                }
            };
            name = if unicode.is_some() { without_escapes(&unescaped).ok_or_else(syntax)? } else { unescaped };
            rest = quoted.get(end..).unwrap_or_default();
        } else {
            let end = rest.find('.').unwrap_or(rest.len());
            let (bare, after) = rest.split_at(end);
            let start = |c: char| c.is_alphabetic() || c == '_';
            let inside = |c: char| c.is_alphanumeric() || c == '_' || c == '$';
            if bare.contains('*') {
                return Err(IdentError::Pattern(shortened(text)));
            }
            if !bare.is_empty() && (!bare.starts_with(start) || !bare.chars().all(inside)) {
                return Err(syntax());
            }
            name = bare.to_ascii_lowercase();
            rest = after;
        }
        if name.is_empty() {
            return Err(IdentError::Empty);
        }
        if name.len() > NAME_BYTES_MAX {
            return Err(IdentError::TooLong(shortened(&name)));
        }
        parts.push(Ident::new(name));
        if rest.is_empty() {
            return Ok(parts);
        }
        rest = rest.strip_prefix('.').ok_or_else(syntax)?;
    }
}

/// What stands between the quotes of `U&"…"`: `\000a` and `\+00000a` are characters by their code, `\\` is a backslash.
fn without_escapes(text: &str) -> Option<String> {
    let mut name = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, escape)) = rest.split_once('\\') {
        name.push_str(before);
        if let Some(after) = escape.strip_prefix('\\') {
            name.push('\\');
            rest = after;
            continue;
        }
        let (digits, length) = escape.strip_prefix('+').map_or((escape, 4), |digits| (digits, 6));
        let code = digits.get(..length).filter(|code| code.bytes().all(|b| b.is_ascii_hexdigit()))?;
        name.push(u32::from_str_radix(code, 16).ok().and_then(char::from_u32).filter(|c| *c != '\0')?);
        rest = digits.get(length..)?;
    }
    name.push_str(rest);
    Some(name)
}

fn shortened(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<String, IdentError> {
        text.parse::<QualifiedName>().map(|name| name.unquoted())
    }

    #[test]
    fn names_follow_sql_identifier_syntax() {
        for (text, expected) in [
            ("messages", "public.messages"),
            ("Forum.Messages", "forum.messages"),
            ("public.\"Mixed Case\"", "public.Mixed Case"),
            ("\"a.b\".\"c\"\"d\"", "\"a.b\".\"c\"\"d\""),
            (" straße ", "public.straße"),
            ("_x$1", "public._x$1"),
        ] {
            assert_eq!(parsed(text).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn malformed_names_are_refused_with_their_reason() {
        assert_eq!(parsed(""), Err(IdentError::Empty));
        assert_eq!(parsed("a."), Err(IdentError::Empty));
        assert_eq!(parsed("\"\""), Err(IdentError::Empty));
        assert!(matches!(parsed("a b"), Err(IdentError::Syntax(_))));
        assert!(matches!(parsed("1a"), Err(IdentError::Syntax(_))));
        assert!(matches!(parsed("\"open"), Err(IdentError::Syntax(_))));
        assert!(matches!(parsed("\"a\"b"), Err(IdentError::Syntax(_))));
        assert!(matches!(parsed("a.b.c"), Err(IdentError::TooManyParts(_))));
        assert!(matches!(parsed("public.*"), Err(IdentError::Pattern(_))));
        assert!(matches!(parsed("a.\"b\".c*"), Err(IdentError::Pattern(_))));
        assert!(matches!(parsed("\"a*\"*"), Err(IdentError::Syntax(_))));
        assert!(matches!(parsed(&"a".repeat(64)), Err(IdentError::TooLong(_))));
        assert!(parsed(&"a".repeat(63)).is_ok());
    }

    #[test]
    fn display_quotes_as_quote_ident_and_sql_always() {
        for (name, shown) in [
            ("messages", "messages"),
            ("select", "\"select\""),
            ("a$", "\"a$\""),
            ("Mixed", "\"Mixed\""),
            ("x\"y", "\"x\"\"y\""),
            ("1a", "\"1a\""),
            ("position", "\"position\""),
            ("", "\"\""),
        ] {
            assert_eq!(Ident::new(name).to_string(), shown);
        }
        assert_eq!(Ident::new("messages").sql(), "\"messages\"");
    }

    #[test]
    fn a_hostile_name_stays_a_name() {
        let name = Ident::new("x\"; DROP TABLE y; --");
        assert_eq!(name.sql(), "\"x\"\"; DROP TABLE y; --\"");
        assert_eq!(name.sql().parse::<Ident>(), Ok(name));
    }

    #[test]
    fn every_name_is_shown_printably_and_read_back_as_itself() {
        let hostile =
            ["x\ny", "\u{1b}[31m", "\u{202e}\u{2028}", "a\\b\n", "\"\u{200b}\"", "\u{e0041}", "U&\"x\"", "a,b"];
        let every_char = ('\u{1}'..=char::MAX).map(|c| format!("a{c}"));
        for name in hostile.into_iter().map(str::to_owned).chain(every_char) {
            let ident = Ident::new(name.as_str());
            let shown = ident.to_string();
            assert!(shown.chars().all(is_printable), "{name:?}: {shown:?}");
            assert_eq!(shown.parse::<Ident>().as_ref(), Ok(&ident), "{shown}");
        }
        assert_eq!(Ident::new("x\ny\\").to_string(), "U&\"x\\000ay\\\\\"");
        for malformed in ["U&\"\\00\"", "U&\"\\d800\"", "U&\"\\0000\"", "U&\"\\+00000\"", "U&\"\\é000\"", "U&x"] {
            assert!(matches!(malformed.parse::<Ident>(), Err(IdentError::Syntax(_))), "{malformed}");
        }
        assert_eq!(QualifiedName::new("a", "b\r").unquoted(), "a.U&\"b\\000d\"");
    }

    proptest::proptest! {
        #[test]
        fn two_tables_never_share_a_label(
            names in proptest::collection::vec(r#"[ab."U&\\0\n\u{202e}' ]{1,4}"#, 4),
        ) {
            let [a, b] = [(&names[0], &names[1]), (&names[2], &names[3])]
                .map(|(schema, name)| QualifiedName::new(schema.as_str(), name.as_str()));
            proptest::prop_assert_eq!(a == b, a.unquoted() == b.unquoted());
            // The same characters, parted at every place.
            let joined = format!("{}.{}", names[0], names[1]);
            let labels: Vec<String> = joined
                .match_indices('.')
                .filter(|(at, _)| *at > 0 && at + 1 < joined.len())
                .map(|(at, _)| QualifiedName::new(&joined[..at], &joined[at + 1..]).unquoted())
                .collect();
            let distinct: std::collections::BTreeSet<&String> = labels.iter().collect();
            proptest::prop_assert_eq!(distinct.len(), labels.len(), "{:?}", labels);
        }
    }

    #[test]
    fn a_label_that_could_be_another_tables_is_quoted() {
        for (schema, name, label) in [
            ("a.b", "c", "\"a.b\".c"),
            ("a", "b.c", "a.\"b.c\""),
            ("a", "U&\"b\\000d\"", "a.\"U&\"\"b\\000d\"\"\""),
            ("public", "Mixed Case", "public.Mixed Case"),
            ("public", "it's-1", "public.it's-1"),
        ] {
            assert_eq!(QualifiedName::new(schema, name).unquoted(), label);
        }
    }

    #[test]
    fn a_list_of_names_is_split_at_commas_outside_of_quotes() {
        let names: Vec<&str> = split_names("a,public.\"b,c\"\",d\",U&\"e,\\000a\"").collect();
        assert_eq!(names, ["a", "public.\"b,c\"\",d\"", "U&\"e,\\000a\""]);
    }

    #[test]
    fn literals_survive_quotes_and_backslashes() {
        assert_eq!(quote_literal("it's"), "'it''s'");
        assert_eq!(quote_literal("a\\'b"), " E'a\\\\''b'");
    }
}

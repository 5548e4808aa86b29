//! Which of the source's expressions may be run at the destination.
//!
//! Checks, partial indexes, generated columns and defaults come as SQL text from the source's catalog, and a hostile
//! source may put anything there. So an expression is taken over only when it is made of nothing but columns,
//! literals, operators, type casts and functions of pg_catalog of which the destination has immutable variants and no
//! volatile one (a default may also use the clock and random UUIDs). Everything else is left out and reported, never
//! run.
//!
//! Asked by `destination::schema`, which runs what is accepted with an empty search_path: an unqualified operator or
//! function is then pg_catalog's.

use std::collections::BTreeSet;

/// Functions that a default may use although they are not immutable: the clock, and values drawn at random.
const DEFAULT_FUNCTIONS: &[&str] = &[
    "now",
    "clock_timestamp",
    "statement_timestamp",
    "transaction_timestamp",
    "timeofday",
    "gen_random_uuid",
    "uuidv4",
    "uuidv7",
];

/// Words that are followed by a parenthesis without being functions of the catalog.
const SYNTAX: &[&str] = &[
    "and",
    "or",
    "not",
    "in",
    "any",
    "all",
    "some",
    "array",
    "row",
    "coalesce",
    "nullif",
    "greatest",
    "least",
    "case",
    "when",
    "then",
    "else",
    "is",
    "distinct",
    "from",
    "between",
    "like",
    "ilike",
    "similar",
    "to",
    "escape",
    "cast",
    "extract",
    "substring",
    "overlay",
    "position",
    "trim",
    "normalize",
    "numeric",
    "decimal",
    "varying",
    "character",
    "char",
    "varchar",
    "bit",
    "timestamp",
    "time",
    "interval",
    "bpchar",
    "collate",
];

/// Words that no accepted expression contains.
const REFUSED: &[&str] = &[
    "select",
    "with",
    "values",
    "table",
    "insert",
    "update",
    "delete",
    "merge",
    "copy",
    "do",
    "execute",
    "operator",
    "exists",
    "current_user",
    "session_user",
    "user",
    "current_role",
    "current_catalog",
    "current_schema",
    "system_user",
    "over",
];

/// Words that read the clock.
const CLOCK: &[&str] = &["current_timestamp", "current_date", "current_time", "localtime", "localtimestamp"];

/// What an expression is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A check, a predicate, an index or a generated column: nothing but immutable functions.
    Immutable,
    /// A default: the clock and random UUIDs too.
    Default,
}

/// Decides on expressions for one destination.
#[derive(Clone, Debug, Default)]
pub struct Expressions {
    immutable: BTreeSet<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    Quoted(String),
    Open,
    Close,
    Dot,
    Other,
}

impl Expressions {
    /// `immutable`: names of pg_catalog's functions that have immutable variants, and no volatile one, at the
    /// destination.
    pub fn new(immutable: impl IntoIterator<Item = String>) -> Expressions {
        Expressions { immutable: immutable.into_iter().collect() }
    }

    /// Whether an expression may be run.
    pub fn accepts(&self, expression: &str, purpose: Purpose) -> bool {
        let Some(tokens) = tokens(expression) else { return false };
        let mut depth = 0_usize;
        for (at, token) in tokens.iter().enumerate() {
            let before = at.checked_sub(1).and_then(|at| tokens.get(at));
            let after = tokens.get(at + 1);
            match token {
                Token::Open => depth += 1,
                Token::Close => match depth.checked_sub(1) {
                    Some(less) => depth = less,
                    None => return false,
                },
                Token::Word(word) if before != Some(&Token::Dot) => {
                    if REFUSED.contains(&word.as_str())
                        || (purpose == Purpose::Immutable && CLOCK.contains(&word.as_str()))
                    {
                        return false;
                    }
                    if after == Some(&Token::Open) && !self.callable(word, purpose) && !SYNTAX.contains(&word.as_str())
                    {
                        return false;
                    }
                }
                // Behind a dot: a function only of pg_catalog; a column or a type is no matter.
                Token::Word(name) | Token::Quoted(name) if after == Some(&Token::Open) => {
                    let schema = at.checked_sub(2).and_then(|at| tokens.get(at));
                    let of_catalog = before == Some(&Token::Dot)
                        && matches!(schema, Some(Token::Word(schema) | Token::Quoted(schema)) if schema == "pg_catalog");
                    let unqualified = before != Some(&Token::Dot);
                    if !(of_catalog || unqualified) || !self.callable(name, purpose) {
                        return false;
                    }
                }
                Token::Word(_) | Token::Quoted(_) | Token::Dot | Token::Other => {}
            }
        }
        depth == 0 && !tokens.is_empty()
    }

    fn callable(&self, function: &str, purpose: Purpose) -> bool {
        self.immutable.contains(function) || (purpose == Purpose::Default && DEFAULT_FUNCTIONS.contains(&function))
    }
}

/// Splits an expression into tokens; `None` for anything that has no place in one.
fn tokens(expression: &str) -> Option<Vec<Token>> {
    let mut tokens = Vec::new();
    let mut chars = expression.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            c if c.is_whitespace() => {}
            '\'' => skip_literal(&mut chars, false)?,
            'E' | 'e' if chars.next_if_eq(&'\'').is_some() => skip_literal(&mut chars, true)?,
            // B'…' and X'…' are bit strings.
            'B' | 'b' | 'X' | 'x' if chars.next_if_eq(&'\'').is_some() => skip_literal(&mut chars, false)?,
            '"' => {
                let mut name = String::new();
                loop {
                    match chars.next()? {
                        '"' if chars.next_if_eq(&'"').is_some() => name.push('"'),
                        '"' => break,
                        c => name.push(c),
                    }
                }
                tokens.push(Token::Quoted(name));
                continue;
            }
            c if c.is_alphabetic() || c == '_' => {
                let mut word = c.to_lowercase().to_string();
                while let Some(c) = chars.next_if(|c| c.is_alphanumeric() || *c == '_') {
                    word.extend(c.to_lowercase());
                }
                // U&'…' and the like: a word that runs into a quote.
                let unicode = word == "u" && chars.peek() == Some(&'&');
                if unicode || chars.peek() == Some(&'\'') || chars.peek() == Some(&'$') {
                    return None;
                }
                tokens.push(Token::Word(word));
                continue;
            }
            c if c.is_ascii_digit() => while chars.next_if(|c| c.is_ascii_alphanumeric() || *c == '.').is_some() {},
            '(' => {
                tokens.push(Token::Open);
                continue;
            }
            ')' => {
                tokens.push(Token::Close);
                continue;
            }
            '.' => {
                tokens.push(Token::Dot);
                continue;
            }
            '-' if chars.peek() == Some(&'-') => return None,
            '/' if chars.peek() == Some(&'*') => return None,
            '+' | '-' | '*' | '/' | '<' | '>' | '=' | '~' | '!' | '@' | '#' | '%' | '^' | '&' | '|' | '?' | '['
            | ']' | ',' | ':' => {}
            // ; $ \ ` { } and whatever else.
            _ => return None,
        }
        if !c.is_whitespace() {
            tokens.push(Token::Other);
        }
    }
    Some(tokens)
}

fn skip_literal(chars: &mut std::iter::Peekable<std::str::Chars<'_>>, escapes: bool) -> Option<()> {
    loop {
        match chars.next()? {
            '\\' if escapes => {
                chars.next()?;
            }
            // What a backslash means here depends on standard_conforming_strings, so it is not taken over.
            '\\' => return None,
            '\'' if chars.next_if_eq(&'\'').is_some() => {}
            '\'' => return Some(()),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expressions() -> Expressions {
        Expressions::new(["lower", "length", "btrim", "int4", "date_part"].map(str::to_owned))
    }

    #[test]
    fn ordinary_expressions_are_taken_over() {
        for expression in [
            "(length((name)::text) > 1)",
            "((price >= (0)::numeric) AND (price < 1e6))",
            "((state)::text = ANY ((ARRAY['open'::character varying, 'closed'::character varying(20)])::text[]))",
            "lower(body)",
            "pg_catalog.lower(\"Mixed Case\")",
            "'it''s'::text",
            "E'a\\'b'::text",
            "(deleted_at IS NULL)",
            "CASE WHEN (a > 1) THEN 'x'::text ELSE (b || 'y'::text) END",
            "EXTRACT(year FROM created)",
            "COALESCE(a, 0)",
            "'active'::public.mood",
            "B'101'::\"bit\"",
            "'{}'::jsonb",
            "(VALUE <> 'b'::mood)",
        ] {
            assert!(expressions().accepts(expression, Purpose::Immutable), "{expression}");
        }
    }

    #[test]
    fn a_default_may_use_the_clock_and_a_check_may_not() {
        for expression in ["now()", "CURRENT_TIMESTAMP", "gen_random_uuid()", "(now() + '01:00:00'::interval)"] {
            assert!(expressions().accepts(expression, Purpose::Default), "{expression}");
            assert!(!expressions().accepts(expression, Purpose::Immutable), "{expression}");
        }
    }

    #[test]
    fn anything_that_could_do_more_is_left_out() {
        for expression in [
            "",
            "true); DROP TABLE x; --",
            "evil()",
            "public.lower(x)",
            "\"public\".\"lower\"(x)",
            "\"evil\"(x)",
            "pg_catalog.pg_read_file('x')",
            "(SELECT 1)",
            "a OPERATOR(public.=) b",
            "lower(x) /* comment */",
            "lower(x) -- comment",
            "$$x$$",
            "$a$x$a$",
            "'open",
            "'a\\'",
            "(a",
            "a)",
            "U&'x'",
            "current_user = 'x'",
            "EXISTS (a)",
            "nextval('s'::regclass)",
            "a ; b",
        ] {
            assert!(!expressions().accepts(expression, Purpose::Immutable), "{expression}");
            assert!(!expressions().accepts(expression, Purpose::Default), "{expression}");
        }
    }
}

//! SQL that is shown to be pasted: it says what it says to a server, and every character of it is seen.
//!
//! In comes SQL that headwater or a server's catalog made (identifiers in double quotes, literals in single quotes, as `E'…'`
//! or between dollar quotes), out goes SQL of the same meaning in which quoted text with characters that are not printable is
//! written as `U&"\000a"` or `E'\u000a'`. The lines between dollar quotes, a function's body, stay lines. Called where a hint
//! or a list holds a statement; what is sent to a server is never changed. Pure.
//!
//! So a name with a newline cannot begin a line of its own, one with a bidirectional control cannot read as something
//! else, and the pasted statement is the statement that was meant. Both forms need `standard_conforming_strings`, which is on
//! unless somebody has changed it; where it is off, PostgreSQL refuses `U&` and nothing happens.

use std::fmt::Write;

use super::printable::is_printable;

/// A text as an SQL string literal, to be shown.
pub fn shown_literal(text: &str) -> String {
    let mut literal = String::with_capacity(text.len() + 2);
    write_literal(&mut literal, text);
    literal
}

/// A name in double quotes, to be shown.
pub(crate) fn shown_identifier(name: &str) -> String {
    let mut identifier = String::with_capacity(name.len() + 2);
    write_identifier(&mut identifier, name);
    identifier
}

/// Generated SQL, to be shown.
pub fn shown_sql(sql: &str) -> String {
    if sql.chars().all(|c| is_printable(c) || c == '\n') && !has_line_break_in_quotes(sql) {
        return sql.to_owned();
    }
    let mut shown = String::with_capacity(sql.len() + 32);
    for part in parts(sql) {
        match part {
            SqlPart::Bare(text) => shown.push_str(text),
            SqlPart::Quoted(quoted, Content::Lines(_)) if quoted.chars().all(|c| is_printable(c) || c == '\n') => {
                shown.push_str(quoted);
            }
            SqlPart::Quoted(quoted, _) if quoted.chars().all(is_printable) => shown.push_str(quoted),
            SqlPart::Quoted(_, Content::Identifier(name)) => write_identifier(&mut shown, &name),
            SqlPart::Quoted(_, Content::Literal(text)) => write_literal(&mut shown, &text),
            SqlPart::Quoted(_, Content::Lines(text)) => {
                let lines: Vec<&str> = text.split('\n').collect();
                write_literal_lines(&mut shown, &lines);
            }
        }
    }
    shown
}

fn has_line_break_in_quotes(sql: &str) -> bool {
    let has_line_break = |part: SqlPart<'_>| match part {
        SqlPart::Quoted(quoted, Content::Identifier(_) | Content::Literal(_)) => quoted.contains('\n'),
        SqlPart::Bare(_) | SqlPart::Quoted(_, Content::Lines(_)) => false,
    };
    sql.contains('\n') && parts(sql).any(has_line_break)
}

/// A stretch of SQL: the text as it stands, and for quoted text what it stands for.
enum SqlPart<'a> {
    Bare(&'a str),
    Quoted(&'a str, Content),
}

enum Content {
    Identifier(String),
    Literal(String),
    /// What stands between dollar quotes.
    Lines(String),
}

/// Splits SQL into bare and quoted text.
fn parts(sql: &str) -> impl Iterator<Item = SqlPart<'_>> {
    let mut rest = sql;
    std::iter::from_fn(move || {
        let first = rest.chars().next()?;
        let escapes = rest.starts_with("E'");
        if first == '"' || first == '\'' || escapes {
            let (quoted, after) = rest.split_at(quoted_bytes(rest, escapes));
            rest = after;
            return Some(SqlPart::Quoted(quoted, content(quoted)));
        }
        if let Some(quote) = dollar_quote(rest) {
            let inside = rest.get(quote.len()..).unwrap_or_default();
            let (inside, after) = inside.split_once(quote).unwrap_or((inside, ""));
            let (quoted, _) = rest.split_at(rest.len() - after.len());
            rest = after;
            return Some(SqlPart::Quoted(quoted, Content::Lines(inside.to_owned())));
        }
        let is_word = |c: char| c.is_alphanumeric() || c == '_' || c == '$';
        // Not into a word, whose last letter may be an E.
        let end = rest.find(|c| !is_word(c)).filter(|end| *end > 0).unwrap_or_else(|| match is_word(first) {
            true => rest.len(),
            false => first.len_utf8(),
        });
        let (bare, after) = rest.split_at(end);
        rest = after;
        Some(SqlPart::Bare(bare))
    })
}

/// The `$tag$` with which `sql` begins.
fn dollar_quote(sql: &str) -> Option<&str> {
    let (tag, _) = sql.strip_prefix('$')?.split_once('$')?;
    let is_tag = !tag.starts_with(|c: char| c.is_ascii_digit()) && tag.chars().all(|c| c.is_alphanumeric() || c == '_');
    is_tag.then(|| sql.split_at(tag.len() + 2).0)
}

/// How long the quoted text is with which `sql` begins; to its end where the quote is never closed.
fn quoted_bytes(sql: &str, escapes: bool) -> usize {
    let mut chars = sql.char_indices().skip(usize::from(escapes)).peekable();
    let Some((_, quote)) = chars.next() else { return sql.len() };
    while let Some((at, c)) = chars.next() {
        if escapes && c == '\\' {
            chars.next();
        } else if c == quote && chars.next_if(|(_, next)| *next == quote).is_none() {
            return at + c.len_utf8();
        }
    }
    sql.len()
}

/// What quoted text of ours stands for: of escapes, `crate::pg::ident::quote_literal` makes only doubled backslashes.
fn content(quoted: &str) -> Content {
    let inside = |text: &str| text.get(1..text.len().max(2) - 1).unwrap_or_default().to_owned();
    match quoted.strip_prefix('E') {
        Some(escaped) => Content::Literal(inside(escaped).replace("''", "'").replace("\\\\", "\\")),
        None if quoted.starts_with('"') => Content::Identifier(inside(quoted).replace("\"\"", "\"")),
        None => Content::Literal(inside(quoted).replace("''", "'")),
    }
}

fn write_identifier(into: &mut String, name: &str) {
    let is_plain = name.chars().all(is_printable);
    into.push_str(if is_plain { "\"" } else { "U&\"" });
    // A NUL cannot be part of a name on any server.
    for c in name.chars().filter(|c| *c != '\0') {
        match c {
            '"' => into.push_str("\"\""),
            '\\' if !is_plain => into.push_str("\\\\"),
            c if is_printable(c) => into.push(c),
            c if u32::from(c) <= 0xffff => write!(into, "\\{:04x}", u32::from(c)).expect("a String takes everything"),
            c => write!(into, "\\+{:06x}", u32::from(c)).expect("a String takes everything"),
        }
    }
    into.push('"');
}

fn write_literal(into: &mut String, text: &str) {
    write_literal_lines(into, &[text]);
}

/// A literal of these lines, with line breaks between them that are seen as such.
fn write_literal_lines(into: &mut String, lines: &[&str]) {
    let is_plain = lines.iter().all(|line| line.chars().all(|c| is_printable(c) && c != '\\'));
    // Not the end of a word, and not that of another literal.
    if !is_plain && into.ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '\'') {
        into.push(' ');
    }
    into.push_str(if is_plain { "'" } else { "E'" });
    for (at, line) in lines.iter().enumerate() {
        if at > 0 {
            into.push('\n');
        }
        for c in line.chars().filter(|c| *c != '\0') {
            match c {
                '\'' => into.push_str("''"),
                '\\' => into.push_str("\\\\"),
                c if is_printable(c) => into.push(c),
                c if u32::from(c) <= 0xffff => {
                    write!(into, "\\u{:04x}", u32::from(c)).expect("a String takes everything");
                }
                c => write!(into, "\\U{:08x}", u32::from(c)).expect("a String takes everything"),
            }
        }
    }
    into.push('\'');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::ident::{Ident, quote_literal};

    #[test]
    fn what_is_printable_is_shown_as_it_is() {
        for sql in [
            "ALTER TABLE \"public\".\"t\" ADD COLUMN \"it's\" text DEFAULT 'a \"quoted\" word'",
            "SELECT E'a\\\\b', 'c''d', \"e\"\"f\"",
            "CREATE TABLE t (\n    id int\n)",
            "GRANT SELECT ON straße TO \"हिन्दी\"",
        ] {
            assert_eq!(shown_sql(sql), sql);
        }
    }

    #[test]
    fn hidden_characters_in_quotes_are_written_out() {
        for (sql, shown) in [
            ("DROP TABLE \"a\n\"; --", "DROP TABLE U&\"a\\000a\"; --"),
            ("SELECT 'it''s\u{202e}\\'", "SELECT E'it''s\\u202e\\\\'"),
            ("SELECT  E'\u{1b}''\\\\'", "SELECT  E'\\u001b''\\\\'"),
            ("\"\u{e0001}\\\"\"\"", "U&\"\\+0e0001\\\\\"\"\""),
            ("VALUE'\r'", "VALUE E'\\u000d'"),
            ("AS $f$a\n\tb''\\$f$, \"\n\"", "AS E'a\n\\u0009b''''\\\\', U&\"\\000a\""),
            ("AS $f$a\n'$$\"$f$; \"\n\"", "AS $f$a\n'$$\"$f$; U&\"\\000a\""),
            ("a$f$\"\n\", $1, $2$, '\t'", "a$f$U&\"\\000a\", $1, $2$, E'\\u0009'"),
        ] {
            assert_eq!(shown_sql(sql), shown);
        }
        assert_eq!(shown_literal("a\nb'"), "E'a\\u000ab'''");
        assert_eq!(shown_literal("plain"), "'plain'");
    }

    #[test]
    fn shown_sql_is_printable_and_holds_the_same_texts() {
        let alphabet =
            ['"', '\'', '\\', 'E', 'U', '&', 'a', ' ', '\n', '\u{1b}', '\u{202e}', '\u{e0001}', ';', '-', '$', 'ä'];
        for seed in 0..20_000 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut text = || (0..rng.usize(1..8)).map(|_| alphabet[rng.usize(..alphabet.len())]).collect::<String>();
            let (name, value, other) = (text(), text(), text());
            let sql =
                format!("X {}={},{}", Ident::new(name.as_str()).sql(), quote_literal(&value), quote_literal(&other));
            let shown = shown_sql(&sql);
            assert!(shown.chars().all(is_printable), "seed {seed}: {shown:?}");
            let read: Vec<String> = parts(&sql)
                .filter_map(|part| match part {
                    SqlPart::Bare(_) => None,
                    SqlPart::Quoted(_, Content::Identifier(text) | Content::Literal(text) | Content::Lines(text)) => {
                        Some(text)
                    }
                })
                .collect();
            assert_eq!(read, [name.as_str(), &value, &other], "seed {seed}: {sql:?}");
            let again = [shown_identifier(&name), shown_literal(&value), shown_literal(&other)];
            assert!(again.iter().all(|text| shown.contains(text.as_str())) || shown == sql, "seed {seed}: {shown}");
        }
    }
}

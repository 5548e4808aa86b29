//! Statements of other sessions without the values in them, as pg_stat_activity shows them.
//!
//! Asked by those that name a session which is in the way: `supervisor` for the log and /status, `commands` for explain.

/// A statement with `?` for each value in it, on one line; comments are left out, since they may hold values too.
///
/// pg_stat_activity cuts long statements, so a string may be open at the end: then the rest is a value.
pub fn without_values(statement: &str) -> String {
    let mut text = String::new();
    let mut rest = statement;
    while let Some(next) = rest.chars().next() {
        // What an E, B, X, U& or N before a quote begins is a string too.
        let in_word = text.chars().next_back().is_some_and(|last| last.is_alphanumeric() || last == '_' || last == '$');
        rest = match next {
            '\'' => {
                let escapes = text.ends_with(['E', 'e']);
                text.push('?');
                after_string(&rest[1..], escapes)
            }
            '"' => {
                let end = rest[1..].find('"').map_or(rest.len(), |end| end + 2);
                text.push_str(&rest[..end]);
                &rest[end..]
            }
            '$' if !in_word && dollar_tag(rest).is_some() => {
                let tag = dollar_tag(rest).unwrap_or_default();
                let body = &rest[tag.len()..];
                text.push('?');
                body.find(tag).map_or("", |end| &body[end + tag.len()..])
            }
            '-' if rest.starts_with("--") => rest.find('\n').map_or("", |end| &rest[end..]),
            '/' if rest.starts_with("/*") => rest.find("*/").map_or("", |end| &rest[end + 2..]),
            digit if digit.is_ascii_digit() && !in_word => {
                text.push('?');
                rest.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '.' || c == '_')
            }
            space if space.is_whitespace() => {
                if !text.ends_with(' ') {
                    text.push(' ');
                }
                &rest[space.len_utf8()..]
            }
            other => {
                text.push(other);
                &rest[other.len_utf8()..]
            }
        };
    }
    text.trim().to_owned()
}

/// What follows a string whose opening quote is behind us.
fn after_string(text: &str, escapes: bool) -> &str {
    let mut characters = text.char_indices().peekable();
    while let Some((index, character)) = characters.next() {
        match character {
            '\\' if escapes => {
                characters.next();
            }
            '\'' if characters.peek().is_some_and(|(_, next)| *next == '\'') => {
                characters.next();
            }
            '\'' => return &text[index + 1..],
            _ => {}
        }
    }
    ""
}

/// `$$` or `$tag$` at the start of `text`.
fn dollar_tag(text: &str) -> Option<&str> {
    let end = text.get(1..)?.find('$')? + 2;
    let tag = text.get(..end)?;
    let name = tag.trim_matches('$');
    let is_name =
        name.chars().all(|c| c.is_alphanumeric() || c == '_') && !name.starts_with(|c: char| c.is_ascii_digit());
    is_name.then_some(tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_value_of_a_statement_is_left() {
        for (statement, shown) in [
            ("UPDATE t SET a = 'it''s', b = 12.5e3 WHERE id=7", "UPDATE t SET a = ?, b = ? WHERE id=?"),
            ("SELECT E'a\\'b' , $$x'y$$, $tag$z$tag$ FROM t1", "SELECT E? , ?, ? FROM t1"),
            ("SELECT \"Col 1\" FROM \"T'x\" WHERE c = $1", "SELECT \"Col 1\" FROM \"T'x\" WHERE c = $1"),
            ("SELECT 1 -- secret\n, 2 /* secret */ FROM x", "SELECT ? , ? FROM x"),
            ("INSERT INTO t VALUES ('cut off in the mid", "INSERT INTO t VALUES (?"),
            ("INSERT INTO t VALUES ($$cut off", "INSERT INTO t VALUES (?"),
            ("LOCK  TABLE\n\tmessages", "LOCK TABLE messages"),
            ("SELECT 'ü', ü2 FROM é", "SELECT ?, ü2 FROM é"),
            ("SELECT '", "SELECT ?"),
            ("", ""),
        ] {
            assert_eq!(without_values(statement), shown);
        }
    }
}

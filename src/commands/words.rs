//! Numbers as people read them: durations, sizes, counts; and statements without the values in them.
//!
//! Used by what `status` and `explain` print. Pure, and alike to the status page's own.

/// `0 s`, `12 ms`, `3.2 s`, `75 s`, `3 min 20 s`, `2 h 05 min`, `3 days`.
pub(super) fn duration(seconds: f64) -> String {
    // A duration is far from the bounds of an integer, and its parts are cut on purpose.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "cut to whole units for people")]
    let whole = |value: f64| value.max(0.0) as u64;
    match seconds {
        s if s < 0.000_5 => "0 s".to_owned(),
        s if s < 1.0 => format!("{:.0} ms", s * 1000.0),
        s if s < 10.0 => format!("{s:.1} s"),
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7200.0 => format!("{} min {:02} s", whole(s / 60.0), whole(s % 60.0)),
        s if s < 172_800.0 => format!("{} h {:02} min", whole(s / 3600.0), whole(s % 3600.0 / 60.0)),
        s => format!("{} days", whole(s / 86_400.0)),
    }
}

/// `0 B`, `4.6 kB`, `136 MB`.
pub(super) fn size(bytes: u64) -> String {
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64;
    let mut unit = "B";
    for larger in ["kB", "MB", "GB", "TB", "PB"] {
        if value < 999.5 {
            break;
        }
        value /= 1000.0;
        unit = larger;
    }
    match value {
        v if v >= 100.0 => format!("{v:.0} {unit}"),
        v if v >= 10.0 => format!("{v:.1} {unit}"),
        v => format!("{v:.2} {unit}"),
    }
}

/// `55,001`
pub(super) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `55,001 rows`, `1 row`
pub(super) fn counts(number: u64, thing: &str) -> String {
    format!("{} {thing}{}", count(number), if number == 1 { "" } else { "s" })
}

/// A statement with `?` for each value in it, on one line; comments are left out, since they may hold values too.
///
/// pg_stat_activity cuts long statements, so a string may be open at the end: then the rest is a value.
pub(super) fn without_values(statement: &str) -> String {
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
    while let Some((place, character)) = characters.next() {
        match character {
            '\\' if escapes => {
                characters.next();
            }
            '\'' if characters.peek().is_some_and(|(_, next)| *next == '\'') => {
                characters.next();
            }
            '\'' => return &text[place + 1..],
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
    fn numbers_are_as_people_read_them() {
        for (seconds, text) in [
            (0.0, "0 s"),
            (0.012, "12 ms"),
            (3.21, "3.2 s"),
            (75.4, "75 s"),
            (200.0, "3 min 20 s"),
            (7500.0, "2 h 05 min"),
            (260_000.0, "3 days"),
        ] {
            assert_eq!(duration(seconds), text);
        }
        for (bytes, text) in
            [(0, "0 B"), (999, "999 B"), (4630, "4.63 kB"), (136_000_000, "136 MB"), (u64::MAX, "18447 PB")]
        {
            assert_eq!(size(bytes), text);
        }
        for (number, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (55_001, "55,001"), (1_234_567, "1,234,567")] {
            assert_eq!(count(number), text);
        }
    }

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

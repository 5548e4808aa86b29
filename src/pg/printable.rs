//! Text of others as text that may be shown: the one place that decides which characters a person gets to see.
//!
//! In comes text that a server, a configuration or a command line made up; out goes the same text with everything escaped
//! that would not be seen as itself. Called wherever text goes out: by `Display` of names and errors, by
//! [`crate::pg::report::ErrorReport`], by the log and by what is served and printed. Pure.
//!
//! Escaped are control characters (C0, DEL, C1: they steer terminals and begin lines), format characters (bidirectional
//! controls, zero-width characters: they make text read as something else), separators other than the space, and
//! characters without a glyph of their own. Everything else, combining marks of any script among it, stays.
//!
//! Invariant: what [`printable`] returns holds no character for which [`is_printable`] is false, and is returned
//! unchanged by a second call. SQL is not escaped in this way, because that would change what it says: see
//! [`crate::pg::ident::Ident`] and [`crate::pg::shown_sql::shown_literal`].

use std::borrow::Cow;
use std::fmt::Write;

/// Whether a character is seen as itself: it has a glyph or is a space.
pub fn is_printable(c: char) -> bool {
    if c.is_ascii() {
        return !c.is_ascii_control();
    }
    // Marks and letters that Unicode calls default-ignorable, and a blank pattern: nothing is seen of them.
    let is_invisible = matches!(c,
        '\u{34f}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{180b}'..='\u{180f}' | '\u{2800}' | '\u{3164}'
        | '\u{fe00}'..='\u{fe0f}' | '\u{ffa0}' | '\u{e0000}'..='\u{e0fff}');
    // The standard library knows the general categories: Cc, Cf, Cn, Co, Zl, Zp and Zs are escaped. Behind another
    // character combining marks are not, which a name needs in many scripts.
    let mut bytes = [b'a', 0, 0, 0, 0];
    let (_, rest) = bytes.split_at_mut(1);
    let length = 1 + c.encode_utf8(rest).len();
    let behind_another = str::from_utf8(&bytes[..length]).expect("two characters");
    !is_invisible && behind_another.escape_debug().count() == 2
}

/// The text on one line, with what is not printable escaped as in `\n` and `\u{202e}`.
pub fn printable(text: &str) -> Cow<'_, str> {
    escaped(text, |_| false)
}

/// The same for a text of several lines, which stay lines.
pub fn printable_lines(text: &str) -> Cow<'_, str> {
    escaped(text, |c| c == '\n')
}

fn escaped(text: &str, is_kept: impl Fn(char) -> bool) -> Cow<'_, str> {
    if text.chars().all(|c| is_printable(c) || is_kept(c)) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_printable(c) || is_kept(c) {
            shown.push(c);
        } else {
            shown.extend(c.escape_default());
        }
    }
    Cow::Owned(shown)
}

/// JSON as JSON that means the same and is printable.
pub fn printable_json(json: &str) -> Cow<'_, str> {
    let is_kept = |c: char| is_printable(c) || c == '\n';
    if json.chars().all(is_kept) {
        return Cow::Borrowed(json);
    }
    let mut shown = String::with_capacity(json.len() + 16);
    for c in json.chars() {
        if is_kept(c) {
            shown.push(c);
            continue;
        }
        // Outside of strings JSON has only printable characters, so this stands in one.
        for unit in c.encode_utf16(&mut [0; 2]) {
            write!(shown, "\\u{unit:04x}").expect("a String takes everything");
        }
    }
    Cow::Owned(shown)
}

/// A text as one word of a POSIX shell's command line, for commands in hints.
pub fn shell_word(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-./:=@%+,".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        return text.to_owned();
    }
    if text.chars().all(is_printable) {
        return format!("'{}'", text.replace('\'', r"'\''"));
    }
    // Bytes in octal: POSIX knows them in $'…', as bash, zsh and ksh do.
    let mut word = "$'".to_owned();
    for c in text.chars() {
        match c {
            '\'' | '\\' => word.extend(['\\', c]),
            c if is_printable(c) => word.push(c),
            c => {
                for byte in c.encode_utf8(&mut [0; 4]).bytes() {
                    write!(word, "\\{byte:03o}").expect("a String takes everything");
                }
            }
        }
    }
    word.push('\'');
    word
}

/// A text as a basic string of TOML.
pub fn toml_string(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if is_printable(c) => quoted.push(c),
            c if u32::from(c) <= 0xffff => {
                write!(quoted, "\\u{:04X}", u32::from(c)).expect("a String takes everything");
            }
            c => write!(quoted, "\\U{:08X}", u32::from(c)).expect("a String takes everything"),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn every_char() -> impl Iterator<Item = char> {
        '\0'..=char::MAX
    }

    #[test]
    fn no_character_that_hides_or_steers_is_printable() {
        let ranges: &[(u32, u32)] = &[
            (0x00, 0x1f),
            (0x7f, 0xa0),
            (0xad, 0xad),
            (0x34f, 0x34f),
            (0x61c, 0x61c),
            (0x115f, 0x1160),
            (0x180b, 0x180f),
            (0x2000, 0x200f),
            (0x2028, 0x202f),
            (0x205f, 0x206f),
            (0x2800, 0x2800),
            (0x3000, 0x3000),
            (0x3164, 0x3164),
            (0xe000, 0xf8ff),
            (0xfe00, 0xfe0f),
            (0xfeff, 0xfeff),
            (0xffa0, 0xffa0),
            (0xfff9, 0xfffb),
            (0x1d173, 0x1d17a),
            (0xe0000, 0xe0fff),
            (0xf0000, 0x10ffff),
        ];
        for (first, last) in ranges {
            for c in (*first..=*last).filter_map(char::from_u32) {
                assert!(!is_printable(c), "{:x}", u32::from(c));
            }
        }
        assert!(every_char().filter(|c| c.is_control()).all(|c| !is_printable(c)));
        assert!(every_char().filter(|c| c.is_whitespace() && *c != ' ').all(|c| !is_printable(c)));
    }

    #[test]
    fn letters_digits_marks_and_symbols_of_any_script_stay() {
        for text in ["straße", "Ελληνικά", "हिन्दी", "العربية", "日本語", "e\u{301}", "\"it's\" \\ €", "🐘"]
        {
            assert!(matches!(printable(text), Cow::Borrowed(_)), "{text}");
        }
        assert!(every_char().filter(|c| c.is_alphanumeric()).filter(|c| !is_printable(*c)).count() <= 5);
    }

    #[test]
    fn what_is_shown_is_printable_for_every_character() {
        // Some at a time, which takes seconds instead of half a minute.
        let every_char: Vec<char> = every_char().collect();
        for some in every_char.chunks(200) {
            let text: String = some.iter().collect();
            let shown = printable(&text);
            assert!(shown.chars().all(is_printable), "{some:?}");
            assert_eq!(printable(&shown), shown, "{some:?}");
            let mut rest = shown.chars();
            assert!(some.iter().filter(|c| is_printable(**c)).all(|c| rest.any(|s| s == *c)), "{some:?}");
            assert!(printable_lines(&text).chars().all(|c| is_printable(c) || c == '\n'), "{some:?}");
            assert!(shell_word(&text).chars().all(is_printable), "{some:?}");
            let toml = toml_string(&text);
            assert!(toml.chars().all(is_printable), "{some:?}");
            let document = format!("text = {toml}");
            let read = toml::de::DeTable::parse(&document).unwrap();
            let value = read.get_ref().get("text").and_then(|value| value.get_ref().as_str());
            assert_eq!(value, Some(text.as_str()), "{some:?}");
            let printed = printable_json(&serde_json::to_string(&text).unwrap()).into_owned();
            assert!(printed.chars().all(is_printable), "{some:?}");
            assert_eq!(serde_json::from_str::<String>(&printed).unwrap(), text);
        }
    }

    #[test]
    fn escapes_are_those_that_programmers_read() {
        assert_eq!(printable("a\nb\u{1b}[31m\u{202e}\u{2028}"), r"a\nb\u{1b}[31m\u{202e}\u{2028}");
        assert_eq!(printable_lines("a\nb\r"), "a\nb\\r");
    }

    #[test]
    fn a_shell_reads_a_word_as_the_text() {
        for text in
            ["", "plain/path", "it's", "a b; rm -rf *", "$(id)`id`", "new\nline", "\u{1b}\u{202e}\\'", "-x", "ä\t"]
        {
            let script = format!("printf %s {}", shell_word(text));
            let output = std::process::Command::new("bash").arg("-c").arg(&script).output().unwrap();
            assert_eq!(String::from_utf8(output.stdout).unwrap(), text, "{script}");
        }
    }
}

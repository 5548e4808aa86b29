//! An expression's text into tokens, exactly as PostgreSQL's own lexer (scan.l) would cut it, or not at all.
//!
//! Comes in from `super::parser` as a server printed it; out go tokens with the places where they stand. Pure.
//!
//! Invariant: a text that is accepted here is cut by PostgreSQL 14 to 18 into the same tokens, whatever its settings. So
//! everything on which versions, settings or encodings disagree is refused: characters outside of ASCII (except in
//! quotes), white space other than the four characters that all versions know, comments, string forms other than '…' and
//! E'…', dollar quotes, parameters, numbers that run into letters, operators that are not known. Unit tests hold it.

use std::ops::Range;

use super::catalog::OPERATORS;

/// Longer texts are refused: far more than a person writes, far less than what would hurt.
const TEXT_BYTES_MAX: usize = 1 << 20;

/// Longest name that PostgreSQL keeps, in bytes (NAMEDATALEN - 1): it would cut a longer one, and mean another.
const NAME_BYTES_MAX: usize = 63;

/// The characters of which operators consist (scan.l, `op_chars`).
const OPERATOR_CHARACTERS: &str = "~!@#^&|`?+-*/%<>=";

/// A token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Token {
    /// A name or keyword without quotes, in lower case.
    Word(String),
    /// A name in double quotes, as it is meant.
    Quoted(String),
    /// A string, as it is meant.
    Text(String),
    /// A bit string: B'101' or X'1F'.
    Bits(String),
    /// A number, as it is written.
    Number(String),
    /// An operator, or `=>`.
    Operator(&'static str),
    /// `::`
    Cast,
    /// `(`
    Open,
    /// `)`
    Close,
    /// `[`
    OpenBracket,
    /// `]`
    CloseBracket,
    /// `,`
    Comma,
    /// `.`
    Dot,
    /// `:`
    Colon,
}

/// A token and where it stands, in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spanned {
    /// The token.
    pub token: Token,
    /// From its first byte to behind its last one.
    pub span: Range<usize>,
}

/// Cuts a text into tokens; `None` where PostgreSQL might cut it in another way, or not as an expression.
pub fn tokens(text: &str) -> Option<Vec<Spanned>> {
    if text.len() > TEXT_BYTES_MAX {
        return None;
    }
    let mut lexer = Lexer { text, at: 0 };
    let mut tokens: Vec<Spanned> = Vec::new();
    while let Some((token, span)) = lexer.next()? {
        // Strings that stand behind each other on two lines are one string, or two, by their forms.
        let follows_literal = tokens.last().is_some_and(|last| matches!(last.token, Token::Text(_) | Token::Bits(_)));
        if follows_literal && matches!(token, Token::Text(_) | Token::Bits(_)) {
            return None;
        }
        tokens.push(Spanned { token, span });
    }
    Some(tokens)
}

struct Lexer<'a> {
    text: &'a str,
    at: usize,
}

impl Lexer<'_> {
    fn rest(&self) -> &str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn take(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += c.len_utf8();
        Some(c)
    }

    /// Takes characters as long as they are wanted.
    fn take_while(&mut self, wanted: impl Fn(char) -> bool) -> &str {
        let start = self.at;
        while self.peek().is_some_and(&wanted) {
            self.take();
        }
        self.text.get(start..self.at).unwrap_or_default()
    }

    /// The next token; the inner `None` is the end, the outer one a refusal.
    #[allow(clippy::type_complexity, reason = "a token or the end, or neither")]
    fn next(&mut self) -> Option<Option<(Token, Range<usize>)>> {
        self.take_while(|c| matches!(c, ' ' | '\t' | '\n' | '\r'));
        let start = self.at;
        let Some(c) = self.peek() else { return Some(None) };
        let token = match c {
            'a'..='z' | 'A'..='Z' | '_' => self.word()?,
            '0'..='9' => self.number()?,
            '\'' => Token::Text(self.string()?),
            '"' => Token::Quoted(self.quoted()?),
            c if OPERATOR_CHARACTERS.contains(c) => self.operator()?,
            _ => self.punctuation()?,
        };
        Some(Some((token, start..self.at)))
    }

    fn punctuation(&mut self) -> Option<Token> {
        let token = match self.take()? {
            '(' => Token::Open,
            ')' => Token::Close,
            '[' => Token::OpenBracket,
            ']' => Token::CloseBracket,
            ',' => Token::Comma,
            '.' => Token::Dot,
            ':' if self.peek() == Some(':') => {
                self.take();
                Token::Cast
            }
            ':' => Token::Colon,
            // A semicolon, $, \, {, }, a control character, anything outside of ASCII.
            _ => return None,
        };
        let next = self.peek();
        // `.5` is a number, `..` a token of its own; so are `:=`, and what `:::` is depends.
        let ambiguous = if token == Token::Dot {
            next.is_some_and(|c| c.is_ascii_digit() || c == '.')
        } else {
            matches!(token, Token::Colon | Token::Cast) && matches!(next, Some(':' | '='))
        };
        if ambiguous { None } else { Some(token) }
    }

    fn word(&mut self) -> Option<Token> {
        let word = self.take_while(|c| c.is_ascii_alphanumeric() || c == '_').to_ascii_lowercase();
        match (word.as_str(), self.peek()) {
            ("e", Some('\'')) => return Some(Token::Text(self.escaped_string()?)),
            ("b", Some('\'')) => return self.bits('b', |c| matches!(c, '0' | '1')),
            ("x", Some('\'')) => return self.bits('x', |c| c.is_ascii_hexdigit()),
            // U&'…', U&"…"
            ("u", Some('&')) => return None,
            // N'…' and words that run into a quote; `$` and letters outside of ASCII belong to a name.
            (_, Some('\'' | '"' | '$')) => return None,
            (_, Some(c)) if !c.is_ascii() => return None,
            _ => {}
        }
        (word.len() <= NAME_BYTES_MAX).then_some(Token::Word(word))
    }

    /// Digits, a fraction, an exponent; nothing that could belong to it may follow (`1a` is one token or two, by version).
    fn number(&mut self) -> Option<Token> {
        let start = self.at;
        self.take_while(|c| c.is_ascii_digit());
        if self.peek() == Some('.') {
            self.take();
            if self.take_while(|c| c.is_ascii_digit()).is_empty() {
                return None;
            }
        }
        if matches!(self.peek(), Some('e' | 'E')) {
            self.take();
            if matches!(self.peek(), Some('+' | '-')) {
                self.take();
            }
            if self.take_while(|c| c.is_ascii_digit()).is_empty() {
                return None;
            }
        }
        let follows = self.peek();
        let runs_on = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '$' | '\'' | '"') || !c.is_ascii();
        if follows.is_some_and(runs_on) {
            return None;
        }
        Some(Token::Number(self.text.get(start..self.at)?.to_owned()))
    }

    /// A string in which a backslash is an ordinary character, as `standard_conforming_strings` = on has it: both ends'
    /// sessions set it, and the text is never sent on as it came.
    fn string(&mut self) -> Option<String> {
        self.take();
        let mut value = String::new();
        loop {
            match self.take()? {
                '\'' if self.peek() == Some('\'') => {
                    self.take();
                    value.push('\'');
                }
                '\'' => return self.ends(value),
                '\0' => return None,
                c => value.push(c),
            }
        }
    }

    /// E'…' with the escapes that stand for one character of ASCII each.
    fn escaped_string(&mut self) -> Option<String> {
        self.take();
        let mut value = String::new();
        loop {
            match self.take()? {
                '\'' if self.peek() == Some('\'') => {
                    self.take();
                    value.push('\'');
                }
                '\'' => return self.ends(value),
                '\\' => value.push(match self.take()? {
                    c @ ('\\' | '\'') => c,
                    'n' => '\n',
                    't' => '\t',
                    'r' => '\r',
                    'b' => '\u{8}',
                    'f' => '\u{c}',
                    // Octal, hexadecimal and Unicode escapes, and letters that mean themselves in some versions.
                    _ => return None,
                }),
                '\0' => return None,
                c => value.push(c),
            }
        }
    }

    fn bits(&mut self, kind: char, digit: impl Fn(char) -> bool) -> Option<Token> {
        let value = self.string()?;
        value.chars().all(digit).then(|| Token::Bits(format!("{kind}'{value}'")))
    }

    fn quoted(&mut self) -> Option<String> {
        self.take();
        let mut name = String::new();
        loop {
            match self.take()? {
                '"' if self.peek() == Some('"') => {
                    self.take();
                    name.push('"');
                }
                '"' => break,
                '\0' => return None,
                c => name.push(c),
            }
        }
        if name.is_empty() || name.len() > NAME_BYTES_MAX {
            return None;
        }
        self.ends(name)
    }

    /// What stands in quotes must not run into a name: `'a'b` is read in one way by some versions and not by others.
    fn ends(&self, value: String) -> Option<String> {
        let runs_on = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '$' | '\'' | '"') || !c.is_ascii();
        if self.peek().is_some_and(runs_on) { None } else { Some(value) }
    }

    /// The longest run of operator characters, when it is an operator that is known: so no comment, and none of which
    /// PostgreSQL would split off a sign.
    fn operator(&mut self) -> Option<Token> {
        let run = self.take_while(|c| OPERATOR_CHARACTERS.contains(c));
        if run == "=>" {
            return Some(Token::Operator("=>"));
        }
        OPERATORS.iter().flat_map(|group| group.names).find(|name| **name == run).map(|name| Token::Operator(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(text: &str) -> Option<Vec<Token>> {
        tokens(text).map(|tokens| tokens.into_iter().map(|spanned| spanned.token).collect())
    }

    #[test]
    fn literals_and_names_are_read_as_they_are_meant() {
        for (text, value) in
            [("'it''s'", "it's"), (r"'\d+'", r"\d+"), (r"E'a\'b\\c\n'", "a'b\\c\n"), ("'\u{a0}ä\n'", "\u{a0}ä\n")]
        {
            assert_eq!(kinds(text), Some(vec![Token::Text(value.to_owned())]), "{text}");
        }
        assert_eq!(kinds("\"a\"\"b\" Abc"), Some(vec![Token::Quoted("a\"b".into()), Token::Word("abc".into())]));
        assert_eq!(kinds("B'101' x'1F'"), None);
        assert_eq!(kinds("b'101'"), Some(vec![Token::Bits("b'101'".into())]));
        assert_eq!(kinds("1.5e+10"), Some(vec![Token::Number("1.5e+10".into())]));
    }

    #[test]
    fn what_versions_or_settings_read_differently_is_refused() {
        for text in [
            "a\u{a0}b",
            "ä",
            "a\u{200b}",
            "a\u{b}b",
            "a\u{c}b",
            "a$1",
            "$1",
            "$$a$$",
            "a--b",
            "a/*b*/c",
            "a;b",
            "a\\b",
            "{}",
            "1a",
            "1.",
            ".5",
            "1..2",
            "0x1F",
            "1_000",
            "a..b",
            "a:=b",
            "a:::b",
            "n'x'",
            "u&'x'",
            "U&\"x\"",
            "'a'\n'b'",
            "'a'b",
            "\"\"",
            "'open",
            "\"open",
            "E'\\x41'",
            "E'\\101'",
            "E'\\u0041'",
            "b'12'",
            "x'g'",
            "a =- b",
            "a <~> b",
            "a ` b",
            "'a\0b'",
            "\0",
        ] {
            assert_eq!(kinds(text), None, "{text:?}");
        }
        assert_eq!(kinds(&"a".repeat(64)), None);
        assert!(kinds(&"a".repeat(63)).is_some());
    }
}

//! Tokens of expressions: what our lexer accepts, PostgreSQL's own lexer cuts at the same places, into the same kinds and values.
//!
//! The lexer that is compared is PostgreSQL 18's (libpg_query). An input is either the text itself, or, so that most inputs are
//! accepted, numbers of pieces of which the text is put together.

#![no_main]

use headwater::schema_change::expression::lexer::{Spanned, Token, tokens};
use libfuzzer_sys::fuzz_target;
use pg_query::protobuf::{KeywordKind, ScanToken, Token as Kind, a_const::Val};
use pg_query::{NodeEnum, ParserOptions};

/// What expressions and attacks on them are made of.
const PIECES: &[&str] = &[
    " ",
    "\t",
    "\n",
    "\r",
    "\u{b}",
    "\u{c}",
    "\u{a0}",
    "\u{2003}",
    "\u{feff}",
    "\0",
    "a",
    "b",
    "e",
    "E",
    "x",
    "X",
    "B",
    "n",
    "N",
    "u",
    "U&",
    "u&",
    "_",
    "$",
    "$$",
    "$a$",
    "$1",
    "0",
    "1",
    "19",
    "0x",
    "0b1",
    "1_0",
    ".",
    "..",
    "e5",
    "e+5",
    "E-",
    "'",
    "''",
    "'a'",
    "e'",
    "E'",
    "b'1'",
    "x'1f'",
    "\\",
    "\\\\",
    "\\'",
    "\\n",
    "\\x41",
    "\\u0041",
    "\\101",
    "\"",
    "\"\"",
    "\"a\"",
    "\"A b\"",
    "(",
    ")",
    "[",
    "]",
    ",",
    ";",
    ":",
    "::",
    ":=",
    "=>",
    "=",
    "<",
    ">",
    "<>",
    "!=",
    "<=",
    ">=",
    "+",
    "-",
    "*",
    "/",
    "%",
    "^",
    "~",
    "!",
    "@",
    "#",
    "&",
    "|",
    "||",
    "`",
    "?",
    "->",
    "->>",
    "--",
    "/*",
    "*/",
    "~~",
    "!~~*",
    "@>",
    "now",
    "CASE",
    "when",
    "END",
    "IS",
    "null",
    "NOT",
    "AND",
    "array",
    "ROW",
    "COLLATE",
    "int4",
    "varchar",
    "interval",
    "nextval",
    "é",
    "ß",
    "\u{200b}",
    "\u{202e}",
    "{",
    "}",
    "''\n''",
    "'a'\n'b'",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
];

fuzz_target!(|data: &[u8]| {
    let Some((form, rest)) = data.split_first() else { return };
    if form % 4 == 0 {
        let Ok(text) = std::str::from_utf8(rest) else { return };
        compare(text);
    } else {
        let piece = |number: &u8| PIECES[usize::from(*number) % PIECES.len()];
        compare(&rest.iter().map(piece).collect::<String>());
    }
});

fn compare(text: &str) {
    // The binding makes a slice of a null pointer where there is no token.
    let Some(ours) = tokens(text).filter(|tokens| !tokens.is_empty()) else { return };
    let theirs = pg_query::scan_tokens(text)
        .unwrap_or_else(|error| panic!("{text:?} is accepted, and PostgreSQL says: {error}"));
    let places: Vec<(usize, usize)> = ours.iter().map(|token| (token.span.start, token.span.end)).collect();
    let at = |place: i32| usize::try_from(place).expect("a place in the text");
    let expected: Vec<(usize, usize)> = theirs.iter().map(|token| (at(token.start), at(token.end))).collect();
    assert_eq!(places, expected, "{text:?} is cut otherwise");
    for (ours, theirs) in ours.iter().zip(&theirs) {
        let sql = &text[ours.span.clone()];
        assert!(same_kind(&ours.token, theirs), "{sql:?} of {text:?}: {:?} and {:?}", ours.token, theirs.token());
        same_value(ours, sql);
    }
}

fn same_kind(ours: &Token, theirs: &ScanToken) -> bool {
    let kind = theirs.token();
    let is_keyword = theirs.keyword_kind() != KeywordKind::NoKeyword;
    match ours {
        Token::Word(_) => kind == Kind::Ident || is_keyword,
        Token::Quoted(_) => kind == Kind::Ident && !is_keyword,
        Token::Text(_) => kind == Kind::Sconst,
        Token::Bits(_) => matches!(kind, Kind::Bconst | Kind::Xconst),
        Token::Number(_) => matches!(kind, Kind::Iconst | Kind::Fconst),
        Token::Operator("=>") => kind == Kind::EqualsGreater,
        Token::Operator("<>" | "!=") => kind == Kind::NotEquals,
        Token::Operator("<=") => kind == Kind::LessEquals,
        Token::Operator(">=") => kind == Kind::GreaterEquals,
        // An operator of one character that the grammar names is a token of its own.
        Token::Operator(name) => kind == Kind::Op || is_character(kind, name),
        Token::Cast => kind == Kind::Typecast,
        Token::Open => is_character(kind, "("),
        Token::Close => is_character(kind, ")"),
        Token::OpenBracket => is_character(kind, "["),
        Token::CloseBracket => is_character(kind, "]"),
        Token::Comma => is_character(kind, ","),
        Token::Dot => is_character(kind, "."),
        Token::Colon => is_character(kind, ":"),
    }
}

/// Tokens of one character are numbered by it.
fn is_character(kind: Kind, text: &str) -> bool {
    text.len() == 1 && text.bytes().all(|byte| kind as i32 == i32::from(byte))
}

/// A string or name means the same, read by PostgreSQL's parser.
fn same_value(ours: &Spanned, sql: &str) {
    let meant = match &ours.token {
        Token::Text(value) | Token::Quoted(value) => value,
        _ => return,
    };
    let parsed = pg_query::parse(&format!("SELECT {sql}"), ParserOptions::default())
        .expect("a literal or a name is a query's target");
    let read = parsed.protobuf.nodes().into_iter().find_map(|(node, ..)| match node.to_enum() {
        NodeEnum::AConst(constant) => match constant.val {
            Some(Val::Sval(text)) => Some(text.sval),
            _ => None,
        },
        NodeEnum::ColumnRef(column) => column.fields.into_iter().find_map(|field| match field.node {
            Some(NodeEnum::String(name)) => Some(name.sval),
            _ => None,
        }),
        _ => None,
    });
    assert_eq!(read.as_ref(), Some(meant), "{sql:?}");
}

//! An expression's text into its tree: what `pg_get_expr` prints for ordinary schemas, and nothing else.
//!
//! Comes in from [`super::Expressions`]; out goes an [`Expression`], or nothing. Pure, and knows no catalog: whether the names
//! may be used is [`super::check`]'s to say.
//!
//! PostgreSQL prints stored expressions with every operator in parentheses of its own (get_rule_expr in ruleutils.c, without
//! "pretty"). The grammar asks for these parentheses, so it has no precedence that could differ from PostgreSQL's:
//!
//! ```text
//! term   = simple [ :: type ] [ IS DOCUMENT ]
//! simple = literal | number | NULL | TRUE | FALSE | column | name ( … ) | CASE … END | ARRAY [ … ] | ROW ( … )
//!        | COALESCE ( … ) and its like | EXTRACT ( … ) and its like | CURRENT_DATE and its like | group    each [ … ] behind it
//! group  = ( term ) | ( term op term ) | ( op term ) | ( term op ANY ( term ) ) | ( term AND term … ) | ( NOT term )
//!        | ( term IS … ) | ( term COLLATE … ) | ( term AT TIME ZONE term ) | ( ( term , term ) OVERLAPS ( term , term ) )
//! ```
//!
//! Bounds: the nesting, so that no text can exhaust the stack here, in the printer or at the server.

use super::lexer::{self, Token};
use super::tree::{
    Argument, Call, Case, Choice, Clock, CollationName, Expression, Field, JsonKind, Junction, NormalForm, Quantifier,
    Special, Subscript, Test, TrimSide,
};
use crate::pg::Ident;

/// How deep expressions may nest: far deeper than what people write, and a quarter of the stack that a thread has (2 MB; a
/// test measures it).
const DEPTH_MAX: usize = 100;

/// Parses a text; `None` where it is not an expression of the grammar.
pub fn parse(text: &str) -> Option<Expression> {
    let tokens = lexer::tokens(text)?.into_iter().map(|spanned| spanned.token).collect();
    let mut parser = Parser { tokens, at: 0, depth: 0 };
    let expression = parser.term()?;
    (parser.at == parser.tokens.len()).then_some(expression)
}

pub(super) struct Parser {
    tokens: Vec<Token>,
    at: usize,
    depth: usize,
}

/// What stands in parentheses.
enum Group {
    One(Expression),
    Two(Expression, Expression),
}

impl Parser {
    pub(super) fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at)
    }

    fn peek_second(&self) -> Option<&Token> {
        self.tokens.get(self.at + 1)
    }

    pub(super) fn next(&mut self) -> Option<Token> {
        let token = self.peek()?.clone();
        self.at += 1;
        Some(token)
    }

    pub(super) fn take(&mut self, token: &Token) -> bool {
        let found = self.peek() == Some(token);
        self.at += usize::from(found);
        found
    }

    pub(super) fn expect(&mut self, token: &Token) -> Option<()> {
        self.take(token).then_some(())
    }

    pub(super) fn peek_word(&self) -> Option<&str> {
        match self.peek() {
            Some(Token::Word(word)) => Some(word),
            _ => None,
        }
    }

    pub(super) fn take_word(&mut self, word: &str) -> bool {
        let found = self.peek_word() == Some(word);
        self.at += usize::from(found);
        found
    }

    fn expect_word(&mut self, word: &str) -> Option<()> {
        self.take_word(word).then_some(())
    }

    /// Takes all of the words, or none.
    pub(super) fn take_words(&mut self, words: &str) -> bool {
        let start = self.at;
        let found = words.split(' ').all(|word| self.take_word(word));
        if !found {
            self.at = start;
        }
        found
    }

    /// A name: quoted, or a word that is no keyword.
    pub(super) fn name(&mut self) -> Option<Ident> {
        let token = self.next()?;
        if let Token::Word(word) = &token
            && Ident::is_keyword(word)
        {
            return None;
        }
        if let Token::Quoted(name) | Token::Word(name) = token { Some(Ident::new(name)) } else { None }
    }

    /// One level deeper.
    fn nested<T>(&mut self, parse: impl FnOnce(&mut Parser) -> Option<T>) -> Option<T> {
        if self.depth == DEPTH_MAX {
            return None;
        }
        self.depth += 1;
        let parsed = parse(self);
        self.depth -= 1;
        parsed
    }

    fn term(&mut self) -> Option<Expression> {
        self.nested(|parser| {
            let grouped = parser.peek() == Some(&Token::Open);
            let simple = parser.simple()?;
            parser.behind(simple, grouped)
        })
    }

    fn boxed(&mut self) -> Option<Box<Expression>> {
        self.term().map(Box::new)
    }

    /// What may stand behind a simple expression; subscripts only behind a column and a group.
    fn behind(&mut self, mut expression: Expression, grouped: bool) -> Option<Expression> {
        let subscripted = grouped || matches!(expression, Expression::Column(_));
        if subscripted && self.peek() == Some(&Token::OpenBracket) {
            expression = Expression::Subscript(Box::new(expression), self.subscripts()?);
        }
        if self.take(&Token::Cast) {
            expression = Expression::Cast(Box::new(expression), self.type_name()?);
        }
        if self.take_words("is document") {
            expression = Expression::Is(Box::new(expression), Test::Document, false);
        }
        Some(expression)
    }

    fn simple(&mut self) -> Option<Expression> {
        if self.peek() == Some(&Token::Open) {
            return if let Group::One(expression) = self.group()? { Some(expression) } else { None };
        }
        if let Some(word) = self.peek_word() {
            let word = word.to_owned();
            return self.word(&word);
        }
        if let Some(Token::Quoted(_)) = self.peek() {
            return self.named();
        }
        let token = self.next()?;
        if let Token::Text(text) = token {
            Some(Expression::Text(text))
        } else if let Token::Number(number) = token {
            Some(Expression::Number(number))
        } else if let Token::Bits(bits) = token {
            Some(Expression::Bits(bits))
        } else {
            None
        }
    }

    /// What begins with a word.
    fn word(&mut self, word: &str) -> Option<Expression> {
        let choice = match word {
            "coalesce" => Some(Choice::Coalesce),
            "greatest" => Some(Choice::Greatest),
            "least" => Some(Choice::Least),
            "nullif" => Some(Choice::NullIf),
            _ => None,
        };
        if let Some(choice) = choice {
            self.next();
            let arguments = self.in_parentheses(Parser::terms)?;
            let fits = choice != Choice::NullIf || arguments.len() == 2;
            return fits.then_some(Expression::Choice(choice, arguments));
        }
        if let Some(clock) = Clock::ALL.into_iter().find(|clock| clock.sql().eq_ignore_ascii_case(word)) {
            self.next();
            return Some(Expression::Clock(clock, self.precision(clock)?));
        }
        if let Some(special) = self.special(word) {
            return special;
        }
        let constant = match word {
            "null" => Expression::Null,
            "true" => Expression::Boolean(true),
            "false" => Expression::Boolean(false),
            "case" => {
                self.next();
                return self.case();
            }
            "array" => {
                self.next();
                self.expect(&Token::OpenBracket)?;
                let elements = if self.peek() == Some(&Token::CloseBracket) { Vec::new() } else { self.terms()? };
                self.expect(&Token::CloseBracket)?;
                return Some(Expression::Array(elements));
            }
            "row" => {
                self.next();
                return Some(Expression::Row(self.in_parentheses(Parser::terms)?));
            }
            _ => return self.named(),
        };
        self.next();
        Some(constant)
    }

    /// A column, or a call of a function.
    fn named(&mut self) -> Option<Expression> {
        let name = self.name()?;
        if name.as_str() == "pg_catalog" && self.take(&Token::Dot) {
            let name = self.name()?;
            return self.call(name);
        }
        if self.peek() == Some(&Token::Open) { self.call(name) } else { Some(Expression::Column(name)) }
    }

    fn call(&mut self, name: Ident) -> Option<Expression> {
        self.expect(&Token::Open)?;
        let mut call = Call { name, arguments: Vec::new(), variadic: false };
        if self.take(&Token::Close) {
            return Some(Expression::Function(call));
        }
        loop {
            // Only the last argument.
            if call.variadic {
                return None;
            }
            call.variadic = self.take_word("variadic");
            let named = !call.variadic && self.peek_second() == Some(&Token::Operator("=>"));
            let name = if named { Some(self.name()?) } else { None };
            if named {
                self.next();
            }
            call.arguments.push(Argument { name, value: self.term()? });
            if !self.take(&Token::Comma) {
                self.expect(&Token::Close)?;
                return Some(Expression::Function(call));
            }
        }
    }

    fn terms(&mut self) -> Option<Vec<Expression>> {
        let mut terms = vec![self.term()?];
        while self.take(&Token::Comma) {
            terms.push(self.term()?);
        }
        Some(terms)
    }

    fn in_parentheses<T>(&mut self, parse: impl FnOnce(&mut Parser) -> Option<T>) -> Option<T> {
        self.expect(&Token::Open)?;
        let parsed = parse(self)?;
        self.expect(&Token::Close)?;
        Some(parsed)
    }

    /// The precision of a word for the clock, if there is one; the outer `None` is a refusal.
    #[allow(clippy::option_option, reason = "none, or none that is understood")]
    fn precision(&mut self, clock: Clock) -> Option<Option<u32>> {
        if self.peek() != Some(&Token::Open) || clock == Clock::CurrentDate {
            return Some(None);
        }
        let Token::Number(digits) = self.in_parentheses(Parser::next)? else { return None };
        digits.parse().ok().filter(|precision| *precision <= 6).map(Some)
    }

    fn case(&mut self) -> Option<Expression> {
        let subject = if self.peek_word() == Some("when") { None } else { Some(self.term()?) };
        let mut branches = Vec::new();
        while self.take_word("when") {
            let condition = self.term()?;
            self.expect_word("then")?;
            branches.push((condition, self.term()?));
        }
        let otherwise = if self.take_word("else") { Some(self.term()?) } else { None };
        self.expect_word("end")?;
        (!branches.is_empty()).then(|| Expression::Case(Box::new(Case { subject, branches, otherwise })))
    }

    fn subscripts(&mut self) -> Option<Vec<Subscript>> {
        let mut subscripts = Vec::new();
        while self.take(&Token::OpenBracket) {
            let first = if self.peek() == Some(&Token::Colon) { None } else { Some(self.term()?) };
            subscripts.push(match (first, self.take(&Token::Colon)) {
                (Some(index), false) => Subscript::Index(index),
                (first, _) => {
                    let open = self.peek() == Some(&Token::CloseBracket);
                    Subscript::Slice(first, if open { None } else { Some(self.term()?) })
                }
            });
            self.expect(&Token::CloseBracket)?;
        }
        Some(subscripts)
    }

    /// What stands in parentheses, with them.
    fn group(&mut self) -> Option<Group> {
        self.nested(|parser| {
            parser.expect(&Token::Open)?;
            let group = parser.inside()?;
            parser.expect(&Token::Close)?;
            Some(group)
        })
    }

    fn inside(&mut self) -> Option<Group> {
        if self.take_word("not") {
            return Some(Group::One(Expression::Not(self.boxed()?)));
        }
        if let Some(operator) = self.operator() {
            return Some(Group::One(Expression::Prefix(operator, self.boxed()?)));
        }
        let first = if self.peek() == Some(&Token::Open) {
            match self.group()? {
                Group::One(expression) => self.behind(expression, true)?,
                Group::Two(start, end) => return self.overlaps(start, end),
            }
        } else {
            self.term()?
        };
        if self.take(&Token::Comma) {
            return Some(Group::Two(first, self.term()?));
        }
        self.behind_first(first).map(Group::One)
    }

    /// An operator: by itself, or as OPERATOR(pg_catalog.=), which is what it means.
    fn operator(&mut self) -> Option<&'static str> {
        let start = self.at;
        let found = if self.take_word("operator") {
            self.in_parentheses(|parser| {
                let schema = parser.name()?;
                parser.expect(&Token::Dot)?;
                parser.bare_operator().filter(|_| schema.as_str() == "pg_catalog")
            })
        } else {
            self.bare_operator()
        };
        if found.is_none() {
            self.at = start;
        }
        found
    }

    fn bare_operator(&mut self) -> Option<&'static str> {
        let Token::Operator(operator) = self.next()? else { return None };
        (operator != "=>").then_some(operator)
    }

    /// The rest of a group whose first term is read.
    fn behind_first(&mut self, first: Expression) -> Option<Expression> {
        if let Some(operator) = self.operator() {
            return self.infix(first, operator);
        }
        let Some(word) = self.peek_word() else { return Some(first) };
        let junction = match word {
            "and" => Junction::And,
            "or" => Junction::Or,
            "is" => {
                self.next();
                return self.is(first);
            }
            "collate" => {
                self.next();
                return Some(Expression::Collate(Box::new(first), self.collation()?));
            }
            "at" => {
                self.next();
                if self.take_word("local") {
                    return Some(Expression::Special(Special::AtLocal, vec![first]));
                }
                let zone = self.take_words("time zone").then(|| self.term())??;
                return Some(Expression::Special(Special::AtTimeZone, vec![first, zone]));
            }
            _ => return None,
        };
        let word = word.to_owned();
        let mut terms = vec![first];
        while self.take_word(&word) {
            terms.push(self.term()?);
        }
        Some(Expression::Junction(junction, terms))
    }

    fn infix(&mut self, first: Expression, operator: &'static str) -> Option<Expression> {
        let quantifier = match self.peek_word() {
            Some("any") => Some(Quantifier::Any),
            Some("all") => Some(Quantifier::All),
            _ => None,
        };
        let Some(quantifier) = quantifier else {
            return Some(Expression::Infix(operator, Box::new((first, self.term()?))));
        };
        self.next();
        let array = self.in_parentheses(Parser::term)?;
        Some(Expression::Elements(operator, quantifier, Box::new((first, array))))
    }

    fn is(&mut self, first: Expression) -> Option<Expression> {
        let negated = self.take_word("not");
        if self.take_words("distinct from") {
            return Some(Expression::Distinct(Box::new((first, self.term()?)), negated));
        }
        if !negated && let Some(form) = self.normalized() {
            return Some(Expression::Special(Special::IsNormalized(form), vec![first]));
        }
        let Token::Word(word) = self.next()? else { return None };
        let test = match word.as_str() {
            "null" => Test::Null,
            "true" => Test::True,
            "false" => Test::False,
            "unknown" => Test::Unknown,
            "document" => Test::Document,
            "json" => self.json(),
            _ => return None,
        };
        Some(Expression::Is(Box::new(first), test, negated))
    }

    fn json(&mut self) -> Test {
        let kinds = [
            ("value", JsonKind::Any),
            ("scalar", JsonKind::Scalar),
            ("array", JsonKind::Array),
            ("object", JsonKind::Object),
        ];
        let kind = kinds.into_iter().find(|(word, _)| self.take_word(word)).map_or(JsonKind::Any, |(_, kind)| kind);
        Test::Json(kind, self.take_words("with unique keys"))
    }

    fn normal_form(&mut self) -> NormalForm {
        let named =
            |form: &NormalForm| form.sql().is_some_and(|name| self.peek_word() == Some(&name.to_ascii_lowercase()));
        let form = NormalForm::ALL.into_iter().find(named);
        self.at += usize::from(form.is_some());
        form.unwrap_or(NormalForm::Default)
    }

    fn normalized(&mut self) -> Option<NormalForm> {
        let start = self.at;
        let form = self.normal_form();
        let found = self.take_word("normalized");
        if !found {
            self.at = start;
        }
        found.then_some(form)
    }

    /// Behind the first pair.
    fn overlaps(&mut self, start: Expression, end: Expression) -> Option<Group> {
        self.expect_word("overlaps")?;
        let Group::Two(other_start, other_end) = self.group()? else { return None };
        let arguments = vec![start, end, other_start, other_end];
        Some(Group::One(Expression::Special(Special::Overlaps, arguments)))
    }

    fn collation(&mut self) -> Option<CollationName> {
        let name = self.name()?;
        if !self.take(&Token::Dot) {
            return Some(CollationName { schema: None, name });
        }
        let schema = Some(name).filter(|schema| schema.as_str() != "pg_catalog");
        Some(CollationName { schema, name: self.name()? })
    }

    /// A function that SQL gives words instead of commas; the outer `None`: it is not one.
    #[allow(clippy::option_option, reason = "not one, or one that is not understood")]
    fn special(&mut self, word: &str) -> Option<Option<Expression>> {
        type Parse = fn(&mut Parser) -> Option<Expression>;
        let parse: Parse = match word {
            "extract" => Parser::extract,
            "substring" => Parser::substring,
            "position" => Parser::position,
            "overlay" => Parser::overlay,
            "trim" => Parser::trim,
            "normalize" => Parser::normalize,
            _ => return None,
        };
        self.next();
        Some(self.in_parentheses(parse))
    }

    fn extract(&mut self) -> Option<Expression> {
        let Token::Word(field) = self.next()? else { return None };
        let field = Field::named(&field)?;
        self.expect_word("from")?;
        Some(Expression::Special(Special::Extract(field), vec![self.term()?]))
    }

    fn substring(&mut self) -> Option<Expression> {
        let mut arguments = vec![self.term()?];
        if self.take_word("similar") {
            arguments.push(self.term()?);
            self.expect_word("escape")?;
            arguments.push(self.term()?);
            return Some(Expression::Special(Special::SubstringSimilar, arguments));
        }
        self.expect_word("from")?;
        arguments.push(self.term()?);
        if self.take_word("for") {
            arguments.push(self.term()?);
        }
        Some(Expression::Special(Special::Substring, arguments))
    }

    fn position(&mut self) -> Option<Expression> {
        let part = self.term()?;
        self.expect_word("in")?;
        Some(Expression::Special(Special::Position, vec![part, self.term()?]))
    }

    fn overlay(&mut self) -> Option<Expression> {
        let mut arguments = vec![self.term()?];
        self.expect_word("placing")?;
        arguments.push(self.term()?);
        self.expect_word("from")?;
        arguments.push(self.term()?);
        if self.take_word("for") {
            arguments.push(self.term()?);
        }
        Some(Expression::Special(Special::Overlay, arguments))
    }

    fn trim(&mut self) -> Option<Expression> {
        let Token::Word(side) = self.next()? else { return None };
        let side = match side.as_str() {
            "both" => TrimSide::Both,
            "leading" => TrimSide::Leading,
            "trailing" => TrimSide::Trailing,
            _ => return None,
        };
        let characters = if self.peek_word() == Some("from") { None } else { Some(self.term()?) };
        self.expect_word("from")?;
        let text = self.term()?;
        Some(Expression::Special(Special::Trim(side), std::iter::once(text).chain(characters).collect()))
    }

    fn normalize(&mut self) -> Option<Expression> {
        let text = self.term()?;
        let form = if self.take(&Token::Comma) { self.normal_form() } else { NormalForm::Default };
        Some(Expression::Special(Special::Normalize(form), vec![text]))
    }
}

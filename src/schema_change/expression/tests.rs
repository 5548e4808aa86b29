//! What is accepted and printed, what is refused, and that printing and parsing are inverse.

use proptest::prelude::*;

use super::Expressions;
use super::tree::{
    Argument, BaseType, Call, Case, Choice, Clock, CollationName, Expression, Field, INTERVAL_FIELDS, JsonKind,
    Junction, NormalForm, Quantifier, Special, Subscript, Test, TrimSide, TypeName,
};
use crate::catalog::schema::{TableDefinition, TypeDefinition, TypeKind, Types};
use crate::pg::{Ident, QualifiedName, TypeId};
use crate::schema_change::expression::catalog::{ExpressionCatalog, ForeignCast, OPERATORS};
use crate::schema_change::expression::check::{BOOLEAN, ExpressionScope, Refusal};
use crate::schema_change::expression::parser::parse;
use crate::schema_change::expression::purpose::Purpose;
use crate::testing::{TestColumn, catalog, expressions, table, types};

const MOOD: TypeId = TypeId(20_000);
const CITEXT: TypeId = TypeId(20_001);

/// The built-in types, an enum and a type of an extension.
fn all_types() -> Types {
    let mut all = types();
    let text = all.get(&TypeId(25)).cloned().expect("text");
    let own = |id, name: &str, kind| TypeDefinition {
        id,
        schema: Ident::new("public"),
        name: Ident::new(name),
        kind,
        ..text.clone()
    };
    all.insert(MOOD, own(MOOD, "mood", TypeKind::Enum));
    all.insert(CITEXT, own(CITEXT, "citext", TypeKind::Base));
    all
}

fn definition() -> TableDefinition {
    let columns =
        ["name", "price", "state", "body", "deleted_at", "a", "b", "created", "data", "tags", "Mixed Case", "value"];
    let mut columns: Vec<TestColumn> = columns.iter().map(|name| TestColumn::new(name, 25)).collect();
    columns.push(TestColumn::new("mood", MOOD.0));
    columns.push(TestColumn::new("email", CITEXT.0));
    table("t", &columns)
}

fn accept(expressions: &Expressions, text: &str, purpose: Purpose) -> Result<String, Refusal> {
    let (definition, types) = (definition(), all_types());
    expressions.accept(text, purpose, &ExpressionScope::table(&definition.columns, &types))
}

#[test]
fn ordinary_expressions_are_taken_over() {
    for text in [
        "(length((name)::text) > 1)",
        "((price >= (0)::numeric) AND (price < 1e6))",
        "((state)::text = ANY ((ARRAY['open'::character varying, 'closed'::character varying(20)])::text[]))",
        "lower(body)",
        "pg_catalog.lower(\"Mixed Case\")",
        "'it''s'::text",
        "E'a\\'b'::text",
        "(deleted_at IS NULL)",
        "CASE WHEN (a > 1) THEN 'x'::text ELSE (b || 'y'::text) END",
        "CASE\n    WHEN (a > 1) THEN 'x'::text\n    ELSE (b || 'y'::text)\nEND",
        "CASE a WHEN 1 THEN true ELSE false END",
        "EXTRACT(year FROM created)",
        "COALESCE(a, 0)",
        "'active'::public.mood",
        "B'101'::\"bit\"",
        "'{}'::jsonb",
        "(VALUE <> 'b'::public.mood)",
        "(body ~ '^\\d+$'::text)",
        "(NOT (a IS DISTINCT FROM b))",
        "((a IS TRUE) OR (b IS NOT UNKNOWN) OR (tags IS NOT NULL))",
        "(- '-1'::integer)",
        "(tags[1] = (string_to_array(body, ','::text))[2:3])",
        "(ROW(a, b) < ROW(1, 2))",
        "(body COLLATE \"C\")",
        "(created AT TIME ZONE 'UTC'::text)",
        "SUBSTRING(body FROM 1 FOR 2)",
        "SUBSTRING(body SIMILAR 'a'::text ESCAPE '#'::text)",
        "POSITION(('a'::text) IN (body))",
        "OVERLAY(body PLACING 'x'::text FROM 1)",
        "TRIM(BOTH FROM body)",
        "TRIM(LEADING 'x'::text FROM body)",
        "NORMALIZE(body, NFC)",
        "(body IS NFC NORMALIZED)",
        "((created, created) OVERLAPS (created, created))",
        "(data ->> 'k'::text)",
        "jsonb_extract_path_text(data, VARIADIC ARRAY['a'::text, 'b'::text])",
        "make_interval(days => 7, hours => 0, mins => 0, secs => (0)::double precision, years => 0, months => 0, weeks => 0)",
        "to_tsvector('english'::regconfig, body)",
        "'1 day'::interval day to second(3)",
        "'12:00:00'::time(3) with time zone",
        "'x'::character(3)",
        "ARRAY[]::integer[]",
        "NULL::character varying(20)",
        "(data IS JSON OBJECT WITH UNIQUE KEYS)",
        "\"left\"(body, 3)",
        "(email IS NOT NULL)",
        "(email)::text",
        "''::public.citext",
        "num_nulls(NULL::unknown, a)",
    ] {
        let accepted = accept(&expressions(), text, Purpose::Immutable);
        let printed = accepted.unwrap_or_else(|refusal| panic!("{text}: {refusal}"));
        assert_eq!(parse(&printed), parse(text), "{text} is printed as {printed}");
    }
}

#[test]
fn names_are_qualified_and_strings_are_quoted() {
    for (text, printed) in [
        ("lower(body)", r#"pg_catalog."lower"("body")"#),
        (
            "((a)::text ~~ 'x\\%'::text)",
            r#"(("a")::pg_catalog."text" OPERATOR(pg_catalog.~~) E'x\\%'::pg_catalog."text")"#,
        ),
        ("(body COLLATE \"C\")", r#"("body" COLLATE pg_catalog."C")"#),
        ("'a'::public.mood", r#"'a'::"public"."mood""#),
        ("'a'::character varying(20)[]", r#"'a'::pg_catalog."varchar"(20)[]"#),
        ("(VALUE > 0)", r#"("value" OPERATOR(pg_catalog.>) 0)"#),
    ] {
        assert_eq!(accept(&expressions(), text, Purpose::Immutable).as_deref(), Ok(printed));
    }
}

#[test]
fn a_default_may_use_the_clock_and_a_check_may_not() {
    for text in
        ["now()", "CURRENT_TIMESTAMP", "CURRENT_TIMESTAMP(3)", "gen_random_uuid()", "(now() + '01:00:00'::interval)"]
    {
        assert!(accept(&expressions(), text, Purpose::Default).is_ok(), "{text}");
        assert!(accept(&expressions(), text, Purpose::Immutable).is_err(), "{text}");
    }
}

#[test]
fn anything_that_could_do_more_is_left_out() {
    for text in [
        "",
        "true); DROP TABLE x; --",
        "evil()",
        "public.lower(body)",
        "\"public\".\"lower\"(body)",
        "\"evil\"(body)",
        "pg_catalog.pg_read_file('x')",
        "(SELECT 1)",
        "(a OPERATOR(public.=) b)",
        "lower(body) /* comment */",
        "lower(body) -- comment",
        "$$x$$",
        "$a$x$a$",
        "'open",
        "(a",
        "a)",
        "U&'x'",
        "(current_user = 'x')",
        "EXISTS (a)",
        "nextval('s'::regclass)",
        "(a ; b)",
        "(('public.s'::text)::regclass)",
        "('public.s'::regclass)",
        "((a).lower)",
        "(a).lower",
        "((47110)::oid).lo_create",
        "t.*",
        "t",
        "count(*)",
        "sum(a) OVER ()",
        "lower(DISTINCT body)",
        "lower(VARIADIC body, body)",
        "lower(body, body)",
        "to_tsvector('public.evil'::regconfig, body)",
        "to_tsvector((body)::regconfig, body)",
        "'x'::public.other",
        "(body COLLATE public.\"x\")",
        "(a + b + 1)",
        "a + b",
        "f(x)[1]",
        "user",
        "(body)::regproc",
        "(body)::unknown",
        "'x'::pg_catalog.regclass",
        "ts_rewrite('a'::tsquery, 'SELECT 1'::text)",
        "currval('s'::text)",
        "set_config('a'::text, 'b'::text, false)",
        "random()",
    ] {
        assert!(accept(&expressions(), text, Purpose::Immutable).is_err(), "{text}");
        assert!(accept(&expressions(), text, Purpose::Default).is_err(), "{text}");
    }
}

#[test]
fn a_default_names_no_column() {
    let (definition, types) = (definition(), all_types());
    let scope = ExpressionScope::table(&definition.columns, &types).without_columns();
    let refused = expressions().accept("lower(body)", Purpose::Default, &scope);
    assert_eq!(refused, Err(Refusal::Column(Ident::new("body"))));
    assert!(expressions().accept("'a'::public.mood", Purpose::Default, &scope).is_ok());
}

#[test]
fn a_name_that_could_mean_another_function_is_left_out() {
    let function =
        |catalog: &ExpressionCatalog, text: &str| accept(&Expressions::new(catalog.clone()), text, Purpose::Immutable);
    let lower = |catalog: &mut ExpressionCatalog, change: fn(&mut super::catalog::FunctionVariant)| {
        let variant = catalog.functions.iter_mut().find(|f| f.name == "lower" && f.arguments == "text");
        change(variant.expect("lower(text) is listed"));
    };
    let changes: [fn(&mut super::catalog::FunctionVariant); 3] = [
        |variant| variant.built_in = false,
        |variant| variant.volatility = 'v',
        |variant| variant.arguments = "point".to_owned(),
    ];
    for change in changes {
        let mut catalog = catalog();
        assert!(function(&catalog, "lower(body)").is_ok());
        lower(&mut catalog, change);
        assert_eq!(function(&catalog, "lower(body)"), Err(Refusal::Function(Ident::new("lower"))));
    }
    // A variant with more arguments is another matter.
    let mut with_more = catalog();
    lower(&mut with_more, |variant| (variant.least, variant.most, variant.built_in) = (2, 2, false));
    assert!(function(&with_more, "lower(body)").is_ok());
    assert!(function(&with_more, "lower(body, body)").is_err());
    // Operators, too.
    let mut operators = catalog();
    operators.operators.iter_mut().for_each(|operator| operator.built_in = false);
    assert_eq!(function(&operators, "(a = b)"), Err(Refusal::Operator("=")));
}

#[test]
fn a_conversion_by_a_function_of_the_destinations_own_is_left_out() {
    let mut catalog = catalog();
    let cast = |from: (&str, &str), to: (&str, &str), implicit| ForeignCast {
        from: QualifiedName::new(from.0, from.1),
        to: QualifiedName::new(to.0, to.1),
        implicit,
        of_extension: false,
    };
    let (text, citext) = (("pg_catalog", "text"), ("public", "citext"));
    catalog.foreign_casts =
        vec![cast(citext, ("pg_catalog", "json"), false), cast(("pg_catalog", "bool"), citext, false)];
    let expressions = Expressions::new(catalog.clone());
    assert!(accept(&expressions, "(email)::text", Purpose::Immutable).is_ok());
    assert!(accept(&expressions, "(body)::json", Purpose::Immutable).is_ok());
    assert!(accept(&expressions, "lower(email)", Purpose::Immutable).is_ok());
    assert!(matches!(accept(&expressions, "(email)::json", Purpose::Immutable), Err(Refusal::Conversion(_))));
    assert!(matches!(accept(&expressions, "(body)::public.citext", Purpose::Immutable), Err(Refusal::Conversion(_))));
    catalog.foreign_casts.push(cast(citext, text, true));
    let expressions = Expressions::new(catalog);
    assert!(matches!(accept(&expressions, "lower(email)", Purpose::Immutable), Err(Refusal::Conversion(_))));
    assert!(matches!(accept(&expressions, "COALESCE(email, body)", Purpose::Immutable), Err(Refusal::Conversion(_))));
    assert!(accept(&expressions, "(email IS NULL)", Purpose::Immutable).is_ok());
}

#[test]
fn a_value_that_a_cast_of_somebodys_own_would_convert_for_its_column_is_left_out() {
    let mut catalog = catalog();
    let cast = |from: (&str, &str), to: (&str, &str), of_extension| ForeignCast {
        from: QualifiedName::new(from.0, from.1),
        to: QualifiedName::new(to.0, to.1),
        implicit: true,
        of_extension,
    };
    let (text, mood, citext) = (("pg_catalog", "text"), ("public", "mood"), ("public", "citext"));
    catalog.foreign_casts =
        vec![cast(text, mood, false), cast(citext, ("pg_catalog", "bool"), false), cast(text, citext, true)];
    let expressions = Expressions::new(catalog);
    let (definition, types) = (definition(), all_types());
    let accept = |text: &str, column: TypeId| {
        let scope = ExpressionScope::table(&definition.columns, &types).assigned_to(column);
        expressions.accept(text, Purpose::Immutable, &scope)
    };
    let refused = Err(Refusal::Conversion("public.mood".to_owned()));
    assert_eq!(accept("'a'::text", MOOD), refused);
    assert_eq!(accept("lower(body)", MOOD), refused);
    assert!(accept("'a'", MOOD).is_ok() && accept("'a'::public.mood", MOOD).is_ok() && accept("mood", MOOD).is_ok());
    assert_eq!(accept("email", BOOLEAN), Err(Refusal::Conversion("public.citext".to_owned())));
    assert!(accept("(body IS NULL)", BOOLEAN).is_ok() && accept("body", CITEXT).is_ok());
}

#[test]
fn what_the_destinations_version_lacks_is_left_out() {
    let mut catalog = catalog();
    catalog.version = 150_000;
    let expressions = Expressions::new(catalog);
    assert_eq!(accept(&expressions, "(body IS JSON)", Purpose::Immutable), Err(Refusal::Version("IS JSON")));
    assert_eq!(accept(&expressions, "(created AT LOCAL)", Purpose::Immutable), Err(Refusal::Version("AT LOCAL")));
}

#[test]
fn nesting_is_bounded_and_the_deepest_fits_on_a_small_stack() {
    let nested = |levels: usize| {
        [("(NOT ", ")"), ("lower(", ")"), ("((a)::text || ", ")"), ("CASE WHEN true THEN ", " END")]
            .map(|(open, close)| format!("{}a{}", open.repeat(levels), close.repeat(levels)))
    };
    let work = move || {
        for text in nested(40) {
            let tree = parse(&text).unwrap_or_else(|| panic!("{text}"));
            assert_eq!(parse(&tree.to_string()), Some(tree));
        }
        for text in nested(300).into_iter().chain(nested(100_000)) {
            assert_eq!(parse(&text), None);
        }
        for text in ["(", "[", "-", "NOT ", "(NOT ", "ARRAY[", "f(", "a[", "x::", "CASE ", "ROW("] {
            assert_eq!(parse(&text.repeat(100_000)), None, "{text}");
        }
    };
    let thread = std::thread::Builder::new().stack_size(512 << 10).spawn(work).expect("a thread");
    thread.join().expect("no overflow");
}

fn name() -> impl Strategy<Value = Ident> {
    prop_oneof!["[a-z_][a-z0-9_]{0,8}", "[A-Za-z \"'$ä\u{a0}.]{1,8}", Just("select".to_owned())].prop_map(Ident::new)
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z' ]{0,6}", "[\\\\'\"$;ä\u{a0}\n-]{0,6}"]
}

fn type_name() -> impl Strategy<Value = TypeName> {
    let plain = name().prop_map(BaseType::BuiltIn);
    let named = (name(), name())
        .prop_filter("pg_catalog's are built in", |(schema, _)| schema.as_str() != "pg_catalog")
        .prop_map(|(schema, name)| BaseType::Named(QualifiedName { schema, name }));
    let modifiers = proptest::collection::vec(-5_000..5_000_i32, 0..3);
    let any = (prop_oneof![plain, named], modifiers, any::<bool>());
    let any = any.prop_map(|(base, modifiers, array)| TypeName { base, modifiers, array });
    let fields = proptest::sample::select(INTERVAL_FIELDS).prop_map(|fields| TypeName {
        base: BaseType::Interval(fields),
        modifiers: if fields.ends_with("second") { vec![3] } else { Vec::new() },
        array: false,
    });
    prop_oneof![4 => any, 1 => fields]
}

fn leaf() -> impl Strategy<Value = Expression> {
    prop_oneof![
        name().prop_map(Expression::Column),
        text().prop_map(Expression::Text),
        "[0-9]{1,3}(\\.[0-9]{1,2})?(e[+-]?[0-9])?".prop_map(Expression::Number),
        "b'[01]{0,4}'|x'[0-9a-f]{0,4}'".prop_map(Expression::Bits),
        Just(Expression::Null),
        any::<bool>().prop_map(Expression::Boolean),
        (proptest::sample::select(Clock::ALL.to_vec()), proptest::option::of(0..7_u32)).prop_map(
            |(clock, precision)| { Expression::Clock(clock, precision.filter(|_| clock != Clock::CurrentDate)) }
        ),
    ]
}

fn test() -> impl Strategy<Value = Test> {
    let kinds = vec![JsonKind::Any, JsonKind::Scalar, JsonKind::Array, JsonKind::Object];
    prop_oneof![
        Just(Test::Null),
        Just(Test::True),
        Just(Test::False),
        Just(Test::Unknown),
        Just(Test::Document),
        (proptest::sample::select(kinds), any::<bool>()).prop_map(|(kind, unique)| Test::Json(kind, unique)),
    ]
}

/// A special form and how many arguments it has.
fn special() -> impl Strategy<Value = (Special, usize)> {
    let forms = [NormalForm::ALL.to_vec(), vec![NormalForm::Default]].concat();
    let sides = vec![TrimSide::Both, TrimSide::Leading, TrimSide::Trailing];
    prop_oneof![
        Just((Special::Extract(Field::named("year").expect("a field")), 1)),
        (2..4_usize).prop_map(|count| (Special::Substring, count)),
        Just((Special::SubstringSimilar, 3)),
        Just((Special::Position, 2)),
        (3..5_usize).prop_map(|count| (Special::Overlay, count)),
        (proptest::sample::select(sides), 1..3_usize).prop_map(|(side, count)| (Special::Trim(side), count)),
        proptest::sample::select(forms.clone()).prop_map(|form| (Special::Normalize(form), 1)),
        proptest::sample::select(forms).prop_map(|form| (Special::IsNormalized(form), 1)),
        Just((Special::AtTimeZone, 2)),
        Just((Special::AtLocal, 1)),
        Just((Special::Overlaps, 4)),
    ]
}

fn expression() -> impl Strategy<Value = Expression> {
    let operators: Vec<&'static str> = OPERATORS.iter().flat_map(|group| group.names).copied().collect();
    leaf().prop_recursive(6, 60, 5, move |inner| {
        let operator = proptest::sample::select(operators.clone());
        let pair = (inner.clone(), inner.clone()).prop_map(Box::new);
        let some = |least: usize| proptest::collection::vec(inner.clone(), least..5);
        let quantifier = proptest::sample::select(vec![Quantifier::Any, Quantifier::All]);
        let junction = proptest::sample::select(vec![Junction::And, Junction::Or]);
        let choice = proptest::sample::select(vec![Choice::Coalesce, Choice::Greatest, Choice::Least]);
        let argument = (proptest::option::of(name()), inner.clone()).prop_map(|(name, value)| Argument { name, value });
        let call = (name(), proptest::collection::vec(argument, 0..4), any::<bool>());
        let call = call.prop_map(|(name, mut arguments, variadic)| {
            let variadic = variadic && !arguments.is_empty();
            if variadic && let Some(last) = arguments.last_mut() {
                last.name = None;
            }
            Expression::Function(Call { name, arguments, variadic })
        });
        let branches = proptest::collection::vec((inner.clone(), inner.clone()), 1..3);
        let case = (proptest::option::of(inner.clone()), branches, proptest::option::of(inner.clone()));
        let subscript = prop_oneof![
            inner.clone().prop_map(Subscript::Index),
            (proptest::option::of(inner.clone()), proptest::option::of(inner.clone()))
                .prop_map(|(first, last)| Subscript::Slice(first, last)),
        ];
        let collation = (proptest::option::of(name()), name()).prop_map(|(schema, name)| CollationName {
            schema: schema.filter(|schema| schema.as_str() != "pg_catalog"),
            name,
        });
        let of_special = (special(), proptest::collection::vec(inner.clone(), 4));
        prop_oneof![
            (inner.clone().prop_map(Box::new), type_name()).prop_map(|(value, to)| Expression::Cast(value, to)),
            call,
            of_special.prop_map(|((special, count), mut arguments)| {
                arguments.truncate(count);
                Expression::Special(special, arguments)
            }),
            (operator.clone(), inner.clone())
                .prop_map(|(operator, value)| Expression::Prefix(operator, Box::new(value))),
            (operator.clone(), pair.clone()).prop_map(|(operator, sides)| Expression::Infix(operator, sides)),
            (operator, quantifier, pair.clone()).prop_map(|(o, q, sides)| Expression::Elements(o, q, sides)),
            (junction, some(2)).prop_map(|(junction, terms)| Expression::Junction(junction, terms)),
            inner.clone().prop_map(|value| Expression::Not(Box::new(value))),
            (inner.clone(), test(), any::<bool>()).prop_map(|(value, test, not)| Expression::Is(
                Box::new(value),
                test,
                not
            )),
            (pair.clone(), any::<bool>()).prop_map(|(sides, negated)| Expression::Distinct(sides, negated)),
            case.prop_map(|(subject, branches, otherwise)| {
                Expression::Case(Box::new(Case { subject, branches, otherwise }))
            }),
            (choice, some(1)).prop_map(|(choice, arguments)| Expression::Choice(choice, arguments)),
            pair.prop_map(|sides| Expression::Choice(Choice::NullIf, vec![sides.0, sides.1])),
            some(0).prop_map(Expression::Array),
            some(1).prop_map(Expression::Row),
            (inner.clone(), proptest::collection::vec(subscript, 1..3))
                .prop_map(|(value, subscripts)| Expression::Subscript(Box::new(value), subscripts)),
            (inner, collation).prop_map(|(value, collation)| Expression::Collate(Box::new(value), collation)),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn what_is_printed_parses_to_the_same_tree(tree in expression()) {
        let printed = tree.to_string();
        prop_assert_eq!(parse(&printed), Some(tree), "{}", printed);
    }

    #[test]
    fn parsing_any_text_ends_and_what_parses_survives_printing(text in "[-a-z0-9'\"()\\[\\]:=<>|~. \\\\$;äE]{0,60}") {
        if let Some(tree) = parse(&text) {
            prop_assert_eq!(parse(&tree.to_string()), Some(tree), "{}", text);
        }
    }
}

//! Expressions of a source that means ill, attacks.txt, at every place where an expression can come from: nothing of them runs.
//!
//! The source is a real one whose superuser has replaced pg_get_expr and pg_get_indexdef: what headwater reads of a default, a check,
//! a generated column, an index, its condition or a domain's check is the attack's text, whether or not PostgreSQL itself would have
//! stored it. What each attack reaches for is there at the destination. Both the superuser and the least roles copy and follow
//! it; then rows are written there that evaluate what was taken over. Before, each attack is judged by itself: left out, made of it what is
//! harmless, or accepted by the grammar and refused by the server for its types, which would halt a copy.

use std::collections::{BTreeMap, BTreeSet};

use headwater::catalog::schema::{ColumnDefinition, Types};
use headwater::pg::TypeId;
use headwater::schema_change::expression::catalog::{ExpressionCatalog, FUNCTIONS};
use headwater::schema_change::expression::purpose::Purpose;
use headwater::schema_change::expression::{BOOLEAN, ExpressionScope, Expressions, parse};
use headwater::session::SqlClient;

use crate::support::roles::Roles;
use crate::support::{Database, Script, Setup, destination, source};

const ATTACKS: &str = include_str!("attacks.txt");

/// Fewer would be another corpus.
const ATTACKS_MIN: usize = 200;

struct Attack {
    class: usize,
    text: String,
    becomes: Becomes,
}

/// What becomes of an attack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Becomes {
    /// It is left out at every place, with a reason.
    LeftOut,
    /// A value, a collation, the server's own operator: taken over at some place.
    Harmless,
    /// The destination's server finds no meaning in it.
    Refused,
}

impl Attack {
    /// No server's text holds a zero byte: the grammar alone reads it. What the destination's server refuses halts a copy.
    fn can_be_said(&self) -> bool {
        !self.text.contains('\0') && self.becomes != Becomes::Refused
    }
}

/// The classes by name, and the attacks.
fn attacks() -> (Vec<&'static str>, Vec<Attack>) {
    let (mut classes, mut attacks) = (Vec::new(), Vec::new());
    for line in ATTACKS.lines() {
        if let Some(class) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            classes.push(class);
        } else if !line.is_empty() && !line.starts_with('#') {
            let class = classes.len().checked_sub(1).expect("a class comes first");
            let (mark, text) = line.split_at(1);
            let becomes = match mark {
                "-" => Becomes::LeftOut,
                "+" => Becomes::Harmless,
                "!" => Becomes::Refused,
                _ => panic!("{line}"),
            };
            attacks.push(Attack { class, text: code_points(text.trim()), becomes });
        }
    }
    (classes, attacks)
}

/// `<U+00A0>` as the character.
fn code_points(text: &str) -> String {
    let mut parts = text.split("<U+");
    let mut read = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (hex, rest) = part.split_once('>').expect("a code point ends");
        read.push(u32::from_str_radix(hex, 16).ok().and_then(char::from_u32).expect("a code point"));
        read.push_str(rest);
    }
    read
}

/// What the attacks reach for, at the destination.
const TRAPS: &str = "
    CREATE TABLE pwned_log (how text); GRANT INSERT ON pwned_log TO PUBLIC;
    CREATE FUNCTION pwn_really(how text) RETURNS text LANGUAGE plpgsql SECURITY DEFINER AS $$
        BEGIN INSERT INTO public.pwned_log VALUES (how); RETURN how; END $$;
    CREATE FUNCTION pwn(how text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN RETURN public.pwn_really(how); END $$;
    CREATE FUNCTION lower(text) RETURNS text LANGUAGE sql IMMUTABLE AS $$ SELECT public.pwn('lower') $$;
    CREATE FUNCTION length(text) RETURNS int LANGUAGE sql IMMUTABLE AS $$ SELECT public.pwn('length')::int $$;
    CREATE FUNCTION now() RETURNS timestamptz LANGUAGE sql IMMUTABLE AS $$ SELECT public.pwn('now')::timestamptz $$;
    CREATE FUNCTION joined(text, text) RETURNS text LANGUAGE sql IMMUTABLE AS $$ SELECT public.pwn('joined') $$;
    CREATE FUNCTION differs(text, text) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$ SELECT public.pwn('differs') IS NULL $$;
    CREATE OPERATOR public.|| (LEFTARG = text, RIGHTARG = text, FUNCTION = public.joined);
    CREATE OPERATOR public.<> (LEFTARG = text, RIGHTARG = text, FUNCTION = public.differs);
    CREATE DOMAIN evil AS text CHECK (public.pwn('domain') IS NOT NULL);
    CREATE DOMAIN \"text\" AS pg_catalog.text CHECK (public.pwn('text') IS NOT NULL);
    CREATE DOMAIN \"int4\" AS pg_catalog.int4 CHECK (public.pwn('int4') IS NOT NULL);
    CREATE TYPE mood AS ENUM ('sad');
    CREATE FUNCTION mood_text(mood) RETURNS pg_catalog.text LANGUAGE sql IMMUTABLE AS $$ SELECT public.pwn('cast') $$;
    CREATE CAST (mood AS pg_catalog.text) WITH FUNCTION mood_text(mood) AS IMPLICIT;
    CREATE COLLATION \"C\" (locale = 'C'); CREATE COLLATION evil (locale = 'C');
    CREATE TEXT SEARCH CONFIGURATION english (COPY = pg_catalog.english);
    CREATE VIEW pwn_view AS SELECT public.pwn('view') AS v; GRANT SELECT ON pwn_view TO PUBLIC;
    CREATE TABLE victim (id int PRIMARY KEY); INSERT INTO victim VALUES (1); GRANT ALL ON victim TO PUBLIC;
    CREATE SEQUENCE victim_seq; GRANT ALL ON victim_seq TO PUBLIC;";

/// Everything at the destination that an attack could have changed, besides what headwater is there for.
const STATE: &str = "
    SELECT concat_ws(E'\\n',
        'ran: ' || (SELECT COALESCE(string_agg(DISTINCT how, ' '), 'nothing') FROM pwned_log),
        'rows: ' || (SELECT count(*) FROM victim),
        'sequence: ' || (SELECT last_value || ' ' || is_called FROM victim_seq),
        'relations: ' || (SELECT string_agg(relname, ' ' ORDER BY relname) FROM pg_class
                          WHERE relnamespace = 'public'::regnamespace AND relname !~ '^(t[0-9]+(_pkey)?|[iw][0-9]+)$'),
        'functions: ' || (SELECT string_agg(proname, ' ' ORDER BY proname) FROM pg_proc WHERE pronamespace = 'public'::regnamespace),
        'types: ' || (SELECT string_agg(typname, ' ' ORDER BY typname) FROM pg_type
                      WHERE typnamespace = 'public'::regnamespace AND typname !~ '^_?(t|dom)[0-9]+$'),
        'catalog: ' || (SELECT count(*) FROM pg_proc WHERE pronamespace = 'pg_catalog'::regnamespace),
        'schemas: ' || (SELECT string_agg(nspname, ' ' ORDER BY nspname) FROM pg_namespace WHERE nspname !~ '^headwater'),
        'roles: ' || (SELECT count(*) FROM pg_roles WHERE rolname LIKE '%pwned%'),
        'large objects: ' || (SELECT count(*) FROM pg_largeobject_metadata),
        'slots: ' || (SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE '%pwned%'),
        'origins: ' || (SELECT count(*) FROM pg_replication_origin WHERE roname LIKE '%pwned%'),
        'locks: ' || (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 4711),
        'settings: ' || (SELECT count(*) FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase
                         WHERE d.datname = current_database()))";

/// Files that an attack would have left, where server and test share a machine.
fn files() -> Vec<bool> {
    ["/tmp/headwater_pwned_export", "/tmp/headwater_pwned_file"]
        .map(|file| std::path::Path::new(file).exists())
        .to_vec()
}

/// From here on the source says attack 7 wherever an expression of its own holds 'attack_7'. The functions are other ones under the names
/// of the server's: those are called by their OIDs, whatever stands in the catalog (fmgr.c). Where a condition belongs,
/// what the grammar reads is made one: else the destination would refuse it for its type, which is no defence.
const MEANS_ILL: &str = r"
    CREATE TABLE attacks (id int PRIMARY KEY, said text NOT NULL, is_read boolean NOT NULL);
    ALTER FUNCTION pg_catalog.pg_get_expr(pg_node_tree, oid) RENAME TO really_expr;
    ALTER FUNCTION pg_catalog.pg_get_indexdef(oid, int, bool) RENAME TO really_indexdef;
    CREATE FUNCTION instead(really text) RETURNS text LANGUAGE sql STABLE SECURITY DEFINER AS $$
        SELECT COALESCE((SELECT CASE WHEN found[2] = 'd' OR NOT a.is_read THEN a.said
                                     WHEN found[2] = 'g' THEN '((' || a.said || ') IS NOT NULL)::text'
                                     ELSE '((' || a.said || ') IS NOT NULL)' END
                         FROM public.attacks a WHERE a.id = found[1]::int), really)
        FROM (SELECT regexp_match(really, 'attack_(\d+)_([a-z])')) AS matched(found) $$;
    CREATE FUNCTION pg_catalog.pg_get_expr(pg_node_tree, oid) RETURNS text LANGUAGE sql STABLE STRICT AS
        $$ SELECT public.instead(pg_catalog.really_expr($1, $2)) $$;
    CREATE FUNCTION pg_catalog.pg_get_indexdef(oid, int, bool) RETURNS text LANGUAGE sql STABLE STRICT AS
        $$ SELECT public.instead(pg_catalog.really_indexdef($1, $2, $3)) $$;";

/// A table for a class, with every place for every attack of it.
fn schema(class: usize, numbers: &[usize]) -> String {
    let mut sql = String::new();
    let mut parts = vec!["id int PRIMARY KEY".to_owned(), "c text".to_owned()];
    for n in numbers {
        parts.push(format!("d{n} text DEFAULT 'attack_{n}_d'"));
        parts.push(format!("g{n} text GENERATED ALWAYS AS (c || 'attack_{n}_g') STORED"));
        sql.push_str(&format!("CREATE DOMAIN dom{n} AS text DEFAULT 'attack_{n}_d' CHECK (VALUE <> 'attack_{n}_v');"));
        parts.push(format!("p{n} dom{n}"));
        parts.push(format!("CONSTRAINT k{n} CHECK (c <> 'attack_{n}_k')"));
    }
    sql.push_str(&format!("CREATE TABLE t{class} ({});", parts.join(", ")));
    for n in numbers {
        sql.push_str(&format!("CREATE INDEX i{n} ON t{class} ((c || 'attack_{n}_i'));"));
        sql.push_str(&format!("CREATE INDEX w{n} ON t{class} (id) WHERE c <> 'attack_{n}_w';"));
    }
    sql.push_str(&format!("INSERT INTO t{class} (id, c) VALUES (1, 'before');"));
    sql
}

/// Attacks whose text has become something at the destination, and at which places.
const BECAME: &str = "
    SELECT substring(a.attname FROM '[0-9]+')::int, CASE WHEN a.attgenerated = '' THEN 'default' ELSE 'generated' END
    FROM pg_attrdef d JOIN pg_attribute a ON a.attrelid = d.adrelid AND a.attnum = d.adnum
    JOIN pg_class c ON c.oid = d.adrelid WHERE c.relname ~ '^t[0-9]+$' AND a.attname ~ '^[deg][0-9]+$'
    UNION ALL SELECT substring(conname FROM '[0-9]+')::int, 'check' FROM pg_constraint WHERE conname ~ '^k[0-9]+$'
    UNION ALL SELECT substring(t.typname FROM '[0-9]+')::int, 'domain'
    FROM pg_constraint k JOIN pg_type t ON t.oid = k.contypid WHERE t.typname ~ '^dom[0-9]+$'
    UNION ALL SELECT substring(relname FROM '[0-9]+')::int, 'index' FROM pg_class WHERE relkind = 'i' AND relname ~ '^[iw][0-9]+$'";

async fn run(roles: Roles, name: &str) {
    let (classes, attacks) = attacks();
    let mut database = Database::under(roles, source().await, destination().await, name, &[], MEANS_ILL).await;
    let of_class = |class: usize| -> Vec<usize> {
        (0..attacks.len()).filter(|n| attacks[*n].class == class && attacks[*n].can_be_said()).collect()
    };
    for class in 0..classes.len() {
        database.at_source(&schema(class, &of_class(class))).await;
    }
    database.tables = (0..classes.len()).map(|class| format!("t{class}")).collect();
    let insert = "INSERT INTO public.attacks VALUES ($1, $2, $3)";
    for (n, attack) in attacks.iter().enumerate().filter(|(_, attack)| attack.can_be_said()) {
        let n = i32::try_from(n).expect("a number");
        database
            .source
            .execute("saying", insert, &[&n, &attack.text, &parse(&attack.text).is_some()])
            .await
            .expect("it is said");
    }
    database.at_destination(TRAPS).await;
    let before = (database.destination_value(STATE).await, files());
    assert!(before.0.is_some());

    let service = Setup::of(&database).start();
    service.streams().await;
    // Columns that come while it streams, then rows.
    for class in 0..classes.len() {
        let columns: Vec<String> =
            of_class(class).iter().map(|n| format!("ADD COLUMN e{n} text DEFAULT 'attack_{n}_d'")).collect();
        database.at_source(&format!("ALTER TABLE t{class} {}", columns.join(", "))).await;
        database.at_source(&format!("INSERT INTO t{class} (id, c) VALUES (2, 'streamed')")).await;
        database.at_source(&format!("UPDATE t{class} SET c = 'updated' WHERE id = 1")).await;
    }
    database.caught_up().await;
    let log = service.log();
    service.stop().await;
    assert_eq!((database.destination_value(STATE).await, files()), before, "after the copy and the stream");

    // What was taken over is evaluated by whoever writes at the destination.
    for class in 0..classes.len() {
        let write = format!(
            "INSERT INTO public.t{class} (id, c) VALUES (1000, 'local'); UPDATE public.t{class} SET c = c || 'x'"
        );
        database.destination.script("writing at the destination", &write).await.expect("the row is taken");
    }
    assert_eq!((database.destination_value(STATE).await, files()), before, "after rows were written");

    let mut became: BTreeMap<usize, BTreeSet<String>> = BTreeMap::new();
    for row in database.destination.query("looking", BECAME, &[]).await.expect("the catalog") {
        let n = usize::try_from(row.get::<i32>(0).unwrap()).expect("a number");
        became.entry(n).or_default().insert(row.get(1).unwrap());
    }
    let mut wrong = Vec::new();
    for (n, attack) in attacks.iter().enumerate().filter(|(_, attack)| attack.can_be_said()) {
        let places = became.remove(&n).unwrap_or_default();
        for said in ["the default of column d", "the default of column e", "check constraint k", "index i", "index w"] {
            if places.is_empty() && !log.contains(&format!("{said}{n} (")) {
                wrong.push(format!("{:?}: the log has no {said}{n} with a reason", attack.text));
            }
        }
        for said in ["its default (".to_owned(), format!("check constraint dom{n}_check (")] {
            if places.is_empty() && !log.contains(&format!("domain public.dom{n}: {said}")) {
                wrong.push(format!("{:?}: the log has no domain public.dom{n}: {said}", attack.text));
            }
        }
        if places.is_empty() == (attack.becomes == Becomes::Harmless) {
            wrong.push(format!("{:?} has become {places:?}", attack.text));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What headwater makes of an attack at each place: a statement, or the reason why there is none.
fn statements(expressions: &Expressions, attack: &str) -> Vec<Result<String, String>> {
    let types = Types::new();
    let columns: Vec<ColumnDefinition> = [("id", 23), ("c", 25)].map(|(name, id)| column(name, id)).into();
    let table = ExpressionScope::table(&columns, &types);
    let condition = match parse(attack) {
        Some(_) => format!("(({attack}) IS NOT NULL)"),
        None => attack.to_owned(),
    };
    let accept = |text: &str, purpose, scope: ExpressionScope<'_>| {
        expressions.accept(text, purpose, &scope).map_err(|refusal| refusal.to_string())
    };
    let condition_of = |scope: ExpressionScope<'_>| accept(&condition, Purpose::Immutable, scope.assigned_to(BOOLEAN));
    let text = TypeId(25);
    vec![
        accept(attack, Purpose::Default, table.without_columns().assigned_to(text))
            .map(|sql| format!("CREATE TABLE public.made (id int, c text DEFAULT {sql})")),
        condition_of(table.clone()).map(|sql| format!("CREATE TABLE public.made (id int, c text CHECK ({sql}))")),
        condition_of(table.clone())
            .map(|sql| format!("CREATE TABLE public.made (id int, c text, g bool GENERATED ALWAYS AS ({sql}) STORED)")),
        condition_of(table.clone()).map(|sql| format!("CREATE INDEX made ON public.victim_text (({sql})) WHERE {sql}")),
        condition_of(ExpressionScope::domain(text, &types))
            .map(|sql| format!("CREATE DOMAIN public.made AS text CHECK ({sql})")),
    ]
}

fn column(name: &str, type_id: u32) -> ColumnDefinition {
    let json =
        serde_json::json!({"number": 1, "name": name, "type_id": type_id, "type_modifier": -1, "not_null": false});
    serde_json::from_value(json).expect("a column")
}

async fn expressions_of(client: &SqlClient) -> Expressions {
    let names: Vec<&str> = FUNCTIONS.keys().copied().collect();
    let sql = include_str!("../../sql/expression_catalog.sql");
    let row = client.query_one("reading what expressions may use", sql, &[&names]).await.expect("the catalog");
    Expressions::new(serde_json::from_str::<ExpressionCatalog>(row.get(0).unwrap()).expect("the catalog"))
}

#[tokio::test(flavor = "multi_thread")]
async fn each_attack_becomes_what_the_corpus_says_of_it() {
    let (classes, attacks) = attacks();
    let database = Database::new("attacks_judged", &[], "").await;
    database.at_destination(TRAPS).await;
    database.at_destination("CREATE TABLE victim_text (id int, c text)").await;
    let before = (database.destination_value(STATE).await, files());
    let expressions = expressions_of(&database.destination).await;
    let mut found: BTreeMap<usize, [usize; 3]> = BTreeMap::new();
    let mut wrong = Vec::new();
    for attack in &attacks {
        let places = statements(&expressions, &attack.text);
        let mut answers = Vec::new();
        for sql in places.iter().flatten() {
            let client = &database.destination;
            client.batch("beginning", "BEGIN").await.unwrap();
            answers.push(client.statement("making", sql).await.map_err(|error| error.to_string()));
            client.batch("rolling back", "ROLLBACK").await.unwrap();
        }
        let (made, refused) =
            (answers.iter().filter(|answer| answer.is_ok()).count(), answers.iter().any(Result::is_err));
        let becomes = match (answers.is_empty(), refused) {
            (true, _) => Becomes::LeftOut,
            (false, true) => Becomes::Refused,
            (false, false) => Becomes::Harmless,
        };
        found.entry(attack.class).or_default()[becomes as usize] += 1;
        if becomes != attack.becomes {
            wrong.push(format!("{:?}: {made} made, {places:?}, {answers:?}", attack.text));
        }
    }
    println!("{:<42} {:>7} {:>8} {:>15} {:>7}", "class", "attacks", "left out", "made harmlessly", "refused");
    let mut all = [0; 3];
    for (class, name) in classes.iter().enumerate() {
        let [left_out, harmless, refused] = found[&class];
        println!("{name:<42} {:>7} {left_out:>8} {harmless:>15} {refused:>7}", left_out + harmless + refused);
        all.iter_mut().zip(found[&class]).for_each(|(all, one)| *all += one);
    }
    println!("{:<42} {:>7} {:>8} {:>15} {:>7}", "all", attacks.len(), all[0], all[1], all[2]);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!((database.destination_value(STATE).await, files()), before);
}

#[test]
fn the_corpus_has_each_attack_once_and_enough_of_them() {
    let (classes, attacks) = attacks();
    assert!(attacks.len() >= ATTACKS_MIN, "{} attacks", attacks.len());
    let texts: BTreeSet<&str> = attacks.iter().map(|attack| attack.text.as_str()).collect();
    assert_eq!(texts.len(), attacks.len(), "an attack is listed twice");
    for (class, name) in classes.iter().enumerate() {
        assert!(attacks.iter().any(|attack| attack.class == class), "{name} has none");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn nothing_of_an_attack_runs_where_headwater_is_a_superuser() {
    run(Roles::Superuser, "attacks_super").await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn nothing_of_an_attack_runs_under_the_least_roles() {
    run(Roles::Least { replica: false }, "attacks_least").await;
}

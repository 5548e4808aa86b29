//! Every type family, in both formats, between servers that write values differently.
//!
//! A table has one column for each family, and a row for each of its values: extremes, infinities, BC, NULLs, empty and nested
//! ones. It is copied, then every row is written again, changed, re-keyed and deleted while it is followed. One table travels in
//! binary, one as text (a column of a type without a safe binary form makes the whole stream travel as text), one has no key
//! and is followed by whole old rows.

use headwater::session::SqlClient;

use crate::support::{Database, Script, Setup, destination, eventually, source};

/// Types with the same OID on every server: these travel in binary. A column's type, and values for it.
const BUILT_IN: &[(&str, &[&str])] = &[
    ("bool", &["true", "false"]),
    ("int2", &["-32768", "32767", "0"]),
    ("int4", &["-2147483648", "2147483647"]),
    ("int8", &["-9223372036854775808", "9223372036854775807"]),
    (
        "numeric",
        &[
            "'NaN'",
            "'Infinity'",
            "'-Infinity'",
            "0",
            "0.00",
            "1.0",
            "1.00",
            "-1e-50",
            "1e1000",
            "(repeat('9', 2000) || '.' || repeat('7', 500))::numeric",
        ],
    ),
    ("numeric(20,5)", &["123456789012345.67891", "-0.00001", "'NaN'"]),
    ("float4", &["'NaN'", "'Infinity'", "'-Infinity'", "'-0'", "1.17549435e-38", "3.4028235e38", "0.1", "1e-45"]),
    (
        "float8",
        &[
            "'NaN'",
            "'Infinity'",
            "'-Infinity'",
            "'-0'",
            "2.2250738585072014e-308",
            "1.7976931348623157e308",
            "0.1",
            "5e-324",
            "0.30000000000000004",
        ],
    ),
    ("money", &["'-92233720368547758.08'", "'92233720368547758.07'", "'1.50'"]),
    (
        "text",
        &[
            "''",
            "'été à la plage'",
            "E'tab\\there\\nback\\\\slash ''quote'' \\\\N \\\\.'",
            "repeat('wide ', 3000)",
            "' '",
        ],
    ),
    ("varchar(30)", &["'short'", "'trailing  '", "''"]),
    ("char(10)", &["'a'", "''", "'full value'"]),
    ("\"char\"", &["'x'", "''", "E'\\\\'"]),
    ("name", &["'a name'", "''"]),
    ("bytea", &["'\\x'", "'\\x00ff5c0a27'", "decode(repeat('00ff', 5000), 'hex')"]),
    (
        "date",
        &[
            "'infinity'",
            "'-infinity'",
            "'4713-01-01 BC'",
            "'5874897-12-31'",
            "'0001-12-31 BC'",
            "'2024-02-29'",
            "'2000-02-01'",
        ],
    ),
    ("time", &["'00:00:00'", "'24:00:00'", "'23:59:59.999999'", "'12:34:56.7'"]),
    ("timetz", &["'00:00:00+15:59:59'", "'24:00:00-15:59:59'", "'12:00:00.000001+05:45'"]),
    (
        "timestamp",
        &[
            "'infinity'",
            "'-infinity'",
            "'4713-01-01 00:00:00 BC'",
            "'294276-12-31 23:59:59.999999'",
            "'2001-02-03 04:05:06.789'",
        ],
    ),
    ("timestamp(0)", &["'2001-02-03 04:05:06'", "'infinity'"]),
    (
        "timestamptz",
        &[
            "'infinity'",
            "'-infinity'",
            "'4713-01-02 00:00:00+00 BC'",
            "'294276-12-31 00:00:00.999999+00'",
            "'2001-02-03 04:05:06.789+05:45'",
            "'1900-01-01 00:00:00+00'",
        ],
    ),
    (
        "interval",
        &[
            "'0'",
            "'-178000000 years'",
            "'178000000 years'",
            "'1 year -2 months 3 days -04:05:06.000007'",
            "'-1 year 2 months -3 days 04:05:06.7'",
            "'24:00:00'",
            "'1 day'",
            "'-1 months'",
        ],
    ),
    ("interval day to second(3)", &["'1 02:03:04.567'", "'-1 day'"]),
    ("uuid", &["'00000000-0000-0000-0000-000000000000'", "'ffffffff-ffff-ffff-ffff-ffffffffffff'"]),
    ("json", &["'{\"b\": 1,  \"a\": [1, 2.50, null]}'", "'\"été\"'", "'null'", "'1.10'", "'{\"a\":1,\"a\":2}'"]),
    ("jsonb", &["'{\"b\": 1, \"a\": [1, 2.50, null, \"x\\\\u00e9\"]}'", "'null'", "'1.10'", "'1e500'", "'[]'"]),
    ("jsonpath", &["'$.a[*] ? (@ > 1.5)'", "'strict $'"]),
    ("inet", &["'0.0.0.0/0'", "'192.168.1.5/24'", "'::1'", "'2001:db8::ff00:42:8329/64'"]),
    ("cidr", &["'10.0.0.0/8'", "'2001:db8::/32'"]),
    ("macaddr", &["'08:00:2b:01:02:03'"]),
    ("macaddr8", &["'08:00:2b:01:02:03:04:05'"]),
    ("bit(5)", &["B'10101'", "B'00000'"]),
    ("varbit", &["B''", "B'1'", "repeat('10', 500)::varbit"]),
    ("varbit(9)", &["B'101'", "B'111111111'"]),
    ("tsvector", &["''", "'a:1A,20B b:2 ''it''''s'':3'", "to_tsvector('simple', 'un été chaud')"]),
    ("point", &["'(1.5,-2.5)'", "'(NaN,Infinity)'", "'(0,-0)'"]),
    ("line", &["'{1,-1,0.1}'"]),
    ("lseg", &["'[(0,0),(1e300,-1e-300)]'"]),
    ("box", &["'(2,2),(0,0)'", "'(4,1),(0,0)'"]),
    ("path", &["'((0,0),(1,1),(2,0))'", "'[(0,0),(1,1)]'"]),
    ("polygon", &["'((0,0),(1,1),(2,0))'"]),
    ("circle", &["'<(1,2),3.3>'"]),
    ("int4range", &["'empty'", "'[1,10)'", "'(,5]'", "'[3,)'", "'(,)'"]),
    ("int8range", &["'[-9223372036854775808,9223372036854775807)'"]),
    ("numrange", &["'[1.10,NaN]'", "'(-Infinity,1.5)'"]),
    ("daterange", &["'[2020-01-01,infinity)'", "'[4713-01-01 BC,2020-01-01)'"]),
    ("tsrange", &["'[2020-01-01 00:00:00.000001,2021-01-01)'"]),
    ("tstzrange", &["'[2020-01-01 00:00:00+05:45,2021-01-01 00:00:00+00)'"]),
    ("int4multirange", &["'{}'", "'{[1,3),[7,9)}'", "'{(,)}'"]),
    ("nummultirange", &["'{[1.0,2.00],(5,)}'"]),
    ("tstzmultirange", &["'{[2020-01-01 00:00:00+00,2021-01-01 00:00:00+00)}'"]),
    ("pg_lsn", &["'0/0'", "'FFFFFFFF/FFFFFFFF'"]),
    ("oid", &["0", "4294967295"]),
    ("xid", &["'0'", "'4294967295'"]),
    ("xid8", &["'0'", "'18446744073709551615'"]),
    ("cid", &["'7'"]),
    ("tid", &["'(0,1)'", "'(4294967295,65535)'"]),
    ("txid_snapshot", &["'10:20:10,14,15'"]),
    ("pg_snapshot", &["'10:20:10,14,15'"]),
    ("int4[]", &["'{}'", "'{1,NULL,3}'", "'[-2:0]={1,2,3}'", "'{{1,2},{3,NULL}}'", "'[2:2][-1:0][5:5]={{{1},{2}}}'"]),
    (
        "text[]",
        &["'{}'", "ARRAY['', 'NULL', NULL, 'a,b', 'c\"d\\e', '{}', 'été', ' ']", "ARRAY[['a', NULL], ['c', 'd']]"],
    ),
    ("numeric[]", &["'{NaN,Infinity,1.00,NULL}'"]),
    ("bytea[]", &["ARRAY['\\x'::bytea, NULL, '\\x00ff5c']"]),
    ("timestamptz[]", &["'{infinity,\"2001-02-03 04:05:06+05:45\",NULL}'"]),
    ("date[]", &["'{-infinity,2000-02-01,\"4713-01-01 BC\"}'"]),
    ("interval[]", &["'{\"1 year -2 months 3 days\",-04:05:06.7}'"]),
    ("money[]", &["'{1.50,-2.25}'"]),
    ("jsonb[]", &["ARRAY['{\"a\": \"b\"}'::jsonb, NULL, 'null']"]),
    ("box[]", &["ARRAY['(2,2),(0,0)'::box, NULL]"]),
    ("float8[]", &["'{NaN,-0,5e-324}'"]),
    ("uuid[]", &["'{00000000-0000-0000-0000-000000000001,NULL}'"]),
    ("int4range[]", &["ARRAY['[1,5)'::int4range, 'empty', NULL]"]),
    ("inet[]", &["'{192.168.1.5/24,::1}'"]),
    ("char(3)[]", &["'{a,NULL,abc}'"]),
    ("bool[]", &["'{t,NULL,f}'"]),
];

/// Enums and domains over built-in types travel in binary, too.
const NAMED: &str = "
    CREATE TYPE mood AS ENUM ('sad', 'so so', 'hap''py', 'très bien');
    CREATE DOMAIN percent AS numeric(5,2) CHECK (VALUE BETWEEN 0 AND 100);
    CREATE DOMAIN short AS varchar(5) NOT NULL DEFAULT 'x' CHECK (length(VALUE) > 0);
    CREATE DOMAIN shorter AS short CHECK (VALUE <> 'no');
    CREATE DOMAIN moods AS mood CHECK (VALUE <> 'sad');";
const NAMED_COLUMNS: &[(&str, &[&str])] = &[
    ("mood", &["'sad'", "'hap''py'", "'très bien'"]),
    ("percent", &["0", "99.99"]),
    ("shorter", &["'abc'", "'été'"]),
    ("moods", &["'so so'"]),
];

/// What names types by OIDs of this server in its binary form, or holds what does.
const COMPOSED: &str = "
    CREATE TYPE pair AS (a int, \"B b\" text);
    CREATE TYPE nested AS (p pair, list pair[], m mood, d percent);
    CREATE DOMAIN pairs AS pair[] CHECK (cardinality(VALUE) < 9);";
const COMPOSED_COLUMNS: &[(&str, &[&str])] = &[
    ("pair", &["'(1,x)'", "ROW(NULL, 'a,\"b\\c')::pair", "ROW(NULL, NULL)::pair", "ROW(2, 'été')::pair"]),
    ("pair[]", &["ARRAY[ROW(1, 'x')::pair, NULL, ROW(NULL, '{\"}')::pair]", "'{}'"]),
    ("pairs", &["ARRAY[ROW(1, 'x')::pair, NULL]", "'{}'"]),
    (
        "nested",
        &[
            "ROW(ROW(1, 'x')::pair, ARRAY[ROW(2, 'y')::pair, NULL], 'sad', 5.5)::nested",
            "ROW(NULL, NULL, NULL, NULL)::nested",
        ],
    ),
    ("nested[]", &["ARRAY[[ROW(ROW(1, 'x')::pair, '{}', 'sad', 5.5)::nested], [NULL]]"]),
    ("mood[]", &["ARRAY['sad', NULL, 'hap''py']::mood[]", "ARRAY[['sad'], ['très bien']]::mood[]"]),
    ("percent[]", &["'{1.5,NULL}'"]),
    ("hstore[]", &["ARRAY['a=>1'::hstore, NULL]"]),
];

/// Ranges are not created at the destination: their own functions would be missing.
const RANGES: &str = "
    CREATE TYPE moodrange AS RANGE (SUBTYPE = mood);
    CREATE TYPE moodsrange AS RANGE (SUBTYPE = mood[]);";
const RANGE_COLUMNS: &[(&str, &[&str])] = &[
    ("moodrange", &["'[sad,hap''py)'", "'empty'", "'(,\"so so\"]'"]),
    (
        "moodsrange",
        &["moodsrange(ARRAY['sad']::mood[], ARRAY['hap''py', NULL]::mood[])", "moodsrange(NULL, '{}')", "'empty'"],
    ),
    ("moodsmultirange", &["moodsmultirange(moodsrange(NULL, '{sad}'), moodsrange('{hap''py}', NULL))", "'{}'"]),
];

/// What has no binary form that another server understands.
const AS_TEXT_COLUMNS: &[(&str, &[&str])] = &[
    // Its binary form does not survive when it is empty.
    ("tsquery", &["''", "'a & !b | c:*AB <3> d'"]),
    ("tsquery[]", &["ARRAY[''::tsquery, 'a & b', NULL]"]),
    ("regtype", &["'int4'", "'text'"]),
    ("regproc", &["'now'"]),
    ("regclass", &["'pg_catalog.pg_class'"]),
    ("xml", &["'<a b=\"c\">été &amp; hiver</a>'", "'content only'"]),
    ("int8[]", &["'{9223372036854775807}'"]),
    // No receive function: not even a NULL of theirs can be bound in binary.
    ("seg", &["'1.5 .. 2.25'", "'<7'"]),
    ("isbn13", &["'978-0-393-04002-9'"]),
    ("int2vector", &["'1 2 -3'", "''"]),
    ("oidvector", &["'1 4294967295'", "''"]),
    ("aclitem", &["(pg_catalog.acldefault('f', 10::oid))[1]"]),
    ("aclitem[]", &["pg_catalog.acldefault('f', 10::oid)", "'{}'"]),
    ("regclass[]", &["'{pg_catalog.pg_class}'"]),
];

/// Types of extensions travel in binary where both ends have the same version.
const OF_EXTENSIONS: &[(&str, &[&str])] = &[
    ("hstore", &["'a=>1, \"b c\"=>NULL'", "''", "'\"k\\\"\"=>\"v=>\"'"]),
    ("citext", &["'Été'", "''"]),
    ("ltree", &["'Top.Science.Astronomy'", "''"]),
    ("lquery", &["'Top.*.Astro*'"]),
    ("cube", &["'(1,2),(3,4)'", "'(0.30000000000000004)'"]),
];

/// Which of the columns need what a server may lack: an extension, or libxml.
const NEEDS: &[(&str, &str)] = &[
    ("hstore", "CREATE EXTENSION IF NOT EXISTS hstore"),
    ("citext", "CREATE EXTENSION IF NOT EXISTS citext"),
    ("ltree", "CREATE EXTENSION IF NOT EXISTS ltree"),
    ("lquery", "CREATE EXTENSION IF NOT EXISTS ltree"),
    ("cube", "CREATE EXTENSION IF NOT EXISTS cube"),
    ("seg", "CREATE EXTENSION IF NOT EXISTS seg"),
    ("isbn13", "CREATE EXTENSION IF NOT EXISTS isn"),
    ("xml", "SELECT '<a/>'::xml"),
];

/// Both ends write an interval in the same binary form: it has infinities from 17 on.
async fn intervals_are_alike(database: &Database) -> bool {
    let sql = "SELECT current_setting('server_version_num')::int >= 170000";
    let mut late = Vec::new();
    for client in [&database.source, &database.destination] {
        late.push(
            client.query_one("asking for the version", sql, &[]).await.expect("a version").get::<bool>(0).unwrap(),
        );
    }
    late[0] == late[1]
}

/// Both ends have the same version of each extension.
async fn same_versions(database: &Database) -> bool {
    let sql = "SELECT string_agg(extname || extversion, ',' ORDER BY extname) FROM pg_extension";
    database.source_value(sql).await == database.destination_value(sql).await
}

/// The columns that both servers can have; says which ones they cannot.
async fn possible<'a>(database: &Database, columns: &Columns<'a>) -> Columns<'a> {
    let mut possible = Columns::new();
    for (of, values) in columns {
        let need = NEEDS.iter().find(|(name, _)| of.trim_end_matches("[]") == *name);
        let mut there = true;
        for client in [&database.source, &database.destination] {
            there &= match need {
                Some((_, statement)) => client.script("looking for a type", statement).await.is_ok(),
                None => true,
            };
        }
        if there {
            possible.push((of, values));
        } else {
            println!("{of} is left out: a server lacks it");
        }
    }
    possible
}

/// What a server of its own mind writes values like: both ends differ from each other and from the defaults.
const ODD_SOURCE: &[(&str, &str)] = &[
    ("DateStyle", "'German, DMY'"),
    ("IntervalStyle", "sql_standard"),
    ("TimeZone", "'Asia/Kathmandu'"),
    ("bytea_output", "escape"),
    ("extra_float_digits", "-15"),
    ("xmloption", "document"),
    ("xmlbinary", "hex"),
    ("client_encoding", "SQL_ASCII"),
    ("standard_conforming_strings", "off"),
    ("array_nulls", "off"),
    ("quote_all_identifiers", "on"),
];
const ODD_DESTINATION: &[(&str, &str)] = &[
    ("DateStyle", "'SQL, MDY'"),
    ("IntervalStyle", "iso_8601"),
    ("TimeZone", "'America/St_Johns'"),
    ("bytea_output", "hex"),
    ("extra_float_digits", "-4"),
    ("xmloption", "document"),
    ("client_encoding", "LATIN1"),
    ("standard_conforming_strings", "off"),
    ("array_nulls", "off"),
    ("transform_null_equals", "on"),
    ("default_transaction_isolation", "'repeatable read'"),
];

type Columns<'a> = Vec<(&'a str, &'a [&'a str])>;

/// CREATE TABLE and INSERTs of a table with a column for each type.
fn script(table: &str, keyed: bool, columns: &Columns<'_>) -> String {
    let key = if keyed { "id int PRIMARY KEY" } else { "id int" };
    let definitions: Vec<String> = columns.iter().enumerate().map(|(n, (of, _))| format!("c{n} {of}")).collect();
    let full = if keyed { String::new() } else { format!("ALTER TABLE {table} REPLICA IDENTITY FULL;") };
    format!("CREATE TABLE {table} ({key}, {}); {full} {}", definitions.join(", "), rows(table, 0, columns))
}

/// A row for each value: the longest list of values decides how many. A domain that is NOT NULL never gets a NULL.
fn rows(table: &str, first: usize, columns: &Columns<'_>) -> String {
    let most = columns.iter().map(|(_, values)| values.len()).max().unwrap_or_default();
    let row = |n: usize| {
        let values: Vec<String> = columns
            .iter()
            .map(|(of, values)| match values.get(n) {
                Some(value) => format!("({value})::{of}"),
                None if of.starts_with("short") => "'x'".to_owned(),
                None => "NULL".to_owned(),
            })
            .collect();
        format!("INSERT INTO {table} VALUES ({}, {});", first + n, values.join(", "))
    };
    (0..=most).map(row).collect::<Vec<_>>().join("\n")
}

/// What happens while it is followed: every value again, and every value moved to another row.
fn changes(table: &str, columns: &Columns<'_>) -> Vec<String> {
    let most = columns.iter().map(|(_, values)| values.len()).max().unwrap_or_default();
    let all: Vec<String> = (0..columns.len()).map(|n| format!("c{n} = other.c{n}")).collect();
    vec![
        rows(table, 100, columns),
        format!(
            "UPDATE {table} t SET {} FROM {table} other WHERE other.id = 100 + ({most} - t.id) AND t.id < 100",
            all.join(", ")
        ),
        format!("UPDATE {table} SET id = id + 1000 WHERE id > 100 AND id % 2 = 0"),
        format!("DELETE FROM {table} WHERE id IN (0, 2, 101)"),
    ]
}

/// Every value's text, as this test's own session writes it: row, column, text.
async fn texts(client: &SqlClient, table: &str, columns: usize) -> Vec<(i32, usize, Option<String>)> {
    let list: Vec<String> = (0..columns).map(|n| format!("c{n}::text")).collect();
    let sql = format!("SELECT id, ARRAY[{}] FROM public.{table}", list.join(", "));
    let rows = client.query("reading all values", &sql, &[]).await.expect("the table's rows");
    let mut texts = Vec::new();
    for row in rows {
        let values: Vec<Option<String>> = row.get(1).unwrap();
        texts.extend(values.into_iter().enumerate().map(|(n, value)| (row.get(0).unwrap(), n, value)));
    }
    texts.sort();
    texts
}

async fn assert_same(database: &Database, table: &str, columns: &Columns<'_>) {
    let there = texts(&database.source, table, columns.len()).await;
    let here = texts(&database.destination, table, columns.len()).await;
    assert!(there.len() > 5 * columns.len(), "{table} has rows");
    let mut found = here.iter();
    for expected in &there {
        let of = columns[expected.1].0;
        assert_eq!(Some(expected), found.next(), "table {table}, a {of}: expected, and found (row, column, text)");
    }
    assert_eq!(found.next(), None, "{table} has more rows");
}

/// A database of a server encoding, with settings of its own.
async fn odd_databases(name: &str, encoding: &str, odd: bool) -> Database {
    let name = format!("{name}_{:06x}", fastrand::u32(..0x100_0000));
    let ends = [(source().await, encoding, ODD_SOURCE), (destination().await, "UTF8", ODD_DESTINATION)];
    for (cluster, encoding, settings) in ends {
        let admin = cluster.connect("postgres").await.expect("the cluster answers");
        let create =
            format!("CREATE DATABASE {name} ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0");
        admin.script("creating a database", &create).await.expect("a new database");
        for (setting, value) in settings.iter().filter(|_| odd) {
            let set = format!("ALTER DATABASE {name} SET {setting} = {value}");
            admin.script("setting a database up", &set).await.expect("a setting");
        }
    }
    let database = Database::existing(&name).await;
    for client in [&database.source, &database.destination] {
        // The test's own sessions write and compare values in one way.
        let set = "SET search_path = public; SET client_encoding = UTF8; SET bytea_output = hex; SET xmloption = content;
                   SET lc_monetary = 'C'; SET standard_conforming_strings = on; SET array_nulls = on; SET DateStyle = ISO, YMD;
                   SET default_transaction_isolation = 'read committed';
                   SET quote_all_identifiers = off";
        client.script("setting a session up", set).await.expect("settings");
    }
    database
}

/// Whether the source's values come in binary.
async fn travels_in_binary(database: &Database) -> bool {
    let sql = "SELECT query FROM pg_stat_activity WHERE backend_type = 'walsender' AND datname = current_database()";
    let command = eventually("the walsender streams", || async {
        let row = database.source.query_opt("looking at the walsender", sql, &[]).await.expect("an answer")?;
        row.get::<Option<String>>(0).unwrap().filter(|query| query.starts_with("START_REPLICATION"))
    })
    .await;
    command.contains("binary")
}

async fn follows_all_values(name: &str, encoding: &str, odd: bool, prelude: &str, columns: &Columns<'_>, binary: bool) {
    let mut database = odd_databases(name, encoding, odd).await;
    database.tables = vec!["keyed".to_owned(), "whole".to_owned()];
    if prelude.contains("pair") {
        // OIDs of user types differ between the servers.
        database.at_destination("CREATE TYPE spare AS ENUM ('a'); CREATE TYPE other AS (a int);").await;
    }
    if prelude.contains("AS RANGE") {
        database.at_destination(prelude).await;
    }
    database.at_source(prelude).await;
    let mut columns = possible(&database, columns).await;
    if binary && !intervals_are_alike(&database).await {
        columns.retain(|(of, _)| !of.starts_with("interval"));
    }
    let binary = binary && same_versions(&database).await;
    if !binary && (database.source_major().await < 15) != (database.destination_major().await < 15) {
        // 15 gave its text other escapes.
        columns.retain(|(of, _)| *of != "\"char\"");
    }
    let columns = &columns;
    for (table, keyed) in [("keyed", true), ("whole", false)] {
        database.at_source(&script(table, keyed, columns)).await;
    }
    let service = Setup::of(&database).start();
    service.streams().await;
    assert_eq!(travels_in_binary(&database).await, binary);
    for table in ["keyed", "whole"] {
        assert_same(&database, table, columns).await;
        for change in changes(table, columns) {
            database.at_source(&change).await;
        }
    }
    database.caught_up().await;
    for table in ["keyed", "whole"] {
        assert_same(&database, table, columns).await;
    }
    service.stop().await;
    // What is there can be made equal again, value by value.
    database.at_destination("DELETE FROM keyed WHERE id % 3 = 0; UPDATE keyed SET c3 = 7; INSERT INTO whole SELECT * FROM whole LIMIT 3").await;
    let service = Setup::of(&database).argument("--resnapshot").start();
    service.streams().await;
    for table in ["keyed", "whole"] {
        assert_same(&database, table, columns).await;
    }
    service.stop().await;
}

fn all(parts: &[&[(&'static str, &'static [&'static str])]]) -> Columns<'static> {
    parts.iter().flat_map(|part| part.iter().copied()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_value_of_every_built_in_type_arrives_in_binary() {
    let columns = all(&[BUILT_IN, NAMED_COLUMNS]);
    follows_all_values("binary", "UTF8", true, NAMED, &columns, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn types_of_extensions_arrive_in_binary() {
    let columns = all(&[&BUILT_IN[..5], OF_EXTENSIONS]);
    follows_all_values("extensions", "UTF8", true, NAMED, &columns, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_composed_of_a_servers_own_types_arrives_in_binary() {
    let columns = all(&[&BUILT_IN[..5], NAMED_COLUMNS, COMPOSED_COLUMNS]);
    follows_all_values("composed", "UTF8", true, &format!("{NAMED}{COMPOSED}"), &columns, true).await;
    let columns = all(&[&BUILT_IN[..5], NAMED_COLUMNS, COMPOSED_COLUMNS, RANGE_COLUMNS]);
    follows_all_values("ranges", "UTF8", true, &format!("{NAMED}{COMPOSED}{RANGES}"), &columns, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_value_of_every_type_arrives_as_text() {
    let columns = all(&[BUILT_IN, NAMED_COLUMNS, COMPOSED_COLUMNS, AS_TEXT_COLUMNS, OF_EXTENSIONS]);
    follows_all_values("astext", "UTF8", true, &format!("{NAMED}{COMPOSED}"), &columns, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_latin1_source_fills_a_utf8_destination_in_binary() {
    let columns = all(&[BUILT_IN, NAMED_COLUMNS]);
    follows_all_values("latin1", "LATIN1", true, NAMED, &columns, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_latin1_source_fills_a_utf8_destination_as_text() {
    let columns = all(&[BUILT_IN, NAMED_COLUMNS, COMPOSED_COLUMNS, AS_TEXT_COLUMNS]);
    follows_all_values("latintext", "LATIN1", true, &format!("{NAMED}{COMPOSED}"), &columns, false).await;
}

/// Each type of docs/types.md, and how it travels according to that page.
fn types_of_the_page() -> Vec<(String, bool)> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/types.md");
    let page = std::fs::read_to_string(path).expect("docs/types.md");
    let rows = page.lines().filter(|line| line.ends_with("| in binary |") || line.ends_with("| as text |"));
    rows.flat_map(|row| {
        let binary = row.ends_with("| in binary |");
        let types = row.split('|').nth(2).unwrap_or_default().to_owned();
        types.split('`').skip(1).step_by(2).map(|name| (name.to_owned(), binary)).collect::<Vec<_>>()
    })
    .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_says_of_each_type_how_it_travels() {
    let types = types_of_the_page();
    assert!(types.len() > 60, "{types:?}");
    let columns: Vec<String> =
        types.iter().enumerate().map(|(number, (name, _))| format!("c{number} {name}")).collect();
    let schema = format!(
        "CREATE EXTENSION citext; CREATE EXTENSION hstore; CREATE EXTENSION seg; CREATE TYPE headwater_mood AS ENUM ('ok');
         CREATE TYPE headwater_moods AS RANGE (SUBTYPE = headwater_mood);
         CREATE DOMAIN headwater_positive AS int CHECK (VALUE > 0); CREATE TYPE headwater_pair AS (a int, b text);
         CREATE TABLE t (id int PRIMARY KEY, {})",
        columns.join(", ")
    );
    let database = Database::new("travels", &["t"], &schema).await;
    let tables = [headwater::pg::QualifiedName::new("public", "t")];
    let source = headwater::source::SourceCatalog::read(&database.source, &tables).await.expect("the table");
    let table = &source.tables[0];
    let end = headwater::catalog::fit::End { table: &table.definition, types: &source.types };
    let as_text = headwater::catalog::fit::text_columns(end, &table.published(), end, &source.types);
    let as_text: Vec<&str> = as_text.iter().map(|(column, _)| column.as_str()).collect();
    for (number, (name, binary)) in types.iter().enumerate() {
        let text = as_text.contains(&format!("c{number}").as_str());
        assert_eq!(!text, *binary, "docs/types.md is wrong about {name}");
    }
}

//! What a publication sends of a table, as the catalogs say it, against what the server's own view says: publications of every kind over
//! partitions of several levels and schemas, drawn by chance.

use std::collections::BTreeMap;

use fastrand::Rng;
use headwater::pg::{Ident, RelationId};
use headwater::source::published_tables;

use crate::support::{Database, Script, seed};

const CATALOGS: &str = include_str!("../../sql/published_tables.sql");

/// Plain tables, trees whose members are in the other schema, a table with generated columns, and tables that are never published.
const SCHEMA: &str = "
    CREATE SCHEMA one; CREATE SCHEMA two;
    CREATE TABLE one.plain (id int PRIMARY KEY, a text, b text); CREATE TABLE two.plain (id int PRIMARY KEY, a text, b text);
    CREATE TABLE one.gen (id int PRIMARY KEY, a int, g int GENERATED ALWAYS AS (a * 2) STORED);
    CREATE TABLE two.dropped (id int PRIMARY KEY, gone int, a text); ALTER TABLE two.dropped DROP COLUMN gone;
    CREATE TABLE one.tree (id int PRIMARY KEY, a text, b text) PARTITION BY RANGE (id);
    CREATE TABLE one.tree_1 PARTITION OF one.tree FOR VALUES FROM (0) TO (10);
    CREATE TABLE two.tree_2 PARTITION OF one.tree FOR VALUES FROM (10) TO (20);
    CREATE TABLE two.branch PARTITION OF one.tree FOR VALUES FROM (20) TO (40) PARTITION BY RANGE (id);
    CREATE TABLE one.branch_1 PARTITION OF two.branch FOR VALUES FROM (20) TO (30);
    CREATE TABLE two.branch_2 PARTITION OF two.branch FOR VALUES FROM (30) TO (40);
    CREATE TABLE two.alone (id int PRIMARY KEY, a text, b text) PARTITION BY RANGE (id);
    CREATE TABLE one.parent (id int PRIMARY KEY, a text, b text); CREATE TABLE two.child () INHERITS (one.parent);
    CREATE UNLOGGED TABLE one.unlogged (id int PRIMARY KEY); CREATE VIEW two.seen AS SELECT 1 AS id;
    CREATE TABLE two.leaving (id int PRIMARY KEY, a text, b text) PARTITION BY RANGE (id);
    CREATE TABLE one.leaving_1 PARTITION OF two.leaving FOR VALUES FROM (0) TO (10);
    CREATE TABLE two.leaving_2 PARTITION OF two.leaving FOR VALUES FROM (10) TO (20);";

/// As a DETACH CONCURRENTLY leaves it that was cancelled while it waited.
const PENDING: &str = "UPDATE pg_inherits SET inhdetachpending = true WHERE inhrelid = 'one.leaving_1'::regclass";

/// Servers from 18 on have none.
const UNLOGGED_ROOT: &str =
    "CREATE UNLOGGED TABLE one.root (id int PRIMARY KEY, a text, b text) PARTITION BY RANGE (id);
    CREATE TABLE two.root_1 PARTITION OF one.root FOR VALUES FROM (0) TO (10)";

const NAMED: &[&str] = &[
    "one.plain",
    "two.plain",
    "one.gen",
    "two.dropped",
    "one.tree",
    "one.tree_1",
    "two.tree_2",
    "two.branch",
    "one.branch_1",
    "two.branch_2",
    "two.alone",
    "one.parent",
    "ONLY one.parent",
    "two.child",
    "two.leaving",
    "one.leaving_1",
    "two.leaving_2",
];

/// A publication by its SQL; some are none that the server takes.
fn publication(rng: &mut Rng, major: u32) -> String {
    let table = |rng: &mut Rng, lists: bool| {
        let name = NAMED[rng.usize(..NAMED.len())];
        let columns = if lists && rng.u32(..4) == 0 { " (a, id)" } else { "" };
        let filter = if lists && rng.u32(..4) == 0 { " WHERE (id > 3)" } else { "" };
        format!("{name}{columns}{filter}")
    };
    let tables = |rng: &mut Rng, lists: bool| {
        let tables: Vec<String> = (0..rng.usize(1..5)).map(|_| table(rng, lists)).collect();
        format!("TABLE {}", tables.join(", "))
    };
    let schemas = |rng: &mut Rng| format!("TABLES IN SCHEMA {}", ["one", "two", "one, two"][rng.usize(..3)]);
    let of = match rng.u32(..8) {
        0 => "FOR ALL TABLES".to_owned(),
        1 => format!("FOR {}", schemas(rng)),
        2 => format!("FOR {}, {}", tables(rng, false), schemas(rng)),
        3 => String::new(),
        _ => format!("FOR {}", tables(rng, true)),
    };
    let mut options = vec![format!("publish_via_partition_root = {}", rng.bool())];
    if major >= 18 && rng.bool() {
        options.push("publish_generated_columns = stored".to_owned());
    }
    format!("CREATE PUBLICATION drawn {of} WITH ({})", options.join(", "))
}

/// Names of columns and row filter, by table.
type Sent = BTreeMap<u32, (Vec<String>, Option<String>)>;

#[tokio::test(flavor = "multi_thread")]
async fn what_the_catalogs_say_of_a_publication_is_what_the_server_says() {
    let seed = seed("published");
    let mut rng = Rng::with_seed(seed);
    let database = Database::new("publishedtables", &[], SCHEMA).await;
    let version = database.source_value("SELECT current_setting('server_version_num')").await.expect("a version");
    let major = version.parse::<u32>().expect("a number") / 10_000;
    if !(15..=18).contains(&major) {
        return;
    }
    database.at_source(PENDING).await;
    if major < 18 {
        database.at_source(UNLOGGED_ROOT).await;
    }
    let ids = "SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname IN ('one', 'two') AND c.relkind <> 'i'";
    let ids = database.source.query("tables", ids, &[]).await.expect("rows");
    let ids: Vec<u32> = ids.iter().map(|row| row.get(0).expect("an OID")).collect();
    let view = "SELECT c.oid, t.attnames::text[], t.rowfilter FROM pg_publication_tables t
                JOIN pg_namespace n ON n.nspname = t.schemaname JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = t.tablename
                WHERE t.pubname = $1";
    let (mut taken, mut sent, mut listed) = (0, 0, 0);
    for _ in 0..400 {
        let create = publication(&mut rng, major);
        if database.source.script("a publication", &create).await.is_err() {
            continue;
        }
        taken += 1;
        let read = |rows: Vec<headwater::session::Row>| -> Sent {
            let of = |row: &headwater::session::Row| (row.get(0).unwrap(), (row.get(1).unwrap(), row.get(2).unwrap()));
            rows.iter().map(of).collect()
        };
        let mut expected = read(database.source.query("the view", view, &[&"drawn"]).await.expect("rows"));
        if major == 15 {
            // They are listed there and never sent.
            expected.values_mut().for_each(|(columns, _)| columns.retain(|column| column != "g"));
        }
        let found = read(database.source.query("the catalogs", CATALOGS, &[&"drawn", &ids]).await.expect("rows"));
        assert_eq!(found, expected, "HEADWATER_SEED={seed}: {create}");
        sent += found.len();
        listed += found.values().filter(|(columns, filter)| columns.len() == 2 || filter.is_some()).count();
        let asked = published_tables(&database.source, &Ident::new("drawn"), ids.iter().copied().map(RelationId))
            .await
            .expect("an answer");
        let mut asked: Vec<u32> = asked.keys().map(|id| id.0).collect();
        asked.sort_unstable();
        assert_eq!(asked, found.keys().copied().collect::<Vec<_>>(), "HEADWATER_SEED={seed}: {create}");
        database.at_source("DROP PUBLICATION drawn").await;
    }
    assert!(
        taken > 100 && sent > 200 && listed > 20,
        "{taken} publications, {sent} tables, {listed} with a list or a filter"
    );
}

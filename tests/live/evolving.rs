//! Random schema changes among random writes, from a seed: after each transaction both sides have the same columns and rows,
//! by themselves or by a copy.

use fastrand::Rng;

use crate::support::suspension::all_live;
use crate::support::{Database, Setup, seed};

/// What the test knows of a column at the source.
#[derive(Clone, Debug)]
struct Column {
    name: String,
    /// `varchar(length)`; otherwise an int.
    length: Option<u32>,
    not_null: bool,
    /// A schema change of this transaction has touched it. The catalog tells only what becomes of it in the end.
    touched: bool,
}

struct Table {
    name: &'static str,
    columns: Vec<Column>,
    names: u32,
}

impl Table {
    fn new(name: &'static str) -> Table {
        let column = |name: &str, length| Column { name: name.to_owned(), length, not_null: false, touched: false };
        Table { name, columns: vec![column("v", Some(10)), column("n", None)], names: 0 }
    }

    fn new_name(&mut self) -> String {
        self.names += 1;
        // A name that must be quoted, now and then.
        if self.names.is_multiple_of(3) { format!("\"C {}\"", self.names) } else { format!("c{}", self.names) }
    }

    fn value(column: &Column, rng: &mut Rng) -> String {
        match column.length {
            _ if !column.not_null && rng.u32(..5) == 0 => "NULL".to_owned(),
            Some(length) => format!("'{}'", "xyz".repeat(5).get(..rng.usize(..length.min(15) as usize)).unwrap_or("")),
            None => rng.i32(..).to_string(),
        }
    }

    fn write(&self, rng: &mut Rng) -> String {
        let (name, id) = (self.name, rng.u32(..60));
        let columns: Vec<&str> = self.columns.iter().map(|column| column.name.as_str()).collect();
        match rng.u32(..10) {
            0..4 => {
                let values: Vec<String> = self.columns.iter().map(|column| Table::value(column, rng)).collect();
                let (columns, values) = (columns.join(", "), values.join(", "));
                let comma = if columns.is_empty() { "" } else { ", " };
                format!("INSERT INTO {name} (id{comma}{columns}) VALUES ({id}{comma}{values}) ON CONFLICT DO NOTHING")
            }
            4..8 if !self.columns.is_empty() => {
                let column = rng.choice(&self.columns).expect("a column");
                let value = Table::value(column, rng);
                format!("UPDATE {name} SET {} = {value} WHERE id BETWEEN {id} AND {id} + 5", column.name)
            }
            // Its new key may be there already, since an earlier row of this key was moved.
            4..9 => format!(
                "UPDATE {name} SET id = id + 1000 WHERE id = {id} AND NOT EXISTS (SELECT FROM {name} WHERE id = {id} + 1000)"
            ),
            _ => format!("DELETE FROM {name} WHERE id = {id}"),
        }
    }

    /// A schema change; `None` when there is nothing to change that this transaction has not touched.
    fn change(&mut self, rng: &mut Rng) -> Option<String> {
        let table = self.name;
        let free: Vec<usize> = (0..self.columns.len()).filter(|at| !self.columns[*at].touched).collect();
        let kind = rng.u32(..10);
        if kind < 4 || free.is_empty() {
            let name = self.new_name();
            let length = rng.bool().then(|| rng.u32(3..12));
            let kind = length.map_or("int".to_owned(), |length| format!("varchar({length})"));
            let default = match (length, rng.u32(..3)) {
                (_, 0) => None,
                (Some(_), _) => Some("'d'"),
                (None, _) => Some("7"),
            };
            let not_null = default.is_some() && rng.bool();
            self.columns.push(Column { name: name.clone(), length, not_null, touched: true });
            let default = default.map(|default| format!(" DEFAULT {default}")).unwrap_or_default();
            let not_null = if not_null { " NOT NULL" } else { "" };
            return Some(format!("ALTER TABLE {table} ADD COLUMN {name} {kind}{default}{not_null}"));
        }
        let at = *rng.choice(&free)?;
        if kind == 4 && self.columns.len() > 2 {
            let dropped = self.columns.remove(at);
            return Some(format!("ALTER TABLE {table} DROP COLUMN {}", dropped.name));
        }
        let new_name = self.new_name();
        let column = &mut self.columns[at];
        column.touched = true;
        let name = column.name.clone();
        Some(match (kind, column.length, column.not_null) {
            (5 | 6, _, _) => {
                column.name = new_name.clone();
                format!("ALTER TABLE {table} RENAME COLUMN {name} TO {new_name}")
            }
            (7, Some(length), _) => {
                column.length = Some(length + 5);
                format!("ALTER TABLE {table} ALTER COLUMN {name} TYPE varchar({})", length + 5)
            }
            (8, _, true) => {
                column.not_null = false;
                format!("ALTER TABLE {table} ALTER COLUMN {name} DROP NOT NULL")
            }
            (_, _, _) => format!("CREATE UNIQUE INDEX ON {table} (id, {name})"),
        })
    }

    fn rows(&self) -> String {
        let columns: Vec<&str> = self.columns.iter().map(|column| column.name.as_str()).collect();
        let comma = if columns.is_empty() { "" } else { ", " };
        format!("SELECT string_agg(ROW(id{comma}{})::text, ';' ORDER BY id) FROM {}", columns.join(", "), self.name)
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn random_schema_changes_among_random_writes_are_followed() {
    let seed = seed("random_schema_changes");
    let mut rng = Rng::with_seed(seed);
    let database = Database::new(
        "evolving",
        &["one", "two"],
        "CREATE TABLE one (id int PRIMARY KEY, v varchar(10), n int); CREATE TABLE two (id int PRIMARY KEY, v varchar(10), n int);
         INSERT INTO one SELECT i, 'v', i FROM generate_series(1, 50) i; INSERT INTO two SELECT i, 'v', i FROM generate_series(1, 50) i;",
    )
    .await;
    let mut tables = [Table::new("one"), Table::new("two")];
    let mut service = Setup::of(&database).start();
    service.streams().await;
    for round in 0..20 {
        let mut script = vec!["BEGIN".to_owned()];
        for _ in 0..rng.usize(1..12) {
            let table = &mut tables[rng.usize(..2)];
            match rng.u32(..10) {
                0..3 => script.extend(table.change(&mut rng)),
                // What is rolled back leaves nothing behind.
                3 => script.push(format!("SAVEPOINT s; {}; ROLLBACK TO s", table.write(&mut rng))),
                _ => script.push(table.write(&mut rng)),
            }
        }
        script.push("COMMIT".to_owned());
        let script = script.join(";\n");
        database.at_source(&script).await;
        // Whatever the transaction ended with, each table is described once more.
        for table in ["one", "two"] {
            let twice = format!("INSERT INTO {table} (id) VALUES (9999); DELETE FROM {table} WHERE id = 9999");
            database.at_source(&twice).await;
        }
        database.caught_up().await;
        // Where a column was dropped and another one added, the names may not tell which is which: the table is copied.
        all_live(&database).await;
        database.caught_up().await;
        for table in &mut tables {
            let rows = table.rows();
            let (there, here) = (database.source_value(&rows).await, database.destination_value(&rows).await);
            assert_eq!(there, here, "table {} after round {round} of seed {seed}:\n{script}", table.name);
            table.columns.iter_mut().for_each(|column| column.touched = false);
        }
        if round % 7 == 6 {
            service.kill();
            service = Setup::of(&database).start();
            service.streams().await;
        }
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn what_depends_on_a_column_of_a_table_is_named_with_what_takes_it_away() {
    let schema = "CREATE TABLE t (id int PRIMARY KEY, v int, w varchar(3)); INSERT INTO t VALUES (1, 1, 'a'); CREATE TABLE other (id int PRIMARY KEY)";
    let database = Database::of_superuser("evolve_dependants", &["t", "other"], schema).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database
        .at_destination(
            "CREATE SCHEMA theirs; CREATE TABLE theirs.x (id int); CREATE VIEW theirs.v AS SELECT w, v FROM t; CREATE VIEW theirs.a AS SELECT v FROM theirs.v;
             CREATE MATERIALIZED VIEW theirs.m AS SELECT w FROM theirs.v; CREATE RULE r AS ON DELETE TO theirs.x DO ALSO SELECT w, v FROM t;
             CREATE POLICY p ON theirs.x USING (EXISTS (SELECT FROM t WHERE w = 'a' AND v = 1));
             CREATE FUNCTION theirs.f(int, text) RETURNS bigint BEGIN ATOMIC SELECT count(*) FROM t WHERE w = 'a' AND v = 1; END",
        )
        .await;
    // In the stream.
    database.at_source("ALTER TABLE t ALTER COLUMN w TYPE varchar(5); INSERT INTO t VALUES (2, 2, 'abcde')").await;
    service.says("table public.t could not be changed as it was at the source").await;
    let statements = [
        "DROP MATERIALIZED VIEW theirs.m;",
        "DROP VIEW theirs.a;",
        "DROP FUNCTION theirs.f(integer,pg_catalog.text);",
        "DROP POLICY p ON theirs.x;",
        "DROP RULE r ON theirs.x;",
        "DROP VIEW theirs.v;",
    ];
    let printed = || {
        let log = service.log();
        let (_, hint) = log.rsplit_once("as their owner or a superuser:").expect("a hint");
        let printed: Vec<String> = hint.lines().skip(1).map(|line| line.trim().to_owned()).collect();
        printed.into_iter().take_while(|line| line.ends_with(';')).collect::<Vec<String>>()
    };
    assert_eq!(printed(), statements);
    database.at_destination(&printed().join("\n")).await;
    service.streams().await;
    database.assert_catches_up().await;
    // Before a copy; the others stream on.
    database.at_destination("CREATE VIEW theirs.late AS SELECT v FROM t").await;
    database
        .at_source(
            "ALTER TABLE t ALTER COLUMN v TYPE bigint; INSERT INTO t VALUES (3, 3); INSERT INTO other VALUES (1)",
        )
        .await;
    service.says("table public.t could not be brought to the source's shape").await;
    assert_eq!(printed(), ["DROP VIEW theirs.late;"]);
    database.at_destination(&printed().join("\n")).await;
    all_live(&database).await;
    database.assert_catches_up().await;
    service.stop().await;
}

/// Objects at random over table t and those made before, of every kind that a role can make which may only use the schema.
fn dependants_at_random(random: &mut Rng) -> Vec<String> {
    let mut made = vec!["t".to_owned()];
    let mut script = vec!["CREATE TABLE theirs.x (id int)".to_owned()];
    for number in 0..3 + random.usize(..9) {
        let relation = made[random.usize(..made.len())].clone();
        let over = made[random.usize(..made.len())].clone();
        let name = format!("theirs.n{number}");
        match random.usize(..11) {
            0..=2 => {
                script.push(format!("CREATE VIEW {name} AS SELECT w, {number} AS n FROM {relation}"));
                made.push(name);
            }
            3 => {
                script.push(format!("CREATE MATERIALIZED VIEW {name} AS SELECT a.w FROM {relation} a JOIN {over} b ON a.w = b.w"));
                made.push(name);
            }
            4 => script.push(format!("CREATE RULE n{number} AS ON DELETE TO theirs.x DO ALSO SELECT w FROM {relation}")),
            5 if over.starts_with("theirs") && !script.iter().any(|made| made.contains(&format!("MATERIALIZED VIEW {over} "))) => {
                script.push(format!("CREATE RULE n{number} AS ON INSERT TO {over} DO INSTEAD SELECT w FROM {relation}"));
            }
            5 | 6 => script.push(format!("CREATE POLICY n{number} ON theirs.x USING (EXISTS (SELECT FROM {relation} WHERE w = 'a'))")),
            7 => script.push(format!(
                "CREATE FUNCTION {name}(text) RETURNS bigint BEGIN ATOMIC SELECT count(*) FROM {relation} a JOIN {over} b ON a.w = b.w; END"
            )),
            8 => {
                script.push(format!("CREATE FUNCTION {name}() RETURNS SETOF {relation} LANGUAGE plpgsql AS 'BEGIN RETURN; END'"));
                script.push(format!("CREATE VIEW {name}v AS SELECT w FROM {name}()"));
                made.push(format!("{name}v"));
            }
            9 => {
                script.push(format!("CREATE VIEW {name} AS SELECT a, w FROM {relation} a"));
                script.push(format!("CREATE TABLE {name}t (c {name}, w text)"));
                made.extend([name.clone(), format!("{name}t")]);
            }
            _ => {
                script.push(format!("CREATE TYPE {name} AS (c {relation}); CREATE DOMAIN {name}d AS {name}[]"));
                script.push(format!("CREATE TABLE {name}t (d {name}d, w text)"));
            }
        }
    }
    script
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn what_depends_on_a_table_however_nested_goes_by_what_is_printed_in_its_order() {
    let schema = "CREATE TABLE t (id int PRIMARY KEY, w varchar(3)); INSERT INTO t VALUES (1, 'a')";
    let database = Database::of_superuser("evolve_nested", &["t"], schema).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    let seed = seed("nested");
    let mut random = Rng::with_seed(seed);
    for round in 0..12 {
        let script = dependants_at_random(&mut random);
        println!("round {round} of seed {seed}:\n{}", script.join(";\n"));
        database.at_destination(&format!("CREATE SCHEMA theirs; {}", script.join("; "))).await;
        let hints = service.log().matches("as their owner or a superuser:").count();
        database
            .at_source(&format!(
                "ALTER TABLE t ALTER COLUMN w TYPE varchar({0}); INSERT INTO t VALUES ({0}, 'b')",
                4 + round
            ))
            .await;
        let width = "SELECT atttypmod::text FROM pg_attribute WHERE attrelid = 't'::regclass AND attname = 'w'";
        let wanted = (8 + round).to_string();
        let refused = crate::support::eventually("the change or a hint", || async {
            let is_hinted = service.log().matches("as their owner or a superuser:").count() > hints;
            let is_followed = database.destination_value(width).await.as_deref() == Some(wanted.as_str());
            (is_hinted || is_followed).then_some(!is_followed)
        })
        .await;
        if refused {
            let log = service.log();
            let (_, hint) = log.rsplit_once("as their owner or a superuser:").expect("a hint");
            let printed = hint.lines().skip(1).map(str::trim).take_while(|line| line.ends_with(';'));
            let printed: Vec<&str> = printed.collect();
            println!("{}", printed.join("\n"));
            database.at_destination(&printed.join("\n")).await;
        }
        database.caught_up().await;
        assert!(
            database.destination_value(width).await.as_deref() == Some(wanted.as_str()),
            "the column has not changed"
        );
        database.at_destination("DROP SCHEMA theirs CASCADE").await;
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_column_of_a_tables_row_type_is_named_with_what_takes_it_away() {
    let schema = "CREATE TABLE t (id int PRIMARY KEY, v int, w varchar(3)); INSERT INTO t VALUES (1, 1, 'a'); CREATE TABLE other (id int PRIMARY KEY)";
    let database = Database::new("evolve_rowtype", &["t", "other"], schema).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database
        .at_destination(
            "CREATE SCHEMA theirs; CREATE TYPE theirs.pair AS (a t, b int); CREATE DOMAIN theirs.many AS t[];
             CREATE TABLE theirs.x (id int, c t, p theirs.pair[], m theirs.many); CREATE MATERIALIZED VIEW theirs.y AS SELECT c FROM theirs.x",
        )
        .await;
    let take = "ALTER TABLE theirs.x DROP COLUMN p;";
    // In the stream.
    database.at_source("ALTER TABLE t ALTER COLUMN w TYPE varchar(5); INSERT INTO t VALUES (2, 2, 'abcde')").await;
    service.says("table public.t could not be changed as it was at the source").await;
    for said in [
        "ALTER TABLE theirs.x DROP COLUMN c;",
        take,
        "ALTER TABLE theirs.x DROP COLUMN m;",
        "DROP MATERIALIZED VIEW theirs.y;",
    ] {
        service.says(said).await;
    }
    let drop = "DROP MATERIALIZED VIEW theirs.y; ALTER TABLE theirs.x DROP COLUMN c, DROP COLUMN m;";
    database.at_destination(&format!("{drop} {take}")).await;
    service.streams().await;
    database.assert_catches_up().await;
    // Before a copy, of which no row is read before; the others stream on.
    database.at_destination("ALTER TABLE theirs.x ADD COLUMN late t[]").await;
    database
        .at_source(
            "ALTER TABLE t ALTER COLUMN v TYPE bigint; INSERT INTO t VALUES (3, 3); INSERT INTO other VALUES (1)",
        )
        .await;
    service.says("table public.t could not be brought to the source's shape").await;
    service.says("ALTER TABLE theirs.x DROP COLUMN late;").await;
    let rows = "SELECT count(*)::text FROM other";
    crate::support::eventually("the other table streams on", || async {
        (database.destination_value(rows).await.as_deref() == Some("1")).then_some(())
    })
    .await;
    database.at_destination("ALTER TABLE theirs.x DROP COLUMN late").await;
    all_live(&database).await;
    database.assert_catches_up().await;
    service.stop().await;
}

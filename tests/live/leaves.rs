//! Partitions that come and go: between two looks at the catalog, while headwater is down, without rows, and in any order.
//!
//! TRUNCATE and DROP of a partition come through no root, so the rows that the stream has brought before would stay.

use fastrand::Rng;

use crate::support::database::partitioned_table;
use crate::support::pause::Pause;
use crate::support::suspension::all_live;
use crate::support::{Database, Service, Setup, eventually, seed, source};

/// Creates a tree's second leaf as its partition.
fn create(name: &str) -> String {
    format!("CREATE TABLE {name}_2 PARTITION OF {name} FOR VALUES FROM (10) TO (20);")
}

/// Creates it as a table of its own.
fn alone(name: &str) -> String {
    format!("CREATE TABLE {name}_2 (LIKE {name} INCLUDING ALL);")
}

fn attach(name: &str) -> String {
    format!("ALTER TABLE {name} ATTACH PARTITION {name}_2 FOR VALUES FROM (10) TO (20);")
}

fn detach(name: &str) -> String {
    format!("ALTER TABLE {name} DETACH PARTITION {name}_2;")
}

fn fill(name: &str, from: u32) -> String {
    format!("INSERT INTO {name} SELECT i, 'came' FROM generate_series({from}, {}) i;", from + 1)
}

/// What is done to each table, statement by statement; what stands in braces is one transaction.
fn passing() -> Vec<(&'static str, String)> {
    vec![
        ("dropped", format!("{} {} DROP TABLE dropped_2;", create("dropped"), fill("dropped", 10))),
        ("truncated", format!("{} {} TRUNCATE truncated_2;", create("truncated"), fill("truncated", 10))),
        (
            "refilled",
            format!("{} {} TRUNCATE refilled_2; {}", create("refilled"), fill("refilled", 10), fill("refilled", 12)),
        ),
        // Its keys come again.
        (
            "rewritten",
            format!(
                "{} {} TRUNCATE rewritten_2; INSERT INTO rewritten VALUES (10, 'another');",
                create("rewritten"),
                fill("rewritten", 10)
            ),
        ),
        (
            "detached",
            format!("{} {} {} DROP TABLE detached_2;", create("detached"), fill("detached", 10), detach("detached")),
        ),
        ("at_once", format!("{{{} {} TRUNCATE at_once_2;}}", create("at_once"), fill("at_once", 10))),
        (
            "attached",
            format!("{} {} {} DROP TABLE attached_2;", alone("attached"), attach("attached"), fill("attached", 10)),
        ),
        (
            "again",
            format!(
                "{} {} {} {} DELETE FROM again_2; {}",
                alone("again"),
                attach("again"),
                fill("again", 10),
                detach("again"),
                attach("again")
            ),
        ),
        (
            "replaced",
            format!(
                "{} {} DROP TABLE replaced_2; {} {}",
                create("replaced"),
                fill("replaced", 10),
                create("replaced"),
                fill("replaced", 12)
            ),
        ),
        (
            "deep",
            format!(
                "CREATE TABLE deep_2 PARTITION OF deep FOR VALUES FROM (10) TO (20) PARTITION BY RANGE (id);
                 CREATE TABLE deep_3 PARTITION OF deep_2 FOR VALUES FROM (10) TO (15); {} DROP TABLE deep_2;",
                fill("deep", 10)
            ),
        ),
    ]
}

/// Runs statements, each in a transaction of its own unless it stands in braces.
async fn run(database: &Database, statements: &str) {
    for (at, part) in statements.split(['{', '}']).enumerate() {
        match at % 2 == 1 {
            true => database.at_source(&format!("BEGIN; {part} COMMIT")).await,
            false => {
                for statement in part.split_inclusive(';').filter(|statement| !statement.trim().is_empty()) {
                    database.at_source(statement).await;
                }
            }
        }
    }
}

async fn passing_trees(name: &str) -> (Database, Vec<(&'static str, String)>) {
    let changes = passing();
    let tables: Vec<&str> = changes.iter().map(|(table, _)| *table).collect();
    let schema: Vec<String> = tables.iter().map(|table| partitioned_table(table)).collect();
    (Database::new(name, &tables, &schema.concat()).await, changes)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn partitions_that_came_and_went_while_headwater_was_down_leave_no_rows() {
    let (database, changes) = passing_trees("passingdown").await;
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    database.caught_up().await;
    service.stop().await;
    for (_, change) in &changes {
        run(&database, change).await;
    }
    // So that the file has no block left.
    database.at_source("VACUUM (TRUNCATE) again_2").await;
    let service = setup.start();
    for (table, _) in &changes {
        database.becomes_equal(table).await;
    }
    all_live(&database).await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn partitions_that_come_and_go_between_two_looks_leave_no_rows() {
    let (database, changes) = passing_trees("passinglive").await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database.caught_up().await;
    for (_, change) in &changes {
        run(&database, change).await;
    }
    for (table, _) in &changes {
        database.becomes_equal(table).await;
    }
    all_live(&database).await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_partition_that_goes_once_its_rows_are_here_and_before_a_look_leaves_no_rows() {
    let database = Database::new("passingseen", &["t"], &partitioned_table("t")).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database.caught_up().await;
    // A look is just over, and the next one is ten seconds away.
    database.at_source("CREATE TABLE t_3 PARTITION OF t FOR VALUES FROM (20) TO (30)").await;
    is_seen_empty(&database, "t_3").await;
    run(&database, &format!("{} {}", create("t"), fill("t", 10))).await;
    database.assert_catches_up().await;
    database.at_source("DROP TABLE t_2").await;
    database.becomes_equal("t").await;
    all_live(&database).await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_one_transaction_creates_fills_and_empties_leaves_no_rows() {
    let database = Database::new("passingonce", &["t"], &partitioned_table("t")).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database.caught_up().await;
    run(&database, &format!("{{{} {} TRUNCATE t_2;}}", create("t"), fill("t", 10))).await;
    database.becomes_equal("t").await;
    all_live(&database).await;
    database.assert_catches_up().await;
    service.stop().await;
}

/// What one transaction does to a tree with rows in both leaves behind its TRUNCATE, and without a word of it in the stream.
fn emptied_behind_a_truncate() -> Vec<(&'static str, String)> {
    let load = |name: &str| format!("TRUNCATE {name}; INSERT INTO {name} VALUES (1, 'new'), (2, 'new'), (11, 'new');");
    let both = ["bare", "refill", "same", "twice", "saved", "later", "keyless", "filtered"];
    let behind = |name: &str| match name {
        "bare" => format!("{{{} TRUNCATE {name}_1;}}", load(name)),
        "refill" => format!("{{{} TRUNCATE {name}_1; INSERT INTO {name} VALUES (3, 'more');}}", load(name)),
        "same" | "keyless" => format!("{{{} TRUNCATE {name}_1; INSERT INTO {name} VALUES (2, 'new');}}", load(name)),
        "twice" => format!("{{{} TRUNCATE {name}_2; {} TRUNCATE {name}_1;}}", load(name), load(name)),
        "saved" => format!("{{SAVEPOINT a; {} RELEASE a; TRUNCATE {name}_1;}}", load(name)),
        "later" => format!("{{{} TRUNCATE {name}_1;}} INSERT INTO {name} VALUES (4, 'later');", load(name)),
        // A row that is held back follows.
        _ => format!("{{{} TRUNCATE {name}_1; INSERT INTO {name} VALUES (5, 'hidden');}}", load(name)),
    };
    both.into_iter().map(|name| (name, behind(name))).collect()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn partitions_emptied_behind_a_truncate_of_their_table_leave_no_rows() {
    let changes = emptied_behind_a_truncate();
    let tables: Vec<&str> = changes.iter().map(|(table, _)| *table).collect();
    let key = |name: &str| if name == "keyless" { "" } else { "PRIMARY KEY" };
    let schema = tables.iter().map(|name| {
        let tree = partitioned_table(name).replace("PRIMARY KEY", key(name)).replace("text)", "text NOT NULL)");
        let identity = match *name {
            "keyless" => "ALTER TABLE keyless REPLICA IDENTITY FULL; ALTER TABLE keyless_1 REPLICA IDENTITY FULL;",
            _ => "",
        };
        let leaf = create(name);
        let identity =
            identity.to_owned() + if *name == "keyless" { "ALTER TABLE keyless_2 REPLICA IDENTITY FULL;" } else { "" };
        format!("{tree} {leaf} {identity} INSERT INTO {name} VALUES (7, 'old'), (12, 'old');")
    });
    let database = Database::new("behindtrunc", &tables, &schema.collect::<String>()).await;
    let shown = if database.source_major().await < 15 { "" } else { "WHERE (v <> 'hidden')" };
    let identities =
        ["filtered", "filtered_1", "filtered_2"].map(|name| format!("ALTER TABLE {name} REPLICA IDENTITY FULL;"));
    let published: Vec<String> = tables
        .iter()
        .map(|table| if *table == "filtered" { format!("filtered {shown}") } else { (*table).to_owned() })
        .collect();
    database
        .at_source(&format!(
            "{} CREATE PUBLICATION {} FOR TABLE {} WITH (publish_via_partition_root = true)",
            identities.concat(),
            database.name,
            published.join(", ")
        ))
        .await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database.caught_up().await;
    for (_, change) in &changes {
        run(&database, change).await;
    }
    for (table, _) in &changes {
        let rows = |of: &str| format!("SELECT string_agg(t::text, ' ' ORDER BY t::text) FROM {table} t {of}");
        let of = if *table == "filtered" { shown } else { "" };
        eventually(&format!("table {table} is equal"), || async {
            (database.destination_value(&rows("")).await == database.source_value(&rows(of)).await).then_some(())
        })
        .await;
    }
    all_live(&database).await;
    service.stop().await;
}

/// What the transaction that creates a tree's second leaf does with it, so that the stream does not tell of it.
fn emptied_where_created() -> Vec<(&'static str, String)> {
    let more = |name: &str| format!("INSERT INTO {name} VALUES (15, 'more');");
    let empty = |name: &str| format!("TRUNCATE {name}_2;");
    let names = ["once", "direct", "same", "saved", "sub", "keyless", "late", "filtered"];
    let made = |name: &str| match name {
        "direct" => format!(
            "INSERT INTO {name}_2 VALUES (10, 'old'); {} INSERT INTO {name}_2 VALUES (12, 'more');",
            empty(name)
        ),
        "same" => format!("{} {} INSERT INTO {name} VALUES (10, 'new');", fill(name, 10), empty(name)),
        "saved" => format!("SAVEPOINT a; {} RELEASE a; {} {}", fill(name, 10), empty(name), more(name)),
        "sub" => format!("{} SAVEPOINT a; {} {} RELEASE a;", fill(name, 10), empty(name), more(name)),
        "late" => format!("{} {} {} CREATE UNIQUE INDEX ON {name}_2 (id);", fill(name, 10), empty(name), more(name)),
        "filtered" => format!("{} {} INSERT INTO {name} VALUES (15, 'hidden');", fill(name, 10), empty(name)),
        _ => format!("{} {} {}", fill(name, 10), empty(name), more(name)),
    };
    let identity = |name: &str| match name {
        "keyless" | "late" | "filtered" => format!("ALTER TABLE {name}_2 REPLICA IDENTITY FULL;"),
        _ => String::new(),
    };
    names.into_iter().map(|name| (name, format!("{{{} {} {}}}", create(name), identity(name), made(name)))).collect()
}

async fn emptied_trees(name: &str) -> (Database, Vec<(&'static str, String)>) {
    let changes = emptied_where_created();
    let tables: Vec<&str> = changes.iter().map(|(table, _)| *table).collect();
    let whole =
        |name: &str| format!("ALTER TABLE {name} REPLICA IDENTITY FULL; ALTER TABLE {name}_1 REPLICA IDENTITY FULL;");
    let schema = tables.iter().map(|name| match *name {
        "keyless" | "late" => format!("{} {}", partitioned_table(name).replace(" PRIMARY KEY", ""), whole(name)),
        "filtered" => format!("{} {}", partitioned_table(name), whole(name)),
        _ => partitioned_table(name),
    });
    let database = Database::new(name, &tables, &schema.collect::<String>()).await;
    let shown = shown(&database).await;
    let published = |table: &&str| if *table == "filtered" { format!("filtered {shown}") } else { (*table).to_owned() };
    let published: Vec<String> = tables.iter().map(published).collect();
    let published = published.join(", ");
    database
        .at_source(&format!(
            "CREATE PUBLICATION {} FOR TABLE {published} WITH (publish_via_partition_root = true)",
            database.name
        ))
        .await;
    (database, changes)
}

/// A filter of rows, where there are such.
async fn shown(database: &Database) -> &'static str {
    if database.source_major().await < 15 { "" } else { "WHERE (v <> 'hidden')" }
}

async fn trees_become_equal(database: &Database, changes: &[(&str, String)]) {
    let shown = shown(database).await;
    for (table, _) in changes {
        let rows = |of: &str| format!("SELECT string_agg(t::text, ' ' ORDER BY t::text) FROM {table} t {of}");
        let of = if *table == "filtered" { shown } else { "" };
        eventually(&format!("table {table} is equal"), || async {
            (database.destination_value(&rows("")).await == database.source_value(&rows(of)).await).then_some(())
        })
        .await;
    }
    all_live(database).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn partitions_emptied_by_the_transaction_that_creates_them_leave_no_rows() {
    let (database, changes) = emptied_trees("createdlive").await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database.caught_up().await;
    for (_, change) in &changes {
        run(&database, change).await;
    }
    trees_become_equal(&database, &changes).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn partitions_that_were_created_and_emptied_while_headwater_was_down_leave_no_rows() {
    let (database, changes) = emptied_trees("createddown").await;
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    database.caught_up().await;
    service.stop().await;
    for (_, change) in &changes {
        run(&database, change).await;
    }
    let service = setup.start();
    trees_become_equal(&database, &changes).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_partition_that_one_transaction_creates_and_fills_is_not_copied() {
    let database = Database::new("createdfull", &["t"], &partitioned_table("t")).await;
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    database.caught_up().await;
    let many = (10..15).map(|i| format!("INSERT INTO t VALUES ({i}, 'one by one');")).collect::<String>();
    run(&database, &format!("{{{} {many} CREATE INDEX ON t_2 (v);}}", create("t"))).await;
    let leaf =
        |number: u32| format!("CREATE TABLE t_{number} PARTITION OF t FOR VALUES FROM ({number}0) TO ({number}9);");
    run(&database, &format!("{{{} {} {} {}}}", leaf(3), fill("t", 30), leaf(4), fill("t", 40))).await;
    database.assert_catches_up().await;
    database.at_source(&leaf(5)).await;
    is_seen_empty(&database, "t_5").await;
    service.stop().await;
    run(&database, &format!("{{{} {}}}", leaf(6), fill("t", 60))).await;
    let service = setup.start();
    service.streams().await;
    database.assert_catches_up().await;
    database.at_source(&leaf(7)).await;
    is_seen_empty(&database, "t_7").await;
    service.assert_not_copied();
    // It is known like any other.
    database.at_source("TRUNCATE t_6").await;
    database.becomes_equal("t").await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_new_partition_whose_rows_a_truncate_of_its_table_takes_at_once_is_not_copied() {
    let database = Database::new("createdtrunc", &["t"], &partitioned_table("t")).await;
    let service = Setup::of(&database).start_streaming(&database).await;
    // A look is just over, and the next one is ten seconds away.
    database.at_source("CREATE TABLE t_3 PARTITION OF t FOR VALUES FROM (20) TO (30)").await;
    is_seen_empty(&database, "t_3").await;
    run(&database, &format!("{{{} {} TRUNCATE t;}}", create("t"), fill("t", 10))).await;
    database.assert_catches_up().await;
    database.at_source("CREATE TABLE t_4 PARTITION OF t FOR VALUES FROM (30) TO (40)").await;
    is_seen_empty(&database, "t_4").await;
    service.assert_not_copied();
    // It is known like any other.
    database.at_source(&fill("t", 10)).await;
    database.assert_catches_up().await;
    service.assert_not_copied();
    database.at_source("TRUNCATE t_2").await;
    database.becomes_equal("t").await;
    all_live(&database).await;
    service.stop().await;
}

/// What writes rows behind a TRUNCATE that the stream does not bring; `{t}` is a table, and `{l}` that holds its rows.
const UNLOGGED_BEHIND: &[(&str, &str)] = &[
    (
        "rows",
        "TRUNCATE {t}; ALTER TABLE {l} SET UNLOGGED; INSERT INTO {l} VALUES (3, 3), (4, 4); ALTER TABLE {l} SET LOGGED;",
    ),
    (
        "between",
        "TRUNCATE {t}; INSERT INTO {t} VALUES (2, 2); ALTER TABLE {l} SET UNLOGGED; INSERT INTO {l} VALUES (3, 3);
         ALTER TABLE {l} SET LOGGED; INSERT INTO {t} VALUES (4, 4);",
    ),
    (
        "clustered",
        "TRUNCATE {t}; ALTER TABLE {l} SET UNLOGGED; INSERT INTO {l} VALUES (3, 3); ALTER TABLE {l} SET LOGGED; CLUSTER {l} USING {l}_pkey;",
    ),
    ("typed", "TRUNCATE {t}; INSERT INTO {t} VALUES (2, 2); ALTER TABLE {t} ALTER n TYPE bigint USING n * 2;"),
];

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn rows_that_were_unlogged_behind_a_truncate_of_their_table_come() {
    let names: Vec<String> =
        UNLOGGED_BEHIND.iter().flat_map(|(name, _)| [format!("{name}_t"), format!("{name}_p")]).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let schema = |name: &&str| {
        let tree = format!(
            "CREATE TABLE {name} (id int PRIMARY KEY, n int) PARTITION BY RANGE (id);
             CREATE TABLE {name}_1 PARTITION OF {name} FOR VALUES FROM (0) TO (10);"
        );
        let table = format!("CREATE TABLE {name} (id int PRIMARY KEY, n int);");
        format!("{} INSERT INTO {name} VALUES (1, 1);", if name.ends_with("_p") { tree } else { table })
    };
    let database = Database::new("unloggedbehind", &names, &names.iter().map(schema).collect::<String>()).await;
    let publication = format!("CREATE PUBLICATION {} FOR ALL TABLES WITH (publish_via_partition_root)", database.name);
    database.at_source(&publication).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database.caught_up().await;
    for (name, change) in UNLOGGED_BEHIND {
        for (table, holds) in [(format!("{name}_t"), format!("{name}_t")), (format!("{name}_p"), format!("{name}_p_1"))]
        {
            let change = change.replace("{t}", &table).replace("{l}", &holds);
            database.at_source(&format!("BEGIN; {change} COMMIT")).await;
        }
    }
    for name in &names {
        database.becomes_equal(name).await;
    }
    all_live(&database).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_table_without_toast_that_is_truncated_and_loaded_again_is_not_copied() {
    let database = Database::new(
        "reloadedfixed",
        &["n", "t"],
        &format!("CREATE TABLE n (id int PRIMARY KEY); {}", partitioned_table("t")),
    )
    .await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database.caught_up().await;
    let loads = [
        "BEGIN; TRUNCATE n; INSERT INTO n SELECT generate_series(1, 1000); CREATE INDEX ON n (id); ANALYZE n; COMMIT",
        "BEGIN; INSERT INTO n VALUES (2000); TRUNCATE n; INSERT INTO n VALUES (1); COMMIT; ",
        "TRUNCATE n",
        "BEGIN; TRUNCATE n; COPY n FROM PROGRAM 'seq 10' WITH (FREEZE); COMMIT",
    ];
    for (number, load) in loads.iter().enumerate() {
        database.at_source(load).await;
        let leaf = format!("t_new{number}");
        let bounds = format!("FOR VALUES FROM ({0}00) TO ({0}50)", number + 1);
        database.at_source(&format!("CREATE TABLE {leaf} PARTITION OF t {bounds}")).await;
        is_seen_empty(&database, &leaf).await;
        database.assert_catches_up().await;
        service.assert_not_copied();
    }
    service.stop().await;
}

/// Transactions that load a tree's rows again behind a TRUNCATE, as jobs do.
const RELOADS: &[&str] = &[
    "BEGIN; TRUNCATE t; INSERT INTO t SELECT i, 'a' FROM generate_series(0, 19) i; COMMIT",
    "BEGIN; TRUNCATE t; INSERT INTO t SELECT i, 'b' FROM generate_series(0, 9) i; COMMIT",
    "BEGIN; TRUNCATE t; {many} INSERT INTO t SELECT i, 'c' FROM generate_series(15, 19) i; ANALYZE t; COMMIT",
    "TRUNCATE t",
];

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_partitioned_table_that_is_truncated_and_loaded_again_is_not_copied() {
    let schema = format!("{} {}", partitioned_table("t"), create("t"));
    let database = Database::new("reloaded", &["t"], &schema).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database.caught_up().await;
    for (number, reload) in RELOADS.iter().enumerate() {
        let many = (0..10).map(|i| format!("INSERT INTO t VALUES ({i}, 'one by one');")).collect::<String>();
        database.at_source(&reload.replace("{many}", &many)).await;
        // A look that finds this one has seen the other.
        let leaf = format!("t_new{number}");
        let bounds = format!("FOR VALUES FROM ({0}00) TO ({0}50)", number + 1);
        database.at_source(&format!("CREATE TABLE {leaf} PARTITION OF t {bounds}")).await;
        is_seen_empty(&database, &leaf).await;
        database.assert_catches_up().await;
        service.assert_not_copied();
    }
    service.stop().await;
}

/// Waits until a look has seen that a leaf is empty.
async fn is_seen_empty(database: &Database, leaf: &str) {
    let id = database.source_value(&format!("SELECT '{leaf}'::regclass::oid::text")).await.expect("an OID");
    let seen = format!("SELECT bool_or(shape::jsonb -> 'empty_partitions' ? '{id}')::text FROM headwater.shapes");
    eventually(&format!("{leaf} is seen empty"), || async {
        (database.destination_value(&seen).await.as_deref() == Some("true")).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn partitions_that_are_attached_without_rows_are_followed_and_not_copied() {
    let database = Database::new("attachedempty", &["t"], &partitioned_table("t")).await;
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    database.caught_up().await;
    let leaf = |number: u32| {
        format!(
            "CREATE TABLE t_{number} (LIKE t INCLUDING ALL);
             ALTER TABLE t ATTACH PARTITION t_{number} FOR VALUES FROM ({number}0) TO ({number}9);"
        )
    };
    for statement in (2..6).map(leaf).collect::<String>().split_inclusive(';') {
        database.at_source(statement).await;
    }
    if database.source_major().await < 15 {
        // Its rows may not come at all.
        service.says("was attached, and may have brought rows").await;
        all_live(&database).await;
        database.assert_catches_up().await;
        return service.stop().await;
    }
    database.at_source("INSERT INTO t VALUES (2, 'w')").await;
    is_seen_empty(&database, "t_5").await;
    database.at_source("INSERT INTO t SELECT i, 'came' FROM generate_series(20, 25) i").await;
    database.assert_catches_up().await;
    // A partition without rows goes without a word.
    database.at_source("DROP TABLE t_5").await;
    database.at_source(&leaf(6)).await;
    is_seen_empty(&database, "t_6").await;
    service.assert_not_copied();
    service.stop().await;
    // As the next start finds it, and one that nobody has looked at.
    database.at_source(&leaf(7)).await;
    let service = setup.start();
    service.streams().await;
    is_seen_empty(&database, "t_7").await;
    database.at_source("INSERT INTO t SELECT n * 10 + i, 'came' FROM generate_series(2, 7) n, generate_series(6, 7) i WHERE n <> 5").await;
    database.assert_catches_up().await;
    service.stop().await;
    let service = setup.start();
    service.streams().await;
    database.at_source("UPDATE t SET v = 'again'").await;
    database.assert_catches_up().await;
    service.assert_not_copied();
    // From its first row on it is a partition like any other.
    database.at_source("TRUNCATE t_3").await;
    database.becomes_equal("t").await;
    all_live(&database).await;
    database.assert_catches_up().await;
    service.stop().await;
}

/// A root of two columns, and what makes another partition of it in the transaction that creates the table; `{t}` is the root.
const MADE_AT_ONCE: &[(&str, &str, &str)] = &[
    (
        "plain",
        "id int NOT NULL, n int",
        "CREATE TABLE {t}_2 (id int NOT NULL, n int); INSERT INTO {t}_2 VALUES (11, 1); {attach}",
    ),
    (
        "whole",
        "id int NOT NULL, n int",
        "CREATE TABLE {t}_2 (id int NOT NULL, n int); ALTER TABLE {t}_2 REPLICA IDENTITY FULL; INSERT INTO {t}_2 VALUES (11, 1); {attach}",
    ),
    (
        "keyed",
        "id int NOT NULL, n int",
        "CREATE TABLE {t}_2 (id int PRIMARY KEY, n int); INSERT INTO {t}_2 VALUES (11, 1); {attach}",
    ),
    (
        "defaults",
        "id int NOT NULL DEFAULT 11, n int DEFAULT 1",
        "CREATE TABLE {t}_2 (LIKE {t} INCLUDING ALL); INSERT INTO {t}_2 VALUES (11, 1); {attach}",
    ),
    (
        "selected",
        "id int NOT NULL, n int",
        "CREATE TABLE {t}_2 AS SELECT 11 AS id, 1 AS n; ALTER TABLE {t}_2 ALTER id SET NOT NULL; {attach}",
    ),
];

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn rows_of_a_partition_that_is_attached_in_the_transaction_that_creates_it_come() {
    let names: Vec<&str> = MADE_AT_ONCE.iter().map(|(name, ..)| *name).chain(["created", "created_with"]).collect();
    let root = |name: &str, columns: &str| {
        format!(
            "CREATE TABLE {name} ({columns}) PARTITION BY RANGE (id); ALTER TABLE {name} REPLICA IDENTITY FULL;
             CREATE TABLE {name}_1 PARTITION OF {name} FOR VALUES FROM (0) TO (10);
             ALTER TABLE {name}_1 REPLICA IDENTITY FULL; INSERT INTO {name} VALUES (1, 1);"
        )
    };
    let created = ["created", "created_with"].map(|name| root(name, "id int NOT NULL DEFAULT 11, n int DEFAULT 1"));
    let schema: String = MADE_AT_ONCE.iter().map(|(name, columns, _)| root(name, columns)).chain(created).collect();
    let database = Database::new("lvatonce", &names, &schema).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database.caught_up().await;
    for (name, _, statements) in MADE_AT_ONCE {
        let statements = statements.replace("{attach}", &attach(name)).replace("{t}", name);
        let identity = format!("ALTER TABLE {name}_2 REPLICA IDENTITY FULL;");
        database.at_source(&format!("BEGIN; {statements} {identity} COMMIT")).await;
    }
    // Created as partitions they have brought no rows of their own, whatever their columns have.
    let of = |name: &str, with: &str| {
        format!("CREATE TABLE {name}_2 PARTITION OF {name} {with} FOR VALUES FROM (10) TO (20);")
    };
    for (name, with) in [("created", ""), ("created_with", "(id NOT NULL, n DEFAULT 7, PRIMARY KEY (id))")] {
        let identity = format!("ALTER TABLE {name}_2 REPLICA IDENTITY FULL; INSERT INTO {name} VALUES (11, 1);");
        database.at_source(&format!("BEGIN; {} {identity} COMMIT", of(name, with))).await;
    }
    for name in &names {
        database.becomes_equal(name).await;
    }
    for (name, ..) in MADE_AT_ONCE {
        assert!(
            service.log().contains(&format!("partition public.{name}_2 was attached")),
            "{name}:\n{}",
            service.log()
        );
    }
    // Without an index nothing shows that the transaction has not emptied it in between.
    let log = service.log().replace("partition public.created_2 may have been emptied", "");
    assert!(!log.contains("partition public.created"), "{log}");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn rows_that_came_before_a_partition_was_seen_empty_are_not_kept() {
    let tables = ["held", "kept"];
    let schema: Vec<String> = tables.iter().map(|name| partitioned_table(name)).collect();
    let database = Database::new("seenempty", &tables, &schema.concat()).await;
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    database.caught_up().await;
    service.stop().await;
    // At the start the stream is behind all of this.
    for table in tables {
        run(&database, &format!("{} {}", alone(table), attach(table))).await;
    }
    run(&database, &format!("{} {} DELETE FROM held_2; {}", fill("held", 10), detach("held"), attach("held"))).await;
    database.at_source("VACUUM (TRUNCATE) held_2").await;
    let service = setup.start();
    service.streams().await;
    run(&database, &(fill("held", 14) + &fill("kept", 14))).await;
    for table in tables {
        database.becomes_equal(table).await;
    }
    all_live(&database).await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn partitions_that_large_transactions_create_fill_and_lose_leave_no_rows() {
    let tables = ["whole", "part", "gone"];
    let schema: Vec<String> = tables
        .iter()
        .map(|name| {
            format!(
                "CREATE TABLE {name} (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
                 CREATE TABLE {name}_1 PARTITION OF {name} FOR VALUES FROM (0) TO (10000);"
            )
        })
        .collect();
    let database = Database::new("largeleaves", &tables, &schema.concat()).await;
    database.at_source(&format!("ALTER DATABASE {} SET logical_decoding_work_mem = '64kB'", database.name)).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database.caught_up().await;
    let create = |name: &str| format!("CREATE TABLE {name}_2 PARTITION OF {name} FOR VALUES FROM (10000) TO (20000);");
    let fill = |name: &str, from: u32| {
        format!("INSERT INTO {name} SELECT i, md5(i::text) FROM generate_series({from}, {}) i;", from + 2999)
    };
    let changes = [
        format!("BEGIN; {} {} TRUNCATE whole_2; COMMIT", create("whole"), fill("whole", 10_000)),
        // What is rolled back has named the partition, and what is not has rows of it.
        format!(
            "{} BEGIN; {} SAVEPOINT a; {} ROLLBACK TO a; {} COMMIT; TRUNCATE part_2",
            create("part"),
            fill("part", 1),
            fill("part", 10_000),
            fill("part", 13_000)
        ),
        format!("BEGIN; {} {} COMMIT; DROP TABLE gone_2", create("gone"), fill("gone", 10_000)),
    ];
    for change in &changes {
        for statements in change.split_inclusive("COMMIT") {
            database.at_source(statements.trim_start_matches(';')).await;
        }
    }
    for table in tables {
        database.becomes_equal(table).await;
    }
    all_live(&database).await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn partitions_that_come_while_a_copy_waits_for_its_slot_are_known_once_it_is_done() {
    let database = Database::new("leafslot", &["t"], &partitioned_table("t")).await;
    let setup = Setup::of(&database);
    let holder = source().await.connect(&database.name).await.expect("a session");
    holder.batch("a transaction that the slot waits for", "BEGIN; SELECT pg_current_xact_id()").await.expect("one");
    let mut dying = setup.clone().failing_at("snapshot.published").start();
    dying.says("locked in ACCESS SHARE mode at the source").await;
    run(&database, &format!("{} {} {}", alone("t"), attach("t"), fill("t", 10))).await;
    holder.batch("ending it", "COMMIT").await.expect("a commit");
    assert_eq!(dying.ended().await.code(), None, "it was to die by a signal");
    assert_eq!(database.destination_value("SELECT count(*)::text FROM t").await.as_deref(), Some("3"));
    database.at_source("DROP TABLE t_2").await;
    let service = setup.start();
    service.streams().await;
    database.becomes_equal("t").await;
    all_live(&database).await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn empty_partitions_of_the_time_of_a_copy_come_and_go_without_another_copy() {
    let schema = format!(
        "{} CREATE TABLE t_5 PARTITION OF t FOR VALUES FROM (50) TO (60);
         CREATE TABLE t_6 PARTITION OF t FOR VALUES FROM (60) TO (70);",
        partitioned_table("t")
    );
    let database = Database::new("leafwaits", &["t"], &schema).await;
    if database.source_major().await < 15 {
        return;
    }
    let holder = source().await.connect(&database.name).await.expect("a session");
    holder.batch("a transaction that the slot waits for", "BEGIN; SELECT pg_current_xact_id()").await.expect("one");
    let service = Setup::of(&database).start();
    service.says("locked in ACCESS SHARE mode at the source").await;
    run(&database, &format!("{} {}", alone("t"), attach("t"))).await;
    holder.batch("ending it", "COMMIT").await.expect("a commit");
    service.streams().await;
    let look = |number: u32| {
        format!(
            "CREATE TABLE t_{number} (LIKE t INCLUDING ALL);
             ALTER TABLE t ATTACH PARTITION t_{number} FOR VALUES FROM ({number}0) TO ({number}9);"
        )
    };
    run(&database, &look(3)).await;
    is_seen_empty(&database, "t_3").await;
    service.assert_not_copied();
    database.at_source("INSERT INTO t VALUES (11, 'came'), (31, 'came'), (61, 'came')").await;
    database.at_source("DROP TABLE t_5").await;
    run(&database, &look(4)).await;
    is_seen_empty(&database, "t_4").await;
    database.assert_catches_up().await;
    service.assert_not_copied();
    // Its rows are known.
    database.at_source("TRUNCATE t_6").await;
    database.becomes_equal("t").await;
    all_live(&database).await;
    service.stop().await;
}

/// A tree and a table that is not copied with it.
async fn two_tables(name: &str) -> Database {
    let schema = format!("{} CREATE TABLE other (id int PRIMARY KEY);", partitioned_table("t"));
    Database::new(name, &["t", "other"], &schema).await
}

/// Rewrites the values of `t`, so that it is copied, and waits until its copy compares.
async fn copies(database: &Database) -> (Service, Pause) {
    let (setup, pause) = Pause::at("handover.comparing", Setup::of(database));
    let service = setup.start();
    service.streams().await;
    database.caught_up().await;
    database.at_source("ALTER TABLE t ALTER v TYPE text USING v || '!'").await;
    pause.reached().await;
    (service, pause)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_copy_survives_partitions_that_come_while_it_is_made() {
    let database = two_tables("leafsurvives").await;
    let (service, pause) = copies(&database).await;
    run(&database, &format!("{} {}", create("t"), fill("t", 10))).await;
    if database.source_major().await >= 15 {
        let attached =
            "CREATE TABLE t_3 (LIKE t INCLUDING ALL); ALTER TABLE t ATTACH PARTITION t_3 FOR VALUES FROM (20) TO (30);";
        run(&database, attached).await;
        service.says("the partitions of public.t were looked at while it is copied").await;
        database.at_source("INSERT INTO t VALUES (21, 'came')").await;
    }
    database.at_source("CREATE TABLE t_4 PARTITION OF t FOR VALUES FROM (30) TO (40)").await;
    database.caught_up().await;
    pause.end();
    all_live(&database).await;
    database.assert_catches_up().await;
    // A look finds nothing to copy.
    database.at_source("DROP TABLE t_4").await;
    database.at_source("CREATE TABLE t_5 PARTITION OF t FOR VALUES FROM (40) TO (50)").await;
    is_seen_empty(&database, "t_5").await;
    let log = service.log();
    assert_eq!(log.matches("copying public.t again").count(), 1, "{log}");
    assert!(!log.contains("is tried again"), "{log}");
    // Rows of the one that came are known.
    database.at_source("DROP TABLE t_2").await;
    database.becomes_equal("t").await;
    all_live(&database).await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn copies_that_are_given_up_are_paced_and_each_says_why() {
    let database = two_tables("leafgiven").await;
    let (service, _pause) = copies(&database).await;
    was_copied(&database, 10).await;
    let emptied = format!("BEGIN; {} {} TRUNCATE t_2; {} COMMIT", create("t"), fill("t", 10), fill("t", 12));
    database.at_source(&emptied).await;
    service.says("the snapshot of public.t failed and is tried again; the old data is still there: staging was lost: table public.t was changed").await;
    service.says("partition public.t_2 may have been emptied by the transaction that created it").await;
    service.says("public.t was copied 10 times and its copy was given up once within an hour").await;
    let (_, explained) = service.command(&["explain"]).await;
    assert!(explained.contains("the copy of public.t has failed and is tried again"), "{explained}");
    assert!(explained.contains("the next copy of public.t waits for"), "{explained}");
    assert_eq!(service.get("/readyz").await.expect("an answer").0, 503);
    database.at_destination("DELETE FROM headwater.resnapshots WHERE state <> 'requested'").await;
    database.becomes_equal("t").await;
    all_live(&database).await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn hundreds_of_partitions_that_one_transaction_fills_are_asked_for_together() {
    let database = Database::new("manyleaves", &["t"], &partitioned_table("t")).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database.caught_up().await;
    let leaves: Vec<String> = (10..810)
        .map(|at| format!("CREATE TABLE t_{at} PARTITION OF t FOR VALUES FROM ({at}) TO ({});", at + 1))
        .collect();
    database.at_source(&leaves.concat()).await;
    let began = std::time::Instant::now();
    database.at_source("INSERT INTO t SELECT i, 'came' FROM generate_series(10, 809) i").await;
    database.assert_catches_up().await;
    assert!(began.elapsed().as_secs() < 40, "{:?}", began.elapsed());
    service.assert_not_copied();
    let known = "SELECT jsonb_array_length(shape::jsonb -> 'partitions')::text FROM headwater.shapes";
    assert_eq!(database.destination_value(known).await.as_deref(), Some("801"));
    service.stop().await;
}

/// headwater has copied `t` by itself so often within the last hour.
async fn was_copied(database: &Database, times: u32) {
    database
        .at_destination(&format!(
            r#"INSERT INTO headwater.resnapshots (tables, origin, state, finished_at)
               SELECT ARRAY['"public"."t"'], 'changed', 'done', clock_timestamp() FROM generate_series(1, {times})"#
        ))
        .await;
}

/// Copies that were made do not count any more.
async fn forget_copies(database: &Database) {
    database.at_destination("DELETE FROM headwater.resnapshots WHERE state = 'done'").await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn copies_of_a_table_whose_partitions_come_and_go_are_paced() {
    let database = two_tables("paced").await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database.caught_up().await;
    was_copied(&database, 12).await;
    run(&database, &format!("{} {}", create("t"), fill("t", 10))).await;
    database.assert_catches_up().await;
    database.at_source("DROP TABLE t_2").await;
    service.says("public.t was copied 12 times within an hour").await;
    service.streams().await;
    let (_, explained) = service.command(&["explain"]).await;
    assert!(explained.contains("the next copy of public.t waits for"), "{explained}");
    database.at_source("INSERT INTO other VALUES (1)").await;
    database.becomes_equal("other").await;
    assert_eq!(database.destination_value("SELECT count(*)::text FROM t").await.as_deref(), Some("3"), "it is copied");
    forget_copies(&database).await;
    database.becomes_equal("t").await;
    // Some in a row are made at once.
    was_copied(&database, 2).await;
    run(&database, &format!("{} {}", create("t"), fill("t", 10))).await;
    database.assert_catches_up().await;
    database.at_source("DROP TABLE t_2").await;
    database.becomes_equal("t").await;
    all_live(&database).await;
    let told = service.log().matches("within an hour").count();
    assert_eq!(told, 1, "{}", service.log());
    service.stop().await;
}

/// A leaf of the randomized test.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Leaf {
    Missing,
    Detached,
    Attached,
}

/// What is done at random to a tree with three leaves.
struct Walk {
    rng: Rng,
    leaves: [Leaf; 3],
    /// Every row has a key of its own: what comes again is another test's.
    rows: usize,
    /// So many rows come at once.
    rows_at_once: usize,
}

/// The keys of a leaf.
const KEYS: usize = 1_000_000;

impl Walk {
    fn bounds(slot: usize) -> String {
        format!("FOR VALUES FROM ({}) TO ({})", (slot + 1) * KEYS, (slot + 2) * KEYS)
    }

    fn rows(&mut self, slot: usize) -> String {
        let from = (slot + 1) * KEYS + self.rows;
        let count = self.rng.usize(1..4) * self.rows_at_once;
        self.rows += count;
        format!("SELECT i, 'v' FROM generate_series({from}, {}) i", from + count - 1)
    }

    fn step(&mut self) -> String {
        let slot = self.rng.usize(0..3);
        let bounds = Walk::bounds(slot);
        let choice = self.rng.usize(0..10);
        let attach = format!("ALTER TABLE t ATTACH PARTITION l_{slot} {bounds};");
        match (self.leaves[slot], choice) {
            (Leaf::Missing | Leaf::Detached | Leaf::Attached, 8) => "TRUNCATE t;".to_owned(),
            (Leaf::Missing, 0..3) => {
                self.leaves[slot] = Leaf::Attached;
                format!("CREATE TABLE l_{slot} PARTITION OF t {bounds};")
            }
            (Leaf::Missing, 3..6) => {
                self.leaves[slot] = Leaf::Attached;
                format!("CREATE TABLE l_{slot} (LIKE t INCLUDING ALL); {attach}")
            }
            (Leaf::Missing, _) => {
                self.leaves[slot] = Leaf::Attached;
                let rows = self.rows(slot);
                format!("CREATE TABLE l_{slot} (LIKE t INCLUDING ALL); INSERT INTO l_{slot} {rows}; {attach}")
            }
            (Leaf::Detached, 0..3) => {
                self.leaves[slot] = Leaf::Attached;
                attach
            }
            (Leaf::Detached, 3) => format!("TRUNCATE l_{slot};"),
            (Leaf::Detached, 4) => format!("DELETE FROM l_{slot};"),
            (Leaf::Detached, 5) => {
                let rows = self.rows(slot);
                format!("INSERT INTO l_{slot} {rows};")
            }
            (Leaf::Attached, 0..3) => {
                let rows = self.rows(slot);
                format!("INSERT INTO t {rows};")
            }
            (Leaf::Attached, 3) => format!("TRUNCATE l_{slot};"),
            (Leaf::Attached, 4) => format!("DELETE FROM t WHERE id >= {};", (slot + 1) * KEYS),
            (Leaf::Attached, 5) => {
                self.leaves[slot] = Leaf::Detached;
                format!("ALTER TABLE t DETACH PARTITION l_{slot};")
            }
            (Leaf::Attached, 9) => match self.rng.u8(0..3) {
                0 => format!("CLUSTER l_{slot} USING l_{slot}_pkey;"),
                _ => {
                    let rows = self.rows(slot);
                    format!(
                        "ALTER TABLE l_{slot} SET UNLOGGED; INSERT INTO l_{slot} {rows}; ALTER TABLE l_{slot} SET LOGGED;"
                    )
                }
            },
            (Leaf::Detached | Leaf::Attached, 6) => {
                self.leaves[slot] = Leaf::Missing;
                format!("DROP TABLE l_{slot};")
            }
            (Leaf::Detached | Leaf::Attached, _) => "INSERT INTO other DEFAULT VALUES;".to_owned(),
        }
    }

    /// One step, or several in one transaction.
    fn transaction(&mut self) -> String {
        if self.rng.u8(0..3) > 0 {
            return self.step();
        }
        let mut steps = String::new();
        if self.rng.u8(0..3) == 0 {
            steps += "TRUNCATE t;";
        }
        for _ in 0..self.rng.usize(2..6) {
            let before = self.leaves;
            let step = self.step();
            steps += &match self.rng.u8(0..8) {
                // See the limit in docs/decisions/0016-fingerprints.md.
                0 if !step.contains("UNLOGGED") => format!("SAVEPOINT s; {step} RELEASE s;"),
                1 => {
                    self.leaves = before;
                    format!("SAVEPOINT s; {step} ROLLBACK TO s;")
                }
                _ => step,
            };
        }
        steps
    }
}

/// Waits until the monitor has looked at the leaves that there are, or the table waits for a copy.
async fn is_looked_at(database: &Database) {
    let leaves = database
        .source_value(
            "SELECT COALESCE(array_agg(inhrelid::int8), '{}')::text FROM pg_inherits WHERE inhparent = 't'::regclass",
        )
        .await
        .expect("leaves");
    let seen = format!(
        "SELECT (NOT EXISTS (SELECT FROM unnest('{leaves}'::int8[]) AS l (id) WHERE NOT EXISTS (
             SELECT FROM headwater.shapes s, jsonb_array_elements(s.fingerprint::jsonb -> 'facts' -> 'members') AS m
             WHERE m -> 0 = to_jsonb(l.id)))
         OR EXISTS (SELECT FROM headwater.tables WHERE state <> 'live')
         OR EXISTS (SELECT FROM headwater.resnapshots WHERE state = 'requested'))::text"
    );
    eventually("the leaves are looked at", || async {
        (database.destination_value(&seen).await.as_deref() == Some("true")).then_some(())
    })
    .await;
}

async fn walk(name: &str, seed: u64, rows_at_once: usize, column: &str) {
    let rounds = std::env::var("HEADWATER_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(3);
    let database = Database::new(
        name,
        &["t", "other"],
        &format!(
            "CREATE TABLE t (id int PRIMARY KEY, v {column}) PARTITION BY RANGE (id);
             CREATE TABLE t_0 PARTITION OF t FOR VALUES FROM (0) TO (10); INSERT INTO t VALUES (1, 'v');
             CREATE TABLE other (id serial PRIMARY KEY);"
        ),
    )
    .await;
    database
        .at_source(&format!("ALTER DATABASE {name} SET logical_decoding_work_mem = '64kB'", name = database.name))
        .await;
    let setup = Setup::of(&database);
    let mut service = setup.start();
    service.streams().await;
    database.caught_up().await;
    let mut walk = Walk { rng: Rng::with_seed(seed), leaves: [Leaf::Missing; 3], rows: 0, rows_at_once };
    for round in 0..rounds {
        let down = walk.rng.bool();
        if down {
            match walk.rng.bool() {
                true => service.stop().await,
                false => service.kill(),
            }
            service = match walk.rng.bool() {
                true => setup.start(),
                false => {
                    for _ in 0..walk.rng.usize(1..6) {
                        step(&database, &mut walk, (seed, round)).await;
                    }
                    setup.start()
                }
            };
        }
        for _ in 0..walk.rng.usize(2..8) {
            step(&database, &mut walk, (seed, round)).await;
            if walk.rng.u8(0..6) == 0 {
                is_looked_at(&database).await;
            }
        }
        for table in ["t", "other"] {
            database.becomes_equal(table).await;
        }
        all_live(&database).await;
        database.caught_up().await;
        database.becomes_equal("t").await;
    }
    service.stop().await;
}

async fn step(database: &Database, walk: &mut Walk, (seed, round): (u64, u32)) {
    let transaction = walk.transaction();
    forget_copies(database).await;
    println!("{seed} {round}: {transaction}");
    database.at_source(&format!("BEGIN; {transaction} COMMIT")).await;
    if walk.rng.u8(0..4) == 0 {
        // Blocks without rows go.
        database.at_source("VACUUM (TRUNCATE)").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn whatever_becomes_of_partitions_the_rows_are_the_sources() {
    let seed = seed("whatever_becomes_of_partitions");
    walk("walkone", seed, 1, "text").await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn whatever_becomes_of_partitions_without_toast_the_rows_are_the_sources() {
    let seed = seed("whatever_becomes_of_partitions_without_toast");
    walk("walkfixed", seed, 1, "char(1)").await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn whatever_large_transactions_do_to_partitions_the_rows_are_the_sources() {
    let seed = seed("whatever_large_transactions_do");
    walk("walklarge", seed, 700, "text").await;
}

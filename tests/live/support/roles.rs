//! Who headwater connects as: HEADWATER_TEST_ROLES.
//!
//! Unset: a superuser on both sides. `least`: the roles of docs/roles.md, made by that page's own statements, with the
//! optional ones; `origin`: the same without those that only a superuser may run, so that session_replication_role cannot
//! be set and nothing is marked with a replication origin. A test's own sessions stay
//! the superuser's: they play the application, its owner and the operator.
//!
//! What a test's own sessions make is handed over as an installation would have it: on either side it belongs to an owner
//! that the role is a member of, which is how the page says that headwater may make the publication itself, and follow
//! schema changes in tables that it did not create.

use super::Script;
use std::path::{Path, PathBuf};

use headwater::session::SqlClient;

/// The roles that headwater connects as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Roles {
    /// A superuser's.
    Superuser,
    /// Those of docs/roles.md; whether they may set session_replication_role.
    Least { replica: bool },
}

impl Roles {
    /// What HEADWATER_TEST_ROLES says, with session_replication_role in any case.
    pub fn wanted_with_replica() -> Roles {
        match Roles::wanted() {
            Roles::Superuser => Roles::Superuser,
            Roles::Least { .. } => Roles::Least { replica: true },
        }
    }

    /// What HEADWATER_TEST_ROLES says.
    pub fn wanted() -> Roles {
        match std::env::var("HEADWATER_TEST_ROLES").as_deref() {
            Ok("least") => Roles::Least { replica: true },
            Ok("origin") => Roles::Least { replica: false },
            Ok(other) if !other.is_empty() => panic!("HEADWATER_TEST_ROLES={other}: least or origin"),
            Ok(_) | Err(_) => Roles::Superuser,
        }
    }
}

/// Blocks of fenced code: language, text, and the comment above that says where to run it.
pub fn blocks(page: &str) -> Vec<(String, String, Option<String>)> {
    let mut found = Vec::new();
    let mut lines = page.lines();
    let mut mark = None;
    while let Some(line) = lines.next() {
        if let Some(where_to) = line.trim_start().strip_prefix("<!-- run: ") {
            mark = Some(where_to.trim_end_matches(" -->").to_owned());
        } else if let Some(language) = line.trim_start().strip_prefix("```") {
            let text: Vec<&str> = lines.by_ref().take_while(|line| line.trim_start() != "```").collect();
            found.push((language.to_owned(), text.join("\n"), mark.take()));
        }
    }
    found
}

/// The pages whose commands and blocks tests run: those of the root that people follow, and all of docs/ but the decisions.
pub fn pages() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut pages: Vec<PathBuf> = ["README.md", "CONTRIBUTING.md", "UPGRADING.md"].map(|page| root.join(page)).to_vec();
    for dir in ["docs", "docs/how-to", "docs/reference"] {
        let entries = std::fs::read_dir(root.join(dir)).expect(dir).map(|entry| entry.expect("an entry").path());
        pages.extend(entries.filter(|path| path.extension().is_some_and(|extension| extension == "md")));
    }
    pages
}

/// The page's statements of one mark, with role, publication and database of this test.
pub fn statements(mark: &str, database: &str) -> String {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/roles.md");
    let page = std::fs::read_to_string(page).expect("docs/roles.md");
    let marked = blocks(&page).into_iter().filter(|(_, _, found)| found.as_deref() == Some(mark));
    let text: Vec<String> = marked.map(|(_, text, _)| text).collect();
    assert!(!text.is_empty(), "no statements to run: {mark}");
    text.join("\n")
        .replace("headwater_reader", &reader(database))
        .replace("headwater_writer", &writer(database))
        .replace("forum_owner", &owner(database))
        .replace("PUBLICATION headwater ", &format!("PUBLICATION {database} "))
        .replace("DATABASE forum ", &format!("DATABASE {database} "))
}

/// The statements of a text, each on one line and without comments.
pub fn each_statement(sql: &str) -> Vec<String> {
    let lines: Vec<&str> = sql.lines().map(|line| line.split("--").next().unwrap_or_default()).collect();
    let words = lines.join(" ").split_whitespace().collect::<Vec<_>>().join(" ");
    words.split_inclusive(';').map(|statement| statement.trim().to_owned()).filter(|one| !one.is_empty()).collect()
}

/// The role at the source.
pub fn reader(database: &str) -> String {
    format!("reader_{database}")
}

/// Whom the tables belong to that a test makes.
pub fn owner(database: &str) -> String {
    format!("owner_{database}")
}

/// The role at the destination.
pub fn writer(database: &str) -> String {
    format!("writer_{database}")
}

/// The same address, as this role.
pub fn as_role(url: &str, role: &str) -> String {
    url.replacen("//postgres@", &format!("//{role}@"), 1)
}

/// This address, as the role that another one names.
pub fn like(other: &str, url: &str) -> String {
    let role = other.split_once("//").and_then(|(_, rest)| rest.split_once('@')).map_or("postgres", |(role, _)| role);
    as_role(url, role)
}

/// The first grants of a parameter in a cluster fail when there are several at a time (duplicate key in pg_parameter_acl).
static PARAMETER: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Makes the roles of new databases, and has what is made there later handed over.
pub async fn make(database: &str, source: &SqlClient, destination: &SqlClient, replica: bool) {
    for client in [source, destination] {
        run(client, &format!("CREATE ROLE {}", owner(database))).await;
    }
    run(source, &statements("source, headwater makes the publication", database)).await;
    run(source, &statements("source, optional", database)).await;
    run(destination, &statements("destination", database)).await;
    run(destination, &statements("destination, monitor", database)).await;
    run(destination, &statements("destination, tables that exist", database)).await;
    // On 14 only a superuser can set session_replication_role.
    let version = "SELECT (current_setting('server_version_num')::int >= 150000)";
    let row = destination.query_one("its version", version, &[]).await.expect("a version");
    if replica && row.get::<bool>(0).unwrap() {
        let _alone = PARAMETER.lock().await;
        run(destination, &statements("destination, optional", database)).await;
    }
    for client in [source, destination] {
        run(client, &hand_over(&owner(database))).await;
    }
}

/// An event trigger that gives an owner what superusers make.
fn hand_over(owner: &str) -> String {
    format!(
        "CREATE SCHEMA test_roles;
         GRANT USAGE ON SCHEMA test_roles TO PUBLIC;
         CREATE FUNCTION test_roles.hand_over() RETURNS event_trigger LANGUAGE plpgsql AS $$
         DECLARE made record;
         BEGIN
             IF NOT (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user) THEN RETURN; END IF;
             FOR made IN SELECT * FROM pg_catalog.pg_event_trigger_ddl_commands()
                 WHERE schema_name IS DISTINCT FROM 'pg_temp' AND NOT in_extension LOOP
                 CASE made.object_type
                 WHEN 'schema' THEN EXECUTE format('GRANT USAGE, CREATE ON SCHEMA %s TO {owner}', made.object_identity);
                 WHEN 'table' THEN EXECUTE format('ALTER TABLE %s OWNER TO {owner}', made.object_identity);
                 ELSE NULL;
                 END CASE;
             END LOOP;
         END $$;
         CREATE EVENT TRIGGER hand_over ON ddl_command_end
             WHEN TAG IN ('CREATE TABLE', 'CREATE TABLE AS', 'SELECT INTO', 'CREATE SCHEMA')
             EXECUTE FUNCTION test_roles.hand_over()"
    )
}

async fn run(client: &SqlClient, sql: &str) {
    if let Err(error) = client.script("making a role", sql).await {
        panic!("{error} ({:?}) in:\n{sql}", error.server());
    }
}

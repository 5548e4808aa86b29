//! The first hour: init proposes, its GRANTs suffice, check passes, run streams.

use crate::support::forum::{FORUM, FORUM_SCHEMA};
use crate::support::roles::{each_statement, statements};
use crate::support::{Database, Setup, headwater, parent};

async fn init(arguments: &[&str]) -> (Option<i32>, String, String) {
    let output =
        tokio::process::Command::new(headwater()).arg("init").args(arguments).output().await.expect("headwater starts");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_init_writes_and_prints_is_all_that_a_first_start_needs() {
    let schema = format!("{FORUM_SCHEMA} CREATE TABLE keyless (v text); CREATE TABLE other (id int PRIMARY KEY);");
    let database = Database::of_superuser("init", FORUM, &schema).await;
    let owner = format!("owner_{}", database.name);
    let owned = format!("CREATE ROLE {owner} LOGIN; ALTER DATABASE {} OWNER TO {owner}", database.name);
    database.at_destination(&owned).await;
    let file = parent().join(format!("{}.toml", database.name));
    let path = file.display().to_string();
    let with_password = database.source_url.replace("postgres@", "postgres:hunter2@");
    let arguments = [with_password.as_str(), &database.destination_url, "--output", &path, "--table", "messages"];
    let (code, out, err) = init(&arguments).await;
    assert_eq!(code, Some(0), "{err}");
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(!text.contains("hunter2") && !out.contains("hunter2") && !err.contains("hunter2"), "{text}{out}{err}");
    for table in FORUM {
        assert!(text.contains(&format!("\"{table}\",")), "{table} is missing in\n{text}");
    }
    assert!(!text.contains("public.other"), "{text}");
    // Schema public is the database owner's from 15 on.
    let version = database.destination_value("SELECT current_setting('server_version_num')").await.expect("a version");
    let owns_public = version.parse::<u32>().expect("a number") >= 150_000;
    assert_eq!(text.contains(&format!("\ntrusted_roles = [\"{owner}\"]\n")), owns_public, "{text}");
    assert!(text.contains("needed by a foreign key of public.messages"), "{text}");
    assert!(
        err.contains("owners: ") && err.contains("headwater check --not-carried"),
        "what a copy will not bring: {err}"
    );
    let (code, _, err) = init(&arguments).await;
    assert_eq!(code, Some(1), "an existing file is not written over");
    assert!(err.contains("cannot write"), "{err}");

    // The roles are the cluster's, so other tests' are told apart by the database's name; so are slot and publication.
    let own = |text: &str| {
        text.replace("headwater_reader", &format!("reader_{}", database.name))
            .replace("headwater_writer", &format!("writer_{}", database.name))
            .replace("PUBLICATION headwater ", &format!("PUBLICATION {} ", database.name))
            .replace("# slot = \"headwater\"", &format!("slot = \"{}\"", database.name))
            .replace("# publication = \"headwater\"", &format!("publication = \"{}\"", database.name))
            .replace("# listen = \"127.0.0.1:9477\"", "listen = \"off\"")
    };
    std::fs::write(&file, own(&text)).unwrap();
    let sql = own(&out);
    // README.md shows the same statements, which another test compares with docs/roles.md.
    let page = ["source", "destination", "destination, optional"].map(|mark| statements(mark, &database.name)).concat();
    let page = each_statement(&page);
    let printed = each_statement(&sql);
    assert!(printed.len() >= 8, "{sql}");
    for statement in printed {
        assert!(page.contains(&statement), "docs/roles.md does not say what init prints: {statement}\n{page:#?}");
    }
    let (at_source, at_destination) = sql.split_once("-- At the destination").expect("both halves");
    database.at_source(at_source).await;
    let grantable = at_destination.lines().filter(|line| !line.starts_with(',')).collect::<Vec<_>>().join("\n");
    database.at_destination(grantable.trim_start_matches(", as the database's owner:")).await;
    let config = ["--config", &path];
    let run = |command: &'static str| {
        tokio::process::Command::new(headwater()).arg(command).args(config).kill_on_drop(true).output()
    };
    let checked = run("check").await.unwrap();
    assert_eq!(checked.status.code(), Some(0), "{}", String::from_utf8_lossy(&checked.stdout));
    let service = tokio::spawn(run("run"));
    database.caught_up_when_there().await;
    database.assert_equal().await;
    let verified = run("verify").await.unwrap();
    assert_eq!(verified.status.code(), Some(0), "{}", String::from_utf8_lossy(&verified.stderr));
    service.abort();
    std::fs::remove_file(&file).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_that_cannot_be_replicated_are_said_and_left_out() {
    let schema = "CREATE TABLE good (id int PRIMARY KEY); CREATE TABLE keyless (v text); CREATE UNLOGGED TABLE u (id int PRIMARY KEY)";
    let database = Database::new("initout", &["good"], schema).await;
    let file = parent().join(format!("{}.toml", database.name));
    let path = file.display().to_string();
    let (code, _, err) = init(&[&database.source_url, &database.destination_url, "--output", &path]).await;
    assert_eq!(code, Some(0), "{err}");
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.contains("    \"public.good\","), "{text}");
    assert!(text.contains("    # \"public.keyless\": it has no primary key"), "{text}");
    assert!(!text.contains("public.u"), "{text}");
    std::fs::remove_file(&file).unwrap();
    let (code, _, err) =
        init(&[&database.source_url, &database.destination_url, "--table", "gone", "--output", &path]).await;
    assert_eq!(code, Some(1));
    assert!(err.contains("table public.gone not found at the source"), "{err}");
    let (code, _, err) = init(&["nonsense://", &database.destination_url, "--output", &path]).await;
    assert_eq!(code, Some(2));
    assert!(err.contains("SOURCE_URL"), "{err}");
    let _ = Setup::of(&database);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_password_needs_to_be_an_argument_that_others_can_see() {
    let database = Database::new("initquiet", &["good"], "CREATE TABLE good (id int PRIMARY KEY)").await;
    let file = parent().join(format!("{}.toml", database.name));
    let with_password = |url: &str| url.replacen('@', ":hunter2@", 1);
    let mut command = tokio::process::Command::new(headwater());
    command.args(["init", "--output"]).arg(&file);
    command.env("HEADWATER_SOURCE_URL", with_password(&database.source_url));
    command.env("HEADWATER_DESTINATION_URL", with_password(&database.destination_url));
    let output = command.output().await.expect("headwater starts");
    let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{said}");
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(
        text.contains("    \"public.good\",") && !text.contains("hunter2") && !said.contains("hunter2"),
        "{text}{said}"
    );
    std::fs::remove_file(&file).unwrap();
    // What is in the environment is not shown by --help, nor when something is wrong with it.
    for (arguments, code) in [(&["init", "--help"][..], 0), (&["init", "nonsense://postgres:hunter2@h"], 2)] {
        let mut command = tokio::process::Command::new(headwater());
        command.args(arguments).env("HEADWATER_SOURCE_URL", "postgresql://u:hunter2@h/db");
        command.env("HEADWATER_DESTINATION_URL", "postgresql://u:hunter2@h:port/db");
        let output = command.output().await.expect("headwater starts");
        let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(!said.contains("hunter2"), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn init_lists_owners_of_what_tables_are_made_of_that_do_not_exist_yet() {
    let schema = "CREATE SCHEMA types; CREATE DOMAIN types.d AS int; CREATE SCHEMA app;
        CREATE COLLATION types.c (locale = 'C'); CREATE TABLE app.t (id int PRIMARY KEY, d types.d[], v text COLLATE types.c)";
    let database = Database::of_superuser("init_types", &["app.t"], schema).await;
    let (types, tables) = (format!("types_{}", database.name), format!("tables_{}", database.name));
    let collations = format!("collations_{}", database.name);
    database
        .at_destination(&format!(
            "CREATE ROLE {types} LOGIN; CREATE ROLE {tables} LOGIN; CREATE SCHEMA app AUTHORIZATION {tables};
             CREATE SCHEMA types; CREATE DOMAIN types.d AS int; ALTER DOMAIN types.d OWNER TO {types};
             CREATE ROLE {collations} LOGIN; CREATE COLLATION types.c (locale = 'C'); ALTER COLLATION types.c OWNER TO {collations}"
        ))
        .await;
    let file = parent().join(format!("{}.toml", database.name));
    let path = file.display().to_string();
    let (code, _, err) = init(&[&database.source_url, &database.destination_url, "--output", &path]).await;
    assert_eq!(code, Some(0), "{err}");
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.contains(&format!("\ntrusted_roles = [\"{collations}\", \"{tables}\", \"{types}\"]\n")), "{text}");
    std::fs::remove_file(&file).unwrap();
}

//! The pages can be followed from top to bottom: what README and docs/ show is run as it stands there, in the order in which
//! somebody would come to it. Only names that clusters share between tests are replaced, and addresses given in the environment.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use headwater::commands::demo::free_port;
use headwater::config::{Config, Environment, FileText};

use crate::support::database::connect;
use crate::support::forum::{FORUM, FORUM_SCHEMA};
use crate::support::roles::{as_role, blocks, like, pages};
use crate::support::{Database, Script, Setup, eventually, headwater, parent};

/// Somebody at a terminal, in a directory with his configuration.
struct Terminal {
    dir: PathBuf,
    environment: Vec<(String, String)>,
    /// `headwater run`, when it was started.
    running: Option<tokio::process::Child>,
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("---- headwater's log\n{}", self.log());
        }
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

impl Terminal {
    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("run.log")).unwrap_or_default()
    }

    fn command(&self, line: &str) -> tokio::process::Command {
        let line = line.trim().trim_start_matches("$ ").split(" #").next().unwrap_or_default().trim_end();
        let mut words = line.split_whitespace();
        assert_eq!(words.next(), Some("headwater"), "a line that no test knows: {line}");
        let mut command = tokio::process::Command::new(headwater());
        command.args(words).current_dir(&self.dir).stdin(Stdio::null()).kill_on_drop(true);
        command.env_remove("PGPASSWORD").env_remove("HEADWATER_TEST_ROLES").env_remove("HEADWATER_CONFIG");
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Types a line, waits for its end, and returns what it printed.
    async fn types(&self, line: &str) -> String {
        let output = self.command(line).output().await.expect("headwater starts");
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success(), "{line}: {}\n{text}", output.status);
        text
    }

    /// Types a line that goes on, and waits until the copy is fresh.
    async fn starts(&mut self, line: &str) {
        let log = std::fs::File::create(self.dir.join("run.log")).expect("a log file");
        let mut command = self.command(line);
        command.stdout(log.try_clone().expect("a log file")).stderr(log);
        self.running = Some(command.spawn().expect("headwater starts"));
        self.is_fresh().await;
    }

    async fn is_fresh(&self) {
        eventually("headwater status says that the copy is fresh", || async {
            let output = self.command("headwater status --config headwater.toml").output().await.ok()?;
            output.status.success().then_some(())
        })
        .await;
    }

    async fn stops(&mut self) {
        let mut child = self.running.take().expect("headwater run");
        let process_id = child.id().expect("its number").to_string();
        assert!(std::process::Command::new("kill").args(["-TERM", &process_id]).status().expect("kill runs").success());
        assert_eq!(child.wait().await.expect("its end").code(), Some(0));
    }
}

/// The block of a page that bears this mark.
fn block(page: &str, mark: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(page);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut marked = blocks(&text).into_iter().filter(|(_, _, found)| found.as_deref() == Some(mark));
    let (_, text, _) = marked.next().unwrap_or_else(|| panic!("{page} has no block with <!-- run: {mark} -->"));
    assert!(marked.next().is_none(), "{page} has two blocks with <!-- run: {mark} -->");
    text
}

fn lines(page: &str, mark: &str) -> Vec<String> {
    block(page, mark).lines().map(str::to_owned).collect()
}

/// Somebody who has followed README.md as far as its third step, with names of this test's own.
async fn follow_the_readme(name: &str) -> (Database, Terminal, Names) {
    let database = Database::of_superuser(name, FORUM, FORUM_SCHEMA).await;
    let name = &database.name;
    let names = Names { reader: format!("replicator_{name}"), writer: format!("headwater_{name}") };
    database.at_source(&names.own(&block("README.md", "source, as in docs/roles.md"), name)).await;
    database.at_destination(&names.own(&block("README.md", "destination, as in docs/roles.md"), name)).await;
    let dir = parent().join(format!("terminal-{name}"));
    std::fs::create_dir_all(&dir).expect("a directory");
    std::fs::write(dir.join("headwater.toml"), block("README.md", "first hour, configuration")).expect("a file");
    let port = free_port().expect("a free port");
    let environment = [
        ("HEADWATER_SOURCE_URL", as_role(&database.source_url, &names.reader)),
        ("HEADWATER_DESTINATION_URL", as_role(&database.destination_url, &names.writer)),
        ("HEADWATER_SOURCE_SLOT", name.clone()),
        ("HEADWATER_SPOOL_DIR", dir.join("spool").display().to_string()),
        ("HEADWATER_HTTP_LISTEN", format!("127.0.0.1:{port}")),
    ];
    let environment = environment.map(|(name, value)| (name.to_owned(), value)).to_vec();
    (database, Terminal { dir, environment, running: None }, names)
}

/// Roles are the cluster's, so those of the pages get names of the test's own.
struct Names {
    reader: String,
    writer: String,
}

impl Names {
    fn own(&self, sql: &str, database: &str) -> String {
        sql.replace("headwater_reader", &self.reader)
            .replace("headwater_writer", &self.writer)
            .replace("DATABASE forum ", &format!("DATABASE {database} "))
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn the_pages_can_be_followed_from_top_to_bottom() {
    // README: five steps.
    let (database, mut terminal, _) = follow_the_readme("hour").await;
    let app = format!("app_{}", database.name);
    let first_hour = lines("README.md", "first hour");
    let [check, run] = first_hour.as_slice() else { panic!("{first_hour:?}") };
    assert!(terminal.types(check).await.contains("0 failed"));
    terminal.starts(run).await;
    database.at_source("UPDATE topics SET title = 'new' WHERE id = 2").await;
    database.assert_catches_up().await;

    // docs/guarantees.md: proof, and repair of what somebody has changed.
    let verify = lines("docs/guarantees.md", "verify");
    for (number, line) in verify.iter().enumerate() {
        if number + 1 == verify.len() {
            database.at_destination("UPDATE messages SET body = 'drift' WHERE id = 7").await;
        }
        terminal.types(line).await;
    }
    database.assert_equal().await;

    // docs/roles.md: an application reads what it has written.
    database.at_destination(&format!("CREATE ROLE {app} LOGIN")).await;
    database
        .at_destination(&block("docs/roles.md", "destination, application").replace("TO app;", &format!("TO {app};")))
        .await;
    let application = connect(&like(&format!("//{app}@"), &database.destination_url)).await.expect("the application");
    application
        .script("reading its own writes", &block("docs/roles.md", "application"))
        .await
        .expect("the page's statements");

    // docs/conflicts.md: a transaction is left out, and applied after all.
    database.at_destination("CREATE TABLE kept AS SELECT * FROM messages WHERE id = 9").await;
    let end_lsn = conflict(&database, &terminal).await;
    for line in lines("docs/conflicts.md", "left out") {
        if line.starts_with("headwater replay") {
            database.at_destination("INSERT INTO messages SELECT * FROM kept").await;
        }
        terminal.types(&line.replace("0/1E5CDD0", &end_lsn)).await;
        if line.starts_with("headwater skip") {
            terminal.is_fresh().await;
        }
    }
    database.assert_equal().await;

    // docs/troubleshooting.md: everything that concerns a running service; docs/guarantees.md: it could take over.
    for line in lines("docs/troubleshooting.md", "looking") {
        terminal.types(&line).await;
    }
    for line in lines("docs/guarantees.md", "cutover") {
        assert!(terminal.types(&line).await.contains("the destination may be written"));
    }
    // … and starting over.
    terminal.stops().await;
    for line in lines("docs/troubleshooting.md", "starting over") {
        if line.starts_with("headwater run") {
            terminal.starts(&line).await;
        } else {
            terminal.types(&line).await;
        }
    }
    database.at_source("DELETE FROM messages WHERE id = 9").await;
    database.assert_catches_up().await;
    terminal.stops().await;
}

/// Has a row changed at both ends, and waits until the service has reported the conflict; the end_lsn of its transaction.
async fn conflict(database: &Database, terminal: &Terminal) -> String {
    database.at_destination("DELETE FROM messages WHERE id = 9").await;
    database.at_source("UPDATE messages SET body = 'edited' WHERE id = 9").await;
    eventually("the conflict is reported", || async {
        let log = terminal.log();
        let (_, rest) = log.rsplit_once("headwater skip --end-lsn ")?;
        Some(rest.chars().take_while(|c| c.is_ascii_hexdigit() || *c == '/').collect::<String>())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn the_how_to_pages_do_what_they_say() {
    let (database, mut terminal, names) = follow_the_readme("howto").await;
    terminal.starts("headwater run").await;
    for mark in ["resync", "resync, all"] {
        for line in lines("docs/how-to/resync.md", mark) {
            terminal.types(&line).await;
        }
    }
    terminal.stops().await;
    terminal.starts(&block("docs/how-to/resync.md", "resync, start")).await;
    database.assert_equal().await;

    let end_lsn = conflict(&database, &terminal).await;
    let show = block("docs/how-to/conflict.md", "conflict, open");
    let shown = terminal.command(&show).output().await.expect("headwater starts");
    assert_eq!(shown.status.code(), Some(1), "{}", String::from_utf8_lossy(&shown.stderr));
    assert!(String::from_utf8_lossy(&shown.stdout).contains("edited"), "the row's values");
    for line in lines("docs/how-to/conflict.md", "conflict, skip") {
        terminal.types(&line.replace("0/1E5CDD0", &end_lsn)).await;
        if line.starts_with("headwater skip") {
            terminal.is_fresh().await;
        }
    }
    database.assert_equal().await;

    for line in lines("docs/how-to/migrate.md", "migrate") {
        terminal.types(&line).await;
    }
    let cut_over = block("docs/how-to/migrate.md", "migrate, cut over");
    assert!(terminal.types(&cut_over).await.contains("the destination may be written"));
    terminal.stops().await;
    for line in lines("docs/how-to/uninstall.md", "uninstall") {
        terminal.types(&line).await;
    }
    database.at_source(&names.own(&block("docs/how-to/uninstall.md", "uninstall, source"), &database.name)).await;
    let at_destination = block("docs/how-to/uninstall.md", "uninstall, destination");
    database.at_destination(&names.own(&at_destination, &database.name)).await;
    let rows = database.destination_value("SELECT count(*)::text FROM messages").await;
    assert_eq!(rows.as_deref(), Some("5000"), "teardown keeps the rows");
}

/// The tutorial as one script: its blocks in their order, on ports and in a directory of the test's own.
fn tutorial(dir: &Path) -> String {
    let page =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/tutorial.md")).expect("the page");
    let ports: Vec<String> = (0..3).map(|_| free_port().expect("a free port").to_string()).collect();
    let mut script = format!(
        "set -eu; export HOME={dir}; unset PGPASSWORD HEADWATER_CONFIG HEADWATER_TEST_ROLES
         export HEADWATER_HTTP_LISTEN=127.0.0.1:{}
         trap 'kill $(jobs -p) || true; for end in source destination; do
             pg_ctl --pgdata={dir}/tutorial/$end --mode=immediate stop || true; done' EXIT
         cd {dir}\n",
        ports[2],
        dir = dir.display(),
    );
    for (_, text, mark) in blocks(&page) {
        let text = match mark.as_deref() {
            Some("tutorial, once") => text.replace("$PWD/target/release", "$PWD"),
            Some("tutorial") => text,
            Some("tutorial, exit 1") => format!("{text} && exit 99 || [ $? -eq 1 ]"),
            Some(_) | None => continue,
        };
        script.push_str(&text);
        script.push('\n');
    }
    script.replace("5441", &ports[0]).replace("5442", &ports[1])
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn the_tutorial_can_be_typed_as_it_stands() {
    let dir = parent().join(format!("tutorial-{:08x}", fastrand::u32(..)));
    std::fs::create_dir_all(&dir).expect("a directory");
    std::fs::copy(headwater(), dir.join("headwater")).expect("the program");
    let script = tutorial(&dir);
    std::fs::write(dir.join("script"), &script).expect("the script");
    // The whole of it has a bound: what it waits for may never come. PostgreSQL refuses to run as root.
    let mut command = tokio::process::Command::new("timeout");
    command.args(["--kill-after=10", "600"]);
    if std::fs::metadata("/proc/self").expect("this process").uid() == 0 {
        let owner = "postgres";
        let chown = std::process::Command::new("chown").args(["-R", owner]).arg(&dir).status().expect("chown runs");
        assert!(chown.success());
        command.args(["setpriv", "--reuid", owner, "--clear-groups"]);
    }
    command.arg("bash").arg(dir.join("script")).current_dir(&dir).stdin(Stdio::null());
    let output = command.output().await.expect("the script starts");
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{}\n{script}\n{text}", output.status);
    for promised in ["hello", "1 row differs", "equal after the repair", "199001 rows", "removed: the bookkeeping"] {
        assert!(text.contains(promised), "the tutorial says {promised:?}:\n{text}");
    }
    assert!(!dir.join("tutorial").exists(), "the tutorial cleans up");
    std::fs::remove_dir_all(&dir).expect("the directory");
}

/// Marks of blocks that a test runs: those above, and those of `support::roles`.
const RUN: &[&str] = &[
    "first hour, configuration",
    "source, as in docs/roles.md",
    "destination, as in docs/roles.md",
    "resync",
    "resync, all",
    "resync, start",
    "conflict, open",
    "conflict, skip",
    "migrate",
    "migrate, cut over",
    "uninstall",
    "uninstall, source",
    "uninstall, destination",
    "tutorial, once",
    "tutorial",
    "tutorial, exit 1",
    "first hour",
    "verify",
    "destination, application",
    "application",
    "left out",
    "looking",
    "cutover",
    "starting over",
    "source",
    "source, headwater makes the publication",
    "source, optional",
    "destination",
    "destination, tables that exist",
    "destination, optional",
    "destination, monitor",
    // A piece of a configuration, which is read here.
    "configuration",
    // Targets of the Makefile, which CI runs.
    "make",
    // Statements for a service that no test can reach; tests/docs compares them with the hints and the roles.
    "at the provider",
];

#[test]
fn every_block_of_the_pages_is_run_by_a_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut seen = Vec::new();
    for page in pages() {
        let text = std::fs::read_to_string(&page).expect("a page");
        for (language, text, mark) in blocks(&text) {
            // What is printed, and figures of speech, are text.
            if language == "text" {
                continue;
            }
            let mark = mark.unwrap_or_else(|| panic!("{}: no test runs\n{text}", page.display()));
            assert!(RUN.contains(&mark.as_str()), "{}: no test runs blocks marked {mark:?}", page.display());
            if language == "toml" {
                let file = FileText { name: "headwater.toml", text: &text };
                // An end that the piece does not name is one of another block.
                let others = ["source", "destination"].into_iter().filter(|end| !text.contains(&format!("[{end}]")));
                let others = others.map(|end| {
                    (
                        format!("HEADWATER_{}_URL", end.to_uppercase()),
                        format!("postgresql://headwater@{end}.internal/forum"),
                    )
                });
                let read = Config::parse(Some(file), &Environment::from_iter(others));
                assert!(read.is_ok(), "{}: {:?} in\n{text}", page.display(), read.err());
            }
            if mark == "make" {
                let makefile = std::fs::read_to_string(root.join("Makefile")).expect("the Makefile");
                for line in text.lines() {
                    let target = line.trim_start_matches("$ make ").split_whitespace().next().unwrap_or_default();
                    assert!(makefile.contains(&format!("\n{target}:")), "no target {target:?}");
                }
            }
            seen.push(mark);
        }
    }
    let missing: Vec<&&str> = RUN.iter().filter(|mark| !seen.iter().any(|found| found == *mark)).collect();
    assert!(missing.is_empty(), "no page has blocks marked {missing:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_in_the_working_directory_is_found_and_its_absence_is_said() {
    let dir = parent().join(format!("found-{:08x}", fastrand::u32(..)));
    std::fs::create_dir_all(&dir).unwrap();
    let check = async || {
        let mut command = tokio::process::Command::new(headwater());
        command.arg("check").current_dir(&dir).stdin(Stdio::null()).env_remove("HEADWATER_CONFIG");
        command.env_remove("HEADWATER_TEST_ROLES");
        let output = command.output().await.unwrap();
        assert_eq!(output.status.code(), Some(2));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    // A machine may have one of its own.
    if !Path::new("/etc/headwater/headwater.toml").exists() {
        let said = check().await;
        assert!(
            said.contains("No configuration file was found (./headwater.toml, /etc/headwater/headwater.toml)"),
            "{said}"
        );
    }
    std::fs::write(dir.join("headwater.toml"), "[source]\nslot = 5\n").unwrap();
    let said = check().await;
    assert!(said.contains("./headwater.toml:2: source.slot: expected name, not an integer"), "{said}");
    std::fs::remove_dir_all(&dir).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_in_etc_is_found_after_one_in_the_working_directory() {
    let database = Database::new("etc", FORUM, FORUM_SCHEMA).await;
    let setup = Setup::of(&database);
    let dir = parent().join(format!("etc-{:08x}", fastrand::u32(..)));
    std::fs::create_dir_all(dir.join("work")).unwrap();
    std::fs::write(dir.join("found.toml"), setup.configuration_text()).unwrap();
    // With an /etc of its own. The file may be everybody's, as one of a container is.
    let script = "set -e; cp -a /etc/. \"$0/etc/\"; mkdir -p \"$0/etc/headwater\"; cp \"$0/found.toml\" \"$0/etc/headwater/headwater.toml\"
        chown 65534 \"$0/etc/headwater/headwater.toml\"; mount --bind \"$0/etc\" /etc; cd \"$0/work\"; exec \"$@\"";
    std::fs::create_dir_all(dir.join("etc")).unwrap();
    let run = async |program: &str, arguments: &[&str]| {
        let mut command = tokio::process::Command::new("unshare");
        command.args(["--mount", "sh", "-c", script]).arg(&dir).arg(program).args(arguments);
        command.stdin(Stdio::null()).env_remove("HEADWATER_CONFIG").env_remove("HEADWATER_TEST_ROLES");
        let output = command.output().await.unwrap();
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        (output.status.code(), text)
    };
    let (code, text) = run("true", &[]).await;
    if code != Some(0) {
        println!("not run: no mount namespace of one's own: {text}");
        return;
    }
    let program = headwater().to_str().unwrap();
    let (code, text) = run(program, &["check"]).await;
    assert_eq!(code, Some(0), "{text}");
    let warned = "warning: configuration file /etc/headwater/headwater.toml belongs to user 65534";
    assert!(text.contains(&database.name) && text.contains(warned), "{text}");
    std::fs::write(dir.join("work/headwater.toml"), "[source]\nslot = 5\n").unwrap();
    let (code, text) = run(program, &["check"]).await;
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("./headwater.toml:2: source.slot: expected name, not an integer"), "{text}");
    std::fs::remove_dir_all(&dir).unwrap();
}

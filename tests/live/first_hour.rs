//! The pages can be followed from top to bottom: what README and docs/ show is run as it stands there, in the order in which
//! somebody would come to it. Only names that clusters share between tests are replaced, and addresses given in the environment.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use headwater::commands::demo::free_port;
use headwater::config::{Config, Environment, FileText};

use crate::support::database::connect;
use crate::support::forum::{FORUM, FORUM_SCHEMA};
use crate::support::roles::{as_role, blocks, like};
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

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn the_pages_can_be_followed_from_top_to_bottom() {
    let database = Database::of_superuser("hour", FORUM, FORUM_SCHEMA).await;
    let name = &database.name;
    let (reader, writer, app) = (format!("replicator_{name}"), format!("headwater_{name}"), format!("app_{name}"));
    // README: five steps.
    database.at_source(&block("README.md", "first hour, source").replace("replicator", &reader)).await;
    let here = block("README.md", "first hour, destination");
    let here =
        here.replace("ROLE headwater ", &format!("ROLE {writer} ")).replace("TO headwater;", &format!("TO {writer};"));
    database.at_destination(&here.replace("DATABASE forum ", &format!("DATABASE {name} "))).await;
    let dir = parent().join(format!("terminal-{name}"));
    std::fs::create_dir_all(&dir).expect("a directory");
    std::fs::write(dir.join("headwater.toml"), block("README.md", "first hour, configuration")).expect("a file");
    let port = free_port().expect("a free port");
    let environment = [
        ("HEADWATER_SOURCE_URL", as_role(&database.source_url, &reader)),
        ("HEADWATER_DESTINATION_URL", as_role(&database.destination_url, &writer)),
        ("HEADWATER_SOURCE_SLOT", name.clone()),
        ("HEADWATER_SPOOL_DIR", dir.join("spool").display().to_string()),
        ("HEADWATER_HTTP_LISTEN", format!("127.0.0.1:{port}")),
    ];
    let environment = environment.map(|(name, value)| (name.to_owned(), value)).to_vec();
    let mut terminal = Terminal { dir, environment, running: None };
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
    database
        .at_destination("CREATE TABLE kept AS SELECT * FROM messages WHERE id = 9; DELETE FROM messages WHERE id = 9")
        .await;
    database.at_source("UPDATE messages SET body = 'edited' WHERE id = 9").await;
    let end_lsn = eventually("the conflict is told", || async {
        let log = terminal.log();
        let (_, rest) = log.rsplit_once("headwater skip --end-lsn ")?;
        Some(rest.chars().take_while(|c| c.is_ascii_hexdigit() || *c == '/').collect::<String>())
    })
    .await;
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

/// Marks of blocks that a test runs: those above, and those of `support::roles`.
const RUN: &[&str] = &[
    "first hour, source",
    "first hour, destination",
    "first hour, configuration",
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
];

#[test]
fn every_block_of_the_pages_is_run_by_a_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let docs = std::fs::read_dir(root.join("docs")).expect("docs").map(|entry| entry.expect("an entry").path());
    let pages = docs.filter(|path| path.extension().is_some_and(|extension| extension == "md"));
    let mut seen = Vec::new();
    for page in pages.chain([root.join("README.md")]) {
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
                let url = ("HEADWATER_DESTINATION_URL".to_owned(), "postgresql://headwater@localhost/forum".to_owned());
                let read = Config::parse(Some(file), &Environment::from_iter([url]));
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

//! A throw-away PostgreSQL cluster: its own directory, a free port, gone when it is dropped.
//!
//! Used by `headwater demo` and by the live tests. PostgreSQL refuses to run as root, so as root the server runs as the user
//! `postgres`, or `nobody` where that is missing. The server is the child of a small shell that holds the other end of a pipe:
//! when this process ends, however it ends, the pipe closes, and the shell stops the server and removes the directory.
//!
//! Bounds: starting and stopping wait at most [`PATIENCE`].

use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::config::{ConnectionSettings, Environment};
use crate::session::{Sql, SqlClient};

/// A server that takes longer to start or stop is broken.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs the server; when its standard input closes, stops it and removes the directory.
const KEEPER: &str = r#"
dir=$1; shift
"$@" </dev/null & server=$!
read -r _
kill -QUIT $server 2>/dev/null
wait $server 2>/dev/null
rm -rf "$dir"
"#;

/// How a server is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopMode {
    /// Sessions are ended, then a checkpoint (`pg_ctl stop -m fast`).
    Fast,
    /// At once, as in a crash (`pg_ctl stop -m immediate`).
    Immediate,
}

/// A running, or stopped, cluster.
#[derive(Debug)]
pub struct Cluster {
    bin: PathBuf,
    dir: PathBuf,
    port: u16,
    settings: Vec<(String, String)>,
    owner: Option<Owner>,
    keeper: Option<Child>,
}

/// The user that the server runs as, when we are root.
#[derive(Clone, Copy, Debug)]
struct Owner {
    uid: u32,
    gid: u32,
}

impl Owner {
    /// `None` when this process can run the server as itself.
    fn find() -> io::Result<Option<Owner>> {
        // The owner of /proc/self is the user of this process.
        let probe = std::fs::metadata("/proc/self")?;
        if probe.uid() != 0 {
            return Ok(None);
        }
        let users = std::fs::read_to_string("/etc/passwd")?;
        let find = |name: &str| {
            let line = users.lines().find(|line| line.split(':').next() == Some(name))?;
            let mut fields = line.split(':').skip(2);
            Some(Owner { uid: fields.next()?.parse().ok()?, gid: fields.next()?.parse().ok()? })
        };
        let owner = find("postgres").or_else(|| find("nobody"));
        owner.map(Some).ok_or_else(|| io::Error::other("neither user postgres nor nobody exists to run the server as"))
    }

    fn give(owner: Option<Owner>, path: &Path) -> io::Result<()> {
        match owner {
            Some(owner) => chown(path, Some(owner.uid), Some(owner.gid)),
            None => Ok(()),
        }
    }
}

/// Where the server's programs are: the newest of Debian's packages, or what PATH finds.
pub fn installed_bin() -> Option<PathBuf> {
    let packaged = std::fs::read_dir("/usr/lib/postgresql").ok().and_then(|versions| {
        versions
            .filter_map(Result::ok)
            .filter_map(|entry| Some((entry.file_name().to_str()?.parse::<u32>().ok()?, entry.path().join("bin"))))
            .filter(|(_, bin)| bin.join("initdb").exists())
            .max_by_key(|(version, _)| *version)
            .map(|(_, bin)| bin)
    });
    packaged.or_else(|| {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path).find(|dir| dir.join("initdb").exists() && dir.join("postgres").exists())
    })
}

impl Cluster {
    /// Makes a cluster in a new directory below `parent` with the server programs in `bin`, and starts it.
    ///
    /// # Errors
    /// What the programs said, or the operating system.
    pub async fn start_new(
        bin: &Path,
        parent: &Path,
        name: &str,
        settings: &[(&str, &str)],
        initdb_arguments: &[&str],
    ) -> io::Result<Cluster> {
        let owner = Owner::find()?;
        let dir = parent.join(format!("{name}-{:08x}", fastrand::u32(..)));
        std::fs::create_dir_all(&dir)?;
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o755))?;
        Owner::give(owner, &dir)?;
        let mut cluster = Cluster {
            bin: bin.to_owned(),
            port: free_port()?,
            settings: settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            dir,
            owner,
            keeper: None,
        };
        let data = cluster.data();
        let mut initdb = cluster.program("initdb");
        initdb.args(["--auth=trust", "--username=postgres", "--no-sync", "--encoding=UTF8", "--locale=C"]);
        initdb.args(initdb_arguments).arg("--pgdata").arg(&data);
        let output = initdb.stdin(Stdio::null()).output()?;
        if !output.status.success() {
            return Err(io::Error::other(format!("initdb: {}", String::from_utf8_lossy(&output.stderr))));
        }
        cluster.start().await?;
        Ok(cluster)
    }

    /// A copy of this cluster, which must be stopped, below `parent`; not started. With `standby` it starts as a standby.
    ///
    /// # Errors
    /// The operating system's.
    pub fn copy(&self, parent: &Path, name: &str, settings: &[(&str, &str)], standby: bool) -> io::Result<Cluster> {
        let dir = parent.join(format!("{name}-{:08x}", fastrand::u32(..)));
        std::fs::create_dir_all(&dir)?;
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o755))?;
        Owner::give(self.owner, &dir)?;
        let copied = Command::new("cp").arg("-a").arg(self.data()).arg(&dir).status()?;
        if !copied.success() {
            return Err(io::Error::other("the cluster's files could not be copied"));
        }
        let own = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let own: Vec<(String, String)> = own.collect();
        let inherited = self.settings.iter().filter(|(name, _)| own.iter().all(|(other, _)| other != name)).cloned();
        let copy = Cluster {
            bin: self.bin.clone(),
            port: free_port()?,
            settings: inherited.chain(own.clone()).collect(),
            dir,
            owner: self.owner,
            keeper: None,
        };
        if standby {
            let signal = copy.data().join("standby.signal");
            std::fs::write(&signal, "")?;
            Owner::give(self.owner, &signal)?;
        }
        Ok(copy)
    }

    fn program(&self, name: &str) -> Command {
        self.as_owner(Command::new(self.bin.join(name)))
    }

    fn as_owner(&self, mut command: Command) -> Command {
        // The server's locale is its own affair, and PG… variables of the caller are not meant for it.
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("LC_ALL", "C");
        command.current_dir("/");
        if let Some(owner) = self.owner {
            command.uid(owner.uid).gid(owner.gid);
        }
        command
    }

    fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// The directory that holds the socket, the data and the log.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The port, on 127.0.0.1 and in the socket's name.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What the server has logged.
    pub fn log(&self) -> String {
        let text = std::fs::read(self.dir.join("log")).unwrap_or_default();
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Starts the server and waits until it answers.
    ///
    /// # Errors
    /// The end of its log when it does not come up.
    pub async fn start(&mut self) -> io::Result<()> {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.dir.join("log"))?;
        Owner::give(self.owner, &self.dir.join("log"))?;
        let mut command = self.as_owner(Command::new("/bin/sh"));
        command.args(["-c", KEEPER, "keeper"]).arg(&self.dir).arg(self.bin.join("postgres"));
        command.arg("-D").arg(self.data());
        let own = [
            ("port".to_owned(), self.port.to_string()),
            ("listen_addresses".to_owned(), "127.0.0.1".to_owned()),
            ("unix_socket_directories".to_owned(), self.dir.display().to_string()),
        ];
        for (name, value) in own.iter().chain(&self.settings) {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        command.stdin(Stdio::piped()).stdout(log.try_clone()?).stderr(log);
        // A signal of the terminal's is ours to handle: the server goes when we let it go.
        command.process_group(0);
        self.keeper = Some(command.spawn()?);
        let began = Instant::now();
        while self.connect("postgres").await.is_err() {
            let ended = self.keeper.as_mut().is_some_and(|keeper| matches!(keeper.try_wait(), Ok(Some(_))));
            if ended || began.elapsed() > PATIENCE || !self.is_running_or_starting(began) {
                let log = self.log();
                let tail: Vec<&str> = log.lines().rev().take(8).collect();
                let tail: Vec<&str> = tail.into_iter().rev().collect();
                return Err(io::Error::other(format!("the server did not start:\n{}", tail.join("\n"))));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// The postmaster writes its pid within moments; after that, no pid means that it has ended.
    fn is_running_or_starting(&self, began: Instant) -> bool {
        began.elapsed() < Duration::from_secs(10) || self.process_id().is_some()
    }

    /// The postmaster, if it runs.
    pub fn process_id(&self) -> Option<u32> {
        let text = std::fs::read_to_string(self.data().join("postmaster.pid")).ok()?;
        let process_id: u32 = text.lines().next()?.trim().parse().ok()?;
        lives(process_id).then_some(process_id)
    }

    /// Stops the server, unless it has ended by itself, and waits until it has ended; its directory stays.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn stop(&mut self, mode: StopMode) -> io::Result<()> {
        if let Some(process_id) = self.process_id() {
            let signal = match mode {
                StopMode::Fast => "-INT",
                StopMode::Immediate => "-QUIT",
            };
            Command::new("kill").arg(signal).arg(process_id.to_string()).stderr(Stdio::null()).status()?;
            let began = Instant::now();
            while lives(process_id) {
                if began.elapsed() > PATIENCE {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, "the server does not stop"));
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        // The keeper waits for its pipe; it must not take the directory along.
        if let Some(mut keeper) = self.keeper.take() {
            let _ = keeper.kill();
            let _ = keeper.wait();
        }
        Ok(())
    }

    /// Changes a setting for the next start.
    pub fn set(&mut self, name: &str, value: &str) {
        self.settings.retain(|(known, _)| known != name);
        self.settings.push((name.to_owned(), value.to_owned()));
    }

    /// The URL of a database over the Unix socket, as a superuser.
    pub fn url(&self, database: &str) -> String {
        format!("postgresql://postgres@/{database}?host={}&port={}", self.dir.display(), self.port)
    }

    /// The URL of a database over TCP, as a superuser.
    pub fn tcp_url(&self, database: &str) -> String {
        format!("postgresql://postgres@127.0.0.1:{}/{database}", self.port)
    }

    /// Opens a SQL session as a superuser.
    ///
    /// # Errors
    /// The session's.
    pub async fn connect(&self, database: &str) -> io::Result<SqlClient> {
        let connection = ConnectionSettings::parse(&self.url(database), &Environment::new())
            .map_err(|problems| io::Error::other(problems.join("; ")))?;
        let sql = Sql { connection, purpose: "observer", timeout: Duration::from_secs(600) };
        sql.connect().await.map_err(io::Error::other)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        match self.keeper.take() {
            // Closing its input makes it stop the server and remove the directory.
            Some(mut keeper) => {
                drop(keeper.stdin.take());
                let _ = keeper.wait();
            }
            None => {
                let _ = std::fs::remove_dir_all(&self.dir);
            }
        }
    }
}

/// Whether a process runs. One that has ended may wait for its parent, the keeper, to take notice.
fn lives(process_id: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{process_id}/stat")).unwrap_or_default();
    // The state is the first field behind the program's name, which is in parentheses.
    stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().next()).is_some_and(|state| state != "Z")
}

/// A port that nobody listens on, below those that Linux gives to outgoing connections (ip_local_port_range), one of which may take
/// any of its own at any moment. Another server may still take it before ours does; then it says so.
///
/// # Errors
/// The operating system's, when none of a hundred could be had.
pub fn free_port() -> io::Result<u16> {
    let mut taken = Ok(0);
    for _ in 0..100 {
        let port = fastrand::u16(20_000..32_000);
        taken = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).map(|_| port);
        if taken.is_ok() {
            break;
        }
    }
    taken
}

//! The service manager: what it is told, and whether it accepts the unit and finds it closed enough.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use headwater::commands::demo::StopMode;

use crate::support::forum::{FORUM, FORUM_SCHEMA};
use crate::support::{Database, Setup, eventually, headwater, new_destination, parent, tools};

/// What a service manager hears.
struct Heard {
    socket: UnixDatagram,
    all: std::cell::RefCell<Vec<String>>,
}

impl Heard {
    fn on(socket: UnixDatagram) -> Heard {
        socket.set_nonblocking(true).unwrap();
        Heard { socket, all: std::cell::RefCell::new(Vec::new()) }
    }

    fn lines(&self) -> Vec<String> {
        let mut buffer = [0; 8192];
        while let Ok(length) = self.socket.recv(&mut buffer) {
            let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
            self.all.borrow_mut().extend(text.lines().map(str::to_owned));
        }
        self.all.borrow().clone()
    }

    async fn hears(&self, wanted: &str) {
        eventually(&format!("the manager hears {wanted:?}"), || async {
            self.lines().iter().any(|line| line.contains(wanted)).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_manager_hears_ready_alive_the_state_and_stopping() {
    let database = Database::new("notify", FORUM, FORUM_SCHEMA).await;
    let name = format!("headwater-test-{:08x}", fastrand::u32(..));
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    let heard = Heard::on(UnixDatagram::bind_addr(&address).unwrap());
    let mut setup = Setup::of(&database);
    setup.environment.push(("NOTIFY_SOCKET".to_owned(), format!("@{name}")));
    setup.environment.push(("WATCHDOG_USEC".to_owned(), "600000".to_owned()));
    let service = setup.start();
    heard.hears("READY=1").await;
    heard.hears("STATUS=streaming, ").await;
    let alive = || heard.lines().iter().filter(|line| *line == "WATCHDOG=1").count();
    let before = alive();
    eventually("the manager hears that it is alive", || async { (alive() > before + 3).then_some(()) }).await;
    service.stop().await;
    let all = heard.lines();
    assert!(all.contains(&"STOPPING=1".to_owned()), "{all:?}");
    assert_eq!(all.iter().filter(|line| *line == "READY=1").count(), 1, "{all:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_down_delays_no_boot_and_a_wrong_configuration_is_never_ready() {
    let mut destination = new_destination(&[]).await;
    let source = crate::support::source().await;
    let database = Database::on(source, &destination, "notifydown", FORUM, FORUM_SCHEMA).await;
    destination.stop(StopMode::Fast).await.unwrap();
    let path = parent().join(format!("notify-{:08x}", fastrand::u32(..)));
    let heard = Heard::on(UnixDatagram::bind(&path).unwrap());
    let mut setup = Setup::of(&database);
    setup.environment.push(("NOTIFY_SOCKET".to_owned(), path.display().to_string()));
    let service = setup.start();
    heard.hears("READY=1").await;
    heard.hears("STATUS=connecting: destination: ").await;
    service.stop().await;

    let heard_before = heard.lines().len();
    setup.tables = vec!["public.nowhere".to_owned()];
    destination.start().await.unwrap();
    setup.start().ends_with(1).await;
    let later = heard.lines().split_off(heard_before);
    assert!(!later.iter().any(|line| line == "READY=1"), "{later:?}");
    std::fs::remove_file(&path).unwrap();
}

/// The units as they are packaged, with the program that was built, by the names of a service and of one instance.
fn units() -> [(&'static str, String); 2] {
    [("headwater.service", "headwater.service"), ("headwater@.service", "headwater@forum.service")].map(
        |(file, name)| {
            let text = std::fs::read_to_string(format!("deploy/systemd/{file}")).expect("the unit");
            (name, text.replace("/usr/bin/headwater", &headwater().display().to_string()))
        },
    )
}

/// The values that a unit has for a setting.
fn values<'a>(unit: &'a str, name: &str) -> Vec<&'a str> {
    let lines = unit.lines().filter_map(|line| line.split_once('='));
    lines.filter(|(setting, _)| *setting == name).map(|(_, value)| value).collect()
}

#[test]
fn the_units_let_no_core_file_take_passwords_to_disk() {
    for (name, unit) in units() {
        assert_eq!(values(&unit, "LimitCORE"), ["0"], "{name}");
    }
}

#[test]
fn the_units_read_settings_that_are_roots_alone() {
    for (name, unit) in units() {
        // The user of the service is nobody's, and what `init` writes is its writer's.
        assert_eq!(values(&unit, "DynamicUser"), ["yes"], "{name}");
        let starts = values(&unit, "ExecStart");
        assert!(starts.iter().all(|start| start.contains(" --config %d/headwater.toml ")), "{name}: {starts:?}");
        let file = if name.contains('@') { "%i" } else { "headwater" };
        assert_eq!(values(&unit, "LoadCredential"), [format!("headwater.toml:/etc/headwater/{file}.toml")], "{name}");
    }
}

#[test]
fn an_instance_has_settings_passwords_and_a_spool_of_its_own_and_is_closed_alike() {
    let [(_, unit), (_, instance)] = units();
    let settings = |unit: &str| -> Vec<String> {
        unit.lines().filter(|line| line.contains('=') && !line.starts_with('#')).map(str::to_owned).collect()
    };
    let shared = settings(&unit);
    let own: Vec<String> = settings(&instance).into_iter().filter(|line| !shared.contains(line)).collect();
    assert_eq!(settings(&instance).len(), shared.len() + 1, "nothing is left out");
    assert_eq!(own.len(), 6, "{own:#?}");
    assert!(own.iter().all(|line| line.contains("%i")), "{own:#?}");
}

#[test]
fn systemd_accepts_the_units_and_finds_them_closed() {
    let Some(analyze) = tools::program("systemd-analyze") else { return };
    let dir = parent().join(format!("unit-{:08x}", fastrand::u32(..)));
    std::fs::create_dir_all(&dir).unwrap();
    for (name, unit) in units() {
        let file = dir.join(name);
        std::fs::write(&file, unit).unwrap();
        let file = file.to_str().unwrap();
        let (accepted, words) = tools::run(&analyze, &["verify", "--man=no", file], "");
        assert!(accepted && !words.contains(name), "{words}");
        let (_, words) = tools::run(&analyze, &["security", "--offline=true", "--no-pager", file], "");
        let (_, score) = words.split_once(&format!("Overall exposure level for {name}: ")).expect("a score");
        let score: f64 = score.split_whitespace().next().and_then(|score| score.parse().ok()).expect("a number");
        assert!(score < 2.0, "{words}");
    }
    std::fs::remove_dir_all(&dir).unwrap();
}

//! The service manager: what it is told, and whether it accepts the unit and finds it closed enough.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use headwater::commands::demo::StopMode;

use crate::basics::{FORUM, FORUM_SCHEMA};
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
async fn a_server_that_is_down_does_not_hold_up_the_boot_and_a_wrong_configuration_is_never_ready() {
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

/// The unit as it is packaged, with the program that was built.
fn unit() -> String {
    let text = std::fs::read_to_string("deploy/systemd/headwater.service").expect("the unit");
    text.replace("/usr/bin/headwater", &headwater().display().to_string())
}

#[test]
fn the_unit_lets_no_core_file_take_passwords_to_disk() {
    let unit = unit();
    let limits: Vec<&str> = unit.lines().filter(|line| line.starts_with("LimitCORE")).collect();
    assert_eq!(limits, ["LimitCORE=0"]);
}

#[test]
fn systemd_accepts_the_unit_and_finds_it_closed() {
    let Some(analyze) = tools::program("systemd-analyze") else { return };
    let dir = parent().join(format!("unit-{:08x}", fastrand::u32(..)));
    std::fs::create_dir_all(&dir).unwrap();
    let file = dir.join("headwater.service");
    std::fs::write(&file, unit()).unwrap();
    let file = file.to_str().unwrap();
    let (accepted, words) = tools::run(&analyze, &["verify", "--man=no", file], "");
    assert!(accepted && !words.contains("headwater.service"), "{words}");
    let (_, words) = tools::run(&analyze, &["security", "--offline=true", "--no-pager", file], "");
    let (_, score) = words.split_once("Overall exposure level for headwater.service: ").expect("a score");
    let score: f64 = score.split_whitespace().next().and_then(|score| score.parse().ok()).expect("a number");
    assert!(score < 2.0, "{words}");
    std::fs::remove_dir_all(&dir).unwrap();
}

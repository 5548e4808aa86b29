//! A service that waits at a named point until its test lets it continue.

use std::path::PathBuf;

use super::{Setup, eventually, parent};

/// A point at which a service waits for its test.
pub struct Pause {
    file: PathBuf,
}

impl Pause {
    /// The same setup, whose service waits when it comes to `point` for the first time.
    pub fn at(point: &str, setup: Setup) -> (Setup, Pause) {
        let file = parent().join(format!("pause-{:08x}", fastrand::u32(..)));
        let mut setup = setup;
        setup.environment.push(("HEADWATER_PAUSE".to_owned(), format!("{point}={}", file.display())));
        (setup, Pause { file })
    }

    /// Waits until the service waits.
    pub async fn reached(&self) {
        eventually("the service has come to the point", || async { self.file.exists().then_some(()) }).await;
    }

    /// Lets the service go on.
    pub fn end(&self) {
        std::fs::remove_file(&self.file).expect("the file that keeps the service waiting");
    }
}

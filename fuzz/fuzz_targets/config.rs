//! The configuration: whatever the file says, the answer is settings or sentences, and no sentence holds a password.

#![no_main]

use headwater::config::{Config, ConnectionSettings, Environment, FileText};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let environment = Environment::new();
    let _ = Config::parse(Some(FileText { name: "headwater.toml", text }), &environment);
    if let Ok(settings) = ConnectionSettings::parse(text, &environment) {
        if let Some(password) = settings.password.as_ref().map(|secret| secret.reveal()).filter(|p| p.len() > 12) {
            let elsewhere = settings.user.contains(password) || settings.database.contains(password);
            assert!(elsewhere || !settings.to_string().contains(password));
        }
    }
});

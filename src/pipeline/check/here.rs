//! This machine's part of the list: where spooled transactions go.

use std::path::Path;
use std::process::Stdio;

use super::{About, Findings};
use crate::config::Config;
use crate::pg::ErrorReport;

const HERE: About = About::Here;

pub(super) async fn look(config: &Config, findings: &mut Findings) {
    let dir = &config.spool.dir;
    let shown = dir.display();
    let Some(existing) = dir.ancestors().find(|dir| dir.is_dir()) else { return };
    if !may_write(existing) {
        let report = ErrorReport::new(format!("spool.dir {shown} cannot be written"))
            .detail("Source transactions that memory does not hold while they are in progress are kept there.")
            .hint(format!("Create it for the user that runs headwater, or set spool.dir:\nmkdir -p {shown}"));
        findings.warn(HERE, "spool", report);
        return;
    }
    match free_bytes(existing).await {
        Some(free) if free < config.spool.bytes_max => {
            let report =
                ErrorReport::new(format!("{} MB are free below {shown}, less than spool.bytes_max", free >> 20))
                    .detail(format!("spool.bytes_max is {} MB.", config.spool.bytes_max >> 20))
                    .hint("Make room, or lower spool.bytes_max: reading from the source waits when it is reached.");
            findings.warn(HERE, "spool", report);
        }
        Some(free) => findings.ok(HERE, "spool", format!("{shown}: {} MB are free", free >> 20)),
        None => findings.ok(HERE, "spool", format!("{shown} can be written")),
    }
}

/// Whether a file can be made there: made and removed at once, because access bits do not tell of read-only mounts.
fn may_write(dir: &Path) -> bool {
    let probe = dir.join(format!(".headwater-check-{:08x}", fastrand::u32(..)));
    let made = std::fs::OpenOptions::new().write(true).create_new(true).open(&probe).is_ok();
    made && std::fs::remove_file(&probe).is_ok()
}

/// What df says; the standard library does not know.
pub(super) async fn free_bytes(dir: &Path) -> Option<u64> {
    let output = tokio::process::Command::new("df").arg("-Pk").arg(dir).stdin(Stdio::null()).output().await.ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let kilobytes: u64 = text.lines().nth(1)?.split_whitespace().nth(3)?.parse().ok()?;
    kilobytes.checked_mul(1024)
}

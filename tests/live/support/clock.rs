//! Servers with clocks of their own.

use std::os::unix::fs::PermissionsExt;

use headwater::commands::demo::Cluster;

use super::{SOURCE, bin, parent, tools};

/// A source whose clock is off.
pub async fn source_with_clock(offset: &str) -> Option<Cluster> {
    let library = tools::faketime()?;
    let dir = parent().join(format!("faketime-{:08x}", fastrand::u32(..)));
    std::fs::create_dir_all(&dir).expect("a directory");
    std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o755)).expect("its mode");
    let real = bin("SOURCE");
    let script = format!(
        "#!/bin/sh\nexport LD_PRELOAD={} FAKETIME={offset} FAKETIME_DONT_FAKE_MONOTONIC=1\nexec {}/postgres \"$@\"\n",
        library.display(),
        real.display()
    );
    std::fs::write(dir.join("postgres"), script).expect("a script");
    std::fs::set_permissions(dir.join("postgres"), std::fs::Permissions::from_mode(0o755)).expect("its mode");
    let initdb = format!("#!/bin/sh\nexec {}/initdb \"$@\"\n", real.display());
    std::fs::write(dir.join("initdb"), initdb).expect("a script");
    std::fs::set_permissions(dir.join("initdb"), std::fs::Permissions::from_mode(0o755)).expect("its mode");
    let cluster = Cluster::start_new(&dir, &parent(), "source", SOURCE, &[]).await.expect("a source cluster");
    std::fs::remove_dir_all(&dir).expect("the scripts are not needed any more");
    Some(cluster)
}

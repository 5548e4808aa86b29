//! This machine's part of the list: where spooled transactions go.

use std::fs::{self, Metadata};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::config::Config;
use crate::maintenance::check::findings::{About, Findings};
use crate::pg::{ErrorReport, printable, shell_word};
use crate::spool::{GateError, SpoolError, check_gate, resolve};

const HERE: About = About::Here;

pub(super) fn look(config: &Config, findings: &mut Findings) {
    let dir = &config.spool.dir;
    match inspect(dir, config.spool.bytes_max) {
        Ok(found) => findings.ok(HERE, "spool", found),
        Err(report) => findings.warn(HERE, "spool", report),
    }
}

/// What is said of a good directory, or what is wrong with it. Without a spool everything works: the source then keeps
/// transactions until they commit.
fn inspect(dir: &Path, bytes_max: u64) -> Result<String, ErrorReport> {
    let resolved = resolve(dir).map_err(|error| {
        let shown = printable(&dir.display().to_string()).into_owned();
        ErrorReport::new(format!("spool.dir {shown} cannot be used"))
            .detail(format!("A start fails there: {error}."))
            .hint("Set spool.dir to an absolute path without .. in it.")
    })?;
    let dir = resolved.as_path();
    let text = dir.display().to_string();
    let shown = printable(&text);
    let word = shell_word(&text);
    let cannot = |detail: String| ErrorReport::new(format!("spool.dir {shown} cannot be used")).detail(detail);
    let make_it = format!("Make it for the user that runs headwater, or set spool.dir:\nmkdir -p -m 700 {word}");
    let link = fs::read_link(dir).ok().map(|to| printable(&to.display().to_string()).into_owned());
    match fs::metadata(dir) {
        Ok(found) if !found.is_dir() => {
            return Err(cannot("It is not a directory.".to_owned()).hint("Set spool.dir to a directory."));
        }
        Ok(found) => {
            judge_gate(dir, &shown, &word)?;
            judge_access(&shown, &word, &found)?;
        }
        Err(error) if link.is_some() => {
            let leads_to = link.unwrap_or_default();
            let detail = format!("It is a symbolic link to {leads_to}, which cannot be followed: {error}.");
            return Err(cannot(detail).hint("Set spool.dir to the directory itself."));
        }
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {}
        Err(error) => return Err(cannot(format!("Looking at it failed: {error}.")).hint(make_it)),
    }
    let Some(existing) = dir.ancestors().find(|dir| fs::symlink_metadata(dir).is_ok()) else {
        return Err(cannot("Nothing of its path exists.".to_owned()).hint("Set spool.dir to an absolute path."));
    };
    let existing_text = existing.display().to_string();
    if !existing.is_dir() {
        let detail = format!("{} is not a directory.", printable(&existing_text));
        return Err(cannot(detail).hint("Set spool.dir to a directory."));
    }
    if let Err(error) = try_to_write(existing) {
        let detail = match existing == dir {
            true => format!("Nothing can be made in it: {error}."),
            false => format!("It does not exist, and cannot be made in {}: {error}.", printable(&existing_text)),
        };
        return Err(cannot(detail).hint(make_it));
    }
    if let Some(link) = link {
        let report = ErrorReport::new(format!("spool.dir {shown} is a symbolic link"))
            .detail(format!("It leads to {link} and is used; a user who may change the link decides where rows go."));
        return Err(report.hint("Set spool.dir to the directory itself."));
    }
    match free_bytes(existing) {
        Some(free) if free < bytes_max => {
            Err(ErrorReport::new(format!("{} MB are free below {shown}, less than spool.bytes_max", free >> 20))
                .detail(format!("spool.bytes_max is {} MB.", bytes_max >> 20))
                .hint("Make room, or lower spool.bytes_max: reading from the source waits when it is reached."))
        }
        Some(free) => Ok(format!("{shown}: {} MB are free", free >> 20)),
        None => Ok(format!("{shown} can be written")),
    }
}

/// Others who may take away or replace what headwater makes in the directory, or whose it is.
fn judge_access(shown: &str, word: &str, found: &Metadata) -> Result<(), ErrorReport> {
    let ours = rustix::process::geteuid().as_raw();
    // What root has made for us is as good as our own.
    if found.uid() != ours && found.uid() != 0 {
        let report = ErrorReport::new(format!("spool.dir {shown} belongs to another user"))
            .detail(format!("Its owner has the user id {}, headwater runs with {ours}.", found.uid()));
        return Err(
            report.hint(format!("Give it to the user that runs headwater, or set spool.dir:\nchown {ours} {word}"))
        );
    }
    let (is_writable_by_others, is_sticky) = (found.mode() & 0o022 != 0, found.mode() & 0o1000 != 0);
    if is_writable_by_others && !is_sticky {
        let report = ErrorReport::new(format!("others may write into spool.dir {shown}"))
            .detail("They could take away what headwater keeps there.");
        return Err(report.hint(format!("Take that right from them:\nchmod go-w {word}")));
    }
    Ok(())
}

/// A start takes a lock in the directory before it uses it, and does without a spool where it does not get it.
fn judge_gate(dir: &Path, shown: &str, word: &str) -> Result<(), ErrorReport> {
    let Err(error) = check_gate(dir) else { return Ok(()) };
    let report = ErrorReport::new(format!("spool.dir {shown} cannot be used"));
    let report = report.detail(format!("A start fails there: {}.", printable(&error.to_string())));
    Err(match error {
        GateError::Directory(_) => {
            report.hint(format!("Let the user that runs headwater read it, or set spool.dir:\nchmod u+rwx {word}"))
        }
        GateError::Kind(SpoolError::File { path, .. }) => {
            let gate = shell_word(&path.display().to_string());
            let renamed = shell_word(&format!("{}.old", path.display()));
            report.hint(format!("Move it out of the way, or set spool.dir:\nmv -- {gate} {renamed}"))
        }
        GateError::Kind(_) | GateError::Held(_) => {
            report.hint("End the process that holds it, or set spool.dir to a directory of its own.")
        }
    })
}

/// Creates and removes a file: access bits do not show read-only file systems.
fn try_to_write(dir: &Path) -> std::io::Result<()> {
    let probe = dir.join(format!(".headwater-check-{:016x}", fastrand::u64(..)));
    fs::OpenOptions::new().write(true).create_new(true).open(&probe)?;
    fs::remove_file(&probe)
}

/// What the file system has left for us.
pub(super) fn free_bytes(dir: &Path) -> Option<u64> {
    let found = rustix::fs::statvfs(dir).ok()?;
    found.f_bavail.checked_mul(found.f_frsize)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, chown, symlink};
    use std::path::PathBuf;

    use super::*;

    struct Scratch(PathBuf);

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn scratch() -> Scratch {
        let path = std::env::temp_dir().join(format!("headwater-check-{:016x}", fastrand::u64(..)));
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        Scratch(path)
    }

    fn wrong(dir: &Path) -> String {
        inspect(dir, 0).expect_err("something is wrong with it").lines()
    }

    #[test]
    fn a_directory_that_is_good_or_can_be_made_is_ok() {
        let scratch = scratch();
        assert!(inspect(&scratch.0, 0).unwrap().contains("MB are free"));
        assert!(inspect(&scratch.0.join("to/be/made"), 0).unwrap().contains("MB are free"));
        assert!(fs::read_dir(&scratch.0).unwrap().next().is_none(), "check leaves nothing");
        fs::set_permissions(&scratch.0, fs::Permissions::from_mode(0o1777)).unwrap();
        assert!(inspect(&scratch.0, 0).is_ok(), "sticky, as /tmp is");
    }

    #[test]
    fn everything_that_is_wrong_with_a_spool_directory_is_said_with_its_remedy() {
        let scratch = scratch();
        let file = scratch.0.join("file");
        fs::write(&file, b"").unwrap();
        assert!(wrong(&file).contains("It is not a directory."));
        assert!(wrong(&file.join("below")).contains("file is not a directory."), "{}", wrong(&file.join("below")));
        let link = scratch.0.join("link");
        symlink(&scratch.0, &link).unwrap();
        assert!(
            wrong(&link).contains("is a symbolic link\n") && wrong(&link).contains(" and is used; "),
            "{}",
            wrong(&link)
        );
        fs::remove_file(&link).unwrap();
        symlink("/nowhere", &link).unwrap();
        assert!(
            wrong(&link).contains("It is a symbolic link to /nowhere, which cannot be followed"),
            "{}",
            wrong(&link)
        );
        // Nobody may make anything there, root neither.
        let said = wrong(Path::new("/proc/headwater/spool"));
        assert!(said.contains("It does not exist, and cannot be made in /proc: "), "{said}");
        assert!(said.contains("\n        mkdir -p -m 700 /proc/headwater/spool"), "{said}");
        let open = scratch.0.join("it's open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
        let said = wrong(&open);
        assert!(said.contains("others may write into spool.dir"), "{said}");
        assert!(said.contains("\n        chmod go-w ") && said.contains(r"it'\''s open'"), "{said}");
        if chown(&open, Some(65534), None).is_ok() {
            let said = wrong(&open);
            assert!(said.contains("belongs to another user") && said.contains("\n        chown 0 "), "{said}");
        }
        let full = inspect(&scratch.0, u64::MAX).unwrap_err().lines();
        assert!(full.contains("less than spool.bytes_max"), "{full}");
    }

    #[test]
    fn check_refuses_exactly_the_directories_that_a_start_cannot_use() {
        let root = scratch();
        let mkfifo = |path: &Path| {
            let (kind, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR);
            rustix::fs::mknodat(rustix::fs::CWD, path, kind, mode, 0).unwrap();
        };
        // Directories by what has the lock file's name in them.
        let dir = |name: &str| {
            let path = root.0.join(name);
            fs::create_dir(&path).unwrap();
            path
        };
        let (plain, fifo, directory, link, held) =
            (dir("plain"), dir("fifo"), dir("directory"), dir("link"), dir("held"));
        mkfifo(&fifo.join("spool.lock"));
        fs::create_dir(directory.join("spool.lock")).unwrap();
        symlink(plain.join("spool.lock"), link.join("spool.lock")).unwrap();
        let lock = fs::File::create(held.join("spool.lock")).unwrap();
        lock.try_lock().unwrap();
        // And by what leads to them.
        let linked = |name: &str, to: &Path| {
            let path = root.0.join(name);
            symlink(to, &path).unwrap();
            path
        };
        let (to_plain, to_fifo, dangling) =
            (linked("to plain", &plain), linked("to fifo", &fifo), linked("dangling", Path::new("/nowhere")));
        let file = root.0.join("file");
        fs::write(&file, b"").unwrap();
        for (path, works) in [
            (&plain, true),
            (&root.0.join("to/be/made"), true),
            (&to_plain, true),
            (&to_plain.join("below"), true),
            (&fifo, false),
            (&directory, false),
            (&link, false),
            (&held, false),
            (&to_fifo, false),
            (&dangling, false),
            (&dangling.join("below"), false),
            (&file, false),
            (&file.join("below"), false),
            (&PathBuf::from("/proc/headwater"), false),
            (&PathBuf::from("/proc/headwater/."), false),
            (&PathBuf::new(), false),
            (&root.0.join("dot/."), true),
            (&root.0.join("dot/deeper/././below/./."), true),
            (&root.0.join("slash///"), true),
            (&plain.join(".."), true),
            (&plain.join("../back"), true),
            (&root.0.join("away/../back"), false),
            (&root.0.join("away/.."), false),
            (&to_plain.join("."), true),
            (&file.join("."), false),
            (&root.0.join("d/".repeat(300)), true),
            (&root.0.join("d/".repeat(5000)), false),
            (&root.0.join("n".repeat(300)), false),
            (&root.0.join("nul\0"), false),
        ] {
            let said = inspect(path, 0).unwrap_or_else(|report| report.lines());
            assert_eq!(!said.contains("cannot be used"), works, "{}: {said}", path.display());
            assert_eq!(crate::spool::can_be_opened(path), works, "{}: {said}", path.display());
        }
        // Relative to the directory that headwater was started in, whose absolute path is said.
        let up = "../".repeat(std::env::current_dir().unwrap().components().count());
        let relative = Path::new(&up).join(plain.strip_prefix("/").unwrap());
        for (path, works) in
            [(relative.clone(), true), (relative.join("to/be/made/."), true), ("src/spool/mod.rs".into(), false)]
        {
            let said = inspect(&path, 0).unwrap_or_else(|report| report.lines());
            assert_eq!(!said.contains("cannot be used"), works, "{}: {said}", path.display());
            assert!(said.contains(&std::env::current_dir().unwrap().display().to_string()), "{said}");
            assert_eq!(crate::spool::can_be_opened(&path), works, "{}: {said}", path.display());
        }
        let said = wrong(&fifo);
        assert!(said.contains("spool.lock: it is a FIFO") && said.contains("\n        mv -- "), "{said}");
        let said = wrong(&held);
        assert!(said.contains("holds it locked.") && said.contains("End the process"), "{said}");
    }
}

//! What is in `spool.dir`: ours goes, everybody else's stays.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode};

use super::directory::{Directory, GATE, GateError, check_gate, open_created};
use super::sweep::{MARKER, MARKER_TEXT, name_of};
use crate::pg::SlotName;

/// A directory for one test.
pub(super) struct Scratch(pub(super) PathBuf);

impl Scratch {
    pub(super) fn new() -> Scratch {
        Scratch(std::env::temp_dir().join(format!("headwater-spool-{:016x}", fastrand::u64(..))))
    }

    fn entries(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).unwrap();
        let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn slot(name: &str) -> SlotName {
    name.parse().unwrap()
}

/// What a dead process left.
fn leave(parent: &Path, name: &str) -> PathBuf {
    let path = parent.join(name);
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&path).unwrap();
    fs::write(path.join(MARKER), MARKER_TEXT).unwrap();
    fs::write(path.join("9"), b"left over").unwrap();
    path
}

fn mkfifo(path: &Path) {
    rustix::fs::mknodat(CWD, path, FileType::Fifo, Mode::from_bits_truncate(0o600), 0).unwrap();
}

#[test]
fn directories_of_the_dead_are_swept_and_those_of_the_living_stay() {
    let scratch = Scratch::new();
    let living = Directory::create(&scratch.0, &slot("living")).unwrap();
    fs::write(living.path(7), b"mine").unwrap();
    leave(&scratch.0, "dead.0123456789abcdef");
    fs::write(scratch.0.join("somebody.elses"), b"not ours").unwrap();
    let next = Directory::create(&scratch.0, &slot("next")).unwrap();
    assert_eq!(fs::read(living.path(7)).unwrap(), b"mine");
    let names = scratch.entries();
    assert!(!names.iter().any(|name| name.starts_with("dead")), "{names:?}");
    assert!(names.contains(&"somebody.elses".to_owned()), "{names:?}");
    drop((living, next));
    assert_eq!(scratch.entries(), ["somebody.elses", GATE]);
}

#[test]
fn directories_have_the_mode_0700_and_files_0600() {
    let scratch = Scratch::new();
    let directory = Directory::create(&scratch.0.join("a/b"), &slot("s")).unwrap();
    drop(directory.append(7).unwrap());
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
    let file = directory.path(7);
    for made in file.ancestors().skip(1).take_while(|path| *path != std::env::temp_dir()) {
        assert_eq!(mode(made), 0o700, "{}", made.display());
    }
    for made in [&file, &file.with_file_name(MARKER), &scratch.0.join("a/b").join(GATE)] {
        assert_eq!(mode(made), 0o600, "{}", made.display());
    }
}

#[test]
fn a_directory_that_cannot_be_made_is_named() {
    let scratch = Scratch::new();
    fs::write(&scratch.0, b"a file").unwrap();
    let error = Directory::create(&scratch.0.join("below"), &slot("s")).unwrap_err().to_string();
    assert!(error.contains("could not create the directory") && error.contains("below"), "{error}");
    fs::remove_file(&scratch.0).unwrap();
}

#[test]
fn a_directory_is_made_once_or_refused_whatever_its_path_looks_like() {
    let scratch = Scratch::new();
    for (below, made) in [(".", ""), ("new/.", "new"), ("a/./b/.//", "a/b"), ("d/".repeat(300).as_str(), "d/d")] {
        let directory = Directory::create(&scratch.0.join(below), &slot("s")).unwrap();
        assert!(
            scratch.0.join(made).is_dir() && !directory.parent().ends_with("."),
            "{}",
            directory.parent().display()
        );
    }
    for refused in ["/proc/headwater", "/proc/headwater/.", "", &"/x".repeat(5000), "/nowhere at all/../tmp"] {
        let error = Directory::create(Path::new(refused), &slot("s")).unwrap_err().to_string();
        assert!(error.contains("could not create the directory"), "{error}");
    }
}

#[test]
fn a_gate_of_another_kind_is_refused_at_once_and_stays() {
    type Make = fn(&Path);
    let kinds: [(&str, Make); 3] = [
        ("fifo", mkfifo),
        ("link", |path| symlink("/dev/null", path).unwrap()),
        ("directory", |path| fs::create_dir(path).unwrap()),
    ];
    for (kind, make) in kinds {
        let scratch = Scratch::new();
        fs::create_dir(&scratch.0).unwrap();
        make(&scratch.0.join(GATE));
        let error = Directory::create(&scratch.0, &slot("s")).unwrap_err().to_string();
        assert!(error.contains("spool.lock") && error.contains("not a regular file"), "{kind}: {error}");
        assert_eq!(scratch.entries(), [GATE], "{kind}");
    }
}

#[test]
fn a_gate_that_somebody_holds_is_said_by_check_as_by_a_start() {
    let scratch = Scratch::new();
    fs::create_dir(&scratch.0).unwrap();
    check_gate(&scratch.0).unwrap();
    assert!(scratch.entries().is_empty(), "check leaves nothing");
    drop(Directory::create(&scratch.0, &slot("s")).unwrap());
    let held = File::open(scratch.0.join(GATE)).unwrap();
    held.try_lock().unwrap();
    let checked = check_gate(&scratch.0).unwrap_err();
    assert!(matches!(checked, GateError::Held(_)), "{checked:?}");
    let started = Directory::create(&scratch.0, &slot("s")).unwrap_err();
    assert_eq!(checked.to_string(), started.to_string());
    assert!(started.to_string().ends_with("holds it locked"), "{started}");
    drop(held);
    check_gate(&scratch.0).unwrap();
    drop(Directory::create(&scratch.0, &slot("s")).unwrap());
}

#[test]
fn what_others_put_in_the_place_of_a_new_directory_is_refused_and_keeps_its_mode() {
    let scratch = Scratch::new();
    let made = |name: &str, mode: u32| {
        let path = scratch.0.join(name);
        fs::create_dir_all(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    };
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
    let shared = made("shared", 0o755);
    let closed = made("closed", 0o000);
    for target in [&shared, &closed] {
        let link = scratch.0.join("link");
        symlink(target, &link).unwrap();
        open_created(CWD, &link).unwrap_err();
        fs::remove_file(link).unwrap();
    }
    assert_eq!((mode(&shared), mode(&closed)), (0o755, 0o000), "what a link leads to");
    let error = open_created(CWD, &shared).unwrap_err().to_string();
    assert!(error.contains("somebody else"), "{error}");
    assert_eq!(mode(&shared), 0o755);
    if std::os::unix::fs::chown(&closed, Some(65534), None).is_ok() {
        open_created(CWD, &closed).unwrap_err();
        assert_eq!(mode(&closed), 0o000, "another user's");
    }
    let file = scratch.0.join("file");
    fs::write(&file, b"").unwrap();
    open_created(CWD, &file).unwrap_err();
    // The umask may take every bit away.
    let made = made("made", 0o000);
    open_created(CWD, &made).unwrap();
    assert_eq!(mode(&made), 0o700);
}

#[test]
fn names_that_once_led_to_other_directories_are_left_alone() {
    let scratch = Scratch::new();
    let dir = scratch.0.join("sp");
    fs::create_dir_all(dir.join("work")).unwrap();
    fs::write(dir.join("work/precious"), b"").unwrap();
    for lock in ["work.lock", "...lock", "..lock", ".lock"] {
        fs::write(dir.join(lock), b"").unwrap();
    }
    drop(Directory::create(&dir, &slot("s")).unwrap());
    assert!(dir.join("work/precious").exists() && dir.join("...lock").exists() && dir.join("work.lock").exists());
}

/// Everything below a directory: what kind, which inode, what is in it.
fn tree(root: &Path) -> BTreeMap<PathBuf, (u32, u64, Vec<u8>)> {
    let mut found = BTreeMap::new();
    let mut open = vec![root.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            let data = fs::symlink_metadata(&path).unwrap();
            let content = if data.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
            if data.is_dir() {
                open.push(path.clone());
            }
            found.insert(path, (data.mode(), data.ino(), content));
        }
    }
    found
}

/// A name of characters that mean something to somebody, or one that almost is one of ours.
fn nasty(rng: &mut fastrand::Rng) -> String {
    if rng.u8(..3) == 0 {
        return name_of(&slot("headwater"), rng.u64(..));
    }
    if rng.bool() {
        let stems = ["a", "headwater", "A", "..", "", "a.b", "a/../b", "x y", "ä"];
        let suffixes =
            ["0123456789abcdef", "0123456789ABCDEF", "0123", "lock", "0123456789abcdef0", "0123456789abcde\u{202e}"];
        let name = format!("{}.{}", stems[rng.usize(..stems.len())], suffixes[rng.usize(..suffixes.len())]);
        return name.replace('/', "");
    }
    let alphabet = ['.', '.', ' ', '\n', '\u{1b}', '*', '~', '-', 'a', '0', '\\', '\'', '\u{202e}', 'l', 'o', 'c', 'k'];
    (0..rng.usize(1..12)).map(|_| alphabet[rng.usize(..alphabet.len())]).collect()
}

/// Something foreign at this place. Whatever it looks like, it lacks one thing that makes ours ours.
fn make_foreign(rng: &mut fastrand::Rng, path: &Path, elsewhere: &Path) {
    match rng.u8(..12) {
        0 => fs::write(path, MARKER_TEXT).unwrap(),
        1 => symlink(elsewhere, path).unwrap(),
        2 => symlink("..", path).unwrap(),
        3 => mkfifo(path),
        4 => fs::hard_link(elsewhere.join("9"), path).unwrap(),
        kind => {
            fs::DirBuilder::new().mode(0o700).create(path).unwrap();
            fs::write(path.join("9"), b"theirs").unwrap();
            let marker = path.join(MARKER);
            match kind {
                5 => {}
                6 => fs::write(marker, b"another text").unwrap(),
                7 => symlink(elsewhere.join(MARKER), marker).unwrap(),
                8 => mkfifo(&marker),
                9 => fs::hard_link(elsewhere.join(MARKER), marker).unwrap(),
                10 => {
                    // Everybody may write into it: who knows whose files are there.
                    fs::write(marker, MARKER_TEXT).unwrap();
                    fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
                }
                _ => {
                    fs::write(&marker, MARKER_TEXT).unwrap();
                    // Another user's, where we are allowed to make such a thing.
                    if std::os::unix::fs::chown(path, Some(65534), None).is_err() {
                        fs::remove_file(&marker).unwrap();
                    }
                }
            }
        }
    }
}

#[test]
fn a_sweep_removes_what_is_ours_and_nothing_else() {
    let first = std::env::var("HEADWATER_SEED").ok().and_then(|seed| seed.parse().ok());
    let first: u64 = first.unwrap_or_else(|| fastrand::u64(..));
    for seed in (0..40).map(|number| first.wrapping_add(number)) {
        let mut rng = fastrand::Rng::with_seed(seed);
        let scratch = Scratch::new();
        let (dir, elsewhere) = (scratch.0.join("sp"), scratch.0.join("elsewhere"));
        fs::create_dir_all(&dir).unwrap();
        // It looks like ours, but a link or a hard link is all that leads there.
        leave(&scratch.0, "elsewhere");
        for _ in 0..rng.usize(1..20) {
            let path = dir.join(nasty(&mut rng));
            if fs::symlink_metadata(&path).is_err() && path.parent() == Some(&dir) {
                make_foreign(&mut rng, &path, &elsewhere);
            }
        }
        if rng.bool() {
            drop(File::create(dir.join(GATE)).unwrap());
        }
        let foreign = tree(&scratch.0);
        let mut ours = Vec::new();
        for _ in 0..rng.usize(..4) {
            let path = leave(&dir, &name_of(&slot("ours"), rng.u64(..)));
            for _ in 0..rng.usize(..4) {
                fs::write(path.join(rng.u32(..).to_string()), b"left over").unwrap();
            }
            ours.push(path);
        }
        // One of ours into which somebody has put something: that stays, with what it needs to stay in.
        let shared = rng.bool().then(|| {
            let path = leave(&dir, &name_of(&slot("shared"), rng.u64(..)));
            let names = ["notes", "07", "+7", "4294967296", "7 ", "sub"];
            let kept = path.join(names[rng.usize(..names.len())]);
            match rng.u8(..3) {
                0 => fs::write(&kept, b"theirs").unwrap(),
                1 => symlink(elsewhere.join("9"), &kept).unwrap(),
                _ => fs::create_dir(&kept).unwrap(),
            }
            (path, kept)
        });
        let living = Directory::create(&dir, &slot("living")).unwrap();
        let after = tree(&scratch.0);
        for (path, was) in &foreign {
            assert_eq!(after.get(path), Some(was), "seed {seed}: {}", path.display());
        }
        for path in ours {
            assert!(fs::symlink_metadata(&path).is_err(), "seed {seed}: {} is still there", path.display());
        }
        if let Some((path, kept)) = shared {
            assert!(fs::symlink_metadata(&kept).is_ok(), "seed {seed}: {}", kept.display());
            assert!(!path.join("9").exists() && path.join(MARKER).exists(), "seed {seed}");
        }
        drop(living);
    }
}

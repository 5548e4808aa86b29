//! Points at which a test lets the process die, or wait.
//!
//! Every row of the crash table has one: the code says that it has reached the point, and a test that was asked for it
//! kills the process there, as `kill -9` would, or blocks the thread that came there, as a long computation would. At a few
//! points it can also be made to wait, so that a test acts exactly then. Only in builds with debug assertions; in a release
//! nothing of it is left.

/// The process has reached a point of the crash table.
#[inline]
pub fn reached(point: &'static str) {
    #[cfg(debug_assertions)]
    armed::strike(point);
    #[cfg(not(debug_assertions))]
    let _ = point;
}

/// The process has reached a point at which a test may have a task panic, as a mistake in it would: the first time only.
#[inline]
pub fn panic(point: &'static str) {
    #[cfg(debug_assertions)]
    armed::panic(point);
    #[cfg(not(debug_assertions))]
    let _ = point;
}

/// The process has reached a point at which a test may hold it: the first time only, and nothing but this task waits.
#[inline]
pub async fn pause(point: &'static str) {
    #[cfg(debug_assertions)]
    armed::pause(point).await;
    #[cfg(not(debug_assertions))]
    let _ = point;
}

#[cfg(debug_assertions)]
mod armed {
    use std::path::PathBuf;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
    use std::time::Duration;

    /// `HEADWATER_FAILPOINT=point` or `point:n`: die when the point is reached for the n-th time.
    struct Failpoint {
        point: String,
        left: AtomicU32,
    }

    static FAILPOINT: OnceLock<Option<Failpoint>> = OnceLock::new();

    pub(crate) fn strike(point: &str) {
        let failpoint = FAILPOINT.get_or_init(|| {
            let text = std::env::var("HEADWATER_FAILPOINT").ok()?;
            let (point, times) = text.split_once(':').unwrap_or((&text, "1"));
            Some(Failpoint { point: point.to_owned(), left: AtomicU32::new(times.parse().ok()?) })
        });
        if let Some(failpoint) = failpoint
            && failpoint.point == point
            && failpoint.left.fetch_sub(1, Ordering::Relaxed) == 1
        {
            // No unwinding, no destructors, no goodbye to the servers.
            std::process::abort();
        }
        block(point);
    }

    static PANICKED: AtomicBool = AtomicBool::new(false);

    /// `HEADWATER_FAILPOINT_PANIC=point=path`: panic when the point is reached and the file is there, once.
    pub(crate) fn panic(point: &str) {
        let Ok(text) = std::env::var("HEADWATER_FAILPOINT_PANIC") else { return };
        let is_due = text.split_once('=').is_some_and(|(at, path)| at == point && PathBuf::from(path).exists());
        assert!(!is_due || PANICKED.swap(true, Ordering::Relaxed), "a test has asked for it");
    }

    /// `HEADWATER_FAILPOINT_BLOCK=point=milliseconds` or `point=milliseconds*n`: keep the thread for so long, the first time, or the
    /// first n times, that the point is reached.
    struct BlockedThread {
        point: String,
        duration: Duration,
        left: AtomicU32,
    }

    static BLOCK: OnceLock<Option<BlockedThread>> = OnceLock::new();

    fn block(point: &str) {
        let block = BLOCK.get_or_init(|| {
            let text = std::env::var("HEADWATER_FAILPOINT_BLOCK").ok()?;
            let (point, how) = text.split_once('=')?;
            let (milliseconds, times) = how.split_once('*').unwrap_or((how, "1"));
            let duration = Duration::from_millis(milliseconds.parse().ok()?);
            Some(BlockedThread { point: point.to_owned(), duration, left: AtomicU32::new(times.parse().ok()?) })
        });
        if let Some(block) = block.as_ref().filter(|block| block.point == point)
            && block.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
        {
            tracing::debug!("{point}: its thread is kept for {} ms", block.duration.as_millis());
            std::thread::sleep(block.duration);
        }
    }

    /// `HEADWATER_PAUSE=point=path`: write the file when the point is reached, and wait until it is removed.
    struct Pause {
        point: String,
        path: PathBuf,
        over: AtomicBool,
    }

    static PAUSE: OnceLock<Option<Pause>> = OnceLock::new();

    pub(crate) async fn pause(point: &str) {
        let pause = PAUSE.get_or_init(|| {
            let text = std::env::var("HEADWATER_PAUSE").ok()?;
            let (point, path) = text.split_once('=')?;
            Some(Pause { point: point.to_owned(), path: PathBuf::from(path), over: AtomicBool::new(false) })
        });
        let Some(pause) = pause.as_ref().filter(|pause| pause.point == point) else { return };
        if pause.over.swap(true, Ordering::Relaxed) {
            return;
        }
        std::fs::write(&pause.path, point).expect("a test's file can be written");
        while pause.path.exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

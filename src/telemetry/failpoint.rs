//! Points at which a test lets the process die.
//!
//! Every row of the crash table has one: the code says that it has reached the point, and a test that was asked for it
//! kills the process there, as `kill -9` would. Only in builds with debug assertions; in a release nothing of it is left.

/// The process has reached a point of the crash table.
#[inline]
pub fn reached(point: &'static str) {
    #[cfg(debug_assertions)]
    armed::strike(point);
    #[cfg(not(debug_assertions))]
    let _ = point;
}

#[cfg(debug_assertions)]
mod armed {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU32, Ordering};

    /// `HEADWATER_FAILPOINT=point` or `point:n`: die when the point is reached for the n-th time.
    struct Failpoint {
        point: String,
        left: AtomicU32,
    }

    static FAILPOINT: OnceLock<Option<Failpoint>> = OnceLock::new();

    pub(super) fn strike(point: &str) {
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
    }
}

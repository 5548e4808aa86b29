//! How the kernel schedules us while there is a backlog: SCHED_BATCH.
//!
//! Told by the apply loop of large batches and of idleness. A walsender sends every message by itself, and each wakes us. On a
//! machine whose cores are busy (the source, the destination and we on the same one) a woken process takes the core from the very
//! server that woke it, for one message, tens of thousands of times a second. Under SCHED_BATCH we wait for a free core, or for
//! the end of the server's slice, and then find many messages at once. At light load every message is to be read at once, and
//! we are scheduled as any other process. The policy is the thread's, and the runtime has one (decision 0001). See sched(7).

use std::fs;
use std::time::{Duration, Instant};

use thread_priority::{
    NormalThreadSchedulePolicy, ThreadPriority, ThreadPriorityValue, ThreadSchedulePolicy,
    set_thread_priority_and_policy, thread_native_id, thread_schedule_policy,
};

const BATCH: ThreadSchedulePolicy = ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Batch);
const OTHER: ThreadSchedulePolicy = ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Other);

/// So many changes have piled up behind a busy destination: at light load a batch has a handful.
const BACKLOG_ROWS: usize = 100;
/// So long after the last such batch the backlog is over.
const BACKLOG_LASTS: Duration = Duration::from_millis(100);

/// How this thread is scheduled.
pub(super) struct Scheduling {
    /// Ordinary niceness, as the library counts it; `None`: the operator has chosen a policy or a niceness, which stay.
    ordinary: Option<ThreadPriority>,
    /// When the last large batch went out, while we are under SCHED_BATCH.
    backlog_at: Option<Instant>,
}

impl Scheduling {
    pub(super) fn new() -> Scheduling {
        let chosen = !matches!(thread_schedule_policy(), Ok(OTHER)) || niceness() != Some(0);
        let mut values = (0..=99_u8).filter_map(|value| ThreadPriorityValue::try_from(value).ok());
        let ordinary = values.find(|value| matches!(ThreadPriority::Crossplatform(*value).to_posix(BATCH), Ok(0)));
        Scheduling { ordinary: ordinary.filter(|_| !chosen).map(ThreadPriority::Crossplatform), backlog_at: None }
    }

    /// A batch of so many changes goes out.
    pub(super) fn sends(&mut self, rows: usize) {
        if rows < BACKLOG_ROWS {
            return self.idle();
        }
        if self.backlog_at.is_none() {
            self.set(BATCH);
        }
        self.backlog_at = Some(Instant::now());
    }

    /// Nothing is queued or under way, or hardly anything.
    pub(super) fn idle(&mut self) {
        if self.backlog_at.is_some_and(|at| at.elapsed() >= BACKLOG_LASTS) {
            self.set(OTHER);
            self.backlog_at = None;
        }
    }

    /// Where the system does not allow it, everything stays as it was.
    fn set(&mut self, policy: ThreadSchedulePolicy) {
        if let Some(ordinary) = self.ordinary
            && let Err(error) = set_thread_priority_and_policy(thread_native_id(), ordinary, policy)
        {
            tracing::debug!("scheduled as before: {error:?}");
            self.ordinary = None;
        }
    }
}

/// An apply loop may end within a backlog.
impl Drop for Scheduling {
    fn drop(&mut self) {
        if self.backlog_at.is_some() {
            self.set(OTHER);
        }
    }
}

/// Field 19 of /proc/thread-self/stat, see proc(5).
fn niceness() -> Option<i32> {
    let stat = fs::read_to_string("/proc/thread-self/stat").ok()?;
    // The name before it may hold spaces.
    stat.rsplit(')').next()?.split_whitespace().nth(16)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The policy is the thread's.
    fn on_a_thread(test: fn()) {
        std::thread::spawn(test).join().unwrap();
    }

    fn policy() -> ThreadSchedulePolicy {
        thread_schedule_policy().unwrap()
    }

    #[test]
    fn a_backlog_waits_for_a_free_core_and_light_load_does_not() {
        if niceness() != Some(0) {
            // Somebody has chosen how these tests run, and headwater leaves that alone: there is nothing to see.
            return;
        }
        on_a_thread(|| {
            let mut scheduling = Scheduling::new();
            scheduling.sends(5);
            assert_eq!(policy(), OTHER);
            scheduling.sends(BACKLOG_ROWS);
            scheduling.idle();
            assert_eq!(policy(), BATCH, "it may only wait for the next batch");
            assert_eq!(niceness(), Some(0));
            scheduling.backlog_at = Instant::now().checked_sub(BACKLOG_LASTS);
            scheduling.idle();
            assert_eq!(policy(), OTHER);
            scheduling.sends(BACKLOG_ROWS);
            drop(scheduling);
            assert_eq!(policy(), OTHER);
        });
    }

    #[test]
    fn what_the_operator_has_chosen_stays() {
        on_a_thread(|| {
            let idle = ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Idle);
            set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Min, idle).unwrap();
            Scheduling::new().sends(BACKLOG_ROWS);
            assert_eq!(policy(), idle);
        });
        on_a_thread(|| {
            let nicer = ThreadPriority::Crossplatform(ThreadPriorityValue::try_from(10).unwrap());
            set_thread_priority_and_policy(thread_native_id(), nicer, OTHER).unwrap();
            let chosen = niceness();
            assert!(chosen > Some(0), "{chosen:?}");
            Scheduling::new().sends(BACKLOG_ROWS);
            assert_eq!((policy(), niceness()), (OTHER, chosen));
        });
    }
}

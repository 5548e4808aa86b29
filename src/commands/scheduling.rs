//! How the kernel schedules the service: SCHED_BATCH.
//!
//! Called by `run` before anything else. A walsender sends every message by itself, and each wakes us. On a machine whose
//! cores are busy (the source, the destination and we on the same one) a woken process takes the core from the very server that
//! woke it, for one message, a hundred thousand times a second. Under SCHED_BATCH we wait for a free core, or for the end of
//! the server's slice, and then find many messages at once; where a core is free nothing changes. See sched(7).

use std::fs;

use thread_priority::{
    NormalThreadSchedulePolicy, ThreadPriority, ThreadPriorityValue, ThreadSchedulePolicy,
    set_thread_priority_and_policy, thread_native_id, thread_schedule_policy,
};

const BATCH: ThreadSchedulePolicy = ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Batch);
const OTHER: ThreadSchedulePolicy = ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Other);

/// No longer takes a core from whoever wakes us. A policy or a niceness that the operator has chosen stays; where the system
/// does not allow it, everything stays as it was.
pub(super) fn wait_for_a_free_core() {
    if !matches!(thread_schedule_policy(), Ok(OTHER)) || niceness() != Some(0) {
        return;
    }
    // The library sets both, and counts niceness otherwise.
    let ordinary = (0..=99_u8)
        .filter_map(|value| ThreadPriorityValue::try_from(value).ok().map(ThreadPriority::Crossplatform))
        .find(|priority| matches!(priority.to_posix(BATCH), Ok(0)));
    if let Some(ordinary) = ordinary
        && let Err(error) = set_thread_priority_and_policy(thread_native_id(), ordinary, BATCH)
    {
        tracing::debug!("scheduled as any other process: {error:?}");
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

    #[test]
    fn a_thread_waits_for_a_free_core_unless_somebody_has_chosen_otherwise() {
        let policy = || thread_schedule_policy().unwrap();
        std::thread::spawn(move || {
            assert_eq!(policy(), OTHER);
            wait_for_a_free_core();
            assert_eq!(policy(), BATCH);
            assert_eq!(niceness(), Some(0));
        })
        .join()
        .unwrap();
        std::thread::spawn(move || {
            let idle = ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Idle);
            set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Min, idle).unwrap();
            wait_for_a_free_core();
            assert_eq!(policy(), idle);
        })
        .join()
        .unwrap();
    }
}

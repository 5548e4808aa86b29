//! What follows from a fault.
//!
//! Made by [`super::decide`] and `sqlstate`; carried out by `supervisor`. Plain data.

/// What to do about a fault. The reason is the `reason` label of `headwater_restarts_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Set everything up again.
    Retry(&'static str),
    /// The same, but say that it may need an operator.
    Halt(&'static str),
    /// Make a new slot and reconcile all tables.
    Resnapshot,
    /// Give up: exit 1.
    End,
}

/// Every reason that a decision may have, and the supervisor's own for a copy after a lost slot.
pub const REASONS: &[&str] = &[
    "answer",
    "attributes_renamed",
    "authentication",
    "canceled",
    "conflict",
    "constraint",
    "data_corrupted",
    "database_dropped",
    "deadlock",
    "destination_lost",
    "destination_refused",
    "disk_full",
    "file",
    "format_changed",
    "label_missing",
    "lock_timeout",
    "monitor",
    "no_identity",
    "not_in_state",
    "other_table",
    "out_of_memory",
    "position_moved",
    "protocol",
    "publication",
    "publication_gap",
    "read_only",
    "refused",
    "resources",
    "schema_change",
    "schema_look",
    "server_error",
    "session_state",
    "sets_refused",
    "skip",
    "slot_in_use",
    "slot_lost",
    "snapshot_lost",
    "source_behind",
    "source_changed",
    "source_history",
    "source_locked",
    "source_lost",
    "source_refused",
    "source_silent",
    "spool",
    "staging_lost",
    "subtransaction_outcome",
    "system_error",
    "table_replaced",
    "tls",
    "too_many_connections",
    "transaction_timeout",
    "transaction_unseen",
    "version",
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_reason_of_a_decision_is_listed() {
        let sources = [include_str!("mod.rs"), include_str!("sqlstate.rs"), include_str!("../supervisor/mod.rs")];
        let shipped = sources.map(|source| source.split("#[cfg(test)]").next().expect("split gives one at least"));
        let mut found = BTreeSet::new();
        for before in ["Retry(\"", "Halt(\"", "operator(\"", "(error, \"", "(State::Connecting, \""] {
            let parts = shipped.iter().flat_map(|source| source.split(before).skip(1));
            found.extend(parts.filter_map(|part| part.split_once('"')).map(|(reason, _)| reason));
        }
        assert_eq!(found, REASONS.iter().copied().collect());
    }
}

//! Any module's error into what now: retry, halt, resnapshot, end.
//!
//! Pure. In comes a [`Fault`] from `supervisor`, with what the process has achieved so far; out goes a
//! [`Decision`] with its reason. This is the one home of failures: an exhaustive match, so that a new error gets a
//! policy that somebody chose.
//!
//! | decision | what happens | examples |
//! |---|---|---|
//! | retry | state connecting, back-off, set up again from the stored position | a lost link, a restart, a deadlock |
//! | halt | state waiting, /readyz red, the same back-off; continues by itself once fixed | a conflict, disk full, a missing column |
//! | resnapshot | a new slot, all tables reconciled | a lost slot with `on_slot_lost = "resnapshot"` |
//! | end | exit 1 | a wrong password at start, bytes that are not understood |

mod backoff;
mod conflict;
pub mod decision;
mod sqlstate;
mod tls;

use crate::config::OnSlotLost;
use crate::destination::{DestinationError, FIND_PREPARE, other_tables_report, renamed_report};
use crate::pg::{ErrorReport, Ident, QualifiedName, shell_word};
use crate::session::{CopyError, MAJOR_MIN, STREAMING, SessionError, SqlState};
use crate::source::{LostCause, SourceError};
use crate::spool::SpoolError;
use crate::sql::table_guard::is_refusal;
use crate::transaction::TransactionError;

pub use crate::error_policy::decision::Decision;
pub use backoff::Backoff;

/// What went wrong, wherever it did.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// At the source.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// At the destination.
    #[error(transparent)]
    Destination(#[from] DestinationError),
    /// Something that only an operator can fix, found by neither end alone.
    #[error("{0}")]
    Refused(ErrorReport),
    /// The monitor found that the stream cannot continue: its publication is gone, say.
    #[error("{0}")]
    Halted(ErrorReport),
    /// A task of the monitor has ended.
    #[error("{0}")]
    Unwatched(ErrorReport),
}

impl From<CopyError> for Fault {
    fn from(error: CopyError) -> Fault {
        match error {
            CopyError::Source(error) => Fault::Source(SourceError::Session(error)),
            CopyError::Destination(error) => Fault::Destination(DestinationError::Session(error)),
        }
    }
}

/// What the process has achieved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It has not streamed yet: somebody is probably watching the start.
    Starting,
    /// It has been streaming: what worked before may work again.
    Running,
}

/// What to do about `error_policy`.
pub fn decide(fault: &Fault, phase: Phase, on_slot_lost: OnSlotLost) -> Decision {
    // Long: an arm for each fault, so that none is forgotten.
    // What an operator must fix ends a start, where somebody is watching; later on, headwater waits for the fix.
    let operator = |reason| match phase {
        Phase::Starting => Decision::End,
        Phase::Running => Decision::Halt(reason),
    };
    match fault {
        Fault::Source(error) => match error {
            SourceError::Session(error) => session(error, "source_lost", &operator),
            SourceError::Refused(_) => operator("source_refused"),
            SourceError::LostHistory(lost) => match lost.cause {
                // The source has the stored position in its own history: a copy of it is newer than what is here.
                LostCause::SlotMissing | LostCause::SlotInvalidated | LostCause::SlotAhead => match on_slot_lost {
                    OnSlotLost::Stop => Decision::End,
                    OnSlotLost::Resnapshot => Decision::Resnapshot,
                },
                // It may be another server, an old primary, or an older state: nothing is copied from it unasked. While running,
                // the right one may come back at any moment.
                LostCause::OtherCluster
                | LostCause::OtherDatabase
                | LostCause::OlderTimeline
                | LostCause::ForkedTimeline
                | LostCause::LeftBefore
                | LostCause::EndsBefore
                | LostCause::XidBefore
                | LostCause::SlotTaken => operator("source_history"),
            },
            SourceError::Gap { .. } => operator("publication_gap"),
            SourceError::Unpublished { .. } => Decision::Halt("publication_gap"),
            SourceError::SlotInUse { .. } => operator("slot_in_use"),
            // A link that stalls, or a server that shuts down: both come back.
            SourceError::Silent(_) => Decision::Retry("source_silent"),
            // A standby replays on; until then it cannot send what comes after the position.
            SourceError::Behind { .. } => Decision::Retry("source_behind"),
            SourceError::Ended => Decision::Retry("source_lost"),
            // It becomes visible once the standby answers, or is not waited for any more.
            SourceError::Unseen { .. } => Decision::Halt("transaction_unseen"),
            // The next attempt opens its own sessions, and says what is wrong with them.
            SourceError::NotLooked { .. } => Decision::Retry("schema_look"),
            // Its commit log has what the slot may still need, unless the server is another one by now.
            SourceError::OutcomeUnknown { .. } => Decision::Retry("subtransaction_outcome"),
            // Bytes that are not understood are never skipped, and would be the same again (I10).
            SourceError::Wire(_) => Decision::End,
            SourceError::Transaction(error) => match error {
                TransactionError::Replaced { .. } => operator("table_replaced"),
                TransactionError::Misplaced { .. }
                | TransactionError::UnknownRelation(_)
                | TransactionError::ColumnCount { .. }
                | TransactionError::Record { .. }
                | TransactionError::OutOfOrder { .. }
                | TransactionError::CommitMismatch { .. } => Decision::End,
            },
            // Nothing is lost: the source sends everything again that had not committed, next time at its commit.
            SourceError::Spool(_) => Decision::Retry("spool"),
            // Rows read before and after are not of one moment: begin the snapshot again.
            SourceError::SnapshotLost(_) => Decision::Retry("snapshot_lost"),
            // The other session has its turn, and the next attempt waits behind it.
            SourceError::InTheWay { .. } => Decision::Retry("source_locked"),
            // The next attempt reads the catalog again.
            SourceError::Changed(_) => Decision::Retry("source_changed"),
        },
        Fault::Destination(error) => match error {
            DestinationError::Session(error) => session(error, "destination_lost", &operator),
            DestinationError::Silent(silent) => session(&silent.error, "destination_lost", &operator),
            DestinationError::Refused(_) => operator("destination_refused"),
            DestinationError::Constraint(_) | DestinationError::KeyRefuses(_) => Decision::Halt("constraint"),
            // Another instance leads: stand by behind its lock.
            DestinationError::PositionMoved { .. } => Decision::Retry("position_moved"),
            // The source's rows win in the next attempt, which receives the transaction again.
            DestinationError::Conflict(conflict) if conflict.will_win => Decision::Retry("conflict"),
            DestinationError::Conflict(_) => Decision::Halt("conflict"),
            // The next attempt receives the transaction again, and applies it in its original order.
            DestinationError::SetsRefused { .. } => Decision::Retry("sets_refused"),
            // The next attempt receives it again, and skips it from its first piece on.
            DestinationError::WantedOut { .. } => Decision::Retry("skip"),
            DestinationError::Bind(_)
            | DestinationError::NeedsCopy { .. }
            | DestinationError::ColumnLost { .. }
            | DestinationError::Renamed { .. } => Decision::Halt("schema_change"),
            DestinationError::OtherTables(_) => operator("other_table"),
            // Labels are added before the stream starts again.
            DestinationError::LabelMissing => Decision::Retry("label_missing"),
            // They are renamed before the stream starts again.
            DestinationError::AttributesRenamed => Decision::Retry("attributes_renamed"),
            // The stream chooses the format again when it starts.
            DestinationError::FormatChanged(_) => Decision::Retry("format_changed"),
            DestinationError::NoIdentity(_) => Decision::Halt("no_identity"),
            DestinationError::StagingLost(_) => Decision::Retry("staging_lost"),
            // Only a command line can say that it is meant; the next start remembers.
            DestinationError::LacksMost { .. } => Decision::End,
        },
        Fault::Refused(_) => operator("refused"),
        Fault::Halted(_) => Decision::Halt("publication"),
        // The next attempt starts it again.
        Fault::Unwatched(_) => Decision::Retry("monitor"),
    }
}

fn session(error: &SessionError, lost: &'static str, operator: &dyn Fn(&'static str) -> Decision) -> Decision {
    match error {
        // Servers restart and links are cut: waited for, at the first start too.
        SessionError::Unreachable { .. } | SessionError::Lost { .. } | SessionError::Timeout { .. } => {
            Decision::Retry(lost)
        }
        // Another server may be promoted at any moment.
        SessionError::Unwanted { .. } => Decision::Retry(lost),
        SessionError::Tls { .. } => operator("tls"),
        SessionError::Authentication { .. } => operator("authentication"),
        SessionError::File { .. } => operator("file"),
        SessionError::TooOld { .. } => operator("version"),
        // An answer that the protocol does not know will not get better.
        SessionError::Protocol { .. } => Decision::End,
        // Rows that went another way may be missing, and nothing would say so later on.
        SessionError::Replaced { .. } => Decision::End,
        // The next question may be answered by another server, or by the same one in its right mind. Nothing was taken from this answer.
        SessionError::Answer { .. } => Decision::Retry("answer"),
        // A trigger's function, or a check's, cannot do its part: headwater continues once it is repaired.
        SessionError::Server { error, .. }
            if error.in_function && sqlstate::decide(error.code, lost, operator) == operator("refused") =>
        {
            Decision::Halt("refused")
        }
        // Before a session is there, it is about a parameter in options.
        SessionError::Server { error, .. } if error.fatal && error.code == SqlState::new(b"22023") => {
            operator("refused")
        }
        SessionError::Server { error, .. } => sqlstate::decide(error.code, lost, operator),
    }
}

/// Whether a copy that was asked for is given up where the old rows serve: an operator must act and can ask again. A function of the
/// destination that fails halts a stream, which needs it, and ends such a copy.
pub fn gives_up_copy(fault: &Fault) -> bool {
    match decide(fault, Phase::Starting, OnSlotLost::Stop) {
        Decision::End | Decision::Resnapshot => true,
        Decision::Retry(_) => false,
        Decision::Halt(_) => match fault {
            Fault::Source(SourceError::Session(error)) | Fault::Destination(DestinationError::Session(error)) => {
                error.server().is_some_and(|server| server.in_function)
            }
            Fault::Source(_) | Fault::Destination(_) | Fault::Refused(_) | Fault::Halted(_) | Fault::Unwatched(_) => {
                false
            }
        },
    }
}

/// The report on a copy that lacks most rows of tables. `copy_begun_at`: the start that counted them was an earlier one.
fn lacks_most(tables: &str, copy_begun_at: Option<&str>) -> ErrorReport {
    let counted = match copy_begun_at {
        None => format!("Publishing it would delete, of each table, rows whose keys it lacks: {tables}."),
        Some(at) => format!(
            "This start has not counted again. Publishing the copy that was begun at {at} would have deleted, of each table, rows \
             whose keys it lacked: {tables}."
        ),
    };
    ErrorReport::new("the new copy lacks most of the rows that the destination has, and nobody has asked for it")
        .detail(format!("Nothing was changed, and the old rows are still served. {counted}"))
        .hint(
            "See whether source.url leads to the right server and its tables are whole. If they are, run headwater run \
             --resnapshot, which copies them again.",
        )
}

/// What to tell the operator.
pub fn report(fault: &Fault) -> ErrorReport {
    // Long: an arm for each fault, so that none is forgotten.
    match fault {
        Fault::Refused(report)
        | Fault::Halted(report)
        | Fault::Unwatched(report)
        | Fault::Source(SourceError::Refused(report) | SourceError::Gap { report, .. })
        | Fault::Destination(DestinationError::Refused(report) | DestinationError::Constraint(report)) => {
            report.clone()
        }
        Fault::Source(SourceError::LostHistory(lost)) => lost.report.clone(),
        Fault::Destination(DestinationError::LacksMost { tables, copy_begun_at }) => {
            lacks_most(tables, copy_begun_at.as_deref())
        }
        Fault::Source(SourceError::Session(error)) => session_report("source", error),
        Fault::Destination(DestinationError::Session(error)) => session_report("destination", error),
        Fault::Destination(error @ DestinationError::Silent(silent)) => {
            let message = ErrorReport::new(error.to_string()).message;
            ErrorReport { message, ..session_report("destination", &silent.error) }
        }
        Fault::Destination(DestinationError::Conflict(conflict)) => conflict::report(conflict),
        Fault::Destination(DestinationError::KeyRefuses(refusal)) => ErrorReport::new(refusal.to_string()).hint(
            "Compare the types and the collations of these columns at both ends, and change the table at the destination.",
        ),
        Fault::Source(SourceError::Transaction(error @ TransactionError::Replaced { table, .. })) => {
            ErrorReport::new(error.to_string()).hint(copy_anew(table))
        }
        Fault::Source(error @ SourceError::Unpublished { tables, .. }) => {
            let names: Vec<String> = tables.iter().map(ToString::to_string).collect();
            ErrorReport::new(error.to_string())
                .detail("What was written meanwhile was not sent.")
                .hint(format!("Copy again what has left it: headwater run --resnapshot={}", shell_word(&names.join(","))))
        }
        Fault::Destination(DestinationError::NeedsCopy { table, reason }) => {
            ErrorReport::new(format!("table {table} has changed at the source in a way that the stream does not tell"))
                .detail(format!("{}.", capitalized(reason)))
                .hint(copy_anew(table))
        }
        Fault::Destination(DestinationError::OtherTables(others)) => other_tables_report(others),
        Fault::Destination(error @ DestinationError::ColumnLost { table, renamed, .. }) => {
            let copy = format!(
                "Copy the table, which gets the column first: headwater resnapshot {}",
                shell_word(&table.to_string())
            );
            let lost = "dropped there, or together with its type or an extension. A column that is only added again would be NULL in the \
                        rows that are there.";
            let report = ErrorReport::new(error.to_string());
            match (renamed, rename_back(fault)) {
                (Some(renamed), Some(rename)) => report
                    .detail(format!(
                        "It may have been renamed: column {renamed} has its type, and the source has none of that name. Or it was {lost}"
                    ))
                    .hint(format!("{rename}\nOtherwise:\n{copy}")),
                (_, _) => report.detail(format!("It was {lost}")).hint(copy),
            }
        }
        Fault::Destination(DestinationError::NoIdentity(error)) => {
            ErrorReport::new(error.to_string()).hint(copy_anew(&error.table))
        }
        Fault::Destination(DestinationError::Renamed { table, renamed }) => renamed_report(table, renamed, false),
        Fault::Source(error @ SourceError::SlotInUse { process_id, holder, .. }) => ErrorReport::new(error.to_string())
            .detail(format!("It is a session of {holder}. It belongs to another role, or did not end when it was asked to."))
            .hint(format!(
                "Choose another name for source.slot; or, if that session has no right to this slot, end it at the source:\n\
                 SELECT pg_terminate_backend({process_id});"
            )),
        Fault::Source(SourceError::Spool(error)) => spool_report(error),
        Fault::Source(error @ SourceError::Behind { .. }) => ErrorReport::new(error.to_string())
            .detail("The destination was fed by a server that was ahead of this one. It is waited for.")
            .hint("See whether the standby still replays: pg_stat_wal_receiver, and its log."),
        Fault::Source(error @ SourceError::Unseen { .. }) => ErrorReport::new(error.to_string())
            .detail(
                "What its tables look like can only be read once it is. Its COMMIT waits for a synchronous standby.",
            )
            .hint("Bring the standby back, or take it out of synchronous_standby_names at the source."),
        Fault::Destination(DestinationError::Bind(error)) => ErrorReport::new(error.to_string())
            .hint("Change the table at the destination accordingly; headwater then continues by itself."),
        Fault::Source(error @ SourceError::Silent(_)) => ErrorReport::new(error.to_string()).hint(
            "See whether the source's server, its machine and the link to it stand still; headwater connects again by itself.",
        ),
        Fault::Source(
            SourceError::Ended
            | SourceError::Wire(_)
            | SourceError::Transaction(_)
            | SourceError::SnapshotLost(_)
            | SourceError::InTheWay { .. }
            | SourceError::NotLooked { .. }
            | SourceError::OutcomeUnknown { .. }
            | SourceError::Changed(_),
        )
        | Fault::Destination(
            DestinationError::PositionMoved { .. }
            | DestinationError::LabelMissing
            | DestinationError::AttributesRenamed
            | DestinationError::FormatChanged(_)
            | DestinationError::StagingLost(_)
            | DestinationError::SetsRefused { .. }
            | DestinationError::WantedOut { .. },
        ) => ErrorReport::new(fault.to_string()),
    }
}

/// The way back, without a copy, for what may have been renamed at the destination.
pub(crate) fn rename_back(fault: &Fault) -> Option<String> {
    match fault {
        Fault::Destination(DestinationError::ColumnLost { table, column, renamed: Some(renamed) }) => Some(format!(
            "If it was renamed, give it its name back, at the destination:\nALTER TABLE {table} RENAME COLUMN {renamed} TO {column};"
        )),
        Fault::Destination(DestinationError::OtherTables(others)) => {
            let renames = others.renames().join("\n");
            let words = "Give what is called otherwise its name back, at the destination:";
            (!renames.is_empty()).then(|| format!("{words}\n{renames}"))
        }
        Fault::Destination(_) | Fault::Source(_) | Fault::Refused(_) | Fault::Halted(_) | Fault::Unwatched(_) => None,
    }
}

fn copy_anew(table: &QualifiedName) -> String {
    format!("Copy it again: headwater run --resnapshot={}", shell_word(&table.to_string()))
}

fn capitalized(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

/// What to tell the operator of a spool that cannot keep transactions in progress.
pub fn spool_report(error: &SpoolError) -> ErrorReport {
    let report = ErrorReport::new(error.to_string()).detail(
        "Nothing is lost: the source is asked to keep large transactions until they commit, and to send them again then.",
    );
    match error {
        SpoolError::File { .. } => report.hint(
            "See spool.dir: it must exist or be creatable, be writable, and have room. headwater check says more.",
        ),
        SpoolError::Full { .. } => report.hint("Raise spool.bytes_max, if the disk has room for it."),
        SpoolError::Damaged { .. } | SpoolError::Slow { .. } => report.hint("Check the disk below spool.dir."),
        SpoolError::Gone => report,
    }
}

fn session_report(end: &str, error: &SessionError) -> ErrorReport {
    // Long: an arm for each error of a session, so that none is forgotten.
    if let SessionError::TooOld { version } = error {
        let text = format!("the {end} is PostgreSQL {version}, headwater needs {MAJOR_MIN} or later");
        return ErrorReport::new(text).hint(format!("Upgrade that server, or correct {end}.url."));
    }
    let report = ErrorReport::new(format!("{end}: {error}"));
    let Some(server) = error.server() else {
        return match error {
            SessionError::Tls { host, problem, .. } => report.hint(tls::hint(end, host, *problem)),
            SessionError::Authentication { reason, .. } if reason.starts_with("channel_binding=require") => {
                report.hint(format!(
                    "Let this role log in by scram-sha-256 over TLS (hostssl) in pg_hba.conf at the {end}, where the certificate is \
                     signed by RSA or ECDSA; or take channel_binding=require out of {end}.url."
                ))
            }
            SessionError::Authentication { .. } => report.hint(format!(
                "Give the password in ~/.pgpass, PGPASSWORD or {end}.url; see pg_hba.conf at the {end}."
            )),
            SessionError::Unreachable { .. } => report.hint(format!(
                "Start the server, or correct host and port in {end}.url; headwater run waits for it."
            )),
            SessionError::Unwanted { .. } => report.hint(format!(
                "Correct hosts or target_session_attrs in {end}.url; headwater run waits for such a server."
            )),
            SessionError::File { .. } => report.hint(format!(
                "See sslrootcert, sslcert, sslkey and passfile in {end}.url, or PGSSLROOTCERT, PGSSLCERT, PGSSLKEY and PGPASSFILE."
            )),
            SessionError::Replaced { .. } => report
                .detail("Code of the destination has run DEALLOCATE and PREPARE in it. Rows of the last transactions may be missing.")
                .hint(format!(
                    "{FIND_PREPARE}\nThen start headwater again, and compare both sides: headwater verify"
                )),
            SessionError::Server { .. }
            | SessionError::TooOld { .. }
            | SessionError::Lost { .. }
            | SessionError::Timeout { .. }
            | SessionError::Protocol { .. }
            | SessionError::Answer { .. } => report,
        };
    };
    // PgBouncer, of whichever version.
    if server.message.starts_with("unsupported") && server.message.contains("startup parameter") {
        return ErrorReport::new(format!("{end}.url leads through a connection pooler"))
            .detail("headwater needs sessions of its own: its settings, snapshots and locks live in them.")
            .hint(format!("Give the address of the PostgreSQL server itself as {end}.url."));
    }
    let report = match &server.detail {
        Some(detail) => report.detail(detail.clone()),
        None => report,
    };
    let hint = match (server.code.as_str(), &server.hint) {
        ("28P01", _) => Some(format!("Give the right password in ~/.pgpass, PGPASSWORD or {end}.url.")),
        ("28000", _) if server.message.contains("pg_hba.conf") => Some(format!(
            "Allow this role, database and address in pg_hba.conf at the {end}, then: SELECT pg_reload_conf();"
        )),
        ("28000", _) => Some(format!(
            "Correct the user in {end}.url, which must exist and have LOGIN; or give the certificate that pg_hba.conf asks for \
             in sslcert and sslkey."
        )),
        ("22023", _) if server.fatal => Some(format!("Correct it in options of {end}.url, or in PGOPTIONS.")),
        ("3D000", _) => Some(format!("Correct the database in {end}.url.")),
        (code, _) if is_refusal(code, &server.message) => Some(format!(
            "A view or a foreign table stands under the name of a table at the {end}. See which: headwater check"
        )),
        ("53300", _) => Some(too_many_sessions(&server.message, end)),
        ("55P03", _) => Some("Let the transaction that holds the lock end: headwater explain names it.".to_owned()),
        ("25006", _) => Some(format!(
            "The server is a standby, or lets nobody write. Let {end}.url name the primary (several hosts with \
             target_session_attrs=read-write find it); headwater then continues by itself."
        )),
        // Its own bugs: "unexpected duplicate for tablespace 0, relfilenode …" was seen of 15.18, after tables were rewritten.
        ("XX000", None) if end == "source" => Some(
            "See the source's log. If this comes again and again while it streams, the server cannot decode its WAL from here on: \
             drop the replication slot there (pg_drop_replication_slot), and start with headwater run --resnapshot, which copies all."
                .to_owned(),
        ),
        // A row filter that fails on a row, say: the next attempt comes to it again.
        (_, None) if is_undecodable(error) => Some(
            "The source cannot send what follows. If its log names a cause that can be removed, remove it; headwater then continues by \
             itself. Otherwise stop headwater, and start it once with headwater run --resnapshot: it copies all tables and streams on \
             behind that."
                .to_owned(),
        ),
        ("53100", _) => Some(format!("Make room on the {end}'s disk; headwater then continues by itself.")),
        (_, hint) => hint.clone(),
    };
    match hint {
        Some(hint) => report.hint(hint),
        None => report,
    }
}

/// Whether the source has ended the stream because it cannot send what follows, and not because its own resources fail or it is shut down.
fn is_undecodable(error: &SessionError) -> bool {
    match error {
        SessionError::Server { doing, error } => {
            *doing == STREAMING && !matches!(error.code.class(), "08" | "25" | "40" | "53" | "57")
        }
        SessionError::Unreachable { .. }
        | SessionError::Unwanted { .. }
        | SessionError::Tls { .. }
        | SessionError::Authentication { .. }
        | SessionError::TooOld { .. }
        | SessionError::File { .. }
        | SessionError::Lost { .. }
        | SessionError::Timeout { .. }
        | SessionError::Protocol { .. }
        | SessionError::Replaced { .. }
        | SessionError::Answer { .. } => false,
    }
}

/// The server names the role or the database whose limit it is.
fn too_many_sessions(message: &str, end: &str) -> String {
    let named = message.split('"').nth(1).map(Ident::new);
    match named {
        Some(name) if message.contains("for role") => {
            format!("Run at the {end} as a superuser:\nALTER ROLE {name} CONNECTION LIMIT 20;")
        }
        Some(name) if message.contains("for database") => {
            format!("Run at the {end} as a superuser:\nALTER DATABASE {name} CONNECTION LIMIT 20;")
        }
        Some(_) | None if end == "source" => "Raise max_wal_senders or max_connections at the source.".to_owned(),
        Some(_) | None => format!("Raise max_connections at the {end}."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::destination::Silent;
    use crate::session::ServerError;
    use crate::source::LostHistory;

    #[test]
    fn a_destination_that_gives_no_sign_of_life_has_the_hint_of_what_was_met_there() {
        let Fault::Destination(DestinationError::Session(error)) = server_fault("28000") else { unreachable!() };
        let silent = Silent { within: std::time::Duration::from_secs(30), error: std::sync::Arc::new(error) };
        let fault = Fault::Destination(DestinationError::Silent(silent));
        let report = report(&fault);
        assert_eq!(report.message, "destination: no sign of life for 30s; at last: x: m (SQLSTATE 28000)");
        assert!(report.hint.is_some_and(|hint| hint.starts_with("Correct the user in destination.url")));
        assert_eq!(decide(&fault, Phase::Running, OnSlotLost::Stop), Decision::Halt("refused"));
    }

    fn server_fault(code: &str) -> Fault {
        let error = ServerError {
            code: SqlState::parse(code),
            fatal: false,
            in_function: false,
            message: "m".into(),
            detail: None,
            hint: None,
            schema: None,
            table: None,
            column: None,
            constraint: None,
            process_id: None,
        };
        Fault::Destination(DestinationError::Session(SessionError::Server { doing: "x", error: Box::new(error) }))
    }

    #[test]
    fn an_answer_that_is_not_understood_is_asked_for_again() {
        let error = SessionError::Answer { doing: "x", what: "column 1 is NULL".to_owned() };
        for phase in [Phase::Starting, Phase::Running] {
            let fault = Fault::Source(SourceError::Session(SessionError::Answer { doing: "x", what: String::new() }));
            assert_eq!(decide(&fault, phase, OnSlotLost::Stop), Decision::Retry("answer"));
        }
        let report = report(&Fault::Source(SourceError::Session(error)));
        assert_eq!(report.message, "source: x: could not understand the server's answer: column 1 is NULL");
    }

    #[test]
    fn what_passes_is_retried_and_what_needs_an_operator_is_said() {
        for (code, decision) in [
            ("57P01", Decision::Retry("destination_lost")),
            ("57P03", Decision::Retry("destination_lost")),
            ("40P01", Decision::Retry("deadlock")),
            ("55P03", Decision::Retry("lock_timeout")),
            ("53100", Decision::Halt("disk_full")),
            ("42501", Decision::Halt("refused")),
            ("28P01", Decision::Halt("refused")),
            ("XX000", Decision::Halt("server_error")),
            ("99999", Decision::Halt("server_error")),
        ] {
            assert_eq!(decide(&server_fault(code), Phase::Running, OnSlotLost::Stop), decision, "{code}");
        }
    }

    #[test]
    fn a_wrong_password_ends_a_start_and_is_waited_for_later() {
        assert_eq!(decide(&server_fault("28P01"), Phase::Starting, OnSlotLost::Stop), Decision::End);
        assert_eq!(decide(&server_fault("28P01"), Phase::Running, OnSlotLost::Stop), Decision::Halt("refused"));
    }

    #[test]
    fn a_copy_is_made_by_itself_only_where_the_source_continues_the_history() {
        let decided = |cause, phase, chosen| {
            let lost = LostHistory { cause, report: ErrorReport::new("gone") };
            decide(&Fault::Source(lost.into()), phase, chosen)
        };
        for cause in [LostCause::SlotMissing, LostCause::SlotInvalidated, LostCause::SlotAhead] {
            for phase in [Phase::Starting, Phase::Running] {
                assert_eq!(decided(cause, phase, OnSlotLost::Stop), Decision::End, "{cause:?}");
                assert_eq!(decided(cause, phase, OnSlotLost::Resnapshot), Decision::Resnapshot, "{cause:?}");
            }
        }
        for cause in [
            LostCause::OtherCluster,
            LostCause::OtherDatabase,
            LostCause::OlderTimeline,
            LostCause::ForkedTimeline,
            LostCause::LeftBefore,
            LostCause::EndsBefore,
            LostCause::XidBefore,
            LostCause::SlotTaken,
        ] {
            for chosen in [OnSlotLost::Stop, OnSlotLost::Resnapshot] {
                assert_eq!(decided(cause, Phase::Starting, chosen), Decision::End, "{cause:?}");
                assert_eq!(decided(cause, Phase::Running, chosen), Decision::Halt("source_history"), "{cause:?}");
            }
        }
    }
}

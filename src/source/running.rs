//! Transactions that a new slot at the source waits for, in words, with what ends them.
//!
//! A slot waits for every transaction of the whole cluster that has an xid, in whichever database, prepared ones included: those
//! have no session, and stay until somebody ends them. Asked by `supervisor` and the commands wherever a slot is made, or its wait
//! is explained. Nothing is changed here.
//!
//! Every role sees the locks that transactions hold on their xids and who they are; since when they run only roles that may read
//! statistics. Hence times are absent where they are not visible, never guessed. Times, not ages: a text that stays the same is
//! logged once.

use crate::pg::{ErrorReport, Ident, shown_literal};
use crate::session::{Row, SessionError, SqlClient};

/// A transaction with an xid.
#[derive(Clone, Debug, PartialEq)]
pub struct Running {
    /// Whose it is.
    pub owner: RunningOwner,
    /// The role.
    pub role: Option<Ident>,
    /// The database.
    pub database: Option<Ident>,
    /// When it began, or was prepared, in UTC; `None` where our role may not see it.
    pub since: Option<String>,
    /// How long ago that was, in seconds.
    pub seconds: Option<f64>,
}

/// What holds a transaction open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunningOwner {
    /// A session.
    Session {
        /// Its server process.
        process_id: i32,
    },
    /// PREPARE TRANSACTION: nothing but COMMIT PREPARED or ROLLBACK PREPARED ends it.
    Prepared {
        /// Its name.
        gid: String,
    },
}

impl Running {
    /// What it is, without its age: `prepared transaction 'x' of role app in database forum`.
    pub fn name(&self) -> String {
        let mut name = match &self.owner {
            RunningOwner::Session { process_id } => format!("process {process_id}"),
            RunningOwner::Prepared { gid } => format!("prepared transaction {}", shown_literal(gid)),
        };
        if let Some(role) = &self.role {
            name.push_str(&format!(" of role {role}"));
        }
        if let Some(database) = &self.database {
            name.push_str(&format!(" in database {database}"));
        }
        name
    }

    /// The same with its time.
    pub fn words(&self) -> String {
        match &self.since {
            Some(since) => format!("{}, since {since}", self.name()),
            None => format!("{} (since when is not visible to this role)", self.name()),
        }
    }

    /// The statement that ends it.
    pub fn end(&self) -> String {
        match &self.owner {
            RunningOwner::Session { process_id } => format!("SELECT pg_terminate_backend({process_id});"),
            RunningOwner::Prepared { gid } => format!("ROLLBACK PREPARED {};", shown_literal(gid)),
        }
    }
}

/// What to do about transactions that are waited for: words, then the statements, which can be run as they stand.
pub fn ending_hint(running: &[Running]) -> Option<String> {
    let mut databases: Vec<&Ident> = Vec::new();
    let mut statements = Vec::new();
    for transaction in running {
        match (&transaction.owner, &transaction.database) {
            // It can be ended in its own database only, by its owner or a superuser.
            (RunningOwner::Prepared { .. }, Some(database)) => {
                if !databases.contains(&database) {
                    databases.push(database);
                }
                let owner =
                    transaction.role.as_ref().map_or_else(String::new, |role| format!(", as {role} or a superuser"));
                statements.push(format!("{} -- in database {database}{owner}", transaction.end()));
            }
            (RunningOwner::Prepared { .. } | RunningOwner::Session { .. }, _) => statements.push(transaction.end()),
        }
    }
    let words = if databases.is_empty() {
        "Wait for them; or end them at the source:"
    } else {
        "Wait for them; or, if nobody will end a prepared transaction (COMMIT PREPARED or ROLLBACK PREPARED), end it at the source:"
    };
    (!statements.is_empty()).then(|| format!("{words}\n{}", statements.join("\n")))
}

/// What a slot waits for, as the detail and hint of a report.
pub fn explain_slot_wait(report: ErrorReport, running: &[Running]) -> ErrorReport {
    let names: Vec<String> = running.iter().map(Running::words).collect();
    let report = match names.as_slice() {
        [] => report.detail("The source shows no transaction that it waits for."),
        names => report.detail(format!("It waits for transactions that run at the source: {}.", names.join("; "))),
    };
    match ending_hint(running) {
        Some(hint) => report.hint(hint),
        None => report,
    }
}

/// Transactions are named up to here: prepared ones first, then the oldest.
const NAMED_MAX: i64 = 5;

/// The oldest transactions that a new slot has to wait for, prepared ones first.
///
/// # Errors
/// [`SessionError`].
pub async fn running_transactions(client: &SqlClient) -> Result<Vec<Running>, SessionError> {
    // The own session may have an xid, and is not waited for by itself.
    let sql = "SELECT NULL::int, p.gid, p.owner::text, p.database::text, p.prepared
               FROM pg_catalog.pg_prepared_xacts p
               UNION ALL
               SELECT l.pid, NULL, pg_catalog.min(a.usename::text), pg_catalog.min(a.datname::text), pg_catalog.min(a.xact_start)
               FROM pg_catalog.pg_locks l LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
               WHERE l.locktype = 'transactionid' AND l.mode = 'ExclusiveLock' AND l.granted
                 AND l.pid IS NOT NULL AND l.pid <> pg_catalog.pg_backend_pid()
               GROUP BY l.pid";
    let sql = format!("{} ORDER BY gid IS NULL, began NULLS LAST LIMIT {NAMED_MAX}", described(sql));
    let rows = client.query("looking for running transactions", &sql, &[]).await?;
    rows.iter().filter_map(|row| read(row).transpose()).collect()
}

/// Who holds a lock, by the process and virtual transaction that pg_locks shows for it: a prepared transaction has no process, but
/// holds the lock on its own xid, too.
///
/// # Errors
/// [`SessionError`].
pub async fn lock_holder(
    client: &SqlClient,
    process_id: Option<i32>,
    virtual_transaction: &str,
) -> Result<Option<Running>, SessionError> {
    let sql = "SELECT NULL::int, p.gid, p.owner::text, p.database::text, p.prepared
               FROM pg_catalog.pg_prepared_xacts p
               WHERE $1::int IS NULL AND p.transaction IN (
                   SELECT l.transactionid FROM pg_catalog.pg_locks l
                   WHERE l.pid IS NULL AND l.locktype = 'transactionid' AND l.virtualtransaction = $2::text)
               UNION ALL
               SELECT a.pid, NULL, a.usename::text, a.datname::text, a.xact_start
               FROM pg_catalog.pg_stat_activity a WHERE a.pid = $1::int";
    let doing = "looking for a lock's holder";
    let row = client.query_opt(doing, &described(sql), &[&process_id, &virtual_transaction]).await?;
    row.as_ref().map_or(Ok(None), read)
}

/// Rows of process, gid, role, database and beginning, as [`read`] reads them.
fn described(sql: &str) -> String {
    format!(
        "SELECT pid, gid, role, database, pg_catalog.to_char(began AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS \"UTC\"'),
                EXTRACT(epoch FROM pg_catalog.clock_timestamp() - began)::float8
         FROM ({sql}) AS running (pid, gid, role, database, began)"
    )
}

fn read(row: &Row) -> Result<Option<Running>, SessionError> {
    let owner = match (row.get::<Option<i32>>(0)?, row.get::<Option<String>>(1)?) {
        (_, Some(gid)) => RunningOwner::Prepared { gid },
        (Some(process_id), None) => RunningOwner::Session { process_id },
        (None, None) => return Ok(None),
    };
    let named = |text: Option<&str>| text.map(Ident::new);
    let (role, database) = (named(row.get(2)?), named(row.get(3)?));
    Ok(Some(Running { owner, role, database, since: row.get(4)?, seconds: row.get(5)? }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prepared_transaction_is_named_with_where_it_can_be_ended() {
        let prepared = Running {
            owner: RunningOwner::Prepared { gid: "it's".into() },
            role: Some(Ident::new("App")),
            database: Some(Ident::new("shop")),
            since: Some("2026-11-27 00:03:12 UTC".into()),
            seconds: Some(5.0),
        };
        let session = Running {
            owner: RunningOwner::Session { process_id: 7 },
            role: Some(Ident::new("app")),
            database: None,
            since: None,
            seconds: None,
        };
        assert_eq!(
            prepared.words(),
            "prepared transaction 'it''s' of role \"App\" in database shop, since 2026-11-27 00:03:12 UTC"
        );
        assert_eq!(session.words(), "process 7 of role app (since when is not visible to this role)");
        let hint = ending_hint(&[prepared, session.clone()]).unwrap();
        let (_, sql) = hint.split_once('\n').unwrap();
        assert_eq!(
            sql,
            "ROLLBACK PREPARED 'it''s'; -- in database shop, as \"App\" or a superuser\nSELECT pg_terminate_backend(7);"
        );
        assert_eq!(ending_hint(&[]), None);
        assert!(ending_hint(&[session]).unwrap().starts_with("Wait for them; or end them"));
    }
}

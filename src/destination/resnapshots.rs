//! Snapshots that were asked for: by a command line, by `headwater resnapshot`, by a table that was added, or by one that
//! has changed in a way that the stream does not show.
//!
//! A request is a row of headwater.resnapshots, written before anything is done about it and fulfilled in the
//! transaction that publishes it. So a request that was interrupted is found by the next start, and one that was
//! fulfilled is not repeated when a supervisor starts the same command line again after a crash: its invocation is on
//! record until the service is stopped in good order.
//!
//! ```text
//! (no row) ──request──▶ requested ──publish──▶ done
//!                           └──────fail──────▶ failed
//! ```
//!
//! What is done stays as a row, which says how often a table was copied by itself: each such copy locks and reads the table at the
//! source, and a table whose partitions come and go every few seconds would be copied without end. So from the fifth copy within an
//! hour on, the next one waits ([`Pace`]); the others stream on meanwhile. A copy that has read the source and was given up has cost as
//! much: it stays as a row of its own, `failed`, while the request stands.

use std::collections::BTreeSet;
use std::time::Duration;

use super::bookkeeping::Bookkeeping;
use super::error::DestinationError;
use crate::pg::QualifiedName;

/// Number of settled requests whose rows are kept for a later look.
const KEPT: i64 = 100;

/// Which tables a snapshot is to be made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All of the set.
    All,
    /// These.
    Tables(Vec<QualifiedName>),
}

impl Scope {
    /// Whether a table is meant.
    pub fn contains(&self, table: &QualifiedName) -> bool {
        match self {
            Scope::All => true,
            Scope::Tables(tables) => tables.contains(table),
        }
    }

    /// Both.
    #[must_use]
    pub fn and(self, other: Scope) -> Scope {
        match (self, other) {
            (Scope::Tables(mut tables), Scope::Tables(more)) => {
                tables.extend(more);
                tables.sort_unstable();
                tables.dedup();
                Scope::Tables(tables)
            }
            (Scope::All, _) | (_, Scope::All) => Scope::All,
        }
    }

    fn to_rows(&self) -> Option<Vec<String>> {
        match self {
            Scope::All => None,
            Scope::Tables(tables) => Some(tables.iter().map(QualifiedName::sql).collect()),
        }
    }
}

impl std::fmt::Display for Scope {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Scope::All => f.write_str("all tables"),
            Scope::Tables(tables) => {
                let names: Vec<String> = tables.iter().map(QualifiedName::to_string).collect();
                write!(f, "{}", names.join(", "))
            }
        }
    }
}

/// Who asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestOrigin {
    /// `headwater run --resnapshot`
    Start,
    /// `headwater resnapshot`
    Command,
    /// A table was added to the configuration.
    Added,
    /// A table has changed at the source in a way that the stream does not show.
    Changed,
}

impl RequestOrigin {
    const fn as_str(self) -> &'static str {
        match self {
            RequestOrigin::Start => "start",
            RequestOrigin::Command => "command",
            RequestOrigin::Added => "added",
            RequestOrigin::Changed => "changed",
        }
    }
}

/// Who must have asked for a table's copy before the table is suspended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AskedBy {
    /// Nobody: a copy is asked for with it.
    Nobody,
    /// An operator, or headwater itself.
    Anybody,
    /// An operator.
    Operator,
}

/// A request that is not settled yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Its number.
    pub id: i64,
    /// What to copy again.
    pub scope: Scope,
    /// Who asked.
    pub origin: RequestOrigin,
    /// Why it was not fulfilled when it was tried last, with what to do; `None` when it was not tried yet.
    pub failure: Option<String>,
    /// The source that it was used for.
    pub for_source: Option<String>,
}

impl Request {
    /// The tables whose rows may be others than the source's until these requests are fulfilled: those that are suspended, and those that
    /// are followed and wait for a comparison.
    pub fn tables_in_doubt(requests: &[Request]) -> BTreeSet<QualifiedName> {
        let changed = requests.iter().filter(|request| request.origin == RequestOrigin::Changed);
        let tables = changed.flat_map(|request| match &request.scope {
            Scope::Tables(tables) => tables.as_slice(),
            Scope::All => &[],
        });
        tables.cloned().collect()
    }

    /// Whether a table's copy was asked for, by whom it must have been.
    pub fn is_for(&self, table: &QualifiedName, asked_by: AskedBy) -> bool {
        let is_operators = matches!(self.origin, RequestOrigin::Start | RequestOrigin::Command);
        self.scope.contains(table) && (is_operators || asked_by != AskedBy::Operator)
    }
}

/// A copy that headwater has made by itself, or has given up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AutomaticCopy {
    /// Of what.
    pub scope: Scope,
    /// How long ago it ended.
    pub age: Duration,
    /// It was given up.
    pub is_given_up: bool,
}

/// A request that waits, since its table was copied again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// So many copies of the table were published within the last hour.
    pub copies: u32,
    /// So many were given up.
    pub given_up: u32,
    /// So much longer it waits.
    pub wait: Duration,
}

impl Pace {
    /// What has been done within the last hour, behind "was".
    pub fn words(copies: u32, given_up: u32) -> String {
        let times = |count: u32| if count == 1 { "once".to_owned() } else { format!("{count} times") };
        match (copies, given_up) {
            (copies, 0) => format!("copied {} within an hour", times(copies)),
            (0, given_up) => format!("not copied, and its copy was given up {} within an hour", times(given_up)),
            (copies, given_up) => {
                format!("copied {} and its copy was given up {} within an hour", times(copies), times(given_up))
            }
        }
    }
}

/// Copies that ended before this are over.
const PACED_WITHIN: Duration = Duration::from_secs(3600);
/// So many copies of a table within that time are made at once: a migration may change a table in some steps.
const UNPACED: u32 = 4;
/// The first wait; each next one is twice as long.
const FIRST_WAIT: Duration = Duration::from_secs(5);
/// Until then the table's rows are old, and the instance is not ready.
const LONGEST_WAIT: Duration = Duration::from_secs(300);

impl Pace {
    /// Whether a request waits after these copies; one of an operator never does.
    pub fn of(request: &Request, copies: &[AutomaticCopy]) -> Option<Pace> {
        let Scope::Tables(tables) = request.scope.clone() else { return None };
        let of_table = |table: &QualifiedName| {
            let copies = copies.iter().filter(|copy| copy.scope.contains(table) && copy.age < PACED_WITHIN);
            let (given_up, made): (Vec<&AutomaticCopy>, Vec<&AutomaticCopy>) =
                copies.partition(|copy| copy.is_given_up);
            let count = |copies: &[&AutomaticCopy]| u32::try_from(copies.len()).unwrap_or(u32::MAX);
            let doublings = count(&made).saturating_add(count(&given_up)).checked_sub(UNPACED)?.min(16);
            let last = made.iter().chain(&given_up).map(|copy| copy.age).min()?;
            let wait = (FIRST_WAIT * (1 << doublings)).min(LONGEST_WAIT).saturating_sub(last);
            (!wait.is_zero()).then_some(Pace { copies: count(&made), given_up: count(&given_up), wait })
        };
        match request.origin {
            RequestOrigin::Changed => tables.iter().filter_map(of_table).max_by_key(|pace| pace.wait),
            RequestOrigin::Start | RequestOrigin::Command | RequestOrigin::Added => None,
        }
    }
}

/// How far a request has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestState {
    /// Not settled; what has kept it up so far, if anything.
    Requested(Option<String>),
    /// Published.
    Done,
    /// Given up, with the reason.
    Failed(String),
}

const DOING: &str = "writing headwater.resnapshots";
const READING: &str = "reading headwater.resnapshots";

/// Settles requests; run inside the publishing transaction.
pub(super) const FULFIL: &str = "UPDATE headwater.resnapshots SET state = 'done', message = NULL, \
     finished_at = pg_catalog.clock_timestamp() WHERE id = ANY ($1) AND state = 'requested'";

impl Bookkeeping {
    /// Whether requests can be written: the bookkeeping is there, and recent enough.
    ///
    /// # Errors
    /// [`DestinationError`].
    pub async fn takes_requests(&self) -> Result<bool, DestinationError> {
        let sql = "SELECT pg_catalog.to_regclass('headwater.resnapshots') IS NOT NULL";
        Ok(self.client().query_one(READING, sql, &[]).await?.get(0)?)
    }

    /// Asks for a snapshot; returns the request's number. With an `invocation`, at most one request bears it.
    ///
    /// # Errors
    /// [`DestinationError`].
    pub async fn request(
        &self,
        scope: &Scope,
        origin: RequestOrigin,
        invocation: Option<&str>,
    ) -> Result<i64, DestinationError> {
        let sql = "INSERT INTO headwater.resnapshots (tables, origin, invocation) VALUES ($1, $2, $3) RETURNING id";
        let row = self.client().query_one(DOING, sql, &[&scope.to_rows(), &origin.as_str(), &invocation]).await?;
        self.client().notify().await?;
        Ok(row.get(0)?)
    }

    /// The requests that are not settled.
    ///
    /// # Errors
    /// [`DestinationError`].
    pub async fn requests(&self) -> Result<Vec<Request>, DestinationError> {
        let sql = "SELECT id, CASE WHEN tables IS NOT NULL THEN ARRAY(SELECT t FROM pg_catalog.unnest(tables) AS t WHERE t IS NOT NULL) END,
                          origin, message, pg_catalog.to_jsonb(r) ->> 'for_source'
                   FROM headwater.resnapshots r WHERE state = 'requested' ORDER BY id";
        let rows = self.client().query(READING, sql, &[]).await?;
        let requests = rows.iter().map(|row| -> Result<Request, DestinationError> {
            let tables: Option<Vec<String>> = row.get(1)?;
            let parsed = tables.map(|tables| tables.iter().filter_map(|name| name.parse().ok()).collect());
            let origin = match row.get::<&str>(2)? {
                "start" => RequestOrigin::Start,
                "added" => RequestOrigin::Added,
                "changed" => RequestOrigin::Changed,
                _ => RequestOrigin::Command,
            };
            let scope = parsed.map_or(Scope::All, Scope::Tables);
            Ok(Request { id: row.get(0)?, scope, origin, failure: row.get(3)?, for_source: row.get(4)? })
        });
        requests.collect()
    }

    /// The copies of tables that headwater has made by itself, or given up, within the last hour.
    ///
    /// # Errors
    /// [`DestinationError`].
    pub async fn automatic_copies(&self) -> Result<Vec<AutomaticCopy>, DestinationError> {
        let sql = "SELECT ARRAY(SELECT t FROM pg_catalog.unnest(tables) AS t WHERE t IS NOT NULL),
                          (pg_catalog.date_part('epoch', pg_catalog.clock_timestamp() - finished_at) * 1000)::int8, state = 'failed'
                   FROM headwater.resnapshots WHERE state IN ('done', 'failed') AND origin = 'changed' AND tables IS NOT NULL
                     AND finished_at > pg_catalog.clock_timestamp() - $1::int8 * '1 second'::pg_catalog.interval";
        let seconds = i64::try_from(PACED_WITHIN.as_secs()).unwrap_or(i64::MAX);
        let rows = self.client().query(READING, sql, &[&seconds]).await?;
        let copies = rows.iter().map(|row| {
            let tables: Vec<String> = row.get(0)?;
            let scope = Scope::Tables(tables.iter().filter_map(|name| name.parse().ok()).collect());
            // The server's clock may have been set back.
            let age = Duration::from_millis(u64::try_from(row.get::<i64>(1)?).unwrap_or(0));
            Ok(AutomaticCopy { scope, age, is_given_up: row.get(2)? })
        });
        copies.collect()
    }

    /// Suspends a table: from now on it is not followed, its rows stay as they are, and a copy is asked for unless one is.
    /// One transaction; does nothing to a table that is suspended already, or whose copy was not asked for as `asked_by` demands.
    ///
    /// The caller need not lead. At worst a table that was just published is copied once more: the same transaction asks for
    /// the copy, and a stream that follows the table meanwhile is set up again when the copy is published.
    ///
    /// # Errors
    /// [`DestinationError`].
    pub async fn suspend(&self, table: &QualifiedName, asked_by: AskedBy) -> Result<bool, DestinationError> {
        self.client().batch(DOING, "BEGIN").await?;
        let done = self.suspend_inside(table, asked_by).await;
        let end = if matches!(done, Ok(true)) { "COMMIT" } else { "ROLLBACK" };
        let ended = self.client().batch(DOING, end).await;
        let done = done?;
        ended?;
        Ok(done)
    }

    async fn suspend_inside(&self, table: &QualifiedName, asked_by: AskedBy) -> Result<bool, DestinationError> {
        let requests = self.requests().await?;
        let is_asked = |asked_by| requests.iter().any(|request| request.is_for(table, asked_by));
        if asked_by != AskedBy::Nobody && !is_asked(asked_by) {
            return Ok(false);
        }
        let sql = "UPDATE headwater.tables SET state = 'staging', snapshot_position = NULL
                   WHERE schema_name = $1 AND table_name = $2 AND state = 'live'";
        let (schema, name) = (table.schema.as_str(), table.name.as_str());
        if self.client().execute(DOING, sql, &[&schema, &name]).await? == 0 {
            return Ok(false);
        }
        if !is_asked(AskedBy::Anybody) {
            self.request(&Scope::Tables(vec![table.clone()]), RequestOrigin::Changed, None).await?;
        }
        Ok(true)
    }

    /// A foreign key between a table and another that is followed, if there is one here.
    ///
    /// # Errors
    /// [`DestinationError`].
    pub async fn foreign_key_of(&self, table: &QualifiedName) -> Result<Option<String>, DestinationError> {
        let sql = "SELECT c.conname::text FROM pg_catalog.pg_constraint c
                   WHERE c.contype = 'f' AND c.conrelid <> c.confrelid
                     AND pg_catalog.to_regclass($1) IN (c.conrelid, c.confrelid)
                     AND EXISTS (SELECT FROM headwater.tables t WHERE t.destination_id IN (c.conrelid, c.confrelid)
                                 AND t.destination_id <> pg_catalog.to_regclass($1))
                   ORDER BY c.conname LIMIT 1";
        Ok(self.client().query_opt(READING, sql, &[&table.sql()]).await?.map(|row| row.get(0)).transpose()?)
    }

    /// How far a request has come; `None` when there is no such request.
    ///
    /// # Errors
    /// [`DestinationError`].
    pub async fn request_state(&self, id: i64) -> Result<Option<RequestState>, DestinationError> {
        let sql = "SELECT state, message FROM headwater.resnapshots WHERE id = $1";
        let row = self.client().query_opt(READING, sql, &[&id]).await?;
        let Some(row) = row else { return Ok(None) };
        let message: Option<String> = row.get(1)?;
        Ok(Some(match row.get::<&str>(0)? {
            "done" => RequestState::Done,
            "failed" => RequestState::Failed(message.unwrap_or_default()),
            _ => RequestState::Requested(message),
        }))
    }

    /// The request that bears an invocation.
    ///
    /// # Errors
    /// [`DestinationError`].
    pub async fn request_of(&self, invocation: &str) -> Result<Option<RequestState>, DestinationError> {
        let sql = "SELECT id FROM headwater.resnapshots WHERE invocation = $1 ORDER BY id DESC LIMIT 1";
        match self.client().query_opt(READING, sql, &[&invocation]).await? {
            Some(row) => self.request_state(row.get(0)?).await,
            None => Ok(None),
        }
    }

    /// Whether a request bears an invocation.
    ///
    /// # Errors
    /// [`DestinationError`].
    pub async fn remembers_invocation(&self) -> Result<bool, DestinationError> {
        let sql = "SELECT EXISTS (SELECT FROM headwater.resnapshots WHERE invocation IS NOT NULL)";
        Ok(self.client().query_one(READING, sql, &[]).await?.get(0)?)
    }

    /// What keeps requests up; they stay asked for.
    ///
    /// # Errors
    /// [`DestinationError`].
    pub async fn note_requests(&self, ids: &[i64], message: &str) -> Result<(), DestinationError> {
        let sql = "UPDATE headwater.resnapshots SET message = $2 WHERE id = ANY ($1) AND state = 'requested'";
        self.client().execute(DOING, sql, &[&ids.to_vec(), &message]).await?;
        Ok(())
    }

    /// Copies of these that headwater has asked for by itself were given up: they stay asked for, and the next ones are paced.
    ///
    /// # Errors
    /// [`DestinationError`].
    pub async fn note_given_up(&self, ids: &[i64], message: &str) -> Result<(), DestinationError> {
        let sql = "INSERT INTO headwater.resnapshots (tables, origin, state, message, finished_at)
                   SELECT tables, origin, 'failed', $2, pg_catalog.clock_timestamp() FROM headwater.resnapshots
                   WHERE id = ANY ($1) AND state = 'requested' AND origin = 'changed' AND tables IS NOT NULL";
        self.client().execute(DOING, sql, &[&ids.to_vec(), &message]).await?;
        Ok(())
    }

    /// Gives requests up.
    ///
    /// # Errors
    /// [`DestinationError`].
    pub async fn fail_requests(&self, ids: &[i64], message: &str) -> Result<(), DestinationError> {
        let sql = "UPDATE headwater.resnapshots SET state = 'failed', message = $2, finished_at = pg_catalog.clock_timestamp()
                   WHERE id = ANY ($1) AND state = 'requested'";
        self.client().execute(DOING, sql, &[&ids.to_vec(), &message]).await?;
        Ok(())
    }

    /// Remembers the source that what a command line has asked for is used for, where that is not known yet.
    ///
    /// # Errors
    /// [`DestinationError`].
    pub async fn bind_requests(&self, source: &str) -> Result<(), DestinationError> {
        let sql = "UPDATE headwater.resnapshots SET for_source = $1
                   WHERE state = 'requested' AND origin = 'start' AND for_source IS NULL";
        self.client().execute(DOING, sql, &[&source]).await?;
        Ok(())
    }

    /// A start without --resnapshot has ended with words that ask for it: what a command line asked for before is over, so that the
    /// next one is carried out, for whatever source it is then meant.
    ///
    /// # Errors
    /// [`DestinationError`].
    pub async fn forget_invocations(&self) -> Result<(), DestinationError> {
        if !self.takes_requests().await? {
            return Ok(());
        }
        self.ensure().await?;
        let sql = "UPDATE headwater.resnapshots SET invocation = NULL, for_source = NULL,
                       state = CASE WHEN state = 'requested' THEN 'failed' ELSE state END,
                       message = CASE WHEN state = 'requested' THEN 'given up: a later start met another source' ELSE message END
                   WHERE invocation IS NOT NULL";
        self.client().execute(DOING, sql, &[]).await?;
        Ok(())
    }

    /// The service stops in good order: the next command line is another one, whatever it says.
    ///
    /// # Errors
    /// [`DestinationError`].
    pub async fn end_invocation(&self) -> Result<(), DestinationError> {
        if !self.takes_requests().await? {
            return Ok(());
        }
        let sql =
            "UPDATE headwater.resnapshots SET invocation = NULL WHERE invocation IS NOT NULL AND state <> 'requested'";
        self.client().execute(DOING, sql, &[]).await?;
        let sql = "DELETE FROM headwater.resnapshots WHERE state <> 'requested' AND id <= (SELECT pg_catalog.max(id) FROM \
                   headwater.resnapshots) - $1";
        self.client().execute(DOING, sql, &[&KEPT]).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_that_is_copied_by_itself_again_and_again_waits_longer_each_time() {
        let tables =
            |names: &[&str]| Scope::Tables(names.iter().map(|name| QualifiedName::new("public", *name)).collect());
        let request =
            |origin, names: &[&str]| Request { id: 1, scope: tables(names), origin, failure: None, for_source: None };
        let seconds = Duration::from_secs;
        let copies = |count: u64, last: u64| -> Vec<AutomaticCopy> {
            let copy =
                |at: u64| AutomaticCopy { scope: tables(&["t"]), age: seconds(last + at), is_given_up: at % 2 == 1 };
            (0..count).map(copy).collect()
        };
        let waits = |origin, names: &[&str], copies: &[AutomaticCopy]| Pace::of(&request(origin, names), copies);
        let paced =
            |count, last| waits(RequestOrigin::Changed, &["t"], &copies(count, last)).map(|pace| pace.wait.as_secs());
        assert_eq!(
            [3, 4, 5, 6, 10, 40, 100].map(|count| paced(count, 0)),
            [None, Some(5), Some(10), Some(20), Some(300), Some(300), Some(300)]
        );
        assert_eq!((paced(4, 4), paced(4, 5), paced(10, 299), paced(10, 300)), (Some(1), None, Some(1), None));
        assert_eq!(paced(10, 3600), None, "they are over");
        assert_eq!(waits(RequestOrigin::Changed, &["u"], &copies(10, 0)), None, "of another table");
        let both = waits(RequestOrigin::Changed, &["u", "t"], &copies(5, 0));
        assert_eq!(both, Some(Pace { copies: 3, given_up: 2, wait: seconds(10) }));
        let words = [(12, 0), (0, 1), (1, 2)].map(|(copies, given_up)| Pace::words(copies, given_up));
        assert_eq!(
            words,
            [
                "copied 12 times within an hour",
                "not copied, and its copy was given up once within an hour",
                "copied once and its copy was given up 2 times within an hour"
            ]
        );
        for origin in [RequestOrigin::Start, RequestOrigin::Command, RequestOrigin::Added] {
            assert_eq!(waits(origin, &["t"], &copies(10, 0)), None);
        }
    }

    #[test]
    fn two_scopes_together_mean_every_table_of_either() {
        let name = |name: &str| QualifiedName::new("public", name);
        let some = |names: &[&str]| Scope::Tables(names.iter().map(|n| name(n)).collect());
        assert_eq!(some(&["b"]).and(some(&["a", "b"])), some(&["a", "b"]));
        assert_eq!(some(&["b"]).and(Scope::All), Scope::All);
        assert!(Scope::All.contains(&name("x")) && !some(&["b"]).contains(&name("a")));
    }
}

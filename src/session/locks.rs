//! Reads how large a server's lock table is, and how much of it is in use. The same question on both ends.

use super::error::SessionError;
use super::sql::SqlClient;
use crate::catalog::lock_budget::LockTable;

/// A lock that a process holds by its fast path takes no room in the shared table.
const LOCK_TABLE: &str = "
    SELECT pg_catalog.current_setting('max_locks_per_transaction')::bigint,
           pg_catalog.current_setting('max_connections')::bigint + pg_catalog.current_setting('max_prepared_transactions')::bigint,
           (SELECT pg_catalog.count(DISTINCT (l.locktype, l.database, l.relation, l.page, l.tuple, l.virtualxid, l.transactionid,
                                              l.classid, l.objid, l.objsubid)::text)
            FROM pg_catalog.pg_locks l WHERE NOT l.fastpath)";

/// The server's lock table as it is now.
///
/// # Errors
/// [`SessionError`].
pub async fn read_lock_table(client: &SqlClient) -> Result<LockTable, SessionError> {
    let row = client.query_one("reading the room for locks", LOCK_TABLE, &[]).await?;
    let number = |at: usize| Ok::<_, SessionError>(u64::try_from(row.get::<i64>(at)?).unwrap_or(0));
    Ok(LockTable { per_transaction: number(0)?, transactions: number(1)?, in_use: number(2)? })
}

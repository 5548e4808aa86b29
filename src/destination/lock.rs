//! The advisory lock of the leader: its key, who holds it, and what happens to sessions that may not.
//!
//! `leadership` takes the lock through here; `supervisor` and the commands ask here who leads. The lock decides who tries to
//! apply. The conditional position update alone decides who commits, so nothing here can lose or double a row.
//!
//! PostgreSQL lets every role take every advisory lock, and pg_locks shows every key that is held. So a key that others can
//! work out, or read once, is a way to keep headwater from leading. Hence:
//!
//! - The key is a random number in `headwater.leadership`, which other roles cannot read.
//! - A session that holds the lock and may not write `headwater.position` is *foreign*: it cannot be a leader. headwater
//!   replaces its key by compare-and-set, and the next leader takes the new one. The foreign session keeps a lock that
//!   nobody needs any more.
//! - An instance also takes the key derived from the slot's name: the only key until the schema exists, and the only one
//!   that versions without a stored key know. It reports foreign sessions that hold this key, and otherwise ignores them.
//!
//! ```text
//!            by name     stored
//!   free     take        take              ─▶ lead, if the row still has the same key
//!   leader   wait        wait
//!   foreign  ignore      replace, look again (no row yet: create the bookkeeping, look again)
//! ```

use std::fmt;

use super::error::DestinationError;
use crate::pg::{ErrorReport, Ident, SlotName, printable, shown_literal};
use crate::session::{SessionError, SqlClient};

/// The keys of one installation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LockKeys {
    /// Derived from the slot's name.
    pub(super) by_name: i64,
    /// From `headwater.leadership`; `None` before the bookkeeping exists, or while an older version has made it.
    pub(super) stored: Option<i64>,
    /// The one before it, which a foreign session held.
    replaced: Option<i64>,
}

/// A session that holds a lock of ours, or a prepared transaction that does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holder {
    /// Its server process; `None`: a prepared transaction.
    pub process_id: Option<i32>,
    /// Its login role.
    pub role: String,
    /// Its application_name, or the prepared transaction's gid.
    pub name: String,
    /// Where it connects from; `None` where our role may not see it.
    pub address: Option<String>,
    /// Since when it is connected, in UTC; `None` where our role may not see it.
    pub since: Option<String>,
    /// The statement that it is in, by its start; a new statement is progress.
    pub statement_started: String,
    /// It is inside a statement and waits for bytes from its client.
    pub waits_for_client: bool,
    /// Its role may write the position, so it can be a leader.
    pub may_lead: bool,
    /// It holds the key that is stored now.
    pub holds_stored: bool,
    /// It holds the key derived from the slot's name.
    pub holds_by_name: bool,
}

/// Who holds the locks of an installation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LockHolders {
    /// The instance that leads.
    pub leader: Option<Holder>,
    /// Sessions that may not lead, and hold a lock of ours all the same.
    pub foreign: Vec<Holder>,
}

/// What becomes of an attempt to take the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LockVerdict {
    /// What was got is enough.
    Lead,
    /// An instance leads, or the lock has been let go of in this moment.
    Wait,
    /// A foreign session holds the stored key.
    ReplaceKey,
    /// A foreign session holds the derived key, and there is no stored one yet.
    CreateKey,
}

/// Which of the locks were got.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Got {
    pub(super) by_name: bool,
    pub(super) stored: bool,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.process_id {
            Some(process_id) => write!(f, "process {process_id} (role {}", Ident::new(self.role.as_str()))?,
            None => write!(f, "a prepared transaction (role {}", Ident::new(self.role.as_str()))?,
        }
        if !self.name.is_empty() {
            write!(
                f,
                ", {} {}",
                if self.process_id.is_some() { "application_name" } else { "gid" },
                shown_literal(&self.name)
            )?;
        }
        if let Some(address) = &self.address {
            write!(f, ", from {}", printable(address))?;
        }
        if let Some(since) = &self.since {
            write!(f, ", since {since} UTC")?;
        }
        f.write_str(")")
    }
}

impl Holder {
    /// What to report of a foreign session.
    pub fn foreign_report(&self) -> ErrorReport {
        let report = ErrorReport::new(format!("{self} holds headwater's advisory lock, but may not lead"))
            .detail("Its role may not write headwater.position. headwater leads all the same, under another key.");
        match self.process_id {
            Some(process_id) => report.hint(format!(
                "Find out who took it. To end the session, run at the destination:\nSELECT pg_terminate_backend({process_id});"
            )),
            None => report.hint(format!(
                "Find out who took it. To end the transaction, run at the destination:\nROLLBACK PREPARED {};",
                shown_literal(&self.name)
            )),
        }
    }
}

impl Got {
    /// Whether nothing is missing.
    pub(super) fn all_of(self, keys: LockKeys) -> bool {
        self.by_name && self.has_stored(keys)
    }

    fn has_stored(self, keys: LockKeys) -> bool {
        self.stored || keys.stored.is_none()
    }
}

impl LockKeys {
    /// Reads the keys of this slot's installation.
    pub(super) async fn read(client: &SqlClient, slot: &SlotName) -> Result<LockKeys, DestinationError> {
        let by_name = key_by_name(slot);
        let doing = "reading the lock's key";
        // Asked of the catalog: to_regclass raises where a schema of this name may not be used.
        let sql =
            "SELECT pg_catalog.has_schema_privilege(n.oid, 'USAGE') AND pg_catalog.has_table_privilege(c.oid, 'SELECT')
                   FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                   WHERE n.nspname = 'headwater' AND c.relname = 'leadership'";
        let readable = client.query_opt(doing, sql, &[]).await?;
        if !readable.map_or(Ok(false), |row| row.get(0))? {
            return Ok(LockKeys { by_name, stored: None, replaced: None });
        }
        let row = client.query_opt(doing, "SELECT lock_key, replaced_key FROM headwater.leadership", &[]).await?;
        let keys = row.map_or(Ok((None, None)), |row| Ok::<_, SessionError>((Some(row.get(0)?), row.get(1)?)));
        let (stored, replaced) = keys?;
        Ok(LockKeys { by_name, stored, replaced })
    }

    /// Whether both are locks of the same state of the bookkeeping.
    pub(super) fn same(self, other: LockKeys) -> bool {
        self.stored == other.stored
    }
}

/// Replaces the stored key, unless somebody else has done so.
pub(super) async fn replace_key(client: &SqlClient, held: i64) -> Result<(), DestinationError> {
    let sql =
        "UPDATE headwater.leadership SET lock_key = headwater.random_key(), replaced_key = $1 WHERE lock_key = $1";
    client.execute("replacing the lock's key", sql, &[&held]).await?;
    Ok(())
}

impl LockHolders {
    /// Who holds the locks of this slot's installation.
    ///
    /// # Errors
    /// [`DestinationError`].
    pub async fn look(client: &SqlClient, slot: &SlotName) -> Result<LockHolders, DestinationError> {
        let keys = LockKeys::read(client, slot).await?;
        LockHolders::besides(client, keys, None).await
    }

    /// Who holds them, besides a session of one's own.
    pub(super) async fn besides(
        client: &SqlClient,
        keys: LockKeys,
        own: Option<i32>,
    ) -> Result<LockHolders, DestinationError> {
        let mut found = LockHolders::default();
        for holder in holders(client, keys).await? {
            if own.is_some() && holder.process_id == own {
                continue;
            }
            if !holder.may_lead {
                found.foreign.push(holder);
            } else if found.leader.is_none() && (holder.holds_stored || holder.holds_by_name) {
                found.leader = Some(holder);
            }
        }
        Ok(found)
    }

    /// What an attempt that got `got` comes to.
    pub(super) fn judge(&self, keys: LockKeys, got: Got) -> LockVerdict {
        if got.all_of(keys) {
            return LockVerdict::Lead;
        }
        if self.leader.is_some() {
            return LockVerdict::Wait;
        }
        let foreign = |holds: fn(&Holder) -> bool| self.foreign.iter().any(holds);
        if !got.has_stored(keys) {
            return if foreign(|holder| holder.holds_stored) { LockVerdict::ReplaceKey } else { LockVerdict::Wait };
        }
        match (foreign(|holder| holder.holds_by_name), keys.stored) {
            (true, Some(_)) => LockVerdict::Lead,
            (true, None) => LockVerdict::CreateKey,
            (false, _) => LockVerdict::Wait,
        }
    }
}

async fn holders(client: &SqlClient, keys: LockKeys) -> Result<Vec<Holder>, DestinationError> {
    // A role that may write the position, or may become the one that owns it, can be a leader's. Before there is a position:
    // one that may create the schema.
    let sql = "WITH bookkeeping AS (
                   SELECT c.oid, c.relowner FROM pg_catalog.pg_class c
                   JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                   WHERE n.nspname = 'headwater' AND c.relname = 'position'
               ), held AS (
                   SELECT l.pid, l.virtualtransaction, (l.classid::bigint << 32) | l.objid::bigint AS key
                   FROM pg_catalog.pg_locks l
                   WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
                     AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
                     AND (l.classid::bigint << 32) | l.objid::bigint = ANY ($1)
               ), sessions AS (
                   SELECT held.key, a.pid, a.usesysid AS role_id, a.application_name AS name,
                          COALESCE(pg_catalog.host(a.client_addr), CASE WHEN a.backend_start IS NOT NULL THEN 'this machine' END)
                              AS address,
                          pg_catalog.date_trunc('second', a.backend_start) AS since,
                          COALESCE(a.query_start::text, '') AS statement_started,
                          COALESCE(a.state = 'active' AND a.wait_event = 'ClientRead', false) AS waits
                   FROM held JOIN pg_catalog.pg_stat_activity a ON a.pid = held.pid
                   UNION ALL
                   SELECT held.key, NULL, r.oid, p.gid, NULL, pg_catalog.date_trunc('second', p.prepared), '', false
                   FROM held
                   LEFT JOIN pg_catalog.pg_locks own ON own.locktype = 'transactionid' AND own.pid IS NULL
                        AND own.virtualtransaction = held.virtualtransaction
                   LEFT JOIN pg_catalog.pg_prepared_xacts p ON p.transaction = own.transactionid
                   LEFT JOIN pg_catalog.pg_roles r ON r.rolname = p.owner
                   WHERE held.pid IS NULL
               )
               SELECT s.pid, COALESCE(pg_catalog.pg_get_userbyid(s.role_id)::text, '?'), COALESCE(s.name, ''), s.address,
                      pg_catalog.to_char(s.since, 'YYYY-MM-DD HH24:MI:SS'), s.statement_started, s.waits,
                      s.pid IS NOT NULL AND COALESCE(
                          (SELECT pg_catalog.has_table_privilege(s.role_id, b.oid, 'UPDATE')
                                  OR pg_catalog.pg_has_role(s.role_id, b.relowner, 'MEMBER') FROM bookkeeping b),
                          pg_catalog.has_database_privilege(s.role_id, pg_catalog.current_database()::text, 'CREATE'), false),
                      s.key
               FROM sessions s ORDER BY s.pid NULLS LAST";
    let all: Vec<i64> = [Some(keys.by_name), keys.stored, keys.replaced].into_iter().flatten().collect();
    let rows = client.query_as_login_role("looking for the leader", sql, &[&all]).await?;
    let mut found: Vec<Holder> = Vec::new();
    for row in rows {
        let key: i64 = row.get(8)?;
        let (holds_stored, holds_by_name) = (keys.stored == Some(key), keys.by_name == key);
        let holder = Holder {
            process_id: row.get(0)?,
            role: row.get(1)?,
            name: row.get(2)?,
            address: row.get(3)?,
            since: row.get(4)?,
            statement_started: row.get(5)?,
            waits_for_client: row.get(6)?,
            may_lead: row.get(7)?,
            holds_stored,
            holds_by_name,
        };
        let known = found.iter_mut().find(|known| (known.process_id, &known.name) == (holder.process_id, &holder.name));
        match known {
            Some(known) => {
                known.holds_stored |= holds_stored;
                known.holds_by_name |= holds_by_name;
            }
            None => found.push(holder),
        }
    }
    Ok(found)
}

/// FNV-1a of a name that no other program takes. The lock is the database's own already.
pub(super) fn key_by_name(slot: &SlotName) -> i64 {
    let hash = format!("headwater/{slot}")
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    i64::from_be_bytes(hash.to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: LockKeys = LockKeys { by_name: 1, stored: Some(2), replaced: None };
    const NO_ROW: LockKeys = LockKeys { stored: None, ..KEYS };

    fn holders(leader: Option<Holder>, foreign: Option<Holder>) -> LockHolders {
        LockHolders { leader, foreign: foreign.into_iter().collect() }
    }

    #[test]
    fn each_slot_has_a_derived_key_of_its_own_and_always_the_same() {
        let key = |name: &str| key_by_name(&name.parse().unwrap());
        assert_eq!(key("headwater"), key("headwater"));
        assert_ne!(key("headwater"), key("headwater_2"));
    }

    #[test]
    fn whoever_got_all_locks_leads_and_a_leader_is_waited_for_at_either_lock() {
        let nobody = LockHolders::default();
        assert_eq!(nobody.judge(KEYS, Got { by_name: true, stored: true }), LockVerdict::Lead);
        assert_eq!(nobody.judge(NO_ROW, Got { by_name: true, stored: false }), LockVerdict::Lead);
        let leader = holders(Some(Holder { may_lead: true, ..Holder::default() }), None);
        for (by_name, stored) in [(false, false), (true, false), (false, true)] {
            let got = Got { by_name, stored };
            assert_eq!(leader.judge(KEYS, got), LockVerdict::Wait);
            assert_eq!(nobody.judge(KEYS, got), LockVerdict::Wait, "released in this moment");
        }
    }

    #[test]
    fn a_foreign_session_keeps_nobody_from_leading() {
        let stored = Holder { holds_stored: true, ..Holder::default() };
        let by_name = Holder { holds_by_name: true, ..Holder::default() };
        let both = Holder { holds_stored: true, holds_by_name: true, ..Holder::default() };
        let got = |by_name, stored| Got { by_name, stored };
        assert_eq!(holders(None, Some(stored.clone())).judge(KEYS, got(true, false)), LockVerdict::ReplaceKey);
        assert_eq!(holders(None, Some(both)).judge(KEYS, got(false, false)), LockVerdict::ReplaceKey);
        assert_eq!(holders(None, Some(by_name.clone())).judge(KEYS, got(false, true)), LockVerdict::Lead);
        assert_eq!(holders(None, Some(by_name.clone())).judge(NO_ROW, got(false, false)), LockVerdict::CreateKey);
        // While there is a leader a foreign session changes nothing.
        let leader = Some(Holder { may_lead: true, ..Holder::default() });
        assert_eq!(holders(leader.clone(), Some(stored)).judge(KEYS, got(true, false)), LockVerdict::Wait);
        assert_eq!(holders(leader, Some(by_name)).judge(KEYS, got(false, true)), LockVerdict::Wait);
    }
}

//! Teardown: removes the slot, the publication that headwater created, the replication origin and the bookkeeping; the rows stay.
//!
//! Runs outside the replication loop, under its lock: it refuses while an instance runs. The source comes first, so that an
//! interrupted teardown still finds its record, and can be repeated. If one side is out of reach, teardown removes the other and
//! prints the SQL that removes the rest. A lock at the destination that is held for too long ends it before it removes anything.
//!
//! What is not known to be ours stays: a slot that the bookkeeping does not name, a slot of another cluster, a publication
//! without our comment.

use crate::config::Config;
use crate::destination::{
    Bookkeeping, Candidate, DestinationError, LockAttempt, OriginEnd, StagingSchema, Stream, drop_origins,
    refuse_foreign_event_triggers, sweep,
};
use crate::error_policy::{Fault, report};
use crate::pg::{ErrorReport, counted, printable, shown_literal};
use crate::preflight::addresses::Addresses;
use crate::preflight::hosts::connect_chosen;
use crate::preflight::leadership::lock_settings;
use crate::preflight::replication_session::connect_replication;
use crate::session::{SessionError, SqlClient};
use crate::source::{PUBLICATION_COMMENT, SourceError, find_slot, release_slot};

/// What became of one thing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Removal {
    /// It is gone; with a dry run, it would be.
    Removed(String),
    /// It was not there, or is not ours.
    Kept(String),
    /// It is still there, and this removes it.
    Left {
        /// What, and why.
        what: String,
        /// The statement to run.
        sql: String,
    },
}

/// Removes what headwater has made on both sides, except rows, and adds what became of each thing to `removals`. `dry_run`: only says so.
///
/// # Errors
/// [`Fault`]: an instance runs, both sides are out of reach, or one does not answer any more. What was removed before stays so.
pub(crate) async fn run(config: &Config, dry_run: bool, removals: &mut Vec<Removal>) -> Result<(), Fault> {
    let addresses = Addresses::new(config);
    let here = destination(config, &addresses).await;
    if let Err(Fault::Destination(DestinationError::Session(SessionError::Timeout { .. }))) = &here {
        // It has let us in: a session there holds a lock, most likely.
        return here.map(|_| ());
    }
    let there = connect_chosen(config).await.map_err(Fault::from);
    let stream = match &here {
        Ok((bookkeeping, _)) => Some(record(bookkeeping).await?),
        Err(fault) if is_refusal(fault) => return Err(Fault::Refused(report(fault))),
        Err(_) => None,
    };
    match &there {
        Ok((config, client)) => source(config, client, stream.as_ref(), dry_run, removals).await?,
        Err(fault) => removals.push(Removal::Left {
            what: format!(
                "slot {} and publication {} at the source, which {}: {}",
                config.source.slot,
                config.source.publication,
                silence(fault),
                report(fault)
            ),
            sql: format!(
                "SELECT pg_drop_replication_slot({0}) FROM pg_replication_slots WHERE slot_name = {0};\n\
                 DROP PUBLICATION IF EXISTS {1};",
                shown_literal(config.source.slot.as_str()),
                config.source.publication
            ),
        }),
    }
    match here {
        Ok((bookkeeping, candidate)) => {
            remove_bookkeeping(bookkeeping.client(), stream.flatten().as_ref(), dry_run, removals).await?;
            candidate.close().await;
        }
        Err(fault) => {
            if there.is_err() {
                return Err(fault);
            }
            removals.push(Removal::Left {
                what: format!("the bookkeeping at the destination, which {}: {}", silence(&fault), report(&fault)),
                sql: "DROP SCHEMA IF EXISTS headwater CASCADE;".to_owned(),
            });
        }
    }
    Ok(())
}

/// How a side fails to do its part: one that does not answer has let us in, and one that refuses has answered.
fn silence(fault: &Fault) -> &'static str {
    let (Fault::Source(SourceError::Session(error)) | Fault::Destination(DestinationError::Session(error))) = fault
    else {
        return "refuses";
    };
    match error {
        SessionError::Timeout { .. } => "does not answer in time",
        SessionError::Server { error, .. } if !error.fatal => "refuses",
        SessionError::Server { .. }
        | SessionError::Unreachable { .. }
        | SessionError::Unwanted { .. }
        | SessionError::Tls { .. }
        | SessionError::Authentication { .. }
        | SessionError::TooOld { .. }
        | SessionError::File { .. }
        | SessionError::Lost { .. }
        | SessionError::Protocol { .. }
        | SessionError::Replaced { .. }
        | SessionError::Answer { .. } => "is out of reach",
    }
}

/// The record of the stream. One that is damaged is none: teardown is the way out of that, too.
async fn record(bookkeeping: &Bookkeeping) -> Result<Option<Stream>, Fault> {
    match bookkeeping.stream().await {
        Err(DestinationError::Refused(_)) if !bookkeeping.is_newer().await.unwrap_or(false) => Ok(None),
        stream => Ok(stream?),
    }
}

/// The destination, with the lock taken.
async fn destination(config: &Config, addresses: &Addresses) -> Result<(Bookkeeping, Candidate), Fault> {
    let bookkeeping = Bookkeeping::connect_checked(&addresses.destination, &config.destination.trusted_roles).await?;
    refuse_foreign_event_triggers(bookkeeping.client(), &config.destination.trusted_roles).await?;
    let candidate = Candidate::connect(&lock_settings(config)).await?;
    let LockAttempt { taken, holders } = candidate.try_lock(&bookkeeping).await?;
    if taken {
        refuse_dependants(bookkeeping.client()).await?;
        return Ok((bookkeeping, candidate));
    }
    candidate.close().await;
    let process = holders.leader.map(|leader| format!(": at the destination, {leader}"));
    Err(Fault::Refused(
        ErrorReport::new(format!("an instance runs{}", process.unwrap_or_default()))
            .hint("Stop every headwater run of this slot first."),
    ))
}

/// Objects outside of schema headwater that use what is in it, and objects in it that are not headwater's: dropping the schema drops
/// them. $1 are the names of the bookkeeping's own.
const DEPENDANTS: &str = "
    WITH own AS (
        SELECT 'pg_catalog.pg_class'::pg_catalog.regclass AS class_id, c.oid
        FROM pg_catalog.pg_class c WHERE c.relnamespace = pg_catalog.to_regnamespace('headwater')
        UNION ALL
        SELECT 'pg_catalog.pg_proc'::pg_catalog.regclass, p.oid
        FROM pg_catalog.pg_proc p WHERE p.pronamespace = pg_catalog.to_regnamespace('headwater')
        UNION ALL
        SELECT 'pg_catalog.pg_type'::pg_catalog.regclass, t.oid
        FROM pg_catalog.pg_type t WHERE t.typnamespace = pg_catalog.to_regnamespace('headwater')
    ), using_it AS (
        SELECT d.classid, d.objid, d.objsubid,
               COALESCE(c.relnamespace, f.pronamespace, t.typnamespace) AS schema_id
        FROM own JOIN pg_catalog.pg_depend d ON d.refclassid = own.class_id AND d.refobjid = own.oid
             -- Statistics go with their table's columns.
             AND (d.deptype = 'n' OR d.deptype = 'a' AND d.classid = 'pg_catalog.pg_statistic_ext'::pg_catalog.regclass)
        LEFT JOIN pg_catalog.pg_rewrite r ON d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass AND r.oid = d.objid
        LEFT JOIN pg_catalog.pg_attrdef a ON d.classid = 'pg_catalog.pg_attrdef'::pg_catalog.regclass AND a.oid = d.objid
        LEFT JOIN pg_catalog.pg_constraint k ON d.classid = 'pg_catalog.pg_constraint'::pg_catalog.regclass AND k.oid = d.objid
        LEFT JOIN pg_catalog.pg_trigger g ON d.classid = 'pg_catalog.pg_trigger'::pg_catalog.regclass AND g.oid = d.objid
        LEFT JOIN pg_catalog.pg_policy p ON d.classid = 'pg_catalog.pg_policy'::pg_catalog.regclass AND p.oid = d.objid
        LEFT JOIN pg_catalog.pg_class c
            ON c.oid = COALESCE(r.ev_class, a.adrelid, k.conrelid, g.tgrelid, p.polrelid,
                                CASE WHEN d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass THEN d.objid END)
        LEFT JOIN pg_catalog.pg_proc f ON d.classid = 'pg_catalog.pg_proc'::pg_catalog.regclass AND f.oid = d.objid
        LEFT JOIN pg_catalog.pg_type t ON d.classid = 'pg_catalog.pg_type'::pg_catalog.regclass AND t.oid = d.objid
    )
    SELECT pg_catalog.pg_describe_object(classid, objid, objsubid) FROM using_it
    WHERE schema_id IS DISTINCT FROM pg_catalog.to_regnamespace('headwater')
    UNION
    -- Whatever its class, an object in a schema depends on it. Default privileges are no object of anybody.
    SELECT pg_catalog.pg_describe_object(d.classid, d.objid, 0)
    FROM pg_catalog.pg_depend d
    JOIN pg_catalog.pg_namespace n ON n.nspname = 'headwater' AND d.refobjid = n.oid
    LEFT JOIN pg_catalog.pg_class c ON d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND c.oid = d.objid
    LEFT JOIN pg_catalog.pg_proc p ON d.classid = 'pg_catalog.pg_proc'::pg_catalog.regclass AND p.oid = d.objid
    WHERE d.refclassid = 'pg_catalog.pg_namespace'::pg_catalog.regclass AND d.deptype = 'n'
      AND d.classid <> 'pg_catalog.pg_default_acl'::pg_catalog.regclass
      AND NOT COALESCE(c.relkind IN ('r', 'p', 'v', 'm', 'f') AND c.relname = ANY ($1::text[]), false)
      -- The sequence of an identity column.
      AND NOT (COALESCE(c.relkind = 'S', false) AND EXISTS (
          SELECT FROM pg_catalog.pg_depend o WHERE o.classid = d.classid AND o.objid = d.objid
          AND o.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND o.deptype IN ('a', 'i')))
      -- headwater has one function of a name.
      AND NOT COALESCE(p.proname = ANY ($1::text[]) AND (p.proowner = n.nspowner OR NOT EXISTS (
            SELECT FROM pg_catalog.pg_proc f WHERE f.pronamespace = n.oid AND f.proname = p.proname AND f.oid <> p.oid)), false)
    ORDER BY 1";

/// Lines of one report at most: the list is for a terminal.
const LISTED_MAX: usize = 20;

/// The names of what the bookkeeping is made of.
fn own_names() -> Vec<&'static str> {
    const SQL: &str = concat!(
        include_str!("../../sql/bookkeeping.sql"),
        include_str!("../../sql/fences.sql"),
        include_str!("../../sql/reading.sql")
    );
    let is_other = |c: char| !c.is_ascii_alphanumeric() && c != '_';
    SQL.split("headwater.").skip(1).filter_map(|rest| rest.split(is_other).next()).collect()
}

/// Refuses to drop, with the bookkeeping, what others have made of it or put into its schema.
async fn refuse_dependants(client: &SqlClient) -> Result<(), Fault> {
    let rows = client.query("looking at what uses the bookkeeping", DEPENDANTS, &[&own_names()]).await;
    let rows = rows.map_err(DestinationError::Session)?;
    if rows.is_empty() {
        return Ok(());
    }
    let listed = rows.iter().take(LISTED_MAX).map(|row| Ok(printable(row.get::<&str>(0)?).into_owned()));
    let mut listed: Vec<String> = listed.collect::<Result<_, _>>().map_err(DestinationError::Session)?;
    if rows.len() > LISTED_MAX {
        listed.push(format!("and {} more", rows.len() - LISTED_MAX));
    }
    Err(Fault::Refused(
        ErrorReport::new("teardown would drop objects at the destination that are not headwater's")
            .detail(format!("They use schema headwater, or stand in it: {}.", listed.join("; ")))
            .hint("Drop or move them at the destination, then run headwater teardown again."),
    ))
}

fn is_refusal(fault: &Fault) -> bool {
    matches!(fault, Fault::Refused(_) | Fault::Destination(DestinationError::Refused(_)))
}

async fn source(
    config: &Config,
    client: &SqlClient,
    stream: Option<&Option<Stream>>,
    dry_run: bool,
    removals: &mut Vec<Removal>,
) -> Result<(), Fault> {
    let slot = &config.source.slot;
    let drop_slot = format!("SELECT pg_drop_replication_slot({});", shown_literal(slot.as_str()));
    match (find_slot(client, slot).await?, stream) {
        (None, _) => removals.push(Removal::Kept(format!("slot {slot} does not exist at the source"))),
        (Some(_), None) => removals.push(Removal::Left {
            what: format!("slot {slot} at the source: whether it is ours is written at the destination"),
            sql: drop_slot,
        }),
        (Some(_), Some(None)) => removals.push(Removal::Left {
            what: format!("slot {slot} at the source: this destination has no record of it"),
            sql: drop_slot,
        }),
        // It was dropped, and somebody has made another of the name.
        (Some(found), Some(Some(stream)))
            if found.plugin != "pgoutput"
                || stream.source_database_id.is_some_and(|database| found.database_id != Some(database)) =>
        {
            removals.push(Removal::Left {
                what: format!(
                    "slot {slot} at the source: it is of plugin {} in database {}, and not headwater's",
                    printable(&found.plugin),
                    printable(&found.database)
                ),
                sql: drop_slot,
            });
        }
        (Some(_), Some(Some(stream))) => {
            // The replication session also drops the slot: it is the role that has logged in, with its REPLICATION attribute.
            let mut session = match connect_replication(config, "teardown").await {
                Ok(session) => session,
                // The source answers, and refuses this session: everything else can go.
                Err(fault @ Fault::Source(SourceError::Refused(_))) => {
                    let what = format!("slot {slot} at the source: {}", report(&fault).message);
                    removals.push(Removal::Left { what, sql: drop_slot });
                    return publication(config, client, dry_run, removals).await;
                }
                Err(fault) => return Err(fault),
            };
            let system = session.identify_system().await.map_err(SourceError::Session)?.system_identifier;
            if stream.slot != *slot || stream.system_identifier != system {
                removals.push(Removal::Left {
                    what: format!(
                        "slot {slot} at the source: the record names slot {} of the cluster with system identifier {}",
                        stream.slot, stream.system_identifier
                    ),
                    sql: drop_slot,
                });
            } else {
                if !dry_run {
                    let ended = release_slot(client, slot).await?;
                    removals.extend(ended.into_iter().map(Removal::Removed));
                }
                let dropped = if dry_run { Ok(()) } else { session.drop_slot(slot).await };
                let thing = format!("slot {slot} at the source");
                removals.push(outcome(dropped, thing, drop_slot).map_err(SourceError::Session)?);
            }
        }
    }
    publication(config, client, dry_run, removals).await
}

/// Leaves what the server itself refuses to drop, with the statement for a role that may run it; a lost session is an error. So is one that
/// waits for a lock: it would drop the thing once it gets that.
fn outcome(dropped: Result<(), SessionError>, thing: String, sql: String) -> Result<Removal, SessionError> {
    let Err(error) = dropped else { return Ok(Removal::Removed(thing)) };
    match error.server() {
        Some(server) if !server.fatal => Ok(Removal::Left { what: format!("{thing}: {}", server.message), sql }),
        Some(_) | None => Err(error),
    }
}

async fn publication(
    config: &Config,
    client: &SqlClient,
    dry_run: bool,
    removals: &mut Vec<Removal>,
) -> Result<(), Fault> {
    let publication = &config.source.publication;
    let sql = "SELECT pg_catalog.obj_description(oid, 'pg_publication') FROM pg_catalog.pg_publication WHERE pubname = $1::text";
    let found = client.query_opt("looking at the publication", sql, &[&publication.as_str()]).await;
    let found = found.and_then(|row| row.map(|row| row.get::<Option<String>>(0)).transpose());
    match found.map_err(SourceError::Session)? {
        None => removals.push(Removal::Kept(format!("publication {publication} does not exist at the source"))),
        Some(comment) if comment.as_deref() != Some(PUBLICATION_COMMENT) => removals
            .push(Removal::Kept(format!("publication {publication} at the source, which headwater did not create"))),
        Some(_) => {
            // A standby cannot drop it, nor a role that does not own it any more.
            let standby = client.query_one("looking at the source", "SELECT pg_catalog.pg_is_in_recovery()", &[]).await;
            let statement = format!("DROP PUBLICATION {}", publication.sql());
            let dropped = match dry_run {
                true => Ok(()),
                false => client.statement("dropping the publication", &statement).await,
            };
            let place = match standby.and_then(|row| row.get(0)).map_err(SourceError::Session)? {
                true => "at the source, a standby; its primary drops it",
                false => "at the source",
            };
            let sql = format!("DROP PUBLICATION IF EXISTS {};", publication.sql());
            let thing = format!("publication {publication} {place}");
            removals.push(outcome(dropped, thing, sql).map_err(SourceError::Session)?);
        }
    }
    Ok(())
}

async fn remove_bookkeeping(
    client: &SqlClient,
    stream: Option<&Stream>,
    dry_run: bool,
    removals: &mut Vec<Removal>,
) -> Result<(), Fault> {
    let doing = "dropping the bookkeeping";
    let session = |error| Fault::from(DestinationError::Session(error));
    let sql = "SELECT pg_catalog.to_regnamespace('headwater') IS NOT NULL,
                      pg_catalog.to_regclass('headwater.dead_letter') IS NOT NULL";
    let row = client.query_one(doing, sql, &[]).await.map_err(session)?;
    let (exists, letters): (bool, bool) = row.get(0).and_then(|exists| Ok((exists, row.get(1)?))).map_err(session)?;
    if !exists {
        removals.push(Removal::Kept("there is no bookkeeping at the destination".to_owned()));
        return Ok(());
    }
    let mut what = "the bookkeeping at the destination (schema headwater)".to_owned();
    if let Some(stream) = stream {
        // Before its record: a teardown that is interrupted finds it again.
        for end in drop_origins(client, &stream.slot, dry_run).await.map_err(session)? {
            match end {
                OriginEnd::Absent => {}
                OriginEnd::Dropped(name) => {
                    removals.push(Removal::Removed(format!("replication origin {name} at the destination")));
                }
                OriginEnd::InUse(name) => removals.push(Removal::Kept(format!(
                    "replication origin {name} at the destination is in use: another database there is fed by a slot of this name"
                ))),
                OriginEnd::Refused(name, why) => removals.push(Removal::Left {
                    sql: format!("SELECT pg_replication_origin_drop({});", shown_literal(&name)),
                    what: format!("replication origin {name} at the destination: {why}"),
                }),
            }
        }
    } else {
        what.push_str(", which had no record of a slot");
    }
    if letters {
        let sql = "SELECT pg_catalog.count(*) FROM headwater.dead_letter";
        let count: i64 = client.query_one(doing, sql, &[]).await.and_then(|row| row.get(0)).map_err(session)?;
        if count > 0 {
            what.push_str(&format!(", with {} of headwater.dead_letter", counted(count, "row")));
        }
    }
    if !dry_run {
        for StagingSchema { name, .. } in sweep(client).await?.dropped {
            removals.push(Removal::Removed(format!(
                "schema {name} at the destination, staging of an attempt that has ended"
            )));
        }
        client.batch(doing, "DROP SCHEMA headwater CASCADE").await.map_err(session)?;
    }
    removals.push(Removal::Removed(what));
    removals.push(Removal::Kept("the tables and their rows stay as they are".to_owned()));
    Ok(())
}

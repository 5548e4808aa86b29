//! The replication session: commands to the source's walsender, then CopyBoth.
//!
//! Stands between `startup`, which opens it, and `source`, which decides what to command and reads the stream.
//! tokio-postgres has no CopyBoth; everything here is our own framing over postgres-protocol. Commands:
//! protocol-replication, 14 to 18.
//!
//! ```text
//! commands ──START_REPLICATION──▶ CopyBoth ──CopyDone both ways──▶ commands
//!    └──CREATE_REPLICATION_SLOT──▶ an exported snapshot lives until the next command here, whatever it is
//! ```
//!
//! Bounds: every command's answer; a stream's next message is awaited without one here, because silence is judged by
//! `source::stream`, which also has to answer the destination's progress meanwhile.

use std::time::Duration;

use bytes::BufMut;
use postgres_protocol::message::frontend;

use super::connection::{Connection, Frame, bounded};
use super::error::{ServerError, SessionError};
use super::settings;
use super::slow_answers::{Awaiting, Bound};
use super::startup::{self, Startup};
use crate::config::{ConnectionSettings, Host};
use crate::pg::{Ident, Lsn, SlotName, Timeline, TimelineHistory, TimelineSwitch};
use crate::wire::{ReplicationMessage, StandbyStatusUpdate, WireError};

/// What a session of a stream does once the source has begun.
pub const STREAMING: &str = "streaming";

/// The source as IDENTIFY_SYSTEM describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SystemIdentification {
    /// The server that answered.
    pub host: Host,
    /// The cluster's identifier, the same on all of its physical copies.
    pub system_identifier: String,
    /// The current timeline, and how it came about.
    pub timeline: Timeline,
    /// How far WAL is flushed (on a standby: replayed).
    pub flushed_lsn: Lsn,
    /// It is a standby.
    pub in_recovery: bool,
    /// The database that the session is connected to.
    pub database: String,
}

/// From 17 on a slot can be synchronized to standbys.
fn has_failover_slots(server_version: Option<&str>) -> bool {
    settings::major(server_version).is_some_and(|major| major >= 17)
}

/// What becomes of the snapshot at a slot's consistent point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotSnapshot {
    /// A slot that stays; the snapshot is exported.
    ExportPermanent,
    /// A slot that goes with the session; the snapshot is exported.
    ExportTemporary,
}

/// A slot that was just created.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreatedSlot {
    /// Transactions with commit_lsn at or behind this come in the stream; all others are in the snapshot.
    pub consistent_point: Lsn,
    /// The exported snapshot's name.
    pub snapshot_name: String,
}

/// pgoutput's options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamOptions {
    /// 1 to 4, by the server's version.
    pub protocol_version: u8,
    /// The publication.
    pub publication: Ident,
    /// Values in binary format where the type has one.
    pub binary: bool,
    /// Large transactions before they commit (protocol 2 and later).
    pub streaming: bool,
    /// Leave out transactions that were replicated to the source (servers from 16 on).
    pub origin_none: bool,
}

/// One message of the stream, or its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StreamedMessage {
    /// A message.
    Message(ReplicationMessage),
    /// The source has ended the stream (it is shutting down).
    Done,
}

/// A session with the source's walsender.
pub struct ReplicationSession {
    connection: Connection,
    timeout: Duration,
}

impl ReplicationSession {
    /// Opens the session. The walsender gives up on us after `sender_timeout` of silence; `timeout` bounds the answers
    /// to commands.
    ///
    /// # Errors
    /// [`SessionError`] says why no host would do.
    pub async fn connect(
        settings: &ConnectionSettings,
        purpose: &str,
        sender_timeout: Duration,
        timeout: Duration,
    ) -> Result<ReplicationSession, SessionError> {
        let startup = Startup {
            replication: true,
            purpose,
            settings: &[
                ("wal_sender_timeout", sender_timeout.as_millis().to_string()),
                // SET ROLE of the role's own would take the REPLICATION attribute away; nothing is read in another's name.
                ("role", "none".to_owned()),
                // The walsender watches its client by itself.
                ("client_connection_check_interval", "0".to_owned()),
            ],
        };
        Ok(ReplicationSession { connection: startup::open(settings, &startup).await?, timeout })
    }

    /// The server process (walsender) of this session.
    pub fn process_id(&self) -> u32 {
        self.connection.process_id()
    }

    /// Whether we talk to the walsender itself: a pooler in between answers with a number of its own for its process.
    ///
    /// # Errors
    /// [`SessionError`].
    pub async fn is_direct(&mut self) -> Result<bool, SessionError> {
        let doing = "asking for the walsender's process";
        let rows = self.connection.simple_query("SELECT pg_catalog.pg_backend_pid()", doing, self.timeout).await?;
        let [process_id] = one_row(rows, doing)?;
        Ok(process_id.and_then(|id| id.parse().ok()) == Some(self.process_id()))
    }

    /// Whether the server is a standby.
    pub fn in_recovery(&self) -> bool {
        self.connection.parameter("in_hot_standby") == Some("on")
    }

    /// IDENTIFY_SYSTEM, and TIMELINE_HISTORY where there is one.
    ///
    /// # Errors
    /// [`SessionError`].
    pub async fn identify_system(&mut self) -> Result<SystemIdentification, SessionError> {
        let doing = "identifying the source";
        let rows = self.connection.simple_query("IDENTIFY_SYSTEM", doing, self.timeout).await?;
        let [system_identifier, timeline, flushed_lsn, database] = one_row(rows, doing)?;
        let unreadable = |_| SessionError::protocol(doing, "a malformed field");
        let number = not_null(timeline, doing)?.parse().map_err(unreadable)?;
        let history = match number {
            1 => Some(TimelineHistory::default()),
            _ => match self.timeline_history(number).await {
                Ok(history) => Some(history),
                // The history file is gone. Then nothing is proven that needs it (`Timeline::descent`).
                Err(error) if error.server().is_some_and(|server| !server.fatal) => None,
                Err(error) => return Err(error),
            },
        };
        Ok(SystemIdentification {
            host: self.connection.host().clone(),
            system_identifier: not_null(system_identifier, doing)?,
            timeline: Timeline { number, history },
            flushed_lsn: not_null(flushed_lsn, doing)?
                .parse()
                .map_err(|_| SessionError::protocol(doing, "a malformed position"))?,
            in_recovery: self.in_recovery(),
            database: not_null(database, doing)?,
        })
    }

    /// TIMELINE_HISTORY: where each timeline before `timeline` was left, oldest first.
    ///
    /// # Errors
    /// [`SessionError`]; timeline 1 has no history, so ask only for later ones.
    async fn timeline_history(&mut self, timeline: u32) -> Result<TimelineHistory, SessionError> {
        let doing = "reading the source's timeline history";
        let sql = format!("TIMELINE_HISTORY {timeline}");
        let rows = self.connection.replication_command(&sql, doing, self.timeout).await?;
        let [_file, content] = one_row(rows, doing)?;
        // Lines of "timeline TAB switch position TAB reason"; # begins a comment (timeline.c, readTimeLineHistory).
        let mut switches = Vec::new();
        for line in not_null(content, doing)?.lines().map(str::trim) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let mut fields = line.split_whitespace();
            let parsed =
                fields.next().and_then(|id| id.parse().ok()).zip(fields.next().and_then(|lsn| lsn.parse().ok()));
            let (timeline, at) = parsed.ok_or_else(|| SessionError::protocol(doing, "a malformed history line"))?;
            switches.push(TimelineSwitch { timeline, at });
        }
        Ok(TimelineHistory(switches))
    }

    /// CREATE_REPLICATION_SLOT with an exported snapshot, which lives until the next command on this session.
    ///
    /// Waits for every transaction that is running at the source; `within` bounds that.
    ///
    /// # Errors
    /// [`SessionError`]. After a timeout the server may still create the slot: close the session, then look.
    pub async fn create_slot(
        &mut self,
        slot: &SlotName,
        snapshot: SlotSnapshot,
        within: Duration,
    ) -> Result<CreatedSlot, SessionError> {
        let doing = "creating the replication slot";
        let temporary = match snapshot {
            SlotSnapshot::ExportPermanent => "",
            SlotSnapshot::ExportTemporary => " TEMPORARY",
        };
        // Without EXPORT_SNAPSHOT older minors could start from a snapshot that another slot had saved. This form is
        // understood from 14 to 18.
        let sql = match (snapshot, has_failover_slots(self.connection.parameter("server_version"))) {
            // A slot that a standby may hold ready for the day on which it becomes the primary.
            (SlotSnapshot::ExportPermanent, true) if !self.in_recovery() => {
                format!("CREATE_REPLICATION_SLOT {slot} LOGICAL pgoutput (SNAPSHOT 'export', FAILOVER true)")
            }
            (SlotSnapshot::ExportPermanent | SlotSnapshot::ExportTemporary, _) => {
                format!("CREATE_REPLICATION_SLOT {slot}{temporary} LOGICAL pgoutput EXPORT_SNAPSHOT")
            }
        };
        let rows = self.connection.replication_command(&sql, doing, within).await?;
        let [_name, point, snapshot_name, _plugin] = one_row(rows, doing)?;
        Ok(CreatedSlot {
            consistent_point: not_null(point, doing)?
                .parse()
                .map_err(|_| SessionError::protocol(doing, "a malformed consistent point"))?,
            snapshot_name: snapshot_name.ok_or_else(|| SessionError::protocol(doing, "no snapshot"))?,
        })
    }

    /// DROP_REPLICATION_SLOT; a slot that is in use is an error.
    ///
    /// # Errors
    /// [`SessionError`]: 42704 when there is no such slot, 55006 when it is in use.
    pub async fn drop_slot(&mut self, slot: &SlotName) -> Result<(), SessionError> {
        let doing = "dropping the replication slot";
        self.connection
            .replication_command(&format!("DROP_REPLICATION_SLOT {slot}"), doing, self.timeout)
            .await
            .map(|_| ())
    }

    /// START_REPLICATION: from here on the session streams.
    ///
    /// # Errors
    /// [`SessionError`]: 55006 when the slot is in use, 42704 when there is none, 55000 when it is lost.
    pub async fn start(&mut self, slot: &SlotName, from: Lsn, options: &StreamOptions) -> Result<(), SessionError> {
        let doing = "starting replication";
        let sql = start_command(slot, from, options);
        frontend::query(&sql, self.connection.outgoing()).map_err(|error| SessionError::lost(doing, error))?;
        let server = self.connection.server().clone();
        let frame = bounded(&server, self.timeout, doing, self.connection.next_answer(doing)).await?;
        match frame.tag {
            b'W' => Ok(()),
            tag => Err(SessionError::protocol(
                doing,
                format!("message {} instead of CopyBothResponse", tag.escape_ascii()),
            )),
        }
    }

    /// The stream's next message. Cancel-safe; sends queued status updates meanwhile.
    ///
    /// # Errors
    /// [`SessionError`], or bytes that are not understood.
    pub async fn next(&mut self) -> Result<StreamedMessage, StreamError> {
        let frame = self.connection.next_frame(STREAMING).await?;
        streamed(&frame)
    }

    /// The next message if it has already arrived.
    ///
    /// # Errors
    /// As for [`ReplicationSession::next`].
    pub fn ready(&mut self) -> Result<Option<StreamedMessage>, StreamError> {
        self.connection.ready_frame(STREAMING)?.map(|frame| streamed(&frame)).transpose()
    }

    /// Queues a status update; it leaves with the next [`ReplicationSession::next`] or [`ReplicationSession::send`].
    pub fn queue_status(&mut self, update: &StandbyStatusUpdate) {
        let out = self.connection.outgoing();
        out.put_u8(b'd');
        // Length of CopyData: itself and the update's 34 bytes.
        out.put_u32(4 + 34);
        update.write(out);
    }

    /// The source has been silent for `silent_for`, was asked for a sign of life, and is given up after `within`: until what is returned is
    /// dropped, it is waited for.
    pub fn awaits(&self, silent_for: Duration, within: Duration) -> Awaiting {
        Awaiting::sign_of_life(self.connection.server(), Bound::After(within), silent_for)
    }

    /// Bytes of queued updates that the source has not taken yet.
    pub fn queued_bytes(&self) -> usize {
        self.connection.outgoing_bytes()
    }

    /// Sends what is queued.
    ///
    /// # Errors
    /// [`SessionError`].
    pub async fn send(&mut self) -> Result<(), SessionError> {
        self.connection.flush(STREAMING).await
    }

    /// Ends the stream in good order: CopyDone both ways, what the source still sends is dropped.
    ///
    /// # Errors
    /// [`SessionError`]; also when that takes longer than `within`.
    pub async fn stop(mut self, within: Duration) -> Result<(), SessionError> {
        let doing = "ending the stream";
        frontend::copy_done(self.connection.outgoing());
        let server = self.connection.server().clone();
        bounded(&server, within, doing, async {
            loop {
                match self.connection.next_answer(doing).await?.tag {
                    b'Z' => return Ok(()),
                    _ => continue,
                }
            }
        })
        .await?;
        self.connection.close().await;
        Ok(())
    }

    /// Ends a session that is not streaming; an exported snapshot and temporary slots go with it.
    pub async fn close(self) {
        self.connection.close().await;
    }

    /// The same, and waits for the walsender's end, after which its place (`max_wal_senders`) is free.
    pub async fn close_and_wait(self) {
        self.connection.close_and_wait().await;
    }
}

fn streamed(frame: &Frame) -> Result<StreamedMessage, StreamError> {
    match frame.tag {
        b'd' => Ok(StreamedMessage::Message(ReplicationMessage::read(&frame.body)?)),
        // A walsender that shuts down ends the COPY with a CommandComplete and no CopyDone (WalSndDone).
        b'c' | b'C' => Ok(StreamedMessage::Done),
        b'E' => Err(SessionError::from_server(STREAMING, ServerError::read(&frame.body)).into()),
        tag => Err(SessionError::protocol(STREAMING, format!("message {}", tag.escape_ascii())).into()),
    }
}

/// What can go wrong while streaming.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The session.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The bytes.
    #[error("streaming: {0}")]
    Wire(#[from] WireError),
}

fn start_command(slot: &SlotName, from: Lsn, options: &StreamOptions) -> String {
    // The replication grammar knows only doubled quotes, no E'' strings (repl_scanner.l, 14 to 18).
    let publications = options.publication.sql().replace('\'', "''");
    let mut sql = format!(
        "START_REPLICATION SLOT {slot} LOGICAL {from} (proto_version '{}', publication_names '{publications}', \
         messages 'true'",
        options.protocol_version
    );
    for (name, value) in [
        ("binary", options.binary.then_some("true")),
        ("streaming", options.streaming.then_some("true")),
        ("origin", options.origin_none.then_some("none")),
    ] {
        if let Some(value) = value {
            sql.push_str(&format!(", {name} '{value}'"));
        }
    }
    sql.push(')');
    sql
}

fn not_null(value: Option<String>, doing: &'static str) -> Result<String, SessionError> {
    value.ok_or_else(|| SessionError::protocol(doing, "a field that is NULL"))
}

fn one_row<const N: usize>(
    rows: Vec<Vec<Option<String>>>,
    doing: &'static str,
) -> Result<[Option<String>; N], SessionError> {
    rows.into_iter()
        .next()
        .and_then(|row| row.try_into().ok())
        .ok_or_else(|| SessionError::protocol(doing, "not one row of the expected width"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_publication_with_an_odd_name_stays_one_name() {
        let options = StreamOptions {
            protocol_version: 1,
            publication: Ident::new("od\"d, 'x\\"),
            binary: true,
            streaming: false,
            origin_none: false,
        };
        assert_eq!(
            start_command(&"s".parse().unwrap(), Lsn::new(16), &options),
            "START_REPLICATION SLOT s LOGICAL 0/10 (proto_version '1', publication_names \
             '\"od\"\"d, ''x\\\"', messages 'true', binary 'true')"
        );
    }

    #[test]
    fn a_status_update_is_34_bytes_long() {
        let update = StandbyStatusUpdate {
            written: Lsn::INVALID,
            flushed: Lsn::INVALID,
            applied: Lsn::INVALID,
            sent_at: crate::pg::PgTimestamp::from_micros(0),
            reply_requested: false,
        };
        let mut bytes = Vec::new();
        update.write(&mut bytes);
        assert_eq!(bytes.len(), 34);
    }
}

//! pgoutput's messages: one function reads them, one writes them.
//!
//! In comes the data of one XLogData; out goes one [`Message`], for `transaction::Assembler`. The [`Decoder`] holds the
//! one bit of state that the format has: between Stream Start and Stream Stop (protocol 2 and later) every change
//! carries the xid of its (sub)transaction.
//!
//! Formats: protocol-logicalrep-message-formats and `src/backend/replication/logical/proto.c`, PostgreSQL 14 to 18.
//! Two-phase messages (`b`, `P`, `K`, `r`, `p`) are refused: they come only when asked for, and we do not ask; a
//! prepared transaction then arrives whole at COMMIT PREPARED.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use bytes::{BufMut, Bytes};

use super::cursor::{Cursor, WireError};
use crate::pg::{
    Column, Ident, Lsn, PgTimestamp, QualifiedName, Relation, RelationId, ReplicaIdentity, Tuple, TypeId, length_u32,
    usize_from,
};

/// A transaction's first message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Begin {
    /// Where the commit record will start: the commit_lsn of the Commit to come.
    pub final_lsn: Lsn,
    /// When it committed, on the source's clock.
    pub committed_at: PgTimestamp,
    /// The transaction's id at the source.
    pub xid: u32,
}

/// A transaction's last message, also that of a streamed one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Commit {
    /// Where the commit record starts.
    pub commit_lsn: Lsn,
    /// Where the commit record ends: the position to store and confirm.
    pub end_lsn: Lsn,
    /// When it committed, on the source's clock.
    pub committed_at: PgTimestamp,
}

/// What an update or delete tells about the old row.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum OldTuple {
    /// `K`: the identity's columns; all others are NULL.
    Key(Tuple),
    /// `O`: the whole row (replica identity full).
    Row(Tuple),
}

impl OldTuple {
    /// The tuple, whichever kind it is.
    pub const fn tuple(&self) -> &Tuple {
        match self {
            OldTuple::Key(tuple) | OldTuple::Row(tuple) => tuple,
        }
    }
}

/// A TRUNCATE of one or more relations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Truncate {
    /// The published relations among those truncated.
    pub relations: Vec<RelationId>,
    /// TRUNCATE … CASCADE.
    pub cascade: bool,
    /// TRUNCATE … RESTART IDENTITY.
    pub restart_identity: bool,
}

/// The name of a type that is not built in; precedes the Relation that uses it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TypeDescription {
    /// The type's OID at the source.
    pub id: TypeId,
    /// The type's name at the source.
    pub name: QualifiedName,
}

/// A message from `pg_logical_emit_message`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogicalMessage {
    /// Part of the surrounding transaction; otherwise it stands alone and arrives before that commits.
    pub transactional: bool,
    /// Where the message's record ends.
    pub message_lsn: Lsn,
    /// Who the message is for.
    pub prefix: String,
    /// What it says.
    pub content: Bytes,
}

/// The rollback of a streamed transaction, or of a subtransaction in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abort {
    /// The top-level transaction.
    pub xid: u32,
    /// The subtransaction that rolled back; equal to `xid` when all of it did.
    pub subxid: u32,
}

/// A pgoutput message. Changes inside a stream name the (sub)transaction that made them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// `B`
    Begin(Begin),
    /// `C`
    Commit(Commit),
    /// `O`: the transaction was replicated to the source from elsewhere.
    Origin {
        /// The commit's position at the origin.
        commit_lsn: Lsn,
        /// The origin's name at the source.
        name: String,
    },
    /// `R`
    Relation {
        /// The (sub)transaction, inside a stream.
        xid: Option<u32>,
        /// The relation as from now on.
        relation: Relation,
    },
    /// `Y`
    Type {
        /// The (sub)transaction, inside a stream.
        xid: Option<u32>,
        /// The type.
        description: TypeDescription,
    },
    /// `I`
    Insert {
        /// The (sub)transaction, inside a stream.
        xid: Option<u32>,
        /// The table.
        relation: RelationId,
        /// The new row.
        new: Tuple,
    },
    /// `U`
    Update {
        /// The (sub)transaction, inside a stream.
        xid: Option<u32>,
        /// The table.
        relation: RelationId,
        /// The old row's identity; `None` when it did not change.
        old: Option<OldTuple>,
        /// The new row.
        new: Tuple,
    },
    /// `D`
    Delete {
        /// The (sub)transaction, inside a stream.
        xid: Option<u32>,
        /// The table.
        relation: RelationId,
        /// The old row's identity.
        old: OldTuple,
    },
    /// `T`
    Truncate {
        /// The (sub)transaction, inside a stream.
        xid: Option<u32>,
        /// What was truncated.
        truncate: Truncate,
    },
    /// `M`
    Logical {
        /// The (sub)transaction, inside a stream.
        xid: Option<u32>,
        /// The message.
        message: LogicalMessage,
    },
    /// `S`: from here to Stream Stop the changes of one in-progress transaction.
    StreamStart {
        /// The top-level transaction.
        xid: u32,
        /// Whether this is its first piece.
        first: bool,
    },
    /// `E`
    StreamStop,
    /// `c`
    StreamCommit {
        /// The top-level transaction.
        xid: u32,
        /// Its commit.
        commit: Commit,
    },
    /// `A`
    StreamAbort(Abort),
}

/// Reads pgoutput messages of one replication session.
#[derive(Clone, Debug, Default)]
pub struct Decoder {
    in_stream: bool,
    aborts_carry_time: bool,
}

impl Decoder {
    /// A decoder for a session that was just started.
    ///
    /// `aborts_carry_time`: Stream Abort is followed by a position and a time, which is so with protocol 4 and
    /// `streaming = parallel` only (`logicalrep_write_stream_abort`, 16 to 18).
    pub const fn new(aborts_carry_time: bool) -> Decoder {
        Decoder { in_stream: false, aborts_carry_time }
    }

    /// Reads one message.
    ///
    /// # Errors
    /// [`WireError`] when the bytes are not exactly one message of the protocol, or one that cannot stand here.
    pub fn read(&mut self, data: &Bytes) -> Result<Message, WireError> {
        // Long: an arm for each kind of message.
        let mut cursor = Cursor::new("pgoutput", data);
        let message = match cursor.read_u8("kind")? {
            b'I' => self.read_insert(&mut cursor)?,
            b'U' => self.read_update(&mut cursor)?,
            b'D' => self.read_delete(&mut cursor)?,
            b'B' => {
                cursor = cursor.renamed("Begin");
                self.outside_stream(&cursor)?;
                Message::Begin(Begin {
                    final_lsn: cursor.read_lsn("final_lsn")?,
                    committed_at: cursor.read_timestamp("commit time")?,
                    xid: cursor.read_u32("xid")?,
                })
            }
            b'C' => {
                cursor = cursor.renamed("Commit");
                self.outside_stream(&cursor)?;
                Message::Commit(read_commit(&mut cursor)?)
            }
            b'O' => {
                cursor = cursor.renamed("Origin");
                Message::Origin {
                    commit_lsn: cursor.read_lsn("origin's commit_lsn")?,
                    name: cursor.read_str("origin's name")?.to_owned(),
                }
            }
            b'R' => {
                cursor = cursor.renamed("Relation");
                Message::Relation { xid: self.read_xid(&mut cursor)?, relation: read_relation(&mut cursor)? }
            }
            b'Y' => {
                cursor = cursor.renamed("Type");
                Message::Type {
                    xid: self.read_xid(&mut cursor)?,
                    description: TypeDescription {
                        id: TypeId(cursor.read_u32("type's OID")?),
                        name: read_name(&mut cursor)?,
                    },
                }
            }
            b'T' => self.read_truncate(&mut cursor)?,
            b'M' => {
                cursor = cursor.renamed("Message");
                let xid = self.read_xid(&mut cursor)?;
                let transactional = match cursor.read_u8("flags")? {
                    0 => false,
                    1 => true,
                    value => return Err(unknown(&cursor, "flags", value)),
                };
                let message_lsn = cursor.read_lsn("position")?;
                let prefix = cursor.read_str("prefix")?.to_owned();
                let length = usize_from(cursor.read_u32("length")?);
                let content = cursor.read_bytes(length, "content")?;
                Message::Logical { xid, message: LogicalMessage { transactional, message_lsn, prefix, content } }
            }
            b'S' => {
                cursor = cursor.renamed("Stream Start");
                self.outside_stream(&cursor)?;
                let xid = cursor.read_u32("xid")?;
                let first = match cursor.read_u8("first-segment flag")? {
                    0 => false,
                    1 => true,
                    value => return Err(unknown(&cursor, "first-segment flag", value)),
                };
                self.in_stream = true;
                Message::StreamStart { xid, first }
            }
            b'E' => {
                cursor = cursor.renamed("Stream Stop");
                if !self.in_stream {
                    return Err(WireError::Misplaced { message: cursor.message(), place: "outside a stream" });
                }
                self.in_stream = false;
                Message::StreamStop
            }
            b'c' => {
                cursor = cursor.renamed("Stream Commit");
                self.outside_stream(&cursor)?;
                Message::StreamCommit { xid: cursor.read_u32("xid")?, commit: read_commit(&mut cursor)? }
            }
            b'A' => {
                cursor = cursor.renamed("Stream Abort");
                self.outside_stream(&cursor)?;
                let abort = Abort { xid: cursor.read_u32("xid")?, subxid: cursor.read_u32("subtransaction's xid")? };
                if self.aborts_carry_time {
                    cursor.read_lsn("abort position")?;
                    cursor.read_timestamp("abort time")?;
                }
                Message::StreamAbort(abort)
            }
            kind => return Err(unknown(&cursor, "kind", kind)),
        };
        cursor.finish()?;
        Ok(message)
    }

    fn outside_stream(&self, cursor: &Cursor<'_>) -> Result<(), WireError> {
        if self.in_stream {
            return Err(WireError::Misplaced { message: cursor.message(), place: "inside a stream" });
        }
        Ok(())
    }

    fn read_xid(&self, cursor: &mut Cursor<'_>) -> Result<Option<u32>, WireError> {
        if self.in_stream { cursor.read_u32("xid").map(Some) } else { Ok(None) }
    }

    fn read_insert(&self, cursor: &mut Cursor<'_>) -> Result<Message, WireError> {
        let xid = self.read_xid(cursor)?;
        let relation = RelationId(cursor.read_u32("relation's OID")?);
        match cursor.read_u8("tuple kind")? {
            b'N' => Ok(Message::Insert { xid, relation, new: cursor.read_tuple()? }),
            kind => Err(unknown(cursor, "tuple kind", kind)),
        }
    }

    fn read_update(&self, cursor: &mut Cursor<'_>) -> Result<Message, WireError> {
        let xid = self.read_xid(cursor)?;
        let relation = RelationId(cursor.read_u32("relation's OID")?);
        let old = match cursor.read_u8("tuple kind")? {
            b'N' => return Ok(Message::Update { xid, relation, old: None, new: cursor.read_tuple()? }),
            kind => read_old_tuple(cursor, kind)?,
        };
        match cursor.read_u8("tuple kind")? {
            b'N' => Ok(Message::Update { xid, relation, old: Some(old), new: cursor.read_tuple()? }),
            kind => Err(unknown(cursor, "tuple kind", kind)),
        }
    }

    fn read_delete(&self, cursor: &mut Cursor<'_>) -> Result<Message, WireError> {
        let xid = self.read_xid(cursor)?;
        let relation = RelationId(cursor.read_u32("relation's OID")?);
        let kind = cursor.read_u8("tuple kind")?;
        Ok(Message::Delete { xid, relation, old: read_old_tuple(cursor, kind)? })
    }

    fn read_truncate(&self, cursor: &mut Cursor<'_>) -> Result<Message, WireError> {
        let xid = self.read_xid(cursor)?;
        let count = cursor.read_u32("relation count")?;
        let options = cursor.read_u8("options")?;
        if options & !(TRUNCATE_CASCADE | TRUNCATE_RESTART_IDENTITY) != 0 {
            return Err(unknown(cursor, "options", options));
        }
        // Not reserved up front: the count is a claim until its bytes have been read.
        let mut relations = Vec::new();
        for _ in 0..count {
            relations.push(RelationId(cursor.read_u32("relation's OID")?));
        }
        Ok(Message::Truncate {
            xid,
            truncate: Truncate {
                relations,
                cascade: options & TRUNCATE_CASCADE != 0,
                restart_identity: options & TRUNCATE_RESTART_IDENTITY != 0,
            },
        })
    }
}

const TRUNCATE_CASCADE: u8 = 1;
const TRUNCATE_RESTART_IDENTITY: u8 = 2;
/// MaxTupleAttributeNumber (access/htup_details.h).
const COLUMNS_MAX: u16 = 1664;
const COLUMN_IN_IDENTITY: u8 = 1;

fn unknown(cursor: &Cursor<'_>, field: &'static str, value: u8) -> WireError {
    WireError::Unknown { message: cursor.message(), field, value: value.into() }
}

fn read_old_tuple(cursor: &mut Cursor<'_>, kind: u8) -> Result<OldTuple, WireError> {
    match kind {
        b'K' => Ok(OldTuple::Key(cursor.read_tuple()?)),
        b'O' => Ok(OldTuple::Row(cursor.read_tuple()?)),
        kind => Err(unknown(cursor, "tuple kind", kind)),
    }
}

fn read_commit(cursor: &mut Cursor<'_>) -> Result<Commit, WireError> {
    match cursor.read_u8("flags")? {
        0 => Ok(Commit {
            commit_lsn: cursor.read_lsn("commit_lsn")?,
            end_lsn: cursor.read_lsn("end_lsn")?,
            committed_at: cursor.read_timestamp("commit time")?,
        }),
        flags => Err(unknown(cursor, "flags", flags)),
    }
}

/// A schema and a name; an empty schema stands for pg_catalog (`logicalrep_write_namespace`).
fn read_name(cursor: &mut Cursor<'_>) -> Result<QualifiedName, WireError> {
    let schema = match cursor.read_name("schema")? {
        "" => "pg_catalog",
        schema => schema,
    };
    Ok(QualifiedName::new(schema, cursor.read_name("name")?))
}

fn read_relation(cursor: &mut Cursor<'_>) -> Result<Relation, WireError> {
    let id = RelationId(cursor.read_u32("OID")?);
    let name = read_name(cursor)?;
    let letter = cursor.read_u8("replica identity")?;
    let replica_identity =
        ReplicaIdentity::from_letter(letter).ok_or_else(|| unknown(cursor, "replica identity", letter))?;
    let count = cursor.read_u16("column count")?;
    if count > COLUMNS_MAX {
        let (message, field, most) = (cursor.message(), "column count", usize::from(COLUMNS_MAX));
        return Err(WireError::TooLong { message, field, most });
    }
    let mut columns = Vec::new();
    for _ in 0..count {
        let flags = cursor.read_u8("column flags")?;
        if flags & !COLUMN_IN_IDENTITY != 0 {
            return Err(unknown(cursor, "column flags", flags));
        }
        columns.push(Column {
            in_identity: flags & COLUMN_IN_IDENTITY != 0,
            name: Ident::new(cursor.read_name("column name")?),
            type_id: TypeId(cursor.read_u32("column type")?),
            type_modifier: cursor.read_i32("column type modifier")?,
        });
    }
    Ok(Relation { id, name, replica_identity, columns, leaves: Default::default() })
}

/// Writes one message, as pgoutput would; `aborts_carry_time` as for [`Decoder::new`].
///
/// Lists longer than their count fields allow are cut: only tests and simulations write messages.
pub fn write_message(message: &Message, aborts_carry_time: bool, out: &mut impl BufMut) {
    // Long: an arm for each kind of message.
    let put_head = |out: &mut dyn BufMut, kind: u8, xid: &Option<u32>| {
        out.put_u8(kind);
        if let Some(xid) = xid {
            out.put_u32(*xid);
        }
    };
    match message {
        Message::Begin(begin) => {
            out.put_u8(b'B');
            out.put_u64(begin.final_lsn.as_u64());
            out.put_i64(begin.committed_at.as_micros());
            out.put_u32(begin.xid);
        }
        Message::Commit(commit) => {
            out.put_u8(b'C');
            write_commit(commit, out);
        }
        Message::Origin { commit_lsn, name } => {
            out.put_u8(b'O');
            out.put_u64(commit_lsn.as_u64());
            write_str(name, out);
        }
        Message::Relation { xid, relation } => {
            put_head(out, b'R', xid);
            out.put_u32(relation.id.0);
            write_name(&relation.name, out);
            out.put_u8(relation.replica_identity.letter());
            let count = u16::try_from(relation.columns.len()).expect("a table has at most 1,600 columns");
            out.put_u16(count);
            for column in relation.columns.iter().take(count.into()) {
                out.put_u8(if column.in_identity { COLUMN_IN_IDENTITY } else { 0 });
                write_str(column.name.as_str(), out);
                out.put_u32(column.type_id.0);
                out.put_i32(column.type_modifier);
            }
        }
        Message::Type { xid, description } => {
            put_head(out, b'Y', xid);
            out.put_u32(description.id.0);
            write_name(&description.name, out);
        }
        Message::Insert { xid, relation, new } => {
            put_head(out, b'I', xid);
            out.put_u32(relation.0);
            write_tuple(b'N', new, out);
        }
        Message::Update { xid, relation, old, new } => {
            put_head(out, b'U', xid);
            out.put_u32(relation.0);
            if let Some(old) = old {
                write_old_tuple(old, out);
            }
            write_tuple(b'N', new, out);
        }
        Message::Delete { xid, relation, old } => {
            put_head(out, b'D', xid);
            out.put_u32(relation.0);
            write_old_tuple(old, out);
        }
        Message::Truncate { xid, truncate } => {
            put_head(out, b'T', xid);
            let count = length_u32(truncate.relations.len());
            out.put_u32(count);
            let cascade = if truncate.cascade { TRUNCATE_CASCADE } else { 0 };
            let restart = if truncate.restart_identity { TRUNCATE_RESTART_IDENTITY } else { 0 };
            out.put_u8(cascade | restart);
            for relation in &truncate.relations {
                out.put_u32(relation.0);
            }
        }
        Message::Logical { xid, message } => {
            put_head(out, b'M', xid);
            out.put_u8(message.transactional.into());
            out.put_u64(message.message_lsn.as_u64());
            write_str(&message.prefix, out);
            out.put_u32(length_u32(message.content.len()));
            out.put_slice(&message.content);
        }
        Message::StreamStart { xid, first } => {
            out.put_u8(b'S');
            out.put_u32(*xid);
            out.put_u8((*first).into());
        }
        Message::StreamStop => out.put_u8(b'E'),
        Message::StreamCommit { xid, commit } => {
            out.put_u8(b'c');
            out.put_u32(*xid);
            write_commit(commit, out);
        }
        Message::StreamAbort(abort) => {
            out.put_u8(b'A');
            out.put_u32(abort.xid);
            out.put_u32(abort.subxid);
            if aborts_carry_time {
                out.put_u64(0);
                out.put_i64(0);
            }
        }
    }
}

fn write_commit(commit: &Commit, out: &mut impl BufMut) {
    out.put_u8(0);
    out.put_u64(commit.commit_lsn.as_u64());
    out.put_u64(commit.end_lsn.as_u64());
    out.put_i64(commit.committed_at.as_micros());
}

fn write_str(text: &str, out: &mut impl BufMut) {
    out.put_slice(text.as_bytes());
    out.put_u8(0);
}

fn write_name(name: &QualifiedName, out: &mut impl BufMut) {
    write_str(if name.schema.as_str() == "pg_catalog" { "" } else { name.schema.as_str() }, out);
    write_str(name.name.as_str(), out);
}

fn write_tuple(kind: u8, tuple: &Tuple, out: &mut impl BufMut) {
    out.put_u8(kind);
    out.put_u16(u16::try_from(tuple.len()).expect("TupleData counts its columns in 16 bits"));
    out.put_slice(tuple.as_bytes());
}

fn write_old_tuple(old: &OldTuple, out: &mut impl BufMut) {
    match old {
        OldTuple::Key(tuple) => write_tuple(b'K', tuple, out),
        OldTuple::Row(tuple) => write_tuple(b'O', tuple, out),
    }
}

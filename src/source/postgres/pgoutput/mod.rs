//! The messages of PostgreSQL's logical replication: pure functions of bytes.
//!
//! What enters: the payload of one `CopyData` of a walsender, and inside of it one message of the plugin `pgoutput`,
//! protocol version 1. What leaves: the same as borrowed values, column values still as the server's text. Invariants:
//! no panic, no allocation larger than the message, nothing skipped: a byte too many or too few is an error.
//! Deliberately absent: parts of transactions that have not committed (protocol 2 and later), and binary values,
//! neither of which is asked for.
//!
//! <https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html>

mod cursor;
mod error;
#[doc(hidden)]
pub mod fuzz;
#[cfg(test)]
mod tests;

use self::cursor::Cursor;
pub use self::error::DecodeError;
use crate::model::Lsn;

/// From PostgreSQL's epoch, the beginning of 2000, to that of Unix time.
const EPOCH_US: i64 = 946_684_800_000_000;

/// What a walsender sends in one `CopyData`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame<'a> {
    Data {
        message: &'a [u8],
    },
    /// The server is alive, and everything that committed before `end` has been sent.
    Keepalive {
        end: Lsn,
        at_us: i64,
        /// The server ends the connection unless it is answered soon.
        answer: bool,
    },
}

/// One message of the plugin. Times are µs since the Unix epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message<'a> {
    Begin {
        commit: Lsn,
        commit_us: i64,
        xid: u32,
    },
    Commit {
        /// Where the commit record ends: the place to resume at.
        end: Lsn,
        commit_us: i64,
    },
    /// The transaction was replicated to the server from elsewhere.
    Origin {
        name: &'a str,
    },
    Relation(Relation),
    /// A type that is not built in, before the first relation that uses it.
    Type {
        oid: u32,
    },
    Insert {
        relation: u32,
        new: Tuple<'a>,
    },
    Update {
        relation: u32,
        old: Option<Old<'a>>,
        new: Tuple<'a>,
    },
    Delete {
        relation: u32,
        old: Old<'a>,
    },
    Truncate {
        relations: Vec<u32>,
    },
    /// What `pg_logical_emit_message` wrote.
    Logical {
        prefix: &'a str,
        content: &'a [u8],
    },
}

/// A table as it was at this point of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relation {
    pub id: u32,
    pub schema: String,
    pub table: String,
    pub identity: ReplicaIdentity,
    pub columns: Vec<RelationColumn>,
}

/// What of a row is written to the log when it is changed or deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplicaIdentity {
    /// The primary key.
    Default,
    Nothing,
    /// The whole row.
    Full,
    /// The columns of one index.
    Index,
}

impl ReplicaIdentity {
    /// From the letter that the catalog (`pg_class.relreplident`) and the protocol have for it.
    pub fn from_letter(letter: u8) -> Option<Self> {
        Some(match letter {
            b'd' => ReplicaIdentity::Default,
            b'n' => ReplicaIdentity::Nothing,
            b'f' => ReplicaIdentity::Full,
            b'i' => ReplicaIdentity::Index,
            _ => return None,
        })
    }
}

/// A column of a relation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelationColumn {
    /// Whether it is part of the replica identity.
    pub key: bool,
    pub name: String,
    pub type_oid: u32,
    pub type_modifier: i32,
}

/// The values of a row, in the order of the relation's columns.
pub type Tuple<'a> = Vec<Cell<'a>>;

/// One value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cell<'a> {
    Null,
    /// Stored out of line (TOAST) and not changed: the value is not in the log.
    Unchanged,
    Text(&'a [u8]),
}

/// The row as it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Old<'a> {
    /// The replica identity's columns; all others are null.
    Key(Tuple<'a>),
    Full(Tuple<'a>),
}

impl<'a> Frame<'a> {
    /// Reads the payload of a `CopyData`.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut cursor = Cursor::new(bytes);
        let frame = match cursor.u8("kind")? {
            b'w' => {
                // Where the message begins and where the server's log ends: 8 bytes each, and the time.
                cursor.bytes(24, "header")?;
                Frame::Data { message: cursor.rest() }
            }
            b'k' => Frame::Keepalive {
                end: Lsn(cursor.u64("position")?),
                at_us: time(&mut cursor)?,
                answer: cursor.u8("request for an answer")? != 0,
            },
            kind => return Err(DecodeError::Unknown { kind }),
        };
        finished(&cursor, frame)
    }
}

impl<'a> Message<'a> {
    /// Reads a message of the plugin.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut cursor = Cursor::new(bytes);
        let message = match cursor.u8("kind")? {
            b'B' => Message::Begin {
                commit: Lsn(cursor.u64("position")?),
                commit_us: time(&mut cursor)?,
                xid: cursor.u32("transaction id")?,
            },
            b'C' => {
                // Flags that nothing uses, and where the commit record begins.
                cursor.bytes(9, "header")?;
                Message::Commit { end: Lsn(cursor.u64("position")?), commit_us: time(&mut cursor)? }
            }
            b'O' => {
                cursor.bytes(8, "position")?;
                Message::Origin { name: cursor.text("origin")? }
            }
            b'R' => Message::Relation(relation(&mut cursor)?),
            b'Y' => {
                let oid = cursor.u32("type")?;
                cursor.text("schema")?;
                cursor.text("type")?;
                Message::Type { oid }
            }
            b'I' => {
                let relation = cursor.u32("relation")?;
                Message::Insert { relation, new: new_tuple(&mut cursor)? }
            }
            b'U' => update(&mut cursor)?,
            b'D' => {
                let relation = cursor.u32("relation")?;
                let kind = cursor.u8("kind of row")?;
                Message::Delete { relation, old: old_tuple(kind, &mut cursor)? }
            }
            b'T' => truncate(&mut cursor)?,
            b'M' => {
                // Whether it belongs to a transaction, and its place.
                cursor.bytes(9, "header")?;
                let prefix = cursor.text("prefix")?;
                let length = cursor.u32("length")?;
                Message::Logical { prefix, content: cursor.bytes(length as usize, "content")? }
            }
            kind => return Err(DecodeError::Unknown { kind }),
        };
        finished(&cursor, message)
    }
}

fn finished<T>(cursor: &Cursor<'_>, decoded: T) -> Result<T, DecodeError> {
    if cursor.is_empty() { Ok(decoded) } else { Err(DecodeError::Malformed { what: "length" }) }
}

fn time(cursor: &mut Cursor<'_>) -> Result<i64, DecodeError> {
    cursor.i64("time")?.checked_add(EPOCH_US).ok_or(DecodeError::Malformed { what: "time" })
}

fn relation(cursor: &mut Cursor<'_>) -> Result<Relation, DecodeError> {
    let id = cursor.u32("relation")?;
    let schema = cursor.text("schema")?;
    // Empty stands for the schema of what is built in.
    let schema = if schema.is_empty() { "pg_catalog" } else { schema }.to_owned();
    let table = cursor.text("table")?.to_owned();
    let identity = ReplicaIdentity::from_letter(cursor.u8("replica identity")?);
    let identity = identity.ok_or(DecodeError::Malformed { what: "replica identity" })?;
    let count = cursor.u16("number of columns")?;
    let count = cursor.count(usize::from(count), 10, "columns")?;
    let mut columns = Vec::with_capacity(count);
    for _ in 0..count {
        columns.push(RelationColumn {
            key: cursor.u8("flags")? & 1 == 1,
            name: cursor.text("column")?.to_owned(),
            type_oid: cursor.u32("type")?,
            type_modifier: cursor.i32("type modifier")?,
        });
    }
    Ok(Relation { id, schema, table, identity, columns })
}

fn update<'a>(cursor: &mut Cursor<'a>) -> Result<Message<'a>, DecodeError> {
    let relation = cursor.u32("relation")?;
    let mut kind = cursor.u8("kind of row")?;
    let mut old = None;
    if kind != b'N' {
        old = Some(old_tuple(kind, cursor)?);
        kind = cursor.u8("kind of row")?;
    }
    if kind != b'N' {
        return Err(DecodeError::Malformed { what: "kind of row" });
    }
    Ok(Message::Update { relation, old, new: tuple(cursor)? })
}

fn truncate<'a>(cursor: &mut Cursor<'a>) -> Result<Message<'a>, DecodeError> {
    let count = cursor.u32("number of relations")?;
    // CASCADE and RESTART IDENTITY: what they reach is listed, and sequences are nobody's here.
    cursor.u8("options")?;
    let count = cursor.count(count as usize, 4, "relations")?;
    let mut relations = Vec::with_capacity(count);
    for _ in 0..count {
        relations.push(cursor.u32("relation")?);
    }
    Ok(Message::Truncate { relations })
}

fn new_tuple<'a>(cursor: &mut Cursor<'a>) -> Result<Tuple<'a>, DecodeError> {
    match cursor.u8("kind of row")? {
        b'N' => tuple(cursor),
        _ => Err(DecodeError::Malformed { what: "kind of row" }),
    }
}

fn old_tuple<'a>(kind: u8, cursor: &mut Cursor<'a>) -> Result<Old<'a>, DecodeError> {
    match kind {
        b'K' => Ok(Old::Key(tuple(cursor)?)),
        b'O' => Ok(Old::Full(tuple(cursor)?)),
        _ => Err(DecodeError::Malformed { what: "kind of row" }),
    }
}

fn tuple<'a>(cursor: &mut Cursor<'a>) -> Result<Tuple<'a>, DecodeError> {
    let count = cursor.u16("number of values")?;
    let count = cursor.count(usize::from(count), 1, "values")?;
    let mut cells = Vec::with_capacity(count);
    for _ in 0..count {
        cells.push(match cursor.u8("kind of value")? {
            b'n' => Cell::Null,
            b'u' => Cell::Unchanged,
            b't' => {
                let length = cursor.u32("length of a value")?;
                Cell::Text(cursor.bytes(length as usize, "value")?)
            }
            _ => return Err(DecodeError::Malformed { what: "kind of value" }),
        });
    }
    Ok(cells)
}

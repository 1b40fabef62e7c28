//! The fields of a record: an envelope, its images and its source block, none of them understood yet.

use std::borrow::Cow;

use super::DebeziumError;
use crate::{
    log::envelope::json::Scanner,
    model::{DebeziumConnector, Op, SourceKind, SourcePlace},
};

/// A JSON value. Numbers and what is nested are as they are spelled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cell<'a> {
    Null,
    Bool(bool),
    Number(&'a str),
    Text(Cow<'a, str>),
    Nested(&'a str),
}

/// A JSON object's fields, in its order.
pub type Object<'a> = Vec<(Cow<'a, str>, Cell<'a>)>;

/// One record.
#[derive(Debug, Clone, PartialEq)]
pub enum DebeziumMessage<'a> {
    /// A null that follows a delete, for compaction.
    Tombstone,
    Change(Box<DebeziumChange<'a>>),
}

/// A change event. Its schema, where it has one, is JSON text.
#[derive(Debug, Clone, PartialEq)]
pub struct DebeziumChange<'a> {
    pub schema: Option<&'a str>,
    pub op: Op,
    pub before: Option<Object<'a>>,
    pub after: Option<Object<'a>>,
    pub source: SourceBlock<'a>,
    pub key_schema: Option<&'a str>,
    /// Empty where the record has no key.
    pub key: Object<'a>,
}

/// What the event says of where it comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceBlock<'a> {
    /// `topic.prefix`.
    pub name: Cow<'a, str>,
    pub is_postgres: bool,
    /// The database, or PostgreSQL's schema.
    pub schema: Cow<'a, str>,
    pub table: Cow<'a, str>,
    /// µs since the Unix epoch.
    pub commit_us: i64,
    pub is_snapshot: bool,
    /// It is of an incremental snapshot, which somebody has asked for.
    pub is_incremental: bool,
    pub place: Option<SourcePlace>,
    /// The server that committed the transaction, and the transaction's number there.
    pub transaction: Option<(Cow<'a, str>, u64)>,
}

/// Reads a record.
///
/// # Errors
/// When it is no change event of a connector that is known.
pub fn message<'a>(key: Option<&'a [u8]>, value: Option<&'a [u8]>) -> Result<DebeziumMessage<'a>, DebeziumError> {
    let Some(value) = value.filter(|value| !value.is_empty()) else { return Ok(DebeziumMessage::Tombstone) };
    let Some((schema, fields)) = unwrapped(value)? else { return Ok(DebeziumMessage::Tombstone) };
    let (mut op, mut before, mut after, mut source) = (None, None, None, None);
    for (name, cell) in fields {
        match (name.as_ref(), cell) {
            ("op", Cell::Text(text)) => op = operation(&text),
            ("before", Cell::Nested(text)) => before = Some(object(text)?),
            ("after", Cell::Nested(text)) => after = Some(object(text)?),
            ("source", Cell::Nested(text)) => source = Some(object(text)?),
            (_, Cell::Null | Cell::Bool(_) | Cell::Number(_) | Cell::Text(_) | Cell::Nested(_)) => {}
        }
    }
    let (Some(op), Some(source)) = (op, source) else { return Err(DebeziumError::NoEnvelope) };
    let source = source_of(source)?;
    let key = key.filter(|key| !key.is_empty()).map(unwrapped).transpose()?.flatten();
    let (key_schema, key) = key.unwrap_or_default();
    Ok(DebeziumMessage::Change(Box::new(DebeziumChange { schema, op, before, after, source, key_schema, key })))
}

fn operation(letter: &str) -> Option<Op> {
    match letter {
        "c" => Some(Op::Insert),
        "u" => Some(Op::Update),
        "d" => Some(Op::Delete),
        "r" => Some(Op::Read),
        "t" => Some(Op::Truncate),
        _ => None,
    }
}

/// A document's fields, out of `{"schema":…,"payload":…}` where the converter writes that; none for a null.
type Unwrapped<'a> = Option<(Option<&'a str>, Object<'a>)>;

fn unwrapped(bytes: &[u8]) -> Result<Unwrapped<'_>, DebeziumError> {
    let mut scanner = Scanner::new(bytes)?;
    let document = cell(&mut scanner)?;
    scanner.end()?;
    let text = match document {
        Cell::Null => return Ok(None),
        Cell::Nested(text) => text,
        Cell::Bool(_) | Cell::Number(_) | Cell::Text(_) => return Err(DebeziumError::NoEnvelope),
    };
    let fields = object(text)?;
    let is_wrapped =
        fields.len() == 2 && ["schema", "payload"].iter().all(|name| fields.iter().any(|field| field.0 == *name));
    if !is_wrapped {
        return Ok(Some((None, fields)));
    }
    let (mut schema, mut payload) = (None, None);
    for (name, cell) in fields {
        match (name == "schema", cell) {
            (true, Cell::Nested(text)) => schema = Some(text),
            (false, Cell::Nested(text)) => payload = Some(object(text)?),
            (true | false, Cell::Null) => {}
            (true | false, Cell::Bool(_) | Cell::Number(_) | Cell::Text(_)) => return Err(DebeziumError::NoEnvelope),
        }
    }
    Ok(payload.map(|payload| (schema, payload)))
}

/// The fields of an object.
pub(super) fn object(text: &str) -> Result<Object<'_>, DebeziumError> {
    let mut scanner = Scanner::new(text.as_bytes())?;
    let mut fields = Object::new();
    scanner.expect(b'{', "an object")?;
    let mut more = !scanner.accept(b'}');
    while more {
        let name = scanner.key()?;
        fields.push((name, cell(&mut scanner)?));
        more = scanner.more()?;
    }
    Ok(fields)
}

/// The members of a list.
pub(super) fn list(text: &str) -> Result<Vec<Cell<'_>>, DebeziumError> {
    let mut scanner = Scanner::new(text.as_bytes())?;
    let mut members = Vec::new();
    scanner.expect(b'[', "a list")?;
    if scanner.accept(b']') {
        return Ok(members);
    }
    loop {
        members.push(cell(&mut scanner)?);
        if !scanner.accept(b',') {
            scanner.expect(b']', "a comma or a closing bracket")?;
            return Ok(members);
        }
    }
}

fn cell<'a>(scanner: &mut Scanner<'a>) -> Result<Cell<'a>, DebeziumError> {
    Ok(match scanner.peek() {
        Some(b'"') => Cell::Text(scanner.string()?),
        Some(b'n') => scanner.literal("null").map(|_| Cell::Null)?,
        Some(b't') => scanner.literal("true").map(|_| Cell::Bool(true))?,
        Some(b'f') => scanner.literal("false").map(|_| Cell::Bool(false))?,
        Some(b'{' | b'[') => Cell::Nested(scanner.raw()?),
        Some(_) => Cell::Number(scanner.number()?),
        None => return Err(scanner.malformed("a value").into()),
    })
}

/// The fields of the source block that matter here, as they come.
#[derive(Default)]
struct Block<'a> {
    text: [Option<Cow<'a, str>>; 7],
    number: [Option<i64>; 5],
    is_snapshot: bool,
    is_incremental: bool,
    sequence: Option<Cow<'a, str>>,
}

const TEXTS: [&str; 7] = ["connector", "name", "db", "schema", "table", "file", "gtid"];
const NUMBERS: [&str; 5] = ["ts_us", "ts_ms", "pos", "row", "lsn"];

fn source_of(fields: Object<'_>) -> Result<SourceBlock<'_>, DebeziumError> {
    let mut block = Block::default();
    for (name, cell) in fields {
        match cell {
            Cell::Text(text) if name == "snapshot" => {
                block.is_snapshot = text != "false";
                block.is_incremental = text == "incremental";
            }
            Cell::Bool(is_snapshot) if name == "snapshot" => block.is_snapshot = is_snapshot,
            Cell::Text(text) if name == "sequence" => block.sequence = Some(text),
            Cell::Text(text) => {
                if let Some(place) = TEXTS.iter().position(|known| *known == name) {
                    block.text[place] = Some(text);
                }
            }
            Cell::Number(text) => {
                if let Some(place) = NUMBERS.iter().position(|known| *known == name) {
                    block.number[place] = text.parse().ok();
                }
            }
            Cell::Null | Cell::Bool(_) | Cell::Nested(_) => {}
        }
    }
    let Block { text, number, is_snapshot, is_incremental, sequence } = block;
    let [connector, name, db, schema, table, file, gtid] = text;
    let [ts_us, ts_ms, pos, row, lsn] = number;
    let needed = |field, value: Option<Cow<'_, str>>| value.map(|_| ()).ok_or(DebeziumError::NoSourceField { field });
    needed("connector", connector.clone())?;
    let is_postgres = match connector.as_deref().and_then(DebeziumConnector::named).map(DebeziumConnector::kind) {
        Some(SourceKind::Postgres) => true,
        Some(SourceKind::Mysql) => false,
        Some(SourceKind::Dynamo) | None => {
            return Err(DebeziumError::Connector { connector: connector.unwrap_or_default().into_owned() });
        }
    };
    let schema = if is_postgres { schema } else { db };
    let commit_us = ts_us.or_else(|| ts_ms.and_then(|ms| ms.checked_mul(1000)));
    let place = if is_postgres { postgres_place(lsn, sequence.as_deref()) } else { mysql_place(file, pos, row) };
    Ok(SourceBlock {
        name: name.ok_or(DebeziumError::NoSourceField { field: "name" })?,
        is_postgres,
        schema: schema.ok_or(DebeziumError::NoSourceField { field: if is_postgres { "schema" } else { "db" } })?,
        table: table.ok_or(DebeziumError::NoSourceField { field: "table" })?,
        commit_us: commit_us.ok_or(DebeziumError::NoSourceField { field: "ts_ms" })?,
        is_snapshot,
        is_incremental,
        place,
        transaction: gtid.and_then(transaction),
    })
}

/// Events inside of a compressed transaction have no place of their own: theirs is not above 0.
fn mysql_place(file: Option<Cow<'_, str>>, pos: Option<i64>, row: Option<i64>) -> Option<SourcePlace> {
    let offset = u64::try_from(pos?).ok().filter(|offset| *offset > 0)?;
    let file = file.filter(|file| !file.is_empty())?.into_owned();
    Some(SourcePlace::Mysql { file, offset, row: u64::try_from(row.unwrap_or(0)).ok()? })
}

/// `sequence` is `["<end of the last commit>","<lsn>"]`, JSON in a string.
fn postgres_place(lsn: Option<i64>, sequence: Option<&str>) -> Option<SourcePlace> {
    let members = list(sequence?).ok()?;
    let last_commit = match members.first()? {
        Cell::Text(text) => text.parse().ok()?,
        // Before the first commit that the connector has seen there is none to tell the place by.
        Cell::Null | Cell::Bool(_) | Cell::Number(_) | Cell::Nested(_) => return None,
    };
    Some(SourcePlace::Postgres { last_commit, lsn: u64::try_from(lsn?).ok()? })
}

/// MySQL's `uuid:7` (or `uuid:tag:7`) and MariaDB's `0-1-7`.
fn transaction(gtid: Cow<'_, str>) -> Option<(Cow<'_, str>, u64)> {
    let at = gtid.rfind(':').or_else(|| gtid.rfind('-'))?;
    let number = gtid.get(at + 1..)?.parse().ok()?;
    Some(match gtid {
        Cow::Borrowed(text) => (Cow::Borrowed(text.get(..at)?), number),
        Cow::Owned(mut text) => {
            text.truncate(at);
            (Cow::Owned(text), number)
        }
    })
}

//! From a change to an envelope's bytes.

use std::{collections::HashMap, io::Write as _, sync::Arc};

use base64::{display::Base64Display, engine::general_purpose::STANDARD};
use bytes::Bytes;

use super::{EnvelopeError, json::write_string};
use crate::{
    log::partition_of,
    model::{Change, DebeziumConnector, Op, Origin, SourceKind, TableSchema, Value, row_bytes},
};

/// How many tables' parts are cached; beyond it (a caller that never reuses a schema) the cache starts afresh.
const TABLES_MAX: usize = 4096;
/// Up to how many bytes an envelope is copied out of a buffer that is kept. A longer one takes its buffer with it.
const COPIED_BYTES_MAX: usize = 64 << 10;

/// A row's key and envelope, as bytes of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// `{"id":5}`; empty for a truncate.
    pub key: Bytes,
    pub value: Bytes,
}

/// Encodes the changes of one pipeline. What is the same for every row of a table is spelled once.
#[derive(Debug)]
pub struct Encoder {
    pipeline: String,
    connector: DebeziumConnector,
    /// By the address of the schema, which each entry keeps alive and so unique.
    tables: HashMap<usize, (Arc<TableSchema>, Parts)>,
    key: Vec<u8>,
    value: Vec<u8>,
}

/// The bytes that every row of a table shares.
#[derive(Debug)]
struct Parts {
    /// `{"id":`, `,"name":`, … per column.
    columns: Vec<Vec<u8>>,
    /// The same for the key's columns, with their place in the row.
    key: Vec<(usize, Vec<u8>)>,
    /// `,"source":{…,"ts_ms":`
    source: Vec<u8>,
    kind: SourceKind,
    /// `,"db":"shop","table":"items"`; with PostgreSQL `,"schema":"public","table":"items"`
    table: Vec<u8>,
}

impl Encoder {
    /// An encoder for the pipeline of that name, whose envelopes are those of Debezium's `connector`.
    pub fn new(pipeline: &str, connector: DebeziumConnector) -> Self {
        Encoder { pipeline: pipeline.to_owned(), connector, tables: HashMap::new(), key: Vec::new(), value: Vec::new() }
    }

    /// Encodes one change.
    ///
    /// # Errors
    /// When an image does not have the schema's columns.
    pub fn encode(&mut self, change: &Change, origin: &Origin) -> Result<Encoded, EnvelopeError> {
        check_shape(change)?;
        let Encoder { pipeline, connector, tables, key, value: out } = self;
        let address = Arc::as_ptr(&change.schema) as usize;
        if tables.len() >= TABLES_MAX && !tables.contains_key(&address) {
            tables.clear();
        }
        let (_, parts) = tables
            .entry(address)
            .or_insert_with(|| (Arc::clone(&change.schema), Parts::new(&change.schema, pipeline, *connector)));
        out.clear();
        let images = [&change.images.before, &change.images.after];
        let bytes: usize = images.into_iter().flatten().map(|row| row_bytes(row)).sum();
        if bytes > COPIED_BYTES_MAX {
            // Bytes get longer by a third, and so do most texts by less.
            out.reserve(bytes + bytes / 2);
        }
        out.extend_from_slice(b"{\"before\":");
        write_image(out, &parts.columns, change.images.before.as_deref());
        out.extend_from_slice(b",\"after\":");
        write_image(out, &parts.columns, change.images.after.as_deref());
        write_source(out, parts, change, origin);
        out.extend_from_slice(b",\"op\":\"");
        out.extend(u8::try_from(change.op.letter()));
        out.extend_from_slice(b"\",\"ts_ms\":");
        write_number(out, format_args!("{}", origin.captured_ms));
        out.push(b'}');

        key.clear();
        if let Some(row) = key_image(change) {
            for (index, prefix) in &parts.key {
                key.extend_from_slice(prefix);
                write_value(key, row.get(*index).unwrap_or(&Value::Null));
            }
            if !parts.key.is_empty() {
                key.push(b'}');
            }
        }
        Ok(Encoded { key: finished(key), value: finished(out) })
    }
}

/// The bytes of a buffer that is used again.
fn finished(buffer: &mut Vec<u8>) -> Bytes {
    if buffer.len() <= COPIED_BYTES_MAX {
        return Bytes::copy_from_slice(buffer);
    }
    let mut whole = std::mem::take(buffer);
    whole.shrink_to_fit();
    whole.into()
}

impl Parts {
    fn new(schema: &TableSchema, pipeline: &str, connector: DebeziumConnector) -> Self {
        let prefix = |place: usize, name: &str| {
            let mut out = vec![if place == 0 { b'{' } else { b',' }];
            write_string(&mut out, name);
            out.push(b':');
            out
        };
        let columns = schema.columns.iter().enumerate().map(|(place, column)| prefix(place, &column.name)).collect();
        let key_columns = schema.key.iter().filter_map(|index| Some((*index, schema.columns.get(*index)?)));
        let key = key_columns.enumerate().map(|(place, (index, c))| (index, prefix(place, &c.name))).collect();
        let mut source =
            concat!(",\"source\":{\"version\":\"", env!("CARGO_PKG_VERSION"), "\",\"connector\":").as_bytes().to_vec();
        write_string(&mut source, connector.name());
        source.extend_from_slice(b",\"name\":");
        write_string(&mut source, pipeline);
        source.extend_from_slice(b",\"ts_ms\":");
        let kind = connector.kind();
        let mut table = match kind {
            SourceKind::Postgres => b",\"schema\":".to_vec(),
            SourceKind::Mysql | SourceKind::Dynamo => b",\"db\":".to_vec(),
        };
        write_string(&mut table, &schema.table.schema);
        table.extend_from_slice(b",\"table\":");
        write_string(&mut table, &schema.table.table);
        Parts { columns, key, source, kind, table }
    }
}

/// The image that holds the row's key.
fn key_image(change: &Change) -> Option<&[Value]> {
    change.images.after.as_deref().or(change.images.before.as_deref())
}

fn check_shape(change: &Change) -> Result<(), EnvelopeError> {
    let columns = change.schema.columns.len();
    let images = [change.images.before.as_ref(), change.images.after.as_ref()];
    let odd = images.into_iter().flatten().find(|image| image.len() != columns);
    let key_fits = change.op == Op::Truncate || change.schema.key.iter().all(|index| *index < columns);
    if odd.is_none() && key_fits {
        return Ok(());
    }
    let (table, key) = (change.schema.table.clone(), change.schema.key.len());
    Err(EnvelopeError::Shape { table, columns, key, values: odd.map_or(columns, Vec::len) })
}

fn write_image(out: &mut Vec<u8>, prefixes: &[Vec<u8>], image: Option<&[Value]>) {
    let Some(image) = image else {
        out.extend_from_slice(b"null");
        return;
    };
    if prefixes.is_empty() {
        out.push(b'{');
    }
    for (prefix, value) in prefixes.iter().zip(image) {
        out.extend_from_slice(prefix);
        write_value(out, value);
    }
    out.push(b'}');
}

fn write_source(out: &mut Vec<u8>, parts: &Parts, change: &Change, origin: &Origin) {
    out.extend_from_slice(&parts.source);
    write_number(out, format_args!("{}", change.commit_us.div_euclid(1000)));
    out.extend_from_slice(if origin.snapshot { b",\"snapshot\":\"true\"" } else { b",\"snapshot\":\"false\"" });
    out.extend_from_slice(&parts.table);
    match parts.kind {
        SourceKind::Mysql => {
            if let Some(server_id) = origin.server_id {
                write_number(out, format_args!(",\"server_id\":{server_id}"));
            }
            out.extend_from_slice(b",\"gtid\":");
            write_name(out, origin.gtid.as_deref());
            out.extend_from_slice(b",\"file\":");
            write_string(out, &origin.file);
            write_number(out, format_args!(",\"pos\":{},\"row\":{}", origin.offset, origin.row));
        }
        SourceKind::Postgres => {
            out.extend_from_slice(b",\"lsn\":");
            match origin.snapshot {
                true => out.extend_from_slice(b"null"),
                false => write_number(out, format_args!("{}", origin.offset)),
            }
            out.extend_from_slice(b",\"origin\":");
            write_name(out, origin.replicated_from.as_deref());
        }
        // Shards have no common place.
        SourceKind::Dynamo => {}
    }
    out.push(b'}');
}

fn write_name(out: &mut Vec<u8>, name: Option<&str>) {
    match name {
        Some(name) => write_string(out, name),
        None => out.extend_from_slice(b"null"),
    }
}

fn write_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Null => out.extend_from_slice(b"null"),
        Value::Bool(true) => out.extend_from_slice(b"true"),
        Value::Bool(false) => out.extend_from_slice(b"false"),
        Value::Int(number) => write_number(out, format_args!("{number}")),
        Value::UInt(number) => write_number(out, format_args!("{number}")),
        Value::Float(number) => write_float(out, f64::from(*number), format_args!("{number:?}")),
        Value::Double(number) => write_float(out, *number, format_args!("{number:?}")),
        Value::Text(text) => write_string(out, text),
        Value::Bytes(bytes) => {
            out.push(b'"');
            write_number(out, format_args!("{}", Base64Display::new(bytes, &STANDARD)));
            out.push(b'"');
        }
    }
}

/// Writes a float in its shortest exact spelling. JSON has no word for the others; they get the one that
/// both PostgreSQL and Debezium's JSON converter use.
fn write_float(out: &mut Vec<u8>, number: f64, shortest: std::fmt::Arguments<'_>) {
    if number.is_finite() {
        write_number(out, shortest);
    } else if number.is_nan() {
        out.extend_from_slice(b"\"NaN\"");
    } else {
        out.extend_from_slice(if number > 0.0 { b"\"Infinity\"".as_slice() } else { b"\"-Infinity\"" });
    }
}

/// Formats into the buffer; writing to a `Vec` cannot fail.
fn write_number(out: &mut Vec<u8>, number: std::fmt::Arguments<'_>) {
    let _ = out.write_fmt(number);
}

/// Values by their names, as JSON: what a row's key is whose key columns these are.
pub fn object(names: &[String], values: &[Value]) -> String {
    let mut out = vec![b'{'];
    for (place, (name, value)) in names.iter().zip(values).enumerate() {
        if place > 0 {
            out.push(b',');
        }
        write_string(&mut out, name);
        out.push(b':');
        write_value(&mut out, value);
    }
    out.push(b'}');
    String::from_utf8_lossy(&out).into_owned()
}

/// The bytes that a row's partition is hashed from: the key's values in key order, each with its length in front,
/// without names and types, so that tables that merge under different column names and integer widths agree.
pub fn key_bytes(change: &Change) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(32);
    let mut field = Vec::with_capacity(20);
    let Some(row) = key_image(change) else { return bytes };
    for value in change.schema.key.iter().filter_map(|index| row.get(*index)) {
        field.clear();
        match value {
            Value::Text(text) => field.extend_from_slice(text.as_bytes()),
            Value::Bytes(raw) => field.extend_from_slice(raw),
            Value::Null | Value::Bool(_) | Value::Int(_) | Value::UInt(_) | Value::Float(_) | Value::Double(_) => {
                write_value(&mut field, value)
            }
        }
        bytes.extend_from_slice(&(field.len() as u64).to_be_bytes());
        bytes.extend_from_slice(&field);
    }
    bytes
}

/// The partition that a row change goes to.
pub fn partition(change: &Change, partitions: u32) -> u32 {
    if partitions <= 1 { 0 } else { partition_of(&key_bytes(change), partitions) }
}

//! Query events: a statement as text, with the session settings that change how it reads.

use std::borrow::Cow;

use super::{
    charset::Charset,
    collation,
    error::DecodeError,
    payload::inflate_mariadb,
    reader::{During, Reader, Short},
};

/// The parts of `sql_mode` that change how a statement is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SqlMode {
    /// `"x"` is a name, not a string.
    pub ansi_quotes: bool,
    /// A backslash in a string is a backslash.
    pub no_backslash_escapes: bool,
}

impl SqlMode {
    /// The flags of the binlog's number.
    pub fn from_bits(bits: u64) -> SqlMode {
        SqlMode { ansi_quotes: bits & 0x4 != 0, no_backslash_escapes: bits & 0x10_0000 != 0 }
    }
}

/// A statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query<'a> {
    pub thread_id: u32,
    /// The session's default database; empty if it has none.
    pub schema: String,
    /// The statement, decoded from the session's character set. Bytes that are no text (a binary literal in
    /// DDL) are shown as U+FFFD: the text is read for table names and keywords, and never executed.
    pub sql: Cow<'a, str>,
    pub sql_mode: SqlMode,
    /// What the statement ended with on the source; not 0 means that it failed half way.
    pub error_code: u16,
    /// Microseconds to add to the header's timestamp, where the session used them.
    pub microseconds: Option<u32>,
}

#[derive(Default)]
struct Status {
    sql_mode: SqlMode,
    client_collation: Option<u64>,
    microseconds: Option<u32>,
}

/// The body of a QUERY_EVENT.
pub(super) fn decode(body: &[u8]) -> Result<Query<'_>, DecodeError> {
    let (query, sql, charset) = read_head(&mut Reader::new(body)).during("query")?;
    Ok(Query { sql: decode_text(charset, sql), ..query })
}

/// The body of MariaDB's QUERY_COMPRESSED_EVENT.
pub(super) fn decode_compressed(body: &[u8]) -> Result<Query<'static>, DecodeError> {
    let (query, sql, charset) = read_head(&mut Reader::new(body)).during("query")?;
    let sql = inflate_mariadb(sql, "compressed query")?;
    Ok(Query { sql: Cow::Owned(decode_text(charset, &sql).into_owned()), ..query })
}

fn read_head<'a>(reader: &mut Reader<'a>) -> Result<(Query<'static>, &'a [u8], Option<Charset>), Short> {
    let thread_id = reader.u32()?;
    reader.u32()?;
    let schema_length = usize::from(reader.u8()?);
    let error_code = reader.u16()?;
    let status_length = usize::from(reader.u16()?);
    let status = reader.bytes(status_length)?;
    let schema = String::from_utf8_lossy(reader.bytes(schema_length)?).into_owned();
    reader.u8()?;
    let mut settings = Status::default();
    // The server stops at a variable that it does not know, and so does this: later ones may be of any length.
    // What is needed here comes early in the list.
    let _ = read_status(&mut Reader::new(status), &mut settings);
    let charset = settings.client_collation.and_then(collation::charset_name).and_then(Charset::by_name);
    let Status { sql_mode, microseconds, .. } = settings;
    let query = Query { thread_id, schema, sql: Cow::Borrowed(""), sql_mode, error_code, microseconds };
    Ok((query, reader.rest(), charset))
}

/// The status variables up to the first one that is not known.
fn read_status(reader: &mut Reader<'_>, status: &mut Status) -> Result<(), Short> {
    while !reader.is_empty() {
        match reader.u8()? {
            0 => drop(reader.bytes(4)?),
            1 => status.sql_mode = SqlMode::from_bits(reader.u64()?),
            2 => {
                reader.short_bytes()?;
                reader.u8()?;
            }
            3 => drop(reader.bytes(4)?),
            4 => {
                status.client_collation = Some(u64::from(reader.u16()?));
                reader.bytes(4)?;
            }
            5 | 6 => drop(reader.short_bytes()?),
            7 | 8 => drop(reader.u16()?),
            9 => drop(reader.u64()?),
            10 => drop(reader.u32()?),
            11 => {
                reader.short_bytes()?;
                reader.short_bytes()?;
            }
            12 => {
                // 254 means that there were too many databases to list them.
                let databases = reader.u8()?;
                for _ in 0..if databases == 254 { 0 } else { databases } {
                    while reader.u8()? != 0 {}
                }
            }
            13 => status.microseconds = Some(reader.u24()?),
            128 => drop(reader.u24()?),
            _ => return Ok(()),
        }
    }
    Ok(())
}

fn decode_text(charset: Option<Charset>, bytes: &[u8]) -> Cow<'_, str> {
    match charset {
        Some(charset) if !charset.is_plain(bytes) => match charset.decode(bytes) {
            Ok(text) => Cow::Owned(text),
            Err(_) => String::from_utf8_lossy(bytes),
        },
        Some(_) | None => String::from_utf8_lossy(bytes),
    }
}

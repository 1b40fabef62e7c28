//! GTID events: MySQL's untagged, tagged and anonymous, MariaDB's own, and the lists that a file begins with.

use std::fmt::Write as _;

use super::{
    error::DecodeError,
    reader::{During, Reader, Short},
};
use crate::model::GtidSet;

const MICROSECOND_TIMES_DIFFER: u64 = 1 << 55;
const SERVER_VERSIONS_DIFFER: u32 = 1 << 31;
const LOGICAL_TIMESTAMPS: u8 = 2;
const TAGGED_VERSION: u64 = 1;
const TAG_LENGTH_MAX: usize = 32;

/// The GTID of the transaction that follows, and when it was committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gtid {
    /// `uuid`, or `uuid:tag` from MySQL 8.3 on; lower case, as [`GtidSet::add`] takes it.
    pub source: String,
    pub number: u64,
    pub commit: CommitInfo,
}

/// What a GTID event says about its transaction's commit.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CommitInfo {
    /// Logical timestamps of the group commit, from 5.7 on.
    pub last_committed: i64,
    pub sequence_number: i64,
    /// Microseconds since the epoch at which the transaction committed on its first server; 8.0 and later.
    pub original_commit_us: Option<u64>,
    /// The same on this server.
    pub immediate_commit_us: Option<u64>,
    /// The transaction's size in the binlog, this event included.
    pub transaction_bytes: Option<u64>,
}

/// MariaDB's GTID event: it begins a transaction (there is no BEGIN), or precedes a single statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MariaDbGtid {
    pub domain: u32,
    pub server: u32,
    pub sequence: u64,
    pub flags: u8,
}

impl MariaDbGtid {
    /// The group is one statement without a COMMIT or XID event at its end (DDL).
    pub fn is_standalone(&self) -> bool {
        self.flags & 0x01 != 0
    }

    pub fn is_transactional(&self) -> bool {
        self.flags & 0x04 != 0
    }

    pub fn is_ddl(&self) -> bool {
        self.flags & 0x20 != 0
    }

    /// The group ends in an XA PREPARE: its rows are not committed yet.
    pub fn is_prepared_xa(&self) -> bool {
        self.flags & 0x40 != 0
    }

    /// The group is the XA COMMIT or XA ROLLBACK of a group prepared earlier.
    pub fn is_completed_xa(&self) -> bool {
        self.flags & 0x80 != 0
    }
}

/// The body of GTID_LOG_EVENT and ANONYMOUS_GTID_LOG_EVENT.
pub(super) fn decode_gtid(body: &[u8]) -> Result<Gtid, DecodeError> {
    let mut reader = Reader::new(body);
    let gtid = read_gtid(&mut reader).during("GTID")?;
    Ok(gtid)
}

fn read_gtid(reader: &mut Reader<'_>) -> Result<Gtid, Short> {
    reader.u8()?;
    let source = uuid_text(reader.array()?);
    let number = reader.u64()?;
    let mut commit = CommitInfo::default();
    if reader.is_empty() || reader.u8()? != LOGICAL_TIMESTAMPS {
        return Ok(Gtid { source, number, commit });
    }
    commit.last_committed = reader.u64()?.cast_signed();
    commit.sequence_number = reader.u64()?.cast_signed();
    if reader.remaining() >= 7 {
        let immediate = read_u56(reader)?;
        let original = if immediate & MICROSECOND_TIMES_DIFFER != 0 { Some(read_u56(reader)?) } else { None };
        let immediate = immediate & !MICROSECOND_TIMES_DIFFER;
        commit.immediate_commit_us = Some(immediate);
        commit.original_commit_us = Some(original.unwrap_or(immediate));
        if !reader.is_empty() {
            commit.transaction_bytes = Some(reader.packed()?);
        }
        if reader.remaining() >= 4 && reader.u32()? & SERVER_VERSIONS_DIFFER != 0 {
            reader.u32()?;
        }
    }
    Ok(Gtid { source, number, commit })
}

fn read_u56(reader: &mut Reader<'_>) -> Result<u64, Short> {
    reader.little_endian(7)
}

/// The body of GTID_TAGGED_LOG_EVENT: MySQL's own serialization, a list of numbered fields.
///
/// Source: <https://dev.mysql.com/doc/dev/mysql-server/latest/PageLibsMysqlSerialization.html>
pub(super) fn decode_tagged_gtid(body: &[u8]) -> Result<Gtid, DecodeError> {
    let malformed = || DecodeError::Malformed { what: "tagged GTID" };
    read_tagged(&mut Reader::new(body)).map_err(|Short| malformed())?.ok_or_else(malformed)
}

fn read_tagged(reader: &mut Reader<'_>) -> Result<Option<Gtid>, Short> {
    let whole = reader.remaining() as u64;
    let version = serialized_unsigned(reader)?;
    let size = serialized_unsigned(reader)?;
    let last_non_ignorable = serialized_unsigned(reader)?;
    if version != TAGGED_VERSION || size != whole {
        return Ok(None);
    }
    let mut uuid = None;
    let mut tag = String::new();
    let mut number = None;
    let mut commit = CommitInfo::default();
    while !reader.is_empty() {
        match serialized_unsigned(reader)? {
            0 => drop(serialized_unsigned(reader)?),
            1 => {
                let mut bytes = [0; 16];
                for byte in &mut bytes {
                    *byte = u8::try_from(serialized_unsigned(reader)?).map_err(|_| Short)?;
                }
                uuid = Some(bytes);
            }
            2 => number = u64::try_from(serialized_signed(reader)?).ok(),
            3 => {
                let length = usize::try_from(serialized_unsigned(reader)?).map_err(|_| Short)?;
                let bytes = reader.bytes(length)?;
                let valid = length <= TAG_LENGTH_MAX && bytes.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'_');
                if !valid {
                    return Ok(None);
                }
                tag = String::from_utf8_lossy(bytes).to_ascii_lowercase();
            }
            4 => commit.last_committed = serialized_signed(reader)?,
            5 => commit.sequence_number = serialized_signed(reader)?,
            6 => commit.immediate_commit_us = Some(serialized_unsigned(reader)?),
            7 => commit.original_commit_us = Some(serialized_unsigned(reader)?),
            8 => commit.transaction_bytes = Some(serialized_unsigned(reader)?),
            // Server versions and the commit group ticket.
            9..=11 => drop(serialized_unsigned(reader)?),
            unknown if unknown <= last_non_ignorable => return Ok(None),
            // Fields of later releases follow, all of them ignorable: their types are not known, so the rest is.
            _ => break,
        }
    }
    commit.original_commit_us = commit.original_commit_us.or(commit.immediate_commit_us);
    let (Some(uuid), Some(number)) = (uuid, number) else { return Ok(None) };
    let mut source = uuid_text(uuid);
    if !tag.is_empty() {
        source.push(':');
        source.push_str(&tag);
    }
    Ok(Some(Gtid { source, number, commit }))
}

/// The number of low one bits in the first byte is how many bytes follow; the rest is the value.
fn serialized_unsigned(reader: &mut Reader<'_>) -> Result<u64, Short> {
    let first = reader.u8()?;
    let following = first.trailing_ones();
    let bytes = reader.little_endian(following as usize)?;
    match following {
        8 => Ok(bytes),
        7 => Ok(bytes),
        fewer => Ok(u64::from(first >> (fewer + 1)) | bytes << (7 - fewer)),
    }
}

/// As unsigned, with the sign in the lowest bit.
fn serialized_signed(reader: &mut Reader<'_>) -> Result<i64, Short> {
    let folded = serialized_unsigned(reader)?;
    let value = (folded >> 1).cast_signed();
    Ok(if folded & 1 == 1 { !value } else { value })
}

/// The body of PREVIOUS_GTIDS_LOG_EVENT.
pub(super) fn decode_previous_gtids(body: &[u8]) -> Result<GtidSet, DecodeError> {
    read_gtid_set(&mut Reader::new(body)).map_err(|Short| DecodeError::Malformed { what: "set of previous GTIDs" })
}

fn read_gtid_set(reader: &mut Reader<'_>) -> Result<GtidSet, Short> {
    let head = reader.u64()?;
    // The top byte is the format's version; in version 1 (tags, 8.3 on) the lowest byte repeats it.
    let (tagged, sources) = match head >> 56 {
        0 => (false, head),
        1 => (true, head << 8 >> 16),
        _ => return Err(Short),
    };
    let mut set = GtidSet::default();
    let mut uuid = String::new();
    for _ in 0..sources {
        uuid.clear();
        uuid.push_str(&uuid_text(reader.array()?));
        if tagged {
            let length = usize::try_from(serialized_unsigned(reader)?).map_err(|_| Short)?;
            let tag = reader.bytes(length)?;
            if length > TAG_LENGTH_MAX || !tag.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'_') {
                return Err(Short);
            }
            if length > 0 {
                uuid.push(':');
                uuid.push_str(&String::from_utf8_lossy(tag).to_ascii_lowercase());
            }
        }
        for _ in 0..reader.u64()? {
            set.add_range(&uuid, reader.u64()?, reader.u64()?);
        }
    }
    Ok(set)
}

/// The body of MariaDB's GTID_EVENT; the server is the header's.
pub(super) fn decode_mariadb_gtid(server: u32, body: &[u8]) -> Result<MariaDbGtid, DecodeError> {
    let mut reader = Reader::new(body);
    let mut read = || Ok(MariaDbGtid { sequence: reader.u64()?, domain: reader.u32()?, flags: reader.u8()?, server });
    read().during("GTID")
}

/// The body of MariaDB's GTID_LIST_EVENT: the last GTID of every domain and server before this file.
pub(super) fn decode_mariadb_gtid_list(body: &[u8]) -> Result<Vec<MariaDbGtid>, DecodeError> {
    let mut reader = Reader::new(body);
    let mut read = || {
        let count = reader.u32()? & 0x0fff_ffff;
        let mut list = Vec::new();
        for _ in 0..count {
            list.push(MariaDbGtid { domain: reader.u32()?, server: reader.u32()?, sequence: reader.u64()?, flags: 0 });
        }
        Ok(list)
    };
    read().during("GTID list")
}

fn uuid_text(bytes: [u8; 16]) -> String {
    let mut text = String::with_capacity(70);
    for (index, byte) in bytes.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serialized_integers_of_every_width_read_back() {
        let read = |bytes: &[u8]| serialized_unsigned(&mut Reader::new(bytes));
        assert_eq!(read(&[0b0000_1010]), Ok(5));
        assert_eq!(read(&[0b0000_0001, 0x02]), Ok(0x02 << 6));
        assert_eq!(read(&[0xff, 1, 2, 3, 4, 5, 6, 7, 8]), Ok(0x0807_0605_0403_0201));
        assert_eq!(read(&[0x7f, 1, 2, 3, 4, 5, 6, 7]), Ok(0x0007_0605_0403_0201));
        assert_eq!(read(&[0b0000_0001]), Err(Short));
        assert_eq!(serialized_signed(&mut Reader::new(&[0b0000_0110])), Ok(-2));
    }
}

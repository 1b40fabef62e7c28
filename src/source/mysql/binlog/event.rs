//! One event's body to a typed event. The list of types is complete on purpose: what is not here halts.

use super::{
    Flavor,
    error::DecodeError,
    gtid::{self, CommitInfo, Gtid, MariaDbGtid},
    header::{Checksum, Header, verify_checksum},
    payload::TransactionPayload,
    query::{self, Query},
    reader::{During, Reader, Short},
    rows::{self, Layout, Rows, RowsKind},
    table_map::TableMapBody,
};
use crate::model::GtidSet;

/// The numbers of <https://github.com/mysql/mysql-server/blob/trunk/libs/mysql/binlog/event/binlog_event.h> and of
/// MariaDB's `sql/log_event.h`.
pub(super) mod event_type {
    pub(in super::super) const QUERY: u8 = 2;
    pub(in super::super) const STOP: u8 = 3;
    pub(in super::super) const ROTATE: u8 = 4;
    pub(in super::super) const INTVAR: u8 = 5;
    pub(in super::super) const LOAD: u8 = 6;
    pub(in super::super) const CREATE_FILE: u8 = 8;
    pub(in super::super) const NEW_LOAD: u8 = 12;
    pub(in super::super) const RAND: u8 = 13;
    pub(in super::super) const USER_VAR: u8 = 14;
    pub(in super::super) const FORMAT_DESCRIPTION: u8 = 15;
    pub(in super::super) const XID: u8 = 16;
    pub(in super::super) const BEGIN_LOAD_QUERY: u8 = 17;
    pub(in super::super) const EXECUTE_LOAD_QUERY: u8 = 18;
    pub(in super::super) const TABLE_MAP: u8 = 19;
    pub(in super::super) const WRITE_ROWS_V1: u8 = 23;
    pub(in super::super) const UPDATE_ROWS_V1: u8 = 24;
    pub(in super::super) const DELETE_ROWS_V1: u8 = 25;
    pub(in super::super) const INCIDENT: u8 = 26;
    pub(in super::super) const HEARTBEAT: u8 = 27;
    pub(in super::super) const IGNORABLE: u8 = 28;
    pub(in super::super) const ROWS_QUERY: u8 = 29;
    pub(in super::super) const WRITE_ROWS: u8 = 30;
    pub(in super::super) const UPDATE_ROWS: u8 = 31;
    pub(in super::super) const DELETE_ROWS: u8 = 32;
    pub(in super::super) const GTID: u8 = 33;
    pub(in super::super) const ANONYMOUS_GTID: u8 = 34;
    pub(in super::super) const PREVIOUS_GTIDS: u8 = 35;
    pub(in super::super) const TRANSACTION_CONTEXT: u8 = 36;
    pub(in super::super) const VIEW_CHANGE: u8 = 37;
    pub(in super::super) const XA_PREPARE: u8 = 38;
    pub(in super::super) const PARTIAL_UPDATE_ROWS: u8 = 39;
    pub(in super::super) const TRANSACTION_PAYLOAD: u8 = 40;
    pub(in super::super) const HEARTBEAT_V2: u8 = 41;
    pub(in super::super) const GTID_TAGGED: u8 = 42;
    pub(in super::super) const MARIADB_ANNOTATE_ROWS: u8 = 160;
    pub(in super::super) const MARIADB_BINLOG_CHECKPOINT: u8 = 161;
    pub(in super::super) const MARIADB_GTID: u8 = 162;
    pub(in super::super) const MARIADB_GTID_LIST: u8 = 163;
    pub(in super::super) const MARIADB_START_ENCRYPTION: u8 = 164;
    pub(in super::super) const MARIADB_QUERY_COMPRESSED: u8 = 165;
    pub(in super::super) const MARIADB_WRITE_ROWS_COMPRESSED_V1: u8 = 166;
    pub(in super::super) const MARIADB_UPDATE_ROWS_COMPRESSED_V1: u8 = 167;
    pub(in super::super) const MARIADB_DELETE_ROWS_COMPRESSED_V1: u8 = 168;
    pub(in super::super) const MARIADB_WRITE_ROWS_COMPRESSED: u8 = 169;
    pub(in super::super) const MARIADB_UPDATE_ROWS_COMPRESSED: u8 = 170;
    pub(in super::super) const MARIADB_DELETE_ROWS_COMPRESSED: u8 = 171;
}

/// One event of the binlog.
#[derive(Debug, Clone, PartialEq)]
pub enum BinlogEvent<'a> {
    /// The stream goes on at `position` of `file`.
    Rotate {
        position: u64,
        file: String,
    },
    FormatDescription(FormatDescription),
    Gtid(Gtid),
    /// A transaction of a server without GTIDs.
    AnonymousGtid(CommitInfo),
    PreviousGtids(GtidSet),
    MariaDbGtid(MariaDbGtid),
    MariaDbGtidList(Vec<MariaDbGtid>),
    /// BEGIN, COMMIT, DDL; with `binlog_format=ROW` never a row change, which [`super::ddl`] tells.
    Query(Query<'a>),
    /// The transaction is committed.
    Xid(u64),
    /// The XA transaction `xid` was prepared, or, in one phase, committed. Rows of one that was only
    /// prepared are not committed: a later XA COMMIT or XA ROLLBACK query says what became of them.
    XaPrepare {
        one_phase: bool,
        xid: String,
    },
    TableMap(TableMapBody<'a>),
    Rows(Rows<'a>),
    TransactionPayload(TransactionPayload<'a>),
    /// The server is alive, and at this position.
    Heartbeat {
        file: String,
        position: u64,
    },
    /// An event that changes nothing, by its type.
    Ignorable(u8),
}

/// The first event of a file: how the rest of it is to be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FormatDescription {
    pub server_version: String,
    /// What ends every event of the file. None if the byte was not part of the body (see [`decode`]).
    pub checksum: Option<Checksum>,
}

/// Decodes one event.
///
/// `body` is what lies between header and checksum. Of a format description that includes the byte that names
/// the checksum; a body from which a client has already cut that byte is told by the header's `event_size`.
pub fn decode<'a>(flavor: Flavor, header: &Header, body: &'a [u8]) -> Result<BinlogEvent<'a>, DecodeError> {
    use event_type::*;
    match header.event_type {
        QUERY => query::decode(body).map(BinlogEvent::Query),
        ROTATE => decode_rotate(header, body),
        FORMAT_DESCRIPTION => decode_format_description(header, body).map(BinlogEvent::FormatDescription),
        XID => Reader::new(body).u64().during("XID").map(BinlogEvent::Xid),
        TABLE_MAP => TableMapBody::new(flavor, body).map(BinlogEvent::TableMap),
        WRITE_ROWS_V1 => rows::decode(RowsKind::Write, Layout::V1, body).map(BinlogEvent::Rows),
        UPDATE_ROWS_V1 => rows::decode(RowsKind::Update, Layout::V1, body).map(BinlogEvent::Rows),
        DELETE_ROWS_V1 => rows::decode(RowsKind::Delete, Layout::V1, body).map(BinlogEvent::Rows),
        WRITE_ROWS => rows::decode(RowsKind::Write, Layout::V2, body).map(BinlogEvent::Rows),
        UPDATE_ROWS => rows::decode(RowsKind::Update, Layout::V2, body).map(BinlogEvent::Rows),
        DELETE_ROWS => rows::decode(RowsKind::Delete, Layout::V2, body).map(BinlogEvent::Rows),
        HEARTBEAT => Ok(BinlogEvent::Heartbeat { file: file_name(body)?, position: u64::from(header.log_pos) }),
        HEARTBEAT_V2 => decode_heartbeat_v2(header, body),
        GTID => gtid::decode_gtid(body).map(BinlogEvent::Gtid),
        GTID_TAGGED => gtid::decode_tagged_gtid(body).map(BinlogEvent::Gtid),
        ANONYMOUS_GTID => gtid::decode_gtid(body).map(|gtid| BinlogEvent::AnonymousGtid(gtid.commit)),
        PREVIOUS_GTIDS => gtid::decode_previous_gtids(body).map(BinlogEvent::PreviousGtids),
        XA_PREPARE => decode_xa_prepare(body).during("XA transaction id"),
        TRANSACTION_PAYLOAD => TransactionPayload::decode(body).map(BinlogEvent::TransactionPayload),
        // What a statement has to know beforehand: the statement, which follows, is judged.
        INTVAR | RAND | USER_VAR | STOP | IGNORABLE | ROWS_QUERY | TRANSACTION_CONTEXT | VIEW_CHANGE => {
            Ok(BinlogEvent::Ignorable(header.event_type))
        }
        INCIDENT => Err(incident(body)),
        PARTIAL_UPDATE_ROWS => Err(DecodeError::Refused {
            what: "partial JSON updates",
            remedy: "set binlog_row_value_options='' on the source",
        }),
        LOAD | CREATE_FILE | NEW_LOAD | BEGIN_LOAD_QUERY | EXECUTE_LOAD_QUERY => Err(DecodeError::Refused {
            what: "changes as statements",
            remedy: "set binlog_format=ROW on the source, for every session",
        }),
        other => match flavor {
            Flavor::Mariadb => decode_mariadb(header, body),
            Flavor::Mysql if header.is_ignorable() => Ok(BinlogEvent::Ignorable(other)),
            Flavor::Mysql => Err(DecodeError::UnknownEvent { event_type: other }),
        },
    }
}

fn decode_mariadb<'a>(header: &Header, body: &'a [u8]) -> Result<BinlogEvent<'a>, DecodeError> {
    use event_type::*;
    let compressed = |kind, layout| rows::decode_compressed(kind, layout, body).map(BinlogEvent::Rows);
    match header.event_type {
        MARIADB_GTID => gtid::decode_mariadb_gtid(header.server_id, body).map(BinlogEvent::MariaDbGtid),
        MARIADB_GTID_LIST => gtid::decode_mariadb_gtid_list(body).map(BinlogEvent::MariaDbGtidList),
        MARIADB_QUERY_COMPRESSED => query::decode_compressed(body).map(BinlogEvent::Query),
        MARIADB_WRITE_ROWS_COMPRESSED_V1 => compressed(RowsKind::Write, Layout::V1),
        MARIADB_UPDATE_ROWS_COMPRESSED_V1 => compressed(RowsKind::Update, Layout::V1),
        MARIADB_DELETE_ROWS_COMPRESSED_V1 => compressed(RowsKind::Delete, Layout::V1),
        MARIADB_WRITE_ROWS_COMPRESSED => compressed(RowsKind::Write, Layout::V2),
        MARIADB_UPDATE_ROWS_COMPRESSED => compressed(RowsKind::Update, Layout::V2),
        MARIADB_DELETE_ROWS_COMPRESSED => compressed(RowsKind::Delete, Layout::V2),
        // The server decrypts what it sends, so that the start of encryption means nothing to a client.
        MARIADB_ANNOTATE_ROWS | MARIADB_BINLOG_CHECKPOINT | MARIADB_START_ENCRYPTION => {
            Ok(BinlogEvent::Ignorable(header.event_type))
        }
        other if header.is_ignorable() => Ok(BinlogEvent::Ignorable(other)),
        other => Err(DecodeError::UnknownEvent { event_type: other }),
    }
}

fn decode_rotate<'a>(header: &Header, body: &[u8]) -> Result<BinlogEvent<'a>, DecodeError> {
    // The ROTATE that a server makes to begin a stream comes before the format description that tells whether
    // there are checksums; MariaDB's has one. Its own bytes prove it.
    let body = match body.split_last_chunk::<4>() {
        Some((body, stored))
            if header.is_artificial() && verify_checksum(header, body, u32::from_le_bytes(*stored)).is_ok() =>
        {
            body
        }
        Some(_) | None => body,
    };
    let mut reader = Reader::new(body);
    let position = reader.u64().during("position")?;
    Ok(BinlogEvent::Rotate { position, file: file_name(reader.rest())? })
}

/// A binlog file's name. It is the operator's to choose, within what a file system and a prompt can show.
fn file_name(bytes: &[u8]) -> Result<String, DecodeError> {
    let bytes = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    let text = str::from_utf8(bytes).map_err(|_| DecodeError::Malformed { what: "file name" })?;
    if text.is_empty() || text.chars().any(char::is_control) {
        return Err(DecodeError::Malformed { what: "file name" });
    }
    Ok(text.to_owned())
}

fn decode_format_description(header: &Header, body: &[u8]) -> Result<FormatDescription, DecodeError> {
    const WHAT: &str = "format description";
    let mut reader = Reader::new(body);
    let binlog_version = reader.u16().during(WHAT)?;
    let server_version = reader.bytes(50).during(WHAT)?;
    reader.u32().during(WHAT)?;
    let header_length = reader.u8().during(WHAT)?;
    if binlog_version != 4 || usize::from(header_length) != Header::LENGTH {
        return Err(DecodeError::Refused {
            what: "a binlog of a format before MySQL 5.0",
            remedy: "upgrade the source to MySQL 5.7, MariaDB 10.5 or later",
        });
    }
    let server_version = server_version.split(|byte| *byte == 0).next().unwrap_or_default();
    let server_version = String::from_utf8_lossy(server_version).into_owned();
    let described = usize::try_from(header.event_size).unwrap_or_default();
    let checksum_length = 4;
    let with_algorithm = described == Header::LENGTH + body.len() + checksum_length;
    let checksum = match body.last() {
        Some(byte) if with_algorithm => Some(Checksum::from_byte(*byte)?),
        Some(_) | None => None,
    };
    Ok(FormatDescription { server_version, checksum })
}

fn decode_heartbeat_v2<'a>(header: &Header, body: &[u8]) -> Result<BinlogEvent<'a>, DecodeError> {
    const END: u64 = 0;
    const FILE: u64 = 1;
    const POSITION: u64 = 2;
    let mut reader = Reader::new(body);
    let (mut file, mut position) = (None, u64::from(header.log_pos));
    loop {
        let field = reader.packed().during("heartbeat")?;
        if field == END {
            break;
        }
        let value = reader.packed_bytes().during("heartbeat")?;
        match field {
            FILE => file = Some(file_name(value)?),
            POSITION => position = Reader::new(value).packed().during("heartbeat")?,
            _ => {}
        }
    }
    let file = file.ok_or(DecodeError::Malformed { what: "heartbeat" })?;
    Ok(BinlogEvent::Heartbeat { file, position })
}

fn decode_xa_prepare<'a>(body: &[u8]) -> Result<BinlogEvent<'a>, Short> {
    let mut reader = Reader::new(body);
    let one_phase = reader.u8()? != 0;
    let format = reader.u32()?;
    let global = usize::try_from(reader.u32()?).map_err(|_| Short)?;
    let branch = usize::try_from(reader.u32()?).map_err(|_| Short)?;
    let (global, branch) = (reader.bytes(global)?, reader.bytes(branch)?);
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    // As MySQL spells it in its own XA COMMIT query events.
    Ok(BinlogEvent::XaPrepare { one_phase, xid: format!("X'{}',X'{}',{format}", hex(global), hex(branch)) })
}

fn incident(body: &[u8]) -> DecodeError {
    let mut reader = Reader::new(body);
    let number = reader.u16().unwrap_or_default();
    let text = reader.short_bytes().map(String::from_utf8_lossy).unwrap_or_default();
    let shown: String = text.chars().filter(|c| !c.is_control()).collect();
    DecodeError::Incident { message: format!("incident {number}: {shown}") }
}

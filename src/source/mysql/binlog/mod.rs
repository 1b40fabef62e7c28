//! The pure binlog decoder: bytes of one event in, a typed event out.
//!
//! What enters is one event as the server sent it: the common header, parsed by [`Header::parse`], and the body
//! without its trailing checksum. What leaves is a [`BinlogEvent`]; rows leave through a [`RowDecoder`], one row at a
//! time, spelled as `model::value` says. The invariant: every byte sequence gives a value or an error, never a
//! panic and never a guess, and nothing is allocated by a length that the data only claims. What this version of
//! the decoder does not know is an error as well, because a skipped event is a lost row.
//!
//! Deliberately absent: connections, positions, the choice of tables, schema history, versions. The reader
//! (`capture::mysql`) has those. The formats are those of
//! <https://dev.mysql.com/doc/dev/mysql-server/latest/page_protocol_replication_binlog_event.html> and
//! <https://mariadb.com/kb/en/replication-protocol/>.

mod cell;
mod charset;
mod charset_runs;
mod charset_tables;
mod collation;
pub(crate) mod ddl;
mod decimal;
mod error;
mod event;
#[doc(hidden)]
pub mod fuzz;
mod gtid;
mod header;
mod json;
mod json_number;
mod network;
mod payload;
mod query;
mod reader;
mod row_decoder;
mod rows;
mod schema_match;
mod source_type;
mod table_map;
mod temporal;
mod wire_type;

pub use error::{DecodeError, SchemaMismatch, ValueError};
pub use event::{BinlogEvent, FormatDescription, decode};
pub use gtid::{CommitInfo, Gtid, MariaDbGtid};
pub use header::{Checksum, Frame, Header, verify_checksum};
pub use payload::{InnerEvent, InnerEvents, TransactionPayload};
pub use query::{Query, SqlMode};
pub use row_decoder::{RowDecoder, RowImages};
pub use rows::{Rows, RowsKind, count_rows, first_text};
pub use table_map::{ColumnMeta, OptionalMetadata, TableMap, TableMapBody};
pub use wire_type::WireType;

pub use crate::model::{Flavor, ZeroDates};

/// What the configuration, and the server's release, say about values that can be spelled in several ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DecodeOptions {
    pub zero_dates: ZeroDates,
    pub json_doubles: JsonDoubles,
}

/// How whole doubles inside JSON are spelled, so that a row from the log equals the same row read by a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum JsonDoubles {
    /// `1.0`, as MySQL 8.0 and later do.
    #[default]
    Marked,
    /// `1`, as MySQL 5.7 does.
    Bare,
}

#[cfg(test)]
mod tests;

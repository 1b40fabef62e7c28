//! Why bytes are no event, no row, or not a row of the table that the catalog describes.
//!
//! Every variant halts the source: skipping what cannot be read loses rows. Messages never carry row values.

use crate::model::{Disposition, Problem};

/// An event that cannot be decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.problem())]
pub enum DecodeError {
    Truncated { what: &'static str },
    Malformed { what: &'static str },
    Checksum { stored: u32, computed: u32 },
    UnknownEvent { event_type: u8 },
    Refused { what: &'static str, remedy: &'static str },
    Incident { message: String },
    TooLarge { what: &'static str, bytes: u64, bytes_max: u64 },
    TableId { rows: u64, map: u64 },
    ColumnCount { rows: u64, map: usize },
    PartialImage { column: usize },
    Value { column: usize, name: String, error: ValueError },
}

/// A column value that cannot be decoded. Small, because it is returned once for every cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.problem())]
pub enum ValueError {
    Truncated,
    Malformed(&'static str),
    Undecodable(&'static str),
    ZeroDate,
    JsonDepth(usize),
}

impl ValueError {
    /// What is wrong, and what to do about it.
    pub fn problem(&self) -> Problem {
        match self {
            ValueError::Truncated => Problem::new(
                "the row ends inside the value",
                "the binlog is corrupt or the table map is not this table's",
            ),
            ValueError::Malformed(told) => Problem::new(
                format!("the {told} is malformed"),
                "the binlog is corrupt or the table map is not this table's",
            ),
            ValueError::Undecodable(told) => Problem::new(
                format!("the bytes are no {told} text"),
                "correct the row at the source (CONVERT the column through BINARY)",
            ),
            ValueError::ZeroDate => Problem::new(
                "a zero or partial date, and zero_dates is `error`",
                "correct the row or choose another zero_dates",
            ),
            ValueError::JsonDepth(told) => Problem::new(
                format!("JSON nested deeper than {told} levels, which no MySQL server writes"),
                "the binlog is corrupt",
            ),
        }
    }
}

/// The event's table map is not of the table that the catalog describes: the schema is to be read again for this
/// point of the log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SchemaMismatch {
    #[error("{table} has {event} columns in the binlog and {catalog} in the catalog")]
    ColumnCount { table: String, event: usize, catalog: usize },
    #[error("column {column} (counted from 1) of {table} is `{event}` in the binlog and `{catalog}` in the catalog")]
    ColumnName { table: String, column: usize, event: String, catalog: String },
    #[error("column `{column}` of {table} is {event} in the binlog and `{catalog}` in the catalog")]
    ColumnType { table: String, column: String, event: String, catalog: String },
    #[error(
        "column `{column}` of {table} has character set `{charset}`, which cannot be decoded; convert the column to utf8mb4, or leave the table out"
    )]
    Charset { table: String, column: String, charset: String },
    #[error(
        "column `{column}` of {table} is `{catalog}` in MariaDB's temporal format of before 10.1; rewrite the table with mysql56_temporal_format=ON and ALTER TABLE … FORCE"
    )]
    OldTemporalFormat { table: String, column: String, catalog: String },
}

impl DecodeError {
    /// What is wrong, and what to do about it.
    pub fn problem(&self) -> Problem {
        match self {
            DecodeError::Truncated { what } => Problem::new(
                format!("the binlog event ends inside its {what}"),
                "check the source's binlog file with mysqlbinlog --verify-binlog-checksum",
            ),
            DecodeError::Malformed { what } => Problem::new(
                format!("the binlog event's {what} is malformed"),
                "check the source's binlog file with mysqlbinlog --verify-binlog-checksum",
            ),
            DecodeError::Checksum { stored, computed } => Problem::new(
                format!("the binlog event says checksum {stored:08x} and its bytes have {computed:08x}"),
                "the binlog or the connection is corrupt, check the source's disk and read from another replica",
            ),
            DecodeError::UnknownEvent { event_type } => Problem::new(
                format!("binlog event type {event_type} is unknown to this release"),
                "upgrade cutover, or report the server's version",
            ),
            DecodeError::Refused { what, remedy } => {
                Problem::new(format!("the source wrote {what}, which cannot be followed"), *remedy)
            }
            DecodeError::Incident { message } => Problem::new(
                format!("the source reports a binlog incident ({message}): events may be missing"),
                "find out why in its error log",
            ),
            DecodeError::TooLarge { what, bytes, bytes_max } => Problem::new(
                format!("the binlog event's {what} has {bytes} bytes, more than the {bytes_max} that are accepted"),
                "raise the issue with the server's version",
            ),
            DecodeError::TableId { rows, map } => Problem::new(
                format!("the rows event is for table id {rows} and the table map for {map}"),
                "the events are out of order",
            ),
            DecodeError::ColumnCount { rows, map } => Problem::new(
                format!("the rows event has {rows} columns and its table map {map}"),
                "the events do not belong together",
            ),
            DecodeError::PartialImage { column } => Problem::new(
                format!("the row image lacks column {column} (counted from 1)"),
                "set binlog_row_image=FULL on the source",
            ),
            DecodeError::Value { column, name, error } => error.problem().at(format_args!("column {column} `{name}`")),
        }
    }

    /// What the reader does next: always halt. A decoder's error does not go away by trying again.
    pub fn disposition(&self) -> Disposition {
        Disposition::Halt
    }
}

//! Changes that a connector of Debezium wrote, turned into records of ours.
//!
//! What enters is the key and the value of a record of a Debezium topic, as Kafka Connect's JSON converter writes them, with
//! or without their schemas. What leaves is a row of ours: the row's key, an envelope that holds the columns
//! that are known, and a version. All of it is a pure function of bytes and of what was seen before: no IO, and no panic on
//! any input.
//!
//! | module | is |
//! |---|---|
//! | `message` | the fields of a record, none of them understood |
//! | `order` | the version of a change, and whether it was seen before |
//! | `shape` | a table's columns and how their values are spelled |
//! | `connect` | what Kafka Connect's schemas say of columns |
//! | `values` | one value, from Debezium's spelling to ours |
//!
//! **Invariant:** a value whose meaning cannot be known is refused, and never guessed: a decimal as base64 without its scale, a time as a
//! number without its unit, what stands for an unchanged value.

pub mod config;
mod connect;
#[doc(hidden)]
pub mod fuzz;
mod message;
mod order;
mod shape;
#[cfg(test)]
mod tests;
mod values;

pub use config::DebeziumConfig;
pub use message::{Cell, Change, Message, Object, Source, message};
pub use order::{Order, Verdict};
pub use shape::{Known, Sample, Shape};

use super::envelope::EnvelopeError;
use crate::model::Disposition;

/// Why a record cannot be applied.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DebeziumError {
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    #[error(
        "the record is no change event of Debezium: it has no `op` and `source`; take transforms that unwrap or change the \
         envelope (ExtractNewRecordState) off the connector{NEW_TOPICS}"
    )]
    NoEnvelope,
    #[error(
        "the record comes from Debezium's connector for `{connector}`; mysql, mariadb and postgresql are known here"
    )]
    Connector { connector: String },
    #[error("the record's `source` has no `{field}`; use a connector of Debezium 2.5 or later{NEW_TOPICS}")]
    NoSourceField { field: &'static str },
    #[error(
        "the record has no key, so that its row cannot be told from others; give the table a primary key or name its columns in \
         message.key.columns of the connector{NEW_TOPICS}"
    )]
    NoKey,
    #[error(
        "the record's key has other columns than those of its table; a key that changes needs new topics{NEW_TOPICS}"
    )]
    OtherKey,
    #[error(
        "the record's key column `{column}` is null or missing in the row; message.key.columns must name columns that are never null"
    )]
    NullKey { column: String },
    #[error(
        "an update changes the row's key: a connector sends that as a delete and a create; take transforms that change the key off \
         the connector{NEW_TOPICS}"
    )]
    KeyChanged,
    #[error(
        "the record has `op` {op} without the row's `{image}` image, which the transform's filter or key needs; {IDENTITY}"
    )]
    NoImage { op: char, image: &'static str },
    #[error(
        "column `{column}` was not changed and its value is not in the record, but in the table's TOAST storage; {IDENTITY}"
    )]
    Unavailable { column: String },
    #[error(
        "the record lacks column `{column}`, which newer ones have, or had: if it was dropped, change the transform and start again; if it was \
         added, let the connector write new topics that begin with a snapshot, or take the column out until what stands before is applied"
    )]
    MissingColumn { column: String },
    #[error("column `{column}` holds a structure, which no column type here can be; leave it out of the transform")]
    Nested { column: String },
    #[error(
        "column `{column}` is a decimal and its value is none; set decimal.handling.mode=string on the connector, or write \
         schemas{NEW_TOPICS}"
    )]
    Decimal { column: String },
    #[error(
        "column `{column}` was rounded by decimal.handling.mode=double; set it to string or precise on the connector{NEW_TOPICS}"
    )]
    Rounded { column: String },
    #[error(
        "column `{column}` is a time and its value is a number without a unit; set time.precision.mode=isostring on the \
         connector, or write schemas{NEW_TOPICS}"
    )]
    Time { column: String },
    #[error(
        "column `{column}` is an interval and its value is a number that months were lost in; set interval.handling.mode=string on \
         the connector{NEW_TOPICS}"
    )]
    Interval { column: String },
    #[error(
        "column `{column}` holds bytes and its value is no base64; set binary.handling.mode=bytes or base64 on the \
         connector{NEW_TOPICS}"
    )]
    Bytes { column: String },
    #[error("column `{column}` holds a value that its own schema does not allow")]
    Value { column: String },
    #[error("the record's schema cannot be read: {reason}")]
    Schema { reason: String },
    #[error(
        "the records come from two connectors, `{first}` and `{second}`, whose changes have no order; let each write topics of its own, \
         and run a pipeline for each"
    )]
    TwoConnectors { first: String, second: String },
    #[error(
        "the table was emptied (TRUNCATE), which stands in one partition of several and so has no order; set skipped.operations=t on \
         the connector and delete the rows, or use topics with one partition"
    )]
    Truncated,
}

const NEW_TOPICS: &str = ", and let it write new topics (another topic.prefix) that begin with a snapshot";
const IDENTITY: &str = "run ALTER TABLE … REPLICA IDENTITY FULL at the source, and let the connector write the row again (an incremental \
                        snapshot into new topics)";

impl DebeziumError {
    /// A record that cannot be understood is never skipped: its row would be lost.
    pub fn disposition(&self) -> Disposition {
        Disposition::Halt
    }
}

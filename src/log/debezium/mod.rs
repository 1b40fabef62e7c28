//! Changes that a connector of Debezium wrote, turned into records of ours.
//!
//! What enters is the key and the value of a record of a Debezium topic, as Kafka Connect's JSON converter writes them,
//! with or without their schemas. What leaves is a row of ours: the row's key, an envelope that holds the columns
//! that are known, and a version. All of it is a pure function of bytes and of what was seen before: no IO, and no
//! panic on any input.
//!
//! | module | is |
//! |---|---|
//! | `message` | the fields of a record, none of them understood |
//! | `order` | the version of a change, and whether it was seen before |
//! | `shape` | a table's columns and how their values are spelled |
//! | `connect` | what Kafka Connect's schemas say of columns |
//! | `values` | one value, from Debezium's spelling to ours |
//!
//! **Invariant:** a value whose meaning cannot be known is refused, and never guessed: a decimal as base64 without its
//! scale, a time as a number without its unit, what stands for an unchanged value.

pub(crate) mod config;
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
pub use message::{Cell, DebeziumChange, DebeziumMessage, Object, SourceBlock, message};
pub use order::{Order, Verdict};
pub use shape::{Known, RecordShape, Sample};

use std::borrow::Cow;

use super::envelope::EnvelopeError;
use crate::model::{Disposition, Problem};

/// Why a record cannot be applied.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{}", self.problem())]
pub enum DebeziumError {
    /// It is no envelope at all.
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    /// The connector sends rows, and no envelopes around them.
    NoEnvelope,
    /// A connector whose positions have no known order.
    Connector { connector: String },
    /// What orders the change is missing.
    NoSourceField { field: &'static str },
    /// Rows cannot be told apart.
    NoKey,
    /// The key changed at some time.
    OtherKey,
    /// A row that no key finds.
    NullKey { column: String },
    /// A transform has made one record of two.
    KeyChanged,
    /// An image of the row is missing.
    NoImage { op: char, image: &'static str },
    /// PostgreSQL did not log the value.
    Unavailable { column: String },
    /// The columns changed at some time.
    MissingColumn { column: String },
    /// A value with values inside.
    Nested { column: String },
    /// A decimal without its scale.
    Decimal { column: String },
    /// A decimal as a floating point number.
    Rounded { column: String },
    /// A time without its unit.
    Time { column: String },
    /// An interval in microseconds.
    Interval { column: String },
    /// Bytes in no known spelling.
    Bytes { column: String },
    /// A value that is none of its type.
    Value { column: String },
    /// Kafka Connect's schema is not readable.
    Schema { reason: String },
    /// Two orders that nothing joins.
    TwoConnectors { first: String, second: String },
    /// An order that only one of several partitions has.
    Truncated,
}

const NEW_TOPICS: &str = ", and let it write new topics (another topic.prefix) that begin with a snapshot";
const IDENTITY: &str = "run ALTER TABLE … REPLICA IDENTITY FULL at the source, and let the connector write the row again (an incremental \
                        snapshot into new topics)";

impl DebeziumError {
    /// What is wrong, and what to do about it.
    pub fn problem(&self) -> Problem {
        Problem::new(self.what(), self.fix())
    }

    /// What is wrong.
    pub(super) fn what(&self) -> String {
        match self {
            DebeziumError::Envelope(error) => error.problem().what,
            DebeziumError::NoEnvelope => {
                "the record is no change event of Debezium: it has no `op` and `source`".to_owned()
            }
            DebeziumError::Connector { connector } => {
                format!("the record comes from Debezium's connector for `{connector}`")
            }
            DebeziumError::NoSourceField { field } => format!("the record's `source` has no `{field}`"),
            DebeziumError::NoKey => "the record has no key, so that its row cannot be told from others".to_owned(),
            DebeziumError::OtherKey => "the record's key has other columns than those of its table".to_owned(),
            DebeziumError::NullKey { column } => {
                format!("the record's key column `{column}` is null or missing in the row")
            }
            DebeziumError::KeyChanged => {
                "an update changes the row's key: a connector sends that as a delete and a create".to_owned()
            }
            DebeziumError::NoImage { op, image } => format!(
                "the record has `op` {op} without the row's `{image}` image, which the transform's filter or \
                 key needs"
            ),
            DebeziumError::Unavailable { column } => format!(
                "column `{column}` was not changed and its value is not in the record, but in the table's \
                 TOAST storage"
            ),
            DebeziumError::MissingColumn { column } => format!(
                "the record lacks column `{column}`, which newer ones have, or had: if it was dropped, change \
                 the transform and start again"
            ),
            DebeziumError::Nested { column } => {
                format!("column `{column}` holds a structure, which no column type here can be")
            }
            DebeziumError::Decimal { column } => format!("column `{column}` is a decimal and its value is none"),
            DebeziumError::Rounded { column } => {
                format!("column `{column}` was rounded by decimal.handling.mode=double")
            }
            DebeziumError::Time { column } => {
                format!("column `{column}` is a time and its value is a number without a unit")
            }
            DebeziumError::Interval { column } => {
                format!("column `{column}` is an interval and its value is a number that months were lost in")
            }
            DebeziumError::Bytes { column } => format!("column `{column}` holds bytes and its value is no base64"),
            DebeziumError::Value { column } => {
                format!("column `{column}` holds a value that its own schema does not allow")
            }
            DebeziumError::Schema { reason } => format!("the record's schema cannot be read: {reason}"),
            DebeziumError::TwoConnectors { first, second } => {
                format!("the records come from two connectors, `{first}` and `{second}`, whose changes have no order")
            }
            DebeziumError::Truncated => {
                "the table was emptied (TRUNCATE), which stands in one partition of several and so has no order"
                    .to_owned()
            }
        }
    }

    /// What to do about it; empty where that is not known, or where it passes by itself.
    pub(super) fn fix(&self) -> Cow<'static, str> {
        match self {
            DebeziumError::Envelope(error) => error.problem().fix.into(),
            DebeziumError::NoEnvelope => format!(
                "take transforms that unwrap or change the envelope (ExtractNewRecordState) off the \
                 connector{NEW_TOPICS}"
            )
            .into(),
            DebeziumError::Connector { .. } => "mysql, mariadb and postgresql are known here".into(),
            DebeziumError::NoSourceField { .. } => {
                format!("use a connector of Debezium 2.5 or later{NEW_TOPICS}").into()
            }
            DebeziumError::NoKey => format!(
                "give the table a primary key or name its columns in message.key.columns of the \
                 connector{NEW_TOPICS}"
            )
            .into(),
            DebeziumError::OtherKey => format!("a key that changes needs new topics{NEW_TOPICS}").into(),
            DebeziumError::NullKey { .. } => "message.key.columns must name columns that are never null".into(),
            DebeziumError::KeyChanged => {
                format!("take transforms that change the key off the connector{NEW_TOPICS}").into()
            }
            DebeziumError::NoImage { .. } | DebeziumError::Unavailable { .. } => IDENTITY.into(),
            DebeziumError::MissingColumn { .. } => {
                "if it was added, let the connector write new topics that begin with a snapshot, or take the \
                 column out until what stands before is applied"
                    .into()
            }
            DebeziumError::Nested { .. } => "leave it out of the transform".into(),
            DebeziumError::Decimal { .. } => {
                format!("set decimal.handling.mode=string on the connector, or write schemas{NEW_TOPICS}").into()
            }
            DebeziumError::Rounded { .. } => format!("set it to string or precise on the connector{NEW_TOPICS}").into(),
            DebeziumError::Time { .. } => {
                format!("set time.precision.mode=isostring on the connector, or write schemas{NEW_TOPICS}").into()
            }
            DebeziumError::Interval { .. } => {
                format!("set interval.handling.mode=string on the connector{NEW_TOPICS}").into()
            }
            DebeziumError::Bytes { .. } => {
                format!("set binary.handling.mode=bytes or base64 on the connector{NEW_TOPICS}").into()
            }
            DebeziumError::Value { .. } | DebeziumError::Schema { .. } => "".into(),
            DebeziumError::TwoConnectors { .. } => {
                "let each write topics of its own, and run a pipeline for each".into()
            }
            DebeziumError::Truncated => {
                "set skipped.operations=t on the connector and delete the rows, or use topics with one \
                 partition"
                    .into()
            }
        }
    }

    /// A record that cannot be understood is never skipped: its row would be lost.
    pub fn disposition(&self) -> Disposition {
        Disposition::Halt
    }
}

//! The wire format of a row: Debezium's envelope as schemaless JSON, and the row's key.
//!
//! What enters is a [`Change`](crate::model::Change) or the bytes of an envelope; what leaves is the bytes, or the
//! row's cells as text. Encoding and decoding keep every value exactly: integers and floats are JSON numbers
//! that are copied digit by digit and never pass through a float, text is escaped only where JSON asks for it,
//! bytes are base64. Both are on the hot path, so they are written by hand, to the byte; neither panics
//! on any input. Deliberately absent: what the envelope lacks (version, schema id, transaction
//! end), which is in the record's headers, and any knowledge of what a cell's text means.

mod decode;
mod encode;
#[doc(hidden)]
pub mod fuzz;
pub(in crate::log) mod json;
mod key;
mod splice;
#[cfg(test)]
mod tests;

pub use decode::{Decoded, Row, cells};
pub use encode::{Encoded, Encoder, key_bytes, object, partition};
pub use key::{key_value, key_values};
pub use splice::{Renewed, deletion, renewed};

use crate::model::{Disposition, Problem, TableName};

/// Why a change could not be encoded, or an envelope not be decoded.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{}", self.problem())]
pub enum EnvelopeError {
    NotUtf8 { at: usize },
    Malformed { at: usize, expected: &'static str },
    NoOperation,
    UnknownOperation,
    NoImage { op: char, image: &'static str },
    MissingColumn { table: TableName, column: String },
    RepeatedColumn { table: TableName, column: String },
    NestedColumn { table: TableName, column: String },
    Shape { table: TableName, columns: usize, key: usize, values: usize },
}

/// What an operator does about a record that no release of cutover wrote.
const REWRITE: &str = "if another program writes to this topic, let it write whole Debezium envelopes; else copy the \
                       table again with `cutover resnapshot`";

impl EnvelopeError {
    /// What is wrong, and what to do about it.
    pub fn problem(&self) -> Problem {
        match self {
            EnvelopeError::NotUtf8 { at } => {
                Problem::new(format!("the record's envelope is not UTF-8 at byte {at}"), REWRITE)
            }
            EnvelopeError::Malformed { at, expected } => Problem::new(
                format!("the record's envelope is malformed at byte {at}, where there should be {expected}"),
                REWRITE,
            ),
            EnvelopeError::NoOperation => Problem::new("the record's envelope has no `op`", REWRITE),
            EnvelopeError::UnknownOperation => {
                Problem::new("the record's envelope has an `op` that is none of c, u, d, r and t", REWRITE)
            }
            EnvelopeError::NoImage { op, image } => {
                Problem::new(format!("the record's envelope has `op` {op} without the row's `{image}` image"), REWRITE)
            }
            EnvelopeError::MissingColumn { table, column } => Problem::new(
                format!("the record's image of {table} lacks column `{column}`"),
                format!("images must be full: {REWRITE}"),
            ),
            EnvelopeError::RepeatedColumn { table, column } => {
                Problem::new(format!("the record's image of {table} has column `{column}` twice"), REWRITE)
            }
            EnvelopeError::NestedColumn { table, column } => Problem::new(
                format!("the record's image of {table} holds an object or a list in column `{column}`"),
                REWRITE,
            ),
            EnvelopeError::Shape { table, columns, key, values } => Problem::new(
                format!("a change of {table} has {values} values for {columns} columns and a key of {key} columns"),
                "this is a bug in capture: report it, and copy the table again with `cutover resnapshot`",
            ),
        }
    }

    /// A record that does not decode is never skipped: its row would be lost.
    pub fn disposition(&self) -> Disposition {
        match self {
            EnvelopeError::NotUtf8 { .. }
            | EnvelopeError::Malformed { .. }
            | EnvelopeError::NoOperation
            | EnvelopeError::UnknownOperation
            | EnvelopeError::NoImage { .. }
            | EnvelopeError::MissingColumn { .. }
            | EnvelopeError::RepeatedColumn { .. }
            | EnvelopeError::NestedColumn { .. }
            | EnvelopeError::Shape { .. } => Disposition::Halt,
        }
    }
}

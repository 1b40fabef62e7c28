//! Why bytes are no message of the stream.
//!
//! Every variant halts the source: skipping what cannot be read loses rows. Messages never carry row values.

use crate::model::Problem;

/// A message that cannot be decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.problem())]
pub enum DecodeError {
    Truncated { what: &'static str },
    Malformed { what: &'static str },
    Unknown { kind: u8 },
}

impl DecodeError {
    /// What is wrong, and what to do about it.
    pub fn problem(&self) -> Problem {
        match self {
            DecodeError::Truncated { what } => Problem::new(
                format!("the replication message ends inside its {what}"),
                "the connection is corrupt, or the server speaks another protocol",
            ),
            DecodeError::Malformed { what } => Problem::new(
                format!("the replication message's {what} is malformed"),
                "the connection is corrupt, or the server speaks another protocol",
            ),
            DecodeError::Unknown { kind } => Problem::new(
                format!("replication message type {kind} is unknown to this release"),
                "upgrade cutover, or report the server's version",
            ),
        }
    }
}

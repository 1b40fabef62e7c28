//! Why bytes are no message of the stream.
//!
//! Every variant halts the source: skipping what cannot be read loses rows. Messages never carry row values.

/// A message that cannot be decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error(
        "the replication message ends inside its {what}; the connection is corrupt, or the server speaks another protocol"
    )]
    Truncated { what: &'static str },
    #[error(
        "the replication message's {what} is malformed; the connection is corrupt, or the server speaks another protocol"
    )]
    Malformed { what: &'static str },
    #[error(
        "replication message type {kind} is unknown to this release; upgrade cutover, or report the server's version"
    )]
    Unknown { kind: u8 },
}

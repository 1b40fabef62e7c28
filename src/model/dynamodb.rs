//! Positions in DynamoDB's streams.
//!
//! A table's stream is a tree of shards: each holds the changes of a part of the keys, in their order, for at most a
//! day, and is closed within hours, its children going on from where it ended. There is no order between shards, and so
//! no one place: a position says of each shard how far it was read.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::version::Version;

/// The column that is true in the last image of an item that the service's Time to Live has removed, and false in every
/// other.
pub const TTL_COLUMN: &str = "cutover_ttl_delete";

/// How far the streams of a pipeline's tables have been read.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DynamoPosition {
    /// Every change that is still to be read gets a version above this, whatever its shard.
    pub floor: Version,
    /// Everything that was committed up to this time (µs since the Unix epoch) has been read, as far as the service's
    /// own times tell.
    pub read_to_us: i64,
    /// By table.
    pub streams: BTreeMap<String, StreamPosition>,
}

/// How far one table's stream has been read.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct StreamPosition {
    /// A stream that is turned off and on again is another one, with a gap before it.
    pub arn: String,
    /// Changes from before this time (µs since the Unix epoch) are left out: the table was copied later than that.
    pub begin_us: i64,
    /// The shards that are being read, and those that were read whole and whose children have not been seen yet.
    pub shards: BTreeMap<String, ShardPosition>,
}

/// How far a shard has been read.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ShardPosition {
    /// The last record's sequence number; none before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence: Option<String>,
    /// The version of that record, or what the shard's parents had come to.
    pub clock: Version,
    /// Whether it was closed and has been read to its end.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub drained: bool,
}

impl DynamoPosition {
    /// The position of somebody who has read everything up to a time, for comparing with.
    pub fn at(read_to_us: i64) -> Self {
        DynamoPosition { read_to_us, ..DynamoPosition::default() }
    }

    /// Whether everything up to the other position's time has been read.
    pub fn covers(&self, end: &Self) -> bool {
        self.read_to_us >= end.read_to_us
    }
}

//! The version of each change of a partition, in the order in which the connector sent them.
//!
//! A connector keeps all changes of a row in one partition and sends them in the order of the source's log, snapshot
//! rows included; after it was killed it sends again what it had sent since it last noted its progress. So versions are
//! counted along the partition, by the same hybrid clock as everywhere, and what was seen before has none: it is passed
//! over (docs/adr/0011-debezium-versions.md).

use super::{DebeziumError, SourceBlock};
use crate::model::{DebeziumPosition, Version};

/// What becomes of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is new, and has this version.
    New(Version),
    /// The connector has sent it before.
    Seen,
}

/// A partition's clock, and what was seen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Order {
    pub clock: Version,
    pub seen: DebeziumPosition,
}

impl Order {
    /// Whether this is of a snapshot behind changes: what was deleted since the last one that the connector sent may be
    /// in neither.
    pub fn is_second_snapshot(&self, source: &SourceBlock<'_>) -> bool {
        source.is_snapshot && !source.is_incremental && self.seen.newest_us > 0
    }

    /// Judges the partition's next change, at `now_us`. A commit time in the future raises no version above it.
    ///
    /// # Errors
    /// When another connector has written to the partition before.
    pub fn admit(&mut self, source: &SourceBlock<'_>, now_us: i64) -> Result<Verdict, DebeziumError> {
        if self.seen.connector != source.name {
            if !self.seen.connector.is_empty() {
                let (first, second) = (self.seen.connector.clone(), source.name.clone().into_owned());
                return Err(DebeziumError::TwoConnectors { first, second });
            }
            self.seen.connector = source.name.clone().into_owned();
        }
        // A snapshot's rows are read after all that stands before them, and are no change: what the connector sends
        // again is not told by them.
        if !source.is_snapshot {
            let transaction = source.transaction.as_ref().map(|(server, number)| (server.as_ref(), *number));
            if self.seen.has_seen(source.place.as_ref(), source.commit_us, transaction) {
                return Ok(Verdict::Seen);
            }
            self.seen.see(source.place.clone(), source.commit_us, transaction);
        }
        self.clock = self.clock.saturating_add(1).max(source.commit_us.min(now_us));
        Ok(Verdict::New(self.clock))
    }
}

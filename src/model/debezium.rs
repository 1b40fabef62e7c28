//! How far a connector of Debezium has got in one partition of a topic.
//!
//! It is kept with the partition's offset, and tells a change that the connector sends again (after it was killed it
//! begins where it last noted its own progress) from one that was never seen.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Transactions are remembered of this many servers; with more, nothing is taken for seen by its GTID.
const SERVERS_MAX: usize = 64;

/// What has been seen of a connector's changes in a partition.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DebeziumPosition {
    /// `topic.prefix` of the connector; empty before its first change.
    pub connector: String,
    /// Where the last new change stands in the source's log; none if it did not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<SourcePlace>,
    /// The newest commit time of a change, µs since the Unix epoch.
    pub newest_us: i64,
    /// The highest transaction number by the server that committed it, where changes have GTIDs.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub transactions: BTreeMap<String, u64>,
}

/// Where a change stands in the log of its source. Places of one log are ordered as the connector sends them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SourcePlace {
    Mysql {
        file: String,
        offset: u64,
        row: u64,
    },
    /// The change's LSN alone is no order: transactions are sent as they commit. The end of the commit before it is.
    Postgres {
        last_commit: u64,
        lsn: u64,
    },
}

impl SourcePlace {
    /// Whether this place comes before `other`; never for places in logs of different kinds.
    pub fn is_before(&self, other: &SourcePlace) -> bool {
        match (self, other) {
            (
                SourcePlace::Mysql { file, offset, row },
                SourcePlace::Mysql { file: other_file, offset: other_offset, row: other_row },
            ) => (file.len(), file, offset, row) < (other_file.len(), other_file, other_offset, other_row),
            (
                SourcePlace::Postgres { last_commit, lsn },
                SourcePlace::Postgres { last_commit: other_commit, lsn: other_lsn },
            ) => (last_commit, lsn) < (other_commit, other_lsn),
            (SourcePlace::Mysql { .. }, SourcePlace::Postgres { .. })
            | (SourcePlace::Postgres { .. }, SourcePlace::Mysql { .. }) => false,
        }
    }
}

impl DebeziumPosition {
    /// Whether a change was surely seen before: by its place, its commit time and, where it has one, its GTID, all of
    /// them of an older transaction than the newest. (Places inside of one may be coarse: those of a compressed one
    /// are.) In doubt it was not: to apply a change again is put right by those that follow it, to leave one out is
    /// not.
    pub fn has_seen(&self, place: Option<&SourcePlace>, commit_us: i64, transaction: Option<(&str, u64)>) -> bool {
        let by_place = self.place.as_ref().zip(place).is_some_and(|(newest, place)| place.is_before(newest));
        let by_transaction = transaction
            .is_none_or(|(server, number)| self.transactions.get(server).is_some_and(|newest| number < *newest));
        by_place && commit_us < self.newest_us && by_transaction
    }

    /// Remembers a change that is new. One that was committed before the newest may be sent again all the same (the
    /// first ones after a connector's restart may have no place, or that of its snapshot): it takes the newest place
    /// away, so that those that follow it count as new as well. Otherwise the row would stay as it was at that time.
    pub fn see(&mut self, place: Option<SourcePlace>, commit_us: i64, transaction: Option<(&str, u64)>) {
        self.place = place.filter(|_| commit_us >= self.newest_us);
        self.newest_us = self.newest_us.max(commit_us);
        let Some((server, number)) = transaction else { return };
        if let Some(newest) = self.transactions.get_mut(server) {
            *newest = (*newest).max(number);
        } else if self.transactions.len() < SERVERS_MAX {
            self.transactions.insert(server.to_owned(), number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(file: &str, offset: u64, row: u64) -> Option<SourcePlace> {
        Some(SourcePlace::Mysql { file: file.into(), offset, row })
    }

    fn seen(place: Option<SourcePlace>, commit_us: i64) -> DebeziumPosition {
        let mut seen = DebeziumPosition::default();
        seen.see(place, commit_us, None);
        seen
    }

    #[test]
    fn what_a_connector_sends_again_is_told_by_its_place_in_the_log() {
        let seen = seen(at("bin.999999", 4000, 2), 50);
        for earlier in [at("bin.999999", 4000, 1), at("bin.999999", 300, 9), at("bin.999998", 9000, 0)] {
            assert!(seen.has_seen(earlier.as_ref(), 49, None), "{earlier:?}");
        }
        for new in [at("bin.999999", 4000, 2), at("bin.999999", 4000, 3), at("bin.1000000", 4, 0), None] {
            assert!(!seen.has_seen(new.as_ref(), 49, None), "{new:?}");
        }
        let commits = |last_commit, lsn| Some(SourcePlace::Postgres { last_commit, lsn });
        let seen = self::seen(commits(100, 90), 50);
        assert!(seen.has_seen(commits(99, 95).as_ref(), 49, None));
        assert!(!seen.has_seen(commits(99, 95).as_ref(), 50, None), "it may be of the newest transaction");
        assert!(!seen.has_seen(commits(101, 80).as_ref(), 49, None), "a transaction that began earlier commits later");
        assert!(!seen.has_seen(at("bin.000001", 4, 0).as_ref(), 49, None), "another kind of log");
    }

    #[test]
    fn after_a_change_in_doubt_everything_counts_as_new() {
        let commits = |last_commit, lsn| Some(SourcePlace::Postgres { last_commit, lsn });
        for (first, why) in [(None, "has no place"), (commits(95, 40), "has that of a second snapshot")] {
            let mut seen = seen(commits(90, 91), 50);
            assert!(!seen.has_seen(first.as_ref(), 40, None), "the first change after a restart {why}");
            seen.see(first, 40, None);
            for (place, commit_us) in [(commits(60, 65), 42), (commits(70, 75), 41), (commits(90, 91), 50)] {
                assert!(!seen.has_seen(place.as_ref(), commit_us, None), "{place:?} would leave the row as it was");
                seen.see(place, commit_us, None);
            }
            assert!(seen.has_seen(commits(60, 65).as_ref(), 42, None), "sent once more, and the rest with it");
        }
    }

    #[test]
    fn a_log_that_began_anew_is_not_taken_for_one_that_was_seen() {
        let mut seen = seen(at("bin.000009", 400, 0), 50);
        let early = at("bin.000001", 4, 0);
        assert!(!seen.has_seen(early.as_ref(), 51, None), "it was committed later than anything seen");
        seen.see(at("bin.000009", 500, 0), 60, Some(("a", 7)));
        assert!(seen.has_seen(early.as_ref(), 55, Some(("a", 6))));
        assert!(!seen.has_seen(early.as_ref(), 55, Some(("a", 7))), "the newest transaction");
        assert!(!seen.has_seen(early.as_ref(), 55, Some(("a", 8))), "a transaction that was never seen");
        assert!(!seen.has_seen(early.as_ref(), 55, Some(("b", 1))), "another server's transaction");
    }
}

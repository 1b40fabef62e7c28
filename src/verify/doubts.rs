//! A doubt on its way to what is certain.

use bytes::Bytes;
use tokio::time::Instant;

use super::verdict::Drift;
use crate::{
    model::{Value, Version},
    state::{drift::DriftKey, verifications::Parked},
    target::{Difference, Doubt, RowEvent},
};

/// A version that is above the clock for so many rounds has not come from the log: each has waited for the end that the
/// source had after the round before.
const ROUNDS_AHEAD: u32 = 3;

/// A target row: the plan, and the key.
pub(super) type Place = (usize, Vec<Option<String>>);

/// A row of the source.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct SourceRow {
    /// The key as records have it.
    pub key: Bytes,
    pub values: Vec<Value>,
    /// About how many bytes the row has; 0 if it was not read yet.
    pub weight: usize,
}

/// A drifted row that can be sent again.
#[derive(Debug, Clone, PartialEq)]
pub struct Repair {
    /// The source row's key, as records have it.
    pub key: String,
    /// No row of the source makes it: it is to be deleted.
    pub is_extra: bool,
    /// Somebody has discarded its dead letter: it is sent again for who asks for that alone.
    pub was_discarded: bool,
    /// The version that has to be overcome.
    pub version: Version,
    target: String,
    pub(super) open: Open,
}

impl Repair {
    /// Of a drifted row of this target table, which a row of the source makes or would make.
    pub(super) fn of(open: &Open, target: &str) -> Option<Self> {
        let mut open = open.clone();
        // They are read again, and may be heavy.
        open.doubt.values = Vec::new();
        Some(Repair {
            key: open.key_text()?,
            is_extra: open.doubt.difference == Difference::Extra,
            was_discarded: open.parked == Some(Parked::Discarded),
            version: open.doubt.version,
            target: target.to_owned(),
            open,
        })
    }

    pub(super) fn difference(&self) -> Difference {
        self.open.doubt.difference
    }

    /// The row of the target.
    pub(super) fn drift_key(&self) -> DriftKey {
        self.open.drift_key(&self.target)
    }

    /// Whether that is what was told of this row.
    pub(super) fn is(&self, drift: &Drift) -> bool {
        drift.target == self.target && drift.key == self.open.doubt.key
    }
}

/// A doubt that is being settled.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Open {
    pub doubt: Doubt,
    pub source: Option<SourceRow>,
    /// Why the source's row is not there, if the last look has found that.
    pub parked: Option<Parked>,
    /// In how many rounds, one after the other, it has differed unmoved, at one version.
    pub strikes: u32,
    /// How often it has had another version.
    pub moves: u32,
    /// For how many rounds it has had a version above the clock, the same one.
    ahead: u32,
    since: Instant,
}

impl Open {
    pub fn new(doubt: Doubt, source: Option<SourceRow>) -> Self {
        Open { doubt, source, parked: None, strikes: 0, moves: 0, ahead: 0, since: Instant::now() }
    }

    /// A second look found this; the read of the source had everything up to `low`.
    pub fn look(&mut self, doubt: Doubt, low: Version) {
        let (is_same, is_ahead) = (doubt.version == self.doubt.version, doubt.version > low);
        if !is_same || (is_ahead && self.ahead == 0) {
            (self.moves, self.since) = (self.moves + 1, Instant::now());
            (self.strikes, self.ahead) = if is_ahead { (0, 1) } else { (1, 0) };
        } else if is_ahead {
            self.ahead += 1;
            // It cannot have come from the log.
            if self.ahead >= ROUNDS_AHEAD {
                self.strikes += 1;
            }
        } else {
            self.strikes += 1;
        }
        self.doubt = doubt;
    }

    /// For how long it has differed unmoved.
    pub fn lasted(&self) -> std::time::Duration {
        self.since.elapsed()
    }

    pub fn place(&self) -> Place {
        match (&self.doubt.difference, &self.source) {
            (Difference::Refused, Some(source)) => (self.doubt.plan, vec![None, text(&source.key)]),
            (Difference::Missing | Difference::Extra | Difference::Different | Difference::Refused, _) => {
                (self.doubt.plan, self.doubt.key.clone())
            }
        }
    }

    /// The row of this target table that it is about, or, if it cannot be made, the source's.
    pub fn drift_key(&self, target: &str) -> DriftKey {
        match self.doubt.difference {
            Difference::Refused => DriftKey::new(target, &[self.key_text()]),
            Difference::Missing | Difference::Extra | Difference::Different => DriftKey::new(target, &self.doubt.key),
        }
    }

    /// Whether a doubt that came of these rows is about the same row of the source, or about none.
    pub fn is_of(&self, doubt: &Doubt, rows: &[RowEvent]) -> bool {
        let row = doubt.row.and_then(|row| rows.get(row));
        row.is_none_or(|row| self.source.as_ref().is_some_and(|source| source.key == row.key))
    }

    /// The key of the source's row, as records have it.
    pub fn record_key(&self) -> Option<Bytes> {
        self.source.as_ref().map(|source| source.key.clone())
    }

    pub fn key_text(&self) -> Option<String> {
        self.source.as_ref().and_then(|source| text(&source.key))
    }

    /// Bytes that it takes.
    pub fn bytes(&self) -> usize {
        let text = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        let key: usize = self.doubt.key.iter().map(text).sum();
        let values: usize = self.doubt.values.iter().map(|(ours, theirs)| text(ours) + text(theirs)).sum();
        size_of::<Self>() + key + values + self.source.as_ref().map_or(0, |source| 2 * source.key.len())
    }
}

/// As [`Open::place`], of a doubt that came of these rows.
pub(super) fn place_of(doubt: &Doubt, rows: &[RowEvent]) -> Place {
    match (doubt.difference, doubt.row.and_then(|row| rows.get(row))) {
        (Difference::Refused, Some(row)) => (doubt.plan, vec![None, text(&row.key)]),
        (Difference::Missing | Difference::Extra | Difference::Different | Difference::Refused, _) => {
            (doubt.plan, doubt.key.clone())
        }
    }
}

pub(super) fn text(key: &[u8]) -> Option<String> {
    std::str::from_utf8(key).ok().map(str::to_owned)
}

/// What to look at again at the target. A row that cannot be made has no key there.
pub(super) fn places(open: &[Open]) -> Vec<Place> {
    let places = open.iter().map(|open| {
        let key = if open.doubt.difference == Difference::Refused { Vec::new() } else { open.doubt.key.clone() };
        (open.doubt.plan, key)
    });
    places.collect()
}

/// Groups of so many doubts, whose source rows have so many bytes together. Those of one source row stay together:
/// looking at it finds them all.
pub(super) fn groups(mut open: Vec<Open>, rows_max: usize, bytes_max: usize) -> Vec<Vec<Open>> {
    open.sort_by_cached_key(Open::record_key);
    let mut groups: Vec<Vec<Open>> = Vec::new();
    let mut bytes = 0;
    for open in open {
        let weight = open.source.as_ref().map_or(0, |source| source.weight);
        let goes_on = groups.last().is_some_and(|group| {
            let last = group.last().and_then(Open::record_key);
            let same = last.is_some() && last == open.record_key();
            same || (group.len() < rows_max && bytes + weight <= bytes_max)
        });
        match groups.last_mut().filter(|_| goes_on) {
            Some(group) => {
                bytes += weight;
                group.push(open);
            }
            None => {
                bytes = weight;
                groups.push(vec![open]);
            }
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    fn doubt(key: &str, version: Version) -> Doubt {
        Doubt {
            plan: 0,
            difference: Difference::Different,
            key: vec![Some(key.to_owned())],
            row: None,
            source_key: None,
            columns: Vec::new(),
            values: Vec::new(),
            version,
            digest: 0,
            reason: None,
        }
    }

    #[test]
    fn strikes_are_of_one_version_of_a_row() {
        let mut open = Open::new(doubt("1", 10), None);
        open.look(doubt("1", 10), 20);
        open.look(doubt("1", 30), 40);
        assert_eq!(open.strikes, 1, "it is another row than the one that differed before");
        open.look(doubt("1", 30), 50);
        assert_eq!(open.strikes, 2);
        open.look(doubt("1", 70), 60);
        assert_eq!((open.strikes, open.moves), (0, 2), "it moved while it was looked at");
    }

    #[test]
    fn a_version_that_stays_above_the_clock_came_from_no_log() {
        let mut open = Open::new(doubt("1", 900), None);
        let strikes: Vec<u32> = (0..4)
            .map(|round| {
                open.look(doubt("1", 900), round);
                open.strikes
            })
            .collect();
        assert_eq!(strikes, [0, 0, 1, 2]);
    }

    #[test]
    fn groups_are_bounded_by_rows_and_bytes_and_keep_one_source_row_together() {
        let of = |key: &str, weight| {
            let source = SourceRow { key: Bytes::copy_from_slice(key.as_bytes()), values: Vec::new(), weight };
            Open::new(doubt(key, 1), Some(source))
        };
        let sizes = |groups: Vec<Vec<Open>>| groups.iter().map(Vec::len).collect::<Vec<_>>();
        assert_eq!(sizes(groups((0..5).map(|key| of(&key.to_string(), 1)).collect(), 2, 100)), [2, 2, 1]);
        assert_eq!(sizes(groups((0..5).map(|key| of(&key.to_string(), 60)).collect(), 9, 100)), [1, 1, 1, 1, 1]);
        assert_eq!(sizes(groups(vec![of("a", 1), of("b", 1), of("a", 1), of("a", 1)], 2, 100)), [3, 1]);
    }
}

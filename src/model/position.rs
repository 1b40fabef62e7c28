//! Positions in a source's log. A position is opaque to every stage but its own source's.

use std::{cmp::Ordering, collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{DebeziumPosition, PostgresPosition, dynamodb::DynamoPosition, version::Version};

/// Where a source's log has been read to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "source", rename_all = "snake_case")]
pub enum Position {
    Mysql(MysqlPosition),
    /// Of a log that a connector of Debezium writes: what was seen of it in one partition.
    Debezium(DebeziumPosition),
    Postgres(PostgresPosition),
    Dynamo(DynamoPosition),
}

impl Position {
    /// Whether everything that the source's log held at `end` is before this position.
    pub fn covers(&self, end: &Position) -> bool {
        match (self, end) {
            (Position::Mysql(this), Position::Mysql(end)) => this.covers(end),
            (Position::Postgres(this), Position::Postgres(end)) => this.same_history(end) && this.lsn >= end.lsn,
            (Position::Dynamo(this), Position::Dynamo(end)) => this.covers(end),
            (Position::Mysql(_) | Position::Debezium(_) | Position::Postgres(_) | Position::Dynamo(_), _) => false,
        }
    }

    /// Whether the other position is one in the log of the same server.
    pub fn same_server(&self, other: &Position) -> bool {
        match (self, other) {
            (Position::Mysql(this), Position::Mysql(other)) => this.server == other.server,
            (Position::Postgres(this), Position::Postgres(other)) => this.same_history(other),
            (Position::Dynamo(_), Position::Dynamo(_)) => true,
            (Position::Mysql(_) | Position::Debezium(_) | Position::Postgres(_) | Position::Dynamo(_), _) => false,
        }
    }

    /// The highest version that a row may be labelled with which is read after capture has come to this position, with the
    /// clock at `clock`: every change that is captured later is above it.
    pub fn watermark(&self, clock: Version) -> Version {
        match self {
            Position::Mysql(_) | Position::Debezium(_) | Position::Postgres(_) => clock,
            Position::Dynamo(position) => position.floor,
        }
    }

    /// Whether versions increase over the whole log, and not only along each of its parts.
    pub fn has_one_order(&self) -> bool {
        match self {
            Position::Mysql(_) | Position::Debezium(_) | Position::Postgres(_) => true,
            Position::Dynamo(_) => false,
        }
    }
}

/// Whether one executed set, of MySQL or of MariaDB, has every transaction of another.
fn holds(this: &str, other: &str) -> bool {
    if let (Ok(this), Ok(other)) = (this.parse::<GtidSet>(), other.parse::<GtidSet>()) {
        return this.contains(&other);
    }
    let reached = mariadb_sequences(this).zip(mariadb_sequences(other));
    reached.is_some_and(|(this, other)| {
        other.iter().all(|(domain, sequence)| this.get(domain).is_some_and(|reached| reached >= sequence))
    })
}

/// `0-1-57,1-2-9`: how far each domain has got.
fn mariadb_sequences(text: &str) -> Option<BTreeMap<u32, u64>> {
    let parse = |gtid: &str| {
        let mut fields = gtid.trim().split('-');
        let (domain, _server, sequence) = (fields.next()?, fields.next()?, fields.next()?);
        Some((domain.parse().ok()?, sequence.parse().ok()?))
    };
    text.split(',').filter(|gtid| !gtid.trim().is_empty()).map(parse).collect()
}

/// A position in a MySQL or MariaDB binlog: the end of a transaction.
///
/// File and offset are always known. With GTIDs on, `gtids` is what a resume is asked by, and it
/// survives a failover; without, file and offset are, together with the server that they belong to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MysqlPosition {
    pub file: String,
    pub offset: u64,
    /// `@@server_uuid` on MySQL, `@@server_id` on MariaDB: whose files these are.
    pub server: String,
    /// The executed GTID set (MySQL: `uuid:1-5,…`; MariaDB: `0-1-57,…`); none when GTIDs are off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gtids: Option<String>,
}

impl MysqlPosition {
    /// On the same server the files decide: an executed GTID set that is read after a row was seen may lack the
    /// row's transaction, but the log was written first. Only after a failover is it the GTIDs.
    fn covers(&self, end: &Self) -> bool {
        if self.server == end.server {
            return self.file_order(end).is_ge();
        }
        self.gtids.as_deref().zip(end.gtids.as_deref()).is_some_and(|(this, end)| holds(this, end))
    }

    /// Orders two positions of one server's files: by file name (length first, so that
    /// `bin.999999` comes before `bin.1000000`), then offset.
    pub fn file_order(&self, other: &Self) -> Ordering {
        (self.file.len(), &self.file, self.offset).cmp(&(other.file.len(), &other.file, other.offset))
    }
}

/// A MySQL GTID set: per source UUID (with tag, from 8.3 on), sorted disjoint half-open intervals.
///
/// Source: <https://dev.mysql.com/doc/refman/8.4/en/replication-gtids-concepts.html>
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GtidSet {
    sources: BTreeMap<String, Vec<(u64, u64)>>,
}

/// A text that is no GTID set.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is not a GTID set")]
pub struct InvalidGtidSet(String);

impl InvalidGtidSet {
    pub fn new(text: impl Into<String>) -> Self {
        InvalidGtidSet(text.into())
    }
}

impl GtidSet {
    /// Adds one transaction, `source` as `uuid` or `uuid:tag`.
    pub fn add(&mut self, source: &str, number: u64) {
        self.add_range(source, number, number.saturating_add(1));
    }

    /// Adds the half-open interval `start..end`.
    pub fn add_range(&mut self, source: &str, start: u64, end: u64) {
        if start >= end {
            return;
        }
        if !self.sources.contains_key(source) {
            self.sources.insert(source.to_owned(), Vec::new());
        }
        let Some(intervals) = self.sources.get_mut(source) else { return };
        // The common case, a transaction right after the last one, costs no search.
        if let Some(last) = intervals.last_mut()
            && start == last.1
        {
            last.1 = end;
            return;
        }
        let from = intervals.partition_point(|interval| interval.1 < start);
        let to = intervals.partition_point(|interval| interval.0 <= end);
        let merged = intervals[from..to]
            .iter()
            .fold((start, end), |sum, interval| (sum.0.min(interval.0), sum.1.max(interval.1)));
        intervals.splice(from..to, [merged]);
    }

    /// Adds every transaction of `other`.
    pub fn union(&mut self, other: &GtidSet) {
        for (source, start, end) in other.intervals() {
            self.add_range(source, start, end);
        }
    }

    /// Whether every transaction of `other` is in this set.
    pub fn contains(&self, other: &GtidSet) -> bool {
        other.intervals().all(|(source, start, end)| {
            self.sources
                .get(source)
                .is_some_and(|mine| mine.iter().any(|interval| interval.0 <= start && end <= interval.1))
        })
    }

    /// The transactions of this set that are not in `other`.
    pub fn minus(&self, other: &GtidSet) -> GtidSet {
        let mut rest = GtidSet::default();
        for (source, start, end) in self.intervals() {
            let mut from = start;
            for (taken_start, taken_end) in other.sources.get(source).into_iter().flatten() {
                rest.add_range(source, from, end.min(*taken_start));
                from = from.max(*taken_end);
            }
            rest.add_range(source, from, end);
        }
        rest
    }

    /// Every interval as `(source, start, end)`, half-open, in order.
    pub fn intervals(&self) -> impl Iterator<Item = (&str, u64, u64)> {
        self.sources
            .iter()
            .flat_map(|(source, intervals)| intervals.iter().map(|(start, end)| (source.as_str(), *start, *end)))
    }

    pub fn is_empty(&self) -> bool {
        self.sources.values().all(Vec::is_empty)
    }
}

impl FromStr for GtidSet {
    type Err = InvalidGtidSet;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidGtidSet(text.to_owned());
        let mut set = GtidSet::default();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let mut fields = part.split(':').map(str::trim);
            let uuid = fields.next().ok_or_else(invalid)?.to_ascii_lowercase();
            let well_formed = uuid.len() == 36 && uuid.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
            if !well_formed {
                return Err(invalid());
            }
            let mut source = uuid.clone();
            for field in fields {
                if field.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') {
                    source = format!("{uuid}:{}", field.to_ascii_lowercase());
                    continue;
                }
                let (start, end) = field.split_once('-').unwrap_or((field, field));
                let start: u64 = start.trim().parse().map_err(|_| invalid())?;
                let end: u64 = end.trim().parse().map_err(|_| invalid())?;
                if start == 0 || end < start || end == u64::MAX {
                    return Err(invalid());
                }
                set.add_range(&source, start, end + 1);
            }
        }
        Ok(set)
    }
}

impl fmt::Display for GtidSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sources = self.sources.iter().filter(|(_, intervals)| !intervals.is_empty());
        for (index, (source, intervals)) in sources.enumerate() {
            write!(f, "{}{source}", if index == 0 { "" } else { "," })?;
            for (start, end) in intervals {
                if end - start == 1 { write!(f, ":{start}")? } else { write!(f, ":{start}-{}", end - 1)? }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "3e11fa47-71ca-11e1-9e33-c80aa9429562";
    const B: &str = "4e11fa47-71ca-11e1-9e33-c80aa9429562";

    #[test]
    fn a_gtid_set_reads_back_as_it_prints() {
        for text in [format!("{A}:1-5"), format!("{A}:1-3:11:47-49,{B}:7"), format!("{A}:tag_x:1-2"), String::new()] {
            let set: GtidSet = text.parse().expect("valid");
            assert_eq!(set.to_string(), text);
        }
    }

    #[test]
    fn adding_out_of_order_fills_gaps() {
        let mut set = GtidSet::default();
        for number in [1, 2, 5, 4, 3, 9, 7] {
            set.add(A, number);
        }
        assert_eq!(set.to_string(), format!("{A}:1-5:7:9"));
    }

    #[test]
    fn containment_is_per_source_and_needs_every_gap() {
        let all: GtidSet = format!("{A}:1-10,{B}:1-2").parse().expect("valid");
        let part: GtidSet = format!("{A}:2-3:9").parse().expect("valid");
        let beyond: GtidSet = format!("{A}:9-11").parse().expect("valid");
        assert!(all.contains(&part) && all.contains(&GtidSet::default()));
        assert!(!all.contains(&beyond) && !part.contains(&all));
    }

    #[test]
    fn what_one_set_has_more_than_another_is_told_by_interval() {
        let all: GtidSet = format!("{A}:1-10,{B}:1-2").parse().expect("valid");
        let part: GtidSet = format!("{A}:3-4:8").parse().expect("valid");
        assert_eq!(all.minus(&part).to_string(), format!("{A}:1-2:5-7:9-10,{B}:1-2"));
        assert!(part.minus(&all).is_empty());
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["x", "3e11fa47:1", &format!("{A}:0"), &format!("{A}:5-2"), &format!("{A}:1-18446744073709551615")]
        {
            assert!(text.parse::<GtidSet>().is_err(), "{text}");
        }
    }

    #[test]
    fn files_decide_on_one_server_and_gtids_after_a_failover() {
        let at = |server: &str, offset, gtids: &str| {
            Position::Mysql(MysqlPosition {
                file: "bin.000001".into(),
                offset,
                server: server.into(),
                gtids: Some(gtids.into()),
            })
        };
        let uuid = "3e11fa47-71ca-11e1-9e33-c80aa9429562";
        let (few, many) = (format!("{uuid}:1-5"), format!("{uuid}:1-6"));
        assert!(at("a", 9, &few).covers(&at("a", 9, &many)), "the set was read before the last commit was in it");
        assert!(!at("a", 8, &many).covers(&at("a", 9, &few)), "a change before the end of the file is still to come");
        assert!(at("b", 1, &many).covers(&at("a", 9, &few)));
        assert!(!at("b", 99, &few).covers(&at("a", 9, &many)));
        assert!(at("2", 1, "0-1-57,1-2-9").covers(&at("1", 9, "0-1-57")));
        assert!(!at("2", 1, "0-1-56,1-2-9").covers(&at("1", 9, "0-1-57")));
        assert!(!at("2", 1, "1-2-9").covers(&at("1", 9, "0-1-57")));
    }

    #[test]
    fn files_order_by_number_beyond_six_digits() {
        let at = |file: &str, offset| MysqlPosition { file: file.into(), offset, server: String::new(), gtids: None };
        assert!(at("bin.999999", 9).file_order(&at("bin.1000000", 4)).is_lt());
        assert!(at("bin.000002", 9).file_order(&at("bin.000002", 10)).is_lt());
    }
}

//! GTIDs: which transactions a server has executed, as MySQL and as MariaDB write it.

use std::{collections::BTreeMap, fmt, str::FromStr};

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

/// How far MariaDB has got: the last transaction of every domain, with the server that wrote it.
///
/// Source: <https://mariadb.com/kb/en/gtid/>
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MariadbGtids {
    domains: BTreeMap<u32, (u32, u64)>,
}

impl MariadbGtids {
    /// The domain has come to this transaction.
    pub fn reach(&mut self, domain: u32, server: u32, sequence: u64) {
        self.domains.insert(domain, (server, sequence));
    }

    /// Whether everything that `other` has come to is behind this one.
    pub fn contains(&self, other: &MariadbGtids) -> bool {
        self.behind(other).is_empty()
    }

    /// The domains of `other` in which this one is not as far.
    pub fn behind(&self, other: &MariadbGtids) -> MariadbGtids {
        let mut ahead = other.clone();
        ahead.domains.retain(|domain, (_, sequence)| self.domains.get(domain).is_none_or(|(_, own)| own < sequence));
        ahead
    }

    pub fn is_empty(&self) -> bool {
        self.domains.is_empty()
    }
}

impl FromStr for MariadbGtids {
    type Err = InvalidGtidSet;

    /// `0-1-57,1-2-9`
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = |gtid: &str| {
            let mut fields = gtid.trim().split('-');
            let parsed = (fields.next()?.parse().ok()?, (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?));
            fields.next().is_none().then_some(parsed)
        };
        let gtids = text.split(',').filter(|gtid| !gtid.trim().is_empty());
        let domains = gtids.map(|gtid| parse(gtid).ok_or_else(|| InvalidGtidSet(text.to_owned())));
        Ok(MariadbGtids { domains: domains.collect::<Result<_, _>>()? })
    }
}

impl fmt::Display for MariadbGtids {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (domain, (server, sequence))) in self.domains.iter().enumerate() {
            write!(f, "{}{domain}-{server}-{sequence}", if index == 0 { "" } else { "," })?;
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
    fn mariadb_positions_are_taken_apart_by_domain() {
        let parse = |text: &str| text.parse::<MariadbGtids>();
        let reached = parse("0-1-57, 3-2-9").expect("valid");
        assert_eq!(reached.to_string(), "0-1-57,3-2-9");
        assert!(reached.contains(&parse("0-7-57").expect("valid")) && reached.contains(&parse("").expect("empty")));
        assert_eq!(reached.behind(&parse("0-1-58,3-2-9,4-1-1").expect("valid")).to_string(), "0-1-58,4-1-1");
    }
}

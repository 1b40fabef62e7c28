//! Places in PostgreSQL's write-ahead log.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A log sequence number, written as PostgreSQL writes it: `16/B374D848`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Lsn(pub u64);

/// A text that is no log sequence number.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is no log sequence number")]
pub struct InvalidLsn(String);

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xffff_ffff)
    }
}

impl FromStr for Lsn {
    type Err = InvalidLsn;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let half = |digits: &str| {
            let well_formed = (1..=8).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
            if well_formed { u64::from_str_radix(digits, 16).ok() } else { None }
        };
        let halves = text.split_once('/').and_then(|(high, low)| Some((half(high)?, half(low)?)));
        halves.map(|(high, low)| Lsn(high << 32 | low)).ok_or_else(|| InvalidLsn(text.to_owned()))
    }
}

impl TryFrom<String> for Lsn {
    type Error = InvalidLsn;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Lsn> for String {
    fn from(lsn: Lsn) -> Self {
        lsn.to_string()
    }
}

/// How far a slot has been read: the end of a transaction's commit record, or a place behind which nothing is left to
/// send.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PostgresPosition {
    pub lsn: Lsn,
    /// The cluster: a number that `initdb` made, and that a physical copy shares.
    pub system: String,
    /// Which of the cluster's histories: a promoted standby begins a new one.
    pub timeline: u32,
    /// The replication slot that keeps what follows.
    pub slot: String,
}

impl PostgresPosition {
    /// Whether both are places in one history of one cluster.
    pub fn same_history(&self, other: &Self) -> bool {
        self.system == other.system && self.timeline == other.timeline
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_sequence_number_reads_back_as_it_prints() {
        for text in ["0/0", "16/B374D848", "FFFFFFFF/FFFFFFFF", "0/16B3748"] {
            assert_eq!(text.parse::<Lsn>().expect("valid").to_string(), text);
        }
        for text in ["", "0", "/", "0/", "0/-1", "0/100000000", "0/+1", "G/0", "0/0/0"] {
            assert!(text.parse::<Lsn>().is_err(), "{text}");
        }
        assert!("0/FFFFFFFF".parse::<Lsn>().expect("valid") < "1/0".parse().expect("valid"));
    }

    #[test]
    fn a_position_is_stored_with_its_history() {
        let lsn = Lsn(0x16_0000_0001);
        let position = PostgresPosition { lsn, system: "7".into(), timeline: 2, slot: "cutover_cart".into() };
        let json = serde_json::to_string(&position).expect("plain");
        assert_eq!(json, r#"{"lsn":"16/1","system":"7","timeline":2,"slot":"cutover_cart"}"#);
        assert_eq!(serde_json::from_str::<PostgresPosition>(&json).expect("reads back"), position);
        assert!(position.same_history(&PostgresPosition { slot: "other".into(), ..position.clone() }));
        assert!(!position.same_history(&PostgresPosition { timeline: 3, ..position.clone() }));
    }
}

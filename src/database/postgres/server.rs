//! What the server of a source is, and where its log ends.

use tokio_postgres::Client;

use super::PgError;
use crate::model::{Lsn, PostgresPosition, Problem};

/// The oldest release whose publications can send partitions as their root.
const VERSION_MIN: i32 = 130_000;

/// A server, as it answered now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerFacts {
    /// `server_version_num`: 150018.
    pub version: i32,
    /// A standby: its log is another server's, and slots on it end with a failover.
    pub standby: bool,
    pub wal_level: String,
    /// The database's own encoding.
    pub encoding: String,
    /// The cluster's number.
    pub system: String,
    pub timeline: u32,
    /// Where the log ends.
    pub end: Lsn,
    /// The server's clock, µs since the Unix epoch.
    pub now_us: i64,
    pub database: String,
}

/// A standby cannot be asked for its place in a log that is not its own.
const FACTS: &str = "
SELECT current_setting('server_version_num')::int, pg_is_in_recovery(), current_setting('wal_level'),
  (SELECT pg_encoding_to_char(encoding) FROM pg_database WHERE datname = current_database()),
  (SELECT system_identifier::text FROM pg_control_system()),
  CASE WHEN NOT pg_is_in_recovery() THEN pg_walfile_name(pg_current_wal_insert_lsn()) END,
  CASE WHEN NOT pg_is_in_recovery() THEN pg_current_wal_insert_lsn()::text END,
  (extract(epoch FROM clock_timestamp()) * 1000000)::bigint, current_database()::text,
  current_setting('wal_block_size')::bigint";

/// The header of a page of the log, the longer of its two forms.
const PAGE_HEADER_BYTES: u64 = 40;

impl ServerFacts {
    pub async fn load(client: &Client) -> Result<Self, PgError> {
        let row = client.query_one(FACTS, &[]).await?;
        let (file, end): (Option<String>, Option<String>) = (row.try_get(5)?, row.try_get(6)?);
        let unreadable = |what: &str| PgError::Protocol(format!("the server's {what} cannot be read"));
        let timeline = match file {
            Some(file) => file.get(..8).and_then(|digits| u32::from_str_radix(digits, 16).ok()),
            None => Some(0),
        };
        let end = match end {
            Some(end) => end.parse().map(Some).map_err(|_| unreadable("place in its log"))?,
            None => None,
        };
        let page_bytes = row.try_get::<_, i64>(9)?.unsigned_abs();
        Ok(ServerFacts {
            version: row.try_get(0)?,
            standby: row.try_get(1)?,
            wal_level: row.try_get(2)?,
            encoding: row.try_get(3)?,
            system: row.try_get(4)?,
            timeline: timeline.ok_or_else(|| unreadable("timeline"))?,
            end: before_page_header(end.unwrap_or_default(), page_bytes),
            now_us: row.try_get(7)?,
            database: row.try_get(8)?,
        })
    }

    /// Where the log ends, as a position of this slot.
    pub fn position(&self, slot: &str) -> PostgresPosition {
        self.at(self.end, slot)
    }

    /// A place in this server's log.
    pub fn at(&self, lsn: Lsn, slot: &str) -> PostgresPosition {
        PostgresPosition { lsn, system: self.system.clone(), timeline: self.timeline, slot: slot.to_owned() }
    }

    /// What of the server itself keeps it from being captured.
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut add = |what: String, fix: &str| problems.push(Problem { what, fix: fix.to_owned() });
        if self.version < VERSION_MIN {
            let major = self.version / 10_000;
            add(format!("the source is PostgreSQL {major}"), "upgrade it to 13 or later");
        }
        if self.standby {
            let what =
                "the source is a standby: a slot on it is lost at a failover, and no publication can be made on it";
            add(what.into(), "write the primary's address into [source] url");
        }
        if self.wal_level != "logical" {
            let what =
                format!("the source has wal_level = {}, which does not log what changed in a row", self.wal_level);
            add(what, "ALTER SYSTEM SET wal_level = logical, and restart the server");
        }
        problems
    }
}

/// The next record's place is behind a page's header where the log ends at a page: nothing is sent from there until
/// there is a record.
fn before_page_header(lsn: Lsn, page_bytes: u64) -> Lsn {
    let within = lsn.0.checked_rem(page_bytes).unwrap_or_default();
    if within <= PAGE_HEADER_BYTES { Lsn(lsn.0 - within) } else { lsn }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_ends_at_a_page_ends_before_the_next_pages_header() {
        assert_eq!(before_page_header(Lsn(0x200_0028), 8192), Lsn(0x200_0000));
        assert_eq!(before_page_header(Lsn(0x200_2018), 8192), Lsn(0x200_2000));
        assert_eq!(before_page_header(Lsn(0x200_0100), 8192), Lsn(0x200_0100));
    }

    #[test]
    fn a_standby_without_logical_decoding_is_told_both() {
        let facts = ServerFacts {
            version: 120_004,
            standby: true,
            wal_level: "replica".into(),
            encoding: "UTF8".into(),
            system: "7".into(),
            timeline: 1,
            end: Lsn(1),
            now_us: 0,
            database: "shop".into(),
        };
        let problems: Vec<String> = facts.problems().iter().map(ToString::to_string).collect();
        assert_eq!(problems.len(), 3);
        assert!(problems[1].contains("primary") && problems[2].contains("wal_level = logical"), "{problems:?}");
    }
}

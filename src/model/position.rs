//! Positions in a source's log. A position is opaque to every stage but its own source's.

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};

use super::{
    DebeziumPosition, GtidSet, MariadbGtids, Origin, PostgresPosition, dynamodb::DynamoPosition, version::Version,
};

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

    /// The highest version that a row may be labelled with which is read after capture has come to this position, with
    /// the clock at `clock`: every change that is captured later is above it.
    pub fn watermark(&self, clock: Version) -> Version {
        match self {
            Position::Mysql(_) | Position::Debezium(_) | Position::Postgres(_) => clock,
            Position::Dynamo(position) => position.floor,
        }
    }

    /// Where the transaction after this position is, for the envelope's `source` block.
    pub fn origin(&self) -> Origin {
        match self {
            Position::Mysql(position) => {
                Origin { file: position.file.clone(), offset: position.offset, ..Origin::default() }
            }
            Position::Postgres(position) => Origin { offset: position.lsn.0, ..Origin::default() },
            // Shards have no common place.
            Position::Debezium(_) | Position::Dynamo(_) => Origin::default(),
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

/// What the target has from beyond its stored position when the log is lost: rows of transactions that are captured
/// once more, as long as the source is the server that had them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beyond {
    /// The stored position.
    pub position: Position,
    /// The highest version that was written.
    pub highest: Version,
    /// The clock to go on with: the one that is stored with the position, with which the same versions come again; or
    /// the highest version that was written, where the clock was moved since, which the source's log does not tell.
    pub clock: Version,
    /// Where that server's log ended when the new log began: at or after all that was written. None if the source was
    /// another server by then.
    pub end: Option<Position>,
}

impl Beyond {
    /// Whether capture that has come to `position` has met all of it once more.
    pub fn is_met(&self, position: &Position) -> bool {
        self.end.as_ref().is_some_and(|end| position.covers(end))
    }

    /// Whether capture that is at `position` will meet all of it, or has.
    pub fn is_to_come(&self, position: &Position) -> bool {
        self.is_met(position) || (self.end.is_some() && position.same_server(&self.position))
    }
}

/// Whether one executed set, of MySQL or of MariaDB, has every transaction of another.
fn holds(this: &str, other: &str) -> bool {
    if let (Ok(this), Ok(other)) = (this.parse::<GtidSet>(), other.parse::<GtidSet>()) {
        return this.contains(&other);
    }
    let (Ok(this), Ok(other)) = (this.parse::<MariadbGtids>(), other.parse::<MariadbGtids>()) else { return false };
    this.contains(&other)
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

#[cfg(test)]
mod tests {
    use super::*;

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

//! Which kinds of source there are, and what a change's place in a source's log is called for others.

use std::sync::Arc;

/// Which kind of server a source is, as its URL says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceKind {
    /// MySQL or MariaDB, by their binlog.
    Mysql,
    /// PostgreSQL, by a replication slot.
    Postgres,
    /// DynamoDB, by its tables' streams.
    Dynamo,
}

impl SourceKind {
    /// Every kind.
    pub const ALL: [SourceKind; 3] = [SourceKind::Mysql, SourceKind::Postgres, SourceKind::Dynamo];

    /// The kind that a URL's scheme names; none for every other scheme.
    pub fn of(url: &str) -> Option<SourceKind> {
        let (scheme, _) = url.split_once("://")?;
        SourceKind::ALL.into_iter().find(|kind| kind.schemes().contains(&scheme))
    }

    /// The schemes of its URLs.
    pub fn schemes(self) -> &'static [&'static str] {
        match self {
            SourceKind::Mysql => &["mysql"],
            SourceKind::Postgres => &["postgresql", "postgres"],
            SourceKind::Dynamo => &["dynamodb"],
        }
    }
}

/// Which of two families of servers speaks MySQL's protocol: their dialects of replication differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Flavor {
    Mysql,
    Mariadb,
}

impl Flavor {
    /// Debezium's connector for its servers.
    pub fn connector(self) -> DebeziumConnector {
        match self {
            Flavor::Mysql => DebeziumConnector::Mysql,
            Flavor::Mariadb => DebeziumConnector::Mariadb,
        }
    }
}

/// Debezium's connector for a source: its envelope names it, and what the envelope says of a place in the log is its.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DebeziumConnector {
    Mysql,
    Mariadb,
    Postgres,
    /// Debezium has none; this is what the envelopes of cutover say.
    Dynamo,
}

impl DebeziumConnector {
    /// Every connector.
    pub const ALL: [DebeziumConnector; 4] =
        [DebeziumConnector::Mysql, DebeziumConnector::Mariadb, DebeziumConnector::Postgres, DebeziumConnector::Dynamo];

    /// Its name in `source.connector`.
    pub fn name(self) -> &'static str {
        match self {
            DebeziumConnector::Mysql => "mysql",
            DebeziumConnector::Mariadb => "mariadb",
            DebeziumConnector::Postgres => "postgresql",
            DebeziumConnector::Dynamo => "dynamodb",
        }
    }

    /// The connector of that name.
    pub fn named(name: &str) -> Option<DebeziumConnector> {
        DebeziumConnector::ALL.into_iter().find(|connector| connector.name() == name)
    }

    /// The kind of source that it captures.
    pub fn kind(self) -> SourceKind {
        match self {
            DebeziumConnector::Mysql | DebeziumConnector::Mariadb => SourceKind::Mysql,
            DebeziumConnector::Postgres => SourceKind::Postgres,
            DebeziumConnector::Dynamo => SourceKind::Dynamo,
        }
    }
}

/// Where a change was found: the envelope's `source` block, for other readers of the topic. cutover
/// itself resumes from control records and never reads it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Origin {
    /// The binlog file; empty when there is none (a snapshot row).
    pub file: String,
    /// The offset of the row's event in `file`, or the LSN (PostgreSQL's) that its transaction comes after.
    pub offset: u64,
    /// The row's number in its event, from 0.
    pub row: u32,
    /// The transaction's GTID, with GTIDs on.
    pub gtid: Option<String>,
    pub server_id: Option<u32>,
    /// PostgreSQL's name of the node that the transaction was replicated from, where it was not committed first
    /// (`pg_replication_origin`).
    pub replicated_from: Option<Arc<str>>,
    pub snapshot: bool,
    /// When the change was captured, ms since the Unix epoch: the envelope's own `ts_ms`.
    pub captured_ms: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scheme_and_every_connector_is_found_by_its_name() {
        for kind in SourceKind::ALL {
            for scheme in kind.schemes() {
                assert_eq!(SourceKind::of(&format!("{scheme}://host")), Some(kind));
            }
        }
        assert_eq!((SourceKind::of("mariadb://host"), SourceKind::of("mysql")), (None, None));
        for connector in DebeziumConnector::ALL {
            assert_eq!(DebeziumConnector::named(connector.name()), Some(connector));
        }
        assert_eq!(DebeziumConnector::named("oracle"), None);
    }
}

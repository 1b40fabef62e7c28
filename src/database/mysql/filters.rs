//! What a server leaves out: of its binlog, and of what it takes over from a server that it is a replica of.
//!
//! What enters: a connection. What leaves: [`Filters`], as far as the user may ask. A user who may not ask whether the
//! server is a replica is told nothing by it; that it runs as one, MariaDB shows to everybody.

use mysql_async::{Conn, Row, prelude::Queryable};

use super::{connect::QueryError, server::log_status};
use crate::model::Flavor;

/// The filters of a server, as `option = value`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filters {
    /// What keeps changes out of the server's own log.
    pub binlog: Vec<String>,
    /// It takes changes over from another server.
    pub is_replica: bool,
    /// What it does not take over.
    pub replication: Vec<String>,
}

const REPLICATION: [&str; 6] = [
    "Replicate_Do_DB",
    "Replicate_Ignore_DB",
    "Replicate_Do_Table",
    "Replicate_Ignore_Table",
    "Replicate_Wild_Do_Table",
    "Replicate_Wild_Ignore_Table",
];

impl Filters {
    /// Asks the server, which writes a log.
    ///
    /// # Errors
    /// When it does not tell what its log leaves out.
    pub async fn load(conn: &mut Conn, flavor: Flavor, version: (u16, u16, u16)) -> Result<Self, QueryError> {
        let status = log_status(conn, flavor, version).await?;
        let own = [("Binlog_Do_DB", "binlog-do-db"), ("Binlog_Ignore_DB", "binlog-ignore-db")];
        let binlog =
            status.iter().flat_map(|row| own.iter().filter_map(move |(column, option)| set(row, column, option)));
        let mut filters = Filters { binlog: binlog.collect(), ..Filters::default() };
        let sql = match flavor {
            Flavor::Mysql if version >= (8, 0, 22) => "SHOW REPLICA STATUS",
            Flavor::Mysql => "SHOW SLAVE STATUS",
            Flavor::Mariadb => "SHOW ALL SLAVES STATUS",
        };
        match conn.query::<Row, _>(sql).await {
            Ok(rows) => {
                filters.is_replica = !rows.is_empty();
                let set = |row: &Row| REPLICATION.iter().filter_map(|name| set(row, name, name)).collect::<Vec<_>>();
                filters.replication = rows.iter().flat_map(set).collect();
                filters.replication.dedup();
            }
            // SLAVE MONITOR, on MariaDB.
            Err(mysql_async::Error::Server(_)) => {
                let running: Option<(String, String)> =
                    conn.query_first("SHOW GLOBAL STATUS LIKE 'Slaves_running'").await.unwrap_or_default();
                filters.is_replica = running.is_some_and(|(_, count)| count != "0");
            }
            Err(error) => return Err(QueryError::new("asking whether the server is a replica", error)),
        }
        Ok(filters)
    }
}

/// The filter in this column, if there is one.
fn set(row: &Row, column: &str, option: &str) -> Option<String> {
    let at = row.columns_ref().iter().position(|found| found.name_str().eq_ignore_ascii_case(column))?;
    let value = row.get_opt::<String, _>(at)?.ok()?;
    (!value.is_empty()).then(|| format!("{} = {value}", option.to_ascii_lowercase().replace('_', "-")))
}

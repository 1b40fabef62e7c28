//! What a MySQL or MariaDB server is and how it is set.
//!
//! What enters: a connection. What leaves: [`ServerFacts`], data that capture, the snapshot and `check` judge by
//! themselves, and [`problems`], the settings that make a correct capture impossible. Absent on purpose: any change of
//! a setting.

use std::collections::{BTreeMap, BTreeSet};

use mysql_async::{Conn, Row, prelude::Queryable};

use super::{
    connect::{QueryError, quoted},
    filters::Filters,
};
use crate::model::{Flavor, MysqlPosition, Problem, TableSchema};

/// A server, as seen at one moment.
#[derive(Debug, Clone)]
pub struct ServerFacts {
    pub flavor: Flavor,
    pub version: (u16, u16, u16),
    pub version_text: String,
    /// `@@server_uuid` on MySQL, `@@server_id` on MariaDB: what [`MysqlPosition::server`] holds.
    pub server: String,
    /// Every transaction has a GTID: `gtid_mode = ON` on MySQL, always on MariaDB.
    pub gtids: bool,
    pub log_bin: bool,
    /// What is replicated from another server is logged again.
    pub logs_replicated: bool,
    pub binlog_format: String,
    pub binlog_row_image: String,
    /// `binlog_row_metadata = FULL`: the log itself names the columns.
    pub metadata_full: bool,
    /// `binlog_row_value_options` has PARTIAL_JSON: updates of JSON columns are logged as differences.
    pub partial_json: bool,
    pub order_commits: bool,
    pub checksum: String,
    /// Table names compare without regard to case (`lower_case_table_names` is not 0).
    pub names_fold: bool,
    /// GTIDs that are executed but no longer in any file (MySQL with GTIDs).
    pub purged: Option<String>,
    /// What the server leaves out of its log, and of what it takes over from another server.
    pub filters: Filters,
    /// The server's time, µs since the Unix epoch.
    pub now_us: i64,
}

impl ServerFacts {
    /// Asks the server. Needs REPLICATION CLIENT (BINLOG MONITOR on MariaDB).
    pub async fn load(conn: &mut Conn) -> Result<Self, QueryError> {
        let variables = variables(conn).await?;
        let get = |name: &str| variables.get(name).map(String::as_str);
        let is_on = |name: &str| get(name).is_some_and(|value| value.eq_ignore_ascii_case("on") || value == "1");
        let version_text = get("version").unwrap_or_default().to_owned();
        let flavor =
            if version_text.to_ascii_lowercase().contains("mariadb") { Flavor::Mariadb } else { Flavor::Mysql };
        let identity = match flavor {
            Flavor::Mysql => get("server_uuid"),
            Flavor::Mariadb => get("server_id"),
        };
        let mut facts = ServerFacts {
            flavor,
            version: parse_version(&version_text),
            server: identity.unwrap_or_default().to_owned(),
            gtids: match flavor {
                Flavor::Mysql => is_on("gtid_mode"),
                Flavor::Mariadb => true,
            },
            log_bin: is_on("log_bin"),
            logs_replicated: is_on("log_slave_updates") || is_on("log_replica_updates"),
            // A release that has no such variable any more knows only ROW.
            binlog_format: get("binlog_format").unwrap_or("ROW").to_ascii_uppercase(),
            binlog_row_image: get("binlog_row_image").unwrap_or("FULL").to_ascii_uppercase(),
            metadata_full: get("binlog_row_metadata").is_some_and(|value| value.eq_ignore_ascii_case("full")),
            partial_json: get("binlog_row_value_options")
                .is_some_and(|value| value.to_ascii_uppercase().contains("PARTIAL_JSON")),
            order_commits: get("binlog_order_commits").is_none_or(|value| value.eq_ignore_ascii_case("on")),
            checksum: get("binlog_checksum").unwrap_or("NONE").to_ascii_uppercase(),
            names_fold: get("lower_case_table_names").is_some_and(|value| value != "0"),
            purged: None,
            filters: Filters::default(),
            now_us: now_us(conn).await?,
            version_text,
        };
        if facts.log_bin {
            facts.filters = Filters::load(conn, facts.flavor, facts.version).await?;
            if facts.flavor == Flavor::Mysql && facts.gtids {
                facts.purged = Some(global(conn, "gtid_purged").await?);
            }
        }
        Ok(facts)
    }

    /// Whether the rows that a foreign key's cascade changes are in the log: InnoDB hides them before MySQL 9.6.
    pub fn logs_cascades(&self) -> bool {
        match self.flavor {
            Flavor::Mysql => self.version >= (9, 6, 0),
            Flavor::Mariadb => false,
        }
    }
}

/// The end of the server's log, with everything in it that was committed before. With GTIDs the set may lack what is
/// committed meanwhile, and never holds a transaction that is past the file position.
pub async fn current_position(conn: &mut Conn, facts: &ServerFacts) -> Result<MysqlPosition, QueryError> {
    // The set is asked for first. `BINLOG_GTID_POS` would tell it for the very place, and reads the log file up to
    // there to do so: gigabytes, for each chunk of a copy.
    let before = match facts.flavor {
        Flavor::Mariadb => Some(global(conn, "gtid_binlog_pos").await?),
        Flavor::Mysql => None,
    };
    let status = log_status(conn, facts.flavor, facts.version).await?;
    let text = |index: usize| status.as_ref()?.get_opt::<String, _>(index)?.ok();
    let file = text(0).unwrap_or_default();
    let offset = status.as_ref().and_then(|row| row.get_opt::<u64, _>(1)).and_then(Result::ok).unwrap_or(4);
    let gtids = before.or_else(|| facts.gtids.then(|| text(4).unwrap_or_default()));
    let gtids = gtids.map(|gtids| gtids.split_whitespace().collect());
    Ok(MysqlPosition { file, offset, server: facts.server.clone(), gtids })
}

/// What the server says of its log: file, offset, the databases that it logs and leaves out, and with MySQL the GTIDs.
pub(super) async fn log_status(
    conn: &mut Conn,
    flavor: Flavor,
    version: (u16, u16, u16),
) -> Result<Option<Row>, QueryError> {
    let sql = match flavor {
        Flavor::Mysql if version >= (8, 2, 0) => "SHOW BINARY LOG STATUS",
        Flavor::Mysql | Flavor::Mariadb => "SHOW MASTER STATUS",
    };
    let what = "asking for the end of the binlog (GRANT REPLICATION CLIENT ON *.* TO the source user)";
    conn.query_first(sql).await.map_err(|error| QueryError::new(what, error))
}

/// Every GTID that the server has executed (MySQL), or its position in each domain (MariaDB).
pub async fn executed(conn: &mut Conn, flavor: Flavor) -> Result<String, QueryError> {
    match flavor {
        Flavor::Mysql => global(conn, "gtid_executed").await,
        Flavor::Mariadb => global(conn, "gtid_binlog_pos").await,
    }
}

/// The names of the binlog files that the server still has, oldest first.
pub async fn binlog_files(conn: &mut Conn) -> Result<Vec<String>, QueryError> {
    let rows: Vec<Row> =
        conn.query("SHOW BINARY LOGS").await.map_err(|error| QueryError::new("listing the binlog files", error))?;
    Ok(rows.into_iter().filter_map(|row| row.get_opt::<String, _>(0).and_then(Result::ok)).collect())
}

/// The server's time, µs since the Unix epoch.
pub async fn now_us(conn: &mut Conn) -> Result<i64, QueryError> {
    let sql = "SELECT CAST(UNIX_TIMESTAMP(NOW(6)) * 1000000 AS SIGNED)";
    let now: Option<i64> =
        conn.query_first(sql).await.map_err(|error| QueryError::new("asking for the server's time", error))?;
    Ok(now.unwrap_or_default())
}

const VARIABLES: [&str; 15] = [
    "version",
    "server_id",
    "server_uuid",
    "gtid_mode",
    "log_bin",
    "log_slave_updates",
    "log_replica_updates",
    "binlog_format",
    "binlog_row_image",
    "binlog_row_metadata",
    "binlog_row_value_options",
    "binlog_order_commits",
    "binlog_checksum",
    "lower_case_table_names",
    "gtid_domain_id",
];

/// By name, because asking for one that a release does not have is an error.
async fn variables(conn: &mut Conn) -> Result<BTreeMap<String, String>, QueryError> {
    let sql = format!("SHOW GLOBAL VARIABLES WHERE Variable_name IN ('{}')", VARIABLES.join("', '"));
    let rows: Vec<(String, Option<String>)> =
        conn.query(sql).await.map_err(|error| QueryError::new("asking for the server's settings", error))?;
    Ok(rows.into_iter().map(|(name, value)| (name.to_ascii_lowercase(), value.unwrap_or_default())).collect())
}

/// A global variable by SELECT: SHOW VARIABLES cuts long values off. White space goes (GTID sets come with line
/// breaks).
async fn global(conn: &mut Conn, name: &str) -> Result<String, QueryError> {
    let value: Option<Option<String>> = conn
        .query_first(format!("SELECT @@GLOBAL.{name}"))
        .await
        .map_err(|error| QueryError::new(format!("asking for {name}"), error))?;
    Ok(value.flatten().unwrap_or_default().split_whitespace().collect())
}

/// `5.7.22-log`, `10.11.19-MariaDB-0+deb12u1`, `5.5.5-10.11.19-MariaDB` (MariaDB's old prefix).
fn parse_version(text: &str) -> (u16, u16, u16) {
    let text = text.strip_prefix("5.5.5-").filter(|rest| rest.contains("MariaDB")).unwrap_or(text);
    let mut numbers = text
        .split(|character: char| !character.is_ascii_digit())
        .take(3)
        .map(|number| number.parse().unwrap_or_default());
    let mut next = || numbers.next().unwrap_or_default();
    (next(), next(), next())
}

/// The settings that capture cannot live with.
pub fn problems(facts: &ServerFacts) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut add = |what: String, fix: &str| problems.push(Problem { what, fix: fix.to_owned() });
    let oldest = match facts.flavor {
        Flavor::Mysql => (5, 7, 0),
        Flavor::Mariadb => (10, 5, 0),
    };
    if facts.version < oldest {
        add(
            format!("the source is {}, which is too old", facts.version_text),
            "MySQL 5.7 and later and MariaDB 10.5 and later are supported: capture from a replica of such a version",
        );
    }
    if !facts.log_bin {
        add(
            "the source writes no binlog (log_bin is off)".into(),
            "set log_bin and a server_id in the source's configuration (on a replica log_slave_updates as well) and restart it",
        );
        return problems;
    }
    if facts.binlog_format != "ROW" {
        add(
            format!("the source's binlog_format is {}, not ROW: changes are logged as statements", facts.binlog_format),
            "SET GLOBAL binlog_format = 'ROW', the same in the configuration file, and restart the application's connections",
        );
    }
    if facts.binlog_row_image != "FULL" {
        add(
            format!(
                "the source's binlog_row_image is {}, not FULL: unchanged columns are not logged",
                facts.binlog_row_image
            ),
            "SET GLOBAL binlog_row_image = 'FULL', the same in the configuration file, and restart the application's connections",
        );
    }
    if facts.partial_json {
        add(
            "the source logs updates of JSON columns as differences (binlog_row_value_options = PARTIAL_JSON)".into(),
            "SET GLOBAL binlog_row_value_options = '', the same in the configuration file, and restart the application's connections",
        );
    }
    filter_problems(facts, add);
    problems
}

fn filter_problems(facts: &ServerFacts, mut add: impl FnMut(String, &str)) {
    if !facts.filters.binlog.is_empty() {
        add(
            format!("the source leaves changes out of its binlog: {}", facts.filters.binlog.join(", ")),
            "remove binlog-do-db and binlog-ignore-db from the source's configuration and restart it: they go by the session's default \
             database, and schema changes of any table may be missing",
        );
    }
    if facts.filters.is_replica && !facts.logs_replicated {
        add(
            "the source is a replica that does not log what it replicates (log_slave_updates, log_replica_updates is off)".into(),
            "set log_slave_updates (log_replica_updates) in the source's configuration and restart it, or capture from its primary; \
             if it is a replica no more, RESET SLAVE ALL (RESET REPLICA ALL)",
        );
    }
}

/// What the current user may do: privileges in upper case, by scope (`*.*`, or `database.*`, `database.table`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Grants {
    by_scope: BTreeMap<String, BTreeSet<String>>,
    /// Whose they are, as GRANT spells it: `'cutover'@'%'`.
    user: String,
    /// Roles are granted, whose privileges this list may not show.
    pub roles: bool,
}

impl Grants {
    /// Asks for the current user's grants, those of its active roles included where the server shows them.
    pub async fn load(conn: &mut Conn) -> Result<Self, QueryError> {
        let lines: Vec<String> =
            conn.query("SHOW GRANTS").await.map_err(|error| QueryError::new("asking for the user's grants", error))?;
        Ok(Grants::parse(lines.iter().map(String::as_str)))
    }

    fn parse<'a>(lines: impl Iterator<Item = &'a str>) -> Self {
        let mut grants = Grants::default();
        for line in lines {
            let Some(rest) = line.strip_prefix("GRANT ") else { continue };
            // What may follow the user (a password's digest, options) begins with a space.
            if let Some((user, host)) = rest.rsplit_once(" TO ").and_then(|(_, to)| to.split_once('@')) {
                grants.user = format!("{user}@{}", host.split([' ', ';']).next().unwrap_or_default());
            }
            let Some((privileges, rest)) = rest.split_once(" ON ") else {
                grants.roles = true;
                continue;
            };
            let Some((scope, _)) = rest.split_once(" TO ") else { continue };
            // `_` and `%` of a database's name come escaped.
            let scope = scope.replace(['`', '\\'], "");
            let set = grants.by_scope.entry(scope).or_default();
            // A privilege on columns, `SELECT (a, b)`, is not one on the table.
            let whole = privileges.split(", ").filter(|privilege| !privilege.contains(['(', ')']));
            set.extend(whole.map(|privilege| privilege.trim().to_ascii_uppercase()));
        }
        grants
    }

    /// Whose they are, as GRANT spells it.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// What capture needs on the whole server and the user lacks.
    pub fn missing_everywhere(&self) -> Vec<Problem> {
        let needed =
            [("REPLICATION SLAVE", "to read the binlog"), ("REPLICATION CLIENT", "to ask for the binlog's position")];
        let missing = needed.into_iter().filter(|(privilege, _)| !self.everywhere(privilege));
        let problem = |(privilege, purpose)| Problem {
            what: format!("the source user has no {privilege}, which cutover needs {purpose}"),
            fix: format!("GRANT {privilege} ON *.* TO {}", self.user),
        };
        missing.map(problem).collect()
    }

    /// What the copy needs on these tables and the user lacks.
    pub fn missing_on(&self, tables: &[TableSchema], facts: &ServerFacts) -> Vec<Problem> {
        // Without GTIDs a chunk's place in the log is found under a short read lock (rule 13).
        let locks = facts.flavor == Flavor::Mysql && !facts.gtids;
        let mut problems = Vec::new();
        for (privilege, _) in [("SELECT", true), ("LOCK TABLES", locks)].into_iter().filter(|(_, needed)| *needed) {
            let lacks = |schema: &&TableSchema| !self.on(privilege, &schema.table.schema, &schema.table.table);
            let missing: Vec<&str> = tables.iter().filter(lacks).map(|schema| schema.table.table.as_str()).collect();
            let Some(first) = tables.first().filter(|_| !missing.is_empty()) else { continue };
            problems.push(Problem {
                what: format!("the source user has no {privilege} on {}", missing.join(", ")),
                fix: format!("GRANT {privilege} ON {}.* TO {}", quoted(&first.table.schema), self.user),
            });
        }
        problems
    }

    /// Whether `privilege` holds for everything on the server.
    pub fn everywhere(&self, privilege: &str) -> bool {
        self.at("*.*", privilege)
    }

    /// Whether `privilege` holds for a table.
    pub fn on(&self, privilege: &str, database: &str, table: &str) -> bool {
        self.everywhere(privilege)
            || self.at(&format!("{database}.*"), privilege)
            || self.at(&format!("{database}.{table}"), privilege)
    }

    fn at(&self, scope: &str, privilege: &str) -> bool {
        // MariaDB renamed two privileges in 10.5 and shows only the new names.
        let other_name = match privilege {
            "REPLICATION CLIENT" => "BINLOG MONITOR",
            "REPLICATION SLAVE" => "REPLICATION REPLICA",
            _ => privilege,
        };
        self.by_scope
            .get(scope)
            .is_some_and(|set| [privilege, other_name, "ALL PRIVILEGES", "ALL"].iter().any(|name| set.contains(*name)))
    }
}

/// A table's name in SQL: `` `database`.`table` ``.
pub fn table_sql(table: &crate::model::TableName) -> String {
    format!("{}.{}", quoted(&table.schema), quoted(&table.table))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> ServerFacts {
        ServerFacts {
            flavor: Flavor::Mysql,
            version: (8, 0, 15),
            version_text: "8.0.15".into(),
            server: "uuid".into(),
            gtids: true,
            log_bin: true,
            logs_replicated: true,
            binlog_format: "ROW".into(),
            binlog_row_image: "FULL".into(),
            metadata_full: true,
            partial_json: false,
            order_commits: true,
            checksum: "CRC32".into(),
            names_fold: false,
            purged: None,
            filters: Filters::default(),
            now_us: 0,
        }
    }

    #[test]
    fn every_setting_that_loses_rows_is_a_problem_with_a_fix() {
        assert_eq!(problems(&facts()), vec![]);
        let broken = ServerFacts {
            binlog_format: "MIXED".into(),
            binlog_row_image: "MINIMAL".into(),
            partial_json: true,
            version: (5, 6, 0),
            ..facts()
        };
        assert_eq!(problems(&broken).len(), 4);
        let off = problems(&ServerFacts { log_bin: false, ..facts() });
        assert!(off[0].what.contains("log_bin") && off[0].fix.contains("server_id"));
    }

    #[test]
    fn a_log_that_leaves_changes_out_is_a_problem_and_a_primary_that_would_as_a_replica_is_none() {
        let filtered = Filters { binlog: vec!["binlog-ignore-db = x".into()], ..Filters::default() };
        let told = problems(&ServerFacts { filters: filtered, ..facts() });
        assert!(told.len() == 1 && told[0].what.contains("binlog-ignore-db = x"), "{told:?}");
        let quiet = ServerFacts { logs_replicated: false, ..facts() };
        assert_eq!(problems(&quiet), vec![]);
        let replica = Filters { is_replica: true, ..Filters::default() };
        let told = problems(&ServerFacts { filters: replica.clone(), ..quiet });
        assert!(told.len() == 1 && told[0].fix.contains("log_replica_updates"), "{told:?}");
        assert_eq!(problems(&ServerFacts { filters: replica, ..facts() }), vec![]);
    }

    #[test]
    fn versions_of_both_families_parse() {
        assert_eq!(parse_version("5.7.22-log"), (5, 7, 22));
        assert_eq!(parse_version("9.7.4"), (9, 7, 4));
        assert_eq!(parse_version("10.11.19-MariaDB-0+deb12u1"), (10, 11, 19));
        assert_eq!(parse_version("5.5.5-10.11.19-MariaDB"), (10, 11, 19));
        assert_eq!(parse_version(""), (0, 0, 0));
    }

    #[test]
    fn grants_hold_at_their_scope_and_below() {
        let grants = Grants::parse(
            [
                "GRANT REPLICATION SLAVE, BINLOG MONITOR ON *.* TO `c`@`%` IDENTIFIED BY PASSWORD 'x'",
                "GRANT SELECT, LOCK TABLES ON `sh\\_op`.* TO `c`@`%`",
                "GRANT SELECT (`a`), INSERT ON `other`.`t` TO `c`@`%`",
                "GRANT `role`@`%` TO `c`@`%`",
            ]
            .into_iter(),
        );
        assert!(grants.everywhere("REPLICATION SLAVE") && grants.everywhere("REPLICATION CLIENT"));
        assert!(grants.on("SELECT", "sh_op", "any") && !grants.on("SELECT", "other", "t"));
        assert!(grants.on("INSERT", "other", "t") && !grants.everywhere("SELECT"));
        assert!(grants.roles);
        let all = Grants::parse(["GRANT ALL PRIVILEGES ON *.* TO 'root'@'localhost' WITH GRANT OPTION"].into_iter());
        assert!(all.everywhere("SELECT") && !all.roles);
    }
}

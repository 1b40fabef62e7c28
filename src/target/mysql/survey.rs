//! What a check asks of a MySQL or MariaDB target.

use std::collections::BTreeSet;

use mysql_async::{Conn, prelude::Queryable};

use super::{
    MysqlError,
    tables::{self, Tables},
};
use crate::{
    database::mysql::{
        connect::{Connector, QueryError, quoted},
        server::Grants,
    },
    model::{Plan, Problem, TargetTable},
};

/// What the user has to be allowed on a table that is written to, and in the database `cutover`.
const ON_TABLES: [&str; 4] = ["SELECT", "INSERT", "UPDATE", "DELETE"];
const ON_OWN: [&str; 8] =
    ["CREATE", "ALTER", "SELECT", "INSERT", "UPDATE", "DELETE", "DROP", "CREATE TEMPORARY TABLES"];

/// The target as it is: its tables, what its user may do, its triggers.
#[derive(Debug)]
pub struct Survey {
    tables: Tables,
    seen: Vec<TargetTable>,
    grants: Grants,
    database: String,
    /// Table and name.
    triggers: Vec<(String, String)>,
    /// How what is done is logged, if it is.
    binlog_format: Option<String>,
}

impl Survey {
    /// Asks the server that the URL names.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub async fn of(url: &str, database: &str) -> Result<Self, MysqlError> {
        let mut conn = Connector::new(url)?.connect().await?;
        let (seen, tables) = tables::load(&mut conn, database).await?;
        let grants = Grants::load(&mut conn).await?;
        let triggers = triggers(&mut conn, database).await?;
        let asked = |error| QueryError::new("asking for the target's settings", error);
        let format: Option<(u8, String)> =
            conn.query_first("SELECT @@log_bin, @@binlog_format").await.map_err(asked)?;
        let binlog_format = format.filter(|(on, _)| *on != 0).map(|(_, format)| format.to_ascii_uppercase());
        conn.disconnect().await.map_err(asked)?;
        Ok(Survey { tables, seen, grants, database: database.to_owned(), triggers, binlog_format })
    }

    /// The tables as transforms are checked against them.
    pub fn tables(&self) -> &[TargetTable] {
        &self.seen
    }

    /// What keeps these plans from running.
    pub fn problems(&self, plans: &[Plan]) -> Vec<Problem> {
        let mut problems = super::target::problems(plans, &self.tables);
        // Rows that are written at READ COMMITTED cannot be logged as statements.
        problems.extend((self.binlog_format.as_deref() == Some("STATEMENT")).then(|| {
            Problem::new(
                "the target logs statements (binlog_format = STATEMENT), and refuses what cutover writes at READ COMMITTED",
                "set binlog_format = ROW there",
            )
        }));
        // What a role allows is not listed.
        if self.grants.roles {
            return problems;
        }
        let targets: BTreeSet<&str> = plans.iter().map(|plan| plan.target.name.table.as_str()).collect();
        let lacks = |privilege: &&str| targets.iter().any(|table| !self.grants.on(privilege, &self.database, table));
        let missing: Vec<&str> = ON_TABLES.into_iter().filter(lacks).collect();
        problems.extend(self.missing(&missing, &self.database));
        let missing: Vec<&str> =
            ON_OWN.into_iter().filter(|privilege| !self.grants.on(privilege, "cutover", "")).collect();
        problems.extend(self.missing(&missing, "cutover"));
        problems
    }

    fn missing(&self, privileges: &[&str], database: &str) -> Option<Problem> {
        (!privileges.is_empty()).then(|| {
            let privileges = privileges.join(", ");
            Problem::new(
                format!("the target user has no {privileges} on `{database}`"),
                format!("GRANT {privileges} ON {}.* TO {}", quoted(database), self.grants.user()),
            )
        })
    }

    /// What is worth knowing: triggers fire for what cutover writes.
    pub fn warnings(&self, plans: &[Plan]) -> Vec<Problem> {
        let written = |table: &String| plans.iter().any(|plan| plan.target.name.table == *table);
        let warning = |(table, name): &(String, String)| {
            Problem::new(
                format!(
                    "the trigger `{name}` on {}.{table} fires for every row that cutover writes, repeated ones included",
                    self.database
                ),
                "begin its body with IF @cutover IS NULL THEN … END IF, if its work is done at the source already",
            )
        };
        let mixed = (self.binlog_format.as_deref() == Some("MIXED")).then(|| {
            Problem::new(
                "the target has binlog_format = MIXED: rows that are compared go through temporary tables, and into its binlog",
                "set binlog_format = ROW there, or let the user set it for its session; or compare seldom ([verify] rows_per_second = 0)",
            )
        });
        mixed.into_iter().chain(self.triggers.iter().filter(|(table, _)| written(table)).map(warning)).collect()
    }
}

async fn triggers(conn: &mut Conn, database: &str) -> Result<Vec<(String, String)>, MysqlError> {
    let sql = "SELECT c.EVENT_OBJECT_TABLE, c.TRIGGER_NAME FROM information_schema.TRIGGERS c \
               WHERE c.EVENT_OBJECT_SCHEMA = ? ORDER BY 1, 2";
    Ok(conn.exec(sql, (database,)).await.map_err(|error| QueryError::new("asking for the target's triggers", error))?)
}

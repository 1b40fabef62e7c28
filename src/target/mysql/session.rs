//! A session at the target, in which every warning is an error.
//!
//! Rows go in as literals, as many in a statement as it may have.

use mysql_async::{Conn, Row, prelude::Queryable};

use super::{
    MysqlError,
    errors::{TOO_LARGE, of_row, of_writing, refusal},
};
use crate::{
    database::mysql::connect::{Connector, QueryError},
    target::rows::RowsError,
};

/// Bytes of a statement, where the server takes as much.
const STATEMENT_BYTES: usize = 4 << 20;
/// What a packet has beside a statement, generously.
const PACKET_REST: usize = 64 << 10;
/// Warnings of a statement's own form: deprecated syntax (`VALUES()`, utf8mb3, display widths), a list that is too long
/// for ranges.
const OF_FORM: [u16; 6] = [1287, 1681, 3170, 3719, 3778, 4079];

/// A connection with the settings that it was opened with.
#[derive(Debug)]
pub(super) struct Session {
    conn: Conn,
    /// Nothing comes through it any more.
    pub is_broken: bool,
    /// Bytes that a statement may have.
    statement_bytes: usize,
    /// Bytes that a packet may have.
    packet_bytes: usize,
    /// The server knows `VALUES (…) AS name` (MySQL 8.0.19).
    names_values: bool,
}

impl Session {
    /// Connects, and sets what these statements set.
    ///
    /// # Errors
    /// When the server cannot be reached, or refuses.
    pub async fn open(connector: &Connector, settings: &[&str]) -> Result<Self, MysqlError> {
        let asked = |error| MysqlError::Query(QueryError::new("the target's session could not be set", error));
        let mut conn = connector.connect().await?;
        for setting in settings {
            conn.query_drop(*setting).await.map_err(asked)?;
        }
        let server: Option<(String, u64)> =
            conn.query_first("SELECT VERSION(), @@max_allowed_packet").await.map_err(asked)?;
        let (version, packet) = server.unwrap_or_default();
        let packet_bytes = usize::try_from(packet).unwrap_or(usize::MAX).saturating_sub(PACKET_REST);
        Ok(Session {
            conn,
            is_broken: false,
            statement_bytes: STATEMENT_BYTES.min(packet_bytes),
            packet_bytes,
            names_values: names_values(&version),
        })
    }

    /// Whether it is there still.
    pub async fn answers(&mut self) -> bool {
        !self.is_broken && self.conn.ping().await.is_ok()
    }

    /// Runs a statement of ours, whatever it warns of.
    pub async fn run(&mut self, sql: &str) -> Result<(), RowsError> {
        let done = self.conn.query_drop(sql).await;
        self.told(done)
    }

    /// Rows that a statement answers.
    pub async fn rows(&mut self, sql: &str) -> Result<Vec<Row>, RowsError> {
        let answer = self.conn.query(sql).await;
        self.told(answer)
    }

    /// Runs a statement that writes, and takes every warning for the error that it should be; how many rows it touched.
    pub async fn execute(&mut self, sql: &str) -> Result<u64, RowsError> {
        self.run(sql).await?;
        let touched = self.conn.affected_rows();
        if self.conn.get_warnings() > 0 {
            let warnings: Result<Vec<(String, u16, String)>, _> = self.conn.query("SHOW WARNINGS").await;
            let warnings = self.told(warnings)?;
            if let Some((_, code, message)) = warnings.iter().find(|(_, code, _)| !OF_FORM.contains(code)) {
                return Err(RowsError::Row(refusal(*code, "22000", message)));
            }
        }
        Ok(touched)
    }

    /// Sends rows, as many in a statement as it may have.
    pub async fn send(&mut self, before: &str, after: &str, rows: Vec<String>) -> Result<(), RowsError> {
        let own = before.len() + after.len();
        let mut sql = String::new();
        for row in rows {
            if own + row.len() > self.packet_bytes {
                let message = "the row is larger than the server's max_allowed_packet";
                return Err(RowsError::Row(of_row(TOO_LARGE, message)));
            }
            if !sql.is_empty() && sql.len() + row.len() + after.len() > self.statement_bytes {
                self.execute(&format!("{sql}{after}")).await?;
                sql.clear();
            }
            sql.push_str(if sql.is_empty() { before } else { ", " });
            sql.push_str(&row);
        }
        if !sql.is_empty() {
            sql.push_str(after);
            self.execute(&sql).await?;
        }
        Ok(())
    }

    /// What makes an INSERT of rows that are there, and locked, write over them.
    pub fn on_duplicate(&self, names: &[String]) -> String {
        let set: Vec<String> = names
            .iter()
            .map(|name| {
                if self.names_values {
                    format!("{name} = cutover_new.{name}")
                } else {
                    format!("{name} = VALUES({name})")
                }
            })
            .collect();
        let alias = if self.names_values { " AS cutover_new" } else { "" };
        format!("{alias} ON DUPLICATE KEY UPDATE {}", set.join(", "))
    }

    /// An answer; a connection that broke is known as such from then on.
    fn told<T>(&mut self, answer: Result<T, mysql_async::Error>) -> Result<T, RowsError> {
        answer.map_err(|error| {
            self.is_broken |= !matches!(error, mysql_async::Error::Server(_));
            of_writing(error)
        })
    }
}

/// Whether a server of this version knows `VALUES (…) AS name`, and warns of `VALUES()`.
fn names_values(version: &str) -> bool {
    if version.to_ascii_lowercase().contains("mariadb") {
        return false;
    }
    let mut numbers = version.split(['.', '-']).map(|part| part.parse::<u32>().unwrap_or_default());
    let mut next = || numbers.next().unwrap_or_default();
    (next(), next(), next()) >= (8, 0, 19)
}

#[cfg(test)]
mod tests {
    use super::names_values;

    #[test]
    fn values_have_a_name_from_8_0_19_on() {
        for (version, known) in
            [("5.7.44-log", false), ("8.0.15", false), ("8.0.19", true), ("9.7.0", true), ("10.11.6-MariaDB", false)]
        {
            assert_eq!(names_values(version), known, "{version}");
        }
    }
}

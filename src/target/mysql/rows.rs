//! A connection that writes facts: its session, its transactions, its lane.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use mysql_async::{Conn, Row, prelude::Queryable};
use tokio::time::Instant;

use super::{
    MysqlError,
    errors::{of_writing, refusal},
    tables::Tables,
};
use crate::{
    database::mysql::connect::{Connector, QueryError},
    log::Topic,
    model::{Plan, Problem, Version},
    target::{
        ApplyError, Counts, Lane,
        rows::{Fact, FactKind, Rows, RowsError},
    },
};

/// The session of a writer. Strict, so that no value is changed in silence; a 0 is no wish for the next number; foreign
/// keys rest, since their rows come in the source's order and their actions as changes of their own; a transaction
/// whose writer is gone ends soon; `@cutover` is what triggers of the target's own can be guarded by.
const SESSION: &str = "SET SESSION sql_mode = 'STRICT_ALL_TABLES,NO_AUTO_VALUE_ON_ZERO', foreign_key_checks = 0, \
                       unique_checks = 1, innodb_lock_wait_timeout = 10, wait_timeout = 60, sql_notes = 1, \
                       @cutover = 1";
/// Who writes a copy gives way soon: what holds up the writer that it waits for may be a lock of its own in PostgreSQL.
const GIVES_WAY: &str = "SET SESSION innodb_lock_wait_timeout = 2";
/// Locks nothing but the rows that it writes.
const ISOLATION: &str = "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED";
/// A mark that no other writer of the lane waits for.
const MARK: &str = "INSERT INTO `cutover`.`marks` (`writer`) VALUES (CONNECTION_ID()) \
                    ON DUPLICATE KEY UPDATE `nonce` = `nonce` + 1";
/// Longer idle than this, a connection is asked whether it is there still.
const IDLE: Duration = Duration::from_secs(10);
/// Bytes of a statement, where the server takes as much.
const STATEMENT_BYTES: usize = 4 << 20;
/// What a packet has beside a statement, generously.
const PACKET_REST: usize = 64 << 10;
/// Warnings of a statement's own form: deprecated syntax (`VALUES()`, utf8mb3, display widths), a list that is too long
/// for ranges.
const OF_FORM: [u16; 6] = [1287, 1681, 3170, 3719, 3778, 4079];

/// Which lane a connection writes, and under which number.
#[derive(Debug, Clone)]
pub(super) struct LaneOf {
    pub pipeline: String,
    pub lane: Lane,
    pub partition: u32,
    pub number: i64,
}

impl LaneOf {
    /// Whether others write the lane beside it: those of a copy.
    fn is_shared(&self) -> bool {
        self.lane == Lane::Live(Topic::Snapshot)
    }
}

/// Writes facts to a MySQL or MariaDB, over a connection of its own.
#[derive(Debug)]
pub(super) struct MysqlRows {
    connector: Connector,
    pub(super) tables: Arc<Tables>,
    lane: LaneOf,
    conn: Option<Conn>,
    /// A transaction is open.
    open: bool,
    last_used: Instant,
    /// Bytes that a statement may have.
    pub(super) statement_bytes: usize,
    /// Bytes that a packet may have.
    pub(super) packet_bytes: usize,
    /// The server knows `VALUES (…) AS name` (MySQL 8.0.19).
    pub(super) names_values: bool,
}

impl MysqlRows {
    pub fn new(connector: Connector, tables: Arc<Tables>, lane: LaneOf) -> Self {
        MysqlRows {
            connector,
            tables,
            lane,
            conn: None,
            open: false,
            last_used: Instant::now(),
            statement_bytes: STATEMENT_BYTES,
            packet_bytes: STATEMENT_BYTES,
            names_values: false,
        }
    }

    /// Takes the lane under this number, unless a higher one has it: that one. Waits for a transaction that a
    /// predecessor has open.
    pub async fn claim(&mut self) -> Result<Option<i64>, ApplyError> {
        let LaneOf { pipeline, lane, partition, number } = &self.lane;
        let take = format!(
            "INSERT INTO `cutover`.`lanes` (`pipeline`, `lane`, `part`, `number`) \
             VALUES ('{pipeline}', '{}', {partition}, {number}) \
             ON DUPLICATE KEY UPDATE `number` = GREATEST(`number`, {number})",
            lane.name(),
        );
        let holder = format!("SELECT `number` FROM `cutover`.`lanes` WHERE {}", self.lane_is());
        let conn = self.connection().await?;
        conn.query_drop(take).await.map_err(stopped)?;
        let holder: Option<i64> = conn.query_first(holder).await.map_err(stopped)?;
        Ok(holder.filter(|holder| *holder != self.lane.number))
    }

    /// Why a lane cannot be taken that a higher number has, though the state knows of none.
    pub fn of_another_state(&self, holder: i64) -> ApplyError {
        let LaneOf { pipeline, number, .. } = &self.lane;
        ApplyError::Halt(Problem::new(
            format!(
                "the target was written to under the number {holder}, and the pipeline's state in PostgreSQL is at {number}: it is \
                 another state, or an older one"
            ),
            format!(
                "name the PostgreSQL that has the pipeline's state; if it is gone for good, run DELETE FROM cutover.lanes WHERE \
                 pipeline = '{pipeline}' at the target and start again"
            ),
        ))
    }

    fn lane_is(&self) -> String {
        let LaneOf { pipeline, lane, partition, .. } = &self.lane;
        format!("`pipeline` = '{pipeline}' AND `lane` = '{}' AND `part` = {partition}", lane.name())
    }

    pub(super) fn fenced(&self) -> ApplyError {
        let LaneOf { pipeline, lane, partition, .. } = &self.lane;
        ApplyError::Fenced { topic: lane.name(), partition: *partition, pipeline: pipeline.clone() }
    }

    /// The connection; made if there is none, or if it is gone and nothing was lost with it.
    async fn connection(&mut self) -> Result<&mut Conn, ApplyError> {
        if !self.open
            && self.last_used.elapsed() > IDLE
            && let Some(conn) = &mut self.conn
            && conn.ping().await.is_err()
        {
            self.conn = None;
        }
        self.last_used = Instant::now();
        let conn = match self.conn.take() {
            Some(conn) => conn,
            None => self.connect().await?,
        };
        Ok(self.conn.insert(conn))
    }

    async fn connect(&mut self) -> Result<Conn, MysqlError> {
        let asked = |error| MysqlError::Query(QueryError::new("the target's session could not be set", error));
        let mut conn = self.connector.connect().await?;
        conn.query_drop(SESSION).await.map_err(asked)?;
        conn.query_drop(ISOLATION).await.map_err(asked)?;
        if self.lane.is_shared() {
            conn.query_drop(GIVES_WAY).await.map_err(asked)?;
        }
        let server: Option<(String, u64)> =
            conn.query_first("SELECT VERSION(), @@max_allowed_packet").await.map_err(asked)?;
        if let Some((version, packet)) = server {
            self.packet_bytes = usize::try_from(packet).unwrap_or(usize::MAX).saturating_sub(PACKET_REST);
            self.statement_bytes = STATEMENT_BYTES.min(self.packet_bytes);
            self.names_values = names_values(&version);
        }
        Ok(conn)
    }

    /// The connection of the open transaction.
    pub(super) fn conn(&mut self) -> Result<&mut Conn, ApplyError> {
        self.last_used = Instant::now();
        self.conn.as_mut().ok_or_else(|| ApplyError::Unreachable("the connection to the target was lost".into()))
    }

    /// Rows that a statement answers.
    pub(super) async fn rows(&mut self, sql: &str) -> Result<Vec<Row>, RowsError> {
        let answer = self.conn()?.query(sql).await;
        self.told(answer)
    }

    /// Runs a statement that writes, and takes every warning for the error that it should be; how many rows it touched.
    pub(super) async fn execute(&mut self, sql: &str) -> Result<u64, RowsError> {
        let done = self.conn()?.query_drop(sql).await;
        self.told(done)?;
        let conn = self.conn()?;
        let touched = conn.affected_rows();
        if conn.get_warnings() > 0 {
            let warnings: Result<Vec<(String, u16, String)>, _> = conn.query("SHOW WARNINGS").await;
            let warnings = self.told(warnings)?;
            if let Some((_, code, message)) = warnings.iter().find(|(_, code, _)| !OF_FORM.contains(code)) {
                return Err(RowsError::Row(refusal(*code, "22000", message)));
            }
        }
        Ok(touched)
    }

    /// An answer; a connection that broke is given up.
    fn told<T>(&mut self, answer: Result<T, mysql_async::Error>) -> Result<T, RowsError> {
        answer.map_err(|error| {
            if !matches!(error, mysql_async::Error::Server(_)) {
                self.conn = None;
            }
            of_writing(error)
        })
    }

    async fn run(&mut self, sql: &str) -> Result<(), ApplyError> {
        let done = self.conn()?.query_drop(sql).await;
        self.told(done).map_err(no_row)
    }

    async fn start(&mut self) -> Result<(), ApplyError> {
        self.connection().await?;
        self.run("START TRANSACTION").await?;
        self.open = true;
        Ok(())
    }

    /// Marks the transaction as ours and takes the lane for it; false if another one has it.
    async fn take_lane(&mut self) -> Result<bool, ApplyError> {
        let number = self.lane.number;
        if self.lane.is_shared() {
            self.run(MARK).await?;
            let hold = format!(
                "SELECT `part` FROM `cutover`.`lanes` WHERE {} AND `number` = {number} LOCK IN SHARE MODE",
                self.lane_is()
            );
            return Ok(!self.rows(&hold).await.map_err(no_row)?.is_empty());
        }
        let hold = format!(
            "UPDATE `cutover`.`lanes` SET `nonce` = `nonce` + 1 WHERE {} AND `number` = {number}",
            self.lane_is()
        );
        Ok(self.execute(&hold).await.map_err(no_row)? > 0)
    }

    /// Begins a transaction that writes while no lane of the pipeline does.
    pub(super) async fn begin_alone(&mut self) -> Result<(), ApplyError> {
        self.start().await?;
        let locked = match self.run(MARK).await {
            Ok(()) => self.lock_lanes().await.map_err(no_row),
            Err(error) => Err(error),
        };
        if locked.is_err() {
            self.roll_back().await;
        }
        locked
    }

    /// Locks every lane of the pipeline: nobody else writes until the commit.
    async fn lock_lanes(&mut self) -> Result<(), RowsError> {
        let lock =
            format!("SELECT `part` FROM `cutover`.`lanes` WHERE `pipeline` = '{}' FOR UPDATE", self.lane.pipeline);
        self.rows(&lock).await.map(|_| ())
    }
}

#[async_trait]
impl Rows for MysqlRows {
    async fn begin(&mut self) -> Result<(), ApplyError> {
        if self.open {
            // What was written before is lost with its connection.
            return self.conn().map(|_| ());
        }
        self.start().await?;
        match self.take_lane().await {
            Ok(true) => Ok(()),
            taken => {
                // Nothing may be written without the lane, not even at the second try.
                self.roll_back().await;
                taken.and_then(|_| Err(self.fenced()))
            }
        }
    }

    async fn write(
        &mut self,
        plan: &Plan,
        kind: FactKind,
        facts: Vec<Fact>,
        replace: bool,
    ) -> Result<Counts, RowsError> {
        self.write_facts(plan, kind, facts, replace).await
    }

    async fn empty(&mut self, plans: &[&Plan], version: Version) -> Result<(), RowsError> {
        self.lock_lanes().await?;
        for plan in plans {
            self.remove_older(&plan.target.name, version, u64::MAX).await?;
        }
        Ok(())
    }

    async fn savepoint(&mut self, sql: &'static str) -> Result<(), ApplyError> {
        if self.open { self.run(sql).await } else { Ok(()) }
    }

    async fn commit(&mut self) -> Result<(), ApplyError> {
        if !self.open {
            return Ok(());
        }
        self.run("COMMIT").await?;
        self.open = false;
        Ok(())
    }

    async fn roll_back(&mut self) {
        if std::mem::take(&mut self.open) && self.run("ROLLBACK").await.is_err() {
            self.conn = None;
        }
    }
}

/// An error of a statement of ours, which has no row to blame.
fn no_row(error: RowsError) -> ApplyError {
    match error {
        RowsError::Stop(error) => error,
        RowsError::Row(refusal) => ApplyError::Halt(Problem::new(
            format!("the target refused cutover's own tables: {refusal}"),
            "let nothing else write to the database `cutover`, and start again",
        )),
    }
}

fn stopped(error: mysql_async::Error) -> ApplyError {
    no_row(of_writing(error))
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

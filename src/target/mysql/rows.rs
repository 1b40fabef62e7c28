//! A connection that writes facts: its session, its transactions, its lane.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use mysql_async::Row;
use tokio::time::Instant;

use super::{errors::no_row, keys::texts, session::Session, tables::Tables};
use crate::{
    database::mysql::connect::Connector,
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
/// Longer idle than this, a connection is asked whether it is there still.
const IDLE: Duration = Duration::from_secs(10);
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
    session: Option<Session>,
    /// A transaction is open.
    open: bool,
    last_used: Instant,
}

impl MysqlRows {
    pub fn new(connector: Connector, tables: Arc<Tables>, lane: LaneOf) -> Self {
        MysqlRows { connector, tables, lane, session: None, open: false, last_used: Instant::now() }
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
        self.connect().await?;
        self.run(&take).await?;
        let found = self.rows(&holder).await.map_err(no_row)?;
        let holder = found.into_iter().next().and_then(|row| texts(row).first()?.parse().ok());
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

    /// Connects if there is no connection, or if it is gone and nothing was lost with it.
    async fn connect(&mut self) -> Result<(), ApplyError> {
        if !self.open
            && self.last_used.elapsed() > IDLE
            && let Some(session) = &mut self.session
            && !session.answers().await
        {
            self.session = None;
        }
        self.last_used = Instant::now();
        if self.session.as_ref().is_none_or(|session| session.is_broken) {
            let settings: &[&str] =
                if self.lane.is_shared() { &[SESSION, ISOLATION, GIVES_WAY] } else { &[SESSION, ISOLATION] };
            self.session = Some(Session::open(&self.connector, settings).await?);
        }
        Ok(())
    }

    /// The session of the open transaction.
    pub(super) fn session(&mut self) -> Result<&mut Session, ApplyError> {
        self.last_used = Instant::now();
        let session = self.session.as_mut().filter(|session| !session.is_broken);
        session.ok_or_else(|| ApplyError::Unreachable("the connection to the target was lost".into()))
    }

    async fn rows(&mut self, sql: &str) -> Result<Vec<Row>, RowsError> {
        self.session()?.rows(sql).await
    }

    async fn run(&mut self, sql: &str) -> Result<(), ApplyError> {
        self.session()?.run(sql).await.map_err(no_row)
    }

    /// Marks the transaction as the pipeline's, with a row that no other writer of the lane waits for.
    async fn mark(&mut self) -> Result<(), ApplyError> {
        let mark = format!(
            "INSERT INTO `cutover`.`pipeline_marks` (`pipeline`, `writer`) VALUES ('{}', CONNECTION_ID()) \
             ON DUPLICATE KEY UPDATE `nonce` = `nonce` + 1",
            self.lane.pipeline
        );
        self.run(&mark).await
    }

    async fn start(&mut self) -> Result<(), ApplyError> {
        self.connect().await?;
        self.run("START TRANSACTION").await?;
        self.open = true;
        Ok(())
    }

    /// Marks the transaction as ours and takes the lane for it; false if another one has it.
    async fn take_lane(&mut self) -> Result<bool, ApplyError> {
        let number = self.lane.number;
        if self.lane.is_shared() {
            self.mark().await?;
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
        Ok(self.session()?.execute(&hold).await.map_err(no_row)? > 0)
    }

    /// Begins a transaction that writes while no lane of the pipeline does.
    pub(super) async fn begin_alone(&mut self) -> Result<(), ApplyError> {
        self.start().await?;
        let locked = match self.mark().await {
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
            return self.session().map(|_| ());
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
            self.session = None;
        }
    }
}

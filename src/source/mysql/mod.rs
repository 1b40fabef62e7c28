//! Capture from the binlog of MySQL and MariaDB.
//!
//! ```text
//!  binlog ─► stream ─► binlog::decode ─► reader (tables, progress, clock) ─► CaptureEvent
//!            checksums   pure            no IO                 ▲
//!                                                          catalog, on a second connection
//! ```
//!
//! What enters: a position with the clock's state there, and the watched tables. What leaves: their changes in log
//! order, each with its version, and a position after every transaction. Invariants: a version depends on the log and
//! the clock's stored state alone, never on the table list or on when the log is read; nothing that could change a
//! watched row is skipped, what cannot be followed halts. Deliberately absent: buffering of transactions, XA
//! transactions that change watched tables (they halt: whether they commit is known only later), and changes of watched
//! rows as statements (they halt as well).

pub mod binlog;
mod cascades;
pub(crate) mod config;
mod described;
mod echo;
#[doc(hidden)]
pub mod fuzz;
mod links;
mod open;
mod progress;
mod reader;
mod resume;
mod statement;
mod stream;
mod tables;

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use mysql_async::Conn;

pub use self::cascades::Links;
pub use self::config::MysqlSourceConfig;
pub use self::open::MysqlSource;
use self::{
    binlog::{DecodeOptions, JsonDoubles, ddl::Names},
    progress::Progress,
    reader::{LogReader, Pending},
    stream::{RawEventStream, Start},
    tables::Tables,
};
use super::{CaptureError, CaptureEvent, ChangeStream};
use crate::{
    database::mysql::{
        catalog::{CatalogError, load_tables},
        connect::{ConnectError, QueryError},
        liveness, reach,
        server::{self, ServerFacts},
    },
    model::{Clock, Disposition, Flavor, MysqlPosition, Problem, TableName, TableSchema, Version, ZeroDates},
    state::Store,
};

/// A running capture.
#[derive(Debug)]
pub struct MysqlStream {
    config: MysqlSourceConfig,
    stream: RawEventStream,
    reader: LogReader,
    /// What ended the stream; it stays ended.
    failed: bool,
    /// Where foreign keys that change rows unseen are noted, where they are followed.
    cascades: Option<Arc<Store>>,
    logs_cascades: bool,
}

impl MysqlStream {
    /// Opens the log after `from` (a position and the clock's state there), or, without it, where the server is now,
    /// with the clock at the server's time, or at `clock_min` if that is later, so that the first snapshot watermark is
    /// above every version from before.
    ///
    /// `known` are the schemas as of that position; of watched tables that are not among them the catalog's present
    /// ones are taken. First come the schemas of all watched tables and a heartbeat with the position.
    pub async fn open(
        config: &MysqlSourceConfig,
        from: Option<(MysqlPosition, Version)>,
        known: &[Arc<TableSchema>],
        watched: &[TableName],
    ) -> Result<Self, CaptureError> {
        let conn = config.connector.connect().await.map_err(connect_error)?;
        let id = conn.id();
        let opened = liveness::answered(&config.connector, id, Self::open_on(conn, config, from, known, watched)).await;
        opened.unwrap_or_else(|| Err(gone()))
    }

    async fn open_on(
        mut conn: Conn,
        config: &MysqlSourceConfig,
        from: Option<(MysqlPosition, Version)>,
        known: &[Arc<TableSchema>],
        watched: &[TableName],
    ) -> Result<Self, CaptureError> {
        let facts = ServerFacts::load(&mut conn).await.map_err(query_error)?;
        refuse_settings(&facts)?;
        let clock_ahead_max_us = config.clock_ahead_max_us;
        let (position, clock) = match from {
            Some((position, clock)) => (position, Clock::new(clock, clock_ahead_max_us)),
            None => {
                let position = server::current_position(&mut conn, &facts).await.map_err(query_error)?;
                (position, Clock::new(facts.now_us.max(config.clock_min), clock_ahead_max_us))
            }
        };
        let start = resume::plan(&mut conn, &facts, &position).await?;
        let flavor = facts.flavor;
        let mut progress = Progress::new(&position, facts.flavor == Flavor::Mariadb)
            .map_err(|error| halt(format!("the stored position cannot be read: {error}"), COPY_AGAIN))?;
        progress.moved_to(&facts.server);
        let schemas = watched_schemas(&mut conn, known, watched).await?;
        let tables = Tables::new(schemas.iter().cloned(), decode_options(&facts, config.zero_dates), facts.names_fold);
        let mut reader = LogReader::new(flavor, progress, tables, clock, config.now_us).without_echoes_of(&config.peer);
        for schema in schemas {
            reader.deliver(CaptureEvent::Schema(schema));
        }
        // After a failover the stored file is none of this server's: its own name comes with the first event.
        if position.server == facts.server {
            reader.say_idle((config.now_us)());
        }
        tracing::info!(
            server = config.connector.server(),
            version = facts.version_text,
            gtids = !matches!(start, Start::File { .. }),
            file = position.file,
            offset = position.offset,
            tables = watched.len(),
            "capture starts"
        );
        let stream = RawEventStream::open(conn, flavor, &start, config.server_id).await?;
        let logs_cascades = facts.logs_cascades();
        Ok(MysqlStream { config: config.clone(), stream, reader, failed: false, cascades: None, logs_cascades })
    }

    /// Tells from now on what foreign keys may have done unseen, and notes in `store` which there are.
    async fn with_cascades(mut self, store: Arc<Store>) -> Result<Self, CaptureError> {
        if !self.logs_cascades {
            self.cascades = Some(store);
            self.find_links().await?;
        }
        Ok(self)
    }

    /// Asks the catalog for foreign keys that change rows unseen. Those that were known before stay: what they did may
    /// be still to be read.
    async fn find_links(&mut self) -> Result<(), CaptureError> {
        self.reader.links_stale = false;
        let Some(store) = self.cascades.clone() else { return Ok(()) };
        let known = store.cascade_links().await?;
        let mut conn = self.config.connector.connect().await.map_err(connect_error)?;
        let id = conn.id();
        let tables = &self.reader.tables;
        let found = async {
            let (links, present) = links::reaching(&mut conn, tables, known.clone()).await.map_err(query_error)?;
            let schemas = links::parents_beside(&mut conn, tables, &links).await.map_err(catalog_error)?;
            let is_read = |parent: &TableName| tables.reads(parent) || schemas.iter().any(|s| s.table == *parent);
            let mut parents = links.iter().map(|link| &link.parent);
            let missing = parents.find(|parent| present.contains(*parent) && !is_read(parent)).cloned();
            match missing {
                Some(parent) => Err(unseen(&parent)),
                None => Ok((links, schemas)),
            }
        };
        let found = liveness::answered(&self.config.connector, id, found).await.ok_or_else(gone)?;
        let (links, schemas) = found?;
        if let Err(error) = conn.disconnect().await {
            tracing::debug!(%error, "closing the catalog's connection");
        }
        if links != known {
            store.set_cascade_links(&links).await?;
        }
        for schema in schemas {
            self.reader.tables.follow(Arc::new(schema));
        }
        let tables = &self.reader.tables;
        self.reader.links = Links::new(&links, |table| tables.compared(table));
        Ok(())
    }

    /// The end of the last transaction that [`Source::next`] has read, and the clock's state there.
    pub fn current_position(&self) -> (MysqlPosition, Version) {
        self.reader.position()
    }

    async fn read_until_captured(&mut self) -> Result<CaptureEvent, CaptureError> {
        loop {
            if let Some(captured) = self.reader.take() {
                return Ok(captured);
            }
            let event = self.stream.next().await?;
            let pending = self.reader.read(&event.header, event.body())?;
            if self.reader.links_stale {
                self.find_links().await?;
            }
            match pending {
                None => {}
                Some(Pending::Map(pending)) => {
                    let catalog = self.present_schema(&pending.table).await?;
                    self.reader.bind(*pending, catalog)?;
                }
                Some(Pending::Reach { change, names, emptied }) => match self.reach(&names, emptied).await? {
                    None => self.reader.stays_outside(names),
                    Some(why) => return Err(self.reader.row_change_refused(&change, &why)),
                },
            }
        }
    }

    /// Why a row change that names no watched table may have changed one all the same. A table that is `emptied` may be
    /// one that a server has emptied which comes up again.
    async fn reach(&self, names: &Names, emptied: bool) -> Result<Option<String>, CaptureError> {
        let mut conn = self.config.connector.connect().await.map_err(connect_error)?;
        let compared = |tables: &[TableName]| -> Vec<TableName> {
            tables.iter().map(|table| self.reader.tables.compared(table)).collect()
        };
        let (written, read) = (compared(&names.written), compared(&names.read));
        let watched: Vec<TableName> = self.reader.tables.watched().cloned().collect();
        let (id, watched) = (conn.id(), compared(&watched));
        let why = async {
            if let (true, [table]) = (emptied, written.as_slice())
                && reach::may_be_in_memory(&mut conn, table).await?
            {
                return Ok(None);
            }
            reach::why_captured_rows_may_change(&mut conn, &written, &read, &watched).await
        };
        let why = liveness::answered(&self.config.connector, id, why).await.ok_or_else(gone)?;
        let why = why.map_err(query_error)?;
        if let Err(error) = conn.disconnect().await {
            tracing::debug!(%error, "closing the catalog's connection");
        }
        Ok(why)
    }

    async fn present_schema(&self, table: &TableName) -> Result<Option<TableSchema>, CaptureError> {
        let mut conn = self.config.connector.connect().await.map_err(connect_error)?;
        let (id, only) = (conn.id(), [table.table.clone()]);
        let schemas = load_tables(&mut conn, &table.schema, Some(&only));
        let schemas = liveness::answered(&self.config.connector, id, schemas).await.ok_or_else(gone)?;
        let schemas = schemas.map_err(catalog_error)?;
        if let Err(error) = conn.disconnect().await {
            tracing::debug!(%error, "closing the catalog's connection");
        }
        Ok(schemas.into_iter().next())
    }
}

#[async_trait]
impl ChangeStream for MysqlStream {
    async fn next(&mut self) -> Result<CaptureEvent, CaptureError> {
        if self.failed {
            return Err(CaptureError::Unreachable("its stream has ended".into()));
        }
        let captured = self.read_until_captured().await;
        self.failed = captured.is_err();
        captured
    }

    fn raise_clock(&mut self, floor: Version) -> bool {
        self.reader.raise_clock(floor)
    }
}

/// The schemas that capture starts with: of every watched table the known one, else the catalog's.
async fn watched_schemas(
    conn: &mut Conn,
    known: &[Arc<TableSchema>],
    watch: &[TableName],
) -> Result<Vec<Arc<TableSchema>>, CaptureError> {
    let mut schemas: BTreeMap<TableName, Arc<TableSchema>> = known
        .iter()
        .filter(|schema| watch.contains(&schema.table))
        .map(|schema| (schema.table.clone(), Arc::clone(schema)))
        .collect();
    let mut missing: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for table in watch.iter().filter(|table| !schemas.contains_key(*table)) {
        missing.entry(&table.schema).or_default().push(table.table.clone());
    }
    for (database, tables) in missing {
        for schema in load_tables(conn, database, Some(&tables)).await.map_err(catalog_error)? {
            schemas.insert(schema.table.clone(), Arc::new(schema));
        }
    }
    for table in watch {
        match schemas.get(table) {
            Some(schema) if !schema.key.is_empty() => {}
            Some(_) => {
                return Err(halt(
                    format!("{table} has no primary key and no unique key without nulls"),
                    "add one at the source, or leave the table out of [source] tables",
                ));
            }
            None => {
                return Err(halt(
                    format!("the source has no table {table}, or its user may not read it"),
                    "correct [source] tables, or GRANT SELECT on it",
                ));
            }
        }
    }
    Ok(schemas.into_values().collect())
}

fn decode_options(facts: &ServerFacts, zero_dates: ZeroDates) -> DecodeOptions {
    let bare = facts.flavor == Flavor::Mysql && facts.version < (8, 0, 0);
    DecodeOptions { zero_dates, json_doubles: if bare { JsonDoubles::Bare } else { JsonDoubles::Marked } }
}

fn refuse_settings(facts: &ServerFacts) -> Result<(), CaptureError> {
    match server::problems(facts).into_iter().next() {
        Some(problem) => Err(CaptureError::Halt(problem)),
        None => Ok(()),
    }
}

/// After a gap there is one repair, whatever made it.
const COPY_AGAIN: &str = "keep binlogs longer (binlog_expire_logs_seconds, expire_logs_days) and copy every table again with \
     `cutover resnapshot TABLE`: capture goes on from where the source is then";

fn halt(reason: impl Into<String>, remedy: impl Into<String>) -> CaptureError {
    CaptureError::Halt(Problem::new(reason, remedy))
}

/// Rows of this table change captured ones, and cannot be read.
fn unseen(parent: &TableName) -> CaptureError {
    halt(
        format!("foreign keys lead from captured tables to {parent}, which the source user may not see"),
        format!(
            "GRANT SELECT ON {} to it and start again; or say [source] cascades = \"none\" if rows may stay at the target",
            server::table_sql(parent)
        ),
    )
}

/// The session ended at the server alone.
fn gone() -> CaptureError {
    CaptureError::Unreachable("it no longer has the session, though the connection stands".into())
}

/// What was captured and what the source has do not join.
fn lost(reason: impl Into<String>, remedy: impl Into<String>) -> CaptureError {
    CaptureError::Lost(Problem::new(reason, remedy))
}

fn connect_error(error: ConnectError) -> CaptureError {
    match error.disposition() {
        Disposition::Retry => CaptureError::Unreachable(error.to_string()),
        Disposition::Halt | Disposition::DeadLetter => {
            CaptureError::Halt(error.problem().or("correct it and start again"))
        }
    }
}

fn query_error(error: QueryError) -> CaptureError {
    match error.disposition() {
        Disposition::Retry => CaptureError::Unreachable(error.to_string()),
        Disposition::Halt | Disposition::DeadLetter => {
            halt(format!("{error}"), "grant what is missing (`cutover check` lists it) and start again")
        }
    }
}

fn catalog_error(error: CatalogError) -> CaptureError {
    match error.disposition() {
        Disposition::Retry => CaptureError::Unreachable(error.to_string()),
        Disposition::Halt | Disposition::DeadLetter => {
            CaptureError::Halt(error.problem().or("GRANT SELECT on the tables to the source user"))
        }
    }
}

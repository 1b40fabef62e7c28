//! Capture from PostgreSQL's logical replication.
//!
//! ```text
//!  slot ─► replication ─► pgoutput::decode ─► reader (relations, clock) ─► CaptureEvent
//!          connection     pure                no IO        ▲
//!                                                      catalog, and rows by key, on sessions of their own
//! ```
//!
//! What enters: a position with the clock's state there, and the watched tables. What leaves: their changes in the
//! order of commits, each with its version, and a position after every transaction. Invariants: the server is told that
//! it need not keep what is durable, and no more; a value that is not in the log (an unchanged one that is stored out
//! of line) is read from the row, never left out; a stored position that the slot does not join is refused.
//! Deliberately absent: parts of transactions before they commit (the server spills them, and rows leave here as they
//! come), and two-phase commits before their second phase.

mod catalog;
pub mod config;
mod judgement;
mod open;
pub mod pgoutput;
mod reader;
mod relations;
mod resume;

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use async_trait::async_trait;
use tokio::time::Instant;
use tokio_postgres::Client;

pub use self::config::PostgresSourceConfig;
pub use self::open::PostgresSource;
use self::{
    catalog::Catalog,
    pgoutput::{Frame, Message, Relation},
    reader::{Incomplete, LogReader, Next},
    relations::Described,
};
use super::{CaptureError, CaptureEvent, ChangeStream};
use crate::{
    database::postgres::{
        Options, PgError, Session,
        in_flight::PgSnapshot,
        publication::{self, PublicationError},
        replication::{Replication, WalStream},
        scan::{ScanError, Scanner},
        server::ServerFacts,
        slot,
        tables::{self, SourceTable},
    },
    model::{Clock, Column, Disposition, Lsn, PostgresPosition, Problem, TableName, TableSchema, Value, Version},
};

/// How often the server is told what is durable, and asked how far it is.
const REPORT_EVERY: Duration = Duration::from_millis(500);
/// A server that answers none of this many questions is gone.
const UNANSWERED_MAX: u32 = 120;
/// Beyond this many, transactions that reads see are forgotten though nobody reads.
const IN_FLIGHT_MAX: usize = 8192;
/// After a gap there is one repair, whatever made it.
const COPY_AGAIN: &str =
    "copy every table again with `cutover resnapshot TABLE`: capture goes on from where the source is then";

/// A running capture.
#[derive(Debug)]
pub struct PostgresStream {
    config: PostgresSourceConfig,
    stream: WalStream,
    reader: LogReader,
    /// For the catalog, and for values that are not in the log.
    side_scanner: Option<Scanner>,
    catalog: Option<Catalog>,
    report_at: Instant,
    unanswered: u32,
    /// What ended the stream; it stays ended.
    failed: bool,
}

impl PostgresStream {
    /// Opens the slot after `from` (a position and the clock's state there), or, without it, where the slot is, which
    /// is made first where there is none, with the clock at the server's time, or at `clock_min` if that is later.
    ///
    /// `known` are the schemas as of that position; of watched tables that are not among them the catalog's present
    /// ones are taken.
    pub async fn open(
        config: &PostgresSourceConfig,
        from: Option<(PostgresPosition, Version)>,
        known: &[Arc<TableSchema>],
        watched: &[TableName],
    ) -> Result<Self, CaptureError> {
        let (session, facts, present) = prepared(config, watched).await?;
        let mut catalog = Catalog::load(config, facts.version, watched).await?;
        // Before the slot is made: what is altered later shows as a difference.
        let is_as_known = match &mut catalog {
            Some(catalog) => catalog.begin(&session.client, from.is_none()).await?,
            None => false,
        };
        let judged: Vec<TableSchema> =
            present.iter().filter(|_| is_as_known).map(|table| table.schema.clone()).collect();
        let (position, clock) = start(&session, config, &facts, from).await?;
        doubt(&session, config).await?;

        let connection = Replication::open(&config.target, &config.options).await.map_err(server_error)?;
        let stream = connection.start(&config.slot, position.lsn, &plugin_options(config, &facts)).await;
        let stream = stream.map_err(|error| stream_error(error, &config.slot))?;
        let schemas = present.into_iter().map(|table| {
            let stored = known.iter().find(|schema| schema.table == table.schema.table).map(Arc::clone);
            stored.unwrap_or_else(|| Arc::new(table.schema))
        });
        tracing::info!(
            server = ?config.target,
            version = facts.version,
            slot = config.slot,
            lsn = %position.lsn,
            tables = watched.len(),
            "capture starts"
        );
        let clock = Clock::new(clock, config.clock_ahead_max_us);
        let shared = (config.full_row_images.clone(), Arc::clone(&config.in_flight), config.peer.clone());
        let begin = position.lsn;
        let mut reader = LogReader::new(clock, position, schemas.collect(), shared, config.now_us);
        reader.judged(Vec::new(), judged);
        reader.alive(begin, (config.now_us)());
        let (side_scanner, report_at) = (None, Instant::now());
        Ok(PostgresStream {
            config: config.clone(),
            stream,
            reader,
            side_scanner,
            catalog,
            report_at,
            unanswered: 0,
            failed: false,
        })
    }

    async fn read_until_captured(&mut self) -> Result<CaptureEvent, CaptureError> {
        loop {
            if let Some(captured) = self.reader.take() {
                return Ok(captured);
            }
            // What was handed out has been noted.
            if self.ask_catalog().await? {
                continue;
            }
            if Instant::now() >= self.report_at {
                self.report().await?;
            }
            let payload = tokio::select! {
                biased;
                payload = self.stream.next() => payload.map_err(|error| stream_error(error, &self.config.slot))?,
                () = tokio::time::sleep_until(self.report_at) => continue,
            };
            self.unanswered = 0;
            match Frame::decode(&payload)? {
                Frame::Keepalive { end, at_us, answer } => {
                    self.reader.alive(end, at_us);
                    if answer {
                        self.report_at = Instant::now();
                    }
                }
                Frame::Data { message } => match self.read(Message::decode(message)?).await? {
                    Next::Nothing => {}
                    Next::Describe(relation) => {
                        let described = self.describe(&relation).await?;
                        self.reader.bind(relation, described)?;
                    }
                    Next::Fetch(incomplete) => {
                        let found = self.fetch(&incomplete).await?;
                        self.reader.complete(*incomplete, found);
                    }
                },
            }
        }
    }

    async fn read(&mut self, message: Message<'_>) -> Result<Next, CaptureError> {
        if let Some(catalog) = &mut self.catalog {
            catalog.hear(&message).await?;
        }
        self.reader.read(message)
    }

    /// Asks the catalog, when it is time for that; true if something is to be handed out for what it said.
    async fn ask_catalog(&mut self) -> Result<bool, CaptureError> {
        let Some(mut catalog) = self.catalog.take() else { return Ok(false) };
        catalog.keep().await?;
        if catalog.is_due() {
            let client = self.side_scanner().await?.client().await.map_err(scan_error)?;
            catalog.look(client).await?;
        }
        let judged = catalog.judge(self.reader.lsn());
        self.catalog = Some(catalog);
        let Some((copies, schemas)) = judged else { return Ok(false) };
        self.reader.judged(copies, schemas);
        Ok(true)
    }

    /// Tells the server what it need not keep, and asks how far it is: the answer is the heartbeat of a quiet source.
    async fn report(&mut self) -> Result<(), CaptureError> {
        if self.unanswered >= UNANSWERED_MAX {
            let seconds = REPORT_EVERY.as_millis() * u128::from(UNANSWERED_MAX) / 1000;
            return Err(CaptureError::Unreachable(format!("no answer for {seconds} s")));
        }
        self.unanswered += 1;
        self.report_at = Instant::now() + REPORT_EVERY;
        let durable = Lsn(self.config.durable.load(Ordering::Acquire));
        let arrived = self.reader.lsn();
        let told = self.stream.acknowledge(arrived, durable.min(arrived), (self.config.now_us)(), true).await;
        told.map_err(|error| stream_error(error, &self.config.slot))?;
        if self.config.in_flight.len() > IN_FLIGHT_MAX {
            let in_flight = Arc::clone(&self.config.in_flight);
            let ticket = in_flight.ticket(arrived);
            let snapshot = self.side_scanner().await?.snapshot().await.map_err(scan_error)?;
            in_flight.forget(&ticket, &snapshot);
        }
        Ok(())
    }

    /// The session for what the stream does not say, opened when it is first needed.
    async fn side_scanner(&mut self) -> Result<&mut Scanner, CaptureError> {
        let scanner = match self.side_scanner.take() {
            Some(scanner) => scanner,
            None => {
                let in_flight = Arc::clone(&self.config.in_flight);
                Scanner::connect(&self.config.target, &self.config.options, in_flight).await.map_err(scan_error)?
            }
        };
        Ok(self.side_scanner.insert(scanner))
    }

    async fn describe(&mut self, relation: &Relation) -> Result<Described, CaptureError> {
        let client = self.side_scanner().await?.client().await.map_err(scan_error)?;
        let only = [relation.table.clone()];
        let table = tables::load(client, &relation.schema, Some(&only)).await.map_err(server_error)?.pop();
        let known = Described::new(relation, table.as_ref(), &[]);
        if known.columns.len() == relation.columns.len() {
            return Ok(known);
        }
        let wire: Vec<(u32, i32)> =
            relation.columns.iter().map(|column| (column.type_oid, column.type_modifier)).collect();
        let types = tables::types(client, &wire).await.map_err(|error| {
            let reason = format!(
                "{}.{} was altered, and an older change cannot be read: {error}",
                relation.schema, relation.table
            );
            if matches!(error, PgError::Unreachable(_)) { server_error(error) } else { lost(reason, COPY_AGAIN) }
        })?;
        let columns = relation.columns.iter().zip(types).map(|(column, (source_type, column_type))| Column {
            name: column.name.clone(),
            column_type,
            source_type,
            nullable: true,
            charset: None,
            collation: None,
            generated: false,
        });
        Ok(Described::new(relation, table.as_ref(), &columns.collect::<Vec<_>>()))
    }

    /// Reads the values that are not in the log, once the transaction is visible. None if the row is gone.
    async fn fetch(&mut self, incomplete: &Incomplete) -> Result<Option<Vec<Value>>, CaptureError> {
        let (wanted, key, xid) = (incomplete.missing(), incomplete.key(), incomplete.xid);
        let scanner = self.side_scanner().await?;
        match scanner.after(&wanted, &key, xid).await {
            Err(ScanError::Postgres(error)) if is_altered(&error) => {}
            found => return found.map_err(scan_error),
        }
        // A column that has been dropped since has no value that anybody could ask for.
        let (schema, only) = (&wanted.table.schema, [wanted.table.table.clone()]);
        let client = scanner.client().await.map_err(scan_error)?;
        let Some(present) = tables::load(client, schema, Some(&only)).await.map_err(server_error)?.pop() else {
            return Ok(None);
        };
        let is_left = |column: &&Column| present.schema.column(&column.name).is_some();
        let left: Vec<Column> = wanted.columns.iter().filter(is_left).cloned().collect();
        let names: Vec<String> = wanted.key_columns().map(|column| column.name.clone()).collect();
        let mut narrowed = TableSchema { table: wanted.table.clone(), columns: left, key: Vec::new() };
        let Some(places) = tables::places(&narrowed, &names) else { return Ok(None) };
        narrowed.key = places;
        let found = scanner.after(&narrowed, &key, xid).await.map_err(scan_error)?;
        Ok(found.map(|found| {
            let value = |column: &Column| {
                let place = narrowed.columns.iter().position(|left| left.name == column.name);
                place.and_then(|place| found.get(place).cloned()).unwrap_or(Value::Null)
            };
            wanted.columns.iter().map(value).collect()
        }))
    }
}

#[async_trait]
impl ChangeStream for PostgresStream {
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

/// A session at a server that can be captured, and the watched tables there, which are published.
async fn prepared(
    config: &PostgresSourceConfig,
    watched: &[TableName],
) -> Result<(Session, ServerFacts, Vec<SourceTable>), CaptureError> {
    let session = Session::open(&config.target, &config.options).await.map_err(server_error)?;
    let facts = ServerFacts::load(&session.client).await.map_err(server_error)?;
    refuse(facts.problems())?;
    let present = present_tables(&session.client, watched).await?;
    publication::ensure(&session.client, &config.slot, &present).await.map_err(publication_error)?;
    Ok((session, facts, present))
}

/// The watched tables as the catalog has them now, if they can be captured.
async fn present_tables(client: &Client, watched: &[TableName]) -> Result<Vec<SourceTable>, CaptureError> {
    let Some(schema) = watched.first().map(|table| table.schema.clone()) else { return Ok(Vec::new()) };
    let names: Vec<String> = watched.iter().map(|table| table.table.clone()).collect();
    let tables = tables::load(client, &schema, Some(&names)).await.map_err(server_error)?;
    refuse(tables::problems(&tables, &names, &schema))?;
    Ok(tables)
}

/// Where to begin, and the clock there. The publication comes before the slot, or the slot's past would not know it.
async fn start(
    session: &Session,
    config: &PostgresSourceConfig,
    facts: &ServerFacts,
    from: Option<(PostgresPosition, Version)>,
) -> Result<(PostgresPosition, Version), CaptureError> {
    let found = slot::load(&session.client, &config.slot).await.map_err(server_error)?;
    if let Some((position, clock)) = from {
        resume::judge(facts, found.as_ref(), &position)?;
        return Ok((position, clock));
    }
    let clock = facts.now_us.max(config.clock_min);
    let lsn = match found {
        Some(slot) if slot.invalidated.is_none() => {
            resume::usable(&slot, facts)?;
            slot.confirmed
        }
        Some(slot) => {
            resume::usable(&slot, facts)?;
            slot::drop(&session.client, &slot.name).await.map_err(server_error)?;
            None
        }
        None => None,
    };
    let lsn = match lsn {
        Some(lsn) => lsn,
        None => new_slot(session, config).await?,
    };
    Ok((facts.at(lsn, &config.slot), clock))
}

/// Gives a slot that capture cannot use up, and begins anew where the source is.
pub async fn begin_anew(
    config: &PostgresSourceConfig,
    watched: &[TableName],
) -> Result<(PostgresPosition, Version), CaptureError> {
    let (session, facts, _) = prepared(config, watched).await?;
    if let Some(slot) = slot::load(&session.client, &config.slot).await.map_err(server_error)? {
        resume::usable(&slot, &facts)?;
        slot::drop(&session.client, &slot.name).await.map_err(slot_error)?;
    }
    let lsn = new_slot(&session, config).await?;
    Ok((facts.at(lsn, &config.slot), facts.now_us))
}

async fn new_slot(session: &Session, config: &PostgresSourceConfig) -> Result<Lsn, CaptureError> {
    tracing::info!(slot = config.slot, "making the replication slot, which waits for the transactions that run now");
    slot::create(&session.client, &config.slot).await.map_err(slot_error)
}

/// What runs now may have been captured before, by us or in the making of the slot, and not be visible yet.
async fn doubt(session: &Session, config: &PostgresSourceConfig) -> Result<(), CaptureError> {
    let sql = "SELECT pg_current_snapshot()::text, pg_current_xact_id()::text";
    let row = session.client.query_one(sql, &[]).await.map_err(|error| server_error(error.into()))?;
    let text = |index| row.try_get::<_, String>(index).map_err(|error| server_error(error.into()));
    let (snapshot, next) = (PgSnapshot::parse(&text(0)?), text(1)?.parse().ok());
    let (Some(snapshot), Some(next)) = (snapshot, next) else {
        return Err(CaptureError::Unreachable("its snapshot cannot be read".into()));
    };
    config.in_flight.begin(&snapshot, next);
    Ok(())
}

fn plugin_options(config: &PostgresSourceConfig, facts: &ServerFacts) -> String {
    // Messages came with PostgreSQL 14.
    let messages = if facts.version >= 140_000 { ", messages 'true'" } else { "" };
    format!("proto_version '1', publication_names '\"{}\"'{messages}", config.slot)
}

fn refuse(problems: Vec<Problem>) -> Result<(), CaptureError> {
    match problems.into_iter().next() {
        Some(problem) => Err(CaptureError::Halt(problem)),
        None => Ok(()),
    }
}

fn halt(reason: impl Into<String>, remedy: impl Into<String>) -> CaptureError {
    CaptureError::Halt(Problem::new(reason, remedy))
}

/// What was captured and what the source has do not join.
fn lost(reason: impl Into<String>, remedy: impl Into<String>) -> CaptureError {
    CaptureError::Lost(Problem::new(reason, remedy))
}

fn server_error(error: PgError) -> CaptureError {
    match error {
        PgError::Unreachable(_) | PgError::Protocol(_) => CaptureError::Unreachable(error.to_string()),
        PgError::Refused(ref refusal) if refusal.passes() => CaptureError::Unreachable(error.to_string()),
        PgError::Login(_) | PgError::Refused(_) => {
            CaptureError::Halt(error.problem().or("correct that and start again"))
        }
    }
}

fn publication_error(error: PublicationError) -> CaptureError {
    match error {
        PublicationError::Postgres(error) => server_error(error),
        PublicationError::Problem(problem) => CaptureError::Halt(problem),
    }
}

/// What an error in making or dropping the slot means.
fn slot_error(error: PgError) -> CaptureError {
    match error.sqlstate() {
        // Somebody reads it still: a worker that was killed a moment ago.
        "55006" => CaptureError::Unreachable(error.to_string()),
        "42501" => halt(
            format!("the source user may not make a replication slot: {error}"),
            "ALTER ROLE … REPLICATION, as a superuser, and start again",
        ),
        "53400" => halt(
            format!("the source has no replication slot left: {error}"),
            "raise max_replication_slots at the source, or drop one that nobody uses",
        ),
        _ => server_error(error),
    }
}

/// What an error of the stream means.
fn stream_error(error: PgError, slot: &str) -> CaptureError {
    let reason = format!("the source cannot send what follows in slot `{slot}`: {error}");
    match error.sqlstate() {
        "55006" | "42501" | "53400" => slot_error(error),
        // The slot was invalidated, or the log that it needs is gone.
        "55000" | "58P01" => lost(reason, COPY_AGAIN),
        // The slot or the publication is gone, or is younger than the changes to be sent.
        "42704" => lost(reason, COPY_AGAIN),
        _ => server_error(error),
    }
}

/// Whether the table is not any more what the change was of: a column or all of it is gone.
fn is_altered(error: &PgError) -> bool {
    matches!(error.sqlstate(), "42703" | "42P01")
}

fn scan_error(error: ScanError) -> CaptureError {
    match error.disposition() {
        Disposition::Retry => CaptureError::Unreachable(error.to_string()),
        Disposition::DeadLetter | Disposition::Halt => {
            CaptureError::Halt(error.problem().or("correct that and start again"))
        }
    }
}

/// What a session of capture is for.
pub fn options(pipeline: &str, ca_file: Option<std::path::PathBuf>) -> Options {
    Options { application_name: format!("cutover {pipeline} source"), schemas: Vec::new(), ca_file, replica: false }
}

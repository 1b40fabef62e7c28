//! From messages to versioned changes.
//!
//! What enters: the messages of a slot, in their order. What leaves: changes with their versions, and positions.
//! Invariants: the clock ticks once for each row of a published table, watched or not, and once more where a key
//! changed, so that a version depends on the log alone; a transaction is never held, its rows leave as they come. One
//! that the pipeline's other direction wrote leaves nothing but the position behind it.
//! Deliberately absent: IO. What only the server knows is asked for by the answer ([`Next`]).

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
};

use super::{
    COPY_AGAIN, halt,
    judgement::Copy,
    lost,
    pgoutput::{DecodeError, Message, Old, Relation, ReplicaIdentity, Tuple},
    relations::{Described, Followed, Known, Relations},
};
use crate::{
    database::postgres::{in_flight::InFlight, mark, sql},
    model::{Change, Clock, Images, Lsn, Op, Position, PostgresPosition, TableName, TableSchema, Value, Version},
    source::{CaptureError, CaptureEvent},
};

/// Heartbeats closer than this to the one before are not passed on.
const HEARTBEAT_US_MIN: i64 = 250_000;

/// The open transaction.
#[derive(Debug)]
struct Transaction {
    xid: u32,
    commit_us: i64,
    /// The clock before its first change.
    before: Version,
    /// A watched table was changed.
    changed: bool,
    /// A row of whatever table has come.
    begun: bool,
    /// The pipeline's other direction wrote it: it is no change of the source's own.
    echo: bool,
    /// Of such a one, that it changed a watched table.
    echoed: bool,
    /// Where it was replicated from, if it was, until that has been said.
    origin: Option<Arc<str>>,
}

/// What a message asks for before the next can be read.
#[derive(Debug)]
pub(super) enum Next {
    Nothing,
    /// What the relation's types are; then [`LogReader::bind`].
    Describe(Relation),
    /// Values that are not in the log; then [`LogReader::complete`].
    Fetch(Box<Incomplete>),
}

/// A change some of whose values are not in the log.
#[derive(Debug)]
pub(super) struct Incomplete {
    pub(super) table: Arc<Followed>,
    pub(super) xid: u32,
    before: Option<Vec<Value>>,
    after: Vec<Option<Value>>,
    version: Version,
    commit_us: i64,
    op: Op,
}

impl Incomplete {
    /// The key of the row, in the order of the schema's key.
    pub(super) fn key(&self) -> Vec<Value> {
        let places = self.table.schema.key.iter();
        places.map(|place| self.after.get(*place).cloned().flatten().unwrap_or(Value::Null)).collect()
    }

    /// A table with the key and what is missing, for the query.
    pub(super) fn missing(&self) -> TableSchema {
        let schema = &self.table.schema;
        let columns = schema.columns.iter().zip(&self.after);
        let columns = columns.filter(|(_, value)| value.is_none()).map(|(column, _)| column.clone());
        let mut wanted = TableSchema { table: schema.table.clone(), columns: columns.collect(), key: Vec::new() };
        for column in schema.key_columns() {
            wanted.key.push(wanted.columns.len());
            wanted.columns.push(column.clone());
        }
        wanted
    }
}

/// The reader's state between messages.
#[derive(Debug)]
pub(super) struct LogReader {
    clock: Clock,
    now_us: fn() -> i64,
    position: PostgresPosition,
    relations: Relations,
    full_row_images: BTreeSet<TableName>,
    transaction: Option<Transaction>,
    in_flight: Arc<InFlight>,
    /// The pipeline whose transactions are left out.
    peer: String,
    ready: VecDeque<CaptureEvent>,
    /// The time of the last heartbeat or commit that was passed on.
    told_us: i64,
}

impl LogReader {
    pub(super) fn new(
        clock: Clock,
        position: PostgresPosition,
        schemas: Vec<Arc<TableSchema>>,
        (full_row_images, in_flight, peer): (BTreeSet<TableName>, Arc<InFlight>, String),
        now_us: fn() -> i64,
    ) -> Self {
        let ready = schemas.iter().map(|schema| CaptureEvent::Schema(Arc::clone(schema))).collect();
        let relations = Relations::new(schemas);
        LogReader {
            clock,
            now_us,
            position,
            relations,
            full_row_images,
            transaction: None,
            in_flight,
            peer,
            ready,
            told_us: 0,
        }
    }

    /// The next event that is ready.
    pub(super) fn take(&mut self) -> Option<CaptureEvent> {
        self.ready.pop_front()
    }

    /// Raises the clock, unless something with a version is still to be taken; true if it did.
    pub(super) fn raise_clock(&mut self, floor: Version) -> bool {
        self.transaction.is_none() && self.ready.is_empty() && self.clock.raise(floor)
    }

    /// Tables are to be copied again for what the catalog shows, and these schemas with it.
    pub(super) fn judged(&mut self, copies: Vec<Copy>, schemas: impl IntoIterator<Item = TableSchema>) {
        let clock = self.clock.last().saturating_add(1);
        for Copy { table, columns, why } in copies {
            tracing::warn!(%table, ?columns, "the source's catalog: {why}");
            self.ready.push_back(CaptureEvent::Rewritten { table, columns, clock });
        }
        schemas.into_iter().for_each(|schema| self.relations.judged(schema));
    }

    /// The end of the last transaction that was read.
    pub(super) fn lsn(&self) -> Lsn {
        self.position.lsn
    }

    /// The server has sent everything before `end`.
    pub(super) fn alive(&mut self, end: Lsn, at_us: i64) {
        if self.transaction.is_some() {
            return;
        }
        self.position.lsn = self.position.lsn.max(end);
        if at_us.saturating_sub(self.told_us) >= HEARTBEAT_US_MIN {
            self.told_us = at_us;
            let position = Position::Postgres(self.position.clone());
            self.ready.push_back(CaptureEvent::Heartbeat { position, clock: self.clock.last(), at_us });
        }
    }

    /// Takes one message.
    pub(super) fn read(&mut self, message: Message<'_>) -> Result<Next, CaptureError> {
        match message {
            Message::Begin { commit_us, xid, .. } => self.begin(commit_us, xid)?,
            Message::Commit { end, commit_us } => self.commit(end, commit_us)?,
            Message::Origin { name } => {
                let transaction = self.open()?;
                transaction.origin = Some(name.into());
            }
            Message::Relation(relation) => {
                return Ok(self.relations.note(relation).map_or(Next::Nothing, Next::Describe));
            }
            Message::Logical { prefix: mark::PREFIX, content } => self.marked(content),
            Message::Type { .. } | Message::Logical { .. } => {}
            Message::Insert { relation, new } => return self.insert(relation, &new),
            Message::Update { relation, old, new } => return self.update(relation, old, &new),
            Message::Delete { relation, old } => self.delete(relation, old)?,
            Message::Truncate { relations } => self.truncate(&relations)?,
        }
        Ok(Next::Nothing)
    }

    /// Takes what a relation was described as.
    pub(super) fn bind(&mut self, relation: Relation, described: Described) -> Result<(), CaptureError> {
        if described.columns.len() != relation.columns.len() {
            return Err(halt(
                format!("the types of {}.{} cannot all be read from the catalog", relation.schema, relation.table),
                "let the source user read pg_catalog, and start again",
            ));
        }
        let table = TableName::new(&relation.schema, &relation.table);
        if relation.identity != ReplicaIdentity::Full && self.full_row_images.contains(&table) {
            return Err(lost(
                format!(
                    "a transform of {table} needs whole rows as they were before a change, and the source does not log them"
                ),
                format!("ALTER TABLE {} REPLICA IDENTITY FULL, and {COPY_AGAIN}", sql::table(&table)),
            ));
        }
        let arrived = self.relations.bind(relation, described)?;
        if let Some(schema) = arrived.schema {
            self.ready.push_back(CaptureEvent::Schema(schema));
        }
        if !arrived.rewritten.is_empty() {
            // The change that the table was described for has the next version at least.
            let clock = self.clock.last().saturating_add(1);
            self.ready.push_back(CaptureEvent::Rewritten { table, columns: arrived.rewritten, clock });
        }
        Ok(())
    }

    /// Takes the values that were missing, in the order of [`Incomplete::missing`]; none if the source has the row no
    /// more, of which the stream tells later.
    pub(super) fn complete(&mut self, incomplete: Incomplete, found: Option<Vec<Value>>) {
        let Incomplete { table, before, after, version, commit_us, op, .. } = incomplete;
        let Some(found) = found else { return };
        let mut found = found.into_iter();
        let after = after.into_iter().map(|value| value.or_else(|| found.next()).unwrap_or(Value::Null)).collect();
        self.change(&table, op, Images { before, after: Some(after) }, version, commit_us);
    }

    fn begin(&mut self, commit_us: i64, xid: u32) -> Result<(), CaptureError> {
        if self.transaction.is_some() {
            return Err(out_of_order("a transaction begins inside of another"));
        }
        self.clock.check(commit_us, (self.now_us)()).map_err(|error| CaptureError::Halt(error.problem()))?;
        let before = self.clock.last();
        self.transaction = Some(Transaction {
            xid,
            commit_us,
            before,
            changed: false,
            begun: false,
            echo: false,
            echoed: false,
            origin: None,
        });
        Ok(())
    }

    /// A transaction says which pipeline has written it; behind its first row that counts for nothing.
    fn marked(&mut self, pipeline: &[u8]) {
        if let Some(transaction) = self.transaction.as_mut().filter(|transaction| !transaction.begun) {
            transaction.echo = pipeline == self.peer.as_bytes();
        }
    }

    fn commit(&mut self, end: Lsn, commit_us: i64) -> Result<(), CaptureError> {
        let transaction =
            self.transaction.take().ok_or_else(|| out_of_order("a transaction ends that has not begun"))?;
        self.position.lsn = end;
        let (position, clock) = (Position::Postgres(self.position.clone()), self.clock.last());
        if transaction.changed || transaction.echoed {
            self.in_flight.met(transaction.xid, end, transaction.before);
        }
        if transaction.changed {
            self.told_us = commit_us;
            self.ready.push_back(CaptureEvent::Commit { position, clock, commit_us });
        } else {
            // Nothing of it concerns us; but a slot that is never told to move keeps the server's log.
            self.alive(end, commit_us);
        }
        Ok(())
    }

    fn open(&mut self) -> Result<&mut Transaction, CaptureError> {
        self.transaction.as_mut().ok_or_else(|| out_of_order("a change comes outside of a transaction"))
    }

    /// Ticks for one row of a relation; none if its table is not watched.
    fn tick(&mut self, relation: u32) -> Result<Option<(Arc<Followed>, Version, i64)>, CaptureError> {
        let transaction = self.open()?;
        transaction.begun = true;
        let commit_us = transaction.commit_us;
        let version = self.clock.tick(commit_us);
        match self.relations.get(relation).cloned() {
            None => Err(out_of_order("a change comes before its table is described")),
            Some(Known::Unwatched) => Ok(None),
            Some(Known::Followed(table)) => {
                let transaction = self.open()?;
                if transaction.echo {
                    transaction.echoed = true;
                    return Ok(None);
                }
                transaction.changed = true;
                if let Some(origin) = transaction.origin.take() {
                    self.ready.push_back(CaptureEvent::ReplicatedFrom(origin));
                }
                Ok(Some((table, version, commit_us)))
            }
        }
    }

    fn insert(&mut self, relation: u32, new: &Tuple<'_>) -> Result<Next, CaptureError> {
        let Some((table, version, commit_us)) = self.tick(relation)? else { return Ok(Next::Nothing) };
        let after = table.values(new)?;
        Ok(self.changed(table, None, after, (version, commit_us), Op::Insert))
    }

    fn update(&mut self, relation: u32, old: Option<Old<'_>>, new: &Tuple<'_>) -> Result<Next, CaptureError> {
        let Some((table, version, commit_us)) = self.tick(relation)? else { return Ok(Next::Nothing) };
        let mut after = table.values(new)?;
        let Some((before, whole)) = old.map(|old| self.before(&table, old)).transpose()? else {
            return Ok(self.changed(table, None, after, (version, commit_us), Op::Update));
        };
        // What was not changed is what it was, where the image has it: a value that is stored out of line is no null.
        for (place, value) in after.iter_mut().enumerate().filter(|(_, value)| value.is_none()) {
            *value = before.get(place).filter(|value| **value != Value::Null).cloned();
        }
        let key_changed =
            table.schema.key.iter().any(|place| after.get(*place).and_then(Option::as_ref) != before.get(*place));
        if key_changed {
            let images = Images { before: Some(before), after: None };
            self.change(&table, Op::Delete, images, version, commit_us);
            let version = self.clock.tick(commit_us);
            return Ok(self.changed(table, None, after, (version, commit_us), Op::Insert));
        }
        Ok(self.changed(table, whole.then_some(before), after, (version, commit_us), Op::Update))
    }

    fn delete(&mut self, relation: u32, old: Old<'_>) -> Result<(), CaptureError> {
        let Some((table, version, commit_us)) = self.tick(relation)? else { return Ok(()) };
        let (before, _) = self.before(&table, old)?;
        self.change(&table, Op::Delete, Images { before: Some(before), after: None }, version, commit_us);
        Ok(())
    }

    /// The image before a change, and whether it is whole: else all but the key is null, as Debezium has it.
    fn before(&self, table: &Followed, old: Old<'_>) -> Result<(Vec<Value>, bool), CaptureError> {
        let (cells, whole) = match old {
            Old::Key(cells) => (cells, false),
            Old::Full(cells) => (cells, true),
        };
        let values: Option<Vec<Value>> = table.values(&cells)?.into_iter().collect();
        let values = values.ok_or_else(|| out_of_order("an image before a change leaves values out"))?;
        Ok((values, whole))
    }

    fn truncate(&mut self, relations: &[u32]) -> Result<(), CaptureError> {
        for relation in relations {
            if let Some((table, version, commit_us)) = self.tick(*relation)? {
                let table = Arc::clone(&table.schema);
                self.ready.push_back(CaptureEvent::Truncate { table, version, commit_us });
            }
        }
        Ok(())
    }

    /// Passes a change on, or asks for what is missing of it.
    fn changed(
        &mut self,
        table: Arc<Followed>,
        before: Option<Vec<Value>>,
        after: Vec<Option<Value>>,
        (version, commit_us): (Version, i64),
        op: Op,
    ) -> Next {
        if after.iter().any(Option::is_none) {
            let xid = self.transaction.as_ref().map_or(0, |transaction| transaction.xid);
            return Next::Fetch(Box::new(Incomplete { table, xid, before, after, version, commit_us, op }));
        }
        let after = after.into_iter().flatten().collect();
        self.change(&table, op, Images { before, after: Some(after) }, version, commit_us);
        Next::Nothing
    }

    fn change(&mut self, table: &Followed, op: Op, images: Images, version: Version, commit_us: i64) {
        let change = Change { schema: Arc::clone(&table.schema), op, images, version, commit_us };
        self.ready.push_back(CaptureEvent::Change(change));
    }
}

/// A stream that makes no sense is not followed.
fn out_of_order(what: &str) -> CaptureError {
    halt(format!("the replication stream is out of order: {what}"), "report this with the server's version")
}

impl From<DecodeError> for CaptureError {
    fn from(error: DecodeError) -> Self {
        CaptureError::Halt(error.problem())
    }
}

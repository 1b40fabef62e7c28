//! From the events of the log, in order, to what capture delivers. No IO: what it needs from outside (a table's present
//! schema) it asks its owner for.
//!
//! Versions tick once for every inserted or deleted row and twice for every updated one, whatever the table list says:
//! an update that changes the key becomes a delete and an insert, each with a version of its own, and whether it does
//! is known for watched tables alone. A transaction leaves event by event; nothing of it is kept, except that MariaDB's
//! small ones wait until their end says that they were not rolled back.

use std::collections::VecDeque;

use super::{
    binlog::{
        BinlogEvent, CommitInfo, Flavor, Gtid, Header, MariaDbGtid, Rows, RowsKind, TableMapBody, count_rows,
        ddl::{Names, RowChange},
        decode,
    },
    cascades::Links,
    echo, halt, lost,
    progress::{GroupId, Progress},
    stream::decode_error,
    tables::{Mapping, PendingMap, Tables},
};
use crate::{
    model::{Change, Clock, Images, MysqlPosition, Op, Position, TableSchema, Value, Version},
    source::{CaptureError, CaptureEvent},
};

/// How often transactions that hold nothing of ours move the position.
const IDLE_EVERY_US: i64 = 100_000;
/// The table id of a rows event that has no rows and only ends its statement.
const NO_TABLE: u64 = 0x00ff_ffff;
const FORMAT_DESCRIPTION: u8 = 15;

/// A transaction, or a statement that stands for one, that has begun.
#[derive(Debug)]
pub(super) struct OpenTransaction {
    id: GroupId,
    pub(super) commit_us: i64,
    commit_checked: bool,
    /// It ends with a COMMIT or XID event, not with its first statement.
    pub(super) explicit: bool,
    /// Something of a watched table has been delivered.
    pub(super) changes: bool,
    /// MariaDB says at its beginning that it will only be prepared.
    prepared: bool,
    /// Rows of whatever table have come.
    begun: bool,
    /// The pipeline's other direction wrote it: it is no change of the source's own.
    echo: bool,
    /// Bytes of its row events so far.
    bytes: usize,
    /// It has grown too large to be held back until its end is known.
    pub(super) streamed: bool,
}

/// What the reader has to know from the catalog before it goes on.
#[derive(Debug)]
pub(super) enum Pending {
    /// A table's present schema, for [`LogReader::bind`].
    Map(Box<PendingMap>),
    /// Whether this change of other tables can reach watched ones.
    Reach { change: RowChange, names: Names, emptied: bool },
}

/// Up to how many bytes MariaDB's transactions are held back: one with a temporary table is in the log, and ends with
/// ROLLBACK, even where it was undone.
const HELD_BYTES_MAX: usize = 1 << 20;
/// How many harmless row changes are remembered.
const OUTSIDE_MAX: usize = 100;

/// The state of a reader.
#[derive(Debug)]
pub(super) struct LogReader {
    flavor: Flavor,
    pub(super) progress: Progress,
    pub(super) tables: Tables,
    clock: Clock,
    pub(super) group: Option<OpenTransaction>,
    delivered: VecDeque<CaptureEvent>,
    now_us: fn() -> i64,
    idle_said_us: i64,
    /// Row changes as statements that reach no watched table, until DDL passes.
    pub(super) outside: Vec<Names>,
    /// Foreign keys that change rows unseen.
    pub(super) links: Links,
    /// DDL has passed that may have made such a key.
    pub(super) links_stale: bool,
    /// The pipeline whose transactions are left out.
    peer: String,
}

impl LogReader {
    pub(super) fn new(flavor: Flavor, progress: Progress, tables: Tables, clock: Clock, now_us: fn() -> i64) -> Self {
        let (delivered, outside) = (VecDeque::new(), Vec::new());
        let (links, links_stale) = (Links::default(), false);
        LogReader {
            flavor,
            progress,
            tables,
            clock,
            group: None,
            delivered,
            now_us,
            idle_said_us: 0,
            outside,
            links,
            links_stale,
            peer: String::new(),
        }
    }

    /// Leaves out what this pipeline has written, from now on.
    pub(super) fn without_echoes_of(mut self, peer: &str) -> Self {
        peer.clone_into(&mut self.peer);
        self
    }

    /// The catalog says that this row change reaches no watched table.
    pub(super) fn stays_outside(&mut self, names: Names) {
        if self.outside.len() < OUTSIDE_MAX {
            self.outside.push(names);
        }
    }

    /// What has been captured and not yet been taken.
    pub(super) fn take(&mut self) -> Option<CaptureEvent> {
        if self.holds_back() { None } else { self.delivered.pop_front() }
    }

    fn holds_back(&self) -> bool {
        self.flavor == Flavor::Mariadb && self.group.as_ref().is_some_and(|group| group.explicit && !group.streamed)
    }

    /// The open transaction was rolled back: what is held back of it never was.
    pub(super) fn forget_held(&mut self) {
        if self.holds_back()
            && let Some(group) = &mut self.group
        {
            group.changes = false;
            let held =
                |captured: &CaptureEvent| matches!(captured, CaptureEvent::Change(_) | CaptureEvent::Cascade { .. });
            self.delivered.retain(|captured| !held(captured));
        }
    }

    pub(super) fn deliver(&mut self, captured: CaptureEvent) {
        self.delivered.push_back(captured);
    }

    /// The last transaction end, and the clock's state there.
    pub(super) fn position(&self) -> (MysqlPosition, Version) {
        (self.progress.position(), self.clock.last())
    }

    /// Reads one event. What needs the catalog comes back.
    pub(super) fn read(&mut self, header: &Header, body: &[u8]) -> Result<Option<Pending>, CaptureError> {
        let event = decode(self.flavor, header, body).map_err(|error| self.at_place(decode_error(error)))?;
        // The description of the format is repeated in the middle of a file, with the place it has at the beginning.
        if !header.is_artificial() && header.event_type != FORMAT_DESCRIPTION {
            self.progress.event_ended(header.log_pos);
        }
        match event {
            BinlogEvent::Rotate { position, file } => self.rotate(header, &file, position),
            BinlogEvent::Gtid(gtid) => self.begin_mysql(header, gtid)?,
            BinlogEvent::AnonymousGtid(commit) => self.begin(GroupId::Anonymous, commit_us(header, &commit), false)?,
            BinlogEvent::MariaDbGtid(gtid) => self.begin_mariadb(header, &gtid)?,
            BinlogEvent::Query(query) => return self.statement(&query),
            BinlogEvent::Xid(_) => self.commit()?,
            BinlogEvent::XaPrepare { one_phase, .. } => self.prepared(one_phase)?,
            BinlogEvent::TableMap(map) => return self.map(&map),
            BinlogEvent::Rows(rows) => self.rows(&rows)?,
            BinlogEvent::Heartbeat { file, position } => self.heartbeat(&file, position),
            BinlogEvent::FormatDescription(_)
            | BinlogEvent::PreviousGtids(_)
            | BinlogEvent::MariaDbGtidList(_)
            // Its events follow.
            | BinlogEvent::TransactionPayload(_)
            | BinlogEvent::Ignorable(_) => {}
        }
        Ok(None)
    }

    /// Goes on after a table map that needed the catalog.
    pub(super) fn bind(&mut self, pending: PendingMap, catalog: Option<TableSchema>) -> Result<(), CaptureError> {
        let changed = self.tables.bind(pending, catalog).map_err(|error| {
            let remedy = "the table was changed again since, and its columns at this point of the log are no longer known: leave it out of \
                          [source] tables, start, put it back and start again, which copies it anew; or copy every table again with \
                          `cutover resnapshot TABLE`";
            self.at_place(lost(error.to_string(), remedy))
        })?;
        if let Some(schema) = changed {
            self.deliver(CaptureEvent::Schema(schema));
        }
        Ok(())
    }

    fn rotate(&mut self, header: &Header, file: &str, position: u64) {
        self.progress.rotated(file, position);
        if !header.is_artificial() {
            self.tables.forget_maps();
            if self.group.is_none() {
                // A position in the old file, past its end, would be of no use once that file is purged.
                self.say_idle((self.now_us)());
            }
        }
    }

    fn heartbeat(&mut self, file: &str, position: u64) {
        // One may come while the server waits for the rest of a transaction.
        if self.group.is_none() {
            self.progress.idle_at(file, position);
            self.say_idle((self.now_us)());
        }
    }

    /// Raises the clock, unless something with a version is still to be taken; true if it did.
    pub(super) fn raise_clock(&mut self, floor: Version) -> bool {
        self.group.is_none() && self.delivered.is_empty() && self.clock.raise(floor)
    }

    pub(super) fn say_idle(&mut self, at_us: i64) {
        self.idle_said_us = (self.now_us)();
        let (position, clock) = self.position();
        self.deliver(CaptureEvent::Heartbeat { position: Position::Mysql(position), clock, at_us });
    }

    fn begin_mysql(&mut self, header: &Header, gtid: Gtid) -> Result<(), CaptureError> {
        let commit_us = commit_us(header, &gtid.commit);
        self.begin(GroupId::Mysql { source: gtid.source, number: gtid.number }, commit_us, false)
    }

    fn begin_mariadb(&mut self, header: &Header, gtid: &MariaDbGtid) -> Result<(), CaptureError> {
        let id = GroupId::Mariadb { domain: gtid.domain, server: gtid.server, sequence: gtid.sequence };
        self.begin(id, seconds_us(header.timestamp), !gtid.is_standalone())?;
        if let Some(group) = &mut self.group {
            group.prepared = gtid.is_prepared_xa();
        }
        Ok(())
    }

    pub(super) fn begin(&mut self, id: GroupId, commit_us: i64, explicit: bool) -> Result<(), CaptureError> {
        if let Some(open) = &self.group {
            if open.changes || open.explicit {
                return Err(self.broken("a transaction has no end"));
            }
            // A statement that left no other trace.
            self.commit()?;
        }
        self.group = Some(OpenTransaction {
            id,
            commit_us,
            commit_checked: false,
            explicit,
            changes: false,
            prepared: false,
            begun: false,
            echo: false,
            bytes: 0,
            streamed: false,
        });
        Ok(())
    }

    /// The open transaction has committed.
    pub(super) fn commit(&mut self) -> Result<(), CaptureError> {
        let Some(group) = self.group.take() else { return Err(self.broken("a commit without a transaction")) };
        if group.changes && group.prepared {
            return Err(self.xa_refused());
        }
        self.progress.committed(&group.id);
        if group.changes {
            let (position, clock) = self.position();
            let position = Position::Mysql(position);
            self.idle_said_us = (self.now_us)();
            self.deliver(CaptureEvent::Commit { position, clock, commit_us: group.commit_us });
        } else if (self.now_us)().saturating_sub(self.idle_said_us) >= IDLE_EVERY_US {
            self.say_idle(group.commit_us);
        }
        Ok(())
    }

    fn prepared(&mut self, one_phase: bool) -> Result<(), CaptureError> {
        if !one_phase && self.group.as_ref().is_some_and(|group| group.changes) {
            return Err(self.xa_refused());
        }
        self.commit()
    }

    fn xa_refused(&self) -> CaptureError {
        self.at_place(lost(
            "an XA transaction was prepared that changes a watched table: whether it commits is decided later",
            "move the application off XA transactions on these tables, and copy every table again with `cutover resnapshot TABLE`",
        ))
    }

    fn map(&mut self, map: &TableMapBody<'_>) -> Result<Option<Pending>, CaptureError> {
        match self.tables.map(map).map_err(decode_error) {
            Ok(Mapping::Known) => Ok(None),
            Ok(Mapping::NeedsCatalog(pending)) => Ok(Some(Pending::Map(pending))),
            Err(error) => Err(self.at_place(error)),
        }
    }

    fn rows(&mut self, rows: &Rows<'_>) -> Result<(), CaptureError> {
        if rows.data.is_empty() || rows.table_id == NO_TABLE {
            return Ok(());
        }
        let commit_us = self.checked_commit_us()?;
        let ticks = ticks_of(rows.kind);
        let Some(mapped) = self.tables.mapped(rows.table_id) else {
            return Err(self.broken("rows of a table without its table map"));
        };
        let mut echo = false;
        if let Some(group) = &mut self.group {
            group.echo |= !group.begun && echo::is_of(&self.peer, &mapped.map, rows);
            group.begun = true;
            echo = group.echo;
        }
        let Some(decoder) = mapped.decoder.as_ref().filter(|_| !echo) else {
            let count = count_rows(&mapped.map, rows).map_err(|error| self.at_place(decode_error(error)))?;
            self.clock.tick_many(commit_us, count.saturating_mul(ticks));
            return Ok(());
        };
        let place = |error| at_place(&self.progress, decode_error(error));
        let table = self.tables.compared(&decoder.schema().table);
        let (captured, is_parent) = (self.tables.watches(&table), self.links.is_parent(&table));
        for images in decoder.rows(rows).map_err(place)? {
            let images = images.map_err(place)?;
            let version = self.clock.tick_many(commit_us, ticks);
            let told = is_parent.then(|| self.links.told(&table, decoder.schema(), &images, (version, commit_us)));
            let change =
                |op, images, version| Change { schema: decoder.schema().clone(), op, images, version, commit_us };
            let (op, moved) = match rows.kind {
                RowsKind::Write => (Op::Insert, None),
                RowsKind::Delete => (Op::Delete, None),
                RowsKind::Update => (Op::Update, split_by_key(decoder.schema(), &images)),
            };
            match moved {
                _ if !captured => {}
                None => self.delivered.push_back(CaptureEvent::Change(change(op, images, version))),
                Some((before, after)) => {
                    self.delivered.push_back(CaptureEvent::Change(change(Op::Delete, before, version)));
                    self.delivered.push_back(CaptureEvent::Change(change(Op::Insert, after, version + 1)));
                }
            }
            self.delivered.extend(told.into_iter().flatten());
        }
        if let Some(group) = &mut self.group {
            group.changes = true;
            group.bytes = group.bytes.saturating_add(rows.data.len());
            group.streamed |= group.bytes > HELD_BYTES_MAX;
        }
        Ok(())
    }

    /// The open transaction's commit time, refused if it is from the future (rule 3).
    pub(super) fn checked_commit_us(&mut self) -> Result<i64, CaptureError> {
        let Some(group) = &mut self.group else {
            return Err(self.broken("a row change outside of any transaction (the source writes no GTID events)"));
        };
        if !group.commit_checked {
            if let Err(error) = self.clock.check(group.commit_us, (self.now_us)()) {
                return Err(at_place(&self.progress, CaptureError::Halt(error.problem())));
            }
            group.commit_checked = true;
        }
        Ok(group.commit_us)
    }

    /// The next version, for a change that is no row event.
    pub(super) fn tick(&mut self) -> Result<(Version, i64), CaptureError> {
        let commit_us = self.checked_commit_us()?;
        Ok((self.clock.tick(commit_us), commit_us))
    }

    pub(super) fn at_place(&self, error: CaptureError) -> CaptureError {
        at_place(&self.progress, error)
    }

    fn broken(&self, what: &str) -> CaptureError {
        self.at_place(halt(
            format!("the binlog is not as its format says: {what}"),
            "check it with mysqlbinlog, and the source's version against the supported ones",
        ))
    }
}

/// Says where in the log it was.
fn at_place(progress: &Progress, error: CaptureError) -> CaptureError {
    match error {
        CaptureError::Halt(problem) => CaptureError::Halt(problem.at(format_args!("at {}", progress.place()))),
        CaptureError::Lost(problem) => CaptureError::Lost(problem.at(format_args!("at {}", progress.place()))),
        error @ CaptureError::Unreachable(_) => error,
    }
}

/// How often the clock ticks for one row.
fn ticks_of(kind: RowsKind) -> u64 {
    match kind {
        RowsKind::Write | RowsKind::Delete => 1,
        RowsKind::Update => 2,
    }
}

/// The images of a delete and an insert, if the update changes the key. Exact: 'a' to 'A' is a change too,
/// because the target may tell them apart.
fn split_by_key(schema: &TableSchema, images: &Images) -> Option<(Images, Images)> {
    let (before, after) = (images.before.as_ref()?, images.after.as_ref()?);
    let value = |row: &[Value], index: usize| row.get(index).cloned();
    let same = schema.key.iter().all(|index| match (before.get(*index), after.get(*index)) {
        (Some(before), Some(after)) => before == after,
        (None | Some(_), None | Some(_)) => value(before, *index).is_none() && value(after, *index).is_none(),
    });
    (!same).then(|| {
        (Images { before: Some(before.clone()), after: None }, Images { before: None, after: Some(after.clone()) })
    })
}

/// Microseconds where the server logs them (8.0 and later); a replica of an older server logs zero.
fn commit_us(header: &Header, commit: &CommitInfo) -> i64 {
    [commit.original_commit_us, commit.immediate_commit_us]
        .into_iter()
        .flatten()
        .find(|us| *us > 0)
        .and_then(|us| i64::try_from(us).ok())
        .unwrap_or_else(|| seconds_us(header.timestamp))
}

fn seconds_us(seconds: u32) -> i64 {
    i64::from(seconds) * 1_000_000
}

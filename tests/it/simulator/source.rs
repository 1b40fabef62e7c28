//! A model of a MySQL server with GTIDs: tables, transactions, a binlog, and the ways in which the three differ.
//!
//! What it claims, and `simulator_claims` holds against the real servers: a transaction is in the binlog, and may be
//! streamed, before a read can see it; transactions become visible out of order; a DDL keeps reads of its table out
//! until it is visible; an executed GTID set waits for exactly what it names.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use cutover::{
    model::{Column, ColumnType, GtidSet, MysqlPosition, TableName, TableSchema, Value},
    observe::Environment,
};
use tokio::sync::{Notify, futures::Notified};

use super::{
    chance::{Chance, Fault},
    family,
};

pub type Key = Vec<i64>;
pub type Row = Vec<Value>;

pub const DATABASE: &str = "shop";
/// The tables that the pipeline follows; `other` is there besides, and moves the clock.
const WATCHED: [&str; 3] = ["users", "items", "notes"];
/// As [`WATCHED`], where foreign keys act below the log.
const WITH_FAMILY: [&str; 5] = ["users", "items", "notes", "orders", "parts"];
/// A value that the target refuses.
pub const BAD: &str = "bad";

/// The tables that a run's pipeline follows.
pub fn watched(chance: &Chance) -> &'static [&'static str] {
    if chance.taste.family { &WITH_FAMILY } else { &WATCHED }
}

/// The schema of a table.
pub fn schema(table: &str) -> Arc<TableSchema> {
    let (columns, keys): (&[(&str, ColumnType)], usize) = match table {
        "users" => (&[("id", ColumnType::BigInt), ("email", ColumnType::Text), ("state", ColumnType::BigInt)], 1),
        "items" => (&[("id", ColumnType::BigInt), ("user_id", ColumnType::BigInt), ("qty", ColumnType::BigInt)], 1),
        "notes" => (&[("a", ColumnType::BigInt), ("b", ColumnType::BigInt), ("body", ColumnType::Text)], 2),
        "orders" => (&[("id", ColumnType::BigInt), ("user_id", ColumnType::BigInt), ("n", ColumnType::BigInt)], 1),
        "parts" => {
            (&[("id", ColumnType::BigInt), ("order_id", ColumnType::BigInt), ("user_id", ColumnType::BigInt)], 1)
        }
        _ => (&[("id", ColumnType::BigInt), ("n", ColumnType::BigInt)], 1),
    };
    let column = |(name, column_type): &(&str, ColumnType)| Column {
        name: (*name).to_owned(),
        column_type: column_type.clone(),
        source_type: column_type.sql(),
        nullable: table == "parts" && *name == "user_id",
        charset: None,
        collation: None,
        generated: false,
    };
    Arc::new(TableSchema {
        table: TableName::new(DATABASE, table),
        columns: columns.iter().map(column).collect(),
        key: (0..keys).collect(),
    })
}

/// The key of a row.
pub fn key(table: &str, row: &[Value]) -> Key {
    let keys = if table == "notes" { 2 } else { 1 };
    row.iter().take(keys).map(integer).collect()
}

pub fn integer(value: &Value) -> i64 {
    match value {
        Value::Int(number) => *number,
        other => panic!("{other:?} is no integer"),
    }
}

/// One thing that a transaction did.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    Insert {
        table: &'static str,
        after: Row,
    },
    Update {
        table: &'static str,
        before: Row,
        after: Row,
    },
    Delete {
        table: &'static str,
        before: Row,
    },
    Truncate {
        table: &'static str,
    },
    /// An ALTER that adds this to an integer column of every row, without events.
    Alter {
        table: &'static str,
        column: usize,
        add: i64,
    },
    /// What a foreign key did to a child, without an event: it is gone, or refers to another parent or none.
    Cascaded {
        table: &'static str,
        before: Row,
        after: Option<Row>,
    },
}

impl Step {
    pub fn table(&self) -> &'static str {
        match self {
            Step::Insert { table, .. }
            | Step::Update { table, .. }
            | Step::Delete { table, .. }
            | Step::Truncate { table }
            | Step::Alter { table, .. }
            | Step::Cascaded { table, .. } => table,
        }
    }
}

/// The rows of every table.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Tables(pub BTreeMap<&'static str, BTreeMap<Key, Row>>);

impl Tables {
    pub fn of(&self, table: &str) -> BTreeMap<Key, Row> {
        self.0.get(table).cloned().unwrap_or_default()
    }

    pub fn apply(&mut self, step: &Step) {
        let rows = self.0.entry(step.table()).or_default();
        match step {
            Step::Insert { table, after } => drop(rows.insert(key(table, after), after.clone())),
            Step::Update { table, before, after } => {
                rows.remove(&key(table, before));
                rows.insert(key(table, after), after.clone());
            }
            Step::Cascaded { table, before, after: None } => drop(rows.remove(&key(table, before))),
            Step::Cascaded { table, after: Some(after), .. } => drop(rows.insert(key(table, after), after.clone())),
            Step::Delete { table, before } => drop(rows.remove(&key(table, before))),
            Step::Truncate { .. } => rows.clear(),
            Step::Alter { column, add, .. } => {
                for row in rows.values_mut() {
                    row[*column] = Value::Int(integer(&row[*column]) + add);
                }
            }
        }
    }
}

/// A transaction in the binlog.
#[derive(Debug, Clone)]
pub struct Logged {
    /// The server that committed it first, and its number there.
    pub gtid: (String, u64),
    pub commit_us: i64,
    pub steps: Vec<Step>,
    visible: bool,
}

/// The server, or, after a failover, the one in its place.
pub struct Server {
    pub chance: Arc<Chance>,
    state: Mutex<State>,
    /// Told of every commit, and whenever one becomes visible.
    moved: Notify,
}

struct State {
    number: u64,
    log: Vec<Logged>,
    /// Transactions before this one are purged.
    purged: usize,
    newest: Tables,
    visible: Tables,
    /// Rows, and whole tables under DDL, of transactions that are not visible yet.
    locked: BTreeSet<(&'static str, Option<Key>)>,
    away_until_us: i64,
    jump_us: i64,
}

fn uuid(server: u64) -> String {
    format!("{server:08x}-0000-0000-0000-000000000000")
}

fn set_of<'a>(log: impl Iterator<Item = &'a Logged>) -> GtidSet {
    let mut set = GtidSet::default();
    for logged in log {
        set.add(&logged.gtid.0, logged.gtid.1);
    }
    set
}

impl State {
    /// The end of the transaction at `index - 1`.
    fn position(&self, index: usize) -> MysqlPosition {
        MysqlPosition {
            file: format!("bin.{:06}", index / 7 + 1),
            offset: index as u64 * 100 + 4,
            server: uuid(self.number),
            gtids: Some(set_of(self.log[..index].iter()).to_string()),
        }
    }
}

/// Why a dump cannot begin where it is asked to.
pub enum Refused {
    Away,
    NeverExecuted(String),
    Purged(String),
}

impl Server {
    pub fn new(chance: Arc<Chance>) -> Arc<Self> {
        let state = State {
            number: 1,
            log: Vec::new(),
            purged: 0,
            newest: Tables::default(),
            visible: Tables::default(),
            locked: BTreeSet::new(),
            away_until_us: 0,
            jump_us: 0,
        };
        Arc::new(Server { chance, state: Mutex::new(state), moved: Notify::new() })
    }

    fn stirred(&self) {
        self.moved.notify_waiters();
    }

    /// Wakes with the next commit, or when one becomes visible. To be had before looking.
    pub fn moves(&self) -> Notified<'_> {
        self.moved.notified()
    }

    /// The rows as the binlog has made them.
    pub fn newest(&self) -> Tables {
        self.state.lock().unwrap().newest.clone()
    }

    /// What a read sees now; none while a DDL keeps it out.
    pub fn read(&self, table: &str) -> Option<BTreeMap<Key, Row>> {
        let state = self.state.lock().unwrap();
        let kept_out = state.locked.iter().any(|(locked, key)| *locked == table && key.is_none());
        (!kept_out).then(|| state.visible.of(table))
    }

    pub fn is_away(&self) -> bool {
        self.chance.now_us() < self.state.lock().unwrap().away_until_us
    }

    /// Breaks every connection, for this long.
    pub fn go_away(&self, duration: Duration) {
        let until = self.chance.now_us() + i64::try_from(duration.as_micros()).unwrap();
        self.state.lock().unwrap().away_until_us = until;
        self.stirred();
    }

    /// The transactions that a read sees.
    pub fn executed(&self) -> GtidSet {
        set_of(self.state.lock().unwrap().log.iter().filter(|logged| logged.visible))
    }

    /// The end of the binlog.
    pub fn end(&self) -> MysqlPosition {
        let state = self.state.lock().unwrap();
        state.position(state.log.len())
    }

    /// The index of the next transaction after what `from` holds.
    pub fn seek(&self, from: &MysqlPosition) -> Result<usize, Refused> {
        if self.is_away() {
            return Err(Refused::Away);
        }
        let captured: GtidSet = from.gtids.as_deref().unwrap_or_default().parse().unwrap();
        let errant = captured.minus(&self.executed());
        if !errant.is_empty() {
            return Err(Refused::NeverExecuted(errant.to_string()));
        }
        let state = self.state.lock().unwrap();
        let purged = set_of(state.log[..state.purged].iter()).minus(&captured);
        if !purged.is_empty() {
            return Err(Refused::Purged(purged.to_string()));
        }
        let held = |logged: &Logged| set_of(std::iter::once(logged)).minus(&captured).is_empty();
        Ok(state.log.iter().position(|logged| !held(logged)).unwrap_or(state.log.len()))
    }

    /// The place before the transaction at an index, in this server's files.
    pub fn place(&self, index: usize) -> MysqlPosition {
        self.state.lock().unwrap().position(index)
    }

    /// The transaction at an index, with the position of its end.
    pub fn at(&self, index: usize) -> Option<(Logged, MysqlPosition)> {
        let state = self.state.lock().unwrap();
        state.log.get(index).map(|logged| (logged.clone(), state.position(index + 1)))
    }

    pub fn number(&self) -> u64 {
        self.state.lock().unwrap().number
    }

    /// Whether a transaction could do this now without waiting for another.
    pub fn is_free(&self, steps: &[Step]) -> bool {
        let state = self.state.lock().unwrap();
        let table_free = |table: &'static str| !state.locked.iter().any(|(locked, _)| *locked == table);
        let row_free = |table: &'static str, row: &Row| {
            !state.locked.contains(&(table, None)) && !state.locked.contains(&(table, Some(key(table, row))))
        };
        let mut parents = steps.iter().flat_map(family::held);
        parents.all(|(table, key)| !state.locked.contains(&(table, Some(key))))
            && steps.iter().all(|step| match step {
                Step::Insert { table, after } => row_free(table, after),
                Step::Update { table, before, after } => row_free(table, before) && row_free(table, after),
                Step::Delete { table, before } | Step::Cascaded { table, before, .. } => row_free(table, before),
                Step::Truncate { table } | Step::Alter { table, .. } => table_free(table),
            })
    }

    /// Commits a transaction: it is in the binlog at once, and visible some time later.
    pub fn commit(self: &Arc<Self>, steps: Vec<Step>) {
        let mut state = self.state.lock().unwrap();
        // A commit time has the resolution of its server, and hosts jump.
        if self.chance.strikes(Fault::ClockJump, 0.05, || "the source's clock".into()) {
            state.jump_us = self.chance.number(0..9_000_000).cast_signed() - 6_000_000;
        }
        let resolution = if self.chance.run.seed.is_multiple_of(2) { 1_000_000 } else { 1 };
        let commit_us = (self.chance.now_us() + state.jump_us) / resolution * resolution;
        let number = state.log.iter().filter(|logged| logged.gtid.0 == uuid(state.number)).count() as u64 + 1;
        let gtid = (uuid(state.number), number);
        let mut locks = Vec::new();
        for step in &steps {
            state.newest.apply(step);
            let table = step.table();
            match step {
                Step::Insert { after, .. } => locks.push((table, Some(key(table, after)))),
                Step::Delete { before, .. } | Step::Cascaded { before, .. } => {
                    locks.push((table, Some(key(table, before))));
                }
                Step::Update { before, after, .. } => {
                    locks.extend([before, after].map(|row| (table, Some(key(table, row)))));
                }
                Step::Truncate { .. } | Step::Alter { .. } => locks.push((table, None)),
            }
        }
        locks.extend(steps.iter().flat_map(family::held).map(|(table, key)| (table, Some(key))));
        state.locked.extend(locks.iter().cloned());
        self.chance.note(format!("commit {number} of server {} at {commit_us}: {}", state.number, spelled(&steps)));
        let (index, server) = (state.log.len(), state.number);
        state.log.push(Logged { gtid, commit_us, steps, visible: false });
        drop(state);
        self.stirred();
        let (this, pause) = (Arc::clone(self), self.chance.pause(self.chance.taste.unseen));
        tokio::spawn(async move {
            tokio::time::sleep(pause).await;
            this.show(server, index, &locks);
        });
    }

    fn show(&self, server: u64, index: usize, locks: &[(&'static str, Option<Key>)]) {
        let mut state = self.state.lock().unwrap();
        // After a failover the new server has its own idea of what is visible.
        if state.number != server || state.log.get(index).is_none_or(|logged| logged.visible) {
            return;
        }
        let steps = state.log[index].steps.clone();
        steps.iter().for_each(|step| state.visible.apply(step));
        state.log[index].visible = true;
        for lock in locks {
            state.locked.remove(lock);
        }
        drop(state);
        self.stirred();
    }

    /// Throws away binlogs up to a random place; what is not visible stays.
    pub fn purge(&self) {
        let mut state = self.state.lock().unwrap();
        let visible = state.log.iter().take_while(|logged| logged.visible).count() as u64;
        let to = self.chance.number(0..visible + 1) as usize;
        state.purged = state.purged.max(to);
    }

    /// Another server takes over, without the last `lost` transactions.
    pub fn fail_over(&self, lost: usize) {
        let mut state = self.state.lock().unwrap();
        state.number += 1;
        let keep = state.log.len().saturating_sub(lost).max(state.purged);
        state.log.truncate(keep);
        let mut tables = Tables::default();
        for logged in &mut state.log {
            logged.visible = true;
            logged.steps.iter().for_each(|step| tables.apply(step));
        }
        state.newest = tables.clone();
        state.visible = tables;
        state.locked.clear();
        drop(state);
        self.stirred();
    }
}

/// The steps, short.
fn spelled(steps: &[Step]) -> String {
    let value = |value: &Value| match value {
        Value::Int(number) => number.to_string(),
        Value::Text(text) => text.clone(),
        Value::Null => "null".into(),
        other => format!("{other:?}"),
    };
    let text = |row: &Row| row.iter().map(value).collect::<Vec<_>>().join(" ");
    let step = |step: &Step| match step {
        Step::Insert { table, after } => format!("+{table}({})", text(after)),
        Step::Update { table, before, after } => format!("~{table}({} -> {})", text(before), text(after)),
        Step::Delete { table, before } => format!("-{table}({})", text(before)),
        Step::Truncate { table } => format!("truncate {table}"),
        Step::Cascaded { table, before, after } => {
            format!("unseen {table}({} -> {})", text(before), after.as_ref().map_or("gone".into(), text))
        }
        Step::Alter { table, column, add } => format!("alter {table} column {column} by {add}"),
    };
    steps.iter().map(step).collect::<Vec<_>>().join(", ")
}

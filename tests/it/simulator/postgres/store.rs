//! Tuples, snapshots and transactions: multi-version storage as PostgreSQL has it.
//!
//! A row is a chain of tuples. A tuple knows who created it and who ended it; a snapshot sees what was committed when
//! it was taken, and what its own transaction did in earlier statements. Rolling back takes writes back at once, so no
//! trace of an aborted transaction is ever met. Deliberately absent: waiting. What must wait answers [`Claim::Busy`] or
//! [`Clash::Busy`], and `exec` waits.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{
    faults::SessionInfo,
    locks::Locks,
    shape::Shape,
    table::Change,
    value::{Row, Value},
};

pub type TableId = usize;
pub type TupleId = u64;
pub type TxId = u64;

/// When something was done: by an open transaction's command, or with the commit of this number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stamp {
    Open { tx: TxId, command: u32 },
    Done(u64),
}

/// What a statement sees.
#[derive(Debug, Clone, Copy)]
pub struct Snapshot {
    pub commit: u64,
    pub tx: TxId,
    pub command: u32,
}

impl Snapshot {
    pub fn sees(&self, stamp: Stamp) -> bool {
        match stamp {
            Stamp::Done(commit) => commit <= self.commit,
            Stamp::Open { tx, command } => tx == self.tx && command < self.command,
        }
    }
}

/// How strongly a row is locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RowLock {
    /// A foreign key refers to it.
    KeyShare,
    /// It is changed, but not in a column of a unique index.
    NoKeyUpdate,
    /// It is deleted, or changed in such a column.
    Update,
}

impl RowLock {
    fn conflicts(self, other: RowLock) -> bool {
        !matches!(
            (self, other),
            (RowLock::KeyShare, RowLock::KeyShare | RowLock::NoKeyUpdate) | (RowLock::NoKeyUpdate, RowLock::KeyShare)
        )
    }
}

#[derive(Debug, Clone)]
pub struct Tuple {
    pub row: Row,
    pub created: Stamp,
    /// Who ended it, and under which lock.
    pub ended: Option<(Stamp, RowLock)>,
    /// The tuple that an update made of it.
    pub next: Option<TupleId>,
    lockers: Vec<Locker>,
}

/// Who has locked a tuple: for as long as the transaction has the lock of this number, on the tuple and on what updates
/// make of it.
#[derive(Debug, Clone, Copy)]
struct Locker {
    tx: TxId,
    mode: RowLock,
    number: u64,
}

#[derive(Debug)]
pub struct Table {
    pub shape: Shape,
    tuples: BTreeMap<TupleId, Tuple>,
    /// By unique index of the shape.
    entries: Vec<BTreeMap<Vec<Value>, Vec<TupleId>>>,
    pub sequence: i64,
}

/// A step that can be taken back.
#[derive(Debug, Clone, Copy)]
pub enum Undo {
    Insert(TableId, TupleId),
    Update(TableId, TupleId, TupleId),
    Delete(TableId, TupleId),
    Advisory(i64, bool),
    /// The row lock of this number.
    RowLock(u64),
}

/// A foreign key that is yet to be checked.
#[derive(Debug, Clone)]
pub enum Pending {
    /// This row refers to a parent by the foreign key of this number.
    Child(TableId, usize, TupleId),
    /// This row is gone: nothing may refer to it.
    Parent(TableId, Row),
}

#[derive(Debug, Clone)]
struct Savepoint {
    name: String,
    undo: usize,
    pending: Vec<Pending>,
    deferred: Option<bool>,
}

/// What the statements of a transaction see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sees {
    /// READ COMMITTED: each what is committed when it begins.
    Committed,
    /// REPEATABLE READ, of a transaction that only reads: all of them what the first one saw, once there was one.
    OneMoment(Option<u64>),
}

#[derive(Debug)]
pub struct Tx {
    pub session: i32,
    pub sees: Sees,
    pub started_us: i64,
    pub command: u32,
    undo: Vec<Undo>,
    savepoints: Vec<Savepoint>,
    row_locks: BTreeSet<u64>,
    /// Checks put off until the commit.
    pub pending: Vec<Pending>,
    /// What `SET CONSTRAINTS ALL` said.
    pub deferred: Option<bool>,
}

/// What stands between a transaction and a tuple that it wants to lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    Free,
    /// It is deleted, or this command has ended it already.
    Gone,
    /// It was updated: this is the tuple now.
    Moved(TupleId),
    /// This transaction must end first.
    Busy(TxId),
}

/// What a unique index says of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clash {
    None,
    Row(TupleId),
    Busy(TxId),
}

#[derive(Debug)]
pub struct Store {
    pub tables: Vec<Table>,
    pub names: BTreeMap<String, TableId>,
    pub txs: BTreeMap<TxId, Tx>,
    pub locks: Locks,
    pub sessions: BTreeMap<i32, SessionInfo>,
    /// Advisory locks that a session holds until it ends, by what is locked.
    session_locks: BTreeMap<Value, i32>,
    next_pid: i32,
    next_tx: TxId,
    next_tuple: TupleId,
    next_lock: u64,
    commit: u64,
    /// Snapshots in use, by commit number.
    active: BTreeMap<u64, usize>,
    /// Ended tuples, by the commit that ended them.
    garbage: VecDeque<(u64, TableId, TupleId)>,
}

impl Store {
    pub fn new(shapes: Vec<Shape>) -> Self {
        let names = shapes.iter().enumerate().map(|(id, shape)| (shape.name.clone(), id)).collect();
        let table = |shape: Shape| Table {
            entries: vec![BTreeMap::new(); shape.indexes.len()],
            shape,
            tuples: BTreeMap::new(),
            sequence: 0,
        };
        Store {
            tables: shapes.into_iter().map(table).collect(),
            names,
            txs: BTreeMap::new(),
            locks: Locks::default(),
            sessions: BTreeMap::new(),
            session_locks: BTreeMap::new(),
            next_pid: 1000,
            next_tx: 1,
            next_tuple: 1,
            next_lock: 1,
            commit: 1,
            active: BTreeMap::new(),
            garbage: VecDeque::new(),
        }
    }

    pub fn open_session(&mut self, info: impl FnOnce(i32) -> SessionInfo) -> SessionInfo {
        self.next_pid += 1;
        let info = info(self.next_pid);
        self.sessions.insert(info.pid, info.clone());
        info
    }

    /// The session is gone, with the locks that it held.
    pub fn close_session(&mut self, pid: i32) {
        self.sessions.remove(&pid);
        self.session_locks.retain(|_, holder| *holder != pid);
    }

    /// `pg_try_advisory_lock`: whether the session has it then.
    pub fn lock_session(&mut self, what: &Value, pid: i32) -> bool {
        *self.session_locks.entry(what.clone()).or_insert(pid) == pid
    }

    /// Who holds such a lock.
    pub fn session_lock(&self, what: &Value) -> Option<i32> {
        self.session_locks.get(what).copied()
    }

    pub fn begin(&mut self, session: i32, now_us: i64) -> TxId {
        let tx = self.next_tx;
        self.next_tx += 1;
        let open = Tx {
            session,
            sees: Sees::Committed,
            started_us: now_us,
            command: 0,
            undo: Vec::new(),
            savepoints: Vec::new(),
            row_locks: BTreeSet::new(),
            pending: Vec::new(),
            deferred: None,
        };
        self.txs.insert(tx, open);
        tx
    }

    /// The transaction; it is open for as long as its session runs statements.
    pub fn tx(&mut self, tx: TxId) -> &mut Tx {
        self.txs.get_mut(&tx).unwrap_or_else(|| panic!("transaction {tx} has ended"))
    }

    /// A snapshot for the transaction's next command.
    pub fn snapshot(&mut self, tx: TxId) -> Snapshot {
        let commit = self.commit;
        let open = self.tx(tx);
        open.command += 1;
        let command = open.command;
        match open.sees {
            Sees::Committed => Snapshot { commit, tx, command },
            Sees::OneMoment(Some(commit)) => Snapshot { commit, tx, command },
            Sees::OneMoment(None) => {
                open.sees = Sees::OneMoment(Some(commit));
                let snapshot = Snapshot { commit, tx, command };
                self.hold_snapshot(&snapshot);
                snapshot
            }
        }
    }

    /// A transaction that saw one moment is over.
    fn release_moment(&mut self, sees: Sees, tx: TxId) {
        if let Sees::OneMoment(Some(commit)) = sees {
            self.drop_snapshot(&Snapshot { commit, tx, command: 0 });
        }
    }

    /// Keeps what a snapshot sees until [`Self::drop_snapshot`].
    pub fn hold_snapshot(&mut self, snapshot: &Snapshot) {
        *self.active.entry(snapshot.commit).or_default() += 1;
    }

    pub fn drop_snapshot(&mut self, snapshot: &Snapshot) {
        if let Some(users) = self.active.get_mut(&snapshot.commit) {
            *users -= 1;
            if *users == 0 {
                self.active.remove(&snapshot.commit);
            }
        }
        self.vacuum();
    }

    pub fn tuple(&self, table: TableId, tuple: TupleId) -> &Tuple {
        &self.tables[table].tuples[&tuple]
    }

    /// The tuple, unless it is gone for good.
    pub fn find_tuple(&self, table: TableId, tuple: TupleId) -> Option<&Tuple> {
        self.tables[table].tuples.get(&tuple)
    }

    fn tuple_mut(&mut self, table: TableId, tuple: TupleId) -> &mut Tuple {
        self.tables[table].tuples.get_mut(&tuple).unwrap_or_else(|| panic!("tuple {tuple} of table {table} is gone"))
    }

    fn visible(tuple: &Tuple, snapshot: &Snapshot) -> bool {
        snapshot.sees(tuple.created) && !tuple.ended.is_some_and(|(stamp, _)| snapshot.sees(stamp))
    }

    /// The rows that a snapshot sees, in the order of their creation.
    pub fn scan(&self, table: TableId, snapshot: &Snapshot) -> impl Iterator<Item = (TupleId, &Row)> {
        let tuples = self.tables[table].tuples.iter();
        let snapshot = *snapshot;
        tuples.filter(move |(_, tuple)| Self::visible(tuple, &snapshot)).map(|(id, tuple)| (*id, &tuple.row))
    }

    /// The row that a snapshot sees under a key of a unique index.
    pub fn lookup(&self, table: TableId, index: usize, key: &[Value], snapshot: &Snapshot) -> Option<(TupleId, Row)> {
        let table = &self.tables[table];
        let found = table.entries[index].get(key)?.iter().rev();
        let mut seen = found.filter_map(|id| table.tuples.get(id).map(|tuple| (*id, tuple)));
        seen.find(|(_, tuple)| Self::visible(tuple, snapshot)).map(|(id, tuple)| (id, tuple.row.clone()))
    }

    /// Committed rows now.
    pub fn committed(&self, table: TableId) -> impl Iterator<Item = &Row> {
        let snapshot = Snapshot { commit: self.commit, tx: 0, command: 0 };
        self.scan(table, &snapshot).map(|(_, row)| row).collect::<Vec<_>>().into_iter()
    }

    /// Whether this transaction may lock the tuple now.
    pub fn claim(&self, table: TableId, tuple: TupleId, mode: RowLock, tx: TxId) -> Claim {
        let Some(found) = self.find_tuple(table, tuple) else { return Claim::Gone };
        match found.ended {
            Some((Stamp::Open { tx: other, .. }, held)) if other != tx && mode.conflicts(held) => {
                return Claim::Busy(other);
            }
            Some((Stamp::Open { tx: other, .. }, _)) if other != tx => {}
            Some((Stamp::Open { .. }, _)) => return Claim::Gone,
            Some((Stamp::Done(_), _)) => return found.next.map_or(Claim::Gone, Claim::Moved),
            None => {}
        }
        let conflicting = |held: &&Locker| held.tx != tx && mode.conflicts(held.mode) && self.holds(held);
        found.lockers.iter().find(conflicting).map_or(Claim::Free, |held| Claim::Busy(held.tx))
    }

    fn holds(&self, locker: &Locker) -> bool {
        self.txs.get(&locker.tx).is_some_and(|tx| tx.row_locks.contains(&locker.number))
    }

    /// Locks a tuple that is [`Claim::Free`], and what an open update has made of it, until the transaction ends.
    pub fn lock_row(&mut self, table: TableId, tuple: TupleId, mode: RowLock, tx: TxId) {
        let own = |locker: &Locker| locker.tx == tx && locker.mode >= mode && self.holds(locker);
        if self.tuple(table, tuple).lockers.iter().any(own) {
            return;
        }
        let locker = Locker { tx, mode, number: self.next_lock };
        self.next_lock += 1;
        let open = self.tx(tx);
        open.row_locks.insert(locker.number);
        open.undo.push(Undo::RowLock(locker.number));
        let mut place = Some(tuple);
        while let Some(tuple) = place {
            let Some(found) = self.find_tuple(table, tuple) else { return };
            let mut lockers = found.lockers.clone();
            lockers.retain(|other| self.holds(other));
            lockers.push(locker);
            let found = self.tuple_mut(table, tuple);
            found.lockers = lockers;
            place = found.next;
        }
    }

    /// What stands under a key of a unique index, whoever wrote it: as `DirtySnapshot` sees it.
    pub fn clash(&self, table: TableId, index: usize, key: &[Value], tx: TxId, but: Option<TupleId>) -> Clash {
        let table = &self.tables[table];
        let Some(found) = table.entries[index].get(key) else { return Clash::None };
        for id in found.iter().filter(|id| Some(**id) != but) {
            let Some(tuple) = table.tuples.get(id) else { continue };
            match (tuple.created, tuple.ended) {
                (Stamp::Open { tx: other, .. }, _) if other != tx => return Clash::Busy(other),
                (_, Some((Stamp::Open { tx: other, .. }, _))) if other != tx => return Clash::Busy(other),
                (_, Some(_)) => {}
                (_, None) => return Clash::Row(*id),
            }
        }
        Clash::None
    }

    /// A new tuple, not yet in any index.
    pub fn add(&mut self, table: TableId, row: Row, tx: TxId, command: u32) -> TupleId {
        let id = self.next_tuple;
        self.next_tuple += 1;
        let created = Stamp::Open { tx, command };
        self.tables[table].tuples.insert(id, Tuple { row, created, ended: None, next: None, lockers: Vec::new() });
        self.tx(tx).undo.push(Undo::Insert(table, id));
        id
    }

    /// Enters a tuple into an index.
    pub fn enter(&mut self, table: TableId, index: usize, tuple: TupleId) {
        let table = &mut self.tables[table];
        let key = table.shape.indexes[index].key(&table.tuples[&tuple].row);
        if let Some(key) = key {
            table.entries[index].entry(key).or_default().push(tuple);
        }
    }

    /// Ends a tuple that is [`Claim::Free`].
    pub fn delete(&mut self, table: TableId, tuple: TupleId, tx: TxId, command: u32) {
        self.tuple_mut(table, tuple).ended = Some((Stamp::Open { tx, command }, RowLock::Update));
        self.tx(tx).undo.push(Undo::Delete(table, tuple));
    }

    /// Puts a new tuple in the place of one that is [`Claim::Free`]; it is in no index yet.
    pub fn update(
        &mut self,
        table: TableId,
        old: TupleId,
        row: Row,
        mode: RowLock,
        (tx, command): (TxId, u32),
    ) -> TupleId {
        let id = self.next_tuple;
        self.next_tuple += 1;
        let created = Stamp::Open { tx, command };
        let before = self.tuple_mut(table, old);
        before.ended = Some((created, mode));
        before.next = Some(id);
        let lockers = before.lockers.clone();
        self.tables[table].tuples.insert(id, Tuple { row, created, ended: None, next: None, lockers });
        self.tx(tx).undo.push(Undo::Update(table, old, id));
        id
    }

    fn remove(&mut self, table: TableId, tuple: TupleId) {
        let table = &mut self.tables[table];
        let Some(gone) = table.tuples.remove(&tuple) else { return };
        for (index, entries) in table.shape.indexes.iter().zip(&mut table.entries) {
            let Some(key) = index.key(&gone.row) else { continue };
            if let Some(found) = entries.get_mut(&key) {
                found.retain(|id| *id != tuple);
                if found.is_empty() {
                    entries.remove(&key);
                }
            }
        }
    }

    /// Remembers a lock that the transaction has got.
    pub fn note_advisory(&mut self, tx: TxId, key: i64, shared: bool) {
        self.tx(tx).undo.push(Undo::Advisory(key, shared));
    }

    fn take_back(&mut self, tx: TxId, undo: Undo) {
        match undo {
            Undo::Insert(table, tuple) => self.remove(table, tuple),
            Undo::Update(table, old, new) => {
                self.remove(table, new);
                let old = self.tuple_mut(table, old);
                (old.ended, old.next) = (None, None);
            }
            Undo::Delete(table, tuple) => self.tuple_mut(table, tuple).ended = None,
            Undo::Advisory(key, shared) => self.locks.release(tx, key, shared),
            Undo::RowLock(number) => {
                if let Some(open) = self.txs.get_mut(&tx) {
                    open.row_locks.remove(&number);
                }
            }
        }
    }

    /// Makes the transaction's writes visible; what it changed, one entry for each row.
    pub fn commit(&mut self, tx: TxId) -> Vec<Change> {
        let Some(open) = self.txs.remove(&tx) else { return Vec::new() };
        self.commit += 1;
        let done = Stamp::Done(self.commit);
        let mut changes = Changes::default();
        for undo in &open.undo {
            match *undo {
                Undo::Insert(table, tuple) => {
                    changes.add(self, table, None, Some(tuple));
                    self.tuple_mut(table, tuple).created = done;
                }
                Undo::Update(table, old, new) => {
                    changes.add(self, table, Some(old), Some(new));
                    let before = self.tuple_mut(table, old);
                    before.ended = before.ended.map(|(_, mode)| (done, mode));
                    self.tuple_mut(table, new).created = done;
                    self.garbage.push_back((self.commit, table, old));
                }
                Undo::Delete(table, tuple) => {
                    changes.add(self, table, Some(tuple), None);
                    let gone = self.tuple_mut(table, tuple);
                    gone.ended = gone.ended.map(|(_, mode)| (done, mode));
                    self.garbage.push_back((self.commit, table, tuple));
                }
                Undo::Advisory(..) | Undo::RowLock(_) => {}
            }
        }
        let changes = changes.finish(self);
        self.locks.ended(tx);
        self.release_moment(open.sees, tx);
        self.vacuum();
        changes
    }

    pub fn abort(&mut self, tx: TxId) {
        let Some(mut open) = self.txs.remove(&tx) else { return };
        while let Some(undo) = open.undo.pop() {
            self.take_back(tx, undo);
        }
        self.locks.ended(tx);
        self.release_moment(open.sees, tx);
    }

    pub fn savepoint(&mut self, tx: TxId, name: &str) {
        let tx = self.tx(tx);
        let (undo, pending, deferred) = (tx.undo.len(), tx.pending.clone(), tx.deferred);
        tx.savepoints.push(Savepoint { name: name.to_owned(), undo, pending, deferred });
    }

    /// A statement has failed: everything since the last savepoint is taken back at once, and its locks are free.
    pub fn fail(&mut self, tx: TxId) {
        let open = self.tx(tx);
        let kept = open.savepoints.last().map_or(0, |savepoint| savepoint.undo);
        let undone: Vec<Undo> = open.undo.drain(kept..).rev().collect();
        for undo in undone {
            self.take_back(tx, undo);
        }
        self.locks.touched(tx);
    }

    /// Forgets the savepoint and those after it; false if there is none of that name.
    pub fn release_savepoint(&mut self, tx: TxId, name: &str) -> bool {
        let tx = self.tx(tx);
        let place = tx.savepoints.iter().rposition(|savepoint| savepoint.name == name);
        if let Some(place) = place {
            tx.savepoints.truncate(place);
        }
        place.is_some()
    }

    /// Takes everything since the savepoint back, and keeps the savepoint; false if there is none of that name.
    pub fn rollback_to(&mut self, tx: TxId, name: &str) -> bool {
        let open = self.tx(tx);
        let Some(place) = open.savepoints.iter().rposition(|savepoint| savepoint.name == name) else { return false };
        open.savepoints.truncate(place + 1);
        let savepoint = open.savepoints[place].clone();
        (open.pending, open.deferred) = (savepoint.pending, savepoint.deferred);
        let undone: Vec<Undo> = open.undo.drain(savepoint.undo..).rev().collect();
        for undo in undone {
            self.take_back(tx, undo);
        }
        self.locks.touched(tx);
        true
    }

    /// Removes tuples that no snapshot can see any more.
    fn vacuum(&mut self) {
        let horizon = self.active.keys().next().copied().unwrap_or(self.commit);
        while let Some((commit, table, tuple)) = self.garbage.front().copied() {
            if commit > horizon {
                break;
            }
            self.garbage.pop_front();
            self.remove(table, tuple);
        }
    }
}

/// The changes of one transaction, first image before and last image after, by key.
#[derive(Default)]
struct Changes {
    places: BTreeMap<(TableId, Vec<Value>), usize>,
    rows: Vec<(TableId, Option<Row>, Option<Row>)>,
}

impl Changes {
    fn add(&mut self, store: &Store, table: TableId, before: Option<TupleId>, after: Option<TupleId>) {
        let row = |id: Option<TupleId>| id.and_then(|id| store.find_tuple(table, id)).map(|tuple| tuple.row.clone());
        let (before, after) = (row(before), row(after));
        let Some(any) = after.as_ref().or(before.as_ref()) else { return };
        let key: Vec<Value> = store.tables[table].shape.key.iter().map(|column| any[*column].clone()).collect();
        match self.places.get(&(table, key.clone())) {
            Some(place) => self.rows[*place].2 = after,
            None => {
                self.places.insert((table, key), self.rows.len());
                self.rows.push((table, before, after));
            }
        }
    }

    fn finish(self, store: &Store) -> Vec<Change> {
        let named = |(table, before, after): (TableId, Option<Row>, Option<Row>)| {
            let table = store.tables[table].shape.name.clone();
            (before != after).then_some(Change { table, before, after })
        };
        self.rows.into_iter().filter_map(named).collect()
    }
}

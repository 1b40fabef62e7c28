//! What a statement does to rows: reading through its snapshot, writing with row locks, waiting where PostgreSQL waits.
//!
//! The traps of READ COMMITTED are here. A row that another transaction has locked is waited for, and then only that
//! row is read anew: everything else that the statement looked at stays as its snapshot showed it. `ON CONFLICT` takes
//! the newest row, seen or not. Foreign keys look with a snapshot of their own.

use super::{
    Postgres,
    locks::WaitFor,
    session::Control,
    store::{Claim, Clash, Pending, RowLock, Snapshot, Stamp, TableId, TupleId, TxId},
    table::Deferral,
    value::{Row, SqlError, Value},
};

/// Why a statement did not come to its end.
#[derive(Debug)]
pub enum Stop {
    Sql(SqlError),
    /// The session has been ended.
    Gone,
}

impl From<SqlError> for Stop {
    fn from(error: SqlError) -> Self {
        Stop::Sql(error)
    }
}

/// What becomes of a row whose key is there.
pub enum OnConflict<'a> {
    Fail,
    /// On any unique index.
    Nothing,
    /// On the index of this number: the row's new values, or none if its `WHERE` says no.
    Update {
        index: usize,
        lock: RowLock,
        set: &'a (dyn Fn(&[Value]) -> Option<Vec<Value>> + Sync),
    },
}

/// What became of it.
#[derive(Debug, Clone, PartialEq)]
pub enum Inserted {
    Fresh(Row),
    Updated(Row),
    Skipped,
}

/// A running statement.
pub struct Exec<'a> {
    pub pg: &'a Postgres,
    pub control: &'a Control,
    pub tx: TxId,
    pub snapshot: Snapshot,
    /// Foreign keys rest.
    pub replica: bool,
    /// What the end of the statement checks.
    checks: Vec<Pending>,
}

impl<'a> Exec<'a> {
    pub fn new(pg: &'a Postgres, control: &'a Control, tx: TxId, snapshot: Snapshot, replica: bool) -> Self {
        Exec { pg, control, tx, snapshot, replica, checks: Vec::new() }
    }

    fn writer(&self) -> (TxId, u32) {
        (self.tx, self.snapshot.command)
    }

    /// Waits until woken; an error if that can never be.
    pub async fn wait(&self, on: WaitFor) -> Result<(), Stop> {
        let (ticket, wake) = self.pg.store().locks.wait(self.tx, on);
        let timeout = tokio::time::sleep(self.pg.deadlock_timeout());
        tokio::pin!(timeout);
        let mut checked = false;
        let result = loop {
            tokio::select! {
                biased;
                () = self.control.gone() => break Err(Stop::Gone),
                () = wake.notified() => break Ok(()),
                () = &mut timeout, if !checked => {
                    checked = true;
                    if self.pg.store().locks.deadlocked(self.tx) {
                        break Err(SqlError::new("40P01", "deadlock detected").into());
                    }
                }
            }
        };
        self.pg.store().locks.leave(ticket);
        result
    }

    /// Rows that the statement sees.
    pub fn scan(&self, table: TableId, wanted: impl Fn(&[Value]) -> bool) -> Vec<(TupleId, Row)> {
        let store = self.pg.store();
        store.scan(table, &self.snapshot).filter(|(_, row)| wanted(row)).map(|(id, row)| (id, row.clone())).collect()
    }

    /// As [`Self::scan`], the rows alone.
    pub fn rows(&self, table: TableId, wanted: impl Fn(&[Value]) -> bool) -> Vec<Row> {
        self.scan(table, wanted).into_iter().map(|(_, row)| row).collect()
    }

    /// The row that the statement sees under a primary key.
    pub fn lookup(&self, table: TableId, key: &[Value]) -> Option<(TupleId, Row)> {
        self.pg.store().lookup(table, 0, key, &self.snapshot)
    }

    /// Gets the right to lock a row that was seen: waits for who has it, follows it to its newest tuple, and asks again
    /// whether that is wanted.
    async fn claim(
        &self,
        table: TableId,
        mut tuple: TupleId,
        mode: RowLock,
        wanted: &(dyn Fn(&[Value]) -> bool + Sync),
    ) -> Result<Option<(TupleId, Row)>, Stop> {
        loop {
            let claim = self.pg.store().claim(table, tuple, mode, self.tx);
            match claim {
                Claim::Free => {
                    let row = self.pg.store().tuple(table, tuple).row.clone();
                    return Ok(Some((tuple, row)));
                }
                Claim::Gone => return Ok(None),
                Claim::Busy(other) => self.wait(WaitFor::Tx(other)).await?,
                Claim::Moved(next) => {
                    let wants = self.pg.store().find_tuple(table, next).is_some_and(|found| wanted(&found.row));
                    if !wants {
                        return Ok(None);
                    }
                    tuple = next;
                }
            }
        }
    }

    /// Deletes a row that was seen, if its newest tuple is still wanted; what it was.
    pub async fn delete(
        &mut self,
        table: TableId,
        tuple: TupleId,
        wanted: &(dyn Fn(&[Value]) -> bool + Sync),
    ) -> Result<Option<Row>, Stop> {
        let Some((tuple, row)) = self.claim(table, tuple, RowLock::Update, wanted).await? else { return Ok(None) };
        let (tx, command) = self.writer();
        let mut store = self.pg.store();
        store.delete(table, tuple, tx, command);
        if !store.tables[table].shape.referring.is_empty() {
            self.checks.push(Pending::Parent(table, row.clone()));
        }
        Ok(Some(row))
    }

    /// `DELETE … WHERE`; the rows that went.
    pub async fn delete_where(
        &mut self,
        table: TableId,
        wanted: impl Fn(&[Value]) -> bool + Sync,
    ) -> Result<Vec<Row>, Stop> {
        let mut gone = Vec::new();
        for (tuple, _) in self.scan(table, &wanted) {
            gone.extend(self.delete(table, tuple, &wanted).await?);
        }
        Ok(gone)
    }

    /// `UPDATE … WHERE`; the rows as they are then.
    pub async fn update_where(
        &mut self,
        table: TableId,
        wanted: impl Fn(&[Value]) -> bool + Sync,
        set: impl Fn(&mut Vec<Value>),
    ) -> Result<Vec<Row>, Stop> {
        let mut updated = Vec::new();
        for (tuple, _) in self.scan(table, &wanted) {
            if let Some((tuple, row)) = self.claim(table, tuple, RowLock::NoKeyUpdate, &wanted).await? {
                let mut values = row.to_vec();
                set(&mut values);
                updated.push(self.update(table, tuple, &row, values, RowLock::NoKeyUpdate).await?);
            }
        }
        Ok(updated)
    }

    /// As [`Self::update_where`], passing over rows that others have locked.
    pub async fn update_unlocked(
        &mut self,
        table: TableId,
        wanted: impl Fn(&[Value]) -> bool + Sync,
        set: impl Fn(&mut Vec<Value>),
    ) -> Result<Vec<Row>, Stop> {
        let mut updated = Vec::new();
        for (tuple, _) in self.scan(table, &wanted) {
            let mut newest = Some(tuple);
            while let Some(tuple) = newest {
                let claim = self.pg.store().claim(table, tuple, RowLock::Update, self.tx);
                newest = match claim {
                    Claim::Moved(next) => {
                        let wants = self.pg.store().find_tuple(table, next).is_some_and(|found| wanted(&found.row));
                        wants.then_some(next)
                    }
                    Claim::Free => {
                        let row = self.pg.store().tuple(table, tuple).row.clone();
                        let mut values = row.to_vec();
                        set(&mut values);
                        updated.push(self.update(table, tuple, &row, values, RowLock::NoKeyUpdate).await?);
                        None
                    }
                    Claim::Gone | Claim::Busy(_) => None,
                };
            }
        }
        Ok(updated)
    }

    /// Puts new values in the place of a row that has been claimed.
    async fn update(
        &mut self,
        table: TableId,
        tuple: TupleId,
        old: &Row,
        values: Vec<Value>,
        mode: RowLock,
    ) -> Result<Row, Stop> {
        self.constraints(table, &values)?;
        let row: Row = values.into();
        let (new, indexes, own) = {
            let mut store = self.pg.store();
            let own = matches!(store.tuple(table, tuple).created, Stamp::Open { .. });
            let new = store.update(table, tuple, row.clone(), mode, self.writer());
            (new, store.tables[table].shape.indexes.len(), own)
        };
        for index in 0..indexes {
            self.enter(table, index, new, Some(old)).await?;
        }
        self.check_parents(table, new, &row, Some(old).filter(|_| !own));
        Ok(row)
    }

    /// Enters a tuple into a unique index, unless another row has its key.
    async fn enter(&mut self, table: TableId, index: usize, tuple: TupleId, old: Option<&Row>) -> Result<(), Stop> {
        loop {
            let busy = {
                let mut store = self.pg.store();
                let shape = &store.tables[table].shape.indexes[index];
                let key = shape.key(&store.tuple(table, tuple).row);
                let same = old.is_some_and(|old| shape.key(old) == key);
                let clash = match &key {
                    Some(key) if !same => store.clash(table, index, key, self.tx, Some(tuple)),
                    Some(_) | None => Clash::None,
                };
                match clash {
                    Clash::None => {
                        store.enter(table, index, tuple);
                        return Ok(());
                    }
                    Clash::Row(_) => {
                        let name = &store.tables[table].shape.indexes[index].name;
                        let message = format!("duplicate key value violates unique constraint \"{name}\"");
                        return Err(SqlError::of("23505", name, message).into());
                    }
                    Clash::Busy(other) => other,
                }
            };
            self.wait(WaitFor::Tx(busy)).await?;
        }
    }

    fn constraints(&self, table: TableId, values: &[Value]) -> Result<(), SqlError> {
        let store = self.pg.store();
        let shape = &store.tables[table].shape;
        if let Some(column) = shape.not_null.iter().find(|column| values[**column].is_null()) {
            let (column, relation) = (&shape.columns[*column], shape.relation());
            let message =
                format!("null value in column \"{column}\" of relation \"{relation}\" violates not-null constraint");
            return Err(SqlError::new("23502", message));
        }
        shape.check.as_ref().and_then(|check| check(values)).map_or(Ok(()), Err)
    }

    /// `INSERT` of one row.
    pub async fn insert(
        &mut self,
        table: TableId,
        values: Vec<Value>,
        conflict: OnConflict<'_>,
    ) -> Result<Inserted, Stop> {
        self.constraints(table, &values)?;
        let row: Row = values.into();
        let indexes = self.pg.store().tables[table].shape.indexes.len();
        let arbiters = match &conflict {
            OnConflict::Fail => 0..0,
            OnConflict::Nothing => 0..indexes,
            OnConflict::Update { index, .. } => *index..index + 1,
        };
        while let Some(found) = self.conflicting(table, arbiters.clone(), &row).await? {
            let OnConflict::Update { lock, set, .. } = &conflict else { return Ok(Inserted::Skipped) };
            if let Some(result) = self.on_conflict(table, found, *lock, *set).await? {
                return Ok(result);
            }
        }
        let (tx, command) = self.writer();
        let tuple = self.pg.store().add(table, row.clone(), tx, command);
        for index in 0..indexes {
            self.enter(table, index, tuple, None).await?;
        }
        self.check_parents(table, tuple, &row, None);
        Ok(Inserted::Fresh(row))
    }

    /// The row that has one of these keys, once no other transaction is about to add or remove it.
    async fn conflicting(
        &self,
        table: TableId,
        arbiters: std::ops::Range<usize>,
        row: &Row,
    ) -> Result<Option<TupleId>, Stop> {
        'again: loop {
            for index in arbiters.clone() {
                let clash = {
                    let store = self.pg.store();
                    let key = store.tables[table].shape.indexes[index].key(row);
                    key.map_or(Clash::None, |key| store.clash(table, index, &key, self.tx, None))
                };
                match clash {
                    Clash::None => {}
                    Clash::Row(tuple) => return Ok(Some(tuple)),
                    Clash::Busy(other) => {
                        self.wait(WaitFor::Tx(other)).await?;
                        continue 'again;
                    }
                }
            }
            return Ok(None);
        }
    }

    /// `DO UPDATE` of the newest row with the key; none if that changed while it was waited for.
    async fn on_conflict(
        &mut self,
        table: TableId,
        tuple: TupleId,
        lock: RowLock,
        set: &(dyn Fn(&[Value]) -> Option<Vec<Value>> + Sync),
    ) -> Result<Option<Inserted>, Stop> {
        let (created, claim) = {
            let store = self.pg.store();
            (store.tuple(table, tuple).created, store.claim(table, tuple, lock, self.tx))
        };
        if created == (Stamp::Open { tx: self.tx, command: self.snapshot.command }) {
            let message = "ON CONFLICT DO UPDATE command cannot affect row a second time";
            return Err(SqlError::new("21000", message).into());
        }
        match claim {
            Claim::Free => {}
            Claim::Gone | Claim::Moved(_) => return Ok(None),
            Claim::Busy(other) => {
                self.wait(WaitFor::Tx(other)).await?;
                return Ok(None);
            }
        }
        let old = {
            let mut store = self.pg.store();
            store.lock_row(table, tuple, lock, self.tx);
            store.tuple(table, tuple).row.clone()
        };
        match set(&old) {
            Some(values) => Ok(Some(Inserted::Updated(self.update(table, tuple, &old, values, lock).await?))),
            None => Ok(Some(Inserted::Skipped)),
        }
    }

    /// Notes the foreign keys of a row that is new or changed.
    fn check_parents(&mut self, table: TableId, tuple: TupleId, row: &Row, old: Option<&Row>) {
        if self.replica {
            return;
        }
        let store = self.pg.store();
        for (place, foreign) in store.tables[table].shape.foreign.iter().enumerate() {
            let same = old.is_some_and(|old| foreign.columns.iter().all(|column| old[*column] == row[*column]));
            if !same {
                self.checks.push(Pending::Child(table, place, tuple));
            }
        }
    }

    /// The end of the statement: foreign keys are checked, or put off.
    pub async fn finish(&mut self) -> Result<(), Stop> {
        let checks = std::mem::take(&mut self.checks);
        if self.replica {
            return Ok(());
        }
        for check in checks {
            self.check(check, false).await?;
        }
        Ok(())
    }

    /// The checks that were put off.
    pub async fn finish_deferred(&mut self) -> Result<(), Stop> {
        let pending = std::mem::take(&mut self.pg.store().tx(self.tx).pending);
        for check in pending {
            self.check(check, true).await?;
        }
        Ok(())
    }

    async fn check(&self, check: Pending, now: bool) -> Result<(), Stop> {
        match check {
            Pending::Child(table, foreign, tuple) => self.check_child(table, foreign, tuple, now).await,
            Pending::Parent(table, row) => {
                let referring = self.pg.store().tables[table].shape.referring.clone();
                for (child, foreign) in referring {
                    self.check_parent((table, &row), child, foreign, now).await?;
                }
                Ok(())
            }
        }
    }

    /// Whether a foreign key is to be checked at the commit only; it is noted then.
    fn put_off(&self, table: TableId, foreign: usize, now: bool, pending: Pending) -> bool {
        let mut store = self.pg.store();
        let deferral = store.tables[table].shape.foreign[foreign].deferral;
        let said = store.tx(self.tx).deferred;
        let deferred = match deferral {
            Deferral::NotDeferrable => false,
            Deferral::InitiallyImmediate => said.unwrap_or(false),
            Deferral::InitiallyDeferred => said.unwrap_or(true),
        };
        if deferred && !now {
            store.tx(self.tx).pending.push(pending);
        }
        deferred && !now
    }

    /// A snapshot of this moment, which sees what the statement did.
    fn fresh(&self) -> Snapshot {
        let mut store = self.pg.store();
        let snapshot = store.snapshot(self.tx);
        store.hold_snapshot(&snapshot);
        snapshot
    }

    async fn check_child(&self, table: TableId, place: usize, tuple: TupleId, now: bool) -> Result<(), Stop> {
        if self.put_off(table, place, now, Pending::Child(table, place, tuple)) {
            return Ok(());
        }
        let (foreign, key) = {
            let store = self.pg.store();
            let foreign = store.tables[table].shape.foreign[place].clone();
            // Changed or deleted since: what replaced it has a check of its own.
            let Some(found) = store.find_tuple(table, tuple).filter(|found| found.ended.is_none()) else {
                return Ok(());
            };
            let key: Vec<Value> = foreign.columns.iter().map(|column| found.row[*column].clone()).collect();
            (foreign, key)
        };
        if key.iter().any(Value::is_null) {
            return Ok(());
        }
        if self.key_share(foreign.parent, &foreign.parent_columns, &key).await? {
            return Ok(());
        }
        let relation = self.pg.store().tables[table].shape.relation().to_owned();
        let name = foreign.name;
        let message = format!("insert or update on table \"{relation}\" violates foreign key constraint \"{name}\"");
        Err(SqlError::of("23503", &name, message).into())
    }

    /// After the parent's row is gone: another with its key may be there, else no child may be.
    async fn check_parent(
        &self,
        (table, row): (TableId, &Row),
        child: TableId,
        place: usize,
        now: bool,
    ) -> Result<(), Stop> {
        let foreign = self.pg.store().tables[child].shape.foreign[place].clone();
        if self.put_off(child, place, now, Pending::Parent(table, row.clone())) {
            return Ok(());
        }
        let key: Vec<Value> = foreign.parent_columns.iter().map(|column| row[*column].clone()).collect();
        if key.iter().any(Value::is_null) || self.key_share(table, &foreign.parent_columns, &key).await? {
            return Ok(());
        }
        if self.key_share(child, &foreign.columns, &key).await? {
            let (parent, relation) = {
                let store = self.pg.store();
                let name = |table: TableId| store.tables[table].shape.relation().to_owned();
                (name(table), name(child))
            };
            let name = foreign.name;
            let message = format!(
                "update or delete on table \"{parent}\" violates foreign key constraint \"{name}\" on table \"{relation}\""
            );
            return Err(SqlError::of("23503", &name, message).into());
        }
        Ok(())
    }

    /// `SELECT 1 … FOR KEY SHARE` with a snapshot of its own: whether there is such a row, which stays then.
    async fn key_share(&self, table: TableId, columns: &[usize], key: &[Value]) -> Result<bool, Stop> {
        let snapshot = self.fresh();
        let same = |row: &[Value]| columns.iter().zip(key).all(|(column, value)| row[*column] == *value);
        let found: Vec<TupleId> = {
            let store = self.pg.store();
            let index = store.tables[table].shape.indexes.iter().position(|index| index.columns == columns);
            match index {
                Some(index) => store.lookup(table, index, key, &snapshot).map(|(id, _)| id).into_iter().collect(),
                None => store.scan(table, &snapshot).filter(|(_, row)| same(row)).map(|(id, _)| id).collect(),
            }
        };
        let mut there = Ok(false);
        for tuple in found {
            match self.claim(table, tuple, RowLock::KeyShare, &same).await {
                Ok(Some((tuple, _))) => {
                    self.pg.store().lock_row(table, tuple, RowLock::KeyShare, self.tx);
                    there = Ok(true);
                    break;
                }
                Ok(None) => {}
                Err(stop) => {
                    there = Err(stop);
                    break;
                }
            }
        }
        self.pg.store().drop_snapshot(&snapshot);
        there
    }
}

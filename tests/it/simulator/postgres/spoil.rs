//! What somebody does who writes to a target table behind cutover's back.

use super::{
    Postgres,
    faults::SessionInfo,
    store::{Claim, RowLock},
    value::{Row, Value},
};

impl Postgres {
    /// Puts this row, in the order of the table's columns with the version last, in the place of the one with this
    /// key, or none; whether that could be done at once. Whoever calls minds the table's constraints.
    pub fn spoil(&self, table: &str, key: &[Value], row: Option<Vec<Value>>) -> bool {
        let info = SessionInfo {
            pid: 0,
            application_name: "somebody else".into(),
            user: "somebody".into(),
            database: "sim".into(),
            started_us: self.now_us(),
        };
        let (table, tx) = (self.table_id(table), self.begin(info.pid));
        let done = {
            let mut store = self.store();
            let snapshot = store.snapshot(tx);
            let found = store.lookup(table, 0, key, &snapshot).map(|(tuple, _)| tuple);
            let is_free = found.is_none_or(|tuple| store.claim(table, tuple, RowLock::Update, tx) == Claim::Free);
            if is_free {
                let indexes = store.tables[table].shape.indexes.len();
                let row: Option<Row> = row.map(Into::into);
                let new = match (found, row) {
                    (Some(old), Some(row)) => {
                        Some(store.update(table, old, row, RowLock::Update, (tx, snapshot.command)))
                    }
                    (None, Some(row)) => Some(store.add(table, row, tx, snapshot.command)),
                    (Some(old), None) => {
                        store.delete(table, old, tx, snapshot.command);
                        None
                    }
                    (None, None) => None,
                };
                for index in new.iter().flat_map(|_| 0..indexes) {
                    new.iter().for_each(|new| store.enter(table, index, *new));
                }
            }
            is_free
        };
        self.commit(tx, &info);
        done
    }
}

//! A PostgreSQL server that lives in this process: deterministic, in memory, and exact in what the product's
//! correctness depends on.
//!
//! What enters is the wire protocol of the product's own client, over a pipe ([`Dial`]); what leaves is its answers,
//! and for the world around it committed rows, a report of every commit ([`Watch`]), and faults on demand ([`Faults`]).
//! It knows the finite set of statements that the product sends and means what they mean at READ COMMITTED: snapshots
//! for each statement, row locks and who waits for them, unique keys, foreign keys, advisory locks, savepoints,
//! deadlocks. The invariant: whatever claim it makes about PostgreSQL, `simulator_claims` makes the same one of a real
//! server. Deliberately absent: SQL. A text that is not known is a panic that prints it ([`Postgres::check`]).
//!
//! Time is tokio's clock, which the world pauses. Nothing depends on the order of a hash map, on a thread, or on
//! chance.

mod children;
mod compare;
mod exec;
mod faults;
mod locks;
mod own;
mod plan;
mod recognise;
mod session;
mod shape;
mod spoil;
mod state;
mod store;
mod sweep;
mod table;
mod texts;
mod value;
mod wire;

use std::{
    collections::{BTreeMap, HashMap},
    io,
    panic::AssertUnwindSafe,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use cutover::{
    database::postgres::{Dial, Wire},
    target::postgres::tombstone_table,
};
use futures::FutureExt;
use tokio::{sync::mpsc, time::Instant};

pub use compare::hash;
pub use faults::{Fault, Faults, Moment, NoFaults, Point, SessionInfo, Watch, Weakness};
pub use own::{dead_letters, fences};
pub use table::{Cell, Change, Deferral, ModelTable, SourceRow, Transform, Unique, integer};
pub use value::{Row, SqlError, Value};

use recognise::Known;
use session::{Control, Session};
use shape::{Foreign, Index, Shape};
use store::{Store, TableId, TxId};

/// What the server is like.
#[derive(Debug, Clone)]
pub struct Settings {
    /// µs since the Unix epoch at the moment at which the server is made.
    pub base_us: i64,
    /// Whether sessions may take `session_replication_role = replica`.
    pub replica_allowed: bool,
    pub weakness: Weakness,
}

impl Default for Settings {
    fn default() -> Self {
        Settings { base_us: 1_700_000_000_000_000, replica_allowed: false, weakness: Weakness::default() }
    }
}

/// The server.
pub struct Postgres {
    this: Weak<Postgres>,
    store: Mutex<Store>,
    controls: Mutex<BTreeMap<i32, Arc<Control>>>,
    models: Vec<ModelTable>,
    faults: Arc<dyn Faults>,
    watch: Mutex<Option<Arc<dyn Watch>>>,
    /// By text.
    known: Mutex<HashMap<String, Arc<Known>>>,
    settings: Settings,
    made: Instant,
    reachable: AtomicBool,
    deadlock_timeout_ms: AtomicU64,
    /// What the model could not do.
    broken: Mutex<Option<String>>,
}

impl std::fmt::Debug for Postgres {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Postgres").field("settings", &self.settings).finish_non_exhaustive()
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Postgres {
    /// A server with these tables, their tombstone tables and the `cutover` schema. Made inside a tokio runtime.
    pub fn new(tables: Vec<ModelTable>, faults: Arc<dyn Faults>) -> Arc<Self> {
        Self::with(tables, faults, Settings::default())
    }

    pub fn with(tables: Vec<ModelTable>, faults: Arc<dyn Faults>, settings: Settings) -> Arc<Self> {
        Arc::new_cyclic(|this| Postgres {
            this: this.clone(),
            store: Mutex::new(Store::new(shapes(&tables))),
            controls: Mutex::new(BTreeMap::new()),
            models: tables,
            faults,
            watch: Mutex::new(None),
            known: Mutex::new(HashMap::new()),
            settings,
            made: Instant::now(),
            reachable: AtomicBool::new(true),
            deadlock_timeout_ms: AtomicU64::new(1_000),
            broken: Mutex::new(None),
        })
    }

    /// Reports every commit from now on.
    pub fn watch(&self, watch: Arc<dyn Watch>) {
        *locked(&self.watch) = Some(watch);
    }

    /// Panics if the server met something that it does not know; the world asks this at the end at the latest.
    pub fn check(&self) {
        if let Some(message) = locked(&self.broken).as_ref() {
            panic!("the model of PostgreSQL broke down: {message}");
        }
    }

    // The machines that the server and its clients run on.

    /// Ends the sessions of which this is true, as a killed client does: open transactions roll back, connections
    /// close. How many they were.
    pub fn kill_sessions(&self, which: impl Fn(&SessionInfo) -> bool) -> usize {
        self.end_sessions(which, None)
    }

    /// The clients of these sessions are cut off: they find their connections closed, while the server keeps the
    /// sessions with all their locks, until something ends them.
    pub fn strand_sessions(&self, which: impl Fn(&SessionInfo) -> bool) -> usize {
        let pids = self.pids(which);
        let controls = locked(&self.controls);
        pids.iter().filter_map(|pid| controls.get(pid)).for_each(|control| control.cut_off());
        pids.len()
    }

    /// The server crashes and starts again: every session ends, what was committed stays.
    pub fn crash(&self) {
        self.end_sessions(|_| true, None);
    }

    /// While it is not reachable, connections close and none opens.
    pub fn set_reachable(&self, reachable: bool) {
        self.reachable.store(reachable, Ordering::Relaxed);
        if !reachable {
            self.end_sessions(|_| true, None);
        }
    }

    /// How long a statement waits before it looks whether it is in a deadlock; a second, unless this says otherwise.
    pub fn set_deadlock_timeout(&self, timeout: Duration) {
        self.deadlock_timeout_ms.store(u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn deadlock_timeout(&self) -> Duration {
        Duration::from_millis(self.deadlock_timeout_ms.load(Ordering::Relaxed))
    }

    /// The sessions that the server has, in the order in which they came.
    pub fn sessions(&self) -> Vec<SessionInfo> {
        self.store().sessions.values().cloned().collect()
    }

    /// The sessions that wait for a lock.
    pub fn waiting_sessions(&self) -> Vec<SessionInfo> {
        let mut store = self.store();
        let txs = store.locks.waiting();
        let pids: Vec<i32> = txs.into_iter().map(|tx| store.tx(tx).session).collect();
        pids.iter().filter_map(|pid| store.sessions.get(pid).cloned()).collect()
    }

    // What is committed.

    /// A table's rows by key: the other columns' values, in the table's order, and the version. `table` is the
    /// target's name with its schema.
    pub fn rows(&self, table: &str) -> BTreeMap<Vec<Value>, (Vec<Value>, i64)> {
        self.check();
        let store = self.store();
        let id = Self::id(&store, table);
        let key = &store.tables[id].shape.key;
        let split = |row: &Row| {
            let (version, columns) = row.split_last().expect("the version is the last column");
            let keys = key.iter().map(|column| row[*column].clone()).collect();
            let others = columns.iter().enumerate().filter(|(place, _)| !key.contains(place));
            (keys, (others.map(|(_, value)| value.clone()).collect(), version.int()))
        };
        store.committed(id).map(split).collect()
    }

    /// The versions of a target table's tombstones, by key.
    pub fn tombstones(&self, table: &str) -> BTreeMap<Vec<Value>, i64> {
        let model = self.models.iter().find(|model| model.plan.target.name.to_string() == table);
        let model = model.unwrap_or_else(|| panic!("the model has no table {table}"));
        let tombstones = tombstone_table(&model.plan.target.name).to_string();
        self.rows(&tombstones).into_iter().map(|(key, (_, version))| (key, version)).collect()
    }

    /// The rows of one of cutover's own tables (`dead_letters`), each by column.
    pub fn cutover_rows(&self, table: &str) -> Vec<BTreeMap<String, Value>> {
        self.all_rows(&format!("cutover.{table}"))
    }

    /// The rows of any table, with its schema, each by column.
    pub fn all_rows(&self, table: &str) -> Vec<BTreeMap<String, Value>> {
        self.check();
        let store = self.store();
        let id = Self::id(&store, table);
        let columns = &store.tables[id].shape.columns;
        let named = |row: &Row| columns.iter().cloned().zip(row.iter().cloned()).collect();
        store.committed(id).map(named).collect()
    }

    /// The text of a statement of the product, by the name that it has here.
    pub fn text_of(name: &str) -> &'static str {
        let found = texts::all().find(|known| known.name == name);
        found.unwrap_or_else(|| panic!("no statement is called `{name}`")).text
    }

    /// The server's clock, µs since the Unix epoch.
    pub fn now_us(&self) -> i64 {
        let since = i64::try_from(self.made.elapsed().as_micros()).unwrap_or(i64::MAX);
        self.settings.base_us.saturating_add(since)
    }

    // What sessions and statements use.

    fn store(&self) -> MutexGuard<'_, Store> {
        locked(&self.store)
    }

    fn faults(&self) -> &dyn Faults {
        &*self.faults
    }

    fn models(&self) -> &[ModelTable] {
        &self.models
    }

    fn weakness(&self) -> Weakness {
        self.settings.weakness
    }

    fn replica_allowed(&self) -> bool {
        self.settings.replica_allowed
    }

    fn id(store: &Store, table: &str) -> TableId {
        *store.names.get(table).unwrap_or_else(|| panic!("the model has no table {table}: {:?}", store.names.keys()))
    }

    fn table_id(&self, table: &str) -> TableId {
        Self::id(&self.store(), table)
    }

    fn begin(&self, session: i32) -> TxId {
        let now = self.now_us();
        self.store().begin(session, now)
    }

    /// When the transaction began: `now()`.
    fn started_us(&self, tx: TxId) -> i64 {
        self.store().tx(tx).started_us
    }

    fn commit(&self, tx: TxId, session: &SessionInfo) {
        let changes = self.store().commit(tx);
        let watch = locked(&self.watch).clone();
        if let Some(watch) = watch
            && !changes.is_empty()
        {
            watch.committed(session, &changes);
        }
    }

    /// As [`Self::commit`], for a transaction of which only the store knows the session.
    fn commit_of(&self, tx: TxId) {
        let session = {
            let mut store = self.store();
            let pid = store.tx(tx).session;
            store.sessions.get(&pid).cloned()
        };
        if let Some(session) = session {
            self.commit(tx, &session);
        }
    }

    fn pids(&self, which: impl Fn(&SessionInfo) -> bool) -> Vec<i32> {
        self.store().sessions.values().filter(|session| which(session)).map(|session| session.pid).collect()
    }

    fn end_sessions(&self, which: impl Fn(&SessionInfo) -> bool, farewell: Option<&SqlError>) -> usize {
        let pids = self.pids(which);
        pids.iter().for_each(|pid| self.end_session(*pid, farewell));
        pids.len()
    }

    /// `pg_terminate_backend` of these; how many they were.
    fn terminate(&self, which: impl Fn(&SessionInfo) -> bool) -> usize {
        let farewell = SqlError::new("57P01", "terminating connection due to administrator command");
        self.end_sessions(which, Some(&farewell))
    }

    fn end_session(&self, pid: i32, farewell: Option<&SqlError>) {
        {
            let mut store = self.store();
            store.close_session(pid);
            let open: Vec<TxId> = store.txs.iter().filter(|(_, tx)| tx.session == pid).map(|(id, _)| *id).collect();
            open.into_iter().for_each(|tx| store.abort(tx));
        }
        if let Some(control) = locked(&self.controls).remove(&pid) {
            control.end(farewell);
        }
    }

    fn recognise(&self, text: &str) -> Arc<Known> {
        if let Some(known) = locked(&self.known).get(text) {
            return known.clone();
        }
        let Some(known) = recognise::recognise(text, self) else {
            panic!("the model of PostgreSQL does not know this statement; teach it:\n{text}");
        };
        let known = Arc::new(known);
        locked(&self.known).insert(text.to_owned(), known.clone());
        known
    }
}

#[async_trait]
impl Dial for Postgres {
    async fn dial(&self) -> io::Result<Box<dyn Wire>> {
        let (to_server, input) = mpsc::unbounded_channel::<Bytes>();
        let (output, from_server) = mpsc::unbounded_channel();
        let named = |pid: i32| SessionInfo {
            pid,
            application_name: String::new(),
            user: String::new(),
            database: String::new(),
            started_us: self.now_us(),
        };
        let unknown = named(0);
        let moment = Moment { point: Point::Connect, session: &unknown, statement: "connect" };
        match self.faults.at(&moment) {
            Fault::Continue => {}
            Fault::Delay(time) => tokio::time::sleep(time).await,
            Fault::Error(_) | Fault::DropConnectionBefore | Fault::DropConnectionAfter => {
                return Err(io::ErrorKind::ConnectionReset.into());
            }
        }
        let Some(pg) = self.this.upgrade().filter(|_| self.reachable.load(Ordering::Relaxed)) else {
            return Err(io::ErrorKind::ConnectionRefused.into());
        };
        let info = self.store().open_session(named);
        let control = Arc::new(Control::new(output));
        locked(&self.controls).insert(info.pid, control.clone());
        let pid = info.pid;
        tokio::spawn(async move {
            let session = Session::new(pg.clone(), control, info, input).run();
            if let Err(panic) = AssertUnwindSafe(session).catch_unwind().await {
                let text = panic.downcast_ref::<String>().cloned();
                let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
                locked(&pg.broken).get_or_insert(text.unwrap_or_default());
                pg.end_session(pid, None);
            }
        });
        Ok(Box::new(wire::ClientWire { to_server: Some(to_server), from_server, rest: Bytes::new() }))
    }
}

/// Every table of the server: cutover's own, then each target with its tombstones.
fn shapes(models: &[ModelTable]) -> Vec<Shape> {
    let mut shapes = own::shapes();
    for model in models {
        let target = &model.plan.target;
        if shapes.iter().any(|shape| shape.name == target.name.to_string()) {
            continue;
        }
        let mut columns: Vec<String> = target.columns.iter().map(|column| column.name.clone()).collect();
        columns.push("cutover_version".into());
        let place = |name: &String| columns.iter().position(|column| column == name);
        let places = |names: &[String]| -> Vec<usize> {
            names.iter().map(|name| place(name).unwrap_or_else(|| panic!("no column `{name}`"))).collect()
        };
        let key = places(&target.key);
        let pkey = Index { name: format!("{}_pkey", target.name.table), columns: key.clone(), only: None };
        let uniques = model.uniques.iter();
        let uniques =
            uniques.map(|unique| Index { name: unique.name.clone(), columns: places(&unique.columns), only: None });
        let not_null = target.columns.iter().enumerate().filter(|(_, column)| column.not_null);
        let mut not_null: Vec<usize> = not_null.map(|(place, _)| place).chain(key.iter().copied()).collect();
        not_null.sort_unstable();
        not_null.dedup();
        shapes.push(Shape {
            name: target.name.to_string(),
            key,
            indexes: std::iter::once(pkey).chain(uniques).collect(),
            not_null,
            check: model.check.clone(),
            foreign: Vec::new(),
            referring: Vec::new(),
            columns,
        });
        let tombstones = tombstone_table(&target.name);
        let key: Vec<usize> = (0..target.key.len()).collect();
        let pkey = Index { name: format!("{}_pkey", tombstones.table), columns: key.clone(), only: None };
        shapes.push(Shape {
            name: tombstones.to_string(),
            columns: target.key.iter().cloned().chain(["cutover_version".to_owned()]).collect(),
            key: key.clone(),
            indexes: vec![pkey],
            not_null: key,
            check: None,
            foreign: Vec::new(),
            referring: Vec::new(),
        });
    }
    foreign_keys(models, &mut shapes);
    shapes
}

fn foreign_keys(models: &[ModelTable], shapes: &mut [Shape]) {
    for model in models {
        let target = &model.plan.target;
        let find = |shapes: &[Shape], name: String| {
            let place = shapes.iter().position(|shape| shape.name == name);
            place.unwrap_or_else(|| panic!("{name}, to which a foreign key refers, is no table of the model"))
        };
        let child = find(shapes, target.name.to_string());
        if !shapes[child].foreign.is_empty() {
            continue;
        }
        for key in &target.foreign_keys {
            let parent = find(shapes, key.parent.to_string());
            let columns = key.columns.iter().map(|name| shapes[child].column(name)).collect();
            let parent_columns = key.parent_columns.iter().map(|name| shapes[parent].column(name)).collect();
            let place = shapes[child].foreign.len();
            shapes[parent].referring.push((child, place));
            let name = key.name.clone();
            let foreign = Foreign { name, columns, parent, parent_columns, deferral: model.deferral };
            shapes[child].foreign.push(foreign);
        }
    }
}

//! One session: startup, simple and extended queries, and the state of its transaction.
//!
//! Messages are handled in their order. An error skips the extended messages up to the next `Sync` and fails the
//! transaction; only its end, or a savepoint's, is accepted then.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::{Bytes, BytesMut};
use tokio::sync::{
    Notify,
    mpsc::{UnboundedReceiver, UnboundedSender},
};

use super::{
    Postgres,
    exec::{Exec, Stop},
    faults::{Fault, Moment, Point, SessionInfo},
    recognise::{Known, Tag},
    store::{Sees, Snapshot, TxId},
    value::{Param, SqlError, Value},
    wire::{self, Backend, Frontend},
};

/// How a session is ended from outside.
#[derive(Debug)]
pub struct Control {
    ended: AtomicBool,
    notify: Notify,
    /// Where answers go; none once the client is cut off.
    output: Mutex<Option<UnboundedSender<Bytes>>>,
}

impl Control {
    pub fn new(output: UnboundedSender<Bytes>) -> Self {
        Control { ended: AtomicBool::new(false), notify: Notify::new(), output: Mutex::new(Some(output)) }
    }

    /// Comes when the session has been ended.
    pub async fn gone(&self) {
        while !self.ended.load(Ordering::Relaxed) {
            self.notify.notified().await;
        }
    }

    /// Ends the session, with these last words if the client is to hear any.
    pub fn end(&self, farewell: Option<&SqlError>) {
        if let Some(error) = farewell {
            let mut last = Backend::default();
            last.error("FATAL", error);
            self.send(last.bytes.freeze());
        }
        self.cut_off();
        self.ended.store(true, Ordering::Relaxed);
        self.notify.notify_one();
    }

    /// The client hears nothing any more, and finds its connection closed.
    pub fn cut_off(&self) {
        *self.output.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn is_cut_off(&self) -> bool {
        self.output.lock().unwrap_or_else(PoisonError::into_inner).is_none()
    }

    fn send(&self, bytes: Bytes) {
        if let Some(output) = self.output.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
            let _client_is_gone = output.send(bytes);
        }
    }
}

/// What a statement answered.
#[derive(Debug, Default)]
pub struct Answer {
    pub rows: Vec<Vec<Value>>,
    /// Rows affected, where the statement is no `SELECT`.
    pub affected: usize,
}

impl Answer {
    pub fn row(values: Vec<Value>) -> Self {
        Answer::rows(vec![values])
    }

    pub fn rows(rows: Vec<Vec<Value>>) -> Self {
        Answer { affected: rows.len(), rows }
    }

    pub fn affected(affected: usize) -> Self {
        Answer { rows: Vec::new(), affected }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Idle,
    /// A transaction that ends with the message, or the `Sync`.
    Implicit(TxId),
    Block(TxId),
    /// Failed: only its end is accepted.
    Failed(TxId),
}

/// A session's task.
pub struct Session {
    pg: Arc<Postgres>,
    control: Arc<Control>,
    info: SessionInfo,
    input: UnboundedReceiver<Bytes>,
    buffer: BytesMut,
    out: Backend,
    replica: bool,
    state: State,
    statements: HashMap<String, Arc<Known>>,
    portal: Option<(Arc<Known>, Vec<Param>)>,
    /// An error was sent: everything up to `Sync` is skipped.
    skipping: bool,
    /// The session ends without another answer.
    silent: bool,
}

impl Session {
    pub fn new(pg: Arc<Postgres>, control: Arc<Control>, info: SessionInfo, input: UnboundedReceiver<Bytes>) -> Self {
        Session {
            pg,
            control,
            info,
            input,
            buffer: BytesMut::new(),
            out: Backend::default(),
            replica: false,
            state: State::Idle,
            statements: HashMap::new(),
            portal: None,
            skipping: false,
            silent: false,
        }
    }

    /// Serves the client until it or the server has had enough.
    pub async fn run(mut self) {
        let _ended = self.serve().await;
        if self.control.is_cut_off() && !self.control.ended.load(Ordering::Relaxed) && !self.silent {
            // The client is beyond reach, and the server does not know.
            self.control.gone().await;
        }
        self.pg.end_session(self.info.pid, None);
    }

    async fn serve(&mut self) -> Result<(), Stop> {
        loop {
            if let Some(parameters) = wire::startup(&mut self.buffer) {
                for (name, value) in parameters {
                    match name.as_str() {
                        "user" => self.info.user = value,
                        "database" => self.info.database = value,
                        "application_name" => self.info.application_name = value,
                        _ => {}
                    }
                }
                break;
            }
            self.receive().await?;
        }
        self.pg.store().sessions.insert(self.info.pid, self.info.clone());
        self.out.greeting(self.info.pid);
        self.flush();
        loop {
            while let Some(message) = wire::message(&mut self.buffer) {
                self.handle(message).await?;
            }
            self.receive().await?;
        }
    }

    async fn receive(&mut self) -> Result<(), Stop> {
        tokio::select! {
            biased;
            () = self.control.gone() => Err(Stop::Gone),
            bytes = self.input.recv() => {
                self.buffer.extend_from_slice(&bytes.ok_or(Stop::Gone)?);
                Ok(())
            }
        }
    }

    fn flush(&mut self) {
        if !self.out.bytes.is_empty() {
            self.control.send(self.out.bytes.split().freeze());
        }
    }

    async fn handle(&mut self, message: Frontend) -> Result<(), Stop> {
        let result = match message {
            Frontend::Terminate => return Err(Stop::Gone),
            Frontend::Query(text) => {
                let result = self.query(&text).await;
                self.settle(result)?;
                return self.ready().await;
            }
            Frontend::Sync => {
                self.skipping = false;
                return self.ready().await;
            }
            Frontend::Flush => {
                self.flush();
                return Ok(());
            }
            _ if self.skipping => return Ok(()),
            Frontend::Parse { name, text } => self.parse(name, &text).await,
            Frontend::Describe { name } => self.describe(&name),
            Frontend::Bind { statement, parameters } => self.bind(&statement, parameters),
            Frontend::Execute => self.execute().await,
            Frontend::Close { name } => {
                self.statements.remove(&name);
                self.out.note(b'3');
                Ok(())
            }
        };
        self.skipping = matches!(result, Err(Stop::Sql(_)));
        self.settle(result)
    }

    /// Reports an error and fails the transaction.
    fn settle(&mut self, result: Result<(), Stop>) -> Result<(), Stop> {
        let error = match result {
            Ok(()) => return Ok(()),
            Err(Stop::Gone) => return Err(Stop::Gone),
            Err(Stop::Sql(error)) => error,
        };
        self.out.error("ERROR", &error);
        self.state = match self.state {
            State::Idle => State::Idle,
            State::Implicit(tx) => {
                self.pg.store().abort(tx);
                State::Idle
            }
            State::Block(tx) => {
                self.pg.store().fail(tx);
                State::Failed(tx)
            }
            State::Failed(tx) => State::Failed(tx),
        };
        Ok(())
    }

    /// Ends an implicit transaction, and tells the client to go on.
    async fn ready(&mut self) -> Result<(), Stop> {
        if let State::Implicit(tx) = self.state {
            let result = self.commit(tx).await;
            self.settle(result)?;
        }
        self.out.ready(match self.state {
            State::Idle | State::Implicit(_) => b'I',
            State::Block(_) => b'T',
            State::Failed(_) => b'E',
        });
        self.flush();
        if self.silent { Err(Stop::Gone) } else { Ok(()) }
    }

    fn aborted() -> Stop {
        let message = "current transaction is aborted, commands ignored until end of transaction block";
        SqlError::new("25P02", message).into()
    }

    async fn parse(&mut self, name: String, text: &str) -> Result<(), Stop> {
        if let State::Failed(_) = self.state {
            return Err(Self::aborted());
        }
        let known = self.pg.recognise(text);
        self.fault(Point::Prepare, known.name).await?;
        self.statements.insert(name, known);
        self.out.note(b'1');
        Ok(())
    }

    fn known(&self, name: &str) -> Result<Arc<Known>, Stop> {
        let missing = || SqlError::new("26000", format!("prepared statement \"{name}\" does not exist"));
        Ok(self.statements.get(name).cloned().ok_or_else(missing)?)
    }

    fn describe(&mut self, name: &str) -> Result<(), Stop> {
        let known = self.known(name)?;
        self.out.describe(&known.params, known.columns.as_deref());
        Ok(())
    }

    fn bind(&mut self, name: &str, parameters: Vec<Option<Bytes>>) -> Result<(), Stop> {
        if let State::Failed(_) = self.state {
            return Err(Self::aborted());
        }
        let known = self.known(name)?;
        let values = known.params.iter().zip(parameters).map(|(kind, bytes)| wire::decode(*kind, bytes)).collect();
        self.portal = Some((known, values));
        self.out.note(b'2');
        Ok(())
    }

    async fn execute(&mut self) -> Result<(), Stop> {
        let Some((known, params)) = self.portal.take() else {
            return Err(SqlError::new("34000", "portal \"\" does not exist").into());
        };
        let tx = self.transaction()?;
        self.fault(Point::Statement, known.name).await?;
        let answer = self.statement(tx, &known, &params).await?;
        if let Some(columns) = &known.columns {
            answer.rows.iter().for_each(|row| self.out.row(columns, row));
        }
        self.out.complete(&match known.tag {
            Tag::Select => format!("SELECT {}", answer.affected),
            Tag::Insert => format!("INSERT 0 {}", answer.affected),
            Tag::Update => format!("UPDATE {}", answer.affected),
            Tag::Delete => format!("DELETE {}", answer.affected),
        });
        Ok(())
    }

    /// The open transaction, or a new implicit one.
    fn transaction(&mut self) -> Result<TxId, Stop> {
        match self.state {
            State::Implicit(tx) | State::Block(tx) => Ok(tx),
            State::Failed(_) => Err(Self::aborted()),
            State::Idle => {
                let tx = self.pg.begin(self.info.pid);
                self.state = State::Implicit(tx);
                Ok(tx)
            }
        }
    }

    async fn statement(&mut self, tx: TxId, known: &Known, params: &[Param]) -> Result<Answer, Stop> {
        let snapshot = self.snapshot(tx);
        let result = self.with_snapshot(tx, known, params, snapshot).await;
        self.pg.store().drop_snapshot(&snapshot);
        result
    }

    fn snapshot(&self, tx: TxId) -> Snapshot {
        let mut store = self.pg.store();
        let snapshot = store.snapshot(tx);
        store.hold_snapshot(&snapshot);
        snapshot
    }

    async fn with_snapshot(
        &mut self,
        tx: TxId,
        known: &Known,
        params: &[Param],
        snapshot: Snapshot,
    ) -> Result<Answer, Stop> {
        self.fault(Point::Snapshot, known.name).await?;
        let mut exec = Exec::new(&self.pg, &self.control, tx, snapshot, self.replica);
        let answer = known.run(&mut exec, &self.info, params).await?;
        exec.finish().await?;
        Ok(answer)
    }

    /// Asks the world what happens now.
    async fn fault(&mut self, point: Point, statement: &str) -> Result<(), Stop> {
        let moment = Moment { point, session: &self.info, statement };
        match self.pg.faults().at(&moment) {
            Fault::Continue => Ok(()),
            Fault::Delay(time) => {
                tokio::select! {
                    biased;
                    () = self.control.gone() => Err(Stop::Gone),
                    () = tokio::time::sleep(time) => Ok(()),
                }
            }
            Fault::Error(sqlstate) => Err(SqlError::new(&sqlstate, "the world made this statement fail").into()),
            Fault::DropConnectionBefore => {
                self.silent = true;
                Err(Stop::Gone)
            }
            Fault::DropConnectionAfter => {
                self.silent = true;
                self.control.cut_off();
                if matches!(point, Point::Statement | Point::Commit) { Ok(()) } else { Err(Stop::Gone) }
            }
        }
    }

    /// Statements separated by `;`, in one transaction unless they say otherwise.
    async fn query(&mut self, text: &str) -> Result<(), Stop> {
        for part in text.split(';').map(str::trim).filter(|part| !part.is_empty()) {
            self.simple(part).await?;
        }
        Ok(())
    }

    async fn simple(&mut self, text: &str) -> Result<(), Stop> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let ends = matches!(words[..], ["COMMIT"] | ["ROLLBACK", ..]);
        if matches!(self.state, State::Failed(_)) && !ends {
            return Err(Self::aborted());
        }
        match words[..] {
            ["COMMIT"] => return self.end(text).await,
            ["ROLLBACK"] => self.fault(Point::Statement, text).await?,
            ["SET", ..] => self.fault(Point::Statement, "SET").await?,
            _ => self.fault(Point::Statement, text).await?,
        }
        match words[..] {
            ["BEGIN"] => {
                self.state = State::Block(self.transaction()?);
                self.out.complete("BEGIN");
            }
            ["BEGIN", "ISOLATION", "LEVEL", "REPEATABLE", "READ"] => {
                let tx = self.transaction()?;
                self.pg.store().tx(tx).sees = Sees::OneMoment(None);
                self.state = State::Block(tx);
                self.out.complete("BEGIN");
            }
            // What is kept in temporary tables stays empty here: see `compare`.
            ["DROP", "TABLE", "IF", "EXISTS", name] if name.starts_with("pg_temp.") => self.out.complete("DROP TABLE"),
            ["CREATE", "TEMP", "TABLE", name, ..] if name.starts_with("pg_temp.") && !words.contains(&"AS") => {
                self.out.complete("CREATE TABLE");
            }
            ["ROLLBACK"] => {
                if let State::Implicit(tx) | State::Block(tx) | State::Failed(tx) = self.state {
                    self.pg.store().abort(tx);
                }
                self.state = State::Idle;
                self.out.complete("ROLLBACK");
            }
            ["SAVEPOINT", name] => {
                let tx = self.block("SAVEPOINT")?;
                self.pg.store().savepoint(tx, name);
                self.out.complete("SAVEPOINT");
            }
            ["RELEASE", name] => {
                let tx = self.block("RELEASE SAVEPOINT")?;
                let found = self.pg.store().release_savepoint(tx, name);
                self.savepoint_found(found, name)?;
                self.out.complete("RELEASE");
            }
            ["ROLLBACK", "TO", name] | ["ROLLBACK", "TO", "SAVEPOINT", name] => {
                let tx = match self.state {
                    State::Failed(tx) => tx,
                    State::Idle | State::Implicit(_) | State::Block(_) => self.block("ROLLBACK TO SAVEPOINT")?,
                };
                let found = self.pg.store().rollback_to(tx, name);
                self.savepoint_found(found, name)?;
                self.state = State::Block(tx);
                self.out.complete("ROLLBACK");
            }
            ["SET", "CONSTRAINTS", "ALL", when] => {
                let tx = self.transaction()?;
                self.pg.store().tx(tx).deferred = Some(when == "DEFERRED");
                if when == "IMMEDIATE" {
                    self.deferred(tx).await?;
                }
                self.out.complete("SET CONSTRAINTS");
            }
            ["SET", "session_replication_role", "=", role] => {
                if !self.pg.replica_allowed() {
                    let message = "permission denied to set parameter \"session_replication_role\"";
                    return Err(SqlError::new("42501", message).into());
                }
                self.replica = role == "replica";
                self.out.complete("SET");
            }
            ["SET", ..] => self.out.complete("SET"),
            _ => panic!("the model of PostgreSQL does not know this simple query; teach it:\n{text}"),
        }
        Ok(())
    }

    /// The transaction of an explicit block.
    fn block(&self, what: &str) -> Result<TxId, Stop> {
        match self.state {
            State::Block(tx) | State::Failed(tx) => Ok(tx),
            State::Idle | State::Implicit(_) => {
                Err(SqlError::new("25P01", format!("{what} can only be used in transaction blocks")).into())
            }
        }
    }

    fn savepoint_found(&self, found: bool, name: &str) -> Result<(), Stop> {
        let error = || SqlError::new("3B001", format!("savepoint \"{name}\" does not exist"));
        Ok(found.then_some(()).ok_or_else(error)?)
    }

    /// `COMMIT`: of a transaction that has failed it is a `ROLLBACK`.
    async fn end(&mut self, text: &str) -> Result<(), Stop> {
        match self.state {
            State::Idle => self.out.complete(text),
            State::Failed(tx) => {
                self.pg.store().abort(tx);
                self.state = State::Idle;
                self.out.complete("ROLLBACK");
            }
            State::Implicit(tx) | State::Block(tx) => {
                // A commit that fails leaves no transaction behind.
                self.state = State::Implicit(tx);
                self.commit(tx).await?;
                self.out.complete(text);
            }
        }
        Ok(())
    }

    async fn deferred(&mut self, tx: TxId) -> Result<(), Stop> {
        let snapshot = self.snapshot(tx);
        let mut exec = Exec::new(&self.pg, &self.control, tx, snapshot, self.replica);
        let result = exec.finish_deferred().await;
        self.pg.store().drop_snapshot(&snapshot);
        result
    }

    async fn commit(&mut self, tx: TxId) -> Result<(), Stop> {
        if !self.pg.store().tx(tx).pending.is_empty() {
            self.deferred(tx).await?;
        }
        self.fault(Point::Commit, "COMMIT").await?;
        self.state = State::Idle;
        self.pg.commit(tx, &self.info);
        if self.silent { Err(Stop::Gone) } else { Ok(()) }
    }
}

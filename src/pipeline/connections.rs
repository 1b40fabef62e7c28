//! What the copies of a pipeline have in common at the source: connections that read, and the question where its log
//! ends.
//!
//! Small tables cost more in connections and questions than in rows, so that they share them. **Invariant:** no more
//! than so many connections read at the same time, and an answer is only given to those who asked before the question
//! was put. Deliberately absent: which table is read.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use tokio::sync::{Mutex, Semaphore, SemaphorePermit};

use crate::{
    model::Position,
    snapshot::{Scan, SnapshotError},
    source::Source,
};

/// Connections that read chunks, of whatever table. One that has failed is not used again.
pub(super) struct Scans {
    source: Arc<dyn Source>,
    turns: Semaphore,
    idle: Mutex<Vec<Box<dyn Scan>>>,
}

/// A connection, until it is given back or dropped.
pub(super) struct Lent<'a> {
    pub(super) scan: Box<dyn Scan>,
    _turn: Option<SemaphorePermit<'a>>,
}

impl Scans {
    pub(super) fn new(source: &Arc<dyn Source>, parallel: usize) -> Self {
        Scans { source: Arc::clone(source), turns: Semaphore::new(parallel), idle: Mutex::default() }
    }

    /// A connection, once it is one's turn.
    pub(super) async fn lend(&self) -> Result<Lent<'_>, SnapshotError> {
        // The semaphore is never closed.
        let turn = self.turns.acquire().await.ok();
        let idle = self.idle.lock().await.pop();
        let scan = match idle {
            Some(scan) => scan,
            None => self.source.scan().await?,
        };
        Ok(Lent { scan, _turn: turn })
    }

    /// Takes a connection back that has done its work.
    pub(super) async fn give_back(&self, lent: Lent<'_>) {
        let Lent { scan, _turn } = lent;
        self.idle.lock().await.push(scan);
    }

    /// Ends the connections that nobody reads with: nothing is left to be copied.
    pub(super) async fn rest(&self) {
        self.idle.lock().await.clear();
    }
}

/// Asks where the source's log ends, once for all who have asked by then.
pub(super) struct Ends {
    source: Arc<dyn Source>,
    asked: AtomicU64,
    /// Up to which question the last answer counts.
    answered: Mutex<Option<(u64, Position)>>,
}

impl Ends {
    pub(super) fn new(source: &Arc<dyn Source>) -> Self {
        Ends { source: Arc::clone(source), asked: AtomicU64::new(0), answered: Mutex::default() }
    }

    /// Where the log ended at some time after this was asked.
    pub(super) async fn end(&self) -> Result<Position, SnapshotError> {
        let asked = self.asked.fetch_add(1, Ordering::AcqRel);
        let mut answered = self.answered.lock().await;
        if let Some((_, position)) = answered.as_ref().filter(|(upto, _)| *upto > asked) {
            return Ok(position.clone());
        }
        // Whoever has asked by now has read what it read before.
        let upto = self.asked.load(Ordering::Acquire);
        let position = self.source.end().await?;
        *answered = Some((upto, position.clone()));
        Ok(position)
    }
}

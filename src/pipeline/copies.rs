//! Which tables are copied now: several beside each other, because small ones wait for round trips more than for rows.
//!
//! What enters is the list of unfinished copies, read again whenever one has come to an end. A copy that meets an error
//! that passes rests for a while, and the others go on. Deliberately absent: how a table is copied (`copier`).

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use tokio::{sync::Mutex, task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    appender::Appender,
    connections::{Ends, Scans},
    copier::Copier,
};
use crate::{
    model::{Disposition, Problem},
    observe::{Backoff, Room, metric},
    snapshot::{READ_BYTES_MAX, SnapshotError, TableCopy},
};

/// How often the list of unfinished copies is read when none of them has come to an end.
const IDLE_EVERY: Duration = Duration::from_secs(1);
/// Tables that are copied beside each other.
const COPIES_MAX: usize = 8;

/// A table, and how its copy ended.
type Ended = (String, Result<bool, SnapshotError>);

/// What the copies share.
pub(super) struct Shared {
    /// For rows that have been read and are not in the log.
    pub(super) room: Room,
    pub(super) appender: Appender,
    pub(super) scans: Scans,
    pub(super) ends: Ends,
    /// Tables whose copies have met an error, and when they may go on.
    troubled: Mutex<HashMap<String, (Backoff, Instant)>>,
}

impl Copier {
    /// Copies what is unfinished, and whatever is asked for later, until `stop` or a halt.
    pub async fn run(self, stop: CancellationToken) {
        let shared = Shared {
            room: Room::new(READ_BYTES_MAX),
            appender: Appender::new(&self.log, &self.frontier, &self.halts),
            scans: Scans::new(&self.source, self.parallel),
            ends: Ends::new(&self.source),
            troubled: Mutex::default(),
        };
        let mut at_work = JoinSet::new();
        let copying = Arc::new(self).copy_all(Arc::new(shared), &mut at_work);
        tokio::select! { biased; () = stop.cancelled() => {}, () = copying => {} }
        at_work.shutdown().await;
    }

    /// Copies until a halt.
    async fn copy_all(self: Arc<Self>, shared: Arc<Shared>, at_work: &mut JoinSet<Ended>) {
        let (mut busy, mut resting) = (HashSet::new(), HashMap::new());
        loop {
            for copy in self.next_copies(&shared, &mut busy, &mut resting).await {
                let (this, shared) = (Arc::clone(&self), Arc::clone(&shared));
                at_work.spawn(async move {
                    let copied = this.copy(&copy, &shared).await;
                    (copy.table, copied)
                });
            }
            let ended = tokio::select! {
                biased;
                Some(ended) = at_work.join_next() => ended,
                () = tokio::time::sleep(IDLE_EVERY) => continue,
            };
            let (table, copied) = match ended {
                Ok(ended) => ended,
                Err(error) => {
                    let problem = Problem::new(format!("a copy has ended early: {error}"), "restart the worker");
                    return self.halts.halt("snapshot", problem);
                }
            };
            busy.remove(&table);
            match copied {
                Ok(true) => {}
                Ok(false) => drop(resting.insert(table, Instant::now() + IDLE_EVERY)),
                Err(error) => {
                    metrics::counter!(metric::SYNC_ERRORS, "stage" => "snapshot").increment(1);
                    match error.disposition() {
                        Disposition::Retry => self.troubled(&shared, table, &error).await,
                        Disposition::Halt | Disposition::DeadLetter => {
                            return self.halts.halt("snapshot", halt_of(error));
                        }
                    }
                }
            }
        }
    }

    /// The copies that are to be begun now, in their order; they are `busy` from here on. Those that wait for others
    /// rest for a while.
    async fn next_copies(
        &self,
        shared: &Shared,
        busy: &mut HashSet<String>,
        resting: &mut HashMap<String, Instant>,
    ) -> Vec<TableCopy> {
        if busy.len() >= COPIES_MAX {
            return Vec::new();
        }
        let unfinished = match self.progress.unfinished().await {
            Ok(unfinished) => unfinished,
            Err(error) => {
                metrics::counter!(metric::SYNC_ERRORS, "stage" => "snapshot").increment(1);
                self.halts.trouble("snapshot", &error.to_string());
                return Vec::new();
            }
        };
        let now = Instant::now();
        let mut troubled = shared.troubled.lock().await;
        troubled.retain(|table, _| unfinished.iter().any(|copy| copy.table == *table));
        resting.retain(|_, until| *until > now);
        if unfinished.iter().all(|copy| resting.contains_key(&copy.table)) && troubled.is_empty() {
            self.halts.well("snapshot");
            shared.scans.rest().await;
            self.progress.rest().await;
        }
        let may_begin = |copy: &TableCopy| {
            !busy.contains(&copy.table)
                && !resting.contains_key(&copy.table)
                && troubled.get(&copy.table).is_none_or(|(_, until)| *until <= now)
                && !self.has_parents_ahead(copy, &unfinished, resting)
        };
        let next = unfinished.iter().filter(|copy| may_begin(copy)).take(COPIES_MAX - busy.len());
        let next: Vec<TableCopy> = next.cloned().collect();
        busy.extend(next.iter().map(|copy| copy.table.clone()));
        next
    }

    /// Whether a table that this one refers to is to be copied before it. One that rests has been read, and may wait
    /// for this one; in a ring somebody has to be first.
    fn has_parents_ahead(
        &self,
        copy: &TableCopy,
        unfinished: &[TableCopy],
        resting: &HashMap<String, Instant>,
    ) -> bool {
        let Some(parents) = self.parents.get(&copy.table) else { return false };
        let ahead = unfinished.iter().take_while(|other| other.table != copy.table);
        ahead.filter(|other| !resting.contains_key(&other.table)).any(|other| parents.contains(&other.table))
    }

    /// A copy has met an error that passes: the others go on.
    async fn troubled(&self, shared: &Shared, table: String, error: &SnapshotError) {
        self.halts.trouble("snapshot", &error.to_string());
        let mut troubled = shared.troubled.lock().await;
        let (backoff, until) = troubled.entry(table).or_insert_with(|| (Backoff::default(), Instant::now()));
        *until = Instant::now() + backoff.next(&*self.environment, Duration::ZERO);
    }

    /// A copy reads again.
    pub(super) async fn well(&self, shared: &Shared, table: &str) {
        let mut troubled = shared.troubled.lock().await;
        troubled.remove(table);
        if troubled.is_empty() {
            self.halts.well("snapshot");
        }
    }
}

fn halt_of(error: SnapshotError) -> Problem {
    match error {
        SnapshotError::Halt(problem) => problem,
        SnapshotError::Source(_) | SnapshotError::Target(_) | SnapshotError::Log(_) => {
            Problem::new(error.to_string(), "restart the worker when that is done")
        }
    }
}

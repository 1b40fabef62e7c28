//! The apply loops: the log, made durable in the target.
//!
//! A *reader* per partition and topic turns records into batches ahead of the sinks. The changes
//! topic has one sink per partition, which stores the offset in the transaction of the rows. The snapshot
//! topic has several: its rows carry their versions, so chunks may land in any order, and a *collector* moves the
//! stored offset along the contiguous prefix of what is durable.
//!
//! **Invariant:** a stored offset never passes a record that is not durable in the target.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::{
    sync::{Mutex, mpsc},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::batches::{Batcher, Bounds, Step};
use crate::{
    log::{Log, LogError, Offset, Topic, record::ChunkEnd},
    model::{Disposition, Problem, TableSchema},
    observe::{Backoff, Environment, Frontier, Halts, Invariant, Room, Taken, metric},
    target::{Applied, ApplyError, Batch, BatchEvent, Counts, Lane, Resume, Sink, Target},
};

/// Batches prepared ahead of a sink.
const BATCHES_AHEAD_MAX: usize = 1;
/// Bytes read from the log at once.
const READ_BYTES_MAX: usize = 2 << 20;
/// How long a read waits for the first record.
const READ_WAIT: Duration = Duration::from_millis(500);
/// How often rows that wait for others are tried again, if nothing frees them, and how often where that brings nothing.
const WAITING_EVERY: Duration = Duration::from_secs(1);
const WAITING_EVERY_MAX: Duration = Duration::from_secs(4);

/// When waiting rows are tried again: at once where a parent has come and that brings rows in, else by the clock.
struct Turns {
    last: Instant,
    pause: Duration,
    /// A parent has come since.
    freed: bool,
    /// The last turn brought nothing in: what frees rows may come again and again and not be all that they need.
    fruitless: bool,
}

impl Turns {
    fn new() -> Self {
        Turns { last: Instant::now(), pause: WAITING_EVERY, freed: false, fruitless: false }
    }

    fn is_due(&self) -> bool {
        let pause = match (self.freed, self.fruitless) {
            (true, false) => Duration::ZERO,
            (true, true) => WAITING_EVERY,
            (false, _) => self.pause,
        };
        self.last.elapsed() >= pause
    }

    /// Rows were tried, with this result.
    fn took(&mut self, tried: &Applied) {
        self.fruitless = tried.tables.values().all(|counts| *counts == Counts::default());
        self.pause = match self.fruitless && tried.waiting > 0 {
            true => (2 * self.pause).min(WAITING_EVERY_MAX),
            false => WAITING_EVERY,
        };
        (self.last, self.freed) = (Instant::now(), false);
    }
}

/// Copied rows in a batch while there are changes: a batch of changes waits for the lane's lock until those at work are
/// written.
const ROWS_BESIDE_CHANGES_MAX: usize = 500;

/// The bytes of what a step applies; none if it applies no row.
fn bytes_of(step: &Step) -> Option<usize> {
    match step {
        Step::Apply(batch) => Some(batch.bytes()).filter(|bytes| *bytes > 0),
        Step::Abandon => None,
    }
}

/// Whether the log still has what the target goes on with. One that starts later has a gap; one that ends earlier lost
/// its tail, and must not be written to: other records would come to stand where the target has been (rule 17).
pub async fn reaches(log: &dyn Log, topic: Topic, partition: u32, from: Offset) -> Result<(), LogError> {
    let (start, end) = log.bounds(topic, partition).await?;
    let topic = topic.suffix();
    if start > from {
        return Err(LogError::Trimmed { topic, partition, wanted: from, start });
    }
    if end < from {
        let reason = format!("the target is at offset {from}, but the log ends at {end}: its tail is lost");
        return Err(LogError::Corrupt { topic, partition, offset: end, reason });
    }
    Ok(())
}

/// One partition of one topic.
#[derive(Clone)]
pub struct ApplyLoop {
    pub target: Arc<dyn Target>,
    pub log: Arc<dyn Log>,
    pub frontier: Arc<Frontier>,
    pub halts: Arc<Halts>,
    pub environment: Arc<dyn Environment>,
    pub topic: Topic,
    pub partition: u32,
    pub bounds: Bounds,
    /// For the batches of all lanes.
    pub room: Room,
    /// Sinks at work at the same time; 1 on the changes topic.
    pub sinks: usize,
}

impl std::fmt::Debug for ApplyLoop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApplyLoop")
            .field("topic", &self.topic)
            .field("partition", &self.partition)
            .finish_non_exhaustive()
    }
}

#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error(transparent)]
    Apply(#[from] ApplyError),
    #[error(transparent)]
    Log(#[from] LogError),
}

impl SessionError {
    fn disposition(&self) -> Disposition {
        match self {
            SessionError::Apply(error) => error.disposition(),
            SessionError::Log(error) => error.disposition(),
        }
    }
}

/// What a loop is called where its troubles are told.
pub fn part(topic: Topic, partition: u32, partitions: u32) -> String {
    let part = match topic {
        Topic::Changes => "apply",
        Topic::Snapshot => "apply snapshot",
    };
    if partitions == 1 { part.to_owned() } else { format!("{part} {partition}") }
}

/// How a loop ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    Stopped,
    Halted,
    /// The partition is another worker's.
    Fenced,
}

/// A batch with its place in the order of the log, and its room.
type Numbered = (u64, Step, Option<Taken>);

impl ApplyLoop {
    /// Applies until `stop`, or until something halts it. `stop` lets the batch at work finish.
    pub async fn run(self, stop: CancellationToken) {
        let (halts, part) = (Arc::clone(&self.halts), self.part());
        if let (Ended::Fenced, Some(error)) = self.serve(&stop).await {
            halts.halt(&part, halt_of(error));
        }
    }

    /// As [`Self::run`], where other workers may take the partition over: that is no reason to halt then.
    pub async fn share(self, stop: CancellationToken) -> Ended {
        self.serve(&stop).await.0
    }

    fn part(&self) -> String {
        part(self.topic, self.partition, self.log.partitions())
    }

    /// Applies until the end; with the error of a loop that was fenced.
    async fn serve(self, stop: &CancellationToken) -> (Ended, Option<SessionError>) {
        let part = self.part();
        let mut backoff = Backoff::default();
        while !stop.is_cancelled() {
            let started = Instant::now();
            let Err(error) = self.session(&part, stop).await else { return (Ended::Stopped, None) };
            metrics::counter!(metric::SYNC_ERRORS, "stage" => "apply").increment(1);
            if matches!(error, SessionError::Apply(ApplyError::Fenced { .. })) {
                return (Ended::Fenced, Some(error));
            }
            match error.disposition() {
                Disposition::Retry => self.halts.trouble(&part, &error.to_string()),
                Disposition::Halt | Disposition::DeadLetter => {
                    self.halts.halt(&part, halt_of(error));
                    return (Ended::Halted, None);
                }
            }
            let pause = backoff.next(&*self.environment, started.elapsed());
            tokio::select! { biased; () = stop.cancelled() => {}, () = tokio::time::sleep(pause) => {} }
        }
        (Ended::Stopped, None)
    }

    /// Reads from the stored offset and applies until `stop` or an error.
    async fn session(&self, part: &str, stop: &CancellationToken) -> Result<(), SessionError> {
        let resume = self.target.resume(Lane::Live(self.topic), self.partition, self.log.epoch()).await?;
        reaches(&*self.log, self.topic, self.partition, resume.from).await?;
        match self.topic {
            Topic::Changes => self.frontier.applied_changes(self.partition, resume.from, None, None),
            Topic::Snapshot => self.frontier.applied_snapshot(self.partition, resume.from),
        }
        // The log forgets what it was told before a restart; retention waits until it is told again.
        self.log.applied(self.topic, self.partition, resume.from).await?;
        let mut sinks = Vec::new();
        for _ in 0..self.sinks {
            sinks.push(self.target.open(Lane::Live(self.topic), self.partition).await?);
        }
        self.halts.well(part);

        // An error of any of them ends the others: a batch that failed must not be overtaken for long.
        let session = stop.child_token();
        let (steps, incoming) = mpsc::channel::<Numbered>(BATCHES_AHEAD_MAX);
        let (done, finished) = mpsc::channel(2 * self.sinks);
        let incoming = Arc::new(Mutex::new(incoming));
        let mut writers = tokio::task::JoinSet::new();
        for sink in sinks {
            let (this, incoming, done) = (self.clone(), Arc::clone(&incoming), done.clone());
            let session = session.clone();
            writers.spawn(async move {
                let written = this.write(sink, incoming, done).await;
                if written.is_err() {
                    session.cancel();
                }
                written
            });
        }
        drop((done, incoming));
        let reading = self.read(resume, steps, &session);
        let collecting = self.collect(finished);
        let (read, collected) = tokio::join!(reading, collecting);
        let mut written = Ok(());
        while let Some(ended) = writers.join_next().await {
            let ended = ended.unwrap_or_else(|panic| Err(LogError::Other(panic.to_string()).into()));
            written = written.and(ended);
        }
        written.and(collected).and(read)
    }

    /// Reads the log and prepares batches.
    async fn read(
        &self,
        resume: Resume,
        steps: mpsc::Sender<Numbered>,
        stop: &CancellationToken,
    ) -> Result<(), SessionError> {
        let Resume { from, schemas, fences: _ } = resume;
        let mut batcher = Batcher::new(self.topic, self.partition, self.log.epoch(), from, schemas, self.bounds);
        let (mut next, mut number, mut goes_on) = (from, 0, false);
        // Others wait for the locks of a transaction that is open at the target: what goes on with it does not wait for
        // their room, only for what this lane has of it already.
        let own = Room::new((1 + BATCHES_AHEAD_MAX) * self.bounds.bytes_max);
        loop {
            let reading = async {
                own.wait(1).await;
                self.log.read(self.topic, self.partition, next, READ_BYTES_MAX, READ_WAIT).await
            };
            let records = tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                () = steps.closed() => return Ok(()),
                records = reading => records?,
            };
            next = records.last().map_or(next, |last| last.offset + 1);
            let bytes: usize = records.iter().map(|stored| stored.record.value.len()).sum();
            if self.topic == Topic::Snapshot {
                let rows_max = if self.frontier.is_live() { ROWS_BESIDE_CHANGES_MAX } else { usize::MAX };
                batcher.bound(Bounds { rows_max: self.bounds.rows_max.min(rows_max), ..self.bounds });
            }
            // A short or empty read is the end of the log for now: what there is goes out at once.
            for step in batcher.take(records, bytes < READ_BYTES_MAX / 2)? {
                let room = if goes_on { &own } else { &self.room };
                let bytes = bytes_of(&step);
                goes_on = matches!(&step, Step::Apply(batch) if !batch.complete);
                let taken = async {
                    match bytes {
                        Some(bytes) => Some(room.take(bytes).await),
                        None => None,
                    }
                };
                let taken = tokio::select! {
                    biased;
                    () = stop.cancelled() => return Ok(()),
                    () = steps.closed() => return Ok(()),
                    taken = taken => taken,
                };
                if steps.send((number, step, taken)).await.is_err() {
                    return Ok(());
                }
                number += 1;
            }
        }
    }

    /// Applies the steps that come, until there are no more.
    async fn write(
        self,
        mut sink: Box<dyn Sink>,
        steps: Arc<Mutex<mpsc::Receiver<Numbered>>>,
        done: mpsc::Sender<(u64, Offset, Vec<ChunkEnd>)>,
    ) -> Result<(), SessionError> {
        let retries = self.topic == Topic::Changes;
        let (mut turns, mut reached) = (Turns::new(), None);
        loop {
            // Heartbeats keep batches coming on an idle source too: waiting rows have their turn between them.
            if retries && turns.is_due() {
                let tried = sink.retry_waiting().await?;
                turns.took(&tried);
                self.count(&tried);
            }
            let next = async { steps.lock().await.recv().await };
            let step = match tokio::time::timeout(WAITING_EVERY, next).await {
                Ok(Some(step)) => step,
                Ok(None) => return Ok(()),
                Err(_) => continue,
            };
            let (number, batch, taken) = match step {
                (number, Step::Apply(batch), taken) => (number, batch, taken),
                (_, Step::Abandon, _) => {
                    sink.abandon().await?;
                    continue;
                }
            };
            let (from, complete, to, chunks) = (batch.from, batch.complete, batch.to, batch.chunks.clone());
            if self.topic == Topic::Changes {
                let before = reached.replace(to);
                Invariant::BatchesAreContiguous.hold(before.is_none_or(|before| before == from), || {
                    format!("partition {}: from {from} after {before:?}", self.partition)
                });
            }
            let (clock, newest_us) = (batch.control.as_ref().map(|control| control.clock), batch.newest_commit_us);
            let (commits, changes) = self.changes_of(&batch);
            if !commits.is_empty() {
                self.frontier.changes_come();
            }
            let started = Instant::now();
            let applied = sink.apply(*batch).await?;
            drop(taken);
            metrics::histogram!(metric::APPLY_BATCH_SECONDS).record(started.elapsed().as_secs_f64());
            self.count(&applied);
            turns.freed |= applied.freed > 0;
            for (table, count) in changes {
                self.frontier.count_changes(&table.table.table, count);
            }
            if self.topic == Topic::Changes && complete {
                let now = self.environment.now_us();
                let end_to_end = metrics::histogram!(metric::END_TO_END_SECONDS);
                for commit_us in commits {
                    end_to_end.record((now - commit_us).max(0) as f64 / 1e6);
                }
                self.frontier.applied_changes(self.partition, to, clock, newest_us);
                self.log.applied(self.topic, self.partition, to).await?;
            }
            if self.topic == Topic::Snapshot && done.send((number, to, chunks)).await.is_err() {
                return Ok(());
            }
        }
    }

    /// The commit time of every change in the batch, and how many there are by table.
    fn changes_of(&self, batch: &Batch) -> (Vec<i64>, Vec<(Arc<TableSchema>, u64)>) {
        let (mut commits, mut tables): (Vec<i64>, Vec<(Arc<TableSchema>, u64)>) = Default::default();
        if self.topic == Topic::Snapshot {
            return (commits, tables);
        }
        for event in &batch.events {
            let BatchEvent::Row(row) = event else { continue };
            commits.push(row.commit_us);
            match tables.iter_mut().find(|(schema, _)| Arc::ptr_eq(schema, &row.schema)) {
                Some((_, count)) => *count += 1,
                None => tables.push((Arc::clone(&row.schema), 1)),
            }
        }
        (commits, tables)
    }

    /// Moves the snapshot topic's offset along what is durable without a gap.
    async fn collect(&self, mut finished: mpsc::Receiver<(u64, Offset, Vec<ChunkEnd>)>) -> Result<(), SessionError> {
        let (mut next, mut stored) = (0, 0);
        let mut early: BTreeMap<u64, (Offset, Vec<ChunkEnd>)> = BTreeMap::new();
        while let Some((number, to, chunks)) = finished.recv().await {
            early.insert(number, (to, chunks));
            let mut reached = None;
            while let Some((to, mut chunks)) = early.remove(&next) {
                let (_, ended) = reached.unwrap_or((0, Vec::new()));
                chunks.splice(0..0, ended);
                reached = Some((to, chunks));
                next += 1;
            }
            if let Some((to, chunks)) = reached {
                Invariant::SnapshotOffsetGrows.hold(to >= stored, || format!("{to} after {stored}"));
                stored = to;
                self.target.advance(self.partition, self.log.epoch(), to, &chunks).await?;
                for chunk in &chunks {
                    metrics::counter!(metric::SNAPSHOT_ROWS, "table" => chunk.table.clone()).increment(chunk.rows);
                }
                self.frontier.applied_snapshot(self.partition, to);
                self.log.applied(self.topic, self.partition, to).await?;
            }
        }
        Ok(())
    }

    fn count(&self, applied: &Applied) {
        for (table, counts) in &applied.tables {
            for (op, rows) in [("insert", counts.inserted), ("update", counts.updated), ("delete", counts.deleted)] {
                if rows > 0 {
                    metrics::counter!(metric::CHANGES_APPLIED, "table" => table.clone(), "op" => op).increment(rows);
                }
            }
        }
        if applied.dead_letters > 0 {
            metrics::counter!(metric::DEAD_LETTERS).increment(applied.dead_letters);
        }
    }
}

fn halt_of(error: SessionError) -> Problem {
    match error {
        SessionError::Apply(ApplyError::Halt(problem)) => problem,
        SessionError::Apply(error) => {
            Problem::new(error.to_string(), "make sure that one worker runs, then restart it")
        }
        SessionError::Log(error) => Problem::new(error.to_string(), "restart the worker when that is done"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tried(inserted: u64, waiting: u64) -> Applied {
        let counts = Counts { inserted, ..Counts::default() };
        Applied { tables: BTreeMap::from([("t".to_owned(), counts)]), waiting, ..Applied::default() }
    }

    /// How many turns there are in so many seconds, ten batches a second.
    async fn turns_in(turns: &mut Turns, seconds: u32, freed: bool, result: &Applied) -> u32 {
        let mut count = 0;
        for _ in 0..seconds * 10 {
            turns.freed |= freed;
            if turns.is_due() {
                turns.took(result);
                count += 1;
            }
            tokio::time::advance(Duration::from_millis(100)).await;
        }
        count
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_rows_are_tried_at_once_while_that_helps_and_else_by_the_clock() {
        let mut turns = Turns::new();
        assert_eq!(turns_in(&mut turns, 2, true, &tried(1, 5)).await, 20, "parents bring rows in");
        let fruitless = turns_in(&mut turns, 10, true, &tried(0, 5)).await;
        assert!((9..=12).contains(&fruitless), "parents that bring nothing in cost a turn a second: {fruitless}");
        let idle = turns_in(&mut turns, 40, false, &tried(0, 5)).await;
        assert!((9..=13).contains(&idle), "rows that nothing frees are tried every few seconds: {idle}");
        let helps = turns_in(&mut turns, 10, false, &tried(1, 5)).await;
        assert!((7..=11).contains(&helps), "and every second where they come in: {helps}");
    }
}

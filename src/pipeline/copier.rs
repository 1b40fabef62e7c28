//! The copier: walks the unfinished copies, several chunks at a time.
//!
//! ```text
//! bounds ──► chunk queue ──► readers (each: source connection → encoder) ──► snapshot topic
//! ```
//!
//! It holds back while too many copied rows wait in the log, and slows down to a minimum share while
//! the stream's lag is above its limit, so that neither starves the other (rule 26). Several tables are copied beside
//! each other, because small ones wait for round trips more than for rows; they share the connections that read.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use tokio::sync::{Mutex, mpsc};

use super::{appender::Written, connections::Lent, copies::Shared};
use crate::{
    log::{Control, Log, Record, Topic, envelope::Encoder, record::ChunkEnd},
    model::{DebeziumConnector, Position, Problem, TableSchema, Version},
    observe::{Environment, Frontier, Halts, Invariant, Taken},
    snapshot::{Block, Blocks, Chunk, Estimate, KeyRange, Progress, Scan, SnapshotError, TableCopy},
    source::Source,
    target::Target,
};

/// About how many bytes a chunk has at most: what is read again after a kill, and how long the source keeps a snapshot.
const CHUNK_BYTES_MAX: u64 = 64 << 20;
/// How often a chunk is read even while the stream lags.
const MINIMUM_SHARE_EVERY: Duration = Duration::from_secs(2);
const POLL_EVERY: Duration = Duration::from_millis(20);

/// Copies tables until it is stopped.
pub struct Copier {
    pub source: Arc<dyn Source>,
    pub progress: Arc<dyn Progress>,
    pub target: Arc<dyn Target>,
    pub log: Arc<dyn Log>,
    pub frontier: Arc<Frontier>,
    pub halts: Arc<Halts>,
    pub environment: Arc<dyn Environment>,
    pub pipeline: String,
    pub connector: DebeziumConnector,
    pub chunk_rows: u64,
    pub parallel: usize,
    pub lag_max_seconds: f64,
    /// By table, those that its rows refer to at the target.
    pub parents: BTreeMap<String, BTreeSet<String>>,
}

impl std::fmt::Debug for Copier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Copier").field("pipeline", &self.pipeline).finish_non_exhaustive()
    }
}

/// The chunks of a copy, handed out one by one; new ones are found as they are asked for.
struct Queue {
    known: VecDeque<Chunk>,
    /// Where chunks begin that are known, done ones too.
    lowers: HashSet<Option<String>>,
    next_number: i64,
    lower: Option<String>,
    bounds_done: bool,
    /// By the source's own statistics, until chunks have been read.
    estimate: Estimate,
    /// Rows and bytes of the chunks that were read.
    read: (u64, u64),
}

impl Queue {
    /// Whether there is nothing to be handed out.
    fn is_empty(&self) -> bool {
        self.bounds_done && self.known.is_empty()
    }

    /// Rows of the next chunk: no more than this, and fewer where they are wide.
    fn rows(&self, rows_max: u64) -> u64 {
        let (rows, bytes) = self.read;
        let row_bytes = bytes.checked_div(rows).unwrap_or_default().max(self.estimate.row_bytes).max(1);
        (CHUNK_BYTES_MAX / row_bytes).clamp(1, rows_max)
    }
}

/// What a reader works with besides its connection.
#[derive(Clone, Copy)]
struct Work<'a> {
    copy: &'a TableCopy,
    floor: Version,
    schema: &'a Arc<TableSchema>,
    schema_id: u64,
    queue: &'a Mutex<Queue>,
    seen: &'a Mutex<Vec<Position>>,
    shared: &'a Shared,
}

impl Copier {
    /// Makes a copy; false if it has to wait for others before it is finished.
    pub(super) async fn copy(&self, copy: &TableCopy, shared: &Shared) -> Result<bool, SnapshotError> {
        let captured = self.captured(copy.not_before).await;
        // The rows of a further copy are newer than everything before it, and what is older after it the copy has not
        // met. On a source where nothing happens, the clock has to move for that all the same.
        let begins = if copy.generation > 1 { captured.saturating_add(1) } else { captured };
        let began = self.progress.began(copy, begins).await?;
        let queue = self.queue(copy).await?;
        let seen = Mutex::new(self.progress.seen(copy).await?);
        let floor = if copy.generation > 1 { began.max(copy.not_before) } else { copy.not_before };
        if !queue.bounds_done || !queue.known.is_empty() {
            self.captured(floor).await;
            self.read(copy, floor, queue, &seen, shared).await?;
        }
        if !self.barrier(&seen.into_inner(), shared).await? {
            tracing::warn!(
                table = %copy.table,
                "the source has failed over and lost transactions that the copy has seen; the table is copied again"
            );
            self.progress.again(copy).await?;
            return Ok(true);
        }
        // A first copy finds no rows of an earlier one.
        if copy.generation > 1 && !self.target.sweep(&copy.table, floor).await? {
            tracing::info!(table = %copy.table, "rows that the source no longer has are still referred to by other tables");
            return Ok(false);
        }
        if self.progress.finish(copy).await? {
            tracing::info!(table = %copy.table, "copied");
        }
        Ok(true)
    }

    /// Reads what is left to be read of a copy into the log.
    async fn read(
        &self,
        copy: &TableCopy,
        floor: Version,
        mut queue: Queue,
        seen: &Mutex<Vec<Position>>,
        shared: &Shared,
    ) -> Result<(), SnapshotError> {
        let schema = self.source.schema(&copy.table).await?;
        let mut first = shared.scans.lend().await?;
        queue.estimate = first.scan.estimate(&schema).await?;
        self.progress.schema(copy, &schema, queue.estimate.rows).await?;
        self.announce(&schema).await?;
        tracing::info!(table = %copy.table, rows = queue.estimate.rows, chunks_left = queue.known.len(), "copying");
        let queue = Mutex::new(queue);
        let work = Work { copy, floor, schema: &schema, schema_id: schema.id(), queue: &queue, seen, shared };
        self.well(shared, &copy.table).await;
        // A table of one chunk is read by the first; there may be more than that.
        let others = std::iter::repeat_with(|| None).take(self.parallel.saturating_sub(1));
        let readers = std::iter::once(Some(first)).chain(others).map(|lent| self.reader(lent, work));
        futures::future::try_join_all(readers).await?;
        Ok(())
    }

    /// Waits until capture has a position, of this version at least: a chunk needs one to be labelled with. The
    /// watermark there.
    async fn captured(&self, not_before: Version) -> Version {
        self.frontier.want_clock(not_before);
        self.frontier.captured_when(|captured| captured.watermark() >= not_before).await.watermark()
    }

    /// Writes the schema that the rows will refer to into every partition of the snapshot topic.
    async fn announce(&self, schema: &TableSchema) -> Result<(), SnapshotError> {
        let record = Record::schema(schema);
        let records = (0..self.log.partitions()).map(|partition| (partition, record.clone())).collect();
        Ok(self.log.append(Topic::Snapshot, records).await?)
    }

    async fn queue(&self, copy: &TableCopy) -> Result<Queue, SnapshotError> {
        let chunks = self.progress.chunks(copy).await?;
        let last = chunks.iter().max_by_key(|chunk| chunk.number);
        Ok(Queue {
            next_number: last.map_or(0, |chunk| chunk.number + 1),
            lower: last.and_then(|chunk| chunk.range.upper.clone()),
            bounds_done: copy.bounds_done,
            estimate: Estimate::default(),
            read: (0, 0),
            lowers: chunks.iter().map(|chunk| chunk.range.lower.clone()).collect(),
            known: chunks.into_iter().filter(|chunk| !chunk.done).collect(),
        })
    }

    /// Reads chunks of one table until none are left, over connections that other tables have as well.
    async fn reader<'s>(&self, mut lent: Option<Lent<'s>>, work: Work<'s>) -> Result<(), SnapshotError> {
        let Work { queue, shared, .. } = work;
        let mut encoder = Encoder::new(&self.pipeline, self.connector);
        loop {
            let mut reads_with = match lent.take() {
                Some(lent) => lent,
                None if queue.lock().await.is_empty() => return Ok(()),
                None => shared.scans.lend().await?,
            };
            let read = self.read_chunk(&mut *reads_with.scan, &mut encoder, work).await?;
            shared.scans.give_back(reads_with).await;
            if !read {
                return Ok(());
            }
        }
    }

    /// Reads the next chunk; false if none is left.
    async fn read_chunk(
        &self,
        scan: &mut dyn Scan,
        encoder: &mut Encoder,
        work: Work<'_>,
    ) -> Result<bool, SnapshotError> {
        let Work { copy, floor, schema, queue, shared, .. } = work;
        let mut captured = self.frontier.watch_captured();
        self.hold_back(shared).await?;
        let chunk = self.next_chunk(scan, copy, schema, &mut *queue.lock().await).await?;
        let Some(chunk) = chunk else { return Ok(false) };
        let labelled = captured.borrow().as_ref().map(|captured| captured.position.clone());
        let (blocks, incoming) = Blocks::new(&shared.room);
        let reading = scan.read(schema, &chunk.range, floor, &mut captured, blocks);
        let writing = self.write(encoder, work, chunk.number, incoming, labelled.as_ref());
        let (read, written) = tokio::join!(reading, writing);
        let (written, rest) = (written?, read?);
        {
            let mut queue = queue.lock().await;
            queue.read.0 += written.rows;
            queue.read.1 += written.bytes as u64;
            if let Some(rest) = rest {
                self.add_rest(copy, rest, &mut queue).await?;
            }
        }
        self.end_chunk(work, chunk.number, written).await?;
        Ok(true)
    }

    /// The next chunk to read; found and stored first, if no known one is left.
    async fn next_chunk(
        &self,
        scan: &mut dyn Scan,
        copy: &TableCopy,
        schema: &TableSchema,
        queue: &mut Queue,
    ) -> Result<Option<Chunk>, SnapshotError> {
        if let Some(chunk) = queue.known.pop_front() {
            return Ok(Some(chunk));
        }
        if queue.bounds_done {
            return Ok(None);
        }
        let rows = queue.rows(self.chunk_rows);
        let upper = scan.next_bound(schema, queue.lower.as_deref(), rows).await?;
        let last = upper.is_none();
        let chunk = Chunk {
            number: queue.next_number,
            range: KeyRange { lower: queue.lower.clone(), upper: upper.clone() },
            done: false,
        };
        self.progress.add_chunk(copy, &chunk, last).await?;
        queue.lowers.insert(chunk.range.lower.clone());
        queue.next_number += 1;
        queue.lower = upper;
        queue.bounds_done = last;
        Ok(Some(chunk))
    }

    /// Stores what a read has left of its chunk as a chunk of its own, before that read counts: a restart finds it. One
    /// that was stored by an earlier run, which then did not get to the end of its read, is not stored again. Its upper
    /// bound is where the next new chunk begins, which a restart learns from the last chunk.
    async fn add_rest(&self, copy: &TableCopy, rest: String, queue: &mut Queue) -> Result<(), SnapshotError> {
        let lower = Some(rest);
        if !queue.lowers.insert(lower.clone()) {
            return Ok(());
        }
        let range = KeyRange { lower, upper: queue.lower.clone() };
        let chunk = Chunk { number: queue.next_number, range, done: false };
        self.progress.add_chunk(copy, &chunk, queue.bounds_done).await?;
        queue.next_number += 1;
        queue.known.push_back(chunk);
        Ok(())
    }

    /// Notes how far the source's log may be behind what has just been read.
    async fn saw(
        &self,
        copy: &TableCopy,
        labelled: Option<&Position>,
        (seen, shared): (&Mutex<Vec<Position>>, &Shared),
    ) -> Result<(), SnapshotError> {
        let end = shared.ends.end().await?;
        if labelled.is_some_and(|labelled| !labelled.same_server(&end)) {
            return Err(SnapshotError::Source("it has failed over while a chunk was read".into()));
        }
        let mut seen = seen.lock().await;
        match seen.iter_mut().find(|known| known.same_server(&end)) {
            Some(known) if known.covers(&end) => return Ok(()),
            Some(known) => *known = end,
            None => seen.push(end),
        }
        self.progress.saw(copy, &seen).await
    }

    fn judge_watermark(&self, copy: &TableCopy, version: Version) {
        let captured = self.frontier.watch_captured().borrow().as_ref().map(|captured| captured.clock);
        let holds = version >= copy.not_before && captured.is_none_or(|captured| version <= captured);
        Invariant::WatermarkIsCaptured.hold(holds, || {
            format!("{version} of {}, captured {captured:?}, not before {}", copy.table, copy.not_before)
        });
    }

    /// Encodes and appends the rows of one chunk, but for the last records.
    async fn write(
        &self,
        encoder: &mut Encoder,
        work: Work<'_>,
        chunk: i64,
        mut blocks: mpsc::Receiver<(Block, Taken)>,
        labelled: Option<&Position>,
    ) -> Result<Written, SnapshotError> {
        let Work { copy, schema, schema_id, seen, shared, .. } = work;
        let partitions = self.log.partitions();
        let mut written = Written::default();
        let mut next = blocks.recv().await;
        // A chunk that has no rows has seen that, too.
        self.saw(copy, labelled, (seen, shared)).await?;
        while let Some((block, taken)) = next {
            self.judge_watermark(copy, block.version);
            let at_us = self.environment.now_us();
            for row in block.rows {
                let as_of = (block.version, at_us);
                written.encode(encoder, (schema, schema_id), row, as_of, partitions).map_err(|error| {
                    SnapshotError::Halt(Problem::new(
                        format!("chunk {chunk} of {} cannot be encoded: {error}", copy.table),
                        "this is a defect of cutover: report it with this message",
                    ))
                })?;
                if written.is_due() {
                    shared.appender.append(&mut written).await?;
                }
            }
            drop(taken);
            next = blocks.recv().await;
        }
        Ok(written)
    }

    /// Appends the chunk's last rows and the record that says that it is complete.
    async fn end_chunk(&self, work: Work<'_>, chunk: i64, mut written: Written) -> Result<(), SnapshotError> {
        let Work { copy, shared, .. } = work;
        for partition in 0..self.log.partitions() {
            // Counted once, however many partitions there are.
            let rows = if partition == 0 { written.rows } else { 0 };
            let end = ChunkEnd { table: copy.table.clone(), generation: copy.generation, chunk, rows };
            let control = Control { position: None, clock: 0, chunk: Some(end) };
            written.records.push((partition, Record::control(&control, 0)));
        }
        shared.appender.append(&mut written).await
    }

    /// Waits while enough copied rows are on their way, or while the stream lags.
    async fn hold_back(&self, shared: &Shared) -> Result<(), SnapshotError> {
        let backlog_max = self.chunk_rows * (self.parallel as u64 + 1);
        while self.backlog().await? > backlog_max {
            tokio::time::sleep(POLL_EVERY).await;
        }
        shared.appender.near().await;
        let started = tokio::time::Instant::now();
        while started.elapsed() < MINIMUM_SHARE_EVERY
            && self.frontier.lag_seconds(self.environment.now_us()).is_some_and(|lag| lag > self.lag_max_seconds)
        {
            tokio::time::sleep(POLL_EVERY).await;
        }
        Ok(())
    }

    /// Records of the snapshot topic that are not in the target yet.
    async fn backlog(&self) -> Result<u64, SnapshotError> {
        let mut backlog = 0;
        for partition in 0..self.log.partitions() {
            let (_, end) = self.log.bounds(Topic::Snapshot, partition).await?;
            backlog += end.saturating_sub(self.frontier.snapshot_offset(partition));
        }
        Ok(backlog)
    }
}

//! The source's side of a walk: a task that reads a table chunk by chunk, beside who compares.
//!
//! What enters is a table, what leaves is [`Step`]s: the rows of its chunks, and between them questions whether the
//! target still has what it had when a chunk was compared before. A chunk whose rows are the same on both sides as they
//! were then is not read: its digest is made by each server, at the same time. **Invariants**: no read is open while
//! what it has brought is compared or doubts are settled, and a chunk's digest is of the very rows that were read.
//! Reads are short: a source that takes long for one, or whose rows are heavier than was thought, is asked for less the
//! next time.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
    time::Instant,
};

use super::{Verifier, VerifyError, captured, walk::Encoding};
use crate::{
    model::{TableSchema, Version},
    observe::{Captured, Room, Taken},
    snapshot::{Block, Blocks, Digest, KeyRange, READ_BYTES_MAX, Scan, SnapshotError},
    source::Source,
    state::{
        Store,
        migration_log::{ChunkState, ComparedChunk},
    },
    target::{RowEvent, Stretch},
};

/// Bytes of records that are compared at once.
const PART_BYTES_MAX: usize = 8 << 20;
/// Steps between the reader and the comparer.
const STEPS_WAITING_MAX: usize = 1;
/// A read that takes longer is made shorter the next time; none may be open for two seconds.
const READ_LONG: Duration = Duration::from_millis(1000);
const CHUNK_ROWS_MIN: u64 = 200;
/// Rows that are copied may have other texts at the target all the same (`numeric(10,4)` shows more zeros).
const OTHERS_MAX: u32 = 5;

/// What a reader makes of chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Chunks {
    /// It reads them.
    Read,
    /// It reads them, and says what they were.
    Digested,
    /// The same, and it asks for those that were compared before.
    Known,
}

/// A chunk that was found equal before.
#[derive(Debug)]
pub(super) struct Known {
    pub range: KeyRange,
    pub source: Digest,
    pub stretch: Stretch,
}

/// What comes next.
pub(super) enum Step {
    /// Rows of a chunk.
    Part(Vec<RowEvent>),
    /// All rows of a chunk have come. They were this.
    End(KeyRange, Option<Digest>),
    /// Whether the target has what it had when a chunk was compared before.
    Ask(Arc<Known>, oneshot::Sender<bool>),
    /// Nothing of the chunk has changed on either side.
    PassBy(Arc<Known>),
    /// What the target has up to this key of the source, in a digest that the source would make of the same rows.
    AskCopied(Vec<String>, oneshot::Sender<Option<(Digest, Stretch)>>),
    /// The rows of a chunk are the same on both sides.
    Copied(Known),
}

/// The steps of a table, as a task makes them.
pub(super) struct Steps {
    incoming: mpsc::Receiver<Step>,
    /// Dropping it ends the task.
    reading: JoinSet<Result<(), SnapshotError>>,
    /// About how many rows the table has.
    pub rows_total: u64,
}

impl Steps {
    /// Begins to read a table.
    pub async fn begin(verifier: &Verifier, schema: &Arc<TableSchema>, chunks: Chunks) -> Result<Self, VerifyError> {
        let mut scan = verifier.source.scan().await?;
        let rows_total = scan.estimate(schema).await?.rows;
        drop(scan);
        let (steps, incoming) = mpsc::channel(STEPS_WAITING_MAX);
        let reader = Reader {
            source: Arc::clone(&verifier.source),
            store: Arc::clone(&verifier.store),
            schema: Arc::clone(schema),
            captured: captured(&verifier.reached().await?),
            encoding: Encoding::new(&verifier.pipeline, verifier.connector),
            chunk_rows: verifier.chunk_rows,
            chunks,
            others_left: OTHERS_MAX,
            steps,
        };
        let mut reading = JoinSet::new();
        reading.spawn(reader.run());
        Ok(Steps { incoming, reading, rows_total })
    }

    /// The next step; none at the table's end.
    pub async fn next(&mut self) -> Result<Option<Step>, VerifyError> {
        if let Some(step) = self.incoming.recv().await {
            return Ok(Some(step));
        }
        match self.reading.join_next().await {
            Some(Ok(ended)) => Ok(ended.map(|()| None)?),
            Some(Err(_)) => Err(SnapshotError::Source("the task that read it has ended early".into()).into()),
            None => Ok(None),
        }
    }

    /// The next rows, of whatever chunk; none at the table's end.
    pub async fn next_part(&mut self) -> Result<Option<Vec<RowEvent>>, VerifyError> {
        while let Some(step) = self.next().await? {
            if let Step::Part(part) = step {
                return Ok(Some(part));
            }
        }
        Ok(None)
    }
}

struct Reader {
    source: Arc<dyn Source>,
    store: Arc<Store>,
    schema: Arc<TableSchema>,
    captured: Captured,
    encoding: Encoding,
    chunk_rows: u64,
    chunks: Chunks,
    /// How many digests in a row may still be other ones at the target; then it is not asked for them any more.
    others_left: u32,
    steps: mpsc::Sender<Step>,
}

/// How reading a chunk ended.
enum Chunk {
    /// With so many bytes, after the longest of its reads.
    Whole(usize, Duration),
    /// It is heavier than a part may be: after so many rows it was left, and is to be read anew with fewer.
    Heavy(u64),
    /// Nobody wants it any more.
    Unwanted,
}

/// What two digests of a chunk have said.
enum Digests {
    Same,
    /// Its rows are to be read.
    Other,
    Unwanted,
}

impl Reader {
    async fn run(mut self) -> Result<(), SnapshotError> {
        let mut scan = self.source.scan().await?;
        let row_bytes = scan.estimate(&self.schema).await?.row_bytes;
        let fit = (PART_BYTES_MAX as u64).checked_div(row_bytes).unwrap_or(u64::MAX);
        let (mut lower, mut rows) = (None::<String>, self.chunk_rows.min(fit).max(1));
        // A source without an order hands out pages: nothing is open between two of them.
        let has_reads = self.captured.position.has_one_order();
        let mut left = false;
        loop {
            let known = if left { None } else { self.known(lower.as_deref()).await? };
            if let Some(known) = &known {
                match self.again(&mut *scan, known).await? {
                    Digests::Same if known.range.upper.is_none() => return Ok(()),
                    Digests::Same => {
                        lower.clone_from(&known.range.upper);
                        continue;
                    }
                    Digests::Other => {}
                    Digests::Unwanted => return Ok(()),
                }
            }
            // Chunks stay as they were, so that the next comparison finds them; what was added comes behind them.
            let upper = match known.and_then(|known| known.range.upper.clone()) {
                Some(upper) => Some(upper),
                None => scan.next_bound(&self.schema, lower.as_deref(), rows).await?,
            };
            let range = KeyRange { lower: lower.clone(), upper: upper.clone() };
            let is_left = std::mem::take(&mut left);
            if self.chunks == Chunks::Known && !is_left {
                match self.copied(&mut *scan, &range).await? {
                    Digests::Same => {
                        lower = upper;
                        rows = (rows * 2).min(self.chunk_rows.min(fit).max(1));
                        continue;
                    }
                    Digests::Other => {}
                    Digests::Unwanted => return Ok(()),
                }
            }
            match self.chunk(&mut *scan, range, has_reads && rows > 1).await? {
                Chunk::Unwanted => return Ok(()),
                Chunk::Heavy(read) => {
                    rows = (read / 2).max(1);
                    // The one that was left may still have rows on their way.
                    scan = self.source.scan().await?;
                    left = true;
                    continue;
                }
                Chunk::Whole(_, took) if took > READ_LONG => {
                    rows = (rows / 2).max(CHUNK_ROWS_MIN.min(rows));
                }
                Chunk::Whole(bytes, _) if bytes < PART_BYTES_MAX / 4 => rows = (rows * 2).min(self.chunk_rows.max(1)),
                Chunk::Whole(..) => {}
            }
            if upper.is_none() {
                return Ok(());
            }
            lower = upper;
        }
    }

    /// The chunk that begins here, if it was found equal before and may be passed by.
    async fn known(&self, lower: Option<&str>) -> Result<Option<Arc<Known>>, SnapshotError> {
        if self.chunks != Chunks::Known {
            return Ok(None);
        }
        let compared = self.store.compared_chunk(&self.schema.table, lower).await?;
        let Some(ComparedChunk { range, source, target: Some(target), .. }) =
            compared.filter(|chunk| chunk.state == ChunkState::Equal)
        else {
            return Ok(None);
        };
        // What another release has noted is compared again.
        let stretch = serde_json::from_str(&target).ok();
        Ok(stretch.map(|stretch| Arc::new(Known { range, source, stretch })))
    }

    /// Looks at both sides of a chunk that was compared before, at the same time.
    async fn again(&mut self, scan: &mut dyn Scan, known: &Arc<Known>) -> Result<Digests, SnapshotError> {
        let (answer, answered) = oneshot::channel();
        if self.steps.send(Step::Ask(Arc::clone(known), answer)).await.is_err() {
            return Ok(Digests::Unwanted);
        }
        let (_held, mut captured) = watch::channel(Some(self.captured.clone()));
        let digest = scan.digest(&self.schema, &known.range, &mut captured, false).await?;
        let Ok(is_there) = answered.await else { return Ok(Digests::Unwanted) };
        if !is_there || digest.as_ref() != Some(&known.source) {
            return Ok(Digests::Other);
        }
        match self.steps.send(Step::PassBy(Arc::clone(known))).await {
            Ok(()) => Ok(Digests::Same),
            Err(_) => Ok(Digests::Unwanted),
        }
    }

    /// Looks at both sides of a chunk whose rows may be copied as they are, at the same time. The last chunk of a table
    /// has no such end, and is read.
    async fn copied(&mut self, scan: &mut dyn Scan, range: &KeyRange) -> Result<Digests, SnapshotError> {
        let Some(key) = scan.last_key(&self.schema, range).filter(|_| self.others_left > 0) else {
            return Ok(Digests::Other);
        };
        let (answer, answered) = oneshot::channel();
        if self.steps.send(Step::AskCopied(key, answer)).await.is_err() {
            return Ok(Digests::Unwanted);
        }
        let (_held, mut captured) = watch::channel(Some(self.captured.clone()));
        let source = scan.digest(&self.schema, range, &mut captured, false).await?;
        let Ok(there) = answered.await else { return Ok(Digests::Unwanted) };
        let Some((there, stretch)) = there else {
            self.others_left = 0;
            return Ok(Digests::Other);
        };
        let Some(source) = source.filter(|source| *source == there) else {
            self.others_left -= 1;
            return Ok(Digests::Other);
        };
        self.others_left = OTHERS_MAX;
        match self.steps.send(Step::Copied(Known { range: range.clone(), source, stretch })).await {
            Ok(()) => Ok(Digests::Same),
            Err(_) => Ok(Digests::Unwanted),
        }
    }

    async fn chunk(
        &mut self,
        scan: &mut dyn Scan,
        mut range: KeyRange,
        may_leave: bool,
    ) -> Result<Chunk, SnapshotError> {
        let (_held, mut captured) = watch::channel(Some(self.captured.clone()));
        let (room, whole) = (Room::new(READ_BYTES_MAX), range.clone());
        let (schema, mut bytes, mut longest) = (Arc::clone(&self.schema), 0, Duration::ZERO);
        let mut began = Instant::now();
        let digest = match self.chunks {
            Chunks::Read => None,
            Chunks::Digested | Chunks::Known => scan.digest(&schema, &range, &mut captured, true).await?,
        };
        loop {
            let (blocks, incoming) = Blocks::new(&room);
            let reading = scan.read(&schema, &range, Version::MIN, &mut captured, blocks);
            let (read, gathered) = tokio::join!(reading, self.gather(incoming, may_leave));
            longest = longest.max(began.elapsed());
            match gathered? {
                Gathered::Part(part, size) => {
                    bytes += size;
                    if !part.is_empty() && self.steps.send(Step::Part(part)).await.is_err() {
                        return Ok(Chunk::Unwanted);
                    }
                }
                Gathered::Heavy(rows) => return Ok(Chunk::Heavy(rows)),
                Gathered::Unwanted => return Ok(Chunk::Unwanted),
            }
            match read? {
                Some(rest) => range.lower = Some(rest),
                None => break,
            }
            began = Instant::now();
        }
        match self.steps.send(Step::End(whole, digest)).await {
            Ok(()) => Ok(Chunk::Whole(bytes, longest)),
            Err(_) => Ok(Chunk::Unwanted),
        }
    }

    /// Takes what a read brings. What is more than a part is left, or, where that may not be, handed on at once.
    async fn gather(
        &mut self,
        mut blocks: mpsc::Receiver<(Block, Taken)>,
        may_leave: bool,
    ) -> Result<Gathered, SnapshotError> {
        let (mut part, mut bytes, mut all) = (Vec::new(), 0, 0);
        while let Some((block, _taken)) = blocks.recv().await {
            for row in block.rows {
                if bytes >= PART_BYTES_MAX {
                    if may_leave {
                        return Ok(Gathered::Heavy(part.len() as u64));
                    }
                    bytes = 0;
                    if self.steps.send(Step::Part(std::mem::take(&mut part))).await.is_err() {
                        return Ok(Gathered::Unwanted);
                    }
                }
                let event = self.encoding.event(&self.schema, row)?;
                let size = event.key.len() + event.value.len();
                (bytes, all) = (bytes + size, all + size);
                part.push(event);
            }
        }
        Ok(Gathered::Part(part, all))
    }
}

/// What a read has brought.
enum Gathered {
    /// Its rows, or the last of them, and the bytes of all.
    Part(Vec<RowEvent>, usize),
    Heavy(u64),
    Unwanted,
}

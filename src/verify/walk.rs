//! A table's walk: the source's rows, part by part, and what is left over at the target.
//!
//! A reader beside the comparer reads the next part while one is compared; both hold one part at a time. A part is at
//! most a chunk of rows, and of so many bytes, however heavy a row is. **Invariant**: no read is open while what it has
//! brought is compared or doubts are settled. Reads are short: a source that takes long for one, or whose rows are
//! heavier than was thought, is asked for less the next time.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::Instant,
};

use super::{Progress, Verifier, VerifyError, captured, confirm::Confirmer, verdict::TableVerdict};
use crate::{
    log::envelope::Encoder,
    model::{Change, DebeziumConnector, Images, Op, Origin, TableSchema, Value, Version},
    observe::{Captured, Room, Taken},
    snapshot::{Block, Blocks, KeyRange, READ_BYTES_MAX, Scan, SnapshotError},
    source::Source,
    target::{Compared, Comparer, RowEvent, Walk},
};

/// Bytes of records that are compared at once.
const PART_BYTES_MAX: usize = 8 << 20;
/// Parts between the reader and the comparer.
const PARTS_WAITING_MAX: usize = 1;
/// A read that takes longer is made shorter the next time; none may be open for two seconds.
const READ_LONG: Duration = Duration::from_millis(1000);
const CHUNK_ROWS_MIN: u64 = 200;

pub(super) struct Walker<'a> {
    pub verifier: &'a Verifier,
    pub schema: &'a Arc<TableSchema>,
    pub show: &'a (dyn Fn(Progress<'_>) + Sync),
}

impl Walker<'_> {
    /// Compares the whole table both ways; doubts go to the confirmer, which settles them on the way.
    pub async fn run(
        &self,
        comparer: &mut dyn Comparer,
        confirmer: &mut Confirmer<'_>,
        verdict: &mut TableVerdict,
    ) -> Result<(), VerifyError> {
        let mut walk = Walk::Ranged;
        while !self.pass(walk, comparer, confirmer, verdict).await? {
            tracing::debug!(table = %self.schema.table, "its rows do not come in the order of their keys; it is walked by keys seen");
            *verdict = TableVerdict::new(&verdict.table);
            confirmer.forget();
            walk = Walk::Seen;
        }
        loop {
            let extras = comparer.extras().await?;
            if extras.is_empty() {
                break;
            }
            confirmer.add(extras, &[])?;
            confirmer.settle_some(comparer, verdict).await?;
        }
        if comparer.note_shared().await? > 0 {
            self.find_who_share(comparer, confirmer).await?;
        }
        Ok(())
    }

    /// Walks once more for the rows that make what several were seen to make, each perhaps at another moment.
    async fn find_who_share(
        &self,
        comparer: &mut dyn Comparer,
        confirmer: &mut Confirmer<'_>,
    ) -> Result<(), VerifyError> {
        let mut parts = self.read().await?;
        while let Some(part) = parts.next().await? {
            confirmer.add_shared(comparer.shared(&part, true).await?, &part)?;
        }
        Ok(())
    }

    /// Walks once more, and notes what the source's rows make: what is left over then was not made all the while.
    pub async fn see_again(&self, comparer: &mut dyn Comparer) -> Result<(), VerifyError> {
        comparer.begin(&self.schema.table, Walk::Seen).await?;
        let mut parts = self.read().await?;
        while let Some(part) = parts.next().await? {
            comparer.compare(&part).await?;
        }
        Ok(())
    }

    /// Looks at the rows of which the target has heard above a version.
    pub async fn changed(
        &self,
        since: Version,
        comparer: &mut dyn Comparer,
        confirmer: &mut Confirmer<'_>,
        verdict: &mut TableVerdict,
    ) -> Result<(), VerifyError> {
        comparer.begin(&self.schema.table, Walk::Ranged).await?;
        loop {
            let changed = comparer.changed(since).await?;
            if changed.is_empty() {
                return Ok(());
            }
            if changed.iter().any(|doubt| doubt.source_key.is_none()) {
                verdict.skipped =
                    Some("its keys at the target do not lead back to the source; verify the whole table".into());
                confirmer.forget();
                return Ok(());
            }
            verdict.rows += changed.len() as u64;
            confirmer.add(changed, &[])?;
            confirmer.settle_some(comparer, verdict).await?;
            (self.show)(Progress { table: &verdict.table, rows: verdict.rows, rows_total: verdict.rows });
        }
    }

    /// Counts what the source's rows make, and what is there.
    pub async fn count(
        &self,
        comparer: &mut dyn Comparer,
        verdict: &mut TableVerdict,
    ) -> Result<(u64, u64), VerifyError> {
        let (mut parts, mut made) = (self.read().await?, 0);
        verdict.rows = 0;
        while let Some(part) = parts.next().await? {
            made += comparer.made(&part).await?;
            verdict.rows += part.len() as u64;
            let total = parts.rows_total.max(verdict.rows);
            (self.show)(Progress { table: &verdict.table, rows: verdict.rows, rows_total: total });
        }
        Ok((made, comparer.count(&self.schema.table).await?))
    }

    /// False if the rows do not come in an order that this walk can go by.
    async fn pass(
        &self,
        walk: Walk,
        comparer: &mut dyn Comparer,
        confirmer: &mut Confirmer<'_>,
        verdict: &mut TableVerdict,
    ) -> Result<bool, VerifyError> {
        comparer.begin(&self.schema.table, walk).await?;
        let (mut parts, mut read) = (self.read().await?, 0);
        while let Some(part) = parts.next().await? {
            let began = Instant::now();
            let Compared::Part { doubts, rows, shared } = comparer.compare(&part).await? else { return Ok(false) };
            read += part.len() as u64;
            verdict.rows += rows;
            confirmer.add(doubts, &part)?;
            confirmer.add_shared(shared, &part)?;
            confirmer.settle_some(comparer, verdict).await?;
            (self.show)(Progress { table: &verdict.table, rows: read, rows_total: parts.rows_total.max(read) });
            if let Some(rate) = self.verifier.rows_per_second {
                let takes = Duration::from_secs_f64(part.len() as f64 / rate.max(1) as f64);
                tokio::time::sleep(takes.saturating_sub(began.elapsed())).await;
            }
        }
        if read > 0 && verdict.rows == 0 {
            verdict.skipped = Some("none of its rows is in the sample".into());
        }
        Ok(true)
    }

    async fn read(&self) -> Result<Parts, VerifyError> {
        let Verifier { source, pipeline, connector, chunk_rows, .. } = self.verifier;
        let mut scan = source.scan().await?;
        let rows_total = scan.estimate(self.schema).await?.rows;
        drop(scan);
        let (parts, incoming) = mpsc::channel(PARTS_WAITING_MAX);
        let reader = Reader {
            source: Arc::clone(source),
            schema: Arc::clone(self.schema),
            captured: captured(&self.verifier.reached().await?),
            encoding: Encoding::new(pipeline, *connector),
            chunk_rows: *chunk_rows,
            parts,
        };
        let mut reading = JoinSet::new();
        reading.spawn(reader.run());
        Ok(Parts { incoming, reading, rows_total })
    }
}

/// The parts of a table, as a task reads them.
struct Parts {
    incoming: mpsc::Receiver<Vec<RowEvent>>,
    /// Dropping it ends the task.
    reading: JoinSet<Result<(), SnapshotError>>,
    rows_total: u64,
}

impl Parts {
    /// The next part; none at the table's end.
    async fn next(&mut self) -> Result<Option<Vec<RowEvent>>, VerifyError> {
        if let Some(part) = self.incoming.recv().await {
            return Ok(Some(part));
        }
        match self.reading.join_next().await {
            Some(Ok(ended)) => Ok(ended.map(|()| None)?),
            Some(Err(_)) => Err(SnapshotError::Source("the task that read it has ended early".into()).into()),
            None => Ok(None),
        }
    }
}

struct Reader {
    source: Arc<dyn Source>,
    schema: Arc<TableSchema>,
    captured: Captured,
    encoding: Encoding,
    chunk_rows: u64,
    parts: mpsc::Sender<Vec<RowEvent>>,
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

impl Reader {
    async fn run(mut self) -> Result<(), SnapshotError> {
        let mut scan = self.source.scan().await?;
        let row_bytes = scan.estimate(&self.schema).await?.row_bytes;
        let fit = (PART_BYTES_MAX as u64).checked_div(row_bytes).unwrap_or(u64::MAX);
        let (mut lower, mut rows) = (None::<String>, self.chunk_rows.min(fit).max(1));
        // A source without an order hands out pages: nothing is open between two of them.
        let has_reads = self.captured.position.has_one_order();
        loop {
            let upper = scan.next_bound(&self.schema, lower.as_deref(), rows).await?;
            let range = KeyRange { lower: lower.clone(), upper: upper.clone() };
            match self.chunk(&mut *scan, range, has_reads && rows > 1).await? {
                Chunk::Unwanted => return Ok(()),
                Chunk::Heavy(read) => {
                    rows = (read / 2).max(1);
                    // The one that was left may still have rows on their way.
                    scan = self.source.scan().await?;
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

    async fn chunk(
        &mut self,
        scan: &mut dyn Scan,
        mut range: KeyRange,
        may_leave: bool,
    ) -> Result<Chunk, SnapshotError> {
        let (_held, mut captured) = watch::channel(Some(self.captured.clone()));
        let (room, mut bytes, mut longest) = (Room::new(READ_BYTES_MAX), 0, Duration::ZERO);
        loop {
            let began = Instant::now();
            let (blocks, incoming) = Blocks::new(&room);
            let schema = Arc::clone(&self.schema);
            let reading = scan.read(&schema, &range, Version::MIN, &mut captured, blocks);
            let (read, gathered) = tokio::join!(reading, self.gather(incoming, may_leave));
            longest = longest.max(began.elapsed());
            match gathered? {
                Gathered::Part(part, size) => {
                    bytes += size;
                    if !part.is_empty() && self.parts.send(part).await.is_err() {
                        return Ok(Chunk::Unwanted);
                    }
                }
                Gathered::Heavy(rows) => return Ok(Chunk::Heavy(rows)),
                Gathered::Unwanted => return Ok(Chunk::Unwanted),
            }
            match read? {
                Some(rest) => range.lower = Some(rest),
                None => return Ok(Chunk::Whole(bytes, longest)),
            }
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
                    if self.parts.send(std::mem::take(&mut part)).await.is_err() {
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

/// Rows of the source as records of the log would have them.
pub(super) struct Encoding {
    encoder: Encoder,
}

impl Encoding {
    pub fn new(pipeline: &str, connector: DebeziumConnector) -> Self {
        Encoding { encoder: Encoder::new(pipeline, connector) }
    }

    /// The record of a row that was read. It is newer than any fence: what was read is there.
    pub fn event(&mut self, schema: &Arc<TableSchema>, row: Vec<Value>) -> Result<RowEvent, SnapshotError> {
        let images = Images { before: None, after: Some(row) };
        let change = Change { schema: Arc::clone(schema), op: Op::Read, images, version: Version::MAX, commit_us: 0 };
        let encoded = self.encoder.encode(&change, &Origin { snapshot: true, ..Origin::default() });
        let encoded = encoded.map_err(|error| SnapshotError::not_encoded(schema, &error))?;
        Ok(RowEvent {
            schema: Arc::clone(schema),
            key: encoded.key,
            value: encoded.value,
            version: Version::MAX,
            commit_us: 0,
            offset: 0,
        })
    }
}

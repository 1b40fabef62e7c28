//! Copied rows on their way into the log: encoded, gathered, appended while the target is near enough.
//!
//! What enters is rows of a chunk, what leaves is records in the snapshot topic. **Invariant:** no more than
//! [`BACKLOG_BYTES_MAX`] and one append are in the log and not in the target, however wide rows are, and a log that is
//! full is waited for. Deliberately absent: what a chunk is, and who reads it.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use tokio::sync::Mutex;

use crate::{
    log::{
        Log, LogError, Offset, Record, Topic,
        envelope::{self, Encoder, EnvelopeError},
    },
    model::{Change, Images, Op, Origin, TableSchema, Value, Version},
    observe::{Frontier, Halts, metric},
    snapshot::SnapshotError,
};

/// Bytes of one append.
const GROUP_BYTES_MAX: usize = 1 << 20;
/// What a record takes beside its key and value, about.
const RECORD_BYTES: usize = 64;
/// Bytes of copied rows that may be in the log and not in the target before more are appended.
const BACKLOG_BYTES_MAX: usize = 256 << 20;
const POLL_EVERY: Duration = Duration::from_millis(20);
/// How often an append to a full log is tried again.
const FULL_EVERY: Duration = Duration::from_millis(500);

/// The rows of one chunk that are in the log, and what is not yet.
#[derive(Default)]
pub(super) struct Written {
    pub(super) rows: u64,
    /// Of their records.
    pub(super) bytes: usize,
    /// Encoded and not appended.
    pub(super) records: Vec<(u32, Record)>,
    record_bytes: usize,
}

impl Written {
    /// Makes a record of a row. The row itself is gone when this returns, before its record goes anywhere.
    pub(super) fn encode(
        &mut self,
        encoder: &mut Encoder,
        (schema, schema_id): (&Arc<TableSchema>, u64),
        row: Vec<Value>,
        (version, at_us): (Version, i64),
        partitions: u32,
    ) -> Result<(), EnvelopeError> {
        let origin = Origin { snapshot: true, captured_ms: at_us / 1000, ..Origin::default() };
        let images = Images { before: None, after: Some(row) };
        let change = Change { schema: Arc::clone(schema), op: Op::Read, images, version, commit_us: at_us };
        let encoded = encoder.encode(&change, &origin)?;
        self.rows += 1;
        self.record_bytes += encoded.key.len() + encoded.value.len() + RECORD_BYTES;
        let record = Record::change(&change, encoded.key, encoded.value, schema_id);
        self.records.push((envelope::partition(&change, partitions), record));
        Ok(())
    }

    /// Whether it is time to append.
    pub(super) fn is_due(&self) -> bool {
        self.record_bytes >= GROUP_BYTES_MAX
    }
}

/// Bytes that were appended and are not known to be in the target.
#[derive(Default)]
struct Backlog {
    /// Where the partitions ended after each append, and its bytes.
    appended: VecDeque<(Vec<Offset>, usize)>,
    bytes: usize,
}

/// Appends what readers have encoded.
pub(super) struct Appender {
    log: Arc<dyn Log>,
    frontier: Arc<Frontier>,
    halts: Arc<Halts>,
    backlog: Mutex<Backlog>,
}

/// Where the snapshot topic ends now, in each partition.
pub(super) async fn snapshot_ends(log: &dyn Log) -> Result<Vec<Offset>, LogError> {
    let mut ends = Vec::new();
    for partition in 0..log.partitions() {
        ends.push(log.bounds(Topic::Snapshot, partition).await?.1);
    }
    Ok(ends)
}

impl Appender {
    pub(super) fn new(log: &Arc<dyn Log>, frontier: &Arc<Frontier>, halts: &Arc<Halts>) -> Self {
        let (log, frontier, halts) = (Arc::clone(log), Arc::clone(frontier), Arc::clone(halts));
        Appender { log, frontier, halts, backlog: Mutex::default() }
    }

    /// Appends what is encoded, once the target is near enough. A log that is full is waited for: a chunk that were
    /// begun anew might never fit.
    pub(super) async fn append(&self, written: &mut Written) -> Result<(), SnapshotError> {
        self.near().await;
        let (records, bytes) = (std::mem::take(&mut written.records), std::mem::take(&mut written.record_bytes));
        written.bytes += bytes;
        let mut was_full = false;
        loop {
            // Records share their bytes, so that a copy for the retry costs little.
            match self.log.append(Topic::Snapshot, records.clone()).await {
                Ok(()) => break,
                Err(error @ LogError::Full { .. }) => {
                    metrics::counter!(metric::SYNC_ERRORS, "stage" => "snapshot").increment(1);
                    self.halts.trouble("snapshot", &error.to_string());
                    was_full = true;
                    tokio::time::sleep(FULL_EVERY).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
        if was_full {
            self.halts.well("snapshot");
        }
        let ends = snapshot_ends(&*self.log).await?;
        let mut backlog = self.backlog.lock().await;
        backlog.appended.push_back((ends, bytes));
        backlog.bytes += bytes;
        Ok(())
    }

    /// Waits until not too many bytes are on their way into the target.
    pub(super) async fn near(&self) {
        while self.backlog_bytes(&mut *self.backlog.lock().await) > BACKLOG_BYTES_MAX {
            tokio::time::sleep(POLL_EVERY).await;
        }
    }

    fn backlog_bytes(&self, backlog: &mut Backlog) -> usize {
        while let Some((ends, bytes)) = backlog.appended.front()
            && self.frontier.copied(ends)
        {
            backlog.bytes -= bytes;
            backlog.appended.pop_front();
        }
        backlog.bytes
    }
}

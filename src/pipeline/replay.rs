//! Replay: a range of the log again, through today's transforms, beside the live stream.
//!
//! What enters is a range of one topic that the target has had already; what leaves is the same facts at the same
//! versions, which rewrite what is there at that version and leave what is newer alone. Source transactions need not be
//! kept whole: a row that changes keeps its version. A TRUNCATE is left out: its fence is at the target, and keeps what
//! is older out.
//!
//! **Invariant:** no row moves backwards. Before anything else the deletes of the range are replayed alone, so that the
//! tombstones are there again that keep out what was deleted (rule 22). Deliberately absent: where a replay may begin,
//! and what becomes of rows that fail; the sink notes those, and `control` reads them again from the source.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::batches::Bounds;
use crate::{
    log::{Kind, Log, LogError, Offset, Stored},
    model::{Disposition, TableSchema},
    observe::{Environment, Frontier, Room},
    target::{ApplyError, Batch, BatchEvent, Lane, Pass, Resume, RowEvent, Sink, Target},
};

/// Bytes read from the log at once.
const READ_BYTES_MAX: usize = 2 << 20;
const READ_WAIT: Duration = Duration::from_millis(500);
/// How often a batch is replayed even while the stream lags.
const MINIMUM_SHARE_EVERY: Duration = Duration::from_secs(2);
const POLL_EVERY: Duration = Duration::from_millis(20);

/// One pass over one partition.
pub struct ReplayLoop {
    pub target: Arc<dyn Target>,
    pub log: Arc<dyn Log>,
    pub frontier: Arc<Frontier>,
    pub environment: Arc<dyn Environment>,
    pub pass: Pass,
    pub partition: u32,
    /// The offset after the last record to replay.
    pub to: Offset,
    /// The source tables; all if empty.
    pub tables: Vec<String>,
    pub bounds: Bounds,
    /// For the batches of all lanes, the live ones too.
    pub room: Room,
    /// Replay slows down to its minimum share while the stream's lag is above this.
    pub lag_max_seconds: f64,
}

impl std::fmt::Debug for ReplayLoop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReplayLoop")
            .field("pass", &self.pass)
            .field("partition", &self.partition)
            .finish_non_exhaustive()
    }
}

/// Why a pass did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    #[error(transparent)]
    Apply(#[from] ApplyError),
    #[error(transparent)]
    Log(#[from] LogError),
}

impl ReplayError {
    pub fn disposition(&self) -> Disposition {
        match self {
            ReplayError::Apply(error) => error.disposition(),
            ReplayError::Log(error) => error.disposition(),
        }
    }
}

/// What has been read and not applied.
struct Gathered {
    events: Vec<BatchEvent>,
    bytes: usize,
    from: Offset,
    to: Offset,
}

impl ReplayLoop {
    /// Replays from where the pass stands to its end, or until `stop`.
    pub async fn run(&self, stop: &CancellationToken) -> Result<(), ReplayError> {
        let mut resume = self.target.resume(Lane::Replay(self.pass), self.partition, self.log.epoch()).await?;
        if resume.from >= self.to {
            return Ok(());
        }
        let mut sink = self.target.open(Lane::Replay(self.pass), self.partition).await?;
        let mut gathered = Gathered { events: Vec::new(), bytes: 0, from: resume.from, to: resume.from };
        while gathered.to < self.to {
            let reading = self.log.read(self.pass.topic(), self.partition, gathered.to, READ_BYTES_MAX, READ_WAIT);
            let records =
                tokio::select! { biased; () = stop.cancelled() => return Ok(()), records = reading => records? };
            // What a broker keeps for itself may be the last before the end.
            let beyond = records.last().is_some_and(|last| last.offset >= self.to);
            for stored in records.into_iter().take_while(|stored| stored.offset < self.to) {
                self.gather(stored, &mut resume, &mut gathered)?;
                if gathered.events.len() >= self.bounds.rows_max || gathered.bytes >= self.bounds.bytes_max {
                    self.apply(&mut *sink, &mut gathered).await?;
                    if stop.is_cancelled() {
                        return Ok(());
                    }
                }
            }
            if beyond {
                gathered.to = self.to;
            }
            if gathered.to > gathered.from {
                self.apply(&mut *sink, &mut gathered).await?;
            }
        }
        Ok(())
    }

    /// Takes one record: a row of the tables that are replayed, or nothing but a step forward.
    fn gather(&self, stored: Stored, resume: &mut Resume, gathered: &mut Gathered) -> Result<(), LogError> {
        let Stored { offset, record } = stored;
        let corrupt = |reason: String| LogError::Corrupt {
            topic: self.pass.topic().suffix(),
            partition: self.partition,
            offset,
            reason,
        };
        gathered.to = offset + 1;
        let headers = record.headers;
        match headers.kind {
            Kind::Row => {
                let id = headers.schema.ok_or_else(|| corrupt("a row without a schema id".into()))?;
                let schema = resume.schemas.get(&id).ok_or_else(|| corrupt(format!("unknown schema {id:016x}")))?;
                let fenced = resume.fences.get(&schema.table.to_string()).is_some_and(|fence| headers.version < *fence);
                if fenced || !chosen(&self.tables, schema) {
                    return Ok(());
                }
                gathered.bytes += record.key.len() + record.value.len();
                gathered.events.push(BatchEvent::Row(RowEvent {
                    schema: Arc::clone(schema),
                    key: record.key,
                    value: record.value,
                    version: headers.version,
                    commit_us: headers.commit_us,
                    offset,
                }));
            }
            Kind::Schema => {
                let schema: TableSchema =
                    serde_json::from_slice(&record.value).map_err(|error| corrupt(format!("a schema: {error}")))?;
                resume.schemas.insert(schema.id(), Arc::new(schema));
            }
            // The half of a transaction that a start record tells to drop comes again whole, with the same versions.
            // What a cascade did is in the snapshot topic, as the rows that were read again after it.
            Kind::Truncate | Kind::Control | Kind::Heartbeat | Kind::Start | Kind::Cascade => {}
        }
        Ok(())
    }

    async fn apply(&self, sink: &mut dyn Sink, gathered: &mut Gathered) -> Result<(), ReplayError> {
        self.hold_back().await;
        let batch = Batch {
            topic: self.pass.topic(),
            partition: self.partition,
            log_epoch: self.log.epoch().to_owned(),
            from: gathered.from,
            to: gathered.to,
            events: std::mem::take(&mut gathered.events),
            complete: true,
            control: None,
            chunks: Vec::new(),
            newest_commit_us: None,
        };
        let taken = self.room.take(gathered.bytes).await;
        sink.apply(batch).await?;
        drop(taken);
        gathered.bytes = 0;
        gathered.from = gathered.to;
        Ok(())
    }

    /// Gives way while the stream lags, but never stands still.
    async fn hold_back(&self) {
        let started = Instant::now();
        while started.elapsed() < MINIMUM_SHARE_EVERY
            && self.frontier.lag_seconds(self.environment.now_us()).is_some_and(|lag| lag > self.lag_max_seconds)
        {
            tokio::time::sleep(POLL_EVERY).await;
        }
    }
}

/// Whether a table is among those named.
pub fn chosen(tables: &[String], schema: &TableSchema) -> bool {
    tables.is_empty() || tables.contains(&schema.table.table)
}

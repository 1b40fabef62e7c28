//! The capture loop: a source's events, made durable in the log.
//!
//! Two futures run side by side. The *reader* turns events into records and gathers them in a group;
//! the *writer* appends one group at a time, so that the next group grows while the log syncs this
//! one (group commit without a timer). A group is
//!
//! ```text
//! rows of whole transactions … │ control: position and clock │ rows of a transaction still open …
//! ```
//!
//! **Invariant:** a control record is appended after every record of the transactions before it, and the
//! frontier moves only when the append has answered. After any failure capture opens the source again
//! at the last control record; what was half-written is written again with the same versions.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    log::{
        Control, Headers, Kind, Log, LogError, Record, Topic, TransactionPart,
        envelope::{self, Encoder, EnvelopeError, Origin},
    },
    model::{Change, Disposition, Images, Op, Position, TableName, TableSchema, Version},
    observe::{self, Ambient, Backoff, Frontier, Halt, Halts, Invariant, metric},
    source::{CaptureError, Captured, Source},
};

/// A group is handed to the writer when it has this many bytes, whether or not the writer is idle.
const GROUP_BYTES_MAX: usize = 1 << 20;
/// Groups between reader and writer.
const GROUPS_WAITING_MAX: usize = 1;
/// How often a capture that lost its place looks whether it may begin anew.
const REPAIRED_EVERY: Duration = Duration::from_secs(1);
/// How much of the log is looked at at a time.
const LOOK_BYTES: usize = 1 << 20;

/// Opens the source of a pipeline.
#[async_trait]
pub trait OpenSource: Send + Sync {
    /// Opens at a stored position with the clock's state there, or where the source is now.
    async fn open(&self, from: Option<(Position, Version)>) -> Result<Box<dyn Source>, CaptureError>;
    /// Opens where the source is now, whatever was captured, with the clock at `clock` or above.
    async fn open_anew(&self, clock: Version) -> Result<Box<dyn Source>, CaptureError>;
}

/// Takes note of what must be durable before the log goes on.
#[async_trait]
pub trait Register: Send + Sync {
    /// A table has this schema from the version `clock` on.
    async fn schema(&self, schema: &TableSchema, clock: Version) -> Result<(), CaptureError>;
    /// Rows of the table may have changed without events. A copy that shows them must be labelled with `clock` at
    /// least: else a row that was changed before them would seem to be newer.
    async fn rewritten(&self, table: &TableName, columns: &[String], clock: Version) -> Result<(), CaptureError>;
    /// Capture knows of no position and begins where the source is: copies that have begun missed what happened since, and
    /// are to be made again. If the log `has_rows` from before, each table's copy must also remove what it does not meet: what was done
    /// to those rows since is in no log.
    async fn begins_anew(&self, has_rows: bool) -> Result<(), CaptureError>;
    /// Whether every table has been asked to be copied again and no such copy has begun.
    async fn all_copied_again(&self) -> Result<bool, CaptureError>;
}

/// Everything the loop works with.
pub struct CaptureLoop {
    pub source: Arc<dyn OpenSource>,
    pub register: Arc<dyn Register>,
    pub log: Arc<dyn Log>,
    pub frontier: Arc<Frontier>,
    pub halts: Arc<Halts>,
    pub ambient: Arc<dyn Ambient>,
    /// The pipeline's name, for the envelope's `source` block.
    pub pipeline: String,
    /// The connector that the envelope's `source` block names: `mysql`, `mariadb`.
    pub connector: String,
    /// Where to begin when the log is empty: the position and clock stored in the target, if any.
    pub fallback: Option<(Position, Version)>,
}

impl std::fmt::Debug for CaptureLoop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CaptureLoop").field("pipeline", &self.pipeline).finish_non_exhaustive()
    }
}

/// Why one opened source came to its end.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error(transparent)]
    Capture(#[from] CaptureError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
}

impl SessionError {
    fn disposition(&self) -> Disposition {
        match self {
            SessionError::Capture(error) => error.disposition(),
            SessionError::Log(error) => error.disposition(),
            SessionError::Envelope(_) => Disposition::Halt,
        }
    }

    /// Whether what follows the captured position is gone.
    fn is_loss(&self) -> bool {
        matches!(self, SessionError::Capture(CaptureError::Lost { .. }))
    }
}

/// Records gathered for one append.
#[derive(Default)]
struct Group {
    records: Vec<(u32, Record)>,
    bytes: usize,
    /// The last commit or heartbeat in the group, and how many records come before its control record.
    complete: Option<(usize, Complete)>,
}

struct Complete {
    kind: Kind,
    position: Position,
    clock: Version,
    commit_us: i64,
}

impl CaptureLoop {
    /// Captures until `stop`, or until something halts it.
    pub async fn run(self, stop: CancellationToken) {
        let (mut backoff, mut anew) = (Backoff::default(), false);
        while !stop.is_cancelled() {
            let started = Instant::now();
            // What has been captured anew is in the log, which is where to go on from then.
            anew &= self.frontier.watch_captured().borrow().is_none();
            let Err(error) = self.session(anew, &stop).await else { return };
            metrics::counter!(metric::SYNC_ERRORS, "stage" => "capture").increment(1);
            match error.disposition() {
                Disposition::Retry => self.halts.trouble("capture", &error.to_string()),
                Disposition::Halt | Disposition::DeadLetter if error.is_loss() => {
                    self.frontier.lost();
                    if !self.repaired(error, &stop).await {
                        return;
                    }
                    anew = true;
                }
                Disposition::Halt | Disposition::DeadLetter => {
                    return self.halts.halt("capture", halt_of(error));
                }
            }
            let pause = backoff.next(&*self.ambient, started.elapsed());
            tokio::select! { biased; () = stop.cancelled() => {}, () = tokio::time::sleep(pause) => {} }
        }
    }

    /// Halts until every table is to be copied again, which makes up for what was lost; false if it was stopped before.
    async fn repaired(&self, lost: SessionError, stop: &CancellationToken) -> bool {
        let mut lost = Some(lost);
        loop {
            match self.register.all_copied_again().await {
                Ok(true) => break,
                Ok(false) => self.halts.well("capture"),
                Err(error) => self.halts.trouble("capture", &error.to_string()),
            }
            if let Some(lost) = lost.take() {
                self.halts.halt("capture", halt_of(lost));
            }
            tokio::select! { biased; () = stop.cancelled() => return false, () = tokio::time::sleep(REPAIRED_EVERY) => {} }
        }
        self.halts.lift("capture");
        true
    }

    /// Opens the source where the log ends, or anew where the source is, and captures until `stop` or an error.
    async fn session(&self, anew: bool, stop: &CancellationToken) -> Result<(), SessionError> {
        let from = self.resume_point().await?;
        let clock = from.as_ref().map_or(0, |(_, clock)| *clock);
        if from.is_none() {
            self.register.begins_anew(self.has_rows().await?).await?;
        }
        let opening = match from {
            Some((_, clock)) if anew => self.source.open_anew(clock),
            from => self.source.open(from),
        };
        let mut source = tokio::select! { biased; () = stop.cancelled() => return Ok(()), source = opening => source? };
        let (sender, receiver) = mpsc::channel(GROUPS_WAITING_MAX);
        let reader = Reader {
            encoder: Encoder::new(&self.pipeline, &self.connector),
            register: &*self.register,
            ambient: &*self.ambient,
            partitions: self.log.partitions(),
            origin: Origin::default(),
            pending: vec![None; self.log.partitions() as usize],
            schema_ids: Vec::new(),
            group: self.start(),
            frontier: &self.frontier,
            sealed: None,
            clock,
            newest: clock,
        };
        // A writer that gives up drops its receiver, which ends the reader; a reader that ends drops
        // its sender, and the writer finishes what it has been given.
        let (read, written) = tokio::join!(reader.run(&mut *source, sender, stop), self.write(receiver, stop));
        written?;
        read
    }

    /// The last position whose transactions are complete in every partition (CORRECTNESS rule 18).
    async fn resume_point(&self) -> Result<Option<(Position, Version)>, LogError> {
        let mut lowest: Option<Control> = None;
        for partition in 0..self.log.partitions() {
            let Some((_, control)) = self.log.last_control(Topic::Changes, partition).await? else {
                lowest = None;
                break;
            };
            if lowest.as_ref().is_none_or(|lowest| control.clock < lowest.clock) {
                lowest = Some(control);
            }
        }
        let from_log = lowest.and_then(|control| Some((control.position?, control.clock)));
        Ok(from_log.or_else(|| self.fallback.clone()))
    }

    /// Whether the log has changes of rows, wherever they came from.
    async fn has_rows(&self) -> Result<bool, LogError> {
        for partition in 0..self.log.partitions() {
            let (mut from, end) = self.log.bounds(Topic::Changes, partition).await?;
            if from > 0 {
                return Ok(true);
            }
            while from < end {
                let stored = self.log.read(Topic::Changes, partition, from, LOOK_BYTES, Duration::ZERO).await?;
                let Some(last) = stored.last() else { break };
                from = last.offset + 1;
                if stored.iter().any(|stored| matches!(stored.record.headers.kind, Kind::Row | Kind::Truncate)) {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// A group that begins with a start record in every partition.
    fn start(&self) -> Group {
        let records = (0..self.log.partitions()).map(|p| (p, marker(Kind::Start, Vec::new(), 0, 0))).collect();
        Group { records, ..Group::default() }
    }

    /// Appends groups in order until the reader ends.
    async fn write(&self, mut groups: mpsc::Receiver<Group>, stop: &CancellationToken) -> Result<(), SessionError> {
        // Whether an earlier group ended inside a transaction.
        let mut within = false;
        while let Some(group) = groups.recv().await {
            let (records, complete) = group.into_records(self.log.partitions());
            let ends_within = ends_within(&records).unwrap_or(within);
            self.append(records, within, stop).await?;
            within = ends_within;
            let Some(complete) = complete else { continue };
            let mut ends = Vec::new();
            for partition in 0..self.log.partitions() {
                ends.push(self.log.bounds(Topic::Changes, partition).await?.1);
            }
            let Complete { position, clock, commit_us, .. } = complete;
            self.frontier.captured(observe::Captured { position, clock, ends, commit_us });
            self.halts.well("capture");
        }
        Ok(())
    }

    /// Appends one group, waiting for as long as the log is full or its disk refuses. `within` is whether it goes on with a
    /// transaction that an earlier group has begun.
    async fn append(
        &self,
        records: Vec<(u32, Record)>,
        within: bool,
        stop: &CancellationToken,
    ) -> Result<(), SessionError> {
        let mut backoff = Backoff::default();
        loop {
            // Records share their bytes, so that a copy for the retry costs little.
            match self.log.append(Topic::Changes, records.clone()).await {
                Ok(()) => return Ok(()),
                Err(error) if error.disposition() == Disposition::Retry => {
                    metrics::counter!(metric::SYNC_ERRORS, "stage" => "log").increment(1);
                    self.halts.trouble("capture", &error.to_string());
                    let pause = backoff.next(&*self.ambient, Duration::ZERO);
                    tokio::select! {
                        biased;
                        () = stop.cancelled() => return Err(error.into()),
                        () = tokio::time::sleep(pause) => {}
                    }
                    // Nothing of the group was written, and it still follows what was.
                    if matches!(error, LogError::Full { .. }) {
                        continue;
                    }
                    // A start record drops all of the open transaction, also what earlier groups have of it: capture goes
                    // back to where it begins.
                    if within {
                        return Err(error.into());
                    }
                    // The failed append may have left a part behind: a start record makes readers drop it.
                    if let Err(error) = self.log.append(Topic::Changes, self.start().records).await {
                        self.halts.trouble("capture", &error.to_string());
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Turns events into records, transaction by transaction.
struct Reader<'a> {
    encoder: Encoder,
    register: &'a dyn Register,
    ambient: &'a dyn Ambient,
    partitions: u32,
    origin: Origin,
    /// Per partition, the newest record of the open transaction: the last one is marked as its end.
    pending: Vec<Option<Record>>,
    /// The ids of the schemas in use, which are digests and not to be computed per row.
    schema_ids: Vec<(Arc<TableSchema>, u64)>,
    group: Group,
    frontier: &'a Frontier,
    /// The group ends here, at this clock: what follows is read when all of it is durable.
    sealed: Option<Version>,
    /// The clock at the last commit or heartbeat: from when on a schema that comes now holds.
    clock: Version,
    /// The highest version so far.
    newest: Version,
}

impl Reader<'_> {
    async fn run(
        mut self,
        source: &mut dyn Source,
        groups: mpsc::Sender<Group>,
        stop: &CancellationToken,
    ) -> Result<(), SessionError> {
        loop {
            let event = {
                let mut next = source.next();
                loop {
                    let ready = self.group.complete.is_some() || self.group.bytes >= GROUP_BYTES_MAX;
                    tokio::select! {
                        biased;
                        () = stop.cancelled() => return Ok(()),
                        event = &mut next, if self.group.bytes < GROUP_BYTES_MAX && self.sealed.is_none() => break event,
                        permit = groups.reserve(), if ready => match permit {
                            Ok(permit) => permit.send(std::mem::take(&mut self.group)),
                            Err(_) => return Ok(()),
                        },
                        _ = self.frontier.captured_when(|captured| Some(captured.clock) >= self.sealed), if self.sealed.is_some() && !ready => {
                            self.sealed = None;
                        }
                        () = groups.closed() => return Ok(()),
                    }
                }
            };
            match event {
                Ok(mut event) => {
                    // The source's log does not tell of this move of the clock, as it does of commits: no later version is written before
                    // it is durable in every partition. Otherwise a resume from an earlier place would give lower versions to what some
                    // of them have already.
                    let wanted = self.frontier.wanted_clock();
                    if let Captured::Heartbeat { clock, .. } = &mut event
                        && *clock < wanted
                        && source.raise_clock(wanted)
                    {
                        *clock = wanted;
                        self.sealed = Some(wanted);
                    }
                    self.take(event).await?;
                }
                Err(error) => {
                    // The transactions before what failed are whole; a halt at the same place would keep them back for ever.
                    if self.group.complete.is_some() {
                        // A writer that has given up has an error of its own to tell.
                        let _ = groups.send(std::mem::take(&mut self.group)).await;
                    }
                    return Err(error.into());
                }
            }
        }
    }

    async fn take(&mut self, event: Captured) -> Result<(), SessionError> {
        match event {
            Captured::Change(change) => {
                self.increases(change.version);
                let partition = envelope::partition(&change, self.partitions);
                let record = self.encode(&change, Kind::Row)?;
                self.hold(partition, record);
            }
            Captured::Truncate { table, version, commit_us } => {
                self.increases(version);
                let images = Images::default();
                let change = Change { schema: table, op: Op::Truncate, images, version, commit_us };
                let record = self.encode(&change, Kind::Truncate)?;
                for partition in 0..self.partitions {
                    self.hold(partition, record.clone());
                }
            }
            Captured::Schema(schema) => {
                self.register.schema(&schema, self.clock).await?;
                let json = serde_json::to_vec(&*schema).map_err(|error| LogError::Other(error.to_string()))?;
                let mut record = marker(Kind::Schema, json, 0, 0);
                record.headers.schema = Some(schema.id());
                self.schema_ids.retain(|(known, _)| known.table != schema.table);
                // Belongs to no transaction: a schema that comes before the row that needs it is early, never wrong.
                for partition in 0..self.partitions {
                    self.group.push(partition, record.clone());
                }
            }
            Captured::ReplicatedFrom(node) => self.origin.replicated_from = Some(node),
            Captured::Rewritten { table, columns, clock } => {
                self.register.rewritten(&table, &columns, clock).await?;
            }
            Captured::Commit { position, clock, commit_us } => {
                for partition in 0..self.partitions {
                    if let Some(mut last) = self.pending.get_mut(partition as usize).and_then(Option::take) {
                        last.headers.transaction = TransactionPart::End;
                        self.group.push(partition, last);
                    }
                }
                self.origin = origin_after(&position);
                self.complete(Complete { kind: Kind::Control, position, clock, commit_us });
            }
            Captured::Heartbeat { position, clock, at_us } => {
                self.origin = origin_after(&position);
                self.complete(Complete { kind: Kind::Heartbeat, position, clock, commit_us: at_us });
            }
        }
        Ok(())
    }

    fn increases(&mut self, version: Version) {
        let newest = std::mem::replace(&mut self.newest, version);
        Invariant::VersionsIncrease.hold(newest < version, || format!("{version} after {newest}"));
    }

    fn complete(&mut self, complete: Complete) {
        let newest = self.newest;
        Invariant::ControlCoversChanges.hold(newest <= complete.clock, || format!("{} after {newest}", complete.clock));
        self.clock = complete.clock;
        if !complete.position.has_one_order() {
            self.newest = Version::MIN;
        }
        self.group.complete = Some((self.group.records.len(), complete));
    }

    fn encode(&mut self, change: &Change, kind: Kind) -> Result<Record, EnvelopeError> {
        self.origin.captured_ms = self.ambient.now_us() / 1000;
        let encoded = self.encoder.encode(change, &self.origin)?;
        let headers = Headers {
            kind,
            version: change.version,
            commit_us: change.commit_us,
            schema: Some(self.schema_id(&change.schema)),
            transaction: TransactionPart::Open,
        };
        Ok(Record { key: encoded.key, value: encoded.value, headers })
    }

    fn schema_id(&mut self, schema: &Arc<TableSchema>) -> u64 {
        if let Some((_, id)) = self.schema_ids.iter().find(|(known, _)| Arc::ptr_eq(known, schema)) {
            return *id;
        }
        let id = schema.id();
        self.schema_ids.push((Arc::clone(schema), id));
        id
    }

    /// Adds a record to the open transaction of its partition.
    fn hold(&mut self, partition: u32, record: Record) {
        let Some(slot) = self.pending.get_mut(partition as usize) else { return };
        if let Some(previous) = slot.replace(record) {
            self.group.push(partition, previous);
        }
    }
}

impl Group {
    fn push(&mut self, partition: u32, record: Record) {
        self.bytes += record.key.len() + record.value.len() + 64;
        self.records.push((partition, record));
    }

    /// The records with the control record in its place.
    fn into_records(self, partitions: u32) -> (Vec<(u32, Record)>, Option<Complete>) {
        let Group { mut records, complete, .. } = self;
        let Some((at, complete)) = complete else { return (records, None) };
        let control = Control { position: Some(complete.position.clone()), clock: complete.clock, chunk: None };
        let json = serde_json::to_vec(&control).unwrap_or_default();
        let record = marker(complete.kind, json, complete.clock, complete.commit_us);
        let at = at.min(records.len());
        records.splice(at..at, (0..partitions).map(|partition| (partition, record.clone())));
        (records, Some(complete))
    }
}

/// Whether these records leave a transaction open; none if there is no row among them.
fn ends_within(records: &[(u32, Record)]) -> Option<bool> {
    let rows = |record: &&(u32, Record)| matches!(record.1.headers.kind, Kind::Row | Kind::Truncate);
    let last = records.iter().rev().find(rows)?;
    Some(last.1.headers.transaction == TransactionPart::Open)
}

/// Where the transaction after `position` is, for the envelope's `source` block.
fn origin_after(position: &Position) -> Origin {
    match position {
        Position::Mysql(position) => {
            Origin { file: position.file.clone(), offset: position.offset, ..Origin::default() }
        }
        Position::Postgres(position) => Origin { offset: position.lsn.0, ..Origin::default() },
        Position::Debezium(_) => Origin::default(),
        // Shards have no common place.
        Position::Dynamo(_) => Origin::default(),
    }
}

/// A record that is no row.
pub(crate) fn marker(kind: Kind, value: Vec<u8>, version: Version, commit_us: i64) -> Record {
    Record {
        key: crate::log::EMPTY,
        value: value.into(),
        headers: Headers { kind, version, commit_us, schema: None, transaction: TransactionPart::End },
    }
}

fn halt_of(error: SessionError) -> Halt {
    match error {
        SessionError::Capture(CaptureError::Halt { reason, remedy } | CaptureError::Lost { reason, remedy }) => {
            Halt { reason, remedy }
        }
        SessionError::Capture(error @ CaptureError::Unreachable(_)) => {
            Halt { reason: error.to_string(), remedy: "make the source reachable and restart the worker".into() }
        }
        SessionError::Envelope(error) => Halt {
            reason: error.to_string(),
            remedy: "this is a defect of cutover: report it with this message".into(),
        },
        SessionError::Log(error) => {
            Halt { reason: error.to_string(), remedy: "restart the worker when that is done".into() }
        }
    }
}

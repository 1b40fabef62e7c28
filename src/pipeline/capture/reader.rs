//! The reader of the capture loop: a source's events as records, gathered in groups.
//!
//! A group ends with whole transactions wherever it can: its control record says how far they go.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    CaptureLoop, Register, SessionError,
    tail::{Coming, Tail},
};
use crate::{
    log::{
        Control, Record, TransactionPart,
        envelope::{self, Encoder, EnvelopeError},
        record::CascadeRecord,
    },
    model::{Beyond, Change, Images, Op, Origin, Position, Problem, TableSchema, Version},
    observe::{Environment, Frontier, Invariant, Room, Taken},
    source::{CaptureError, CaptureEvent, ChangeStream},
};

/// A group is handed to the writer when it has this many bytes, whether or not the writer is idle.
const GROUP_BYTES_MAX: usize = 1 << 20;
/// Bytes of groups with the writer. A group that has more, because a row has, is with it alone, and nothing is read
/// meanwhile.
const HANDED_BYTES_MAX: usize = 4 << 20;

/// What takes back the rows that only a server had which is gone.
const COPY_ALL_AGAIN: &str =
    "copy every table again with `cutover resnapshot TABLE`, which also removes what the source does not have";

/// Records gathered for one append.
#[derive(Default)]
pub(super) struct AppendGroup {
    pub(super) records: Vec<(u32, Record)>,
    bytes: usize,
    /// Its room, once it has been handed over.
    taken: Option<Taken>,
    /// The last commit or heartbeat in the group, and how many records come before its control record.
    complete: Option<(usize, Complete)>,
}

pub(super) struct Complete {
    /// The source said that it is alive, and nothing else.
    is_idle: bool,
    pub(super) position: Position,
    pub(super) clock: Version,
    pub(super) commit_us: i64,
}

/// Turns events into records, transaction by transaction.
pub(super) struct Reader<'a> {
    encoder: Encoder,
    register: &'a dyn Register,
    environment: &'a dyn Environment,
    partitions: u32,
    origin: Origin,
    /// Per partition, the newest record of the open transaction: the last one is marked as its end.
    pending: Vec<Option<Record>>,
    /// The ids of the schemas in use, which are digests and not to be computed per row.
    schema_ids: Vec<(Arc<TableSchema>, u64)>,
    group: AppendGroup,
    room: Room,
    frontier: &'a Frontier,
    /// The group ends here, at this clock: what follows is read when all of it is durable.
    sealed: Option<Version>,
    /// The clock at the last commit or heartbeat: from when on a schema that comes now holds.
    clock: Version,
    /// The highest version so far.
    newest: Version,
    /// What the target has that the source has still to show again.
    beyond: Option<&'a Beyond>,
    /// What the log has that the source has still to show again.
    tail: Option<Tail>,
}

impl<'a> Reader<'a> {
    /// Begins at this clock.
    pub(super) fn new(
        capture: &'a CaptureLoop,
        clock: Version,
        beyond: Option<&'a Beyond>,
        tail: Option<Tail>,
    ) -> Self {
        Reader {
            encoder: Encoder::new(&capture.pipeline, capture.connector),
            register: &*capture.register,
            environment: &*capture.environment,
            partitions: capture.log.partitions(),
            origin: Origin::default(),
            pending: vec![None; capture.log.partitions() as usize],
            schema_ids: Vec::new(),
            group: AppendGroup::start(capture.log.partitions()),
            room: Room::new(HANDED_BYTES_MAX),
            frontier: &capture.frontier,
            sealed: None,
            clock,
            newest: clock,
            beyond,
            tail,
        }
    }

    pub(super) async fn run(
        mut self,
        source: &mut dyn ChangeStream,
        groups: mpsc::Sender<AppendGroup>,
        stop: &CancellationToken,
    ) -> Result<(), SessionError> {
        loop {
            let event = {
                let mut next = source.next();
                loop {
                    let ready = self.group.complete.is_some() || self.group.bytes >= GROUP_BYTES_MAX;
                    let reads = self.group.bytes < GROUP_BYTES_MAX && self.sealed.is_none() && !self.room.is_full();
                    let bytes = self.group.bytes;
                    let handing_over = async { (self.room.take(bytes).await, groups.reserve().await) };
                    tokio::select! {
                        biased;
                        () = stop.cancelled() => return Ok(()),
                        event = &mut next, if reads => break event,
                        (taken, permit) = handing_over, if ready => match permit {
                            Ok(permit) => {
                                let group = std::mem::take(&mut self.group);
                                permit.send(AppendGroup { taken: Some(taken), ..group });
                            }
                            Err(_) => return Ok(()),
                        },
                        () = self.room.wait(1), if self.room.is_full() => {}
                        _ = self.frontier.captured_when(|captured| Some(captured.clock) >= self.sealed), if self.sealed.is_some() && !ready => {
                            self.sealed = None;
                        }
                        () = groups.closed() => return Ok(()),
                    }
                }
            };
            match event {
                Ok(mut event) => {
                    // The source's log does not tell of this move of the clock, as it does of commits: no later version
                    // is written before it is durable in every partition. Otherwise a resume from an earlier place
                    // would give lower versions to what some of them have already.
                    let wanted = self.frontier.wanted_clock();
                    if let CaptureEvent::Heartbeat { clock, .. } = &mut event
                        && self.tail.is_none()
                        && *clock < wanted
                        && source.raise_clock(wanted)
                    {
                        self.register.clock_moves(wanted).await?;
                        *clock = wanted;
                        self.sealed = Some(wanted);
                    }
                    self.take(event).await?;
                }
                Err(error) => {
                    // The transactions before what failed are whole; a halt at the same place would keep them back for
                    // ever.
                    if self.group.complete.is_some() {
                        // A writer that has given up has an error of its own to tell.
                        let _ = groups.send(std::mem::take(&mut self.group)).await;
                    }
                    return Err(error.into());
                }
            }
        }
    }

    async fn take(&mut self, event: CaptureEvent) -> Result<(), SessionError> {
        match event {
            CaptureEvent::Change(change) => {
                self.increases(change.version);
                let partition = envelope::partition(&change, self.partitions);
                let record = self.encode(&change)?;
                self.hold(partition, record);
            }
            CaptureEvent::Truncate { table, version, commit_us } => {
                self.increases(version);
                let images = Images::default();
                let change = Change { schema: table, op: Op::Truncate, images, version, commit_us };
                let record = self.encode(&change)?;
                for partition in 0..self.partitions {
                    self.hold(partition, record.clone());
                }
            }
            CaptureEvent::Cascade { cascade, version, commit_us } => {
                let key = envelope::object(&cascade.columns, &cascade.values);
                let record = CascadeRecord { child: cascade.child.to_string(), key, kind: cascade.kind };
                // One partition is enough: nobody acts on it before all of them are so far.
                self.hold(0, Record::cascade(&record, version, commit_us).open());
            }
            CaptureEvent::Schema(schema) => {
                self.register.schema(&schema, self.clock).await?;
                let record = Record::schema(&schema);
                self.schema_ids.retain(|(known, _)| known.table != schema.table);
                // Belongs to no transaction: a schema that comes before the row that needs it is early, never wrong.
                for partition in 0..self.partitions {
                    self.group.push(partition, record.clone());
                }
            }
            CaptureEvent::ReplicatedFrom(node) => self.origin.replicated_from = Some(node),
            CaptureEvent::Rewritten { table, columns, clock } => {
                self.register.rewritten(&table, &columns, clock).await?;
            }
            CaptureEvent::Commit { position, clock, commit_us } => {
                self.expect_same_server(&position)?;
                self.expect_tail(&position, clock)?;
                for partition in 0..self.partitions {
                    if let Some(mut last) = self.pending.get_mut(partition as usize).and_then(Option::take) {
                        last.headers.transaction = TransactionPart::End;
                        self.group.push(partition, last);
                    }
                }
                self.origin = position.origin();
                self.complete(Complete { is_idle: false, position, clock, commit_us });
            }
            CaptureEvent::Heartbeat { position, clock, at_us } => {
                self.expect_same_server(&position)?;
                self.expect_tail(&position, clock)?;
                self.origin = position.origin();
                self.complete(Complete { is_idle: true, position, clock, commit_us: at_us });
            }
        }
        Ok(())
    }

    /// What the target has from beyond its position comes again from the server that had it. Another one, after a
    /// failover, may never have had it, and then nothing would take it back.
    fn expect_same_server(&self, position: &Position) -> Result<(), CaptureError> {
        if self.beyond.is_none_or(|beyond| beyond.is_to_come(position)) {
            return Ok(());
        }
        Err(CaptureError::Lost(Problem::new(
            "the log was lost while the target had rows from beyond its stored position, and the source is another \
             server now, which may never have had them",
            COPY_ALL_AGAIN,
        )))
    }

    /// What the log has from behind the place where capture resumed comes again, under the same versions: also from
    /// another server, unless that one never had it.
    fn expect_tail(&mut self, position: &Position, clock: Version) -> Result<(), CaptureError> {
        match self.tail.as_ref().map(|tail| tail.at(position, clock)) {
            None | Some(Coming::Later) => {}
            Some(Coming::Over) => self.tail = None,
            Some(Coming::Never) => {
                return Err(CaptureError::Lost(Problem::new(
                    "the log has rows of transactions that it does not have to their end, and the source is another \
                     server now, which never had them",
                    COPY_ALL_AGAIN,
                )));
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
        if self.tail.is_none() {
            self.group.complete = Some((self.group.records.len(), complete));
        }
    }

    fn encode(&mut self, change: &Change) -> Result<Record, EnvelopeError> {
        self.origin.captured_ms = self.environment.now_us() / 1000;
        let encoded = self.encoder.encode(change, &self.origin)?;
        Ok(Record::change(change, encoded.key, encoded.value, self.schema_id(&change.schema)).open())
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
        self.tail.take_if(|tail| tail.newest.is(&record));
        let Some(slot) = self.pending.get_mut(partition as usize) else { return };
        if let Some(previous) = slot.replace(record) {
            self.group.push(partition, previous);
        }
    }
}

impl AppendGroup {
    /// A group that begins with a start record in every partition.
    pub(super) fn start(partitions: u32) -> Self {
        let records = (0..partitions).map(|p| (p, Record::start())).collect();
        AppendGroup { records, ..AppendGroup::default() }
    }

    fn push(&mut self, partition: u32, record: Record) {
        self.bytes += record.key.len() + record.value.len() + 64;
        self.records.push((partition, record));
    }

    /// The records with the control record in its place, and the room that they take.
    pub(super) fn into_records(self, partitions: u32) -> (Vec<(u32, Record)>, Option<Complete>, Option<Taken>) {
        let AppendGroup { mut records, complete, taken, .. } = self;
        let Some((at, complete)) = complete else { return (records, None, taken) };
        let control = Control { position: Some(complete.position.clone()), clock: complete.clock, chunk: None };
        let record = if complete.is_idle {
            Record::heartbeat(&control, complete.commit_us)
        } else {
            Record::control(&control, complete.commit_us)
        };
        let at = at.min(records.len());
        records.splice(at..at, (0..partitions).map(|partition| (partition, record.clone())));
        (records, Some(complete), taken)
    }
}

/// Whether these records leave a transaction open; none if there is no row among them.
pub(super) fn ends_within(records: &[(u32, Record)]) -> Option<bool> {
    let rows = |record: &&(u32, Record)| record.1.headers.kind.is_change();
    let last = records.iter().rev().find(rows)?;
    Some(last.1.headers.transaction == TransactionPart::Open)
}

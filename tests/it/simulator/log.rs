//! A model log: what was appended and when it became durable, and what a broker or a disk may do to it.
//!
//! Two characters: the embedded log, whose appends are atomic, and one like a broker, where any prefix per partition of
//! an append that failed may be there, and where an older writer is fenced by a newer one.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use cutover::log::{Control, Headers, Kind, Log, LogError, Look, Offset, Record, Stored, Topic};
use tokio::{sync::Notify, time::Instant};

use super::{
    chance::{Chance, Fault},
    mutations::Mutation,
    worker::Gate,
};

/// How many records a look back shows at a time.
const BLOCK_RECORDS: usize = 5;

/// What is durable, whoever has it open.
pub struct Disk {
    chance: Arc<Chance>,
    partitions: u32,
    atomic: bool,
    state: Mutex<State>,
    /// Told of every append. A `watch` would wake its waiters in an order that is left to chance.
    grown: Notify,
}

struct State {
    epoch: u64,
    /// The newest handle; older ones may not append.
    writer: u64,
    /// By topic and partition.
    streams: [Vec<Stream>; 2],
}

#[derive(Default, Clone)]
struct Stream {
    start: Offset,
    records: Vec<Record>,
    applied: Offset,
}

impl Stream {
    fn end(&self) -> Offset {
        self.start + self.records.len() as Offset
    }
}

fn place(topic: Topic) -> usize {
    match topic {
        Topic::Changes => 0,
        Topic::Snapshot => 1,
    }
}

impl Disk {
    pub fn new(chance: Arc<Chance>, partitions: u32, atomic: bool) -> Arc<Self> {
        let state = State { epoch: 1, writer: 0, streams: Disk::empty(partitions) };
        Arc::new(Disk { chance, partitions, atomic, state: Mutex::new(state), grown: Notify::new() })
    }

    fn empty(partitions: u32) -> [Vec<Stream>; 2] {
        [vec![Stream::default(); partitions as usize], vec![Stream::default(); partitions as usize]]
    }

    /// Opens it for one worker; the embedded log is refused while a worker that lives has it open.
    pub fn open(self: &Arc<Self>, gate: Arc<Gate>) -> Arc<ModelLog> {
        let mut state = self.state.lock().unwrap();
        state.writer += 1;
        let epoch = format!("epoch-{}", state.epoch);
        Arc::new(ModelLog { disk: Arc::clone(self), writer: state.writer, epoch, gate })
    }

    /// Whether only one process at a time can have it open.
    pub fn is_exclusive(&self) -> bool {
        self.atomic
    }

    /// The log is gone: the next worker makes a new one.
    pub fn lose(&self) {
        let mut state = self.state.lock().unwrap();
        state.epoch += 1;
        state.streams = Disk::empty(self.partitions);
    }

    /// The newest records are gone, though `append` had answered. What a writer from before puts now is void, since it
    /// stands elsewhere than its writer says (docs/adr/0008-records-say-where-they-stand.md): it is refused here.
    pub fn lose_tail(&self) {
        let mut state = self.state.lock().unwrap();
        state.writer += 1;
        for streams in &mut state.streams {
            for stream in streams {
                let lost = self.chance.number(0..4).min(stream.records.len() as u64) as usize;
                stream.records.truncate(stream.records.len() - lost);
            }
        }
    }

    fn refuses(&self) -> bool {
        self.chance.strikes(Fault::LogRefuses, 0.01, || "an append fails".into())
    }

    /// Puts records at the ends of their streams: all, or of each partition a part.
    fn put(&self, topic: Topic, records: Vec<(u32, Record)>, whole: bool) {
        let mut state = self.state.lock().unwrap();
        let cut: Vec<u64> = (0..self.partitions).map(|_| self.chance.number(0..records.len() as u64 + 1)).collect();
        let mut taken = vec![0; self.partitions as usize];
        for (partition, record) in records {
            let partition = partition as usize;
            taken[partition] += 1;
            if whole || taken[partition] <= cut[partition] {
                let stream = &mut state.streams[place(topic)][partition];
                if self.chance.detailed {
                    self.chance.note(format!("{topic:?} {partition}:{} {}", stream.end(), shown(&record)));
                }
                stream.records.push(record);
            }
        }
        drop(state);
        self.grown.notify_waiters();
    }
}

/// A record as the history shows it.
fn shown(record: &Record) -> String {
    let Headers { kind, version, transaction, .. } = record.headers;
    let (key, value) = (String::from_utf8_lossy(&record.key), String::from_utf8_lossy(&record.value));
    match kind {
        Kind::Row => format!("{kind:?} {transaction:?} {version} {key}"),
        Kind::Truncate | Kind::Schema | Kind::Start => format!("{kind:?} {transaction:?} {version}"),
        Kind::Control | Kind::Heartbeat | Kind::Cascade => format!("{kind:?} {transaction:?} {version} {value}"),
    }
}

/// The log as one worker has it open.
pub struct ModelLog {
    disk: Arc<Disk>,
    writer: u64,
    epoch: String,
    gate: Arc<Gate>,
}

impl ModelLog {
    fn fenced(&self) -> Result<(), LogError> {
        let state = self.disk.state.lock().unwrap();
        if state.writer == self.writer && self.epoch == format!("epoch-{}", state.epoch) {
            return Ok(());
        }
        Err(LogError::InUse { path: "the model".into() })
    }

    fn with<T>(&self, topic: Topic, partition: u32, read: impl FnOnce(&mut Stream) -> T) -> Result<T, LogError> {
        let mut state = self.disk.state.lock().unwrap();
        if self.epoch != format!("epoch-{}", state.epoch) {
            return Err(LogError::Other("this log is gone".into()));
        }
        Ok(read(&mut state.streams[place(topic)][partition as usize]))
    }

    fn chance(&self) -> &Chance {
        &self.disk.chance
    }
}

#[async_trait]
impl Log for ModelLog {
    fn partitions(&self) -> u32 {
        self.disk.partitions
    }

    fn epoch(&self) -> &str {
        &self.epoch
    }

    async fn append(&self, topic: Topic, mut records: Vec<(u32, Record)>) -> Result<(), LogError> {
        if self.chance().run.mutation == Some(Mutation::NoStartRecord) {
            records.retain(|(_, record)| record.headers.kind != Kind::Start);
        }
        self.chance().sleep(self.chance().taste.append).await;
        self.gate.passed().await;
        self.chance().boundary("before an append").await;
        self.fenced()?;
        if self.disk.refuses() {
            if !self.disk.atomic {
                self.disk.put(topic, records, false);
            }
            return Err(LogError::Other("the model's disk refuses".into()));
        }
        if !self.disk.atomic && self.chance().strikes(Fault::Kill, 0.004, || "in an append".into()) {
            self.disk.put(topic, records, false);
            self.chance().kill.notify_one();
            return std::future::pending().await;
        }
        self.disk.put(topic, records, true);
        self.chance().boundary("after an append").await;
        Ok(())
    }

    async fn read(
        &self,
        topic: Topic,
        partition: u32,
        from: Offset,
        bytes_max: usize,
        wait: Duration,
    ) -> Result<Vec<Stored>, LogError> {
        let deadline = Instant::now() + wait;
        loop {
            self.chance().sleep(Duration::from_millis(1)).await;
            self.gate.passed().await;
            let grown = self.disk.grown.notified();
            let found = self.with(topic, partition, |stream| {
                if from < stream.start {
                    let (topic, start) = (topic.suffix(), stream.start);
                    return Err(LogError::Trimmed { topic, partition, wanted: from, start });
                }
                let (mut bytes, mut found) = (0, Vec::new());
                for (index, record) in stream.records.iter().enumerate().skip((from - stream.start) as usize) {
                    bytes += record.value.len();
                    found.push(Stored { offset: stream.start + index as Offset, record: record.clone() });
                    if bytes >= bytes_max || found.len() >= 20 {
                        break;
                    }
                }
                Ok(found)
            })??;
            if !found.is_empty() {
                return Ok(found);
            }
            tokio::select! {
                biased;
                () = grown => {}
                () = tokio::time::sleep_until(deadline) => return Ok(Vec::new()),
            }
        }
    }

    async fn bounds(&self, topic: Topic, partition: u32) -> Result<(Offset, Offset), LogError> {
        self.with(topic, partition, |stream| (stream.start, stream.end()))
    }

    async fn last_control(&self, topic: Topic, partition: u32) -> Result<Option<(Offset, Control)>, LogError> {
        let last = |partition: u32| {
            self.with(topic, partition, |stream| {
                let is_control = |record: &Record| matches!(record.headers.kind, Kind::Control | Kind::Heartbeat);
                let at = stream.records.iter().rposition(is_control)?;
                let control: Control = serde_json::from_slice(&stream.records[at].value).unwrap();
                Some((stream.start + at as Offset, control))
            })
        };
        if self.chance().run.mutation == Some(Mutation::ResumeAtTheNewestPartition) {
            let newest = (0..self.disk.partitions).filter_map(|partition| last(partition).ok().flatten());
            return Ok(newest.max_by_key(|(_, control)| control.clock));
        }
        last(partition)
    }

    async fn look_back(&self, topic: Topic, partition: u32, look: &mut Look<'_>) -> Result<(), LogError> {
        self.with(topic, partition, |stream| {
            for (block, records) in stream.records.chunks(BLOCK_RECORDS).enumerate().rev() {
                let first = stream.start + (block * BLOCK_RECORDS) as Offset;
                let mut enough = false;
                for (record, offset) in records.iter().zip(first..) {
                    enough |= look(offset, record);
                }
                if enough {
                    break;
                }
            }
        })
    }

    async fn applied(&self, topic: Topic, partition: u32, offset: Offset) -> Result<(), LogError> {
        let forgets = self.chance().likely(0.1);
        self.with(topic, partition, |stream| {
            stream.applied = stream.applied.max(offset);
            if forgets {
                // What is applied need not be kept, save the place where capture resumes.
                let is_control = |record: &Record| matches!(record.headers.kind, Kind::Control | Kind::Heartbeat);
                let last =
                    stream.records.iter().rposition(is_control).map_or(stream.start, |at| stream.start + at as Offset);
                let keep = stream.applied.min(last).clamp(stream.start, stream.end());
                stream.records.drain(..(keep - stream.start) as usize);
                stream.start = keep;
            }
        })
    }

    async fn size_bytes(&self) -> Result<u64, LogError> {
        let state = self.disk.state.lock().unwrap();
        let records = state.streams.iter().flatten().flat_map(|stream| &stream.records);
        Ok(records.map(|record| record.value.len() as u64).sum())
    }
}

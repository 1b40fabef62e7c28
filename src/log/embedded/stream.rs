//! One topic: its segments, its writer, and what may be dropped. Reading is in `reader`.
//!
//! All partitions of a topic share one chain of segments, so that an append is atomic and one sync makes it durable,
//! whatever partitions it goes to. Readers see only what is durable.

use std::{
    collections::VecDeque,
    fs::{self, File},
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
};

use bytes::Bytes;
use tokio::sync::watch;

use super::{
    EmbeddedSettings,
    frame::{self, Builder, Salt},
    reader::Cursor,
    segment::{self, Header, Segment, SegmentError, Start},
};
use crate::log::{Control, LogError, Offset, Record, Topic};

/// What the streams of a log share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) settings: EmbeddedSettings,
    pub(super) salt: Salt,
    /// The bytes of all segments of all topics.
    pub(super) used: AtomicU64,
}

#[derive(Debug)]
pub(super) struct TopicStream {
    pub(super) topic: Topic,
    pub(super) folder: PathBuf,
    pub(super) shared: Arc<Shared>,
    queue: Mutex<Vec<Pending>>,
    writer: Mutex<Writer>,
    pub(super) state: Mutex<State>,
    /// Held while segments are dropped, so that they go in order.
    retention: Mutex<()>,
    tail: watch::Sender<()>,
}

/// An append that waits for the writer.
#[derive(Debug)]
struct Pending {
    records: Vec<(u32, Record)>,
    answer: mpsc::Sender<Result<(), LogError>>,
}

#[derive(Debug)]
struct Writer {
    file: File,
    builder: Builder,
    /// A write did not end well: what is after the durable end of the file must go before the next one.
    is_torn: bool,
    /// A new segment may be there, or half there: nothing goes to the old one any more.
    must_roll: bool,
}

/// What is durable.
#[derive(Debug)]
pub(super) struct State {
    /// Never empty; each with its length. The last one is written to.
    pub(super) segments: VecDeque<(Arc<Segment>, u64)>,
    pub(super) partitions: Vec<PartitionState>,
}

/// One partition.
#[derive(Debug, Default)]
pub(super) struct PartitionState {
    pub(super) next: Offset,
    applied: Offset,
    /// The value of the last control record, with its offset.
    pub(super) control: Option<(Offset, Bytes)>,
    /// Where the last readers go on, the latest first.
    pub(super) cursors: VecDeque<Cursor>,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What a panicking writer leaves is marked as torn, and the state changes only after a sync.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl TopicStream {
    /// Opens the topic's folder, or makes it.
    pub(super) fn open(root: &Path, topic: Topic, shared: Arc<Shared>) -> Result<Self, LogError> {
        let folder = root.join(topic.suffix());
        let fail = |error| failure(&folder, topic, 0, 0, error);
        let (state, writer) = Self::load(&folder, topic, &shared).map_err(fail)?;
        let bytes = state.segments.iter().map(|(_, len)| len).sum();
        shared.used.fetch_add(bytes, Ordering::Relaxed);
        Ok(TopicStream {
            topic,
            folder,
            shared,
            queue: Mutex::new(Vec::new()),
            writer: Mutex::new(writer),
            state: Mutex::new(state),
            retention: Mutex::new(()),
            tail: watch::Sender::new(()),
        })
    }

    fn load(folder: &Path, topic: Topic, shared: &Shared) -> Result<(State, Writer), SegmentError> {
        fs::create_dir_all(folder)?;
        folder.parent().map_or(Ok(()), segment::sync_folder)?;
        let mut segments = VecDeque::new();
        for sequence in segment::list(folder)? {
            let segment = Segment::open(folder, sequence, shared.salt)?;
            let (len, header) = (segment.file.metadata()?.len(), &segment.header);
            if header.topic != topic.suffix() || header.partitions.len() != shared.settings.partitions as usize {
                return Err(SegmentError::Damaged(format!("segment {sequence} belongs to another log")));
            }
            segments.push_back((Arc::new(segment), len));
        }
        let mut partitions: Vec<PartitionState> =
            (0..shared.settings.partitions).map(|_| PartitionState::default()).collect();
        let Some((last, len)) = segments.back_mut() else {
            let segment = Segment::create(folder, header(topic, 0, &shared.settings, &partitions), shared.salt)?;
            let writer = Writer::new(&segment.path, shared.salt)?;
            let len = segment.start;
            return Ok((State { segments: [(Arc::new(segment), len)].into(), partitions }, writer));
        };
        for (partition, start) in partitions.iter_mut().zip(&last.header.partitions) {
            partition.next = start.first;
            partition.control = start.control.clone().map(|(offset, value)| (offset, value.into()));
        }
        let found = *len;
        *len = last.recover(shared.salt, |frame| restore(&mut partitions, &frame.payload))?;
        if *len < found {
            let torn_bytes = found - *len;
            tracing::warn!(topic = topic.suffix(), torn_bytes, "cut off an append that had not become durable");
            cut(&last.path, *len)?;
        }
        let writer = Writer::new(&last.path, shared.salt)?;
        Ok((State { segments, partitions }, writer))
    }

    /// Appends records and waits until they are durable. Blocks.
    ///
    /// Whoever gets the writer writes for all who wait, with one sync.
    pub(super) fn append(&self, records: Vec<(u32, Record)>) -> Result<(), LogError> {
        let (answer, answered) = mpsc::channel();
        lock(&self.queue).push(Pending { records, answer });
        {
            let mut writer = lock(&self.writer);
            let group = std::mem::take(&mut *lock(&self.queue));
            if !group.is_empty() {
                let written = self.write(&mut writer, &group);
                for pending in &group {
                    let result = written.as_ref().copied().map_err(|error| self.failure_again(error));
                    // A caller that has gone does not mind.
                    let _ = pending.answer.send(result);
                }
            }
        }
        answered.recv().unwrap_or_else(|_| Err(LogError::Other("the log's writer panicked; append again".into())))
    }

    fn write(&self, writer: &mut Writer, group: &[Pending]) -> Result<(), SegmentError> {
        let (active, synced) = self.active();
        if writer.is_torn {
            cut(&active.path, synced)?;
            writer.file = File::options().write(true).open(&active.path)?;
            writer.is_torn = false;
        }
        let is_long = synced >= self.shared.settings.segment_bytes;
        let synced = if is_long || writer.must_roll { self.roll(writer)? } else { synced };

        let mut partitions: Vec<(Offset, Option<(Offset, Bytes)>)> =
            lock(&self.state).partitions.iter().map(|partition| (partition.next, None)).collect();
        writer.is_torn = true;
        let mut at = synced;
        for pending in group {
            let Writer { file, builder, .. } = &mut *writer;
            builder.begin();
            let mut records = pending.records.iter().peekable();
            while let Some((partition, record)) = records.next() {
                let unknown = || SegmentError::Damaged(format!("there is no partition {partition}"));
                let (next, control) = partitions.get_mut(*partition as usize).ok_or_else(unknown)?;
                builder.push(*partition, *next, record);
                if record.headers.kind.is_resumable() {
                    *control = Some((*next, record.value.clone()));
                }
                *next += 1;
                let is_last = records.peek().is_none();
                if is_last || builder.is_full() {
                    for piece in builder.finish(synced, if is_last { frame::FLAG_END } else { 0 }) {
                        file.write_all_at(piece, at)?;
                        at += piece.len() as u64;
                    }
                    builder.begin();
                }
            }
        }
        writer.file.sync_data()?;
        writer.is_torn = false;

        self.shared.used.fetch_add(at - synced, Ordering::Relaxed);
        let mut state = lock(&self.state);
        if let Some((_, len)) = state.segments.back_mut() {
            *len = at;
        }
        for (partition, (next, control)) in state.partitions.iter_mut().zip(partitions) {
            partition.next = next;
            partition.control = control.or_else(|| partition.control.take());
        }
        drop(state);
        self.tail.send_replace(());
        Ok(())
    }

    /// The segment that is written to, and its length.
    fn active(&self) -> (Arc<Segment>, u64) {
        let state = lock(&self.state);
        let last = state.segments.len() - 1;
        let (segment, len) = &state.segments[last];
        (Arc::clone(segment), *len)
    }

    /// Begins a new segment; its length.
    fn roll(&self, writer: &mut Writer) -> Result<u64, SegmentError> {
        let header = {
            let (active, _) = self.active();
            header(self.topic, active.header.sequence + 1, &self.shared.settings, &lock(&self.state).partitions)
        };
        writer.must_roll = true;
        let segment = Segment::create(&self.folder, header, self.shared.salt)?;
        *writer = Writer::new(&segment.path, self.shared.salt)?;
        let len = segment.start;
        self.shared.used.fetch_add(len, Ordering::Relaxed);
        lock(&self.state).segments.push_back((Arc::new(segment), len));
        Ok(len)
    }

    /// The segment of that number, with its durable length.
    pub(super) fn segment(&self, sequence: u64) -> Option<(Arc<Segment>, u64)> {
        let state = lock(&self.state);
        let oldest = state.segments.front()?.0.header.sequence;
        let index = usize::try_from(sequence.checked_sub(oldest)?).ok()?;
        state.segments.get(index).map(|(segment, len)| (Arc::clone(segment), *len))
    }

    /// The first offset held and the one after the last.
    pub(super) fn bounds(&self, partition: u32) -> (Offset, Offset) {
        let state = lock(&self.state);
        let first = state.segments.front().and_then(|(s, _)| s.header.partitions.get(partition as usize));
        let next = state.partitions.get(partition as usize);
        (first.map_or(0, |start| start.first), next.map_or(0, |partition| partition.next))
    }

    pub(super) fn last_control(&self, partition: u32) -> Result<Option<(Offset, Control)>, LogError> {
        let stored =
            lock(&self.state).partitions.get(partition as usize).and_then(|partition| partition.control.clone());
        let Some((offset, value)) = stored else { return Ok(None) };
        let control = serde_json::from_slice(&value).map_err(|error| LogError::Corrupt {
            topic: self.topic.suffix(),
            partition,
            offset,
            reason: format!("the control record is invalid: {error}"),
        })?;
        Ok(Some((offset, control)))
    }

    /// Wakes at every append from here on.
    pub(super) fn subscribe(&self) -> watch::Receiver<()> {
        self.tail.subscribe()
    }

    /// Notes what is applied; whether a segment may be dropped now.
    pub(super) fn applied(&self, partition: u32, offset: Offset) -> bool {
        let mut state = lock(&self.state);
        if let Some(partition) = state.partitions.get_mut(partition as usize) {
            partition.applied = partition.applied.max(offset).min(partition.next);
        }
        self.droppable(&state, 0)
    }

    /// Whether the oldest segment is applied, and is too old or in the way of `wanted` bytes more.
    fn droppable(&self, state: &State, wanted: u64) -> bool {
        let Some((next, _)) = state.segments.get(1) else { return false };
        let is_applied = state
            .partitions
            .iter()
            .zip(&next.header.partitions)
            .all(|(partition, start)| partition.applied >= start.first);
        let settings = &self.shared.settings;
        let age_ms = (settings.now_ms)().saturating_sub(next.header.created_ms);
        let is_old = age_ms > settings.retention_ms;
        is_applied && (is_old || self.shared.used.load(Ordering::Relaxed).saturating_add(wanted) > settings.bytes_max)
    }

    /// Drops what is applied and too old, or in the way of `wanted` bytes more. Blocks.
    pub(super) fn drop_applied(&self, wanted: u64) {
        let _in_order = lock(&self.retention);
        loop {
            let mut state = lock(&self.state);
            if !self.droppable(&state, wanted) {
                return;
            }
            let Some((segment, len)) = state.segments.pop_front() else { return };
            drop(state);
            let removed = fs::remove_file(&segment.path).and_then(|()| segment::sync_folder(&self.folder));
            if let Err(error) = removed {
                let segment = segment.header.sequence;
                tracing::warn!(topic = self.topic.suffix(), segment, %error, "an applied segment could not be removed");
            }
            self.shared.used.fetch_sub(len, Ordering::Relaxed);
        }
    }

    /// Closes the segment that is written to if all of it is applied, so that it can be dropped. Blocks.
    pub(super) fn close_applied(&self) -> Result<(), LogError> {
        let mut writer = lock(&self.writer);
        let (active, len) = self.active();
        let is_applied = lock(&self.state).partitions.iter().all(|partition| partition.applied >= partition.next);
        if writer.is_torn || !is_applied || len == active.start {
            return Ok(());
        }
        self.roll(&mut writer).map(drop).map_err(|error| failure(&self.folder, self.topic, 0, 0, error))
    }

    /// The same failure for each of those who share it.
    fn failure_again(&self, error: &SegmentError) -> LogError {
        let copy = match error {
            SegmentError::Io(error) => SegmentError::Io(match error.raw_os_error() {
                Some(code) => io::Error::from_raw_os_error(code),
                None => io::Error::new(error.kind(), error.to_string()),
            }),
            SegmentError::Damaged(reason) => SegmentError::Damaged(reason.clone()),
            SegmentError::NewerFormat(found) => SegmentError::NewerFormat(*found),
        };
        failure(&self.folder, self.topic, 0, 0, copy)
    }

    /// Makes every write fail, as a full disk does, until the writer opens its file again.
    #[cfg(test)]
    pub(super) fn fill_disk(&self) {
        lock(&self.writer).file = File::options().write(true).open("/dev/full").expect("/dev/full");
    }
}

impl Writer {
    fn new(path: &Path, salt: Salt) -> io::Result<Self> {
        let file = File::options().write(true).open(path)?;
        Ok(Writer { file, builder: Builder::new(salt), is_torn: false, must_roll: false })
    }
}

/// The header of a segment that begins where the partitions stand.
fn header(topic: Topic, sequence: u64, settings: &EmbeddedSettings, partitions: &[PartitionState]) -> Header {
    let start = |partition: &PartitionState| {
        let control = partition.control.as_ref();
        let control = control.map(|(offset, value)| (*offset, String::from_utf8_lossy(value).into_owned()));
        Start { first: partition.next, control }
    };
    Header {
        format: segment::FORMAT,
        topic: topic.suffix().to_owned(),
        sequence,
        created_ms: (settings.now_ms)(),
        partitions: partitions.iter().map(start).collect(),
    }
}

/// Moves the partitions past a frame's records.
pub(super) fn restore(partitions: &mut [PartitionState], payload: &Bytes) -> Result<(), SegmentError> {
    let damaged = || SegmentError::Damaged("a record batch is not well formed".into());
    for run in frame::runs(payload).ok_or_else(damaged)? {
        let partition = partitions
            .get_mut(run.partition as usize)
            .filter(|partition| partition.next == run.first)
            .ok_or_else(damaged)?;
        partition.next = run.end();
        for record in run {
            let (offset, record) = record.ok_or_else(damaged)?;
            if record.headers.kind.is_resumable() {
                // A copy, which does not keep all that was read with it.
                partition.control = Some((offset, Bytes::copy_from_slice(&record.value)));
            }
        }
    }
    Ok(())
}

/// Cuts a file off, durably.
fn cut(path: &Path, len: u64) -> io::Result<()> {
    let file = File::options().write(true).open(path)?;
    file.set_len(len)?;
    file.sync_all()
}

pub(super) fn failure(folder: &Path, topic: Topic, partition: u32, offset: Offset, error: SegmentError) -> LogError {
    let path = folder.display().to_string();
    match error {
        SegmentError::Io(source) => LogError::Disk { path, source },
        SegmentError::Damaged(reason) => LogError::Corrupt { topic: topic.suffix(), partition, offset, reason },
        SegmentError::NewerFormat(found) => LogError::NewerFormat { path, found, supported: segment::FORMAT },
    }
}

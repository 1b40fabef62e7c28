//! Reading a topic back, by partition and offset.
//!
//! Readers mostly go on where they stopped, so each partition remembers its last few; any other
//! offset is found by scanning one segment. Nothing is cached: the tail is in the system's page cache anyway.

use std::io;

use super::{
    frame::{self, Frame},
    segment::{Frames, Segment, SegmentError},
    stream::{TopicStream, failure, lock},
};
use crate::log::{LogError, Offset, Stored};

/// How many readers of a partition are remembered.
const CURSORS_MAX: usize = 4;

/// Where a reader that asks for `serves` next finds it.
#[derive(Debug, Clone)]
pub(super) struct Cursor {
    serves: Offset,
    sequence: u64,
    /// The front of a frame.
    at: u64,
    /// The offset of the partition's next record from there on.
    expected: Offset,
}

/// What a read has found so far.
struct Found {
    records: Vec<Stored>,
    bytes: u64,
    bytes_max: u64,
}

impl Found {
    fn is_full(&self) -> bool {
        self.bytes >= self.bytes_max && !self.records.is_empty()
    }
}

impl TopicStream {
    /// Reads records of a partition from an offset that it has; none if it was dropped meanwhile. Blocks.
    pub(super) fn read(&self, partition: u32, from: Offset, bytes_max: usize) -> Result<Vec<Stored>, LogError> {
        let mut cursor = self.cursor(partition, from)?;
        let mut found = Found { records: Vec::new(), bytes: 0, bytes_max: bytes_max as u64 };
        let mut read = self.read_segments(partition, &mut cursor, &mut found);
        if read.is_ok() && found.records.is_empty() && self.bounds(partition).0 <= from {
            read = Err(SegmentError::Damaged("the record is not there".into()));
        }
        read.map_err(|error| self.read_failure(partition, cursor.expected, error))?;
        if let Some(partition_state) = lock(&self.state).partitions.get_mut(partition as usize) {
            partition_state.cursors.truncate(CURSORS_MAX - 1);
            partition_state.cursors.push_front(cursor);
        }
        Ok(found.records)
    }

    fn read_failure(&self, partition: u32, expected: Offset, error: SegmentError) -> LogError {
        let error = match error {
            SegmentError::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                SegmentError::Damaged("the file is shorter than what was written".into())
            }
            SegmentError::Io(error) => {
                let folder = self.folder.display();
                return LogError::Other(format!("reading in {folder} failed ({error}); check the disk"));
            }
            SegmentError::Damaged(_) | SegmentError::NewerFormat(_) => error,
        };
        failure(&self.folder, self.topic, partition, expected, error)
    }

    fn cursor(&self, partition: u32, from: Offset) -> Result<Cursor, LogError> {
        let mut state = lock(&self.state);
        let partition_index = partition as usize;
        let oldest = state.segments.front().map_or(0, |(segment, _)| segment.header.sequence);
        if let Some(partition_state) = state.partitions.get_mut(partition_index)
            && let Some(index) = partition_state.cursors.iter().position(|cursor| cursor.serves == from)
            && let Some(cursor) = partition_state.cursors.remove(index)
            && cursor.sequence >= oldest
        {
            return Ok(cursor);
        }
        let first = |segment: &Segment| segment.header.partitions.get(partition_index).map(|start| start.first);
        let holds = |segment: &Segment| first(segment).filter(|first| *first <= from);
        let holder = state.segments.iter().rev().find_map(|(segment, _)| Some((segment, holds(segment)?)));
        match holder {
            Some((segment, expected)) => {
                let (sequence, at) = (segment.header.sequence, segment.start);
                Ok(Cursor { serves: from, sequence, at, expected })
            }
            None => {
                let start = state.segments.front().and_then(|(segment, _)| first(segment)).unwrap_or_default();
                Err(LogError::Trimmed { topic: self.topic.suffix(), partition, wanted: from, start })
            }
        }
    }

    fn read_segments(&self, partition: u32, cursor: &mut Cursor, found: &mut Found) -> Result<(), SegmentError> {
        while let Some((segment, len)) = self.segment(cursor.sequence) {
            let first = segment.header.partitions.get(partition as usize).map(|start| start.first);
            if cursor.at == segment.start && first != Some(cursor.expected) {
                return Err(SegmentError::Damaged("the segment before ends too early".into()));
            }
            let mut frames = Frames::new(&segment.file, self.shared.salt, cursor.at, len);
            // What is enough is known before the next frame, which may be as large as a row.
            while !found.is_full()
                && let Some(frame) = frames.next_frame()?
            {
                let Some(expected) = take(&frame, partition, cursor, found)? else { return Ok(()) };
                (cursor.expected, cursor.at) = (expected, frames.at());
            }
            let Some((next, _)) = self.segment(cursor.sequence + 1) else { return Ok(()) };
            // The segment may have grown before it was closed.
            if self.segment(cursor.sequence).is_none_or(|(_, len)| cursor.at >= len) {
                (cursor.sequence, cursor.at) = (next.header.sequence, next.start);
            }
            if found.is_full() {
                return Ok(());
            }
        }
        Ok(())
    }
}

/// Takes the frame's records of the partition, from the cursor's offset on. The partition's offset after the frame,
/// or none if some are left for the next read, which begins at this frame again.
fn take(frame: &Frame, partition: u32, cursor: &mut Cursor, found: &mut Found) -> Result<Option<Offset>, SegmentError> {
    let damaged = || SegmentError::Damaged("a record batch is not well formed".into());
    let mut expected = cursor.expected;
    for run in frame::runs(&frame.payload).ok_or_else(damaged)? {
        if run.partition != partition {
            continue;
        }
        if run.first != expected {
            return Err(SegmentError::Damaged(format!("offset {} follows instead", run.first)));
        }
        expected = run.end();
        if run.end() <= cursor.serves {
            continue;
        }
        for record in run {
            let (offset, record) = record.ok_or_else(damaged)?;
            if offset < cursor.serves {
                continue;
            }
            if found.is_full() {
                return Ok(None);
            }
            found.bytes += frame::size(&record);
            found.records.push(Stored { offset, record });
            cursor.serves = offset + 1;
        }
    }
    Ok(Some(expected))
}

//! What the fuzz target of segments runs: a segment's file is written, damaged and recovered, in memory, and what is
//! recovered is compared with what was written; or it holds arbitrary payloads behind right checksums.

use std::{io, ops::Range, os::unix::fs::FileExt};

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::{
    frame::{self, Builder, Frame, Salt},
    segment::{FORMAT, Frames, Header, SegmentError, Start, recover},
    stream::{PartitionState, restore},
};
use crate::{
    log::{Headers, Kind, Offset, Record, TransactionPart},
    model::fuzz::Input,
};

/// Bounds of what is written.
const PARTITIONS_MAX: usize = 3;
const FRAMES_MAX: usize = 64;
const RECORDS_MAX: usize = 4;
const SEQUENCE: u64 = 7;

/// A file's bytes in memory.
struct Image(Vec<u8>);

impl Image {
    fn len(&self) -> u64 {
        self.0.len() as u64
    }
}

impl FileExt for Image {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(self.0.len());
        let count = buffer.len().min(self.0.len() - from);
        buffer[..count].copy_from_slice(&self.0[from..from + count]);
        Ok(count)
    }

    fn write_at(&self, _: &[u8], _: u64) -> io::Result<usize> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }
}

/// The first byte says whether records are written and damaged, or payloads are made up.
pub fn segment(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    // In production it is random: what a record holds never has it.
    let digest = Sha256::digest(bytes);
    let salt: Salt = digest.first_chunk().copied().unwrap_or_default();
    if input.byte() & 1 == 0 { damaged(&mut input, salt) } else { made_up(&mut input, salt) }
}

/// One record as it was written.
type Written = (u32, Offset, Record);

/// A frame of the image.
struct WrittenFrame {
    bytes: Range<u64>,
    /// Which group it was written in.
    group: usize,
    /// Ends an append: how many records there are so far.
    records: Option<usize>,
}

/// What was written.
struct Model {
    image: Image,
    start: u64,
    partitions: usize,
    frames: Vec<WrittenFrame>,
    records: Vec<Written>,
}

fn damaged(input: &mut Input<'_>, salt: Salt) {
    // First of all: what is written takes all the rest.
    let damage = Damage { kind: input.below(5), place: input.number(), bytes: input.bytes() };
    let model = write(input, salt);
    let (image, damage) = damage.done_to(&model);
    let (found, recovered) = read_back(&image, salt, model.start, model.partitions);
    let intact = |frame: &WrittenFrame| frame.bytes.start >= damage.end && frame.bytes.end <= image.len();
    let hit = model.frames.iter().find(|frame| frame.bytes.end > damage.start);
    let is_known_durable =
        hit.is_some_and(|hit| model.frames.iter().any(|frame| frame.group > hit.group && intact(frame)));
    match recovered {
        Ok(end) => {
            assert!(!is_known_durable, "what was durable is damaged, and was cut off in silence");
            let whole = model.frames.iter().take_while(|frame| frame.bytes.end <= damage.start);
            let last = whole.filter(|frame| frame.records.is_some()).last();
            assert_eq!(end, last.map_or(model.start, |frame| frame.bytes.end), "every whole append stays, and no part");
            let kept = last.and_then(|frame| frame.records).unwrap_or_default();
            assert!(found.iter().eq(model.records.iter().take(kept)), "what is read is what was written");
            let mut cut = image;
            cut.0.truncate(usize::try_from(end).unwrap_or(usize::MAX));
            let (again, recovered) = read_back(&cut, salt, model.start, model.partitions);
            assert!(matches!(recovered, Ok(len) if len == end) && again == found, "what was cut off reads whole");
        }
        Err(SegmentError::Damaged(_)) => assert!(is_known_durable, "a torn tail is no damage"),
        Err(error) => assert!(matches!(error, SegmentError::Damaged(_)), "nothing else can be wrong: {error:?}"),
    }
}

/// Groups of appends of frames of records, as the writer writes them.
fn write(input: &mut Input<'_>, salt: Salt) -> Model {
    let partitions = 1 + input.below(PARTITIONS_MAX);
    let mut builder = Builder::new(salt);
    let start = Start { first: 0, control: None };
    let (topic, created_ms) = ("changes".to_owned(), 0);
    let header = Header { format: FORMAT, topic, sequence: SEQUENCE, created_ms, partitions: vec![start; partitions] };
    builder.begin();
    builder.push_raw(&serde_json::to_vec(&header).unwrap_or_default());
    let mut image = Image(builder.finish(0, frame::FLAG_SEGMENT).concat());
    let start = image.len();
    let read = Header::read(&image, start, SEQUENCE, salt).ok();
    assert_eq!(read, Some((header, start)), "a header reads back as it was written");

    let (mut frames, mut records): (Vec<WrittenFrame>, Vec<Written>) = (Vec::new(), Vec::new());
    let mut next = vec![0; partitions];
    let (mut group, mut synced, mut open) = (0, start, false);
    while frames.len() < FRAMES_MAX && (open || !input.is_empty()) {
        builder.begin();
        for _ in 0..1 + input.below(RECORDS_MAX) {
            let partition = input.below(partitions);
            let (number, record) = (u32::try_from(partition).unwrap_or_default(), record(input));
            builder.push(number, next[partition], &record);
            records.push((number, next[partition], record));
            next[partition] += 1;
        }
        let shape = input.byte();
        // An append may have several frames, and a group several appends.
        open = shape & 3 == 3 && !input.is_empty();
        let from = image.len();
        image.0.extend_from_slice(&builder.finish(synced, if open { 0 } else { frame::FLAG_END }).concat());
        frames.push(WrittenFrame { bytes: from..image.len(), group, records: (!open).then_some(records.len()) });
        if !open && shape & 4 == 4 {
            (group, synced) = (group + 1, image.len());
        }
    }
    Model { image, start, partitions, frames, records }
}

fn record(input: &mut Input<'_>) -> Record {
    let bits = input.byte();
    let kind = Kind::ALL[usize::from(bits & 0x1f) % Kind::ALL.len()];
    let transaction = if bits & 0x20 == 0 { TransactionPart::End } else { TransactionPart::Open };
    let schema = (bits & 0x40 != 0).then(|| input.number());
    let numbers = if bits & 0x80 == 0 { (1, 2) } else { (input.number(), input.number()) };
    let (version, commit_us) = (numbers.0.cast_signed(), numbers.1.cast_signed());
    let headers = Headers { kind, version, commit_us, schema, transaction };
    Record { key: Bytes::copy_from_slice(input.bytes()), value: Bytes::copy_from_slice(input.bytes()), headers }
}

/// What happens to a file.
struct Damage<'a> {
    kind: usize,
    /// Where, behind the header; the remainder counts.
    place: u64,
    bytes: &'a [u8],
}

impl Damage<'_> {
    /// The image afterwards, and where it is damaged: from the first byte that differs to the last.
    fn done_to(&self, model: &Model) -> (Image, Range<u64>) {
        let before = &model.image.0;
        let start = usize::try_from(model.start).unwrap_or_default();
        let room = (before.len() - start) as u64;
        let place = start + usize::try_from(self.place % (room + 1)).unwrap_or_default();
        let mut after = before.clone();
        match self.kind {
            0 => after.truncate(place),
            1 => after[place..].iter_mut().take(1).for_each(|byte| *byte ^= 0x10),
            2 => after[place..].fill(0),
            3 => after[place..].iter_mut().zip(self.bytes).for_each(|(byte, new)| *byte = *new),
            _ => after.extend_from_slice(self.bytes),
        }
        let differs = |at: &usize| before.get(*at) != after.get(*at);
        let len = before.len().max(after.len());
        let first = (start..len).find(differs).unwrap_or(len);
        let last = (first..len).rev().find(differs).map_or(first, |last| last + 1);
        (Image(after), first as u64..last as u64)
    }
}

/// What recovery finds: the records, in order, and how much of the image is whole.
fn read_back(image: &Image, salt: Salt, start: u64, partitions: usize) -> (Vec<Written>, Result<u64, SegmentError>) {
    let mut lanes: Vec<PartitionState> = (0..partitions).map(|_| PartitionState::default()).collect();
    let mut records = Vec::new();
    let recovered = recover(image, salt, start, image.len(), |frame| {
        restore(&mut lanes, &frame.payload)?;
        records.extend(records_of(frame));
        Ok(())
    });
    for (partition, lane) in (0u32..).zip(&lanes) {
        let own = || records.iter().filter(|(of, _, _)| *of == partition);
        if recovered.is_ok() {
            assert!(own().map(|(_, offset, _)| *offset).eq(0..lane.next), "offsets follow each other");
            let control = own().rfind(|(_, _, record)| record.headers.kind.is_resumable());
            let control = control.map(|(_, offset, record)| (*offset, record.value.clone()));
            assert_eq!(lane.control, control, "the last control record is known");
        }
    }
    (records, recovered)
}

/// The records of a frame up to the first that is not well formed.
fn records_of(frame: &Frame) -> Vec<Written> {
    let mut records = Vec::new();
    for run in frame::runs(&frame.payload).into_iter().flatten() {
        let partition = run.partition;
        records.extend(run.map_while(|record| record.map(|(offset, record)| (partition, offset, record))));
    }
    records
}

/// Frames of any payload and flags, whose checksums are right, and bytes between them.
fn made_up(input: &mut Input<'_>, salt: Salt) {
    let mut builder = Builder::new(salt);
    let mut image = Image(Vec::new());
    while image.0.is_empty() || !input.is_empty() && image.0.len() < 1 << 16 {
        builder.begin();
        for _ in 0..input.below(RECORDS_MAX) {
            builder.push(u32::from(input.byte() & 3), input.number() >> (input.byte() % 64), &record(input));
        }
        builder.push_raw(input.bytes());
        let (flags, synced) = (input.byte(), u64::from(input.byte()));
        image.0.extend_from_slice(&builder.finish(synced, flags).concat());
        if flags & 4 == 4 {
            image.0.extend_from_slice(input.bytes());
        }
    }
    let header = Header::read(&image, image.len(), SEQUENCE, salt);
    if let Ok((header, start)) = header {
        let json = serde_json::to_vec(&header).unwrap_or_default();
        assert_eq!(serde_json::from_slice(&json).ok().as_ref(), Some(&header), "a header reads back as it is written");
        assert!(start <= image.len());
    }
    let (found, recovered) = read_back(&image, salt, 0, PARTITIONS_MAX);
    if let Ok(end) = recovered {
        assert!(end <= image.len());
        image.0.truncate(usize::try_from(end).unwrap_or(usize::MAX));
        let (again, recovered) = read_back(&image, salt, 0, PARTITIONS_MAX);
        assert!(matches!(recovered, Ok(len) if len == end) && again == found, "what was cut off reads whole");
    }
    let mut frames = Frames::new(&image, salt, 0, image.len());
    while let Ok(Some(frame)) = frames.next_frame() {
        rewrite(&frame, salt);
    }
}

/// What decodes encodes to what decodes the same.
fn rewrite(frame: &Frame, salt: Salt) {
    for run in frame::runs(&frame.payload).into_iter().flatten() {
        let (partition, mut builder) = (run.partition, Builder::new(salt));
        let records: Vec<(Offset, Record)> = run.map_while(|record| record).collect();
        let bytes: usize = records.iter().map(|(_, record)| record.key.len() + record.value.len()).sum();
        assert!(bytes <= frame.payload.len(), "records take no more room than their frame");
        builder.begin();
        records.iter().for_each(|(offset, record)| builder.push(partition, *offset, record));
        let written = Bytes::from(builder.finish(0, frame::FLAG_END).concat());
        let read = match frame::parse(&written, &salt) {
            frame::Parsed::Frame(frame) => Some(records_of(&frame)),
            frame::Parsed::Needs(_) | frame::Parsed::Damaged(_) => None,
        };
        let expected = records.into_iter().map(|(offset, record)| (partition, offset, record)).collect();
        assert_eq!(read, Some(expected), "records read back as they were written");
    }
}

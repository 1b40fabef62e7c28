//! The bytes of a segment file: frames, each a batch of records behind a checksum. Pure, no IO.
//!
//! ```text
//! frame   = salt[8] length:u32 crc:u32 synced:u64 flags:u8 payload[length]      (little endian)
//! payload = run*                                   (of a segment's first frame: its header as JSON)
//! run     = partition:u32 first:u64 count:u32 length:u32 record*
//! record  = kind:u8 version:i64 commit_us:i64 [schema:u64] key_length:u32 value_length:u32 key value
//! ```
//!
//! The salt is the log's own and random, so that no row's content can pass for a frame, nor another log's
//! segment for this one's. `synced` is how long the file was when the frame's group was begun: all of that was
//! durable, which is what tells a torn tail (nothing after it refers to it) from a damaged middle.
//! The CRC covers everything from `length` on save itself.

use bytes::Bytes;

use crate::log::{Headers, Kind, Offset, Record, TransactionPart};

/// A frame's bytes before its payload.
pub(super) const HEADER_LEN: usize = 25;
/// A frame is closed once it has this many bytes, so it is longer by at most one record.
pub(super) const FRAME_BYTES: usize = 256 << 10;
/// The last frame of an append: recovery cuts only after one.
pub(super) const FLAG_END: u8 = 1;
/// A segment's first frame.
pub(super) const FLAG_SEGMENT: u8 = 2;

/// A value that is longer goes to the file from where it is.
const COPIED_BYTES_MAX: usize = 64 << 10;

const RUN_LEN: usize = 20;
const RECORD_LEN_MAX: usize = 33;
const SCHEMA_BIT: u8 = 0x40;
const OPEN_BIT: u8 = 0x80;

/// Random bytes that mark this log's frames.
pub(super) type Salt = [u8; 8];

/// A frame whose checksum is right.
#[derive(Debug, Clone)]
pub(super) struct Frame {
    pub(super) flags: u8,
    pub(super) synced: u64,
    pub(super) payload: Bytes,
    /// How many bytes the whole frame has.
    pub(super) len: usize,
}

/// What is at the front of some bytes.
#[derive(Debug)]
pub(super) enum Parsed {
    Frame(Frame),
    /// So far it may be a frame, of at least this many bytes.
    Needs(usize),
    Damaged(&'static str),
}

/// Reads the frame at the front of `bytes`.
pub(super) fn parse(bytes: &Bytes, salt: &Salt) -> Parsed {
    if !salt.starts_with(&bytes[..bytes.len().min(salt.len())]) {
        return Parsed::Damaged("there is no record batch where one should be");
    }
    let Some((header, rest)) = bytes.split_at_checked(HEADER_LEN) else { return Parsed::Needs(HEADER_LEN) };
    let mut fields = Reader(&header[8..]);
    let (Some(length), Some(crc), Some(synced)) = (fields.u32(), fields.u32(), fields.u64()) else {
        return Parsed::Needs(HEADER_LEN);
    };
    let len = HEADER_LEN + length as usize;
    if rest.len() < length as usize {
        return Parsed::Needs(len);
    }
    if checksum(&bytes[8..12], &bytes[16..len]) != crc {
        return Parsed::Damaged("the checksum of a record batch does not match");
    }
    Parsed::Frame(Frame { flags: header[24], synced, payload: bytes.slice(HEADER_LEN..len), len })
}

fn checksum(length: &[u8], rest: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(length);
    hasher.update(rest);
    hasher.finalize()
}

/// Builds frames one after the other in one buffer.
#[derive(Debug)]
pub(super) struct Builder {
    salt: Salt,
    buffer: Vec<u8>,
    /// Long values, each with its place in the buffer, which has all else.
    long: Vec<(usize, Bytes)>,
    long_bytes: usize,
    run: Option<Run>,
}

/// The run that is being written.
#[derive(Debug)]
struct Run {
    partition: u32,
    start: usize,
    /// The bytes of long values before it.
    long_bytes: usize,
    count: u32,
}

impl Builder {
    pub(super) fn new(salt: Salt) -> Self {
        Builder { salt, buffer: Vec::new(), long: Vec::new(), long_bytes: 0, run: None }
    }

    /// Begins a frame, giving up what was there.
    pub(super) fn begin(&mut self) {
        // One huge row must not keep its memory for the life of the log.
        self.long.clear();
        self.long_bytes = 0;
        self.buffer.clear();
        self.buffer.shrink_to(2 * FRAME_BYTES);
        self.buffer.resize(HEADER_LEN, 0);
        self.run = None;
    }

    pub(super) fn is_full(&self) -> bool {
        self.buffer.len() + self.long_bytes >= FRAME_BYTES
    }

    /// Adds a record that has this offset.
    pub(super) fn push(&mut self, partition: u32, offset: Offset, record: &Record) {
        if self.run.as_ref().is_none_or(|run| run.partition != partition) {
            self.end_run();
            self.run = Some(Run { partition, start: self.buffer.len(), long_bytes: self.long_bytes, count: 0 });
            self.buffer.extend_from_slice(&partition.to_le_bytes());
            self.buffer.extend_from_slice(&offset.to_le_bytes());
            self.buffer.extend_from_slice(&[0; 8]);
        }
        if let Some(run) = &mut self.run {
            run.count += 1;
        }
        let headers = &record.headers;
        let open = if headers.transaction == TransactionPart::Open { OPEN_BIT } else { 0 };
        let has_schema = if headers.schema.is_some() { SCHEMA_BIT } else { 0 };
        self.buffer.push(headers.kind.code() | open | has_schema);
        self.buffer.extend_from_slice(&headers.version.to_le_bytes());
        self.buffer.extend_from_slice(&headers.commit_us.to_le_bytes());
        if let Some(schema) = headers.schema {
            self.buffer.extend_from_slice(&schema.to_le_bytes());
        }
        self.buffer.extend_from_slice(&length(record.key.len()).to_le_bytes());
        self.buffer.extend_from_slice(&length(record.value.len()).to_le_bytes());
        self.buffer.extend_from_slice(&record.key);
        if record.value.len() > COPIED_BYTES_MAX {
            self.long_bytes += record.value.len();
            self.long.push((self.buffer.len(), record.value.clone()));
        } else {
            self.buffer.extend_from_slice(&record.value);
        }
    }

    /// Adds bytes that are no records.
    pub(super) fn push_raw(&mut self, payload: &[u8]) {
        self.buffer.extend_from_slice(payload);
    }

    /// Closes the frame; its bytes, piece by piece.
    pub(super) fn finish(&mut self, synced: u64, flags: u8) -> Vec<&[u8]> {
        self.end_run();
        let payload = length(self.buffer.len() - HEADER_LEN + self.long_bytes);
        self.buffer[..8].copy_from_slice(&self.salt);
        self.buffer[8..12].copy_from_slice(&payload.to_le_bytes());
        self.buffer[16..24].copy_from_slice(&synced.to_le_bytes());
        self.buffer[24] = flags;
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&self.buffer[8..12]);
        self.pieces(16).into_iter().for_each(|piece| hasher.update(piece));
        self.buffer[12..16].copy_from_slice(&hasher.finalize().to_le_bytes());
        self.pieces(0)
    }

    /// The frame's bytes from this place of the buffer on.
    fn pieces(&self, from: usize) -> Vec<&[u8]> {
        let (mut pieces, mut at) = (Vec::with_capacity(2 * self.long.len() + 1), from);
        for (place, value) in &self.long {
            pieces.push(&self.buffer[at..*place]);
            pieces.push(value.as_ref());
            at = *place;
        }
        pieces.push(&self.buffer[at..]);
        pieces
    }

    fn end_run(&mut self) {
        let Some(run) = self.run.take() else { return };
        let bytes = length(self.buffer.len() - run.start - RUN_LEN + self.long_bytes - run.long_bytes);
        self.buffer[run.start + 12..run.start + 16].copy_from_slice(&run.count.to_le_bytes());
        self.buffer[run.start + 16..run.start + 20].copy_from_slice(&bytes.to_le_bytes());
    }
}

/// A length that [`fits`] has checked.
fn length(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

/// The bytes that a record takes in a frame, about.
pub(super) fn size(record: &Record) -> u64 {
    (RECORD_LEN_MAX + record.key.len() + record.value.len()) as u64
}

/// Whether a record is short enough for a frame.
pub(super) fn fits(record: &Record) -> bool {
    size(record) + (2 * FRAME_BYTES) as u64 <= u64::from(u32::MAX)
}

/// Records of one partition with offsets that follow each other.
#[derive(Debug, Clone)]
pub(super) struct Records {
    pub(super) partition: u32,
    pub(super) first: Offset,
    pub(super) count: u32,
    bytes: Bytes,
}

/// The runs of a payload; `None` if it is not well formed.
pub(super) fn runs(payload: &Bytes) -> Option<Vec<Records>> {
    let mut runs = Vec::new();
    let mut at = 0;
    while at < payload.len() {
        let mut fields = Reader(payload.get(at..at + RUN_LEN)?);
        let (partition, first, count, len) = (fields.u32()?, fields.u64()?, fields.u32()?, fields.u32()? as usize);
        let start = at + RUN_LEN;
        at = start.checked_add(len).filter(|end| *end <= payload.len())?;
        first.checked_add(u64::from(count))?;
        runs.push(Records { partition, first, count, bytes: payload.slice(start..at) });
    }
    Some(runs)
}

impl Records {
    /// The offset after the last one.
    pub(super) fn end(&self) -> Offset {
        self.first + u64::from(self.count)
    }
}

/// Hands out the records with their offsets; one that is not well formed as `None`.
impl Iterator for Records {
    type Item = Option<(Offset, Record)>;

    fn next(&mut self) -> Option<Self::Item> {
        self.count = self.count.checked_sub(1)?;
        let offset = self.first;
        self.first += 1;
        let record = record(&mut self.bytes);
        if record.is_none() {
            self.count = 0;
        }
        Some(record.map(|record| (offset, record)))
    }
}

fn record(bytes: &mut Bytes) -> Option<Record> {
    let mut fields = Reader(bytes);
    let bits = fields.array::<1>()?[0];
    let kind = *Kind::ALL.get(usize::from(bits & !(OPEN_BIT | SCHEMA_BIT)))?;
    let transaction = if bits & OPEN_BIT == 0 { TransactionPart::End } else { TransactionPart::Open };
    let version = i64::from_le_bytes(fields.array()?);
    let commit_us = i64::from_le_bytes(fields.array()?);
    let schema = if bits & SCHEMA_BIT == 0 { None } else { Some(fields.u64()?) };
    let (key, value) = (fields.u32()? as usize, fields.u32()? as usize);
    let fixed = bytes.len() - fields.0.len();
    if fields.0.len() < key.checked_add(value)? {
        return None;
    }
    drop(bytes.split_to(fixed));
    let headers = Headers { kind, version, commit_us, schema, transaction };
    Some(Record { key: bytes.split_to(key), value: bytes.split_to(value), headers })
}

/// Little-endian fields off the front of a slice.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (array, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*array)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }
}

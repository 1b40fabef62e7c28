//! Segment files: creating, listing, reading and recovering them.
//!
//! A segment is complete from its first appearance: it is written under another name, synced and renamed,
//! so a header that does not read is damage and never a crash. Only the last segment may end in a torn write.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::frame::{self, Frame, Parsed, Salt};
use crate::log::Offset;

/// The format of segment files written by this release.
pub(super) const FORMAT: u32 = 1;
/// How much is read at once.
const CHUNK_BYTES: u64 = 1 << 20;

const SUFFIX: &str = ".segment";
const UNFINISHED: &str = ".unfinished";

/// A segment's first frame: what is known before its records are read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Header {
    pub(super) format: u32,
    pub(super) topic: String,
    pub(super) sequence: u64,
    /// When the segment was begun, which is when the one before it was closed.
    pub(super) created_ms: i64,
    pub(super) partitions: Vec<Start>,
}

/// Where a partition stands at the front of a segment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Start {
    /// The offset of the partition's next record.
    pub(super) first: Offset,
    /// The partition's last control record so far, with its offset.
    pub(super) control: Option<(Offset, String)>,
}

/// Why bytes of a segment could not be had.
#[derive(Debug)]
pub(super) enum SegmentError {
    Io(io::Error),
    Damaged(String),
    NewerFormat(u32),
}

impl From<io::Error> for SegmentError {
    fn from(error: io::Error) -> Self {
        SegmentError::Io(error)
    }
}

/// A segment that is open for reading. How much of it is durable is for the caller to know.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) path: PathBuf,
    pub(super) file: File,
    pub(super) header: Header,
    /// Where its records begin.
    pub(super) start: u64,
}

/// Makes the names in a folder durable.
pub(super) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Writes a file that is either whole and durable under its name, or not there.
pub(super) fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(UNFINISHED);
    let file = File::create(&unfinished)?;
    let written =
        file.write_all_at(bytes, 0).and_then(|()| file.sync_all()).and_then(|()| fs::rename(&unfinished, path));
    if written.is_err() {
        // Gives the space back; the next attempt, or the next start, does it otherwise.
        let _ = fs::remove_file(&unfinished);
    }
    written?;
    path.parent().map_or(Ok(()), sync_folder)
}

/// The sequence numbers of a folder's segments, in order. Unfinished ones are removed.
pub(super) fn list(folder: &Path) -> Result<Vec<u64>, SegmentError> {
    let mut sequences = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.ends_with(UNFINISHED) {
            fs::remove_file(entry.path())?;
        } else if let Some(number) = name.strip_suffix(SUFFIX) {
            let number =
                number.parse().map_err(|_| SegmentError::Damaged(format!("`{name}` is no segment of a log")))?;
            sequences.push(number);
        }
    }
    sequences.sort_unstable();
    match sequences.windows(2).find(|pair| pair[0] + 1 != pair[1]) {
        Some(pair) => Err(SegmentError::Damaged(format!("the segments between {} and {} are gone", pair[0], pair[1]))),
        None => Ok(sequences),
    }
}

impl Segment {
    fn path(folder: &Path, sequence: u64) -> PathBuf {
        folder.join(format!("{sequence:020}{SUFFIX}"))
    }

    /// Creates a segment, durably.
    pub(super) fn create(folder: &Path, header: Header, salt: Salt) -> Result<Self, SegmentError> {
        let json = serde_json::to_vec(&header).map_err(|error| SegmentError::Damaged(error.to_string()))?;
        let mut builder = frame::Builder::new(salt);
        builder.begin();
        builder.push_raw(&json);
        let bytes = builder.finish(0, frame::FLAG_SEGMENT).concat();
        let path = Self::path(folder, header.sequence);
        write_whole(&path, &bytes)?;
        Ok(Segment { file: File::open(&path)?, path, header, start: bytes.len() as u64 })
    }

    /// Opens a segment and reads its header.
    pub(super) fn open(folder: &Path, sequence: u64, salt: Salt) -> Result<Self, SegmentError> {
        let path = Self::path(folder, sequence);
        let file = File::open(&path)?;
        let (header, start) = Header::read(&file, file.metadata()?.len(), sequence, salt)?;
        Ok(Segment { path, file, header, start })
    }

    /// Finds how much of the last segment is whole, calling `visit` for every append that is.
    ///
    /// # Errors
    /// When what does not read lies before something that was written after it had become durable: then it
    /// is damage, and what follows must not be cut off.
    pub(super) fn recover(
        &self,
        salt: Salt,
        visit: impl FnMut(&Frame) -> Result<(), SegmentError>,
    ) -> Result<u64, SegmentError> {
        recover(&self.file, salt, self.start, self.file.metadata()?.len(), visit)
    }
}

impl Header {
    /// The header at the front of a file of `len` bytes, and where the records begin.
    pub(super) fn read(file: &impl FileExt, len: u64, sequence: u64, salt: Salt) -> Result<(Self, u64), SegmentError> {
        let frame = Frames::new(file, salt, 0, len).next_frame()?;
        let Some(frame) = frame.filter(|frame| frame.flags == frame::FLAG_SEGMENT) else {
            return Err(SegmentError::Damaged(format!("segment {sequence} has no header")));
        };
        // A newer header may have other fields: its format is read first.
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let invalid = |error| SegmentError::Damaged(format!("the header of segment {sequence} is invalid: {error}"));
        let Format { format } = serde_json::from_slice(&frame.payload).map_err(invalid)?;
        if format > FORMAT {
            return Err(SegmentError::NewerFormat(format));
        }
        let header: Header = serde_json::from_slice(&frame.payload).map_err(invalid)?;
        if header.sequence != sequence {
            return Err(SegmentError::Damaged(format!("segment {sequence} says that it is {}", header.sequence)));
        }
        Ok((header, frame.len as u64))
    }
}

/// Finds how much of a file of `len` bytes is whole from `start` on; see [`Segment::recover`].
pub(super) fn recover(
    file: &impl FileExt,
    salt: Salt,
    start: u64,
    len: u64,
    mut visit: impl FnMut(&Frame) -> Result<(), SegmentError>,
) -> Result<u64, SegmentError> {
    let mut frames = Frames::new(file, salt, start, len);
    let (mut whole, mut open) = (start, Vec::new());
    loop {
        let at = frames.at();
        match frames.next_frame() {
            Ok(Some(frame)) => {
                let is_end = frame.flags & frame::FLAG_END != 0;
                open.push(frame);
                if is_end {
                    open.drain(..).try_for_each(|frame| visit(&frame))?;
                    whole = frames.at();
                }
            }
            Ok(None) => return Ok(whole),
            Err(SegmentError::Damaged(reason)) => {
                check_torn(file, salt, at, len, reason)?;
                return Ok(whole);
            }
            Err(error) => return Err(error),
        }
    }
}

/// Whether what does not read at `damage` may be a torn write: no frame after it knows it as durable.
fn check_torn(file: &impl FileExt, salt: Salt, damage: u64, len: u64, reason: String) -> Result<(), SegmentError> {
    let mut at = damage + 1;
    while at < len {
        let window = read_at(file, at, CHUNK_BYTES.min(len - at))?;
        let Some(place) = window.windows(salt.len()).position(|bytes| *bytes == salt) else {
            // The salt may lie across two windows.
            at += (window.len() as u64).saturating_sub(salt.len() as u64 - 1).max(1);
            continue;
        };
        at += place as u64;
        match Frames::new(file, salt, at, len).next_frame() {
            Ok(Some(frame)) if frame.synced > damage => return Err(SegmentError::Damaged(reason)),
            Ok(_) | Err(SegmentError::Damaged(_)) => at += 1,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn read_at(file: &impl FileExt, at: u64, len: u64) -> io::Result<Bytes> {
    let len = usize::try_from(len).map_err(|_| io::ErrorKind::FileTooLarge)?;
    let mut buffer = vec![0; len];
    file.read_exact_at(&mut buffer, at)?;
    Ok(buffer.into())
}

/// Reads frames from one place of a file to another.
#[derive(Debug)]
pub(super) struct Frames<'a, F = File> {
    file: &'a F,
    salt: Salt,
    /// Where `buffer` is in the file.
    at: u64,
    end: u64,
    buffer: Bytes,
}

impl<'a, F: FileExt> Frames<'a, F> {
    pub(super) fn new(file: &'a F, salt: Salt, at: u64, end: u64) -> Self {
        Frames { file, salt, at, end, buffer: Bytes::new() }
    }

    /// Where the next frame begins.
    pub(super) fn at(&self) -> u64 {
        self.at
    }

    /// The next frame; none at the end. Payloads share the memory of what was read at once.
    pub(super) fn next_frame(&mut self) -> Result<Option<Frame>, SegmentError> {
        let left = self.end.saturating_sub(self.at);
        if left == 0 {
            return Ok(None);
        }
        loop {
            match frame::parse(&self.buffer, &self.salt) {
                Parsed::Frame(frame) => {
                    drop(self.buffer.split_to(frame.len));
                    self.at += frame.len as u64;
                    return Ok(Some(frame));
                }
                Parsed::Needs(len) if len as u64 > left => {
                    return Err(SegmentError::Damaged("a record batch is cut off".into()));
                }
                Parsed::Needs(len) => self.buffer = read_at(self.file, self.at, left.min(CHUNK_BYTES.max(len as u64)))?,
                Parsed::Damaged(reason) => return Err(SegmentError::Damaged(reason.into())),
            }
        }
    }
}

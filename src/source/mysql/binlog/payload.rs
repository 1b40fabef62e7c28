//! Compressed payloads: MySQL's whole transactions (zstd), MariaDB's single events (zlib).
//!
//! The sizes that the data claims are bounds to stop at, never amounts to allocate: buffers grow with what
//! decompression yields.

use std::{
    borrow::Cow,
    fmt,
    io::{BufReader, Read},
};

use super::{
    error::{DecodeError, ValueError},
    header::Header,
    reader::{During, Reader, Short},
};

/// The most that one event may unpack to: what a server accepts in one packet (max_allowed_packet).
const EVENT_BYTES_MAX: u64 = 1 << 30;
/// The most that one compressed transaction may unpack to; it is streamed, so this bounds time, not memory.
const TRANSACTION_BYTES_MAX: u64 = 1 << 40;
/// The zstd window that is accepted; the server's is at most 8 MiB at its highest level but two.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;
/// Capacity reserved before the first byte arrives.
const RESERVE_BYTES_MAX: usize = 1 << 16;

const COMPRESSION_ZSTD: u64 = 0;
const COMPRESSION_NONE: u64 = 255;

/// MySQL's TRANSACTION_PAYLOAD_EVENT: the events of one transaction, compressed together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransactionPayload<'a> {
    compressed: bool,
    /// What the event says that it unpacks to.
    uncompressed_bytes: Option<u64>,
    payload: &'a [u8],
}

/// One event of a transaction payload. It has no checksum, and its header's `log_pos` is 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InnerEvent {
    pub header: Header,
    pub body: Vec<u8>,
}

impl<'a> TransactionPayload<'a> {
    pub(super) fn decode(body: &'a [u8]) -> Result<Self, DecodeError> {
        let malformed = |Short| DecodeError::Malformed { what: "transaction payload" };
        let mut reader = Reader::new(body);
        let (mut size, mut compression, mut uncompressed_bytes) = (None, COMPRESSION_NONE, None);
        loop {
            let field = reader.packed().map_err(malformed)?;
            if field == 0 {
                break;
            }
            let mut value = Reader::new(reader.packed_bytes().map_err(malformed)?);
            match field {
                1 => size = Some(value.packed().map_err(malformed)?),
                2 => compression = value.packed().map_err(malformed)?,
                3 => uncompressed_bytes = Some(value.packed().map_err(malformed)?),
                _ => {}
            }
        }
        let payload = reader.rest();
        if size.is_some_and(|size| usize::try_from(size) != Ok(payload.len())) {
            return Err(DecodeError::Truncated { what: "transaction payload" });
        }
        let compressed = match compression {
            COMPRESSION_ZSTD => true,
            COMPRESSION_NONE => false,
            _ => {
                return Err(DecodeError::Refused {
                    what: "a transaction compressed in an unknown way",
                    remedy: "set binlog_transaction_compression=OFF on the source",
                });
            }
        };
        Ok(TransactionPayload { compressed, uncompressed_bytes, payload })
    }

    /// What the events inside come to, as the event declares it.
    pub fn unpacked_bytes(&self) -> u64 {
        self.uncompressed_bytes.unwrap_or(self.payload.len() as u64)
    }

    /// The transaction's events in order, unpacked one at a time.
    pub fn events(&self) -> Result<InnerEvents<'a>, DecodeError> {
        let failed = |_| DecodeError::Malformed { what: "transaction payload" };
        let source: Box<dyn Read + Send + 'a> = if self.compressed {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(self.payload).map_err(failed)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX).map_err(failed)?;
            Box::new(decoder)
        } else {
            Box::new(self.payload)
        };
        let left = self.uncompressed_bytes.unwrap_or(TRANSACTION_BYTES_MAX).min(TRANSACTION_BYTES_MAX);
        Ok(InnerEvents { source: BufReader::new(source), left, exact: self.uncompressed_bytes.is_some(), done: false })
    }
}

/// The events of a [`TransactionPayload`]. After an error there are no more.
pub struct InnerEvents<'a> {
    source: BufReader<Box<dyn Read + Send + 'a>>,
    left: u64,
    exact: bool,
    done: bool,
}

impl fmt::Debug for InnerEvents<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InnerEvents").field("left", &self.left).field("done", &self.done).finish_non_exhaustive()
    }
}

impl InnerEvents<'_> {
    fn read(&mut self) -> Result<Option<InnerEvent>, DecodeError> {
        const WHAT: &str = "transaction payload";
        let head = self.take(Header::LENGTH as u64)?;
        if head.is_empty() {
            let whole = !self.exact || self.left == 0;
            return if whole { Ok(None) } else { Err(DecodeError::Truncated { what: WHAT }) };
        }
        let header = Header::parse(&head)?;
        let size = u64::from(header.event_size);
        let length = size.checked_sub(Header::LENGTH as u64).ok_or(DecodeError::Malformed { what: WHAT })?;
        if length > EVENT_BYTES_MAX {
            return Err(DecodeError::TooLarge { what: WHAT, bytes: size, bytes_max: EVENT_BYTES_MAX });
        }
        let body = self.take(length)?;
        if body.len() as u64 != length {
            return Err(DecodeError::Truncated { what: WHAT });
        }
        Ok(Some(InnerEvent { header, body }))
    }

    /// Up to `count` bytes; fewer at the end.
    fn take(&mut self, count: u64) -> Result<Vec<u8>, DecodeError> {
        let malformed = |_| DecodeError::Malformed { what: "transaction payload" };
        let count = count.min(self.left);
        let mut bytes = Vec::with_capacity(usize::try_from(count).unwrap_or(RESERVE_BYTES_MAX).min(RESERVE_BYTES_MAX));
        (&mut self.source).take(count).read_to_end(&mut bytes).map_err(malformed)?;
        self.left -= bytes.len() as u64;
        Ok(bytes)
    }
}

impl Iterator for InnerEvents<'_> {
    type Item = Result<InnerEvent, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let event = self.read();
        self.done = !matches!(event, Ok(Some(_)));
        event.transpose()
    }
}

/// Unpacks MariaDB's compressed part of an event: a byte with algorithm and width, the big-endian length, zlib.
///
/// Source: `binlog_get_uncompress_len` in MariaDB's `sql/log_event.cc`.
pub(super) fn inflate_mariadb(bytes: &[u8], what: &'static str) -> Result<Vec<u8>, DecodeError> {
    let mut reader = Reader::new(bytes);
    let head = reader.u8().during(what)?;
    let (algorithm, width) = (head >> 4 & 0x7, usize::from(head & 0x7));
    if head & 0x80 == 0 || algorithm != 0 || !(1..=4).contains(&width) {
        return Err(DecodeError::Malformed { what });
    }
    let length = reader.big_endian(width).during(what)?;
    inflate(flate2::read::ZlibDecoder::new(reader.rest()), length, what)
}

/// Reads exactly `length` bytes of `decoder`.
pub(super) fn inflate(decoder: impl Read, length: u64, what: &'static str) -> Result<Vec<u8>, DecodeError> {
    if length > EVENT_BYTES_MAX {
        return Err(DecodeError::TooLarge { what, bytes: length, bytes_max: EVENT_BYTES_MAX });
    }
    let reserve = usize::try_from(length).unwrap_or(RESERVE_BYTES_MAX).min(RESERVE_BYTES_MAX);
    let mut bytes = Vec::with_capacity(reserve);
    // One byte more than announced tells data that is longer.
    decoder.take(length + 1).read_to_end(&mut bytes).map_err(|_| DecodeError::Malformed { what })?;
    if bytes.len() as u64 == length { Ok(bytes) } else { Err(DecodeError::Malformed { what }) }
}

/// Unpacks a value of MariaDB's COMPRESSED column: a byte with method and width, the big-endian length,
/// deflate or zlib.
///
/// Source: `Field_longstr::uncompress` in MariaDB's `sql/field.cc`.
pub(super) fn inflate_column(stored: &[u8]) -> Result<Cow<'_, [u8]>, ValueError> {
    const MALFORMED: ValueError = ValueError::Malformed("compressed value");
    const RAW: u8 = 0x08;
    let Some((head, rest)) = stored.split_first() else { return Ok(Cow::Borrowed(stored)) };
    let (method, width) = (head >> 4, usize::from(head & 0x07));
    match method {
        0 => return Ok(Cow::Borrowed(rest)),
        8 if (1..=4).contains(&width) => {}
        _ => return Err(MALFORMED),
    }
    let mut reader = Reader::new(rest);
    let length = reader.big_endian(width)?;
    let plain = if head & RAW != 0 {
        inflate(flate2::read::DeflateDecoder::new(reader.rest()), length, "compressed value")
    } else {
        inflate(flate2::read::ZlibDecoder::new(reader.rest()), length, "compressed value")
    };
    plain.map(Cow::Owned).map_err(|_| MALFORMED)
}

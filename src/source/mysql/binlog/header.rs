//! The common header, the checksum, and how a whole event splits into header, body and checksum.

use super::{
    error::DecodeError,
    event::event_type,
    reader::{During, Reader},
};

/// Set on a format description while its file is open; not part of the checksum.
const FLAG_BINLOG_IN_USE: u16 = 0x1;
/// An event that a reader may skip without knowing it.
const FLAG_IGNORABLE: u16 = 0x80;
/// An event that the server made for this connection: it is in no file, and moves no position.
const FLAG_ARTIFICIAL: u16 = 0x20;
const CHECKSUM_LENGTH: usize = 4;

/// The 19 bytes that every event begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Seconds since the epoch; of the statement, not of the commit.
    pub timestamp: u32,
    pub event_type: u8,
    pub server_id: u32,
    /// Header, body and checksum together.
    pub event_size: u32,
    /// The end of the event in its file; 0 inside a compressed transaction.
    pub log_pos: u32,
    pub flags: u16,
}

impl Header {
    pub const LENGTH: usize = 19;

    /// Reads the header at the start of `bytes`.
    pub fn parse(bytes: &[u8]) -> Result<Header, DecodeError> {
        Self::read(&mut Reader::new(bytes)).during("header")
    }

    fn read(reader: &mut Reader<'_>) -> Result<Header, super::reader::Short> {
        Ok(Header {
            timestamp: reader.u32()?,
            event_type: reader.u8()?,
            server_id: reader.u32()?,
            event_size: reader.u32()?,
            log_pos: reader.u32()?,
            flags: reader.u16()?,
        })
    }

    /// The header as the server wrote it.
    pub fn to_bytes(&self) -> [u8; Self::LENGTH] {
        let mut bytes = [0; Self::LENGTH];
        bytes[0..4].copy_from_slice(&self.timestamp.to_le_bytes());
        bytes[4] = self.event_type;
        bytes[5..9].copy_from_slice(&self.server_id.to_le_bytes());
        bytes[9..13].copy_from_slice(&self.event_size.to_le_bytes());
        bytes[13..17].copy_from_slice(&self.log_pos.to_le_bytes());
        bytes[17..19].copy_from_slice(&self.flags.to_le_bytes());
        bytes
    }

    /// Whether a reader that does not know the event's type may skip it.
    pub fn is_ignorable(&self) -> bool {
        self.flags & FLAG_IGNORABLE != 0
    }

    /// Whether the server made the event for this connection (a first ROTATE): it is in no file.
    pub fn is_artificial(&self) -> bool {
        self.flags & FLAG_ARTIFICIAL != 0
    }
}

/// What follows every event of a file, as its format description says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Checksum {
    None,
    Crc32,
}

impl Checksum {
    /// Reads the algorithm's byte.
    pub fn from_byte(byte: u8) -> Result<Checksum, DecodeError> {
        match byte {
            0 => Ok(Checksum::None),
            1 => Ok(Checksum::Crc32),
            _ => Err(DecodeError::Refused {
                what: "a binlog checksum of an unknown kind",
                remedy: "set binlog_checksum=CRC32 on the source",
            }),
        }
    }
}

/// Checks an event's CRC32. `body` is everything between header and checksum; of a format description that
/// includes the byte that names the algorithm.
pub fn verify_checksum(header: &Header, body: &[u8], stored: u32) -> Result<(), DecodeError> {
    let mut header = *header;
    if header.event_type == event_type::FORMAT_DESCRIPTION {
        header.flags &= !FLAG_BINLOG_IN_USE;
    }
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&header.to_bytes());
    hasher.update(body);
    let computed = hasher.finalize();
    if computed == stored { Ok(()) } else { Err(DecodeError::Checksum { stored, computed }) }
}

/// A whole event, split and with its checksum verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    pub header: Header,
    /// What [`super::decode`] takes.
    pub body: &'a [u8],
}

impl<'a> Frame<'a> {
    /// Splits the first event off `bytes`: the event, and what follows it.
    ///
    /// `checksum` is what the file's format description says. A format description itself always ends in four
    /// bytes of checksum, which are verified if the byte before them says so.
    pub fn split(bytes: &'a [u8], checksum: Checksum) -> Result<(Frame<'a>, &'a [u8]), DecodeError> {
        let header = Header::parse(bytes)?;
        let size = usize::try_from(header.event_size).map_err(|_| DecodeError::Malformed { what: "size" })?;
        let (event, rest) = bytes.split_at_checked(size).ok_or(DecodeError::Truncated { what: "body" })?;
        let body = event.get(Header::LENGTH..).ok_or(DecodeError::Malformed { what: "size" })?;
        let described = header.event_type == event_type::FORMAT_DESCRIPTION;
        if !described && checksum == Checksum::None {
            return Ok((Frame { header, body }, rest));
        }
        let (body, stored) =
            body.split_last_chunk::<CHECKSUM_LENGTH>().ok_or(DecodeError::Truncated { what: "checksum" })?;
        let algorithm = match body.last() {
            Some(byte) if described => Checksum::from_byte(*byte)?,
            Some(_) | None => checksum,
        };
        if algorithm == Checksum::Crc32 {
            verify_checksum(&header, body, u32::from_le_bytes(*stored))?;
        }
        Ok((Frame { header, body }, rest))
    }
}

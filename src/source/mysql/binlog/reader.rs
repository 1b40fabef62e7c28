//! A bounds-checked cursor over bytes. Every length is checked against what is left before it is used.

use super::error::{DecodeError, ValueError};

/// The bytes ran out: what was being read is the caller's to name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Short;

impl From<Short> for ValueError {
    fn from(_: Short) -> Self {
        ValueError::Truncated
    }
}

/// Names what was being read when the bytes ran out.
pub(super) trait During<T> {
    fn during(self, what: &'static str) -> Result<T, DecodeError>;
}

impl<T> During<T> for Result<T, Short> {
    fn during(self, what: &'static str) -> Result<T, DecodeError> {
        self.map_err(|Short| DecodeError::Truncated { what })
    }
}

/// The cursor. What it returns borrows from the event, not from the cursor.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Reader { rest: bytes }
    }

    pub(super) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    pub(super) fn remaining(&self) -> usize {
        self.rest.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    #[inline]
    pub(super) fn bytes(&mut self, count: usize) -> Result<&'a [u8], Short> {
        let (bytes, rest) = self.rest.split_at_checked(count).ok_or(Short)?;
        self.rest = rest;
        Ok(bytes)
    }

    #[inline]
    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Short> {
        let (bytes, rest) = self.rest.split_first_chunk::<N>().ok_or(Short)?;
        self.rest = rest;
        Ok(*bytes)
    }

    #[inline]
    pub(super) fn u8(&mut self) -> Result<u8, Short> {
        Ok(self.array::<1>()?[0])
    }

    #[inline]
    pub(super) fn u16(&mut self) -> Result<u16, Short> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    #[inline]
    pub(super) fn u24(&mut self) -> Result<u32, Short> {
        let [a, b, c] = self.array()?;
        Ok(u32::from_le_bytes([a, b, c, 0]))
    }

    #[inline]
    pub(super) fn u32(&mut self) -> Result<u32, Short> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    #[inline]
    pub(super) fn u48(&mut self) -> Result<u64, Short> {
        let [a, b, c, d, e, f] = self.array()?;
        Ok(u64::from_le_bytes([a, b, c, d, e, f, 0, 0]))
    }

    #[inline]
    pub(super) fn u64(&mut self) -> Result<u64, Short> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// `count` (at most 8) bytes, most significant first.
    #[inline]
    pub(super) fn big_endian(&mut self, count: usize) -> Result<u64, Short> {
        Ok(self.bytes(count)?.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
    }

    /// `count` (at most 8) bytes, least significant first.
    #[inline]
    pub(super) fn little_endian(&mut self, count: usize) -> Result<u64, Short> {
        Ok(self.bytes(count)?.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
    }

    /// The protocol's length-encoded integer. 251 (null) and 255 are no lengths.
    pub(super) fn packed(&mut self) -> Result<u64, Short> {
        match self.u8()? {
            short @ 0..=250 => Ok(u64::from(short)),
            252 => Ok(u64::from(self.u16()?)),
            253 => Ok(u64::from(self.u24()?)),
            254 => self.u64(),
            251 | 255 => Err(Short),
        }
    }

    /// Bytes after a length-encoded length.
    pub(super) fn packed_bytes(&mut self) -> Result<&'a [u8], Short> {
        let length = usize::try_from(self.packed()?).map_err(|_| Short)?;
        self.bytes(length)
    }

    /// Bytes after a one-byte length.
    pub(super) fn short_bytes(&mut self) -> Result<&'a [u8], Short> {
        let length = usize::from(self.u8()?);
        self.bytes(length)
    }

    /// Bytes after a little-endian length of `width` (1 to 4) bytes.
    #[inline]
    pub(super) fn prefixed(&mut self, width: u8) -> Result<&'a [u8], Short> {
        let length = match width {
            1 => u32::from(self.u8()?),
            2 => u32::from(self.u16()?),
            3 => self.u24()?,
            4 => self.u32()?,
            _ => return Err(Short),
        };
        self.bytes(usize::try_from(length).map_err(|_| Short)?)
    }
}

//! One column's values: from bytes in a row to a [`Value`]. Everything that does not depend on the row was
//! decided when the [`Cell`] was made.

use std::{net::Ipv4Addr, sync::Arc};

use super::{
    JsonDoubles, ZeroDates, charset::Charset, decimal, error::ValueError, json, network, payload, reader::Reader,
    temporal,
};
use crate::model::Value;

/// How to read a column.
#[derive(Debug, Clone)]
pub(super) enum Cell {
    Integer {
        width: IntegerWidth,
        unsigned: bool,
    },
    Float,
    Double,
    Year,
    Date(ZeroDates),
    OldTime,
    OldDateTime(ZeroDates),
    OldTimestamp(ZeroDates),
    Time {
        digits: u8,
    },
    DateTime {
        digits: u8,
        zero: ZeroDates,
    },
    Timestamp {
        digits: u8,
        zero: ZeroDates,
    },
    Decimal {
        precision: u8,
        scale: u8,
        bytes: u8,
    },
    Bit {
        bytes: u8,
    },
    Text {
        prefix: u8,
        charset: Charset,
    },
    Bytes {
        prefix: u8,
    },
    /// BINARY(n): servers cut zeros at the end.
    Padded {
        prefix: u8,
        length: u16,
    },
    /// A geometry, without the four bytes of SRID in front of its WKB.
    Geometry {
        prefix: u8,
    },
    Json {
        prefix: u8,
        doubles: JsonDoubles,
    },
    Enum {
        width: u8,
        labels: Arc<[String]>,
    },
    Set {
        width: u8,
        labels: Arc<[String]>,
    },
    /// MariaDB's COMPRESSED; without a character set they are bytes.
    Compressed {
        prefix: u8,
        charset: Option<Charset>,
    },
    Uuid {
        prefix: u8,
    },
    Inet4 {
        prefix: u8,
    },
    Inet6 {
        prefix: u8,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum IntegerWidth {
    One,
    Two,
    Three,
    Four,
    Eight,
}

impl Cell {
    /// Reads one value that is not null.
    #[inline]
    pub(super) fn read(&self, reader: &mut Reader<'_>) -> Result<Value, ValueError> {
        match self {
            Cell::Integer { width, unsigned } => integer(reader, *width, *unsigned),
            Cell::Text { prefix, charset } => Ok(Value::Text(charset.decode(reader.prefixed(*prefix)?)?)),
            Cell::DateTime { digits, zero } => temporal::datetime(reader, *digits, *zero),
            Cell::Timestamp { digits, zero } => temporal::timestamp(reader, *digits, *zero),
            Cell::Decimal { precision, scale, bytes } => {
                let stored = reader.bytes(usize::from(*bytes))?;
                Ok(Value::Text(decimal::text(stored, *precision, *scale)?))
            }
            Cell::Float => float(f32::from_le_bytes(reader.array()?)),
            Cell::Double => double(f64::from_le_bytes(reader.array()?)),
            Cell::Date(zero) => temporal::date(reader, *zero),
            Cell::Time { digits } => temporal::time(reader, *digits),
            Cell::Bytes { prefix } => Ok(Value::Bytes(reader.prefixed(*prefix)?.to_vec())),
            Cell::Year => {
                let year = i64::from(reader.u8()?);
                Ok(Value::Int(if year == 0 { 0 } else { 1900 + year }))
            }
            Cell::OldTime => temporal::old_time(reader),
            Cell::OldDateTime(zero) => temporal::old_datetime(reader, *zero),
            Cell::OldTimestamp(zero) => temporal::old_timestamp(reader, *zero),
            Cell::Bit { bytes } => Ok(Value::Bytes(reader.bytes(usize::from(*bytes))?.to_vec())),
            Cell::Padded { prefix, length } => {
                Ok(Value::Bytes(padded(reader.prefixed(*prefix)?, usize::from(*length))?))
            }
            Cell::Geometry { prefix } => {
                let stored = reader.prefixed(*prefix)?;
                // An empty geometry is what a column got that was made NOT NULL afterwards.
                Ok(Value::Bytes(stored.get(4..).unwrap_or_default().to_vec()))
            }
            Cell::Json { prefix, doubles } => Ok(Value::Text(json::text(reader.prefixed(*prefix)?, *doubles)?)),
            Cell::Enum { width, labels } => label(reader.little_endian(usize::from(*width))?, labels),
            Cell::Set { width, labels } => set(reader.little_endian(usize::from(*width))?, labels),
            Cell::Compressed { prefix, charset } => compressed(reader.prefixed(*prefix)?, *charset),
            Cell::Uuid { prefix } => {
                let stored = fixed::<16>(reader.prefixed(*prefix)?)?;
                Ok(Value::Text(network::uuid(stored)))
            }
            Cell::Inet4 { prefix } => {
                let stored = fixed::<4>(reader.prefixed(*prefix)?)?;
                Ok(Value::Text(Ipv4Addr::from(stored).to_string()))
            }
            Cell::Inet6 { prefix } => {
                let stored = fixed::<16>(reader.prefixed(*prefix)?)?;
                Ok(Value::Text(network::inet6(stored)))
            }
        }
    }
}

/// `UInt` is the variant of BIGINT UNSIGNED alone: every other integer fits an `Int`, and is one.
#[inline]
fn integer(reader: &mut Reader<'_>, width: IntegerWidth, unsigned: bool) -> Result<Value, ValueError> {
    Ok(match (width, unsigned) {
        (IntegerWidth::One, false) => Value::Int(i64::from(i8::from_le_bytes(reader.array()?))),
        (IntegerWidth::One, true) => Value::Int(i64::from(reader.u8()?)),
        (IntegerWidth::Two, false) => Value::Int(i64::from(i16::from_le_bytes(reader.array()?))),
        (IntegerWidth::Two, true) => Value::Int(i64::from(reader.u16()?)),
        (IntegerWidth::Three, false) => Value::Int(i64::from((reader.u24()? << 8).cast_signed() >> 8)),
        (IntegerWidth::Three, true) => Value::Int(i64::from(reader.u24()?)),
        (IntegerWidth::Four, false) => Value::Int(i64::from(i32::from_le_bytes(reader.array()?))),
        (IntegerWidth::Four, true) => Value::Int(i64::from(reader.u32()?)),
        (IntegerWidth::Eight, false) => Value::Int(i64::from_le_bytes(reader.array()?)),
        (IntegerWidth::Eight, true) => Value::UInt(reader.u64()?),
    })
}

fn float(number: f32) -> Result<Value, ValueError> {
    if number.is_finite() { Ok(Value::Float(number)) } else { Err(ValueError::Malformed("float")) }
}

fn double(number: f64) -> Result<Value, ValueError> {
    if number.is_finite() { Ok(Value::Double(number)) } else { Err(ValueError::Malformed("double")) }
}

fn padded(stored: &[u8], length: usize) -> Result<Vec<u8>, ValueError> {
    if stored.len() > length {
        return Err(ValueError::Malformed("fixed-length value"));
    }
    let mut bytes = Vec::with_capacity(length);
    bytes.extend_from_slice(stored);
    bytes.resize(length, 0);
    Ok(bytes)
}

/// A value of N bytes, whose zeros at the end were cut.
fn fixed<const N: usize>(stored: &[u8]) -> Result<[u8; N], ValueError> {
    let mut bytes = [0; N];
    bytes.get_mut(..stored.len()).ok_or(ValueError::Malformed("fixed-length value"))?.copy_from_slice(stored);
    Ok(bytes)
}

/// The label of a number counted from 1; 0 is the empty string that an invalid value became.
fn label(number: u64, labels: &[String]) -> Result<Value, ValueError> {
    let Some(index) = number.checked_sub(1) else { return Ok(Value::Text(String::new())) };
    let label = usize::try_from(index).ok().and_then(|index| labels.get(index));
    label.cloned().map(Value::Text).ok_or(ValueError::Malformed("ENUM number"))
}

fn set(mask: u64, labels: &[String]) -> Result<Value, ValueError> {
    let known =
        u32::try_from(labels.len()).ok().and_then(|count| 1u64.checked_shl(count)).map_or(u64::MAX, |bit| bit - 1);
    if mask & !known != 0 {
        return Err(ValueError::Malformed("SET number"));
    }
    let mut text = String::new();
    let mut chosen = labels.iter().enumerate().filter(|(index, _)| mask >> index & 1 == 1).map(|(_, label)| label);
    if let Some(first) = chosen.next() {
        text.push_str(first);
    }
    for label in chosen {
        text.push(',');
        text.push_str(label);
    }
    Ok(Value::Text(text))
}

/// A value of MariaDB's COMPRESSED column.
fn compressed(stored: &[u8], charset: Option<Charset>) -> Result<Value, ValueError> {
    let plain = payload::inflate_column(stored)?;
    match charset {
        Some(charset) => charset.decode(&plain).map(Value::Text),
        None => Ok(Value::Bytes(plain.into_owned())),
    }
}

//! MySQL's binary JSON to JSON text, in the spelling of the server's own `CAST(j AS CHAR)`.
//!
//! Offsets in the document may point anywhere, so that a corrupt one could make a small document print without
//! end. A document that a server wrote holds each of its values once; therefore what is printed may draw on no
//! more bytes than the document has.
//!
//! Source: `sql/json_binary.h` (the format) and `Json_wrapper::to_string` in `sql/json_dom.cc` (the spelling).

use std::fmt::Write as _;

use base64::Engine as _;

use super::{
    JsonDoubles, decimal,
    error::ValueError,
    json_number,
    reader::{Reader, Short},
    temporal,
};

/// The server's own bound (`JSON_DOCUMENT_MAX_DEPTH`).
const DEPTH_MAX: usize = 100;
const BASE64_LINE: usize = 76;

const SMALL_OBJECT: u8 = 0x0;
const LARGE_OBJECT: u8 = 0x1;
const SMALL_ARRAY: u8 = 0x2;
const LARGE_ARRAY: u8 = 0x3;
const LITERAL: u8 = 0x4;
const INT16: u8 = 0x5;
const UINT16: u8 = 0x6;
const INT32: u8 = 0x7;
const UINT32: u8 = 0x8;
const INT64: u8 = 0x9;
const UINT64: u8 = 0xa;
const DOUBLE: u8 = 0xb;
const STRING: u8 = 0xc;
const OPAQUE: u8 = 0xf;

const MALFORMED: ValueError = ValueError::Malformed("JSON document");

/// The document as text. An empty one is what `INSERT IGNORE` stores for a missing value; servers read it as null.
pub(super) fn text(document: &[u8], doubles: JsonDoubles) -> Result<String, ValueError> {
    let Some((kind, value)) = document.split_first() else { return Ok("null".to_owned()) };
    let text = String::with_capacity(document.len() + document.len() / 4);
    let mut printer = Printer { text, budget: document.len(), doubles };
    printer.value(*kind, value, DEPTH_MAX)?;
    Ok(printer.text)
}

struct Printer {
    text: String,
    /// The bytes of the document that printing may still draw on.
    budget: usize,
    doubles: JsonDoubles,
}

/// An object or array: its bytes, and the width of counts and offsets in it.
#[derive(Clone, Copy)]
struct Container<'a> {
    bytes: &'a [u8],
    count: usize,
    large: bool,
}

impl<'a> Container<'a> {
    fn read(bytes: &'a [u8], large: bool) -> Result<Self, ValueError> {
        let mut reader = Reader::new(bytes);
        let (count, size) = (offset(&mut reader, large)?, offset(&mut reader, large)?);
        Ok(Container { bytes: bytes.get(..size).ok_or(MALFORMED)?, count, large })
    }

    fn width(self) -> usize {
        if self.large { 4 } else { 2 }
    }

    /// Where the entries of the values begin: after count, size, and an object's key entries.
    fn value_entries(self, object: bool) -> Option<usize> {
        let keys = if object { self.count.checked_mul(self.width() + 2)? } else { 0 };
        keys.checked_add(2 * self.width())
    }

    fn key(self, index: usize) -> Result<&'a [u8], ValueError> {
        let entry = index.checked_mul(self.width() + 2).and_then(|at| at.checked_add(2 * self.width()));
        let mut reader = self.reader(entry.ok_or(MALFORMED)?)?;
        let (at, length) = (offset(&mut reader, self.large)?, usize::from(reader.u16()?));
        Ok(self.reader(at)?.bytes(length)?)
    }

    fn reader(self, at: usize) -> Result<Reader<'a>, ValueError> {
        Ok(Reader::new(self.bytes.get(at..).ok_or(MALFORMED)?))
    }
}

fn offset(reader: &mut Reader<'_>, large: bool) -> Result<usize, Short> {
    if large { usize::try_from(reader.u32()?).map_err(|_| Short) } else { reader.u16().map(usize::from) }
}

impl Printer {
    fn value(&mut self, kind: u8, bytes: &[u8], depth: usize) -> Result<(), ValueError> {
        let mut reader = Reader::new(bytes);
        match kind {
            SMALL_OBJECT => self.object(Container::read(bytes, false)?, depth),
            LARGE_OBJECT => self.object(Container::read(bytes, true)?, depth),
            SMALL_ARRAY => self.array(Container::read(bytes, false)?, depth),
            LARGE_ARRAY => self.array(Container::read(bytes, true)?, depth),
            LITERAL => self.literal(reader.u8()?),
            INT16 => self.integer(i16::from_le_bytes(reader.array()?)),
            UINT16 => self.integer(reader.u16()?),
            INT32 => self.integer(i32::from_le_bytes(reader.array()?)),
            UINT32 => self.integer(reader.u32()?),
            INT64 => self.integer(i64::from_le_bytes(reader.array()?)),
            UINT64 => self.integer(reader.u64()?),
            DOUBLE => {
                let number = f64::from_le_bytes(reader.array()?);
                if !number.is_finite() {
                    return Err(MALFORMED);
                }
                json_number::push_double(&mut self.text, number, self.doubles);
                Ok(())
            }
            STRING => {
                let length = string_length(&mut reader)?;
                self.string(reader.bytes(length)?)
            }
            OPAQUE => self.opaque(&mut reader),
            _ => Err(MALFORMED),
        }
    }

    fn spend(&mut self, bytes: usize) -> Result<(), ValueError> {
        self.budget = self.budget.checked_sub(bytes).ok_or(MALFORMED)?;
        Ok(())
    }

    fn object(&mut self, container: Container<'_>, depth: usize) -> Result<(), ValueError> {
        let depth = depth.checked_sub(1).ok_or(ValueError::JsonDepth(DEPTH_MAX))?;
        self.text.push('{');
        for index in 0..container.count {
            if index > 0 {
                self.text.push_str(", ");
            }
            self.spend(container.width() + 2)?;
            self.string(container.key(index)?)?;
            self.text.push_str(": ");
            self.entry(container, true, index, depth)?;
        }
        self.text.push('}');
        Ok(())
    }

    fn array(&mut self, container: Container<'_>, depth: usize) -> Result<(), ValueError> {
        let depth = depth.checked_sub(1).ok_or(ValueError::JsonDepth(DEPTH_MAX))?;
        self.text.push('[');
        for index in 0..container.count {
            if index > 0 {
                self.text.push_str(", ");
            }
            self.entry(container, false, index, depth)?;
        }
        self.text.push(']');
        Ok(())
    }

    /// A value of a container: in its entry if it is small enough, else where the entry points.
    fn entry(&mut self, container: Container<'_>, object: bool, index: usize, depth: usize) -> Result<(), ValueError> {
        let width = container.width();
        self.spend(width + 1)?;
        let entry = index.checked_mul(width + 1).zip(container.value_entries(object));
        let (of_index, first) = entry.ok_or(MALFORMED)?;
        let mut reader = container.reader(of_index.checked_add(first).ok_or(MALFORMED)?)?;
        let kind = reader.u8()?;
        let inlined = match kind {
            LITERAL | INT16 | UINT16 => true,
            INT32 | UINT32 => container.large,
            _ => false,
        };
        if inlined {
            return self.value(kind, reader.bytes(width)?, depth);
        }
        let at = offset(&mut reader, container.large)?;
        self.value(kind, container.reader(at)?.rest(), depth)
    }

    fn literal(&mut self, value: u8) -> Result<(), ValueError> {
        self.text.push_str(match value {
            0 => "null",
            1 => "true",
            2 => "false",
            _ => return Err(MALFORMED),
        });
        Ok(())
    }

    fn integer(&mut self, value: impl std::fmt::Display) -> Result<(), ValueError> {
        // Writing to a string cannot fail.
        let _ = write!(self.text, "{value}");
        Ok(())
    }

    /// A quoted string, with the escapes of the server's `double_quote`.
    fn string(&mut self, bytes: &[u8]) -> Result<(), ValueError> {
        self.spend(bytes.len())?;
        let text = str::from_utf8(bytes).map_err(|_| ValueError::Undecodable("utf8mb4"))?;
        self.text.push('"');
        let mut from = 0;
        for (at, byte) in bytes.iter().enumerate().filter(|(_, byte)| needs_escape(**byte)) {
            self.text.push_str(text.get(from..at).unwrap_or_default());
            from = at + 1;
            match byte {
                b'"' => self.text.push_str("\\\""),
                b'\\' => self.text.push_str("\\\\"),
                0x08 => self.text.push_str("\\b"),
                b'\t' => self.text.push_str("\\t"),
                b'\n' => self.text.push_str("\\n"),
                0x0c => self.text.push_str("\\f"),
                b'\r' => self.text.push_str("\\r"),
                control => drop(write!(self.text, "\\u{control:04x}")),
            }
        }
        self.text.push_str(text.get(from..).unwrap_or_default());
        self.text.push('"');
        Ok(())
    }

    /// A value of an SQL type that JSON lacks.
    fn opaque(&mut self, reader: &mut Reader<'_>) -> Result<(), ValueError> {
        const TIMESTAMP: u8 = 7;
        const DATE: u8 = 10;
        const TIME: u8 = 11;
        const DATETIME: u8 = 12;
        const DECIMAL: u8 = 246;
        let field_type = reader.u8()?;
        let length = string_length(reader)?;
        let bytes = reader.bytes(length)?;
        self.spend(bytes.len())?;
        let mut value = Reader::new(bytes);
        match field_type {
            DECIMAL => {
                let (precision, scale) = (value.u8()?, value.u8()?);
                let valid = precision <= 65 && scale <= precision;
                let whole = valid && value.remaining() == decimal::stored_bytes(precision, scale);
                if !whole {
                    return Err(MALFORMED);
                }
                self.text.push_str(&decimal::text(value.rest(), precision, scale)?);
            }
            DATE | DATETIME | TIMESTAMP => {
                let packed = value.u64()?;
                let (date, time) = temporal::unpack_datetime(packed >> 24, (packed & 0xff_ffff) as u32);
                let time = (field_type != DATE).then_some(time);
                self.quoted(&temporal::json_datetime_text(date, time));
            }
            TIME => {
                let packed = value.u64()?.cast_signed();
                self.quoted(&temporal::time_text(temporal::unpack_time(packed)));
            }
            other => self.base64(other, bytes),
        }
        Ok(())
    }

    fn quoted(&mut self, text: &str) {
        self.text.push('"');
        self.text.push_str(text);
        self.text.push('"');
    }

    /// Servers break the lines of base64. MySQL 8.0 escapes the breaks, which is what is done here too; 5.7
    /// prints them raw, which is not JSON.
    fn base64(&mut self, field_type: u8, bytes: &[u8]) {
        let _ = write!(self.text, "\"base64:type{field_type}:");
        let encoded = base64::engine::general_purpose::STANDARD.encode(bytes);
        for (index, character) in encoded.chars().enumerate() {
            if index > 0 && index % BASE64_LINE == 0 {
                self.text.push_str("\\n");
            }
            self.text.push(character);
        }
        self.text.push('"');
    }
}

fn needs_escape(byte: u8) -> bool {
    byte < 0x20 || byte == b'"' || byte == b'\\'
}

/// A length in groups of seven bits, lowest first, in at most five bytes.
fn string_length(reader: &mut Reader<'_>) -> Result<usize, ValueError> {
    let mut length = 0u64;
    for shift in (0..35).step_by(7) {
        let byte = reader.u8()?;
        length |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return usize::try_from(length).map_err(|_| MALFORMED);
        }
    }
    Err(MALFORMED)
}

//! Rows events: the head, the bitmaps of present columns, and where each row ends.

use std::borrow::Cow;

use super::{
    error::DecodeError,
    payload::inflate_mariadb,
    reader::{During, Reader, Short},
    table_map::{TableMap, bit},
    wire_type::Extent,
};

const WHAT: &str = "rows event";
const FLAG_STATEMENT_END: u16 = 0x1;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RowsKind {
    Write,
    Update,
    Delete,
}

/// The two shapes of a rows event; V2 has a block of extra data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    V1,
    V2,
}

/// A rows event: changed rows of one table, not yet decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rows<'a> {
    pub kind: RowsKind,
    pub table_id: u64,
    /// The last rows event of its statement: the table ids end here.
    pub end_of_statement: bool,
    pub columns: usize,
    /// Bitmap of the columns in the before-image, lowest bit first; empty for a write.
    pub before_present: &'a [u8],
    /// Bitmap of the columns in the after-image; empty for a delete.
    pub after_present: &'a [u8],
    /// The rows, image after image.
    pub data: Cow<'a, [u8]>,
}

pub(super) fn decode(kind: RowsKind, layout: Layout, body: &[u8]) -> Result<Rows<'_>, DecodeError> {
    let mut reader = Reader::new(body);
    let rows = read_head(kind, layout, &mut reader).during(WHAT)?;
    Ok(Rows { data: Cow::Borrowed(reader.rest()), ..rows })
}

/// The same, with the rows packed by MariaDB (`log_bin_compress`).
pub(super) fn decode_compressed(kind: RowsKind, layout: Layout, body: &[u8]) -> Result<Rows<'_>, DecodeError> {
    let mut reader = Reader::new(body);
    let rows = read_head(kind, layout, &mut reader).during(WHAT)?;
    Ok(Rows { data: Cow::Owned(inflate_mariadb(reader.rest(), "compressed rows event")?), ..rows })
}

fn read_head<'a>(kind: RowsKind, layout: Layout, reader: &mut Reader<'a>) -> Result<Rows<'a>, Short> {
    let table_id = reader.u48()?;
    let flags = reader.u16()?;
    match layout {
        Layout::V1 => {}
        Layout::V2 => {
            // The length counts itself.
            let extra = usize::from(reader.u16()?).checked_sub(2).ok_or(Short)?;
            reader.bytes(extra)?;
        }
    }
    let columns = usize::try_from(reader.packed()?).map_err(|_| Short)?;
    let first = reader.bytes(columns.div_ceil(8))?;
    let (before_present, after_present): (&[u8], &[u8]) = match kind {
        RowsKind::Write => (&[], first),
        RowsKind::Delete => (first, &[]),
        RowsKind::Update => (first, reader.bytes(columns.div_ceil(8))?),
    };
    let end_of_statement = flags & FLAG_STATEMENT_END != 0;
    Ok(Rows { kind, table_id, end_of_statement, columns, before_present, after_present, data: Cow::Borrowed(&[]) })
}

impl Rows<'_> {
    /// The bitmaps of a row's images, in the order of the images.
    pub(super) fn images(&self) -> impl Iterator<Item = &[u8]> {
        let before = (self.kind != RowsKind::Write).then_some(self.before_present);
        let after = (self.kind != RowsKind::Delete).then_some(self.after_present);
        before.into_iter().chain(after)
    }
}

/// Counts an event's rows without decoding them: versions tick for tables that are not followed, too.
///
/// Any row image will do. Columns of MariaDB's temporal formats of before 10.1 with fractions cannot be told
/// from those without, and are taken for the latter.
pub fn count_rows(map: &TableMap, rows: &Rows<'_>) -> Result<u64, DecodeError> {
    if rows.data.is_empty() {
        return Ok(0);
    }
    if rows.table_id != map.table_id {
        return Err(DecodeError::TableId { rows: rows.table_id, map: map.table_id });
    }
    if rows.columns != map.columns.len() {
        return Err(DecodeError::ColumnCount { rows: rows.columns as u64, map: map.columns.len() });
    }
    let extents = |present| {
        let columns = map.columns.iter().enumerate().filter(move |(index, _)| bit(present, *index));
        columns.map(|(_, column)| column.wire_type.extent()).collect::<Vec<Extent>>()
    };
    let images: Vec<Vec<Extent>> = rows.images().map(extents).collect();
    let mut reader = Reader::new(&rows.data);
    let mut count = 0;
    while !reader.is_empty() {
        let before = reader.remaining();
        for image in &images {
            skip_image(&mut reader, image).during("row")?;
        }
        if reader.remaining() == before {
            return Err(DecodeError::Malformed { what: "row" });
        }
        count += 1;
    }
    Ok(count)
}

/// The first column of the event's first row, if it is a text, or bytes, and there.
pub fn first_text<'r>(map: &TableMap, rows: &'r Rows<'_>) -> Option<&'r [u8]> {
    let present = rows.images().next()?;
    let Extent::Prefixed(width) = map.columns.first().filter(|_| bit(present, 0))?.wire_type.extent() else {
        return None;
    };
    let columns = (0..map.columns.len()).filter(|index| bit(present, *index)).count();
    let mut reader = Reader::new(&rows.data);
    let nulls = reader.bytes(columns.div_ceil(8)).ok()?;
    if bit(nulls, 0) { None } else { reader.prefixed(width).ok() }
}

fn skip_image(reader: &mut Reader<'_>, columns: &[Extent]) -> Result<(), Short> {
    let nulls = reader.bytes(columns.len().div_ceil(8))?;
    for (index, extent) in columns.iter().enumerate() {
        if bit(nulls, index) {
            continue;
        }
        match *extent {
            Extent::Fixed(length) => drop(reader.bytes(length)?),
            Extent::Prefixed(width) => drop(reader.prefixed(width)?),
        }
    }
    Ok(())
}

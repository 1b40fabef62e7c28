//! The table map: which columns the rows events after it have.

use super::{
    Flavor,
    error::DecodeError,
    reader::{During, Reader, Short},
    wire_type::WireType,
};

/// The most columns that a table of any server has (4096), with room.
const COLUMNS_MAX: u64 = 1 << 16;
const WHAT: &str = "table map";

/// A TABLE_MAP_EVENT, not yet taken apart. A table's maps are equal byte for byte until the table changes, so
/// that a reader may keep what it made of `bytes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableMapBody<'a> {
    pub flavor: Flavor,
    pub table_id: u64,
    pub bytes: &'a [u8],
}

impl<'a> TableMapBody<'a> {
    pub(super) fn new(flavor: Flavor, bytes: &'a [u8]) -> Result<Self, DecodeError> {
        Ok(TableMapBody { flavor, table_id: Reader::new(bytes).u48().during(WHAT)?, bytes })
    }

    pub fn parse(&self) -> Result<TableMap, DecodeError> {
        let mut reader = Reader::new(self.bytes);
        let head = read_head(&mut reader).during(WHAT)?;
        let columns = read_columns(&mut reader)?;
        let metadata = read_metadata(self.flavor, &mut reader, &columns)?;
        let (schema, table) = (utf8(head.schema)?, utf8(head.table)?);
        Ok(TableMap { table_id: head.table_id, schema, table, columns, metadata })
    }
}

/// Which table a rows event is about, and what its rows look like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableMap {
    pub table_id: u64,
    pub schema: String,
    pub table: String,
    pub columns: Vec<ColumnMeta>,
    pub metadata: OptionalMetadata,
}

/// One column of a table map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ColumnMeta {
    pub wire_type: WireType,
    pub nullable: bool,
}

/// What `binlog_row_metadata` adds (MySQL 8.0, MariaDB 10.5 and later). Lists are by column of the table; a list
/// that the event lacks is `None`, an entry that does not apply to its column is too.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OptionalMetadata {
    pub names: Option<Vec<String>>,
    pub unsigned: Option<Vec<Option<bool>>>,
    /// Collation ids of text columns; 63 is binary.
    pub collations: Option<Vec<Option<u64>>>,
    /// Collation ids of ENUM and SET columns.
    pub label_collations: Option<Vec<Option<u64>>>,
    /// Labels of ENUM and SET columns, in the column's character set.
    pub labels: Option<Vec<Option<Vec<Vec<u8>>>>>,
    /// Indexes of the primary key's columns, in key order.
    pub primary_key: Option<Vec<usize>>,
    pub geometry_types: Option<Vec<Option<u64>>>,
    pub visible: Option<Vec<bool>>,
}

struct Head<'a> {
    table_id: u64,
    schema: &'a [u8],
    table: &'a [u8],
}

fn read_head<'a>(reader: &mut Reader<'a>) -> Result<Head<'a>, Short> {
    let table_id = reader.u48()?;
    reader.u16()?;
    let schema = reader.short_bytes()?;
    reader.u8()?;
    let length = usize::try_from(reader.packed()?).map_err(|_| Short)?;
    let table = reader.bytes(length)?;
    reader.u8()?;
    Ok(Head { table_id, schema, table })
}

fn read_columns(reader: &mut Reader<'_>) -> Result<Vec<ColumnMeta>, DecodeError> {
    let count = reader.packed().during(WHAT)?;
    if count > COLUMNS_MAX {
        return Err(DecodeError::TooLarge { what: WHAT, bytes: count, bytes_max: COLUMNS_MAX });
    }
    let count = usize::try_from(count).map_err(|_| DecodeError::Malformed { what: WHAT })?;
    let types = reader.bytes(count).during(WHAT)?;
    let mut metadata = Reader::new(reader.packed_bytes().during(WHAT)?);
    let null_bits = reader.bytes(count.div_ceil(8)).during(WHAT)?;
    let column = |(index, code): (usize, &u8)| {
        let wire_type = WireType::read(*code, &mut metadata).during("column metadata")?;
        let wire_type = wire_type.ok_or(DecodeError::Malformed { what: "column type" })?;
        Ok(ColumnMeta { wire_type, nullable: bit(null_bits, index) })
    };
    types.iter().enumerate().map(column).collect()
}

/// Bit `index`, the lowest bit of the first byte first.
#[inline]
pub(super) fn bit(bits: &[u8], index: usize) -> bool {
    bits.get(index / 8).is_some_and(|byte| byte >> (index % 8) & 1 == 1)
}

fn read_metadata(
    flavor: Flavor,
    reader: &mut Reader<'_>,
    columns: &[ColumnMeta],
) -> Result<OptionalMetadata, DecodeError> {
    let mut metadata = OptionalMetadata::default();
    while !reader.is_empty() {
        let kind = reader.u8().during(WHAT)?;
        let value = reader.packed_bytes().during(WHAT)?;
        read_field(flavor, kind, &mut Reader::new(value), columns, &mut metadata).during("optional metadata")?;
    }
    Ok(metadata)
}

/// One field of the optional metadata.
///
/// Source: `Optional_metadata_field_type` in MySQL's `rows_event.h`; MariaDB has the same numbers.
fn read_field(
    flavor: Flavor,
    kind: u8,
    value: &mut Reader<'_>,
    columns: &[ColumnMeta],
    metadata: &mut OptionalMetadata,
) -> Result<(), Short> {
    let is_character = |wire_type: WireType| wire_type.is_character(flavor);
    let is_labelled = |wire_type| matches!(wire_type, WireType::Enum { .. } | WireType::Set { .. });
    match kind {
        1 => metadata.unsigned = Some(read_unsigned(flavor, value, columns)?),
        2 => metadata.collations = Some(read_default_collations(value, columns, is_character)?),
        3 => metadata.collations = Some(for_each(columns, is_character, || value.packed())?),
        4 => metadata.names = Some(read_names(value, columns.len())?),
        5 => read_labels(value, columns, metadata, |wire_type| matches!(wire_type, WireType::Set { .. }))?,
        6 => read_labels(value, columns, metadata, |wire_type| matches!(wire_type, WireType::Enum { .. }))?,
        7 => {
            let is_geometry = |wire_type| matches!(wire_type, WireType::Geometry { .. });
            metadata.geometry_types = Some(for_each(columns, is_geometry, || value.packed())?);
        }
        8 => metadata.primary_key = Some(read_key(value, false)?),
        9 => metadata.primary_key = Some(read_key(value, true)?),
        10 => metadata.label_collations = Some(read_default_collations(value, columns, is_labelled)?),
        11 => metadata.label_collations = Some(for_each(columns, is_labelled, || value.packed())?),
        12 => metadata.visible = Some((0..columns.len()).map(|index| high_bit(value.rest(), index)).collect()),
        // Dimensions of vectors, and what later releases describe: nothing that a row's bytes depend on.
        _ => {}
    }
    Ok(())
}

/// The values of the columns that have one, in order.
fn for_each<T>(
    columns: &[ColumnMeta],
    has: impl Fn(WireType) -> bool,
    mut read: impl FnMut() -> Result<T, Short>,
) -> Result<Vec<Option<T>>, Short> {
    columns.iter().map(|column| if has(column.wire_type) { read().map(Some) } else { Ok(None) }).collect()
}

/// Bit `index`, the highest bit of the first byte first.
fn high_bit(bits: &[u8], index: usize) -> bool {
    bits.get(index / 8).is_some_and(|byte| byte << (index % 8) & 0x80 != 0)
}

/// Which numbers are unsigned, as far as the bits say.
///
/// A YEAR has a bit on MariaDB and on later releases of MySQL, and none on earlier ones (seen: 9.7.4 and 8.0.15), which
/// moves the bits of all columns behind it. Where the length of the bitmap does not tell which it is, a column that the
/// two readings disagree about is left to the catalog.
fn read_unsigned(flavor: Flavor, value: &mut Reader<'_>, columns: &[ColumnMeta]) -> Result<Vec<Option<bool>>, Short> {
    let bits = value.rest();
    let reading = |has: fn(WireType) -> bool| {
        let count = columns.iter().filter(|column| has(column.wire_type)).count();
        let mut index = 0..;
        let read = for_each(columns, has, || Ok(index.next().is_some_and(|index| high_bit(bits, index))));
        read.ok().filter(|_| bits.len() == count.div_ceil(8))
    };
    let without_years = match flavor {
        Flavor::Mysql => reading(|wire_type| wire_type.is_numeric() && wire_type != WireType::Year),
        Flavor::Mariadb => None,
    };
    match (reading(WireType::is_numeric), without_years) {
        (Some(one), Some(other)) => {
            Ok(one.into_iter().zip(other).map(|(one, other)| one.filter(|_| one == other)).collect())
        }
        (Some(read), None) | (None, Some(read)) => Ok(read),
        (None, None) => Err(Short),
    }
}

/// A default and the exceptions to it, each by its place among the columns that `has` is true for.
fn read_default_collations(
    value: &mut Reader<'_>,
    columns: &[ColumnMeta],
    has: impl Fn(WireType) -> bool,
) -> Result<Vec<Option<u64>>, Short> {
    let default = value.packed()?;
    let mut collations = for_each(columns, &has, || Ok(default))?;
    let mut described: Vec<&mut u64> = collations.iter_mut().flatten().collect();
    while !value.is_empty() {
        let index = usize::try_from(value.packed()?).map_err(|_| Short)?;
        **described.get_mut(index).ok_or(Short)? = value.packed()?;
    }
    Ok(collations)
}

fn read_names(value: &mut Reader<'_>, count: usize) -> Result<Vec<String>, Short> {
    (0..count).map(|_| Ok(str::from_utf8(value.packed_bytes()?).map_err(|_| Short)?.to_owned())).collect()
}

fn read_labels(
    value: &mut Reader<'_>,
    columns: &[ColumnMeta],
    metadata: &mut OptionalMetadata,
    has: impl Fn(WireType) -> bool,
) -> Result<(), Short> {
    let labels = metadata.labels.get_or_insert_with(|| vec![None; columns.len()]);
    for (_, labels) in columns.iter().zip(labels).filter(|(column, _)| has(column.wire_type)) {
        let mut list = Vec::new();
        for _ in 0..value.packed()? {
            list.push(value.packed_bytes()?.to_vec());
        }
        *labels = Some(list);
    }
    Ok(())
}

fn read_key(value: &mut Reader<'_>, with_prefix_lengths: bool) -> Result<Vec<usize>, Short> {
    let mut key = Vec::new();
    while !value.is_empty() {
        key.push(usize::try_from(value.packed()?).map_err(|_| Short)?);
        if with_prefix_lengths {
            value.packed()?;
        }
    }
    Ok(key)
}

fn utf8(bytes: &[u8]) -> Result<String, DecodeError> {
    str::from_utf8(bytes).map(str::to_owned).map_err(|_| DecodeError::Malformed { what: "table name" })
}

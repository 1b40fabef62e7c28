//! The event's columns against the catalog's: they fit, and each gets its [`Cell`], or the schema is another one.

use std::sync::Arc;

use super::{
    DecodeOptions,
    cell::{Cell, IntegerWidth},
    charset::Charset,
    collation, decimal,
    error::SchemaMismatch,
    source_type::SourceType,
    table_map::TableMap,
    wire_type::{Extent, WireType},
};
use crate::{
    database::mysql::literal::is_geometry,
    model::{Column, TableSchema},
};

/// The places of columns that the server made for itself and shows to nobody: the expressions of functional indexes. A
/// row image has none of them (seen: 8.0.15; 9.7.4 leaves them out of the table map as well). Only names tell.
pub(super) fn hidden(map: &TableMap, schema: &TableSchema) -> Vec<usize> {
    let names = map.metadata.names.iter().flatten().enumerate();
    names.filter(|(_, name)| is_hidden(name) && schema.column(name).is_none()).map(|(index, _)| index).collect()
}

impl TableMap {
    /// The names of the columns that the catalog may show, where the event names any.
    pub fn shown_names(&self) -> Option<Vec<String>> {
        Some(self.metadata.names.as_ref()?.iter().filter(|name| !is_hidden(name)).cloned().collect())
    }
}

/// A digest in 8.0.13 and later, with its parts spelled out from 8.0.22 on.
fn is_hidden(name: &str) -> bool {
    let digest = name.len() == 32 && name.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'a'..=b'f'));
    digest || name.starts_with("!hidden!")
}

/// The cells of all columns but the hidden ones, in order.
pub(super) fn cells(
    map: &TableMap,
    schema: &TableSchema,
    options: &DecodeOptions,
    hidden: &[usize],
) -> Result<Vec<Cell>, SchemaMismatch> {
    let table = || schema.table.to_string();
    let shown: Vec<usize> = (0..map.columns.len()).filter(|index| !hidden.contains(index)).collect();
    if shown.len() != schema.columns.len() {
        let (event, catalog) = (shown.len(), schema.columns.len());
        return Err(SchemaMismatch::ColumnCount { table: table(), event, catalog });
    }
    let mut cells = Vec::with_capacity(shown.len());
    for (index, column) in shown.into_iter().zip(&schema.columns) {
        let name = map.metadata.names.as_ref().and_then(|names| names.get(index));
        // To the server, a name is the same in any case.
        if let Some(name) = name
            && *name != column.name
            && name.to_lowercase() != column.name.to_lowercase()
        {
            let (event, catalog) = (name.clone(), column.name.clone());
            return Err(SchemaMismatch::ColumnName { table: table(), column: index + 1, event, catalog });
        }
        let Some(meta) = map.columns.get(index) else { break };
        cells.push(Fit { map, schema, options, index, wire: meta.wire_type, column }.cell()?);
    }
    Ok(cells)
}

/// One column on both sides.
struct Fit<'a> {
    map: &'a TableMap,
    schema: &'a TableSchema,
    options: &'a DecodeOptions,
    index: usize,
    wire: WireType,
    column: &'a Column,
}

impl Fit<'_> {
    fn cell(&self) -> Result<Cell, SchemaMismatch> {
        let source = SourceType::parse(&self.column.source_type);
        match source.base.as_str() {
            "tinyint" | "smallint" | "mediumint" | "int" | "integer" | "bigint" | "bool" | "boolean" => {
                self.integer(&source)
            }
            "float" | "double" | "real" => self.floating(&source),
            "date" | "time" | "datetime" | "timestamp" | "year" => self.temporal(&source),
            "enum" | "set" => self.labelled(&source),
            "decimal" | "numeric" => match self.wire {
                WireType::Decimal { precision, scale }
                    if (source.number(0).unwrap_or(10), source.number(1).unwrap_or(0))
                        == (u32::from(precision), u32::from(scale)) =>
                {
                    let bytes = u8::try_from(decimal::stored_bytes(precision, scale)).map_err(|_| self.mismatch())?;
                    Ok(Cell::Decimal { precision, scale, bytes })
                }
                _ => Err(self.mismatch()),
            },
            "bit" => match self.wire {
                WireType::Bit { bits } if source.number(0).unwrap_or(1) == u32::from(bits) => {
                    Ok(Cell::Bit { bytes: u8::try_from(bits.div_ceil(8)).map_err(|_| self.mismatch())? })
                }
                _ => Err(self.mismatch()),
            },
            _ => self.sized(&source),
        }
    }

    /// The types whose values carry their length.
    fn sized(&self, source: &SourceType) -> Result<Cell, SchemaMismatch> {
        let Extent::Prefixed(prefix) = self.wire.extent() else { return Err(self.mismatch()) };
        let doubles = self.options.json_doubles;
        match (source.base.as_str(), self.wire) {
            ("char" | "nchar", WireType::Fixed { .. })
            | ("varchar" | "nvarchar", WireType::Varchar { .. })
            | ("tinytext" | "text" | "mediumtext" | "longtext", WireType::Blob { .. }) => {
                Ok(Cell::Text { prefix, charset: self.charset()? })
            }
            ("binary", WireType::Fixed { bytes_max }) => {
                self.expect_binary()?;
                Ok(Cell::Padded { prefix, length: bytes_max })
            }
            // MariaDB's VECTOR is a VARBINARY in the binlog, MySQL's a type of its own.
            ("varbinary" | "vector", WireType::Varchar { .. })
            | ("tinyblob" | "blob" | "mediumblob" | "longblob", WireType::Blob { .. }) => {
                self.expect_binary()?;
                Ok(Cell::Bytes { prefix })
            }
            ("vector", WireType::Vector { .. }) => Ok(Cell::Bytes { prefix }),
            ("json", WireType::Json { .. }) => Ok(Cell::Json { prefix, doubles }),
            // MariaDB's JSON is a LONGTEXT.
            ("json", WireType::Blob { .. }) => Ok(Cell::Text { prefix, charset: self.charset()? }),
            (geometry, WireType::Geometry { .. }) if is_geometry(geometry) => Ok(Cell::Geometry { prefix }),
            ("uuid", WireType::Fixed { bytes_max: 16 }) => Ok(Cell::Uuid { prefix }),
            ("inet6", WireType::Fixed { bytes_max: 16 }) => Ok(Cell::Inet6 { prefix }),
            ("inet4", WireType::Fixed { bytes_max: 4 }) => Ok(Cell::Inet4 { prefix }),
            ("varchar", WireType::VarcharCompressed { .. })
            | ("tinytext" | "text" | "mediumtext" | "longtext", WireType::BlobCompressed { .. }) => {
                Ok(Cell::Compressed { prefix, charset: Some(self.charset()?) })
            }
            ("varbinary", WireType::VarcharCompressed { .. })
            | ("tinyblob" | "blob" | "mediumblob" | "longblob", WireType::BlobCompressed { .. }) => {
                Ok(Cell::Compressed { prefix, charset: None })
            }
            _ => Err(self.mismatch()),
        }
    }

    fn integer(&self, source: &SourceType) -> Result<Cell, SchemaMismatch> {
        let width = match (source.base.as_str(), self.wire) {
            ("tinyint" | "bool" | "boolean", WireType::Tiny) => IntegerWidth::One,
            ("smallint", WireType::Short) => IntegerWidth::Two,
            ("mediumint", WireType::Int24) => IntegerWidth::Three,
            ("int" | "integer", WireType::Long) => IntegerWidth::Four,
            ("bigint", WireType::LongLong) => IntegerWidth::Eight,
            _ => return Err(self.mismatch()),
        };
        let unsigned = match self.own(&self.map.metadata.unsigned) {
            Some(unsigned) if *unsigned != source.unsigned => return Err(self.mismatch()),
            Some(_) | None => source.unsigned,
        };
        Ok(Cell::Integer { width, unsigned })
    }

    fn floating(&self, source: &SourceType) -> Result<Cell, SchemaMismatch> {
        match (source.base.as_str(), self.wire) {
            ("float", WireType::Float) => Ok(Cell::Float),
            ("double" | "real", WireType::Double) => Ok(Cell::Double),
            _ => Err(self.mismatch()),
        }
    }

    fn temporal(&self, source: &SourceType) -> Result<Cell, SchemaMismatch> {
        let zero = self.options.zero_dates;
        let expected = source.number(0).unwrap_or(0);
        let old = |cell| match expected {
            0 => Ok(cell),
            _ => {
                let (table, column) = (self.schema.table.to_string(), self.column.name.clone());
                let catalog = self.column.source_type.clone();
                Err(SchemaMismatch::OldTemporalFormat { table, column, catalog })
            }
        };
        match (source.base.as_str(), self.wire) {
            ("year", WireType::Year) => Ok(Cell::Year),
            ("date", WireType::Date) => Ok(Cell::Date(zero)),
            ("time", WireType::Time { digits }) if expected == u32::from(digits) => Ok(Cell::Time { digits }),
            ("time", WireType::OldTime) => old(Cell::OldTime),
            ("datetime", WireType::DateTime { digits }) if expected == u32::from(digits) => {
                Ok(Cell::DateTime { digits, zero })
            }
            ("datetime", WireType::OldDateTime) => old(Cell::OldDateTime(zero)),
            ("timestamp", WireType::Timestamp { digits }) if expected == u32::from(digits) => {
                Ok(Cell::Timestamp { digits, zero })
            }
            ("timestamp", WireType::OldTimestamp) => old(Cell::OldTimestamp(zero)),
            _ => Err(self.mismatch()),
        }
    }

    fn labelled(&self, source: &SourceType) -> Result<Cell, SchemaMismatch> {
        let labels = match self.own(&self.map.metadata.labels) {
            Some(labels) => {
                let charset = match self.own(&self.map.metadata.label_collations) {
                    Some(collation) => self.charset_of(*collation)?,
                    None => self.catalog_charset()?,
                };
                let text = |label: &Vec<u8>| charset.decode(label);
                labels.iter().map(text).collect::<Result<Vec<String>, _>>().map_err(|_| self.mismatch())?
            }
            None => source.labels.clone(),
        };
        let count = labels.len();
        let labels: Arc<[String]> = labels.into();
        match (source.base.as_str(), self.wire) {
            ("enum", WireType::Enum { width }) if usize::from(width) == if count < 256 { 1 } else { 2 } => {
                Ok(Cell::Enum { width, labels })
            }
            ("set", WireType::Set { width }) if width == set_width(count) => Ok(Cell::Set { width, labels }),
            _ => Err(self.mismatch()),
        }
    }

    /// What a list of the event's metadata says about this column.
    fn own<'m, T>(&self, list: &'m Option<Vec<Option<T>>>) -> Option<&'m T> {
        list.as_ref()?.get(self.index)?.as_ref()
    }

    /// The column's character set: the event's if it says so, else the catalog's.
    fn charset(&self) -> Result<Charset, SchemaMismatch> {
        match self.own(&self.map.metadata.collations) {
            Some(collation) => self.charset_of(*collation),
            None => self.catalog_charset(),
        }
    }

    fn charset_of(&self, collation: u64) -> Result<Charset, SchemaMismatch> {
        if collation == collation::BINARY {
            return Err(self.mismatch());
        }
        match collation::charset_name(collation).and_then(Charset::by_name) {
            Some(charset) => Ok(charset),
            // A collation of a later release, of a character set that the catalog knows.
            None => self.catalog_charset(),
        }
    }

    fn catalog_charset(&self) -> Result<Charset, SchemaMismatch> {
        let name = self.column.charset.as_deref().unwrap_or("unknown");
        Charset::by_name(name).ok_or_else(|| SchemaMismatch::Charset {
            table: self.schema.table.to_string(),
            column: self.column.name.clone(),
            charset: name.to_owned(),
        })
    }

    /// The event must not call bytes a text.
    fn expect_binary(&self) -> Result<(), SchemaMismatch> {
        match self.own(&self.map.metadata.collations) {
            Some(&collation::BINARY) | None => Ok(()),
            Some(_) => Err(self.mismatch()),
        }
    }

    fn mismatch(&self) -> SchemaMismatch {
        let unsigned = self.own(&self.map.metadata.unsigned).is_some_and(|unsigned| *unsigned);
        SchemaMismatch::ColumnType {
            table: self.schema.table.to_string(),
            column: self.column.name.clone(),
            event: format!("{:?}{}", self.wire, if unsigned { " unsigned" } else { "" }),
            catalog: self.column.source_type.clone(),
        }
    }
}

/// The bytes of a SET of so many members.
fn set_width(count: usize) -> u8 {
    match count.div_ceil(8) {
        0 | 1 => 1,
        2 => 2,
        3 => 3,
        4 => 4,
        _ => 8,
    }
}

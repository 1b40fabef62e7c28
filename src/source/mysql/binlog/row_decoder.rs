//! Rows of a table that the catalog describes: the event's bytes to values, row by row.

use std::sync::Arc;

use super::{
    DecodeOptions,
    cell::Cell,
    error::{DecodeError, SchemaMismatch, ValueError},
    reader::{During, Reader},
    rows::Rows,
    schema_match,
    table_map::{TableMap, bit},
};
use crate::model::{Images, TableSchema, Value};

/// Decodes rows of one table map. Made once for a map and kept as long as the map's bytes stay the same.
#[derive(Debug, Clone)]
pub struct RowDecoder {
    schema: Arc<TableSchema>,
    cells: Vec<Cell>,
    /// Places of columns that no row image has.
    hidden: Vec<usize>,
}

impl RowDecoder {
    /// Fits the event's columns to the catalog's. The event's own metadata, where it has any, decides on
    /// signedness, character sets and labels; the catalog's on the rest.
    pub fn new(map: &TableMap, schema: Arc<TableSchema>, options: &DecodeOptions) -> Result<Self, SchemaMismatch> {
        let hidden = schema_match::hidden(map, &schema);
        let cells = schema_match::cells(map, &schema, options, &hidden)?;
        Ok(RowDecoder { schema, cells, hidden })
    }

    /// The same, for an event that does not name its columns and has more than the catalog: they are taken for hidden
    /// ones behind all others, and rows that have them all the same are refused.
    pub fn with_hidden_behind(
        map: &TableMap,
        schema: Arc<TableSchema>,
        options: &DecodeOptions,
    ) -> Result<Self, SchemaMismatch> {
        let named = map.metadata.names.is_some();
        let hidden: Vec<usize> = if named { Vec::new() } else { (schema.columns.len()..map.columns.len()).collect() };
        let cells = schema_match::cells(map, &schema, options, &hidden)?;
        Ok(RowDecoder { schema, cells, hidden })
    }

    /// The schema that the images are in the order of.
    pub fn schema(&self) -> &Arc<TableSchema> {
        &self.schema
    }

    /// The event's rows, decoded one at a time as they are asked for.
    pub fn rows<'r>(&'r self, rows: &'r Rows<'_>) -> Result<RowImages<'r>, DecodeError> {
        let columns = self.cells.len() + self.hidden.len();
        let empty = rows.data.is_empty();
        if !empty && rows.columns != columns {
            return Err(DecodeError::ColumnCount { rows: rows.columns as u64, map: columns });
        }
        for present in rows.images().filter(|_| !empty) {
            if self.hidden.iter().any(|index| bit(present, *index)) {
                return Err(DecodeError::Refused {
                    what: "rows with a column that the catalog does not show",
                    remedy: "set binlog_row_metadata = FULL on the source, so that rows name their columns",
                });
            }
            let missing = |index: &usize| !bit(present, *index) && !self.hidden.contains(index);
            if let Some(missing) = (0..columns).find(missing) {
                return Err(DecodeError::PartialImage { column: missing + 1 });
            }
        }
        Ok(RowImages { decoder: self, reader: Reader::new(&rows.data), kind: rows.kind })
    }

    fn image(&self, reader: &mut Reader<'_>) -> Result<Vec<Value>, DecodeError> {
        let nulls = reader.bytes(self.cells.len().div_ceil(8)).during("row")?;
        let mut values = Vec::with_capacity(self.cells.len());
        for (index, cell) in self.cells.iter().enumerate() {
            if bit(nulls, index) {
                values.push(Value::Null);
                continue;
            }
            match cell.read(reader) {
                Ok(value) => values.push(value),
                Err(error) => return Err(self.error(index, error)),
            }
        }
        Ok(values)
    }

    #[cold]
    fn error(&self, index: usize, error: ValueError) -> DecodeError {
        let name = self.schema.columns.get(index).map(|column| column.name.clone()).unwrap_or_default();
        DecodeError::Value { column: index + 1, name, error }
    }
}

/// The rows of an event. After an error there are no more.
#[derive(Debug, Clone)]
pub struct RowImages<'r> {
    decoder: &'r RowDecoder,
    reader: Reader<'r>,
    kind: super::RowsKind,
}

impl RowImages<'_> {
    fn row(&mut self) -> Result<Images, DecodeError> {
        use super::RowsKind::{Delete, Update, Write};
        if self.decoder.cells.is_empty() {
            return Err(DecodeError::Malformed { what: "row" });
        }
        let mut image = || self.decoder.image(&mut self.reader).map(Some);
        Ok(match self.kind {
            Write => Images { before: None, after: image()? },
            Delete => Images { before: image()?, after: None },
            Update => Images { before: image()?, after: image()? },
        })
    }
}

impl Iterator for RowImages<'_> {
    type Item = Result<Images, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.reader.is_empty() {
            return None;
        }
        let row = self.row();
        if row.is_err() {
            self.reader = Reader::new(&[]);
        }
        Some(row)
    }
}

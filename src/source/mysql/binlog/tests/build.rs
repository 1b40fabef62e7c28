//! Tables and rows of one column, built by hand.

use std::{borrow::Cow, sync::Arc};

use super::super::{reader::Reader, *};
use crate::model::{Column, ColumnType, TableName, TableSchema, Value};

/// A column on both sides: the binlog's type and metadata, the catalog's type and character set.
#[derive(Clone, Copy)]
pub(super) struct Column1<'a> {
    pub(super) code: u8,
    pub(super) metadata: &'a [u8],
    pub(super) source_type: &'a str,
    pub(super) charset: Option<&'a str>,
}

pub(super) fn column<'a>(code: u8, metadata: &'a [u8], source_type: &'a str) -> Column1<'a> {
    Column1 { code, metadata, source_type, charset: None }
}

impl Column1<'_> {
    pub(super) fn map(&self) -> TableMap {
        let wire_type = WireType::read(self.code, &mut Reader::new(self.metadata)).expect("metadata").expect("a type");
        TableMap {
            table_id: 7,
            schema: "shop".into(),
            table: "t".into(),
            columns: vec![ColumnMeta { wire_type, nullable: true }],
            metadata: OptionalMetadata::default(),
        }
    }

    pub(super) fn schema(&self) -> Arc<TableSchema> {
        let column = Column {
            name: "c".into(),
            column_type: ColumnType::Text,
            source_type: self.source_type.into(),
            nullable: true,
            charset: self.charset.map(str::to_owned),
            collation: None,
            generated: false,
        };
        Arc::new(TableSchema { table: TableName::new("shop", "t"), columns: vec![column], key: vec![] })
    }

    /// The value of a row that holds `stored`.
    pub(super) fn value(&self, stored: &[u8]) -> Result<Value, DecodeError> {
        self.value_with(stored, &DecodeOptions::default())
    }

    pub(super) fn value_with(&self, stored: &[u8], options: &DecodeOptions) -> Result<Value, DecodeError> {
        let decoder = RowDecoder::new(&self.map(), self.schema(), options).expect("a fitting schema");
        let data = [&[0], stored].concat();
        let rows = write(&data);
        let mut images = decoder.rows(&rows)?;
        let image = images.next().expect("a row")?.after.expect("an after-image");
        assert_eq!(images.next(), None, "bytes are left");
        Ok(image.into_iter().next().expect("a value"))
    }
}

/// A rows event that writes to a table of one column.
pub(super) fn write(data: &[u8]) -> Rows<'_> {
    Rows {
        kind: RowsKind::Write,
        table_id: 7,
        end_of_statement: true,
        columns: 1,
        before_present: &[],
        after_present: &[0xff],
        data: Cow::Borrowed(data),
    }
}

pub(super) fn text(text: &str) -> Result<Value, DecodeError> {
    Ok(Value::Text(text.to_owned()))
}

/// The error of the only column.
pub(super) fn refused(error: ValueError) -> Result<Value, DecodeError> {
    Err(DecodeError::Value { column: 1, name: "c".into(), error })
}

//! Columns that only the event knows: they came and went, or were of another type for a while, between the capture's
//! place in the log and the present catalog.
//!
//! What enters: a table map with the names that `binlog_row_metadata = FULL` adds, and the columns known from before
//! and from the catalog. What leaves: columns as the event itself describes them. The invariant: a known column stays
//! what it is, or becomes another width or precision of the same kind. Absent on purpose: what an event cannot tell
//! apart (MariaDB's UUID and INET types from bytes, its JSON from text), which nobody may guess.

use super::binlog::{TableMap, WireType};
use crate::{
    database::mysql::catalog::column_type,
    model::{Column, ColumnType},
};

/// MySQL's and MariaDB's number of the collation of bytes.
const BINARY: u64 = 63;

/// The column at this place, as the event describes it; `known` is the column that its name stands for elsewhere.
pub(super) fn column(map: &TableMap, index: usize, known: Option<&Column>) -> Option<Column> {
    let name = map.metadata.names.as_ref()?.get(index)?.clone();
    let meta = map.columns.get(index)?;
    let source_type = spelled(map, index)?;
    let base = source_type.split(['(', ' ']).next()?;
    let described = Column {
        name,
        column_type: column_type(base, &source_type)?,
        source_type,
        nullable: meta.nullable,
        charset: known.and_then(|known| known.charset.clone()),
        collation: known.and_then(|known| known.collation.clone()),
        generated: known.is_some_and(|known| known.generated),
    };
    known.is_none_or(|known| of_one_kind(&known.column_type, &described.column_type)).then_some(described)
}

fn of_one_kind(one: &ColumnType, other: &ColumnType) -> bool {
    let whole = |kind: &ColumnType| matches!(kind, ColumnType::SmallInt | ColumnType::Integer | ColumnType::BigInt);
    (whole(one) && whole(other)) || std::mem::discriminant(one) == std::mem::discriminant(other)
}

/// The type as the catalog would spell it.
fn spelled(map: &TableMap, index: usize) -> Option<String> {
    fn own<T: Copy>(list: Option<&Vec<Option<T>>>, index: usize) -> Option<T> {
        *list?.get(index)?
    }
    let bytes = own(map.metadata.collations.as_ref(), index).map(|collation| collation == BINARY);
    let signed = |base: &str| {
        let unsigned = own(map.metadata.unsigned.as_ref(), index)?;
        Some(if unsigned { format!("{base} unsigned") } else { base.to_owned() })
    };
    let of = |base: &str, digits: u8| if digits == 0 { base.to_owned() } else { format!("{base}({digits})") };
    Some(match map.columns.get(index)?.wire_type {
        WireType::Tiny => signed("tinyint")?,
        WireType::Short => signed("smallint")?,
        WireType::Int24 => signed("mediumint")?,
        WireType::Long => signed("int")?,
        WireType::LongLong => signed("bigint")?,
        WireType::Float => "float".into(),
        WireType::Double => "double".into(),
        WireType::Year => "year".into(),
        WireType::Date => "date".into(),
        WireType::Time { digits } => of("time", digits),
        WireType::DateTime { digits } => of("datetime", digits),
        WireType::Timestamp { digits } => of("timestamp", digits),
        WireType::Decimal { precision, scale } => format!("decimal({precision},{scale})"),
        WireType::Bit { bits } => format!("bit({bits})"),
        WireType::Varchar { bytes_max } => format!("{}({bytes_max})", if bytes? { "varbinary" } else { "varchar" }),
        WireType::Fixed { bytes_max } => format!("{}({bytes_max})", if bytes? { "binary" } else { "char" }),
        WireType::Blob { prefix } => {
            let size = ["tiny", "", "medium", "long"].get(usize::from(prefix).checked_sub(1)?)?;
            format!("{size}{}", if bytes? { "blob" } else { "text" })
        }
        WireType::Json { .. } => "json".into(),
        WireType::Null
        | WireType::OldTime
        | WireType::OldDateTime
        | WireType::OldTimestamp
        | WireType::Enum { .. }
        | WireType::Set { .. }
        | WireType::Geometry { .. }
        | WireType::Vector { .. }
        | WireType::VarcharCompressed { .. }
        | WireType::BlobCompressed { .. } => return None,
    })
}

//! From what the client protocol delivers to [`Value`], spelled as the binlog decoder spells the same value.
//!
//! Rows are read by the binary protocol, which delivers integers, floats, dates and times as numbers: nothing is
//! parsed from text that a setting could have shaped, and a FLOAT keeps its last bit.
//! <https://dev.mysql.com/doc/dev/mysql-server/latest/page_protocol_binary_resultset.html>

use std::fmt::Write as _;

use mysql_async::Value as Cell;

use crate::model::{Column, ColumnType, TableSchema, Value, ZeroDates};

/// A cell that cannot be spelled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpellingError {
    #[error(
        "column `{column}` holds a zero date, which [source] zero_dates = \"error\" refuses; correct the row, or choose \
         \"null\" or a date instead"
    )]
    ZeroDate { column: String },
    #[error("column `{column}` of type `{source_type}` came as something else; the table was changed: try again")]
    Unexpected { column: String, source_type: String },
    #[error("column `{column}` holds bytes that are no UTF-8 text; correct the row at the source")]
    NotText { column: String },
}

/// How the cells of one column are spelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spelling {
    Integer,
    /// BIGINT UNSIGNED, the one integer that an `i64` does not hold.
    Unsigned,
    Decimal,
    Float,
    Double,
    Text,
    Bytes,
    /// Bytes after four of SRID.
    Geometry,
    Date,
    DateTime,
    Time,
}

impl Spelling {
    fn of(column: &Column) -> Self {
        match &column.column_type {
            ColumnType::SmallInt | ColumnType::Integer | ColumnType::BigInt => Spelling::Integer,
            ColumnType::Numeric { .. } if column.source_type.starts_with("bigint") => Spelling::Unsigned,
            ColumnType::Numeric { .. } => Spelling::Decimal,
            ColumnType::Real => Spelling::Float,
            ColumnType::Double => Spelling::Double,
            ColumnType::Text | ColumnType::Json | ColumnType::Named(_) => Spelling::Text,
            ColumnType::Bytes if is_geometry(&column.source_type) => Spelling::Geometry,
            ColumnType::Bytes => Spelling::Bytes,
            ColumnType::Date => Spelling::Date,
            ColumnType::Timestamp | ColumnType::TimestampTz => Spelling::DateTime,
            ColumnType::Interval => Spelling::Time,
        }
    }
}

fn is_geometry(source_type: &str) -> bool {
    !["bit", "binary", "varbinary", "tinyblob", "blob", "mediumblob", "longblob", "vector"]
        .iter()
        .any(|name| source_type.starts_with(name))
}

/// Spells the rows of one table.
#[derive(Debug, Clone)]
pub struct RowSpeller {
    columns: Vec<(Spelling, String, String)>,
    zero_dates: ZeroDates,
}

impl RowSpeller {
    pub fn new(schema: &TableSchema, zero_dates: ZeroDates) -> Self {
        let columns = schema.columns.iter();
        let columns =
            columns.map(|column| (Spelling::of(column), column.name.clone(), column.source_type.clone())).collect();
        RowSpeller { columns, zero_dates }
    }

    /// Spells one row, its cells in the schema's column order.
    pub fn row(&self, row: mysql_async::Row) -> Result<Vec<Value>, SpellingError> {
        let mut values = Vec::with_capacity(self.columns.len());
        let mut cells = row.unwrap_raw().into_iter();
        for (spelling, name, source_type) in &self.columns {
            let unexpected = || SpellingError::Unexpected { column: name.clone(), source_type: source_type.clone() };
            let cell = cells.next().flatten().ok_or_else(unexpected)?;
            values.push(match self.spell(*spelling, cell) {
                Ok(value) => value,
                Err(Refusal::ZeroDate) => return Err(SpellingError::ZeroDate { column: name.clone() }),
                Err(Refusal::NotText) => return Err(SpellingError::NotText { column: name.clone() }),
                Err(Refusal::Unexpected) => return Err(unexpected()),
            });
        }
        Ok(values)
    }

    fn spell(&self, spelling: Spelling, cell: Cell) -> Result<Value, Refusal> {
        Ok(match (spelling, cell) {
            (_, Cell::NULL) => Value::Null,
            (Spelling::Integer, Cell::Int(number)) => Value::Int(number),
            (Spelling::Integer, Cell::UInt(number)) => {
                Value::Int(i64::try_from(number).map_err(|_| Refusal::Unexpected)?)
            }
            (Spelling::Integer, Cell::Bytes(digits)) => Value::Int(parsed(&digits)?),
            (Spelling::Unsigned, Cell::Int(number)) => {
                Value::UInt(u64::try_from(number).map_err(|_| Refusal::Unexpected)?)
            }
            (Spelling::Unsigned, Cell::UInt(number)) => Value::UInt(number),
            (Spelling::Unsigned, Cell::Bytes(digits)) => Value::UInt(parsed(&digits)?),
            (Spelling::Decimal, Cell::Bytes(digits)) => Value::Text(decimal(text(digits)?)),
            (Spelling::Float, Cell::Float(number)) => Value::Float(number),
            (Spelling::Double, Cell::Double(number)) => Value::Double(number),
            (Spelling::Text, Cell::Bytes(bytes)) => Value::Text(text(bytes)?),
            (Spelling::Bytes, Cell::Bytes(bytes)) => Value::Bytes(bytes),
            (Spelling::Geometry, Cell::Bytes(mut bytes)) => {
                if bytes.len() < 4 {
                    return Err(Refusal::Unexpected);
                }
                bytes.drain(..4);
                Value::Bytes(bytes)
            }
            (Spelling::Date, Cell::Date(year, month, day, ..)) => match self.date(year, month, day)? {
                Some((year, month, day)) => Value::Text(date(year, month, day)),
                None => Value::Null,
            },
            (Spelling::DateTime, Cell::Date(year, month, day, hour, minute, second, micros)) => {
                match self.date(year, month, day)? {
                    Some(kept) if kept == (year, month, day) => {
                        Value::Text(date_time(kept, (hour, minute, second, micros)))
                    }
                    Some(replaced) => Value::Text(date_time(replaced, (0, 0, 0, 0))),
                    None => Value::Null,
                }
            }
            (Spelling::Time, Cell::Time(negative, days, hours, minutes, seconds, micros)) => {
                let hours = u64::from(days) * 24 + u64::from(hours);
                Value::Text(time(negative, hours, minutes, seconds, micros))
            }
            _ => return Err(Refusal::Unexpected),
        })
    }

    /// The date, or what stands for a zero date: none for NULL.
    fn date(&self, year: u16, month: u8, day: u8) -> Result<Option<(u16, u8, u8)>, Refusal> {
        if year != 0 && month != 0 && day != 0 {
            return Ok(Some((year, month, day)));
        }
        match self.zero_dates {
            ZeroDates::Null => Ok(None),
            ZeroDates::Error => Err(Refusal::ZeroDate),
            ZeroDates::Replace { year, month, day } => Ok(Some((year, month, day))),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    ZeroDate,
    NotText,
    Unexpected,
}

fn parsed<T: std::str::FromStr>(digits: &[u8]) -> Result<T, Refusal> {
    let digits = std::str::from_utf8(digits).map_err(|_| Refusal::Unexpected)?;
    digits.parse().map_err(|_| Refusal::Unexpected)
}

fn text(bytes: Vec<u8>) -> Result<String, Refusal> {
    String::from_utf8(bytes).map_err(|_| Refusal::NotText)
}

/// ZEROFILL pads with zeros that are no part of the value.
fn decimal(mut digits: String) -> String {
    let padding = digits.bytes().take_while(|digit| *digit == b'0').count();
    let kept = match digits.as_bytes().get(padding) {
        Some(b'.') | None => padding.saturating_sub(1),
        Some(_) => padding,
    };
    digits.drain(..kept);
    digits
}

/// `2024-05-30Z`
fn date(year: u16, month: u8, day: u8) -> String {
    let mut text = String::with_capacity(11);
    push_date(&mut text, year, month, day);
    text.push('Z');
    text
}

/// `2024-05-30T10:00:00.123456Z`
fn date_time((year, month, day): (u16, u8, u8), (hour, minute, second, micros): (u8, u8, u8, u32)) -> String {
    let mut text = String::with_capacity(27);
    push_date(&mut text, year, month, day);
    text.push('T');
    push_clock(&mut text, minute, second, micros, |text| push_two(text, hour));
    text.push('Z');
    text
}

/// `-838:59:59.000000`
fn time(negative: bool, hours: u64, minutes: u8, seconds: u8, micros: u32) -> String {
    let mut text = String::with_capacity(17);
    if negative {
        text.push('-');
    }
    push_clock(&mut text, minutes, seconds, micros, |text| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{hours:02}");
    });
    text
}

fn push_date(text: &mut String, year: u16, month: u8, day: u8) {
    push_two(text, u8::try_from(year / 100 % 100).unwrap_or_default());
    push_two(text, u8::try_from(year % 100).unwrap_or_default());
    text.push('-');
    push_two(text, month);
    text.push('-');
    push_two(text, day);
}

fn push_clock(text: &mut String, minute: u8, second: u8, micros: u32, hours: impl FnOnce(&mut String)) {
    hours(text);
    text.push(':');
    push_two(text, minute);
    text.push(':');
    push_two(text, second);
    text.push('.');
    for part in [micros / 10_000, micros / 100, micros] {
        push_two(text, u8::try_from(part % 100).unwrap_or_default());
    }
}

/// Two digits; formatting macros cost more than the rest of a row.
fn push_two(text: &mut String, number: u8) {
    text.push(char::from(b'0' + number / 10 % 10));
    text.push(char::from(b'0' + number % 10));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_six_digits_and_dates_their_z() {
        assert_eq!(date(2024, 5, 30), "2024-05-30Z");
        assert_eq!(date_time((999, 1, 2), (3, 4, 5, 60)), "0999-01-02T03:04:05.000060Z");
        assert_eq!(time(true, 838, 59, 59, 0), "-838:59:59.000000");
        assert_eq!(time(false, 0, 0, 1, 999_999), "00:00:01.999999");
    }

    #[test]
    fn zero_and_partial_zero_dates_become_what_the_option_says() {
        let speller = |zero_dates| RowSpeller { columns: Vec::new(), zero_dates };
        let zero = Cell::Date(2024, 0, 10, 1, 2, 3, 0);
        let replace = ZeroDates::Replace { year: 1970, month: 1, day: 1 };
        assert_eq!(speller(ZeroDates::Null).spell(Spelling::DateTime, zero.clone()), Ok(Value::Null));
        assert_eq!(speller(ZeroDates::Error).spell(Spelling::Date, zero.clone()), Err(Refusal::ZeroDate));
        let replaced = Value::Text("1970-01-01T00:00:00.000000Z".into());
        assert_eq!(speller(replace).spell(Spelling::DateTime, zero), Ok(replaced));
    }

    #[test]
    fn zerofill_is_not_part_of_a_decimal() {
        for (padded, value) in [("0000012.50", "12.50"), ("000.50", "0.50"), ("000", "0"), ("-1.0", "-1.0"), ("7", "7")]
        {
            assert_eq!(decimal(padded.to_owned()), value);
        }
    }

    #[test]
    fn the_columns_type_decides_on_the_integers_variant() {
        let speller = RowSpeller { columns: Vec::new(), zero_dates: ZeroDates::Null };
        assert_eq!(speller.spell(Spelling::Unsigned, Cell::Int(5)), Ok(Value::UInt(5)));
        assert_eq!(speller.spell(Spelling::Unsigned, Cell::UInt(u64::MAX)), Ok(Value::UInt(u64::MAX)));
        assert_eq!(speller.spell(Spelling::Integer, Cell::UInt(5)), Ok(Value::Int(5)));
        assert_eq!(speller.spell(Spelling::Integer, Cell::Bytes(b"00005".to_vec())), Ok(Value::Int(5)));
    }
}

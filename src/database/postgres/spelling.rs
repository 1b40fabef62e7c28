//! From PostgreSQL's text of a value to the form that the log stores.
//!
//! Snapshot and stream both come here with what the type's own output function wrote under the same settings
//! (`connect::settings`), so that the same value is the same bytes whichever way it came. What has no form of its own
//! stays the server's text. Absent: any change of a value; only dates and times change their spelling, to ISO 8601 with
//! six digits.

use crate::model::{Column, ColumnType, Problem, Value};

/// How the values of a column are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spelling {
    Bool,
    Int,
    Float,
    Double,
    Bytes,
    Date,
    Time,
    Timestamp,
    /// In UTC.
    TimestampTz,
    Text,
}

/// A text that is none of its type. Small, because it is returned once for every value, and without the value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.problem())]
pub enum SpellingError {
    Unexpected(&'static str),
    NotUtf8,
}

impl SpellingError {
    /// What is wrong, and what to do about it.
    pub fn problem(&self) -> Problem {
        match self {
            SpellingError::Unexpected(told) => Problem::new(
                format!("it is no {told}, though its type says so"),
                "the session's settings were changed, or this is a defect of cutover",
            ),
            SpellingError::NotUtf8 => Problem::new(
                "its bytes are no UTF-8 text",
                "a database with the encoding SQL_ASCII keeps whatever it is given: correct the row at the \
                 source",
            ),
        }
    }
}

impl Spelling {
    pub fn of(column: &Column) -> Self {
        match &column.column_type {
            ColumnType::SmallInt | ColumnType::Integer | ColumnType::BigInt => Spelling::Int,
            ColumnType::Real => Spelling::Float,
            ColumnType::Double => Spelling::Double,
            ColumnType::Bytes => Spelling::Bytes,
            ColumnType::Date => Spelling::Date,
            ColumnType::Timestamp => Spelling::Timestamp,
            ColumnType::TimestampTz => Spelling::TimestampTz,
            ColumnType::Named(name) if name == "boolean" => Spelling::Bool,
            ColumnType::Named(name) if is_time(name) => Spelling::Time,
            ColumnType::Numeric { .. }
            | ColumnType::Text
            | ColumnType::Json
            | ColumnType::Interval
            | ColumnType::Named(_) => Spelling::Text,
        }
    }

    /// The value of the server's bytes.
    pub fn value(self, bytes: &[u8]) -> Result<Value, SpellingError> {
        let text = str::from_utf8(bytes).map_err(|_| SpellingError::NotUtf8)?;
        let unexpected = |what| move || SpellingError::Unexpected(what);
        Ok(match self {
            Spelling::Text => Value::Text(text.to_owned()),
            Spelling::Int => Value::Int(text.parse().map_err(|_| SpellingError::Unexpected("integer"))?),
            Spelling::Bool => match text {
                "t" => Value::Bool(true),
                "f" => Value::Bool(false),
                _ => return Err(SpellingError::Unexpected("boolean")),
            },
            Spelling::Float => Value::Float(text.parse().map_err(|_| SpellingError::Unexpected("real"))?),
            Spelling::Double => Value::Double(text.parse().map_err(|_| SpellingError::Unexpected("double precision"))?),
            Spelling::Bytes => Value::Bytes(hex(text).ok_or_else(unexpected("bytea"))?),
            Spelling::Date => Value::Text(date(text)),
            Spelling::Time => Value::Text(format!("{}Z", six_digits(text))),
            Spelling::Timestamp => Value::Text(timestamp(text, "").ok_or_else(unexpected("timestamp"))?),
            Spelling::TimestampTz => Value::Text(timestamp(text, "+00").ok_or_else(unexpected("timestamptz"))?),
        })
    }
}

/// `time`, with or without its precision, and without a zone.
fn is_time(name: &str) -> bool {
    name.starts_with("time") && name.ends_with(" without time zone") && !name.starts_with("timestamp")
}

/// `\x00ff`.
fn hex(text: &str) -> Option<Vec<u8>> {
    let digits = text.strip_prefix("\\x")?.as_bytes();
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let (pairs, []) = digits.as_chunks::<2>() else { return None };
    pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect()
}

fn is_infinite(text: &str) -> bool {
    matches!(text, "infinity" | "-infinity")
}

/// `2024-05-30` to `2024-05-30Z`, and what is before Christ to `0044-03-15Z BC`, which PostgreSQL reads.
fn date(text: &str) -> String {
    if is_infinite(text) {
        return text.to_owned();
    }
    match text.strip_suffix(" BC") {
        Some(date) => format!("{date}Z BC"),
        None => format!("{text}Z"),
    }
}

/// `2024-05-30 10:00:00.5` to `2024-05-30T10:00:00.500000Z`; `zone` is what the text has to end with.
fn timestamp(text: &str, zone: &str) -> Option<String> {
    if is_infinite(text) {
        return Some(text.to_owned());
    }
    let (text, era) = text.strip_suffix(" BC").map_or((text, ""), |text| (text, " BC"));
    let (date, time) = text.strip_suffix(zone)?.split_once(' ')?;
    Some(format!("{date}T{}Z{era}", six_digits(time)))
}

/// `10:00:00.5` to `10:00:00.500000`.
fn six_digits(time: &str) -> String {
    let (seconds, fraction) = time.split_once('.').unwrap_or((time, ""));
    format!("{seconds}.{fraction:0<6}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spelled(spelling: Spelling, text: &str) -> Value {
        spelling.value(text.as_bytes()).expect("valid")
    }

    #[test]
    fn dates_and_times_are_iso_with_six_digits_in_every_era() {
        for (spelling, text, expected) in [
            (Spelling::Date, "2024-05-30", "2024-05-30Z"),
            (Spelling::Date, "0044-03-15 BC", "0044-03-15Z BC"),
            (Spelling::Date, "infinity", "infinity"),
            (Spelling::Time, "24:00:00", "24:00:00.000000Z"),
            (Spelling::Time, "10:00:00.12", "10:00:00.120000Z"),
            (Spelling::Timestamp, "2024-05-30 10:00:00.123456", "2024-05-30T10:00:00.123456Z"),
            (Spelling::Timestamp, "10000-01-01 00:00:00", "10000-01-01T00:00:00.000000Z"),
            (Spelling::TimestampTz, "0044-03-15 00:00:00.5+00 BC", "0044-03-15T00:00:00.500000Z BC"),
            (Spelling::TimestampTz, "-infinity", "-infinity"),
        ] {
            assert_eq!(spelled(spelling, text), Value::Text(expected.into()), "{text}");
        }
    }

    #[test]
    fn a_time_of_another_zone_is_refused() {
        let error = SpellingError::Unexpected("timestamptz");
        assert_eq!(Spelling::TimestampTz.value(b"2024-05-30 10:00:00+02"), Err(error));
    }

    #[test]
    fn numbers_and_bytes_keep_all_they_have() {
        assert_eq!(spelled(Spelling::Int, "-9223372036854775808"), Value::Int(i64::MIN));
        assert_eq!(spelled(Spelling::Double, "1.7976931348623157e+308"), Value::Double(f64::MAX));
        assert!(matches!(spelled(Spelling::Double, "NaN"), Value::Double(number) if number.is_nan()));
        assert_eq!(spelled(Spelling::Float, "-Infinity"), Value::Float(f32::NEG_INFINITY));
        assert_eq!(spelled(Spelling::Bytes, "\\x00fF"), Value::Bytes(vec![0, 255]));
        assert_eq!(spelled(Spelling::Text, "NaN"), Value::Text("NaN".into()));
        assert!(Spelling::Bytes.value(b"\\x0").is_err() && Spelling::Bytes.value(b"00").is_err());
        assert_eq!(Spelling::Text.value(&[0xff]), Err(SpellingError::NotUtf8));
    }
}

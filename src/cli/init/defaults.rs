//! Column defaults, from MySQL's spelling to PostgreSQL's.
//!
//! Only what means the same on both sides is translated; the rest is left to a person, as a comment.

use super::names::literal;
use crate::{database::mysql::details::DefaultValue, model::ColumnType};

/// The default of a column of these types in PostgreSQL's SQL; none where it has no plain equivalent.
pub(super) fn translate(default: &DefaultValue, column_type: &ColumnType, source_type: &str) -> Option<String> {
    match default {
        DefaultValue::Literal(text) => constant(text, column_type),
        DefaultValue::Expression(text) => expression(text.trim(), column_type, source_type),
    }
}

/// Whether the default is MySQL's zero date, or one with a zero part.
pub(super) fn is_zero_date(default: &DefaultValue) -> bool {
    match default {
        DefaultValue::Literal(text) => {
            let date: Vec<&str> = text.split([' ', 'T']).next().unwrap_or_default().split('-').collect();
            date.len() == 3 && date.iter().any(|part| part.bytes().all(|byte| byte == b'0'))
        }
        DefaultValue::Expression(text) => text.trim() == "0",
    }
}

fn constant(text: &str, column_type: &ColumnType) -> Option<String> {
    match column_type {
        ColumnType::SmallInt
        | ColumnType::Integer
        | ColumnType::BigInt
        | ColumnType::Numeric { .. }
        | ColumnType::Real
        | ColumnType::Double => number(text),
        ColumnType::Text if !text.contains('\0') => Some(literal(text)),
        ColumnType::Text => None,
        ColumnType::Date | ColumnType::Timestamp | ColumnType::TimestampTz => {
            let value = DefaultValue::Literal(text.to_owned());
            // A TIMESTAMP default is spelled in the session's time zone, which the catalog does not say.
            let zoned = *column_type == ColumnType::TimestampTz;
            (!zoned && !is_zero_date(&value)).then(|| literal(text))
        }
        ColumnType::Interval => Some(literal(text)),
        // The catalog spells the defaults of binary columns as text of some character set: not a faithful copy.
        ColumnType::Bytes | ColumnType::Json | ColumnType::Named(_) => None,
    }
}

/// The text itself if it is a plain number.
fn number(text: &str) -> Option<String> {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'.' | b'e' | b'E' | b'-' | b'+'));
    (plain && digits.starts_with(|first: char| first.is_ascii_digit()) && text.parse::<f64>().is_ok())
        .then(|| text.to_owned())
}

fn expression(text: &str, column_type: &ColumnType, source_type: &str) -> Option<String> {
    let lower = text.to_ascii_lowercase();
    let (function, argument) = match lower.split_once('(') {
        Some((function, rest)) => (function.trim(), rest.strip_suffix(')')?.trim()),
        None => (lower.as_str(), ""),
    };
    match (function, column_type) {
        ("current_timestamp" | "now" | "localtimestamp" | "localtime", ColumnType::Timestamp) => {
            precision(argument).map(|precision| format!("LOCALTIMESTAMP{precision}"))
        }
        ("current_timestamp" | "now" | "localtimestamp" | "localtime", ColumnType::TimestampTz) => {
            precision(argument).map(|precision| format!("CURRENT_TIMESTAMP{precision}"))
        }
        ("curdate" | "current_date", ColumnType::Date) if argument.is_empty() => Some("CURRENT_DATE".into()),
        ("uuid", ColumnType::Text) if argument.is_empty() => Some("gen_random_uuid()::text".into()),
        (_, ColumnType::Bytes) => bytes(text, source_type),
        (
            _,
            ColumnType::SmallInt
            | ColumnType::Integer
            | ColumnType::BigInt
            | ColumnType::Numeric { .. }
            | ColumnType::Real
            | ColumnType::Double,
        ) => number(text),
        (
            _,
            ColumnType::Text
            | ColumnType::Json
            | ColumnType::Date
            | ColumnType::Timestamp
            | ColumnType::TimestampTz
            | ColumnType::Interval
            | ColumnType::Named(_),
        ) => None,
    }
}

/// The precision of `CURRENT_TIMESTAMP`: MySQL's default is 0, PostgreSQL's 6.
fn precision(argument: &str) -> Option<String> {
    match argument {
        "" => Some("(0)".into()),
        "6" => Some(String::new()),
        digits if digits.len() == 1 && digits.bytes().all(|byte| (b'0'..=b'5').contains(&byte)) => {
            Some(format!("({digits})"))
        }
        _ => None,
    }
}

/// `b'101'` and `0x6162` as `bytea`, as wide as the column stores them: bits from the right, BINARY filled up
/// with zero bytes.
fn bytes(text: &str, source_type: &str) -> Option<String> {
    let length = source_type.split_once('(').and_then(|(_, rest)| rest.split(')').next()?.parse::<usize>().ok());
    if let Some(hex) = text.strip_prefix("0x") {
        let valid = hex.len().is_multiple_of(2) && hex.bytes().all(|byte| byte.is_ascii_hexdigit());
        let digits = if source_type.starts_with("binary(") { length? * 2 } else { 0 };
        return valid.then(|| format!("'\\x{hex:0<digits$}'"));
    }
    let value = u64::from_str_radix(text.strip_prefix("b'")?.strip_suffix('\'')?, 2).ok()?;
    Some(format!("'\\x{value:0digits$x}'", digits = length?.div_ceil(8) * 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_means_the_same_is_translated_and_the_rest_is_not() {
        let literal = |text: &str| DefaultValue::Literal(text.into());
        let sql = |text: &str| DefaultValue::Expression(text.into());
        let numeric = ColumnType::Numeric { precision: 10, scale: 2 };
        let cases = [
            (literal("5"), ColumnType::Integer, Some("5")),
            (sql("-1.50"), numeric, Some("-1.50")),
            (literal("x'y\\z"), ColumnType::Text, Some("'x''y\\z'")),
            (literal("2020-01-01 00:00:00"), ColumnType::Timestamp, Some("'2020-01-01 00:00:00'")),
            (literal("0000-00-00 00:00:00"), ColumnType::Timestamp, None),
            (literal("2020-01-01 00:00:00"), ColumnType::TimestampTz, None),
            (literal("-10:00:01"), ColumnType::Interval, Some("'-10:00:01'")),
            (sql("CURRENT_TIMESTAMP"), ColumnType::TimestampTz, Some("CURRENT_TIMESTAMP(0)")),
            (sql("current_timestamp()"), ColumnType::Timestamp, Some("LOCALTIMESTAMP(0)")),
            (sql("CURRENT_TIMESTAMP(6)"), ColumnType::Timestamp, Some("LOCALTIMESTAMP")),
            (sql("CURRENT_TIMESTAMP(3)"), ColumnType::Timestamp, Some("LOCALTIMESTAMP(3)")),
            (sql("uuid()"), ColumnType::Text, Some("gen_random_uuid()::text")),
            (sql("(1 + 2)"), ColumnType::Integer, None),
            (sql("concat('a')"), ColumnType::Text, None),
            (literal("ab"), ColumnType::Bytes, None),
        ];
        for (default, column_type, expected) in cases {
            assert_eq!(translate(&default, &column_type, "").as_deref(), expected, "{default:?}");
        }
        for (default, source_type, expected) in [
            ("b'101'", "bit(3)", Some("'\\x05'")),
            ("b'101'", "bit(9)", Some("'\\x0005'")),
            ("0x6162", "varbinary(9)", Some("'\\x6162'")),
            ("0x6162", "binary(4)", Some("'\\x61620000'")),
            ("0x616", "binary(4)", None),
        ] {
            assert_eq!(translate(&sql(default), &ColumnType::Bytes, source_type).as_deref(), expected, "{default}");
        }
    }

    #[test]
    fn zero_and_partial_zero_dates_are_seen() {
        for (text, zero) in [
            ("0000-00-00", true),
            ("0000-00-00 00:00:00.000000", true),
            ("2010-00-00", true),
            ("2010-01-01", false),
            ("00:00:00", false),
        ] {
            assert_eq!(is_zero_date(&DefaultValue::Literal(text.into())), zero, "{text}");
        }
    }
}

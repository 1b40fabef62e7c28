//! Values of facts as literals of a target's columns.
//!
//! A fact has PostgreSQL's text of the type that a transform sees for the column (docs/types.md); what MySQL would
//! change in silence is refused here, all else by the server, which is strict.

use crate::{
    database::mysql::{
        catalog,
        literal::{converted_literal, hex, is_character, is_geometry, is_number, quoted_literal},
    },
    model::{Column, ColumnType},
};

/// The longest key of InnoDB, in bytes.
const KEY_BYTES_MAX: u32 = 3072;

/// A value as a literal.
///
/// # Errors
/// Why the column cannot hold it, where the server would not say so.
pub(super) fn literal(column: &Column, text: Option<&str>) -> Result<String, String> {
    let Some(text) = text else { return Ok("NULL".into()) };
    if let Some(reason) = silently_changed(column, text) {
        return Err(format!("column `{}` {reason}", column.name));
    }
    Ok(match &column.column_type {
        ColumnType::Bytes if is_bit(column) => bits(text).unwrap_or_else(|| quoted_literal(text)),
        // Well-known binary, as capture has it; its SRID is not known.
        ColumnType::Bytes if is_geometry(column.base_type()) => format!("ST_GeomFromWKB(X'{text}')"),
        ColumnType::Bytes => format!("X'{text}'"),
        // The shortest text of the greatest number is one that FLOAT has no room for.
        ColumnType::Real if is_number(text) => {
            text.parse::<f32>().map_or_else(|_| quoted_literal(text), |number| format!("{:e}", f64::from(number)))
        }
        ColumnType::SmallInt
        | ColumnType::Integer
        | ColumnType::BigInt
        | ColumnType::Numeric { .. }
        | ColumnType::Double
            if is_number(text) =>
        {
            text.to_owned()
        }
        ColumnType::Timestamp | ColumnType::TimestampTz | ColumnType::Interval => quoted_literal(&time(column, text)),
        ColumnType::SmallInt
        | ColumnType::Integer
        | ColumnType::BigInt
        | ColumnType::Numeric { .. }
        | ColumnType::Real
        | ColumnType::Double
        | ColumnType::Text
        | ColumnType::Json
        | ColumnType::Date
        | ColumnType::Named(_) => quoted_literal(text),
    })
}

/// What MySQL would make another value of without a word: a fraction where it keeps none, a number of a label, a year
/// of two digits.
fn silently_changed(column: &Column, text: &str) -> Option<String> {
    match (&column.column_type, column.base_type()) {
        (ColumnType::Timestamp | ColumnType::TimestampTz | ColumnType::Interval, _) => {
            // `datetime` keeps none, `datetime(3)` three.
            let kept = column.type_length().unwrap_or_default();
            let digits = fraction(&time(column, text)).len();
            (digits > kept as usize).then(|| format!("keeps {kept} digits of a second, and the value has {digits}"))
        }
        (_, "tinyint" | "smallint" | "mediumint" | "int" | "bigint" | "year")
            if fraction(text).bytes().any(|digit| digit != b'0') =>
        {
            Some("takes whole numbers, and the value has a fraction".into())
        }
        (_, "year") => {
            let whole = text.split('.').next().unwrap_or_default();
            let short = whole.parse::<u16>().is_ok_and(|year| (1..=99).contains(&year));
            short.then(|| "would take a year of two digits for another one".into())
        }
        // A number, in whatever spelling, would be taken for a label's place.
        (_, "enum") => (!has_label(column, text)).then(|| "has no such label".into()),
        (_, "set") => {
            let unknown = !text.is_empty() && text.split(',').any(|part| !has_label(column, part));
            unknown.then(|| "has no such label".into())
        }
        (_, _) => None,
    }
}

fn has_label(column: &Column, text: &str) -> bool {
    catalog::members(&column.source_type).unwrap_or_default().iter().any(|label| label == text)
}

/// A key's value as what its column is compared with.
///
/// # Errors
/// Why no row can have it.
pub(super) fn key_literal(column: &Column, text: Option<&str>) -> Result<String, String> {
    let Some(text) = text else { return literal(column, None) };
    if column.base_type() == "char" && text.ends_with(' ') {
        return Err(format!("column `{}` drops spaces at the end, so that two keys would be one", column.name));
    }
    if is_text(column) {
        Ok(converted_literal(column, text))
    } else if is_bit(column) {
        // Spelled, it is a number already.
        literal(column, Some(text))
    } else {
        literal(column, Some(&spelled(column, text)))
    }
}

/// A key's value in the side table, where a text is its bytes in UTF-8.
///
/// # Errors
/// Why no row can have it.
pub(super) fn side_literal(column: &Column, text: Option<&str>) -> Result<String, String> {
    match text {
        Some(text) if is_text(column) => Ok(format!("X'{}'", hex(text.as_bytes()))),
        Some(_) | None => key_literal(column, text),
    }
}

/// A text of the target as it stands in the side table.
pub(super) fn side_value(column: &Column, name: &str) -> String {
    if is_text(column) { format!("CAST(CONVERT({name} USING utf8mb4) AS BINARY)") } else { name.to_owned() }
}

/// What a key of the side table is read as.
pub(super) fn side_expression(column: &Column, name: &str) -> String {
    if is_text(column) { format!("CONVERT({name} USING utf8mb4)") } else { key_expression(column, name) }
}

/// The type of a key's column in the side table.
pub(super) fn side_type(column: &Column) -> String {
    if is_text(column) {
        let bytes = column.type_length().unwrap_or_default() * character_bytes(column.charset.as_deref());
        return format!("VARBINARY({})", bytes.min(KEY_BYTES_MAX));
    }
    own_type(column)
}

/// The type of a column as its table has it.
pub(super) fn own_type(column: &Column) -> String {
    match (&column.charset, &column.collation) {
        (Some(charset), Some(collation)) => {
            format!("{} CHARACTER SET {charset} COLLATE {collation}", column.source_type)
        }
        (Some(_) | None, Some(_) | None) => column.source_type.clone(),
    }
}

/// A key's value that was read, as PostgreSQL spells such a value.
pub(super) fn told(column: &Column, spelled: &str) -> String {
    match column.column_type {
        ColumnType::Bytes if is_bit(column) => spelled.to_owned(),
        ColumnType::Bytes => format!("\\x{spelled}"),
        ColumnType::TimestampTz => format!("{spelled}+00"),
        _ => spelled.to_owned(),
    }
}

/// A key's value that was told, as a fact has it.
pub(super) fn of_fact(column: &Column, told: &str) -> String {
    match column.column_type {
        ColumnType::Bytes if is_bit(column) => {
            told.parse::<u64>().map_or_else(|_| told.to_owned(), |number| format!("{number:x}"))
        }
        ColumnType::Bytes => told.strip_prefix("\\x").unwrap_or(told).to_owned(),
        _ => told.to_owned(),
    }
}

/// Whether a key's column can be the side table's too, and be found again by its value: a TEXT or BLOB is a key by its
/// first bytes alone, and a FLOAT is no number that a text says.
pub(super) fn is_exact(column: &Column) -> bool {
    !["text", "blob", "float"].iter().any(|end| column.base_type().ends_with(end))
}

/// The most bytes in UTF-8 that a character of this set has.
fn character_bytes(charset: Option<&str>) -> u32 {
    match charset {
        Some("ascii") => 1,
        Some("utf8mb4" | "utf16" | "utf16le" | "utf32" | "gb18030") | None => 4,
        Some(_) => 3,
    }
}

/// What a stored key is read as, to be compared with a fact's.
pub(super) fn key_expression(column: &Column, name: &str) -> String {
    match column.column_type {
        ColumnType::Bytes if is_bit(column) => format!("HEX({name} + 0)"),
        ColumnType::Bytes => format!("LOWER(HEX({name}))"),
        ColumnType::SmallInt
        | ColumnType::Integer
        | ColumnType::BigInt
        | ColumnType::Numeric { .. }
        | ColumnType::Real
        | ColumnType::Double
        | ColumnType::Text
        | ColumnType::Json
        | ColumnType::Date
        | ColumnType::Timestamp
        | ColumnType::TimestampTz
        | ColumnType::Interval
        | ColumnType::Named(_) => format!("CAST({name} AS CHAR)"),
    }
}

/// One spelling of a key's value, whichever side it comes from.
pub(super) fn spelled(column: &Column, text: &str) -> String {
    match column.column_type {
        ColumnType::Bytes if is_bit(column) => bits(text).unwrap_or_else(|| text.to_owned()),
        // The server fills it up with zeros.
        ColumnType::Bytes if column.base_type() == "binary" => {
            let digits = 2 * column.type_length().unwrap_or_default() as usize;
            format!("{text:0<digits$}")
        }
        ColumnType::Timestamp | ColumnType::TimestampTz | ColumnType::Interval => time(column, text),
        ColumnType::SmallInt | ColumnType::Integer | ColumnType::BigInt | ColumnType::Numeric { .. }
            if is_number(text) && !text.contains('e') =>
        {
            number(text)
        }
        ColumnType::SmallInt
        | ColumnType::Integer
        | ColumnType::BigInt
        | ColumnType::Numeric { .. }
        | ColumnType::Bytes
        | ColumnType::Real
        | ColumnType::Double
        | ColumnType::Text
        | ColumnType::Json
        | ColumnType::Date
        | ColumnType::Named(_) => text.to_owned(),
    }
}

/// A number without zeros that say nothing.
fn number(text: &str) -> String {
    let (sign, digits) = text.strip_prefix('-').map_or(("", text), |digits| ("-", digits));
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let (whole, fraction) = (whole.trim_start_matches('0'), fraction.trim_end_matches('0'));
    match (whole, fraction) {
        ("", "") => "0".into(),
        (whole, "") => format!("{sign}{whole}"),
        (whole, fraction) => format!("{sign}{}.{fraction}", if whole.is_empty() { "0" } else { whole }),
    }
}

/// Whether the column's collation may take different texts for equal.
pub(super) fn is_text(column: &Column) -> bool {
    column.column_type == ColumnType::Text && is_character(column)
}

pub(super) fn is_bit(column: &Column) -> bool {
    column.base_type() == "bit"
}

/// The number that the bits are, of at most 64 of them.
fn bits(hex: &str) -> Option<String> {
    let digits = hex.trim_start_matches('0');
    if digits.is_empty() && !hex.is_empty() {
        return Some("0".into());
    }
    u64::from_str_radix(digits, 16).ok().map(|number| number.to_string())
}

/// A time as MySQL writes it, without zeros at its end.
fn time(column: &Column, text: &str) -> String {
    let text = match column.column_type {
        ColumnType::TimestampTz => text.strip_suffix("+00").unwrap_or(text).to_owned(),
        ColumnType::Interval => text.parse().map_or_else(|_| text.to_owned(), duration),
        _ => text.to_owned(),
    };
    match text.split_once('.') {
        Some((whole, fraction)) => {
            let fraction = fraction.trim_end_matches('0');
            if fraction.is_empty() { whole.to_owned() } else { format!("{whole}.{fraction}") }
        }
        None => text,
    }
}

/// µs as MySQL's TIME.
fn duration(microseconds: i64) -> String {
    let sign = if microseconds < 0 { "-" } else { "" };
    let all = microseconds.unsigned_abs();
    let (seconds, fraction) = (all / 1_000_000, all % 1_000_000);
    format!("{sign}{:02}:{:02}:{:02}.{fraction:06}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

fn fraction(time: &str) -> &str {
    time.split_once('.').map_or("", |(_, fraction)| fraction)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(source_type: &str, column_type: ColumnType) -> Column {
        Column {
            name: "c".into(),
            column_type,
            source_type: source_type.into(),
            nullable: true,
            charset: None,
            collation: None,
            generated: false,
        }
    }

    #[test]
    fn every_type_has_its_literal() {
        let numeric = ColumnType::Numeric { precision: 20, scale: 2 };
        for (source_type, column_type, text, expected) in [
            ("int(11)", ColumnType::Integer, "-5", "-5"),
            ("decimal(20,2)", numeric.clone(), "1.50", "1.50"),
            ("decimal(20,2)", numeric, "NaN", "'NaN'"),
            ("double", ColumnType::Double, "1e+300", "1e+300"),
            ("float", ColumnType::Real, "3.4028235e+38", "3.4028234663852886e38"),
            ("double", ColumnType::Double, "Infinity", "'Infinity'"),
            ("varchar(9)", ColumnType::Text, r"a\'b", r"'a\\''b'"),
            ("json", ColumnType::Json, r#"{"a": "\n"}"#, r#"'{"a": "\\n"}'"#),
            ("varbinary(4)", ColumnType::Bytes, "00ff", "X'00ff'"),
            ("bit(12)", ColumnType::Bytes, "0102", "258"),
            ("bit(1)", ColumnType::Bytes, "00", "0"),
            ("datetime(3)", ColumnType::Timestamp, "2024-05-30 10:00:00.120", "'2024-05-30 10:00:00.12'"),
            ("timestamp", ColumnType::TimestampTz, "2024-05-30 10:00:00+00", "'2024-05-30 10:00:00'"),
            ("time(6)", ColumnType::Interval, "-3020399000001", "'-838:59:59.000001'"),
            ("time", ColumnType::Interval, "1 mon", "'1 mon'"),
            ("enum('a','2')", ColumnType::Text, "2", "'2'"),
            ("set('a','b')", ColumnType::Text, "a,b", "'a,b'"),
            ("set('a','b')", ColumnType::Text, "", "''"),
            ("year(4)", ColumnType::SmallInt, "0", "0"),
        ] {
            assert_eq!(
                literal(&column(source_type, column_type), Some(text)).as_deref(),
                Ok(expected),
                "{source_type}"
            );
        }
        assert_eq!(literal(&column("int", ColumnType::Integer), None).as_deref(), Ok("NULL"));
    }

    #[test]
    fn what_would_be_changed_in_silence_is_refused() {
        for (source_type, column_type, text) in [
            ("datetime", ColumnType::Timestamp, "2024-05-30 10:00:00.5"),
            ("time(2)", ColumnType::Interval, "1001"),
            ("int(11)", ColumnType::Integer, "12.5"),
            ("bigint(20) unsigned", ColumnType::Numeric { precision: 20, scale: 0 }, "12.5"),
            ("year(4)", ColumnType::SmallInt, "24.0"),
            ("year(4)", ColumnType::SmallInt, "2024.5"),
            ("enum('a','b')", ColumnType::Text, " 2"),
            ("enum('a','b')", ColumnType::Text, "A"),
            ("set('a','b')", ColumnType::Text, "a,c"),
            ("year(4)", ColumnType::SmallInt, "24"),
            ("enum('a','b')", ColumnType::Text, "2"),
            ("set('a','b')", ColumnType::Text, "3"),
        ] {
            let column = column(source_type, column_type);
            assert!(literal(&column, Some(text)).is_err_and(|reason| reason.contains("`c`")), "{source_type}");
        }
        assert!(key_literal(&column("char(5)", ColumnType::Text), Some("a ")).is_err());
        assert_eq!(key_literal(&column("bit(12)", ColumnType::Bytes), Some("0102")).as_deref(), Ok("258"));
        let column = column("datetime", ColumnType::Timestamp);
        assert_eq!(literal(&column, Some("2024-05-30 10:00:00.000")).as_deref(), Ok("'2024-05-30 10:00:00'"));
    }

    #[test]
    fn both_sides_spell_a_key_alike() {
        for (source_type, column_type, fact, stored) in [
            ("datetime(6)", ColumnType::Timestamp, "2024-05-30 10:00:00", "2024-05-30 10:00:00.000000"),
            ("decimal(10,2)", ColumnType::Numeric { precision: 10, scale: 2 }, "5", "5.00"),
            ("decimal(10,2)", ColumnType::Numeric { precision: 10, scale: 2 }, "-0.50", "-0.5"),
            ("int(5) unsigned zerofill", ColumnType::BigInt, "42", "00042"),
            ("binary(3)", ColumnType::Bytes, "0a", "0a0000"),
            ("bit(12)", ColumnType::Bytes, "0102", "258"),
            ("time(6)", ColumnType::Interval, "3600000000", "01:00:00.000000"),
        ] {
            let column = column(source_type, column_type);
            let stored = if source_type.starts_with("bit") { stored.to_owned() } else { spelled(&column, stored) };
            assert_eq!(spelled(&column, fact), stored, "{source_type}");
        }
    }
}

//! Keys as SQL literals that round-trip exactly and compare in the column's own order.
//!
//! A bound between two chunks is kept as the SQL text of its key: it survives a restart, compares on the server as the
//! index does (collation, unsignedness, UUID order), and never passes through a client-side comparison.

use super::connect::quoted;
use crate::model::{Column, TableSchema, Value};

/// How a key column is read as a literal, and what it is compared by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum KeyKind {
    /// Digits as they come.
    Number,
    /// A floating point number, compared as DOUBLE.
    Float,
    /// ENUM, SET and BIT: by number, which is how their index is ordered.
    Ordinal,
    /// Text in the column's character set and collation.
    Text,
    Binary,
    /// Dates, times, UUID, INET: quoted text that the server converts.
    Quoted,
}

fn kind(column: &Column) -> KeyKind {
    let name = column.base_type();
    match name {
        "tinyint" | "smallint" | "mediumint" | "int" | "bigint" | "decimal" | "year" => KeyKind::Number,
        "float" | "double" => KeyKind::Float,
        "enum" | "set" | "bit" => KeyKind::Ordinal,
        "char" | "varchar" | "tinytext" | "text" | "mediumtext" | "longtext" => KeyKind::Text,
        "binary" | "varbinary" | "tinyblob" | "blob" | "mediumblob" | "longblob" => KeyKind::Binary,
        _ => KeyKind::Quoted,
    }
}

/// Whether the column is of characters, in a set and a collation.
pub(crate) fn is_character(column: &Column) -> bool {
    kind(column) == KeyKind::Text
}

/// Whether a type's name is one of a geometry's.
pub(crate) fn is_geometry(base: &str) -> bool {
    matches!(
        base,
        "geometry"
            | "point"
            | "linestring"
            | "polygon"
            | "multipoint"
            | "multilinestring"
            | "multipolygon"
            | "geometrycollection"
            | "geomcollection"
    )
}

/// Two literals that delimit what a key column is compared with: `t.col`, or `t.col + 0`.
pub(super) fn comparand(column: &Column) -> String {
    let name = quoted(&column.name);
    match kind(column) {
        KeyKind::Ordinal | KeyKind::Float => format!("(t.{name} + 0)"),
        KeyKind::Number | KeyKind::Text | KeyKind::Binary | KeyKind::Quoted => format!("t.{name}"),
    }
}

/// The expression whose text [`from_raw`] turns into a literal.
pub(super) fn raw_expression(column: &Column) -> String {
    let name = quoted(&column.name);
    match kind(column) {
        KeyKind::Number | KeyKind::Quoted => format!("CAST(t.{name} AS CHAR)"),
        KeyKind::Float => format!("CAST(t.{name} + 0e0 AS CHAR)"),
        KeyKind::Ordinal => format!("CAST(t.{name} + 0 AS CHAR)"),
        KeyKind::Text | KeyKind::Binary => format!("HEX(t.{name})"),
    }
}

/// The literal of a key column's value, from what the server answered for [`raw_expression`].
pub(super) fn from_raw(column: &Column, raw: &str) -> Option<String> {
    match kind(column) {
        KeyKind::Number | KeyKind::Ordinal => is_number(raw).then(|| raw.to_owned()),
        KeyKind::Float => is_number(raw).then(|| if raw.contains('e') { raw.to_owned() } else { format!("{raw}e0") }),
        KeyKind::Text => is_hex(raw).then(|| text_literal(column, raw)),
        KeyKind::Binary => is_hex(raw).then(|| format!("X'{raw}'")),
        KeyKind::Quoted => Some(quoted_literal(raw)),
    }
}

/// The literal of a captured value, to fetch its row by.
pub(super) fn from_value(column: &Column, value: &Value) -> Option<String> {
    Some(match value {
        Value::Null => "NULL".to_owned(),
        Value::Bool(flag) => u8::from(*flag).to_string(),
        Value::Int(number) => number.to_string(),
        Value::UInt(number) => number.to_string(),
        Value::Float(number) => format!("{:e}", f64::from(*number)),
        Value::Double(number) => format!("{number:e}"),
        Value::Bytes(bytes) if column.source_type.starts_with("bit") => {
            bytes.iter().try_fold(0_u64, |sum, byte| Some(sum.checked_mul(256)? + u64::from(*byte)))?.to_string()
        }
        Value::Bytes(bytes) => format!("X'{}'", hex(bytes)),
        Value::Text(text) => match kind(column) {
            KeyKind::Number if is_number(text) => text.clone(),
            KeyKind::Number => return None,
            KeyKind::Text => converted_literal(column, text),
            KeyKind::Ordinal => return Some(converted_literal(column, text)),
            KeyKind::Quoted => quoted_literal(&plain_time(text)),
            KeyKind::Float | KeyKind::Binary => return None,
        },
    })
}

/// What [`from_value`]'s literal is compared with: labels of ENUM and SET by themselves, not by number.
pub(super) fn equality_operand(column: &Column, value: &Value) -> String {
    match value {
        Value::Text(_) => format!("t.{}", quoted(&column.name)),
        Value::Null
        | Value::Bool(_)
        | Value::Int(_)
        | Value::UInt(_)
        | Value::Float(_)
        | Value::Double(_)
        | Value::Bytes(_) => comparand(column),
    }
}

/// `2024-05-30T10:00:00.123456Z` as MySQL writes it.
fn plain_time(text: &str) -> String {
    text.trim_end_matches('Z').replacen('T', " ", 1)
}

fn text_literal(column: &Column, hex: &str) -> String {
    match (&column.charset, &column.collation) {
        (Some(charset), Some(collation)) => format!("_{charset} X'{hex}' COLLATE {collation}"),
        (Some(_) | None, Some(_) | None) => format!("X'{hex}'"),
    }
}

/// A text that came out of a record. Its bytes are a binary literal: of two text literals that are equal but for case
/// or accents the server's optimizer drops one, whatever the column's collation, and `a = x OR a = y` reads one row.
pub(crate) fn converted_literal(column: &Column, text: &str) -> String {
    let utf8 = format!("CONVERT(X'{}' USING utf8mb4)", hex(text.as_bytes()));
    match (&column.charset, &column.collation) {
        (Some(charset), Some(collation)) if charset == "utf8mb4" => format!("{utf8} COLLATE {collation}"),
        (Some(charset), Some(collation)) => format!("CONVERT({utf8} USING {charset}) COLLATE {collation}"),
        (Some(_) | None, Some(_) | None) => utf8,
    }
}

/// A text in quotes, as the pinned `sql_mode` reads it.
pub(crate) fn quoted_literal(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

pub(crate) fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'-' | b'+' | b'.' | b'e'))
}

fn is_hex(text: &str) -> bool {
    text.len().is_multiple_of(2) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    let digit = |nibble: u8| DIGITS.get(usize::from(nibble)).map_or('0', |digit| char::from(*digit));
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

/// A bound as it is stored: the literals of the key's columns as a JSON array.
pub(super) fn encode_bound(literals: &[String]) -> String {
    serde_json::Value::from(literals.to_vec()).to_string()
}

/// The literals of a stored bound; none if it is not one of this key.
pub(super) fn decode_bound(bound: &str, key_columns: usize) -> Option<Vec<String>> {
    let literals: Vec<String> = serde_json::from_str(bound).ok()?;
    (literals.len() == key_columns).then_some(literals)
}

/// Which side of a bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// Keys greater than the bound.
    After,
    /// Keys up to the bound, itself included.
    UpTo,
}

/// The condition on the key, expanded for composite keys: `a >= x AND (a > x OR (a = x AND b > y))`. A row
/// comparison `(a, b) > (x, y)` would mean the same and use no index.
pub(super) fn condition(schema: &TableSchema, literals: &[String], side: Side) -> String {
    let (strict, loose, last) = match side {
        Side::After => (">", ">=", ">"),
        Side::UpTo => ("<", "<=", "<="),
    };
    let parts: Vec<(String, &String)> = schema.key_columns().map(comparand).zip(literals).collect();
    let Some(((first, first_literal), rest)) = parts.split_first() else { return "TRUE".into() };
    if rest.is_empty() {
        return format!("{first} {last} {first_literal}");
    }
    let mut expanded = String::new();
    for (index, (operand, literal)) in parts.iter().enumerate().rev() {
        expanded = if index + 1 == parts.len() {
            format!("{operand} {last} {literal}")
        } else {
            format!("{operand} {strict} {literal} OR ({operand} = {literal} AND ({expanded}))")
        };
    }
    format!("{first} {loose} {first_literal} AND ({expanded})")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ColumnType, TableName};

    fn column(name: &str, source_type: &str, charset: Option<&str>) -> Column {
        Column {
            name: name.into(),
            column_type: ColumnType::Text,
            source_type: source_type.into(),
            nullable: false,
            charset: charset.map(Into::into),
            collation: charset.map(|charset| format!("{charset}_bin")),
            generated: false,
        }
    }

    #[test]
    fn literals_carry_character_set_and_collation() {
        let text = column("c", "varchar(10)", Some("latin1"));
        assert_eq!(from_raw(&text, "E9").as_deref(), Some("_latin1 X'E9' COLLATE latin1_bin"));
        assert_eq!(from_raw(&text, "E'"), None);
        let converted = from_value(&text, &Value::Text("é".into()));
        assert_eq!(
            converted.as_deref(),
            Some("CONVERT(CONVERT(X'C3A9' USING utf8mb4) USING latin1) COLLATE latin1_bin")
        );
    }

    #[test]
    fn numbers_stay_digits_and_nothing_else_passes_for_one() {
        let number = column("n", "bigint(20) unsigned", None);
        assert_eq!(from_raw(&number, "18446744073709551615").as_deref(), Some("18446744073709551615"));
        assert_eq!(from_raw(&number, "1 OR 1"), None);
        assert_eq!(from_value(&number, &Value::Text("1; DROP".into())), None);
    }

    #[test]
    fn enum_set_and_bit_compare_by_number_as_their_index_does() {
        let label = column("e", "enum('b','a')", Some("latin1"));
        assert_eq!(comparand(&label), "(t.`e` + 0)");
        let bit = column("b", "bit(12)", None);
        assert_eq!(from_value(&bit, &Value::Bytes(vec![1, 2])).as_deref(), Some("258"));
    }

    #[test]
    fn times_are_quoted_as_mysql_writes_them() {
        let time = column("d", "datetime(6)", None);
        let literal = from_value(&time, &Value::Text("2024-05-30T10:00:00.123456Z".into()));
        assert_eq!(literal.as_deref(), Some("'2024-05-30 10:00:00.123456'"));
        assert_eq!(quoted_literal(r"a\'b"), r"'a\\''b'");
    }

    #[test]
    fn composite_keys_expand_so_that_the_index_is_used() {
        let schema = TableSchema {
            table: TableName::new("s", "t"),
            columns: vec![column("a", "int", None), column("b", "int", None), column("c", "int", None)],
            key: vec![0, 1, 2],
        };
        let literals = ["1", "2", "3"].map(str::to_owned);
        assert_eq!(
            condition(&schema, &literals, Side::After),
            "t.`a` >= 1 AND (t.`a` > 1 OR (t.`a` = 1 AND (t.`b` > 2 OR (t.`b` = 2 AND (t.`c` > 3)))))"
        );
        assert_eq!(
            condition(&schema, &literals, Side::UpTo),
            "t.`a` <= 1 AND (t.`a` < 1 OR (t.`a` = 1 AND (t.`b` < 2 OR (t.`b` = 2 AND (t.`c` <= 3)))))"
        );
    }

    #[test]
    fn a_bound_reads_back_and_one_of_another_key_does_not() {
        let literals = ["_latin1 X'27' COLLATE latin1_bin".to_owned(), "5".to_owned()];
        let bound = encode_bound(&literals);
        assert_eq!(decode_bound(&bound, 2).as_deref(), Some(&literals[..]));
        assert_eq!(decode_bound(&bound, 1), None);
        assert_eq!(decode_bound("5", 1), None);
    }
}

//! Bounds of chunks, and the conditions that they make.
//!
//! A chunk is a range of keys, or, where keys say nothing of where rows lie (uuid, bytea: a range of them is all over
//! the table), a range of places. Rows that move from place to place were changed, so that the stream has them; only a
//! table that is rewritten moves rows in silence, which is why a place is one in a file.

use super::{spelling::Spelling, sql};
use crate::model::{Column, ColumnType, TableSchema, Value};

/// Where a chunk ends and the next begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Bound {
    /// The last key of a chunk, in the server's text.
    Key(Vec<String>),
    /// The first block of the next chunk.
    Place { file: u64, block: u64 },
}

impl Bound {
    /// As it is stored: `["7","a"]`, or `{"file":16385,"block":128}`.
    pub(super) fn encode(&self) -> String {
        match self {
            Bound::Key(key) => serde_json::Value::from(key.clone()).to_string(),
            Bound::Place { file, block } => serde_json::json!({ "file": file, "block": block }).to_string(),
        }
    }

    /// Reads a stored bound of a key with this many columns.
    pub(super) fn decode(text: &str, key_columns: usize) -> Option<Self> {
        match serde_json::from_str(text).ok()? {
            serde_json::Value::Array(key) => {
                let key: Vec<String> =
                    key.into_iter().map(|part| part.as_str().map(str::to_owned)).collect::<Option<_>>()?;
                (key.len() == key_columns && key_columns > 0).then_some(Bound::Key(key))
            }
            serde_json::Value::Object(place) => {
                Some(Bound::Place { file: place.get("file")?.as_u64()?, block: place.get("block")?.as_u64()? })
            }
            serde_json::Value::Null
            | serde_json::Value::Bool(_)
            | serde_json::Value::Number(_)
            | serde_json::Value::String(_) => None,
        }
    }
}

/// Whether keys of this table are in no order that its rows have.
pub(super) fn prefers_places(schema: &TableSchema) -> bool {
    schema.key_columns().next().is_some_and(|column| matches!(column.source_type.as_str(), "uuid" | "bytea"))
}

/// The key of the row of `table` that is `rows` after `lower`; none for a table without a key, or a bound of another
/// kind.
pub(super) fn next_key_sql(table: &str, schema: &TableSchema, lower: Option<&Bound>, rows: u64) -> Option<String> {
    let columns: Vec<String> = schema.key_columns().map(|column| format!("t.{}", sql::ident(&column.name))).collect();
    if columns.is_empty() {
        return None;
    }
    let texts: Vec<String> = columns.iter().map(|column| format!("{column}::text")).collect();
    Some(format!(
        "SELECT {} FROM {table} t WHERE {} ORDER BY {} LIMIT 1 OFFSET {}",
        texts.join(", "),
        chunk_condition(schema, lower, None)?,
        columns.join(", "),
        rows.saturating_sub(1)
    ))
}

/// What the server refuses to plan where keys of the table make no ranges; none for a table without a key.
pub(super) fn ranges_sql(table: &str, schema: &TableSchema) -> Option<String> {
    let (columns, nulls): (Vec<String>, Vec<String>) = schema
        .key_columns()
        .map(|column| (format!("t.{}", sql::ident(&column.name)), format!("NULL::{}", column.source_type)))
        .unzip();
    let (columns, nulls) = (columns.join(", "), nulls.join(", "));
    let ranges = format!("({columns}) > ({nulls}) AND ({columns}) <= ({nulls})");
    (!columns.is_empty()).then(|| format!("SELECT FROM {table} t WHERE {ranges} ORDER BY {columns}"))
}

/// The rows after `lower` up to and with `upper`; none if a bound is none of this table.
pub(super) fn chunk_condition(schema: &TableSchema, lower: Option<&Bound>, upper: Option<&Bound>) -> Option<String> {
    let mut conditions = Vec::new();
    for (bound, key_side, place_side) in [(lower, ">", ">="), (upper, "<=", "<")] {
        match bound {
            None => {}
            Some(Bound::Key(key)) => {
                let columns: Vec<String> =
                    schema.key_columns().map(|column| format!("t.{}", sql::ident(&column.name))).collect();
                let literals: Vec<String> =
                    schema.key_columns().zip(key).map(|(column, text)| literal(column, text)).collect();
                if columns.is_empty() || columns.len() != key.len() {
                    return None;
                }
                conditions.push(format!("({}) {key_side} ({})", columns.join(", "), literals.join(", ")));
            }
            Some(Bound::Place { block, .. }) => {
                conditions.push(format!("t.ctid {place_side} '({block},0)'::tid"));
            }
        }
    }
    Some(if conditions.is_empty() { "TRUE".into() } else { conditions.join(" AND ") })
}

/// The rows with these keys; none if there is nothing to look for, or a value is none of its column.
pub(super) fn key_condition(schema: &TableSchema, keys: &[Vec<Value>]) -> Option<String> {
    let mut rows = Vec::with_capacity(keys.len());
    for key in keys.iter().filter(|key| key.len() == schema.key.len() && !key.is_empty()) {
        let mut parts = Vec::with_capacity(key.len());
        for (column, value) in schema.key_columns().zip(key) {
            parts.push(format!("t.{} = {}", sql::ident(&column.name), literal(column, &text(column, value)?)));
        }
        rows.push(format!("({})", parts.join(" AND ")));
    }
    (!rows.is_empty()).then(|| rows.join(" OR "))
}

/// A value in its column's own type.
fn literal(column: &Column, text: &str) -> String {
    format!("{}::{}", sql::literal(text).trim_start(), column.source_type)
}

/// A value as PostgreSQL reads it; none for a null, which no key has.
fn text(column: &Column, value: &Value) -> Option<String> {
    Some(match value {
        Value::Null => return None,
        Value::Bool(flag) => flag.to_string(),
        Value::Int(number) => number.to_string(),
        Value::UInt(number) => number.to_string(),
        Value::Float(number) => number.to_string(),
        Value::Double(number) => number.to_string(),
        Value::Text(text) => text.clone(),
        Value::Bytes(bytes) => {
            debug_assert!(column.column_type == ColumnType::Bytes || Spelling::of(column) == Spelling::Bytes);
            bytes.iter().fold("\\x".to_owned(), |text, byte| text + &format!("{byte:02x}"))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::TableName;

    fn schema(key: &[usize]) -> TableSchema {
        let column = |name: &str, source_type: &str| Column {
            name: name.into(),
            column_type: ColumnType::Integer,
            source_type: source_type.into(),
            nullable: false,
            charset: None,
            collation: None,
            generated: false,
        };
        TableSchema {
            table: TableName::new("shop", "it\"em"),
            columns: vec![column("id", "integer"), column("code", "character varying(9)"), column("u", "uuid")],
            key: key.to_vec(),
        }
    }

    #[test]
    fn bounds_are_stored_and_read_back() {
        for bound in [Bound::Key(vec!["7".into(), "it's".into()]), Bound::Place { file: 16_385, block: 128 }] {
            assert_eq!(Bound::decode(&bound.encode(), 2), Some(bound));
        }
        for text in ["", "7", "[7]", "[\"7\"]", "{}", "{\"file\":1}"] {
            assert_eq!(Bound::decode(text, 2), None, "{text}");
        }
    }

    #[test]
    fn a_chunk_excludes_its_lower_key_and_includes_its_upper() {
        let (low, high) = (Bound::Key(vec!["7".into(), "it's".into()]), Bound::Key(vec!["9".into(), "".into()]));
        assert_eq!(
            chunk_condition(&schema(&[0, 1]), Some(&low), Some(&high)).expect("valid"),
            "(t.\"id\", t.\"code\") > ('7'::integer, 'it''s'::character varying(9)) AND \
             (t.\"id\", t.\"code\") <= ('9'::integer, ''::character varying(9))"
        );
        assert_eq!(chunk_condition(&schema(&[0]), Some(&low), None), None, "a bound of another key");
    }

    #[test]
    fn the_next_key_is_looked_for_in_the_key_alone() {
        let sql = next_key_sql("ONLY items", &schema(&[0]), Some(&Bound::Key(vec!["7".into()])), 1_000).expect("valid");
        let expected = "SELECT t.\"id\"::text FROM ONLY items t WHERE (t.\"id\") > ('7'::integer) \
                        ORDER BY t.\"id\" LIMIT 1 OFFSET 999";
        assert_eq!(sql, expected);
        assert_eq!(next_key_sql("items", &schema(&[]), None, 5), None);
    }

    #[test]
    fn rows_of_scattered_keys_are_read_by_place() {
        assert!(prefers_places(&schema(&[2, 0])) && !prefers_places(&schema(&[0, 2])));
        let (low, high) = (Bound::Place { file: 1, block: 8 }, Bound::Place { file: 1, block: 16 });
        let condition = chunk_condition(&schema(&[2]), Some(&low), Some(&high)).expect("valid");
        assert_eq!(condition, "t.ctid >= '(8,0)'::tid AND t.ctid < '(16,0)'::tid");
    }

    #[test]
    fn rows_are_fetched_by_keys_of_any_type() {
        let keys = [vec![Value::Int(1), Value::Text("a\\b".into())], vec![Value::Int(2), Value::Text("c".into())]];
        let condition = key_condition(&schema(&[0, 1]), &keys).expect("valid");
        assert_eq!(
            condition,
            "(t.\"id\" = '1'::integer AND t.\"code\" = E'a\\\\b'::character varying(9)) OR \
             (t.\"id\" = '2'::integer AND t.\"code\" = 'c'::character varying(9))"
        );
        assert_eq!(key_condition(&schema(&[0]), &[vec![Value::Null]]), None);
    }
}

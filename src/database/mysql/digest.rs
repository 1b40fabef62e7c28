//! What a range of rows is in short, made by the server: how many they are, and a hash of all of them.
//!
//! What enters is a table's schema and a condition, what leaves is SQL. Each row is spelled so that no two rows have
//! one spelling, its CRC-32 is multiplied by one of its key, and all products are put together by exclusive or. The
//! product is what makes two rows that trade a value another pair: CRC-32 alone is linear, and their changes would
//! cancel each other out. **Invariant**: the spelling is of bytes, whatever the character sets of the columns.
//! Deliberately absent: proof that two different rows differ here; a change goes unseen once in four billion.

use super::{connect::quoted, server::table_sql};
use crate::model::{Column, TableSchema};

/// How a column's value goes into the spelling of its row.
enum Kind {
    /// Digits and signs alone.
    Plain,
    /// A number whose own text has fewer digits than it.
    Float,
    /// Bytes of any value, as they are.
    Bytes,
    /// Text of a character set.
    Text,
    Json,
}

impl Kind {
    fn of(column: &Column) -> Self {
        let name = column.base_type();
        match name {
            "tinyint" | "smallint" | "mediumint" | "int" | "bigint" | "decimal" | "year" | "date" | "datetime"
            | "timestamp" | "time" => Kind::Plain,
            "float" | "double" => Kind::Float,
            "json" => Kind::Json,
            "char" | "varchar" | "tinytext" | "text" | "mediumtext" | "longtext" | "enum" | "set" => Kind::Text,
            // Binary strings, bits, geometry, and what a later server has.
            _ => Kind::Bytes,
        }
    }
}

/// The rows that fulfil the condition (of `t`): how many they are, how many of them have a hash, and the hash of all. A
/// row that is longer than the server lets a value be has none.
pub(super) fn digest_sql(schema: &TableSchema, condition: &str) -> String {
    let (row, key) = (spelled(schema.columns.iter()), spelled(schema.key_columns()));
    format!(
        "SELECT COUNT(*), COUNT(d.h), BIT_XOR(d.h) FROM (SELECT CRC32({row}) * (CRC32({key}) | 1) AS h FROM {} AS t WHERE {condition}) AS d",
        table_sql(&schema.table)
    )
}

/// The spelling of these columns. What has no `#` in it, and the lengths of the rest, come first: so each value's place
/// is known.
fn spelled<'a>(columns: impl Iterator<Item = &'a Column>) -> String {
    let (mut fixed, mut rest) = (Vec::new(), Vec::new());
    for column in columns {
        let name = format!("t.{}", quoted(&column.name));
        let fixes = |value: String| if column.nullable { format!("IFNULL({value}, '-')") } else { value };
        match Kind::of(column) {
            Kind::Plain => fixed.push(fixes(name)),
            Kind::Float => fixed.push(fixes(format!("{name} + 0e0"))),
            kind => {
                fixed.push(fixes(format!("LENGTH({name})")));
                rest.push(match kind {
                    Kind::Text => format!("CAST({name} AS BINARY)"),
                    Kind::Json => format!("CAST(CAST({name} AS CHAR) AS BINARY)"),
                    Kind::Plain | Kind::Float | Kind::Bytes => name,
                });
            }
        }
    }
    fixed.append(&mut rest);
    format!("CONCAT_WS('#', {})", fixed.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ColumnType, TableName};

    #[test]
    fn each_value_has_a_place_in_the_spelling_of_a_row() {
        let column = |name: &str, source_type: &str, nullable| Column {
            name: name.into(),
            column_type: ColumnType::Text,
            source_type: source_type.into(),
            nullable,
            charset: None,
            collation: None,
            generated: false,
        };
        let schema = TableSchema {
            table: TableName::new("shop", "items"),
            columns: vec![
                column("id", "int(11) unsigned", false),
                column("name", "varchar(10)", true),
                column("price", "float", true),
            ],
            key: vec![0],
        };
        assert_eq!(
            digest_sql(&schema, "t.`id` > 7"),
            "SELECT COUNT(*), COUNT(d.h), BIT_XOR(d.h) FROM (SELECT CRC32(CONCAT_WS('#', t.`id`, IFNULL(LENGTH(t.`name`), '-'), \
             IFNULL(t.`price` + 0e0, '-'), CAST(t.`name` AS BINARY))) * (CRC32(CONCAT_WS('#', t.`id`)) | 1) AS h \
             FROM `shop`.`items` AS t WHERE t.`id` > 7) AS d"
        );
    }
}

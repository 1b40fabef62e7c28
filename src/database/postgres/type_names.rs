//! Types by PostgreSQL's names for them: what the configuration declares, or what a target's table has, of columns
//! whose values come without a schema.

use crate::model::{ColumnType, TargetColumn};

/// The type of a column of a target, as a transform that copies it would see it.
pub fn of_column(column: &TargetColumn) -> ColumnType {
    // A precision is kept, so that values are compared as they are stored; a text's length would be cut to.
    if column.cast_sql == "numeric" { named(&column.type_sql) } else { named(&column.cast_sql) }
}

/// A type by PostgreSQL's name for it. One that only the target's schema has is text to a transform.
pub fn named(sql: &str) -> ColumnType {
    const BUILT_IN: [&str; 17] = [
        "boolean",
        "bool",
        "numeric",
        "decimal",
        "time",
        "timetz",
        "uuid",
        "json",
        "xml",
        "inet",
        "cidr",
        "macaddr",
        "money",
        "tsvector",
        "point",
        "int4range",
        "oid",
    ];
    let name = sql.trim().to_ascii_lowercase();
    match name.as_str() {
        "smallint" | "int2" => ColumnType::SmallInt,
        "integer" | "int" | "int4" => ColumnType::Integer,
        "bigint" | "int8" => ColumnType::BigInt,
        "real" | "float4" => ColumnType::Real,
        "double precision" | "float8" => ColumnType::Double,
        "bytea" => ColumnType::Bytes,
        "jsonb" => ColumnType::Json,
        "date" => ColumnType::Date,
        "timestamp" | "timestamp without time zone" => ColumnType::Timestamp,
        "timestamptz" | "timestamp with time zone" => ColumnType::TimestampTz,
        "interval" => ColumnType::Interval,
        _ => {
            let element = name.trim_end_matches("[]");
            let first = element.split(['(', ' ']).next().unwrap_or_default();
            let is_array = element.len() < name.len();
            let is_built_in = BUILT_IN.contains(&first) || (is_array && !matches!(named(element), ColumnType::Text));
            let is_text = ["text", "character", "varchar", "bpchar"].contains(&first);
            if is_built_in || (is_array && is_text) { ColumnType::Named(name) } else { ColumnType::Text }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_of_the_target_are_what_transforms_see() {
        assert_eq!(named("timestamp with time zone"), ColumnType::TimestampTz);
        assert_eq!(named("numeric(12,2)"), ColumnType::Named("numeric(12,2)".into()));
        assert_eq!(named("character varying"), ColumnType::Text);
        assert_eq!(named("integer[]"), ColumnType::Named("integer[]".into()));
        assert_eq!(named("time without time zone"), ColumnType::Named("time without time zone".into()));
        assert_eq!(named("shop.mood"), ColumnType::Text);
    }
}

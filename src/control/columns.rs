//! The types of columns whose values come without a schema: what the configuration declares, or else what the target's table
//! of the same name has.

use super::worker::{Attempt, WorkerError, postgres_options};
use crate::{
    config::Config,
    database::postgres::{self, Session, catalog},
    log::debezium::{Known, Sample},
    model::{ColumnType, TableName, TargetColumn},
};

/// What is known of each of these tables.
pub(super) async fn known(config: &Config, samples: impl Iterator<Item = &Sample>) -> Result<Vec<Known>, Attempt> {
    let schema = &config.target.schema;
    let address = postgres::Target::parse(&config.target.url);
    let address = address.map_err(|error| Attempt::Hopeless(WorkerError::Usage(error.to_string())))?;
    let session = Session::open(&address, &postgres_options(config, "columns", false)).await?;
    let tables = catalog::tables(&session.client, std::slice::from_ref(schema)).await?;
    let declared = config.log.debezium.as_ref().map(|debezium| debezium.columns.clone()).unwrap_or_default();
    let known = samples.map(|sample| {
        let name = TableName::new(schema, &sample.table.table);
        let target = tables.iter().find(|table| table.name == name);
        let columns = target.into_iter().flat_map(|table| &table.columns);
        let mut known: Known = columns.map(|column| (column.name.clone(), type_of(column))).collect();
        for (column, sql) in declared.get(&sample.table.table).into_iter().flatten() {
            known.insert(column.clone(), named(sql));
        }
        known
    });
    Ok(known.collect())
}

fn type_of(column: &TargetColumn) -> ColumnType {
    // A precision is kept, so that values are compared as they are stored; a text's length would be cut to.
    if column.cast_sql == "numeric" { named(&column.type_sql) } else { named(&column.cast_sql) }
}

/// A type by PostgreSQL's name for it. One that only the target's schema has is text to a transform.
fn named(sql: &str) -> ColumnType {
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

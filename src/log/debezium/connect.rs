//! What Kafka Connect's schemas say of columns: the types that transforms see, and how values are read.
//!
//! Debezium's names are in <https://debezium.io/documentation/reference/stable/connectors/mysql.html#mysql-data-types>
//! and its sibling for PostgreSQL.

use serde::Deserialize;

use super::{DebeziumError, values::Rule};
use crate::model::ColumnType;

const MILLIS: i64 = 1_000;
const MICROS: i64 = 1_000_000;
const NANOS: i64 = 1_000_000_000;
/// Bounds of PostgreSQL's `numeric`.
const PRECISION_MAX: u16 = 1_000;

/// A schema, as the JSON converter writes it.
#[derive(Debug, Deserialize)]
struct Schema {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    name: Option<String>,
    /// The field of a structure that it is of.
    #[serde(default)]
    field: Option<String>,
    #[serde(default)]
    fields: Vec<Schema>,
    #[serde(default)]
    items: Option<Box<Schema>>,
    #[serde(default)]
    parameters: Parameters,
}

#[derive(Debug, Default, Deserialize)]
struct Parameters {
    #[serde(default)]
    scale: Option<String>,
    #[serde(default, rename = "connect.decimal.precision")]
    precision: Option<String>,
    /// With column.propagate.source.type.
    #[serde(default, rename = "__debezium.source.column.type")]
    source_type: Option<String>,
}

/// A column of an envelope's images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Described {
    pub(super) name: String,
    pub(super) column_type: ColumnType,
    pub(super) rule: Rule,
}

/// The columns that an envelope's schema describes.
pub(super) fn columns(text: &str, is_postgres: bool) -> Result<Vec<Described>, DebeziumError> {
    let schema: Schema =
        serde_json::from_str(text).map_err(|error| DebeziumError::Schema { reason: error.to_string() })?;
    let image = schema.fields.into_iter().find(|field| field.field.as_deref() == Some("after"));
    let image = image.ok_or_else(|| DebeziumError::Schema { reason: "it has no field `after`".into() })?;
    Ok(image
        .fields
        .into_iter()
        .filter_map(|mut field| {
            let name = field.field.take()?;
            let (column_type, rule) = meaning(&field, is_postgres);
            Some(Described { name, column_type, rule })
        })
        .collect())
}

fn meaning(field: &Schema, is_postgres: bool) -> (ColumnType, Rule) {
    if let Some(known) = field.name.as_deref().and_then(|name| named(name, field, is_postgres)) {
        return known;
    }
    match field.kind.as_str() {
        "int8" | "int16" => (ColumnType::SmallInt, Rule::Plain),
        "int32" => (ColumnType::Integer, Rule::Plain),
        "int64" => (ColumnType::BigInt, Rule::Plain),
        "float" => (ColumnType::Real, Rule::Plain),
        "double" => {
            let source = field.parameters.source_type.as_deref().unwrap_or_default().to_ascii_uppercase();
            let rounded = ["DECIMAL", "NUMERIC"].iter().any(|name| source.starts_with(name));
            (ColumnType::Double, if rounded { Rule::Rounded } else { Rule::Plain })
        }
        "boolean" => (ColumnType::Named("boolean".into()), Rule::Plain),
        "bytes" => (ColumnType::Bytes, Rule::Bytes),
        "array" => match field.items.as_deref().map(|items| meaning(items, is_postgres)) {
            Some((ColumnType::Named(name), rule @ Rule::List(_))) => {
                (ColumnType::Named(name), Rule::List(Box::new(rule)))
            }
            Some((ColumnType::Bytes, _)) | None => (ColumnType::Text, Rule::Structure),
            Some((member, rule)) => (ColumnType::Named(format!("{}[]", member.sql())), Rule::List(Box::new(rule))),
        },
        "string" => (ColumnType::Text, Rule::Plain),
        _ => (ColumnType::Text, Rule::Structure),
    }
}

fn named(name: &str, field: &Schema, is_postgres: bool) -> Option<(ColumnType, Rule)> {
    // MySQL's TIME is a span, PostgreSQL's a time of day.
    let time = || if is_postgres { ColumnType::Named("time".into()) } else { ColumnType::Interval };
    let type_named = |name: &str| ColumnType::Named(name.into());
    Some(match name {
        "io.debezium.time.Date" | "org.apache.kafka.connect.data.Date" => (ColumnType::Date, Rule::Days),
        "io.debezium.time.IsoDate" => (ColumnType::Date, Rule::Time),
        "io.debezium.time.Timestamp" | "org.apache.kafka.connect.data.Timestamp" => {
            (ColumnType::Timestamp, Rule::Instant(MILLIS))
        }
        "io.debezium.time.MicroTimestamp" => (ColumnType::Timestamp, Rule::Instant(MICROS)),
        "io.debezium.time.NanoTimestamp" => (ColumnType::Timestamp, Rule::Instant(NANOS)),
        "io.debezium.time.IsoTimestamp" => (ColumnType::Timestamp, Rule::Time),
        "io.debezium.time.ZonedTimestamp" => (ColumnType::TimestampTz, Rule::Time),
        "io.debezium.time.Time" | "org.apache.kafka.connect.data.Time" => (time(), Rule::OfDay(MILLIS)),
        "io.debezium.time.MicroTime" => (time(), Rule::OfDay(MICROS)),
        "io.debezium.time.NanoTime" => (time(), Rule::OfDay(NANOS)),
        "io.debezium.time.IsoTime" => (time(), if is_postgres { Rule::Time } else { Rule::Interval }),
        "io.debezium.time.ZonedTime" => (type_named("timetz"), Rule::Time),
        "io.debezium.time.Interval" => (ColumnType::Interval, Rule::Interval),
        "io.debezium.time.MicroDuration" | "io.debezium.time.NanoDuration" => (ColumnType::Interval, Rule::Lossy),
        "io.debezium.time.Year" => (ColumnType::Integer, Rule::Plain),
        "org.apache.kafka.connect.data.Decimal" => decimal(&field.parameters),
        "io.debezium.data.VariableScaleDecimal" => (type_named("numeric"), Rule::Variable),
        "io.debezium.data.Json" => (ColumnType::Json, Rule::Plain),
        "io.debezium.data.Uuid" => (type_named("uuid"), Rule::Plain),
        "io.debezium.data.Xml" => (type_named("xml"), Rule::Plain),
        "io.debezium.data.Bits" => (ColumnType::Bytes, Rule::Bits),
        _ => return None,
    })
}

fn decimal(parameters: &Parameters) -> (ColumnType, Rule) {
    let number = |text: &Option<String>| text.as_deref().and_then(|text| text.parse::<u16>().ok());
    let Some(scale) = number(&parameters.scale) else { return (ColumnType::Named("numeric".into()), Rule::Structure) };
    let precision = number(&parameters.precision).filter(|precision| (1..=PRECISION_MAX).contains(precision));
    let column_type = match precision {
        Some(precision) => ColumnType::Numeric { precision, scale },
        None => ColumnType::Named("numeric".into()),
    };
    (column_type, Rule::Unscaled(usize::from(scale)))
}

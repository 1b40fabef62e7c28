//! Which row of the source a key of the target leads back to, and how keys that are whole numbers compare.

use super::input::{Binding, ImageRows, WriteInput};
use crate::model::{ColumnType, Plan, PlanRole, TargetColumn, Value};

/// Whether a plan's keys are the source's, and whole numbers on both sides, whose order is the same everywhere.
pub(super) fn has_numbers(plan: &Plan, types: &[ColumnType]) -> bool {
    let Some(places) = plan.key_reads.as_ref().filter(|_| plan.role == PlanRole::Whole) else { return false };
    let whole = |(key, place): (&String, &usize)| {
        let target = plan.target.column(key).map(|column| column.cast_sql.as_str());
        is_whole(types.get(*place)) && target.is_some_and(is_whole_type)
    };
    plan.target.key.iter().zip(places).all(whole)
}

fn is_whole(column_type: Option<&ColumnType>) -> bool {
    matches!(
        column_type,
        Some(ColumnType::SmallInt | ColumnType::Integer | ColumnType::BigInt | ColumnType::Numeric { scale: 0, .. })
    )
}

fn is_whole_type(name: &str) -> bool {
    matches!(name, "smallint" | "integer" | "bigint" | "numeric")
}

/// The least and the highest key among images.
pub(super) fn span(
    plan: &Plan,
    binding: &Binding,
    input: &WriteInput<'_>,
    images: &ImageRows,
) -> Option<(Vec<i128>, Vec<i128>)> {
    let places = plan.key_reads.as_ref()?;
    let columns: Vec<Vec<Option<&str>>> =
        places.iter().map(|place| input.column(images, binding.columns.get(*place).copied().flatten())).collect();
    let key = |image: usize| -> Option<Vec<i128>> {
        columns.iter().map(|column| column.get(image).copied().flatten()?.parse().ok()).collect()
    };
    let keys: Option<Vec<Vec<i128>>> = (0..images.versions.len()).map(key).collect();
    let keys = keys?;
    Some((keys.iter().min()?.clone(), keys.iter().max()?.clone()))
}

/// A key whose columns are all whole numbers; none of any other.
pub(in crate::target) fn numbers(key: &[Option<String>]) -> Option<Vec<i128>> {
    key.iter().map(|text| text.as_ref()?.parse().ok()).collect()
}

/// The key of the source row whose key, by the target's columns, is this; none where it does not follow.
pub(super) fn source_key(plan: &Plan, types: &[ColumnType], origin: &[Option<String>]) -> Option<Vec<Value>> {
    let places = plan.key_reads.as_ref()?;
    let columns: &[String] = match &plan.role {
        PlanRole::Set { parent } => parent,
        PlanRole::Whole | PlanRole::Share(_) => &plan.target.key,
    };
    // In the order of the source's key.
    let mut values = Vec::new();
    for column in plan.source.key_columns() {
        let place = plan.reads.iter().position(|read| *read == column.name)?;
        let at = places.iter().position(|known| *known == place)?;
        let (target, text) = (plan.target.column(columns.get(at)?)?, origin.get(at)?.as_ref()?);
        values.push(source_value(types.get(place)?, target, text)?);
    }
    Some(values)
}

/// A target's value as the source had it, where no other value of the source could have become it.
fn source_value(source: &ColumnType, target: &TargetColumn, text: &str) -> Option<Value> {
    let name = target.cast_sql.as_str();
    let plain = !target.type_sql.contains('(');
    match source {
        ColumnType::SmallInt | ColumnType::Integer | ColumnType::BigInt | ColumnType::Numeric { scale: 0, .. } => {
            let whole = is_whole_type(name) || matches!(name, "text" | "character varying");
            match text.parse() {
                Ok(number) if whole => Some(Value::Int(number)),
                Err(_) if whole => text.parse().ok().map(Value::UInt),
                Ok(_) | Err(_) => None,
            }
        }
        ColumnType::Text if matches!(name, "text" | "character varying" | "bpchar") => {
            Some(Value::Text(text.to_owned()))
        }
        ColumnType::Named(named) if named == name || *named == target.type_sql => Some(Value::Text(text.to_owned())),
        ColumnType::Bytes if name == "bytea" => bytes(text.strip_prefix("\\x")?).map(Value::Bytes),
        ColumnType::Date if name == "date" => Some(Value::Text(format!("{text}Z"))),
        ColumnType::Timestamp if matches!(name, "timestamp without time zone" | "timestamp") && plain => {
            spelled_time(text)
        }
        ColumnType::TimestampTz if matches!(name, "timestamp with time zone" | "timestamptz") && plain => {
            spelled_time(text.strip_suffix("+00")?)
        }
        ColumnType::Numeric { .. }
        | ColumnType::Real
        | ColumnType::Double
        | ColumnType::Text
        | ColumnType::Bytes
        | ColumnType::Json
        | ColumnType::Date
        | ColumnType::Timestamp
        | ColumnType::TimestampTz
        | ColumnType::Interval
        | ColumnType::Named(_) => None,
    }
}

fn bytes(hex: &str) -> Option<Vec<u8>> {
    let digits = hex.as_bytes().chunks(2);
    digits.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}

/// `2024-05-30 10:00:00.5` as records spell it.
fn spelled_time(text: &str) -> Option<Value> {
    let (date, time) = text.split_once(' ')?;
    let (whole, fraction) = time.split_once('.').unwrap_or((time, ""));
    Some(Value::Text(format!("{date}T{whole}.{fraction:0<6}Z")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(type_sql: &str, cast_sql: &str) -> TargetColumn {
        TargetColumn {
            name: "k".into(),
            type_sql: type_sql.into(),
            cast_sql: cast_sql.into(),
            collation: None,
            folds: false,
            not_null: true,
            has_default: false,
            identity: None,
            generated: false,
        }
    }

    #[test]
    fn a_key_leads_back_to_the_source_only_where_one_value_can_have_made_it() {
        let back = |source: ColumnType, (type_sql, cast_sql): (&str, &str), text: &str| {
            source_value(&source, &column(type_sql, cast_sql), text)
        };
        let bigint = ("bigint", "bigint");
        assert_eq!(back(ColumnType::Integer, bigint, "-7"), Some(Value::Int(-7)));
        let numeric = ColumnType::Numeric { precision: 20, scale: 0 };
        assert_eq!(back(numeric, ("numeric(20,0)", "numeric"), "18446744073709551615"), Some(Value::UInt(u64::MAX)));
        assert_eq!(back(ColumnType::Text, bigint, "7"), None, "'007' is 7 as well");
        assert_eq!(back(ColumnType::Text, ("text", "text"), "a'b"), Some(Value::Text("a'b".into())));
        assert_eq!(back(ColumnType::Bytes, ("bytea", "bytea"), "\\x00ff"), Some(Value::Bytes(vec![0, 255])));
        assert_eq!(back(ColumnType::Date, ("date", "date"), "2024-05-30"), Some(Value::Text("2024-05-30Z".into())));
        let timestamp = "timestamp without time zone";
        assert_eq!(
            back(ColumnType::Timestamp, (timestamp, timestamp), "2024-05-30 10:00:00.5"),
            Some(Value::Text("2024-05-30T10:00:00.500000Z".into()))
        );
        let short = "timestamp(0) without time zone";
        assert_eq!(back(ColumnType::Timestamp, (short, timestamp), "2024-05-30 10:00:00"), None, "it was rounded");
    }
}

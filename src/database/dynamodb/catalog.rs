//! What tables there are, what their keys and their streams are.

use aws_sdk_dynamodb::types::{KeyType as KeyRole, ScalarAttributeType, StreamViewType, TableDescription};

use super::{
    attribute::{ITEM_COLUMN, KeyType, table_schema},
    connect::{DynamoError, Service},
};
use crate::model::{Problem, TTL_COLUMN, TableSchema};

/// A table, as the service describes it.
#[derive(Debug, Clone, PartialEq)]
pub struct TableFacts {
    pub schema: TableSchema,
    /// None if it has no stream, or has it turned off.
    pub stream: Option<StreamFacts>,
    /// As of some hours ago.
    pub items: u64,
    /// All items together, as of then.
    pub bytes: u64,
    /// Read units per second that it may use; none on demand.
    pub read_units: Option<u32>,
}

/// A table's stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamFacts {
    pub arn: String,
    /// Whether its records show items before and after.
    pub has_both_images: bool,
}

/// A table; none if there is no such one.
pub async fn load_table(service: &Service, table: &str) -> Result<Option<TableFacts>, DynamoError> {
    let described = service.tables.describe_table().table_name(table).send().await;
    let described = match described.map_err(|error| DynamoError::of("DescribeTable", error)) {
        Ok(described) => described,
        Err(DynamoError::Missing(_)) => return Ok(None),
        Err(error) => return Err(error),
    };
    described.table.map(|description| facts(&service.region, table, &description)).transpose()
}

/// The tables of these names, or all; a name without a table is left out.
pub async fn load_tables(service: &Service, only: Option<&[String]>) -> Result<Vec<TableFacts>, DynamoError> {
    let names = match only {
        Some(names) => names.to_vec(),
        None => table_names(service).await?,
    };
    let mut tables = Vec::new();
    for name in names {
        tables.extend(load_table(service, &name).await?);
    }
    Ok(tables)
}

async fn table_names(service: &Service) -> Result<Vec<String>, DynamoError> {
    let (mut names, mut after) = (Vec::new(), None);
    loop {
        let listed = service.tables.list_tables().set_exclusive_start_table_name(after).send().await;
        let listed = listed.map_err(|error| DynamoError::of("ListTables", error))?;
        names.extend(listed.table_names.unwrap_or_default());
        after = listed.last_evaluated_table_name;
        if after.is_none() {
            return Ok(names);
        }
    }
}

fn facts(region: &str, table: &str, description: &TableDescription) -> Result<TableFacts, DynamoError> {
    let strange = |what: &str| DynamoError::Refused(format!("DescribeTable of `{table}` shows {what}"));
    let mut elements = description.key_schema().to_vec();
    elements.sort_by_key(|element| element.key_type != KeyRole::Hash);
    let mut key = Vec::new();
    for element in elements {
        let definition =
            description.attribute_definitions().iter().find(|it| it.attribute_name == element.attribute_name);
        let key_type = match definition.map(|definition| &definition.attribute_type) {
            Some(ScalarAttributeType::S) => KeyType::Text,
            Some(ScalarAttributeType::N) => KeyType::Number,
            Some(ScalarAttributeType::B) => KeyType::Bytes,
            Some(_) | None => return Err(strange("a key attribute of no known type")),
        };
        key.push((element.attribute_name, key_type));
    }
    let enabled = description.stream_specification().is_some_and(|stream| stream.stream_enabled);
    let view = description.stream_specification().and_then(|stream| stream.stream_view_type.clone());
    let stream = description
        .latest_stream_arn()
        .filter(|_| enabled)
        .map(|arn| StreamFacts { arn: arn.to_owned(), has_both_images: view == Some(StreamViewType::NewAndOldImages) });
    let provisioned = description.provisioned_throughput().and_then(|throughput| throughput.read_capacity_units());
    Ok(TableFacts {
        schema: table_schema(region, table, &key),
        stream,
        items: description.item_count().and_then(|items| u64::try_from(items).ok()).unwrap_or_default(),
        bytes: description.table_size_bytes().and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or_default(),
        read_units: provisioned.and_then(|units| u32::try_from(units).ok()).filter(|units| *units > 0),
    })
}

/// What keeps a table from being followed.
pub fn problems(facts: &TableFacts) -> Vec<Problem> {
    let table = &facts.schema.table.table;
    let mut problems = Vec::new();
    let turn_on = format!(
        "aws dynamodb update-table --table-name {table} --stream-specification StreamEnabled=true,StreamViewType=NEW_AND_OLD_IMAGES"
    );
    match &facts.stream {
        None => problems.push(Problem {
            what: format!("table `{table}` has no stream, without which its changes cannot be followed"),
            fix: format!("turn it on: {turn_on}"),
        }),
        Some(stream) if !stream.has_both_images => problems.push(Problem {
            what: format!("the stream of table `{table}` does not show items before and after a change"),
            fix: format!(
                "turn the stream off (--stream-specification StreamEnabled=false) and on again with both images: {turn_on}"
            ),
        }),
        Some(_) => {}
    }
    for name in [ITEM_COLUMN, TTL_COLUMN] {
        if facts.schema.key_columns().any(|column| column.name == name) {
            problems.push(Problem {
                what: format!(
                    "table `{table}` has the key attribute `{name}`, which is what cutover calls a column of its own"
                ),
                fix: "copy the table to one with another key, or leave it out of [source] tables".into(),
            });
        }
    }
    problems
}

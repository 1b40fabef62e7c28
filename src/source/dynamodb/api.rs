//! The three requests that reading streams takes, so that a model can stand in for the service.

use async_trait::async_trait;
use aws_sdk_dynamodbstreams::types::{OperationType, ShardIteratorType, StreamStatus};

use super::walk::Listed;
use crate::database::dynamodb::{DynamoError, Item, Service, ServiceDate, attribute};

/// Who removes expired items, and is named in the records of that.
const TIME_TO_LIVE: &str = "dynamodb.amazonaws.com";

/// Reads streams.
#[async_trait]
pub trait Streams: Send + Sync {
    /// All shards of a stream that are there.
    async fn shards(&self, stream: &str) -> Result<Listing, DynamoError>;
    /// An iterator over a shard, after a record, or from the oldest record that is there.
    async fn iterator(&self, stream: &str, shard: &str, after: Option<&str>) -> Result<String, DynamoError>;
    /// The next records; fewer than there are, perhaps none.
    async fn records(&self, iterator: &str) -> Result<RecordPage, DynamoError>;
}

/// The shards of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    pub shards: Vec<Listed>,
    /// Whether changes of the table still go into it.
    pub is_enabled: bool,
}

/// Records that were read together.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RecordPage {
    pub records: Vec<StreamRecord>,
    /// Where to read on; none when the shard is closed and this was all.
    pub next: Option<String>,
    /// The service's time when it answered.
    pub date_us: Option<i64>,
}

/// One change of an item.
#[derive(Debug, Clone, PartialEq)]
pub struct StreamRecord {
    pub sequence: String,
    /// When it was made, of whole seconds.
    pub created_us: i64,
    pub change: ItemChange,
    pub before: Option<Item>,
    pub after: Option<Item>,
    /// Whether the service's Time to Live removed the item.
    pub is_ttl: bool,
}

/// What was done to the item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ItemChange {
    Insert,
    Modify,
    Remove,
}

#[async_trait]
impl Streams for Service {
    async fn shards(&self, stream: &str) -> Result<Listing, DynamoError> {
        let (mut shards, mut after) = (Vec::new(), None);
        loop {
            let request = self.streams.describe_stream().stream_arn(stream).set_exclusive_start_shard_id(after);
            let answer = request.send().await.map_err(|error| DynamoError::of("DescribeStream", error))?;
            let strange = || DynamoError::Refused("DescribeStream shows no stream".into());
            let description = answer.stream_description.ok_or_else(strange)?;
            for shard in description.shards.unwrap_or_default() {
                let Some(id) = shard.shard_id else { continue };
                shards.push(Listed { id, parent: shard.parent_shard_id });
            }
            after = description.last_evaluated_shard_id;
            if after.is_none() {
                let status = description.stream_status;
                let is_enabled = matches!(status, Some(StreamStatus::Enabled | StreamStatus::Enabling));
                return Ok(Listing { shards, is_enabled });
            }
        }
    }

    async fn iterator(&self, stream: &str, shard: &str, after: Option<&str>) -> Result<String, DynamoError> {
        let from = match after {
            Some(_) => ShardIteratorType::AfterSequenceNumber,
            None => ShardIteratorType::TrimHorizon,
        };
        let request = self.streams.get_shard_iterator().stream_arn(stream).shard_id(shard).shard_iterator_type(from);
        let answer = request.set_sequence_number(after.map(str::to_owned)).send().await;
        let answer = answer.map_err(|error| DynamoError::of("GetShardIterator", error))?;
        answer.shard_iterator.ok_or_else(|| DynamoError::Refused("GetShardIterator answers no iterator".into()))
    }

    async fn records(&self, iterator: &str) -> Result<RecordPage, DynamoError> {
        let date = ServiceDate::default();
        let request = self.streams.get_records().shard_iterator(iterator).customize().interceptor(date.clone());
        let answer = request.send().await.map_err(|error| DynamoError::of("GetRecords", error))?;
        let records = answer.records.unwrap_or_default().into_iter().map(record).collect::<Result<_, _>>()?;
        Ok(RecordPage { records, next: answer.next_shard_iterator, date_us: date.us() })
    }
}

fn record(record: aws_sdk_dynamodbstreams::types::Record) -> Result<StreamRecord, DynamoError> {
    let strange = |what: &str| DynamoError::Refused(format!("a record of the stream has {what}"));
    let change = match record.event_name {
        Some(OperationType::Insert) => ItemChange::Insert,
        Some(OperationType::Modify) => ItemChange::Modify,
        Some(OperationType::Remove) => ItemChange::Remove,
        Some(_) | None => return Err(strange("no event name that this release knows")),
    };
    let is_ttl = record.user_identity.is_some_and(|identity| {
        identity.principal_id.as_deref() == Some(TIME_TO_LIVE) && identity.r#type.as_deref() == Some("Service")
    });
    let data = record.dynamodb.ok_or_else(|| strange("no data"))?;
    let created = data.approximate_creation_date_time.ok_or_else(|| strange("no time"))?;
    let image = |image: Option<_>| image.map(attribute::item).transpose();
    Ok(StreamRecord {
        sequence: data.sequence_number.ok_or_else(|| strange("no sequence number"))?,
        created_us: created.secs().saturating_mul(1_000_000),
        change,
        before: image(data.old_image)?,
        after: image(data.new_image)?,
        is_ttl,
    })
}

//! Reading items: page by page in segments, and by key. Every read is consistent.

use std::collections::{BTreeMap, HashMap};

use aws_sdk_dynamodb::{
    primitives::Blob,
    types::{AttributeValue, KeysAndAttributes, ReturnConsumedCapacity},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};

use super::{
    attribute::{self, Attribute, AttributeError, Item},
    connect::{DynamoError, Service},
};

/// Keys in one request: with items of the largest size the answer has a few megabytes. The service takes up to 100.
const KEYS_MAX: usize = 10;

/// A position in a scan of a table by segments: where a segment begins, or the key of the last item read of it.
///
/// As text it is JSON: `{"segment":2,"of":8,"after":{"isbn":{"S":"978"}}}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScanPosition {
    pub segment: u32,
    pub of: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    after: Option<BTreeMap<String, KeyPart>>,
}

/// A key attribute's value, as DynamoDB's own JSON has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum KeyPart {
    S(String),
    N(String),
    /// In base64.
    B(String),
}

impl ScanPosition {
    pub fn start_of(segment: u32, of: u32) -> Self {
        ScanPosition { segment, of, after: None }
    }

    pub fn parse(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok().filter(|position: &ScanPosition| position.segment < position.of)
    }

    pub fn text(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    fn key(&self) -> Option<HashMap<String, AttributeValue>> {
        let part = |part: &KeyPart| match part {
            KeyPart::S(text) => AttributeValue::S(text.clone()),
            KeyPart::N(number) => AttributeValue::N(number.clone()),
            KeyPart::B(bytes) => AttributeValue::B(Blob::new(STANDARD.decode(bytes).unwrap_or_default())),
        };
        Some(self.after.as_ref()?.iter().map(|(name, value)| (name.clone(), part(value))).collect())
    }

    fn after(&self, key: HashMap<String, AttributeValue>) -> Result<Self, DynamoError> {
        let part = |(name, value): (String, AttributeValue)| {
            let part = match value {
                AttributeValue::S(text) => KeyPart::S(text),
                AttributeValue::N(number) => KeyPart::N(number),
                AttributeValue::B(bytes) => KeyPart::B(STANDARD.encode(bytes.into_inner())),
                _ => return Err(DynamoError::Refused("Scan answers a key of no known type".into())),
            };
            Ok((name, part))
        };
        Ok(ScanPosition { after: Some(key.into_iter().map(part).collect::<Result<_, _>>()?), ..self.clone() })
    }
}

/// Items that were read together.
#[derive(Debug)]
pub struct Page {
    pub items: Vec<Item>,
    /// Where the segment goes on; none at its end.
    pub next: Option<ScanPosition>,
    /// Read units that it took.
    pub units: f64,
}

/// Reads on from a place in a table, at most `items_max` items; the service ends a page at 1 MB.
pub async fn page(service: &Service, table: &str, from: &ScanPosition, items_max: u64) -> Result<Page, DynamoError> {
    let answer = service
        .tables
        .scan()
        .table_name(table)
        .segment(i32::try_from(from.segment).unwrap_or(i32::MAX))
        .total_segments(i32::try_from(from.of).unwrap_or(i32::MAX))
        .set_exclusive_start_key(from.key())
        .limit(i32::try_from(items_max).unwrap_or(i32::MAX))
        .consistent_read(true)
        .return_consumed_capacity(ReturnConsumedCapacity::Total)
        .send()
        .await
        .map_err(|error| DynamoError::of("Scan", error))?;
    let next = answer.last_evaluated_key.filter(|key| !key.is_empty()).map(|key| from.after(key)).transpose()?;
    let items = answer.items.unwrap_or_default().into_iter().map(attribute::item);
    Ok(Page {
        items: items.collect::<Result<_, _>>()?,
        next,
        units: answer.consumed_capacity.and_then(|consumed| consumed.capacity_units).unwrap_or_default(),
    })
}

/// Items that were read by key, and the keys that are still to be read.
#[derive(Debug)]
pub struct Fetched {
    pub items: Vec<Item>,
    pub left: Vec<Item>,
}

/// Reads items that have some of these keys, in one request.
pub async fn fetch(service: &Service, table: &str, mut keys: Vec<Item>) -> Result<Fetched, DynamoError> {
    let mut left = keys.split_off(keys.len().min(KEYS_MAX));
    let keys = keys.iter().map(given).collect();
    let wanted = KeysAndAttributes::builder().set_keys(Some(keys)).consistent_read(true).build();
    let wanted = wanted.map_err(|error| DynamoError::Refused(format!("BatchGetItem cannot be asked: {error}")))?;
    let answer = service.tables.batch_get_item().request_items(table, wanted).send().await;
    let answer = answer.map_err(|error| DynamoError::of("BatchGetItem", error))?;
    let items = answer.responses.unwrap_or_default().into_values().flatten().map(attribute::item);
    let items = items.collect::<Result<Vec<_>, _>>()?;
    let unread = answer.unprocessed_keys.unwrap_or_default().into_values().flat_map(|unread| unread.keys);
    let unread = unread.map(attribute::item).collect::<Result<Vec<_>, _>>()?;
    if items.is_empty() && !unread.is_empty() {
        return Err(DynamoError::Throttled("BatchGetItem has read nothing, for want of capacity".into()));
    }
    left.extend(unread);
    Ok(Fetched { items, left })
}

/// A key as the client takes it.
fn given(key: &Item) -> HashMap<String, AttributeValue> {
    let attribute = |attribute: &Attribute| match attribute {
        Attribute::Text(text) => Some(AttributeValue::S(text.clone())),
        Attribute::Number(number) => Some(AttributeValue::N(number.clone())),
        Attribute::Bytes(bytes) => Some(AttributeValue::B(Blob::new(bytes.clone()))),
        Attribute::Null
        | Attribute::Bool(_)
        | Attribute::List(_)
        | Attribute::Map(_)
        | Attribute::Texts(_)
        | Attribute::Numbers(_)
        | Attribute::Blobs(_) => None,
    };
    key.iter().filter_map(|(name, value)| Some((name.clone(), attribute(value)?))).collect()
}

impl From<AttributeError> for DynamoError {
    fn from(error: AttributeError) -> Self {
        DynamoError::Refused(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_reads_back_from_its_text_with_every_type_of_key() {
        let start = ScanPosition::start_of(3, 8);
        assert_eq!(start.text(), r#"{"segment":3,"of":8}"#);
        let key = HashMap::from([
            ("a".to_owned(), AttributeValue::S("x".into())),
            ("b".to_owned(), AttributeValue::N("1.5".into())),
            ("c".to_owned(), AttributeValue::B(Blob::new([0, 255]))),
        ]);
        let position = start.after(key.clone()).expect("a key");
        let read = ScanPosition::parse(&position.text()).expect("a place");
        assert_eq!(read, position);
        assert_eq!(read.key(), Some(key));
        assert_eq!(ScanPosition::parse(r#"{"segment":8,"of":8}"#), None);
    }
}

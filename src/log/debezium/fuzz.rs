//! What the fuzz target of foreign envelopes runs: arbitrary bytes are read or refused, and what becomes a record of
//! ours is one that our own decoder reads.

use super::{DebeziumMessage, Known, Order, RecordShape, Sample, message};
use crate::{log::envelope, model::fuzz::Input};

/// The first bytes are the key, the rest is the value.
pub fn debezium(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let key = input.bytes();
    let value = input.rest();
    let Ok(DebeziumMessage::Change(change)) = message(Some(key), Some(value)) else { return };
    let mut order = Order::default();
    let first = order.admit(&change.source, i64::MAX);
    assert!(first.is_ok(), "the first change of a partition is never refused");
    let Ok(Some(sample)) = Sample::of(&change) else { return };
    let known = Known::new();
    let reads: Vec<String> = sample.schema(&known).columns.into_iter().map(|column| column.name).collect();
    let shape: RecordShape = sample.shape(&known, &reads, false);
    let Ok((key, value)) = shape.record(&change) else { return };
    assert!(serde_json::from_slice::<serde_json::Value>(&key).is_ok(), "a key is JSON");
    if let Err(error) = envelope::cells(&value, &shape.schema) {
        assert!(matches!(error, envelope::EnvelopeError::RepeatedColumn { .. }), "our decoder reads it: {error}");
    }
}

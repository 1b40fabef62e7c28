//! Events of one source row, together.
//!
//! What a batch says of a row is one [`Item`]: its newest event is what the target must show. Events of the row that
//! are parked join it, since what they replaced is still at the target.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;

use crate::{
    model::TableSchema,
    target::{BatchEvent, RowEvent},
};

/// Which source row: the table and the record's key.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SourceKey {
    pub table: String,
    pub key: Bytes,
}

impl SourceKey {
    pub fn of(event: &RowEvent) -> Self {
        SourceKey { table: event.schema.table.to_string(), key: event.key.clone() }
    }
}

/// What a batch says of one source row.
#[derive(Debug, Clone)]
pub struct Item<'a> {
    /// By version; never empty.
    pub events: Vec<&'a RowEvent>,
    /// Older events of the row that are parked: what they replaced is still at the target.
    pub parked: Vec<&'a RowEvent>,
    /// Of the images before, send only that of the oldest parked event: the target shows it, and never showed the
    /// others, which may not be possible to transform.
    pub without_before: bool,
}

impl<'a> Item<'a> {
    pub fn new(event: &'a RowEvent) -> Self {
        Item { events: vec![event], parked: Vec::new(), without_before: false }
    }

    /// The newest event.
    pub fn newest(&self) -> Option<&'a RowEvent> {
        self.events.last().copied()
    }
}

/// Groups row events by source row, in order of first appearance.
pub fn by_row<'a>(events: &'a [BatchEvent]) -> Vec<Item<'a>> {
    let mut items: Vec<Item<'a>> = Vec::new();
    // The address tells schemas apart cheaply; two schemas of one table must still meet, so tables are numbered.
    let mut tables: HashMap<usize, usize> = HashMap::new();
    let mut names: Vec<&'a TableSchema> = Vec::new();
    let mut places: HashMap<(usize, &'a [u8]), usize> = HashMap::with_capacity(events.len());
    for event in events {
        let BatchEvent::Row(event) = event else { continue };
        let table = *tables.entry(Arc::as_ptr(&event.schema) as usize).or_insert_with(|| {
            let place = names.iter().position(|known| known.table == event.schema.table);
            place.unwrap_or_else(|| {
                names.push(&event.schema);
                names.len() - 1
            })
        });
        match places.get(&(table, event.key.as_ref())).and_then(|place| items.get_mut(*place)) {
            Some(item) => item.events.push(event),
            None => {
                places.insert((table, event.key.as_ref()), items.len());
                items.push(Item::new(event));
            }
        }
    }
    for item in &mut items {
        item.events.sort_by_key(|event| event.version);
        // After an append that failed the log may have a record twice.
        item.events.dedup_by_key(|event| event.version);
    }
    items
}

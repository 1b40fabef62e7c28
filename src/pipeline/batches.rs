//! From log records to batches that end at source transaction boundaries.
//!
//! Pure: what enters is records in offset order, what leaves is batches in the same order without
//! gaps. Rows of a transaction whose end has not been read stay here; a start record drops them,
//! because their writer died and writes them again.

use std::{collections::HashMap, sync::Arc};

use crate::{
    log::{
        Control, Kind, LogError, Offset, Stored, Topic, TransactionPart,
        record::{CascadeRecord, ChunkEnd},
    },
    model::TableSchema,
    target::{Batch, BatchEvent, RowEvent},
};

/// Bounds of one batch.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    pub rows_max: usize,
    /// A row that has more goes alone.
    pub bytes_max: usize,
}

/// Gathers the records of one partition of one topic.
#[derive(Debug)]
pub struct Batcher {
    topic: Topic,
    partition: u32,
    log_epoch: String,
    bounds: Bounds,
    schemas: HashMap<u64, Arc<TableSchema>>,
    /// The offset after the last batch handed out.
    from: Offset,
    /// Complete transactions not handed out yet.
    ready: Ready,
    /// The transaction whose end has not been read.
    open: Vec<BatchEvent>,
    open_bytes: usize,
    open_newest_us: Option<i64>,
    /// Whether a part of the open transaction has been handed out already.
    split: bool,
    batches: Vec<Step>,
}

/// What the apply loop does next.
#[derive(Debug, Clone)]
pub enum Step {
    Apply(Box<Batch>),
    /// The part handed out belongs to a transaction that will come again.
    Abandon,
}

#[derive(Debug, Default)]
struct Ready {
    events: Vec<BatchEvent>,
    bytes: usize,
    to: Offset,
    control: Option<Control>,
    chunks: Vec<ChunkEnd>,
    newest_commit_us: Option<i64>,
}

impl Batcher {
    /// Continues at `from`, knowing the schemas that records from there on refer to.
    pub fn new(
        topic: Topic,
        partition: u32,
        log_epoch: &str,
        from: Offset,
        schemas: HashMap<u64, Arc<TableSchema>>,
        bounds: Bounds,
    ) -> Self {
        Batcher {
            topic,
            partition,
            log_epoch: log_epoch.to_owned(),
            bounds,
            schemas,
            from,
            ready: Ready { to: from, ..Ready::default() },
            open: Vec::new(),
            open_bytes: 0,
            open_newest_us: None,
            split: false,
            batches: Vec::new(),
        }
    }

    /// Bounds the batches to come.
    pub fn bound(&mut self, bounds: Bounds) {
        self.bounds = bounds;
    }

    /// Takes records read from the log; the steps that they complete, in order. With `drain` even a
    /// batch smaller than its bounds is handed out: the log has nothing more for now.
    pub fn take(&mut self, records: Vec<Stored>, drain: bool) -> Result<Vec<Step>, LogError> {
        let mut records = records.into_iter().peekable();
        let mut last = None;
        while let Some(stored) = records.next() {
            let offset = stored.offset;
            if last.replace(offset) != Some(offset) {
                self.make_room(stored.record.key.len() + stored.record.value.len());
            }
            self.record(stored)?;
            // Records of one offset belong together: what is stored of a lane goes with the row that it is about.
            if records.peek().is_some_and(|next| next.offset == offset) {
                continue;
            }
            if self.ready.events.len() >= self.bounds.rows_max || self.ready.bytes >= self.bounds.bytes_max {
                self.hand_out();
            }
            if self.open.len() >= self.bounds.rows_max || self.open_bytes >= self.bounds.bytes_max {
                self.hand_out_open();
            }
        }
        if drain && self.ready.to > self.from && !self.split {
            self.hand_out();
        }
        Ok(std::mem::take(&mut self.batches))
    }

    /// Hands out what would pass the bound with these bytes more.
    fn make_room(&mut self, bytes: usize) {
        let bytes_max = self.bounds.bytes_max;
        if self.ready.bytes > 0 && self.ready.bytes + self.open_bytes + bytes > bytes_max {
            self.hand_out();
        }
        if self.open_bytes > 0 && self.open_bytes + bytes > bytes_max {
            self.hand_out_open();
        }
    }

    fn record(&mut self, Stored { offset, record }: Stored) -> Result<(), LogError> {
        let corrupt = |reason: String| LogError::Corrupt {
            topic: self.topic.suffix(),
            partition: self.partition,
            offset,
            reason,
        };
        let headers = record.headers;
        match headers.kind {
            Kind::Row | Kind::Truncate => {
                let id = headers.schema.ok_or_else(|| corrupt("a row without a schema id".into()))?;
                let schema = self.schemas.get(&id).ok_or_else(|| corrupt(format!("unknown schema {id:016x}")))?;
                let schema = Arc::clone(schema);
                self.open_bytes += record.key.len() + record.value.len();
                self.open_newest_us = self.open_newest_us.max(Some(headers.commit_us));
                self.open.push(if headers.kind == Kind::Truncate {
                    BatchEvent::Truncate { schema, version: headers.version }
                } else {
                    BatchEvent::Row(RowEvent {
                        schema,
                        key: record.key,
                        value: record.value,
                        version: headers.version,
                        commit_us: headers.commit_us,
                        offset,
                    })
                });
                if headers.transaction == TransactionPart::End {
                    self.close(offset);
                }
            }
            Kind::Cascade => {
                let cascade: CascadeRecord =
                    serde_json::from_slice(&record.value).map_err(|error| corrupt(format!("a cascade: {error}")))?;
                self.open_bytes += record.value.len();
                self.open.push(BatchEvent::Cascade { cascade, version: headers.version });
                if headers.transaction == TransactionPart::End {
                    self.close(offset);
                }
            }
            Kind::Schema => {
                let schema: TableSchema =
                    serde_json::from_slice(&record.value).map_err(|error| corrupt(format!("a schema: {error}")))?;
                let schema = Arc::new(schema);
                self.schemas.insert(schema.id(), Arc::clone(&schema));
                self.ready.events.push(BatchEvent::Schema(schema));
                self.reach(offset);
            }
            Kind::Control | Kind::Heartbeat => {
                let control: Control = serde_json::from_slice(&record.value)
                    .map_err(|error| corrupt(format!("a control record: {error}")))?;
                self.ready.newest_commit_us = self.ready.newest_commit_us.max(Some(headers.commit_us));
                self.ready.chunks.extend(control.chunk.clone());
                self.ready.control = Some(control);
                self.reach(offset);
            }
            Kind::Start => {
                self.open.clear();
                self.open_bytes = 0;
                self.open_newest_us = None;
                if std::mem::take(&mut self.split) {
                    self.batches.push(Step::Abandon);
                }
                self.reach(offset);
            }
        }
        Ok(())
    }

    /// The open transaction is complete with the record at `offset`.
    fn close(&mut self, offset: Offset) {
        self.ready.events.append(&mut self.open);
        self.ready.bytes += std::mem::take(&mut self.open_bytes);
        self.ready.newest_commit_us = self.ready.newest_commit_us.max(self.open_newest_us.take());
        self.ready.to = offset + 1;
        if std::mem::take(&mut self.split) {
            self.hand_out();
        }
    }

    /// A record that belongs to no transaction has been read: it can be passed unless one is open.
    fn reach(&mut self, offset: Offset) {
        if self.open.is_empty() && !self.split {
            self.ready.to = offset + 1;
        }
    }

    fn hand_out(&mut self) {
        if self.ready.to == self.from {
            return;
        }
        let to = self.ready.to;
        let ready = std::mem::replace(&mut self.ready, Ready { to, ..Ready::default() });
        self.batches.push(Step::Apply(Box::new(Batch {
            topic: self.topic,
            partition: self.partition,
            log_epoch: self.log_epoch.clone(),
            from: self.from,
            to: ready.to,
            events: ready.events,
            complete: true,
            control: ready.control,
            chunks: ready.chunks,
            newest_commit_us: ready.newest_commit_us,
        })));
        self.from = ready.to;
    }

    /// Hands out a part of a transaction that is too large for one batch, after what is complete before it.
    fn hand_out_open(&mut self) {
        if !self.split {
            self.hand_out();
        }
        let events = std::mem::take(&mut self.open);
        self.open_bytes = 0;
        self.split = true;
        self.batches.push(Step::Apply(Box::new(Batch {
            topic: self.topic,
            partition: self.partition,
            log_epoch: self.log_epoch.clone(),
            from: self.from,
            to: self.from,
            events,
            complete: false,
            control: None,
            chunks: Vec::new(),
            newest_commit_us: None,
        })));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        log::{EMPTY, Headers, Record},
        model::TableName,
    };

    fn schema() -> Arc<TableSchema> {
        Arc::new(TableSchema { table: TableName::new("shop", "t"), columns: Vec::new(), key: Vec::new() })
    }

    fn batcher(rows_max: usize) -> Batcher {
        let schema = schema();
        let schemas = HashMap::from([(schema.id(), schema)]);
        Batcher::new(Topic::Changes, 0, "e", 10, schemas, Bounds { rows_max, bytes_max: 1 << 20 })
    }

    fn stored(offset: Offset, kind: Kind, version: i64, transaction: TransactionPart) -> Stored {
        let value = match kind {
            Kind::Control | Kind::Heartbeat => format!("{{\"clock\":{version}}}").into(),
            Kind::Row | Kind::Truncate | Kind::Schema | Kind::Start | Kind::Cascade => EMPTY,
        };
        let headers = Headers { kind, version, commit_us: version, schema: Some(schema().id()), transaction };
        Stored { offset, record: Record { key: EMPTY, value, headers } }
    }

    fn row(offset: Offset, transaction: TransactionPart) -> Stored {
        stored(offset, Kind::Row, offset as i64, transaction)
    }

    fn shape(steps: &[Step]) -> Vec<(Offset, Offset, usize, bool)> {
        steps
            .iter()
            .map(|step| match step {
                Step::Apply(batch) => (batch.from, batch.to, batch.events.len(), batch.complete),
                Step::Abandon => (0, 0, 0, false),
            })
            .collect()
    }

    use TransactionPart::{End, Open};

    #[test]
    fn a_batch_ends_at_a_transaction_boundary_and_keeps_the_open_rest() {
        let mut batcher = batcher(100);
        let steps = batcher.take(vec![row(10, Open), row(11, End), row(12, Open)], true).expect("sound");
        assert_eq!(shape(&steps), [(10, 12, 2, true)]);
        let steps = batcher.take(vec![row(13, End)], true).expect("sound");
        assert_eq!(shape(&steps), [(12, 14, 2, true)]);
    }

    #[test]
    fn a_start_record_drops_a_half_written_transaction() {
        let mut batcher = batcher(100);
        let records = vec![row(10, Open), stored(11, Kind::Start, 0, End), row(12, Open), row(13, End)];
        assert_eq!(shape(&batcher.take(records, true).expect("sound")), [(10, 14, 2, true)]);
    }

    #[test]
    fn a_transaction_larger_than_a_batch_is_handed_out_in_parts_and_completes_once() {
        let mut batcher = batcher(2);
        let records = vec![row(10, End), row(11, Open), row(12, Open), row(13, Open), row(14, End)];
        let steps = batcher.take(records, true).expect("sound");
        assert_eq!(shape(&steps), [(10, 11, 1, true), (11, 11, 2, false), (11, 15, 2, true)]);
    }

    #[test]
    fn a_row_that_would_pass_the_bound_begins_the_next_batch() {
        let wide = |offset, transaction| {
            let mut stored = row(offset, transaction);
            stored.record.value = vec![b' '; 600 << 10].into();
            stored
        };
        let alone = batcher(100).take(vec![wide(10, End), wide(11, End), row(12, End)], true).expect("sound");
        assert_eq!(shape(&alone), [(10, 11, 1, true), (11, 13, 2, true)]);
        let parts = batcher(100).take(vec![row(10, End), wide(11, Open), wide(12, End)], true).expect("sound");
        assert_eq!(shape(&parts), [(10, 11, 1, true), (11, 11, 1, false), (11, 13, 1, true)]);
    }

    #[test]
    fn parts_already_handed_out_are_abandoned_when_their_writer_died() {
        let mut batcher = batcher(2);
        let records = vec![row(10, Open), row(11, Open), stored(12, Kind::Start, 0, End)];
        let steps = batcher.take(records, true).expect("sound");
        assert!(matches!(steps[..], [Step::Apply(_), Step::Abandon, Step::Apply(_)]), "{steps:?}");
        assert_eq!(shape(&steps)[2], (10, 13, 0, true));
    }

    #[test]
    fn control_records_carry_position_and_commit_time_even_without_rows() {
        let mut batcher = batcher(100);
        let steps = batcher.take(vec![stored(10, Kind::Heartbeat, 77, End)], true).expect("sound");
        let batches: Vec<&Batch> = steps
            .iter()
            .filter_map(|step| match step {
                Step::Apply(batch) => Some(&**batch),
                Step::Abandon => None,
            })
            .collect();
        assert_eq!(batches.len(), 1);
        assert_eq!((batches[0].to, batches[0].newest_commit_us), (11, Some(77)));
        assert_eq!(batches[0].control.as_ref().map(|control| control.clock), Some(77));
    }

    #[test]
    fn a_row_of_an_unknown_schema_is_corruption_and_not_a_guess() {
        let mut batcher =
            Batcher::new(Topic::Changes, 0, "e", 10, HashMap::new(), Bounds { rows_max: 1, bytes_max: 1 });
        assert!(matches!(batcher.take(vec![row(10, End)], true), Err(LogError::Corrupt { offset: 10, .. })));
    }
}

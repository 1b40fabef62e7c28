//! A run of rows of a lane that become durable together, and what is stored with them.

use bytes::Bytes;

use crate::{
    log::{
        Control, EMPTY, Headers, Kind, Offset, Record, Stored, TransactionPart,
        debezium::{DebeziumError, Order},
    },
    model::Position,
};

/// What is being gathered of a lane. Rows are open until [`Run::close`]: behind the last of them stands what is stored
/// with it.
#[derive(Default)]
pub(super) struct Run {
    pub(super) records: Vec<Stored>,
    pub(super) rows: usize,
    pub(super) bytes: usize,
    /// Whether the last record is a row that is still open.
    is_open: bool,
    /// The last record of the topic that was taken.
    pub(super) last: Option<Offset>,
    pub(super) newest_us: i64,
}

impl Run {
    pub(super) fn push(
        &mut self,
        offset: Offset,
        kind: Kind,
        (key, value): (Bytes, Bytes),
        version: i64,
        schema: Option<u64>,
    ) {
        self.bytes += key.len() + value.len();
        self.is_open = kind == Kind::Row;
        let transaction = if self.is_open { TransactionPart::Open } else { TransactionPart::End };
        let headers = Headers { kind, version, commit_us: self.newest_us, schema, transaction };
        self.records.push(Stored { offset, record: Record { key, value, headers } });
    }

    /// The rows so far may be applied without those that follow.
    pub(super) fn close(&mut self, order: &Order) -> Result<(), DebeziumError> {
        if self.is_open
            && let Some(row) = self.records.last_mut()
        {
            row.record.headers.transaction = TransactionPart::End;
            let offset = row.offset;
            self.note(offset, order)?;
        }
        Ok(())
    }

    /// What was seen up to here.
    pub(super) fn note(&mut self, offset: Offset, order: &Order) -> Result<(), DebeziumError> {
        let Order { clock, seen } = order;
        let control = Control { position: Some(Position::Debezium(seen.clone())), clock: *clock, chunk: None };
        self.push(offset, Kind::Control, (EMPTY, json(&control)?), *clock, None);
        Ok(())
    }

    /// Ends the run.
    pub(super) fn finish(mut self, order: &Order) -> Result<Vec<Stored>, DebeziumError> {
        self.close(order)?;
        if let Some(last) = self.last
            && self.records.last().is_none_or(|stored| stored.offset < last)
        {
            self.note(last, order)?;
        }
        Ok(self.records)
    }
}

/// As JSON.
pub(super) fn json<T: serde::Serialize>(value: &T) -> Result<Bytes, DebeziumError> {
    let json = serde_json::to_vec(value).map_err(|error| DebeziumError::Schema { reason: error.to_string() })?;
    Ok(json.into())
}

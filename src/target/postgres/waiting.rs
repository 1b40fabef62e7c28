//! Rows that wait for another: for a missing parent, or for a unique value that another row still has.
//!
//! They are stored beside the target and tried again now and then, some at a time, in a transaction of their own.

use std::collections::HashSet;

use super::{
    PostgresSink,
    answers::Mark,
    failure::{Failure, clash, stop, unsendable},
    items::{self, Item, SourceKey},
    lane,
    parked::{self, ParkedRow, json, texts},
    steps::{Param, Steps},
};
use crate::{
    database::postgres::PgError,
    model::Version,
    target::{Applied, ApplyError, BatchEvent},
};

/// Waiting rows that one call tries again.
const WAITING_ROUND_MAX: i64 = 500;
/// Bytes of them; one row may have more, and is tried alone then.
const WAITING_ROUND_BYTES_MAX: i64 = 4 << 20;
const WAITS: &str = "SELECT EXISTS (SELECT FROM cutover.waiting WHERE pipeline = $1 AND part = $2)";

const HAS_LEASE: &str =
    "SELECT 1 FROM cutover.offsets WHERE pipeline = $1 AND topic = $2 AND part = $3 AND lease_epoch = $4";

/// Rows that were tried least, then the oldest.
const WAITING: &str = "
SELECT w.source_table, w.key_text, w.version, w.schema_id, pg_catalog.convert_from(w.value, 'UTF8') FROM (
  SELECT *, pg_catalog.sum(pg_catalog.octet_length(value)) OVER (ORDER BY attempts, version, source_table, key_text)
    - pg_catalog.octet_length(value) AS before FROM (
      SELECT source_table, key_text, version, schema_id, value, attempts FROM cutover.waiting
      WHERE pipeline = $1 AND part = $2 ORDER BY attempts, version, source_table, key_text LIMIT $3) first) w
WHERE w.before = 0 OR w.before + pg_catalog.octet_length(w.value) <= $4 ORDER BY w.attempts, w.version";

const WAIT: &str = "
INSERT INTO cutover.waiting AS w (pipeline, source_table, key_text, version, part, schema_id, value, reason)
SELECT $1, x.source, x.key, x.version, $2, x.schema_id, pg_catalog.convert_to(x.value, 'UTF8'), x.reason
FROM unnest($3::text[], $4::text[], $5::bigint[], $6::bigint[], $7::text[], $8::text[])
  x(source, key, version, schema_id, value, reason)
ON CONFLICT (pipeline, source_table, md5(key_text), version)
DO UPDATE SET attempts = w.attempts + 1, reason = excluded.reason";

impl PostgresSink {
    /// Stores rows that wait for another.
    pub(super) async fn store_waiting(&mut self, waiting: &[ParkedRow<'_>]) -> Result<(), PgError> {
        if waiting.is_empty() {
            return Ok(());
        }
        self.parked.stale = true;
        self.store_schemas(waiting).await?;
        let statement = self.statement(WAIT).await?;
        let params: Vec<Param<'_>> = vec![
            Box::new(&self.options.pipeline),
            Box::new(i32::try_from(self.options.partition).unwrap_or(i32::MAX)),
            Box::new(texts(waiting, |row| row.event.schema.table.to_string())),
            Box::new(texts(waiting, |row| json(&row.event.key))),
            Box::new(waiting.iter().map(|row| row.event.version).collect::<Vec<_>>()),
            Box::new(waiting.iter().map(|row| row.event.schema.id().cast_signed()).collect::<Vec<_>>()),
            Box::new(texts(waiting, |row| json(&row.event.value))),
            Box::new(texts(waiting, |row| format!("{} (SQLSTATE {})", row.message, row.sqlstate))),
        ];
        self.execute(&statement, params).await
    }

    /// Whether a row of this partition waits. Other sinks park rows too, so that only the target knows.
    pub(super) async fn anything_waits(&mut self) -> Result<bool, PgError> {
        let statement = self.statement(WAITS).await?;
        let part = i32::try_from(self.options.partition).unwrap_or(i32::MAX);
        Ok(self.session.client.query_one(&statement, &[&self.options.pipeline, &part]).await?.try_get(0)?)
    }

    /// Tries a bounded number of waiting rows of this partition again, in a transaction of its own.
    pub(super) async fn try_waiting(&mut self) -> Result<Applied, ApplyError> {
        let part = i32::try_from(self.options.partition).unwrap_or(i32::MAX);
        let result = self.waiting_round(part).await;
        match result {
            Ok(applied) => {
                self.session.client.batch_execute("COMMIT").await.map_err(|error| stop(error.into()))?;
                Ok(applied)
            }
            Err(Failure::Stop(error)) => Err(error),
            Err(Failure::Rows(refusal)) => Err(stop(PgError::Refused(refusal))),
            Err(Failure::Clash | Failure::Reload) => Err(clash()),
            Err(Failure::Unsendable) => Err(unsendable()),
        }
    }

    async fn waiting_round(&mut self, part: i32) -> Result<Applied, Failure> {
        let locks = self.locks(0..self.plans.len());
        let lock = self.statement(lane::LOCK).await?;
        let (lease, waiting) = (self.statement(HAS_LEASE).await?, self.statement(WAITING).await?);
        let pipeline = self.options.pipeline.clone();
        let topic = self.lane_name();
        self.session.client.batch_execute("BEGIN").await.map_err(PgError::from)?;
        let mut steps = Steps::default();
        steps.query(Mark::Done, lock, vec![Box::new(locks)]);
        steps.query(
            Mark::Lane,
            lease,
            vec![Box::new(pipeline.clone()), Box::new(topic), Box::new(part), Box::new(self.options.lease_epoch)],
        );
        self.read_answers(&steps.run(&self.session.client).await?)?;
        self.parked.stale = true;
        self.refresh_parked().await?;
        let rows = self
            .session
            .client
            .query(&waiting, &[&pipeline, &part, &WAITING_ROUND_MAX, &WAITING_ROUND_BYTES_MAX])
            .await;
        let mut events = Vec::new();
        for row in rows.map_err(PgError::from)? {
            let (table, key): (String, String) =
                (row.try_get(0).map_err(PgError::from)?, row.try_get(1).map_err(PgError::from)?);
            let key = SourceKey { table, key: key.into() };
            let event = parked::event(&self.session.client, &pipeline, key, &row, &mut self.schemas).await?;
            events.push(BatchEvent::Row(event));
        }
        let mut items = items::by_row(&events);
        let all: Vec<(SourceKey, Version)> =
            items.iter().filter_map(Item::newest).map(|event| (SourceKey::of(event), event.version)).collect();
        let touched = self.parked.fence(&mut items);
        let older = parked::events(&self.session.client, &pipeline, &touched, &mut self.schemas).await?;
        parked::attach(&mut items, &older);
        let outcome = self.settle(items).await?;
        // A row that is in has no dead letter of an older state any more.
        self.clear_parked(&outcome.written).await?;
        // What waits still is stored again below; what a newer dead letter keeps out is over.
        let left: HashSet<SourceKey> =
            outcome.waiting.iter().filter_map(|(item, _)| item.newest()).map(SourceKey::of).collect();
        let done: Vec<_> = all.into_iter().filter(|(key, _)| !left.contains(key)).collect();
        self.clear_parked(&done).await?;
        let mut applied = self.park(outcome).await?;
        self.refresh_parked().await?;
        applied.waiting = self.parked.waiting.len() as u64;
        Ok(applied)
    }
}

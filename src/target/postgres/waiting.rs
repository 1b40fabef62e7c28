//! Rows that wait for another: for a missing parent, or for a unique value that another row still has.
//!
//! They are stored beside the target and tried again now and then, some at a time, in a transaction of their own.

use std::collections::HashSet;

use super::{
    PostgresSink,
    answers::{Mark, add},
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

/// Waiting rows that the first round tries again, and that a round tries at least and at most. Rounds grow, so that
/// many come in soon and rows which refer to each other meet; they shrink if their rows are large.
pub(super) const WAITING_ROUND_FIRST: i64 = 500;
const WAITING_ROUND_MIN: i64 = 16;
const WAITING_ROUND_MAX: i64 = 4000;
/// Bytes of a round above which the next one is smaller.
const WAITING_ROUND_BYTES_MAX: usize = 8 << 20;
/// Rounds of one call.
const WAITING_ROUNDS_MAX: u32 = 16;
const WAITS: &str = "SELECT EXISTS (SELECT FROM cutover.waiting WHERE pipeline = $1 AND part = $2)";

const HAS_LEASE: &str =
    "SELECT 1 FROM cutover.offsets WHERE pipeline = $1 AND topic = $2 AND part = $3 AND lease_epoch = $4";

/// Rows that were tried least, then the oldest.
const WAITING: &str = "
SELECT source_table, key_text, version, schema_id, pg_catalog.convert_from(value, 'UTF8') FROM cutover.waiting
WHERE pipeline = $1 AND part = $2 ORDER BY attempts, version LIMIT $3";

const WAIT: &str = "
INSERT INTO cutover.waiting AS w (pipeline, source_table, key_text, version, part, schema_id, value, reason, needs)
SELECT $1, x.source, x.key, x.version, $2, x.schema_id, pg_catalog.convert_to(x.value, 'UTF8'), x.reason, x.needs
FROM unnest($3::text[], $4::text[], $5::bigint[], $6::bigint[], $7::text[], $8::text[], $9::bigint[])
  x(source, key, version, schema_id, value, reason, needs)
ON CONFLICT (pipeline, source_table, md5(key_text), version)
DO UPDATE SET attempts = w.attempts + 1, reason = excluded.reason, needs = excluded.needs";

/// How many rows the next round tries, after one of so many rows and bytes.
fn next_round(rows: i64, bytes: usize) -> i64 {
    let next = if bytes > WAITING_ROUND_BYTES_MAX { rows / 2 } else { 2 * rows };
    next.clamp(WAITING_ROUND_MIN, WAITING_ROUND_MAX)
}

fn weight(event: &BatchEvent) -> usize {
    match event {
        BatchEvent::Row(event) => event.value.len(),
        BatchEvent::Truncate { .. } | BatchEvent::Schema(_) => 0,
    }
}

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
            Box::new(waiting.iter().map(|row| row.needs.unwrap_or_default()).collect::<Vec<_>>()),
        ];
        self.execute(&statement, params).await
    }

    /// Whether a row of this partition waits. Other sinks park rows too, so that only the target knows.
    pub(super) async fn anything_waits(&mut self) -> Result<bool, PgError> {
        let statement = self.statement(WAITS).await?;
        let part = i32::try_from(self.options.partition).unwrap_or(i32::MAX);
        Ok(self.session.client.query_one(&statement, &[&self.options.pipeline, &part]).await?.try_get(0)?)
    }

    /// Tries a bounded number of waiting rows of this partition again, in rounds, each a transaction of its own, as
    /// long as rows come in.
    pub(super) async fn try_waiting(&mut self) -> Result<Applied, ApplyError> {
        let part = i32::try_from(self.options.partition).unwrap_or(i32::MAX);
        let mut all = Applied::default();
        for _ in 0..WAITING_ROUNDS_MAX {
            let (applied, written, bytes) = match self.waiting_round(part).await {
                Ok(round) => round,
                Err(Failure::Stop(error)) => return Err(error),
                Err(Failure::Rows(refusal)) => return Err(stop(PgError::Refused(refusal))),
                Err(Failure::Clash | Failure::Reload) => return Err(clash()),
                Err(Failure::Unsendable) => return Err(unsendable()),
            };
            self.session.client.batch_execute("COMMIT").await.map_err(|error| stop(error.into()))?;
            applied.tables.into_iter().for_each(|(table, counts)| add(&mut all.tables, table, counts));
            all.dead_letters += applied.dead_letters;
            self.waiting_round_rows = next_round(self.waiting_round_rows, bytes);
            if written == 0 {
                break;
            }
        }
        self.refresh_parked().await.map_err(stop)?;
        all.waiting = self.parked.waiting.len() as u64;
        Ok(all)
    }

    /// One round; what it did, how many rows came in, and how many bytes they all had.
    async fn waiting_round(&mut self, part: i32) -> Result<(Applied, usize, usize), Failure> {
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
        // All rows of the round wait, so that the others need not be read. They are once the rounds are over.
        self.parked.stale = true;
        self.parked.load_dead(&self.session.client, &pipeline).await?;
        let rows = self.session.client.query(&waiting, &[&pipeline, &part, &self.waiting_round_rows]).await;
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
        let bytes = events.iter().map(weight).sum();
        self.parked.fence(&mut items);
        let touched: HashSet<SourceKey> = items.iter().filter_map(Item::newest).map(SourceKey::of).collect();
        let older = parked::events(&self.session.client, &pipeline, &touched, &mut self.schemas).await?;
        parked::attach(&mut items, &older);
        let outcome = self.settle(items).await?;
        // A row that is in has no dead letter of an older state any more.
        self.clear_parked(&outcome.written).await?;
        // What waits still is stored again below; what a newer dead letter keeps out is over.
        let left: HashSet<SourceKey> =
            outcome.waiting.iter().filter_map(|waiting| waiting.item.newest()).map(SourceKey::of).collect();
        let written = outcome.written.len();
        let done: Vec<_> = all.into_iter().filter(|(key, _)| !left.contains(key)).collect();
        self.clear_parked(&done).await?;
        Ok((self.park(outcome).await?, written, bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_grow_to_a_bound_and_shrink_if_their_rows_are_large() {
        let after =
            |bytes: usize, rounds: usize| (0..rounds).fold(WAITING_ROUND_FIRST, |rows, _| next_round(rows, bytes));
        assert_eq!((after(1000, 1), after(1000, 9)), (1000, WAITING_ROUND_MAX));
        assert_eq!((after(1 << 30, 1), after(1 << 30, 9)), (250, WAITING_ROUND_MIN));
    }
}

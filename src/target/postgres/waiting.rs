//! Rows that wait for another: for a missing parent, or for a unique value or a key that another row still has.
//!
//! They are stored beside the target and tried again now and then, some at a time, in a transaction of their own. Each
//! partition tries its own rows; where that brings none in, it tries those of all partitions together now and then, for
//! rows that exchange a unique value may be in a ring that no partition can open alone.

use std::collections::{BTreeSet, HashSet};

use tokio_postgres::types::ToSql;

use super::{
    PostgresSink,
    answers::{Mark, add},
    bisect,
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

/// Waiting rows that the first round tries again, and that a round tries at most. Rounds grow, so that many come in
/// soon and rows which refer to each other meet.
pub(super) const WAITING_ROUND_FIRST: i64 = 500;
const WAITING_ROUND_MAX: i64 = 4000;
/// Bytes of a round; one row may have more, and is tried alone then.
const WAITING_ROUND_BYTES_MAX: i64 = 4 << 20;
/// Rounds of one call.
const WAITING_ROUNDS_MAX: u32 = 16;
const WAITS: &str = "SELECT EXISTS (SELECT FROM cutover.waiting WHERE pipeline = $1 AND part = $2)";

/// The partitions of which rows wait.
const WAITING_PARTS: &str = "SELECT DISTINCT part FROM cutover.waiting WHERE pipeline = $1 ORDER BY part";
/// A round over several partitions waits no longer than this for their locks: less than the server's
/// `deadlock_timeout`, so that it is the one that gives way to a transaction which is open across batches.
const BEGIN_TOGETHER: &str = "BEGIN; SET LOCAL lock_timeout = '500ms'";
/// The most fruitless rounds of a partition between two rounds over all of them, which hold up all lanes.
const TOGETHER_EVERY_MAX: u32 = 16;

/// Rows that were tried least, then the oldest.
const WAITING: &str = "
SELECT w.source_table, w.key_text, w.version, w.schema_id, pg_catalog.convert_from(w.value, 'UTF8') FROM (
  SELECT *, pg_catalog.sum(pg_catalog.octet_length(value)) OVER (ORDER BY attempts, version, source_table, key_text)
    - pg_catalog.octet_length(value) AS before FROM (
      SELECT source_table, key_text, version, schema_id, value, attempts FROM cutover.waiting
      WHERE pipeline = $1 AND part = ANY($2) ORDER BY attempts, version, source_table, key_text LIMIT $3) first) w
WHERE w.before = 0 OR w.before + pg_catalog.octet_length(w.value) <= $4 ORDER BY w.attempts, w.version";

const WAIT: &str = "
INSERT INTO cutover.waiting AS w (pipeline, source_table, key_text, version, part, schema_id, value, reason, needs)
SELECT $1, x.source, x.key, x.version, $2, x.schema_id, pg_catalog.convert_to(x.value, 'UTF8'), x.reason, x.needs
FROM unnest($3::text[], $4::text[], $5::bigint[], $6::bigint[], $7::text[], $8::text[], $9::bigint[])
  x(source, key, version, schema_id, value, reason, needs)
ON CONFLICT (pipeline, source_table, md5(key_text), version)
DO UPDATE SET attempts = w.attempts + 1, reason = excluded.reason, needs = excluded.needs";

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

    /// Tries waiting rows of this partition again, in bounded rounds, each a transaction of its own, as long as rows
    /// come in; and then, if none did and it is time, with those of all partitions.
    pub(super) async fn try_waiting(&mut self) -> Result<Applied, ApplyError> {
        let part = i32::try_from(self.options.partition).unwrap_or(i32::MAX);
        let mut all = Round::default();
        for _ in 0..WAITING_ROUNDS_MAX {
            let round = self.try_parts(&[part], "BEGIN").await?;
            self.waiting_round_rows = (2 * self.waiting_round_rows).min(WAITING_ROUND_MAX);
            let came_in = round.written > 0;
            all.add(round);
            if !came_in {
                break;
            }
        }
        if all.written == 0 && self.together.is_due() {
            let parts = self.waiting_parts().await.map_err(stop)?;
            if parts.len() > 1 {
                match self.try_parts(&parts, BEGIN_TOGETHER).await {
                    Ok(round) => all.add(round),
                    Err(ApplyError::Transient { .. }) => self.roll_back().await?,
                    Err(error) => return Err(error),
                }
            }
        }
        self.together.note(all.written > 0);
        self.refresh_parked().await.map_err(stop)?;
        all.applied.waiting = self.parked.waiting.len() as u64;
        Ok(all.applied)
    }

    async fn waiting_parts(&mut self) -> Result<Vec<i32>, PgError> {
        let statement = self.statement(WAITING_PARTS).await?;
        let rows = self.session.client.query(&statement, &[&self.options.pipeline]).await?;
        rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
    }

    /// One round over the waiting rows of these partitions, to its commit.
    async fn try_parts(&mut self, parts: &[i32], begin: &str) -> Result<Round, ApplyError> {
        match self.waiting_round(parts, begin).await {
            Ok(round) => self.commit().await.map(|()| round).or_else(stopped),
            Err(failure) => stopped(failure),
        }
    }

    async fn waiting_round(&mut self, parts: &[i32], begin: &str) -> Result<Round, Failure> {
        let locks = self.locks_in(0..self.plans.len(), parts.iter().map(|part| part.cast_unsigned()));
        let lock = self.statement(lane::LOCK).await?;
        let (lease, waiting) = (self.statement(lane::HAS_LEASE).await?, self.statement(WAITING).await?);
        let pipeline = self.options.pipeline.clone();
        let topic = self.lane_name();
        let part = i32::try_from(self.options.partition).unwrap_or(i32::MAX);
        self.session.client.batch_execute(&format!("{begin}{}", self.mark)).await.map_err(PgError::from)?;
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
        let params: &[&(dyn ToSql + Sync)] = &[&pipeline, &parts, &self.waiting_round_rows, &WAITING_ROUND_BYTES_MAX];
        let rows = self.session.client.query(&waiting, params).await;
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
        let kept_out = self.parked.fence(&mut items).kept_out;
        let touched: BTreeSet<SourceKey> = items.iter().filter_map(Item::newest).map(SourceKey::of).collect();
        let older = parked::events(&self.session.client, &pipeline, &touched, &mut self.schemas).await?;
        parked::attach(&mut items, &older);
        if let Some(rows) = self.rows.as_mut().filter(|_| !items.is_empty()) {
            rows.begin().await.map_err(Failure::Stop)?;
        }
        let mut outcome = self.settle(items).await?;
        outcome.dead.extend(kept_out.into_iter().map(bisect::late));
        // A row that is in has no dead letter of an older state any more.
        self.clear_parked(&outcome.written).await?;
        self.clear_parked(&outcome.superseded).await?;
        // What waits still is stored again below; what a newer dead letter keeps out is over.
        let left: HashSet<SourceKey> =
            outcome.waiting.iter().filter_map(|waiting| waiting.item.newest()).map(SourceKey::of).collect();
        let written = outcome.written.len();
        let done: Vec<_> = all.into_iter().filter(|(key, _)| !left.contains(key)).collect();
        self.clear_parked(&done).await?;
        Ok(Round { applied: self.park(outcome).await?, written })
    }
}

/// Why a round ended before its commit.
fn stopped<T>(failure: Failure) -> Result<T, ApplyError> {
    match failure {
        Failure::Stop(error) => Err(error),
        Failure::Rows(refusal) => Err(stop(PgError::Refused(refusal))),
        Failure::Clash | Failure::Reload => Err(clash()),
        Failure::Unsendable => Err(unsendable()),
    }
}

/// What rounds did, and how many rows came in.
#[derive(Default)]
struct Round {
    applied: Applied,
    written: usize,
}

impl Round {
    fn add(&mut self, Round { applied, written }: Round) {
        applied.tables.into_iter().for_each(|(table, counts)| add(&mut self.applied.tables, table, counts));
        self.applied.dead_letters += applied.dead_letters;
        self.written += written;
    }
}

/// When the rows of all partitions are tried together: after a round that brought nothing in, and then after twice as
/// many such rounds each time.
#[derive(Debug, Default)]
pub(super) struct Together {
    every: u32,
    fruitless: u32,
}

impl Together {
    /// Whether it is time, after another round that brought nothing in.
    fn is_due(&mut self) -> bool {
        self.fruitless += 1;
        self.fruitless >= self.every
    }

    /// How a round went: one over all partitions if it was due, else one that brought rows in.
    fn note(&mut self, brought_in: bool) {
        if brought_in {
            *self = Together::default();
        } else if self.fruitless >= self.every {
            *self = Together { every: (2 * self.every).clamp(1, TOGETHER_EVERY_MAX), fruitless: 0 };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_partitions_are_tried_together_at_once_and_then_ever_more_seldom() {
        let mut together = Together::default();
        let mut due = |rounds: u32| {
            (0..rounds)
                .map(|_| {
                    let due = together.is_due();
                    together.note(false);
                    due
                })
                .filter(|due| *due)
                .count()
        };
        assert_eq!([due(1), due(1), due(2), due(4), due(8), due(16), due(16), due(160)], [1, 1, 1, 1, 1, 1, 1, 10]);
        together.note(true);
        assert!(together.is_due());
    }
}

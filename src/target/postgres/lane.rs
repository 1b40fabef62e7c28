//! The lane: its lock, its offset, its lease.
//!
//! A lane is a target table in a partition, or, of rows that several source tables share, a target table. Two writers
//! of one lane never write at the same time unless neither makes dead facts: a statement that waits for a row lock
//! still works with the tombstones that it saw before it waited (rule 1). The offset moves in the same
//! transaction, from where it must be, under the lease's epoch (rule 19).

use sha2::{Digest, Sha256};
use tokio_postgres::Row;

use super::{
    PostgresSink,
    answers::Mark,
    failure::{Failure, stop},
    input::WriteInput,
    parked,
    steps::{Param, Steps},
};
use crate::{
    database::postgres::{PgError, Session},
    log::{Offset, Topic},
    model::{Plan, PlanRole, Position, Problem, TableName, Version},
    target::{ApplyError, Batch},
};

/// Locks are taken in the order of their numbers, so that two transactions never wait for each other.
pub const LOCK: &str = "SELECT pg_catalog.pg_advisory_xact_lock(k) FROM unnest($1::bigint[]) k";
const LOCK_SHARED: &str = "SELECT pg_catalog.pg_advisory_xact_lock_shared(k) FROM unnest($1::bigint[]) k";

/// Moves the offset; no row means that another worker has.
const ADVANCE: &str = "
UPDATE cutover.offsets SET next_offset = $7, position = coalesce($8::text::jsonb, position),
  clock = greatest(clock, $9), newest_commit_us = greatest(newest_commit_us, $10), updated_at = clock_timestamp()
WHERE pipeline = $1 AND topic = $2 AND part = $3 AND log_epoch = $4 AND lease_epoch = $5 AND next_offset = $6
RETURNING 1";

/// Only asks whether the lease is still ours.
const HOLDS: &str = "
SELECT 1 FROM cutover.offsets WHERE pipeline = $1 AND topic = $2 AND part = $3 AND log_epoch = $4 AND lease_epoch = $5";

/// As [`HOLDS`], in whatever log.
pub(super) const HAS_LEASE: &str =
    "SELECT 1 FROM cutover.offsets WHERE pipeline = $1 AND topic = $2 AND part = $3 AND lease_epoch = $4";

const CLAIM: &str = "
INSERT INTO cutover.offsets AS o (pipeline, topic, part, log_epoch, lease_epoch) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (pipeline, topic, part) DO UPDATE SET lease_epoch = excluded.lease_epoch,
  next_offset = CASE WHEN o.log_epoch = excluded.log_epoch THEN o.next_offset ELSE 0 END,
  log_epoch = excluded.log_epoch, updated_at = clock_timestamp()
WHERE o.lease_epoch <= excluded.lease_epoch
RETURNING next_offset, position::text, clock";

/// Where a lane goes on.
#[derive(Debug, Clone, PartialEq)]
pub struct Claim {
    pub next_offset: Offset,
    /// The source position of the last control record applied, in this log or the one before.
    pub position: Option<Position>,
    pub clock: Version,
}

/// In place of a partition: all of them.
const WHOLE: u32 = u32::MAX;

/// The number of the lock of a plan's lane. Several source tables, or several source rows that claim one key, may reach
/// a row through different partitions, so that the lane of such rows is the whole target.
pub(super) fn lock_of(plan: &Plan, partition: u32) -> i64 {
    match plan.role {
        PlanRole::Whole if plan.is_owned() => lock_key(&plan.target.name, WHOLE),
        PlanRole::Whole | PlanRole::Set { .. } => lock_key(&plan.target.name, partition),
        PlanRole::Share(_) => lock_key(&plan.target.name, WHOLE),
    }
}

/// The number of a lane's lock.
fn lock_key(target: &TableName, partition: u32) -> i64 {
    let digest = Sha256::digest(format!("cutover lane\0{}\0{}\0{partition}", target.schema, target.table).as_bytes());
    digest.iter().take(8).fold(0i64, |key, byte| key << 8 | i64::from(*byte))
}

impl PostgresSink {
    /// Takes the lane for this worker's lease, in the log of this epoch. A new epoch starts at its first record.
    ///
    /// # Errors
    /// [`ApplyError::Fenced`] if a newer lease has it.
    pub async fn claim(&mut self, log_epoch: &str) -> Result<Claim, ApplyError> {
        self.ready().await?;
        self.unfinished = false;
        let (topic, part) = (self.lane_name(), i32::try_from(self.options.partition).unwrap_or(i32::MAX));
        let row = self
            .session
            .client
            .query_opt(CLAIM, &[&self.options.pipeline, &topic, &part, &log_epoch, &self.options.lease_epoch])
            .await
            .map_err(|error| stop(error.into()))?;
        let Some(row) = row else { return Err(self.fenced()) };
        read_claim(&row).map_err(stop)
    }

    /// Queues what begins a batch: locks, offset, mark. With a transaction already open the batch is a part of it that
    /// can be taken back alone.
    pub(super) async fn queue_prelude(
        &mut self,
        steps: &mut Steps<'_, Mark>,
        batch: &Batch,
        input: &WriteInput<'_>,
    ) -> Result<(), Failure> {
        let truncates = batch.truncates().next().is_some();
        let mut plans: Vec<usize> =
            input.groups.keys().filter_map(|place| self.bindings.all.get(*place)).map(|binding| binding.plan).collect();
        if truncates {
            plans.extend(0..self.plans.len());
        }
        let alone = |plan: &Plan| plan.role == PlanRole::Whole && !plan.is_owned();
        let alone = plans.iter().filter_map(|plan| self.plans.get(*plan)).all(alone);
        let shared = batch.topic == Topic::Snapshot && !truncates && !input.has_dead() && alone;
        let locks = self.locks(plans.into_iter());
        let lock = self.statement(if shared { LOCK_SHARED } else { LOCK }).await?;
        let offset = self.statement(if self.options.check_offset { ADVANCE } else { HOLDS }).await?;
        let offset_params = self.offset_params(batch)?;
        let mark = self.statement(parked::MARK).await?;
        if self.open.is_some() {
            steps.simple(Mark::Done, "SAVEPOINT cutover_part");
        }
        // The mark is read after the lock, so that what another writer of the lane parked is seen.
        if !locks.is_empty() {
            steps.query(Mark::Done, lock, vec![Box::new(locks)]);
        }
        steps.query(Mark::Lane, offset, offset_params);
        steps.query(Mark::Parked, mark, vec![Box::new(self.options.pipeline.clone())]);
        Ok(())
    }

    pub(super) fn fenced(&self) -> ApplyError {
        ApplyError::Fenced {
            topic: self.lane_name(),
            partition: self.options.partition,
            pipeline: self.options.pipeline.clone(),
        }
    }

    /// The numbers of the locks of every target that this batch may write, in order.
    pub(super) fn locks(&self, plans: impl Iterator<Item = usize>) -> Vec<i64> {
        self.locks_in(plans, std::iter::once(self.options.partition))
    }

    /// As [`Self::locks`], of several partitions.
    pub(super) fn locks_in(
        &self,
        plans: impl Iterator<Item = usize>,
        partitions: impl Iterator<Item = u32> + Clone,
    ) -> Vec<i64> {
        if self.is_elsewhere() {
            // The rows' own server keeps writers apart; who waits for both could wait for ever.
            return Vec::new();
        }
        let plans = plans.filter_map(|plan| self.plans.get(plan));
        let mut keys: Vec<i64> =
            plans.flat_map(|plan| partitions.clone().map(|partition| lock_of(plan, partition))).collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    }

    /// Parameters of [`ADVANCE`] or [`HOLDS`].
    pub(super) fn offset_params(&self, batch: &Batch) -> Result<Vec<Param<'static>>, Failure> {
        let number = |offset: Offset| {
            i64::try_from(offset).map_err(|_| {
                Failure::Stop(ApplyError::Halt(Problem::new(
                    format!("offset {offset} is beyond what the target can hold"),
                    "start a new log",
                )))
            })
        };
        let mut params: Vec<Param<'static>> = vec![
            Box::new(self.options.pipeline.clone()),
            Box::new(self.lane_name()),
            Box::new(i32::try_from(batch.partition).unwrap_or(i32::MAX)),
            Box::new(batch.log_epoch.clone()),
            Box::new(self.options.lease_epoch),
        ];
        if self.options.check_offset {
            let position = batch.control.as_ref().and_then(|control| control.position.as_ref());
            let position = position.and_then(|position| serde_json::to_string(position).ok());
            params.push(Box::new(number(batch.from)?));
            params.push(Box::new(number(batch.to)?));
            params.push(Box::new(position));
            params.push(Box::new(batch.control.as_ref().map_or(0, |control| control.clock)));
            params.push(Box::new(batch.newest_commit_us.unwrap_or_default()));
        }
        Ok(params)
    }
}

const RAISE_FENCE: &str = "
INSERT INTO cutover.fences AS f (pipeline, source_table, version)
SELECT $1, $2, $3 WHERE EXISTS (SELECT FROM cutover.lease WHERE pipeline = $1 AND role = 'worker' AND epoch = $4)
ON CONFLICT (pipeline, source_table) DO UPDATE SET version = greatest(f.version, excluded.version)";

/// Keeps everything of a source table out that is older than `version`, under the locks of all lanes of its plans: what
/// was being written meanwhile is there when this returns.
pub async fn raise_fence(
    session: &Session,
    (pipeline, lease_epoch): (&str, i64),
    source: &TableName,
    plans: &[&Plan],
    partitions: u32,
    version: Version,
) -> Result<(), PgError> {
    let mut keys: Vec<i64> =
        plans.iter().flat_map(|plan| (0..partitions).map(|partition| lock_of(plan, partition))).collect();
    keys.sort_unstable();
    keys.dedup();
    let client = &session.client;
    client.batch_execute("BEGIN").await?;
    client.query(LOCK, &[&keys]).await?;
    client.execute(RAISE_FENCE, &[&pipeline, &source.to_string(), &version, &lease_epoch]).await?;
    client.batch_execute("COMMIT").await?;
    Ok(())
}

fn read_claim(row: &Row) -> Result<Claim, PgError> {
    let offset: i64 = row.try_get(0)?;
    let position: Option<String> = row.try_get(1)?;
    let position = position.map(|text| serde_json::from_str(&text)).transpose();
    let position = position
        .map_err(|error| PgError::Protocol(format!("cutover.offsets holds a position that cannot be read: {error}")))?;
    Ok(Claim { next_offset: offset.try_into().unwrap_or_default(), position, clock: row.try_get(2)? })
}

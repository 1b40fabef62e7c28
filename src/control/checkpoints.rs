//! Named points of the log, and which transforms were in force when.
//!
//! A checkpoint is what the target has had: an offset in each partition of both topics, with the source's position and
//! clock there. It is read and written in the target alone, so that it can be made with and without a worker.

use serde::{Deserialize, Serialize};

use super::store::Store;
use crate::{
    database::postgres::PgError,
    log::{Offset, Topic},
    model::{Plan, Position, TableName, Version},
    transform::transforms_hash,
};

/// The offsets of both topics, by partition.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offsets {
    pub changes: Vec<Offset>,
    pub snapshot: Vec<Offset>,
}

/// A point of the log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Point {
    pub log_epoch: String,
    pub offsets: Offsets,
    /// The source's position that the target had then; none before the first.
    pub position: Option<Position>,
    pub clock: Version,
    /// Of the transforms that were in force; empty if no worker had noted any.
    pub transforms: String,
}

/// A named point.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Checkpoint {
    pub name: String,
    pub created: String,
    #[serde(flatten)]
    pub point: Point,
}

/// What a plan does, as far as a replay needs to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanNote {
    pub source: TableName,
    pub target: TableName,
    /// What decides which rows there are.
    pub identity: String,
}

/// Transforms, and from where on they were in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InForce {
    pub offsets: Offsets,
    /// The clock that the target had.
    pub clock: Version,
    pub plans: Vec<PlanNote>,
}

/// What plans do.
pub fn plan_notes(plans: &[Plan]) -> Vec<PlanNote> {
    let note = |plan: &Plan| PlanNote {
        source: plan.source.table.clone(),
        target: plan.target.name.clone(),
        identity: plan.identity.clone(),
    };
    plans.iter().map(note).collect()
}

impl Store {
    /// Where each partition of each topic stands in the log of this epoch; 0 where nothing is applied.
    pub async fn applied_offsets(&self, log_epoch: &str, partitions: u32) -> Result<Offsets, PgError> {
        let mut offsets = Offsets { changes: vec![0; partitions as usize], snapshot: vec![0; partitions as usize] };
        for (topic, partition, next) in self.next_offsets(log_epoch).await? {
            let topic = match topic {
                Topic::Changes => &mut offsets.changes,
                Topic::Snapshot => &mut offsets.snapshot,
            };
            if let Some(offset) = topic.get_mut(partition as usize) {
                *offset = next;
            }
        }
        Ok(offsets)
    }

    /// Notes which transforms are in force from here on, unless they were already.
    pub async fn note_transforms(&self, log_epoch: &str, partitions: u32, plans: &[Plan]) -> Result<(), PgError> {
        let offsets = self.applied_offsets(log_epoch, partitions).await?;
        let clock = self.position().await?.map_or(0, |(_, clock)| clock);
        let (hash, notes) = (transforms_hash(plans), plan_notes(plans));
        let text = |value: serde_json::Result<String>| value.map_err(|error| PgError::Protocol(error.to_string()));
        let (offsets, notes) = (text(serde_json::to_string(&(offsets, clock)))?, text(serde_json::to_string(&notes))?);
        let session = self.session().await?;
        session
            .client()?
            .execute(
                "INSERT INTO cutover.transforms (pipeline, hash, log_epoch, offsets, plans) \
                 SELECT $1, $2, $3, $4::text::jsonb, $5::text::jsonb WHERE NOT EXISTS ( \
                   SELECT FROM (SELECT * FROM cutover.transforms WHERE pipeline = $1 ORDER BY seq DESC LIMIT 1) t \
                   WHERE t.hash = $2 AND t.log_epoch = $3 AND t.plans = $5::text::jsonb)",
                &[&self.pipeline, &hash, &log_epoch, &offsets, &notes],
            )
            .await?;
        Ok(())
    }

    /// The transforms that were in force in this log, oldest first.
    pub async fn transforms(&self, log_epoch: &str) -> Result<Vec<InForce>, PgError> {
        let session = self.session().await?;
        let rows = session
            .client()?
            .query(
                "SELECT offsets::text, plans::text FROM cutover.transforms WHERE pipeline = $1 AND log_epoch = $2 ORDER BY seq",
                &[&self.pipeline, &log_epoch],
            )
            .await?;
        let broken =
            |error: serde_json::Error| PgError::Protocol(format!("cutover.transforms cannot be read: {error}"));
        let read = |row: &tokio_postgres::Row| {
            let (offsets, clock) = serde_json::from_str(row.get(0)).map_err(broken)?;
            Ok(InForce { offsets, clock, plans: serde_json::from_str(row.get(1)).map_err(broken)? })
        };
        rows.iter().map(read).collect()
    }

    /// Names the point that the target has reached; none if nothing is applied yet, an error in words if the name is taken.
    pub async fn create_checkpoint(&self, name: &str) -> Result<Result<Point, String>, PgError> {
        let Some(point) = self.point().await? else {
            return Ok(Err("nothing is applied yet; start the worker with `cutover run` first".into()));
        };
        let details = serde_json::to_string(&point).map_err(|error| PgError::Protocol(error.to_string()))?;
        let session = self.session().await?;
        let created = session
            .client()?
            .execute(
                "INSERT INTO cutover.checkpoints (pipeline, name, details) VALUES ($1, $2, $3::text::jsonb) \
                 ON CONFLICT DO NOTHING",
                &[&self.pipeline, &name, &details],
            )
            .await?;
        if created == 1 {
            return Ok(Ok(point));
        }
        Ok(Err(format!("there is a checkpoint `{name}` already; choose another name")))
    }

    /// One statement, so that all partitions are of one moment.
    async fn point(&self) -> Result<Option<Point>, PgError> {
        let session = self.session().await?;
        let rows = session
            .client()?
            .query(
                "SELECT topic = 'changes', part, next_offset, log_epoch, position::text, clock, \
                        coalesce((SELECT hash FROM cutover.transforms t WHERE t.pipeline = $1 ORDER BY seq DESC LIMIT 1), '') \
                 FROM cutover.offsets WHERE pipeline = $1 AND topic IN ('changes', 'snapshot') ORDER BY part",
                &[&self.pipeline],
            )
            .await?;
        let Some(first) = rows.iter().find(|row| row.get(0)) else { return Ok(None) };
        let mut point = Point {
            log_epoch: first.get(3),
            offsets: Offsets::default(),
            position: None,
            clock: Version::MAX,
            transforms: first.get(6),
        };
        for row in &rows {
            let offset = row.get::<_, i64>(2).cast_unsigned();
            if !row.get::<_, bool>(0) {
                point.offsets.snapshot.push(offset);
                continue;
            }
            point.offsets.changes.push(offset);
            let clock: Version = row.get(5);
            if clock < point.clock {
                point.clock = clock;
                let position: Option<&str> = row.get(4);
                point.position = position
                    .map(serde_json::from_str)
                    .transpose()
                    .map_err(|error| PgError::Protocol(format!("a stored position cannot be read: {error}")))?;
            }
        }
        point.offsets.snapshot.resize(point.offsets.changes.len(), 0);
        Ok(Some(point))
    }

    /// Every checkpoint, oldest first.
    pub async fn checkpoints(&self) -> Result<Vec<Checkpoint>, PgError> {
        let session = self.session().await?;
        let rows = session
            .client()?
            .query(
                "SELECT name, to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'), details::text \
                 FROM cutover.checkpoints WHERE pipeline = $1 ORDER BY created_at, name",
                &[&self.pipeline],
            )
            .await?;
        let read = |row: &tokio_postgres::Row| {
            let point = serde_json::from_str(row.get(2))
                .map_err(|error| PgError::Protocol(format!("a stored checkpoint cannot be read: {error}")))?;
            Ok(Checkpoint { name: row.get(0), created: row.get(1), point })
        };
        rows.iter().map(read).collect()
    }
}

//! Named points of the log.
//!
//! A checkpoint is what the target has had: an offset in each partition of both topics, with the source's position and
//! clock there. It is read and written in the target alone, so that it can be made with and without a worker.

use serde::{Deserialize, Serialize};

use super::{StateError, Store, lanes::Offsets};
use crate::model::{Position, Version};

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

impl Store {
    /// Names the point that the target has reached; none if nothing is applied yet, an error in words if the name is
    /// taken.
    pub async fn create_checkpoint(&self, name: &str) -> Result<Result<Point, String>, StateError> {
        let Some(point) = self.point().await? else {
            return Ok(Err("nothing is applied yet; start the worker with `cutover run` first".into()));
        };
        let details = serde_json::to_string(&point)?;
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
    async fn point(&self) -> Result<Option<Point>, StateError> {
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
                    .map_err(|error| StateError::unreadable("a stored position", &error))?;
            }
        }
        point.offsets.snapshot.resize(point.offsets.changes.len(), 0);
        Ok(Some(point))
    }

    /// Every checkpoint, oldest first.
    pub async fn checkpoints(&self) -> Result<Vec<Checkpoint>, StateError> {
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
                .map_err(|error| StateError::unreadable("a stored checkpoint", &error))?;
            Ok(Checkpoint { name: row.get(0), created: row.get(1), point })
        };
        rows.iter().map(read).collect()
    }
}

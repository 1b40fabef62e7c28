//! Lanes: what the target has of each partition of a topic, and of each pass of a replay.
//!
//! The offsets are the target's: a batch moves them in the transaction that writes its rows. Here they are read, and
//! prepared for another log.

use serde::{Deserialize, Serialize};

use super::{StateError, Store};
use crate::{
    log::{Offset, Topic},
    model::{Position, Version},
};

/// The offsets of both topics, by partition.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offsets {
    pub changes: Vec<Offset>,
    pub snapshot: Vec<Offset>,
}

/// What the target has of one partition of a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LaneOffset {
    pub topic: Topic,
    pub part: u32,
    /// Of the log that was asked for, not of one before it.
    pub is_current: bool,
    pub next_offset: Offset,
    pub clock: Version,
    pub newest_commit_us: i64,
}

/// A pass of a replay: which part of the log is applied again, and what of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    /// Of the changes, the deletes alone: their tombstones keep out what the other passes would bring back.
    Deletes,
    Snapshot,
    Changes,
}

impl Pass {
    /// The topic that it reads.
    pub fn topic(self) -> Topic {
        match self {
            Pass::Deletes | Pass::Changes => Topic::Changes,
            Pass::Snapshot => Topic::Snapshot,
        }
    }

    /// What its offsets are stored under.
    pub fn lane(self) -> &'static str {
        match self {
            Pass::Deletes => "replay.deletes",
            Pass::Snapshot => "replay.snapshot",
            Pass::Changes => "replay.changes",
        }
    }
}

impl Store {
    /// The newest commit or heartbeat that the target has, µs since the Unix epoch, by partition.
    pub async fn newest_commits(&self) -> Result<Vec<(u32, i64)>, StateError> {
        let session = self.session().await?;
        let rows = session
            .client()?
            .query(
                "SELECT part, newest_commit_us FROM cutover.offsets WHERE pipeline = $1 AND topic = 'changes'",
                &[&self.pipeline],
            )
            .await?;
        Ok(rows.iter().map(|row| (row.get::<_, i32>(0).cast_unsigned(), row.get(1))).collect())
    }

    /// Where each partition of each topic goes on in the log of this epoch.
    pub async fn next_offsets(&self, log_epoch: &str) -> Result<Vec<(Topic, u32, Offset)>, StateError> {
        let session = self.session().await?;
        let rows = session
            .client()?
            .query(
                "SELECT topic = 'changes', part, next_offset FROM cutover.offsets \
                 WHERE pipeline = $1 AND log_epoch = $2 AND topic IN ('changes', 'snapshot')",
                &[&self.pipeline, &log_epoch],
            )
            .await?;
        let topic = |changes| if changes { Topic::Changes } else { Topic::Snapshot };
        let read = |row: &tokio_postgres::Row| {
            (topic(row.get(0)), row.get::<_, i32>(1).cast_unsigned(), row.get::<_, i64>(2).cast_unsigned())
        };
        Ok(rows.iter().map(read).collect())
    }

    /// Where each partition of each topic stands in the log of this epoch; 0 where nothing is applied.
    pub async fn applied_offsets(&self, log_epoch: &str, partitions: u32) -> Result<Offsets, StateError> {
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

    /// Prepares the lanes for a log: those of an earlier one with more partitions are gone, and what was copied
    /// through it in part is copied through this one. Where they differ, all go on from the least of them.
    pub(crate) async fn begin_log(&self, log_epoch: &str, partitions: u32) -> Result<(), StateError> {
        let session = self.session().await?;
        session
            .client()?
            .execute(
                "WITH lanes AS (SELECT * FROM cutover.offsets WHERE pipeline = $1 AND topic IN ('changes', 'snapshot')), \
                      least AS (SELECT position, clock, newest_commit_us FROM lanes \
                                WHERE topic = 'changes' AND position IS NOT NULL ORDER BY clock LIMIT 1), \
                      kept AS (UPDATE cutover.offsets o \
                               SET position = l.position, clock = l.clock, newest_commit_us = l.newest_commit_us FROM least l \
                               WHERE o.pipeline = $1 AND o.topic = 'changes' AND o.part < $3 AND o.log_epoch <> $2 \
                                 AND o.clock > l.clock), \
                      gone AS (DELETE FROM cutover.offsets \
                               WHERE pipeline = $1 AND topic IN ('changes', 'snapshot') AND part >= $3) \
                 UPDATE cutover.chunks SET parts_done = '{}' WHERE pipeline = $1 AND state <> 'done' AND parts_done <> '{}' \
                    AND EXISTS (SELECT FROM lanes WHERE log_epoch <> $2)",
                &[&self.pipeline, &log_epoch, &partitions.cast_signed()],
            )
            .await?;
        Ok(())
    }

    /// Gives every lane of this log that has no position yet the one at which the log begins: what the target has of
    /// one lane says nothing of another (rule 18).
    pub async fn lanes_begin_at(
        &self,
        log_epoch: &str,
        partitions: u32,
        position: &Position,
        clock: Version,
    ) -> Result<(), StateError> {
        let session = self.session().await?;
        session
            .client()?
            .execute(
                "INSERT INTO cutover.offsets AS o (pipeline, topic, part, log_epoch, position, clock) \
                 SELECT $1, 'changes', part, $2, $4::text::jsonb, $5::bigint FROM generate_series(0, $3 - 1) part \
                 ON CONFLICT (pipeline, topic, part) DO UPDATE SET position = excluded.position, clock = excluded.clock \
                 WHERE o.position IS NULL",
                &[&self.pipeline, &log_epoch, &partitions.cast_signed(), &serde_json::to_string(position)?, &clock],
            )
            .await?;
        Ok(())
    }

    /// Every lane, for who follows what others apply.
    pub(crate) async fn lanes(&self, log_epoch: &str) -> Result<Vec<LaneOffset>, StateError> {
        let session = self.session().await?;
        let rows = session
            .client()?
            .query(
                "SELECT topic, part, log_epoch = $2, next_offset, clock, newest_commit_us FROM cutover.offsets \
                 WHERE pipeline = $1 AND topic IN ('changes', 'snapshot')",
                &[&self.pipeline, &log_epoch],
            )
            .await?;
        let lane = |row: &tokio_postgres::Row| LaneOffset {
            topic: if row.get::<_, &str>(0) == Topic::Changes.suffix() { Topic::Changes } else { Topic::Snapshot },
            part: row.get::<_, i32>(1).cast_unsigned(),
            is_current: row.get(2),
            next_offset: row.get::<_, i64>(3).cast_unsigned(),
            clock: row.get(4),
            newest_commit_us: row.get(5),
        };
        Ok(rows.iter().map(lane).collect())
    }

    /// Whether the target has everything up to `end`, in every partition of this log.
    pub(crate) async fn covers(&self, end: &Position, log_epoch: &str, partitions: u32) -> Result<bool, StateError> {
        let session = self.session().await?;
        let rows = session
            .client()?
            .query(
                "SELECT position::text FROM cutover.offsets \
                 WHERE pipeline = $1 AND topic = 'changes' AND log_epoch = $2 AND position IS NOT NULL",
                &[&self.pipeline, &log_epoch],
            )
            .await?;
        let covers = |row: &tokio_postgres::Row| {
            serde_json::from_str::<Position>(row.get(0)).is_ok_and(|position| position.covers(end))
        };
        Ok(rows.len() == partitions as usize && rows.iter().all(covers))
    }

    /// The source position up to which the target has every lane, with the clock there: where capture begins when the
    /// log is lost.
    pub async fn position(&self) -> Result<Option<(Position, Version)>, StateError> {
        let session = self.session().await?;
        let row = session
            .client()?
            .query_opt(
                "SELECT position::text, clock FROM cutover.offsets \
                 WHERE pipeline = $1 AND topic = 'changes' AND position IS NOT NULL ORDER BY clock LIMIT 1",
                &[&self.pipeline],
            )
            .await?;
        let Some(row) = row else { return Ok(None) };
        let position =
            serde_json::from_str(row.get(0)).map_err(|error| StateError::unreadable("a stored position", &error))?;
        Ok(Some((position, row.get(1))))
    }

    /// Where a lane goes on, what was seen of it, and its clock; none if it was never claimed under this epoch.
    pub(crate) async fn lane_seen(
        &self,
        lane: u32,
        epoch: &str,
    ) -> Result<Option<(Offset, Option<Position>, Version)>, StateError> {
        let session = self.session().await?;
        let row = session
            .client()?
            .query_opt(
                "SELECT next_offset, position::text, clock FROM cutover.offsets \
                 WHERE pipeline = $1 AND topic = 'changes' AND part = $2 AND log_epoch = $3",
                &[&self.pipeline, &lane.cast_signed(), &epoch],
            )
            .await?;
        let Some(row) = row else { return Ok(None) };
        let position: Option<String> = row.get(1);
        let position = position.map(|text| serde_json::from_str(&text)).transpose();
        let position = position.map_err(|error| StateError::unreadable("a stored position", &error))?;
        Ok(Some((row.get::<_, i64>(0).cast_unsigned(), position, row.get(2))))
    }

    /// Says that these lanes have all that their topics held at a time.
    pub(crate) async fn lanes_are_fresh(&self, lanes: &[u32], at_us: i64) -> Result<(), StateError> {
        let lanes: Vec<i32> = lanes.iter().map(|lane| lane.cast_signed()).collect();
        let session = self.session().await?;
        session
            .client()?
            .execute(
                "UPDATE cutover.offsets SET newest_commit_us = greatest(newest_commit_us, $3) \
                 WHERE pipeline = $1 AND topic = 'changes' AND part = ANY($2)",
                &[&self.pipeline, &lanes, &at_us],
            )
            .await?;
        Ok(())
    }
}

//! What a batch writes besides rows: schemas, fences, chunks, and what its rows clear.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    PostgresSink,
    answers::Mark,
    dead_letters::FORGET_NOTED,
    items::{Item, SourceKey},
    needs::FREE_TABLE,
    parked::{CLEAR, cleared_params},
    schemas,
    steps::{Param, Steps},
    sweep,
};
use crate::{
    database::postgres::PgError,
    model::{Plan, Version},
    target::{Batch, BatchEvent},
};

pub(super) const FENCE: &str = "
INSERT INTO cutover.fences AS f (pipeline, source_table, version) VALUES ($1, $2, $3)
ON CONFLICT (pipeline, source_table) DO UPDATE SET version = greatest(f.version, excluded.version)";

pub(super) const FENCE_DEAD: &str = "
DELETE FROM cutover.dead_letters WHERE pipeline = $1 AND source_table = $2 AND version < $3 AND state = 'open'";

pub(super) const FENCE_WAITING: &str =
    "DELETE FROM cutover.waiting WHERE pipeline = $1 AND source_table = $2 AND version < $3";

const CHUNK: &str = "
UPDATE cutover.chunks SET state = 'applied', rows = $5, updated_at = clock_timestamp()
WHERE pipeline = $1 AND source_table = $2 AND generation = $3 AND chunk = $4";

impl PostgresSink {
    /// Queues schemas, fences and chunks of this batch, and what its rows clear.
    pub(super) async fn queue_side_work(
        &mut self,
        steps: &mut Steps<'_, Mark>,
        batch: &Batch,
        items: &[Item<'_>],
        touched: &BTreeSet<SourceKey>,
    ) -> Result<(), PgError> {
        let mut fences: BTreeMap<String, Version> = BTreeMap::new();
        for event in &batch.events {
            match event {
                BatchEvent::Row(_) | BatchEvent::Cascade { .. } => {}
                BatchEvent::Schema(schema) => {
                    self.schemas.insert(schema.id(), schema.clone());
                    let statement = self.statement(schemas::STORE).await?;
                    steps.query(Mark::Done, statement, schemas::params(&self.options.pipeline, schema));
                }
                BatchEvent::Truncate { schema, version } => {
                    let fence = fences.entry(schema.table.to_string()).or_insert(*version);
                    *fence = (*version).max(*fence);
                }
            }
        }
        self.queue_cascades(steps, batch).await?;
        for (source, version) in fences {
            self.queue_fence(steps, &source, version).await?;
        }
        if self.options.check_offset {
            self.queue_chunks(steps, batch).await?;
        }
        self.queue_freed(steps, items).await?;
        self.queue_cleared(steps, items, touched).await
    }

    /// After a TRUNCATE: its fence, and the removal of everything older.
    async fn queue_fence(
        &mut self,
        steps: &mut Steps<'_, Mark>,
        source: &str,
        version: Version,
    ) -> Result<(), PgError> {
        // Where rows are elsewhere it is raised already, for all to see.
        let fence = (!self.is_elsewhere()).then_some(FENCE);
        for text in fence.into_iter().chain([FENCE_DEAD, FENCE_WAITING]) {
            let params: Vec<Param<'_>> =
                vec![Box::new(self.options.pipeline.clone()), Box::new(source.to_owned()), Box::new(version)];
            steps.query(Mark::Done, self.statement(text).await?, params);
        }
        self.parked.stale = true;
        if self.is_elsewhere() {
            return Ok(());
        }
        let plans = self.plans.clone();
        let mut own: Vec<(usize, &Plan)> = plans
            .iter()
            .zip(&self.ranks)
            .filter(|(plan, _)| plan.source.table.to_string() == source)
            .map(|(plan, rank)| (*rank, plan))
            .collect();
        own.sort_by_key(|(rank, _)| std::cmp::Reverse(*rank));
        for (_, plan) in own {
            for text in sweep::truncate(plan) {
                steps.query(Mark::Done, self.statement(&text).await?, vec![Box::new(version)]);
            }
            if let Some(show) = sweep::show(plan) {
                steps.query(Mark::Done, self.statement(&show).await?, Vec::new());
            }
        }
        if plans.iter().any(|plan| plan.is_owned() && plan.source.table.to_string() == source) {
            let params: Vec<Param<'_>> = vec![Box::new(self.options.pipeline.clone()), Box::new(source.to_owned())];
            steps.query(Mark::Freed, self.statement(FREE_TABLE).await?, params);
        }
        Ok(())
    }

    /// The chunks of a copy that end in this batch.
    async fn queue_chunks(&mut self, steps: &mut Steps<'_, Mark>, batch: &Batch) -> Result<(), PgError> {
        for chunk in &batch.chunks {
            let params: Vec<Param<'_>> = vec![
                Box::new(self.options.pipeline.clone()),
                Box::new(chunk.table.clone()),
                Box::new(chunk.generation),
                Box::new(chunk.chunk),
                Box::new(i64::try_from(chunk.rows).unwrap_or(i64::MAX)),
            ];
            steps.query(Mark::Done, self.statement(CHUNK).await?, params);
        }
        Ok(())
    }

    /// What is parked of rows that this batch writes is over.
    async fn queue_cleared(
        &mut self,
        steps: &mut Steps<'_, Mark>,
        items: &[Item<'_>],
        touched: &BTreeSet<SourceKey>,
    ) -> Result<(), PgError> {
        let newest = || items.iter().filter_map(Item::newest).map(|event| (SourceKey::of(event), event.version));
        if self.forgets_noted() {
            let noted: Vec<_> = newest().collect();
            let params = cleared_params(&self.options.pipeline, &noted);
            steps.query(Mark::Done, self.statement(FORGET_NOTED).await?, params);
        }
        if touched.is_empty() {
            return Ok(());
        }
        let cleared: Vec<_> = newest().filter(|(key, _)| touched.contains(key)).collect();
        if !cleared.is_empty() {
            self.parked.stale = true;
            for text in CLEAR {
                let params = cleared_params(&self.options.pipeline, &cleared);
                steps.query(Mark::Done, self.statement(text).await?, params);
            }
        }
        Ok(())
    }
}

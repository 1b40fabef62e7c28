//! What a batch writes besides rows: schemas, fences, chunks, and rows set aside.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use tokio_postgres::Statement;

use super::{
    PostgresSink,
    failure::Failure,
    held::Held,
    input::{Item, SourceKey},
    letters,
    steps::{Param, Steps},
    sweep,
    write::Mark,
};
use crate::{
    database::postgres::PgError,
    model::{Plan, TableSchema, Version},
    target::{Batch, Event, RowEvent},
};

const SCHEMA: &str = "
INSERT INTO cutover.schemas (pipeline, id, definition) VALUES ($1, $2, $3::text::jsonb) ON CONFLICT DO NOTHING";

const FENCE: &str = "
INSERT INTO cutover.fences AS f (pipeline, source_table, version) VALUES ($1, $2, $3)
ON CONFLICT (pipeline, source_table) DO UPDATE SET version = greatest(f.version, excluded.version)";

pub(super) const FENCE_DEAD: &str = "
DELETE FROM cutover.dead_letters WHERE pipeline = $1 AND source_table = $2 AND version < $3 AND state = 'open'";

pub(super) const FENCE_WAITING: &str =
    "DELETE FROM cutover.waiting WHERE pipeline = $1 AND source_table = $2 AND version < $3";

const CHUNK: &str = "
UPDATE cutover.chunks SET state = 'applied', rows = $5, updated_at = clock_timestamp()
WHERE pipeline = $1 AND source_table = $2 AND generation = $3 AND chunk = $4";

const CLEAR_DEAD: &str = "
DELETE FROM cutover.dead_letters d USING unnest($2::text[], $3::text[], $4::bigint[]) x(source, key, version)
WHERE d.pipeline = $1 AND d.state = 'open' AND d.source_table = x.source AND d.key_text = x.key
  AND d.version <= x.version";

const CLEAR_WAITING: &str = "
DELETE FROM cutover.waiting w USING unnest($2::text[], $3::text[], $4::bigint[]) x(source, key, version)
WHERE w.pipeline = $1 AND w.source_table = x.source AND pg_catalog.md5(w.key_text) = pg_catalog.md5(x.key)
  AND w.key_text = x.key AND w.version <= x.version";

const WAIT: &str = "
INSERT INTO cutover.waiting AS w (pipeline, source_table, key_text, version, part, schema_id, value, reason)
SELECT $1, x.source, x.key, x.version, $2, x.schema_id, pg_catalog.convert_to(x.value, 'UTF8'), x.reason
FROM unnest($3::text[], $4::text[], $5::bigint[], $6::bigint[], $7::text[], $8::text[])
  x(source, key, version, schema_id, value, reason)
ON CONFLICT (pipeline, source_table, md5(key_text), version)
DO UPDATE SET attempts = w.attempts + 1, reason = excluded.reason";

/// A row that is set aside, and why.
#[derive(Debug, Clone)]
pub struct Aside<'a> {
    pub event: &'a RowEvent,
    pub sqlstate: String,
    pub message: String,
}

/// Statements that a batch sends between its prelude and its rows.
#[derive(Default)]
pub struct SideWork(Vec<(Statement, Vec<Param<'static>>)>);

impl SideWork {
    pub fn queue(self, steps: &mut Steps<'_, Mark>) {
        for (statement, params) in self.0 {
            steps.query(Mark::Done, statement, params);
        }
    }
}

impl PostgresSink {
    /// Schemas, fences and chunks of this batch, and what its rows clear.
    pub(super) async fn side_work(
        &mut self,
        batch: &Batch,
        touched: &HashSet<SourceKey>,
        items: &[Item<'_>],
    ) -> Result<SideWork, Failure> {
        let mut side = SideWork::default();
        let pipeline = self.options.pipeline.clone();
        let mut fences: BTreeMap<String, Version> = BTreeMap::new();
        for event in &batch.events {
            match event {
                Event::Row(_) => {}
                Event::Schema(schema) => {
                    self.schemas.insert(schema.id(), schema.clone());
                    side.0.push((self.statement(SCHEMA).await?, schema_params(&pipeline, schema)));
                }
                Event::Truncate { schema, version } => {
                    let fence = fences.entry(schema.table.to_string()).or_insert(*version);
                    *fence = (*version).max(*fence);
                }
            }
        }
        for (source, version) in fences {
            for text in [FENCE, FENCE_DEAD, FENCE_WAITING] {
                let params: Vec<Param<'static>> =
                    vec![Box::new(pipeline.clone()), Box::new(source.clone()), Box::new(version)];
                side.0.push((self.statement(text).await?, params));
            }
            self.held.stale = true;
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
                    side.0.push((self.statement(&text).await?, vec![Box::new(version)]));
                }
                if let Some(show) = sweep::show(plan) {
                    side.0.push((self.statement(&show).await?, Vec::new()));
                }
            }
        }
        if self.options.check_offset {
            for chunk in &batch.chunks {
                let rows = i64::try_from(chunk.rows).unwrap_or(i64::MAX);
                let params: Vec<Param<'static>> = vec![
                    Box::new(pipeline.clone()),
                    Box::new(chunk.table.clone()),
                    Box::new(chunk.generation),
                    Box::new(chunk.chunk),
                    Box::new(rows),
                ];
                side.0.push((self.statement(CHUNK).await?, params));
            }
        }
        let cleared: Vec<(SourceKey, Version)> = items
            .iter()
            .filter_map(|item| item.newest())
            .filter(|_| !touched.is_empty())
            .map(|event| (SourceKey::of(event), event.version))
            .filter(|(key, _)| touched.contains(key))
            .collect();
        if self.forgets_noted() {
            let rows = items.iter().filter_map(Item::newest);
            let rows: Vec<_> = rows.map(|event| (SourceKey::of(event), event.version)).collect();
            side.0.push((self.statement(letters::FORGET_NOTED).await?, cleared_params(&pipeline, &rows)));
        }
        if !cleared.is_empty() {
            self.held.stale = true;
            for text in [CLEAR_DEAD, CLEAR_WAITING] {
                side.0.push((self.statement(text).await?, cleared_params(&pipeline, &cleared)));
            }
        }
        Ok(side)
    }

    /// Reads again what is set aside, if this batch changed it.
    pub(super) async fn refresh_held(&mut self) -> Result<(), PgError> {
        if self.held.stale {
            self.held = Held::load(&self.session.client, &self.options.pipeline).await?;
        }
        Ok(())
    }

    /// Clears what is set aside for these rows, up to these versions.
    pub(super) async fn clear(&mut self, cleared: &[(SourceKey, Version)]) -> Result<(), PgError> {
        if !cleared.is_empty() {
            self.held.stale = true;
            let statement = self.statement(CLEAR_DEAD).await?;
            self.execute(&statement, cleared_params(&self.options.pipeline, cleared)).await?;
        }
        self.clear_waiting(cleared).await
    }

    /// As [`Self::clear`], of waiting rows only.
    pub(super) async fn clear_waiting(&mut self, cleared: &[(SourceKey, Version)]) -> Result<(), PgError> {
        if cleared.is_empty() {
            return Ok(());
        }
        self.held.stale = true;
        let statement = self.statement(CLEAR_WAITING).await?;
        self.execute(&statement, cleared_params(&self.options.pipeline, cleared)).await
    }

    /// Stores rows that wait for another.
    pub(super) async fn store_waiting(&mut self, waiting: &[Aside<'_>]) -> Result<(), PgError> {
        if waiting.is_empty() {
            return Ok(());
        }
        self.held.stale = true;
        self.store_schemas(waiting).await?;
        let statement = self.statement(WAIT).await?;
        let params: Vec<Param<'_>> = vec![
            Box::new(&self.options.pipeline),
            Box::new(i32::try_from(self.options.partition).unwrap_or(i32::MAX)),
            Box::new(texts(waiting, |aside| aside.event.schema.table.to_string())),
            Box::new(texts(waiting, |aside| json(&aside.event.key))),
            Box::new(waiting.iter().map(|aside| aside.event.version).collect::<Vec<_>>()),
            Box::new(waiting.iter().map(|aside| aside.event.schema.id().cast_signed()).collect::<Vec<_>>()),
            Box::new(texts(waiting, |aside| json(&aside.event.value))),
            Box::new(texts(waiting, |aside| format!("{} (SQLSTATE {})", aside.message, aside.sqlstate))),
        ];
        self.execute(&statement, params).await
    }

    /// A row set aside can only be read again with its schema.
    pub(super) async fn store_schemas(&mut self, aside: &[Aside<'_>]) -> Result<(), PgError> {
        let mut stored = HashSet::new();
        for aside in aside {
            if stored.insert(Arc::as_ptr(&aside.event.schema) as usize) {
                let statement = self.statement(SCHEMA).await?;
                let params = schema_params(&self.options.pipeline, &aside.event.schema);
                self.execute(&statement, params).await?;
            }
        }
        Ok(())
    }

    pub(super) async fn execute(&self, statement: &Statement, params: Vec<Param<'_>>) -> Result<(), PgError> {
        let params: Vec<&(dyn tokio_postgres::types::ToSql + Sync)> =
            params.iter().map(|param| param.as_ref() as _).collect();
        self.session.client.execute(statement, &params).await?;
        Ok(())
    }
}

fn schema_params(pipeline: &str, schema: &TableSchema) -> Vec<Param<'static>> {
    let definition = serde_json::to_string(schema).unwrap_or_default();
    vec![Box::new(pipeline.to_owned()), Box::new(schema.id().cast_signed()), Box::new(definition)]
}

pub(super) fn cleared_params(pipeline: &str, cleared: &[(SourceKey, Version)]) -> Vec<Param<'static>> {
    vec![
        Box::new(pipeline.to_owned()),
        Box::new(cleared.iter().map(|(key, _)| key.table.clone()).collect::<Vec<_>>()),
        Box::new(cleared.iter().map(|(key, _)| json(&key.key)).collect::<Vec<_>>()),
        Box::new(cleared.iter().map(|(_, version)| *version).collect::<Vec<_>>()),
    ]
}

pub(super) fn texts(aside: &[Aside<'_>], text: impl Fn(&Aside<'_>) -> String) -> Vec<String> {
    aside.iter().map(text).collect()
}

/// JSON as the envelope has it; it was decoded before, so it is UTF-8.
pub(super) fn json(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

//! A table's walk: the source's rows, part by part, and what is left over at the target.
//!
//! A reader beside the comparer ([`reader`](super::reader)) reads the next part while one is compared; both hold one
//! part at a time. A part is at most a chunk of rows, and of so many bytes, however heavy a row is. What a chunk was on
//! both sides, while it was equal, is noted, so that a further comparison passes it by as long as it is that. Settling
//! doubts is `confirm`'s.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    Progress, Verifier, VerifyError,
    confirm::Confirmer,
    reader::{Chunks, Known, Step, Steps},
    verdict::TableVerdict,
};
use crate::{
    log::envelope::Encoder,
    model::{Change, DebeziumConnector, Images, Op, Origin, TableSchema, Value, Version},
    snapshot::{Digest, KeyRange, SnapshotError},
    state::{
        StateError,
        migration_log::{ChunkState, ComparedChunk},
    },
    target::{Compared, Comparer, RowEvent, Stretch, Walk},
};

/// How many rows that are passed by cost what one costs that is compared, about.
const ROWS_PASSED_BY: u64 = 10;

pub(super) struct Walker<'a> {
    pub verifier: &'a Verifier,
    pub schema: &'a Arc<TableSchema>,
    pub show: &'a (dyn Fn(Progress<'_>) + Sync),
    /// What is made of chunks while they are walked by ranges of keys.
    pub chunks: Chunks,
}

impl Walker<'_> {
    /// Compares the whole table both ways; doubts go to the confirmer, which settles them on the way.
    pub async fn run(
        &self,
        comparer: &mut dyn Comparer,
        confirmer: &mut Confirmer<'_>,
        verdict: &mut TableVerdict,
    ) -> Result<(), VerifyError> {
        let mut walk = Walk::Ranged;
        while !self.pass(walk, comparer, confirmer, verdict).await? {
            tracing::debug!(table = %self.schema.table, "its rows do not come in the order of their keys; it is walked by keys seen");
            *verdict = TableVerdict::new(&verdict.table);
            confirmer.forget();
            walk = Walk::Seen;
        }
        loop {
            let extras = comparer.extras().await?;
            if extras.is_empty() {
                break;
            }
            confirmer.add(extras, &[])?;
            confirmer.settle_some(comparer, verdict).await?;
        }
        if comparer.note_shared().await? > 0 {
            self.find_who_share(comparer, confirmer).await?;
        }
        Ok(())
    }

    /// Walks once more for the rows that make what several were seen to make, each perhaps at another moment.
    async fn find_who_share(
        &self,
        comparer: &mut dyn Comparer,
        confirmer: &mut Confirmer<'_>,
    ) -> Result<(), VerifyError> {
        let mut parts = self.read(Chunks::Read).await?;
        while let Some(part) = parts.next_part().await? {
            confirmer.add_shared(comparer.shared(&part, true).await?, &part)?;
        }
        Ok(())
    }

    /// Walks once more, and notes what the source's rows make: what is left over then was not made all the while.
    pub async fn see_again(&self, comparer: &mut dyn Comparer) -> Result<(), VerifyError> {
        comparer.begin(&self.schema.table, Walk::Seen).await?;
        let mut parts = self.read(Chunks::Read).await?;
        while let Some(part) = parts.next_part().await? {
            comparer.compare(&part).await?;
        }
        Ok(())
    }

    /// Looks at the rows of which the target has heard above a version.
    pub async fn changed(
        &self,
        since: Version,
        comparer: &mut dyn Comparer,
        confirmer: &mut Confirmer<'_>,
        verdict: &mut TableVerdict,
    ) -> Result<(), VerifyError> {
        comparer.begin(&self.schema.table, Walk::Ranged).await?;
        loop {
            let changed = comparer.changed(since).await?;
            if changed.is_empty() {
                return Ok(());
            }
            if changed.iter().any(|doubt| doubt.source_key.is_none()) {
                verdict.skipped =
                    Some("its keys at the target do not lead back to the source; verify the whole table".into());
                confirmer.forget();
                return Ok(());
            }
            verdict.rows += changed.len() as u64;
            confirmer.add(changed, &[])?;
            confirmer.settle_some(comparer, verdict).await?;
            (self.show)(Progress { table: &verdict.table, rows: verdict.rows, rows_total: verdict.rows });
        }
    }

    /// Counts what the source's rows make, and what is there.
    pub async fn count(
        &self,
        comparer: &mut dyn Comparer,
        verdict: &mut TableVerdict,
    ) -> Result<(u64, u64), VerifyError> {
        let (mut parts, mut made) = (self.read(Chunks::Read).await?, 0);
        verdict.rows = 0;
        while let Some(part) = parts.next_part().await? {
            made += comparer.made(&part).await?;
            verdict.rows += part.len() as u64;
            let total = parts.rows_total.max(verdict.rows);
            (self.show)(Progress { table: &verdict.table, rows: verdict.rows, rows_total: total });
        }
        Ok((made, comparer.count(&self.schema.table).await?))
    }

    /// False if the rows do not come in an order that this walk can go by.
    async fn pass(
        &self,
        walk: Walk,
        comparer: &mut dyn Comparer,
        confirmer: &mut Confirmer<'_>,
        verdict: &mut TableVerdict,
    ) -> Result<bool, VerifyError> {
        comparer.begin(&self.schema.table, walk).await?;
        let has_stretches = walk == Walk::Ranged && comparer.has_stretches();
        let mut steps = self.read(if has_stretches { self.chunks } else { Chunks::Read }).await?;
        let mut pass = Pass { number: self.verifier.environment.now_us(), ..Pass::default() };
        while let Some(step) = steps.next().await? {
            let began = Instant::now();
            let costs = match step {
                Step::Part(part) => {
                    let Compared::Part { doubts, rows, shared } = comparer.compare(&part).await? else {
                        return Ok(false);
                    };
                    pass.rows += part.len() as u64;
                    pass.is_doubted |= !doubts.is_empty() || !shared.is_empty();
                    verdict.rows += rows;
                    confirmer.add(doubts, &part)?;
                    confirmer.add_shared(shared, &part)?;
                    confirmer.settle_some(comparer, verdict).await?;
                    part.len() as u64
                }
                Step::End(range, digest) => {
                    self.end_chunk(range, digest, comparer, &mut pass).await?;
                    0
                }
                Step::Ask(known, answer) => {
                    // Who asked may have gone, and then wants no answer.
                    let _ = answer.send(comparer.is_as(&known.stretch).await?);
                    known.source.rows / ROWS_PASSED_BY
                }
                Step::PassBy(known) => {
                    pass.by(&known, comparer, verdict);
                    pass.unchanged.push(known.range.lower.clone());
                    verdict.unchanged += known.source.rows;
                    0
                }
                Step::AskCopied(upper, answer) => {
                    let copied = comparer.copied(&upper).await?;
                    let rows = copied.as_ref().map_or(0, |(there, _)| there.rows);
                    let _ = answer.send(copied);
                    rows / ROWS_PASSED_BY
                }
                Step::Copied(known) => {
                    pass.by(&known, comparer, verdict);
                    verdict.digested += known.source.rows;
                    let Known { range, source, stretch } = known;
                    self.note_chunk((range, source), ChunkState::Equal, Some(stretch), pass.number).await?;
                    0
                }
            };
            let total = steps.rows_total.max(pass.rows);
            (self.show)(Progress { table: &verdict.table, rows: pass.rows, rows_total: total });
            self.rest(costs, began).await;
        }
        if pass.rows > 0 && verdict.rows == 0 {
            verdict.skipped = Some("none of its rows is in the sample".into());
        }
        if has_stretches && self.chunks != Chunks::Read {
            self.verifier.store.end_pass(&self.schema.table, &pass.unchanged, pass.number).await?;
        }
        Ok(true)
    }

    /// Notes what was found of a chunk.
    async fn end_chunk(
        &self,
        range: KeyRange,
        digest: Option<Digest>,
        comparer: &mut dyn Comparer,
        pass: &mut Pass,
    ) -> Result<(), VerifyError> {
        let (is_doubted, stretch) = (std::mem::take(&mut pass.is_doubted), comparer.end_stretch());
        let Some(source) = digest else { return Ok(()) };
        let state = if is_doubted { ChunkState::Doubted } else { ChunkState::Equal };
        self.note_chunk((range, source), state, stretch.filter(|_| !is_doubted), pass.number).await
    }

    async fn note_chunk(
        &self,
        (range, source): (KeyRange, Digest),
        state: ChunkState,
        stretch: Option<Stretch>,
        pass: i64,
    ) -> Result<(), VerifyError> {
        let target = stretch.map(|stretch| serde_json::to_string(&stretch)).transpose().map_err(StateError::from)?;
        let chunk = ComparedChunk { range, state, source, target };
        Ok(self.verifier.store.note_chunk(&self.schema.table, &chunk, pass).await?)
    }

    /// Waits as long as rows that cost so much may take.
    async fn rest(&self, costs: u64, began: Instant) {
        if let Some(rate) = self.verifier.rows_per_second {
            let takes = Duration::from_secs_f64(costs as f64 / rate.max(1) as f64);
            tokio::time::sleep(takes.saturating_sub(began.elapsed())).await;
        }
    }

    async fn read(&self, chunks: Chunks) -> Result<Steps, VerifyError> {
        Steps::begin(self.verifier, self.schema, chunks).await
    }
}

/// A pass over a table, as far as it is.
#[derive(Debug, Default)]
struct Pass {
    /// By which its chunks are told from those of earlier ones: when it began, µs since the Unix epoch.
    number: i64,
    rows: u64,
    /// Rows of the present chunk are in doubt.
    is_doubted: bool,
    /// Where chunks begin that were passed by.
    unchanged: Vec<Option<String>>,
}

impl Pass {
    /// Goes behind a chunk whose digests say that it is equal.
    fn by(&mut self, known: &Known, comparer: &mut dyn Comparer, verdict: &mut TableVerdict) {
        comparer.pass_by(&known.stretch);
        self.rows += known.source.rows;
        verdict.rows += known.source.rows;
    }
}

/// Rows of the source as records of the log would have them.
pub(super) struct Encoding {
    encoder: Encoder,
}

impl Encoding {
    pub fn new(pipeline: &str, connector: DebeziumConnector) -> Self {
        Encoding { encoder: Encoder::new(pipeline, connector) }
    }

    /// The record of a row that was read. It is newer than any fence: what was read is there.
    pub fn event(&mut self, schema: &Arc<TableSchema>, row: Vec<Value>) -> Result<RowEvent, SnapshotError> {
        let images = Images { before: None, after: Some(row) };
        let change = Change { schema: Arc::clone(schema), op: Op::Read, images, version: Version::MAX, commit_us: 0 };
        let encoded = self.encoder.encode(&change, &Origin { snapshot: true, ..Origin::default() });
        let encoded = encoded.map_err(|error| SnapshotError::not_encoded(schema, &error))?;
        Ok(RowEvent {
            schema: Arc::clone(schema),
            key: encoded.key,
            value: encoded.value,
            version: Version::MAX,
            commit_us: 0,
            offset: 0,
        })
    }
}

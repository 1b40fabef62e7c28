//! From doubts to what is certain: equal, explained, drift.
//!
//! ```text
//! L: what the target has ─► the source's rows again ─► H: the source's end ─► the target has H ─► the target again
//! ```
//!
//! The second read of the source has everything up to L, and nothing from beyond H. Once the target has everything up
//! to H, a row that still differs either is newer than L, and moved meanwhile: then it is looked at again. Or nothing
//! of the source's log between L and H was about it, and so nothing will mend it: then it waits, is a dead letter, or
//! has drifted (rule 39). Rows that move whenever they are looked at end after a bounded number of rounds, unproven.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use tokio::time::Instant;

use super::{
    Ask, Progress, Verifier, VerifyError, captured,
    doubts::{Open, Place, Repair, SourceRow, groups, place_of, places, text},
    reader::Chunks,
    review::Reviewed,
    verdict::{Drift, TableVerdict},
    walk::{Encoding, Walker},
};
use crate::{
    log::envelope::key_values,
    model::{Plan, Position, Problem, TableSchema, Value, Version},
    observe::{Captured, Room},
    snapshot::{Block, Blocks, READ_BYTES_MAX, take_blocks},
    state::drift::DriftKey,
    target::{Comparer, Doubt, Looked, RowEvent, Shared},
};

/// Doubts that are kept before they are settled, and their bytes.
const DOUBTS_MAX: usize = 10_000;
const DOUBTS_BYTES_MAX: usize = 8 << 20;
/// Doubts that are looked at together, and the bytes of their rows.
const GROUP_MAX: usize = 2_000;
const GROUP_BYTES_MAX: usize = 8 << 20;
/// Rows that moved before, which are looked at together and often: each look is a statement.
const MOVING_MAX: usize = 100;
const MOVING_LOOK_EVERY: Duration = Duration::from_millis(3);
/// For how long a row that moved is looked at for what the source had.
const MOVING_FOR: Duration = Duration::from_secs(2);
/// Rows read with one query.
const KEYS_MAX: usize = 100;
/// Rows that make the same rows of the target, which are read with one query.
const SHARING_KEYS_MAX: usize = 20;
/// Rows of the source that may make the same rows of the target which are kept.
const SHARING_MAX: usize = 10_000;
/// Extra rows that do not lead back to the source which are kept.
const UNSEEN_MAX: usize = 100_000;
/// How often a row is looked at that has moved each time.
const ROUNDS_MAX: u32 = 20;
/// In how many rounds a row has to differ, unmoved, before it has drifted: what commits at the source may be seen a
/// moment later there than in its log.
const STRIKES: u32 = 2;
/// A row that has moved so often was written by the stream again and again.
const MOVES: u32 = 3;
const PAUSE: Duration = Duration::from_millis(60);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// Walks over a table whose extra rows do not lead back to the source.
const WALKS_MAX: u32 = 3;
/// Where only time tells, rows that go on moving are waited for as long as so many rows that do not.
const LASTS_MAX: u32 = 3;

pub(super) struct Confirmer<'a> {
    verifier: &'a Verifier,
    pub schema: Arc<TableSchema>,
    /// The target tables of the plans.
    pub targets: Vec<String>,
    /// What is known of rows that drifted before.
    pub reviewed: Reviewed,
    encoding: Encoding,
    doubts: Vec<Open>,
    /// Bytes of the doubts.
    bytes: usize,
    /// The clock that the target had when the walk began.
    begun: Version,
    /// Extra rows that do not lead back to the source, and are newer than that.
    unseen: HashMap<Place, Open>,
    /// Rows of the source, by key, that were seen to make the same row of the target.
    sharing: BTreeMap<Place, BTreeMap<Bytes, SourceRow>>,
    /// How many those are.
    sharing_rows: usize,
}

/// What became of doubts in a round.
#[derive(Debug, Default)]
struct Round {
    drifted: Vec<Open>,
    stay: Vec<Open>,
}

impl<'a> Confirmer<'a> {
    /// Begins with a table, whose accepted rows it asks for; `begun` is the clock that the target has.
    pub async fn new(
        verifier: &'a Verifier,
        schema: Arc<TableSchema>,
        plans: &[Plan],
        begun: Version,
        ask: &Ask,
    ) -> Result<Self, VerifyError> {
        Ok(Confirmer {
            verifier,
            targets: plans.iter().map(|plan| plan.target.name.to_string()).collect(),
            reviewed: Reviewed::of(verifier, &schema.table.table, ask).await?,
            encoding: Encoding::new(&verifier.pipeline, verifier.connector),
            doubts: Vec::new(),
            bytes: 0,
            begun,
            unseen: HashMap::new(),
            sharing: BTreeMap::new(),
            sharing_rows: 0,
            schema,
        })
    }

    /// The table is walked anew.
    pub fn forget(&mut self) {
        self.doubts.clear();
        self.unseen.clear();
        self.sharing.clear();
        self.reviewed.begin_again();
        (self.bytes, self.sharing_rows) = (0, 0);
    }

    /// Takes doubts that came of comparing these rows.
    pub fn add(&mut self, doubts: Vec<Doubt>, rows: &[RowEvent]) -> Result<(), VerifyError> {
        for doubt in doubts {
            let source = self.source_of(&doubt, rows)?;
            self.keep(Open::new(doubt, source));
        }
        Ok(())
    }

    fn keep(&mut self, open: Open) {
        self.bytes += open.bytes();
        self.doubts.push(open);
    }

    /// Takes rows, of these, that make the same rows of the target.
    pub fn add_shared(&mut self, shared: Vec<Shared>, rows: &[RowEvent]) -> Result<(), VerifyError> {
        for Shared { plan, key, row } in shared {
            let Some(row) = rows.get(row) else { continue };
            let makers = self.sharing.entry((plan, key)).or_default();
            // So many prove it as well as more would.
            if makers.len() < SHARING_KEYS_MAX && self.sharing_rows < SHARING_MAX {
                self.sharing_rows += usize::from(makers.insert(row.key.clone(), read(&self.schema, row)?).is_none());
            }
        }
        Ok(())
    }

    fn source_of(&mut self, doubt: &Doubt, rows: &[RowEvent]) -> Result<Option<SourceRow>, VerifyError> {
        if let Some(row) = doubt.row.and_then(|row| rows.get(row)) {
            return Ok(Some(read(&self.schema, row)?));
        }
        let Some(values) = doubt.source_key.clone() else { return Ok(None) };
        let event = self.encoding.event(&self.schema, self.schema.row_of_key(values.clone()))?;
        Ok(Some(SourceRow { key: event.key, values, weight: 0 }))
    }

    /// Takes rows that had drifted.
    pub fn resume(&mut self, repairs: Vec<Repair>) {
        self.reviewed.look_for(repairs.iter().map(|repair| (repair.drift_key(), Some(repair.key.clone()))));
        for repair in repairs {
            self.keep(Open::new(repair.open.doubt, repair.open.source));
        }
    }

    /// Settles what there is, if that is much.
    pub async fn settle_some(
        &mut self,
        comparer: &mut dyn Comparer,
        verdict: &mut TableVerdict,
    ) -> Result<(), VerifyError> {
        let is_much = self.doubts.len() >= DOUBTS_MAX || self.bytes >= DOUBTS_BYTES_MAX;
        if is_much { self.settle(comparer, verdict).await } else { Ok(()) }
    }

    /// Settles all that is left.
    pub async fn finish(&mut self, comparer: &mut dyn Comparer, verdict: &mut TableVerdict) -> Result<(), VerifyError> {
        self.settle(comparer, verdict).await?;
        for _ in 0..WALKS_MAX {
            if self.unseen.is_empty() {
                break;
            }
            self.look_for_unseen(comparer, verdict).await?;
        }
        let moved: Vec<Open> = std::mem::take(&mut self.unseen).into_values().collect();
        for open in moved {
            verdict.moving += 1;
            self.show(open, "moving", None, verdict);
        }
        self.settle_shared(comparer, verdict).await
    }

    async fn settle(&mut self, comparer: &mut dyn Comparer, verdict: &mut TableVerdict) -> Result<(), VerifyError> {
        let mut open = std::mem::take(&mut self.doubts);
        self.bytes = 0;
        if open.is_empty() {
            return Ok(());
        }
        let _tombstones_stay = match &self.verifier.barrier {
            Some(barrier) => Some(Arc::clone(barrier).lock_owned().await),
            None => None,
        };
        let (mut drifted, began) = (Vec::new(), Instant::now());
        for round in 0..ROUNDS_MAX {
            if open.is_empty() {
                break;
            }
            if round > 0 {
                tokio::time::sleep(PAUSE.saturating_mul(round).min(PAUSE_MAX)).await;
            }
            open = self.round(comparer, open, &mut drifted, verdict).await?;
        }
        // Where there is no order, only time tells.
        let ordered = self.verifier.reached().await?.position.has_one_order();
        let confirm_for = self.verifier.confirm_for;
        let lasts_max = confirm_for.saturating_mul(LASTS_MAX);
        let unripe = |open: &Open| open.lasted() < confirm_for && open.strikes > 0;
        while !ordered && began.elapsed() < lasts_max && open.iter().any(unripe) {
            tokio::time::sleep(PAUSE_MAX).await;
            open = self.round(comparer, open, &mut drifted, verdict).await?;
        }
        for open in open {
            if open.moves >= MOVES {
                verdict.moving += 1;
                self.show(open, "moving", None, verdict);
            } else {
                verdict.unconfirmed += 1;
                self.show(open, "unconfirmed", None, verdict);
            }
        }
        self.tell(drifted, verdict);
        Ok(())
    }

    /// Looks at open doubts once more, group by group; those that stay open.
    async fn round(
        &mut self,
        comparer: &mut dyn Comparer,
        open: Vec<Open>,
        drifted: &mut Vec<Open>,
        verdict: &mut TableVerdict,
    ) -> Result<Vec<Open>, VerifyError> {
        let mut round = Round::default();
        let moved: BTreeSet<Bytes> = open.iter().filter(|open| open.moves > 0).filter_map(Open::record_key).collect();
        let has_moved = |open: &Open| open.moves > 0 || open.record_key().is_some_and(|key| moved.contains(&key));
        let (moving, still): (Vec<Open>, Vec<Open>) = open.into_iter().partition(has_moved);
        let still = groups(still, GROUP_MAX, GROUP_BYTES_MAX).into_iter();
        for group in still.chain(groups(moving, MOVING_MAX, GROUP_BYTES_MAX)) {
            self.look(comparer, group, &mut round, verdict).await?;
        }
        drifted.append(&mut round.drifted);
        Ok(round.stay)
    }

    async fn look(
        &mut self,
        comparer: &mut dyn Comparer,
        mut open: Vec<Open>,
        round: &mut Round,
        verdict: &mut TableVerdict,
    ) -> Result<(), VerifyError> {
        let low = captured(&self.verifier.reached().await?);
        let ordered = low.position.has_one_order();
        let sources: Vec<&SourceRow> = open.iter().filter_map(|open| open.source.as_ref()).collect();
        let (rows, keys) = (self.fetch(&sources, &low).await?, places(&open));
        let records: BTreeSet<String> = sources.iter().filter_map(|source| text(&source.key)).collect();
        let records: Vec<String> = records.into_iter().collect();
        let end = self.verifier.source.end().await?;
        if open.iter().any(|open| open.moves > 0) {
            open = self.look_meanwhile(comparer, open, (&rows, &keys), &end).await?;
        }
        if open.is_empty() {
            return Ok(());
        }
        let arrived = self.verifier.caught_up(&end).await?;
        let Looked { doubts, parked } = comparer.again(&self.schema.table, &rows, &keys, &records).await?;
        let mut known: HashMap<Place, Open> = open.into_iter().map(|open| (open.place(), open)).collect();
        for doubt in doubts {
            let mut open = match known.remove(&place_of(&doubt, &rows)) {
                Some(open) if open.is_of(&doubt, &rows) => open,
                // Two rows of the source may map to one key.
                Some(_) | None => {
                    let source = self.source_of(&doubt, &rows)?;
                    Open::new(doubt.clone(), source)
                }
            };
            open.look(doubt, low.watermark());
            open.parked = open.key_text().and_then(|key| parked.get(&key).copied());
            let is_new_and_alone = open.source.is_none() && open.doubt.version > self.begun;
            if !arrived || (is_new_and_alone && self.unseen.len() >= UNSEEN_MAX) {
                verdict.unconfirmed += 1;
                self.show(open, "unconfirmed", None, verdict);
            } else if is_new_and_alone {
                self.unseen.insert(open.place(), open);
            } else if open.strikes >= STRIKES && (ordered || open.lasted() >= self.verifier.confirm_for) {
                round.drifted.push(open);
            } else {
                round.stay.push(open);
            }
        }
        Ok(())
    }

    /// Rows that are written all the time have moved on when the target has everything up to `end`. On the way there
    /// each comes by what the source had: one that is found equal is. Those that were not stay.
    async fn look_meanwhile(
        &self,
        comparer: &mut dyn Comparer,
        mut open: Vec<Open>,
        (rows, keys): (&[RowEvent], &[Place]),
        end: &Position,
    ) -> Result<Vec<Open>, VerifyError> {
        let began = Instant::now();
        loop {
            let has_all = began.elapsed() > MOVING_FOR || self.verifier.reached().await?.covers(end);
            let doubts = comparer.again(&self.schema.table, rows, keys, &[]).await?.doubts;
            let unequal: BTreeSet<Place> = doubts.iter().map(|doubt| place_of(doubt, rows)).collect();
            open.retain(|open| unequal.contains(&open.place()));
            if has_all || open.iter().all(|open| open.moves == 0) {
                return Ok(open);
            }
            tokio::time::sleep(MOVING_LOOK_EVERY).await;
        }
    }

    /// These rows of the source, as they are now.
    async fn fetch(&mut self, sources: &[&SourceRow], low: &Captured) -> Result<Vec<RowEvent>, VerifyError> {
        let wanted: BTreeMap<&Bytes, &SourceRow> = sources.iter().map(|source| (&source.key, *source)).collect();
        let keys: Vec<Vec<Value>> = wanted.values().map(|source| source.values.clone()).collect();
        let (mut rows, room) = (Vec::new(), Room::new(READ_BYTES_MAX));
        for keys in keys.chunks(KEYS_MAX) {
            let (blocks, incoming) = Blocks::new(&room);
            let reading = self.verifier.source.fetch(&self.schema, keys, low, blocks);
            let encode = |block: Block| {
                for row in block.rows {
                    rows.push(self.encoding.event(&self.schema, row)?);
                }
                Ok(())
            };
            take_blocks(reading, incoming, encode).await?;
        }
        Ok(rows)
    }

    /// Reads rows again that were seen to make the same row of the target, those of one together: that they do so at
    /// one moment is certain, whatever the target has.
    async fn settle_shared(
        &mut self,
        comparer: &mut dyn Comparer,
        verdict: &mut TableVerdict,
    ) -> Result<(), VerifyError> {
        let mut sharing = std::mem::take(&mut self.sharing).into_iter().peekable();
        self.sharing_rows = 0;
        while sharing.peek().is_some() {
            let (mut group, mut count) = (Vec::new(), 0);
            while let Some((place, makers)) =
                sharing.next_if(|(_, makers)| group.is_empty() || count + makers.len() <= SHARING_KEYS_MAX)
            {
                count += makers.len();
                group.push((place, makers));
            }
            let low = captured(&self.verifier.reached().await?);
            let sources: Vec<&SourceRow> = group.iter().flat_map(|(_, makers)| makers.values()).collect();
            let rows = self.fetch(&sources, &low).await?;
            let mut found: BTreeMap<Place, BTreeSet<String>> = BTreeMap::new();
            for Shared { plan, key, row } in comparer.shared(&rows, false).await? {
                let maker = rows.get(row).and_then(|row| text(&row.key));
                found.entry((plan, key)).or_default().extend(maker);
            }
            for ((plan, key), makers) in found {
                verdict.shared += 1;
                let makers: Vec<String> = makers.into_iter().take(MAKERS_SHOWN).collect();
                let reason = format!("several rows of the source make it: {}", makers.join(", "));
                let target = self.targets.get(plan).cloned().unwrap_or_default();
                self.reviewed.meet(&DriftKey::new(&target, &key));
                let (kind, columns, values) = ("shared".to_owned(), Vec::new(), Vec::new());
                verdict.show(Drift { target, kind, key, columns, values, reason: Some(reason) });
            }
        }
        Ok(())
    }

    /// Walks the table again for extra rows that lead back to no row of the source: those that no row makes in a whole
    /// walk that began after they were written are extra.
    async fn look_for_unseen(
        &mut self,
        comparer: &mut dyn Comparer,
        verdict: &mut TableVerdict,
    ) -> Result<(), VerifyError> {
        self.begun = captured(&self.verifier.reached().await?).watermark();
        let show = |_: Progress<'_>| {};
        // What this walk finds of other rows is not looked at again.
        comparer.note_rows(false);
        Walker { verifier: self.verifier, schema: &self.schema, show: &show, chunks: Chunks::Read }
            .see_again(comparer)
            .await?;
        let mut left: Vec<Doubt> = Vec::new();
        loop {
            let extras = comparer.extras().await?;
            if extras.is_empty() {
                break;
            }
            left.extend(extras.into_iter().filter(|doubt| self.unseen.contains_key(&(doubt.plan, doubt.key.clone()))));
        }
        comparer.note_rows(true);
        self.unseen.clear();
        self.add(left, &[])?;
        self.settle(comparer, verdict).await
    }
}

/// Rows of the source that are shown of those that make one row of the target.
const MAKERS_SHOWN: usize = 3;

/// The key of a row that was read.
fn read(schema: &TableSchema, row: &RowEvent) -> Result<SourceRow, VerifyError> {
    let values = key_values(schema, &row.key).ok_or_else(|| unreadable(schema))?;
    Ok(SourceRow { key: row.key.clone(), values, weight: row.key.len() + row.value.len() })
}

fn unreadable(schema: &TableSchema) -> VerifyError {
    VerifyError::Refused(Problem::new(
        format!("the key of a row of {} cannot be read back, so that it cannot be looked at again", schema.table),
        "this is a defect of cutover: report it with the types of the key's columns",
    ))
}

//! From doubts to what is certain: equal, explained, drift.
//!
//! ```text
//! L: what the target has ─► the source's rows again ─► H: the source's end ─► the target has H ─► the target again
//! ```
//!
//! The second read of the source has everything up to L, and nothing from beyond H. Once the target has everything up
//! to H, a row that still differs either is newer than L, and moved meanwhile: then it is looked at again. Or nothing
//! of the source's log between L and H was about it, and so nothing will mend it: then it waits, is a dead letter, or
//! has drifted (rule 39). Rows that move whenever they are looked at end after a bounded number of rounds.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use tokio::time::Instant;

use super::{
    Progress, Verifier, VerifyError, captured,
    verdict::{Drift, TableVerdict},
    walk::{Encoding, Walker},
};
use crate::{
    log::envelope::key_values,
    model::{Plan, Problem, TableSchema, Value, Version},
    observe::{Captured, Room},
    snapshot::{Block, Blocks, READ_BYTES_MAX, take_blocks},
    state::verifications::Parked,
    target::{Comparer, Difference, Doubt, RowEvent},
};

/// Drifted rows of a table that are kept for a repair; more are left to another run.
const REPAIRS_MAX: usize = 100_000;
/// Doubts that are settled together.
const DOUBTS_MAX: usize = 10_000;
/// Rows read with one query.
const KEYS_MAX: usize = 100;
/// How often a row is looked at that has moved each time.
const ROUNDS_MAX: u32 = 20;
/// In how many rounds a row has to differ, unmoved, before it has drifted: what commits at the source may be seen a
/// moment later there than in its log.
const STRIKES: u32 = 2;
/// A version that is above the clock for so many rounds has not come from the log: each has waited for the end that the
/// source had after the round before.
const ROUNDS_AHEAD: u32 = 3;
/// A row that has moved so often was written by the stream again and again.
const MOVES: u32 = 3;
const PAUSE: Duration = Duration::from_millis(60);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// Walks over a table whose extra rows do not lead back to the source.
const WALKS_MAX: u32 = 3;

/// What is said of an extra row that a repair cannot delete.
const ALONE: &str = "its key does not lead back to the source: if it is not wanted, delete it by hand";

/// A target row: the plan, and the key.
type Place = (usize, Vec<Option<String>>);

/// A row of the source.
#[derive(Debug, Clone, PartialEq)]
struct SourceRow {
    /// The key as records have it.
    key: Bytes,
    values: Vec<Value>,
}

/// A drifted row that can be sent again.
#[derive(Debug, Clone, PartialEq)]
pub struct Repair {
    /// The source row's key, as records have it.
    pub key: String,
    /// No row of the source makes it: it is to be deleted.
    pub is_extra: bool,
    /// The version that has to be overcome.
    pub version: Version,
    target: String,
    open: Open,
}

impl Repair {
    pub(super) fn difference(&self) -> Difference {
        self.open.doubt.difference
    }

    /// Whether that is what was told of this row.
    pub(super) fn is(&self, drift: &Drift) -> bool {
        drift.target == self.target && drift.key == self.open.doubt.key
    }
}

/// A doubt that is being settled.
#[derive(Debug, Clone, PartialEq)]
struct Open {
    doubt: Doubt,
    source: Option<SourceRow>,
    strikes: u32,
    /// For how many rounds it has had a version above the clock, the same one.
    ahead: u32,
    moves: u32,
    since: Instant,
}

pub(super) struct Confirmer<'a> {
    verifier: &'a Verifier,
    schema: Arc<TableSchema>,
    /// The target tables of the plans.
    targets: Vec<String>,
    encoding: Encoding,
    doubts: Vec<Open>,
    /// The clock that the target had when the walk began.
    begun: Version,
    /// Extra rows that do not lead back to the source, and are newer than that.
    unseen: HashMap<Place, Open>,
}

impl<'a> Confirmer<'a> {
    pub fn new(verifier: &'a Verifier, schema: Arc<TableSchema>, plans: &[Plan], begun: Version) -> Self {
        Confirmer {
            verifier,
            schema,
            targets: plans.iter().map(|plan| plan.target.name.to_string()).collect(),
            encoding: Encoding::new(&verifier.pipeline, verifier.connector),
            doubts: Vec::new(),
            begun,
            unseen: HashMap::new(),
        }
    }

    /// The table is walked anew.
    pub fn forget(&mut self) {
        self.doubts.clear();
        self.unseen.clear();
    }

    /// Takes doubts that came of comparing these rows.
    pub fn add(&mut self, doubts: Vec<Doubt>, rows: &[RowEvent]) -> Result<(), VerifyError> {
        for doubt in doubts {
            let source = self.source_of(&doubt, rows)?;
            self.doubts.push(Open::new(doubt, source));
        }
        Ok(())
    }

    fn source_of(&mut self, doubt: &Doubt, rows: &[RowEvent]) -> Result<Option<SourceRow>, VerifyError> {
        if let Some(row) = doubt.row.and_then(|row| rows.get(row)) {
            let values = key_values(&self.schema, &row.key).ok_or_else(|| unreadable(&self.schema))?;
            return Ok(Some(SourceRow { key: row.key.clone(), values }));
        }
        let Some(values) = doubt.source_key.clone() else { return Ok(None) };
        let event = self.encoding.event(&self.schema, self.schema.row_of_key(values.clone()))?;
        Ok(Some(SourceRow { key: event.key, values }))
    }

    /// Takes rows that had drifted.
    pub fn resume(&mut self, repairs: Vec<Repair>) {
        self.doubts.extend(repairs.into_iter().map(|repair| Open::new(repair.open.doubt, repair.open.source)));
    }

    /// Settles what there is, if that is much.
    pub async fn settle_some(
        &mut self,
        comparer: &mut dyn Comparer,
        verdict: &mut TableVerdict,
    ) -> Result<(), VerifyError> {
        if self.doubts.len() >= DOUBTS_MAX { self.settle(comparer, verdict).await } else { Ok(()) }
    }

    /// Settles all that is left.
    pub async fn finish(&mut self, comparer: &mut dyn Comparer, verdict: &mut TableVerdict) -> Result<(), VerifyError> {
        self.settle(comparer, verdict).await?;
        for _ in 0..WALKS_MAX {
            if self.unseen.is_empty() {
                return Ok(());
            }
            self.look_for_unseen(comparer, verdict).await?;
        }
        verdict.moving += self.unseen.len() as u64;
        Ok(())
    }

    async fn settle(&mut self, comparer: &mut dyn Comparer, verdict: &mut TableVerdict) -> Result<(), VerifyError> {
        let mut open = std::mem::take(&mut self.doubts);
        if open.is_empty() {
            return Ok(());
        }
        let _tombstones_stay = match &self.verifier.barrier {
            Some(barrier) => Some(Arc::clone(barrier).lock_owned().await),
            None => None,
        };
        let mut drifted = Vec::new();
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
        while !ordered && open.iter().any(|open| !open.is_ripe(self.verifier.confirm_for) && open.strikes > 0) {
            tokio::time::sleep(PAUSE_MAX).await;
            open = self.round(comparer, open, &mut drifted, verdict).await?;
        }
        for open in open {
            if open.moves >= MOVES {
                verdict.moving += 1;
            } else {
                verdict.unconfirmed += 1;
            }
        }
        self.tell(drifted, verdict).await
    }

    /// Looks at open doubts once more; those that stay open.
    async fn round(
        &mut self,
        comparer: &mut dyn Comparer,
        open: Vec<Open>,
        drifted: &mut Vec<Open>,
        verdict: &mut TableVerdict,
    ) -> Result<Vec<Open>, VerifyError> {
        let low = captured(&self.verifier.reached().await?);
        let ordered = low.position.has_one_order();
        let (rows, keys) = (self.fetch(&open, &low).await?, places(&open));
        let end = self.verifier.source.end().await?;
        let arrived = self.verifier.caught_up(&end).await?;
        let found = comparer.again(&rows, &keys).await?;
        let mut known: HashMap<Place, Open> = open.into_iter().map(|open| (open.place(), open)).collect();
        let mut stay = Vec::new();
        for doubt in found {
            let mut open = match known.remove(&place_of(&doubt, &rows)) {
                Some(open) if open.is_of(&doubt, &rows) => open,
                // Two rows of the source may map to one key.
                Some(_) | None => {
                    let source = self.source_of(&doubt, &rows)?;
                    Open::new(doubt.clone(), source)
                }
            };
            let leads_nowhere = open.source.is_none();
            open.look(doubt, low.watermark());
            if !arrived {
                verdict.unconfirmed += 1;
            } else if leads_nowhere && open.doubt.version > self.begun {
                self.unseen.insert(open.place(), open);
            } else if open.strikes >= STRIKES && (ordered || open.is_ripe(self.verifier.confirm_for)) {
                drifted.push(open);
            } else {
                stay.push(open);
            }
        }
        Ok(stay)
    }

    /// The source's rows of these doubts, as they are now.
    async fn fetch(&mut self, open: &[Open], low: &Captured) -> Result<Vec<RowEvent>, VerifyError> {
        let sources = open.iter().filter_map(|open| open.source.as_ref());
        let wanted: BTreeMap<&Bytes, &SourceRow> = sources.map(|source| (&source.key, source)).collect();
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

    /// Says of rows that differ for good whether that is known already.
    async fn tell(&self, drifted: Vec<Open>, verdict: &mut TableVerdict) -> Result<(), VerifyError> {
        let keys: Vec<String> = drifted.iter().filter_map(Open::key_text).collect();
        let parked = self.verifier.store.parked_of(&self.schema.table, &keys).await?;
        for open in drifted {
            let parked = open.key_text().and_then(|key| parked.get(&key).copied());
            let target = self.targets.get(open.doubt.plan).cloned().unwrap_or_default();
            if let Some(key) = open.key_text().filter(|_| parked.is_none() && verdict.repairs.len() < REPAIRS_MAX) {
                let (is_extra, version) = (open.doubt.difference == Difference::Extra, open.doubt.version);
                verdict.repairs.push(Repair { key, is_extra, version, target: target.clone(), open: open.clone() });
            }
            let Doubt { difference, key, columns, values, reason, .. } = open.doubt;
            let (kind, reason) = match (parked, difference) {
                (Some(parked), _) => {
                    verdict.explained += 1;
                    ("explained", Some(explained(parked).to_owned()))
                }
                (None, Difference::Missing) => {
                    verdict.missing += 1;
                    ("missing", reason)
                }
                (None, Difference::Refused) => {
                    verdict.missing += 1;
                    ("missing", reason.map(|reason| format!("it cannot be made: {reason}")))
                }
                (None, Difference::Extra) => {
                    verdict.extra += 1;
                    let alone = open.source.is_none().then(|| ALONE.to_owned());
                    ("extra", reason.or(alone))
                }
                (None, Difference::Different) => {
                    verdict.different += 1;
                    ("different", reason)
                }
            };
            verdict.show(Drift { target, kind: kind.to_owned(), key, columns, values, reason });
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
        Walker { verifier: self.verifier, schema: &self.schema, show: &show }.see_again(comparer).await?;
        let mut left: Vec<Doubt> = Vec::new();
        loop {
            let extras = comparer.extras().await?;
            if extras.is_empty() {
                break;
            }
            left.extend(extras.into_iter().filter(|doubt| self.unseen.contains_key(&(doubt.plan, doubt.key.clone()))));
        }
        self.unseen.clear();
        self.add(left, &[])?;
        self.settle(comparer, verdict).await
    }
}

impl Open {
    fn new(doubt: Doubt, source: Option<SourceRow>) -> Self {
        Open { doubt, source, strikes: 0, ahead: 0, moves: 0, since: Instant::now() }
    }

    /// A second look found this; the read of the source had everything up to `low`.
    fn look(&mut self, doubt: Doubt, low: Version) {
        let moved = doubt.version > low;
        if !moved {
            self.strikes += 1;
        } else if doubt.version == self.doubt.version && self.ahead > 0 {
            self.ahead += 1;
            // It cannot have come from the log.
            if self.ahead >= ROUNDS_AHEAD {
                self.strikes += 1;
            }
        } else {
            (self.strikes, self.ahead, self.moves, self.since) = (0, 1, self.moves + 1, Instant::now());
        }
        self.doubt = doubt;
    }

    fn is_ripe(&self, confirm_for: Duration) -> bool {
        self.since.elapsed() >= confirm_for
    }

    fn place(&self) -> Place {
        match (&self.doubt.difference, &self.source) {
            (Difference::Refused, Some(source)) => (self.doubt.plan, vec![None, text(&source.key)]),
            (Difference::Missing | Difference::Extra | Difference::Different | Difference::Refused, _) => {
                (self.doubt.plan, self.doubt.key.clone())
            }
        }
    }

    /// Whether a doubt that came of these rows is about the same row of the source, or about none.
    fn is_of(&self, doubt: &Doubt, rows: &[RowEvent]) -> bool {
        let row = doubt.row.and_then(|row| rows.get(row));
        row.is_none_or(|row| self.source.as_ref().is_some_and(|source| source.key == row.key))
    }

    fn key_text(&self) -> Option<String> {
        self.source.as_ref().and_then(|source| text(&source.key))
    }
}

/// As [`Open::place`], of a doubt that came of these rows.
fn place_of(doubt: &Doubt, rows: &[RowEvent]) -> Place {
    match (doubt.difference, doubt.row.and_then(|row| rows.get(row))) {
        (Difference::Refused, Some(row)) => (doubt.plan, vec![None, text(&row.key)]),
        (Difference::Missing | Difference::Extra | Difference::Different | Difference::Refused, _) => {
            (doubt.plan, doubt.key.clone())
        }
    }
}

fn unreadable(schema: &TableSchema) -> VerifyError {
    VerifyError::Refused(Problem::new(
        format!("the key of a row of {} cannot be read back, so that it cannot be looked at again", schema.table),
        "this is a defect of cutover: report it with the types of the key's columns",
    ))
}

fn text(key: &[u8]) -> Option<String> {
    std::str::from_utf8(key).ok().map(str::to_owned)
}

/// What to look at again at the target. A row that cannot be made has no key there.
fn places(open: &[Open]) -> Vec<Place> {
    let places = open.iter().map(|open| {
        let key = if open.doubt.difference == Difference::Refused { Vec::new() } else { open.doubt.key.clone() };
        (open.doubt.plan, key)
    });
    places.collect()
}

fn explained(parked: Parked) -> &'static str {
    match parked {
        Parked::Waits => "it waits for another row",
        Parked::Dead => "it is a dead letter; `cutover dlq list` shows it",
        Parked::Discarded => "its dead letter was discarded: it stays as it is",
    }
}

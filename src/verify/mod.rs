//! Proof that both sides agree: compare, confirm, report.
//!
//! What enters is the two traits and the pipeline's state; what leaves is a [`Verdict`]. Each table of the source is
//! read once, in short reads as a copy reads it, and compared with the target through today's transforms ([`walk`]).
//! The two reads are of different moments, so that a difference is only a doubt; it is looked at again between two
//! bounds of the source's log until it is equal, explained or drift ([`confirm`]). **Invariant** (rule 39): what is
//! called drift would not be mended by anything in the source's log. Deliberately absent: a timer, locks beyond a
//! copy's, and any write to the rows of the target.

mod confirm;
mod doubts;
mod reader;
mod review;
mod round_trip;
mod verdict;
mod walk;

use std::{fmt, sync::Arc, time::Duration};

use self::{confirm::Confirmer, reader::Chunks, walk::Walker};
pub use self::{
    doubts::Repair,
    verdict::{Drift, TableVerdict, Verdict},
};
use crate::{
    model::{DebeziumConnector, Disposition, Plan, Position, Problem, TableName, TableSchema, Version},
    observe::{Captured, Environment},
    snapshot::SnapshotError,
    source::Source,
    state::{StateError, Store, copies::CopyState, drift::DriftRow, verifications::Reached},
    target::{ApplyError, Comparer, Looks, Target},
};

/// How often rows are counted that do not agree.
const COUNTS_MAX: u32 = 3;
/// How long a target that is behind is waited for.
const PATIENCE: Duration = Duration::from_secs(120);

/// What is compared with what.
#[derive(Clone)]
pub struct Verifier {
    pub source: Arc<dyn Source>,
    pub target: Arc<dyn Target>,
    pub store: Arc<Store>,
    pub environment: Arc<dyn Environment>,
    pub pipeline: String,
    pub connector: DebeziumConnector,
    pub partitions: u32,
    /// Rows of one read of the source.
    pub chunk_rows: u64,
    /// How long a difference has to last where the source's log has no order.
    pub confirm_for: Duration,
    /// Note what every row of a table that is compared as a whole was found to be.
    pub notes_rows: bool,
    /// Compare no faster than this; as fast as it goes if none is given.
    pub rows_per_second: Option<u64>,
    /// Held while doubts are settled: no tombstone is forgotten meanwhile. None where another lock sees to that.
    pub barrier: Option<Arc<tokio::sync::Mutex<()>>>,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").field("pipeline", &self.pipeline).finish_non_exhaustive()
    }
}

/// How far the numbers of rows may be apart where nobody says how far, while the source is written.
pub const COUNT_DIFFERENCE_MAX: f64 = 0.01;

/// How far the numbers of rows may be apart, as shares.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tolerance {
    /// While nothing is written.
    pub standing: f64,
    /// While the source is written, so that both sides are counted at different moments.
    pub written: f64,
}

impl Tolerance {
    /// What an operator asks for; else none while nothing is written.
    pub fn of(asked: Option<f64>) -> Self {
        Tolerance { standing: asked.unwrap_or(0.0), written: asked.unwrap_or(COUNT_DIFFERENCE_MAX) }
    }
}

/// What to compare, and how.
#[derive(Debug, Clone, Default)]
pub struct Ask {
    /// These source tables; all if there are none.
    pub tables: Vec<String>,
    /// Show the values of columns that differ.
    pub values: bool,
    /// Compare this share of the rows alone, 0 to 1.
    pub sample: Option<f64>,
    /// Count the rows on both sides, and accept a difference of this share of them.
    pub count_only: Option<Tolerance>,
    /// Compare the rows alone of which the target has heard above this version.
    pub since: Option<Version>,
    /// Compare the rows of chunks as well that have not changed since they were found equal.
    pub full: bool,
    /// Look at these rows alone, which had drifted, whether somebody has accepted that or not.
    pub rows: Option<Vec<DriftRow>>,
}

impl Ask {
    /// Every row of the tables is compared.
    pub fn is_whole(&self) -> bool {
        self.sample.is_none() && self.count_only.is_none() && self.since.is_none() && self.rows.is_none()
    }
}

/// How far a comparison is.
#[derive(Debug, Clone, Copy)]
pub struct Progress<'a> {
    pub table: &'a str,
    pub rows: u64,
    /// About how many the table has.
    pub rows_total: u64,
}

/// Why nothing can be said.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    #[error(transparent)]
    Source(#[from] SnapshotError),
    #[error(transparent)]
    Target(#[from] ApplyError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error("{0}")]
    Refused(Problem),
}

impl VerifyError {
    /// What whoever asked does next.
    pub fn disposition(&self) -> Disposition {
        match self {
            VerifyError::Source(error) => error.disposition(),
            VerifyError::Target(error) => error.disposition(),
            VerifyError::State(error) => error.disposition(),
            VerifyError::Refused(_) => Disposition::Halt,
        }
    }
}

impl Verifier {
    /// Compares the tables, which have these schemas and plans; `show` is told how far it is.
    ///
    /// # Errors
    /// When a side cannot be read. Nothing is said of the tables then.
    pub async fn run(
        &self,
        schemas: &[Arc<TableSchema>],
        plans: &Arc<[Plan]>,
        ask: &Ask,
        show: &(dyn Fn(Progress<'_>) + Sync),
    ) -> Result<Verdict, VerifyError> {
        let looks = Looks { values: ask.values, sample: ask.sample, notes_rows: self.number(ask) };
        let mut comparer = self.target.comparer(Arc::clone(plans), looks).await?;
        let mut tables = Vec::new();
        let wanted = |schema: &&Arc<TableSchema>| ask.tables.is_empty() || ask.tables.contains(&schema.table.table);
        for schema in schemas.iter().filter(wanted) {
            let table = Box::pin(self.table(&mut *comparer, schema, plans, ask, show)).await?;
            if let Some(number) = looks.notes_rows.filter(|_| table.skipped.is_none()) {
                self.store.end_noted_rows(&table.table, number).await?;
            }
            tables.push(table);
        }
        let verdict = Verdict::of(tables);
        if ask.since.is_some() && verdict.tables.iter().all(|table| table.rows == 0 && table.skipped.is_none()) {
            return Ok(verdict.but("nothing was changed since then: no row was compared".into()));
        }
        Ok(verdict)
    }

    /// By which what a comparison notes of rows is told from what an earlier one has noted; none if it notes nothing.
    fn number(&self, ask: &Ask) -> Option<i64> {
        (self.notes_rows && ask.is_whole()).then(|| self.environment.now_us())
    }

    async fn table(
        &self,
        comparer: &mut dyn Comparer,
        schema: &Arc<TableSchema>,
        plans: &[Plan],
        ask: &Ask,
        show: &(dyn Fn(Progress<'_>) + Sync),
    ) -> Result<TableVerdict, VerifyError> {
        let name = &schema.table.table;
        let mut verdict = TableVerdict::new(name);
        if !plans.iter().any(|plan| plan.source.table == schema.table) {
            verdict.skipped = Some("no transform reads it".into());
            return Ok(verdict);
        }
        if let Some(why) = self.not_yet(name).await? {
            verdict.skipped = Some(why);
            return Ok(verdict);
        }
        let Some(begun) = self.store.reached(self.partitions).await? else {
            verdict.skipped = Some("nothing of the source's log is applied yet".into());
            return Ok(verdict);
        };
        let chunks = match (ask.is_whole(), ask.full || self.notes_rows) {
            (false, _) => Chunks::Read,
            (true, true) => Chunks::Digested,
            (true, false) => Chunks::Known,
        };
        let walker = Walker { verifier: self, schema, show, chunks };
        let mut confirmer = Confirmer::new(self, Arc::clone(schema), plans, begun.clock, ask).await?;
        match (&ask.rows, ask.count_only, ask.since) {
            (Some(rows), ..) => verdict.rows = confirmer.add_reviewed(rows, plans)?,
            (None, Some(tolerance), _) => self.count(&walker, comparer, tolerance, &mut verdict).await?,
            (None, None, Some(since)) => walker.changed(since, comparer, &mut confirmer, &mut verdict).await?,
            (None, None, None) => walker.run(comparer, &mut confirmer, &mut verdict).await?,
        }
        confirmer.finish(comparer, &mut verdict).await?;
        // A part of a table says nothing of the rows beside it.
        if ask.is_whole() || ask.rows.is_some() {
            verdict.equal = confirmer.reviewed.equal();
        }
        // What was copied again meanwhile was not there as a whole.
        if let Some(why) = self.not_yet(name).await? {
            verdict.skipped = Some(why);
        }
        Ok(verdict)
    }

    /// Rows of the targets of these source tables without the parent that a foreign key asks for, by key.
    ///
    /// # Errors
    /// When the target cannot be read.
    pub async fn orphans(&self, plans: &Arc<[Plan]>, tables: &[TableName]) -> Result<Vec<(String, u64)>, VerifyError> {
        let mut comparer = self.target.comparer(Arc::clone(plans), Looks::default()).await?;
        Ok(comparer.orphans(tables).await?)
    }

    /// Compares the numbers of rows. While the source is written both sides are counted at different moments: then a
    /// difference that does not come again is none.
    async fn count(
        &self,
        walker: &Walker<'_>,
        comparer: &mut dyn Comparer,
        tolerance: Tolerance,
        verdict: &mut TableVerdict,
    ) -> Result<(), VerifyError> {
        for _ in 0..COUNTS_MAX {
            let before = self.source.end().await?;
            let reached = self.caught_up(&before).await?;
            let (made, there) = walker.count(comparer, verdict).await?;
            (verdict.missing, verdict.extra) = (made.saturating_sub(there), there.saturating_sub(made));
            if made == there {
                return Ok(());
            }
            if !reached {
                verdict.unconfirmed = std::mem::take(&mut verdict.missing) + std::mem::take(&mut verdict.extra);
                return Ok(());
            }
            // If nothing was written meanwhile, the numbers are those of one moment.
            let stands = self.source.end().await? == before;
            let share = if stands { tolerance.standing } else { tolerance.written };
            if made.abs_diff(there) as f64 <= share * made.max(there) as f64 {
                (verdict.missing, verdict.extra) = (0, 0);
                return Ok(());
            }
            if stands {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Looks again at rows that had drifted, which have been sent through the log since. What was found before has been
    /// noted ([`Self::note_drift`]); what is found now is to be noted anew.
    ///
    /// # Errors
    /// When a side cannot be read.
    pub async fn look_again(
        &self,
        schemas: &[Arc<TableSchema>],
        plans: &Arc<[Plan]>,
        ask: &Ask,
        before: Verdict,
    ) -> Result<Verdict, VerifyError> {
        let looks = Looks { values: ask.values, sample: None, notes_rows: self.number(ask) };
        let mut comparer = self.target.comparer(Arc::clone(plans), looks).await?;
        let mut tables = Vec::new();
        for mut table in before.tables {
            let schema = schemas.iter().find(|schema| schema.table.table == table.table);
            let repairs = std::mem::take(&mut table.repairs);
            (table.found, table.equal) = (Vec::new(), Vec::new());
            if let Some(schema) = schema.filter(|_| !repairs.is_empty()) {
                let begun = self.reached().await?.clock;
                let mut confirmer = Confirmer::new(self, Arc::clone(schema), plans, begun, ask).await?;
                let sent = repairs.len() as u64;
                table.begin_again(&repairs);
                let before = table.unequal();
                confirmer.resume(repairs);
                Box::pin(confirmer.finish(&mut *comparer, &mut table)).await?;
                table.equal = confirmer.reviewed.equal();
                // Only what was looked at again and is equal is repaired.
                table.repaired = sent.saturating_sub(table.unequal() - before);
            }
            tables.push(table);
        }
        let again = Verdict::of(tables);
        Ok(match before.caveat {
            Some(caveat) => again.but(caveat),
            None => again,
        })
    }

    /// Notes the rows that are to be reviewed by hand, and forgets those that do not differ any more.
    ///
    /// # Errors
    /// When the state cannot be written.
    pub async fn note_drift(&self, verdict: &Verdict) -> Result<(), VerifyError> {
        for table in verdict.tables.iter().filter(|table| table.skipped.is_none()) {
            self.store.note_drift(&table.table, &table.found, &table.equal).await?;
        }
        Ok(())
    }

    /// Why a table cannot be compared as a whole now, if it cannot.
    async fn not_yet(&self, table: &str) -> Result<Option<String>, VerifyError> {
        let status = self.store.status().await?;
        if status.replay.is_some() {
            return Ok(Some("a replay runs; verify when `cutover status` no longer shows it".into()));
        }
        let state = status.tables.iter().find(|status| status.table == table).map(|status| status.state);
        Ok(match state {
            Some(CopyState::Copied) => None,
            Some(CopyState::Pending | CopyState::Copying) => {
                Some("it is being copied; verify it when `cutover status` shows it as copied".into())
            }
            None => Some("the pipeline has no such table yet; start the worker first".into()),
        })
    }

    /// How far the target is.
    async fn reached(&self) -> Result<Reached, VerifyError> {
        self.store.reached(self.partitions).await?.ok_or_else(|| {
            VerifyError::Refused(Problem::new(
                "the target has nothing of the source's log any more",
                "start the worker, and verify when `cutover status` shows that it follows",
            ))
        })
    }

    /// Waits until the target has everything up to `end`; false if it has not and, without a worker, will not.
    async fn caught_up(&self, end: &Position) -> Result<bool, VerifyError> {
        let began = tokio::time::Instant::now();
        loop {
            let reached = self.reached().await?;
            // Rows that a cascade has changed unseen are on their way until it has been followed.
            let is_there = reached.covers(end);
            if is_there && self.store.count_cascades().await? == 0 {
                return Ok(true);
            }
            let elapsed = began.elapsed();
            if elapsed > PATIENCE || !(is_there || reached.is_of(end)) {
                return Ok(false);
            }
            if elapsed > WORKER_LOOK {
                let status = self.store.status().await?;
                if !status.worker_running {
                    return Ok(status.cascades == 0 && self.is_quiet_after(&reached.position).await);
                }
                if status.halted.is_some() && elapsed > HALTED_PATIENCE {
                    return Ok(false);
                }
            }
            tokio::time::sleep(POLL_EVERY).await;
        }
    }

    /// Whether the source knows that its log has nothing of its tables behind this. One that cannot be asked does not.
    async fn is_quiet_after(&self, reached: &Position) -> bool {
        match self.source.is_quiet_after(reached).await {
            Ok(is_quiet) => is_quiet,
            Err(error) => {
                tracing::debug!(%error, "the source does not tell whether its log has more");
                false
            }
        }
    }
}

/// A worker that has just applied something has this long before it is asked whether one runs.
const WORKER_LOOK: Duration = Duration::from_millis(500);
/// Capture, copy and apply halt separately: for so long a halted worker may still apply what it has.
const HALTED_PATIENCE: Duration = Duration::from_secs(5);
const POLL_EVERY: Duration = Duration::from_millis(40);

/// What the target has reached, as reads of the source take it.
fn captured(reached: &Reached) -> Captured {
    Captured { position: reached.position.clone(), clock: reached.clock, ends: Vec::new(), commit_us: 0 }
}

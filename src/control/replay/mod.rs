//! Replay on request: where it begins, whether it may, how far it is, and how it ends.
//!
//! ```text
//! from ──► survey of the range ──► judgement ──► deletes ──► snapshot ──► changes ──► rows that failed, read again
//! ```
//!
//! What is stored in the target says everything: a worker that is killed leaves it to the next, which goes on from the
//! passes' own offsets. A replay ends by itself at the offsets that the live stream had when it began; from there on
//! everything has gone through today's transforms already.
//!
//! An old image that today's transforms refuse is no dead letter: its row may be another by now. Such rows are noted,
//! and at the end read again from the source, each at a fresh watermark; what fails then is a dead letter (rule 23).

mod judge;
mod survey;

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

pub use survey::{Span, TableRows};

use self::survey::Survey;
use crate::{
    log::{LogError, Offset},
    pipeline::{
        flow::ApplyHalf,
        refetch::{Refetch, Wanted},
        replay::{ReplayError, ReplayLoop},
    },
    snapshot::SnapshotError,
    state::{
        StateError, Store,
        dead_letters::{DeadLetterState, DeadRow},
        lanes::{Offsets, Pass},
        replays::{Details, From, Range, Replay, ReplayState},
    },
    target::ApplyError,
    transform::transforms_hash,
};

/// What a command asks for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Ask {
    pub from: From,
    /// Where that is, as it was written.
    pub label: String,
    /// Source tables; all if empty.
    #[serde(default)]
    pub tables: Vec<String>,
    #[serde(default)]
    pub dry_run: bool,
}

/// What a replay would do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Plan {
    /// Why it is refused, and what to do instead.
    pub refused: Option<String>,
    pub tables: Vec<TableRows>,
    /// Records to read, of rows and others.
    pub records: u64,
    pub rows: u64,
    /// When the first and the last of the rows were committed; none without rows.
    pub span: Option<Span>,
}

/// Why a replay did not begin, or did not come to its end.
#[derive(Debug, thiserror::Error)]
pub(super) enum Stopped {
    /// The world is wrong for now.
    #[error("{0}")]
    Later(String),
    /// Another worker goes on with it.
    #[error("another worker has the pipeline")]
    Fenced,
    #[error("{0}")]
    Refused(String),
}

impl std::convert::From<StateError> for Stopped {
    fn from(error: StateError) -> Self {
        Stopped::Later(error.to_string())
    }
}

impl std::convert::From<LogError> for Stopped {
    fn from(error: LogError) -> Self {
        ReplayError::from(error).into()
    }
}

impl std::convert::From<ReplayError> for Stopped {
    fn from(error: ReplayError) -> Self {
        use crate::model::Disposition;
        match (error.disposition(), error) {
            (_, ReplayError::Apply(ApplyError::Fenced { .. })) => Stopped::Fenced,
            (Disposition::Retry, error) => Stopped::Later(error.to_string()),
            (Disposition::Halt | Disposition::DeadLetter, error) => Stopped::Refused(error.to_string()),
        }
    }
}

impl std::convert::From<SnapshotError> for Stopped {
    fn from(error: SnapshotError) -> Self {
        match error {
            SnapshotError::Source(_) | SnapshotError::Target(_) => Stopped::Later(error.to_string()),
            SnapshotError::Log(error) => error.into(),
            error @ SnapshotError::Halt(_) => Stopped::Refused(error.to_string()),
        }
    }
}

/// What replays work with.
#[derive(Clone)]
pub(super) struct Replayer {
    pub store: Arc<Store>,
    pub apply: ApplyHalf,
    pub refetch: Refetch,
}

impl Replayer {
    /// Looks at what a request asks for; with `begin`, stores the replay under the request's number if it may be.
    pub(super) async fn plan(&self, request: i64, ask: &Ask, begin: bool) -> Result<Plan, Stopped> {
        if let Some(running) = self.store.running_replay().await?.filter(|running| running.id != request) {
            let (from, id) = (running.details.label, running.id);
            let reason =
                format!("replay {id} from {from} is under way; `cutover status` shows how far it is, wait for its end");
            return Ok(Plan { refused: Some(reason), tables: Vec::new(), records: 0, rows: 0, span: None });
        }
        let epoch = self.apply.log.epoch();
        let ends = self.store.applied_offsets(epoch, self.apply.log.partitions()).await?;
        let starts = match survey::starts(&*self.apply.log, &self.store, ask, &ends).await? {
            Ok(starts) => starts,
            Err(reason) => {
                let refused = Some(format!("{reason}; {}", judge::instead(&ask.tables)));
                return Ok(Plan { refused, tables: Vec::new(), records: 0, rows: 0, span: None });
            }
        };
        let fences = self.store.fences().await?;
        let survey = Survey::of(&*self.apply.log, &self.store, &starts, &ends, &ask.tables, &fences).await?;
        let refused = self.judge(&starts, &survey, &fences, &ask.tables).await?;
        let details = self.details(ask, starts, ends, &survey).await?;
        let records: u64 = [Pass::Deletes, Pass::Snapshot, Pass::Changes]
            .iter()
            .flat_map(|pass| details.ranges(*pass))
            .map(|range| range.to - range.from)
            .sum();
        if begin && refused.is_none() {
            self.store.begin_replay(request, &details).await?;
        }
        Ok(Plan { refused, tables: survey.tables(), records, rows: details.rows, span: survey.span })
    }

    async fn details(&self, ask: &Ask, starts: Offsets, ends: Offsets, survey: &Survey) -> Result<Details, Stopped> {
        let ranges = |from: &[Offset], to: &[Offset]| -> Vec<Range> {
            from.iter().zip(to).map(|(from, to)| Range { from: *from, to: *to.max(from) }).collect()
        };
        // A copied row may be older than the first change that is replayed: what deleted it is further back.
        let deletes = if survey.watermark_min.is_some() {
            let mut first = Vec::new();
            for partition in 0..self.apply.log.partitions() {
                first.push(self.apply.log.bounds(crate::log::Topic::Changes, partition).await?.0);
            }
            first
        } else {
            starts.changes.clone()
        };
        Ok(Details {
            from: ask.from.clone(),
            label: ask.label.clone(),
            tables: ask.tables.clone(),
            log_epoch: self.apply.log.epoch().to_owned(),
            transforms: transforms_hash(&self.apply.target.plans()),
            deletes: ranges(&deletes, &ends.changes),
            snapshot: ranges(&starts.snapshot, &ends.snapshot),
            changes: ranges(&starts.changes, &ends.changes),
            rows: survey.rows(),
        })
    }

    /// Goes on with a replay to its end.
    pub(super) async fn run(&self, replay: &Replay, stop: &CancellationToken) -> Result<(), Stopped> {
        let details = self.current(replay).await?;
        self.store.resume_replay(replay.id).await?;
        for pass in [Pass::Deletes, Pass::Snapshot, Pass::Changes] {
            let loops = (0u32..).zip(details.ranges(pass));
            let loops =
                loops.map(|(partition, range)| self.apply.replay_loop(pass, partition, range.to, &details.tables));
            let loops: Vec<ReplayLoop> = loops.collect();
            futures::future::try_join_all(loops.iter().map(|replay| replay.run(stop))).await?;
            if stop.is_cancelled() {
                return Ok(());
            }
        }
        let again = self.read_again().await?;
        let read_again = if again > 0 {
            format!("; {again} rows whose old state today's transforms refuse were read again from the source")
        } else {
            String::new()
        };
        let outcome = format!("replayed {} rows from {}{read_again}", details.rows, details.label);
        tracing::info!(id = replay.id, "{outcome}");
        Ok(self.store.end_replay(replay.id, ReplayState::Done, &outcome).await?)
    }

    /// The replay as it is to go on. Other transforms than those that it began with begin it anew.
    async fn current(&self, replay: &Replay) -> Result<Details, Stopped> {
        let details = replay.details.clone();
        if details.log_epoch != self.apply.log.epoch() {
            let reason = "the log that was replayed is gone, and another one is there";
            return Err(Stopped::Refused(format!("{reason}; {}", judge::instead(&details.tables))));
        }
        if details.transforms == transforms_hash(&self.apply.target.plans()) {
            return Ok(details);
        }
        tracing::info!(id = replay.id, "the transforms have changed: the replay begins anew");
        let ask = Ask { from: details.from, label: details.label, tables: details.tables, dry_run: false };
        let plan = self.plan(replay.id, &ask, true).await?;
        if let Some(reason) = plan.refused {
            return Err(Stopped::Refused(reason));
        }
        let begun = self.store.running_replay().await?;
        begun.map(|replay| replay.details).ok_or_else(|| Stopped::Later("the replay was not stored".into()))
    }

    /// Reads the rows again that could not be replayed; how many they were. What deleted one of them is in the stream.
    async fn read_again(&self) -> Result<u64, Stopped> {
        let mut rows = 0;
        let mut tables: Vec<(String, Vec<DeadRow>)> = Vec::new();
        for group in self.store.dead_row_groups(DeadLetterState::Replay, None).await? {
            for (table, mut dead) in self.store.dead_rows(DeadLetterState::Replay, Some(&group)).await? {
                // What they were is not asked for: the keys alone are kept.
                dead.iter_mut().for_each(|row| row.record = String::new());
                tables.push((table, dead));
            }
        }
        for (table, dead) in tables {
            rows += dead.len() as u64;
            let wanted = dead.into_iter().map(|DeadRow { schema, key, version, record: _ }| Wanted {
                schema,
                key: key.into(),
                version,
                shown: None,
            });
            let strange = self.refetch.send(&table, wanted.collect()).await?;
            if !strange.is_empty() {
                return Err(Stopped::Refused(format!(
                    "the key of {table} has changed since, so that {} rows cannot be looked for; {}",
                    strange.len(),
                    judge::instead(std::slice::from_ref(&table))
                )));
            }
        }
        if rows > 0 {
            self.refetch.applied(&self.refetch.ends().await?).await;
        }
        Ok(rows)
    }
}

//! Following what foreign keys of the source do to children unseen (rules 11 and 38).
//!
//! ```text
//! cutover.cascades ─► children at the target ─► read again at the source ─► snapshot topic ─► target
//!        ▲                                              │
//!        └──────── children that are parents ◄──────────┘
//! ```
//!
//! A cascade is followed when every lane has what came before it. The target is asked for the rows that refer to the
//! parent and are older; the source, at a fresh watermark, for what they are now: a row, or gone. What was given a new
//! key is asked of the source by that key. **Invariants:** a cascade stays stored until what was read for it is at the
//! target, and those that follow from it are stored before that is sent. While a table is copied, or the log replayed,
//! a cascade is held and followed once more at the end: older rows may come until then. Deliberately absent: which rows
//! refer to a parent (the target says), and what becomes of the rows that are read (the sink says).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::worker::Worker;
use crate::{
    log::envelope,
    model::{CascadeLink, Coverage, Disposition, Plan, PlanRole, Problem, TableSchema, Value, Version},
    observe::{Backoff, Environment, Frontier, Halts, Room},
    pipeline::refetch::{ReadAgain, Refetch, Wanted},
    snapshot::{Blocks, Progress, READ_BYTES_MAX, SnapshotError},
    state::{
        StateError, Store,
        cascades::{StoredCascade, StoredKind},
    },
    target::{Child, ChildrenOf, Target, TargetError},
};

/// Cascades followed together.
const CASCADES_MAX: i64 = 1_000;
/// Rows that are set aside, looked at together.
const PARKED_MAX: i64 = 100;
/// How often it is looked for new ones.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How often those that are held are followed meanwhile: what they leave may keep the copy from its end.
const AGAIN_EVERY: Duration = Duration::from_secs(5);
/// InnoDB follows no more than 15 keys, and its relatives no more than this: what goes on longer goes in circles.
const DEPTH_MAX: i32 = 255;
/// Where every row of a table is looked at, tables that refer to each other would be for as long.
const EVERY_DEPTH_MAX: i32 = 16;
/// What the parts of the worker are called where troubles are told.
const PART: &str = "cascades";
/// The key of a cascade that is about every row.
const EVERY: &str = "{}";

/// Follows cascades until it is stopped.
pub(super) struct Follower {
    store: Arc<Store>,
    target: Arc<dyn Target>,
    refetch: Refetch,
    frontier: Arc<Frontier>,
    halts: Arc<Halts>,
    environment: Arc<dyn Environment>,
}

/// Why a round did not come to its end.
#[derive(Debug, thiserror::Error)]
enum Stopped {
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Target(#[from] TargetError),
    #[error(transparent)]
    Read(#[from] SnapshotError),
}

impl Stopped {
    fn disposition(&self) -> Disposition {
        match self {
            Stopped::State(error) => error.disposition(),
            Stopped::Target(error) => error.disposition(),
            Stopped::Read(error) => error.disposition(),
        }
    }

    fn problem(self) -> Problem {
        match self {
            Stopped::Read(SnapshotError::Halt(problem)) => problem,
            Stopped::State(_) | Stopped::Target(_) | Stopped::Read(_) => {
                Problem::new(self.to_string(), "correct that and restart the worker")
            }
        }
    }
}

/// Cascades of one child table and one kind, and what is known around them.
struct Round {
    cascades: Vec<StoredCascade>,
    links: Vec<CascadeLink>,
    /// The child's table, if it is captured.
    schema: Option<Arc<TableSchema>>,
    /// The child's transforms.
    plans: Vec<Plan>,
    /// Whether this is the last time: no row of the child that is older can come.
    is_last: bool,
}

impl Follower {
    pub(super) fn new(worker: &Worker, store: Arc<Store>, target: Arc<dyn Target>, refetch: Refetch) -> Self {
        let Worker { frontier, halts, parts, .. } = worker;
        let (frontier, halts) = (Arc::clone(frontier), Arc::clone(halts));
        Follower { store, target, refetch, frontier, halts, environment: parts.environment() }
    }

    pub(super) async fn run(self, stop: CancellationToken) {
        let mut backoff = Backoff::default();
        let (mut is_troubled, mut held_at) = (false, Instant::now());
        while !stop.is_cancelled() {
            let started = Instant::now();
            let again = held_at.elapsed() >= AGAIN_EVERY;
            if again {
                held_at = started;
            }
            let pause = match self.round(again).await {
                Ok(any) => {
                    if std::mem::take(&mut is_troubled) {
                        self.halts.well(PART);
                    }
                    if any { Duration::ZERO } else { LOOK_EVERY }
                }
                Err(error) => {
                    if error.disposition() != Disposition::Retry {
                        return self.halts.halt(PART, error.problem());
                    }
                    is_troubled = true;
                    self.halts.trouble(PART, &error.to_string());
                    backoff.next(&*self.environment, started.elapsed())
                }
            };
            tokio::select! { biased; () = stop.cancelled() => {}, () = tokio::time::sleep(pause) => {} }
        }
    }

    /// Follows the oldest cascades, those that are held too if it is their turn `again`; false if there are none to
    /// follow now.
    async fn round(&self, again: bool) -> Result<bool, Stopped> {
        if self.store.count_cascades().await? == 0 {
            return Ok(false);
        }
        let links = self.store.cascade_links().await?;
        // What others have read, and not applied yet, would be missed.
        let _turn = self.refetch.turn.lock().await;
        // Before the target is asked: what was copied by now is there, and what is copied from now on is newer.
        let copying: BTreeSet<String> = self.store.unfinished().await?.into_iter().map(|copy| copy.table).collect();
        let is_replayed = self.store.any_replay().await?;
        let whole = self.note_whole(&copying).await?;
        let mut open: Vec<String> = links.iter().map(|link| link.child.to_string()).collect();
        if !is_replayed {
            let planned = self.target.plans();
            let is_copied = |plan: &&Plan| copying.contains(&plan.source.table.table);
            open = planned.iter().filter(is_copied).map(|plan| plan.source.table.to_string()).collect();
        }
        let applied = self.frontier.applied_clock();
        let cascades = self.store.next_cascades(applied, &open, again, CASCADES_MAX).await?;
        let Some(first) = cascades.first() else { return Ok(false) };
        let is_last = !open.contains(&first.child);
        let plans: Vec<Plan> = self.target.plans().iter().filter(|plan| is_of(plan, &first.child)).cloned().collect();
        let name = plans.first().map(|plan| plan.source.table.table.clone());
        // Rows that a first copy has still to bring may go before the target ever has them.
        let is_partial = name.as_ref().is_some_and(|name| copying.contains(name) && !whole.contains(name));
        let schema = match name {
            Some(name) => Some(self.refetch.source.schema(&name).await?),
            None => None,
        };
        let kind = first.kind;
        let round = Round { cascades, links, schema, plans, is_last };
        tracing::debug!(child = round.child(), cascades = round.cascades.len(), is_last, "following cascades");
        match kind {
            StoredKind::Gone => self.gone(&round).await?,
            StoredKind::Came => self.came(&round).await?,
        }
        self.refetch.applied(&self.refetch.ends().await?).await;
        if is_last || kind == StoredKind::Came {
            self.store.end_cascades(&round.cascades).await?;
        } else {
            self.store.hold_cascades(&round.cascades, is_partial).await?;
        }
        Ok(true)
    }

    /// Notes of which tables the target has had all rows; which they are. Only a first copy finds a target without
    /// them.
    async fn note_whole(&self, copying: &BTreeSet<String>) -> Result<BTreeSet<String>, StateError> {
        let mut whole = self.store.whole_tables().await?;
        let before = whole.len();
        let captured = self.target.plans();
        let names = captured.iter().map(|plan| plan.source.table.table.clone());
        whole.extend(names.filter(|name| !copying.contains(name)));
        if whole.len() > before {
            self.store.set_whole_tables(&whole).await?;
        }
        Ok(whole)
    }

    /// Reads again what refers to keys that no row has any more.
    async fn gone(&self, round: &Round) -> Result<(), Stopped> {
        if let Some(why) = round.hides_children().filter(|_| round.is_last) {
            tracing::debug!(child = round.child(), why, "all rows behind it are looked at");
            self.store.add_cascades(&round.behind_all()).await?;
        }
        let Some(schema) = round.schema.as_ref() else { return Ok(()) };
        if round.plans.iter().any(|plan| matches!(plan.role, PlanRole::Share(_))) && round.is_last {
            // What a contributor has brought may wait in a table of its own, where no key of a parent is.
            self.store.queue_copy(&schema.table.table, round.newest()).await?;
        }
        let keys: Vec<(String, Version)> =
            round.cascades.iter().map(|cascade| (cascade.key.clone(), cascade.version)).collect();
        let (columns, extra) = (round.columns(), round.extra());
        let any = round.is_every();
        // What waits may come in on the way, behind the cursor: it is looked for before and after.
        self.parked(round, schema).await?;
        let of = ChildrenOf { child: round.child(), columns: &columns, keys: &keys, any, extra: &extra };
        let mut cursor = None;
        loop {
            let children = self.target.children(&of, cursor).await?;
            if !children.rows.is_empty() {
                let keys: Vec<Vec<Value>> = children.rows.iter().map(|child| child.key.clone()).collect();
                let again = self.refetch.read(schema, &keys, round.newest()).await?;
                self.store.add_cascades(&round.behind(schema, &extra, &children.rows, &again)).await?;
                self.refetch.append(schema, again).await?;
            }
            cursor = children.next;
            if cursor.is_none() {
                break;
            }
        }
        self.parked(round, schema).await
    }

    /// Reads rows of the child again that wait or are dead letters: the target has them nowhere else.
    async fn parked(&self, round: &Round, schema: &TableSchema) -> Result<(), Stopped> {
        let mut after = String::new();
        loop {
            let parked = self.store.parked_children(round.child(), round.newest(), &after, PARKED_MAX).await?;
            let Some(last) = parked.last() else { return Ok(()) };
            after = last.key.clone();
            let version = round.newest();
            let parked = parked.into_iter().filter(|parked| round.may_refer(&parked.record));
            let wanted: Vec<Wanted> = parked
                .map(|parked| Wanted {
                    schema: Arc::new(schema.clone()),
                    key: parked.key.into(),
                    version: version.max(parked.version),
                    shown: Some(parked.record.into()),
                })
                .collect();
            if !wanted.is_empty() && round.is_last {
                // What refers to rows that the target does not have cannot be told.
                self.store.add_cascades(&round.behind_all()).await?;
            }
            self.refetch.send(&schema.table.table, wanted).await?;
        }
    }

    /// Reads what the source has under keys that rows were given.
    async fn came(&self, round: &Round) -> Result<(), Stopped> {
        let Some(schema) = round.schema.as_ref() else {
            return Ok(self.store.add_cascades(&round.behind_all()).await?);
        };
        let columns = round.columns();
        let places: Option<Vec<usize>> =
            columns.iter().map(|name| schema.columns.iter().position(|column| column.name == *name)).collect();
        // A column that is no more: its rows were copied again since.
        let Some(places) = places.filter(|places| !places.is_empty()) else { return Ok(()) };
        for cascade in &round.cascades {
            let Some(values) = Refetch::values(schema, &columns, &cascade.key) else { continue };
            let (blocks, mut incoming) = Blocks::new(&Room::new(READ_BYTES_MAX));
            let reading = self.refetch.read_children(schema, &places, &values, cascade.version, blocks);
            let sending = async {
                while let Some((block, _taken)) = incoming.recv().await {
                    let again = self.refetch.encoded(schema, block)?;
                    self.store.add_cascades(&round.came_behind(schema, cascade, &again)).await?;
                    self.refetch.append(schema, again).await?;
                }
                drop(incoming);
                Ok::<_, Stopped>(())
            };
            let (read, sent) = tokio::join!(reading, sending);
            sent?;
            read?;
        }
        Ok(())
    }
}

fn is_of(plan: &Plan, child: &str) -> bool {
    plan.source.table.to_string() == child
}

impl Round {
    fn child(&self) -> &str {
        self.cascades.first().map_or("", |cascade| &cascade.child)
    }

    fn newest(&self) -> Version {
        self.cascades.iter().map(|cascade| cascade.version).max().unwrap_or_default()
    }

    fn depth(&self) -> i32 {
        self.cascades.iter().map(|cascade| cascade.depth).max().unwrap_or_default()
    }

    fn is_every(&self) -> bool {
        self.cascades.iter().any(|cascade| cascade.key == EVERY)
    }

    /// The child's columns that its cascades name.
    fn columns(&self) -> Vec<String> {
        self.cascades.first().map(|cascade| names_of(&cascade.key)).unwrap_or_default()
    }

    /// The keys by which others refer to the child.
    fn behind_links(&self) -> impl Iterator<Item = &CascadeLink> {
        self.links.iter().filter(|link| link.parent.to_string() == self.child())
    }

    /// The child's columns that others refer to.
    fn extra(&self) -> Vec<String> {
        let names: BTreeSet<&String> = self.behind_links().flat_map(|link| &link.parent_columns).collect();
        names.into_iter().cloned().collect()
    }

    /// Why rows of the child may have gone that the target does not have, and rows behind them with them.
    fn hides_children(&self) -> Option<&'static str> {
        self.behind_links().next()?;
        let shows_all = |plan: &Plan| {
            plan.role == PlanRole::Whole
                && plan.coverage == Coverage::Total
                && plan.key_reads.is_some()
                && self
                    .extra()
                    .iter()
                    .all(|name| plan.columns.iter().any(|column| column.source.as_ref() == Some(name)))
        };
        if self.schema.is_none() {
            Some("it is not captured")
        } else if !self.plans.iter().any(shows_all) {
            Some("no transform shows all of its rows with their keys")
        } else if self.cascades.iter().any(|cascade| cascade.hides) {
            Some("it was still being copied")
        } else {
            None
        }
    }

    /// Every row behind the child.
    fn behind_all(&self) -> Vec<StoredCascade> {
        let every = |link: &CascadeLink| StoredCascade {
            child: link.child.to_string(),
            kind: StoredKind::Gone,
            key: EVERY.to_owned(),
            version: self.newest(),
            depth: self.depth() + 1,
            hides: false,
        };
        if self.depth() >= EVERY_DEPTH_MAX { Vec::new() } else { self.behind_links().map(every).collect() }
    }

    /// What follows for rows behind children: those whose own keys are no more what the target had.
    fn behind(
        &self,
        schema: &TableSchema,
        extra: &[String],
        children: &[Child],
        again: &ReadAgain,
    ) -> Vec<StoredCascade> {
        if self.depth() >= DEPTH_MAX || extra.is_empty() {
            return Vec::new();
        }
        let now: BTreeMap<String, &Vec<Value>> =
            again.found.iter().map(|row| (spelled_key(schema, row), row)).collect();
        let mut behind = Vec::new();
        for child in children {
            let known: BTreeMap<&String, Option<&Value>> =
                extra.iter().zip(&child.extra).map(|(name, value)| (name, value.as_ref())).collect();
            let key: Vec<String> = schema.key_columns().map(|column| column.name.clone()).collect();
            let row = now.get(&envelope::object(&key, &child.key));
            for link in self.behind_links() {
                let was: Option<Vec<Value>> =
                    link.parent_columns.iter().map(|name| known.get(name).copied().flatten().cloned()).collect();
                let is = row.and_then(|row| values_of(schema, row, &link.parent_columns));
                if was.is_some() && was == is {
                    continue;
                }
                let key = match &was {
                    Some(was) if was.contains(&Value::Null) => continue,
                    Some(was) => envelope::object(&link.columns, was),
                    None => EVERY.to_owned(),
                };
                behind.push(StoredCascade {
                    child: link.child.to_string(),
                    kind: StoredKind::Gone,
                    key,
                    version: child.version,
                    depth: self.depth() + 1,
                    hides: false,
                });
            }
        }
        behind
    }

    /// What follows for rows behind rows that were given a key of which theirs is a part.
    fn came_behind(&self, schema: &TableSchema, cascade: &StoredCascade, again: &ReadAgain) -> Vec<StoredCascade> {
        let moved = names_of(&cascade.key);
        let carries =
            |link: &&CascadeLink| link.carries_key && link.parent_columns.iter().any(|name| moved.contains(name));
        let links: Vec<&CascadeLink> = self.behind_links().filter(carries).collect();
        if cascade.depth >= DEPTH_MAX {
            return Vec::new();
        }
        let mut behind = Vec::new();
        for (row, link) in again.found.iter().flat_map(|row| links.iter().map(move |link| (row, *link))) {
            let Some(values) = values_of(schema, row, &link.parent_columns) else { continue };
            if !values.contains(&Value::Null) {
                behind.push(StoredCascade {
                    child: link.child.to_string(),
                    kind: StoredKind::Came,
                    key: envelope::object(&link.columns, &values),
                    version: cascade.version,
                    depth: cascade.depth + 1,
                    hides: false,
                });
            }
        }
        behind
    }

    /// Whether a row that is set aside may refer to one of the parents: in doubt it does.
    fn may_refer(&self, record: &str) -> bool {
        let columns = self.columns();
        let Ok(record) = serde_json::from_str::<serde_json::Value>(record) else { return true };
        let image = record.get("after").filter(|image| !image.is_null()).or_else(|| record.get("before"));
        let Some(image) = image else { return true };
        let refers = |cascade: &StoredCascade| {
            let Ok(key) = serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(&cascade.key) else {
                return true;
            };
            columns.iter().all(|name| match (key.get(name), image.get(name)) {
                (_, Some(serde_json::Value::Null)) => false,
                (Some(key), Some(own)) => key.is_string() || key == own,
                (None, _) | (_, None) => true,
            })
        };
        self.is_every() || self.cascades.iter().any(refers)
    }
}

/// The names in a key.
fn names_of(key: &str) -> Vec<String> {
    let key: serde_json::Map<String, serde_json::Value> = serde_json::from_str(key).unwrap_or_default();
    key.keys().cloned().collect()
}

fn values_of(schema: &TableSchema, row: &[Value], names: &[String]) -> Option<Vec<Value>> {
    let value = |name: &String| row.get(schema.columns.iter().position(|column| column.name == *name)?).cloned();
    names.iter().map(value).collect()
}

/// A row's key as JSON.
fn spelled_key(schema: &TableSchema, row: &[Value]) -> String {
    let names: Vec<String> = schema.key_columns().map(|column| column.name.clone()).collect();
    let key: Vec<Value> = schema.key.iter().filter_map(|place| row.get(*place)).cloned().collect();
    envelope::object(&names, &key)
}

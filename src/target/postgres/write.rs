//! Writing a batch at full speed: every statement on its way before the first has answered.

use std::collections::{BTreeMap, HashSet};

use tokio_postgres::{Row, Statement};

use super::{
    PostgresSink, add,
    failure::Failure,
    held,
    input::{Group, Images, Input, Item, SourceKey},
    lane,
    statement::{Builder, is_marked},
    steps::{Param, Steps},
};
use crate::{
    database::postgres::PgError,
    log::Topic,
    model::Role,
    target::{Applied, Batch, Counts, Event, Pass},
};

/// The parts of a plan's work, each a statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Part {
    Dead,
    /// Dead facts of which the source logs no more than the key.
    Gone,
    Replace,
    Live,
    /// Rows that nothing hides any more.
    Show,
    /// Rows that a filter leaves out, of a copy.
    Unmatched,
    Clashes,
    /// Rows that the target has newer.
    Late,
    /// Rows without the parent that the plan's foreign key of this number asks for.
    Orphans(usize),
}

/// By what an answer is known.
#[derive(Debug, Clone, Copy)]
pub enum Mark {
    /// An answer that says nothing.
    Done,
    /// No row: the lane is another worker's.
    Lane,
    /// The newest dead letter.
    Held,
    /// A write of a binding: which part, and how many images it was given.
    Write(Part, usize, usize),
}

impl PostgresSink {
    /// Begins a batch: transaction, locks, offset, mark. With a transaction already open the batch is a part of it that
    /// can be taken back alone.
    pub(super) async fn prelude(&mut self, batch: &Batch, input: &Input<'_>) -> Result<Prelude, Failure> {
        let truncates = batch.events.iter().any(|event| matches!(event, Event::Truncate { .. }));
        let mut plans: Vec<usize> =
            input.groups.keys().filter_map(|place| self.bindings.all.get(*place)).map(|binding| binding.plan).collect();
        if truncates {
            plans.extend(0..self.plans.len());
        }
        let whole = plans.iter().filter_map(|plan| self.plans.get(*plan)).all(|plan| plan.role == Role::Whole);
        let shared = batch.topic == Topic::Snapshot && !truncates && !input.has_dead() && whole;
        let offset = if self.options.check_offset { lane::ADVANCE } else { lane::HOLDS };
        Ok(Prelude {
            pipeline: self.options.pipeline.clone(),
            locks: self.locks(plans.into_iter()),
            lock: self.statement(if shared { lane::LOCK_SHARED } else { lane::LOCK }).await?,
            offset: self.statement(offset).await?,
            offset_params: self.offset_params(batch)?,
            mark: self.statement(held::MARK).await?,
            continues: self.open.is_some(),
        })
    }

    /// Begins a transaction, unless one is open. Its answer is waited for: were BEGIN refused (a cancel request that comes
    /// late is enough), what was sent behind it would be done and committed statement by statement, the offset too.
    pub(super) async fn begin(&mut self) -> Result<(), PgError> {
        if self.open.is_none() {
            self.session.client.batch_execute("BEGIN").await?;
        }
        self.begun = true;
        Ok(())
    }

    /// Prepares the statements of these parts for every binding that needs them.
    pub(super) async fn prepare_writes(&mut self, input: &Input<'_>, parts: &[Part]) -> Result<(), Failure> {
        for (place, group) in &input.groups {
            for part in parts {
                self.write_statement(*place, *part).await?;
            }
            if group.for_gone().is_some() {
                self.write_statement(*place, Part::Gone).await?;
            }
        }
        Ok(())
    }

    /// The prepared form of a part of a binding; none if the plan has no such part.
    pub(super) async fn write_statement(&mut self, place: usize, part: Part) -> Result<Option<Statement>, PgError> {
        if let Some(known) = self.writes.get(&(place, part)) {
            return Ok(Some(known.clone()));
        }
        let Some(binding) = self.bindings.all.get(place) else { return Ok(None) };
        let Some(plan) = self.plans.get(binding.plan) else { return Ok(None) };
        let (types, replays) = (&binding.types, self.replay.is_some());
        let builder = Builder { plan, types, pipeline: &self.options.pipeline, replays };
        let Some(text) = builder.part(part) else { return Ok(None) };
        let statement = self.session.client.prepare(&text).await?;
        self.writes.insert((place, part), statement.clone());
        Ok(Some(statement))
    }

    /// Bindings with parents first.
    pub(super) fn parents_first(&self, input: &Input<'_>) -> Vec<usize> {
        let mut places: Vec<usize> = input.groups.keys().copied().collect();
        places.sort_by_key(|place| {
            let plan = self.bindings.all.get(*place).map_or(0, |binding| binding.plan);
            (self.ranks.get(plan).copied().unwrap_or_default(), *place)
        });
        places
    }

    /// Parameters of a write of one binding.
    pub(super) fn params<'b>(
        &self,
        input: &'b Input<'_>,
        place: usize,
        part: Part,
        images: &'b Images,
    ) -> Vec<Param<'b>> {
        let mut params: Vec<Param<'b>> = vec![Box::new(&images.versions)];
        let Some(binding) = self.bindings.all.get(place) else { return params };
        if self.plans.get(binding.plan).is_some_and(|plan| is_marked(plan.coverage, part)) {
            params.push(Box::new(&images.dead));
        }
        for column in &binding.columns {
            params.push(Box::new(input.column(images, *column)));
        }
        params
    }

    /// Queues the writes of all bindings: dead facts, children first, then live facts, parents first, then, of a copy, what
    /// filters leave out.
    pub(super) fn queue_writes<'b>(&'b self, steps: &mut Steps<'b, Mark>, input: &'b Input<'_>, replace: bool) {
        let places = self.parents_first(input);
        let mut queue = |place: usize, part: Part, images: Option<&'b Images>| {
            if let (Some(statement), Some(images)) = (self.writes.get(&(place, part)), images) {
                let mark = Mark::Write(part, place, images.versions.len());
                let params = if part == Part::Show { Vec::new() } else { self.params(input, place, part, images) };
                steps.query(mark, statement.clone(), params);
            }
        };
        for place in places.iter().rev() {
            queue(*place, Part::Dead, input.groups.get(place).and_then(|group| self.for_dead(*place, group)));
            queue(*place, Part::Gone, input.groups.get(place).and_then(Group::for_gone));
        }
        let live: &[Part] = match (self.replay, replace) {
            (Some(Pass::Deletes), _) => &[],
            (Some(Pass::Snapshot | Pass::Changes) | None, true) => &[Part::Replace, Part::Live],
            (Some(Pass::Snapshot | Pass::Changes) | None, false) => &[Part::Live],
        };
        for part in live {
            for place in &places {
                queue(*place, *part, input.groups.get(place).and_then(Group::for_live));
            }
        }
        for place in &places {
            queue(*place, Part::Show, input.groups.get(place).map(|group| &group.live));
        }
        let copied = self.options.topic == Topic::Snapshot && !live.is_empty();
        for place in places.iter().rev().filter(|_| copied) {
            queue(*place, Part::Unmatched, input.groups.get(place).and_then(Group::for_live));
        }
    }

    /// What a binding's statement of dead facts looks at: of a set also the images that are live, which have fewer rows
    /// than before, or none.
    fn for_dead<'b>(&self, place: usize, group: &'b Group) -> Option<&'b Images> {
        let plan = self.bindings.all.get(place).and_then(|binding| self.plans.get(binding.plan))?;
        match plan.role {
            Role::Whole | Role::Share(_) => group.for_dead(),
            Role::Set { .. } => Some(&group.live).filter(|images| !images.versions.is_empty()),
        }
    }

    /// Reads the answers of a batch's statements.
    pub(super) fn answers(&self, answers: &[(Mark, Vec<Row>)]) -> Result<BTreeMap<String, Counts>, Failure> {
        let mut tables = BTreeMap::new();
        for (mark, rows) in answers {
            match mark {
                Mark::Done => {}
                Mark::Lane if rows.is_empty() => return Err(Failure::Stop(self.fenced())),
                Mark::Lane => {}
                Mark::Held => {
                    let newest: i64 = read(rows, 0)?;
                    if newest != self.held.mark {
                        return Err(Failure::Reload);
                    }
                }
                Mark::Write(Part::Dead | Part::Gone, place, _) => {
                    let counts = Counts { deleted: number(rows, 1)?, ..Counts::default() };
                    add(&mut tables, self.target_of(*place), counts);
                }
                Mark::Write(Part::Live | Part::Show, place, given) => {
                    let (inserted, updated) = (number(rows, 0)?, number(rows, 1)?);
                    if number(rows, 2)? > 0 {
                        return Err(Failure::Clash);
                    }
                    let facts = read::<Option<i64>>(rows, 3)?;
                    let facts = facts.map_or(*given as u64, |facts| facts.unsigned_abs());
                    let stale = facts.saturating_sub(inserted + updated);
                    add(&mut tables, self.target_of(*place), Counts { inserted, updated, stale, ..Counts::default() });
                }
                Mark::Write(Part::Unmatched, place, _) => {
                    let counts = Counts { deleted: number(rows, 0)?, ..Counts::default() };
                    add(&mut tables, self.target_of(*place), counts);
                }
                Mark::Write(Part::Replace | Part::Clashes | Part::Late | Part::Orphans(_), _, _) => {}
            }
        }
        Ok(tables)
    }

    fn target_of(&self, place: usize) -> String {
        self.bindings.all.get(place).map(|binding| self.name(binding.plan)).unwrap_or_default()
    }

    /// The whole batch in one go. Nothing is committed yet.
    pub(super) async fn fast(
        &mut self,
        batch: &Batch,
        items: &[Item<'_>],
        touched: &HashSet<SourceKey>,
    ) -> Result<Applied, Failure> {
        let plans = self.plans.clone();
        let input = Input::new(&plans, &mut self.bindings, items).map_err(Failure::Stop)?;
        if !input.unsendable.is_empty() {
            // The careful way sets rows aside.
            return Err(Failure::Clash);
        }
        let prelude = self.prelude(batch, &input).await?;
        self.prepare_writes(&input, &[Part::Dead, Part::Live, Part::Show, Part::Unmatched]).await?;
        let side = self.side_work(batch, touched, items).await?;
        let continues = prelude.continues;
        self.begin().await?;
        let mut steps = Steps::new(&self.session.client);
        prelude.queue(&mut steps);
        side.queue(&mut steps);
        self.queue_writes(&mut steps, &input, false);
        if continues || !batch.complete {
            steps.simple(Mark::Done, "SET CONSTRAINTS ALL IMMEDIATE");
        }
        let answers = steps.run().await?;
        let tables = self.answers(&answers)?;
        self.refresh_held().await?;
        Ok(Applied { tables, dead_letters: 0, waiting: self.held.waiting.len() as u64 })
    }
}

/// The statements that begin a batch.
pub struct Prelude {
    pipeline: String,
    continues: bool,
    locks: Vec<i64>,
    lock: Statement,
    offset: Statement,
    offset_params: Vec<Param<'static>>,
    mark: Statement,
}

impl Prelude {
    pub fn queue(self, steps: &mut Steps<'_, Mark>) {
        if self.continues {
            steps.simple(Mark::Done, "SAVEPOINT cutover_part");
        }
        // The mark is read after the lock, so that what another writer of the lane set aside is seen.
        if !self.locks.is_empty() {
            steps.query(Mark::Done, self.lock, vec![Box::new(self.locks)]);
        }
        steps.query(Mark::Lane, self.offset, self.offset_params);
        steps.query(Mark::Held, self.mark, vec![Box::new(self.pipeline)]);
    }
}

fn read<'r, T: tokio_postgres::types::FromSql<'r>>(rows: &'r [Row], column: usize) -> Result<T, PgError> {
    let row = rows.first().ok_or_else(|| PgError::Protocol("a statement answered without a row".into()))?;
    Ok(row.try_get(column)?)
}

fn number(rows: &[Row], column: usize) -> Result<u64, PgError> {
    Ok(read::<i64>(rows, column)?.unsigned_abs())
}

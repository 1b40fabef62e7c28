//! Finding the rows that cannot be written, and writing all others.
//!
//! The server rarely says which row failed. Sets of source rows are tried inside savepoints and halved; a single row
//! that still fails is parked with all that it would have written, in every target. Rows that refer to a missing
//! parent, or whose unique value or key another row still has, wait; they are tried again when everything else of the
//! batch is in.

use std::collections::{BTreeMap, BTreeSet, HashMap, hash_map::Entry};

use tokio_postgres::Row;

use super::{
    PostgresSink,
    answers::{self, Mark, add},
    failure::{self, Failure, Verdict},
    input::WriteInput,
    items::{Item, SourceKey},
    owned::{self, Held},
    parked::{Fenced, ParkedRow},
    steps::Steps,
};
use crate::{
    database::postgres::{PgError, Refusal},
    model::Version,
    target::{Applied, Batch, Counts, RowEvent},
};

/// How often the rows of one batch that wait for each other are tried.
const ROUNDS_MAX: u32 = 3;

/// SQLSTATE of a change that comes later than a newer one that is a dead letter: a constraint of ours.
const KEPT_OUT: &str = "23000";

/// Rows to try together.
struct Set<'a> {
    items: Vec<Item<'a>>,
    /// Remove the rows that are there before writing them: unique values may have been swapped.
    replace: bool,
}

/// A row that waits, and why.
pub(super) struct Waiting<'a> {
    pub(super) item: Item<'a>,
    refusal: Refusal,
    /// The parent's key that would free it, if that is known.
    needs: Option<i64>,
}

/// What became of the rows.
#[derive(Default)]
pub(super) struct Outcome<'a> {
    tables: BTreeMap<String, Counts>,
    pub(super) dead: Vec<ParkedRow<'a>>,
    pub(super) waiting: Vec<Waiting<'a>>,
    /// Rows written, with the newest version of each.
    pub(super) written: Vec<(SourceKey, Version)>,
    /// What is parked of rows that are held is over up to these versions: all but their newest event.
    pub(super) superseded: Vec<(SourceKey, Version)>,
    /// The keys that were freed, as digests.
    pub(super) freed: Vec<i64>,
}

/// What became of a set that was tried.
struct Tried {
    tables: BTreeMap<String, Counts>,
    held: Held,
    freed: Vec<i64>,
}

impl<'a> Outcome<'a> {
    /// What was parked of this row's older events is over.
    fn over(&mut self, event: &RowEvent) {
        let older = |other: &RowEvent| {
            other.version <= event.version && other.key == event.key && other.schema.table == event.schema.table
        };
        self.dead.retain(|dead| !older(dead.event));
        self.waiting.retain(|waiting| !waiting.item.newest().is_some_and(older));
    }

    /// A row whose key another has: these events of it wait, and what is parked that is older is over.
    fn hold(&mut self, events: Vec<&'a RowEvent>, needs: i64) {
        let Some(oldest) = events.first() else { return };
        self.superseded.push((SourceKey::of(oldest), oldest.version - 1));
        let item = Item { events, parked: Vec::new(), without_before: false };
        self.waiting.push(Waiting { item, refusal: owned::held_refusal(), needs: Some(needs) });
    }

    /// An error that may be the plan's fault and came of several rows of a table, where no row of it was written.
    fn fails_for_every_row(&self) -> Option<Refusal> {
        let mut suspects = self.dead.iter().filter(|dead| !failure::blames_a_row(&dead.sqlstate));
        suspects.find_map(|dead| {
            let table = dead.event.schema.table.to_string();
            let alike = |other: &&ParkedRow<'_>| {
                !failure::blames_a_row(&other.sqlstate)
                    && other.event.schema.table == dead.event.schema.table
                    && other.event.key != dead.event.key
            };
            let every =
                self.dead.iter().any(|other| alike(&other)) && self.written.iter().all(|(key, _)| key.table != table);
            every.then(|| Refusal::new(&dead.sqlstate, &dead.message))
        })
    }
}

impl PostgresSink {
    /// Writes all rows of a batch that can be written, and parks the others. Nothing is committed yet.
    pub(super) async fn write_by_bisection(
        &mut self,
        batch: &Batch,
        items: Vec<Item<'_>>,
        Fenced { touched, kept_out }: &Fenced<'_>,
    ) -> Result<Applied, Failure> {
        let plans = self.plans.clone();
        let mut steps = Steps::default();
        let input = WriteInput::new(&plans, &mut self.bindings, &items).map_err(Failure::Stop)?;
        self.queue_prelude(&mut steps, batch, &input).await?;
        drop(input);
        self.queue_side_work(&mut steps, batch, &items, &BTreeSet::new()).await?;
        self.begin(batch).await?;
        let answers = steps.run(&self.session.client).await?;
        self.read_answers(&answers)?;
        self.empty_elsewhere(batch).await?;
        let freed = answers::freed(&answers)?;
        let mut outcome = self.settle(items).await?;
        outcome.dead.extend(kept_out.iter().copied().map(late));
        let over = outcome.written.iter().chain(&outcome.superseded);
        let cleared: Vec<_> = over.filter(|(key, _)| touched.contains(key)).cloned().collect();
        self.clear_parked(&cleared).await?;
        let applied = self.park(outcome).await?;
        Ok(Applied { freed: freed + applied.freed, ..applied })
    }

    /// Stores what is parked, has tried first what is freed, and counts.
    pub(super) async fn park(&mut self, outcome: Outcome<'_>) -> Result<Applied, Failure> {
        let freed = self.free(outcome.freed).await?;
        let waiting: Vec<ParkedRow<'_>> = outcome
            .waiting
            .iter()
            .flat_map(|Waiting { item, refusal, needs }| {
                item.events.iter().map(|event| ParkedRow { needs: *needs, ..parked(event, refusal) })
            })
            .collect();
        self.store_dead(&outcome.dead).await?;
        self.store_waiting(&waiting).await?;
        Ok(Applied { tables: outcome.tables, dead_letters: outcome.dead.len() as u64, freed, ..Applied::default() })
    }

    /// Tries the rows, then those again that wait, as long as that helps.
    pub(super) async fn settle<'a>(&mut self, items: Vec<Item<'a>>) -> Result<Outcome<'a>, Failure> {
        let mut outcome = Outcome::default();
        let mut left = items;
        for round in 1..=ROUNDS_MAX {
            let before = (left.len(), outcome.written.len());
            self.halve(left, &mut outcome).await?;
            let progress = outcome.written.len() > before.1 && outcome.waiting.len() < before.0;
            if outcome.waiting.is_empty() || !progress || round == ROUNDS_MAX {
                break;
            }
            // Kept as waiting if they fail again: `halve` puts them back.
            left = together(std::mem::take(&mut outcome.waiting).into_iter().map(|waiting| waiting.item));
        }
        match outcome.fails_for_every_row() {
            Some(refusal) => Err(Failure::Stop(failure::refused(&refusal))),
            None => Ok(outcome),
        }
    }

    async fn halve<'a>(&mut self, items: Vec<Item<'a>>, outcome: &mut Outcome<'a>) -> Result<(), Failure> {
        let mut stack = vec![Set { items, replace: false }];
        while let Some(mut set) = stack.pop() {
            if set.items.is_empty() {
                continue;
            }
            match self.try_set(&mut set, outcome).await {
                Ok(Tried { tables, held, freed }) => {
                    tables.into_iter().for_each(|(table, counts)| add(&mut outcome.tables, table, counts));
                    outcome.freed.extend(freed);
                    for (place, item) in set.items.iter().enumerate() {
                        let Some(event) = item.newest() else { continue };
                        following(&mut stack, event).for_each(|item| item.parked.clear());
                        outcome.over(event);
                        match held.get(&place) {
                            None => outcome.written.push((SourceKey::of(event), event.version)),
                            Some(hold) => outcome.hold(hold.waits(item), hold.needs),
                        }
                    }
                }
                Err(Failure::Rows(refusal)) => self.blame(set, &refusal, &mut stack, outcome).await?,
                Err(Failure::Clash) => self.separate(set, &mut stack, outcome).await?,
                Err(other) => return Err(other),
            }
        }
        Ok(())
    }

    /// Writes a set inside a savepoint, with deferred constraints made to speak before it is released.
    async fn try_set<'a>(&mut self, set: &mut Set<'a>, outcome: &mut Outcome<'a>) -> Result<Tried, Failure> {
        let plans = self.plans.clone();
        let mut input = WriteInput::new(&plans, &mut self.bindings, &set.items).map_err(Failure::Stop)?;
        if !input.unsendable.is_empty() {
            let bad: BTreeSet<usize> = input.unsendable.iter().copied().collect();
            for item in remove(&mut set.items, &bad) {
                let refusal =
                    Refusal::new("22021", "the row has a text with a NUL byte (0x00), which PostgreSQL cannot store");
                outcome.dead.extend(item.newest().map(|event| parked(event, &refusal)));
            }
            input = WriteInput::new(&plans, &mut self.bindings, &set.items).map_err(Failure::Stop)?;
        }
        let mut steps = Steps::default();
        steps.simple(Mark::Done, "SAVEPOINT cutover_set; SET CONSTRAINTS ALL DEFERRED");
        self.queue_writes(&mut steps, &input, set.replace).await?;
        steps.simple(Mark::Done, "SET CONSTRAINTS ALL IMMEDIATE");
        self.savepoint_elsewhere("SAVEPOINT cutover_set").await.map_err(Failure::Stop)?;
        let result = match steps.run(&self.session.client).await {
            Ok(answers) => self.tried(&input, &answers, set.replace).await,
            Err(error) => Err(Failure::from(error)),
        };
        let (end, end_elsewhere) = match &result {
            Ok(_) => ("RELEASE cutover_set", "RELEASE SAVEPOINT cutover_set"),
            Err(Failure::Stop(_)) => return result,
            Err(Failure::Rows(_) | Failure::Clash | Failure::Unsendable | Failure::Reload) => {
                ("ROLLBACK TO cutover_set; RELEASE cutover_set", "ROLLBACK TO SAVEPOINT cutover_set")
            }
        };
        self.savepoint_elsewhere(end_elsewhere).await.map_err(Failure::Stop)?;
        self.session.client.batch_execute(end).await.map_err(PgError::from)?;
        result
    }

    async fn tried(
        &mut self,
        input: &WriteInput<'_>,
        answers: &[(Mark, Vec<Row>)],
        replace: bool,
    ) -> Result<Tried, Failure> {
        let mut tables = self.read_answers(answers)?;
        self.write_elsewhere(answers, replace, &mut tables).await?;
        let (held, freed) = self.held_and_freed(input, answers)?;
        Ok(Tried { tables, held, freed })
    }

    /// A set failed: narrows it down.
    async fn blame<'a>(
        &mut self,
        set: Set<'a>,
        refusal: &Refusal,
        stack: &mut Vec<Set<'a>>,
        outcome: &mut Outcome<'a>,
    ) -> Result<(), Failure> {
        let Set { mut items, replace } = set;
        if !failure::blames_a_row(&refusal.sqlstate) && self.fails_without_rows(&items).await? {
            return Err(Failure::Stop(failure::refused(refusal)));
        }
        if failure::is_taken(refusal) && !replace {
            stack.push(Set { items, replace: true });
            return Ok(());
        }
        let mut orphans = match failure::is_orphan(refusal) {
            true => self.orphans(&items, replace).await?,
            false => BTreeMap::new(),
        };
        if items.len() > 1 {
            if !orphans.is_empty() {
                let taken = remove(&mut items, &orphans.keys().copied().collect());
                let waiting = |(item, needs)| Waiting { item, refusal: refusal.clone(), needs: Some(needs) };
                outcome.waiting.extend(taken.into_iter().zip(orphans.into_values()).map(waiting));
                stack.push(Set { items, replace });
                return Ok(());
            }
            let second = items.split_off(items.len() / 2);
            stack.push(Set { items: second, replace });
            stack.push(Set { items, replace });
            return Ok(());
        }
        let needs = orphans.remove(&0);
        let Some(item) = items.pop() else { return Ok(()) };
        if item.events.len() == 1
            && let (Verdict::DeadLetter, Some(newest)) = (failure::verdict(refusal), item.newest())
            && !self.is_elsewhere()
            && self.is_late(&item).await?
        {
            // It would not have been written either way.
            outcome.written.push((SourceKey::of(newest), newest.version));
            return Ok(());
        }
        self.single(item, (refusal, needs), replace, stack, outcome);
        Ok(())
    }

    /// A single source row failed.
    fn single<'a>(
        &self,
        item: Item<'a>,
        (refusal, needs): (&Refusal, Option<i64>),
        replace: bool,
        stack: &mut Vec<Set<'a>>,
        outcome: &mut Outcome<'a>,
    ) {
        let Some(newest) = item.newest() else { return };
        if item.events.len() > 1 {
            // Its events one after the other, as if they had come alone; the oldest on top of the stack.
            let item = self.fence_events(item, outcome);
            for event in item.events.iter().rev() {
                let single = Item { events: vec![event], parked: item.parked.clone(), without_before: false };
                stack.push(Set { items: vec![single], replace });
            }
            return;
        }
        match failure::verdict(refusal) {
            Verdict::Wait => {
                // What it would have removed, the next event of the row removes.
                following(stack, newest).for_each(|item| item.parked.push(newest));
                outcome.waiting.push(Waiting { item, refusal: refusal.clone(), needs });
            }
            Verdict::DeadLetter if !item.parked.is_empty() && !item.without_before => {
                // What it replaces never reached the target, so it may not be possible to transform that at all.
                stack.push(Set { items: vec![Item { without_before: true, ..item }], replace });
            }
            Verdict::DeadLetter => {
                following(stack, newest).for_each(|item| item.parked.push(newest));
                outcome.dead.push(parked(newest, refusal));
            }
        }
    }

    /// Leaves out what a newer dead letter keeps out of the events of a row, and parks what would be missed. A replay
    /// ends with reading such rows again.
    fn fence_events<'a>(&self, item: Item<'a>, outcome: &mut Outcome<'a>) -> Item<'a> {
        let (item, kept_out) = self.parked.fence_events(item);
        outcome.dead.extend(kept_out.filter(|_| self.replay.is_none()).map(late));
        item
    }

    /// Several rows claim one key: all but the newest of each are parked.
    async fn separate<'a>(
        &mut self,
        set: Set<'a>,
        stack: &mut Vec<Set<'a>>,
        outcome: &mut Outcome<'a>,
    ) -> Result<(), Failure> {
        let Set { mut items, replace } = set;
        let culprits = self.clashing(&items, replace).await?;
        let refusal = Refusal::new(
            "21000",
            "two source rows map to one target key: the transform gives this row a key that another row has as well; make \
             the target's key follow from the source's key, one to one, or change one of the two rows at the source",
        );
        if culprits.is_empty() && items.len() > 1 {
            let second = items.split_off(items.len() / 2);
            stack.push(Set { items: second, replace });
            stack.push(Set { items, replace });
            return Ok(());
        }
        let taken = if culprits.is_empty() { std::mem::take(&mut items) } else { remove(&mut items, &culprits) };
        for item in taken {
            let item = self.fence_events(item, outcome);
            let Item { mut events, parked: older, without_before } = item;
            let Some(newest) = events.pop() else { continue };
            following(stack, newest).for_each(|item| item.parked.push(newest));
            outcome.dead.push(parked(newest, &refusal));
            // What came before it is written as if it had come alone; the oldest on top of the stack.
            for event in events.into_iter().rev() {
                let single = Item { events: vec![event], parked: older.clone(), without_before };
                stack.push(Set { items: vec![single], replace });
            }
        }
        stack.push(Set { items, replace });
        Ok(())
    }
}

/// A change that a newer dead letter of its row keeps out, as a letter beside that one: it alone says what the target
/// shows of the row, and what the next change has to remove.
pub(super) fn late(event: &RowEvent) -> ParkedRow<'_> {
    parked(event, &Refusal::new(KEPT_OUT, "a newer change of this row is a dead letter, and this one came later"))
}

/// Rows whose events were tried one after the other, and wait, as one item each again: apart they would claim each
/// other's keys.
fn together<'a>(items: impl Iterator<Item = Item<'a>>) -> Vec<Item<'a>> {
    let mut places: HashMap<SourceKey, usize> = HashMap::new();
    let mut whole: Vec<Item<'a>> = Vec::new();
    for item in items {
        let Some(newest) = item.newest() else { continue };
        match places.entry(SourceKey::of(newest)) {
            Entry::Occupied(place) => {
                if let Some(first) = whole.get_mut(*place.get()) {
                    first.events.extend(item.events);
                    first.events.sort_by_key(|event| event.version);
                }
            }
            Entry::Vacant(place) => {
                place.insert(whole.len());
                whole.push(item);
            }
        }
    }
    whole
}

/// The later events of the same row, if its events are being tried one after the other: on top of the stack.
fn following<'s, 'a>(stack: &'s mut [Set<'a>], event: &'s RowEvent) -> impl Iterator<Item = &'s mut Item<'a>> {
    let same = |item: &Item<'a>| {
        item.newest().is_some_and(|next| next.key == event.key && next.schema.table == event.schema.table)
    };
    let sets = stack.iter_mut().rev().take_while(move |set| matches!(set.items.as_slice(), [item] if same(item)));
    sets.flat_map(|set| set.items.iter_mut())
}

/// Takes the items at these places out.
fn remove<'a>(items: &mut Vec<Item<'a>>, places: &BTreeSet<usize>) -> Vec<Item<'a>> {
    let (mut kept, mut taken) = (Vec::with_capacity(items.len()), Vec::new());
    for (place, item) in std::mem::take(items).into_iter().enumerate() {
        if places.contains(&place) { taken.push(item) } else { kept.push(item) }
    }
    *items = kept;
    taken
}

fn parked<'a>(event: &'a RowEvent, refusal: &Refusal) -> ParkedRow<'a> {
    ParkedRow { event, sqlstate: refusal.sqlstate.clone(), message: refusal.message.clone(), needs: None }
}

//! From items to the arrays that the statements take.
//!
//! The newest image of an [`Item`] is what the target must show, and where a plan does not make one row of each the
//! older images are dead facts at their change's version. Images that no plan reads are not decoded, and columns that
//! no plan reads are not sent.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use super::{
    column::Column,
    items::Item,
    owned,
    statement::{Part, is_marked},
    steps::Param,
};
use crate::{
    log::envelope,
    model::{ColumnType, Coverage, Op, Plan, Problem, TTL_COLUMN, TableSchema, Version},
    target::{ApplyError, RowEvent},
};

/// How rows of one schema go into one plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    pub plan: usize,
    /// Places in the schema of the columns that the plan reads; none for one that is younger than the schema.
    pub columns: Vec<Option<usize>>,
    pub types: Vec<ColumnType>,
}

impl Binding {
    /// Matches by name. A column that the plan reads and the schema lacks stops the pipeline: the log keeps everything.
    /// Rows from before a column was added go without it where no transform asks for it: with a column that is new to
    /// both sides their table is copied again.
    pub fn new(index: usize, plan: &Plan, schema: &TableSchema, before_plan: bool) -> Result<Self, ApplyError> {
        let mut binding = Binding { plan: index, columns: Vec::new(), types: Vec::new() };
        for name in &plan.reads {
            let place = schema.columns.iter().position(|column| column.name == *name);
            let Some((place, column)) = place.and_then(|place| Some((place, schema.columns.get(place)?))) else {
                let added = plan.source.columns.iter().find(|column| column.name == *name);
                if let Some(added) = added.filter(|_| before_plan && plan.file.is_none()) {
                    binding.columns.push(None);
                    binding.types.push(added.column_type.clone());
                    continue;
                }
                return Err(ApplyError::Halt(Problem::new(
                    format!("{} reads column `{name}`, which source table {} no longer has", plan.name(), schema.table),
                    "change the transform and start again; the log keeps every change until then",
                )));
            };
            binding.columns.push(Some(place));
            binding.types.push(column.column_type.clone());
        }
        Ok(binding)
    }
}

/// Bindings by schema, kept over batches.
#[derive(Debug, Default)]
pub struct Bindings {
    by_schema: HashMap<u64, Arc<[usize]>>,
    pub all: Vec<Binding>,
    /// The plans were made for tables as they were at this version; what is older may lack columns that came since.
    pub planned_at: Version,
}

impl Bindings {
    /// The bindings of an event's schema: one for each plan that reads its table.
    pub fn of(&mut self, plans: &[Plan], event: &RowEvent) -> Result<Arc<[usize]>, ApplyError> {
        let schema = &event.schema;
        let id = schema.id();
        if let Some(known) = self.by_schema.get(&id) {
            return Ok(known.clone());
        }
        let mut places = Vec::new();
        for (index, plan) in plans.iter().enumerate().filter(|(_, plan)| plan.source.table == schema.table) {
            let binding = Binding::new(index, plan, schema, event.version <= self.planned_at)?;
            let known = self.all.iter().position(|other| *other == binding);
            places.push(known.unwrap_or_else(|| {
                self.all.push(binding);
                self.all.len() - 1
            }));
        }
        let places: Arc<[usize]> = places.into();
        self.by_schema.insert(id, places.clone());
        Ok(places)
    }
}

/// Images on their way into one statement.
#[derive(Debug, Default)]
pub struct ImageRows {
    pub versions: Vec<Version>,
    pub dead: Vec<bool>,
    /// The item that each image belongs to.
    pub items: Vec<usize>,
    rows: Vec<usize>,
}

impl ImageRows {
    fn push(&mut self, item: usize, row: usize, version: Version, dead: bool) {
        self.versions.push(version);
        self.dead.push(dead);
        self.items.push(item);
        self.rows.push(row);
    }
}

/// The images of one binding, by the statement that they go to. With partial coverage both look at `live`, which has
/// them all; with a filter `dead` has them all, and `live` the newest.
#[derive(Debug, Default)]
pub struct BindingImages {
    pub live: ImageRows,
    pub dead: ImageRows,
    /// Of a filter: images after an update without one before it, and, dead, the keys that are all that is known of
    /// deleted rows.
    gone: ImageRows,
}

impl BindingImages {
    /// What the statement of dead facts looks at; none if it would find nothing.
    pub fn for_dead(&self) -> Option<&ImageRows> {
        [&self.dead, &self.live].into_iter().find(|images| images.dead.iter().any(|dead| *dead))
    }

    /// What the statement of dead facts that are told by their key looks at; none if it would find nothing.
    pub fn for_gone(&self) -> Option<&ImageRows> {
        Some(&self.gone).filter(|images| !images.versions.is_empty())
    }

    /// What the statement of live facts looks at; none if it would find nothing.
    pub fn for_live(&self) -> Option<&ImageRows> {
        Some(&self.live).filter(|images| images.dead.iter().any(|dead| !*dead))
    }
}

/// Everything that a set of items sends.
#[derive(Debug, Default)]
pub struct WriteInput<'a> {
    rows: Vec<envelope::Row<'a>>,
    /// The source keys of the items, as the records have them.
    keys: Vec<&'a [u8]>,
    /// By binding.
    pub groups: BTreeMap<usize, BindingImages>,
    /// Items that hold what no PostgreSQL text can: a NUL byte.
    pub unsendable: Vec<usize>,
}

impl<'a> WriteInput<'a> {
    /// Decodes and sorts the items' images.
    pub fn new(plans: &[Plan], bindings: &mut Bindings, items: &[Item<'a>]) -> Result<Self, ApplyError> {
        let mut input = WriteInput { rows: Vec::with_capacity(items.len()), ..WriteInput::default() };
        let mut schemas: HashMap<usize, Arc<[usize]>> = HashMap::new();
        for (index, item) in items.iter().enumerate() {
            input.keys.push(item.newest().map_or(&[], |newest| newest.key.as_ref()));
            let Some(newest) = item.newest() else { continue };
            let mut bound = |event: &RowEvent, bindings: &mut Bindings| -> Result<Arc<[usize]>, ApplyError> {
                let address = Arc::as_ptr(&event.schema) as usize;
                if let Some(known) = schemas.get(&address) {
                    return Ok(known.clone());
                }
                let found = bindings.of(plans, event)?;
                schemas.insert(address, found.clone());
                Ok(found)
            };
            let places = bound(newest, bindings)?;
            if places.is_empty() {
                continue;
            }
            let (before, after, op) = decode(newest)?;
            if let Some(after) = &after
                && places
                    .iter()
                    .filter_map(|place| bindings.all.get(*place))
                    .any(|binding| has_nul(after, &binding.columns))
            {
                input.unsendable.push(index);
                continue;
            }
            let shown = if item.without_before { 1 } else { item.parked.len() };
            let parked = item.parked.iter().take(shown).map(|event| (*event, newest.version));
            let older = item.events.iter().rev().skip(1).map(|event| (*event, event.version));
            let alone = key_alone(op, before.as_ref(), &newest.schema);
            let after = after.map(|row| input.keep(row));
            let before = before.map(|row| input.keep_dead(row));
            if alone {
                input.keep_gone(plans, bindings, (index, newest.version), &places, (before, after), |_| true);
            }
            input.newest(plans, bindings, index, newest.version, &places, (before, after), item.without_before);
            let mut removed = after.is_none();
            for (event, version) in older.chain(parked) {
                let places = bound(event, bindings)?;
                if places.iter().any(|place| plan_of(plans, bindings, *place).is_some_and(looks_back)) {
                    let last = std::mem::take(&mut removed);
                    input.keep_older(plans, bindings, (index, version), event, &places, last)?;
                }
            }
        }
        Ok(input)
    }

    #[allow(clippy::too_many_arguments)] // each is one fact about the same image
    fn newest(
        &mut self,
        plans: &[Plan],
        bindings: &Bindings,
        item: usize,
        version: Version,
        places: &[usize],
        (before, after): (Option<usize>, Option<usize>),
        without_before: bool,
    ) {
        for place in places {
            let group = self.groups.entry(*place).or_default();
            match (coverage(plans, bindings, *place), before, after) {
                (Some(Coverage::Total), _, Some(after)) => group.live.push(item, after, version, false),
                (Some(Coverage::Total), Some(before), None) => group.dead.push(item, before, version, true),
                (Some(Coverage::Filter), before, after) => {
                    if let Some(before) = before.filter(|_| !without_before) {
                        group.dead.push(item, before, version, true);
                    }
                    if let Some(after) = after {
                        group.live.push(item, after, version, false);
                        group.dead.push(item, after, version, false);
                    }
                }
                (Some(Coverage::Partial), before, after) => {
                    if let Some(before) = before.filter(|_| !without_before) {
                        group.live.push(item, before, version, true);
                    }
                    if let Some(after) = after {
                        group.live.push(item, after, version, false);
                    }
                }
                (Some(Coverage::Total), None, None) | (None, _, _) => {}
            }
        }
    }

    /// A change of a row of which the source logs no more than the key before it: filters whose keys follow from the
    /// source's are told.
    fn keep_gone(
        &mut self,
        plans: &[Plan],
        bindings: &Bindings,
        (item, version): (usize, Version),
        places: &[usize],
        (before, after): (Option<usize>, Option<usize>),
        wanted: impl Fn(&Plan) -> bool,
    ) {
        let Some(row) = after.or(before) else { return };
        for place in places {
            let told = |plan: &&Plan| plan.coverage == Coverage::Filter && plan.key_reads.is_some() && wanted(plan);
            if plan_of(plans, bindings, *place).filter(told).is_some() {
                self.groups.entry(*place).or_default().gone.push(item, row, version, after.is_none());
            }
        }
    }

    /// An earlier image of an item's row: what it made is gone, unless the newest makes it again. With `last` the row
    /// was removed after it, and this is how it was.
    fn keep_older(
        &mut self,
        plans: &[Plan],
        bindings: &Bindings,
        (item, version): (usize, Version),
        event: &'a RowEvent,
        places: &[usize],
        last: bool,
    ) -> Result<(), ApplyError> {
        let (before, after, op) = decode(event)?;
        if let Some(after) = after.as_ref().filter(|_| last) {
            self.keep_removed(plans, bindings, (item, event.version), places, after);
        }
        let alone = version == event.version && key_alone(op, before.as_ref(), &event.schema);
        let counts = |plan: &Plan| plan.role.counts_deaths();
        let counted = places.iter().any(|place| plan_of(plans, bindings, *place).is_some_and(counts));
        let before = before.map(|row| self.keep_dead(row));
        let after = after.filter(|_| counted).map(|row| self.keep_dead(row));
        if alone {
            self.keep_gone(plans, bindings, (item, version), places, (before, after), counts);
        }
        for place in places {
            let Some(plan) = plan_of(plans, bindings, *place).filter(|plan| looks_back(plan)) else { continue };
            let group = self.groups.entry(*place).or_default();
            match (plan.coverage, before, after.filter(|_| counts(plan))) {
                (Coverage::Filter, before, Some(after)) => {
                    if let Some(before) = before {
                        group.dead.push(item, before, version, true);
                    }
                    group.dead.push(item, after, version, false);
                }
                (Coverage::Total | Coverage::Filter, Some(before), None) => {
                    group.dead.push(item, before, version, true);
                }
                (Coverage::Partial, Some(before), _) => group.live.push(item, before, version, true),
                // Its row was there before and after, or nothing is known of it.
                (Coverage::Total, _, Some(_)) | (_, None, _) => {}
            }
        }
        Ok(())
    }

    /// The row that a removal by Time to Live removed: a filter that passes over such removals shows it still.
    fn keep_removed(
        &mut self,
        plans: &[Plan],
        bindings: &Bindings,
        (item, version): (usize, Version),
        places: &[usize],
        row: &envelope::Row<'a>,
    ) {
        let tells = |place: &&usize| plan_of(plans, bindings, **place).is_some_and(tells_removals);
        if !places.iter().any(|place| tells(&place)) {
            return;
        }
        let row = self.keep(row.clone());
        for place in places.iter().filter(tells) {
            let group = self.groups.entry(*place).or_default();
            group.live.push(item, row, version, false);
            if coverage(plans, bindings, *place) == Some(Coverage::Filter) {
                group.dead.push(item, row, version, false);
            }
        }
    }

    fn keep(&mut self, row: envelope::Row<'a>) -> usize {
        self.rows.push(row);
        self.rows.len() - 1
    }

    /// A value with a NUL byte never reached the target: in an image of what is gone it may as well be null.
    fn keep_dead(&mut self, mut row: envelope::Row<'a>) -> usize {
        for cell in &mut row {
            if cell.as_deref().is_some_and(nul) {
                *cell = None;
            }
        }
        self.keep(row)
    }

    /// One column of these images.
    pub fn column(&self, images: &ImageRows, column: Option<usize>) -> Vec<Option<&str>> {
        images
            .rows
            .iter()
            .map(|row| self.rows.get(*row).and_then(|row| row.get(column?)).and_then(|cell| cell.as_deref()))
            .collect()
    }

    /// The parameters of these images in a part of a plan's work.
    pub fn params<'b>(&'b self, plan: &Plan, binding: &Binding, part: Part, images: &'b ImageRows) -> Vec<Param<'b>> {
        let mut params: Vec<Param<'b>> = vec![Box::new(&images.versions)];
        if is_marked(plan.coverage, part) {
            params.push(Box::new(&images.dead));
        }
        if plan.is_owned() {
            params.push(Box::new(self.owners(images)));
        }
        for column in &binding.columns {
            params.push(Box::new(Column(self.column(images, *column))));
        }
        params
    }

    /// Which source row each of these images is of.
    fn owners(&self, images: &ImageRows) -> Vec<i64> {
        images.items.iter().map(|item| owned::owner(self.keys.get(*item).copied().unwrap_or_default())).collect()
    }

    /// Whether anything sent may make a dead fact.
    pub fn has_dead(&self) -> bool {
        self.groups.values().any(|group| group.for_dead().is_some() || group.for_gone().is_some())
    }
}

/// Whether no more than the key is known of the row before this change: PostgreSQL logs no image before an update, and
/// of a deleted row its key, unless it is told to.
fn key_alone(op: Op, before: Option<&envelope::Row<'_>>, schema: &TableSchema) -> bool {
    match (op, before) {
        (Op::Update, None) => true,
        (Op::Delete, Some(before)) => {
            let others = || before.iter().enumerate().filter(|(place, _)| !schema.key.contains(place));
            others().next().is_some() && others().all(|(_, cell)| cell.is_none())
        }
        (Op::Update, Some(_)) | (Op::Delete, None) | (Op::Insert | Op::Read | Op::Truncate, _) => false,
    }
}

fn plan_of<'p>(plans: &'p [Plan], bindings: &Bindings, place: usize) -> Option<&'p Plan> {
    bindings.all.get(place).and_then(|binding| plans.get(binding.plan))
}

fn coverage(plans: &[Plan], bindings: &Bindings, place: usize) -> Option<Coverage> {
    plan_of(plans, bindings, place).map(|plan| plan.coverage)
}

/// Whether a plan can tell by an earlier image that it had made a row: a filter or a set, or an owner whose absence
/// counts.
fn looks_back(plan: &Plan) -> bool {
    plan.coverage != Coverage::Total || plan.role.counts_deaths()
}

/// Whether a plan looks at how a row was removed.
fn tells_removals(plan: &Plan) -> bool {
    plan.coverage != Coverage::Total && plan.reads.iter().any(|column| column == TTL_COLUMN)
}

fn nul(text: &str) -> bool {
    text.as_bytes().contains(&0)
}

fn has_nul(row: &envelope::Row<'_>, columns: &[Option<usize>]) -> bool {
    columns.iter().flatten().any(|column| row.get(*column).and_then(|cell| cell.as_deref()).is_some_and(nul))
}

/// A record that cannot be read is never skipped: its row would be lost.
fn decode(event: &RowEvent) -> Result<envelope::Decoded<'_>, ApplyError> {
    envelope::cells(&event.value, &event.schema).map_err(|error| {
        ApplyError::Halt(Problem::new(
            format!("the record of {} at offset {} cannot be read: {error}", event.schema.table, event.offset),
            "find out what wrote it; then copy the table again with `cutover resnapshot`",
        ))
    })
}

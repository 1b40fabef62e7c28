//! What the statements of a plan mean: dead facts, live facts, and what finds the rows at fault.
//!
//! The order in which rows are written is that of PostgreSQL's plans: live facts of a plan with one row each in the
//! order in which they came, everything that is sorted first in the order of its keys, and in a statement of dead facts
//! the deletes before the tombstones, which nothing in it reads.

use std::collections::{BTreeMap, BTreeSet};

use cutover::model::{ColumnType, Coverage, ForeignKey};

use super::{
    exec::{Exec, Inserted, OnConflict, Stop},
    session::Answer,
    state::fence,
    store::{RowLock, TableId},
    table::{ModelTable, SourceRow, integer},
    value::{Param, SqlError, Value},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    Dead,
    /// Dead facts of rows that are known by their key alone.
    Gone,
    Replace,
    Live,
    Unmatched,
    Clashes,
    Late,
    Orphans(usize),
}

#[derive(Debug)]
pub struct PlanStatement {
    pub model: usize,
    pub part: Part,
    /// Whether `$2` tells which images are dead.
    pub marked: bool,
    pub types: Vec<ColumnType>,
    pub pipeline: String,
    pub target: TableId,
    pub tombstones: TableId,
}

/// One image of a source row.
pub struct Image {
    version: i64,
    dead: bool,
    /// Its place, from 1.
    place: i64,
    texts: Vec<Option<std::sync::Arc<str>>>,
}

/// A row that the `SELECT` made, as it goes into the target.
#[derive(Debug, Clone)]
pub struct Fact {
    pub key: Vec<Value>,
    /// In the plan's order; empty where only the key was asked for.
    pub values: Vec<Value>,
    version: i64,
    dead: bool,
}

impl PlanStatement {
    pub async fn run(&self, exec: &mut Exec<'_>, params: &[Param]) -> Result<Answer, Stop> {
        let images = self.images(exec, params);
        let images: Vec<&Image> = match self.part {
            Part::Dead | Part::Gone | Part::Live | Part::Replace | Part::Unmatched => images.iter().collect(),
            Part::Clashes | Part::Late | Part::Orphans(_) => images.iter().filter(|image| !image.dead).collect(),
        };
        match self.part {
            Part::Dead => self.dead(exec, &images).await,
            Part::Gone => self.gone(exec, &images).await,
            Part::Live => self.live(exec, &images).await,
            Part::Replace if exec.pg.weakness().no_replace => Ok(Answer::rows(Vec::new())),
            Part::Replace => self.replace(exec, &images).await,
            Part::Unmatched => self.unmatched(exec, &images).await,
            Part::Clashes => self.clashes(exec, &images),
            Part::Late => self.late(exec, &images),
            Part::Orphans(place) => self.orphans(exec, &images, place),
        }
    }

    pub fn model<'e>(&self, exec: &Exec<'e>) -> &'e ModelTable {
        &exec.pg.models()[self.model]
    }

    /// The images that are not older than the table's TRUNCATE fence.
    pub fn images(&self, exec: &Exec<'_>, params: &[Param]) -> Vec<Image> {
        let versions = params[0].ints();
        let dead = self.marked.then(|| params[1].bools());
        let columns = &params[if self.marked { 2 } else { 1 }..];
        let source = self.model(exec).plan.source.table.to_string();
        let fence = if exec.pg.weakness().no_truncate_fence { None } else { fence(exec, &self.pipeline, &source) };
        let image = |(place, version): (usize, &i64)| Image {
            version: *version,
            dead: dead.is_some_and(|dead| dead[place]),
            place: place as i64 + 1,
            texts: columns.iter().map(|column| column.texts()[place].clone()).collect(),
        };
        let images = versions.iter().enumerate().map(image);
        images.filter(|image| fence.is_none_or(|fence| image.version >= fence)).collect()
    }

    /// What the `SELECT` makes of an image, column by column.
    fn rows(&self, exec: &Exec<'_>, image: &Image) -> Result<Vec<Vec<super::table::Cell>>, SqlError> {
        let model = self.model(exec);
        let row = SourceRow { names: &model.plan.reads, types: &self.types, texts: &image.texts };
        let rows = (model.transform)(&row)?;
        assert!(
            rows.iter().all(|row| row.len() == model.plan.columns.len()),
            "{}: the function that stands for the SELECT gives other columns than the plan has",
            model.plan.name()
        );
        Ok(rows)
    }

    /// Places of the key's columns among the plan's.
    fn key_places(&self, exec: &Exec<'_>) -> Vec<usize> {
        let plan = &self.model(exec).plan;
        let place = |key: &String| plan.columns.iter().position(|column| column.name == *key);
        plan.target.key.iter().map(|key| place(key).unwrap_or_else(|| panic!("the plan fills no `{key}`"))).collect()
    }

    fn key(&self, places: &[usize], row: &[super::table::Cell]) -> Result<Vec<Value>, SqlError> {
        places.iter().map(|place| row[*place].clone()).collect()
    }

    /// Every fact of the images, evaluated whole or in its key only.
    pub fn facts(&self, exec: &Exec<'_>, images: &[&Image], whole: bool) -> Result<Vec<(i64, Fact)>, SqlError> {
        let places = self.key_places(exec);
        let mut facts = Vec::new();
        for image in images {
            for row in self.rows(exec, image)? {
                let key = self.key(&places, &row)?;
                let values = if whole { row.into_iter().collect::<Result<_, _>>()? } else { Vec::new() };
                facts.push((image.place, Fact { key, values, version: image.version, dead: image.dead }));
            }
        }
        Ok(facts)
    }

    /// The newest fact of each key, in the order of keys; live beats dead at the same version. With each the number of
    /// live facts that claim its key.
    fn newest(&self, exec: &Exec<'_>, images: &[&Image], whole: bool) -> Result<Vec<(Fact, usize)>, SqlError> {
        let mut newest: BTreeMap<Vec<Value>, (Fact, usize)> = BTreeMap::new();
        for (_, fact) in self.facts(exec, images, whole)? {
            if fact.dead && fact.key.iter().any(Value::is_null) {
                continue;
            }
            let live = usize::from(!fact.dead);
            match newest.get_mut(&fact.key) {
                None => {
                    newest.insert(fact.key.clone(), (fact, live));
                }
                Some((first, claims)) => {
                    *claims += live;
                    if (fact.version, !fact.dead) > (first.version, !first.dead) {
                        *first = fact;
                    }
                }
            }
        }
        Ok(newest.into_values().collect())
    }

    async fn dead(&self, exec: &mut Exec<'_>, images: &[&Image]) -> Result<Answer, Stop> {
        let facts: Vec<(Vec<Value>, i64)> = match self.model(exec).plan.coverage {
            Coverage::Total => {
                let mut newest: BTreeMap<Vec<Value>, i64> = BTreeMap::new();
                for (_, fact) in self.facts(exec, images, false)? {
                    if !fact.key.iter().any(Value::is_null) {
                        let version = newest.entry(fact.key).or_insert(fact.version);
                        *version = fact.version.max(*version);
                    }
                }
                newest.into_iter().collect()
            }
            Coverage::Filter | Coverage::Partial => {
                let newest = self.newest(exec, images, false)?.into_iter();
                newest.filter(|(fact, _)| fact.dead).map(|(fact, _)| (fact.key, fact.version)).collect()
            }
        };
        self.bury(exec, &facts).await
    }

    /// What was deleted, and what the filter leaves out now.
    async fn gone(&self, exec: &mut Exec<'_>, images: &[&Image]) -> Result<Answer, Stop> {
        let mut newest: BTreeMap<Vec<Value>, i64> = BTreeMap::new();
        for image in images {
            if image.dead || self.rows(exec, image)?.is_empty() {
                let version = newest.entry(self.key_read(exec, image)?).or_insert(image.version);
                *version = image.version.max(*version);
            }
        }
        self.bury(exec, &newest.into_iter().collect::<Vec<_>>()).await
    }

    /// Removes what dead facts say is gone, and leaves their tombstones.
    async fn bury(&self, exec: &mut Exec<'_>, facts: &[(Vec<Value>, i64)]) -> Result<Answer, Stop> {
        let weak = exec.pg.weakness();
        let mut deleted = 0;
        for (key, version) in facts {
            let limit = if weak.dead_ignores_version { i64::MAX } else { *version };
            deleted += self.remove(exec, key, limit).await?.is_some() as i64;
        }
        for (key, version) in facts.iter().filter(|_| !weak.no_tombstones) {
            let row: Vec<Value> = key.iter().cloned().chain([Value::Int(*version)]).collect();
            let set = |old: &[Value]| (old[key.len()].int() < *version).then(|| row.clone());
            let conflict = OnConflict::Update { index: 0, lock: RowLock::NoKeyUpdate, set: &set };
            exec.insert(self.tombstones, row.clone(), conflict).await?;
        }
        Ok(Answer::row(vec![Value::Int(facts.len() as i64), Value::Int(deleted)]))
    }

    /// Deletes the row of a key if it is not newer than the limit; what it was.
    async fn remove(&self, exec: &mut Exec<'_>, key: &[Value], limit: i64) -> Result<Option<super::value::Row>, Stop> {
        let Some((tuple, row)) = exec.lookup(self.target, key) else { return Ok(None) };
        let version = self.version_place(exec);
        if row[version].int() > limit {
            return Ok(None);
        }
        exec.delete(self.target, tuple, &move |row: &[Value]| row[version].int() <= limit).await
    }

    fn version_place(&self, exec: &Exec<'_>) -> usize {
        self.model(exec).plan.target.columns.len()
    }

    /// Whether a newer tombstone keeps a fact out, as the statement's snapshot shows it.
    fn buried(&self, exec: &Exec<'_>, key: &[Value], version: i64) -> bool {
        if exec.pg.weakness().no_tombstone_check || key.iter().any(Value::is_null) {
            return false;
        }
        let tombstone = exec.lookup(self.tombstones, key);
        tombstone.is_some_and(|(_, row)| row[key.len()].int() > version)
    }

    /// The target's row for a fact: the plan's columns, defaults, the version.
    fn target_row(&self, exec: &Exec<'_>, fact: &Fact) -> Vec<Value> {
        let model = self.model(exec);
        let plan = &model.plan;
        let value = |name: &String| match plan.columns.iter().position(|column| column.name == *name) {
            Some(place) => fact.values[place].clone(),
            None => model.defaults.iter().find(|(known, _)| known == name).map_or(Value::Null, |(_, v)| v.clone()),
        };
        let mut row: Vec<Value> = plan.target.columns.iter().map(|column| value(&column.name)).collect();
        row.push(Value::Int(fact.version));
        row
    }

    /// Places, among the target's, of the columns that `DO UPDATE` sets; the version is the last.
    fn assigned(&self, exec: &Exec<'_>) -> Vec<usize> {
        let plan = &self.model(exec).plan;
        let set = |name: &String| {
            plan.columns.iter().any(|column| column.name == *name) && !plan.target.key.iter().any(|key| key == name)
        };
        let columns = plan.target.columns.iter().enumerate();
        let mut places: Vec<usize> = columns.filter(|(_, column)| set(&column.name)).map(|(place, _)| place).collect();
        places.push(plan.target.columns.len());
        places
    }

    async fn upsert(&self, exec: &mut Exec<'_>, fact: &Fact) -> Result<Inserted, Stop> {
        let row = self.target_row(exec, fact);
        let assigned = self.assigned(exec);
        let lock = {
            let store = exec.pg.store();
            let shape = &store.tables[self.target].shape;
            if assigned.iter().any(|column| shape.is_key(*column)) { RowLock::Update } else { RowLock::NoKeyUpdate }
        };
        let version = self.version_place(exec);
        let always = exec.pg.weakness().live_ignores_version;
        let set = |old: &[Value]| {
            (always || old[version].int() <= fact.version).then(|| {
                let mut new = old.to_vec();
                assigned.iter().for_each(|place| new[*place] = row[*place].clone());
                new
            })
        };
        exec.insert(self.target, row.clone(), OnConflict::Update { index: 0, lock, set: &set }).await
    }

    async fn live(&self, exec: &mut Exec<'_>, images: &[&Image]) -> Result<Answer, Stop> {
        let (mut inserted, mut updated) = (0, 0);
        let mut count = |outcome: Inserted| match outcome {
            Inserted::Fresh(_) => inserted += 1,
            Inserted::Updated(_) => updated += 1,
            Inserted::Skipped => {}
        };
        let coverage = self.model(exec).plan.coverage;
        let (clashes, facts) = match coverage {
            Coverage::Total | Coverage::Filter => {
                let places = self.key_places(exec);
                for image in images {
                    for row in self.rows(exec, image)? {
                        // PostgreSQL evaluates the row before it looks for a tombstone.
                        let key = self.key(&places, &row)?;
                        let values = row.into_iter().collect::<Result<_, _>>()?;
                        let fact = Fact { key, values, version: image.version, dead: false };
                        if !self.buried(exec, &fact.key, fact.version) {
                            count(self.upsert(exec, &fact).await?);
                        }
                    }
                }
                (Value::Int(0), if coverage == Coverage::Total { Value::Null } else { Value::Int(0) })
            }
            Coverage::Partial => {
                let newest = self.newest(exec, images, true)?;
                for (fact, _) in newest.iter().filter(|(fact, _)| !fact.dead) {
                    if !self.buried(exec, &fact.key, fact.version) {
                        count(self.upsert(exec, fact).await?);
                    }
                }
                let clashes = newest.iter().filter(|(_, claims)| *claims > 1).count();
                let live = newest.iter().filter(|(fact, _)| !fact.dead).count();
                (Value::Int(clashes as i64), Value::Int(live as i64))
            }
        };
        Ok(Answer::row(vec![Value::Int(inserted), Value::Int(updated), clashes, facts]))
    }

    async fn replace(&self, exec: &mut Exec<'_>, images: &[&Image]) -> Result<Answer, Stop> {
        let facts: Vec<Fact> = match self.model(exec).plan.coverage {
            Coverage::Total | Coverage::Filter => {
                self.facts(exec, images, true)?.into_iter().map(|(_, fact)| fact).collect()
            }
            Coverage::Partial => {
                let newest = self.newest(exec, images, true)?.into_iter().map(|(fact, _)| fact);
                newest.filter(|fact| !fact.dead).collect()
            }
        };
        let mut gone = BTreeMap::new();
        for fact in &facts {
            if let Some(row) = self.remove(exec, &fact.key, fact.version).await? {
                gone.insert(fact.key.clone(), row);
            }
        }
        let mut written = 0;
        for fact in &facts {
            let Some(old) = gone.get(&fact.key) else { continue };
            let mut row = self.target_row(exec, fact);
            let plan = &self.model(exec).plan;
            for (place, column) in plan.target.columns.iter().enumerate() {
                if !plan.columns.iter().any(|filled| filled.name == column.name) {
                    row[place] = old[place].clone();
                }
            }
            exec.insert(self.target, row, OnConflict::Fail).await?;
            written += 1;
        }
        Ok(Answer::affected(written))
    }

    async fn unmatched(&self, exec: &mut Exec<'_>, images: &[&Image]) -> Result<Answer, Stop> {
        let mut deleted = 0;
        for image in images {
            let key = self.key_read(exec, image)?;
            deleted += self.remove(exec, &key, image.version - 1).await?.is_some() as i64;
        }
        Ok(Answer::row(vec![Value::Int(deleted)]))
    }

    /// The key that an image has, without the `SELECT`.
    fn key_read(&self, exec: &Exec<'_>, image: &Image) -> Result<Vec<Value>, SqlError> {
        let plan = &self.model(exec).plan;
        let places = plan.key_reads.as_ref().unwrap_or_else(|| panic!("{} has no key to read", plan.name()));
        let row = SourceRow { names: &plan.reads, types: &self.types, texts: &image.texts };
        let key = places.iter().zip(&plan.target.key).map(|(place, name)| {
            let value = row.get(&plan.reads[*place])?;
            // The key is compared in the target's type.
            let number = plan
                .target
                .column(name)
                .is_some_and(|column| matches!(column.cast_sql.as_str(), "bigint" | "integer" | "smallint"));
            match value {
                Value::Text(text) if number => integer(&text, "bigint", i64::MIN, i64::MAX),
                Value::Int(value) if !number => Ok(Value::text(value.to_string())),
                other => Ok(other),
            }
        });
        key.collect()
    }

    fn clashes(&self, exec: &Exec<'_>, images: &[&Image]) -> Result<Answer, Stop> {
        let mut claims: BTreeMap<Vec<Value>, Vec<(i64, i64)>> = BTreeMap::new();
        for (place, fact) in self.facts(exec, images, false)? {
            claims.entry(fact.key).or_default().push((-fact.version, place));
        }
        let mut found = BTreeSet::new();
        for mut places in claims.into_values() {
            places.sort_unstable();
            found.extend(places.into_iter().skip(1).map(|(_, place)| place));
        }
        Ok(Answer::rows(found.into_iter().map(|place| vec![Value::Int(place)]).collect()))
    }

    fn late(&self, exec: &Exec<'_>, images: &[&Image]) -> Result<Answer, Stop> {
        let mut late: BTreeMap<i64, bool> = BTreeMap::new();
        for (place, fact) in self.facts(exec, images, false)? {
            let newer = |table, version: usize| {
                exec.lookup(table, &fact.key).is_some_and(|(_, row)| row[version].int() > fact.version)
            };
            let is_late = !fact.key.iter().any(Value::is_null)
                && (newer(self.target, self.version_place(exec)) || newer(self.tombstones, fact.key.len()));
            *late.entry(place).or_insert(true) &= is_late;
        }
        let places = late.into_iter().filter(|(_, late)| *late);
        Ok(Answer::rows(places.map(|(place, _)| vec![Value::Int(place)]).collect()))
    }

    fn orphans(&self, exec: &Exec<'_>, images: &[&Image], place: usize) -> Result<Answer, Stop> {
        let plan = &self.model(exec).plan;
        let key: &ForeignKey = &plan.target.foreign_keys[place];
        let facts = self.facts(exec, images, true)?;
        let version = self.version_place(exec);
        let is_late = |fact: &Fact| {
            let there = exec.lookup(self.target, &fact.key);
            self.buried(exec, &fact.key, fact.version)
                || there.is_some_and(|(_, row)| row[version].int() > fact.version)
        };
        let live: Vec<(i64, Vec<Value>, bool)> =
            facts.into_iter().map(|(place, fact)| (place, self.target_row(exec, &fact), is_late(&fact))).collect();
        let (parent, columns, parents) = {
            let store = exec.pg.store();
            let foreign = &store.tables[self.target].shape.foreign;
            let foreign = foreign.iter().find(|foreign| foreign.name == key.name);
            let foreign = foreign.unwrap_or_else(|| panic!("no foreign key {}", key.name));
            (foreign.parent, foreign.columns.clone(), foreign.parent_columns.clone())
        };
        let pick = |row: &[Value], columns: &[usize]| -> Vec<Value> {
            columns.iter().map(|column| row[*column].clone()).collect()
        };
        let mut there: BTreeSet<Vec<Value>> =
            exec.rows(parent, |_| true).iter().map(|row| pick(row, &parents)).collect();
        if parent == self.target {
            there.extend(live.iter().map(|(_, row, _)| pick(row, &parents)));
        }
        let orphan = |row: &[Value]| {
            let key = pick(row, &columns);
            !key.iter().any(Value::is_null) && !there.contains(&key)
        };
        let mut named: Vec<(&String, usize)> = key.parent_columns.iter().zip(columns.iter().copied()).collect();
        named.sort();
        let needs = |row: &[Value]| {
            let values: Vec<String> =
                named.iter().map(|(_, column)| row[*column].print().unwrap_or_default()).collect();
            Value::text(values.join("\u{1f}"))
        };
        let orphans = live.iter().filter(|(_, row, late)| !late && orphan(row));
        let found: BTreeMap<i64, Value> = orphans.map(|(place, row, _)| (*place, needs(row))).collect();
        Ok(Answer::rows(found.into_iter().map(|(place, needs)| vec![Value::Int(place), needs]).collect()))
    }
}

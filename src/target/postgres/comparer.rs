//! Comparing on PostgreSQL: passes over tables, their parts, and a second look.
//!
//! What enters is rows as records have them; the statements are [`Comparison`]'s. Rows that cannot be transformed are
//! found by halving, and are doubts of their own. The session holds a lock for as long as it compares: two that ask to
//! be alone refuse each other, and tombstones stay. What it writes is temporary, but for notes of rows, where these are
//! asked for.

use std::{collections::HashMap, sync::Arc};

use async_trait::async_trait;
use tokio_postgres::{Row, Statement, types::ToSql};

use super::{
    comparison::{Comparison, orphans, seen_table, shared_table},
    failure::{Failure, of_comparison, stop},
    input::{Binding, Bindings, ImageRows, WriteInput},
    items::Item,
    origin::{has_numbers, source_key},
    passes::Pass,
    statement::{Builder, Part, is_marked},
    steps::Param,
    stretches::There,
};
use crate::{
    database::postgres::{Address, Options, PgError, Refusal, Session},
    model::{Plan, TableName, TargetTable, Version},
    snapshot::Digest,
    target::{
        ApplyError, Compared, Comparer, Difference, Doubt, Looked, Looks, RowEvent, Shared, Strayed, Stretch, Walk,
    },
};

/// Extra rows that are handed out at once, and that a part's range of keys may have before the table is walked
/// otherwise.
pub(super) const EXTRAS_MAX: usize = 10_000;

pub(super) const NUL: &str = "it holds a NUL byte";

/// Compares over a session of its own.
#[derive(Debug)]
pub struct PostgresComparer {
    pub(super) session: Session,
    pub(super) plans: Arc<[Plan]>,
    pub(super) pipeline: String,
    pub(super) looks: Looks,
    /// Under which what is found of rows is noted, while it is.
    number: Option<i64>,
    pub(super) bindings: Bindings,
    pub(super) statements: HashMap<String, Statement>,
    pub(super) passes: Vec<Pass>,
    /// What compares the table, in short.
    pub(super) made_by: String,
    /// The server has a hash of records.
    pub(super) hashes_records: bool,
}

impl PostgresComparer {
    /// Connects.
    ///
    /// # Errors
    /// When the server cannot be reached or refuses.
    pub async fn open(
        (target, options): (&Address, &Options),
        pipeline: &str,
        plans: Arc<[Plan]>,
        looks: Looks,
    ) -> Result<Self, ApplyError> {
        let session = Session::open(target, options).await.map_err(stop)?;
        // The last look for extra rows reads a whole table.
        session.client.batch_execute("SET statement_timeout = 0").await.map_err(|error| stop(error.into()))?;
        Ok(PostgresComparer {
            session,
            plans,
            pipeline: pipeline.to_owned(),
            looks,
            number: looks.notes_rows,
            bindings: Bindings::default(),
            statements: HashMap::new(),
            passes: Vec::new(),
            made_by: String::new(),
            hashes_records: false,
        })
    }

    pub(super) async fn query(&mut self, text: &str, params: &[Param<'_>]) -> Result<Vec<Row>, PgError> {
        let statement = match self.statements.get(text) {
            Some(known) => known.clone(),
            None => {
                let statement = self.session.client.prepare(text).await?;
                self.statements.insert(text.to_owned(), statement.clone());
                statement
            }
        };
        let params: Vec<&(dyn ToSql + Sync)> = params.iter().map(|param| param.as_ref() as _).collect();
        Ok(self.session.client.query(&statement, &params).await?)
    }

    pub(super) fn plan(&self, plan: usize) -> Result<&Plan, ApplyError> {
        self.plans.get(plan).ok_or(ApplyError::Contended)
    }

    /// The statement that `make` makes for a plan whose rows are bound so.
    pub(super) fn text(
        &self,
        binding: &Binding,
        make: impl Fn(&Comparison<'_>) -> String,
    ) -> Result<String, ApplyError> {
        let plan = self.plan(binding.plan)?;
        let (seen, shared) = (seen_table(binding.plan), shared_table(binding.plan));
        let marked = is_marked(plan.coverage, Part::Live);
        let comparison = Comparison {
            builder: Builder { plan, types: &binding.types, pipeline: &self.pipeline, replays: false },
            looks: self.looks,
            hashes_records: self.hashes_records,
            seen: &seen,
            shared: &shared,
            first: 2 + usize::from(marked) + usize::from(plan.is_owned()) + binding.types.len(),
        };
        Ok(make(&comparison))
    }

    /// How rows of the source's table, as the plan knows it, go into a plan.
    pub(super) fn own_binding(&self, plan: usize) -> Result<Binding, ApplyError> {
        let own = self.plan(plan)?;
        Binding::new(plan, own, &own.source, false)
    }

    /// What of an input goes into a plan.
    pub(super) fn images<'b>(&self, plan: usize, input: &'b WriteInput<'_>) -> Option<(Binding, &'b ImageRows)> {
        let of_plan = |place: &&usize| self.bindings.all.get(**place).is_some_and(|binding| binding.plan == plan);
        let place = input.groups.keys().find(of_plan)?;
        let binding = self.bindings.all.get(*place)?;
        Some((binding.clone(), &input.groups.get(place)?.live))
    }

    /// What a statement said of one row.
    pub(super) fn doubt(&self, binding: &Binding, row: &Row) -> Result<Doubt, ApplyError> {
        self.read(binding, row).map_err(|error| stop(error.into()))
    }

    fn read(&self, binding: &Binding, row: &Row) -> Result<Doubt, tokio_postgres::Error> {
        let difference = match row.try_get::<_, &str>(0)? {
            "missing" => Difference::Missing,
            "extra" => Difference::Extra,
            _ => Difference::Different,
        };
        let image: Option<i64> = row.try_get(1)?;
        let origin: Vec<Option<String>> = row.try_get(3)?;
        let columns: Vec<Option<String>> = row.try_get(4)?;
        let (ours, theirs): (Vec<Option<String>>, Vec<Option<String>>) = (row.try_get(5)?, row.try_get(6)?);
        let (mut names, mut values) = (Vec::new(), Vec::new());
        if difference == Difference::Different {
            for (place, name) in columns.into_iter().enumerate() {
                let Some(name) = name else { continue };
                names.push(name);
                if let (Some(ours), Some(theirs)) = (ours.get(place), theirs.get(place)) {
                    values.push((ours.clone(), theirs.clone()));
                }
            }
        }
        Ok(Doubt {
            plan: binding.plan,
            difference,
            key: row.try_get(2)?,
            row: image.and_then(|image| usize::try_from(image - 1).ok()),
            source_key: self.plans.get(binding.plan).and_then(|plan| source_key(plan, &binding.types, &origin)),
            columns: names,
            values,
            version: row.try_get(7)?,
            digest: row.try_get(8)?,
            reason: None,
        })
    }
}

#[async_trait]
impl Comparer for PostgresComparer {
    async fn begin(&mut self, table: &TableName, walk: Walk) -> Result<(), ApplyError> {
        self.passes.clear();
        let plans = Arc::clone(&self.plans);
        for (index, plan) in plans.iter().enumerate().filter(|(_, plan)| plan.source.table == *table) {
            let binding = self.own_binding(index)?;
            let walk = if has_numbers(plan, &binding.types) { walk } else { Walk::Seen };
            if walk == Walk::Seen {
                let create = self.text(&binding, |c| c.create_seen())?;
                self.session.client.batch_execute(&create).await.map_err(|error| stop(error.into()))?;
                // What was prepared for the table before it is for one that is gone.
                self.statements.clear();
            }
            let ended = plan.role.keeps();
            self.passes.push(Pass { plan: index, walk, lower: None, there: There::default(), analyzed: false, ended });
        }
        if self.is_ranged() {
            self.note_maker().await?;
        }
        Ok(())
    }

    async fn compare(&mut self, rows: &[RowEvent]) -> Result<Compared, ApplyError> {
        let (mut doubts, mut most, mut keys_shared) = (Vec::new(), 0, 0);
        for pass in 0..self.passes.len() {
            let Some(counts) = self.pass(pass, rows, &mut doubts).await? else { return Ok(Compared::Unordered) };
            most = most.max(counts.rows);
            keys_shared += counts.keys_shared;
        }
        // A contributor whose deletes are not followed leaves what it has filled.
        doubts.retain(|doubt| doubt.difference != Difference::Extra || !self.keeps(doubt.plan));
        let looked_at = if self.looks.sample.is_some() { most } else { rows.len() as u64 };
        let shared = if keys_shared > 0 { self.that_share(rows, false).await? } else { Vec::new() };
        Ok(Compared::Part { doubts, rows: looked_at, shared })
    }

    fn has_stretches(&self) -> bool {
        self.is_ranged()
    }

    fn end_stretch(&mut self) -> Option<Stretch> {
        self.stretch()
    }

    async fn is_as(&mut self, stretch: &Stretch) -> Result<bool, ApplyError> {
        self.stretch_is(stretch).await
    }

    async fn copied(&mut self, upper: &[String]) -> Result<Option<(Digest, Stretch)>, ApplyError> {
        self.copied_up_to(upper).await
    }

    fn pass_by(&mut self, stretch: &Stretch) {
        self.go_behind(stretch);
    }

    fn note_rows(&mut self, notes: bool) {
        self.looks.notes_rows = self.number.filter(|_| notes);
    }

    async fn extras(&mut self) -> Result<Vec<Doubt>, ApplyError> {
        self.page(None).await
    }

    async fn changed(&mut self, since: Version) -> Result<Vec<Doubt>, ApplyError> {
        self.page(Some(since)).await
    }

    async fn again(
        &mut self,
        table: &TableName,
        rows: &[RowEvent],
        keys: &[(usize, Vec<Option<String>>)],
        sources: &[String],
    ) -> Result<Looked, ApplyError> {
        self.look_again(table, rows, keys, sources).await
    }

    async fn note_shared(&mut self) -> Result<u64, ApplyError> {
        self.note_shared_keys().await
    }

    async fn shared(&mut self, rows: &[RowEvent], noted: bool) -> Result<Vec<Shared>, ApplyError> {
        self.that_share(rows, noted).await
    }

    async fn orphans(&mut self, tables: &[TableName]) -> Result<Vec<(String, u64)>, ApplyError> {
        let plans = Arc::clone(&self.plans);
        let plans = plans.iter().filter(|plan| tables.contains(&plan.source.table));
        let mut targets: Vec<&TargetTable> = plans.map(|plan| plan.target.as_ref()).collect();
        targets.sort_by(|a, b| a.name.cmp(&b.name));
        targets.dedup_by(|a, b| a.name == b.name);
        let mut found = Vec::new();
        for target in targets {
            for key in &target.foreign_keys {
                let rows = first_count(&self.query(&orphans(target, key), &[]).await.map_err(stop)?)?;
                found.push((format!("{} of {}", key.name, target.name), rows));
            }
        }
        Ok(found)
    }

    fn goes_back(&self, table: &TableName, back: &[Plan]) -> bool {
        self.comes_back(table, back)
    }

    async fn there_and_back(&mut self, rows: &[RowEvent], back: &[Plan]) -> Result<Vec<Strayed>, ApplyError> {
        self.stray(rows, back).await
    }

    async fn made(&mut self, rows: &[RowEvent]) -> Result<u64, ApplyError> {
        let mut made = 0;
        for plan in 0..self.plans.len() {
            if !self.keeps(plan) {
                made += self.count_made(plan, rows).await?;
            }
        }
        Ok(made)
    }

    async fn count(&mut self, table: &TableName) -> Result<u64, ApplyError> {
        let plans = Arc::clone(&self.plans);
        let mut rows = 0;
        let counts = |plan: &Plan| plan.source.table == *table && !plan.role.keeps();
        for (index, _) in plans.iter().enumerate().filter(|(_, plan)| counts(plan)) {
            let binding = self.own_binding(index)?;
            let text = self.text(&binding, |c| c.count())?;
            rows += first_count(&self.query(&text, &[]).await.map_err(stop)?)?;
        }
        Ok(rows)
    }
}

impl PostgresComparer {
    pub(super) fn keeps(&self, plan: usize) -> bool {
        self.plans.get(plan).is_some_and(|plan| plan.role.keeps())
    }

    /// How many rows a plan makes of these; those that cannot be transformed are found by halving.
    async fn count_made(&mut self, index: usize, rows: &[RowEvent]) -> Result<u64, ApplyError> {
        let plans = Arc::clone(&self.plans);
        let Some(plan) = plans.get(index) else { return Ok(0) };
        let (mut made, mut parts) = (0, vec![rows]);
        while let Some(rows) = parts.pop() {
            let items: Vec<Item<'_>> = rows.iter().map(Item::new).collect();
            let input = WriteInput::new(&plans, &mut self.bindings, &items)?;
            made += input.unsendable.len() as u64;
            let Some((binding, images)) = self.images(index, &input) else { continue };
            let text = self.text(&binding, |c| c.count_made())?;
            let params = input.params(plan, &binding, Part::Live, images);
            match self.query(&text, &params).await.map_err(of_comparison) {
                Ok(found) => made += first_count(&found)?,
                Err(Failure::Stop(error)) => return Err(error),
                Err(Failure::Rows(_)) if rows.len() > 1 => {
                    made -= input.unsendable.len() as u64;
                    let (first, second) = rows.split_at(rows.len() / 2);
                    parts.extend([second, first]);
                }
                Err(Failure::Rows(_)) => made += 1,
                Err(Failure::Clash | Failure::Unsendable | Failure::Reload) => return Err(ApplyError::Contended),
            }
        }
        Ok(made)
    }

    /// What the target says of a row that it refuses. Its own words may have values of the row in them.
    pub(super) fn said(&self, refusal: &Refusal) -> String {
        let sqlstate = &refusal.sqlstate;
        if self.looks.values {
            return format!("{} (SQLSTATE {sqlstate})", refusal.message);
        }
        format!("the target refuses it with SQLSTATE {sqlstate}; `--values` shows its words")
    }
}

/// What a statement's row of counts says.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counts {
    /// Rows that were looked at.
    pub rows: u64,
    /// Keys that more than one of the source's rows make.
    pub keys_shared: u64,
}

/// What an answer's row says of all rows, if it does.
pub(super) enum Summed {
    Rows(Counts),
    There(There),
}

pub(super) fn summed(row: &Row) -> Result<Option<Summed>, tokio_postgres::Error> {
    let kind: &str = row.try_get(0)?;
    match kind {
        "rows" => {
            let rows: Option<i64> = row.try_get(1)?;
            let keys_shared: i64 = row.try_get(7)?;
            let rows = rows.unwrap_or_default().unsigned_abs();
            Ok(Some(Summed::Rows(Counts { rows, keys_shared: keys_shared.unsigned_abs() })))
        }
        "there" => {
            let (rows, sum): (i64, Vec<String>) = (row.try_get(1)?, row.try_get(2)?);
            Ok(sum.first().and_then(|sum| There::of(rows, sum)).map(Summed::There))
        }
        _ => Ok(None),
    }
}

pub(super) fn first_count(answer: &[Row]) -> Result<u64, ApplyError> {
    let count = answer.first().map_or(Ok(0_i64), |row| row.try_get(0));
    count.map(i64::unsigned_abs).map_err(|error| stop(error.into()))
}

pub(super) fn refused(plan: usize, row: usize, reason: &str) -> Doubt {
    Doubt {
        plan,
        difference: Difference::Refused,
        key: Vec::new(),
        row: Some(row),
        source_key: None,
        columns: Vec::new(),
        values: Vec::new(),
        version: Version::MIN,
        digest: 0,
        reason: Some(reason.to_owned()),
    }
}

//! Comparing on PostgreSQL: passes over tables, their parts, and a second look.
//!
//! What enters is rows as records have them; the statements are [`Comparison`]'s. Rows that cannot be transformed are
//! found by halving, and are doubts of their own. The session holds a lock for as long as it compares: two that ask to
//! be alone refuse each other, and tombstones stay. Everything it writes is temporary.

use std::{collections::HashMap, sync::Arc};

use async_trait::async_trait;
use tokio_postgres::{Row, Statement, types::ToSql};

use super::{
    comparison::{Comparison, orphans, seen_table},
    failure::{Failure, of_comparison, stop},
    input::{Binding, Bindings, ImageRows, WriteInput},
    items::Item,
    origin::{has_numbers, source_key},
    passes::Pass,
    statement::{Builder, Part, is_marked},
    steps::Param,
};
use crate::{
    database::postgres::{Address, Options, PgError, Session},
    model::{Plan, TableName, TargetTable, Version},
    target::{ApplyError, Compared, Comparer, Difference, Doubt, Looks, RowEvent, Walk},
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
    pub(super) bindings: Bindings,
    pub(super) statements: HashMap<String, Statement>,
    pub(super) passes: Vec<Pass>,
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
            bindings: Bindings::default(),
            statements: HashMap::new(),
            passes: Vec::new(),
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

    fn plan(&self, plan: usize) -> Result<&Plan, ApplyError> {
        self.plans.get(plan).ok_or(ApplyError::Contended)
    }

    /// The statement that `make` makes for a plan whose rows are bound so.
    pub(super) fn text(
        &self,
        binding: &Binding,
        make: impl Fn(&Comparison<'_>) -> String,
    ) -> Result<String, ApplyError> {
        let plan = self.plan(binding.plan)?;
        let seen = seen_table(binding.plan);
        let marked = is_marked(plan.coverage, Part::Live);
        let comparison = Comparison {
            builder: Builder { plan, types: &binding.types, pipeline: &self.pipeline, replays: false },
            looks: self.looks,
            seen: &seen,
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
            self.passes.push(Pass { plan: index, walk, lower: None, analyzed: false, ended: plan.role.keeps() });
        }
        Ok(())
    }

    async fn compare(&mut self, rows: &[RowEvent]) -> Result<Compared, ApplyError> {
        let (mut doubts, mut most) = (Vec::new(), 0);
        for pass in 0..self.passes.len() {
            let Some(looked_at) = self.pass(pass, rows, &mut doubts).await? else { return Ok(Compared::Unordered) };
            most = most.max(looked_at);
        }
        // A contributor whose deletes are not followed leaves what it has filled.
        doubts.retain(|doubt| doubt.difference != Difference::Extra || !self.keeps(doubt.plan));
        let looked_at = if self.looks.sample.is_some() { most } else { rows.len() as u64 };
        Ok(Compared::Doubts(doubts, looked_at))
    }

    async fn extras(&mut self) -> Result<Vec<Doubt>, ApplyError> {
        self.page(None).await
    }

    async fn changed(&mut self, since: Version) -> Result<Vec<Doubt>, ApplyError> {
        self.page(Some(since)).await
    }

    async fn again(
        &mut self,
        rows: &[RowEvent],
        keys: &[(usize, Vec<Option<String>>)],
    ) -> Result<Vec<Doubt>, ApplyError> {
        let plans = Arc::clone(&self.plans);
        let items: Vec<Item<'_>> = rows.iter().map(Item::new).collect();
        let input = WriteInput::new(&plans, &mut self.bindings, &items)?;
        let nothing = ImageRows::default();
        let mut doubts = Vec::new();
        let mut wanted: Vec<usize> = keys.iter().map(|(plan, _)| *plan).collect();
        wanted.sort_unstable();
        wanted.dedup();
        for index in wanted {
            let Some(plan) = plans.get(index) else { continue };
            let (binding, images) = match self.images(index, &input) {
                Some(found) => found,
                None => (self.own_binding(index)?, &nothing),
            };
            let mut params = image_params(plan, &binding, &input, images);
            for column in 0..plan.target.key.len() {
                let own = keys.iter().filter(|(plan, key)| *plan == index && !key.is_empty());
                let texts: Vec<Option<String>> = own.map(|(_, key)| key.get(column).cloned().flatten()).collect();
                params.push(Box::new(texts));
            }
            let keeps = plan.role.keeps();
            let text = self.text(&binding, |c| c.given())?;
            match self.query(&text, &params).await.map_err(of_comparison) {
                Ok(found) => {
                    for row in &found {
                        let mut doubt = self.doubt(&binding, row)?;
                        doubt.row = doubt.row.and_then(|image| images.items.get(image)).copied();
                        if doubt.difference != Difference::Extra || !keeps {
                            doubts.push(doubt);
                        }
                    }
                }
                Err(Failure::Stop(error)) => return Err(error),
                Err(Failure::Rows(refusal)) if rows.len() == 1 => doubts.push(refused(index, 0, &refusal.to_string())),
                Err(Failure::Rows(_)) if rows.len() > 1 => {
                    return self.again_one_by_one(rows, keys).await;
                }
                Err(Failure::Rows(_) | Failure::Clash | Failure::Unsendable | Failure::Reload) => {
                    return Err(ApplyError::Contended);
                }
            }
        }
        doubts.extend(
            input
                .unsendable
                .iter()
                .flat_map(|row| keys.iter().take(1).map(|(plan, _)| refused(*plan, *row, "it holds a NUL byte"))),
        );
        Ok(doubts)
    }

    async fn orphans(&mut self) -> Result<Vec<(String, u64)>, ApplyError> {
        let plans = Arc::clone(&self.plans);
        let mut targets: Vec<&TargetTable> = plans.iter().map(|plan| plan.target.as_ref()).collect();
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

    async fn made(&mut self, rows: &[RowEvent]) -> Result<u64, ApplyError> {
        let plans = Arc::clone(&self.plans);
        let items: Vec<Item<'_>> = rows.iter().map(Item::new).collect();
        let input = WriteInput::new(&plans, &mut self.bindings, &items)?;
        let mut made = 0;
        for (index, plan) in plans.iter().enumerate().filter(|(_, plan)| !plan.role.keeps()) {
            let Some((binding, images)) = self.images(index, &input) else { continue };
            let text = self.text(&binding, |c| c.count_made())?;
            let params = image_params(plan, &binding, &input, images);
            made += first_count(&self.query(&text, &params).await.map_err(stop)?)?;
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
    fn keeps(&self, plan: usize) -> bool {
        self.plans.get(plan).is_some_and(|plan| plan.role.keeps())
    }

    /// The rows one by one where one of them cannot be transformed: what it had made is extra then, and it is told.
    async fn again_one_by_one(
        &mut self,
        rows: &[RowEvent],
        keys: &[(usize, Vec<Option<String>>)],
    ) -> Result<Vec<Doubt>, ApplyError> {
        let mut doubts: Vec<Doubt> = Vec::new();
        let mut good: Vec<RowEvent> = Vec::new();
        let mut places = Vec::new();
        let plans: Vec<(usize, Vec<Option<String>>)> = keys
            .iter()
            .map(|(plan, _)| (*plan, Vec::new()))
            .collect::<std::collections::BTreeSet<_>>()
            .into_iter()
            .collect();
        for (place, row) in rows.iter().enumerate() {
            let alone = Box::pin(self.again(std::slice::from_ref(row), &plans)).await?;
            let bad: Vec<Doubt> = alone.into_iter().filter(|doubt| doubt.difference == Difference::Refused).collect();
            if bad.is_empty() {
                good.push(row.clone());
                places.push(place);
            }
            doubts.extend(bad.into_iter().map(|doubt| Doubt { row: Some(place), ..doubt }));
        }
        let among = Box::pin(self.again(&good, keys)).await?;
        doubts.extend(among.into_iter().map(|doubt| {
            let row = doubt.row.and_then(|row| places.get(row)).copied();
            Doubt { row, ..doubt }
        }));
        Ok(doubts)
    }
}

/// How many rows were looked at, if that is what an answer's row says.
pub(super) fn counted(row: &Row) -> Result<Option<u64>, tokio_postgres::Error> {
    let is_count = row.try_get::<_, &str>(0)? == "rows";
    Ok(if is_count { row.try_get::<_, Option<i64>>(1)?.map(i64::unsigned_abs) } else { None })
}

fn first_count(answer: &[Row]) -> Result<u64, ApplyError> {
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
        reason: Some(reason.to_owned()),
    }
}

/// The parameters of the images.
pub(super) fn image_params<'b>(
    plan: &Plan,
    binding: &Binding,
    input: &'b WriteInput<'_>,
    images: &'b ImageRows,
) -> Vec<Param<'b>> {
    let mut params: Vec<Param<'b>> = vec![Box::new(&images.versions)];
    if is_marked(plan.coverage, Part::Live) {
        params.push(Box::new(&images.dead));
    }
    if plan.is_owned() {
        params.push(Box::new(input.owners(images)));
    }
    for column in &binding.columns {
        params.push(Box::new(input.column(images, *column)));
    }
    params
}

//! Looking at rows without leaving a trace: which of a set keep it out, and why.
//!
//! Each look is a savepoint that is taken back.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    PostgresSink,
    answers::Mark,
    failure::Failure,
    input::{BindingImages, ImageRows, WriteInput},
    items::Item,
    needs,
    statement::Part,
    steps::Steps,
};
use crate::database::postgres::PgError;

const BACK: &str = "ROLLBACK TO cutover_look; RELEASE cutover_look";

impl PostgresSink {
    /// Whether the statements of these items are refused without any row, too.
    pub(super) async fn fails_without_rows(&mut self, items: &[Item<'_>]) -> Result<bool, Failure> {
        let plans = self.plans.clone();
        let input = WriteInput::new(&plans, &mut self.bindings, items).map_err(Failure::Stop)?;
        self.session.client.batch_execute("SAVEPOINT cutover_look").await.map_err(PgError::from)?;
        let (none, mut fails) = (ImageRows::default(), false);
        'looked: for place in self.parents_first(&input) {
            for part in [Part::Dead, Part::Live] {
                let Some(statement) = self.write_statement(place, part).await? else { continue };
                let mut steps = Steps::default();
                steps.query(Mark::Done, statement, self.params(&input, place, part, &none));
                match steps.run(&self.session.client).await.map_err(Failure::from) {
                    Ok(_) => {}
                    Err(Failure::Stop(error)) => return Err(Failure::Stop(error)),
                    Err(Failure::Rows(_) | Failure::Clash | Failure::Unsendable | Failure::Reload) => {
                        fails = true;
                        break 'looked;
                    }
                }
            }
        }
        self.session.client.batch_execute(BACK).await.map_err(PgError::from)?;
        Ok(fails)
    }

    /// Whether the target has something newer for everything that a row's newest event would write: then it is no dead
    /// letter, however bad it is, because no later change of the row would come to clear it.
    pub(super) async fn is_late(&mut self, item: &Item<'_>) -> Result<bool, Failure> {
        let plans = self.plans.clone();
        let item = Item { parked: Vec::new(), without_before: true, ..item.clone() };
        let input = WriteInput::new(&plans, &mut self.bindings, std::slice::from_ref(&item)).map_err(Failure::Stop)?;
        let client = &self.session.client;
        client.batch_execute("SAVEPOINT cutover_look").await.map_err(PgError::from)?;
        let mut late = !input.groups.is_empty();
        for place in self.parents_first(&input) {
            let Some(images) = input.groups.get(&place).and_then(BindingImages::for_live) else { continue };
            let Some(statement) = self.write_statement(place, Part::Late).await? else { continue };
            let mut steps = Steps::default();
            steps.query(Mark::Done, statement, self.params(&input, place, Part::Late, images));
            match steps.run(&self.session.client).await.map_err(Failure::from) {
                Ok(answers) => late &= answers.iter().all(|(_, rows)| !rows.is_empty()),
                Err(Failure::Stop(error)) => return Err(Failure::Stop(error)),
                // Not even its key can be told.
                Err(Failure::Rows(_) | Failure::Clash | Failure::Unsendable | Failure::Reload) => late = false,
            }
            if !late {
                break;
            }
        }
        self.session.client.batch_execute(BACK).await.map_err(PgError::from)?;
        Ok(late)
    }

    /// The items whose target key another of them has as well; none if another row fails while looking.
    pub(super) async fn clashing(&mut self, items: &[Item<'_>], replace: bool) -> Result<BTreeSet<usize>, Failure> {
        let found = self.preview(items, replace, false, |_| vec![Part::Clashes]).await?;
        Ok(found.into_keys().collect())
    }

    /// The items that refer to a row which is neither there nor among them, each with the digest of what it needs; none
    /// if another row fails while looking.
    ///
    /// Where the keys are deferrable, everything is written before it is looked at: rows that refer to each other in a
    /// ring are then no orphans.
    pub(super) async fn orphans(&mut self, items: &[Item<'_>], replace: bool) -> Result<BTreeMap<usize, i64>, Failure> {
        let parts = |keys: usize| (0..keys).map(Part::Orphans).collect::<Vec<_>>();
        let mut found = self.preview(items, replace, true, parts).await?;
        if found.is_empty() {
            found = self.preview(items, replace, false, parts).await?;
        }
        Ok(found.into_iter().filter_map(|(item, needs)| Some((item, needs?))).collect())
    }

    /// As [`Self::find`], leaving no trace; nothing if another row fails while looking.
    async fn preview(
        &mut self,
        items: &[Item<'_>],
        replace: bool,
        written: bool,
        parts: impl Fn(usize) -> Vec<Part>,
    ) -> Result<BTreeMap<usize, Option<i64>>, Failure> {
        let client = &self.session.client;
        client.batch_execute("SAVEPOINT cutover_look; SET CONSTRAINTS ALL DEFERRED").await.map_err(PgError::from)?;
        let found = self.find(items, replace, written, parts).await;
        if let Err(Failure::Stop(error)) = found {
            return Err(Failure::Stop(error));
        }
        self.session.client.batch_execute(BACK).await.map_err(PgError::from)?;
        Ok(found.unwrap_or_default())
    }

    /// The items that the statements of these parts, for each binding, point at, once all of them are `written` or,
    /// parents first, before they are.
    async fn find(
        &mut self,
        items: &[Item<'_>],
        replace: bool,
        written: bool,
        parts: impl Fn(usize) -> Vec<Part>,
    ) -> Result<BTreeMap<usize, Option<i64>>, Failure> {
        let plans = self.plans.clone();
        let input = WriteInput::new(&plans, &mut self.bindings, items).map_err(Failure::Stop)?;
        let mut found = BTreeMap::new();
        let places = self.parents_first(&input);
        for place in places.iter().filter(|_| written) {
            self.write_live(&input, *place, replace).await?;
        }
        for place in places {
            let plan = self.bindings.all.get(place).and_then(|binding| plans.get(binding.plan));
            let Some(images) = input.groups.get(&place).and_then(BindingImages::for_live) else { continue };
            for part in parts(plan.map_or(0, |plan| plan.target.foreign_keys.len())) {
                for row in self.run_part(&input, place, part, images).await? {
                    let image: i64 = row.try_get(0).map_err(PgError::from)?;
                    let item = usize::try_from(image - 1).ok().and_then(|image| images.items.get(image));
                    let needs = match part {
                        Part::Orphans(key) => {
                            let text: String = row.try_get(1).map_err(PgError::from)?;
                            plan.and_then(|plan| plan.target.foreign_keys.get(key))
                                .map(|key| needs::of_child(key, &text))
                        }
                        Part::Dead
                        | Part::Gone
                        | Part::Replace
                        | Part::Live
                        | Part::Show
                        | Part::Unmatched
                        | Part::Clashes
                        | Part::Late => None,
                    };
                    found.extend(item.map(|item| (*item, needs)));
                }
            }
            if !written {
                if !found.is_empty() {
                    break;
                }
                // Later tables may refer to these rows.
                self.write_live(&input, place, replace).await?;
            }
        }
        Ok(found)
    }

    async fn write_live(&mut self, input: &WriteInput<'_>, place: usize, replace: bool) -> Result<(), Failure> {
        let Some(images) = input.groups.get(&place).and_then(BindingImages::for_live) else { return Ok(()) };
        let written: &[Part] = if replace { &[Part::Replace, Part::Live] } else { &[Part::Live] };
        for part in written {
            self.run_part(input, place, *part, images).await?;
        }
        Ok(())
    }

    /// Runs one part of a binding's work; what it answers, or nothing if the plan has no such part.
    async fn run_part(
        &mut self,
        input: &WriteInput<'_>,
        place: usize,
        part: Part,
        images: &ImageRows,
    ) -> Result<Vec<tokio_postgres::Row>, Failure> {
        let Some(statement) = self.write_statement(place, part).await? else { return Ok(Vec::new()) };
        let mut steps = Steps::default();
        steps.query(Mark::Done, statement, self.params(input, place, part, images));
        Ok(steps.run(&self.session.client).await?.into_iter().flat_map(|(_, rows)| rows).collect())
    }
}

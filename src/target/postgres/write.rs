//! The writes of rows: which statements a set of images takes, in which order, with which parameters.

use super::{
    PostgresSink,
    answers::Mark,
    failure::Failure,
    input::{BindingImages, ImageRows, WriteInput},
    statement::Part,
    steps::{Param, Steps},
};
use crate::{log::Topic, model::PlanRole, target::Pass};

impl PostgresSink {
    /// Queues the writes of all bindings: dead facts, children first, then live facts, parents first, then, of a copy,
    /// what filters leave out.
    pub(super) async fn queue_writes<'b>(
        &mut self,
        steps: &mut Steps<'b, Mark>,
        input: &'b WriteInput<'_>,
        replace: bool,
    ) -> Result<(), Failure> {
        let replaced: &[Part] = if replace { &[Part::Replace] } else { &[] };
        let parts = [&[Part::Dead, Part::Live, Part::Show, Part::Unmatched], replaced].concat();
        self.prepare_writes(input, &parts).await?;
        let places = self.parents_first(input);
        let mut queue = |place: usize, part: Part, images: Option<&'b ImageRows>| {
            if let (Some(statement), Some(images)) = (self.writes.get(&(place, part)), images) {
                let mark = Mark::Write(part, place, images.versions.len());
                let params = if part == Part::Show { Vec::new() } else { self.params(input, place, part, images) };
                steps.query(mark, statement.clone(), params);
            }
        };
        for place in places.iter().rev() {
            queue(*place, Part::Dead, input.groups.get(place).and_then(|group| self.for_dead(*place, group)));
            queue(*place, Part::Gone, input.groups.get(place).and_then(BindingImages::for_gone));
        }
        let live: &[Part] = match (self.replay, replace) {
            (Some(Pass::Deletes), _) => &[],
            (Some(Pass::Snapshot | Pass::Changes) | None, true) => &[Part::Replace, Part::Live],
            (Some(Pass::Snapshot | Pass::Changes) | None, false) => &[Part::Live],
        };
        for part in live {
            for place in &places {
                queue(*place, *part, input.groups.get(place).and_then(BindingImages::for_live));
            }
        }
        for place in &places {
            queue(*place, Part::Show, input.groups.get(place).map(|group| &group.live));
        }
        let copied = self.options.topic == Topic::Snapshot && !live.is_empty();
        for place in places.iter().rev().filter(|_| copied) {
            queue(*place, Part::Unmatched, input.groups.get(place).and_then(BindingImages::for_live));
        }
        Ok(())
    }

    /// Prepares the statements of these parts for every binding that needs them.
    async fn prepare_writes(&mut self, input: &WriteInput<'_>, parts: &[Part]) -> Result<(), Failure> {
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

    /// Bindings with parents first.
    pub(super) fn parents_first(&self, input: &WriteInput<'_>) -> Vec<usize> {
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
        input: &'b WriteInput<'_>,
        place: usize,
        part: Part,
        images: &'b ImageRows,
    ) -> Vec<Param<'b>> {
        let binding = self.bindings.all.get(place);
        match binding.and_then(|binding| Some((self.plans.get(binding.plan)?, binding))) {
            Some((plan, binding)) => input.params(plan, binding, part, images),
            None => vec![Box::new(&images.versions)],
        }
    }

    /// What a binding's statement of dead facts looks at: of a set also the images that are live, which have fewer rows
    /// than before, or none.
    fn for_dead<'b>(&self, place: usize, group: &'b BindingImages) -> Option<&'b ImageRows> {
        let plan = self.bindings.all.get(place).and_then(|binding| self.plans.get(binding.plan))?;
        match plan.role {
            PlanRole::Whole | PlanRole::Share(_) => group.for_dead(),
            PlanRole::Set { .. } => Some(&group.live).filter(|images| !images.versions.is_empty()),
        }
    }
}

//! Keys: how the target's follow from the source's.

use super::{Diagnostic, check::Checker, shape::QueryShape, subject::Subject};
use crate::model::{Column, Coverage, TableSchema};

impl Checker<'_> {
    /// The target's key must be there and follow from the source's.
    pub(super) fn key(
        &mut self,
        subject: &Subject<'_>,
        shape: &QueryShape,
        source: &TableSchema,
        names: &[String],
    ) -> Coverage {
        let target = &subject.target;
        self.whole_key(subject, shape, source, names);
        if target.key.is_empty() {
            let problem = Diagnostic::error(format!("the target table {} has no primary key", target.name));
            self.checked.problems.push(subject.problem(problem.hint("add one: deletes find their row by it"), 0));
        }
        let mut followed = true;
        for column in &target.key {
            let Some(index) = names.iter().position(|name| name == column) else {
                let problem = Diagnostic::error(format!("the target's key column `{column}` is not in the result"));
                self.checked.problems.push(subject.problem(problem.hint("add it to the SELECT"), 0));
                continue;
            };
            let sources = shape.sources_of(index);
            followed &= sources.is_some();
            let strange: Vec<&str> = sources
                .unwrap_or_default()
                .into_iter()
                .filter(|index| !source.key.contains(index))
                .filter_map(|index| source.columns.get(index))
                .map(|column| column.name.as_str())
                .collect();
            if !strange.is_empty() {
                followed = false;
                // A set is replaced as a whole, so that its rows may have any key.
                if shape.at_most_one_row() && subject.statement.directives.parent_key.is_none() {
                    let message = format!(
                        "the target's key column `{column}` depends on `{}`, which is not in the key of {}",
                        strange.join("`, `"),
                        source.table
                    );
                    let problem =
                        Diagnostic::error(message).hint("a delete must find its row by the source's key alone");
                    self.checked.problems.push(subject.problem(problem, subject.location(shape, index)));
                }
            }
        }
        for column in subject.statement.directives.parent_key.iter().flatten() {
            if !names.contains(column) {
                let problem = Diagnostic::error(format!("`parent_key` names `{column}`, which is not in the result"))
                    .hint("name result columns that are the source's key");
                self.checked.problems.push(subject.problem(problem, 0));
            }
        }
        match followed && subject.statement.directives.parent_key.is_none() {
            true if shape.exactly_one_row() => Coverage::Total,
            true if shape.at_most_one_row() => Coverage::Filter,
            true | false => Coverage::Partial,
        }
    }

    /// Two rows of the source must not be one at the target: where the target's key is made of a part of the source's
    /// key, they are. A filter by the rest may leave one of them only.
    fn whole_key(&mut self, subject: &Subject<'_>, shape: &QueryShape, source: &TableSchema, names: &[String]) {
        let target = &subject.target;
        if target.key.is_empty() || !shape.at_most_one_row() || subject.statement.directives.parent_key.is_some() {
            return;
        }
        let made_of = |column: &String| shape.sources_of(names.iter().position(|name| name == column)?);
        let Some(made_of) = target.key.iter().map(made_of).collect::<Option<Vec<_>>>() else { return };
        let made_of: Vec<usize> = made_of.into_iter().flatten().collect();
        let told = |place: &usize| made_of.contains(place) || shape.filters_by(*place);
        if made_of.iter().any(|place| !source.key.contains(place)) || source.key.iter().all(told) {
            return;
        }
        let spelled = |columns: &mut dyn Iterator<Item = &Column>| {
            columns.map(|column| format!("`{}`", column.name)).collect::<Vec<_>>().join(", ")
        };
        let rest = source.key.iter().filter(|place| !made_of.contains(place));
        let rest = spelled(&mut rest.filter_map(|place| source.columns.get(*place)));
        let message = format!(
            "the target's key ({}) is not made of the whole key of {} ({}): rows that differ in {rest} alone would be one row",
            target.key.join(", "),
            source.table,
            spelled(&mut source.key_columns()),
        );
        let hint = format!(
            "add {rest} to the SELECT and to the primary key of {}; or, if the rows with one value of it are all that is \
             meant, say so with WHERE",
            target.name
        );
        self.checked.problems.push(subject.problem(Diagnostic::error(message).hint(hint), 0));
    }
}

/// The places in `reads` of the source columns that the target's key (of a set: its parent's) is. They must be the
/// whole key of the source: of two source rows with one target key, the one that a filter leaves out says nothing about
/// the other.
pub(super) fn key_reads(
    subject: &Subject<'_>,
    shape: &QueryShape,
    source: &TableSchema,
    names: &[String],
    reads: &[String],
) -> Option<Vec<usize>> {
    let parent = subject.statement.directives.parent_key.as_ref();
    let place = |key: &String| {
        let result = names.iter().position(|name| name == key)?;
        let column = if parent.is_some() { shape.column_beside(result)? } else { shape.column_of(result)? };
        let name = &source.columns.get(column)?.name;
        reads.iter().position(|read| read == name)
    };
    let places: Vec<usize> = parent.unwrap_or(&subject.target.key).iter().map(place).collect::<Option<_>>()?;
    let whole = source.key_columns().all(|key| places.iter().any(|place| reads.get(*place) == Some(&key.name)));
    whole.then_some(places)
}

//! Second looks: at rows in doubt, and at rows of the source that make one target row.
//!
//! A look is a transaction that sees one moment of the target: its rows, their tombstones and versions, and what is
//! parked. Rows that cannot be transformed are found one by one, each a doubt of its own.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use super::{
    comparer::{NUL, PostgresComparer, first_count, refused},
    comparison::shared_table,
    failure::{Failure, of_comparison, stop},
    input::{ImageRows, WriteInput},
    items::Item,
    needs::digest_of,
    statement::Part,
    steps::Param,
};
use crate::{
    model::TableName,
    state::verifications::{PARKED, Parked, parked},
    target::{ApplyError, Difference, Doubt, Looked, RowEvent, Shared, Walk},
};

/// Keys that several rows of the source make, of which it is found out by which.
const SHARED_MAX: usize = 10_000;

/// A plan, and the key of a target row.
type Place = (usize, Vec<Option<String>>);

impl PostgresComparer {
    pub(super) async fn look_again(
        &mut self,
        table: &TableName,
        rows: &[RowEvent],
        keys: &[Place],
        sources: &[String],
    ) -> Result<Looked, ApplyError> {
        self.execute("BEGIN ISOLATION LEVEL REPEATABLE READ").await?;
        let looked = async {
            let Some(mut doubts) = self.look(rows, keys).await? else { return Ok(None) };
            // Nobody can say what should be there: such a row differs in the same way while the source's is the same.
            for doubt in doubts.iter_mut().filter(|doubt| doubt.difference == Difference::Refused) {
                doubt.digest = doubt.row.and_then(|row| rows.get(row)).map_or(0, |row| digest_of(&row.value));
            }
            Ok(Some(Looked { doubts, parked: self.parked(table, sources).await? }))
        };
        match looked.await {
            Ok(Some(looked)) => self.execute("COMMIT").await.map(|()| looked),
            Ok(None) => {
                self.execute("ROLLBACK").await?;
                self.look_one_by_one(table, rows, keys, sources).await
            }
            Err(error) => {
                // The session may be gone; the first error is the one that counts.
                let _ = self.execute("ROLLBACK").await;
                Err(error)
            }
        }
    }

    async fn execute(&self, sql: &str) -> Result<(), ApplyError> {
        self.session.client.batch_execute(sql).await.map_err(|error| stop(error.into()))
    }

    /// Which of the source's rows are parked, by the keys of their records.
    pub(in crate::target) async fn parked(
        &mut self,
        table: &TableName,
        sources: &[String],
    ) -> Result<HashMap<String, Parked>, ApplyError> {
        let params: [Param<'_>; 3] =
            [Box::new(self.pipeline.clone()), Box::new(table.to_string()), Box::new(sources.to_vec())];
        let found = self.query(PARKED, &params).await.map_err(stop)?;
        parked(&found).map_err(|error| stop(error.into()))
    }

    /// None if one of several rows cannot be transformed.
    async fn look(&mut self, rows: &[RowEvent], keys: &[Place]) -> Result<Option<Vec<Doubt>>, ApplyError> {
        let plans = Arc::clone(&self.plans);
        let items: Vec<Item<'_>> = rows.iter().map(Item::new).collect();
        let input = WriteInput::new(&plans, &mut self.bindings, &items)?;
        let (nothing, mut doubts) = (ImageRows::default(), Vec::new());
        let wanted: BTreeSet<usize> = keys.iter().map(|(plan, _)| *plan).collect();
        for index in wanted {
            let Some(plan) = plans.get(index) else { continue };
            let (binding, images) = match self.images(index, &input) {
                Some(found) => found,
                None => (self.own_binding(index)?, &nothing),
            };
            let mut params = input.params(plan, &binding, Part::Live, images);
            for column in 0..plan.target.key.len() {
                let own = keys.iter().filter(|(plan, key)| *plan == index && !key.is_empty());
                let texts: Vec<Option<String>> = own.map(|(_, key)| key.get(column).cloned().flatten()).collect();
                params.push(Box::new(texts));
            }
            let text = self.text(&binding, |c| c.given())?;
            self.execute("SAVEPOINT cutover_look").await?;
            match self.query(&text, &params).await.map_err(of_comparison) {
                Ok(found) => {
                    for row in &found {
                        let mut doubt = self.doubt(&binding, row)?;
                        doubt.row = doubt.row.and_then(|image| images.items.get(image)).copied();
                        if doubt.difference != Difference::Extra || !plan.role.keeps() {
                            doubts.push(doubt);
                        }
                    }
                }
                Err(Failure::Stop(error)) => return Err(error),
                Err(Failure::Rows(refusal)) if rows.len() == 1 => {
                    self.execute("ROLLBACK TO SAVEPOINT cutover_look").await?;
                    doubts.push(refused(index, 0, &self.said(&refusal)));
                }
                Err(Failure::Rows(_)) if rows.len() > 1 => return Ok(None),
                Err(Failure::Rows(_) | Failure::Clash | Failure::Unsendable | Failure::Reload) => {
                    return Err(ApplyError::Contended);
                }
            }
            doubts.extend(input.unsendable.iter().map(|row| refused(index, *row, NUL)));
        }
        Ok(Some(doubts))
    }

    /// The rows one by one where one of them cannot be transformed: what it had made is extra then, and it is told.
    async fn look_one_by_one(
        &mut self,
        table: &TableName,
        rows: &[RowEvent],
        keys: &[Place],
        sources: &[String],
    ) -> Result<Looked, ApplyError> {
        let (mut doubts, mut good, mut places) = (Vec::new(), Vec::new(), Vec::new());
        let plans: BTreeSet<Place> = keys.iter().map(|(plan, _)| (*plan, Vec::new())).collect();
        let plans: Vec<Place> = plans.into_iter().collect();
        for (place, row) in rows.iter().enumerate() {
            let alone = Box::pin(self.look_again(table, std::slice::from_ref(row), &plans, &[])).await?.doubts;
            let mut bad = alone.into_iter().filter(|doubt| doubt.difference == Difference::Refused).peekable();
            if bad.peek().is_none() {
                good.push(row.clone());
                places.push(place);
            }
            doubts.extend(bad.map(|doubt| Doubt { row: Some(place), ..doubt }));
        }
        let among = Box::pin(self.look_again(table, &good, keys, sources)).await?;
        doubts.extend(among.doubts.into_iter().map(|doubt| {
            let row = doubt.row.and_then(|row| places.get(row)).copied();
            Doubt { row, ..doubt }
        }));
        Ok(Looked { doubts, parked: among.parked })
    }

    pub(super) async fn note_shared_keys(&mut self) -> Result<u64, ApplyError> {
        let mut keys = 0;
        for (plan, walk) in self.passes.iter().map(|pass| (pass.plan, pass.walk)).collect::<Vec<_>>() {
            let binding = self.own_binding(plan)?;
            let create = self.text(&binding, |c| c.create_shared(walk == Walk::Seen, SHARED_MAX))?;
            self.execute(&create).await?;
            let count = format!("SELECT count(*) FROM {}", shared_table(plan));
            // What was prepared for the table before it is for one that is gone.
            self.statements.clear();
            keys += first_count(&self.query(&count, &[]).await.map_err(stop)?)?;
        }
        Ok(keys)
    }

    pub(super) async fn that_share(&mut self, rows: &[RowEvent], noted: bool) -> Result<Vec<Shared>, ApplyError> {
        let plans = Arc::clone(&self.plans);
        let mut found = Vec::new();
        for index in self.passes.iter().map(|pass| pass.plan).collect::<Vec<_>>() {
            let Some(plan) = plans.get(index) else { continue };
            let mut parts = vec![(0, rows.len())];
            while let Some((first, end)) = parts.pop() {
                let Some(part) = rows.get(first..end).filter(|part| !part.is_empty()) else { continue };
                let items: Vec<Item<'_>> = part.iter().map(Item::new).collect();
                let input = WriteInput::new(&plans, &mut self.bindings, &items)?;
                let Some((binding, images)) = self.images(index, &input) else { continue };
                let text = self.text(&binding, |c| c.that_share(noted, SHARED_MAX))?;
                let params = input.params(plan, &binding, Part::Live, images);
                match self.query(&text, &params).await.map_err(of_comparison) {
                    Ok(rows) => {
                        for row in &rows {
                            let (image, key) = shared_row(row).map_err(|error| stop(error.into()))?;
                            let row = image.and_then(|image| images.items.get(image)).map(|item| first + item);
                            found.extend(row.map(|row| Shared { plan: index, key, row }));
                        }
                    }
                    Err(Failure::Stop(error)) => return Err(error),
                    // One that cannot be transformed makes no row.
                    Err(Failure::Rows(_)) if part.len() > 1 => {
                        let middle = first + part.len() / 2;
                        parts.extend([(middle, end), (first, middle)]);
                    }
                    Err(Failure::Rows(_)) => {}
                    Err(Failure::Clash | Failure::Unsendable | Failure::Reload) => return Err(ApplyError::Contended),
                }
            }
        }
        Ok(found)
    }
}

/// The place of an image, and the key that it makes.
fn shared_row(row: &tokio_postgres::Row) -> Result<(Option<usize>, Vec<Option<String>>), tokio_postgres::Error> {
    let image: i64 = row.try_get(0)?;
    Ok((usize::try_from(image - 1).ok(), row.try_get(1)?))
}

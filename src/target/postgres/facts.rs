//! The statements of a plan whose rows end on another server: they answer facts in place of writing them.

use std::collections::BTreeMap;

use tokio_postgres::{Row, types::ToSql};

use super::{
    PostgresSink,
    answers::{Mark, add},
    failure::{Failure, stop},
    side_work,
    statement::{Builder, Part},
};
use crate::{
    database::postgres::{PgError, Session, sql},
    model::{Coverage, Plan, PlanColumn, TargetColumn},
    target::{
        ApplyError, Batch, Counts,
        rows::{Fact, FactKind, RowsError},
    },
};

/// µs of an interval; one of months or years, which have no length, as it is.
const MICROSECONDS: &str = "CASE WHEN extract(year FROM {}) = 0 AND extract(month FROM {}) = 0 \
                            THEN (extract(epoch FROM {}) * 1000000)::bigint::text ELSE {}::text END";

impl Builder<'_> {
    /// The statement that answers the facts of a part; none if there are none of that kind. Each has its version first.
    pub(super) fn facts(&self, part: Part) -> Option<String> {
        match part {
            Part::Dead => Some(self.answered(self.dead_facts())),
            Part::Gone => self.gone_facts().map(|facts| self.answered(facts)),
            Part::Live => Some(self.live_rows()),
            Part::Unmatched => self.copied_keys().map(|keys| {
                let facts = format!("f AS (SELECT {keys}, i.v AS cutover_v FROM {})", self.images(Part::Unmatched));
                self.answered((facts, "f"))
            }),
            Part::Clashes => Some(self.clashes()),
            Part::Replace | Part::Show | Part::Late | Part::Orphans(_) => None,
        }
    }

    fn answered(&self, (facts, from): (String, &str)) -> String {
        let text = |name: &String| {
            let column = self.plan.target.column(name)?;
            Some(text(&format!("f.{}", sql::ident(name)), column))
        };
        let keys: Vec<String> = self.plan.target.key.iter().filter_map(text).collect();
        format!("WITH {facts}\nSELECT f.cutover_v, {} FROM {from}", keys.join(", "))
    }

    fn live_rows(&self) -> String {
        match self.plan.coverage {
            Coverage::Total | Coverage::Filter => {
                format!("SELECT i.v, {}\nFROM {}", self.made_texts(), self.rows(Part::Live))
            }
            Coverage::Partial => format!(
                "WITH {}\nSELECT f.cutover_v, {} FROM f WHERE NOT cutover_dead",
                self.newest_rows(Part::Live),
                self.texts(|mapped| format!("f.{}", sql::ident(&mapped.name)))
            ),
        }
    }

    /// The statement that answers what is made of live images: the image's place, and the texts of the plan's columns.
    pub(super) fn made_facts(&self) -> String {
        format!("SELECT i.n, {}\nFROM {}", self.made_texts(), self.rows(Part::Live))
    }

    fn made_texts(&self) -> String {
        self.texts(|mapped| self.value(&mapped.name, mapped.cast.as_ref()))
    }

    /// The plan's columns as texts.
    fn texts(&self, value: impl Fn(&PlanColumn) -> String) -> String {
        let text = |mapped: &PlanColumn| Some(text(&value(mapped), self.plan.target.column(&mapped.name)?));
        self.plan.columns.iter().filter_map(text).collect::<Vec<_>>().join(", ")
    }
}

/// A value as text, of the type that the target's column is taken for.
fn text(value: &str, column: &TargetColumn) -> String {
    let cast = format!("{value}::{}", column.cast_sql);
    match column.cast_sql.as_str() {
        "bytea" => format!("pg_catalog.encode({cast}, 'hex')"),
        // With its fraction, which the column has no place for: who writes it says so.
        "smallint" | "integer" | "bigint" => format!("(({value})::text::numeric)::text"),
        "interval" => MICROSECONDS.replace("{}", &format!("({cast})")),
        _ => format!("({cast})::text"),
    }
}

impl PostgresSink {
    /// Whether rows end on another server.
    pub(super) fn is_elsewhere(&self) -> bool {
        self.rows.is_some()
    }

    /// Writes the facts that a batch's statements answered to where rows end, if that is another server.
    pub(super) async fn write_elsewhere(
        &mut self,
        answers: &[(Mark, Vec<Row>)],
        replace: bool,
        tables: &mut BTreeMap<String, Counts>,
    ) -> Result<(), Failure> {
        for (mark, answered) in answers {
            let (Mark::Write(part, place, _), Some(rows)) = (mark, self.rows.as_mut()) else { continue };
            let kind = match part {
                Part::Dead | Part::Gone => FactKind::Dead,
                Part::Live => FactKind::Live,
                Part::Unmatched => FactKind::Older,
                Part::Replace | Part::Show | Part::Clashes | Part::Late | Part::Orphans(_) => continue,
            };
            let Some(index) = self.bindings.all.get(*place).map(|binding| binding.plan) else { continue };
            let Some(plan) = self.plans.get(index) else { continue };
            let facts = answered.iter().map(fact).collect::<Result<Vec<_>, PgError>>()?;
            let counts = rows.write(plan, kind, facts, replace).await?;
            add(tables, self.name(index), counts);
        }
        Ok(())
    }

    /// Removes elsewhere what the TRUNCATEs of a batch have emptied.
    pub(super) async fn empty_elsewhere(&mut self, batch: &Batch) -> Result<(), Failure> {
        let Some(rows) = &mut self.rows else { return Ok(()) };
        for (schema, version) in batch.truncates() {
            let plans: Vec<&Plan> = self.plans.iter().filter(|plan| plan.source.table == schema.table).collect();
            rows.empty(&plans, version).await?;
        }
        Ok(())
    }

    /// Raises the fences of a batch's TRUNCATEs, for all to see before the rows elsewhere go: a writer of the copy that
    /// waits for these then leaves out what is older.
    pub(super) async fn fence_elsewhere(&self, batch: &Batch) -> Result<(), ApplyError> {
        if !self.is_elsewhere() || batch.truncates().next().is_none() {
            return Ok(());
        }
        let session = Session::open(&self.options.target, &self.options.session).await.map_err(stop)?;
        for (schema, version) in batch.truncates() {
            let source = schema.table.to_string();
            let params: [&(dyn ToSql + Sync); 3] = [&self.options.pipeline, &source, &version];
            session.client.execute(side_work::FENCE, &params).await.map_err(|error| stop(error.into()))?;
        }
        Ok(())
    }

    pub(super) async fn savepoint_elsewhere(&mut self, sql: &'static str) -> Result<(), ApplyError> {
        match &mut self.rows {
            Some(rows) => rows.savepoint(sql).await,
            None => Ok(()),
        }
    }

    pub(super) async fn roll_back_elsewhere(&mut self) {
        if let Some(rows) = &mut self.rows {
            rows.roll_back().await;
        }
    }
}

fn fact(row: &Row) -> Result<Fact, PgError> {
    let values = (1..row.len()).map(|column| row.try_get(column)).collect::<Result<_, _>>()?;
    Ok(Fact { version: row.try_get(0)?, values })
}

impl From<RowsError> for Failure {
    fn from(error: RowsError) -> Self {
        match error {
            RowsError::Row(refusal) => Failure::Rows(refusal),
            RowsError::Stop(error) => Failure::Stop(error),
        }
    }
}

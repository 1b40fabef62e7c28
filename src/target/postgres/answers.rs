//! What the server answered to a batch's statements.

use std::collections::BTreeMap;

use tokio_postgres::Row;

use super::{PostgresSink, failure::Failure, statement::Part};
use crate::{database::postgres::PgError, target::Counts};

/// By what an answer is known.
#[derive(Debug, Clone, Copy)]
pub enum Mark {
    /// An answer that says nothing.
    Done,
    /// No row: the lane is another worker's.
    Lane,
    /// The newest dead letter.
    Parked,
    /// How many waiting rows a batch frees.
    Freed,
    /// A write of a binding: which part, and how many images it was given.
    Write(Part, usize, usize),
}

impl PostgresSink {
    /// Reads the answers of a batch's statements.
    pub(super) fn read_answers(&self, answers: &[(Mark, Vec<Row>)]) -> Result<BTreeMap<String, Counts>, Failure> {
        let mut tables = BTreeMap::new();
        for (mark, rows) in answers {
            match mark {
                Mark::Done | Mark::Freed => {}
                Mark::Lane if rows.is_empty() => return Err(Failure::Stop(self.fenced())),
                Mark::Lane => {}
                // Facts, which are written elsewhere.
                Mark::Write(..) if self.is_elsewhere() => {}
                Mark::Parked => {
                    let newest: i64 = read(rows, 0)?;
                    if newest != self.parked.mark {
                        return Err(Failure::Reload);
                    }
                }
                Mark::Write(Part::Dead | Part::Gone, place, _) => {
                    let counts = Counts { deleted: number(rows, 1)?, ..Counts::default() };
                    add(&mut tables, self.target_of(*place), counts);
                }
                Mark::Write(Part::Live | Part::Show, place, given) => {
                    let (inserted, updated) = (number(rows, 0)?, number(rows, 1)?);
                    if number(rows, 2)? > 0 {
                        return Err(Failure::Clash);
                    }
                    let facts = read::<Option<i64>>(rows, 3)?;
                    let facts = facts.map_or(*given as u64, |facts| facts.unsigned_abs());
                    let stale = facts.saturating_sub(inserted + updated + self.held(*place, rows)?);
                    add(&mut tables, self.target_of(*place), Counts { inserted, updated, stale, ..Counts::default() });
                }
                Mark::Write(Part::Unmatched, place, _) => {
                    let counts = Counts { deleted: number(rows, 0)?, ..Counts::default() };
                    add(&mut tables, self.target_of(*place), counts);
                }
                Mark::Write(Part::Replace | Part::Clashes | Part::Late | Part::Orphans(_), _, _) => {}
            }
        }
        Ok(tables)
    }

    fn target_of(&self, place: usize) -> String {
        self.bindings.all.get(place).map(|binding| self.name(binding.plan)).unwrap_or_default()
    }
}

fn read<'r, T: tokio_postgres::types::FromSql<'r>>(rows: &'r [Row], column: usize) -> Result<T, PgError> {
    let row = rows.first().ok_or_else(|| PgError::Protocol("a statement answered without a row".into()))?;
    Ok(row.try_get(column)?)
}

fn number(rows: &[Row], column: usize) -> Result<u64, PgError> {
    Ok(read::<i64>(rows, column)?.unsigned_abs())
}

/// How many waiting rows a batch frees.
pub fn freed(answers: &[(Mark, Vec<Row>)]) -> Result<u64, PgError> {
    let mut freed = 0;
    for (mark, rows) in answers {
        match mark {
            Mark::Freed => freed += number(rows, 0)?,
            Mark::Done | Mark::Lane | Mark::Parked | Mark::Write(..) => {}
        }
    }
    Ok(freed)
}

/// Adds counts up by table.
pub fn add(tables: &mut BTreeMap<String, Counts>, table: String, counts: Counts) {
    let sum = tables.entry(table).or_default();
    sum.inserted += counts.inserted;
    sum.updated += counts.updated;
    sum.deleted += counts.deleted;
    sum.stale += counts.stale;
}

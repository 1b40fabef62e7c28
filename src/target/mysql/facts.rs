//! Writing facts: lock the keys, decide, remove, insert, update.
//!
//! A row that is spelled otherwise than a fact's key is another's, so that its key is taken, and the fact waits.

use super::{
    errors::{TAKEN, of_row},
    keys::{Key, Place, is_same, pieces},
    literal::literal,
    rows::MysqlRows,
    tables::Table,
};
use crate::{
    database::{mysql::connect::quoted, postgres::Refusal},
    model::{Column, Plan, TableName, Version},
    target::{
        ApplyError, Counts,
        rows::{Fact, FactKind, RowsError},
    },
};

/// A fact with what the target has of its key, which is locked.
struct Met<'a> {
    fact: &'a Fact,
    key: Key,
    /// The version of the row, or of its delete.
    known: Option<Version>,
    there: bool,
}

impl MysqlRows {
    /// Writes facts of one kind.
    pub(super) async fn write_facts(
        &mut self,
        plan: &Plan,
        kind: FactKind,
        mut facts: Vec<Fact>,
        replace: bool,
    ) -> Result<Counts, RowsError> {
        let tables = self.tables.clone();
        let table = tables.get(&plan.target.name)?;
        let places = key_places(plan, table, kind);
        // Two writers that lock in one order wait for each other less often in a ring.
        facts.sort_by(|a, b| {
            places.iter().map(|place| a.values.get(*place)).cmp(places.iter().map(|place| b.values.get(*place)))
        });
        let mut counts = Counts::default();
        let replaced = if replace && kind == FactKind::Live && covers(plan, table) {
            self.make_room(table, &places, &facts).await?
        } else {
            0
        };
        for facts in groups(&facts, &places) {
            let met = self.meet(table, &places, kind, facts).await?;
            match kind {
                FactKind::Live => self.write_live(plan, table, met, &mut counts).await?,
                FactKind::Dead | FactKind::Older => self.write_dead(table, kind, met, &mut counts).await?,
            }
        }
        counts.inserted = counts.inserted.saturating_sub(replaced);
        counts.updated += replaced;
        Ok(counts)
    }

    /// Removes what is older than `version` from a table, the rows that cutover never wrote among it: up to so many
    /// rows; how many.
    pub(super) async fn remove_older(
        &mut self,
        name: &TableName,
        version: Version,
        rows_max: u64,
    ) -> Result<u64, RowsError> {
        let tables = self.tables.clone();
        let table = tables.get(name)?;
        let newer = format!(
            "SELECT 1 FROM {} s WHERE {} AND s.`cutover_version` >= {version}",
            table.side(),
            table.same_key(&table.sql())
        );
        // What comes later and is older is kept out by the source table's fence.
        let removed = self
            .session()?
            .execute(&format!("DELETE FROM {} WHERE NOT EXISTS ({newer}) LIMIT {rows_max}", table.sql()))
            .await?;
        if removed < rows_max {
            let forget = format!("DELETE FROM {} WHERE `cutover_version` < {version}", table.side());
            self.session()?.execute(&forget).await?;
        }
        Ok(removed)
    }

    /// Removes the rows that live facts replace, all of them before any is written again; how many.
    async fn make_room(&mut self, table: &Table, places: &[usize], facts: &[Fact]) -> Result<u64, RowsError> {
        let mut removed = 0;
        for facts in groups(facts, places) {
            let met = self.meet(table, places, FactKind::Live, facts).await?;
            let keys: Vec<&Key> = met.iter().filter(|met| met.there && !met.is_stale()).map(|met| &met.key).collect();
            removed += self.delete(table, &keys).await?;
        }
        Ok(removed)
    }

    /// Locks what the target has of these facts' keys.
    async fn meet<'a>(
        &mut self,
        table: &Table,
        places: &[usize],
        kind: FactKind,
        facts: &'a [Fact],
    ) -> Result<Vec<Met<'a>>, RowsError> {
        let (mut keyed, mut keys) = (Vec::with_capacity(facts.len()), Vec::with_capacity(facts.len()));
        for fact in facts {
            match (key(table, places, fact), kind) {
                (Ok(key), _) => {
                    keyed.push(fact);
                    keys.push(key);
                }
                (Err(error), FactKind::Live) => return Err(error),
                // No row has such a key, and none will.
                (Err(_), FactKind::Dead | FactKind::Older) => {}
            }
        }
        let known = self.session()?.find(table, Place::Side, &keys, true).await?;
        let rows = self.session()?.find(table, Place::Table, &keys, true).await?;
        let met = keyed.into_iter().zip(keys).zip(known).zip(rows).map(|(((fact, key), known), row)| {
            let version = |found: Vec<String>| found.last().and_then(|text| text.parse().ok()).unwrap_or_default();
            let there = row.is_some_and(|stored| is_same(table, &stored, &key.spelled));
            Met { fact, key, known: known.map(version), there }
        });
        Ok(met.collect())
    }

    async fn write_dead(
        &mut self,
        table: &Table,
        kind: FactKind,
        met: Vec<Met<'_>>,
        counts: &mut Counts,
    ) -> Result<(), RowsError> {
        let keeps = |met: &&Met<'_>| {
            let older = |known: Version| known < met.fact.version;
            match kind {
                FactKind::Older => !met.known.map_or(met.there, older),
                FactKind::Dead | FactKind::Live => met.is_stale(),
            }
        };
        let dead: Vec<&Met<'_>> = met.iter().filter(|met| !keeps(met)).collect();
        self.note(table, &dead, true).await?;
        let keys: Vec<&Key> = dead.iter().filter(|met| met.there).map(|met| &met.key).collect();
        counts.deleted += self.delete(table, &keys).await?;
        Ok(())
    }

    async fn write_live(
        &mut self,
        plan: &Plan,
        table: &Table,
        met: Vec<Met<'_>>,
        counts: &mut Counts,
    ) -> Result<(), RowsError> {
        let (stale, live): (Vec<&Met<'_>>, Vec<&Met<'_>>) = met.iter().partition(|met| met.is_stale());
        counts.stale += stale.len() as u64;
        self.note(table, &live, false).await?;
        let columns: Vec<&Column> = plan.columns.iter().filter_map(|column| table.column(&column.name)).collect();
        let (there, absent): (Vec<&Met<'_>>, Vec<&Met<'_>>) = live.into_iter().partition(|met| met.there);
        let names: Vec<String> = columns.iter().map(|column| quoted(&column.name)).collect();
        let insert = format!("INSERT INTO {} ({}) VALUES ", table.sql(), names.join(", "));
        self.session()?.send(&insert, "", rows_of(&columns, &absent)?).await?;
        counts.inserted += absent.len() as u64;
        let update = self.session()?.on_duplicate(&names);
        self.session()?.send(&insert, &update, rows_of(&columns, &there)?).await?;
        counts.updated += there.len() as u64;
        Ok(())
    }

    /// Notes the versions of these facts. Keys that are known are locked; who inserts one that is not known has it.
    async fn note(&mut self, table: &Table, met: &[&Met<'_>], gone: bool) -> Result<(), RowsError> {
        let names: Vec<String> = table.key_columns().map(|column| quoted(&column.name)).collect();
        let names: Vec<String> =
            names.into_iter().chain(["`cutover_version`", "`cutover_gone`"].map(str::to_owned)).collect();
        let insert = format!("INSERT INTO {} ({}) VALUES ", table.side(), names.join(", "));
        let row = |met: &&&Met<'_>| {
            let version = met.fact.version;
            let gone = if gone { version.to_string() } else { "NULL".into() };
            format!("({}, {version}, {gone})", met.key.side.join(", "))
        };
        let (known, new): (Vec<&&Met<'_>>, Vec<&&Met<'_>>) = met.iter().partition(|met| met.known.is_some());
        let update = self.session()?.on_duplicate(&names);
        self.session()?.send(&insert, &update, known.iter().map(row).collect()).await?;
        match self.session()?.send(&insert, "", new.iter().map(row).collect()).await {
            Err(RowsError::Row(refusal)) if refusal.sqlstate == TAKEN => {
                let keys: Vec<&Key> = new.iter().map(|met| &met.key).collect();
                Err(self.why_known(table, &keys, refusal).await?)
            }
            other => other,
        }
    }

    /// Why keys that were not known could not be noted.
    async fn why_known(&mut self, table: &Table, keys: &[&Key], refusal: Box<Refusal>) -> Result<RowsError, RowsError> {
        for key in keys {
            let found = self.session()?.find(table, Place::Side, std::slice::from_ref(*key), true).await?;
            if found.into_iter().flatten().next().is_some() {
                // Another writer was first: its version decides.
                let message = "another writer of these keys was first".to_owned();
                return Ok(RowsError::Stop(ApplyError::Transient { sqlstate: "40001".into(), message }));
            }
        }
        // Two of them are one key to the server.
        Ok(RowsError::Row(refusal))
    }

    async fn delete(&mut self, table: &Table, keys: &[&Key]) -> Result<u64, RowsError> {
        if keys.is_empty() {
            return Ok(0);
        }
        let condition = Place::Table.condition(table, keys);
        self.session()?.execute(&format!("DELETE t FROM {} t{} WHERE {condition}", table.sql(), table.by_key())).await
    }
}

impl Met<'_> {
    /// Whether the target has something newer.
    fn is_stale(&self) -> bool {
        self.known.is_some_and(|known| known > self.fact.version)
    }
}

/// The values of these facts, as rows of an INSERT.
fn rows_of(columns: &[&Column], met: &[&Met<'_>]) -> Result<Vec<String>, RowsError> {
    let row = |met: &&Met<'_>| {
        let values = columns.iter().zip(&met.fact.values).map(|(column, value)| literal(column, value.as_deref()));
        let values = values.collect::<Result<Vec<_>, _>>().map_err(unfit)?;
        Ok(format!("({})", values.join(", ")))
    };
    met.iter().map(row).collect()
}

/// Facts whose keys go into one statement.
fn groups<'a>(facts: &'a [Fact], places: &[usize]) -> Vec<&'a [Fact]> {
    pieces(facts, |fact| places.iter().filter_map(|place| fact.values.get(*place)?.as_ref()).map(String::len).sum())
}

/// Where a fact has the values of its key.
fn key_places(plan: &Plan, table: &Table, kind: FactKind) -> Vec<usize> {
    let keys = table.key_columns();
    match kind {
        FactKind::Dead | FactKind::Older => keys.enumerate().map(|(place, _)| place).collect(),
        FactKind::Live => {
            let place = |key: &Column| plan.columns.iter().position(|column| column.name == key.name);
            keys.filter_map(place).collect()
        }
    }
}

fn key(table: &Table, places: &[usize], fact: &Fact) -> Result<Key, RowsError> {
    let texts = places.iter().map(|place| fact.values.get(*place).and_then(Option::as_deref));
    Key::of(table, texts).map_err(unfit)
}

/// Whether a plan fills every column of its target that can be filled, so that a row may be removed and written anew.
fn covers(plan: &Plan, table: &Table) -> bool {
    let filled = |column: &&Column| plan.columns.iter().any(|other| other.name == column.name);
    table.columns.iter().filter(|column| !column.generated).all(|column| filled(&column))
}

pub(super) fn unfit(reason: String) -> RowsError {
    RowsError::Row(of_row("22008", reason))
}

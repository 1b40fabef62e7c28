//! Writing facts: lock the keys, decide, remove, insert, update.
//!
//! Texts that a collation takes for one key are keys of their own to cutover: each has its versions, and a row that is
//! spelled otherwise is another's, so that its key is taken, and a fact of it waits.

use std::collections::HashMap;

use mysql_async::{Row, Value};

use super::{
    errors::{TAKEN, TOO_LARGE, of_row},
    literal::{is_text, key_expression, key_literal, literal, side_expression, side_literal, spelled},
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

/// Keys that are locked by one statement. MariaDB makes a subquery of a list of 1,000, and 5.7 scans the table where
/// its ranges take too much memory.
const KEYS_AT_ONCE: usize = 500;
/// Bytes of the keys of one statement, which has each of them four times as long at most.
const KEY_BYTES: usize = 128 << 10;

/// A fact's key.
struct Key {
    /// By column, as SQL.
    literals: Vec<String>,
    /// The same, of the side table.
    side: Vec<String>,
    /// By column, in the spelling that both sides share.
    spelled: Vec<String>,
}

/// One of the two tables in which a key is looked up.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Table,
    Side,
}

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
        for facts in pieces(&facts, &places) {
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
        let removed =
            self.execute(&format!("DELETE FROM {} WHERE NOT EXISTS ({newer}) LIMIT {rows_max}", table.sql())).await?;
        if removed < rows_max {
            let forget = format!("DELETE FROM {} WHERE `cutover_version` < {version}", table.side());
            self.execute(&forget).await?;
        }
        Ok(removed)
    }

    /// Removes the rows that live facts replace, all of them before any is written again; how many.
    async fn make_room(&mut self, table: &Table, places: &[usize], facts: &[Fact]) -> Result<u64, RowsError> {
        let mut removed = 0;
        for facts in pieces(facts, places) {
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
        let known = self.lock(table, Place::Side, &keys).await?;
        let rows = self.lock(table, Place::Table, &keys).await?;
        let met = keyed.into_iter().zip(keys).zip(known).zip(rows).map(|(((fact, key), known), row)| {
            let version = |found: Vec<String>| found.last().and_then(|text| text.parse().ok()).unwrap_or_default();
            let there = row.is_some_and(|stored| is_same(table, &stored, &key.spelled));
            Met { fact, key, known: known.map(version), there }
        });
        Ok(met.collect())
    }

    /// Locks the rows that have these keys, and reads of each its key, and of the side table its version behind it.
    async fn lock(&mut self, table: &Table, place: Place, keys: &[Key]) -> Result<Vec<Option<Vec<String>>>, RowsError> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let name = |column: &Column| format!("t.{}", quoted(&column.name));
        let names: Vec<String> = match place {
            Place::Table => table.key_columns().map(|column| key_expression(column, &name(column))).collect(),
            Place::Side => table
                .key_columns()
                .map(|column| side_expression(column, &name(column)))
                .chain(["t.`cutover_version`".to_owned()])
                .collect(),
        };
        let from = match place {
            Place::Table => format!("{} t{}", table.sql(), table.by_key()),
            Place::Side => format!("{} t FORCE INDEX (PRIMARY)", table.side()),
        };
        let names = names.join(", ");
        let select =
            |keys: &[&Key]| format!("SELECT {names} FROM {from} WHERE {} FOR UPDATE", condition(table, place, keys));
        let read = |row: Row| -> (Vec<String>, Vec<String>) {
            let texts: Vec<String> = row.unwrap().into_iter().map(text).collect();
            let spelled = table.key_columns().zip(&texts).map(|(column, text)| spelled(column, text)).collect();
            (spelled, texts)
        };
        let all: Vec<&Key> = keys.iter().collect();
        let mut rows: HashMap<Vec<String>, Vec<String>> =
            self.rows(&select(&all)).await?.into_iter().map(read).collect();
        let mut found: Vec<Option<Vec<String>>> = keys.iter().map(|key| rows.remove(&key.spelled)).collect();
        if rows.is_empty() {
            return Ok(found);
        }
        // Rows that spell their keys in another way: the server says whose they are.
        for (slot, key) in found.iter_mut().zip(keys) {
            if slot.is_none() {
                let row = self.rows(&select(&[key])).await?.into_iter().next();
                *slot = row.map(|row| read(row).1);
            }
        }
        Ok(found)
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
        self.send(&insert, "", rows_of(&columns, &absent)?).await?;
        counts.inserted += absent.len() as u64;
        let update = self.on_duplicate(&names);
        self.send(&insert, &update, rows_of(&columns, &there)?).await?;
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
        let update = self.on_duplicate(&names);
        self.send(&insert, &update, known.iter().map(row).collect()).await?;
        match self.send(&insert, "", new.iter().map(row).collect()).await {
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
            let found = self.lock(table, Place::Side, std::slice::from_ref(*key)).await?;
            if found.into_iter().flatten().next().is_some() {
                // Another writer was first: its version decides.
                let message = "another writer of these keys was first".to_owned();
                return Ok(RowsError::Stop(ApplyError::Transient { sqlstate: "40001".into(), message }));
            }
        }
        // Two of them are one key to the server.
        Ok(RowsError::Row(refusal))
    }

    /// What makes an INSERT of rows that are there, and locked, write over them.
    fn on_duplicate(&self, names: &[String]) -> String {
        let set: Vec<String> = names
            .iter()
            .map(|name| {
                if self.names_values {
                    format!("{name} = cutover_new.{name}")
                } else {
                    format!("{name} = VALUES({name})")
                }
            })
            .collect();
        let alias = if self.names_values { " AS cutover_new" } else { "" };
        format!("{alias} ON DUPLICATE KEY UPDATE {}", set.join(", "))
    }

    async fn delete(&mut self, table: &Table, keys: &[&Key]) -> Result<u64, RowsError> {
        if keys.is_empty() {
            return Ok(0);
        }
        let condition = condition(table, Place::Table, keys);
        self.execute(&format!("DELETE t FROM {} t{} WHERE {condition}", table.sql(), table.by_key())).await
    }

    /// Sends rows, as many in a statement as it may have.
    async fn send(&mut self, before: &str, after: &str, rows: Vec<String>) -> Result<(), RowsError> {
        let own = before.len() + after.len();
        let mut sql = String::new();
        for row in rows {
            if own + row.len() > self.packet_bytes {
                let message = "the row is larger than the server's max_allowed_packet";
                return Err(RowsError::Row(of_row(TOO_LARGE, message)));
            }
            if !sql.is_empty() && sql.len() + row.len() + after.len() > self.statement_bytes {
                self.execute(&format!("{sql}{after}")).await?;
                sql.clear();
            }
            sql.push_str(if sql.is_empty() { before } else { ", " });
            sql.push_str(&row);
        }
        if !sql.is_empty() {
            sql.push_str(after);
            self.execute(&sql).await?;
        }
        Ok(())
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
fn pieces<'a>(facts: &'a [Fact], places: &[usize]) -> Vec<&'a [Fact]> {
    let bytes = |fact: &Fact| -> usize {
        places.iter().filter_map(|place| fact.values.get(*place)?.as_ref()).map(String::len).sum()
    };
    let (mut pieces, mut rest) = (Vec::new(), facts);
    while !rest.is_empty() {
        let mut room = KEY_BYTES;
        let fits = |fact: &&Fact| {
            let fits = room > 0;
            room = room.saturating_sub(bytes(fact));
            fits
        };
        let length = rest.iter().take(KEYS_AT_ONCE).take_while(fits).count();
        let (piece, others) = rest.split_at(length);
        pieces.push(piece);
        rest = others;
    }
    pieces
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
    let mut key = Key { literals: Vec::new(), side: Vec::new(), spelled: Vec::new() };
    for (column, place) in table.key_columns().zip(places) {
        let text = fact.values.get(*place).and_then(Option::as_deref);
        key.literals.push(key_literal(column, text).map_err(unfit)?);
        key.side.push(side_literal(column, text).map_err(unfit)?);
        key.spelled.push(text.map(|text| spelled(column, text)).unwrap_or_default());
    }
    Ok(key)
}

/// The rows `t` that have one of these keys.
fn condition(table: &Table, place: Place, keys: &[&Key]) -> String {
    let literals = |key: &&Key| match place {
        Place::Table => key.literals.clone(),
        Place::Side => key.side.clone(),
    };
    let names: Vec<String> = table.key_columns().map(|column| format!("t.{}", quoted(&column.name))).collect();
    if let [name] = names.as_slice() {
        let values: Vec<String> = keys.iter().flat_map(literals).collect();
        return format!("{name} IN ({})", values.join(", "));
    }
    let one = |key: &&Key| {
        let same = names.iter().zip(literals(key)).map(|(name, value)| format!("{name} = {value}"));
        format!("({})", same.collect::<Vec<_>>().join(" AND "))
    };
    keys.iter().map(one).collect::<Vec<_>>().join(" OR ")
}

/// Whether a stored key, as it was read, is spelled as a fact's, in the columns whose collation may take others for
/// equal.
fn is_same(table: &Table, stored: &[String], fact: &[String]) -> bool {
    let mut columns = table.key_columns().zip(stored).zip(fact);
    columns.all(|((column, stored), fact)| !is_text(column) || spelled(column, stored) == *fact)
}

/// Whether a plan fills every column of its target that can be filled, so that a row may be removed and written anew.
fn covers(plan: &Plan, table: &Table) -> bool {
    let filled = |column: &&Column| plan.columns.iter().any(|other| other.name == column.name);
    table.columns.iter().filter(|column| !column.generated).all(|column| filled(&column))
}

fn text(value: Value) -> String {
    match value {
        Value::Bytes(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Value::NULL => String::new(),
        other => other.as_sql(true),
    }
}

fn unfit(reason: String) -> RowsError {
    RowsError::Row(of_row("22008", reason))
}

//! `cutover verify` beside the worker: while everything is written and goes wrong, and when all is calm.
//!
//! It is the command's own code, `control::verifying`, in a process of its own with the models for its parts. While
//! the run is under way nothing has drifted, so that whoever says so has raised a false alarm. At the end somebody
//! writes to the target behind cutover's back: these rows are found, no others are, and a repair brings them back.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use cutover::{
    control::verifying::{Unverified, Verification},
    verify::{Ask, Verdict},
};
use tokio::{sync::Notify, task::JoinSet};

use super::{
    chance::{Chance, Fault},
    postgres::Value,
    source::{Key, watched},
    target,
    worker::Models,
    world::World,
};

/// How long whoever compares rests, at most.
const REST: Duration = Duration::from_secs(1);
/// How long a comparison may go on after the worker has settled.
const ENDS_WITHIN: Duration = Duration::from_secs(300);
/// How often, a second apart, the last comparison is begun before it says something of every table: a replay or a copy
/// may not be over.
const ATTEMPTS_MAX: u32 = 120;
/// Rows that are spoilt, at most.
const SPOILT_MAX: u64 = 5;

/// What comparisons came to.
#[derive(Debug, Default, Clone)]
pub struct Verified {
    /// Those that had a verdict, and those that had none.
    pub verdicts: u64,
    pub without: u64,
    /// Tables that were compared, and rows.
    pub tables: u64,
    pub rows: u64,
    /// Rows that could not be called equal, and were no drift.
    pub unproven: u64,
    /// Rows that were spoilt, and found.
    pub found: u64,
}

impl Verified {
    pub fn add(&mut self, other: &Verified) {
        self.verdicts += other.verdicts;
        self.without += other.without;
        self.tables += other.tables;
        self.rows += other.rows;
        self.unproven += other.unproven;
        self.found += other.found;
    }

    fn count(&mut self, verdict: &Verdict) {
        self.verdicts += 1;
        for table in verdict.tables.iter().filter(|table| table.skipped.is_none()) {
            self.tables += 1;
            self.rows += table.rows;
            self.unproven += table.unproven();
        }
    }
}

impl fmt::Display for Verified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Verified { verdicts, without, tables, rows, unproven, found } = self;
        write!(
            f,
            "verified {verdicts} times ({without} without a verdict), {tables} tables with {rows} rows, {unproven} unproven, \
             {found} spoilt rows found"
        )
    }
}

fn ask() -> Ask {
    Ask { values: true, ..Ask::default() }
}

/// `cutover verify`
async fn compared(world: &Arc<World>) -> Result<(Verification, Verdict), Unverified> {
    let (models, ask) = (Models::that_verify(world), ask());
    let verification = Box::pin(Verification::over(&models, &world.config, &ask)).await?;
    let verdict = Box::pin(verification.run(&ask, &|_| {})).await?;
    Ok((verification, verdict))
}

/// Somebody who compares again and again while the run is under way.
pub struct Comparing {
    tasks: JoinSet<()>,
    over: Arc<Notify>,
    verified: Arc<Mutex<Verified>>,
}

impl Comparing {
    pub fn begin(world: &Arc<World>) -> Self {
        let (world, over, verified) = (Arc::clone(world), Arc::new(Notify::new()), Arc::<Mutex<Verified>>::default());
        let mut tasks = JoinSet::new();
        let (told, ended) = (Arc::clone(&verified), Arc::clone(&over));
        tasks.spawn(async move {
            loop {
                tokio::select! { biased; () = ended.notified() => return, () = world.chance.sleep(REST) => {} }
                let compared = compared(&world).await;
                let mut verified = told.lock().unwrap();
                match compared {
                    Ok((_, verdict)) => {
                        world.chance.note(format!("verified: {}", spelled(&verdict)));
                        verified.count(&verdict);
                        if !may_have_drifted(&world.chance) {
                            let alarms = drifted(&verdict);
                            world
                                .oracle
                                .hold(alarms.is_empty(), || format!("verify calls drift what is none: {alarms:?}"));
                        }
                    }
                    Err(error) => {
                        world.chance.note(format!("not verified: {error}"));
                        verified.without += 1;
                    }
                }
            }
        });
        Comparing { tasks, over, verified }
    }

    /// Lets the last comparison come to its end.
    pub async fn end(mut self, world: &World) -> Verified {
        self.over.notify_one();
        let ended = async { while self.tasks.join_next().await.is_some() {} };
        let ended = tokio::time::timeout(ENDS_WITHIN, ended).await;
        world.oracle.hold(ended.is_ok(), || format!("a comparison has not ended {ENDS_WITHIN:?} after all was calm"));
        self.tasks.shutdown().await;
        self.verified.lock().unwrap().clone()
    }
}

/// Whether the target may have what its source does not: transactions that a failover has lost, until their tables
/// are copied again.
fn may_have_drifted(chance: &Chance) -> bool {
    chance.struck().contains_key(&Fault::FailoverWithLoss)
}

/// A row of the target: its table, and its key.
type Place = (String, Vec<Option<String>>);

/// The rows that a verdict calls drift, each with what is wrong with it.
fn drifted(verdict: &Verdict) -> BTreeMap<Place, String> {
    let tables = verdict.tables.iter().filter(|table| table.skipped.is_none());
    let rows = tables.flat_map(|table| &table.drift);
    let rows = rows.filter(|row| ["missing", "extra", "different"].contains(&row.kind.as_str()));
    let found: BTreeMap<Place, String> =
        rows.map(|row| ((row.target.clone(), row.key.clone()), row.kind.clone())).collect();
    found
}

fn spelled(verdict: &Verdict) -> String {
    let tables = verdict.tables.iter().map(|table| match &table.skipped {
        Some(why) => format!("{}: {why}", table.table),
        None => format!(
            "{}: {} rows, {} drifted, {} explained, {} unconfirmed, {} moving {:?}",
            table.table,
            table.rows,
            table.drifted(),
            table.explained,
            table.unconfirmed,
            table.moving,
            table.drift
        ),
    });
    tables.collect::<Vec<_>>().join("; ")
}

/// All is calm, and both sides are equal. Somebody spoils rows of the target: exactly these are found, and repaired.
pub async fn spoilt(world: &Arc<World>, verified: &mut Verified) -> Result<(), String> {
    let spoilt = Spoiler::new(world).spoil();
    let (verification, verdict) = settled(world).await?;
    verified.count(&verdict);
    let found = drifted(&verdict);
    hold(found == spoilt, || format!("spoilt were {spoilt:?}, and verify found {found:?}: {}", spelled(&verdict)))?;
    verified.found += found.len() as u64;
    only_letters(world, &verdict)?;
    if found.is_empty() {
        return Ok(());
    }
    let repaired = Box::pin(verification.repair(&ask(), verdict)).await;
    let repaired = repaired.map_err(|error| format!("not repaired: {error}"))?;
    world.chance.note(format!("repaired: {}", spelled(&repaired)));
    let left = drifted(&repaired);
    hold(left.is_empty(), || format!("after a repair verify still finds {left:?}"))?;
    let count: u64 = repaired.tables.iter().map(|table| table.repaired).sum();
    if count == spoilt.len() as u64 {
        return only_letters(world, &repaired);
    }
    // A parent's delete waits for those of its children, which were sent after it.
    for _ in 0..ATTEMPTS_MAX {
        if world.oracle.waiting(&world.postgres) == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let (_, again) = settled(world).await?;
    let left = drifted(&again);
    hold(left.is_empty(), || format!("{count} rows were repaired, and then verify finds {left:?}"))?;
    only_letters(world, &again)
}

fn hold(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what()) }
}

/// A comparison that says something of every table.
async fn settled(world: &Arc<World>) -> Result<(Verification, Verdict), String> {
    let mut last = String::new();
    for _ in 0..ATTEMPTS_MAX {
        match compared(world).await {
            Ok((verification, verdict)) => {
                world.chance.note(format!("verified: {}", spelled(&verdict)));
                if verdict.tables.iter().all(|table| table.skipped.is_none()) {
                    return Ok((verification, verdict));
                }
                last = spelled(&verdict);
            }
            Err(error) => last = error.to_string(),
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    Err(format!("no verdict though all is calm: {last}"))
}

/// What is not drift, and not equal either, is a dead letter.
fn only_letters(world: &World, verdict: &Verdict) -> Result<(), String> {
    // A row may have several, of different versions.
    let letters: BTreeSet<String> = world.oracle.dead_letters(&world.postgres).into_iter().collect();
    let letters = letters.len() as u64;
    let explained: u64 = verdict.tables.iter().map(|table| table.explained).sum();
    let unproven: u64 = verdict.tables.iter().map(|table| table.unproven()).sum();
    hold(explained == letters && unproven == letters && verdict.caveat.is_none(), || {
        format!("{letters} dead letters explain the rest, and not: {} {:?}", spelled(verdict), verdict.caveat)
    })
}

/// Writes to the target behind cutover's back, and keeps to its constraints.
struct Spoiler<'a> {
    world: &'a World,
    /// The keys of notes that the target refuses: nothing is said of these rows.
    refused: Vec<Key>,
    spoilt: BTreeMap<Place, String>,
}

type Rows = BTreeMap<Key, Vec<Value>>;

impl<'a> Spoiler<'a> {
    fn new(world: &'a World) -> Self {
        Spoiler { world, refused: target::refused(&world.source.newest()), spoilt: BTreeMap::new() }
    }

    fn spoil(mut self) -> BTreeMap<Place, String> {
        for _ in 0..self.world.chance.number(0..SPOILT_MAX + 1) {
            let tables = watched(&self.world.chance);
            let table = tables[self.world.chance.number(0..tables.len() as u64) as usize];
            match self.world.chance.number(0..3) {
                0 => self.change(table),
                1 => self.delete(table),
                _ => self.insert(table),
            }
        }
        self.spoilt
    }

    /// The target's rows, with their versions as the last column.
    fn rows(&self, table: &str) -> Rows {
        let rows = self.world.postgres.rows(&format!("public.{table}")).into_iter();
        let whole = |(key, (others, version)): (Vec<Value>, (Vec<Value>, i64))| {
            let numbers: Key = key.iter().map(Value::int).collect();
            (numbers, [key, others, vec![Value::Int(version)]].concat())
        };
        rows.map(whole).collect()
    }

    fn place(table: &str, key: &Key) -> Place {
        (format!("public.{table}"), key.iter().map(|number| Some(number.to_string())).collect())
    }

    fn write(&mut self, table: &str, key: &Key, row: Option<Vec<Value>>, kind: &str) {
        let place = Self::place(table, key);
        if self.spoilt.contains_key(&place) {
            return;
        }
        let keys: Vec<Value> = key.iter().map(|number| Value::Int(*number)).collect();
        if self.world.postgres.spoil(&place.0, &keys, row.clone()) {
            self.world.chance.note(format!("spoilt: {table} {key:?} {kind}: {row:?}"));
            self.spoilt.insert(place, kind.to_owned());
        }
    }

    /// Any row of the table that may be spoilt.
    fn any(&self, rows: Rows, table: &str) -> Option<(Key, Vec<Value>)> {
        let mut rows: Vec<(Key, Vec<Value>)> = rows.into_iter().collect();
        rows.retain(|(key, _)| table != "notes" || !self.refused.contains(key));
        let place = self.world.chance.number(0..rows.len().max(1) as u64) as usize;
        rows.into_iter().nth(place)
    }

    /// Another value in the last column, which no constraint is about, or of a user in the unique one.
    fn change(&mut self, table: &str) {
        let Some((key, mut row)) = self.any(self.rows(table), table) else { return };
        let column = if table == "users" && self.world.chance.likely(0.5) { 1 } else { 2 };
        row[column] = match &row[column] {
            Value::Int(number) => Value::Int(number + 1000),
            Value::Text(text) => Value::text(format!("{text} spoilt")),
            Value::Null => Value::Int(-1),
            other => panic!("{other:?} is of no simulated type"),
        };
        self.write(table, &key, Some(row), "different");
    }

    /// A user is deleted only if no item refers to it.
    fn delete(&mut self, table: &str) {
        let mut rows = self.rows(table);
        if table == "users" {
            let parents: BTreeSet<i64> = self.rows("items").values().map(|item| item[1].int()).collect();
            rows.retain(|key, _| !parents.contains(&key[0]));
        }
        if let Some((key, _)) = self.any(rows, table) {
            self.write(table, &key, None, "missing");
        }
    }

    /// A row with a key that the target does not have: above, below, or of a row that a filter hides.
    fn insert(&mut self, table: &str) {
        let (chance, there) = (&self.world.chance, self.rows(table));
        let hidden = self.world.source.newest().of(table);
        let mut keys: Vec<Key> = hidden.into_keys().filter(|key| !there.contains_key(key)).collect();
        keys.retain(|key| table != "notes" || !self.refused.contains(key));
        let (high, low) = (1_000_000 + chance.number(0..100).cast_signed(), -1 - chance.number(0..100).cast_signed());
        let width = if table == "notes" { 2 } else { 1 };
        keys.extend([vec![high; width], vec![low; width]]);
        let key = keys.swap_remove(chance.number(0..keys.len() as u64) as usize);
        let number = Value::Int(chance.number(0..50).cast_signed());
        let row = match table {
            "users" => vec![Value::Int(key[0]), Value::text(format!("extra {}", key[0])), number],
            "notes" => vec![Value::Int(key[0]), Value::Int(key[1]), Value::text("extra")],
            "items" => {
                let users: Vec<Key> = self.rows("users").into_keys().collect();
                if users.is_empty() {
                    return;
                }
                let user = users[chance.number(0..users.len() as u64) as usize][0];
                vec![Value::Int(key[0]), Value::Int(user), number]
            }
            _ => vec![Value::Int(key[0]), number.clone(), number],
        };
        self.write(table, &key, Some([row, vec![Value::Int(0)]].concat()), "extra");
    }
}

//! What the statements mean that compare a target table with what the source's rows would make of it.
//!
//! Both sides meet in one statement and so at one snapshot, as on the server. Known are those of tables whose keys are
//! whole numbers, which is what the simulator's tables have: such a table is walked by ranges of its keys, so that no
//! key is ever noted beside it, and what is kept in temporary tables stays empty.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use cutover::{
    model::Plan,
    target::{
        Looks,
        postgres::{Builder, Comparison, orphans_statement, seen_table, shared_table, tombstone_table},
    },
};

use super::{
    Postgres,
    exec::{Exec, Stop},
    plan::{Fact, Part, PlanStatement},
    recognise::{between, column_type, normalise},
    session::Answer,
    state::fence,
    store::TableId,
    table::{ModelTable, integer},
    value::{Param, Row, Type, Value},
};

/// Extra rows that are told at a time, and keys that several rows make, as the product asks for them.
const TOLD_MAX: usize = 10_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    /// Rows of the source beside a range of keys.
    Ranged { has_lower: bool },
    /// Rows of the source, and these keys.
    Given,
    /// What is there above a key, or at all.
    Extras { has_lower: bool },
    /// What is there of a range of keys, in short.
    There { has_lower: bool },
    /// Which rows of the source make a key that another one makes too.
    Shared,
    /// How many keys were noted as made by several; none ever is.
    CountShared,
    /// How many rows have no parent by the foreign key of this number.
    Orphans(usize),
}

/// A statement that compares for one plan.
#[derive(Debug)]
pub struct Comparing {
    plan: PlanStatement,
    look: Look,
    /// The values of columns that differ are told, too.
    values: bool,
}

/// A row of the target with its version.
type There = (Vec<Value>, Row);
/// A column that differs, what the source's row makes of it, and what is there.
type Beside = (String, Value, Value);

impl Comparing {
    /// The statement of this text; none if it is none of the plan's.
    pub fn find(text: &str, place: usize, model: &ModelTable, pg: &Postgres) -> Option<Self> {
        let plan = &model.plan;
        let made = |look, types, pipeline, values| {
            let (target, tombstones) = (plan.target.name.to_string(), tombstone_table(&plan.target.name).to_string());
            let (target, tombstones) = (pg.table_id(&target), pg.table_id(&tombstones));
            let plan =
                PlanStatement { model: place, part: Part::Live, marked: false, types, pipeline, target, tombstones };
            Comparing { plan, look, values }
        };
        if text == format!("SELECT count(*) FROM {}", shared_table(place)) {
            return Some(made(Look::CountShared, Vec::new(), String::new(), false));
        }
        for (number, key) in plan.target.foreign_keys.iter().enumerate() {
            if normalise(text) == normalise(&orphans_statement(&plan.target, key)) {
                return Some(made(Look::Orphans(number), Vec::new(), String::new(), false));
            }
        }
        if let Some(look) = Self::there_of(text, place, plan) {
            return Some(made(look, Vec::new(), String::new(), false));
        }
        let pipeline = between(text, ".pipeline = '", "' AND")?.replace("''", "'");
        // A statement that takes no rows of the source shows no types of their columns.
        let types = (0..plan.reads.len()).map(|column| column_type(text, column)).collect::<Option<Vec<_>>>();
        let types = types.unwrap_or_default();
        let (seen, shared) = (seen_table(place), shared_table(place));
        for values in [false, true] {
            let comparison = Comparison {
                builder: Builder { plan, types: &types, pipeline: &pipeline, replays: false },
                looks: Looks { values, ..Looks::default() },
                hashes_records: false,
                seen: &seen,
                shared: &shared,
                first: 2 + types.len(),
            };
            let known = [
                (Look::Ranged { has_lower: false }, comparison.ranged(false)),
                (Look::Ranged { has_lower: true }, comparison.ranged(true)),
                (Look::Given, comparison.given()),
                (Look::Extras { has_lower: false }, comparison.extras(false, false, TOLD_MAX)),
                (Look::Extras { has_lower: true }, comparison.extras(false, true, TOLD_MAX)),
                (Look::Shared, comparison.that_share(false, TOLD_MAX)),
            ];
            if let Some((look, _)) = known.into_iter().find(|(_, known)| *known == text) {
                return Some(made(look, types.clone(), pipeline.clone(), values));
            }
        }
        None
    }

    /// Whether the statement asks what is there of a range of keys.
    fn there_of(text: &str, place: usize, plan: &Plan) -> Option<Look> {
        let (seen, shared) = (seen_table(place), shared_table(place));
        let comparison = Comparison {
            builder: Builder { plan, types: &[], pipeline: "", replays: false },
            looks: Looks::default(),
            hashes_records: false,
            seen: &seen,
            shared: &shared,
            first: 1,
        };
        [false, true]
            .into_iter()
            .find(|has_lower| comparison.there(*has_lower) == text)
            .map(|has_lower| Look::There { has_lower })
    }

    pub fn name(&self) -> &'static str {
        match self.look {
            Look::Ranged { .. } => "compare range",
            Look::Given => "compare again",
            Look::Extras { .. } => "compare extras",
            Look::There { .. } => "compare digests",
            Look::Shared => "shared keys",
            Look::CountShared => "count shared keys",
            Look::Orphans(_) => "count orphans",
        }
    }

    pub fn params(&self, plan: &Plan) -> Vec<Type> {
        let keys = plan.target.key.len();
        let mut params = Vec::new();
        if matches!(self.look, Look::Ranged { .. } | Look::Given | Look::Shared) {
            params.push(Type::Int8s);
            params.extend(vec![Type::Texts; self.plan.types.len()]);
        }
        match self.look {
            Look::Ranged { has_lower } => {
                params.extend(vec![Type::Text; if has_lower { 2 * keys } else { keys }]);
                params.push(Type::Int8);
            }
            Look::There { has_lower } => params.extend(vec![Type::Text; if has_lower { 2 * keys } else { keys }]),
            Look::Given => params.extend(vec![Type::Texts; keys]),
            Look::Extras { has_lower } => params.extend(vec![Type::Text; if has_lower { keys } else { 0 }]),
            Look::Shared | Look::CountShared | Look::Orphans(_) => {}
        }
        params
    }

    pub fn columns(&self) -> Vec<Type> {
        match self.look {
            Look::Ranged { .. } | Look::Given | Look::Extras { .. } => {
                let mut columns = vec![Type::Text, Type::Int8];
                columns.extend(vec![Type::Texts; 5]);
                columns.extend([Type::Int8, Type::Int8]);
                columns
            }
            Look::There { .. } => vec![Type::Int8, Type::Text],
            Look::Shared => vec![Type::Int8, Type::Texts],
            Look::CountShared | Look::Orphans(_) => vec![Type::Int8],
        }
    }

    pub fn run(&self, exec: &Exec<'_>, params: &[Param]) -> Result<Answer, Stop> {
        let rest = &params[params.len().min(1 + self.plan.types.len())..];
        let keys = self.plan.model(exec).plan.target.key.len();
        match self.look {
            Look::Ranged { has_lower } => {
                let (lower, upper) = if has_lower { rest.split_at(keys) } else { rest.split_at(0) };
                let (lower, most) = (has_lower.then(|| bound(lower)), rest.last().map_or(0, Param::int));
                let upper = bound(&upper[..keys]);
                let made = self.made(exec, params)?;
                let there = self.there(exec, |key| lower.as_ref().is_none_or(|lower| key > lower) && *key <= upper);
                let (rows, shared) = (made.len(), shared(&made).len());
                let (there_rows, there_sum) = digest(exec, &there);
                let mut told = self.told(exec, made, there);
                told.truncate(usize::try_from(most).unwrap_or(usize::MAX));
                told.push(counted(rows, shared));
                let mut last = vec![Value::text("there"), there_rows, Value::Texts(vec![Some(there_sum.into())])];
                last.extend(vec![Value::Texts(Vec::new()); 4]);
                last.extend([Value::Int(0), Value::Int(0)]);
                told.push(last);
                Ok(Answer::rows(told))
            }
            Look::There { has_lower } => {
                let (lower, upper) = if has_lower { params.split_at(keys) } else { params.split_at(0) };
                let (lower, upper) = (has_lower.then(|| bound(lower)), bound(upper));
                let there = self.there(exec, |key| lower.as_ref().is_none_or(|lower| key > lower) && *key <= upper);
                let (rows, sum) = digest(exec, &there);
                Ok(Answer::row(vec![rows, Value::text(sum)]))
            }
            Look::Given => {
                let made = self.made(exec, params)?;
                let mut wanted: BTreeSet<Vec<Value>> = made.iter().map(|(_, fact)| fact.key.clone()).collect();
                for place in 0..rest.first().map_or(0, |column| column.texts().len()) {
                    wanted.insert(rest.iter().map(|column| number(column.texts()[place].as_ref())).collect());
                }
                let there = self.there(exec, |key| wanted.contains(key));
                Ok(Answer::rows(self.told(exec, made, there)))
            }
            Look::Extras { has_lower } => {
                let lower = has_lower.then(|| bound(params));
                let there = self.there(exec, |key| lower.as_ref().is_none_or(|lower| key > lower));
                let mut told = self.told(exec, Vec::new(), there);
                told.truncate(TOLD_MAX);
                // Nothing is said of columns where only keys are listed.
                told.iter_mut().for_each(|row| row[4..7].fill(Value::Texts(Vec::new())));
                Ok(Answer::rows(told))
            }
            Look::Shared => {
                let made = self.made(exec, params)?;
                let shared = shared(&made);
                let made = made.iter().filter(|(_, fact)| shared.contains(&fact.key));
                Ok(Answer::rows(made.map(|(place, fact)| vec![Value::Int(*place), texts(&fact.key)]).collect()))
            }
            Look::CountShared => Ok(Answer::row(vec![Value::Int(0)])),
            Look::Orphans(place) => Ok(self.orphans(exec, place)),
        }
    }

    /// What the source's rows make, with the places of those rows.
    fn made(&self, exec: &Exec<'_>, params: &[Param]) -> Result<Vec<(i64, Fact)>, Stop> {
        let images = self.plan.images(exec, &params[..1 + self.plan.types.len()]);
        Ok(self.plan.facts(exec, &images.iter().collect::<Vec<_>>(), true)?)
    }

    /// The target's rows of some keys, in the order of their keys.
    fn there(&self, exec: &Exec<'_>, wanted: impl Fn(&Vec<Value>) -> bool) -> BTreeMap<Vec<Value>, Row> {
        let key = {
            let store = exec.pg.store();
            store.tables[self.plan.target].shape.key.clone()
        };
        let keyed = |row: Row| -> There { (key.iter().map(|place| row[*place].clone()).collect(), row) };
        let rows = exec.rows(self.plan.target, |_| true).into_iter().map(keyed);
        rows.filter(|(key, _)| wanted(key)).collect()
    }

    /// Of two sides what differs: (difference, image, key, origin, columns, what is made, what is there, version,
    /// digest).
    fn told(&self, exec: &Exec<'_>, made: Vec<(i64, Fact)>, mut there: BTreeMap<Vec<Value>, Row>) -> Vec<Vec<Value>> {
        let mut told = Vec::new();
        let mut met = BTreeSet::new();
        for (place, fact) in &made {
            let row = there.get(&fact.key);
            met.insert(fact.key.clone());
            let columns = self.compared(exec, Some(fact), row);
            if row.is_none() || columns.iter().any(|(_, ours, theirs)| ours != theirs) {
                let kind = if row.is_some() { "different" } else { "missing" };
                told.push(self.said(exec, (kind, Some(*place)), &fact.key, &columns, row));
            }
        }
        if exec.pg.weakness().verify_forgets_extras {
            return told;
        }
        there.retain(|key, _| !met.contains(key));
        for (key, row) in &there {
            let columns = self.compared(exec, None, Some(row));
            told.push(self.said(exec, ("extra", None), key, &columns, Some(row)));
        }
        told
    }

    /// The columns but the key: what is made, and what is there.
    fn compared(&self, exec: &Exec<'_>, made: Option<&Fact>, there: Option<&Row>) -> Vec<Beside> {
        let plan = &self.plan.model(exec).plan;
        let columns = plan.columns.iter().enumerate().filter(|(_, column)| !plan.target.key.contains(&column.name));
        let store = exec.pg.store();
        let shape = &store.tables[self.plan.target].shape;
        let compared = columns.map(|(place, column)| {
            let ours = made.map_or(Value::Null, |fact| fact.values[place].clone());
            let theirs = there.map_or(Value::Null, |row| row[shape.column(&column.name)].clone());
            (column.name.clone(), ours, theirs)
        });
        compared.collect()
    }

    fn said(
        &self,
        exec: &Exec<'_>,
        (kind, place): (&str, Option<i64>),
        key: &[Value],
        columns: &[Beside],
        there: Option<&Row>,
    ) -> Vec<Value> {
        let of = |tell: fn(&Beside) -> Option<Arc<str>>| {
            let texts = columns.iter().map(|column| if column.1 == column.2 { None } else { tell(column) });
            Value::Texts(texts.collect())
        };
        let (ours, theirs) = if self.values {
            (of(|column| text(&column.1)), of(|column| text(&column.2)))
        } else {
            (Value::Texts(Vec::new()), Value::Texts(Vec::new()))
        };
        vec![
            Value::text(kind),
            place.map_or(Value::Null, Value::Int),
            texts(key),
            texts(key),
            of(|column| Some(Arc::from(column.0.as_str()))),
            ours,
            theirs,
            Value::Int(self.version(exec, key, there)),
            Value::Int(hash(&format!("{kind} {key:?} {columns:?}"))),
        ]
    }

    /// The highest version at which the target heard of a row: the row's, its tombstone's, its table's fence's.
    fn version(&self, exec: &Exec<'_>, key: &[Value], there: Option<&Row>) -> i64 {
        let source = self.plan.model(exec).plan.source.table.to_string();
        let row = there.and_then(|row| row.last()).map_or(0, Value::int);
        let tombstone = exec.lookup(self.plan.tombstones, key).map_or(0, |(_, row)| row[key.len()].int());
        row.max(tombstone).max(fence(exec, &self.plan.pipeline, &source).unwrap_or(0)).max(0)
    }

    fn orphans(&self, exec: &Exec<'_>, place: usize) -> Answer {
        let (parent, columns, parents): (TableId, Vec<usize>, Vec<usize>) = {
            let store = exec.pg.store();
            let foreign = &store.tables[self.plan.target].shape.foreign[place];
            (foreign.parent, foreign.columns.clone(), foreign.parent_columns.clone())
        };
        let pick = |row: &Row, columns: &[usize]| -> Vec<Value> {
            columns.iter().map(|column| row[*column].clone()).collect()
        };
        let there: BTreeSet<Vec<Value>> = exec.rows(parent, |_| true).iter().map(|row| pick(row, &parents)).collect();
        let children = exec.rows(self.plan.target, |_| true);
        let is_orphan = |row: &&Row| {
            let key = pick(row, &columns);
            !key.iter().any(Value::is_null) && !there.contains(&key)
        };
        Answer::row(vec![Value::Int(children.iter().filter(is_orphan).count() as i64)])
    }
}

/// The keys that several of these rows make.
fn shared(made: &[(i64, Fact)]) -> BTreeSet<Vec<Value>> {
    let mut makers: BTreeMap<&Vec<Value>, BTreeSet<i64>> = BTreeMap::new();
    for (place, fact) in made {
        makers.entry(&fact.key).or_default().insert(*place);
    }
    makers.into_iter().filter(|(_, makers)| makers.len() > 1).map(|(key, _)| key.clone()).collect()
}

/// The last row of a part: how many rows were made, and how many keys several of them make.
fn counted(rows: usize, shared: usize) -> Vec<Value> {
    let mut row = vec![Value::text("rows"), Value::Int(rows as i64)];
    row.extend(vec![Value::Texts(Vec::new()); 5]);
    row.extend([Value::Int(shared as i64), Value::Int(0)]);
    row
}

/// How many rows there are, and the sum of their hashes.
fn digest(exec: &Exec<'_>, there: &BTreeMap<Vec<Value>, Row>) -> (Value, String) {
    if exec.pg.weakness().verify_trusts_numbers {
        return (Value::Int(there.len() as i64), "0".to_owned());
    }
    let sum: i128 = there.values().map(|row| i128::from(hash(&format!("{row:?}")))).sum();
    (Value::Int(there.len() as i64), sum.to_string())
}

/// FNV-1a.
pub fn hash(text: &str) -> i64 {
    let hash = text
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    hash.cast_signed()
}

/// A key of whole numbers, from a parameter for each of its columns.
fn bound(params: &[Param]) -> Vec<Value> {
    let text = |param: &Param| match param.value() {
        Value::Text(text) => number(Some(&text)),
        other => panic!("{other:?} is no bound"),
    };
    params.iter().map(text).collect()
}

fn number(text: Option<&Arc<str>>) -> Value {
    let text = text.expect("a key of the simulator's tables has no null");
    integer(text, "bigint", i64::MIN, i64::MAX).unwrap_or_else(|error| panic!("{text} is no number: {error:?}"))
}

fn text(value: &Value) -> Option<Arc<str>> {
    value.print().map(Arc::from)
}

fn texts(key: &[Value]) -> Value {
    Value::Texts(key.iter().map(text).collect())
}

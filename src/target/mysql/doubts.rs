//! What a look finds: rows that are missing, differ, or that no row of the source makes.

use std::{
    collections::{HashMap, HashSet},
    hash::{DefaultHasher, Hash, Hasher},
    ops::ControlFlow,
};

use super::{
    comparer::MysqlComparer,
    comparison::Comparison,
    keys::{Key, Place, pieces, spelled_key, text, texts},
    literal::{literal, of_fact, told},
    tables::Table,
};
use crate::{
    database::postgres::Refusal,
    model::{Column, Plan, Problem, Version},
    target::{ApplyError, Difference, Doubt, Looks, RowEvent, Shared, postgres::Made, rows::RowsError},
};

/// A plan with the table that it writes to.
#[derive(Debug, Clone)]
pub(super) struct Held {
    plan: usize,
    pub table: Table,
    /// Those that the plan fills, in its order.
    columns: Vec<Column>,
    /// Where made rows have the values of the key.
    key_places: Vec<usize>,
    looks: Looks,
}

impl Held {
    pub fn new(place: usize, plan: &Plan, table: &Table, looks: Looks) -> Result<Self, ApplyError> {
        let gone = || {
            ApplyError::Halt(Problem::new(
                format!("target table {} has lost a column that the transform fills", table.name),
                "run `cutover check`, which says which; change the table or the transform, and verify again",
            ))
        };
        let columns = plan.columns.iter().map(|column| table.column(&column.name).cloned());
        let columns: Vec<Column> = columns.collect::<Option<_>>().ok_or_else(gone)?;
        if !table.key_columns().map(|column| &column.name).eq(&plan.target.key) {
            return Err(ApplyError::Halt(Problem::new(
                format!("the key of target table {} has changed since its transforms were checked", table.name),
                "restart the worker, if one runs, and verify again",
            )));
        }
        let key_place = |key: &Column| columns.iter().position(|column| column.name == key.name);
        let key_places = table.key_columns().map(key_place).collect::<Option<_>>().ok_or_else(gone)?;
        Ok(Held { plan: place, table: table.clone(), columns, key_places, looks })
    }

    pub fn comparison(&self) -> Comparison<'_> {
        Comparison {
            table: &self.table,
            columns: self.columns.iter().collect(),
            plan: self.plan,
            values: self.looks.values,
        }
    }

    /// The key of a made row; why no row can have it, if none can.
    fn key(&self, made: &Made) -> Result<Key, String> {
        let texts = self.key_places.iter().map(|place| made.values.get(*place).and_then(Option::as_deref));
        if texts.clone().any(|text| text.is_none()) {
            return Err("the key has a null".into());
        }
        Key::of(&self.table, texts)
    }

    /// A key that was told, as a fact would have it.
    fn of_facts(&self, key: &[Option<String>]) -> Vec<Option<String>> {
        let columns = self.table.key_columns().zip(key);
        columns.map(|(column, text)| text.as_ref().map(|text| of_fact(column, text))).collect()
    }

    /// A key that was told of a row that is there.
    fn key_told(&self, key: &[Option<String>]) -> Key {
        Key::stored(&self.table, self.of_facts(key).iter().map(Option::as_deref))
    }

    /// Whether one value alone of the source can have become each of a key's, and can be asked for there.
    fn leads_back(&self, key: &[Option<String>]) -> bool {
        let leads = |(column, text): (&Column, &Option<String>)| {
            let text = text.as_deref().unwrap_or_default();
            match column.base_type() {
                // The server spells them in its own way.
                "uuid" | "inet4" | "inet6" | "set" => false,
                // It may have been filled up with zeros.
                "binary" => !text.ends_with("00"),
                "date" | "datetime" | "timestamp" => !text.get(..10).is_some_and(|date| date.contains("-00")),
                _ => !text.contains('\0'),
            }
        };
        self.table.key_columns().zip(key).all(leads)
    }

    fn tell(&self, spelled: &[String]) -> Vec<Option<String>> {
        self.table.key_columns().zip(spelled).map(|(column, text)| Some(told(column, text))).collect()
    }

    /// A made row's key, as it is told.
    pub fn told(&self, made: &Made) -> Result<Vec<Option<String>>, ApplyError> {
        Ok(self.tell(&self.key(made).map_err(no_key)?.spelled))
    }

    /// The keys of rows that a plan makes, whether they were taken or not.
    pub fn spelled(&self, filled: &Filled) -> HashSet<Vec<String>> {
        let all = filled.taken.iter().chain(&filled.refused);
        all.filter_map(|made| Some(self.key(made).ok()?.spelled)).collect()
    }

    /// Those of the told keys that were not made.
    pub fn unmade(&self, told: &[&Vec<Option<String>>], made: &HashSet<Vec<String>>) -> Vec<Key> {
        let keys = told.iter().map(|key| self.key_told(key));
        let mut met = HashSet::new();
        keys.filter(|key| !made.contains(&key.spelled) && met.insert(key.spelled.clone())).collect()
    }

    /// Rows among the made ones that make one key.
    pub fn shared_among(&self, made: &[Made]) -> Vec<Shared> {
        let mut makers: HashMap<Vec<String>, Vec<usize>> = HashMap::new();
        for made in made {
            // What can be no key here makes no row.
            if let Ok(key) = self.key(made) {
                makers.entry(key.spelled).or_default().push(made.row);
            }
        }
        let shared = makers.into_iter().filter(|(_, rows)| rows.iter().any(|row| Some(row) != rows.first()));
        let all = |(key, rows): (Vec<String>, Vec<usize>)| {
            let key = self.tell(&key);
            rows.into_iter().map(move |row| Shared { plan: self.plan, key: key.clone(), row }).collect::<Vec<_>>()
        };
        shared.flat_map(all).collect()
    }

    /// Whether a made row is in the sample.
    pub fn is_picked(&self, made: &Made) -> bool {
        self.key(made).is_ok_and(|key| self.picks(&self.tell(&key.spelled)))
    }

    /// Whether a doubt is of a row in the sample.
    pub fn is_wanted(&self, doubt: &Doubt) -> bool {
        doubt.difference == Difference::Refused || self.picks(&doubt.key)
    }

    fn picks(&self, key: &[Option<String>]) -> bool {
        let Some(share) = self.looks.sample else { return true };
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        (hasher.finish() as f64) < share.clamp(0.0, 1.0) * u64::MAX as f64
    }

    /// The condition of keys above one, if there is a lower bound, up to another; none if the server would take one of
    /// them for another key.
    pub fn between(&self, lower: Option<&[Option<String>]>, upper: &[Option<String>]) -> Option<String> {
        let key = |key: &[Option<String>]| Key::of(&self.table, self.of_facts(key).iter().map(Option::as_deref)).ok();
        let up_to = Place::Table.up_to(&self.table, &key(upper)?);
        let Some(lower) = lower else { return Some(up_to) };
        Some(format!("{} AND {up_to}", Place::Table.behind(&self.table, &key(lower)?)))
    }

    /// The next keys behind one: that were not made, of which was heard, or all.
    pub fn page(
        &self,
        lower: Option<&[Option<String>]>,
        since: Option<Version>,
        unseen: bool,
        rows_max: usize,
    ) -> String {
        let place = if since.is_some() { Place::Side } else { Place::Table };
        let condition = match lower {
            Some(lower) => place.behind(&self.table, &self.key_told(lower)),
            None => "TRUE".to_owned(),
        };
        match since {
            Some(since) => self.comparison().keys_heard(&condition, since, rows_max),
            None => self.comparison().keys_there(&condition, unseen, rows_max),
        }
    }

    fn doubt(&self, difference: Difference, key: Vec<Option<String>>) -> Doubt {
        Doubt {
            plan: self.plan,
            difference,
            key,
            row: None,
            source_key: None,
            columns: Vec::new(),
            values: Vec::new(),
            version: Version::MIN,
            digest: 0,
            reason: None,
        }
    }
}

/// Made rows, as the server has taken them.
#[derive(Debug, Default)]
pub(super) struct Filled {
    /// In the order of their places.
    pub taken: Vec<Made>,
    pub refused: Vec<Made>,
}

impl MysqlComparer {
    /// Puts made rows where they are compared. Those that the server refuses are doubts.
    pub(super) async fn fill(
        &mut self,
        held: &Held,
        rows: &[RowEvent],
        made: Vec<Made>,
        doubts: &mut Vec<Doubt>,
    ) -> Result<Filled, ApplyError> {
        let comparison = held.comparison();
        self.create(&comparison.made(), &comparison.create_made(), true).await?;
        let (mut filled, mut parts) = (Filled::default(), vec![made]);
        while let Some(mut part) = parts.pop() {
            match self.try_fill(held, &comparison, filled.taken.len(), &part).await? {
                ControlFlow::Continue(()) => filled.taken.append(&mut part),
                ControlFlow::Break(_) if part.len() > 1 => {
                    let second = part.split_off(part.len() / 2);
                    parts.extend([second, part]);
                }
                ControlFlow::Break(refusal) => {
                    let row = part.first().and_then(|made| Some((made.row, rows.get(made.row)?)));
                    doubts.extend(row.map(|row| self.maker.refuse(held.plan, row, &refusal)));
                    filled.refused.append(&mut part);
                }
            }
        }
        Ok(filled)
    }

    async fn try_fill(
        &mut self,
        held: &Held,
        comparison: &Comparison<'_>,
        first: usize,
        made: &[Made],
    ) -> Result<ControlFlow<Box<Refusal>>, ApplyError> {
        let values = |(place, made): (usize, &Made)| {
            held.key(made)?;
            let values = held.columns.iter().zip(&made.values).map(|(column, value)| literal(column, value.as_deref()));
            Ok(format!("({}, {})", first + place, values.collect::<Result<Vec<_>, String>>()?.join(", ")))
        };
        let rows: Result<Vec<String>, String> = made.iter().enumerate().map(values).collect();
        let sent = match rows {
            Ok(rows) => self.session.send(&comparison.insert_made(), "", rows).await,
            Err(reason) => Err(super::facts::unfit(reason)),
        };
        match sent {
            Ok(()) => Ok(ControlFlow::Continue(())),
            Err(RowsError::Stop(error)) => Err(error),
            Err(RowsError::Row(refusal)) => {
                // A warning comes when the rows are in.
                self.session.run(&format!("DELETE FROM {} WHERE `cutover_n` >= {first}", comparison.made())).await?;
                Ok(ControlFlow::Break(refusal))
            }
        }
    }

    /// Looks at the made rows of a plan.
    pub(super) async fn look_at_made(
        &mut self,
        held: &Held,
        made: &[Made],
        version: Version,
        doubts: &mut Vec<Doubt>,
    ) -> Result<(), ApplyError> {
        let comparison = held.comparison();
        let others: Vec<String> = comparison.others().iter().map(|column| column.name.clone()).collect();
        let mut found = Vec::new();
        for row in self.session.rows(&comparison.unequal()).await? {
            let told: Vec<Option<String>> = row.unwrap().into_iter().map(text).collect();
            let said = |place: usize| told.get(place).cloned().flatten();
            let Some(made) = said(0).and_then(|place| made.get(place.parse::<usize>().ok()?)) else { continue };
            let is_missing = said(1).as_deref() == Some("1");
            let difference = if is_missing { Difference::Missing } else { Difference::Different };
            let mut doubt = Doubt { row: Some(made.row), ..held.doubt(difference, held.told(made)?) };
            doubt.digest = digest_of(said(2));
            let differs = |place: &usize| !is_missing && said(3 + *place).as_deref() == Some("1");
            for place in (0..others.len()).filter(differs) {
                doubt.columns.extend(others.get(place).cloned());
                if comparison.values {
                    doubt.values.push((said(3 + others.len() + place), said(3 + 2 * others.len() + place)));
                }
            }
            found.push((held.key(made).map_err(no_key)?, doubt));
        }
        doubts.extend(self.with_versions(held, found, version).await?);
        Ok(())
    }

    /// Keys that a statement answers.
    pub(super) async fn keys(&mut self, held: &Held, sql: &str) -> Result<Vec<Vec<String>>, ApplyError> {
        let rows = self.session.rows(sql).await?;
        Ok(rows.into_iter().map(|row| spelled_key(&held.table, &texts(row))).collect())
    }

    /// Extra rows with these keys, as they are told.
    pub(super) async fn extra(
        &mut self,
        held: &Held,
        keys: Vec<Vec<String>>,
        version: Version,
    ) -> Result<Vec<Doubt>, ApplyError> {
        let mut found = Vec::new();
        for key in keys {
            let told = held.tell(&key);
            found.push((held.key_told(&told), held.doubt(Difference::Extra, told)));
        }
        self.with_versions(held, found, version).await
    }

    /// Those of the keys that are there: nothing makes them.
    pub(super) async fn extra_among(
        &mut self,
        held: &Held,
        keys: &[Key],
        version: Version,
    ) -> Result<Vec<Doubt>, ApplyError> {
        let mut found = Vec::new();
        for keys in pieces(keys, key_bytes) {
            let keys: Vec<&Key> = keys.iter().collect();
            let sql = held.comparison().present(&Place::Table.condition(&held.table, &keys));
            for row in self.session.rows(&sql).await? {
                let texts = texts(row);
                let spelled = spelled_key(&held.table, &texts);
                // A row that is spelled otherwise is another one.
                if !keys.iter().any(|key| key.spelled == spelled) {
                    continue;
                }
                let told = held.tell(&spelled);
                let mut doubt = held.doubt(Difference::Extra, told.clone());
                doubt.digest = digest_of(texts.last().cloned());
                found.push((held.key_told(&told), doubt));
            }
        }
        self.with_versions(held, found, version).await
    }

    /// Doubts with the versions at which the target heard of their rows, and the source's keys.
    async fn with_versions(
        &mut self,
        held: &Held,
        found: Vec<(Key, Doubt)>,
        fence: Version,
    ) -> Result<Vec<Doubt>, ApplyError> {
        let (keys, mut doubts): (Vec<Key>, Vec<Doubt>) = found.into_iter().unzip();
        let mut versions = Vec::with_capacity(keys.len());
        for keys in pieces(&keys, key_bytes) {
            let stored = self.session.find(&held.table, Place::Side, keys, false).await?;
            let version = |found: Option<Vec<String>>| found.and_then(|found| found.last()?.parse().ok()).unwrap_or(0);
            versions.extend(stored.into_iter().map(version));
        }
        for (doubt, version) in doubts.iter_mut().zip(versions) {
            doubt.version = fence.max(version);
            if held.leads_back(&doubt.key) {
                doubt.source_key = self.maker.source_key(held.plan, &doubt.key)?;
            }
        }
        Ok(doubts)
    }

    /// Notes the keys that were made, those of rows that the server refuses among them: the source has these rows.
    pub(super) async fn note_seen(&mut self, held: &Held, filled: &Filled) -> Result<(), ApplyError> {
        let comparison = held.comparison();
        let insert = format!("INSERT INTO {} ({}) VALUES ", comparison.seen(), comparison.key_names());
        let row = |made: &Made| Some(format!("({})", held.key(made).ok()?.side.join(", ")));
        self.session.send(&insert, "", filled.taken.iter().filter_map(row).collect()).await?;
        for row in filled.refused.iter().filter_map(row) {
            match self.session.send(&insert, "", vec![row]).await {
                // No row there has such a key.
                Ok(()) | Err(RowsError::Row(_)) => {}
                Err(RowsError::Stop(error)) => return Err(error),
            }
        }
        Ok(())
    }
}

fn key_bytes(key: &Key) -> usize {
    key.literals.iter().map(String::len).sum()
}

/// A digest that the server gave, in short.
fn digest_of(hex: Option<String>) -> i64 {
    let digits = hex.as_deref().and_then(|hex| hex.get(..16));
    digits.and_then(|digits| u64::from_str_radix(digits, 16).ok()).unwrap_or_default().cast_signed()
}

/// A key that the target has taken, and that is none.
fn no_key(reason: String) -> ApplyError {
    ApplyError::Halt(Problem::new(
        format!("a key of the target cannot be looked up again: {reason}"),
        "this is a defect of cutover: report it with the types of the key's columns",
    ))
}

//! Comparing with a target that is MySQL or MariaDB: passes over tables, and second looks.
//!
//! PostgreSQL says what the source's rows make, as it does for the sink; what is made goes to this server, and is
//! compared there ([`Comparison`](super::comparison::Comparison)). Both looks of a comparison are of one snapshot of
//! this server. What is parked stands in PostgreSQL and is read before that: a row that is written meanwhile is found
//! equal, and one that is parked meanwhile has come after everything that this look waited for. Deliberately absent:
//! digests of stretches, so that every pass looks at every row; notes of rows.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use async_trait::async_trait;

use super::{
    comparison::orphans,
    doubts::{Filled, Held},
    session::Session,
    tables::{Table, Tables},
};
use crate::{
    database::mysql::connect::Connector,
    model::{Plan, Problem, TableName, Version},
    snapshot::Digest,
    target::{
        ApplyError, Compared, Comparer, Difference, Doubt, Looked, Looks, RowEvent, Shared, Strayed, Stretch, Walk,
        postgres::{PostgresComparer, Span, numbers},
        rows::RowsError,
    },
};

/// Extra rows that are handed out at once, and that a part's range of keys may have before the table is walked
/// otherwise.
const EXTRAS_MAX: usize = 10_000;
/// Keys that several rows of the source make, of which it is found out by which.
const SHARED_MAX: usize = 10_000;

/// The session of a comparison: strict as the sink's, so that values are taken and refused alike; each look is of one
/// moment; between two of them the source may be read for long.
const SESSION: [&str; 2] = [
    "SET SESSION sql_mode = 'STRICT_ALL_TABLES,NO_AUTO_VALUE_ON_ZERO', wait_timeout = 28800, sql_notes = 1, @cutover = 1",
    "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ",
];

const BINLOG_FORMAT: &str = "SET SESSION binlog_format = 'ROW'";

/// A pass over the rows of one plan.
#[derive(Debug)]
struct Pass {
    plan: usize,
    walk: Walk,
    /// The key up to which extra rows have been looked for, as it is told.
    lower: Option<Vec<Option<String>>>,
    ended: bool,
}

/// Compares over a session of its own.
#[derive(Debug)]
pub(super) struct MysqlComparer {
    pub(super) maker: PostgresComparer,
    pub(super) session: Session,
    pub(super) tables: Tables,
    pub(super) plans: Arc<[Plan]>,
    pub(super) looks: Looks,
    passes: Vec<Pass>,
    /// Temporary tables that there are.
    created: HashSet<String>,
}

/// What comparing some rows for one pass gave.
struct Part {
    /// Rows that were looked at.
    rows: u64,
    shared: Vec<Shared>,
}

impl MysqlComparer {
    /// Connects.
    ///
    /// # Errors
    /// When the server cannot be reached or refuses, or something is asked for that cannot be had here.
    pub async fn open(
        connector: &Connector,
        tables: Tables,
        maker: PostgresComparer,
        plans: Arc<[Plan]>,
        looks: Looks,
    ) -> Result<Self, ApplyError> {
        if looks.notes_rows.is_some() {
            return Err(ApplyError::Halt(Problem::new(
                "what is found of each row cannot be noted where the target is MySQL or MariaDB",
                "set [verify] log = \"chunks\", or leave it out",
            )));
        }
        let mut session = Session::open(connector, &SESSION).await?;
        // Else what goes into temporary tables is logged. Who may not set it has the server's format.
        if let Err(RowsError::Stop(error @ ApplyError::Unreachable(_))) = session.run(BINLOG_FORMAT).await {
            return Err(error);
        }
        Ok(MysqlComparer { maker, session, tables, plans, looks, passes: Vec::new(), created: HashSet::new() })
    }

    /// A plan with its table.
    pub(super) fn held(&self, plan: usize) -> Result<Held, ApplyError> {
        let plan_of = self.plans.get(plan).ok_or(ApplyError::Contended)?;
        Held::new(plan, plan_of, self.tables.get(&plan_of.target.name)?, self.looks)
    }

    /// Makes a temporary table anew, or, if it is to be `kept`, once.
    pub(super) async fn create(&mut self, name: &str, create: &str, kept: bool) -> Result<(), ApplyError> {
        let is_there = !self.created.insert(name.to_owned());
        if is_there && kept {
            return Ok(self.session.run(&format!("DELETE FROM {name}")).await?);
        }
        if is_there {
            self.session.run(&format!("DROP TEMPORARY TABLE {name}")).await?;
        }
        Ok(self.session.run(create).await?)
    }

    /// Begins a look at one moment.
    pub(super) async fn begin_look(&mut self) -> Result<(), ApplyError> {
        Ok(self.session.run("START TRANSACTION WITH CONSISTENT SNAPSHOT").await?)
    }

    pub(super) async fn end_look(&mut self) -> Result<(), ApplyError> {
        Ok(self.session.run("COMMIT").await?)
    }

    pub(super) async fn count_of(&mut self, sql: &str) -> Result<u64, ApplyError> {
        let rows = self.session.rows(sql).await?;
        Ok(rows.into_iter().next().and_then(|row| super::keys::texts(row).first()?.parse().ok()).unwrap_or_default())
    }

    /// Compares rows for one pass; none if they are out of order.
    async fn part(
        &mut self,
        pass: usize,
        rows: &[RowEvent],
        doubts: &mut Vec<Doubt>,
    ) -> Result<Option<Part>, ApplyError> {
        let Some(Pass { plan, walk, lower, .. }) = self.passes.get(pass) else {
            return Ok(Some(Part { rows: 0, shared: Vec::new() }));
        };
        let (plan, walk, lower) = (*plan, *walk, lower.clone());
        let held = self.held(plan)?;
        let mut most = None;
        if walk == Walk::Ranged {
            let Some((least, last)): Option<Span> = self.maker.span(plan, rows)? else { return Ok(None) };
            if lower.as_deref().is_some_and(|lower| numbers(lower).is_none_or(|lower| lower >= least)) {
                return Ok(None);
            }
            most = Some(last.iter().map(|number| Some(number.to_string())).collect::<Vec<_>>());
        }
        let mut found = Vec::new();
        let made = self.maker.make(plan, rows, &mut found).await?;
        let filled = self.fill(&held, rows, made, &mut found).await?;
        let version = self.fence(plan).await?;
        self.begin_look().await?;
        self.look_at_made(&held, &filled.taken, version, &mut found).await?;
        if let Some(most) = &most {
            let Some(extras) = self.extras_between(&held, (lower.as_deref(), most), &filled, version, &found).await?
            else {
                self.end_look().await?;
                return Ok(None);
            };
            found.extend(extras);
        }
        self.end_look().await?;
        if walk == Walk::Seen {
            self.note_seen(&held, &filled).await?;
        }
        let made = &filled.taken;
        let (shared, looked_at) = (held.shared_among(made), made.iter().filter(|made| held.is_picked(made)).count());
        doubts.extend(found.into_iter().filter(|doubt| held.is_wanted(doubt)));
        if let (Some(pass), Some(most)) = (self.passes.get_mut(pass), most) {
            pass.lower = Some(most);
        }
        Ok(Some(Part { rows: looked_at as u64, shared }))
    }

    /// Extra rows between two keys, which are numbers; none if there are too many of them.
    async fn extras_between(
        &mut self,
        held: &Held,
        (lower, upper): (Option<&[Option<String>]>, &[Option<String>]),
        filled: &Filled,
        version: Version,
        found: &[Doubt],
    ) -> Result<Option<Vec<Doubt>>, ApplyError> {
        let Some(condition) = held.between(lower, upper) else { return Ok(None) };
        let made = held.spelled(filled);
        let missing: BTreeSet<&Vec<Option<String>>> =
            found.iter().filter(|doubt| doubt.difference == Difference::Missing).map(|doubt| &doubt.key).collect();
        let there = self.count_of(&held.comparison().count(&condition)).await?;
        // The others that were made are there.
        if there == made.len().saturating_sub(missing.len()) as u64 && filled.refused.is_empty() {
            return Ok(Some(Vec::new()));
        }
        let rows_max = made.len() + EXTRAS_MAX + 1;
        let keys = self.keys(held, &held.comparison().keys_there(&condition, false, rows_max)).await?;
        let extras: Vec<Vec<String>> = keys.into_iter().filter(|key| !made.contains(key)).collect();
        if extras.len() > EXTRAS_MAX {
            return Ok(None);
        }
        self.extra(held, extras, version).await.map(Some)
    }

    /// The next rows that were not made, or, with a version, of which the target has heard above it.
    async fn page(&mut self, since: Option<Version>) -> Result<Vec<Doubt>, ApplyError> {
        for index in 0..self.passes.len() {
            while let Some(pass) = self.passes.get(index).filter(|pass| !pass.ended) {
                let (plan, lower) = (pass.plan, pass.lower.clone());
                let unseen = pass.walk == Walk::Seen && since.is_none();
                let held = self.held(plan)?;
                let sql = held.page(lower.as_deref(), since, unseen, EXTRAS_MAX);
                let version = self.fence(plan).await?;
                self.begin_look().await?;
                let keys = self.keys(&held, &sql).await?;
                let doubts = self.extra(&held, keys, version).await?;
                self.end_look().await?;
                if let Some(pass) = self.passes.get_mut(index) {
                    pass.ended = doubts.len() < EXTRAS_MAX;
                    pass.lower = doubts.last().map(|last| last.key.clone());
                }
                let difference = if since.is_some() { Difference::Different } else { Difference::Extra };
                let doubts: Vec<Doubt> = doubts.into_iter().map(|doubt| Doubt { difference, ..doubt }).collect();
                let wanted: Vec<Doubt> = doubts.into_iter().filter(|doubt| held.is_wanted(doubt)).collect();
                if !wanted.is_empty() {
                    return Ok(wanted);
                }
            }
        }
        Ok(Vec::new())
    }

    /// The plans of a source table, by their places.
    fn plans_of(&self, table: &TableName) -> Vec<usize> {
        self.plans.iter().enumerate().filter(|(_, plan)| plan.source.table == *table).map(|(place, _)| place).collect()
    }

    /// Up to which version the rows of a plan's source table are gone.
    async fn fence(&mut self, plan: usize) -> Result<Version, ApplyError> {
        let table = self.plans.get(plan).ok_or(ApplyError::Contended)?.source.table.clone();
        self.maker.fence(&table).await
    }
}

#[async_trait]
impl Comparer for MysqlComparer {
    async fn begin(&mut self, table: &TableName, walk: Walk) -> Result<(), ApplyError> {
        self.passes.clear();
        for plan in self.plans_of(table) {
            let walk = if self.maker.has_numbers(plan)? { walk } else { Walk::Seen };
            if walk == Walk::Seen {
                let held = self.held(plan)?;
                let seen = held.comparison().seen();
                self.create(&seen, &held.comparison().create_keys(&seen), false).await?;
            }
            self.passes.push(Pass { plan, walk, lower: None, ended: false });
        }
        Ok(())
    }

    async fn compare(&mut self, rows: &[RowEvent]) -> Result<Compared, ApplyError> {
        let (mut doubts, mut shared, mut most) = (Vec::new(), Vec::new(), 0);
        for pass in 0..self.passes.len() {
            let Some(part) = self.part(pass, rows, &mut doubts).await? else { return Ok(Compared::Unordered) };
            most = most.max(part.rows);
            shared.extend(part.shared);
        }
        let rows = if self.looks.sample.is_some() { most } else { rows.len() as u64 };
        Ok(Compared::Part { doubts, rows, shared })
    }

    fn has_stretches(&self) -> bool {
        false
    }

    fn end_stretch(&mut self) -> Option<Stretch> {
        None
    }

    async fn is_as(&mut self, _: &Stretch) -> Result<bool, ApplyError> {
        Ok(false)
    }

    async fn copied(&mut self, _: &[String]) -> Result<Option<(Digest, Stretch)>, ApplyError> {
        Ok(None)
    }

    fn pass_by(&mut self, _: &Stretch) {}

    fn note_rows(&mut self, _: bool) {}

    async fn extras(&mut self) -> Result<Vec<Doubt>, ApplyError> {
        self.page(None).await
    }

    async fn changed(&mut self, since: Version) -> Result<Vec<Doubt>, ApplyError> {
        self.page(Some(since)).await
    }

    async fn again(
        &mut self,
        table: &TableName,
        rows: &[RowEvent],
        keys: &[(usize, Vec<Option<String>>)],
        sources: &[String],
    ) -> Result<Looked, ApplyError> {
        let mut wanted: BTreeMap<usize, Vec<&Vec<Option<String>>>> = BTreeMap::new();
        for (plan, key) in keys {
            let keys = wanted.entry(*plan).or_default();
            keys.extend((!key.is_empty()).then_some(key));
        }
        let (mut doubts, mut looks) = (Vec::new(), Vec::new());
        for (plan, keys) in wanted {
            let held = self.held(plan)?;
            let made = self.maker.make(plan, rows, &mut doubts).await?;
            let filled = self.fill(&held, rows, made, &mut doubts).await?;
            looks.push((held, filled, keys));
        }
        let version = self.maker.fence(table).await?;
        let parked = if sources.is_empty() { HashMap::new() } else { self.maker.parked(table, sources).await? };
        self.begin_look().await?;
        for (held, filled, keys) in looks {
            self.look_at_made(&held, &filled.taken, version, &mut doubts).await?;
            let keys = held.unmade(&keys, &held.spelled(&filled));
            doubts.extend(self.extra_among(&held, &keys, version).await?);
        }
        self.end_look().await?;
        Ok(Looked { doubts, parked })
    }

    async fn note_shared(&mut self) -> Result<u64, ApplyError> {
        let mut keys = 0;
        for (plan, walk) in self.passes.iter().map(|pass| (pass.plan, pass.walk)).collect::<Vec<_>>() {
            let held = self.held(plan)?;
            let shared = held.comparison().shared();
            self.create(&shared, &held.comparison().create_keys(&shared), false).await?;
            if walk == Walk::Seen {
                self.session.run(&held.comparison().note_shared(SHARED_MAX)).await?;
                keys += self.count_of(&format!("SELECT COUNT(*) FROM {shared}")).await?;
            }
        }
        Ok(keys)
    }

    async fn shared(&mut self, rows: &[RowEvent], noted: bool) -> Result<Vec<Shared>, ApplyError> {
        let mut found = Vec::new();
        for plan in self.passes.iter().map(|pass| pass.plan).collect::<Vec<_>>() {
            let held = self.held(plan)?;
            // One that cannot be transformed makes no row.
            let made = self.maker.make(plan, rows, &mut Vec::new()).await?;
            if !noted {
                found.extend(held.shared_among(&made));
                continue;
            }
            let made = self.fill(&held, rows, made, &mut Vec::new()).await?.taken;
            for row in self.session.rows(&held.comparison().that_share()).await? {
                let place: Option<usize> = super::keys::texts(row).first().and_then(|place| place.parse().ok());
                if let Some(made) = place.and_then(|place| made.get(place)) {
                    found.push(Shared { plan, key: held.told(made)?, row: made.row });
                }
            }
        }
        Ok(found)
    }

    async fn orphans(&mut self, tables: &[TableName]) -> Result<Vec<(String, u64)>, ApplyError> {
        let targets: BTreeSet<&TableName> = self
            .plans
            .iter()
            .filter(|plan| tables.contains(&plan.source.table))
            .map(|plan| &plan.target.name)
            .collect();
        let targets: Vec<Table> = targets.into_iter().filter_map(|name| self.tables.0.get(name).cloned()).collect();
        let mut found = Vec::new();
        for table in targets {
            for key in &table.foreign_keys {
                found.push((format!("{} of {}", key.name, table.name), self.count_of(&orphans(&table, key)).await?));
            }
        }
        Ok(found)
    }

    fn goes_back(&self, table: &TableName, back: &[Plan]) -> bool {
        self.maker.goes_back(table, back)
    }

    async fn there_and_back(&mut self, rows: &[RowEvent], back: &[Plan]) -> Result<Vec<Strayed>, ApplyError> {
        self.maker.there_and_back(rows, back).await
    }

    async fn made(&mut self, rows: &[RowEvent]) -> Result<u64, ApplyError> {
        let mut made = 0;
        for plan in 0..self.plans.len() {
            let mut refused = Vec::new();
            made += self.maker.make(plan, rows, &mut refused).await?.len() as u64 + refused.len() as u64;
        }
        Ok(made)
    }

    async fn count(&mut self, table: &TableName) -> Result<u64, ApplyError> {
        let mut rows = 0;
        for plan in self.plans_of(table) {
            let held = self.held(plan)?;
            rows += self.count_of(&held.comparison().count("TRUE")).await?;
        }
        Ok(rows)
    }
}

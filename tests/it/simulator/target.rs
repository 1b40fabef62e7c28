//! The target's tables: what the transforms of the simulated pipeline say, in SQL and once more here.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use async_trait::async_trait;
use cutover::{
    database::postgres,
    log::{Offset, record::ChunkEnd},
    model::{
        ColumnType, Coverage, ForeignKey, Plan, PlanColumn, PlanRole, TableName, TableSchema, TargetColumn,
        TargetTable, Value, Version,
    },
    snapshot::SnapshotError,
    state::Store,
    target::{
        ApplyError, Checked, ChildCursor, Children, ChildrenOf, Comparer, Lane, Looks, Resume, Settings, Sink, Target,
        TargetError, postgres::PostgresTarget,
    },
};

use super::{
    chance::Chance,
    mutations::Mutation,
    postgres::{ModelTable, SourceRow, SqlError, Unique, Value as Stored},
    source::{self, BAD, Key, Row, Tables, integer},
    world::World,
};

fn column(name: &str, type_sql: &str) -> TargetColumn {
    TargetColumn {
        name: name.into(),
        type_sql: type_sql.into(),
        cast_sql: type_sql.into(),
        collation: None,
        folds: false,
        not_null: true,
        has_default: false,
        identity: None,
        generated: false,
    }
}

fn table(name: &str, columns: &[(&str, &str)], keys: usize) -> TargetTable {
    TargetTable {
        name: TableName::new("public", name),
        columns: columns.iter().map(|(name, type_sql)| column(name, type_sql)).collect(),
        key: columns.iter().take(keys).map(|(name, _)| (*name).to_owned()).collect(),
        uniques: Vec::new(),
        foreign_keys: Vec::new(),
        replaceable: true,
        has_owners: false,
        elsewhere: false,
        partitioned: false,
    }
}

fn plan(target: TargetTable, coverage: Coverage, filter: &str) -> Plan {
    let source = source::schema(&target.name.table);
    let names: Vec<String> = source.columns.iter().map(|column| column.name.clone()).collect();
    Plan {
        select: format!("SELECT {} FROM {}{filter}", names.join(", "), target.name.table),
        columns: names
            .iter()
            .map(|name| PlanColumn { name: name.clone(), cast: None, source: Some(name.clone()) })
            .collect(),
        role: PlanRole::Whole,
        key_reads: Some((0..target.key.len()).collect()),
        one_to_one: true,
        reads: names,
        file: None,
        coverage,
        identity: String::new(),
        source,
        target: Arc::new(target),
    }
}

/// Every column as it is.
fn all(row: &SourceRow<'_>) -> Vec<Result<Stored, SqlError>> {
    row.names.iter().map(|name| row.get(name)).collect()
}

/// The tables, with the meaning of their transforms.
pub fn tables(chance: &Chance) -> Vec<ModelTable> {
    let mut users = table("users", &[("id", "bigint"), ("email", "text"), ("state", "bigint")], 1);
    users.uniques = vec!["users_email_key".into()];
    let mut items = table("items", &[("id", "bigint"), ("user_id", "bigint"), ("qty", "bigint")], 1);
    items.foreign_keys = vec![ForeignKey {
        name: "items_user_id_fkey".into(),
        columns: vec!["user_id".into()],
        parent: users.name.clone(),
        parent_columns: vec!["id".into()],
    }];
    let notes = table("notes", &[("a", "bigint"), ("b", "bigint"), ("body", "text")], 2);
    let users = ModelTable {
        uniques: vec![Unique { name: "users_email_key".into(), columns: vec!["email".into()] }],
        ..ModelTable::new(plan(users, Coverage::Total, ""), Arc::new(|row| Ok(vec![all(row)])))
    };
    let items = ModelTable::new(
        plan(items, Coverage::Filter, " WHERE qty >= 0"),
        Arc::new(|row| Ok(if passes(&row.get("qty")?) { vec![all(row)] } else { Vec::new() })),
    );
    let notes = ModelTable {
        check: Some(Arc::new(|row| {
            let bad = row[2] == Stored::text(BAD);
            bad.then(|| SqlError::of("23514", "notes_body_check", "the note is bad"))
        })),
        ..ModelTable::new(plan(notes, Coverage::Total, ""), Arc::new(|row| Ok(vec![all(row)])))
    };
    let mut tables = vec![users, items, notes];
    if chance.taste.family {
        tables.extend(family(chance.taste.hides));
    }
    tables
}

/// Whether a filter lets a row with this value through; of a row that is known by its key alone it is null.
fn passes(value: &Stored) -> bool {
    matches!(value, Stored::Int(number) if *number >= 0)
}

/// Children, and their children; at the target they are no such thing.
fn family(hides: bool) -> [ModelTable; 2] {
    let orders = table("orders", &[("id", "bigint"), ("user_id", "bigint"), ("n", "bigint")], 1);
    let mut parts = table("parts", &[("id", "bigint"), ("order_id", "bigint"), ("user_id", "bigint")], 1);
    parts.columns[2].not_null = false;
    let orders = if hides {
        ModelTable::new(
            plan(orders, Coverage::Filter, " WHERE n >= 0"),
            Arc::new(|row| Ok(if passes(&row.get("n")?) { vec![all(row)] } else { Vec::new() })),
        )
    } else {
        ModelTable::new(plan(orders, Coverage::Total, ""), Arc::new(|row| Ok(vec![all(row)])))
    };
    [orders, ModelTable::new(plan(parts, Coverage::Total, ""), Arc::new(|row| Ok(vec![all(row)])))]
}

/// What the target must show when the source has these rows: the transforms, said again.
pub fn expected(source: &Tables, chance: &Chance) -> BTreeMap<&'static str, BTreeMap<Key, Row>> {
    let mut expected = BTreeMap::new();
    for table in source::watched(chance) {
        let mut rows = source.of(table);
        let filtered = *table == "items" || (*table == "orders" && chance.taste.hides);
        rows.retain(|_, row| !filtered || integer(&row[2]) >= 0);
        expected.insert(*table, rows);
    }
    expected
}

/// The keys of the rows that the target refuses.
pub fn refused(source: &Tables) -> Vec<Key> {
    let bad = |row: &Row| row[2] == Value::Text(BAD.into());
    source.of("notes").into_iter().filter(|(_, row)| bad(row)).map(|(key, _)| key).collect()
}

/// The real target, with its plans, over the model PostgreSQL.
pub fn planned(world: &World, address: postgres::Address, store: Arc<Store>, number: i64) -> PostgresTarget {
    let config = &world.config;
    let settings = Settings {
        pipeline: config.name.clone(),
        url: config.target.url.clone(),
        state_url: config.target.url.clone(),
        state_schema: config.target.schema.clone(),
        schema: config.target.schema.clone(),
        ca_file: None,
        transforms: config.transform.folder.clone(),
        apply: config.apply.clone(),
        partitions: config.log.partitions,
        marked: false,
        store,
    };
    let plans = tables(&world.chance).into_iter().map(|table| table.plan).collect();
    PostgresTarget::planned(settings, address, number, plans)
}

/// The target of a run, with its rule broken where that is one of the target's.
#[derive(Debug)]
pub struct Twisted {
    pub inner: Arc<dyn Target>,
    pub mutation: Option<Mutation>,
}

#[async_trait]
impl Target for Twisted {
    // Tables and transforms need no check, and are there.
    async fn prepare(&self, _tables: &[TableSchema], _planned_at: Version) -> Result<(), TargetError> {
        Ok(())
    }

    async fn check(&self, _tables: &[Arc<TableSchema>]) -> Result<Checked, TargetError> {
        Ok(Checked { plans: self.inner.plans().to_vec(), problems: Vec::new() })
    }

    async fn reload(&self) -> Result<(), TargetError> {
        Ok(())
    }

    fn plans(&self) -> Arc<[Plan]> {
        self.inner.plans()
    }

    async fn column_types(&self, table: &str) -> Result<BTreeMap<String, ColumnType>, TargetError> {
        self.inner.column_types(table).await
    }

    fn number(&self) -> i64 {
        self.inner.number()
    }

    fn under(&self, number: i64) -> Arc<dyn Target> {
        Arc::new(Twisted { inner: self.inner.under(number), mutation: self.mutation })
    }

    async fn resume(&self, lane: Lane, partition: u32, log_epoch: &str) -> Result<Resume, ApplyError> {
        self.inner.resume(lane, partition, log_epoch).await
    }

    async fn open(&self, lane: Lane, partition: u32) -> Result<Box<dyn Sink>, ApplyError> {
        self.inner.open(lane, partition).await
    }

    async fn advance(
        &self,
        partition: u32,
        log_epoch: &str,
        to: Offset,
        chunks: &[ChunkEnd],
    ) -> Result<(), ApplyError> {
        self.inner.advance(partition, log_epoch, to, chunks).await
    }

    async fn sweep(&self, table: &str, before: Version) -> Result<bool, SnapshotError> {
        if self.mutation == Some(Mutation::NoSweep) { Ok(true) } else { self.inner.sweep(table, before).await }
    }

    async fn children(&self, of: &ChildrenOf<'_>, from: Option<ChildCursor>) -> Result<Children, TargetError> {
        self.inner.children(of, from).await
    }

    async fn highest_version(&self) -> Result<Version, TargetError> {
        self.inner.highest_version().await
    }

    async fn forget_tombstones(&self, version: Version) -> Result<(), TargetError> {
        self.inner.forget_tombstones(version).await
    }

    async fn run_script(&self, file: &Path) -> Result<(), TargetError> {
        self.inner.run_script(file).await
    }

    async fn comparer(&self, plans: Arc<[Plan]>, looks: Looks) -> Result<Box<dyn Comparer>, ApplyError> {
        self.inner.comparer(plans, looks).await
    }
}

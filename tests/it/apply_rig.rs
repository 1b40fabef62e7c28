//! What the tests of transform and apply stand on: a target with tables, checked plans, and sinks on it.

use std::{collections::BTreeSet, sync::Arc};

use bytes::Bytes;
use cutover::{
    database::postgres::{Address, Options, Session, catalog},
    log::Topic,
    model::{Column, ColumnType, Plan, TableName, TableSchema, Version},
    state::format,
    target::{
        Applied, ApplyError, Batch, BatchEvent, Pass, RowEvent, Sink,
        postgres::{ApplyConfig, PostgresSink, SinkOptions, prepare_target},
    },
    transform::{self, CheckedTransforms, TransformFile},
};
use serde_json::{Value, json};

use crate::support::Postgres;

pub const PIPELINE: &str = "test";
pub const EPOCH: &str = "epoch-1";

/// A source table whose first column is its key.
pub fn table(name: &str, columns: &[(&str, ColumnType)]) -> Arc<TableSchema> {
    keyed(name, columns, 1)
}

/// A source table whose first columns are its key.
pub fn keyed(name: &str, columns: &[(&str, ColumnType)], keys: usize) -> Arc<TableSchema> {
    let columns = columns.iter().map(|(name, column_type)| Column {
        name: (*name).to_owned(),
        column_type: column_type.clone(),
        source_type: column_type.sql(),
        nullable: true,
        charset: None,
        collation: None,
        generated: false,
    });
    let table = TableName::new("shop", name);
    Arc::new(TableSchema { table, columns: columns.collect(), key: (0..keys).collect() })
}

/// One row change, as the log has it.
pub fn change(
    schema: &Arc<TableSchema>,
    version: Version,
    op: &str,
    before: Option<&Value>,
    after: Option<&Value>,
) -> BatchEvent {
    let row = after.or(before).unwrap();
    let key: serde_json::Map<String, Value> =
        schema.key_columns().map(|column| (column.name.clone(), row[&column.name].clone())).collect();
    let value = json!({ "before": before, "after": after, "source": {}, "op": op, "ts_ms": 0 });
    BatchEvent::Row(RowEvent {
        schema: schema.clone(),
        key: Bytes::from(serde_json::to_vec(&key).unwrap()),
        value: Bytes::from(serde_json::to_vec(&value).unwrap()),
        version,
        commit_us: version,
        offset: 0,
    })
}

pub fn insert(schema: &Arc<TableSchema>, version: Version, row: &Value) -> BatchEvent {
    change(schema, version, "c", None, Some(row))
}

pub fn update(schema: &Arc<TableSchema>, version: Version, before: &Value, after: &Value) -> BatchEvent {
    change(schema, version, "u", Some(before), Some(after))
}

pub fn delete(schema: &Arc<TableSchema>, version: Version, row: &Value) -> BatchEvent {
    change(schema, version, "d", Some(row), None)
}

pub fn read(schema: &Arc<TableSchema>, version: Version, row: &Value) -> BatchEvent {
    change(schema, version, "r", None, Some(row))
}

/// A target database with its plans.
pub struct Rig {
    pub pg: Postgres,
    pub plans: Arc<[Plan]>,
    pub replica: bool,
    pub config: ApplyConfig,
}

/// A sink with its place in the log.
pub struct Lane {
    pub sink: PostgresSink,
    pub topic: Topic,
    partition: u32,
    pub next: u64,
}

fn options(replica: bool) -> Options {
    Options { application_name: "cutover test".into(), schemas: vec!["public".into()], ca_file: None, replica }
}

/// Checks transforms (file name and text) against the tables that `ddl` makes.
pub async fn checked(pg: &Postgres, sources: &[Arc<TableSchema>], transforms: &[(&str, &str)]) -> CheckedTransforms {
    let session = Session::open(&Address::parse(&pg.url()).unwrap(), &options(false)).await.unwrap();
    let mut files = Vec::new();
    for (name, text) in transforms {
        match TransformFile::parse(std::path::Path::new(name), text, "public") {
            Ok(file) => files.push(file),
            Err(problem) => return CheckedTransforms { plans: Vec::new(), problems: vec![problem] },
        }
    }
    let tables = catalog::tables(&session.client, &["public".into()]).await.unwrap();
    transform::check(&session.client, sources, &files, &tables, "public", &BTreeSet::new()).await.unwrap()
}

impl Rig {
    pub async fn new(ddl: &str, sources: &[Arc<TableSchema>], transforms: &[(&str, &str)]) -> Self {
        let pg = Postgres::v15().await;
        pg.exec(ddl).await;
        let checked = checked(&pg, sources, transforms).await;
        assert!(checked.passed(), "{:#?}", checked.problems);
        let session = Session::open(&Address::parse(&pg.url()).unwrap(), &options(false)).await.unwrap();
        format::ensure(&session.client).await.unwrap();
        format::ensure(&session.client).await.unwrap();
        for plan in &checked.plans {
            prepare_target(&session, plan).await.unwrap();
            prepare_target(&session, plan).await.unwrap();
        }
        Rig { pg, plans: checked.plans.into(), replica: false, config: ApplyConfig::default() }
    }

    /// A session at the target.
    pub async fn session(&self) -> Session {
        Session::open(&Address::parse(&self.pg.url()).unwrap(), &options(false)).await.unwrap()
    }

    /// A session of a worker that holds the lease, as one that sweeps does.
    pub async fn leased_session(&self) -> Session {
        let lease = format!("INSERT INTO cutover.lease (pipeline, role, epoch) VALUES ('{PIPELINE}', 'worker', 1)");
        self.pg.exec(&lease).await;
        self.session().await
    }

    pub async fn lane(&self, topic: Topic) -> Lane {
        self.lane_at(topic, 1).await
    }

    pub async fn lane_at(&self, topic: Topic, lease_epoch: i64) -> Lane {
        let sink = self.sink(topic, lease_epoch, true).await;
        Lane::claimed(sink, topic, 0).await
    }

    /// A lane of another partition than the first.
    pub async fn lane_in(&self, topic: Topic, partition: u32) -> Lane {
        let sink = self.sink_in(topic, partition, 1, true).await;
        Lane::claimed(sink, topic, partition).await
    }

    /// A pass of a replay.
    pub async fn replaying(&self, pass: Pass) -> Lane {
        let sink = self.sink(pass.topic(), 1, true).await.replaying(pass);
        Lane::claimed(sink, pass.topic(), 0).await
    }

    pub async fn sink(&self, topic: Topic, lease_epoch: i64, check_offset: bool) -> PostgresSink {
        self.sink_in(topic, 0, lease_epoch, check_offset).await
    }

    async fn sink_in(&self, topic: Topic, partition: u32, lease_epoch: i64, check_offset: bool) -> PostgresSink {
        let options = SinkOptions {
            target: Address::parse(&self.pg.url()).unwrap(),
            session: options(self.replica),
            pipeline: PIPELINE.into(),
            topic,
            partition,
            lease_epoch,
            check_offset,
            config: self.config.clone(),
        };
        PostgresSink::open(options, self.plans.clone()).await.unwrap()
    }

    /// A table's rows without the version, in the order of their text.
    pub async fn rows(&self, columns: &str, table: &str) -> Vec<String> {
        let rows = self.pg.query(&format!("SELECT ({columns})::text FROM {table} ORDER BY 1")).await;
        rows.into_iter().map(|row| row[0].clone().unwrap_or_default()).collect()
    }

    pub async fn count(&self, from: &str) -> u64 {
        self.pg.value(&format!("SELECT count(*) FROM {from}")).await.unwrap().parse().unwrap()
    }
}

impl Lane {
    async fn claimed(mut sink: PostgresSink, topic: Topic, partition: u32) -> Self {
        let next = sink.claim(EPOCH).await.unwrap().next_offset;
        Lane { sink, topic, partition, next }
    }

    pub fn batch(&self, events: Vec<BatchEvent>) -> Batch {
        let to = self.next + events.len().max(1) as u64;
        Batch {
            topic: self.topic,
            partition: self.partition,
            log_epoch: EPOCH.into(),
            from: self.next,
            to,
            events,
            complete: true,
            control: None,
            chunks: Vec::new(),
            newest_commit_us: None,
        }
    }

    pub async fn try_apply(&mut self, events: Vec<BatchEvent>) -> Result<Applied, ApplyError> {
        let batch = self.batch(events);
        let to = batch.to;
        let applied = self.sink.apply(batch).await?;
        self.next = to;
        Ok(applied)
    }

    pub async fn apply(&mut self, events: Vec<BatchEvent>) -> Applied {
        self.try_apply(events).await.unwrap()
    }

    /// One part of a transaction that goes on.
    pub async fn apply_open(&mut self, events: Vec<BatchEvent>) -> Applied {
        let batch = Batch { complete: false, ..self.batch(events) };
        let to = batch.to;
        let applied = self.sink.apply(batch).await.unwrap();
        self.next = to;
        applied
    }
}

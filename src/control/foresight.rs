//! What applying a connector's topics would meet, without applying anything: for `cutover check`.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;

use super::{columns, connector::reads_of, worker::Attempt};
use crate::{
    config::Config,
    database::postgres::{self, PgError, Session, catalog},
    log::{
        DebeziumConfig, Log as _, LogError, Offset, Topic,
        debezium::{Order, Sample},
        kafka::{
            Settings,
            debezium::{DebeziumTopics, Memory, Table},
        },
    },
    model::{Plan, TableSchema},
    transform,
};

/// Bytes of each partition's first records that are tried.
const TRIED_BYTES: usize = 1 << 20;
const TRIED_WAIT: Duration = Duration::from_secs(2);

/// What was found.
#[derive(Debug, Default)]
pub struct Foresight {
    pub tables: usize,
    /// Topics, or what is in them: what is wrong and how to repair it, in one sentence.
    pub refused: Vec<String>,
    /// Tables that are wanted or have a topic, and show nothing yet.
    pub silent: Vec<String>,
    pub transforms: Vec<transform::Problem>,
}

/// Nothing is known of any lane.
struct Nothing;

#[async_trait]
impl Memory for Nothing {
    async fn recall(&self, _lane: u32, _from: Offset) -> Result<Order, LogError> {
        Ok(Order::default())
    }
}

/// Looks at the topics, checks the transforms against them, and tries their first records.
///
/// # Errors
/// What keeps it from looking at all.
pub async fn look(config: &Config, debezium: &DebeziumConfig) -> Result<Foresight, String> {
    let settings = Settings::new(&config.name, &config.log)?;
    let topics = DebeziumTopics::new(settings, debezium.clone()).map_err(|error| error.to_string())?;
    let found = topics.tables().await.map_err(|error| error.to_string())?;
    let (mut foresight, mut samples) = (Foresight::default(), Vec::new());
    let wanted = config.source.tables.clone().unwrap_or_else(|| found.keys().cloned().collect());
    for table in wanted {
        let Some(partitions) = found.get(&table).copied() else {
            foresight.silent.push(table);
            continue;
        };
        match topics.sample(&table, partitions).await {
            Ok(Some(sample)) => samples.push((table, partitions, sample)),
            Ok(None) => foresight.silent.push(table),
            Err(error) => foresight.refused.push(error.to_string()),
        }
    }
    foresight.tables = samples.len();
    if !samples.is_empty() {
        let judged = judge(config, &topics, debezium, samples, &mut foresight).await;
        judged.map_err(|attempt| match attempt {
            Attempt::Later(why) => why,
            Attempt::Hopeless(error) => error.to_string(),
        })?;
    }
    Ok(foresight)
}

async fn judge(
    config: &Config,
    topics: &DebeziumTopics,
    debezium: &DebeziumConfig,
    samples: Vec<(String, u32, Sample)>,
    foresight: &mut Foresight,
) -> Result<(), Attempt> {
    let known = columns::known(config, samples.iter().map(|(_, _, sample)| sample)).await?;
    let tables: Vec<Arc<TableSchema>> =
        samples.iter().zip(&known).map(|((_, _, sample), known)| Arc::new(sample.schema(known))).collect();
    let (plans, problems) = plans(config, &tables).await?;
    foresight.transforms = problems;
    let (mut lanes, mut first) = (Vec::new(), 0);
    for ((table, partitions, sample), known) in samples.into_iter().zip(known) {
        let reads = reads_of(&plans, &sample.table);
        lanes.push((first, Table { topic: debezium.topic(&table), partitions, sample, known, reads }));
        first += partitions;
    }
    let log = topics.log(String::new(), lanes, Arc::new(Nothing));
    for lane in 0..first {
        if let Err(error) = log.read(Topic::Changes, lane, 0, TRIED_BYTES, TRIED_WAIT).await {
            foresight.refused.push(error.to_string());
        }
    }
    Ok(())
}

async fn plans(config: &Config, tables: &[Arc<TableSchema>]) -> Result<(Vec<Plan>, Vec<transform::Problem>), Attempt> {
    let schema = &config.target.schema;
    let files = match transform::load(&config.path(&config.transform.folder), schema) {
        Ok(files) => files,
        // Those are told where the target is examined.
        Err(_) => return Ok((Vec::new(), Vec::new())),
    };
    let mut schemas: Vec<String> = files.iter().map(|file| file.target.schema.clone()).collect();
    schemas.push(schema.clone());
    let address = postgres::Target::parse(&config.target.url).map_err(|error| PgError::Login(error.to_string()))?;
    let session = Session::open(&address, &super::worker::postgres_options(config, "check", true)).await?;
    let targets = catalog::tables(&session.client, &schemas).await?;
    let checked = transform::check(&session.client, tables, &files, &targets, schema).await?;
    Ok((checked.plans, checked.problems))
}

//! What applying a connector's topics would meet, without applying anything: for `cutover check`.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;

use super::{
    connector::{known_types, reads_of},
    error::Attempt,
    parts::{Configured, Parts},
};
use crate::{
    config::Config,
    log::{
        DebeziumConfig, Log as _, LogError, Offset, Topic,
        debezium::{Order, Sample},
        kafka::{
            Settings,
            debezium::{DebeziumTopics, Memory, Table},
        },
    },
    model::{Problem, TableSchema},
    target::{Checked, Target, TargetError},
    transform,
};

/// Bytes of each partition's first records that are tried.
const TRIED_BYTES: usize = 1 << 20;
const TRIED_WAIT: Duration = Duration::from_secs(2);

/// What was found.
#[derive(Debug, Default)]
pub struct Preview {
    pub tables: usize,
    /// Whether foreign keys of the source may have changed rows that no topic tells of.
    pub may_hide_cascades: bool,
    /// Topics, or what is in them: what is wrong and how to repair it.
    pub refused: Vec<Problem>,
    /// Tables that are wanted or have a topic, and show nothing yet.
    pub silent: Vec<String>,
    pub transforms: Vec<transform::Diagnostic>,
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
pub async fn look(config: &Config, debezium: &DebeziumConfig) -> Result<Preview, Problem> {
    let settings = Settings::new(&config.name, &config.log).map_err(Problem::bare)?;
    let topics = DebeziumTopics::new(settings, debezium.clone()).map_err(|error| error.problem())?;
    let found = topics.tables().await.map_err(|error| error.problem())?;
    let (mut preview, mut samples) = (Preview::default(), Vec::new());
    let wanted = config.source.tables.clone().unwrap_or_else(|| found.keys().cloned().collect());
    for table in wanted {
        let Some(partitions) = found.get(&table).copied() else {
            preview.silent.push(table);
            continue;
        };
        match topics.sample(&table, partitions).await {
            Ok(Some(sample)) => samples.push((table, partitions, sample)),
            Ok(None) => preview.silent.push(table),
            Err(error) => preview.refused.push(error.problem()),
        }
    }
    preview.tables = samples.len();
    preview.may_hide_cascades = samples.iter().any(|(_, _, sample)| sample.may_hide_cascades());
    if !samples.is_empty() {
        let judged = judge(config, &topics, debezium, samples, &mut preview).await;
        judged.map_err(|attempt| match attempt {
            Attempt::Later(why) => Problem::bare(why),
            Attempt::Hopeless(error) => error.problem(),
        })?;
    }
    Ok(preview)
}

async fn judge(
    config: &Config,
    topics: &DebeziumTopics,
    debezium: &DebeziumConfig,
    samples: Vec<(String, u32, Sample)>,
    preview: &mut Preview,
) -> Result<(), Attempt> {
    let parts = Configured(Arc::new(config.clone()));
    let target = parts.target(parts.store()?, 0)?;
    let mut known = Vec::new();
    for (_, _, sample) in &samples {
        known.push(known_types(debezium, &*target, &sample.table.table).await?);
    }
    let tables: Vec<Arc<TableSchema>> =
        samples.iter().zip(&known).map(|((_, _, sample), known)| Arc::new(sample.schema(known))).collect();
    let Checked { plans, problems } = check(&*target, &tables).await?;
    preview.transforms = problems;
    let (mut lanes, mut first) = (Vec::new(), 0);
    for ((table, partitions, sample), known) in samples.into_iter().zip(known) {
        let reads = reads_of(&plans, &sample.table);
        lanes.push((first, Table { topic: debezium.topic(&table), partitions, sample, known, reads }));
        first += partitions;
    }
    let log = topics.log(String::new(), lanes, Arc::new(Nothing));
    for lane in 0..first {
        if let Err(error) = log.read(Topic::Changes, lane, 0, TRIED_BYTES, TRIED_WAIT).await {
            preview.refused.push(error.problem());
        }
    }
    Ok(())
}

/// Transforms that cannot be read are told where the target is examined.
async fn check(target: &dyn Target, tables: &[Arc<TableSchema>]) -> Result<Checked, Attempt> {
    match target.check(tables).await {
        Err(TargetError::Transforms(_)) => Ok(Checked::default()),
        checked => Ok(checked?),
    }
}

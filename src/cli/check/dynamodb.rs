//! A source on DynamoDB: credentials, tables, streams, and what cutover may do.

use super::{Part, Report};
use crate::{
    config::Config,
    database::dynamodb::{
        Connector, DynamoError, Service,
        catalog::{self, TableFacts},
        scan::{self, ScanPosition},
    },
    model::{Problem, TableSchema},
    observe::now_us,
    source::dynamodb::Streams,
    source::dynamodb::judge,
};

/// Examines the source; the tables that the pipeline follows, or none if there is too little to go on with.
pub(super) async fn examine(config: &Config, report: &mut Report) -> Option<Vec<TableSchema>> {
    let mut blocked = |problem: Problem| report.blocked_by(Part::Source, problem);
    let connector = Connector::new(&config.source.url).map_err(|error| blocked(error.problem())).ok()?;
    let service = connector.connect().await.map_err(|error| blocked(error.problem())).ok()?;
    let only = config.source.tables.as_deref();
    let loaded = catalog::load_tables(&service, only).await;
    let tables = loaded.map_err(|error| blocked(told(error))).ok()?;
    for problem in judge(&tables, only.unwrap_or_default(), connector.region()) {
        report.blocked_by(Part::Source, problem);
    }
    judge_clock(config, &service, report).await;
    for facts in &tables {
        judge_reads(&service, facts, report).await;
    }
    Some(tables.into_iter().map(|facts| facts.schema).collect())
}

/// A commit time from the future would beat every later change (rule 3).
async fn judge_clock(config: &Config, service: &Service, report: &mut Report) {
    let Ok(date_us) = service.now_us().await else { return };
    let ahead_seconds = date_us.saturating_sub(now_us()) / 1_000_000;
    if ahead_seconds > i64::from(config.source.clock_ahead_max_seconds) {
        report.blocks_on(
            Part::Source,
            format!("the service's clock is {ahead_seconds} s ahead of this machine's"),
            "set this machine's clock right",
        );
    }
}

/// Reads one item and the stream's beginning, as the copy and capture will.
async fn judge_reads(service: &Service, facts: &TableFacts, report: &mut Report) {
    let table = &facts.schema.table.table;
    if let Err(error) = scan::page(service, table, &ScanPosition::start_of(0, 1), 1).await {
        report.blocks_on(Part::Source, format!("table `{table}`: {error}"), "allow dynamodb:Scan on it");
    }
    let Some(stream) = &facts.stream else { return };
    if let Err(error) = read_stream(service, &stream.arn).await {
        report.blocks_on(
            Part::Source,
            format!("the stream of table `{table}`: {error}"),
            "allow dynamodb:DescribeStream, dynamodb:GetShardIterator and dynamodb:GetRecords on it",
        );
    }
}

async fn read_stream(service: &Service, arn: &str) -> Result<(), DynamoError> {
    let listing = service.shards(arn).await?;
    let Some(shard) = listing.shards.last() else { return Ok(()) };
    let iterator = service.iterator(arn, &shard.id, None).await?;
    service.records(&iterator).await.map(|_| ())
}

fn told(error: DynamoError) -> Problem {
    match error {
        DynamoError::Unreachable(why) => {
            Problem::new(format!("the source is unreachable: {why}"), "correct region or endpoint in [source] url")
        }
        DynamoError::Throttled(why) => Problem::new(why, "check again later"),
        error @ (DynamoError::Url(_)
        | DynamoError::Denied(_)
        | DynamoError::Missing(_)
        | DynamoError::Trimmed(_)
        | DynamoError::IteratorExpired(_)
        | DynamoError::Refused(_)) => error.problem(),
    }
}

//! DynamoDB: what `DescribeTable` tells, and a page of each table.

use tokio::time::Instant;

use super::{Analysis, AnalyzeError, Sample, Table, failed};
use crate::{
    config::Config,
    database::dynamodb::{
        Connector, DynamoError, Service,
        catalog::{self, TableFacts},
        scan::{self, ScanPosition},
    },
    model::Problem,
};

/// Items of a sample: a page of the service ends at 1 MB in any case.
const SAMPLE_ITEMS_MAX: u64 = 2_000;

pub(super) async fn analyze(config: &Config) -> Result<Analysis, AnalyzeError> {
    let connector = Connector::new(&config.source.url).map_err(|error| failed("[source] url", &error))?;
    let service = connector.connect().await.map_err(|error| failed("connecting", &error))?;
    asked(config, &service).await.map_err(|error| failed("its tables cannot be described", &error))
}

async fn asked(config: &Config, service: &Service) -> Result<Analysis, DynamoError> {
    let mut analysis = Analysis { source: format!("DynamoDB in {}", service.region), ..Analysis::default() };
    for facts in catalog::load_tables(service, config.source.tables.as_deref()).await? {
        let table = table_of(service, &facts).await?;
        if facts.items == 0 && table.sample.is_some() {
            let what = format!("how many items `{}` has: the service counts them every six hours or so", table.table);
            analysis.unknown.push(Problem::new(what, "run it again later"));
        }
        analysis.tables.push(table);
    }
    analysis.unknown.push(Problem::new(
        "how the tables are read and written: DescribeTable has no counters",
        "see ConsumedReadCapacityUnits and ConsumedWriteCapacityUnits in CloudWatch",
    ));
    Ok(analysis)
}

async fn table_of(service: &Service, facts: &TableFacts) -> Result<Table, DynamoError> {
    let name = facts.schema.table.table.clone();
    let began = Instant::now();
    let page = scan::page(service, &name, &ScanPosition::start_of(0, 1), SAMPLE_ITEMS_MAX).await?;
    let (rows, seconds) = (page.items.len() as u64, began.elapsed().as_secs_f64());
    let mut care = vec!["items are `jsonb` in a transform, which says what becomes of their attributes".to_owned()];
    if let Some(units) = facts.read_units {
        care.push(format!(
            "{units} read units a second: the copy takes its share of them ([snapshot] read_units_per_second)"
        ));
    }
    let width = facts.bytes.checked_div(facts.items).unwrap_or_default();
    Ok(Table {
        table: name,
        rows: facts.items,
        bytes: facts.bytes,
        key: facts.schema.key_columns().map(|column| column.name.clone()).collect(),
        care,
        sample: (rows > 0).then_some(Sample { rows, bytes: rows * width, seconds }),
        ..Table::default()
    })
}

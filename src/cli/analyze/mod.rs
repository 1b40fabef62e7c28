//! `cutover analyze`: what there is to move, before anything is moved.
//!
//! What enters: a configuration, of which only the source is connected to. What leaves: an [`Analysis`]: tables by
//! size, what they refer to and the order that follows, how they are used by the server's own counters, what needs
//! care, what `check` will say of the source, and how long reading it all takes at a rate measured on a sample. The
//! source is only read, a bounded part of each table and its catalog. Absent on purpose: the target, and with it how
//! fast rows can be stored there.

mod dynamodb;
mod mysql;
mod order;
mod postgres;
mod text;

use std::time::Duration;

use serde::Serialize;

use super::check::{self, Weight};
use crate::{
    config::Config,
    model::{Problem, SourceKind},
};

/// A sample of a table ends with so many rows, or bytes.
const SAMPLE_ROWS_MAX: u64 = 20_000;
const SAMPLE_BYTES_MAX: u64 = 16 << 20;

/// What the source says of itself.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Analysis {
    /// The server and its version.
    pub source: String,
    /// The largest first.
    pub tables: Vec<Table>,
    /// The tables, each after those that it refers to.
    pub order: Vec<String>,
    /// Tables that refer to each other in a ring: no order stores their rows one by one.
    pub rings: Vec<Vec<String>>,
    /// Triggers, cascades, views and routines, which stay behind.
    pub beside: Vec<String>,
    /// Over how many seconds the server has counted what [`Table::rates`] are made of; none if it does not count.
    pub counted_seconds: Option<f64>,
    /// What could not be found out, and what would let it be.
    pub unknown: Vec<Problem>,
    /// What `cutover check` says of the source.
    pub check: Vec<Finding>,
    /// Rows over all tables, by the server's statistics.
    pub rows: u64,
    /// Connections that read the copy.
    pub readers: usize,
    /// How long reading every table takes; none if no sample had rows. The target may take longer to store them.
    pub copy_seconds: Option<f64>,
}

/// A table.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Table {
    pub table: String,
    /// By the server's statistics, which may be off.
    pub rows: u64,
    /// With its indexes, where the server tells.
    pub bytes: u64,
    pub key: Vec<String>,
    /// Tables that its foreign keys refer to.
    pub parents: Vec<String>,
    pub rates: Option<Rates>,
    /// What needs care in its columns.
    pub care: Vec<String>,
    pub sample: Option<Sample>,
    /// How long one connection reads all of it, at the sample's rate.
    pub read_seconds: Option<f64>,
}

/// Rows a second, as a mean over what the server has counted.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Rates {
    pub inserted: f64,
    pub updated: f64,
    pub deleted: f64,
    pub read: f64,
}

/// A part of a table that was read.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Sample {
    pub rows: u64,
    pub bytes: u64,
    pub seconds: f64,
}

/// What `check` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// `blocks`, `warns` or `offers`.
    pub weight: &'static str,
    pub what: String,
    pub fix: String,
}

/// Why there is no analysis.
#[derive(Debug, thiserror::Error)]
#[error("the source cannot be analyzed: {0}")]
pub struct AnalyzeError(pub Problem);

/// Asks the source.
///
/// # Errors
/// When it cannot be reached, or its catalog not be read.
pub async fn run(config: &Config) -> Result<Analysis, AnalyzeError> {
    let mut analysis = match config.source.kind() {
        Some(SourceKind::Mysql) => mysql::analyze(config).await?,
        Some(SourceKind::Postgres) => postgres::analyze(config).await?,
        Some(SourceKind::Dynamo) => dynamodb::analyze(config).await?,
        None => {
            let fix = "write mysql://, postgresql:// or dynamodb:// into [source] url";
            return Err(AnalyzeError(Problem::new("[source] url names no kind of source", fix)));
        }
    };
    let report = check::of_source(config).await;
    analysis.check = report.findings.into_iter().map(finding).collect();
    analysis.readers = config.snapshot.parallel;
    analysis.sum_up();
    Ok(analysis)
}

fn finding(found: check::Finding) -> Finding {
    let weight = match found.weight {
        Weight::Blocks => "blocks",
        Weight::Warns => "warns",
        Weight::Offers => "offers",
    };
    Finding { weight, what: found.problem.what, fix: found.problem.fix }
}

impl Analysis {
    /// What follows from the tables.
    fn sum_up(&mut self) {
        for table in &mut self.tables {
            table.read_seconds = table.sample.and_then(|sample| sample.seconds_for(table.rows));
        }
        self.tables.sort_by(|a, b| (b.bytes, b.rows, &a.table).cmp(&(a.bytes, a.rows, &b.table)));
        (self.order, self.rings) = order::by_parents(&self.tables);
        self.rows = self.tables.iter().map(|table| table.rows).sum();
        let read: Vec<f64> = self.tables.iter().filter_map(|table| table.read_seconds).collect();
        // Chunks of one table are read by all connections.
        self.copy_seconds = (!read.is_empty()).then(|| read.iter().sum::<f64>() / self.readers.max(1) as f64);
    }
}

impl Sample {
    /// How long so many rows take at its rate; none if it had none.
    fn seconds_for(&self, rows: u64) -> Option<f64> {
        (self.rows > 0).then(|| self.seconds * rows as f64 / self.rows as f64)
    }
}

/// How many rows of a table are read as a sample: fewer where they are wide.
fn sample_rows(rows: u64, bytes: u64) -> u64 {
    let width = bytes.checked_div(rows).unwrap_or_default().max(1);
    (SAMPLE_BYTES_MAX / width).clamp(1, SAMPLE_ROWS_MAX)
}

/// A counter as rows a second.
fn rate(count: u64, over: Duration) -> f64 {
    count as f64 / over.as_secs_f64().max(1.0)
}

fn failed(what: &str, error: &dyn std::fmt::Display) -> AnalyzeError {
    AnalyzeError(Problem::new(format!("{what}: {error}"), "correct that and run it again"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wide_rows_make_small_samples() {
        assert_eq!(sample_rows(0, 0), SAMPLE_ROWS_MAX);
        assert_eq!(sample_rows(1_000_000, 100_000_000), SAMPLE_ROWS_MAX);
        assert_eq!(sample_rows(400, 400 * (2 << 20)), 8);
        assert_eq!(sample_rows(1, 1 << 40), 1);
    }

    #[test]
    fn the_copy_is_as_long_as_all_readers_need_together() {
        let sample = Some(Sample { rows: 100, bytes: 1000, seconds: 0.5 });
        let table = |name: &str, rows| Table { table: name.into(), rows, sample, ..Table::default() };
        let mut analysis =
            Analysis { tables: vec![table("a", 1000), table("b", 3000)], readers: 2, ..Analysis::default() };
        analysis.sum_up();
        assert_eq!((analysis.rows, analysis.copy_seconds), (4000, Some(10.0)));
        let mut nothing = Analysis { tables: vec![Table::default()], readers: 2, ..Analysis::default() };
        nothing.sum_up();
        assert_eq!(nothing.copy_seconds, None);
    }
}

//! `cutover check`: everything that would keep the pipeline from running, before it runs.
//!
//! What enters: a configuration that is valid in itself. What leaves: a [`Report`], each finding with its fix. Every
//! part is examined as far as the ones before it allow, so that one run names all that is wrong. Nothing is changed
//! on either side. Absent on purpose: waiting. A server that does not answer is a finding.

mod cascades;
mod connector;
mod dynamodb;
mod machine;
mod postgres;
mod source;
mod target;

use std::{collections::BTreeSet, fmt};

use super::eligible::obstacle;
use crate::{
    config::Config,
    model::{Problem, SourceKind, TableName, TableSchema},
    observe::now_us,
};

/// What a finding is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    Source,
    Target,
    Transforms,
    /// The machine that the worker runs on.
    Worker,
}

/// Whether the pipeline can run all the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weight {
    Blocks,
    Warns,
    /// It runs well without, and better with it.
    Offers,
}

/// One thing that is wrong, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub weight: Weight,
    pub part: Part,
    pub problem: Problem,
}

/// All that is wrong.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    pub findings: Vec<Finding>,
    /// Source tables that were found.
    pub tables: usize,
}

impl Report {
    /// Whether something keeps the pipeline from running.
    pub fn blocks(&self) -> bool {
        self.count(Weight::Blocks) > 0
    }

    fn count(&self, weight: Weight) -> usize {
        self.findings.iter().filter(|finding| finding.weight == weight).count()
    }

    fn blocks_on(&mut self, part: Part, what: impl Into<String>, fix: impl Into<String>) {
        self.add(Weight::Blocks, part, Problem::new(what, fix));
    }

    fn warns_of(&mut self, part: Part, what: impl Into<String>, fix: impl Into<String>) {
        self.add(Weight::Warns, part, Problem::new(what, fix));
    }

    fn offers(&mut self, part: Part, what: impl Into<String>, how: impl Into<String>) {
        self.add(Weight::Offers, part, Problem::new(what, how));
    }

    /// A problem that keeps the pipeline from running.
    fn blocked_by(&mut self, part: Part, problem: Problem) {
        self.add(Weight::Blocks, part, problem.or("correct that and check again"));
    }

    fn add(&mut self, weight: Weight, part: Part, problem: Problem) {
        self.findings.push(Finding { weight, part, problem });
    }
}

/// Examines source, target and transforms.
pub async fn run(config: &Config) -> Report {
    let mut report = Report::default();
    if let Some(debezium) = &config.log.debezium {
        // Without a source the target is examined as far as it can be, and its transforms against the topics.
        target::examine(config, None, &BTreeSet::new(), &mut report).await;
        connector::examine(config, debezium, &mut report).await;
        return report;
    }
    if config.source.kind() == Some(SourceKind::Postgres) {
        let tables = postgres::examine(config, &mut report).await;
        let schemas: Option<Vec<_>> =
            tables.as_ref().map(|tables| tables.iter().map(|table| table.schema.clone()).collect());
        let target = target::examine(config, schemas.as_deref(), &refused(schemas.as_deref()), &mut report).await;
        report.tables = schemas.map_or(0, |schemas| schemas.len());
        if let (Some(tables), Some(target)) = (&tables, &target) {
            postgres::judge_images(tables, target, &mut report);
        }
    } else if config.source.kind() == Some(SourceKind::Dynamo) {
        let tables = dynamodb::examine(config, &mut report).await;
        target::examine(config, tables.as_deref(), &BTreeSet::new(), &mut report).await;
        report.tables = tables.map_or(0, |tables| tables.len());
    } else {
        let source = source::examine(config, &mut report).await;
        let tables = source.as_ref().map(|source| source.tables.as_slice());
        let target = target::examine(config, tables, &refused(tables), &mut report).await;
        if let Some(source) = &source {
            report.tables = source.tables.len();
            cascades::judge(source, target.as_ref(), config.source.cascades, &mut report);
        }
    }
    machine::examine(config, &mut report).await;
    report
}

/// Examines the source alone.
pub async fn of_source(config: &Config) -> Report {
    let mut report = Report::default();
    match config.source.kind() {
        Some(SourceKind::Postgres) => {
            postgres::examine(config, &mut report).await;
        }
        Some(SourceKind::Dynamo) => {
            dynamodb::examine(config, &mut report).await;
        }
        Some(SourceKind::Mysql) | None => {
            if let Some(source) = source::examine(config, &mut report).await {
                cascades::judge(&source, None, config.source.cascades, &mut report);
            }
        }
    }
    report
}

/// Tables that cannot be moved at all: what their transforms would be like is beside the point.
fn refused(tables: Option<&[TableSchema]>) -> BTreeSet<TableName> {
    let refused = tables.unwrap_or_default().iter().filter(|schema| obstacle(schema).is_some());
    refused.map(|schema| schema.table.clone()).collect()
}

/// A commit time from the future would beat every later change (rule 3).
fn judge_clock(source_now_us: i64, ahead_max_seconds: u32, report: &mut Report) {
    let ahead_seconds = source_now_us.saturating_sub(now_us()) / 1_000_000;
    if ahead_seconds > i64::from(ahead_max_seconds) {
        report.blocks_on(
            Part::Source,
            format!("the source's clock is {ahead_seconds} s ahead of this machine's"),
            format!("set both clocks right, or raise [source] clock_ahead_max_seconds above {ahead_seconds}"),
        );
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Part::Source => "source",
            Part::Target => "target",
            Part::Transforms => "transforms",
            Part::Worker => "worker",
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for weight in [Weight::Blocks, Weight::Warns, Weight::Offers] {
            for finding in self.findings.iter().filter(|finding| finding.weight == weight) {
                let (word, then) = match weight {
                    Weight::Blocks => ("blocks ", "fix"),
                    Weight::Warns => ("warning", "fix"),
                    Weight::Offers => ("offer  ", "how"),
                };
                writeln!(f, "{word}  {}: {}", finding.part, finding.problem.what)?;
                writeln!(f, "         {then}: {}", finding.problem.fix)?;
            }
        }
        let (blocks, warnings) = (self.count(Weight::Blocks), self.count(Weight::Warns));
        match (blocks, warnings) {
            (0, 0) => write!(f, "ready: {} table(s), nothing is in the way", self.tables),
            (0, _) => write!(f, "ready: {} table(s), {warnings} warning(s)", self.tables),
            (_, _) => write!(f, "not ready: {blocks} problem(s) block, {warnings} warning(s)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_blocks_comes_first_and_everything_has_a_fix() {
        let mut report = Report { tables: 2, ..Report::default() };
        assert_eq!(report.to_string(), "ready: 2 table(s), nothing is in the way");
        report.warns_of(Part::Target, "w", "fix w");
        assert!(!report.blocks());
        report.blocks_on(Part::Source, "b", "fix b");
        assert!(report.blocks());
        let text = report.to_string();
        assert!(text.starts_with("blocks   source: b\n         fix: fix b\nwarning  target: w\n         fix: fix w\n"));
        assert!(text.ends_with("not ready: 1 problem(s) block, 1 warning(s)"));
    }
}

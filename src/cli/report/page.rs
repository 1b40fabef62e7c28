//! The page as blocks, in the order in which they are read: what Markdown and HTML have in common.

use super::facts::{Compared, Facts, Milestone, Phased, Requirement, Started, Told};
use crate::{
    cli::status::human_seconds,
    observe::utc,
    state::{
        copies::CopyTimes,
        dead_letters::LetterGroup,
        lag_history::{LagHistory, LagPoint},
        verifications::VerifiedTable,
    },
};

/// Things that happened that are shown, the newest.
const TOLD_MAX: usize = 60;
/// Points further apart than so many steps have no worker between them.
pub(super) const GAP_STEPS: i64 = 3;

/// The whole page.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) title: String,
    pub(super) goes: bool,
    pub(super) blocks: Vec<Block>,
}

/// One piece of it.
#[derive(Debug)]
pub(super) enum Block {
    Heading(&'static str),
    Text(String),
    List(Vec<String>),
    Table(Table),
    /// The lag over time.
    Lag(LagHistory),
    /// When tables were copied, one bar each.
    Bars(Vec<Bar>),
}

#[derive(Debug)]
pub(super) struct Table {
    pub(super) head: Vec<&'static str>,
    /// Columns from this one on are numbers.
    pub(super) numbers_from: usize,
    pub(super) rows: Vec<Row>,
}

#[derive(Debug)]
pub(super) struct Row {
    /// Whether what it says is as it should be; none where that is no question.
    pub(super) is_good: Option<bool>,
    pub(super) cells: Vec<String>,
}

/// When a table was copied, as shares of the time that all took.
#[derive(Debug)]
pub(super) struct Bar {
    pub(super) table: String,
    pub(super) from: f64,
    pub(super) to: f64,
    pub(super) took: String,
}

impl Page {
    /// In one word.
    pub(super) fn verdict(&self) -> &'static str {
        if self.goes { "go" } else { "no-go" }
    }
}

/// Puts the facts in their order.
pub(super) fn of(facts: &Facts) -> Page {
    let mut blocks =
        vec![Block::Text(format!("From {} to {}, as of {} UTC.", facts.source, facts.target, utc(facts.made_us)))];
    decision(facts, &mut blocks);
    copies(facts, &mut blocks);
    lag(facts, &mut blocks);
    set_aside(facts, &mut blocks);
    verification(facts, &mut blocks);
    happened(facts, &mut blocks);
    Page { title: format!("Migration `{}`", facts.pipeline), goes: facts.goes(), blocks }
}

fn decision(facts: &Facts, blocks: &mut Vec<Block>) {
    blocks.push(Block::Heading("Go or no-go"));
    let requirements = facts.requirements();
    let missed: Vec<&Requirement> = requirements.iter().filter(|requirement| !requirement.passed).collect();
    blocks.push(Block::Text(match missed.len() {
        0 => "Go: everything that a switch needs is true.".into(),
        1 => "No-go: one thing is missing.".into(),
        count => format!("No-go: {count} things are missing."),
    }));
    let row = |requirement: &Requirement| Row {
        is_good: Some(requirement.passed),
        cells: vec![requirement.name.clone(), requirement.found.clone(), requirement.wanted.clone()],
    };
    let rows = requirements.iter().map(row).collect();
    blocks.push(Block::Table(Table { head: vec!["gate", "found", "wanted"], numbers_from: 3, rows }));
    if !missed.is_empty() {
        let to_do = |requirement: &&Requirement| format!("{}: {}", requirement.name, requirement.fix);
        blocks.push(Block::Text("To do:".into()));
        blocks.push(Block::List(missed.iter().map(to_do).collect()));
    }
}

fn copies(facts: &Facts, blocks: &mut Vec<Block>) {
    blocks.push(Block::Heading("The copy"));
    let row = |copy: &CopyTimes| {
        let took = seconds(copy);
        let rate = took.filter(|seconds| *seconds > 0.0).map(|seconds| copy.rows_copied as f64 / seconds);
        Row {
            is_good: None,
            cells: vec![
                copy.table.clone(),
                copy.state.name().to_owned(),
                copy.started_us.map_or_else(|| "-".into(), utc),
                copy.copy.to_string(),
                copy.rows_copied.to_string(),
                took.map_or_else(|| "-".into(), spelled_seconds),
                rate.map_or_else(|| "-".into(), |rate| format!("{rate:.0}")),
            ],
        }
    };
    blocks.push(Block::Table(Table {
        head: vec!["table", "state", "began, UTC", "copy", "rows", "took", "rows/s"],
        numbers_from: 3,
        rows: facts.copies.iter().map(row).collect(),
    }));
    let bars = bars(&facts.copies);
    if !bars.is_empty() {
        blocks.push(Block::Bars(bars));
    }
}

/// How long a copy took.
fn seconds(copy: &CopyTimes) -> Option<f64> {
    Some(copy.finished_us?.saturating_sub(copy.started_us?).max(0) as f64 / 1e6)
}

/// Copies that are through, beside each other on one axis.
fn bars(copies: &[CopyTimes]) -> Vec<Bar> {
    let times = copies.iter().filter_map(|copy| Some((copy, copy.started_us?, copy.finished_us?)));
    let times: Vec<(&CopyTimes, i64, i64)> = times.collect();
    let first = times.iter().map(|(_, started, _)| *started).min().unwrap_or_default();
    let last = times.iter().map(|(_, _, finished)| *finished).max().unwrap_or_default();
    let span = last.saturating_sub(first).max(1) as f64;
    let share = |at: i64| at.saturating_sub(first) as f64 / span;
    times
        .into_iter()
        .map(|(copy, started, finished)| Bar {
            table: copy.table.clone(),
            from: share(started),
            to: share(finished),
            took: seconds(copy).map_or_else(String::new, spelled_seconds),
        })
        .collect()
}

fn lag(facts: &Facts, blocks: &mut Vec<Block>) {
    blocks.push(Block::Heading("Lag"));
    let points = facts.lag.points();
    // The first of those that are as high.
    let Some(highest) = points.iter().rev().max_by(|one, other| one.lag_seconds.total_cmp(&other.lag_seconds)) else {
        blocks.push(Block::Text("No lag is known yet: nothing was applied.".into()));
        return;
    };
    let mut lags: Vec<f64> = points.iter().map(|point| point.lag_seconds).collect();
    lags.sort_by(f64::total_cmp);
    let median = lags.get(lags.len() / 2).copied().unwrap_or_default();
    let step = human_seconds(facts.lag.step_seconds() as f64);
    let mut text = format!(
        "Highest {:.1} s, at {} UTC; in half of all steps of {step} at most {median:.1} s.",
        highest.lag_seconds,
        utc(highest.at_us()),
    );
    if let Some(rate) = busiest(&facts.lag) {
        text.push_str(&format!(" The busiest step had {rate:.0} changes a second."));
    }
    blocks.push(Block::Text(text));
    blocks.push(Block::Lag(facts.lag.clone()));
}

/// The most changes a second, as a mean over a step.
fn busiest(history: &LagHistory) -> Option<f64> {
    let rate = |two: &[LagPoint]| {
        let [before, after] = two else { return None };
        let seconds = after.at_seconds - before.at_seconds;
        let is_near = seconds > 0 && seconds <= GAP_STEPS * history.step_seconds();
        is_near.then(|| after.changes.saturating_sub(before.changes) as f64 / seconds as f64)
    };
    history.points().windows(2).filter_map(rate).max_by(f64::total_cmp)
}

fn set_aside(facts: &Facts, blocks: &mut Vec<Block>) {
    let status = &facts.status;
    blocks.push(Block::Heading("Set aside, and conflicts"));
    blocks.push(Block::Text(format!(
        "Rows that wait: {}. Open dead letters: {}. Discarded: {}. Conflicts: {}.",
        status.waiting, status.dead_letters, status.dead_letters_discarded, status.conflicts
    )));
    let waits = status.waiting_for.iter().map(|waits| Row {
        is_good: None,
        cells: vec![waits.table.clone(), "waits".into(), waits.reason.clone(), waits.rows.to_string()],
    });
    let letter = |group: &LetterGroup| Row {
        is_good: None,
        cells: vec![
            group.table.clone(),
            format!("dead letter, {}", group.state.name()),
            group.error.clone(),
            group.letters.to_string(),
        ],
    };
    let rows: Vec<Row> = waits.chain(facts.letters.iter().map(letter)).collect();
    if !rows.is_empty() {
        blocks.push(Block::Table(Table { head: vec!["table", "state", "why", "rows"], numbers_from: 3, rows }));
    }
}

fn verification(facts: &Facts, blocks: &mut Vec<Block>) {
    blocks.push(Block::Heading("Verification"));
    let repaired: u64 = facts.told.iter().map(Told::repaired).sum();
    let last = facts.verdict.as_ref().map(|verdict| utc(verdict.at_us));
    blocks.push(Block::Text(match (last, facts.status.verified.is_empty()) {
        (None, true) => "Nothing was compared yet: run `cutover verify`.".into(),
        (None, false) => format!("Compared in the background alone. Rows repaired: {repaired}."),
        (Some(at), _) => format!("`cutover verify` ended last at {at} UTC. Rows repaired: {repaired}."),
    }));
    let row = |verified: &VerifiedTable| Row {
        is_good: Some(verified.is_clean),
        cells: vec![
            verified.table.clone(),
            utc(verified.at_us),
            verified.rows.to_string(),
            verified.missing.to_string(),
            verified.extra.to_string(),
            verified.different.to_string(),
        ],
    };
    let rows: Vec<Row> = facts.status.verified.iter().map(row).collect();
    if !rows.is_empty() {
        let head = vec!["table", "compared, UTC", "rows", "missing", "extra", "different"];
        blocks.push(Block::Table(Table { head, numbers_from: 2, rows }));
    }
}

fn happened(facts: &Facts, blocks: &mut Vec<Block>) {
    blocks.push(Block::Heading("What happened"));
    let rows: Vec<Row> = facts.told.iter().map(told).collect();
    let left_out = rows.len().saturating_sub(TOLD_MAX);
    if left_out > 0 {
        blocks.push(Block::Text(format!(
            "The newest {TOLD_MAX}; {left_out} before them are in `cutover status --events`."
        )));
    }
    let rows: Vec<Row> = rows.into_iter().skip(left_out).collect();
    if rows.is_empty() {
        blocks.push(Block::Text("Nothing yet.".into()));
    } else {
        blocks.push(Block::Table(Table { head: vec!["at, UTC", "what"], numbers_from: 2, rows }));
    }
}

fn told(told: &Told) -> Row {
    let name = |table: &Started| match table.copy {
        1 => table.table.clone(),
        copy => format!("{} (copy {copy})", table.table),
    };
    let (is_good, what) = match &told.what {
        Milestone::Phase(Phased { halted: Some(halt), .. }) => (Some(false), format!("halted: {}", halt.reason)),
        Milestone::Phase(Phased { to, halted: None }) => (None, format!("phase: {to}")),
        Milestone::CopyBegan(tables) => {
            (None, format!("copying began: {}", tables.iter().map(name).collect::<Vec<_>>().join(", ")))
        }
        Milestone::Verified(Compared { clean: true, .. }) => (Some(true), "verified: clean".into()),
        Milestone::Verified(Compared { match_rate, .. }) => {
            (Some(false), format!("verified: not clean, match rate {match_rate}"))
        }
        Milestone::Waiting(0) => (None, "no row waits any more".into()),
        Milestone::Waiting(rows) => (None, format!("rows wait for others: {rows}")),
    };
    Row { is_good, cells: vec![told.at.clone(), what] }
}

impl Told {
    fn repaired(&self) -> u64 {
        match &self.what {
            Milestone::Verified(compared) => compared.rows_repaired,
            Milestone::Phase(_) | Milestone::CopyBegan(_) | Milestone::Waiting(_) => 0,
        }
    }
}

/// Below a minute with a digit after the point.
fn spelled_seconds(seconds: f64) -> String {
    if seconds < 60.0 { format!("{seconds:.1}s") } else { human_seconds(seconds) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_lie_where_the_copies_were() {
        let facts = super::super::facts::tests::ready();
        let mut copies = facts.copies;
        copies[1].started_us = copies[0].finished_us;
        copies[1].finished_us = copies[0].finished_us.map(|at| at + 3 * 3_600_000_000);
        let bars: Vec<(f64, f64)> = bars(&copies).iter().map(|bar| (bar.from, bar.to)).collect();
        assert_eq!(bars, [(0.0, 0.25), (0.25, 1.0)]);
        copies[0].finished_us = None;
        assert_eq!(super::bars(&copies).len(), 1);
    }
}

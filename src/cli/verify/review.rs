//! `cutover verify --review`: drifted rows, one by one, with what people say of them.
//!
//! What enters is what comparisons have noted; what leaves is a list, a row that is accepted, or one that was sent
//! again and looked at once more. Rows are accepted without a worker, and repaired by it alone.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use serde::Serialize;
use serde_json::json;

use super::{Review, VerifyArgs, compared, failure, not_halted};
use crate::{
    cli::{Failure, asked, print},
    config::Config,
    state::{
        Store,
        drift::{DRIFT_ROWS_MAX, DriftKey, DriftRow, DriftSelection, DriftState},
    },
    verify::{Ask, Verdict},
};

/// What the command is called that repairs.
const REPAIR: &str = "verify --review repair";

/// What became of a row that was to be repaired.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Outcome {
    /// It was sent again, and is equal.
    Repaired,
    /// It was equal before anything was sent.
    Equal,
    /// It cannot be called equal.
    Left,
}

#[derive(Debug, Serialize)]
struct Became {
    id: i64,
    #[serde(skip)]
    row: String,
    outcome: Outcome,
    /// Why it was left.
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
}

pub(super) async fn review(config: &Config, store: &Store, what: Review, arguments: VerifyArgs) -> Result<(), Failure> {
    let VerifyArgs { tables, ids, json, .. } = arguments;
    for table in &tables {
        asked::is_known(store, table).await?;
    }
    let selection =
        DriftSelection { ids: (!ids.is_empty()).then(|| ids.clone()), tables: (!tables.is_empty()).then_some(tables) };
    let rows = store.drift_rows(&selection).await?;
    let unknown: Vec<String> =
        ids.iter().filter(|id| !rows.iter().any(|row| row.id == **id)).map(i64::to_string).collect();
    if !unknown.is_empty() {
        eprintln!(
            "cutover: no row {} is to be reviewed, and nothing was done; `cutover verify --review list` shows those that \
             are: a row has another ID when it differs in another way, and none when it is equal",
            unknown.join(", ")
        );
        return Err(Failure::No);
    }
    match what {
        Review::List => list(&rows, json),
        Review::Accept => accept(store, rows, &ids, json).await,
        Review::Repair => repair(config, store, rows, &ids, json).await,
    }
}

fn count(rows: &[DriftRow], state: DriftState) -> usize {
    rows.iter().filter(|row| row.state == state).count()
}

fn list(rows: &[DriftRow], json: bool) -> Result<(), Failure> {
    let (open, accepted) = (count(rows, DriftState::Open), count(rows, DriftState::Accepted));
    if json {
        return print(&json!({ "open": open, "accepted": accepted, "rows": rows }));
    }
    if rows.is_empty() {
        return print(&"nothing to review: no row is known to differ; `cutover verify` compares");
    }
    let mut text = table(rows);
    let _ = write!(text, "{open} open, {accepted} accepted");
    let mut of: BTreeMap<&str, usize> = BTreeMap::new();
    rows.iter().for_each(|row| *of.entry(&row.table).or_default() += 1);
    for (table, _) in of.iter().filter(|(_, rows)| **rows >= DRIFT_ROWS_MAX) {
        let _ = write!(text, "; of {table} the first {DRIFT_ROWS_MAX} rows are kept, and there may be more");
    }
    if open > 0 {
        let _ = write!(
            text,
            "; `cutover verify --review repair ID` sends a row again, `cutover verify --review accept ID` leaves it as it is"
        );
    }
    print(&text)
}

/// A line for each row, under a line of names.
fn table(rows: &[DriftRow]) -> String {
    let names = ["id", "table", "target", "kind", "key", "columns", "state", "since"].map(str::to_owned);
    let cells = |row: &DriftRow| {
        let key: Vec<&str> = row.key.iter().map(|part| part.as_deref().unwrap_or("null")).collect();
        [
            row.id.to_string(),
            row.table.clone(),
            row.target.clone(),
            row.kind.name().to_owned(),
            key.join(","),
            row.columns.join(","),
            row.state.name().to_owned(),
            row.since.clone(),
        ]
    };
    let reasons = rows.iter().map(|row| row.reason.as_deref().unwrap_or_default());
    let lines: Vec<([String; 8], &str)> = rows.iter().map(cells).zip(reasons).collect();
    let mut widths = names.each_ref().map(String::len);
    for (cells, _) in &lines {
        for (width, cell) in widths.iter_mut().zip(cells) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for (cells, reason) in std::iter::once(&(names, "reason")).chain(&lines) {
        let padded: Vec<String> = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        let _ = writeln!(text, "{}", format!("{}  {reason}", padded.join("  ")).trim_end());
    }
    text
}

async fn accept(store: &Store, rows: Vec<DriftRow>, asked: &[i64], json: bool) -> Result<(), Failure> {
    let open: Vec<i64> = rows.iter().filter(|row| row.state == DriftState::Open).map(|row| row.id).collect();
    let before = if asked.is_empty() { 0 } else { count(&rows, DriftState::Accepted) };
    let accepted = store.accept_drift(&open).await?;
    if json {
        return print(&json!({ "accepted": accepted, "accepted_before": before }));
    }
    if open.is_empty() && before == 0 {
        return print(&"no row is open: nothing to accept");
    }
    let mut text =
        format!("{accepted} accepted: `cutover verify` calls them drift again when they differ in another way");
    if before > 0 {
        let _ = write!(text, "; {before} were accepted before");
    }
    print(&text)
}

async fn repair(
    config: &Config,
    store: &Store,
    mut rows: Vec<DriftRow>,
    asked: &[i64],
    json: bool,
) -> Result<(), Failure> {
    // What is accepted is repaired for who names it.
    rows.retain(|row| !asked.is_empty() || row.state == DriftState::Open);
    if rows.is_empty() {
        return if json { print(&json!({ "rows": [] })) } else { print(&"no row is open: nothing to repair") };
    }
    let bound = config.verify.repair_rows_max;
    if rows.len() as u64 > bound {
        return Err(Failure::Usage(anyhow::anyhow!(
            "nothing is repaired: these are {} rows, more than {bound} ([verify] repair_rows_max); find out why so many differ, \
             and name fewer IDs or one --table, or `cutover resnapshot` the table",
            rows.len()
        )));
    }
    asked::worker_runs_for(store, REPAIR).await?;
    not_halted(store, REPAIR).await?;
    let tables: BTreeSet<String> = rows.iter().map(|row| row.table.clone()).collect();
    let tables: Vec<String> = tables.into_iter().collect();
    let ask = Ask { tables: tables.clone(), rows: Some(rows.clone()), ..Ask::default() };
    let (verification, mut verdict) = compared(config, &ask).await?;
    let selection = DriftSelection { ids: None, tables: Some(tables) };
    let before = places(store, &selection).await?;
    if verdict.drifted() > 0 && verdict.caveat.is_none() {
        verdict = verification.repair(&ask, verdict).await.map_err(failure)?;
    }
    let after = places(store, &selection).await?;
    let became: Vec<Became> = rows.iter().map(|row| became(row, &verdict, &before, &after)).collect();
    let is_done = became.iter().all(|row| row.outcome != Outcome::Left);
    if json {
        print(&json!({ "rows": became }))?;
    } else {
        print(&told(&became))?;
    }
    if is_done { Ok(()) } else { Err(Failure::No) }
}

/// The rows that are noted now. A row that differs in another way has another ID.
async fn places(store: &Store, selection: &DriftSelection) -> Result<BTreeSet<(String, DriftKey)>, Failure> {
    let rows = store.drift_rows(selection).await?;
    Ok(rows.into_iter().map(|row| (row.table.clone(), row.drift_key())).collect())
}

fn became(
    row: &DriftRow,
    verdict: &Verdict,
    before: &BTreeSet<(String, DriftKey)>,
    after: &BTreeSet<(String, DriftKey)>,
) -> Became {
    let place = (row.table.clone(), row.drift_key());
    let outcome = match (before.contains(&place), after.contains(&place)) {
        (_, true) => Outcome::Left,
        (true, false) => Outcome::Repaired,
        (false, false) => Outcome::Equal,
    };
    let key: Vec<&str> = row.key.iter().map(|part| part.as_deref().unwrap_or("null")).collect();
    Became {
        id: row.id,
        row: format!("{} ({})", row.target, key.join(", ")),
        outcome,
        why: (outcome == Outcome::Left).then(|| why(row, verdict)),
    }
}

/// Why a row was left as it is.
fn why(row: &DriftRow, verdict: &Verdict) -> String {
    if let Some(caveat) = &verdict.caveat {
        return caveat.clone();
    }
    if row.source_key.is_none() {
        return "its key does not lead back to the source: delete it by hand if it is not wanted, and `cutover verify` its table"
            .into();
    }
    let Some(table) = verdict.tables.iter().find(|table| table.table == row.table) else {
        return "its table was not compared; `cutover verify` again".into();
    };
    if let Some(skipped) = &table.skipped {
        return format!("its table was not compared: {skipped}");
    }
    let shown = table.drift.iter().find(|drift| drift.target == row.target && drift.key == row.key);
    match shown {
        Some(drift) => {
            let kind = match drift.kind.as_str() {
                "unconfirmed" => "its changes may still be on their way; repair it again when the worker has caught up",
                "moving" => "it changed each time that it was looked at; repair it again when it is written less",
                "explained" => "it differs for a reason that is known",
                _ => "it differs still",
            };
            drift.reason.as_ref().map_or_else(|| kind.to_owned(), |reason| format!("{kind}: {reason}"))
        }
        None => "it differs still; `cutover verify --review list` shows how".into(),
    }
}

fn told(became: &[Became]) -> String {
    let mut text = String::new();
    let count = |outcome: Outcome| became.iter().filter(|row| row.outcome == outcome).count();
    for Became { id, row, outcome, why } in became {
        let _ = match (outcome, why) {
            (Outcome::Repaired, _) => writeln!(text, "{id}  {row}  repaired"),
            (Outcome::Equal, _) => writeln!(text, "{id}  {row}  equal already: nothing was sent"),
            (Outcome::Left, why) => writeln!(text, "{id}  {row}  left: {}", why.as_deref().unwrap_or_default()),
        };
    }
    let (repaired, equal, left) = (count(Outcome::Repaired), count(Outcome::Equal), count(Outcome::Left));
    let _ = write!(text, "{repaired} repaired, {equal} equal already, {left} left");
    text
}

//! `cutover dlq`: dead letters.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use clap::{Args, Subcommand};
use serde_json::json;

use super::{Failure, asked};
use crate::{
    config::Config,
    control::parts,
    database::{dynamodb, mysql::connect::Connector},
    model::SourceKind,
    state::{
        Store,
        dead_letters::{DeadLetter, DeadLetterState, Retried, Selection},
        requests::Command,
    },
};

const POLL_EVERY: Duration = Duration::from_millis(300);

/// What to do with dead letters.
#[derive(Debug, Subcommand)]
pub(crate) enum Dlq {
    /// List the open ones.
    List {
        /// Of this source table.
        #[arg(long, value_name = "T")]
        table: Option<String>,
        /// One JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Show one, also if it is closed.
    Show {
        id: i64,
        /// The row's values too.
        #[arg(long)]
        values: bool,
        /// One JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Read the rows again from the source and apply them.
    Retry(Which),
    /// Close letters: their rows stay as they are at the target.
    Discard {
        #[arg(required = true, value_name = "ID")]
        ids: Vec<i64>,
    },
}

/// Which dead letters.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Which {
    #[arg(value_name = "ID")]
    ids: Vec<i64>,
    /// All of this source table.
    #[arg(long, value_name = "T")]
    table: Option<String>,
    /// All.
    #[arg(long)]
    all: bool,
}

pub(crate) async fn dlq(config: &Config, command: Dlq) -> Result<(), Failure> {
    let store = parts::store(config)?;
    asked::state_is_ours(&store).await?;
    match command {
        Dlq::List { table, json } => list(config, &store, table, json).await,
        Dlq::Show { id, values, json } => show(&store, id, values, json).await,
        Dlq::Retry(which) => retry(config, &store, which).await,
        Dlq::Discard { ids } => discard(&store, ids).await,
    }
}

/// All, or those of a source table.
async fn selection(config: &Config, store: &Store, table: Option<String>) -> Result<Selection, Failure> {
    let Some(table) = table else { return Ok(Selection::All) };
    asked::is_known(store, &table).await?;
    if let Some(debezium) = &config.log.debezium {
        return Ok(Selection::Table(format!("{}.{table}", debezium.database())));
    }
    let schema = match config.source.kind() {
        Some(SourceKind::Postgres) => config.source.postgres_schema().to_owned(),
        Some(SourceKind::Dynamo) => {
            let connector =
                dynamodb::Connector::new(&config.source.url).map_err(|error| Failure::Usage(error.into()))?;
            connector.region().to_owned()
        }
        Some(SourceKind::Mysql) | None => {
            let connector = Connector::new(&config.source.url).map_err(|error| Failure::Usage(error.into()))?;
            connector.database().unwrap_or_default().to_owned()
        }
    };
    Ok(Selection::Table(format!("{schema}.{table}")))
}

async fn list(config: &Config, store: &Store, table: Option<String>, json: bool) -> Result<(), Failure> {
    let selection = selection(config, store, table).await?;
    let open = store.dead_letters(DeadLetterState::Open, &selection).await?;
    let discarded = store.dead_letters(DeadLetterState::Discarded, &selection).await?.len();
    let mut tables: BTreeMap<&str, u64> = BTreeMap::new();
    for letter in &open {
        *tables.entry(&letter.table).or_default() += 1;
    }
    if json {
        let tables: Vec<_> = tables.iter().map(|(table, open)| json!({ "table": table, "open": open })).collect();
        let all = json!({ "open": open.len(), "discarded": discarded, "tables": tables, "letters": open });
        return super::print(&all);
    }
    super::print(&super::about(config, &render(&open, &tables, discarded)))
}

fn render(open: &[DeadLetter], tables: &BTreeMap<&str, u64>, discarded: usize) -> String {
    let mut text = String::new();
    let width = |name: &str, lengths: &mut dyn Iterator<Item = usize>| lengths.max().unwrap_or(0).max(name.len());
    let table = width("table", &mut open.iter().map(|letter| letter.table.len()));
    let key = width("key", &mut open.iter().map(|letter| letter.key.get().len()));
    if !open.is_empty() {
        let _ = writeln!(
            text,
            "{:>6}  {:<table$}  {:<key$}  {:<8}  {:<20}  {:>5}  error",
            "id", "table", "key", "sqlstate", "since", "tries"
        );
    }
    for letter in open {
        let _ = writeln!(
            text,
            "{:>6}  {:<table$}  {:<key$}  {:<8}  {:<20}  {:>5}  {}",
            letter.id,
            letter.table,
            letter.key.get(),
            letter.sqlstate,
            letter.since,
            letter.attempts,
            letter.error
        );
    }
    let counts: Vec<String> = tables.iter().map(|(table, open)| format!("{table} {open}")).collect();
    let counts = if counts.is_empty() { String::new() } else { format!(" ({})", counts.join(", ")) };
    let _ = write!(text, "{} open{counts}, {discarded} discarded", open.len());
    if !open.is_empty() {
        let _ = write!(text, "; {}", super::DEAD_LETTERS);
    }
    text
}

async fn show(store: &Store, id: i64, values: bool, json: bool) -> Result<(), Failure> {
    let Some((letter, record)) = store.dead_letter(id).await? else { return unknown(&[id]) };
    if json {
        let mut shown = serde_json::to_value(&letter)?;
        if let Some(fields) = shown.as_object_mut().filter(|_| values) {
            fields.insert("record".into(), serde_json::from_str(record.get())?);
        }
        return super::print(&shown);
    }
    let mut text = String::new();
    let mut line = |label: &str, value: &dyn std::fmt::Display| {
        let _ = writeln!(text, "{label:<10}{value}");
    };
    line("id", &letter.id);
    line("state", &letter.state.name());
    line("table", &letter.table);
    line("key", &letter.key);
    line("sqlstate", &letter.sqlstate);
    line("error", &letter.error);
    line("since", &letter.since);
    if let Some(renewed) = &letter.renewed {
        line("renewed", renewed);
    }
    line("tries", &letter.attempts);
    line("version", &letter.version);
    line("log", &format!("{}/{} offset {}", letter.topic, letter.partition, letter.offset));
    let record: &dyn std::fmt::Display = if values { &record } else { &"not shown; --values shows the row's values" };
    line("record", record);
    super::print(&text.trim_end())
}

async fn retry(config: &Config, store: &Store, which: Which) -> Result<(), Failure> {
    let selection = match which {
        Which { ids, table: None, all: false } => Selection::Ids(ids),
        Which { table, .. } => selection(config, store, table).await?,
    };
    let open = store.dead_letters(DeadLetterState::Open, &selection).await?;
    let ids: Vec<i64> = open.iter().map(|letter| letter.id).collect();
    if let Selection::Ids(wanted) = &selection {
        all_open(wanted, &ids)?;
    }
    if ids.is_empty() {
        return super::print(&"no dead letter is open: nothing to do");
    }
    asked::worker_runs(store, Command::RetryDeadLetters).await?;
    let answer = asked::follow(store, Command::RetryDeadLetters, &json!({ "ids": ids }), POLL_EVERY).await?;
    let Retried { stored, failed, waiting, strange } = serde_json::from_str(&answer)?;
    let mut parts = vec![format!("{stored} stored")];
    for (count, what) in [
        (failed, "failed again: `cutover dlq list` tells why"),
        (waiting, "now wait for another row and go when they can"),
        (strange, "could not be looked for, since their table's key has changed: `cutover resnapshot` its table"),
    ] {
        if count > 0 {
            parts.push(format!("{count} {what}"));
        }
    }
    super::print(&super::about(config, &format!("{} tried again: {}", ids.len(), parts.join("; "))))?;
    if failed + strange > 0 { Err(Failure::No) } else { Ok(()) }
}

async fn discard(store: &Store, ids: Vec<i64>) -> Result<(), Failure> {
    let open = store.dead_letters(DeadLetterState::Open, &Selection::Ids(ids.clone())).await?;
    let open: Vec<i64> = open.iter().map(|letter| letter.id).collect();
    all_open(&ids, &open)?;
    asked::worker_runs(store, Command::DiscardDeadLetters).await?;
    let discarded = asked::follow(store, Command::DiscardDeadLetters, &json!({ "ids": open }), POLL_EVERY).await?;
    super::print(&format!(
        "{discarded} discarded: their rows stay as they are at the target, and verification will report them as drift until \
         the source changes them again"
    ))
}

fn all_open(wanted: &[i64], open: &[i64]) -> Result<(), Failure> {
    let missing: Vec<i64> = wanted.iter().copied().filter(|id| !open.contains(id)).collect();
    if missing.is_empty() { Ok(()) } else { unknown(&missing) }
}

fn unknown(ids: &[i64]) -> Result<(), Failure> {
    let ids: Vec<String> = ids.iter().map(i64::to_string).collect();
    eprintln!("cutover: no dead letter {} is open; `cutover dlq list` shows those that are", ids.join(", "));
    Err(Failure::No)
}

//! `cutover replay`.

use std::{io::IsTerminal as _, time::Duration};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::Instant;

use super::{Failure, asked, status::human_seconds};
use crate::{
    config::Config,
    control::{
        parts,
        replay::{Ask, Plan, Span},
    },
    state::{
        Store,
        replays::{From, ReplayState},
        requests::Command,
    },
};

const POLL_EVERY: Duration = Duration::from_millis(300);
/// How often a line is written where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
pub(crate) struct ReplayArgs {
    /// `beginning`, a checkpoint's name, a time such as 2026-01-31T12:00:00Z, or an offset of the changes topic.
    #[arg(long, value_name = "beginning|NAME|TIMESTAMP|OFFSET")]
    from: String,
    /// Only this source table; may be given several times.
    #[arg(long = "table", value_name = "T")]
    tables: Vec<String>,
    /// Say what it would touch, and whether it would be refused.
    #[arg(long)]
    dry_run: bool,
}

pub(crate) async fn replay(config: &Config, arguments: ReplayArgs) -> Result<(), Failure> {
    let store = parts::store(config)?;
    asked::state_is_ours(&store).await?;
    for table in &arguments.tables {
        asked::is_known(&store, table).await?;
    }
    let from = start(&store, &arguments.from).await?;
    asked::worker_runs(&store, Command::Replay).await?;
    let ask = Ask { from, label: arguments.from, tables: arguments.tables, dry_run: arguments.dry_run };
    let request = store.ask_with(Command::Replay, &serde_json::to_value(&ask)?).await?;
    let answer = asked::answer(&store, request, POLL_EVERY).await?;
    let plan: Plan = serde_json::from_str(&answer)?;
    if let Some(reason) = &plan.refused {
        eprintln!("cutover: the replay is refused: {reason}");
        return Err(Failure::No);
    }
    if arguments.dry_run {
        return super::print(&touched(&store, &plan).await?);
    }
    follow(&store, request).await
}

/// Where to begin, by what is written.
async fn start(store: &Store, from: &str) -> Result<From, Failure> {
    if from == "beginning" {
        return Ok(From::Beginning);
    }
    if let Ok(offset) = from.parse() {
        return Ok(From::Offset(offset));
    }
    if from.starts_with(|first: char| first.is_ascii_digit()) {
        let at_us = store.time_us(from).await?;
        return at_us.map(From::TimeUs).ok_or_else(|| {
            Failure::Usage(anyhow::anyhow!(
                "`{from}` is no time; write it as in 2026-01-31T12:00:00Z, UTC without a zone"
            ))
        });
    }
    Ok(From::Checkpoint(from.to_owned()))
}

/// What a dry run tells.
async fn touched(store: &Store, plan: &Plan) -> Result<String, Failure> {
    let mut text = format!("would replay {} rows ({} records to read)", plan.rows, plan.records);
    if let Some(Span { first_us, last_us }) = plan.span {
        text.push_str(&format!(
            ", committed from {} to {}",
            store.spelled_time(first_us).await?,
            store.spelled_time(last_us).await?
        ));
    }
    for table in &plan.tables {
        text.push_str(&format!("\n  {}: {} rows", table.table, table.rows));
    }
    Ok(text)
}

/// Shows how far it is until it has ended.
async fn follow(store: &Store, id: i64) -> Result<(), Failure> {
    let terminal = std::io::stderr().is_terminal();
    let bar = if terminal { ProgressBar::no_length() } else { ProgressBar::hidden() };
    if let Ok(style) = ProgressStyle::with_template("replay {wide_bar} {percent} %  {msg}") {
        bar.set_style(style);
    }
    let (mut line, mut alone) = (Instant::now(), None::<Instant>);
    loop {
        tokio::time::sleep(POLL_EVERY).await;
        let Some(replay) = store.replay(id).await? else {
            return Err(Failure::Runtime(anyhow::anyhow!("replay {id} is gone from the state; replay again")));
        };
        match replay.state {
            ReplayState::Done => {
                bar.finish_and_clear();
                return super::print(&replay.outcome);
            }
            ReplayState::Failed => {
                bar.finish_and_clear();
                return Err(Failure::Runtime(anyhow::anyhow!("the replay has ended early: {}", replay.outcome)));
            }
            ReplayState::Running => {}
        }
        let status = replay.status();
        let eta = status.eta_seconds.map(|eta| format!(", about {} left", human_seconds(eta))).unwrap_or_default();
        let message = format!("{} of {} rows{eta}", status.rows, status.rows_total);
        bar.set_length(1000);
        bar.set_position((status.percent * 10.0) as u64);
        bar.set_message(message.clone());
        if !terminal && line.elapsed() >= LINE_EVERY {
            line = Instant::now();
            eprintln!("replay: {:.1} %, {message}", status.percent);
        }
        // Another worker may go on with it.
        if store.status().await?.worker_running {
            alone = None;
        } else if alone.get_or_insert_with(Instant::now).elapsed() > asked::TAKEN_WITHIN {
            return Err(Failure::Runtime(anyhow::anyhow!(
                "the worker has gone; the replay goes on by itself when one is started with `cutover run`"
            )));
        }
    }
}

//! `cutover verify`.

mod review;

use std::{
    io::IsTerminal as _,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::Instant;

use super::{Failure, asked};
use crate::{
    config::Config,
    control::{
        error::WorkerError,
        parts,
        verifying::{Unverified, Verification},
    },
    model::Version,
    state::{Store, requests::Command},
    verify::{Ask, Progress, Tolerance, Verdict},
};

/// How often a line is written where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// Only this source table; may be given several times.
    #[arg(long = "table", value_name = "T")]
    tables: Vec<String>,
    /// Show the values of columns that differ.
    #[arg(long)]
    values: bool,
    /// Compare this share of the rows alone, picked by a hash of the target's key: `1%`.
    #[arg(long, value_name = "P%", value_parser = share, conflicts_with = "count_only")]
    sample: Option<f64>,
    /// Compare the numbers of rows alone; they may differ by [verify] count_difference_max.
    #[arg(long, conflicts_with_all = ["repair", "repair_all"])]
    count_only: bool,
    /// Compare the rows alone of which the target has heard since this checkpoint.
    #[arg(long, value_name = "CHECKPOINT", conflicts_with_all = ["sample", "count_only"])]
    since: Option<String>,
    /// Compare every row, those of chunks as well that have not changed on either side since they were found equal.
    #[arg(long, conflicts_with_all = ["sample", "count_only", "since"])]
    full: bool,
    /// Send drifted rows through the log again, up to [verify] repair_rows_max of them, and compare these once more.
    #[arg(long)]
    repair: bool,
    /// As --repair, however many they are.
    #[arg(long, conflicts_with = "repair")]
    repair_all: bool,
    /// Drifted rows that comparisons have found: list them, accept that they differ as they do, or repair them alone.
    #[arg(long, value_enum, value_name = "WHAT",
        conflicts_with_all = ["values", "sample", "count_only", "since", "repair", "repair_all"])]
    review: Option<Review>,
    /// With --review, the rows with these IDs; without any, all that are open.
    #[arg(value_name = "ID", value_parser = row_id, requires = "review", conflicts_with = "tables")]
    ids: Vec<i64>,
    /// Send every row through the transforms and back through those of [reverse], and tell those that do not come back
    /// equal; what either side has plays no part.
    #[arg(long, conflicts_with_all =
        ["sample", "count_only", "since", "full", "repair", "repair_all", "review", "values"])]
    round_trip: bool,
    /// One JSON object.
    #[arg(long)]
    json: bool,
}

impl VerifyArgs {
    /// Whether rows are sent again.
    fn repairs(&self) -> bool {
        self.repair || self.repair_all || matches!(self.review, Some(Review::Repair))
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Review {
    /// Show them, those that were accepted as well.
    List,
    /// They may differ as they do.
    Accept,
    /// Send them through the log again, and compare them once more.
    Repair,
}

fn row_id(text: &str) -> Result<i64, String> {
    text.parse().map_err(|_| "an ID is a whole number; `cutover verify --review list` shows them".to_owned())
}

/// `1%` or `0.5` of a hundred.
fn share(text: &str) -> Result<f64, String> {
    let percent: f64 = text.trim_end_matches('%').parse().map_err(|_| "write a percentage, such as 1%".to_owned())?;
    if percent > 0.0 && percent <= 100.0 {
        Ok(percent / 100.0)
    } else {
        Err("must be above 0% and at most 100%".into())
    }
}

pub(crate) async fn verify(config: &Config, arguments: VerifyArgs) -> Result<(), Failure> {
    if config.is_reverse() && arguments.repairs() {
        return Err(Failure::Usage(anyhow::anyhow!(
            "the way back repairs nothing: it cannot know which side is the one that is written; repair at the side that is right"
        )));
    }
    let store = parts::store(config)?;
    asked::state_is_ours(&store).await?;
    if let Some(what) = arguments.review {
        return review::review(config, &store, what, arguments).await;
    }
    let repairs = arguments.repairs();
    if repairs {
        asked::worker_runs(&store, Command::Repair).await?;
        not_halted(&store, Command::Repair.name()).await?;
    }
    let since = match &arguments.since {
        Some(name) => Some(clock_of(&store, name).await?),
        None => None,
    };
    let ask = Ask {
        since,
        rows: None,
        tables: arguments.tables,
        values: arguments.values,
        sample: arguments.sample,
        count_only: arguments.count_only.then_some(Tolerance::of(config.verify.count_difference_max)),
        full: arguments.full,
    };
    let (verification, mut verdict) = if arguments.round_trip {
        let reversed = config.reversed().ok_or_else(|| {
            let what = "--round-trip is about the way back, and the configuration has no [reverse]; add it, or leave --round-trip out";
            Failure::Usage(anyhow::anyhow!(what))
        })?;
        let verification = Verification::begin(config, &ask).await.map_err(failure)?;
        let shown = Shown::new();
        let verdict = Box::pin(verification.round_trip(reversed, &ask, &|progress| shown.show(progress))).await;
        shown.bar.finish_and_clear();
        (verification, verdict.map_err(failure)?)
    } else {
        compared(config, &ask).await?
    };
    if repairs && verdict.drifted() > 0 {
        let bound = config.verify.repair_rows_max;
        if verdict.drifted() > bound && !arguments.repair_all {
            verdict = verdict.but(format!(
                "nothing is repaired: more than {bound} rows drifted ([verify] repair_rows_max); find out why, and use --repair-all, or \
                 `cutover resnapshot` the table"
            ));
        } else {
            verdict = verification.repair(&ask, verdict).await.map_err(failure)?;
        }
    }
    if arguments.json {
        super::print(&serde_json::to_string(&verdict)?)?;
    } else {
        super::print(&verdict)?;
    }
    if verdict.clean { Ok(()) } else { Err(Failure::No) }
}

/// Compares as asked, and shows how far that is.
async fn compared(config: &Config, ask: &Ask) -> Result<(Verification, Verdict), Failure> {
    let verification = Verification::begin(config, ask).await.map_err(failure)?;
    let shown = Shown::new();
    let verdict = verification.run(ask, &|progress| shown.show(progress)).await;
    shown.bar.finish_and_clear();
    Ok((verification, verdict.map_err(failure)?))
}

/// A halted worker repairs nothing, and what it has not applied makes doubts of rows that are as they should be.
async fn not_halted(store: &Store, words: &str) -> Result<(), Failure> {
    let Some(halt) = store.status().await?.halted else { return Ok(()) };
    Err(Failure::Runtime(anyhow::anyhow!(
        "the worker is halted, and nothing was compared or repaired: {}; {}; then `cutover {words}` again",
        halt.what,
        halt.fix
    )))
}

/// The clock that the target had at a checkpoint.
async fn clock_of(store: &Store, name: &str) -> Result<Version, Failure> {
    let known = store.checkpoints().await?;
    known.iter().find(|checkpoint| checkpoint.name == name).map(|checkpoint| checkpoint.point.clock).ok_or_else(|| {
        Failure::Usage(anyhow::anyhow!("there is no checkpoint `{name}`; `cutover checkpoint list` shows them"))
    })
}

fn failure(error: Unverified) -> Failure {
    match error {
        Unverified::NoTable(_) | Unverified::Worker(WorkerError::Usage(_)) => Failure::Usage(error.into()),
        Unverified::Busy
        | Unverified::NotRepaired(_)
        | Unverified::LockLost
        | Unverified::Worker(_)
        | Unverified::Verify(_) => Failure::Runtime(error.into()),
    }
}

/// A bar on a terminal, a line now and then elsewhere.
struct Shown {
    bar: ProgressBar,
    terminal: bool,
    line: Mutex<Instant>,
}

impl Shown {
    fn new() -> Self {
        let terminal = std::io::stderr().is_terminal();
        let bar = if terminal { ProgressBar::no_length() } else { ProgressBar::hidden() };
        if let Ok(style) = ProgressStyle::with_template("{msg:20} {wide_bar} {human_pos}/{human_len} rows  eta {eta}") {
            bar.set_style(style);
        }
        Shown { bar, terminal, line: Mutex::new(Instant::now()) }
    }

    fn show(&self, Progress { table, rows, rows_total }: Progress<'_>) {
        self.bar.set_length(rows_total);
        self.bar.set_position(rows);
        self.bar.set_message(table.to_owned());
        let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.terminal && line.elapsed() >= LINE_EVERY {
            *line = Instant::now();
            eprintln!("verify: {table}: {rows} of about {rows_total} rows");
        }
    }
}

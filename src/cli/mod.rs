//! Arguments, output and exit codes. The only place where errors lose their types.
//!
//! Results go to stdout, logs and progress to stderr. Exit codes: 0 done; 1 the answer is no; 2 usage or
//! configuration; 3 runtime failure.

pub mod analyze;
mod asked;
pub mod check;
mod checkpoint;
mod dlq;
mod eligible;
mod events;
pub mod init;
mod memory;
mod progress;
mod replay;
mod report;
mod resnapshot;
mod run;
mod status;
mod verify;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand, ValueEnum};

use crate::{
    config::Config,
    control::{error::WorkerError, reverse, worker::Role},
};

/// Moves a live system from one database to another: copies, follows, verifies, switches, and switches back.
#[derive(Debug, Parser)]
#[command(name = "cutover", version, max_term_width = 100)]
struct Arguments {
    /// The configuration file.
    #[arg(short = 'c', long = "config", global = true, default_value = "cutover.toml", value_name = "FILE")]
    config: PathBuf,
    /// About the way back of [reverse], from the target to the source: check, status, checkpoint, verify and dlq.
    #[arg(long, global = true)]
    reverse: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write configuration, transforms and schema files from a live source.
    Init(init::InitArgs),
    /// Say what there is to move: sizes, use, order, what needs care, how long the copy takes to read.
    Analyze {
        /// One JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Look for everything that would keep the pipeline from running.
    Check {
        /// The address that the worker will be given, in place of [http] listen.
        #[arg(long, value_name = "ADDRESS")]
        listen: Option<std::net::SocketAddr>,
    },
    /// Run the worker: copy the tables, follow the source, apply to the target.
    Run {
        /// Which half to run in this process.
        #[arg(long, value_enum, default_value = "all")]
        role: RoleArgument,
        /// Exit 0 once the copy is complete and the stream has reached where the source is now.
        #[arg(long)]
        until_synced: bool,
        /// The address of metrics and health, in place of [http] listen.
        #[arg(long, value_name = "ADDRESS")]
        listen: Option<std::net::SocketAddr>,
    },
    /// Show phase, progress, lag, throughput and what needs attention.
    Status {
        /// One JSON object.
        #[arg(long)]
        json: bool,
        /// Show it again every second until interrupted.
        #[arg(long)]
        watch: bool,
        /// The events so far, one a line; with --watch also those to come, with --json as others follow them.
        #[arg(long)]
        events: bool,
    },
    /// Copy one table again while the stream goes on.
    Resnapshot {
        /// The source table.
        table: String,
    },
    /// Name a point of the log, or list those that have a name.
    #[command(subcommand)]
    Checkpoint(checkpoint::CheckpointCommand),
    /// Apply a part of the log again, through today's transforms, beside the stream.
    Replay(replay::ReplayArgs),
    /// Compare the source, through the transforms, with the target; exit 0 if every row is equal, 1 if not.
    Verify(verify::VerifyArgs),
    /// The whole migration on one page: copies, lag, what is set aside, proof, go or no-go. Markdown to stdout.
    Report {
        /// Write it to this file as a page for a browser instead.
        #[arg(long, value_name = "FILE")]
        html: Option<PathBuf>,
    },
    /// Rows that could not be stored: list, show, retry or discard them.
    #[command(subcommand)]
    Dlq(dlq::Dlq),
}

/// What to do about dead letters.
pub(crate) const DEAD_LETTERS: &str = "`cutover dlq list` shows them; correct the rows at the source, which clears them, or the \
     transform or the target's column, and then `cutover dlq retry --all`";

/// What is told of a pipeline: of a way back with the commands that are about it.
fn about(config: &Config, told: &str) -> String {
    if config.is_reverse() { told.replace("`cutover dlq", "`cutover --reverse dlq") } else { told.to_owned() }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum RoleArgument {
    Capture,
    Apply,
    All,
}

/// How a command ended, other than well.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The answer is no; it has been printed.
    No,
    /// Usage or configuration.
    Usage(anyhow::Error),
    /// Something failed on the way.
    Runtime(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Failure::Runtime(error.into())
    }
}

// Messages are printed without their chain of sources: every error of ours already tells its cause.

/// Parses the arguments, runs the command, and turns its end into an exit code.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if matches!(arguments.command, Command::Run { .. }) {
        memory::bound();
    }
    let ended = run_command(arguments);
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::No) => ExitCode::from(1),
        Err(Failure::Usage(error)) => {
            eprintln!("cutover: {error}");
            ExitCode::from(2)
        }
        Err(Failure::Runtime(error)) => {
            eprintln!("cutover: {error}");
            ExitCode::from(3)
        }
    }
}

fn run_command(arguments: Arguments) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let needed = arguments.command.way_back();
    if arguments.reverse && needed == WayBack::Nothing {
        let what = "--reverse is for check, status, checkpoint, verify and dlq; leave it out";
        return Err(Failure::Usage(anyhow::anyhow!(what)));
    }
    let config = || {
        let config = Config::load(&arguments.config).map_err(|error| Failure::Usage(error.into()))?;
        if arguments.reverse { runtime.block_on(way_back(&config, needed)) } else { Ok(config) }
    };
    match arguments.command {
        Command::Init(init) => match runtime.block_on(init::run(init)) {
            Ok(written) => print(&written),
            Err(error) if error.exit_code() == 2 => Err(Failure::Usage(error.into())),
            Err(error) => Err(error.into()),
        },
        Command::Analyze { json } => {
            let analysis = runtime.block_on(analyze::run(&config()?))?;
            if json { print(&serde_json::to_string(&analysis)?) } else { print(&analysis.to_string().trim_end()) }
        }
        Command::Check { listen } => {
            let report = runtime.block_on(check::run(&listening(config()?, listen)));
            print(&report)?;
            if report.blocks() { Err(Failure::No) } else { Ok(()) }
        }
        Command::Run { role, until_synced, listen } => {
            let config = listening(config()?, listen);
            let role = match role {
                RoleArgument::All => Role::All,
                RoleArgument::Capture => Role::Capture,
                RoleArgument::Apply => Role::Apply,
            };
            let ended = runtime.block_on(run::run(config, role, until_synced));
            // A question to a broker that does not answer must not keep a stopped worker.
            runtime.shutdown_background();
            ended
        }
        Command::Status { json, watch, events: true } => runtime.block_on(events::events(&config()?, json, watch)),
        Command::Status { json, watch, events: false } => runtime.block_on(status::status(&config()?, json, watch)),
        Command::Checkpoint(command) => runtime.block_on(checkpoint::checkpoint(&config()?, command)),
        Command::Replay(arguments) => runtime.block_on(replay::replay(&config()?, arguments)),
        Command::Verify(arguments) => runtime.block_on(verify::verify(&config()?, arguments)),
        Command::Report { html } => runtime.block_on(report::report(&config()?, html.as_deref())),
        Command::Dlq(command) => runtime.block_on(dlq::dlq(&config()?, command)),
        Command::Resnapshot { table } => runtime.block_on(resnapshot::resnapshot(&config()?, &table)),
    }
}

/// What a command with --reverse needs of the way back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WayBack {
    /// It has nothing to do with one.
    Nothing,
    State,
    /// Its source as well, and so the tables that it reads.
    Tables,
}

impl Command {
    fn way_back(&self) -> WayBack {
        match self {
            Command::Check { .. } | Command::Verify(_) => WayBack::Tables,
            Command::Status { .. } | Command::Checkpoint(_) | Command::Dlq(_) => WayBack::State,
            Command::Init(_)
            | Command::Analyze { .. }
            | Command::Run { .. }
            | Command::Resnapshot { .. }
            | Command::Replay(_)
            | Command::Report { .. } => WayBack::Nothing,
        }
    }
}

/// The configuration of the way back.
async fn way_back(config: &Config, needed: WayBack) -> Result<Config, Failure> {
    let found = match needed {
        WayBack::Tables => match reverse::configured(config).await {
            Err(error @ WorkerError::Usage(_)) => return Err(Failure::Usage(error.into())),
            found => found?,
        },
        WayBack::State | WayBack::Nothing => config.reversed(),
    };
    found.ok_or_else(|| {
        let what =
            "--reverse is about the way back, and the configuration has no [reverse]; add it, or leave --reverse out";
        Failure::Usage(anyhow::anyhow!(what))
    })
}

/// The configuration, with the address that the command line gives in place of its own.
fn listening(mut config: Config, listen: Option<std::net::SocketAddr>) -> Config {
    if let Some(listen) = listen {
        config.http.listen = listen.to_string();
    }
    config
}

/// Prints a result to stdout.
fn print(result: &dyn std::fmt::Display) -> Result<(), Failure> {
    use std::io::Write as _;
    Ok(writeln!(std::io::stdout(), "{result}")?)
}

/// Sends logs to stderr: text on a terminal, JSON lines otherwise or as CUTOVER_LOG_FORMAT says.
pub(crate) fn init_logs() {
    use std::io::IsTerminal as _;
    use tracing_subscriber::{EnvFilter, fmt};
    let filter = EnvFilter::try_from_env("CUTOVER_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let logs = fmt().with_env_filter(filter).with_writer(progress::LogWriter).with_target(false);
    let json = std::env::var("CUTOVER_LOG_FORMAT").is_ok_and(|format| format == "json");
    // A second initialization (tests in one process) keeps the first.
    let _ = if json {
        logs.json().flatten_event(true).try_init()
    } else {
        logs.with_ansi(std::io::stderr().is_terminal()).try_init()
    };
}

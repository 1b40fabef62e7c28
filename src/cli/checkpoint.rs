//! `cutover checkpoint`: named points of the log.

use std::fmt::Write as _;

use clap::Subcommand;

use super::{Failure, asked};
use crate::{config::Config, control::parts};

const NAME_CHARACTERS_MAX: usize = 64;

/// What to do with checkpoints.
#[derive(Debug, Subcommand)]
pub(crate) enum CheckpointCommand {
    /// Name the point that the target has reached.
    Create { name: String },
    /// List the points that have a name.
    List {
        /// One JSON array.
        #[arg(long)]
        json: bool,
    },
}

pub(crate) async fn checkpoint(config: &Config, command: CheckpointCommand) -> Result<(), Failure> {
    let store = parts::store(config)?;
    match command {
        CheckpointCommand::Create { name } => {
            if !is_name(&name) {
                return Err(Failure::Usage(anyhow::anyhow!(
                    "`{name}` cannot be a checkpoint's name: begin with a letter, go on with letters, digits, `-`, `_` and `.`, \
                     up to {NAME_CHARACTERS_MAX}, and not `beginning`"
                )));
            }
            asked::state_is_ours(&store).await?;
            match store.create_checkpoint(&name).await? {
                Ok(point) => super::print(&format!(
                    "checkpoint {name}: offset {} of the changes; `cutover replay --from {name}` replays what comes after it, \
                     for as long as the log keeps it",
                    point.offsets.changes.iter().map(u64::to_string).collect::<Vec<_>>().join("/")
                )),
                Err(reason) => {
                    eprintln!("cutover: {reason}");
                    Err(Failure::No)
                }
            }
        }
        CheckpointCommand::List { json } => {
            asked::state_is_ours(&store).await?;
            let checkpoints = store.checkpoints().await?;
            if json {
                return super::print(&serde_json::to_string(&checkpoints)?);
            }
            let mut text = String::new();
            let width = checkpoints.iter().map(|checkpoint| checkpoint.name.len()).max().unwrap_or(0).max(4);
            for checkpoint in &checkpoints {
                let offsets: Vec<String> = checkpoint.point.offsets.changes.iter().map(u64::to_string).collect();
                let _ = writeln!(
                    text,
                    "{:<width$}  {}  offset {}  transforms {}",
                    checkpoint.name,
                    checkpoint.created,
                    offsets.join("/"),
                    checkpoint.point.transforms
                );
            }
            let _ = write!(text, "{} checkpoint(s)", checkpoints.len());
            super::print(&text)
        }
    }
}

/// A name that is no time and no offset.
fn is_name(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_alphabetic())
        && name.len() <= NAME_CHARACTERS_MAX
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
        && name != "beginning"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_never_a_time_an_offset_or_the_beginning() {
        for name in ["before-fix", "v1.2_3"] {
            assert!(is_name(name), "{name}");
        }
        for name in ["", "beginning", "17", "2026-01-01", "a b", "-x", &"x".repeat(65)] {
            assert!(!is_name(name), "{name}");
        }
    }
}

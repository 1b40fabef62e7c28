//! `cutover resnapshot TABLE`.

use std::{io::IsTerminal as _, time::Duration};

use indicatif::{ProgressBar, ProgressStyle};

use super::{
    Failure,
    asked::{self, TAKEN_WITHIN},
};
use crate::{
    config::Config,
    control::parts,
    state::{
        copies::CopyState,
        requests::{Command, RequestState},
    },
};

const POLL_EVERY: Duration = Duration::from_millis(300);
/// The answer to a request whose copy begins by itself.
const QUEUED: &str = "queued";

pub(crate) async fn resnapshot(config: &Config, table: &str) -> Result<(), Failure> {
    let store = parts::store(config)?;
    asked::is_known(&store, table).await?;
    let request = store.ask(Command::Resnapshot, table).await?;
    let since = tokio::time::Instant::now();
    let bar = if std::io::stderr().is_terminal() { ProgressBar::no_length() } else { ProgressBar::hidden() };
    if let Ok(style) = ProgressStyle::with_template("{msg:20} {wide_bar} {human_pos}/{human_len} rows  eta {eta}") {
        bar.set_style(style);
    }
    bar.set_message(table.to_owned());
    loop {
        tokio::time::sleep(POLL_EVERY).await;
        let (state, answer) = store.request_state(request).await?;
        match state {
            RequestState::New if since.elapsed() > TAKEN_WITHIN => {
                return Err(Failure::Runtime(anyhow::anyhow!(
                    "no worker has taken the request within {} s; start one with `cutover run`, it will find the request",
                    TAKEN_WITHIN.as_secs()
                )));
            }
            RequestState::Refused => return Err(Failure::Runtime(anyhow::anyhow!("{answer}"))),
            RequestState::Done if answer != QUEUED => {
                eprintln!("{table}: {answer}");
                return Ok(());
            }
            RequestState::New | RequestState::Done => {}
        }
        let status = store.status().await?;
        // This may be what repairs it: the worker has a while to find out.
        if let Some(halt) = status.halted.filter(|_| since.elapsed() > TAKEN_WITHIN) {
            return Err(Failure::Runtime(anyhow::anyhow!("halted: {halt}")));
        }
        let Some(progress) = status.tables.iter().find(|status| status.table == table) else { continue };
        bar.set_length(progress.rows);
        bar.set_position(progress.copied);
        if state == RequestState::Done && progress.state == CopyState::Copied {
            bar.finish_and_clear();
            eprintln!("{table}: {} rows copied again", progress.copied);
            return Ok(());
        }
    }
}

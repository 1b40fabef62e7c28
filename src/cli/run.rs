//! `cutover run`.

use tokio_util::sync::CancellationToken;

use super::{Failure, progress, status::human_seconds};
use crate::{
    config::Config,
    control::{
        error::WorkerError,
        start,
        worker::{Ended, Role},
    },
    state::waiting::WaitingFor,
};

pub(crate) async fn run(config: Config, role: Role, until_synced: bool) -> Result<(), Failure> {
    if config.log.debezium.is_some() {
        if role != Role::Apply {
            return Err(Failure::Usage(anyhow::anyhow!(
                "the changes in [log.debezium] are captured by their connector: run with --role apply"
            )));
        }
        return Box::pin(work(config, role, until_synced)).await;
    }
    if config.reverse.is_some() && role != Role::All {
        return Err(Failure::Usage(anyhow::anyhow!(
            "[reverse] runs in one process with everything else, for now: run without --role"
        )));
    }
    let half = match role {
        Role::Capture => Some("capture"),
        Role::Apply => Some("apply"),
        Role::All => None,
    };
    if let Some(half) = half.filter(|_| !config.log.is_kafka()) {
        return Err(Failure::Usage(anyhow::anyhow!(
            "--role {half} needs a log that both halves can reach, and {} is a folder of one worker; \
             run without --role, or set [log] url to a Kafka broker",
            config.log.url
        )));
    }
    Box::pin(work(config, role, until_synced)).await
}

async fn work(config: Config, role: Role, until_synced: bool) -> Result<(), Failure> {
    super::init_logs();
    let stop = CancellationToken::new();
    let signals = tokio::spawn(stop_on_signal(stop.clone()));
    let ended = start::run(config, role, until_synced, stop, progress::show).await;
    signals.abort();
    match ended {
        Ok(Ended::Stopped | Ended::Synced) => Ok(()),
        Ok(Ended::SyncedWithDeadLetters(count)) => {
            eprintln!("cutover: synced, but {count} dead letter(s) are open; {}", super::DEAD_LETTERS);
            Err(Failure::No)
        }
        Ok(Ended::SyncedWithWaiting(waiting, dead_letters)) => {
            for WaitingFor { table, reason, rows, oldest_seconds } in &waiting {
                let since = human_seconds(*oldest_seconds);
                eprintln!("cutover: {rows} row(s) of {table} wait since {since} for what does not come: {reason}");
            }
            if dead_letters > 0 {
                eprintln!("cutover: {dead_letters} dead letter(s) are open; {}", super::DEAD_LETTERS);
            }
            eprintln!(
                "cutover: all else is synced; bring what the rows refer to, make foreign keys that form a ring DEFERRABLE, \
                 or make them after the copy ([target] after_copy), and run again"
            );
            Err(Failure::No)
        }
        Ok(Ended::Halted(halt)) => Err(Failure::Runtime(anyhow::anyhow!("halted: {halt}"))),
        Err(error @ WorkerError::Usage(_)) => Err(Failure::Usage(error.into())),
        Err(error) => Err(Failure::Runtime(error.into())),
    }
}

async fn stop_on_signal(stop: CancellationToken) {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        tracing::warn!("signals cannot be caught; stop the worker with SIGKILL, it loses nothing");
        return;
    };
    tokio::select! { biased; _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
    tracing::info!("stopping: finishing the batches at work");
    stop.cancel();
}

//! Where the worker is to run: the port for metrics and health, and the log: the disk of the embedded one, or Kafka's
//! brokers and topics.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::Path,
};

use super::{Part, Report};
use crate::{
    config::Config,
    control::parts,
    log::{LogError, kafka},
};

/// What is written to see whether the log's disk takes it.
const PROBE_BYTES: usize = 64 << 10;

/// Examines this machine.
pub(super) async fn examine(config: &Config, report: &mut Report) {
    if let Err(error) = tokio::net::TcpListener::bind(&config.http.listen).await
        && !is_running(config).await
    {
        report.blocks_on(
            Part::Worker,
            format!("cannot listen on {} for metrics and health ({error})", config.http.listen),
            "stop what holds it, or, if it is another pipeline's worker, choose another address: [http] listen, or --listen \
             for `check` and `run` alike",
        );
    }
    let Some(folder) = config.log.folder(&config.folder) else { return examine_kafka(config, report).await };
    if let Err(error) = probe(&folder) {
        let fix = match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                "free space there, or choose a folder on a larger disk with [log] url before the first run"
            }
            _ => "give this user the right to read and write it, or choose another folder with [log] url",
        };
        report.blocks_on(Part::Worker, format!("the log's folder {} cannot be used ({error})", folder.display()), fix);
    }
}

/// Asks the brokers, without making the topics.
async fn examine_kafka(config: &Config, report: &mut Report) {
    let examined = match kafka::Settings::new(&config.name, &config.log) {
        Ok(settings) => kafka::examine(&settings).await,
        Err(reason) => Err(LogError::Client { reason }),
    };
    match examined {
        Ok(problems) => {
            problems.into_iter().for_each(|problem| report.blocked_by(Part::Worker, problem));
        }
        Err(error) => report.blocked_by(Part::Worker, error.problem().or("correct [log] in the configuration")),
    }
}

/// Whether the port is held by a worker of this very pipeline, as far as the target knows.
async fn is_running(config: &Config) -> bool {
    let Ok(store) = parts::store(config) else { return false };
    store.status().await.is_ok_and(|status| status.worker_running)
}

/// Writes to the folder, or where it is going to be made, and leaves nothing behind.
fn probe(folder: &Path) -> io::Result<()> {
    let mut there = folder;
    while !there.exists() {
        there = match there.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            Some(_) | None => Path::new("."),
        };
    }
    let file = there.join(format!(".cutover-check-{}", std::process::id()));
    let written = File::create_new(&file).and_then(|mut probe| {
        probe.write_all(&[0; PROBE_BYTES])?;
        probe.sync_all()
    });
    match written {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => {
            // The probe may not have come into being.
            drop(fs::remove_file(&file));
            Err(error)
        }
        Ok(()) => fs::remove_file(&file),
    }
}

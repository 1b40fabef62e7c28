//! The embedded log on a real disk: the contract, `kill -9`, and a disk that fills up.

use std::{
    io::{BufRead, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use cutover::log::{EmbeddedLog, Log, LogConfig, LogError, Topic};

use crate::log_contract::{Fixture, hold, read_all, row};

struct Embedded {
    folder: tempfile::TempDir,
    partitions: u32,
}

async fn open(folder: &Path, partitions: u32) -> Result<EmbeddedLog, LogError> {
    EmbeddedLog::open(folder, (&LogConfig { partitions, ..LogConfig::default() }).into()).await
}

#[async_trait]
impl Fixture for Embedded {
    async fn with_partitions(partitions: u32) -> Self {
        Embedded { folder: tempfile::tempdir().expect("a folder"), partitions }
    }

    async fn open(&self) -> Arc<dyn Log> {
        Arc::new(open(self.folder.path(), self.partitions).await.expect("opens"))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_embedded_log_holds_the_contract() {
    hold::<Embedded>().await;
}

const FOLDER: &str = "CUTOVER_TEST_LOG_FOLDER";

/// Not a test: the process that `everything_acknowledged_survives_kill_9` kills. It appends numbered
/// records to both topics and prints how many of each are acknowledged.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by another test"]
async fn child_that_appends_until_it_is_killed() {
    let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else { return };
    let log = open(&folder, 1).await.expect("opens");
    let append = |topic: Topic| {
        let log = log.clone();
        async move {
            let (_, mut next) = log.bounds(topic, 0).await.expect("bounds");
            loop {
                let count = rand::random_range(1..40);
                let size = rand::random_range(0..20_000);
                let numbers = next..next + count;
                let row = |number: u64| (0, row(i64::try_from(number).expect("small"), vec![b'x'; size]));
                log.append(topic, numbers.map(row).collect()).await.expect("appends");
                next += count;
                // One write, so that lines never mix.
                let line = format!("acknowledged {} {next}\n", topic.suffix());
                std::io::stdout().write_all(line.as_bytes()).expect("a reader");
            }
        }
    };
    let (first, second, third) =
        (append(Topic::Changes), append(Topic::Snapshot), tokio::time::sleep(Duration::from_secs(60)));
    tokio::select! { () = first => {}, () = second => {}, () = third => {} }
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_acknowledged_survives_kill_9() {
    let folder = tempfile::tempdir().expect("a folder");
    for round in 0..8_u64 {
        let mut child = Command::new(std::env::current_exe().expect("this binary"))
            .args(["--exact", "log_embedded::child_that_appends_until_it_is_killed", "--ignored", "--nocapture"])
            .env(FOLDER, folder.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("starts");
        let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let mut acknowledged = [0_u64; 2];
        let note = |line: &str, acknowledged: &mut [u64; 2]| {
            let Some((_, rest)) = line.split_once("acknowledged ") else { return };
            let Some((topic, count)) = rest.split_once(' ') else { return };
            let index = usize::from(topic == "snapshot");
            acknowledged[index] = acknowledged[index].max(count.parse().expect("a number"));
        };
        while acknowledged.contains(&0) {
            note(&lines.next().expect("a line").expect("UTF-8"), &mut acknowledged);
        }
        std::thread::sleep(Duration::from_millis(rand::random_range(0..60) + round));
        child.kill().expect("kills");
        child.wait().expect("ends");
        for line in lines {
            note(&line.expect("UTF-8"), &mut acknowledged);
        }
        let log = open(folder.path(), 1).await.expect("opens");
        for (topic, acknowledged) in [Topic::Changes, Topic::Snapshot].into_iter().zip(acknowledged) {
            let read = read_all(&log, topic, 0, 1 << 20).await.expect("reads");
            assert!(read.len() as u64 >= acknowledged, "{} of {acknowledged} left", read.len());
            assert!((0_i64..).zip(&read).all(|(number, stored)| stored.record.headers.version == number));
        }
    }
}

/// A file system of its own, unmounted at the end.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// None without the right to mount.
    fn mount(size: &str) -> Option<Self> {
        let folder = tempfile::tempdir().expect("a folder");
        let options = format!("size={size}");
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(folder.path()).output();
        mount.is_ok_and(|output| output.status.success()).then(|| SmallDisk(folder))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_loses_nothing_and_the_log_goes_on_when_there_is_space() {
    let Some(disk) = SmallDisk::mount("8m") else {
        eprintln!("not run: mounting needs root; the unit test with /dev/full covers the same path");
        return;
    };
    let ballast = disk.0.path().join("ballast");
    std::fs::write(&ballast, vec![1; 4 << 20]).expect("writes");
    let folder = disk.0.path().join("log");
    let log = open(&folder, 1).await.expect("opens");
    let mut count = 0;
    for attempt in 0..3 {
        let error = loop {
            let records = (count..count + 10).map(|number| (0, row(number, vec![b'x'; 50_000]))).collect();
            match log.append(Topic::Changes, records).await {
                Ok(()) => count += 10,
                Err(error) => break error,
            }
            assert!(count < 1000, "the disk has 8 MB");
        };
        assert!(matches!(error, LogError::Disk { .. }), "{error}");
        assert!(error.to_string().contains("free space"), "{error}");
        let read = read_all(&log, Topic::Changes, 0, 1 << 20).await.expect("reads");
        assert_eq!(read.len(), usize::try_from(count).expect("small"), "attempt {attempt}");
    }
    std::fs::remove_file(ballast).expect("frees space");
    log.append(Topic::Changes, vec![(0, row(count, vec![b'x'; 50_000]))]).await.expect("appends again");
    drop(log);
    let log = open(&folder, 1).await.expect("opens");
    let read = read_all(&log, Topic::Changes, 0, 1 << 20).await.expect("reads");
    assert!((0..=count).zip(&read).all(|(number, stored)| stored.record.headers.version == number));
    assert_eq!(read.len(), usize::try_from(count).expect("small") + 1);
}

//! The fuzz targets over their committed corpora: every input that ever failed, and a few of every kind, without the
//! fuzzer.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::mpsc,
    time::Duration,
};

use cutover::{
    config, log,
    source::{
        mysql::{binlog, fuzz as capture},
        postgres::pgoutput,
    },
    transform,
};

/// A target's name, and what it runs.
type Target = (&'static str, fn(&[u8]));

/// The targets of `fuzz/fuzz_targets`.
const TARGETS: [Target; 10] = [
    ("binlog_event", binlog::fuzz::event),
    ("binlog_rows", binlog::fuzz::rows),
    ("config", config::fuzz::config),
    ("debezium", log::debezium::fuzz::debezium),
    ("envelope", log::envelope::fuzz::envelope),
    ("pgoutput", pgoutput::fuzz::message),
    ("segment", log::embedded::fuzz::segment),
    ("statements", binlog::fuzz::statements),
    ("stored", stored),
    ("transform", transform::fuzz::transform),
];

/// Bounds of a committed corpus: what a checkout can carry, and a test run in no time.
const FILES_MAX: usize = 50;
const BYTES_MAX: usize = 48 << 10;

/// What one input may take, many times over.
const SECONDS_MAX: u64 = 10;

fn stored(bytes: &[u8]) {
    log::fuzz::stored(bytes);
    capture::position(bytes);
}

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(name)
}

fn names(folder: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    entries.map(|entry| entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned()).collect()
}

/// Runs one target over its corpus and gives back how many inputs there were and their bytes.
fn replay((name, target): Target) -> (usize, usize) {
    let folder = folder("corpus").join(name);
    let (mut files, mut total) = (0, 0);
    for entry in fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
        let path = entry.unwrap().path();
        let bytes = fs::read(&path).unwrap();
        (files, total) = (files + 1, total + bytes.len());
        let (done, finished) = mpsc::channel();
        let run = std::thread::spawn(move || {
            target(&bytes);
            done.send(()).unwrap();
        });
        if finished.recv_timeout(Duration::from_secs(SECONDS_MAX)) == Err(mpsc::RecvTimeoutError::Timeout) {
            panic!("{} takes more than {SECONDS_MAX} s", path.display());
        }
        assert!(run.join().is_ok(), "{} fails on {}", name, path.display());
    }
    (files, total)
}

#[test]
fn every_target_passes_its_corpus() {
    for target @ (name, _) in TARGETS {
        let (files, bytes) = replay(target);
        assert!((1..=FILES_MAX).contains(&files), "{name} has {files} files");
        assert!(bytes <= BYTES_MAX, "{name} has {bytes} bytes");
    }
}

#[test]
fn every_target_is_built_and_replayed() {
    let replayed: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(names(&folder("fuzz_targets")), replayed);
    assert_eq!(names(&folder("corpus")), replayed);
    let manifest = fs::read_to_string(folder("Cargo.toml")).unwrap();
    for name in replayed {
        assert!(manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\"")), "{name} is not in fuzz/Cargo.toml");
    }
}

//! The embedded log: framing, torn tails, retention, limits.

use std::sync::atomic::AtomicI64;

use super::*;
use crate::log::{Headers, Kind, TransactionPart};

const NOW: i64 = 1_700_000_000_000;

fn settings() -> EmbeddedSettings {
    EmbeddedSettings {
        partitions: 1,
        retention_ms: 3_600_000,
        bytes_max: 1 << 30,
        segment_bytes: 1 << 20,
        epoch: "an epoch".into(),
        now_ms: Arc::new(|| NOW),
    }
}

fn record(number: usize, kind: Kind, size: usize) -> Record {
    let mut value = number.to_string().into_bytes();
    value.resize(size.max(value.len()), b' ');
    let version = i64::try_from(number).expect("small");
    let headers = Headers { kind, version, commit_us: -1, schema: Some(7), transaction: TransactionPart::Open };
    Record { key: b"key".as_slice().into(), value: value.into(), headers }
}

fn rows(numbers: std::ops::Range<usize>, size: usize) -> Vec<(u32, Record)> {
    numbers.map(|number| (0, record(number, Kind::Row, size))).collect()
}

async fn open(folder: &Path) -> Result<EmbeddedLog, LogError> {
    EmbeddedLog::open(folder, settings()).await
}

async fn append(log: &EmbeddedLog, records: Vec<(u32, Record)>) -> Result<(), LogError> {
    log.append(Topic::Changes, records).await
}

/// The numbers of all records from the first one held, read a few at a time.
async fn numbers(log: &EmbeddedLog) -> Result<Vec<i64>, LogError> {
    let (mut from, end) = log.bounds(Topic::Changes, 0).await?;
    let mut numbers = Vec::new();
    while from < end {
        for stored in log.read(Topic::Changes, 0, from, 2000, Duration::ZERO).await? {
            assert_eq!(stored.offset, from);
            from += 1;
            numbers.push(stored.record.headers.version);
        }
    }
    Ok(numbers)
}

fn counted(count: usize) -> Vec<i64> {
    (0..i64::try_from(count).expect("small")).collect()
}

/// The changes topic's segment files, in order.
fn segments(folder: &Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(folder.join("changes")).expect("a folder");
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    paths
}

#[tokio::test]
async fn a_torn_tail_is_cut_off_at_every_byte_and_appending_goes_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let log = open(folder.path()).await.expect("opens");
    append(&log, rows(0..3, 10)).await.expect("appends");
    let path = segments(folder.path()).remove(0);
    let whole = fs::metadata(&path).expect("a file").len() as usize;
    append(&log, rows(3..5, 10)).await.expect("appends");
    drop(log);
    let written = fs::read(&path).expect("a file");
    for at in whole..written.len() {
        let truncated = written[..at].to_vec();
        let (mut flipped, mut zeroed) = (written.clone(), written.clone());
        flipped[at] ^= 0x10;
        zeroed[at..].fill(0);
        for damaged in [truncated, flipped, zeroed] {
            if damaged == written {
                continue;
            }
            fs::write(&path, &damaged).expect("writes");
            let log = open(folder.path()).await.expect("opens");
            assert_eq!(numbers(&log).await.expect("reads"), counted(3), "damage at byte {at}");
            append(&log, rows(3..4, 10)).await.expect("appends");
            drop(log);
            let log = open(folder.path()).await.expect("opens");
            assert_eq!(numbers(&log).await.expect("reads"), counted(4), "damage at byte {at}");
        }
    }
}

#[tokio::test]
async fn an_append_of_many_frames_is_all_or_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let log = open(folder.path()).await.expect("opens");
    append(&log, rows(0..2, 10)).await.expect("appends");
    append(&log, rows(2..8, 200_000)).await.expect("appends");
    assert_eq!(numbers(&log).await.expect("reads"), counted(8));
    drop(log);
    let path = segments(folder.path()).remove(0);
    let written = fs::read(&path).expect("a file");
    fs::write(&path, &written[..written.len() - 1]).expect("writes");
    let log = open(folder.path()).await.expect("opens");
    assert_eq!(numbers(&log).await.expect("reads"), counted(2), "frames of the torn append must not stay");
}

#[tokio::test]
async fn damage_before_the_last_group_is_an_error_and_never_skipped() {
    let folder = tempfile::tempdir().expect("a folder");
    let log = open(folder.path()).await.expect("opens");
    let path = segments(folder.path()).remove(0);
    let start = fs::metadata(&path).expect("a file").len() as usize;
    append(&log, rows(0..2, 10)).await.expect("appends");
    let whole = fs::metadata(&path).expect("a file").len() as usize;
    append(&log, rows(2..4, 10)).await.expect("appends");
    drop(log);
    let written = fs::read(&path).expect("a file");
    for at in 0..whole {
        let mut damaged = written.clone();
        damaged[at] ^= 0x10;
        fs::write(&path, &damaged).expect("writes");
        let error = open(folder.path()).await.expect_err("damaged");
        assert!(matches!(error, LogError::Corrupt { .. }), "at byte {at} of {start}..{whole}: {error}");
        assert_eq!(fs::read(&path).expect("a file"), damaged, "what is damaged must stay as it is");
    }
}

#[tokio::test]
async fn damage_in_a_closed_segment_is_an_error_when_it_is_read() {
    let folder = tempfile::tempdir().expect("a folder");
    let small = EmbeddedSettings { segment_bytes: 1000, ..settings() };
    let log = EmbeddedLog::open(folder.path(), small).await.expect("opens");
    for number in 0..20 {
        append(&log, rows(number..number + 1, 300)).await.expect("appends");
    }
    drop(log);
    let paths = segments(folder.path());
    let written = fs::read(&paths[1]).expect("a file");
    let mut flipped = written.clone();
    flipped[written.len() - 10] ^= 1;
    for damaged in [flipped, written[..written.len() - 400].to_vec(), written[..written.len() - 10].to_vec()] {
        fs::write(&paths[1], &damaged).expect("writes");
        let log = open(folder.path()).await.expect("opens: only the last segment is read");
        assert!(matches!(numbers(&log).await, Err(LogError::Corrupt { .. })));
    }
    fs::remove_file(&paths[1]).expect("removes");
    assert!(matches!(open(folder.path()).await, Err(LogError::Corrupt { .. })), "a gap");
}

#[tokio::test]
async fn a_row_that_looks_like_a_frame_is_not_taken_for_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let log = open(folder.path()).await.expect("opens");
    append(&log, rows(0..1, 10)).await.expect("appends");
    let path = segments(folder.path()).remove(0);
    let whole = fs::metadata(&path).expect("a file").len() as usize;
    let mut forged = frame::Builder::new([1; 8]);
    forged.begin();
    forged.push(0, 9, &record(9, Kind::Row, 10));
    let mut evil = record(1, Kind::Row, 0);
    evil.value = forged.finish(u64::MAX, frame::FLAG_END).concat().into();
    append(&log, vec![(0, evil)]).await.expect("appends");
    drop(log);
    let mut torn = fs::read(&path).expect("a file");
    torn[whole + frame::HEADER_LEN] ^= 1;
    fs::write(&path, &torn).expect("writes");
    let log = open(folder.path()).await.expect("a torn tail, not damage");
    assert_eq!(numbers(&log).await.expect("reads"), counted(1));
}

#[tokio::test]
async fn a_full_disk_is_told_and_the_log_goes_on_after_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let log = open(folder.path()).await.expect("opens");
    append(&log, rows(0..2, 10)).await.expect("appends");
    log.inner.changes.fill_disk();
    let error = append(&log, rows(2..4, 10)).await.expect_err("full");
    assert!(matches!(&error, LogError::Disk { source, .. } if source.kind() == io::ErrorKind::StorageFull), "{error}");
    assert_eq!(numbers(&log).await.expect("reads"), counted(2));
    // What a write leaves that failed half-way.
    let path = segments(folder.path()).remove(0);
    let mut half = fs::read(&path).expect("a file");
    half.extend_from_slice(b"half a frame");
    fs::write(&path, &half).expect("writes");
    append(&log, rows(2..4, 10)).await.expect("appends again");
    assert_eq!(numbers(&log).await.expect("reads"), counted(4));
    drop(log);
    assert_eq!(numbers(&open(folder.path()).await.expect("opens")).await.expect("reads"), counted(4));
}

#[tokio::test]
async fn a_segment_that_could_not_be_begun_is_begun_before_the_next_write() {
    let folder = tempfile::tempdir().expect("a folder");
    let small = EmbeddedSettings { segment_bytes: 1000, ..settings() };
    let log = EmbeddedLog::open(folder.path(), small.clone()).await.expect("opens");
    append(&log, rows(0..1, 2000)).await.expect("appends");
    // A folder in the way of the next segment's file.
    let unfinished = folder.path().join("changes").join(format!("{:020}.segment.unfinished", 1));
    fs::create_dir(&unfinished).expect("makes");
    assert!(matches!(append(&log, rows(1..2, 10)).await, Err(LogError::Disk { .. })));
    fs::remove_dir(&unfinished).expect("removes");
    append(&log, rows(1..2, 10)).await.expect("appends");
    drop(log);
    let log = EmbeddedLog::open(folder.path(), small).await.expect("opens");
    assert_eq!(numbers(&log).await.expect("reads"), counted(2));
}

#[tokio::test]
async fn retention_drops_what_is_applied_and_old_and_nothing_else() {
    let folder = tempfile::tempdir().expect("a folder");
    let now = Arc::new(AtomicI64::new(NOW));
    let clock = Arc::clone(&now);
    let now_ms = Arc::new(move || clock.load(Ordering::Relaxed));
    let log = EmbeddedLog::open(folder.path(), EmbeddedSettings { segment_bytes: 1000, now_ms, ..settings() }).await;
    let log = log.expect("opens");
    for number in 0..20 {
        append(&log, rows(number..number + 1, 300)).await.expect("appends");
    }
    let size = log.size_bytes().await.expect("a size");
    log.applied(Topic::Changes, 0, 10).await.expect("applied");
    assert_eq!(log.bounds(Topic::Changes, 0).await.expect("bounds"), (0, 20), "applied, but young");
    now.fetch_add(3_600_001, Ordering::Relaxed);
    log.applied(Topic::Changes, 0, 10).await.expect("applied");
    let (start, end) = log.bounds(Topic::Changes, 0).await.expect("bounds");
    assert!((7..=10).contains(&start) && end == 20, "old, and applied up to 10: {start}");
    assert!(log.size_bytes().await.expect("a size") < size);
    let kept = numbers(&log).await.expect("reads");
    assert_eq!(kept.first(), Some(&i64::try_from(start).expect("small")));
    let wanted = log.read(Topic::Changes, 0, start - 1, 1, Duration::ZERO).await.expect_err("gone");
    assert!(matches!(wanted, LogError::Trimmed { start: s, .. } if s == start));
    drop(log);
    let log =
        EmbeddedLog::open(folder.path(), EmbeddedSettings { segment_bytes: 1000, ..settings() }).await.expect("opens");
    assert_eq!(numbers(&log).await.expect("reads"), kept);
}

#[tokio::test]
async fn a_full_log_refuses_until_records_are_applied_and_then_drops_the_oldest() {
    let folder = tempfile::tempdir().expect("a folder");
    let small = EmbeddedSettings { segment_bytes: 4000, bytes_max: 40_000, ..settings() };
    let log = EmbeddedLog::open(folder.path(), small).await.expect("opens");
    let mut count = 0;
    let error = loop {
        match append(&log, rows(count..count + 1, 1000)).await {
            Ok(()) => count += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, LogError::Full { limit: 40_000, .. }), "{error}");
    assert!((30..40).contains(&count), "{count}");
    assert_eq!(numbers(&log).await.expect("reads"), counted(count), "nothing that is not applied is dropped");
    // All applied, the segment that is written to included.
    log.applied(Topic::Changes, 0, count as u64).await.expect("applied");
    for number in count..count + 100 {
        append(&log, rows(number..number + 1, 1000)).await.expect("appends");
        log.applied(Topic::Changes, 0, number as u64 + 1).await.expect("applied");
    }
    assert!(log.size_bytes().await.expect("a size") <= 40_000);
    // One append as large as the log itself.
    assert!(matches!(append(&log, rows(0..1, 40_000)).await, Err(LogError::Full { .. })));
    append(&log, rows(0..1, 30_000)).await.expect("everything else is applied and makes room");
}

#[tokio::test]
async fn a_copy_that_fills_the_log_leaves_room_for_changes() {
    let folder = tempfile::tempdir().expect("a folder");
    let small = EmbeddedSettings { segment_bytes: 4000, bytes_max: 40_000, ..settings() };
    let log = EmbeddedLog::open(folder.path(), small).await.expect("opens");
    while log.append(Topic::Snapshot, rows(0..1, 1000)).await.is_ok() {}
    for number in 0..8 {
        append(&log, rows(number..number + 1, 1000)).await.expect("appends");
    }
}

#[tokio::test]
async fn the_last_control_is_known_however_far_back_it_is() {
    let folder = tempfile::tempdir().expect("a folder");
    let small = EmbeddedSettings { segment_bytes: 1000, ..settings() };
    let log = EmbeddedLog::open(folder.path(), small.clone()).await.expect("opens");
    let mut control = record(0, Kind::Control, 0);
    control.value = br#"{"clock":42}"#.as_slice().into();
    append(&log, vec![(0, control)]).await.expect("appends");
    for number in 1..20 {
        append(&log, rows(number..number + 1, 300)).await.expect("appends");
    }
    let expected = Some((0, Control { position: None, clock: 42, chunk: None }));
    assert_eq!(log.last_control(Topic::Changes, 0).await.expect("reads"), expected);
    drop(log);
    let log = EmbeddedLog::open(folder.path(), small).await.expect("opens");
    assert_eq!(log.last_control(Topic::Changes, 0).await.expect("reads"), expected);
    assert_eq!(log.last_control(Topic::Snapshot, 0).await.expect("reads"), None);
}

#[tokio::test]
async fn one_process_has_the_log_at_a_time() {
    let folder = tempfile::tempdir().expect("a folder");
    let log = open(folder.path()).await.expect("opens");
    assert!(matches!(open(folder.path()).await, Err(LogError::InUse { .. })));
    drop(log);
    assert!(open(folder.path()).await.is_ok());
}

#[tokio::test]
async fn a_newer_log_another_partition_count_and_a_lost_identity_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    drop(open(folder.path()).await.expect("opens"));
    let wider = EmbeddedLog::open(folder.path(), EmbeddedSettings { partitions: 4, ..settings() }).await;
    assert!(matches!(wider, Err(LogError::Partitions { found: 1, wanted: 4, .. })));
    let path = folder.path().join(IDENTITY);
    let identity = fs::read_to_string(&path).expect("a file");
    fs::write(&path, "{\"format\":2,\"new\":[]}").expect("writes");
    assert!(matches!(open(folder.path()).await, Err(LogError::NewerFormat { found: 2, supported: 1, .. })));
    fs::write(&path, "{").expect("writes");
    assert!(matches!(open(folder.path()).await, Err(LogError::Corrupt { .. })));
    fs::remove_file(&path).expect("removes");
    assert!(matches!(open(folder.path()).await, Err(LogError::Corrupt { .. })));
    fs::write(&path, identity).expect("writes");
    assert_eq!(open(folder.path()).await.expect("opens").epoch(), "an epoch");
    let newer = segment::Header {
        format: 2,
        topic: "changes".into(),
        sequence: 1,
        created_ms: 0,
        partitions: vec![segment::Start { first: 0, control: None }],
    };
    let salt = open(folder.path()).await.expect("opens").inner.shared.salt;
    segment::Segment::create(&folder.path().join("changes"), newer, salt).expect("creates");
    assert!(matches!(open(folder.path()).await, Err(LogError::NewerFormat { found: 2, .. })));
}

#[tokio::test]
async fn a_log_without_its_tail_is_noticed_by_its_reader() {
    let folder = tempfile::tempdir().expect("a folder");
    let log = open(folder.path()).await.expect("opens");
    append(&log, rows(0..2, 10)).await.expect("appends");
    let read = log.read(Topic::Changes, 0, 3, 1000, Duration::ZERO).await;
    assert!(matches!(read, Err(LogError::Corrupt { offset: 2, .. })));
}

#[tokio::test]
async fn a_folder_that_cannot_be_used_is_named() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let error = open(&file.path().join("log")).await.expect_err("no folder");
    assert!(error.to_string().contains(&file.path().display().to_string()), "{error}");
}

#[tokio::test]
async fn a_row_of_twenty_megabytes_reads_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let log = open(folder.path()).await.expect("opens");
    append(&log, rows(0..3, 20 << 20)).await.expect("appends");
    assert_eq!(numbers(&log).await.expect("reads"), counted(3));
    drop(log);
    assert_eq!(numbers(&open(folder.path()).await.expect("opens")).await.expect("reads"), counted(3));
}

proptest::proptest! {
    #[test]
    fn arbitrary_frames_never_panic(bytes in proptest::prelude::any::<Vec<u8>>()) {
        let _ = frame::parse(&bytes.clone().into(), &[0; 8]);
        for mut run in frame::runs(&bytes.into()).into_iter().flatten() {
            while let Some(Some(_)) = run.next() {}
        }
    }
}

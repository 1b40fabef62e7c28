//! What every log must do, whatever it is made of: one suite, which each implementation runs as
//! `log_contract::hold::<ItsFixture>()`.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use cutover::log::{Control, Headers, Kind, Log, LogError, Offset, Record, Stored, Topic, TransactionPart};

/// A log of one's own, empty at first, that can be closed and opened again.
#[async_trait]
pub trait Fixture: Send + Sync + Sized {
    async fn with_partitions(partitions: u32) -> Self;
    /// Opens the log; the one opened before is dropped by then.
    async fn open(&self) -> Arc<dyn Log>;
}

const SOON: Duration = Duration::from_secs(20);

/// Runs the whole suite.
pub async fn hold<F: Fixture>() {
    records_read_back_as_they_were_appended::<F>().await;
    partitions_and_topics_have_their_own_order::<F>().await;
    a_read_is_bounded_and_never_stuck::<F>().await;
    a_reader_at_the_tail_is_woken::<F>().await;
    offsets_outside_the_log_are_errors::<F>().await;
    the_last_control_is_where_a_writer_resumes::<F>().await;
    a_look_back_shows_every_record_until_it_is_enough::<F>().await;
    a_log_opened_again_goes_on::<F>().await;
    appends_at_once_stay_whole::<F>().await;
    what_is_not_applied_stays::<F>().await;
}

pub fn row(number: i64, value: impl Into<Vec<u8>>) -> Record {
    let headers = Headers {
        kind: Kind::Row,
        version: number,
        commit_us: number,
        schema: None,
        transaction: TransactionPart::End,
    };
    Record { key: format!("{{\"id\":{number}}}").into(), value: value.into().into(), headers }
}

fn rows(numbers: std::ops::Range<i64>, partition: u32) -> Vec<(u32, Record)> {
    numbers.map(|number| (partition, row(number, "{}"))).collect()
}

/// Reads a partition to its end.
pub async fn read_all(log: &dyn Log, topic: Topic, partition: u32, bytes_max: usize) -> Result<Vec<Stored>, LogError> {
    let (mut from, end) = log.bounds(topic, partition).await?;
    let mut all: Vec<Stored> = Vec::new();
    while from < end {
        let read = log.read(topic, partition, from, bytes_max, SOON).await?;
        assert!(!read.is_empty(), "there are records from {from} to {end}");
        for stored in read {
            assert!(stored.offset >= from, "offsets increase");
            from = stored.offset + 1;
            all.push(stored);
        }
    }
    Ok(all)
}

fn versions(stored: &[Stored]) -> Vec<i64> {
    stored.iter().map(|stored| stored.record.headers.version).collect()
}

async fn records_read_back_as_they_were_appended<F: Fixture>() {
    let fixture = F::with_partitions(1).await;
    let log = fixture.open().await;
    assert_eq!(log.partitions(), 1);
    let mut records = Vec::new();
    for kind in Kind::ALL {
        for transaction in [TransactionPart::Open, TransactionPart::End] {
            for (schema, version) in [(None, i64::MIN), (Some(0), 0), (Some(u64::MAX), i64::MAX)] {
                let value = if kind.is_resumable() { br#"{"clock":1}"#.to_vec() } else { (0..=255).collect() };
                let headers = Headers { kind, version, commit_us: -version.saturating_add(1), schema, transaction };
                let key = if kind == Kind::Row { b"{\"k\":\"\xc3\xa9\"}".to_vec() } else { Vec::new() };
                records.push(Record { key: key.into(), value: value.into(), headers });
            }
        }
    }
    records.push(row(1, Vec::new()));
    records.push(row(2, vec![b'x'; 500_000]));
    let appended = records.iter().map(|record| (0, record.clone())).collect();
    log.append(Topic::Changes, appended).await.expect("appends");
    let read = read_all(&*log, Topic::Changes, 0, 1 << 20).await.expect("reads");
    assert_eq!(read.into_iter().map(|stored| stored.record).collect::<Vec<_>>(), records);
    log.append(Topic::Changes, Vec::new()).await.expect("nothing to append is no error");
}

async fn partitions_and_topics_have_their_own_order<F: Fixture>() {
    let fixture = F::with_partitions(3).await;
    let log = fixture.open().await;
    for group in 0..20 {
        let mixed = (0..9).map(|index| (u32::try_from(index % 3).expect("small"), row(group * 9 + index, "{}")));
        log.append(Topic::Changes, mixed.collect()).await.expect("appends");
        log.append(Topic::Snapshot, rows(-group - 1..-group, 1)).await.expect("appends");
    }
    for partition in 0..3 {
        let read = read_all(&*log, Topic::Changes, partition, 1 << 20).await.expect("reads");
        let expected: Vec<i64> = (0..180).filter(|number| number % 3 == i64::from(partition)).collect();
        assert_eq!(versions(&read), expected);
        assert_eq!(log.bounds(Topic::Changes, partition).await.expect("bounds").0, 0);
    }
    let snapshot = read_all(&*log, Topic::Snapshot, 1, 1 << 20).await.expect("reads");
    assert_eq!(versions(&snapshot), (1..=20).map(|number| -number).collect::<Vec<_>>());
    assert_eq!(log.bounds(Topic::Snapshot, 0).await.expect("bounds"), (0, 0));
    assert!(log.append(Topic::Changes, rows(0..1, 3)).await.is_err(), "there is no partition 3");
    assert!(log.read(Topic::Changes, 3, 0, 1, Duration::ZERO).await.is_err(), "there is no partition 3");
}

async fn a_read_is_bounded_and_never_stuck<F: Fixture>() {
    let fixture = F::with_partitions(1).await;
    let log = fixture.open().await;
    for group in 0..10 {
        let records = (0..20).map(|index| (0, row(group * 20 + index, vec![b'x'; 10_000])));
        log.append(Topic::Changes, records.collect()).await.expect("appends");
    }
    let mut seventh = 0;
    for bytes_max in [1, 25_000, 1 << 30] {
        let read = read_all(&*log, Topic::Changes, 0, bytes_max).await.expect("reads");
        assert_eq!(versions(&read), (0..200).collect::<Vec<_>>());
        seventh = read[7].offset;
    }
    let read = log.read(Topic::Changes, 0, seventh, 100_000, SOON).await.expect("reads");
    assert!((1..=20).contains(&read.len()), "about 100,000 bytes are about ten records, not {}", read.len());
    assert_eq!(read[0].record.headers.version, 7);
}

async fn a_reader_at_the_tail_is_woken<F: Fixture>() {
    let fixture = F::with_partitions(2).await;
    let log = fixture.open().await;
    log.append(Topic::Changes, rows(0..1, 0)).await.expect("appends");
    let (_, end) = log.bounds(Topic::Changes, 0).await.expect("bounds");
    let start = std::time::Instant::now();
    let none = log.read(Topic::Changes, 0, end, 1 << 20, Duration::from_millis(200)).await.expect("reads");
    assert!(none.is_empty() && start.elapsed() >= Duration::from_millis(190));

    let reader = {
        let log = Arc::clone(&log);
        tokio::spawn(async move { log.read(Topic::Changes, 0, end, 1 << 20, SOON).await })
    };
    tokio::time::sleep(Duration::from_millis(100)).await;
    log.append(Topic::Changes, rows(7..8, 1)).await.expect("appends");
    assert!(!reader.is_finished(), "another partition's record is not this reader's");
    let start = std::time::Instant::now();
    log.append(Topic::Changes, rows(9..10, 0)).await.expect("appends");
    let woken = reader.await.expect("no panic").expect("reads");
    assert_eq!(versions(&woken), [9]);
    assert!(start.elapsed() < SOON / 4, "woken after {:?}", start.elapsed());
}

async fn offsets_outside_the_log_are_errors<F: Fixture>() {
    let fixture = F::with_partitions(1).await;
    let log = fixture.open().await;
    log.append(Topic::Changes, rows(0..3, 0)).await.expect("appends");
    let (_, end) = log.bounds(Topic::Changes, 0).await.expect("bounds");
    let beyond: Offset = end + 1000;
    let lost = log.read(Topic::Changes, 0, beyond, 1, Duration::ZERO).await;
    assert!(lost.is_err(), "whoever has read to {beyond} must learn that the log ends at {end}");
}

fn control(kind: Kind, clock: i64) -> Record {
    let value = serde_json::to_vec(&Control { position: None, clock, chunk: None }).expect("JSON");
    let mut record = row(clock, value);
    record.headers.kind = kind;
    record.key = cutover::log::EMPTY;
    record
}

async fn the_last_control_is_where_a_writer_resumes<F: Fixture>() {
    let fixture = F::with_partitions(2).await;
    let mut log = fixture.open().await;
    assert_eq!(log.last_control(Topic::Changes, 0).await.expect("reads"), None);
    let at = |found: Option<(Offset, Control)>| found.map(|(_, control)| control.clock);
    log.append(Topic::Changes, vec![(0, control(Kind::Control, 5)), (1, control(Kind::Control, 6))]).await.expect("ok");
    for group in 0..200 {
        log.append(Topic::Changes, rows(group * 10..group * 10 + 10, 0)).await.expect("appends");
    }
    for _ in 0..2 {
        assert_eq!(at(log.last_control(Topic::Changes, 0).await.expect("reads")), Some(5));
        assert_eq!(at(log.last_control(Topic::Changes, 1).await.expect("reads")), Some(6));
        assert_eq!(log.last_control(Topic::Snapshot, 0).await.expect("reads"), None);
        drop(log);
        log = fixture.open().await;
    }
    let mut group = rows(0..3, 0);
    group.push((0, control(Kind::Heartbeat, 8)));
    log.append(Topic::Changes, group).await.expect("appends");
    let (offset, found) = log.last_control(Topic::Changes, 0).await.expect("reads").expect("a control");
    assert_eq!(found.clock, 8, "a heartbeat is a place to resume as well");
    let read = log.read(Topic::Changes, 0, offset, 1, SOON).await.expect("reads");
    assert_eq!((read[0].offset, read[0].record.headers.kind), (offset, Kind::Heartbeat));
}

async fn a_look_back_shows_every_record_until_it_is_enough<F: Fixture>() {
    let fixture = F::with_partitions(2).await;
    let log = fixture.open().await;
    let seen = async |log: &dyn Log, partition, enough: Option<Offset>| {
        let mut seen = Vec::new();
        let mut look = |offset, record: &Record| {
            seen.push((offset, record.headers.version));
            Some(offset) == enough
        };
        log.look_back(Topic::Changes, partition, &mut look).await.expect("looks");
        seen.sort_unstable();
        seen
    };
    assert_eq!(seen(&*log, 0, None).await, []);
    for group in 0..100 {
        log.append(Topic::Changes, rows(group * 10..group * 10 + 10, 0)).await.expect("appends");
    }
    let all = seen(&*log, 0, None).await;
    assert_eq!(all.iter().map(|(_, version)| *version).collect::<Vec<_>>(), (0..1000).collect::<Vec<_>>());
    assert_eq!(seen(&*log, 1, None).await, []);
    let last = all.last().expect("a record").0;
    let near = seen(&*log, 0, Some(last)).await;
    assert!(near.len() < 500 && near.last() == all.last(), "{} records until the last is enough", near.len());
    assert_eq!(near, all[all.len() - near.len()..], "none is left out");
}

async fn a_log_opened_again_goes_on<F: Fixture>() {
    let fixture = F::with_partitions(2).await;
    let mut epochs = Vec::new();
    for start in 0..3 {
        let log = fixture.open().await;
        epochs.push(log.epoch().to_owned());
        for partition in 0..2 {
            log.append(Topic::Changes, rows(start * 10..start * 10 + 10, partition)).await.expect("appends");
            let read = read_all(&*log, Topic::Changes, partition, 1000).await.expect("reads");
            assert_eq!(versions(&read), (0..start * 10 + 10).collect::<Vec<_>>());
        }
    }
    assert!(!epochs[0].is_empty() && epochs.iter().all(|epoch| *epoch == epochs[0]));
    let other = F::with_partitions(2).await;
    assert_ne!(other.open().await.epoch(), epochs[0], "a new log has an epoch of its own");
}

async fn appends_at_once_stay_whole<F: Fixture>() {
    const WRITERS: i64 = 8;
    const GROUPS: i64 = 20;
    let fixture = F::with_partitions(1).await;
    let log = fixture.open().await;
    let writers = (0..WRITERS).map(|writer| {
        let log = Arc::clone(&log);
        tokio::spawn(async move {
            for group in 0..GROUPS {
                let first = (writer * GROUPS + group) * 5;
                log.append(Topic::Snapshot, rows(first..first + 5, 0)).await.expect("appends");
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.expect("no panic");
    }
    let read = versions(&read_all(&*log, Topic::Snapshot, 0, 3000).await.expect("reads"));
    for writer in 0..WRITERS {
        let of_writer = read.iter().copied().filter(|number| number / (GROUPS * 5) == writer).collect::<Vec<_>>();
        assert_eq!(of_writer, (writer * GROUPS * 5..(writer + 1) * GROUPS * 5).collect::<Vec<_>>());
    }
    assert_eq!(read.len(), usize::try_from(WRITERS * GROUPS * 5).expect("small"));
}

async fn what_is_not_applied_stays<F: Fixture>() {
    let fixture = F::with_partitions(1).await;
    let log = fixture.open().await;
    log.append(Topic::Changes, rows(0..10, 0)).await.expect("appends");
    let read = read_all(&*log, Topic::Changes, 0, 1 << 20).await.expect("reads");
    log.applied(Topic::Changes, 0, read[4].offset).await.expect("notes");
    let left = log.read(Topic::Changes, 0, read[4].offset, 1 << 20, SOON).await.expect("reads");
    assert_eq!(versions(&left)[0], 4);
    assert!(log.size_bytes().await.expect("a size") > 0);
}

//! How fast the logs are, side by side. Not a test: `cargo test --release --test it log_rate -- --ignored --nocapture`.

use std::{sync::Arc, time::Instant};

use cutover::log::{
    EmbeddedLog, Headers, KafkaLog, Kind, Log, LogConfig, Record, Topic, TransactionPart, kafka::Settings,
};

use crate::support::Kafka;

const RECORDS: u64 = 500_000;
/// Capture hands over groups of about a megabyte.
const GROUP: u64 = 1_500;
const SINGLE: u32 = 300;
const READ_BYTES: usize = 2 << 20;

/// An envelope of a nine-column row, about as long as the benchmark's.
fn record(number: u64) -> Record {
    let columns = format!(
        "\"id\":{number},\"user\":\"user-{}\",\"status\":\"O\",\"total\":\"{}.{:02}\",\"note\":\"{:0>120}\",\"created\":\"2026-01-01T00:00:00.000000Z\"",
        number % 9_973,
        number % 1_000,
        number % 100,
        number.wrapping_mul(0x9e37_79b9_7f4a_7c15),
    );
    let value = format!(
        "{{\"before\":null,\"after\":{{{columns}}},\"source\":{{\"connector\":\"mysql\",\"name\":\"rate\",\"db\":\"shop\",\"table\":\"t\"}},\"op\":\"c\",\"ts_ms\":1}}"
    );
    let headers = Headers {
        kind: Kind::Row,
        version: 1_700_000_000_000_000 + i64::try_from(number).expect("small"),
        commit_us: 1_700_000_000_000_000,
        schema: Some(0x0123_4567_89ab_cdef),
        transaction: TransactionPart::End,
    };
    Record { key: format!("{{\"id\":{number}}}").into(), value: value.into(), headers }
}

async fn measure(name: &str, log: Arc<dyn Log>) {
    let bytes: usize = (0..100).map(|number| record(number).value.len()).sum::<usize>() / 100;
    let mut took = Vec::new();
    for number in 0..SINGLE {
        let started = Instant::now();
        log.append(Topic::Snapshot, vec![(0, record(number.into()))]).await.expect("appends");
        took.push(started.elapsed());
    }
    took.sort();
    let groups: Vec<Vec<(u32, Record)>> = (0..RECORDS / GROUP)
        .map(|group| (group * GROUP..(group + 1) * GROUP).map(|number| (0, record(number))).collect())
        .collect();
    let count = groups.iter().map(Vec::len).sum::<usize>();
    let started = Instant::now();
    for group in groups {
        log.append(Topic::Changes, group).await.expect("appends");
    }
    let appended = count as f64 / started.elapsed().as_secs_f64();
    let (mut from, end) = log.bounds(Topic::Changes, 0).await.expect("bounds");
    let (started, mut read) = (Instant::now(), 0);
    while from < end {
        let records =
            log.read(Topic::Changes, 0, from, READ_BYTES, std::time::Duration::from_secs(10)).await.expect("reads");
        from = records.last().expect("a record").offset + 1;
        read += records.len();
    }
    let read_rate = read as f64 / started.elapsed().as_secs_f64();
    println!(
        "{name}: append {appended:.0} records/s in groups of {GROUP}, read {read_rate:.0} records/s ({bytes} bytes each); \
         one record alone p50 {:?}, p99 {:?}",
        took[took.len() / 2],
        took[took.len() * 99 / 100],
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures, and takes a while"]
async fn both_logs_append_and_read() {
    let folder = tempfile::tempdir().expect("a folder");
    let embedded = EmbeddedLog::open(folder.path(), (&LogConfig::default()).into()).await.expect("opens");
    measure("embedded", Arc::new(embedded)).await;
    let kafka = Kafka::shared().await;
    let config = LogConfig { url: kafka.url.clone(), ..LogConfig::default() };
    let started = Instant::now();
    let log = KafkaLog::open(Settings::new(&kafka.name, &config).expect("a URL")).await.expect("opens");
    println!("kafka: opened in {:?}", started.elapsed());
    let started = Instant::now();
    log.last_control(Topic::Changes, 0).await.expect("asks");
    println!("kafka: last control in {:?}", started.elapsed());
    measure("kafka", Arc::new(log)).await;
    let started = Instant::now();
    drop(KafkaLog::open(Settings::new(&kafka.name, &config).expect("a URL")).await.expect("opens"));
    println!("kafka: opened and closed in {:?}", started.elapsed());
}

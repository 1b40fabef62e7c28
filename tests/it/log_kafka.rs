//! The log on a real Kafka broker: the contract, and what a broker and a second writer can do to it.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use cutover::log::{KafkaLog, Log, LogConfig, LogError, Topic, kafka::Settings};

use crate::{
    log_contract::{Fixture, hold, read_all, row},
    support::Kafka,
};

struct OnKafka {
    kafka: Kafka,
    partitions: u32,
}

fn settings(kafka: &Kafka, partitions: u32) -> Settings {
    let config = LogConfig { url: kafka.url.clone(), partitions, ..LogConfig::default() };
    Settings::new(&kafka.name, &config).expect("a URL")
}

async fn open(kafka: &Kafka, partitions: u32) -> Result<KafkaLog, LogError> {
    KafkaLog::open(settings(kafka, partitions)).await
}

#[async_trait]
impl Fixture for OnKafka {
    async fn with_partitions(partitions: u32) -> Self {
        OnKafka { kafka: Kafka::shared().await, partitions }
    }

    async fn open(&self) -> Arc<dyn Log> {
        Arc::new(open(&self.kafka, self.partitions).await.expect("opens"))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_on_kafka_holds_the_contract() {
    hold::<OnKafka>().await;
}

fn rows(numbers: std::ops::Range<i64>) -> Vec<(u32, cutover::log::Record)> {
    numbers.map(|number| (0, row(number, "{}"))).collect()
}

/// Reads until nothing more comes: at the end of the log there may be records that are none to its readers.
async fn versions(log: &dyn Log, topic: Topic) -> Vec<i64> {
    let (mut from, mut versions) = (log.bounds(topic, 0).await.expect("bounds").0, Vec::new());
    loop {
        let read = log.read(topic, 0, from, 1 << 20, Duration::from_secs(1)).await.expect("reads");
        let Some(last) = read.last() else { return versions };
        from = last.offset + 1;
        versions.extend(read.iter().map(|stored| stored.record.headers.version));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_of_old_records_does_not_wait_for_a_reader_at_the_end() {
    let kafka = Kafka::shared().await;
    let log = Arc::new(open(&kafka, 1).await.expect("opens"));
    log.append(Topic::Changes, rows(0..30)).await.expect("appends");
    let (_, end) = log.bounds(Topic::Changes, 0).await.expect("bounds");
    let waiting = {
        let log = Arc::clone(&log);
        tokio::spawn(async move { log.read(Topic::Changes, 0, end, 1 << 20, Duration::from_secs(60)).await })
    };
    tokio::time::sleep(Duration::from_millis(500)).await;
    for _ in 0..2 {
        let all = tokio::time::timeout(Duration::from_secs(20), versions(&*log, Topic::Changes)).await;
        assert_eq!(all.expect("does not wait for the other"), (0..30).collect::<Vec<_>>());
    }
    assert!(!waiting.is_finished());
    log.append(Topic::Changes, rows(30..31)).await.expect("appends");
    let read = waiting.await.expect("joins").expect("reads");
    assert_eq!(read.iter().map(|stored| stored.record.headers.version).collect::<Vec<_>>(), [30]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_writer_fences_the_first_and_what_that_still_sends_is_void() {
    let kafka = Kafka::shared().await;
    let first = open(&kafka, 1).await.expect("opens");
    first.append(Topic::Changes, rows(0..3)).await.expect("appends");
    first.append(Topic::Snapshot, rows(0..3)).await.expect("appends");
    let second = open(&kafka, 1).await.expect("opens");
    second.last_control(Topic::Changes, 0).await.expect("takes the turn");
    let error = first.append(Topic::Changes, rows(100..103)).await.expect_err("fenced");
    assert!(matches!(error, LogError::Fenced { partition: 0, .. }), "{error}");
    for numbers in [3..6, 6..9] {
        // The late records came between: the second writer finds its place again.
        let mut appended = second.append(Topic::Changes, rows(numbers.clone())).await;
        if matches!(appended, Err(LogError::Other(_))) {
            appended = second.append(Topic::Changes, rows(numbers)).await;
        }
        appended.expect("appends");
    }
    second.append(Topic::Snapshot, rows(3..6)).await.expect("appends");
    let error = first.append(Topic::Snapshot, rows(100..103)).await.expect_err("fenced");
    assert!(matches!(error, LogError::Fenced { .. }), "{error}");
    for log in [&first, &second] {
        assert_eq!(versions(log, Topic::Changes).await, (0..9).collect::<Vec<_>>());
        assert_eq!(versions(log, Topic::Snapshot).await, (0..6).collect::<Vec<_>>());
    }
    assert!(kafka.consume("changes", 0).len() >= 14, "the void records are there for whoever looks");
    drop(second);
    let third = open(&kafka, 1).await.expect("opens");
    assert_eq!(versions(&third, Topic::Changes).await, (0..9).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_many_megabytes_fit_and_larger_ones_are_refused_with_the_setting_that_lets_them_in() {
    let kafka = Kafka::shared().await;
    let log = open(&kafka, 1).await.expect("opens");
    let noise: Vec<u8> = (0..40_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let big = vec![(0, row(1, noise.clone())), (0, row(2, "{}")), (0, row(3, noise.clone()))];
    log.append(Topic::Changes, big).await.expect("appends");
    let read = read_all(&log, Topic::Changes, 0, 1 << 20).await.expect("reads");
    assert_eq!(read.iter().map(|stored| stored.record.value.len()).collect::<Vec<_>>(), [40_000_000, 2, 40_000_000]);
    assert!(read[2].record.value == noise);
    let error = log.append(Topic::Changes, vec![(0, row(4, vec![b'x'; 120_000_000]))]).await.expect_err("too large");
    assert!(matches!(error, LogError::TooLarge { .. }) && error.to_string().contains("max.message.bytes"), "{error}");
    log.append(Topic::Changes, rows(5..6)).await.expect("goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_was_paused_before_it_took_the_turn_does_not_stop_its_successor() {
    let kafka = Kafka::shared().await;
    let successor = KafkaLog::open(settings(&kafka, 1).under_lease(8)).await.expect("opens");
    successor.append(Topic::Changes, rows(0..3)).await.expect("appends");
    let paused = KafkaLog::open(settings(&kafka, 1).under_lease(7)).await.expect("opens");
    paused.last_control(Topic::Changes, 0).await.expect("nobody has told it yet");
    paused.append(Topic::Changes, rows(100..103)).await.expect("nobody has told it yet");
    let displaced = successor.append(Topic::Changes, rows(3..6)).await.expect_err("displaced");
    assert!(matches!(displaced, LogError::Other(_)), "{displaced}");
    for numbers in [3..6, 6..9] {
        successor.append(Topic::Changes, rows(numbers)).await.expect("appends");
        let error = paused.append(Topic::Changes, rows(103..104)).await.expect_err("fenced");
        assert!(matches!(error, LogError::Fenced { partition: 0, .. }), "{error}");
        // What it sent came to stand behind: the successor finds its place again.
        let _ = successor.append(Topic::Changes, rows(50..51)).await;
    }
    let third = open(&kafka, 1).await.expect("opens");
    let kept: Vec<i64> = versions(&third, Topic::Changes).await.into_iter().filter(|version| *version != 50).collect();
    assert_eq!(kept, [0, 1, 2, 100, 101, 102, 3, 4, 5, 6, 7, 8]);
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_are_made_with_the_settings_that_the_log_needs() {
    let kafka = Kafka::shared().await;
    drop(open(&kafka, 3).await.expect("opens"));
    for suffix in ["changes", "snapshot"] {
        let found = kafka.settings(suffix).await;
        let value = |key: &str| found.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str());
        for (key, wanted) in [
            ("cleanup.policy", "delete"),
            ("retention.ms", "-1"),
            ("retention.bytes", "-1"),
            ("unclean.leader.election.enable", "false"),
        ] {
            assert_eq!(value(key), Some(wanted), "{suffix} {key}");
        }
        assert!(value("max.message.bytes").and_then(|bytes| bytes.parse::<u64>().ok()) > Some(16 << 20));
        assert_eq!(kafka.bounds(suffix, 2).0, 0);
    }
    let error = open(&kafka, 2).await.expect_err("three partitions");
    assert!(error.to_string().contains("set [log] partitions to 3"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_that_would_lose_records_are_refused_and_not_changed() {
    let kafka = Kafka::shared().await;
    kafka.create_topic("changes", 1, &[("cleanup.policy", "compact"), ("retention.ms", "1000")]).await;
    let error = open(&kafka, 1).await.expect_err("compaction").to_string();
    assert!(error.contains("--add-config cleanup.policy=delete"), "{error}");
    assert!(error.contains("--add-config retention.ms=-1"), "{error}");
    kafka.configure("changes", &[("retention.ms", "-1"), ("cleanup.policy", "delete")]).await;
    open(&kafka, 1).await.expect("opens");
}

#[tokio::test(flavor = "multi_thread")]
async fn applied_records_go_after_the_retention_and_nothing_else_does() {
    let kafka = Kafka::shared().await;
    let eager = Settings { retention_ms: 0, retention_every: Duration::ZERO, ..settings(&kafka, 1) };
    let log = KafkaLog::open(eager.clone()).await.expect("opens");
    let mut control = row(50, r#"{"clock":50}"#);
    control.headers.kind = cutover::log::Kind::Control;
    for numbers in [0..40, 40..50] {
        log.append(Topic::Changes, rows(numbers)).await.expect("appends");
    }
    let read = read_all(&log, Topic::Changes, 0, 1 << 20).await.expect("reads");
    tokio::time::sleep(Duration::from_millis(50)).await;
    log.applied(Topic::Changes, 0, read[40].offset).await.expect("notes");
    assert_eq!(
        versions(&log, Topic::Changes).await.len(),
        50,
        "without a control record there is nothing to resume at"
    );
    log.append(Topic::Changes, vec![(0, control)]).await.expect("appends");
    log.append(Topic::Changes, rows(51..60)).await.expect("appends");
    tokio::time::sleep(Duration::from_millis(50)).await;
    log.applied(Topic::Changes, 0, read[40].offset).await.expect("notes");
    assert_eq!(log.bounds(Topic::Changes, 0).await.expect("bounds").0, read[40].offset);
    assert_eq!(versions(&log, Topic::Changes).await, (40..60).collect::<Vec<_>>());
    let error = log.read(Topic::Changes, 0, 0, 1, Duration::ZERO).await.expect_err("dropped");
    assert!(matches!(error, LogError::Trimmed { wanted: 0, .. }), "{error}");
    let (_, end) = log.bounds(Topic::Changes, 0).await.expect("bounds");
    log.applied(Topic::Changes, 0, end).await.expect("notes");
    assert_eq!(versions(&log, Topic::Changes).await, (50..60).collect::<Vec<_>>(), "the writer resumes at the control");
    let epoch = log.epoch().to_owned();
    drop(log);
    let patient = Settings { retention_ms: 3_600_000, ..eager };
    let log = KafkaLog::open(patient).await.expect("opens");
    assert_eq!(log.epoch(), epoch);
    log.append(Topic::Changes, rows(60..70)).await.expect("appends");
    log.applied(Topic::Changes, 0, end).await.expect("notes");
    assert_eq!(versions(&log, Topic::Changes).await, (50..70).collect::<Vec<_>>(), "too young");
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_deleted_and_made_again_are_another_log_and_never_the_old_one_continued() {
    let kafka = Kafka::shared().await;
    let old = open(&kafka, 1).await.expect("opens");
    old.append(Topic::Changes, rows(0..10)).await.expect("appends");
    let (_, end) = old.bounds(Topic::Changes, 0).await.expect("bounds");
    assert_eq!(versions(&old, Topic::Changes).await.len(), 10);
    kafka.delete_topics().await;
    let new = open(&kafka, 1).await.expect("opens");
    assert_ne!(new.epoch(), old.epoch());
    new.append(Topic::Changes, rows(0..30)).await.expect("appends");
    // The new log has grown past where the old one ended: a reader of the old one would find records there.
    let read = old.read(Topic::Changes, 0, end, 1 << 20, Duration::from_secs(10)).await;
    assert!(matches!(read, Err(LogError::Corrupt { .. })), "{read:?}");
    let mut appended = old.append(Topic::Changes, rows(10..20)).await;
    for _ in 0..5 {
        appended = if matches!(&appended, Err(LogError::Other(_) | LogError::Unreachable { .. })) {
            old.append(Topic::Changes, rows(10..20)).await
        } else {
            break;
        };
    }
    assert!(matches!(appended, Err(LogError::Corrupt { .. })), "{appended:?}");
    assert_eq!(versions(&new, Topic::Changes).await, (0..30).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn brokers_that_are_not_there_are_tried_again_and_named() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    drop(listener);
    let kafka = Kafka::on(&format!("kafka://127.0.0.1:{port}"));
    let error = open(&kafka, 1).await.expect_err("nobody listens");
    assert_eq!(error.disposition(), cutover::model::Disposition::Retry);
    let text = error.to_string();
    assert!(text.contains(&port.to_string()) && text.contains("refused"), "{text}");
}

//! The whole pipeline with Kafka as its log: what others read there, brokers that go away and come back, and brokers
//! that lose what they had acknowledged.

use std::{path::Path, time::Duration};

use cutover::log::{KafkaLog, Log, LogConfig, LogError, Topic, kafka::Settings};
use rdkafka::message::{Headers as _, Message as _, OwnedMessage};
use serde_json::{Value, json};

use crate::{
    follow::{Follow, PATIENCE, following, halted, stop},
    log_contract::row,
    support::{Kafka, Mysql, Own, Postgres, Worker, eventually},
};

const EPOCH: &str = "SELECT min(log_epoch) FROM cutover.offsets WHERE topic = 'changes'";

/// A pipeline over these brokers, not started.
pub async fn pipe_over(url: &str) -> (Follow, Kafka) {
    let pipe = Follow::new(Mysql::v57().await, Postgres::v15().await).await;
    pipe.work.configure_also(&format!("[log]\nurl = {url:?}\n"));
    let kafka = Kafka::of(url, pipe.name());
    (pipe, kafka)
}

async fn is_ready(worker: &Worker) -> bool {
    worker.get("/readyz").await.is_ok_and(|(status, _)| status == 200)
}

fn header<'a>(message: &'a OwnedMessage, name: &str) -> &'a str {
    let found = message.headers().into_iter().flat_map(|headers| headers.iter()).find(|header| header.key == name);
    std::str::from_utf8(found.and_then(|header| header.value).unwrap_or_default()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn any_consumer_understands_the_topics() {
    let shared = Kafka::shared().await;
    let (pipe, kafka) = pipe_over(&shared.url).await;
    pipe.insert(0..3).await;
    let checked = pipe.work.run(&["check"]).await;
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
    let mut worker = pipe.work.start(&[]);
    following(&worker).await;
    pipe.source
        .exec("INSERT INTO t VALUES (7, 1, 'néw'); UPDATE t SET n = 2 WHERE id = 7; DELETE FROM t WHERE id = 7")
        .await;
    pipe.source.exec("UPDATE t SET id = 8 WHERE id = 0").await;
    pipe.in_step().await;
    stop(&mut worker).await;

    let is_row = |message: &OwnedMessage| header(message, "cutover.kind") == "row";
    let rows: Vec<OwnedMessage> = kafka.consume("changes", 0).into_iter().filter(is_row).collect();
    let envelope = |message: &OwnedMessage| serde_json::from_slice::<Value>(message.payload().unwrap()).unwrap();
    let ops: Vec<String> = rows.iter().map(|row| envelope(row)["op"].as_str().unwrap().to_owned()).collect();
    assert_eq!(ops, ["c", "u", "d", "d", "c"], "a changed key is a delete and an insert");
    let keys: Vec<&str> = rows.iter().map(|row| std::str::from_utf8(row.key().unwrap()).unwrap()).collect();
    assert_eq!(keys, ["{\"id\":7}", "{\"id\":7}", "{\"id\":7}", "{\"id\":0}", "{\"id\":8}"]);
    let first = envelope(&rows[0]);
    assert_eq!((&first["before"], &first["after"]), (&Value::Null, &json!({"id": 7, "n": 1, "note": "néw"})));
    assert_eq!((&first["source"]["connector"], &first["source"]["table"]), (&json!("mysql"), &json!("t")));
    assert!(first["ts_ms"].as_i64() > Some(1_700_000_000_000));
    assert_eq!(envelope(&rows[2])["after"], Value::Null);
    let versions: Vec<i64> = rows.iter().map(|row| header(row, "cutover.version").parse().unwrap()).collect();
    assert!(versions.is_sorted_by(|one, next| one < next), "{versions:?}");
    assert!(rows.iter().all(|row| header(row, "cutover.format") == "1"));
    assert_eq!(header(&rows[4], "cutover.transaction"), "end");

    let copied: Vec<OwnedMessage> = kafka.consume("snapshot", 0).into_iter().filter(is_row).collect();
    assert!(copied.iter().all(|row| envelope(row)["op"] == "r"));
    assert_eq!(copied.len(), 3);
    for message in kafka.consume("changes", 0).iter().chain(&kafka.consume("snapshot", 0)) {
        assert!(message.payload().is_some(), "there are no null-value messages");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_killed_and_comes_back_loses_no_row() {
    let broker = Own::Kafka.take().await;
    let (pipe, _kafka) = pipe_over(broker.url).await;
    pipe.work.configure_also("[snapshot]\nchunk_rows = 500\n");
    pipe.insert(0..20_000).await;
    let mut worker = pipe.work.start(&[]);
    for round in 0..2_u32 {
        for step in 0..30 {
            let id = 100_000 + round * 1000 + step * 10;
            pipe.insert(id..id + 10).await;
            pipe.source.exec(&format!("UPDATE t SET n = n + 1 WHERE id % 97 = {step}")).await;
            match step {
                10 => broker.crash(),
                20 => broker.start(),
                _ => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }
    following(&worker).await;
    pipe.in_step().await;
    eventually("the worker is ready again", PATIENCE, async || is_ready(&worker).await).await;
    stop(&mut worker).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_away_is_waited_for_and_readyz_says_so() {
    let broker = Own::Kafka.take().await;
    let (pipe, _kafka) = pipe_over(broker.url).await;
    pipe.insert(0..10).await;
    broker.crash();
    let checked = pipe.work.run(&["check"]).await;
    let text = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(checked.status.code() == Some(1) && text.contains("Kafka brokers at 127.0.0.1"), "{text}");
    let mut worker = pipe.work.start(&[]);
    eventually("the worker says what it waits for", PATIENCE, async || {
        worker.get("/readyz").await.is_ok_and(|(status, body)| status == 503 && body.contains("Kafka brokers"))
    })
    .await;
    broker.start();
    following(&worker).await;
    pipe.in_step().await;

    broker.crash();
    pipe.insert(10..20).await;
    eventually("the worker says what it waits for", PATIENCE, async || {
        worker.get("/readyz").await.is_ok_and(|(status, body)| status == 503 && body.contains("Kafka brokers"))
    })
    .await;
    broker.start();
    pipe.in_step().await;
    eventually("the worker is ready again", PATIENCE, async || is_ready(&worker).await).await;

    // A worker that is asked to stop does not wait for it.
    broker.crash();
    pipe.insert(20..30).await;
    stop(&mut worker).await;
    broker.start();
}

/// Cuts off the second half of what a partition's last segment holds.
fn lose_tail(data: &Path, topic: &str) {
    let folder = data.join(format!("{topic}-0"));
    let files = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
    let last = files.filter(|path| path.extension().is_some_and(|extension| extension == "log")).max().unwrap();
    let file = std::fs::File::options().write(true).open(&last).unwrap();
    file.set_len(file.metadata().unwrap().len() / 2).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_17_a_broker_that_lost_its_tail_halts_and_the_log_starts_anew_once_it_is_deleted() {
    let broker = Own::Kafka.take().await;
    let (pipe, kafka) = pipe_over(broker.url).await;
    pipe.insert(0..10).await;
    let mut worker = pipe.work.start(&[]);
    following(&worker).await;
    for id in 10..60 {
        pipe.insert(id..id + 1).await;
    }
    pipe.in_step().await;
    stop(&mut worker).await;
    broker.crash();
    lose_tail(&broker.data(), &kafka.topic("changes"));
    broker.start();
    pipe.insert(60..90).await;

    // However often it is started.
    for _ in 0..2 {
        let mut worker = pipe.work.start(&[]);
        let (reason, remedy) = halted(&worker).await;
        assert!(reason.contains("its tail is lost"), "{reason}");
        assert!(format!("{reason}; {remedy}").contains("both topics"), "{reason}; {remedy}");
        stop(&mut worker).await;
    }
    let before = pipe.at_target(EPOCH).await;
    kafka.delete_topics().await;
    let mut worker = pipe.work.start(&[]);
    pipe.in_step().await;
    assert_ne!(pipe.at_target(EPOCH).await, before, "a new log has a new epoch");
    stop(&mut worker).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_17_a_broker_that_lost_its_tail_under_a_running_worker_is_found_out() {
    let broker = Own::Kafka.take().await;
    let (pipe, kafka) = pipe_over(broker.url).await;
    pipe.insert(0..10).await;
    let mut worker = pipe.work.start(&[]);
    following(&worker).await;
    for id in 10..60 {
        pipe.insert(id..id + 1).await;
    }
    pipe.in_step().await;
    broker.crash();
    lose_tail(&broker.data(), &kafka.topic("changes"));
    // More than was lost: without a check the log would grow past the place where the target is.
    pipe.insert(1000..9000).await;
    broker.start();
    let (reason, _) = halted(&worker).await;
    assert!(reason.contains("its tail is lost"), "{reason}");
    stop(&mut worker).await;
    kafka.delete_topics().await;
    let mut worker = pipe.work.start(&[]);
    pipe.in_step().await;
    stop(&mut worker).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_17_a_broker_that_lost_everything_is_a_new_log() {
    let broker = Own::Kafka.take().await;
    let (pipe, kafka) = pipe_over(broker.url).await;
    pipe.work.configure_also("[snapshot]\nchunk_rows = 100\nparallel = 1\napply_parallel = 1\n");
    pipe.insert(0..6000).await;
    let mut worker = pipe.work.start(&[]);
    eventually("a part is copied", PATIENCE, async || {
        pipe.at_target("SELECT count(*) >= 500 FROM t").await.as_deref() == Some("t")
    })
    .await;
    pipe.source.exec("UPDATE t SET n = 1 WHERE id < 300; DELETE FROM t WHERE id BETWEEN 300 AND 320").await;
    worker.kill9().await;
    let before = pipe.at_target(EPOCH).await;
    broker.wipe();
    broker.start();
    pipe.source.exec("UPDATE t SET n = 2 WHERE id < 200; DELETE FROM t WHERE id BETWEEN 5000 AND 5100").await;
    let mut worker = pipe.work.start(&[]);
    following(&worker).await;
    pipe.in_step().await;
    assert_ne!(pipe.at_target(EPOCH).await, before, "a new log has a new epoch");
    assert!(kafka.bounds("changes", 0).1 > 0);
    stop(&mut worker).await;
}

/// What is lost of a log that has nothing but unsynced records, told from both sides.
#[tokio::test(flavor = "multi_thread")]
async fn records_behind_a_lost_tail_never_pass_for_the_lost_ones() {
    let broker = Own::Kafka.take().await;
    let kafka = Kafka::on(broker.url);
    let config = LogConfig { url: kafka.url.clone(), ..LogConfig::default() };
    let log = KafkaLog::open(Settings::new(&kafka.name, &config).expect("a URL")).await.expect("opens");
    let other = KafkaLog::open(Settings::new(&kafka.name, &config).expect("a URL")).await.expect("opens");
    for topic in [Topic::Changes, Topic::Snapshot] {
        for number in 0..40 {
            log.append(topic, vec![(0, row(number, "{}"))]).await.expect("appends");
        }
    }
    let (_, end) = log.bounds(Topic::Changes, 0).await.expect("bounds");
    broker.crash();
    for topic in ["changes", "snapshot"] {
        lose_tail(&broker.data(), &kafka.topic(topic));
    }
    broker.start();
    let mut outcome = Ok(());
    for _ in 0..10 {
        outcome = log.append(Topic::Changes, (100..200).map(|number| (0, row(number, "{}"))).collect()).await;
        if !matches!(outcome, Err(LogError::Unreachable { .. } | LogError::Other(_))) {
            break;
        }
    }
    assert!(
        matches!(&outcome, Err(LogError::Corrupt { reason, .. }) if reason.contains("tail is lost")),
        "{outcome:?}"
    );
    // Whether or not anything came to stand at the lost offsets, no reader takes it for what was there.
    for reader in [&log, &other] {
        match reader.read(Topic::Changes, 0, end, 1 << 20, Duration::from_secs(2)).await {
            Ok(read) => assert!(read.is_empty(), "{read:?}"),
            Err(error) => assert!(matches!(error, LogError::Corrupt { .. }), "{error}"),
        }
    }
    // A reader that waits at the place where the log ends now learns that more was acknowledged.
    let (start, now) = other.bounds(Topic::Snapshot, 0).await.expect("bounds");
    assert!(start < now && now < 40, "{start} {now}");
    let read = log.read(Topic::Snapshot, 0, now, 1 << 20, Duration::from_secs(1)).await;
    assert!(matches!(&read, Err(LogError::Corrupt { reason, .. }) if reason.contains("tail is lost")), "{read:?}");
}

//! The dead letters' topic: a copy of the target's table that other systems follow.

use std::{collections::BTreeMap, time::Duration};

use rdkafka::message::Message as _;
use serde_json::{Value, json};

use crate::{
    dlq::{listed, narrow, said},
    rules_rig::Rig,
    support::{Kafka, Mysql, eventually},
};

const SOON: Duration = Duration::from_secs(60);

async fn over_kafka() -> (Rig, Kafka) {
    let shared = Kafka::shared().await;
    let rig = narrow(Mysql::v57().await).await;
    rig.work.configure_also(&format!("[log]\nurl = {:?}\n", shared.url));
    let kafka = Kafka::of(&shared.url, rig.source.database());
    (rig, kafka)
}

fn json_of(bytes: Option<&[u8]>) -> Value {
    serde_json::from_slice(bytes.expect("no null-value messages")).unwrap()
}

/// The records of each letter, oldest first.
fn told(kafka: &Kafka) -> BTreeMap<i64, Vec<Value>> {
    let mut letters: BTreeMap<i64, Vec<Value>> = BTreeMap::new();
    let messages = if kafka.has_topic("dlq") { kafka.consume("dlq", 0) } else { Vec::new() };
    for message in messages {
        let (key, value) = (json_of(message.key()), json_of(message.payload()));
        assert_eq!(key, json!({ "id": value["id"] }));
        letters.entry(value["id"].as_i64().unwrap()).or_default().push(value);
    }
    letters
}

/// Waits until the topic's last record of each letter says these states.
async fn says(kafka: &Kafka, states: &[&str]) -> Vec<Value> {
    let last = || told(kafka).into_values().filter_map(|mut records| records.pop()).collect::<Vec<_>>();
    eventually(&format!("the topic says {states:?}"), SOON, async || {
        last().iter().map(|letter| letter["state"].clone()).collect::<Vec<_>>() == states
    })
    .await;
    last()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_topic_follows_each_letter_from_its_error_to_its_end() {
    let (rig, kafka) = over_kafka().await;
    let _worker = rig.following().await;
    rig.source
        .exec("INSERT INTO t VALUES (2, 'longer than five'), (3, 'longer, too'), (4, 'the longest of all')")
        .await;
    let letters = says(&kafka, &["open", "open", "open"]).await;
    let shown = listed(&rig).await;
    for (letter, listed) in letters.iter().zip(shown["letters"].as_array().unwrap()) {
        for (field, value) in listed.as_object().unwrap() {
            assert_eq!(&letter[field], value, "{field}");
        }
    }
    assert_eq!(letters[0]["record"]["after"], json!({ "id": 2, "v": "longer than five" }));
    assert_eq!(letters[0]["key"], json!({ "id": 2 }));

    let ids: Vec<String> = letters.iter().map(|letter| letter["id"].to_string()).collect();
    assert_eq!(said(&rig, &["dlq", "retry", &ids[0]]).await.0, Some(1));
    eventually("the renewed letter is told", SOON, async || {
        told(&kafka)[&letters[0]["id"].as_i64().unwrap()].last().unwrap()["attempts"] == 2
    })
    .await;
    assert_eq!(said(&rig, &["dlq", "discard", &ids[1]]).await.0, Some(0));
    rig.source.exec("UPDATE t SET v = 'ok' WHERE id = 4").await;
    let letters = says(&kafka, &["open", "discarded", "cleared"]).await;
    assert_eq!((&letters[2]["key"], &letters[2]["record"]), (&json!({ "id": 4 }), &Value::Null));
    assert_eq!(letters[1]["record"]["after"]["v"], "longer, too", "a consumer may still want it");
    for records in told(&kafka).into_values() {
        let sequence: Vec<i64> = records.iter().map(|record| record["sequence"].as_i64().unwrap()).collect();
        assert!(sequence.is_sorted_by(|one, next| one < next), "{sequence:?}");
    }
    let settings = kafka.settings("dlq").await;
    let setting = |name: &str| settings.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
    assert_eq!((setting("cleanup.policy"), setting("retention.ms")), (Some("compact"), Some("-1")));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_topic_has_every_letter_after_a_kill_and_after_it_was_deleted() {
    let (rig, kafka) = over_kafka().await;
    let mut worker = rig.following().await;
    rig.source.exec("INSERT INTO t VALUES (2, 'longer than five')").await;
    says(&kafka, &["open"]).await;
    worker.kill9().await;
    // Told, and not noted as told; and one that goes while nobody looks.
    rig.target.exec("DELETE FROM cutover.dead_letter_copies").await;
    rig.source
        .exec("UPDATE t SET v = 'longer, too' WHERE id = 2; INSERT INTO t VALUES (3, 'the longest of all')")
        .await;
    let synced = rig.until_synced().await;
    assert_eq!(synced.0, Some(1), "{}", synced.1);
    let letters = says(&kafka, &["open", "open", "open"]).await;
    assert_eq!(letters.len(), 3, "every event that failed has its letter");

    kafka.delete_topic("dlq").await;
    let mut worker = rig.work.start(&[]);
    let again = says(&kafka, &["open", "open", "open"]).await;
    for (one, other) in letters.iter().zip(&again) {
        assert_eq!((&one["id"], &one["record"]), (&other["id"], &other["record"]));
    }
    worker.terminate().await;
    assert_eq!(worker.wait_exit(SOON).await.code(), Some(0), "{}", worker.stderr());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_letter_that_is_too_large_for_the_topic_is_shown_without_its_row() {
    let (rig, kafka) = over_kafka().await;
    kafka.create_topic("dlq", 1, &[("cleanup.policy", "compact"), ("max.message.bytes", "10000")]).await;
    rig.source.exec("ALTER TABLE t MODIFY v text").await;
    let _worker = rig.following().await;
    rig.source.exec("INSERT INTO t VALUES (2, 'longer than five'), (3, repeat('x', 20000))").await;
    let letters = says(&kafka, &["open", "open"]).await;
    assert_eq!(letters[0]["record"]["after"]["v"], "longer than five");
    assert_eq!((&letters[1]["record"], &letters[1]["key"]), (&Value::Null, &json!({ "id": 3 })));
}

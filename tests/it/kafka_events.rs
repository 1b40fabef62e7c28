//! Events on Kafka: a topic of their own, which any consumer follows, whatever happens to the worker and to the broker.

use std::time::{Duration, Instant};

use cutover::{
    log::{KafkaEvents, LogConfig, kafka::Settings},
    observe::{EventSink as _, NumberedEvent},
};
use rdkafka::message::Message as _;
use serde_json::Value;

use crate::{
    events::{followed, of, phases},
    follow::{Follow, PATIENCE, following, ready, stop},
    kafka_pipeline::pipe_over,
    support::{Kafka, Own, eventually},
};

/// What the topic has, repeats included.
fn told(kafka: &Kafka) -> Vec<Value> {
    let payload = |message: rdkafka::message::OwnedMessage| {
        assert_eq!(message.key(), Some(kafka.name.as_bytes()), "under the pipeline's name");
        serde_json::from_slice(message.payload().unwrap()).unwrap()
    };
    kafka.consume("events", 0).into_iter().map(payload).collect()
}

/// Waits until everything up to the end of this copy of the table is in the topic.
async fn carried(pipe: &Follow, copy: u32) {
    let completed = format!("body ->> 'event' = 'table_completed' AND body ->> 'copy' = '{copy}'");
    let phases = "array_agg(body ->> 'to' ORDER BY sequence DESC) FILTER (WHERE body ->> 'event' = 'phase_changed')";
    let sql = format!(
        "SELECT bool_and(carried) AND bool_or({completed}) AND ({phases})[1] = 'following' FROM cutover.events"
    );
    pipe.eventually_at_target(&sql, "t").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn any_consumer_follows_a_migration_through_kills() {
    let shared = Kafka::shared().await;
    let (pipe, kafka) = pipe_over(&shared.url).await;
    pipe.insert(0..300).await;
    let mut worker = pipe.work.start(&[]);
    carried(&pipe, 1).await;
    worker.kill9().await;
    // As a kill between the acknowledgement and the target leaves it.
    pipe.target.exec("UPDATE cutover.events SET carried = false").await;
    let mut worker = pipe.work.start(&[]);
    let asked = pipe.work.run(&["resnapshot", "t"]).await;
    assert!(asked.status.success(), "{}", String::from_utf8_lossy(&asked.stderr));
    carried(&pipe, 2).await;
    stop(&mut worker).await;

    let all = told(&kafka);
    let events = followed(&all);
    assert!(all.len() > events.len(), "records were repeated");
    assert_eq!((of(&events, "snapshot_started").len(), of(&events, "table_completed").len()), (2, 2), "{events:?}");
    assert_eq!(phases(&events).last().map(String::as_str), Some("following"));
    let shown = pipe.work.run(&["status", "--events", "--json"]).await;
    let shown = String::from_utf8(shown.stdout).unwrap();
    let shown: Vec<Value> = shown.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(shown, events, "what the target has");
    let settings = kafka.settings("events").await;
    for (key, wanted) in [("cleanup.policy", "delete"), ("retention.ms", "-1"), ("retention.bytes", "67108864")] {
        assert!(settings.iter().any(|(name, value)| name == key && value == wanted), "{key}: {settings:?}");
    }
    assert!(!pipe.log_folder().exists(), "no file beside it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_would_lose_events_is_named_by_check_and_stops_nothing_but_them() {
    let shared = Kafka::shared().await;
    let (pipe, kafka) = pipe_over(&shared.url).await;
    kafka.create_topic("events", 3, &[("cleanup.policy", "compact")]).await;
    let checked = pipe.work.run(&["check"]).await;
    let text = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert_eq!(checked.status.code(), Some(1), "{text}");
    assert!(text.contains(&format!("--topic {} --add-config cleanup.policy=delete", kafka.topic("events"))), "{text}");
    pipe.insert(0..20).await;
    let mut worker = pipe.work.start(&[]);
    following(&worker).await;
    pipe.source.exec("UPDATE t SET n = 1").await;
    pipe.in_step().await;
    assert!(ready(&worker, 503).await.contains("events is retrying"));
    kafka.configure("events", &[("cleanup.policy", "delete")]).await;
    ready(&worker, 200).await;
    carried(&pipe, 1).await;
    stop(&mut worker).await;
    assert_eq!(of(&followed(&told(&kafka)), "table_completed").len(), 1);
    assert_eq!((kafka.bounds("events", 1), kafka.bounds("events", 2)), ((0, 0), (0, 0)), "one order, one partition");
}

fn event(sequence: i64) -> NumberedEvent {
    NumberedEvent { id: format!("id {sequence}"), sequence, body: "{\"event\":\"phase_changed\"}".into() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_was_away_gets_every_event_in_order() {
    let broker = Own::Kafka.take().await;
    let kafka = Kafka::on(broker.url);
    let config = LogConfig { url: kafka.url.clone(), ..LogConfig::default() };
    let sink = KafkaEvents::new(Settings::new(&kafka.name, &config).expect("a URL"));
    let (first, second) = ((1..4).map(event).collect::<Vec<_>>(), (4..10).map(event).collect::<Vec<_>>());
    sink.append(&first).await.expect("appends");
    broker.crash();
    let asked = Instant::now();
    for _ in 0..2 {
        let error = sink.append(&second).await.expect_err("the broker is away").to_string();
        assert!(error.contains(&kafka.topic("events")) && error.contains("kept in the target"), "{error}");
    }
    assert!(asked.elapsed() < Duration::from_secs(40), "{:?}", asked.elapsed());
    broker.start();
    eventually("the broker takes events again", PATIENCE, async || sink.append(&second).await.is_ok()).await;
    assert_eq!(followed(&told(&kafka)).len(), 9);

    // A topic that somebody deletes is made again.
    kafka.delete_topic("events").await;
    eventually("the topic is made again", PATIENCE, async || sink.append(&first).await.is_ok()).await;
    assert_eq!(followed(&told(&kafka)).len(), 3);
}

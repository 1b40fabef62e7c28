//! The log's two topics: made with the settings that it needs, or examined for them. Those of the dead letters and
//! of the events are made here too.

use std::collections::BTreeMap;

use rdkafka::{
    admin::{NewTopic, ResourceSpecifier, TopicReplication},
    error::RDKafkaErrorCode,
};

use super::{
    broker::{Broker, TopicShape, admin_options},
    settings::{RECORD_BYTES_MAX, Settings},
};
use crate::{
    log::{LogError, Topic},
    model::Problem,
};

pub(super) const BOTH: [Topic; 2] = [Topic::Changes, Topic::Snapshot];
/// Replicas of a topic that is made, where there are as many brokers.
const REPLICAS: usize = 3;
/// What a topic that is made takes as one record: a little less than brokers take as one request
/// (`socket.request.max.bytes`).
pub(super) const RECORD_BYTES: u64 = 99 << 20;
/// What headers and a batch of one record add to it.
pub(super) const RECORD_OVERHEAD_BYTES: u64 = 4 << 10;
/// Applied records leave the disk in files of this size.
const SEGMENT_BYTES: u64 = 256 << 20;
/// What the events' topic keeps; a migration's events are far fewer.
const EVENTS_BYTES: u64 = 64 << 20;
const EVENTS_SEGMENT_BYTES: u64 = 16 << 20;
/// The largest event, one that lists a hundred thousand tables, is smaller.
pub(super) const EVENT_BYTES_MAX: u64 = 16 << 20;

/// What the topics are like.
#[derive(Debug)]
pub(super) struct ExaminedTopics {
    pub(super) problems: Vec<Problem>,
    pub(super) missing: Vec<Topic>,
    /// The largest record that both take.
    pub(super) record_bytes_max: u64,
}

/// Looks at both topics.
pub(super) async fn examine(broker: &Broker, settings: &Settings) -> Result<ExaminedTopics, LogError> {
    let mut examined = ExaminedTopics { problems: Vec::new(), missing: Vec::new(), record_bytes_max: RECORD_BYTES };
    for topic in BOTH {
        let name = settings.topic(topic);
        let Some(shape) = broker.shape(&name).await? else {
            examined.missing.push(topic);
            continue;
        };
        if shape.partitions != settings.partitions {
            examined.problems.push(Problem {
                what: format!("topic {name} has {} partitions, not {}", shape.partitions, settings.partitions),
                fix: format!(
                    "set [log] partitions to {}, or delete both topics once everything in them is applied",
                    shape.partitions
                ),
            });
        }
        let config = describe(broker, &name).await?;
        examined.problems.extend(judge(&name, shape, &config));
        if let Some(bytes) = config.get("max.message.bytes").and_then(|value| value.parse().ok()) {
            examined.record_bytes_max = examined.record_bytes_max.min(bytes);
        }
    }
    Ok(examined)
}

/// The settings of a topic.
pub(super) async fn describe(broker: &Broker, topic: &str) -> Result<BTreeMap<String, String>, LogError> {
    let asked = [ResourceSpecifier::Topic(topic)];
    let answer = broker.admin.describe_configs(&asked, &admin_options()).await;
    let answer = answer.map_err(|error| broker.error(&error, (None, error.to_string())))?;
    let mut config = BTreeMap::new();
    for resource in answer {
        let resource = resource.map_err(|code| {
            let error = rdkafka::error::KafkaError::AdminOp(code);
            broker.error(&error, (None, format!("the settings of topic {topic} cannot be read: {code}")))
        })?;
        config.extend(resource.entries.into_iter().filter_map(|entry| Some((entry.name, entry.value?))));
    }
    Ok(config)
}

/// What the settings of a topic would lose.
fn judge(name: &str, shape: TopicShape, config: &BTreeMap<String, String>) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut want = |key: &str, wanted: &str, is_fine: bool, why: &str| {
        let found = config.get(key).map_or("unknown", String::as_str);
        if !is_fine {
            problems.push(Problem {
                what: format!("topic {name} has {key}={found}: {why}"),
                fix: format!("kafka-configs.sh --alter --topic {name} --add-config {key}={wanted}"),
            });
        }
    };
    let is = |key: &str, wanted: &str| config.get(key).is_some_and(|value| value == wanted);
    let only_applied = "the broker would drop what is not applied yet; cutover drops what is, after retention_hours";
    want("cleanup.policy", "delete", is("cleanup.policy", "delete"), "compaction takes records out of the log");
    want("retention.ms", "-1", is("retention.ms", "-1"), only_applied);
    want("retention.bytes", "-1", is("retention.bytes", "-1"), only_applied);
    if shape.replicas > 1 {
        let in_sync = config.get("min.insync.replicas").and_then(|value| value.parse::<usize>().ok());
        let why = "a record that one replica alone has is lost with it";
        want("min.insync.replicas", "2", in_sync.is_some_and(|in_sync| in_sync > 1), why);
        let why = "a replica that missed records could become the leader";
        want("unclean.leader.election.enable", "false", is("unclean.leader.election.enable", "false"), why);
    }
    problems
}

/// Topics to be made. None of them is ever dropped for its age.
#[derive(Debug)]
pub(super) struct NewTopics {
    names: Vec<String>,
    partitions: u32,
    cleanup: &'static str,
    retention_bytes: Option<u64>,
    record_bytes: u64,
    segment_bytes: u64,
}

impl NewTopics {
    /// Topics of the log.
    pub(super) fn of_log(settings: &Settings, topics: &[Topic]) -> Self {
        NewTopics {
            names: topics.iter().map(|topic| settings.topic(*topic)).collect(),
            partitions: settings.partitions,
            cleanup: "delete",
            retention_bytes: None,
            record_bytes: RECORD_BYTES.min(RECORD_BYTES_MAX),
            segment_bytes: SEGMENT_BYTES,
        }
    }

    /// The topic of the dead letters, which keeps the newest record of each.
    pub(super) fn of_dead_letters(settings: &Settings) -> Self {
        let of_log = Self::of_log(settings, &[]);
        NewTopics { names: vec![settings.dead_letters()], partitions: 1, cleanup: "compact", ..of_log }
    }

    /// The topic of the events, which is bounded.
    pub(super) fn of_events(settings: &Settings) -> Self {
        NewTopics {
            names: vec![settings.events()],
            partitions: 1,
            cleanup: "delete",
            retention_bytes: Some(EVENTS_BYTES),
            record_bytes: EVENT_BYTES_MAX,
            segment_bytes: EVENTS_SEGMENT_BYTES,
        }
    }
}

/// Makes topics; one that somebody else has made meanwhile is fine.
pub(super) async fn make(broker: &Broker, topics: &NewTopics, only_try: bool) -> Result<(), LogError> {
    let replicas = broker.count().await?.min(REPLICAS);
    let in_sync = if replicas > 1 { "2" } else { "1" };
    let (bytes, segment) = (topics.record_bytes.to_string(), topics.segment_bytes.to_string());
    let kept = topics.retention_bytes.map_or_else(|| "-1".into(), |bytes| bytes.to_string());
    let new = topics.names.iter().map(|name| {
        let replication = TopicReplication::Fixed(i32::try_from(replicas).unwrap_or(1));
        NewTopic::new(name, topics.partitions.cast_signed(), replication)
            .set("cleanup.policy", topics.cleanup)
            .set("retention.ms", "-1")
            .set("retention.bytes", &kept)
            .set("min.insync.replicas", in_sync)
            .set("unclean.leader.election.enable", "false")
            .set("max.message.bytes", &bytes)
            .set("segment.bytes", &segment)
    });
    let new = new.collect::<Vec<_>>();
    let made = broker.admin.create_topics(&new, &admin_options().validate_only(only_try)).await;
    for result in made.map_err(|error| broker.error(&error, (None, error.to_string())))? {
        match result {
            Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((name, code)) => {
                let problem = Problem {
                    what: format!("topic {name} cannot be created ({code})"),
                    fix: "allow this user to CREATE it, or create it as docs/kafka.md says".into(),
                };
                // A cluster that is starting has too few brokers for a while.
                return match code {
                    RDKafkaErrorCode::TopicAuthorizationFailed
                    | RDKafkaErrorCode::ClusterAuthorizationFailed
                    | RDKafkaErrorCode::PolicyViolation
                    | RDKafkaErrorCode::InvalidTopic
                    | RDKafkaErrorCode::InvalidConfig => Err(LogError::Topics(vec![problem])),
                    _ => Err(LogError::Unreachable { brokers: broker.brokers.clone(), reason: problem.what }),
                };
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        let sound = [
            ("cleanup.policy", "delete"),
            ("retention.ms", "-1"),
            ("retention.bytes", "-1"),
            ("min.insync.replicas", "2"),
            ("unclean.leader.election.enable", "false"),
        ];
        sound.iter().chain(pairs).map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn settings_that_lose_records_are_named_with_the_command_that_mends_them() {
        let replicated = TopicShape { partitions: 1, replicas: 3 };
        assert_eq!(judge("a.changes", replicated, &config(&[])), vec![]);
        for (key, value) in [
            ("cleanup.policy", "compact,delete"),
            ("retention.ms", "604800000"),
            ("retention.bytes", "1"),
            ("min.insync.replicas", "1"),
            ("unclean.leader.election.enable", "true"),
        ] {
            let problems = judge("a.changes", replicated, &config(&[(key, value)]));
            assert_eq!(problems.len(), 1, "{key}");
            assert!(problems[0].what.contains(&format!("{key}={value}")), "{}", problems[0]);
            assert!(problems[0].fix.contains(&format!("--add-config {key}=")), "{}", problems[0]);
        }
    }

    #[test]
    fn one_broker_alone_needs_no_replicas_in_sync() {
        let alone = TopicShape { partitions: 1, replicas: 1 };
        assert_eq!(judge("a.changes", alone, &config(&[("min.insync.replicas", "1")])), vec![]);
    }
}

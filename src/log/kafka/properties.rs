//! The `[log.kafka]` table: librdkafka's own settings, passed through, save those that would break a guarantee.

use std::{collections::BTreeMap, fmt};

use rdkafka::{ClientConfig, error::KafkaError};
use serde::{Deserialize, Deserializer};

/// What may not be set, and why.
const REFUSED: [(&str, &str); 27] = [
    ("bootstrap.servers", "the brokers are in log.url"),
    ("metadata.broker.list", "the brokers are in log.url"),
    ("acks", "every in-sync replica must have a record before the source is acknowledged"),
    ("request.required.acks", "every in-sync replica must have a record before the source is acknowledged"),
    ("enable.idempotence", "without it a retry may write records twice or out of order"),
    ("max.in.flight", "the order of records depends on it"),
    ("max.in.flight.requests.per.connection", "the order of records depends on it"),
    ("transactional.id", "records say who wrote them, which fences better and costs no round trip"),
    ("partitioner", "cutover chooses partitions itself, the same ones in every release"),
    ("message.timeout.ms", "how long an append may take is fixed, so that trouble shows in time"),
    ("delivery.timeout.ms", "how long an append may take is fixed, so that trouble shows in time"),
    ("message.max.bytes", "the topics' max.message.bytes decides; set that"),
    ("queue.buffering.max.messages", "memory is bounded by cutover"),
    ("queue.buffering.max.kbytes", "memory is bounded by cutover"),
    ("group.id", "offsets are kept in the target"),
    ("group.instance.id", "offsets are kept in the target"),
    ("group.protocol", "how processes share the partitions is fixed"),
    ("partition.assignment.strategy", "how processes share the partitions is fixed"),
    ("session.timeout.ms", "how soon another process takes over is fixed"),
    ("heartbeat.interval.ms", "how soon another process takes over is fixed"),
    ("max.poll.interval.ms", "how soon another process takes over is fixed"),
    ("enable.auto.commit", "offsets are kept in the target"),
    ("enable.auto.offset.store", "offsets are kept in the target"),
    ("auto.offset.reset", "an offset that the broker does not have must halt the pipeline, not move it"),
    ("isolation.level", "cutover writes without transactions"),
    ("enable.partition.eof", "cutover finds the end of the log itself"),
    ("allow.auto.create.topics", "cutover creates the topics with the settings that they need"),
];

/// The settings of a `[log.kafka]` table, which may hold secrets.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct KafkaProperties(BTreeMap<String, String>);

impl fmt::Debug for KafkaProperties {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// A value, or what an unquoted dotted key (`sasl.username = …`) makes of it in TOML.
#[derive(Deserialize)]
#[serde(untagged, expecting = "text, a whole number, true or false")]
enum Node {
    Text(String),
    Number(i64),
    Flag(bool),
    Section(BTreeMap<String, Node>),
}

impl Node {
    fn flatten(self, key: String, into: &mut BTreeMap<String, String>) {
        match self {
            Node::Text(text) => drop(into.insert(key, text)),
            Node::Number(number) => drop(into.insert(key, number.to_string())),
            Node::Flag(flag) => drop(into.insert(key, flag.to_string())),
            Node::Section(section) => {
                for (name, node) in section {
                    node.flatten(format!("{key}.{name}"), into);
                }
            }
        }
    }
}

impl<'de> Deserialize<'de> for KafkaProperties {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut properties = BTreeMap::new();
        for (name, node) in BTreeMap::<String, Node>::deserialize(deserializer)? {
            node.flatten(name, &mut properties);
        }
        Ok(KafkaProperties(properties))
    }
}

impl KafkaProperties {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn contains(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    pub(super) fn apply(&self, config: &mut ClientConfig) {
        for (name, value) in &self.0 {
            config.set(name, value);
        }
    }

    /// What is wrong with them, without their values. Connects to nothing.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for (name, value) in &self.0 {
            if let Some((_, why)) = REFUSED.iter().find(|(refused, _)| refused == name) {
                problems.push(format!("`{name}` cannot be set: {why}; remove it"));
                continue;
            }
            let mut config = ClientConfig::new();
            config.set(name, value);
            match config.create_native_config() {
                Ok(_) => {}
                Err(KafkaError::ClientConfig(_, _, key, _)) if config.get(&key).is_some() => problems.push(format!(
                    "librdkafka does not take `{key}` with this value; its CONFIGURATION.md lists names and values"
                )),
                Err(_) => {
                    problems.push(format!("librdkafka refuses `{name}`; its CONFIGURATION.md lists names and values"))
                }
            }
        }
        problems
    }
}

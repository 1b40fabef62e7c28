//! Kafka: the shared broker or one of one's own, topics of this test alone, and a plain consumer.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::OwnedMessage;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use super::server::{Server, clean_up};

const LIMIT: Duration = Duration::from_secs(30);

static NAMES: AtomicUsize = AtomicUsize::new(0);

/// A name for a pipeline, whose topics are deleted at the end.
pub struct Kafka {
    pub url: String,
    pub name: String,
}

impl Kafka {
    /// On the broker that all tests share.
    pub async fn shared() -> Self {
        Self::on(Server::Kafka.url(async |url| sweep(url).await).await)
    }

    /// On a broker of one's own.
    pub fn on(url: &str) -> Self {
        let name = format!("it-{}-{}", std::process::id(), NAMES.fetch_add(1, Ordering::Relaxed));
        Self { url: url.to_owned(), name }
    }

    /// The topics of a pipeline of this name.
    pub fn of(url: &str, name: &str) -> Self {
        Self { url: url.to_owned(), name: name.to_owned() }
    }

    pub fn topic(&self, suffix: &str) -> String {
        format!("{}.{suffix}", self.name)
    }

    fn client(&self) -> ClientConfig {
        client(&self.url)
    }

    pub async fn create_topic(&self, suffix: &str, partitions: i32, settings: &[(&str, &str)]) {
        let name = self.topic(suffix);
        let mut topic = NewTopic::new(&name, partitions, TopicReplication::Fixed(1));
        for (key, value) in settings {
            topic = topic.set(key, value);
        }
        let made = admin(&self.url).create_topics(&[topic], &AdminOptions::new()).await.unwrap();
        made.into_iter().for_each(|topic| drop(topic.unwrap()));
    }

    /// Deletes the log.
    pub async fn delete_topics(&self) {
        delete(&self.url, &[&self.topic("changes"), &self.topic("snapshot")]).await;
    }

    /// Drops the records of a partition before an offset.
    pub async fn delete_before(&self, suffix: &str, partition: i32, offset: i64) {
        let mut before = TopicPartitionList::new();
        before.add_partition_offset(&self.topic(suffix), partition, Offset::Offset(offset)).unwrap();
        admin(&self.url).delete_records(&before, &AdminOptions::new()).await.unwrap();
    }

    pub async fn delete_topic(&self, suffix: &str) {
        delete(&self.url, &[&self.topic(suffix)]).await;
    }

    /// The settings of a topic that are not the broker's.
    pub async fn settings(&self, suffix: &str) -> Vec<(String, String)> {
        let name = self.topic(suffix);
        let answer = admin(&self.url).describe_configs(&[ResourceSpecifier::Topic(&name)], &AdminOptions::new()).await;
        let resource = answer.unwrap().remove(0).unwrap();
        resource.entries.into_iter().filter_map(|entry| Some((entry.name, entry.value?))).collect()
    }

    /// Replaces all settings of a topic.
    pub async fn configure(&self, suffix: &str, settings: &[(&str, &str)]) {
        let name = self.topic(suffix);
        let mut alter = AlterConfig::new(ResourceSpecifier::Topic(&name));
        for (key, value) in settings {
            alter = alter.set(key, value);
        }
        admin(&self.url).alter_configs(&[alter], &AdminOptions::new()).await.unwrap().remove(0).unwrap();
    }

    pub fn has_topic(&self, suffix: &str) -> bool {
        let consumer: BaseConsumer = self.client().create().unwrap();
        let metadata = consumer.fetch_metadata(Some(&self.topic(suffix)), LIMIT).unwrap();
        metadata.topics().iter().any(|topic| !topic.partitions().is_empty())
    }

    /// The partition's first offset and the one after its last.
    pub fn bounds(&self, suffix: &str, partition: i32) -> (i64, i64) {
        let consumer: BaseConsumer = self.client().create().unwrap();
        consumer.fetch_watermarks(&self.topic(suffix), partition, LIMIT).unwrap()
    }

    /// All records of a partition, as any consumer gets them.
    pub fn consume(&self, suffix: &str, partition: i32) -> Vec<OwnedMessage> {
        let (start, end) = self.bounds(suffix, partition);
        let consumer: BaseConsumer = self.client().set("group.id", &self.name).create().unwrap();
        let mut assigned = TopicPartitionList::new();
        assigned.add_partition_offset(&self.topic(suffix), partition, Offset::Offset(start)).unwrap();
        consumer.assign(&assigned).unwrap();
        let mut messages = Vec::new();
        while i64::try_from(messages.len()).unwrap() < end - start {
            messages.push(consumer.poll(LIMIT).expect("a record").unwrap().detach());
        }
        messages
    }
}

impl Drop for Kafka {
    fn drop(&mut self) {
        let (url, topics) =
            (self.url.clone(), ["changes", "snapshot", "dlq", "events"].map(|suffix| self.topic(suffix)));
        clean_up(async move { delete(&url, &topics.each_ref().map(String::as_str)).await });
    }
}

fn client(url: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", url.trim_start_matches("kafka://"));
    config
}

fn admin(url: &str) -> AdminClient<DefaultClientContext> {
    client(url).create().unwrap()
}

async fn delete(url: &str, topics: &[&str]) {
    // Topics that are not there are as good as deleted.
    let _gone = admin(url).delete_topics(topics, &AdminOptions::new().request_timeout(Some(LIMIT))).await;
}

/// Deletes what killed test processes have left.
async fn sweep(url: &str) {
    let consumer: BaseConsumer = client(url).create().unwrap();
    let metadata = consumer.fetch_metadata(None, LIMIT).unwrap();
    // `it-<pid>-…` of these tests, `it_<pid>_…` of pipelines with the name of their database.
    let is_left = |name: &str| {
        let rest = name.strip_prefix("it-").or_else(|| name.strip_prefix("it_"));
        let pid = rest.and_then(|rest| rest.split(['-', '_']).next()).and_then(|pid| pid.parse::<u32>().ok());
        pid.is_some_and(|pid| !std::path::Path::new(&format!("/proc/{pid}")).exists())
    };
    let left: Vec<&str> = metadata.topics().iter().map(|topic| topic.name()).filter(|name| is_left(name)).collect();
    if !left.is_empty() {
        delete(url, &left).await;
    }
}

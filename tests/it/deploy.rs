//! What is deployed beside the worker names what there is: the worker's metrics, and servers like those of the tests.

use std::{collections::BTreeSet, fs, path::Path};

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every `cutover_…` in a text.
fn names(text: &str) -> BTreeSet<String> {
    let name = |(at, _): (usize, &str)| {
        let rest = &text[at..];
        let end = rest.find(|c: char| !c.is_ascii_lowercase() && c != '_').unwrap_or(rest.len());
        rest[..end].to_owned()
    };
    text.match_indices("cutover_").map(name).collect()
}

fn metrics() -> BTreeSet<String> {
    let source = read("src/observe/mod.rs");
    let found: BTreeSet<String> = source.lines().filter(|line| line.contains("pub const ")).flat_map(names).collect();
    assert!(found.len() > 10, "{found:?}");
    found
}

#[test]
fn every_metric_is_documented_and_nothing_else_is() {
    assert_eq!(names(&read("docs/metrics.md")), metrics());
}

#[test]
fn alerts_and_dashboard_ask_for_metrics_that_exist() {
    let metrics = metrics();
    for file in
        ["deploy/prometheus/alerts.yml", "deploy/prometheus/alerts_test.yml", "deploy/grafana/dashboards/cutover.json"]
    {
        let asked = names(&read(file));
        assert!(!asked.is_empty(), "{file}");
        for name in asked {
            // A histogram's own series.
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(&name);
            assert!(metrics.contains(base), "{file} asks for {name}, which is no metric");
        }
    }
}

#[test]
fn the_dashboard_reads_from_the_datasource_that_is_provisioned() {
    let dashboard: serde_json::Value = serde_json::from_str(&read("deploy/grafana/dashboards/cutover.json")).unwrap();
    let datasource = read("deploy/grafana/provisioning/datasources/prometheus.yml");
    let panels = dashboard["panels"].as_array().unwrap();
    let mut ids = BTreeSet::new();
    for panel in panels {
        let uid = panel["datasource"]["uid"].as_str().unwrap();
        assert!(datasource.contains(&format!("uid: {uid}\n")), "{}", panel["title"]);
        assert!(ids.insert(panel["id"].as_i64()), "{}: its id is taken", panel["title"]);
        assert!(panel["targets"].as_array().is_some_and(|targets| !targets.is_empty()), "{}", panel["title"]);
    }
}

#[test]
fn the_broker_of_the_containers_is_the_one_of_the_tests() {
    let (compose, install) = (read("docker-compose.yml"), read("scripts/services-install.sh"));
    let release = install.lines().find_map(|line| line.strip_prefix("kafka_release=")).unwrap();
    assert!(compose.contains(&format!("image: apache/kafka:{release}\n")), "{release}");

    let services = read("scripts/services");
    let (_, start) = services.split_once("\nstart_kafka() {").unwrap();
    let (_, wanted) = start.split_once("<<PROPERTIES\n").unwrap();
    let (wanted, rest) = wanted.split_once("\nPROPERTIES\n").unwrap();
    let properties = read("deploy/compose/kafka.properties");
    // Those with a variable have this instance's port.
    for line in wanted.lines().filter(|line| !line.contains('$')) {
        assert!(properties.lines().any(|property| property == line), "{line}");
    }
    let (_, java) = rest.split_once("java=(java ").unwrap();
    let (heap, _) = java.split_once(" -cp ").unwrap();
    assert!(compose.contains(&format!("KAFKA_HEAP_OPTS: {heap}\n")), "{heap}");
}

/// Nothing but loopback does without TLS unless it is told to.
#[test]
fn the_servers_of_the_containers_have_no_certificates_and_every_url_says_so() {
    let texts = [read("docker-compose.yml"), read("deploy/compose/cutover.toml")].concat();
    let urls: Vec<&str> = ["mysql://", "postgresql://", "kafka://"]
        .iter()
        .flat_map(|scheme| texts.match_indices(scheme))
        .map(|(at, _)| texts[at..].split(['"', '\n']).next().unwrap().trim_end_matches('}'))
        .collect();
    assert_eq!(urls.len(), 3, "{urls:?}");
    assert!(urls.iter().all(|url| url.ends_with("?tls=disable")), "{urls:?}");
}

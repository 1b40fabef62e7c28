//! Topics that connectors of Debezium write, in Kafka Connect: every row arrives, whoever is killed.

use std::time::Duration;

use serde_json::json;

use crate::support::{Mysql, Own, Postgres, Rows, Worker, Workspace, eventually};

const PATIENCE: Duration = Duration::from_secs(120);
/// What the topics need to say everything without schemas.
const PLAIN: [(&str, &str); 4] = [
    ("decimal.handling.mode", "string"),
    ("time.precision.mode", "isostring"),
    ("binary.handling.mode", "base64"),
    ("interval.handling.mode", "string"),
];
const SCHEMAS: [(&str, &str); 5] = [
    ("interval.handling.mode", "string"),
    ("key.converter", "org.apache.kafka.connect.json.JsonConverter"),
    ("key.converter.schemas.enable", "true"),
    ("value.converter", "org.apache.kafka.connect.json.JsonConverter"),
    ("value.converter.schemas.enable", "true"),
];
const TARGET: &str = "
CREATE TABLE items (id bigint PRIMARY KEY, n int NOT NULL, name text, price numeric(12,2), made date, at timestamp, seen timestamptz,
  body bytea, tags jsonb, notes text);
CREATE TABLE pairs (a int, b text, v int, PRIMARY KEY (a, b));";

/// Has Kafka Connect run a connector.
async fn connect(connect: &str, name: &str, settings: &[(&str, &str)], own: serde_json::Value) {
    let mut config = own;
    config["tasks.max"] = json!("1");
    config["topic.prefix"] = json!(name);
    for (key, value) in settings {
        config[*key] = json!(value);
    }
    let url = format!("{connect}/connectors/{name}");
    let put =
        ["-s", "-w", "%{http_code}", "-X", "PUT", "-H", "Content-Type: application/json", "-d", &config.to_string()]
            .map(str::to_owned);
    eventually("the connector is taken", PATIENCE, async || {
        let put = tokio::process::Command::new("curl").args(&put).arg(format!("{url}/config")).output().await.unwrap();
        let answer = String::from_utf8_lossy(&put.stdout).into_owned();
        // While it spreads its work it takes none: 409, ask again.
        assert!(["200", "201", "409"].iter().any(|code| answer.ends_with(code)), "{answer}");
        !answer.ends_with("409")
    })
    .await;
    eventually("the connector runs", PATIENCE, async || {
        let asked = tokio::process::Command::new("curl").args(["-s", &format!("{url}/status")]).output().await.unwrap();
        let status: serde_json::Value = serde_json::from_slice(&asked.stdout).unwrap_or_default();
        assert_ne!(status["tasks"][0]["state"], "FAILED", "{status}");
        status["tasks"][0]["state"] == "RUNNING"
    })
    .await;
    // Killed before that it would take a second snapshot, and what was deleted in between would be in no topic.
    eventually("the connector has noted that its snapshot is complete", PATIENCE, async || {
        let asked =
            tokio::process::Command::new("curl").args(["-s", &format!("{url}/offsets")]).output().await.unwrap();
        let noted: serde_json::Value = serde_json::from_slice(&asked.stdout).unwrap_or_default();
        let offset = &noted["offsets"][0]["offset"];
        offset.is_object() && offset["snapshot_completed"] != false
    })
    .await;
}

/// The pieces of an administrator's URL that a connector wants.
fn parts(url: &str) -> (String, String) {
    let port = url.rsplit_once(':').unwrap().1.split('/').next().unwrap();
    (port.to_owned(), url.rsplit_once('/').unwrap().1.to_owned())
}

fn of_mysql(source: &Mysql, kafka: &str, name: &str) -> serde_json::Value {
    let (port, database) = parts(&source.url());
    json!({
        "connector.class": "io.debezium.connector.mysql.MySqlConnector", "database.hostname": "127.0.0.1", "database.port": port,
        "database.user": "cutover_admin", "database.password": "admin", "database.ssl.mode": "disabled",
        "database.server.id": (7000 + u32::from(name.as_bytes()[0])).to_string(), "database.include.list": database,
        "schema.history.internal.kafka.bootstrap.servers": kafka.strip_prefix("kafka://").unwrap(),
        "schema.history.internal.kafka.topic": format!("{name}.history"),
    })
}

fn of_postgres(source: &Postgres, name: &str) -> serde_json::Value {
    let (port, database) = parts(&source.url());
    json!({
        "connector.class": "io.debezium.connector.postgresql.PostgresConnector", "plugin.name": "pgoutput", "slot.name": name,
        "publication.name": name, "database.hostname": "127.0.0.1", "database.port": port, "database.user": "cutover_admin",
        "database.password": "admin", "database.dbname": database, "schema.include.list": "public",
    })
}

fn sink(name: &str, kafka: &str, topics: &str, target: &Postgres) -> Workspace {
    let work = Workspace::new(name, "", &target.url(), &[]);
    work.configure(&format!(
        "name = {name:?}\n[target]\nurl = {:?}\n[log]\nurl = {kafka:?}\n[log.debezium]\ntopics = {topics:?}\n",
        target.url()
    ));
    work
}

async fn all(target: &Postgres) -> Rows {
    let mut rows = target
        .query(
            "SELECT id, n, name, price, made, extract(epoch FROM at), extract(epoch FROM seen), md5(body), tags::text, md5(notes) \
             FROM items ORDER BY id",
        )
        .await;
    rows.extend(target.query("SELECT a, b, v FROM pairs ORDER BY a, b").await);
    rows
}

/// Waits until the target has what the source has.
async fn equal(expected: &Rows, target: &Postgres, worker: &Worker) {
    let mut found = Rows::new();
    for _ in 0..600 {
        found = all(target).await;
        if found == *expected {
            return;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let differs = expected.iter().zip(&found).find(|(expected, found)| expected != found);
    panic!("{} rows, not {}; first {differs:?}; {}", found.len(), expected.len(), worker.stderr());
}

/// Changes of every kind, round after round, as both kinds of source understand them.
fn load(round: u32) -> Vec<String> {
    let base = 1000 + round * 100;
    let mut all: Vec<String> = (base..base + 60)
        .map(|id| {
            format!(
                "INSERT INTO items (id, n, name, price, made, at, seen, tags, notes) VALUES ({id}, {round}, 'né\"{id}', {id}.25, \
                 '2024-05-30', '2024-05-30 10:00:00.123456', '2024-05-30 10:00:00.5', '{{\"a\": [{id}, null]}}', repeat('x{id}', 40))"
            )
        })
        .collect();
    all.extend(
        (0..40).map(|step| format!("UPDATE items SET n = n + 1, price = price + 0.01 WHERE id = {}", base + step % 7)),
    );
    all.push(format!("DELETE FROM items WHERE id >= {} AND id < {}", base + 20, base + 30));
    all.push(format!("UPDATE items SET id = id + 1000000 WHERE id >= {} AND id < {}", base + 30, base + 35));
    all.push(format!("INSERT INTO items (id, n) VALUES ({}, -1)", base + 31));
    all.push(format!("INSERT INTO pairs VALUES ({round}, 'x', 1), ({round}, 'y', 2), ({round}, 'z', 3)"));
    all.push(format!("UPDATE pairs SET b = 'w' WHERE a = {round} AND b = 'x'"));
    all.push(format!("DELETE FROM pairs WHERE a = {round} AND b = 'y'"));
    all.push(format!("INSERT INTO pairs VALUES ({round}, 'y', 9)"));
    all.push("UPDATE pairs SET v = v + 1".to_owned());
    all
}

const ROUNDS: u32 = 8;

#[tokio::test(flavor = "multi_thread")]
async fn topics_of_a_mysql_connector_arrive_with_and_without_schemas() {
    let (kafka, connect_server) = (Own::Kafka.take().await, Own::Connect.take().await);
    let (source, plain, schemas) = (Mysql::v80().await, Postgres::v15().await, Postgres::v15().await);
    source
        .exec(
            "CREATE TABLE items (id bigint PRIMARY KEY, n int NOT NULL, name varchar(100), price decimal(12,2), made date, at datetime(6), \
             seen timestamp(3) NULL, body varbinary(100), tags json, notes text); \
             CREATE TABLE pairs (a int, b varchar(20), v int, PRIMARY KEY (a, b)); SET time_zone = '+00:00'; \
             INSERT INTO items (id, n, body) VALUES (1, 1, x'00ff10'), (2, 2, ''); INSERT INTO pairs VALUES (1000, 'a', 1)",
        )
        .await;
    for (name, settings, target) in [("plain", &PLAIN[..3], &plain), ("schemas", &SCHEMAS[1..], &schemas)] {
        target.exec(TARGET).await;
        connect(connect_server.url, name, settings, of_mysql(&source, kafka.url, name)).await;
    }
    let topics = |name: &str| format!("{name}.{}", source.database());
    let works =
        [sink("plain", kafka.url, &topics("plain"), &plain), sink("schemas", kafka.url, &topics("schemas"), &schemas)];
    for work in &works {
        eventually("the topics hold changes, and nothing is in the way", PATIENCE, async || {
            work.run(&["check"]).await.status.success()
        })
        .await;
    }
    let checked = works[0].run(&["check"]).await;
    let text = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(text.contains("in no topic before MySQL 9.6"), "foreign keys act unseen: {text}");
    let mut workers = works.each_ref().map(|work| work.start(&["--role", "apply"]));
    for round in 0..ROUNDS {
        for statement in load(round) {
            source.exec(&statement).await;
        }
        for (worker, work) in workers.iter_mut().zip(&works) {
            worker.kill9().await;
            *worker = work.start(&["--role", "apply"]);
        }
        if round == ROUNDS / 2 {
            // It sends again what it has not noted as sent.
            connect_server.crash();
            connect_server.start();
        }
    }
    let mut expected = source
        .query(
            "SELECT id, n, name, price, made, timestampdiff(MICROSECOND, '1970-01-01', at) / 1e6, unix_timestamp(seen), md5(body), \
             tags, md5(notes) FROM items ORDER BY id",
        )
        .await;
    for row in &mut expected {
        row[5] = row[5].as_deref().map(|at| format!("{:.6}", at.parse::<f64>().unwrap()));
        row[6] = row[6].as_deref().map(|seen| format!("{:.6}", seen.parse::<f64>().unwrap()));
    }
    expected.extend(source.query("SELECT a, b, v FROM pairs ORDER BY a, b").await);
    assert!(expected.len() > 50 * ROUNDS as usize);
    for (target, worker) in [(&plain, &workers[0]), (&schemas, &workers[1])] {
        equal(&expected, target, worker).await;
    }
    let synced = works[0].run(&["status", "--json"]).await;
    let status: serde_json::Value = serde_json::from_slice(&synced.stdout).unwrap();
    assert_eq!((&status["dead_letters"], &status["halted"]), (&json!(0), &serde_json::Value::Null));
    // A connector's pipeline is led as every other: what happened is told.
    let told = works[0].run(&["status", "--events", "--json"]).await;
    let told = String::from_utf8(told.stdout).unwrap();
    assert!(told.contains("phase_changed") && told.contains("\"to\":\"following\""), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_of_a_postgresql_connector_arrive_with_and_without_schemas() {
    let (kafka, connect_server, server) = (Own::Kafka.take().await, Own::Connect.take().await, Own::Pg15.take().await);
    let (source, plain, schemas) = (Postgres::at(server.url).await, Postgres::v15().await, Postgres::v15().await);
    source.exec(TARGET).await;
    source
        .exec("SET timezone = 'UTC'; INSERT INTO items (id, n, body, at) VALUES (1, 1, '\\x00ff10', 'infinity'), (2, 2, '', NULL); INSERT INTO pairs VALUES (1000, 'a', 1)")
        .await;
    for (name, settings, target) in [("plainpg", &PLAIN[..], &plain), ("schemaspg", &SCHEMAS[..], &schemas)] {
        target.exec(TARGET).await;
        connect(connect_server.url, name, settings, of_postgres(&source, name)).await;
    }
    let works = [("plainpg", &plain), ("schemaspg", &schemas)]
        .map(|(name, target)| sink(name, kafka.url, &format!("{name}.public"), target));
    let mut workers = works.each_ref().map(|work| work.start(&["--role", "apply"]));
    for round in 0..ROUNDS {
        for statement in load(round) {
            source.exec(&statement).await;
        }
        for (worker, work) in workers.iter_mut().zip(&works) {
            worker.kill9().await;
            *worker = work.start(&["--role", "apply"]);
        }
        if round == ROUNDS / 2 {
            connect_server.crash();
            connect_server.start();
        }
    }
    let expected = all(&source).await;
    assert!(expected.len() > 50 * ROUNDS as usize);
    for (target, worker) in [(&plain, &workers[0]), (&schemas, &workers[1])] {
        equal(&expected, target, worker).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_connector_loses_is_refused_with_the_setting_that_keeps_it() {
    let (kafka, connect_server) = (Own::Kafka.take().await, Own::Connect.take().await);
    let (source, target) = (Mysql::v80().await, Postgres::v15().await);
    source
        .exec("CREATE TABLE t (id int PRIMARY KEY, at datetime); INSERT INTO t VALUES (1, '2024-05-30 10:00:00')")
        .await;
    target.exec("CREATE TABLE t (id int PRIMARY KEY, at timestamp)").await;
    connect(connect_server.url, "lossy", &[], of_mysql(&source, kafka.url, "lossy")).await;
    let work = sink("lossy", kafka.url, &format!("lossy.{}", source.database()), &target);
    let other = work.run(&["run"]).await;
    assert!(other.status.code() == Some(2) && String::from_utf8_lossy(&other.stderr).contains("--role apply"));
    eventually("check says so", PATIENCE, async || {
        let checked = work.run(&["check"]).await;
        let text = String::from_utf8_lossy(&checked.stdout).into_owned();
        checked.status.code() == Some(1) && text.contains("time.precision.mode=isostring")
    })
    .await;
    let _worker = work.start(&["--role", "apply"]);
    eventually("the worker halts", PATIENCE, async || {
        let asked = work.run(&["status", "--json"]).await;
        let status: serde_json::Value = serde_json::from_slice(&asked.stdout).unwrap_or_default();
        status["halted"]["reason"].as_str().is_some_and(|reason| reason.contains("time.precision.mode=isostring"))
    })
    .await;
}

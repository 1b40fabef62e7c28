//! `cutover analyze` on every kind of source: what is there, how it is used, and that no target is needed.

use serde_json::{Value, json};

use crate::{
    follow::PATIENCE,
    support::{Dynamo, Mysql, Postgres, Workspace, eventually},
};

/// Nobody listens there.
const NO_TARGET: &str = "postgresql://nobody:none@127.0.0.1:1/nothing";

const ROWS: u32 = 500;

async fn analyzed(work: &Workspace) -> Value {
    let told = work.run(&["analyze", "--json"]).await;
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
    serde_json::from_slice(&told.stdout).unwrap()
}

async fn text(work: &Workspace) -> String {
    let told = work.run(&["analyze"]).await;
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
    String::from_utf8(told.stdout).unwrap()
}

#[track_caller]
fn table<'a>(analysis: &'a Value, name: &str) -> &'a Value {
    let tables = analysis["tables"].as_array().unwrap();
    tables.iter().find(|table| table["table"] == name).unwrap_or_else(|| panic!("no {name} in {analysis}"))
}

#[track_caller]
fn says(analysis: &Value, list: &str, words: &str) {
    let found = analysis[list].as_array().unwrap().iter().any(|entry| entry.to_string().contains(words));
    assert!(found, "nothing in {list} says {words:?}: {analysis}");
}

fn numbers() -> String {
    (1..=ROWS).map(|id| format!("({id}, 'name {id}')")).collect::<Vec<_>>().join(", ")
}

#[tokio::test(flavor = "multi_thread")]
async fn mysql_and_mariadb_tell_sizes_order_use_and_what_stays_behind() {
    let sources =
        [("MySQL 5.7", Mysql::v57().await), ("MySQL 8.0", Mysql::v80().await), ("MariaDB", Mysql::mariadb().await)];
    for (server, source) in sources {
        source
            .exec(
                "CREATE TABLE users (id int PRIMARY KEY, name varchar(40), since datetime, kind enum('a', 'b'));
                 CREATE TABLE carts (id int PRIMARY KEY, owner int NOT NULL,
                     CONSTRAINT owned FOREIGN KEY (owner) REFERENCES users (id) ON DELETE CASCADE);
                 CREATE TRIGGER watch BEFORE UPDATE ON users FOR EACH ROW SET NEW.name = UPPER(NEW.name);
                 CREATE VIEW busy AS SELECT owner FROM carts;
                 CREATE TABLE keyless (n int)",
            )
            .await;
        source.exec(&format!("INSERT INTO users (id, name) VALUES {}", numbers())).await;
        source
            .exec("INSERT INTO carts SELECT id, id FROM users; UPDATE users SET kind = 'a'; ANALYZE TABLE users")
            .await;
        let work = Workspace::new(source.database(), &source.url(), NO_TARGET, &["users", "carts"]);
        let analysis = analyzed(&work).await;
        assert!(analysis["source"].as_str().unwrap().starts_with(server), "{analysis}");
        assert_eq!(analysis["order"], json!(["users", "carts"]));
        let users = table(&analysis, "users");
        assert_eq!((&users["key"], &users["sample"]["rows"]), (&json!(["id"]), &json!(ROWS)));
        assert!(users["bytes"].as_u64() > Some(0) && users["rows"].as_u64() > Some(u64::from(ROWS) / 2), "{users}");
        assert_eq!(table(&analysis, "carts")["parents"], json!(["users"]));
        assert!(users["care"].to_string().contains("zero dates, which PostgreSQL has not: since"), "{users}");
        assert!(analysis["copy_seconds"].as_f64() > Some(0.0), "{analysis}");
        says(&analysis, "beside", "trigger watch on users");
        says(&analysis, "beside", "view busy");
        says(&analysis, "beside", "foreign key owned of carts: ON DELETE CASCADE");
        if server == "MariaDB" {
            // Its performance_schema is off unless somebody turns it on.
            assert!(users["rates"].is_null() && analysis["counted_seconds"].is_null(), "{analysis}");
            says(&analysis, "unknown", "performance_schema = ON");
        } else {
            assert!(users["rates"]["inserted"].as_f64() > Some(0.0), "{users}");
            assert!(users["rates"]["updated"].as_f64() > Some(0.0), "{users}");
        }
        let told = text(&work).await;
        assert!(told.contains("parents first: users, carts") && told.contains("view busy"), "{told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn postgresql_tells_sizes_order_rings_use_and_what_stays_behind() {
    for source in [Postgres::v15().await, Postgres::v18().await] {
        source
            .exec(
                "CREATE TYPE mood AS ENUM ('sad');
                 CREATE TABLE staff (id integer PRIMARY KEY, store integer, feels mood);
                 CREATE TABLE store (id integer PRIMARY KEY, manager integer REFERENCES staff (id));
                 ALTER TABLE staff ADD FOREIGN KEY (store) REFERENCES store (id) ON DELETE SET NULL;
                 CREATE TABLE rental (id integer, day date, store integer REFERENCES store (id), note text, PRIMARY KEY (id, day))
                     PARTITION BY RANGE (day);
                 CREATE TABLE rental_all PARTITION OF rental DEFAULT;
                 CREATE VIEW busy AS SELECT * FROM store;
                 CREATE FUNCTION watch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
                 CREATE TRIGGER watched BEFORE UPDATE ON staff FOR EACH ROW EXECUTE FUNCTION watch()",
            )
            .await;
        source
            .exec(&format!(
                "INSERT INTO rental SELECT i, date '2030-01-01', NULL, 'note' FROM generate_series(1, {ROWS}) i; \
                 UPDATE rental SET note = 'x' WHERE id <= 100"
            ))
            .await;
        source.exec("ANALYZE").await;
        let work = Workspace::new(source.database(), &source.url(), NO_TARGET, &["staff", "store", "rental"]);
        // The server's counters come a moment later than the rows.
        eventually("the server has counted", PATIENCE, async || {
            table(&analyzed(&work).await, "rental")["rates"]["updated"].as_f64() > Some(0.0)
        })
        .await;
        let analysis = analyzed(&work).await;
        assert!(analysis["source"].as_str().unwrap().starts_with("PostgreSQL 1"), "{analysis}");
        assert_eq!(analysis["rings"], json!([["staff", "store"]]));
        assert_eq!(analysis["order"], json!(["staff", "store", "rental"]));
        let rental = table(&analysis, "rental");
        assert_eq!((&rental["key"], &rental["rows"]), (&json!(["id", "day"]), &json!(ROWS)));
        assert_eq!((&rental["sample"]["rows"], &rental["parents"]), (&json!(ROWS), &json!(["store"])));
        assert!(rental["care"].to_string().contains("partitioned"), "{rental}");
        assert!(table(&analysis, "staff")["care"].to_string().contains("text in a transform: feels"), "{analysis}");
        says(&analysis, "beside", "trigger watched on staff");
        says(&analysis, "beside", "view busy");
        says(&analysis, "beside", "ON DELETE of store");
        let told = text(&work).await;
        assert!(told.contains("refer to each other") && told.contains("rental"), "{told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dynamodb_tells_what_describe_table_does() {
    let source = Dynamo::shared().await;
    let books = source.table("Books", &[("isbn", "S")]).await;
    source.put(&books, json!({"isbn": {"S": "1"}, "title": {"S": "One"}})).await;
    let mut work = Workspace::new("analyzed", &source.url, NO_TARGET, &[&books]);
    work.set_env("AWS_ACCESS_KEY_ID", "cutover");
    work.set_env("AWS_SECRET_ACCESS_KEY", "cutover");
    let analysis = analyzed(&work).await;
    let table = table(&analysis, &books);
    assert_eq!((&table["key"], &table["rows"]), (&json!(["isbn"]), &json!(1)));
    assert_eq!((&table["sample"]["rows"], table["bytes"].as_u64() > Some(0)), (&json!(1), true));
    says(&analysis, "unknown", "CloudWatch");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_is_away_is_told_with_what_to_do() {
    let work = Workspace::new("away", "mysql://nobody:none@127.0.0.1:1/shop", NO_TARGET, &["t"]);
    let told = work.run(&["analyze"]).await;
    let said = String::from_utf8_lossy(&told.stderr).into_owned();
    assert!(told.status.code() == Some(3) && said.contains("the source cannot be analyzed"), "{said}");
}

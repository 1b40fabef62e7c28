//! A column that becomes of another kind (rule 12): rows from before are copied again, and those of the stream arrive
//! as what they are.

use crate::{
    rules_rig::Rig,
    support::{Mysql, Postgres},
};

const ROWS: &str = "SELECT id, a FROM t ORDER BY id";
const AT_SOURCE: &str =
    "CREATE TABLE t (id int PRIMARY KEY, a varchar(20)); INSERT INTO t VALUES (1, '007'), (2, ' 12')";

/// Text becomes a number, while a worker follows and while none runs.
async fn text_becomes_a_number(source: Mysql, at_target: &str, transform: Option<&str>) {
    let rig = Rig::new(source, Postgres::v15().await, &["t"], AT_SOURCE, at_target).await;
    if let Some(transform) = transform {
        rig.work.transform("t", transform);
    }
    let mut worker = rig.following().await;
    rig.source.exec("ALTER TABLE t MODIFY a int; INSERT INTO t VALUES (3, 42)").await;
    rig.target_has(ROWS, "1 7, 2 12, 3 42").await;
    rig.source.exec("UPDATE t SET a = 8 WHERE id = 1").await;
    rig.target_has(ROWS, "1 8, 2 12, 3 42").await;
    worker.kill9().await;
    rig.source.exec("ALTER TABLE t MODIFY a varchar(20)").await;
    rig.source.exec("UPDATE t SET a = '0009' WHERE id = 2; ALTER TABLE t MODIFY a int").await;
    rig.sync().await;
    rig.target_has(ROWS, "1 8, 2 9, 3 42").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn text_that_becomes_a_number_arrives_as_one_on_mysql_57() {
    text_becomes_a_number(Mysql::v57().await, "CREATE TABLE t (id int PRIMARY KEY, a text)", None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn text_that_becomes_a_number_arrives_as_one_on_mysql_97() {
    text_becomes_a_number(Mysql::v97().await, "CREATE TABLE t (id int PRIMARY KEY, a varchar(20))", None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn text_that_becomes_a_number_arrives_as_one_on_mariadb() {
    text_becomes_a_number(Mysql::mariadb().await, "CREATE TABLE t (id int PRIMARY KEY, a text)", None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn text_that_becomes_a_number_goes_through_its_transform() {
    let at_target = "CREATE TABLE t (id int PRIMARY KEY, a int)";
    text_becomes_a_number(Mysql::v80().await, at_target, Some("SELECT id, a::int AS a FROM t")).await;
    // What reads it as text alone says so.
    let rig = Rig::new(Mysql::v80().await, Postgres::v15().await, &["t"], AT_SOURCE, at_target).await;
    rig.work.transform("t", "SELECT id, trim(a)::int AS a FROM t");
    let _worker = rig.following().await;
    rig.source.exec("ALTER TABLE t MODIFY a int; INSERT INTO t VALUES (3, 42)").await;
    let status = rig.eventually("halted", async |status| !status["halted"].is_null()).await;
    assert!(
        status["halted"].to_string().contains("trim") || status["halted"].to_string().contains("btrim"),
        "{status}"
    );
}

//! What is wrong at the source.

use mysql_async::prelude::Queryable;

use super::{Pipeline, SOURCE_PASSWORD};
use crate::support::{Mysql, Own, Postgres};

#[tokio::test]
async fn a_wrong_password_ends_the_worker_and_names_the_server_and_the_key() {
    let pipeline = Pipeline::small().await;
    pipeline.configure(SOURCE_PASSWORD, "Source-Pa55word-2");
    pipeline
        .refused(&["refuses the login", "Access denied", "correct user, password or database in [source] url"])
        .await;
    pipeline.configure("Source-Pa55word-2", SOURCE_PASSWORD);
    pipeline.recovered().await;
}

#[tokio::test]
async fn each_missing_grant_is_named_with_the_statement_that_gives_it() {
    for source in [Mysql::v57().await, Mysql::v97().await, Mysql::mariadb().await] {
        let table = "CREATE TABLE t (id int PRIMARY KEY, v varchar(40)); INSERT INTO t VALUES (1, 'one')";
        let target = Postgres::v15().await;
        let pipeline = Pipeline::between(source, target, table, "CREATE TABLE t (id int PRIMARY KEY, v text)").await;
        let user = pipeline.source.database().to_owned();
        pipeline
            .source
            .exec(&format!("REVOKE ALL PRIVILEGES, GRANT OPTION FROM {user}; GRANT INSERT ON {user}.* TO {user}"))
            .await;
        let statement = format!("ON *.* TO '{user}'@'%'").replace('\'', quote_of(&pipeline.source).await);
        let slave = format!("GRANT REPLICATION SLAVE {statement}");
        let client = format!("GRANT REPLICATION CLIENT {statement}");
        pipeline.refused(&["no REPLICATION SLAVE", &slave, "no REPLICATION CLIENT", &client]).await;

        pipeline.source.user(SOURCE_PASSWORD, &["REPLICATION SLAVE ON *.*"]).await;
        pipeline.refused(&["no REPLICATION CLIENT", &client]).await;
        pipeline.source.user(SOURCE_PASSWORD, &["REPLICATION CLIENT ON *.*"]).await;
        pipeline.refused(&["no SELECT on t", "GRANT SELECT ON `it_"]).await;
        pipeline.source.user(SOURCE_PASSWORD, &[&format!("SELECT ON {user}.*")]).await;
        pipeline.recovered().await;
    }
}

/// How the server quotes users in SHOW GRANTS.
async fn quote_of(source: &Mysql) -> &'static str {
    let version = source.value("SELECT version()").await.unwrap();
    if version.starts_with("5.7") { "'" } else { "`" }
}

#[tokio::test]
async fn tables_that_are_missing_or_have_no_key_are_all_named_at_once() {
    let pipeline = Pipeline::small().await;
    pipeline.source.exec("CREATE TABLE keyless (a int); INSERT INTO keyless VALUES (1)").await;
    pipeline.configure("[target]", "tables = [\"t\", \"keyless\", \"gone\"]\n[target]");
    let words = ["no table `gone`", "correct [source] tables", "keyless", "no primary key", "leave"];
    pipeline.refused(&words).await;
    pipeline.configure(", \"gone\"", "");
    pipeline.source.exec("ALTER TABLE keyless ADD PRIMARY KEY (a)").await;
    pipeline.at_target("CREATE TABLE keyless (a int PRIMARY KEY)").await;
    pipeline.recovered().await;
    assert_eq!(pipeline.target.value("SELECT a FROM keyless").await.as_deref(), Some("1"));
}

#[tokio::test]
async fn a_binlog_that_does_not_hold_every_column_of_every_row_is_refused_with_the_setting() {
    let own = Own::Mysql57.take().await;
    {
        let table = "CREATE TABLE t (id int PRIMARY KEY, v varchar(40)); INSERT INTO t VALUES (1, 'one')";
        let (source, target) = (Mysql::at(own.url).await, Postgres::v15().await);
        let pipeline = Pipeline::between(source, target, table, "CREATE TABLE t (id int PRIMARY KEY, v text)").await;
        pipeline.source.exec("SET GLOBAL binlog_format = 'STATEMENT', GLOBAL binlog_row_image = 'MINIMAL'").await;
        let words = [
            "binlog_format is STATEMENT",
            "SET GLOBAL binlog_format = 'ROW'",
            "binlog_row_image is MINIMAL",
            "SET GLOBAL binlog_row_image = 'FULL'",
        ];
        pipeline.refused(&words).await;
        pipeline.source.exec("SET GLOBAL binlog_format = 'ROW'").await;
        pipeline.refused(&["binlog_row_image is MINIMAL", "SET GLOBAL binlog_row_image = 'FULL'"]).await;
        pipeline.source.exec("SET GLOBAL binlog_row_image = 'FULL'").await;
        pipeline.recovered().await;

        own.restart_with("--skip-log-bin");
        pipeline.refused(&["log_bin is off", "set log_bin and a server_id", "restart it"]).await;
        own.restart_with("");
        let mut writer = pipeline.source.connect().await;
        writer.query_drop("INSERT INTO t VALUES (2, 'two')").await.unwrap();
        pipeline.synced().await.expect(0, &[]);
        assert_eq!(
            pipeline.target.value("SELECT string_agg(v, ' ' ORDER BY id) FROM t").await.as_deref(),
            Some("one two")
        );
    }
}

#[tokio::test]
async fn a_source_that_does_not_answer_is_waited_for() {
    let pipeline = Pipeline::small().await;
    pipeline.waited_for("source", &pipeline.source.url()).await;
}

//! What `check` and the others say of a target that is MySQL or MariaDB.

use std::process::Output;

use crate::{
    mysql_target::pipeline,
    support::{Mysql, Postgres, Workspace},
    verify::assert_clean,
};

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

async fn check(work: &Workspace) -> (Option<i32>, String) {
    let output = work.run(&["check"]).await;
    (output.status.code(), said(&output))
}

/// A source and a target with tables `t` that fit.
async fn pair(target: Mysql) -> (Postgres, Mysql) {
    let source = Postgres::v18().await;
    source.exec("CREATE TABLE t (id int PRIMARY KEY, name text, tags text[])").await;
    target.exec("CREATE TABLE t (id int PRIMARY KEY, name varchar(20), tags varchar(200))").await;
    (source, target)
}

#[tokio::test(flavor = "multi_thread")]
async fn check_passes_what_fits_and_names_triggers() {
    for target in [Mysql::v57().await, Mysql::mariadb().await] {
        let (source, target) = pair(target).await;
        target.exec("CREATE TABLE log (n int); CREATE TRIGGER noted BEFORE INSERT ON t FOR EACH ROW INSERT INTO log VALUES (1)").await;
        let work = pipeline(&source.url(), &target, &["t"]);
        let (code, text) = check(&work).await;
        assert_eq!(code, Some(0), "{text}");
        assert!(text.contains("`noted`") && text.contains("@cutover IS NULL"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn check_blocks_what_cannot_be_written() {
    for target in [Mysql::v80().await, Mysql::mariadb().await] {
        let (source, target) = pair(target).await;
        let work = pipeline(&source.url(), &target, &["t"]);
        for (table, select, words) in [
            ("(id int PRIMARY KEY, name varchar(20), tags text) ENGINE = MyISAM", None, "ENGINE = InnoDB"),
            ("(id int PRIMARY KEY, name varchar(20))", None, "no column `tags`"),
            ("(id int PRIMARY KEY, name varchar(20), n int NOT NULL)", Some("SELECT id, name FROM t"), "`n`"),
            ("(id int PRIMARY KEY, name date)", Some("SELECT id, name FROM t"), "cast the result"),
            ("(name varchar(90) PRIMARY KEY, id int)", Some("SELECT lower(name) AS name, id FROM t"), "one key"),
            (
                "(id int, tag varchar(9), PRIMARY KEY (id, tag))",
                Some("-- cutover: parent_key = id\nSELECT id, unnest(tags) AS tag FROM t"),
                "from one source row",
            ),
        ] {
            target.exec(&format!("DROP TABLE t; CREATE TABLE t {table}")).await;
            let file = work.path().join("transforms").join("t.sql");
            match select {
                Some(select) => work.transform("t", select),
                None if file.exists() => std::fs::remove_file(&file).unwrap(),
                None => {}
            }
            let (code, text) = check(&work).await;
            assert!(code == Some(1) && text.contains(words), "{table}: {text}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn check_blocks_a_key_of_first_characters() {
    let (source, target) = (Postgres::v18().await, Mysql::v57().await);
    source.exec("CREATE TABLE t (name text PRIMARY KEY, n int)").await;
    target.exec("CREATE TABLE t (name text, n int, PRIMARY KEY (name(20)))").await;
    let (code, text) = check(&pipeline(&source.url(), &target, &["t"])).await;
    assert!(code == Some(1) && text.contains("whole columns"), "{text}");
    source.exec("CREATE TABLE f (x real PRIMARY KEY)").await;
    target.exec("CREATE TABLE f (x float PRIMARY KEY)").await;
    let (code, text) = check(&pipeline(&source.url(), &target, &["f"])).await;
    assert!(code == Some(1) && text.contains("exact values"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_with_the_documented_grants_is_enough_and_without_them_is_told() {
    for target in [Mysql::v57().await, Mysql::v97().await, Mysql::mariadb().await] {
        let (source, target) = pair(target).await;
        let database = target.database().to_owned();
        let user = target.user("pw", &[&format!("SELECT ON `{database}`.*")]).await;
        let work = Workspace::new(&database, &source.url(), &target.url_as(&user, "pw"), &["t"]);
        let (code, text) = check(&work).await;
        assert_eq!(code, Some(1), "{text}");
        assert!(text.contains(&format!("GRANT INSERT, UPDATE, DELETE ON `{database}`.*")), "{text}");
        assert!(
            text.contains(
                "GRANT CREATE, ALTER, SELECT, INSERT, UPDATE, DELETE, DROP, CREATE TEMPORARY TABLES ON `cutover`.*"
            ),
            "{text}"
        );
        target
            .exec(&format!(
                "GRANT SELECT, INSERT, UPDATE, DELETE ON `{database}`.* TO '{user}'@'%';
                 GRANT CREATE, ALTER, SELECT, INSERT, UPDATE, DELETE, DROP, CREATE TEMPORARY TABLES ON cutover.* TO '{user}'@'%'"
            ))
            .await;
        let (code, text) = check(&work).await;
        assert_eq!(code, Some(0), "{text}");
        source.exec("INSERT INTO t VALUES (1, 'a', '{x,y}')").await;
        let synced = work.run(&["run", "--until-synced", "--listen", "127.0.0.1:0"]).await;
        assert!(synced.status.success(), "{}", said(&synced));
        assert_eq!(target.value("SELECT tags FROM t").await.as_deref(), Some("{x,y}"));
        assert_clean(&work).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn status_and_verify_tell_of_such_a_target() {
    let (source, target) = pair(Mysql::v97().await).await;
    let work = pipeline(&source.url(), &target, &["t"]);
    source.exec("INSERT INTO t VALUES (1, 'a', NULL)").await;
    let synced = work.run(&["run", "--until-synced", "--listen", "127.0.0.1:0"]).await;
    assert!(synced.status.success(), "{}", said(&synced));
    assert_clean(&work).await;
    work.configure_also("[verify]\nlog = \"rows\"\n");
    let verify = work.run(&["verify"]).await;
    assert!(verify.status.code() == Some(3) && said(&verify).contains("log = \"chunks\""), "{}", said(&verify));
    let status = work.run(&["status", "--json"]).await;
    assert!(said(&status).contains("\"synced\""), "{}", said(&status));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_is_away_is_waited_for() {
    let source = Postgres::v18().await;
    source.exec("CREATE TABLE t (id int PRIMARY KEY)").await;
    let work = Workspace::new("away", &source.url(), "mysql://u:p@127.0.0.1:1/shop", &["t"]);
    let (code, text) = check(&work).await;
    assert!(code == Some(1) && text.contains("127.0.0.1:1 is unreachable") && text.contains("[target] url"), "{text}");
    let mut worker = work.start(&[]);
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    assert!(worker.is_running(), "{}", worker.stderr());
}

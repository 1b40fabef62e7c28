//! What becomes of single rows in targets that are MySQL and MariaDB.

use std::time::Duration;

use crate::{
    mysql_target::pipeline,
    support::{Kafka, Mysql, Postgres, Worker, Workspace, eventually},
    types_mysql::{COMMON, Case, JSON, MARIADB},
    verify::assert_clean,
};

const PATIENCE: Duration = Duration::from_secs(30);

/// Every server that rows are written to.
async fn servers() -> [Mysql; 4] {
    [Mysql::v57().await, Mysql::v80().await, Mysql::v97().await, Mysql::mariadb().await]
}

async fn synced(work: &Workspace) {
    let mut worker = work.start(&["--until-synced"]);
    assert!(worker.wait_exit(Duration::from_secs(180)).await.success(), "{}", worker.stderr());
}

/// Waits until a table of the target has these values, in the order of `sql`.
async fn shows(target: &Mysql, sql: &str, wanted: &[&str]) {
    let mut found = Vec::new();
    eventually(&format!("{sql} gives {wanted:?}"), PATIENCE, async || {
        let rows = target.query(sql).await;
        found = rows.into_iter().map(|row| row.into_iter().flatten().collect::<Vec<_>>().join(" ")).collect();
        found == wanted
    })
    .await;
}

async fn waiting(source: &Postgres, rows: &str) {
    eventually(&format!("{rows} rows wait"), PATIENCE, async || {
        source.value("SELECT count(*) FROM cutover.waiting").await.as_deref() == Some(rows)
    })
    .await;
}

/// A source with this table, copied into `target`, and followed.
async fn followed(target: &Mysql, at_source: &str, at_target: &str) -> (Postgres, Workspace, Worker) {
    let source = Postgres::v18().await;
    source.exec(at_source).await;
    target.exec(at_target).await;
    let work = pipeline(&source.url(), target, &["t"]);
    synced(&work).await;
    let worker = work.start(&[]);
    (source, work, worker)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_of_the_target_gets_no_column_and_no_trigger() {
    for target in servers().await {
        let table = "CREATE TABLE t (id int PRIMARY KEY, a int DEFAULT 5, b int AS (a * 2) STORED, KEY (a))";
        target.exec(table).await;
        let before = target.query("SHOW CREATE TABLE t").await;
        target.exec("DROP TABLE t").await;
        let (source, _work, _worker) = followed(&target, "CREATE TABLE t (id int PRIMARY KEY, a int)", table).await;
        source
            .exec("INSERT INTO t VALUES (1, 1), (2, 2); UPDATE t SET a = 7 WHERE id = 1; DELETE FROM t WHERE id = 2")
            .await;
        shows(&target, "SELECT id, a, b FROM t ORDER BY id", &["1 7 14"]).await;
        assert_eq!(before, target.query("SHOW CREATE TABLE t").await);
        let triggers = format!(
            "SELECT COUNT(*) FROM information_schema.TRIGGERS WHERE EVENT_OBJECT_SCHEMA = '{}'",
            target.database()
        );
        assert_eq!(target.value(&triggers).await.as_deref(), Some("0"));
        // An application that names no columns goes on.
        target.exec("INSERT INTO t VALUES (9, 9, DEFAULT)").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unique_values_that_rows_exchange_are_exchanged_at_the_target() {
    let at_source = "CREATE TABLE t (id int PRIMARY KEY, code int UNIQUE DEFERRABLE INITIALLY DEFERRED);
        INSERT INTO t SELECT i, i FROM generate_series(1, 40) i";
    for target in servers().await {
        let (source, _work, _worker) =
            followed(&target, at_source, "CREATE TABLE t (id int PRIMARY KEY, code int UNIQUE)").await;
        source.exec("UPDATE t SET code = 41 - code").await;
        shows(&target, "SELECT COUNT(*), SUM(code = 41 - id) FROM t", &["40 40"]).await;
        source.exec("BEGIN; DELETE FROM t WHERE id = 1; UPDATE t SET code = 40 WHERE id = 2; INSERT INTO t VALUES (1, 39); COMMIT").await;
        shows(&target, "SELECT id, code FROM t WHERE id < 3 ORDER BY id", &["1 39", "2 40"]).await;
        assert_eq!(source.value("SELECT count(*) FROM cutover.waiting").await.as_deref(), Some("0"));
        assert_eq!(source.value("SELECT count(*) FROM cutover.dead_letters").await.as_deref(), Some("0"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_whose_unique_value_another_has_waits_and_never_takes_that_row() {
    for target in servers().await {
        let (source, _work, _worker) = followed(
            &target,
            "CREATE TABLE t (id int PRIMARY KEY, mail text, n int)",
            "CREATE TABLE t (id int PRIMARY KEY, mail varchar(50) UNIQUE, n int)",
        )
        .await;
        target.exec("INSERT INTO t VALUES (99, 'x', 0)").await;
        source.exec("INSERT INTO t VALUES (1, 'x', 5), (2, 'y', 6)").await;
        shows(&target, "SELECT id, mail, n FROM t ORDER BY id", &["2 y 6", "99 x 0"]).await;
        waiting(&source, "1").await;
        source.exec("UPDATE t SET mail = 'x', n = 7 WHERE id = 2").await;
        waiting(&source, "2").await;
        shows(&target, "SELECT id, mail, n FROM t ORDER BY id", &["2 y 6", "99 x 0"]).await;
        source.exec("UPDATE t SET mail = 'z' WHERE id = 2").await;
        shows(&target, "SELECT id, mail, n FROM t ORDER BY id", &["2 z 7", "99 x 0"]).await;
        target.exec("DELETE FROM t WHERE id = 99").await;
        shows(&target, "SELECT id, mail, n FROM t ORDER BY id", &["1 x 5", "2 z 7"]).await;
        waiting(&source, "0").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_target_cannot_hold_is_a_dead_letter_and_the_rest_goes_on() {
    let at_source = "CREATE TABLE t (id int PRIMARY KEY, name text, small numeric, price numeric, at timestamp, mood text, day text)";
    let at_target =
        "CREATE TABLE t (id int PRIMARY KEY, name varchar(4) CHARACTER SET latin1, small smallint, price decimal(6,2),
        at datetime(3), mood enum('sad', 'glad'), day date)";
    for target in servers().await {
        let source = Postgres::v18().await;
        source.exec(at_source).await;
        target.exec(at_target).await;
        let work = pipeline(&source.url(), &target, &["t"]);
        work.transform("t", "SELECT id, name, small, price, at, mood, day::date FROM t");
        // Some are copied, some are followed.
        let bad = |first: u32| {
            [
                "'fiver', 1, 1, NULL, NULL, NULL",
                "'日', 1, 1, NULL, NULL, NULL",
                "'a    ', 1, 1, NULL, NULL, NULL",
                "NULL, 40000, 1, NULL, NULL, NULL",
                "NULL, 1, 10000, NULL, NULL, NULL",
                "NULL, 1, 1.005, NULL, NULL, NULL",
                "NULL, 1, 'NaN', NULL, NULL, NULL",
                "NULL, 1, 1, '2024-01-01 10:00:00.0005', NULL, NULL",
                "NULL, 1, 1, 'infinity', NULL, NULL",
                "NULL, 1, 1, NULL, 'angry', NULL",
                "NULL, 1, 1, NULL, '2', NULL",
                "NULL, 1, 1, NULL, ' 2', NULL",
                "NULL, 1, 1, NULL, 'GLAD', NULL",
                "NULL, 1.5, 1, NULL, NULL, NULL",
                "NULL, 1, 1, NULL, NULL, '10000-01-01'",
                "NULL, 1, 1, NULL, NULL, 'never'",
            ]
            .iter()
            .zip(first..)
            .map(|(values, id)| format!("INSERT INTO t VALUES ({id}, {values});"))
            .collect::<String>()
        };
        let good = |id: u32| {
            format!("INSERT INTO t VALUES ({id}, 'é', 5, 1.250, '2024-01-01 10:00:00.123000', 'glad', '2024-02-29');")
        };
        source.exec(&format!("{}{}", bad(100), good(1))).await;
        let _worker = work.start(&[]);
        shows(&target, "SELECT COUNT(*), MAX(id) FROM t", &["1 1"]).await;
        source.exec(&format!("BEGIN;{}{}{}COMMIT", good(2), bad(200), good(3))).await;
        let rows = "SELECT id, name, small, price, at, mood, day FROM t ORDER BY id";
        let row = |id: u32| format!("{id} é 5 1.25 2024-01-01 10:00:00.123 glad 2024-02-29");
        shows(&target, &format!("{rows} LIMIT 2, 1"), &[&row(3)]).await;
        shows(&target, "SELECT COUNT(*) FROM t", &["3"]).await;
        let letters = "SELECT count(*), count(DISTINCT key_text) FROM cutover.dead_letters WHERE state = 'open'";
        eventually("all are dead letters", PATIENCE, async || {
            source.query(letters).await == [[Some("32".into()), Some("32".into())]]
        })
        .await;
        let quoted = "SELECT count(*) FROM cutover.dead_letters WHERE error ~ 'fiver|angry'";
        assert_eq!(source.value(quoted).await.as_deref(), Some("0"), "no error quotes a value");
        source
            .exec("UPDATE t SET name = 'four', small = 1, price = 1, at = NULL, mood = NULL, day = NULL WHERE id > 3")
            .await;
        shows(&target, "SELECT COUNT(*) FROM t", &["35"]).await;
        eventually("no dead letter is open", PATIENCE, async || {
            source.value("SELECT count(*) FROM cutover.dead_letters WHERE state = 'open'").await.as_deref() == Some("0")
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_stay_deleted_through_truncate_and_replay() {
    for target in servers().await {
        let (source, work, mut worker) = followed(
            &target,
            "CREATE TABLE t (id int PRIMARY KEY, n int); INSERT INTO t SELECT i, i FROM generate_series(1, 300) i",
            "CREATE TABLE t (id int PRIMARY KEY, n int)",
        )
        .await;
        shows(&target, "SELECT COUNT(*) FROM t", &["300"]).await;
        source.exec("DELETE FROM t WHERE id <= 100").await;
        shows(&target, "SELECT COUNT(*) FROM t", &["200"]).await;
        let replay = work.run(&["replay", "--from", "beginning"]).await;
        assert!(replay.status.success(), "{}", String::from_utf8_lossy(&replay.stderr));
        shows(&target, "SELECT COUNT(*), MIN(id) FROM t", &["200 101"]).await;
        source.exec("TRUNCATE t; INSERT INTO t VALUES (7, 7)").await;
        shows(&target, "SELECT id, n FROM t", &["7 7"]).await;
        let replay = work.run(&["replay", "--from", "beginning"]).await;
        assert!(replay.status.success(), "{}", String::from_utf8_lossy(&replay.stderr));
        shows(&target, "SELECT id, n FROM t", &["7 7"]).await;
        // What was written past cutover goes with a new copy; what the source has comes back.
        target.exec("DELETE FROM t; INSERT INTO t VALUES (8, 8)").await;
        let copied = work.run(&["resnapshot", "t"]).await;
        assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
        shows(&target, "SELECT id, n FROM t", &["7 7"]).await;
        worker.terminate().await;
        assert!(worker.wait_exit(Duration::from_secs(10)).await.success(), "{}", worker.stderr());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_the_target_takes_for_one_wait_for_each_other() {
    for target in servers().await {
        let (source, _work, _worker) = followed(
            &target,
            "CREATE TABLE t (name text PRIMARY KEY, n int); INSERT INTO t VALUES ('a', 1)",
            "CREATE TABLE t (name varchar(20) COLLATE utf8mb4_general_ci PRIMARY KEY, n int)",
        )
        .await;
        source.exec("INSERT INTO t VALUES ('A', 2), ('b', 3)").await;
        waiting(&source, "1").await;
        shows(&target, "SELECT name, n FROM t ORDER BY n", &["a 1", "b 3"]).await;
        source.exec("UPDATE t SET n = 5 WHERE name = 'A'; UPDATE t SET n = 4 WHERE name = 'a'").await;
        shows(&target, "SELECT name, n FROM t ORDER BY n", &["b 3", "a 4"]).await;
        source.exec("DELETE FROM t WHERE name = 'a'").await;
        shows(&target, "SELECT name, n FROM t ORDER BY n", &["b 3", "A 5"]).await;
        waiting(&source, "0").await;
        source.exec("UPDATE t SET name = 'B' WHERE name = 'b'").await;
        shows(&target, "SELECT name, n FROM t ORDER BY n", &["B 3", "A 5"]).await;
        source.exec("DELETE FROM t WHERE name = 'A'").await;
        shows(&target, "SELECT name, n FROM t ORDER BY n", &["B 3"]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transform_renames_casts_and_filters() {
    for target in servers().await {
        let source = Postgres::v15().await;
        source.exec("CREATE TABLE users (id int PRIMARY KEY, first text, last text, active boolean, born date)").await;
        target
            .exec("CREATE TABLE people (no bigint PRIMARY KEY, name varchar(90), active tinyint(1), year smallint)")
            .await;
        let work = pipeline(&source.url(), &target, &["users"]);
        work.transform(
            "people",
            "SELECT id::bigint AS no, first || ' ' || last AS name, active, extract(year FROM born)::smallint AS year FROM users WHERE active",
        );
        source.exec("INSERT INTO users VALUES (1, 'a', 'b', true, '1980-02-29'), (2, 'c', 'd', false, NULL)").await;
        let _worker = work.start(&[]);
        let rows = "SELECT no, name, active, year FROM people ORDER BY no";
        shows(&target, rows, &["1 a b 1 1980"]).await;
        source.exec("UPDATE users SET active = NOT active").await;
        shows(&target, rows, &["2 c d 1"]).await;
        source.exec("UPDATE users SET id = id + 2, active = true").await;
        shows(&target, rows, &["3 a b 1 1980", "4 c d 1"]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_end_lose_nothing() {
    for target in servers().await {
        let (source, _work, mut worker) = followed(
            &target,
            "CREATE TABLE t (id int PRIMARY KEY, n int)",
            "CREATE TABLE t (id int PRIMARY KEY, n int)",
        )
        .await;
        for round in 1..=8 {
            source
                .exec(&format!("INSERT INTO t SELECT i, {round} FROM generate_series({round}000, {round}999) i"))
                .await;
            let sessions =
                "SELECT id FROM information_schema.PROCESSLIST WHERE id <> CONNECTION_ID() AND DB = DATABASE()";
            for row in target.query(sessions).await {
                let id = row.into_iter().flatten().next().unwrap_or_default();
                // It may be gone by itself.
                let _ = target.try_exec(&format!("KILL {id}")).await;
            }
        }
        shows(&target, "SELECT COUNT(*), COUNT(DISTINCT n) FROM t", &["8000 8"]).await;
        assert!(worker.is_running(), "{}", worker.stderr());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_written_while_another_has_the_lanes() {
    for target in servers().await {
        let (source, _work, mut worker) =
            followed(&target, "CREATE TABLE t (id int PRIMARY KEY)", "CREATE TABLE t (id int PRIMARY KEY)").await;
        target
            .exec(&format!(
                "SET SESSION sql_mode = ''; BEGIN; SELECT * FROM cutover.lanes WHERE pipeline = '{}' FOR UPDATE",
                target.database()
            ))
            .await;
        source.exec("INSERT INTO t SELECT generate_series(1, 50)").await;
        // Longer than a lock is waited for.
        tokio::time::sleep(Duration::from_secs(12)).await;
        assert_eq!(target.value("SELECT COUNT(*) FROM t").await.as_deref(), Some("0"));
        target.exec("COMMIT").await;
        shows(&target, "SELECT COUNT(*) FROM t", &["50"]).await;
        assert!(worker.is_running(), "{}", worker.stderr());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn truncates_end_in_every_partition_and_twice_in_a_transaction() {
    for target in servers().await {
        let source = Postgres::v18().await;
        source
            .exec(
                "CREATE TABLE t (id int PRIMARY KEY, n int); INSERT INTO t SELECT i, 0 FROM generate_series(1, 2000) i",
            )
            .await;
        target.exec("CREATE TABLE t (id int PRIMARY KEY, n int)").await;
        let work = pipeline(&source.url(), &target, &["t"]);
        work.configure_also("[log]\npartitions = 4\n\n[apply]\nbatch_rows_max = 100\n");
        let mut worker = work.start(&[]);
        shows(&target, "SELECT COUNT(*) FROM t", &["2000"]).await;
        for round in 1..=3 {
            source
                .exec(&format!(
                    "BEGIN; TRUNCATE t; INSERT INTO t SELECT i, 0 FROM generate_series(1, 700) i; TRUNCATE t;
                     INSERT INTO t SELECT i, {round} FROM generate_series(1, 500 + {round}) i; COMMIT"
                ))
                .await;
            shows(&target, "SELECT COUNT(*), MIN(n), MAX(n) FROM t", &[&format!("{} {round} {round}", 500 + round)])
                .await;
        }
        assert!(worker.is_running(), "{}", worker.stderr());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_grows_takes_its_side_table_along() {
    for target in servers().await {
        let (source, work, mut worker) = followed(
            &target,
            "CREATE TABLE t (id bigint, name text, n int, PRIMARY KEY (id, name)); INSERT INTO t VALUES (1, 'a', 1)",
            "CREATE TABLE t (id int, name varchar(2), n int, PRIMARY KEY (id, name))",
        )
        .await;
        source.exec("UPDATE t SET n = 2").await;
        shows(&target, "SELECT n FROM t", &["2"]).await;
        worker.terminate().await;
        assert!(worker.wait_exit(Duration::from_secs(10)).await.success(), "{}", worker.stderr());
        target.exec("ALTER TABLE t MODIFY id bigint NOT NULL, MODIFY name varchar(20) NOT NULL").await;
        let mut worker = work.start(&[]);
        source.exec("INSERT INTO t VALUES (5000000000, 'longer', 4); UPDATE t SET n = 3 WHERE id = 1").await;
        shows(&target, "SELECT id, name, n FROM t ORDER BY id", &["1 a 3", "5000000000 longer 4"]).await;
        source.exec("DELETE FROM t").await;
        shows(&target, "SELECT COUNT(*) FROM t", &["0"]).await;
        // A key of fewer columns has no versions there.
        worker.terminate().await;
        assert!(worker.wait_exit(Duration::from_secs(10)).await.success(), "{}", worker.stderr());
        target.exec("ALTER TABLE t DROP PRIMARY KEY, ADD PRIMARY KEY (id)").await;
        work.transform("t", "SELECT id, name, n FROM t");
        source.exec("ALTER TABLE t DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (id)").await;
        let run = work.run(&["run", "--until-synced", "--listen", "127.0.0.1:0"]).await;
        let said = String::from_utf8_lossy(&run.stderr);
        assert!(run.status.code() == Some(3) && said.contains("DROP TABLE `cutover`"), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_copy_keeps_the_last_good_row_of_a_dead_letter_and_what_others_write() {
    for target in [Mysql::v80().await, Mysql::mariadb().await] {
        let (source, work, _worker) = followed(
            &target,
            "CREATE TABLE t (id int PRIMARY KEY, name text); INSERT INTO t VALUES (1, 'ok'), (2, 'b')",
            "CREATE TABLE t (id int PRIMARY KEY, name varchar(4))",
        )
        .await;
        source.exec("UPDATE t SET name = 'too long' WHERE id = 1").await;
        eventually("a dead letter is open", PATIENCE, async || {
            source.value("SELECT count(*) FROM cutover.dead_letters WHERE state = 'open'").await.as_deref() == Some("1")
        })
        .await;
        let copied = work.run(&["resnapshot", "t"]).await;
        assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
        shows(&target, "SELECT id, name FROM t ORDER BY id", &["1 ok", "2 b"]).await;
        source.exec("UPDATE t SET name = 'good' WHERE id = 1").await;
        shows(&target, "SELECT id, name FROM t ORDER BY id", &["1 good", "2 b"]).await;
        // Another pipeline has rows in the same table.
        let other = Postgres::v15().await;
        other.exec("CREATE TABLE t (id int PRIMARY KEY, name text); INSERT INTO t VALUES (10, 'x')").await;
        let beside =
            Workspace::new(&format!("{}-b", target.database().replace('_', "-")), &other.url(), &target.url(), &["t"]);
        synced(&beside).await;
        let copied = work.run(&["resnapshot", "t"]).await;
        assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
        shows(&target, "SELECT id, name FROM t ORDER BY id", &["1 good", "2 b", "10 x"]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_every_kind_are_found_again() {
    for target in servers().await {
        let (source, work, _worker) = followed(
            &target,
            "CREATE TABLE t (b bytea, d date, at timestamptz, p numeric(10,2), l text, f interval, n int,
               PRIMARY KEY (b, d, at, p, l, f));
             INSERT INTO t VALUES ('\\x01', '2024-01-01', '2024-01-01 10:00Z', 1, 'é', '1 hour', 1)",
            "CREATE TABLE t (b binary(4), d date, at timestamp(6), p decimal(12,4), l varchar(9) CHARACTER SET latin1, f time(3), n int,
               PRIMARY KEY (b, d, at, p, l, f))",
        )
        .await;
        source.exec("INSERT INTO t VALUES ('\\x0102', '2024-01-02', '2024-01-01 10:00:00.5Z', 1.5, '', '-1.5 seconds', 2); UPDATE t SET n = n + 10").await;
        shows(&target, "SELECT HEX(b), d, n FROM t ORDER BY n", &["01000000 2024-01-01 11", "01020000 2024-01-02 12"])
            .await;
        // No row can have such keys; the rest goes on.
        source.exec("INSERT INTO t SELECT b, 'infinity', at, p, l, f, 20 FROM t WHERE n = 11; INSERT INTO t SELECT b, d, at, p, '日', f, 21 FROM t WHERE n = 11").await;
        source
            .exec(
                "DELETE FROM t WHERE n IN (20, 21); UPDATE t SET n = n + 100 WHERE n = 11; DELETE FROM t WHERE n = 12",
            )
            .await;
        shows(&target, "SELECT HEX(b), d, n FROM t ORDER BY n", &["01000000 2024-01-01 111"]).await;
        let replay = work.run(&["replay", "--from", "beginning"]).await;
        assert!(replay.status.success(), "{}", String::from_utf8_lossy(&replay.stderr));
        shows(&target, "SELECT HEX(b), d, n FROM t ORDER BY n", &["01000000 2024-01-01 111"]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_whose_keys_are_bits_are_found_again() {
    for target in servers().await {
        let (source, _work, _worker) = followed(
            &target,
            "CREATE TABLE t (b bytea PRIMARY KEY, n int); INSERT INTO t VALUES ('\\x0000', 1), ('\\x0102', 2)",
            "CREATE TABLE t (b bit(12) PRIMARY KEY, n int)",
        )
        .await;
        source.exec("UPDATE t SET n = n + 10; INSERT INTO t VALUES ('\\x0fff', 3)").await;
        shows(&target, "SELECT b + 0, n FROM t ORDER BY n", &["4095 3", "0 11", "258 12"]).await;
        source.exec("DELETE FROM t WHERE n = 11").await;
        shows(&target, "SELECT b + 0, n FROM t ORDER BY n", &["4095 3", "258 12"]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_pipeline_writes_nothing_to_the_target() {
    for target in [Mysql::v57().await, Mysql::mariadb().await] {
        let (source, _work, mut worker) =
            followed(&target, "CREATE TABLE t (id int PRIMARY KEY)", "CREATE TABLE t (id int PRIMARY KEY)").await;
        source.exec("INSERT INTO t VALUES (1)").await;
        shows(&target, "SELECT id FROM t", &["1"]).await;
        let nonces = format!("SELECT SUM(nonce) FROM cutover.lanes WHERE pipeline = '{}'", target.database());
        let before = target.value(&nonces).await;
        assert!(before.as_deref().is_some_and(|sum| sum != "0"), "{before:?}");
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(target.value(&nonces).await, before);
        assert!(worker.is_running(), "{}", worker.stderr());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_is_copied_again_while_others_apply() {
    let (source, target) = (Postgres::v18().await, Mysql::v80().await);
    source
        .exec("CREATE TABLE t (id int PRIMARY KEY, n int); INSERT INTO t SELECT i, 0 FROM generate_series(1, 500) i")
        .await;
    target.exec("CREATE TABLE t (id int PRIMARY KEY, n int)").await;
    let work = pipeline(&source.url(), &target, &["t"]);
    let kafka = &Kafka::shared().await.url;
    work.configure_also(&format!("[log]\nurl = {kafka:?}\npartitions = 2\n\n[snapshot]\nchunk_rows = 100\n"));
    let workers =
        [work.start(&["--role", "capture"]), work.start(&["--role", "apply"]), work.start(&["--role", "apply"])];
    shows(&target, "SELECT COUNT(*) FROM t", &["500"]).await;
    target.exec("INSERT INTO t VALUES (1000, 1)").await;
    let copied = work.run(&["resnapshot", "t"]).await;
    assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
    source.exec("UPDATE t SET n = 1").await;
    shows(&target, "SELECT COUNT(*), MIN(n), MAX(id) FROM t", &["500 1 500"]).await;
    drop(workers);
}

/// What a column has, so that both servers write it alike.
fn shown(column: &str) -> &'static str {
    let bytes =
        ["CHAR", "VARCHAR", "TINYTEXT", "TEXT", "MEDIUMTEXT", "LONGTEXT", "BINARY", "VARBINARY", "TINYBLOB", "BLOB"];
    let mut bytes = bytes.iter().chain(&["MEDIUMBLOB", "LONGBLOB", "ENUM", "SET"]);
    let name = column.split(['(', ' ']).next().unwrap_or_default();
    match name {
        // Without its SRID, which is not captured.
        "GEOMETRY" | "POINT" | "POLYGON" => "SUBSTR(HEX(v), 9)",
        "BIT" => "CAST(v + 0 AS CHAR)",
        name if bytes.any(|other| *other == name) => "HEX(v)",
        _ => "CAST(v AS CHAR)",
    }
}

/// Every type that both servers have, copied and then written again by the stream.
async fn every_type_moves(source: Mysql, target: Mysql, groups: &[&[Case]]) {
    let engine = Postgres::v18().await;
    let mut cases = Vec::new();
    for server in [&source, &target] {
        server.exec("SET NAMES utf8mb4; SET SESSION sql_mode = ''; SET time_zone = '+00:00'").await;
    }
    for (number, (column, values)) in groups.iter().copied().flatten().enumerate() {
        let table = format!("c{number}");
        for server in [&source, &target] {
            server.exec(&format!("CREATE TABLE {table} (id INT PRIMARY KEY, v {column})")).await;
        }
        // PostgreSQL, which makes the rows, has no text with a NUL byte.
        for (id, value) in values.iter().enumerate().filter(|(_, value)| !value.contains("\\0")) {
            source.exec(&format!("INSERT INTO {table} VALUES ({id}, {value})")).await;
        }
        cases.push((table, *column));
    }
    let names: Vec<&str> = cases.iter().map(|(table, _)| table.as_str()).collect();
    let work = pipeline(&source.url(), &target, &names);
    work.configure_also(&format!("[transform]\nengine = {:?}\n", engine.url()));
    synced(&work).await;
    let compare = async |when: &str| {
        let letters = engine.query("SELECT source_table, key_text, error FROM cutover.dead_letters").await;
        assert!(letters.is_empty(), "{when}: {letters:?}");
        for (table, column) in &cases {
            let select = format!("SELECT id, {} FROM {table} ORDER BY id", shown(column));
            let dated = column.starts_with("DATE") || column.starts_with("TIMESTAMP");
            let zero = |value: &String| dated && (value.starts_with("0000") || value.contains("-00"));
            let wanted: Vec<Vec<Option<String>>> = source
                .query(&select)
                .await
                .into_iter()
                .map(|row| row.into_iter().map(|value| value.filter(|value| !zero(value))).collect())
                .collect();
            // `jsonb` has no negative zero.
            let unsigned = |rows: Vec<Vec<Option<String>>>| -> Vec<Vec<Option<String>>> {
                let plain = |value: String| if *column == "JSON" { value.replace(", -0,", ", 0,") } else { value };
                rows.into_iter().map(|row| row.into_iter().map(|value| value.map(plain)).collect()).collect()
            };
            assert_eq!(unsigned(wanted), unsigned(target.query(&select).await), "{when}: {column}");
        }
    };
    compare("copied").await;
    for (table, _) in &cases {
        source
            .exec(&format!("UPDATE {table} SET id = id + 100; INSERT INTO {table} SELECT id - 100, v FROM {table}"))
            .await;
    }
    synced(&work).await;
    compare("followed").await;
    assert_clean(&work).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_type_moves_from_mysql_57_to_97() {
    every_type_moves(Mysql::v57().await, Mysql::v97().await, &[COMMON, JSON]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_type_moves_from_mysql_80_back_to_57() {
    // 5.7 reads some JSON numbers with a last digit of its own, and writes 1.0 as 1.
    every_type_moves(Mysql::v80().await, Mysql::v57().await, &[COMMON]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_type_moves_from_mysql_80_to_mariadb() {
    every_type_moves(Mysql::v80().await, Mysql::mariadb().await, &[COMMON]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_type_moves_from_mariadb_to_mariadb() {
    every_type_moves(Mysql::mariadb().await, Mysql::mariadb().await, &[COMMON, MARIADB]).await;
}

//! What the source may do to a running pipeline, end to end: rules 3, 11 and 12 of docs/rules.md through the real
//! binary.
//!
//! Clocks that jump, DDL, cascades, and events that hold less than the rows that they change. What a server writes for
//! one table alone is tried on shared servers; what halts everybody who follows a server has one of its own.

use std::time::Duration;

use crate::{
    rules_rig::Rig,
    support::{Mysql, Own, Postgres},
};

const ROWS: &str = "SELECT id, a FROM t ORDER BY id";
const COPIES: &str = "SELECT generation, state FROM cutover.tables WHERE source_table = 't'";

async fn plain(source: Mysql, target: Postgres) -> Rig {
    let at_source = "CREATE TABLE t (id int PRIMARY KEY, a varchar(20))";
    Rig::new(source, target, &["t"], at_source, "CREATE TABLE t (id int PRIMARY KEY, a text)").await
}

/// Rule 3. On 5.7 and MariaDB a commit has its session's time.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_from_the_future_halts_with_the_bound_and_the_way_out() {
    let own = Own::Mysql57.take().await;
    let rig = plain(Mysql::at(own.url).await, Postgres::v15().await).await;
    rig.source.exec("INSERT INTO t VALUES (1, 'now'), (2, 'now')").await;
    rig.sync().await;
    rig.source
        .exec("SET timestamp = UNIX_TIMESTAMP() + 86400; UPDATE t SET a = 'tomorrow' WHERE id = 1; SET timestamp = DEFAULT")
        .await;
    let said = rig.halts().await;
    for words in ["ahead of this machine's clock", "[source] clock_ahead_max_seconds", "above 863", "start again"] {
        assert!(said.contains(words), "{words}: {said}");
    }
    rig.target_has(ROWS, "1 now, 2 now").await;

    // The way out: versions go on above that commit, so that later changes still win.
    let raised = rig.work.configuration().replace("[target]", "clock_ahead_max_seconds = 100000\n\n[target]");
    rig.work.configure(&raised);
    rig.source.exec("UPDATE t SET a = 'later' WHERE id = 1; INSERT INTO t VALUES (3, 'later')").await;
    rig.sync().await;
    rig.target_has(ROWS, "1 later, 2 now, 3 later").await;
}

/// Rule 3. A clock that is behind does no harm, whatever a session makes of its time.
#[tokio::test(flavor = "multi_thread")]
async fn commits_from_the_past_keep_their_order() {
    let rig = plain(Mysql::mariadb().await, Postgres::v18().await).await;
    rig.source.exec("INSERT INTO t VALUES (1, 'now')").await;
    let _worker = rig.following().await;
    rig.source
        .exec("UPDATE t SET a = 'x' WHERE id = 1; SET timestamp = 1000000000; UPDATE t SET a = 'last' WHERE id = 1; SET timestamp = DEFAULT")
        .await;
    rig.target_has(ROWS, "1 last").await;
}

/// Rule 11.
#[tokio::test(flavor = "multi_thread")]
async fn leaving_children_to_the_targets_own_keys_is_refused() {
    let rig = plain(Mysql::v57().await, Postgres::v15().await).await;
    rig.work.configure(&rig.work.configuration().replace("[target]", "cascades = \"target\"\n\n[target]"));
    for command in ["run", "check"] {
        let output = rig.work.run(&[command]).await;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(2) && said.contains("source.cascades"), "{said}");
    }
}

/// Rule 11. Those of servers that log nothing of them: `rules_cascades`.
#[tokio::test(flavor = "multi_thread")]
async fn children_follow_the_cascades_of_a_server_that_logs_them() {
    let at_source = "CREATE TABLE p (id int PRIMARY KEY); CREATE TABLE t (id int PRIMARY KEY, a int, b int,
        FOREIGN KEY (a) REFERENCES p (id) ON DELETE CASCADE ON UPDATE CASCADE,
        FOREIGN KEY (b) REFERENCES p (id) ON DELETE SET NULL)";
    let at_target = "CREATE TABLE p (id int PRIMARY KEY); CREATE TABLE t (id int PRIMARY KEY, a int, b int)";
    let rig = Rig::new(Mysql::v97().await, Postgres::v15().await, &["p", "t"], at_source, at_target).await;
    rig.source
        .exec("INSERT INTO p VALUES (1), (2), (3); INSERT INTO t VALUES (1, 1, 3), (2, 2, 1), (3, 3, 3), (4, 3, 1)")
        .await;
    let _worker = rig.following().await;
    rig.source.exec("DELETE FROM p WHERE id = 1; UPDATE p SET id = 9 WHERE id = 2").await;
    rig.target_has("SELECT id, a, b FROM t ORDER BY id", "2 9 null, 3 3 3, 4 3 null").await;
    rig.same("SELECT id FROM p ORDER BY id").await;
}

/// The servers differ in whether a YEAR has a bit among those that say which numbers are unsigned.
async fn numbers_beside_a_year(source: Mysql) {
    let numbers =
        "a smallint unsigned, b smallint, c int unsigned, d int, e tinyint unsigned, f bigint unsigned, g bigint";
    let at_source = format!(
        "CREATE TABLE t (id int PRIMARY KEY, made year, {numbers});
         CREATE TABLE few (id int PRIMARY KEY, made year, a smallint unsigned, b smallint, c bigint unsigned);
         CREATE TABLE beside (y year, {numbers}, h int unsigned, id int PRIMARY KEY)"
    );
    let at_target =
        "CREATE TABLE t (id int PRIMARY KEY, made int, a int, b int, c bigint, d int, e int, f numeric, g bigint);
        CREATE TABLE few (id int PRIMARY KEY, made int, a int, b int, c numeric)";
    let rig = Rig::new(source, Postgres::v15().await, &["t", "few"], &at_source, at_target).await;
    rig.source
        .exec(
            "INSERT INTO t VALUES (1, 2024, 65535, -1, 4294967295, -1, 255, 18446744073709551615, -1);
             INSERT INTO few VALUES (1, 2024, 65535, -1, 18446744073709551615)",
        )
        .await;
    let _worker = rig.following().await;
    rig.source
        .exec(
            "INSERT INTO beside VALUES (2024, 1, 1, 1, 1, 1, 1, 1, 1, 1);
             UPDATE t SET a = 65534, b = -2, c = 4294967294, d = -2, e = 200, f = 18446744073709551614, g = -2;
             UPDATE few SET a = 65534, b = -2, c = 18446744073709551614;
             INSERT INTO t VALUES (2, 1999, 40000, 3, 3000000000, 4, 128, 9223372036854775808, 5)",
        )
        .await;
    let wanted = "1 2024 65534 -2 4294967294 -2 200 18446744073709551614 -2, \
                  2 1999 40000 3 3000000000 4 128 9223372036854775808 5";
    rig.target_has("SELECT id, made, a, b, c, d, e, f, g FROM t ORDER BY id", wanted).await;
    rig.target_has("SELECT id, made, a, b, c FROM few", "1 2024 65534 -2 18446744073709551614").await;
    assert!(rig.status().await["halted"].is_null());
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_beside_a_year_keep_their_sign_on_every_server() {
    numbers_beside_a_year(Mysql::v57().await).await;
    numbers_beside_a_year(Mysql::v80().await).await;
    numbers_beside_a_year(Mysql::v97().await).await;
    numbers_beside_a_year(Mysql::mariadb().await).await;
}

/// Rule 11.
#[tokio::test(flavor = "multi_thread")]
async fn the_same_cascade_at_the_target_does_what_the_source_did_unseen() {
    let at_source = "CREATE TABLE p (id int PRIMARY KEY); CREATE TABLE t (id int PRIMARY KEY, a int,
        FOREIGN KEY (a) REFERENCES p (id) ON DELETE CASCADE)";
    let at_target = "CREATE TABLE p (id int PRIMARY KEY);
        CREATE TABLE t (id int PRIMARY KEY, a int REFERENCES p (id) ON DELETE CASCADE)";
    let rig = Rig::new(Mysql::v57().await, Postgres::v18().await, &["p", "t"], at_source, at_target).await;
    let user = format!("u{}", rig.target.database().trim_start_matches("it_"));
    let grants = format!(
        "CREATE ROLE {user} LOGIN PASSWORD 'secret'; ALTER TABLE p OWNER TO {user}; ALTER TABLE t OWNER TO {user};
         GRANT CREATE ON DATABASE {} TO {user}",
        rig.target.database()
    );
    rig.target.exec(&grants).await;
    rig.work.configure(&rig.work.configuration().replace(&rig.target.url(), &rig.target.url_as(&user, "secret")));
    rig.source.exec("INSERT INTO p VALUES (1), (2); INSERT INTO t VALUES (1, 1), (2, 2), (3, 1)").await;
    let check = rig.work.run(&["check"]).await;
    assert_eq!(check.status.code(), Some(0), "{}", String::from_utf8_lossy(&check.stdout));
    let mut worker = rig.following().await;
    rig.source.exec("DELETE FROM p WHERE id = 1; INSERT INTO t VALUES (4, 2)").await;
    rig.target_has("SELECT id, a FROM t ORDER BY id", "2 2, 4 2").await;
    worker.kill9().await;
    rig.target.exec(&format!("REASSIGN OWNED BY {user} TO CURRENT_USER; DROP OWNED BY {user}; DROP ROLE {user}")).await;
}

/// Rule 12.
async fn rewritten_rows_are_copied_again(source: Mysql, target: Postgres) {
    let at_source = "CREATE TABLE t (id int PRIMARY KEY, a varchar(20), n decimal(10,4) NOT NULL, x int NOT NULL) CHARACTER SET utf8mb4";
    let at_target = "CREATE TABLE t (id int PRIMARY KEY, a text, n numeric(10,4) NOT NULL, x int NOT NULL)";
    let rig = Rig::new(source, target, &["t"], at_source, at_target).await;
    rig.source
        .exec("INSERT INTO t VALUES (1, 'caf\u{e9}', 1.2345, 1), (2, '\u{1F600}', 2.5, 2), (3, 'c', 3.1, 3)")
        .await;
    let _worker = rig.following().await;
    let rows = "SELECT id, a, n, x FROM t ORDER BY id";
    // A row that was changed a moment before its table was is no older than the copy.
    rig.source
        .exec("UPDATE t SET a = 'd' WHERE id = 3; ALTER TABLE t DROP COLUMN x, ADD COLUMN x int NOT NULL DEFAULT 7; INSERT INTO t VALUES (4, 'e', 4, 8)")
        .await;
    rig.target_has("SELECT id, x FROM t ORDER BY id", "1 7, 2 7, 3 7, 4 8").await;
    rig.eventually("copied again", async |status| status["synced"] == true).await;
    rig.target_has(COPIES, "2 copied").await;

    rig.source
        .exec("SET sql_mode = ''; UPDATE t SET x = 9 WHERE id = 1; ALTER TABLE t MODIFY n decimal(10,1) NOT NULL")
        .await;
    rig.target_has("SELECT id, n FROM t ORDER BY id", "1 1.2000, 2 2.5000, 3 3.1000, 4 4.0000").await;
    rig.eventually("copied again", async |status| status["synced"] == true).await;
    rig.target_has(COPIES, "3 copied").await;

    rig.source.exec("ALTER TABLE t CONVERT TO CHARACTER SET latin1; UPDATE t SET x = 10 WHERE id = 4").await;
    rig.target_has("SELECT id, a, x FROM t ORDER BY id", "1 caf\u{e9} 9, 2 ? 7, 3 d 7, 4 e 10").await;
    rig.eventually("copied again", async |status| status["synced"] == true).await;
    rig.target_has(COPIES, "4 copied").await;
    rig.source.exec("ALTER TABLE t MODIFY n decimal(10,4) NOT NULL").await;
    rig.same(rows).await;
}

/// Rule 12.
#[tokio::test(flavor = "multi_thread")]
async fn ddl_that_rewrites_a_used_column_has_the_table_copied_again_on_mysql_57() {
    rewritten_rows_are_copied_again(Mysql::v57().await, Postgres::v15().await).await;
}

/// Rule 12.
#[tokio::test(flavor = "multi_thread")]
async fn ddl_that_rewrites_a_used_column_has_the_table_copied_again_on_mysql_80() {
    rewritten_rows_are_copied_again(Mysql::v80().await, Postgres::v18().await).await;
}

/// Rule 12.
#[tokio::test(flavor = "multi_thread")]
async fn ddl_that_rewrites_a_used_column_has_the_table_copied_again_on_mariadb() {
    rewritten_rows_are_copied_again(Mysql::mariadb().await, Postgres::v15().await).await;
}

/// Each change with what the target then has. A column that came and went before capture has read of it has no known
/// type: such a log halts on 5.7 (`a_column_that_came_and_went_unseen_halts_and_the_table_can_be_copied_anew`).
const UNUSED: [(&str, &str); 4] = [
    ("ALTER TABLE t ADD COLUMN z int NOT NULL DEFAULT 5 FIRST; INSERT INTO t VALUES (3, 3, 'c')", "1 a, 2 b, 3 c"),
    ("ALTER TABLE t MODIFY z varchar(9), ADD INDEX (z); UPDATE t SET a = 'B' WHERE id = 2", "1 a, 2 B, 3 c"),
    ("ALTER TABLE t DROP COLUMN z; INSERT INTO t VALUES (4, 'd')", "1 a, 2 B, 3 c, 4 d"),
    (
        "ALTER TABLE t ADD COLUMN y int; INSERT INTO t VALUES (5, 'e', 5); DELETE FROM t WHERE id = 1",
        "2 B, 3 c, 4 d, 5 e",
    ),
];

/// Rule 12.
#[tokio::test(flavor = "multi_thread")]
async fn what_no_transform_uses_may_change_without_a_copy_on_mysql_57() {
    unused_columns_change(Mysql::v57().await, Postgres::v15().await).await;
}

async fn unused_columns_change(source: Mysql, target: Postgres) {
    let rig = plain(source, target).await;
    rig.work.transform("t", "SELECT id, a FROM t");
    rig.source.exec("INSERT INTO t VALUES (1, 'a'), (2, 'b')").await;
    let mut worker = rig.following().await;
    for (change, rows) in UNUSED {
        rig.source.exec(change).await;
        rig.target_has(ROWS, rows).await;
    }
    rig.target_has(COPIES, "1 copied").await;
    worker.kill9().await;
    rig.source
        .exec("INSERT INTO t VALUES (6, 'f', 6); ALTER TABLE t ADD COLUMN x int; INSERT INTO t VALUES (7, 'g', 7, 7)")
        .await;
    rig.sync().await;
    rig.target_has(ROWS, "2 B, 3 c, 4 d, 5 e, 6 f, 7 g").await;
}

/// Rule 12.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_without_a_transform_outlives_a_new_column_and_takes_it_in_when_the_target_has_it() {
    let rig = plain(Mysql::v57().await, Postgres::v15().await).await;
    rig.source.exec("INSERT INTO t VALUES (1, 'a')").await;
    rig.sync().await;
    rig.source.exec("ALTER TABLE t ADD COLUMN n int DEFAULT 7; INSERT INTO t VALUES (2, 'b', 8)").await;
    // The worker that meets the column, and the one that starts with it, go on without it.
    rig.sync().await;
    rig.source.exec("INSERT INTO t VALUES (3, 'c', 9)").await;
    rig.sync().await;
    rig.target_has(ROWS, "1 a, 2 b, 3 c").await;
    rig.target.exec("ALTER TABLE t ADD COLUMN n int").await;
    rig.sync().await;
    rig.target_has("SELECT id || ' ' || n FROM t ORDER BY id", "1 7, 2 8, 3 9").await;
}

/// Rule 12.
#[tokio::test(flavor = "multi_thread")]
async fn a_column_that_came_and_went_unseen_halts_and_the_table_can_be_copied_anew() {
    let rig = plain(Mysql::v57().await, Postgres::v18().await).await;
    rig.source.exec("CREATE TABLE u (id int PRIMARY KEY)").await;
    rig.target.exec("CREATE TABLE u (id int PRIMARY KEY)").await;
    let both = rig.work.configuration().replace("[\"t\"]", "[\"t\", \"u\"]");
    rig.work.configure(&both);
    rig.source.exec("INSERT INTO t VALUES (1, 'a'), (2, 'b')").await;
    rig.sync().await;
    rig.source
        .exec(
            "ALTER TABLE t ADD COLUMN z int FIRST; UPDATE t SET z = 1, a = 'x' WHERE id = 1; ALTER TABLE t DROP COLUMN z;
             INSERT INTO t VALUES (3, 'c'); INSERT INTO u VALUES (1)",
        )
        .await;
    let said = rig.halts().await;
    assert!(said.contains("no longer known") && said.contains("[source] tables"), "{said}");
    rig.target_has(ROWS, "1 a, 2 b").await;
    // Left out, then back in: it is copied anew.
    rig.work.configure(&both.replace("\"t\", ", ""));
    rig.sync().await;
    rig.target_has("SELECT id FROM u", "1").await;
    rig.work.configure(&both);
    rig.sync().await;
    rig.target_has(ROWS, "1 x, 2 b, 3 c").await;
}

/// Rule 12. Events that name their columns describe what neither the catalog nor an earlier schema knows.
#[tokio::test(flavor = "multi_thread")]
async fn columns_that_came_and_went_unseen_are_read_as_the_events_describe_them() {
    for source in [Mysql::mariadb().await, Mysql::v80().await] {
        let at_source = "CREATE TABLE t (id int PRIMARY KEY, a varchar(20), p decimal(8,2))";
        let at_target = "CREATE TABLE t (id int PRIMARY KEY, a text, p numeric)";
        let rig = Rig::new(source, Postgres::v15().await, &["t"], at_source, at_target).await;
        rig.source.exec("INSERT INTO t VALUES (1, 'a', 1.25), (2, 'b', 2.25)").await;
        rig.sync().await;
        rig.source
            .exec(
                "ALTER TABLE t ADD COLUMN y varchar(9) CHARACTER SET latin1 FIRST, ADD COLUMN z datetime(3);
                 INSERT INTO t VALUES ('é', 3, 'c', 3.25, now(3)); UPDATE t SET a = 'x' WHERE id = 1;
                 ALTER TABLE t DROP COLUMN y, DROP COLUMN z, MODIFY p decimal(9,1); INSERT INTO t VALUES (4, 'd', 4.5);
                 ALTER TABLE t MODIFY p decimal(8,2); DELETE FROM t WHERE id = 2",
            )
            .await;
        rig.sync().await;
        rig.same("SELECT id, a, p FROM t ORDER BY id").await;
        rig.target_has(ROWS, "1 x, 3 c, 4 d").await;
    }
}

/// Rule 12. What was captured before the column came has no value for it; the copy that follows has.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_without_a_transform_takes_a_new_column_in_with_older_changes_still_in_the_log() {
    let rig = plain(Mysql::mariadb().await, Postgres::v15().await).await;
    rig.source.exec("INSERT INTO t VALUES (1, 'a'), (2, 'b')").await;
    let mut worker = rig.following().await;
    rig.target.exec("BEGIN; LOCK TABLE t").await;
    rig.source.exec("UPDATE t SET a = 'x' WHERE id = 1; INSERT INTO t VALUES (3, 'c')").await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    worker.kill9().await;
    rig.source.exec("DELETE FROM t WHERE id = 2; ALTER TABLE t ADD COLUMN n int DEFAULT 7").await;
    rig.target.exec("ALTER TABLE t ADD COLUMN n int; COMMIT").await;
    rig.sync().await;
    rig.target_has("SELECT id || ' ' || a || ' ' || n FROM t ORDER BY id", "1 x 7, 3 c 7").await;
}

/// Rule 12. A worker that begins with the new schema reads what is left of the old one.
#[tokio::test(flavor = "multi_thread")]
async fn what_no_transform_uses_may_change_without_a_copy_on_mysql_80() {
    unused_columns_change(Mysql::v80().await, Postgres::v18().await).await;
}

/// Rule 12.
#[tokio::test(flavor = "multi_thread")]
async fn what_no_transform_uses_may_change_without_a_copy_on_mariadb() {
    unused_columns_change(Mysql::mariadb().await, Postgres::v15().await).await;
}

/// Rule 12.
#[tokio::test(flavor = "multi_thread")]
async fn a_column_that_a_transform_reads_and_that_is_dropped_halts_with_its_name() {
    let rig = plain(Mysql::v80().await, Postgres::v18().await).await;
    rig.work.transform("t", "SELECT id, upper(a) AS a FROM t");
    rig.source.exec("INSERT INTO t VALUES (1, 'a')").await;
    let worker = rig.following().await;
    rig.source.exec("ALTER TABLE t RENAME COLUMN a TO b; INSERT INTO t VALUES (2, 'b')").await;
    let status = rig.eventually("halted", async |status| !status["halted"].is_null()).await;
    let reason = status["halted"]["reason"].as_str().unwrap();
    assert!(reason.contains("t.sql") && reason.contains("`a`"), "{reason}");
    drop(worker);
    // Nothing is lost: with a transform that fits, the row arrives.
    rig.work.transform("t", "SELECT id, upper(b) AS a FROM t");
    rig.sync().await;
    rig.target_has(ROWS, "1 A, 2 B").await;
}

/// Rules 10 and 12.
#[tokio::test(flavor = "multi_thread")]
async fn tables_that_are_dropped_or_renamed_halt_and_the_others_stay() {
    for (change, words) in [
        ("DROP TABLE t", ["dropped", "[source] tables"]),
        ("RENAME TABLE t TO old", ["renamed", "cutover resnapshot"]),
        ("ALTER TABLE t RENAME TO old", ["renamed", "cutover resnapshot"]),
    ] {
        let at_source = "CREATE TABLE t (id int PRIMARY KEY, a int); CREATE TABLE u (id int PRIMARY KEY)";
        let rig = Rig::new(Mysql::v57().await, Postgres::v18().await, &["t", "u"], at_source, at_source).await;
        rig.source.exec("INSERT INTO t VALUES (1, 1); INSERT INTO u VALUES (1)").await;
        let mut worker = rig.following().await;
        rig.source.exec(&format!("INSERT INTO t VALUES (2, 2); {change}; INSERT INTO u VALUES (2)")).await;
        let status = rig.eventually("halted", async |status| !status["halted"].is_null()).await;
        let halt = status["halted"].to_string();
        assert!(words.iter().all(|word| halt.contains(word)), "{change}: {halt}");
        assert_eq!(worker.get("/readyz").await.unwrap().0, 503, "{change}");
        assert!(worker.is_running(), "{change}");
        rig.target_has(ROWS, "1 1, 2 2").await;
        worker.kill9().await;
        // The remedy that a drop names.
        if change.starts_with("DROP") {
            rig.work.configure(&rig.work.configuration().replace("\"t\", ", ""));
            rig.sync().await;
            rig.target_has("SELECT id FROM u ORDER BY id", "1, 2").await;
            rig.target_has(ROWS, "1 1, 2 2").await;
        }
    }
}

/// Rule 10.
#[tokio::test(flavor = "multi_thread")]
async fn partitions_that_are_dropped_truncated_or_exchanged_halt() {
    for change in [
        "ALTER TABLE t DROP PARTITION p0",
        "ALTER TABLE t TRUNCATE PARTITION p0",
        "ALTER TABLE t EXCHANGE PARTITION p0 WITH TABLE u",
    ] {
        let at_source = "CREATE TABLE t (id int PRIMARY KEY, a int) PARTITION BY RANGE (id)
            (PARTITION p0 VALUES LESS THAN (10), PARTITION p1 VALUES LESS THAN (20)); CREATE TABLE u (id int PRIMARY KEY, a int)";
        let at_target = "CREATE TABLE t (id int PRIMARY KEY, a int)";
        let rig = Rig::new(Mysql::v80().await, Postgres::v15().await, &["t"], at_source, at_target).await;
        rig.source.exec("INSERT INTO t VALUES (1, 1), (11, 11)").await;
        rig.sync().await;
        rig.source
            .exec("ALTER TABLE t ADD PARTITION (PARTITION p2 VALUES LESS THAN (30)); INSERT INTO t VALUES (21, 21)")
            .await;
        rig.sync().await;
        rig.source.exec(change).await;
        let said = rig.halts().await;
        assert!(said.contains("partition") && said.contains("cutover resnapshot"), "{change}: {said}");
        rig.target_has(ROWS, "1 1, 11 11, 21 21").await;
        let _worker = rig.copied_again("t").await;
        rig.source.exec("INSERT INTO t VALUES (22, 22)").await;
        rig.target_has(ROWS, "11 11, 21 21, 22 22").await;
    }
}

/// Rule 12.
#[tokio::test(flavor = "multi_thread")]
async fn row_images_that_are_not_full_halt() {
    for image in ["MINIMAL", "NOBLOB"] {
        let at_source = "CREATE TABLE t (id int PRIMARY KEY, a varchar(20), b text)";
        let at_target = "CREATE TABLE t (id int PRIMARY KEY, a text, b text)";
        let rig = Rig::new(Mysql::v57().await, Postgres::v15().await, &["t"], at_source, at_target).await;
        rig.source.exec("INSERT INTO t VALUES (1, 'a', 'b'), (2, 'a', 'b')").await;
        rig.sync().await;
        rig.source.exec(&format!("SET binlog_row_image = '{image}'; UPDATE t SET a = 'x' WHERE id = 1")).await;
        let said = rig.halts().await;
        assert!(said.contains("binlog_row_image"), "{image}: {said}");
        rig.target_has("SELECT id, a, b FROM t ORDER BY id", "1 a b, 2 a b").await;
        let _worker = rig.copied_again("t").await;
        rig.source.exec("SET binlog_row_image = 'FULL'; UPDATE t SET b = 'y' WHERE id = 1").await;
        rig.target_has("SELECT id, a, b FROM t ORDER BY id", "1 x y, 2 a b").await;
    }
}

/// Rule 12.
#[tokio::test(flavor = "multi_thread")]
async fn partial_json_halts() {
    let at_source = "CREATE TABLE t (id int PRIMARY KEY, a json)";
    let at_target = "CREATE TABLE t (id int PRIMARY KEY, a jsonb)";
    let own = Own::Mysql80.take().await;
    let rig = Rig::new(Mysql::at(own.url).await, Postgres::v18().await, &["t"], at_source, at_target).await;
    rig.source.exec("INSERT INTO t VALUES (1, '{\"k\": \"a long enough value for a difference\", \"n\": 1}')").await;
    rig.sync().await;
    rig.source.exec("SET binlog_row_value_options = 'PARTIAL_JSON'; UPDATE t SET a = JSON_SET(a, '$.n', 2)").await;
    let said = rig.halts().await;
    assert!(said.contains("binlog_row_value_options"), "{said}");
    rig.target_has("SELECT a ->> 'n' FROM t", "1").await;
    let _worker = rig.copied_again("t").await;
    rig.target_has("SELECT a ->> 'n' FROM t", "2").await;
}

/// Rule 12.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_change_that_is_logged_as_a_statement_halts() {
    let own = Own::Mysql57.take().await;
    let rig = plain(Mysql::at(own.url).await, Postgres::v15().await).await;
    rig.source.exec("INSERT INTO t VALUES (1, 'a')").await;
    rig.sync().await;
    rig.source
        .exec(
            "INSERT INTO t VALUES (2, 'b'); SET binlog_format = 'STATEMENT'; UPDATE t SET a = 'unseen' WHERE id = 1;
             DELETE FROM t WHERE id = 2; SET binlog_format = 'ROW'",
        )
        .await;
    let said = rig.halts().await;
    assert!(said.contains("logged as a statement") && said.contains("binlog_format = ROW"), "{said}");
    rig.target_has(ROWS, "1 a, 2 b").await;
    let _worker = rig.copied_again("t").await;
    rig.source.exec("INSERT INTO t VALUES (3, 'c')").await;
    rig.target_has(ROWS, "1 unseen, 3 c").await;
}

/// Rule 12.
#[tokio::test(flavor = "multi_thread")]
async fn resnapshot_copies_one_table_again_while_the_stream_goes_on() {
    let at_source =
        "CREATE TABLE t (id int PRIMARY KEY, a varchar(20)); CREATE TABLE u (id int PRIMARY KEY, a varchar(20))";
    let at_target = "CREATE TABLE t (id int PRIMARY KEY, a text); CREATE TABLE u (id int PRIMARY KEY, a text)";
    let rig = Rig::new(Mysql::v80().await, Postgres::v15().await, &["t", "u"], at_source, at_target).await;
    let values: Vec<String> = (1..=2000).map(|id| format!("({id}, 'row {id}')")).collect();
    rig.source.exec(&format!("INSERT INTO t VALUES {}; INSERT INTO u VALUES (1, 'one')", values.join(", "))).await;
    rig.work.configure_also("[snapshot]\nchunk_rows = 100\n");
    let _worker = rig.following().await;
    // What somebody spoilt at the target.
    rig.target
        .exec("UPDATE t SET a = 'spoilt' WHERE id % 3 = 0; DELETE FROM t WHERE id % 7 = 0; UPDATE u SET a = 'kept'")
        .await;
    let copying = rig.work.run(&["resnapshot", "t"]);
    let changing = async {
        for id in 1..=100 {
            let (moved, gone) = (3000 + id, 2000 - id);
            rig.source
                .exec(&format!("UPDATE t SET id = {moved} WHERE id = {id}; DELETE FROM t WHERE id = {gone}"))
                .await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let (copied, ()) = tokio::join!(copying, changing);
    assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
    rig.same(ROWS).await;
    rig.target_has("SELECT a FROM u", "kept").await;

    let unknown = rig.work.run(&["resnapshot", "gone"]).await;
    let said = String::from_utf8_lossy(&unknown.stderr).into_owned();
    assert!(unknown.status.code() == Some(2) && said.contains("t, u"), "{said}");
}

/// Rule 12. A table that is added to the configuration is copied, one that is taken out is left as it is.
#[tokio::test(flavor = "multi_thread")]
async fn the_table_list_may_grow_and_shrink_between_two_starts() {
    let at_source =
        "CREATE TABLE t (id int PRIMARY KEY, a varchar(20)); CREATE TABLE u (id int PRIMARY KEY, a varchar(20))";
    let at_target = "CREATE TABLE t (id int PRIMARY KEY, a text); CREATE TABLE u (id int PRIMARY KEY, a text)";
    let rig = Rig::new(Mysql::mariadb().await, Postgres::v18().await, &["t"], at_source, at_target).await;
    rig.source.exec("INSERT INTO t VALUES (1, 't'); INSERT INTO u VALUES (1, 'u'), (2, 'u')").await;
    rig.sync().await;
    let with = rig.work.configuration().replace("[\"t\"]", "[\"t\", \"u\"]");
    let without = with.replace("[\"t\", \"u\"]", "[\"u\"]");
    rig.source.exec("DELETE FROM u WHERE id = 2").await;
    rig.work.configure(&with);
    rig.sync().await;
    rig.target_has("SELECT id, a FROM u ORDER BY id", "1 u").await;
    rig.work.configure(&without);
    rig.source.exec("INSERT INTO t VALUES (2, 'unseen'); INSERT INTO u VALUES (3, 'u')").await;
    rig.sync().await;
    rig.target_has("SELECT id, a FROM u ORDER BY id", "1 u, 3 u").await;
    rig.target_has(ROWS, "1 t").await;
    rig.work.configure(&with);
    rig.sync().await;
    rig.target_has(ROWS, "1 t, 2 unseen").await;
}

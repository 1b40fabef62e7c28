//! Statements of MySQL's and MariaDB's log, end to end: rules 10 to 12 of docs/rules.md through the real binary.
//!
//! What is not understood halts or is answered by a copy; what is known to be harmless costs nothing. What halts
//! everybody who follows a server is tried on one of its own.

use crate::{
    rules_rig::Rig,
    support::{Mysql, Own, Postgres},
};

const ROWS: &str = "SELECT id, a FROM t ORDER BY id";
const COPIES: &str = "SELECT generation, state FROM cutover.tables WHERE source_table = 't'";
const PARTITIONED: &str = "CREATE TABLE t (id int PRIMARY KEY, a int NOT NULL) PARTITION BY RANGE (id)
    (PARTITION p0 VALUES LESS THAN (10), PARTITION p1 VALUES LESS THAN (20))";
const AT_TARGET: &str = "CREATE TABLE t (id int PRIMARY KEY, a int)";

async fn with_rows(source: Mysql, at_source: &str) -> Rig {
    let rig = Rig::new(source, Postgres::v15().await, &["t"], at_source, AT_TARGET).await;
    rig.source.exec("INSERT INTO t VALUES (1, 1), (2, 2), (11, 11)").await;
    rig.sync().await;
    rig
}

/// A worker that follows halts at the statements, and says so with these words.
async fn halts_with(source: Mysql, at_source: &str, statements: &str, words: &[&str]) {
    let rig = with_rows(source, at_source).await;
    let _worker = rig.following().await;
    rig.source.exec(statements).await;
    let status = rig.eventually("halted", async |status| !status["halted"].is_null()).await;
    let said = status["halted"].to_string();
    assert!(words.iter().all(|word| said.contains(word)), "{statements}: {said}");
    rig.target_has(ROWS, "1 1, 2 2, 11 11").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_set_statement_carries_is_what_it_does() {
    let rig = with_rows(Mysql::mariadb().await, PARTITIONED).await;
    rig.source.exec("SET STATEMENT max_statement_time=60 FOR TRUNCATE t; INSERT INTO t VALUES (3, 3)").await;
    rig.sync().await;
    rig.target_has(ROWS, "3 3").await;
    rig.source
        .exec(
            "SET STATEMENT max_statement_time=60 FOR ALTER TABLE t DROP COLUMN a, ADD COLUMN a int NOT NULL DEFAULT 77",
        )
        .await;
    rig.sync().await;
    rig.target_has(ROWS, "3 77").await;
    rig.source.exec("SET STATEMENT max_statement_time=60 FOR ALTER TABLE t DROP PARTITION p0").await;
    let said = rig.halts().await;
    assert!(said.contains("partition") && said.contains("cutover resnapshot"), "{said}");
    let swap = "CREATE TABLE o LIKE t; SET STATEMENT max_statement_time=60 FOR RENAME TABLE t TO t_old, o TO t";
    halts_with(Mysql::mariadb().await, PARTITIONED, swap, &["renamed", "cutover resnapshot"]).await;
}

const WRITER: &str = "CREATE FUNCTION f() RETURNS int MODIFIES SQL DATA BEGIN UPDATE t SET a = 9; RETURN 1; END;
    SET binlog_format = 'STATEMENT'";

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_a_routine_changes_in_a_statement_halt() {
    for own in [Own::Mysql57, Own::Mysql80, Own::Mariadb] {
        let own = own.take().await;
        for statement in ["SELECT f()", "DO f()", "SET @x = f()"] {
            let statements = format!("{WRITER}; {statement}; SET binlog_format = 'ROW'");
            let words = ["logged as a statement", "does not say which tables", "cutover resnapshot"];
            halts_with(Mysql::at(own.url).await, PARTITIONED, &statements, &words).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn row_changes_inside_other_statements_halt_on_mariadb() {
    let own = Own::Mariadb.take().await;
    for statement in [
        "ANALYZE UPDATE t SET a = 9",
        "ANALYZE FORMAT=JSON DELETE FROM t",
        "SET STATEMENT max_statement_time=60 FOR UPDATE t SET a = 9",
    ] {
        let statements = format!("SET binlog_format = 'STATEMENT'; {statement}; SET binlog_format = 'ROW'");
        halts_with(Mysql::at(own.url).await, PARTITIONED, &statements, &["logged as a statement", "it changes"]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_captured_table_that_is_exchanged_with_another_ones_partition_halts() {
    for source in [Mysql::v57().await, Mysql::v80().await, Mysql::v97().await, Mysql::mariadb().await] {
        let change = format!(
            "{}; ALTER TABLE archive EXCHANGE PARTITION p1 WITH TABLE t",
            PARTITIONED.replace("TABLE t", "TABLE archive")
        );
        let change = format!("DELETE FROM t WHERE id < 11; {change}");
        let rig = with_rows(source, "CREATE TABLE t (id int PRIMARY KEY, a int NOT NULL)").await;
        rig.source.exec(&change).await;
        let said = rig.halts().await;
        assert!(said.contains("exchanged with a partition") && said.contains("cutover resnapshot"), "{said}");
        let _worker = rig.copied_again("t").await;
        rig.source.exec("INSERT INTO t VALUES (5, 5)").await;
        rig.target_has(ROWS, "5 5").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn statements_name_tables_as_a_server_that_folds_case_does() {
    for own in [Own::Mysql57, Own::Mariadb] {
        let own = own.take().await;
        own.restart_with("--lower-case-table-names=1");
        let rig = with_rows(Mysql::at(own.url).await, PARTITIONED).await;
        rig.source.exec("TRUNCATE TABLE T; INSERT INTO T VALUES (3, 3)").await;
        rig.sync().await;
        rig.target_has(ROWS, "3 3").await;
        rig.source.exec("ALTER TABLE T DROP COLUMN a, ADD COLUMN A int NOT NULL DEFAULT 77").await;
        rig.sync().await;
        rig.target_has(ROWS, "3 77").await;
        let database = rig.source.database().to_uppercase();
        rig.source.exec(&format!("ALTER TABLE `{database}`.T DROP PARTITION p0")).await;
        let said = rig.halts().await;
        assert!(said.contains("partition"), "{said}");
        halts_with(Mysql::at(own.url).await, PARTITIONED, "RENAME TABLE T TO OLD", &["renamed"]).await;
        halts_with(Mysql::at(own.url).await, PARTITIONED, "DROP TABLE T", &["dropped"]).await;
        own.restart_with("");
    }
}

async fn moved_names_are_copied_again(source: Mysql, changes: &[(&str, &str)]) {
    let at_source = "CREATE TABLE t (id int PRIMARY KEY, net int, gross int, other int)";
    let at_target = "CREATE TABLE t (id int PRIMARY KEY, net int)";
    let rig = Rig::new(source, Postgres::v15().await, &["t"], at_source, at_target).await;
    rig.work.transform("t", "SELECT id, net FROM t");
    rig.source.exec("INSERT INTO t VALUES (1, 10, 20, 30), (2, 11, 21, 31)").await;
    let _worker = rig.following().await;
    for (change, rows) in changes {
        rig.source.exec(change).await;
        rig.target_has("SELECT id, net FROM t ORDER BY id", rows).await;
        assert!(rig.status().await["halted"].is_null(), "{change}");
    }
}

const RENAMES: [(&str, &str); 3] = [
    ("ALTER TABLE t RENAME COLUMN net TO gross, RENAME COLUMN gross TO net", "1 20, 2 21"),
    (
        "ALTER TABLE t RENAME COLUMN net TO x; ALTER TABLE t RENAME COLUMN gross TO net; ALTER TABLE t RENAME COLUMN x TO gross",
        "1 10, 2 11",
    ),
    ("ALTER TABLE t RENAME COLUMN net TO net_old, RENAME COLUMN gross TO net", "1 20, 2 21"),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_moves_to_another_column_has_the_table_copied_again() {
    for source in [Mysql::v80().await, Mysql::v97().await, Mysql::mariadb().await] {
        moved_names_are_copied_again(source, &RENAMES).await;
    }
    let changes = [("ALTER TABLE t CHANGE net gross int, CHANGE gross net int", "1 20, 2 21")];
    moved_names_are_copied_again(Mysql::v57().await, &changes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_no_transform_uses_may_move_without_a_copy() {
    let at_source = "CREATE TABLE t (id int PRIMARY KEY, a int, x int)";
    let rig = Rig::new(Mysql::v80().await, Postgres::v15().await, &["t"], at_source, AT_TARGET).await;
    rig.work.transform("t", "SELECT id, a FROM t");
    rig.source.exec("INSERT INTO t VALUES (1, 1, 1)").await;
    let _worker = rig.following().await;
    rig.source.exec("ALTER TABLE t RENAME COLUMN x TO y; INSERT INTO t VALUES (2, 2, 2)").await;
    rig.target_has(ROWS, "1 1, 2 2").await;
    rig.target_has(COPIES, "1 copied").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_key_that_is_replaced_halts() {
    for source in [Mysql::v57().await, Mysql::v80().await, Mysql::v97().await, Mysql::mariadb().await] {
        let at_source = "CREATE TABLE t (id int NOT NULL, a int NOT NULL, PRIMARY KEY (id))";
        let change = "ALTER TABLE t DROP PRIMARY KEY, ADD PRIMARY KEY (a); UPDATE t SET id = 5 WHERE a = 2";
        halts_with(source, at_source, change, &["primary key", "was changed", "cutover resnapshot"]).await;
    }
    let at_source = "CREATE TABLE t (id int NOT NULL, a int NOT NULL, UNIQUE KEY u (id), UNIQUE KEY v (a))";
    let change = "ALTER TABLE t DROP KEY u; UPDATE t SET id = 5 WHERE a = 2";
    halts_with(Mysql::v57().await, at_source, change, &["told apart by other columns"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_generated_column_over_a_rewritten_one_is_copied_again() {
    for source in [Mysql::v57().await, Mysql::v80().await, Mysql::mariadb().await] {
        let at_source = "CREATE TABLE t (id int PRIMARY KEY, d decimal(10,4), g decimal(12,4) AS (d * 2) VIRTUAL)";
        let at_target = "CREATE TABLE t (id int PRIMARY KEY, g numeric)";
        let rig = Rig::new(source, Postgres::v15().await, &["t"], at_source, at_target).await;
        rig.work.transform("t", "SELECT id, g FROM t");
        rig.source.exec("INSERT INTO t (id, d) VALUES (1, 1.26)").await;
        let _worker = rig.following().await;
        rig.source.exec("SET sql_mode = ''; ALTER TABLE t MODIFY d decimal(10,1)").await;
        rig.target_has("SELECT id, g FROM t", "1 2.6000").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_whose_name_changes_its_case_alone_goes_on() {
    for source in [Mysql::v57().await, Mysql::v80().await, Mysql::v97().await, Mysql::mariadb().await] {
        let at_source = "CREATE TABLE t (id int PRIMARY KEY, a int)";
        let rig = Rig::new(source, Postgres::v15().await, &["t"], at_source, AT_TARGET).await;
        rig.work.transform("t", "SELECT id, a FROM t");
        rig.source.exec("INSERT INTO t VALUES (1, 1)").await;
        let mut worker = rig.following().await;
        rig.source.exec("ALTER TABLE t MODIFY A bigint; INSERT INTO t VALUES (2, 2)").await;
        rig.target_has(ROWS, "1 1, 2 2").await;
        rig.eventually("copied again", async |status| status["synced"] == true).await;
        assert!(rig.status().await["halted"].is_null());
        worker.kill9().await;
        rig.source.exec("INSERT INTO t VALUES (3, 3)").await;
        rig.sync().await;
        rig.target_has(ROWS, "1 1, 2 2, 3 3").await;
    }
}

async fn hidden_columns_are_passed_over(source: Mysql, last: (&str, &str)) {
    let at_source = "CREATE TABLE t (id int PRIMARY KEY, a int, s varchar(9), KEY k ((lower(s))));
        CREATE TABLE beside (id int PRIMARY KEY, s varchar(9), KEY k ((upper(s)), (concat(s, s))))";
    let rig = Rig::new(source, Postgres::v15().await, &["t"], at_source, AT_TARGET).await;
    rig.work.transform("t", "SELECT id, a FROM t");
    rig.source.exec("INSERT INTO t VALUES (1, 1, 'A')").await;
    let _worker = rig.following().await;
    let changes = "INSERT INTO beside VALUES (1, 'x'); UPDATE beside SET s = 'y'; DELETE FROM beside;
        INSERT INTO t VALUES (2, 2, 'B'), (3, 3, NULL); UPDATE t SET a = 9, s = 'C' WHERE id = 1; DELETE FROM t WHERE id = 2;
        ALTER TABLE t ADD KEY l ((upper(s))); INSERT INTO t VALUES (4, 4, 'D')";
    rig.source.exec(&format!("{changes}; {}", last.0)).await;
    rig.target_has(ROWS, last.1).await;
    assert!(rig.status().await["halted"].is_null());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_hidden_column_of_a_functional_index_does_not_halt() {
    let among = ("ALTER TABLE t ADD COLUMN z int; INSERT INTO t VALUES (5, 5, 'E', 5)", "1 9, 3 3, 4 4, 5 5");
    hidden_columns_are_passed_over(Mysql::v80().await, among).await;
    hidden_columns_are_passed_over(Mysql::v97().await, among).await;
    let own = Own::Mysql80.take().await;
    own.restart_with("--binlog-row-metadata=MINIMAL");
    hidden_columns_are_passed_over(Mysql::at(own.url).await, ("DELETE FROM t WHERE id = 3", "1 9, 4 4")).await;
    own.restart_with("");
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_whose_names_differ_only_in_case_are_two() {
    for source in [Mysql::v57().await, Mysql::mariadb().await] {
        let tables =
            "CREATE TABLE `Users` (id int PRIMARY KEY, a int); CREATE TABLE `users` (k int PRIMARY KEY, b int)";
        let at_target = tables.replace('`', "\"");
        let rig = Rig::new(source, Postgres::v15().await, &["Users", "users"], tables, &at_target).await;
        rig.source.exec("INSERT INTO `Users` VALUES (1, 1); INSERT INTO `users` VALUES (2, 2)").await;
        let _worker = rig.following().await;
        rig.source.exec("INSERT INTO `Users` VALUES (3, 3); TRUNCATE TABLE `users`").await;
        rig.target_has("SELECT id, a FROM \"Users\" ORDER BY id", "1 1, 3 3").await;
        rig.target_has("SELECT k, b FROM users", "").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_managed_server_writes_to_its_own_schemas_is_harmless() {
    for source in [Mysql::v57().await, Mysql::v80().await, Mysql::mariadb().await] {
        let rig = with_rows(source, PARTITIONED).await;
        let (database, table) = (rig.source.database().to_owned(), format!("rds_{}", rig.source.database()));
        rig.source
            .exec(&format!(
                "CREATE TABLE mysql.{table} (id int PRIMARY KEY, a int); SET binlog_format = 'STATEMENT';
                 INSERT INTO mysql.{table} (id, a) VALUES (1, 1) ON DUPLICATE KEY UPDATE a = 1;
                 /* of the service */ UPDATE mysql.{table} SET a = 2; USE mysql; INSERT IGNORE INTO {table} VALUES (2, 2);
                 DELETE FROM {table} WHERE id = 1; USE {database}; SET binlog_format = 'ROW'; DROP TABLE mysql.{table};
                 INSERT INTO t VALUES (3, 3)"
            ))
            .await;
        rig.sync().await;
        rig.target_has(ROWS, "1 1, 2 2, 3 3, 11 11").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tools_row_changes_as_statements_pass_where_they_reach_nothing_captured() {
    for own in [Own::Mysql57, Own::Mysql80, Own::Mariadb] {
        let own = own.take().await;
        let beat = "CREATE TABLE beat (id int AUTO_INCREMENT PRIMARY KEY, ts datetime, n int)";
        let rig = with_rows(Mysql::at(own.url).await, &format!("{PARTITIONED}; {beat}")).await;
        rig.source
            .exec(
                "SET binlog_format = 'STATEMENT'; SET @n = 4; INSERT INTO beat (ts, n) VALUES (NOW(), @n);
                 REPLACE INTO beat (id, ts, n) SELECT 1, NOW(), COUNT(*) FROM t; UPDATE beat SET n = n + 1 WHERE id = 1;
                 BEGIN; INSERT INTO beat (ts) VALUES (NOW()); DELETE FROM beat WHERE n > 99; COMMIT;
                 SET binlog_format = 'ROW'; INSERT INTO t VALUES (3, 3)",
            )
            .await;
        rig.sync().await;
        rig.target_has(ROWS, "1 1, 2 2, 3 3, 11 11").await;
        rig.source
            .exec(
                "CREATE TRIGGER g AFTER UPDATE ON beat FOR EACH ROW UPDATE t SET a = 9; SET binlog_format = 'STATEMENT';
                 UPDATE beat SET n = 7; SET binlog_format = 'ROW'",
            )
            .await;
        let said = rig.halts().await;
        assert!(said.contains("triggers") && said.contains("binlog_format = ROW"), "{said}");

        let tables = "CREATE TABLE p (id int PRIMARY KEY); CREATE TABLE q (id int PRIMARY KEY, FOREIGN KEY (id) REFERENCES p (id)
             ON DELETE CASCADE); CREATE TABLE t (id int PRIMARY KEY, a int, FOREIGN KEY (a) REFERENCES q (id) ON DELETE CASCADE);
             INSERT INTO p VALUES (1), (2), (11); INSERT INTO q VALUES (1), (2), (11)";
        let cascade = "SET binlog_format = 'STATEMENT'; DELETE FROM p WHERE id = 1; SET binlog_format = 'ROW'";
        halts_with(Mysql::at(own.url).await, tables, cascade, &["foreign keys lead"]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_was_rolled_back_beside_a_temporary_table_is_nothing() {
    let rig = with_rows(Mysql::mariadb().await, PARTITIONED).await;
    let _worker = rig.following().await;
    rig.source
        .exec(
            "BEGIN; INSERT INTO t VALUES (3, 3); UPDATE t SET a = 9; CREATE TEMPORARY TABLE tt (a int); ROLLBACK;
             BEGIN; DELETE FROM t; DROP TEMPORARY TABLE tt; ROLLBACK; INSERT INTO t VALUES (4, 4)",
        )
        .await;
    rig.target_has(ROWS, "1 1, 2 2, 4 4, 11 11").await;
    assert!(rig.status().await["halted"].is_null());
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_a_rebuild_may_leave_out_are_copied_again() {
    let rig = with_rows(Mysql::mariadb().await, "CREATE TABLE t (id int PRIMARY KEY, a int NOT NULL)").await;
    let _worker = rig.following().await;
    rig.source.exec("UPDATE t SET a = 1 WHERE id = 2; ALTER IGNORE TABLE t ADD UNIQUE (a)").await;
    rig.target_has(ROWS, "1 1, 11 11").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn check_blocks_on_a_source_that_leaves_changes_out_of_its_log() {
    let own = Own::Mysql57.take().await;
    for option in ["--binlog-ignore-db=elsewhere", "--binlog-do-db=elsewhere"] {
        own.restart_with(option);
        let rig = Rig::new(Mysql::at(own.url).await, Postgres::v15().await, &["t"], AT_TARGET, AT_TARGET).await;
        let check = rig.work.run(&["check"]).await;
        let said = String::from_utf8_lossy(&check.stdout).into_owned();
        let named = option.trim_start_matches("--").replace('=', " = ");
        assert!(check.status.code() == Some(1) && said.contains(&named), "{:?} {said}", check.status);
    }
    own.restart_with("");
}

/// What is deleted from such a table stays in it with an end, and its log shows an update.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_becomes_versioned_halts() {
    let at_source = "CREATE TABLE t (id int PRIMARY KEY, a int NOT NULL)";
    let statements = "ALTER TABLE t ADD SYSTEM VERSIONING; DELETE FROM t WHERE id = 1";
    halts_with(Mysql::mariadb().await, at_source, statements, &["SYSTEM VERSIONING"]).await;
}

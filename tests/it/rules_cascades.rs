//! What foreign keys of the source do to children unseen, end to end: rules 11 and 38 of docs/rules.md through the real
//! binary.
//!
//! The servers carry a change of a parent over to its children and log nothing of it. Every test ends with both sides
//! equal, while a worker follows and where it was stopped meanwhile.

use std::time::Duration;

use crate::{
    rules_rig::Rig,
    support::{Mysql, Postgres, Worker},
};

const PARENTS_AND_CHILDREN: &str = "CREATE TABLE p (id int PRIMARY KEY, a int);
    CREATE TABLE t (id int PRIMARY KEY, p int, b int, FOREIGN KEY (p) REFERENCES p (id) ON DELETE CASCADE);
    CREATE TABLE n (id int PRIMARY KEY, p int, FOREIGN KEY (p) REFERENCES p (id) ON DELETE SET NULL ON UPDATE CASCADE)";
const AT_TARGET: &str = "CREATE TABLE p (id int PRIMARY KEY, a int); CREATE TABLE t (id int PRIMARY KEY, p int, b int);
    CREATE TABLE n (id int PRIMARY KEY, p int)";
const ROWS: [&str; 3] =
    ["SELECT id, a FROM p ORDER BY id", "SELECT id, p, b FROM t ORDER BY id", "SELECT id, p FROM n ORDER BY id"];

async fn family(source: Mysql, target: Postgres) -> Rig {
    let rig = Rig::new(source, target, &["p", "t", "n"], PARENTS_AND_CHILDREN, AT_TARGET).await;
    rig.source
        .exec(
            "INSERT INTO p VALUES (1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (6, 6);
             INSERT INTO t VALUES (1, 1, 1), (2, 2, 2), (3, 1, 3), (4, 3, 4), (5, NULL, 5), (6, 4, 6);
             INSERT INTO n VALUES (1, 5), (2, 2), (3, 5), (4, 6), (5, NULL), (6, 1)",
        )
        .await;
    rig
}

/// What happens to parents: gone, given another key, deleted and made again, replaced.
const CHANGES: &str = "DELETE FROM p WHERE id = 1;
    BEGIN; DELETE FROM p WHERE id = 3; INSERT INTO p VALUES (3, 33); COMMIT;
    REPLACE INTO p VALUES (4, 44);
    UPDATE p SET id = 15 WHERE id = 5;
    DELETE FROM p WHERE id = 6; INSERT INTO p VALUES (6, 66); INSERT INTO t VALUES (7, 6, 7)";

async fn same(rig: &Rig, queries: &[&str]) {
    for query in queries {
        rig.same(query).await;
    }
    rig.eventually("nothing is left", async |status| status["synced"] == true && status["cascades"] == 0).await;
    for query in queries {
        assert_eq!(rig.source.query(query).await, rig.target.query(query).await, "{query}");
    }
}

/// Runs changes of the source while a worker follows.
async fn live(rig: &Rig, changes: &str, queries: &[&str]) -> Worker {
    let worker = rig.following().await;
    rig.source.exec(changes).await;
    same(rig, queries).await;
    worker
}

/// Runs changes of the source while the worker is stopped.
async fn stopped(rig: &Rig, changes: &str, queries: &[&str]) {
    rig.sync().await;
    rig.source.exec(changes).await;
    rig.sync().await;
    for query in queries {
        assert_eq!(rig.source.query(query).await, rig.target.query(query).await, "{query}");
    }
}

async fn every_old_server() -> Vec<Mysql> {
    vec![Mysql::v57().await, Mysql::v80().await, Mysql::mariadb().await]
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_38_children_follow_what_happens_to_their_parents() {
    for source in every_old_server().await {
        let rig = family(source, Postgres::v15().await).await;
        let _worker = live(&rig, CHANGES, &ROWS).await;
        rig.target_has(ROWS[1], "2 2 2, 5 null 5, 7 6 7").await;
        rig.target_has(ROWS[2], "1 15, 2 2, 3 15, 4 null, 5 null, 6 null").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_38_what_happened_to_parents_while_the_worker_was_stopped_is_followed() {
    for source in every_old_server().await {
        let rig = family(source, Postgres::v18().await).await;
        stopped(&rig, CHANGES, &ROWS).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_38_a_server_that_logs_cascades_is_asked_nothing() {
    let rig = family(Mysql::v97().await, Postgres::v15().await).await;
    let _worker = live(&rig, CHANGES, &ROWS).await;
    assert!(
        rig.target.query("SELECT 1 FROM cutover.notes WHERE key = 'foreign keys that act unseen'").await.is_empty()
    );
}

/// The worker is killed again and again between a parent's delete and the end of what follows.
#[tokio::test(flavor = "multi_thread")]
async fn rule_38_a_worker_that_is_killed_in_between_loses_nothing() {
    let rig = family(Mysql::v80().await, Postgres::v15().await).await;
    for id in 100..400 {
        rig.source.exec(&format!("INSERT INTO p VALUES ({id}, 0); INSERT INTO t VALUES ({id}, {id}, 0)")).await;
    }
    rig.sync().await;
    for (round, pause) in [5, 40, 120, 250, 400, 700].into_iter().enumerate() {
        let mut worker = rig.following().await;
        let from = 100 + round * 50;
        rig.source.exec(&format!("DELETE FROM p WHERE id >= {from} AND id < {}", from + 50)).await;
        tokio::time::sleep(Duration::from_millis(pause)).await;
        worker.kill9().await;
    }
    rig.source.exec(CHANGES).await;
    rig.sync().await;
    for query in ROWS {
        assert_eq!(rig.source.query(query).await, rig.target.query(query).await, "{query}");
    }
}

/// Grandchildren, a tree in one table, and a ring of two tables.
#[tokio::test(flavor = "multi_thread")]
async fn rule_38_cascades_go_to_any_depth_and_in_circles() {
    let at_source = "CREATE TABLE p (id int PRIMARY KEY);
        CREATE TABLE c (id int PRIMARY KEY, p int, FOREIGN KEY (p) REFERENCES p (id) ON DELETE CASCADE);
        CREATE TABLE g (id int PRIMARY KEY, c int, FOREIGN KEY (c) REFERENCES c (id) ON DELETE CASCADE);
        CREATE TABLE h (id int PRIMARY KEY, g int, FOREIGN KEY (g) REFERENCES g (id) ON DELETE SET NULL);
        CREATE TABLE tree (id int PRIMARY KEY, up int, FOREIGN KEY (up) REFERENCES tree (id) ON DELETE CASCADE);
        CREATE TABLE r (id int PRIMARY KEY, s int);
        CREATE TABLE s (id int PRIMARY KEY, r int, FOREIGN KEY (r) REFERENCES r (id) ON DELETE CASCADE);
        ALTER TABLE r ADD FOREIGN KEY (s) REFERENCES s (id) ON DELETE CASCADE";
    let at_target = "CREATE TABLE p (id int PRIMARY KEY); CREATE TABLE c (id int PRIMARY KEY, p int);
        CREATE TABLE g (id int PRIMARY KEY, c int); CREATE TABLE h (id int PRIMARY KEY, g int);
        CREATE TABLE tree (id int PRIMARY KEY, up int); CREATE TABLE r (id int PRIMARY KEY, s int);
        CREATE TABLE s (id int PRIMARY KEY, r int)";
    let tables = ["p", "c", "g", "h", "tree", "r", "s"];
    let queries = [
        "SELECT id FROM p ORDER BY id",
        "SELECT id, p FROM c ORDER BY id",
        "SELECT id, c FROM g ORDER BY id",
        "SELECT id, g FROM h ORDER BY id",
        "SELECT id, up FROM tree ORDER BY id",
        "SELECT id, s FROM r ORDER BY id",
        "SELECT id, r FROM s ORDER BY id",
    ];
    for source in every_old_server().await {
        let rig = Rig::new(source, Postgres::v15().await, &tables, at_source, at_target).await;
        rig.source
            .exec(
                "INSERT INTO p VALUES (1), (2), (3); INSERT INTO c VALUES (10, 1), (11, 1), (12, 2), (13, 3);
                 INSERT INTO g VALUES (100, 10), (101, 11), (102, 12), (103, 10), (104, 13);
                 INSERT INTO h VALUES (1, 100), (2, 102), (3, 103), (4, 104);
                 INSERT INTO tree VALUES (1, NULL), (2, 1), (3, 2), (4, 3), (5, NULL), (6, 5);
                 INSERT INTO r VALUES (1, NULL), (2, NULL); INSERT INTO s VALUES (1, 1), (2, 2);
                 UPDATE r SET s = 1 WHERE id = 1; UPDATE r SET s = 1 WHERE id = 2",
            )
            .await;
        // A child that comes again under the same key, at once, must not hide that its own children went.
        let changes = "DELETE FROM p WHERE id = 1; DELETE FROM tree WHERE id = 1; DELETE FROM r WHERE id = 1;
            BEGIN; DELETE FROM p WHERE id = 3; INSERT INTO p VALUES (3); INSERT INTO c VALUES (13, 3); COMMIT;
            INSERT INTO g VALUES (105, 13)";
        let _worker = live(&rig, changes, &queries).await;
        rig.target_has(queries[2], "102 12, 105 13").await;
        rig.target_has(queries[3], "1 null, 2 102, 3 null, 4 null").await;
        rig.target_has(queries[4], "5 null, 6 5").await;
    }
}

/// Keys of several columns that go from parent to child and on, and of texts that differ in case.
#[tokio::test(flavor = "multi_thread")]
async fn rule_38_composite_keys_and_texts_are_led_back() {
    let at_source = "CREATE TABLE p (a int, b varchar(20), PRIMARY KEY (a, b)) CHARACTER SET utf8mb4;
        CREATE TABLE c (a int, b varchar(20), n int, PRIMARY KEY (a, b, n), FOREIGN KEY (a, b) REFERENCES p (a, b)
            ON DELETE CASCADE ON UPDATE CASCADE) CHARACTER SET utf8mb4;
        CREATE TABLE g (id bigint unsigned PRIMARY KEY, a int, b varchar(20), n int,
            FOREIGN KEY (a, b, n) REFERENCES c (a, b, n) ON DELETE CASCADE ON UPDATE CASCADE) CHARACTER SET utf8mb4";
    let at_target = "CREATE TABLE p (a int, b text, PRIMARY KEY (a, b));
        CREATE TABLE c (a int, b text, n int, PRIMARY KEY (a, b, n));
        CREATE TABLE g (id numeric(20) PRIMARY KEY, a int, b text, n int)";
    let queries = [
        "SELECT a, b FROM p ORDER BY a",
        "SELECT a, b, n FROM c ORDER BY a, n",
        "SELECT id, a, b, n FROM g ORDER BY id",
    ];
    for source in every_old_server().await {
        let rig = Rig::new(source, Postgres::v15().await, &["p", "c", "g"], at_source, at_target).await;
        rig.source
            .exec(
                "INSERT INTO p VALUES (1, 'ab'), (2, 'cd'), (3, 'caf\u{e9}'), (4, 'x');
                 INSERT INTO c VALUES (1, 'AB', 1), (1, 'ab', 2), (2, 'cd', 1), (3, 'CAF\u{c9}', 1), (4, 'x', 1);
                 INSERT INTO g VALUES (18446744073709551615, 1, 'Ab', 1), (2, 2, 'cd', 1), (3, 3, 'caf\u{e9}', 1), (4, 4, 'X', 1)",
            )
            .await;
        let changes = "DELETE FROM p WHERE a = 1; UPDATE p SET b = 'new' WHERE a = 2; DELETE FROM p WHERE a = 3;
            UPDATE p SET a = 5 WHERE a = 4";
        let _worker = live(&rig, changes, &queries).await;
        rig.target_has(queries[1], "2 new 1, 5 x 1").await;
    }
}

/// A key that is added while a worker follows, and one that was added and dropped again when its log is read.
#[tokio::test(flavor = "multi_thread")]
async fn rule_38_a_key_that_is_added_while_following_is_followed_too() {
    for source in every_old_server().await {
        let at_source = "CREATE TABLE p (id int PRIMARY KEY); CREATE TABLE t (id int PRIMARY KEY, p int)";
        let at_target = "CREATE TABLE p (id int PRIMARY KEY); CREATE TABLE t (id int PRIMARY KEY, p int)";
        let rig = Rig::new(source, Postgres::v15().await, &["p", "t"], at_source, at_target).await;
        rig.source.exec("INSERT INTO p VALUES (1), (2), (3); INSERT INTO t VALUES (1, 1), (2, 2), (3, 3)").await;
        let queries = ["SELECT id FROM p ORDER BY id", "SELECT id, p FROM t ORDER BY id"];
        let add = "ALTER TABLE t ADD CONSTRAINT fk FOREIGN KEY (p) REFERENCES p (id) ON DELETE CASCADE";
        let worker = live(&rig, &format!("{add}; DELETE FROM p WHERE id = 1"), &queries).await;
        worker.terminate().await;
        drop(worker);
        // The key is gone from the catalog before its log is read.
        stopped(&rig, "DELETE FROM p WHERE id = 2; ALTER TABLE t DROP FOREIGN KEY fk", &queries).await;
    }
}

/// Several partitions: the children's are not that of the parent.
#[tokio::test(flavor = "multi_thread")]
async fn rule_38_cascades_reach_children_in_every_partition() {
    let rig = family(Mysql::v80().await, Postgres::v15().await).await;
    rig.work.configure_also("[log]\npartitions = 4\n");
    let _worker = rig.following().await;
    for round in 0..10 {
        let id = 100 + round;
        let children: Vec<String> = (0..40).map(|n| format!("({}, {id}, 0)", id * 100 + n)).collect();
        rig.source
            .exec(&format!(
                "INSERT INTO p VALUES ({id}, 0); INSERT INTO t VALUES {}; DELETE FROM p WHERE id = {id};
                 INSERT INTO p VALUES ({id}, 1); INSERT INTO t VALUES ({}, {id}, 1)",
                children.join(", "),
                id * 100
            ))
            .await;
    }
    rig.source.exec(CHANGES).await;
    same(&rig, &ROWS).await;
}

/// Copied rows that were read before their parent went, and come to the target after that.
#[tokio::test(flavor = "multi_thread")]
async fn rule_38_rows_that_were_copied_before_their_parent_went_follow_it() {
    let rig = family(Mysql::v80().await, Postgres::v15().await).await;
    let _worker = rig.following().await;
    let held = rig.hold_copied_rows().await;
    rig.copy_again_into_the_log("t").await;
    rig.source.exec(CHANGES).await;
    rig.target_has(ROWS[0], "2 2, 3 33, 4 44, 6 66, 15 5").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    drop(held);
    same(&rig, &ROWS).await;
}

/// A copy of many chunks runs while parents, children and grandchildren come and go.
#[tokio::test(flavor = "multi_thread")]
async fn rule_38_a_copy_beside_cascades_ends_as_the_source() {
    let at_source = "CREATE TABLE p (id int PRIMARY KEY);
        CREATE TABLE c (id int PRIMARY KEY, p int, FOREIGN KEY (p) REFERENCES p (id) ON DELETE CASCADE);
        CREATE TABLE g (id int PRIMARY KEY, c int, FOREIGN KEY (c) REFERENCES c (id) ON DELETE CASCADE);
        CREATE TABLE tree (id int PRIMARY KEY, up int, FOREIGN KEY (up) REFERENCES tree (id) ON DELETE CASCADE)";
    let at_target = "CREATE TABLE p (id int PRIMARY KEY); CREATE TABLE c (id int PRIMARY KEY, p int);
        CREATE TABLE g (id int PRIMARY KEY, c int); CREATE TABLE tree (id int PRIMARY KEY, up int)";
    // Grandchildren are copied first.
    let rig = Rig::new(Mysql::v80().await, Postgres::v15().await, &["g", "tree", "c", "p"], at_source, at_target).await;
    rig.work.configure_also("[snapshot]\nchunk_rows = 100\nparallel = 2\n");
    let list = |count: i64, row: &dyn Fn(i64) -> String| (1..=count).map(row).collect::<Vec<_>>().join(", ");
    rig.source
        .exec(&format!(
            "INSERT INTO p VALUES {}; INSERT INTO c VALUES {}; INSERT INTO g VALUES {}; INSERT INTO tree VALUES {}",
            list(300, &|id| format!("({id})")),
            list(1500, &|id| format!("({id}, {})", 1 + id % 300)),
            list(3000, &|id| format!("({id}, {})", 1501 - (1 + id % 1500))),
            list(1500, &|id| format!("({id}, NULL)")),
        ))
        .await;
    rig.source.exec("UPDATE tree SET up = 1481 + id % 20 WHERE id <= 1480 AND id > 700; UPDATE tree SET up = 701 + id WHERE id <= 700").await;
    let _worker = rig.work.start(&[]);
    for id in 1..=150 {
        rig.source.exec(&format!("DELETE FROM p WHERE id = {}", id * 2)).await;
        if id % 10 == 0 {
            rig.source.exec(&format!("DELETE FROM tree WHERE id = {}", 1480 + id / 10)).await;
        }
    }
    let queries = [
        "SELECT id FROM p ORDER BY id",
        "SELECT id, p FROM c ORDER BY id",
        "SELECT id, c FROM g ORDER BY id",
        "SELECT id, up FROM tree ORDER BY id",
    ];
    same(&rig, &queries).await;
}

/// A parent, or a table between, that is not captured, and a child whose transform does not show the parent's key.
#[tokio::test(flavor = "multi_thread")]
async fn rule_38_tables_that_are_not_captured_and_columns_that_are_not_shown_are_followed() {
    let at_source = "CREATE TABLE outside (id int PRIMARY KEY);
        CREATE TABLE between_them (id int PRIMARY KEY, o int, FOREIGN KEY (o) REFERENCES outside (id) ON DELETE CASCADE);
        CREATE TABLE t (id int PRIMARY KEY, b int, FOREIGN KEY (b) REFERENCES between_them (id) ON DELETE CASCADE);
        CREATE TABLE u (id int PRIMARY KEY, o int, FOREIGN KEY (o) REFERENCES outside (id) ON DELETE CASCADE);
        CREATE TABLE v (id int PRIMARY KEY, o int, FOREIGN KEY (o) REFERENCES outside (id) ON DELETE SET NULL)";
    let at_target = "CREATE TABLE t (id int PRIMARY KEY, b int); CREATE TABLE u (id int PRIMARY KEY, o int);
        CREATE TABLE v (id text PRIMARY KEY, twice int)";
    for source in every_old_server().await {
        let rig = Rig::new(source, Postgres::v15().await, &["t", "u", "v"], at_source, at_target).await;
        rig.work.transform("v", "SELECT id::text AS id, o * 2 AS twice FROM v");
        rig.source
            .exec(
                "INSERT INTO outside VALUES (1), (2); INSERT INTO between_them VALUES (10, 1), (20, 2);
                 INSERT INTO t VALUES (1, 10), (2, 20), (3, NULL); INSERT INTO u VALUES (1, 1), (2, 2);
                 INSERT INTO v VALUES (1, 1), (2, 2)",
            )
            .await;
        let queries = ["SELECT id, b FROM t ORDER BY id", "SELECT id, o FROM u ORDER BY id"];
        let _worker = live(&rig, "DELETE FROM outside WHERE id = 1", &queries).await;
        rig.target_has("SELECT id, twice FROM v ORDER BY id", "1 null, 2 4").await;
        rig.target_has(queries[0], "2 20, 3 null").await;
    }
}

/// A new copy and a replay agree with what was followed.
#[tokio::test(flavor = "multi_thread")]
async fn rule_38_a_new_copy_and_a_replay_bring_nothing_back() {
    let rig = family(Mysql::v80().await, Postgres::v15().await).await;
    let _worker = live(&rig, CHANGES, &ROWS).await;
    let replayed = rig.work.run(&["replay", "--from", "beginning"]).await;
    assert!(replayed.status.success(), "{}", String::from_utf8_lossy(&replayed.stderr));
    same(&rig, &ROWS).await;
    let copied = rig.work.run(&["resnapshot", "t"]).await;
    assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
    same(&rig, &ROWS).await;
    rig.source.exec("DELETE FROM p WHERE id = 2").await;
    same(&rig, &ROWS).await;
}

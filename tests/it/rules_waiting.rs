//! Rows that wait (rules 5 and 26): what frees them, rings, parents that never come, and how all that is told.

use std::{sync::Arc, time::Duration};

use cutover::{
    log::Topic,
    model::{ColumnType, TableSchema},
    target::{BatchEvent, Sink},
};
use serde_json::{Value, json};

use crate::{
    apply_rig::{Rig, insert, read, table},
    rules_rig,
    support::{Mysql, Postgres, Worker, Workspace},
};

const SOON: Duration = Duration::from_secs(120);

fn two(name: &str) -> Arc<TableSchema> {
    table(name, &[("id", ColumnType::BigInt), ("other", ColumnType::BigInt)])
}

fn pair(id: i64, other: i64) -> Value {
    json!({ "id": id, "other": other })
}

/// Two tables that refer to each other.
fn ring(deferral: &str) -> String {
    format!(
        "CREATE TABLE stores (id bigint PRIMARY KEY, other bigint NOT NULL);
         CREATE TABLE staff (id bigint PRIMARY KEY, other bigint NOT NULL REFERENCES stores {deferral});
         ALTER TABLE stores ADD CONSTRAINT manager FOREIGN KEY (other) REFERENCES staff {deferral}"
    )
}

#[tokio::test]
async fn rule_5_rows_that_refer_to_each_other_come_in_together() {
    let (stores, staff) = (two("stores"), two("staff"));
    let rig = Rig::new(&ring("DEFERRABLE INITIALLY DEFERRED"), &[stores.clone(), staff.clone()], &[]).await;
    let mut lane = rig.lane(Topic::Changes).await;
    // Among others whose store never comes.
    let lost: Vec<BatchEvent> = (100..130).map(|id| insert(&staff, id, &pair(id, 99))).collect();
    assert_eq!(lane.apply(lost).await.waiting, 30);
    let persons: Vec<BatchEvent> = (1..=20).map(|id| insert(&staff, 200 + id, &pair(id, id % 4))).collect();
    assert_eq!(lane.apply(persons).await.waiting, 50);
    lane.apply((0..4).map(|id| insert(&stores, 300 + id, &pair(id, id + 1))).collect()).await;
    let retried = lane.sink.retry_waiting().await.unwrap();
    assert_eq!(retried.waiting, 30);
    assert_eq!((rig.count("stores").await, rig.count("staff").await), (4, 20));
}

const FAMILY: &str = "CREATE TABLE parents (id bigint PRIMARY KEY, other bigint);
    CREATE TABLE children (id bigint PRIMARY KEY, other bigint REFERENCES parents DEFERRABLE INITIALLY DEFERRED)";

#[tokio::test]
async fn rule_5_a_parent_that_comes_frees_its_own_children_first_whoever_else_waits() {
    let (parents, children) = (two("parents"), two("children"));
    let rig = Rig::new(FAMILY, &[parents.clone(), children.clone()], &[]).await;
    let (mut lane, mut copy) = (rig.lane(Topic::Changes).await, rig.lane(Topic::Snapshot).await);
    // More than one round tries, and older.
    let lost: Vec<BatchEvent> = (0..1500).map(|id| insert(&children, 1 + id, &pair(id, 77))).collect();
    assert_eq!(lane.apply(lost).await.waiting, 1500);
    let held: Vec<BatchEvent> = (2000..2600).map(|id| insert(&children, id, &pair(id, id % 3))).collect();
    assert_eq!(lane.apply(held).await.waiting, 2100);
    let applied = lane.apply(vec![insert(&parents, 3000, &pair(0, 0))]).await;
    assert_eq!(applied.freed, 200);
    let retried = lane.sink.retry_waiting().await.unwrap();
    assert_eq!((retried.waiting, retried.tables["children"].inserted), (1900, 200));
    // Also where the copy brings it.
    let applied = copy.apply(vec![read(&parents, 3001, &pair(1, 0)), read(&parents, 3001, &pair(2, 0))]).await;
    assert_eq!(applied.freed, 400);
    let retried = lane.sink.retry_waiting().await.unwrap();
    assert_eq!((retried.waiting, retried.tables["children"].inserted), (1500, 400));
}

/// What a freed child costs: `cargo test --release --test it freed_children_a_second -- --ignored --nocapture`.
#[tokio::test]
#[ignore = "a measurement"]
async fn freed_children_a_second() {
    let (parents, children) = (two("parents"), two("children"));
    let rig = Rig::new(FAMILY, &[parents.clone(), children.clone()], &[]).await;
    let mut lane = rig.lane(Topic::Changes).await;
    for batch in 0..60 {
        let rows = (0..2000).map(|row| batch * 2000 + row);
        lane.apply(rows.map(|id| insert(&children, 1 + id, &pair(id, id % 500))).collect()).await;
    }
    assert_eq!(rig.count("cutover.waiting").await, 120_000);
    let started = tokio::time::Instant::now();
    lane.apply((0..500).map(|id| insert(&parents, 200_000 + id, &pair(id, 0))).collect()).await;
    let mut waiting = 120_000;
    while waiting > 0 {
        waiting = lane.sink.retry_waiting().await.unwrap().waiting;
    }
    let seconds = started.elapsed().as_secs_f64();
    println!("120,000 children in {seconds:.1} s: {:.0} a second", 120_000.0 / seconds);
    assert_eq!(rig.count("children").await, 120_000);
}

/// A pipeline whose target role has to obey foreign keys.
struct Obedient {
    rig: rules_rig::Rig,
}

impl Obedient {
    async fn new(source: Mysql, target: Postgres, tables: &[&str], at_source: &str, at_target: &str) -> Self {
        let rig = rules_rig::Rig::new(source, target, tables, at_source, at_target).await;
        let role = rig.target.role("secret").await;
        let own: Vec<String> = tables.iter().map(|table| format!("ALTER TABLE {table} OWNER TO {role};")).collect();
        let grant = format!("GRANT CREATE ON DATABASE {} TO {role}; {}", rig.target.database(), own.concat());
        rig.target.exec(&grant).await;
        let url = rig.target.url_as(&role, "secret");
        let work = Workspace::new(rig.source.database(), &rig.source.url(), &url, tables);
        Obedient { rig: rules_rig::Rig { work, ..rig } }
    }

    /// Runs a worker until it is synced: exit code and standard error.
    async fn until_synced(&self) -> (Option<i32>, String) {
        let mut worker: Worker = self.rig.work.start(&["--until-synced"]);
        let code = worker.wait_exit(SOON).await.code();
        (code, worker.stderr())
    }
}

const SAKILA: &str = "CREATE TABLE staff (id int PRIMARY KEY, other int NOT NULL);
    CREATE TABLE stores (id int PRIMARY KEY, other int NOT NULL);
    INSERT INTO staff VALUES (1, 1), (2, 2), (3, 2), (4, 1);
    INSERT INTO stores VALUES (1, 1), (2, 2)";

#[tokio::test(flavor = "multi_thread")]
async fn a_ring_of_deferrable_keys_is_copied_by_a_role_that_obeys_them() {
    let at_target = ring("DEFERRABLE INITIALLY DEFERRED");
    let tables = ["staff", "stores"];
    let run = Obedient::new(Mysql::v80().await, Postgres::v15().await, &tables, SAKILA, &at_target).await;
    let checked = run.rig.work.run(&["check"]).await;
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
    let (code, said) = run.until_synced().await;
    assert_eq!(code, Some(0), "{said}");
    run.rig.same("SELECT id, other FROM staff ORDER BY 1").await;
    run.rig.same("SELECT id, other FROM stores ORDER BY 1").await;
    // Another ring, in one transaction of the source.
    let _worker = run.rig.work.start(&[]);
    run.rig.source.exec("BEGIN; INSERT INTO staff VALUES (9, 9); INSERT INTO stores VALUES (9, 9); COMMIT").await;
    run.rig.same("SELECT id, other FROM staff ORDER BY 1").await;
    run.rig.same("SELECT id, other FROM stores ORDER BY 1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_is_copied_when_those_it_refers_to_are_in_and_beside_all_others() {
    let at_source = "CREATE TABLE items (id int PRIMARY KEY, other int NOT NULL);
        CREATE TABLE orders (id int PRIMARY KEY, other int NOT NULL);
        CREATE TABLE users (id int PRIMARY KEY, other int NOT NULL);
        CREATE TABLE alone (id int PRIMARY KEY, other int NOT NULL);
        INSERT INTO users SELECT 10 * a.n + b.n, 0 FROM (SELECT 0 n UNION SELECT 1 UNION SELECT 2) a,
            (SELECT 1 n UNION SELECT 2 UNION SELECT 3) b;
        INSERT INTO orders SELECT id, id FROM users; INSERT INTO items SELECT id, id FROM users;
        INSERT INTO alone SELECT id, id FROM users";
    let at_target = "CREATE TABLE users (id int PRIMARY KEY, other int NOT NULL);
        CREATE TABLE orders (id int PRIMARY KEY, other int NOT NULL REFERENCES users);
        CREATE TABLE items (id int PRIMARY KEY, other int NOT NULL REFERENCES orders);
        CREATE TABLE alone (id int PRIMARY KEY, other int NOT NULL)";
    let tables = ["items", "orders", "users", "alone"];
    let run = Obedient::new(Mysql::v80().await, Postgres::v15().await, &tables, at_source, at_target).await;
    let (code, said) = run.until_synced().await;
    assert_eq!(code, Some(0), "{said}");
    let order = "SELECT string_agg(format('%s after %s', c.source_table, p.source_table), ', ' ORDER BY c.position)
        FROM cutover.tables p JOIN cutover.tables c ON c.started_at >= p.finished_at
        WHERE (p.source_table, c.source_table) IN (('users', 'orders'), ('orders', 'items'))";
    assert_eq!(run.rig.target.value(order).await.as_deref(), Some("orders after users, items after orders"));
    let beside = "SELECT a.started_at < u.finished_at FROM cutover.tables a, cutover.tables u
        WHERE a.source_table = 'alone' AND u.source_table = 'users'";
    assert_eq!(run.rig.target.value(beside).await.as_deref(), Some("t"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ring_of_immediate_keys_is_told_by_check_by_status_and_at_the_end() {
    let tables = ["staff", "stores", "t"];
    let at_source = format!("{SAKILA}; CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)");
    let at_target = format!("{}; CREATE TABLE t (id int PRIMARY KEY)", ring(""));
    let run = Obedient::new(Mysql::v57().await, Postgres::v18().await, &tables, &at_source, &at_target).await;
    let checked = run.rig.work.run(&["check"]).await;
    let found = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(!checked.status.success() && found.contains("form a ring") && found.contains("manager"), "{found}");
    let (code, said) = run.until_synced().await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("wait since") && said.contains("\"manager\"") && said.contains("DEFERRABLE"), "{said}");
    run.rig.target_has("SELECT count(*) FROM t", "1").await;
    let status = run.rig.status().await;
    assert_eq!(status["waiting"], 6);
    let reasons: Vec<&str> =
        status["waiting_for"].as_array().unwrap().iter().map(|w| w["reason"].as_str().unwrap()).collect();
    assert!(reasons.iter().any(|reason| reason.contains("\"manager\"")), "{reasons:?}");
    let shown = run.rig.work.run(&["status"]).await;
    assert!(String::from_utf8_lossy(&shown.stdout).contains("violates foreign key constraint"));
}

#[tokio::test(flavor = "multi_thread")]
async fn children_whose_parent_is_gone_for_good_wait_no_more() {
    let at_source =
        "CREATE TABLE parents (id int PRIMARY KEY); CREATE TABLE children (id int PRIMARY KEY, parent int NOT NULL)";
    let at_target = "CREATE TABLE parents (id int PRIMARY KEY);
        CREATE TABLE children (id int PRIMARY KEY, parent int NOT NULL REFERENCES parents DEFERRABLE INITIALLY DEFERRED)";
    let tables = ["children", "parents"];
    let run = Obedient::new(Mysql::mariadb().await, Postgres::v15().await, &tables, at_source, at_target).await;
    let mut worker = run.rig.following().await;
    // Parents are copied first.
    run.rig.target_has("SELECT source_table FROM cutover.tables ORDER BY position", "parents, children").await;
    run.rig.source.exec("INSERT INTO children VALUES (1, 7), (2, 7), (3, 8)").await;
    run.rig.eventually("they wait", async |status| status["waiting"] == 3).await;
    // As a cascade does it: no event tells of the children.
    run.rig.source.exec("SET sql_log_bin = 0; DELETE FROM children WHERE parent = 7; SET sql_log_bin = 1").await;
    run.rig.eventually("those that are gone wait no more", async |status| status["waiting"] == 1).await;
    worker.terminate().await;
    worker.wait_exit(SOON).await;
    // One is at the source, and its parent is not: that is told, and does not keep the rest.
    run.rig.source.exec("INSERT INTO parents VALUES (9)").await;
    let (code, said) = run.until_synced().await;
    assert_eq!(code, Some(1), "{said}");
    run.rig.target_has("SELECT id FROM parents", "9").await;
    run.rig.source.exec("INSERT INTO parents VALUES (8)").await;
    let (code, said) = run.until_synced().await;
    assert_eq!(code, Some(0), "{said}");
    run.rig.same("SELECT id, parent FROM children ORDER BY 1").await;
}

/// A parent is given another key: its old row keeps its unique value, its children keep its old row, and they need the
/// new one.
async fn a_key_changes_hands(deferral: &str) -> Obedient {
    let at_source = "CREATE TABLE users (id int PRIMARY KEY, mail varchar(40) NOT NULL UNIQUE);
        CREATE TABLE orders (id int PRIMARY KEY, user_id int NOT NULL,
            FOREIGN KEY (user_id) REFERENCES users (id) ON DELETE CASCADE ON UPDATE CASCADE);
        INSERT INTO users VALUES (1, 'a@x'), (2, 'b@x');
        INSERT INTO orders VALUES (1, 1), (2, 1), (3, 2)";
    let at_target = format!(
        "CREATE TABLE users (id int PRIMARY KEY, mail text NOT NULL UNIQUE);
         CREATE TABLE orders (id int PRIMARY KEY, user_id int NOT NULL REFERENCES users {deferral})"
    );
    let run =
        Obedient::new(Mysql::v57().await, Postgres::v15().await, &["users", "orders"], at_source, &at_target).await;
    let (code, said) = run.until_synced().await;
    assert_eq!(code, Some(0), "{said}");
    run.rig.source.exec("UPDATE users SET id = 7 WHERE id = 1").await;
    run
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parent_with_a_unique_value_and_children_is_given_another_key() {
    let run = a_key_changes_hands("DEFERRABLE INITIALLY DEFERRED").await;
    let (code, said) = run.until_synced().await;
    assert_eq!(code, Some(0), "{said}");
    run.rig.same("SELECT id, mail FROM users ORDER BY 1").await;
    run.rig.same("SELECT id, user_id FROM orders ORDER BY 1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parent_that_an_immediate_key_and_a_unique_value_tie_waits_and_says_so_until_the_key_is_deferrable() {
    let run = a_key_changes_hands("").await;
    let _worker = run.rig.work.start(&[]);
    let reason = |status: &Value| status["waiting_for"][0]["reason"].as_str().map(str::to_owned);
    run.rig.eventually("they wait, and say so", async |status| reason(status).is_some()).await;
    run.rig.target_has("SELECT id, user_id FROM orders ORDER BY 1", "1 1, 2 1, 3 2").await;
    let deferrable = "ALTER TABLE orders ALTER CONSTRAINT orders_user_id_fkey DEFERRABLE INITIALLY DEFERRED";
    run.rig.target.exec(deferrable).await;
    run.rig.same("SELECT id, mail FROM users ORDER BY 1").await;
    run.rig.same("SELECT id, user_id FROM orders ORDER BY 1").await;
    run.rig.eventually("nothing waits any more", async |status| status["waiting"] == 0).await;
}

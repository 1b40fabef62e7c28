//! A further comparison passes by what has not changed on either side since it was found equal, and nothing else.

use std::time::Duration;

use serde_json::Value;

use crate::{
    rules_rig::Rig,
    support::{Mysql, Postgres, Workspace, eventually},
    verify::{assert_clean, of, told, verify},
};

const SOON: Duration = Duration::from_secs(60);
const ROWS: u64 = 3000;
const CHUNK_ROWS: u64 = 200;

/// What a spelling of a row has to tell apart: nulls, the sign that parts values, bytes, numbers with few digits as
/// text.
const MYSQL_TABLE: &str = "
    CREATE TABLE items (id bigint PRIMARY KEY, name varchar(40) CHARACTER SET latin1, note varchar(40) NULL, qty int NULL, ratio float,
        price decimal(12,4), details json, raw varbinary(20), bits bit(12), kind enum('a', 'b#', '#c'), changed datetime(6) NULL);
    INSERT INTO items SELECT id, CONCAT('n#', id), IF(id % 3 = 0, NULL, CONCAT('#', id % 5)), IF(id % 4 = 0, NULL, id % 9), id / 7, id / 8,
            CONCAT('{\"a\": ', id, '}'), UNHEX(LPAD(HEX(id), 10, '0')), id % 4000, 1 + id % 3, '2024-01-01 10:00:00.123456' FROM n";
const TARGET_TABLE: &str = "
    CREATE TABLE items (id bigint PRIMARY KEY, name text, note text, qty int, ratio real, price numeric(12,4), details jsonb, raw bytea,
        bits bytea, kind text, changed timestamp(6))";
const PG_TABLE: &str = "
    CREATE TABLE items (id bigint PRIMARY KEY, name text, note text, qty int, ratio real, price numeric(12,4), details jsonb, raw bytea,
        kind text, changed timestamptz)";

fn unchanged(verdict: &Value) -> u64 {
    of(verdict, "items")["unchanged"].as_u64().expect("unchanged")
}

/// Verifies, and expects exactly these rows to be told: how many were passed by.
async fn finds(work: &Workspace, rows: &[&str], arguments: &[&str]) -> u64 {
    let (code, verdict) = verify(work, arguments).await;
    assert_eq!(told(&verdict, "items"), rows, "{verdict}");
    assert_eq!(code, Some(i32::from(!rows.is_empty())), "{verdict}");
    unchanged(&verdict)
}

/// Rows 1 to 3000. 5.7 has no recursive queries.
async fn seed(source: &Mysql) {
    let numbers = "CREATE TABLE n (id bigint PRIMARY KEY AUTO_INCREMENT); INSERT INTO n VALUES (), (), (), ();
        INSERT INTO n SELECT NULL FROM n a, n b, n c, n d, n e, n f LIMIT 2996;";
    source.exec(&format!("{numbers} {MYSQL_TABLE}; DROP TABLE n")).await;
}

async fn moved(source: Mysql) -> Rig {
    seed(&source).await;
    let rig = Rig::new(source, Postgres::v15().await, &["items"], "SELECT 1", TARGET_TABLE).await;
    rig.work.configure_also(&format!("[snapshot]\nchunk_rows = {CHUNK_ROWS}\n[verify]\nrows_per_second = 0\n"));
    rig
}

/// Whatever changed on one side is found, in chunks that were found equal before; the others are passed by.
async fn what_has_changed_is_compared(source: Mysql) {
    let rig = moved(source).await;
    let mut worker = rig.following().await;
    assert_eq!(finds(&rig.work, &[], &[]).await, 0, "nothing was compared before");
    assert_eq!(finds(&rig.work, &[], &[]).await, ROWS);
    assert_eq!(finds(&rig.work, &[], &["--full"]).await, 0);

    // What came through the log is compared, and equal.
    rig.source.exec("UPDATE items SET qty = 77 WHERE id = 450; INSERT INTO items (id) VALUES (5000)").await;
    rig.same("SELECT count(*), sum(qty) FROM items").await;
    let passed = finds(&rig.work, &[], &[]).await;
    assert!(passed > 0 && passed < ROWS, "{passed}");
    assert_eq!(finds(&rig.work, &[], &[]).await, ROWS + 1);

    // What the target got past cutover: a value, a row too many between and above the others, and one too few.
    rig.target
        .exec(
            "UPDATE items SET raw = '\\x00' WHERE id = 7; INSERT INTO items (id) VALUES (-3), (6000); DELETE FROM items WHERE id = 1999;
             UPDATE items a SET name = b.name FROM items b WHERE (a.id, b.id) IN ((2500, 2501), (2501, 2500))",
        )
        .await;
    let found = ["different 2500", "different 2501", "different 7", "extra -3", "extra 6000", "missing 1999"];
    for _ in 0..2 {
        let passed = finds(&rig.work, &found, &[]).await;
        assert!(passed > ROWS / 2 && passed < ROWS, "{passed}");
    }
    let repaired = rig.work.run(&["verify", "--repair"]).await;
    assert!(repaired.status.success(), "{}", String::from_utf8_lossy(&repaired.stderr));
    assert_clean(&rig.work).await;
    assert_eq!(finds(&rig.work, &[], &[]).await, ROWS + 1);
    worker.terminate().await;
    worker.wait_exit(SOON).await;
}

/// What the source changes and does not log: a value of each type, two rows that trade a value, a value that moves from
/// one column to another, a null that does.
async fn what_the_source_does_not_log_is_found(source: Mysql) {
    let rig = moved(source).await;
    let _worker = rig.following().await;
    assert_eq!(finds(&rig.work, &[], &[]).await, 0);
    assert_eq!(finds(&rig.work, &[], &[]).await, ROWS);
    let changes = [
        (vec![11], "name = 'n#12'"),
        (vec![211], "note = NULL"),
        (vec![411], "qty = NULL"),
        (vec![611], "ratio = ratio + 0.00001"),
        (vec![811], "price = price + 0.0001"),
        (vec![1011], "details = '{\"a\": 1012}'"),
        (vec![1211], "raw = CONCAT(raw, '#')"),
        (vec![1411], "bits = bits + 1"),
        (vec![1611], "kind = IF(kind = 'a', 'b#', 'a')"),
        (vec![1811], "changed = changed + INTERVAL 1 MICROSECOND"),
        (vec![2011], "name = CONCAT(name, '#'), note = SUBSTR(note, 2)"),
        (vec![2210, 2211], "name = CONCAT('n#', 4421 - id)"),
    ];
    let mut expected = Vec::new();
    let mut silently = "SET SESSION sql_log_bin = 0;".to_owned();
    for (ids, set) in &changes {
        for id in ids {
            silently += &format!("UPDATE items SET {set} WHERE id = {id};");
            expected.push(format!("different {id}"));
        }
    }
    rig.source.exec(&(silently + "SET SESSION sql_log_bin = 1")).await;
    expected.sort();
    let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
    let passed = finds(&rig.work, &expected, &[]).await;
    assert!(passed > 0 && passed < ROWS / 2, "{passed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_further_comparison_looks_at_what_has_changed_on_mysql_57() {
    what_has_changed_is_compared(Mysql::v57().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_further_comparison_looks_at_what_has_changed_on_mysql_80() {
    what_has_changed_is_compared(Mysql::v80().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_further_comparison_looks_at_what_has_changed_on_mariadb() {
    what_has_changed_is_compared(Mysql::mariadb().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_further_comparison_finds_what_the_source_did_not_log_on_mysql_57() {
    what_the_source_does_not_log_is_found(Mysql::v57().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_further_comparison_finds_what_the_source_did_not_log_on_mysql_97() {
    what_the_source_does_not_log_is_found(Mysql::v97().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_further_comparison_finds_what_the_source_did_not_log_on_mariadb() {
    what_the_source_does_not_log_is_found(Mysql::mariadb().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_further_comparison_looks_at_what_has_changed_on_postgresql() {
    let (source, target) = (Postgres::v18().await, Postgres::v15().await);
    for side in [&source, &target] {
        side.exec(PG_TABLE).await;
    }
    source
        .exec(&format!(
            "INSERT INTO items SELECT i, 'n' || i, nullif('x' || i % 3, 'x0'), nullif(i % 4, 0), i / 7.0, i / 8.0,
                 jsonb_build_object('a', i), decode(md5(i::text), 'hex'), 'k', now() FROM generate_series(1, {ROWS}) i"
        ))
        .await;
    let work = Workspace::new(source.database(), &source.url(), &target.url(), &["items"]);
    work.configure_also(&format!("[snapshot]\nchunk_rows = {CHUNK_ROWS}\n[verify]\nrows_per_second = 0\n"));
    let rig_status =
        async || -> Value { serde_json::from_slice(&work.run(&["status", "--json"]).await.stdout).unwrap_or_default() };
    let mut worker = work.start(&[]);
    eventually("synced", SOON, async || rig_status().await["synced"] == true).await;
    assert_eq!(finds(&work, &[], &[]).await, 0);
    assert_eq!(finds(&work, &[], &[]).await, ROWS);
    source.exec("UPDATE items SET note = NULL WHERE id = 1000; DELETE FROM items WHERE id = 2999").await;
    eventually("synced", SOON, async || {
        target.value("SELECT count(*) FROM items WHERE id = 2999 OR (id = 1000 AND note IS NOT NULL)").await.as_deref()
            == Some("0")
    })
    .await;
    let passed = finds(&work, &[], &[]).await;
    assert!(passed > ROWS / 2 && passed < ROWS, "{passed}");
    target.exec("UPDATE items SET ratio = ratio * 1.0001 WHERE id = 20").await;
    let passed = finds(&work, &["different 20"], &[]).await;
    assert!(passed > ROWS / 2 && passed < ROWS, "{passed}");
    worker.terminate().await;
    worker.wait_exit(SOON).await;
}

/// A pipeline between two PostgreSQL servers whose tables are the same, and which has copied them.
async fn copied(source: &Postgres, target: &Postgres, table: &str, target_table: &str, rows: &str) -> Workspace {
    source.exec(table).await;
    target.exec(target_table).await;
    source.exec(rows).await;
    let work = Workspace::new(source.database(), &source.url(), &target.url(), &["items"]);
    work.configure_also(&format!("[snapshot]\nchunk_rows = {CHUNK_ROWS}\n[verify]\nrows_per_second = 0\n"));
    let synced = work.run(&["run", "--until-synced", "--listen", "127.0.0.1:0"]).await;
    assert!(synced.status.success(), "{}", String::from_utf8_lossy(&synced.stderr));
    work
}

/// Verifies as if for the first time: the rows that are told, and how many digests alone have compared.
async fn compared(work: &Workspace, target: &Postgres) -> (Vec<String>, u64) {
    target.exec("DELETE FROM cutover.migration_log").await;
    let (_, verdict) = verify(work, &[]).await;
    let by_digest = of(&verdict, "items")["digested"].as_u64().expect("digested");
    (told(&verdict, "items"), by_digest)
}

/// Rows that the target has as the source has them stay where they are; whatever differs is found all the same.
async fn copied_rows_are_compared_by_digests(source: Postgres, target: Postgres) {
    let rows = format!(
        "INSERT INTO items SELECT i, 'n' || i, nullif('x' || i % 3, 'x0'), nullif(i % 4, 0), i / 7.0, i / 8.0,
             jsonb_build_object('a', i), decode(md5(i::text), 'hex'), 'k \",()', now() FROM generate_series(1, {ROWS}) i"
    );
    let work = copied(&source, &target, PG_TABLE, PG_TABLE, &rows).await;
    let (found, by_digest) = compared(&work, &target).await;
    assert!(found.is_empty() && by_digest > ROWS - 2 * CHUNK_ROWS, "{found:?}, {by_digest} by digest");

    target
        .exec(
            "UPDATE items SET raw = '\\x00' WHERE id = 7; UPDATE items SET note = '' WHERE id = 300; UPDATE items SET qty = NULL WHERE id = 701;
             INSERT INTO items (id) VALUES (-3), (6000); DELETE FROM items WHERE id IN (1200, 1999);
             UPDATE items a SET name = b.name FROM items b WHERE (a.id, b.id) IN ((2500, 2501), (2501, 2500))",
        )
        .await;
    let (found, by_digest) = compared(&work, &target).await;
    let expected = [
        "different 2500",
        "different 2501",
        "different 300",
        "different 7",
        "different 701",
        "extra -3",
        "extra 6000",
        "missing 1200",
        "missing 1999",
    ];
    assert_eq!(found, expected);
    assert!(by_digest > ROWS / 2 && by_digest < ROWS, "{by_digest} by digest");
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_are_copied_as_they_are_are_compared_by_digests_from_postgresql_15_to_18() {
    copied_rows_are_compared_by_digests(Postgres::v15().await, Postgres::v18().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_are_copied_as_they_are_are_compared_by_digests_from_postgresql_18_to_15() {
    copied_rows_are_compared_by_digests(Postgres::v18().await, Postgres::v15().await).await;
}

/// One text may be of two values: blanks at the end are none of a `char`, and are of a text.
#[tokio::test(flavor = "multi_thread")]
async fn rows_with_other_types_at_the_target_are_compared_as_rows() {
    let (source, target) = (Postgres::v18().await, Postgres::v15().await);
    let rows = format!("INSERT INTO items SELECT i, 'a' FROM generate_series(1, {ROWS}) i");
    let table = "CREATE TABLE items (id bigint PRIMARY KEY, name char(3))";
    let target_table = "CREATE TABLE items (id bigint PRIMARY KEY, name text)";
    let work = copied(&source, &target, table, target_table, &rows).await;
    assert_eq!(compared(&work, &target).await, (Vec::new(), 0));
    target.exec("UPDATE items SET name = 'a  ' WHERE id = 17").await;
    assert_eq!(compared(&work, &target).await, (vec!["different 17".to_owned()], 0));
}

/// Both servers have one digest of what the source has, and the target has more than that, or less.
#[tokio::test(flavor = "multi_thread")]
async fn rows_that_a_transform_makes_are_compared_as_rows() {
    let (source, target) = (Postgres::v15().await, Postgres::v18().await);
    source.exec("CREATE TABLE items (id bigint PRIMARY KEY, name text, made timestamp)").await;
    target.exec("CREATE TABLE items (id bigint PRIMARY KEY, name text, made timestamp, folded text)").await;
    source
        .exec(&format!("INSERT INTO items SELECT i, 'N' || i, '2024-01-01 10:00' FROM generate_series(1, {ROWS}) i"))
        .await;
    let work = Workspace::new(source.database(), &source.url(), &target.url(), &["items"]);
    work.configure_also(&format!("[snapshot]\nchunk_rows = {CHUNK_ROWS}\n[verify]\nrows_per_second = 0\n"));
    work.transform("items", "SELECT id, name, made::date AS made, lower(name) AS folded FROM items");
    let synced = work.run(&["run", "--until-synced", "--listen", "127.0.0.1:0"]).await;
    assert!(synced.status.success(), "{}", String::from_utf8_lossy(&synced.stderr));
    assert_eq!(compared(&work, &target).await, (Vec::new(), 0));
    target
        .exec("UPDATE items SET folded = 'N17' WHERE id = 17; UPDATE items SET made = '2024-01-01 10:00' WHERE id = 18")
        .await;
    assert_eq!(compared(&work, &target).await, (vec!["different 17".to_owned(), "different 18".to_owned()], 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transform_or_a_function_that_has_changed_has_everything_compared() {
    let rig = moved(Mysql::v80().await).await;
    let transform = |name: &str| {
        format!("SELECT id, {name} AS name, note, qty, ratio, price, details, raw, bits, kind, changed FROM items")
    };
    rig.target.exec("CREATE FUNCTION shown(text) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT $1'").await;
    rig.work.transform("items", &transform("shown(name)"));
    let _worker = rig.following().await;
    assert_eq!(finds(&rig.work, &[], &[]).await, 0);
    assert_eq!(finds(&rig.work, &[], &[]).await, ROWS);
    let other = "CREATE OR REPLACE FUNCTION shown(text) RETURNS text LANGUAGE sql IMMUTABLE AS \
                 $$SELECT CASE $1 WHEN 'n#17' THEN 'other' ELSE $1 END$$";
    rig.target.exec(other).await;
    assert_eq!(finds(&rig.work, &["different 17"], &[]).await, 0);
    rig.work.transform("items", &transform("upper(name)"));
    let (_, verdict) = verify(&rig.work, &[]).await;
    assert_eq!((unchanged(&verdict), of(&verdict, "items")["different"].as_u64()), (0, Some(ROWS)), "{verdict}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_comparison_that_was_killed_goes_on_where_it_was() {
    let rig = moved(Mysql::v80().await).await;
    rig.sync().await;
    // It stops for good when it notes its fourth chunk.
    let stops = "CREATE FUNCTION stops() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN
                     IF (SELECT count(*) FROM cutover.migration_log) >= 3 THEN PERFORM pg_sleep(600); END IF; RETURN NEW; END$$;
                 CREATE TRIGGER stops BEFORE INSERT ON cutover.migration_log FOR EACH ROW EXECUTE FUNCTION stops()";
    rig.target.exec(stops).await;
    let mut verifying = rig.work.spawn(&["verify"]);
    let sleeps = "FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'";
    eventually("it has noted three chunks", SOON, async || {
        rig.target.value(&format!("SELECT count(*) {sleeps}")).await.as_deref() == Some("1")
    })
    .await;
    verifying.start_kill().unwrap();
    verifying.wait().await.unwrap();
    rig.target.exec(&format!("SELECT pg_terminate_backend(pid) {sleeps}")).await;
    rig.target.exec("DROP TRIGGER stops ON cutover.migration_log").await;
    let passed = finds(&rig.work, &[], &[]).await;
    assert_eq!(passed, 3 * CHUNK_ROWS);
}

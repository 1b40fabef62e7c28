//! What `cutover verify` may not call clean, and what it has to find, on real servers: rows that are never still, rows
//! that share a key, rows beside those that are refused, closed dead letters, a halted worker, lost locks.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use mysql_async::prelude::Queryable as _;
use serde_json::Value;
use tokio::time::{Instant, sleep, timeout};

use crate::{
    job::load,
    rules_rig::Rig,
    support::{Mysql, Postgres, Worker, Workspace, eventually},
    verify::{assert_clean, counts, following, moved, of, told, verify},
};

const SOON: Duration = Duration::from_secs(60);

fn reason(verdict: &Value, table: &str, key: &str) -> String {
    let drift = of(verdict, table)["drift"].as_array().expect("drift");
    let row = drift.iter().find(|row| row["key"][0] == key).unwrap_or_else(|| panic!("{key}: {verdict}"));
    row["reason"].as_str().unwrap_or_default().to_owned()
}

fn gate(verdict: &Value, name: &str) -> Option<bool> {
    let gates = verdict["gates"].as_array().expect("gates");
    gates.iter().find(|gate| gate["name"] == name).and_then(|gate| gate["passed"].as_bool())
}

async fn stopped(worker: &mut Worker) {
    worker.terminate().await;
    assert!(worker.wait_exit(SOON).await.success(), "{}", worker.stderr());
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_39_rows_that_move_each_time_are_never_called_equal() {
    let rig = moved(Mysql::v80().await).await;
    let mut worker = rig.following().await;
    // Whatever the stream brings, another value stands there.
    rig.target
        .exec(
            "CREATE FUNCTION wrong() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.qty := -1; RETURN NEW; END $$;
             CREATE TRIGGER wrong BEFORE INSERT OR UPDATE ON items FOR EACH ROW WHEN (NEW.id = 20) EXECUTE FUNCTION wrong();
             ALTER TABLE items ENABLE ALWAYS TRIGGER wrong",
        )
        .await;
    let stop = Arc::new(AtomicBool::new(false));
    let Rig { source, target: _target, work } = rig;
    let source = Arc::new(source);
    let load = load(&source, &stop, || "UPDATE items SET qty = qty + 1 WHERE id = 20".to_owned());
    let (code, verdict) = verify(&work, &["--table", "items"]).await;
    stop.store(true, Ordering::Relaxed);
    assert!(load.await.unwrap() > 50, "the load ran");
    assert_eq!((code, verdict["clean"].as_bool()), (Some(1), Some(false)), "{verdict}");
    assert_eq!((told(&verdict, "items"), &of(&verdict, "items")["moving"]), (vec!["moving 20".to_owned()], &1.into()));
    assert_eq!(gate(&verdict, "unproven"), Some(false), "{verdict}");
    // When it rests it is what it is.
    eventually("it is told as different", SOON, async || {
        told(&verify(&work, &["--table", "items"]).await.1, "items") == ["different 20"]
    })
    .await;
    worker.kill9().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_39_rows_that_make_one_target_row_are_told_in_whichever_way_a_table_is_walked() {
    let source = Mysql::v57().await;
    let tables = "CREATE TABLE steps (n int, kind int, PRIMARY KEY (n, kind));
        CREATE TABLE codes (code varchar(9) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin PRIMARY KEY);
        INSERT INTO steps VALUES (10, 1), (20, 1), (30, 1); INSERT INTO codes VALUES ('a'), ('b'), ('c')";
    let at_target =
        "CREATE TABLE numbers (n int PRIMARY KEY, what text); CREATE TABLE letters (code text PRIMARY KEY, what text)";
    let rig = Rig::new(source, Postgres::v15().await, &["steps", "codes"], tables, at_target).await;
    // Either key is of one row each, until others come that the filter and the fold let through.
    rig.work.transform("numbers", "SELECT n, 'x' AS what FROM steps WHERE kind < 3");
    rig.work.transform("letters", "SELECT lower(code) AS code, 'x' AS what FROM codes");
    let mut worker = rig.following().await;
    assert_clean(&rig.work).await;
    // Each comes alone, so that the sink has no reason to refuse it.
    rig.source.exec("INSERT INTO steps VALUES (20, 2); INSERT INTO codes VALUES ('A')").await;
    rig.source.exec("INSERT INTO steps VALUES (40, 1); INSERT INTO codes VALUES ('d')").await;
    rig.target_has("SELECT (SELECT count(*) FROM letters) + (SELECT count(*) FROM numbers)", "8").await;
    assert_eq!(rig.status().await["dead_letters"], 0);
    let (code, verdict) = verify(&rig.work, &[]).await;
    assert_eq!((code, verdict["clean"].as_bool()), (Some(1), Some(false)), "{verdict}");
    for (table, key) in [("steps", "20"), ("codes", "a")] {
        assert_eq!(told(&verdict, table), [format!("shared {key}")], "{verdict}");
        assert_eq!((&of(&verdict, table)["shared"], &counts(&verdict, table)[1..]), (&1.into(), &[0, 0, 0][..]));
        assert!(reason(&verdict, table, key).contains("several rows of the source"), "{verdict}");
    }
    assert_eq!(gate(&verdict, "unproven"), Some(false), "{verdict}");
    rig.source.exec("UPDATE steps SET kind = 3 WHERE kind = 2; DELETE FROM codes WHERE code = 'A'").await;
    eventually("none shares a key any more", SOON, async || {
        let (_, verdict) = verify(&rig.work, &[]).await;
        ["steps", "codes"].iter().all(|table| of(&verdict, table)["shared"] == 0)
    })
    .await;
    worker.kill9().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_39_a_discarded_dead_letter_explains_nothing() {
    let rig = moved(Mysql::v57().await).await;
    rig.target.exec("ALTER TABLE items ADD CONSTRAINT few CHECK (qty < 1000)").await;
    let mut worker = rig.following().await;
    rig.source.exec("UPDATE items SET qty = 5000 WHERE id = 7").await;
    rig.eventually("a dead letter", async |status| status["dead_letters"] == 1).await;
    let (_, verdict) = verify(&rig.work, &[]).await;
    assert_eq!(told(&verdict, "items"), ["explained 7"], "{verdict}");
    let id = rig.target.value("SELECT id::text FROM cutover.dead_letters").await.unwrap();
    assert!(rig.work.run(&["dlq", "discard", &id]).await.status.success());
    let (code, verdict) = verify(&rig.work, &[]).await;
    assert_eq!((code, told(&verdict, "items")), (Some(1), vec!["different 7".to_owned()]), "{verdict}");
    assert!(reason(&verdict, "items", "7").contains("discarded"), "{verdict}");
    rig.target.exec("ALTER TABLE items DROP CONSTRAINT few").await;
    let (code, verdict) = verify(&rig.work, &["--repair"]).await;
    assert_eq!((code, &of(&verdict, "items")["repaired"]), (Some(0), &1.into()), "{verdict}");
    worker.kill9().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_beside_one_that_cannot_be_transformed_are_compared() {
    let source = Mysql::v80().await;
    let rows = "CREATE TABLE shares (id bigint PRIMARY KEY, parts int);
        INSERT INTO shares VALUES (10, 1), (20, 0), (30, 2), (40, 0)";
    let at_target = "CREATE TABLE shares (id bigint PRIMARY KEY, part int)";
    let rig = Rig::new(source, Postgres::v15().await, &["shares"], rows, at_target).await;
    rig.work.transform("shares", "SELECT id, 10 / parts AS part FROM shares");
    let mut worker = rig.work.start(&[]);
    rig.eventually("two dead letters", async |status| status["dead_letters"] == 2 && status["phase"] == "following")
        .await;
    rig.target_has("SELECT count(*) FROM shares", "2").await;
    rig.target.exec("INSERT INTO shares SELECT id, 1 FROM generate_series(5, 45, 10) id").await;
    let (code, verdict) = verify(&rig.work, &[]).await;
    assert_eq!((code, &counts(&verdict, "shares")[1..]), (Some(1), &[0, 5, 0][..]), "{verdict}");
    assert_eq!(of(&verdict, "shares")["explained"], 2, "{verdict}");
    for key in ["5", "15", "25", "35", "45"] {
        assert!(told(&verdict, "shares").contains(&format!("extra {key}")), "{verdict}");
    }
    worker.kill9().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_target_says_of_a_row_is_shown_only_with_its_values() {
    let source = Mysql::v57().await;
    let rows = "CREATE TABLE notes (id bigint PRIMARY KEY, note varchar(40));
        INSERT INTO notes VALUES (1, '12'), (2, 'not-for-logs'), (3, '13')";
    let at_target = "CREATE TABLE notes (id bigint PRIMARY KEY, note int)";
    let rig = Rig::new(source, Postgres::v15().await, &["notes"], rows, at_target).await;
    rig.work.transform("notes", "SELECT id, note::int AS note FROM notes");
    let mut worker = rig.work.start(&[]);
    rig.eventually("a dead letter", async |status| status["dead_letters"] == 1 && status["phase"] == "following").await;
    rig.target_has("SELECT count(*) FROM notes", "2").await;
    rig.target.exec("DELETE FROM cutover.dead_letters").await;
    for (arguments, is_shown) in [
        (&["verify"][..], false),
        (&["verify", "--json"], false),
        (&["verify", "--values"], true),
        (&["verify", "--count-only"], false),
    ] {
        let out = rig.work.run(arguments).await;
        let said = [out.stdout, out.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat();
        assert_eq!(out.status.code(), Some(1), "{said}");
        assert_eq!(said.contains("not-for-logs"), is_shown, "{said}");
        assert_eq!(said.contains("22P02"), !arguments.contains(&"--count-only"), "{said}");
    }
    worker.kill9().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repair_while_the_worker_is_halted_says_so_and_ends() {
    let rig = moved(Mysql::v57().await).await;
    let mut worker = rig.following().await;
    // A refusal that no row is to blame for, with transforms that still fit.
    rig.target
        .exec(
            "UPDATE items SET qty = 77 WHERE id = 100;
             CREATE FUNCTION away() RETURNS trigger LANGUAGE plpgsql AS
                 $$ BEGIN RAISE EXCEPTION 'away' USING ERRCODE = '55000'; END $$;
             CREATE TRIGGER away BEFORE INSERT OR UPDATE ON carts FOR EACH ROW EXECUTE FUNCTION away();
             ALTER TABLE carts ENABLE ALWAYS TRIGGER away",
        )
        .await;
    rig.source.exec("UPDATE carts SET note = 'x' WHERE no = 5").await;
    rig.eventually("halted", async |status| !status["halted"].is_null()).await;
    let repairing = rig.work.run(&["verify", "--repair", "--table", "items"]);
    let out = timeout(SOON, repairing).await.expect("it ends");
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(3), "{said}");
    assert!(said.contains("halted") && said.contains("verify --repair"), "{said}");
    let began = Instant::now();
    let (code, verdict) = verify(&rig.work, &["--table", "items"]).await;
    assert_eq!((code, of(&verdict, "items")["unconfirmed"].as_u64()), (Some(1), Some(1)), "{verdict}");
    assert!(began.elapsed() < SOON, "what a halted worker has not applied is not waited for");
    worker.kill9().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_39_postgresql_is_asked_whether_anything_is_on_its_way_where_no_worker_runs() {
    for source in [Postgres::v15().await, Postgres::v18().await] {
        let target = Postgres::v15().await;
        let table = "CREATE TABLE items (id bigint PRIMARY KEY, qty int)";
        source.exec(table).await;
        target.exec(table).await;
        source.exec("INSERT INTO items SELECT i, i FROM generate_series(1, 1000) i; CREATE TABLE other (id int)").await;
        let work = Workspace::new(source.database(), &source.url(), &target.url(), &["items"]);
        let mut worker = following(&work).await;
        source.exec("UPDATE items SET qty = 55 WHERE id = 5").await;
        let end = source.value("SELECT pg_current_wal_flush_lsn()::text").await.unwrap();
        eventually("every partition has passed it", SOON, async || {
            let have = format!(
                "SELECT bool_and((position->>'lsn')::pg_lsn >= '{end}') FROM cutover.offsets WHERE topic = 'changes'"
            );
            target.value(&have).await.as_deref() == Some("t")
        })
        .await;
        assert_eq!(target.value("SELECT qty::text FROM items WHERE id = 5").await.as_deref(), Some("55"));
        stopped(&mut worker).await;
        target.exec("UPDATE items SET qty = 99 WHERE id = 7; DELETE FROM items WHERE id = 8").await;
        // What else is written to the server's log is not about these rows.
        source.exec("INSERT INTO other SELECT generate_series(1, 500); CHECKPOINT").await;
        let (code, verdict) = verify(&work, &[]).await;
        assert_eq!(
            (code, told(&verdict, "items")),
            (Some(1), vec!["different 7".into(), "missing 8".into()]),
            "{verdict}"
        );
        source.exec("UPDATE items SET qty = 50 WHERE id = 9").await;
        let (code, verdict) = verify(&work, &[]).await;
        let all = ["unconfirmed 7", "unconfirmed 8", "unconfirmed 9"];
        assert_eq!((code, told(&verdict, "items")), (Some(1), all.map(str::to_owned).to_vec()), "{verdict}");
        assert_eq!(counts(&verdict, "items")[1..], [0, 0, 0], "{verdict}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_read_of_the_source_is_open_while_the_comparison_waits() {
    let source = Mysql::v80().await;
    source.exec("CREATE TABLE papers (id bigint PRIMARY KEY, body longtext)").await;
    for id in 0..48 {
        source.exec(&format!("INSERT INTO papers VALUES ({id}, repeat('abcdefgh', 131072))")).await;
    }
    let at_target = "CREATE TABLE papers (id bigint PRIMARY KEY, body text)";
    let rig = Rig::new(source, Postgres::v15().await, &["papers"], "SELECT 1", at_target).await;
    let mut worker = rig.work.start(&[]);
    eventually("copied", Duration::from_secs(90), async || rig.status().await["synced"] == true).await;
    let client = rig.target.connect().await;
    client.batch_execute("BEGIN; LOCK TABLE papers IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let verifying = rig.work.spawn(&["verify", "--json"]);
    eventually("it waits", SOON, async || {
        let waits = "SELECT count(*) > 0 FROM pg_stat_activity WHERE datname = current_database()
            AND application_name LIKE 'cutover %' AND wait_event_type = 'Lock'";
        rig.target.value(waits).await.as_deref() == Some("t")
    })
    .await;
    sleep(Duration::from_secs(3)).await;
    let open =
        "SELECT count(*) FROM information_schema.processlist WHERE command <> 'Sleep' AND db = database() AND time >= 1
        AND info LIKE '%`papers`%' AND info NOT LIKE '%processlist%'";
    let found = rig.source.query(open).await;
    client.batch_execute("ROLLBACK").await.unwrap();
    assert_eq!(format!("{found:?}"), format!("{:?}", rig.source.query("SELECT 0").await));
    let out = verifying.wait_with_output().await.unwrap();
    let verdict: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!((out.status.code(), counts(&verdict, "papers")), (Some(0), [48, 0, 0, 0]), "{verdict}");
    worker.kill9().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_verify_that_loses_the_lock_on_tombstones_has_no_verdict() {
    let rig = moved(Mysql::v57().await).await;
    let mut worker = rig.following().await;
    let mut holding = rig.source.connect().await;
    holding.query_drop("LOCK TABLES items WRITE").await.unwrap();
    let verifying = rig.work.run(&["verify"]);
    let losing = async {
        let waits = "SELECT count(*) FROM information_schema.processlist WHERE db = database() AND state LIKE 'Waiting for table%'";
        let some = format!("{:?}", rig.source.query("SELECT 1").await);
        eventually("it compares", SOON, async || format!("{:?}", rig.source.query(waits).await) == some).await;
        let lost = "SELECT count(pg_terminate_backend(pid)) > 0 FROM pg_locks l JOIN pg_database d ON d.oid = l.database
            WHERE d.datname = current_database() AND l.locktype = 'advisory' AND l.classid = 1668641894 AND l.objsubid = 2";
        assert_eq!(rig.target.value(lost).await.as_deref(), Some("t"));
    };
    let (out, ()) = timeout(SOON, async { tokio::join!(verifying, losing) }).await.expect("it ends");
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(3), "{said}");
    assert!(said.contains("verify again"), "{said}");
    holding.query_drop("UNLOCK TABLES").await.unwrap();
    worker.kill9().await;
}

const ODD: &str = "CREATE TABLE odd (id bigint PRIMARY KEY, raw json, papers xml[], places point[], texts json[]);
    CREATE TABLE parents (id bigint PRIMARY KEY)";

#[tokio::test(flavor = "multi_thread")]
async fn values_without_an_equality_of_their_own_are_compared() {
    let (source, target) = (Postgres::v18().await, Postgres::v15().await);
    source.exec(ODD).await;
    target.exec(ODD).await;
    source
        .exec(
            r#"INSERT INTO odd SELECT i, '{"a": "x\u0000y", "b": 1.0}', ARRAY['<a>1</a>', NULL]::xml[], ARRAY[point(1, i)],
                   ARRAY['{"k": 1}', '{"k":  2}']::json[] FROM generate_series(1, 50) i;
               UPDATE odd SET raw = '{"b": 1.0, "a": "\ud83d"}' WHERE id = 3; INSERT INTO parents VALUES (1)"#,
        )
        .await;
    let work = Workspace::new(source.database(), &source.url(), &target.url(), &["odd", "parents"]);
    let mut worker = following(&work).await;
    assert_clean(&work).await;
    target
        .exec(
            r#"UPDATE odd SET raw = '{"a": "x\u0000z", "b": 1.0}' WHERE id = 5; UPDATE odd SET raw = '{"b": 2}' WHERE id = 3;
               UPDATE odd SET papers = ARRAY['<a>2</a>', NULL]::xml[] WHERE id = 6; UPDATE odd SET places = NULL WHERE id = 7;
               UPDATE odd SET texts = ARRAY['{"k": 9}']::json[] WHERE id = 8"#,
        )
        .await;
    let (_, verdict) = verify(&work, &[]).await;
    let found = ["different 3", "different 5", "different 6", "different 7", "different 8"];
    assert_eq!(told(&verdict, "odd"), found, "{verdict}");
    // A foreign key, which is a pass over its table, is looked at where every row was.
    target.exec("ALTER TABLE odd ADD CONSTRAINT odd_fk FOREIGN KEY (id) REFERENCES parents NOT VALID").await;
    let key = "foreign_key odd_fk of public.odd";
    assert_eq!(gate(&verify(&work, &[]).await.1, key), Some(false));
    for arguments in [&["--sample", "50%"][..], &["--count-only"], &["--table", "parents"]] {
        assert_eq!(gate(&verify(&work, arguments).await.1, key), None, "{arguments:?}");
    }
    worker.kill9().await;
}

//! `cutover verify --review` on real servers: drifted rows are listed, accepted as they are, or repaired one by one.

use std::time::Duration;

use serde_json::Value;

use crate::{
    rules_rig::Rig,
    support::{Mysql, Postgres, Worker, eventually},
    verify::{assert_clean, counts, of, told, verify},
};

/// The background begins a minute after the worker.
const BACKGROUND: Duration = Duration::from_secs(180);

const AT_SOURCE: &str = "
    CREATE TABLE items (id bigint PRIMARY KEY, sku varchar(40) NOT NULL, qty int);
    CREATE TABLE codes (code varchar(20) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin PRIMARY KEY, what varchar(20));
    INSERT INTO codes VALUES ('A', 'x'), ('B', 'x'), ('C', 'x')";
const AT_TARGET: &str = "
    CREATE TABLE items (id bigint PRIMARY KEY, sku text NOT NULL, qty int);
    CREATE TABLE codes (code text PRIMARY KEY, what text)";
/// One of each kind, and one that leads back to no row of the source.
const DRIFT: &str = "
    DELETE FROM items WHERE id = 1; UPDATE items SET qty = 991199 WHERE id = 7; INSERT INTO items VALUES (5000, 'more', 1);
    INSERT INTO codes VALUES ('zz', 'x')";

async fn following(rig: &Rig) -> Worker {
    let worker = rig.work.start(&[]);
    rig.eventually("it follows", async |status| status["synced"] == true && status["phase"] == "following").await;
    worker
}

/// Two tables whose rows are equal on both sides, and a worker that follows.
async fn moved() -> (Rig, Worker) {
    let source = Mysql::v80().await;
    source.exec(AT_SOURCE).await;
    let items: Vec<String> = (1..=200).map(|id| format!("({id}, 'sku-{id}', {})", id % 7)).collect();
    source.exec(&format!("INSERT INTO items VALUES {}", items.join(", "))).await;
    let rig = Rig::new(source, Postgres::v18().await, &["items", "codes"], "SELECT 1", AT_TARGET).await;
    rig.work.transform("codes", "SELECT lower(code) AS code, what FROM codes");
    let worker = following(&rig).await;
    assert_clean(&rig.work).await;
    (rig, worker)
}

/// What a command prints, on both streams, with its exit code.
async fn said(rig: &Rig, arguments: &[&str]) -> (Option<i32>, String) {
    let out = rig.work.run(arguments).await;
    let text = [out.stdout, out.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat();
    (out.status.code(), text)
}

async fn reviewed(rig: &Rig, arguments: &[&str]) -> (Option<i32>, Value) {
    let (code, text) = said(rig, &[&["verify", "--json", "--review"], arguments].concat()).await;
    (code, serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}")))
}

/// The rows to be reviewed: kind, key and state of each.
fn rows(listed: &Value) -> Vec<String> {
    let text = |row: &Value| {
        let [kind, key, state] = [&row["kind"], &row["key"][0], &row["state"]].map(|text| text.as_str().unwrap());
        format!("{kind} {key} {state}")
    };
    let mut rows: Vec<String> = listed["rows"].as_array().expect("rows").iter().map(text).collect();
    rows.sort();
    rows
}

async fn listed(rig: &Rig) -> Vec<String> {
    rows(&reviewed(rig, &["list"]).await.1)
}

/// The number of the row with this key.
async fn id_of(rig: &Rig, key: &str) -> String {
    let (_, listed) = reviewed(rig, &["list"]).await;
    let all = listed["rows"].as_array().expect("rows");
    all.iter().find(|row| row["key"][0] == key).unwrap_or_else(|| panic!("{key}: {listed}"))["id"].to_string()
}

fn accepted(verdict: &Value, table: &str) -> u64 {
    of(verdict, table)["accepted"].as_u64().expect("accepted")
}

#[tokio::test(flavor = "multi_thread")]
async fn drifted_rows_are_listed_with_what_is_known_of_them_and_leave_when_they_are_equal() {
    let (rig, mut worker) = moved().await;
    assert!(said(&rig, &["verify", "--review", "list"]).await.1.contains("nothing to review"));
    rig.target.exec(DRIFT).await;
    assert_eq!(verify(&rig.work, &[]).await.0, Some(1));
    let (code, found) = reviewed(&rig, &["list"]).await;
    let all = ["different 7 open", "extra 5000 open", "extra zz open", "missing 1 open"];
    assert_eq!((code, rows(&found), &found["open"]), (Some(0), all.map(str::to_owned).to_vec(), &4.into()), "{found}");
    for row in found["rows"].as_array().unwrap() {
        let columns = if row["kind"] == "different" { 1 } else { 0 };
        assert_eq!(row["columns"].as_array().unwrap().len(), columns, "{row}");
        assert_eq!((row["digest"].as_str().unwrap().len(), row["id"].as_i64().unwrap() > 0), (16, true), "{row}");
        let says_why = row["reason"].as_str().is_some_and(|reason| reason.contains("does not lead back"));
        assert_eq!(says_why, row["key"][0] == "zz", "{row}");
        assert!(row["since"].as_str().unwrap().ends_with('Z'), "{row}");
    }
    let (_, text) = said(&rig, &["verify", "--review", "list", "--table", "items"]).await;
    assert!(text.contains("public.items") && text.contains("3 open, 0 accepted") && !text.contains("zz"), "{text}");
    assert!(!text.contains("991199"), "no value but keys: {text}");
    // What differs in the same way keeps its number.
    let id = id_of(&rig, "7").await;
    assert_eq!(verify(&rig.work, &[]).await.0, Some(1));
    assert_eq!(id_of(&rig, "7").await, id);

    rig.target.exec("DELETE FROM items WHERE id = 5000; DELETE FROM codes WHERE code = 'zz'").await;
    assert_eq!(verify(&rig.work, &["--sample", "100%"]).await.0, Some(1));
    assert_eq!(verify(&rig.work, &["--table", "codes"]).await.0, Some(0));
    let left = ["different 7 open", "extra 5000 open", "missing 1 open"];
    assert_eq!(listed(&rig).await, left, "a part of a table says nothing of the rows beside it");
    assert_eq!(verify(&rig.work, &[]).await.0, Some(1));
    assert_eq!(listed(&rig).await, ["different 7 open", "missing 1 open"]);
    assert_eq!(verify(&rig.work, &["--repair"]).await.0, Some(0));
    assert_eq!(listed(&rig).await, Vec::<String>::new());
    worker.kill9().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_accepted_is_no_drift_until_it_differs_in_another_way() {
    let (rig, mut worker) = moved().await;
    rig.target.exec(DRIFT).await;
    assert_eq!(verify(&rig.work, &[]).await.0, Some(1));
    let id = id_of(&rig, "7").await;
    let (code, text) = said(&rig, &["verify", "--review", "accept", &id]).await;
    assert_eq!((code, text.contains("1 accepted")), (Some(0), true), "{text}");
    let (code, verdict) = verify(&rig.work, &[]).await;
    assert_eq!((code, accepted(&verdict, "items"), &counts(&verdict, "items")[1..]), (Some(1), 1, &[1, 1, 0][..]));
    assert_eq!(reviewed(&rig, &["accept", "--table", "items"]).await.1["accepted"], 2);
    assert_eq!(reviewed(&rig, &["accept"]).await.1["accepted"], 1);
    for arguments in [&[][..], &["--repair"], &["--repair"]] {
        let (code, verdict) = verify(&rig.work, arguments).await;
        assert_eq!((code, verdict["clean"].as_bool()), (Some(0), Some(true)), "{verdict}");
        assert_eq!((accepted(&verdict, "items"), accepted(&verdict, "codes")), (3, 1), "{verdict}");
        assert_eq!(counts(&verdict, "items"), [200, 0, 0, 0], "{verdict}");
        assert_eq!((&verdict["match_rate"], told(&verdict, "items").len()), (&1.0.into(), 0), "{verdict}");
    }
    rig.target_has("SELECT qty FROM items WHERE id = 7", "991199").await;
    let (_, text) = said(&rig, &["verify"]).await;
    assert!(text.contains("3 rows differ, and are accepted by review") && text.contains("all equal but 4"), "{text}");
    assert_eq!(rig.status().await["drift_rows"], 0);

    // Behind its back again: another value, and another column.
    rig.target.exec("UPDATE items SET qty = 98 WHERE id = 7; UPDATE items SET sku = 'other' WHERE id = 5000").await;
    let (code, verdict) = verify(&rig.work, &[]).await;
    assert_eq!((code, told(&verdict, "items")), (Some(1), vec!["different 7".into(), "extra 5000".into()]));
    assert_eq!((accepted(&verdict, "items"), accepted(&verdict, "codes")), (1, 1), "{verdict}");
    let now = ["different 7 open", "extra 5000 open", "extra zz accepted", "missing 1 accepted"];
    assert_eq!(listed(&rig).await, now);
    let (code, text) = said(&rig, &["verify", "--review", "accept", &id]).await;
    assert_eq!((code, text.contains(&format!("no row {id} is to be reviewed"))), (Some(1), true), "{text}");

    // What the source writes comes by itself, and is to be reviewed no more.
    rig.source.exec("UPDATE items SET qty = 5 WHERE id IN (1, 7)").await;
    rig.target_has("SELECT count(*) FROM items WHERE id IN (1, 7) AND qty = 5", "2").await;
    assert_eq!(verify(&rig.work, &[]).await.0, Some(1));
    assert_eq!(listed(&rig).await, ["extra 5000 open", "extra zz accepted"]);
    worker.kill9().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repair_of_some_rows_leaves_the_others_as_they_are() {
    let (rig, mut worker) = moved().await;
    rig.target.exec(DRIFT).await;
    rig.target.exec("UPDATE items SET qty = 99 WHERE id = 8; UPDATE items SET sku = 'x' WHERE id = 9").await;
    assert_eq!(verify(&rig.work, &[]).await.0, Some(1));
    let (seven, nine) = (id_of(&rig, "7").await, id_of(&rig, "9").await);
    rig.target.exec("UPDATE items SET sku = 'sku-9' WHERE id = 9").await;
    let (code, became) = reviewed(&rig, &["repair", &seven, &nine]).await;
    assert_eq!(code, Some(0), "{became}");
    let outcome = |id: &str| {
        let rows = became["rows"].as_array().unwrap();
        rows.iter().find(|row| row["id"].as_i64() == id.parse().ok()).unwrap()["outcome"].clone()
    };
    assert_eq!((outcome(&seven), outcome(&nine)), ("repaired".into(), "equal".into()), "{became}");
    rig.target_has("SELECT id, qty FROM items WHERE id IN (7, 8) ORDER BY id", "7 0, 8 99").await;
    let left = ["different 8 open", "extra 5000 open", "extra zz open", "missing 1 open"];
    assert_eq!(listed(&rig).await, left);

    // What is accepted is repaired for who names it, and for nobody else.
    let eight = id_of(&rig, "8").await;
    assert_eq!(reviewed(&rig, &["accept", &eight]).await.1["accepted"], 1);
    let (code, text) = said(&rig, &["verify", "--review", "repair"]).await;
    assert_eq!((code, text.contains("2 repaired, 0 equal already, 1 left")), (Some(1), true), "{text}");
    assert!(text.contains("delete it by hand"), "{text}");
    rig.target_has("SELECT count(*) FROM items WHERE id IN (1, 5000)", "1").await;
    assert_eq!(listed(&rig).await, ["different 8 accepted", "extra zz open"]);
    let (code, text) = said(&rig, &["verify", "--review", "repair", &eight]).await;
    assert_eq!((code, text.contains("(8)  repaired")), (Some(0), true), "{text}");
    rig.target.exec("DELETE FROM codes WHERE code = 'zz'").await;
    assert_clean(&rig.work).await;
    assert_eq!(listed(&rig).await, Vec::<String>::new());
    let (code, text) = said(&rig, &["verify", "--review", "repair"]).await;
    assert_eq!((code, text.contains("nothing to repair")), (Some(0), true), "{text}");

    // One that the target refuses by now is told as what it is.
    rig.target.exec("UPDATE items SET qty = 99 WHERE id = 10").await;
    assert_eq!(verify(&rig.work, &[]).await.0, Some(1));
    rig.target.exec("ALTER TABLE items ADD CHECK (id <> 10 OR qty = 99)").await;
    let (code, text) = said(&rig, &["verify", "--review", "repair"]).await;
    assert_eq!((code, text.contains("dead letter") && text.contains("1 left")), (Some(1), true), "{text}");
    worker.kill9().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_review_cannot_do_is_said_with_what_to_do() {
    let (rig, mut worker) = moved().await;
    rig.work.configure_also("[verify]\nrepair_rows_max = 2\n");
    rig.target.exec(DRIFT).await;
    assert_eq!(verify(&rig.work, &[]).await.0, Some(1));
    let id = id_of(&rig, "7").await;
    let id = id.as_str();
    for (arguments, code, word) in [
        (&["--review", "repair", "999999"][..], 1, "no row 999999 is to be reviewed"),
        (&["--review", "accept", id, "999999"], 1, "nothing was done; `cutover verify --review list`"),
        (&["--review", "accept", "seven"], 2, "an ID is a whole number; `cutover verify --review list` shows them"),
        (&["--review", "forget"], 2, "possible values: list, accept, repair"),
        (&["--review", "list", "--table", "u"], 2, "no source table `u`; it has"),
        (&["--review", "accept", id, "--table", "items"], 2, "cannot be used with"),
        (&["--review", "list", "--values"], 2, "cannot be used with"),
        (&["--review", "repair", "--repair"], 2, "cannot be used with"),
        (&[id], 2, "--review"),
        (&["--review", "repair"], 2, "4 rows, more than 2 ([verify] repair_rows_max)"),
    ] {
        let (found, text) = said(&rig, &[&["verify"], arguments].concat()).await;
        assert_eq!((found, text.contains(word)), (Some(code), true), "{arguments:?}: {text}");
    }
    assert_eq!(listed(&rig).await.iter().filter(|row| row.ends_with("open")).count(), 4);
    worker.kill9().await;
    rig.eventually("no worker", async |status| status["worker_running"] == false).await;
    let (code, text) = said(&rig, &["verify", "--review", "repair", id]).await;
    assert_eq!((code, text.contains("`cutover verify --review repair` again")), (Some(1), true), "{text}");
    let (code, text) = said(&rig, &["verify", "--review", "accept", id]).await;
    assert_eq!((code, text.contains("1 accepted")), (Some(0), true), "{text}");
    let (_, text) = said(&rig, &["verify", "--review", "accept", id]).await;
    assert!(text.contains("0 accepted") && text.contains("1 were accepted before"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_cannot_be_made_is_accepted_for_as_long_as_the_source_row_is_the_same() {
    let source = Mysql::v80().await;
    let at_source = "CREATE TABLE notes (id bigint PRIMARY KEY, note varchar(40));
        INSERT INTO notes VALUES (1, '12'), (2, 'not-for-logs'), (3, '13')";
    let at_target = "CREATE TABLE notes (id bigint PRIMARY KEY, note int)";
    let rig = Rig::new(source, Postgres::v18().await, &["notes"], at_source, at_target).await;
    rig.work.transform("notes", "SELECT id, note::int AS note FROM notes");
    let mut worker = rig.work.start(&[]);
    let dead = async |what: &str| {
        rig.eventually(what, async |status| status["dead_letters"] == 1 && status["phase"] == "following").await;
        rig.target.exec("DELETE FROM cutover.dead_letters").await;
    };
    dead("a dead letter").await;
    rig.target_has("SELECT count(*) FROM notes", "2").await;
    assert_eq!(verify(&rig.work, &["--values"]).await.0, Some(1));
    let (_, found) = reviewed(&rig, &["list"]).await;
    assert_eq!(rows(&found), [r#"missing {"id":2} open"#], "{found}");
    assert!(!found.to_string().contains("not-for-logs"), "{found}");
    assert_eq!(reviewed(&rig, &["accept"]).await.1["accepted"], 1);
    for _ in 0..2 {
        let (code, verdict) = verify(&rig.work, &[]).await;
        assert_eq!((code, accepted(&verdict, "notes")), (Some(0), 1), "{verdict}");
    }
    rig.source.exec("UPDATE notes SET note = 'nor-is-this' WHERE id = 2").await;
    dead("the next dead letter").await;
    let (code, verdict) = verify(&rig.work, &[]).await;
    assert_eq!((code, accepted(&verdict, "notes"), counts(&verdict, "notes")[1]), (Some(1), 0, 1), "{verdict}");
    let (code, text) = said(&rig, &["verify", "--review", "repair"]).await;
    assert_eq!((code, text.contains("1 left")), (Some(1), true), "{text}");
    rig.target.exec("DELETE FROM cutover.dead_letters").await;
    rig.source.exec("UPDATE notes SET note = '14' WHERE id = 2").await;
    rig.target_has("SELECT note FROM notes WHERE id = 2", "14").await;
    assert_clean(&rig.work).await;
    assert_eq!(listed(&rig).await, Vec::<String>::new());
    worker.kill9().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_worker_notes_what_it_finds_and_mends_no_row_that_was_accepted() {
    let (rig, mut worker) = moved().await;
    rig.target.exec("UPDATE items SET qty = 99 WHERE id = 7").await;
    assert_eq!(verify(&rig.work, &[]).await.0, Some(1));
    assert_eq!(reviewed(&rig, &["accept"]).await.1["accepted"], 1);
    worker.kill9().await;
    rig.work.configure_also("[verify]\nauto_repair = true\n");
    // One row that it mends, and one that it cannot.
    rig.target.exec("UPDATE items SET qty = 99 WHERE id = 8; INSERT INTO codes VALUES ('zz', 'x')").await;
    // It compares a table every ten minutes at most.
    rig.target.exec("DELETE FROM cutover.notes WHERE key LIKE 'verified %'").await;
    let mut worker = following(&rig).await;
    eventually("the worker has compared both tables", BACKGROUND, async || {
        let verified = "SELECT count(*) FROM cutover.notes WHERE key LIKE 'verified %'";
        rig.target.value(verified).await.as_deref() == Some("2")
    })
    .await;
    rig.target_has("SELECT id, qty FROM items WHERE id IN (7, 8) ORDER BY id", "7 99, 8 1").await;
    assert_eq!(listed(&rig).await, ["different 7 accepted", "extra zz open"]);
    assert_eq!(rig.status().await["drift_rows"], 1);
    worker.kill9().await;
}

//! DynamoDB as the source, on DynamoDB Local: copied while it changes, whatever its items hold, killed at any moment,
//! equal in the end.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use serde_json::{Value, json};

use crate::support::{Dynamo, Postgres, Workspace, eventually, plain_item};

const SYNCED: Duration = Duration::from_secs(90);

/// A pipeline of these tables, with the credentials that DynamoDB Local wants to see.
fn workspace(name: &str, source: &Dynamo, target: &Postgres, tables: &[&str]) -> Workspace {
    let mut work = Workspace::new(name, &source.url, &target.url(), tables);
    work.set_env("AWS_ACCESS_KEY_ID", "cutover");
    work.set_env("AWS_SECRET_ACCESS_KEY", "cutover");
    work
}

async fn synced(work: &Workspace) {
    let mut worker = work.start(&["--until-synced"]);
    let ended = worker.wait_exit(SYNCED).await;
    assert!(ended.success(), "{}", worker.stderr());
}

/// Every item of a table with the text key `id`, by what the service says and by what the column `item` of the target
/// holds.
async fn assert_equal(source: &Dynamo, target: &Postgres, table: &str) {
    let mut wanted: Vec<Value> = source.items(table).await.iter().map(plain_item).collect();
    wanted.sort_by_key(|item| item["id"].to_string());
    assert!(!wanted.is_empty(), "{table} has items to compare");
    let rows = target.query(&format!("SELECT id, item FROM \"{table}\"")).await;
    let mut found: Vec<Value> = Vec::new();
    for row in rows {
        let item: Value = serde_json::from_str(row[1].as_deref().unwrap()).unwrap();
        assert_eq!(item["id"].as_str(), row[0].as_deref(), "the key's column is the item's attribute");
        found.push(item);
    }
    found.sort_by_key(|item| item["id"].to_string());
    assert_eq!(wanted.len(), found.len(), "{table}: items");
    for (wanted, found) in wanted.iter().zip(&found) {
        assert_eq!(wanted, found, "{table}");
    }
}

async fn target_table(target: &Postgres, table: &str) {
    target.exec(&format!("CREATE TABLE \"{table}\" (id text PRIMARY KEY, item jsonb NOT NULL)")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_is_copied_and_followed_into_typed_columns() {
    let (source, target) = (Dynamo::shared().await, Postgres::v15().await);
    let table = source.table("Books", &[("isbn", "S")]).await;
    for (isbn, title, price) in [("1", "One", "9.99"), ("2", "Two", "12.5"), ("3", "Three", "0.01")] {
        source.put(&table, json!({"isbn": {"S": isbn}, "title": {"S": title}, "price": {"N": price}})).await;
    }
    target.exec("CREATE TABLE books (isbn text PRIMARY KEY, title text NOT NULL, price numeric(10,2) NOT NULL)").await;
    let work = workspace("typed", &source, &target, &[&table]);
    work.transform(
        "books",
        &format!("SELECT isbn, item->>'title' AS title, (item->>'price')::numeric AS price FROM \"{table}\";"),
    );
    let mut worker = work.start(&[]);
    let books = "SELECT string_agg(isbn || title || price, ' ' ORDER BY isbn) FROM books";
    eventually("the copy is there", SYNCED, async || {
        target.value(books).await.as_deref() == Some("1One9.99 2Two12.50 3Three0.01")
    })
    .await;
    source.put(&table, json!({"isbn": {"S": "2"}, "title": {"S": "Two!"}, "price": {"N": "13"}})).await;
    source.delete(&table, json!({"isbn": {"S": "1"}})).await;
    source.put(&table, json!({"isbn": {"S": "4"}, "title": {"S": "Four"}, "price": {"N": "4"}})).await;
    eventually("the changes are there", SYNCED, async || {
        target.value(books).await.as_deref() == Some("2Two!13.00 3Three0.01 4Four4.00")
    })
    .await;
    worker.terminate().await;
    assert!(worker.wait_exit(Duration::from_secs(10)).await.success(), "{}", worker.stderr());
    source.delete(&table, json!({"isbn": {"S": "3"}})).await;
    synced(&work).await;
    assert_eq!(target.value(books).await.as_deref(), Some("2Two!13.00 4Four4.00"));
}

/// An item with every type of attribute.
fn everything(id: &str) -> Value {
    json!({
        "id": {"S": id},
        "text": {"S": "plain \"and\" \\ \n \u{e9} \u{1F600} \u{1}"}, "empty": {"S": ""},
        "digits": {"N": "0.12345678901234567890123456789012345678"}, "big": {"N": "-9.9999999999999999999999999999999999999E+125"},
        "small": {"N": "1E-130"}, "whole": {"N": "12345678901234567890123456789012345678"}, "zero": {"N": "0"},
        "bytes": {"B": "AP+A"}, "none": {"B": ""}, "yes": {"BOOL": true}, "no": {"BOOL": false}, "null": {"NULL": true},
        "map": {"M": {"a": {"L": [{"N": "1"}, {"S": "1"}, {"M": {}}, {"NULL": true}]}, " ": {"S": "a name without letters"}}},
        "list": {"L": []}, "texts": {"SS": ["b", "a", "\u{e9}"]}, "numbers": {"NS": ["2", "1.50", "-3"]}, "blobs": {"BS": ["Ag==", "AQ=="]},
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn every_type_of_attribute_arrives_exactly_copied_and_followed() {
    let (source, target) = (Dynamo::shared().await, Postgres::v18().await);
    let table = source.table("Types", &[("id", "S")]).await;
    target_table(&target, &table).await;
    source.put(&table, everything("copied")).await;
    source.put(&table, json!({"id": {"S": "bare"}})).await;
    source.put(&table, json!({"id": {"S": "mixed1"}, "mixed": {"N": "1"}})).await;
    let work = workspace("types", &source, &target, &[&table]);
    synced(&work).await;
    assert_equal(&source, &target, &table).await;
    source.put(&table, everything("followed")).await;
    source.put(&table, json!({"id": {"S": "mixed1"}, "mixed": {"S": "one"}})).await;
    source.put(&table, json!({"id": {"S": "mixed2"}, "mixed": {"L": [{"BOOL": true}]}})).await;
    source.delete(&table, json!({"id": {"S": "bare"}})).await;
    synced(&work).await;
    assert_equal(&source, &target, &table).await;
    let exact = target.value(&format!("SELECT item->>'whole' FROM \"{table}\" WHERE id = 'followed'")).await;
    assert_eq!(exact.as_deref(), Some("12345678901234567890123456789012345678"));
    assert_eq!(target.value("SELECT count(*) FROM cutover.dead_letters").await.as_deref(), Some("0"));
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_every_type_are_columns_of_their_own() {
    let (source, target) = (Dynamo::shared().await, Postgres::v15().await);
    let table = source.table("Keys", &[("n", "N"), ("b", "B")]).await;
    target.exec("CREATE TABLE keys (n numeric, b bytea, v text, PRIMARY KEY (n, b))").await;
    let item = |n: &str, b: &str, v: &str| json!({"n": {"N": n}, "b": {"B": b}, "v": {"S": v}});
    source.put(&table, item("12345678901234567890123456789012345678", "AP8=", "copied")).await;
    source.put(&table, item("-0.5", "AQ==", "copied")).await;
    let work = workspace("keys", &source, &target, &[&table]);
    work.transform("keys", &format!("SELECT n, b, item->>'v' AS v FROM \"{table}\";"));
    synced(&work).await;
    source.put(&table, item("-0.50", "AQ==", "changed")).await;
    source.put(&table, item("1E2", "AA==", "new")).await;
    source.delete(&table, json!({"n": {"N": "12345678901234567890123456789012345678"}, "b": {"B": "AP8="}})).await;
    synced(&work).await;
    let rows = target.query("SELECT n, encode(b, 'hex'), v FROM keys ORDER BY n").await;
    let rows: Vec<Vec<&str>> =
        rows.iter().map(|row| row.iter().map(|cell| cell.as_deref().unwrap()).collect()).collect();
    assert_eq!(rows, [["-0.5", "01", "changed"], ["100", "00", "new"]]);
}

/// One change of a random item: put, put of another shape, delete.
async fn change(source: &Dynamo, table: &str, random: &mut StdRng, items: u32) {
    let id = format!("k{}", random.random_range(0..items * 2));
    let (number, kind) = (random.random_range(0..1_000_000), random.random_range(0..4));
    match kind {
        0 => source.delete(table, json!({"id": {"S": id}})).await,
        1 => source.put(table, json!({"id": {"S": id}, "n": {"S": format!("now text {number}")}})).await,
        _ => {
            source
                .put(table, json!({"id": {"S": id}, "n": {"N": number.to_string()}, "tags": {"SS": ["x", "y"]}}))
                .await
        }
    }
}

async fn seed(source: &Dynamo, table: &str, items: u32) {
    let filler = "x".repeat(200);
    let items: Vec<Value> = (0..items)
        .map(|id| json!({"id": {"S": format!("k{id}")}, "n": {"N": id.to_string()}, "filler": {"S": filler}}))
        .collect();
    source.put_all(table, &items).await;
}

/// Changes these tables until told to stop; how many changes that were.
fn load(source: &Arc<Dynamo>, tables: Vec<String>, items: u32, stop: &Arc<AtomicBool>) -> tokio::task::JoinHandle<u32> {
    let (source, stop) = (Arc::clone(source), Arc::clone(stop));
    tokio::spawn(async move {
        let (mut random, mut count) = (StdRng::seed_from_u64(11), 0);
        while !stop.load(Ordering::Relaxed) {
            for table in &tables {
                change(&source, table, &mut random, items).await;
            }
            count += 1;
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
        count
    })
}

async fn is_following(work: &Workspace) -> bool {
    let status = work.run(&["status", "--json"]).await;
    String::from_utf8_lossy(&status.stdout).contains("\"phase\":\"following\"")
}

#[tokio::test(flavor = "multi_thread")]
async fn several_tables_are_copied_and_followed_through_kills() {
    let (source, target) = (Arc::new(Dynamo::shared().await), Postgres::v15().await);
    let items = 3_000;
    let tables = [source.table("Users", &[("id", "S")]).await, source.table("Books", &[("id", "S")]).await];
    for table in &tables {
        seed(&source, table, items).await;
        target_table(&target, table).await;
    }
    let work = workspace("kills", &source, &target, &[&tables[0], &tables[1]]);
    work.configure_also("[snapshot]\nchunk_rows = 100\n");
    let stop = Arc::new(AtomicBool::new(false));
    let load = load(&source, tables.to_vec(), items, &stop);
    for kill in 0..3u64 {
        let mut worker = work.start(&[]);
        tokio::time::sleep(Duration::from_millis(1_500 + 700 * kill)).await;
        assert!(worker.is_running(), "{}", worker.stderr());
        worker.kill9().await;
    }
    let mut worker = work.start(&[]);
    eventually("the copy is complete", SYNCED, async || is_following(&work).await).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    worker.kill9().await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    stop.store(true, Ordering::Relaxed);
    assert!(load.await.unwrap() > 100, "the load ran");
    synced(&work).await;
    for table in &tables {
        assert_equal(&source, &target, table).await;
    }
    assert_eq!(target.value("SELECT count(*) FROM cutover.dead_letters").await.as_deref(), Some("0"));
}

/// The copy reads each page long before the next, while what it has read and what it has not are changed, removed and
/// made again. DynamoDB Local rounds its records' times down to the minute, so that versions by time alone would be far
/// below the copy's.
#[tokio::test(flavor = "multi_thread")]
async fn rule_15_a_slow_copy_beside_the_stream_never_wins_over_a_later_change() {
    let (source, target) = (Dynamo::shared().await, Postgres::v18().await);
    let table = source.table("Overlap", &[("id", "S")]).await;
    let items = 600;
    seed(&source, &table, items).await;
    target_table(&target, &table).await;
    let work = workspace("overlap", &source, &target, &[&table]);
    work.configure_also("[snapshot]\nchunk_rows = 20\nparallel = 1\nread_units_per_second = 3\n");
    let mut worker = work.start(&[]);
    let mut random = StdRng::seed_from_u64(3);
    let mut changes = 0;
    let count = format!("SELECT count(*) FROM \"{table}\"");
    while !is_following(&work).await {
        for _ in 0..40 {
            change(&source, &table, &mut random, items / 2).await;
            changes += 1;
        }
        assert!(worker.is_running() && changes < 100_000, "{}", worker.stderr());
    }
    assert!(changes > 400, "{changes} changes beside the copy of {:?} rows", target.value(&count).await);
    worker.terminate().await;
    worker.wait_exit(Duration::from_secs(10)).await;
    synced(&work).await;
    assert_equal(&source, &target, &table).await;
    // Once more over what is there: what the copy does not meet is removed, and nothing newer is.
    target.exec(&format!("INSERT INTO \"{table}\" (id, item, cutover_version) VALUES ('stray', '{{}}', 1)")).await;
    let mut worker = work.start(&[]);
    let asked = work.run(&["resnapshot", &table]).await;
    assert!(asked.status.success(), "{}", String::from_utf8_lossy(&asked.stderr));
    for _ in 0..200 {
        change(&source, &table, &mut random, items / 2).await;
    }
    eventually("the table is copied again", SYNCED, async || {
        is_following(&work).await
            && target.value(&format!("SELECT count(*) FROM \"{table}\" WHERE id = 'stray'")).await.as_deref()
                == Some("0")
    })
    .await;
    worker.terminate().await;
    worker.wait_exit(Duration::from_secs(10)).await;
    synced(&work).await;
    assert_equal(&source, &target, &table).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_by_time_to_live_is_a_delete_that_a_transform_can_tell() {
    let parts_of = || json!({"L": [{"S": "a"}, {"S": "b"}]});
    let (source, target) = (Dynamo::shared().await, Postgres::v15().await);
    let (gone, kept) = (source.table("Gone", &[("id", "S")]).await, source.table("Kept", &[("id", "S")]).await);
    for table in [&gone, &kept] {
        let ttl = json!({"TableName": table, "TimeToLiveSpecification": {"Enabled": true, "AttributeName": "until"}});
        source.call("UpdateTimeToLive", ttl).await;
        source.put(table, json!({"id": {"S": "lasting"}})).await;
        source.put(table, json!({"id": {"S": "removed"}, "parts": parts_of()})).await;
    }
    let tables = "CREATE TABLE gone (id text PRIMARY KEY); CREATE TABLE kept (id text PRIMARY KEY, note text);
        CREATE TABLE kept_parts (id text REFERENCES kept ON DELETE CASCADE, part text, PRIMARY KEY (id, part))";
    target.exec(tables).await;
    let work = workspace("ttl", &source, &target, &[&gone, &kept]);
    work.transform("gone", &format!("SELECT id FROM \"{gone}\";"));
    work.transform("kept", &format!("SELECT id, item->>'note' AS note FROM \"{kept}\" WHERE NOT cutover_ttl_delete;"));
    let parts = format!(
        "-- cutover: parent_key = id\nSELECT id, part FROM \"{kept}\" CROSS JOIN LATERAL jsonb_array_elements_text(item->'parts') part \
         WHERE NOT cutover_ttl_delete;"
    );
    work.transform("kept_parts", &parts);
    let mut worker = work.start(&[]);
    eventually("the copy is complete", SYNCED, async || is_following(&work).await).await;
    let past = (std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() - 60).to_string();
    for table in [&gone, &kept] {
        // The worker stops before it is removed, so that the item comes and goes within one batch.
        source
            .put(
                table,
                json!({"id": {"S": "expired"}, "until": {"N": past}, "note": {"S": "first"}, "parts": parts_of()}),
            )
            .await;
    }
    worker.kill9().await;
    for table in [&gone, &kept] {
        source
            .put(
                table,
                json!({"id": {"S": "expired2"}, "until": {"N": past}, "note": {"S": "first"}, "parts": parts_of()}),
            )
            .await;
        source.delete(table, json!({"id": {"S": "removed"}})).await;
    }
    eventually("the service has removed what expired", SYNCED, async || {
        source.items(&gone).await.len() == 1 && source.items(&kept).await.len() == 1
    })
    .await;
    synced(&work).await;
    let ids = |table: &'static str| format!("SELECT string_agg(id, ' ' ORDER BY id) FROM {table}");
    assert_eq!(target.value(&ids("gone")).await.as_deref(), Some("lasting"));
    assert_eq!(target.value(&ids("kept")).await.as_deref(), Some("expired expired2 lasting"));
    let note = target.value("SELECT string_agg(note, ' ') FROM kept WHERE id LIKE 'expired%'").await;
    assert_eq!(note.as_deref(), Some("first first"));
    let parts = target.value("SELECT string_agg(id || ' ' || part, ', ' ORDER BY id, part) FROM kept_parts").await;
    assert_eq!(parts.as_deref(), Some("expired a, expired b, expired2 a, expired2 b"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_has_a_gap_halts_until_every_table_is_copied_again() {
    let (source, target) = (Dynamo::shared().await, Postgres::v15().await);
    let table = source.table("Gap", &[("id", "S")]).await;
    seed(&source, &table, 50).await;
    target_table(&target, &table).await;
    let work = workspace("gap", &source, &target, &[&table]);
    synced(&work).await;
    let stream = |on: bool| match on {
        true => {
            json!({"TableName": table, "StreamSpecification": {"StreamEnabled": true, "StreamViewType": "NEW_AND_OLD_IMAGES"}})
        }
        false => json!({"TableName": table, "StreamSpecification": {"StreamEnabled": false}}),
    };
    source.call("UpdateTable", stream(false)).await;
    source.delete(&table, json!({"id": {"S": "k1"}})).await;
    source.put(&table, json!({"id": {"S": "unseen"}})).await;
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    source.call("UpdateTable", stream(true)).await;
    let mut worker = work.start(&[]);
    eventually("it halts, and says how to go on", SYNCED, async || {
        let status = work.run(&["status", "--json"]).await;
        let status = String::from_utf8_lossy(&status.stdout).into_owned();
        status.contains("turned off and on again") && status.contains("cutover resnapshot")
    })
    .await;
    assert!(work.run(&["resnapshot", &table]).await.status.success());
    eventually("the table is copied again", SYNCED, async || {
        let unseen = format!("SELECT count(*) FROM \"{table}\" WHERE id IN ('unseen', 'k1')");
        is_following(&work).await && target.value(&unseen).await.as_deref() == Some("1")
    })
    .await;
    source.put(&table, json!({"id": {"S": "later"}})).await;
    worker.terminate().await;
    worker.wait_exit(Duration::from_secs(10)).await;
    synced(&work).await;
    assert_equal(&source, &target, &table).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn check_names_what_is_missing_and_init_writes_what_passes_it() {
    let (source, target) = (Dynamo::shared().await, Postgres::v15().await);
    let (bare, keys) = (source.name("Bare"), source.name("KeysOnly"));
    source.create(&bare, &[("id", "S")], None).await;
    source.create(&keys, &[("id", "S")], Some("KEYS_ONLY")).await;
    let work = workspace("check", &source, &target, &[&bare, &keys, "Missing"]);
    let checked = work.run(&["check"]).await;
    assert_eq!(checked.status.code(), Some(1));
    let told = String::from_utf8_lossy(&checked.stdout).into_owned();
    for part in [
        format!("table `{bare}` has no stream"),
        "StreamViewType=NEW_AND_OLD_IMAGES".into(),
        format!("the stream of table `{keys}` does not show items before and after"),
        "there is no table `Missing`".into(),
    ] {
        assert!(told.contains(&part), "{part} in {told}");
    }

    let table = source.table("orderLines", &[("orderId", "S"), ("no", "N")]).await;
    for no in 1..=3 {
        source
            .put(
                &table,
                json!({"orderId": {"S": "o1"}, "no": {"N": no.to_string()}, "price": {"N": "1.5"}, "Qty": {"N": "2"},
                       "at": {"S": "2024-05-30T10:00:00Z"}, "gift": {"BOOL": true}, "tags": {"SS": ["a"]}, "select": {"S": "x"}}),
            )
            .await;
    }
    let out = work.path().join("out");
    let written = work
        .run(&[
            "init",
            "--source",
            &source.url,
            "--target",
            &target.url(),
            "--table",
            &table,
            "--out",
            out.to_str().unwrap(),
        ])
        .await;
    assert!(written.status.success(), "{}", String::from_utf8_lossy(&written.stderr));
    let schema = std::fs::read_to_string(out.join("schema.sql")).unwrap();
    target.exec(&schema).await;
    let config = out.join("cutover.toml");
    // The password of the target is not written down.
    let toml = std::fs::read_to_string(&config).unwrap().replace("${TARGET_PASSWORD}", "admin");
    std::fs::write(&config, toml).unwrap();
    let checked = work.run(&["check", "-c", config.to_str().unwrap()]).await;
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
    let ran = work.run(&["run", "--until-synced", "--listen", "127.0.0.1:0", "-c", config.to_str().unwrap()]).await;
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    let name = table.to_lowercase().replace("orderlines", "order_lines");
    let row = target
        .query(&format!("SELECT order_id, no, price, qty, at, gift, tags, \"select\" FROM {name} WHERE no = 2"))
        .await;
    let row: Vec<&str> = row[0].iter().map(|cell| cell.as_deref().unwrap()).collect();
    assert_eq!(row, ["o1", "2", "1.5", "2", "2024-05-30 10:00:00+00", "t", "[\"a\"]", "x"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_was_set_aside_is_read_again_by_its_key() {
    let (source, target) = (Dynamo::shared().await, Postgres::v15().await);
    let table = source.table("Aside", &[("id", "S")]).await;
    target.exec("CREATE TABLE aside (id text PRIMARY KEY, n integer CHECK (n < 10))").await;
    let work = workspace("aside", &source, &target, &[&table]);
    work.transform("aside", &format!("SELECT id, (item->>'n')::integer AS n FROM \"{table}\";"));
    let mut worker = work.start(&[]);
    eventually("the copy is complete", SYNCED, async || is_following(&work).await).await;
    source.put(&table, json!({"id": {"S": "good"}, "n": {"N": "1"}})).await;
    source.put(&table, json!({"id": {"S": "bad"}, "n": {"N": "10"}})).await;
    let letters = "SELECT count(*) FROM cutover.dead_letters WHERE state = 'open'";
    eventually("it is set aside", SYNCED, async || target.value(letters).await.as_deref() == Some("1")).await;
    target.exec("ALTER TABLE aside DROP CONSTRAINT aside_n_check").await;
    let retried = work.run(&["dlq", "retry", "--all"]).await;
    assert!(retried.status.success(), "{}", String::from_utf8_lossy(&retried.stderr));
    assert_eq!(target.value("SELECT n FROM aside WHERE id = 'bad'").await.as_deref(), Some("10"));
    assert_eq!(target.value(letters).await.as_deref(), Some("0"));
    worker.terminate().await;
    worker.wait_exit(Duration::from_secs(10)).await;
}

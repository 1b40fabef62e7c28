//! How fast the sink is, beside the floor: COPY into a temporary table and one upsert, of the same rows, in the same
//! run. Ignored by default, because it measures the machine:
//! `cargo test --test it apply_rate -- --ignored --nocapture`.

#![allow(clippy::print_stdout, reason = "the figures are the result")]

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use cutover::{
    log::Topic,
    model::{ColumnType, TableSchema},
    target::{BatchEvent, RowEvent},
};
use futures::SinkExt;

use crate::apply_rig::{Lane, Rig, read, table};

const ROWS: usize = 100_000;
const COLUMNS: &str = "id, session_id, product, quantity, price_cents, status, note, added_at, meta";
const DDL: &str = "CREATE TABLE items (id bigint PRIMARY KEY, session_id bigint NOT NULL, product text, quantity int,
  price_cents bigint, status text, note text, added_at timestamptz, meta jsonb)";
const SQL: &str = "SELECT id::bigint AS id, session_id, product, quantity, (price * 100)::bigint AS price_cents,
  CASE status WHEN 1 THEN 'active' ELSE 'gone' END AS status, note, added_at AT TIME ZONE 'UTC' AS added_at, meta
  FROM legacy_items";

fn source() -> Arc<TableSchema> {
    let decimal = ColumnType::Numeric { precision: 10, scale: 2 };
    table(
        "legacy_items",
        &[
            ("id", ColumnType::Numeric { precision: 20, scale: 0 }),
            ("session_id", ColumnType::BigInt),
            ("product", ColumnType::Text),
            ("quantity", ColumnType::Integer),
            ("price", decimal),
            ("status", ColumnType::SmallInt),
            ("note", ColumnType::Text),
            ("added_at", ColumnType::Timestamp),
            ("meta", ColumnType::Json),
        ],
    )
}

fn image(id: usize, round: usize) -> String {
    format!(
        r#"{{"id":{id},"session_id":{},"product":"product {}","quantity":{},"price":"{}.99","status":{},"note":"note of round {round}","added_at":"2024-05-30T10:00:00.123456Z","meta":"{{\"a\": {id}}}"}}"#,
        id / 7,
        id % 1000,
        id % 9,
        id % 500,
        id % 2
    )
}

fn events(schema: &Arc<TableSchema>, round: usize, before: bool) -> Vec<BatchEvent> {
    (0..ROWS)
        .map(|id| {
            let old = if before { image(id, round - 1) } else { "null".into() };
            let op = if before { "u" } else { "c" };
            let value = format!(
                r#"{{"before":{old},"after":{},"source":{{"version":"1","connector":"mysql","name":"x","db":"shop","table":"legacy_items"}},"op":"{op}","ts_ms":1}}"#,
                image(id, round)
            );
            let version = (round * ROWS + id) as i64;
            BatchEvent::Row(RowEvent {
                schema: schema.clone(),
                key: Bytes::from(format!(r#"{{"id":{id}}}"#)),
                value: Bytes::from(value),
                version,
                commit_us: version,
                offset: 0,
            })
        })
        .collect()
}

async fn timed(lane: &mut Lane, events: Vec<BatchEvent>, size: usize) -> f64 {
    let batches: Vec<Vec<BatchEvent>> = events.chunks(size).map(<[BatchEvent]>::to_vec).collect();
    let start = Instant::now();
    for batch in batches {
        lane.apply(batch).await;
    }
    ROWS as f64 / start.elapsed().as_secs_f64() / 1000.0
}

async fn floor(rig: &Rig, round: usize) -> f64 {
    let client = rig.pg.connect().await;
    client
        .batch_execute(
            "CREATE TABLE IF NOT EXISTS floor (LIKE items INCLUDING ALL); CREATE TEMP TABLE batch (LIKE items INCLUDING DEFAULTS)",
        )
        .await
        .unwrap();
    let batches: Vec<String> = (0..ROWS)
        .collect::<Vec<_>>()
        .chunks(10_000)
        .map(|ids| {
            let line = |id: &usize| {
                format!(
                    "{id}\t{}\tproduct {}\t{}\t{}99\tactive\tnote of round {round}\t2024-05-30 10:00:00.123456+00\t{{\"a\": {id}}}\t{}\n",
                    id / 7, id % 1000, id % 9, id % 500, round * ROWS + id
                )
            };
            ids.iter().map(line).collect()
        })
        .collect();
    let set: Vec<String> = COLUMNS.split(", ").skip(1).map(|column| format!("{column} = excluded.{column}")).collect();
    let upsert = format!(
        "INSERT INTO floor AS g SELECT * FROM batch ON CONFLICT (id) DO UPDATE SET {}, cutover_version = \
         excluded.cutover_version WHERE g.cutover_version <= excluded.cutover_version; TRUNCATE batch; COMMIT",
        set.join(", ")
    );
    let copied = format!("COPY batch ({COLUMNS}, cutover_version) FROM STDIN");
    let start = Instant::now();
    for batch in batches {
        client.batch_execute("BEGIN").await.unwrap();
        let mut copy = std::pin::pin!(client.copy_in(&copied).await.unwrap());
        copy.send(Bytes::from(batch)).await.unwrap();
        copy.close().await.unwrap();
        client.batch_execute(&upsert).await.unwrap();
    }
    ROWS as f64 / start.elapsed().as_secs_f64() / 1000.0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures the machine"]
async fn rates() {
    let schema = source();
    // The mapping of the last is not proven to be one to one: its rows have owners.
    let owned = SQL.replace("id::bigint", "abs(id)::bigint");
    for (name, sql, filter) in [
        ("total", SQL, ""),
        ("filter", SQL, " WHERE quantity >= 0"),
        ("set", SQL, ", generate_series(1, 1) one"),
        ("owned", owned.as_str(), ""),
    ] {
        let sql = format!("{sql}{filter}");
        let rig = Rig::new(DDL, std::slice::from_ref(&schema), &[("items.sql", &sql)]).await;
        let (insert, update) = (floor(&rig, 1).await, floor(&rig, 2).await);
        println!("{name}: floor: insert {insert:.0}, update {update:.0} krows/s");
        for size in [500, 2_000, 5_000, 10_000] {
            rig.pg.exec("TRUNCATE items; TRUNCATE cutover.offsets").await;
            let mut lane = rig.lane(Topic::Changes).await;
            let inserted = timed(&mut lane, events(&schema, 1, false), size).await;
            let updated = timed(&mut lane, events(&schema, 2, true), size).await;
            println!(
                "{name}, batches of {size}: insert {inserted:.0} ({:.2} of the floor), update {updated:.0} ({:.2})",
                inserted / insert,
                updated / update
            );
        }
        let mut lane = rig.lane(Topic::Changes).await;
        let mut micros: Vec<u128> = Vec::new();
        for event in events(&schema, 3, true).into_iter().take(2_000) {
            let start = Instant::now();
            lane.apply(vec![event]).await;
            micros.push(start.elapsed().as_micros());
        }
        micros.sort_unstable();
        println!("{name}: one row: p50 {} µs, p99 {} µs", micros[1_000], micros[1_980]);
    }
}

/// Changes of `ROWS` rows, as the log has them.
fn plain(schema: &Arc<TableSchema>, round: usize, row: impl Fn(usize) -> serde_json::Value) -> Vec<BatchEvent> {
    let version = |id: usize| (round * ROWS + id) as i64;
    (0..ROWS).map(|id| read(schema, version(id), &row(id))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures the machine"]
async fn rates_of_shared_rows_and_sets() {
    let users = table("users", &[("id", ColumnType::BigInt), ("name", ColumnType::Text)]);
    let oauth = table("oauth", &[("id", ColumnType::BigInt), ("token", ColumnType::Text)]);
    let orders = table("orders", &[("id", ColumnType::BigInt), ("items", ColumnType::Json)]);
    let ddl = "CREATE TABLE accounts (id bigint PRIMARY KEY, name text NOT NULL, token text);
        CREATE TABLE people (id bigint PRIMARY KEY, name text NOT NULL);
        CREATE TABLE items (order_id bigint, sku text, PRIMARY KEY (order_id, sku))";
    let user = |id: usize| serde_json::json!({ "id": id, "name": format!("user {id}") });
    let token = |id: usize| serde_json::json!({ "id": id, "token": format!("token {id}") });
    let order = |id: usize| serde_json::json!({ "id": id, "items": format!("[\"a\", \"b\", \"c{id}\"]") });
    for on_delete in ["clear", "delete"] {
        let accounts = format!(
            "SELECT id, name FROM users WHERE name <> '';\n-- cutover: on_delete = {on_delete}\nSELECT id, token FROM oauth"
        );
        let sets = "-- cutover: parent_key = order_id\nSELECT id AS order_id, jsonb_array_elements_text(items) AS sku FROM orders";
        let sources = [users.clone(), oauth.clone(), orders.clone()];
        let rig = Rig::new(ddl, &sources, &[("accounts.sql", &accounts), ("items.sql", sets)]).await;
        let mut lane = rig.lane(Topic::Changes).await;
        for (what, events) in [
            ("follower, waits", plain(&oauth, 1, token)),
            ("owner, takes what waits", plain(&users, 2, user)),
            ("owner, updates", plain(&users, 3, user)),
            ("follower, updates", plain(&oauth, 4, token)),
            ("sets of three, inserted", plain(&orders, 5, order)),
            ("sets of three, updated", plain(&orders, 6, order)),
        ] {
            println!("on_delete = {on_delete}: {what}: {:.0} krows/s", timed(&mut lane, events, 2_000).await);
        }
        rig.pg.exec("TRUNCATE accounts").await;
        println!(
            "on_delete = {on_delete}: owner alone: {:.0} krows/s",
            timed(&mut lane, plain(&users, 7, user), 2_000).await
        );
    }
    let rig =
        Rig::new(ddl, std::slice::from_ref(&users), &[("people.sql", "SELECT id, name FROM users WHERE name <> ''")])
            .await;
    let mut lane = rig.lane(Topic::Changes).await;
    for what in ["inserted", "updated"] {
        println!("a row of one table, {what}: {:.0} krows/s", timed(&mut lane, plain(&users, 1, user), 2_000).await);
    }
}

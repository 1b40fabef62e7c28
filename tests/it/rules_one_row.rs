//! One row never stops the rest: everything that a row alone can cause is that row's dead letter, and what no row is to
//! blame for halts with nothing lost (rule 24). At the sink; a row that is too long for an index, end to end.

use std::sync::Arc;

use cutover::{
    log::Topic,
    model::{ColumnType, TableSchema},
    target::{ApplyError, Sink},
};
use serde_json::{Value, json};

use crate::{
    apply_rig::{Rig, insert, table},
    rules_rig,
    support::{Mysql, Postgres},
};

fn notes() -> Arc<TableSchema> {
    table("notes", &[("id", ColumnType::BigInt), ("n", ColumnType::Integer), ("body", ColumnType::Text)])
}

fn note(id: i64, body: &str) -> Value {
    json!({ "id": id, "n": id, "body": body })
}

const PLAIN: &str = "SELECT id, n, body FROM notes";
const TABLE: &str = "CREATE TABLE notes (id bigint PRIMARY KEY, n integer, body text);";

/// A trigger that does this for a row whose body is `bad`.
fn trigger(act: &str) -> String {
    format!(
        "{TABLE} CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
           $$ BEGIN IF new.body = 'bad' THEN {act}; END IF; RETURN new; END $$;
         CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON notes FOR EACH ROW EXECUTE FUNCTION refuse()"
    )
}

/// The third of five rows is bad: it alone becomes a dead letter with this SQLSTATE.
async fn one_bad_row(ddl: &str, select: &str, bad: &str, sqlstate: &str) {
    let (rig, notes) = (Rig::new(ddl, &[notes()], &[("notes.sql", select)]).await, notes());
    let mut lane = rig.lane(Topic::Changes).await;
    let body = |id: i64| if id == 3 { bad } else { "good" };
    let events = (1..=5).map(|id| insert(&notes, id, &note(id, body(id)))).collect();
    let applied = lane.apply(events).await;
    assert_eq!(applied.dead_letters, 1, "{sqlstate} of {ddl}");
    assert_eq!(rig.rows("id", "notes").await, ["1", "2", "4", "5"], "{sqlstate}");
    let letter = "SELECT key_text || ' ' || sqlstate FROM cutover.dead_letters WHERE state = 'open'";
    assert_eq!(rig.pg.value(letter).await, Some(format!("{{\"id\":3}} {sqlstate}")), "{ddl}");
    // Alone in its batch as well.
    let applied = lane.apply(vec![insert(&notes, 6, &note(6, bad))]).await;
    assert_eq!(applied.dead_letters, 1, "{sqlstate} of {ddl}");
    lane.apply(vec![insert(&notes, 7, &note(7, "good"))]).await;
    assert_eq!(rig.rows("id", "notes").await, ["1", "2", "4", "5", "7"], "{sqlstate}");
}

#[tokio::test]
async fn rule_24_what_a_trigger_raises_for_one_row_is_its_dead_letter() {
    one_bad_row(&trigger("RAISE EXCEPTION 'no'"), PLAIN, "bad", "P0001").await;
    one_bad_row(&trigger("RAISE EXCEPTION 'no' USING ERRCODE = 'ZX123'"), PLAIN, "bad", "ZX123").await;
    one_bad_row(&trigger("RAISE EXCEPTION 'no' USING ERRCODE = '0A000'"), PLAIN, "bad", "0A000").await;
    one_bad_row(&trigger("RAISE EXCEPTION 'no' USING ERRCODE = 'XX000'"), PLAIN, "bad", "XX000").await;
    one_bad_row(&trigger("RAISE EXCEPTION 'no' USING ERRCODE = '42501'"), PLAIN, "bad", "42501").await;
    one_bad_row(&trigger("PERFORM no_such_function()"), PLAIN, "bad", "42883").await;
    one_bad_row(&trigger("PERFORM 1 FROM no_such_table"), PLAIN, "bad", "42P01").await;
    one_bad_row(&trigger("ASSERT false"), PLAIN, "bad", "P0004").await;
}

#[tokio::test]
async fn rule_24_a_value_that_only_one_row_has_is_its_dead_letter() {
    let generated =
        format!("{} ALTER TABLE notes ADD g integer GENERATED ALWAYS AS (1 / (length(body) - 3)) STORED", TABLE);
    one_bad_row(&generated, PLAIN, "bad", "22012").await;
    let domain = "CREATE DOMAIN word AS text CHECK (value <> 'bad'); CREATE TABLE notes (id bigint PRIMARY KEY, n integer, body word)";
    one_bad_row(domain, PLAIN, "bad", "23514").await;
    let parts = "CREATE TABLE notes (id bigint, n integer, body text, PRIMARY KEY (id, body)) PARTITION BY LIST (body);
        CREATE TABLE notes_good PARTITION OF notes FOR VALUES IN ('good')";
    let keyed = table("notes", &[("id", ColumnType::BigInt), ("n", ColumnType::Integer), ("body", ColumnType::Text)]);
    assert_eq!(keyed.key, [0], "the partition's column is no part of the source's key");
    // The partition's column follows from the key.
    let by_key = "SELECT id, n, CASE id % 3 WHEN 0 THEN 'bad' ELSE 'good' END AS body FROM notes";
    one_bad_row(parts, by_key, "anything", "23514").await;
    let numeric = "CREATE TABLE notes (id bigint PRIMARY KEY, n numeric(3, 1))";
    let power = "SELECT id, CASE body WHEN 'bad' THEN 10.0 ^ 9 ELSE 1 END AS n FROM notes";
    one_bad_row(numeric, power, "bad", "22003").await;
    let one = "SELECT id, (SELECT x FROM generate_series(1, length(body) - 3) x) AS n FROM notes";
    one_bad_row(TABLE, one, "worse", "21000").await;
}

#[tokio::test]
async fn rule_24_a_row_over_a_limit_of_the_server_is_its_dead_letter_wherever_the_limit_is() {
    // No compression makes this fit into an index entry.
    let index = "CREATE TABLE notes (id bigint PRIMARY KEY, n integer, body text UNIQUE)";
    let noise = "SELECT id, n, CASE body WHEN 'bad' THEN
        (SELECT string_agg(md5(id::text || x), '') FROM generate_series(1, 200) x) ELSE body || id END AS body FROM notes";
    one_bad_row(index, noise, "bad", "54000").await;
    let json = "CREATE TABLE notes (id bigint PRIMARY KEY, body jsonb)";
    let deep = "SELECT id, CASE body WHEN 'bad' THEN repeat('[', 100000) || repeat(']', 100000) ELSE '1' END::jsonb AS body FROM notes";
    one_bad_row(json, deep, "bad", "54001").await;
    let field = "SELECT id, n, CASE body WHEN 'bad' THEN repeat(body, 1 << 29) ELSE body END AS body FROM notes";
    one_bad_row(TABLE, field, "bad", "54000").await;
}

/// What was to halt did, and nothing became a dead letter.
async fn halts(rig: &Rig, events: usize, part: &str) {
    let notes = notes();
    let mut lane = rig.lane(Topic::Changes).await;
    let from = i64::try_from(lane.next).unwrap();
    let rows = (1..=events as i64).map(|id| insert(&notes, from + id, &note(from + id, "bad"))).collect();
    let error = lane.try_apply(rows).await.unwrap_err();
    let ApplyError::Halt(problem) = error else { panic!("{part}: {error}") };
    assert!(problem.what.contains(part) && problem.fix.contains("cutover check"), "{problem}");
    assert_eq!(rig.count("cutover.dead_letters").await, 0, "{part}");
    assert_eq!(rig.count("notes").await, 0, "{part}");
}

#[tokio::test]
async fn rule_24_what_is_refused_without_a_row_too_halts() {
    let rig = Rig::new(TABLE, &[notes()], &[("notes.sql", PLAIN)]).await;
    rig.pg.exec("ALTER TABLE notes DROP COLUMN body").await;
    halts(&rig, 1, "42703").await;
    let statement = format!(
        "{TABLE} CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM no_such_function(); END $$;
         CREATE TRIGGER refuse BEFORE INSERT ON notes FOR EACH STATEMENT EXECUTE FUNCTION refuse()"
    );
    let rig = Rig::new(&statement, &[notes()], &[("notes.sql", PLAIN)]).await;
    halts(&rig, 1, "42883").await;
}

#[tokio::test]
async fn rule_24_what_is_refused_for_every_row_of_a_table_halts() {
    let rig = Rig::new(&trigger("PERFORM no_such_function()"), &[notes()], &[("notes.sql", PLAIN)]).await;
    halts(&rig, 3, "42883").await;
    let rig = Rig::new(TABLE, &[notes()], &[("notes.sql", PLAIN)]).await;
    let mut lane = rig.lane(Topic::Changes).await;
    lane.sink.abandon().await.unwrap();
    rig.pg.exec("DROP TABLE notes").await;
    let error = lane.try_apply(vec![insert(&notes(), 1, &note(1, "x"))]).await.unwrap_err();
    assert!(matches!(&error, ApplyError::Halt(problem) if problem.what.contains("42P01")), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_24_a_key_over_the_limit_of_an_index_stops_nothing_else() {
    let at_source = "CREATE TABLE t (url varchar(2950) CHARACTER SET latin1 PRIMARY KEY, n int)";
    let at_target = "CREATE TABLE t (url text PRIMARY KEY, n int)";
    let rig = rules_rig::Rig::new(Mysql::v80().await, Postgres::v18().await, &["t"], at_source, at_target).await;
    let noise: String = (0..92).map(|place| format!("md5({place}), ")).collect();
    let long = format!("INSERT INTO t VALUES (left(concat({}''), 2900), 1)", noise);
    rig.source.exec(&format!("INSERT INTO t VALUES ('a', 1), ('b', 2); {long}")).await;
    let (code, said) = rig.until_synced().await;
    assert_eq!(code, Some(1), "{said}");
    rig.target_has("SELECT url, n FROM t ORDER BY 1", "a 1, b 2").await;
    let _worker = rig.work.start(&[]);
    rig.source.exec("INSERT INTO t VALUES ('c', 3); UPDATE t SET n = 9 WHERE length(url) > 99").await;
    rig.target_has("SELECT url, n FROM t ORDER BY 1", "a 1, b 2, c 3").await;
}

//! Claims about what compares a target with the source's rows: the product's own comparer, on servers and on the model.

use std::sync::Arc;

use cutover::{
    log::Topic,
    model::{Plan, TableName, TableSchema, Version},
    target::{
        Batch, BatchEvent, Compared, Comparer, Doubt, Looks, RowEvent, Sink, Walk,
        postgres::{ApplyConfig, PostgresComparer, PostgresSink, SinkOptions},
    },
};
use serde_json::{Value, json};

use super::{
    rig::{Rig, claim, options, param, rigs, run, simple},
    said,
    tables::{children, parents, users},
};
use crate::{
    apply_rig::{EPOCH, PIPELINE, delete, insert, read},
    simulator::postgres::Deferral,
};

fn user(id: i64, email: Option<&str>, age: &str, state: &str) -> Value {
    json!({ "id": id, "email": email, "age": age, "state": state, "tags": null })
}

fn parent(id: i64, name: Option<&str>) -> Value {
    json!({ "id": id, "name": name })
}

fn child(id: i64, parent: Option<i64>) -> Value {
    json!({ "id": id, "parent": parent })
}

/// What the target gets: rows, tombstones, a fence, and rows that wait or are dead letters.
fn applied() -> Vec<BatchEvent> {
    let (users, parents, children) = (users(), parents(), children());
    let row = |id: i64, state| insert(&users, id, &user(id, Some(&format!("mail {id}")), "30", state));
    let mut events = vec![
        insert(&parents, 9, &parent(9, Some("gone"))),
        BatchEvent::Truncate { schema: Arc::clone(&parents), version: 10 },
        insert(&parents, 11, &parent(1, Some("one"))),
        insert(&parents, 12, &parent(-2, None)),
        insert(&children, 13, &child(1, Some(1))),
        insert(&children, 14, &child(2, None)),
        // It waits for its parent.
        insert(&children, 15, &child(3, Some(77))),
        // A dead letter.
        insert(&users, 16, &user(16, Some("old"), "999", "open")),
        insert(&users, 17, &user(17, Some("mail 17"), "30", "open")),
        delete(&users, 50, &user(17, Some("mail 17"), "30", "open")),
    ];
    events.extend((1..9).map(|id| row(id, if id % 2 == 0 { "open" } else { "closed" })));
    events
}

/// What the source has of each table, in two parts: equal, different, missing, of null, beside rows that are extra
/// below, between and above, and one that cannot be transformed.
fn source() -> Vec<(Arc<TableSchema>, [Vec<Value>; 2])> {
    let users_first = vec![
        user(2, Some("mail 2"), "30", "open"),
        user(3, Some("other"), "31", "closed"),
        user(4, None, "30", "closed"),
        user(5, Some("mail 5"), "no number", "open"),
    ];
    let users_second = vec![
        user(7, Some("mail 7"), "30", "open"),
        user(16, Some("old"), "999", "open"),
        user(17, Some("mail 17"), "30", "open"),
        user(18, Some("new"), "30", "open"),
    ];
    let parents_first = vec![parent(-2, Some("named")), parent(0, Some("new"))];
    let parents_second = vec![parent(1, Some("one")), parent(9, Some("gone"))];
    let children_first = vec![child(1, None), child(2, None)];
    vec![
        (users(), [users_first, users_second]),
        (parents(), [parents_first, parents_second]),
        (children(), [children_first, vec![child(3, Some(77))]]),
    ]
}

fn events(schema: &Arc<TableSchema>, rows: &[Value]) -> Vec<RowEvent> {
    let event = |row: &Value| match read(schema, Version::MAX, row) {
        BatchEvent::Row(event) => event,
        other => panic!("{other:?} is no row"),
    };
    rows.iter().map(event).collect()
}

/// Doubts as they are told, whatever their order; a digest is each server's own.
fn told(mut doubts: Vec<Doubt>) -> Vec<String> {
    doubts.sort_by_key(|doubt| (doubt.plan, doubt.key.clone(), doubt.row, doubt.difference));
    doubts.iter_mut().for_each(|doubt| doubt.digest = 0);
    doubts.iter().map(|doubt| format!("  {doubt:?}")).collect()
}

async fn apply(rig: &Rig) {
    let options = SinkOptions {
        target: rig.target(),
        session: options("sink", false),
        pipeline: PIPELINE.into(),
        topic: Topic::Changes,
        partition: 0,
        lease_epoch: 1,
        check_offset: true,
        config: ApplyConfig::default(),
    };
    let mut sink = PostgresSink::open(options, Arc::clone(&rig.plans)).await.unwrap();
    sink.claim(EPOCH).await.unwrap();
    let batch = Batch {
        topic: Topic::Changes,
        partition: 0,
        log_epoch: EPOCH.into(),
        from: 0,
        to: 1,
        events: applied(),
        complete: true,
        control: None,
        chunks: Vec::new(),
        newest_commit_us: None,
    };
    sink.apply(batch).await.unwrap();
}

/// Compares a table as a walk and its second looks do; what was told.
async fn compare(
    comparer: &mut dyn Comparer,
    plans: &[Plan],
    schema: &Arc<TableSchema>,
    parts: &[Vec<Value>],
) -> Vec<String> {
    let mut lines = vec![format!("{}", schema.table)];
    comparer.begin(&schema.table, Walk::Ranged).await.unwrap();
    let mut keys = Vec::new();
    for part in parts {
        match comparer.compare(&events(schema, part)).await.unwrap() {
            Compared::Part { doubts, rows, shared } => {
                keys.extend(doubts.iter().map(|doubt| (doubt.plan, doubt.key.clone())));
                lines.push(format!("{rows} rows, shared {shared:?}"));
                lines.extend(told(doubts));
            }
            Compared::Unordered => lines.push("unordered".into()),
        }
    }
    loop {
        let extras = comparer.extras().await.unwrap();
        if extras.is_empty() {
            break;
        }
        keys.extend(extras.iter().map(|doubt| (doubt.plan, doubt.key.clone())));
        lines.push("extras".into());
        lines.extend(told(extras));
    }
    lines.push(format!("{} noted", comparer.note_shared().await.unwrap()));
    let all = events(schema, &parts.concat());
    let mut twice = all.clone();
    twice.extend(all.iter().take(1).cloned());
    lines.push(format!("{:?}", comparer.shared(&twice, false).await.unwrap()));
    let records: Vec<String> = all.iter().map(|row| String::from_utf8(row.key.to_vec()).unwrap()).collect();
    keys.retain(|(plan, _)| plans[*plan].source.table == schema.table);
    let looked = comparer.again(&schema.table, &all, &keys, &records).await.unwrap();
    lines.push("again".into());
    lines.extend(told(looked.doubts));
    let mut parked: Vec<String> = looked.parked.iter().map(|(key, why)| format!("{key}: {why:?}")).collect();
    parked.sort();
    lines.extend(parked);
    lines
}

#[tokio::test]
async fn claim_rows_are_compared_alike() {
    let mut expected: Option<Vec<String>> = None;
    for rig in rigs(Deferral::NotDeferrable).await {
        apply(&rig).await;
        // Of the sets that one row makes the model knows nothing here.
        let plans = rig.plans.iter().filter(|plan| plan.target.name.table != "user_tags").cloned();
        let plans: Arc<[Plan]> = plans.collect();
        let mut lines = Vec::new();
        for values in [false, true] {
            let (looks, target) = (Looks { values, ..Looks::default() }, rig.target());
            let options = options("verify", false);
            let comparer = PostgresComparer::open((&target, &options), PIPELINE, Arc::clone(&plans), looks).await;
            let mut comparer = comparer.unwrap();
            for (schema, parts) in source() {
                lines.extend(compare(&mut comparer, &plans, &schema, &parts).await);
            }
            let tables: Vec<TableName> = [users(), children()].iter().map(|schema| schema.table.clone()).collect();
            lines.push(format!("orphans {:?}", comparer.orphans(&tables).await.unwrap()));
        }
        match &expected {
            None => expected = Some(lines),
            Some(expected) => assert_eq!(lines, *expected, "{} (left) and 15 (right) differ", rig.name),
        }
    }
    let lines = expected.unwrap_or_default();
    for (what, times) in [("Missing", 14), ("Extra", 14), ("Different", 10), ("Refused", 4), ("Waits", 2), ("Dead", 2)]
    {
        let found = lines.iter().filter(|line| line.contains(what)).count();
        assert!(found >= times, "{found} times {what} in {lines:#?}");
    }
}

#[tokio::test]
async fn claim_a_transaction_of_repeatable_read_sees_the_moment_of_its_first_statement() {
    let fences = |session| run(session, "fences", vec![param(PIPELINE)]);
    let fence = |version: i64| run("b", "fence", vec![param(PIPELINE), param("shop.users"), param(version)]);
    let steps = vec![
        simple("a", "BEGIN ISOLATION LEVEL REPEATABLE READ"),
        fence(1),
        fences("a"),
        fence(2),
        simple("a", "SAVEPOINT look"),
        fences("a"),
        simple("a", "ROLLBACK TO SAVEPOINT look"),
        fences("a"),
        simple("a", "COMMIT"),
        fences("a"),
    ];
    let told = claim(steps).await;
    for (step, version) in [(2, 1), (5, 1), (7, 1), (9, 2)] {
        said(&told, &format!("a{step}: (shop.users {version})"));
    }
}

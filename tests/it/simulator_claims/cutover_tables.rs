//! Claims about cutover's own tables: the lane's offset, what is set aside, copies, the lease.

use std::sync::Arc;

use cutover::{
    log::{Topic, record::ChunkEnd},
    model::Plan,
    snapshot::{Chunk, KeyRange, Progress},
    state::{StateError, Store, lease},
    target::postgres::{left_statement, sweep_statement},
};

use super::{
    rig::{Param, Part, Rig, Step, What, claim, options, param, plan, rigs, run, simple},
    said,
    tables::users,
};
use crate::{
    apply_rig::{EPOCH, PIPELINE},
    simulator::postgres::Deferral,
};

fn claim_lane(session: &'static str, epoch: &'static str, lease_epoch: i64) -> Step {
    let params = vec![param(PIPELINE), param("changes"), param(0i32), param(epoch), param(lease_epoch)];
    run(session, "claim", params)
}

fn advance(session: &'static str, lease_epoch: i64, from: i64, to: i64) -> Step {
    let mut params = vec![param(PIPELINE), param("changes"), param(0i32), param(EPOCH), param(lease_epoch)];
    params.extend([param(from), param(to), param(None::<String>), param(7i64), param(9i64)]);
    run(session, "advance", params)
}

#[tokio::test]
async fn claim_the_offset_moves_once_from_where_it_is_under_the_newest_lease() {
    let told = claim(vec![
        claim_lane("a", EPOCH, 1),
        simple("a", "BEGIN"),
        advance("a", 1, 0, 5),
        advance("b", 1, 0, 6),
        simple("a", "COMMIT"),
        simple("a", "BEGIN"),
        advance("a", 1, 5, 7),
        advance("b", 1, 5, 8),
        simple("a", "ROLLBACK"),
        simple("a", "BEGIN"),
        advance("a", 1, 8, 9),
        // A new lease waits for the transaction at work, and shuts its owner out.
        claim_lane("b", EPOCH, 2),
        simple("a", "COMMIT"),
        advance("a", 1, 9, 10),
        claim_lane("a", EPOCH, 1),
        claim_lane("a", "another", 2),
        run("a", "has lease", vec![param(PIPELINE), param("changes"), param(0i32), param(2i64)]),
        run("a", "holds", vec![param(PIPELINE), param("changes"), param(0i32), param(EPOCH), param(2i64)]),
    ])
    .await;
    said(&told, "b3: waits");
    said(&told, "b3: ok after 4");
    said(&told, "b7: (1) after 8");
    said(&told, "b11: (9 null 7) after 12");
    said(&told, "a13: ok");
    said(&told, "a14: ok");
    said(&told, "a15: (0 null 7)");
    said(&told, "a17: ok");
}

fn texts(values: &[&str]) -> Param {
    param(values.iter().map(|value| (*value).to_owned()).collect::<Vec<_>>())
}

fn dead_letter(session: &'static str, key: &str, version: i64) -> Step {
    dead_letter_of(session, "shop.users", key, version)
}

fn dead_letter_of(session: &'static str, source: &str, key: &str, version: i64) -> Step {
    let mut params = vec![param(PIPELINE), param("changes"), param(0i32), texts(&[source]), texts(&[key])];
    params.extend([param(vec![version]), param(vec![1i64]), param(vec![2i64])]);
    params.extend([texts(&["22P02"]), texts(&["bad"]), texts(&["{}"])]);
    run(session, "dead letters", params)
}

fn wait(session: &'static str, key: &str, version: i64) -> Step {
    let mut params = vec![param(PIPELINE), param(0i32), texts(&["shop.users"]), texts(&[key])];
    params.extend([param(vec![version]), param(vec![1i64]), texts(&["{}"]), texts(&["why"]), param(vec![77i64])]);
    run(session, "wait", params)
}

fn clear(session: &'static str, name: &'static str, key: &str, version: i64) -> Step {
    run(session, name, vec![param(PIPELINE), texts(&["shop.users"]), texts(&[key]), param(vec![version])])
}

fn renew_letter(session: &'static str, id: i64, version: i64) -> Step {
    let mut params = vec![param(PIPELINE), param("snapshot"), param(0i32), param(vec![id]), param(vec![version])];
    params.extend([param(vec![2i64]), param(vec![3i64]), texts(&["22001"]), texts(&["worse"]), texts(&["{}"])]);
    run(session, "renew dead letters", params)
}

#[tokio::test]
async fn claim_a_renewed_dead_letter_keeps_its_number_and_has_a_higher_mark() {
    let key = "{\"id\":1}";
    let ask = |session, name| run(session, name, vec![param(PIPELINE)]);
    let open = |session| run(session, "open dead letters of rows", vec![param(PIPELINE), texts(&[key])]);
    let told = claim(vec![
        dead_letter("a", key, 5),
        dead_letter("a", key, 6),
        open("a"),
        simple("a", "BEGIN"),
        run("a", "superseded dead letters", vec![param(PIPELINE), param(vec![2i64])]),
        renew_letter("a", 1, 9),
        ask("a", "mark"),
        ask("b", "mark"),
        simple("a", "COMMIT"),
        ask("b", "mark"),
        ask("b", "held dead letters"),
        ask("b", "count dead letters"),
        open("b"),
        dead_letter("b", key, 10),
        ask("b", "mark"),
    ])
    .await;
    said(&told, "a6: (3)");
    said(&told, "b7: (2)");
    said(&told, "b9: (3)");
    said(&told, "b14: (4)");
}

#[tokio::test]
async fn claim_what_is_set_aside_is_there_once() {
    let mark = |session| run(session, "mark", vec![param(PIPELINE)]);
    let key = "{\"id\":1}";
    let told = claim(vec![
        dead_letter("a", key, 5),
        simple("a", "BEGIN"),
        dead_letter("a", key, 6),
        mark("a"),
        mark("b"),
        dead_letter("b", key, 6),
        simple("a", "COMMIT"),
        dead_letter("a", key, 5),
        mark("a"),
        clear("a", "clear dead letters", key, 5),
        run("a", "held dead letters", vec![param(PIPELINE)]),
        wait("a", key, 7),
        wait("a", key, 7),
        wait("a", key, 8),
        run("a", "records", vec![param(PIPELINE), texts(&[key, "other"])]),
        run("a", "waiting rows", vec![param(PIPELINE), param(vec![0i32]), param(1i64), param(4i64 << 20)]),
        run("a", "waiting parts", vec![param(PIPELINE)]),
        clear("a", "clear waiting rows", key, 7),
        run("a", "held waiting rows", vec![param(PIPELINE)]),
        run("a", "fence waiting rows", vec![param(PIPELINE), param("shop.users"), param(8i64)]),
        run("a", "fence dead letters", vec![param(PIPELINE), param("shop.users"), param(7i64)]),
    ])
    .await;
    said(&told, "a3: (2)");
    said(&told, "b4: (1)");
    said(&told, "b5: waits");
    said(&told, "b5: ok after 6");
    said(&told, "a8: (2)");
    said(&told, "a15: (shop.users {\"id\":1} 8 1 {})");
    said(&told, "a16: (0)");
}

#[tokio::test]
async fn claim_a_parent_frees_the_rows_that_need_it_once() {
    let free = |keys: Vec<i64>| run("a", "free waiting rows", vec![param(PIPELINE), param(keys)]);
    let needed = || run("a", "needed parents", vec![param(PIPELINE)]);
    let told = claim(vec![
        needed(),
        wait("a", "{\"id\":1}", 7),
        wait("a", "{\"id\":2}", 6),
        needed(),
        free(vec![5]),
        free(vec![5, 77]),
        free(vec![77]),
        wait("a", "{\"id\":2}", 6),
        free(vec![77]),
        run("a", "what rows wait for", vec![param("another")]),
    ])
    .await;
    said(&told, "a0: (false)");
    said(&told, "a3: (true)");
    said(&told, "a4: (0)");
    said(&told, "a5: (2)");
    said(&told, "a6: (0)");
    said(&told, "a8: (1)");
}

#[tokio::test]
async fn claim_a_parent_passes_over_rows_that_another_lane_has_locked() {
    let free = || run("b", "free waiting rows", vec![param(PIPELINE), param(vec![77i64])]);
    let told = claim(vec![
        wait("a", "{\"id\":1}", 7),
        wait("a", "{\"id\":2}", 6),
        simple("a", "BEGIN"),
        wait("a", "{\"id\":1}", 7),
        free(),
        simple("a", "COMMIT"),
        free(),
    ])
    .await;
    said(&told, "b4: (1)");
    said(&told, "b6: (1)");
}

#[tokio::test]
async fn claim_a_sweep_removes_what_the_copy_has_not_met_but_what_is_referred_to_or_a_dead_letter() {
    let image = |id: &'static str, version| plan("a", "parents", Part::Live, &[(version, false, &[Some(id), None])]);
    let sweep = |lease_epoch: i64, sql: fn(&Plan, &[Plan]) -> Option<String>| -> Step {
        let text = move |plans: &[Plan]| {
            let plan = plans.iter().find(|plan| plan.target.name.table == "parents").unwrap();
            sql(plan, plans).unwrap()
        };
        let params = vec![param(5i64), param(PIPELINE), param(lease_epoch), param("shop.parents")];
        ("a", What::Run(Arc::new(text), params))
    };
    let told = claim(vec![
        run("a", "lease row", vec![param(PIPELINE), param("worker")]),
        run("a", "take lease", vec![param(PIPELINE), param("worker"), param("holder"), param(10f64)]),
        image("1", 1),
        image("2", 1),
        image("3", 1),
        image("4", 9),
        image("5", 0),
        plan("a", "children", Part::Live, &[(1, false, &[Some("1"), Some("2")])]),
        dead_letter_of("a", "shop.parents", "{\"id\":3}", 2),
        sweep(2, sweep_statement),
        sweep(1, sweep_statement),
        sweep(1, |plan, _| left_statement(plan)),
        plan("a", "children", Part::Dead, &[(2, true, &[Some("1"), Some("2")])]),
        sweep(1, sweep_statement),
        sweep(1, |plan, _| left_statement(plan)),
        run("a", "alone", vec![param(PIPELINE)]),
        run("a", "waits", vec![param(PIPELINE), param(0i32)]),
        wait("a", "{}", 1),
        run("a", "waits", vec![param(PIPELINE), param(0i32)]),
    ])
    .await;
    said(&told, "a11: (true)");
    said(&told, "a14: (false)");
    said(&told, "a18: (true)");
}

#[tokio::test]
async fn claim_two_who_store_one_schema_store_it_once() {
    let schema = |session| run(session, "schema", vec![param(PIPELINE), param(1i64), param("{}")]);
    let told = claim(vec![simple("a", "BEGIN"), schema("a"), schema("b"), simple("a", "COMMIT"), schema("a")]).await;
    said(&told, "b2: waits");
    said(&told, "b2: ok after 3");
}

/// The life of a copy, as the product's store tells it.
async fn copies(rig: &Rig) -> Vec<String> {
    let store = Store::new(PIPELINE, rig.target(), options("store", false));
    let mut lines: Vec<String> = Vec::new();
    let names = ["users".to_owned(), "parents".to_owned()];
    store.register_tables(&names).await.unwrap();
    store.set_note("k", "v").await.unwrap();
    store.set_note("k", "w").await.unwrap();
    lines.push(format!("{:?} {:?}", store.note("k").await.unwrap(), store.note("other").await.unwrap()));
    store.add_schema(&users(), 5).await.unwrap();
    store.add_schema(&users(), 3).await.unwrap();
    let known = store.schemas().await.unwrap();
    lines.push(format!("{:?}", known.iter().map(|(clock, schema)| (*clock, schema.id())).collect::<Vec<_>>()));
    let unfinished = store.unfinished().await.unwrap();
    lines.push(format!("{unfinished:?}"));
    let copy = unfinished[0].clone();
    store.schema(&copy, &users(), 10).await.unwrap();
    lines.push(format!("{:?}", store.began(&copy, 4).await.unwrap()));
    lines.push(format!("{:?}", store.began(&copy, 9).await.unwrap()));
    let chunk = |number, lower: Option<&str>, upper: Option<&str>| {
        let range = KeyRange { lower: lower.map(str::to_owned), upper: upper.map(str::to_owned) };
        Chunk { number, range, done: false }
    };
    store.add_chunk(&copy, &chunk(1, None, Some("[5]")), false).await.unwrap();
    store.add_chunk(&copy, &chunk(1, None, Some("[6]")), false).await.unwrap();
    store.add_chunk(&copy, &chunk(2, Some("[5]"), None), true).await.unwrap();
    lines.push(format!("{:?}", store.chunks(&copy).await.unwrap()));
    let session = rig.session("claim", false).await;
    let claim = crate::simulator::postgres::Postgres::text_of("claim");
    session.client.query(claim, &[&PIPELINE, &"snapshot", &0i32, &EPOCH, &1i64]).await.unwrap();
    session.client.query(claim, &[&PIPELINE, &"snapshot", &1i32, &EPOCH, &1i64]).await.unwrap();
    let end = |chunk, rows| ChunkEnd { table: "users".into(), generation: 1, chunk, rows };
    // A process that slept through the end of its lease notes nothing any more.
    let lease = lease::acquire(&session.client, PIPELINE, "worker", "one").await.unwrap().unwrap();
    store.leads(lease.epoch);
    store.set_note("k", "x").await.unwrap();
    store.leads(lease.epoch + 1);
    let refused = store.set_note("k", "y").await.unwrap_err();
    assert!(matches!(refused, StateError::Superseded), "{refused}");
    lines.push(format!("{:?}", store.note("k").await.unwrap()));
    store.leads(0);
    for (partition, lease_epoch, to, chunks) in [
        (0, 1, 5, vec![end(1, 3), end(1, 3), end(2, 4)]),
        (0, 1, 6, vec![end(1, 3)]),
        (0, 2, 7, vec![end(2, 4)]),
        (1, 1, 5, vec![end(1, 2)]),
        (1, 1, 6, vec![end(2, 1)]),
    ] {
        lines.push(format!("{:?}", store.finish(&copy).await.unwrap()));
        let moved = store.advance_snapshot(partition, 2, lease_epoch, EPOCH, to, &chunks).await.unwrap();
        let stored = rig.dump("cutover.chunks", &["chunk", "rows", "state", "parts_done"]).await;
        lines.push(format!("{moved} {stored:?}"));
    }
    lines.push(format!("{:?} {:?}", store.finish(&copy).await.unwrap(), store.copies_left().await.unwrap()));
    lines.push(format!("{:?}", store.queue_copy("users", 7).await.unwrap()));
    lines.push(format!("{:?}", store.queue_copy("missing", 7).await.unwrap()));
    lines.push(format!("{:?} {:?}", store.not_to_be_copied_again().await, store.unfinished().await.unwrap()));
    lines.push(format!("{:?}", store.queue_begun_copies(false).await.unwrap()));
    store.schema(&store.unfinished().await.unwrap()[0], &users(), 11).await.unwrap();
    store.register_tables(&names[1..]).await.unwrap();
    lines.push(format!("{:?} {:?}", store.queue_begun_copies(true).await.unwrap(), store.unfinished().await.unwrap()));
    let mut next = store.next_offsets(EPOCH).await.unwrap();
    next.sort_unstable();
    lines.push(format!("{next:?} {:?} {:?}", store.newest_commits().await, store.position().await));
    let columns = ["source_table", "generation", "state", "rows_estimate", "rows_copied", "bounds_done", "not_before"];
    lines.extend(rig.dump("cutover.tables", &columns).await);
    lines.extend(rig.dump("cutover.chunks", &["chunk"]).await);
    lines
}

#[tokio::test]
async fn claim_the_life_of_a_copy_is_stored_alike() {
    let mut told = Vec::new();
    for rig in rigs(Deferral::NotDeferrable).await {
        told.push(copies(&rig).await);
    }
    assert_eq!(told[2], told[0], "the model (left) and 15 (right) differ");
    assert_eq!(told[1], told[0], "18 (left) and 15 (right) differ");
}

/// What becomes of the lease when its holder lives, gives it up, or dies.
async fn leases(rig: &Rig) -> Vec<String> {
    let mut lines = Vec::new();
    let (a, b) = (rig.session("a", false).await, rig.session("b", false).await);
    let of = |answer: Result<lease::Lease, lease::Holder>| match answer {
        Ok(lease) => format!("epoch {}", lease.epoch),
        Err(other) => format!("{} has it, {}", other.holder, (8.0..=10.0).contains(&other.seconds_left)),
    };
    let first = lease::acquire(&a.client, PIPELINE, "worker", "a").await.unwrap();
    let held = *first.as_ref().unwrap();
    lines.push(of(first));
    lines.push(of(lease::acquire(&b.client, PIPELINE, "worker", "b").await.unwrap()));
    lines.push(format!("{}", lease::renew(&a.client, PIPELINE, "worker", held).await.unwrap()));
    lease::release(&a.client, PIPELINE, "worker", held).await.unwrap();
    let holder = crate::simulator::postgres::Postgres::text_of("lease holder");
    let row = a.client.query_one(holder, &[&PIPELINE, &"worker"]).await.unwrap();
    lines.push(format!("{} {}", row.get::<_, String>(0), row.get::<_, f64>(1)));
    let second = lease::acquire(&b.client, PIPELINE, "worker", "b").await.unwrap();
    lines.push(of(second));
    lines.push(format!("{}", lease::renew(&a.client, PIPELINE, "worker", held).await.unwrap()));
    // Its session ends: the lease is free at once.
    drop(b);
    let taken = async || matches!(lease::acquire(&a.client, PIPELINE, "worker", "a").await, Ok(Ok(_)));
    crate::support::eventually("the dead holder's lease is taken", std::time::Duration::from_secs(8), taken).await;
    // The sinks of whoever held it before are ended, in whatever they were.
    let sink = rig.session(&lease::sink_name(PIPELINE, Topic::Changes, 0), false).await;
    let other = rig.session("other", false).await;
    sink.client.batch_execute("BEGIN").await.unwrap();
    let lock = crate::simulator::postgres::Postgres::text_of("lock");
    sink.client.query(lock, &[&vec![1i64]]).await.unwrap();
    lease::end_predecessor(&a.client, PIPELINE).await.unwrap();
    other.client.query(lock, &[&vec![1i64]]).await.unwrap();
    lines.push(format!("{}", sink.client.batch_execute("COMMIT").await.is_err()));
    lines
}

#[tokio::test]
async fn claim_a_lease_lasts_as_long_as_its_session() {
    let mut told = Vec::new();
    for rig in rigs(Deferral::NotDeferrable).await {
        told.push(leases(&rig).await);
    }
    assert_eq!(told[0], ["epoch 1", "a has it, true", "true", "a 0", "epoch 2", "false", "true"]);
    assert!(told.iter().all(|other| *other == told[0]), "{told:#?}");
}

//! A script about comparisons: who compares, how far the target is, what is parked.

use cutover::database::postgres::Address;

use super::{LOG, PIPELINE, Params, Script};

pub async fn verifications(target: Address) -> Vec<String> {
    let mut script = Script::new(target).await;
    let other = Script::new(script.target.clone()).await;
    let locks = (script.store.lock_verify().await.unwrap(), other.store.lock_verify().await.unwrap());
    // Whoever has it may take it again.
    let again = script.store.lock_verify().await.unwrap();
    script.say((locks, again, other.store.is_verified().await.unwrap()));
    let held = (script.store.has_verify_lock().await.unwrap(), other.store.has_verify_lock().await.unwrap());
    script.say(held);
    script.run("lock verify", &[&PIPELINE]).await;
    script.run("lock verify", &[&"another"]).await;
    script.run("verifies still", &[&PIPELINE]).await;
    script.run("anybody verifies", &[&"another"]).await;
    script.run("anybody verifies", &[&"none"]).await;
    script.say(script.store.reached(2).await.unwrap().is_none());
    for partition in 0..3 {
        script.claim("changes", partition, LOG).await;
    }
    script.advance("changes", 1, 5, 50).await;
    script.advance("changes", 0, 7, 50).await;
    script.advance("changes", 2, 7, 40).await;
    script.run("reached", &[&PIPELINE]).await;
    let reached = script.store.reached(3).await.unwrap().map(|reached| (reached.clock, reached.position));
    script.say((reached, script.store.reached(4).await.unwrap().is_none()));
    script.say(script.store.transforms_in_force().await.unwrap());
    for hash in ["h", "i"] {
        script.run("note transforms", &[&PIPELINE, &hash, &LOG, &"[]", &"[]"]).await;
    }
    script.say(script.store.transforms_in_force().await.unwrap());
    parked(&mut script).await;
    let body = vec!["{\"ts_ms\": 0}".to_owned()];
    for most in [1i64, 1, 2] {
        script.run("tell of an event", &[&PIPELINE, &body, &most]).await;
    }
    script.run("events to carry", &[&PIPELINE, &5i64]).await;
    script.lines
}

/// Rows that wait, are dead letters, or were; and one that is two of these.
async fn parked(script: &mut Script) {
    for (key, version) in [("{\"id\":1}", 5), ("{\"id\":2}", 6), ("{\"id\":3}", 7)] {
        script.dead_letter(key, version).await;
    }
    script.store.discard_dead_letters(&[2]).await.unwrap();
    let waits: Params<'_> = &[
        &PIPELINE,
        &0i32,
        &vec!["shop.users", "shop.users", "shop.items"],
        &vec!["{\"id\":2}", "{\"id\":4}", "{\"id\":1}"],
        &vec![8i64, 2, 2],
        &vec![1i64; 3],
        &vec!["{\"b\":1}", "{\"b\":2}", "{\"b\":3}"],
        &vec!["why"; 3],
        &vec![0i64; 3],
    ];
    script.run("wait", waits).await;
    let keys = |keys: &[&str]| keys.iter().map(|key| format!("{{\"id\":{key}}}")).collect::<Vec<_>>();
    for (table, wanted) in [("shop.users", keys(&["1", "2", "4", "9"])), ("shop.items", keys(&["1"])), ("x", keys(&[]))]
    {
        script.run("parked rows", &[&PIPELINE, &table, &wanted]).await;
    }
}

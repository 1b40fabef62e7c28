//! Scripts about what is set aside: dead letters, and a replay with the rows that it could not apply.

use std::fmt::Debug;

use cutover::{
    database::postgres::Address,
    state::{
        dead_letters::{DeadLetter, DeadLetterState, Selection},
        replays::{Details, From, Range, Replay},
    },
};
use serde_json::json;

use super::{LOG, PIPELINE, Params, Script};
use crate::simulator::postgres::Postgres;

fn plain(letter: &DeadLetter) -> impl Debug + use<> {
    let times = (letter.since.len(), letter.renewed.is_some());
    (
        letter.id,
        letter.table.clone(),
        letter.key.to_string(),
        letter.attempts,
        letter.version,
        letter.state.name(),
        times,
    )
}

/// Dead letters: listed, shown, tried again, closed.
pub async fn letters(target: Address) -> Vec<String> {
    let mut script = Script::new(target).await;
    script.run("schema", &[&PIPELINE, &1i64, &"{\"b\": [1, {}], \"a\": null}"]).await;
    for (key, version) in [("{\"id\": 1}", 5), ("{\"id\": 2}", 6), ("{\"id\": 1}", 7)] {
        script.dead_letter(key, version).await;
    }
    let chosen = [Selection::Ids(vec![3, 9]), Selection::Table("shop.users".into()), Selection::Table("x".into())];
    for selection in chosen {
        let letters = script.store.dead_letters(DeadLetterState::Open, &selection).await.unwrap();
        script.say(letters.iter().map(plain).collect::<Vec<_>>());
    }
    let discarded = script.store.discard_dead_letters(&[2, 9]).await.unwrap();
    script.say((discarded, script.store.discard_dead_letters(&[2]).await.unwrap()));
    for state in [DeadLetterState::Open, DeadLetterState::Discarded] {
        let letters = script.store.dead_letters(state, &Selection::All).await.unwrap();
        script.say(letters.iter().map(plain).collect::<Vec<_>>());
    }
    let shown = script.store.dead_letter(2).await.unwrap().map(|(letter, record)| (plain(&letter), record.to_string()));
    script.say(shown);
    script.say(script.store.dead_letter(9).await.unwrap().is_none());
    let wanted: Params<'_> = &[&PIPELINE, &"open", &None::<Vec<i64>>];
    let rows = script.session.client.query(Postgres::text_of("rows of dead letters"), wanted).await.unwrap();
    script.say(rows.iter().map(|row| row.get::<_, i64>(2)).collect::<Vec<_>>());
    let renewed: Params<'_> = &[
        &PIPELINE,
        &"snapshot",
        &0i32,
        &vec![1i64],
        &vec![9i64],
        &vec![1i64],
        &vec![3i64],
        &vec!["22001"],
        &vec!["worse"],
        &vec!["{}"],
    ];
    script.run("renew dead letters", renewed).await;
    let waits: Params<'_> = &[
        &PIPELINE,
        &0i32,
        &vec!["shop.users"],
        &vec!["{\"id\": 1}"],
        &vec![8i64],
        &vec![1i64],
        &vec!["{}"],
        &vec!["why"],
        &vec![0i64],
    ];
    script.run("wait", waits).await;
    script.run("retried dead letters", &[&PIPELINE, &vec![1i64, 2, 3]]).await;
    let letters = script.store.dead_letters(DeadLetterState::Open, &Selection::All).await.unwrap();
    script.say(letters.iter().map(plain).collect::<Vec<_>>());
    script.lines
}

fn seen(replay: Option<Replay>) -> Option<(i64, &'static str, String, String, u64, u64)> {
    let replay = replay?;
    Some((replay.id, replay.state.name(), replay.details.label, replay.outcome, replay.done, replay.resumed_done))
}

/// A replay from its begin to its end, with rows that could not be replayed.
pub async fn replays(target: Address) -> Vec<String> {
    let mut script = Script::new(target).await;
    let range = |from, to| Range { from, to };
    let details = |label: &str| Details {
        from: From::Beginning,
        label: label.into(),
        tables: Vec::new(),
        log_epoch: LOG.into(),
        transforms: "t".into(),
        deletes: vec![range(0, 10)],
        snapshot: vec![range(0, 4)],
        changes: vec![range(2, 10)],
        rows: 12,
    };
    let (first, second) =
        (serde_json::to_string(&details("first")).unwrap(), serde_json::to_string(&details("second")).unwrap());
    let topics = ["replay.deletes", "replay.snapshot", "replay.changes"].map(str::to_owned).to_vec();
    let (parts, nexts) = (vec![0i32, 0, 0], vec![0i64, 0, 2]);
    script.say(script.store.any_replay().await.unwrap());
    script.say(script.store.is_verified().await.unwrap());
    script.note("{\"id\": 1}", &[(5, "a")]).await;
    script.run("begin replay", &[&PIPELINE, &7i64, &first, &LOG, &topics, &parts, &nexts]).await;
    script.run("begin replay", &[&PIPELINE, &8i64, &second, &LOG, &topics, &parts, &nexts]).await;
    script.say(script.store.any_replay().await.unwrap());
    script.run("claim", &[&PIPELINE, &"replay.deletes", &0i32, &LOG, &1i64]).await;
    script.advance("replay.deletes", 0, 6, 0).await;
    let running = seen(script.store.running_replay().await.unwrap());
    script.say(running);
    script.run("resume replay", &[&PIPELINE, &7i64, &6i64]).await;
    script.note("{\"id\": 1}", &[(5, "a"), (7, "b"), (6, "c")]).await;
    script.note("{\"id\": 1}", &[(7, "d")]).await;
    script.note("{\"id\": 2}", &[(3, "e")]).await;
    script.run("count noted rows", &[&PIPELINE]).await;
    let forget: Params<'_> = &[&PIPELINE, &vec!["shop.users"], &vec!["{\"id\": 2}"], &vec![3i64]];
    script.run("forget noted rows", forget).await;
    let forget: Params<'_> = &[&PIPELINE, &vec!["shop.users"], &vec!["{\"id\": 2}"], &vec![4i64]];
    script.run("forget noted rows", forget).await;
    let noted = script.store.dead_letters(DeadLetterState::Replay, &Selection::All).await.unwrap();
    script.say(noted.iter().map(plain).collect::<Vec<_>>());
    script.run("begin replay", &[&PIPELINE, &7i64, &second, &"log 2", &topics, &parts, &nexts]).await;
    script.run("count noted rows", &[&PIPELINE]).await;
    let running = seen(script.store.replay(7).await.unwrap());
    script.say(running);
    script.run("end replay", &[&PIPELINE, &7i64, &"done", &"replayed"]).await;
    let ended = seen(script.store.replay(7).await.unwrap());
    script.say((ended, script.store.running_replay().await.unwrap().is_none()));
    script.say(script.store.any_replay().await.unwrap());
    script.run("begin replay", &[&PIPELINE, &8i64, &second, &LOG, &topics, &parts, &nexts]).await;
    script.lines
}

impl Script {
    /// Notes rows of one key that could not be replayed, by version and record.
    async fn note(&mut self, key: &str, rows: &[(i64, &str)]) {
        let all = |text: &str| vec![text.to_owned(); rows.len()];
        let versions: Vec<i64> = rows.iter().map(|(version, _)| *version).collect();
        let records: Vec<String> = rows.iter().map(|(_, record)| json!(record).to_string()).collect();
        let (schemas, offsets) = (vec![1i64; rows.len()], vec![2i64; rows.len()]);
        let (sources, keys, states, errors) = (all("shop.users"), all(key), all("22P02"), all("bad"));
        let params: Params<'_> =
            &[&PIPELINE, &"changes", &0i32, &sources, &keys, &versions, &schemas, &offsets, &states, &errors, &records];
        self.run("note rows", params).await;
    }
}

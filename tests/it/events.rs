//! What a migration tells other systems: each thing at least once, with an id that tells repeats apart, whatever
//! happens to the worker.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use serde_json::Value;
use tokio::{io::AsyncReadExt as _, time::sleep};

use crate::{
    follow::{Follow, PATIENCE, following, halted, ready, stop},
    support::{Mysql, Postgres, eventually},
};

fn file(pipe: &Follow) -> PathBuf {
    pipe.log_folder().join(pipe.name()).join("events.jsonl")
}

/// The lines of the file, repeats included; an unfinished last line does not count.
fn lines(pipe: &Follow) -> Vec<Value> {
    let text = std::fs::read_to_string(file(pipe)).unwrap_or_default();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

/// As a follower sees them: repeats dropped by id, and nothing missing.
pub fn followed(lines: &[Value]) -> Vec<Value> {
    let mut by_sequence: BTreeMap<i64, &Value> = BTreeMap::new();
    for line in lines {
        let sequence = line["sequence"].as_i64().unwrap();
        let first = by_sequence.entry(sequence).or_insert(line);
        assert_eq!(*first, line, "a repeat is the same in every field");
    }
    let found: Vec<i64> = by_sequence.keys().copied().collect();
    let wanted: Vec<i64> = (1..=i64::try_from(found.len()).unwrap()).collect();
    assert_eq!(found, wanted, "numbers follow each other from 1 on");
    by_sequence.into_values().cloned().collect()
}

pub fn names(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["event"].as_str().unwrap()).collect()
}

pub fn of<'a>(events: &'a [Value], name: &str) -> Vec<&'a Value> {
    events.iter().filter(|event| event["event"] == name).collect()
}

/// The phases that were told, halted ones with a mark.
pub fn phases(events: &[Value]) -> Vec<String> {
    let phase = |event: &&Value| {
        let mark = if event["halted"].is_null() { "" } else { " halted" };
        format!("{}{mark}", event["to"].as_str().unwrap())
    };
    of(events, "phase_changed").iter().map(phase).collect()
}

async fn printed(pipe: &Follow, arguments: &[&str]) -> String {
    let out = pipe.work.run(&[&["status", "--events"], arguments].concat()).await;
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

async fn eventually_told(pipe: &Follow, wanted: &str) {
    eventually(&format!("{wanted} is told"), PATIENCE, async || {
        lines(pipe).last().is_some_and(|event| event.to_string().contains(wanted))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_is_told_from_its_start_to_the_stream_and_so_is_the_next_one() {
    let (pipe, mut worker) = Follow::running(Mysql::v80().await, Postgres::v15().await, 0..300).await;
    eventually_told(&pipe, "\"to\":\"following\"").await;
    let events = followed(&lines(&pipe));
    let (started, completed) = (of(&events, "snapshot_started"), of(&events, "table_completed"));
    assert_eq!((started.len(), completed.len()), (1, 1), "{events:?}");
    assert_eq!(started[0]["tables"], serde_json::json!([{"table": "t", "copy": 1}]));
    assert_eq!((&completed[0]["table"], &completed[0]["rows_copied"]), (&"t".into(), &300.into()));
    assert!(completed[0]["duration_seconds"].as_f64().is_some_and(|seconds| seconds > 0.0 && seconds < 60.0));
    assert_eq!(names(&events).last(), Some(&"phase_changed"), "the phase follows from the tables");
    for event in &events {
        assert_eq!((&event["format"], event["pipeline"].as_str()), (&1.into(), Some(pipe.name())));
        let age_ms = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis()
            - u128::from(event["ts_ms"].as_u64().unwrap());
        assert!(age_ms < 120_000, "{event}");
    }

    let again = pipe.work.run(&["resnapshot", "t"]).await;
    assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
    eventually("the second copy is told", PATIENCE, async || of(&lines(&pipe), "table_completed").len() == 2).await;
    let events = followed(&lines(&pipe));
    assert_eq!(of(&events, "snapshot_started")[1]["tables"], serde_json::json!([{"table": "t", "copy": 2}]));
    assert_eq!(of(&events, "table_completed")[1]["copy"], 2);

    // The phase follows from the tables, a moment later.
    eventually("nothing more is told", PATIENCE, async || {
        let told = followed(&lines(&pipe)).len();
        sleep(Duration::from_secs(2)).await;
        told == followed(&lines(&pipe)).len()
    })
    .await;

    // A worker that stops and starts has nothing to add.
    stop(&mut worker).await;
    let before = followed(&lines(&pipe)).len();
    let worker = pipe.work.start(&[]);
    ready(&worker, 200).await;
    sleep(Duration::from_secs(2)).await;
    assert_eq!(followed(&lines(&pipe)).len(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_worker_leaves_no_event_out_and_repeats_have_the_same_id() {
    let pipe = Follow::new(Mysql::v57().await, Postgres::v15().await).await;
    pipe.work.configure_also("[snapshot]\nchunk_rows = 50\nparallel = 1\napply_parallel = 1\n");
    pipe.insert(0..60_000).await;
    // A slow machine gets further before the last kills.
    for pause in [700, 1100, 1500, 1900, 4000, 8000, 16_000] {
        if pause >= 4000 && std::fs::metadata(file(&pipe)).is_ok_and(|file| file.len() > 0) {
            break;
        }
        let mut worker = pipe.work.start(&[]);
        sleep(Duration::from_millis(pause)).await;
        worker.kill9().await;
    }
    // As a crash between the file and the target leaves it: lines that are there already come again.
    pipe.target.exec("UPDATE cutover.events SET carried = false").await;
    let torn = std::fs::read(file(&pipe)).unwrap_or_default();
    assert!(!torn.is_empty(), "something was told before the kills");
    std::fs::write(file(&pipe), [&torn[..], b"{\"format\":1,\"id\":\"to"].concat()).unwrap();
    let mut worker = pipe.work.start(&["--until-synced"]);
    // 1,200 chunks, each of which waits for several commits.
    assert!(worker.wait_exit(PATIENCE).await.success(), "{}", worker.stderr());
    let all = lines(&pipe);
    let events = followed(&all);
    assert!(all.len() > events.len(), "lines were repeated");
    assert_eq!(of(&events, "snapshot_started").len(), 1, "{:?}", names(&events));
    let completed = of(&events, "table_completed");
    assert_eq!((completed.len(), &completed[0]["rows_copied"]), (1, &60_000.into()));
    let progress = of(&events, "table_migration_progress");
    assert!(!progress.is_empty() && progress.len() < 10, "at a bounded rate: {}", progress.len());
    for event in progress {
        let (copied, percent) = (event["rows_copied"].as_f64().unwrap(), event["percent"].as_f64().unwrap());
        assert!((percent - copied * 100.0 / event["rows_total"].as_f64().unwrap()).abs() < 0.06, "{event}");
    }
    let found = phases(&events);
    assert_eq!(
        found.last().map(String::as_str),
        Some("following"),
        "the last words of a worker are carried: {found:?}"
    );
    assert_eq!(found.iter().filter(|phase| *phase == "following").count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_halt_is_told_with_what_to_do_and_its_end_too() {
    let (pipe, mut worker) = Follow::running(Mysql::v80().await, Postgres::v15().await, 0..10).await;
    pipe.source.exec("RENAME TABLE t TO gone").await;
    let (reason, remedy) = halted(&worker).await;
    eventually_told(&pipe, "reason").await;
    let events = followed(&lines(&pipe));
    let told = &events.last().unwrap()["halted"];
    assert_eq!((told["reason"].as_str(), told["remedy"].as_str()), (Some(&*reason), Some(&*remedy)));
    worker.kill9().await;
    pipe.source.exec("RENAME TABLE gone TO t").await;
    // What the next worker meets is the same; a new copy of every table leads past it.
    let next = pipe.work.start(&[]);
    // Its own halt: what was asked for before that would not lead past it.
    eventually("the next worker halts", PATIENCE, async || {
        next.get("/readyz").await.is_ok_and(|(_, body)| body.contains("was renamed"))
    })
    .await;
    let asked = pipe.work.run(&["resnapshot", "t"]).await;
    assert!(asked.status.success(), "{}", String::from_utf8_lossy(&asked.stderr));
    eventually("it is told that the pipeline goes on", PATIENCE, async || {
        let told = lines(&pipe);
        of(&told, "table_completed").len() == 2 && phases(&told).last().map(String::as_str) == Some("following")
    })
    .await;
    followed(&lines(&pipe));
}

#[tokio::test(flavor = "multi_thread")]
async fn status_shows_the_events_with_and_without_a_worker_and_follows_them() {
    let pipe = Follow::new(Mysql::v57().await, Postgres::v18().await).await;
    let none = pipe.work.run(&["status", "--events"]).await;
    assert_eq!(none.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&none.stderr).contains("has `cutover run` been started?"));
    pipe.insert(0..20).await;
    let mut worker = pipe.work.start(&[]);
    following(&worker).await;
    eventually_told(&pipe, "\"to\":\"following\"").await;
    stop(&mut worker).await;
    let file_lines = std::fs::read_to_string(file(&pipe)).unwrap();
    assert_eq!(printed(&pipe, &["--json"]).await, file_lines, "the lines that others follow");
    let text = printed(&pipe, &[]).await;
    assert_eq!(text.lines().count(), file_lines.lines().count());
    assert!(text.lines().last().is_some_and(|line| line.contains("phase_changed") && line.contains("to=following")));

    let mut watching = pipe.work.spawn(&["status", "--events", "--watch", "--json"]);
    let _worker = pipe.work.start(&[]);
    let asked = pipe.work.run(&["resnapshot", "t"]).await;
    assert!(asked.status.success(), "{}", String::from_utf8_lossy(&asked.stderr));
    let mut seen = String::new();
    let mut out = watching.stdout.take().unwrap();
    eventually("the new copy is seen", PATIENCE, async || {
        let mut bytes = [0; 4096];
        let read = out.read(&mut bytes).await.unwrap();
        seen.push_str(&String::from_utf8_lossy(&bytes[..read]));
        seen.contains("\"table_completed\",\"table\":\"t\",\"copy\":2")
    })
    .await;
    let events: Vec<Value> = seen.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(followed(&events).len(), events.len(), "each once");
    watching.start_kill().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_cannot_be_written_stops_nothing_and_gets_every_event_later() {
    let pipe = Follow::new(Mysql::v57().await, Postgres::v15().await).await;
    pipe.insert(0..20).await;
    // A folder in the place of the file.
    std::fs::create_dir_all(file(&pipe)).unwrap();
    let worker = pipe.work.start(&[]);
    following(&worker).await;
    pipe.source.exec("UPDATE t SET n = 1").await;
    pipe.in_step().await;
    assert!(ready(&worker, 503).await.contains("events is retrying"));
    std::fs::remove_dir(file(&pipe)).unwrap();
    ready(&worker, 200).await;
    eventually_told(&pipe, "\"to\":\"following\"").await;
    let events = followed(&lines(&pipe));
    assert_eq!(of(&events, "table_completed").len(), 1);
}

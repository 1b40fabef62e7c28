//! `cutover report` on real servers: it says go when a switch could, and what is missing when it could not.

use std::time::Duration;

use crate::{
    rules_rig::Rig,
    support::{Mysql, Postgres},
};

async fn shop() -> Rig {
    let (source, target) = (Mysql::v80().await, Postgres::v15().await);
    let at_source =
        "CREATE TABLE items (id int PRIMARY KEY, n int NOT NULL); INSERT INTO items VALUES (1, 1), (2, 2), (3, 3)";
    let at_target = "CREATE TABLE items (id int PRIMARY KEY, n int NOT NULL CHECK (n < 100))";
    Rig::new(source, target, &["items"], at_source, at_target).await
}

/// What `cutover report` prints.
async fn report(rig: &Rig) -> String {
    let out = rig.work.run(&["report"]).await;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success(), "{text}{}", String::from_utf8_lossy(&out.stderr));
    text
}

/// The cells of the first row that begins with these.
fn row(text: &str, begin: &[&str]) -> Vec<String> {
    let rows = text.lines().filter(|line| line.starts_with('|'));
    let mut rows = rows.map(|line| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect());
    rows.find(|cells: &Vec<String>| cells.iter().zip(begin).all(|(cell, begin)| cell == begin))
        .unwrap_or_else(|| panic!("no row {begin:?} in {text}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_says_no_go_until_everything_is_proven_and_then_go() {
    let rig = shop().await;
    let unstarted = rig.work.run(&["report"]).await;
    let said = String::from_utf8_lossy(&unstarted.stderr).into_owned();
    assert!(unstarted.status.code() == Some(3) && said.contains("cutover run"), "{said}");
    let worker = rig.following().await;
    let text = report(&rig).await;
    assert!(text.starts_with("# Migration `") && text.contains(": no-go\n"), "{text}");
    let proven = row(&text, &["**no**", "tables that are proven equal"]);
    assert_eq!(proven[2], "0 of 1; not: items (never compared)");
    assert!(text.contains("- tables that are proven equal: run `cutover verify`"), "{text}");
    let copied = row(&text, &["items", "copied"]);
    assert_eq!((copied[3].as_str(), copied[4].as_str()), ("1", "3"), "{text}");
    // Neither URL shows who signs in, and with what.
    assert!(!text.contains("cutover_admin") && !text.contains("admin@"), "{text}");

    assert!(rig.work.run(&["verify"]).await.status.success());
    let text = report(&rig).await;
    assert!(text.lines().next().unwrap().ends_with(": go"), "{text}");
    assert_eq!(row(&text, &["ok", "match rate"])[2..4], ["1", "at least 0.999"]);
    assert_eq!(row(&text, &["ok", "items"])[3..], ["3", "0", "0", "0"], "{text}");
    assert!(text.contains("Highest ") && text.contains("the highest block is"), "the lag over time: {text}");

    // A row that the target refuses.
    rig.source.exec("INSERT INTO items VALUES (4, 400)").await;
    rig.eventually("it is a dead letter", async |status| status["dead_letters"] == 1).await;
    let text = report(&rig).await;
    assert_eq!(row(&text, &["**no**", "open dead letters"])[2], "1");
    let letters = text.lines().find(|line| line.contains("dead letter, open")).expect("why");
    assert!(letters.contains("items_n_check"), "{letters}");
    drop(worker);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_is_a_page_of_its_own_and_tells_what_happened_across_workers() {
    let rig = shop().await;
    let mut worker = rig.following().await;
    rig.target.exec("UPDATE items SET n = 77 WHERE id = 2").await;
    assert_eq!(rig.work.run(&["verify"]).await.status.code(), Some(1));
    assert_eq!(rig.work.run(&["verify", "--repair"]).await.status.code(), Some(0));
    worker.kill9().await;
    rig.eventually("its silence is noticed", async |status| status["worker_running"] == false).await;
    let text = report(&rig).await;
    let stopped = row(&text, &["**no**", "worker"]);
    assert_eq!(stopped[2], "none runs");
    assert!(text.contains("- worker: start one with `cutover run`"), "{text}");
    assert!(text.contains("Rows repaired: 1.") && text.contains("verified: not clean"), "{text}");
    let before = text.lines().find(|line| line.contains("the highest block is")).expect("a lag").to_owned();
    // The next worker goes on with the history of the one before.
    let _worker = rig.following().await;
    tokio::time::sleep(Duration::from_secs(12)).await;
    let text = report(&rig).await;
    let after = text.lines().find(|line| line.contains("the highest block is")).expect("a lag").to_owned();
    let began = |line: &str| line.split(" to ").next().unwrap_or_default().to_owned();
    assert_eq!(began(&before), began(&after), "{text}");
    assert_ne!(before, after);

    let file = rig.work.path().join("page.html");
    let out = rig.work.run(&["report", "--html", file.to_str().unwrap()]).await;
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let page = std::fs::read_to_string(&file).expect("the page");
    assert!(page.starts_with("<!DOCTYPE html>") && page.contains("<polyline") && page.contains("<table>"), "{page}");
    assert!(!page.contains("http") && !page.contains("<script"), "it fetches nothing: {page}");
    let nowhere = rig.work.run(&["report", "--html", "no/such/folder/page.html"]).await;
    let said = String::from_utf8_lossy(&nowhere.stderr).into_owned();
    assert!(nowhere.status.code() == Some(3) && said.contains("name a file in a folder that is there"), "{said}");
}

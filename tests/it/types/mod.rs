//! Every type of docs/types.md, on every real server that has it: values that the snapshot copies and values that the
//! stream brings are the same at the target, and are what the table says.

mod cases;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use cutover::cli::init::{self, InitArgs};

use crate::support::{Mysql, Postgres, Workspace};
use cases::{CASES, Case, On};

const SYNC_LIMIT: Duration = Duration::from_secs(120);

/// Where each kind of row begins. Rows of the last kind are gone in the end.
const SNAPSHOT: usize = 0;
const INSERTED: usize = 1_000;
const UPDATED: usize = 2_000;
const DELETED: usize = 3_000;

fn column(case: &Case) -> String {
    let Some((before, rest)) = case.column.split_once("{labels:") else { return case.column.to_owned() };
    let (count, after) = rest.split_once('}').unwrap();
    let labels: Vec<String> = (1..=count.parse::<u32>().unwrap()).map(|number| format!("'m{number}'")).collect();
    format!("{before}{}{after}", labels.join(","))
}

/// A session that differs from cutover's own in all that could change a value.
async fn unusual_session(source: &Mysql) {
    source.exec("SET time_zone = '+05:30', sql_mode = ''").await;
}

async fn create_tables(source: &Mysql, target: &Postgres, cases: &[&Case]) {
    for (number, case) in cases.iter().enumerate() {
        let column = column(case);
        source
            .exec(&format!("CREATE TABLE t{number} (id int PRIMARY KEY, n int NOT NULL DEFAULT 7, v {column})"))
            .await;
        target.exec(&format!("CREATE TABLE t{number} (id integer PRIMARY KEY, n integer, v {})", case.target)).await;
    }
}

async fn insert(source: &Mysql, cases: &[&Case], from: usize) {
    for (number, case) in cases.iter().enumerate() {
        for (index, (literal, _)) in case.values.iter().enumerate() {
            source.exec(&format!("INSERT INTO t{number} (id, v) VALUES ({}, {literal})", from + index)).await;
        }
    }
}

async fn stream(source: &Mysql, cases: &[&Case]) {
    insert(source, cases, INSERTED).await;
    insert(source, cases, DELETED).await;
    for (number, case) in cases.iter().enumerate() {
        for (index, (literal, _)) in case.values.iter().enumerate() {
            let id = UPDATED + index;
            source.exec(&format!("INSERT INTO t{number} (id) VALUES ({id})")).await;
            source.exec(&format!("UPDATE t{number} SET v = {literal}, n = 7 WHERE id = {id}")).await;
        }
        source.exec(&format!("DELETE FROM t{number} WHERE id >= {DELETED}")).await;
    }
}

async fn synced(workspace: &Workspace) {
    let mut worker = workspace.start(&["--until-synced"]);
    let status = worker.wait_exit(SYNC_LIMIT).await;
    assert!(status.success(), "{status}");
}

/// What is not as the table says, a line each.
async fn differences(target: &Postgres, number: usize, case: &Case) -> Vec<String> {
    let mut expected = Vec::new();
    for from in [SNAPSHOT, INSERTED, UPDATED] {
        for (index, (_, value)) in case.values.iter().enumerate() {
            let value = match value.map(|value| value.strip_prefix("sql: ").ok_or(value)) {
                None => None,
                Some(Err(text)) => Some(text.to_owned()),
                Some(Ok(expression)) => target.value(&format!("SELECT {expression}")).await,
            };
            expected.push(vec![Some((from + index).to_string()), Some("7".to_owned()), value]);
        }
    }
    let found = target.query(&format!("SELECT id, n, v::text FROM t{number} ORDER BY id")).await;
    let missing = expected.iter().filter(|row| !found.contains(row)).map(|row| format!("missing {row:?}"));
    let surplus = found.iter().filter(|row| !expected.contains(row)).map(|row| format!("not expected {row:?}"));
    let lines = missing.chain(surplus).map(|line| line.chars().take(200).collect::<String>());
    lines.map(|line| format!("t{number} {}: {line}", case.column)).collect()
}

/// The types that `init` writes are those of the table too.
async fn init_gives_the_same_types(source: &Mysql, cases: &[&Case]) {
    let folder = tempfile::tempdir().unwrap();
    let target = "postgresql://nobody@127.0.0.1/nowhere".to_owned();
    let out = folder.path().to_owned();
    init::run(InitArgs { source: source.url(), target, tables: Vec::new(), schema: None, engine: None, out })
        .await
        .unwrap();
    let schema = fs::read_to_string(folder.path().join("schema.sql")).unwrap();
    for (number, case) in cases.iter().enumerate() {
        let table = schema.split(&format!("CREATE TABLE t{number} (")).nth(1).unwrap();
        let line = table.lines().find_map(|line| line.strip_prefix("    v ")).unwrap();
        assert_eq!(
            line.split(" NOT NULL").next().unwrap().split(", ").next().unwrap().trim_end_matches(','),
            case.target,
            "{}",
            case.column
        );
    }
}

async fn every_type_arrives(source: Mysql, target: Postgres, has: &[On]) {
    let cases: Vec<&Case> = CASES.iter().filter(|case| has.contains(&case.on)).collect();
    unusual_session(&source).await;
    create_tables(&source, &target, &cases).await;
    init_gives_the_same_types(&source, &cases).await;
    insert(&source, &cases, SNAPSHOT).await;
    let tables: Vec<String> = (0..cases.len()).map(|number| format!("t{number}")).collect();
    let tables: Vec<&str> = tables.iter().map(String::as_str).collect();
    let workspace = Workspace::new("types", &source.url(), &target.url(), &tables);
    synced(&workspace).await;
    stream(&source, &cases).await;
    synced(&workspace).await;
    target.exec("SET TimeZone = 'UTC'").await;
    let mut wrong = Vec::new();
    for (number, case) in cases.iter().enumerate() {
        wrong.extend(differences(&target, number, case).await);
    }
    assert!(wrong.is_empty(), "{} differences:\n{}", wrong.len(), wrong.join("\n"));
}

#[tokio::test]
async fn every_type_of_mysql_57_arrives_by_snapshot_and_by_stream() {
    every_type_arrives(Mysql::v57().await, Postgres::v15().await, &[On::All, On::Mysql, On::Mysql57]).await;
}

#[tokio::test]
async fn every_type_of_mysql_80_arrives_by_snapshot_and_by_stream() {
    every_type_arrives(Mysql::v80().await, Postgres::v18().await, &[On::All, On::Mysql, On::Mysql80AndLater]).await;
}

#[tokio::test]
async fn every_type_of_mysql_97_arrives_by_snapshot_and_by_stream() {
    every_type_arrives(
        Mysql::v97().await,
        Postgres::v18().await,
        &[On::All, On::Mysql, On::Mysql80AndLater, On::Mysql97],
    )
    .await;
}

#[tokio::test]
async fn every_type_of_mariadb_arrives_by_snapshot_and_by_stream() {
    every_type_arrives(Mysql::mariadb().await, Postgres::v15().await, &[On::All, On::Mariadb]).await;
}

#[test]
fn every_row_of_the_documented_table_has_a_case_and_every_case_a_row() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/types.md");
    let text = fs::read_to_string(path).unwrap();
    let cells = text.lines().filter_map(|line| Some(line.strip_prefix("| ")?.split(" | ").next()?.replace('`', "")));
    let rows: BTreeSet<String> = cells.filter(|cell| cell != "MySQL, MariaDB").collect();
    let tested: BTreeSet<String> = CASES.iter().map(|case| case.row.to_owned()).collect();
    assert_eq!(rows, tested);
}

//! Mistakes in the configuration file: exit 2, all of them at once, before any connection.

use super::{Pipeline, SOURCE_PASSWORD, Said};
use crate::support::Workspace;

/// A pipeline whose servers are not there: whoever connects, waits or fails otherwise.
fn nowhere(toml: &str) -> Workspace {
    let work = Workspace::new("bad", "mysql://u@127.0.0.1:1/a", "postgresql://u@127.0.0.1:1/b", &[]);
    work.configure(toml);
    work
}

/// Both commands end with 2 and say all of these words, and how many mistakes there are.
async fn refused(work: &Workspace, mistakes: usize, words: &[&str]) {
    for command in ["check", "run", "status"] {
        let output = work.run(&[command]).await;
        let said = Said { code: output.status.code(), text: String::from_utf8_lossy(&output.stderr).into_owned() };
        said.expect(2, words).expect(2, &[&format!("cutover.toml has {mistakes} mistake(s)")]);
        assert!(output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stdout));
    }
}

const VALID: &str =
    "name = 'bad'\n[source]\nurl = 'mysql://u@127.0.0.1:1/a'\n[target]\nurl = 'postgresql://u@127.0.0.1:1/b'\n";

#[tokio::test]
async fn an_unknown_key_is_named_with_those_that_are_allowed() {
    let work = nowhere(&VALID.replace("[target]", "tabels = ['t']\n[target]"));
    refused(&work, 1, &["source.tabels: unknown key", "tables"]).await;
    refused(&nowhere(&format!("{VALID}[sink]\na = 1")), 1, &["sink: unknown key", "source, target"]).await;
}

#[tokio::test]
async fn several_mistakes_are_all_told_at_once_and_each_once() {
    let work = nowhere(
        "nmae = 'bad'\n[source]\nurl = 'oracle://u:Source-Pa55word@h/a'\ntables = 't'\n[target]\nurl = 'postgresql://u@h'\n\
         [http]\nlisten = 'here'\n[log]\nurl = 'kafka'\npartitions = 0\n[snapshot]\nchunk_rows = 0\n[apply]\nbatch_rows_max = 'Target-Pa55word'\n",
    );
    // Values are judged when every section could be read.
    refused(
        &work,
        4,
        &[
            "nmae: unknown key",
            "name: is missing",
            "source.tables: must be a list",
            "apply.batch_rows_max: must be a whole number",
        ],
    )
    .await;
    let text = std::fs::read_to_string(work.path().join("cutover.toml")).unwrap();
    work.configure(&text.replace("nmae", "name").replace("'t'", "['t']").replace("'Target-Pa55word'", "1"));
    let words = [
        "source.url: has a scheme that is not supported here; allowed are mysql://",
        "allowed are mysql://",
        "target.url: ",
        "names no database",
        "http.listen: ",
        "log.url: ",
        "log.partitions: ",
        "snapshot.chunk_rows: ",
    ];
    refused(&work, 6, &words).await;
}

#[tokio::test]
async fn what_is_no_toml_is_told_by_line_and_column_without_quoting_it() {
    let work = nowhere(&VALID.replace("mysql://u@127.0.0.1:1/a'", &format!("mysql://u:{SOURCE_PASSWORD}@h/a")));
    refused(&work, 1, &["line 3, column"]).await;
    let work = nowhere(&format!(
        "name = 'bad'\nsource = 'mysql://u:{SOURCE_PASSWORD}@h/a'\n[target]\nurl = 'postgresql://u@h/b'\n"
    ));
    refused(&work, 1, &["source: must be a section"]).await;
}

#[tokio::test]
async fn a_file_that_is_not_there_is_named_with_the_way_to_one() {
    let work = nowhere(VALID);
    let output = work.run(&["-c", "other.toml", "check"]).await;
    let said = Said { code: output.status.code(), text: String::from_utf8_lossy(&output.stderr).into_owned() };
    said.expect(2, &["other.toml", "name the file with -c", "cutover init"]);
}

#[tokio::test]
async fn an_environment_variable_that_is_not_set_is_named() {
    let mut pipeline = Pipeline::small().await;
    pipeline.configure(SOURCE_PASSWORD, "${CUTOVER_TEST_PASSWORD}");
    refused(
        &pipeline.work,
        1,
        &["source.url: the environment variable CUTOVER_TEST_PASSWORD is not set", "export CUTOVER_TEST_PASSWORD="],
    )
    .await;
    pipeline.work.set_env("CUTOVER_TEST_PASSWORD", SOURCE_PASSWORD);
    pipeline.recovered().await;
}

#[tokio::test]
async fn half_a_worker_needs_a_log_that_both_halves_reach() {
    let work = nowhere(VALID);
    for role in ["capture", "apply"] {
        let output = work.run(&["run", "--role", role]).await;
        let said = Said { code: output.status.code(), text: String::from_utf8_lossy(&output.stderr).into_owned() };
        said.expect(2, &[&format!("--role {role}"), "[log] url"]);
    }
}

//! Transforms that cannot run: named by file, line and column, in PostgreSQL's own words.

use super::Pipeline;

/// The transform is refused in these words, by `check` and by a worker; without it the pipeline runs.
async fn refused(pipeline: &Pipeline, sql: &str, words: &[&str]) {
    pipeline.work.transform("t", sql);
    pipeline.refused(words).await;
}

async fn runs_without_it(pipeline: &Pipeline) {
    pipeline.work.transform("t", "SELECT id, v FROM t");
    pipeline.recovered().await;
}

#[tokio::test]
async fn a_typo_is_shown_where_it_is_with_the_servers_hint() {
    let pipeline = Pipeline::small().await;
    let words = ["t.sql:3:3: ", "column \"vv\" does not exist", "Perhaps you meant to reference the column \"t.v\""];
    refused(&pipeline, "-- the small one\nSELECT id,\n  vv AS v\nFROM t;\n", &words).await;
    refused(&pipeline, "SELEC id, v FROM t", &["t.sql:1:1: ", "syntax error at or near \"SELEC\""]).await;
    refused(&pipeline, "SELECT id, uper(v) AS v FROM t", &["t.sql:1:12: ", "function uper(text) does not exist"]).await;
    runs_without_it(&pipeline).await;
}

#[tokio::test]
async fn a_type_that_does_not_fit_its_column_is_named_with_both_types() {
    let pipeline = Pipeline::small().await;
    pipeline.at_target("ALTER TABLE t ALTER v TYPE integer USING NULL").await;
    let words = ["t.sql:1:12: ", "column \"v\" is of type integer but expression is of type text", "cast the result"];
    refused(&pipeline, "SELECT id, v FROM t", &words).await;
    pipeline.at_target("ALTER TABLE t ALTER v TYPE text").await;
    runs_without_it(&pipeline).await;
}

#[tokio::test]
async fn the_clock_is_refused() {
    let pipeline = Pipeline::small().await;
    let why = "the same row must give the same result on every run";
    refused(
        &pipeline,
        "SELECT id, now()::text AS v FROM t",
        &["t.sql:1:1: ", "now() does not depend on the row alone", why],
    )
    .await;
    refused(&pipeline, "SELECT id, CURRENT_DATE::text AS v FROM t", &["t.sql:1:1: ", "reads the clock", why]).await;
    refused(&pipeline, "SELECT id, random()::text AS v FROM t", &["random() does not depend on the row alone", why])
        .await;
    runs_without_it(&pipeline).await;
}

#[tokio::test]
async fn another_table_is_refused() {
    let pipeline = Pipeline::small().await;
    pipeline.source.exec("CREATE TABLE u (id int PRIMARY KEY)").await;
    pipeline.at_target("CREATE TABLE u (id int PRIMARY KEY); CREATE TABLE names (v text)").await;
    let words = ["t.sql:1:1: ", "reads names, which is not the source row", "a transform sees one source row"];
    refused(&pipeline, "SELECT id, (SELECT max(n.v) FROM public.names n) AS v FROM t", &words).await;
    let words = ["t.sql:1:1: ", "reads several source tables: ", "a transform sees one source row"];
    refused(&pipeline, "SELECT t.id, t.v FROM t JOIN u ON u.id = t.id", &words).await;
    runs_without_it(&pipeline).await;
}

#[tokio::test]
async fn mistakes_in_several_files_are_told_at_once() {
    let pipeline = Pipeline::small().await;
    pipeline.source.exec("CREATE TABLE u (id int PRIMARY KEY)").await;
    pipeline.at_target("CREATE TABLE u (id int PRIMARY KEY)").await;
    pipeline.work.transform("u", "SELECT idd AS id FROM u");
    pipeline.work.transform("gone", "SELECT id FROM u");
    let words = ["t.sql:1:12: ", "u.sql:1:8: ", "gone.sql:1:1: ", "the target has no table public.gone"];
    refused(&pipeline, "SELECT id, vv AS v FROM t", &words).await;
    pipeline.work.transform("u", "SELECT id FROM u");
    std::fs::remove_file(pipeline.work.path().join("transforms/gone.sql")).unwrap();
    runs_without_it(&pipeline).await;
}

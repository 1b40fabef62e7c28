//! What is wrong at the target.

use super::{Pipeline, TARGET_PASSWORD};

#[tokio::test]
async fn a_wrong_password_ends_the_worker_and_names_the_server_and_the_key() {
    let pipeline = Pipeline::small().await;
    pipeline.configure(TARGET_PASSWORD, "Target-Pa55word-2");
    pipeline
        .refused(&[
            "PostgreSQL at 127.0.0.1:",
            "password authentication failed",
            "correct user, password",
            "[target] url",
        ])
        .await;
    pipeline.configure("Target-Pa55word-2", TARGET_PASSWORD);
    pipeline.recovered().await;
}

#[tokio::test]
async fn a_database_that_is_not_there_is_named() {
    let pipeline = Pipeline::small().await;
    let name = pipeline.target.database();
    let port = url::Url::parse(&pipeline.target.url()).unwrap().port().unwrap();
    pipeline.configure(&format!(":{port}/{name}"), &format!(":{port}/gone"));
    pipeline.refused(&["database \"gone\" does not exist", "correct", "[target] url"]).await;
    pipeline.configure(&format!(":{port}/gone"), &format!(":{port}/{name}"));
    pipeline.recovered().await;
}

#[tokio::test]
async fn a_role_that_may_not_make_the_state_is_told_the_grant() {
    let pipeline = Pipeline::small().await;
    let role = pipeline.target.database().to_owned();
    pipeline.target.exec(&format!("ALTER DATABASE {role} OWNER TO CURRENT_USER")).await;
    let grant = format!("GRANT CREATE ON DATABASE \"{role}\" TO \"{role}\"");
    pipeline.refused(&["no CREATE on the database", &grant]).await;
    pipeline.target.exec(&grant).await;
    pipeline.recovered().await;
}

#[tokio::test]
async fn a_role_that_may_not_write_a_table_is_told_the_grant() {
    let pipeline = Pipeline::small().await;
    let role = pipeline.target.database().to_owned();
    pipeline
        .target
        .exec(&format!("ALTER TABLE t OWNER TO CURRENT_USER; GRANT SELECT, UPDATE, DELETE ON t TO {role}"))
        .await;
    let grant = format!("GRANT INSERT ON \"public\".\"t\" TO \"{role}\"");
    let column = "ALTER TABLE \"public\".\"t\" ADD cutover_version bigint NOT NULL DEFAULT 0";
    pipeline.refused(&["no INSERT on public.t", &grant, "only its owner", column]).await;
    pipeline.target.exec(&format!("{grant}; {column}")).await;
    pipeline.recovered().await;
}

#[tokio::test]
async fn a_table_that_is_not_there_is_named() {
    let pipeline = Pipeline::small().await;
    pipeline.at_target("DROP TABLE t").await;
    pipeline.refused(&["the target has no table public.t", "create the table"]).await;
    pipeline.at_target("CREATE TABLE t (id int PRIMARY KEY, v text)").await;
    pipeline.recovered().await;
}

#[tokio::test]
async fn a_column_that_is_not_there_is_named_with_those_that_are() {
    let pipeline = Pipeline::small().await;
    pipeline.at_target("ALTER TABLE t RENAME v TO w").await;
    pipeline.refused(&["public.t", "has no column `v`", "its columns are id, w"]).await;
    pipeline.work.transform("t", "SELECT id,\n       v\nFROM t\n");
    pipeline.refused(&["t.sql:2:8: ", "has no column `v`", "name the result with AS"]).await;
    pipeline.at_target("ALTER TABLE t RENAME w TO v").await;
    pipeline.recovered().await;
}

#[tokio::test]
async fn a_target_that_does_not_answer_is_waited_for() {
    let pipeline = Pipeline::small().await;
    pipeline.waited_for("target", &pipeline.target.url()).await;
}

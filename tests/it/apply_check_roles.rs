//! What the check of transforms says of rows that several source tables share, and of sets.

use std::sync::Arc;

use cutover::{
    model::{ColumnType, Coverage, OnDelete, PlanRole, TableSchema},
    transform::Severity,
};

use crate::{
    apply_rig::{checked, keyed, table},
    support::Postgres,
};

const DDL: &str = "
CREATE TABLE accounts (id bigint PRIMARY KEY, email text NOT NULL, token text, tier text NOT NULL DEFAULT 'free', since date NOT NULL,
  number bigint GENERATED ALWAYS AS IDENTITY);
CREATE TABLE items (order_id bigint, line int, sku text, PRIMARY KEY (order_id, line));
CREATE TABLE tickets (id bigint PRIMARY KEY, order_id bigint);";

fn sources() -> Vec<Arc<TableSchema>> {
    let users = [("id", ColumnType::BigInt), ("email", ColumnType::Text), ("since", ColumnType::Date)];
    let oauth = [("user_id", ColumnType::BigInt), ("token", ColumnType::Text), ("tier", ColumnType::Text)];
    let orders = [("id", ColumnType::BigInt), ("lines", ColumnType::Json), ("state", ColumnType::Text)];
    let choices = [("user_id", ColumnType::BigInt), ("what", ColumnType::Text), ("value", ColumnType::Text)];
    vec![table("users", &users), table("oauth", &oauth), table("orders", &orders), keyed("choices", &choices, 2)]
}

const OWNER: &str = "SELECT id, email, since FROM users;\n";
const LINES: &str =
    "SELECT id AS order_id, l.line, l.sku FROM orders, jsonb_to_recordset(lines) AS l(line int, sku text)";

#[tokio::test]
async fn contributors_have_their_columns_their_versions_and_their_deletes() {
    let pg = Postgres::v15().await;
    pg.exec(DDL).await;
    let sql = format!(
        "{OWNER}-- cutover: on_delete = delete\nSELECT user_id AS id, token FROM oauth WHERE token > '';\n\
         SELECT user_id AS id, value AS tier FROM choices WHERE what = 'tier'"
    );
    let checked = checked(&pg, &sources(), &[("accounts.sql", &sql), ("items.sql", LINES)]).await;
    assert!(checked.passed(), "{:#?}", checked.problems);
    let shares: Vec<_> = checked
        .plans
        .iter()
        .filter_map(|plan| match &plan.role {
            PlanRole::Share(share) => Some((plan, share)),
            PlanRole::Whole | PlanRole::Set { .. } => None,
        })
        .collect();
    let versions: Vec<&str> = shares.iter().map(|(_, share)| share.own.version.as_str()).collect();
    assert_eq!(versions, ["cutover_version", "cutover_version_oauth", "cutover_version_choices"]);
    let deletes: Vec<OnDelete> = shares.iter().map(|(_, share)| share.own.on_delete).collect();
    assert_eq!(deletes, [OnDelete::Delete, OnDelete::Delete, OnDelete::Clear]);
    let columns: Vec<_> = shares.iter().map(|(_, share)| share.own.columns.join(",")).collect();
    assert_eq!(columns, ["email,since", "token", "tier"]);
    let coverage: Vec<Coverage> = shares.iter().map(|(plan, _)| plan.coverage).collect();
    assert_eq!(coverage, [Coverage::Total, Coverage::Filter, Coverage::Filter]);
}

#[tokio::test]
async fn what_does_not_merge_is_refused_with_its_place_and_its_fix() {
    let pg = Postgres::v18().await;
    pg.exec(DDL).await;
    let cases: &[(&str, &str, u32)] = &[
        (
            "SELECT user_id AS id, token, token AS email FROM oauth",
            "`email` is filled by the SELECT of line 1 already",
            2,
        ),
        ("SELECT token FROM oauth", "key column `id` is not in the result", 2),
        ("SELECT length(token) AS id, tier FROM oauth", "depends on `token`, which is not in the key", 2),
        ("SELECT user_id AS id, unnest(ARRAY[token]) AS token FROM oauth", "must make at most one row", 2),
        ("SELECT user_id AS id, token FROM (SELECT * FROM oauth) o", "must make at most one row", 2),
        ("-- cutover: parent_key = id\nSELECT user_id AS id, token FROM oauth", "share single rows", 3),
        ("SELECT user_id AS id, 7 AS number FROM oauth", "GENERATED ALWAYS AS IDENTITY", 2),
        ("-- cutover: on_delete = hide\nSELECT user_id AS id, token FROM oauth", "none of delete, clear, keep", 2),
        ("-- cutover: on_remove = keep\nSELECT user_id AS id, token FROM oauth", "no directive `on_remove`", 2),
    ];
    for (second, message, line) in cases {
        let sql = format!("{OWNER}{second}");
        refused(&pg, ("accounts.sql", &sql), message, *line).await;
    }
    let short = "SELECT id, email FROM users; SELECT user_id AS id, token FROM oauth";
    refused(
        &pg,
        ("accounts.sql", short),
        "`since` is NOT NULL, has no default, and gets no value from the first SELECT",
        1,
    )
    .await;
    let clearing = format!("-- cutover: on_delete = clear\n{OWNER}SELECT user_id AS id, token FROM oauth");
    refused(&pg, ("accounts.sql", &clearing), "the first SELECT owns the row", 2).await;
    pg.exec("ALTER TABLE accounts ALTER tier DROP DEFAULT").await;
    let strict = "SELECT id, email, since, 'x' AS tier FROM users;\nSELECT user_id AS id, tier FROM oauth";
    refused(&pg, ("accounts.sql", strict), "`tier` is NOT NULL without a default", 2).await;
}

async fn refused(pg: &Postgres, file: (&str, &str), message: &str, line: u32) {
    let checked = checked(pg, &sources(), &[file]).await;
    assert!(!checked.passed(), "{}", file.1);
    let found = checked.problems.iter().find(|problem| problem.problem.what.contains(message));
    let found = found.unwrap_or_else(|| panic!("{}: {:#?}", file.1, checked.problems));
    let place = found.location.as_ref().map(|location| (location.file.display().to_string(), location.line));
    assert_eq!(place, Some((file.0.to_owned(), line)), "{}: {found}", file.1);
    assert!(!found.problem.fix.is_empty(), "{found}");
}

#[tokio::test]
async fn the_parent_of_a_set_is_the_sources_key() {
    let pg = Postgres::v18().await;
    pg.exec(DDL).await;
    for (sql, passes) in [
        (format!("-- cutover: parent_key = order_id\n{LINES}"), true),
        (format!("-- cutover: parent_key = order_id\n{}", LINES.replace("id AS", "id::int AS")), true),
        (format!("-- cutover: parent_key = order_id\n{LINES} WHERE state = 'open'"), true),
        (
            "-- cutover: parent_key = order_id\nSELECT o.id AS order_id, l.* FROM orders o \
             LEFT JOIN LATERAL jsonb_to_recordset(o.lines) AS l(line int, sku text) ON true WHERE l.line IS NOT NULL"
                .to_owned(),
            true,
        ),
        (format!("-- cutover: parent_key = line\n{LINES}"), false),
        (format!("-- cutover: parent_key = order_id, line\n{LINES}"), false),
        (format!("-- cutover: parent_key = order_id\n{}", LINES.replace("id AS", "id + 1 AS")), false),
        (format!("-- cutover: parent_key = nothing\n{LINES}"), false),
        (format!("-- cutover: parent_key =\n{LINES}"), false),
        (format!("-- cutover: parent_key = order_id\n-- cutover: on_delete = keep\n{LINES}"), false),
    ] {
        let checked = checked(&pg, &sources()[2..3], &[("items.sql", &sql)]).await;
        assert_eq!(checked.passed(), passes, "{sql}: {:#?}", checked.problems);
        if passes {
            assert_eq!(checked.plans[0].role, PlanRole::Set { parent: vec!["order_id".into()] });
            assert!(checked.problems.is_empty(), "{sql}: {:#?}", checked.problems);
        }
    }
    let tickets = "-- cutover: parent_key = order_id\nSELECT id AS order_id, (jsonb_array_elements(lines))::bigint AS id FROM orders";
    let found = checked(&pg, &sources()[2..3], &[("tickets.sql", tickets)]).await;
    assert!(found.passed(), "{:#?}", found.problems);
    let warned = found
        .problems
        .iter()
        .any(|problem| problem.severity == Severity::Warning && problem.problem.what.contains("no index"));
    assert!(warned, "{:#?}", found.problems);
    pg.exec("CREATE INDEX ON tickets (order_id)").await;
    assert!(checked(&pg, &sources()[2..3], &[("tickets.sql", tickets)]).await.problems.is_empty());
}

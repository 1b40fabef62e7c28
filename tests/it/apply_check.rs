//! Transforms against a real target: what the check refuses, where, and what it says to do.

use std::sync::Arc;

use cutover::{
    model::{ColumnType, Coverage, TableSchema},
    transform::Severity,
};

use crate::{
    apply_rig::{checked, keyed, table},
    support::Postgres,
};

const DDL: &str = "
CREATE TYPE mood AS ENUM ('fine', 'sad');
CREATE DOMAIN short AS varchar(5);
CREATE TABLE items (id bigint PRIMARY KEY, name varchar(20) NOT NULL, price_cents bigint, mood mood, tags text[],
  code short, doc jsonb, at timestamptz, loud text GENERATED ALWAYS AS (upper(name)) STORED);
CREATE TABLE secrets (id bigint PRIMARY KEY);
CREATE TABLE keyless (id bigint);
CREATE FUNCTION peek() RETURNS bigint STABLE LANGUAGE sql AS 'SELECT count(*) FROM public.secrets';";

/// File, text, a part of the message, and its line and column.
type Case = (&'static str, &'static str, &'static str, Option<(u32, u32)>);

fn source() -> Arc<TableSchema> {
    table(
        "legacy_items",
        &[
            ("id", ColumnType::Numeric { precision: 20, scale: 0 }),
            ("name", ColumnType::Text),
            ("price", ColumnType::Numeric { precision: 10, scale: 2 }),
            ("mood", ColumnType::Text),
            ("made", ColumnType::Timestamp),
        ],
    )
}

#[tokio::test]
async fn what_is_wrong_is_refused_with_its_place_and_the_way_out() {
    let pg = Postgres::v15().await;
    pg.exec(DDL).await;
    let cases: &[Case] = &[
        ("items.sql", "SELECT id, nam AS name FROM legacy_items", "column \"nam\" does not exist", Some((1, 12))),
        ("items.sql", "-- a\nSELECT id,\n  name nmae FROM legacy_items", "has no column `nmae`", Some((3, 3))),
        ("items.sql", "SELECT id, name, 1 + 1 FROM legacy_items", "a result column has no name", Some((1, 18))),
        ("items.sql", "SELECT id, name FROM legacy_itemz", "relation \"legacy_itemz\" does not exist", Some((1, 22))),
        (
            "items.sql",
            "SELECT id, name, price AS mood FROM legacy_items",
            "is of type mood but expression",
            Some((1, 18)),
        ),
        ("items.sql", "SELECT id FROM legacy_items", "`name` is NOT NULL, has no default", None),
        ("items.sql", "SELECT name FROM legacy_items", "key column `id` is not in the result", None),
        ("items.sql", "SELECT price AS id, name FROM legacy_items", "depends on `price`", Some((1, 8))),
        ("items.sql", "SELECT length(name) AS id, name FROM legacy_items", "depends on `name`", None),
        (
            "items.sql",
            "SELECT id, name, loud FROM (SELECT *, 'x' AS loud FROM legacy_items) s",
            "computes column `loud`",
            None,
        ),
        ("items.sql", "SELECT id, name, now() AS at FROM legacy_items", "now() does not depend on the row", None),
        ("items.sql", "SELECT id, name, current_date AS at FROM legacy_items", "reads the clock", None),
        (
            "items.sql",
            "SELECT id, name, age(made)::text::jsonb AS doc FROM legacy_items",
            "does not depend on the row",
            None,
        ),
        ("items.sql", "SELECT id, name || random() AS name FROM legacy_items", "random() does not depend", None),
        (
            "items.sql",
            "SELECT id, name || (SELECT count(*) FROM secrets) AS name FROM legacy_items",
            "reads secrets",
            None,
        ),
        (
            "items.sql",
            "SELECT id, name || (SELECT count(*) FROM pg_class) AS name FROM legacy_items",
            "reads pg_class",
            None,
        ),
        ("items.sql", "SELECT id, name FROM public.items", "reads items", None),
        ("items.sql", "SELECT 1 AS id, 'x' AS name", "reads no source table", None),
        ("items.sql", "SELECT id, name FROM legacy_items FOR UPDATE", "locks rows", None),
        (
            "items.sql",
            "WITH gone AS (DELETE FROM secrets RETURNING id) SELECT id, name FROM legacy_items",
            "data-modifying",
            None,
        ),
        ("items.sql", "SELECT id, name FROM legacy_items) q, (SELECT 1", "syntax error", None),
        ("items.sql", "DELETE FROM secrets", "syntax error", None),
        (
            "items.sql",
            "-- cutover: on_delete = keep\nSELECT id, name FROM legacy_items",
            "`on_delete = clear` and `keep`",
            None,
        ),
        ("nowhere.sql", "SELECT id FROM legacy_items", "the target has no table public.nowhere", Some((1, 1))),
        ("keyless.sql", "SELECT id FROM legacy_items", "has no primary key", None),
    ];
    for (file, sql, message, place) in cases {
        let checked = checked(&pg, &[source()], &[(file, sql)]).await;
        assert!(!checked.passed(), "{sql}");
        let found = checked.problems.iter().find(|problem| problem.problem.what.contains(message));
        let found = found.unwrap_or_else(|| panic!("{sql}: {:#?}", checked.problems));
        assert_eq!(found.location.as_ref().map(|location| location.file.display().to_string()).as_deref(), Some(*file));
        if let Some(place) = place {
            assert_eq!(found.location.as_ref().map(|found| (found.line, found.column)), Some(*place), "{sql}: {found}");
        }
    }
}

#[tokio::test]
async fn types_that_assignment_refuses_from_text_are_cast() {
    let pg = Postgres::v15().await;
    pg.exec(DDL).await;
    let sql = "SELECT id::bigint AS id, name, (price * 100)::bigint AS price_cents, lower(mood) AS mood,
        '{' || name || '}' AS tags, left(name, 9) AS code, '{\"a\":1}' AS doc FROM legacy_items;";
    let checked = checked(&pg, &[source()], &[("items.sql", sql)]).await;
    assert!(checked.problems.is_empty(), "{:#?}", checked.problems);
    let plan = &checked.plans[0];
    assert_eq!(plan.coverage, Coverage::Total);
    assert_eq!(plan.reads, ["id", "name", "price", "mood"]);
    let casts: Vec<_> = plan.columns.iter().map(|column| column.cast.as_deref()).collect();
    assert_eq!(casts, [None, None, None, Some("mood"), Some("text[]"), None, Some("jsonb")]);
}

#[tokio::test]
async fn rows_made_of_one_are_told_from_filters_and_sets() {
    let pg = Postgres::v15().await;
    pg.exec(DDL).await;
    for (sql, coverage, warnings) in [
        (
            "SELECT id, name, (SELECT max(x) FROM unnest(ARRAY[price]) x) AS price_cents FROM legacy_items",
            Coverage::Total,
            0,
        ),
        ("SELECT id, name FROM legacy_items WHERE price > 0", Coverage::Filter, 0),
        ("SELECT id, name FROM (SELECT * FROM legacy_items WHERE price > 0) s", Coverage::Partial, 0),
        ("SELECT DISTINCT id, name FROM legacy_items", Coverage::Filter, 1),
        ("SELECT id, name FROM legacy_items LIMIT 1", Coverage::Filter, 1),
        ("SELECT id, max(name) AS name FROM legacy_items GROUP BY id", Coverage::Filter, 1),
        ("SELECT id, name FROM legacy_items UNION ALL SELECT id, name FROM legacy_items", Coverage::Partial, 1),
        ("SELECT id, name FROM legacy_items ORDER BY id", Coverage::Total, 1),
        ("SELECT id + generate_series(1, 2) AS id, name FROM legacy_items", Coverage::Partial, 0),
        ("SELECT id, name || peek() AS name FROM legacy_items", Coverage::Total, 1),
    ] {
        let checked = checked(&pg, &[source()], &[("items.sql", sql)]).await;
        assert!(checked.passed(), "{sql}: {:#?}", checked.problems);
        assert_eq!(checked.plans[0].coverage, coverage, "{sql}");
        assert_eq!(checked.problems.iter().filter(|p| p.severity == Severity::Warning).count(), warnings, "{sql}");
    }
}

#[tokio::test]
async fn a_filters_key_is_told_without_its_select_where_it_is_the_sources_whole_key() {
    let pg = Postgres::v18().await;
    pg.exec("CREATE TABLE orders (id bigint PRIMARY KEY, no int); CREATE TABLE items (id int, no text, PRIMARY KEY (no, id))").await;
    let columns = [("id", ColumnType::Integer), ("no", ColumnType::Integer), ("a", ColumnType::Text)];
    let source = keyed("lines", &columns, 2);
    for (file, sql, key_reads) in [
        ("items.sql", "SELECT id, no::text AS no FROM lines WHERE a > ''", Some(vec![1, 0])),
        ("items.sql", "SELECT id + 1 AS id, no::text AS no FROM lines WHERE a > ''", None),
        ("items.sql", "SELECT id, no::bigint::text AS no FROM lines WHERE a > ''", None),
        // Line 2 of an order says nothing about the row that line 1 makes.
        ("orders.sql", "SELECT id, no FROM lines WHERE no = 1", None),
    ] {
        let checked = checked(&pg, std::slice::from_ref(&source), &[(file, sql)]).await;
        assert!(checked.passed(), "{sql}: {:#?}", checked.problems);
        assert_eq!(checked.plans[0].coverage, Coverage::Filter, "{sql}");
        assert_eq!(checked.plans[0].key_reads, key_reads, "{sql}");
    }
}

#[tokio::test]
async fn rule_7_a_target_key_made_of_a_part_of_the_sources_key_is_refused() {
    let pg = Postgres::v15().await;
    pg.exec("CREATE TABLE items (id text PRIMARY KEY, tenant int DEFAULT 1, UNIQUE (tenant, id))").await;
    pg.exec("CREATE TABLE shared (tenant int, id text, PRIMARY KEY (tenant, id))").await;
    let source =
        keyed("lines", &[("tenant", ColumnType::Integer), ("id", ColumnType::Integer), ("a", ColumnType::Text)], 2);
    for refused in [
        "SELECT id::text AS id FROM lines",
        "SELECT id::text AS id, tenant FROM lines",
        "SELECT id::text AS id FROM lines WHERE a > ''",
        "SELECT lower(id::text) AS id FROM lines",
    ] {
        let checked = checked(&pg, std::slice::from_ref(&source), &[("items.sql", refused)]).await;
        let found: Vec<String> = checked.problems.iter().map(ToString::to_string).collect();
        assert_eq!(found.len(), 1, "{refused}: {found:?}");
        for word in ["(id)", "shop.lines (`tenant`, `id`)", "differ in `tenant` alone", "add `tenant` to the SELECT"] {
            assert!(found[0].contains(word), "{refused}: {found:?}");
        }
    }
    let constant = "SELECT 1 AS tenant, id::text AS id FROM lines";
    assert!(!checked(&pg, std::slice::from_ref(&source), &[("shared.sql", constant)]).await.passed());
    for (file, sql) in [
        ("items.sql", "SELECT id::text AS id FROM lines WHERE tenant = 7"),
        ("items.sql", "SELECT tenant || '-' || id AS id FROM lines"),
        ("shared.sql", "SELECT tenant, id::text AS id FROM lines"),
        ("shared.sql", "SELECT 1 AS tenant, tenant || '-' || id AS id FROM lines"),
    ] {
        let checked = checked(&pg, std::slice::from_ref(&source), &[(file, sql)]).await;
        assert!(checked.problems.is_empty(), "{sql}: {:#?}", checked.problems);
    }
}

#[tokio::test]
async fn names_that_postgresql_keeps_or_cuts_are_read_by_a_transform_that_names_them_anew() {
    let pg = Postgres::v15().await;
    pg.exec("CREATE TABLE things (id int PRIMARY KEY, transaction int, theirs int, long text)").await;
    let (long, table_name) = ("\u{e9}".repeat(32), "t".repeat(200));
    let columns = [
        ("id", ColumnType::Integer),
        ("xmin", ColumnType::Integer),
        ("cutover_version", ColumnType::Integer),
        (long.as_str(), ColumnType::Text),
    ];
    let source = table(&table_name, &columns);
    let sql =
        format!("SELECT id, xmin AS transaction, cutover_version AS theirs, \"{long}\" AS long FROM \"{table_name}\"");
    let found = checked(&pg, std::slice::from_ref(&source), &[("things.sql", &sql)]).await;
    assert!(found.problems.is_empty(), "{:#?}", found.problems);
    assert_eq!(found.plans[0].reads, ["id", "xmin", "cutover_version", &long]);

    // Without one, it is said how to write it.
    let problem = checked(&pg, &[source], &[]).await.problems[0].to_string();
    assert!(problem.contains("cuts names after 63 bytes") && problem.contains("write a transform"), "{problem}");

    // Two that are alike in what PostgreSQL keeps of them cannot be told apart.
    let alike = [format!("{table_name}a"), format!("{table_name}b")].map(|name| table(&name, &columns[..1]));
    let found = checked(&pg, &alike, &[]).await;
    let problem = found.problems[0].to_string();
    assert!(problem.contains("63 bytes") && problem.contains("a pipeline of its own"), "{problem}");
    let long = "c".repeat(63);
    let names = [format!("{long}a"), format!("{long}b")];
    let alike = [("id", ColumnType::Integer), (&names[0], ColumnType::Text), (&names[1], ColumnType::Text)];
    let found = checked(&pg, &[table("t", &alike)], &[]).await;
    let problem = found.problems[0].to_string();
    assert!(found.problems.len() == 1 && problem.contains(&names[1]) && problem.contains("rename one"), "{problem}");
}

#[tokio::test]
async fn a_table_without_a_transform_is_copied_by_column_name() {
    let pg = Postgres::v15().await;
    pg.exec("CREATE TABLE \"Users\" (id bigint PRIMARY KEY, \"Name\" text, extra text DEFAULT 'x', up text GENERATED ALWAYS AS (upper(\"Name\")) STORED)").await;
    let users = table("Users", &[("id", ColumnType::BigInt), ("Name", ColumnType::Text), ("up", ColumnType::Text)]);
    let found = checked(&pg, &[users], &[]).await;
    assert!(found.problems.is_empty(), "{:#?}", found.problems);
    assert_eq!(found.plans[0].select, "SELECT \"id\", \"Name\" FROM \"Users\"");
    let strangers = [table("Ghosts", &[("id", ColumnType::BigInt)])];
    let message = checked(&pg, &strangers, &[]).await.problems[0].to_string();
    assert!(message.contains("shop.Ghosts has no transform"), "{message}");
}

#[tokio::test]
async fn rule_21_the_identity_of_a_transform_is_its_key_and_its_filter_and_nothing_else() {
    let pg = Postgres::v15().await;
    pg.exec(DDL).await;
    let identity = async |source: &Arc<TableSchema>, text: &str| {
        let checked = checked(&pg, std::slice::from_ref(source), &[("items.sql", text)]).await;
        assert!(checked.passed(), "{text}: {:?}", checked.problems);
        checked.plans[0].identity.clone()
    };
    let legacy = source();
    let first = identity(&legacy, "SELECT id, name FROM legacy_items WHERE price > 1").await;
    for same in [
        "SELECT upper(name) AS name, id, (price * 100)::bigint AS price_cents\n  FROM legacy_items i -- a comment\n WHERE (price > 1)",
        "SELECT i.id, 'x' || i.name AS name FROM legacy_items AS i WHERE i.price > 1",
    ] {
        assert_eq!(identity(&legacy, same).await, first, "{same}");
    }
    for other in [
        "SELECT id, name FROM legacy_items",
        "SELECT id, name FROM legacy_items WHERE price > 2",
        "SELECT id, name FROM legacy_items WHERE price >= 1",
        "SELECT id, name FROM legacy_items WHERE id > 1",
        "SELECT id + 1 AS id, name FROM legacy_items WHERE price > 1",
        "SELECT id, name FROM legacy_items WHERE price > 1 LIMIT 1",
    ] {
        assert_ne!(identity(&legacy, other).await, first, "{other}");
    }
    // A column that comes in front moves the others.
    let mut moved = TableSchema::clone(&legacy);
    moved.columns.insert(0, legacy.columns[4].clone());
    moved.columns[0].name = "added".into();
    moved.key = vec![1];
    assert_eq!(identity(&Arc::new(moved), "SELECT id, name FROM legacy_items WHERE price > 1").await, first);
    // Of a set any part may decide which rows there are.
    let set = identity(&legacy, "SELECT id, unnest(ARRAY[name]) AS name FROM legacy_items").await;
    assert_ne!(identity(&legacy, "SELECT id, unnest(ARRAY[lower(name)]) AS name FROM legacy_items").await, set);
}

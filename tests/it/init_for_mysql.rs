//! `cutover init` for a target that is MySQL or MariaDB: what it writes runs as it is, and rows arrive.

use std::{fs, path::PathBuf};

use serde_json::json;

use crate::{
    init::{LENIENT, SHOP},
    support::{Dynamo, Mysql, Postgres, Workspace},
};

/// A folder that `init` has written, and the commands that are run in it.
struct Move {
    work: Workspace,
    out: PathBuf,
}

impl Move {
    /// Runs `init` with these arguments besides the URLs.
    async fn drafted(source: &str, target: &str, more: &[&str]) -> Move {
        let mut work = Workspace::new("unused", source, target, &[]);
        for name in ["SOURCE_PASSWORD", "TARGET_PASSWORD", "ENGINE_PASSWORD"] {
            work.set_env(name, "admin");
        }
        work.set_env("AWS_ACCESS_KEY_ID", "cutover");
        work.set_env("AWS_SECRET_ACCESS_KEY", "cutover");
        let out = work.path().join("move");
        let mut arguments = vec!["init", "--source", source, "--target", target, "--out", "move"];
        arguments.extend(more);
        let written = work.run(&arguments).await;
        assert!(written.status.success(), "{}", String::from_utf8_lossy(&written.stderr));
        Move { work, out }
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.out.join(name)).unwrap()
    }

    /// Nothing is in the way of what was written, and it runs to its end.
    async fn passes_and_runs(&self) {
        let config = ["-c", "move/cutover.toml"];
        let checked = self.work.run(&[&["check"], &config[..]].concat()).await;
        assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
        let ran = self.work.run(&[&["run", "--until-synced", "--listen", "127.0.0.1:0"], &config[..]].concat()).await;
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    }
}

/// A shop moves from one server to another; `lacks` is a collation that the target has not, and what stands for it.
async fn what_init_writes_runs_as_it_is(source: Mysql, target: Mysql, lacks: Option<(&str, &str)>) {
    let engine = Postgres::v15().await;
    source.exec(&SHOP.replace("{LONG}", &"l".repeat(64))).await;
    source
        .exec(
            "INSERT INTO users (email, role, flags, big, y, j, zf) VALUES ('B', 'it''s; x', 'a,b', 1.5, 2024, '{\"a\": 1}', 7);
             INSERT INTO system_name VALUES (1, 2, 3, 4, 5); INSERT INTO `dotted.name` VALUES (7); INSERT INTO `we ird-Täble` VALUES (1, 2);
             INSERT INTO orders (user_id, parent_id, blobby, g, placed, shipped) VALUES (2, 1, 'x', ST_GeomFromText('POINT(1 2)'), NOW(), NOW())",
        )
        .await;
    let moving = Move::drafted(&source.url(), &target.url(), &["--engine", &engine.url()]).await;
    let mut schema = moving.read("schema.sql");
    if let Some((collation, instead)) = lacks {
        assert!(schema.contains(&format!("-- Not every server has {collation}: ")), "{schema}");
        schema = schema.replace(collation, instead);
    }
    target.exec(&schema).await;
    moving.passes_and_runs().await;
    let after = moving.read("schema_after.sql");
    assert!(after.contains("-- Left out: foreign key fk_b of loose_child: "), "{after}");

    for same in [
        "SELECT id, email, `Order`, `größe`, created_at, role, flags, active + 0, tiny, big, f, y, t, HEX(h), zf, full_name,
           JSON_EXTRACT(j, '$.a') FROM users ORDER BY id",
        "SELECT id, user_id, parent_id, total, HEX(blobby), ST_AsText(g), shipped FROM orders ORDER BY id",
        "SELECT * FROM `we ird-Täble`",
        "SELECT * FROM `dotted.name`",
        "SELECT GROUP_CONCAT(DISTINCT CONCAT(table_name, ' ', index_name) ORDER BY 1) FROM information_schema.statistics
           WHERE table_schema = DATABASE() AND table_name IN ('users', 'orders')",
        "SELECT GROUP_CONCAT(CONCAT(constraint_name, ' ', delete_rule) ORDER BY 1) FROM information_schema.referential_constraints
           WHERE constraint_schema = DATABASE() AND constraint_name <> 'fk_b'",
        "SELECT column_type, column_comment FROM information_schema.columns
           WHERE table_schema = DATABASE() AND table_name = 'users' AND column_name IN ('role', 'flags') ORDER BY column_name",
    ] {
        assert_eq!(source.query(same).await, target.query(same).await, "{same}");
    }
    // Zero dates need room for nulls, where the default is one or a row has one.
    let nullable = "SELECT GROUP_CONCAT(column_name ORDER BY column_name) FROM information_schema.columns
        WHERE table_schema = DATABASE() AND column_name IN ('birth', 'placed', 'shipped', 'created_at') AND is_nullable = 'YES'";
    assert_eq!(target.value(nullable).await.as_deref(), Some("birth,placed"));
    let names = target.query("SELECT * FROM system_name").await;
    assert_eq!(names[0].iter().flatten().collect::<Vec<_>>(), ["1", "2", "3", "4", "5"]);

    // After the switch the application inserts as it did: keys are counted on, defaults are there.
    target
        .exec("INSERT INTO users (email) VALUES ('c'); INSERT INTO orders (user_id, shipped) VALUES (3, NOW())")
        .await;
    let row =
        "SELECT CONCAT_WS('|', id, `Order`, `größe`, role, active + 0, tiny, f, t, seen) FROM users WHERE email = 'c'";
    assert_eq!(target.value(row).await.as_deref(), Some(r"3|5|x'y\z|admin|1|0|1.5000|-10:00:01|2020-01-01 00:00:00"));
}

#[tokio::test]
async fn what_init_writes_for_mysql_57_runs_on_mysql_97() {
    what_init_writes_runs_as_it_is(Mysql::v57().await, Mysql::v97().await, None).await;
}

#[tokio::test]
async fn what_init_writes_for_mysql_80_runs_on_mariadb_with_a_collation_that_it_has() {
    let lacks = ("utf8mb4_0900_ai_ci", "utf8mb4_unicode_520_ci");
    what_init_writes_runs_as_it_is(Mysql::v80().await, Mysql::mariadb().await, Some(lacks)).await;
}

#[tokio::test]
async fn what_init_writes_for_mariadb_runs_on_mysql_57() {
    what_init_writes_runs_as_it_is(Mysql::mariadb().await, Mysql::v57().await, None).await;
}

#[tokio::test]
async fn what_init_writes_for_mysql_97_runs_on_mysql_97() {
    let source = Mysql::v97().await;
    source.exec(LENIENT).await;
    what_init_writes_runs_as_it_is(source, Mysql::v97().await, None).await;
}

/// What the source takes is written so that the target takes it too, or left out with a comment; nothing is run.
async fn runs_on(source: &Mysql, target: &Mysql, tables: &str) -> String {
    source.exec(tables).await;
    let engine = Postgres::v15().await;
    let moving = Move::drafted(&source.url(), &target.url(), &["--engine", &engine.url()]).await;
    let (schema, after) = (moving.read("schema.sql"), moving.read("schema_after.sql"));
    target.exec(&schema.replace("utf8mb4_0900_ai_ci", "utf8mb4_unicode_520_ci")).await;
    target.exec(&after).await;
    schema + &after
}

#[tokio::test]
async fn indexes_defaults_and_counters_are_those_of_the_source() {
    let (source, target) = (Mysql::v80().await, Mysql::v57().await);
    let written = runs_on(
        &source,
        &target,
        "CREATE TABLE counted (code varchar(20) PRIMARY KEY, id int NOT NULL AUTO_INCREMENT, dash varchar(20) DEFAULT '--', UNIQUE KEY id (id)) AUTO_INCREMENT=50;
         CREATE TABLE refers (a int PRIMARY KEY, CONSTRAINT to_counted FOREIGN KEY (a) REFERENCES counted (id));
         CREATE TABLE grouped (grp int, id int NOT NULL AUTO_INCREMENT, PRIMARY KEY (grp, id)) ENGINE=MyISAM;
         CREATE TABLE moments (id int PRIMARY KEY, at timestamp(3) NOT NULL, later timestamp NOT NULL, never timestamp NULL)",
    )
    .await;
    assert!(written.contains("-- Not every server has utf8mb4_0900_ai_ci: "), "{written}");
    target.exec("INSERT INTO counted (code) VALUES ('a'); INSERT INTO refers VALUES (50); INSERT INTO moments (id) VALUES (1)").await;
    let row = "SELECT CONCAT_WS('|', id, dash, never IS NULL, at = later, at) FROM counted JOIN (SELECT at = 0 AS at, later = 0 AS later, never FROM moments) m";
    assert_eq!(target.value(row).await.as_deref(), Some("50|--|1|1|0"));
    target.try_exec("INSERT INTO counted (code, id) VALUES ('b', 50)").await.expect_err("unique");
    target.exec("UPDATE moments SET id = 2, at = '2020-01-01'; UPDATE moments SET id = 3").await;
    assert_eq!(target.value("SELECT YEAR(at) FROM moments").await.as_deref(), Some("2020"), "it follows no update");

    let written = runs_on(
        &Mysql::mariadb().await,
        &source,
        "CREATE TABLE docs (id int PRIMARY KEY, doc json, body text, kind uuid, KEY d (doc(100)), UNIQUE KEY b (body), KEY p (body(9)))",
    )
    .await;
    for left_out in ["index d on docs: on JSON", "index b on docs: on the whole"] {
        assert!(written.contains(&format!("-- Left out: {left_out}")), "{written}");
    }
}

const PEOPLE: &str = r#"
    CREATE TYPE mood AS ENUM ('sad', 'it''s ok');
    CREATE DOMAIN amount AS numeric(10,2) NOT NULL DEFAULT 0;
    CREATE DOMAIN price AS amount CHECK (VALUE >= 0);
    CREATE TABLE people (
        id bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, email text NOT NULL UNIQUE, mood mood DEFAULT 'it''s ok', born date,
        seen timestamptz DEFAULT now(), at timestamp(0), alarm time, tags text[], data jsonb DEFAULT '{}', net inet, score real,
        ratio double precision, active boolean NOT NULL DEFAULT true, photo bytea, note varchar(2000), code char(3), span int4range,
        wait interval, cost price, raw json, long numeric, bits bit(3), token uuid DEFAULT gen_random_uuid(), visits int DEFAULT 5,
        shout text GENERATED ALWAYS AS (upper(email)) STORED, CONSTRAINT no_debt CHECK (score >= 0));
    CREATE INDEX people_note ON people (note);
    CREATE INDEX people_lower ON people (lower(email));
    CREATE INDEX people_data ON people USING gin (data);
    CREATE INDEX people_born ON people (born DESC, id);
    CREATE UNIQUE INDEX people_code ON people (code) WHERE active;
    CREATE TABLE visits (person bigint REFERENCES people (id) ON DELETE CASCADE, place text, no serial, open boolean, PRIMARY KEY (place, no, open));
    CREATE TABLE "order.lines" (id int PRIMARY KEY, email text REFERENCES people (email));
    CREATE TABLE countries (code char(2) PRIMARY KEY, site bigint NOT NULL, url varchar(2000) NOT NULL, a text, b text, c text, d text,
        moods mood[], sums numeric[], host inet, late date DEFAULT 'infinity', maybe int DEFAULT nextval('visits_no_seq'), UNIQUE (site, url));
    CREATE INDEX countries_texts ON countries (a, b, c, d, site);
    CREATE TABLE stays (person int PRIMARY KEY, guide int NOT NULL, CONSTRAINT of_person FOREIGN KEY (person) REFERENCES people (id),
        CONSTRAINT guided FOREIGN KEY (guide) REFERENCES people (id) ON DELETE SET NULL);
    CREATE TABLE meals (site bigint, url varchar(2000), person int REFERENCES people (id), CONSTRAINT of_person PRIMARY KEY (site, url),
        CONSTRAINT guided FOREIGN KEY (url, site) REFERENCES countries (url, site));
    CREATE TABLE twins ("Id" int PRIMARY KEY, id int);
    INSERT INTO countries VALUES ('de', 1, 'x', 'a', 'b', 'c', 'd', '{sad,"it''s ok"}', '{0.10,12345678901234567890.5}', '10.0.0.1', NULL, NULL);
    INSERT INTO people (email, mood, born, seen, at, alarm, tags, data, net, score, ratio, photo, note, code, span, wait, cost, raw, long, bits, token)
    VALUES ('A@x', 'sad', '2000-02-29', '2024-05-30 12:00:00.123456+02', '2024-05-30 10:00:00', '10:30:00.5', '{a,"b c",NULL}', '{"a": [1, "ü"]}',
        '10.0.0.1/8', 1.1, 0.1, '\x00ff', repeat('ü', 2000), 'ab', '[1,5)', '90 minutes', 12.5, '{"b":2}', 123456789.000000001, B'101',
        '00000000-0000-0000-0000-000000000001');
    INSERT INTO people (email) VALUES ('a@x'), ('é@x');
    INSERT INTO visits VALUES (1, 'here', 4, true), (1, 'here', 4, false), (2, 'Here', 4, true);
    INSERT INTO "order.lines" VALUES (7, 'A@x');
    INSERT INTO stays VALUES (1, 2);
    INSERT INTO meals VALUES (1, 'x', 1)
"#;

async fn people_move(source: Postgres, target: Mysql) {
    source.exec(PEOPLE).await;
    let moving = Move::drafted(&source.url(), &target.url(), &[]).await;
    target.exec(&moving.read("schema.sql")).await;
    moving.passes_and_runs().await;

    let row = "SELECT CONCAT_WS('|', id, email, mood, born, DATE_FORMAT(seen, '%Y-%m-%d %H:%i:%s.%f'), at, alarm, JSON_EXTRACT(tags, '$[1]'),
        JSON_EXTRACT(data, '$.a[0]'), net, score, ratio, active, HEX(photo), CHAR_LENGTH(note), code, span, wait, cost, JSON_EXTRACT(raw, '$.b'),
        `long`, bits, token, visits) FROM people WHERE email = 'A@x'";
    let expected = "1|A@x|sad|2000-02-29|2024-05-30 10:00:00.123456|2024-05-30 10:00:00|10:30:00.500000|\"b c\"|1|10.0.0.1/8|1.1|0.1|1|00FF|2000|ab|\
        [1,5)|01:30:00|12.50|2|123456789.000000001000000000000000000000|101|00000000-0000-0000-0000-000000000001|5";
    assert_eq!(target.value(row).await.as_deref(), Some(expected));
    assert_eq!(
        target.value("SELECT GROUP_CONCAT(email ORDER BY id) FROM people").await.as_deref(),
        Some("A@x,a@x,é@x")
    );
    let visits = "SELECT GROUP_CONCAT(CONCAT_WS(' ', place, no, open) ORDER BY 1 SEPARATOR ',') FROM visits";
    assert_eq!(target.value(visits).await.as_deref(), Some("Here 4 1,here 4 0,here 4 1"));
    assert_eq!(target.value("SELECT email FROM `order.lines` WHERE id = 7").await.as_deref(), Some("A@x"));
    let indexes = "SELECT GROUP_CONCAT(DISTINCT index_name ORDER BY 1) FROM information_schema.statistics
        WHERE table_schema = DATABASE() AND table_name = 'people'";
    assert_eq!(target.value(indexes).await.as_deref(), Some("people_born,people_email_key,people_note,PRIMARY"));
    let rules = "SELECT GROUP_CONCAT(CONCAT(table_name, ' ', delete_rule) ORDER BY 1) FROM information_schema.referential_constraints
        WHERE constraint_schema = DATABASE()";
    let rules = target.value(rules).await.unwrap();
    for rule in ["visits CASCADE", "order.lines", "stays", "meals"] {
        assert!(rules.contains(rule), "{rules}");
    }
    assert!(!rules.contains("SET NULL"), "a column that is NOT NULL: {rules}");
    let row = "SELECT CONCAT_WS('|', code, site, url, moods, sums, host, late IS NULL) FROM countries";
    let found = target.value(row).await.unwrap().replace("\", \"", "\",\"");
    assert_eq!(found, "de|1|x|[\"sad\",\"it's ok\"]|[\"0.10\",\"12345678901234567890.5\"]|10.0.0.1|1");
    assert_eq!(target.value("SELECT CONCAT_WS(' ', person, guide) FROM stays").await.as_deref(), Some("1 2"));
    let (schema, after) = (moving.read("schema.sql"), moving.read("schema_after.sql"));
    assert!(schema.contains("-- Left out: column shout, which the source computes as upper(email)"), "{schema}");
    for left_out in [
        "index people_lower on people",
        "index people_data on people",
        "index people_code on people",
        "no_debt of people",
    ] {
        assert!(after.contains(&format!("-- Left out: {left_out}: ")), "{after}");
    }

    // After the switch the application inserts as it did.
    target.exec("INSERT INTO people (email, cost) VALUES ('n@x', 1); INSERT INTO visits (person, place, open) VALUES (4, 'there', 1)").await;
    let row = "SELECT CONCAT_WS('|', p.id, p.mood, p.active, p.visits, p.seen IS NOT NULL, v.no)
        FROM people p JOIN visits v ON v.person = p.id WHERE p.email = 'n@x'";
    assert_eq!(target.value(row).await.as_deref(), Some("4|it's ok|1|5|1|5"));
}

#[tokio::test]
async fn what_init_writes_for_postgresql_18_runs_on_mysql_57() {
    people_move(Postgres::v18().await, Mysql::v57().await).await;
}

#[tokio::test]
async fn what_init_writes_for_postgresql_15_runs_on_mysql_80() {
    people_move(Postgres::v15().await, Mysql::v80().await).await;
}

#[tokio::test]
async fn what_init_writes_for_postgresql_15_runs_on_mysql_97() {
    people_move(Postgres::v15().await, Mysql::v97().await).await;
}

#[tokio::test]
async fn what_init_writes_for_postgresql_18_runs_on_mariadb() {
    people_move(Postgres::v18().await, Mysql::mariadb().await).await;
}

#[tokio::test]
async fn what_init_writes_for_dynamodb_runs_on_mysql() {
    let (source, target, engine) = (Dynamo::shared().await, Mysql::v80().await, Postgres::v15().await);
    let table = source.table("orderLines", &[("orderId", "S"), ("no", "N")]).await;
    source
        .put(
            &table,
            json!({"orderId": {"S": "o1"}, "no": {"N": "2"}, "price": {"N": "1.5"}, "Qty": {"N": "2"}, "at": {"S": "2024-05-30T10:00:00Z"},
                   "gift": {"BOOL": true}, "tags": {"SS": ["a"]}, "select": {"S": "x"}, "photo": {"B": "AP8="}}),
        )
        .await;
    let moving = Move::drafted(&source.url, &target.url(), &["--table", &table, "--engine", &engine.url()]).await;
    target.exec(&moving.read("schema.sql")).await;
    moving.passes_and_runs().await;
    let name = table.to_lowercase().replace("orderlines", "order_lines");
    let row = format!(
        "SELECT CONCAT_WS('|', order_id, no + 0, price + 0, qty, at, gift, JSON_EXTRACT(tags, '$[0]'), `select`, HEX(photo)) FROM `{name}`"
    );
    let found = target.value(&row).await.unwrap();
    assert!(found.starts_with("o1|2") && found.ends_with("|2|2024-05-30 10:00:00.000000|1|\"a\"|x|00FF"), "{found}");
}

#[tokio::test]
async fn init_says_which_postgresql_is_missing_and_refuses_one_that_is_too_many() {
    let source = Mysql::v57().await;
    source.exec("CREATE TABLE t (id int PRIMARY KEY)").await;
    let target = "mysql://u:hunter2@127.0.0.1:3306/shop";
    let work = Workspace::new("unused", &source.url(), target, &[]);
    let run = async |target: &str, more: &[&str]| {
        let url = source.url();
        work.run(&[&["init", "--source", url.as_str(), "--target", target], more].concat()).await
    };
    let written = run(target, &["--out", "a"]).await;
    assert!(written.status.success(), "{}", String::from_utf8_lossy(&written.stderr));
    let told = String::from_utf8_lossy(&written.stdout).into_owned();
    assert!(told.contains("[transform] engine") && told.contains("ENGINE_PASSWORD"), "{told}");
    let config = fs::read_to_string(work.path().join("a/cutover.toml")).unwrap();
    assert!(config.contains("engine = \"postgresql://cutover:${ENGINE_PASSWORD}@localhost:5432/cutover\""), "{config}");
    let postgres = "postgresql://u@127.0.0.1/x";
    for (target, engine, word) in
        [(postgres, postgres, "leave it out"), (target, target, "--engine is not a postgresql://")]
    {
        let refused = run(target, &["--out", "b", "--engine", engine]).await;
        assert_eq!(refused.status.code(), Some(2));
        assert!(String::from_utf8_lossy(&refused.stderr).contains(word));
    }
}

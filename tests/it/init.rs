//! `cutover init` on real servers: what it writes runs as it is, and says what is different.

use std::fs;
use std::path::Path;
use std::time::Duration;

use cutover::cli::check;
use cutover::cli::init::{self, InitArgs, InitError, Written};
use cutover::config::Config;

use crate::support::{Mysql, Postgres, Workspace};

pub const SHOP: &str = r#"
    SET sql_mode = '';
    CREATE TABLE users (
        id bigint unsigned AUTO_INCREMENT PRIMARY KEY, email varchar(190) NOT NULL, `Order` int DEFAULT 5,
        `größe` varchar(20) DEFAULT 'x''y\\z', birth date NOT NULL DEFAULT '0000-00-00',
        created_at datetime(3) NOT NULL DEFAULT CURRENT_TIMESTAMP(3) ON UPDATE CURRENT_TIMESTAMP(3),
        seen timestamp NOT NULL DEFAULT '2020-01-01 00:00:00',
        role enum('admin', 'it''s; x', 'b') NOT NULL DEFAULT 'admin' COMMENT 'it''s', flags set('a', 'b'),
        active bit(1) NOT NULL DEFAULT b'1', tiny tinyint(1) DEFAULT 0, big decimal(65,30), f float(7,4) DEFAULT 1.5,
        y year, j json, t time DEFAULT '-10:00:01', h binary(4) DEFAULT 'ab', zf int(5) unsigned zerofill,
        full_name varchar(300) AS (concat(email, '!')) STORED,
        UNIQUE KEY email (email), KEY pre (`größe`(3), id), FULLTEXT KEY ft (`größe`), KEY k2 (created_at)
    ) COMMENT 'the users';
    CREATE TABLE orders (
        id int unsigned AUTO_INCREMENT PRIMARY KEY, user_id bigint unsigned NOT NULL, parent_id int unsigned,
        total decimal(10,2) NOT NULL DEFAULT '0.00', blobby mediumblob, g geometry, placed datetime NOT NULL,
        shipped datetime NOT NULL, KEY email (user_id), KEY bl (blobby(10)),
        CONSTRAINT fk_user FOREIGN KEY (user_id) REFERENCES users (id) ON DELETE CASCADE ON UPDATE RESTRICT,
        CONSTRAINT fk_self FOREIGN KEY (parent_id) REFERENCES orders (id) ON DELETE SET NULL
    );
    CREATE TABLE tags (name varchar(40) CHARACTER SET latin1 NOT NULL, k2 binary(16) NOT NULL, UNIQUE KEY nm (name, k2));
    CREATE TABLE nokey (a int, b text);
    CREATE TABLE `we ird-Täble` (`a b` int NOT NULL, `select` int, PRIMARY KEY (`a b`));
    CREATE TABLE a_really_long_table_name_that_has_sixty_three_characters_in_all (
        a_really_long_column_name_that_has_sixty_four_characters_in_al_ int PRIMARY KEY, b int, KEY k (b));
    CREATE TABLE loose (a int NOT NULL PRIMARY KEY, b int, KEY (b));
    CREATE TABLE loose_child (a int NOT NULL PRIMARY KEY, b int, CONSTRAINT fk_b FOREIGN KEY (b) REFERENCES loose (b));
    CREATE TABLE `slashed/name` (id int PRIMARY KEY);
    CREATE TABLE system_name (xmin int PRIMARY KEY, cutover_version int, cutover_version_ int, source_xmin int, `{LONG}` int, KEY (`{LONG}`));
    CREATE TABLE `dotted.name` (id int PRIMARY KEY);
    CREATE VIEW v AS SELECT 1 AS x;
    INSERT INTO users (email) VALUES ('a');
    INSERT INTO orders (user_id, placed, shipped) VALUES (1, '2020-00-00', '2020-01-01')
"#;

const LEFT_OUT: [&str; 2] = ["nokey", "slashed/name"];

/// MySQL refuses by default, from 8.4 on, a foreign key to columns that are not unique.
pub const LENIENT: &str = "SET restrict_fk_on_non_standard_key = OFF";

async fn init(source: &str, target: &str, tables: &[&str], out: &Path) -> Result<Written, InitError> {
    let tables = tables.iter().map(|table| (*table).to_owned()).collect();
    init::run(InitArgs {
        source: source.to_owned(),
        target: target.to_owned(),
        tables,
        schema: None,
        engine: None,
        out: out.to_owned(),
    })
    .await
}

async fn what_init_writes_runs_as_it_is(source: Mysql, target: Postgres) {
    let long = "l".repeat(64);
    source.exec(&SHOP.replace("{LONG}", &long)).await;
    source.exec("INSERT INTO system_name VALUES (1, 2, 3, 4, 5)").await;
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("move");
    let written = init(&source.url(), &target.url(), &[], &out).await.unwrap();
    assert_eq!(written.left_out.iter().map(|(table, _)| table.as_str()).collect::<Vec<_>>(), LEFT_OUT);
    let read = |name: &str| fs::read_to_string(out.join(name)).unwrap();

    let (schema, after) = (read("schema.sql"), read("schema_after.sql"));
    target.exec(&schema).await;
    target.exec(&after).await;
    for left_out in ["index ft on users", "foreign key fk_b of loose_child"] {
        assert!(after.contains(&format!("-- Left out: {left_out}: ")), "{after}");
    }

    // Zero dates need room for nulls: where the default is one, where a row has one, and nowhere else.
    let nullable = "SELECT string_agg(column_name, ',' ORDER BY column_name) FROM information_schema.columns \
                    WHERE column_name IN ('birth', 'placed', 'shipped', 'created_at') AND is_nullable = 'YES'";
    assert_eq!(target.value(nullable).await.as_deref(), Some("birth,placed"));
    let rules = "SELECT string_agg(format('%s %s', conname, confdeltype), ',' ORDER BY conname) FROM pg_constraint WHERE contype = 'f'";
    assert_eq!(target.value(rules).await.as_deref(), Some("fk_self n,fk_user c"));

    // After the switch the application inserts as it did: keys are generated, defaults are there.
    target.exec("INSERT INTO users (email, seen) VALUES ('b', now()); INSERT INTO orders (user_id, shipped) VALUES (1, now())").await;
    let row = "SELECT concat_ws('|', id, \"Order\", \"größe\", role, active, tiny, f, t) FROM users";
    assert_eq!(target.value(row).await.as_deref(), Some(r"1|5|x'y\z|admin|\x01|0|1.5|-10:00:01"));
    let comment = "SELECT obj_description('users'::regclass) || ',' || col_description('users'::regclass, 8)";
    assert_eq!(target.value(comment).await.as_deref(), Some("the users,it's"));

    // `check` finds nothing in the way.
    let config = read("cutover.toml");
    let password = |_: &str| Some("admin".to_owned());
    let config = Config::parse(&config, out.clone(), &password).unwrap_or_else(|mistakes| panic!("{mistakes:?}"));
    let report = check::run(&config).await;
    let mut blocking = report.findings.iter().filter(|finding| finding.weight == check::Weight::Blocks);
    assert!(blocking.next().is_none(), "{report}");
    assert_eq!(report.tables, 9);

    // Names that no table of PostgreSQL can have become others, and names with a dot stay; their rows arrive.
    let names = ["system_name", "dotted.name"];
    let work = Workspace::new("names", &source.url(), &target.url(), &names);
    for file in ["system_name", "public.dotted.name"] {
        work.transform(file, &read(&format!("transforms/{file}.sql")));
    }
    source.exec("INSERT INTO `dotted.name` VALUES (7)").await;
    for change in ["DO 0", "UPDATE system_name SET cutover_version = 20", "DELETE FROM `dotted.name`"] {
        source.exec(change).await;
        let mut worker = work.start(&["--until-synced"]);
        assert!(worker.wait_exit(Duration::from_secs(60)).await.success(), "{}", worker.stderr());
    }
    let row = target.query("SELECT * FROM system_name").await.remove(0);
    assert_eq!(row.iter().take(5).flatten().collect::<Vec<_>>(), ["1", "20", "3", "4", "5"]);
    assert_eq!(target.value("SELECT count(*) FROM \"dotted.name\"").await.as_deref(), Some("0"));
}

#[tokio::test]
async fn what_init_writes_for_mysql_57_runs_on_postgresql_15() {
    what_init_writes_runs_as_it_is(Mysql::v57().await, Postgres::v15().await).await;
}

#[tokio::test]
async fn what_init_writes_for_mysql_80_runs_on_postgresql_18() {
    what_init_writes_runs_as_it_is(Mysql::v80().await, Postgres::v18().await).await;
}

#[tokio::test]
async fn what_init_writes_for_mysql_97_runs_on_postgresql_18() {
    let source = Mysql::v97().await;
    source.exec(LENIENT).await;
    what_init_writes_runs_as_it_is(source, Postgres::v18().await).await;
}

#[tokio::test]
async fn what_init_writes_for_mariadb_runs_on_postgresql_15() {
    what_init_writes_runs_as_it_is(Mysql::mariadb().await, Postgres::v15().await).await;
}

#[tokio::test]
async fn init_writes_no_password_and_overwrites_nothing() {
    let source = Mysql::v57().await;
    source.exec("CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE u (id int PRIMARY KEY)").await;
    let folder = tempfile::tempdir().unwrap();
    let target = "postgresql://someone:hunter2%21@db.example:5432/shop?tls=verify";
    let source_url = source.url();
    let password = source_url.split(['@', ':']).nth(2).unwrap();
    let written = init(&source_url, target, &["t"], folder.path()).await.unwrap();
    assert_eq!(written.variables, ["SOURCE_PASSWORD", "TARGET_PASSWORD"]);
    let config = fs::read_to_string(folder.path().join("cutover.toml")).unwrap();
    assert!(!config.contains("hunter2") && !config.contains(&format!(":{password}@")), "{config}");
    assert!(config.contains("postgresql://someone:${TARGET_PASSWORD}@db.example:5432/shop?tls=verify"), "{config}");
    assert!(!folder.path().join("transforms/u.sql").exists(), "only the named table was meant");

    let again = init(&source_url, target, &["u"], folder.path()).await.unwrap_err();
    assert!(matches!(&again, InitError::Exists(path) if path.ends_with("cutover.toml")), "{again}");
    assert_eq!(fs::read_to_string(folder.path().join("cutover.toml")).unwrap(), config);
    assert!(!folder.path().join("transforms/u.sql").exists(), "a refusal leaves nothing behind");
}

#[tokio::test]
async fn init_reads_the_schema_of_postgresql_that_it_is_given() {
    let (source, target) = (Postgres::v15().await, Postgres::v18().await);
    source
        .exec(
            "CREATE SCHEMA sales; CREATE TYPE sales.mood AS ENUM ('sad', 'ok'); \
             CREATE TABLE sales.orders (id int PRIMARY KEY, mood sales.mood, kind regtype); CREATE INDEX ON sales.orders (mood); \
             CREATE TABLE sales.\"order.lines\" (id int PRIMARY KEY, o int REFERENCES sales.orders (id)); \
             INSERT INTO sales.orders VALUES (1, 'ok', 'integer'); INSERT INTO sales.\"order.lines\" VALUES (7, 1)",
        )
        .await;
    let folder = tempfile::tempdir().unwrap();
    let given = |schema: Option<&str>, source: &str| InitArgs {
        source: source.to_owned(),
        target: target.url(),
        tables: Vec::new(),
        schema: schema.map(str::to_owned),
        engine: None,
        out: folder.path().join("move"),
    };
    let error = init::run(given(None, &source.url())).await.unwrap_err();
    assert!(error.to_string().contains("--schema: `sales`") && error.exit_code() == 2, "{error}");
    let error = init::run(given(Some("sales"), "mysql://u@h/x")).await.unwrap_err();
    assert!(matches!(error, InitError::NoSchema), "{error}");
    init::run(given(Some("sales"), &source.url())).await.unwrap();
    let read = |name: &str| fs::read_to_string(folder.path().join("move").join(name)).unwrap();
    target.exec(&read("schema.sql")).await;

    let work = Workspace::new(source.database(), &source.url(), &target.url(), &[]);
    let password = |text: &str| text.replace("${SOURCE_PASSWORD}", "admin").replace("${TARGET_PASSWORD}", "admin");
    work.configure(
        &password(&read("cutover.toml")).replace("name = ", &format!("name = \"{}\" # ", source.database())),
    );
    fs::write(work.path().join("schema_after.sql"), read("schema_after.sql")).unwrap();
    for file in ["orders", "public.order.lines"] {
        work.transform(file, &read(&format!("transforms/{file}.sql")));
    }
    let checked = work.run(&["check", "--listen", "127.0.0.1:0"]).await;
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
    let mut worker = work.start(&["--until-synced"]);
    assert!(worker.wait_exit(Duration::from_secs(60)).await.success(), "{}", worker.stderr());
    let row = "SELECT concat_ws(' ', o.id, o.mood, o.kind, l.id) FROM orders o JOIN \"order.lines\" l ON l.o = o.id";
    assert_eq!(target.value(row).await.as_deref(), Some("1 ok integer 7"));
}

#[tokio::test]
async fn init_names_what_is_wrong_with_the_tables_it_is_given() {
    let source = Mysql::v57().await;
    source.exec("CREATE TABLE nokey (a int); CREATE VIEW v AS SELECT 1 AS x").await;
    let folder = tempfile::tempdir().unwrap();
    let target = "postgresql://u@127.0.0.1/x";
    let refused = async |tables: &[&str]| init(&source.url(), target, tables, folder.path()).await.unwrap_err();
    source.exec("CREATE TABLE `a/b` (id int PRIMARY KEY)").await;
    let every_reason = "table `a/b` has a name that its transform's file cannot have";
    for (tables, word) in [
        (["nokey"].as_slice(), "primary key"),
        (&["Nokey", "v"], "`Nokey`, `v`"),
        (&[], "no table that can be moved"),
        (&[], every_reason),
        (&[], "table `nokey` has no primary key"),
    ] {
        let error = refused(tables).await;
        assert!(error.to_string().contains(word) && error.exit_code() == 2, "{error}");
    }
    let nowhere = source.url().replace(source.database(), "");
    let error = init(&nowhere, target, &[], folder.path()).await.unwrap_err();
    assert!(matches!(error, InitError::NoDatabase), "{error}");
    let error = init(&source.url(), "dynamodb://us-east-1", &[], folder.path()).await.unwrap_err();
    assert!(matches!(error, InitError::TargetUrl), "{error}");
    let error = init(&source.url(), "mysql://u@h", &[], folder.path()).await.unwrap_err();
    assert!(matches!(error, InitError::NoTargetDatabase), "{error}");
}

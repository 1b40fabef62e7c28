//! Merged rows and sets in the running pipeline: copied while the sources change, killed at any moment, copied and
//! replayed again, and equal to the sources' own join in the end (rules 8 and 9).

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use crate::{
    job,
    support::{Mysql, Postgres, Workspace, eventually},
};

const PATIENCE: Duration = Duration::from_secs(120);

const SOURCE: &str = "
    CREATE TABLE users (id int PRIMARY KEY, email varchar(60) NOT NULL, state varchar(10) NOT NULL);
    CREATE TABLE oauth (no int PRIMARY KEY, token varchar(60));
    CREATE TABLE prefs (owner int, what varchar(10), value varchar(20), PRIMARY KEY (owner, what));
    CREATE TABLE orders (id int PRIMARY KEY, state varchar(10) NOT NULL, items json NOT NULL)";

const TARGET: &str = "
    CREATE TABLE accounts (id bigint PRIMARY KEY, email text NOT NULL, token text, theme text NOT NULL DEFAULT 'light', lang text);
    CREATE TABLE order_items (order_id bigint, sku text, qty int NOT NULL, PRIMARY KEY (order_id, sku))";

const ACCOUNTS: &str = "
SELECT id, email FROM users WHERE state <> 'banned';
SELECT no AS id, token FROM oauth;
SELECT owner AS id, value AS theme FROM prefs WHERE what = 'theme';
SELECT owner AS id, upper(value) AS lang FROM prefs WHERE what = 'lang'";

const ITEMS: &str = "
-- cutover: parent_key = order_id
SELECT o.id AS order_id, i ->> 'sku' AS sku, (i ->> 'qty')::int AS qty
FROM orders o, LATERAL jsonb_array_elements(o.items) i WHERE o.state <> 'void'";

/// What the targets must hold, in the source's own words.
const WANTED: [&str; 2] = [
    "SELECT u.id, u.email, o.token, coalesce(t.value, 'light'), upper(l.value) FROM users u LEFT JOIN oauth o ON o.no = u.id \
     LEFT JOIN prefs t ON t.owner = u.id AND t.what = 'theme' LEFT JOIN prefs l ON l.owner = u.id AND l.what = 'lang' \
     WHERE u.state <> 'banned' ORDER BY u.id",
    "SELECT o.id, j.sku, j.qty FROM orders o JOIN JSON_TABLE(o.items, '$[*]' COLUMNS (sku varchar(20) PATH '$.sku', \
     qty int PATH '$.qty')) j WHERE o.state <> 'void' ORDER BY o.id, j.sku",
];

const FOUND: [&str; 2] = [
    "SELECT id, email, token, theme, lang FROM accounts ORDER BY id",
    "SELECT order_id, sku, qty FROM order_items ORDER BY order_id, sku COLLATE \"C\"",
];

struct Pipe {
    source: Arc<Mysql>,
    target: Postgres,
    work: Workspace,
}

impl Pipe {
    async fn new(source: Mysql, target: Postgres, rows: u32) -> Self {
        source.exec(SOURCE).await;
        target.exec(TARGET).await;
        let tables = ["users", "oauth", "prefs", "orders"];
        let work = Workspace::new(source.database(), &source.url(), &target.url(), &tables);
        work.transform("accounts", ACCOUNTS);
        work.transform("order_items", ITEMS);
        let values = |row: &dyn Fn(u32) -> String| (1..=rows).map(row).collect::<Vec<_>>().join(", ");
        // Contributors without an owner, and owners without contributors.
        for insert in [
            format!("INSERT INTO users VALUES {}", values(&|id| format!("({id}, 'u{id}', 'new')"))),
            format!("INSERT INTO oauth VALUES {}", values(&|id| format!("({}, 't{id}')", id * 2))),
            format!("INSERT INTO prefs VALUES {}", values(&|id| format!("({}, 'theme', 'dark')", id * 3))),
            format!("INSERT INTO prefs VALUES {}", values(&|id| format!("({id}, 'lang', 'eo')"))),
            format!("INSERT INTO orders VALUES {}", values(&|id| format!("({id}, 'new', '{}')", items(id)))),
        ] {
            source.exec(&insert).await;
        }
        Pipe { source: Arc::new(source), target, work }
    }

    /// Random transactions over all tables until the flag is set.
    fn load(&self, rows: u32, stop: &Arc<AtomicBool>) -> tokio::task::JoinHandle<u32> {
        let mut random = StdRng::seed_from_u64(8);
        job::load(&self.source, stop, move || transaction(&mut random, rows))
    }

    async fn following(&self) {
        job::copied(&self.work, PATIENCE).await;
    }

    async fn assert_equal(&self) {
        for (wanted, found) in WANTED.iter().zip(FOUND) {
            let (wanted, found) = (self.source.query(wanted).await, self.target.query(found).await);
            assert!(!wanted.is_empty());
            let differing: Vec<_> = wanted.iter().zip(&found).filter(|(a, b)| a != b).take(3).collect();
            assert_eq!((wanted.len(), Vec::new()), (found.len(), differing));
        }
        let aside = "SELECT (SELECT count(*) FROM cutover.dead_letters) + (SELECT count(*) FROM cutover.waiting)";
        assert_eq!(self.target.value(aside).await.as_deref(), Some("0"));
    }

    async fn in_step(&self) {
        eventually("the targets are as the sources", PATIENCE, async || {
            let mut same = true;
            for (wanted, found) in WANTED.iter().zip(FOUND) {
                same &= self.source.query(wanted).await == self.target.query(found).await;
            }
            same
        })
        .await;
    }

    async fn said(&self, arguments: &[&str]) -> String {
        let out = self.work.run(arguments).await;
        let text = [out.stdout, out.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        assert_eq!(out.status.code(), Some(0), "{arguments:?}: {text}");
        text
    }
}

fn items(seed: u32) -> String {
    let items: Vec<String> = (0..seed % 4)
        .map(|no| format!("{{\"sku\": \"s{}\", \"qty\": {}}}", (seed + no) % 7, 1 + (seed * no) % 5))
        .collect();
    format!("[{}]", items.join(", "))
}

fn transaction(random: &mut StdRng, rows: u32) -> String {
    let mut statements = vec!["BEGIN".to_owned()];
    for _ in 0..random.random_range(1..=5) {
        let (id, other) = (random.random_range(1..=rows * 2), random.random_range(1..=rows * 2));
        let what = ["theme", "lang"][random.random_range(0..2)];
        let state = ["new", "banned", "void"][random.random_range(0..3)];
        statements.push(match random.random_range(0..12) {
            0 | 1 => format!("REPLACE INTO users VALUES ({id}, 'v{other}', '{state}')"),
            2 => format!("UPDATE users SET state = '{state}', email = 'w{other}' WHERE id = {id}"),
            3 => format!("DELETE FROM users WHERE id = {id}"),
            4 => format!("UPDATE IGNORE users SET id = {other} WHERE id = {id}"),
            5 => format!("REPLACE INTO oauth VALUES ({id}, 't{other}')"),
            6 => format!("DELETE FROM oauth WHERE no BETWEEN {id} AND {id} + 1"),
            7 => format!("REPLACE INTO prefs VALUES ({id}, '{what}', 'p{other}')"),
            8 => format!("DELETE FROM prefs WHERE owner = {id} AND what = '{what}'"),
            9 => format!("UPDATE IGNORE prefs SET what = '{what}' WHERE owner = {id}"),
            10 => format!("REPLACE INTO orders VALUES ({id}, '{state}', '{}')", items(other)),
            _ => format!("DELETE FROM orders WHERE id = {id}"),
        });
    }
    statements.push("COMMIT".into());
    statements.join("; ")
}

/// Copies and follows under load while the worker is killed again and again, then tries every way to go over it once
/// more.
async fn through_kills(pipe: Pipe, rows: u32, kills: u32) {
    pipe.work.configure_also("[snapshot]\nchunk_rows = 200\n");
    let stop = Arc::new(AtomicBool::new(false));
    let load = pipe.load(rows, &stop);
    for kill in 0..kills {
        let mut worker = pipe.work.start(&[]);
        tokio::time::sleep(Duration::from_millis(1500 + 400 * u64::from(kill))).await;
        assert!(worker.is_running(), "{}", worker.stderr());
        worker.kill9().await;
    }
    let mut worker = pipe.work.start(&[]);
    pipe.following().await;
    worker.kill9().await;
    let mut worker = pipe.work.start(&[]);
    pipe.following().await;
    pipe.said(&["resnapshot", "oauth"]).await;
    pipe.said(&["resnapshot", "orders"]).await;
    stop.store(true, Ordering::Relaxed);
    assert!(load.await.unwrap() > 100, "the load ran");
    pipe.in_step().await;
    pipe.said(&["replay", "--from", "beginning"]).await;
    pipe.in_step().await;
    worker.terminate().await;
    assert!(worker.wait_exit(Duration::from_secs(10)).await.success(), "{}", worker.stderr());
    let mut last = pipe.work.start(&["--until-synced"]);
    assert!(last.wait_exit(PATIENCE).await.success(), "{}", last.stderr());
    pipe.assert_equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_8_and_9_merged_rows_and_sets_are_copied_and_followed_through_kills() {
    through_kills(Pipe::new(Mysql::v80().await, Postgres::v15().await, 1500).await, 1500, 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_8_and_9_merged_rows_and_sets_come_through_several_partitions() {
    let pipe = Pipe::new(Mysql::v97().await, Postgres::v18().await, 800).await;
    pipe.work.configure_also("[log]\npartitions = 3\n");
    through_kills(pipe, 800, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_8_a_contributors_rows_that_were_deleted_unseen_are_swept_and_no_others() {
    let pipe = Pipe::new(Mysql::v80().await, Postgres::v15().await, 50).await;
    let _worker = pipe.work.start(&[]);
    pipe.following().await;
    pipe.in_step().await;
    for delete in
        ["DELETE FROM oauth WHERE no < 20", "DELETE FROM orders WHERE id < 9", "DELETE FROM users WHERE id > 40"]
    {
        pipe.source.exec(&format!("SET sql_log_bin = 0; {delete}; SET sql_log_bin = 1")).await;
    }
    // A copy tells what is older than itself by the source's clock, which stands still while nothing is changed.
    pipe.source.exec("UPDATE users SET email = 'seen' WHERE id = 30").await;
    let seen = "SELECT email FROM accounts WHERE id = 30";
    eventually("it goes on", PATIENCE, async || pipe.target.value(seen).await.as_deref() == Some("seen")).await;
    for table in ["oauth", "orders", "users"] {
        pipe.said(&["resnapshot", table]).await;
    }
    pipe.in_step().await;
    // What the owner's sweep took away has left its contributors' columns behind.
    pipe.source.exec("REPLACE INTO users VALUES (42, 'again', 'new')").await;
    pipe.in_step().await;
    assert_eq!(pipe.target.value("SELECT theme FROM accounts WHERE id = 42").await.as_deref(), Some("dark"));
    pipe.assert_equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_8_a_contributors_dead_letter_is_tried_again_and_truncate_is_its_own() {
    let pipe = Pipe::new(Mysql::v57().await, Postgres::v15().await, 10).await;
    pipe.target.exec("ALTER TABLE accounts ADD CONSTRAINT short CHECK (length(token) < 10)").await;
    let _worker = pipe.work.start(&[]);
    pipe.following().await;
    pipe.source
        .exec("UPDATE oauth SET token = 'much too long' WHERE no = 4; UPDATE users SET email = 'e4' WHERE id = 4")
        .await;
    let letters = "SELECT count(*) FROM cutover.dead_letters WHERE source_table LIKE '%.oauth'";
    eventually("set aside", PATIENCE, async || pipe.target.value(letters).await.as_deref() == Some("1")).await;
    let row = "SELECT email || ' ' || token || ' ' || theme FROM accounts WHERE id = 4";
    eventually("its other parts go on", PATIENCE, async || {
        pipe.target.value(row).await.as_deref() == Some("e4 t2 light")
    })
    .await;
    pipe.target.exec("ALTER TABLE accounts DROP CONSTRAINT short").await;
    let text = pipe.said(&["dlq", "retry", "--all"]).await;
    assert!(text.contains("1 stored"), "{text}");
    pipe.source.exec("TRUNCATE TABLE oauth; INSERT INTO oauth VALUES (6, 'after')").await;
    let wanted = "SELECT u.id, u.email, o.token FROM users u LEFT JOIN oauth o ON o.no = u.id ORDER BY 1";
    eventually("its columns are cleared", PATIENCE, async || {
        pipe.source.query(wanted).await == pipe.target.query("SELECT id, email, token FROM accounts ORDER BY id").await
    })
    .await;
    assert_eq!(pipe.target.value("SELECT count(*) FROM accounts WHERE theme = 'dark'").await.as_deref(), Some("3"));
}

//! Capture from real binlogs: what was done at the source arrives once, in order, with the same versions every time.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cutover::database::mysql::scan::{Scanner, Watermark};
use cutover::model::{
    Change, Disposition, MysqlPosition, Op, Position, TableName, TableSchema, Value, Version, ZeroDates,
};
use cutover::source::{CaptureError, CaptureEvent, ChangeStream, SourceConfig, mysql::MysqlStream};

use mysql_async::prelude::Queryable;

use crate::support::{Mysql, Own};

const PATIENCE: Duration = Duration::from_secs(60);

fn now_us() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros()).unwrap()
}

/// A capture of some tables of a test's database.
struct Capture {
    source: MysqlStream,
    schemas: Vec<Arc<TableSchema>>,
    resume: Option<(MysqlPosition, Version)>,
}

fn config(url: &str, name: &str) -> cutover::source::mysql::MysqlSourceConfig {
    let config: SourceConfig = toml::from_str(&format!("url = '{url}'")).unwrap();
    config.resolve(name, now_us).unwrap()
}

async fn open(
    server: &Mysql,
    tables: &[&str],
    from: Option<(MysqlPosition, Version)>,
    known: &[Arc<TableSchema>],
) -> Result<Capture, CaptureError> {
    // A server id of its own for every capture: tests run beside each other.
    let name = format!("{}-{}", server.database(), rand::random::<u64>());
    let watch: Vec<TableName> = tables.iter().map(|table| TableName::new(server.database(), *table)).collect();
    let source = MysqlStream::open(&config(&server.url(), &name), from, known, &watch).await?;
    Ok(Capture { source, schemas: Vec::new(), resume: None })
}

impl Capture {
    async fn start(server: &Mysql, tables: &[&str]) -> Self {
        open(server, tables, None, &[]).await.unwrap()
    }

    async fn resume(
        server: &Mysql,
        tables: &[&str],
        at: (MysqlPosition, Version),
        schemas: &[Arc<TableSchema>],
    ) -> Self {
        open(server, tables, Some(at), schemas).await.unwrap()
    }

    async fn try_next(&mut self) -> Result<CaptureEvent, CaptureError> {
        let captured = tokio::time::timeout(PATIENCE, self.source.next()).await.expect("something is captured")?;
        match &captured {
            CaptureEvent::Schema(schema) => self.schemas.push(Arc::clone(schema)),
            CaptureEvent::Commit { position: Position::Mysql(position), clock, .. }
            | CaptureEvent::Heartbeat { position: Position::Mysql(position), clock, .. } => {
                self.resume = Some((position.clone(), *clock));
            }
            CaptureEvent::Commit { position, .. } | CaptureEvent::Heartbeat { position, .. } => {
                panic!("{position:?} of a MySQL server")
            }
            CaptureEvent::Change(_)
            | CaptureEvent::Truncate { .. }
            | CaptureEvent::Cascade { .. }
            | CaptureEvent::Rewritten { .. } => {}
            CaptureEvent::ReplicatedFrom(node) => panic!("{node} of a MySQL server"),
        }
        Ok(captured)
    }

    /// Whatever comes next but schemas, heartbeats and commits.
    async fn event(&mut self) -> CaptureEvent {
        loop {
            let captured = self.try_next().await.unwrap();
            if matches!(
                captured,
                CaptureEvent::Change(_) | CaptureEvent::Truncate { .. } | CaptureEvent::Rewritten { .. }
            ) {
                return captured;
            }
        }
    }

    async fn change(&mut self) -> Change {
        match self.event().await {
            CaptureEvent::Change(change) => change,
            other => panic!("{other:?} is no change"),
        }
    }

    async fn changes(&mut self, count: usize) -> Vec<Change> {
        let mut changes = Vec::new();
        for _ in 0..count {
            changes.push(self.change().await);
        }
        changes
    }

    async fn commit(&mut self) {
        while !matches!(self.try_next().await.unwrap(), CaptureEvent::Commit { .. }) {}
    }

    async fn heartbeat(&mut self) {
        while !matches!(self.try_next().await.unwrap(), CaptureEvent::Heartbeat { .. }) {}
    }

    async fn error(&mut self) -> CaptureError {
        loop {
            if let Err(error) = self.try_next().await {
                return error;
            }
        }
    }

    fn watermark(&self) -> Watermark {
        let (position, version) = self.source.current_position();
        Watermark { position, version }
    }
}

fn ops(changes: &[Change]) -> Vec<Op> {
    changes.iter().map(|change| change.op).collect()
}

async fn every_server() -> Vec<Mysql> {
    vec![Mysql::v57().await, Mysql::v80().await, Mysql::v97().await, Mysql::mariadb().await]
}

#[tokio::test]
async fn changes_arrive_in_order_with_full_images_and_rising_versions() {
    for server in every_server().await {
        server.exec("CREATE TABLE t (id INT PRIMARY KEY, name VARCHAR(20))").await;
        let mut capture = Capture::start(&server, &["t"]).await;
        server.exec("BEGIN; INSERT INTO t VALUES (1, 'a'), (2, 'b'); UPDATE t SET name = 'c' WHERE id = 1; DELETE FROM t WHERE id = 2; COMMIT").await;
        let changes = capture.changes(4).await;
        assert_eq!(ops(&changes), [Op::Insert, Op::Insert, Op::Update, Op::Delete]);
        assert!(changes.is_sorted_by(|one, other| one.version < other.version));
        let row = |id, name: &str| Some(vec![Value::Int(id), Value::Text(name.into())]);
        assert_eq!((&changes[2].images.before, &changes[2].images.after), (&row(1, "a"), &row(1, "c")));
        assert_eq!((&changes[3].images.before, &changes[3].images.after), (&row(2, "b"), &None));
        let age_us = now_us() - changes[0].commit_us;
        assert!((-1_000_000..15_000_000).contains(&age_us), "the commit was {age_us} µs ago");
        capture.commit().await;
        capture.heartbeat().await;
    }
}

#[tokio::test]
async fn a_changed_key_is_a_delete_and_an_insert_and_ticks_twice_like_any_update() {
    for server in every_server().await {
        server.exec("CREATE TABLE t (id INT PRIMARY KEY, name VARCHAR(20)); CREATE TABLE other LIKE t").await;
        let mut one = Capture::start(&server, &["t"]).await;
        let at = one.source.current_position();
        let mut both = Capture::resume(&server, &["t", "other"], at, &[]).await;
        server.exec("BEGIN; INSERT INTO other VALUES (1, 'x'), (2, 'y'); UPDATE other SET id = id + 10 ORDER BY id; INSERT INTO t VALUES (1, 'a'); \
                     UPDATE other SET name = 'z'; UPDATE t SET id = 2; UPDATE t SET name = 'A'; TRUNCATE other; INSERT INTO t VALUES (9, 'n')").await;
        let alone = one.changes(5).await;
        assert_eq!(ops(&alone), [Op::Insert, Op::Delete, Op::Insert, Op::Update, Op::Insert]);
        let mut together = Vec::new();
        while together.len() < 5 {
            if let CaptureEvent::Change(change) = both.event().await
                && change.schema.table.table == "t"
            {
                together.push(change);
            }
        }
        assert_eq!(alone, together, "versions do not depend on the table list");
    }
}

#[tokio::test]
async fn capturing_again_from_any_transaction_end_gives_the_same_versions() {
    for server in every_server().await {
        server.exec("CREATE TABLE t (id INT PRIMARY KEY AUTO_INCREMENT, n INT)").await;
        let mut capture = Capture::start(&server, &["t"]).await;
        for n in 0..20 {
            server
                .exec(&format!(
                    "BEGIN; INSERT INTO t (n) VALUES ({n}), ({n}); UPDATE t SET n = n + 1 WHERE id > {n}; COMMIT"
                ))
                .await;
        }
        let (mut changes, mut resumes) = (Vec::new(), Vec::new());
        while resumes.len() < 20 {
            match capture.try_next().await.unwrap() {
                CaptureEvent::Change(change) => changes.push(change),
                CaptureEvent::Commit { .. } => resumes.push((changes.len(), capture.resume.clone().unwrap())),
                CaptureEvent::Schema(_) | CaptureEvent::Heartbeat { .. } => {}
                other => panic!("{other:?}"),
            }
        }
        drop(capture.source);
        for (seen, at) in resumes.into_iter().step_by(6) {
            let mut again = Capture::resume(&server, &["t"], at, &capture.schemas).await;
            let rest = again.changes(changes.len() - seen).await;
            assert_eq!(rest, changes[seen..]);
        }
    }
}

#[tokio::test]
async fn schema_changes_travel_with_the_log_and_rewrites_are_told() {
    for server in every_server().await {
        server.exec("CREATE TABLE t (id INT PRIMARY KEY, a INT)").await;
        let mut capture = Capture::start(&server, &["t"]).await;
        server.exec("INSERT INTO t VALUES (1, 1)").await;
        let first = capture.change().await;
        assert_eq!(first.schema.columns.len(), 2);
        server.exec("ALTER TABLE t ADD COLUMN b VARCHAR(5) NOT NULL DEFAULT 'x'").await;
        match capture.event().await {
            CaptureEvent::Rewritten { table, columns, clock } => {
                assert_eq!((table.table.as_str(), columns), ("t", vec!["b".to_owned()]));
                assert!(clock >= first.version);
            }
            other => panic!("{other:?}"),
        }
        server.exec("INSERT INTO t VALUES (2, 2, 'y')").await;
        let change = capture.change().await;
        assert_eq!(change.images.after, Some(vec![Value::Int(2), Value::Int(2), Value::Text("y".into())]));
        assert_eq!(capture.schemas.last().unwrap().columns[2].name, "b");
        server.exec("TRUNCATE TABLE t").await;
        match capture.event().await {
            CaptureEvent::Truncate { version, .. } => assert!(version > change.version),
            other => panic!("{other:?}"),
        }
        capture.commit().await;
        server.exec("DROP TABLE t").await;
        let error = capture.error().await;
        assert_eq!(error.disposition(), Disposition::Halt);
        assert!(error.to_string().contains("dropped"), "{error}");
    }
}

#[tokio::test]
async fn a_catalog_that_is_ahead_of_the_log_is_not_applied_to_the_past() {
    for server in every_server().await {
        server.exec("CREATE TABLE t (id INT PRIMARY KEY, a INT)").await;
        let mut capture = Capture::start(&server, &["t"]).await;
        capture.heartbeat().await;
        let (at, schemas) = (capture.source.current_position(), capture.schemas.clone());
        drop(capture);
        server
            .exec(
                "INSERT INTO t VALUES (1, 1); ALTER TABLE t ADD COLUMN b INT; INSERT INTO t VALUES (2, 2, 2); \
                     ALTER TABLE t ADD COLUMN c INT; INSERT INTO t VALUES (3, 3, 3, 3)",
            )
            .await;
        let mut again = Capture::resume(&server, &["t"], at, &schemas).await;
        for columns in 2..=4 {
            loop {
                match again.event().await {
                    CaptureEvent::Change(change) => {
                        assert_eq!(change.schema.columns.len(), columns);
                        let value = i64::try_from(columns).unwrap() - 1;
                        assert_eq!(change.images.after, Some(vec![Value::Int(value); columns]));
                        break;
                    }
                    CaptureEvent::Rewritten { .. } => {}
                    other => panic!("{other:?}"),
                }
            }
        }
    }
}

#[tokio::test]
async fn a_row_of_seventeen_megabytes_and_a_compressed_transaction_arrive() {
    for server in every_server().await {
        server.exec("CREATE TABLE t (id INT PRIMARY KEY, body LONGTEXT)").await;
        let mut capture = Capture::start(&server, &["t"]).await;
        server.exec("INSERT INTO t VALUES (1, REPEAT('abcdefghij', 1700000))").await;
        match &capture.change().await.images.after.unwrap()[1] {
            Value::Text(text) => assert_eq!(text.len(), 17_000_000),
            other => panic!("{other:?}"),
        }
    }
    let server = Mysql::v97().await;
    server.exec("CREATE TABLE t (id INT PRIMARY KEY AUTO_INCREMENT, body TEXT)").await;
    let mut capture = Capture::start(&server, &["t"]).await;
    server.exec("SET binlog_transaction_compression = ON; BEGIN; INSERT INTO t (body) VALUES (REPEAT('x', 1000)), (REPEAT('y', 1000)); \
                 UPDATE t SET body = REPEAT('z', 2000); COMMIT").await;
    assert_eq!(ops(&capture.changes(4).await), [Op::Insert, Op::Insert, Op::Update, Op::Update]);
    capture.commit().await;
    let at = capture.resume.clone().unwrap();
    server.exec("INSERT INTO t (body) VALUES ('last')").await;
    let mut again = Capture::resume(&server, &["t"], at, &capture.schemas).await;
    assert_eq!(again.change().await, capture.change().await);
}

#[tokio::test]
async fn a_large_transaction_streams_before_it_is_complete() {
    for server in every_server().await {
        server.exec("CREATE TABLE t (id INT PRIMARY KEY AUTO_INCREMENT, a INT, b VARCHAR(30), c DATETIME)").await;
        server.exec("INSERT INTO t (a, b, c) VALUES (1, 'some text in here', '2024-05-30 10:00:00')").await;
        for _ in 0..15 {
            server.exec("INSERT INTO t (a, b, c) SELECT a, b, c FROM t").await;
        }
        let mut capture = Capture::start(&server, &["t"]).await;
        server.exec("UPDATE t SET a = a + 1").await;
        let first = capture.change().await;
        let rest = capture.changes((1 << 15) - 1).await;
        assert_eq!(rest.last().unwrap().version, first.version + 2 * ((1 << 15) - 1));
        capture.commit().await;
    }
}

/// Row changes as statements and commits from the future halt whoever follows the server: `rules_source` has them, on
/// one of its own.
#[tokio::test]
async fn what_must_not_be_followed_halts_with_a_remedy() {
    for server in every_server().await {
        server.exec("CREATE TABLE t (id INT PRIMARY KEY, a INT)").await;
        let cases = [
            ("RENAME TABLE t TO t2; RENAME TABLE t2 TO t", "renamed"),
            ("XA START 'x'; INSERT INTO t VALUES (6, 6); XA END 'x'; XA PREPARE 'x'; XA ROLLBACK 'x'", "XA"),
            (
                "CREATE TABLE p (id INT PRIMARY KEY) PARTITION BY RANGE (id) (PARTITION p0 VALUES LESS THAN (10), PARTITION p1 VALUES LESS THAN (20)); \
              ALTER TABLE p TRUNCATE PARTITION p0",
                "partition",
            ),
        ];
        for (sql, word) in cases {
            if word == "partition" {
                server.exec("CREATE TABLE p (id INT PRIMARY KEY) PARTITION BY RANGE (id) (PARTITION p0 VALUES LESS THAN (10))").await;
                let mut capture = Capture::start(&server, &["p"]).await;
                server.exec("ALTER TABLE p TRUNCATE PARTITION p0").await;
                let error = capture.error().await;
                assert!(error.to_string().contains(word), "{error}");
                continue;
            }
            let mut capture = Capture::start(&server, &["t"]).await;
            server.exec(sql).await;
            let error = capture.error().await;
            assert_eq!(error.disposition(), Disposition::Halt, "{sql}: {error}");
            assert!(error.to_string().contains(word), "{sql}: {error}");
            assert!(error.to_string().contains("; "), "{error} names no remedy");
            assert_eq!(capture.error().await.disposition(), Disposition::Retry, "a stream that ended stays ended");
        }
    }
}

#[tokio::test]
async fn positions_of_another_history_are_refused() {
    for server in every_server().await {
        server.exec("CREATE TABLE t (id INT PRIMARY KEY)").await;
        let capture = Capture::start(&server, &["t"]).await;
        let (position, clock) = capture.source.current_position();
        let mariadb = position.gtids.as_deref().is_some_and(|gtids| !gtids.contains(':'));
        let foreign = if mariadb { "7-7-7" } else { "3e11fa47-71ca-11e1-9e33-c80aa9429562:1-5" };
        let errant = MysqlPosition {
            gtids: position.gtids.as_ref().map(|gtids| format!("{gtids},{foreign}")),
            ..position.clone()
        };
        let error = open(&server, &["t"], Some((errant, clock)), &[]).await.err().unwrap();
        assert!(error.to_string().contains(foreign) && error.disposition() == Disposition::Halt, "{error}");
        let other = MysqlPosition { gtids: None, server: "another".into(), ..position.clone() };
        let error = open(&server, &["t"], Some((other, clock)), &[]).await.err().unwrap();
        assert!(error.to_string().contains("server another"), "{error}");
        let gone = MysqlPosition { gtids: None, file: "gone.000001".into(), ..position.clone() };
        let error = open(&server, &["t"], Some((gone, clock)), &[]).await.err().unwrap();
        assert!(error.to_string().contains("resnapshot"), "{error}");
    }
}

#[tokio::test]
async fn file_and_offset_resume_as_exactly_as_gtids() {
    for server in every_server().await {
        server.exec("CREATE TABLE t (id INT PRIMARY KEY)").await;
        let mut capture = Capture::start(&server, &["t"]).await;
        let (position, clock) = capture.source.current_position();
        server.exec("INSERT INTO t VALUES (1); BEGIN; INSERT INTO t VALUES (2); INSERT INTO t VALUES (3); COMMIT; FLUSH BINARY LOGS; INSERT INTO t VALUES (4)").await;
        let by_gtid = capture.changes(4).await;
        let by_file = MysqlPosition { gtids: None, ..position };
        let mut capture = Capture::resume(&server, &["t"], (by_file, clock), &[]).await;
        assert_eq!(capture.changes(1).await, by_gtid[..1]);
        capture.commit().await;
        let at = capture.resume.clone().unwrap();
        assert_eq!(at.0.gtids, None);
        let mut again = Capture::resume(&server, &["t"], at, &[]).await;
        assert_eq!(again.changes(3).await, by_gtid[1..]);
    }
}

#[tokio::test]
async fn a_wrong_password_and_a_missing_privilege_halt_and_name_the_fix() {
    let server = Mysql::v80().await;
    let user = format!("u_{}", server.database());
    server.exec(&format!("CREATE TABLE t (id INT PRIMARY KEY); CREATE USER {user} IDENTIFIED BY 'secret'; GRANT SELECT ON {}.* TO {user}", server.database())).await;
    let watch = [TableName::new(server.database(), "t")];
    let wrong = MysqlStream::open(&config(&server.url_as(&user, "wrong"), "x"), None, &[], &watch).await.err().unwrap();
    assert!(wrong.disposition() == Disposition::Halt && !wrong.to_string().contains("wrong\""), "{wrong}");
    let missing =
        MysqlStream::open(&config(&server.url_as(&user, "secret"), "x"), None, &[], &watch).await.err().unwrap();
    assert!(missing.to_string().contains("REPLICATION CLIENT"), "{missing}");
    server.exec(&format!("GRANT REPLICATION CLIENT ON *.* TO {user}")).await;
    let missing = MysqlStream::open(&config(&server.url_as(&user, "secret"), "x"), None, &[], &watch).await;
    let missing = match missing {
        Err(error) => error,
        Ok(mut source) => loop {
            if let Err(error) = source.next().await {
                break error;
            }
        },
    };
    assert!(
        missing.disposition() == Disposition::Halt && missing.to_string().contains("REPLICATION SLAVE"),
        "{missing}"
    );
    server.exec(&format!("DROP USER {user}")).await;
}

/// Reads with the watermark of what was just captured, while others write.
async fn expect_visible(server: &Mysql, by_gtid: bool) {
    server.exec("DROP TABLE IF EXISTS t; CREATE TABLE t (id INT PRIMARY KEY AUTO_INCREMENT, w INT)").await;
    let mut capture = Capture::start(server, &["t"]).await;
    let connector = cutover::database::mysql::connect::Connector::new(&server.url()).unwrap();
    let mut scanner = Scanner::connect(&connector, ZeroDates::Null).await.unwrap();
    let mut writers = Vec::new();
    for writer in 0..4 {
        let mut conn = server.connect().await;
        writers.push(tokio::spawn(async move {
            for _ in 0..100 {
                conn.query_drop(format!("INSERT INTO t (w) VALUES ({writer})")).await.unwrap();
            }
        }));
    }
    for _ in 0..400 {
        let change = capture.change().await;
        let key = change.images.after.as_ref().unwrap()[..1].to_vec();
        capture.commit().await;
        let mut watermark = capture.watermark();
        if !by_gtid {
            watermark.position.gtids = None;
        }
        let mut rows = scanner.fetch(&change.schema, &change.schema.key, &[key], &watermark).await.unwrap();
        assert_eq!(rows.next_batch(2, usize::MAX).await.unwrap().len(), 1, "captured, and not visible");
    }
    for writer in writers {
        writer.await.unwrap();
    }
    scanner.close().await.unwrap();
}

#[tokio::test]
async fn what_was_captured_is_visible_to_a_chunk_by_gtid() {
    for server in every_server().await {
        expect_visible(&server, true).await;
    }
}

#[tokio::test]
async fn what_was_captured_is_visible_to_a_chunk_by_file_and_offset() {
    for server in every_server().await {
        expect_visible(&server, false).await;
    }
}

#[tokio::test]
async fn a_purged_binlog_halts_with_what_is_missing() {
    // On a server of its own: what is purged here is what another test's capture may be about to read.
    let own = Own::Mysql80.take().await;
    let server = Mysql::at(own.url).await;
    server.exec("CREATE TABLE t (id INT PRIMARY KEY)").await;
    server.exec("FLUSH BINARY LOGS; FLUSH BINARY LOGS").await;
    let second = server.query("SHOW BINARY LOGS").await[1][0].clone().unwrap();
    server.exec(&format!("PURGE BINARY LOGS TO '{second}'")).await;
    let capture = Capture::start(&server, &["t"]).await;
    let (position, clock) = capture.source.current_position();
    let nothing = MysqlPosition { gtids: Some(String::new()), ..position };
    let error = open(&server, &["t"], Some((nothing, clock)), &[]).await.err().unwrap();
    assert_eq!(error.disposition(), Disposition::Halt);
    assert!(error.to_string().contains("purged") && error.to_string().contains("resnapshot"), "{error}");
}

#[tokio::test]
async fn a_clock_from_the_future_halts_before_it_gives_a_version() {
    // 5.7 and MariaDB log the session's time as that of the commit. Half a minute is within the bound of the other
    // tests' captures, which see this transaction too.
    for server in [Mysql::v57().await, Mysql::mariadb().await] {
        server.exec("CREATE TABLE t (id INT PRIMARY KEY)").await;
        let mut settings = config(&server.url(), server.database());
        settings.clock_ahead_max_us = 5_000_000;
        let watch = [TableName::new(server.database(), "t")];
        let mut source = MysqlStream::open(&settings, None, &[], &watch).await.unwrap();
        server.exec("SET TIMESTAMP = UNIX_TIMESTAMP() + 30; INSERT INTO t VALUES (1)").await;
        let error = loop {
            match source.next().await {
                Ok(CaptureEvent::Change(change)) => panic!("{change:?} got a version"),
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert!(error.to_string().contains("clock_ahead_max_seconds"), "{error}");
        assert_eq!(error.disposition(), Disposition::Halt);
    }
}

#[tokio::test]
async fn transactions_of_every_shape_end_where_the_server_ends_them() {
    for server in every_server().await {
        server
            .exec("CREATE TABLE t (id INT PRIMARY KEY, n INT); CREATE TABLE plain (id INT PRIMARY KEY) ENGINE = MyISAM")
            .await;
        let mut capture = Capture::start(&server, &["t", "plain"]).await;
        let shapes = [
            ("INSERT INTO t VALUES (1, 1)", 1),
            (
                "BEGIN; INSERT INTO t VALUES (2, 2); SAVEPOINT s; INSERT INTO t VALUES (3, 3); ROLLBACK TO SAVEPOINT s; COMMIT",
                1,
            ),
            ("INSERT INTO plain VALUES (1), (2)", 2),
            ("BEGIN; INSERT INTO t VALUES (5, 5); ROLLBACK; DELETE FROM t WHERE id = 2", 1),
            ("XA START 'one'; INSERT INTO t VALUES (6, 6); XA END 'one'; XA COMMIT 'one' ONE PHASE", 1),
            (
                "INSERT INTO t VALUES (7, 7) ON DUPLICATE KEY UPDATE n = 8; INSERT INTO t VALUES (7, 7) ON DUPLICATE KEY UPDATE n = 9",
                2,
            ),
            ("REPLACE INTO t VALUES (7, 10)", 1),
        ];
        for (sql, changes) in shapes {
            server.exec(sql).await;
            let seen = capture.changes(changes).await;
            assert_eq!(seen.len(), changes, "{sql}");
            capture.commit().await;
        }
        let version = server.value("SELECT VERSION()").await.unwrap();
        // Before 8.0.21 MySQL with GTIDs refuses CREATE TABLE … SELECT.
        if !version.starts_with("5.7") && !version.starts_with("8.0") {
            server.exec("CREATE TABLE copied (PRIMARY KEY (id)) SELECT * FROM t; CREATE TABLE cleared LIKE t; TRUNCATE cleared; DROP TABLE cleared").await;
        }
        server.exec("CREATE TEMPORARY TABLE gone (id INT); INSERT INTO gone VALUES (1); DROP TEMPORARY TABLE gone; INSERT INTO t VALUES (99, 99)").await;
        let last = capture.change().await;
        assert_eq!(last.images.after.unwrap()[0], Value::Int(99));
    }
}

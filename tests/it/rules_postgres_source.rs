//! The rules of a PostgreSQL source, against real servers: what a chunk is labelled with (14), which
//! positions are refused (16, 17), values that are not in the log, truncation, changed keys, partitions, and a slot
//! that never holds the server's log back.

use std::time::Duration;

use rdkafka::Message as _;
use serde_json::{Value, json};

use crate::{
    follow::{PATIENCE, following, halted, stop},
    pipeline_postgres::assert_equal,
    support::{Kafka, Own, Postgres, Worker, Workspace, eventually},
};

/// One table, `t (id, n, note)`, on both sides.
struct Pipe {
    source: Postgres,
    target: Postgres,
    work: Workspace,
}

const TABLE: &str = "CREATE TABLE t (id integer PRIMARY KEY, n integer NOT NULL, note text);
    ALTER TABLE t ALTER note SET STORAGE EXTERNAL";

impl Pipe {
    async fn with(source: Postgres, target: Postgres, tables: &str) -> Self {
        source.exec(tables).await;
        target.exec(TABLE).await;
        let work = Workspace::new(source.database(), &source.url(), &target.url(), &["t"]);
        Pipe { source, target, work }
    }

    /// With these rows, copied, and a worker that follows.
    async fn running(source: Postgres, target: Postgres, rows: u32) -> (Self, Worker) {
        let pipe = Self::with(source, target, TABLE).await;
        pipe.insert(1, rows).await;
        let worker = pipe.work.start(&[]);
        following(&worker).await;
        (pipe, worker)
    }

    async fn insert(&self, from: u32, to: u32) {
        self.source.exec(&format!("INSERT INTO t SELECT i, 0, 'row ' || i FROM generate_series({from}, {to}) i")).await;
    }

    async fn in_step(&self) {
        let rows = "SELECT id, n, note FROM t ORDER BY id";
        eventually("source and target are equal", PATIENCE, async || {
            self.source.query(rows).await == self.target.query(rows).await
        })
        .await;
        assert_equal(&self.source, &self.target, &["t"]).await;
    }

    fn slot(&self) -> String {
        format!("cutover_{}", self.source.database())
    }

    async fn slot_is(&self, column: &str) -> Option<String> {
        let sql = format!("SELECT {column}::text FROM pg_replication_slots WHERE slot_name = '{}'", self.slot());
        self.source.query(&sql).await.first().and_then(|row| row[0].clone())
    }

    /// Drops the slot once the server has noticed that the worker is gone.
    async fn slot_dropped(&self) {
        eventually("nobody reads from the slot", PATIENCE, async || {
            self.slot_is("active").await.as_deref() == Some("false")
        })
        .await;
        self.source.exec(&format!("SELECT pg_drop_replication_slot('{}')", self.slot())).await;
    }

    /// Copies the table again, which is the repair of every gap.
    async fn repaired(&self) {
        let asked = self.work.run(&["resnapshot", "t"]).await;
        assert!(asked.status.success(), "{}", String::from_utf8_lossy(&asked.stderr));
        self.in_step().await;
    }
}

/// The order of hstore, which an index needs, is not called `<`.
#[tokio::test(flavor = "multi_thread")]
async fn keys_of_a_type_that_makes_no_ranges_are_copied_and_followed() {
    let tables = "CREATE EXTENSION hstore; CREATE TABLE plain (id hstore PRIMARY KEY, n integer NOT NULL); \
                  CREATE TABLE parted (id hstore, n integer NOT NULL, PRIMARY KEY (n, id))";
    let (source, target) = (Postgres::v18().await, Postgres::v15().await);
    let parted = "CREATE TABLE parted (id hstore, n integer NOT NULL, PRIMARY KEY (n, id)) PARTITION BY RANGE (n); \
                  CREATE TABLE parts PARTITION OF parted DEFAULT";
    source.exec(&tables[..tables.find("CREATE TABLE parted").unwrap()]).await;
    source.exec(parted).await;
    target.exec(tables).await;
    for table in ["plain", "parted"] {
        source
            .exec(&format!(
                "INSERT INTO {table} SELECT hstore('k' || i, repeat('v', 50)), i FROM generate_series(1, 3000) i"
            ))
            .await;
    }
    let work = Workspace::new(source.database(), &source.url(), &target.url(), &["plain", "parted"]);
    work.configure_also("[snapshot]\nchunk_rows = 200\n");
    let worker = work.start(&[]);
    following(&worker).await;
    for table in ["plain", "parted"] {
        source
            .exec(&format!("UPDATE {table} SET n = n + 10000 WHERE n % 3 = 0; DELETE FROM {table} WHERE n % 7 = 0"))
            .await;
        let rows = format!("SELECT count(*) || ' ' || sum(n) FROM {table}");
        eventually("both are equal", PATIENCE, async || source.value(&rows).await == target.value(&rows).await).await;
    }
    assert_equal(&source, &target, &["plain", "parted"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_22_a_new_copy_of_a_source_that_stands_still_removes_and_corrects_all_the_same() {
    let (pipe, _worker) = Pipe::running(Postgres::v15().await, Postgres::v18().await, 20).await;
    pipe.insert(21, 30).await;
    pipe.in_step().await;
    let by_hand =
        "UPDATE t SET note = 'by hand', cutover_version = (SELECT max(cutover_version) FROM t) WHERE id IN (5, 30);
        INSERT INTO t (id, n, note, cutover_version) SELECT 99, 0, 'by hand', max(cutover_version) FROM t";
    pipe.target.exec(by_hand).await;
    pipe.repaired().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_21_a_replay_through_a_corrected_transform_corrects_every_row() {
    let pipe = Pipe::with(Postgres::v15().await, Postgres::v18().await, TABLE).await;
    pipe.work.transform("t", "SELECT id, n + 1000 AS n, note FROM t");
    pipe.insert(1, 300).await;
    let mut worker = pipe.work.start(&[]);
    following(&worker).await;
    pipe.source.exec("UPDATE t SET n = 5 WHERE id % 3 = 0; DELETE FROM t WHERE id % 7 = 0; UPDATE t SET id = id + 1000 WHERE id < 20").await;
    let rows = "SELECT count(*) || ' ' || sum(n) FROM t";
    eventually("the changes are applied", PATIENCE, async || {
        let wrong = pipe.source.value("SELECT count(*) || ' ' || sum(n + 1000) FROM t").await;
        pipe.target.value(rows).await == wrong
    })
    .await;
    stop(&mut worker).await;
    pipe.work.transform("t", "SELECT id, n, note FROM t");
    let mut worker = pipe.work.start(&[]);
    following(&worker).await;
    // The stream goes on meanwhile.
    pipe.source.exec("UPDATE t SET n = n + 1 WHERE id % 2 = 0; INSERT INTO t VALUES (5000, 1, 'new')").await;
    let asked = pipe.work.run(&["replay", "--from", "beginning"]).await;
    assert!(asked.status.success(), "{}", String::from_utf8_lossy(&asked.stderr));
    pipe.in_step().await;
    stop(&mut worker).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_14_a_change_whose_commit_waits_for_a_standby_is_not_lost_to_the_copy() {
    let own = Own::Pg15.take().await;
    let source = Postgres::at(own.url).await;
    let pipe = Pipe::with(source, Postgres::v18().await, TABLE).await;
    pipe.work.configure_also("[snapshot]\nchunk_rows = 20\nparallel = 2\n");
    pipe.insert(1, 6000).await;
    let mut worker = pipe.work.start(&[]);
    eventually("the copy has begun", PATIENCE, async || {
        pipe.target.try_exec("SELECT 1 FROM cutover.chunks").await.is_ok()
            && pipe.target.value("SELECT count(*) > 3 FROM cutover.chunks").await.as_deref() == Some("t")
    })
    .await;

    // The commit is in the log, and nobody sees it: the standby that it waits for does not exist.
    pipe.source.exec("ALTER SYSTEM SET synchronous_standby_names = 'missing'").await;
    pipe.source.exec("SELECT pg_reload_conf()").await;
    let writer = pipe.source.connect().await;
    let waiting = tokio::spawn(async move { writer.batch_execute("UPDATE t SET n = 100 WHERE id = 6000").await });
    pipe.eventually_n(6000, "100").await;
    let unseen = pipe.source.value("SELECT n FROM t WHERE id = 6000").await;
    assert_eq!(unseen.as_deref(), Some("0"), "the source itself does not show it yet");
    following(&worker).await;
    let copied = pipe.target.value("SELECT n FROM t WHERE id = 6000").await;
    assert_eq!(copied.as_deref(), Some("100"), "the copy read the row as it was, and did not win");

    pipe.source.exec("ALTER SYSTEM RESET synchronous_standby_names").await;
    pipe.source.exec("SELECT pg_reload_conf()").await;
    waiting.await.unwrap().unwrap();
    pipe.in_step().await;
    stop(&mut worker).await;
}

impl Pipe {
    async fn eventually_n(&self, id: u32, wanted: &str) {
        eventually("the change is at the target", PATIENCE, async || {
            let found = self.target.query(&format!("SELECT n FROM t WHERE id = {id}")).await;
            found.first().and_then(|row| row[0].as_deref()) == Some(wanted)
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_14_what_ran_when_the_slot_was_made_is_waited_for() {
    let pipe = Pipe::with(Postgres::v18().await, Postgres::v15().await, TABLE).await;
    pipe.insert(1, 50).await;
    let early = pipe.source.connect().await;
    early.batch_execute("BEGIN; UPDATE t SET n = 7 WHERE id = 1").await.unwrap();
    let mut worker = pipe.work.start(&[]);
    tokio::time::sleep(Duration::from_secs(3)).await;
    early.batch_execute("UPDATE t SET n = n + 1 WHERE id = 2; COMMIT").await.unwrap();
    following(&worker).await;
    pipe.in_step().await;
    stop(&mut worker).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_17_every_gap_of_the_slot_halts_with_its_own_words_and_the_repair() {
    let (pipe, mut worker) = Pipe::running(Postgres::v15().await, Postgres::v18().await, 50).await;
    stop(&mut worker).await;
    let slot = pipe.slot();

    pipe.slot_dropped().await;
    pipe.source.exec("UPDATE t SET n = 1 WHERE id = 1; DELETE FROM t WHERE id = 2").await;
    let mut worker = pipe.work.start(&[]);
    let (reason, remedy) = halted(&worker).await;
    assert!(reason.contains("no replication slot") && remedy.contains("cutover resnapshot"), "{reason}; {remedy}");
    pipe.repaired().await;
    stop(&mut worker).await;

    // A new slot knows nothing of what came before it, and the server would not say.
    pipe.slot_dropped().await;
    pipe.source.exec("UPDATE t SET n = 2 WHERE id = 3; DELETE FROM t WHERE id = 4").await;
    pipe.source.exec(&format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')")).await;
    let mut worker = pipe.work.start(&[]);
    let (reason, _) = halted(&worker).await;
    assert!(reason.contains("past the captured position"), "{reason}");
    pipe.repaired().await;
    stop(&mut worker).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_16_another_cluster_of_the_same_name_is_told() {
    let (pipe, mut worker) = Pipe::running(Postgres::v15().await, Postgres::v18().await, 20).await;
    stop(&mut worker).await;
    let other = Postgres::v18().await;
    other.exec(TABLE).await;
    let configuration = pipe.work.configuration().replace(&pipe.source.url(), &other.url());
    pipe.work.configure(&configuration);
    let worker = pipe.work.start(&[]);
    let (reason, remedy) = halted(&worker).await;
    assert!(reason.contains("another cluster") && remedy.contains("[source] url"), "{reason}; {remedy}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_17_a_lost_log_goes_on_where_the_target_is() {
    let (pipe, mut worker) = Pipe::running(Postgres::v18().await, Postgres::v15().await, 50).await;
    pipe.source.exec("UPDATE t SET n = 1").await;
    pipe.in_step().await;
    worker.kill9().await;
    pipe.source.exec("UPDATE t SET n = 2 WHERE id < 20; DELETE FROM t WHERE id > 40").await;
    std::fs::remove_dir_all(pipe.work.path().join("cutover-data/log")).unwrap();
    let mut worker = pipe.work.start(&[]);
    pipe.in_step().await;
    stop(&mut worker).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quiet_table_does_not_hold_the_servers_log_back() {
    let (pipe, mut worker) = Pipe::running(Postgres::v15().await, Postgres::v18().await, 5).await;
    pipe.source.exec("CREATE TABLE elsewhere (x text); INSERT INTO elsewhere SELECT repeat('x', 1000) FROM generate_series(1, 2000)").await;
    let end = pipe.source.value("SELECT pg_current_wal_lsn()").await.unwrap();
    eventually("the slot passes what other tables wrote", PATIENCE, async || {
        pipe.slot_is(&format!("(confirmed_flush_lsn >= '{end}')")).await.as_deref() == Some("true")
    })
    .await;
    stop(&mut worker).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_slot_advances_no_further_than_the_target() {
    let (pipe, mut worker) = Pipe::running(Postgres::v15().await, Postgres::v18().await, 5).await;
    pipe.in_step().await;
    // The target cannot take the change while its table is locked.
    let locker = pipe.target.connect().await;
    locker.batch_execute("BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE").await.unwrap();
    pipe.source.exec("UPDATE t SET n = 9").await;
    let end = pipe.source.value("SELECT pg_current_wal_lsn()").await.unwrap();
    tokio::time::sleep(Duration::from_secs(6)).await;
    let passed = pipe.slot_is(&format!("(confirmed_flush_lsn >= '{end}')")).await;
    assert_eq!(passed.as_deref(), Some("false"), "what is captured and not applied is kept by the server");
    locker.batch_execute("COMMIT").await.unwrap();
    pipe.in_step().await;
    eventually("the slot follows", PATIENCE, async || {
        pipe.slot_is(&format!("(confirmed_flush_lsn >= '{end}')")).await.as_deref() == Some("true")
    })
    .await;
    stop(&mut worker).await;
}

/// Values stored out of line that an update leaves alone are not in the log unless the identity is full.
async fn unchanged_values_stay(source: Postgres, target: Postgres, identity: &str) {
    let (pipe, mut worker) = Pipe::running(source, target, 3).await;
    pipe.source.exec(&format!("ALTER TABLE t REPLICA IDENTITY {identity}")).await;
    pipe.source
        .exec(
            "UPDATE t SET note = repeat('long', 5000) WHERE id = 1;
             UPDATE t SET n = n + 1 WHERE id = 1;
             BEGIN; INSERT INTO t VALUES (10, 0, repeat('both', 5000)); UPDATE t SET n = 5 WHERE id = 10; COMMIT;
             BEGIN; INSERT INTO t VALUES (11, 0, repeat('gone', 5000)); UPDATE t SET n = 5 WHERE id = 11; DELETE FROM t WHERE id = 11; COMMIT;
             INSERT INTO t VALUES (12, 0, repeat('move', 5000)); UPDATE t SET id = 13 WHERE id = 12;
             UPDATE t SET n = 3 WHERE id = 2",
        )
        .await;
    pipe.in_step().await;
    let length = pipe.target.value("SELECT length(note) FROM t WHERE id = 1").await;
    assert_eq!(length.as_deref(), Some("20000"));
    stop(&mut worker).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn values_out_of_line_that_an_update_leaves_alone_are_read_from_the_row() {
    unchanged_values_stay(Postgres::v15().await, Postgres::v18().await, "DEFAULT").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn values_out_of_line_that_an_update_leaves_alone_are_in_a_full_image() {
    unchanged_values_stay(Postgres::v18().await, Postgres::v15().await, "FULL").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_10_a_truncation_empties_the_target_and_what_follows_stays() {
    let (pipe, mut worker) = Pipe::running(Postgres::v15().await, Postgres::v18().await, 500).await;
    pipe.source
        .exec(
            "BEGIN; INSERT INTO t VALUES (1000, 1, 'before'); TRUNCATE t; INSERT INTO t VALUES (1, 2, 'after'); COMMIT",
        )
        .await;
    pipe.in_step().await;
    assert_eq!(pipe.target.value("SELECT count(*) FROM t").await.as_deref(), Some("1"));
    stop(&mut worker).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn changed_keys_move_rows_under_every_replica_identity() {
    for identity in ["DEFAULT", "FULL", "USING INDEX t_pkey"] {
        let (pipe, mut worker) = Pipe::running(Postgres::v15().await, Postgres::v18().await, 20).await;
        pipe.source.exec(&format!("ALTER TABLE t REPLICA IDENTITY {identity}")).await;
        pipe.source.exec("UPDATE t SET id = id + 100 WHERE id <= 10; UPDATE t SET id = 1, n = 5 WHERE id = 110; DELETE FROM t WHERE id = 105").await;
        pipe.in_step().await;
        stop(&mut worker).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_altered_table_goes_on_with_its_new_columns() {
    let (pipe, mut worker) = Pipe::running(Postgres::v18().await, Postgres::v15().await, 20).await;
    pipe.source.exec("ALTER TABLE t ADD extra int DEFAULT 5; UPDATE t SET n = 1 WHERE id = 1; ALTER TABLE t DROP extra; UPDATE t SET n = 2 WHERE id = 2").await;
    pipe.source.exec("ALTER TABLE t ALTER n TYPE bigint; UPDATE t SET n = 3 WHERE id = 3").await;
    pipe.in_step().await;
    stop(&mut worker).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_without_a_usable_identity_are_refused_before_the_application_notices() {
    let source = Postgres::v15().await;
    let pipe = Pipe::with(source, Postgres::v18().await, "CREATE TABLE t (id integer, n integer, note text)").await;
    let mut worker = pipe.work.start(&[]);
    assert_eq!(worker.wait_exit(PATIENCE).await.code(), Some(3), "{}", worker.stderr());
    assert!(worker.stderr().contains("no primary key"), "{}", worker.stderr());
    let checked = pipe.work.run(&["check"]).await;
    assert_eq!(checked.status.code(), Some(1));
    // A published table that logs no identity would refuse the application's updates.
    assert_eq!(pipe.source.value("SELECT count(*) FROM pg_publication").await.as_deref(), Some("0"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_of_least_privilege_can_do_it_with_a_publication_made_for_it() {
    let source = Postgres::v15().await;
    let pipe = Pipe::with(source, Postgres::v18().await, TABLE).await;
    pipe.insert(1, 10).await;
    let role = pipe.source.role("secret").await;
    pipe.source
        .exec(&format!(
            "REVOKE CREATE ON DATABASE {0} FROM PUBLIC; REVOKE ALL ON t FROM PUBLIC",
            pipe.source.database()
        ))
        .await;
    let configuration = pipe.work.configuration().replace(&pipe.source.url(), &pipe.source.url_as(&role, "secret"));
    pipe.work.configure(&configuration);
    let checked = pipe.work.run(&["check"]).await;
    let said = String::from_utf8_lossy(&checked.stdout).into_owned() + &String::from_utf8_lossy(&checked.stderr);
    assert_eq!(checked.status.code(), Some(1), "{said}");
    for words in ["REPLICATION", "GRANT SELECT", "CREATE PUBLICATION"] {
        assert!(said.contains(words), "{words} is not in {said}");
    }
    let slot = pipe.slot();
    pipe.source
        .exec(&format!(
            "ALTER ROLE {role} REPLICATION; GRANT SELECT ON t TO {role}; \
             CREATE PUBLICATION {slot} FOR TABLE t WITH (publish_via_partition_root = true)"
        ))
        .await;
    let checked = pipe.work.run(&["check"]).await;
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
    let mut worker = pipe.work.start(&[]);
    following(&worker).await;
    pipe.source.exec("UPDATE t SET n = 4").await;
    pipe.in_step().await;
    stop(&mut worker).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_is_read_again_from_the_source() {
    let (pipe, mut worker) = Pipe::running(Postgres::v18().await, Postgres::v15().await, 5).await;
    pipe.target.exec("ALTER TABLE t ADD CONSTRAINT small CHECK (n < 100)").await;
    pipe.source.exec("UPDATE t SET n = 500, note = repeat('wide', 5000) WHERE id = 2").await;
    eventually("the row is set aside", PATIENCE, async || {
        pipe.target.value("SELECT count(*) FROM cutover.dead_letters WHERE state = 'open'").await.as_deref()
            == Some("1")
    })
    .await;
    pipe.target.exec("ALTER TABLE t DROP CONSTRAINT small").await;
    let tried = pipe.work.run(&["dlq", "retry", "--table", "t"]).await;
    assert!(tried.status.success(), "{}", String::from_utf8_lossy(&tried.stderr));
    pipe.in_step().await;
    stop(&mut worker).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wide_column_that_was_dropped_since_holds_nothing_back() {
    let (pipe, mut worker) = Pipe::running(Postgres::v15().await, Postgres::v18().await, 3).await;
    pipe.source.exec("UPDATE t SET note = repeat('wide', 5000) WHERE id = 1").await;
    pipe.in_step().await;
    stop(&mut worker).await;
    pipe.work.transform("t", "SELECT id, n FROM t");
    pipe.source.exec("UPDATE t SET n = 1 WHERE id = 1").await;
    pipe.source.exec("ALTER TABLE t DROP note; UPDATE t SET n = 2 WHERE id = 2").await;
    let mut worker = pipe.work.start(&[]);
    eventually("both changes are there", PATIENCE, async || {
        pipe.target.value("SELECT string_agg(n::text, ',' ORDER BY id) FROM t").await.as_deref() == Some("1,2,0")
    })
    .await;
    stop(&mut worker).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_that_log_another_identity_than_their_root_are_refused() {
    let tables = "CREATE TABLE t (id integer PRIMARY KEY, n integer NOT NULL, note text) PARTITION BY RANGE (id);
        CREATE TABLE t_low PARTITION OF t FOR VALUES FROM (0) TO (100); ALTER TABLE t REPLICA IDENTITY FULL";
    let pipe = Pipe::with(Postgres::v15().await, Postgres::v18().await, tables).await;
    let checked = pipe.work.run(&["check"]).await;
    let said = String::from_utf8_lossy(&checked.stdout);
    assert!(said.contains("t_low") && said.contains("REPLICA IDENTITY"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_17_a_slot_that_the_server_gave_up_halts_and_is_made_anew_by_the_repair() {
    let own = Own::Pg15.take().await;
    let (pipe, mut worker) = Pipe::running(Postgres::at(own.url).await, Postgres::v18().await, 50).await;
    stop(&mut worker).await;
    pipe.source.exec("ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'").await;
    pipe.source.exec("SELECT pg_reload_conf()").await;
    pipe.source.exec("UPDATE t SET n = 1 WHERE id = 1; DELETE FROM t WHERE id = 2; CREATE TABLE filler (x int)").await;
    eventually("the server gives the slot up", PATIENCE, async || {
        pipe.source.exec("INSERT INTO filler VALUES (1); SELECT pg_switch_wal()").await;
        pipe.source.exec("CHECKPOINT").await;
        pipe.slot_is("wal_status").await.as_deref() == Some("lost")
    })
    .await;
    let mut worker = pipe.work.start(&[]);
    let (reason, remedy) = halted(&worker).await;
    assert!(reason.contains("invalidated") && remedy.contains("max_slot_wal_keep_size"), "{reason}; {remedy}");
    pipe.source.exec("ALTER SYSTEM RESET max_slot_wal_keep_size").await;
    pipe.source.exec("SELECT pg_reload_conf()").await;
    pipe.repaired().await;
    stop(&mut worker).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_larger_than_any_buffer_streams_through() {
    let (pipe, mut worker) = Pipe::running(Postgres::v15().await, Postgres::v18().await, 5).await;
    pipe.source
        .exec(
            "BEGIN; INSERT INTO t SELECT i, 0, repeat('x', 400) FROM generate_series(100, 60000) i; \
             UPDATE t SET n = 1 WHERE id % 2 = 0; DELETE FROM t WHERE id % 3 = 0; COMMIT",
        )
        .await;
    pipe.in_step().await;
    stop(&mut worker).await;
}

/// Kafka keeps what it has: the server need not wait for the target, which is behind a lock here.
#[tokio::test(flavor = "multi_thread")]
async fn with_kafka_the_slot_advances_to_what_the_log_has() {
    let shared = Kafka::shared().await;
    let pipe = Pipe::with(Postgres::v15().await, Postgres::v18().await, TABLE).await;
    pipe.work.configure_also(&format!("[log]\nurl = {:?}\npartitions = 2\n", shared.url));
    let kafka = Kafka::of(&shared.url, pipe.source.database());
    pipe.insert(1, 50).await;
    let mut worker = pipe.work.start(&[]);
    following(&worker).await;
    let locker = pipe.target.connect().await;
    locker.batch_execute("BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE").await.unwrap();
    pipe.source.exec("UPDATE t SET n = 9").await;
    let end = pipe.source.value("SELECT pg_current_wal_lsn()").await.unwrap();
    eventually("the slot passes the change", PATIENCE, async || {
        pipe.slot_is(&format!("(confirmed_flush_lsn >= '{end}')")).await.as_deref() == Some("true")
    })
    .await;
    worker.kill9().await;
    locker.batch_execute("COMMIT").await.unwrap();
    pipe.source.exec("DELETE FROM t WHERE id > 40").await;
    let mut worker = pipe.work.start(&[]);
    pipe.in_step().await;
    stop(&mut worker).await;
    kafka.delete_topics().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_envelope_says_where_a_transaction_was_replicated_from() {
    let shared = Kafka::shared().await;
    let pipe = Pipe::with(Postgres::v15().await, Postgres::v18().await, TABLE).await;
    pipe.source.exec("CREATE TABLE unwatched (id integer)").await;
    pipe.work.configure_also(&format!("[log]\nurl = {:?}\n", shared.url));
    let kafka = Kafka::of(&shared.url, pipe.source.database());
    let mut worker = pipe.work.start(&[]);
    following(&worker).await;
    let node = format!("node_{}", pipe.source.database());
    let elsewhere =
        format!("SELECT pg_replication_origin_create('{node}'), pg_replication_origin_session_setup('{node}')");
    let session = pipe.source.connect().await;
    session.batch_execute(&elsewhere).await.unwrap();
    session.batch_execute("BEGIN; INSERT INTO t VALUES (1, 1, 'a'); UPDATE t SET n = 2; COMMIT").await.unwrap();
    session.batch_execute("INSERT INTO unwatched VALUES (1)").await.unwrap();
    session
        .batch_execute("SELECT pg_replication_origin_session_reset(); INSERT INTO t VALUES (2, 1, 'b')")
        .await
        .unwrap();
    pipe.in_step().await;
    stop(&mut worker).await;
    let values = kafka.consume("changes", 0).into_iter().filter_map(|message| message.payload().map(<[u8]>::to_vec));
    let envelopes = values.filter_map(|value| serde_json::from_slice::<Value>(&value).ok());
    let told: Vec<Value> =
        envelopes.filter(|envelope| envelope["op"].is_string()).map(|row| row["source"].clone()).collect();
    let origins: Vec<&Value> = told.iter().map(|source| &source["origin"]).collect();
    assert_eq!(origins, [&json!(node), &json!(node), &Value::Null]);
    assert!(told.iter().all(|source| source["schema"] == "public" && source["lsn"].as_u64() > Some(0)), "{told:?}");
    pipe.source.exec(&format!("SELECT pg_replication_origin_drop('{node}')")).await;
    kafka.delete_topics().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_6_rows_that_leave_a_filter_go_whatever_the_source_logs_of_them() {
    for identity in ["DEFAULT", "FULL"] {
        leaves_the_filter(identity).await;
    }
}

/// Nothing would say which row of the target was that of a key.
#[tokio::test(flavor = "multi_thread")]
async fn rule_6_a_filter_with_a_computed_key_needs_whole_rows() {
    let pipe = Pipe::with(Postgres::v15().await, Postgres::v18().await, TABLE).await;
    pipe.work.transform("t", "SELECT -id AS id, n, note FROM t WHERE n < 10");
    let checked = pipe.work.run(&["check"]).await;
    let said = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(checked.status.code() == Some(1) && said.contains("REPLICA IDENTITY FULL"), "{said}");
    pipe.source.exec("ALTER TABLE t REPLICA IDENTITY FULL").await;
    let checked = pipe.work.run(&["check"]).await;
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
}

async fn leaves_the_filter(identity: &str) {
    let pipe = Pipe::with(Postgres::v15().await, Postgres::v18().await, TABLE).await;
    pipe.work.transform("t", "SELECT id, n, note FROM t WHERE note IS NOT NULL AND n < 10");
    pipe.source.exec(&format!("ALTER TABLE t REPLICA IDENTITY {identity}")).await;
    pipe.insert(1, 50).await;
    let mut worker = pipe.work.start(&[]);
    following(&worker).await;
    pipe.source
        .exec(
            "UPDATE t SET n = 50 WHERE id <= 10; UPDATE t SET note = NULL WHERE id BETWEEN 11 AND 20; DELETE FROM t WHERE id = 30;
             UPDATE t SET n = 60 WHERE id = 40; UPDATE t SET n = 3 WHERE id IN (5, 40); UPDATE t SET id = 100 WHERE id = 41",
        )
        .await;
    let shown = pipe.source.query("SELECT id, n, note FROM t WHERE note IS NOT NULL AND n < 10 ORDER BY id").await;
    assert_eq!(shown.len(), 30);
    eventually("the target has what passes the filter", PATIENCE, async || {
        pipe.target.query("SELECT id, n, note FROM t ORDER BY id").await == shown
    })
    .await;
    stop(&mut worker).await;
}

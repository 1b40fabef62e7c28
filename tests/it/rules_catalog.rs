//! Rule 36, the catalog is asked: what PostgreSQL's log says nothing of, while a worker follows and while none runs.

use std::time::Duration;

use crate::{
    follow::{Network, PATIENCE, Proxy, following, halted, stop},
    pipeline_postgres::assert_equal,
    support::{Postgres, Worker, Workspace, eventually},
};

/// Whether the worker runs while the source is altered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Met {
    Live,
    Stopped,
}

const BOTH: [Met; 2] = [Met::Live, Met::Stopped];

/// Within this time the target is asked what it has at least once.
const ASKED_EVERY: Duration = Duration::from_millis(2200);

const TABLE: &str = "CREATE TABLE t (id integer PRIMARY KEY, n integer, m integer, note text)";
const ROWS: &str = "INSERT INTO t SELECT i, i, -i, 'row ' || i FROM generate_series(1, 60) i";
const PARTITIONED: &str =
    "CREATE TABLE t (id integer PRIMARY KEY, n integer, m integer, note text) PARTITION BY RANGE (id);
    CREATE TABLE t_low PARTITION OF t FOR VALUES FROM (0) TO (50);
    CREATE TABLE t_mid PARTITION OF t FOR VALUES FROM (50) TO (100)";
const CONTENTS: &str = "SELECT id, n, m, note FROM t ORDER BY id";

struct Pipe {
    source: Postgres,
    target: Postgres,
    work: Workspace,
}

impl Pipe {
    /// With sixty rows, copied, and a worker that follows. Sources are of the oldest and the newest server in turn.
    async fn running(newest: bool, at_source: &str) -> (Self, Worker) {
        let (source, target) = match newest {
            true => (Postgres::v18().await, Postgres::v15().await),
            false => (Postgres::v15().await, Postgres::v18().await),
        };
        source.exec(at_source).await;
        source.exec(ROWS).await;
        target.exec(TABLE).await;
        let work = Workspace::new(source.database(), &source.url(), &target.url(), &["t"]);
        let worker = work.start(&[]);
        following(&worker).await;
        let pipe = Pipe { source, target, work };
        eventually("the fingerprint is kept", PATIENCE, async || {
            pipe.target.value("SELECT count(*) FROM cutover.notes WHERE key = 'catalog'").await.as_deref() == Some("1")
        })
        .await;
        (pipe, worker)
    }

    /// Alters the source, each statement on its own, and goes on with a worker.
    async fn alter(&self, met: Met, mut worker: Worker, statements: &[&str]) -> Worker {
        if met == Met::Stopped {
            stop(&mut worker).await;
        }
        for statement in statements {
            self.source.exec(statement).await;
        }
        match met {
            Met::Live => worker,
            Met::Stopped => self.work.start(&[]),
        }
    }

    async fn in_step(&self, what: &str) {
        eventually(&format!("source and target are equal after {what}"), PATIENCE, async || {
            self.source.query(CONTENTS).await == self.target.query(CONTENTS).await
        })
        .await;
    }

    async fn generation(&self) -> Option<String> {
        self.target.value("SELECT generation FROM cutover.tables").await
    }

    /// How often what is known of the catalog has been replaced.
    async fn known(&self) -> Option<String> {
        self.target.value("SELECT updated_at FROM cutover.notes WHERE key = 'catalog'").await
    }
}

/// What is done to the source is at the target, without a further change of a row and with one.
async fn arrives(what: &str, at_source: &str, statements: &[&str]) {
    for (newest, met) in BOTH.into_iter().enumerate() {
        let (pipe, worker) = Pipe::running(newest == 1, at_source).await;
        let mut worker = pipe.alter(met, worker, statements).await;
        pipe.in_step(&format!("{what}, {met:?}")).await;
        pipe.source.exec("UPDATE t SET note = 'later' WHERE id % 7 = 0; DELETE FROM t WHERE id = 3").await;
        pipe.in_step(&format!("{what}, {met:?}, and changes")).await;
        following(&worker).await;
        assert_equal(&pipe.source, &pipe.target, &["t"]).await;
        stop(&mut worker).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_swapped_in_under_the_name_is_copied_and_followed() {
    let other =
        "CREATE TABLE u (LIKE t INCLUDING ALL); INSERT INTO u SELECT i, 5, 5, 'other' FROM generate_series(20, 90) i";
    arrives("a swap", TABLE, &[other, "ALTER TABLE t RENAME TO t_old; ALTER TABLE u RENAME TO t"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_dropped_and_made_again_is_copied_and_followed() {
    arrives(
        "a table made again",
        TABLE,
        &["DROP TABLE t", TABLE, "INSERT INTO t VALUES (7, 7, 7, 'new'), (200, 1, 1, 'new')"],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_was_away_under_another_name_is_copied_again() {
    let away = "ALTER TABLE t RENAME TO t_away";
    let changed = "UPDATE t_away SET n = 1000 WHERE id < 10; DELETE FROM t_away WHERE id = 50";
    arrives("an absence", TABLE, &[away, changed, "ALTER TABLE t_away RENAME TO t"]).await;
}

/// Both are published, and the stream brings changes of either under the name that it has.
#[tokio::test(flavor = "multi_thread")]
async fn another_table_that_has_the_name_between_two_looks_leaves_nothing() {
    let both = format!(
        "{TABLE}; CREATE TABLE u (LIKE t INCLUDING ALL); INSERT INTO u VALUES (1, 0, 0, 'u'), (300, 0, 0, 'u')"
    );
    for (newest, met) in BOTH.into_iter().enumerate() {
        let (pipe, worker) = Pipe::running(newest == 1, &both).await;
        pipe.source.exec(&format!("ALTER PUBLICATION cutover_{} ADD TABLE u", pipe.source.database())).await;
        let swap = "ALTER TABLE t RENAME TO x; ALTER TABLE u RENAME TO t; ALTER TABLE x RENAME TO u";
        let changes = "INSERT INTO t VALUES (400, 1, 1, 'of u'); UPDATE t SET n = 8; UPDATE u SET n = 9 WHERE id < 9";
        let mut worker = pipe.alter(met, worker, &[swap, changes, swap]).await;
        pipe.in_step(&format!("a swap back, {met:?}")).await;
        pipe.source.exec("UPDATE t SET n = 10 WHERE id > 55; INSERT INTO u VALUES (500, 1, 1, 'u')").await;
        pipe.in_step(&format!("a swap back, and changes, {met:?}")).await;
        stop(&mut worker).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn values_that_alter_column_type_computes_arrive() {
    arrives("ALTER TYPE USING", TABLE, &["ALTER TABLE t ALTER n TYPE integer USING n * 100"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_that_is_dropped_and_added_again_with_a_default_arrives() {
    let again = "ALTER TABLE t DROP n, ADD n integer DEFAULT 77";
    arrives("DROP and ADD", TABLE, &[again]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_that_swap_their_names_arrive() {
    let swap = ["ALTER TABLE t RENAME n TO x", "ALTER TABLE t RENAME m TO n", "ALTER TABLE t RENAME x TO m"];
    arrives("a swap of names", TABLE, &[&swap.join(";")]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_label_of_an_enum_that_is_renamed_arrives() {
    for (newest, met) in BOTH.into_iter().enumerate() {
        let source = "DROP TABLE t; CREATE TYPE mood AS ENUM ('sad', 'later');
            CREATE TABLE t (id integer PRIMARY KEY, n integer, m integer, note mood);
            INSERT INTO t SELECT i, i, i, 'sad' FROM generate_series(1, 30) i";
        let (pipe, mut worker) = Pipe::running(newest == 1, TABLE).await;
        // The same name with another type: a swap as well.
        pipe.source.exec(source).await;
        pipe.in_step("another table").await;
        following(&worker).await;
        worker = pipe.alter(met, worker, &["ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'"]).await;
        pipe.in_step(&format!("a renamed label, {met:?}")).await;
        stop(&mut worker).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_a_partition_that_is_attached_arrive_and_those_of_a_detached_one_go() {
    let attached = "CREATE TABLE t_high (LIKE t INCLUDING ALL); INSERT INTO t_high VALUES (150, 1, 1, 'high')";
    arrives("ATTACH", PARTITIONED, &[attached, "ALTER TABLE t ATTACH PARTITION t_high FOR VALUES FROM (100) TO (200)"])
        .await;
    arrives("DETACH", PARTITIONED, &["ALTER TABLE t DETACH PARTITION t_mid"]).await;
    arrives("DROP of a partition", PARTITIONED, &["DROP TABLE t_mid"]).await;
    arrives("TRUNCATE of a partition", PARTITIONED, &["TRUNCATE t_mid"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_left_the_publication_for_a_while_is_copied_again() {
    for (newest, met) in BOTH.into_iter().enumerate() {
        let (pipe, worker) = Pipe::running(newest == 1, TABLE).await;
        let publication = format!("cutover_{}", pipe.source.database());
        let left = format!("ALTER PUBLICATION {publication} DROP TABLE t");
        let mut worker = pipe.alter(met, worker, &[&left, "UPDATE t SET n = 4; DELETE FROM t WHERE id < 5"]).await;
        pipe.in_step(&format!("the table is published again, {met:?}")).await;
        pipe.source.exec("UPDATE t SET n = 5").await;
        pipe.in_step(&format!("the table is followed again, {met:?}")).await;
        stop(&mut worker).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_that_sends_less_halts_and_what_it_left_out_is_copied() {
    let narrow = [
        ("SET (publish = 'insert, update, truncate')", "SET (publish = 'insert, update, delete, truncate')"),
        ("SET TABLE t (id, n)", "SET TABLE t"),
        ("SET TABLE t WHERE (id < 30)", "SET TABLE t"),
    ];
    for (newest, (less, all)) in narrow.into_iter().enumerate() {
        let (pipe, mut worker) = Pipe::running(newest % 2 == 1, TABLE).await;
        let publication = format!("ALTER PUBLICATION cutover_{}", pipe.source.database());
        pipe.source.exec(&format!("{publication} {less}")).await;
        let (reason, remedy) = halted(&worker).await;
        assert!(reason.contains("publication") && remedy.contains("ALTER PUBLICATION"), "{reason}; {remedy}");
        pipe.source.exec("DELETE FROM t WHERE id > 50").await;
        pipe.source.exec(&format!("{publication} {all}")).await;
        worker.kill9().await;
        let mut worker = pipe.work.start(&[]);
        pipe.in_step(less).await;
        stop(&mut worker).await;

        // Less, and all again, while nobody looks.
        for statement in [less, all] {
            pipe.source.exec(&format!("{publication} {statement}; DELETE FROM t WHERE id = {}", statement.len())).await;
        }
        let mut worker = pipe.work.start(&[]);
        pipe.in_step(&format!("{less} for a while")).await;
        stop(&mut worker).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_renamed_or_moved_away_halts_with_its_name() {
    for (newest, (away, back)) in [
        ("ALTER TABLE t RENAME TO t_old", "ALTER TABLE t_old RENAME TO t"),
        ("CREATE SCHEMA elsewhere; ALTER TABLE t SET SCHEMA elsewhere", "ALTER TABLE elsewhere.t SET SCHEMA public"),
    ]
    .into_iter()
    .enumerate()
    {
        let (pipe, mut worker) = Pipe::running(newest == 1, TABLE).await;
        pipe.source.exec(away).await;
        let (reason, remedy) = halted(&worker).await;
        assert!(reason.contains("is called") && remedy.contains("ALTER TABLE"), "{reason}; {remedy}");
        worker.kill9().await;
        pipe.source.exec(back).await;
        pipe.source.exec("UPDATE t SET n = 3").await;
        let mut worker = pipe.work.start(&[]);
        pipe.in_step(away).await;
        stop(&mut worker).await;
    }
}

/// What changes nothing but where rows are stored, or nothing that rows show, costs no copy.
#[tokio::test(flavor = "multi_thread")]
async fn vacuum_full_and_what_changes_no_row_cost_no_copy() {
    for (newest, met) in BOTH.into_iter().enumerate() {
        let (pipe, worker) = Pipe::running(newest == 1, TABLE).await;
        let (copies, known) = (pipe.generation().await, pipe.known().await);
        let harmless =
            ["VACUUM FULL t", "CLUSTER t USING t_pkey", "TRUNCATE t", ROWS, "CREATE INDEX ON t (n)", "VACUUM t"];
        let mut worker = pipe.alter(met, worker, &harmless).await;
        eventually("the catalog was asked", PATIENCE, async || pipe.known().await != known).await;
        pipe.in_step("what is harmless").await;
        assert_eq!(pipe.generation().await, copies, "{met:?}");
        stop(&mut worker).await;
    }
}

/// As pg_partman makes its partitions ahead of time.
#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_is_attached_empty_costs_no_copy() {
    let (pipe, mut worker) = Pipe::running(false, PARTITIONED).await;
    let (copies, known) = (pipe.generation().await, pipe.known().await);
    pipe.source
        .exec(
            "CREATE TABLE t_high (LIKE t INCLUDING ALL); \
             ALTER TABLE t ATTACH PARTITION t_high FOR VALUES FROM (100) TO (200)",
        )
        .await;
    eventually("the catalog was asked", PATIENCE, async || pipe.known().await != known).await;
    pipe.source.exec("INSERT INTO t VALUES (120, 1, 1, 'x')").await;
    pipe.in_step("an empty partition").await;
    assert_eq!(pipe.generation().await, copies);
    stop(&mut worker).await;
}

/// A TRUNCATE of one partition is not in the stream of its root, and statistics hide it at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_is_emptied_and_filled_again_leaves_nothing() {
    let (pipe, mut worker) = Pipe::running(true, PARTITIONED).await;
    let partition = pipe.source.value("SELECT tableoid::regclass::text FROM t ORDER BY 1 LIMIT 1").await.unwrap();
    let moved = format!("CREATE TEMPORARY TABLE kept AS SELECT * FROM {partition} LIMIT 1");
    pipe.source
        .exec(&format!("{moved}; TRUNCATE {partition}; INSERT INTO t SELECT * FROM kept; ANALYZE {partition}"))
        .await;
    pipe.in_step("an emptied partition").await;
    stop(&mut worker).await;
}

/// Neither the catalog nor a change of a row tells of it afterwards: the stream spoke of a partition that is not there.
#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_came_and_went_between_two_looks_leaves_nothing() {
    let made = "CREATE TABLE t_high PARTITION OF t FOR VALUES FROM (100) TO (200)";
    arrives("a short life", PARTITIONED, &[made, "INSERT INTO t VALUES (150, 1, 1, 'high')", "DROP TABLE t_high"])
        .await;
    let filled = "CREATE TABLE t_high (LIKE t INCLUDING ALL); INSERT INTO t_high VALUES (150, 1, 1, 'high')";
    let attached = "ALTER TABLE t ATTACH PARTITION t_high FOR VALUES FROM (100) TO (200)";
    arrives(
        "a visit",
        PARTITIONED,
        &[filled, attached, "UPDATE t SET n = 2 WHERE id = 150", "ALTER TABLE t DETACH PARTITION t_high"],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unlogged_partition_is_refused_and_halts_and_is_copied_when_it_is_logged() {
    for newest in [false, true] {
        let (pipe, mut worker) = Pipe::running(newest, PARTITIONED).await;
        pipe.source.exec("CREATE UNLOGGED TABLE t_high PARTITION OF t FOR VALUES FROM (100) TO (200)").await;
        let (reason, remedy) = halted(&worker).await;
        assert!(reason.contains("t_high") && reason.contains("UNLOGGED") && remedy.contains("SET LOGGED"), "{reason}");
        worker.kill9().await;
        pipe.source.exec("INSERT INTO t VALUES (150, 1, 1, 'high')").await;
        let checked = pipe.work.run(&["check"]).await;
        let said = String::from_utf8_lossy(&checked.stdout).into_owned();
        assert!(checked.status.code() == Some(1) && said.contains("t_high SET LOGGED"), "{said}");
        pipe.source.exec("ALTER TABLE t_high SET LOGGED").await;
        let mut worker = pipe.work.start(&[]);
        pipe.in_step("the partition is logged").await;
        stop(&mut worker).await;
    }
}

/// A copy waits for the lock; what is captured does not.
#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_somebody_has_locked_holds_no_capture_up() {
    let (pipe, mut worker) = Pipe::running(true, PARTITIONED).await;
    let known = pipe.known().await;
    let locker = pipe.source.connect().await;
    locker.batch_execute("BEGIN; LOCK TABLE t_mid IN ACCESS EXCLUSIVE MODE").await.unwrap();
    pipe.source.exec("TRUNCATE t_low").await;
    eventually("the catalog was asked", PATIENCE, async || pipe.known().await != known).await;
    pipe.source.exec("INSERT INTO t VALUES (7, 7, 7, 'meanwhile')").await;
    eventually("a change arrives meanwhile", PATIENCE, async || {
        pipe.target.value("SELECT note FROM t WHERE id = 7").await.as_deref() == Some("meanwhile")
    })
    .await;
    locker.batch_execute("COMMIT").await.unwrap();
    pipe.in_step("the lock is gone").await;
    stop(&mut worker).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_trigger_as_check_offers_it_has_the_catalog_asked() {
    for newest in [false, true] {
        let (mut pipe, mut worker) = Pipe::running(newest, TABLE).await;
        stop(&mut worker).await;
        let offered = async |pipe: &Pipe| {
            let checked = pipe.work.run(&["check"]).await;
            let said = String::from_utf8_lossy(&checked.stdout).into_owned();
            assert!(checked.status.success(), "{said}");
            said.lines().find_map(|line| Some(line.split_once("how: ")?.1.to_owned()))
        };
        let trigger = offered(&pipe).await.expect("a superuser is offered an event trigger");
        pipe.source.exec(&trigger).await;
        assert_eq!(offered(&pipe).await, None);
        pipe.work.set_env("CUTOVER_LOG", "info,cutover::source::postgres=debug");
        let mut worker = pipe.work.start(&[]);
        following(&worker).await;
        pipe.source.exec("ALTER TABLE t ALTER n TYPE integer USING n * 10").await;
        pipe.in_step("a rewrite that the log tells of").await;
        assert!(worker.stderr().contains("the source says that it was altered"), "{}", worker.stderr());
        stop(&mut worker).await;
    }
}

/// The server is told every two seconds what it need not keep, for which the target is asked. An answer that is waited
/// for must not keep the session of the pipeline's state from what capture has to note.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_is_noted_however_long_the_target_takes_to_say_what_it_has() {
    let (source, target) = (Postgres::v18().await, Postgres::v15().await);
    source.exec(TABLE).await;
    source.exec(ROWS).await;
    target.exec(TABLE).await;
    let proxy = Proxy::new(&target.url(), Network::Open).await;
    let work = Workspace::new(source.database(), &source.url(), &proxy.url(&target.url()), &["t"]);
    let pipe = Pipe { source, target, work };
    let mut worker = pipe.work.start(&[]);
    following(&worker).await;
    proxy.set(Network::Frozen);
    tokio::time::sleep(ASKED_EVERY).await;
    pipe.source.exec("ALTER TABLE t ALTER n TYPE integer USING n + 1000").await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    proxy.set(Network::Open);
    pipe.in_step("a pause of the target").await;
    stop(&mut worker).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_is_made_as_one_costs_no_copy() {
    let (pipe, mut worker) = Pipe::running(true, PARTITIONED).await;
    let (copies, known) = (pipe.generation().await, pipe.known().await);
    pipe.source
        .exec(
            "CREATE TABLE t_high PARTITION OF t FOR VALUES FROM (100) TO (200); INSERT INTO t VALUES (120, 1, 1, 'x')",
        )
        .await;
    eventually("the catalog was asked", PATIENCE, async || pipe.known().await != known).await;
    pipe.in_step("a new partition").await;
    assert_eq!(pipe.generation().await, copies);
    stop(&mut worker).await;
}

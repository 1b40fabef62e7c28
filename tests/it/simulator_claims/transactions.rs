//! Claims about transactions: advisory locks, deadlocks, savepoints, failure.

use std::sync::Arc;

use futures::future::join_all;

use super::{
    dead, live,
    rig::{Part, Step, claim, claims, param, pause, plan, rigs, run, simple},
    said,
};
use crate::simulator::postgres::{Deferral, Postgres};

fn lock(session: &'static str, keys: &[i64]) -> Step {
    run(session, "lock", vec![param(keys.to_vec())])
}

fn share(session: &'static str, keys: &[i64]) -> Step {
    run(session, "lock shared", vec![param(keys.to_vec())])
}

#[tokio::test]
async fn claim_advisory_locks_stand_in_line() {
    let told = claim(vec![
        simple("a", "BEGIN"),
        share("a", &[1]),
        simple("b", "BEGIN"),
        simple("c", "BEGIN"),
        simple("d", "BEGIN"),
        share("b", &[1]),
        simple("b", "COMMIT"),
        lock("c", &[1]),
        // Behind the one that wants it alone, though it could be had now.
        share("d", &[1]),
        simple("a", "COMMIT"),
        simple("c", "COMMIT"),
    ])
    .await;
    said(&told, "b5: (void)");
    said(&told, "c7: waits");
    said(&told, "d8: waits");
    said(&told, "c7: (void) after 9");
    said(&told, "d8: (void) after 10");
}

#[tokio::test]
async fn claim_a_holder_of_an_advisory_lock_goes_before_those_whom_it_keeps_waiting() {
    let told = claim(vec![
        simple("a", "BEGIN"),
        simple("b", "BEGIN"),
        share("a", &[1]),
        lock("b", &[1]),
        share("a", &[1]),
        lock("a", &[1]),
        simple("a", "COMMIT"),
        simple("b", "COMMIT"),
    ])
    .await;
    said(&told, "a5: (void)");
    said(&told, "b3: (void) after 6");
}

#[tokio::test]
async fn claim_a_savepoint_gives_back_the_locks_that_were_taken_after_it() {
    let script = |end| {
        vec![
            simple("a", "BEGIN"),
            live("c", "1", "x", 1),
            simple("a", "SAVEPOINT s"),
            lock("a", &[1]),
            live("a", "1", "y", 2),
            lock("b", &[1]),
            dead("c", "1", 9),
            simple("a", end),
            simple("a", "COMMIT"),
        ]
    };
    let told = claims(Deferral::NotDeferrable, false, &[script("ROLLBACK TO s"), script("RELEASE s")]).await;
    for (told, end) in told.iter().zip([7, 8]) {
        said(told, "b5: waits");
        said(told, &format!("b5: (void) after {end}"));
        said(told, &format!("c6: (1 1) after {end}"));
    }
}

#[tokio::test]
async fn claim_the_first_to_look_finds_the_deadlock_and_gives_way() {
    let begun = |mut steps: Vec<Step>| {
        let last = steps.split_off(3);
        steps.splice(0..0, [simple("a", "BEGIN"), simple("b", "BEGIN")]);
        steps.push(pause("b"));
        steps.extend(last);
        steps
    };
    let locks = begun(vec![lock("a", &[1]), lock("b", &[2]), lock("a", &[2]), lock("b", &[1])]);
    let rows =
        begun(vec![live("a", "1", "x", 1), live("b", "2", "y", 1), live("a", "2", "z", 2), live("b", "1", "v", 2)]);
    let mixed = begun(vec![lock("a", &[1]), live("b", "2", "y", 1), live("a", "2", "z", 2), lock("b", &[1])]);
    let told = claims(Deferral::NotDeferrable, false, &[locks, rows, mixed]).await;
    for told in &told {
        said(told, "a4: waits");
        said(told, "b6: waits");
        said(told, "a4: error 40P01 at the end");
    }
}

#[tokio::test]
async fn claim_savepoints_nest_and_take_writes_back() {
    let told = claim(vec![
        simple("a", "SAVEPOINT s"),
        simple("a", "BEGIN"),
        live("a", "1", "x", 1),
        simple("a", "SAVEPOINT s"),
        live("a", "1", "y", 2),
        simple("a", "SAVEPOINT t; SET CONSTRAINTS ALL DEFERRED"),
        dead("a", "1", 3),
        live("a", "2", "z", 3),
        simple("a", "ROLLBACK TO t; RELEASE t"),
        live("a", "3", "v", 3),
        simple("a", "SAVEPOINT s"),
        live("a", "4", "w", 3),
        simple("a", "ROLLBACK TO s"),
        live("a", "5", "w", 3),
        simple("a", "RELEASE s"),
        simple("a", "COMMIT"),
        live("a", "1", "q", 1),
        simple("a", "BEGIN"),
        simple("a", "ROLLBACK TO nothing; RELEASE nothing"),
        simple("a", "ROLLBACK"),
        simple("a", "ROLLBACK"),
    ])
    .await;
    said(&told, "a0: error 25P01");
    said(&told, "a16: (0 0 0 null)");
    said(&told, "a18: error 3B001");
}

#[tokio::test]
async fn claim_a_failed_transaction_accepts_its_end_only_and_holds_no_locks() {
    let bad = || plan("a", "users", Part::Live, &[(1, false, &[Some("9"), Some("x"), Some("old")])]);
    let told = claim(vec![
        live("a", "1", "x", 1),
        simple("a", "BEGIN"),
        lock("a", &[1]),
        live("a", "1", "y", 2),
        bad(),
        lock("a", &[2]),
        simple("a", "SAVEPOINT s"),
        // Its locks and writes are gone before it says so.
        lock("b", &[1]),
        live("b", "1", "z", 3),
        simple("a", "COMMIT"),
        simple("a", "BEGIN"),
        live("a", "2", "v", 1),
        simple("a", "SAVEPOINT s"),
        live("a", "3", "w", 1),
        bad(),
        simple("a", "ROLLBACK TO s; RELEASE s"),
        simple("a", "COMMIT"),
    ])
    .await;
    said(&told, "a4: error 22P02");
    said(&told, "a5: error 25P02");
    said(&told, "a6: error 25P02");
    said(&told, "b7: (void)");
    said(&told, "b8: (0 1 0 null)");
    said(&told, "a9: ok");
    said(&told, "a16: ok");
}

#[tokio::test]
async fn claim_statements_sent_together_run_in_order_and_fail_together() {
    let mut told: Vec<Vec<String>> = Vec::new();
    for rig in rigs(Deferral::NotDeferrable).await {
        let session = Arc::new(rig.session("a", false).await);
        let client = &session.client;
        let lock = client.prepare(Postgres::text_of("lock")).await.unwrap();
        let mark = client.prepare(Postgres::text_of("mark")).await.unwrap();
        let schema = client.prepare(Postgres::text_of("schema")).await.unwrap();
        let keys = vec![1i64];
        let simple = async |sql: &'static str| client.batch_execute(sql).await.map(|()| 0);
        let together: Vec<futures::future::BoxFuture<'_, Result<u64, tokio_postgres::Error>>> = vec![
            Box::pin(simple("BEGIN")),
            Box::pin(async { client.execute(&lock, &[&keys]).await }),
            Box::pin(async { client.execute(&schema, &[&"test", &5i64, &"{}"]).await }),
            // A savepoint that is not there.
            Box::pin(simple("RELEASE nothing")),
            Box::pin(async { client.execute(&mark, &[&"test"]).await }),
            Box::pin(simple("COMMIT")),
            Box::pin(async { client.execute(&schema, &[&"test", &6i64, &"{}"]).await }),
        ];
        let lines = join_all(together).await.into_iter().map(|answer| match answer {
            Ok(rows) => rows.to_string(),
            Err(error) => error.code().map(|code| code.code().to_owned()).unwrap_or_default(),
        });
        let mut lines: Vec<String> = lines.collect();
        lines.extend(rig.dump("cutover.schemas", &["id"]).await);
        told.push(lines);
    }
    assert_eq!(told[0], ["0", "1", "1", "3B001", "25P02", "0", "1", "6"]);
    assert!(told.iter().all(|other| *other == told[0]), "{told:#?}");
}

#[tokio::test]
async fn claim_the_replica_role_is_refused_to_whom_may_not_have_it() {
    use cutover::database::postgres::{Address, Session};
    let pg = crate::support::Postgres::v15().await;
    let role = pg.role("secret").await;
    let real = Address::parse(&pg.url_as(&role, "secret")).unwrap();
    let model = Postgres::new(Vec::new(), Arc::new(crate::simulator::postgres::NoFaults));
    let model = Address::parse("postgresql://cutover@localhost/model").unwrap().through(model);
    for target in [real, model] {
        let session = Session::open(&target, &super::rig::options("a", true)).await.unwrap();
        assert!(!session.replica);
        let error = session.client.batch_execute("SET session_replication_role = replica").await.unwrap_err();
        assert_eq!(error.code().unwrap().code(), "42501");
    }
}

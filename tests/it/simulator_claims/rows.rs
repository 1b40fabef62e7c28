//! Claims about rows: who waits for whom, and what a statement sees that waited.

use super::{
    dead, live,
    rig::{Part, claim, claims, param, plan, run, simple},
    said,
};
use crate::{apply_rig::PIPELINE, simulator::postgres::Deferral};

#[tokio::test]
async fn claim_a_statement_that_waited_keeps_its_old_view_of_tombstones() {
    // The trap of rule 1: the row comes back although its tombstone is there.
    let told = claim(vec![
        live("a", "1", "x", 3),
        simple("a", "BEGIN"),
        dead("a", "1", 6),
        simple("b", "BEGIN"),
        live("b", "1", "x", 5),
        simple("a", "COMMIT"),
        simple("b", "COMMIT"),
        // A statement that begins now sees the tombstone.
        live("b", "1", "x", 5),
    ])
    .await;
    said(&told, "b4: waits");
    said(&told, "b4: (1 0 0 null) after 5");
    said(&told, "b7: (0 0 0 null)");
}

#[tokio::test]
async fn claim_a_lock_in_an_earlier_statement_lets_the_next_see_the_tombstone() {
    let lock = |session| run(session, "lock", vec![param(vec![7i64])]);
    let told = claim(vec![
        live("a", "1", "x", 3),
        simple("a", "BEGIN"),
        lock("a"),
        dead("a", "1", 6),
        simple("b", "BEGIN"),
        lock("b"),
        simple("a", "COMMIT"),
        live("b", "1", "x", 5),
        simple("b", "COMMIT"),
    ])
    .await;
    said(&told, "b5: waits");
    said(&told, "b7: (0 0 0 null)");
}

#[tokio::test]
async fn claim_neither_of_two_open_transactions_sees_the_other() {
    // Without a row to wait for, nothing waits: a tombstone and an older row pass each other.
    let told = claim(vec![
        simple("a", "BEGIN"),
        dead("a", "1", 6),
        simple("b", "BEGIN"),
        live("b", "1", "x", 5),
        simple("a", "COMMIT"),
        simple("b", "COMMIT"),
    ])
    .await;
    said(&told, "b3: (1 0 0 null)");
}

#[tokio::test]
async fn claim_a_delete_that_waited_judges_the_newest_row() {
    let script = |version, end| {
        vec![
            live("a", "1", "x", 3),
            simple("a", "BEGIN"),
            live("a", "1", "y", version),
            dead("b", "1", 5),
            simple("a", end),
        ]
    };
    let told =
        claims(Deferral::NotDeferrable, false, &[script(9, "COMMIT"), script(4, "COMMIT"), script(9, "ROLLBACK")])
            .await;
    for (told, answer) in told.iter().zip(["(1 0)", "(1 1)", "(1 1)"]) {
        said(told, "b3: waits");
        said(told, &format!("b3: {answer} after 4"));
    }
}

#[tokio::test]
async fn claim_a_delete_that_waited_for_a_delete_finds_nothing_and_the_newer_tombstone_stays() {
    let script = |first, second| {
        vec![
            live("a", "1", "x", 3),
            simple("a", "BEGIN"),
            dead("a", "1", first),
            dead("b", "1", second),
            simple("a", "COMMIT"),
        ]
    };
    let told = claims(Deferral::NotDeferrable, false, &[script(5, 6), script(6, 5)]).await;
    for told in &told {
        said(told, "b3: waits");
        said(told, "b3: (1 0) after 4");
    }
}

#[tokio::test]
async fn claim_on_conflict_waits_for_an_insert_and_takes_the_newest_row_seen_or_not() {
    let script = |version, end| {
        vec![simple("a", "BEGIN"), live("a", "1", "x", 7), live("b", "1", "y", version), simple("a", end)]
    };
    let scripts = [script(8, "COMMIT"), script(5, "COMMIT"), script(5, "ROLLBACK")];
    let told = claims(Deferral::NotDeferrable, false, &scripts).await;
    for (told, answer) in told.iter().zip(["(0 1 0 null)", "(0 0 0 null)", "(1 0 0 null)"]) {
        said(told, "b2: waits");
        said(told, &format!("b2: {answer} after 3"));
    }
}

#[tokio::test]
async fn claim_a_stale_fact_locks_the_row_that_it_leaves_alone() {
    let told = claim(vec![
        live("a", "1", "x", 9),
        simple("a", "BEGIN"),
        live("a", "1", "y", 1),
        dead("b", "1", 10),
        simple("a", "COMMIT"),
    ])
    .await;
    said(&told, "a2: (0 0 0 null)");
    said(&told, "b3: waits");
    said(&told, "b3: (1 1) after 4");
}

#[tokio::test]
async fn claim_a_unique_value_of_an_open_transaction_is_waited_for() {
    let script = |end| vec![simple("a", "BEGIN"), live("a", "1", "x", 1), live("b", "2", "x", 2), simple("a", end)];
    let freed = vec![
        live("a", "1", "x", 1),
        simple("a", "BEGIN"),
        dead("a", "1", 2),
        live("b", "2", "x", 3),
        simple("a", "COMMIT"),
    ];
    let kept = vec![
        live("a", "1", "x", 1),
        simple("a", "BEGIN"),
        live("a", "1", "y", 2),
        live("b", "2", "x", 3),
        simple("a", "ROLLBACK"),
    ];
    let told = claims(Deferral::NotDeferrable, false, &[script("COMMIT"), script("ROLLBACK"), freed, kept]).await;
    said(&told[0], "b2: error 23505 after 3");
    said(&told[1], "b2: (1 0 0 null) after 3");
    said(&told[2], "b3: (1 0 0 null) after 4");
    said(&told[3], "b3: error 23505 after 4");
}

#[tokio::test]
async fn claim_a_key_twice_in_one_statement_is_refused() {
    let twice: &[(i64, bool, &[Option<&str>])] =
        &[(1, false, &[Some("1"), Some("x"), Some("1")]), (2, false, &[Some("1"), Some("y"), Some("2")])];
    let there = [vec![live("a", "1", "x", 0)], vec![]];
    let scripts = there.map(|mut steps| {
        steps.push(plan("a", "users", Part::Live, twice));
        steps
    });
    let told = claims(Deferral::NotDeferrable, false, &scripts).await;
    said(&told[0], "a1: error 21000");
    said(&told[1], "a0: error 21000");
}

#[tokio::test]
async fn claim_values_that_cannot_be_stored_are_errors_of_their_kind() {
    let with = |version, id, email, age| plan("a", "users", Part::Live, &[(version, false, &[id, email, age])]);
    let told = claim(vec![
        with(1, Some("1"), Some("x"), Some("old")),
        with(1, Some("1"), Some("x"), Some("99999999999")),
        with(1, Some("1"), Some("x"), Some("250")),
        with(1, None, Some("x"), Some("30")),
        plan("a", "open_users", Part::Live, &[(1, false, &[Some("1"), None, Some("open")])]),
        plan("a", "open_users", Part::Live, &[(1, false, &[Some("1"), None, Some("closed")])]),
        dead("a", "1", 9),
        // PostgreSQL evaluates the row before it looks for a tombstone.
        with(5, Some("1"), Some("x"), Some("old")),
        with(5, Some("1"), Some("x"), Some("250")),
        // A dead fact is its key: the rest is not looked at.
        plan("a", "users", Part::Dead, &[(10, true, &[Some("1"), Some("x"), Some("old")])]),
    ])
    .await;
    let wanted = ["22P02", "22003", "23514", "23502", "23502"].map(|state| format!("error {state}"));
    for (place, error) in wanted.iter().enumerate() {
        said(&told, &format!("a{place}: {error}"));
    }
    said(&told, "a5: (0 0 0 0)");
    said(&told, "a7: error 22P02");
    said(&told, "a8: (0 0 0 null)");
    said(&told, "a9: (1 0)");
}

#[tokio::test]
async fn claim_replace_lets_unique_values_change_places_in_one_statement() {
    let swapped: &[(i64, bool, &[Option<&str>])] =
        &[(3, false, &[Some("1"), Some("y"), Some("1")]), (4, false, &[Some("2"), Some("x"), Some("2")])];
    let told = claim(vec![
        live("a", "1", "x", 1),
        live("a", "2", "y", 2),
        plan("a", "users", Part::Live, swapped),
        simple("a", "BEGIN"),
        plan("a", "users", Part::Replace, swapped),
        plan("a", "users", Part::Live, swapped),
        simple("a", "COMMIT"),
    ])
    .await;
    said(&told, "a2: error 23505");
    said(&told, "a5: (0 2 0 null)");
}

#[tokio::test]
async fn claim_sets_and_filters_keep_the_newest_fact_of_each_key() {
    let tags: &[(i64, bool, &[Option<&str>])] = &[
        (2, true, &[Some("1"), Some("a,b")]),
        (2, false, &[Some("1"), Some("b,c")]),
        (3, false, &[Some("2"), Some("a,a")]),
    ];
    let moved: &[(i64, bool, &[Option<&str>])] = &[
        (4, true, &[Some("1"), Some("x"), Some("open")]),
        (4, false, &[Some("1"), Some("x"), Some("closed")]),
        (5, true, &[Some("2"), Some("y"), Some("open")]),
        (5, false, &[Some("2"), Some("z"), Some("open")]),
    ];
    let open: &[(i64, bool, &[Option<&str>])] =
        &[(1, false, &[Some("1"), Some("x"), Some("open")]), (1, false, &[Some("2"), Some("y"), Some("open")])];
    let copied: &[(i64, bool, &[Option<&str>])] =
        &[(1, false, &[Some("2"), Some("y"), Some("closed")]), (6, false, &[Some("1"), Some("x"), Some("closed")])];
    let told = claim(vec![
        plan("a", "user_tags", Part::Live, &[(1, false, &[Some("1"), Some("a,b")])]),
        plan("a", "user_tags", Part::Dead, tags),
        plan("a", "user_tags", Part::Live, tags),
        plan("a", "user_tags", Part::Clashes, tags),
        plan("a", "open_users", Part::Live, open),
        plan("a", "open_users", Part::Dead, moved),
        plan("a", "open_users", Part::Live, &moved[3..]),
        plan("a", "open_users", Part::Unmatched, copied),
        plan(
            "a",
            "users",
            Part::Clashes,
            &[(1, false, &[Some("1"), None, None]), (2, false, &[Some("1"), None, None])],
        ),
        plan("a", "children", Part::Orphans, &[(1, false, &[Some("1"), Some("9")]), (1, false, &[Some("2"), None])]),
        plan("a", "open_users", Part::Unmatched, &[(5, false, &[Some("2"), Some("z"), Some("closed")])]),
        plan("a", "open_users", Part::Unmatched, &[(6, false, &[Some("2"), Some("z"), Some("closed")])]),
    ])
    .await;
    said(&told, "a1: (1 1)");
    said(&told, "a2: (2 1 1 3)");
    said(&told, "a5: (1 1)");
    said(&told, "a7: (0)");
    said(&told, "a9: (1 9)");
    said(&told, "a10: (0)");
    said(&told, "a11: (1)");
}

#[tokio::test]
async fn claim_a_truncate_fence_keeps_older_images_out() {
    let fence = |version: i64| run("a", "fence", vec![param(PIPELINE), param("shop.users"), param(version)]);
    let told = claim(vec![
        fence(5),
        fence(3),
        live("a", "1", "x", 4),
        live("a", "1", "x", 5),
        dead("a", "1", 4),
        plan("a", "user_tags", Part::Live, &[(4, false, &[Some("1"), Some("a")])]),
        live("b", "2", "y", 6),
    ])
    .await;
    said(&told, "a2: (0 0 0 null)");
    said(&told, "a3: (1 0 0 null)");
    said(&told, "a4: (0 0)");
}

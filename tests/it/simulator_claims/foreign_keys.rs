//! Claims about foreign keys: when they are checked, what they see, and what they lock.

use super::{
    rig::{Part, Step, claims, plan, simple},
    said,
};
use crate::simulator::postgres::Deferral;

fn parent(session: &'static str, id: &str, name: &str, version: i64) -> Step {
    plan(session, "parents", Part::Live, &[(version, false, &[Some(id), Some(name)])])
}

fn child(session: &'static str, id: &str, parent: &str, version: i64) -> Step {
    plan(session, "children", Part::Live, &[(version, false, &[Some(id), Some(parent)])])
}

fn gone(session: &'static str, id: &str, version: i64) -> Step {
    plan(session, "parents", Part::Dead, &[(version, true, &[Some(id), None])])
}

#[tokio::test]
async fn claim_a_foreign_key_is_checked_at_the_end_of_the_statement() {
    let alone = vec![
        child("a", "1", "1", 1),
        plan("a", "children", Part::Live, &[(1, false, &[Some("1"), None])]),
        parent("a", "1", "p", 2),
        child("a", "1", "1", 3),
        gone("a", "1", 4),
        // Removed and written again in one statement, the parent is there at its end.
        plan("a", "parents", Part::Replace, &[(5, false, &[Some("1"), Some("q")])]),
        plan("a", "children", Part::Dead, &[(6, true, &[Some("1"), None])]),
        gone("a", "1", 7),
    ];
    let told = claims(Deferral::NotDeferrable, false, &[alone]).await.remove(0);
    said(&told, "a0: error 23503");
    said(&told, "a3: (0 1 0 null)");
    said(&told, "a4: error 23503");
    said(&told, "a5: ok");
    said(&told, "a7: (1 1)");
}

#[tokio::test]
async fn claim_a_child_waits_for_a_parent_that_goes_and_not_for_one_that_comes_or_changes() {
    let goes = |end| {
        vec![
            parent("a", "1", "p", 1),
            simple("a", "BEGIN"),
            gone("a", "1", 2),
            child("b", "1", "1", 3),
            simple("a", end),
        ]
    };
    let comes = vec![simple("a", "BEGIN"), parent("a", "1", "p", 1), child("b", "1", "1", 3), simple("a", "COMMIT")];
    let changes = vec![
        parent("a", "1", "p", 1),
        simple("a", "BEGIN"),
        parent("a", "1", "q", 2),
        child("b", "1", "1", 3),
        simple("a", "COMMIT"),
    ];
    // The reference holds on to what the parent becomes, too.
    let held = vec![
        parent("a", "1", "p", 1),
        simple("a", "BEGIN"),
        parent("a", "1", "q", 2),
        simple("b", "BEGIN"),
        child("b", "1", "1", 3),
        simple("a", "COMMIT"),
        gone("c", "1", 4),
        simple("b", "COMMIT"),
    ];
    let scripts = [goes("COMMIT"), goes("ROLLBACK"), comes, changes, held];
    let told = claims(Deferral::NotDeferrable, false, &scripts).await;
    said(&told[0], "b3: error 23503 after 4");
    said(&told[1], "b3: (1 0 0 null) after 4");
    said(&told[2], "b2: error 23503");
    said(&told[3], "b3: (1 0 0 null)");
    said(&told[4], "c6: waits");
    said(&told[4], "c6: error 23503 after 7");
}

#[tokio::test]
async fn claim_a_parent_that_an_open_child_refers_to_can_change_but_not_go() {
    let script = |end| {
        vec![
            parent("a", "1", "p", 1),
            simple("a", "BEGIN"),
            child("a", "1", "1", 2),
            parent("b", "1", "q", 3),
            gone("c", "1", 4),
            simple("a", end),
        ]
    };
    let told = claims(Deferral::NotDeferrable, false, &[script("COMMIT"), script("ROLLBACK")]).await;
    for (told, end) in told.iter().zip(["error 23503", "(1 1)"]) {
        said(told, "b3: (0 1 0 null)");
        said(told, "c4: waits");
        said(told, &format!("c4: {end} after 5"));
    }
}

#[tokio::test]
async fn claim_the_replica_role_checks_no_foreign_key() {
    let script = vec![child("a", "1", "1", 1), parent("a", "2", "p", 1), child("a", "2", "2", 1), gone("a", "2", 2)];
    let told = claims(Deferral::NotDeferrable, true, &[script]).await.remove(0);
    said(&told, "a0: (1 0 0 null)");
    said(&told, "a3: (1 1)");
}

#[tokio::test]
async fn claim_deferred_foreign_keys_speak_at_the_commit_or_when_made_immediate() {
    let at_commit = vec![
        simple("a", "BEGIN"),
        child("a", "1", "1", 1),
        simple("a", "COMMIT"),
        child("b", "1", "1", 1),
        simple("a", "BEGIN"),
        child("a", "2", "1", 1),
        parent("a", "1", "p", 1),
        simple("a", "COMMIT"),
    ];
    let immediate = vec![
        simple("a", "BEGIN"),
        child("a", "1", "1", 1),
        simple("a", "SAVEPOINT s; SET CONSTRAINTS ALL DEFERRED"),
        child("a", "2", "2", 1),
        parent("a", "1", "p", 1),
        simple("a", "SET CONSTRAINTS ALL IMMEDIATE"),
        simple("a", "ROLLBACK TO s; RELEASE s"),
        parent("a", "1", "p", 1),
        simple("a", "SET CONSTRAINTS ALL IMMEDIATE"),
        child("a", "3", "3", 1),
        simple("a", "COMMIT"),
    ];
    let parent_goes = vec![
        parent("a", "1", "p", 1),
        child("a", "1", "1", 1),
        simple("a", "BEGIN"),
        gone("a", "1", 2),
        simple("a", "COMMIT"),
        simple("a", "BEGIN"),
        gone("a", "1", 3),
        plan("a", "children", Part::Dead, &[(3, true, &[Some("1"), None])]),
        simple("a", "COMMIT"),
    ];
    let told = claims(Deferral::InitiallyDeferred, false, &[at_commit, immediate, parent_goes]).await;
    said(&told[0], "a2: error 23503");
    said(&told[0], "b3: error 23503");
    said(&told[0], "a7: ok");
    said(&told[1], "a5: error 23503");
    said(&told[1], "a8: ok");
    said(&told[1], "a9: error 23503");
    said(&told[2], "a4: error 23503");
    said(&told[2], "a8: ok");
    let asked = vec![
        simple("a", "BEGIN"),
        child("a", "1", "1", 1),
        simple("a", "ROLLBACK"),
        simple("a", "BEGIN"),
        simple("a", "SET CONSTRAINTS ALL DEFERRED"),
        child("a", "1", "1", 1),
        parent("a", "1", "p", 1),
        simple("a", "COMMIT"),
    ];
    let told = claims(Deferral::InitiallyImmediate, false, &[asked]).await.remove(0);
    said(&told, "a1: error 23503");
    said(&told, "a7: ok");
}

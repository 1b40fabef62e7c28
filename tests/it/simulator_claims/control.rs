//! Claims about what the product asks of its state in the target besides moving rows: requests, checkpoints, the lease,
//! events, dead letters, replays.

use cutover::database::postgres::Address;

use super::{
    rig::{Rig, Step, claim, param, rigs, run, simple, told_by_model},
    said,
};
use crate::{
    apply_rig::{EPOCH, PIPELINE},
    simulator::{postgres::Deferral, statements},
};

/// The servers and the model answer a script alike.
async fn alike<F: Future<Output = Vec<String>>>(script: impl Fn(Address) -> F) {
    let mut told = Vec::new();
    for rig in rigs(Deferral::NotDeferrable).await {
        told.push(script(Rig::target(&rig)).await);
    }
    assert_eq!(told[2], told[0], "the model (left) and 15 (right) differ");
    assert_eq!(told[1], told[0], "18 (left) and 15 (right) differ");
}

macro_rules! alike {
    ($($claim:ident: $script:ident),* $(,)?) => {
        $(
            #[tokio::test]
            async fn $claim() {
                alike(statements::$script).await;
            }
        )*
    };
}

alike! {
    claim_requests_are_asked_and_answered_alike: requests,
    claim_checkpoints_and_lanes_are_stored_alike: checkpoints,
    claim_status_is_told_alike: status,
    claim_events_are_numbered_and_carried_alike: events,
    claim_dead_letters_are_listed_and_closed_alike: letters,
    claim_replays_begin_and_end_alike: replays,
    claim_cascades_are_stored_and_ended_alike: cascades,
    claim_comparisons_are_told_what_they_need_to_know_alike: verifications,
}

fn queue(session: &'static str, bodies: &[&str]) -> Step {
    let bodies: Vec<String> = bodies.iter().map(|body| (*body).to_owned()).collect();
    run(session, "queue events", vec![param(PIPELINE), param(bodies)])
}

fn numbered() -> (Vec<Step>, &'static [&'static str]) {
    let counted = |session| run(session, "note", vec![param(PIPELINE), param("events")]);
    let carried =
        |session, sequence: i64| run(session, "events carried", vec![param(PIPELINE), param(sequence), param(0i64)]);
    let steps = vec![
        queue("a", &["{}"]),
        simple("a", "BEGIN"),
        queue("a", &["{}", "{}"]),
        queue("b", &["{}"]),
        simple("a", "ROLLBACK"),
        counted("a"),
        simple("a", "BEGIN"),
        queue("a", &["{}", "{}"]),
        queue("b", &["{}"]),
        simple("a", "COMMIT"),
        counted("a"),
        simple("a", "BEGIN"),
        carried("a", 3),
        carried("b", 4),
        simple("a", "COMMIT"),
        counted("a"),
    ];
    (steps, &["b3: waits", "b3: ok after 4", "a5: (2)", "b8: waits", "a10: (5)", "b13: waits"])
}

fn drawn() -> (Vec<Step>, &'static [&'static str]) {
    let draw = |session| run(session, "draw number", vec![param(PIPELINE)]);
    let raise = |session, epoch: i64| {
        run(session, "raise lease", vec![param(PIPELINE), param("worker"), param(epoch), param(9i64)])
    };
    let steps = vec![
        run("a", "lease row", vec![param(PIPELINE), param("worker")]),
        simple("a", "BEGIN"),
        draw("a"),
        draw("b"),
        simple("a", "COMMIT"),
        simple("a", "BEGIN"),
        draw("a"),
        draw("b"),
        simple("a", "ROLLBACK"),
        raise("a", 5),
        raise("a", 0),
        draw("a"),
    ];
    (steps, &["a2: (1)", "b3: waits", "b3: (2) after 4", "a6: (3)", "b7: (3) after 8", "a11: (10)"])
}

fn begin_replay(session: &'static str, id: i64) -> Step {
    let mut params =
        vec![param(PIPELINE), param(id), param("{}"), param(EPOCH), param(vec!["replay.deletes".to_owned()])];
    params.extend([param(vec![0i32]), param(vec![7i64])]);
    run(session, "begin replay", params)
}

fn one_replay() -> (Vec<Step>, &'static [&'static str]) {
    let end = |session, id: i64| run(session, "end replay", vec![param(PIPELINE), param(id), param("done"), param("")]);
    let steps = vec![
        simple("a", "BEGIN"),
        begin_replay("a", 1),
        begin_replay("b", 2),
        simple("a", "COMMIT"),
        begin_replay("b", 1),
        simple("a", "BEGIN"),
        end("a", 1),
        begin_replay("b", 2),
        simple("a", "COMMIT"),
        run("a", "any replay", Vec::new()),
        end("a", 2),
        run("a", "any replay", Vec::new()),
    ];
    (
        steps,
        &[
            "b2: waits",
            "b2: error 23505 after 3",
            "b4: ok",
            "b7: waits",
            "b7: ok after 8",
            "a9: (true)",
            "a11: (false)",
        ],
    )
}

fn noted_twice() -> (Vec<Step>, &'static [&'static str]) {
    // The statement looks with its snapshot; the lease is what lets only one look.
    let note = |session| {
        let params = [PIPELINE, "h", EPOCH, "[]", "{}"].map(param);
        run(session, "note transforms", params.to_vec())
    };
    let steps = vec![
        simple("a", "BEGIN"),
        note("a"),
        note("b"),
        simple("a", "COMMIT"),
        note("b"),
        run("b", "transforms in force", vec![param(PIPELINE), param(EPOCH)]),
    ];
    (steps, &["b5: ([] {}) ([] {})"])
}

macro_rules! claims {
    ($($claim:ident, $alone:ident: $script:ident;)*) => {
        $(
            #[tokio::test]
            async fn $claim() {
                let (steps, lines) = $script();
                let told = claim(steps).await;
                lines.iter().for_each(|line| said(&told, line));
            }

            #[tokio::test]
            async fn $alone() {
                let (steps, lines) = $script();
                let told = told_by_model(&steps).await;
                lines.iter().for_each(|line| said(&told, line));
            }
        )*
    };
}

claims! {
    claim_events_have_numbers_in_the_order_of_their_commits, the_model_numbers_events_so: numbered;
    claim_numbers_that_are_drawn_at_once_differ, the_model_draws_numbers_so: drawn;
    claim_one_replay_runs_at_a_time, the_model_runs_one_replay: one_replay;
    claim_two_who_note_the_same_transforms_at_once_note_them_twice, the_model_notes_transforms_so: noted_twice;
}

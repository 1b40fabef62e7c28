//! Claims about rows that are read again: which refer to a parent, and what removes one that is known by its key.

use std::sync::Arc;

use cutover::{
    model::Plan,
    target::{ChildrenOf, postgres::children_statement},
};

use super::{
    rig::{Part, Step, What, claim, param, plan},
    said,
};

fn child(id: &'static str, parent: Option<&'static str>, version: i64) -> Step {
    plan("a", "children", Part::Live, &[(version, false, &[Some(id), parent])])
}

/// Asks for the children of parents, each with the version before which they are meant; from after a key.
fn children(parents: &[(&str, i64)], any: bool, extra: &'static [&'static str], after: &[&str]) -> Step {
    let goes_on = !after.is_empty();
    let text = move |plans: &[Plan]| {
        let plan = plans.iter().find(|plan| plan.target.name.table == "children").unwrap();
        let (columns, extra) = (["parent".to_owned()], extra.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
        let of = ChildrenOf { child: "", columns: &columns, keys: &[], any, extra: &extra };
        children_statement(plan, &of, goes_on).unwrap()
    };
    let keys: Vec<String> = parents.iter().map(|(key, _)| (*key).to_owned()).collect();
    let versions: Vec<i64> = parents.iter().map(|(_, version)| *version).collect();
    let after: Vec<String> = after.iter().map(|text| (*text).to_owned()).collect();
    ("a", What::Run(Arc::new(text), vec![param(keys), param(versions), param(after)]))
}

#[tokio::test]
async fn claim_the_rows_that_refer_to_a_parent_and_are_older_are_found() {
    let parents: &[(i64, bool, &[Option<&str>])] =
        &[(1, false, &[Some("1"), Some("p")]), (1, false, &[Some("2"), Some("q")])];
    let (one, two, none) = ("{\"parent\":1}", "{\"parent\":2}", "{\"parent\":null}");
    let told = claim(vec![
        plan("a", "parents", Part::Live, parents),
        child("10", Some("1"), 2),
        child("9", Some("1"), 3),
        child("8", Some("2"), 4),
        child("7", None, 5),
        child("6", Some("1"), 9),
        child("5", Some("1"), 0),
        children(&[(one, 9)], false, &["id"], &[]),
        children(&[(one, 3), (one, 9), (one, 4), (two, 8)], false, &["parent"], &[]),
        children(&[(one, 3), (two, 4), (none, 9)], false, &[], &[]),
        children(&[(one, 9), (two, 9)], false, &[], &["8"]),
        children(&[("{}", 6), ("{}", 3)], true, &["parent"], &[]),
        children(&[("{}", 9)], true, &[], &["8"]),
        children(&[], true, &[], &[]),
        children(&[], false, &[], &[]),
    ])
    .await;
    said(&told, "a7: (9 9 9 9) (9 10 10 10)");
    said(&told, "a8: (8 8 2 8) (9 9 1 9) (9 10 1 10)");
    said(&told, "a9: (3 10 10)");
    said(&told, "a10: (9 9 9) (9 10 10)");
    said(&told, "a11: (6 7 null 7) (6 8 2 8) (6 9 1 9) (6 10 1 10)");
    said(&told, "a13: ok");
}

#[tokio::test]
async fn claim_a_row_that_is_known_by_its_key_alone_goes_and_leaves_a_tombstone() {
    let open =
        |id: &'static str| plan("a", "open_users", Part::Live, &[(3, false, &[Some(id), Some("x"), Some("open")])]);
    let gone = |images: &[(i64, bool, &[Option<&str>])]| plan("a", "open_users", Part::Gone, images);
    let told = claim(vec![
        open("1"),
        open("2"),
        open("3"),
        gone(&[(2, true, &[Some("1"), None, None]), (4, true, &[Some("9"), None, None])]),
        gone(&[
            (5, true, &[Some("1"), None, None]),
            (6, true, &[Some("1"), None, None]),
            (5, false, &[Some("2"), Some("x"), Some("closed")]),
            (5, false, &[Some("3"), Some("x"), Some("open")]),
        ]),
        open("1"),
    ])
    .await;
    said(&told, "a3: (2 0)");
    said(&told, "a4: (2 2)");
    said(&told, "a5: (0 0 0 0)");
}

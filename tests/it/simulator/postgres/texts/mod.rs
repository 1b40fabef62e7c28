//! The statements on cutover's own tables, word by word as the product sends them, one file for each thing that is
//! kept there.
//!
//! They are copies on purpose: SQL that changes in `src` is no longer known here, and what it means now must be said in
//! `state` before the simulator runs again.

mod cascades;
mod copies;
mod events;
mod kept;
mod lease;
mod letters;
mod replays;
mod requests;
mod sink;
mod status;
mod verifications;

use std::{collections::HashMap, sync::LazyLock};

use cutover::{database::postgres::sql, model::TableName};

use super::{
    recognise::{Tag, normalise},
    state::State,
    value::Type,
};

pub struct Statement {
    pub state: State,
    pub name: &'static str,
    pub tag: Tag,
    pub params: &'static [Type],
    pub columns: Option<&'static [Type]>,
    pub text: &'static str,
}

const fn of(
    state: State,
    name: &'static str,
    tag: Tag,
    params: &'static [Type],
    columns: Option<&'static [Type]>,
    text: &'static str,
) -> Statement {
    Statement { state, name, tag, params, columns, text }
}

/// `highest_version` of a target table.
pub fn highest(target: &TableName, tombstones: &TableName) -> String {
    format!(
        "SELECT greatest((SELECT max(cutover_version) FROM {}), (SELECT max(cutover_version) FROM {}), 0)",
        sql::table(target),
        sql::table(tombstones)
    )
}

/// Every statement that is known by its text.
pub fn all() -> impl Iterator<Item = &'static Statement> {
    let files = [
        sink::TEXTS,
        letters::TEXTS,
        kept::TEXTS,
        copies::TEXTS,
        cascades::TEXTS,
        lease::TEXTS,
        requests::TEXTS,
        status::TEXTS,
        events::TEXTS,
        replays::TEXTS,
        verifications::TEXTS,
    ];
    files.into_iter().flatten()
}

/// The statement of a text in its normal form.
pub fn find(normal: &str) -> Option<&'static Statement> {
    static KNOWN: LazyLock<HashMap<String, &'static Statement>> =
        LazyLock::new(|| all().map(|known| (normalise(known.text), known)).collect());
    KNOWN.get(normal).copied()
}

#[test]
fn every_statement_has_a_name_and_a_text_of_its_own() {
    let texts: HashMap<String, &str> = all().map(|known| (normalise(known.text), known.name)).collect();
    let names: HashMap<&str, &str> = all().map(|known| (known.name, known.text)).collect();
    assert_eq!((texts.len(), names.len()), (all().count(), all().count()));
}

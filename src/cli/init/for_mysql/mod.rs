//! `schema.sql` and `schema_after.sql` for a target that is MySQL or MariaDB.
//!
//! What is written runs on MySQL from 5.7 on and on MariaDB, except where a comment names what one of them lacks. From
//! a MySQL the types are the source's own; for a PostgreSQL and for items [`columns`] finds one that holds every value,
//! or says which it does not. Texts are then compared by their characters (`utf8mb4_bin`), but for blanks at the end.

pub(super) mod columns;
pub(super) mod from_mysql;
pub(super) mod from_postgres;

use super::names::one_line;
use crate::database::mysql::connect::quoted;

/// The bytes that a key of InnoDB has room for, of all its columns.
pub(super) const KEY_BYTES_MAX: u32 = 3072;
/// Bytes of a character.
pub(super) const CHARACTER_BYTES: u32 = 4;

/// How a table is told that its texts are those of PostgreSQL.
pub(super) const BY_CHARACTERS: &str = " DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin";

/// A table as `CREATE TABLE` has it.
#[derive(Debug)]
pub(super) struct Table {
    pub name: String,
    /// Definitions of columns and of keys, each with what is to be known of it.
    pub lines: Vec<(String, String)>,
    /// What follows the parentheses, from the engine on.
    pub options: String,
}

impl Table {
    pub(super) fn render(&self) -> String {
        let last = self.lines.len().saturating_sub(1);
        let comma = |place: usize| if place == last { "" } else { "," };
        let width = self.lines.iter().map(|(definition, _)| definition.chars().count() + 1).max();
        let width = width.unwrap_or_default().min(72);
        let mut text = format!("\nCREATE TABLE {} (\n", quoted(&self.name));
        for (place, (definition, note)) in self.lines.iter().enumerate() {
            let definition = format!("{definition}{}", comma(place));
            let note = one_line(note);
            let line = if note.is_empty() { definition } else { format!("{definition:width$}  -- {note}") };
            text.push_str(&format!("    {line}\n"));
        }
        text.push_str(&format!(") ENGINE=InnoDB{};\n", self.options));
        text
    }
}

/// How `schema.sql` begins.
pub(super) fn schema_header(database: &str) -> String {
    format!(
        "-- The tables of {} for MySQL or MariaDB, written by `cutover init`.\n\
         -- Read it, change it, and run it in the target database before `cutover run`. Indexes and foreign keys are in\n\
         -- schema_after.sql, which cutover runs itself when the copy is complete.\n\
         SET NAMES utf8mb4;\nSET time_zone = '+00:00';\n",
        one_line(database)
    )
}

/// How `schema_after.sql` begins.
pub(super) fn after_header(database: &str) -> String {
    format!(
        "-- Indexes and foreign keys of {} for MySQL or MariaDB, written by `cutover init`.\n\
         -- cutover runs this file once, when the copy is complete ([target] after_copy); do not run it before.\n",
        one_line(database)
    )
}

/// Names as a list in SQL.
pub(super) fn quoted_list<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    names.into_iter().map(quoted).collect::<Vec<_>>().join(", ")
}

/// What a foreign key does; InnoDB has no SET DEFAULT.
pub(super) fn rules(on_delete: &str, on_update: &str) -> String {
    let rule = |event: &str, action: &str| match action {
        "CASCADE" | "SET NULL" => format!(" ON {event} {action}"),
        _ => String::new(),
    };
    format!("{}{}", rule("DELETE", on_delete), rule("UPDATE", on_update))
}

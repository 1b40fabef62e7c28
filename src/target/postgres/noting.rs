//! What was found of each row, for whoever wants that noted (`[verify] log = "rows"`).
//!
//! The statement that compares rows notes them, at the same moment; a second look at a row notes it again. So what is
//! noted in the end is what was seen last. **Invariant:** nothing is noted where nobody asks for it, and the statements
//! are then what they are without. Deliberately absent: removing rows that a comparison has not met (`state`).

use super::comparison::{Comparison, hash};
use crate::database::postgres::sql;

impl Comparison<'_> {
    /// Where every row is noted: a part of the statement that notes what stands beside each other in `joined`, at the
    /// same moment as it is compared.
    pub(super) fn noting(&self, joined: &str) -> String {
        if self.looks.notes_rows.is_none() {
            return String::new();
        }
        let any: String = self.unequal().iter().map(|(_, differs)| format!(" OR {differs}")).collect();
        let either = self.keys().iter().map(|key| format!("coalesce(r.{key}, g.{key})", key = sql::ident(key)));
        let given: Vec<String> = either.clone().map(|key| format!("{key} IS NOT NULL")).collect();
        // What a contributor leaves whose deletes are not followed is none of its rows.
        let kept = if self.builder.plan.role.keeps() { " AND r.cutover_n IS NOT NULL" } else { "" };
        let found = format!(
            "SELECT {} AS key,\n\
             CASE WHEN g.cutover_v IS NULL THEN 'missing' WHEN r.cutover_n IS NULL THEN 'extra' WHEN false{any} THEN 'different' \
             ELSE 'equal' END AS state,\n\
             CASE WHEN r.cutover_n IS NOT NULL THEN {} END AS ours, CASE WHEN g.cutover_v IS NOT NULL THEN {} END AS theirs\n\
             FROM {joined} WHERE {}{kept}",
            key_of(either.map(|key| format!("{key}::text"))),
            self.record("r"),
            self.record("g"),
            given.join(" AND "),
        );
        format!(",\n{}", self.noted(&found))
    }

    /// The digest of all that is compared of a row.
    fn record(&self, side: &str) -> String {
        hash(&format!("ROW({})::text", sql::list(&format!("{side}."), self.columns())))
    }

    /// The pipeline, the source's table and the target's, as noted rows have them.
    fn place(&self) -> [String; 3] {
        let plan = self.builder.plan;
        [self.builder.pipeline, &plan.source.table.table, &plan.target.name.to_string()].map(sql::literal)
    }

    /// Notes rows that were `found`: (key, state, digest of what is made, digest of what is there).
    fn noted(&self, found: &str) -> String {
        let [pipeline, source, target] = self.place();
        let number = self.looks.notes_rows.unwrap_or_default();
        format!(
            "noted AS (INSERT INTO cutover.migration_rows AS n \
               (pipeline, source_table, target, key, state, source_checksum, target_checksum, pass)\n\
             SELECT DISTINCT ON (f.key) {pipeline}, {source}, {target}, f.key, f.state, f.ours, f.theirs, {number}::bigint\n\
             FROM ({found}) f ORDER BY f.key\n\
             ON CONFLICT (pipeline, source_table, target, md5(key)) DO UPDATE SET state = excluded.state, \
               source_checksum = excluded.source_checksum, target_checksum = excluded.target_checksum, \
               pass = greatest(n.pass, excluded.pass), \
               compared_at = clock_timestamp())"
        )
    }

    /// Where every row is noted: a part of the statement that forgets what was noted of keys in `w` that neither side
    /// has any more.
    pub(super) fn forgetting(&self, shown: &str) -> String {
        if self.looks.notes_rows.is_none() {
            return String::new();
        }
        let [pipeline, source, target] = self.place();
        let named = key_of(self.keys().iter().map(|key| format!("w.{}::text", sql::ident(key))));
        format!(
            ",\nforgotten AS (DELETE FROM cutover.migration_rows m USING w\n\
             WHERE m.pipeline = {pipeline} AND m.source_table = {source} AND m.target = {target} AND md5(m.key) = md5({named})\n\
             AND NOT EXISTS (SELECT FROM r WHERE {}) AND NOT EXISTS (SELECT FROM ({shown}) g WHERE {}))",
            self.builder.same_key("w", "r"),
            self.builder.same_key("w", "g"),
        )
    }

    /// Where every row is noted, what begins a statement that lists the first of `from` as rows that no source row
    /// makes.
    pub(super) fn noting_extras(&self, from: &str, rows_max: usize) -> String {
        if self.looks.notes_rows.is_none() {
            return String::new();
        }
        let found = format!(
            "SELECT {} AS key, 'extra' AS state, NULL::bigint AS ours, {} AS theirs\n\
             FROM (SELECT * FROM {from} ORDER BY {} LIMIT {rows_max}) g",
            key_of(self.keys().iter().map(|key| format!("g.{}::text", sql::ident(key)))),
            self.record("g"),
            self.builder.keys("g."),
        );
        format!("WITH {}\n", self.noted(&found))
    }
}

/// A key as noted rows have it: a JSON array of these texts.
fn key_of(texts: impl Iterator<Item = String>) -> String {
    format!("pg_catalog.to_json(ARRAY[{}]::text[])::text", texts.collect::<Vec<_>>().join(", "))
}

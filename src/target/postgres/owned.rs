//! The SQL of rows that know which source row they are of (rule 37).
//!
//! Where two source rows may have one key at the target, `cutover_owner` has a digest of the source key of the one that
//! has the row. A live fact of another is refused as long as that row is there; a dead fact of another removes nothing.
//! Tombstones are of a key and an owner, so that the delete of one row keeps nothing of another out. An owner of 0 is
//! not known: whoever comes takes the row. So is one whose row is older than the source table's fence: it was not met
//! since the table was emptied, or since its new copy began.
//!
//! Which of several source rows has the row is decided by what came first; all of this is one writer's work at a time:
//! the lane is the whole target's.

use sha2::{Digest, Sha256};

use super::{
    statement::{Builder, Counted, Part},
    tombstones,
};
use crate::{
    database::postgres::{
        PgError, Session,
        catalog::{OWNER_COLUMN, VERSION_COLUMN},
        sql,
    },
    model::{Coverage, Plan},
};

/// The digest of a source row's key, as its records have it; never 0.
pub(super) fn owner(key: &[u8]) -> i64 {
    let digest = Sha256::digest(key);
    let number = digest.iter().take(8).fold(0i64, |number, byte| number << 8 | i64::from(*byte));
    if number == 0 { 1 } else { number }
}

impl Builder<'_> {
    /// `, cutover_owner`, where rows have owners.
    pub(super) fn owner_column(&self) -> String {
        if self.plan.is_owned() { format!(", {OWNER_COLUMN}") } else { String::new() }
    }

    /// An image's owner, as a fact's `cutover_w`.
    pub(super) fn image_owner(&self) -> &'static str {
        if self.plan.is_owned() { ", i.w AS cutover_w" } else { "" }
    }

    /// `, cutover_w`: a fact's owner.
    pub(super) fn fact_owner(&self) -> &'static str {
        if self.plan.is_owned() { ", cutover_w" } else { "" }
    }

    /// That the row of this name is this owner's, or that it is not known whose it is.
    pub(super) fn own(&self, row: &str, owner: &str) -> String {
        if self.plan.is_owned() { format!(" AND {row}.{OWNER_COLUMN} IN (0, {owner})") } else { String::new() }
    }

    /// That another owner's row is in the way.
    fn held(&self, row: &str, owner: &str) -> String {
        format!(
            "{row}.{OWNER_COLUMN} NOT IN (0, {owner}) AND {row}.{VERSION_COLUMN} >= coalesce((SELECT z.version FROM \
             cutover.fences z WHERE z.pipeline = {pipeline} AND z.source_table = {name}), 0)",
            pipeline = sql::literal(self.pipeline),
            name = sql::literal(&self.plan.source.table.to_string()),
        )
    }

    /// As [`Self::live`]; live facts of which another owner has the row count as clashes.
    pub(super) fn live_owned(&self) -> String {
        let (keys, names) = (self.keys(""), sql::list("", self.names()));
        let partial = self.plan.coverage == Coverage::Partial;
        let facts = if partial {
            let names = sql::list("f.", self.names());
            format!(
                "{},\nl AS MATERIALIZED (SELECT {names}, cutover_v, cutover_w FROM f WHERE NOT cutover_dead AND {})",
                self.newest_rows(Part::Live),
                self.not_buried(|key| format!("f.{}", sql::ident(key)), "f.cutover_v", "f.cutover_w"),
            )
        } else {
            format!(
                "l AS MATERIALIZED (SELECT {}, i.v AS cutover_v, i.w AS cutover_w\nFROM {}\nWHERE {})",
                self.named_values(),
                self.rows(Part::Live),
                self.not_buried(|key| self.value(key, None), "i.v", "i.w"),
            )
        };
        let (clashes, given) = match self.plan.coverage {
            Coverage::Total => ("0", "NULL::bigint"),
            Coverage::Filter => ("0", "0::bigint"),
            Coverage::Partial => (
                "(SELECT count(*) FROM f WHERE cutover_clashes > 1)",
                "(SELECT count(*) FROM f WHERE NOT cutover_dead)",
            ),
        };
        let Counted { returning, inserted, updated, from } = self.counted();
        format!(
            "WITH {facts},\n\
             u AS (INSERT INTO {target} AS g ({mapped}, {VERSION_COLUMN}, {OWNER_COLUMN}){overriding}\n\
             SELECT {names}, cutover_v, cutover_w FROM l\n\
             ON CONFLICT ({keys}) DO UPDATE SET {set}, {OWNER_COLUMN} = excluded.{OWNER_COLUMN}\n\
             WHERE g.{VERSION_COLUMN} <= excluded.{VERSION_COLUMN} AND NOT ({taken}) RETURNING {returning})\n\
             SELECT {inserted}, {updated}, {clashes} + (SELECT count(*) FROM l JOIN {target} g ON {same} WHERE {held}), {given}\n\
             FROM {from}",
            target = self.target(),
            mapped = self.mapped(),
            overriding = self.overriding(),
            set = self.assignments(),
            taken = self.held("g", &format!("excluded.{OWNER_COLUMN}")),
            same = self.same_key("g", "l"),
            held = self.held("g", "l.cutover_w"),
        )
    }

    /// That no tombstone of the owner's is newer.
    fn not_buried(&self, value: impl Fn(&str) -> String, version: &str, owner: &str) -> String {
        let same = self.plan.target.key.iter().map(|key| format!("t.{} = {}", sql::ident(key), value(key)));
        format!(
            "NOT EXISTS (SELECT FROM {} t WHERE {} AND t.{VERSION_COLUMN} > {version}{})",
            self.tombstones(),
            same.collect::<Vec<_>>().join(" AND "),
            self.own("t", owner),
        )
    }

    /// The places of live images that claim a key of which another source row has the row, or, where none has, a newer
    /// image claims it as well. The set's dead facts are applied.
    pub(super) fn clashes_owned(&self) -> String {
        let live = match self.plan.coverage {
            Coverage::Total | Coverage::Filter => "",
            Coverage::Partial => "NOT i.dead AND ",
        };
        let keys = self.plan.target.key.iter();
        let same: Vec<String> = keys.map(|key| format!("g.{} = {}", sql::ident(key), self.value(key, None))).collect();
        let there =
            |which: &str| format!("EXISTS (SELECT FROM {} g WHERE {} AND {which})", self.target(), same.join(" AND "));
        format!(
            "SELECT DISTINCT c.n FROM (SELECT i.n, {held} AS held,\n\
             row_number() OVER (PARTITION BY {keys} ORDER BY {own} DESC, i.v DESC, i.n) AS place\n\
             FROM {rows}\nWHERE {live}{fresh}) c WHERE c.held OR c.place > 1",
            held = there(&self.held("g", "i.w")),
            own = there(&format!("g.{OWNER_COLUMN} = i.w")),
            keys = self.key_values().join(", "),
            rows = self.rows(Part::Clashes),
            fresh = self.not_buried(|key| self.value(key, None), "i.v", "i.w"),
        )
    }
}

const TOMBSTONE_KEY: &str = "
SELECT c.conname::text, EXISTS (SELECT FROM pg_catalog.pg_attribute a
  WHERE a.attrelid = c.conrelid AND a.attname = $2 AND NOT a.attisdropped)
FROM pg_catalog.pg_constraint c WHERE c.conrelid = $1::text::regclass AND c.contype = 'p'";

/// Gives the target and its tombstones the owner's column where the plan's rows have owners, and takes it away where
/// they have none any more: it would not be kept up. Whose the rows are that are there is not known.
pub(super) async fn prepare(session: &Session, plan: &Plan) -> Result<(), PgError> {
    let tombstones = sql::table(&tombstones::table(&plan.target.name));
    let Some(row) = session.client.query_opt(TOMBSTONE_KEY, &[&tombstones, &OWNER_COLUMN]).await? else {
        return Err(PgError::Protocol(format!("the table {tombstones} has lost its primary key")));
    };
    let (constraint, has_owner): (String, bool) = (row.try_get(0)?, row.try_get(1)?);
    let (constraint, keys) = (sql::ident(&constraint), sql::list("", plan.target.key.iter().map(String::as_str)));
    let change = match (plan.is_owned(), has_owner) {
        (true, true) | (false, false) => None,
        (true, false) => Some(format!(
            "ALTER TABLE {tombstones} DROP CONSTRAINT {constraint}, ADD COLUMN {OWNER_COLUMN} bigint NOT NULL DEFAULT 0, \
             ADD PRIMARY KEY ({keys}, {OWNER_COLUMN})"
        )),
        (false, true) => Some(format!(
            "BEGIN; DELETE FROM {tombstones} t USING {tombstones} n WHERE {same} AND (n.{VERSION_COLUMN}, n.{OWNER_COLUMN}) > \
             (t.{VERSION_COLUMN}, t.{OWNER_COLUMN}); ALTER TABLE {tombstones} DROP CONSTRAINT {constraint}, \
             DROP COLUMN {OWNER_COLUMN}, ADD PRIMARY KEY ({keys}); COMMIT",
            same = plan
                .target
                .key
                .iter()
                .map(|key| format!("t.{key} = n.{key}", key = sql::ident(key)))
                .collect::<Vec<_>>()
                .join(" AND "),
        )),
    };
    if let Some(change) = change {
        session.client.batch_execute(&change).await?;
    }
    if plan.is_owned() {
        tombstones::add_version(session, &plan.target.name, OWNER_COLUMN).await
    } else {
        forget_owners(session, plan).await
    }
}

/// Owners that are not kept up say nothing.
async fn forget_owners(session: &Session, plan: &Plan) -> Result<(), PgError> {
    if tombstones::has_column(session, &plan.target.name, OWNER_COLUMN).await? {
        let drop = format!("ALTER TABLE {} DROP COLUMN IF EXISTS {OWNER_COLUMN}", sql::table(&plan.target.name));
        session.client.batch_execute(&drop).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_are_told_apart_by_their_source_keys_and_are_never_unknown() {
        assert_ne!(owner(br#"{"email":"A"}"#), owner(br#"{"email":"a"}"#));
        assert_eq!(owner(br#"{"id":1}"#), owner(br#"{"id":1}"#));
        assert_ne!(owner(b""), 0);
    }
}

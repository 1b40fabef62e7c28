//! The SQL of sets: the rows that one source row makes, none among them (rule 9).
//!
//! The newest image of a source row says all of its set. What was there and is not any more goes, whoever wrote it;
//! what is there is written. A set's version is remembered by its parent's key, also of an empty set and of a deleted
//! parent: images that are older do nothing. A removal by Time to Live that the `SELECT` passes over is no image: the
//! set stays.

use super::{
    statement::{Builder, Counted, Part, key_type},
    tombstones,
};
use crate::{
    database::postgres::{PgError, Session, catalog::VERSION_COLUMN, sql},
    model::{TTL_COLUMN, TableName, TargetTable, Version},
};

/// Makes the statements of a set.
pub(super) struct SetOf<'a> {
    pub builder: &'a Builder<'a>,
    /// The target's columns that name the source row.
    pub parent: &'a [String],
}

/// The table of a target's set versions.
pub(super) fn table(target: &TableName) -> TableName {
    tombstones::beside("sets", target)
}

/// Makes the table of set versions where it is missing.
pub(super) async fn prepare(session: &Session, target: &TargetTable, parent: &[String]) -> Result<(), PgError> {
    let columns = parent.iter().filter_map(|name| target.column(name)).map(tombstones::key_column);
    let create = format!(
        "CREATE TABLE IF NOT EXISTS {} ({}, {VERSION_COLUMN} bigint NOT NULL, PRIMARY KEY ({}))",
        sql::table(&table(&target.name)),
        columns.collect::<Vec<_>>().join(", "),
        sql::list("", parent.iter().map(String::as_str))
    );
    session.client.batch_execute(&create).await?;
    Ok(())
}

/// Forgets the versions, older than `version`, of sets without rows.
pub(super) async fn collect(
    session: &Session,
    target: &TableName,
    parent: &[String],
    version: Version,
) -> Result<u64, PgError> {
    let same: Vec<String> = parent.iter().map(|name| format!("g.{name} = s.{name}", name = sql::ident(name))).collect();
    let delete = format!(
        "DELETE FROM {} s WHERE s.{VERSION_COLUMN} < $1 AND NOT EXISTS (SELECT FROM {} g WHERE {})",
        sql::table(&table(target)),
        sql::table(target),
        same.join(" AND ")
    );
    Ok(session.client.execute(&delete, &[&version]).await?)
}

impl SetOf<'_> {
    pub fn part(&self, part: Part) -> Option<String> {
        match part {
            Part::Dead => Some(self.dead()),
            Part::Live => Some(self.live()),
            Part::Replace => Some(self.replace()),
            Part::Late => Some(self.late()),
            Part::Clashes => Some(self.builder.clashes()),
            Part::Gone | Part::Show | Part::Unmatched => None,
            Part::Orphans(key) => {
                let key = self.builder.plan.target.foreign_keys.get(key)?;
                self.builder.orphans(key)
            }
        }
    }

    fn sets(&self) -> String {
        sql::table(&table(&self.builder.plan.target.name))
    }

    fn parents(&self, prefix: &str) -> String {
        sql::list(prefix, self.parent.iter().map(String::as_str))
    }

    /// The parent's key in an image `i`, by column.
    fn named_parents(&self) -> Vec<(&str, String)> {
        let plan = self.builder.plan;
        let columns = self.parent.iter().filter_map(|name| plan.target.column(name));
        let pairs = columns.zip(plan.key_reads.iter().flatten());
        pairs.map(|(column, place)| (column.name.as_str(), format!("i.c{place}::{}", key_type(column)))).collect()
    }

    fn same_parent(&self, a: &str, b: &str) -> String {
        let same = |name: &String| format!("{a}.{name} = {b}.{name}", name = sql::ident(name));
        self.parent.iter().map(same).collect::<Vec<_>>().join(" AND ")
    }

    /// The newest image of each parent, `a`, unless a newer one was applied; and the rows of those that are live, `o`.
    fn newest(&self, part: Part) -> String {
        let (builder, parents) = (self.builder, self.parents(""));
        let named: Vec<String> =
            self.named_parents().iter().map(|(name, value)| format!("{value} AS {}", sql::ident(name))).collect();
        let mut given: Vec<String> =
            self.named_parents().iter().map(|(_, value)| format!("{value} IS NOT NULL")).collect();
        given.extend(self.passed_over());
        let images = builder.images(part);
        format!(
            "b AS MATERIALIZED (SELECT DISTINCT ON ({parents}) {named}, i.v AS cutover_v, i.dead AS cutover_dead, i.n AS cutover_n\n\
             FROM {images} WHERE {given} ORDER BY {parents}, cutover_v DESC, cutover_dead),\n\
             a AS MATERIALIZED (SELECT * FROM b WHERE NOT EXISTS (SELECT FROM {sets} s WHERE {same}\n\
             AND s.{VERSION_COLUMN} > b.cutover_v)),\n\
             o AS MATERIALIZED (SELECT {columns}, i.v AS cutover_v\n\
             FROM (SELECT i.* FROM {images} JOIN a ON a.cutover_n = i.n WHERE NOT a.cutover_dead OFFSET 0) i,\n{made})",
            named = named.join(", "),
            given = given.join(" AND "),
            sets = self.sets(),
            same = self.same_parent("s", "b"),
            columns = builder.named_values(),
            made = builder.made(),
        )
    }

    /// Leaves out removals by Time to Live that the `SELECT` makes nothing of, if it looks at them.
    fn passed_over(&self) -> Option<String> {
        let place = self.builder.plan.reads.iter().position(|column| column == TTL_COLUMN)?;
        Some(format!("NOT (i.dead AND i.c{place} IS TRUE AND NOT EXISTS (SELECT FROM {}))", self.builder.made()))
    }

    /// What a parent's newest set no longer has, and the set's version. Answers (sets, rows deleted).
    fn dead(&self) -> String {
        let (builder, parents) = (self.builder, self.parents(""));
        format!(
            "WITH {newest},\n\
             s AS (INSERT INTO {sets} AS s ({parents}, {VERSION_COLUMN}) SELECT {parents}, cutover_v FROM a\n\
             ON CONFLICT ({parents}) DO UPDATE SET {VERSION_COLUMN} = excluded.{VERSION_COLUMN}\n\
             WHERE s.{VERSION_COLUMN} < excluded.{VERSION_COLUMN}),\n\
             d AS (DELETE FROM {target} g USING a WHERE {own} AND g.{VERSION_COLUMN} <= a.cutover_v\n\
             AND NOT EXISTS (SELECT FROM o WHERE {kept}) RETURNING 1)\n\
             SELECT (SELECT count(*) FROM a), (SELECT count(*) FROM d)",
            newest = self.newest(Part::Dead),
            sets = self.sets(),
            target = builder.target(),
            own = self.same_parent("g", "a"),
            kept = builder.same_key("o", "g"),
        )
    }

    /// The rows of the newest sets. Answers as [`Builder::live`] does.
    fn live(&self) -> String {
        let builder = self.builder;
        let Counted { returning, inserted, updated, from } = builder.counted();
        format!(
            "WITH {newest},\n\
             u AS (INSERT INTO {target} AS g ({mapped}, {VERSION_COLUMN}){overriding}\n\
             SELECT {values}, o.cutover_v FROM o\n\
             WHERE NOT EXISTS (SELECT FROM {tombstones} t WHERE {buried} AND t.{VERSION_COLUMN} > o.cutover_v)\n\
             ON CONFLICT ({keys}) DO UPDATE SET {set}\n\
             WHERE g.{VERSION_COLUMN} <= excluded.{VERSION_COLUMN} RETURNING {returning})\n\
             SELECT {inserted}, {updated}, 0::bigint, (SELECT count(*) FROM o) FROM {from}",
            newest = self.newest(Part::Live),
            target = builder.target(),
            mapped = builder.mapped(),
            overriding = builder.overriding(),
            values = sql::list("o.", builder.names()),
            // A release that kept no set versions has left tombstones instead.
            tombstones = builder.tombstones(),
            buried = builder.same_key("t", "o"),
            keys = builder.keys(""),
            set = builder.assignments(),
        )
    }

    /// See [`Builder::replace`].
    fn replace(&self) -> String {
        let facts = format!("{},\nl AS MATERIALIZED (SELECT * FROM o)", self.newest(Part::Replace));
        self.builder.replaced(&facts, (VERSION_COLUMN, &format!("g.{VERSION_COLUMN}")), &[])
    }

    /// The places of live images whose parent has a newer set.
    fn late(&self) -> String {
        let same: Vec<String> =
            self.named_parents().iter().map(|(name, value)| format!("s.{} = {value}", sql::ident(name))).collect();
        format!(
            "SELECT i.n FROM {images}\nWHERE NOT i.dead AND EXISTS (SELECT FROM {sets} s WHERE {same} AND s.{VERSION_COLUMN} > i.v)",
            images = self.builder.images(Part::Late),
            sets = self.sets(),
            same = same.join(" AND "),
        )
    }
}

//! The SQL that applies a plan: a source row's images go in as arrays, the user's `SELECT` runs over
//! them, and the newest fact of each target key wins.
//!
//! A *dead* fact says that a key is gone as of its version: it leaves a tombstone and removes an older row. A *live*
//! fact is a row: it is written unless the row or the tombstone there is newer. Dead facts go first, in a statement of
//! their own, so that a unique value may move between rows of one batch (rule 5).
//!
//! Parameters: `$1` the versions, where [`is_marked`] whether the image is dead, where rows have owners whose the
//! image is, then one array of texts for each source column that the `SELECT` reads. Text casts to every type, and is
//! as fast as typed arrays.

use crate::{
    database::postgres::{catalog::VERSION_COLUMN, sql},
    model::{ColumnType, Coverage, Identity, Plan, PlanRole, TargetColumn},
};

use super::{merged::Merged, owned::ALL_FREED, sets::SetOf, tombstones};

/// The parts of a plan's work, each a statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Part {
    Dead,
    /// Dead facts of which the source logs no more than the key.
    Gone,
    Replace,
    Live,
    /// Rows that nothing hides any more.
    Show,
    /// Rows that a filter leaves out, of a copy.
    Unmatched,
    Clashes,
    /// Rows that the target has newer.
    Late,
    /// Rows without the parent that the plan's foreign key of this number asks for.
    Orphans(usize),
}

/// Whether a part of a plan is told of each image whether it is dead; else all its images are of one kind.
pub fn is_marked(coverage: Coverage, part: Part) -> bool {
    match coverage {
        Coverage::Total => false,
        Coverage::Filter => matches!(part, Part::Dead | Part::Gone),
        Coverage::Partial => true,
    }
}

/// Makes the statements of one plan, for source rows with columns of these types.
#[derive(Debug, Clone, Copy)]
pub struct Builder<'a> {
    pub plan: &'a Plan,
    /// Types of the columns that the plan reads, in its order.
    pub types: &'a [ColumnType],
    pub pipeline: &'a str,
    /// For a replay, which is behind what the target has.
    pub replays: bool,
}

impl Builder<'_> {
    /// The statement of a part; none if the plan has no such part.
    pub(super) fn part(&self, part: Part) -> Option<String> {
        if self.plan.target.elsewhere {
            return self.facts(part);
        }
        match &self.plan.role {
            PlanRole::Whole => self.whole(part),
            PlanRole::Share(share) => Merged { builder: self, share }.part(part),
            PlanRole::Set { parent } => SetOf { builder: self, parent }.part(part),
        }
    }

    fn whole(&self, part: Part) -> Option<String> {
        match part {
            Part::Dead => Some(self.dead()),
            Part::Gone => self.gone(),
            Part::Replace => Some(self.replace()),
            Part::Live if self.plan.is_owned() => Some(self.live_owned()),
            Part::Live => Some(self.live()),
            Part::Show => None,
            Part::Unmatched => self.unmatched(),
            Part::Clashes if self.plan.is_owned() => Some(self.clashes_owned()),
            Part::Clashes => Some(self.clashes()),
            Part::Late => Some(self.late()),
            Part::Orphans(key) => self.plan.target.foreign_keys.get(key).and_then(|key| self.orphans(key)),
        }
    }

    /// The images `i`: `i.v`, `i.n` (the image's place, from 1), a column `c0`, `c1`, … for each that is read,
    /// where this part is told, `i.dead`, and, where rows have owners, `i.w`. Images older than the table's TRUNCATE
    /// fence are left out.
    pub(super) fn images(&self, part: Part) -> String {
        let marked = is_marked(self.plan.coverage, part);
        let mut arrays = vec!["$1::bigint[]".to_owned()];
        let mut aliases = vec!["v".to_owned()];
        if marked {
            arrays.push("$2::boolean[]".into());
            aliases.push("dead".into());
        }
        if self.plan.is_owned() {
            arrays.push(format!("${}::bigint[]", arrays.len() + 1));
            aliases.push("w".into());
        }
        let first = arrays.len() + 1;
        let mut values = Vec::new();
        for (index, column_type) in self.types.iter().enumerate() {
            arrays.push(format!("${}::text[]", first + index));
            aliases.push(format!("c{index}"));
            values.push(format!(", {} AS c{index}", cast(&format!("x.c{index}"), column_type)));
        }
        aliases.push("n".into());
        // A value that is dear to parse is parsed once, however often the SELECT names it.
        let dear = self.types.iter().any(|column_type| match column_type {
            ColumnType::Json | ColumnType::Bytes | ColumnType::Named(_) => true,
            ColumnType::SmallInt
            | ColumnType::Integer
            | ColumnType::BigInt
            | ColumnType::Numeric { .. }
            | ColumnType::Real
            | ColumnType::Double
            | ColumnType::Text
            | ColumnType::Date
            | ColumnType::Timestamp
            | ColumnType::TimestampTz
            | ColumnType::Interval => false,
        });
        let fenced = format!(
            "\n  WHERE x.v >= coalesce((SELECT z.version FROM cutover.fences z WHERE z.pipeline = {pipeline} \
             AND z.source_table = {name}), x.v)",
            pipeline = sql::literal(self.pipeline),
            name = sql::literal(&self.plan.source.table.to_string()),
        );
        format!(
            "(SELECT x.v, x.n{dead}{owner}{values}\n  FROM unnest({arrays}) WITH ORDINALITY x({aliases}){fenced}{fence}) i",
            fenced = if self.plan.role.keeps() { "" } else { &fenced },
            dead = if marked { ", x.dead" } else { "" },
            owner = if self.plan.is_owned() { ", x.w" } else { "" },
            values = values.concat(),
            arrays = arrays.join(", "),
            aliases = aliases.join(", "),
            fence = if dear { " OFFSET 0" } else { "" },
        )
    }

    /// The rows `o` that the `SELECT` makes of the images `i`.
    pub(super) fn rows(&self, part: Part) -> String {
        format!("{},\n{}", self.images(part), self.made())
    }

    /// What the `SELECT` makes of an image `i`, as `o`.
    pub(super) fn made(&self) -> String {
        let names = sql::list("", self.plan.reads.iter().map(String::as_str));
        let columns: Vec<String> = (0..self.types.len()).map(|index| format!("i.c{index}")).collect();
        let (names, columns) = if columns.is_empty() {
            ("cutover_row".to_owned(), "true".to_owned())
        } else {
            (names, columns.join(", "))
        };
        format!(
            "LATERAL (WITH {table} ({names}) AS (SELECT {columns}) SELECT * FROM (\n{select}\n) q) o",
            table = sql::ident(&self.plan.source.table.table),
            select = self.plan.select,
        )
    }

    /// Removes what the target has of copied rows that the filter leaves out; after the live facts, which leave nothing
    /// that is older than its image. No tombstone is needed: the stream brings every change from before in its order.
    /// Answers how many rows went. None for a plan that is no filter, or whose keys cannot be told without its
    /// `SELECT`.
    pub fn unmatched(&self) -> Option<String> {
        let keys = self.copied_keys()?;
        Some(format!(
            "WITH d AS (DELETE FROM {target} g USING (SELECT {keys}, i.v{owner} FROM {images}) f\n\
             WHERE {same} AND g.{VERSION_COLUMN} < f.v{own} RETURNING {freed})\nSELECT count(*){all_freed} FROM d",
            target = self.target(),
            owner = self.image_owner(),
            images = self.images(Part::Unmatched),
            same = self.same_key("g", "f"),
            own = self.own("g", "f.cutover_w"),
            freed = self.freed("g"),
            all_freed = if self.plan.is_owned() { format!(", {ALL_FREED}") } else { String::new() },
        ))
    }

    /// The target's keys as a filter's images have them, without its `SELECT`.
    pub(super) fn copied_keys(&self) -> Option<String> {
        let places = match self.plan.coverage {
            Coverage::Filter => self.plan.key_reads.as_ref()?,
            Coverage::Total | Coverage::Partial => return None,
        };
        let named = |(key, place): (&String, &usize)| {
            let target = self.plan.target.column(key)?;
            Some(format!("i.c{place}::{} AS {}", key_type(target), sql::ident(key)))
        };
        let keys: Option<Vec<String>> = self.plan.target.key.iter().zip(places).map(named).collect();
        Some(keys?.join(", "))
    }

    /// A result column as it goes into the target.
    pub(super) fn value(&self, name: &str, cast: Option<&String>) -> String {
        let column = sql::ident(name);
        match (self.plan.target.key.iter().any(|key| key == name), self.plan.target.column(name)) {
            (true, Some(target)) => format!("o.{column}::{}", key_type(target)),
            (true, None) | (false, _) => {
                cast.map_or_else(|| format!("o.{column}"), |cast| format!("o.{column}::{cast}"))
            }
        }
    }

    pub(super) fn values(&self) -> String {
        let columns = self.plan.columns.iter();
        let values: Vec<String> = columns.map(|column| self.value(&column.name, column.cast.as_ref())).collect();
        values.join(", ")
    }

    pub(super) fn keys(&self, prefix: &str) -> String {
        sql::list(prefix, self.plan.target.key.iter().map(String::as_str))
    }

    pub(super) fn key_values(&self) -> Vec<String> {
        self.plan.target.key.iter().map(|key| self.value(key, None)).collect()
    }

    pub(super) fn mapped(&self) -> String {
        sql::list("", self.plan.columns.iter().map(|column| column.name.as_str()))
    }

    /// `a."k" = b."k" AND …`
    pub(super) fn same_key(&self, a: &str, b: &str) -> String {
        let same = |key: &String| format!("{a}.{key} = {b}.{key}", key = sql::ident(key));
        self.plan.target.key.iter().map(same).collect::<Vec<_>>().join(" AND ")
    }

    pub(super) fn tombstones(&self) -> String {
        sql::table(&tombstones::table(&self.plan.target.name))
    }

    pub(super) fn target(&self) -> String {
        sql::table(&self.plan.target.name)
    }

    pub(super) fn overriding(&self) -> &'static str {
        let always = |name: &str| self.plan.target.column(name).is_some_and(|c| c.identity == Some(Identity::Always));
        if self.plan.columns.iter().any(|column| always(&column.name)) { " OVERRIDING SYSTEM VALUE" } else { "" }
    }

    /// Of dead and live images together: `f`, the newest fact of each key; live beats dead at the same version.
    pub(super) fn newest(&self, part: Part, columns: &str, clashes: &str) -> String {
        let keys = self.keys("");
        let null = self.key_values().iter().map(|key| format!("{key} IS NULL")).collect::<Vec<_>>().join(" OR ");
        format!(
            "r AS (SELECT {columns}, i.v AS cutover_v, i.dead AS cutover_dead{owner}{place}\nFROM {rows}\n\
             WHERE NOT (i.dead AND ({null}))),\n\
             f AS MATERIALIZED (SELECT DISTINCT ON ({keys}{whose}) r.*{clashes}\n\
             FROM r ORDER BY {keys}{whose}, cutover_v DESC, cutover_dead)",
            owner = self.image_owner(),
            place = if self.plan.is_owned() { ", i.n AS cutover_n" } else { "" },
            whose = self.fact_owner(),
            rows = self.rows(part),
        )
    }

    /// As [`Self::newest`], with every column; `cutover_clashes` counts the live facts that claim a key.
    pub(super) fn newest_rows(&self, part: Part) -> String {
        let count = format!(
            ", count(*) FILTER (WHERE NOT cutover_dead) OVER (PARTITION BY {}{}) AS cutover_clashes",
            self.keys(""),
            self.fact_owner()
        );
        self.newest(part, &self.named_values(), &count)
    }

    pub(super) fn named_values(&self) -> String {
        let named = |name: &str, cast: Option<&String>| format!("{} AS {}", self.value(name, cast), sql::ident(name));
        let columns = self.plan.columns.iter().map(|column| named(&column.name, column.cast.as_ref()));
        columns.collect::<Vec<_>>().join(", ")
    }

    pub(super) fn named_keys(&self) -> String {
        let keys = self.plan.target.key.iter().map(|key| format!("{} AS {}", self.value(key, None), sql::ident(key)));
        keys.collect::<Vec<_>>().join(", ")
    }

    /// Dead facts, one for each key: what makes them, and what they are then called, as `f`.
    pub(super) fn dead_facts(&self) -> (String, &'static str) {
        match self.plan.coverage {
            Coverage::Total => {
                let keys = self.key_values();
                let given: Vec<String> = keys.iter().map(|key| format!("{key} IS NOT NULL")).collect();
                let places: Vec<String> = (1..=keys.len()).map(|place| place.to_string()).collect();
                let facts = format!(
                    "f AS MATERIALIZED (SELECT {}, max(i.v) AS cutover_v{}\nFROM {}\nWHERE {} GROUP BY {}{})",
                    self.named_keys(),
                    self.image_owner(),
                    self.rows(Part::Dead),
                    given.join(" AND "),
                    places.join(", "),
                    self.fact_owner(),
                );
                (facts, "f")
            }
            Coverage::Filter | Coverage::Partial => {
                let newest = self.newest(Part::Dead, &self.named_keys(), "");
                (format!("{newest},\ne AS MATERIALIZED (SELECT * FROM f WHERE cutover_dead)"), "e AS f")
            }
        }
    }

    /// Remembers in `t` how old at least a row of a dead fact's key must be.
    pub(super) fn bury(&self, from: &str) -> String {
        format!(
            "t AS (INSERT INTO {tombstones} AS t ({keys}{owner}, {VERSION_COLUMN}) SELECT {keys}{whose}, cutover_v FROM {from}\n\
             ON CONFLICT ({keys}{owner}) DO UPDATE SET {VERSION_COLUMN} = excluded.{VERSION_COLUMN}\n\
             WHERE t.{VERSION_COLUMN} < excluded.{VERSION_COLUMN})",
            keys = self.keys(""),
            owner = self.owner_column(),
            whose = self.fact_owner(),
            tombstones = if self.plan.is_owned() { self.owned_tombstones() } else { self.tombstones() },
        )
    }

    /// Dead facts, one for each key, of rows that are known by their key alone before a change: what was deleted, and
    /// what the filter leaves out now, whether it had passed before or not. None for a plan that is no filter, or whose
    /// keys cannot be told without its `SELECT`.
    pub(super) fn gone_facts(&self) -> Option<(String, &'static str)> {
        let keys = self.copied_keys()?;
        let places: Vec<String> = (1..=self.plan.target.key.len()).map(|place| place.to_string()).collect();
        let facts = format!(
            "f AS MATERIALIZED (SELECT {keys}, max(i.v) AS cutover_v{owner}\nFROM {images}\n\
             WHERE i.dead OR NOT EXISTS (SELECT FROM {made}) GROUP BY {places}{whose})",
            owner = self.image_owner(),
            whose = self.fact_owner(),
            images = self.images(Part::Gone),
            made = self.made(),
            places = places.join(", "),
        );
        Some((facts, "f"))
    }

    /// Dead facts: tombstones, and the rows that they remove. Answers (facts, rows deleted).
    pub fn dead(&self) -> String {
        self.remove(self.dead_facts())
    }

    /// As [`Self::dead`], of rows that are known by their key alone.
    pub fn gone(&self) -> Option<String> {
        self.gone_facts().map(|facts| self.remove(facts))
    }

    fn remove(&self, (facts, from): (String, &str)) -> String {
        format!(
            "WITH {facts},\n{bury},\n\
             d AS (DELETE FROM {target} g USING {from} WHERE {same} AND g.{VERSION_COLUMN} <= f.cutover_v{own} RETURNING {freed})\n\
             SELECT (SELECT count(*) FROM {from}), (SELECT count(*) FROM d){all_freed}",
            bury = self.bury(from),
            target = self.target(),
            same = self.same_key("g", "f"),
            own = self.own("g", "f.cutover_w"),
            freed = self.freed("g"),
            all_freed = if self.plan.is_owned() { format!(", (SELECT {ALL_FREED} FROM d)") } else { String::new() },
        )
    }

    /// Live facts. Answers (inserted, updated, keys that several live facts claim, live facts or null
    /// where they are as many as the images).
    pub fn live(&self) -> String {
        let (prelude, facts, version) = match self.plan.coverage {
            Coverage::Total | Coverage::Filter => {
                let facts = format!("SELECT {}, i.v\nFROM {}", self.values(), self.rows(Part::Live));
                (String::new(), facts, "i.v")
            }
            Coverage::Partial => {
                let facts = format!("SELECT {}, o.cutover_v\nFROM f AS o", sql::list("o.", self.names()));
                (format!("{},\n", self.newest_rows(Part::Live)), facts, "o.cutover_v")
            }
        };
        let live = match self.plan.coverage {
            Coverage::Total | Coverage::Filter => "",
            Coverage::Partial => "NOT o.cutover_dead AND ",
        };
        let buried = self
            .plan
            .target
            .key
            .iter()
            .map(|key| format!("t.{} = {}", sql::ident(key), self.value(key, None)))
            .collect::<Vec<_>>()
            .join(" AND ");
        let clashes = match self.plan.coverage {
            Coverage::Total => "0::bigint, NULL::bigint",
            // How many the filter let through is not worth a copy of them all.
            Coverage::Filter => "0::bigint, 0::bigint",
            Coverage::Partial => {
                "(SELECT count(*) FROM f WHERE cutover_clashes > 1), (SELECT count(*) FROM f WHERE NOT cutover_dead)"
            }
        };
        let Counted { returning, inserted, updated, from } = self.counted();
        format!(
            "WITH {prelude}u AS (INSERT INTO {target} AS g ({mapped}, {VERSION_COLUMN}){overriding}\n{facts}\n\
             WHERE {live}NOT EXISTS (SELECT FROM {tombstones} t WHERE {buried} AND t.{VERSION_COLUMN} > {version})\n\
             ON CONFLICT ({keys}) DO UPDATE SET {set}\n\
             WHERE g.{VERSION_COLUMN} <= excluded.{VERSION_COLUMN} RETURNING {returning})\n\
             SELECT {inserted}, {updated}, {clashes} FROM {from}",
            set = self.assignments(),
            target = self.target(),
            mapped = self.mapped(),
            overriding = self.overriding(),
            tombstones = self.tombstones(),
            keys = self.keys(""),
        )
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.plan.columns.iter().map(|column| column.name.as_str())
    }

    /// Every column but the key and `GENERATED ALWAYS AS IDENTITY`, which may not be set.
    pub(super) fn settable(&self) -> impl Iterator<Item = &str> {
        let target = &self.plan.target;
        self.names()
            .filter(|name| !target.key.iter().any(|key| key == name))
            .filter(|name| target.column(name).is_none_or(|column| column.identity != Some(Identity::Always)))
    }

    pub(super) fn assignments(&self) -> String {
        let set = self.settable().map(|name| format!("{name} = excluded.{name}", name = sql::ident(name)));
        let version = std::iter::once(format!("{VERSION_COLUMN} = excluded.{VERSION_COLUMN}"));
        set.chain(version).chain(self.set_owner()).collect::<Vec<_>>().join(", ")
    }

    /// How written rows `u` are told to be new or not.
    pub(super) fn counted(&self) -> Counted {
        if self.plan.target.partitioned {
            // A system column cannot be returned from a partitioned table: what was there before is still
            // what this statement's snapshot shows.
            return Counted {
                returning: self.keys("g."),
                inserted: format!("count(*) - count(g.{VERSION_COLUMN})"),
                updated: format!("count(g.{VERSION_COLUMN})"),
                from: format!("u LEFT JOIN {} g ON {}", self.target(), self.same_key("g", "u")),
            };
        }
        Counted {
            returning: "(g.xmax = 0) AS fresh".into(),
            inserted: "count(*) FILTER (WHERE u.fresh)".into(),
            updated: "count(*) FILTER (WHERE NOT u.fresh)".into(),
            from: "u".into(),
        }
    }
}

/// The pieces of a statement that says how many rows it inserted and updated.
pub(super) struct Counted {
    pub returning: String,
    pub inserted: String,
    pub updated: String,
    pub from: String,
}

/// A value's text as the type that the transform sees.
pub(super) fn cast(text: &str, column_type: &ColumnType) -> String {
    match column_type {
        ColumnType::Bytes => format!("pg_catalog.decode({text}, 'base64')"),
        ColumnType::Text => text.to_owned(),
        ColumnType::SmallInt
        | ColumnType::Integer
        | ColumnType::BigInt
        | ColumnType::Numeric { .. }
        | ColumnType::Real
        | ColumnType::Double
        | ColumnType::Json
        | ColumnType::Date
        | ColumnType::Timestamp
        | ColumnType::TimestampTz
        | ColumnType::Interval
        | ColumnType::Named(_) => format!("{text}::{}", column_type.sql()),
    }
}

/// The type in which a key is compared: with its precision, since storing rounds to it, but without a text's
/// length, since a cast would cut what storing refuses.
pub(super) fn key_type(column: &TargetColumn) -> &str {
    let rounds = ["numeric", "time", "interval"].iter().any(|name| column.cast_sql.starts_with(name));
    if rounds && column.type_sql.contains('(') { &column.type_sql } else { &column.cast_sql }
}

//! The SQL that applies a plan: a source row's images go in as arrays, the user's `SELECT` runs over
//! them, and the newest fact of each target key wins.
//!
//! A *dead* fact says that a key is gone as of its version: it leaves a tombstone and removes an older row. A *live*
//! fact is a row: it is written unless the row or the tombstone there is newer. Dead facts go first, in a statement of
//! their own, so that a unique value may move between rows of one batch (CORRECTNESS rule 5).
//!
//! Parameters: `$1` the versions, where [`is_marked`] `$2` whether the image is dead, then one array of
//! texts for each source column that the `SELECT` reads. Text casts to every type, and is as fast as typed arrays.

use crate::{
    database::postgres::{catalog::VERSION_COLUMN, sql},
    model::{ColumnType, Coverage, ForeignKey, Identity, Plan, TableName, TargetColumn},
};

use super::{tombstones, write::Part};

/// Whether a part of a plan is told of each image whether it is dead; else all its images are of one kind.
pub fn is_marked(coverage: Coverage, part: Part) -> bool {
    match coverage {
        Coverage::Total => false,
        Coverage::Filter => part == Part::Dead,
        Coverage::Partial => true,
    }
}

/// Makes the statements of one plan, for source rows with columns of these types.
#[derive(Debug)]
pub struct Builder<'a> {
    pub plan: &'a Plan,
    /// Types of the columns that the plan reads, in its order.
    pub types: &'a [ColumnType],
    pub pipeline: &'a str,
}

impl Builder<'_> {
    /// The images `i`: `i.v`, `i.n` (the image's place, from 1), a column `c0`, `c1`, … for each that is read and, where
    /// this part is told, `i.dead`. Images older than the table's TRUNCATE fence are left out.
    fn images(&self, part: Part) -> String {
        let marked = is_marked(self.plan.coverage, part);
        let first = if marked { 3 } else { 2 };
        let mut arrays = vec!["$1::bigint[]".to_owned()];
        let mut aliases = vec!["v".to_owned()];
        if marked {
            arrays.push("$2::boolean[]".into());
            aliases.push("dead".into());
        }
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
        format!(
            "(SELECT x.v, x.n{dead}{values}\n  FROM unnest({arrays}) WITH ORDINALITY x({aliases})\n  \
             WHERE x.v >= coalesce((SELECT z.version FROM cutover.fences z WHERE z.pipeline = {pipeline} \
             AND z.source_table = {name}), x.v){fence}) i",
            dead = if marked { ", x.dead" } else { "" },
            values = values.concat(),
            arrays = arrays.join(", "),
            aliases = aliases.join(", "),
            pipeline = sql::literal(self.pipeline),
            name = sql::literal(&self.plan.source.table.to_string()),
            fence = if dear { " OFFSET 0" } else { "" },
        )
    }

    /// The rows `o` that the `SELECT` makes of the images `i`.
    fn rows(&self, part: Part) -> String {
        let names = sql::list("", self.plan.reads.iter().map(String::as_str));
        let columns: Vec<String> = (0..self.types.len()).map(|index| format!("i.c{index}")).collect();
        let (names, columns) = if columns.is_empty() {
            ("cutover_row".to_owned(), "true".to_owned())
        } else {
            (names, columns.join(", "))
        };
        format!(
            "{images},\nLATERAL (WITH {table} ({names}) AS (SELECT {columns}) SELECT * FROM (\n{select}\n) q) o",
            images = self.images(part),
            table = sql::ident(&self.plan.source.table.table),
            select = self.plan.select,
        )
    }

    /// Removes what the target has of copied rows that the filter leaves out; after the live facts, which leave nothing that
    /// is older than its image. No tombstone is needed: the stream brings every change from before in its order. Answers how
    /// many rows went. None for a plan that is no filter, or whose keys cannot be told without its `SELECT`.
    pub fn unmatched(&self) -> Option<String> {
        let places = match self.plan.coverage {
            Coverage::Filter => self.plan.key_reads.as_ref()?,
            Coverage::Total | Coverage::Partial => return None,
        };
        let named = |(key, place): (&String, &usize)| {
            let target = self.plan.target.column(key)?;
            Some(format!("i.c{place}::{} AS {}", key_type(target), sql::ident(key)))
        };
        let keys: Option<Vec<String>> = self.plan.target.key.iter().zip(places).map(named).collect();
        Some(format!(
            "WITH d AS (DELETE FROM {target} g USING (SELECT {keys}, i.v FROM {images}) f\n\
             WHERE {same} AND g.{VERSION_COLUMN} < f.v RETURNING 1)\nSELECT count(*) FROM d",
            target = self.target(),
            keys = keys?.join(", "),
            images = self.images(Part::Unmatched),
            same = self.same_key("g", "f"),
        ))
    }

    /// A result column as it goes into the target.
    fn value(&self, name: &str, cast: Option<&String>) -> String {
        let column = sql::ident(name);
        match (self.plan.target.key.iter().any(|key| key == name), self.plan.target.column(name)) {
            (true, Some(target)) => format!("o.{column}::{}", key_type(target)),
            (true, None) | (false, _) => {
                cast.map_or_else(|| format!("o.{column}"), |cast| format!("o.{column}::{cast}"))
            }
        }
    }

    fn values(&self) -> String {
        let columns = self.plan.columns.iter();
        let values: Vec<String> = columns.map(|column| self.value(&column.name, column.cast.as_ref())).collect();
        values.join(", ")
    }

    fn keys(&self, prefix: &str) -> String {
        sql::list(prefix, self.plan.target.key.iter().map(String::as_str))
    }

    fn key_values(&self) -> Vec<String> {
        self.plan.target.key.iter().map(|key| self.value(key, None)).collect()
    }

    fn mapped(&self) -> String {
        sql::list("", self.plan.columns.iter().map(|column| column.name.as_str()))
    }

    /// `a."k" = b."k" AND …`
    fn same_key(&self, a: &str, b: &str) -> String {
        let same = |key: &String| format!("{a}.{key} = {b}.{key}", key = sql::ident(key));
        self.plan.target.key.iter().map(same).collect::<Vec<_>>().join(" AND ")
    }

    fn tombstones(&self) -> String {
        sql::table(&tombstones::table(&self.plan.target.name))
    }

    fn target(&self) -> String {
        sql::table(&self.plan.target.name)
    }

    fn overriding(&self) -> &'static str {
        let always = |name: &str| self.plan.target.column(name).is_some_and(|c| c.identity == Some(Identity::Always));
        if self.plan.columns.iter().any(|column| always(&column.name)) { " OVERRIDING SYSTEM VALUE" } else { "" }
    }

    /// Of dead and live images together: `f`, the newest fact of each key; live beats dead at the same version.
    fn newest(&self, part: Part, columns: &str, clashes: &str) -> String {
        let keys = self.keys("");
        let null = self.key_values().iter().map(|key| format!("{key} IS NULL")).collect::<Vec<_>>().join(" OR ");
        format!(
            "r AS (SELECT {columns}, i.v AS cutover_v, i.dead AS cutover_dead\nFROM {rows}\n\
             WHERE NOT (i.dead AND ({null}))),\n\
             f AS MATERIALIZED (SELECT DISTINCT ON ({keys}) r.*{clashes}\n\
             FROM r ORDER BY {keys}, cutover_v DESC, cutover_dead)",
            rows = self.rows(part),
        )
    }

    /// As [`Self::newest`], with every column; `cutover_clashes` counts the live facts that claim a key.
    fn newest_rows(&self, part: Part) -> String {
        let count = format!(
            ", count(*) FILTER (WHERE NOT cutover_dead) OVER (PARTITION BY {}) AS cutover_clashes",
            self.keys("")
        );
        self.newest(part, &self.named_values(), &count)
    }

    fn named_values(&self) -> String {
        let named = |name: &str, cast: Option<&String>| format!("{} AS {}", self.value(name, cast), sql::ident(name));
        let columns = self.plan.columns.iter().map(|column| named(&column.name, column.cast.as_ref()));
        columns.collect::<Vec<_>>().join(", ")
    }

    fn named_keys(&self) -> String {
        let keys = self.plan.target.key.iter().map(|key| format!("{} AS {}", self.value(key, None), sql::ident(key)));
        keys.collect::<Vec<_>>().join(", ")
    }

    /// Dead facts: tombstones, and the rows that they remove. Answers (facts, rows deleted).
    pub fn dead(&self) -> String {
        let (keys, same) = (self.keys(""), self.same_key("g", "f"));
        let facts = match self.plan.coverage {
            Coverage::Total => {
                let keys = self.key_values();
                let given: Vec<String> = keys.iter().map(|key| format!("{key} IS NOT NULL")).collect();
                let places: Vec<String> = (1..=keys.len()).map(|place| place.to_string()).collect();
                format!(
                    "f AS MATERIALIZED (SELECT {}, max(i.v) AS cutover_v\nFROM {}\nWHERE {} GROUP BY {})",
                    self.named_keys(),
                    self.rows(Part::Dead),
                    given.join(" AND "),
                    places.join(", ")
                )
            }
            Coverage::Filter | Coverage::Partial => {
                let newest = self.newest(Part::Dead, &self.named_keys(), "");
                format!("{newest},\ne AS MATERIALIZED (SELECT * FROM f WHERE cutover_dead)")
            }
        };
        let from = match self.plan.coverage {
            Coverage::Total => "f",
            Coverage::Filter | Coverage::Partial => "e AS f",
        };
        format!(
            "WITH {facts},\n\
             t AS (INSERT INTO {tombstones} AS t ({keys}, {VERSION_COLUMN}) SELECT {keys}, cutover_v FROM {from}\n\
             ON CONFLICT ({keys}) DO UPDATE SET {VERSION_COLUMN} = excluded.{VERSION_COLUMN}\n\
             WHERE t.{VERSION_COLUMN} < excluded.{VERSION_COLUMN}),\n\
             d AS (DELETE FROM {target} g USING {from} WHERE {same} AND g.{VERSION_COLUMN} <= f.cutover_v RETURNING 1)\n\
             SELECT (SELECT count(*) FROM {from}), (SELECT count(*) FROM d)",
            tombstones = self.tombstones(),
            target = self.target(),
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
        let set = self.assignments();
        let counts = if self.plan.target.partitioned {
            // A system column cannot be returned from a partitioned table: what was there before is still
            // what this statement's snapshot shows.
            format!(
                "SELECT count(*) - count(g.{VERSION_COLUMN}), count(g.{VERSION_COLUMN}), {clashes}\n\
                 FROM u LEFT JOIN {} g ON {}",
                self.target(),
                self.same_key("g", "u")
            )
        } else {
            format!("SELECT count(*) FILTER (WHERE u.fresh), count(*) FILTER (WHERE NOT u.fresh), {clashes} FROM u")
        };
        let returning = if self.plan.target.partitioned { self.keys("g.") } else { "(g.xmax = 0) AS fresh".to_owned() };
        format!(
            "WITH {prelude}u AS (INSERT INTO {target} AS g ({mapped}, {VERSION_COLUMN}){overriding}\n{facts}\n\
             WHERE {live}NOT EXISTS (SELECT FROM {tombstones} t WHERE {buried} AND t.{VERSION_COLUMN} > {version})\n\
             ON CONFLICT ({keys}) DO UPDATE SET {set}\n\
             WHERE g.{VERSION_COLUMN} <= excluded.{VERSION_COLUMN} RETURNING {returning})\n{counts}",
            target = self.target(),
            mapped = self.mapped(),
            overriding = self.overriding(),
            tombstones = self.tombstones(),
            keys = self.keys(""),
        )
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.plan.columns.iter().map(|column| column.name.as_str())
    }

    /// Every column but the key and `GENERATED ALWAYS AS IDENTITY`, which may not be set.
    fn assignments(&self) -> String {
        let target = &self.plan.target;
        let set = self
            .names()
            .filter(|name| !target.key.iter().any(|key| key == name))
            .filter(|name| target.column(name).is_none_or(|column| column.identity != Some(Identity::Always)))
            .map(|name| format!("{name} = excluded.{name}", name = sql::ident(name)));
        let version = std::iter::once(format!("{VERSION_COLUMN} = excluded.{VERSION_COLUMN}"));
        set.chain(version).collect::<Vec<_>>().join(", ")
    }

    /// Removes the rows that the live facts replace and inserts them again with their new values, and with
    /// what they had in columns that the transform does not fill: unique values may then have been swapped. All removals
    /// come before the first insert, because counting them needs them all.
    pub fn replace(&self) -> String {
        let others: Vec<&str> = self
            .plan
            .target
            .columns
            .iter()
            .filter(|column| !column.generated && !self.names().any(|name| name == column.name))
            .map(|column| column.name.as_str())
            .collect();
        let identity = |name: &&str| self.plan.target.column(name).is_some_and(|column| column.identity.is_some());
        let overriding = if others.iter().any(identity) { " OVERRIDING SYSTEM VALUE" } else { self.overriding() };
        let facts = match self.plan.coverage {
            Coverage::Total | Coverage::Filter => format!(
                "l AS MATERIALIZED (SELECT {}, i.v AS cutover_v\nFROM {})",
                self.named_values(),
                self.rows(Part::Replace)
            ),
            Coverage::Partial => {
                format!(
                    "{},\nl AS MATERIALIZED (SELECT * FROM f WHERE NOT cutover_dead)",
                    self.newest_rows(Part::Replace)
                )
            }
        };
        let kept: Vec<&str> = self.plan.target.key.iter().map(String::as_str).chain(others.iter().copied()).collect();
        let mut columns: Vec<&str> = self.names().collect();
        columns.extend(&others);
        let mut values = sql::list("l.", self.names());
        if !others.is_empty() {
            values = format!("{values}, {}", sql::list("gone.", others.iter().copied()));
        }
        format!(
            "WITH {facts},\n\
             gone AS (DELETE FROM {target} g USING l WHERE {same} AND g.{VERSION_COLUMN} <= l.cutover_v\n\
             RETURNING {kept}),\n\
             n AS MATERIALIZED (SELECT count(*) AS n FROM gone)\n\
             INSERT INTO {target} ({columns}, {VERSION_COLUMN}){overriding}\n\
             SELECT {values}, l.cutover_v FROM l JOIN gone ON {joined} CROSS JOIN n WHERE n.n >= 0",
            target = self.target(),
            same = self.same_key("g", "l"),
            kept = sql::list("g.", kept),
            columns = sql::list("", columns),
            joined = self.same_key("gone", "l"),
        )
    }

    /// The places of live images that claim a target key which a newer one claims as well (CORRECTNESS rule 7).
    pub fn clashes(&self) -> String {
        let live = match self.plan.coverage {
            Coverage::Total | Coverage::Filter => "",
            Coverage::Partial => "\nWHERE NOT i.dead",
        };
        format!(
            "SELECT DISTINCT c.n FROM (SELECT i.n, row_number() OVER (PARTITION BY {} ORDER BY i.v DESC, i.n) AS place\n\
             FROM {}{live}) c WHERE c.place > 1",
            self.key_values().join(", "),
            self.rows(Part::Clashes)
        )
    }

    /// The places of live images that come too late: for all their rows the target has a newer row or tombstone.
    pub fn late(&self) -> String {
        let live = match self.plan.coverage {
            Coverage::Total | Coverage::Filter => "",
            Coverage::Partial => "\nWHERE NOT i.dead",
        };
        let newer = |table: String| {
            let keys = self.plan.target.key.iter();
            let same: Vec<String> =
                keys.map(|key| format!("x.{} = {}", sql::ident(key), self.value(key, None))).collect();
            format!("EXISTS (SELECT FROM {table} x WHERE {} AND x.{VERSION_COLUMN} > i.v)", same.join(" AND "))
        };
        format!(
            "SELECT i.n FROM {}{live}\nGROUP BY i.n HAVING bool_and({} OR {})",
            self.rows(Part::Late),
            newer(self.target()),
            newer(self.tombstones()),
        )
    }

    /// The places of live images whose row refers, by this foreign key, to a row that is not there.
    /// None when the `SELECT` does not fill the key's columns.
    pub fn orphans(&self, key: &ForeignKey) -> Option<String> {
        if !key.columns.iter().all(|column| self.names().any(|name| name == column)) {
            return None;
        }
        let live = match self.plan.coverage {
            Coverage::Total | Coverage::Filter => "",
            Coverage::Partial => "\nWHERE NOT i.dead",
        };
        let pairs = || key.columns.iter().zip(&key.parent_columns);
        let joined = |parent: &str| {
            let same =
                pairs().map(|(column, other)| format!("{parent}.{} = c.{}", sql::ident(other), sql::ident(column)));
            same.collect::<Vec<_>>().join(" AND ")
        };
        let given: Vec<String> =
            key.columns.iter().map(|column| format!("c.{} IS NOT NULL", sql::ident(column))).collect();
        // A row may refer to another row of the same batch.
        let own =
            key.parent == self.plan.target.name && key.parent_columns.iter().all(|c| self.names().any(|n| n == c));
        let own = if own { format!(" AND NOT EXISTS (SELECT FROM c s WHERE {})", joined("s")) } else { String::new() };
        Some(format!(
            "WITH c AS MATERIALIZED (SELECT {}, i.n AS cutover_n\nFROM {}{live})\n\
             SELECT DISTINCT c.cutover_n FROM c WHERE {} AND NOT EXISTS (SELECT FROM {} p WHERE {}){own}",
            self.named_values(),
            self.rows(Part::Orphans(0)),
            given.join(" AND "),
            sql::table(&key.parent),
            joined("p"),
        ))
    }
}

/// Everything of a target table that is older than a TRUNCATE.
pub fn truncate(target: &TableName) -> String {
    format!("DELETE FROM {} WHERE {VERSION_COLUMN} < $1", sql::table(target))
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

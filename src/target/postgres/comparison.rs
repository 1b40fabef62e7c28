//! The SQL that compares: what the source's rows make, beside what is there.
//!
//! Rows go in as those of a batch do, through the same casts and the same `SELECT`, into the types of the target's
//! columns. Both sides meet in this one server, by its own equality of keys, so that no order or collation of the
//! source plays a part. A merged row is compared by the columns of one contributor, wherever it waits; a set by its
//! rows.

use super::{
    merged::OWNED,
    pending, sets,
    statement::{Builder, Part, key_type},
    tombstones,
};
use crate::{
    database::postgres::{catalog::VERSION_COLUMN, sql},
    model::{ForeignKey, PlanRole, TargetColumn, TargetTable},
    target::Looks,
};

/// Makes the statements that compare for one plan.
#[derive(Debug)]
pub struct Comparison<'a> {
    pub builder: Builder<'a>,
    pub looks: Looks,
    pub hashes_records: bool,
    /// Where the keys that were made are noted.
    pub seen: &'a str,
    /// Where those are noted that several rows of the source have made.
    pub shared: &'a str,
    /// The place of the first parameter after those of the images.
    pub first: usize,
}

/// The bits of a hash that decide whether a row is in a sample.
const SAMPLE_MASK: u64 = (1 << 31) - 1;

/// Types that cannot be compared, or whose `=` means something else, and arrays of them: their text is.
const BY_TEXT: [&str; 9] = ["xml", "point", "lseg", "path", "box", "polygon", "line", "circle", "json"];
/// What a value of `json` may hold and none of `jsonb` can: the null character, and halves of a surrogate pair.
const NOT_IN_JSONB: &str = r"\\u(0000|[dD][89a-fA-F])";

/// The condition that two values of a type differ.
pub(super) fn differ(ours: &str, theirs: &str, kind: &str) -> String {
    let text = format!("{ours}::text IS DISTINCT FROM {theirs}::text");
    if kind == "json" {
        // By value, where both can be had as one.
        return format!(
            "CASE WHEN NOT ({text}) THEN false WHEN {ours}::text ~ '{NOT_IN_JSONB}' OR {theirs}::text ~ '{NOT_IN_JSONB}' \
             THEN true ELSE {ours}::text::jsonb IS DISTINCT FROM {theirs}::text::jsonb END"
        );
    }
    if BY_TEXT.contains(&kind.trim_end_matches("[]")) { text } else { format!("{ours} IS DISTINCT FROM {theirs}") }
}

const NO_TEXTS: &str = "ARRAY[]::text[]";

impl Comparison<'_> {
    pub(super) fn keys(&self) -> &[String] {
        &self.builder.plan.target.key
    }

    /// The target's columns that name the source row, where any do: of a set its parent's, else the key.
    fn origin(&self) -> &[String] {
        match &self.builder.plan.role {
            PlanRole::Set { parent } => parent,
            PlanRole::Whole | PlanRole::Share(_) => self.keys(),
        }
    }

    /// Every column of the target that is needed, once.
    pub(super) fn columns(&self) -> Vec<&str> {
        let mut columns: Vec<&str> = self.builder.names().collect();
        for name in self.origin().iter().chain(self.keys()) {
            if !columns.contains(&name.as_str()) {
                columns.push(name);
            }
        }
        columns
    }

    pub(super) fn target_column(&self, name: &str) -> Option<&TargetColumn> {
        self.builder.plan.target.column(name)
    }

    /// The rows `r` that the source's rows make, in the types of the target.
    fn made(&self) -> String {
        let typed = |name: &str, cast: Option<&String>| {
            let value = self.builder.value(name, cast);
            match self.target_column(name) {
                Some(target) => format!("({value})::{} AS {}", key_type(target), sql::ident(name)),
                None => format!("{value} AS {}", sql::ident(name)),
            }
        };
        let columns = self.builder.plan.columns.iter();
        let columns: Vec<String> = columns.map(|column| typed(&column.name, column.cast.as_ref())).collect();
        let made = format!("SELECT {}, i.n AS cutover_n\nFROM {}", columns.join(", "), self.builder.rows(Part::Live));
        match self.picked("r") {
            Some(picked) => format!("r AS MATERIALIZED (SELECT * FROM ({made}) r WHERE {picked})"),
            None => format!("r AS MATERIALIZED ({made})"),
        }
    }

    /// Whether a row is in the sample: the same on both sides, by the target's key.
    fn picked(&self, table: &str) -> Option<String> {
        let share = self.looks.sample?.clamp(0.0, 1.0);
        let keys: Vec<String> = self.keys().iter().map(|key| format!("{table}.{}::text", sql::ident(key))).collect();
        Some(format!(
            "(pg_catalog.hashtextextended(pg_catalog.concat_ws(',', {}), 0) & {SAMPLE_MASK}) < {}",
            keys.join(", "),
            (share * (SAMPLE_MASK + 1) as f64) as u64
        ))
    }

    /// How new a row of the target, or of the pending table, is for this plan.
    fn age(&self) -> String {
        match &self.builder.plan.role {
            PlanRole::Share(share) if !share.own.owns => format!("abs(g.{})", sql::ident(&share.own.version)),
            PlanRole::Whole | PlanRole::Share(_) | PlanRole::Set { .. } => format!("g.{VERSION_COLUMN}"),
        }
    }

    /// What is there, within a `scope` over the key's columns of `g`.
    pub(super) fn shown(&self, scope: &str) -> String {
        let scope = match self.picked("g") {
            Some(picked) => format!("{scope} AND {picked}"),
            None => scope.to_owned(),
        };
        let columns = sql::list("g.", self.columns());
        let (age, target) = (self.age(), self.builder.target());
        let select =
            |from: &str, and: &str| format!("SELECT {columns}, {age} AS cutover_v FROM {from} g WHERE {scope}{and}");
        let PlanRole::Share(share) = &self.builder.plan.role else { return select(&target, "") };
        let pending = sql::table(&pending::table(&self.builder.plan.target.name));
        if share.own.owns {
            return format!("{}\nUNION ALL {}", select(&target, ""), select(&pending, &format!(" AND g.{OWNED}")));
        }
        // Nothing came, or the newest that came is a delete: then its columns are as if nobody had filled them.
        let filled = |name: &&String| self.target_column(name).is_some_and(|column| !column.has_default);
        let own = share.own.columns.iter().filter(filled).map(|name| format!(" OR g.{} IS NOT NULL", sql::ident(name)));
        let filled = format!(" AND (g.{} > 0{})", sql::ident(&share.own.version), own.collect::<String>());
        let waits = format!(" AND g.{} > 0", sql::ident(&share.own.version));
        format!("{}\nUNION ALL {}", select(&target, &filled), select(&pending, &waits))
    }

    /// The condition that two values of a column differ.
    fn differs(&self, name: &str) -> String {
        let (ours, theirs) = (format!("r.{}", sql::ident(name)), format!("g.{}", sql::ident(name)));
        let kind = self.target_column(name).map_or("", |column| column.cast_sql.as_str());
        differ(&ours, &theirs, kind)
    }

    /// The columns but the key, each with the condition that its values differ.
    pub(super) fn unequal(&self) -> Vec<(&str, String)> {
        let names = self.builder.names().filter(|name| !self.keys().iter().any(|key| key == name));
        names.map(|name| (name, self.differs(name))).collect()
    }

    /// Picks what differs out of `joined`, in which `r` and `g` stand beside each other, and says of each row:
    /// (difference, image, key, origin, columns, what is made, what is there, version, digest).
    fn told(&self, joined: &str) -> String {
        let unequal = self.unequal();
        let any: String = unequal.iter().map(|(_, differs)| format!(" OR {differs}")).collect();
        let either = |name: &String| format!("coalesce(r.{name}, g.{name})", name = sql::ident(name));
        let from_either = |prefix: &str, names: &[String]| {
            let named = names.iter().enumerate().map(|(place, name)| format!(", {} AS {prefix}{place}", either(name)));
            named.collect::<String>()
        };
        let columns: Vec<String> = unequal
            .iter()
            .map(|(name, differs)| format!("CASE WHEN {differs} THEN {} END", sql::literal(name)))
            .collect();
        let valued = |side: &str| {
            let values = unequal.iter().map(|(name, differs)| {
                format!("CASE WHEN {differs} THEN ARRAY[{side}.{}::text] END", sql::ident(name))
            });
            values.collect::<Vec<_>>()
        };
        let array = |items: &[String], of: &str| format!("ARRAY[{}]::{of}[]", items.join(", "));
        let nothing = "ARRAY[]::text[]".to_owned();
        let flat = |side: &str| {
            // Nested, so that a null that differs is told from a column that does not.
            let cases = valued(side);
            format!("ARRAY[{}]::text[]", cases.iter().map(|case| format!("({case})[1]")).collect::<Vec<_>>().join(", "))
        };
        let (ours, theirs) = if self.looks.values { (flat("r"), flat("g")) } else { (nothing.clone(), nothing) };
        format!(
            "SELECT c.kind, c.n, {key}, {origin}, c.columns, c.ours, c.theirs, {version}, {digest}\nFROM (\n\
             SELECT CASE WHEN g.cutover_v IS NULL THEN 'missing' WHEN r.cutover_n IS NULL THEN 'extra' ELSE 'different' END AS kind,\n\
             r.cutover_n AS n, g.cutover_v{keys}{origins},\n{columns} AS columns, {ours} AS ours, {theirs} AS theirs, \
             {digests} AS digests\n\
             FROM {joined}\nWHERE r.cutover_n IS NULL OR g.cutover_v IS NULL{any}) c",
            key = texts("k", self.keys().len()),
            origin = texts("p", self.origin().len()),
            version = self.version(),
            digest = hash("c.kind || ' ' || pg_catalog.array_to_string(c.digests, ',')"),
            digests = array(&self.digests(&unequal), "text"),
            keys = from_either("k", self.keys()),
            origins = from_either("p", self.origin()),
            columns = array(&columns, "text"),
        )
    }

    /// Of each column that differs its name, and digests of what is made and of what is there.
    fn digests(&self, unequal: &[(&str, String)]) -> Vec<String> {
        let digest = |(name, differs): &(&str, String)| {
            let column = sql::ident(name);
            let (ours, theirs) = (hash(&format!("r.{column}::text")), hash(&format!("g.{column}::text")));
            format!("CASE WHEN {differs} THEN {} || ARRAY[{ours}, {theirs}]::text END", sql::literal(name))
        };
        unequal.iter().map(digest).collect()
    }

    /// The highest version at which the target heard of the row `c`.
    fn version(&self) -> String {
        let plan = self.builder.plan;
        let by = |table: String, version: &str, prefix: &str, names: &[String]| {
            let same =
                names.iter().enumerate().map(|(place, name)| format!("t.{} = c.{prefix}{place}", sql::ident(name)));
            let same = same.collect::<Vec<_>>().join(" AND ");
            format!("coalesce((SELECT {version} FROM {table} t WHERE {same}), 0)")
        };
        let plain = format!("t.{VERSION_COLUMN}");
        let mut heard = vec!["coalesce(c.cutover_v, 0)".to_owned()];
        heard.push(by(sql::table(&tombstones::table(&plan.target.name)), &plain, "k", self.keys()));
        match &plan.role {
            PlanRole::Whole => {}
            PlanRole::Set { parent } => {
                heard.push(by(sql::table(&sets::table(&plan.target.name)), &plain, "p", parent));
            }
            PlanRole::Share(share) => {
                let version = format!("abs(t.{})", sql::ident(&share.own.version));
                heard.push(by(sql::table(&pending::table(&plan.target.name)), &version, "k", self.keys()));
                heard.push(by(sql::table(&plan.target.name), &version, "k", self.keys()));
            }
        }
        heard.push(format!(
            "coalesce((SELECT f.version FROM cutover.fences f WHERE f.pipeline = {} AND f.source_table = {}), 0)",
            sql::literal(self.builder.pipeline),
            sql::literal(&plan.source.table.to_string())
        ));
        format!("greatest({})", heard.join(", "))
    }

    /// A parameter of text, as the type of a column of the key.
    fn bound(&self, place: usize, key: &str) -> String {
        let cast = self.target_column(key).map_or("text", key_type);
        format!("${place}::text::{cast}")
    }

    /// Keys above the text parameters from `place` on, or up to them.
    fn beside(&self, operator: &str, place: usize) -> String {
        let bounds: Vec<String> =
            self.keys().iter().enumerate().map(|(index, key)| self.bound(place + index, key)).collect();
        format!("({}) {operator} ({})", self.builder.keys("g."), bounds.join(", "))
    }

    /// Compares rows of the source, and notes their keys.
    pub fn seen(&self) -> String {
        let joined = format!("r LEFT JOIN ({}) g ON {}", self.shown("true"), self.builder.same_key("r", "g"));
        format!(
            "WITH {made},\ns AS (INSERT INTO {seen} ({keys}) SELECT {keys} FROM r WHERE {given}){noting}\n{told}{counts}",
            made = self.made(),
            seen = self.seen,
            keys = self.builder.keys(""),
            given = self.key_given(),
            counts = counts("0"),
            noting = self.noting(&joined),
            told = self.told(&joined),
        )
    }

    /// Compares rows of the source with the keys above the first bound, if there is one, up to the second; the last
    /// parameter says how many rows are told at most.
    pub fn ranged(&self, has_lower: bool) -> String {
        let scope = self.between(has_lower, self.first);
        let joined = format!("r FULL JOIN ({}) g ON {}", self.shown(&scope), self.builder.same_key("r", "g"));
        let most = self.first + self.keys().len() * (1 + usize::from(has_lower));
        let shared = format!("(SELECT count(*) FROM ({}) d)", self.shared_among());
        let there = format!(
            "SELECT 'there', d.count, ARRAY[d.sum], {NO_TEXTS}, {NO_TEXTS}, {NO_TEXTS}, {NO_TEXTS}, 0::bigint, 0::bigint FROM ({}) d(count, sum)",
            self.there_within(&scope)
        );
        format!(
            "WITH {}{}\n({}\nLIMIT ${most}::bigint){}\nUNION ALL {there}",
            self.made(),
            self.noting(&joined),
            self.told(&joined),
            counts(&shared)
        )
    }

    /// Keys above those in the parameters from `place` on, if there is a lower bound, up to those in the next ones.
    pub(super) fn between(&self, has_lower: bool, place: usize) -> String {
        let upper = if has_lower { place + self.keys().len() } else { place };
        let lower = if has_lower { format!("{} AND ", self.beside(">", place)) } else { String::new() };
        format!("{lower}{}", self.beside("<=", upper))
    }

    /// The condition that a row of the source makes one with a key.
    fn key_given(&self) -> String {
        let given: Vec<String> = self.keys().iter().map(|key| format!("{} IS NOT NULL", sql::ident(key))).collect();
        given.join(" AND ")
    }

    /// The keys that more than one of the source's rows in `r` make. A set's row that one source row makes twice is
    /// none.
    fn shared_among(&self) -> String {
        let (keys, given) = (self.builder.keys(""), self.key_given());
        format!("SELECT {keys} FROM r WHERE {given} GROUP BY {keys} HAVING min(cutover_n) <> max(cutover_n)")
    }

    /// The rows of the source, by their images, whose keys were noted as shared; or, if they were not, are shared among
    /// these rows.
    pub fn that_share(&self, noted: bool, rows_max: usize) -> String {
        let among = if noted { format!("SELECT * FROM {}", self.shared) } else { self.shared_among() };
        let named = self.keys().iter().enumerate().map(|(at, key)| format!(", r.{} AS k{at}", sql::ident(key)));
        format!(
            "WITH {made}\nSELECT c.n, {keys} FROM (SELECT r.cutover_n AS n{named} FROM r JOIN ({among}) d ON {same}) c LIMIT {rows_max}",
            made = self.made(),
            keys = texts("k", self.keys().len()),
            named = named.collect::<String>(),
            same = self.builder.same_key("d", "r"),
        )
    }

    /// Compares rows of the source with these and the given keys, which come as an array for each column.
    pub fn given(&self) -> String {
        let keys = self.builder.keys("");
        let (mut arrays, mut typed, mut names) = (Vec::new(), Vec::new(), Vec::new());
        for (place, key) in self.keys().iter().enumerate() {
            arrays.push(format!("${}::text[]", self.first + place));
            names.push(format!("k{place}"));
            let cast = self.target_column(key).map_or("text", key_type);
            typed.push(format!("u.k{place}::{cast} AS {}", sql::ident(key)));
        }
        let wanted = format!(
            ",\nw AS MATERIALIZED (SELECT {keys} FROM r UNION SELECT {} FROM unnest({}) u({}))",
            typed.join(", "),
            arrays.join(", "),
            names.join(", ")
        );
        let scope = format!("EXISTS (SELECT FROM w WHERE {})", self.builder.same_key("w", "g"));
        let shown = self.shown(&scope);
        let joined = format!("r FULL JOIN ({shown}) g ON {}", self.builder.same_key("r", "g"));
        let (noting, forgetting) = (self.noting(&joined), self.forgetting(&shown));
        format!("WITH {}{wanted}{noting}{forgetting}\n{}", self.made(), self.told(&joined))
    }

    /// The next rows that are there and were not made, above the bound if there is one; with `noted` by the keys that
    /// were noted, else all above the bound.
    pub fn extras(&self, noted: bool, has_lower: bool, rows_max: usize) -> String {
        let mut scope = Vec::new();
        if noted {
            scope.push(format!("NOT EXISTS (SELECT FROM {} s WHERE {})", self.seen, self.builder.same_key("s", "g")));
        }
        if has_lower {
            scope.push(self.beside(">", 1));
        }
        let scope = if scope.is_empty() { "true".to_owned() } else { scope.join(" AND ") };
        let from = format!("({}) g", self.shown(&scope));
        format!("{}{}", self.noting_extras(&from, rows_max), self.listed("extra", &from, rows_max))
    }

    /// The first rows of `from`, by their keys, told as [`Self::told`] does.
    fn listed(&self, kind: &str, from: &str, rows_max: usize) -> String {
        let key = |prefix: &str, names: &[String]| {
            let named =
                names.iter().enumerate().map(|(place, name)| format!(", g.{} AS {prefix}{place}", sql::ident(name)));
            named.collect::<String>()
        };
        format!(
            "SELECT '{kind}', NULL::bigint, {keys}, {origins}, ARRAY[]::text[], ARRAY[]::text[], ARRAY[]::text[], {version}, 0::bigint\n\
             FROM (SELECT g.cutover_v{named}{parents} FROM {from} ORDER BY {order} LIMIT {rows_max}) c ORDER BY {ordered}",
            keys = texts("k", self.keys().len()),
            origins = texts("p", self.origin().len()),
            version = self.version(),
            named = key("k", self.keys()),
            parents = key("p", self.origin()),
            order = self.builder.keys("g."),
            ordered = (0..self.keys().len()).map(|place| format!("c.k{place}")).collect::<Vec<_>>().join(", "),
        )
    }

    /// The next keys of which the target has heard above the version `$1`, above the bound if there is one; those that
    /// were deleted as well, where a tombstone names them.
    pub fn changed(&self, has_lower: bool, rows_max: usize) -> String {
        let shown = format!("SELECT * FROM ({}) g WHERE g.cutover_v > $1::bigint", self.shown("true"));
        let names: Vec<&str> = self.columns();
        let buried = names.iter().map(|name| match self.keys().iter().any(|key| key == name) {
            true => format!("t.{}", sql::ident(name)),
            false => "NULL".to_owned(),
        });
        let buried: Vec<String> = buried.collect();
        let deleted = match self.builder.plan.role {
            // The whole set goes with its parent, whose key no tombstone has.
            PlanRole::Set { .. } => String::new(),
            PlanRole::Whole | PlanRole::Share(_) => format!(
                "\nUNION ALL SELECT {}, t.{VERSION_COLUMN} FROM {} t WHERE t.{VERSION_COLUMN} > $1::bigint",
                buried.join(", "),
                self.builder.tombstones()
            ),
        };
        let deleted = match self.builder.plan.is_owned() {
            true => format!(
                "{deleted}\nUNION ALL SELECT {}, t.{VERSION_COLUMN} FROM {} t WHERE t.{VERSION_COLUMN} > $1::bigint",
                buried.join(", "),
                self.builder.owned_tombstones()
            ),
            false => deleted,
        };
        let scope = if has_lower { format!(" WHERE {}", self.beside(">", 2)) } else { String::new() };
        self.listed("different", &format!("({shown}{deleted}) g{scope}"), rows_max)
    }

    /// How many rows are made.
    pub fn count_made(&self) -> String {
        format!("WITH {}\nSELECT count(*) FROM r", self.made())
    }

    /// How many rows are there.
    pub fn count(&self) -> String {
        format!("SELECT count(*) FROM ({}) g", self.shown("true"))
    }

    fn key_columns(&self) -> String {
        let columns: Vec<String> =
            self.keys().iter().filter_map(|key| self.target_column(key)).map(tombstones::key_column).collect();
        columns.join(", ")
    }

    /// The table of the keys that were made.
    pub fn create_seen(&self) -> String {
        format!("DROP TABLE IF EXISTS {seen}; CREATE TEMP TABLE {seen} ({})", self.key_columns(), seen = self.seen)
    }

    /// The table of the keys that were made more than once, so many at most; of none if no keys were noted.
    pub fn create_shared(&self, noted: bool, keys_max: usize) -> String {
        let (shared, columns) = (self.shared, self.key_columns());
        let create = format!("DROP TABLE IF EXISTS {shared}; CREATE TEMP TABLE {shared} ({columns})");
        if !noted {
            return create;
        }
        let keys = self.builder.keys("");
        format!(
            "{create}; INSERT INTO {shared} SELECT {keys} FROM {} GROUP BY {keys} HAVING count(*) > 1 LIMIT {keys_max}",
            self.seen
        )
    }
}

/// A last row, which counts the rows that were looked at, and the keys that several of them make.
fn counts(shared: &str) -> String {
    format!(
        "\nUNION ALL SELECT 'rows', (SELECT count(*) FROM r), {NO_TEXTS}, {NO_TEXTS}, {NO_TEXTS}, {NO_TEXTS}, {NO_TEXTS}, {shared}::bigint, \
         0::bigint"
    )
}

/// The digest of a text, by its bytes.
pub(super) fn hash(text: &str) -> String {
    format!("pg_catalog.hashtextextended(({text}) COLLATE pg_catalog.\"C\", 0)")
}

/// `ARRAY[c.k0::text, …]`
fn texts(prefix: &str, count: usize) -> String {
    let texts: Vec<String> = (0..count).map(|place| format!("c.{prefix}{place}::text")).collect();
    format!("ARRAY[{}]::text[]", texts.join(", "))
}

/// Counts the rows of a table that have no parent. A key with a null in it asks for none.
pub fn orphans(target: &TargetTable, key: &ForeignKey) -> String {
    let given: Vec<String> = key.columns.iter().map(|name| format!("c.{} IS NOT NULL", sql::ident(name))).collect();
    let pairs = key.columns.iter().zip(&key.parent_columns);
    let same: Vec<String> = pairs.map(|(own, of)| format!("p.{} = c.{}", sql::ident(of), sql::ident(own))).collect();
    format!(
        "SELECT count(*) FROM {} c WHERE {} AND NOT EXISTS (SELECT FROM {} p WHERE {})",
        sql::table(&target.name),
        given.join(" AND "),
        sql::table(&key.parent),
        same.join(" AND ")
    )
}

/// Where a plan's keys are noted.
pub fn seen_table(plan: usize) -> String {
    format!("pg_temp.cutover_seen_{plan}")
}

/// Where those of them are noted that several rows of the source have made.
pub fn shared_table(plan: usize) -> String {
    format!("pg_temp.cutover_shared_{plan}")
}

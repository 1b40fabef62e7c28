//! The SQL of rows that several source tables share (rule 8).
//!
//! A key is in one of two places. In the *target* a row is shown: its owner's newest fact is live. Anything else that
//! is known of a key waits in its *pending* table, which has the same columns: what followers bring before the owner
//! does, what they leave behind when the owner goes, and whole rows that a follower's delete keeps from being shown.
//! Each contributor has a version of its own in either place; a follower's is negative where its newest fact is a
//! delete. The owner's deletes leave tombstones like those of any row. All of this is one writer's work at a time: the
//! lane is the whole target's.

use super::{
    pending,
    statement::{Builder, Counted, Part},
};
use crate::{
    database::postgres::{catalog::VERSION_COLUMN, sql},
    model::{Contributor, Coverage, OnDelete, Share},
};

/// What a pending row says of its owner's columns: they are a row's, which a follower's delete hides.
pub const OWNED: &str = "cutover_owned";

/// Makes the statements of one contributor.
pub(super) struct Merged<'a> {
    pub builder: &'a Builder<'a>,
    pub share: &'a Share,
}

impl Merged<'_> {
    pub fn part(&self, part: Part) -> Option<String> {
        match part {
            Part::Dead => self.dead(self.deaths().unwrap_or_else(|| self.builder.dead_facts())),
            Part::Gone => self.dead(self.builder.gone_facts()?),
            Part::Unmatched => self.unmatched(),
            Part::Live if self.share.own.owns => Some(self.live_owner()),
            Part::Live => Some(self.live_follower()),
            Part::Show => self.show(),
            Part::Replace => Some(self.replace()),
            Part::Late => Some(self.late()),
            Part::Clashes => Some(self.builder.clashes()),
            Part::Orphans(key) => {
                let key = self.builder.plan.target.foreign_keys.get(key)?;
                self.builder.orphans(key)
            }
        }
    }

    fn pending(&self) -> String {
        sql::table(&pending::table(&self.builder.plan.target.name))
    }

    fn version(&self) -> String {
        sql::ident(&self.share.own.version)
    }

    /// How new this contributor's part of a row of this table is.
    fn age(&self, table: &str) -> String {
        let version = self.version();
        if self.share.own.owns { format!("{table}.{version}") } else { format!("abs({table}.{version})") }
    }

    /// Columns and versions of these contributors.
    fn parts<'c>(contributors: impl Iterator<Item = &'c Contributor>) -> Vec<&'c str> {
        contributors
            .flat_map(|contributor| contributor.columns.iter().chain(std::iter::once(&contributor.version)))
            .map(String::as_str)
            .collect()
    }

    fn others(&self) -> Vec<&str> {
        Self::parts(self.share.others.iter())
    }

    /// The key's columns and these.
    fn keys_and(&self, prefix: &str, columns: &[&str]) -> String {
        let keys = self.builder.plan.target.key.iter().map(String::as_str);
        sql::list(prefix, keys.chain(columns.iter().copied()))
    }

    /// Whether a delete of a contributor but the owner hides the row, in a pending row of this name.
    fn hidden(&self, table: &str) -> Option<String> {
        let gone: Vec<String> =
            self.share.removers().map(|remover| format!("{table}.{}", sql::ident(&remover.gone()))).collect();
        (!gone.is_empty()).then(|| format!("({})", gone.join(" OR ")))
    }

    /// `column = from.column`, of what this contributor fills.
    fn set(&self, from: &str) -> String {
        let set = self.builder.settable().map(|name| format!("{name} = {from}.{name}, ", name = sql::ident(name)));
        set.collect()
    }

    /// `column = DEFAULT`, of the same.
    fn cleared(&self) -> String {
        self.builder.settable().map(|name| format!("{} = DEFAULT, ", sql::ident(name))).collect()
    }

    /// The newest live fact of each key, as `l`.
    fn live_facts(&self, part: Part) -> String {
        let (builder, keys) = (self.builder, self.builder.keys(""));
        format!(
            "r AS (SELECT {columns}, i.v AS cutover_v\nFROM {rows}),\n\
             l AS MATERIALIZED (SELECT DISTINCT ON ({keys}) r.*, count(*) OVER (PARTITION BY {keys}) AS cutover_clashes\n\
             FROM r ORDER BY {keys}, cutover_v DESC)",
            columns = builder.named_values(),
            rows = builder.rows(part),
        )
    }

    /// Live facts of the owner make rows, together with what waits for them.
    fn live_owner(&self) -> String {
        let builder = self.builder;
        let (pending, target, keys) = (self.pending(), builder.target(), builder.keys(""));
        let (others, mapped) = (self.others(), builder.mapped());
        let hidden = self.hidden("p");
        let withheld = hidden.as_ref().map(|hidden| {
            format!(
                "w AS (UPDATE {pending} p SET {set}{VERSION_COLUMN} = a.cutover_v, {OWNED} = true FROM a\n\
                 WHERE {same} AND {hidden} AND NOT (p.{OWNED} AND p.{VERSION_COLUMN} > a.cutover_v) RETURNING 1),\n",
                set = self.set("a"),
                same = builder.same_key("p", "a"),
            )
        });
        let taken = hidden.map(|hidden| format!(" AND NOT {hidden}")).unwrap_or_default();
        let Counted { returning, inserted, updated, from } = builder.counted();
        let less = if withheld.is_some() { " - (SELECT count(*) FROM w)" } else { "" };
        let others_set: Vec<String> = others.iter().map(|n| format!("{n} = excluded.{n}", n = sql::ident(n))).collect();
        format!(
            "WITH {facts},\n\
             a AS MATERIALIZED (SELECT * FROM l WHERE NOT EXISTS (SELECT FROM {tombstones} t WHERE {buried}\n\
             AND t.{VERSION_COLUMN} > l.cutover_v)),\n{withheld}\
             s AS (DELETE FROM {pending} p USING a WHERE {waits}{taken} RETURNING {own}, a.cutover_v, {waited}),\n\
             n AS (INSERT INTO {target} AS g ({mapped}, {VERSION_COLUMN}, {other_names}){overriding} SELECT * FROM s\n\
             ON CONFLICT ({keys}) DO UPDATE SET {set}, {others_set} WHERE g.{VERSION_COLUMN} <= excluded.{VERSION_COLUMN}\n\
             RETURNING 1),\n\
             u AS (INSERT INTO {target} AS g ({mapped}, {VERSION_COLUMN}){overriding}\n\
             SELECT {own}, a.cutover_v FROM a WHERE NOT EXISTS (SELECT FROM {pending} p WHERE {waits})\n\
             ON CONFLICT ({keys}) DO UPDATE SET {set} WHERE g.{VERSION_COLUMN} <= excluded.{VERSION_COLUMN}\n\
             RETURNING {returning})\n\
             SELECT {inserted} + (SELECT count(*) FROM n), {updated}, (SELECT count(*) FROM l WHERE cutover_clashes > 1),\n\
             (SELECT count(*) FROM l){less} FROM {from}",
            facts = self.live_facts(Part::Live),
            tombstones = builder.tombstones(),
            buried = builder.same_key("t", "l"),
            withheld = withheld.as_deref().unwrap_or_default(),
            waits = builder.same_key("p", "a"),
            waited = sql::list("p.", others.iter().copied()),
            other_names = sql::list("", others.iter().copied()),
            overriding = self.overriding(),
            own = sql::list("a.", builder.names()),
            set = builder.assignments(),
            others_set = others_set.join(", "),
        )
    }

    /// Whether the values of identity columns, of whichever contributor, are given.
    fn overriding(&self) -> &'static str {
        let target = &self.builder.plan.target;
        let filled = self.others().into_iter().chain(self.builder.names());
        let identity = filled.filter_map(|name| target.column(name)).any(|column| column.identity.is_some());
        if identity { " OVERRIDING SYSTEM VALUE" } else { "" }
    }

    /// Live facts of a follower fill their columns of a row that is shown, or wait.
    fn live_follower(&self) -> String {
        let (builder, version) = (self.builder, self.version());
        let (shown, keys) = (builder.same_key("g", "l"), builder.keys(""));
        let own: Vec<&str> = builder.settable().collect();
        let back = if self.share.own.removes() {
            format!(", {} = false", sql::ident(&self.share.own.gone()))
        } else {
            String::new()
        };
        format!(
            "WITH {facts},\n\
             u AS (UPDATE {target} g SET {set}{version} = l.cutover_v FROM l\n\
             WHERE {shown} AND {age} <= l.cutover_v RETURNING 1),\n\
             p AS (INSERT INTO {pending} AS p ({columns}, {version}) SELECT {values}, l.cutover_v FROM l\n\
             WHERE NOT EXISTS (SELECT FROM {target} g WHERE {shown})\n\
             ON CONFLICT ({keys}) DO UPDATE SET {excluded}{version} = excluded.{version}{back}\n\
             WHERE {waiting} <= excluded.{version} RETURNING 1)\n\
             SELECT 0::bigint, (SELECT count(*) FROM u), (SELECT count(*) FROM l WHERE cutover_clashes > 1),\n\
             (SELECT count(*) FROM l) - (SELECT count(*) FROM p)",
            facts = self.live_facts(Part::Live),
            target = builder.target(),
            set = self.set("l"),
            age = self.age("g"),
            pending = self.pending(),
            columns = self.keys_and("", &own),
            values = self.keys_and("l.", &own),
            excluded = self.set("excluded"),
            waiting = self.age("p"),
        )
    }

    /// Dead facts. Answers (facts, rows that went or were cleared). None if nobody follows them: they may come in any
    /// order.
    fn dead(&self, (facts, from): (String, &str)) -> Option<String> {
        let dead = match (self.share.own.on_delete, self.share.own.owns) {
            (OnDelete::Keep, _) => return None,
            (OnDelete::Delete | OnDelete::Clear, true) => self.dead_owner(from),
            (OnDelete::Clear, false) => self.dead_and_cleared(from),
            (OnDelete::Delete, false) => self.dead_and_hidden(from),
        };
        Some(format!("WITH {facts},\n{dead}\nSELECT (SELECT count(*) FROM {from}), (SELECT count(*) FROM d)"))
    }

    /// When each key of the owner was last away, though it may be back: see [`PlanRole::counts_deaths`].
    ///
    /// [`PlanRole::counts_deaths`]: crate::model::PlanRole::counts_deaths
    fn deaths(&self) -> Option<(String, &'static str)> {
        let (builder, keys) = (self.builder, self.builder.keys(""));
        let filters = builder.plan.coverage == Coverage::Filter;
        (filters && builder.plan.role.counts_deaths()).then(|| {
            let key = builder.plan.target.key.iter();
            let given: Vec<String> = key.map(|key| format!("{} IS NOT NULL", sql::ident(key))).collect();
            let facts = format!(
                "r AS (SELECT {columns}, i.v AS cutover_v, i.dead AS cutover_dead\nFROM {rows}),\n\
                 v AS (SELECT {keys}, cutover_v FROM r WHERE {given} GROUP BY {keys}, cutover_v HAVING bool_and(cutover_dead)),\n\
                 f AS MATERIALIZED (SELECT {keys}, max(cutover_v) AS cutover_v FROM v GROUP BY {keys})",
                columns = builder.named_keys(),
                rows = builder.rows(Part::Dead),
                given = given.join(" AND "),
            );
            (facts, "f")
        })
    }

    /// The owner's row goes; what followers have filled waits for its return. Deletes of followers that are older than
    /// the owner's hide nothing any more.
    fn dead_owner(&self, from: &str) -> String {
        let builder = self.builder;
        let older = |row: &str| format!("{} AND {row}.{VERSION_COLUMN} <= f.cutover_v", builder.same_key(row, "f"));
        let mut text = format!("{},\n{}", builder.bury(from), self.disown(&format!(" USING {from}"), older));
        if let Some(disowned) = self.disown_hidden(older, Some("f.cutover_v")) {
            text.push_str(&format!("{disowned} FROM {from} WHERE {})", builder.same_key("p", "f")));
        }
        text
    }

    /// Removes the rows `g` of the target for which this holds, as `d`, and leaves what followers have filled.
    fn disown(&self, using: &str, which: impl Fn(&str) -> String) -> String {
        let (builder, others) = (self.builder, self.others());
        let any: Vec<String> = self.share.others.iter().map(|c| format!("{} <> 0", sql::ident(&c.version))).collect();
        let names = self.keys_and("", &others);
        format!(
            "d AS (DELETE FROM {target} g{using} WHERE {which} RETURNING {returned}),\n\
             p AS (INSERT INTO {pending} ({names}) SELECT {names} FROM d WHERE {any} ON CONFLICT ({keys}) DO NOTHING)",
            target = builder.target(),
            which = which("g"),
            returned = self.keys_and("g.", &others),
            pending = self.pending(),
            any = any.join(" OR "),
            keys = builder.keys(""),
        )
    }

    /// A follower's columns go back to their defaults, wherever they are.
    fn dead_and_cleared(&self, from: &str) -> String {
        let (builder, version) = (self.builder, self.version());
        format!(
            "d AS (UPDATE {target} g SET {cleared}{version} = -f.cutover_v FROM {from}\n\
             WHERE {same} AND {age} <= f.cutover_v RETURNING 1),\n{waiting}",
            target = builder.target(),
            cleared = self.cleared(),
            same = builder.same_key("g", "f"),
            age = self.age("g"),
            waiting = self.dead_and_waiting(from, None),
        )
    }

    /// A follower's delete takes the row out of the target, unless its owner has gone, and come again, since. A row of
    /// which this very delete is known stays as it is: it was judged by tombstones that may be forgotten by now.
    fn dead_and_hidden(&self, from: &str) -> String {
        let (builder, version) = (self.builder, self.version());
        let (others, gone) = (self.others(), sql::ident(&self.share.own.gone()));
        // A replay is behind what is shown, which has been judged by every change of its range.
        let hides = if builder.replays {
            "false".to_owned()
        } else {
            format!("{} AND {}", self.hides("f", "f.cutover_v"), self.owner_was_not_fenced("f.cutover_v"))
        };
        format!(
            "m AS MATERIALIZED (SELECT f.*, {hides} AS cutover_hides FROM {from}),\n\
             d AS (DELETE FROM {target} g USING m AS f WHERE {same} AND f.cutover_hides AND {age} <= f.cutover_v\n\
             AND g.{version} <> -f.cutover_v RETURNING {returned}, -f.cutover_v AS cutover_v),\n\
             u AS (UPDATE {target} g SET {cleared}{version} = -f.cutover_v FROM m AS f\n\
             WHERE {same} AND NOT f.cutover_hides AND {age} <= f.cutover_v),\n\
             h AS (INSERT INTO {pending} ({names}, {version}, {OWNED}, {gone})\n\
             SELECT {names}, cutover_v, true, true FROM d ON CONFLICT ({keys}) DO NOTHING),\n{waiting}",
            target = builder.target(),
            same = builder.same_key("g", "f"),
            age = self.age("g"),
            returned = self.keys_and("g.", &others),
            cleared = self.cleared(),
            pending = self.pending(),
            names = self.keys_and("", &others),
            keys = builder.keys(""),
            waiting = self.dead_and_waiting("m AS f", Some(&gone)),
        )
    }

    /// Whether a follower's delete of this version hides the row of this key: its owner was not deleted since.
    fn hides(&self, row: &str, version: &str) -> String {
        format!(
            "NOT EXISTS (SELECT FROM {} t WHERE {} AND t.{VERSION_COLUMN} > {version})",
            self.builder.tombstones(),
            self.builder.same_key("t", row)
        )
    }

    /// Whether the owner's table was not emptied since this version, which leaves no tombstones.
    fn owner_was_not_fenced(&self, version: &str) -> String {
        let owner = self.share.all().filter(|contributor| contributor.owns);
        let owner: Vec<String> = owner.map(|owner| sql::literal(&owner.source.to_string())).collect();
        format!(
            "NOT EXISTS (SELECT FROM cutover.fences z WHERE z.pipeline = {} AND z.source_table = {} AND z.version > {version})",
            sql::literal(self.builder.pipeline),
            owner.concat(),
        )
    }

    /// A follower's dead facts about rows that are not shown.
    fn dead_and_waiting(&self, from: &str, gone: Option<&str>) -> String {
        let (builder, version) = (self.builder, self.version());
        let (name, value, set) = match gone {
            Some(gone) => (format!(", {gone}"), ", f.cutover_hides", format!(", {gone} = excluded.{gone}")),
            None => (String::new(), "", String::new()),
        };
        format!(
            "p AS (INSERT INTO {pending} AS p ({keys}, {version}{name}) SELECT {own}, -f.cutover_v{value} FROM {from}\n\
             WHERE NOT EXISTS (SELECT FROM {target} g WHERE {shown})\n\
             ON CONFLICT ({keys}) DO UPDATE SET {cleared}{version} = excluded.{version}{set}\n\
             WHERE {age} <= -excluded.{version} AND p.{version} <> excluded.{version})",
            pending = self.pending(),
            keys = builder.keys(""),
            own = builder.keys("f."),
            target = builder.target(),
            shown = builder.same_key("g", "f"),
            cleared = self.cleared(),
            age = self.age("p"),
        )
    }

    /// What a filter leaves out of a copy; see [`Builder::unmatched`].
    fn unmatched(&self) -> Option<String> {
        let (keys, images) = (self.builder.copied_keys()?, self.builder.images(Part::Unmatched));
        let version = self.version();
        // Without a version of its own: the change that made the filter leave it out has one, and is still to come.
        let older = |row: &str| {
            let brought = if self.share.own.owns { String::new() } else { format!("{row}.{version} > 0 AND ") };
            let same = self.builder.same_key(row, "f");
            format!("{brought}EXISTS (SELECT FROM f WHERE {same} AND {row}.{version} < f.cutover_v)")
        };
        let removed = self.removed(older, None)?;
        Some(format!(
            "WITH f AS MATERIALIZED (SELECT {keys}, i.v AS cutover_v FROM {images}),\n{removed}\nSELECT count(*) FROM d"
        ))
    }

    /// Removes what this contributor has brought before a version (`$1`), where also this holds for the row of that
    /// name: a TRUNCATE, or a sweep. Answers how many rows went or were cleared. None if deletes are not followed.
    pub fn expire(&self, which: impl Fn(&str) -> String) -> Option<String> {
        let old = |row: &str| format!("{} < $1{}", self.age(row), which(row));
        Some(format!("WITH {}\nSELECT count(*) FROM d", self.removed(old, Some("$1"))?))
    }

    /// Removes this contributor's part, as `d`, of rows for which this holds; where the owner's goes as of a version,
    /// deletes of followers that are older hide nothing any more.
    fn removed(&self, which: impl Fn(&str) -> String, since: Option<&str>) -> Option<String> {
        let (builder, version) = (self.builder, self.version());
        match (self.share.own.on_delete, self.share.own.owns) {
            (OnDelete::Keep, _) => None,
            (OnDelete::Delete | OnDelete::Clear, true) => {
                let mut text = self.disown("", &which);
                if let Some(disowned) = self.disown_hidden(&which, since) {
                    text.push_str(&disowned);
                    text.push(')');
                }
                Some(text)
            }
            (OnDelete::Clear, false) => Some(format!(
                "d AS (UPDATE {target} g SET {cleared}{version} = 0 WHERE g.{version} <> 0 AND {shown} RETURNING 1),\n\
                 p AS (UPDATE {pending} p SET {cleared}{version} = 0 WHERE p.{version} <> 0 AND {waiting})",
                target = builder.target(),
                pending = self.pending(),
                cleared = self.cleared(),
                shown = which("g"),
                waiting = which("p"),
            )),
            (OnDelete::Delete, false) => Some(self.removed_and_hidden(&which("g"), &which("p"))),
        }
    }

    /// As [`Self::removed`], where the row goes with the follower's part.
    fn removed_and_hidden(&self, shown: &str, waiting: &str) -> String {
        let (builder, version, others) = (self.builder, self.version(), self.others());
        format!(
            "d AS (DELETE FROM {target} g WHERE g.{version} > 0 AND {shown} AND {hides}\n\
             RETURNING {returned}, -g.{version} AS cutover_v),\n\
             u AS (UPDATE {target} g SET {cleared}{version} = -g.{version} WHERE g.{version} > 0 AND {shown} AND NOT {hides}),\n\
             h AS (INSERT INTO {pending} ({names}, {version}, {OWNED}, {gone})\n\
             SELECT {names}, cutover_v, true, true FROM d ON CONFLICT ({keys}) DO NOTHING),\n\
             p AS (UPDATE {pending} p SET {cleared}{version} = -p.{version}, {gone} = {hides_waiting}\n\
             WHERE p.{version} > 0 AND {waiting})",
            target = builder.target(),
            hides = self.hides("g", &format!("g.{version}")),
            returned = self.keys_and("g.", &others),
            cleared = self.cleared(),
            pending = self.pending(),
            names = self.keys_and("", &others),
            gone = sql::ident(&self.share.own.gone()),
            keys = builder.keys(""),
            hides_waiting = self.hides("p", &format!("p.{version}")),
        )
    }

    /// As [`Self::disown`], of rows that are hidden; the statement goes on. None where no follower's delete hides a
    /// row.
    fn disown_hidden(&self, which: impl Fn(&str) -> String, since: Option<&str>) -> Option<String> {
        self.share.removers().next()?;
        let back = self.share.removers().filter_map(|remover| {
            let (gone, own, since) = (sql::ident(&remover.gone()), sql::ident(&remover.version), since?);
            Some(format!(", {gone} = p.{gone} AND abs(p.{own}) >= {since}"))
        });
        Some(format!(
            ",\nw AS (UPDATE {pending} p SET {OWNED} = p.{OWNED} AND NOT ({which}){back}",
            pending = self.pending(),
            which = which("p"),
            back = back.collect::<String>(),
        ))
    }

    /// Puts rows into the target that nothing hides any more. None where no follower's delete hides a row.
    pub fn show(&self) -> Option<String> {
        let hidden = self.hidden("p")?;
        let builder = self.builder;
        let parts = Self::parts(self.share.all());
        let names = self.keys_and("", &parts);
        Some(format!(
            "WITH s AS (DELETE FROM {pending} p WHERE p.{OWNED} AND NOT {hidden} RETURNING {returned}),\n\
             n AS (INSERT INTO {target} ({names}){overriding} SELECT {names} FROM s RETURNING 1)\n\
             SELECT count(*), 0::bigint, 0::bigint, count(*) FROM n",
            pending = self.pending(),
            returned = self.keys_and("p.", &parts),
            target = builder.target(),
            overriding = self.overriding(),
        ))
    }

    /// See [`Builder::replace`]. What is not shown keeps nobody out.
    fn replace(&self) -> String {
        let versions: Vec<&str> = self.share.others.iter().map(|contributor| contributor.version.as_str()).collect();
        let current = self.age("g");
        self.builder.replaced(&self.live_facts(Part::Replace), (&self.version(), &current), &versions)
    }

    /// See [`Builder::late`].
    fn late(&self) -> String {
        let mut tables = vec![(self.builder.target(), self.age("x")), (self.pending(), self.age("x"))];
        if self.share.own.owns {
            tables.push((self.builder.tombstones(), format!("x.{VERSION_COLUMN}")));
        }
        self.builder.later_in(&tables)
    }
}

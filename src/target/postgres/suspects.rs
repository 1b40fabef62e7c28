//! The SQL of bisection: statements that point at the rows which keep a batch out, or make way for them.

use super::{
    needs,
    statement::{Builder, Part},
};
use crate::{
    database::postgres::{catalog::VERSION_COLUMN, sql},
    model::{Coverage, ForeignKey, PlanRole},
};

impl Builder<'_> {
    /// Removes the rows that the live facts replace and inserts them again with their new values, and with what they
    /// had in columns that the transform does not fill: unique values may then have been swapped. All removals come
    /// before the first insert, because counting them needs them all.
    pub fn replace(&self) -> String {
        let facts = match self.plan.coverage {
            _ if self.plan.is_owned() => self.taking(Part::Replace),
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
        let owner = self.owner_kept();
        self.replaced(&facts, (VERSION_COLUMN, &format!("g.{VERSION_COLUMN}")), &owner)
    }

    /// As [`Self::replace`], of the facts `l`. What the row's version is called and how it compares; the columns
    /// `kept_too` are no transform's.
    pub(super) fn replaced(&self, facts: &str, (version, current): (&str, &str), kept_too: &[&str]) -> String {
        let mut others: Vec<&str> = self
            .plan
            .target
            .columns
            .iter()
            .filter(|column| !column.generated && !self.names().any(|name| name == column.name))
            .map(|column| column.name.as_str())
            .collect();
        let identity = |name: &&str| self.plan.target.column(name).is_some_and(|column| column.identity.is_some());
        let overriding = if others.iter().any(identity) { " OVERRIDING SYSTEM VALUE" } else { self.overriding() };
        others.extend(kept_too);
        let kept: Vec<&str> = self.plan.target.key.iter().map(String::as_str).chain(others.iter().copied()).collect();
        let mut columns: Vec<&str> = self.names().collect();
        columns.extend(&others);
        let mut values = sql::list("l.", self.names());
        if !others.is_empty() {
            values = format!("{values}, {}", sql::list("gone.", others.iter().copied()));
        }
        format!(
            "WITH {facts},\n\
             gone AS (DELETE FROM {target} g USING l WHERE {same} AND {current} <= l.cutover_v{own}\n\
             RETURNING {kept}),\n\
             n AS MATERIALIZED (SELECT count(*) AS n FROM gone)\n\
             INSERT INTO {target} ({columns}, {version}){overriding}\n\
             SELECT {values}, l.cutover_v FROM l JOIN gone ON {joined} CROSS JOIN n WHERE n.n >= 0",
            target = self.target(),
            same = self.same_key("g", "l"),
            own = self.own("g", "l.cutover_w"),
            kept = sql::list("g.", kept),
            columns = sql::list("", columns),
            joined = self.same_key("gone", "l"),
        )
    }

    /// The places of live images that claim a target key which a newer one claims as well (rule 7).
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
        self.later_in(&self.ages("x", "i.w"))
    }

    /// What may have something of a fact's key that is newer, each with the version of its row `x`, which is null where
    /// that keeps nothing of this owner out.
    fn ages(&self, row: &str, owner: &str) -> Vec<(String, String)> {
        let version = format!("{row}.{VERSION_COLUMN}");
        if self.plan.is_owned() {
            return self.ages_of_owned(row, owner);
        }
        vec![(self.target(), version.clone()), (self.tombstones(), version)]
    }

    /// The places of live images for all of whose rows one of these tables `x` has something of a newer version.
    pub(super) fn later_in(&self, tables: &[(String, String)]) -> String {
        let live = match self.plan.coverage {
            Coverage::Total | Coverage::Filter => "",
            Coverage::Partial => "\nWHERE NOT i.dead",
        };
        let keys = self.plan.target.key.iter();
        let same: Vec<String> = keys.map(|key| format!("x.{} = {}", sql::ident(key), self.value(key, None))).collect();
        let same = same.join(" AND ");
        let newer = |(table, version): &(String, String)| {
            format!("EXISTS (SELECT FROM {table} x WHERE {same} AND {version} > i.v)")
        };
        let newer: Vec<String> = tables.iter().map(newer).collect();
        format!("SELECT i.n FROM {}{live}\nGROUP BY i.n HAVING bool_and({})", self.rows(Part::Late), newer.join(" OR "),)
    }

    /// That a fact `c` does not come too late: what is not written anyway waits for nobody.
    fn not_late(&self) -> String {
        match self.plan.role {
            PlanRole::Whole => {}
            PlanRole::Share(_) | PlanRole::Set { .. } => return String::new(),
        }
        let newer = |(table, version): (String, String)| {
            format!(
                "\nAND NOT EXISTS (SELECT FROM {table} x WHERE {} AND {version} > c.cutover_v)",
                self.same_key("x", "c")
            )
        };
        self.ages("x", "c.cutover_w").into_iter().map(newer).collect()
    }

    /// The places of live images whose row refers, by this foreign key, to a row that is not there, and what it needs.
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
            "WITH c AS MATERIALIZED (SELECT {}, i.n AS cutover_n, i.v AS cutover_v{}\nFROM {}{live})\n\
             SELECT DISTINCT c.cutover_n, {} FROM c WHERE {} AND NOT EXISTS (SELECT FROM {} p WHERE {}){own}{}",
            self.named_values(),
            self.image_owner(),
            self.rows(Part::Orphans(0)),
            needs::values(key, "c"),
            given.join(" AND "),
            sql::table(&key.parent),
            joined("p"),
            self.not_late(),
        ))
    }
}

//! The SQL of rows that know which source row they are of (rule 37).
//!
//! Where two source rows may have one key at the target, `cutover_owner` has a digest of the source key of the one that
//! has the row. A live fact of another is *held* as long as that row is there: it is not written, its event waits, and
//! what removes the row frees it. Everything else of its event is done, so that a row that moves leaves its old key
//! even where the new one is taken. A dead fact of another owner removes nothing; tombstones are of a key and an owner,
//! in a table of their own, so that the delete of one row keeps nothing of another out.
//!
//! Nobody owns a row with an owner of 0, and none that the table's present copy has not met yet: whoever comes takes
//! it. Which of several source rows has the row is decided by what came first. All of this is one writer's work at a
//! time: the lane is the whole target's.

use std::{collections::BTreeMap, fmt};

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio_postgres::Row;

use super::{
    PostgresSink,
    answers::Mark,
    input::WriteInput,
    items::Item,
    parked::ParkedRow,
    statement::{Builder, Counted, Part},
    tombstones,
};
use crate::{
    database::postgres::{
        PgError, Refusal, Session,
        catalog::{OWNER_COLUMN, VERSION_COLUMN},
        sql,
    },
    model::{Coverage, Plan, TableName, Version, direction::reverse_of},
    state::copies,
    target::RowEvent,
};

/// The digests of the keys that a statement has freed, from its removed rows `d`.
pub(super) const ALL_FREED: &str = "pg_catalog.array_agg(DISTINCT d.cutover_freed)";

/// What of a set is held, by the items' places.
pub(super) type Held = BTreeMap<usize, Hold>;

/// That another has the key of a live fact.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hold {
    /// The digest of the key.
    pub needs: i64,
    /// The fact's.
    version: Version,
}

impl Hold {
    /// What waits of an item: its newest event, for all else of it is done. Where that removes the row, and a filter
    /// passes over such removals, the fact is an older one's, and tells nothing without the newest: then all do.
    pub fn waits<'a>(&self, item: &Item<'a>) -> Vec<&'a RowEvent> {
        match item.newest() {
            Some(newest) if newest.version == self.version => vec![newest],
            Some(_) | None => {
                let mut events: Vec<&RowEvent> = item.parked.iter().chain(&item.events).copied().collect();
                events.sort_by_key(|event| event.version);
                events.dedup_by_key(|event| event.version);
                events
            }
        }
    }
}

/// The values of a record's key, in its order, without their names.
struct KeyValues(Vec<Value>);

impl<'de> Deserialize<'de> for KeyValues {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Values;
        impl<'de> Visitor<'de> for Values {
            type Value = KeyValues;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<KeyValues, A::Error> {
                let mut values = Vec::new();
                while let Some((IgnoredAny, value)) = map.next_entry()? {
                    values.push(value);
                }
                Ok(KeyValues(values))
            }
        }
        deserializer.deserialize_map(Values)
    }
}

/// The digest of a source row's key, as its records have it; never 0. Only the values count, so that a column of the
/// key may get another name, or a wider type.
pub(super) fn owner(key: &[u8]) -> i64 {
    let mut digest = Sha256::new();
    let mut field = |bytes: &[u8]| {
        digest.update((bytes.len() as u64).to_be_bytes());
        digest.update(bytes);
    };
    match serde_json::from_slice(key) {
        Ok(KeyValues(values)) => {
            for value in values {
                match value {
                    Value::String(text) => field(text.as_bytes()),
                    other @ (Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)) => {
                        field(other.to_string().as_bytes());
                    }
                }
            }
        }
        // No key that we have written: it is as it is.
        Err(_) => field(key),
    }
    let number = digest.finalize().iter().take(8).fold(0i64, |number, byte| number << 8 | i64::from(*byte));
    if number == 0 { 1 } else { number }
}

/// Why a row waits whose key another has.
pub(super) fn held_refusal() -> Refusal {
    Refusal::new(
        "21000",
        "two source rows map to one target key, and another row has it: this one comes in when that one is \
         deleted or gets another key; change one of the two at the source, or make the target's key follow from \
         the source's key, one to one",
    )
}

impl Builder<'_> {
    /// `, cutover_owner`, where rows have owners.
    pub(super) fn owner_column(&self) -> String {
        if self.plan.is_owned() { format!(", {OWNER_COLUMN}") } else { String::new() }
    }

    /// `, cutover_w`: an image's owner.
    pub(super) fn image_owner(&self) -> &'static str {
        if self.plan.is_owned() { ", i.w AS cutover_w" } else { "" }
    }

    /// `, cutover_w`: a fact's owner.
    pub(super) fn fact_owner(&self) -> &'static str {
        if self.plan.is_owned() { ", cutover_w" } else { "" }
    }

    /// That the row of this name is this owner's, or nobody's.
    pub(super) fn own(&self, row: &str, owner: &str) -> String {
        if self.plan.is_owned() { format!(" AND {row}.{OWNER_COLUMN} IN (0, {owner})") } else { String::new() }
    }

    /// What a removed row answers: where rows have owners, the digest of its key, which it frees.
    pub(super) fn freed(&self, row: &str) -> String {
        if self.plan.is_owned() {
            let texts: Vec<String> =
                self.plan.target.key.iter().map(|key| format!("{row}.{}::text", sql::ident(key))).collect();
            format!("{} AS cutover_freed", self.key_digest(&texts))
        } else {
            "1".to_owned()
        }
    }

    /// A column that is written with the rest of a row: rows that are written without an owner have none, also where
    /// the target still has the column.
    pub(super) fn set_owner(&self) -> Option<String> {
        (self.plan.target.has_owners && !self.plan.is_owned()).then(|| format!("{OWNER_COLUMN} = 0"))
    }

    /// Columns of ours that a row keeps when it is removed and inserted again.
    pub(super) fn owner_kept(&self) -> Vec<&'static str> {
        if self.plan.is_owned() { vec![OWNER_COLUMN] } else { Vec::new() }
    }

    pub(super) fn owned_tombstones(&self) -> String {
        sql::table(&table(&self.plan.target.name))
    }

    /// See `Builder::ages`. Deletes from before there were owners keep out what is older, whose it may be.
    pub(super) fn ages_of_owned(&self, row: &str, owner: &str) -> Vec<(String, String)> {
        let version = format!("{row}.{VERSION_COLUMN}");
        let owned = |any: &str| format!("CASE WHEN {row}.{OWNER_COLUMN} IN ({any}{owner}) THEN {version} END");
        vec![(self.target(), owned("0, ")), (self.owned_tombstones(), owned("")), (self.tombstones(), version.clone())]
    }

    /// The digest of a target key that a row needs.
    fn key_digest(&self, texts: &[String]) -> String {
        let table = sql::literal(&self.plan.target.name.to_string());
        let texts: Vec<String> = texts.iter().map(|text| format!("{text} COLLATE pg_catalog.\"C\"")).collect();
        let texts = texts.join(", ");
        format!("pg_catalog.hashtextextended(pg_catalog.concat_ws(pg_catalog.chr(31), {table}, {texts}), 0)")
    }

    /// That a row at the target has an owner: the table's present copy has met it, or it is the first. A target that
    /// several pipelines fill has rows that none of our copies meets.
    fn is_met(&self, row: &str) -> String {
        let floor = copies::floor(self.pipeline, &self.plan.source.table);
        let ours = [self.pipeline.to_owned(), reverse_of(self.pipeline)].map(|name| sql::literal(&name)).join(", ");
        let shared = format!("EXISTS (SELECT FROM cutover.tables z WHERE z.pipeline NOT IN ({ours}))");
        format!("({row}.{VERSION_COLUMN} >= coalesce(({floor}), 0) OR {shared})")
    }

    /// The live facts `h` that are not too old, with `cutover_held`: whether another owner has the row or, where none
    /// has it, an older fact of another takes it; and `cutover_needs`, the key's digest.
    fn claims(&self, part: Part) -> String {
        let names = |prefix: &str| sql::list(prefix, self.names());
        let facts = match self.plan.coverage {
            Coverage::Partial => format!(
                "{},\nc AS (SELECT {}, f.cutover_v, f.cutover_w, f.cutover_n FROM f WHERE NOT f.cutover_dead{})",
                self.newest_rows(part),
                names("f."),
                self.not_buried(|key| format!("f.{}", sql::ident(key)), "f.cutover_v", "f.cutover_w"),
            ),
            Coverage::Total | Coverage::Filter => format!(
                "c AS (SELECT {}, i.v AS cutover_v, i.w AS cutover_w, i.n AS cutover_n\nFROM {}\nWHERE true{})",
                self.named_values(),
                self.rows(part),
                self.not_buried(|key| self.value(key, None), "i.v", "i.w"),
            ),
        };
        let keys = &self.plan.target.key;
        let given = keys.iter().map(|key| format!("c.{} IS NOT NULL", sql::ident(key)));
        // As the target's index tells keys apart.
        let compared = keys.iter().map(|key| {
            let collation = self.plan.target.column(key).and_then(|column| column.collation.as_ref());
            let collation = collation.map(|name| format!(" COLLATE {name}")).unwrap_or_default();
            format!("c.{}{collation}", sql::ident(key))
        });
        let either = |key: &String| format!("coalesce(g.{key}::text, c.{key}::text)", key = sql::ident(key));
        format!(
            "{facts},\n\
             h AS MATERIALIZED (SELECT {names}, c.cutover_v, c.cutover_w, c.cutover_n, {needs} AS cutover_needs,\n\
             {given} AND (coalesce(g.{OWNER_COLUMN} NOT IN (0, c.cutover_w) AND {met}, false) OR row_number() OVER (\n\
             PARTITION BY {compared} ORDER BY coalesce(g.{OWNER_COLUMN} = c.cutover_w, false) DESC, c.cutover_v, c.cutover_n) > 1) \
             AS cutover_held\n\
             FROM c LEFT JOIN {target} g ON {same})",
            names = names("c."),
            needs = self.key_digest(&keys.iter().map(either).collect::<Vec<_>>()),
            given = given.collect::<Vec<_>>().join(" AND "),
            met = self.is_met("g"),
            compared = compared.collect::<Vec<_>>().join(", "),
            target = self.target(),
            same = self.same_key("g", "c"),
        )
    }

    /// The live facts `l` that are not held.
    pub(super) fn taking(&self, part: Part) -> String {
        format!("{},\nl AS MATERIALIZED (SELECT * FROM h WHERE NOT cutover_held)", self.claims(part))
    }

    /// As [`Self::live`]. Answers, besides, the places of the images whose facts are held, and for each the digest of
    /// the key that it needs.
    pub(super) fn live_owned(&self) -> String {
        let (clashes, given) = match self.plan.coverage {
            Coverage::Total => ("0::bigint", "NULL::bigint"),
            Coverage::Filter => ("0::bigint", "0::bigint"),
            Coverage::Partial => (
                "(SELECT count(*) FROM f WHERE cutover_clashes > 1)",
                "(SELECT count(*) FROM f WHERE NOT cutover_dead)",
            ),
        };
        let Counted { returning, inserted, updated, from } = self.counted();
        format!(
            "WITH {claims},\n\
             u AS (INSERT INTO {target} AS g ({mapped}, {VERSION_COLUMN}, {OWNER_COLUMN}){overriding}\n\
             SELECT {names}, h.cutover_v, h.cutover_w FROM h WHERE NOT h.cutover_held\n\
             ON CONFLICT ({keys}) DO UPDATE SET {set}, {OWNER_COLUMN} = excluded.{OWNER_COLUMN}\n\
             WHERE g.{VERSION_COLUMN} <= excluded.{VERSION_COLUMN} RETURNING {returning})\n\
             SELECT {inserted}, {updated}, {clashes}, {given},\n\
             (SELECT pg_catalog.array_agg(h.cutover_n ORDER BY h.cutover_n) FROM h WHERE h.cutover_held),\n\
             (SELECT pg_catalog.array_agg(h.cutover_needs ORDER BY h.cutover_n) FROM h WHERE h.cutover_held)\n\
             FROM {from}",
            claims = self.claims(Part::Live),
            target = self.target(),
            mapped = self.mapped(),
            overriding = self.overriding(),
            names = sql::list("h.", self.names()),
            keys = self.keys(""),
            set = self.assignments(),
        )
    }

    /// That no delete of the owner's is newer, and none from before there were owners.
    fn not_buried(&self, value: impl Fn(&str) -> String, version: &str, owner: &str) -> String {
        let same = self.plan.target.key.iter().map(|key| format!("t.{} = {}", sql::ident(key), value(key)));
        let same = same.collect::<Vec<_>>().join(" AND ");
        let buried = |tombstones: String, own: String| {
            format!(" AND NOT EXISTS (SELECT FROM {tombstones} t WHERE {same} AND t.{VERSION_COLUMN} > {version}{own})")
        };
        let own = format!(" AND t.{OWNER_COLUMN} = {owner}");
        format!("{}{}", buried(self.owned_tombstones(), own), buried(self.tombstones(), String::new()))
    }

    /// The places of live images that make a key twice: of one source row no two can be told apart.
    pub(super) fn clashes_owned(&self) -> String {
        let live = match self.plan.coverage {
            Coverage::Total | Coverage::Filter => "",
            Coverage::Partial => "\nWHERE NOT i.dead",
        };
        format!(
            "SELECT DISTINCT c.n FROM (SELECT i.n, row_number() OVER (PARTITION BY {}, i.w ORDER BY i.v DESC, i.n) AS place\n\
             FROM {}{live}) c WHERE c.place > 1",
            self.key_values().join(", "),
            self.rows(Part::Clashes)
        )
    }
}

/// The tombstones of a target whose rows have owners, by key and owner.
pub(super) fn table(target: &TableName) -> TableName {
    tombstones::beside("owned", target)
}

/// Makes what owners need. Where a plan's rows have none any more, the deletes that are known by owner become deletes
/// of their keys, and the target's column stays: others may look at it.
pub(super) async fn prepare(session: &Session, plan: &Plan) -> Result<(), PgError> {
    let (target, keys) = (&plan.target, sql::list("", plan.target.key.iter().map(String::as_str)));
    let owned = table(&target.name);
    if plan.is_owned() {
        let columns = target.key.iter().filter_map(|key| target.column(key)).map(tombstones::key_column);
        let create = format!(
            "CREATE TABLE IF NOT EXISTS {} ({}, {OWNER_COLUMN} bigint NOT NULL, {VERSION_COLUMN} bigint NOT NULL, \
             PRIMARY KEY ({keys}, {OWNER_COLUMN}))",
            sql::table(&owned),
            columns.collect::<Vec<_>>().join(", "),
        );
        session.client.batch_execute(&create).await?;
        if !target.has_owners {
            warn_of_unowned(session, plan).await?;
        }
        return tombstones::add_version(session, &target.name, OWNER_COLUMN).await;
    }
    if target.has_owners && exists(session, &owned).await? {
        let keep = format!(
            "INSERT INTO {} AS t ({keys}, {VERSION_COLUMN}) SELECT {keys}, max({VERSION_COLUMN}) FROM {} GROUP BY {keys} \
             ON CONFLICT ({keys}) DO UPDATE SET {VERSION_COLUMN} = excluded.{VERSION_COLUMN} \
             WHERE t.{VERSION_COLUMN} < excluded.{VERSION_COLUMN}",
            sql::table(&tombstones::table(&target.name)),
            sql::table(&owned),
        );
        session.client.batch_execute(&keep).await?;
    }
    Ok(())
}

/// Rows from before there were owners belong to whoever comes, and who else claims them was never kept.
async fn warn_of_unowned(session: &Session, plan: &Plan) -> Result<(), PgError> {
    let target = &plan.target.name;
    let written = format!("SELECT EXISTS (SELECT FROM {} WHERE {VERSION_COLUMN} > 0)", sql::table(target));
    if session.client.query_one(&written, &[]).await?.try_get(0)? {
        tracing::warn!(
            %target,
            "its rows were written before it was known whose they are; `cutover resnapshot {}` finds that out",
            plan.source.table.table
        );
    }
    Ok(())
}

async fn exists(session: &Session, table: &TableName) -> Result<bool, PgError> {
    let row = session.client.query_one("SELECT to_regclass($1) IS NOT NULL", &[&sql::table(table)]).await?;
    Ok(row.try_get(0)?)
}

/// Forgets the deletes older than `version` that are known by owner; how many they were.
pub(super) async fn collect(session: &Session, plan: &Plan, version: Version) -> Result<u64, PgError> {
    let owned = table(&plan.target.name);
    if !(plan.is_owned() || plan.target.has_owners) || !exists(session, &owned).await? {
        return Ok(0);
    }
    let delete = format!("DELETE FROM {} WHERE {VERSION_COLUMN} < $1", sql::table(&owned));
    Ok(session.client.execute(&delete, &[&version]).await?)
}

impl PostgresSink {
    fn is_owned(&self, place: usize) -> bool {
        let plan = self.bindings.all.get(place).and_then(|binding| self.plans.get(binding.plan));
        plan.is_some_and(Plan::is_owned)
    }

    /// How many live facts of a binding are held, by the answer to them.
    pub(super) fn held(&self, place: usize, answer: &[Row]) -> Result<u64, PgError> {
        let row = answer.first().filter(|_| self.is_owned(place));
        row.map_or(Ok(0), |row| Ok(numbers(row, 4)?.len() as u64))
    }

    /// The items of which the answers say that they are held, and the digests of the keys that were freed.
    pub(super) fn held_and_freed(
        &self,
        input: &WriteInput<'_>,
        answers: &[(Mark, Vec<Row>)],
    ) -> Result<(Held, Vec<i64>), PgError> {
        let (mut held, mut freed) = (Held::new(), Vec::new());
        for (mark, rows) in answers {
            let (Mark::Write(part, place, _), Some(row)) = (mark, rows.first()) else { continue };
            if !self.is_owned(*place) {
                continue;
            }
            match part {
                Part::Dead | Part::Gone => freed.extend(numbers(row, 2)?),
                Part::Unmatched => freed.extend(numbers(row, 1)?),
                Part::Live => {
                    let Some(images) = input.groups.get(place).map(|group| &group.live) else { continue };
                    for (image, needs) in numbers(row, 4)?.into_iter().zip(numbers(row, 5)?) {
                        let image = usize::try_from(image - 1).unwrap_or(usize::MAX);
                        let item = images.items.get(image).zip(images.versions.get(image));
                        held.extend(item.map(|(item, version)| (*item, Hold { needs, version: *version })));
                    }
                }
                Part::Replace | Part::Show | Part::Clashes | Part::Late | Part::Orphans(_) => {}
            }
        }
        Ok((held, freed))
    }

    /// Stores what is held of a batch.
    pub(super) async fn store_held(&mut self, items: &[Item<'_>], held: &Held) -> Result<(), PgError> {
        let mut waiting: Vec<ParkedRow<'_>> = Vec::new();
        for (item, hold) in held.iter().filter_map(|(place, hold)| Some((items.get(*place)?, hold))) {
            waiting.extend(hold.waits(item).into_iter().map(|event| {
                let Refusal { sqlstate, message, .. } = held_refusal();
                ParkedRow { event, sqlstate, message, needs: Some(hold.needs) }
            }));
        }
        self.store_waiting(&waiting).await
    }
}

fn numbers(row: &Row, column: usize) -> Result<Vec<i64>, PgError> {
    Ok(row.try_get::<_, Option<Vec<i64>>>(column)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_are_told_apart_by_the_values_of_their_source_keys_and_are_never_unknown() {
        assert_ne!(owner(br#"{"email":"A"}"#), owner(br#"{"email":"a"}"#));
        assert_ne!(owner(br#"{"a":"b","c":"d"}"#), owner(br#"{"a":"bd","c":""}"#));
        assert_ne!(owner(br#"{"id":12345678901234567890123}"#), owner(br#"{"id":12345678901234567890124}"#));
        assert_ne!(owner(b""), 0);
    }

    #[test]
    fn a_renamed_or_widened_column_of_the_key_changes_no_owner() {
        assert_eq!(owner(br#"{"id":1,"mail":"a"}"#), owner(br#"{"nr":1,"email":"a"}"#));
        assert_eq!(owner(br#"{"z":1,"a":2}"#), owner(br#"{"a":1,"z":2}"#));
        assert_eq!(owner(br#"{"id":1}"#), owner(br#"{"id":"1"}"#));
    }
}

//! The SQL that compares, where rows end on MySQL or MariaDB.
//!
//! What PostgreSQL makes of the source's rows goes into a temporary table that has the types of the target's columns,
//! so that both sides of a comparison are this server's own values: a FLOAT is rounded, a CHAR padded, a JSON read as
//! it would be in the table itself. Texts are compared by their bytes, whatever their collation takes for equal; keys
//! are found by the target's index, and are the same only if their bytes are.

use super::{
    keys::{Place, order},
    literal::{is_bit, is_text, own_type, side_type, side_value},
    tables::Table,
};
use crate::{
    database::mysql::{
        connect::quoted,
        details::ForeignKey,
        literal::{is_character, is_geometry, quoted_literal},
    },
    model::{Column, ColumnType},
};

/// The statements that compare one plan's rows with a table.
#[derive(Debug)]
pub(super) struct Comparison<'a> {
    pub table: &'a Table,
    /// Those that the plan fills, in its order.
    pub columns: Vec<&'a Column>,
    /// The plan's place, by which its temporary tables are told from others.
    pub plan: usize,
    /// Ask for values that differ.
    pub values: bool,
}

impl<'a> Comparison<'a> {
    /// Of the rows that a plan makes, with their places as `cutover_n`.
    pub fn made(&self) -> String {
        format!("`cutover`.`made_{}`", self.plan)
    }

    /// Of the keys that were made in a pass.
    pub fn seen(&self) -> String {
        format!("`cutover`.`seen_{}`", self.plan)
    }

    /// Of those of them that several rows of the source have made.
    pub fn shared(&self) -> String {
        format!("`cutover`.`shared_{}`", self.plan)
    }

    pub fn create_made(&self) -> String {
        let column = |column: &&Column| format!(", {} {} NULL", quoted(&column.name), own_type(column));
        let columns: String = self.columns.iter().map(column).collect();
        format!(
            "CREATE TEMPORARY TABLE {} (`cutover_n` INT UNSIGNED NOT NULL PRIMARY KEY{columns}) \
             ENGINE = InnoDB ROW_FORMAT = DYNAMIC",
            self.made()
        )
    }

    /// A table of keys, as the side table has them.
    pub fn create_keys(&self, name: &str) -> String {
        let columns = self.table.key_columns();
        let columns: Vec<String> =
            columns.map(|column| format!("{} {} NOT NULL", quoted(&column.name), side_type(column))).collect();
        format!(
            "CREATE TEMPORARY TABLE {name} (`cutover_n` BIGINT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY, {}, \
             KEY `cutover_k` ({})) ENGINE = InnoDB ROW_FORMAT = DYNAMIC",
            columns.join(", "),
            self.key_names()
        )
    }

    pub fn key_names(&self) -> String {
        self.table.key_columns().map(|column| quoted(&column.name)).collect::<Vec<_>>().join(", ")
    }

    /// What an INSERT of made rows begins with.
    pub fn insert_made(&self) -> String {
        let columns: String = self.columns.iter().map(|column| format!(", {}", quoted(&column.name))).collect();
        format!("INSERT INTO {} (`cutover_n`{columns}) VALUES ", self.made())
    }

    /// Notes the keys that so many rows have which were made several times, at most.
    pub fn note_shared(&self, keys_max: usize) -> String {
        let (keys, seen) = (self.key_names(), self.seen());
        format!(
            "INSERT INTO {} ({keys}) SELECT {keys} FROM {seen} GROUP BY {keys} HAVING COUNT(*) > 1 LIMIT {keys_max}",
            self.shared()
        )
    }

    /// The columns but the key.
    pub fn others(&self) -> Vec<&'a Column> {
        let is_key = |column: &&&Column| self.table.key_columns().any(|key| key.name == column.name);
        self.columns.iter().filter(|column| !is_key(column)).copied().collect()
    }

    /// Made rows that are not there, or differ: (place, whether it is not there, digest, of each column but the key
    /// whether it differs, and, if values are asked for, both of them).
    pub fn unequal(&self) -> String {
        let others = self.others();
        let first = self.table.key_columns().next().map(|column| quoted(&column.name)).unwrap_or_default();
        let differing: Vec<String> = others.iter().map(|column| differs(column)).collect();
        let mut told: Vec<String> = differing.iter().map(|differs| format!("{differs} AS `d`")).collect();
        if self.values {
            for side in ["m", "t"] {
                told.extend(others.iter().map(|column| shown(column, &format!("{side}.{}", quoted(&column.name)))));
            }
        }
        let told: String = told.iter().map(|told| format!(", {told}")).collect();
        let any: String = differing.iter().map(|differs| format!(" OR {differs}")).collect();
        format!(
            "SELECT m.`cutover_n`, t.{first} IS NULL, {digest}{told}\nFROM {made} m LEFT JOIN {from} ON {same}\n\
             WHERE t.{first} IS NULL{any}",
            digest = self.digest_of_both(),
            made = self.made(),
            from = Place::Table.from(self.table),
            same = self.same_key(),
        )
    }

    /// That a made row `m` and a row `t` have one key: by the index, and byte by byte.
    fn same_key(&self) -> String {
        let same = |column: &Column| {
            let name = quoted(&column.name);
            let same = format!("t.{name} = m.{name}");
            if is_text(column) {
                format!("{same} AND {} = {}", bytes(&format!("t.{name}")), bytes(&format!("m.{name}")))
            } else {
                same
            }
        };
        self.table.key_columns().map(same).collect::<Vec<_>>().join(" AND ")
    }

    /// A digest of what is made and what is there, in the columns that differ.
    fn digest_of_both(&self) -> String {
        let part = |column: &&Column| {
            let hash = |side: &str| hashed(column, &format!("{side}.{}", quoted(&column.name)));
            format!(
                "CASE WHEN {} THEN CONCAT({}, {}, '/', {}) END",
                differs(column),
                quoted_literal(&column.name),
                hash("m"),
                hash("t")
            )
        };
        let others = self.others();
        digest(others.iter().map(part))
    }

    /// Rows that have these keys: the key, and a digest of what is there.
    pub fn present(&self, condition: &str) -> String {
        let hash = |column: &&Column| {
            format!(
                "CONCAT({}, {})",
                quoted_literal(&column.name),
                hashed(column, &format!("t.{}", quoted(&column.name)))
            )
        };
        let others = self.others();
        format!(
            "SELECT {}, {} FROM {} WHERE {condition}",
            Place::Table.read(self.table).join(", "),
            digest(others.iter().map(hash)),
            Place::Table.from(self.table)
        )
    }

    /// Keys of rows within a condition, in their order, so many at most; with `unseen` those that were not made.
    pub fn keys_there(&self, condition: &str, unseen: bool, rows_max: usize) -> String {
        let unseen = if unseen {
            format!(" AND NOT EXISTS (SELECT 1 FROM {} s WHERE {})", self.seen(), self.table.same_key("t"))
        } else {
            String::new()
        };
        format!(
            "SELECT {} FROM {} WHERE {condition}{unseen} ORDER BY {} LIMIT {rows_max}",
            Place::Table.read(self.table).join(", "),
            Place::Table.from(self.table),
            order(self.table).join(", ")
        )
    }

    /// Keys of which the target has heard above a version, in the order of the side table.
    pub fn keys_heard(&self, condition: &str, since: i64, rows_max: usize) -> String {
        format!(
            "SELECT {} FROM {} WHERE t.`cutover_version` > {since} AND {condition} ORDER BY {} LIMIT {rows_max}",
            Place::Side.read(self.table).join(", "),
            Place::Side.from(self.table),
            order(self.table).join(", ")
        )
    }

    /// How many rows are there within a condition.
    pub fn count(&self, condition: &str) -> String {
        format!("SELECT COUNT(*) FROM {} WHERE {condition}", Place::Table.from(self.table))
    }

    /// The places of made rows whose keys were noted as shared.
    pub fn that_share(&self) -> String {
        let same = |column: &Column| {
            let name = quoted(&column.name);
            format!("{} = s.{name}", side_value(column, &format!("m.{name}")))
        };
        let same: Vec<String> = self.table.key_columns().map(same).collect();
        format!("SELECT m.`cutover_n` FROM {} m JOIN {} s ON {}", self.made(), self.shared(), same.join(" AND "))
    }
}

/// Counts the rows of a table that have no parent. A key with a null in it asks for none.
pub(super) fn orphans(table: &Table, key: &ForeignKey) -> String {
    let given: Vec<String> = key.columns.iter().map(|name| format!("c.{} IS NOT NULL", quoted(name))).collect();
    let pairs = key.columns.iter().zip(&key.parent_columns);
    let same: Vec<String> = pairs.map(|(own, of)| format!("p.{} = c.{}", quoted(of), quoted(own))).collect();
    format!(
        "SELECT COUNT(*) FROM {} c WHERE {} AND NOT EXISTS (SELECT 1 FROM {}.{} p WHERE {})",
        table.sql(),
        given.join(" AND "),
        quoted(&key.parent.schema),
        quoted(&key.parent.table),
        same.join(" AND ")
    )
}

/// The condition that `m` and `t` have two values in a column.
fn differs(column: &Column) -> String {
    let name = quoted(&column.name);
    let compared = |side: &str| {
        let name = format!("{side}.{name}");
        match column.column_type {
            ColumnType::Bytes if is_geometry(column.base_type()) => format!("HEX({name})"),
            _ if is_character(column) => bytes(&name),
            _ => name,
        }
    };
    format!("NOT ({} <=> {})", compared("m"), compared("t"))
}

fn bytes(value: &str) -> String {
    format!("CAST({value} AS BINARY)")
}

/// What people are shown of a value.
fn shown(column: &Column, name: &str) -> String {
    match column.column_type {
        ColumnType::Bytes => format!(r"CONCAT('\\x', LOWER(HEX({name})))"),
        ColumnType::Real => format!("CAST({name} + 0e0 AS CHAR)"),
        _ => format!("CAST({name} AS CHAR)"),
    }
}

/// A digest of one value, `-` of a null.
fn hashed(column: &Column, name: &str) -> String {
    let value = match column.column_type {
        ColumnType::Bytes if is_bit(column) => format!("{name} + 0"),
        ColumnType::Bytes => name.to_owned(),
        ColumnType::Real => format!("{name} + 0e0"),
        _ => format!("CAST({name} AS CHAR)"),
    };
    format!("IFNULL(SHA2({value}, 256), '-')")
}

/// A digest of parts, those that are null left out.
fn digest(parts: impl Iterator<Item = String>) -> String {
    let parts: String = parts.map(|part| format!(", {part}")).collect();
    format!("SHA2(CONCAT_WS(','{}), 256)", if parts.is_empty() { ", ''" } else { &parts })
}

//! Keys of rows: as literals, in the spelling that both sides share, and looked up at the target.
//!
//! Texts that a collation takes for one key are keys of their own to cutover: each has its versions, and a row that is
//! spelled otherwise is another's.

use std::{collections::HashMap, convert::Infallible};

use mysql_async::{Row, Value};

use super::{
    literal::{is_text, key_expression, key_literal, side_expression, side_literal, spelled},
    session::Session,
    tables::Table,
};
use crate::{
    database::mysql::{connect::quoted, literal::quoted_literal},
    model::Column,
    target::rows::RowsError,
};

/// Keys that are looked up by one statement. MariaDB makes a subquery of a list of 1,000, and 5.7 scans the table where
/// its ranges take too much memory.
const KEYS_AT_ONCE: usize = 500;
/// Bytes of the keys of one statement, which has each of them four times as long at most.
const KEY_BYTES: usize = 128 << 10;

/// A row's key.
#[derive(Debug)]
pub(super) struct Key {
    /// By column, as SQL.
    pub literals: Vec<String>,
    /// The same, of the side table.
    pub side: Vec<String>,
    /// By column, in the spelling that both sides share.
    pub spelled: Vec<String>,
}

impl Key {
    /// Of these values of a fact, in the order of the key.
    ///
    /// # Errors
    /// Why no row can have it.
    pub fn of<'a>(table: &Table, texts: impl Iterator<Item = Option<&'a str>>) -> Result<Self, String> {
        Self::with(table, texts, Err::<(), _>)
    }

    /// Of a row that is there, whatever a fact may have.
    pub fn stored<'a>(table: &Table, texts: impl Iterator<Item = Option<&'a str>>) -> Self {
        let anyway = |_| Ok::<_, Infallible>(());
        let Ok(key) = Self::with(table, texts, anyway);
        key
    }

    /// What a fact must not have is `judged`.
    fn with<'a, E>(
        table: &Table,
        texts: impl Iterator<Item = Option<&'a str>>,
        judged: impl Fn(String) -> Result<(), E>,
    ) -> Result<Self, E> {
        let mut key = Key { literals: Vec::new(), side: Vec::new(), spelled: Vec::new() };
        for (column, text) in table.key_columns().zip(texts) {
            let plain = || quoted_literal(text.unwrap_or_default());
            for (literals, literal) in
                [(&mut key.literals, key_literal(column, text)), (&mut key.side, side_literal(column, text))]
            {
                literals.push(match literal {
                    Ok(literal) => literal,
                    Err(reason) => {
                        judged(reason)?;
                        plain()
                    }
                });
            }
            key.spelled.push(text.map(|text| spelled(column, text)).unwrap_or_default());
        }
        Ok(key)
    }
}

/// One of the two tables in which a key is looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Table,
    Side,
}

impl Place {
    /// What a statement selects from, as `t`.
    pub fn from(self, table: &Table) -> String {
        match self {
            Place::Table => format!("{} t{}", table.sql(), table.by_key()),
            Place::Side => format!("{} t FORCE INDEX (PRIMARY)", table.side()),
        }
    }

    /// A key's columns of `t`, as they are read.
    pub fn read(self, table: &Table) -> Vec<String> {
        let name = |column: &Column| format!("t.{}", quoted(&column.name));
        let read = |column| match self {
            Place::Table => key_expression(column, &name(column)),
            Place::Side => side_expression(column, &name(column)),
        };
        table.key_columns().map(read).collect()
    }

    fn literals(self, key: &Key) -> &[String] {
        match self {
            Place::Table => &key.literals,
            Place::Side => &key.side,
        }
    }

    /// The rows `t` that have one of these keys.
    pub fn condition(self, table: &Table, keys: &[&Key]) -> String {
        let names: Vec<String> = table.key_columns().map(|column| format!("t.{}", quoted(&column.name))).collect();
        if let [name] = names.as_slice() {
            let values: Vec<&str> = keys.iter().flat_map(|key| self.literals(key)).map(String::as_str).collect();
            return format!("{name} IN ({})", values.join(", "));
        }
        let one = |key: &&Key| {
            let same = names.iter().zip(self.literals(key)).map(|(name, value)| format!("{name} = {value}"));
            format!("({})", same.collect::<Vec<_>>().join(" AND "))
        };
        keys.iter().map(one).collect::<Vec<_>>().join(" OR ")
    }

    /// The rows `t` whose key comes behind this one.
    pub fn behind(self, table: &Table, key: &Key) -> String {
        self.ordered(table, key, ">", ">")
    }

    /// The rows `t` whose key comes before this one, or is it.
    pub fn up_to(self, table: &Table, key: &Key) -> String {
        self.ordered(table, key, "<", "<=")
    }

    /// The rows `t` whose key compares so with this one; with `last` in its last column.
    fn ordered(self, table: &Table, key: &Key, operator: &str, last: &str) -> String {
        let columns: Vec<(String, &String)> = order(table).into_iter().zip(self.literals(key)).collect();
        // Columns in front are equal, this one differs.
        let at = |place: usize| {
            let equal = columns.iter().take(place).map(|(name, value)| format!("{name} = {value}"));
            let operator = if place + 1 == columns.len() { last } else { operator };
            let own = columns.get(place).map(|(name, value)| format!("{name} {operator} {value}"));
            format!("({})", equal.chain(own).collect::<Vec<_>>().join(" AND "))
        };
        let any: Vec<String> = (0..columns.len()).map(at).collect();
        // The server ranges over the index by the first column alone.
        let first = columns.first().map(|(name, value)| format!("{name} {operator}= {value} AND "));
        format!("{}({})", first.unwrap_or_default(), any.join(" OR "))
    }
}

impl Session {
    /// The rows that have these keys: of each its key as it is read, and of the side table its version behind it. With
    /// `locked` they stay so.
    pub async fn find(
        &mut self,
        table: &Table,
        place: Place,
        keys: &[Key],
        locked: bool,
    ) -> Result<Vec<Option<Vec<String>>>, RowsError> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let mut names = place.read(table);
        names.extend((place == Place::Side).then(|| "t.`cutover_version`".to_owned()));
        let (names, from) = (names.join(", "), place.from(table));
        let lock = if locked { " FOR UPDATE" } else { "" };
        let select = |keys: &[&Key]| format!("SELECT {names} FROM {from} WHERE {}{lock}", place.condition(table, keys));
        let read = |row: Row| -> (Vec<String>, Vec<String>) {
            let texts = texts(row);
            (spelled_key(table, &texts), texts)
        };
        let all: Vec<&Key> = keys.iter().collect();
        let mut rows: HashMap<Vec<String>, Vec<String>> =
            self.rows(&select(&all)).await?.into_iter().map(read).collect();
        let mut found: Vec<Option<Vec<String>>> = keys.iter().map(|key| rows.remove(&key.spelled)).collect();
        if rows.is_empty() {
            return Ok(found);
        }
        // Rows that spell their keys in another way: the server says whose they are.
        for (slot, key) in found.iter_mut().zip(keys) {
            if slot.is_none() {
                let row = self.rows(&select(&[key])).await?.into_iter().next();
                *slot = row.map(|row| read(row).1);
            }
        }
        Ok(found)
    }
}

/// The columns of a key of `t` as they are put in an order. Labels of ENUM and SET sort by their places, and compare
/// with texts as texts: here they are texts.
pub(super) fn order(table: &Table) -> Vec<String> {
    let expression = |column: &Column| {
        let name = format!("t.{}", quoted(&column.name));
        let is_label = matches!(column.base_type(), "enum" | "set");
        if is_label { format!("CAST(CONVERT({name} USING utf8mb4) AS BINARY)") } else { name }
    };
    table.key_columns().map(expression).collect()
}

/// A key that was read, in the spelling that both sides share.
pub(super) fn spelled_key(table: &Table, texts: &[String]) -> Vec<String> {
    table.key_columns().zip(texts).map(|(column, text)| spelled(column, text)).collect()
}

/// Whether a stored key, as it was read, is spelled as a fact's, in the columns whose collation may take others for
/// equal.
pub(super) fn is_same(table: &Table, stored: &[String], fact: &[String]) -> bool {
    let mut columns = table.key_columns().zip(stored).zip(fact);
    columns.all(|((column, stored), fact)| !is_text(column) || spelled(column, stored) == *fact)
}

/// Parts of `all` whose keys, of so many bytes each, go into one statement.
pub(super) fn pieces<T>(all: &[T], bytes: impl Fn(&T) -> usize) -> Vec<&[T]> {
    let (mut pieces, mut rest) = (Vec::new(), all);
    while !rest.is_empty() {
        let mut room = KEY_BYTES;
        let fits = |one: &&T| {
            let fits = room > 0;
            room = room.saturating_sub(bytes(one));
            fits
        };
        let length = rest.iter().take(KEYS_AT_ONCE).take_while(fits).count();
        let (piece, others) = rest.split_at(length);
        pieces.push(piece);
        rest = others;
    }
    pieces
}

/// What a row says, a null as an empty text.
pub(super) fn texts(row: Row) -> Vec<String> {
    row.unwrap().into_iter().map(|value| text(value).unwrap_or_default()).collect()
}

/// What a value says.
pub(super) fn text(value: Value) -> Option<String> {
    match value {
        Value::Bytes(bytes) => Some(String::from_utf8_lossy(&bytes).into_owned()),
        Value::NULL => None,
        other => Some(other.as_sql(true)),
    }
}

//! What the items of a table look like, told from some of them: a column for each attribute, with a type that fits all
//! that was seen.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use crate::database::dynamodb::{Attribute, Item};

/// Attributes that become columns; a table with more names (they are data then) keeps the rest in its item.
const COLUMNS_MAX: usize = 100;

/// What was seen of one attribute.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// `S`, `N`, … as DynamoDB calls them, without `NULL`.
    types: BTreeSet<&'static str>,
    /// Whether every number is an integer that fits into 64 bits.
    is_integer: bool,
    /// Whether every text is a time such as `2024-05-30T10:00:00Z`.
    is_time: bool,
    /// How many items have it, and not as `NULL`.
    items: usize,
}

/// The attributes of some items.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Sample {
    pub items: usize,
    pub attributes: BTreeMap<String, Seen>,
    /// Attributes that have no column, for want of room.
    pub left_out: usize,
}

/// What a target's column is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Suggestion {
    pub column_type: &'static str,
    /// With `{}` for the attribute's name as a string constant.
    expression: &'static str,
    pub note: String,
}

impl Suggestion {
    pub(super) fn select(&self, name: &str) -> String {
        self.expression.replace("{}", name)
    }
}

impl Sample {
    /// Looks at items, leaving out the attributes of the key.
    pub(super) fn of(items: &[Item], is_key: impl Fn(&str) -> bool) -> Self {
        let mut attributes: BTreeMap<String, Seen> = BTreeMap::new();
        for (name, value) in items.iter().flatten().filter(|(name, _)| !is_key(name)) {
            let fresh = || Seen { is_integer: true, is_time: true, ..Seen::default() };
            attributes.entry(name.clone()).or_insert_with(fresh).add(value);
        }
        let mut by_use: Vec<(String, Seen)> = attributes.into_iter().collect();
        by_use.sort_by_key(|(_, seen)| Reverse(seen.items));
        let left_out = by_use.len().saturating_sub(COLUMNS_MAX);
        by_use.truncate(COLUMNS_MAX);
        Sample { items: items.len(), attributes: by_use.into_iter().collect(), left_out }
    }
}

impl Seen {
    fn add(&mut self, value: &Attribute) {
        let kind = match value {
            Attribute::Null => return,
            Attribute::Bool(_) => "BOOL",
            Attribute::Number(number) => {
                self.is_integer &= number.parse::<i64>().is_ok();
                "N"
            }
            Attribute::Text(text) => {
                self.is_time &= is_time(text);
                "S"
            }
            Attribute::Bytes(_) => "B",
            Attribute::List(_) => "L",
            Attribute::Map(_) => "M",
            Attribute::Texts(_) => "SS",
            Attribute::Numbers(_) => "NS",
            Attribute::Blobs(_) => "BS",
        };
        self.items += 1;
        self.types.insert(kind);
    }

    /// The column for it.
    pub(super) fn suggest(&self, items: usize) -> Suggestion {
        let types: Vec<&str> = self.types.iter().copied().collect();
        let (column_type, expression) = match types.as_slice() {
            ["S"] if self.is_time => ("timestamptz", "(item->>{})::timestamptz"),
            ["S"] => ("text", "item->>{}"),
            ["N"] if self.is_integer => ("bigint", "(item->>{})::bigint"),
            ["N"] => ("numeric", "(item->>{})::numeric"),
            ["BOOL"] => ("boolean", "(item->>{})::boolean"),
            ["B"] => ("bytea", "decode(item->>{}, 'base64')"),
            _ => ("jsonb", "item->{}"),
        };
        let seen = match types.as_slice() {
            [] => "only NULL".to_owned(),
            types => types.join(" or "),
        };
        let note = format!("{seen}, in {} of {items} items", self.items);
        Suggestion { column_type, expression, note }
    }
}

/// A date and a time with its zone.
fn is_time(text: &str) -> bool {
    let shape: String = text.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    let Some(rest) = shape.strip_prefix("0000-00-00T00:00:00") else { return false };
    let zone = match rest.strip_prefix('.') {
        Some(fraction) => fraction.trim_start_matches('0'),
        None => rest,
    };
    matches!(zone, "Z" | "+00:00" | "-00:00")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(attributes: &[(&str, Attribute)]) -> Item {
        attributes.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect()
    }

    #[test]
    fn a_column_has_the_type_that_fits_everything_that_was_seen() {
        let text = |text: &str| Attribute::Text(text.into());
        let number = |text: &str| Attribute::Number(text.into());
        let items = [
            item(&[
                ("id", text("1")),
                ("title", text("A")),
                ("at", text("2024-05-30T10:00:00Z")),
                ("pages", number("12")),
                ("price", number("1")),
                ("mixed", number("1")),
                ("gone", Attribute::Null),
            ]),
            item(&[
                ("id", text("2")),
                ("title", text("")),
                ("at", text("2024-05-30T10:00:00.123+02:00")),
                ("pages", number("13")),
                ("price", number("1.5")),
                ("mixed", text("x")),
                ("tags", Attribute::Texts(vec!["a".into()])),
            ]),
        ];
        let sample = Sample::of(&items, |name| name == "id");
        let types: Vec<(&str, &str)> = (sample.attributes.iter())
            .map(|(name, seen)| (name.as_str(), seen.suggest(sample.items).column_type))
            .collect();
        let expected = [
            ("at", "timestamptz"),
            ("gone", "jsonb"),
            ("mixed", "jsonb"),
            ("pages", "bigint"),
            ("price", "numeric"),
            ("tags", "jsonb"),
            ("title", "text"),
        ];
        assert_eq!(types, expected);
        assert_eq!(sample.attributes["mixed"].suggest(2).note, "N or S, in 2 of 2 items");
        assert_eq!(sample.attributes["pages"].suggest(2).select("'pages'"), "(item->>'pages')::bigint");
    }

    #[test]
    fn only_whole_times_with_a_zone_are_times() {
        for text in ["2024-05-30", "2024-05-30T10:00:00", "x", "", "2024-05-30T10:00:00.5", "2024-05-30T10:00:00 Z"] {
            assert!(!is_time(text), "{text}");
        }
    }
}

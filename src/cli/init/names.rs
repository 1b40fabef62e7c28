//! PostgreSQL's names: what must be quoted, what is too long, what is taken.

use std::collections::HashSet;

use sha2::{Digest, Sha256};

use crate::{cli::eligible::IDENTIFIER_BYTES_MAX, database::postgres::sql};

/// The keywords of PostgreSQL 15 to 18 that cannot stand everywhere as a name (`pg_get_keywords()`, all but
/// unreserved).
const KEYWORDS: &str = "all analyse analyze and any array as asc asymmetric authorization between bigint binary bit \
    boolean both case cast char character check coalesce collate collation column concurrently constraint create cross \
    current_catalog current_date current_role current_schema current_time current_timestamp current_user dec decimal \
    default deferrable desc distinct do else end except exists extract false fetch float for foreign freeze from full \
    grant greatest group grouping having ilike in initially inner inout int integer intersect interval into is isnull \
    join json json_array json_arrayagg json_exists json_object json_objectagg json_query json_scalar json_serialize \
    json_table json_value lateral leading least left like limit localtime localtimestamp merge_action national natural \
    nchar none normalize not notnull null nullif numeric offset on only or order out outer overlaps overlay placing \
    position precision primary real references returning right row select session_user setof similar smallint some \
    substring symmetric system_user table tablesample then time timestamp to trailing treat trim true union unique user \
    using values varchar variadic verbose when where window with xmlattributes xmlconcat xmlelement xmlexists xmlforest \
    xmlnamespaces xmlparse xmlpi xmlroot xmlserialize xmltable";

/// The name as SQL, in double quotes only where PostgreSQL would read it as something else.
pub(super) fn identifier(name: &str) -> String {
    let first = name.starts_with(|character: char| character.is_ascii_lowercase() || character == '_');
    let plain = |character: char| character.is_ascii_lowercase() || character.is_ascii_digit() || character == '_';
    if first && name.chars().all(plain) && !KEYWORDS.split_ascii_whitespace().any(|keyword| keyword == name) {
        name.to_owned()
    } else {
        sql::ident(name)
    }
}

/// Names as a list in SQL.
pub(super) fn identifiers<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    names.into_iter().map(identifier).collect::<Vec<_>>().join(", ")
}

/// A string constant of SQL in a file that people read: a backslash is one under `standard_conforming_strings`.
pub(super) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// The text for the inside of a one-line comment.
pub(super) fn one_line(text: &str) -> String {
    text.chars().map(|character| if character.is_control() { ' ' } else { character }).collect()
}

/// The name itself if it fits, else its beginning and a digest of all of it.
pub(super) fn shortened(name: &str) -> String {
    if name.len() <= IDENTIFIER_BYTES_MAX {
        return name.to_owned();
    }
    let digest = Sha256::digest(name.as_bytes());
    let suffix: String = digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    let mut end = IDENTIFIER_BYTES_MAX - suffix.len() - 1;
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}_{suffix}", name.get(..end).unwrap_or_default())
}

/// The names that a schema has given out: tables, indexes and sequences share one space.
#[derive(Debug, Default)]
pub(super) struct Names {
    taken: HashSet<String>,
}

impl Names {
    /// Notes a name that is fixed elsewhere.
    pub(super) fn take(&mut self, name: &str) {
        self.taken.insert(name.to_owned());
    }

    /// `wanted`, or the first of `wanted_2`, `wanted_3`, … that is free and fits.
    pub(super) fn give(&mut self, wanted: &str) -> String {
        let mut name = shortened(wanted);
        let mut number = 2u32;
        while !self.taken.insert(name.clone()) {
            name = shortened(&format!("{wanted}_{number}"));
            number += 1;
        }
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted_only_where_postgresql_needs_it() {
        for (name, expected) in [
            ("user_id", "user_id"),
            ("userId", "\"userId\""),
            ("order", "\"order\""),
            ("time", "\"time\""),
            ("status", "status"),
            ("2nd", "\"2nd\""),
            ("a\"b", "\"a\"\"b\""),
            ("größe", "\"größe\""),
            ("", "\"\""),
        ] {
            assert_eq!(identifier(name), expected);
        }
    }

    #[test]
    fn long_names_stay_unique_and_fit() {
        let (a, b) = ("é".repeat(40), format!("{}x", "é".repeat(40)));
        assert!(shortened(&a).len() <= IDENTIFIER_BYTES_MAX && shortened(&a) != shortened(&b));
        let mut names = Names::default();
        names.take("users");
        assert_eq!(names.give("users"), "users_2");
        assert_eq!(names.give("users"), "users_3");
        let long = "i".repeat(64);
        assert_ne!(names.give(&long), names.give(&long));
    }
}

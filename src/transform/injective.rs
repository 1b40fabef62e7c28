//! Whether a target's key tells the rows of its source apart.
//!
//! It does if each column of the source's key is a column of the target's key, as it is or by casts that make no two
//! values equal. What is said here is proven; of anything else (`lower(email)`, a cast of text to a number) it is
//! unknown, and each row at the target then has to know whose it is (rule 37). A cast that refuses a value tells apart
//! what it takes.

use super::shape::QueryShape;
use crate::model::{Column, TableSchema, TargetColumn, TargetTable};

/// Digits that any number of these types has as text, with its sign, point and exponent.
const NUMBER_CHARACTERS_MAX: i32 = 24;
/// Fractional digits of a time whose type does not say how many.
const TIME_DIGITS_MAX: i32 = 6;

/// Whether no two rows of the source have one key at the target; `types` are those of the `SELECT`'s results.
pub(super) fn is_one_to_one(
    shape: &QueryShape,
    source: &TableSchema,
    target: &TargetTable,
    names: &[String],
    types: &[String],
) -> bool {
    let told = |place: &usize| {
        let Some(column) = source.columns.get(*place) else { return false };
        target.key.iter().filter_map(|key| target.column(key)).any(|key| {
            let result = names.iter().position(|name| *name == key.name);
            let result = result.filter(|result| shape.column_beside(*result) == Some(*place));
            let result_type = result.and_then(|result| types.get(result));
            result_type.is_some_and(|result_type| keeps_apart(column, result_type, key, target.elsewhere))
        })
    };
    !source.key.is_empty() && source.key.iter().all(told)
}

/// Whether values of a source's column that differ still do as this type, and then in a column of the target's key.
fn keeps_apart(source: &Column, result_type: &str, key: &TargetColumn, elsewhere: bool) -> bool {
    if key.folds {
        return false;
    }
    // What another server would have to round, it refuses.
    let target = if elsewhere { &key.cast_sql } else { &key.type_sql };
    let from = Type::of(&source.column_type.sql());
    // One type of PostgreSQL at both sides compares alike there, whatever it is; a domain of one name need not be one.
    let named = Type::of(&source.source_type).base;
    let is_one = source.source_type == *target && (named == from.base || named == "citext");
    if is_one && from == Type::of(result_type) {
        return true;
    }
    let longest = longest(&source.source_type);
    let (through, to) = (Type::of(result_type), Type::of(target));
    from.keeps_apart_as(&through, longest) && through.keeps_apart_as(&to, longest)
}

/// How many characters a text of this source type has at most, where the type says so.
fn longest(source_type: &str) -> Option<i32> {
    let source = Type::of(source_type);
    matches!(source.base.as_str(), "varchar" | "char" | "character varying" | "character")
        .then(|| source.modifiers.first().copied())
        .flatten()
}

/// Types of PostgreSQL that spell values which differ in different ways. Blanks at the end, which a text of `character`
/// loses, make no two of its values differ.
const SPELLED: [&str; 12] = [
    "uuid",
    "boolean",
    "character",
    "date",
    "time without time zone",
    "interval",
    "inet",
    "cidr",
    "macaddr",
    "macaddr8",
    "bit",
    "bit varying",
];
/// Types that have room for all that others hold.
const EXACT: [(&str, &str); 2] = [("real", "double precision"), ("time without time zone", "interval")];

/// A type by its name and what stands in its parentheses.
#[derive(Debug, PartialEq, Eq)]
struct Type {
    base: String,
    modifiers: Vec<i32>,
}

/// What is known of a type's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    Integer,
    Numeric,
    Text,
    Varchar,
    Time,
    Other,
}

impl Type {
    fn of(name: &str) -> Self {
        let (mut base, mut modifiers) = (name.trim().to_lowercase(), Vec::new());
        if let (Some(open), Some(close)) = (base.find('('), base.rfind(')')) {
            let inside = base.get(open + 1..close).unwrap_or_default();
            let numbers: Option<Vec<i32>> = inside.split(',').map(|number| number.trim().parse().ok()).collect();
            if let Some(numbers) = numbers {
                modifiers = numbers;
                base.replace_range(open..=close, "");
            }
        }
        let base = match base.trim() {
            "timestamp" => "timestamp without time zone",
            "timestamptz" => "timestamp with time zone",
            other => other,
        };
        Type { base: base.to_owned(), modifiers }
    }

    fn family(&self) -> Family {
        match self.base.as_str() {
            "smallint" | "integer" | "bigint" => Family::Integer,
            "numeric" => Family::Numeric,
            "text" => Family::Text,
            "character varying" => Family::Varchar,
            "timestamp without time zone" | "timestamp with time zone" => Family::Time,
            _ => Family::Other,
        }
    }

    /// Digits behind the point; none where values decide.
    fn scale(&self) -> Option<i32> {
        self.modifiers.first()?;
        Some(self.modifiers.get(1).copied().unwrap_or(0))
    }

    fn digits(&self) -> i32 {
        self.modifiers.first().copied().unwrap_or(TIME_DIGITS_MAX)
    }

    /// Whether a text of so many characters is stored whole: of a longer one PostgreSQL may cut blanks at the end, or
    /// more.
    fn holds(&self, longest: Option<i32>) -> bool {
        self.modifiers.first().is_none_or(|length| longest.is_some_and(|longest| longest <= *length))
    }

    /// Whether values of this type that differ still do as values of the other; texts are of `longest` characters at
    /// most.
    fn keeps_apart_as(&self, to: &Type, longest: Option<i32>) -> bool {
        if self == to {
            return true;
        }
        let longest = match (longest, self.family()) {
            (Some(longest), _) => Some(longest),
            (None, Family::Varchar) => self.modifiers.first().copied(),
            (None, Family::Integer | Family::Numeric | Family::Text | Family::Time | Family::Other) => None,
        };
        match (self.family(), to.family()) {
            (Family::Integer, Family::Integer) => true,
            (Family::Integer, Family::Numeric) => to.scale().is_none_or(|scale| scale >= 0),
            (Family::Numeric, Family::Integer) => self.scale() == Some(0),
            (Family::Numeric, Family::Numeric) => {
                to.scale().is_none_or(|scale| self.scale().is_some_and(|own| own <= scale))
            }
            (Family::Integer, Family::Text) => true,
            (Family::Integer, Family::Varchar) => to.holds(Some(NUMBER_CHARACTERS_MAX)),
            (Family::Text | Family::Varchar, Family::Text) => true,
            (Family::Text | Family::Varchar, Family::Varchar) => to.holds(longest),
            // Between the two kinds of timestamp the session's time zone stands, which is UTC.
            (Family::Time, Family::Time) => self.digits() <= to.digits(),
            (Family::Other, Family::Time) => self.base == "date",
            (Family::Other, Family::Integer) => self.base == "boolean",
            (Family::Other, Family::Text) => SPELLED.contains(&self.base.as_str()),
            (Family::Other, Family::Other) => {
                EXACT.contains(&(self.base.as_str(), to.base.as_str())) && to.modifiers.is_empty()
            }
            (
                Family::Integer | Family::Numeric | Family::Text | Family::Varchar | Family::Time | Family::Other,
                Family::Integer | Family::Numeric | Family::Text | Family::Varchar | Family::Time | Family::Other,
            ) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ColumnType;

    fn apart(source_type: &str, column_type: ColumnType, result: &str, target: &str) -> bool {
        collated(source_type, column_type, result, target, false)
    }

    fn collated(source_type: &str, column_type: ColumnType, result: &str, target: &str, folds: bool) -> bool {
        let source = Column {
            name: "k".into(),
            column_type,
            source_type: source_type.into(),
            nullable: false,
            charset: None,
            collation: None,
            generated: false,
        };
        let target = TargetColumn {
            name: "k".into(),
            type_sql: target.into(),
            cast_sql: target.into(),
            collation: None,
            folds,
            not_null: true,
            has_default: false,
            identity: None,
            generated: false,
        };
        keeps_apart(&source, result, &target, false)
    }

    #[test]
    fn columns_as_they_are_and_casts_that_lose_nothing_keep_keys_apart() {
        for (source, column_type, result, target) in [
            ("bigint(20)", ColumnType::BigInt, "bigint", "bigint"),
            ("bigint(20)", ColumnType::BigInt, "bigint", "integer"),
            ("int(11)", ColumnType::Integer, "bigint", "numeric(20,0)"),
            ("int(11)", ColumnType::Integer, "text", "text"),
            ("int(11)", ColumnType::Integer, "integer", "character varying(24)"),
            ("bigint(20) unsigned", ColumnType::Numeric { precision: 20, scale: 0 }, "numeric(20,0)", "bigint"),
            ("decimal(10,2)", ColumnType::Numeric { precision: 10, scale: 2 }, "numeric(10,2)", "numeric(12,3)"),
            ("varchar(20)", ColumnType::Text, "text", "character varying(20)"),
            ("char(2)", ColumnType::Text, "text", "text"),
            (
                "character varying(20)",
                ColumnType::Named("character varying(20)".into()),
                "character varying(20)",
                "text",
            ),
            ("uuid", ColumnType::Named("uuid".into()), "uuid", "uuid"),
            ("uuid", ColumnType::Named("uuid".into()), "text", "text"),
            ("citext", ColumnType::Text, "text", "citext"),
            ("character(3)", ColumnType::Named("character(3)".into()), "character(3)", "character(3)"),
            ("datetime(3)", ColumnType::Timestamp, "timestamp without time zone", "timestamp with time zone"),
            ("date", ColumnType::Date, "date", "timestamp(0) without time zone"),
            ("binary(16)", ColumnType::Bytes, "bytea", "bytea"),
            ("boolean", ColumnType::Named("boolean".into()), "integer", "smallint"),
            ("inet", ColumnType::Named("inet".into()), "inet", "text"),
            ("character(2)", ColumnType::Named("character(2)".into()), "character(2)", "text"),
            (
                "time without time zone",
                ColumnType::Named("time without time zone".into()),
                "time without time zone",
                "interval",
            ),
        ] {
            assert!(apart(source, column_type, result, target), "{source} through {result} to {target}");
        }
    }

    #[test]
    fn casts_that_may_make_two_values_one_are_no_proof() {
        for (source, column_type, result, target) in [
            ("varchar(20)", ColumnType::Text, "text", "character varying(10)"),
            ("text", ColumnType::Text, "text", "character varying(20)"),
            ("varchar(20)", ColumnType::Text, "character varying(5)", "text"),
            ("varchar(20)", ColumnType::Text, "text", "character(20)"),
            ("varchar(20)", ColumnType::Text, "text", "citext"),
            ("varchar(20)", ColumnType::Text, "integer", "integer"),
            ("char(36)", ColumnType::Text, "uuid", "uuid"),
            ("decimal(10,2)", ColumnType::Numeric { precision: 10, scale: 2 }, "integer", "integer"),
            ("decimal(10,2)", ColumnType::Numeric { precision: 10, scale: 2 }, "numeric(10,2)", "numeric(10,1)"),
            ("int(11)", ColumnType::Integer, "integer", "numeric(3,-2)"),
            ("bigint(20)", ColumnType::BigInt, "bigint", "double precision"),
            ("datetime(6)", ColumnType::Timestamp, "timestamp without time zone", "timestamp(0) without time zone"),
            ("datetime(6)", ColumnType::Timestamp, "date", "date"),
            ("double", ColumnType::Double, "double precision", "real"),
            ("varchar(20)", ColumnType::Text, "text", "shop.code"),
            ("code", ColumnType::Text, "text", "code"),
            ("time", ColumnType::Named("time without time zone".into()), "time without time zone", "interval(0)"),
        ] {
            assert!(!apart(source, column_type, result, target), "{source} through {result} to {target}");
        }
        assert!(!collated("varchar(9)", ColumnType::Text, "text", "text", true), "the collation folds");
    }
}

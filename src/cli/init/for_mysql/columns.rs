//! Which column of MySQL holds the values of a PostgreSQL type.
//!
//! A transform's result is assigned to the type that a transform would see of the column (docs/types.md); what
//! assignment does not do, the `SELECT` does ([`Fitted::select`]). Texts that stand in a key or a unique index are
//! bounded there, since InnoDB's keys are.

use super::{CHARACTER_BYTES, KEY_BYTES_MAX};
use crate::database::mysql::literal::quoted_literal;

/// The room for a text of no length of its own in a key.
const KEY_CHARS: u32 = 255;
/// The longest `varchar` of a column in no key; longer ones do not count to the 65,535 bytes that a row may have.
const VARCHAR_MAX: u32 = 255;
/// DECIMAL's most digits, and the most of them behind the point.
const DECIMAL_MAX: (u32, u32) = (65, 30);
/// ENUM's longest label.
const LABEL_CHARS_MAX: usize = 255;

/// What a column is used for besides holding values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cli::init) enum Use {
    /// It is in no key.
    Held,
    /// It is compared whole, in a key that has room for so many of its characters.
    Compared { chars: u32 },
}

impl Use {
    /// The use of the columns of one key, which have these types and labels.
    pub(in crate::cli::init) fn of_key<'a>(columns: impl Iterator<Item = (&'a str, Option<&'a [String]>)>) -> Use {
        let (mut fixed, mut bounded) = (0, 0);
        for (name, labels) in columns {
            match key_bytes(name, labels) {
                Some(bytes) => fixed += bytes,
                None => bounded += 1,
            }
        }
        Use::Compared { chars: KEY_BYTES_MAX.saturating_sub(fixed) / CHARACTER_BYTES / bounded.max(1) }
    }

    /// What is left to a column that is used in both ways.
    pub(in crate::cli::init) fn and(self, other: Use) -> Use {
        match (self, other) {
            (Use::Compared { chars: a }, Use::Compared { chars: b }) => Use::Compared { chars: a.min(b) },
            (Use::Held, used) | (used, Use::Held) => used,
        }
    }
}

/// A column's type, and what becomes of a value on its way there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cli::init) struct Fitted {
    pub sql: String,
    /// What the type does not keep, or keeps in another way.
    pub note: Option<&'static str>,
    /// With `{}` for the source's column, where it is not taken as it is.
    pub select: Option<&'static str>,
    /// It is compared whole.
    pub in_key: bool,
}

impl Fitted {
    fn new(sql: impl Into<String>) -> Fitted {
        Fitted { sql: sql.into(), note: None, select: None, in_key: false }
    }

    fn noted(self, note: &'static str) -> Fitted {
        Fitted { note: Some(note), ..self }
    }

    fn select(self, select: &'static str) -> Fitted {
        Fitted { select: Some(select), ..self }
    }

    /// Whether an index takes only the first characters, or bytes, of it.
    pub(in crate::cli::init) fn is_long(&self) -> bool {
        ["text", "blob"].iter().any(|end| self.sql.ends_with(end))
    }

    pub(in crate::cli::init) fn is_json(&self) -> bool {
        self.sql == "json"
    }

    pub(in crate::cli::init) fn is_whole_number(&self) -> bool {
        matches!(self.sql.as_str(), "smallint" | "int" | "bigint")
    }

    /// The characters that it has at most, of a text that stands in the row.
    pub(in crate::cli::init) fn chars(&self) -> Option<u32> {
        self.sql.strip_prefix("varchar(")?.strip_suffix(')')?.parse().ok()
    }
}

/// A type's name without its modifiers, and these: `numeric(10,2)` is `numeric` and 10, 2.
fn parts(name: &str) -> (String, Vec<i32>) {
    let Some((before, rest)) = name.split_once('(') else { return (name.to_owned(), Vec::new()) };
    let Some((modifiers, after)) = rest.split_once(')') else { return (name.to_owned(), Vec::new()) };
    let numbers = modifiers.split(',').map(|number| number.trim().parse()).collect::<Result<_, _>>();
    (format!("{before}{after}"), numbers.unwrap_or_default())
}

/// The bytes that a value of the type has in a key; none where that is up to the key.
fn key_bytes(name: &str, labels: Option<&[String]>) -> Option<u32> {
    match parts(name).0.as_str() {
        "smallint" | "boolean" | "date" => Some(3),
        "integer" => Some(4),
        "bigint" | "oid" | "real" | "double precision" => Some(8),
        "timestamp without time zone" | "timestamp" | "timestamp with time zone" | "timestamptz" => Some(8),
        "time without time zone" => Some(8),
        "numeric" | "money" => Some(30),
        "uuid" => Some(36),
        short if SHORT.contains(&short) => Some(SHORT_CHARS * CHARACTER_BYTES),
        _ => labels.filter(|labels| has_labels(labels)).map(|_| 2),
    }
}

/// Types whose texts are short.
const SHORT: [&str; 8] = ["inet", "cidr", "macaddr", "macaddr8", "time with time zone", "\"char\"", "name", "interval"];
const SHORT_CHARS: u32 = 64;
/// Arrays of these are JSON by their elements; those of others, and of numbers that JSON would round, by their texts.
const PLAIN_ELEMENTS: [&str; 11] = [
    "smallint",
    "integer",
    "bigint",
    "real",
    "double precision",
    "boolean",
    "text",
    "character varying",
    "uuid",
    "date",
    "jsonb",
];

/// The column for values of a type, as `format_type` spells it, with the labels of an enum.
pub(in crate::cli::init) fn fitted(name: &str, labels: Option<&[String]>, used: Use) -> Fitted {
    Fitted { in_key: used != Use::Held, ..fit(name, labels, used) }
}

fn fit(name: &str, labels: Option<&[String]>, used: Use) -> Fitted {
    let in_key = used != Use::Held;
    let (base, modifiers) = parts(name);
    let length = modifiers.first().and_then(|length| u32::try_from(*length).ok());
    if let Some(element) = base.strip_suffix("[]").filter(|_| !in_key) {
        let fitted = Fitted::new("json").noted("an array, as JSON");
        let is_plain = PLAIN_ELEMENTS.contains(&element);
        return fitted.select(if is_plain { "to_jsonb({})" } else { "to_jsonb({}::text::text[])" });
    }
    match base.as_str() {
        "smallint" => Fitted::new("smallint"),
        "integer" => Fitted::new("int"),
        "bigint" | "oid" => Fitted::new("bigint"),
        "numeric" => decimal(&modifiers),
        "money" => Fitted::new("decimal(20,2)"),
        // A number that a text says is not found again in a FLOAT.
        "real" if !in_key => Fitted::new("float"),
        "real" | "double precision" => Fitted::new("double"),
        "boolean" if in_key => Fitted::new("tinyint(1)").select("{}::int"),
        "boolean" => Fitted::new("tinyint(1)"),
        "uuid" => Fitted::new("char(36) CHARACTER SET ascii COLLATE ascii_bin"),
        "date" => Fitted::new("date"),
        "timestamp without time zone" | "timestamp" => Fitted::new(format!("datetime{}", digits(&modifiers))),
        "timestamp with time zone" | "timestamptz" => {
            Fitted::new(format!("datetime{}", digits(&modifiers))).noted("in UTC")
        }
        "time without time zone" => Fitted::new(format!("time{}", digits(&modifiers))),
        "json" | "jsonb" if !in_key => Fitted::new("json"),
        "bytea" => match used {
            Use::Compared { chars } => Fitted::new(format!("varbinary({})", chars.min(KEY_CHARS))).noted(TOO_LONG),
            Use::Held => Fitted::new("longblob"),
        },
        "inet" if !in_key => Fitted::new("varchar(64)").select("abbrev({})"),
        "character" | "bpchar" => text(Some(length.unwrap_or(1)), used),
        "character varying" => text(length, used),
        "bit" => text(Some(length.unwrap_or(1)), used),
        "bit varying" => text(length, used),
        "interval" => Fitted::new(format!("varchar({SHORT_CHARS})"))
            .noted("as text; one of less than 839 hours has room in time(6)"),
        "inet" => Fitted::new(format!("varchar({SHORT_CHARS})")).noted("with its mask, /32 as well"),
        short if SHORT.contains(&short) => Fitted::new(format!("varchar({SHORT_CHARS})")),
        "citext" => text(None, used).noted("case tells texts apart here"),
        _ => match labels.filter(|labels| has_labels(labels)) {
            Some(labels) => {
                let labels: Vec<String> = labels.iter().map(|label| quoted_literal(label)).collect();
                Fitted::new(format!("enum({})", labels.join(",")))
            }
            None => text(None, used),
        },
    }
}

const TOO_LONG: &str = "a longer one is a dead letter";

/// `numeric(p,s)` where DECIMAL has it, else as many digits as it can have.
fn decimal(modifiers: &[i32]) -> Fitted {
    let (most, behind) = DECIMAL_MAX;
    if let [precision, scale] = modifiers
        && let (Ok(precision), Ok(scale)) = (u32::try_from(*precision), u32::try_from(*scale))
        && precision <= most
        && scale <= behind.min(precision)
    {
        return Fitted::new(format!("decimal({precision},{scale})"));
    }
    Fitted::new(format!("decimal({most},{behind})")).noted("a value with more digits is a dead letter")
}

/// The digits of a second: six where PostgreSQL was told nothing.
fn digits(modifiers: &[i32]) -> String {
    match modifiers.first() {
        Some(0) => String::new(),
        Some(digits) => format!("({digits})"),
        None => "(6)".into(),
    }
}

fn text(length: Option<u32>, used: Use) -> Fitted {
    match (used, length) {
        (Use::Compared { chars }, Some(length)) if length <= chars => Fitted::new(format!("varchar({length})")),
        (Use::Compared { chars }, Some(_)) => Fitted::new(format!("varchar({chars})")).noted(TOO_LONG),
        (Use::Compared { chars }, None) => Fitted::new(format!("varchar({})", chars.min(KEY_CHARS))).noted(TOO_LONG),
        (Use::Held, Some(length)) if length <= VARCHAR_MAX => Fitted::new(format!("varchar({length})")),
        (Use::Held, Some(_) | None) => Fitted::new("longtext"),
    }
}

/// Whether ENUM can have these: none is too long, none ends in a space, which it would drop.
fn has_labels(labels: &[String]) -> bool {
    !labels.is_empty() && labels.iter().all(|label| label.chars().count() <= LABEL_CHARS_MAX && !label.ends_with(' '))
}

/// A default of PostgreSQL for such a column; none where MySQL before 8.0.13 has no such one.
pub(in crate::cli::init) fn default(expression: &str, fitted: &Fitted) -> Option<String> {
    let sql = fitted.sql.as_str();
    if fitted.is_long() || fitted.is_json() || sql.starts_with("varbinary") || fitted.select.is_some() {
        return None;
    }
    let expression = expression.trim();
    let now = [
        "now()",
        "CURRENT_TIMESTAMP",
        "LOCALTIMESTAMP",
        "transaction_timestamp()",
        "statement_timestamp()",
        "clock_timestamp()",
    ];
    if let Some(digits) = sql.strip_prefix("datetime") {
        return now.contains(&expression).then(|| format!("CURRENT_TIMESTAMP{digits}"));
    }
    let constant = match expression.rsplit_once("::") {
        Some((constant, name)) if is_type_name(name) => constant,
        Some(_) | None => expression,
    };
    match constant {
        "true" => Some("1".into()),
        "false" => Some("0".into()),
        _ if is_constant(constant) => {
            let plain = constant.strip_prefix('\'').and_then(|rest| rest.strip_suffix('\''));
            let is_time = ["date", "time"].iter().any(|name| sql.starts_with(name));
            if is_time && !plain.is_some_and(|text| text.starts_with(|first: char| first.is_ascii_digit())) {
                return None;
            }
            let is_number = plain.unwrap_or(constant).parse::<f64>().is_ok_and(f64::is_finite);
            let spelled = plain.map_or_else(|| constant.to_owned(), |text| format!("'{}'", text.replace('\\', "\\\\")));
            (is_number || !takes_numbers(sql)).then_some(spelled)
        }
        _ => None,
    }
}

fn takes_numbers(sql: &str) -> bool {
    ["smallint", "int", "bigint", "tinyint", "decimal", "float", "double"].iter().any(|name| sql.starts_with(name))
}

/// Whether nothing but a type follows a constant.
fn is_type_name(text: &str) -> bool {
    text.chars().all(|letter| letter.is_alphanumeric() || " _.,()[]\"".contains(letter))
}

/// Whether it is one number or one text in quotes.
fn is_constant(text: &str) -> bool {
    let quoted = text.strip_prefix('\'').and_then(|rest| rest.strip_suffix('\''));
    let is_text = |inner: &str| !inner.replace("''", "").contains('\'');
    quoted.is_some_and(is_text) || (!text.is_empty() && text.parse::<f64>().is_ok_and(f64::is_finite))
}

#[cfg(test)]
mod tests {
    use super::*;

    const IN_KEY: Use = Use::Compared { chars: 768 };

    fn sql(name: &str, used: Use) -> String {
        fitted(name, None, used).sql
    }

    #[test]
    fn each_type_has_a_column_that_holds_it() {
        for (name, expected) in [
            ("integer", "int"),
            ("numeric(12,4)", "decimal(12,4)"),
            ("numeric", "decimal(65,30)"),
            ("numeric(70,2)", "decimal(65,30)"),
            ("numeric(5,-2)", "decimal(65,30)"),
            ("numeric(2,4)", "decimal(65,30)"),
            ("character varying(40)", "varchar(40)"),
            ("character varying(400)", "longtext"),
            ("character varying", "longtext"),
            ("character(3)", "varchar(3)"),
            ("timestamp with time zone", "datetime(6)"),
            ("timestamp(0) without time zone", "datetime"),
            ("timestamp(3) without time zone", "datetime(3)"),
            ("boolean", "tinyint(1)"),
            ("text[]", "json"),
            ("numeric(3,1)[]", "json"),
            ("jsonb", "json"),
            ("int4range", "longtext"),
            ("bytea", "longblob"),
        ] {
            assert_eq!(sql(name, Use::Held), expected, "{name}");
        }
    }

    #[test]
    fn keys_have_room_for_all_their_texts() {
        for (names, expected) in [
            (&["text"] as &[&str], "varchar(255)"),
            (&["text", "text", "text", "text"], "varchar(192)"),
            (&["character varying(400)"], "varchar(400)"),
            (&["character varying(400)", "text"], "varchar(384)"),
            (&["character varying(2000)", "bigint", "uuid"], "varchar(757)"),
            (&["int4range", "inet", "text", "text"], "varchar(234)"),
            (&["bytea"], "varbinary(255)"),
            (&["real"], "double"),
            (&["jsonb"], "varchar(255)"),
        ] {
            let used = Use::of_key(names.iter().map(|name| (*name, None)));
            assert_eq!(sql(names[0], used), expected, "{names:?}");
        }
        assert_eq!(fitted("boolean", None, IN_KEY).select, Some("{}::int"));
        assert!(fitted("text", None, IN_KEY).note.is_some());
    }

    #[test]
    fn labels_become_an_enum_where_it_keeps_them() {
        let labels = |labels: &[&str]| {
            let labels: Vec<String> = labels.iter().map(|label| (*label).to_owned()).collect();
            fitted("mood", Some(&labels), Use::Held).sql
        };
        assert_eq!(labels(&["sad", "it's", r"a\b"]), r"enum('sad','it''s','a\\b')");
        assert_eq!(labels(&["sad "]), "longtext");
    }

    #[test]
    fn defaults_that_every_server_has_are_carried_over() {
        let of = |expression: &str, name: &str| default(expression, &fitted(name, None, Use::Held));
        for (expression, name, expected) in [
            ("5", "integer", Some("5")),
            ("'-1'::integer", "integer", Some("'-1'")),
            ("true", "boolean", Some("1")),
            ("'a''b\\c'::character varying", "character varying(9)", Some(r"'a''b\\c'")),
            ("now()", "timestamp with time zone", Some("CURRENT_TIMESTAMP(6)")),
            ("now()", "timestamp(0) without time zone", Some("CURRENT_TIMESTAMP")),
            ("now() + '1 day'::interval", "timestamp with time zone", None),
            ("'a'::text || 'b'::text", "character varying(9)", None),
            ("'x'::text", "text", None),
            ("gen_random_uuid()", "uuid", None),
            ("'{}'::jsonb", "jsonb", None),
            ("'NaN'::numeric", "numeric", None),
            ("'5'::integer + 1", "integer", None),
            ("'infinity'::date", "date", None),
            ("'2020-01-01'::date", "date", Some("'2020-01-01'")),
            ("'a::b'::text", "character varying(9)", Some("'a::b'")),
        ] {
            assert_eq!(of(expression, name).as_deref(), expected, "{expression}");
        }
    }
}

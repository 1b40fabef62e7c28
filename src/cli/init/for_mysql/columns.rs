//! Which column of MySQL holds the values of a PostgreSQL type.
//!
//! A transform's result is assigned to the type that a transform would see of the column (docs/types.md); what
//! assignment does not do, the `SELECT` does ([`Fitted::select`]). Texts that stand in a key or a unique index are
//! bounded there, since InnoDB's keys are.

/// The most characters of four bytes that a key of InnoDB has room for, of all its columns.
const KEY_CHARS_MAX: u32 = 768;
/// The room for a text of no length of its own in a key.
const KEY_CHARS: u32 = 255;
/// The longest `varchar` of a column in no key; longer ones do not count to the 65,535 bytes that a row may have.
const VARCHAR_MAX: u32 = 255;
/// DECIMAL's most digits, and the most of them behind the point.
const DECIMAL_MAX: (u32, u32) = (65, 30);
/// ENUM's longest label.
const LABEL_CHARS_MAX: usize = 255;

/// What a column is used for besides holding values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in crate::cli::init) struct Use {
    /// It is compared whole: the most columns of text or bytes that a key or unique index with it has, 0 if there is
    /// none.
    pub keys_of: u32,
}

/// A column's type, and what becomes of a value on its way there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cli::init) struct Fitted {
    pub sql: String,
    /// What the type does not keep.
    pub note: Option<&'static str>,
    /// With `{}` for the source's column, where it is not taken as it is.
    pub select: Option<&'static str>,
}

impl Fitted {
    fn new(sql: impl Into<String>) -> Fitted {
        Fitted { sql: sql.into(), note: None, select: None }
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
}

/// A type's name without its modifiers, and these: `numeric(10,2)` is `numeric` and 10, 2.
fn parts(name: &str) -> (String, Vec<i32>) {
    let Some((before, rest)) = name.split_once('(') else { return (name.to_owned(), Vec::new()) };
    let Some((modifiers, after)) = rest.split_once(')') else { return (name.to_owned(), Vec::new()) };
    let numbers = modifiers.split(',').map(|number| number.trim().parse()).collect::<Result<_, _>>();
    (format!("{before}{after}"), numbers.unwrap_or_default())
}

/// Whether values of the type take room in a key by their length.
pub(in crate::cli::init) fn is_bounded_in_keys(name: &str) -> bool {
    matches!(parts(name).0.as_str(), "text" | "character varying" | "character" | "bytea" | "bit varying" | "citext")
}

/// The column for values of a type, as `format_type` spells it, with the labels of an enum.
pub(in crate::cli::init) fn fitted(name: &str, labels: Option<&[String]>, used: Use) -> Fitted {
    let in_key = used.keys_of > 0;
    let (base, modifiers) = parts(name);
    let length = modifiers.first().and_then(|length| u32::try_from(*length).ok());
    if base.ends_with("[]") {
        return Fitted::new("json").noted("an array, as JSON").select("to_jsonb({})");
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
        "bytea" if in_key => Fitted::new(format!("varbinary({})", room(used).min(KEY_CHARS))).noted(TOO_LONG),
        "bytea" => Fitted::new("longblob"),
        "character" | "bpchar" => text(Some(length.unwrap_or(1)), used),
        "character varying" => text(length, used),
        "bit" => text(Some(length.unwrap_or(1)), used),
        "bit varying" => text(length, used),
        "inet" | "cidr" | "macaddr" | "macaddr8" | "time with time zone" | "\"char\"" | "name" => {
            Fitted::new("varchar(64)")
        }
        "interval" => Fitted::new("varchar(64)")
            .noted("as text; one of less than 839 hours has room in time(6), as a number of microseconds"),
        _ => match labels.filter(|labels| has_labels(labels)) {
            Some(labels) => {
                let labels: Vec<String> = labels.iter().map(|label| format!("'{}'", escaped(label))).collect();
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

/// The characters that one of the texts of a key may have.
fn room(used: Use) -> u32 {
    KEY_CHARS_MAX / used.keys_of.max(1)
}

fn text(length: Option<u32>, used: Use) -> Fitted {
    match length {
        Some(length) if used.keys_of > 0 && length <= room(used) => Fitted::new(format!("varchar({length})")),
        Some(_) if used.keys_of > 0 => Fitted::new(format!("varchar({})", room(used))).noted(TOO_LONG),
        None if used.keys_of > 0 => Fitted::new(format!("varchar({})", room(used).min(KEY_CHARS))).noted(TOO_LONG),
        Some(length) if length <= VARCHAR_MAX => Fitted::new(format!("varchar({length})")),
        Some(_) | None => Fitted::new("longtext"),
    }
}

/// Whether ENUM can have these: none is too long, none ends in a space, which it would drop.
fn has_labels(labels: &[String]) -> bool {
    !labels.is_empty() && labels.iter().all(|label| label.chars().count() <= LABEL_CHARS_MAX && !label.ends_with(' '))
}

fn escaped(label: &str) -> String {
    label.replace('\\', "\\\\").replace('\'', "''")
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

    const IN_KEY: Use = Use { keys_of: 1 };

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
            assert_eq!(sql(name, Use::default()), expected, "{name}");
        }
    }

    #[test]
    fn keys_have_room_for_all_their_texts() {
        for (name, keys_of, expected) in [
            ("text", 1, "varchar(255)"),
            ("text", 4, "varchar(192)"),
            ("character varying(400)", 1, "varchar(400)"),
            ("character varying(400)", 2, "varchar(384)"),
            ("bytea", 1, "varbinary(255)"),
            ("real", 1, "double"),
            ("jsonb", 1, "varchar(255)"),
        ] {
            assert_eq!(sql(name, Use { keys_of }), expected, "{name}");
        }
        assert_eq!(fitted("boolean", None, IN_KEY).select, Some("{}::int"));
        assert!(fitted("text", None, IN_KEY).note.is_some());
    }

    #[test]
    fn labels_become_an_enum_where_it_keeps_them() {
        let labels = |labels: &[&str]| {
            let labels: Vec<String> = labels.iter().map(|label| (*label).to_owned()).collect();
            fitted("mood", Some(&labels), Use::default()).sql
        };
        assert_eq!(labels(&["sad", "it's", r"a\b"]), r"enum('sad','it''s','a\\b')");
        assert_eq!(labels(&["sad "]), "longtext");
    }

    #[test]
    fn defaults_that_every_server_has_are_carried_over() {
        let of = |expression: &str, name: &str| default(expression, &fitted(name, None, Use::default()));
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
            ("'a::b'::text", "character varying(9)", Some("'a::b'")),
        ] {
            assert_eq!(of(expression, name).as_deref(), expected, "{expression}");
        }
    }
}

//! One value, from Debezium's spelling to ours.
//!
//! Numbers stay as they are spelled, and nothing passes through a float.

use std::{borrow::Cow, io::Write as _};

use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::{
    DebeziumError,
    message::{Cell, list, object},
};
use crate::{log::envelope::json::write_string, observe::civil};

/// What stands for a value that the connector does not have (`unavailable.value.placeholder`), as text and as bytes.
const UNAVAILABLE: [&str; 2] = ["__debezium_unavailable_value", "X19kZWJleml1bV91bmF2YWlsYWJsZV92YWx1ZQ=="];
/// PostgreSQL's infinities, as a connector spells them in every unit.
const INFINITIES: [(i64, &str); 2] =
    [(9_223_372_036_825_200_000, "infinity"), (-9_223_372_036_832_400_000, "-infinity")];
/// The same in ISO 8601.
const ISO_INFINITIES: [(&str, &str); 2] = [("+294247-01-10T", "infinity"), ("-290308-12-21T", "-infinity")];
/// No decimal of a source has more digits than this.
const SCALE_MAX: usize = 20_000;
const SECONDS_PER_DAY: i64 = 86_400;

/// How a column's values are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Rule {
    /// A number, a text or a truth value, as it is.
    Plain,
    /// Digits.
    Decimal,
    /// A date or a time as text.
    Time,
    /// An interval as text.
    Interval,
    /// Base64.
    Bytes,
    /// Days since 1970.
    Days,
    /// Units since 1970, so many in a second.
    Instant(i64),
    /// Units since midnight, or a span of them.
    OfDay(i64),
    /// Units in which months were lost.
    Lossy,
    /// A decimal that was rounded.
    Rounded,
    /// Base64 of an unscaled number of so many decimal places.
    Unscaled(usize),
    /// An object of a scale and an unscaled number.
    Variable,
    /// Base64 of bits, the lowest byte first.
    Bits,
    /// A list, which becomes the text of PostgreSQL's array.
    List(Box<Rule>),
    /// What no column type can be.
    Structure,
}

/// Writes a value as JSON.
pub(super) fn write(out: &mut Vec<u8>, rule: &Rule, column: &str, cell: &Cell<'_>) -> Result<(), DebeziumError> {
    let wrong = || DebeziumError::Value { column: column.to_owned() };
    let column = || column.to_owned();
    match (rule, cell) {
        (_, Cell::Null) => out.extend_from_slice(b"null"),
        (_, Cell::Text(text)) if UNAVAILABLE.contains(&text.as_ref()) => {
            return Err(DebeziumError::Unavailable { column: column() });
        }
        (Rule::Rounded, _) => return Err(DebeziumError::Rounded { column: column() }),
        (Rule::Lossy, _) => return Err(DebeziumError::Interval { column: column() }),
        (Rule::List(rule), Cell::Nested(text)) => write_string(out, &array(rule, &column(), text)?),
        (Rule::Variable, Cell::Nested(text)) => write_string(out, &variable(text).ok_or_else(wrong)?),
        (_, Cell::Nested(_)) => return Err(DebeziumError::Nested { column: column() }),
        (Rule::Plain | Rule::List(_), Cell::Number(text)) => out.extend_from_slice(text.as_bytes()),
        (Rule::Plain | Rule::List(_), Cell::Text(text)) => write_string(out, text),
        (Rule::Plain | Rule::Decimal, Cell::Bool(is)) => out.extend_from_slice(if *is { b"true" } else { b"false" }),
        (Rule::Decimal, Cell::Text(text)) if is_decimal(text) => write_string(out, text),
        (Rule::Decimal, Cell::Number(text)) if text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-') => {
            out.extend_from_slice(text.as_bytes());
        }
        (Rule::Decimal, Cell::Number(_)) => return Err(DebeziumError::Rounded { column: column() }),
        (Rule::Decimal, Cell::Text(_)) => return Err(DebeziumError::Decimal { column: column() }),
        (Rule::Time, Cell::Text(text)) => write_string(out, &iso(text)),
        (Rule::Time, Cell::Number(_)) => return Err(DebeziumError::Time { column: column() }),
        (Rule::Interval, Cell::Text(text)) => write_string(out, span(text)),
        (Rule::Interval, Cell::Number(_)) => return Err(DebeziumError::Interval { column: column() }),
        (Rule::Bytes, Cell::Text(text)) if STANDARD.decode(text.as_bytes()).is_ok() => write_string(out, text),
        (Rule::Bytes, Cell::Text(_) | Cell::Number(_)) => return Err(DebeziumError::Bytes { column: column() }),
        (Rule::Days, Cell::Number(text)) => write_string(out, &date(integer(text).ok_or_else(wrong)?)),
        (Rule::Instant(unit), Cell::Number(text)) => {
            write_string(out, &instant(integer(text).ok_or_else(wrong)?, *unit))
        }
        (Rule::OfDay(unit), Cell::Number(text)) => write_string(out, &of_day(integer(text).ok_or_else(wrong)?, *unit)),
        // The converter writes decimals as numbers with decimal.format=NUMERIC.
        (Rule::Unscaled(_) | Rule::Variable, Cell::Number(text)) => write_string(out, text),
        (Rule::Unscaled(scale), Cell::Text(text)) => write_string(out, &unscaled(text, *scale).ok_or_else(wrong)?),
        (Rule::Bits, Cell::Text(text)) => write_string(out, &bits(text).ok_or_else(wrong)?),
        (Rule::Bits, Cell::Bool(is)) => out.extend_from_slice(if *is { b"true" } else { b"false" }),
        (
            Rule::Time
            | Rule::Interval
            | Rule::Bytes
            | Rule::Days
            | Rule::Instant(_)
            | Rule::OfDay(_)
            | Rule::Unscaled(_)
            | Rule::Variable
            | Rule::Bits
            | Rule::List(_)
            | Rule::Structure,
            Cell::Bool(_) | Cell::Number(_) | Cell::Text(_),
        ) => return Err(wrong()),
    }
    Ok(())
}

fn integer(text: &str) -> Option<i64> {
    text.parse().ok()
}

/// Digits with a sign and a point, or one of PostgreSQL's names for what is no number.
fn is_decimal(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, "0"));
    let all = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    (all(whole) && all(fraction)) || ["NaN", "Infinity", "-Infinity"].contains(&text)
}

/// An ISO time of day is an interval without its zone.
fn span(text: &str) -> &str {
    if text.starts_with(['P', '-']) { text } else { text.strip_suffix('Z').unwrap_or(text) }
}

/// A date or time as text: PostgreSQL has other spellings for its infinities, and for years of five digits and before
/// the first.
fn iso(text: &str) -> Cow<'_, str> {
    if let Some((_, name)) = ISO_INFINITIES.iter().find(|(infinite, _)| text.starts_with(infinite)) {
        return Cow::Borrowed(name);
    }
    if let Some(late) = text.strip_prefix('+') {
        return Cow::Borrowed(late);
    }
    let early = text.strip_prefix('-').and_then(|rest| rest.split_once('-'));
    let early = early.and_then(|(year, rest)| Some((year.parse::<u32>().ok()?.checked_add(1)?, rest)));
    early.map_or(Cow::Borrowed(text), |(year, rest)| Cow::Owned(format!("{year:04}-{rest} BC")))
}

/// The date so many days after 1970-01-01, as PostgreSQL reads it.
fn date(days: i64) -> String {
    let (year, month, day) = civil(days);
    if year > 0 { format!("{year:04}-{month:02}-{day:02}") } else { format!("{:04}-{month:02}-{day:02} BC", 1 - year) }
}

/// An instant with six digits of a second's fraction; finer ones are cut, as PostgreSQL has none.
fn instant(units: i64, per_second: i64) -> String {
    if let Some((_, name)) = INFINITIES.iter().find(|(infinite, _)| *infinite == units) {
        return (*name).to_owned();
    }
    let seconds = units.div_euclid(per_second);
    let micros = units.rem_euclid(per_second) * 1_000 / (per_second / 1_000);
    let (days, of_day) = (seconds.div_euclid(SECONDS_PER_DAY), seconds.rem_euclid(SECONDS_PER_DAY));
    let (date, era) = match date(days).strip_suffix(" BC") {
        Some(date) => (date.to_owned(), " BC"),
        None => (date(days), ""),
    };
    format!("{date}T{}.{micros:06}Z{era}", clock(of_day))
}

/// A time of day, or a span: `-838:59:59.000000`.
fn of_day(units: i64, per_second: i64) -> String {
    let sign = if units < 0 { "-" } else { "" };
    let (units, per_second) = (units.unsigned_abs(), per_second.unsigned_abs());
    let micros = units % per_second * 1_000 / (per_second / 1_000);
    let seconds = i64::try_from(units / per_second).unwrap_or(i64::MAX);
    format!("{sign}{}.{micros:06}", clock(seconds))
}

fn clock(seconds: i64) -> String {
    format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

/// A decimal out of base64 of its unscaled number, big-endian two's complement.
fn unscaled(text: &str, scale: usize) -> Option<String> {
    let bytes = STANDARD.decode(text.as_bytes()).ok()?;
    if bytes.is_empty() || bytes.len() > SCALE_MAX || scale > SCALE_MAX {
        return None;
    }
    let is_negative = bytes.first().is_some_and(|first| first & 0x80 != 0);
    let mut digits = decimal_digits(&bytes, is_negative);
    while digits.len() <= scale {
        digits.insert(0, b'0');
    }
    let point = digits.len() - scale;
    let mut out = Vec::with_capacity(digits.len() + 2);
    if is_negative {
        out.push(b'-');
    }
    out.extend_from_slice(digits.get(..point)?);
    if scale > 0 {
        out.push(b'.');
        out.extend_from_slice(digits.get(point..)?);
    }
    String::from_utf8(out).ok()
}

/// The digits of a number's magnitude, nine at a time.
fn decimal_digits(bytes: &[u8], is_negative: bool) -> Vec<u8> {
    const CHUNK: u64 = 1_000_000_000;
    let mut chunks: Vec<u32> = vec![0];
    for byte in bytes {
        // The magnitude of a negative number is one more than its complement.
        let byte = if is_negative { !byte } else { *byte };
        let mut carry = u64::from(byte);
        for chunk in &mut chunks {
            let value = u64::from(*chunk) * 256 + carry;
            *chunk = u32::try_from(value % CHUNK).unwrap_or_default();
            carry = value / CHUNK;
        }
        if carry > 0 {
            chunks.push(u32::try_from(carry).unwrap_or_default());
        }
    }
    if is_negative {
        let mut place = 0;
        while let Some(chunk) = chunks.get_mut(place) {
            *chunk += 1;
            if u64::from(*chunk) < CHUNK {
                break;
            }
            *chunk = 0;
            place += 1;
        }
        if place == chunks.len() {
            chunks.push(1);
        }
    }
    let mut digits = Vec::with_capacity(9 * chunks.len());
    for (place, chunk) in chunks.iter().rev().enumerate() {
        // Writing to memory does not fail.
        let _ = if place == 0 { write!(digits, "{chunk}") } else { write!(digits, "{chunk:09}") };
    }
    digits
}

/// `{"scale":2,"value":"…"}`.
fn variable(text: &str) -> Option<String> {
    let (mut scale, mut value) = (None, None);
    for (name, cell) in object(text).ok()? {
        match (name.as_ref(), cell) {
            ("scale", Cell::Number(text)) => scale = text.parse().ok(),
            ("value", Cell::Text(text)) => value = Some(text),
            (_, Cell::Null | Cell::Bool(_) | Cell::Number(_) | Cell::Text(_) | Cell::Nested(_)) => {}
        }
    }
    unscaled(&value?, scale?)
}

/// Base64 of bits with the highest byte first, as servers store them.
fn bits(text: &str) -> Option<String> {
    let mut bytes = STANDARD.decode(text.as_bytes()).ok()?;
    bytes.reverse();
    Some(STANDARD.encode(bytes))
}

/// The text of a PostgreSQL array: `{1,NULL,"a b"}`.
fn array(rule: &Rule, column: &str, text: &str) -> Result<String, DebeziumError> {
    if !text.starts_with('[') {
        return Err(DebeziumError::Nested { column: column.to_owned() });
    }
    let mut out = String::from("{");
    for (place, member) in list(text)?.iter().enumerate() {
        if place > 0 {
            out.push(',');
        }
        match (rule, member) {
            (_, Cell::Null) => out.push_str("NULL"),
            (Rule::List(inner), Cell::Nested(text)) => out.push_str(&array(inner, column, text)?),
            (_, member) => {
                let mut json = Vec::new();
                write(&mut json, rule, column, member)?;
                quote(&mut out, &json).ok_or_else(|| DebeziumError::Value { column: column.to_owned() })?;
            }
        }
    }
    out.push('}');
    Ok(out)
}

/// A member of an array in quotes, out of its JSON.
fn quote(out: &mut String, json: &[u8]) -> Option<()> {
    let text: String = serde_json::from_slice(json).or_else(|_| String::from_utf8(json.to_vec())).ok()?;
    out.push('"');
    for char in text.chars() {
        if matches!(char, '"' | '\\') {
            out.push('\\');
        }
        out.push(char);
    }
    out.push('"');
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_before_and_after_1970_are_those_of_the_calendar() {
        let days = [(0, "1970-01-01"), (-1, "1969-12-31"), (11_016, "2000-02-29"), (19_873, "2024-05-30")];
        for (days, text) in days.into_iter().chain([(-719_162, "0001-01-01"), (-719_163, "0001-12-31 BC")]) {
            assert_eq!(date(days), text);
        }
        assert_eq!(date(2_932_897), "10000-01-01");
        let _ = (date(i64::MAX), date(i64::MIN));
    }

    #[test]
    fn instants_and_times_keep_six_digits_and_their_sign() {
        assert_eq!(instant(1_717_063_200_123, 1_000), "2024-05-30T10:00:00.123000Z");
        assert_eq!(instant(-1, 1_000_000), "1969-12-31T23:59:59.999999Z");
        assert_eq!(instant(1_999, 1_000_000_000), "1970-01-01T00:00:00.000001Z");
        assert_eq!(instant(INFINITIES[0].0, 1_000_000), "infinity");
        assert_eq!(of_day(-3_020_399_000_000, 1_000_000), "-838:59:59.000000");
        assert_eq!(of_day(1_500, 1_000), "00:00:01.500000");
        for unit in [1_000, 1_000_000, 1_000_000_000] {
            let _ = (instant(i64::MIN, unit), of_day(i64::MIN, unit), instant(i64::MAX, unit));
        }
    }

    #[test]
    fn times_as_text_are_spelled_as_postgresql_reads_them() {
        for text in ["2024-05-30Z", "2024-05-30T10:00:00.123456Z", "10:00:00Z"] {
            assert_eq!(iso(text), text);
        }
        assert_eq!(iso("+294247-01-10T04:00:25.2Z"), "infinity");
        assert_eq!(iso("+10000-01-01T00:00:00Z"), "10000-01-01T00:00:00Z");
        assert_eq!(iso("-0043-03-15Z"), "0044-03-15Z BC");
        assert_eq!(span("12:00:00Z"), "12:00:00");
        assert_eq!(span("P1Y2M3DT4H5M6.7S"), "P1Y2M3DT4H5M6.7S");
    }

    #[test]
    fn decimals_are_exact_at_any_length() {
        let decimal = |bytes: &[u8], scale| unscaled(&STANDARD.encode(bytes), scale);
        assert_eq!(decimal(&[0x04, 0xd2], 2).as_deref(), Some("12.34"));
        assert_eq!(decimal(&[0xff], 2).as_deref(), Some("-0.01"));
        assert_eq!(decimal(&[0x80], 0).as_deref(), Some("-128"));
        assert_eq!(decimal(&[0], 4).as_deref(), Some("0.0000"));
        assert_eq!(decimal(&[0xff; 20], 0).as_deref(), Some("-1"));
        let mut big = vec![0x7f];
        big.extend([0xff; 26]);
        assert_eq!(
            decimal(&big, 30).as_deref(),
            Some("52656145834278593348959013841835216.159447547700274555627155488767")
        );
        assert_eq!((decimal(&[], 0), decimal(&[1], usize::MAX)), (None, None));
        assert_eq!(variable(r#"{"scale":3,"value":"BNI="}"#).as_deref(), Some("1.234"));
    }

    #[test]
    fn arrays_are_spelled_as_postgresql_reads_them() {
        let text = array(&Rule::Plain, "a", r#"[1,null,"a \"b\"",true]"#).expect("sound");
        assert_eq!(text, r#"{"1",NULL,"a \"b\"","true"}"#);
        let nested = array(&Rule::List(Box::new(Rule::Days)), "a", "[[0],[1,null]]").expect("sound");
        assert_eq!(nested, r#"{{"1970-01-01"},{"1970-01-02",NULL}}"#);
    }

    #[test]
    fn what_cannot_be_known_is_refused_with_its_remedy() {
        let refused = |rule: Rule, json: &str| {
            let fields = format!("{{\"a\":{json}}}");
            let fields = object(&fields).expect("sound");
            let error = write(&mut Vec::new(), &rule, "a", &fields[0].1).expect_err(json);
            error.to_string()
        };
        assert!(refused(Rule::Decimal, "\"AN9c\"").contains("decimal.handling.mode=string"));
        assert!(refused(Rule::Decimal, "12.5").contains("decimal.handling.mode=double"));
        assert!(refused(Rule::Time, "1717063200123").contains("time.precision.mode=isostring"));
        assert!(refused(Rule::Interval, "1").contains("interval.handling.mode=string"));
        assert!(refused(Rule::Bytes, "\"dead beef\"").contains("binary.handling.mode"));
        assert!(refused(Rule::Plain, "\"__debezium_unavailable_value\"").contains("REPLICA IDENTITY FULL"));
        assert!(refused(Rule::Plain, "{\"wkb\":1}").contains("leave it out"));
    }
}

//! Times as text, in UTC: as `to_char` writes them, and as a cast reads them.

use cutover::observe::civil;

use super::Params;
use crate::simulator::postgres::{
    exec::Stop,
    session::Answer,
    value::{SqlError, Value},
};

const SECOND_US: i64 = 1_000_000;
const DAY_SECONDS: i64 = 86_400;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Times {
    /// A time as people write it, in µs.
    Read,
    /// µs as people write a time.
    Spell,
}

pub fn run(times: Times, params: Params<'_>) -> Result<Answer, Stop> {
    let value = params[0].value();
    let answer = match times {
        Times::Read if value.is_null() => Value::Null,
        Times::Read => Value::Int(parsed(value.str())?),
        Times::Spell => spelled(&value, "T", "Z"),
    };
    Ok(Answer::row(vec![answer]))
}

/// The day since the Unix epoch of a date.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = year - i64::from(month <= 2);
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_year = (153 * (if month > 2 { month - 3 } else { month + 9 }) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// `YYYY-MM-DD`, what stands between date and time, `HH24:MI:SS`, what ends it; a null stays one.
pub fn spelled(time: &Value, between: &str, end: &str) -> Value {
    if time.is_null() {
        return Value::Null;
    }
    let seconds = time.int().div_euclid(SECOND_US);
    let (year, month, day) = civil(seconds.div_euclid(DAY_SECONDS));
    let of_day = seconds.rem_euclid(DAY_SECONDS);
    let (hour, minute, second) = (of_day / 3_600, of_day / 60 % 60, of_day % 60);
    Value::text(format!("{year:04}-{month:02}-{day:02}{between}{hour:02}:{minute:02}:{second:02}{end}"))
}

/// A time in ISO 8601 as µs since the Unix epoch; without an offset it is in UTC. Of other forms the model says that
/// they are no times.
fn parsed(text: &str) -> Result<i64, SqlError> {
    let wrong =
        || SqlError::new("22007", format!("invalid input syntax for type timestamp with time zone: \"{text}\""));
    iso(text.trim()).ok_or_else(wrong)
}

fn iso(text: &str) -> Option<i64> {
    let numbers = |part: &str, separator: char| -> Option<Vec<i64>> {
        let digits = |digits: &str| digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?;
        part.split(separator).map(digits).collect()
    };
    let (date, time) = text.split_once(['T', ' ']).unwrap_or((text, "00:00:00Z"));
    let [year, month, day] = numbers(date, '-')?[..] else { return None };
    let (time, offset) = match time.find(['Z', '+', '-']) {
        Some(place) => time.split_at(place),
        None => (time, "Z"),
    };
    let (time, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let clock = numbers(time, ':')?;
    let (hour, minute, second) = match clock[..] {
        [hour, minute] => (hour, minute, 0),
        [hour, minute, second] => (hour, minute, second),
        _ => return None,
    };
    let real = (1..=12).contains(&month) && (1..=31).contains(&day) && hour <= 24 && minute < 60 && second <= 60;
    let micros: i64 = format!("{fraction:0<6}").get(..6)?.parse().ok()?;
    let behind = match offset {
        "Z" => 0,
        _ => {
            let sign = if offset.starts_with('-') { -1 } else { 1 };
            match numbers(&offset[1..], ':')?[..] {
                [hours] => sign * hours * 3_600,
                [hours, minutes] => sign * (hours * 3_600 + minutes * 60),
                _ => return None,
            }
        }
    };
    let seconds = days(year, month, day) * DAY_SECONDS + hour * 3_600 + minute * 60 + second - behind;
    real.then_some(seconds * SECOND_US + micros)
}

#[test]
fn times_are_written_and_read() {
    for (us, text) in [(0, "1970-01-01T00:00:00Z"), (1_709_210_096_000_000, "2024-02-29T12:34:56Z")] {
        assert_eq!(spelled(&Value::Int(us), "T", "Z"), Value::text(text));
        assert_eq!(parsed(text), Ok(us));
    }
    assert_eq!(parsed("2024-02-29 14:34:56.5+02"), Ok(1_709_210_096_500_000));
    assert_eq!(parsed("2024-02-29"), Ok(1_709_164_800_000_000));
    assert!(parsed("no time").is_err() && parsed("2024-13-01").is_err());
}

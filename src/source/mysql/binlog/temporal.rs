//! Dates and times of every storage format, spelled as `model::value` says.
//!
//! Source: the servers' `sql-common/my_time.c` (the formats of MySQL 5.6 and MariaDB 10.1 and later) and
//! `sql/field.cc` (those of before).

use super::{
    ZeroDates,
    error::ValueError,
    reader::{Reader, Short},
    wire_type::fraction_bytes,
};
use crate::model::Value;

const MICROSECONDS: u32 = 1_000_000;
/// TIME and DATETIME are stored with this added, so that their bytes sort.
const TIME_OFFSET: i64 = 0x80_0000;
const DATETIME_OFFSET: i64 = 0x80_0000_0000;
const HOURS_MAX: u64 = 838;

/// A calendar date; zero parts are possible.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Date {
    pub(super) year: u32,
    pub(super) month: u32,
    pub(super) day: u32,
}

/// A time of day, or with more hours a TIME.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Time {
    pub(super) negative: bool,
    pub(super) hour: u32,
    pub(super) minute: u32,
    pub(super) second: u32,
    pub(super) micros: u32,
}

impl ZeroDates {
    /// What stands for a zero date, of a type with a time or without.
    fn value(self, with_time: bool) -> Result<Value, ValueError> {
        match self {
            ZeroDates::Null => Ok(Value::Null),
            ZeroDates::Error => Err(ValueError::ZeroDate),
            ZeroDates::Replace { year, month, day } => {
                let date = Date { year: year.into(), month: month.into(), day: day.into() };
                Ok(Value::Text(if with_time { datetime_text(date, Time::default()) } else { date_text(date) }))
            }
        }
    }
}

impl Date {
    /// Zero and partial dates, and the year 0, which no other database has.
    fn is_zero(self) -> bool {
        self.year == 0 || self.month == 0 || self.day == 0
    }

    fn value(self, zero: ZeroDates) -> Result<Value, ValueError> {
        self.check()?;
        if self.is_zero() { zero.value(false) } else { Ok(Value::Text(date_text(self))) }
    }

    fn at(self, time: Time, zero: ZeroDates) -> Result<Value, ValueError> {
        self.check()?;
        time.check(23)?;
        if self.is_zero() { zero.value(true) } else { Ok(Value::Text(datetime_text(self, time))) }
    }

    fn check(self) -> Result<(), ValueError> {
        let valid = self.year <= 9999 && self.month <= 12 && self.day <= 31;
        if valid { Ok(()) } else { Err(ValueError::Malformed("date")) }
    }
}

impl Time {
    fn check(self, hour_max: u32) -> Result<(), ValueError> {
        let valid = self.hour <= hour_max && self.minute <= 59 && self.second <= 59 && self.micros < MICROSECONDS;
        if valid { Ok(()) } else { Err(ValueError::Malformed("time")) }
    }

    fn value(self) -> Result<Value, ValueError> {
        self.check(HOURS_MAX as u32)?;
        Ok(Value::Text(time_text(self)))
    }
}

/// DATE: three bytes of bit fields.
#[inline]
pub(super) fn date(reader: &mut Reader<'_>, zero: ZeroDates) -> Result<Value, ValueError> {
    let packed = reader.u24()?;
    Date { year: packed >> 9, month: packed >> 5 & 0xf, day: packed & 0x1f }.value(zero)
}

/// DATETIME with fractions.
#[inline]
pub(super) fn datetime(reader: &mut Reader<'_>, digits: u8, zero: ZeroDates) -> Result<Value, ValueError> {
    let whole = reader.big_endian(5)?.cast_signed() - DATETIME_OFFSET;
    let micros = fraction(reader, digits)?;
    let whole = u64::try_from(whole).map_err(|_| ValueError::Malformed("date"))?;
    let (date, time) = unpack_datetime(whole, micros);
    date.at(time, zero)
}

/// The bit fields of a DATETIME's whole seconds.
pub(super) fn unpack_datetime(whole: u64, micros: u32) -> (Date, Time) {
    let (days, clock) = (whole >> 17, (whole & 0x1_ffff) as u32);
    let months = days >> 5;
    let year = u32::try_from(months / 13).unwrap_or(u32::MAX);
    let date = Date { year, month: (months % 13) as u32, day: (days & 0x1f) as u32 };
    (date, clock_time(false, clock, micros))
}

/// TIME as it is packed in memory, and inside JSON: 24 bits of microseconds below the clock.
pub(super) fn unpack_time(packed: i64) -> Time {
    let magnitude = packed.unsigned_abs();
    clock_time(packed < 0, (magnitude >> 24) as u32 & 0x3f_ffff, (magnitude & 0xff_ffff) as u32)
}

fn clock_time(negative: bool, clock: u32, micros: u32) -> Time {
    Time { negative, hour: clock >> 12, minute: clock >> 6 & 0x3f, second: clock & 0x3f, micros }
}

/// TIMESTAMP with fractions: seconds since the epoch, unsigned on MariaDB 11.5 and never negative elsewhere.
#[inline]
pub(super) fn timestamp(reader: &mut Reader<'_>, digits: u8, zero: ZeroDates) -> Result<Value, ValueError> {
    let seconds = u32::from_be_bytes(reader.array()?);
    let micros = fraction(reader, digits)?;
    epoch(seconds, micros, zero)
}

/// TIME with fractions. Whole and fraction are one two's complement number.
#[inline]
pub(super) fn time(reader: &mut Reader<'_>, digits: u8) -> Result<Value, ValueError> {
    let bytes = fraction_bytes(digits);
    let stored = reader.big_endian(3 + bytes)?.cast_signed();
    let scaled = stored - (TIME_OFFSET << (8 * bytes));
    let magnitude = scaled.unsigned_abs();
    let clock = u32::try_from(magnitude >> (8 * bytes)).map_err(|_| ValueError::Malformed("time"))?;
    let part = (magnitude & ((1 << (8 * bytes)) - 1)) as u32;
    clock_time(scaled < 0, clock & 0x7f_ffff, part.saturating_mul(unit(bytes))).value()
}

/// The microseconds of one unit of a fraction with so many bytes.
fn unit(bytes: usize) -> u32 {
    match bytes {
        1 => 10_000,
        2 => 100,
        _ => 1,
    }
}

#[inline]
fn fraction(reader: &mut Reader<'_>, digits: u8) -> Result<u32, ValueError> {
    let bytes = fraction_bytes(digits);
    let part = reader.big_endian(bytes)? as u32;
    let micros = part.saturating_mul(unit(bytes));
    if micros < MICROSECONDS { Ok(micros) } else { Err(ValueError::Malformed("fraction of a second")) }
}

/// TIME of before MySQL 5.6: a signed number `hhmmss`.
pub(super) fn old_time(reader: &mut Reader<'_>) -> Result<Value, ValueError> {
    let number = (reader.u24()? << 8).cast_signed() >> 8;
    let digits = number.unsigned_abs();
    Time { negative: number < 0, hour: digits / 10_000, minute: digits / 100 % 100, second: digits % 100, micros: 0 }
        .value()
}

/// DATETIME of before MySQL 5.6: a number `yyyymmddhhmmss`.
pub(super) fn old_datetime(reader: &mut Reader<'_>, zero: ZeroDates) -> Result<Value, ValueError> {
    let number = reader.u64()?;
    let (days, clock) = (number / 1_000_000, (number % 1_000_000) as u32);
    let year = u32::try_from(days / 10_000).unwrap_or(u32::MAX);
    let date = Date { year, month: (days / 100 % 100) as u32, day: (days % 100) as u32 };
    let time =
        Time { negative: false, hour: clock / 10_000, minute: clock / 100 % 100, second: clock % 100, micros: 0 };
    date.at(time, zero)
}

/// TIMESTAMP of before MySQL 5.6.
pub(super) fn old_timestamp(reader: &mut Reader<'_>, zero: ZeroDates) -> Result<Value, ValueError> {
    let seconds = reader.u32().map_err(|Short| ValueError::Truncated)?;
    epoch(seconds, 0, zero)
}

/// A moment in UTC; 0 is the zero timestamp.
fn epoch(seconds: u32, micros: u32, zero: ZeroDates) -> Result<Value, ValueError> {
    if seconds == 0 && micros == 0 {
        return zero.value(true);
    }
    let clock = seconds % 86_400;
    let time = Time { negative: false, hour: clock / 3600, minute: clock / 60 % 60, second: clock % 60, micros };
    Ok(Value::Text(datetime_text(civil(seconds / 86_400), time)))
}

/// Days since 1970-01-01 to a date: <https://howardhinnant.github.io/date_algorithms.html#civil_from_days>.
fn civil(days: u32) -> Date {
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    Date { year: year_of_era + era * 400 + u32::from(month <= 2), month, day }
}

fn date_text(date: Date) -> String {
    let mut text = *b"0000-00-00Z";
    put_date(&mut text, date);
    ascii(&text)
}

fn datetime_text(date: Date, time: Time) -> String {
    let mut text = *b"0000-00-00T00:00:00.000000Z";
    put_date(&mut text, date);
    put(&mut text[11..13], time.hour);
    put_rest(&mut text[13..26], time);
    ascii(&text)
}

/// `-838:59:59.000000`, with at least two digits of hours.
pub(super) fn time_text(time: Time) -> String {
    let mut text = *b"-000:00:00.000000";
    put(&mut text[1..4], time.hour);
    put_rest(&mut text[4..17], time);
    if time.hour < 100 {
        text[1] = b'-';
    }
    let sign = usize::from(time.hour < 100);
    ascii(&text[if time.negative { sign } else { sign + 1 }..])
}

/// `2020-01-01` and `2020-01-01 10:00:00.000000`, as they are spelled inside JSON.
pub(super) fn json_datetime_text(date: Date, time: Option<Time>) -> String {
    let mut text = *b"0000-00-00 00:00:00.000000";
    put_date(&mut text, date);
    let Some(time) = time else { return ascii(&text[..10]) };
    put(&mut text[11..13], time.hour);
    put_rest(&mut text[13..26], time);
    ascii(&text)
}

fn put_date(text: &mut [u8], date: Date) {
    put(&mut text[..4], date.year);
    put(&mut text[5..7], date.month);
    put(&mut text[8..10], date.day);
}

/// Fills `:00:00.000000`.
fn put_rest(text: &mut [u8], time: Time) {
    put(&mut text[1..3], time.minute);
    put(&mut text[4..6], time.second);
    put(&mut text[7..13], time.micros);
}

/// Fills `digits` with the number, zeros in front.
#[inline]
fn put(digits: &mut [u8], mut number: u32) {
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

fn ascii(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

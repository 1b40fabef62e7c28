//! The calendar: what day and time an instant is.

/// Year, month and day so many days after 1970-01-01, in the proleptic Gregorian calendar.
///
/// After <https://howardhinnant.github.io/date_algorithms.html#civil_from_days>.
pub fn civil(days: i64) -> (i64, i64, i64) {
    let days = i128::from(days) + 719_468;
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + i128::from(month <= 2);
    let narrow = |number: i128| i64::try_from(number).unwrap_or(i64::MAX);
    (narrow(year), narrow(month), narrow(day))
}

/// An instant, in µs since the Unix epoch, as people write it: `2026-11-29 10:30:05`, in UTC.
pub fn utc(at_us: i64) -> String {
    let seconds = at_us.div_euclid(1_000_000);
    let (days, of_day) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day) = civil(days);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}", of_day / 3600, of_day / 60 % 60, of_day % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instant_is_written_in_utc_before_and_after_1970() {
        assert_eq!(utc(1_717_063_200_123_000), "2024-05-30 10:00:00");
        assert_eq!(utc(-1), "1969-12-31 23:59:59");
    }
}

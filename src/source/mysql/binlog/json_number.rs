//! Doubles as MySQL's JSON spells them: the shortest digits that read back, plain up to fifteen places.

use std::fmt::Write as _;

use super::JsonDoubles;

/// The server's `MAX_DECPT_FOR_F_FORMAT`: the decimal point is at most so far from the first digit.
const PLAIN_POINT_MAX: i32 = 15;

/// Appends a finite double as the server's `my_gcvt` prints it.
pub(super) fn push_double(text: &mut String, number: f64, doubles: JsonDoubles) {
    // Rust's digits are the shortest that read back, and so are the server's.
    let scientific = format!("{:e}", number.abs());
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    if number.is_sign_negative() {
        text.push('-');
    }
    let point = exponent + 1;
    if !(1 - PLAIN_POINT_MAX..=PLAIN_POINT_MAX).contains(&point) {
        text.push_str(mantissa);
        // Writing to a string cannot fail.
        let _ = write!(text, "e{exponent}");
        return;
    }
    let places = point.unsigned_abs() as usize;
    if point <= 0 {
        let digits = format!("{whole}{fraction}");
        // Zero is the one number without a first digit: it has no fraction either.
        if number == 0.0 {
            text.push('0');
        } else {
            text.push_str("0.");
            text.extend(std::iter::repeat_n('0', places));
            text.push_str(&digits);
            return;
        }
    } else if fraction.len() < places {
        text.push_str(whole);
        text.push_str(fraction);
        text.extend(std::iter::repeat_n('0', places - 1 - fraction.len()));
    } else {
        let (before, after) = fraction.split_at(places - 1);
        text.push_str(whole);
        text.push_str(before);
        text.push('.');
        text.push_str(after);
        return;
    }
    match doubles {
        JsonDoubles::Marked => text.push_str(".0"),
        JsonDoubles::Bare => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spelled(number: f64, doubles: JsonDoubles) -> String {
        let mut text = String::new();
        push_double(&mut text, number, doubles);
        text
    }

    /// The numbers and their spelling are from MySQL 9.7 and 5.7.
    #[test]
    fn doubles_in_json_are_spelled_as_the_server_spells_them() {
        let cases = [
            (1.0, "1.0", "1"),
            (-0.0, "-0.0", "-0"),
            (0.0, "0.0", "0"),
            (1e15, "1e15", "1e15"),
            (1e14, "100000000000000.0", "100000000000000"),
            (123456789012345.0, "123456789012345.0", "123456789012345"),
            (1234567890123456.0, "1.234567890123456e15", "1.234567890123456e15"),
            (1e-14, "0.00000000000001", "0.00000000000001"),
            (1e-15, "0.000000000000001", "0.000000000000001"),
            (1e-16, "1e-16", "1e-16"),
            (1.5e300, "1.5e300", "1.5e300"),
            (123456.789, "123456.789", "123456.789"),
            (5e-324, "5e-324", "5e-324"),
            (f64::MAX, "1.7976931348623157e308", "1.7976931348623157e308"),
            (0.00001, "0.00001", "0.00001"),
            (-100.0, "-100.0", "-100"),
            (12345678901234567890.5, "1.2345678901234567e19", "1.2345678901234567e19"),
        ];
        for (number, marked, bare) in cases {
            assert_eq!(spelled(number, JsonDoubles::Marked), marked);
            assert_eq!(spelled(number, JsonDoubles::Bare), bare);
        }
    }
}

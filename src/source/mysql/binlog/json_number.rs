//! Doubles as MySQL's JSON spells them: the shortest digits that read back, plain up to fifteen places.

use std::fmt::Write as _;

use super::JsonDoubles;

/// The server's `MAX_DECPT_FOR_F_FORMAT`: the decimal point is at most so far from the first digit.
const PLAIN_POINT_MAX: i32 = 15;

/// Enough for every double: the longest has 767 significant digits.
const EXACT_DIGITS_MAX: usize = 767;

/// Appends a finite double as the server's `my_gcvt` prints it.
pub(super) fn push_double(text: &mut String, number: f64, doubles: JsonDoubles) {
    let scientific = shortest(number.abs());
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

/// The shortest digits that read back, `d.ddde±x`. Where two are equally near, Rust takes the higher one, and the
/// server (`dtoa`, by David Gay) the one whose last digit is even.
fn shortest(number: f64) -> String {
    let higher = format!("{number:e}");
    let Some((mantissa, exponent)) = higher.split_once('e') else { return higher };
    let (Some(rest), Some(last)) = (mantissa.get(..mantissa.len() - 1), mantissa.bytes().last()) else { return higher };
    if !last.is_ascii_digit() || last % 2 == 0 {
        return higher;
    }
    let lower = format!("{rest}{}", char::from(last - 1));
    let even = format!("{lower}e{exponent}");
    if even.parse::<f64>() != Ok(number) {
        return higher;
    }
    let point = if lower.contains('.') { "" } else { "." };
    // With all of the digits that a double can have.
    let exact = format!("{number:.EXACT_DIGITS_MAX$e}");
    let tail = exact.strip_prefix(&format!("{lower}{point}5")).and_then(|tail| tail.split_once('e'));
    let halfway = tail.is_some_and(|(tail, _)| tail.bytes().all(|digit| digit == b'0'));
    if halfway { even } else { higher }
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

    #[test]
    fn a_double_half_way_between_two_spellings_has_the_even_one() {
        let cases = [
            ("82417583415218.625", "82417583415218.62"),
            ("82417583415218.635", "82417583415218.64"),
            ("82417583415218.375", "82417583415218.38"),
            ("-70368744177665.625", "-70368744177665.62"),
            ("562949953421312.25", "562949953421312.2"),
            ("562949953421313.75", "562949953421313.8"),
        ];
        for (number, spelling) in cases {
            let number: f64 = number.parse().expect("a number");
            assert_eq!(spelled(number, JsonDoubles::Marked), spelling);
            assert_eq!(spelled(number, JsonDoubles::Bare), spelling);
        }
    }
}

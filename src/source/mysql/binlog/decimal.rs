//! DECIMAL: groups of nine digits in four bytes, big endian, so that bytes sort like numbers.
//!
//! Source: `decimal2bin` and `bin2decimal` in the servers' `strings/decimal.c`.

use super::error::ValueError;

/// The bytes that so many digits, fewer than nine, take.
const PARTIAL_BYTES: [usize; 10] = [0, 1, 1, 2, 2, 3, 3, 4, 4, 4];
const GROUP_DIGITS: u8 = 9;
const MALFORMED: ValueError = ValueError::Malformed("decimal");

/// The bytes of a DECIMAL(precision, scale) in a row.
pub(super) fn stored_bytes(precision: u8, scale: u8) -> usize {
    digits_bytes(precision.saturating_sub(scale)) + digits_bytes(scale)
}

fn digits_bytes(digits: u8) -> usize {
    usize::from(digits / GROUP_DIGITS) * 4 + PARTIAL_BYTES[usize::from(digits % GROUP_DIGITS)]
}

/// The plain spelling with all digits of the scale, `-12.3400`. `bytes` are exactly [`stored_bytes`].
pub(super) fn text(bytes: &[u8], precision: u8, scale: u8) -> Result<String, ValueError> {
    let integer_digits = precision.saturating_sub(scale);
    let first = bytes.first().ok_or(ValueError::Truncated)?;
    let negative = first & 0x80 == 0;
    let mut groups = Groups { bytes, mask: if negative { 0xff } else { 0 }, first: true };
    let mut text = String::with_capacity(usize::from(precision) + 3);
    if negative {
        text.push('-');
    }
    let start = text.len();
    let mut partial = integer_digits % GROUP_DIGITS;
    for _ in 0..integer_digits.div_ceil(GROUP_DIGITS) {
        let digits = if partial == 0 { GROUP_DIGITS } else { partial };
        partial = 0;
        push_integer(&mut text, start, groups.next(digits)?, digits);
    }
    if text.len() == start {
        text.push('0');
    }
    if scale == 0 {
        return Ok(text);
    }
    text.push('.');
    for _ in 0..scale / GROUP_DIGITS {
        push_padded(&mut text, groups.next(GROUP_DIGITS)?, GROUP_DIGITS);
    }
    if !scale.is_multiple_of(GROUP_DIGITS) {
        push_padded(&mut text, groups.next(scale % GROUP_DIGITS)?, scale % GROUP_DIGITS);
    }
    Ok(text)
}

struct Groups<'a> {
    bytes: &'a [u8],
    /// All ones if the number is negative: its bytes are complemented.
    mask: u8,
    first: bool,
}

impl Groups<'_> {
    /// The next group, of so many (at most nine) digits.
    #[inline]
    fn next(&mut self, digits: u8) -> Result<u32, ValueError> {
        let length = PARTIAL_BYTES.get(usize::from(digits)).ok_or(MALFORMED)?;
        let (bytes, rest) = self.bytes.split_at_checked(*length).ok_or(ValueError::Truncated)?;
        self.bytes = rest;
        let mut value = bytes.iter().fold(0, |sum, byte| sum << 8 | u32::from(byte ^ self.mask));
        if self.first {
            // The sign bit of the very first byte, inverted.
            value ^= 0x80 << (8 * (length - 1));
            self.first = false;
        }
        if value < 10u32.pow(u32::from(digits)) { Ok(value) } else { Err(MALFORMED) }
    }
}

/// Appends a group of the integer part, without zeros in front of the number.
fn push_integer(text: &mut String, start: usize, value: u32, digits: u8) {
    if text.len() > start {
        push_padded(text, value, digits);
    } else if value > 0 {
        push_padded(text, value, u8::try_from(value.ilog10() + 1).unwrap_or(digits));
    }
}

fn push_padded(text: &mut String, mut value: u32, digits: u8) {
    let mut buffer = [b'0'; GROUP_DIGITS as usize];
    let Some(used) = buffer.get_mut(..usize::from(digits)) else { return };
    for digit in used.iter_mut().rev() {
        *digit = b'0' + (value % 10) as u8;
        value /= 10;
    }
    text.push_str(str::from_utf8(used).unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_keep_sign_and_scale() {
        // 1234567890.1234 as DECIMAL(14,4), from the comment in the server's own source.
        let positive = [0x81, 0x0d, 0xfb, 0x38, 0xd2, 0x04, 0xd2];
        assert_eq!(text(&positive, 14, 4).as_deref(), Ok("1234567890.1234"));
        let negative = positive.map(|byte| !byte);
        assert_eq!(text(&negative, 14, 4).as_deref(), Ok("-1234567890.1234"));
        assert_eq!(text(&[0x80, 0x00, 0x05], 5, 2).as_deref(), Ok("0.05"));
        assert_eq!(text(&[0x85], 2, 2).as_deref(), Ok("0.05"));
        assert_eq!(text(&[0x80], 1, 0).as_deref(), Ok("0"));
    }

    #[test]
    fn groups_beyond_their_digits_are_refused() {
        assert_eq!(text(&[0xff, 0xff], 3, 0), Err(MALFORMED));
    }
}

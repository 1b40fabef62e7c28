//! MariaDB's UUID and INET6: stored forms to the text that the server prints.

use std::fmt::Write as _;

const WORDS: usize = 8;

/// A UUID. Those of version 1 to 5 are stored with their groups in reverse order, so that they sort by time;
/// the version and variant bits tell which these are.
///
/// Source: `UUID::rec_need_swap` in MariaDB's `plugin/type_uuid/sql_type_uuid.h`. Columns made before MariaDB
/// 10.11.5 store versions 6 and up in reverse as well, which their variant bits tell.
pub(super) fn uuid(stored: [u8; 16]) -> String {
    let reversed = stored[6] & 0x80 != 0 && stored[8] > 0 && stored[8] < 0x80;
    let mut bytes = stored;
    if reversed {
        bytes[0..4].copy_from_slice(&stored[12..16]);
        bytes[4..6].copy_from_slice(&stored[10..12]);
        bytes[6..8].copy_from_slice(&stored[8..10]);
        bytes[8..10].copy_from_slice(&stored[6..8]);
        bytes[10..16].copy_from_slice(&stored[0..6]);
    }
    let mut text = String::with_capacity(36);
    for (index, byte) in bytes.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// An IPv6 address. Unlike RFC 5952, the server shortens a single zero word too.
///
/// Source: `Inet6::to_string` in MariaDB's `plugin/type_inet/sql_type_inet.cc`.
pub(super) fn inet6(stored: [u8; 16]) -> String {
    let words: [u16; WORDS] =
        std::array::from_fn(|index| u16::from_be_bytes([stored[2 * index], stored[2 * index + 1]]));
    let (gap, length) = longest_gap(&words);
    let mut text = String::with_capacity(39);
    let mut index = 0;
    while index < WORDS {
        if length > 0 && index == gap {
            text.push_str(if index == 0 { "::" } else { ":" });
            index += length;
            continue;
        }
        let embedded = index == 6 && gap == 0 && (length == 6 || (length == 5 && words[5] == 0xffff));
        if embedded {
            let _ = write!(text, "{}.{}.{}.{}", stored[12], stored[13], stored[14], stored[15]);
            break;
        }
        let _ = write!(text, "{:x}", words[index]);
        index += 1;
        if index < WORDS {
            text.push(':');
        }
    }
    text
}

/// The first longest run of zero words.
fn longest_gap(words: &[u16; WORDS]) -> (usize, usize) {
    let (mut gap, mut longest, mut run) = (0, 0, 0);
    for (index, word) in words.iter().enumerate() {
        run = if *word == 0 { run + 1 } else { 0 };
        if run > longest {
            (gap, longest) = (index + 1 - run, run);
        }
    }
    (gap, longest)
}

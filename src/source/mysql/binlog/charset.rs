//! Text of any of the servers' character sets to UTF-8, exactly as the servers themselves convert it.
//!
//! Bytes that the character set does not define are an error; there are no replacement characters.

use encoding_rs::Encoding;

use super::{
    charset_runs::{self, Run},
    charset_tables::SINGLE_BYTE,
    error::ValueError,
};

/// A character set.
#[derive(Debug, Clone, Copy)]
pub(super) struct Charset {
    name: &'static str,
    form: Form,
}

#[derive(Debug, Clone, Copy)]
enum Form {
    Utf8,
    Ascii,
    /// ASCII, and a table for the upper half.
    Single(&'static [u16; 128]),
    /// Swedish seven bits: ASCII except for ten letters.
    Swe7,
    Utf16 {
        big_endian: bool,
    },
    /// UTF-16 without surrogates.
    Ucs2,
    Utf32,
    /// Sequences of several bytes, as the Encoding Standard has them except for `runs`.
    Multi {
        encoding: &'static Encoding,
        runs: &'static [Run],
        lead: Lead,
    },
}

/// How long a sequence is, by its first bytes.
#[derive(Debug, Clone, Copy)]
enum Lead {
    ShiftJis,
    EucJp,
    TwoBytes,
    Gb18030,
}

impl Charset {
    /// The character set with the servers' name; none if it is unknown, or `binary`.
    pub(super) fn by_name(name: &str) -> Option<Charset> {
        use encoding_rs::{BIG5, EUC_JP, EUC_KR, GB18030, GBK, SHIFT_JIS};
        let multi = |name, encoding, runs, lead| Some(Charset { name, form: Form::Multi { encoding, runs, lead } });
        let plain = |name, form| Some(Charset { name, form });
        match name {
            "utf8mb4" => plain("utf8mb4", Form::Utf8),
            "utf8" | "utf8mb3" => plain("utf8mb3", Form::Utf8),
            "ascii" => plain("ascii", Form::Ascii),
            "swe7" => plain("swe7", Form::Swe7),
            "ucs2" => plain("ucs2", Form::Ucs2),
            "utf16" => plain("utf16", Form::Utf16 { big_endian: true }),
            "utf16le" => plain("utf16le", Form::Utf16 { big_endian: false }),
            "utf32" => plain("utf32", Form::Utf32),
            "sjis" => multi("sjis", SHIFT_JIS, charset_runs::SJIS, Lead::ShiftJis),
            "cp932" => multi("cp932", SHIFT_JIS, charset_runs::CP932, Lead::ShiftJis),
            "ujis" => multi("ujis", EUC_JP, charset_runs::UJIS, Lead::EucJp),
            "eucjpms" => multi("eucjpms", EUC_JP, charset_runs::EUCJPMS, Lead::EucJp),
            "gbk" => multi("gbk", GBK, charset_runs::GBK, Lead::TwoBytes),
            "gb2312" => multi("gb2312", GBK, charset_runs::GB2312, Lead::TwoBytes),
            "big5" => multi("big5", BIG5, charset_runs::BIG5, Lead::TwoBytes),
            "euckr" => multi("euckr", EUC_KR, &[], Lead::TwoBytes),
            "gb18030" => multi("gb18030", GB18030, charset_runs::GB18030, Lead::Gb18030),
            other => SINGLE_BYTE
                .iter()
                .find(|(name, _)| *name == other)
                .map(|(name, table)| Charset { name, form: Form::Single(table) }),
        }
    }

    /// The text, or an error that names the character set.
    #[inline]
    pub(super) fn decode(self, bytes: &[u8]) -> Result<String, ValueError> {
        match self.form {
            Form::Utf8 => String::from_utf8(bytes.to_vec()).map_err(|_| ValueError::Undecodable(self.name)),
            Form::Ascii | Form::Single(_) | Form::Multi { .. } if bytes.is_ascii() => {
                Ok(String::from_utf8_lossy(bytes).into_owned())
            }
            _ => self.convert(bytes).ok_or(ValueError::Undecodable(self.name)),
        }
    }

    /// Whether these bytes mean the same in UTF-8.
    pub(super) fn is_plain(self, bytes: &[u8]) -> bool {
        match self.form {
            Form::Utf8 => true,
            Form::Ascii | Form::Single(_) | Form::Multi { .. } => bytes.is_ascii(),
            Form::Swe7 | Form::Ucs2 | Form::Utf16 { .. } | Form::Utf32 => bytes.is_empty(),
        }
    }

    fn convert(self, bytes: &[u8]) -> Option<String> {
        match self.form {
            Form::Utf8 => str::from_utf8(bytes).ok().map(str::to_owned),
            Form::Ascii => None,
            Form::Single(table) => bytes.iter().map(|byte| single(table, *byte)).collect(),
            Form::Swe7 => bytes.iter().map(|byte| swe7(*byte)).collect(),
            Form::Ucs2 => units(bytes, true)?.map(|unit| char::from_u32(u32::from(unit))).collect(),
            Form::Utf16 { big_endian } => char::decode_utf16(units(bytes, big_endian)?).map(Result::ok).collect(),
            Form::Utf32 => {
                let (chunks, rest) = bytes.as_chunks::<4>();
                let text = chunks.iter().map(|chunk| char::from_u32(u32::from_be_bytes(*chunk))).collect();
                if rest.is_empty() { text } else { None }
            }
            Form::Multi { encoding, runs, lead } => multi(bytes, encoding, runs, lead),
        }
    }
}

fn single(table: &[u16; 128], byte: u8) -> Option<char> {
    let unit = match byte.checked_sub(128) {
        None => u16::from(byte),
        Some(upper) => *table.get(usize::from(upper)).filter(|unit| **unit != 0)?,
    };
    char::from_u32(u32::from(unit))
}

fn swe7(byte: u8) -> Option<char> {
    match byte {
        0x40 => Some('É'),
        0x5b => Some('Ä'),
        0x5c => Some('Ö'),
        0x5d => Some('Å'),
        0x5e => Some('Ü'),
        0x60 => Some('é'),
        0x7b => Some('ä'),
        0x7c => Some('ö'),
        0x7d => Some('å'),
        0x7e => Some('ü'),
        ascii if ascii < 0x7f => Some(char::from(ascii)),
        _ => None,
    }
}

fn units(bytes: &[u8], big_endian: bool) -> Option<impl Iterator<Item = u16>> {
    let (chunks, rest) = bytes.as_chunks::<2>();
    let unit = move |chunk: &[u8; 2]| if big_endian { u16::from_be_bytes(*chunk) } else { u16::from_le_bytes(*chunk) };
    rest.is_empty().then(|| chunks.iter().map(unit))
}

impl Lead {
    fn length(self, bytes: &[u8]) -> usize {
        let first = bytes.first().copied().unwrap_or_default();
        match self {
            Lead::ShiftJis if matches!(first, 0x81..=0x9f | 0xe0..=0xfc) => 2,
            Lead::EucJp if first == 0x8f => 3,
            Lead::EucJp if first == 0x8e || first >= 0xa1 => 2,
            Lead::TwoBytes if first >= 0x81 => 2,
            Lead::Gb18030 if first >= 0x81 => {
                if matches!(bytes.get(1), Some(b'0'..=b'9')) {
                    4
                } else {
                    2
                }
            }
            Lead::ShiftJis | Lead::EucJp | Lead::TwoBytes | Lead::Gb18030 => 1,
        }
    }
}

/// Decodes stretches without an exception in one go, exceptions one by one.
fn multi(bytes: &[u8], encoding: &'static Encoding, runs: &[Run], lead: Lead) -> Option<String> {
    let mut text = String::with_capacity(bytes.len() * 3 / 2);
    let (mut from, mut at) = (0, 0);
    while at < bytes.len() {
        let rest = bytes.get(at..)?;
        let length = lead.length(rest);
        let sequence = rest.get(..length)?;
        let number = sequence.iter().fold(0, |sum, byte| sum << 8 | u32::from(*byte));
        if let Some(run) = exception(runs, number) {
            text.push_str(&encoding.decode_without_bom_handling_and_without_replacement(bytes.get(from..at)?)?);
            text.push(char::from_u32(run.to + (number - run.first)).filter(|_| run.to != 0)?);
            from = at + length;
        }
        at += length;
    }
    text.push_str(&encoding.decode_without_bom_handling_and_without_replacement(bytes.get(from..)?)?);
    Some(text)
}

fn exception(runs: &[Run], number: u32) -> Option<&Run> {
    let after = runs.partition_point(|run| run.first <= number);
    runs.get(after.checked_sub(1)?).filter(|run| number <= run.last)
}

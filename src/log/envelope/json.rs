//! The little JSON that the envelope needs: a strict scanner over one document, and escaping.
//!
//! Strings without escapes are borrowed from the input and numbers are handed out as they are spelled.
//! The grammar is RFC 8259's, checked in full, also in what is skipped.

use std::borrow::Cow;

use super::EnvelopeError;

/// How deep values that are skipped may nest; a deeper document is refused rather than recursed into.
const DEPTH_MAX: u32 = 64;

/// One byte in all eight.
const fn spread(byte: u8) -> u64 {
    0x0101_0101_0101_0101 * byte as u64
}

/// The length of the prefix that a JSON string holds as it is: no quote, no backslash, no control character.
///
/// Eight bytes at a time, after <https://graphics.stanford.edu/~seander/bithacks.html#ZeroInWord>: a
/// borrow can only flag bytes above a true hit, so the lowest flag is always right.
pub(in crate::log) fn plain_len(bytes: &[u8]) -> usize {
    let mut len = 0;
    let mut words = bytes.chunks_exact(8);
    for chunk in &mut words {
        let Ok(word) = chunk.try_into().map(u64::from_le_bytes) else { break };
        let zero = |word: u64| word.wrapping_sub(spread(1)) & !word;
        let control = word.wrapping_sub(spread(0x20)) & !word;
        let hits = (zero(word ^ spread(b'"')) | zero(word ^ spread(b'\\')) | control) & spread(0x80);
        if hits != 0 {
            return len + (hits.trailing_zeros() / 8) as usize;
        }
        len += 8;
    }
    len + words.remainder().iter().take_while(|byte| **byte >= 0x20 && **byte != b'"' && **byte != b'\\').count()
}

/// Writes a JSON string with its quotes.
pub(in crate::log) fn write_string(out: &mut Vec<u8>, text: &str) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    out.push(b'"');
    let mut rest = text.as_bytes();
    loop {
        let (plain, tail) = rest.split_at(plain_len(rest));
        out.extend_from_slice(plain);
        let Some((byte, tail)) = tail.split_first() else { break };
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            control => {
                out.extend_from_slice(b"\\u00");
                out.extend([HEX[usize::from(control >> 4)], HEX[usize::from(control & 15)]]);
            }
        }
        rest = tail;
    }
    out.push(b'"');
}

/// Reads one document from front to back.
#[derive(Debug, Clone)]
pub(in crate::log) struct Scanner<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Scanner<'a> {
    pub(in crate::log) fn new(value: &'a [u8]) -> Result<Self, EnvelopeError> {
        let text = std::str::from_utf8(value).map_err(|error| EnvelopeError::NotUtf8 { at: error.valid_up_to() })?;
        Ok(Scanner { text, at: 0 })
    }

    pub(in crate::log) fn malformed(&self, expected: &'static str) -> EnvelopeError {
        EnvelopeError::Malformed { at: self.at, expected }
    }

    fn rest(&self) -> &'a [u8] {
        self.text.as_bytes().get(self.at..).unwrap_or_default()
    }

    fn slice(&self, from: usize, to: usize) -> Result<&'a str, EnvelopeError> {
        self.text.get(from..to).ok_or_else(|| self.malformed("a whole character"))
    }

    /// The next byte that is no white space, left where it is.
    pub(in crate::log) fn peek(&mut self) -> Option<u8> {
        loop {
            let byte = *self.text.as_bytes().get(self.at)?;
            if !matches!(byte, b' ' | b'\t' | b'\n' | b'\r') {
                return Some(byte);
            }
            self.at += 1;
        }
    }

    pub(in crate::log) fn expect(&mut self, wanted: u8, expected: &'static str) -> Result<(), EnvelopeError> {
        if self.peek() != Some(wanted) {
            return Err(self.malformed(expected));
        }
        self.at += 1;
        Ok(())
    }

    /// Steps over `wanted` if it is next.
    pub(in crate::log) fn accept(&mut self, wanted: u8) -> bool {
        let found = self.peek() == Some(wanted);
        self.at += usize::from(found);
        found
    }

    /// Steps over `"name":` if exactly that is next. A name that has to be escaped is left to [`key`](Scanner::key):
    /// its bytes as they are would be another name's spelling, or none.
    pub(in crate::log) fn accept_key(&mut self, name: &str) -> bool {
        let name = name.as_bytes();
        let found = self.peek() == Some(b'"')
            && self
                .rest()
                .get(1..)
                .is_some_and(|rest| rest.starts_with(name) && rest[name.len()..].starts_with(b"\":"))
            && plain_len(name) == name.len();
        self.at += if found { name.len() + 3 } else { 0 };
        found
    }

    /// An object's next key with its colon.
    pub(in crate::log) fn key(&mut self) -> Result<Cow<'a, str>, EnvelopeError> {
        let key = self.string()?;
        self.expect(b':', "a colon")?;
        Ok(key)
    }

    /// After a value of an object: whether another one follows.
    pub(in crate::log) fn more(&mut self) -> Result<bool, EnvelopeError> {
        match self.peek() {
            Some(b',') => {
                self.at += 1;
                Ok(true)
            }
            Some(b'}') => {
                self.at += 1;
                Ok(false)
            }
            _ => Err(self.malformed("a comma or a closing brace")),
        }
    }

    pub(in crate::log) fn end(&mut self) -> Result<(), EnvelopeError> {
        if self.peek().is_none() { Ok(()) } else { Err(self.malformed("the end")) }
    }

    pub(in crate::log) fn string(&mut self) -> Result<Cow<'a, str>, EnvelopeError> {
        self.expect(b'"', "a string")?;
        let start = self.at;
        self.at += plain_len(self.rest());
        let plain = self.slice(start, self.at)?;
        if self.rest().first() == Some(&b'"') {
            self.at += 1;
            return Ok(Cow::Borrowed(plain));
        }
        let mut text = String::with_capacity(2 * plain.len() + 64);
        text.push_str(plain);
        loop {
            match self.rest().first() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(Cow::Owned(text));
                }
                Some(b'\\') => {
                    self.at += 1;
                    text.push(self.escape()?);
                }
                Some(_) => return Err(self.malformed("no control character")),
                None => return Err(self.malformed("a closing quote")),
            }
            let from = self.at;
            self.at += plain_len(self.rest());
            text.push_str(self.slice(from, self.at)?);
        }
    }

    /// What follows a backslash.
    fn escape(&mut self) -> Result<char, EnvelopeError> {
        let Some(letter) = self.rest().first() else { return Err(self.malformed("an escape")) };
        let char = match letter {
            b'"' | b'\\' | b'/' => char::from(*letter),
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                self.at += 1;
                return self.unicode();
            }
            _ => return Err(self.malformed("an escape")),
        };
        self.at += 1;
        Ok(char)
    }

    /// What follows `\u`: a character, or the halves of a surrogate pair.
    fn unicode(&mut self) -> Result<char, EnvelopeError> {
        let first = self.hex4()?;
        let code = if (0xd800..0xdc00).contains(&first) {
            if !self.rest().starts_with(b"\\u") {
                return Err(self.malformed("the second half of a surrogate pair"));
            }
            self.at += 2;
            let second = self.hex4()?;
            if !(0xdc00..0xe000).contains(&second) {
                return Err(self.malformed("the second half of a surrogate pair"));
            }
            0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00)
        } else {
            first
        };
        char::from_u32(code).ok_or_else(|| self.malformed("a character"))
    }

    fn hex4(&mut self) -> Result<u32, EnvelopeError> {
        let mut code = 0;
        for _ in 0..4 {
            let digit = self.rest().first().and_then(|byte| char::from(*byte).to_digit(16));
            let Some(digit) = digit else { return Err(self.malformed("four hex digits")) };
            code = code << 4 | digit;
            self.at += 1;
        }
        Ok(code)
    }

    /// A number, as it is spelled.
    pub(in crate::log) fn number(&mut self) -> Result<&'a str, EnvelopeError> {
        let start = self.at;
        self.at += usize::from(self.rest().first() == Some(&b'-'));
        if self.rest().first() == Some(&b'0') {
            self.at += 1
        } else {
            self.digits()?
        }
        if self.rest().first() == Some(&b'.') {
            self.at += 1;
            self.digits()?;
        }
        if matches!(self.rest().first(), Some(b'e' | b'E')) {
            self.at += 1;
            self.at += usize::from(matches!(self.rest().first(), Some(b'+' | b'-')));
            self.digits()?;
        }
        self.slice(start, self.at)
    }

    fn digits(&mut self) -> Result<(), EnvelopeError> {
        let count = self.rest().iter().take_while(|byte| byte.is_ascii_digit()).count();
        self.at += count;
        if count == 0 { Err(self.malformed("a digit")) } else { Ok(()) }
    }

    /// `true`, `false` or `null`, which the caller has seen the first letter of.
    pub(in crate::log) fn literal(&mut self, word: &'static str) -> Result<&'static str, EnvelopeError> {
        if !self.rest().starts_with(word.as_bytes()) {
            return Err(self.malformed("a value"));
        }
        self.at += word.len();
        Ok(word)
    }

    /// Steps over any value; its text.
    pub(in crate::log) fn raw(&mut self) -> Result<&'a str, EnvelopeError> {
        self.peek();
        let start = self.at;
        self.skip()?;
        self.slice(start, self.at)
    }

    /// Steps over any value.
    pub(in crate::log) fn skip(&mut self) -> Result<(), EnvelopeError> {
        self.skip_nested(0)
    }

    fn skip_nested(&mut self, depth: u32) -> Result<(), EnvelopeError> {
        if depth > DEPTH_MAX {
            return Err(self.malformed("less nesting"));
        }
        match self.peek() {
            Some(b'"') => self.skip_string(),
            Some(b'{') => {
                self.at += 1;
                if self.accept(b'}') {
                    return Ok(());
                }
                loop {
                    self.skip_string()?;
                    self.expect(b':', "a colon")?;
                    self.skip_nested(depth + 1)?;
                    if !self.more()? {
                        return Ok(());
                    }
                }
            }
            Some(b'[') => {
                self.at += 1;
                if self.accept(b']') {
                    return Ok(());
                }
                loop {
                    self.skip_nested(depth + 1)?;
                    if !self.accept(b',') {
                        return self.expect(b']', "a comma or a closing bracket");
                    }
                }
            }
            Some(b't') => self.literal("true").map(drop),
            Some(b'f') => self.literal("false").map(drop),
            Some(b'n') => self.literal("null").map(drop),
            Some(_) => self.number().map(drop),
            None => Err(self.malformed("a value")),
        }
    }

    /// Steps over a string without building it.
    fn skip_string(&mut self) -> Result<(), EnvelopeError> {
        self.expect(b'"', "a string")?;
        loop {
            self.at += plain_len(self.rest());
            match self.rest().first() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(());
                }
                Some(b'\\') => {
                    self.at += 1;
                    self.escape()?;
                }
                Some(_) => return Err(self.malformed("no control character")),
                None => return Err(self.malformed("a closing quote")),
            }
        }
    }
}

//! Envelopes made of the parts of others, as they are spelled: nothing passes through a decoder.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

/// The parts of an envelope.
#[derive(Deserialize, Default)]
struct Parts<'a> {
    #[serde(borrow, default)]
    before: Option<&'a RawValue>,
    #[serde(borrow, default)]
    after: Option<&'a RawValue>,
    #[serde(borrow, default)]
    source: Option<&'a RawValue>,
    #[serde(borrow, default)]
    ts_ms: Option<&'a RawValue>,
    /// Where an envelope comes with its schema, it is in here.
    #[serde(borrow, default)]
    payload: Option<Box<Parts<'a>>>,
}

impl<'a> Parts<'a> {
    fn of(envelope: &'a [u8]) -> Option<Parts<'a>> {
        let parts: Parts<'a> = serde_json::from_slice(envelope).ok()?;
        match parts.payload {
            Some(payload) => Some(*payload),
            None => Some(parts),
        }
    }

    fn envelope(&self, before: &RawValue, after: &RawValue, op: char) -> Bytes {
        let null = RawValue::NULL;
        let (source, ts_ms) = (self.source.unwrap_or(null), self.ts_ms.unwrap_or(null));
        let text =
            format!("{{\"before\":{before},\"after\":{after},\"source\":{source},\"op\":\"{op}\",\"ts_ms\":{ts_ms}}}");
        text.into()
    }
}

/// The delete of the row that an envelope shows last; none if it shows none.
pub fn deletion(shown: &[u8]) -> Option<Bytes> {
    let parts = Parts::of(shown)?;
    Some(parts.envelope(parts.after.or(parts.before)?, RawValue::NULL, 'd'))
}

/// What became of a change whose row was read again.
#[derive(Debug, PartialEq, Eq)]
pub enum Renewed {
    /// The row of `now`, and before it what was there before `then`.
    Merged(Bytes),
    /// As `now`: nothing was there before `then`.
    Now,
    /// As `then`: the row is gone.
    Then,
}

/// The change of a row from what it was before `then` to what it is in `now`; none if one of them is no envelope.
pub fn renewed(then: &[u8], now: &[u8]) -> Option<Renewed> {
    let (then, now) = (Parts::of(then)?, Parts::of(now)?);
    Some(match (then.before, now.after) {
        (None, Some(_)) => Renewed::Now,
        (Some(before), Some(after)) => Renewed::Merged(now.envelope(before, after, 'u')),
        (Some(_) | None, None) => Renewed::Then,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const THEN: &[u8] = br#"{"before":{"v":1},"after":{"v":2},"op":"u"}"#;

    #[test]
    fn a_deletion_has_the_last_image_as_it_was_spelled() {
        let deleted = deletion(br#"{"before":null,"after":{"v":1.10,"w":"\u0000"},"source":{},"op":"c","ts_ms":1}"#);
        let expected = r#"{"before":{"v":1.10,"w":"\u0000"},"after":null,"source":{},"op":"d","ts_ms":1}"#;
        assert_eq!(deleted.as_deref(), Some(expected.as_bytes()));
        let wrapped = deletion(br#"{"schema":{},"payload":{"before":{"v":1},"after":null,"op":"d"}}"#);
        assert!(wrapped.is_some_and(|bytes| bytes.starts_with(br#"{"before":{"v":1},"after":null"#)));
        assert_eq!(deletion(br#"{"before":null,"after":null,"op":"t"}"#), None);
        assert_eq!(deletion(b"[]"), None);
    }

    #[test]
    fn a_renewed_change_keeps_what_was_there_before_and_takes_what_is_there_now() {
        let now = br#"{"before":null,"after":{"v":"\u0000"},"source":{},"op":"r","ts_ms":1}"#;
        let merged = r#"{"before":{"v":1},"after":{"v":"\u0000"},"source":{},"op":"u","ts_ms":1}"#;
        assert_eq!(renewed(THEN, now), Some(Renewed::Merged(merged.into())));
        assert!(matches!(renewed(br#"{"before":null,"after":{"v":2}}"#, now), Some(Renewed::Now)));
        assert!(matches!(renewed(THEN, br#"{"before":{"v":2},"after":null,"op":"d"}"#), Some(Renewed::Then)));
    }
}

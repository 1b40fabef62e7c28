//! Where a record says that it stands: the header `cutover.log`, which makes every append conditional.
//!
//! A writer knows the offset that each of its records is going to have, because it is the only one that writes. It
//! says so in the record: `epoch writer offset`. A record that stands elsewhere was written by somebody whose idea of
//! the log is out of date: a worker that lost its lease, or one whose broker lost its tail. It is *void*, readers pass
//! it over, and its writer learns the same from the acknowledgement. docs/adr/0008-records-say-where-they-stand.md has
//! the argument.

use rdkafka::message::{Header, Headers as _, Message, OwnedHeaders};

use crate::log::{Headers, Offset, Record, record::HeaderError};

const NAME: &str = "cutover.log";
const NAME_FORMAT: &str = "cutover.format";
const NAME_KIND: &str = "cutover.kind";
/// The kind of a record by which a writer takes its turn; it is none of the pipeline's.
const KIND_CLAIM: &str = "writer";

/// Where a record stands, as its writer says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) epoch: u64,
    pub(super) writer: u64,
    pub(super) offset: Offset,
}

/// What a record of the topic is to its readers.
#[derive(Debug, PartialEq)]
pub(super) enum Found {
    Record(Stamp, Record),
    /// A writer took its turn here.
    Claim(Stamp),
    /// It does not stand where its writer put it.
    Void(Stamp),
}

impl Stamp {
    fn parse(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        let mut parts = text.split(' ');
        let mut hex = || u64::from_str_radix(parts.next()?, 16).ok();
        let (epoch, writer) = (hex()?, hex()?);
        let stamp = Stamp { epoch, writer, offset: parts.next()?.parse().ok()? };
        (stamp.to_string() == text).then_some(stamp)
    }

    /// The headers of a record that is to stand here.
    pub(super) fn headers(&self, headers: &Headers) -> OwnedHeaders {
        let pairs = headers.to_pairs();
        let mut all = OwnedHeaders::new_with_capacity(pairs.len() + 1);
        for (key, value) in &pairs {
            all = all.insert(Header { key, value: Some(value) });
        }
        all.insert(Header { key: NAME, value: Some(&self.to_string()) })
    }

    /// The headers of a claim that is to stand here.
    pub(super) fn claim_headers(&self) -> OwnedHeaders {
        let format = crate::log::record::FORMAT.to_string();
        OwnedHeaders::new_with_capacity(3)
            .insert(Header { key: NAME_FORMAT, value: Some(&format) })
            .insert(Header { key: NAME_KIND, value: Some(KIND_CLAIM) })
            .insert(Header { key: NAME, value: Some(&self.to_string()) })
    }
}

impl std::fmt::Display for Stamp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Stamp { epoch, writer, offset } = self;
        write!(f, "{epoch:016x} {writer:016x} {offset}")
    }
}

/// Reads a record of a topic.
///
/// # Errors
/// When it is none that cutover wrote, or one of a newer format.
pub(super) fn read(message: &impl Message) -> Result<Found, HeaderError> {
    let headers = message.headers();
    let pairs = || headers.into_iter().flat_map(|headers| headers.iter());
    let value = |name| pairs().find(|header| header.key == name).map(|header| header.value.unwrap_or_default());
    let stamp = value(NAME).ok_or(HeaderError::Missing { name: NAME })?;
    let expected = "an epoch, a writer and an offset";
    let stamp = Stamp::parse(stamp).ok_or(HeaderError::Invalid { name: NAME, expected })?;
    if u64::try_from(message.offset()) != Ok(stamp.offset) {
        return Ok(Found::Void(stamp));
    }
    let format = crate::log::record::FORMAT.to_string();
    if value(NAME_KIND) == Some(KIND_CLAIM.as_bytes()) && value(NAME_FORMAT) == Some(format.as_bytes()) {
        return Ok(Found::Claim(stamp));
    }
    let others = pairs().filter(|header| header.key != NAME);
    let headers = Headers::from_pairs(others.map(|header| (header.key, header.value.unwrap_or_default())))?;
    let bytes = |payload: Option<&[u8]>| bytes::Bytes::copy_from_slice(payload.unwrap_or_default());
    Ok(Found::Record(stamp, Record { key: bytes(message.key()), value: bytes(message.payload()), headers }))
}

//! A record of the log: Debezium's key and value, and the `cutover.*` headers that the envelope lacks.
//!
//! On a broker headers are ASCII name and value pairs ([`Headers::to_pairs`], [`Headers::from_pairs`]), parsed
//! strictly: a header that is missing, twice, unknown or misspelled is an error that names it, because a
//! record that is read with a wrong version or schema corrupts the target in silence.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::EMPTY;
use crate::model::{CascadeKind, Change, Op, Position, TableSchema, Version};

/// The format of records written by this release (`cutover.format`).
pub const FORMAT: u32 = 1;

/// One record.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// The row's key as JSON (`{"id":5}`); empty for records that are no row change.
    pub key: Bytes,
    /// Debezium's envelope as JSON; for other kinds what [`Kind`] says.
    pub value: Bytes,
    pub headers: Headers,
}

impl Record {
    /// A row change, a copied row, or the emptying of a table; `key` and `value` are its envelope's, `schema` is the id
    /// of its schema. It ends its transaction.
    pub fn change(change: &Change, key: Bytes, value: Bytes, schema: u64) -> Self {
        let kind = match change.op {
            Op::Insert | Op::Update | Op::Delete | Op::Read => Kind::Row,
            Op::Truncate => Kind::Truncate,
        };
        let (version, commit_us) = (change.version, change.commit_us);
        let headers = Headers { kind, version, commit_us, schema: Some(schema), transaction: TransactionPart::End };
        Record { key, value, headers }
    }

    /// The same, with more of its transaction to follow.
    #[must_use]
    pub fn open(mut self) -> Self {
        self.headers.transaction = TransactionPart::Open;
        self
    }

    /// Rows of a child that may have changed unseen. It ends its transaction.
    pub fn cascade(cascade: &CascadeRecord, version: Version, commit_us: i64) -> Self {
        Record::marker(Kind::Cascade, json(cascade), version, commit_us)
    }

    /// A schema that the records after it refer to.
    pub fn schema(schema: &TableSchema) -> Self {
        let mut record = Record::marker(Kind::Schema, json(schema), 0, 0);
        record.headers.schema = Some(schema.id());
        record
    }

    /// Everything before it is complete, and was committed by then.
    pub fn control(control: &Control, commit_us: i64) -> Self {
        Record::marker(Kind::Control, json(control), control.clock, commit_us)
    }

    /// At that time the source had nothing more.
    pub fn heartbeat(control: &Control, at_us: i64) -> Self {
        Record::marker(Kind::Heartbeat, json(control), control.clock, at_us)
    }

    /// A writer begins.
    pub fn start() -> Self {
        Record::marker(Kind::Start, EMPTY, 0, 0)
    }

    fn marker(kind: Kind, value: Bytes, version: Version, commit_us: i64) -> Self {
        let headers = Headers { kind, version, commit_us, schema: None, transaction: TransactionPart::End };
        Record { key: EMPTY, value, headers }
    }
}

/// Our own types can always be written; an empty value would be refused by every reader.
fn json(value: &impl Serialize) -> Bytes {
    serde_json::to_vec(value).unwrap_or_default().into()
}

/// What a record is (`cutover.kind`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A row change or a snapshot row; the value is the envelope.
    Row,
    /// TRUNCATE of a table; the value is the envelope with `"op":"t"`. Sent to every partition.
    Truncate,
    /// A table schema, before the first record that refers to it; the value is the schema as JSON.
    /// Sent to every partition.
    Schema,
    /// Everything before this record is complete; the value is a [`Control`]. Sent to every partition.
    Control,
    /// As `Control`, on an idle source: "at this position, at this time, nothing more".
    Heartbeat,
    /// A writer starts here: a transaction before this that has no end will be written again.
    Start,
    /// Rows of a child table may have changed without a record of their own, through a foreign key of the source; the
    /// value is a [`CascadeRecord`]. Sent to one partition, inside the transaction of the parent's change.
    Cascade,
}

/// Whether a record ends its source transaction (`cutover.transaction`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransactionPart {
    /// More records of the same transaction follow in this partition.
    Open,
    /// The transaction's last record in this partition, or a record of no transaction.
    End,
}

/// The `cutover.*` headers. On Kafka and in the embedded log alike they are ASCII name and value pairs.
#[derive(Debug, Clone, PartialEq)]
pub struct Headers {
    pub kind: Kind,
    /// `cutover.version`, decimal. Of a snapshot row: its chunk's watermark.
    pub version: Version,
    /// `cutover.commit`: the source's commit time, µs since the Unix epoch; of a snapshot row and of
    /// a heartbeat the time at which the source said so.
    pub commit_us: i64,
    /// `cutover.schema`: sixteen hex digits, the id of the row's schema.
    pub schema: Option<u64>,
    /// `cutover.transaction`: `open` or `end`.
    pub transaction: TransactionPart,
}

/// The value of a cascade: which rows may have changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CascadeRecord {
    /// The child table, with its database.
    pub child: String,
    /// The parent's key by the child's columns, as JSON: what a row's key would be if these columns were it.
    pub key: String,
    pub kind: CascadeKind,
}

/// The value of a control record or heartbeat: where its writer resumes (rule 18).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Control {
    /// On the changes topic, the source position up to which everything is in the log; on the
    /// snapshot topic none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<Position>,
    /// The hybrid clock's state at that position.
    pub clock: Version,
    /// The snapshot chunk that is complete with this record: table, generation and chunk number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chunk: Option<ChunkEnd>,
}

/// A snapshot chunk whose rows are all in the log before this point of every partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkEnd {
    /// The source table's name, as the configuration spells it.
    pub table: String,
    /// Which copy of the table this is; `resnapshot` starts a new one.
    pub generation: i64,
    pub chunk: i64,
    pub rows: u64,
}

/// Why a record's headers were refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum HeaderError {
    #[error("the record has format {found}, this binary reads up to {FORMAT}; use the newer binary")]
    NewerFormat { found: u32 },
    #[error("the record has no header `{name}`; only cutover may write to this topic")]
    Missing { name: &'static str },
    #[error("the record has header `{name}` twice; only cutover may write to this topic")]
    Repeated { name: &'static str },
    #[error(
        "the record has a header `{name}` that format {FORMAT} does not know; only cutover may write to this topic"
    )]
    Unknown { name: String },
    #[error("the record's header `{name}` is not {expected}; only cutover may write to this topic")]
    Invalid { name: &'static str, expected: &'static str },
}

const NAME_FORMAT: &str = "cutover.format";
const NAME_KIND: &str = "cutover.kind";
const NAME_VERSION: &str = "cutover.version";
const NAME_COMMIT: &str = "cutover.commit";
const NAME_SCHEMA: &str = "cutover.schema";
const NAME_TRANSACTION: &str = "cutover.transaction";
const NAMES: [&str; 6] = [NAME_FORMAT, NAME_KIND, NAME_VERSION, NAME_COMMIT, NAME_SCHEMA, NAME_TRANSACTION];

impl Kind {
    /// Every kind, in the order of its [`code`](Kind::code).
    pub const ALL: [Kind; 7] =
        [Kind::Row, Kind::Truncate, Kind::Schema, Kind::Control, Kind::Heartbeat, Kind::Start, Kind::Cascade];

    /// The kind's spelling in `cutover.kind`.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Row => "row",
            Kind::Truncate => "truncate",
            Kind::Schema => "schema",
            Kind::Control => "control",
            Kind::Heartbeat => "heartbeat",
            Kind::Start => "start",
            Kind::Cascade => "cascade",
        }
    }

    /// The kind's number in binary formats.
    pub fn code(self) -> u8 {
        match self {
            Kind::Row => 0,
            Kind::Truncate => 1,
            Kind::Schema => 2,
            Kind::Control => 3,
            Kind::Heartbeat => 4,
            Kind::Start => 5,
            Kind::Cascade => 6,
        }
    }

    /// Whether the record says what became of rows.
    pub fn is_change(self) -> bool {
        match self {
            Kind::Row | Kind::Truncate | Kind::Cascade => true,
            Kind::Schema | Kind::Control | Kind::Heartbeat | Kind::Start => false,
        }
    }

    /// Whether the record's value is a [`Control`]: a place where the writer can resume.
    pub fn is_resumable(self) -> bool {
        match self {
            Kind::Control | Kind::Heartbeat => true,
            Kind::Row | Kind::Truncate | Kind::Schema | Kind::Start | Kind::Cascade => false,
        }
    }
}

impl Headers {
    /// The headers as name and value pairs.
    pub fn to_pairs(&self) -> Vec<(&'static str, String)> {
        let mut pairs = vec![
            (NAME_FORMAT, FORMAT.to_string()),
            (NAME_KIND, self.kind.name().to_owned()),
            (NAME_VERSION, self.version.to_string()),
            (NAME_COMMIT, self.commit_us.to_string()),
        ];
        if let Some(schema) = self.schema {
            pairs.push((NAME_SCHEMA, format!("{schema:016x}")));
        }
        let transaction = match self.transaction {
            TransactionPart::Open => "open",
            TransactionPart::End => "end",
        };
        pairs.push((NAME_TRANSACTION, transaction.to_owned()));
        pairs
    }

    /// Reads headers back. Those whose names do not start with `cutover.` belong to others and are ignored.
    ///
    /// # Errors
    /// When the format is newer than this binary's, or anything but exactly what [`to_pairs`](Headers::to_pairs)
    /// writes.
    pub fn from_pairs<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> Result<Self, HeaderError> {
        let mut values: [Option<&[u8]>; NAMES.len()] = [None; NAMES.len()];
        let mut unknown = None;
        for (name, value) in pairs.into_iter().filter(|(name, _)| name.starts_with("cutover.")) {
            match NAMES.iter().position(|known| *known == name) {
                Some(index) if values[index].is_some() => return Err(HeaderError::Repeated { name: NAMES[index] }),
                Some(index) => values[index] = Some(value),
                None => unknown = Some(name),
            }
        }
        let [format, kind, version, commit, schema, transaction] = values;
        // The format decides how the rest is read, so that a newer one is named as such and not as a bad header.
        let format: u32 = integer(NAME_FORMAT, format)?;
        if format > FORMAT {
            return Err(HeaderError::NewerFormat { found: format });
        }
        if format == 0 {
            return Err(HeaderError::Invalid { name: NAME_FORMAT, expected: "1 or more" });
        }
        if let Some(name) = unknown {
            return Err(HeaderError::Unknown { name: name.escape_default().take(100).collect() });
        }
        let kind = kind.ok_or(HeaderError::Missing { name: NAME_KIND })?;
        let kind = Kind::ALL.into_iter().find(|known| known.name().as_bytes() == kind);
        let transaction = match transaction.ok_or(HeaderError::Missing { name: NAME_TRANSACTION })? {
            b"open" => TransactionPart::Open,
            b"end" => TransactionPart::End,
            _ => return Err(HeaderError::Invalid { name: NAME_TRANSACTION, expected: "`open` or `end`" }),
        };
        Ok(Headers {
            kind: kind.ok_or(HeaderError::Invalid { name: NAME_KIND, expected: "a kind of this format" })?,
            version: integer(NAME_VERSION, version)?,
            commit_us: integer(NAME_COMMIT, commit)?,
            schema: schema.map(hex_digits).transpose()?,
            transaction,
        })
    }
}

/// A decimal integer in its one canonical spelling.
fn integer<T: std::str::FromStr + ToString>(name: &'static str, value: Option<&[u8]>) -> Result<T, HeaderError> {
    let text = std::str::from_utf8(value.ok_or(HeaderError::Missing { name })?).unwrap_or_default();
    let number = text.parse().ok().filter(|number: &T| number.to_string() == text);
    number.ok_or(HeaderError::Invalid { name, expected: "a decimal integer" })
}

/// Sixteen lower-case hex digits.
fn hex_digits(value: &[u8]) -> Result<u64, HeaderError> {
    let text = std::str::from_utf8(value).unwrap_or_default();
    let number = u64::from_str_radix(text, 16).ok().filter(|number| format!("{number:016x}") == text);
    number.ok_or(HeaderError::Invalid { name: NAME_SCHEMA, expected: "sixteen hex digits" })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers() -> Headers {
        let (version, commit_us) = (1_700_000_000_000_001, -1);
        Headers { kind: Kind::Row, version, commit_us, schema: Some(0xab), transaction: TransactionPart::Open }
    }

    fn parse(pairs: &[(&str, &str)]) -> Result<Headers, HeaderError> {
        Headers::from_pairs(pairs.iter().map(|(name, value)| (*name, value.as_bytes())))
    }

    /// The pairs of `headers()`, one of them replaced or (with no value) left out.
    fn altered(name: &str, value: Option<&str>) -> Result<Headers, HeaderError> {
        let pairs = headers().to_pairs();
        let mut pairs: Vec<(&str, &str)> = pairs.iter().map(|(name, value)| (*name, value.as_str())).collect();
        pairs.retain(|pair| pair.0 != name);
        pairs.extend(value.map(|value| (name, value)));
        parse(&pairs)
    }

    #[test]
    fn headers_read_back_and_are_spelled_as_the_contract_says() {
        for kind in Kind::ALL {
            for (schema, transaction) in [(None, TransactionPart::End), (Some(u64::MAX), TransactionPart::Open)] {
                let headers = Headers { kind, schema, transaction, ..headers() };
                let pairs = headers.to_pairs();
                let pairs: Vec<(&str, &str)> = pairs.iter().map(|(name, value)| (*name, value.as_str())).collect();
                assert_eq!(parse(&pairs), Ok(headers));
            }
            assert_eq!(Kind::ALL[usize::from(kind.code())], kind);
        }
        let spelled: Vec<String> = headers().to_pairs().iter().map(|(name, value)| format!("{name}={value}")).collect();
        let expected = "cutover.format=1 cutover.kind=row cutover.version=1700000000000001 cutover.commit=-1 \
                        cutover.schema=00000000000000ab cutover.transaction=open";
        assert_eq!(spelled.join(" "), expected);
    }

    #[test]
    fn a_newer_format_is_named_even_when_it_brings_other_headers() {
        assert_eq!(parse(&[("cutover.format", "2"), ("cutover.new", "x")]), Err(HeaderError::NewerFormat { found: 2 }));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for name in NAMES.into_iter().filter(|name| *name != NAME_SCHEMA) {
            assert_eq!(altered(name, None), Err(HeaderError::Missing { name }));
        }
        for name in NAMES {
            for value in ["", "x", "+1", "01", " 1", "1.0", "99999999999999999999", "ROW", "End", "00000000000000AB"] {
                let error = altered(name, Some(value)).expect_err(value);
                assert!(error.to_string().contains(name), "{name}={value}: {error}");
            }
        }
        let twice = [("cutover.format", "1"), ("cutover.format", "1")];
        assert_eq!(parse(&twice), Err(HeaderError::Repeated { name: NAME_FORMAT }));
        assert!(matches!(altered("cutover.verison", Some("1")), Err(HeaderError::Unknown { .. })));
        assert!(altered("traceparent", Some("00-1")).is_ok(), "other programs' headers are none of ours");
    }
}

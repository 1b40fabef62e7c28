//! From an envelope's bytes to the row's cells.
//!
//! Our own encoder writes columns in the schema's order, and that is the fast path. Other writers
//! (Debezium itself) may order them otherwise, add columns that the schema does not know (they are stepped over:
//! what no transform can name is harmless), and wrap the envelope as `{"schema":…,"payload":…}`. A column
//! that is left out is an error and not a null: a null that stands for "unchanged" would overwrite the target's value.

use std::borrow::Cow;

use super::{EnvelopeError, json::Scanner};
use crate::model::{Op, TableSchema};

/// One cell per column of the schema: `None` for null, else the value's text. Numbers are as they were spelled, strings
/// unescaped (borrowed where there was nothing to unescape), booleans `true` or `false`, bytes still base64.
pub type Row<'a> = Vec<Option<Cow<'a, str>>>;

/// The images before and after, and what happened.
pub type Decoded<'a> = (Option<Row<'a>>, Option<Row<'a>>, Op);

/// Decodes an envelope of a row of `schema`.
///
/// # Errors
/// When the bytes are no envelope, lack an image that the operation needs, or an image lacks a column.
pub fn cells<'a>(value: &'a [u8], schema: &TableSchema) -> Result<Decoded<'a>, EnvelopeError> {
    let mut scanner = Scanner::new(value)?;
    let mut fields = Fields::default();
    fields.read(&mut scanner, schema, false)?;
    scanner.end()?;
    fields.finish()
}

/// What has been seen of an envelope. An image's outer option says whether the field was there.
#[derive(Default)]
struct Fields<'a> {
    before: Option<Option<Row<'a>>>,
    after: Option<Option<Row<'a>>>,
    op: Option<Op>,
}

impl<'a> Fields<'a> {
    fn read(&mut self, scanner: &mut Scanner<'a>, schema: &TableSchema, wrapped: bool) -> Result<(), EnvelopeError> {
        scanner.expect(b'{', "an object")?;
        if scanner.accept(b'}') {
            return Ok(());
        }
        loop {
            match scanner.key()?.as_ref() {
                "before" if self.before.is_none() => self.before = Some(image(scanner, schema)?),
                "after" if self.after.is_none() => self.after = Some(image(scanner, schema)?),
                "op" if self.op.is_none() => self.op = Some(op(scanner)?),
                "before" | "after" | "op" => return Err(scanner.malformed("each field once")),
                "payload" if !wrapped => self.read(scanner, schema, true)?,
                _ => scanner.skip()?,
            }
            if !scanner.more()? {
                return Ok(());
            }
        }
    }

    fn finish(self) -> Result<Decoded<'a>, EnvelopeError> {
        let op = self.op.ok_or(EnvelopeError::NoOperation)?;
        let (before, after) = (self.before.flatten(), self.after.flatten());
        let (needs_before, needs_after) = match op {
            // PostgreSQL logs no image before an update that keeps the key, unless it is told to.
            Op::Insert | Op::Read | Op::Update => (false, true),
            Op::Delete => (true, false),
            Op::Truncate => (false, false),
        };
        if needs_before && before.is_none() {
            return Err(EnvelopeError::NoImage { op: op.letter(), image: "before" });
        }
        if needs_after && after.is_none() {
            return Err(EnvelopeError::NoImage { op: op.letter(), image: "after" });
        }
        Ok((before, after, op))
    }
}

fn op(scanner: &mut Scanner<'_>) -> Result<Op, EnvelopeError> {
    match scanner.string()?.as_ref() {
        "c" => Ok(Op::Insert),
        "u" => Ok(Op::Update),
        "d" => Ok(Op::Delete),
        "r" => Ok(Op::Read),
        "t" => Ok(Op::Truncate),
        _ => Err(EnvelopeError::UnknownOperation),
    }
}

fn image<'a>(scanner: &mut Scanner<'a>, schema: &TableSchema) -> Result<Option<Row<'a>>, EnvelopeError> {
    if scanner.peek() == Some(b'n') {
        return scanner.literal("null").map(|_| None);
    }
    let start = scanner.clone();
    if let Some(row) = image_in_order(scanner, schema)? {
        return Ok(Some(row));
    }
    *scanner = start;
    image_by_name(scanner, schema).map(Some)
}

/// The image, or none if its columns are not exactly the schema's in the schema's order.
fn image_in_order<'a>(scanner: &mut Scanner<'a>, schema: &TableSchema) -> Result<Option<Row<'a>>, EnvelopeError> {
    scanner.expect(b'{', "an object or null")?;
    let mut row = Row::with_capacity(schema.columns.len());
    for (index, column) in schema.columns.iter().enumerate() {
        if !scanner.accept_key(&column.name) {
            return Ok(None);
        }
        let Some(cell) = cell(scanner)? else { return Ok(None) };
        row.push(cell);
        if index + 1 < schema.columns.len() && !scanner.accept(b',') {
            return Ok(None);
        }
    }
    Ok(scanner.accept(b'}').then_some(row))
}

/// The image, whatever the order of its columns.
fn image_by_name<'a>(scanner: &mut Scanner<'a>, schema: &TableSchema) -> Result<Row<'a>, EnvelopeError> {
    let columns = schema.columns.len();
    let mut found: Vec<Option<Option<Cow<'a, str>>>> = vec![None; columns];
    let mut expected = 0;
    scanner.expect(b'{', "an object or null")?;
    let mut more = !scanner.accept(b'}');
    while more {
        let name = scanner.key()?;
        // From the expected column on and around: a writer that leaves one out or adds one stays cheap.
        let index = (expected..columns).chain(0..expected).find(|index| schema.columns[*index].name == name);
        match index {
            None => scanner.skip()?,
            Some(index) => {
                expected = index + 1;
                let column = || (schema.table.clone(), name.clone().into_owned());
                let cell = cell(scanner)?.ok_or_else(|| {
                    let (table, column) = column();
                    EnvelopeError::NestedColumn { table, column }
                })?;
                if found[index].replace(cell).is_some() {
                    let (table, column) = column();
                    return Err(EnvelopeError::RepeatedColumn { table, column });
                }
            }
        }
        more = scanner.more()?;
    }
    found
        .into_iter()
        .zip(&schema.columns)
        .map(|(cell, column)| {
            cell.ok_or_else(|| EnvelopeError::MissingColumn {
                table: schema.table.clone(),
                column: column.name.clone(),
            })
        })
        .collect()
}

/// A scalar; none (and nothing consumed) for an object or a list.
#[allow(clippy::option_option)]
fn cell<'a>(scanner: &mut Scanner<'a>) -> Result<Option<Option<Cow<'a, str>>>, EnvelopeError> {
    let cell = match scanner.peek() {
        Some(b'"') => Some(scanner.string()?),
        Some(b'n') => scanner.literal("null").map(|_| None)?,
        Some(b't') => Some(Cow::Borrowed(scanner.literal("true")?)),
        Some(b'f') => Some(Cow::Borrowed(scanner.literal("false")?)),
        Some(b'{' | b'[') => return Ok(None),
        Some(_) => Some(Cow::Borrowed(scanner.number()?)),
        None => return Err(scanner.malformed("a value")),
    };
    Ok(Some(cell))
}

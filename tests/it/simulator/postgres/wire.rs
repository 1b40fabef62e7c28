//! PostgreSQL's wire protocol, version 3, as far as the product's client speaks it, and the pipe that carries it.
//! <https://www.postgresql.org/docs/current/protocol-message-formats.html>
//!
//! The pipe is two unbounded queues of chunks: neither side ever waits for room, so that how long a message is never
//! changes who runs next.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::mpsc::{UnboundedReceiver, UnboundedSender},
};

use super::value::{Param, SqlError, Type, Value};

/// The client's end of a connection.
pub struct ClientWire {
    pub to_server: Option<UnboundedSender<Bytes>>,
    pub from_server: UnboundedReceiver<Bytes>,
    pub rest: Bytes,
}

impl AsyncRead for ClientWire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.rest.is_empty() {
            match self.from_server.poll_recv(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) => return Poll::Ready(Ok(())),
                Poll::Ready(Some(bytes)) => self.rest = bytes,
            }
        }
        let size = self.rest.len().min(buf.remaining());
        buf.put_slice(&self.rest.split_to(size));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ClientWire {
    fn poll_write(self: Pin<&mut Self>, _cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let sent = self.to_server.as_ref().is_some_and(|sender| sender.send(Bytes::copy_from_slice(data)).is_ok());
        Poll::Ready(if sent { Ok(data.len()) } else { Err(io::ErrorKind::BrokenPipe.into()) })
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.to_server = None;
        Poll::Ready(Ok(()))
    }
}

/// A message of the client.
#[derive(Debug)]
pub enum Frontend {
    Query(String),
    Parse { name: String, text: String },
    Describe { name: String },
    Bind { statement: String, parameters: Vec<Option<Bytes>> },
    Execute,
    Close { name: String },
    Sync,
    Flush,
    Terminate,
}

/// The startup message's parameters, once it is whole.
pub fn startup(buffer: &mut BytesMut) -> Option<Vec<(String, String)>> {
    let mut body = take(buffer, 0)?;
    assert_eq!(body.get_i32() >> 16, 3, "only protocol version 3 without TLS is spoken");
    let mut parameters = Vec::new();
    while body.first().is_some_and(|byte| *byte != 0) {
        parameters.push((text(&mut body), text(&mut body)));
    }
    Some(parameters)
}

/// The next message, once it is whole.
pub fn message(buffer: &mut BytesMut) -> Option<Frontend> {
    let tag = *buffer.first()?;
    let mut body = take(buffer, 1)?;
    Some(match tag {
        b'Q' => Frontend::Query(text(&mut body)),
        b'P' => Frontend::Parse { name: text(&mut body), text: text(&mut body) },
        b'D' => {
            assert_eq!(body.get_u8(), b'S', "only statements are described");
            Frontend::Describe { name: text(&mut body) }
        }
        b'B' => bind(body),
        b'E' => Frontend::Execute,
        b'C' => {
            let kind = body.get_u8();
            let name = text(&mut body);
            Frontend::Close { name: if kind == b'S' { name } else { String::new() } }
        }
        b'S' => Frontend::Sync,
        b'H' => Frontend::Flush,
        b'X' => Frontend::Terminate,
        other => panic!("the model does not know messages `{}`", char::from(other)),
    })
}

/// Cuts a message of which the length stands after `skip` bytes.
fn take(buffer: &mut BytesMut, skip: usize) -> Option<Bytes> {
    let length = buffer.get(skip..skip + 4)?;
    let length = u32::from_be_bytes(length.try_into().ok()?) as usize;
    if buffer.len() < skip + length {
        return None;
    }
    let mut whole = buffer.split_to(skip + length).freeze();
    whole.advance(skip + 4);
    Some(whole)
}

fn text(body: &mut Bytes) -> String {
    let end = body.iter().position(|byte| *byte == 0).expect("a text ends with a zero byte");
    let text = body.split_to(end);
    body.advance(1);
    String::from_utf8(text.to_vec()).expect("the client sends UTF-8")
}

fn bind(mut body: Bytes) -> Frontend {
    let _portal = text(&mut body);
    let statement = text(&mut body);
    for _ in 0..body.get_i16() {
        assert_eq!(body.get_i16(), 1, "parameters come in binary");
    }
    let mut parameters = Vec::new();
    for _ in 0..body.get_i16() {
        let length = body.get_i32();
        parameters.push(usize::try_from(length).ok().map(|length| body.split_to(length)));
    }
    Frontend::Bind { statement, parameters }
}

/// A parameter's value.
pub fn decode(kind: Type, bytes: Option<Bytes>) -> Param {
    let Some(mut bytes) = bytes else { return Param::Null };
    match kind {
        Type::Bool => Param::Value(Value::Bool(bytes.get_u8() != 0)),
        Type::Int8 => Param::Value(Value::Int(bytes.get_i64())),
        Type::Int4 => Param::Value(Value::Int(i64::from(bytes.get_i32()))),
        Type::Text => Param::Value(Value::Text(utf8(&bytes))),
        Type::Seconds => Param::Value(Value::Int((bytes.get_f64() * 1e6) as i64)),
        Type::Bools => Param::Bools(
            elements(bytes).into_iter().map(|mut value| value.as_mut().is_some_and(|v| v.get_u8() != 0)).collect(),
        ),
        Type::Int4s => {
            let number = |value: Option<Bytes>| value.expect("the product sends no null in an integer[]").get_i32();
            Param::Ints(elements(bytes).into_iter().map(|value| i64::from(number(value))).collect())
        }
        Type::Int8s => {
            let number = |value: Option<Bytes>| value.expect("the product sends no null in a bigint[]").get_i64();
            Param::Ints(elements(bytes).into_iter().map(number).collect())
        }
        Type::Texts => Param::Texts(elements(bytes).into_iter().map(|value| value.map(|value| utf8(&value))).collect()),
        Type::Void => panic!("no parameter is void"),
    }
}

fn utf8(bytes: &[u8]) -> Arc<str> {
    Arc::from(std::str::from_utf8(bytes).expect("the client sends UTF-8"))
}

fn elements(mut bytes: Bytes) -> Vec<Option<Bytes>> {
    let dimensions = bytes.get_i32();
    let (_nulls, _kind) = (bytes.get_i32(), bytes.get_u32());
    if dimensions == 0 {
        return Vec::new();
    }
    assert_eq!(dimensions, 1, "arrays have one dimension");
    let (length, _lower) = (bytes.get_i32(), bytes.get_i32());
    (0..length)
        .map(|_| {
            let size = bytes.get_i32();
            usize::try_from(size).ok().map(|size| bytes.split_to(size))
        })
        .collect()
}

/// Messages of the server, one after the other.
#[derive(Debug, Default)]
pub struct Backend {
    pub bytes: BytesMut,
}

impl Backend {
    fn put(&mut self, tag: u8, body: impl FnOnce(&mut BytesMut)) {
        self.bytes.put_u8(tag);
        let at = self.bytes.len();
        self.bytes.put_i32(0);
        body(&mut self.bytes);
        let length = u32::try_from(self.bytes.len() - at).expect("no message has 4 GB");
        self.bytes[at..at + 4].copy_from_slice(&length.to_be_bytes());
    }

    pub fn greeting(&mut self, pid: i32) {
        self.put(b'R', |body| body.put_i32(0));
        for (name, value) in [("server_version", "18.0"), ("client_encoding", "UTF8")] {
            self.put(b'S', |body| {
                put_text(body, name);
                put_text(body, value);
            });
        }
        self.put(b'K', |body| {
            body.put_i32(pid);
            body.put_i32(0);
        });
        self.ready(b'I');
    }

    /// `I` idle, `T` in a transaction, `E` in one that has failed.
    pub fn ready(&mut self, state: u8) {
        self.put(b'Z', |body| body.put_u8(state));
    }

    /// `1` parsed, `2` bound, `3` closed, `n` no rows to describe.
    pub fn note(&mut self, tag: u8) {
        self.put(tag, |_| {});
    }

    pub fn error(&mut self, severity: &str, error: &SqlError) {
        self.put(b'E', |body| {
            let fields = [(b'S', severity), (b'V', severity), (b'C', &error.sqlstate), (b'M', &error.message)];
            for (tag, value) in fields.into_iter().chain(error.constraint.as_deref().map(|name| (b'n', name))) {
                body.put_u8(tag);
                put_text(body, value);
            }
            body.put_u8(0);
        });
    }

    pub fn describe(&mut self, parameters: &[Type], columns: Option<&[Type]>) {
        self.put(b't', |body| {
            body.put_i16(count(parameters.len()));
            parameters.iter().for_each(|kind| body.put_u32(kind.oid()));
        });
        let Some(columns) = columns else { return self.note(b'n') };
        self.put(b'T', |body| {
            body.put_i16(count(columns.len()));
            for kind in columns {
                put_text(body, "?column?");
                body.put_i32(0);
                body.put_i16(0);
                body.put_u32(kind.oid());
                body.put_i16(-1);
                body.put_i32(-1);
                body.put_i16(1);
            }
        });
    }

    pub fn row(&mut self, columns: &[Type], values: &[Value]) {
        assert_eq!(columns.len(), values.len(), "a row has the columns that were described");
        self.put(b'D', |body| {
            body.put_i16(count(values.len()));
            for (kind, value) in columns.iter().zip(values) {
                put_value(body, *kind, value);
            }
        });
    }

    pub fn complete(&mut self, tag: &str) {
        self.put(b'C', |body| put_text(body, tag));
    }
}

fn count(length: usize) -> i16 {
    i16::try_from(length).expect("few columns")
}

fn put_text(body: &mut BytesMut, text: &str) {
    body.put_slice(text.as_bytes());
    body.put_u8(0);
}

fn put_value(body: &mut BytesMut, kind: Type, value: &Value) {
    match (kind, value) {
        (_, Value::Null) => body.put_i32(-1),
        (Type::Void, _) => body.put_i32(0),
        (Type::Bool, Value::Bool(value)) => {
            body.put_i32(1);
            body.put_u8(u8::from(*value));
        }
        (Type::Int8, Value::Int(value)) => {
            body.put_i32(8);
            body.put_i64(*value);
        }
        (Type::Int4, Value::Int(value)) => {
            body.put_i32(4);
            body.put_i32(i32::try_from(*value).expect("an integer"));
        }
        (Type::Seconds, Value::Int(value)) => {
            body.put_i32(8);
            body.put_f64(*value as f64 / 1e6);
        }
        (Type::Text, Value::Text(value)) => {
            body.put_i32(i32::try_from(value.len()).expect("no text has 2 GB"));
            body.put_slice(value.as_bytes());
        }
        (Type::Texts, Value::Texts(values)) => put_texts(body, values),
        (kind, value) => panic!("{value:?} is no {kind:?}"),
    }
}

/// An array of one dimension, or of none if it is empty.
fn put_texts(body: &mut BytesMut, values: &[Option<Arc<str>>]) {
    let length = |bytes: usize| i32::try_from(bytes).expect("no array has 2 GB");
    let mut array = BytesMut::new();
    array.put_i32(i32::from(!values.is_empty()));
    array.put_i32(i32::from(values.iter().any(Option::is_none)));
    array.put_u32(Type::Text.oid());
    if !values.is_empty() {
        array.put_i32(length(values.len()));
        array.put_i32(1);
    }
    for value in values {
        match value {
            None => array.put_i32(-1),
            Some(text) => {
                array.put_i32(length(text.len()));
                array.put_slice(text.as_bytes());
            }
        }
    }
    body.put_i32(length(array.len()));
    body.put_slice(&array);
}

//! A walsender's connection: the replication mode that `tokio-postgres` does not have.
//!
//! What enters: the same address and settings as for any session. What leaves: the payloads of the copy that a slot is
//! read with, in order, and the server's errors as everywhere else. Invariants: a payload is handed out whole or not at
//! all, waiting for one may be given up at any moment, and nothing is acknowledged but what the caller says.
//! Deliberately absent: what the payloads mean.
//!
//! <https://www.postgresql.org/docs/current/protocol-replication.html>

use std::{io, sync::Arc, time::Duration};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use postgres_protocol::{
    authentication::{
        md5_hash,
        sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256},
    },
    message::{backend, frontend},
};
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

use super::{
    Address, Options, PgError, Refusal,
    connect::{self, CONNECT_SECONDS_MAX, TLS_WAYS, Wire, timely},
    tls,
};
use crate::model::{Lsn, Problem};

/// Room for what is read at once.
const READ_BYTES: usize = 64 << 10;
/// PostgreSQL builds no message larger than this.
const MESSAGE_BYTES_MAX: usize = 1 << 30;
/// Length and tag of a message.
const HEADER_BYTES: usize = 5;
/// The answer to START_REPLICATION, which no other protocol mode has.
const COPY_BOTH_TAG: u8 = b'W';
/// From PostgreSQL's epoch, the beginning of 2000, to that of Unix time.
const EPOCH_US: i64 = 946_684_800_000_000;

/// A connection in replication mode, for commands.
pub struct Replication {
    wire: Box<dyn Wire>,
    incoming: BytesMut,
}

/// A connection that sends what a slot has.
pub struct WalStream {
    connection: Replication,
}

impl std::fmt::Debug for WalStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WalStream").finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Replication {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Replication").finish_non_exhaustive()
    }
}

/// One message of the server.
struct Message {
    tag: u8,
    /// With its header.
    bytes: Bytes,
}

impl Message {
    fn body(&self) -> Bytes {
        self.bytes.slice(HEADER_BYTES.min(self.bytes.len())..)
    }

    /// As the library reads it; what the server reports is an error.
    fn parsed(self) -> Result<backend::Message, PgError> {
        if self.tag == backend::ERROR_RESPONSE_TAG {
            return Err(reported(&self.body()));
        }
        let message = backend::Message::parse(&mut BytesMut::from(self.bytes)).map_err(broken)?;
        message.ok_or_else(|| PgError::Protocol("the server sent an incomplete message".into()))
    }
}

impl Replication {
    /// Connects, logs in, and pins the settings that decide how values are spelled.
    pub async fn open(target: &Address, options: &Options) -> Result<Self, PgError> {
        let connecting = async {
            let wire = dial(target, options).await?;
            let mut connection = Replication { wire, incoming: BytesMut::with_capacity(READ_BYTES) };
            connection.log_in(target, options).await?;
            // Nothing bounds how long a slot is read.
            let unbounded =
                "SET statement_timeout = 0; SET lock_timeout = 0; SET idle_in_transaction_session_timeout = 0";
            connection.command(&format!("{}; {unbounded}", connect::settings(&options.schemas))).await?;
            Ok(connection)
        };
        timely(connecting).await
    }

    async fn log_in(&mut self, target: &Address, options: &Options) -> Result<(), PgError> {
        let user = target.config.get_user().unwrap_or_default().to_owned();
        let parameters = [
            ("user", user.as_str()),
            ("database", target.database()),
            ("replication", "database"),
            ("client_encoding", "UTF8"),
            ("application_name", &options.application_name),
        ];
        let mut out = BytesMut::new();
        frontend::startup_message(parameters, &mut out).map_err(broken)?;
        self.send(&out).await?;
        loop {
            match self.receive().await?.parsed()? {
                backend::Message::AuthenticationOk => break,
                backend::Message::AuthenticationCleartextPassword => {
                    self.send_password(password(target)?).await?;
                }
                backend::Message::AuthenticationMd5Password(body) => {
                    let hash = md5_hash(user.as_bytes(), password(target)?, body.salt());
                    self.send_password(hash.as_bytes()).await?;
                }
                backend::Message::AuthenticationSasl(_) => self.scram(password(target)?).await?,
                backend::Message::NoticeResponse(_) => {}
                _ => {
                    return Err(PgError::Login(Problem::new(
                        "the server asks for a way of logging in that is not supported",
                        "give the user a password and the method scram-sha-256 in pg_hba.conf",
                    )));
                }
            }
        }
        self.until_ready().await
    }

    async fn send_password(&mut self, password: &[u8]) -> Result<(), PgError> {
        let mut out = BytesMut::new();
        frontend::password_message(password, &mut out).map_err(broken)?;
        self.send(&out).await
    }

    /// SCRAM-SHA-256, up to the server's proof that it knows the password too.
    async fn scram(&mut self, password: &[u8]) -> Result<(), PgError> {
        let mut scram = ScramSha256::new(password, ChannelBinding::unsupported());
        let mut out = BytesMut::new();
        frontend::sasl_initial_response(SCRAM_SHA_256, scram.message(), &mut out).map_err(broken)?;
        self.send(&out).await?;
        loop {
            match self.receive().await?.parsed()? {
                backend::Message::AuthenticationSaslContinue(body) => {
                    scram.update(body.data()).map_err(broken)?;
                    let mut out = BytesMut::new();
                    frontend::sasl_response(scram.message(), &mut out).map_err(broken)?;
                    self.send(&out).await?;
                }
                backend::Message::AuthenticationSaslFinal(body) => return scram.finish(body.data()).map_err(broken),
                _ => return Err(PgError::Protocol("the server left the login".into())),
            }
        }
    }

    /// Runs statements; their rows are dropped.
    async fn command(&mut self, sql: &str) -> Result<(), PgError> {
        let mut out = BytesMut::new();
        frontend::query(sql, &mut out).map_err(broken)?;
        self.send(&out).await?;
        self.until_ready().await
    }

    /// Reads until the server waits for the next command.
    async fn until_ready(&mut self) -> Result<(), PgError> {
        loop {
            // After an error the connection is not used again, so that what comes behind it need not be read.
            if let backend::Message::ReadyForQuery(_) = self.receive().await?.parsed()? {
                return Ok(());
            }
        }
    }

    /// Begins to read a slot with `pgoutput`, at the first transaction that commits at `from` or later.
    pub async fn start(mut self, slot: &str, from: Lsn, plugin_options: &str) -> Result<WalStream, PgError> {
        let command = format!("START_REPLICATION SLOT \"{slot}\" LOGICAL {from} ({plugin_options})");
        let mut out = BytesMut::new();
        frontend::query(&command, &mut out).map_err(broken)?;
        self.send(&out).await?;
        loop {
            let message = timely(self.receive()).await?;
            match message.tag {
                COPY_BOTH_TAG => return Ok(WalStream { connection: self }),
                backend::ERROR_RESPONSE_TAG => return Err(reported(&message.body())),
                _ => {}
            }
        }
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<(), PgError> {
        self.wire.write_all(bytes).await.map_err(gone)?;
        self.wire.flush().await.map_err(gone)
    }

    /// The next message. What has been read of one stays in `incoming` if the wait for the rest is given up.
    async fn receive(&mut self) -> Result<Message, PgError> {
        loop {
            if let Some(message) = self.take()? {
                return Ok(message);
            }
            self.incoming.reserve(READ_BYTES);
            if self.wire.read_buf(&mut self.incoming).await.map_err(gone)? == 0 {
                return Err(PgError::Unreachable("the server closed the connection".into()));
            }
        }
    }

    fn take(&mut self) -> Result<Option<Message>, PgError> {
        let Some((tag, mut length)) = self.incoming.split_first_chunk::<1>().map(|([tag], rest)| (*tag, rest)) else {
            return Ok(None);
        };
        let Ok(length) = length.try_get_u32().map(|length| length as usize) else { return Ok(None) };
        if !(HEADER_BYTES - 1..=MESSAGE_BYTES_MAX).contains(&length) {
            return Err(PgError::Protocol("the server sent a message of an impossible length".into()));
        }
        if self.incoming.len() <= length {
            return Ok(None);
        }
        Ok(Some(Message { tag, bytes: self.incoming.split_to(length + 1).freeze() }))
    }
}

impl WalStream {
    /// The next payload; none when the server has ended the copy. The wait may be given up without losing anything.
    pub async fn next(&mut self) -> Result<Bytes, PgError> {
        loop {
            let message = self.connection.receive().await?;
            match message.tag {
                backend::COPY_DATA_TAG => return Ok(message.body()),
                backend::ERROR_RESPONSE_TAG => return Err(reported(&message.body())),
                backend::COPY_DONE_TAG | backend::COMMAND_COMPLETE_TAG => {
                    return Err(PgError::Unreachable("the server ended the stream".into()));
                }
                _ => {}
            }
        }
    }

    /// Tells the server what has arrived, and what need not be sent again: everything before `durable`, which 0 leaves
    /// open. With `ask` it answers with how far it is.
    pub async fn acknowledge(&mut self, arrived: Lsn, durable: Lsn, now_us: i64, ask: bool) -> Result<(), PgError> {
        let mut body = BytesMut::with_capacity(34);
        body.put_u8(b'r');
        body.put_u64(arrived.0);
        body.put_u64(durable.0);
        body.put_u64(durable.0);
        body.put_i64(now_us.saturating_sub(EPOCH_US));
        body.put_u8(u8::from(ask));
        let mut out = BytesMut::new();
        frontend::CopyData::new(body).map_err(broken)?.write(&mut out);
        self.connection.send(&out).await
    }
}

/// Opens the bytes' way, with TLS where the address asks for it.
async fn dial(target: &Address, options: &Options) -> Result<Box<dyn Wire>, PgError> {
    let at = format!("{}:{}", target.host, target.port);
    let unreachable = |reason: String| PgError::Unreachable(format!("PostgreSQL at {at}: {reason}"));
    if let Some(dial) = &target.dial {
        return dial.dial().await.map_err(|error| unreachable(error.to_string()));
    }
    let connecting = TcpStream::connect((target.host.as_str(), target.port));
    let connected = tokio::time::timeout(Duration::from_secs(CONNECT_SECONDS_MAX), connecting).await;
    let mut stream = connected
        .map_err(|_| unreachable("no connection in time".into()))?
        .map_err(|error| unreachable(error.to_string()))?;
    stream.set_nodelay(true).map_err(|error| unreachable(error.to_string()))?;
    if target.mode == tls::Mode::Disable {
        return Ok(Box::new(stream));
    }
    let mut request = BytesMut::new();
    frontend::ssl_request(&mut request);
    stream.write_all(&request).await.map_err(gone)?;
    if stream.read_u8().await.map_err(gone)? != b'S' {
        return Err(PgError::Login(Problem::new(
            format!("PostgreSQL at {at} has no TLS"),
            "turn it on (ssl = on), or set ?tls=disable",
        )));
    }
    let refused = |error: String| PgError::Login(Problem::new(format!("PostgreSQL at {at}: {error}"), TLS_WAYS));
    let config =
        tls::config(target.mode, options.ca_file.as_deref()).map_err(|text| PgError::Login(Problem::bare(text)))?;
    let name = ServerName::try_from(target.host.clone()).map_err(|error| refused(error.to_string()))?;
    let secured = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
    Ok(Box::new(secured.map_err(|error| refused(error.to_string()))?))
}

fn password(target: &Address) -> Result<&[u8], PgError> {
    let missing = || PgError::Login(Problem::new("the server asks for a password", "write it into the URL"));
    target.config.get_password().ok_or_else(missing)
}

fn gone(error: io::Error) -> PgError {
    PgError::Unreachable(error.to_string())
}

fn broken(error: io::Error) -> PgError {
    PgError::Protocol(error.to_string())
}

/// An ErrorResponse: fields of a letter and a text, without its detail, which may quote values.
fn reported(body: &[u8]) -> PgError {
    let mut report = Refusal::new("", "");
    for field in body.split(|byte| *byte == 0) {
        let Some((letter, text)) = field.split_first() else { break };
        let text = String::from_utf8_lossy(text).into_owned();
        match letter {
            b'C' => report.sqlstate = text,
            b'M' => report.message = text,
            b'H' => report.hint = Some(text),
            _ => {}
        }
    }
    PgError::reported(report)
}

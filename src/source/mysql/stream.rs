//! The connection that the log arrives on: whole events, in order, with their checksums verified.
//!
//! What enters: where to start. What leaves: one [`RawEvent`] after the other, or why there are no more. The invariant:
//! nothing is missing between two events that leave. The client library unpacks compressed transactions and hands out
//! an empty one where that fails; so the sizes of the inner events are added up and must come to what the payload's
//! header declares. Absent on purpose: what events mean.

use std::{panic::AssertUnwindSafe, time::Duration};

use futures::{FutureExt, StreamExt};
use mysql_async::{
    BinlogStream, BinlogStreamRequest, Conn, Sid,
    binlog::{BinlogChecksumAlg, events::Event as CrateEvent},
    prelude::Queryable,
};

use super::binlog::{BinlogEvent, DecodeError, Flavor, Header, decode, verify_checksum};
use super::{halt, lost};
use crate::{
    database::mysql::connect::disposition,
    model::{Disposition, GtidSet},
    source::CaptureError,
};

/// How often an idle source says that it is there.
const HEARTBEAT: Duration = Duration::from_millis(500);
/// How long a source may be silent: it sends twenty heartbeats in this time.
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// A dump may take long to begin: the server reads its files for the first event that was not asked for already.
const FIRST_EVENT_MAX: Duration = Duration::from_secs(60);

const ROTATE: u8 = 4;
const FORMAT_DESCRIPTION: u8 = 15;
const TRANSACTION_PAYLOAD: u8 = 40;
const CHECKSUM_BYTES: usize = 4;

/// Where a dump starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Start {
    /// Everything that is not in this set.
    Gtids(GtidSet),
    /// Everything after this position of each domain.
    MariadbGtids(String),
    File {
        file: String,
        offset: u32,
    },
}

/// One event, its checksum verified and cut off.
#[derive(Debug)]
pub(super) struct RawEvent {
    pub(super) header: Header,
    event: CrateEvent,
    body_bytes: usize,
}

impl RawEvent {
    /// What lies between header and checksum.
    pub(super) fn body(&self) -> &[u8] {
        self.event.data().get(..self.body_bytes).unwrap_or_default()
    }
}

/// A running dump.
pub(super) struct RawEventStream {
    inner: BinlogStream,
    flavor: Flavor,
    /// Bytes of the current compressed transaction that are still to come.
    payload_left: Option<u64>,
    begun: bool,
}

impl std::fmt::Debug for RawEventStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RawEventStream").field("payload_left", &self.payload_left).finish_non_exhaustive()
    }
}

impl RawEventStream {
    /// Turns a connection into a dump.
    pub(super) async fn open(
        mut conn: Conn,
        flavor: Flavor,
        start: &Start,
        server_id: u32,
    ) -> Result<Self, CaptureError> {
        let period = HEARTBEAT.as_nanos();
        let mut settings =
            vec![format!("SET @master_heartbeat_period = {period}, @source_heartbeat_period = {period}")];
        if flavor == Flavor::Mariadb {
            // 4: this replica understands GTIDs, so that the server sends them instead of imitating old events.
            settings.push("SET @mariadb_slave_capability = 4".into());
        }
        if let Start::MariadbGtids(gtids) = start {
            settings.push(format!("SET @slave_connect_state = '{gtids}', @slave_gtid_strict_mode = 1"));
        }
        for sql in settings {
            conn.query_drop(sql).await.map_err(stream_error)?;
        }
        let request = BinlogStreamRequest::new(server_id);
        let inner = match start {
            Start::Gtids(set) => conn.get_binlog_stream(request.with_gtid().with_gtid_set(sids(set)?)).await,
            Start::MariadbGtids(_) => conn.get_binlog_stream(request).await,
            Start::File { file, offset } => {
                let request = request.with_filename(file.as_bytes()).with_pos(u64::from(*offset));
                conn.get_binlog_stream(request).await
            }
        };
        Ok(RawEventStream { inner: inner.map_err(stream_error)?, flavor, payload_left: None, begun: false })
    }

    /// The next event.
    pub(super) async fn next(&mut self) -> Result<RawEvent, CaptureError> {
        let event = self.receive().await?;
        self.begun = true;
        let header = header(&event);
        let inner = !event.footer().get_checksum_enabled();
        let body_bytes = if inner { event.data().len() } else { verified_bytes(&header, &event)? };
        self.count_payload(&header, event.data(), inner)?;
        Ok(RawEvent { header, event, body_bytes })
    }

    async fn receive(&mut self) -> Result<CrateEvent, CaptureError> {
        let limit = if self.begun { SILENCE_MAX } else { FIRST_EVENT_MAX };
        // The library panics on an event that is shorter than its header says: that is corruption, not the end of us.
        let next = AssertUnwindSafe(self.inner.next()).catch_unwind();
        match tokio::time::timeout(limit, next).await {
            Ok(Ok(Some(Ok(event)))) => Ok(event),
            Ok(Ok(Some(Err(error)))) => Err(stream_error(error)),
            Ok(Ok(None)) => Err(CaptureError::Unreachable("it ended the stream of its binlog".into())),
            Ok(Err(_)) => Err(halt(
                "the source sent an event that cannot be read",
                "check its binlog with mysqlbinlog --verify-binlog-checksum, and its version against the supported ones",
            )),
            Err(_) => Err(CaptureError::Unreachable(format!("no heartbeat for {} s", limit.as_secs()))),
        }
    }

    /// Holds the events inside a compressed transaction against the size that it declares.
    fn count_payload(&mut self, header: &Header, data: &[u8], inner: bool) -> Result<(), CaptureError> {
        let incomplete = || {
            halt(
                "a compressed transaction did not unpack to the size that it declares",
                "check the source's binlog with mysqlbinlog, and set binlog_transaction_compression=OFF there",
            )
        };
        if inner {
            let left = self.payload_left.ok_or_else(incomplete)?;
            self.payload_left = Some(left.checked_sub(u64::from(header.event_size)).ok_or_else(incomplete)?);
            return Ok(());
        }
        if self.payload_left.take().is_some_and(|left| left > 0) {
            return Err(incomplete());
        }
        if header.event_type == TRANSACTION_PAYLOAD
            && let BinlogEvent::TransactionPayload(payload) = decode(self.flavor, header, data).map_err(decode_error)?
        {
            self.payload_left = Some(payload.unpacked_bytes());
        }
        Ok(())
    }
}

fn header(event: &CrateEvent) -> Header {
    let header = event.header();
    Header {
        timestamp: header.timestamp(),
        event_type: header.event_type_raw(),
        server_id: header.server_id(),
        event_size: header.event_size(),
        log_pos: header.log_pos(),
        flags: header.flags_raw(),
    }
}

/// Verifies the checksum, which the library reads and ignores. How many bytes of the data are body.
fn verified_bytes(header: &Header, event: &CrateEvent) -> Result<usize, CaptureError> {
    let data = event.data();
    let unknown =
        |_| halt("the source's binlog has checksums of an unknown kind", "set binlog_checksum = CRC32 on the source");
    let algorithm = event.footer().get_checksum_alg().map_err(unknown)?;
    let crc32 = BinlogChecksumAlg::BINLOG_CHECKSUM_ALG_CRC32;
    if algorithm != Some(crc32) {
        // The rotate that begins a dump may come before the description of the format, checksum included.
        let length = match (header.event_type, data.split_last_chunk::<CHECKSUM_BYTES>()) {
            (ROTATE, Some((body, stored))) if verify_checksum(header, body, u32::from_le_bytes(*stored)).is_ok() => {
                body.len()
            }
            _ => data.len(),
        };
        return Ok(length);
    }
    let stored = u32::from_le_bytes(event.checksum().unwrap_or_default());
    if header.event_type == FORMAT_DESCRIPTION {
        // The library has cut off the byte that names the algorithm, which the checksum covers.
        let body = [data, &[crc32 as u8]].concat();
        verify_checksum(header, &body, stored).map_err(decode_error)?;
    } else {
        verify_checksum(header, data, stored).map_err(decode_error)?;
    }
    Ok(data.len())
}

fn sids(set: &GtidSet) -> Result<Vec<Sid<'static>>, CaptureError> {
    let text = set.to_string();
    let parse = |sid: &str| {
        sid.parse::<Sid<'_>>().map_err(|_| {
            halt(
                "the stored GTID set cannot be sent to the source",
                "report it: SELECT position FROM cutover.offsets in the target",
            )
        })
    };
    text.split(',').filter(|sid| !sid.is_empty()).map(parse).collect()
}

/// An error of the decoder.
pub(super) fn decode_error(error: DecodeError) -> CaptureError {
    let problem = error.problem();
    match error {
        // Whole and well understood, but not what can be followed: beyond it only a new copy leads.
        DecodeError::Refused { .. }
        | DecodeError::Incident { .. }
        | DecodeError::PartialImage { .. }
        | DecodeError::Value { .. } => {
            lost(problem.what, format!("{}, and copy every table again with `cutover resnapshot TABLE`", problem.fix))
        }
        DecodeError::Truncated { .. }
        | DecodeError::Malformed { .. }
        | DecodeError::Checksum { .. }
        | DecodeError::UnknownEvent { .. }
        | DecodeError::TooLarge { .. }
        | DecodeError::TableId { .. }
        | DecodeError::ColumnCount { .. } => CaptureError::Halt(problem),
    }
}

/// ER_MASTER_FATAL_ERROR_READING_BINLOG: everything that keeps a server from sending its log.
const CANNOT_SEND: u16 = 1236;
/// Access denied, by user, by database, and for want of a privilege.
const DENIED: [u16; 3] = [1044, 1045, 1227];

/// What an error on the stream means.
pub(super) fn stream_error(error: mysql_async::Error) -> CaptureError {
    match error {
        mysql_async::Error::Server(error) if error.code == CANNOT_SEND => cannot_send(&error.message),
        mysql_async::Error::Server(error) if DENIED.contains(&error.code) => halt(
            format!("the source refuses its binlog: {} (error {})", error.message, error.code),
            "GRANT REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO the source user, and start again",
        ),
        error if disposition(&error) == Disposition::Retry => CaptureError::Unreachable(error.to_string()),
        error => halt(format!("the source refuses its binlog: {error}"), "correct that at the source and start again"),
    }
}

fn cannot_send(message: &str) -> CaptureError {
    let lower = message.to_ascii_lowercase();
    let has = |parts: &[&str]| parts.iter().any(|part| lower.contains(part));
    // The server adds places in its files and a full stop, and we add a remedy.
    let message = message.split("; the first event").next().unwrap_or(message).trim_end_matches('.');
    let reason = format!("the source cannot continue from the captured position: {message}");
    if has(&["same server_uuid", "same server_id", "same server-id"]) {
        let remedy = "another replica uses this worker's server id: stop it, or set [source] server_id to a free one";
        return halt(reason, remedy);
    }
    let remedy = if has(&["could not find", "purged", "not find gtid state", "missing"]) {
        super::COPY_AGAIN
    } else {
        "compare the source with SELECT position FROM cutover.offsets in the target; if the source lost its tail or was \
         replaced, copy every table again with `cutover resnapshot TABLE`"
    };
    lost(reason, remedy)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server_error(code: u16, message: &str) -> mysql_async::Error {
        mysql_async::ServerError { code, message: message.into(), state: "HY000".into() }.into()
    }

    #[test]
    fn a_purged_binlog_halts_and_names_the_repair() {
        let error = stream_error(server_error(1236, "Could not find first log file name in binary log index file"));
        assert_eq!(error.disposition(), Disposition::Halt);
        assert!(error.to_string().contains("cutover resnapshot"));
    }

    #[test]
    fn a_shutdown_is_retried_and_a_missing_privilege_is_not() {
        assert_eq!(stream_error(server_error(1053, "Server shutdown")).disposition(), Disposition::Retry);
        let denied = stream_error(server_error(1227, "Access denied; you need REPLICATION SLAVE"));
        assert_eq!(denied.disposition(), Disposition::Halt);
        assert!(denied.to_string().contains("GRANT"));
    }

    #[test]
    fn gtid_sets_are_sent_by_source_and_tag() {
        let uuid = "3e11fa47-71ca-11e1-9e33-c80aa9429562";
        let set: GtidSet = format!("{uuid}:1-3:7,{uuid}:tag:1").parse().expect("valid");
        let sent: Vec<String> = sids(&set).expect("valid").iter().map(ToString::to_string).collect();
        assert_eq!(sent, [format!("{uuid}:1-3:7"), format!("{uuid}:tag:1")]);
        assert_eq!(sids(&GtidSet::default()).expect("empty"), vec![]);
    }
}

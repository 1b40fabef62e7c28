//! What needs no broker.

use rdkafka::message::{Headers as _, OwnedHeaders, OwnedMessage, Timestamp};

use super::{
    KafkaUrl,
    stamp::{self, Found, Stamp},
};
use crate::log::{Headers, Kind, Record, TransactionPart, record::HeaderError};

fn record() -> Record {
    let headers =
        Headers { kind: Kind::Row, version: 5, commit_us: 6, schema: Some(7), transaction: TransactionPart::End };
    Record { key: "{\"id\":1}".into(), value: "{}".into(), headers }
}

fn message(offset: i64, headers: OwnedHeaders) -> OwnedMessage {
    let (key, value) = (b"{\"id\":1}".to_vec(), b"{}".to_vec());
    let time = Timestamp::CreateTime(0);
    OwnedMessage::new(Some(value), Some(key), "t".into(), time, 0, offset, Some(headers))
}

const STAMP: Stamp = Stamp { epoch: 0xab, writer: u64::MAX, offset: 42 };

#[test]
fn a_record_reads_back_where_its_writer_put_it_and_is_void_elsewhere() {
    let headers = STAMP.headers(&record().headers);
    let spelled: Vec<String> = headers.iter().map(|header| header.key.to_owned()).collect();
    let expected =
        "cutover.format cutover.kind cutover.version cutover.commit cutover.schema cutover.transaction cutover.log";
    assert_eq!(spelled.join(" "), expected);
    assert_eq!(stamp::read(&message(42, headers.clone())), Ok(Found::Record(STAMP, record())));
    for offset in [0, 41, 43, i64::MAX] {
        assert_eq!(stamp::read(&message(offset, headers.clone())), Ok(Found::Void(STAMP)));
    }
    assert_eq!(stamp::read(&message(42, STAMP.claim_headers())), Ok(Found::Claim(STAMP)));
    assert_eq!(stamp::read(&message(41, STAMP.claim_headers())), Ok(Found::Void(STAMP)));
}

#[test]
fn a_record_that_is_not_ours_is_an_error_that_says_so() {
    let error = stamp::read(&message(42, OwnedHeaders::new())).expect_err("no headers");
    assert_eq!(error, HeaderError::Missing { name: "cutover.log" });
    for text in
        ["", "ab ff", "ab ff 42", "00000000000000ab ffffffffffffffff +42", "00000000000000ab ffffffffffffffff 42 1"]
    {
        let headers = OwnedHeaders::new();
        let headers = headers.insert(rdkafka::message::Header { key: "cutover.log", value: Some(text) });
        let error = stamp::read(&message(42, headers)).expect_err(text);
        assert!(matches!(error, HeaderError::Invalid { name: "cutover.log", .. }), "{text}: {error}");
    }
}

#[test]
fn a_url_names_brokers_and_how_certificates_are_checked() {
    let url = KafkaUrl::parse("kafka://a:9093,b.example/?tls=require").expect("valid");
    assert_eq!(url.brokers(), "a:9093,b.example:9092");
    assert_ne!(
        url,
        KafkaUrl::parse("kafka://a:9093,b.example").expect("valid"),
        "certificates are verified by default"
    );
    let local = "kafka://localhost,127.0.0.1:1,[::1]:2";
    assert_eq!(KafkaUrl::parse(local), KafkaUrl::parse(&format!("{local}?tls=disable")));
    for wrong in [
        "kafka://",
        "kafka://a:x",
        "kafka://a,,b",
        "kafka://u:secret@a:9092",
        "kafka://a:9092/topic",
        "kafka://a?tls=no",
        "kafka://a?acks=1",
        "kafka://::1",
    ] {
        let error = KafkaUrl::parse(wrong).expect_err(wrong);
        assert!(!error.contains("secret"), "{error}");
    }
}

//! The servers are what the other tests take them for: these versions, these settings, databases of one's own, and TLS
//! that rustls accepts where a test relies on it.

use mysql_async::prelude::Queryable;
use mysql_async::{Conn, Opts, OptsBuilder, SslOpts};

use crate::support::{Mysql, Postgres, tls_ca};

async fn expect_mysql(server: &Mysql, version: &str, settings: &[(&str, &str)]) {
    let found = server.value("SELECT version()").await.unwrap();
    assert!(found.starts_with(version), "{found} is not {version}");
    let common = [
        ("log_bin", "1"),
        ("binlog_format", "ROW"),
        ("binlog_row_image", "FULL"),
        ("log_bin_trust_function_creators", "1"),
        ("local_infile", "1"),
    ];
    for (name, value) in common.iter().chain(settings) {
        let found = server.value(&format!("SELECT @@global.{name}")).await;
        assert_eq!(found.as_deref(), Some(*value), "{name}");
    }
    let bytes = server.value("SELECT @@max_allowed_packet").await.unwrap();
    assert!(bytes.parse::<u64>().unwrap() >= 64 << 20, "rows over 16 MB must fit");
}

const GTID: [(&str, &str); 2] = [("gtid_mode", "ON"), ("enforce_gtid_consistency", "ON")];

#[tokio::test]
async fn mysql_57_has_gtids_and_no_row_metadata() {
    let server = Mysql::v57().await;
    expect_mysql(&server, "5.7.", &GTID).await;
    assert!(server.query("SHOW VARIABLES LIKE 'binlog_row_metadata'").await.is_empty());
}

#[tokio::test]
async fn mysql_80_has_gtids_and_full_row_metadata() {
    let server = Mysql::v80().await;
    expect_mysql(&server, "8.0.", &GTID).await;
    expect_mysql(&server, "8.0.", &[("binlog_row_metadata", "FULL")]).await;
}

#[tokio::test]
async fn mysql_97_has_gtids_full_row_metadata_and_transaction_compression() {
    let server = Mysql::v97().await;
    expect_mysql(&server, "9.7.", &GTID).await;
    expect_mysql(&server, "9.7.", &[("binlog_row_metadata", "FULL"), ("binlog_transaction_compression", "0")]).await;
}

#[tokio::test]
async fn mariadb_has_full_row_metadata_and_its_own_gtids() {
    let server = Mysql::mariadb().await;
    // Debian 12 has 10.11, later releases have 11.
    let major = server.value("SELECT substring_index(version(), '.', 1)").await.unwrap();
    assert!(major == "11" || server.value("SELECT version()").await.unwrap().starts_with("10.11."));
    expect_mysql(&server, &major, &[("binlog_row_metadata", "FULL"), ("log_bin_compress", "0")]).await;
    server.exec("CREATE TABLE t (id INT PRIMARY KEY)").await;
    let position = server.value("SELECT @@gtid_binlog_pos").await.unwrap();
    assert_eq!(position.split('-').count(), 3, "{position}");
}

#[tokio::test]
async fn mysql_97_and_mariadb_offer_tls_that_rustls_verifies() {
    let _already_installed = rustls::crypto::ring::default_provider().install_default();
    for server in [Mysql::v97().await, Mysql::mariadb().await] {
        let ca = SslOpts::default().with_root_certs(vec![tls_ca().into()]);
        let options = OptsBuilder::from_opts(Opts::from_url(&server.url()).unwrap()).prefer_socket(false).ssl_opts(ca);
        let mut conn = Conn::new(options).await.unwrap();
        let cipher: Option<(String, String)> = conn.query_first("SHOW STATUS LIKE 'Ssl_cipher'").await.unwrap();
        assert!(!cipher.unwrap().1.is_empty());
    }
}

async fn expect_postgres(server: &Postgres, versions: std::ops::RangeInclusive<u32>) {
    let version = server.value("SHOW server_version_num").await.unwrap().parse::<u32>().unwrap() / 10_000;
    assert!(versions.contains(&version), "PostgreSQL {version} is not one of {versions:?}");
    for (name, value) in
        [("wal_level", "logical"), ("server_encoding", "UTF8"), ("ssl", "on"), ("is_superuser", "on"), ("fsync", "on")]
    {
        assert_eq!(server.value(&format!("SHOW {name}")).await.as_deref(), Some(value), "{name}");
    }
}

#[tokio::test]
async fn postgres_15_or_what_the_release_has_instead_is_logical() {
    expect_postgres(&Postgres::v15().await, 15..=17).await;
}

#[tokio::test]
async fn postgres_18_is_logical() {
    expect_postgres(&Postgres::v18().await, 18..=18).await;
}

#[tokio::test]
async fn a_database_is_fresh_and_goes_with_its_handle() {
    let (first, second) = (Mysql::v57().await, Mysql::v57().await);
    assert_ne!(first.database(), second.database());
    first
        .exec("CREATE TABLE t (id INT PRIMARY KEY, b VARBINARY(9)); INSERT INTO t VALUES (1, NULL), (2, X'ff00')")
        .await;
    let rows = [vec![Some("1".to_owned()), None], vec![Some("2".to_owned()), Some("0xff00".to_owned())]];
    assert_eq!(first.query("SELECT * FROM t ORDER BY id").await, rows);
    first.exec("BEGIN; INSERT INTO t VALUES (3, NULL)").await;
    let name = first.database().to_owned();
    drop(first);
    let left = second.query(&format!("SELECT 1 FROM information_schema.schemata WHERE schema_name = '{name}'")).await;
    assert!(left.is_empty());

    let (first, second) = (Postgres::v15().await, Postgres::v15().await);
    first.exec("CREATE TABLE t (id int PRIMARY KEY, b text); INSERT INTO t VALUES (1, NULL)").await;
    assert_eq!(first.query("SELECT * FROM t").await, [vec![Some("1".to_owned()), None]]);
    let name = first.database().to_owned();
    drop(first);
    assert!(second.query(&format!("SELECT 1 FROM pg_database WHERE datname = '{name}'")).await.is_empty());
}

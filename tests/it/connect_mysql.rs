//! Logging in to real servers: TLS as rustls speaks it, authentication plugins, and errors that say what to do.

use cutover::database::mysql::connect::{ConnectError, Connector};
use cutover::model::Disposition;
use cutover::{
    database::mysql::server::{Grants, ServerFacts, current_position, problems},
    model::{Flavor, MariadbGtids},
};
use mysql_async::prelude::Queryable;

use crate::support::{Mysql, tls_ca};

async fn connect(url: &str) -> Result<mysql_async::Conn, ConnectError> {
    Connector::new(url).unwrap().connect().await
}

#[tokio::test]
async fn tls_with_a_verified_certificate_where_the_server_has_what_rustls_speaks() {
    let ca = tls_ca();
    for server in [Mysql::v97().await, Mysql::mariadb().await] {
        let url = format!("{}?tls=verify&ca={}", server.url(), ca.display());
        let mut conn = connect(&url).await.unwrap();
        let cipher: (String, String) =
            conn.query_first("SHOW SESSION STATUS LIKE 'Ssl_cipher'").await.unwrap().unwrap();
        assert!(!cipher.1.is_empty());
        let unknown_ca = connect(&format!("{}?tls=verify", server.url())).await.err().unwrap();
        assert!(matches!(unknown_ca, ConnectError::Tls { .. }) && unknown_ca.disposition() == Disposition::Halt);
        connect(&format!("{}?tls=require", server.url())).await.unwrap();
    }
}

#[tokio::test]
async fn a_server_whose_tls_rustls_refuses_is_named_with_the_way_out() {
    for server in [Mysql::v57().await, Mysql::v80().await] {
        let error = connect(&format!("{}?tls=require", server.url())).await.err().unwrap();
        assert_eq!(error.disposition(), Disposition::Halt, "{error}");
        assert!(error.to_string().contains("tls=disable") && error.to_string().contains("127.0.0.1"), "{error}");
    }
}

#[tokio::test]
async fn passwords_work_by_every_usual_plugin_and_others_are_named() {
    let server = Mysql::v80().await;
    let user = format!("p_{}", server.database());
    for plugin in ["caching_sha2_password", "mysql_native_password"] {
        server.exec(&format!("CREATE USER {user} IDENTIFIED WITH {plugin} BY 'it''s a:secret@/'")).await;
        server.exec(&format!("GRANT ALL ON {}.* TO {user}", server.database())).await;
        connect(&server.url_as(&user, "it's a:secret@/")).await.unwrap();
        let wrong = connect(&server.url_as(&user, "guess")).await.err().unwrap();
        assert!(matches!(&wrong, ConnectError::Denied { code: 1045, .. }), "{wrong}");
        server.exec(&format!("DROP USER {user}")).await;
    }
    server.exec(&format!("CREATE USER {user} IDENTIFIED WITH sha256_password BY 'secret'")).await;
    let error = connect(&server.url_as(&user, "secret")).await.err().unwrap();
    assert!(matches!(&error, ConnectError::AuthPlugin { plugin, .. } if plugin == "sha256_password"), "{error}");
    server.exec(&format!("DROP USER {user}")).await;
}

#[tokio::test]
async fn a_session_is_pinned_whatever_the_server_prefers() {
    for server in [Mysql::v57().await, Mysql::v80().await, Mysql::v97().await, Mysql::mariadb().await] {
        let mut conn = connect(&server.url()).await.unwrap();
        let sql = "SELECT @@time_zone, @@sql_mode, @@character_set_connection, @@autocommit";
        let session: (String, String, String, i64) = conn.query_first(sql).await.unwrap().unwrap();
        assert_eq!(session, ("+00:00".into(), String::new(), "utf8mb4".into(), 1));
    }
}

#[tokio::test]
async fn a_server_says_what_it_is() {
    let servers = [
        (Mysql::v57().await, Flavor::Mysql, 5),
        (Mysql::v80().await, Flavor::Mysql, 8),
        (Mysql::v97().await, Flavor::Mysql, 9),
        (Mysql::mariadb().await, Flavor::Mariadb, 10),
    ];
    for (server, flavor, major) in servers {
        let mut conn = connect(&server.url()).await.unwrap();
        let facts = ServerFacts::load(&mut conn).await.unwrap();
        assert_eq!((facts.flavor, facts.version.0), (flavor, major));
        assert_eq!(problems(&facts), vec![]);
        let position = current_position(&mut conn, &facts).await.unwrap();
        assert!(!position.server.is_empty() && !position.file.is_empty() && position.gtids.is_some());
        assert_eq!(facts.metadata_full, major != 5);
        assert!(facts.now_us > 1_700_000_000_000_000);
        assert!(Grants::load(&mut conn).await.unwrap().everywhere("REPLICATION SLAVE"));
    }
}

/// MariaDB tells the place and the GTIDs apart: a set that is past the place would pass by what lies between.
#[tokio::test(flavor = "multi_thread")]
async fn the_gtids_of_the_logs_end_are_all_before_its_place_while_others_write() {
    const ROUNDS: u32 = 20;
    let server = Mysql::mariadb().await;
    // What is asked for below reads the file up to the place.
    server.exec("CREATE TABLE t (id int AUTO_INCREMENT PRIMARY KEY); FLUSH BINARY LOGS").await;
    let url = server.url();
    let writer = tokio::spawn(async move {
        let mut conn = connect(&url).await.unwrap();
        loop {
            conn.query_drop("INSERT INTO t VALUES ()").await.unwrap();
        }
    });
    let mut conn = connect(&server.url()).await.unwrap();
    let facts = ServerFacts::load(&mut conn).await.unwrap();
    let set = |text: Option<String>| text.unwrap().parse::<MariadbGtids>().unwrap();
    for _ in 0..ROUNDS {
        let before = set(server.value("SELECT @@gtid_binlog_pos").await);
        let end = current_position(&mut conn, &facts).await.unwrap();
        let (place, told) = (format!("BINLOG_GTID_POS('{}', {})", end.file, end.offset), set(end.gtids));
        assert!(told.contains(&before), "{told:?} has all that was committed before, {before:?}");
        let at_place = set(server.value(&format!("SELECT {place}")).await);
        assert!(at_place.contains(&told), "{place} is {at_place:?}, told was {told:?}");
    }
    writer.abort();
}

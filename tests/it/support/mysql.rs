//! A database of a test's own on a real MySQL or MariaDB server.

use mysql_async::prelude::Queryable;
use mysql_async::{Conn, Opts, OptsBuilder, Row, Value};
use tokio::sync::Mutex;

use super::Rows;
use super::server::{self, Server};

/// Statements of one handle share one session, so that `SET` and `BEGIN` hold until the next call.
pub struct Mysql {
    admin_url: &'static str,
    database: String,
    session_id: u32,
    session: Mutex<Conn>,
}

#[allow(dead_code, reason = "the tests of capture and snapshot are the users of some")]
impl Mysql {
    pub async fn v57() -> Self {
        Self::on(Server::Mysql57).await
    }

    pub async fn v80() -> Self {
        Self::on(Server::Mysql80).await
    }

    pub async fn v97() -> Self {
        Self::on(Server::Mysql97).await
    }

    pub async fn mariadb() -> Self {
        Self::on(Server::Mariadb).await
    }

    async fn on(server: Server) -> Self {
        Self::at(server.url(sweep).await).await
    }

    /// On the server of this administrator's URL.
    pub async fn at(admin_url: &'static str) -> Self {
        let database = server::fresh_database();
        let mut conn = connect(admin_url).await;
        conn.query_drop(format!("DROP DATABASE IF EXISTS {database}")).await.unwrap();
        conn.query_drop(format!("CREATE DATABASE {database} CHARACTER SET utf8mb4")).await.unwrap();
        conn.query_drop(format!("USE {database}")).await.unwrap();
        Self { admin_url, database, session_id: conn.id(), session: Mutex::new(conn) }
    }

    pub fn database(&self) -> &str {
        &self.database
    }

    /// As the administrator, who may do everything.
    pub fn url(&self) -> String {
        server::url_with(self.admin_url, None, &self.database)
    }

    pub fn url_as(&self, user: &str, password: &str) -> String {
        server::url_with(self.admin_url, Some((user, password)), &self.database)
    }

    /// A user of this test's own, with these grants (`SELECT ON db.*`); its name is the database's, and it goes with
    /// it. Granting again adds to what it has.
    pub async fn user(&self, password: &str, grants: &[&str]) -> String {
        let user = &self.database;
        self.exec(&format!("CREATE USER IF NOT EXISTS {user} IDENTIFIED BY '{password}'")).await;
        for grant in grants {
            self.exec(&format!("GRANT {grant} TO {user}")).await;
        }
        user.clone()
    }

    /// One more session, for writers that run beside each other.
    pub async fn connect(&self) -> Conn {
        connect(&self.url()).await
    }

    /// A new session in place of one that was lost with its server.
    pub async fn reconnect(&mut self) {
        let conn = self.connect().await;
        self.session_id = conn.id();
        self.session = Mutex::new(conn);
    }

    /// Runs statements separated by `;`.
    pub async fn exec(&self, sql: &str) {
        self.try_exec(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    }

    pub async fn try_exec(&self, sql: &str) -> Result<(), mysql_async::Error> {
        self.session.lock().await.query_drop(sql).await
    }

    pub async fn query(&self, sql: &str) -> Rows {
        let rows: Vec<Row> =
            self.session.lock().await.query(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
        rows.into_iter().map(|row| row.unwrap().into_iter().map(text).collect()).collect()
    }

    /// The first column of the only row.
    pub async fn value(&self, sql: &str) -> Option<String> {
        let rows = self.query(sql).await;
        assert_eq!(rows.len(), 1, "{sql}");
        rows[0][0].clone()
    }
}

impl Drop for Mysql {
    fn drop(&mut self) {
        let (url, session, database) = (self.admin_url, self.session_id, self.database.clone());
        server::clean_up(async move {
            let mut conn = connect(url).await;
            // A test that failed inside a transaction still holds its tables.
            let _already_gone = conn.query_drop(format!("KILL {session}")).await;
            let _none = conn.query_drop(format!("DROP USER IF EXISTS {database}")).await;
            // What another session of the test still locks, the sweep of a later run gets.
            let _kept = conn.query_drop(format!("SET lock_wait_timeout = 5; DROP DATABASE IF EXISTS {database}")).await;
            let _closed = conn.disconnect().await;
        });
    }
}

async fn connect(url: &str) -> Conn {
    let options = OptsBuilder::from_opts(Opts::from_url(url).unwrap()).prefer_socket(false);
    Conn::new(options).await.unwrap()
}

async fn sweep(url: &str) {
    let mut conn = connect(url).await;
    let databases: Vec<String> = conn.query("SHOW DATABASES").await.unwrap();
    for database in databases.iter().filter(|database| server::is_left_behind(database)) {
        conn.query_drop(format!("DROP DATABASE IF EXISTS {database}")).await.unwrap();
    }
    let users: Vec<String> = conn.query("SELECT user FROM mysql.user").await.unwrap();
    for user in users.iter().filter(|user| server::is_left_behind(user)) {
        conn.query_drop(format!("DROP USER IF EXISTS {user}")).await.unwrap();
    }
    conn.disconnect().await.unwrap();
}

/// Text as it came; bytes that are not UTF-8 as hexadecimal.
fn text(value: Value) -> Option<String> {
    match value {
        Value::NULL => None,
        Value::Bytes(bytes) => Some(String::from_utf8(bytes).unwrap_or_else(|error| {
            error.into_bytes().iter().fold("0x".to_owned(), |hex, byte| format!("{hex}{byte:02x}"))
        })),
        // The text protocol has no other values.
        other => panic!("unexpected value {other:?}"),
    }
}

//! A database of a test's own on a real PostgreSQL server.

use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

use super::Rows;
use super::server::{self, Server};

/// Statements of one handle share one session.
pub struct Postgres {
    admin_url: &'static str,
    database: String,
    session: Client,
}

#[allow(dead_code, reason = "the tests of apply and control are the users of some")]
impl Postgres {
    pub async fn v15() -> Self {
        Self::on(Server::Pg15).await
    }

    pub async fn v18() -> Self {
        Self::on(Server::Pg18).await
    }

    async fn on(server: Server) -> Self {
        Self::at(server.url(sweep).await).await
    }

    /// On the server of this administrator's URL.
    pub async fn at(admin_url: &'static str) -> Self {
        let database = server::fresh_database();
        let admin = connect(admin_url).await;
        admin.simple_query(&format!("DROP DATABASE IF EXISTS {database} WITH (FORCE)")).await.unwrap();
        admin.simple_query(&format!("CREATE DATABASE {database} TEMPLATE template0")).await.unwrap();
        let session = connect(&server::url_with(admin_url, None, &database)).await;
        Self { admin_url, database, session }
    }

    pub fn database(&self) -> &str {
        &self.database
    }

    /// As the administrator, who is a superuser.
    pub fn url(&self) -> String {
        server::url_with(self.admin_url, None, &self.database)
    }

    pub fn url_as(&self, user: &str, password: &str) -> String {
        server::url_with(self.admin_url, Some((user, password)), &self.database)
    }

    /// A role of this test's own that may log in and nothing else; its name is the database's, and it goes with it.
    pub async fn role(&self, password: &str) -> String {
        self.exec(&format!("CREATE ROLE {} LOGIN PASSWORD '{password}'", self.database)).await;
        self.database.clone()
    }

    /// One more session.
    pub async fn connect(&self) -> Client {
        connect(&self.url()).await
    }

    /// A new session in place of one that was lost with its server.
    pub async fn reconnect(&mut self) {
        self.session = self.connect().await;
    }

    /// Runs statements separated by `;`.
    pub async fn exec(&self, sql: &str) {
        self.try_exec(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }

    pub async fn try_exec(&self, sql: &str) -> Result<(), tokio_postgres::Error> {
        self.session.batch_execute(sql).await
    }

    pub async fn query(&self, sql: &str) -> Rows {
        let messages = self.session.simple_query(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        let rows = messages.iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        });
        rows.map(|row| (0..row.len()).map(|column| row.get(column).map(str::to_owned)).collect()).collect()
    }

    /// The first column of the only row.
    pub async fn value(&self, sql: &str) -> Option<String> {
        let rows = self.query(sql).await;
        assert_eq!(rows.len(), 1, "{sql}");
        rows[0][0].clone()
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let (url, database) = (self.admin_url, self.database.clone());
        server::clean_up(async move {
            let admin = connect(url).await;
            let _kept = admin.simple_query(&format!("DROP DATABASE IF EXISTS {database} WITH (FORCE)")).await;
            let _none = admin.simple_query(&format!("DROP ROLE IF EXISTS {database}")).await;
        });
    }
}

async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    // Ends when the client is dropped; what it has to say, the client's next call says too.
    tokio::spawn(connection);
    client
}

async fn sweep(url: &str) {
    let admin = connect(url).await;
    let rows = admin.query("SELECT datname::text FROM pg_database", &[]).await.unwrap();
    for database in rows.iter().map(|row| row.get::<_, String>(0)).filter(|name| server::is_left_behind(name)) {
        admin.simple_query(&format!("DROP DATABASE IF EXISTS {database} WITH (FORCE)")).await.unwrap();
    }
    let rows = admin.query("SELECT rolname::text FROM pg_roles", &[]).await.unwrap();
    for role in rows.iter().map(|row| row.get::<_, String>(0)).filter(|name| server::is_left_behind(name)) {
        admin.simple_query(&format!("DROP ROLE IF EXISTS {role}")).await.unwrap();
    }
}

//! Many small tables: what each of them costs besides its rows.

use std::time::Duration;

use crate::support::{Mysql, Postgres, Workspace};

const TABLES: usize = 40;
const SYNCED: Duration = Duration::from_secs(60);

/// Sessions are counted because they are what can be counted: time depends on the machine.
#[tokio::test(flavor = "multi_thread")]
async fn many_small_tables_share_the_connections_that_read_them() {
    let (source, target) = (Mysql::v80().await, Postgres::v15().await);
    let names: Vec<String> = (0..TABLES).map(|number| format!("t{number:02}")).collect();
    for name in &names {
        source.exec(&format!("CREATE TABLE {name} (id int PRIMARY KEY); INSERT INTO {name} VALUES (1), (2)")).await;
        target.exec(&format!("CREATE TABLE {name} (id integer PRIMARY KEY)")).await;
    }
    let grants = [format!("SELECT ON {}.*", source.database()), "REPLICATION SLAVE, REPLICATION CLIENT ON *.*".into()];
    let user = source.user("secret", &grants.each_ref().map(String::as_str)).await;
    let tables: Vec<&str> = names.iter().map(String::as_str).collect();
    let work = Workspace::new(source.database(), &source.url_as(&user, "secret"), &target.url(), &tables);
    let mut worker = work.start(&["--until-synced"]);
    let ended = worker.wait_exit(SYNCED).await;
    assert!(ended.success(), "{}", worker.stderr());
    for name in &names {
        assert_eq!(target.value(&format!("SELECT count(*) FROM {name}")).await.as_deref(), Some("2"), "{name}");
    }
    let sessions = format!("SELECT SUM(TOTAL_CONNECTIONS) FROM performance_schema.users WHERE USER = '{user}'");
    let sessions: usize = source.value(&sessions).await.unwrap().parse().unwrap();
    // One for its schema, and two to ask where the log ends, which others share; a start has some of its own.
    assert!(sessions <= 3 * TABLES + 15, "{sessions} sessions for {TABLES} tables");
}

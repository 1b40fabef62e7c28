//! `cutover check` on real servers: everything that is in the way is named, with its fix.

use std::path::Path;

use cutover::cli::check::{self, Report, Weight};
use cutover::config::Config;

use crate::support::{Mysql, Postgres, Workspace};

/// A pipeline's folder with these transforms; the rest of the configuration is `more`.
struct Pipeline {
    folder: tempfile::TempDir,
    source: String,
    target: String,
}

impl Pipeline {
    fn new(source: String, target: String) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("transforms")).unwrap();
        Pipeline { folder, source, target }
    }

    fn transform(&self, table: &str, sql: &str) -> &Self {
        std::fs::write(self.folder.path().join("transforms").join(format!("{table}.sql")), sql).unwrap();
        self
    }

    /// `source` and `target` are more keys of these sections.
    async fn check_with(&self, source: &str, target: &str) -> Report {
        let text = format!(
            "name = 'check'\n[source]\nurl = '{}'\n{source}\n[target]\nurl = '{}'\n{target}\n[http]\nlisten = '127.0.0.1:0'\n",
            self.source, self.target
        );
        let folder = Path::to_owned(self.folder.path());
        let config = Config::parse(&text, folder, &|_| None).unwrap_or_else(|mistakes| panic!("{mistakes:?}"));
        check::run(&config).await
    }

    async fn check(&self) -> Report {
        self.check_with("", "").await
    }
}

/// One finding of this weight says all of these words, in what is wrong or in the fix.
#[track_caller]
fn assert_finds(report: &Report, weight: Weight, words: &[&str]) {
    let says = |text: &str| words.iter().all(|word| text.contains(word));
    let found = report.findings.iter().any(|finding| {
        finding.weight == weight
            && says(&format!("{}: {} -> {}", finding.part, finding.problem.what, finding.problem.fix))
    });
    assert!(found, "nothing says {words:?} in\n{report}");
}

#[track_caller]
fn assert_nothing_blocks(report: &Report) {
    assert!(!report.blocks(), "{report}");
}

#[tokio::test]
async fn a_pipeline_that_can_run_is_ready_on_every_server() {
    for source in [Mysql::v57().await, Mysql::v80().await, Mysql::v97().await, Mysql::mariadb().await] {
        source.exec("CREATE TABLE t (id int PRIMARY KEY, b varchar(10))").await;
        let target = Postgres::v15().await;
        target.exec("CREATE TABLE t (id integer PRIMARY KEY, b text)").await;
        let report = Pipeline::new(source.url(), target.url()).check().await;
        assert_eq!((report.findings.len(), report.tables), (0, 1), "{report}");
    }
}

#[tokio::test]
async fn connections_that_fail_are_named_on_both_sides_at_once() {
    let (source, target) = (Mysql::v57().await, Postgres::v15().await);
    let report = Pipeline::new(source.url_as("nobody", "s3cret"), target.url_as("nobody", "s3cret")).check().await;
    assert_finds(&report, Weight::Blocks, &["source: ", "refuses the login", "correct user, password"]);
    assert_finds(&report, Weight::Blocks, &["target: ", "nobody", "correct user, password"]);
    assert!(!report.to_string().contains("s3cret"));

    let closed = "postgresql://u@127.0.0.1:1/x".to_owned();
    let report = Pipeline::new("mysql://u@127.0.0.1:1/x".into(), closed).check().await;
    assert_finds(&report, Weight::Blocks, &["source: ", "127.0.0.1:1", "start the server"]);
    assert_finds(&report, Weight::Blocks, &["target: ", "127.0.0.1:1", "start the server"]);
}

#[tokio::test]
async fn a_server_whose_tls_rustls_does_not_speak_is_named() {
    let (source, target) = (Mysql::v80().await, Postgres::v15().await);
    let report = Pipeline::new(format!("{}?tls=require", source.url()), target.url()).check().await;
    assert_finds(&report, Weight::Blocks, &["source: ", "TLS", "tls=disable"]);
}

#[tokio::test]
async fn missing_grants_are_named_with_the_statement_that_gives_them() {
    for source in [Mysql::v57().await, Mysql::v97().await, Mysql::mariadb().await] {
        let target = Postgres::v15().await;
        let user = format!("u{}", source.database().trim_start_matches("it_"));
        source.exec(&format!("CREATE TABLE t (id int PRIMARY KEY); CREATE USER {user} IDENTIFIED BY 'secret'")).await;
        source.exec(&format!("GRANT INSERT ON {}.* TO {user}", source.database())).await;
        target.exec("CREATE TABLE t (id integer PRIMARY KEY)").await;
        let report = Pipeline::new(source.url_as(&user, "secret"), target.url()).check().await;
        assert_finds(&report, Weight::Blocks, &["no REPLICATION SLAVE", "GRANT REPLICATION SLAVE"]);
        assert_finds(&report, Weight::Blocks, &["no REPLICATION CLIENT"]);

        source.exec(&format!("GRANT REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO {user}")).await;
        let report = Pipeline::new(source.url_as(&user, "secret"), target.url()).check().await;
        assert_finds(&report, Weight::Blocks, &["no SELECT on t", "GRANT SELECT ON"]);

        source.exec(&format!("GRANT SELECT ON {}.* TO {user}", source.database())).await;
        let report = Pipeline::new(source.url_as(&user, "secret"), target.url()).check().await;
        source.exec(&format!("DROP USER {user}")).await;
        assert_nothing_blocks(&report);
    }
}

#[tokio::test]
async fn tables_that_cannot_be_followed_are_named() {
    let (source, target) = (Mysql::v57().await, Postgres::v15().await);
    source.exec("CREATE TABLE nokey (a int); CREATE TABLE folding (a varchar(9) PRIMARY KEY)").await;
    target.exec("CREATE TABLE nokey (a integer); CREATE TABLE folding (a text PRIMARY KEY)").await;
    let report =
        Pipeline::new(source.url(), target.url()).check_with("tables = ['nokey', 'folding', 'gone']", "").await;
    assert_finds(&report, Weight::Blocks, &["`nokey`", "no primary key", "add one"]);
    assert_finds(&report, Weight::Blocks, &["no table `gone`", "[source] tables"]);
    assert_finds(&report, Weight::Warns, &["`folding`", "'a' and 'A'"]);
}

#[tokio::test]
async fn a_cascade_that_the_binlog_does_not_show_is_followed_and_what_would_get_in_its_way_is_told() {
    let (source, target) = (Mysql::v57().await, Postgres::v15().await);
    source
        .exec(
            "CREATE TABLE p (id int PRIMARY KEY); CREATE TABLE c (id int PRIMARY KEY, p int, \
             CONSTRAINT fk_p FOREIGN KEY (p) REFERENCES p (id) ON DELETE CASCADE ON UPDATE CASCADE)",
        )
        .await;
    target.exec("CREATE TABLE p (id integer PRIMARY KEY); CREATE TABLE c (id integer PRIMARY KEY, p integer)").await;
    let pipeline = Pipeline::new(source.url(), target.url());
    assert_eq!(pipeline.check().await.findings.len(), 0);
    assert_finds(
        &pipeline.check_with("cascades = 'none'", "").await,
        Weight::Warns,
        &["2 rules", "`fk_p`", "ON DELETE CASCADE", "read again"],
    );
    let child = "cascades = 'refetch'\ntables = ['c']";
    assert_finds(&pipeline.check_with(child, "").await, Weight::Warns, &["`fk_p`", "not captured", "SELECT"]);

    // A key that is computed, and one that does not show the parent.
    pipeline.transform("c", "SELECT id + 1 AS id, p FROM c");
    assert_finds(&pipeline.check().await, Weight::Blocks, &["`c`", "cannot be told", "column by column"]);
    pipeline.transform("c", "SELECT id, p + 0 AS p FROM c");
    assert_finds(&pipeline.check().await, Weight::Warns, &["`c`", "every row is read again"]);
    pipeline.transform("c", "SELECT id, p FROM c");

    // A rule at the target, and a user there whose foreign keys act: a key that changes comes there as a delete.
    let user = format!("u{}", target.database().trim_start_matches("it_"));
    target
        .exec(&format!(
            "ALTER TABLE c ADD FOREIGN KEY (p) REFERENCES p (id) ON DELETE CASCADE; CREATE ROLE {user} LOGIN PASSWORD 'secret'; \
             ALTER TABLE p OWNER TO {user}; ALTER TABLE c OWNER TO {user}; GRANT CREATE ON DATABASE {} TO {user}",
            target.database()
        ))
        .await;
    assert_nothing_blocks(&pipeline.check().await);
    let acting = Pipeline::new(source.url(), target.url_as(&user, "secret"));
    assert_finds(&acting.check().await, Weight::Blocks, &["`fk_p`", "only got another key", "ON DELETE"]);
    source
        .exec(
            "ALTER TABLE c DROP FOREIGN KEY fk_p; \
             ALTER TABLE c ADD CONSTRAINT fk_p FOREIGN KEY (p) REFERENCES p (id) ON DELETE CASCADE",
        )
        .await;
    let report = acting.check().await;
    target.exec(&format!("REASSIGN OWNED BY {user} TO CURRENT_USER; DROP OWNED BY {user}; DROP ROLE {user}")).await;
    assert_nothing_blocks(&report);
    assert_finds(&report, Weight::Warns, &["foreign keys", "waits", "after_copy"]);
}

#[tokio::test]
async fn cascades_are_one_finding_however_many_they_are() {
    let (source, target) = (Mysql::v57().await, Postgres::v15().await);
    source.exec("CREATE TABLE p (id int PRIMARY KEY)").await;
    target.exec("CREATE TABLE p (id integer PRIMARY KEY)").await;
    for child in ["a", "b", "c"] {
        let keys =
            format!("CONSTRAINT fk_{child} FOREIGN KEY (p) REFERENCES p (id) ON DELETE SET NULL ON UPDATE CASCADE");
        source.exec(&format!("CREATE TABLE {child} (id int PRIMARY KEY, p int, {keys})")).await;
        target.exec(&format!("CREATE TABLE {child} (id integer PRIMARY KEY, p integer)")).await;
    }
    let pipeline = Pipeline::new(source.url(), target.url());
    assert_eq!(pipeline.check().await.findings.len(), 0);
    let report = pipeline.check_with("cascades = 'none'", "").await;
    assert_eq!(report.findings.len(), 1, "{report}");
    let all = ["6 rules", "`fk_a`", "`fk_b`", "`fk_c`", "ON DELETE SET NULL", "ON UPDATE CASCADE", "read again"];
    assert_finds(&report, Weight::Warns, &all);
}

#[tokio::test]
async fn a_table_that_is_refused_makes_no_errors_of_others() {
    let (source, target) = (Mysql::v57().await, Postgres::v15().await);
    source
        .exec(
            "CREATE TABLE nokey (a int, b int); CREATE TABLE bare (a int); CREATE TABLE good (id int PRIMARY KEY); \
             CREATE TABLE p (id int PRIMARY KEY)",
        )
        .await;
    target
        .exec("CREATE TABLE nokey (a integer PRIMARY KEY, b integer); CREATE TABLE good (id integer PRIMARY KEY)")
        .await;
    target.exec("CREATE TABLE p (id integer PRIMARY KEY)").await;
    let pipeline = Pipeline::new(source.url(), target.url());
    pipeline.transform("nokey", "SELECT a, b FROM nokey");
    let report = pipeline.check().await;
    assert_eq!(report.findings.len(), 2, "{report}");
    assert_finds(&report, Weight::Blocks, &["`bare`", "no primary key"]);
    assert_finds(&report, Weight::Blocks, &["`nokey`", "no primary key"]);

    // A transform that is wrong says nothing of the tables that have none.
    let pipeline = Pipeline::new(source.url(), target.url());
    pipeline.transform("p", "SELECT idd AS id FROM p");
    let report = pipeline.check_with("tables = ['good', 'p']", "").await;
    assert_eq!(report.findings.len(), 1, "{report}");
    assert_finds(&report, Weight::Blocks, &["p.sql:1:8", "idd"]);
}

#[tokio::test]
async fn a_second_pipeline_is_checked_with_an_address_of_its_own() {
    let (source, target) = (Mysql::v57().await, Postgres::v15().await);
    source.exec("CREATE TABLE t (id int PRIMARY KEY)").await;
    target.exec("CREATE TABLE t (id integer PRIMARY KEY)").await;
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let work = Workspace::new("second", &source.url(), &target.url(), &["t"]);
    work.configure_also(&format!("[http]\nlisten = '{}'\n", taken.local_addr().unwrap()));
    let refused = work.run(&["check"]).await;
    let said = String::from_utf8_lossy(&refused.stdout).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("cannot listen on") && said.contains("--listen for `check` and `run`"), "{said}");
    let checked = work.run(&["check", "--listen", "127.0.0.1:0"]).await;
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
}

#[tokio::test]
async fn the_server_that_logs_cascades_needs_nothing_done() {
    let (source, target) = (Mysql::v97().await, Postgres::v18().await);
    source
        .exec(
            "CREATE TABLE p (id int PRIMARY KEY); CREATE TABLE c (id int PRIMARY KEY, p int, \
             FOREIGN KEY (p) REFERENCES p (id) ON DELETE SET NULL)",
        )
        .await;
    target.exec("CREATE TABLE p (id integer PRIMARY KEY); CREATE TABLE c (id integer PRIMARY KEY, p integer)").await;
    assert_nothing_blocks(&Pipeline::new(source.url(), target.url()).check().await);
}

#[tokio::test]
async fn transforms_are_judged_with_file_line_and_fix() {
    let (source, target) = (Mysql::v57().await, Postgres::v15().await);
    source.exec("CREATE TABLE a (id int PRIMARY KEY, n varchar(9)); CREATE TABLE b (id int PRIMARY KEY)").await;
    target.exec("CREATE TABLE a (id integer PRIMARY KEY, n integer)").await;
    let pipeline = Pipeline::new(source.url(), target.url());
    pipeline.transform("a", "SELECT id,\n  nn AS n\nFROM a");
    assert_finds(&pipeline.check().await, Weight::Blocks, &["transforms: ", "a.sql:2:3: ", "nn"]);
    pipeline.transform("a", "SELECT id, n FROM a");
    assert_finds(&pipeline.check().await, Weight::Blocks, &["transforms: ", "a.sql", "integer"]);
    pipeline.transform("a", "SELECT id, n::integer AS n, 1 AS surplus FROM a");
    assert_finds(&pipeline.check().await, Weight::Blocks, &["transforms: ", "a.sql", "surplus"]);
    pipeline.transform("a", "SELECT id, n::integer AS n FROM a");
    assert_finds(&pipeline.check().await, Weight::Blocks, &["transforms: ", "no table public.b"]);
    pipeline.transform("c", "SELECT id FROM b");
    assert_finds(&pipeline.check().await, Weight::Blocks, &["c.sql", "no table public.c"]);
    target.exec("CREATE TABLE c (id integer PRIMARY KEY)").await;
    assert_nothing_blocks(&pipeline.check().await);
}

#[tokio::test]
async fn what_the_target_lacks_is_named() {
    let (source, target) = (Mysql::v57().await, Postgres::v15().await);
    source.exec("CREATE TABLE t (id int PRIMARY KEY)").await;
    let user = format!("u{}", target.database().trim_start_matches("it_"));
    target
        .exec(&format!(
            "CREATE TABLE t (id integer PRIMARY KEY); CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'; \
             CREATE TRIGGER audit AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION f(); \
             CREATE ROLE {user} LOGIN PASSWORD 'secret'"
        ))
        .await;
    let report =
        Pipeline::new(source.url(), target.url_as(&user, "secret")).check_with("", "after_copy = 'missing.sql'").await;
    target.exec(&format!("DROP OWNED BY {user}; DROP ROLE {user}")).await;
    assert_finds(&report, Weight::Blocks, &["no CREATE on the database", "GRANT CREATE ON DATABASE"]);
    assert_finds(&report, Weight::Blocks, &["no SELECT, INSERT, UPDATE, DELETE on public.t", "GRANT"]);
    assert_finds(&report, Weight::Blocks, &["no column cutover_version", "ALTER TABLE"]);
    assert_finds(&report, Weight::Blocks, &["missing.sql", "relative to the configuration file"]);
    assert_finds(&report, Weight::Warns, &["trigger `audit`", "DISABLE TRIGGER"]);
}

//! `cutover init`: from a live schema to files that move it.
//!
//! What enters: two URLs and, where not all are meant, table names. What leaves: `cutover.toml`, one transform per
//! table, `schema.sql` and `schema_after.sql`, which run as they are, in PostgreSQL's SQL or in MySQL's. The source is
//! only read, the target not even connected to. Nothing that exists is overwritten, and no password is written down.
//! Absent on purpose: views, triggers and routines, and of MySQL CHECK constraints, which are its own SQL.

mod after;
mod config_file;
mod defaults;
mod dynamodb;
mod for_mysql;
mod names;
mod plan;
mod postgres;
mod schema;
mod transforms;
mod zero_dates;

use std::{
    fmt,
    fs::{self, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
};

use super::eligible::obstacle;
use crate::{
    database::{
        dynamodb::DynamoError,
        mysql::{
            catalog::{CatalogError, is_mariadb, load_tables},
            connect::{ConnectError, Connector, QueryError},
            details::load_details,
        },
        postgres::{PgError, sql},
    },
    model::{SourceKind, TableSchema},
    target::TargetKind,
};

/// The schema of the tables of a target that is PostgreSQL, as the configuration that is written leaves it.
const TARGET_SCHEMA: &str = "public";

/// What stands for a PostgreSQL that was not named.
const ENGINE: &str = "postgresql://cutover:password@localhost:5432/cutover";

/// What `cutover init` is given.
#[derive(Debug, Clone, clap::Args)]
pub struct InitArgs {
    /// The source: mysql://user:password@host:3306/database, postgresql://… or dynamodb://region
    #[arg(long, value_name = "URL")]
    pub source: String,
    /// The target: postgresql://user:password@host:5432/database or mysql://…
    #[arg(long, value_name = "URL")]
    pub target: String,
    /// The PostgreSQL that runs the transforms, where neither source nor target is one: postgresql://…
    #[arg(long, value_name = "URL")]
    pub engine: Option<String>,
    /// A table of the source; all that have a key, if none is named
    #[arg(long = "table", value_name = "T")]
    pub tables: Vec<String>,
    /// The schema of a PostgreSQL source's tables; public without it
    #[arg(long, value_name = "SCHEMA")]
    pub schema: Option<String>,
    /// The folder to write to; it is made if it is missing
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
}

/// What was written.
#[derive(Debug)]
pub struct Written {
    pub files: Vec<PathBuf>,
    /// Tables without a file, each with the reason.
    pub left_out: Vec<(String, String)>,
    /// Environment variables that the configuration takes passwords from.
    pub variables: Vec<&'static str>,
    /// The configuration names a PostgreSQL that nobody gave.
    needs_engine: bool,
    out: PathBuf,
}

/// Why nothing was written, or not everything.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    #[error("the source URL names no database; end it with /database")]
    NoDatabase,
    #[error("{0}")]
    SourceUrl(String),
    #[error(
        "--target is no URL of a target; write postgresql://user:password@host:5432/database, or \
         mysql://user:password@host:3306/database for one that is MySQL or MariaDB"
    )]
    TargetUrl,
    #[error("the target URL names no database; end it with /database")]
    NoTargetDatabase,
    #[error(
        "--engine is for a target that is MySQL or MariaDB and a source that is no PostgreSQL: elsewhere the PostgreSQL that is \
         there runs the transforms; leave it out"
    )]
    NoEngine,
    #[error("--engine is not a postgresql:// URL; write postgresql://user:password@host:5432/database")]
    EngineUrl,
    #[error("the database `{database}` has no table {}; name base tables of the source, in the case that they have there",
        .tables.iter().map(|table| format!("`{table}`")).collect::<Vec<_>>().join(", "))]
    MissingTables { database: String, tables: Vec<String> },
    #[error("table `{table}` {reason}")]
    Unusable { table: String, reason: String },
    #[error("--schema is for a PostgreSQL source; the tables of this one are in no schema: leave it out")]
    NoSchema,
    #[error("{}", no_schema(.schema, .others))]
    EmptySchema { schema: String, others: Vec<String> },
    #[error("{}", nothing_to_move(.database, .left_out))]
    NothingToMove { database: String, left_out: LeftOut },
    #[error("{} exists already and is not overwritten; choose another --out, or move it away", .0.display())]
    Exists(PathBuf),
    #[error("{} cannot be written: {source}", .path.display())]
    Write { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    #[error(transparent)]
    Query(#[from] QueryError),
    #[error(transparent)]
    Postgres(#[from] PgError),
    #[error(transparent)]
    Dynamo(#[from] DynamoError),
}

impl InitError {
    /// The exit code of the command: 2 for what the user asked, 3 for what happened.
    pub fn exit_code(&self) -> u8 {
        match self {
            InitError::NoDatabase
            | InitError::SourceUrl(_)
            | InitError::TargetUrl
            | InitError::NoTargetDatabase
            | InitError::NoEngine
            | InitError::EngineUrl
            | InitError::MissingTables { .. }
            | InitError::Unusable { .. }
            | InitError::NoSchema
            | InitError::EmptySchema { .. }
            | InitError::NothingToMove { .. }
            | InitError::Exists(_)
            | InitError::Dynamo(DynamoError::Url(_))
            | InitError::Connect(ConnectError::Url { .. } | ConnectError::CaFile { .. }) => 2,
            InitError::Write { .. }
            | InitError::Connect(_)
            | InitError::Catalog(_)
            | InitError::Query(_)
            | InitError::Postgres(_)
            | InitError::Dynamo(_) => 3,
        }
    }
}

/// Reads the source's schema and writes the files.
pub async fn run(args: InitArgs) -> Result<Written, InitError> {
    let kind = SourceKind::of(&args.source);
    let target = Target::of(&args)?;
    let needs_engine = target.kind == TargetKind::Mysql && kind != Some(SourceKind::Postgres);
    judge_engine(args.engine.as_deref(), needs_engine)?;
    if args.schema.is_some() && kind != Some(SourceKind::Postgres) {
        return Err(InitError::NoSchema);
    }
    let draft = match kind {
        Some(SourceKind::Postgres) => postgres::draft(&args, target.kind).await?,
        Some(SourceKind::Dynamo) => dynamodb::draft(&args, target.kind).await?,
        // What is no URL of any kind is told what the most common one looks like.
        Some(SourceKind::Mysql) | None => mysql_draft(&args, target.kind).await?,
    };
    let engine = needs_engine.then(|| args.engine.as_deref().unwrap_or(ENGINE));
    let config = config_file::render(&config_file::Facts {
        database: &draft.database,
        schema: args.schema.as_deref(),
        source_url: &args.source,
        target_url: &args.target,
        engine_url: engine,
        tables: &draft.tables,
        left_out: &draft.left_out,
    });
    let mut files = vec![
        (PathBuf::from("cutover.toml"), config),
        (PathBuf::from("schema.sql"), draft.schema),
        (PathBuf::from("schema_after.sql"), draft.after),
    ];
    for (table, transform) in draft.transforms {
        files.push((Path::new("transforms").join(file_name(&table, &target.schema)), transform));
    }
    let files = write(&args.out, files)?;
    let variables = [
        (Some(&*args.source), "SOURCE_PASSWORD"),
        (Some(&args.target), "TARGET_PASSWORD"),
        (engine, "ENGINE_PASSWORD"),
    ]
    .into_iter()
    .filter_map(|(url, variable)| config_file::without_password(url?, variable).hidden.then_some(variable))
    .collect();
    let needs_engine = needs_engine && args.engine.is_none();
    Ok(Written { files, left_out: draft.left_out, variables, needs_engine, out: args.out })
}

/// Where the rows are to go.
struct Target {
    kind: TargetKind,
    /// Where its tables are: a schema of PostgreSQL, a database of MySQL.
    schema: String,
}

impl Target {
    fn of(args: &InitArgs) -> Result<Target, InitError> {
        let kind = TargetKind::of(&args.target).ok_or(InitError::TargetUrl)?;
        let schema = match kind {
            TargetKind::Postgres => TARGET_SCHEMA.to_owned(),
            TargetKind::Mysql => {
                Connector::new(&args.target)?.database().ok_or(InitError::NoTargetDatabase)?.to_owned()
            }
        };
        Ok(Target { kind, schema })
    }
}

fn judge_engine(engine: Option<&str>, needs_engine: bool) -> Result<(), InitError> {
    match engine {
        Some(_) if !needs_engine => Err(InitError::NoEngine),
        Some(url) if TargetKind::of(url) != Some(TargetKind::Postgres) => Err(InitError::EngineUrl),
        Some(_) | None => Ok(()),
    }
}

/// What is to be written of one source.
struct Draft {
    database: String,
    tables: Vec<String>,
    left_out: LeftOut,
    schema: String,
    after: String,
    /// By target table.
    transforms: Vec<(String, String)>,
}

async fn mysql_draft(args: &InitArgs, target: TargetKind) -> Result<Draft, InitError> {
    let connector = Connector::new(&args.source)?;
    let database = connector.database().ok_or(InitError::NoDatabase)?.to_owned();
    let mut conn = connector.connect().await?;
    let only = (!args.tables.is_empty()).then_some(args.tables.as_slice());
    let schemas = load_tables(&mut conn, &database, only).await?;
    check_names(&database, &args.tables, &schemas)?;
    let details = load_details(&mut conn, &database, only).await?;
    let mariadb = is_mariadb(&mut conn).await?;
    let zero_dates = zero_dates::find(&mut conn, mariadb, &schemas).await?;
    // The answers are in already; a connection that ends badly changes nothing.
    if let Err(error) = conn.disconnect().await {
        tracing::debug!(%error, "the connection to the source ended badly");
    }
    let (tables, left_out) = usable(schemas, &args.tables)?;
    let details_of = |schema: TableSchema| {
        let found = details.iter().find(|details| details.table == schema.table);
        let changed = || CatalogError::Changed { table: schema.table.table.clone() };
        let found = found.filter(|found| found.columns.len() == schema.columns.len()).ok_or_else(changed)?;
        Ok((schema, found.clone()))
    };
    let tables = tables.into_iter().map(details_of).collect::<Result<Vec<_>, CatalogError>>()?;
    let planned = plan::plan(tables, &zero_dates, target);
    if planned.is_empty() {
        return Err(InitError::NothingToMove { database, left_out });
    }
    let (schema, after) = match target {
        TargetKind::Postgres => (schema::render(&database, &planned), after::render(&database, &planned)),
        TargetKind::Mysql => for_mysql::from_mysql::render(&database, &planned),
    };
    Ok(Draft {
        tables: planned.iter().map(|table| table.schema.table.table.clone()).collect(),
        left_out,
        schema,
        after,
        transforms: planned.iter().map(|table| (table.name.clone(), transforms::render(table))).collect(),
        database,
    })
}

fn check_names(database: &str, wanted: &[String], found: &[TableSchema]) -> Result<(), InitError> {
    let missing: Vec<String> =
        wanted.iter().filter(|name| !found.iter().any(|schema| schema.table.table == **name)).cloned().collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(InitError::MissingTables { database: database.to_owned(), tables: missing })
}

/// The tables left out, each with the reason.
type LeftOut = Vec<(String, String)>;

fn no_schema(schema: &str, others: &[String]) -> String {
    if others.is_empty() {
        return format!("schema `{schema}` has no table; correct the database in --source, or make the tables first");
    }
    let others: Vec<String> = others.iter().map(|other| format!("`{other}`")).collect();
    format!("schema `{schema}` has no table; name one that has with --schema: {}", others.join(", "))
}

fn nothing_to_move(database: &str, left_out: &[(String, String)]) -> String {
    if left_out.is_empty() {
        return format!(
            "the database `{database}` has no table; correct the database in --source, or make the tables first"
        );
    }
    let reasons: Vec<String> = left_out.iter().map(|(table, reason)| format!("\n  table `{table}` {reason}")).collect();
    format!("the database `{database}` has no table that can be moved:{}", reasons.concat())
}

/// Sets aside the tables that cannot be moved; one that was asked for by name is an error.
fn usable(schemas: Vec<TableSchema>, asked: &[String]) -> Result<(Vec<TableSchema>, LeftOut), InitError> {
    let mut left_out = Vec::new();
    let mut usable: Vec<TableSchema> = Vec::new();
    for schema in schemas {
        let obstacle = obstacle(&schema).map(|problem| problem.to_string());
        match obstacle.or_else(|| file_obstacle(&schema)).or_else(|| alike(&schema, &usable)) {
            None => usable.push(schema),
            Some(reason) if asked.is_empty() => left_out.push((schema.table.table, reason)),
            Some(reason) => return Err(InitError::Unusable { table: schema.table.table, reason }),
        }
    }
    Ok((usable, left_out))
}

/// A transform's file bears the table's name.
fn file_obstacle(schema: &TableSchema) -> Option<String> {
    let name = &schema.table.table;
    let unfit = name.contains(['/', '\\']) || name.chars().any(char::is_control);
    unfit.then(|| {
        "has a name that its transform's file cannot have (with a slash or control character); rename it".into()
    })
}

/// A table that a transform could not tell from one before it.
fn alike<'a>(schema: &TableSchema, before: impl IntoIterator<Item = &'a TableSchema>) -> Option<String> {
    let name = sql::cut(&schema.table.table);
    let other = before.into_iter().find(|other| sql::cut(&other.table.table) == name)?;
    Some(format!(
        "has a name like that of `{}` in its first 63 bytes, where PostgreSQL cuts names; move it by a pipeline of its own",
        other.table.table
    ))
}

/// The file of a target table's transform. The first dot in it ends a schema's name.
fn file_name(table: &str, schema: &str) -> String {
    if table.contains('.') { format!("{schema}.{table}.sql") } else { format!("{table}.sql") }
}

/// Writes the files below `out`, none of which may exist; looks before it writes, so that a refusal leaves nothing.
fn write(out: &Path, files: Vec<(PathBuf, String)>) -> Result<Vec<PathBuf>, InitError> {
    let files: Vec<(PathBuf, String)> = files.into_iter().map(|(path, text)| (out.join(path), text)).collect();
    if let Some((path, _)) = files.iter().find(|(path, _)| path.symlink_metadata().is_ok()) {
        return Err(InitError::Exists(path.clone()));
    }
    let folder = out.join("transforms");
    fs::create_dir_all(&folder).map_err(|source| InitError::Write { path: folder, source })?;
    for (path, text) in &files {
        let written = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(path)
            .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()));
        written.map_err(|source| match source.kind() {
            std::io::ErrorKind::AlreadyExists => InitError::Exists(path.clone()),
            _ => InitError::Write { path: path.clone(), source },
        })?;
    }
    Ok(files.into_iter().map(|(path, _)| path).collect())
}

impl fmt::Display for Written {
    /// What a person does next.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for file in &self.files {
            writeln!(f, "wrote {}", file.display())?;
        }
        for (table, reason) in &self.left_out {
            writeln!(f, "left out {table}: it {reason}")?;
        }
        if !self.variables.is_empty() {
            writeln!(f, "passwords are not written down: set {} before `cutover run`", self.variables.join(" and "))?;
        }
        let out = self.out.display();
        if self.needs_engine {
            writeln!(
                f,
                "the transforms of such a target are run by a PostgreSQL, which keeps the pipeline's state too: name it as [transform] \
                 engine in {out}/cutover.toml, or give it as --engine"
            )?;
        }
        write!(
            f,
            "next: read the files, run {out}/schema.sql in the target, then `cutover check -c {out}/cutover.toml`"
        )
    }
}

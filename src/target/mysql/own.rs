//! What a MySQL or MariaDB target has of ours: the database `cutover`, with marks, lanes and side tables.
//!
//! A lane's row is locked by every transaction of the lane; it says under which number the lane is written, and a nonce
//! that changes each time is the mark by which a capture of this server tells our transactions from others. It looks at
//! the first column of the first row of a transaction, which is the pipeline in lanes and in marks.

use mysql_async::{Conn, prelude::Queryable};
use sha2::{Digest, Sha256};

use super::{MysqlError, literal::side_type, tables::Table};
use crate::{
    database::mysql::connect::{QueryError, quoted},
    model::{Column, Problem},
};

/// The layout that this release writes.
const FORMAT: u32 = 1;

const DATABASE: &str = "CREATE DATABASE IF NOT EXISTS `cutover` CHARACTER SET utf8mb4 COLLATE utf8mb4_bin";

const TABLES: [&str; 4] = [
    "CREATE TABLE IF NOT EXISTS `cutover`.`format` (`version` INT NOT NULL PRIMARY KEY) ENGINE = InnoDB",
    "CREATE TABLE IF NOT EXISTS `cutover`.`lanes` (`pipeline` VARCHAR(100) NOT NULL, `lane` VARCHAR(40) NOT NULL, \
     `part` INT UNSIGNED NOT NULL, `number` BIGINT NOT NULL, `nonce` BIGINT NOT NULL DEFAULT 0, \
     PRIMARY KEY (`pipeline`, `lane`, `part`)) ENGINE = InnoDB CHARACTER SET utf8mb4 COLLATE utf8mb4_bin",
    "CREATE TABLE IF NOT EXISTS `cutover`.`writers` (`target_schema` VARCHAR(64) NOT NULL, `target_table` VARCHAR(64) NOT NULL, \
     `pipeline` VARCHAR(100) NOT NULL, PRIMARY KEY (`target_schema`, `target_table`, `pipeline`)) \
     ENGINE = InnoDB CHARACTER SET utf8mb4 COLLATE utf8mb4_bin",
    "CREATE TABLE IF NOT EXISTS `cutover`.`pipeline_marks` (`pipeline` VARCHAR(100) NOT NULL, `writer` BIGINT UNSIGNED NOT NULL, \
     `nonce` BIGINT NOT NULL DEFAULT 0, PRIMARY KEY (`pipeline`, `writer`)) ENGINE = InnoDB CHARACTER SET utf8mb4 COLLATE utf8mb4_bin",
];

/// Makes the database and its tables where they are missing, and refuses a layout that is newer than this release's.
pub(super) async fn ensure(conn: &mut Conn) -> Result<(), MysqlError> {
    let there: Option<String> =
        query(conn, "SELECT SCHEMA_NAME FROM information_schema.SCHEMATA WHERE SCHEMA_NAME = 'cutover'").await?;
    if there.is_none() {
        run(conn, DATABASE).await?;
    }
    for table in TABLES {
        run(conn, table).await?;
    }
    run(conn, &format!("INSERT IGNORE INTO `cutover`.`format` (`version`) VALUES ({FORMAT})")).await?;
    let found: Option<u32> = query(conn, "SELECT MAX(`version`) FROM `cutover`.`format`").await?;
    match found {
        Some(found) if found > FORMAT => Err(MysqlError::Unusable(Problem::new(
            format!("the target's database `cutover` has format {found}; this release reads up to {FORMAT}"),
            "run the release that wrote it, or a newer one",
        ))),
        Some(_) | None => Ok(()),
    }
}

/// Makes the side table of a table's versions: a row for each key that was ever written, with the version at which it
/// is gone, if it is. Texts are bytes there: those that a collation takes for one have a version each. A side table
/// whose key has other types than the table's has now follows it. Notes that the pipeline writes to the table.
pub(super) async fn prepare(conn: &mut Conn, table: &Table, pipeline: &str) -> Result<(), MysqlError> {
    let note = "INSERT IGNORE INTO `cutover`.`writers` VALUES (?, ?, ?)";
    let names = (&table.name.schema, &table.name.table, pipeline);
    conn.exec_drop(note, names)
        .await
        .map_err(|error| QueryError::new("the target's writers could not be noted", error))?;
    let column = |column: &Column| format!("{} {} NOT NULL", quoted(&column.name), side_type(column));
    let columns: Vec<String> = table.key_columns().map(column).collect();
    let keys: Vec<String> = table.key_columns().map(|column| quoted(&column.name)).collect();
    let layout = layout(&columns);
    let (side, name) = (table.side(), table.side_name());
    let asked = "SELECT TABLE_COMMENT FROM information_schema.TABLES WHERE TABLE_SCHEMA = 'cutover' AND TABLE_NAME = ?";
    let found: Option<String> = conn
        .exec_first(asked, (name,))
        .await
        .map_err(|error| QueryError::new("the target's side tables could not be asked for", error))?;
    match found {
        Some(found) if found == layout => Ok(()),
        Some(_) => follow(conn, table, &columns, &layout).await,
        None => {
            let create = format!(
                "CREATE TABLE IF NOT EXISTS {side} ({columns}, `cutover_version` BIGINT NOT NULL, `cutover_gone` BIGINT NULL, \
                 PRIMARY KEY ({keys}), KEY `cutover_gone` (`cutover_gone`)) ENGINE = InnoDB ROW_FORMAT = DYNAMIC COMMENT = '{layout}'",
                columns = columns.join(", "),
                keys = keys.join(", "),
            );
            run(conn, &create).await
        }
    }
}

/// Gives the columns of a side table's key the types that the table's have now, where they are the same columns.
async fn follow(conn: &mut Conn, table: &Table, columns: &[String], layout: &str) -> Result<(), MysqlError> {
    let side = table.side();
    let unusable = |why: String| {
        MysqlError::Unusable(Problem::new(
            format!("the key of target table {} has changed, and its side table cannot follow: {why}", table.name),
            format!(
                "stop cutover, DROP TABLE {side}, start it again and copy the table again with `cutover resnapshot`"
            ),
        ))
    };
    let asked = "SELECT COLUMN_NAME FROM information_schema.STATISTICS \
                 WHERE TABLE_SCHEMA = 'cutover' AND TABLE_NAME = ? AND INDEX_NAME = 'PRIMARY' ORDER BY SEQ_IN_INDEX";
    let known: Vec<String> = conn
        .exec(asked, (table.side_name(),))
        .await
        .map_err(|error| QueryError::new("the target's side tables could not be asked for", error))?;
    if !known.iter().eq(table.key_columns().map(|column| &column.name)) {
        return Err(unusable(format!("it has the columns {}", known.join(", "))));
    }
    // A type that has no room for what is there is refused.
    run(conn, "SET SESSION sql_mode = 'STRICT_ALL_TABLES'").await?;
    let changes: Vec<String> = columns.iter().map(|column| format!("MODIFY {column}")).collect();
    let alter = format!("ALTER TABLE {side} {}, COMMENT = '{layout}'", changes.join(", "));
    conn.query_drop(alter).await.map_err(|error| unusable(error.to_string()))
}

/// What tells the layout of a side table from another one.
fn layout(columns: &[String]) -> String {
    let digest = Sha256::digest(columns.join(", ").as_bytes());
    digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// Whether another pipeline writes to this table.
pub(super) async fn is_shared(conn: &mut Conn, table: &Table, pipeline: &str) -> Result<bool, MysqlError> {
    let others =
        "SELECT 1 FROM `cutover`.`writers` WHERE `target_schema` = ? AND `target_table` = ? AND `pipeline` <> ?";
    let names = (&table.name.schema, &table.name.table, pipeline);
    let found: Option<u8> = conn
        .exec_first(others, names)
        .await
        .map_err(|error| QueryError::new("the target's writers could not be asked for", error))?;
    Ok(found.is_some())
}

/// The highest version of a table's rows and deletes.
pub(super) async fn highest_version(conn: &mut Conn, table: &Table) -> Result<i64, MysqlError> {
    let highest: Option<Option<i64>> =
        query(conn, &format!("SELECT MAX(`cutover_version`) FROM {}", table.side())).await?;
    Ok(highest.flatten().unwrap_or_default())
}

/// Forgets which keys are gone since before `version`, some at a time; how many.
pub(super) async fn forget(conn: &mut Conn, table: &Table, version: i64) -> Result<u64, MysqlError> {
    const AT_ONCE: u64 = 10_000;
    let delete = format!("DELETE FROM {} WHERE `cutover_gone` < {version} LIMIT {AT_ONCE}", table.side());
    let mut forgotten = 0;
    loop {
        run(conn, &delete).await?;
        forgotten += conn.affected_rows();
        if conn.affected_rows() < AT_ONCE {
            return Ok(forgotten);
        }
    }
}

async fn run(conn: &mut Conn, sql: &str) -> Result<(), MysqlError> {
    let what = || format!("the target refused `{}`", sql.chars().take(80).collect::<String>());
    Ok(conn.query_drop(sql).await.map_err(|error| QueryError::new(what(), error))?)
}

async fn query<T: mysql_async::prelude::FromRow + Send + 'static>(
    conn: &mut Conn,
    sql: &str,
) -> Result<Option<T>, MysqlError> {
    Ok(conn.query_first(sql).await.map_err(|error| QueryError::new("the target could not be asked", error))?)
}

//! An event trigger by which a source says in its log where it was altered.
//!
//! PostgreSQL logs no DDL, and the catalog is asked now and then instead. Who may create event triggers, which takes a
//! superuser on most servers, can have the log itself say when that is worth it. Nothing relies on it: `TRUNCATE` fires
//! none, and whoever drops the trigger is not missed.

use tokio_postgres::Client;

use super::PgError;

/// What its messages begin with.
pub const PREFIX: &str = "cutover";

/// Makes it. The commands are those that the catalog's fingerprint shows something of.
pub const CREATE: &str = "CREATE FUNCTION cutover_ddl() RETURNS event_trigger LANGUAGE plpgsql AS \
    'BEGIN PERFORM pg_catalog.pg_logical_emit_message(true, ''cutover'', tg_tag); END'; \
    CREATE EVENT TRIGGER cutover_ddl ON ddl_command_end WHEN TAG IN ('ALTER TABLE', 'CREATE TABLE', 'DROP TABLE', \
    'ALTER TYPE', 'DROP TYPE', 'ALTER PUBLICATION', 'CREATE PUBLICATION', 'DROP PUBLICATION') \
    EXECUTE FUNCTION cutover_ddl()";

/// Whether the user may make the trigger, and there is none yet.
///
/// # Errors
/// What the server answers.
pub async fn is_offered(client: &Client) -> Result<bool, PgError> {
    let sql = "SELECT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) AND NOT EXISTS ( \
               SELECT FROM pg_event_trigger t JOIN pg_proc f ON f.oid = t.evtfoid \
               WHERE t.evtevent = 'ddl_command_end' AND t.evtenabled <> 'D' AND f.proname = 'cutover_ddl')";
    Ok(client.query_one(sql, &[]).await?.try_get(0)?)
}

//! The script after the copy: what the target's tables get once nothing is copied into them any longer.

use std::path::Path;

use crate::{
    database::postgres::{PgError, Session, sql},
    state::notes::after_copy_has_run,
};

/// Runs a script and notes that it has run, in one transaction, which says `mark` behind its BEGIN.
pub(super) async fn run(
    session: &Session,
    (pipeline, mark): (&str, &str),
    schema: &str,
    path: &Path,
) -> Result<(), PgError> {
    let script = tokio::fs::read_to_string(path)
        .await
        .map_err(|error| PgError::Protocol(format!("{} cannot be read: {error}", path.display())))?;
    let schema = sql::ident(schema);
    let client = &session.client;
    client
        .batch_execute(&format!(
            "SET statement_timeout = 0; SET lock_timeout = '1min'; SET search_path = {schema}, pg_catalog; BEGIN{mark}"
        ))
        .await?;
    client.batch_execute(&script).await.map_err(|error| located(error.into(), path, &script))?;
    after_copy_has_run(client, pipeline).await?;
    client.batch_execute("COMMIT").await?;
    Ok(())
}

/// What a script met, with the place in it where the server can tell.
fn located(error: PgError, file: &Path, script: &str) -> PgError {
    let PgError::Refused(mut refusal) = error else { return error };
    let place = refusal.position.map(|position| {
        let before: String = script.chars().take((position as usize).saturating_sub(1)).collect();
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        format!(":{line}:{column}")
    });
    refusal.message = format!("{}{}: {}", file.display(), place.unwrap_or_default(), refusal.message);
    PgError::Refused(refusal)
}

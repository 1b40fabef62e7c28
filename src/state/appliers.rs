//! The processes that share the applying: who they are, and when one may write.
//!
//! Each process of role `apply` is a row beside the lease, and is alive as its holder is: until it runs out, as long
//! as its session is there. It names the transforms that it applies with. Whoever begins writes its row first, then
//! looks for processes that it does not go together with, and gives way to them: so two that begin at the same time
//! never both go on (rule 19).
//!
//! Before it writes partitions a process draws a number for them, then looks whether it may. A number drawn later by
//! anybody makes an earlier one worthless wherever it is claimed: what makes all processes begin anew draws one and
//! claims every lane ([`Store::take_all_lanes`]).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    StateError, Store,
    lease::{self, LEASE_SECONDS, Lease},
};
use crate::{
    database::postgres::{PgError, sql},
    model::{Problem, TableSchema, Version},
};

/// A process whose row is this old without being renewed does not come back.
const GONE_AFTER: &str = "5 minutes";
/// SQLSTATE of a lock that could not be had in time.
const LOCK_NOT_AVAILABLE: &str = "55P03";

/// The source's tables, as the process that captures has found them.
const NOTE_TABLES: &str = "source tables";
/// The transforms that the target was last written with by processes that share the applying.
const NOTE_TRANSFORMS: &str = "transforms";
/// The lease under which somebody wants all processes to rest.
const NOTE_REST: &str = "rest";

/// Whether a row `m` of the lease's table is alive.
const LIVES: &str = "m.expires_at >= clock_timestamp() AND EXISTS (SELECT FROM pg_stat_activity a \
     WHERE a.pid = m.backend_pid AND a.backend_start = m.backend_start)";

/// A process of role `apply`.
#[derive(Debug, Clone)]
pub(crate) struct Applier {
    /// Its row's role: `apply`, and a number that no other process has.
    role: String,
    /// Where it runs, for messages.
    holder: String,
    transforms: String,
}

/// What the processes plan with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Described {
    pub tables: Vec<TableSchema>,
    /// The version as of which the source had these tables.
    pub planned_at: Version,
}

/// Whether a process may write the partitions that the group gives to it.
#[derive(Debug)]
pub(crate) enum Turn {
    /// Under this number, with plans for what is described here.
    Go { number: i64, basis: Basis },
    /// The target's tables are being changed, or the source's are not described yet.
    Wait(&'static str),
    /// The process has not been heard of for too long: it begins anew.
    Lapsed,
}

/// What plans depend on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Basis {
    described: String,
    script: Option<String>,
}

/// What a process says of itself.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ApplierReport {
    pub partitions: Vec<u32>,
    pub halted: Option<Problem>,
    pub retrying: BTreeMap<String, String>,
}

impl Applier {
    pub(crate) fn new(holder: String, transforms: String) -> Self {
        Applier { role: format!("apply {:016x}", crate::observe::unique()), holder, transforms }
    }
}

impl Basis {
    pub(crate) fn described(&self) -> Result<Described, StateError> {
        serde_json::from_str(&self.described)
            .map_err(|error| StateError::unreadable("the description of the source's tables", &error))
    }
}

impl Store {
    /// Enters a process among those that apply, or says what keeps it from that.
    pub(crate) async fn enter(&self, applier: &Applier) -> Result<Result<(), String>, StateError> {
        self.forget_gone_appliers().await?;
        self.write_applier(applier).await?;
        let blocked = self.blocks_applier(applier).await?;
        if let Some(reason) = blocked {
            self.withdraw(applier).await?;
            return Ok(Err(reason));
        }
        // Whoever applied with others may be paused, and must not go on beside this one.
        if self.note(NOTE_TRANSFORMS).await?.as_ref() != Some(&applier.transforms) {
            self.take_all_lanes().await?;
            self.set_note(NOTE_TRANSFORMS, &applier.transforms).await?;
        }
        Ok(Ok(()))
    }

    /// Says that the process is still there; false if others may have thought otherwise.
    pub(crate) async fn stay(&self, applier: &Applier) -> Result<bool, StateError> {
        let lives = format!("SELECT FROM cutover.lease m WHERE m.pipeline = $1 AND m.role = $2 AND {LIVES}");
        let alive = {
            let session = self.session().await?;
            session.client()?.query_opt(&lives, &[&self.pipeline, &applier.role]).await?.is_some()
        };
        // A session that was opened again is not the one that the row names.
        self.write_applier(applier).await?;
        Ok(alive || self.blocks_applier(applier).await?.is_none())
    }

    /// Takes a process out.
    pub(crate) async fn withdraw(&self, applier: &Applier) -> Result<(), StateError> {
        let session = self.session().await?;
        let gone = "DELETE FROM cutover.lease WHERE pipeline = $1 AND role = $2";
        session.client()?.execute(gone, &[&self.pipeline, &applier.role]).await?;
        let silent = "DELETE FROM cutover.notes WHERE pipeline = $1 AND key = 'report ' || $2";
        session.client()?.execute(silent, &[&self.pipeline, &applier.role]).await?;
        Ok(())
    }

    async fn write_applier(&self, applier: &Applier) -> Result<(), StateError> {
        let session = self.session().await?;
        session
            .client()?
            .execute(
                "INSERT INTO cutover.lease (pipeline, role, holder, transforms_hash, expires_at, backend_pid, backend_start) \
                 SELECT $1, $2, $3, $4, clock_timestamp() + make_interval(secs => $5::float8), pid, backend_start \
                 FROM pg_stat_activity WHERE pid = pg_backend_pid() \
                 ON CONFLICT (pipeline, role) DO UPDATE SET expires_at = excluded.expires_at, \
                    backend_pid = excluded.backend_pid, backend_start = excluded.backend_start",
                &[&self.pipeline, &applier.role, &applier.holder, &applier.transforms, &(LEASE_SECONDS as f64)],
            )
            .await?;
        Ok(())
    }

    async fn forget_gone_appliers(&self) -> Result<(), StateError> {
        let session = self.session().await?;
        for gone in [
            format!(
                "DELETE FROM cutover.lease WHERE pipeline = $1 AND role LIKE 'apply %' \
                 AND expires_at < clock_timestamp() - interval '{GONE_AFTER}'"
            ),
            format!(
                "DELETE FROM cutover.notes WHERE pipeline = $1 AND key LIKE 'report apply %' \
                 AND updated_at < clock_timestamp() - interval '{GONE_AFTER}'"
            ),
        ] {
            session.client()?.execute(&gone, &[&self.pipeline]).await?;
        }
        Ok(())
    }

    /// What keeps a process from applying.
    async fn blocks_applier(&self, applier: &Applier) -> Result<Option<String>, StateError> {
        let session = self.session().await?;
        let other = format!(
            "SELECT m.holder, m.transforms_hash IS DISTINCT FROM $3, applies FROM cutover.lease m, \
             LATERAL (SELECT m.role = 'worker' AND EXISTS (SELECT FROM cutover.lease a \
                 WHERE a.pipeline = $1 AND a.role = 'apply' AND a.epoch = m.epoch)) x(applies) \
             WHERE m.pipeline = $1 AND m.role <> $2 AND (m.role = 'worker' OR m.role LIKE 'apply %') AND {LIVES} \
             AND (applies OR m.transforms_hash IS DISTINCT FROM $3) ORDER BY applies DESC LIMIT 1"
        );
        let row = session.client()?.query_opt(&other, &[&self.pipeline, &applier.role, &applier.transforms]).await?;
        Ok(row.map(|row| {
            let (holder, applies): (String, bool) = (row.get(0), row.get(2));
            if applies {
                format!("worker {holder} applies by itself; start that one with --role capture to share the applying")
            } else {
                others_transforms(&holder)
            }
        }))
    }

    /// What keeps a process from leading: processes that apply, if it is to apply everything by itself, or those with
    /// other transforms.
    pub(crate) async fn blocks_leader(&self, applies: bool, transforms: &str) -> Result<Option<String>, StateError> {
        let session = self.session().await?;
        let other = format!(
            "SELECT m.holder, m.transforms_hash IS DISTINCT FROM $2 FROM cutover.lease m \
             WHERE m.pipeline = $1 AND m.role LIKE 'apply %' AND {LIVES} \
             AND ($3 OR m.transforms_hash IS DISTINCT FROM $2) LIMIT 1"
        );
        let row = session.client()?.query_opt(&other, &[&self.pipeline, &transforms, &applies]).await?;
        Ok(row.map(|row| {
            let holder: String = row.get(0);
            if applies {
                format!("process {holder} applies already; start this one with --role capture, or stop those with --role apply")
            } else {
                others_transforms(&holder)
            }
        }))
    }

    /// Says of the holder of a lease with what it applies, and whether it applies everything by itself.
    pub(crate) async fn mark_leader(&self, lease: Lease, applies: bool, transforms: &str) -> Result<(), StateError> {
        let session = self.session().await?;
        session
            .client()?
            .execute(
                "UPDATE cutover.lease SET transforms_hash = $3 WHERE pipeline = $1 AND role = 'worker' AND epoch = $2",
                &[&self.pipeline, &lease.epoch, &transforms],
            )
            .await?;
        if applies {
            let mark = "INSERT INTO cutover.lease (pipeline, role, holder, epoch, expires_at) \
                        VALUES ($1, 'apply', '', $2, '-infinity') \
                        ON CONFLICT (pipeline, role) DO UPDATE SET epoch = excluded.epoch";
            session.client()?.execute(mark, &[&self.pipeline, &lease.epoch]).await?;
        }
        Ok(())
    }

    /// Draws a number for a process, and looks whether it may write under it. In this order: what keeps it from
    /// writing may come to be between the two, and then is seen or has the higher number.
    pub(crate) async fn turn(&self, applier: &Applier) -> Result<Turn, StateError> {
        let session = self.session().await?;
        let client = session.client()?;
        let number = lease::draw(client, &self.pipeline).await?;
        let look = format!(
            "SELECT EXISTS (SELECT FROM cutover.lease m WHERE m.pipeline = $1 AND m.role = $2 AND {LIVES}), \
                    EXISTS (SELECT FROM cutover.lease m JOIN cutover.notes n USING (pipeline) \
                      WHERE m.pipeline = $1 AND m.role = 'worker' AND n.key = '{NOTE_REST}' AND n.value = m.epoch::text AND {LIVES}), \
                    (SELECT value FROM cutover.notes WHERE pipeline = $1 AND key = '{NOTE_TABLES}'), \
                    (SELECT value FROM cutover.notes WHERE pipeline = $1 AND key = 'after_copy')"
        );
        let row = client.query_one(&look, &[&self.pipeline, &applier.role]).await?;
        let (alive, resting, described): (bool, bool, Option<String>) = (row.get(0), row.get(1), row.get(2));
        Ok(match described {
            _ if !alive => Turn::Lapsed,
            _ if resting => Turn::Wait("the script after the copy changes the target's tables"),
            None => Turn::Wait(
                "no process has described the source's tables yet; start one with `cutover run --role capture`",
            ),
            Some(described) => Turn::Go { number, basis: Basis { described, script: row.get(3) } },
        })
    }

    /// Claims every lane, so that whoever writes one must begin anew.
    pub(crate) async fn take_all_lanes(&self) -> Result<(), StateError> {
        let session = self.session().await?;
        let client = session.client()?;
        let number = lease::draw(client, &self.pipeline).await?;
        let take = format!(
            "BEGIN; SET LOCAL lock_timeout = '3s'; UPDATE cutover.offsets SET lease_epoch = {number} \
             WHERE pipeline = {} AND topic IN ('changes', 'snapshot') AND lease_epoch < {number}; COMMIT",
            sql::literal(&self.pipeline)
        );
        let mut taken = client.batch_execute(&take).await.map_err(PgError::from);
        if taken.as_ref().is_err_and(|error| error.sqlstate() == LOCK_NOT_AVAILABLE) {
            // A process that was paused inside a transaction keeps its locks.
            client.batch_execute("ROLLBACK").await?;
            lease::end_predecessor(client, &self.pipeline).await?;
            taken = client.batch_execute(&take).await.map_err(PgError::from);
        }
        if taken.is_err() && !client.is_closed() {
            client.batch_execute("ROLLBACK").await?;
        }
        Ok(taken?)
    }

    /// Has all processes rest, for as long as the holder of this lease is alive and until [`Store::wake`].
    pub(crate) async fn rest(&self, lease_epoch: i64) -> Result<(), StateError> {
        self.set_note(NOTE_REST, &lease_epoch.to_string()).await?;
        self.take_all_lanes().await
    }

    /// Lets the processes go on.
    pub(crate) async fn wake(&self) -> Result<(), StateError> {
        self.set_note(NOTE_REST, "").await
    }

    /// Describes the source's tables for the processes that apply. If they are others than before, those begin anew
    /// with them.
    pub(crate) async fn describe(&self, described: &Described) -> Result<(), StateError> {
        let before = self.note(NOTE_TABLES).await?;
        let before: Option<Described> = before.and_then(|before| serde_json::from_str(&before).ok());
        if before.is_some_and(|before| before.tables == described.tables) {
            return Ok(());
        }
        let json = serde_json::to_string(described)?;
        self.set_note(NOTE_TABLES, &json).await?;
        self.take_all_lanes().await
    }

    /// Writes what a process says of itself, and adds to what all of them have applied.
    pub(crate) async fn report_applier(
        &self,
        applier: &Applier,
        report: &ApplierReport,
        applied: &BTreeMap<String, u64>,
    ) -> Result<(), StateError> {
        let body = serde_json::to_string(report)?;
        self.set_note(&format!("report {}", applier.role), &body).await?;
        if applied.is_empty() {
            return Ok(());
        }
        let (tables, changes): (Vec<&String>, Vec<i64>) =
            applied.iter().map(|(table, changes)| (table, changes.cast_signed())).unzip();
        let session = self.session().await?;
        session
            .client()?
            .execute(
                "INSERT INTO cutover.notes AS n (pipeline, key, value) \
                 SELECT $1, 'applied ' || x.source, x.changes::text FROM unnest($2::text[], $3::bigint[]) x(source, changes) \
                 ON CONFLICT (pipeline, key) DO UPDATE SET value = (n.value::bigint + excluded.value::bigint)::text, \
                    updated_at = clock_timestamp()",
                &[&self.pipeline, &tables, &changes],
            )
            .await?;
        Ok(())
    }

    /// The processes that apply now: where each runs, and what it says of itself.
    pub(crate) async fn appliers(&self) -> Result<Vec<(String, ApplierReport)>, StateError> {
        let session = self.session().await?;
        let alive = format!(
            "SELECT m.holder, coalesce(n.value, '{{}}') FROM cutover.lease m LEFT JOIN cutover.notes n \
             ON n.pipeline = m.pipeline AND n.key = 'report ' || m.role \
             WHERE m.pipeline = $1 AND m.role LIKE 'apply %' AND {LIVES} ORDER BY m.holder, m.role"
        );
        let rows = session.client()?.query(&alive, &[&self.pipeline]).await?;
        // What another release says differently is not worth an error.
        Ok(rows.iter().map(|row| (row.get(0), serde_json::from_str(row.get(1)).unwrap_or_default())).collect())
    }

    /// Changes applied by processes that share the applying, by source table.
    pub(crate) async fn applied_by_appliers(&self) -> Result<BTreeMap<String, u64>, StateError> {
        let session = self.session().await?;
        let rows = session
            .client()?
            .query(
                "SELECT substr(key, 9), value::bigint FROM cutover.notes WHERE pipeline = $1 AND key LIKE 'applied %'",
                &[&self.pipeline],
            )
            .await?;
        Ok(rows.iter().map(|row| (row.get(0), row.get::<_, i64>(1).cast_unsigned())).collect())
    }
}

fn others_transforms(holder: &str) -> String {
    format!(
        "process {holder} applies with other transforms; stop all processes of the pipeline, then start them with the same ones"
    )
}

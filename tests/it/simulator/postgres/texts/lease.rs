//! The lease, the numbers drawn beside it, and the processes that apply.

use super::{Statement, of};
use crate::simulator::postgres::{
    recognise::Tag::{Insert, Select, Update},
    state::{State as S, lease::Lease},
    value::Type::{Bool, Int8, Seconds, Text, Texts},
};

/// Whether a row `m` of the lease's table is alive.
macro_rules! lives {
    () => {
        "m.expires_at >= clock_timestamp() AND EXISTS (SELECT FROM pg_stat_activity a
         WHERE a.pid = m.backend_pid AND a.backend_start = m.backend_start)"
    };
}

pub const TEXTS: &[Statement] = &[
    of(
        S::Lease(Lease::Row),
        "lease row",
        Insert,
        &[Text, Text],
        None,
        "INSERT INTO cutover.lease (pipeline, role, holder, epoch, expires_at)
         VALUES ($1, $2, '', 0, '-infinity') ON CONFLICT DO NOTHING",
    ),
    of(
        S::Lease(Lease::Take),
        "take lease",
        Update,
        &[Text, Text, Text, Seconds],
        Some(&[Int8]),
        "UPDATE cutover.lease l SET holder = $3, epoch = epoch + 1,
                expires_at = clock_timestamp() + make_interval(secs => $4::float8),
                backend_pid = pg_backend_pid(),
                backend_start = (SELECT backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid())
         WHERE pipeline = $1 AND role = $2 AND (expires_at < clock_timestamp() OR NOT EXISTS (
                SELECT 1 FROM pg_stat_activity a WHERE a.pid = l.backend_pid AND a.backend_start = l.backend_start))
         RETURNING epoch",
    ),
    of(
        S::Lease(Lease::Holder),
        "lease holder",
        Select,
        &[Text, Text],
        Some(&[Text, Seconds]),
        "SELECT holder, CASE WHEN isfinite(expires_at) THEN extract(epoch FROM expires_at - clock_timestamp())::float8
         ELSE 0 END FROM cutover.lease WHERE pipeline = $1 AND role = $2",
    ),
    of(
        S::Lease(Lease::EndPredecessor),
        "end predecessor",
        Select,
        &[Texts],
        Some(&[Bool]),
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
         WHERE datname = current_database() AND usename = current_user AND application_name = ANY($1)",
    ),
    of(
        S::Lease(Lease::Renew),
        "renew lease",
        Update,
        &[Text, Text, Int8, Seconds],
        None,
        "UPDATE cutover.lease SET expires_at = clock_timestamp() + make_interval(secs => $4::float8),
                backend_pid = pg_backend_pid(),
                backend_start = (SELECT backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid())
         WHERE pipeline = $1 AND role = $2 AND epoch = $3",
    ),
    of(
        S::Lease(Lease::Release),
        "release lease",
        Update,
        &[Text, Text, Int8],
        None,
        "UPDATE cutover.lease SET expires_at = '-infinity' WHERE pipeline = $1 AND role = $2 AND epoch = $3",
    ),
    of(
        S::Lease(Lease::Draw),
        "draw number",
        Insert,
        &[Text],
        Some(&[Int8]),
        "INSERT INTO cutover.lease AS l (pipeline, role, holder, epoch, expires_at)
         SELECT $1, 'numbers', '', coalesce(max(epoch), 0) + 1, '-infinity' FROM cutover.lease WHERE pipeline = $1
         ON CONFLICT (pipeline, role) DO UPDATE SET epoch = greatest(l.epoch + 1, excluded.epoch) RETURNING epoch",
    ),
    of(
        S::Lease(Lease::Raise),
        "raise lease",
        Update,
        &[Text, Text, Int8, Int8],
        None,
        "UPDATE cutover.lease SET epoch = $4 WHERE pipeline = $1 AND role = $2 AND epoch = $3",
    ),
    of(
        S::Lease(Lease::BlocksLeader),
        "blocks leader",
        Select,
        &[Text, Text, Bool],
        Some(&[Text, Bool]),
        concat!(
            "SELECT m.holder, m.transforms_hash IS DISTINCT FROM $2 FROM cutover.lease m
             WHERE m.pipeline = $1 AND m.role LIKE 'apply %' AND ",
            lives!(),
            " AND ($3 OR m.transforms_hash IS DISTINCT FROM $2) LIMIT 1"
        ),
    ),
    of(
        S::Lease(Lease::MarkLeader),
        "mark leader",
        Update,
        &[Text, Int8, Text],
        None,
        "UPDATE cutover.lease SET transforms_hash = $3 WHERE pipeline = $1 AND role = 'worker' AND epoch = $2",
    ),
    of(
        S::Lease(Lease::MarkApplies),
        "mark leader as applying",
        Insert,
        &[Text, Int8],
        None,
        "INSERT INTO cutover.lease (pipeline, role, holder, epoch, expires_at)
         VALUES ($1, 'apply', '', $2, '-infinity')
         ON CONFLICT (pipeline, role) DO UPDATE SET epoch = excluded.epoch",
    ),
    of(
        S::Lease(Lease::Members),
        "members",
        Select,
        &[Text],
        Some(&[Text, Text]),
        concat!(
            "SELECT m.holder, coalesce(n.value, '{}') FROM cutover.lease m LEFT JOIN cutover.notes n
             ON n.pipeline = m.pipeline AND n.key = 'report ' || m.role
             WHERE m.pipeline = $1 AND m.role LIKE 'apply %' AND ",
            lives!(),
            " ORDER BY m.holder, m.role"
        ),
    ),
    of(
        S::Lease(Lease::State),
        "lease state",
        Select,
        &[Text],
        Some(&[Int8, Bool, Bool]),
        "SELECT epoch, expires_at > clock_timestamp(), NOT EXISTS (SELECT FROM cutover.lease a
            WHERE a.pipeline = l.pipeline AND a.role = 'apply' AND a.epoch = l.epoch)
         FROM cutover.lease l WHERE pipeline = $1 AND role = 'worker'",
    ),
];

//! What `status` asks.

use super::{Statement, of};
use crate::simulator::postgres::{
    recognise::Tag::Select,
    state::{State as S, status::Status},
    value::Type::{Int8, Seconds, Text},
};

pub const TEXTS: &[Statement] = &[
    of(
        S::Status(Status::LastReport),
        "last report",
        Select,
        &[Text],
        Some(&[Text, Seconds]),
        "SELECT value, extract(epoch FROM clock_timestamp() - updated_at)::float8 FROM cutover.notes
         WHERE pipeline = $1 AND key = 'report'",
    ),
    of(
        S::Status(Status::Tables),
        "status of tables",
        Select,
        &[Text],
        Some(&[Text, Int8, Int8, Text]),
        "SELECT source_table, CASE state WHEN 'copied' THEN rows_copied ELSE greatest(rows_estimate, rows_copied) END,
                rows_copied, state FROM cutover.tables WHERE pipeline = $1 ORDER BY position, source_table",
    ),
    of(
        S::Status(Status::Counts),
        "status in numbers",
        Select,
        &[Text],
        Some(&[Int8, Int8, Int8, Seconds, Seconds, Int8, Seconds, Int8]),
        "SELECT (SELECT count(*) FROM cutover.waiting WHERE pipeline = $1),
                (SELECT count(*) FROM cutover.dead_letters WHERE pipeline = $1 AND state = 'open'),
                (SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint - min(newest_commit_us)
                   FROM cutover.offsets WHERE pipeline = $1 AND topic = 'changes' AND newest_commit_us > 0),
                (SELECT extract(epoch FROM clock_timestamp() - min(since))::float8
                   FROM cutover.waiting WHERE pipeline = $1),
                (SELECT extract(epoch FROM clock_timestamp() - min(created_at))::float8
                   FROM cutover.dead_letters WHERE pipeline = $1 AND state = 'open'),
                (SELECT count(*) FROM cutover.dead_letters WHERE pipeline = $1 AND state = 'discarded'),
                (SELECT extract(epoch FROM clock_timestamp() - max(since))::float8
                   FROM cutover.waiting WHERE pipeline = $1),
                (SELECT min(attempts)::bigint FROM cutover.waiting WHERE pipeline = $1)",
    ),
    of(
        S::Status(Status::WaitingFor),
        "what rows wait for",
        Select,
        &[Text],
        Some(&[Text, Text, Int8, Seconds]),
        "SELECT source_table, reason, count(*), extract(epoch FROM clock_timestamp() - min(since))::float8
         FROM cutover.waiting WHERE pipeline = $1 GROUP BY source_table, reason
         ORDER BY min(since), source_table, reason LIMIT 10",
    ),
    of(
        S::Status(Status::AppliedByMembers),
        "applied by members",
        Select,
        &[Text],
        Some(&[Text, Int8]),
        "SELECT substr(key, 9), value::bigint FROM cutover.notes WHERE pipeline = $1 AND key LIKE 'applied %'",
    ),
];

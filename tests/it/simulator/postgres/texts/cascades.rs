//! Parents whose children are to be read again.

use super::{Statement, of};
use crate::simulator::postgres::{
    recognise::Tag::{Delete, Insert, Select, Update},
    state::{State as S, cascades::Cascades},
    value::Type::{Bool, Int4, Int4s, Int8, Int8s, Text, Texts},
};

pub const TEXTS: &[Statement] = &[
    of(
        S::Cascades(Cascades::Store),
        "store cascades",
        Insert,
        &[Text, Texts, Texts, Texts, Int8s],
        None,
        "INSERT INTO cutover.cascades AS c (pipeline, child, kind, key_text, version)
         SELECT $1, x.child, x.kind, x.key, max(x.version)
         FROM unnest($2::text[], $3::text[], $4::text[], $5::bigint[]) x(child, kind, key, version)
         GROUP BY x.child, x.kind, x.key ORDER BY x.child, x.kind, x.key
         ON CONFLICT (pipeline, child, kind, md5(key_text))
         DO UPDATE SET version = excluded.version, depth = 0, held = false WHERE c.version < excluded.version",
    ),
    of(
        S::Cascades(Cascades::Next),
        "next cascades",
        Select,
        &[Text, Int8, Texts, Bool, Int8],
        Some(&[Text, Text, Text, Int8, Int4, Bool]),
        "WITH due AS (SELECT child, kind, key_text, version, depth, hides, held, since FROM cutover.cascades
              WHERE pipeline = $1 AND version <= $2 AND (NOT held OR $4 OR child <> ALL($3::text[]))),
         first AS (SELECT child, kind, key_text = '{}' AS every FROM due ORDER BY held, since, version, child, kind LIMIT 1)
         SELECT d.child, d.kind, d.key_text, d.version, d.depth, d.hides FROM due d JOIN first f
           ON d.child = f.child AND d.kind = f.kind AND (d.key_text = '{}') = f.every
         ORDER BY d.held, d.since, d.version LIMIT $5",
    ),
    of(
        S::Cascades(Cascades::Count),
        "count cascades",
        Select,
        &[Text],
        Some(&[Int8]),
        "SELECT count(*) FROM cutover.cascades WHERE pipeline = $1",
    ),
    of(
        S::Cascades(Cascades::Add),
        "add cascades",
        Insert,
        &[Text, Texts, Texts, Texts, Int8s, Int4s],
        None,
        "INSERT INTO cutover.cascades AS c (pipeline, child, kind, key_text, version, depth)
         SELECT $1, x.child, x.kind, x.key, max(x.version), max(x.depth)
         FROM unnest($2::text[], $3::text[], $4::text[], $5::bigint[], $6::int[]) x(child, kind, key, version, depth)
         GROUP BY x.child, x.kind, x.key ORDER BY x.child, x.kind, x.key
         ON CONFLICT (pipeline, child, kind, md5(key_text)) DO UPDATE
         SET version = greatest(c.version, excluded.version), depth = greatest(c.depth, excluded.depth), held = false",
    ),
    of(
        S::Cascades(Cascades::End),
        "end cascades",
        Delete,
        &[Text, Texts, Texts, Texts, Int8s],
        None,
        "DELETE FROM cutover.cascades c USING unnest($2::text[], $3::text[], $4::text[], $5::bigint[]) x(child, kind, key, version)
         WHERE c.pipeline = $1 AND c.child = x.child AND c.kind = x.kind AND c.key_text = x.key AND c.version = x.version",
    ),
    of(
        S::Cascades(Cascades::Hold),
        "hold cascades",
        Update,
        &[Text, Texts, Texts, Texts, Int8s, Bool],
        None,
        "UPDATE cutover.cascades c SET held = true, hides = c.hides OR $6, since = clock_timestamp()
         FROM unnest($2::text[], $3::text[], $4::text[], $5::bigint[]) x(child, kind, key, version)
         WHERE c.pipeline = $1 AND c.child = x.child AND c.kind = x.kind AND c.key_text = x.key AND c.version = x.version",
    ),
    of(
        S::Cascades(Cascades::Parked),
        "parked children",
        Select,
        &[Text, Text, Int8, Text, Int8],
        Some(&[Text, Text, Int8]),
        "SELECT DISTINCT ON (p.key_text) p.key_text, p.record, p.version FROM (
           SELECT key_text, version, pg_catalog.convert_from(value, 'UTF8') AS record FROM cutover.waiting
           WHERE pipeline = $1 AND source_table = $2
           UNION ALL SELECT key_text, version, record::text FROM cutover.dead_letters
           WHERE pipeline = $1 AND source_table = $2 AND state = 'open') p
         WHERE p.version < $3 AND p.key_text > $4 ORDER BY p.key_text, p.version DESC LIMIT $5",
    ),
];

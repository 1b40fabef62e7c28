//! The tables of the `cutover` schema: columns and unique indexes, as `state::format` makes them.

use super::{
    shape::{Index, Shape},
    value::Value,
};

macro_rules! own_table {
    ($module:ident = $id:literal: $($column:ident),* $(,)?) => {
        #[allow(non_upper_case_globals, dead_code, reason = "columns are named as in SQL, whether or not a statement asks")]
        pub mod $module {
            pub const ID: usize = $id;
            pub const NAMES: &[&str] = &[$(stringify!($column)),*];
            #[allow(non_camel_case_types)]
            enum Place { $($column),* }
            $(pub const $column: usize = Place::$column as usize;)*
        }
    };
}

own_table!(offsets = 0: pipeline, topic, part, log_epoch, next_offset, lease_epoch, position, clock, newest_commit_us, updated_at);
own_table!(lease = 1: pipeline, role, epoch, holder, transforms_hash, expires_at, backend_pid, backend_start);
own_table!(schemas = 2: pipeline, id, source_table, clock, seq, definition);
own_table!(fences = 3: pipeline, source_table, version);
own_table!(dead_letters = 4: id, pipeline, source_table, key_text, version, schema_id, topic, part, log_offset, sqlstate, error,
    record, created_at, state, attempts, renewed_at, mark, closed_at);
own_table!(waiting = 5: pipeline, source_table, key_text, version, part, schema_id, value, reason, since, attempts, needs);
own_table!(chunks = 6: pipeline, source_table, generation, chunk, lower, upper, rows, state, parts_done, updated_at);
own_table!(tables = 7: pipeline, source_table, generation, state, rows_estimate, rows_copied, bounds_done, not_before, position,
    requested_at, started_at, finished_at, updated_at);
own_table!(notes = 8: pipeline, key, value, updated_at);
own_table!(checkpoints = 9: pipeline, name, details, created_at);
own_table!(requests = 10: id, pipeline, command, arguments, state, answer, created_at, updated_at);
own_table!(transforms = 11: pipeline, seq, hash, log_epoch, offsets, plans, since);
own_table!(replays = 12: pipeline, id, state, details, outcome, started_at, resumed_at, resumed_done, finished_at);
own_table!(events = 13: pipeline, sequence, id, body, carried);
own_table!(cascades = 14: pipeline, child, kind, key_text, version, depth, held, hides, since);
// Its `lower` is what `md5(coalesce(lower, ''))` is of: no bound is an empty text.
own_table!(migration_log = 15: pipeline, source_table, lower, upper, state, rows, source_checksum, target_checksum, pass);

/// The tables, in the order of their numbers.
pub fn shapes() -> Vec<Shape> {
    let open: fn(&[Value]) -> bool = |row| row[dead_letters::state] == Value::text("open");
    let running: fn(&[Value]) -> bool = |row| row[replays::state] == Value::text("running");
    let shape = |name: &str, columns: &[&str], key: &[usize], indexes: Vec<Index>| Shape {
        name: format!("cutover.{name}"),
        columns: columns.iter().map(|column| (*column).to_owned()).collect(),
        key: key.to_vec(),
        indexes,
        not_null: key.to_vec(),
        check: None,
        foreign: Vec::new(),
        referring: Vec::new(),
    };
    let keyed = |name: &str, columns: &[&str], keys: usize| {
        let key: Vec<usize> = (0..keys).collect();
        let index = Index { name: format!("{name}_pkey"), columns: key.clone(), only: None };
        shape(name, columns, &key, vec![index])
    };
    let unique = |name: &str, columns: &[usize], only| Index { name: name.to_owned(), columns: columns.to_vec(), only };
    let dead = [dead_letters::pipeline, dead_letters::source_table, dead_letters::key_text, dead_letters::version];
    let dead = vec![
        unique("dead_letters_pkey", &[dead_letters::id], None),
        unique("dead_letters_open_rows", &dead, Some(open)),
    ];
    let replay = vec![
        unique("replays_pkey", &[replays::pipeline, replays::id], None),
        unique("replays_running", &[replays::pipeline], Some(running)),
    ];
    let waits = [waiting::pipeline, waiting::source_table, waiting::key_text, waiting::version];
    let cascade = [cascades::pipeline, cascades::child, cascades::kind, cascades::key_text];
    vec![
        keyed("offsets", offsets::NAMES, 3),
        keyed("lease", lease::NAMES, 2),
        keyed("schemas", schemas::NAMES, 2),
        keyed("fences", fences::NAMES, 2),
        shape("dead_letters", dead_letters::NAMES, &[dead_letters::id], dead),
        shape("waiting", waiting::NAMES, &waits, vec![unique("waiting_rows", &waits, None)]),
        keyed("chunks", chunks::NAMES, 4),
        keyed("tables", tables::NAMES, 2),
        keyed("notes", notes::NAMES, 2),
        keyed("checkpoints", checkpoints::NAMES, 2),
        keyed("requests", requests::NAMES, 1),
        keyed("transforms", transforms::NAMES, 2),
        shape("replays", replays::NAMES, &[replays::pipeline, replays::id], replay),
        keyed("events", events::NAMES, 2),
        shape("cascades", cascades::NAMES, &cascade, vec![unique("cascades_keys", &cascade, None)]),
        keyed("migration_log", migration_log::NAMES, 3),
    ]
}

//! The tables of the `cutover` schema: columns and unique indexes, as `database::postgres::state` makes them.

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
own_table!(lease = 1: pipeline, role, epoch, holder, expires_at, backend_pid, backend_start);
own_table!(schemas = 2: pipeline, id, source_table, clock, seq, definition);
own_table!(fences = 3: pipeline, source_table, version);
own_table!(dead_letters = 4: id, pipeline, source_table, key_text, version, schema_id, topic, part, log_offset, sqlstate, error,
    record, created_at, state, attempts, renewed_at, mark);
own_table!(waiting = 5: pipeline, source_table, key_text, version, part, schema_id, value, reason, since, attempts);
own_table!(chunks = 6: pipeline, source_table, generation, chunk, lower, upper, rows, state, parts_done, updated_at);
own_table!(tables = 7: pipeline, source_table, generation, state, rows_estimate, rows_copied, bounds_done, not_before, position,
    requested_at, started_at, finished_at, updated_at);
own_table!(notes = 8: pipeline, key, value, updated_at);

/// The tables, in the order of their numbers.
pub fn shapes() -> Vec<Shape> {
    let open: fn(&[Value]) -> bool = |row| row[dead_letters::state] == Value::text("open");
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
    let waits = [waiting::pipeline, waiting::source_table, waiting::key_text, waiting::version];
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
    ]
}

//! What bounds the worker's memory and is set in the environment alone, before a process begins.
//!
//! Rows may have megabytes, and every one leaves buffers of its size behind. glibc gives memory back to the system only
//! where it was asked for in pieces above a threshold, which it raises to the largest piece that it has seen, and the
//! MySQL library keeps up to 128 buffers of up to 4 MB each. Neither has another way in that needs no unsafe code
//! (docs/adr/0022-memory-is-bounded-by-bytes.md), so that the worker begins once more, as the same process, with these
//! variables set. Those that somebody has set stay.

use std::{env, ffi::OsStr, os::unix::process::CommandExt as _, process::Command};

/// Each with the value that it is given.
const VARIABLES: [(&str, &str); 4] = [
    // Pieces from here on are the system's again as soon as they are free.
    ("MALLOC_MMAP_THRESHOLD_", "1048576"),
    ("MALLOC_TRIM_THRESHOLD_", "1048576"),
    // Heaps that keep what is free: one for every thread otherwise, up to eight for each core.
    ("MALLOC_ARENA_MAX", "4"),
    ("MYSQL_ASYNC_BUFFER_SIZE_CAP", "65536"),
];

/// Begins anew with the variables that are missing; returns where none is, or where that cannot be done.
pub(super) fn bound() {
    let missing = missing(|name| env::var_os(name).is_some());
    let (false, Ok(program)) = (missing.is_empty(), env::current_exe()) else { return };
    let mut arguments = env::args_os();
    let mut command = Command::new(program);
    command.arg0(arguments.next().as_deref().unwrap_or(OsStr::new("cutover")));
    // It only comes back if the program cannot be begun: it has been replaced, say. Then it goes on as it is.
    let _ = command.args(arguments).envs(missing).exec();
}

fn missing(is_set: impl Fn(&str) -> bool) -> Vec<(&'static str, &'static str)> {
    VARIABLES.into_iter().filter(|(name, _)| !is_set(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_somebody_has_set_stays() {
        let missing = missing(|name| name == "MALLOC_ARENA_MAX");
        assert_eq!(missing.len(), VARIABLES.len() - 1);
        assert!(missing.iter().all(|(name, _)| *name != "MALLOC_ARENA_MAX"));
        assert!(super::missing(|_| true).is_empty(), "it begins anew once");
    }
}

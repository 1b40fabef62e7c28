//! Style that a machine can hold: ARCHITECTURE.md's import table, names, file lengths.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Which of our modules each module may import. The drawing in ARCHITECTURE.md is this table.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("observe", &["model"]),
    ("database", &["model", "observe"]),
    ("log", &["model", "observe"]),
    ("transform", &["model", "observe", "database"]),
    ("source", &["model", "observe", "database"]),
    // A batch carries log offsets and control records, so that the sink can store them with the rows.
    ("target", &["model", "observe", "database", "log"]),
    ("snapshot", &["model", "observe", "database", "log"]),
    ("pipeline", &["model", "observe", "log", "source", "target", "snapshot"]),
    ("config", &["model", "database", "log", "source", "target"]),
    (
        "control",
        &["model", "observe", "database", "log", "transform", "source", "target", "snapshot", "pipeline", "config"],
    ),
    (
        "cli",
        &[
            "model",
            "observe",
            "database",
            "log",
            "transform",
            "source",
            "target",
            "snapshot",
            "pipeline",
            "config",
            "control",
        ],
    ),
    ("main", &["cli", "cutover"]),
    ("lib", &[]),
];

/// Words that say nothing about what a module is for.
const EMPTY_NAMES: &[&str] = &["utils", "util", "common", "base", "manager", "helper", "helpers", "misc", "types"];

/// A file longer than this has a second idea in it.
const LINES_MAX: usize = 800;

fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    walk(&root.join(folder), &mut found);
    found.sort();
    found
        .into_iter()
        .map(|path| (path.strip_prefix(root).unwrap().to_owned(), fs::read_to_string(&path).unwrap()))
        .collect()
}

fn top_module(path: &Path) -> String {
    let inside = path.strip_prefix("src").unwrap();
    inside.components().next().unwrap().as_os_str().to_string_lossy().trim_end_matches(".rs").to_owned()
}

/// The top-level modules that a source file names after `crate::`, also inside `use crate::{a::…, b::…}`.
fn imports(text: &str) -> Vec<String> {
    let code: String = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    let mut found = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        if let Some(group) = rest.strip_prefix('{') {
            let mut depth = 0;
            let mut word = String::new();
            let mut fresh = true;
            for c in group.chars() {
                match c {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => fresh = true,
                    c if depth == 0 && fresh && (c.is_alphanumeric() || c == '_') => word.push(c),
                    _ if depth == 0 && fresh && !word.is_empty() => {
                        found.push(std::mem::take(&mut word));
                        fresh = false;
                    }
                    _ => {}
                }
            }
            if !word.is_empty() {
                found.push(word);
            }
        } else {
            found.push(rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect());
        }
    }
    found
}

#[test]
fn modules_import_only_what_the_architecture_allows() {
    let mut wrong = Vec::new();
    for (path, text) in sources("src") {
        let module = top_module(&path);
        let allowed = MAY_IMPORT.iter().find(|(name, _)| *name == module);
        let Some((_, allowed)) = allowed else {
            wrong.push(format!("{}: module `{module}` is not in the table", path.display()));
            continue;
        };
        for import in imports(&text) {
            if import != module && !allowed.contains(&import.as_str()) {
                wrong.push(format!("{}: `{module}` must not import `{import}`", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_import_scan_sees_groups_and_paths() {
    let text =
        "use crate::{\n    log::{A, b::C},\n    model::D,\n};\nfn f() { crate::observe::now_us(); }\n// crate::cli";
    assert_eq!(imports(text), ["log", "model", "observe"]);
}

#[test]
fn every_module_says_what_it_is_for_and_none_has_an_empty_name() {
    for (path, text) in sources("src") {
        assert!(text.starts_with("//!"), "{} has no module documentation", path.display());
        let stem = path.file_stem().unwrap().to_string_lossy().into_owned();
        assert!(!EMPTY_NAMES.contains(&stem.as_str()), "{}: `{stem}` says nothing", path.display());
    }
}

#[test]
fn files_fit_in_a_head() {
    for (path, text) in sources("src") {
        let lines = text.lines().count();
        assert!(lines <= LINES_MAX, "{} has {lines} lines: look for the second idea in it", path.display());
    }
}

#[test]
fn nothing_committed_names_this_machine() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = root.to_string_lossy().into_owned();
    for (path, text) in sources("src").into_iter().chain(sources("tests")) {
        assert!(!text.contains(&folder), "{} names the folder of this checkout", path.display());
    }
}

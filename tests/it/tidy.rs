//! Style that a machine can hold: ARCHITECTURE.md's import table, names, lengths, and that docs/rules.md has every rule
//! that is cited, with tests that exist.
//!
//! It reads the sources as text, and relies on what rustfmt makes of them. What does not hold yet is in short lists
//! here, which may only shrink: an entry that nothing needs any more fails too.

use std::{
    collections::{BTreeMap, BTreeSet},
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
    ("snapshot", &["model", "observe", "log"]),
    ("state", &["model", "observe", "database", "log", "snapshot"]),
    ("source", &["model", "observe", "database", "log", "transform", "snapshot", "state"]),
    ("target", &["model", "observe", "database", "log", "transform", "snapshot", "state"]),
    // The two traits, and no kind of database.
    ("pipeline", &["model", "observe", "log", "snapshot", "source", "target"]),
    // The two traits, and what the state knows.
    ("verify", &["model", "observe", "log", "snapshot", "state", "source", "target"]),
    ("config", &["model", "database", "log", "source", "target"]),
    (
        "control",
        &[
            "model",
            "observe",
            "database",
            "log",
            "transform",
            "snapshot",
            "state",
            "source",
            "target",
            "pipeline",
            "verify",
            "config",
        ],
    ),
    (
        "cli",
        &[
            "model",
            "observe",
            "database",
            "log",
            "transform",
            "snapshot",
            "state",
            "source",
            "target",
            "pipeline",
            "verify",
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
const LINES_MAX: usize = 500;

/// Files that are longer all the same.
const LONG_FILES: &[&str] = &[];

/// A function longer than this has one as well.
const FUNCTION_LINES_MAX: usize = 70;

/// Functions that are longer all the same, as `file: function`.
const LONG_FUNCTIONS: &[&str] = &[];

/// rustfmt holds code to this width and leaves comments alone.
const COMMENT_COLUMNS_MAX: usize = 120;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The files below a folder whose names end so, with what is in them, by their paths from the root.
fn files(folder: &str, extension: &str) -> Vec<(PathBuf, String)> {
    fn walk(folder: &Path, extension: &str, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, extension, found);
            } else if path.extension().is_some_and(|found| found == extension) {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(&root().join(folder), extension, &mut found);
    found.sort();
    found
        .into_iter()
        .map(|path| (path.strip_prefix(root()).unwrap().to_owned(), fs::read_to_string(&path).unwrap()))
        .collect()
}

fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    files(folder, "rs")
}

/// What is found and not on the list, and what is on the list and not found any more.
fn off_the_list(found: &[(String, String)], list: &[&str]) -> Vec<String> {
    let new = found.iter().filter(|(name, _)| !list.contains(&name.as_str())).map(|(_, what)| what.clone());
    let gone = list.iter().filter(|entry| !found.iter().any(|(name, _)| name == *entry));
    new.chain(gone.map(|entry| format!("{entry} is as it should be: take it off the list"))).collect()
}

fn top_module(path: &Path) -> String {
    let inside = path.strip_prefix("src").unwrap();
    inside.components().next().unwrap().as_os_str().to_string_lossy().trim_end_matches(".rs").to_owned()
}

/// How many modules a file is below the crate's root.
fn depth(path: &Path) -> usize {
    let inside = path.strip_prefix("src").unwrap();
    let folders = inside.components().count() - 1;
    match inside.file_stem().unwrap().to_str().unwrap() {
        "mod" => folders,
        "lib" | "main" if folders == 0 => 0,
        _ => folders + 1,
    }
}

/// The first words of a path or a group of paths: `a::b` or `{a::…, b::…}`.
fn first_words(paths: &str) -> Vec<String> {
    let Some(group) = paths.strip_prefix('{') else {
        return vec![paths.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()];
    };
    let mut found = Vec::new();
    let mut depth = 0;
    let mut word = String::new();
    let mut fresh = true;
    for c in group.chars() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                found.extend(Some(std::mem::take(&mut word)).filter(|word| !word.is_empty()));
                fresh = true;
            }
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
    found
}

/// The top-level modules that a source file names after `crate::`, also inside `use crate::{a::…, b::…}`.
fn imports(text: &str) -> Vec<String> {
    let code: String = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    code.match_indices("crate::").flat_map(|(at, crate_)| first_words(&code[at + crate_.len()..])).collect()
}

/// The top-level modules that a file so deep names after as many `super::` as lead to the root.
fn escapes(text: &str, depth: usize) -> Vec<String> {
    const UP: &str = "super::";
    let mut found = Vec::new();
    // The closing lines of the inline modules that are open.
    let mut inline: Vec<String> = Vec::new();
    let mut rest = text;
    while let Some(line) = rest.lines().next() {
        let code = line.trim_start();
        if inline.last().is_some_and(|end| end == line) {
            inline.pop();
        }
        let ups = if code.starts_with("//") { "" } else { line };
        for (at, _) in ups.match_indices(UP).filter(|(at, _)| !line[..*at].ends_with(UP)) {
            let after = rest[at..].trim_start_matches(UP);
            if depth > 0 && (rest.len() - at - after.len()) / UP.len() == depth + inline.len() {
                found.extend(first_words(after));
            }
        }
        let head = code.trim_start_matches("pub ").trim_start_matches("pub(crate) ").trim_start_matches("pub(super) ");
        if head.starts_with("mod ") && head.ends_with(" {") {
            inline.push(format!("{}}}", &line[..line.len() - code.len()]));
        }
        rest = rest.split_once('\n').map_or("", |(_, rest)| rest);
    }
    found
}

/// The modules of `control` that each of its modules names.
fn within_control() -> BTreeMap<String, BTreeSet<String>> {
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (path, text) in sources("src/control") {
        let inside: Vec<_> = path.strip_prefix("src/control").unwrap().components().collect();
        let module = inside[0].as_os_str().to_string_lossy().trim_end_matches(".rs").to_owned();
        // What tests beside the code name is nobody's dependency.
        let code = text.split("\n#[cfg(test)]").next().unwrap();
        let lines: Vec<&str> = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
        let code = lines.join("\n");
        let up = "super::".repeat(inside.len());
        let sideways = code.match_indices(&up).filter(|(at, _)| !code[..*at].ends_with("super::"));
        let mut named: Vec<String> = sideways.flat_map(|(at, up)| first_words(&code[at + up.len()..])).collect();
        let from_root = code.match_indices("control::");
        named.extend(from_root.flat_map(|(at, root)| first_words(&code[at + root.len()..])));
        found.entry(module).or_default().extend(named);
    }
    let modules: BTreeSet<String> = found.keys().cloned().collect();
    for (module, named) in &mut found {
        named.retain(|name| name != module && modules.contains(name));
    }
    found
}

/// The modules that lead back to themselves.
fn in_a_circle(imports: &BTreeMap<String, BTreeSet<String>>) -> Vec<&str> {
    let leads_back = |start: &String| {
        let (mut seen, mut left) = (BTreeSet::new(), vec![start]);
        while let Some(module) = left.pop() {
            left.extend(imports.get(module).into_iter().flatten().filter(|next| seen.insert(next.as_str())));
        }
        seen.contains(start.as_str())
    };
    imports.keys().filter(|module| leads_back(module)).map(String::as_str).collect()
}

/// The name of the function that begins on a line.
fn function_name(line: &str) -> Option<&str> {
    let (before, after) = line.trim_start().split_once("fn ")?;
    let qualifies = |word: &str| {
        ["const", "async", "unsafe", "extern"].contains(&word) || word.starts_with(['p', '"']) || word.ends_with(')')
    };
    let name = after.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default();
    ((before.is_empty() || before.ends_with(' ')) && before.split_whitespace().all(qualifies)).then_some(name)
}

/// Every function with the number of its lines, from `fn` to its closing brace, which stands where its line begins.
fn functions(text: &str) -> Vec<(&str, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let Some(name) = function_name(line) else { continue };
        let last = |line: &str| line.split("//").next().unwrap_or_default().trim_end().chars().next_back();
        let head = lines[at..].iter().position(|line| matches!(last(line), Some('{' | '}' | ';'))).unwrap_or_default();
        let end = format!("{}}}", &line[..line.len() - line.trim_start().len()]);
        let body = match last(lines[at + head]) {
            Some('{') => lines[at + head..].iter().position(|line| **line == end).unwrap_or(usize::MAX - at - head),
            _ => 0,
        };
        found.push((name, (head + body).saturating_add(1)));
    }
    found
}

/// Files that stand beside a folder of their name.
fn beside_a_folder(paths: &[PathBuf]) -> Vec<&PathBuf> {
    paths.iter().filter(|path| paths.iter().any(|other| other.starts_with(path.with_extension("")))).collect()
}

/// The numbers of the rules that a text cites: `rule 13`, `rules 2, 4 to 7 and 10`, `rule_8_and_9_…`.
fn cited(text: &str) -> BTreeSet<u32> {
    let text = text.lines().map(|line| line.trim_start().trim_start_matches(['/', '!']).trim()).collect::<Vec<_>>();
    let text = text.join(" ").to_lowercase();
    let mut found = BTreeSet::new();
    for (at, word) in text.match_indices("rule") {
        let after = &text[at + word.len()..];
        let mut rest = after.strip_prefix('s').unwrap_or(after).strip_prefix([' ', '_']).unwrap_or_default();
        if text[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let mut from: Option<u32> = None;
        loop {
            let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            let Ok(number) = rest[..digits].parse() else { break };
            found.extend(from.unwrap_or(number)..=number);
            rest = &rest[digits..];
            if let Some((_, behind)) = rest.strip_prefix(" (").and_then(|aside| aside.split_once(')')) {
                rest = behind;
            }
            let more = [", and ", ", ", " and ", "_and_"].into_iter().find_map(|word| rest.strip_prefix(word));
            from = rest.strip_prefix(" to ").map(|_| number);
            let Some(next) = more.or_else(|| rest.strip_prefix(" to ")) else { break };
            rest = next;
        }
    }
    found
}

/// The rules of docs/rules.md: the numbers of their headings, each with the tests that its list names.
fn rules(text: &str) -> Vec<(u32, Vec<&str>)> {
    let mut found: Vec<(u32, Vec<&str>)> = Vec::new();
    for line in text.lines() {
        let heading = line.strip_prefix("## Rule ").and_then(|rest| rest.split_once(": "));
        if let Some((number, _)) = heading {
            found.push((number.parse().unwrap(), Vec::new()));
        } else if let Some(test) = line.strip_prefix("- `").and_then(|rest| rest.strip_suffix('`')) {
            found.last_mut().unwrap().1.push(test);
        }
    }
    found
}

/// The files where a test may be that docs/rules.md names, and its name there.
fn place(test: &str) -> (Vec<String>, &str) {
    if let Some((file, name)) = test.split_once(": ") {
        return (vec![file.to_owned()], name);
    }
    let (module, name) = test.rsplit_once("::").unwrap_or(("", test));
    let module = module.replace("::", "/");
    (vec![format!("tests/it/{module}.rs"), format!("tests/it/{module}/mod.rs")], name)
}

/// Whether a source file has this test, or this variant of the simulator's mutations.
fn has_test(text: &str, name: &str) -> bool {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    if name.starts_with(char::is_uppercase) {
        return lines.contains(&format!("{name},").as_str());
    }
    let is_test = |line: &&str| line.starts_with("#[test]") || line.starts_with("#[tokio::test");
    (0..lines.len()).filter(|at| function_name(lines[*at]) == Some(name)).any(|at| {
        lines[..at].iter().rev().take_while(|line| line.starts_with("#[") || line.starts_with("//")).any(is_test)
    })
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
        for import in imports(&text).into_iter().chain(escapes(&text, depth(&path))) {
            if import != module && !allowed.contains(&import.as_str()) {
                wrong.push(format!("{}: `{module}` must not import `{import}`", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn control_has_no_circle_and_names_no_kind_of_database() {
    let imports = within_control();
    assert!(imports["start"].contains("leader"), "{imports:?}");
    let circle = in_a_circle(&imports);
    assert!(circle.is_empty(), "these lead back to themselves: {circle:?}");
    for (path, text) in sources("src/control").into_iter().chain(sources("src/pipeline")) {
        for word in ["PgError", "tokio_postgres", "PostgresTarget", "mysql_async", "aws_sdk"] {
            assert!(!text.contains(word), "{} names {word}", path.display());
        }
    }
}

#[test]
fn a_circle_is_seen_and_what_only_leads_into_it_is_not_part_of_it() {
    let of = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let imports = [("a", of(&["b"])), ("b", of(&["c"])), ("c", of(&["b"])), ("d", of(&["a"]))];
    let imports = imports.map(|(module, named)| (module.to_owned(), named)).into();
    assert_eq!(in_a_circle(&imports), ["b", "c"]);
}

#[test]
fn the_import_scan_sees_groups_and_paths() {
    let text =
        "use crate::{\n    log::{A, b::C},\n    model::D,\n};\nfn f() { crate::observe::now_us(); }\n// crate::cli";
    assert_eq!(imports(text), ["log", "model", "observe"]);
    assert_eq!(first_words("{a, b}"), ["a", "b"]);
}

#[test]
fn the_import_scan_sees_paths_that_climb_to_the_root() {
    let text = "use super::super::log;\nuse super::near;\n// super::super::cli\nmod tests {\n    use super::super::here;\n    \
                use super::super::super::{\n        a::B, c,\n    };\n}\nuse super::super::model::D;\n";
    assert_eq!(escapes(text, 2), ["log", "a", "c", "model"]);
    assert_eq!(depth(Path::new("src/source/mysql/reader.rs")), 3);
    assert_eq!(depth(Path::new("src/source/mysql/mod.rs")), 2);
    assert_eq!(depth(Path::new("src/lib.rs")), 0);
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
    let mut long = Vec::new();
    for (path, text) in sources("src") {
        let (path, lines) = (path.display().to_string(), text.lines().count());
        if lines > LINES_MAX {
            long.push((path.clone(), format!("{path} has {lines} lines: look for the second idea in it")));
        }
    }
    let wrong = off_the_list(&long, LONG_FILES);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn functions_fit_in_a_head() {
    let mut long = Vec::new();
    for (path, text) in sources("src") {
        for (name, lines) in functions(&text).into_iter().filter(|(_, lines)| *lines > FUNCTION_LINES_MAX) {
            let name = format!("{}: {name}", path.display());
            let what = format!("{name} has {lines} lines: look for the second idea in it");
            long.push((name, what));
        }
    }
    let wrong = off_the_list(&long, LONG_FUNCTIONS);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn functions_are_counted_to_their_closing_brace() {
    let text = "pub(in super::super) async fn a<T>(\n    b: [u8; 2],\n) -> T\nwhere\n    T: C, // why;\n{\n    if d {\n    }\n}\n\
                trait E {\n    fn f(&self);\n    fn g() {}\n}\n// fn h() {\nlet i = \"fn \";\nconst fn j() {\n    fn k() {\n    }\n}\n";
    assert_eq!(functions(text), [("a", 9), ("f", 1), ("g", 1), ("j", 4), ("k", 2)]);
}

#[test]
fn a_list_of_exceptions_may_only_shrink() {
    let found = [("a".to_owned(), "a is long".to_owned()), ("b".to_owned(), "b is long".to_owned())];
    assert_eq!(off_the_list(&found, &["a", "b"]), Vec::<String>::new());
    assert_eq!(off_the_list(&found, &["a"]), ["b is long"]);
    assert_eq!(off_the_list(&found[..1], &["a", "b"]), ["b is as it should be: take it off the list"]);
}

#[test]
fn comments_fit_on_a_line() {
    let mut wrong = Vec::new();
    for (path, text) in sources("src").into_iter().chain(sources("tests")) {
        for (at, line) in text.lines().enumerate().filter(|(_, line)| line.trim_start().starts_with("//")) {
            let columns = line.chars().count();
            if columns > COMMENT_COLUMNS_MAX {
                wrong.push(format!("{}:{}: a comment of {columns} columns", path.display(), at + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Otherwise it polls in an order of chance, and a run of the simulator is another each time.
#[test]
fn what_is_selected_is_polled_in_the_order_of_its_writing() {
    let mut wrong = Vec::new();
    for (path, text) in sources("src") {
        for (at, _) in text.match_indices("select! {") {
            if !text[at + "select! {".len()..].trim_start().starts_with("biased;") {
                wrong.push(format!("{}:{}: select! without `biased`", path.display(), text[..at].lines().count()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_module_with_a_folder_is_the_mod_file_in_it() {
    let paths: Vec<PathBuf> = sources("src").into_iter().chain(sources("tests")).map(|(path, _)| path).collect();
    assert_eq!(beside_a_folder(&paths), Vec::<&PathBuf>::new(), "move it to mod.rs in its folder");
}

#[test]
fn a_file_beside_a_folder_of_its_name_is_seen() {
    let paths = ["src/a.rs", "src/a/b.rs", "src/ab.rs", "src/c/mod.rs"].map(PathBuf::from);
    assert_eq!(beside_a_folder(&paths), [&paths[0]]);
}

#[test]
fn every_rule_that_is_cited_is_written_down_with_tests_that_exist() {
    let written = fs::read_to_string(root().join("docs/rules.md")).unwrap();
    let rules = rules(&written);
    let mut wrong = Vec::new();
    for (number, tests) in &rules {
        if tests.is_empty() {
            wrong.push(format!("docs/rules.md: rule {number} names no test"));
        }
        for test in tests {
            let (files, name) = place(test);
            let text = files.iter().find_map(|file| fs::read_to_string(root().join(file)).ok());
            if !text.is_some_and(|text| has_test(&text, name)) {
                wrong.push(format!("docs/rules.md: rule {number} names `{test}`, which does not exist"));
            }
        }
    }
    let numbers: BTreeSet<u32> = rules.iter().map(|(number, _)| *number).collect();
    if numbers.len() != rules.len() {
        wrong.push("docs/rules.md: a number has two headings".to_owned());
    }
    let pages = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"].into_iter().filter_map(|page| {
        let text = fs::read_to_string(root().join(page)).ok()?;
        Some((PathBuf::from(page), text))
    });
    for (path, text) in pages.chain(sources("src")).chain(sources("tests")).chain(files("docs", "md")) {
        for number in cited(&text).difference(&numbers) {
            wrong.push(format!("{}: rule {number} has no heading in docs/rules.md", path.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn citations_are_seen_in_every_form() {
    let numbers = |text| cited(text).into_iter().collect::<Vec<_>>();
    assert_eq!(numbers("/// Why (rule 13), and Rule 3."), [3, 13]);
    assert_eq!(numbers("//! rules 1, 4 to 7 and 10, 23 (the fence), and 28: what"), [1, 4, 5, 6, 7, 10, 23, 28]);
    assert_eq!(numbers("    /// broken over two lines (rule\n    /// 12)"), [12]);
    assert_eq!(numbers("async fn rule_8_and_9_hold() {"), [8, 9]);
    assert_eq!(numbers("alert rules, a ruler 5, overrule 6, rule of 7"), Vec::<u32>::new());
}

#[test]
fn rules_and_their_tests_are_read() {
    let text = "# Title\n\n## Rule 3: a name\n\nTests:\n\n- `a::b`\n- `src/c.rs: d`\n\n## Rule 4: none\n";
    assert_eq!(rules(text), [(3, vec!["a::b", "src/c.rs: d"]), (4, vec![])]);
    assert_eq!(place("src/c.rs: d"), (vec!["src/c.rs".to_owned()], "d"));
    assert_eq!(place("a::b::c"), (vec!["tests/it/a/b.rs".to_owned(), "tests/it/a/b/mod.rs".to_owned()], "c"));
    let text = "    #[tokio::test]\n    /// Why.\n    async fn a() {\n    }\n    fn b() {\n    }\n    Broken,\n";
    assert!(has_test(text, "a") && has_test(text, "Broken"));
    assert!(!has_test(text, "b") && !has_test(text, "c") && !has_test(text, "Brok"));
}

#[test]
fn nothing_committed_names_this_machine() {
    let folder = root().to_string_lossy().into_owned();
    for (path, text) in sources("src").into_iter().chain(sources("tests")) {
        assert!(!text.contains(&folder), "{} names the folder of this checkout", path.display());
    }
}

//! The configuration file: defaults, mistakes, and that no message shows a value.

use super::*;

const SMALLEST: &str = r#"
    name = "cart"
    [source]
    url = "mysql://u:${PASSWORD}@legacy:3306/shop"
    [target]
    url = "postgresql://u:p@modern:5432/shop"
"#;

fn parse(text: &str) -> Result<Config, Vec<Mistake>> {
    Config::parse(text, PathBuf::from("/etc/cutover"), &|name| (name == "PASSWORD").then(|| "s#c/r:t@".into()))
}

#[test]
fn the_smallest_file_has_defaults_for_everything_else() {
    let config = parse(SMALLEST).expect("valid");
    assert_eq!(config.name, "cart");
    assert_eq!(config.source.url, "mysql://u:s%23c%2Fr%3At%40@legacy:3306/shop");
    assert_eq!(config.log.url, "file:cutover-data/log");
    assert_eq!(config.http.listen, "127.0.0.1:7070");
    assert_eq!(config.path(&config.transform.folder), PathBuf::from("/etc/cutover/transforms"));
}

#[test]
fn every_mistake_is_reported_with_its_key_path() {
    let mistakes = parse(
        r#"
        nmae = "cart"
        [source]
        url = "mysql://u:${NOT_SET}@legacy/shop"
        tabels = ["a"]
        tables = "a"
        [target]
        after_copy = 5
        [http]
        listen = 7070
        [snapshot]
        chunk_size = 5
    "#,
    )
    .expect_err("many mistakes");
    let text = render(Path::new("c.toml"), &mistakes);
    for part in [
        "nmae: unknown key",
        "name: is missing",
        "NOT_SET is not set",
        "source.tabels: unknown key; allowed are url, tables, zero_dates",
        "source.tables: must be a list, such as [\"a\", \"b\"], and is of the type string",
        "target.after_copy: must be text in quotes, and is of the type integer",
        "target.url: is missing",
        "http.listen: must be text in quotes",
        "snapshot.chunk_size: unknown key; allowed are chunk_rows",
    ] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
}

#[test]
fn values_out_of_range_are_reported_with_what_is_allowed() {
    let text = format!("{SMALLEST}\n[snapshot]\nchunk_rows = 0\nlag_max_seconds = -1\n[http]\nlisten = \"here\"");
    let mistakes = parse(&text).expect_err("three mistakes");
    assert_eq!(mistakes.len(), 3, "{mistakes:?}");
}

#[test]
fn a_foreign_scheme_is_refused_without_showing_the_password() {
    let text = SMALLEST.replace("postgresql://u:p@", "oracle://u:hunter2@");
    let mistakes = parse(&text).expect_err("wrong scheme");
    assert!(mistakes[0].message.contains("postgresql://") && !format!("{mistakes:?}").contains("hunter2"));
}

#[test]
fn no_mistake_shows_what_a_variable_holds() {
    for value in ["hunter2", "hunter2://u@h/b", "mysql://u:p@1?hunter2@h/b", "x\n`, expected hunter2`, expected 'y'"] {
        for line in [
            "source.url = '${S}'",
            "target.url = '${S}'",
            "source.zero_dates = '${S}'",
            "source.cascades = '${S}'",
            "source.tables = '${S}'",
            "log.url = '${S}'",
            "log.partitions = '${S}'",
            "http.listen = '${S}'",
            "http = '${S}'",
            "name = 'A ${S}'",
        ] {
            let text = format!("{line}\n");
            let mistakes = Config::parse(&text, PathBuf::new(), &|_| Some(value.to_owned())).expect_err(line);
            assert!(mistakes.iter().all(|mistake| !mistake.message.contains("hunter2")), "{line}: {mistakes:?}");
        }
    }
    let config = parse(&SMALLEST.replace("u:p@", "u:hunter2@").replace("${PASSWORD}", "hunter2")).expect("valid");
    assert!(!format!("{config:?}").contains("hunter2"), "{config:?}");
}

#[test]
fn a_mistake_is_told_once_and_without_the_value() {
    for (text, key, part) in [
        ("name = 'a'\nsource = 'mysql://u:hunter2@h/b'\ntarget.url = 'postgresql://u@h/b'", "source", "a section"),
        (
            "name = 'a'\nsource.url = 'mysql://u@h/b'\nsource.tables = 'hunter2'\ntarget.url = 'postgresql://u@h/b'",
            "source.tables",
            "a list",
        ),
        (
            "name = 'a'\nsource.url = 'mysql://u@h/b'\ntarget.url = 'postgresql://u:hunter2@h'",
            "target.url",
            "names no database",
        ),
        (
            "name = 'a'\nsource.url = 'mysql://u:hunter2@h'\ntarget.url = 'postgresql://u@h/b'",
            "source.url",
            "names no database",
        ),
        ("name = 'a'\nsource.url = '${NONE}'\ntarget.url = 'postgresql://u@h/b'", "source.url", "NONE is not set"),
        ("name = 'a'\n[source]\nurl = 'mysql://u:hunter2@h/b\n[target]\n", "", "line 3, column"),
    ] {
        let mistakes = parse(text).expect_err(text);
        assert_eq!(mistakes.len(), 1, "{mistakes:?}");
        assert_eq!(mistakes[0].key, key);
        assert!(mistakes[0].message.contains(part), "{mistakes:?}");
        assert!(!format!("{mistakes:?}").contains("hunter2"), "{mistakes:?}");
    }
}

#[test]
fn a_target_that_is_mysql_has_a_postgresql_beside_it() {
    let mysql = SMALLEST.replace("postgresql://u:p@", "mysql://u:p@");
    let mistakes = parse(&mysql).expect_err("nothing runs the transforms");
    assert!(mistakes.iter().any(|mistake| mistake.key == "transform.engine"), "{mistakes:?}");
    let config = parse(&format!("{mysql}\n[transform]\nengine = \"postgresql://u:hunter2@h/b\"")).expect("valid");
    assert_eq!(config.state().url, "postgresql://u:hunter2@h/b");
    assert!(!format!("{config:?}").contains("hunter2"), "{config:?}");
    let of_source = "name = 'a'\nsource.url = 'postgresql://u@s/b'\ntarget.url = 'mysql://u@t/shop'";
    let config = parse(of_source).expect("valid");
    assert_eq!((config.target.schema.as_str(), config.state().url), ("shop", "postgresql://u@s/b"));
    for (text, key) in [
        ("source.url = 'postgresql://u@s/b'\ntarget.url = 'mysql://u@t'", "target.url"),
        ("source.url = 'postgresql://u@s/b'\ntarget.url = 'mysql://u@t/b'\ntarget.schema = 'x'", "target.schema"),
        (
            "source.url = 'mysql://u@s/b'\ntarget.url = 'mysql://u@t/b'\ntransform.engine = 'mysql://u@e/b'",
            "transform.engine",
        ),
        (
            "source.url = 'mysql://u@s/b'\ntarget.url = 'postgresql://u@t/b'\ntransform.engine = 'postgresql://u@e/b'",
            "transform.engine",
        ),
    ] {
        let mistakes = parse(&format!("name = 'a'\n{text}")).expect_err(key);
        assert!(mistakes.iter().any(|mistake| mistake.key == key), "{text}: {mistakes:?}");
    }
}

fn with_reverse(more: &str) -> String {
    format!("{SMALLEST}\n{more}")
}

#[test]
fn the_way_back_goes_from_the_target_to_the_source_under_a_name_of_its_own() {
    let config = parse(&with_reverse("[reverse]\n[log]\npartitions = 2")).expect("valid");
    let back = config.reversed().expect("a way back");
    assert_eq!((back.name.as_str(), back.log.partitions), ("cart-reverse", 2));
    assert_eq!((&back.source.url, &back.target.url), (&config.target.url, &config.source.url));
    assert_eq!((back.source.postgres_schema(), back.target.schema.as_str()), ("public", "shop"));
    assert_eq!(back.path(&back.transform.folder), PathBuf::from("/etc/cutover/reverse"));
    assert_eq!(back.state().url, config.target.url);
    assert!(back.is_reverse() && !config.is_reverse() && back.reversed().is_none());
    assert!(config.goes_both_ways() && back.goes_both_ways());
    let mut mistakes = Vec::new();
    back.judge_target(&mut |key, message| mistakes.push(Mistake::new(key, message)));
    assert_eq!(mistakes, []);
    assert!(parse(SMALLEST).expect("valid").reversed().is_none());
}

#[test]
fn what_cannot_go_both_ways_is_a_mistake() {
    let mistakes = |text: &str| render(Path::new("c.toml"), &parse(text).expect_err("mistakes"));
    let told = mistakes(&with_reverse("[reverse]\nmode = \"two-way\"\n[verify]\nauto_repair = true"));
    assert!(told.contains("reverse.mode: cannot be \"two-way\" yet") && told.contains("verify.auto_repair"), "{told}");
    assert!(mistakes(&with_reverse("[reverse]\nmode = \"x\"")).contains("reverse.mode: must be \"fallback\""));
    assert!(mistakes(&with_reverse("[reverse]\nfolder = \"x\"")).contains("reverse.folder: unknown key"));
    let named = |name: &str, more: &str| with_reverse(more).replace("\"cart\"", &format!("{name:?}"));
    assert!(mistakes(&named(&"n".repeat(33), "[reverse]")).contains("name: must be 1 to 32"));
    assert!(parse(&named(&"n".repeat(32), "[reverse]")).is_ok() && parse(&named(&"n".repeat(40), "")).is_ok());
    assert!(mistakes(&named("cart-reverse", "")).contains("name: must not end with -reverse"));
    let dynamo = with_reverse("[reverse]").replace("mysql://u:${PASSWORD}@legacy:3306/shop", "dynamodb://eu-west-1");
    assert!(mistakes(&dynamo).contains("source.url: must be MySQL, MariaDB or PostgreSQL with [reverse]"));
    let mysql = with_reverse("[reverse]").replace("postgresql://u:p@modern:5432/shop", "mysql://u:p@modern:3306/shop");
    assert!(mistakes(&mysql).contains("target.url: must be PostgreSQL with [reverse]"));
}

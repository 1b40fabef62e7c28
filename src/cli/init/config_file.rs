//! `cutover.toml`: the pipeline of these two databases, without their passwords.

use std::ops::Range;

use super::names::one_line;

/// What the configuration is written from.
#[derive(Debug)]
pub(super) struct Facts<'a> {
    pub database: &'a str,
    /// Of the source's tables, where it is named.
    pub schema: Option<&'a str>,
    pub source_url: &'a str,
    pub target_url: &'a str,
    /// The PostgreSQL that runs the transforms, where neither of the two is one.
    pub engine_url: Option<&'a str>,
    pub tables: &'a [String],
    /// Tables that cannot be followed, each with the reason.
    pub left_out: &'a [(String, String)],
}

/// The text of `cutover.toml`.
pub(super) fn render(facts: &Facts<'_>) -> String {
    let source = without_password(facts.source_url, "SOURCE_PASSWORD");
    let target = without_password(facts.target_url, "TARGET_PASSWORD");
    let engine = facts.engine_url.map(|url| without_password(url, "ENGINE_PASSWORD"));
    let mut text = String::from("# Written by `cutover init`.");
    let urls =
        [(Some(&source), "SOURCE_PASSWORD"), (Some(&target), "TARGET_PASSWORD"), (engine.as_ref(), "ENGINE_PASSWORD")];
    let variables: Vec<&str> = urls.into_iter().filter_map(|(url, variable)| url?.hidden.then_some(variable)).collect();
    if !variables.is_empty() {
        text.push_str(&format!(
            " Passwords are not in it: they come from the environment, {},\n\
             # as they are, without the percent-encoding of a URL.",
            variables.join(" and ")
        ));
    }
    text.push_str(&format!(
        "\n\nname = {}\n\n[source]\nurl = {}\n",
        toml_string(&pipeline_name(facts.database)),
        toml_string(&source.text)
    ));
    if let Some(schema) = facts.schema {
        text.push_str(&format!("schema = {}\n", toml_string(schema)));
    }
    text.push_str("tables = [\n");
    for table in facts.tables {
        text.push_str(&format!("    {},\n", toml_string(table)));
    }
    text.push_str("]\n");
    for (table, reason) in facts.left_out {
        text.push_str(&format!("# left out: {}: {}\n", one_line(table), one_line(reason)));
    }
    text.push_str(&format!("\n[target]\nurl = {}\nafter_copy = \"schema_after.sql\"\n", toml_string(&target.text)));
    if let Some(engine) = engine {
        text.push_str(&format!(
            "\n[transform]\n# The PostgreSQL that runs the transforms and keeps the pipeline's state; it holds no row of the target.\n\
             engine = {}\n",
            toml_string(&engine.text)
        ));
    }
    text
}

/// A URL as it may be written down.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PublicUrl {
    pub text: String,
    /// Whether a password was in it.
    pub hidden: bool,
}

/// The URL with each of its passwords replaced by `${variable}`; the rest stays as it was written.
pub(super) fn without_password(url: &str, variable: &str) -> PublicUrl {
    let mut ranges: Vec<Range<usize>> = password_of_authority(url).into_iter().chain(passwords_of_query(url)).collect();
    ranges.sort_by_key(|range| range.start);
    let mut text = url.to_owned();
    for range in ranges.iter().rev() {
        text.replace_range(range.clone(), &format!("${{{variable}}}"));
    }
    PublicUrl { text, hidden: !ranges.is_empty() }
}

fn password_of_authority(url: &str) -> Option<Range<usize>> {
    let start = url.find("://")? + 3;
    let rest = url.get(start..)?;
    let authority = rest.get(..rest.find(['/', '?', '#']).unwrap_or(rest.len()))?;
    let at = authority.rfind('@')?;
    let colon = authority.get(..at)?.find(':')?;
    (colon + 1 < at).then(|| start + colon + 1..start + at)
}

fn passwords_of_query(url: &str) -> Vec<Range<usize>> {
    let Some(query) = url.find('?') else { return Vec::new() };
    let mut ranges = Vec::new();
    let mut start = query + 1;
    for pair in url.get(start..).unwrap_or_default().split('&') {
        if let Some((name, value)) = pair.split_once('=')
            && name.to_ascii_lowercase().contains("password")
            && !value.is_empty()
        {
            let from = start + name.len() + 1;
            ranges.push(from..from + value.len());
        }
        start += pair.len() + 1;
    }
    ranges
}

/// The database's name in the letters that a pipeline's name may have.
fn pipeline_name(database: &str) -> String {
    let letters = database.chars().map(|character| match character.to_ascii_lowercase() {
        plain @ ('a'..='z' | '0'..='9' | '_' | '-') => plain,
        _ => '_',
    });
    let name: String = letters.take(40).collect();
    if name.is_empty() { "cutover".into() } else { name }
}

fn toml_string(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_leave_a_url_and_nothing_else_changes() {
        for (url, expected) in [
            ("mysql://u:s3c%2Fret@db:3306/shop?tls=verify", "mysql://u:${P}@db:3306/shop?tls=verify"),
            ("mysql://u@db/shop", "mysql://u@db/shop"),
            ("mysql://db/shop", "mysql://db/shop"),
            ("postgresql://u:a:b@[::1]:5432/x", "postgresql://u:${P}@[::1]:5432/x"),
            ("postgresql://u:p@ss@h/x", "postgresql://u:${P}@h/x"),
            ("postgresql://u@h/x?password=abc&sslpassword=d", "postgresql://u@h/x?password=${P}&sslpassword=${P}"),
            ("postgresql://u:@h/x", "postgresql://u:@h/x"),
        ] {
            let public = without_password(url, "P");
            assert_eq!(public.text, expected);
            assert_eq!(public.hidden, public.text.contains("${P}"));
        }
    }

    #[test]
    fn what_is_written_is_toml_whatever_the_names_are() {
        let tables = ["cart".to_owned(), "odd \"name\"\\".to_owned()];
        let left_out = [("log\nx".to_owned(), "no key".to_owned())];
        let text = render(&Facts {
            database: "Shop Ä",
            schema: Some("sales"),
            source_url: "mysql://u:secret@db/shop",
            target_url: "mysql://u:secret@db/shop",
            engine_url: Some("postgresql://u:secret@db/tools"),
            tables: &tables,
            left_out: &left_out,
        });
        let read: toml::Table = text.parse().expect("valid TOML");
        assert!(!text.contains("secret"));
        assert_eq!(read["name"].as_str(), Some("shop__"));
        assert_eq!(read["source"]["schema"].as_str(), Some("sales"));
        assert_eq!(read["source"]["tables"][1].as_str(), Some("odd \"name\"\\"));
        assert_eq!(read["target"]["url"].as_str(), Some("mysql://u:${TARGET_PASSWORD}@db/shop"));
        assert_eq!(read["transform"]["engine"].as_str(), Some("postgresql://u:${ENGINE_PASSWORD}@db/tools"));
    }
}

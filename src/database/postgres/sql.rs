//! Spelling names and literals in SQL.

use sha2::{Digest, Sha256};

use crate::model::TableName;

/// PostgreSQL cuts names after this many bytes.
const NAME_BYTES_MAX: usize = 63;

/// A name of ours that PostgreSQL does not cut: one that is too long ends in a digest of what it is the name `of`.
pub fn short(name: &str, of: &str) -> String {
    if name.len() <= NAME_BYTES_MAX { name.to_owned() } else { digested(name, of) }
}

/// A name that ends in a digest of what it is the name `of`, so that no other is the same.
pub fn digested(name: &str, of: &str) -> String {
    let digest = Sha256::digest(of.as_bytes());
    let digest: String = digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    let mut end = name.len().min(NAME_BYTES_MAX - digest.len() - 1);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}_{digest}", name.get(..end).unwrap_or_default())
}

/// What PostgreSQL keeps of a name.
pub fn cut(name: &str) -> &str {
    let mut end = name.len().min(NAME_BYTES_MAX);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    name.get(..end).unwrap_or_default()
}

/// A quoted identifier: `"order"`.
pub fn ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A quoted, schema-qualified name.
pub fn table(name: &TableName) -> String {
    format!("{}.{}", ident(&name.schema), ident(&name.table))
}

/// A string literal, whatever `standard_conforming_strings` says.
pub fn literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if text.contains('\\') { format!(" E'{}'", quoted.replace('\\', "\\\\")) } else { format!("'{quoted}'") }
}

/// Quoted identifiers, each with a prefix, joined: `g."a", g."b"`.
pub fn list<'a>(prefix: &str, names: impl IntoIterator<Item = &'a str>) -> String {
    names.into_iter().map(|name| format!("{prefix}{}", ident(name))).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_inside_names_and_literals_are_doubled() {
        assert_eq!(ident(r#"a"b"#), r#""a""b""#);
        assert_eq!(literal("it's"), "'it''s'");
        assert_eq!(literal(r"a\b'"), r" E'a\\b'''");
        assert_eq!(list("g.", ["a", "B"]), r#"g."a", g."B""#);
    }
}

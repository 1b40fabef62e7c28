//! The catalog's spelling of a column type, taken apart: `int(10) unsigned`, `enum('a','it''s')`.

/// A type of `information_schema.columns.column_type`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct SourceType {
    /// The first word, in lower case.
    pub(super) base: String,
    /// The numbers in parentheses.
    pub(super) numbers: Vec<u32>,
    /// The labels of ENUM and SET.
    pub(super) labels: Vec<String>,
    pub(super) unsigned: bool,
}

impl SourceType {
    /// Takes apart what it can; what is left out shows as a mismatch with the event.
    pub(super) fn parse(text: &str) -> SourceType {
        let text = text.trim();
        let end = text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len());
        let (base, rest) = text.split_at(end);
        let mut parsed = SourceType { base: base.to_ascii_lowercase(), ..SourceType::default() };
        let rest = match rest.strip_prefix('(') {
            Some(arguments) if matches!(parsed.base.as_str(), "enum" | "set") => {
                let (labels, rest) = read_labels(arguments);
                parsed.labels = labels;
                rest
            }
            Some(arguments) => {
                let (numbers, rest) = arguments.split_once(')').unwrap_or((arguments, ""));
                parsed.numbers = numbers.split(',').filter_map(|number| number.trim().parse().ok()).collect();
                rest
            }
            None => rest,
        };
        // ZEROFILL makes a column unsigned even where the catalog does not say so.
        parsed.unsigned = rest
            .split_ascii_whitespace()
            .any(|word| word.eq_ignore_ascii_case("unsigned") || word.eq_ignore_ascii_case("zerofill"));
        parsed
    }

    pub(super) fn number(&self, index: usize) -> Option<u32> {
        self.numbers.get(index).copied()
    }
}

/// Quoted labels up to the closing parenthesis, and what follows it. Quotes are doubled; the servers escape
/// backslash, line ends and NUL by a backslash (`append_unescaped`).
fn read_labels(text: &str) -> (Vec<String>, &str) {
    let mut labels = Vec::new();
    let mut chars = text.char_indices().peekable();
    while let Some((at, character)) = chars.next() {
        match character {
            '\'' => {
                let mut label = String::new();
                while let Some((_, character)) = chars.next() {
                    match character {
                        '\'' if chars.next_if(|(_, next)| *next == '\'').is_some() => label.push('\''),
                        '\'' => break,
                        '\\' => label.extend(chars.next().map(|(_, escaped)| unescape(escaped))),
                        plain => label.push(plain),
                    }
                }
                labels.push(label);
            }
            ')' => return (labels, text.get(at + 1..).unwrap_or_default()),
            _ => {}
        }
    }
    (labels, "")
}

fn unescape(escaped: char) -> char {
    match escaped {
        '0' => '\0',
        'n' => '\n',
        'r' => '\r',
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_of_the_catalog_come_apart() {
        let int = SourceType::parse("int(10) unsigned");
        assert_eq!((int.base.as_str(), int.unsigned, int.number(0)), ("int", true, Some(10)));
        assert!(SourceType::parse("int(5) zerofill").unsigned && !SourceType::parse("bigint(20)").unsigned);
        assert_eq!(SourceType::parse("decimal(65,30)").numbers, [65, 30]);
        assert_eq!(SourceType::parse("varchar(10) /*M!100301 COMPRESSED*/").base, "varchar");
        assert_eq!(SourceType::parse("enum('a','it''s','x)y','b\\\\n','')").labels, ["a", "it's", "x)y", "b\\n", ""]);
        assert_eq!(SourceType::parse("json"), SourceType { base: "json".into(), ..SourceType::default() });
    }
}

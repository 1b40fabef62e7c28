//! PostgreSQL's own parse of a view, as it prints it in `pg_rewrite.ev_action`.
//!
//! The text is `{TYPE :field value …}` and `( … )`, nested. Reading it gives the meaning that the server
//! found in a `SELECT`, without a second SQL parser that could disagree.
//! Source: PostgreSQL's `src/backend/nodes/{outfuncs,read}.c`.

/// A piece of the tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tree {
    /// `{TYPE :field value …}`; a field may have several words (`4 [ 1 0 0 0 ]`).
    Node {
        kind: String,
        fields: Vec<(String, Vec<Tree>)>,
    },
    List(Vec<Tree>),
    Word(String),
}

/// How deep a tree may nest; a view that nests deeper is not followed.
const DEPTH_MAX: u32 = 500;

impl Tree {
    /// Reads a whole tree; `None` when it is not one.
    pub fn parse(text: &str) -> Option<Tree> {
        let mut words = Words { text, at: 0 };
        let tree = words.tree(0)?;
        words.next().is_none().then_some(tree)
    }

    /// The words of a node's field.
    fn field(&self, name: &str) -> &[Tree] {
        match self {
            Tree::Node { fields, .. } => {
                fields.iter().find(|(field, _)| field == name).map_or(&[], |(_, value)| value.as_slice())
            }
            Tree::List(_) | Tree::Word(_) => &[],
        }
    }

    /// A field's only value.
    pub fn get(&self, name: &str) -> Option<&Tree> {
        self.field(name).first()
    }

    /// A field's value as a word.
    pub fn word(&self, name: &str) -> Option<&str> {
        match self.get(name)? {
            Tree::Word(word) => Some(word),
            Tree::Node { .. } | Tree::List(_) => None,
        }
    }

    /// A field's value as a number.
    pub fn number(&self, name: &str) -> Option<u32> {
        self.word(name)?.parse().ok()
    }

    /// A field's value as a list; empty for `<>`.
    pub fn list(&self, name: &str) -> &[Tree] {
        match self.get(name) {
            Some(Tree::List(items)) => items,
            Some(Tree::Node { .. } | Tree::Word(_)) | None => &[],
        }
    }

    /// Whether a field is there and not `<>`.
    pub fn has(&self, name: &str) -> bool {
        self.get(name).is_some_and(|value| *value != Tree::Word("<>".into()))
    }

    pub fn kind(&self) -> &str {
        match self {
            Tree::Node { kind, .. } => kind,
            Tree::List(_) | Tree::Word(_) => "",
        }
    }

    /// This node and every node below it, in order.
    pub fn nodes(&self) -> Vec<&Tree> {
        let mut found = Vec::new();
        self.visit(&mut |node| found.push(node));
        found
    }

    fn visit<'a>(&'a self, each: &mut impl FnMut(&'a Tree)) {
        match self {
            Tree::Node { fields, .. } => {
                each(self);
                fields.iter().flat_map(|(_, value)| value).for_each(|value| value.visit(each));
            }
            Tree::List(items) => items.iter().for_each(|item| item.visit(each)),
            Tree::Word(_) => {}
        }
    }
}

struct Words<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Words<'a> {
    /// The next word, with backslashes still in it; brackets are words of their own.
    fn next(&mut self) -> Option<&'a str> {
        let bytes = self.text.as_bytes();
        while bytes.get(self.at).is_some_and(u8::is_ascii_whitespace) {
            self.at += 1;
        }
        let start = self.at;
        while let Some(byte) = bytes.get(self.at) {
            match byte {
                b'\\' => self.at += 2,
                b'"' if self.at == start => {
                    self.at += 1;
                    while bytes.get(self.at).is_some_and(|byte| *byte != b'"') {
                        self.at += if bytes.get(self.at) == Some(&b'\\') { 2 } else { 1 };
                    }
                    self.at += 1;
                    break;
                }
                b'(' | b')' | b'{' | b'}' if self.at == start => {
                    self.at += 1;
                    break;
                }
                b'(' | b')' | b'{' | b'}' => break,
                byte if byte.is_ascii_whitespace() => break,
                _ => self.at += 1,
            }
        }
        self.text.get(start..self.at).filter(|word| !word.is_empty())
    }

    fn peek(&mut self) -> Option<&'a str> {
        let at = self.at;
        let word = self.next();
        self.at = at;
        word
    }

    fn tree(&mut self, depth: u32) -> Option<Tree> {
        if depth > DEPTH_MAX {
            return None;
        }
        match self.next()? {
            "(" => {
                let mut items = Vec::new();
                while self.peek()? != ")" {
                    items.push(self.tree(depth + 1)?);
                }
                self.next();
                Some(Tree::List(items))
            }
            "{" => {
                let kind = self.next()?.to_owned();
                let mut fields: Vec<(String, Vec<Tree>)> = Vec::new();
                loop {
                    match self.peek()? {
                        "}" => break,
                        word if word.starts_with(':') => {
                            self.next();
                            fields.push((word.trim_start_matches(':').to_owned(), Vec::new()));
                        }
                        _ => fields.last_mut()?.1.push(self.tree(depth + 1)?),
                    }
                }
                self.next();
                Some(Tree::Node { kind, fields })
            }
            ")" | "}" => None,
            word => Some(Tree::Word(unescape(word))),
        }
    }
}

fn unescape(word: &str) -> String {
    let mut text = String::with_capacity(word.len());
    let mut characters = word.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => text.extend(characters.next()),
            '"' => {}
            other => text.push(other),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_lists_words_and_constants_are_read() {
        let text = r#"({QUERY :hasAggs false :limitCount <> :targetList ({TARGETENTRY :expr {CONST :constvalue 4 [ 1 0 ]} :resname a\ b}) :names ("x y" "z")})"#;
        let tree = Tree::parse(text).expect("well formed");
        let query = tree.nodes()[0];
        assert_eq!(query.kind(), "QUERY");
        assert_eq!(query.word("hasAggs"), Some("false"));
        assert!(!query.has("limitCount") && query.has("targetList"));
        assert_eq!(query.list("targetList")[0].word("resname"), Some("a b"));
        assert_eq!(query.list("names"), [Tree::Word("x y".into()), Tree::Word("z".into())]);
        assert_eq!(query.nodes().iter().filter(|node| node.kind() == "CONST").count(), 1);
    }

    #[test]
    fn what_is_cut_short_or_too_deep_is_no_tree() {
        assert_eq!(Tree::parse("({QUERY :a"), None);
        assert_eq!(Tree::parse("(a) b"), None);
        assert_eq!(Tree::parse(&"(".repeat(10_000)), None);
    }
}

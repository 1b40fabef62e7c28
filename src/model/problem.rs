//! What is wrong, and what to do about it: the one shape of everything that an operator is told.

use serde::{Deserialize, Serialize};

/// Something that keeps the pipeline, or a part of it, from running. Its text is both halves, `what; fix`.
///
/// Every error, halt and finding that has a remedy carries one from where it is made, so that nobody has to take a text
/// apart. What is stored and shown as JSON keeps the names `reason` and `remedy`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    #[serde(rename = "reason")]
    pub what: String,
    /// Empty where whoever met the problem cannot know what to do, or where it passes by itself.
    #[serde(rename = "remedy")]
    pub fix: String,
}

impl std::error::Error for Problem {}

impl Problem {
    /// A problem whose remedy is known.
    pub fn new(what: impl Into<String>, fix: impl Into<String>) -> Self {
        Problem { what: what.into(), fix: fix.into() }
    }

    /// A problem whose remedy is not known here.
    pub fn bare(what: impl Into<String>) -> Self {
        Problem::new(what, "")
    }

    /// The same, with this remedy if it has none of its own.
    #[must_use]
    pub fn or(self, fix: impl Into<String>) -> Self {
        if self.fix.is_empty() { Problem::new(self.what, fix) } else { self }
    }

    /// The same, and where it was met.
    #[must_use]
    pub fn at(self, place: impl std::fmt::Display) -> Self {
        Problem { what: format!("{place}: {}", self.what), ..self }
    }

    /// Several in one text: one on the line, more on lines of their own.
    pub fn list(problems: &[Problem]) -> String {
        match problems {
            [problem] => format!(" {problem}"),
            problems => problems.iter().map(|problem| format!("\n  {problem}")).collect(),
        }
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.what)?;
        if self.fix.is_empty() { Ok(()) } else { write!(f, "; {}", self.fix) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_tells_both_halves_and_keeps_its_own_remedy() {
        assert_eq!(Problem::new("it broke", "mend it").to_string(), "it broke; mend it");
        assert_eq!(Problem::bare("it broke").to_string(), "it broke");
        assert_eq!(Problem::bare("it broke").or("mend it"), Problem::new("it broke", "mend it"));
        assert_eq!(Problem::new("it broke", "mend it").or("wait").fix, "mend it");
        assert_eq!(Problem::new("it broke", "mend it").at("here").to_string(), "here: it broke; mend it");
    }

    #[test]
    fn stored_and_shown_it_has_the_names_that_it_always_had() {
        let json = serde_json::to_string(&Problem::new("a", "b")).expect("writes");
        assert_eq!(json, r#"{"reason":"a","remedy":"b"}"#);
        assert_eq!(serde_json::from_str::<Problem>(&json).expect("reads"), Problem::new("a", "b"));
    }
}

//! SQL text to words, quoted names, strings and symbols. Comments are gone, except those that servers execute.

use std::collections::VecDeque;

use super::super::SqlMode;

/// A piece of a statement. What a string says never matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Token<'a> {
    /// A keyword, a name without quotes, or a number.
    Word(&'a str),
    /// A name in quotes, without them.
    Quoted(String),
    /// A string.
    Text,
    Symbol(char),
}

impl Token<'_> {
    /// Whether it is this keyword.
    pub(super) fn is(&self, keyword: &str) -> bool {
        matches!(self, Token::Word(word) if word.eq_ignore_ascii_case(keyword))
    }
}

/// The tokens of a text, with a look at those to come.
pub(super) struct Tokens<'a> {
    text: &'a str,
    at: usize,
    mode: SqlMode,
    /// Inside a comment that is executed, `*/` ends it.
    executed: bool,
    ahead: VecDeque<Token<'a>>,
}

impl<'a> Tokens<'a> {
    pub(super) fn new(text: &'a str, mode: SqlMode) -> Self {
        Tokens { text, at: 0, mode, executed: false, ahead: VecDeque::new() }
    }

    pub(super) fn next(&mut self) -> Option<Token<'a>> {
        self.ahead.pop_front().or_else(|| self.read())
    }

    pub(super) fn peek(&mut self) -> Option<&Token<'a>> {
        self.peek_at(0)
    }

    /// The token that is `count` tokens after the next one.
    pub(super) fn peek_at(&mut self, count: usize) -> Option<&Token<'a>> {
        while self.ahead.len() <= count {
            let token = self.read()?;
            self.ahead.push_back(token);
        }
        self.ahead.get(count)
    }

    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn read(&mut self) -> Option<Token<'a>> {
        self.skip_blank();
        let rest = self.rest();
        let first = rest.chars().next()?;
        match first {
            '`' => Some(Token::Quoted(self.quoted('`', false))),
            '"' if self.mode.ansi_quotes => Some(Token::Quoted(self.quoted('"', false))),
            '\'' | '"' => {
                self.quoted(first, !self.mode.no_backslash_escapes);
                Some(Token::Text)
            }
            word if is_word(word) => {
                let length = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
                self.at += length;
                rest.get(..length).map(Token::Word)
            }
            symbol => {
                self.at += symbol.len_utf8();
                Some(Token::Symbol(symbol))
            }
        }
    }

    /// Reads past a quoted piece; doubled quotes and, in strings, backslashes escape.
    fn quoted(&mut self, quote: char, escapes: bool) -> String {
        let mut content = String::new();
        let mut chars = self.rest().char_indices().skip(1).peekable();
        while let Some((at, character)) = chars.next() {
            if character == '\\' && escapes {
                chars.next();
            } else if character != quote {
                content.push(character);
            } else if chars.next_if(|(_, next)| *next == quote).is_some() {
                content.push(quote);
            } else {
                self.at += at + quote.len_utf8();
                return content;
            }
        }
        self.at = self.text.len();
        content
    }

    fn skip_blank(&mut self) {
        loop {
            let rest = self.rest();
            let trimmed = rest.trim_start_matches(|c: char| c.is_whitespace() || c == '\0');
            self.at += rest.len() - trimmed.len();
            let length = match trimmed {
                executed if executed.starts_with("/*!") || executed.starts_with("/*M!") => {
                    self.executed = true;
                    executed_head(executed)
                }
                comment if comment.starts_with("/*") => comment.find("*/").map_or(comment.len(), |end| end + 2),
                end if self.executed && end.starts_with("*/") => {
                    self.executed = false;
                    2
                }
                line if line.starts_with('#') || is_dash_comment(line) => line.find('\n').unwrap_or(line.len()),
                _ => return,
            };
            self.at += length;
        }
    }
}

/// `/*!`, `/*M!` and the version after it.
fn executed_head(text: &str) -> usize {
    let mark = text.find('!').map_or(text.len(), |at| at + 1);
    let digits = text.get(mark..).unwrap_or_default().bytes().take_while(u8::is_ascii_digit).count();
    mark + digits.min(6)
}

/// `--` begins a comment only before a blank or the end.
fn is_dash_comment(text: &str) -> bool {
    text.strip_prefix("--").is_some_and(|rest| rest.chars().next().is_none_or(|c| c.is_whitespace() || c.is_control()))
}

fn is_word(character: char) -> bool {
    character.is_ascii_alphanumeric() || matches!(character, '_' | '$') || !character.is_ascii()
}

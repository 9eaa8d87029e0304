//! Penn Treebank tokens of captions, as the COCO caption metrics count them.
//!
//! pycocoevalcap runs Stanford's PTBTokenizer (CoreNLP 3.4.1, `-preserveLines -lowerCase`) and
//! drops punctuation. This is a lexer of its own for the same tokens: at each place every rule says
//! how far it would reach, and the longest wins. The lists and rules were found by asking that
//! tokenizer; tests/data/eval holds its answers.

mod lists;
mod shapes;
mod words;

use lists::{CLITICS, REMOVED, REMOVED_TOO};

/// The words of a caption, in lower case and without punctuation.
///
/// A line break counts as a space, as in pycocoevalcap.
#[must_use]
pub fn tokenize(caption: &str) -> Vec<String> {
    let text: Vec<char> = caption.chars().collect();
    let mut tokens = Vec::new();
    let mut at = 0;
    while at < text.len() {
        let token = Lexer { text: &text, at }.token();
        if let Some(word) = token.word {
            let word = word.to_lowercase();
            if !REMOVED.contains(&word.as_str()) && !REMOVED_TOO.contains(&word.as_str()) {
                tokens.push(word);
            }
        }
        at += token.length.max(1);
    }
    tokens
}

/// What lies at a place of the text: its characters, and the word they stand for if any.
struct Token {
    length: usize,
    word: Option<String>,
}

struct Lexer<'a> {
    text: &'a [char],
    at: usize,
}

fn is_apostrophe(c: char) -> bool {
    matches!(c, '\'' | '\u{2019}' | '\u{92}')
}

fn is_letter(c: char) -> bool {
    // Combining marks belong to their letter; what is beyond the basic plane the tokenizer cannot
    // read.
    (c.is_alphabetic() && c <= '\u{FFFF}') || matches!(c, '\u{300}'..='\u{36F}' | '\u{AD}')
}

fn is_digit(c: char) -> bool {
    c.is_ascii_digit()
}

fn is_alphanumeric(c: char) -> bool {
    is_letter(c) || is_digit(c)
}

fn is_space(c: char) -> bool {
    c.is_whitespace() || c.is_control() && c != '\u{92}' && c != '\u{85}'
}

impl Lexer<'_> {
    /// The character `offset` after this place.
    fn peek(&self, offset: usize) -> Option<char> {
        self.text.get(self.at + offset).copied()
    }

    fn is(&self, offset: usize, test: impl Fn(char) -> bool) -> bool {
        self.peek(offset).is_some_and(test)
    }

    /// Characters from `offset` on that pass `test`.
    fn run(&self, offset: usize, test: impl Fn(char) -> bool) -> usize {
        self.text
            .iter()
            .skip(self.at + offset)
            .take_while(|&&c| test(c))
            .count()
    }

    fn string(&self, length: usize) -> String {
        self.text.iter().skip(self.at).take(length).collect()
    }

    /// Whether the text at `offset` is `word`, whatever its case and kind of apostrophe.
    fn reads(&self, offset: usize, word: &str) -> bool {
        word.chars().enumerate().all(|(i, expected)| {
            self.is(offset + i, |c| {
                c.to_ascii_lowercase() == expected || expected == '\'' && is_apostrophe(c)
            })
        })
    }

    /// The longest of what the rules find here.
    fn token(&self) -> Token {
        let Some(first) = self.peek(0) else {
            return Token {
                length: 0,
                word: None,
            };
        };
        if is_space(first) {
            return Token {
                length: 1,
                word: None,
            };
        }
        // A rule's reach, which may include what follows the token, and the token's own length. Of
        // equal reaches the first wins.
        let mut best = (0, 0);
        for (reach, length) in [
            self.two_in_one(),
            self.negated(),
            self.with_clitic(),
            self.plain_rules(),
            self.abbreviation(),
            self.apostrophe_word(),
        ] {
            if reach > best.0 {
                best = (reach, length);
            }
        }
        if best.0 > 0 {
            return Token {
                length: best.1,
                word: Some(written(&self.string(best.1))),
            };
        }
        self.symbol(first)
    }

    /// Rules whose reach is the token itself.
    fn plain_rules(&self) -> (usize, usize) {
        let longest = [
            self.word(),
            self.hyphenated(),
            self.hyphenated_with_periods(),
            self.slashed(),
            self.number(),
            self.fraction(),
            self.date(),
            self.joined_capitals(),
            self.address(),
            self.handle(),
            self.tag(),
            self.smiley(),
            self.marks(),
        ]
        .into_iter()
        .max()
        .unwrap_or(0);
        (longest, longest)
    }

    /// One character, as the tokenizer writes it.
    fn symbol(&self, first: char) -> Token {
        for (entity, text) in [
            ("&amp;", "&"),
            ("&lt;", "<"),
            ("&gt;", ">"),
            ("&quot;", "''"),
            ("&nbsp;", ""),
        ] {
            if self.reads(0, entity) {
                return Token {
                    length: entity.len(),
                    word: (!text.is_empty()).then(|| text.to_owned()),
                };
            }
        }
        let written = match first {
            '(' => "-lrb-",
            ')' => "-rrb-",
            '[' => "-lsb-",
            ']' => "-rsb-",
            '{' => "-lcb-",
            '}' => "-rcb-",
            '"' | '\u{201C}' | '\u{201D}' | '\u{AB}' | '\u{BB}' => "''",
            '\u{2018}' | '\u{2019}' | '\u{91}' | '\u{92}' => "'",
            '\u{2013}' | '\u{2014}' | '\u{96}' | '\u{97}' => "--",
            '\u{2026}' | '\u{85}' => "...",
            '£' => "#",
            '€' => "$",
            '¢' => "cents",
            '¼' => "1/4",
            '½' => "1/2",
            '¾' => "3/4",
            // Emoji, joiners, variation selectors: left out.
            '\u{200B}'..='\u{200F}'
            | '\u{2060}'
            | '\u{FE00}'..='\u{FE0F}'
            | '\u{FEFF}'
            | '\u{FFFD}' => "",
            other if other > '\u{FFFF}' => "",
            other => {
                return Token {
                    length: 1,
                    word: Some(other.to_string()),
                };
            }
        };
        Token {
            length: 1,
            word: (!written.is_empty()).then(|| written.to_owned()),
        }
    }
}

/// A token as the tokenizer writes it: straight apostrophes, brackets by name (in a smiley), no
/// plain space inside.
fn written(token: &str) -> String {
    if token.starts_with("...") {
        return "...".into();
    }
    if matches!(token, "--" | "---" | "----") {
        return "--".into();
    }
    if token.starts_with([':', ';', '=']) {
        return token.replace('(', "-lrb-").replace(')', "-rrb-");
    }
    // Only in a clitic the apostrophe is made straight.
    let letters = token.trim_start_matches(is_apostrophe).to_lowercase();
    let clitic = letters.len() < token.len() && CLITICS.contains(&letters.as_str());
    if clitic || letters.starts_with('n') && letters.replace(is_apostrophe, "'") == "n't" {
        return token.replace(is_apostrophe, "'");
    }
    token.replace(' ', "\u{a0}")
}

fn is_hyphen(c: char) -> bool {
    matches!(c, '-' | '\u{2010}'..='\u{2012}')
}

//! A question in its prompt, and the answer freed of a repeated question.

use std::sync::Arc;

use crate::Error;

/// Where the question goes in a template.
const PLACE: &str = "{}";

/// A prompt around a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Template<'a> {
    /// Text before the question.
    pub before: &'a str,
    /// Text after it.
    pub after: &'a str,
}

impl<'a> Template<'a> {
    /// Reads a template: text with one `{}` in it.
    pub(super) fn parse(template: &'a str) -> Result<Self, Error> {
        let unusable = |problem| Error::Template {
            template: template.to_owned(),
            problem,
        };
        let Some((before, after)) = template.split_once(PLACE) else {
            return Err(unusable("the question has no place in it"));
        };
        if after.contains(PLACE) {
            return Err(unusable("it has more than one place for the question"));
        }
        Ok(Self { before, after })
    }

    /// The prompt for `question`.
    pub(super) fn fill(self, question: &str) -> String {
        format!("{}{question}{}", self.before, self.after)
    }
}

/// The first `most` words of a text, words being what single spaces part (Python's `split(" ")`).
pub(super) fn first_words(text: &str, most: usize) -> &str {
    match text.match_indices(' ').nth(most.saturating_sub(1)) {
        Some((end, _)) => &text[..end],
        None => text,
    }
}

/// What a model may say again before it answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Echo {
    prompt: String,
    question: String,
}

impl Echo {
    /// A prompt, and the question as it stands in it.
    pub(super) fn new(prompt: &str, question: &str) -> Self {
        let (prompt, question) = (prompt.trim(), question.trim());
        Self {
            // A bare question as the prompt is judged as a question.
            prompt: if prompt == question { "" } else { prompt }.to_owned(),
            question: question.to_owned(),
        }
    }

    /// `answer` (trimmed) without the prompt or the question repeated word for word at its start. transformers' own
    /// output begins with the prompt and its users cut it off; this engine never returns it, but models say it again.
    /// The question alone goes only where it ends in a question mark and something follows: the answer to "red" may be
    /// "red".
    pub(super) fn strip<'a>(&self, answer: &'a str) -> &'a str {
        if let Some(rest) = strip_some(answer, &self.prompt) {
            return rest.trim_start();
        }
        match strip_some(answer, &self.question).map(str::trim_start) {
            Some(rest) if self.question.ends_with('?') && !rest.is_empty() => rest,
            _ => answer,
        }
    }

    /// Whether an answer that starts with `text` may turn out to repeat the prompt or the question.
    fn may_begin(&self, text: &str) -> bool {
        // White space after the whole of it decides nothing yet.
        let text = text.trim_end();
        let may = |echo: &str| !echo.is_empty() && echo.starts_with(text);
        may(&self.prompt) || may(&self.question)
    }
}

/// The rest of `text` after `start`, if there is a start at all.
fn strip_some<'a>(text: &'a str, start: &str) -> Option<&'a str> {
    text.strip_prefix(start).filter(|_| !start.is_empty())
}

/// The pieces of an answer as they come, without what it repeats: held back while they may be a repetition.
#[derive(Debug, Clone)]
pub(super) struct AnswerPieces {
    echo: Arc<Echo>,
    held: Option<String>,
}

impl AnswerPieces {
    pub(super) fn new(echo: Arc<Echo>) -> Self {
        Self {
            echo,
            held: Some(String::new()),
        }
    }

    /// Takes the next piece and returns what may be shown now, if anything.
    pub(super) fn push(&mut self, piece: &str) -> Option<String> {
        let Some(held) = &mut self.held else {
            return Some(piece.to_owned());
        };
        held.push_str(piece);
        if self.echo.may_begin(held) {
            return None;
        }
        self.finish()
    }

    /// What is still held back, once the last piece has come.
    pub(super) fn finish(&mut self) -> Option<String> {
        let held = self.held.take()?;
        Some(self.echo.strip(&held).to_owned()).filter(|text| !text.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_has_one_place() {
        let template = Template::parse("Question: {} Answer:").unwrap();
        assert_eq!(
            template.fill("what is {} this?"),
            "Question: what is {} this? Answer:"
        );
        assert_eq!(Template::parse("{}").unwrap().fill("why?"), "why?");
        for template in ["", "Question: Answer:", "{ }", "{} or {}", "{}{}"] {
            let error = Template::parse(template).unwrap_err();
            assert!(error.is_usage());
            let message = error.to_string();
            assert!(message.contains(&format!("{template:?}")), "{message}");
            assert!(message.contains("with {} where"), "{message}");
        }
    }

    #[test]
    fn words_are_parted_by_single_spaces() {
        assert_eq!(first_words("a b c", 2), "a b");
        assert_eq!(first_words("a b c", 3), "a b c");
        assert_eq!(first_words("a b c", usize::MAX), "a b c");
        assert_eq!(first_words("a  b c", 2), "a ");
        assert_eq!(first_words("a\tb c", 1), "a\tb");
        assert_eq!(first_words("", 1), "");
    }

    const PROMPT: &str = "Question: what is it? Answer:";

    /// Answers and what is left of them.
    const ANSWERS: [(&str, &str); 9] = [
        ("a cat", "a cat"),
        ("Question: what is it? Answer: a cat", "a cat"),
        ("Question: what is it? Answer:", ""),
        ("what is it? a cat", "a cat"),
        ("what is it?", "what is it?"),
        ("what is it", "what is it"),
        ("Question: what is it? A cat", "Question: what is it? A cat"),
        ("a cat. what is it?", "a cat. what is it?"),
        ("", ""),
    ];

    #[test]
    fn repeated_questions_go() {
        let echo = Echo::new(PROMPT, "what is it?");
        for (answer, left) in ANSWERS {
            assert_eq!(echo.strip(answer), left, "{answer:?}");
        }
        // Without a question mark the same words may be the answer.
        assert_eq!(Echo::new("red", "red").strip("red"), "red");
        let echo = Echo::new("Q: red A:", "red");
        assert_eq!(echo.strip("red car"), "red car");
        assert_eq!(Echo::new("", "").strip("red"), "red");
    }

    #[test]
    fn pieces_make_up_the_answer() {
        let echo = Arc::new(Echo::new(PROMPT, "what is it?"));
        for (answer, left) in ANSWERS {
            for size in [1, 3, 100] {
                let mut pieces = AnswerPieces::new(Arc::clone(&echo));
                let characters: Vec<char> = answer.chars().collect();
                let mut shown = String::new();
                for piece in characters.chunks(size) {
                    let piece: String = piece.iter().collect();
                    shown += &pieces.push(&piece).unwrap_or_default();
                }
                shown += &pieces.finish().unwrap_or_default();
                assert_eq!(shown.trim_start(), left, "{answer:?} by {size}");
            }
        }
    }

    #[test]
    fn an_answer_of_its_own_is_not_held_back() {
        let echo = Arc::new(Echo::new(PROMPT, "what is it?"));
        let mut pieces = AnswerPieces::new(Arc::clone(&echo));
        assert_eq!(pieces.push("a"), Some("a".into()));
        assert_eq!(pieces.push(" cat"), Some(" cat".into()));
        let mut pieces = AnswerPieces::new(Arc::clone(&echo));
        assert_eq!(pieces.push("what"), None);
        assert_eq!(pieces.push(" else"), Some("what else".into()));
    }
}

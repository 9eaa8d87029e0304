use std::borrow::Borrow;

use super::{StopStrings, Tokenizer};

/// Shows a text while its tokens arrive: each piece is final, and the pieces together are the text
/// without its special tokens, trimmed.
///
/// One character may need several tokens, so the tail is held back while it is an incomplete
/// character; so is white space at the tail, which is dropped if nothing follows it, and what may
/// be the beginning of a text that ends it ([`TextStream::until`]).
#[derive(Clone, Debug)]
pub struct TextStream<T> {
    tokenizer: T,
    tokens: Vec<u32>,
    shown: Shown,
}

impl<T: Borrow<Tokenizer>> TextStream<T> {
    /// A stream that has seen no tokens.
    pub fn new(tokenizer: T) -> Self {
        Self {
            tokenizer,
            tokens: Vec::new(),
            shown: Shown::default(),
        }
    }

    /// The stream of a text that ends before the first of `stop`.
    #[must_use]
    pub fn until(mut self, stop: StopStrings) -> Self {
        self.shown.stop = stop;
        self
    }

    /// Takes the next token and returns what may be shown now, if anything.
    pub fn push(&mut self, token: u32) -> Option<String> {
        self.tokens.push(token);
        self.shown.unfinished(&self.text()?)
    }

    /// What was still held back, once the last token has come.
    pub fn finish(mut self) -> Option<String> {
        self.shown.finished(&self.text()?)
    }

    fn text(&self) -> Option<String> {
        self.tokenizer.borrow().decode(&self.tokens, true).ok()
    }
}

/// The part of a growing text that has been shown.
#[derive(Clone, Debug, Default)]
struct Shown {
    text: String,
    stop: StopStrings,
}

impl Shown {
    /// What is new in `text`, which may end within a character.
    fn unfinished(&mut self, text: &str) -> Option<String> {
        // An incomplete character decodes to one or more U+FFFD at the end.
        let text = text.trim_end_matches(char::REPLACEMENT_CHARACTER);
        advance(&mut self.text, self.stop.certain(text))
    }

    /// What is new in the whole `text`.
    fn finished(&mut self, text: &str) -> Option<String> {
        advance(&mut self.text, self.stop.cut(text).unwrap_or(text))
    }
}

/// What is new in `text` beside what has been `shown` of it.
fn advance(shown: &mut String, text: &str) -> Option<String> {
    // None where less is certain than has been shown: what is shown is never taken back.
    let new = text.trim().strip_prefix(shown.as_str())?;
    if new.is_empty() {
        return None;
    }
    shown.push_str(new);
    Some(new.to_owned())
}

/// What is shown of a text whose bytes come in `pieces`: after each of them, and at the end.
#[cfg(feature = "fuzzing")]
pub(crate) fn fuzz_shown(stop: StopStrings, pieces: &[&[u8]]) -> Vec<Option<String>> {
    let mut shown = Shown {
        stop,
        ..Shown::default()
    };
    let mut bytes = Vec::new();
    let mut all = Vec::new();
    for piece in pieces {
        bytes.extend_from_slice(piece);
        all.push(shown.unfinished(&String::from_utf8_lossy(&bytes)));
    }
    all.push(shown.finished(&String::from_utf8_lossy(&bytes)));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is shown after each byte of a text that ends before `stop`, and at its end.
    fn pieces_until(stop: &[&str], bytes: &[u8]) -> Vec<String> {
        let stop: Vec<String> = stop.iter().map(|stop| (*stop).to_owned()).collect();
        let mut shown = Shown {
            stop: StopStrings::new(&stop),
            ..Shown::default()
        };
        let mut pieces: Vec<_> = (1..=bytes.len())
            .map(|end| shown.unfinished(&String::from_utf8_lossy(&bytes[..end])))
            .collect();
        pieces.push(shown.finished(&String::from_utf8_lossy(bytes)));
        pieces.into_iter().map(Option::unwrap_or_default).collect()
    }

    fn pieces(bytes: &[u8]) -> Vec<String> {
        pieces_until(&[], bytes)
    }

    #[test]
    fn characters_come_whole() {
        let pieces = pieces("a🐱é.".as_bytes());
        assert_eq!(pieces, ["a", "", "", "", "🐱", "", "é", ".", ""]);
    }

    #[test]
    fn outer_white_space_is_never_shown() {
        assert_eq!(pieces(b" a  b\n"), ["", "a", "", "", "  b", "", ""]);
        assert_eq!(pieces(b" \n").concat(), "");
    }

    #[test]
    fn the_pieces_are_the_text() {
        for text in [
            &b"caf\xC3 x"[..],
            b"\xFF",
            b"end \xF0\x9F",
            "日本 \u{FFFD} 語".as_bytes(),
            b"",
        ] {
            let whole = String::from_utf8_lossy(text);
            assert_eq!(pieces(text).concat(), whole.trim());
        }
    }

    #[test]
    fn the_beginning_of_what_ends_a_text_is_held_back() {
        let stop = ["é🐱", "\nQ"];
        let shown = pieces_until(&stop, "aéb é🐱c".as_bytes());
        assert_eq!(shown.concat(), "aéb");
        assert_eq!(shown[..4], ["a", "", "", "éb"]);
        let shown = pieces_until(&stop, b"a\nb\nQ");
        assert_eq!(shown, ["a", "", "\nb", "", "", ""]);
        // What only began is part of the text.
        assert_eq!(pieces_until(&stop, "a é".as_bytes()).concat(), "a é");
        assert_eq!(pieces_until(&stop, "é🐱".as_bytes()).concat(), "");
    }
}

use super::Tokenizer;

/// Shows a text while its tokens arrive: each piece is final, and the pieces together are the text
/// without its special tokens, trimmed.
///
/// One character may need several tokens, so the tail is held back while it is an incomplete
/// character; so is white space at the tail, which is dropped if nothing follows it.
#[derive(Clone, Debug)]
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    tokens: Vec<u32>,
    shown: Shown,
}

impl<'a> TextStream<'a> {
    /// A stream that has seen no tokens.
    pub fn new(tokenizer: &'a Tokenizer) -> Self {
        Self {
            tokenizer,
            tokens: Vec::new(),
            shown: Shown::default(),
        }
    }

    /// Takes the next token and returns what may be shown now, if anything.
    pub fn push(&mut self, token: u32) -> Option<String> {
        self.tokens.push(token);
        let text = self.tokenizer.decode(&self.tokens, true).ok()?;
        self.shown.unfinished(&text)
    }

    /// What was still held back, once the last token has come.
    pub fn finish(mut self) -> Option<String> {
        let text = self.tokenizer.decode(&self.tokens, true).ok()?;
        self.shown.advance(&text)
    }
}

/// The part of a growing text that has been shown.
#[derive(Clone, Debug, Default)]
struct Shown(String);

impl Shown {
    /// What is new in `text`, which may end within a character.
    fn unfinished(&mut self, text: &str) -> Option<String> {
        // An incomplete character decodes to one or more U+FFFD at the end.
        self.advance(text.trim_end_matches(char::REPLACEMENT_CHARACTER))
    }

    fn advance(&mut self, text: &str) -> Option<String> {
        // None where less is certain than has been shown: what is shown is never taken back.
        let new = text.trim().strip_prefix(self.0.as_str())?;
        if new.is_empty() {
            return None;
        }
        self.0.push_str(new);
        Some(new.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is shown after each byte of a text, and at its end.
    fn pieces(bytes: &[u8]) -> Vec<String> {
        let mut shown = Shown::default();
        let mut pieces: Vec<_> = (1..=bytes.len())
            .map(|end| shown.unfinished(&String::from_utf8_lossy(&bytes[..end])))
            .collect();
        pieces.push(shown.advance(&String::from_utf8_lossy(bytes)));
        pieces.into_iter().map(Option::unwrap_or_default).collect()
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
}

/// Shows a text while its tokens arrive: each piece is final, and the pieces together are the text.
///
/// One character may need several tokens, so the tail is held back while it is an incomplete
/// character; so is white space at the tail, which is dropped if nothing follows it. White space before
/// the text is dropped too: together the pieces are the decoded text, trimmed.
#[derive(Clone, Debug, Default)]
pub struct TextStream {
    tokens: Vec<u32>,
    /// Bytes of the decoded, left-trimmed text already shown.
    shown: String,
}

impl TextStream {
    /// A stream that has seen no tokens.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next token and returns what may be shown now, possibly nothing. `decode` turns all
    /// tokens so far into text ([`OptTokenizer::decode`](super::OptTokenizer::decode)).
    ///
    /// # Errors
    /// Those of `decode`.
    pub fn push<E>(
        &mut self,
        token: u32,
        decode: impl FnOnce(&[u32]) -> Result<String, E>,
    ) -> Result<String, E> {
        self.tokens.push(token);
        let text = decode(&self.tokens)?;
        // An incomplete character decodes to one or more U+FFFD at the end.
        let complete = text.trim_end_matches(char::REPLACEMENT_CHARACTER);
        Ok(self.show(complete))
    }

    /// What was still held back, once the last token has come.
    ///
    /// # Errors
    /// Those of `decode`.
    pub fn finish<E>(
        mut self,
        decode: impl FnOnce(&[u32]) -> Result<String, E>,
    ) -> Result<String, E> {
        let text = decode(&self.tokens)?;
        Ok(self.show(&text))
    }

    fn show(&mut self, text: &str) -> String {
        let Some(new) = text.trim().strip_prefix(self.shown.as_str()) else {
            return String::new(); // held back, or a decoder that changed what it said: never go back
        };
        self.shown.push_str(new);
        new.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each token is one byte.
    fn decode(tokens: &[u32]) -> Result<String, std::convert::Infallible> {
        let bytes: Vec<u8> = tokens.iter().map(|&t| t as u8).collect();
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn pieces(bytes: &[u8]) -> Vec<String> {
        let mut stream = TextStream::new();
        let mut pieces: Vec<String> = bytes
            .iter()
            .map(|&b| stream.push(u32::from(b), decode).unwrap())
            .collect();
        pieces.push(stream.finish(decode).unwrap());
        pieces
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

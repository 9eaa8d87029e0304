//! Text that people and other programs wrote, in the encodings that they save it in.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeOwned, Error as _};

/// Bytes that are no text that is read here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NotText {
    found: String,
}

impl fmt::Display for NotText {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "not UTF-8 text ({})", self.found)
    }
}

impl std::error::Error for NotText {}

impl NotText {
    /// What it has instead.
    #[cfg(any(feature = "cli", feature = "eval"))]
    pub(crate) fn found(&self) -> &str {
        &self.found
    }
}

/// UTF-8, with or without a mark at its beginning, or UTF-16 with one.
///
/// # Errors
/// Anything else, by what it may be.
pub(crate) fn decode(bytes: &[u8]) -> Result<Cow<'_, str>, NotText> {
    match bytes {
        [0xEF, 0xBB, 0xBF, text @ ..] => from_utf_8(text),
        [0xFF, 0xFE, text @ ..] => from_utf_16(text, u16::from_le_bytes),
        [0xFE, 0xFF, text @ ..] => from_utf_16(text, u16::from_be_bytes),
        // A text begins with a character of ASCII nearly always, and then a zero byte beside it tells UTF-16
        // (RFC 4627, section 3).
        [0, other, ..] | [other, 0, ..] if *other != 0 => Err(NotText {
            found: "it looks like UTF-16 without a mark".into(),
        }),
        _ => from_utf_8(bytes),
    }
}

/// The value of a JSON text in any of these encodings.
///
/// # Errors
/// The text is none, or not of this JSON.
pub(crate) fn json<T: DeserializeOwned>(bytes: &[u8]) -> serde_json::Result<T> {
    serde_json::from_str(&decode(bytes).map_err(serde_json::Error::custom)?)
}

fn from_utf_8(bytes: &[u8]) -> Result<Cow<'_, str>, NotText> {
    let text = std::str::from_utf8(bytes).map(Cow::Borrowed);
    text.map_err(|error| {
        let valid = error.valid_up_to();
        let line = 1 + bytes[..valid].iter().filter(|&&byte| byte == b'\n').count();
        let byte = bytes[valid];
        NotText {
            found: format!("byte 0x{byte:02x} in line {line}; it may be Latin-1, or damaged"),
        }
    })
}

fn from_utf_16(bytes: &[u8], word: fn([u8; 2]) -> u16) -> Result<Cow<'_, str>, NotText> {
    let (words, rest) = bytes.as_chunks::<2>();
    let text = char::decode_utf16(words.iter().copied().map(word)).collect::<Result<String, _>>();
    match (text, rest) {
        (Ok(text), []) => Ok(text.into()),
        _ => Err(NotText {
            found: "it has the mark of UTF-16 and is not; it may be damaged".into(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_no_part_of_the_text() {
        let text = "{\"caf\u{e9}\": \"\u{1F431}\"}";
        let utf_16 =
            |word: fn(u16) -> [u8; 2]| text.encode_utf16().flat_map(word).collect::<Vec<u8>>();
        let (little, big) = (utf_16(u16::to_le_bytes), utf_16(u16::to_be_bytes));
        for bytes in [
            text.as_bytes().to_vec(),
            [b"\xEF\xBB\xBF", text.as_bytes()].concat(),
            [b"\xFF\xFE", &little[..]].concat(),
            [b"\xFE\xFF", &big[..]].concat(),
        ] {
            assert_eq!(decode(&bytes).as_deref(), Ok(text));
            assert!(json::<serde_json::Value>(&bytes).is_ok());
        }
        for short in [&b""[..], b"{", b"\xEF\xBB\xBF", b"\xFF\xFE", b"\0"] {
            assert!(decode(short).is_ok(), "{short:?}");
        }
        for (bytes, found) in [
            (little, "looks like UTF-16"),
            (big, "looks like UTF-16"),
            (
                [b"\xFF\xFE", &[0, 0xD8, b'a', 0][..]].concat(),
                "mark of UTF-16",
            ),
            (b"\xFF\xFEa".to_vec(), "mark of UTF-16"),
            (
                b"a\ncaf\xE9".to_vec(),
                "byte 0xe9 in line 2; it may be Latin-1",
            ),
        ] {
            let error = decode(&bytes).unwrap_err().to_string();
            assert!(error.contains(found), "{error}");
            let error = json::<serde_json::Value>(&bytes).unwrap_err().to_string();
            assert!(error.contains(found), "{error}");
        }
    }
}

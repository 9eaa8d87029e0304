//! Reading a tokenizer's files, with errors that name them.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use tokenizers::{ModelWrapper, Tokenizer};

use crate::files::bounded::{self, MAX_SMALL_BYTES};
use crate::files::text;

use super::TextError;

/// The text of a file.
pub(super) fn read(file: &Path) -> Result<String, TextError> {
    let bytes = bounded::read(file, MAX_SMALL_BYTES).map_err(|source| TextError::Read {
        file: file.to_owned(),
        source,
    })?;
    let text = text::decode(&bytes).map_err(|error| broken(file, error))?;
    Ok(text.into_owned())
}

/// [`TextError::Broken`] of `file`.
pub(super) fn broken(file: &Path, problem: impl ToString) -> TextError {
    TextError::Broken {
        file: file.to_owned(),
        problem: problem.to_string(),
    }
}

/// A JSON object in `folder`; `None` where there is no such file.
pub(super) fn object(folder: &Path, name: &str) -> Result<Option<Map<String, Value>>, TextError> {
    let file = folder.join(name);
    if !file.exists() {
        return Ok(None);
    }
    let object = serde_json::from_str(&read(&file)?)
        .map_err(|error| broken(&file, format!("not a JSON object ({error})")))?;
    Ok(Some(object))
}

/// Tokens and ids of a `vocab.json` or `added_tokens.json`.
pub(super) fn ids(
    file: &Path,
    object: Map<String, Value>,
) -> Result<Vec<(String, u32)>, TextError> {
    object
        .into_iter()
        .map(|(token, id)| match id.as_u64().map(u32::try_from) {
            Some(Ok(id)) => Ok((token, id)),
            _ => Err(broken(file, format!("the id of {token:?} is {id}"))),
        })
        .collect()
}

/// How a tokenizer splits a word: the `model.type` of its `tokenizer.json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Algorithm {
    /// OPT's.
    Bpe,
    /// BERT's, which the Q-Former has.
    WordPiece,
    /// T5's.
    Unigram,
}

impl Algorithm {
    /// Its name and whose it is, for people.
    fn name(self) -> &'static str {
        match self {
            Self::Bpe => "BPE (OPT's kind)",
            Self::WordPiece => "WordPiece (BERT's kind)",
            Self::Unigram => "Unigram (T5's kind)",
        }
    }

    /// That of a tokenizer; `None` for one that no part of a BLIP-2 has.
    fn of(tokenizer: &Tokenizer) -> Option<Self> {
        match tokenizer.get_model() {
            ModelWrapper::BPE(_) => Some(Self::Bpe),
            ModelWrapper::WordPiece(_) => Some(Self::WordPiece),
            ModelWrapper::Unigram(_) => Some(Self::Unigram),
            ModelWrapper::WordLevel(_) => None,
        }
    }
}

/// The tokenizer of a `tokenizer.json`, without the padding and truncation that may be set in it:
/// both belong to the caller. One of another kind is refused: its ids may well fit the model, its words do not.
pub(super) fn tokenizer_json(file: &Path, wanted: Algorithm) -> Result<Tokenizer, TextError> {
    parse_tokenizer(read(file)?.as_bytes(), file, wanted)
}

/// [`tokenizer_json`] of the file's text.
pub(super) fn parse_tokenizer(
    text: &[u8],
    file: &Path,
    wanted: Algorithm,
) -> Result<Tokenizer, TextError> {
    // The crate panics at JSON that is damaged in some places, so that it gets none.
    let json: Value =
        serde_json::from_slice(text).map_err(|error| broken(file, format!("no JSON ({error})")))?;
    if !has_whole_charsmaps(&json) {
        return Err(broken(file, "a `precompiled_charsmap` is cut off"));
    }
    if !has_whole_merges(&json) {
        return Err(broken(
            file,
            "a merge lacks the `continuing_subword_prefix`",
        ));
    }
    let mut tokenizer = guarded(|| Tokenizer::from_bytes(text))
        .map_err(|problem| broken(file, format!("no tokenizer ({problem})")))?;
    let found = Algorithm::of(&tokenizer);
    if found != Some(wanted) {
        return Err(TextError::OtherTokenizer {
            file: file.to_owned(),
            found: found.map_or("WordLevel", Algorithm::name),
            wanted: wanted.name(),
        });
    }
    tokenizer.with_padding(None);
    tokenizer
        .with_truncation(None)
        .map_err(|error| broken(file, error))?;
    Ok(tokenizer)
}

/// The answer of the tokenizers crate, which panics at some files that it should refuse.
pub(super) fn guarded<T>(call: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(answer) => answer.map_err(|error| error.to_string()),
        Err(_) => Err("its rules or its vocabulary do not hold together".into()),
    }
}

/// Whether each table of characters in a tokenizer's rules has the bytes that it claims: the crate takes
/// memory for as many before it looks.
fn has_whole_charsmaps(rules: &Value) -> bool {
    match rules {
        Value::Object(fields) => fields.iter().all(|(name, value)| match value {
            Value::String(table) if name == "precompiled_charsmap" => {
                claimed_bytes(table).is_none_or(|claimed| claimed <= table.len())
            }
            // Vocabularies hold no rules.
            value => name == "vocab" || has_whole_charsmaps(value),
        }),
        Value::Array(items) => items.iter().all(has_whole_charsmaps),
        _ => true,
    }
}

/// Whether the second piece of each merge has the prefix that continues words: the crate cuts off as many bytes,
/// and takes what is left for text unseen.
fn has_whole_merges(tokenizer: &Value) -> bool {
    let model = &tokenizer["model"];
    let prefix = model["continuing_subword_prefix"].as_str();
    let Some(prefix) = prefix.filter(|prefix| !prefix.is_empty()) else {
        return true;
    };
    let second = |merge: &Value| match merge {
        Value::String(pair) => Some(pair.split_once(' ')?.1.starts_with(prefix)),
        pair => Some(pair[1].as_str()?.starts_with(prefix)),
    };
    let merges = model["merges"].as_array();
    { merges.into_iter().flatten() }.all(|merge| second(merge) != Some(false))
}

/// The little-endian number that a text in base64 begins with.
fn claimed_bytes(base64: &str) -> Option<usize> {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digits = base64.as_bytes().get(..6)?.iter();
    let bits = digits.map(|digit| DIGITS.iter().position(|known| known == digit));
    let bits = bits.reduce(|bits, digit| Some(bits? << 6 | digit?))??;
    Some((bits >> 4) as u32).map(|number| number.swap_bytes() as usize)
}

/// Both files' paths where both are there; `None` where neither is.
///
/// # Errors
/// [`TextError::MissingCompanion`] where only one is.
pub(super) fn pair(
    folder: &Path,
    a: &'static str,
    b: &'static str,
) -> Result<Option<(PathBuf, PathBuf)>, TextError> {
    let (path_a, path_b) = (folder.join(a), folder.join(b));
    match (path_a.exists(), path_b.exists()) {
        (true, true) => Ok(Some((path_a, path_b))),
        (false, false) => Ok(None),
        (true, false) => Err(TextError::MissingCompanion {
            missing: path_b,
            present: a,
        }),
        (false, true) => Err(TextError::MissingCompanion {
            missing: path_a,
            present: b,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tokenizer that knows `a`, `</s>` and `b`, with these rules.
    fn with(rules: &str) -> String {
        format!(
            "{{\"version\": \"1.0\", \"added_tokens\": [], {rules}, \"model\": {{\"type\": \"Unigram\", \
             \"unk_id\": 0, \"vocab\": [[\"a\", 0.0], [\"</s>\", -1.0], [\"b\", -2.0]]}}}}"
        )
    }

    #[test]
    fn what_the_crate_panics_at_is_an_error() {
        let file = Path::new("m/tokenizer.json");
        let parse = |text: &str| parse_tokenizer(text.as_bytes(), file, Algorithm::Unigram);
        let whole = with(r#""decoder": {"type": "Fuse"}"#);
        assert!(parse(&whole).is_ok());
        for end in 0..whole.len() {
            let error = parse(&whole[..end]).unwrap_err().to_string();
            assert!(error.starts_with("m/tokenizer.json: no JSON"), "{error}");
        }
        let charsmap = |base64: &str| {
            let rule = format!(r#"{{"type": "Precompiled", "precompiled_charsmap": "{base64}"}}"#);
            with(&format!(
                r#""normalizer": {{"type": "Sequence", "normalizers": [{rule}]}}"#
            ))
        };
        // Four thousand million bytes, of which none is there.
        let error = parse(&charsmap("/////w==")).unwrap_err().to_string();
        assert!(error.contains("is cut off"), "{error}");
        // A tree of one unit, outside of which every letter leads.
        let leads_out = parse(&charsmap("BAAAAAAAAABhAA==")).unwrap();
        let error = guarded(|| leads_out.encode_fast("A", false)).unwrap_err();
        assert!(error.contains("do not hold together"), "{error}");
    }

    #[test]
    fn merges_have_the_prefix_of_their_model() {
        let file = Path::new("tokenizer.json");
        let parse = |merge: &str| {
            let text = format!(
                r#"{{"model": {{"type": "BPE", "continuing_subword_prefix": "~~", "merges": [{merge}],
                    "vocab": {{"a": 0, "~~b": 1, "ab": 2, "日": 3, "c": 4}}}}}}"#
            );
            parse_tokenizer(text.as_bytes(), file, Algorithm::Bpe)
                .map_err(|error| error.to_string())
        };
        for merge in [r#"["a", "~~b"]"#, r#""a ~~b""#] {
            assert!(parse(merge).is_ok(), "{merge}");
        }
        // The second would be cut within its letter, the third before its beginning.
        for merge in [r#"["a", "日"]"#, r#""a 日""#, r#"["a", "c"]"#] {
            let error = parse(merge).unwrap_err();
            assert!(error.contains("a merge lacks"), "{error}");
        }
    }

    #[test]
    fn numbers_in_base64() {
        assert_eq!(claimed_bytes("BAAAAAAAAABhAA=="), Some(4));
        assert_eq!(claimed_bytes("/////w=="), Some(u32::MAX as usize));
        assert_eq!(claimed_bytes("ALQCAACE"), Some(0x2_B400));
        for none in ["", "AAAAA", "AA!AAA"] {
            assert_eq!(claimed_bytes(none), None);
        }
    }
}

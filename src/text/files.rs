//! Reading a tokenizer's files, with errors that name them.

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
    let mut tokenizer = Tokenizer::from_bytes(text)
        .map_err(|error| broken(file, format!("no tokenizer ({error})")))?;
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

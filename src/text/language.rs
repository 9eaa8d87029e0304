//! The language model's tokenizer: byte-level BPE for OPT, Unigram for T5.

use std::path::{Path, PathBuf};

use tokenizers::{
    models::bpe::{BPE, Merges, Vocab},
    pre_tokenizers::byte_level::ByteLevel,
};

use super::{TextError, files, files::Algorithm, special};

/// The special token of every prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PromptMark {
    /// OPT's prompts begin with it.
    First(u32),
    /// T5's prompts end with it.
    Last(u32),
}

impl PromptMark {
    /// The kind of tokenizer that the model with such prompts was trained with.
    fn algorithm(self) -> Algorithm {
        match self {
            Self::First(_) => Algorithm::Bpe,
            Self::Last(_) => Algorithm::Unigram,
        }
    }
}

/// The language model's tokenizer: byte-level BPE for OPT, Unigram for T5.
///
/// For OPT a text becomes its first token (`</s>`, id 2) and the text's pieces, for T5 its pieces and a last token
/// (`</s>`, id 1).
#[derive(Clone, Debug)]
pub struct Tokenizer {
    tokenizer: tokenizers::Tokenizer,
    mark: PromptMark,
    special_ids: Vec<u32>,
    folder: PathBuf,
}

impl Tokenizer {
    /// Reads the tokenizer of a folder in the Hugging Face layout: `tokenizer.json`, or (OPT) `vocab.json`
    /// and `merges.txt`. `mark` is the special token of every prompt, as the model's config has it.
    ///
    /// # Errors
    /// [`TextError`] where files are missing, broken, of another kind of tokenizer, or do not fit together.
    pub fn open(folder: &Path, mark: PromptMark) -> Result<Self, TextError> {
        let special_files = special::SpecialFiles::read(folder)?;
        let whole = folder.join("tokenizer.json");
        let mut tokenizer = if whole.exists() {
            files::tokenizer_json(&whole, mark.algorithm())?
        } else if let PromptMark::Last(_) = mark {
            return Err(TextError::NoTokenizer {
                folder: folder.to_owned(),
                wanted: "tokenizer.json",
            });
        } else {
            let prefix_space = special_files.flag("add_prefix_space").unwrap_or(false);
            from_vocab_and_merges(folder, prefix_space)?
        };
        special_files.add_to(&mut tokenizer, folder)?;
        Self::with_mark(tokenizer, folder, mark)
    }

    /// The tokenizer of a `tokenizer.json`'s text; `name` stands for it in errors.
    ///
    /// # Errors
    /// As [`Tokenizer::open`].
    pub fn from_json(text: &[u8], name: &Path, mark: PromptMark) -> Result<Self, TextError> {
        let tokenizer = files::parse_tokenizer(text, name, mark.algorithm())?;
        Self::with_mark(tokenizer, name, mark)
    }

    fn with_mark(
        tokenizer: tokenizers::Tokenizer,
        folder: &Path,
        mark: PromptMark,
    ) -> Result<Self, TextError> {
        let (role, id) = match mark {
            PromptMark::First(id) => ("first (bos)", id),
            PromptMark::Last(id) => ("last (eos)", id),
        };
        if tokenizer.id_to_token(id).is_none() {
            return Err(TextError::NoSpecialToken {
                folder: folder.to_owned(),
                role,
                wanted: id.to_string(),
            });
        }
        Ok(Self {
            special_ids: special::special_ids(&tokenizer),
            tokenizer,
            mark,
            folder: folder.to_owned(),
        })
    }

    /// Token ids of the prompt `text`, with the first token before or the last after them.
    ///
    /// # Errors
    /// [`TextError::Failed`] where the tokenizer cannot read it (no text is known to do so).
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TextError> {
        let ids = self.encode_end(text)?;
        Ok(match self.mark {
            PromptMark::First(id) => [vec![id], ids].concat(),
            PromptMark::Last(_) => ids,
        })
    }

    /// [`Tokenizer::encode`] for `text` at the end of a prompt that has begun already.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_end(&self, text: &str) -> Result<Vec<u32>, TextError> {
        let mut ids = self.encode_alone(text)?;
        if let PromptMark::Last(id) = self.mark {
            ids.push(id);
        }
        Ok(ids)
    }

    /// Token ids of `text` alone. Whatever `tokenizer.json` says to put around a text is left out, as
    /// published files differ in it.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_alone(&self, text: &str) -> Result<Vec<u32>, TextError> {
        let encoding = files::guarded(|| self.tokenizer.encode_fast(text, false));
        Ok(encoding.map_err(|e| self.failed(e))?.get_ids().to_vec())
    }

    /// The text of `ids`, as transformers' `decode`: bytes that are no UTF-8 become U+FFFD, ids
    /// outside the vocabulary are skipped, and so are special tokens if `skip_special`.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, TextError> {
        let text = files::guarded(|| self.tokenizer.decode(ids, skip_special));
        text.map_err(|e| self.failed(e))
    }

    /// The special token of every prompt.
    pub fn mark(&self) -> PromptMark {
        self.mark
    }

    /// The first id of a line break, which ends a text of LAVIS's OPT models. Those with T5 have no such token: their
    /// texts end with `</s>` everywhere.
    pub fn newline(&self) -> Option<u32> {
        match self.mark {
            PromptMark::First(_) => self.encode_alone("\n").ok()?.first().copied(),
            PromptMark::Last(_) => None,
        }
    }

    /// Ids of the special tokens, rising.
    pub fn special_ids(&self) -> &[u32] {
        &self.special_ids
    }

    /// Id of a token by its text in the vocabulary, such as `<image>`.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.tokenizer.token_to_id(token)
    }

    /// Errs where the vocabulary has an id that an embedding of `rows` rows lacks.
    ///
    /// # Errors
    /// [`TextError::VocabularyTooLarge`].
    pub fn check_embedding_rows(&self, rows: usize) -> Result<(), TextError> {
        special::check_embedding_rows(&self.tokenizer, &self.folder, rows, None)
    }

    fn failed(&self, problem: String) -> TextError {
        TextError::Failed {
            folder: self.folder.clone(),
            problem,
        }
    }
}

/// Byte-level BPE from `vocab.json` and `merges.txt`, as transformers' `GPT2Tokenizer` builds it.
fn from_vocab_and_merges(
    folder: &Path,
    prefix_space: bool,
) -> Result<tokenizers::Tokenizer, TextError> {
    let Some((vocab_file, merges_file)) = files::pair(folder, "vocab.json", "merges.txt")? else {
        return Err(TextError::NoTokenizer {
            folder: folder.to_owned(),
            wanted: "tokenizer.json (or vocab.json and merges.txt)",
        });
    };
    let object = files::object(folder, "vocab.json")?.unwrap_or_default();
    let vocab: Vocab = files::ids(&vocab_file, object)?.into_iter().collect();
    let merges = read_merges(&merges_file)?;
    let model = BPE::builder().vocab_and_merges(vocab, merges);
    let model =
        files::guarded(|| model.build()).map_err(|error| files::broken(&merges_file, error))?;
    let mut tokenizer = tokenizers::Tokenizer::new(model);
    let byte_level = ByteLevel::new(prefix_space, true, true);
    tokenizer
        .with_pre_tokenizer(Some(byte_level))
        .with_decoder(Some(ByteLevel::default()));
    Ok(tokenizer)
}

/// The pairs of a `merges.txt`: two pieces a line after an optional `#version` line.
fn read_merges(file: &Path) -> Result<Merges, TextError> {
    let text = files::read(file)?;
    let mut merges = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        if line.is_empty() || line.starts_with("#version") {
            continue;
        }
        match line.split_once(' ') {
            Some((a, b)) if !a.is_empty() && !b.is_empty() && !b.contains(' ') => {
                merges.push((a.to_owned(), b.to_owned()));
            }
            _ => {
                let problem = format!("line {number} is no pair of pieces");
                return Err(files::broken(file, problem));
            }
        }
    }
    Ok(merges)
}

#[cfg(test)]
mod tests;

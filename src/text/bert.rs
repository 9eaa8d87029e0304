use std::path::{Path, PathBuf};

use tokenizers::{
    Tokenizer, decoders::wordpiece::WordPiece as WordPieceDecoder, models::wordpiece::WordPiece,
    normalizers::bert::BertNormalizer, pre_tokenizers::bert::BertPreTokenizer,
};

use super::{TextError, files, files::Algorithm, special};

/// BERT's tokens of their own, first in the files that name no others.
const SPECIAL_TOKENS: [&str; 5] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];

/// The placeholder for images.
const IMAGE: &str = "<image>";

/// The Q-Former's tokenizer: BERT's WordPiece. A text becomes `[CLS]`, its pieces and `[SEP]`.
#[derive(Clone, Debug)]
pub struct BertTokenizer {
    tokenizer: Tokenizer,
    cls_id: u32,
    sep_id: u32,
    /// The placeholder for images that transformers' processor adds. It is cut off before anything is embedded, so the
    /// model has no row for it.
    image_id: Option<u32>,
    folder: PathBuf,
}

impl BertTokenizer {
    /// Reads the tokenizer of a folder: `tokenizer.json`, or `vocab.txt` (lower-cased unless
    /// `tokenizer_config.json` says `"do_lower_case": false`).
    ///
    /// # Errors
    /// [`TextError`] where files are missing, broken, of another kind of tokenizer, or lack `[CLS]` or `[SEP]`.
    pub fn open(folder: &Path) -> Result<Self, TextError> {
        let special_files = special::SpecialFiles::read(folder)?;
        let whole = folder.join("tokenizer.json");
        let mut tokenizer = if whole.exists() {
            files::tokenizer_json(&whole, Algorithm::WordPiece)?
        } else {
            let lower_case = special_files.flag("do_lower_case").unwrap_or(true);
            from_vocab(folder, lower_case)?
        };
        special_files.add_to(&mut tokenizer, folder)?;
        let role = |role: &str, default| special_files.role(role).unwrap_or(default).to_owned();
        let frame = [role("cls_token", "[CLS]"), role("sep_token", "[SEP]")];
        Self::framed_by(tokenizer, folder, frame)
    }

    /// The tokenizer of a `tokenizer.json`'s text, with BERT's own `[CLS]` and `[SEP]`; `name` stands for it in errors.
    ///
    /// # Errors
    /// As [`BertTokenizer::open`].
    pub fn from_json(text: &[u8], name: &Path) -> Result<Self, TextError> {
        let frame = ["[CLS]", "[SEP]"].map(String::from);
        let tokenizer = files::parse_tokenizer(text, name, Algorithm::WordPiece)?;
        Self::framed_by(tokenizer, name, frame)
    }

    /// `frame`: the tokens before and after each text.
    fn framed_by(
        tokenizer: Tokenizer,
        folder: &Path,
        frame: [String; 2],
    ) -> Result<Self, TextError> {
        let id = |role: &'static str, token: &String| {
            tokenizer
                .token_to_id(token)
                .ok_or_else(|| TextError::NoSpecialToken {
                    folder: folder.to_owned(),
                    role,
                    wanted: token.clone(),
                })
        };
        Ok(Self {
            cls_id: id("cls_token", &frame[0])?,
            sep_id: id("sep_token", &frame[1])?,
            image_id: tokenizer.token_to_id(IMAGE),
            tokenizer,
            folder: folder.to_owned(),
        })
    }

    /// Token ids of `text`: `[CLS]`, its pieces, `[SEP]`; of a long text only so many of the first
    /// pieces that there are at most `max_tokens` ids (but always the two around them). Placeholders for images stand
    /// for no word and are left out.
    ///
    /// # Errors
    /// [`TextError::Failed`] where the tokenizer cannot read it (no text is known to do so).
    pub fn encode(&self, text: &str, max_tokens: Option<usize>) -> Result<Vec<u32>, TextError> {
        let encoding = files::guarded(|| self.tokenizer.encode_fast(text, false));
        let encoding = encoding.map_err(|problem| TextError::Failed {
            folder: self.folder.clone(),
            problem,
        })?;
        let room = max_tokens.map_or(usize::MAX, |most| most.saturating_sub(2));
        let pieces = encoding.get_ids().iter();
        let pieces = pieces.filter(|&&id| Some(id) != self.image_id).take(room);
        let mut ids = vec![self.cls_id];
        ids.extend(pieces);
        ids.push(self.sep_id);
        Ok(ids)
    }

    /// Id of a token by its text in the vocabulary, such as `[DEC]`.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.tokenizer.token_to_id(token)
    }

    /// Errs where the vocabulary has an id that an embedding of `rows` rows lacks.
    ///
    /// # Errors
    /// [`TextError::VocabularyTooLarge`].
    pub fn check_embedding_rows(&self, rows: usize) -> Result<(), TextError> {
        special::check_embedding_rows(&self.tokenizer, &self.folder, rows, self.image_id)
    }
}

/// WordPiece from a `vocab.txt`: a token a line, its id the line's number from 0.
fn from_vocab(folder: &Path, lower_case: bool) -> Result<Tokenizer, TextError> {
    let file = folder.join("vocab.txt");
    if !file.exists() {
        return Err(TextError::NoTokenizer {
            folder: folder.to_owned(),
            wanted: "BERT's tokenizer.json (or vocab.txt)",
        });
    }
    let vocab = WordPiece::read_bytes(files::read(&file)?.as_bytes())
        .map_err(|error| files::broken(&file, error))?;
    if !vocab.contains_key("[UNK]") {
        return Err(files::broken(&file, "no line is [UNK]"));
    }
    let model = WordPiece::builder()
        .vocab(vocab)
        .build()
        .map_err(|error| files::broken(&file, error))?;
    let mut tokenizer = Tokenizer::new(model);
    tokenizer
        .with_normalizer(Some(BertNormalizer::new(true, true, None, lower_case)))
        .map_err(|error| files::broken(&file, error))?
        .with_pre_tokenizer(Some(BertPreTokenizer))
        .with_decoder(Some(WordPieceDecoder::default()));
    let known = SPECIAL_TOKENS
        .iter()
        .filter(|t| tokenizer.token_to_id(t).is_some());
    let known: Vec<_> = known
        .map(|t| tokenizers::AddedToken::from(*t, true))
        .collect();
    tokenizer
        .add_special_tokens(known)
        .map_err(|error| files::broken(&file, error))?;
    Ok(tokenizer)
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOCAB: &str = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nphoto\ncat\n##s\n,\ncafe\n";

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        folder
    }

    #[test]
    fn text_is_lower_cased_split_and_framed() {
        let folder = folder(&[("vocab.txt", VOCAB)]);
        let bert = BertTokenizer::open(folder.path()).unwrap();
        assert_eq!(
            bert.encode("A PHOTO, cats", None).unwrap(),
            [2, 5, 6, 9, 7, 8, 3]
        );
        assert_eq!(
            bert.encode("Café dog [MASK]", None).unwrap(),
            [2, 10, 1, 4, 3]
        );
        assert_eq!(bert.encode("", None).unwrap(), [2, 3]);
        assert_eq!(bert.encode("a photo, cats", Some(4)).unwrap(), [2, 5, 6, 3]);
        assert_eq!(bert.encode("a", Some(0)).unwrap(), [2, 3]);
        bert.check_embedding_rows(11).unwrap();
        assert!(bert.check_embedding_rows(10).is_err());
    }

    #[test]
    fn the_image_placeholder_needs_no_embedding() {
        let config = r#"{"additional_special_tokens": ["<image>"]}"#;
        let folder = folder(&[("vocab.txt", VOCAB), ("tokenizer_config.json", config)]);
        let bert = BertTokenizer::open(folder.path()).unwrap();
        assert_eq!(bert.token_id("<image>"), Some(11));
        bert.check_embedding_rows(11).unwrap();
        assert!(bert.check_embedding_rows(10).is_err());
        assert_eq!(bert.encode("a <image> cat", None).unwrap(), [2, 5, 7, 3]);
    }

    #[test]
    fn case_is_kept_where_the_config_says_so() {
        let config = r#"{"do_lower_case": false, "additional_special_tokens": ["[DEC]"]}"#;
        let folder = folder(&[("vocab.txt", VOCAB), ("tokenizer_config.json", config)]);
        let bert = BertTokenizer::open(folder.path()).unwrap();
        assert_eq!(bert.encode("A a [DEC]", None).unwrap(), [2, 1, 5, 11, 3]);
        assert_eq!(bert.token_id("[DEC]"), Some(11));
    }

    #[test]
    fn missing_pieces_are_named() {
        let error = |files: &[(&str, &str)]| {
            let folder = folder(files);
            BertTokenizer::open(folder.path()).unwrap_err().to_string()
        };
        assert!(error(&[]).contains("vocab.txt"));
        assert!(error(&[("vocab.txt", "a\nb\n")]).contains("[UNK]"));
        assert!(error(&[("vocab.txt", "[UNK]\n[CLS]\n")]).contains("[SEP]"));
        assert!(error(&[("tokenizer.json", "{")]).contains("tokenizer.json"));
    }

    #[derive(serde::Deserialize)]
    struct Expected {
        text: String,
        ids: Vec<u32>,
    }

    #[test]
    fn bert_base_uncased_encodes_as_expected() {
        let Some(shared) = std::env::var_os("BLIP2_WGPU_SHARED") else {
            eprintln!("skipped: BLIP2_WGPU_SHARED is not set");
            return;
        };
        let shared = Path::new(&shared).join("data/bert_tokenizer");
        let expected = std::fs::read_to_string(shared.join("expected_encodings.json")).unwrap();
        let expected: Vec<Expected> = serde_json::from_str(&expected).unwrap();
        assert!(!expected.is_empty());
        let vocab = std::fs::read_to_string(shared.join("vocab.txt")).unwrap();
        let config = r#"{"additional_special_tokens": ["[DEC]"]}"#;
        let split = folder(&[("vocab.txt", &vocab), ("tokenizer_config.json", config)]);
        for folder in [shared.as_path(), split.path()] {
            let bert = BertTokenizer::open(folder).unwrap();
            for case in &expected {
                assert_eq!(
                    bert.encode(&case.text, None).unwrap(),
                    case.ids,
                    "{}",
                    case.text
                );
            }
            assert_eq!(bert.token_id("[DEC]"), Some(30522));
        }
    }
}

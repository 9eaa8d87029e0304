//! Text to token ids and back, from the tokenizer files of a Hugging Face folder.
//!
//! [`Tokenizer`] is the language model's (byte-level BPE or Unigram), [`BertTokenizer`] the Q-Former's
//! (WordPiece), [`TextStream`] shows text while its tokens are still being generated.

mod bert;
mod error;
mod files;
mod language;
mod special;
mod stop;
mod stream;

pub use bert::BertTokenizer;
pub use error::TextError;
pub use language::{PromptMark, Tokenizer};
pub use stop::StopStrings;
pub use stream::TextStream;
#[cfg(feature = "fuzzing")]
pub(crate) use stream::fuzz_shown;

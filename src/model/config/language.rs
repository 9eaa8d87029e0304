//! The language model behind the Q-Former: a file each in this module's folder.

mod opt;
mod t5;

use crate::text::PromptMark;

use super::USE_BLIP2;
use super::fields::{ConfigError, Section};

pub use opt::OptConfig;
pub use t5::T5Config;

/// A language model.
#[derive(Clone, Debug, PartialEq)]
pub enum LanguageConfig {
    /// A decoder that continues the image's rows and the prompt.
    Opt(OptConfig),
    /// An encoder of the image's rows and the prompt, and a decoder that looks at what it made of
    /// them.
    T5(T5Config),
}

/// What the rest of the program asks of a language model's configuration.
pub trait DecoderConfig {
    /// Width of the residual stream and of the token embedding.
    fn hidden_size(&self) -> usize;

    /// Rows of the token embedding.
    fn vocab_size(&self) -> usize;

    /// Most positions of a request: image, prompt and new tokens.
    fn max_positions(&self) -> usize;

    /// Tokens that end a text (`generation_config.json` overrides them).
    fn eos_token_ids(&self) -> &[u32];

    /// Padding token.
    fn pad_token_id(&self) -> u32;

    /// The special token of every prompt.
    fn prompt_mark(&self) -> PromptMark;

    /// First token of every prompt; T5's prompts have none.
    fn bos_token_id(&self) -> Option<u32> {
        match self.prompt_mark() {
            PromptMark::First(id) => Some(id),
            PromptMark::Last(_) => None,
        }
    }

    /// What a decoder that follows an encoder begins its text with; others go on after the prompt.
    fn decoder_start_token_id(&self) -> Option<u32> {
        None
    }

    /// Its name and its sizes, for people.
    fn summary(&self) -> (&'static str, String);
}

impl LanguageConfig {
    /// Reads `text_config`; without a `model_type` it is OPT, as in transformers.
    pub(super) fn read(section: &Section) -> Result<Self, ConfigError> {
        match section.text("model_type")? {
            None | Some("opt") => Ok(Self::Opt(OptConfig::read(section)?)),
            Some("t5") => Ok(Self::T5(T5Config::read(section)?)),
            Some(_) => Err(section.error(
                "model_type",
                format!("only \"opt\" and \"t5\" are supported; {USE_BLIP2}"),
            )),
        }
    }
}

impl std::ops::Deref for LanguageConfig {
    type Target = dyn DecoderConfig;

    fn deref(&self) -> &Self::Target {
        match self {
            Self::Opt(opt) => opt,
            Self::T5(t5) => t5,
        }
    }
}

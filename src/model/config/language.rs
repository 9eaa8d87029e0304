//! The language model behind the Q-Former: OPT, or T5.

use super::fields::{ConfigError, Section};
use super::{OptConfig, T5Config, USE_BLIP2};

/// A language model.
#[derive(Clone, Debug, PartialEq)]
pub enum LanguageConfig {
    /// A decoder that continues the image's rows and the prompt.
    Opt(OptConfig),
    /// An encoder of the image's rows and the prompt, and a decoder that looks at what it made of them.
    T5(T5Config),
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

    /// The decoder-only model, if it is one.
    #[must_use]
    pub fn opt(&self) -> Option<&OptConfig> {
        match self {
            Self::Opt(opt) => Some(opt),
            Self::T5(_) => None,
        }
    }

    /// The encoder-decoder, if it is one.
    #[must_use]
    pub fn t5(&self) -> Option<&T5Config> {
        match self {
            Self::Opt(_) => None,
            Self::T5(t5) => Some(t5),
        }
    }

    /// Width of the residual stream and of the token embedding.
    #[must_use]
    pub fn hidden_size(&self) -> usize {
        match self {
            Self::Opt(opt) => opt.hidden_size,
            Self::T5(t5) => t5.d_model,
        }
    }

    /// Rows of the token embedding.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        match self {
            Self::Opt(opt) => opt.vocab_size,
            Self::T5(t5) => t5.vocab_size,
        }
    }

    /// Most positions of a request: image, prompt and new tokens.
    #[must_use]
    pub fn max_positions(&self) -> usize {
        match self {
            Self::Opt(opt) => opt.max_position_embeddings,
            Self::T5(_) => T5Config::MAX_POSITIONS,
        }
    }

    /// Tokens that end a text (`generation_config.json` overrides them).
    #[must_use]
    pub fn eos_token_ids(&self) -> &[u32] {
        match self {
            Self::Opt(opt) => &opt.eos_token_ids,
            Self::T5(t5) => &t5.eos_token_ids,
        }
    }

    /// Padding token.
    #[must_use]
    pub fn pad_token_id(&self) -> u32 {
        match self {
            Self::Opt(opt) => opt.pad_token_id,
            Self::T5(t5) => t5.pad_token_id,
        }
    }

    /// First token of every prompt; T5's prompts have none.
    #[must_use]
    pub fn bos_token_id(&self) -> Option<u32> {
        self.opt().map(|opt| opt.bos_token_id)
    }

    /// What a decoder that follows an encoder begins its text with; OPT goes on after the prompt.
    #[must_use]
    pub fn decoder_start_token_id(&self) -> Option<u32> {
        self.t5().map(|t5| t5.decoder_start_token_id)
    }
}

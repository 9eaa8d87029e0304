//! The decoder of the blip2-opt models.

use crate::kernels::MAX_NORM_WIDTH;
use crate::text::PromptMark;

use super::super::fields::{ConfigError, Section};
use super::super::{
    Activation, MAX_INNER_WIDTH, MAX_LAYERS, MAX_POSITIONS, MAX_VOCABULARY, MAX_WIDTH, USE_BLIP2,
    activation, check_heads, check_width,
};
use super::DecoderConfig;

/// The OPT language model.
#[derive(Clone, Debug, PartialEq)]
pub struct OptConfig {
    /// Rows of the token embedding: 50272 or, in newer revisions, 50304.
    pub vocab_size: usize,
    /// Width of the residual stream and of the token embedding.
    pub hidden_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Attention heads a layer.
    pub num_attention_heads: usize,
    /// Width inside the feed-forward blocks.
    pub ffn_dim: usize,
    /// Longest sequence; the position table has two rows more.
    pub max_position_embeddings: usize,
    /// Activation of the feed-forward blocks.
    pub activation_function: Activation,
    /// Whether the output matrix is the token embedding.
    pub tie_word_embeddings: bool,
    /// Padding token.
    pub pad_token_id: u32,
    /// First token of every text.
    pub bos_token_id: u32,
    /// Tokens that end a text (`generation_config.json` overrides them).
    pub eos_token_ids: Vec<u32>,
}

impl OptConfig {
    pub(super) fn read(section: &Section) -> Result<Self, ConfigError> {
        check_opt(section)?;
        let config = Self {
            vocab_size: section.size("vocab_size", 50272, MAX_VOCABULARY)?,
            hidden_size: section.size("hidden_size", 768, MAX_NORM_WIDTH)?,
            num_hidden_layers: section.size("num_hidden_layers", 12, MAX_LAYERS)?,
            num_attention_heads: section.size("num_attention_heads", 12, MAX_WIDTH)?,
            ffn_dim: section.size("ffn_dim", 3072, MAX_INNER_WIDTH)?,
            max_position_embeddings: section.size(
                "max_position_embeddings",
                2048,
                MAX_POSITIONS,
            )?,
            activation_function: activation(section, "activation_function", Activation::Relu)?,
            tie_word_embeddings: section.flag("tie_word_embeddings", true)?,
            pad_token_id: section.token("pad_token_id")?.unwrap_or(1),
            bos_token_id: section.token("bos_token_id")?.unwrap_or(2),
            eos_token_ids: section.tokens("eos_token_id", 2)?,
        };
        check_heads(section, config.hidden_size, config.num_attention_heads)?;
        check_width(section, "ffn_dim", config.ffn_dim)?;
        if section.size("word_embed_proj_dim", config.hidden_size, MAX_WIDTH)? != config.hidden_size
        {
            let problem = format!(
                "token embeddings narrower than hidden_size {} are not supported; {USE_BLIP2}",
                config.hidden_size
            );
            return Err(section.error("word_embed_proj_dim", problem));
        }
        // Every prompt begins with this token, so its row must exist.
        if config.bos_token_id as usize >= config.vocab_size {
            let problem = format!(
                "lies outside the vocabulary of {}; restore both as published",
                config.vocab_size
            );
            return Err(section.error_with_value("bos_token_id", config.bos_token_id, problem));
        }
        Ok(config)
    }

    /// Elements an attention head has.
    pub fn head_dim(&self) -> usize {
        self.hidden_size / self.num_attention_heads
    }

    /// Rows of the position table: OPT keeps two before the first position.
    pub fn position_rows(&self) -> usize {
        self.max_position_embeddings + 2
    }
}

impl DecoderConfig for OptConfig {
    fn hidden_size(&self) -> usize {
        self.hidden_size
    }

    fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    fn max_positions(&self) -> usize {
        self.max_position_embeddings
    }

    fn eos_token_ids(&self) -> &[u32] {
        &self.eos_token_ids
    }

    fn pad_token_id(&self) -> u32 {
        self.pad_token_id
    }

    fn prompt_mark(&self) -> PromptMark {
        PromptMark::First(self.bos_token_id)
    }

    fn summary(&self) -> (&'static str, String) {
        let sizes = format!(
            "{} layers × {}, {} heads × {}, MLP {}, vocabulary {}, {} positions",
            self.num_hidden_layers,
            self.hidden_size,
            self.num_attention_heads,
            self.head_dim(),
            self.ffn_dim,
            self.vocab_size,
            self.max_position_embeddings,
        );
        ("OPT", sizes)
    }
}

/// Refuses OPT models other than pre-norm ones with all their parameters.
fn check_opt(section: &Section) -> Result<(), ConfigError> {
    let wanted = [
        (
            "do_layer_norm_before",
            true,
            "layer norms after the blocks (OPT-350m)",
        ),
        (
            "_remove_final_layer_norm",
            false,
            "a decoder without final layer norm",
        ),
        ("enable_bias", true, "a decoder without biases"),
        (
            "layer_norm_elementwise_affine",
            true,
            "layer norms without parameters",
        ),
    ];
    for (field, supported, what) in wanted {
        if section.flag(field, supported)? != supported {
            return Err(section.error(field, format!("{what} is not supported; {USE_BLIP2}")));
        }
    }
    Ok(())
}

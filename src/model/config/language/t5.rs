//! The encoder-decoder of the blip2-flan-t5 models (T5 v1.1: gated feed-forward blocks).

use crate::kernels::MAX_NORM_WIDTH;
use crate::text::PromptMark;

use super::super::fields::{ConfigError, Section};
use super::super::{
    Activation, HEAD_MULTIPLE, MAX_HEAD, MAX_INNER_WIDTH, MAX_LAYERS, MAX_POSITIONS,
    MAX_VOCABULARY, MAX_WIDTH, USE_BLIP2, WIDTH_MULTIPLE, activation, check_width,
};
use super::DecoderConfig;

/// The T5 language model: an encoder and a decoder.
#[derive(Clone, Debug, PartialEq)]
pub struct T5Config {
    /// Rows of the token embedding, which encoder and decoder share.
    pub vocab_size: usize,
    /// Width of both residual streams.
    pub d_model: usize,
    /// Elements of an attention head.
    pub d_kv: usize,
    /// Width inside the feed-forward blocks.
    pub d_ff: usize,
    /// Blocks of the encoder.
    pub num_layers: usize,
    /// Blocks of the decoder.
    pub num_decoder_layers: usize,
    /// Attention heads a block.
    pub num_heads: usize,
    /// Kinds of distance that have a bias of their own.
    pub relative_attention_num_buckets: usize,
    /// Distance from which on all have the same bias.
    pub relative_attention_max_distance: usize,
    /// Epsilon of all RMS norms.
    pub layer_norm_epsilon: f32,
    /// Activation of the gate in the feed-forward blocks.
    pub dense_act_fn: Activation,
    /// Whether the output matrix is the token embedding where the file has no other.
    pub tie_word_embeddings: bool,
    /// Whether the decoder's output is multiplied by `d_model^-0.5` before the output matrix (T5
    /// before v1.1).
    pub scale_decoder_outputs: bool,
    /// First token of every decoded text.
    pub decoder_start_token_id: u32,
    /// Padding token.
    pub pad_token_id: u32,
    /// Tokens that end a text; the first also ends every prompt.
    pub eos_token_ids: Vec<u32>,
}

impl T5Config {
    /// Most positions of image, prompt and text together. T5 itself knows no limit, its positions
    /// being relative; this one (OPT's) bounds memory.
    pub const MAX_POSITIONS: usize = 2048;

    pub(super) fn read(section: &Section) -> Result<Self, ConfigError> {
        let num_layers = section.size("num_layers", 6, MAX_LAYERS)?;
        let pad_token_id = section.token("pad_token_id")?.unwrap_or(0);
        let tie_word_embeddings = section.flag("tie_word_embeddings", true)?;
        let config = Self {
            vocab_size: section.size("vocab_size", 32128, MAX_VOCABULARY)?,
            d_model: section.size("d_model", 512, MAX_NORM_WIDTH)?,
            d_kv: section.size("d_kv", 64, MAX_WIDTH)?,
            d_ff: section.size("d_ff", 2048, MAX_INNER_WIDTH)?,
            num_layers,
            num_decoder_layers: section.size("num_decoder_layers", num_layers, MAX_LAYERS)?,
            num_heads: section.size("num_heads", 8, MAX_WIDTH)?,
            relative_attention_num_buckets: section.size(
                "relative_attention_num_buckets",
                32,
                MAX_POSITIONS,
            )?,
            relative_attention_max_distance: section.size(
                "relative_attention_max_distance",
                128,
                MAX_POSITIONS,
            )?,
            layer_norm_epsilon: section.epsilon("layer_norm_epsilon", 1e-6)?,
            dense_act_fn: gate(section)?,
            tie_word_embeddings,
            // transformers 5 ties whatever the file says, and keeps what it said for this.
            scale_decoder_outputs: section.flag("scale_decoder_outputs", tie_word_embeddings)?,
            decoder_start_token_id: section
                .token("decoder_start_token_id")?
                .unwrap_or(pad_token_id),
            pad_token_id,
            eos_token_ids: section.tokens("eos_token_id", 1)?,
        };
        check_width(section, "d_model", config.d_model)?;
        check_width(section, "d_ff", config.d_ff)?;
        check_heads(section, &config)?;
        check_buckets(section, &config)?;
        check_tokens(section, &config)?;
        Ok(config)
    }

    /// Width of all heads together, which need not be that of the residual stream.
    #[must_use]
    pub fn inner_size(&self) -> usize {
        self.num_heads * self.d_kv
    }

    /// The token that ends every prompt.
    #[must_use]
    pub fn prompt_end(&self) -> u32 {
        self.eos_token_ids.first().copied().unwrap_or(1)
    }
}

impl DecoderConfig for T5Config {
    fn hidden_size(&self) -> usize {
        self.d_model
    }

    fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    fn max_positions(&self) -> usize {
        Self::MAX_POSITIONS
    }

    fn eos_token_ids(&self) -> &[u32] {
        &self.eos_token_ids
    }

    fn pad_token_id(&self) -> u32 {
        self.pad_token_id
    }

    fn prompt_mark(&self) -> PromptMark {
        PromptMark::Last(self.prompt_end())
    }

    fn decoder_start_token_id(&self) -> Option<u32> {
        Some(self.decoder_start_token_id)
    }

    fn summary(&self) -> (&'static str, String) {
        let sizes = format!(
            "{} encoder and {} decoder layers × {}, {} heads × {}, gated MLP {}, vocabulary {}",
            self.num_layers,
            self.num_decoder_layers,
            self.d_model,
            self.num_heads,
            self.d_kv,
            self.d_ff,
            self.vocab_size,
        );
        ("T5", sizes)
    }
}

/// The gate's activation: `feed_forward_proj` names it, `dense_act_fn` (which LAVIS's conversions
/// have) overrides it.
fn gate(section: &Section) -> Result<Activation, ConfigError> {
    let projection = section.text("feed_forward_proj")?.unwrap_or("relu");
    let Some(act) = projection.strip_prefix("gated-") else {
        return Err(section.error_with_value(
            "feed_forward_proj",
            projection,
            format!(
                "only gated feed-forward blocks (\"gated-gelu\", T5 v1.1 and Flan) are supported; {USE_BLIP2}"
            ),
        ));
    };
    if section.get("dense_act_fn").is_some() || act == "gelu" {
        // "gated-gelu" has always meant the tanh approximation.
        return activation(section, "dense_act_fn", Activation::GeluTanh);
    }
    match act {
        "gelu_new" | "gelu_pytorch_tanh" => Ok(Activation::GeluTanh),
        "relu" => Ok(Activation::Relu),
        _ => Err(section.error(
            "feed_forward_proj",
            format!("unknown activation; known is gated-gelu; {USE_BLIP2}"),
        )),
    }
}

fn check_heads(section: &Section, config: &T5Config) -> Result<(), ConfigError> {
    let problem = if !config.d_kv.is_multiple_of(HEAD_MULTIPLE) {
        format!("must be a multiple of {HEAD_MULTIPLE}; {USE_BLIP2}")
    } else if config.d_kv > MAX_HEAD {
        format!("at most {MAX_HEAD} elements a head are supported; {USE_BLIP2}")
    } else if !config.inner_size().is_multiple_of(WIDTH_MULTIPLE) {
        let heads = config.num_heads;
        format!("times num_heads {heads} must be a multiple of {WIDTH_MULTIPLE}; {USE_BLIP2}")
    } else {
        return Ok(());
    };
    Err(section.error_with_value("d_kv", config.d_kv, problem))
}

fn check_buckets(section: &Section, config: &T5Config) -> Result<(), ConfigError> {
    let (buckets, distance) = (
        config.relative_attention_num_buckets,
        config.relative_attention_max_distance,
    );
    // The encoder has half of them a side, half of those for single distances.
    if buckets < 4 || !buckets.is_multiple_of(4) {
        let problem = format!("must be a multiple of 4; {USE_BLIP2}");
        return Err(section.error_with_value("relative_attention_num_buckets", buckets, problem));
    }
    if distance <= buckets / 2 {
        let problem = format!(
            "must be more than half of relative_attention_num_buckets {buckets}; restore both as published"
        );
        return Err(section.error_with_value("relative_attention_max_distance", distance, problem));
    }
    Ok(())
}

/// The tokens that go in without anyone asking for them have embeddings.
fn check_tokens(section: &Section, config: &T5Config) -> Result<(), ConfigError> {
    for (field, id) in [
        ("decoder_start_token_id", config.decoder_start_token_id),
        ("eos_token_id", config.prompt_end()),
    ] {
        if id as usize >= config.vocab_size {
            let problem = format!(
                "lies outside the vocabulary of {}; restore both as published",
                config.vocab_size
            );
            return Err(section.error_with_value(field, id, problem));
        }
    }
    Ok(())
}

//! T5 v1.1 (Raffel et al., 2020; Shazeer, 2020), as Flan-T5 is: an encoder of the image's rows and the prompt, and a
//! decoder that attends to what the encoder made of them.
//!
//! ```text
//! encoder: rows ─ [ x += attention(norm(x));                        x += wo(gate(wi(norm(x)))) ] × N ─ norm ─ encoded
//! decoder: rows ─ [ x += attention(norm(x)); x += cross(norm(x), encoded); x += wo(gate(wi(norm(x)))) ] × N ─ norm ─ logits
//! ```
//!
//! Everything that is remembered of a request lies in the rows of one paged cache: at the positions of its prompt the
//! keys and values of `encoded` for each layer's cross-attention, at those of its text the decoder's own. While the
//! encoder runs, its keys and values lie at the prompt's positions in the first layer's cache, before the
//! cross-attention's take their place.

mod bias;

use crate::gpu::{Activation, Gpu, GpuError, Matrix, ProgramBuilder};
use crate::kernels::{
    Activate, EmbedTokens, Heads, KvLayer, Linear, RelativeAttention, RelativeBias, RmsNorm, Span,
    attention_relative, embed_tokens, gate, linear, linear_into, linear_to, rms_norm,
    store_cross_kv, store_kv, tap,
};
use crate::weights::{Component, Scope, Tensors, WeightsError};

use super::config::T5Config;
use super::language::{InputRows, KvCache};
use super::layers::{load_rms_norm, load_stacked_unbiased, load_unbiased};
use bias::Buckets;

/// The token embedding of both stacks, and the output matrix where it is tied.
const EMBEDDING: &str = "shared.weight";

/// The encoder's and decoder's weights.
#[derive(Debug)]
pub struct T5 {
    heads: Heads,
    activate: Activate,
    /// Token embedding `[vocabulary, width]`.
    shared: Matrix,
    encoder: Encoder,
    decoder: Decoder,
    /// `[vocabulary, width]`.
    lm_head: Linear,
    decoder_start: u32,
}

#[derive(Debug)]
struct Encoder {
    bias: RelativeBias,
    blocks: Vec<EncoderBlock>,
    final_layer_norm: RmsNorm,
}

#[derive(Debug)]
struct EncoderBlock {
    attention: SelfAttention,
    feed_forward: FeedForward,
}

#[derive(Debug)]
struct Decoder {
    bias: RelativeBias,
    blocks: Vec<DecoderBlock>,
    final_layer_norm: RmsNorm,
}

#[derive(Debug)]
struct DecoderBlock {
    attention: SelfAttention,
    cross: CrossAttention,
    feed_forward: FeedForward,
}

#[derive(Debug)]
struct SelfAttention {
    layer_norm: RmsNorm,
    /// q, k and v stacked: `[3 · inner, width]`.
    qkv: Linear,
    o: Linear,
}

#[derive(Debug)]
struct CrossAttention {
    layer_norm: RmsNorm,
    q: Linear,
    /// k and v of the encoder's output, stacked: `[2 · inner, width]`.
    kv: Linear,
    o: Linear,
}

#[derive(Debug)]
struct FeedForward {
    layer_norm: RmsNorm,
    /// The gate and what it lets through, stacked: `[2 · d_ff, width]`.
    wi: Linear,
    wo: Linear,
}

impl T5 {
    /// Takes the tensors below `language_model.`
    ///
    /// # Errors
    /// A missing or misshapen tensor.
    pub fn load(tensors: &Tensors, config: &T5Config) -> Result<Self, WeightsError> {
        let scope = tensors.part(Component::LanguageModel, "language_model");
        let vocabulary = [config.vocab_size, config.d_model];
        let shared = scope.table(EMBEDDING, &vocabulary)?;
        let encoder = Encoder::load(&scope.pp("encoder"), config)?;
        let decoder = Decoder::load(&scope.pp("decoder"), config)?;
        let lm_head = scope.output_matrix(
            "lm_head.weight",
            (EMBEDDING, &shared),
            &vocabulary,
            config.tie_word_embeddings,
        )?;
        Ok(Self {
            heads: Heads {
                count: config.num_heads,
                dim: config.d_kv,
            },
            activate: config.dense_act_fn.into(),
            shared,
            encoder,
            decoder,
            lm_head: Linear {
                weight: lm_head,
                bias: None,
            },
            decoder_start: config.decoder_start_token_id,
        })
    }

    /// Width of the residual streams.
    #[must_use]
    pub fn hidden_size(&self) -> usize {
        self.shared.columns
    }

    /// Number of logits.
    #[must_use]
    pub fn vocabulary(&self) -> usize {
        self.lm_head.weight.rows
    }

    /// The first token of every decoded text.
    #[must_use]
    pub fn decoder_start(&self) -> u32 {
        self.decoder_start
    }

    /// Width of a cache row in one layer.
    #[must_use]
    pub fn cache_width(&self) -> usize {
        self.heads.width()
    }

    /// Layers of the cache: the decoder's.
    #[must_use]
    pub fn cache_layers(&self) -> usize {
        self.decoder.blocks.len()
    }

    /// An empty cache of `rows` physical rows.
    ///
    /// # Errors
    /// No room on the device.
    pub fn kv_cache(&self, gpu: &Gpu, rows: usize) -> Result<KvCache, GpuError> {
        KvCache::new(gpu, self.cache_layers(), self.cache_width(), rows)
    }

    /// Encodes the prompts' rows; every decoder layer's keys and values of the result go into the cache.
    pub fn encode(&self, program: &mut ProgramBuilder, rows: &InputRows) {
        let hidden = self.embed(program, rows);
        tap(program, &hidden, || "t5.encoder.embeddings".into());
        let [scratch, ..] = rows.cache.layers() else {
            return;
        };
        for (index, block) in self.encoder.blocks.iter().enumerate() {
            let attention = &block.attention;
            self.attend(program, attention, &hidden, rows, scratch, Span::Prompt);
            self.feed_forward(program, &block.feed_forward, &hidden);
            tap(program, &hidden, || format!("t5.encoder.block.{index}"));
        }
        let encoded = rms_norm(program, &hidden, &self.encoder.final_layer_norm);
        tap(program, &encoded, || "t5.encoder.final_norm".into());
        for (block, cache) in self.decoder.blocks.iter().zip(rows.cache.layers()) {
            let kv = linear(program, &encoded, &block.cross.kv, Activate::Identity); // [rows, 2 · inner]
            store_cross_kv(program, &kv, cache, rows.pages);
        }
    }

    /// Rows of tokens → last hidden states `[rows, width]`, before the final norm; their keys and values go into the
    /// cache, which holds their encoded prompts already.
    pub fn decode(&self, program: &mut ProgramBuilder, rows: &InputRows) -> Activation {
        let hidden = self.embed(program, rows);
        tap(program, &hidden, || "t5.decoder.embeddings".into());
        for (index, block) in self.decoder.blocks.iter().enumerate() {
            let cache = &rows.cache.layers()[index];
            self.attend(program, &block.attention, &hidden, rows, cache, Span::Text);
            self.cross_attend(program, &block.cross, &hidden, rows, cache);
            self.feed_forward(program, &block.feed_forward, &hidden);
            tap(program, &hidden, || format!("t5.decoder.block.{index}"));
        }
        hidden
    }

    /// `hidden` `[rows, width]` → `logits` `[rows, vocabulary]`.
    pub fn logits(&self, program: &mut ProgramBuilder, hidden: &Activation, logits: &Activation) {
        let normed = rms_norm(program, hidden, &self.decoder.final_layer_norm);
        tap(program, &normed, || "t5.decoder.final_norm".into());
        linear_to(program, &normed, &self.lm_head, Activate::Identity, logits);
        tap(program, logits, || "logits".into());
    }

    /// Token embeddings and visual rows; T5 adds no positions to them.
    fn embed(&self, program: &mut ProgramBuilder, rows: &InputRows) -> Activation {
        let inputs = EmbedTokens {
            tokens: rows.tokens,
            row_info: &rows.pages.row_info,
            rows: rows.count,
            embedding: &self.shared,
            positions: None,
            visual: rows.visual,
        };
        embed_tokens(program, &inputs)
    }

    /// `hidden += o(attention(norm(hidden)))` with relative bias.
    fn attend(
        &self,
        program: &mut ProgramBuilder,
        layer: &SelfAttention,
        hidden: &Activation,
        rows: &InputRows,
        cache: &KvLayer,
        span: Span,
    ) {
        let normed = rms_norm(program, hidden, &layer.layer_norm);
        let qkv = linear(program, &normed, &layer.qkv, Activate::Identity); // [rows, 3 · inner]
        if span != Span::Text {
            store_kv(program, &qkv, cache, rows.pages);
        }
        let context = self.attention(program, &qkv, rows, cache, span);
        linear_into(program, &context, &layer.o, hidden);
    }

    /// `hidden += o(attention(norm(hidden), encoded))`.
    fn cross_attend(
        &self,
        program: &mut ProgramBuilder,
        layer: &CrossAttention,
        hidden: &Activation,
        rows: &InputRows,
        cache: &KvLayer,
    ) {
        let normed = rms_norm(program, hidden, &layer.layer_norm);
        let q = linear(program, &normed, &layer.q, Activate::Identity); // [rows, inner]
        let context = self.attention(program, &q, rows, cache, Span::Encoded);
        linear_into(program, &context, &layer.o, hidden);
    }

    fn attention(
        &self,
        program: &mut ProgramBuilder,
        q: &Activation,
        rows: &InputRows,
        cache: &KvLayer,
        span: Span,
    ) -> Activation {
        let bias = match span {
            Span::Prompt => &self.encoder.bias,
            Span::Text | Span::Encoded => &self.decoder.bias,
        };
        let inputs = RelativeAttention {
            q,
            cache,
            pages: rows.pages,
            prompt_lengths: rows.prompt_lengths,
            heads: self.heads,
            span,
            bias,
        };
        attention_relative(program, &inputs)
    }

    /// `hidden += wo(gate(wi(norm(hidden))))`.
    fn feed_forward(&self, program: &mut ProgramBuilder, layer: &FeedForward, hidden: &Activation) {
        let normed = rms_norm(program, hidden, &layer.layer_norm);
        let inner = linear(program, &normed, &layer.wi, Activate::Identity); // [rows, 2 · d_ff]
        let inner = gate(program, &inner, self.activate);
        linear_into(program, &inner, &layer.wo, hidden);
    }
}

impl Encoder {
    fn load(scope: &Scope, config: &T5Config) -> Result<Self, WeightsError> {
        let block = |attention, layers: &Scope| {
            Ok(EncoderBlock {
                attention,
                feed_forward: FeedForward::load(&layers.pp(1), config)?,
            })
        };
        let (bias, blocks) = load_blocks(scope, config, config.num_layers, true, block)?;
        Ok(Self {
            bias,
            blocks,
            final_layer_norm: load_norm(scope, "final_layer_norm", config)?,
        })
    }
}

impl Decoder {
    fn load(scope: &Scope, config: &T5Config) -> Result<Self, WeightsError> {
        let block = |attention, layers: &Scope| {
            Ok(DecoderBlock {
                attention,
                cross: CrossAttention::load(&layers.pp(1), config)?,
                feed_forward: FeedForward::load(&layers.pp(2), config)?,
            })
        };
        let (bias, blocks) = load_blocks(scope, config, config.num_decoder_layers, false, block)?;
        let mut final_layer_norm = load_norm(scope, "final_layer_norm", config)?;
        if config.scale_decoder_outputs {
            final_layer_norm.factor = (config.d_model as f32).powf(-0.5);
        }
        Ok(Self {
            bias,
            blocks,
            final_layer_norm,
        })
    }
}

/// The blocks of a stack, of whose layers `block` takes what follows the self-attention; and the relative bias, which the first
/// block has for all of them.
fn load_blocks<B>(
    scope: &Scope,
    config: &T5Config,
    count: usize,
    bidirectional: bool,
    block: impl Fn(SelfAttention, &Scope) -> Result<B, WeightsError>,
) -> Result<(RelativeBias, Vec<B>), WeightsError> {
    let layers = |index| scope.pp("block").pp(index).pp("layer");
    let attention = |layers: &Scope| SelfAttention::load(&layers.pp(0), config);
    let first = layers(0);
    let first_attention = attention(&first)?;
    let bias = load_bias(&first.pp("0.SelfAttention"), config, bidirectional)?;
    let mut blocks = vec![block(first_attention, &first)?];
    for index in 1..count {
        let layers = layers(index);
        blocks.push(block(attention(&layers)?, &layers)?);
    }
    Ok((bias, blocks))
}

impl SelfAttention {
    fn load(scope: &Scope, config: &T5Config) -> Result<Self, WeightsError> {
        let (width, inner) = (config.d_model, config.inner_size());
        let attention = scope.pp("SelfAttention");
        Ok(Self {
            qkv: load_stacked_unbiased(&attention, &["q", "k", "v"], inner, width)?,
            o: load_unbiased(&attention, "o", width, inner)?,
            layer_norm: load_norm(scope, "layer_norm", config)?,
        })
    }
}

impl CrossAttention {
    fn load(scope: &Scope, config: &T5Config) -> Result<Self, WeightsError> {
        let (width, inner) = (config.d_model, config.inner_size());
        let attention = scope.pp("EncDecAttention");
        Ok(Self {
            q: load_unbiased(&attention, "q", inner, width)?,
            kv: load_stacked_unbiased(&attention, &["k", "v"], inner, width)?,
            o: load_unbiased(&attention, "o", width, inner)?,
            layer_norm: load_norm(scope, "layer_norm", config)?,
        })
    }
}

impl FeedForward {
    fn load(scope: &Scope, config: &T5Config) -> Result<Self, WeightsError> {
        let (width, inner) = (config.d_model, config.d_ff);
        let dense = scope.pp("DenseReluDense");
        Ok(Self {
            wi: load_stacked_unbiased(&dense, &["wi_0", "wi_1"], inner, width)?,
            wo: load_unbiased(&dense, "wo", width, inner)?,
            layer_norm: load_norm(scope, "layer_norm", config)?,
        })
    }
}

fn load_norm(scope: &Scope, name: &str, config: &T5Config) -> Result<RmsNorm, WeightsError> {
    load_rms_norm(scope, name, config.d_model, config.layer_norm_epsilon)
}

/// The relative bias in a block's self-attention, spread out by distance.
fn load_bias(
    scope: &Scope,
    config: &T5Config,
    bidirectional: bool,
) -> Result<RelativeBias, WeightsError> {
    let buckets = Buckets {
        count: config.relative_attention_num_buckets,
        max_distance: config.relative_attention_max_distance,
        bidirectional,
    };
    let values = scope.changed_vector(
        "relative_attention_bias.weight",
        &[buckets.count, config.num_heads],
        config.num_heads * buckets.distances(),
        move |table| buckets.by_distance(&table),
    )?;
    Ok(RelativeBias {
        values,
        reach: config.relative_attention_max_distance,
    })
}

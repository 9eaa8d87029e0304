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
use crate::weights::{UploadError, Uploader};

use super::config::T5Config;
use super::language::{InputRows, KvCache};
use super::layers::{load_rms_norm, load_unbiased};
use super::tensors::T5_EMBEDDING;
use bias::Buckets;

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
    /// Uploads the tensors below `language_model.`.
    ///
    /// # Errors
    /// A missing or misshapen tensor, or no room on the device.
    pub async fn load(uploader: &mut Uploader<'_>, config: &T5Config) -> Result<Self, UploadError> {
        let vocabulary = [config.vocab_size, config.d_model];
        let shared = uploader.matrix(T5_EMBEDDING, &vocabulary).await?;
        let encoder = Encoder::load(uploader, config).await?;
        let decoder = Decoder::load(uploader, config).await?;
        let checkpoint = uploader.checkpoint();
        let lm_head =
            match checkpoint.lm_head(T5_EMBEDDING, config.tie_word_embeddings, &vocabulary)? {
                Some(weight) => uploader.matrix_of(&[weight]).await?,
                None => shared.clone(),
            };
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
    async fn load(uploader: &mut Uploader<'_>, config: &T5Config) -> Result<Self, UploadError> {
        let name = "language_model.encoder";
        let mut blocks = Vec::new();
        for index in 0..config.num_layers {
            let block = format!("{name}.block.{index}.layer");
            blocks.push(EncoderBlock {
                attention: SelfAttention::load(uploader, config, &format!("{block}.0")).await?,
                feed_forward: FeedForward::load(uploader, config, &format!("{block}.1")).await?,
            });
        }
        Ok(Self {
            bias: load_bias(uploader, config, name, true)?,
            blocks,
            final_layer_norm: load_norm(uploader, config, &format!("{name}.final_layer_norm"))
                .await?,
        })
    }
}

impl Decoder {
    async fn load(uploader: &mut Uploader<'_>, config: &T5Config) -> Result<Self, UploadError> {
        let name = "language_model.decoder";
        let mut blocks = Vec::new();
        for index in 0..config.num_decoder_layers {
            let block = format!("{name}.block.{index}.layer");
            blocks.push(DecoderBlock {
                attention: SelfAttention::load(uploader, config, &format!("{block}.0")).await?,
                cross: CrossAttention::load(uploader, config, &format!("{block}.1")).await?,
                feed_forward: FeedForward::load(uploader, config, &format!("{block}.2")).await?,
            });
        }
        let mut final_layer_norm =
            load_norm(uploader, config, &format!("{name}.final_layer_norm")).await?;
        if config.scale_decoder_outputs {
            final_layer_norm.factor = (config.d_model as f32).powf(-0.5);
        }
        Ok(Self {
            bias: load_bias(uploader, config, name, false)?,
            blocks,
            final_layer_norm,
        })
    }
}

impl SelfAttention {
    async fn load(
        uploader: &mut Uploader<'_>,
        config: &T5Config,
        layer: &str,
    ) -> Result<Self, UploadError> {
        let (width, inner) = (config.d_model, config.inner_size());
        let [q, k, v, o] = ["q", "k", "v", "o"].map(|kind| format!("{layer}.SelfAttention.{kind}"));
        Ok(Self {
            layer_norm: load_norm(uploader, config, &format!("{layer}.layer_norm")).await?,
            qkv: load_unbiased(uploader, &[&q, &k, &v], inner, width).await?,
            o: load_unbiased(uploader, &[&o], width, inner).await?,
        })
    }
}

impl CrossAttention {
    async fn load(
        uploader: &mut Uploader<'_>,
        config: &T5Config,
        layer: &str,
    ) -> Result<Self, UploadError> {
        let (width, inner) = (config.d_model, config.inner_size());
        let [q, k, v, o] =
            ["q", "k", "v", "o"].map(|kind| format!("{layer}.EncDecAttention.{kind}"));
        Ok(Self {
            layer_norm: load_norm(uploader, config, &format!("{layer}.layer_norm")).await?,
            q: load_unbiased(uploader, &[&q], inner, width).await?,
            kv: load_unbiased(uploader, &[&k, &v], inner, width).await?,
            o: load_unbiased(uploader, &[&o], width, inner).await?,
        })
    }
}

impl FeedForward {
    async fn load(
        uploader: &mut Uploader<'_>,
        config: &T5Config,
        layer: &str,
    ) -> Result<Self, UploadError> {
        let (width, inner) = (config.d_model, config.d_ff);
        let [wi_0, wi_1, wo] =
            ["wi_0", "wi_1", "wo"].map(|kind| format!("{layer}.DenseReluDense.{kind}"));
        Ok(Self {
            layer_norm: load_norm(uploader, config, &format!("{layer}.layer_norm")).await?,
            wi: load_unbiased(uploader, &[&wi_0, &wi_1], inner, width).await?,
            wo: load_unbiased(uploader, &[&wo], width, inner).await?,
        })
    }
}

async fn load_norm(
    uploader: &mut Uploader<'_>,
    config: &T5Config,
    name: &str,
) -> Result<RmsNorm, UploadError> {
    load_rms_norm(uploader, name, config.d_model, config.layer_norm_epsilon).await
}

/// The bias of a stack: its first block's, which the others use too.
fn load_bias(
    uploader: &mut Uploader<'_>,
    config: &T5Config,
    stack: &str,
    bidirectional: bool,
) -> Result<RelativeBias, UploadError> {
    let buckets = Buckets {
        count: config.relative_attention_num_buckets,
        max_distance: config.relative_attention_max_distance,
        bidirectional,
    };
    let name = format!("{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight");
    let values = uploader.changed_vector(&name, &[buckets.count, config.num_heads], |table| {
        buckets.by_distance(&table)
    })?;
    Ok(RelativeBias {
        values,
        reach: config.relative_attention_max_distance,
    })
}

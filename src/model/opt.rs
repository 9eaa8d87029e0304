//! The decoder: OPT (Zhang et al., 2022) over a paged KV cache, for prefill and decode alike.
//!
//! ```text
//! tokens ─ embeddings + positions ─ [ x += attention(norm(x));  x += fc2(relu(fc1(norm(x)))) ] × N ─ norm ─ logits
//! ```

use crate::gpu::{Activation, Gpu, GpuError, Matrix, ProgramBuilder};
use crate::kernels::{
    Activate, CachedAttention, EmbedTokens, Heads, LayerNorm, Linear, Positions, attention_cached,
    embed_tokens, layer_norm, linear, linear_into, linear_to, tap, tap_attention_cached,
};
use crate::weights::{Component, Scope, Tensors, WeightsError};

use super::config::OptConfig;
use super::language::{InputRows, KvCache};
use super::layers::{load_layer_norm, load_linear, load_stacked};

/// The token embedding, and the output matrix where it is tied.
const EMBEDDING: &str = "model.decoder.embed_tokens.weight";

/// Rows that OPT's position table keeps in front of position 0.
const POSITION_OFFSET: usize = 2;

/// OPT's layer norms have PyTorch's default eps.
const LAYER_NORM_EPS: f32 = 1e-5;

/// The decoder's weights.
#[derive(Debug)]
pub struct Opt {
    heads: Heads,
    activate: Activate,
    embed_tokens: Matrix,
    embed_positions: Matrix,
    layers: Vec<Layer>,
    final_layer_norm: LayerNorm,
    /// `[vocabulary, hidden]`, the token embedding where the two are tied.
    lm_head: Linear,
}

#[derive(Debug)]
struct Layer {
    self_attn_layer_norm: LayerNorm,
    /// q, k and v stacked: `[3 · hidden, hidden]`.
    qkv: Linear,
    out_proj: Linear,
    final_layer_norm: LayerNorm,
    fc1: Linear,
    fc2: Linear,
}

impl Opt {
    /// Takes the tensors below `language_model.`
    ///
    /// # Errors
    /// A missing or misshapen tensor.
    pub fn load(tensors: &Tensors, config: &OptConfig) -> Result<Self, WeightsError> {
        let hidden = config.hidden_size;
        let scope = tensors.part(Component::LanguageModel, "language_model");
        let decoder = scope.pp("model.decoder");
        let (vocabulary, positions) = (
            [config.vocab_size, hidden],
            [config.position_rows(), hidden],
        );
        let embed_tokens = scope.table(EMBEDDING, &vocabulary)?;
        let embed_positions = decoder.table("embed_positions.weight", &positions)?;
        let layers = (0..config.num_hidden_layers)
            .map(|index| Layer::load(&decoder.pp("layers").pp(index), config))
            .collect::<Result<_, _>>()?;
        let final_layer_norm =
            load_layer_norm(&decoder, "final_layer_norm", hidden, LAYER_NORM_EPS)?;
        let lm_head = scope.output_matrix(
            "lm_head.weight",
            (EMBEDDING, &embed_tokens),
            &vocabulary,
            config.tie_word_embeddings,
        )?;
        Ok(Self {
            heads: Heads {
                count: config.num_attention_heads,
                dim: config.head_dim(),
            },
            activate: config.activation_function.into(),
            embed_tokens,
            embed_positions,
            layers,
            final_layer_norm,
            lm_head: Linear {
                weight: lm_head,
                bias: None,
            },
        })
    }

    /// Width of the residual stream.
    #[must_use]
    pub fn hidden_size(&self) -> usize {
        self.embed_tokens.columns
    }

    /// Number of logits.
    #[must_use]
    pub fn vocabulary(&self) -> usize {
        self.lm_head.weight.rows
    }

    /// Most positions of a sequence.
    #[must_use]
    pub fn max_positions(&self) -> usize {
        self.embed_positions.rows - POSITION_OFFSET
    }

    /// Layers of the cache.
    #[must_use]
    pub fn cache_layers(&self) -> usize {
        self.layers.len()
    }

    /// An empty cache of `rows` physical rows.
    ///
    /// # Errors
    /// No room on the device.
    pub fn kv_cache(&self, gpu: &Gpu, rows: usize) -> Result<KvCache, GpuError> {
        KvCache::new(gpu, self.cache_layers(), self.hidden_size(), rows)
    }

    /// Rows of tokens or of the image → last hidden states `[rows, hidden]`, before the final norm; their keys and
    /// values go into the cache.
    pub fn prefill(&self, program: &mut ProgramBuilder, rows: &InputRows) -> Activation {
        self.forward(program, rows, false)
    }

    /// [`Opt::prefill`] for the next tokens of sequences, one row each.
    pub fn decode(&self, program: &mut ProgramBuilder, rows: &InputRows) -> Activation {
        self.forward(program, rows, true)
    }

    fn forward(
        &self,
        program: &mut ProgramBuilder,
        rows: &InputRows,
        rows_are_apart: bool,
    ) -> Activation {
        let hidden = embed_tokens(
            program,
            &EmbedTokens {
                tokens: rows.tokens,
                row_info: &rows.pages.row_info,
                rows: rows.count,
                embedding: &self.embed_tokens,
                positions: Some(Positions {
                    table: &self.embed_positions,
                    offset: POSITION_OFFSET,
                }),
                visual: rows.visual,
            },
        );
        tap(program, &hidden, || "opt.embeddings_with_positions".into());
        for (index, (layer, cache)) in self.layers.iter().zip(rows.cache.layers()).enumerate() {
            let normed = layer_norm(program, &hidden, &layer.self_attn_layer_norm);
            let qkv = linear(program, &normed, &layer.qkv, Activate::Identity); // [rows, 3 · width]
            let inputs = CachedAttention {
                qkv: &qkv,
                cache,
                pages: rows.pages,
                rows_are_apart,
                heads: self.heads,
                scale: self.heads.scale(),
            };
            let context = attention_cached(program, &inputs);
            // Where attention is kept, it is that of all rows to the positions of the image, if they are of one image.
            tap_attention_cached(program, &inputs, rows.visual.rows, || {
                format!("opt.layer.{index}.attention")
            });
            linear_into(program, &context, &layer.out_proj, &hidden);

            let normed = layer_norm(program, &hidden, &layer.final_layer_norm);
            let inner = linear(program, &normed, &layer.fc1, self.activate);
            linear_into(program, &inner, &layer.fc2, &hidden);
            tap(program, &hidden, || format!("opt.layer.{index}"));
        }
        hidden
    }

    /// `hidden` `[rows, hidden]` → `logits` `[rows, vocabulary]`.
    pub fn logits(&self, program: &mut ProgramBuilder, hidden: &Activation, logits: &Activation) {
        let normed = layer_norm(program, hidden, &self.final_layer_norm);
        tap(program, &normed, || "opt.final_norm".into());
        linear_to(program, &normed, &self.lm_head, Activate::Identity, logits);
        tap(program, logits, || "logits".into());
    }
}

impl Layer {
    fn load(scope: &Scope, config: &OptConfig) -> Result<Self, WeightsError> {
        let (hidden, inner) = (config.hidden_size, config.ffn_dim);
        let attention = scope.pp("self_attn");
        let norm = |name| load_layer_norm(scope, name, hidden, LAYER_NORM_EPS);
        Ok(Self {
            self_attn_layer_norm: norm("self_attn_layer_norm")?,
            qkv: load_stacked(&attention, &["q_proj", "k_proj", "v_proj"], hidden, hidden)?,
            out_proj: load_linear(&attention, "out_proj", hidden, hidden)?,
            final_layer_norm: norm("final_layer_norm")?,
            fc1: load_linear(scope, "fc1", inner, hidden)?,
            fc2: load_linear(scope, "fc2", hidden, inner)?,
        })
    }
}

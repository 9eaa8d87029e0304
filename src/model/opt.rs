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
use crate::weights::{UploadError, Uploader};

use super::config::OptConfig;
use super::language::{InputRows, KvCache};
use super::layers::{load_layer_norm, load_linear, load_stacked};
use super::tensors::OPT_EMBEDDING;

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
    /// Uploads the tensors below `language_model.`.
    ///
    /// # Errors
    /// A missing or misshapen tensor, or no room on the device.
    pub async fn load(
        uploader: &mut Uploader<'_>,
        config: &OptConfig,
    ) -> Result<Self, UploadError> {
        let hidden = config.hidden_size;
        let name = "language_model.model.decoder";
        let vocabulary = [config.vocab_size, hidden];
        let embed_tokens = uploader.matrix(OPT_EMBEDDING, &vocabulary).await?;
        let positions = config.position_rows();
        let embed_positions = uploader
            .matrix(
                &format!("{name}.embed_positions.weight"),
                &[positions, hidden],
            )
            .await?;
        let mut layers = Vec::new();
        for index in 0..config.num_hidden_layers {
            layers.push(Layer::load(uploader, config, &format!("{name}.layers.{index}")).await?);
        }
        let final_layer_norm = load_layer_norm(
            uploader,
            &format!("{name}.final_layer_norm"),
            hidden,
            LAYER_NORM_EPS,
        )
        .await?;
        let lm_head = match uploader.checkpoint().lm_head(
            OPT_EMBEDDING,
            config.tie_word_embeddings,
            &vocabulary,
        )? {
            Some(weight) => uploader.matrix_of(&[weight]).await?,
            None => embed_tokens.clone(),
        };
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
    async fn load(
        uploader: &mut Uploader<'_>,
        config: &OptConfig,
        name: &str,
    ) -> Result<Self, UploadError> {
        let (hidden, inner) = (config.hidden_size, config.ffn_dim);
        let projection = |kind: &str| format!("{name}.self_attn.{kind}_proj");
        let (q, k, v) = (projection("q"), projection("k"), projection("v"));
        let eps = LAYER_NORM_EPS;
        Ok(Self {
            self_attn_layer_norm: load_layer_norm(
                uploader,
                &format!("{name}.self_attn_layer_norm"),
                hidden,
                eps,
            )
            .await?,
            qkv: load_stacked(uploader, &[&q, &k, &v], hidden, hidden).await?,
            out_proj: load_linear(uploader, &projection("out"), hidden, hidden).await?,
            final_layer_norm: load_layer_norm(
                uploader,
                &format!("{name}.final_layer_norm"),
                hidden,
                eps,
            )
            .await?,
            fc1: load_linear(uploader, &format!("{name}.fc1"), inner, hidden).await?,
            fc2: load_linear(uploader, &format!("{name}.fc2"), hidden, inner).await?,
        })
    }
}

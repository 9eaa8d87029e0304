//! The Q-Former (Li et al., 2023): learned queries that read an image through cross-attention.
//!
//! ```text
//! queries ─ norm ─ [ self-attention ─ norm ─ (every second layer: cross-attention to the image ─ norm) ─ mlp ─ norm ] × N
//! ```
//! Post-norm as in BERT: each norm follows its residual add.

use crate::gpu::{Activation, GpuError, ProgramBuilder, Vector};
use crate::kernels::{
    Activate, Attention, Heads, LayerNorm, Linear, View, attention, gather_rows, layer_norm,
    linear, linear_into, self_attention, tap, tap_attention,
};
use crate::weights::{Component, Scope, Tensors, WeightsError};

use super::config::QFormerConfig;
use super::layers::{load_layer_norm, load_linear, load_stacked};

mod text;

pub use text::{TextBranch, Texts};

/// The Q-Former's weights, queries included.
#[derive(Debug)]
pub struct QFormer {
    heads: Heads,
    activate: Activate,
    /// Learned queries `[queries, hidden]`.
    query_tokens: Vector,
    layernorm: LayerNorm,
    layers: Vec<Layer>,
}

#[derive(Debug)]
struct Layer {
    qkv: Linear,
    attention_output: Residual,
    cross_attention: Option<CrossAttention>,
    intermediate_query: Linear,
    output_query: Residual,
}

#[derive(Debug)]
struct CrossAttention {
    /// The layer it is in.
    layer: usize,
    query: Linear,
    /// Keys and values of the image tokens, stacked: `[2 · hidden, image width]`.
    key_value: Linear,
    output: Residual,
}

/// `norm(x + dense(y))`
#[derive(Debug)]
struct Residual {
    dense: Linear,
    layer_norm: LayerNorm,
}

impl QFormer {
    /// Takes `query_tokens` and the tensors below `qformer.` that queries use; [`QFormer::load_with_text`] takes the others too.
    ///
    /// # Errors
    /// A missing or misshapen tensor.
    pub fn load(
        tensors: &Tensors,
        config: &QFormerConfig,
        queries: usize,
    ) -> Result<Self, WeightsError> {
        Self::load_layers(tensors, config, queries, |_| Ok(()))
    }

    /// [`QFormer::load`]; `also` takes what else there is in each layer.
    fn load_layers(
        tensors: &Tensors,
        config: &QFormerConfig,
        queries: usize,
        mut also: impl FnMut(&Scope) -> Result<(), WeightsError>,
    ) -> Result<Self, WeightsError> {
        let hidden = config.hidden_size;
        let query_tokens = tensors
            .part(Component::QueryTokens, "")
            .vector("query_tokens", &[1, queries, hidden])?;
        let scope = tensors.part(Component::QFormer, "qformer");
        let layernorm = load_layer_norm(&scope, "layernorm", hidden, config.layer_norm_eps)?;
        let mut layers = Vec::new();
        for index in 0..config.num_hidden_layers {
            let scope = scope.pp("encoder.layer").pp(index);
            layers.push(Layer::load(&scope, config, index)?);
            also(&scope)?;
        }
        Ok(Self {
            heads: Heads {
                count: config.num_attention_heads,
                dim: config.head_dim(),
            },
            activate: config.hidden_act.into(),
            query_tokens,
            layernorm,
            layers,
        })
    }

    /// Learned queries an image.
    #[must_use]
    pub fn queries(&self) -> usize {
        self.query_tokens.len / self.hidden_size()
    }

    /// Width of a query.
    #[must_use]
    pub fn hidden_size(&self) -> usize {
        self.heads.width()
    }

    fn query_tokens(&self) -> Activation {
        Activation::external(
            &self.query_tokens.buffer,
            self.queries(),
            self.hidden_size(),
        )
    }

    /// `image_tokens` `[batch · tokens, image width]` → `[batch · queries, hidden]`.
    ///
    /// # Errors
    /// No room for the small state that the program needs.
    pub fn forward(
        &self,
        program: &mut ProgramBuilder,
        image_tokens: &Activation,
        batch: usize,
    ) -> Result<Activation, GpuError> {
        let query_lengths = equal_lengths(program, batch, self.queries())?;
        let image_lengths = equal_lengths(program, batch, image_tokens.rows / batch)?;
        let mut hidden = self.query_embeddings(program, batch)?;
        tap(program, &hidden, || "qformer.embeddings".into());
        for (index, layer) in self.layers.iter().enumerate() {
            hidden = self.self_attention(program, layer, &hidden, batch, &query_lengths);
            hidden = self.read_image(program, layer, &hidden, image_tokens, batch, &image_lengths);
            tap(program, &hidden, || format!("qformer.layer.{index}"));
        }
        tap(program, &hidden, || "qformer.output".into());
        Ok(hidden)
    }

    /// The learned queries `batch` times, normed: `[batch · queries, hidden]`.
    fn query_embeddings(
        &self,
        program: &mut ProgramBuilder,
        batch: usize,
    ) -> Result<Activation, GpuError> {
        let queries = self.queries();
        let repeat: Vec<u32> = (0..batch).flat_map(|_| 0..queries as u32).collect();
        let repeat = program.gpu().storage_with("query index", &repeat)?;
        let query_tokens = self.query_tokens();
        let repeated = gather_rows(program, &query_tokens, &repeat, batch * queries);
        Ok(layer_norm(program, &repeated, &self.layernorm))
    }

    /// What follows a layer's self-attention for the rows of queries: cross-attention where it has one, and the mlp.
    fn read_image(
        &self,
        program: &mut ProgramBuilder,
        layer: &Layer,
        hidden: &Activation,
        image_tokens: &Activation,
        images: usize,
        image_lengths: &wgpu::Buffer,
    ) -> Activation {
        let mut hidden = hidden.clone();
        if let Some(cross) = &layer.cross_attention {
            hidden =
                self.cross_attention(program, cross, &hidden, image_tokens, images, image_lengths);
        }
        let inner = linear(program, &hidden, &layer.intermediate_query, self.activate);
        layer.output_query.add(program, &inner, &hidden)
    }

    fn self_attention(
        &self,
        program: &mut ProgramBuilder,
        layer: &Layer,
        hidden: &Activation,
        batch: usize,
        key_lengths: &wgpu::Buffer,
    ) -> Activation {
        let qkv = linear(program, hidden, &layer.qkv, Activate::Identity); // [batch · queries, 3 · width]
        let context = self_attention(program, &qkv, key_lengths, batch, self.heads);
        layer.attention_output.add(program, &context, hidden)
    }

    fn cross_attention(
        &self,
        program: &mut ProgramBuilder,
        cross: &CrossAttention,
        hidden: &Activation,
        image_tokens: &Activation,
        batch: usize,
        key_lengths: &wgpu::Buffer,
    ) -> Activation {
        let query = linear(program, hidden, &cross.query, Activate::Identity); // [batch · queries, width]
        let key_value = linear(program, image_tokens, &cross.key_value, Activate::Identity); // [batch · tokens, 2 · width]
        let inputs = Attention {
            q: View {
                of: &query,
                column: 0,
            },
            k: View {
                of: &key_value,
                column: 0,
            },
            v: View {
                of: &key_value,
                column: hidden.columns,
            },
            key_lengths,
            batch,
            heads: self.heads,
            scale: self.heads.scale(),
        };
        let context = attention(program, &inputs);
        tap_attention(program, &inputs, || {
            format!("qformer.layer.{}.cross_attention", cross.layer)
        });
        cross.output.add(program, &context, hidden)
    }
}

/// The same number of keys for each batch item.
fn equal_lengths(
    program: &ProgramBuilder,
    batch: usize,
    keys: usize,
) -> Result<wgpu::Buffer, GpuError> {
    let lengths = vec![keys as u32; batch];
    program.gpu().storage_with("key_lengths", &lengths)
}

impl Residual {
    fn load(scope: &Scope, config: &QFormerConfig, inputs: usize) -> Result<Self, WeightsError> {
        let (hidden, eps) = (config.hidden_size, config.layer_norm_eps);
        Ok(Self {
            dense: load_linear(scope, "dense", hidden, inputs)?,
            layer_norm: load_layer_norm(scope, "LayerNorm", hidden, eps)?,
        })
    }

    /// `norm(hidden + dense(x))`; `hidden` holds the sum afterwards.
    fn add(&self, program: &mut ProgramBuilder, x: &Activation, hidden: &Activation) -> Activation {
        linear_into(program, x, &self.dense, hidden);
        layer_norm(program, hidden, &self.layer_norm)
    }
}

impl Layer {
    fn load(scope: &Scope, config: &QFormerConfig, index: usize) -> Result<Self, WeightsError> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let attention = scope.pp("attention");
        let projections = ["query", "key", "value"];
        Ok(Self {
            qkv: load_stacked(&attention.pp("attention"), &projections, hidden, hidden)?,
            attention_output: Residual::load(&attention.pp("output"), config, hidden)?,
            cross_attention: config
                .has_cross_attention(index)
                .then(|| CrossAttention::load(&scope.pp("crossattention"), config, index))
                .transpose()?,
            intermediate_query: load_linear(scope, "intermediate_query.dense", inner, hidden)?,
            output_query: Residual::load(&scope.pp("output_query"), config, inner)?,
        })
    }
}

impl CrossAttention {
    fn load(scope: &Scope, config: &QFormerConfig, layer: usize) -> Result<Self, WeightsError> {
        let (hidden, image_width) = (config.hidden_size, config.encoder_hidden_size);
        let attention = scope.pp("attention");
        Ok(Self {
            layer,
            query: load_linear(&attention, "query", hidden, hidden)?,
            key_value: load_stacked(&attention, &["key", "value"], hidden, image_width)?,
            output: Residual::load(&scope.pp("output"), config, hidden)?,
        })
    }
}

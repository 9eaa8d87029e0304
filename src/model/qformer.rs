//! The Q-Former (Li et al., 2023): learned queries that read an image through cross-attention.
//!
//! ```text
//! queries ─ norm ─ [ self-attention ─ norm ─ (every second layer: cross-attention to the image ─ norm) ─ mlp ─ norm ] × N
//! ```
//! Post-norm as in BERT: each norm follows its residual add.

use crate::gpu::{Activation, GpuError, ProgramBuilder};
use crate::kernels::{
    Activate, Attention, Heads, LayerNorm, Linear, View, attention, gather_rows, layer_norm,
    linear, linear_into, self_attention, tap, tap_attention,
};
use crate::weights::{UploadError, Uploader};

use super::config::QFormerConfig;
use super::layers::{load_layer_norm, load_linear, load_stacked};

mod text;

pub use text::{TextBranch, Texts};

/// The Q-Former's weights, queries included.
#[derive(Debug)]
pub struct QFormer {
    heads: Heads,
    activate: Activate,
    /// Learned queries, f32 `[queries, hidden]`.
    query_tokens: Activation,
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
    /// Uploads `query_tokens` and the tensors below `qformer.` that queries use; [`TextBranch`] has the others.
    ///
    /// # Errors
    /// A missing or misshapen tensor, or no room on the device.
    pub async fn load(
        uploader: &mut Uploader<'_>,
        config: &QFormerConfig,
        queries: usize,
    ) -> Result<Self, UploadError> {
        let hidden = config.hidden_size;
        let query_tokens = uploader
            .vector("query_tokens", &[1, queries, hidden])
            .await?;
        let layernorm =
            load_layer_norm(uploader, "qformer.layernorm", hidden, config.layer_norm_eps).await?;
        let mut layers = Vec::new();
        for index in 0..config.num_hidden_layers {
            layers.push(Layer::load(uploader, config, index).await?);
        }
        Ok(Self {
            heads: Heads {
                count: config.num_attention_heads,
                dim: config.head_dim(),
            },
            activate: config.hidden_act.into(),
            query_tokens: Activation::external(&query_tokens.buffer, queries, hidden),
            layernorm,
            layers,
        })
    }

    /// Learned queries an image.
    #[must_use]
    pub fn queries(&self) -> usize {
        self.query_tokens.rows
    }

    /// Width of a query.
    #[must_use]
    pub fn hidden_size(&self) -> usize {
        self.query_tokens.columns
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
        let repeated = gather_rows(program, &self.query_tokens, &repeat, batch * queries);
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
    async fn load(
        uploader: &mut Uploader<'_>,
        name: &str,
        config: &QFormerConfig,
        in_features: usize,
    ) -> Result<Self, UploadError> {
        let (hidden, eps) = (config.hidden_size, config.layer_norm_eps);
        Ok(Self {
            dense: load_linear(uploader, &format!("{name}.dense"), hidden, in_features).await?,
            layer_norm: load_layer_norm(uploader, &format!("{name}.LayerNorm"), hidden, eps)
                .await?,
        })
    }

    /// `norm(hidden + dense(x))`; `hidden` holds the sum afterwards.
    fn add(&self, program: &mut ProgramBuilder, x: &Activation, hidden: &Activation) -> Activation {
        linear_into(program, x, &self.dense, hidden);
        layer_norm(program, hidden, &self.layer_norm)
    }
}

impl Layer {
    async fn load(
        uploader: &mut Uploader<'_>,
        config: &QFormerConfig,
        index: usize,
    ) -> Result<Self, UploadError> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let name = format!("qformer.encoder.layer.{index}");
        let projection = |kind: &str| format!("{name}.attention.attention.{kind}");
        let (query, key, value) = (projection("query"), projection("key"), projection("value"));
        Ok(Self {
            qkv: load_stacked(uploader, &[&query, &key, &value], hidden, hidden).await?,
            attention_output: Residual::load(
                uploader,
                &format!("{name}.attention.output"),
                config,
                hidden,
            )
            .await?,
            cross_attention: if config.has_cross_attention(index) {
                Some(CrossAttention::load(uploader, config, index).await?)
            } else {
                None
            },
            intermediate_query: load_linear(
                uploader,
                &format!("{name}.intermediate_query.dense"),
                inner,
                hidden,
            )
            .await?,
            output_query: Residual::load(uploader, &format!("{name}.output_query"), config, inner)
                .await?,
        })
    }
}

impl CrossAttention {
    async fn load(
        uploader: &mut Uploader<'_>,
        config: &QFormerConfig,
        layer: usize,
    ) -> Result<Self, UploadError> {
        let hidden = config.hidden_size;
        let name = format!("qformer.encoder.layer.{layer}.crossattention");
        let projection = |kind: &str| format!("{name}.attention.{kind}");
        let (query, key, value) = (projection("query"), projection("key"), projection("value"));
        let image_width = config.encoder_hidden_size;
        Ok(Self {
            layer,
            query: load_linear(uploader, &query, hidden, hidden).await?,
            key_value: load_stacked(uploader, &[&key, &value], hidden, image_width).await?,
            output: Residual::load(uploader, &format!("{name}.output"), config, hidden).await?,
        })
    }
}

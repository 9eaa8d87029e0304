//! The image encoder: EVA-CLIP's ViT (Fang et al., 2022) as BLIP-2 uses it.
//!
//! ```text
//! pixels ─ patches ─ + class token, positions ─ [ x += attention(norm(x));  x += mlp(norm(x)) ] × N ─ norm ─ image tokens
//! ```

use crate::gpu::{Activation, GpuError, ProgramBuilder, Vector};
use crate::kernels::{
    Activate, Heads, LayerNorm, Linear, embed_patches, layer_norm, linear, linear_into, patchify,
    self_attention, tap,
};
use crate::weights::{Component, Scope, Tensors, WeightsError};

use super::config::VisionConfig;
use super::interpolate_positions;
use super::layers::{load_layer_norm, load_linear, load_unbiased};

/// The image encoder's weights.
#[derive(Debug)]
pub struct Vit {
    image_size: usize,
    patch_size: usize,
    heads: Heads,
    activate: Activate,
    patch_embedding: Linear,
    class_embedding: Vector,
    /// `[1 + patches, hidden]`
    position_embedding: Vector,
    blocks: Vec<Block>,
    post_layernorm: LayerNorm,
}

#[derive(Debug)]
struct Block {
    layer_norm1: LayerNorm,
    qkv: Linear,
    projection: Linear,
    layer_norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
}

impl Vit {
    /// Takes the tensors below `vision_model.`; positions are interpolated if `image_size` is not the checkpoint's.
    ///
    /// # Errors
    /// A missing or misshapen tensor.
    pub fn load(
        tensors: &Tensors,
        config: &VisionConfig,
        image_size: usize,
    ) -> Result<Self, WeightsError> {
        let hidden = config.hidden_size;
        let scope = tensors.part(Component::Vision, "vision_model");
        let embeddings = scope.pp("embeddings");
        let class_embedding = embeddings.vector("class_embedding", &[1, 1, hidden])?;
        let (stored_grid, grid) = (config.grid(), image_size / config.patch_size);
        let position_embedding = embeddings.changed_vector(
            "position_embedding",
            &[1, config.tokens(), hidden],
            (1 + grid * grid) * hidden,
            move |stored| interpolate_positions(&stored, hidden, stored_grid, grid),
        )?;
        let patch = embeddings.pp("patch_embedding");
        let patch_shape = [hidden, 3, config.patch_size, config.patch_size];
        let patch_embedding = Linear {
            weight: patch.table("weight", &patch_shape)?,
            bias: Some(patch.vector("bias", &[hidden])?),
        };
        let block = |index| Block::load(&scope.pp("encoder.layers").pp(index), config);
        let blocks = (0..config.num_hidden_layers)
            .map(block)
            .collect::<Result<_, _>>()?;
        Ok(Self {
            image_size,
            patch_size: config.patch_size,
            heads: Heads {
                count: config.num_attention_heads,
                dim: config.head_dim(),
            },
            activate: config.hidden_act.into(),
            patch_embedding,
            class_embedding,
            position_embedding,
            blocks,
            post_layernorm: load_layer_norm(
                &scope,
                "post_layernorm",
                hidden,
                config.layer_norm_eps,
            )?,
        })
    }

    /// Pixels a side of the images it takes.
    #[must_use]
    pub fn image_size(&self) -> usize {
        self.image_size
    }

    /// Width of an image token.
    #[must_use]
    pub fn hidden_size(&self) -> usize {
        self.class_embedding.len
    }

    /// Number of transformer blocks.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.blocks.len()
    }

    /// Tokens an image: the class token and one a patch.
    #[must_use]
    pub fn tokens(&self) -> usize {
        1 + (self.image_size / self.patch_size).pow(2)
    }

    /// Bytes of an image's largest activation: within an MLP, or q, k and v.
    #[must_use]
    pub fn widest_activation_bytes(&self) -> u64 {
        let width = self
            .blocks
            .iter()
            .map(|block| block.fc1.weight.rows.max(block.qkv.weight.rows));
        let pixels = 3 * self.image_size() * self.image_size();
        (pixels.max(self.tokens() * width.max().unwrap_or(0)) * 4) as u64
    }

    /// `pixels` `[batch, 3 · size²]` → image tokens `[batch · tokens, hidden]`.
    ///
    /// # Errors
    /// No room for the small state that the program needs.
    pub fn forward(
        &self,
        program: &mut ProgramBuilder,
        pixels: &Activation,
    ) -> Result<Activation, GpuError> {
        let batch = pixels.rows;
        let patches = patchify(program, pixels, self.image_size, self.patch_size);
        let patches = linear(program, &patches, &self.patch_embedding, Activate::Identity);
        let hidden = embed_patches(
            program,
            &patches,
            batch,
            &self.class_embedding,
            &self.position_embedding,
        );
        tap(program, &hidden, || "vit.embeddings".into());

        // Every image has all of its tokens: nothing is masked.
        let key_lengths = vec![self.tokens() as u32; batch];
        let key_lengths = program.gpu().storage_with("key_lengths", &key_lengths)?;
        for (index, block) in self.blocks.iter().enumerate() {
            self.block(program, block, &hidden, batch, &key_lengths);
            tap(program, &hidden, || format!("vit.block.{index}"));
        }
        let tokens = layer_norm(program, &hidden, &self.post_layernorm);
        tap(program, &tokens, || "vit.output".into());
        Ok(tokens)
    }

    /// Adds one pre-norm block to the residual stream `hidden` `[batch · tokens, width]`.
    fn block(
        &self,
        program: &mut ProgramBuilder,
        block: &Block,
        hidden: &Activation,
        batch: usize,
        key_lengths: &wgpu::Buffer,
    ) {
        let normed = layer_norm(program, hidden, &block.layer_norm1);
        let qkv = linear(program, &normed, &block.qkv, Activate::Identity); // [batch · tokens, 3 · width]
        let context = self_attention(program, &qkv, key_lengths, batch, self.heads);
        linear_into(program, &context, &block.projection, hidden);

        let normed = layer_norm(program, hidden, &block.layer_norm2);
        let inner = linear(program, &normed, &block.fc1, self.activate);
        linear_into(program, &inner, &block.fc2, hidden);
    }
}

impl Block {
    fn load(scope: &Scope, config: &VisionConfig) -> Result<Self, WeightsError> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let eps = config.layer_norm_eps;
        let attention = scope.pp("self_attn");
        // A checkpoint with `qkv_bias` false stores no bias for q, k and v.
        let load_qkv = if config.qkv_bias {
            load_linear
        } else {
            load_unbiased
        };
        Ok(Self {
            layer_norm1: load_layer_norm(scope, "layer_norm1", hidden, eps)?,
            qkv: load_qkv(&attention, "qkv", 3 * hidden, hidden)?,
            projection: load_linear(&attention, "projection", hidden, hidden)?,
            layer_norm2: load_layer_norm(scope, "layer_norm2", hidden, eps)?,
            fc1: load_linear(scope, "mlp.fc1", inner, hidden)?,
            fc2: load_linear(scope, "mlp.fc2", hidden, inner)?,
        })
    }
}

//! The language model behind the Q-Former as the scheduler sees it: prompts go in once, then tokens
//! one by one, and what is remembered of them lies in a paged cache.

use crate::gpu::{Activation, Gpu, GpuError, ProgramBuilder};
use crate::kernels::{KvLayer, Pages};

/// Keys and values of all layers, f32, `rows` physical rows each.
#[derive(Debug)]
pub struct KvCache {
    layers: Vec<KvLayer>,
    rows: usize,
}

impl KvCache {
    /// An empty cache of `layers` layers of `rows` rows of `width` values.
    ///
    /// # Errors
    /// No room on the device.
    pub fn new(gpu: &Gpu, layers: usize, width: usize, rows: usize) -> Result<Self, GpuError> {
        let bytes = (rows * width * 4) as u64;
        let layer = |_| {
            Ok(KvLayer {
                keys: gpu.storage("keys", bytes)?,
                values: gpu.storage("values", bytes)?,
            })
        };
        let layers = (0..layers).map(layer).collect::<Result<_, GpuError>>()?;
        Ok(Self { layers, rows })
    }

    /// The layers.
    #[must_use]
    pub fn layers(&self) -> &[KvLayer] {
        &self.layers
    }

    /// Physical rows a layer.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }
}

/// Rows of input, and where they belong.
#[derive(Debug, Clone, Copy)]
pub struct InputRows<'a> {
    /// Token id, or [`crate::kernels::VISUAL`] and a row of `visual`, u32 `[count]`.
    pub tokens: &'a wgpu::Buffer,
    /// Number of rows.
    pub count: usize,
    /// Projected queries `[any, hidden]`.
    pub visual: &'a Activation,
    /// Keys and values.
    pub cache: &'a KvCache,
    /// Positions of the rows, and cache rows of the positions.
    pub pages: &'a Pages,
    /// Positions that an encoder reads of each sequence, u32; without an encoder nobody reads it.
    pub prompt_lengths: &'a wgpu::Buffer,
}

/// Where the prompts of a prefill end and their texts begin.
#[derive(Debug, Clone, Copy)]
pub struct PromptEnds<'a> {
    /// Number of prompts.
    pub count: usize,
    /// The last row of each prompt, u32 `[count]`: what a decoder without an encoder goes on from.
    pub last_rows: &'a wgpu::Buffer,
    /// The start token of each text, u32 `[count]`: what a decoder behind an encoder begins with.
    pub start_tokens: &'a wgpu::Buffer,
    /// `(sequence, position)` of the start tokens.
    pub start_info: &'a wgpu::Buffer,
}

/// A language model's weights.
pub trait Decoder: std::fmt::Debug + Send + Sync {
    /// Width of the residual stream.
    fn hidden_size(&self) -> usize;

    /// Number of logits.
    fn vocabulary(&self) -> usize;

    /// Most positions of a request: prompt and text.
    fn max_positions(&self) -> usize;

    /// The token that every text begins with, which takes a position of its own; none where texts
    /// go on after their prompts.
    fn decoder_start(&self) -> Option<u32> {
        None
    }

    /// Layers of the cache.
    fn cache_layers(&self) -> usize;

    /// Width of a cache row in one layer.
    fn cache_width(&self) -> usize;

    /// The prompts' rows, one after another → the hidden state that the first token of each is
    /// chosen by, `[prompts, hidden]`, before the final norm. Their keys and values go into the
    /// cache.
    fn prefill(
        &self,
        program: &mut ProgramBuilder,
        prompts: &InputRows,
        ends: &PromptEnds,
    ) -> Activation;

    /// The next tokens of sequences that are prefilled, one row each → their hidden states `[rows,
    /// hidden]`, before the final norm. Their keys and values go into the cache.
    fn decode(&self, program: &mut ProgramBuilder, rows: &InputRows) -> Activation;

    /// `hidden` `[rows, hidden]` → `logits` `[rows, vocabulary]`.
    fn logits(&self, program: &mut ProgramBuilder, hidden: &Activation, logits: &Activation);

    /// Bytes of a cache row in one layer's keys (or values).
    fn cache_layer_row_bytes(&self) -> u64 {
        (self.cache_width() * 4) as u64
    }

    /// Bytes of a cache row over all layers.
    fn cache_row_bytes(&self) -> u64 {
        (self.cache_layers() * 2) as u64 * self.cache_layer_row_bytes()
    }

    /// An empty cache of `rows` physical rows.
    ///
    /// # Errors
    /// No room on the device.
    fn kv_cache(&self, gpu: &Gpu, rows: usize) -> Result<KvCache, GpuError> {
        KvCache::new(gpu, self.cache_layers(), self.cache_width(), rows)
    }
}

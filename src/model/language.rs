//! The language model behind the Q-Former, OPT or T5, as the scheduler sees it: prompts go in once, then tokens one by
//! one, and what is remembered of them lies in a paged cache.

use crate::gpu::{Activation, Gpu, GpuError, ProgramBuilder};
use crate::kernels::{KvLayer, Pages, gather_rows};
use crate::weights::{Tensors, WeightsError};

use super::config::{LanguageConfig, T5Config};
use super::{Opt, T5};

/// A language model's weights.
#[derive(Debug)]
pub enum LanguageModel {
    /// Decoder-only: it goes on after the prompt.
    Opt(Opt),
    /// Encoder and decoder: the text begins with a start token, at the position after the prompt.
    T5(T5),
}

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

impl LanguageModel {
    /// Takes the tensors below `language_model.`
    ///
    /// # Errors
    /// A missing or misshapen tensor.
    pub fn load(tensors: &Tensors, config: &LanguageConfig) -> Result<Self, WeightsError> {
        Ok(match config {
            LanguageConfig::Opt(opt) => Self::Opt(Opt::load(tensors, opt)?),
            LanguageConfig::T5(t5) => Self::T5(T5::load(tensors, t5)?),
        })
    }

    /// Width of the residual stream.
    #[must_use]
    pub fn hidden_size(&self) -> usize {
        match self {
            Self::Opt(opt) => opt.hidden_size(),
            Self::T5(t5) => t5.hidden_size(),
        }
    }

    /// Number of logits.
    #[must_use]
    pub fn vocabulary(&self) -> usize {
        match self {
            Self::Opt(opt) => opt.vocabulary(),
            Self::T5(t5) => t5.vocabulary(),
        }
    }

    /// Most positions of a request: prompt and text.
    #[must_use]
    pub fn max_positions(&self) -> usize {
        match self {
            Self::Opt(opt) => opt.max_positions(),
            Self::T5(_) => T5Config::MAX_POSITIONS,
        }
    }

    /// The token that every text begins with, which takes a position of its own; none where texts go on after their
    /// prompts.
    #[must_use]
    pub fn decoder_start(&self) -> Option<u32> {
        match self {
            Self::Opt(_) => None,
            Self::T5(t5) => Some(t5.decoder_start()),
        }
    }

    /// Bytes of a cache row in one layer's keys (or values).
    #[must_use]
    pub fn cache_layer_row_bytes(&self) -> u64 {
        let width = match self {
            Self::Opt(opt) => opt.hidden_size(),
            Self::T5(t5) => t5.cache_width(),
        };
        (width * 4) as u64
    }

    /// Bytes of a cache row over all layers.
    #[must_use]
    pub fn cache_row_bytes(&self) -> u64 {
        let layers = match self {
            Self::Opt(opt) => opt.cache_layers(),
            Self::T5(t5) => t5.cache_layers(),
        };
        (layers * 2) as u64 * self.cache_layer_row_bytes()
    }

    /// An empty cache of `rows` physical rows.
    ///
    /// # Errors
    /// No room on the device.
    pub fn kv_cache(&self, gpu: &Gpu, rows: usize) -> Result<KvCache, GpuError> {
        match self {
            Self::Opt(opt) => opt.kv_cache(gpu, rows),
            Self::T5(t5) => t5.kv_cache(gpu, rows),
        }
    }

    /// The prompts' rows, one after another → the hidden state that the first token of each is chosen by,
    /// `[prompts, hidden]`, before the final norm.
    pub fn prefill(
        &self,
        program: &mut ProgramBuilder,
        prompts: &InputRows,
        ends: &PromptEnds,
    ) -> Activation {
        match self {
            Self::Opt(opt) => {
                let hidden = opt.prefill(program, prompts);
                gather_rows(program, &hidden, ends.last_rows, ends.count)
            }
            Self::T5(t5) => {
                t5.encode(program, prompts);
                let pages = Pages {
                    row_info: ends.start_info.clone(),
                    ..prompts.pages.clone()
                };
                let starts = InputRows {
                    tokens: ends.start_tokens,
                    count: ends.count,
                    pages: &pages,
                    ..*prompts
                };
                t5.decode(program, &starts)
            }
        }
    }

    /// The next tokens of sequences that are prefilled → their hidden states `[rows, hidden]`, before the final norm.
    pub fn decode(&self, program: &mut ProgramBuilder, rows: &InputRows) -> Activation {
        match self {
            Self::Opt(opt) => opt.decode(program, rows),
            Self::T5(t5) => t5.decode(program, rows),
        }
    }

    /// `hidden` `[rows, hidden]` → `logits` `[rows, vocabulary]`.
    pub fn logits(&self, program: &mut ProgramBuilder, hidden: &Activation, logits: &Activation) {
        match self {
            Self::Opt(opt) => opt.logits(program, hidden, logits),
            Self::T5(t5) => t5.logits(program, hidden, logits),
        }
    }
}

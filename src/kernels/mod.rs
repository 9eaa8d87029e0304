//! The kernels: one file per shader, with its typed launch (shapes are checked here), its plain-Rust twin and tests.
//!
//! A launch records a dispatch into a [`ProgramBuilder`](crate::gpu::ProgramBuilder) and returns the activation it
//! fills. Shapes come from the model's configuration, which is checked when it is read: a wrong one here is a bug of
//! ours and asserts in debug builds.

mod advance;
mod argmax;
mod attention;
mod attention_cached;
mod attention_relative;
mod attention_weights;
mod ceilings;
mod copy;
mod copy_rows;
mod embed_patches;
mod embed_tokens;
mod gate;
mod gather_rows;
mod layer_norm;
mod linear;
mod log_softmax;
mod max_over_queries;
mod mean_rows;
mod merge_top_k;
mod normalize_rows;
mod patchify;
mod process_logits;
mod rms_norm;
mod row_rules;
mod self_check;
mod store_kv;
#[cfg(test)]
pub(crate) mod testing;
mod top_k;
#[cfg(test)]
mod validate;
mod weights;

pub use advance::{Advance, advance};
pub use argmax::{Bests, argmax};
pub use attention::{
    Attention, AttentionVariant, Heads, View, attention, attention_candidates, attention_with,
    self_attention,
};
pub use attention_cached::{CachedAttention, attention_cached};
pub use attention_relative::{RelativeAttention, RelativeBias, Span, attention_relative};
pub use attention_weights::{
    AttentionWeights, attention_weights, tap_attention, tap_attention_cached,
};
pub use ceilings::{
    CooperativeLoop, MULTIPLY_STEP_FLOPS, READ_BYTES, bench_cooperative, bench_copy,
    bench_multiply, bench_read, sums_bytes,
};
pub use copy::{copy, tap};
pub use copy_rows::{GroupRows, copy_rows, join_rows, rows_of_groups};
pub use embed_patches::embed_patches;
pub use embed_tokens::{EmbedTokens, INACTIVE, Positions, VISUAL, embed_tokens};
pub use gate::gate;
pub use gather_rows::gather_rows;
pub use layer_norm::{LayerNorm, layer_norm};
pub use linear::{
    Activate, CooperativeTile, Linear, LinearVariant, MATVEC_ROWS, candidates, chosen, linear,
    linear_into, linear_to, linear_with, tune,
};
pub use log_softmax::log_softmax;
pub use max_over_queries::max_over_queries;
pub use mean_rows::mean_rows;
pub use merge_top_k::{Candidate, MAX_KEPT, NO_CANDIDATE, merge_top_k};
pub use normalize_rows::normalize_rows;
pub use patchify::{patch_columns, patchify};
pub use process_logits::{ProcessLogits, process_logits};
pub use rms_norm::{RmsNorm, rms_norm};
pub use row_rules::{row_rules_words, write_row_rules};
pub use self_check::self_check;
pub use store_kv::{KvLayer, Pages, store_cross_kv, store_kv};
pub use top_k::{MAX_TOP_K, top_k};

use linear::NARROW_LANES;

/// Number of workgroups of `size` that cover `count`, as a grid dimension.
fn groups(count: usize, size: usize) -> u32 {
    word(count.div_ceil(size))
}

/// Whether the device is a GPU, with room for thousands of threads: where a kernel has few rows, it takes all the threads it
/// can use for each. Where the CPU plays the GPU, threads only cost.
fn is_wide(gpu: &crate::gpu::Gpu) -> bool {
    gpu.info().device_type != wgpu::DeviceType::Cpu
}

/// Threads of a workgroup that walks a whole row of logits.
fn threads_of_logits(gpu: &crate::gpu::Gpu) -> u32 {
    match gpu.capabilities().invocations {
        WIDE_ROW.. if is_wide(gpu) => WIDE_ROW,
        _ => 256,
    }
}

/// As many as one row of logits can use (unmeasured).
const WIDE_ROW: u32 = 1024;

/// A size as a shader sees it. Buffers are far smaller than 2³² values, so this cannot be exceeded.
fn word(value: usize) -> u32 {
    debug_assert!(u32::try_from(value).is_ok());
    value as u32
}

//! The kernels: `ops/` one file an operation; `linear/` and `attention/` one file a variant, of which several do the
//! same. Each has its typed launch (shapes are checked here), its plain-Rust twin and its test.
//!
//! A launch records a dispatch into a [`ProgramBuilder`](crate::gpu::ProgramBuilder) and returns the activation it
//! fills. Shapes come from the model's configuration, which is checked when it is read: a wrong one here is a bug of
//! ours and asserts in debug builds.

mod attention;
mod ceilings;
mod linear;
mod ops;
mod select;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod validate;
mod weights;

pub use attention::{
    Attention, AttentionVariant, AttentionWeights, CachedAttention, Heads, KvLayer, Pages,
    RelativeAttention, RelativeBias, Span, View, attention, attention_cached, attention_candidates,
    attention_relative, attention_weights, attention_with, self_attention, store_cross_kv,
    store_kv, tap_attention, tap_attention_cached,
};
pub use ceilings::{
    CooperativeLoop, MULTIPLY_STEP_FLOPS, READ_BYTES, bench_cooperative, bench_copy,
    bench_multiply, bench_read, sums_bytes,
};
pub use linear::{
    Activate, Linear, LinearVariant, MATVEC_ROWS, candidates, chosen, linear, linear_into,
    linear_to, linear_with, tune,
};
pub use ops::*;
pub use select::check_choices;
pub use select::verdict::self_check;

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

//! The device layer: adapter, device, limits, buffers, pipelines and recorded programs. Knows no model.

mod activation;
mod adapter;
mod buffer;
mod builder;
mod device;
mod error;
mod kernel;
mod options;
mod pace;
mod pipeline;
mod poll;
mod profile;
mod program;
mod rehearsal;
pub(crate) mod shader_source;
mod staging;
mod timestamps;
mod tuning_cache;
mod weight_format;

pub use activation::{Activation, ActivationPool, Operand};
pub use adapter::{AdapterChoice, AdapterReport, Backend, list_adapters};
pub use buffer::{Matrix, MatrixPart, Readback, Vector, WeightBuffer};
pub use builder::{Product, ProgramBuilder};
pub use device::{Capabilities, Gpu};
pub use error::GpuError;
#[cfg(test)]
pub(crate) use kernel::Declared;
pub use kernel::{Access, Constants, Kernel, Params};
pub(crate) use kernel::{READ, WRITE, kernels, params};
pub use options::{Disabled, GpuOptions, KernelChoice};
pub use profile::{Event, KernelTime, Lane, Phase, PhaseTime, Profiler};
pub use program::{Program, Tap};
pub use staging::{StagedWrite, Staging};
pub use weight_format::{QUANT_BLOCK, WeightFormat, grouped_scales};

/// Rounds `value` up to a multiple of `step`.
#[must_use]
pub const fn round_up(value: usize, step: usize) -> usize {
    value.div_ceil(step) * step
}

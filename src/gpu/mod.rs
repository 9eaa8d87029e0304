//! The device layer: adapter, device, limits, buffers, pipelines and recorded programs. Knows no model.

mod activation;
mod adapter;
mod buffer;
mod builder;
mod choices;
mod device;
mod error;
mod pace;
mod params;
mod pipeline;
mod poll;
mod profile;
mod program;
mod rehearsal;
pub(crate) mod shader_source;
mod staging;
mod timestamps;
mod weight_format;

pub use activation::{Activation, ActivationPool, Operand};
pub use adapter::{AdapterChoice, AdapterReport, Backend, list_adapters};
pub use buffer::{Matrix, MatrixPart, Readback, Vector, WeightBuffer};
pub use builder::{Product, ProgramBuilder};
pub use choices::{Choices, Claim};
pub use device::{Capabilities, Disabled, Gpu, GpuOptions};
pub use error::GpuError;
pub use params::Params;
pub(crate) use params::params;
pub use pipeline::{Access, Constants, Kernel};
pub(crate) use pipeline::{READ, WRITE};
pub use profile::{Event, KernelTime, Lane, Phase, PhaseTime, Profiler};
pub use program::{Program, Tap};
pub use staging::{StagedWrite, Staging};
pub use weight_format::{QUANT_BLOCK, WeightFormat, grouped_scales};

/// Rounds `value` up to a multiple of `step`.
#[must_use]
pub const fn round_up(value: usize, step: usize) -> usize {
    value.div_ceil(step) * step
}

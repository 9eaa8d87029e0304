//! What a model needs on the device, before it is loaded: programs recorded over an outline of the weights.

use crate::gpu::{Activation, Gpu, GpuError, ProgramBuilder};
use crate::kernels::Pages;
use crate::model::Blip2Model;

/// Bytes on the device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Weights: matrices in f16, vectors in f32.
    pub weights: u64,
    /// Activation buffers, shared between programs, with images and logits.
    pub activations: u64,
    /// Keys and values.
    pub cache: u64,
    /// The largest single buffer, weights left out: they are split to fit any binding.
    pub largest_buffer: u64,
}

impl MemoryPlan {
    /// All together.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.weights + self.activations + self.cache
    }

    /// The plan for `batch` images at a time, each a greedy text of `positions` positions in all.
    ///
    /// # Errors
    /// No room for the small state that planning needs.
    pub fn of(
        gpu: &Gpu,
        model: &Blip2Model,
        weights: u64,
        batch: usize,
        positions: usize,
    ) -> Result<Self, GpuError> {
        let programs = [
            vit_slots(gpu, model, batch)?,
            qformer_slots(gpu, model, batch)?,
            decoder_slots(gpu, model, batch * positions, batch)?,
            decoder_slots(gpu, model, batch, batch)?,
        ];
        let opt = &model.opt;
        let pixels = 3 * model.vit.image_size() * model.vit.image_size();
        let visual = model.qformer.queries() * opt.hidden_size();
        let image_tokens = model.vit.tokens() * model.vit.hidden_size();
        let outside = batch * (pixels + image_tokens + visual + opt.vocabulary()) * 4;
        let cache_rows = (batch * positions) as u64;
        let slots = programs.iter().flatten().copied().max().unwrap_or(0);
        let logits = (batch * opt.vocabulary() * 4) as u64;
        let cache_layer = cache_rows * (opt.hidden_size() * 4) as u64;
        Ok(Self {
            largest_buffer: slots.max(logits).max(cache_layer),
            weights,
            activations: shared_bytes(&programs) + outside as u64,
            cache: cache_rows * opt.cache_row_bytes(),
        })
    }
}

/// Programs share a pool in which the n-th largest slots of all are one buffer.
fn shared_bytes(programs: &[Vec<u64>]) -> u64 {
    let most = programs.iter().map(Vec::len).max().unwrap_or(0);
    (0..most)
        .map(|rank| {
            programs
                .iter()
                .filter_map(|slots| slots.get(rank))
                .max()
                .copied()
                .unwrap_or(0)
        })
        .sum()
}

fn vit_slots(gpu: &Gpu, model: &Blip2Model, batch: usize) -> Result<Vec<u64>, GpuError> {
    let mut program = ProgramBuilder::new(gpu, "plan");
    let small = gpu.storage("plan", 16)?;
    let pixels = 3 * model.vit.image_size() * model.vit.image_size();
    let pixels = Activation::external(&small, batch, pixels);
    let tokens = model.vit.forward(&mut program, &pixels)?;
    crate::kernels::copy(&mut program, &tokens, &small);
    Ok(program.planned_slots())
}

fn qformer_slots(gpu: &Gpu, model: &Blip2Model, batch: usize) -> Result<Vec<u64>, GpuError> {
    let mut program = ProgramBuilder::new(gpu, "plan");
    let small = gpu.storage("plan", 16)?;
    let tokens = Activation::external(&small, batch * model.vit.tokens(), model.vit.hidden_size());
    let visual = model.query_images(&mut program, &tokens, batch)?;
    crate::kernels::copy(&mut program, &visual, &small);
    Ok(program.planned_slots())
}

/// Slots of `rows` rows through the decoder, the last `logit_rows` of them through the output matrix.
fn decoder_slots(
    gpu: &Gpu,
    model: &Blip2Model,
    rows: usize,
    logit_rows: usize,
) -> Result<Vec<u64>, GpuError> {
    let mut program = ProgramBuilder::new(gpu, "plan");
    let small = gpu.storage("plan", 16)?;
    let opt = &model.opt;
    let visual = Activation::external(&small, 1, opt.hidden_size());
    let cache = opt.kv_cache(gpu, 0)?;
    let pages = Pages {
        row_info: small.clone(),
        page_table: small.clone(),
        max_length: 1,
    };
    let hidden = opt.forward(&mut program, &small, rows, &visual, &cache, &pages);
    let last = hidden.reshaped(logit_rows, opt.hidden_size());
    let logits = Activation::external(&small, logit_rows, opt.vocabulary());
    opt.logits(&mut program, &last, &logits);
    Ok(program.planned_slots())
}

#[cfg(test)]
mod tests {
    use super::shared_bytes;

    #[test]
    fn programs_share_by_rank() {
        assert_eq!(shared_bytes(&[vec![9, 4], vec![7, 5, 1]]), 9 + 5 + 1);
        assert_eq!(shared_bytes(&[]), 0);
    }
}

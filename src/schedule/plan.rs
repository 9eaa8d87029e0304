//! What a model needs on the device, before it is loaded: programs recorded over an outline of the weights.

use crate::gpu::{Activation, Gpu, GpuError, ProgramBuilder};
use crate::kernels::Pages;
use crate::model::{Blip2Model, InputRows, PromptEnds};

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
        let programs =
            outlines(gpu, model, batch, positions)?.map(|program| program.planned_slots());
        let language_model = &model.language_model;
        let pixels = 3 * model.vit.image_size() * model.vit.image_size();
        let visual = model.qformer.queries() * language_model.hidden_size();
        let image_tokens = model.vit.tokens() * model.vit.hidden_size();
        let outside = batch * (pixels + image_tokens + visual + language_model.vocabulary()) * 4;
        let cache_rows = (batch * positions) as u64;
        let slots = programs.iter().flatten().copied().max().unwrap_or(0);
        let logits = (batch * language_model.vocabulary() * 4) as u64;
        let cache_layer = cache_rows * language_model.cache_layer_row_bytes();
        Ok(Self {
            largest_buffer: slots.max(logits).max(cache_layer),
            weights,
            activations: shared_bytes(&programs) + outside as u64,
            cache: cache_rows * language_model.cache_row_bytes(),
        })
    }
}

/// The programs of `batch` images at a time with `positions` positions each, recorded but not finished: image encoder,
/// Q-Former, prefill, a step of the decoder. Only their shapes matter.
pub(super) fn outlines<'gpu>(
    gpu: &'gpu Gpu,
    model: &Blip2Model,
    batch: usize,
    positions: usize,
) -> Result<[ProgramBuilder<'gpu>; 4], GpuError> {
    Ok([
        vit_outline(gpu, model, batch)?,
        qformer_outline(gpu, model, batch)?,
        prefill_outline(gpu, model, batch * positions, batch)?,
        decode_outline(gpu, model, batch)?,
    ])
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

fn vit_outline<'gpu>(
    gpu: &'gpu Gpu,
    model: &Blip2Model,
    batch: usize,
) -> Result<ProgramBuilder<'gpu>, GpuError> {
    let mut program = ProgramBuilder::new(gpu, "plan").with_products();
    let small = gpu.storage("plan", 16)?;
    let pixels = 3 * model.vit.image_size() * model.vit.image_size();
    let pixels = Activation::external(&small, batch, pixels);
    let tokens = model.vit.forward(&mut program, &pixels)?;
    crate::kernels::copy(&mut program, &tokens, &small);
    Ok(program)
}

fn qformer_outline<'gpu>(
    gpu: &'gpu Gpu,
    model: &Blip2Model,
    batch: usize,
) -> Result<ProgramBuilder<'gpu>, GpuError> {
    let mut program = ProgramBuilder::new(gpu, "plan").with_products();
    let small = gpu.storage("plan", 16)?;
    let tokens = Activation::external(&small, batch * model.vit.tokens(), model.vit.hidden_size());
    let visual = model.query_images(&mut program, &tokens, batch)?;
    crate::kernels::copy(&mut program, &visual, &small);
    Ok(program)
}

/// Prompts of `rows` rows in all.
fn prefill_outline<'gpu>(
    gpu: &'gpu Gpu,
    model: &Blip2Model,
    rows: usize,
    prompts: usize,
) -> Result<ProgramBuilder<'gpu>, GpuError> {
    language_outline(gpu, model, prompts, |program, small, inputs| {
        let prompt_rows = InputRows {
            count: rows,
            ..*inputs
        };
        let ends = PromptEnds {
            count: prompts,
            last_rows: small,
            start_tokens: small,
            start_info: small,
        };
        model.language_model.prefill(program, &prompt_rows, &ends)
    })
}

/// One decode step of `rows` rows.
fn decode_outline<'gpu>(
    gpu: &'gpu Gpu,
    model: &Blip2Model,
    rows: usize,
) -> Result<ProgramBuilder<'gpu>, GpuError> {
    language_outline(gpu, model, rows, |program, _, inputs| {
        model.language_model.decode(program, inputs)
    })
}

/// What `record` makes of `rows` rows of input, and of its logits. Its second argument is a small buffer.
fn language_outline<'gpu>(
    gpu: &'gpu Gpu,
    model: &Blip2Model,
    rows: usize,
    record: impl FnOnce(&mut ProgramBuilder, &wgpu::Buffer, &InputRows) -> Activation,
) -> Result<ProgramBuilder<'gpu>, GpuError> {
    let mut program = ProgramBuilder::new(gpu, "plan").with_products();
    let small = gpu.storage("plan", 16)?;
    let language_model = &model.language_model;
    let inputs = InputRows {
        tokens: &small,
        count: rows,
        visual: &Activation::external(&small, 1, language_model.hidden_size()),
        cache: &language_model.kv_cache(gpu, 0)?,
        pages: &Pages {
            row_info: small.clone(),
            page_table: small.clone(),
            max_length: 1,
        },
        prompt_lengths: &small,
    };
    let hidden = record(&mut program, &small, &inputs);
    let logits = Activation::external(&small, rows, language_model.vocabulary());
    language_model.logits(&mut program, &hidden, &logits);
    Ok(program)
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

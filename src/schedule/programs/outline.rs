//! Outlines: programs recorded for their shapes alone and never finished. Kernels are chosen, and work is counted, by
//! the products in them.

use crate::gpu::{Activation, Gpu, GpuError, ProgramBuilder};
use crate::kernels::Pages;
use crate::model::{Blip2Model, InputRows, PromptEnds};

use super::image::ImageSide;

/// The programs of `batch` images at a time with `positions` positions each: image encoder, Q-Former, prefill, a step
/// of the decoder.
pub(in crate::schedule) fn outlines<'gpu>(
    gpu: &'gpu Gpu,
    model: &Blip2Model,
    batch: usize,
    positions: usize,
) -> Result<[ProgramBuilder<'gpu>; 4], GpuError> {
    let [vit, qformer] = image_outlines(gpu, ImageSide::Generation(model), batch)?;
    let prefill = prefill_outline(gpu, model, batch * positions, batch)?;
    Ok([vit, qformer, prefill, decode_outline(gpu, model, batch)?])
}

/// The image side of `batch` images at a time: image encoder, and what follows it.
pub(in crate::schedule) fn image_outlines<'gpu>(
    gpu: &'gpu Gpu,
    side: ImageSide<'_>,
    batch: usize,
) -> Result<[ProgramBuilder<'gpu>; 2], GpuError> {
    let small = gpu.storage("outline", 16)?;
    let mut vit = outline(gpu);
    let pixels = Activation::external(&small, batch, side.pixel_count());
    side.vit().forward(&mut vit, &pixels)?;
    let mut qformer = outline(gpu);
    let (tokens, width) = (side.vit().tokens(), side.vit().hidden_size());
    let tokens = Activation::external(&small, batch * tokens, width);
    side.query(&mut qformer, &tokens, batch)?;
    Ok([vit, qformer])
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
    let mut program = outline(gpu);
    let small = gpu.storage("outline", 16)?;
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

fn outline(gpu: &Gpu) -> ProgramBuilder<'_> {
    ProgramBuilder::new(gpu, "outline").with_products()
}

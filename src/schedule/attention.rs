//! Attention read out: an image through ViT and Q-Former, then texts about it through the decoder in one pass each.

use crate::gpu::{ActivationPool, Gpu, GpuError, ProgramBuilder, Tap};
use crate::kernels::{Pages, VISUAL};
use crate::model::{Blip2Model, InputRows, LanguageModel};

use super::programs::image::{ImageProgram, ImageSide, Keep};
use super::timings::Timings;

/// The recorded image side of one image with its attention kept. It is apart from the engine's own programs, which
/// keep none.
#[derive(Debug)]
pub(crate) struct AttentionReader<'a> {
    gpu: &'a Gpu,
    model: &'a Blip2Model,
    pool: ActivationPool,
    image_side: ImageProgram,
}

impl<'a> AttentionReader<'a> {
    /// Records ViT, Q-Former and projection for one image.
    ///
    /// # Errors
    /// No room on the device, or one that fails.
    pub(crate) fn record(gpu: &'a Gpu, model: &'a Blip2Model) -> Result<Self, GpuError> {
        let pool = ActivationPool::default();
        let side = ImageSide::Generation(model);
        Ok(Self {
            gpu,
            model,
            image_side: ImageProgram::record(gpu, side, 1, Keep::Attention, &pool)?,
            pool,
        })
    }

    /// Encodes an image of `[3, size, size]` values → cross-attention of its queries to its image tokens (class token
    /// first), `[queries, tokens]`: the mean over layers and heads.
    ///
    /// # Errors
    /// A failing device.
    pub(crate) async fn read_image(&self, pixels: &[f32]) -> Result<Vec<f32>, GpuError> {
        let mut timings = Timings::default();
        self.image_side
            .run(self.gpu, &[pixels], &mut timings, |_| {})
            .await?;
        mean_over_layers(self.gpu, self.image_side.taps()).await
    }

    /// Runs the decoder over the image last read and `text` (ids) → attention of every row to the queries' positions,
    /// `[queries + text, queries]`: the mean over layers and heads. `None` where an encoder reads the image (T5): what
    /// its decoder attends to is no longer the queries alone.
    ///
    /// # Errors
    /// No room on the device, or one that fails.
    pub(crate) async fn read_text(&self, text: &[u32]) -> Result<Option<Vec<f32>>, GpuError> {
        let LanguageModel::Opt(opt) = &self.model.language_model else {
            return Ok(None);
        };
        let visual = &self.image_side.results[0].activation;
        let visual_rows = (0..visual.rows).map(|row| VISUAL | row as u32);
        let tokens: Vec<u32> = visual_rows.chain(text.iter().copied()).collect();
        let positions: Vec<u32> = (0..tokens.len() as u32).collect();
        let row_info: Vec<[u32; 2]> = positions.iter().map(|&position| [0, position]).collect();
        let rows = tokens.len();
        let pages = Pages {
            row_info: self.gpu.storage_with("row_info", &row_info)?,
            page_table: self.gpu.storage_with("page_table", &positions)?,
            max_length: rows,
        };
        let tokens = self.gpu.storage_with("tokens", &tokens)?;
        let cache = opt.kv_cache(self.gpu, rows)?;
        let mut program = ProgramBuilder::new(self.gpu, "text attention").with_attention_taps();
        let inputs = InputRows {
            tokens: &tokens,
            count: rows,
            visual,
            cache: &cache,
            pages: &pages,
            prompt_lengths: &tokens, // no encoder reads it
        };
        opt.prefill(&mut program, &inputs);
        let program = program.finish(&self.pool)?;
        program.run(self.gpu);
        Ok(Some(
            mean_over_layers(self.gpu, program.taps().iter()).await?,
        ))
    }
}

/// The mean of kept attentions of equal shape, once the device has computed them.
///
/// # Errors
/// A failing device.
pub(super) async fn mean_over_layers(
    gpu: &Gpu,
    layers: impl Iterator<Item = &Tap>,
) -> Result<Vec<f32>, GpuError> {
    let layers: Vec<&Tap> = layers.collect();
    let mut mean = Vec::new();
    for layer in &layers {
        let weights: Vec<f32> = gpu.read(&layer.buffer, layer.rows * layer.columns).await?;
        mean.resize(weights.len(), 0.0);
        for (mean, weight) in mean.iter_mut().zip(weights) {
            *mean += weight / layers.len() as f32;
        }
    }
    gpu.check("reading attention")?;
    Ok(mean)
}

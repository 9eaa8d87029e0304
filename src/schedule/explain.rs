//! Attention read out: an image through ViT and Q-Former, then texts about it through the decoder in one pass each; or
//! a pair of image and text through the Q-Former of a retrieval model.

use crate::Error;
use crate::gpu::{Activation, ActivationPool, Gpu, GpuError, Program, ProgramBuilder, Tap};
use crate::kernels::{Pages, VISUAL, copy};
use crate::model::{Blip2Model, InputRows, PromptEnds, Texts};

use super::Matcher;

/// The recorded image side of one image with its attention kept. It is apart from the engine's own programs, which
/// keep none.
#[derive(Debug)]
pub(crate) struct AttentionReader<'a> {
    gpu: &'a Gpu,
    model: &'a Blip2Model,
    pool: ActivationPool,
    pixels: wgpu::Buffer,
    /// Projected queries `[queries, decoder width]` of the image last read.
    visual: Activation,
    image_side: Program,
}

impl<'a> AttentionReader<'a> {
    /// Records ViT, Q-Former and projection for one image.
    ///
    /// # Errors
    /// No room on the device, or one that fails.
    pub(crate) fn record(gpu: &'a Gpu, model: &'a Blip2Model) -> Result<Self, GpuError> {
        let pool = ActivationPool::default();
        let pixel_count = 3 * model.vit.image_size() * model.vit.image_size();
        let pixels = gpu.storage("pixels", (pixel_count * 4) as u64)?;
        let mut program = ProgramBuilder::new(gpu, "image attention").with_attention_taps();
        let input = Activation::external(&pixels, 1, pixel_count);
        let image_tokens = model.vit.forward(&mut program, &input)?;
        let projected = model.query_images(&mut program, &image_tokens, 1)?;
        let (rows, columns) = (projected.rows, projected.columns);
        let visual = gpu.storage("visual", (rows * columns * 4) as u64)?;
        copy(&mut program, &projected, &visual);
        Ok(Self {
            gpu,
            model,
            pixels,
            visual: Activation::external(&visual, rows, columns),
            image_side: program.finish(&pool)?,
            pool,
        })
    }

    /// Encodes an image of `[3, size, size]` values → cross-attention of its queries to its image tokens (class token
    /// first), `[queries, tokens]`: the mean over layers and heads.
    ///
    /// # Errors
    /// A failing device.
    pub(crate) async fn read_image(&self, pixels: &[f32]) -> Result<Vec<f32>, GpuError> {
        debug_assert_eq!(pixels.len() as u64 * 4, self.pixels.size());
        self.gpu.write(&self.pixels, 0, pixels);
        self.image_side.run(self.gpu);
        mean_over_layers(self.gpu, self.image_side.taps()).await
    }

    /// Runs the decoder over the image last read and `text` (ids) → attention of every row to the queries' positions,
    /// `[queries + text, queries]`: the mean over layers and heads. `None` where an encoder reads the image (T5): what
    /// its decoder attends to is no longer the queries alone.
    ///
    /// # Errors
    /// No room on the device, or one that fails.
    pub(crate) async fn read_text(&self, text: &[u32]) -> Result<Option<Vec<f32>>, GpuError> {
        let language_model = &self.model.language_model;
        if language_model.decoder_start().is_some() {
            return Ok(None);
        }
        let visual_rows = (0..self.visual.rows).map(|row| VISUAL | row as u32);
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
        let cache = language_model.kv_cache(self.gpu, rows)?;
        let last_rows = self.gpu.storage_with("last_rows", &[rows as u32 - 1])?;
        let mut program = ProgramBuilder::new(self.gpu, "text attention").with_attention_taps();
        let inputs = InputRows {
            tokens: &tokens,
            count: rows,
            visual: &self.visual,
            cache: &cache,
            pages: &pages,
            prompt_lengths: &tokens, // no encoder reads it
        };
        let ends = PromptEnds {
            count: 1,
            last_rows: &last_rows,
            start_tokens: &tokens, // no decoder begins anew
            start_info: &tokens,
        };
        language_model.prefill(&mut program, &inputs, &ends);
        let program = program.finish(&self.pool)?;
        program.run(self.gpu);
        Ok(Some(mean_over_layers(self.gpu, program.taps()).await?))
    }
}

impl Matcher {
    /// Cross-attention of the queries to an image's tokens ([`super::EncodedImage::tokens`]) while they read `text` (ids)
    /// beside it, `[queries, tokens]`: the mean over layers and heads.
    ///
    /// # Errors
    /// Another model's image, ids that the model does not have or too many, no room on the device, or a failing one.
    pub(crate) async fn read_pair(
        &self,
        image_tokens: &[f32],
        text: &[u32],
    ) -> Result<Vec<f32>, Error> {
        self.check_texts(&[text])?;
        let (gpu, model) = (self.gpu(), self.model());
        let (tokens, width) = (model.vit.tokens(), model.vit.hidden_size());
        if image_tokens.len() != tokens * width {
            let len = image_tokens.len();
            let problem = format!("an image of {len} values, not of {tokens} × {width}");
            return Err(Error::Request { problem });
        }
        let texts = Texts::new(gpu, 1, text.len(), model.qformer.queries())?;
        texts.write(gpu, [text]);
        let image = gpu.storage_with("image tokens", image_tokens)?;
        let image = Activation::external(&image, tokens, width);
        let mut program = ProgramBuilder::new(gpu, "pair attention").with_attention_taps();
        let qformer = &model.qformer;
        qformer.forward_pairs(&mut program, &model.text, &image, 1, &texts)?;
        let program = program.finish(&ActivationPool::default())?;
        program.run(gpu);
        Ok(mean_over_layers(gpu, program.taps()).await?)
    }
}

/// The mean of kept attentions of equal shape, once the device has computed them.
///
/// # Errors
/// A failing device.
async fn mean_over_layers(gpu: &Gpu, layers: &[Tap]) -> Result<Vec<f32>, GpuError> {
    let mut mean = Vec::new();
    for layer in layers {
        let weights: Vec<f32> = gpu.read(&layer.buffer, layer.rows * layer.columns).await?;
        mean.resize(weights.len(), 0.0);
        for (mean, weight) in mean.iter_mut().zip(weights) {
            *mean += weight / layers.len() as f32;
        }
    }
    gpu.check("reading attention")?;
    Ok(mean)
}

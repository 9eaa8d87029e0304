//! Images → image tokens → projected query rows: two recorded programs a batch size.

use std::time::Instant;

use crate::gpu::{Activation, ActivationPool, Gpu, GpuError, Program, ProgramBuilder, Tap};
use crate::model::Blip2Model;

use super::Timings;

/// The recorded image side for one batch size, with its input and output.
#[derive(Debug)]
pub(super) struct ImageEncoder {
    batch: usize,
    pixel_count: usize,
    pixels: wgpu::Buffer,
    /// Projected queries `[batch · queries, decoder width]`.
    visual: Activation,
    vit: Program,
    /// Q-Former and projection.
    qformer: Program,
}

impl ImageEncoder {
    /// Records ViT, Q-Former and projection for `batch` images; `keep_stages` keeps every tapped stage.
    pub(super) fn record(
        gpu: &Gpu,
        model: &Blip2Model,
        batch: usize,
        pool: &ActivationPool,
        keep_stages: bool,
    ) -> Result<Self, GpuError> {
        let matrix = |label: &str, rows: usize, columns: usize| {
            let buffer = gpu.storage(label, (rows * columns * 4) as u64)?;
            Ok::<_, GpuError>((Activation::external(&buffer, rows, columns), buffer))
        };
        let builder = |name| {
            let program = ProgramBuilder::new(gpu, name);
            if keep_stages {
                program.with_taps()
            } else {
                program
            }
        };
        let pixel_count = 3 * model.vit.image_size() * model.vit.image_size();
        let (input, pixels) = matrix("pixels", batch, pixel_count)?;
        let mut vit = builder("vit");
        let tokens = model.vit.forward(&mut vit, &input)?;
        let (image_tokens, token_buffer) = matrix("image tokens", tokens.rows, tokens.columns)?;
        crate::kernels::copy(&mut vit, &tokens, &token_buffer);

        let mut qformer = builder("qformer");
        let projected = model.query_images(&mut qformer, &image_tokens, batch)?;
        let (visual, visual_buffer) = matrix("visual", projected.rows, projected.columns)?;
        crate::kernels::copy(&mut qformer, &projected, &visual_buffer);
        Ok(Self {
            batch,
            pixel_count,
            pixels,
            visual,
            vit: vit.finish(pool)?,
            qformer: qformer.finish(pool)?,
        })
    }

    /// The stages kept, in order.
    pub(super) fn taps(&self) -> impl Iterator<Item = &Tap> {
        self.vit.taps().iter().chain(self.qformer.taps())
    }

    /// Encodes up to `batch` images of `[3, size, size]` values; the rows of the result stay on the device, images
    /// missing from a full batch leave their rows undefined.
    ///
    /// # Errors
    /// An error of the device.
    pub(super) async fn run(
        &self,
        gpu: &Gpu,
        images: &[impl AsRef<[f32]>],
        timings: &mut Timings,
    ) -> Result<Activation, GpuError> {
        debug_assert!(images.len() <= self.batch);
        let started = Instant::now();
        for (index, image) in images.iter().enumerate() {
            let offset = (index * self.pixel_count * 4) as u64;
            debug_assert_eq!(image.as_ref().len(), self.pixel_count);
            gpu.write(&self.pixels, offset, image.as_ref());
        }
        self.vit.run(gpu);
        gpu.finish("running the image encoder").await?;
        timings.vit = started.elapsed();
        self.qformer.run(gpu);
        gpu.finish("running the Q-Former").await?;
        timings.qformer = started.elapsed() - timings.vit;
        Ok(self.visual.clone())
    }
}

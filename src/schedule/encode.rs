//! Images → projected query rows: one recorded program a batch size.

use crate::gpu::{Activation, ActivationPool, Gpu, GpuError, Program, ProgramBuilder};
use crate::model::Blip2Model;

/// The recorded image side for one batch size, with its input and output.
#[derive(Debug)]
pub(super) struct ImageEncoder {
    batch: usize,
    pixel_count: usize,
    pixels: wgpu::Buffer,
    /// Projected queries `[batch · queries, decoder width]`.
    visual: Activation,
    program: Program,
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
        let pixel_count = 3 * model.vit.image_size() * model.vit.image_size();
        let pixels = gpu.storage("pixels", (batch * pixel_count * 4) as u64)?;
        let width = model.opt.hidden_size();
        let rows = batch * model.qformer.queries();
        let visual = gpu.storage("visual", (rows * width * 4) as u64)?;
        let mut program = ProgramBuilder::new(gpu, "image encoder");
        if keep_stages {
            program = program.with_taps();
        }
        let input = Activation::external(&pixels, batch, pixel_count);
        let output = model.encode_images(&mut program, &input)?;
        crate::kernels::copy(&mut program, &output, &visual);
        Ok(Self {
            batch,
            pixel_count,
            pixels,
            visual: Activation::external(&visual, rows, width),
            program: program.finish(pool)?,
        })
    }

    /// Images it takes at once.
    pub(super) fn batch(&self) -> usize {
        self.batch
    }

    /// The recorded program.
    pub(super) fn program(&self) -> &Program {
        &self.program
    }

    /// Submits the encoding of up to `batch` images of `[3, size, size]` values; the rows of the result stay on the
    /// device, images missing from a full batch leave their rows undefined.
    pub(super) fn run(&self, gpu: &Gpu, images: &[impl AsRef<[f32]>]) -> Activation {
        debug_assert!(images.len() <= self.batch);
        for (index, image) in images.iter().enumerate() {
            let offset = (index * self.pixel_count * 4) as u64;
            debug_assert_eq!(image.as_ref().len(), self.pixel_count);
            gpu.write(&self.pixels, offset, image.as_ref());
        }
        self.program.run(gpu);
        self.visual.clone()
    }
}

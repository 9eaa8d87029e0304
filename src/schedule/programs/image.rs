//! The image side: pixels → image tokens (ViT) → queries (Q-Former) → what the model's head makes of them.

use crate::gpu::{Activation, ActivationPool, Gpu, GpuError, Program, ProgramBuilder, Tap};
use crate::kernels::{MATVEC_ROWS, copy};
use crate::model::{Blip2Model, QFormer, RetrievalModel, Vit};
use crate::platform::Instant;
use crate::schedule::timings::Timings;

/// The parts of a model that images pass, and what is made of the queries.
#[derive(Debug, Clone, Copy)]
pub(in crate::schedule) enum ImageSide<'m> {
    /// Rows for the language model.
    Generation(&'m Blip2Model),
    /// The queries, and their projections to the space that images share with texts.
    Retrieval(&'m RetrievalModel),
    /// The queries alone.
    Features(&'m Vit, &'m QFormer),
}

impl<'m> ImageSide<'m> {
    pub(in crate::schedule) fn vit(self) -> &'m Vit {
        match self {
            Self::Generation(model) => &model.vit,
            Self::Retrieval(model) => &model.vit,
            Self::Features(vit, _) => vit,
        }
    }

    pub(in crate::schedule) fn qformer(self) -> &'m QFormer {
        match self {
            Self::Generation(model) => &model.qformer,
            Self::Retrieval(model) => &model.qformer,
            Self::Features(_, qformer) => qformer,
        }
    }

    /// Values of a prepared image, `[3, size, size]`.
    pub(in crate::schedule) fn pixel_count(self) -> usize {
        3 * self.vit().image_size().pow(2)
    }

    /// Images whose queries are more rows than a matrix–vector kernel takes: its sums have another order.
    pub(in crate::schedule) fn least_batch(self) -> usize {
        MATVEC_ROWS / self.qformer().queries() + 1
    }

    /// Most images that the device's limits allow at once.
    pub(in crate::schedule) fn max_images(self, gpu: &Gpu) -> usize {
        let limits = [
            gpu.capabilities().max_binding_bytes,
            gpu.device()
                .limits()
                .max_compute_workgroups_per_dimension
                .into(),
        ];
        let vit = self.vit();
        most_images(limits, [vit.widest_activation_bytes(), vit.tokens() as u64])
    }

    /// Records what becomes of the tokens `[batch · tokens, image width]`: the results of the variant's comment, each
    /// `[batch · queries, any]`.
    pub(super) fn query(
        self,
        program: &mut ProgramBuilder,
        tokens: &Activation,
        batch: usize,
    ) -> Result<Vec<Activation>, GpuError> {
        Ok(match self {
            Self::Generation(model) => vec![model.query_images(program, tokens, batch)?],
            Self::Retrieval(model) => {
                let queries = model.qformer.forward(program, tokens, batch)?;
                let features = model.project_image(program, &queries);
                vec![queries, features]
            }
            Self::Features(_, qformer) => vec![qformer.forward(program, tokens, batch)?],
        })
    }
}

/// Images whose widest activation fits one binding, and whose tokens, each a workgroup of a norm, one dimension of a
/// grid.
fn most_images([binding_bytes, workgroups]: [u64; 2], [widest_bytes, tokens]: [u64; 2]) -> usize {
    let most = (binding_bytes / widest_bytes.max(1)).min(workgroups / tokens.max(1));
    usize::try_from(most).unwrap_or(usize::MAX).max(1)
}

/// What a recorded program keeps copies of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::schedule) enum Keep {
    Nothing,
    /// Every stage that the model names.
    Stages,
    /// The weights of every attention that the model names.
    Attention,
}

impl Keep {
    /// An empty program that keeps this.
    pub(in crate::schedule) fn builder<'gpu>(
        self,
        gpu: &'gpu Gpu,
        name: &'static str,
    ) -> ProgramBuilder<'gpu> {
        let program = ProgramBuilder::new(gpu, name);
        match self {
            Self::Nothing => program,
            Self::Stages => program.with_taps(),
            Self::Attention => program.with_attention_taps(),
        }
    }
}

/// The image side of one batch size, with its input and its results.
#[derive(Debug)]
pub(in crate::schedule) struct ImageProgram {
    batch: usize,
    pixel_count: usize,
    pixels: wgpu::Buffer,
    vit: Program,
    /// Q-Former and head.
    qformer: Program,
    /// Image tokens `[batch · tokens, image width]`.
    pub tokens: Output,
    /// What [`ImageSide`] makes of the queries.
    pub results: Vec<Output>,
}

/// A result of a program in a buffer of its own.
#[derive(Debug)]
pub(in crate::schedule) struct Output {
    pub buffer: wgpu::Buffer,
    pub activation: Activation,
    /// Values of each image.
    pub each: usize,
}

impl Output {
    /// Records that `x`, of `batch` images, is kept.
    fn keep(
        program: &mut ProgramBuilder,
        label: &str,
        x: &Activation,
        batch: usize,
    ) -> Result<Self, GpuError> {
        let values = x.rows * x.columns;
        let buffer = program.gpu().storage(label, (values * 4) as u64)?;
        copy(program, x, &buffer);
        Ok(Self {
            activation: Activation::external(&buffer, x.rows, x.columns),
            buffer,
            each: values / batch,
        })
    }

    /// Bytes of each image's values.
    pub(in crate::schedule) fn each_bytes(&self) -> u64 {
        (self.each * 4) as u64
    }
}

impl ImageProgram {
    /// Records `side` for `batch` images.
    pub(in crate::schedule) fn record(
        gpu: &Gpu,
        side: ImageSide<'_>,
        batch: usize,
        keep: Keep,
        pool: &ActivationPool,
    ) -> Result<Self, GpuError> {
        let pixel_count = side.pixel_count();
        let pixels = gpu.storage("pixels", (batch * pixel_count * 4) as u64)?;
        let mut vit = keep.builder(gpu, "vit");
        let input = Activation::external(&pixels, batch, pixel_count);
        let tokens = side.vit().forward(&mut vit, &input)?;
        let tokens = Output::keep(&mut vit, "image tokens", &tokens, batch)?;
        let mut qformer = keep.builder(gpu, "qformer");
        let results = side.query(&mut qformer, &tokens.activation, batch)?;
        let results = results
            .iter()
            .map(|result| Output::keep(&mut qformer, "queries", result, batch))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            batch,
            pixel_count,
            pixels,
            vit: vit.finish(pool)?,
            qformer: qformer.finish(pool)?,
            tokens,
            results,
        })
    }

    /// What was kept, in order.
    pub(in crate::schedule) fn taps(&self) -> impl Iterator<Item = &Tap> {
        self.vit.taps().iter().chain(self.qformer.taps())
    }

    /// Runs `images` of `[3, size, size]` values, at most as many as were recorded for. What `and_then` records follows
    /// in the last submit.
    ///
    /// # Errors
    /// An error of the device.
    pub(in crate::schedule) async fn run(
        &self,
        gpu: &Gpu,
        images: &[&[f32]],
        timings: &mut Timings,
        and_then: impl FnOnce(&mut wgpu::CommandEncoder),
    ) -> Result<(), GpuError> {
        debug_assert!(images.len() <= self.batch);
        let started = Instant::now();
        let vit_phase = gpu.phase("ViT");
        for (index, image) in images.iter().enumerate() {
            debug_assert_eq!(image.len(), self.pixel_count);
            let offset = (index * self.pixel_count * 4) as u64;
            gpu.write(&self.pixels, offset, image);
        }
        self.vit.run(gpu);
        gpu.finish("running the image encoder").await?;
        drop(vit_phase);
        let _qformer_phase = gpu.phase("Q-Former");
        let after_vit = Instant::now();
        timings.vit += after_vit - started;
        let mut encoder = self.qformer.begin(gpu);
        and_then(&mut encoder);
        gpu.submit([encoder.finish()]);
        gpu.finish("running the Q-Former").await?;
        timings.qformer += after_vit.elapsed();
        timings.images += images.len();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_images_as_bindings_and_grids_allow() {
        // ViT-g at 224 and 364 pixels: the widest activation is that within its MLP.
        let image = |tokens: u64| [tokens * 6144 * 4, tokens];
        let (large, grid) = (2 << 30, 65535);
        assert_eq!(most_images([large, grid], image(257)), 255);
        assert_eq!(most_images([large, grid], image(677)), 96);
        assert_eq!(most_images([128 << 20, grid], image(257)), 21);
        assert_eq!(most_images([1, grid], image(257)), 1);
    }
}

//! Images to features: image encoder, Q-Former and, where the model has one, the projection to the common space.

use std::collections::HashMap;

use crate::Error;
use crate::gpu::{Activation, ActivationPool, Gpu, GpuError, Product, Program, ProgramBuilder};
use crate::kernels::{MATVEC_ROWS, copy, tune};
use crate::model::{QFormer, RetrievalModel, Vit};

/// Batch sizes whose programs are kept: a folder's full batch and its rest.
const MAX_PROGRAMS: usize = 2;

/// What a model makes of an image. Each is row-major f32.
#[derive(Debug, Clone, PartialEq)]
pub struct EncodedImage {
    /// The image encoder's output, `[tokens, image width]`.
    pub tokens: Vec<f32>,
    /// The Q-Former's output, `[queries, hidden]`.
    pub queries: Vec<f32>,
    /// Queries in the common space, `[queries, embedding size]`, rows of length one; empty for a generative model.
    pub features: Vec<f32>,
}

/// Rows and columns of what a model makes of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageShapes {
    /// Of [`EncodedImage::tokens`].
    pub tokens: [usize; 2],
    /// Of [`EncodedImage::queries`].
    pub queries: [usize; 2],
    /// Of [`EncodedImage::features`].
    pub features: [usize; 2],
}

/// The parts of a model that images pass.
#[derive(Debug, Clone, Copy)]
pub(super) struct ImageParts<'m> {
    pub vit: &'m Vit,
    pub qformer: &'m QFormer,
    /// The whole model, where it has a common space.
    pub retrieval: Option<&'m RetrievalModel>,
}

impl<'m> ImageParts<'m> {
    /// Those of a retrieval model.
    pub(super) fn of(model: &'m RetrievalModel) -> Self {
        Self {
            vit: &model.vit,
            qformer: &model.qformer,
            retrieval: Some(model),
        }
    }

    pub(super) fn shapes(self) -> ImageShapes {
        let queries = self.qformer.queries();
        let embedding = self.retrieval.map_or(0, RetrievalModel::embedding_size);
        ImageShapes {
            tokens: [self.vit.tokens(), self.vit.hidden_size()],
            queries: [queries, self.qformer.hidden_size()],
            features: [queries, embedding],
        }
    }

    /// The products of `batch` images, for choosing their kernels.
    fn products(self, gpu: &Gpu, batch: usize) -> Result<Vec<Product>, GpuError> {
        let mut program = ProgramBuilder::new(gpu, "outline").with_products();
        let small = gpu.storage("outline", 16)?;
        let pixels = 3 * self.vit.image_size() * self.vit.image_size();
        let pixels = Activation::external(&small, batch, pixels);
        let tokens = self.vit.forward(&mut program, &pixels)?;
        self.qformer.forward(&mut program, &tokens, batch)?;
        Ok(program.products())
    }

    /// Images (or pairs) whose queries are more rows than a matrix–vector kernel takes: its sums have another order.
    pub(super) fn least_batch(self) -> usize {
        MATVEC_ROWS / self.qformer.queries() + 1
    }
}

/// Recorded programs by batch size.
#[derive(Debug, Default)]
pub(super) struct ImagePrograms {
    programs: HashMap<usize, ImageProgram>,
}

#[derive(Debug)]
struct ImageProgram {
    pixels: wgpu::Buffer,
    outputs: Vec<Output>,
    program: Program,
}

/// A result in a buffer of its own, so many values an image.
#[derive(Debug)]
struct Output {
    buffer: wgpu::Buffer,
    each: usize,
}

/// Records what a batch of images takes, for a rehearsing device.
pub(super) fn rehearse_images(
    gpu: &Gpu,
    parts: ImageParts<'_>,
    batch: usize,
    pool: &ActivationPool,
) -> Result<(), GpuError> {
    ImageProgram::record(gpu, parts, batch.max(parts.least_batch()), pool)?;
    Ok(())
}

impl ImagePrograms {
    /// Encodes `images` (`[3, size, size]` each) as one batch.
    pub(super) async fn encode(
        &mut self,
        gpu: &Gpu,
        parts: ImageParts<'_>,
        pool: &ActivationPool,
        images: &[impl AsRef<[f32]>],
    ) -> Result<Vec<EncodedImage>, Error> {
        let pixels = 3 * parts.vit.image_size() * parts.vit.image_size();
        if let Some(image) = images.iter().find(|image| image.as_ref().len() != pixels) {
            let len = image.as_ref().len();
            let problem = format!("an image has {len} values, the model takes {pixels}");
            return Err(Error::Request { problem });
        }
        if images.is_empty() {
            return Ok(Vec::new());
        }
        let batch = images.len().max(parts.least_batch());
        if !self.programs.contains_key(&batch) {
            if self.programs.len() >= MAX_PROGRAMS {
                self.programs.clear();
            }
            tune(gpu, &parts.products(gpu, batch)?).await?;
            let program = ImageProgram::record(gpu, parts, batch, pool)?;
            self.programs.insert(batch, program);
        }
        let recorded = &self.programs[&batch];
        let _phase = gpu.phase("images");
        for (index, image) in images.iter().enumerate() {
            let offset = (index * pixels * 4) as u64;
            gpu.write(&recorded.pixels, offset, image.as_ref());
        }
        recorded.program.run(gpu);
        gpu.finish("encoding images").await?;
        Ok(recorded.read(gpu, images.len()).await?)
    }
}

impl ImageProgram {
    fn record(
        gpu: &Gpu,
        parts: ImageParts<'_>,
        batch: usize,
        pool: &ActivationPool,
    ) -> Result<Self, GpuError> {
        let size = parts.vit.image_size();
        let pixel_count = 3 * size * size;
        let pixels = gpu.storage("pixels", (batch * pixel_count * 4) as u64)?;
        let mut program = ProgramBuilder::new(gpu, "images");
        let input = Activation::external(&pixels, batch, pixel_count);
        let tokens = parts.vit.forward(&mut program, &input)?;
        let queries = parts.qformer.forward(&mut program, &tokens, batch)?;
        let mut results = vec![tokens, queries];
        if let Some(model) = parts.retrieval {
            results.push(model.project_image(&mut program, &results[1]));
        }
        let mut outputs = Vec::new();
        for x in &results {
            let buffer = gpu.storage("image output", (x.rows * x.columns * 4) as u64)?;
            copy(&mut program, x, &buffer);
            let each = x.rows / batch * x.columns;
            outputs.push(Output { buffer, each });
        }
        Ok(Self {
            pixels,
            outputs,
            program: program.finish(pool)?,
        })
    }

    /// What the first `count` images of the batch became.
    async fn read(&self, gpu: &Gpu, count: usize) -> Result<Vec<EncodedImage>, GpuError> {
        let mut images = vec![[const { Vec::new() }; 3]; count];
        for (part, output) in self.outputs.iter().enumerate() {
            let values: Vec<f32> = gpu.read(&output.buffer, count * output.each).await?;
            for (image, values) in images.iter_mut().zip(values.chunks(output.each)) {
                image[part] = values.to_vec();
            }
        }
        let image = |[tokens, queries, features]: [Vec<f32>; 3]| EncodedImage {
            tokens,
            queries,
            features,
        };
        Ok(images.into_iter().map(image).collect())
    }
}

/// Most images that the device's limits allow at once.
pub(super) fn max_images(gpu: &Gpu, vit: &Vit) -> usize {
    let limits = [
        gpu.capabilities().max_binding_bytes,
        gpu.device()
            .limits()
            .max_compute_workgroups_per_dimension
            .into(),
    ];
    most_images(limits, [vit.widest_activation_bytes(), vit.tokens() as u64])
}

/// Images whose widest activation fits one binding, and whose tokens, each a workgroup of a norm, one dimension of a grid.
fn most_images([binding_bytes, workgroups]: [u64; 2], [widest_bytes, tokens]: [u64; 2]) -> usize {
    let most = (binding_bytes / widest_bytes.max(1)).min(workgroups / tokens.max(1));
    usize::try_from(most).unwrap_or(usize::MAX).max(1)
}

/// The image side of any model on a device.
#[derive(Debug)]
pub struct ImageEncoder {
    gpu: Gpu,
    vit: Vit,
    qformer: QFormer,
    pool: ActivationPool,
    programs: ImagePrograms,
}

impl ImageEncoder {
    /// Nothing is recorded before the first call.
    #[must_use]
    pub fn new(gpu: Gpu, vit: Vit, qformer: QFormer) -> Self {
        Self {
            gpu,
            vit,
            qformer,
            pool: ActivationPool::default(),
            programs: ImagePrograms::default(),
        }
    }

    /// The device.
    #[must_use]
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Most images that the device's limits allow at once.
    #[must_use]
    pub fn max_images(&self) -> usize {
        max_images(&self.gpu, &self.vit)
    }

    /// Encodes `images` (`[3, size, size]` each) as one batch.
    ///
    /// # Errors
    /// An image of another size, no room on the device, or a failing device.
    pub async fn encode(
        &mut self,
        images: &[impl AsRef<[f32]>],
    ) -> Result<Vec<EncodedImage>, Error> {
        let parts = ImageParts {
            vit: &self.vit,
            qformer: &self.qformer,
            retrieval: None,
        };
        let Self { gpu, pool, .. } = self;
        self.programs.encode(gpu, parts, pool, images).await
    }

    /// Rows and columns of what an image becomes.
    #[must_use]
    pub fn shapes(&self) -> ImageShapes {
        let (vit, qformer) = (&self.vit, &self.qformer);
        let retrieval = None;
        ImageParts {
            vit,
            qformer,
            retrieval,
        }
        .shapes()
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

//! Images to features: image encoder, Q-Former and, where the model has one, the projection to the common space.

use std::collections::HashMap;

use crate::Error;
use crate::gpu::{ActivationPool, Gpu, GpuError};
use crate::kernels::tune;
use crate::model::{QFormer, RetrievalModel, Vit};
use crate::schedule::programs::image::{ImageProgram, ImageSide, Keep};
use crate::schedule::programs::outline::image_outlines;
use crate::schedule::timings::Timings;

/// Batch sizes whose programs are kept: a folder's full batch and its rest.
const MAX_PROGRAMS: usize = 2;

/// What a model makes of an image. Each is row-major f32.
#[derive(Debug, Clone, Default, PartialEq)]
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

impl ImageShapes {
    pub(super) fn of(side: ImageSide<'_>) -> Self {
        let queries = side.qformer().queries();
        let embedding = match side {
            ImageSide::Retrieval(model) => RetrievalModel::embedding_size(model),
            ImageSide::Generation(_) | ImageSide::Features(..) => 0,
        };
        Self {
            tokens: [side.vit().tokens(), side.vit().hidden_size()],
            queries: [queries, side.qformer().hidden_size()],
            features: [queries, embedding],
        }
    }
}

/// Recorded programs by batch size.
#[derive(Debug, Default)]
pub(super) struct ImagePrograms(HashMap<usize, ImageProgram>);

impl ImagePrograms {
    /// Encodes `images` (`[3, size, size]` each) as one batch.
    pub(super) async fn encode(
        &mut self,
        gpu: &Gpu,
        side: ImageSide<'_>,
        pool: &ActivationPool,
        images: &[impl AsRef<[f32]>],
    ) -> Result<Vec<EncodedImage>, Error> {
        let images: Vec<&[f32]> = images.iter().map(AsRef::as_ref).collect();
        for image in &images {
            check_pixels(side, image)?;
        }
        if images.is_empty() {
            return Ok(Vec::new());
        }
        let batch = images.len().max(side.least_batch());
        if !self.0.contains_key(&batch) {
            if self.0.len() >= MAX_PROGRAMS {
                self.0.clear();
            }
            for mut outline in image_outlines(gpu, side, batch)? {
                tune(gpu, &outline.products()).await?;
            }
            let program = ImageProgram::record(gpu, side, batch, Keep::Nothing, pool)?;
            self.0.insert(batch, program);
        }
        let program = &self.0[&batch];
        let mut timings = Timings::default();
        program.run(gpu, &images, &mut timings, |_| {}).await?;
        Ok(read(gpu, program, images.len()).await?)
    }
}

/// Whether `image` has as many values as the model takes.
pub(super) fn check_pixels(side: ImageSide<'_>, image: &[f32]) -> Result<(), Error> {
    let (len, pixels) = (image.len(), side.pixel_count());
    if len == pixels {
        return Ok(());
    }
    let problem = format!("an image has {len} values, the model takes {pixels}");
    Err(Error::Request { problem })
}

/// What the first `count` images of the batch became.
async fn read(
    gpu: &Gpu,
    program: &ImageProgram,
    count: usize,
) -> Result<Vec<EncodedImage>, GpuError> {
    let mut images = vec![EncodedImage::default(); count];
    let outputs = std::iter::once(&program.tokens).chain(&program.results);
    let parts: [fn(&mut EncodedImage) -> &mut Vec<f32>; 3] = [
        |image| &mut image.tokens,
        |image| &mut image.queries,
        |image| &mut image.features,
    ];
    for (output, part) in outputs.zip(parts) {
        let values: Vec<f32> = gpu.read(&output.buffer, count * output.each).await?;
        for (image, values) in images.iter_mut().zip(values.chunks(output.each)) {
            *part(image) = values.to_vec();
        }
    }
    Ok(images)
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
        self.side().max_images(&self.gpu)
    }

    /// Encodes `images` (`[3, size, size]` each) as one batch.
    ///
    /// # Errors
    /// An image of another size, no room on the device, or a failing device.
    pub async fn encode(
        &mut self,
        images: &[impl AsRef<[f32]>],
    ) -> Result<Vec<EncodedImage>, Error> {
        let side = ImageSide::Features(&self.vit, &self.qformer);
        let Self { gpu, pool, .. } = self;
        self.programs.encode(gpu, side, pool, images).await
    }

    /// Rows and columns of what an image becomes.
    #[must_use]
    pub fn shapes(&self) -> ImageShapes {
        ImageShapes::of(self.side())
    }

    fn side(&self) -> ImageSide<'_> {
        ImageSide::Features(&self.vit, &self.qformer)
    }
}

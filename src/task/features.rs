//! Image features of any BLIP-2 checkpoint, without its language model.

use std::path::Path;

use crate::platform::parallel::*;

use crate::Error;
use crate::gpu::Gpu;
use crate::image::{Preprocessor, Rgb8Image};
use crate::model::{Blip2Config, QFormer, Vit};
use crate::schedule::{ImageEncoder, ImageShapes, MemoryPlan};
use crate::weights::{Tensors, WeightsError};

use super::open::open;
use super::{ImageFeatures, OpenOptions};

/// Images at a time where none are asked for and there is room.
const DEFAULT_BATCH: usize = 8;

/// The image side of a checkpoint on a device: what transformers' `get_image_features` (without the
/// projection) and `get_qformer_features` give.
#[derive(Debug)]
pub struct ImageFeaturizer {
    preprocessor: Preprocessor,
    encoder: ImageEncoder,
    /// Images at a time where none are asked for.
    batch: usize,
}

/// The image encoder and the Q-Former of a checkpoint, for images of `side` pixels.
fn image_side(
    tensors: &Tensors,
    config: &Blip2Config,
    side: usize,
) -> Result<(Vit, QFormer), WeightsError> {
    let vit = Vit::load(tensors, &config.vision, side)?;
    let qformer = QFormer::load(tensors, &config.qformer, config.num_query_tokens)?;
    Ok((vit, qformer))
}

impl ImageFeaturizer {
    /// Opens the image encoder and the Q-Former of the checkpoint folder `path`, generative or for
    /// retrieval.
    ///
    /// # Errors
    /// No device; a file of the checkpoint that is missing, damaged or does not fit the others; not
    /// enough memory.
    pub async fn open(
        path: impl AsRef<Path>,
        options: OpenOptions,
        progress: &mut (dyn FnMut(u64, u64) + Send),
    ) -> Result<Self, Error> {
        let files = options.open_files(path.as_ref())?;
        let plan = |gpu: &Gpu, (vit, qformer): &(Vit, QFormer), batch, weights| {
            Ok(MemoryPlan::of_images(gpu, vit, qformer, weights, batch)?)
        };
        let opened = open(files, &options, DEFAULT_BATCH, image_side, plan, progress).await?;
        let (vit, qformer) = opened.model;
        Ok(Self {
            preprocessor: opened.preprocessor,
            encoder: ImageEncoder::new(opened.gpu, vit, qformer),
            batch: opened.batch,
        })
    }

    /// The device.
    #[must_use]
    pub fn gpu(&self) -> &Gpu {
        self.encoder.gpu()
    }

    /// Images encoded at a time, if so many are `asked` for.
    #[must_use]
    pub fn batch_size(&self, asked: Option<usize>) -> usize {
        let most = self.encoder.max_images();
        asked.unwrap_or(self.batch).clamp(1, most)
    }

    /// Rows and columns of what an image becomes.
    #[must_use]
    pub fn image_shapes(&self) -> ImageShapes {
        self.encoder.shapes()
    }

    /// Encodes `images` as one batch; their [`ImageFeatures::features`] are empty, as a common
    /// space is what only retrieval checkpoints have.
    ///
    /// # Errors
    /// An image that cannot be prepared, no room on the device, or a failing device.
    pub async fn encode_batch(
        &mut self,
        images: &[Rgb8Image],
    ) -> Result<Vec<ImageFeatures>, Error> {
        let prepare = |image| {
            let _phase = self
                .gpu()
                .profiler()
                .map(|it| it.worker_phase("preprocess"));
            self.preprocessor.apply(image)
        };
        let pixels = images
            .par_iter()
            .map(prepare)
            .collect::<Result<Vec<_>, _>>()?;
        self.encoder.encode(&pixels).await
    }
}

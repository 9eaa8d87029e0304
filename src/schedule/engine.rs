//! A model on a device, with the programs recorded so far.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::Error;
use crate::gpu::{ActivationPool, Gpu, Tap};
use crate::kernels::tune;
use crate::model::Blip2Model;

use super::device_state::{DeviceState, Shape};
use super::image_store::{ImageStore, image_bytes};
use super::programs::image::{ImageProgram, ImageSide, Keep};
use super::programs::outline::outlines;
use super::request::{Image, RequestLimits};
use super::sequence::Prompt;
use super::timings::Timings;

/// What a batch of images and texts costs at least.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct BatchWork {
    /// FLOPs of one image in ViT and Q-Former: `2 · M · N · K` of every product, and the ViT's attention.
    pub encoder_flops: f64,
    /// Bytes of weights that a decode step reads, whatever the batch.
    pub step_bytes: f64,
}

/// A model and its recorded programs. A [`Service`](super::Service) runs requests through them.
#[derive(Debug)]
pub struct Engine {
    gpu: Gpu,
    model: Blip2Model,
    /// Bytes of the model on the device.
    weight_bytes: u64,
    limits: RequestLimits,
    pool: Arc<ActivationPool>,
    /// By batch size, a power of two.
    encoders: HashMap<usize, ImageProgram>,
    /// Batch sizes whose kernels have been chosen.
    tuned: HashSet<usize>,
}

/// Positions of a prompt that kernels are chosen for: an image and a few words.
const TUNED_POSITIONS: usize = 40;

impl Engine {
    /// A model of `weight_bytes` bytes on the device. Nothing is recorded before the first request.
    #[must_use]
    pub fn new(gpu: Gpu, model: Blip2Model, weight_bytes: u64) -> Self {
        let language_model = &model.language_model;
        let start = language_model.decoder_start();
        let limits = RequestLimits {
            positions: language_model.max_positions(),
            taken: model.qformer.queries() + usize::from(start.is_some()),
            vocabulary: language_model.vocabulary(),
            pixels: ImageSide::Generation(&model).pixel_count(),
            cache_row_bytes: language_model.cache_layer_row_bytes(),
            max_binding_bytes: gpu.capabilities().max_binding_bytes,
        };
        Self {
            gpu,
            model,
            weight_bytes,
            limits,
            pool: Arc::default(),
            encoders: HashMap::new(),
            tuned: HashSet::new(),
        }
    }

    /// The device.
    #[must_use]
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// The model's weights.
    pub(crate) fn model(&self) -> &Blip2Model {
        &self.model
    }

    /// Number of logits.
    #[must_use]
    pub fn vocabulary(&self) -> usize {
        self.model.language_model.vocabulary()
    }

    /// What decides whether a request can be served.
    pub(crate) fn limits(&self) -> &RequestLimits {
        &self.limits
    }

    /// Bytes of the model on the device.
    #[must_use]
    pub fn weight_bytes(&self) -> u64 {
        self.weight_bytes
    }

    /// Bytes of the activations' shared buffers so far.
    #[must_use]
    pub fn activation_bytes(&self) -> u64 {
        self.pool.bytes()
    }

    /// Most images that the device's limits allow at once.
    #[must_use]
    pub fn max_batch(&self) -> usize {
        self.image_side().max_images(&self.gpu)
    }

    /// Most images whose query rows one buffer holds.
    pub(super) fn most_image_places(&self) -> usize {
        let most = self.gpu.capabilities().max_binding_bytes / image_bytes(&self.model);
        usize::try_from(most).unwrap_or(usize::MAX)
    }

    /// Chooses the kernels for up to `batch` requests at once, by measuring where nothing is known yet.
    pub(super) async fn tune(&mut self, batch: usize) -> Result<(), Error> {
        if self.tuned.insert(batch) {
            let _phase = self.gpu.phase("tune");
            let programs = outlines(&self.gpu, &self.model, batch, TUNED_POSITIONS)?;
            for mut program in programs {
                tune(&self.gpu, &program.products()).await?;
            }
        }
        Ok(())
    }

    /// What `batch` images and a decode step of as many texts cost.
    ///
    /// # Errors
    /// No room on the device for the small state that outlines need.
    pub fn batch_work(&self, batch: usize) -> Result<BatchWork, Error> {
        let [mut vit, mut qformer, _, mut decode] =
            outlines(&self.gpu, &self.model, batch, TUNED_POSITIONS)?;
        let products: usize = [vit.products(), qformer.products()]
            .iter()
            .flatten()
            .map(|it| 2 * it.rows * it.weight.rows * it.weight.columns)
            .sum();
        let vit = &self.model.vit;
        let attention = 4 * vit.tokens().pow(2) * vit.hidden_size() * vit.depth();
        let step_bytes: u64 = decode.products().iter().map(|it| it.weight.bytes()).sum();
        Ok(BatchWork {
            encoder_flops: products as f64 / batch as f64 + attention as f64,
            step_bytes: step_bytes as f64,
        })
    }

    /// Runs one image and prompt with every stage kept: those of the image, then those of the decoder. Each
    /// token of `said`, the text so far, is decoded in a step, whose stages are `step.1.logits` and so on.
    ///
    /// # Errors
    /// A device that fails or has no room.
    pub async fn stages(
        &self,
        pixels: &[f32],
        text: &[u32],
        said: &[u32],
    ) -> Result<Vec<Tap>, Error> {
        let encoder = self.record_encoder(1, Keep::Stages)?;
        let prompt = Prompt {
            visual_row: 0,
            visual_count: self.model.qformer.queries(),
            text: text.to_vec(),
            decoder_start: self.model.language_model.decoder_start(),
        };
        let longest = prompt.len() + said.len();
        let shape = Shape {
            rows: 1,
            max_length: longest,
            cache_rows: longest,
            rules_stride: 1,
            images: 1,
        };
        let shape = shape.rounded(self.model.language_model.max_positions());
        let mut state = self.new_state(shape, None)?;
        let (mut timings, images) = (Timings::default(), &state.images);
        let copy = |commands: &mut _| images.copy(commands, &encoder.results[0], &[0]);
        encoder
            .run(&self.gpu, &[pixels], &mut timings, copy)
            .await?;
        let programs = state.run_with_stages(&self.gpu, &self.model, &prompt, said)?;
        let mut stages: Vec<Tap> = encoder.taps().cloned().collect();
        for (step, program) in programs.iter().enumerate() {
            stages.extend(program.taps().iter().cloned().map(|tap| Tap {
                name: match step {
                    0 => tap.name,
                    step => format!("step.{step}.{}", tap.name),
                },
                ..tap
            }));
        }
        self.gpu.finish("running all stages").await?;
        Ok(stages)
    }

    /// An empty device state that takes over `images` if there are places enough.
    pub(super) fn new_state(
        &self,
        shape: Shape,
        images: Option<ImageStore>,
    ) -> Result<DeviceState, Error> {
        let state = DeviceState::new(&self.gpu, &self.model, shape, images, &self.pool)?;
        Ok(state)
    }

    /// Encodes `images`, a power of two of them, into their places in `store`.
    pub(super) async fn encode(
        &mut self,
        images: &[Image],
        store: &ImageStore,
        places: &[usize],
        timings: &mut Timings,
    ) -> Result<(), Error> {
        let batch = images.len();
        if !self.encoders.contains_key(&batch) {
            let encoder = self.record_encoder(batch, Keep::Nothing)?;
            self.encoders.insert(batch, encoder);
        }
        let encoder = &self.encoders[&batch];
        let images: Vec<&[f32]> = images.iter().map(|image| image.pixels.as_slice()).collect();
        let copy = |commands: &mut _| store.copy(commands, &encoder.results[0], places);
        encoder.run(&self.gpu, &images, timings, copy).await?;
        Ok(())
    }

    fn record_encoder(&self, batch: usize, keep: Keep) -> Result<ImageProgram, Error> {
        let side = self.image_side();
        Ok(ImageProgram::record(
            &self.gpu, side, batch, keep, &self.pool,
        )?)
    }

    fn image_side(&self) -> ImageSide<'_> {
        ImageSide::Generation(&self.model)
    }
}

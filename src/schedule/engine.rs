//! A model on a device, with the programs recorded so far.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::Error;
use crate::generate::GenerationOptions;
use crate::gpu::{ActivationPool, Gpu, Tap};
use crate::kernels::tune;
use crate::model::Blip2Model;

use super::device_state::{DeviceState, Shape};
use super::image_store::ImageStore;
use super::programs::image::{ImageProgram, ImageSide, Keep};
use super::programs::outline::outlines;
use super::request::{Pixels, Request};
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

/// A model and its recorded programs. A [`Queue`](super::Queue) runs requests through them.
#[derive(Debug)]
pub struct Engine {
    pub(super) gpu: Gpu,
    pub(super) model: Blip2Model,
    pool: Arc<ActivationPool>,
    /// By batch size, a power of two.
    encoders: HashMap<usize, ImageProgram>,
    pub(super) state: Option<DeviceState>,
    pub(super) timings: Timings,
    /// Batch sizes whose kernels have been chosen.
    tuned: HashSet<usize>,
}

/// Positions of a prompt that kernels are chosen for: an image and a few words.
const TUNED_POSITIONS: usize = 40;

impl Engine {
    /// Nothing is recorded before the first request.
    #[must_use]
    pub fn new(gpu: Gpu, model: Blip2Model) -> Self {
        Self {
            gpu,
            model,
            pool: Arc::default(),
            encoders: HashMap::new(),
            state: None,
            timings: Timings::default(),
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

    /// How long the parts of the last queue's work took.
    #[must_use]
    pub fn timings(&self) -> Timings {
        self.timings
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

    /// Whether image, prompt and new tokens fit the language model's positions.
    ///
    /// # Errors
    /// [`Error::TooLong`]
    pub fn check_length(&self, text: usize, options: &GenerationOptions) -> Result<(), Error> {
        let prompt = self.prompt_positions(text);
        let needed = prompt.saturating_add(options.max_new_tokens);
        let most = self.model.language_model.max_positions();
        if needed > most {
            return Err(Error::TooLong {
                needed,
                prompt,
                new: options.max_new_tokens,
                most,
            });
        }
        Ok(())
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

    /// Runs one image and prompt with every stage kept: those of the image, then those of the decoder.
    ///
    /// # Errors
    /// A device that fails or has no room.
    pub async fn stages(&mut self, pixels: &Pixels, text: &[u32]) -> Result<Vec<Tap>, Error> {
        let encoder = self.record_encoder(1, Keep::Stages)?;
        let prompt = Prompt {
            visual_row: 0,
            visual_count: self.model.qformer.queries(),
            text: text.to_vec(),
            decoder_start: self.model.language_model.decoder_start(),
        };
        let shape = Shape {
            rows: 1,
            max_length: prompt.len(),
            cache_rows: prompt.len(),
            rules_stride: 1,
            images: 1,
        };
        let shape = shape.rounded(self.model.language_model.max_positions());
        let mut state = self.new_state(shape)?;
        let (mut timings, images) = (Timings::default(), &state.images);
        let copy = |commands: &mut _| images.copy(commands, &encoder.results[0], &[0]);
        encoder
            .run(&self.gpu, &[pixels.as_slice()], &mut timings, copy)
            .await?;
        let prefill = state.prefill_with_stages(&self.gpu, &self.model, &prompt)?;
        self.gpu.finish("running all stages").await?;
        let stages = encoder.taps().chain(prefill.program.taps());
        Ok(stages.cloned().collect())
    }

    /// An empty device state.
    pub(super) fn new_state(&self, shape: Shape) -> Result<DeviceState, Error> {
        Ok(DeviceState::new(&self.gpu, &self.model, shape, &self.pool)?)
    }

    /// Encodes `images`, a power of two of them, into their places in `store`.
    pub(super) async fn encode(
        &mut self,
        images: &[Pixels],
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
        let images: Vec<&[f32]> = images.iter().map(|image| image.as_slice()).collect();
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

    /// Positions of a request's image and text, and of the token that the decoder begins with where it has one.
    pub(super) fn prompt_length(&self, request: &Request) -> usize {
        self.prompt_positions(request.text.len())
    }

    fn prompt_positions(&self, text: usize) -> usize {
        let start = self.model.language_model.decoder_start();
        self.model.qformer.queries() + text + usize::from(start.is_some())
    }

    /// Whether `request` is one that the device can be trusted with.
    pub(super) fn check_request(&self, request: &Request) -> Result<(), Error> {
        self.check_length(request.text.len(), &request.options)?;
        let pixels = self.image_side().pixel_count();
        let unknown = request
            .text
            .iter()
            .find(|&&id| id as usize >= self.vocabulary());
        let problem = if request.image.len() != pixels {
            let given = request.image.len();
            format!("an image has {given} values, the model takes {pixels}")
        } else if let Some(id) = unknown {
            format!("token {id} of a vocabulary of {}", self.vocabulary())
        } else if request.text.is_empty() || request.history.len() > self.prompt_length(request) {
            format!(
                "{} history ids for {} prompt ids",
                request.history.len(),
                request.text.len()
            )
        } else {
            return Ok(());
        };
        Err(Error::Request { problem })
    }
}

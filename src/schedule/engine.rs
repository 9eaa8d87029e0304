//! A model on a device, with the programs recorded so far.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::Error;
use crate::generate::{Generated, GenerationOptions};
use crate::gpu::{ActivationPool, Gpu, Tap};
use crate::model::Blip2Model;

use super::decode::{Decoder, Job, OnToken, cache_rows, rows_per_job};
use super::encode::ImageEncoder;
use super::session::{Prompt, Session, Shape};

/// Batch sizes whose image programs are kept.
const MAX_ENCODERS: usize = 2;

/// One text to generate.
#[derive(Debug, Clone)]
pub struct Request {
    /// Index of its image in the call.
    pub image: usize,
    /// Prompt ids, BOS included.
    pub text: Vec<u32>,
    /// Ids that the score processors count as already said.
    pub history: Vec<u32>,
}

/// How long the parts of the last call took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timings {
    /// Image encoder.
    pub vit: Duration,
    /// Q-Former and projection.
    pub qformer: Duration,
    /// Prefill, first tokens included.
    pub prefill: Duration,
    /// All further steps.
    pub decode: Duration,
    /// Decode steps, each of all sequences of the batch.
    pub steps: usize,
    /// Tokens generated, of all texts.
    pub tokens: usize,
}

impl std::fmt::Display for Timings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "ViT {:.3} s, Q-Former {:.3} s, prefill {:.3} s, decode {:.3} s ({} steps, {:.1} ms each), {} tokens",
            self.vit.as_secs_f64(),
            self.qformer.as_secs_f64(),
            self.prefill.as_secs_f64(),
            self.decode.as_secs_f64(),
            self.steps,
            self.decode.as_secs_f64() * 1e3 / self.steps.max(1) as f64,
            self.tokens,
        )
    }
}

/// Runs requests on one device.
#[derive(Debug)]
pub struct Engine {
    gpu: Gpu,
    model: Blip2Model,
    pool: Arc<ActivationPool>,
    /// One a batch size: their outputs are told apart by their number of rows.
    encoders: HashMap<usize, ImageEncoder>,
    session: Option<Session>,
    timings: Timings,
}

impl Engine {
    /// Nothing is recorded before the first request.
    #[must_use]
    pub fn new(gpu: Gpu, model: Blip2Model) -> Self {
        Self {
            gpu,
            model,
            pool: Arc::default(),
            encoders: HashMap::new(),
            session: None,
            timings: Timings::default(),
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
        self.model.opt.vocabulary()
    }

    /// How long the parts of the last call took.
    #[must_use]
    pub fn timings(&self) -> Timings {
        self.timings
    }

    /// Bytes of the activations' shared buffers so far.
    #[must_use]
    pub fn activation_bytes(&self) -> u64 {
        self.pool.bytes()
    }

    /// Most images that one binding's limit allows at once.
    #[must_use]
    pub fn max_batch(&self) -> usize {
        let limit = self.gpu.capabilities().max_binding_bytes;
        let most = limit / self.model.vit.widest_activation_bytes().max(1);
        usize::try_from(most).unwrap_or(usize::MAX).max(1)
    }

    /// Whether image, prompt and new tokens fit the decoder's positions.
    ///
    /// # Errors
    /// [`Error::TooLong`]
    pub fn check_length(&self, text: usize, options: &GenerationOptions) -> Result<(), Error> {
        let prompt = self.model.qformer.queries() + text;
        let needed = prompt.saturating_add(options.max_new_tokens);
        let most = self.model.opt.max_positions();
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

    /// Encodes `images` (`[3, size, size]` each) and generates for every request; the best text of each first.
    ///
    /// # Errors
    /// A prompt too long, no room on the device, or a failing device.
    pub async fn generate(
        &mut self,
        images: &[Vec<f32>],
        requests: &[Request],
        options: &GenerationOptions,
        on_token: &mut OnToken<'_>,
    ) -> Result<Vec<Vec<Generated>>, Error> {
        if requests.is_empty() {
            return Ok(Vec::new());
        }
        self.check_requests(images, requests, options)?;
        let jobs = self.jobs(requests, options);
        self.record_encoder(images.len())?;
        let mut timings = Timings::default();
        // The encoder stays in its place: a cancelled call must not part it from the prefills that read its rows.
        let visual = self.encoders[&images.len()]
            .run(&self.gpu, images, &mut timings)
            .await?;

        let mut session = self.take_session(&jobs, options)?;
        let generated = Decoder {
            gpu: &self.gpu,
            model: &self.model,
            session: &mut session,
            visual: &visual,
            jobs: &jobs,
            options,
            timings: &mut timings,
        }
        .generate(on_token)
        .await?;
        self.session = Some(session);
        timings.tokens = generated
            .iter()
            .flatten()
            .map(|text| text.tokens.len())
            .sum();
        self.timings = timings;
        Ok(generated)
    }

    /// Runs one image and prompt with every stage kept: `(image stages, decoder stages)`.
    ///
    /// # Errors
    /// As [`Engine::generate`].
    pub async fn stages(&mut self, pixels: &[f32], text: &[u32]) -> Result<Vec<Tap>, Error> {
        let encoder = ImageEncoder::record(&self.gpu, &self.model, 1, &self.pool, true)?;
        let visual = encoder
            .run(&self.gpu, &[pixels], &mut Timings::default())
            .await?;
        let prompt = Prompt {
            visual_row: 0,
            visual_count: self.model.qformer.queries(),
            text: text.to_vec(),
        };
        let length = prompt.len();
        let shape = Shape::rounded(1, length, length, self.model.opt.max_positions());
        let mut session = Session::new(&self.gpu, &self.model, shape, &self.pool)?;
        let table: Vec<u32> = (0..session.shape.max_length as u32).collect();
        self.gpu.write(&session.pages.page_table, 0, &table);
        let prefill = session.prefill(&self.gpu, &self.model, &visual, &[prompt], 1, true)?;
        prefill.program.run(&self.gpu);
        self.gpu.finish("running all stages").await?;
        let stages = encoder.taps().chain(prefill.program.taps());
        Ok(stages.cloned().collect())
    }

    /// Sees to it that there is an encoder for `batch` images. Two sizes are kept: a folder's full batch and its rest.
    fn record_encoder(&mut self, batch: usize) -> Result<(), Error> {
        if self.encoders.contains_key(&batch) {
            return Ok(());
        }
        if self.encoders.len() >= MAX_ENCODERS {
            // The session's prefills read the rows of encoders that go.
            self.session = None;
            self.encoders.clear();
        }
        let encoder = ImageEncoder::record(&self.gpu, &self.model, batch, &self.pool, false)?;
        self.encoders.insert(batch, encoder);
        Ok(())
    }

    /// Whether every request is one that the device can be trusted with.
    fn check_requests(
        &self,
        images: &[Vec<f32>],
        requests: &[Request],
        options: &GenerationOptions,
    ) -> Result<(), Error> {
        let pixels = 3 * self.model.vit.image_size() * self.model.vit.image_size();
        if let Some(image) = images.iter().find(|image| image.len() != pixels) {
            return Err(Error::Request {
                problem: format!(
                    "an image has {} values, the model takes {pixels}",
                    image.len()
                ),
            });
        }
        for request in requests {
            self.check_length(request.text.len(), options)?;
            let prompt = self.model.qformer.queries() + request.text.len();
            let unknown = request
                .text
                .iter()
                .find(|&&id| id as usize >= self.vocabulary());
            let problem = if request.image >= images.len() {
                format!("image {} of {}", request.image, images.len())
            } else if let Some(id) = unknown {
                format!("token {id} of a vocabulary of {}", self.vocabulary())
            } else if request.text.is_empty() || request.history.len() > prompt {
                format!(
                    "{} history ids for {} prompt ids",
                    request.history.len(),
                    request.text.len()
                )
            } else {
                continue;
            };
            return Err(Error::Request { problem });
        }
        Ok(())
    }

    /// Numbers the requests' cache rows one after another.
    fn jobs(&self, requests: &[Request], options: &GenerationOptions) -> Vec<Job> {
        let queries = self.model.qformer.queries();
        let mut first_cache_row = 0;
        requests
            .iter()
            .map(|request| {
                let prompt = Prompt {
                    visual_row: request.image * queries,
                    visual_count: queries,
                    text: request.text.clone(),
                };
                let job = Job {
                    first_cache_row,
                    history: request.history.clone(),
                    prompt,
                };
                first_cache_row += cache_rows(&job.prompt, options);
                job
            })
            .collect()
    }

    /// The session of the last call if it fits, else a new one.
    fn take_session(
        &mut self,
        jobs: &[Job],
        options: &GenerationOptions,
    ) -> Result<Session, Error> {
        let longest = jobs.iter().map(|job| job.prompt.len()).max().unwrap_or(0);
        let shape = Shape::rounded(
            jobs.len() * rows_per_job(options),
            longest + options.max_new_tokens,
            jobs.iter()
                .map(|job| cache_rows(&job.prompt, options))
                .sum(),
            self.model.opt.max_positions(),
        );
        match self.session.take() {
            Some(session)
                if session.shape.rows == shape.rows
                    && session.shape.max_length == shape.max_length
                    && session.shape.cache_rows >= shape.cache_rows =>
            {
                Ok(session)
            }
            // The old session's memory goes back before the new one asks for its own.
            old => {
                drop(old);
                Ok(Session::new(&self.gpu, &self.model, shape, &self.pool)?)
            }
        }
    }
}

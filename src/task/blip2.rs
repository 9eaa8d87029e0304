//! A checkpoint opened for use.

use std::path::Path;
use std::sync::Arc;

use crate::Error;
use crate::gpu::{Gpu, GpuOptions, WeightFormat};
use crate::kernels::self_check;
use crate::model::config::Head;
use crate::model::{Blip2Config, Blip2Model, RetrievalModel};
use crate::schedule::{
    Engine, MemoryPlan, RetrievalWorkload, Service, ServiceOptions, Timings, Workload,
};
use crate::weights::{Checkpoint, Uploader};

use super::memory::Planner;
use super::prepare::Preparation;
use super::prompt::Prompter;
use super::run::DEFAULT_BATCH;
use super::service::Handle;
use super::source::Source;

/// How to open a checkpoint.
#[derive(Debug, Clone, Default)]
pub struct OpenOptions {
    /// Which device, and how.
    pub gpu: GpuOptions,
    /// A device that is open already, such as another model's, instead of one opened by `gpu`.
    pub device: Option<Gpu>,
    /// Side of the images in pixels, if not the checkpoint's: its position embeddings are then interpolated.
    pub image_size: Option<u32>,
    /// How weight matrices are stored on the device: in q8 or q4 they take about half or a quarter of the memory, and
    /// are read that much faster. `None` keeps what the checkpoint has, which is f16 unless `convert` has quantised it.
    pub quant: Option<WeightFormat>,
    /// Bytes of the device's memory that may be used; `None`: what there is, where that can be known. A model that does
    /// not fit is refused before it is loaded.
    pub memory: Option<u64>,
    /// What to have room for.
    pub work: Work,
}

/// What a model is going to be asked, as far as its memory depends on it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Work {
    /// Images (or questions) at a time; `None`: as many as fit, at most a usual number.
    pub batch_size: Option<usize>,
    /// Beams, if not the checkpoint's.
    pub beams: Option<usize>,
    /// Most tokens to generate, if not the checkpoint's.
    pub new_tokens: Option<usize>,
}

/// Tokens of a prompt that room is planned for: a short question.
pub(super) const PLANNED_TEXT: usize = 8;

impl OpenOptions {
    /// The device, on which every kernel that it can run on the weights of `checkpoint` has been checked.
    pub(super) async fn open_device(&self, checkpoint: &Checkpoint) -> Result<Gpu, Error> {
        let gpu = match &self.device {
            Some(gpu) => gpu.clone(),
            None => Gpu::open(&self.gpu).await?,
        };
        let _phase = gpu.phase("self-check");
        self_check(&gpu, &checkpoint.formats(self.quant.unwrap_or_default())).await?;
        Ok(gpu)
    }
}

/// A BLIP-2 checkpoint on a device, with everything between files and text.
///
/// ```no_run
/// # async fn example() -> Result<(), blip2_wgpu::Error> {
/// use blip2_wgpu::{Blip2, CaptionOptions, OpenOptions, image};
///
/// let mut model = Blip2::open("blip2-opt-2.7b", OpenOptions::default()).await?;
/// let photo = image::decode_file("photo.jpg".as_ref(), image::DecodePolicy::hf())?;
/// let captions = model.caption(&[photo], &CaptionOptions::default()).await?;
/// println!("{}", captions[0].text);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Blip2 {
    pub(super) service: Service,
    pub(super) handle: Handle,
    /// Requests at a time where none are asked for.
    pub(super) batch: usize,
}

impl Blip2 {
    /// Opens the checkpoint folder `path` on a device.
    ///
    /// # Errors
    /// No device; a file of the checkpoint that is missing, damaged or does not fit the others; not enough memory.
    pub async fn open(path: impl AsRef<Path>, options: OpenOptions) -> Result<Self, Error> {
        Self::open_with_progress(path, options, &mut |_, _| {}).await
    }

    /// [`Blip2::open`] that reports the bytes of the checkpoint dealt with so far, and all of them.
    ///
    /// # Errors
    /// As [`Blip2::open`].
    pub async fn open_with_progress(
        path: impl AsRef<Path>,
        options: OpenOptions,
        progress: &mut (dyn FnMut(u64, u64) + Send),
    ) -> Result<Self, Error> {
        // Everything that is quick to check comes before the device and the gigabytes.
        let source = Source::open(path.as_ref(), options.image_size)?;
        Self::load(source, options, progress).await
    }

    /// Opens the demo model that is part of the program: a small BLIP-2 that knows drawings of coloured shapes and
    /// nothing of the real world.
    ///
    /// # Errors
    /// No device, or not enough memory.
    #[cfg(feature = "demo-model")]
    pub async fn demo(options: OpenOptions) -> Result<Self, Error> {
        let source = Source::demo(options.image_size)?;
        Self::load(source, options, &mut |_, _| {}).await
    }

    /// Puts a checkpoint on its device.
    pub(super) async fn load(
        source: Source,
        options: OpenOptions,
        progress: &mut (dyn FnMut(u64, u64) + Send),
    ) -> Result<Self, Error> {
        let gpu = options.open_device(&source.checkpoint).await?;
        let _phase = gpu.phase("load");
        let mut ignore = |_, _| {};
        let mut outline =
            Uploader::outline(&gpu, &source.checkpoint, &mut ignore)?.quantised(options.quant);
        let planned = source.model(&mut outline).await?;
        let planner = Planner::new(&gpu, &options, DEFAULT_BATCH, &outline);
        let generation = &source.generation;
        let plan = |batch, weights| {
            let work = Workload {
                batch,
                text: PLANNED_TEXT,
                new_tokens: options.work.new_tokens.unwrap_or(generation.max_new_tokens),
                beams: options.work.beams.unwrap_or(generation.num_beams),
            };
            MemoryPlan::of(&gpu, &planned, weights, &work)
        };
        let batch = planner.batch(&plan)?;
        let mut uploader = Uploader::new(&gpu, &source.checkpoint, progress)
            .quantised(options.quant)
            .expecting(outline);
        let loaded = async {
            let model = source.model(&mut uploader).await?;
            uploader.finish().await?;
            Ok::<_, Error>(model)
        };
        let model = loaded
            .await
            .map_err(|error| planner.explain(error, batch, &plan))?;
        let (profiler, weights) = (gpu.profiler().cloned(), planner.weights);
        let engine = Engine::new(gpu, model, weights);
        // Its one asker is `run`, which itself minds how much is under way.
        let options = ServiceOptions {
            batch_size: batch,
            queue: usize::MAX,
            image_places: 0,
        };
        let (service, door) = Service::new(engine, options);
        let prompter = Prompter::new(source.config, source.tokenizer, source.generation);
        let handle = Handle {
            door,
            prompter: Arc::new(prompter),
            preparation: Preparation::new(source.preprocessor, profiler),
        };
        Ok(Self {
            service,
            handle,
            batch,
        })
    }

    /// The device.
    #[must_use]
    pub fn gpu(&self) -> &Gpu {
        self.service.engine().gpu()
    }

    /// The checkpoint's configuration.
    #[must_use]
    pub fn config(&self) -> &Blip2Config {
        &self.handle.prompter.config
    }

    /// Bytes of the buffers that activations share so far: they grow with larger batches and never shrink.
    #[must_use]
    pub fn activation_bytes(&self) -> u64 {
        self.service.engine().activation_bytes()
    }

    /// How long the parts of the last call took.
    #[must_use]
    pub fn timings(&self) -> Timings {
        self.service.timings()
    }

    /// What `batch` images and a decode step of as many texts cost at least.
    #[cfg(feature = "cli")]
    pub(crate) fn batch_work(&self, batch: usize) -> Result<crate::schedule::BatchWork, Error> {
        self.service.engine().batch_work(batch)
    }

    /// What makes prompts.
    pub(super) fn prompter(&self) -> &Prompter {
        &self.handle.prompter
    }
}

/// What a checkpoint will take on a device, without loading it.
#[derive(Debug)]
pub struct Forecast<'g> {
    gpu: &'g Gpu,
    model: Outline,
    /// Bytes of the weights as they would be loaded.
    weights: u64,
    /// Bytes of the weights in each format that they can have.
    formats: Vec<(WeightFormat, u64)>,
}

#[derive(Debug)]
enum Outline {
    Generative(Box<Blip2Model>),
    Retrieval(Box<RetrievalModel>),
}

impl<'g> Forecast<'g> {
    /// Goes through the checkpoint's tensors as loading would, weights stored as `quant` ([`OpenOptions::quant`]).
    ///
    /// # Errors
    /// A tensor that is missing or misshapen, or a failing device.
    pub async fn new(
        gpu: &'g Gpu,
        config: &Blip2Config,
        checkpoint: &Checkpoint,
        quant: Option<WeightFormat>,
    ) -> Result<Self, Error> {
        let mut ignore = |_, _| {};
        let mut outline = Uploader::outline(gpu, checkpoint, &mut ignore)?.quantised(quant);
        let side = config.vision.image_size;
        let model = match &config.head {
            Head::Generation(language) => {
                let model = Blip2Model::load(&mut outline, config, language, side).await?;
                Outline::Generative(Box::new(model))
            }
            Head::Retrieval { embedding_size } => {
                let width = *embedding_size;
                let model = RetrievalModel::load(&mut outline, config, width, side).await?;
                Outline::Retrieval(Box::new(model))
            }
        };
        Ok(Self {
            gpu,
            model,
            weights: outline.device_bytes(),
            formats: WeightFormat::ALL
                .into_iter()
                .filter_map(|format| Some((format, outline.bytes_in(format)?)))
                .collect(),
        })
    }

    /// The formats that weights can have: all, unless the checkpoint has them quantised already.
    pub fn formats(&self) -> impl Iterator<Item = WeightFormat> {
        self.formats.iter().map(|(format, _)| *format)
    }

    /// What `batch` images at a time take, with weights in `format` (`None`: as they would be loaded): for a generative
    /// model with texts of `positions` positions in all and so many `beams`, for a retrieval model matched with one text
    /// of so many positions each.
    ///
    /// # Errors
    /// More than a dispatch of this device can do.
    pub fn plan(
        &self,
        format: Option<WeightFormat>,
        batch: usize,
        positions: usize,
        beams: usize,
    ) -> Result<MemoryPlan, Error> {
        let known = |format| self.formats.iter().find(|(known, _)| *known == format);
        let weights = format
            .and_then(known)
            .map_or(self.weights, |(_, bytes)| *bytes);
        match &self.model {
            Outline::Generative(model) => {
                let prompt = model.qformer.queries() + PLANNED_TEXT;
                let work = Workload {
                    batch,
                    text: PLANNED_TEXT,
                    new_tokens: positions.saturating_sub(prompt).max(1),
                    beams,
                };
                MemoryPlan::of(self.gpu, model, weights, &work)
            }
            Outline::Retrieval(model) => {
                let tokens = positions.min(model.text.max_positions());
                let work = RetrievalWorkload {
                    batch,
                    texts: 1,
                    tokens,
                };
                Ok(MemoryPlan::of_retrieval(self.gpu, model, weights, &work)?)
            }
        }
    }
}

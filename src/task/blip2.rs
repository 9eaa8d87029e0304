//! A checkpoint opened for use.

use std::path::Path;
use std::sync::Arc;

use crate::Error;
#[cfg(feature = "convert")]
use crate::convert::CheckpointParts;
use crate::gpu::{Gpu, GpuOptions, WeightFormat};
use crate::model::{Blip2Config, Blip2Model};
use crate::schedule::{Engine, MemoryPlan, Service, ServiceOptions, Timings, Workload};
use crate::weights::Tensors;

use super::checkpoint::CheckpointFiles;
use super::open::open;
use super::prepare::Preparation;
use super::prompt::Prompter;
use super::run::DEFAULT_BATCH;
use super::service::Handle;

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
    /// Where the parts come from that a file of LAVIS or mmpretrain lacks.
    #[cfg(feature = "convert")]
    pub parts: CheckpointParts,
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
        let files = options.open_files(path.as_ref())?;
        Self::load(files, options, progress).await
    }

    /// Opens the demo model that is part of the program: a small BLIP-2 that knows drawings of coloured shapes and
    /// nothing of the real world.
    ///
    /// # Errors
    /// No device, or not enough memory.
    #[cfg(feature = "demo-model")]
    pub async fn demo(options: OpenOptions) -> Result<Self, Error> {
        let files = CheckpointFiles::demo(&crate::demo::GENERATIVE, "demo")?;
        Self::load(files, options, &mut |_, _| {}).await
    }

    /// Puts a checkpoint on its device.
    pub(super) async fn load(
        files: CheckpointFiles,
        options: OpenOptions,
        progress: &mut (dyn FnMut(u64, u64) + Send),
    ) -> Result<Self, Error> {
        let language = files.language()?.clone();
        let tokenizer = files.tokenizer(&language)?;
        let generation = files.generation_options(&language)?;
        let work = options.work;
        let load = |tensors: &Tensors, config: &Blip2Config, image_size| {
            Blip2Model::load(tensors, config, &language, image_size)
        };
        let plan = |gpu: &Gpu, model: &Blip2Model, batch, weights| {
            let work = Workload {
                batch,
                text: PLANNED_TEXT,
                new_tokens: work.new_tokens.unwrap_or(generation.max_new_tokens),
                beams: work.beams.unwrap_or(generation.num_beams),
            };
            MemoryPlan::of(gpu, model, weights, &work)
        };
        let opened = open(files, &options, DEFAULT_BATCH, load, plan, progress).await?;
        let profiler = opened.gpu.profiler().cloned();
        let engine = Engine::new(opened.gpu, opened.model, opened.weights);
        // Its one asker is `run`, which itself minds how much is under way.
        let options = ServiceOptions {
            batch_size: opened.batch,
            queue: usize::MAX,
            image_places: 0,
        };
        let (service, door) = Service::new(engine, options);
        let prompter = Prompter::new(opened.config, tokenizer, generation);
        let handle = Handle {
            door,
            prompter: Arc::new(prompter),
            preparation: Preparation::new(opened.preprocessor, profiler),
        };
        Ok(Self {
            service,
            handle,
            batch: opened.batch,
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
    #[cfg(feature = "bench")]
    pub(crate) fn batch_work(&self, batch: usize) -> Result<crate::schedule::BatchWork, Error> {
        self.service.engine().batch_work(batch)
    }

    /// What makes prompts.
    pub(super) fn prompter(&self) -> &Prompter {
        &self.handle.prompter
    }
}

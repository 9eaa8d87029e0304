//! A checkpoint opened for use.

use std::path::Path;

use crate::Error;
use crate::generate::GenerationOptions;
use crate::gpu::{Gpu, GpuOptions, WeightFormat};
use crate::image::Preprocessor;
use crate::kernels::self_check;
use crate::model::{Blip2Config, Blip2Model};
use crate::schedule::{Engine, MemoryPlan, Timings};
use crate::text::Tokenizer;
use crate::weights::{Checkpoint, Uploader};

use super::prompt::Prompter;
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
}

impl OpenOptions {
    /// The device, on which every kernel that it can run on the weights of `checkpoint` has been checked.
    pub(super) async fn open_device(&self, checkpoint: &Checkpoint) -> Result<Gpu, Error> {
        let gpu = match &self.device {
            Some(gpu) => gpu.clone(),
            None => Gpu::open(&self.gpu).await?,
        };
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
    pub(super) config: Blip2Config,
    pub(super) preprocessor: Preprocessor,
    pub(super) tokenizer: Tokenizer,
    pub(super) generation: GenerationOptions,
    pub(super) engine: Engine,
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
        let mut ignore = |_, _| {};
        let mut outline =
            Uploader::outline(&gpu, &source.checkpoint, &mut ignore)?.quantised(options.quant);
        source.model(&mut outline).await?;
        let mut uploader = Uploader::new(&gpu, &source.checkpoint, progress)
            .quantised(options.quant)
            .expecting(outline);
        let model = source.model(&mut uploader).await?;
        uploader.finish().await?;
        Ok(Self {
            config: source.config,
            preprocessor: source.preprocessor,
            tokenizer: source.tokenizer,
            generation: source.generation,
            engine: Engine::new(gpu, model),
        })
    }

    /// The device.
    #[must_use]
    pub fn gpu(&self) -> &Gpu {
        self.engine.gpu()
    }

    /// The checkpoint's configuration.
    #[must_use]
    pub fn config(&self) -> &Blip2Config {
        &self.config
    }

    /// Bytes of the buffers that activations share so far: they grow with larger batches and never shrink.
    #[must_use]
    pub fn activation_bytes(&self) -> u64 {
        self.engine.activation_bytes()
    }

    /// How long the parts of the last call took.
    #[must_use]
    pub fn timings(&self) -> Timings {
        self.engine.timings()
    }

    /// What makes prompts.
    pub(super) fn prompter(&self) -> Prompter<'_> {
        Prompter {
            config: &self.config,
            tokenizer: &self.tokenizer,
            generation: &self.generation,
        }
    }
}

/// What a generative checkpoint will need on `gpu`, its matrices stored as `quant` ([`OpenOptions::quant`]), for `batch`
/// images at a time with `positions` positions each, without loading it; `None` for a retrieval checkpoint, which has no decoder to plan for.
///
/// # Errors
/// A tensor that is missing or misshapen, or a failing device.
pub async fn plan_memory(
    gpu: &Gpu,
    config: &Blip2Config,
    checkpoint: &Checkpoint,
    quant: Option<WeightFormat>,
    batch: usize,
    positions: usize,
) -> Result<Option<MemoryPlan>, Error> {
    let Some(language) = config.language_model() else {
        return Ok(None);
    };
    let mut ignore = |_, _| {};
    let mut uploader = Uploader::outline(gpu, checkpoint, &mut ignore)?.quantised(quant);
    let model = Blip2Model::load(&mut uploader, config, language, config.vision.image_size).await?;
    let weights = uploader.device_bytes();
    Ok(Some(MemoryPlan::of(
        gpu, &model, weights, batch, positions,
    )?))
}

//! A checkpoint opened for use.

use std::path::{Path, PathBuf};

use crate::Error;
use crate::generate::{GenerateError, GenerationOptions, GenerationOverrides};
use crate::gpu::{Gpu, GpuOptions};
use crate::image::Preprocessor;
use crate::model::config::{ConfigError, OptConfig};
use crate::model::{Blip2Config, Blip2Model};
use crate::schedule::{Engine, MemoryPlan, Timings};
use crate::text::Tokenizer;
use crate::weights::{Checkpoint, Uploader};

/// How to open a checkpoint.
#[derive(Debug, Clone, Default)]
pub struct OpenOptions {
    /// Which device, and how.
    pub gpu: GpuOptions,
    /// A device that is open already, such as another model's, instead of one opened by `gpu`.
    pub device: Option<Gpu>,
    /// Side of the images in pixels, if not the checkpoint's: its position embeddings are then interpolated.
    pub image_size: Option<u32>,
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
        let path = path.as_ref();
        // Everything that is quick to check comes before the device and the gigabytes.
        let (config, decoder) = generative_config(path)?;
        let folder = folder_of(path);
        let tokenizer = Tokenizer::open(&folder, decoder.bos_token_id)?;
        tokenizer.check_embedding_rows(decoder.vocab_size)?;
        let generation = generation_options(&folder, &decoder)?;
        let image_size = image_size(&config, options.image_size)?;
        let mut preprocessor = Preprocessor::from_files(&folder, image_size as u32)?;
        if options.image_size.is_some()
            // Not 1×1: a size by the shortest edge leaves other images than square ones oblong.
            || preprocessor.output_size(1, 2) != (image_size as u32, image_size as u32)
        {
            preprocessor = preprocessor.with_size(image_size as u32)?;
        }
        let checkpoint = Checkpoint::open(path)?;
        for spec in config.tensors() {
            checkpoint.weight(&spec.name, &spec.shape)?;
        }

        let gpu = match options.device {
            Some(gpu) => gpu,
            None => Gpu::open(&options.gpu).await?,
        };
        let mut uploader = Uploader::new(&gpu, &checkpoint, progress);
        let model = Blip2Model::load(&mut uploader, &config, &decoder, image_size).await?;
        uploader.finish().await?;
        Ok(Self {
            config,
            preprocessor,
            tokenizer,
            generation,
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

    /// The image size that the checkpoint was trained at.
    pub(super) fn stored_image_size(&self) -> usize {
        self.config.vision.image_size
    }
}

/// What the checkpoint folder `path` will need on `gpu` for `batch` images at a time with `positions` positions each,
/// without loading it.
///
/// # Errors
/// As [`Blip2::open`], as far as that can be told without the weights' values.
pub async fn plan_memory(
    gpu: &Gpu,
    path: impl AsRef<Path>,
    batch: usize,
    positions: usize,
) -> Result<MemoryPlan, Error> {
    let path = path.as_ref();
    let (config, decoder) = generative_config(path)?;
    let checkpoint = Checkpoint::open(path)?;
    let mut ignore = |_, _| {};
    let mut uploader = Uploader::outline(gpu, &checkpoint, &mut ignore)?;
    let model =
        Blip2Model::load(&mut uploader, &config, &decoder, config.vision.image_size).await?;
    Ok(MemoryPlan::of(
        gpu,
        &model,
        uploader.device_bytes(),
        batch,
        positions,
    )?)
}

/// The configuration of a generative checkpoint, and its decoder's.
fn generative_config(path: &Path) -> Result<(Blip2Config, OptConfig), Error> {
    let config = Blip2Config::open(path)?;
    match config.language_model().cloned() {
        Some(decoder) => Ok((config, decoder)),
        None => Err(Error::WrongKind {
            model: path.into(),
            is: "retrieval",
            task: "write text",
            needed: "generative (such as blip2-opt-2.7b)",
        }),
    }
}

/// The checkpoint's generation options: transformers' defaults, the configuration's special tokens, and what
/// `generation_config.json` sets, where there is one.
fn generation_options(folder: &Path, decoder: &OptConfig) -> Result<GenerationOptions, Error> {
    let defaults = GenerationOptions {
        eos_token_ids: decoder.eos_token_ids.clone(),
        pad_token_id: Some(decoder.pad_token_id),
        bos_token_id: Some(decoder.bos_token_id),
        ..GenerationOptions::default()
    };
    let file = folder.join("generation_config.json");
    let json = match std::fs::read_to_string(&file) {
        Ok(json) => json,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(defaults),
        Err(cause) => return Err(ConfigError::Read { file, cause }.into()),
    };
    let options = defaults.overlay(&GenerationOverrides::from_json(&json, &file)?);
    match options.validate() {
        // Here it is a field of the file, not a flag of the user's, that cannot be used.
        Err(GenerateError::Option {
            option, problem, ..
        }) => Err(GenerateError::Field {
            file,
            field: option,
            problem,
        }
        .into()),
        valid => Ok(valid.map(|()| options)?),
    }
}

/// The folder that a checkpoint's small files lie in.
fn folder_of(path: &Path) -> PathBuf {
    if path.is_file() {
        path.parent().map_or_else(PathBuf::new, Path::to_path_buf)
    } else {
        path.to_path_buf()
    }
}

/// The image size to run at: the one asked for, if the patches divide it.
fn image_size(config: &Blip2Config, asked: Option<u32>) -> Result<usize, Error> {
    let Some(size) = asked.map(|size| size as usize) else {
        return Ok(config.vision.image_size);
    };
    let patch = config.vision.patch_size;
    if size == 0 || size % patch != 0 || size > 1 << 12 {
        let suggestion = (size.clamp(patch, 1 << 12) + patch / 2) / patch * patch;
        return Err(Error::ImageSize {
            size,
            patch,
            suggestion,
        });
    }
    Ok(size)
}

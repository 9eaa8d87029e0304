//! A checkpoint's files: the small ones read and checked against each other, the tensors mapped.

use std::path::{Path, PathBuf};

use crate::Error;
use crate::generate::{GenerateError, GenerationOptions, GenerationOverrides};
use crate::image::Preprocessor;
use crate::model::config::{ConfigError, LanguageConfig};
use crate::model::{Blip2Config, Blip2Model};
use crate::text::{PromptMark, Tokenizer};
use crate::weights::{Checkpoint, Tensors, WeightsError};

/// A generative checkpoint before it is on a device.
#[derive(Debug)]
pub(super) struct Source {
    pub config: Blip2Config,
    pub tokenizer: Tokenizer,
    pub generation: GenerationOptions,
    pub preprocessor: Preprocessor,
    pub checkpoint: Checkpoint,
    language: LanguageConfig,
    image_size: usize,
}

impl Source {
    /// Reads the folder `path`, to run at `image_size` if that is not the checkpoint's own.
    pub(super) fn open(path: &Path, image_size: Option<u32>) -> Result<Self, Error> {
        let config = Blip2Config::open(path)?;
        let language = language(&config, path)?;
        let folder = folder_of(path);
        let tokenizer = Tokenizer::open(&folder, PromptMark::of(&language))?;
        let file = folder.join("generation_config.json");
        let generation = generation_options(read_optional(&file)?.as_deref(), &file, &language)?;
        let side = run_size(&config, image_size)?;
        Self {
            preprocessor: Preprocessor::from_files(&folder, side as u32)?,
            checkpoint: Checkpoint::open(path)?,
            config,
            tokenizer,
            generation,
            language,
            image_size: side,
        }
        .checked(image_size)
    }

    /// The demo model that is part of the program.
    #[cfg(feature = "demo-model")]
    pub(super) fn demo(image_size: Option<u32>) -> Result<Self, Error> {
        let files = &crate::demo::GENERATIVE;
        let name = |file: &str| Path::new("demo").join(file);
        let config = Blip2Config::from_json(files.config, &name("config.json"))?;
        let language = language(&config, Path::new("demo"))?;
        let tokenizer = Tokenizer::from_json(
            files.tokenizer,
            &name("tokenizer.json"),
            PromptMark::of(&language),
        )?;
        let file = name("generation_config.json");
        let generation = generation_options(Some(files.generation_config), &file, &language)?;
        let side = run_size(&config, image_size)?;
        let preprocessor = "demo/preprocessor_config.json";
        Self {
            preprocessor: Preprocessor::from_json(
                files.preprocessor_config,
                preprocessor,
                side as u32,
            )?,
            checkpoint: Checkpoint::embedded("demo/model.safetensors", files.weights)?,
            config,
            tokenizer,
            generation,
            language,
            image_size: side,
        }
        .checked(image_size)
    }

    /// The parts fit each other: every tensor and token is there, images come in the size to run at.
    fn checked(mut self, asked_size: Option<u32>) -> Result<Self, Error> {
        self.tokenizer
            .check_embedding_rows(self.language.vocab_size())?;
        self.config.tensors(Some(&self.checkpoint))?;
        let side = self.image_size as u32;
        // Not 1×1: a size by the shortest edge leaves other images than square ones oblong.
        if asked_size.is_some() || self.preprocessor.output_size(1, 2) != (side, side) {
            self.preprocessor = self.preprocessor.with_size(side)?;
        }
        Ok(self)
    }

    /// The model of the checkpoint's tensors.
    pub(super) fn model(&self, tensors: &Tensors) -> Result<Blip2Model, WeightsError> {
        Blip2Model::load(tensors, &self.config, &self.language, self.image_size)
    }
}

/// The language model's configuration, which only a generative checkpoint has.
fn language(config: &Blip2Config, path: &Path) -> Result<LanguageConfig, Error> {
    config
        .language_model()
        .cloned()
        .ok_or_else(|| Error::WrongKind {
            model: path.into(),
            is: "retrieval",
            task: "write text",
            needed: "generative (such as blip2-opt-2.7b)",
        })
}

/// The checkpoint's generation options: transformers' defaults, the configuration's special tokens, and what the text
/// `json` of a `generation_config.json` sets, where there is one.
fn generation_options(
    json: Option<&str>,
    file: &Path,
    language: &LanguageConfig,
) -> Result<GenerationOptions, Error> {
    let defaults = GenerationOptions {
        eos_token_ids: language.eos_token_ids().to_vec(),
        pad_token_id: Some(language.pad_token_id()),
        bos_token_id: language.bos_token_id(),
        ..GenerationOptions::default()
    };
    let Some(json) = json else {
        return Ok(defaults);
    };
    let options = defaults.overlay(&GenerationOverrides::from_json(json, file)?);
    match options.validate() {
        // Here it is a field of the file, not a flag of the user's, that cannot be used.
        Err(GenerateError::Option {
            option, problem, ..
        }) => Err(GenerateError::Field {
            file: file.into(),
            field: option,
            problem,
        }
        .into()),
        valid => Ok(valid.map(|()| options)?),
    }
}

/// The text of a file; `None` where there is none.
fn read_optional(file: &Path) -> Result<Option<String>, Error> {
    match std::fs::read_to_string(file) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(ConfigError::Read {
            file: file.into(),
            cause,
        }
        .into()),
    }
}

/// The folder that a checkpoint's small files lie in.
pub(super) fn folder_of(path: &Path) -> PathBuf {
    if path.is_file() {
        path.parent().map_or_else(PathBuf::new, Path::to_path_buf)
    } else {
        path.to_path_buf()
    }
}

/// Largest image side that can be asked for, in pixels.
const MAX_IMAGE_SIZE: usize = 1 << 12;

/// The image size to run at: the one asked for, if the patches divide it.
pub(super) fn run_size(config: &Blip2Config, asked: Option<u32>) -> Result<usize, Error> {
    let Some(size) = asked.map(|size| size as usize) else {
        return Ok(config.vision.image_size);
    };
    let patch = config.vision.patch_size;
    let most = (MAX_IMAGE_SIZE / patch).max(1) * patch;
    if size == 0 || size % patch != 0 || size > most {
        return Err(Error::ImageSize {
            size,
            patch,
            most,
            suggestion: ((size.min(most) + patch / 2) / patch * patch).clamp(patch, most),
        });
    }
    Ok(size)
}

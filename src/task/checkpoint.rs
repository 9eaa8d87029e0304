//! A checkpoint's files before it is on a device: the configuration read, the tensors found, the
//! other small files at hand.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use crate::Error;
#[cfg(feature = "convert")]
use crate::convert::{CheckpointParts, assemble};
use crate::files::bounded::{self, MAX_SMALL_BYTES};
use crate::files::text;
use crate::generate::{GenerateError, GenerationOptions, GenerationOverrides, passed_over};
use crate::image::Preprocessor;
use crate::model::Blip2Config;
use crate::model::config::{ConfigError, LanguageConfig};
use crate::text::{BertTokenizer, Tokenizer};
#[cfg(feature = "convert")]
use crate::weights::is_pytorch;
use crate::weights::{Checkpoint, folder_of, refuse_adapter};

use super::OpenOptions;

/// A checkpoint's files: a folder in the Hugging Face layout, a file of LAVIS or mmpretrain and
/// what it lacks, or a demo model's.
#[derive(Debug)]
pub struct CheckpointFiles {
    path: PathBuf,
    config: Blip2Config,
    checkpoint: Checkpoint,
    config_file: SmallFile,
    tokenizer: SmallFile,
    preprocessor: SmallFile,
    generation: SmallFile,
}

/// Where a small file is.
#[derive(Debug)]
enum SmallFile {
    /// In this folder, under its usual name.
    Folder(PathBuf),
    /// In memory; the name stands for it in errors.
    #[cfg_attr(
        not(any(feature = "convert", feature = "demo-model")),
        expect(
            dead_code,
            reason = "only the demo model and assembled files are in memory"
        )
    )]
    Text(Cow<'static, str>, PathBuf),
}

impl OpenOptions {
    /// The files of the checkpoint at `path`.
    pub(super) fn open_files(&self, path: &Path) -> Result<CheckpointFiles, Error> {
        #[cfg(feature = "convert")]
        return CheckpointFiles::open_with_parts(path, &self.parts);
        #[cfg(not(feature = "convert"))]
        return CheckpointFiles::open(path);
    }
}

impl CheckpointFiles {
    /// A folder in the Hugging Face layout, or the file of its weights; of these only headers are
    /// read.
    ///
    /// # Errors
    /// A file that is missing, damaged or does not fit the others.
    pub fn open(path: &Path) -> Result<Self, Error> {
        // An adapter alone has no `config.json`, which would be missed first.
        refuse_adapter(path)?;
        let config = Blip2Config::open(path)?;
        let folder = || SmallFile::Folder(folder_of(path));
        Ok(Self {
            path: path.into(),
            config,
            checkpoint: Checkpoint::open(path)?,
            config_file: folder(),
            tokenizer: folder(),
            preprocessor: folder(),
            generation: folder(),
        })
    }

    /// [`CheckpointFiles::open`], or a file that `torch.save` wrote, put together with `parts`.
    ///
    /// # Errors
    /// A file that is missing, damaged or does not fit the others.
    #[cfg(feature = "convert")]
    pub fn open_with_parts(path: &Path, parts: &CheckpointParts) -> Result<Self, Error> {
        if !is_pytorch(path) && *parts == CheckpointParts::default() {
            return Self::open(path);
        }
        let assembly = assemble(path, parts)?;
        for note in &assembly.notes {
            log::info!("{}: {note}", path.display());
        }
        let [preprocessor, generation] = match assembly.settings_folder() {
            Some(folder) => [folder.clone(), folder].map(SmallFile::Folder),
            None => ["preprocessor_config.json", "generation_config.json"].map(|name| {
                let text = assembly.settings().into_iter().find(|it| it.0 == name);
                let text = text.map_or("{}".into(), |(_, text)| text);
                SmallFile::Text(text.into(), path.join(name))
            }),
        };
        Ok(Self {
            path: path.into(),
            config: assembly.parsed.clone(),
            config_file: SmallFile::Text(assembly.config.text().into(), path.join("config.json")),
            tokenizer: SmallFile::Folder(assembly.tokenizer.clone()),
            checkpoint: assembly.into_checkpoint(),
            preprocessor,
            generation,
        })
    }

    /// A demo model's, which are part of the program, under the name `folder`.
    #[cfg(feature = "demo-model")]
    pub(super) fn demo(
        files: &'static crate::demo::DemoFiles,
        folder: &str,
    ) -> Result<Self, Error> {
        let folder = Path::new(folder);
        let small =
            |text: &'static str, name: &str| SmallFile::Text(text.into(), folder.join(name));
        let weights = folder.join("model.safetensors");
        Ok(Self {
            path: folder.into(),
            config: Blip2Config::from_json(files.config.as_bytes(), &folder.join("config.json"))?,
            config_file: small(files.config, "config.json"),
            checkpoint: Checkpoint::embedded(&weights.to_string_lossy(), files.weights)?,
            tokenizer: small(files.tokenizer, "tokenizer.json"),
            preprocessor: small(files.preprocessor_config, "preprocessor_config.json"),
            generation: small(files.generation_config, "generation_config.json"),
        })
    }

    /// The path it was opened by.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &Blip2Config {
        &self.config
    }

    /// What `config.json` says, or would.
    #[must_use]
    pub fn config_json(&self) -> Option<serde_json::Value> {
        let text = match &self.config_file {
            SmallFile::Folder(folder) => read_optional(&folder.join("config.json")).ok()??.into(),
            SmallFile::Text(text, _) => text.clone(),
        };
        serde_json::from_str(&text).ok()
    }

    /// The weights.
    #[must_use]
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// Whether it is another system's, put together with what that system saves apart.
    pub(super) fn is_assembled(&self) -> bool {
        matches!(self.config_file, SmallFile::Text(..))
    }

    /// The configuration and the weights.
    pub(super) fn into_parts(self) -> (Blip2Config, Checkpoint) {
        (self.config, self.checkpoint)
    }

    /// A generative checkpoint's options and tokenizer; all of its other files are found to be
    /// usable.
    pub(super) fn text_side(&self) -> Result<(GenerationOptions, Tokenizer), Error> {
        let language = self.language()?;
        let tokenizer = self.tokenizer(language)?;
        let generation = self.generation_options(language)?;
        self.preprocessor(self.config.vision.image_size as u32, false)?;
        self.config.tensors(Some(&self.checkpoint))?;
        Ok((generation, tokenizer))
    }

    /// The language model's configuration, which only a generative checkpoint has.
    pub(super) fn language(&self) -> Result<&LanguageConfig, Error> {
        self.config
            .language_model()
            .ok_or_else(|| Error::WrongKind {
                model: self.path.clone(),
                is: "retrieval",
                task: "write text",
                needed: "generative (such as blip2-opt-2.7b)",
            })
    }

    /// The language model's tokenizer, of whose tokens each has an embedding.
    pub(super) fn tokenizer(&self, language: &LanguageConfig) -> Result<Tokenizer, Error> {
        let mark = language.prompt_mark();
        let tokenizer = match &self.tokenizer {
            SmallFile::Folder(folder) => Tokenizer::open(folder, mark)?,
            SmallFile::Text(text, name) => Tokenizer::from_json(text.as_bytes(), name, mark)?,
        };
        tokenizer.check_embedding_rows(language.vocab_size())?;
        Ok(tokenizer)
    }

    /// The Q-Former's tokenizer, of whose tokens each has an embedding.
    pub(super) fn bert_tokenizer(&self) -> Result<BertTokenizer, Error> {
        let tokenizer = match &self.tokenizer {
            SmallFile::Folder(folder) => BertTokenizer::open(folder)?,
            SmallFile::Text(text, name) => BertTokenizer::from_json(text.as_bytes(), name)?,
        };
        tokenizer.check_embedding_rows(self.config.qformer.vocab_size)?;
        Ok(tokenizer)
    }

    /// The preprocessor as the checkpoint's file has it, of `side` pixels where it does not say.
    fn stated_preprocessor(&self, side: u32) -> Result<Preprocessor, Error> {
        Ok(match &self.preprocessor {
            SmallFile::Folder(folder) => Preprocessor::from_files(folder, side)?,
            SmallFile::Text(text, name) => {
                Preprocessor::from_json(text.as_bytes(), &name.to_string_lossy(), side)?
            }
        })
    }

    /// What prepares images of `side` pixels; `is_asked`: whether somebody asked for that size.
    pub(super) fn preprocessor(&self, side: u32, is_asked: bool) -> Result<Preprocessor, Error> {
        let preprocessor = self.stated_preprocessor(side)?;
        // Not 1×1: a size by the shortest edge leaves other images than square ones oblong.
        if is_asked || preprocessor.output_size(1, 2) != (side, side) {
            return Ok(preprocessor.with_size(side)?);
        }
        Ok(preprocessor)
    }

    /// Says which settings beside the weights are passed over.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub(super) fn warn_of_passed_over(&self, side: u32, is_asked: bool) -> Result<(), Error> {
        let (json, file) = self.generation_file()?;
        let mut fields = passed_over(&json.unwrap_or_default());
        if let Some(language) = self.config.language_model() {
            let start = language.decoder_start_token_id();
            // Without a decoder of its own the prompt comes first, and nothing is forced.
            let is_idle = |field: &(String, serde_json::Value)| match field.0.as_str() {
                "decoder_start_token_id" => {
                    start.is_none() || field.1.as_u64() == start.map(u64::from)
                }
                "forced_bos_token_id" => start.is_some(),
                _ => false,
            };
            fields.retain(|field| !is_idle(field));
        }
        let fields: Vec<String> = fields.into_iter().map(|(field, _)| field).collect();
        if !fields.is_empty() {
            log::warn!(
                "{}: passed over: {}; this program does not know them, so texts may differ from other programs'",
                file.display(),
                fields.join(", ")
            );
        }
        let stated = self.stated_preprocessor(side)?;
        if !is_asked && stated.output_size(1, 2) != (side, side) {
            let file = match &self.preprocessor {
                SmallFile::Folder(folder) => folder.join("preprocessor_config.json"),
                SmallFile::Text(_, name) => name.clone(),
            };
            log::warn!(
                "{}: passed over: `size` or `do_resize`; images are made {side}x{side}, the `image_size` of the model",
                file.display()
            );
        }
        Ok(())
    }

    /// The text of `generation_config.json`, where there is one, and its name.
    fn generation_file(&self) -> Result<(Option<Cow<'static, str>>, PathBuf), Error> {
        Ok(match &self.generation {
            SmallFile::Text(text, name) => (Some(text.clone()), name.clone()),
            SmallFile::Folder(folder) => {
                let file = folder.join("generation_config.json");
                (read_optional(&file)?.map(Cow::Owned), file)
            }
        })
    }

    /// The checkpoint's generation options: transformers' defaults, the configuration's special
    /// tokens, and what its `generation_config.json` sets, where there is one.
    pub(super) fn generation_options(
        &self,
        language: &LanguageConfig,
    ) -> Result<GenerationOptions, Error> {
        let defaults = GenerationOptions {
            eos_token_ids: language.eos_token_ids().to_vec(),
            pad_token_id: Some(language.pad_token_id()),
            bos_token_id: language.bos_token_id(),
            ..GenerationOptions::default()
        };
        let (json, file) = self.generation_file()?;
        let Some(json) = json else {
            return Ok(defaults);
        };
        let mut overrides = GenerationOverrides::from_json(&json, &file)?;
        if language.decoder_start_token_id().is_none() {
            // transformers forces it where there is one token before it: after the start of a decoder.
            overrides.forced_bos_token_id = None;
        }
        let options = defaults.overlay(&overrides);
        if let Err(GenerateError::Option {
            option, problem, ..
        }) = options.check_tokens(language.vocab_size())
        {
            return Err(GenerateError::Field {
                file,
                field: option,
                problem,
            }
            .into());
        }
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
}

/// The text of a file; `None` where there is none.
fn read_optional(file: &Path) -> Result<Option<String>, Error> {
    match bounded::read(file, MAX_SMALL_BYTES) {
        Ok(bytes) => match text::decode(&bytes) {
            Ok(text) => Ok(Some(text.into_owned())),
            Err(error) => Err(ConfigError::Json {
                file: file.into(),
                problem: error.to_string(),
            }
            .into()),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(ConfigError::Read {
            file: file.into(),
            cause,
        }
        .into()),
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

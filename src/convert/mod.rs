//! Checkpoints of LAVIS and mmpretrain, and folders of any revision of transformers, put together
//! and made into a folder in today's Hugging Face layout.
//!
//! [`assemble`] finds the tensors under their canonical names, the configuration and the tokenizer:
//! enough to open such a checkpoint as it lies there. [`convert`] writes it. Tensors are copied
//! from mapped files a few megabytes at a time, so memory stays flat however large they are. The
//! folder is written under another name, synced, opened as the engine would open it, and renamed
//! last: it is whole or not there.

mod config;
mod error;
mod input;
mod outputs;
mod parts;
mod small_files;
mod write;

use std::path::{Path, PathBuf};

pub use crate::weights::{Family, Kind, Task};
pub use config::Config;
pub use error::ConvertError;
pub use parts::{CheckpointParts, kind_of};
pub use write::unfinished_folder;

use crate::gpu::{QUANT_BLOCK, WeightFormat};
use crate::model::Blip2Config;
use crate::weights::{Checkpoint, Format, TensorSpec, Weight};
use outputs::Output;
use parts::{Gathered, Lender};

/// Bytes of tensors in a file of the result at most, as transformers splits large models.
const SHARD_BYTES: u64 = 5_000_000_000;

/// How to convert.
#[derive(Clone, Debug)]
pub struct ConvertOptions {
    /// Where what the checkpoint lacks comes from.
    pub parts: CheckpointParts,
    /// Element type of all tensors of the result; `None` keeps each as it is stored.
    pub format: Option<Format>,
    /// Store matrices in q8 or q4, as far as [`format_of`](crate::weights::format_of) has it, as
    /// the engine would while loading; all else as f16.
    pub quant: Option<WeightFormat>,
    /// Bytes of tensors in a file of the result at most.
    pub shard_bytes: u64,
}

impl Default for ConvertOptions {
    fn default() -> Self {
        Self {
            parts: CheckpointParts::default(),
            format: None,
            quant: None,
            shard_bytes: SHARD_BYTES,
        }
    }
}

/// What was converted.
#[derive(Clone, Debug, PartialEq)]
pub struct Conversion {
    /// What the checkpoint is.
    pub kind: Kind,
    /// Tensors written.
    pub tensors: usize,
    /// Bytes of them.
    pub bytes: u64,
    /// Files they are in.
    pub shards: usize,
    /// Tensors left out on purpose: name, reason.
    pub left_out: Vec<(String, String)>,
    /// Tensors that no part of the model is known by.
    pub unknown: Vec<String>,
    /// What was decided and a user may want to know.
    pub notes: Vec<String>,
}

/// A whole checkpoint, its files still where they were.
#[derive(Debug)]
pub struct Assembly {
    gathered: Gathered,
    /// What `config.json` says, or would.
    pub config: Config,
    /// The same, read.
    pub parsed: Blip2Config,
    /// The folder with the tokenizer's files.
    pub tokenizer: PathBuf,
    /// What was decided and a user may want to know.
    pub notes: Vec<String>,
}

impl Assembly {
    /// What the checkpoint is.
    pub fn kind(&self) -> Kind {
        self.gathered.kind
    }

    /// The tensors of all files under their canonical names.
    pub fn into_checkpoint(self) -> Checkpoint {
        self.gathered.checkpoint
    }

    /// The folder that its settings' files lie in, if it is one that has them.
    pub fn settings_folder(&self) -> Option<PathBuf> {
        let has_settings = self.kind().family == Family::HuggingFace;
        has_settings.then(|| self.gathered.folder())
    }

    /// What the settings' files of one without them would say: name and text of each.
    pub fn settings(&self) -> Vec<(&'static str, String)> {
        small_files::settings(self.kind().task, &self.config, &self.parsed)
    }
}

/// Puts together the checkpoint `input` (a file, or a folder) and what it lacks.
///
/// # Errors
/// A file that is damaged, of another model or lacks a part (named, with the option that supplies
/// it), sizes that do not fit each other.
pub fn assemble(input: &Path, parts: &CheckpointParts) -> Result<Assembly, ConvertError> {
    let gathered = Gathered::open(input, parts)?;
    let tokenizer = small_files::find_tokenizer(&gathered, parts)?;
    let (config, notes) = config::decide(&gathered, parts, &tokenizer)?;
    let parsed = Blip2Config::from_json(config.text().as_bytes(), &config.file)?;
    Ok(Assembly {
        gathered,
        config,
        parsed,
        tokenizer,
        notes,
    })
}

/// Converts the checkpoint `input` (a file, or a folder) into the folder `out`, which must not
/// exist yet. `progress` is told the bytes of tensors written so far, and all of them.
///
/// # Errors
/// As [`assemble`]; tensors that are missing or misshapen, no room to write. Nothing is left
/// behind.
pub fn convert(
    input: &Path,
    out: &Path,
    options: &ConvertOptions,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Conversion, ConvertError> {
    write::check_place(out)?;
    let assembly = assemble(input, &options.parts)?;
    check_formats(&assembly, options)?;
    let (gathered, parsed) = (&assembly.gathered, &assembly.parsed);
    let format = options.format.or(options.quant.map(|_| Format::F16));
    let tensors = gathered.tensors(parsed)?;
    let mut outputs = outputs::outputs(&tensors, format)?;
    // Before gigabytes are written, and named where it lies.
    small_files::check_tokenizer(&assembly.tokenizer, parsed)?;
    let (mut config, mut notes) = (assembly.config.clone(), assembly.notes.clone());
    config.set_dtype(&outputs, gathered.kind.family, format);
    if let Some(quant) = options.quant {
        outputs = outputs::quantised(outputs, &tensors, quant);
        // A matrix in blocks is two tensors.
        if outputs.len() > tensors.len() {
            config.set_quantised(quant);
        } else {
            notes.push(format!(
                "`quant`: no effect; no layer's rows can be cut into blocks of {QUANT_BLOCK}, so all is stored in f16"
            ));
        }
    }
    let folder = write::Unfinished::create(out)?;
    let shards = write::weights(folder.path(), &outputs, options.shard_bytes, progress)?;
    write_small_files(folder.path(), &assembly, &config)?;
    verify(folder.path(), parsed)?;
    folder.finish()?;
    let (left_out, unknown) = gathered.unused(parsed, &tensors);
    notes.extend(unused_parts(&assembly, &options.parts, &tensors));
    Ok(Conversion {
        kind: gathered.kind,
        tensors: outputs.len(),
        bytes: outputs.iter().map(Output::bytes).sum(),
        shards,
        left_out,
        unknown,
        notes,
    })
}

/// Refuses a checkpoint that is quantised, and options that contradict each other.
fn check_formats(assembly: &Assembly, options: &ConvertOptions) -> Result<(), ConvertError> {
    let file = &assembly.config.file;
    if let Some(format) = assembly.parsed.quantised {
        return Err(ConvertError::refused(
            file,
            format!("says that the weights are quantised already ({format})"),
            "convert the f16 (or f32) checkpoint that they were made from",
        ));
    }
    if options.quant.is_some() && options.format == Some(Format::F32) {
        return Err(ConvertError::refused(
            file,
            "is to be quantised and to be f32",
            "leave out `dtype` or `quant`",
        ));
    }
    Ok(())
}

/// Names the files that were given and not needed for `tensors`.
fn unused_parts(
    assembly: &Assembly,
    parts: &CheckpointParts,
    tensors: &[(TensorSpec, Weight<'_>)],
) -> Vec<String> {
    let gathered = &assembly.gathered;
    let used = |lender: &Option<Lender>| {
        let lender = lender.as_ref();
        lender.is_some_and(|lender| lender.lends(tensors))
    };
    let has_tokenizer = parts.llm.as_ref() == Some(&assembly.tokenizer);
    let given = [
        ("`vit`", &parts.vit, used(&gathered.vit)),
        ("`llm`", &parts.llm, used(&gathered.llm) || has_tokenizer),
    ];
    let unused = given.into_iter().filter(|(_, _, of_use)| !of_use);
    unused
        .filter_map(|(option, path, _)| {
            Some(format!(
                "{option} {}: not used; all of the model is in {}",
                path.as_ref()?.display(),
                gathered.path().display()
            ))
        })
        .collect()
}

/// Writes everything but the weights.
fn write_small_files(
    folder: &Path,
    assembly: &Assembly,
    config: &Config,
) -> Result<(), ConvertError> {
    write::file(&folder.join("config.json"), config.text().as_bytes())?;
    copy(&assembly.tokenizer, folder, &small_files::TOKENIZER_FILES)?;
    if let Some(settings) = assembly.settings_folder() {
        return copy(&settings, folder, &small_files::SETTINGS);
    }
    let mut settings = assembly.settings().into_iter();
    settings.try_for_each(|(name, text)| write::file(&folder.join(name), text.as_bytes()))
}

/// Copies those of the files that are there.
fn copy(from: &Path, to: &Path, names: &[&str]) -> Result<(), ConvertError> {
    for name in names {
        let file = from.join(name);
        if file.is_file() {
            write::file(&to.join(name), &input::read(&file)?)?;
        }
    }
    Ok(())
}

/// Opens the result as the engine would: every tensor there in its shape, every token with its
/// embedding.
fn verify(folder: &Path, config: &Blip2Config) -> Result<(), ConvertError> {
    let checkpoint = Checkpoint::open(folder)?;
    Blip2Config::open(folder)?.tensors(Some(&checkpoint))?;
    small_files::check_tokenizer(folder, config)
}

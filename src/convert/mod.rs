//! Checkpoints of LAVIS and mmpretrain, and folders of any revision of transformers, made into a folder in today's
//! Hugging Face layout.
//!
//! LAVIS and mmpretrain save only what they trained: the vision transformer and the language model come from files of
//! their own ([`ConvertOptions::vit`], [`ConvertOptions::llm`]). Tensors are copied from mapped files a few megabytes at a
//! time, so memory stays flat however large they are. The folder is written under another name, synced, opened as the engine
//! would open it, and renamed last: it is whole or not there.

mod config;
mod error;
mod files;
mod kind;
mod names;
mod plan;
mod quantise;
mod source;
mod write;

use std::path::{Path, PathBuf};

pub use error::ConvertError;
pub use kind::{Family, Kind, Task};
pub use write::unfinished_folder;

use crate::gpu::WeightFormat;
use crate::model::Blip2Config;
use crate::weights::Format;
use plan::Plan;
use source::Source;

/// Bytes of tensors in a file of the result at most, as transformers splits large models.
const SHARD_BYTES: u64 = 5_000_000_000;

/// Where what a checkpoint lacks comes from.
#[derive(Clone, Debug)]
pub struct ConvertOptions {
    /// The vision transformer, where the checkpoint has none: LAVIS's `eva_vit_g.pth`.
    pub vit: Option<PathBuf>,
    /// The language model's folder in the Hugging Face layout, where the checkpoint has none. Retrieval needs none, and
    /// nothing of it is read then.
    pub llm: Option<PathBuf>,
    /// The result's `config.json`, where the sizes are not those of a published model.
    pub config: Option<PathBuf>,
    /// A folder with the tokenizer's files, where they lie neither beside the checkpoint nor in `llm`.
    pub tokenizer: Option<PathBuf>,
    /// Element type of all tensors of the result; `None` keeps each as it is stored.
    pub format: Option<Format>,
    /// Store matrices in q8 or q4, as far as [`format_of`](crate::weights::format_of) has it, as the engine would while loading; all else as f16.
    pub quant: Option<WeightFormat>,
    /// Bytes of tensors in a file of the result at most.
    pub shard_bytes: u64,
}

impl Default for ConvertOptions {
    fn default() -> Self {
        Self {
            vit: None,
            llm: None,
            config: None,
            tokenizer: None,
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

/// Names the files that were given and not needed.
fn note_unused(plan: &mut Plan, options: &ConvertOptions, tokenizer: &Path) {
    let used = |source: Option<&Source>| source.is_some_and(|source| plan.uses(source));
    let has_tokenizer = options.llm.as_deref() == Some(tokenizer);
    let given = [
        ("`vit`", &options.vit, used(plan.vit)),
        ("`llm`", &options.llm, used(plan.llm) || has_tokenizer),
    ];
    for (option, path, of_use) in given {
        if let (Some(path), false) = (path, of_use) {
            plan.notes.push(format!(
                "{option} {}: not used; all of the model is in {}",
                path.display(),
                plan.source.path().display()
            ));
        }
    }
}

/// What a checkpoint (a file, or a folder) is, told by its tensors' names.
///
/// # Errors
/// No weights there, damaged ones, or those of another model.
pub fn kind_of(input: &Path) -> Result<Kind, ConvertError> {
    kind::detect(&Source::open(input)?)
}

/// Converts the checkpoint `input` (a file, or a folder) into the folder `out`, which must not exist yet.
/// `progress` is told the bytes of tensors written so far, and all of them.
///
/// # Errors
/// A file that is damaged, of another model or lacks a part (named, with the option that supplies it), sizes that
/// do not fit each other, no room to write. Nothing is left behind.
pub fn convert(
    input: &Path,
    out: &Path,
    options: &ConvertOptions,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Conversion, ConvertError> {
    write::check_place(out)?;
    let source = Source::open(input)?;
    let kind = kind::detect(&source)?;
    let open = |path: Option<&Path>| path.map(Source::open).transpose();
    let llm = options.llm.as_deref();
    let (vit, llm) = (
        open(options.vit.as_deref())?,
        open(llm.filter(|_| kind.task == Task::Generation))?,
    );
    let mut plan = Plan::gather(kind, &source, vit.as_ref(), llm.as_ref());
    plan.check_parts()?;
    let tokenizer = files::find_tokenizer(kind, &source, options)?;
    let mut config = config::decide(&mut plan, options, &tokenizer)?;
    let parsed = Blip2Config::from_json(config.text().as_bytes(), &config.file)?;
    quantise::check(&parsed, &config.file, options)?;
    let format = options.format.or(options.quant.map(|_| Format::F16));
    let mut tensors = plan.tensors(&parsed, format)?;
    // Before gigabytes are written, and named where it lies.
    files::check_tokenizer(&tokenizer, &parsed)?;
    note_unused(&mut plan, options, &tokenizer);
    config.set_dtype(&tensors, &plan, format);
    if let Some(quant) = options.quant {
        tensors = quantise::in_blocks(tensors, quant);
        config.set_quantised(quant);
    }
    let folder = write::Unfinished::create(out)?;
    let shards = write::weights(folder.path(), &tensors, options.shard_bytes, progress)?;
    files::write(folder.path(), &plan, &config, &parsed, &tokenizer)?;
    files::verify(folder.path(), &parsed)?;
    folder.finish()?;
    Ok(Conversion {
        kind,
        tensors: tensors.len(),
        bytes: tensors.iter().map(plan::Output::bytes).sum(),
        shards,
        left_out: plan.left_out,
        unknown: plan.unknown,
        notes: plan.notes,
    })
}

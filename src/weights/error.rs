//! What can be wrong with a checkpoint's files, each as one line that names the file and the
//! remedy.

use std::path::PathBuf;

use crate::gpu::GpuError;

/// A problem with a checkpoint. The text is one line: the file, what is wrong, what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WeightsError {
    /// The path or a file of the checkpoint cannot be opened, read or mapped.
    #[error("{}: cannot be read: {cause}; check the path and its permissions", file.display())]
    Read {
        /// The file or folder.
        file: PathBuf,
        /// The system's reason.
        cause: std::io::Error,
    },
    /// The folder holds no weights in a layout we read.
    #[error(
        "{}: no weights here: {found}; expected model.safetensors, or model.safetensors.index.json and its shards",
        folder.display()
    )]
    NoWeights {
        /// The folder looked into.
        folder: PathBuf,
        /// What was found instead.
        found: String,
    },
    /// The folder has an adapter, which is not applied.
    #[error(
        "{}: an adapter ({kind}{base}) lies in this folder, which would change the model and is not applied here; merge it into the weights (peft: merge_and_unload, then save_pretrained), or take this file away to have the model without it",
        file.display()
    )]
    Adapter {
        /// Its configuration.
        file: PathBuf,
        /// What `peft` calls its kind: "LORA".
        kind: String,
        /// The model that it is for, as in ", of Salesforce/blip2-opt-2.7b"; may be empty.
        base: String,
    },
    /// The weights are an adapter's, or have one that is not merged.
    #[error(
        "{}: tensor {tensor:?} is an adapter's, which is not applied here; merge it into the weights (peft: merge_and_unload, then save_pretrained)",
        file.display()
    )]
    NotMerged {
        /// The weights.
        file: PathBuf,
        /// The first such tensor.
        tensor: String,
    },
    /// The shard index is unreadable or says something impossible.
    #[error("{}: {problem}; download the index again", file.display())]
    BadIndex {
        /// The index file.
        file: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The index names shards that are not in the folder.
    #[error("{}: shard {shard:?} named by the index is missing ({missing} of {total} shards are); download the missing shards into this folder", index.display())]
    MissingShard {
        /// The index file.
        index: PathBuf,
        /// The first missing shard.
        shard: String,
        /// How many shards are missing.
        missing: usize,
        /// How many shards the index names.
        total: usize,
    },
    /// The index places a tensor in a shard that does not hold it.
    #[error("{}: tensor {tensor:?} should be in this shard, says {index}, but is not; download shard and index again, from one revision", shard.display())]
    NotInShard {
        /// The shard.
        shard: PathBuf,
        /// The tensor.
        tensor: String,
        /// File name of the index.
        index: &'static str,
    },
    /// The file is not whole, or not a safetensors file.
    #[error("{}: {problem}; {remedy}", file.display())]
    BadFile {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        problem: String,
        /// What to do about it.
        remedy: &'static str,
    },
    /// A tensor that the model needs is not in the checkpoint under any name we know.
    #[error("{}: tensor {tensor:?} is missing (tried {tried}); is config.json that of these weights?", checkpoint.display())]
    Missing {
        /// The checkpoint as it was opened.
        checkpoint: PathBuf,
        /// Canonical name.
        tensor: String,
        /// The names tried, as a list for people.
        tried: String,
    },
    /// A tensor has another shape than the configuration asks for.
    #[error("{}: tensor {tensor:?} has shape {found:?} where config.json asks for {expected:?}; use the config.json of these weights", file.display())]
    Shape {
        /// File that holds the tensor.
        file: PathBuf,
        /// Name in the file.
        tensor: String,
        /// Shape asked for.
        expected: Vec<usize>,
        /// Shape found.
        found: Vec<usize>,
    },
    /// A tensor's element type is not one that weights may have.
    #[error("{}: tensor {tensor:?} is {found}; weights must be F16, BF16, F32 or F64: save the model unquantised", file.display())]
    ElementType {
        /// File that holds the tensor.
        file: PathBuf,
        /// Name in the file.
        tensor: String,
        /// The type found, as safetensors writes it.
        found: String,
    },
    /// A quantised tensor that does not fit its scales, or is none of this program's.
    #[error("{}: tensor {tensor:?} is stored as {found}, but {problem}; make it again from the f16 checkpoint: convert it with `quant` q8 (or q4)", file.display())]
    Quantised {
        /// File that holds the tensor.
        file: PathBuf,
        /// Name in the file.
        tensor: String,
        /// The type found, as safetensors writes it.
        found: String,
        /// What is wrong.
        problem: String,
    },
    /// A checkpoint whose weights are quantised is to be quantised otherwise.
    #[error("{}: its weights are quantised already ({stored}); leave `quant` out, or quantise the f16 checkpoint that it was made from", file.display())]
    AlreadyQuantised {
        /// The checkpoint, or its file.
        file: PathBuf,
        /// The format they are in.
        stored: &'static str,
    },
    /// A weight is NaN, infinite, or beyond what the destination format holds.
    #[error("{}: tensor {tensor:?} holds {value} at element {index}, {problem}; use an intact checkpoint", file.display())]
    BadValue {
        /// File that holds the tensor.
        file: PathBuf,
        /// Name in the file.
        tensor: String,
        /// Flat index of the first bad element.
        index: usize,
        /// The value.
        value: f64,
        /// Why it is refused.
        problem: &'static str,
    },
    /// A caller asked for rows, or offered a destination, that do not fit the tensor: a bug above
    /// this module.
    #[error("tensor {tensor:?}: {problem}; this is a bug in the program, please report it")]
    Usage {
        /// Canonical name.
        tensor: String,
        /// What does not fit.
        problem: String,
    },
}

/// What can go wrong while uploading.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// The checkpoint does not hold what the model needs.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The device has no room, or failed.
    #[error(transparent)]
    Gpu(#[from] GpuError),
}

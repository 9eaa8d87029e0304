//! Where a checkpoint's bytes are: which files it has, and a file mapped or part of the program.

use std::collections::BTreeMap;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use crate::files::bounded::{self, MAX_SMALL_BYTES};
use crate::files::text;

use super::error::WeightsError;

pub(super) const SINGLE: &str = "model.safetensors";
pub(super) const INDEX: &str = "model.safetensors.index.json";
const PYTORCH: &str = "pytorch_model.bin";
const PYTORCH_INDEX: &str = "pytorch_model.bin.index.json";

pub(super) const DOWNLOAD_AGAIN: &str = "download the file again";

/// A file of a checkpoint.
#[derive(Debug)]
pub(super) struct File {
    /// Its path, or the name that stands for it in errors.
    pub path: PathBuf,
    bytes: Bytes,
}

#[derive(Debug)]
enum Bytes {
    Mapped(Mmap),
    /// Part of the program.
    Embedded(&'static [u8]),
}

impl File {
    /// Maps the file at `path`.
    ///
    /// # Errors
    /// It cannot be read, is empty, or stands for a file that was not fetched.
    pub(super) fn map(path: &Path) -> Result<Self, WeightsError> {
        Ok(Self {
            path: path.into(),
            bytes: Bytes::Mapped(map(path)?),
        })
    }

    /// A file that is part of the program.
    pub(super) fn embedded(name: &str, bytes: &'static [u8]) -> Self {
        Self {
            path: name.into(),
            bytes: Bytes::Embedded(bytes),
        }
    }

    /// All of its bytes.
    pub(super) fn bytes(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Mapped(map) => map,
            Bytes::Embedded(bytes) => bytes,
        }
    }

    /// The bytes of a range that was checked to lie in the file.
    pub(super) fn range(&self, range: &Range<u64>) -> &[u8] {
        let index = |at: u64| usize::try_from(at).unwrap_or(usize::MAX);
        let bytes = self.bytes().get(index(range.start)..index(range.end));
        bytes.unwrap_or_default()
    }

    /// The last part of its path.
    pub(super) fn name(&self) -> String {
        file_name(&self.path)
    }
}

/// The files of a checkpoint.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Found {
    pub files: Vec<PathBuf>,
    /// File name by tensor, where an index says so.
    pub weight_map: BTreeMap<String, String>,
}

/// The files of a checkpoint at `path`: a folder in the Hugging Face layout (`model.safetensors` or
/// `pytorch_model.bin`, or shards named by their index), such an index of safetensors files, or one
/// file.
///
/// # Errors
/// No weights there, an index that is damaged or whose shards are not there.
pub(super) fn find(path: &Path) -> Result<Found, WeightsError> {
    let metadata = std::fs::metadata(path).map_err(|cause| read_error(path, cause))?;
    let one = |file: PathBuf| Found {
        files: vec![file],
        ..Found::default()
    };
    if !metadata.is_dir() {
        return match file_name(path).ends_with(".index.json") {
            true => find_shards(path),
            false => Ok(one(path.into())),
        };
    }
    let [single, index, pytorch, pytorch_index] =
        [SINGLE, INDEX, PYTORCH, PYTORCH_INDEX].map(|name| path.join(name));
    if single.is_file() {
        Ok(one(single))
    } else if index.is_file() {
        find_shards(&index)
    } else if pytorch_index.is_file() {
        find_pytorch_shards(&pytorch_index)
    } else if pytorch.is_file() {
        Ok(one(pytorch))
    } else {
        Err(no_weights(path))
    }
}

/// The folder that a checkpoint's small files lie in: `path` itself, or that of the file `path`.
#[must_use]
pub fn folder_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if path.is_file() => parent.into(),
        _ => path.into(),
    }
}

fn find_shards(index: &Path) -> Result<Found, WeightsError> {
    let weight_map = read_index(index)?;
    let mut shards: Vec<&str> = weight_map.values().map(String::as_str).collect();
    shards.sort_unstable();
    shards.dedup();
    let folder = index.parent().unwrap_or(Path::new("."));
    let files: Vec<PathBuf> = shards.iter().map(|shard| folder.join(shard)).collect();
    let mut missing = shards
        .iter()
        .zip(&files)
        .filter(|(_, path)| !path.is_file());
    if let Some((shard, _)) = missing.next() {
        return Err(WeightsError::MissingShard {
            index: index.into(),
            shard: (*shard).into(),
            missing: 1 + missing.count(),
            total: shards.len(),
        });
    }
    Ok(Found { files, weight_map })
}

/// The `weight_map` of a shard index: tensor name → shard file name.
fn read_index(index: &Path) -> Result<BTreeMap<String, String>, WeightsError> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let bad = |problem: String| WeightsError::BadIndex {
        file: index.into(),
        problem,
    };
    let bytes = read_small(index)?;
    let parsed: Index =
        text::json(&bytes).map_err(|cause| bad(format!("is not a shard index: {cause}")))?;
    if parsed.weight_map.is_empty() {
        return Err(bad("its weight_map names no tensor".into()));
    }
    match parsed.weight_map.values().find(|shard| !is_plain(shard)) {
        Some(shard) => Err(bad(format!(
            "names a shard {shard:?}, which is not a plain file name"
        ))),
        None => Ok(parsed.weight_map),
    }
}

/// The shards of a folder in transformers' older format. Which tensor lies where their pickles say.
fn find_pytorch_shards(index: &Path) -> Result<Found, WeightsError> {
    let bad = |problem: String| WeightsError::BadFile {
        file: index.into(),
        problem,
        remedy: "download it again",
    };
    let json: serde_json::Map<String, serde_json::Value> = text::json(&read_small(index)?)
        .map_err(|cause| bad(format!("is no JSON object ({cause})")))?;
    let map = json.get("weight_map").and_then(|map| map.as_object());
    let mut shards: Vec<&str> = map
        .into_iter()
        .flat_map(|map| map.values())
        .filter_map(|shard| shard.as_str())
        .collect();
    shards.sort_unstable();
    shards.dedup();
    if shards.is_empty() {
        return Err(bad("names no shards".into()));
    }
    if let Some(shard) = shards.iter().find(|shard| !is_plain(shard)) {
        return Err(bad(format!(
            "names a shard {shard:?}, which is not a plain file name"
        )));
    }
    let folder = index.parent().unwrap_or(Path::new("."));
    Ok(Found {
        files: shards.iter().map(|shard| folder.join(shard)).collect(),
        ..Found::default()
    })
}

/// Whether a shard lies beside its index: no name may lead elsewhere.
fn is_plain(shard: &str) -> bool {
    file_name(Path::new(shard)) == shard
}

fn read_small(file: &Path) -> Result<Vec<u8>, WeightsError> {
    bounded::read(file, MAX_SMALL_BYTES).map_err(|cause| read_error(file, cause))
}

/// Why a folder without files of the usual names cannot be opened.
fn no_weights(folder: &Path) -> WeightsError {
    let mut names: Vec<String> = match std::fs::read_dir(folder) {
        Ok(entries) => entries
            .flatten()
            .map(|entry| file_name(&entry.path()))
            .collect(),
        Err(cause) => return read_error(folder, cause),
    };
    names.sort_unstable();
    if names.iter().any(|name| name.ends_with(".safetensors")) {
        return WeightsError::NoWeights {
            folder: folder.into(),
            found: "there are .safetensors files of other names (shards need their index; a single file can be named itself)".into(),
        };
    }
    let pickle = names.iter().find(|name| is_pickle_name(name));
    WeightsError::NoWeights {
        folder: folder.into(),
        found: match pickle {
            Some(name) => format!("{name} is a file of PyTorch's, which can be named itself"),
            None => "no .safetensors file".into(),
        },
    }
}

/// Whether a file of this name is one of PyTorch's.
pub(super) fn is_pickle_name(name: &str) -> bool {
    [".bin", ".pth", ".pt", ".ckpt"]
        .iter()
        .any(|ending| name.ends_with(ending))
}

fn read_error(file: &Path, cause: std::io::Error) -> WeightsError {
    WeightsError::Read {
        file: file.into(),
        cause,
    }
}

/// The last part of a path.
pub(super) fn file_name(path: &Path) -> String {
    path.file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}

fn map(path: &Path) -> Result<Mmap, WeightsError> {
    let read_error = |cause| read_error(path, cause);
    let mut file = std::fs::File::open(path).map_err(read_error)?;
    let bad = |problem: &str, remedy| WeightsError::BadFile {
        file: path.into(),
        problem: problem.into(),
        remedy,
    };
    let mut start = [0; 24];
    let metadata = file.metadata().map_err(read_error)?;
    if !metadata.is_file() {
        return Err(bad(
            "is not a regular file",
            "give a file of weights or a folder that holds one",
        ));
    }
    if metadata.len() == 0 {
        return Err(bad("is empty", DOWNLOAD_AGAIN));
    }
    let length = file.read(&mut start).map_err(read_error)?;
    if start[..length] == *b"version https://git-lfs." {
        return Err(bad(
            "is a Git LFS pointer, not the weights themselves",
            "run `git lfs pull` in its folder",
        ));
    }
    // SAFETY: the mapping is read-only and only ever seen as `&[u8]`, for which every bit pattern
    // is valid; every slice is taken with bounds checks against the mapped length. What remains is
    // that another process may write or truncate the file while it is mapped: Rust does not allow
    // bytes behind a `&[u8]` to change, and reading past a new end raises SIGBUS. No portable call
    // prevents either. Checkpoints are written once and then only read; nothing decides memory
    // safety by these bytes after the header has been parsed and copied, and weights are
    // range-checked values: a changed byte is a changed number.
    #[allow(unsafe_code)]
    unsafe { Mmap::map(&file) }.map_err(read_error)
}

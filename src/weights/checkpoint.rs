//! The files of a checkpoint: found, memory-mapped, and their headers checked.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use safetensors::SafeTensors;

use super::error::WeightsError;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// An index has a line a tensor: a few hundred KB at most. More than this is not an index.
const MAX_INDEX_BYTES: u64 = 64 << 20;

/// Bytes before the header: its length, a little-endian u64.
const LENGTH_BYTES: usize = 8;

const DOWNLOAD_AGAIN: &str = "download the file again";

/// The safetensors files of one model, memory-mapped, with their headers checked.
///
/// Opening reads headers only; weights are paged in when they are converted or uploaded.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    files: Vec<MappedFile>,
    tensors: BTreeMap<String, Entry>,
}

#[derive(Debug)]
struct MappedFile {
    path: PathBuf,
    map: Bytes,
}

/// A file's bytes.
#[derive(Debug)]
enum Bytes {
    Mapped(Mmap),
    /// Part of the program.
    Embedded(&'static [u8]),
}

impl std::ops::Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Embedded(bytes) => bytes,
        }
    }
}

/// Where a tensor lies.
#[derive(Debug)]
struct Entry {
    file: usize,
    dtype: safetensors::Dtype,
    shape: Vec<usize>,
    bytes: Range<usize>,
}

/// One stored tensor: a view into the mapping.
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    /// Name in the file.
    pub name: &'a str,
    /// Element type as stored.
    pub dtype: safetensors::Dtype,
    /// Dimensions, outermost first.
    pub shape: &'a [usize],
    /// Row-major little-endian elements, with no alignment promised.
    pub bytes: &'a [u8],
    /// The file it lies in.
    pub file: &'a Path,
}

impl Checkpoint {
    /// Opens a folder in the Hugging Face layout (`model.safetensors`, or shards named by
    /// `model.safetensors.index.json`), such an index itself, or a single safetensors file.
    ///
    /// # Errors
    /// No weights there, pickles only, shards or tensors missing, files truncated or with a header that does not
    /// fit them; never a panic, whatever the files hold.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, WeightsError> {
        let path = path.as_ref();
        let metadata = std::fs::metadata(path).map_err(|cause| read_error(path, cause))?;
        let name = file_name(path);
        let index = if metadata.is_dir() {
            if path.join(SINGLE).is_file() {
                return Self::open_files(path, vec![path.join(SINGLE)], &BTreeMap::new());
            }
            path.join(INDEX)
        } else if name.ends_with(".index.json") {
            path.to_path_buf()
        } else if is_pickle(&name) {
            return Err(WeightsError::Pickle {
                file: path.into(),
                input: path.into(),
            });
        } else {
            return Self::open_files(path, vec![path.to_path_buf()], &BTreeMap::new());
        };
        if !index.is_file() {
            return Err(no_weights(path));
        }
        Self::open_shards(path, &index)
    }

    /// A safetensors file that is part of the program; `name` stands for it in errors.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn embedded(name: &str, bytes: &'static [u8]) -> Result<Self, WeightsError> {
        let mut checkpoint = Self {
            path: name.into(),
            files: Vec::new(),
            tensors: BTreeMap::new(),
        };
        checkpoint.add_file(name.into(), Bytes::Embedded(bytes), &BTreeMap::new())?;
        Ok(checkpoint)
    }

    fn open_shards(path: &Path, index: &Path) -> Result<Self, WeightsError> {
        let weight_map = read_index(index)?;
        let mut shards: Vec<&str> = weight_map.values().map(String::as_str).collect();
        shards.sort_unstable();
        shards.dedup();
        let folder = index.parent().unwrap_or(Path::new("."));
        let paths: Vec<PathBuf> = shards.iter().map(|shard| folder.join(shard)).collect();
        let mut missing = shards
            .iter()
            .zip(&paths)
            .filter(|(_, path)| !path.is_file());
        if let Some((shard, _)) = missing.next() {
            return Err(WeightsError::MissingShard {
                index: index.into(),
                shard: (*shard).into(),
                missing: 1 + missing.count(),
                total: shards.len(),
            });
        }
        Self::open_files(path, paths, &weight_map)
    }

    /// Maps `paths` and gathers their tensors. Where `weight_map` names a tensor's file, the tensor must be in
    /// that file, and it is that file's copy that counts if several hold one of that name.
    fn open_files(
        path: &Path,
        paths: Vec<PathBuf>,
        weight_map: &BTreeMap<String, String>,
    ) -> Result<Self, WeightsError> {
        let mut checkpoint = Self {
            path: path.into(),
            files: Vec::new(),
            tensors: BTreeMap::new(),
        };
        for file in paths {
            let map = Bytes::Mapped(map_file(&file)?);
            checkpoint.add_file(file, map, weight_map)?;
        }
        for (tensor, shard) in weight_map {
            if !checkpoint.tensors.contains_key(tensor) {
                let shard = path
                    .parent()
                    .filter(|_| path.is_file())
                    .unwrap_or(path)
                    .join(shard);
                return Err(WeightsError::NotInShard {
                    shard,
                    tensor: tensor.clone(),
                    index: INDEX,
                });
            }
        }
        if checkpoint.tensors.is_empty() {
            return Err(WeightsError::BadFile {
                file: path.into(),
                problem: "holds no tensors".into(),
                remedy: DOWNLOAD_AGAIN,
            });
        }
        Ok(checkpoint)
    }

    /// Reads a file's header and gathers its tensors.
    fn add_file(
        &mut self,
        path: PathBuf,
        map: Bytes,
        weight_map: &BTreeMap<String, String>,
    ) -> Result<(), WeightsError> {
        let shard = file_name(&path);
        for (name, entry) in read_header(&path, &map, self.files.len())? {
            let elsewhere = weight_map.get(&name).is_some_and(|holder| *holder != shard);
            if !elsewhere {
                self.tensors.insert(name, entry);
            }
        }
        self.files.push(MappedFile { path, map });
        Ok(())
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The mapped files.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|file| file.path.as_path())
    }

    /// Names of all tensors, sorted, as the files have them.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Views of all tensors, sorted by name.
    pub fn tensors(&self) -> impl Iterator<Item = TensorView<'_>> {
        self.tensors
            .iter()
            .map(|(name, entry)| self.view(name, entry))
    }

    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Whether there is no tensor (never so for an opened checkpoint).
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// Bytes of all tensors as stored.
    pub fn total_bytes(&self) -> u64 {
        self.tensors
            .values()
            .map(|entry| entry.bytes.len() as u64)
            .sum()
    }

    /// The tensor of exactly this name, if there is one; [`Checkpoint::weight`] knows other revisions' names too.
    pub fn get(&self, name: &str) -> Option<TensorView<'_>> {
        self.tensors
            .get_key_value(name)
            .map(|(name, entry)| self.view(name, entry))
    }

    /// The tensor of exactly this name.
    ///
    /// # Errors
    /// There is no such tensor.
    pub fn tensor(&self, name: &str) -> Result<TensorView<'_>, WeightsError> {
        self.get(name).ok_or_else(|| WeightsError::Missing {
            checkpoint: self.path.clone(),
            tensor: name.into(),
            tried: "this name alone".into(),
        })
    }

    fn view<'a>(&'a self, name: &'a str, entry: &'a Entry) -> TensorView<'a> {
        let file = &self.files[entry.file];
        // The range was checked against the mapping's length when the header was read.
        let bytes = file.map.get(entry.bytes.clone()).unwrap_or_default();
        TensorView {
            name,
            dtype: entry.dtype,
            shape: &entry.shape,
            bytes,
            file: &file.path,
        }
    }
}

fn read_error(file: &Path, cause: std::io::Error) -> WeightsError {
    WeightsError::Read {
        file: file.into(),
        cause,
    }
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}

fn is_pickle(name: &str) -> bool {
    [".bin", ".pth", ".pt", ".ckpt"]
        .iter()
        .any(|ending| name.ends_with(ending))
}

/// Why a folder without `model.safetensors` and without an index cannot be opened.
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
        let found = "there are .safetensors files of other names (shards need their index; a single file can be named itself)";
        return WeightsError::NoWeights {
            folder: folder.into(),
            found,
        };
    }
    match names.iter().find(|name| is_pickle(name)) {
        Some(pickle) => WeightsError::Pickle {
            file: folder.join(pickle),
            input: folder.into(),
        },
        None => WeightsError::NoWeights {
            folder: folder.into(),
            found: "no .safetensors file",
        },
    }
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
    let file = File::open(index).map_err(|cause| read_error(index, cause))?;
    let mut text = Vec::new();
    file.take(MAX_INDEX_BYTES)
        .read_to_end(&mut text)
        .map_err(|cause| read_error(index, cause))?;
    let parsed: Index = serde_json::from_slice(&text)
        .map_err(|cause| bad(format!("is not a shard index: {cause}")))?;
    if parsed.weight_map.is_empty() {
        return Err(bad("its weight_map names no tensor".into()));
    }
    // A shard lies beside its index: no name may lead elsewhere.
    match parsed
        .weight_map
        .values()
        .find(|shard| file_name(Path::new(shard.as_str())) != **shard)
    {
        Some(shard) => Err(bad(format!(
            "names a shard {shard:?}, which is not a plain file name"
        ))),
        None => Ok(parsed.weight_map),
    }
}

pub(super) fn map_file(path: &Path) -> Result<Mmap, WeightsError> {
    let read_error = |cause| read_error(path, cause);
    let mut file = File::open(path).map_err(read_error)?;
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
    // SAFETY: the mapping is read-only and only ever seen as `&[u8]`, for which every bit pattern is valid; every
    // slice is taken with bounds checks against the mapped length. What remains is that another process may write
    // or truncate the file while it is mapped: Rust does not allow bytes behind a `&[u8]` to change, and reading
    // past a new end raises SIGBUS. No portable call prevents either. Checkpoints are written once and then only
    // read; nothing decides memory safety by these bytes after the
    // header has been parsed and copied, and weights are range-checked values: a changed byte is a changed number.
    #[allow(unsafe_code)]
    unsafe { Mmap::map(&file) }.map_err(read_error)
}

/// The tensors of one mapped file, their byte ranges checked to lie in it.
fn read_header(path: &Path, map: &[u8], file: usize) -> Result<Vec<(String, Entry)>, WeightsError> {
    let bad = |problem: String, remedy: &'static str| WeightsError::BadFile {
        file: path.into(),
        problem,
        remedy,
    };
    check_offsets(map).map_err(|problem| bad(problem, DOWNLOAD_AGAIN))?;
    let (header_length, metadata) = SafeTensors::read_metadata(map).map_err(|cause| {
        bad(
            format!("its header is invalid: {}", one_line(&cause.to_string())),
            DOWNLOAD_AGAIN,
        )
    })?;
    let data_start = LENGTH_BYTES + header_length;
    let mut entries = Vec::with_capacity(metadata.tensors().len());
    for (name, info) in metadata.tensors() {
        let (start, end) = info.data_offsets;
        let bytes = data_start + start..data_start + end;
        if map.get(bytes.clone()).is_none() {
            return Err(bad(
                format!("tensor {name:?} lies outside the file"),
                DOWNLOAD_AGAIN,
            ));
        }
        entries.push((
            name,
            Entry {
                file,
                dtype: info.dtype,
                shape: info.shape.clone(),
                bytes,
            },
        ));
    }
    Ok(entries)
}

/// Checks header and data offsets against the file's length: for a message that says which of the two is short,
/// and because `read_metadata` adds up offsets that it has not yet compared with the length.
fn check_offsets(map: &[u8]) -> Result<(), String> {
    let Some((length_bytes, rest)) = map.split_first_chunk::<LENGTH_BYTES>() else {
        return Err(format!(
            "is {} bytes long, too short for a safetensors file",
            map.len()
        ));
    };
    let header_length = u64::from_le_bytes(*length_bytes);
    let header = usize::try_from(header_length)
        .ok()
        .and_then(|length| rest.split_at_checked(length));
    let Some((header, data)) = header else {
        return Err(format!(
            "claims a header of {header_length} bytes but is {} bytes long: truncated, or not a safetensors file",
            map.len()
        ));
    };
    let header: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(header)
        .map_err(|cause| {
            format!("its header is not JSON ({cause}): damaged, or not a safetensors file")
        })?;
    for (name, info) in &header {
        let offsets = info
            .get("data_offsets")
            .and_then(|offsets| offsets.as_array());
        for offset in offsets
            .into_iter()
            .flatten()
            .filter_map(|offset| offset.as_u64())
        {
            if offset > data.len() as u64 {
                return Err(format!(
                    "tensor {name:?} reaches to byte {offset} of the data but the file has {}: truncated or damaged",
                    data.len()
                ));
            }
        }
    }
    Ok(())
}

/// Control characters (a tampered header's) would break the one line an error has.
fn one_line(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

#[cfg(test)]
mod tests;

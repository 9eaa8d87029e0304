//! Files that `torch.save` wrote (`.pth`, `.pt`, `.bin`), read without executing anything of theirs.
//!
//! Such a file is a pickle, which names the tensors and where their values lie, and the values. Since PyTorch 1.6 both are
//! records of an uncompressed zip archive ([`archive`]); before, they follow each other ([`legacy`]). The
//! file is mapped; a tensor is a view of its storage, and nothing is copied to the heap but names and shapes.

mod archive;
mod globals;
mod legacy;
mod pickle;
mod state_dict;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use safetensors::Dtype;

use super::checkpoint::{TensorView, map_file};
use super::error::WeightsError;
use pickle::{Pickle, Refusal};

const NOT_WHOLE: &str = "download the file again";
const NOT_A_CHECKPOINT: &str =
    "give a checkpoint saved with torch.save, or a folder in the Hugging Face layout";
const SAVE_WEIGHTS_ALONE: &str = "where you trust its source, save the weights alone: `torch.save(torch.load(FILE, weights_only=False)[\"model\"], NEW)`";

/// The tensors of a file written by `torch.save`.
#[derive(Debug)]
pub struct PytorchFile {
    path: PathBuf,
    map: Mmap,
    tensors: BTreeMap<String, Entry>,
    container: Option<&'static str>,
}

/// Where a tensor lies.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    dtype: Dtype,
    shape: Vec<usize>,
    /// In elements, as PyTorch counts them; `None` where it is row-major.
    strides: Option<Vec<usize>>,
    /// From its first element to its last.
    bytes: std::ops::Range<usize>,
}

/// A tensor as stored: a strided view of a storage.
#[derive(Clone, Copy, Debug)]
pub struct StridedView<'a> {
    /// Name in the file.
    pub name: &'a str,
    /// Element type as stored.
    pub dtype: Dtype,
    /// Dimensions, outermost first.
    pub shape: &'a [usize],
    /// Elements from one index to the next, a dimension; `None` where the elements lie in row-major order.
    pub strides: Option<&'a [usize]>,
    /// From the first element to the last: little-endian, no alignment promised.
    pub bytes: &'a [u8],
    /// The file it lies in.
    pub file: &'a Path,
}

impl PytorchFile {
    /// Maps a file and reads where its tensors lie, whether the state dict is the whole, or under `model` (LAVIS),
    /// `state_dict` (OpenMMLab) or `module`.
    ///
    /// # Errors
    /// Not a file of PyTorch's, cut off, or one that asks for more than tensors; compressed or overlapping records;
    /// tensors that lie outside their storage. Never a panic.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, WeightsError> {
        let path = path.as_ref();
        let map = map_file(path)?;
        let read = read(&map).map_err(|problem| problem.at(path))?;
        Ok(Self {
            path: path.into(),
            tensors: read.tensors,
            container: read.container,
            map,
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The key under which the state dict lies; `None` where it is the whole file.
    pub fn container(&self) -> Option<&'static str> {
        self.container
    }

    /// All tensors, sorted by name.
    pub fn tensors(&self) -> impl Iterator<Item = StridedView<'_>> {
        self.tensors.iter().map(|(name, entry)| StridedView {
            name,
            dtype: entry.dtype,
            shape: &entry.shape,
            strides: entry.strides.as_deref(),
            // The range was checked against the mapping's length when the file was read.
            bytes: self.map.get(entry.bytes.clone()).unwrap_or_default(),
            file: &self.path,
        })
    }
}

impl<'a> From<TensorView<'a>> for StridedView<'a> {
    fn from(view: TensorView<'a>) -> Self {
        Self {
            name: view.name,
            dtype: view.dtype,
            shape: view.shape,
            strides: None,
            bytes: view.bytes,
            file: view.file,
        }
    }
}

impl StridedView<'_> {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Copies the elements from `start` on, in row-major order, into `target`, as many as it holds. No more may be asked
    /// for than there are.
    pub fn copy(&self, start: usize, target: &mut [u8]) {
        let size = self.dtype.bitsize() / 8;
        let Some(strides) = self.strides else {
            let from = start * size;
            target.copy_from_slice(&self.bytes[from..from + target.len()]);
            return;
        };
        let mut index = self.index_of(start);
        for element in target.chunks_exact_mut(size) {
            let offset = index.iter().zip(strides).map(|(i, stride)| i * stride);
            let from = offset.sum::<usize>() * size;
            element.copy_from_slice(&self.bytes[from..from + size]);
            advance(&mut index, self.shape);
        }
    }

    /// The index in each dimension of the element `flat` in row-major order.
    fn index_of(&self, mut flat: usize) -> Vec<usize> {
        let mut index = vec![0; self.shape.len()];
        for (index, &size) in index.iter_mut().zip(self.shape).rev() {
            *index = flat % size.max(1);
            flat /= size.max(1);
        }
        index
    }
}

/// The next index in row-major order.
fn advance(index: &mut [usize], shape: &[usize]) {
    for (index, &size) in index.iter_mut().zip(shape).rev() {
        *index += 1;
        if *index < size {
            return;
        }
        *index = 0;
    }
}

/// What is wrong with a file, and what to do about it.
#[derive(Debug, PartialEq, Eq)]
struct Problem {
    what: String,
    remedy: &'static str,
}

/// What to do about tensors of a kind that weights do not have.
const SAVE_DENSE: &str = "save the model as plain float16 or float32 tensors and convert that";

impl Problem {
    fn new(what: impl Into<String>, remedy: &'static str) -> Self {
        Self {
            what: what.into(),
            remedy,
        }
    }

    /// The file is damaged.
    fn damaged(what: impl Into<String>) -> Self {
        Self::new(what, NOT_WHOLE)
    }

    fn at(self, file: &Path) -> WeightsError {
        WeightsError::BadFile {
            file: file.into(),
            // Names in a hostile file may hold anything; an error is one line.
            problem: self.what.replace(char::is_control, " "),
            remedy: self.remedy,
        }
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Broken(what) => Self::damaged(what),
            Refusal::Name(name) if is_element_type(&name) => Self::new(
                format!("has tensors of {name}, an element type that is not read here"),
                SAVE_DENSE,
            ),
            Refusal::Name(name) => Self::new(
                format!(
                    "its pickle asks for {name}, which no checkpoint needs; nothing of it was run, but PyTorch might run it"
                ),
                SAVE_WEIGHTS_ALONE,
            ),
        }
    }
}

/// Whether a name is that of an element type of PyTorch's, or of its storage: `torch.float8_e4m3fn`, `torch.QInt8Storage`.
fn is_element_type(name: &str) -> bool {
    let own = name.strip_prefix("torch.").unwrap_or_default();
    let types = [
        "float", "bfloat", "complex", "int", "uint", "qint", "quint", "bits",
    ];
    own.ends_with("Storage") || types.iter().any(|start| own.starts_with(start))
}

/// What a file holds.
struct Read {
    tensors: BTreeMap<String, Entry>,
    container: Option<&'static str>,
}

fn read(bytes: &[u8]) -> Result<Read, Problem> {
    if bytes.starts_with(b"PK\x03\x04") {
        let archive = archive::Archive::read(bytes)?;
        let pickle = Pickle::read(archive.pickle)?;
        return state_dict::read(&pickle, &archive.storages(&pickle)?);
    }
    if legacy::is_legacy(bytes) {
        let (pickle, storages) = legacy::read(bytes)?;
        return state_dict::read(&pickle, &storages);
    }
    Err(Problem::new(
        match bytes {
            [0x80, ..] => "is a pickle, but not one of PyTorch's",
            _ => "is no file that torch.save wrote",
        },
        NOT_A_CHECKPOINT,
    ))
}

#[cfg(test)]
mod tests;

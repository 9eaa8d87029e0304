//! The formats of files that hold tensors: where each tensor lies in its file.

pub(super) mod pytorch;
pub(super) mod safetensors;

use std::ops::Range;
use std::path::Path;

use ::safetensors::Dtype;

use super::error::WeightsError;
use super::files::{File, file_name, is_pickle_name};

/// Where a tensor lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// In elements, as PyTorch counts them; `None` where it is row-major.
    pub strides: Option<Vec<usize>>,
    /// In its file, from its first element to its last.
    pub bytes: Range<u64>,
}

/// The tensors of a file by name, all of them within the file.
///
/// # Errors
/// A file that is damaged, cut off or of another kind; one of PyTorch's that asks for more than
/// tensors.
pub(super) fn read(file: &File) -> Result<Vec<(String, Entry)>, WeightsError> {
    match by_name(&file.name()).unwrap_or_else(|| is_pickle(file.bytes())) {
        true => pytorch::read(file),
        false => safetensors::read(file),
    }
}

/// Whether `path` is a file of PyTorch's, by its name or its first bytes.
#[must_use]
pub fn is_pytorch(path: &Path) -> bool {
    let by_bytes = || File::map(path).is_ok_and(|file| is_pickle(file.bytes()));
    path.is_file() && by_name(&file_name(path)).unwrap_or_else(by_bytes)
}

/// Whether a file of this name is one of PyTorch's; `None` for a name that does not tell.
fn by_name(name: &str) -> Option<bool> {
    match name.ends_with(".safetensors") {
        true => Some(false),
        false => is_pickle_name(name).then_some(true),
    }
}

/// Whether a file of these bytes is one of PyTorch's: a pickle or a zip archive.
fn is_pickle(bytes: &[u8]) -> bool {
    // Of safetensors the first bytes are a length, behind which the header begins.
    let is_pickle = bytes.starts_with(pytorch::PICKLE) && bytes.get(8) != Some(&b'{');
    is_pickle || bytes.starts_with(pytorch::ZIP)
}

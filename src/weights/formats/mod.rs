//! The formats of files that hold tensors: where each tensor lies in its file.

pub(super) mod pytorch;
pub(super) mod safetensors;

use std::ops::Range;
use std::path::Path;

use ::safetensors::Dtype;

use super::error::WeightsError;
use super::files::{File, is_pickle};

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
/// A file that is damaged, cut off or of another kind; one of PyTorch's that asks for more than tensors.
pub(super) fn read(file: &File) -> Result<Vec<(String, Entry)>, WeightsError> {
    match is_of_pytorch(file) {
        true => pytorch::read(file),
        false => safetensors::read(file),
    }
}

/// Whether `path` is a file of PyTorch's, by its name or its first bytes.
#[must_use]
pub fn is_pytorch(path: &Path) -> bool {
    path.is_file() && File::map(path).is_ok_and(|file| is_of_pytorch(&file))
}

fn is_of_pytorch(file: &File) -> bool {
    let (name, bytes) = (file.name(), file.bytes());
    if is_pickle(&name) || name.ends_with(".safetensors") {
        return is_pickle(&name);
    }
    // Of safetensors these bytes are a length, behind which the header begins.
    let is_pickle = bytes.starts_with(pytorch::PICKLE) && bytes.get(8) != Some(&b'{');
    is_pickle || bytes.starts_with(pytorch::ZIP)
}

//! Files that `torch.save` wrote (`.pth`, `.pt`, `.bin`), read without executing anything of
//! theirs.
//!
//! Such a file is a pickle, which names the tensors and where their values lie, and the values.
//! Since PyTorch 1.6 both are records of an uncompressed zip archive ([`archive`]); before, they
//! follow each other ([`legacy`]). The file is mapped; a tensor is a view of its storage, and
//! nothing is copied to the heap but names and shapes.

mod archive;
mod globals;
mod legacy;
mod pickle;
mod state_dict;

use std::collections::BTreeMap;
use std::path::Path;

use super::super::error::WeightsError;
use super::super::files::{DOWNLOAD_AGAIN, File};
use super::Entry;
use pickle::{Pickle, Refusal};

/// What a zip archive begins with.
pub(super) const ZIP: &[u8] = b"PK\x03\x04";
/// What a pickle begins with since Python 3.
pub(super) const PICKLE: &[u8] = b"\x80";

const NOT_A_CHECKPOINT: &str =
    "give a checkpoint saved with torch.save, or a folder in the Hugging Face layout";
const SAVE_WEIGHTS_ALONE: &str = "where you trust its source, save the weights alone: `torch.save(torch.load(FILE, weights_only=False)[\"model\"], NEW)`";

/// The tensors of a file, whether the state dict is the whole, or under `model` (LAVIS),
/// `state_dict` (OpenMMLab) or `module`.
///
/// # Errors
/// Not a file of PyTorch's, cut off, or one that asks for more than tensors; compressed or
/// overlapping records; tensors that lie outside their storage. Never a panic.
pub(super) fn read(file: &File) -> Result<Vec<(String, Entry)>, WeightsError> {
    let tensors = tensors(file.bytes()).map_err(|problem| problem.at(&file.path))?;
    Ok(tensors.into_iter().collect())
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
        Self::new(what, DOWNLOAD_AGAIN)
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

/// Whether a name is that of an element type of PyTorch's, or of its storage:
/// `torch.float8_e4m3fn`, `torch.QInt8Storage`.
fn is_element_type(name: &str) -> bool {
    let own = name.strip_prefix("torch.").unwrap_or_default();
    let types = [
        "float", "bfloat", "complex", "int", "uint", "qint", "quint", "bits",
    ];
    own.ends_with("Storage") || types.iter().any(|start| own.starts_with(start))
}

fn tensors(bytes: &[u8]) -> Result<BTreeMap<String, Entry>, Problem> {
    if bytes.starts_with(ZIP) {
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

/// Reads a pickle whose storages `0` to `3` have 64 bytes each.
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub fn fuzz_pickle(bytes: &[u8]) -> bool {
    let place = |key: usize| (key.to_string(), 64 * key..64 * (key + 1));
    let storages = (0..4).map(place).collect();
    Pickle::read(bytes).is_ok_and(|pickle| state_dict::read(&pickle, &storages).is_ok())
}

#[cfg(test)]
mod tests;

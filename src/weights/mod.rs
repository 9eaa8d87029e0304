//! Checkpoints: the files they are in, the names their tensors go by, and their way to the device.
//!
//! Nothing here copies weights to the heap or knows what a tensor is used for: [`Checkpoint`] maps
//! the files of any of the formats and finds a tensor by its canonical name whatever system or
//! revision wrote them. A model's `load` takes its tensors from [`Tensors`]: over a listing
//! ([`list_tensors`]) to know what there is, over an [`Outline`] to be filled with what
//! [`Weight::write_rows`] and its kin convert straight from the mapping into mapped device buffers.

mod adapter;
mod checkpoint;
mod dtype;
mod error;
mod files;
mod formats;
mod names;
mod outline;
mod policy;
mod quant;
mod quantised;
mod spec;
mod tensors;
mod upload;
mod view;
mod weight;

#[cfg(test)]
mod test_files;

pub use adapter::refuse_adapter;
pub use checkpoint::Checkpoint;
pub use dtype::{BadElement, Format, SourceFormat, convert_elements};
pub use error::{UploadError, WeightsError};
pub use files::folder_of;
pub use formats::is_pytorch;
#[cfg(feature = "fuzzing")]
pub use formats::pytorch::fuzz_pickle;
pub use names::{Family, Kind, Name, Task, names_of_language_model, names_of_vision};
pub use outline::{Outline, Progress};
pub use policy::format_of;
pub use quant::{dequantise, quantise};
pub use quantised::{QuantisedTensor, SCALES};
pub use spec::{Component, Role, TensorSpec};
pub use tensors::{Scope, Tensors, list_tensors};
pub use view::TensorView;
pub use weight::{Part, Weight};

//! Checkpoints: memory-mapped safetensors files, the names their tensors go by, and conversion to f16 or f32.
//!
//! Nothing here copies weights to the heap or knows what a tensor is used for: [`Checkpoint`] maps the files,
//! [`Checkpoint::weight`] finds a tensor by its canonical name whatever revision wrote the file, and
//! [`Weight::write_rows`] converts rows straight from the mapping into the caller's buffer (a mapped staging
//! buffer, usually).

mod checkpoint;
mod dtype;
mod error;
mod names;
mod outline;
mod policy;
mod pytorch;
mod quant;
mod quantised;
mod tensors;
mod upload;

#[cfg(test)]
mod test_files;

pub use checkpoint::{Checkpoint, TensorView};
pub use dtype::{BadElement, Format, SourceFormat, convert_elements};
pub use error::WeightsError;
pub use names::{Weight, aliases, is_ignored_buffer};
pub use outline::{Outline, Progress, UploadError};
pub use policy::format_of;
pub use pytorch::{PytorchFile, StridedView};
pub use quant::{dequantise, quantise};
pub use quantised::{QuantisedTensor, SCALES};
pub use tensors::{Component, Role, Scope, TensorSpec, Tensors, list_tensors};

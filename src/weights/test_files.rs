//! Small safetensors files for this module's tests.

use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::TensorView;

/// Name, type, shape and bytes of a tensor to write.
pub type Tensor = (String, Dtype, Vec<usize>, Vec<u8>);

/// An F32 tensor whose element i is `start + i`.
pub fn ramp(name: &str, shape: &[usize], start: f32) -> Tensor {
    let count: usize = shape.iter().product();
    let bytes = (0..count)
        .flat_map(|i| (start + i as f32).to_le_bytes())
        .collect();
    (name.into(), Dtype::F32, shape.to_vec(), bytes)
}

/// The bytes of a safetensors file.
pub fn serialize(tensors: &[Tensor]) -> Vec<u8> {
    let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
        (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    safetensors::serialize(views, None).unwrap()
}

/// Writes `folder/name` and returns its path.
pub fn write(folder: &Path, name: &str, tensors: &[Tensor]) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, serialize(tensors)).unwrap();
    path
}

/// A safetensors file of this header text and data.
pub fn raw(header: &str, data: &[u8]) -> Vec<u8> {
    [
        &(header.len() as u64).to_le_bytes(),
        header.as_bytes(),
        data,
    ]
    .concat()
}

//! From the memory map to the device: converted on the way, through bounded staging, with progress.

use crate::gpu::{Gpu, GpuError, Matrix, Vector, WeightFormat};

use super::transfer::{Transfer, Wish};
use super::{Checkpoint, Weight, WeightsError};

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

/// Called with the bytes of the checkpoint dealt with so far and all of its bytes.
pub type Progress<'a> = dyn FnMut(u64, u64) + Send + 'a;

/// Moves tensors of one checkpoint to one device.
pub struct Uploader<'a> {
    gpu: &'a Gpu,
    checkpoint: &'a Checkpoint,
    target: Target<'a>,
    progress: &'a mut Progress<'a>,
    done: u64,
    device_bytes: u64,
}

/// Where tensors go.
enum Target<'a> {
    Device(Transfer<'a>),
    /// Nowhere: every tensor gets this one small buffer. Programs can be planned over such weights, not run.
    Outline {
        buffer: wgpu::Buffer,
        /// The matrices asked for so far.
        wishes: Vec<Wish<'a>>,
    },
}

impl<'a> Uploader<'a> {
    /// Ready to upload; `progress` hears of every tensor.
    pub fn new(gpu: &'a Gpu, checkpoint: &'a Checkpoint, progress: &'a mut Progress<'a>) -> Self {
        Self {
            gpu,
            checkpoint,
            target: Target::Device(Transfer::new(gpu, Vec::new())),
            progress,
            done: 0,
            device_bytes: 0,
        }
    }

    /// Checks names and shapes and counts bytes, but moves nothing: for planning.
    ///
    /// # Errors
    /// The device failed.
    pub fn outline(
        gpu: &'a Gpu,
        checkpoint: &'a Checkpoint,
        progress: &'a mut Progress<'a>,
    ) -> Result<Self, GpuError> {
        Ok(Self {
            gpu,
            checkpoint,
            target: Target::Outline {
                buffer: gpu.storage("outline", 16)?,
                wishes: Vec::new(),
            },
            progress,
            done: 0,
            device_bytes: 0,
        })
    }

    /// Announces that the tensors will be those that `outline` was asked for, in that order: they are then converted and
    /// written several at a time, on all cores.
    #[must_use]
    pub fn expecting(mut self, outline: Uploader<'a>) -> Self {
        if let (Target::Device(transfer), Target::Outline { wishes, .. }) =
            (&mut self.target, outline.target)
        {
            *transfer = Transfer::new(self.gpu, wishes);
        }
        self
    }

    /// Bytes that the tensors so far take, or would take, on the device.
    #[must_use]
    pub fn device_bytes(&self) -> u64 {
        self.device_bytes
    }

    /// Bytes that the tensors of an outline would take with their linear layers quantised to `bits` a value.
    #[must_use]
    pub fn quantised_bytes(&self, bits: u64) -> u64 {
        let Target::Outline { wishes, .. } = &self.target else {
            return self.device_bytes;
        };
        let saved = wishes
            .iter()
            .map(|wish| wish.bytes() - wish.quantised_bytes(bits).min(wish.bytes()));
        self.device_bytes - saved.sum::<u64>()
    }

    /// The device.
    #[must_use]
    pub fn gpu(&self) -> &'a Gpu {
        self.gpu
    }

    /// The checkpoint.
    #[must_use]
    pub fn checkpoint(&self) -> &'a Checkpoint {
        self.checkpoint
    }

    /// The tensor `name`, of `shape`, as f32: norms, biases and other small ones.
    ///
    /// # Errors
    /// The tensor is missing or of another shape, or the device failed.
    pub async fn vector(&mut self, name: &str, shape: &[usize]) -> Result<Vector, UploadError> {
        self.vectors(&[name], shape).await
    }

    /// Several tensors of equal `shape` one after another as one f32 vector.
    ///
    /// # Errors
    /// As [`Uploader::vector`].
    pub async fn vectors(
        &mut self,
        names: &[&str],
        shape: &[usize],
    ) -> Result<Vector, UploadError> {
        let mut values = Vec::new();
        let mut len = 0;
        for name in names {
            let weight = self.checkpoint.weight(name, shape)?;
            len += weight.elements();
            if matches!(self.target, Target::Device(_)) {
                values.extend(weight.to_f32()?);
            }
            self.count(&weight);
        }
        self.vector_of(names[0], &values, len)
    }

    /// `values` as a vector of `len` on the device; planning needs the length alone.
    fn vector_of(
        &mut self,
        label: &str,
        values: &[f32],
        len: usize,
    ) -> Result<Vector, UploadError> {
        self.device_bytes += (len * 4).next_multiple_of(16) as u64;
        Ok(match &self.target {
            Target::Device(_) => self.gpu.vector(label, values)?,
            Target::Outline { buffer, .. } => Vector {
                buffer: buffer.clone(),
                len,
            },
        })
    }

    /// A vector made of tensor `name` by `change`: position embeddings for another image size.
    ///
    /// # Errors
    /// As [`Uploader::vector`].
    pub fn changed_vector(
        &mut self,
        name: &str,
        shape: &[usize],
        change: impl FnOnce(Vec<f32>) -> Vec<f32>,
    ) -> Result<Vector, UploadError> {
        let weight = self.checkpoint.weight(name, shape)?;
        self.count(&weight);
        let values = change(weight.to_f32()?);
        self.vector_of(name, &values, values.len())
    }

    /// The tensor `name` of `shape` (`[out, in]`, or `[out, channels, height, width]`) as an f16 matrix; columns
    /// are padded with zeros to a multiple of 8.
    ///
    /// # Errors
    /// As [`Uploader::vector`].
    pub async fn matrix(&mut self, name: &str, shape: &[usize]) -> Result<Matrix, UploadError> {
        self.matrices(&[name], shape).await
    }

    /// Several tensors of equal `shape` stacked by rows as one f16 matrix: q, k and v as one projection.
    ///
    /// # Errors
    /// As [`Uploader::vector`].
    pub async fn matrices(
        &mut self,
        names: &[&str],
        shape: &[usize],
    ) -> Result<Matrix, UploadError> {
        let weights = names
            .iter()
            .map(|name| self.checkpoint.weight(name, shape))
            .collect::<Result<Vec<_>, _>>()?;
        self.matrix_of(&weights).await
    }

    /// `weights`, of equal shape, stacked by rows as one f16 matrix.
    ///
    /// # Errors
    /// As [`Uploader::vector`].
    pub async fn matrix_of(&mut self, weights: &[Weight<'a>]) -> Result<Matrix, UploadError> {
        let wish = Wish::new(weights);
        self.device_bytes += wish.bytes();
        for weight in weights {
            self.count(weight);
        }
        match &mut self.target {
            Target::Device(transfer) => transfer.matrix(self.gpu, wish).await,
            Target::Outline { buffer, wishes } => {
                let [rows, columns] = wish.shape();
                wishes.push(wish);
                Ok(outline_matrix(buffer, rows, columns))
            }
        }
    }

    /// Waits until the device has everything.
    ///
    /// # Errors
    /// An error of the device.
    pub async fn finish(self) -> Result<(), UploadError> {
        match self.target {
            Target::Device(transfer) => Ok(transfer.finish(self.gpu).await?),
            Target::Outline { .. } => Ok(()),
        }
    }

    fn count(&mut self, weight: &Weight<'_>) {
        self.done += weight.stored_bytes() as u64;
        (self.progress)(self.done, self.checkpoint.total_bytes());
    }
}

/// A matrix of the right sizes that holds nothing.
fn outline_matrix(buffer: &wgpu::Buffer, rows: usize, columns: usize) -> Matrix {
    Matrix {
        format: WeightFormat::F16,
        parts: vec![crate::gpu::MatrixPart {
            buffer: buffer.clone(),
            first_row: 0,
            rows,
        }],
        rows,
        columns,
    }
}

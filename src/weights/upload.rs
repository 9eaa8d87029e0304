//! From the memory map to the device: converted on the way, through bounded staging, with progress.

use crate::gpu::{Gpu, GpuError, Matrix, Vector, WeightFormat};

use super::transfer::{Transfer, Wish};
use super::{Checkpoint, Weight, WeightsError, format_of};

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
    quant: Option<WeightFormat>,
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
            quant: None,
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
            quant: None,
            target: Target::Outline {
                buffer: gpu.storage("outline", 16)?,
                wishes: Vec::new(),
            },
            progress,
            done: 0,
            device_bytes: 0,
        })
    }

    /// Stores matrices in `quant`, as far as [`format_of`] has it; `None` keeps what the checkpoint has.
    #[must_use]
    pub fn quantised(mut self, quant: Option<WeightFormat>) -> Self {
        self.quant = quant;
        self
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

    /// Bytes that the tensors of an outline would take with weights stored as `format`; `None` where they cannot be,
    /// because the checkpoint has them quantised otherwise.
    #[must_use]
    pub fn bytes_in(&self, format: WeightFormat) -> Option<u64> {
        let Target::Outline { wishes, .. } = &self.target else {
            return None;
        };
        let own: u64 = wishes.iter().map(Wish::bytes).sum();
        let others: Option<u64> = wishes.iter().map(|wish| wish.bytes_in(format)).sum();
        Some(self.device_bytes - own + others?)
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

    /// The tensor `name` of `shape` (`[out, in]`, or `[out, channels, height, width]`) as a matrix in the format that is
    /// its own; columns of an f16 one are padded with zeros to a multiple of 8.
    ///
    /// # Errors
    /// As [`Uploader::vector`].
    pub async fn matrix(&mut self, name: &str, shape: &[usize]) -> Result<Matrix, UploadError> {
        self.matrices(&[name], shape).await
    }

    /// Several tensors of equal `shape` stacked by rows as one matrix: q, k and v as one projection.
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

    /// `weights`, of equal shape, stacked by rows as one matrix.
    ///
    /// # Errors
    /// As [`Uploader::vector`].
    pub async fn matrix_of(&mut self, weights: &[Weight<'a>]) -> Result<Matrix, UploadError> {
        let wish = Wish::new(weights, self.format_of(weights)?);
        self.device_bytes += wish.bytes();
        for weight in weights {
            self.count(weight);
        }
        match &mut self.target {
            Target::Device(transfer) => transfer.matrix(self.gpu, wish).await,
            Target::Outline { buffer, wishes } => {
                let matrix = outline_matrix(buffer, &wish);
                wishes.push(wish);
                Ok(matrix)
            }
        }
    }

    /// The format of `weights` on the device: one for all of them, as they are one matrix there.
    fn format_of(&self, weights: &[Weight<'_>]) -> Result<WeightFormat, WeightsError> {
        let [_, columns] = weights[0].matrix();
        let stored: Vec<_> = weights.iter().filter_map(Weight::quantised).collect();
        let Some(first) = stored.first() else {
            let asked = self.quant.unwrap_or_default();
            return Ok(format_of(weights[0].name(), columns, asked));
        };
        if let Some(asked) = self.quant
            && asked != first.format
            && format_of(weights[0].name(), columns, asked) != first.format
        {
            return Err(WeightsError::AlreadyQuantised {
                file: first.values.file.into(),
                stored: first.format.name(),
            });
        }
        // What no kernel reads in blocks, or what is quantised in part, is expanded.
        let is_read = format_of(weights[0].name(), columns, first.format).is_quantised();
        let is_one = stored.len() == weights.len()
            && stored.iter().all(|tensor| tensor.format == first.format);
        Ok(if is_read && is_one {
            first.format
        } else {
            WeightFormat::F16
        })
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
fn outline_matrix(buffer: &wgpu::Buffer, wish: &Wish<'_>) -> Matrix {
    let matrix = wish.matrix();
    Matrix {
        parts: vec![crate::gpu::MatrixPart {
            buffer: buffer.clone(),
            first_row: 0,
            rows: matrix.rows,
        }],
        ..matrix
    }
}

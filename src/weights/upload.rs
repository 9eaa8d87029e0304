//! From the memory map to the device: converted on the way, through bounded staging, with progress.

use half::f16;

use crate::gpu::{
    Gpu, GpuError, Matrix, MatrixPart, Staging, Vector, WeightFormat, grouped_scales, round_up,
};

use super::{Checkpoint, Format, Weight, WeightsError, format_of};

/// Bytes converted at a time before they are copied into staging memory: small enough for a core's cache.
const BLOCK: usize = 256 << 10;

/// Bytes of quantised values made at a time: enough rows for all cores.
const QUANT_CHUNK: usize = 4 << 20;

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
    target: Target,
    block: Vec<u8>,
    progress: &'a mut Progress<'a>,
    done: u64,
    device_bytes: u64,
}

/// Where tensors go.
enum Target {
    Device(Staging),
    /// Nowhere: every tensor gets this one small buffer. Programs can be planned over such weights, not run.
    Outline(wgpu::Buffer),
}

impl<'a> Uploader<'a> {
    /// Ready to upload; `progress` hears of every tensor.
    pub fn new(gpu: &'a Gpu, checkpoint: &'a Checkpoint, progress: &'a mut Progress<'a>) -> Self {
        Self {
            gpu,
            checkpoint,
            quant: None,
            target: Target::Device(Staging::new(gpu)),
            block: Vec::new(),
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
            target: Target::Outline(gpu.storage("outline", 16)?),
            block: Vec::new(),
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

    /// Bytes that the tensors so far take, or would take, on the device.
    #[must_use]
    pub fn device_bytes(&self) -> u64 {
        self.device_bytes
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
            Target::Outline(buffer) => Vector {
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
    pub async fn matrix_of(&mut self, weights: &[Weight<'_>]) -> Result<Matrix, UploadError> {
        let [rows_each, columns] = weights[0].matrix();
        let format = self.format_of(weights)?;
        let stride = round_up(columns, 8);
        let rows = rows_each * weights.len();
        let row_bytes = stride * 2;
        let matrix = match &self.target {
            Target::Device(_) => self
                .gpu
                .weight_matrix(weights[0].name(), format, rows, stride)?,
            Target::Outline(buffer) => outline_matrix(buffer, format, rows, stride),
        };
        self.device_bytes += format.part_bytes(rows, stride).next_multiple_of(16);
        for weight in weights {
            self.count(weight);
        }
        let Target::Device(staging) = &mut self.target else {
            return Ok(matrix);
        };
        if format.is_quantised() {
            for part in &matrix.parts {
                write_quantised(staging, weights, part, &matrix).await?;
            }
            return Ok(matrix);
        }
        let rows_a_chunk = (Staging::CHUNK / row_bytes).max(1);
        for part in &matrix.parts {
            let end = part.first_row + part.rows;
            let mut row = part.first_row;
            while row < end {
                // A chunk ends with its weight, its part or its staging buffer, whichever comes first.
                let weight = &weights[row / rows_each];
                let within = row % rows_each;
                let count = rows_a_chunk.min(end - row).min(rows_each - within);
                let offset = ((row - part.first_row) * row_bytes) as u64;
                let block = &mut self.block;
                staging
                    .write(&part.buffer, offset, count * row_bytes, |mut target| {
                        write_blocks(
                            weight,
                            within..within + count,
                            stride,
                            block,
                            |at, bytes| {
                                target.slice(at..at + bytes.len()).copy_from_slice(bytes);
                            },
                        )
                    })
                    .await?;
                row += count;
            }
        }
        Ok(matrix)
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
            Target::Device(staging) => Ok(staging.finish().await?),
            Target::Outline(_) => Ok(()),
        }
    }

    fn count(&mut self, weight: &Weight<'_>) {
        self.done += weight.stored_bytes() as u64;
        (self.progress)(self.done, self.checkpoint.total_bytes());
    }
}

/// A matrix of the right sizes that holds nothing.
fn outline_matrix(
    buffer: &wgpu::Buffer,
    format: WeightFormat,
    rows: usize,
    columns: usize,
) -> Matrix {
    Matrix {
        format,
        parts: vec![MatrixPart {
            buffer: buffer.clone(),
            first_row: 0,
            rows,
        }],
        rows,
        columns,
    }
}

/// Quantises the rows of `part` on their way into staging memory, and puts their scales behind them.
async fn write_quantised(
    staging: &mut Staging,
    weights: &[Weight<'_>],
    part: &MatrixPart,
    matrix: &Matrix,
) -> Result<(), UploadError> {
    let (format, columns) = (matrix.format, matrix.columns);
    let (row_bytes, row_scales) = (format.row_bytes(columns), format.row_scales(columns));
    let rows_each = matrix.rows / weights.len();
    let rows_a_chunk = (QUANT_CHUNK / row_bytes).max(1);
    let mut scales = vec![f16::ZERO; part.rows * row_scales];
    let mut values = Vec::new();
    let mut done = 0;
    while done < part.rows {
        // A chunk ends with its weight, its part or its size, whichever comes first.
        let row = part.first_row + done;
        let (weight, within) = (&weights[row / rows_each], row % rows_each);
        let count = rows_a_chunk.min(part.rows - done).min(rows_each - within);
        values.resize(count * row_bytes, 0);
        let here = &mut scales[done * row_scales..][..count * row_scales];
        weight.quantise_rows(within..within + count, format, &mut values, here)?;
        write_bytes(staging, part, done * row_bytes, &values).await?;
        done += count;
    }
    let scales = grouped_scales(&scales, row_scales);
    let bytes: &[u8] = bytemuck::cast_slice(&scales);
    for (index, chunk) in bytes.chunks(Staging::CHUNK).enumerate() {
        let offset = part.rows * row_bytes + index * Staging::CHUNK;
        write_bytes(staging, part, offset, chunk).await?;
    }
    Ok(())
}

/// Copies `bytes` to `offset` of `part`.
async fn write_bytes(
    staging: &mut Staging,
    part: &MatrixPart,
    offset: usize,
    bytes: &[u8],
) -> Result<(), UploadError> {
    staging
        .write(&part.buffer, offset as u64, bytes.len(), |mut target| {
            target.slice(..).copy_from_slice(bytes);
            Ok(())
        })
        .await
}

/// Converts `rows` to f16 in blocks that stay in cache and hands each on with its byte offset.
fn write_blocks(
    weight: &Weight<'_>,
    rows: std::ops::Range<usize>,
    stride: usize,
    block: &mut Vec<u8>,
    mut put: impl FnMut(usize, &[u8]),
) -> Result<(), UploadError> {
    let row_bytes = stride * 2;
    let rows_a_block = (BLOCK / row_bytes).max(1);
    block.resize(rows_a_block * row_bytes, 0);
    for first in rows.clone().step_by(rows_a_block) {
        let here = first..rows.end.min(first + rows_a_block);
        let bytes = here.len() * row_bytes;
        weight.write_rows(here, Format::F16, &mut block[..bytes], stride)?;
        put((first - rows.start) * row_bytes, &block[..bytes]);
    }
    Ok(())
}

//! How weights reach the device: several at a time, converted on all cores.
//!
//! Where the device is the CPU, the host writes into the buffers themselves: there every copy costs twice, and what takes
//! longest, the first touch of fresh memory, happens on as many threads as there are. Elsewhere bytes go through
//! [`Staging`].

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use crate::platform::parallel::*;
use half::f16;

use crate::gpu::{
    Gpu, GpuError, Matrix, MatrixPart, StagedWrite, Staging, Vector, WeightFormat, grouped_scales,
    round_up,
};

use super::tensors::{Target, TensorSpec, matrix_shape};
use super::{Format, UploadError, Weight, WeightsError, format_of};

/// Bytes converted at a time before they are copied into mapped memory: small enough for a core's cache.
const BLOCK: usize = 256 << 10;

/// Weights that a model is to have on the device.
pub(super) enum Request<'a> {
    Matrix(MatrixRequest<'a>),
    Vector(VectorRequest<'a>),
}

impl Request<'_> {
    /// Bytes on the device.
    pub(super) fn bytes(&self) -> u64 {
        match self {
            Self::Matrix(request) => request.matrix.bytes(),
            Self::Vector(request) => request.vector.buffer.size(),
        }
    }

    /// Bytes on the device of `gpu` with weights stored as `format`; `None` where the checkpoint has them quantised
    /// already, and otherwise.
    pub(super) fn bytes_in(&self, gpu: &Gpu, format: WeightFormat) -> Option<u64> {
        match self {
            Self::Matrix(request) => request.bytes_in(gpu, format),
            Self::Vector(_) => Some(self.bytes()),
        }
    }

    /// Bytes in the checkpoint.
    pub(super) fn stored_bytes(&self) -> u64 {
        let (Self::Matrix(MatrixRequest { weights, .. })
        | Self::Vector(VectorRequest { weights, .. })) = self;
        let bytes = weights.iter().map(|weight| weight.stored_bytes() as u64);
        bytes.sum()
    }
}

/// What a vector is made of, from the stored values.
pub(super) type Change = Box<dyn Fn(Vec<f32>) -> Vec<f32> + Send + Sync>;

/// A vector on the device: tensors one after another, or what `change` makes of them.
pub(super) struct VectorRequest<'a> {
    pub label: String,
    pub weights: Vec<Weight<'a>>,
    pub change: Option<Change>,
    pub vector: Vector,
}

impl VectorRequest<'_> {
    fn fill(&self, gpu: &Gpu) -> Result<(), UploadError> {
        let mut values = Vec::new();
        for weight in &self.weights {
            values.extend(weight.to_f32()?);
        }
        if let Some(change) = &self.change {
            values = change(values);
        }
        debug_assert_eq!(values.len(), self.vector.len, "{}", self.label);
        let buffer = gpu.storage_with(&self.label, &values)?;
        self.vector.buffer.set(buffer);
        Ok(())
    }
}

/// A matrix on the device: tensors of equal shape, stacked by rows.
pub(super) struct MatrixRequest<'a> {
    /// The first of the tensors.
    spec: TensorSpec,
    weights: Vec<Weight<'a>>,
    /// Its columns are padded to a multiple of 8.
    matrix: Matrix,
}

impl<'a> MatrixRequest<'a> {
    /// The matrix of `weights`, which are as `spec`, on `target`.
    ///
    /// # Errors
    /// They are quantised already, and otherwise than is asked for.
    pub(super) fn new(
        target: &Target<'_>,
        spec: TensorSpec,
        weights: Vec<Weight<'a>>,
    ) -> Result<Self, WeightsError> {
        let [rows_each, columns] = matrix_shape(&spec.shape);
        let format = stored_format(&spec, &weights, target.quant)?;
        let rows = rows_each * weights.len();
        let columns = round_up(columns, 8);
        let matrix = target
            .gpu
            .planned_matrix(format, rows, columns, Some(&target.placeholder));
        Ok(Self {
            spec,
            weights,
            matrix,
        })
    }

    /// The matrix, its buffers still to be made.
    pub(super) fn matrix(&self) -> &Matrix {
        &self.matrix
    }

    fn bytes_in(&self, gpu: &Gpu, asked: WeightFormat) -> Option<u64> {
        let format = format_of(&self.spec, asked);
        if format != self.matrix.format && self.weights.iter().any(|it| it.quantised().is_some()) {
            return None;
        }
        let matrix = gpu.planned_matrix(format, self.matrix.rows, self.matrix.columns, None);
        Some(matrix.bytes())
    }

    /// Bytes of a row, without its scales.
    fn row_bytes(&self) -> usize {
        self.matrix.format.row_bytes(self.matrix.columns)
    }

    /// Converts `rows` of the stacked matrix into `target`, from its start; returns the scales of quantised ones,
    /// `[rows, columns / 32]`, which lie behind the rows of a whole part.
    fn write(
        &self,
        rows: Range<usize>,
        target: &mut wgpu::WriteOnly<'_, [u8]>,
    ) -> Result<Vec<f16>, UploadError> {
        let Matrix {
            format, columns, ..
        } = self.matrix;
        let rows_each = self.matrix.rows / self.weights.len();
        let row_scales = format.row_scales(columns);
        let mut scales = vec![f16::ZERO; rows.len() * row_scales];
        let mut at = 0;
        let mut row = rows.start;
        while row < rows.end {
            let weight = &self.weights[row / rows_each];
            let within = row % rows_each;
            let count = (rows.end - row).min(rows_each - within);
            let within = within..within + count;
            let mut put = |bytes: &[u8]| {
                target.slice(at..at + bytes.len()).copy_from_slice(bytes);
                at += bytes.len();
            };
            if format.is_quantised() {
                let scales = &mut scales[(row - rows.start) * row_scales..][..count * row_scales];
                quantise_blocks(weight, within, format, scales, put)?;
            } else {
                write_blocks(weight, within, columns, &mut put)?;
            }
            row += count;
        }
        Ok(scales)
    }
}

/// The format of `weights`, which are as `spec`, on the device: one for all of them, as they are one matrix there.
fn stored_format(
    spec: &TensorSpec,
    weights: &[Weight<'_>],
    asked: Option<WeightFormat>,
) -> Result<WeightFormat, WeightsError> {
    let stored: Vec<_> = weights.iter().filter_map(Weight::quantised).collect();
    let Some(first) = stored.first() else {
        return Ok(format_of(spec, asked.unwrap_or_default()));
    };
    if let Some(asked) = asked
        && asked != first.format
        && format_of(spec, asked) != first.format
    {
        return Err(WeightsError::AlreadyQuantised {
            file: first.values.file.into(),
            stored: first.format.name(),
        });
    }
    // What no kernel reads in blocks, or what is quantised in part, is expanded.
    let is_read = format_of(spec, first.format).is_quantised();
    let is_one = stored.len() == weights.len() && stored.iter().all(|it| it.format == first.format);
    Ok(if is_read && is_one {
        first.format
    } else {
        WeightFormat::F16
    })
}

/// Hands the quantised values of `rows` of `weight` on, some rows at a time, and fills in their scales.
fn quantise_blocks(
    weight: &Weight<'_>,
    rows: Range<usize>,
    format: WeightFormat,
    scales: &mut [f16],
    mut put: impl FnMut(&[u8]),
) -> Result<(), UploadError> {
    let [_, columns] = weight.matrix();
    let (row_bytes, row_scales) = (format.row_bytes(columns), format.row_scales(columns));
    let step = (BLOCK / row_bytes.max(1)).max(1);
    let mut values = Vec::new();
    for (first, scales) in rows
        .clone()
        .step_by(step)
        .zip(scales.chunks_mut(step * row_scales))
    {
        let here = first..rows.end.min(first + step);
        values.resize(here.len() * row_bytes, 0);
        weight.quantise_rows(here, format, &mut values, scales)?;
        put(&values);
    }
    Ok(())
}

/// Hands `rows` of `weight` on in f16, block by block: as they lie in the file where they are f16 there, else converted in
/// a block that stays in cache.
fn write_blocks(
    weight: &Weight<'_>,
    rows: Range<usize>,
    stride: usize,
    mut put: impl FnMut(&[u8]),
) -> Result<(), UploadError> {
    let row_bytes = stride * 2;
    let rows_a_block = (BLOCK / row_bytes.max(1)).max(1);
    let mut block = Vec::new();
    for first in rows.clone().step_by(rows_a_block) {
        let here = first..rows.end.min(first + rows_a_block);
        if let Some(stored) = weight.f16_rows(here.clone(), stride)? {
            put(stored);
            continue;
        }
        block.resize(rows_a_block * row_bytes, 0);
        let bytes = &mut block[..here.len() * row_bytes];
        weight.write_rows(here, Format::F16, bytes, stride)?;
        put(bytes);
    }
    Ok(())
}

/// How bytes come into the device's buffers.
#[derive(Debug)]
pub(super) enum UploadPath {
    /// Through a ring of mapped buffers, from which the device copies.
    Staged(Staging),
    /// The host writes where the device reads.
    Direct,
}

impl UploadPath {
    /// That of `gpu`.
    pub(super) fn new(gpu: &Gpu) -> Self {
        if gpu.shares_memory() {
            Self::Direct
        } else {
            Self::Staged(Staging::new(gpu))
        }
    }

    /// Makes the buffers of `requests` and fills them.
    ///
    /// # Errors
    /// Values that no model has, or the device failed.
    pub(super) async fn fill(
        &mut self,
        gpu: &Gpu,
        requests: &[Request<'_>],
    ) -> Result<(), UploadError> {
        let mut matrices = Vec::new();
        for request in requests {
            match request {
                Request::Vector(vector) => vector.fill(gpu)?,
                Request::Matrix(matrix) => matrices.push(matrix),
            }
        }
        match self {
            Self::Direct => write_directly(gpu, &matrices),
            Self::Staged(staging) => write_staged(gpu, staging, &matrices).await,
        }
    }

    /// Waits until the device has everything.
    ///
    /// # Errors
    /// An error of the device.
    pub(super) async fn finish(self, gpu: &Gpu) -> Result<(), GpuError> {
        match self {
            Self::Staged(staging) => staging.finish().await,
            Self::Direct => gpu.finish("uploading weights").await,
        }
    }
}

/// Makes every part mapped and writes into it, each on a thread of its own.
fn write_directly(gpu: &Gpu, requests: &[&MatrixRequest<'_>]) -> Result<(), UploadError> {
    let mut parts: Vec<(&MatrixRequest, &MatrixPart)> = requests
        .iter()
        .flat_map(|request| request.matrix.parts.iter().map(|part| (*request, part)))
        .collect();
    // The largest first: the last to end is then a small one.
    parts.sort_by_key(|(request, part)| std::cmp::Reverse(part.rows * request.row_bytes()));
    parts
        .into_par_iter()
        .with_max_len(1)
        .try_for_each(|(request, part)| write_part(gpu, request, part))
}

fn write_part(
    gpu: &Gpu,
    request: &MatrixRequest<'_>,
    part: &MatrixPart,
) -> Result<(), UploadError> {
    let buffer = gpu.mapped_storage(&request.spec.name, part.buffer.size())?;
    let mut view = match buffer.slice(..).get_mapped_range_mut() {
        Ok(view) => view,
        Err(error) => {
            gpu.check("uploading weights")?; // most often there was no room
            return Err(failed(error.to_string()).into());
        }
    };
    let rows = part.first_row..part.first_row + part.rows;
    let scales = request.write(rows, &mut view.slice(..))?;
    let Matrix {
        format, columns, ..
    } = request.matrix;
    if format.is_quantised() {
        let scales = grouped_scales(&scales, format.row_scales(columns));
        let bytes: &[u8] = bytemuck::cast_slice(&scales);
        let behind = part.rows * request.row_bytes();
        view.slice(behind..behind + bytes.len())
            .copy_from_slice(bytes);
    }
    drop(view);
    buffer.unmap();
    part.buffer.set(buffer);
    Ok(())
}

/// Writes chunks of all matrices through the ring.
async fn write_staged(
    gpu: &Gpu,
    staging: &mut Staging,
    requests: &[&MatrixRequest<'_>],
) -> Result<(), UploadError> {
    let mut writes = Vec::new();
    let mut sources = Vec::new();
    for request in requests {
        let rows_a_chunk = (Staging::CHUNK / request.row_bytes().max(1)).max(1);
        for part in &request.matrix.parts {
            let buffer = gpu.storage(&request.spec.name, part.buffer.size())?;
            for first in (0..part.rows).step_by(rows_a_chunk) {
                let count = rows_a_chunk.min(part.rows - first);
                writes.push(StagedWrite {
                    target: buffer.clone(),
                    offset: (first * request.row_bytes()) as u64,
                    bytes: count * request.row_bytes(),
                });
                let first = part.first_row + first;
                sources.push((*request, first..first + count));
            }
            part.buffer.set(buffer);
        }
    }
    let scales: Vec<Mutex<Vec<f16>>> = sources.iter().map(|_| Mutex::default()).collect();
    let fill = |index: usize, mut target: wgpu::WriteOnly<'_, [u8]>| {
        let (request, rows) = &sources[index];
        let made = request.write(rows.clone(), &mut target)?;
        *scales[index].lock().unwrap_or_else(PoisonError::into_inner) = made;
        Ok::<_, UploadError>(())
    };
    staging.write_all(&writes, fill).await?;
    let scales = scales
        .into_iter()
        .map(|scales| scales.into_inner().unwrap_or_else(PoisonError::into_inner));
    let matrices = requests.iter().map(|request| &request.matrix);
    write_scales(staging, matrices, scales).await
}

/// Puts the scales of quantised matrices behind their values; `chunks` are those of all parts, one after another.
async fn write_scales<'m>(
    staging: &mut Staging,
    matrices: impl Iterator<Item = &'m Matrix>,
    mut chunks: impl Iterator<Item = Vec<f16>>,
) -> Result<(), UploadError> {
    let mut writes = Vec::new();
    let mut pieces: Vec<Vec<u8>> = Vec::new();
    for matrix in matrices {
        let row_bytes = matrix.format.row_bytes(matrix.columns);
        let row_scales = matrix.format.row_scales(matrix.columns);
        for part in &matrix.parts {
            let mut scales = Vec::new();
            let chunk_count = part
                .rows
                .div_ceil((Staging::CHUNK / row_bytes.max(1)).max(1));
            for chunk in chunks.by_ref().take(chunk_count) {
                scales.extend(chunk);
            }
            let scales = grouped_scales(&scales, row_scales);
            let bytes: &[u8] = bytemuck::cast_slice(&scales);
            let mut offset = (part.rows * row_bytes) as u64;
            for piece in bytes.chunks(Staging::CHUNK) {
                writes.push(StagedWrite {
                    target: (*part.buffer).clone(),
                    offset,
                    bytes: piece.len(),
                });
                pieces.push(piece.to_vec());
                offset += piece.len() as u64;
            }
        }
    }
    let fill = |index: usize, mut target: wgpu::WriteOnly<'_, [u8]>| {
        target.slice(..).copy_from_slice(&pieces[index]);
        Ok::<_, UploadError>(())
    };
    staging.write_all(&writes, fill).await
}

fn failed(message: String) -> GpuError {
    GpuError::Internal {
        doing: "uploading weights".into(),
        message,
    }
}

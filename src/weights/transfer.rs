//! How matrices reach the device: several at a time, converted on all cores.
//!
//! Where the device is the CPU, the host writes into the buffers themselves: there every copy costs twice, and what takes
//! longest, the first touch of fresh memory, happens on as many threads as there are. Elsewhere bytes go through
//! [`Staging`].

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use crate::platform::parallel::*;
use half::f16;

use crate::gpu::{
    Gpu, GpuError, Matrix, MatrixPart, StagedWrite, Staging, WeightFormat, grouped_scales, round_up,
};

use super::{Format, UploadError, Weight, format_of};

/// Bytes converted at a time before they are copied into mapped memory: small enough for a core's cache.
const BLOCK: usize = 256 << 10;

/// Bytes of matrices that are made together: enough for many cores to share evenly, little enough for an executor.
const TOGETHER: u64 = 512 << 20;

/// A matrix to be made on the device: tensors of equal shape, stacked by rows.
#[derive(Debug, Clone)]
pub(super) struct Wish<'a> {
    weights: Vec<Weight<'a>>,
    format: WeightFormat,
    rows_each: usize,
    /// Columns, padded to a multiple of 8.
    stride: usize,
}

impl<'a> Wish<'a> {
    /// `weights`, stored in `format`, which must suit their columns.
    pub(super) fn new(weights: &[Weight<'a>], format: WeightFormat) -> Self {
        let [rows_each, columns] = weights.first().map_or([0, 0], Weight::matrix);
        Self {
            weights: weights.to_vec(),
            format,
            rows_each,
            stride: round_up(columns, 8),
        }
    }

    /// Rows and columns on the device.
    pub(super) fn shape(&self) -> [usize; 2] {
        [self.rows_each * self.weights.len(), self.stride]
    }

    /// Bytes on the device.
    pub(super) fn bytes(&self) -> u64 {
        let [rows, columns] = self.shape();
        let bytes = self.format.part_bytes(rows, columns);
        bytes.next_multiple_of(16)
    }

    /// Bytes on the device with weights stored as `asked`; `None` where the checkpoint has them quantised already, and
    /// otherwise.
    pub(super) fn bytes_in(&self, asked: WeightFormat) -> Option<u64> {
        let columns = self.weights.first().map_or(0, |weight| weight.matrix()[1]);
        let format = format_of(self.label(), columns, asked);
        if format != self.format && self.weights.iter().any(|it| it.quantised().is_some()) {
            return None;
        }
        let [rows, columns] = self.shape();
        Some(format.part_bytes(rows, columns).next_multiple_of(16))
    }

    /// An empty matrix for it, without parts.
    pub(super) fn matrix(&self) -> Matrix {
        let [rows, columns] = self.shape();
        Matrix {
            format: self.format,
            parts: Vec::new(),
            rows,
            columns,
        }
    }

    /// Bytes of a row, without its scales.
    fn row_bytes(&self) -> usize {
        self.format.row_bytes(self.stride)
    }

    fn label(&self) -> &str {
        self.weights.first().map_or("", Weight::name)
    }

    /// Whether it is of the same tensors.
    fn is_same(&self, other: &Self) -> bool {
        let names = |wish: &Self| -> Vec<String> {
            let names = wish.weights.iter().map(|weight| weight.name().to_owned());
            names.collect()
        };
        self.format == other.format && names(self) == names(other)
    }

    /// Row ranges of the parts that the matrix is split into.
    fn parts(&self, gpu: &Gpu) -> Vec<Range<usize>> {
        let [rows, columns] = self.shape();
        let each = gpu.rows_per_part(self.format, rows, columns);
        (0..rows)
            .step_by(each)
            .map(|first| first..rows.min(first + each))
            .collect()
    }

    /// Converts `rows` of the stacked matrix into `target`, from its start; returns the scales of quantised ones,
    /// `[rows, columns / 32]`, which lie behind the rows of a whole part.
    fn write(
        &self,
        rows: Range<usize>,
        target: &mut wgpu::WriteOnly<'_, [u8]>,
    ) -> Result<Vec<f16>, UploadError> {
        let row_scales = self.format.row_scales(self.stride);
        let mut scales = vec![f16::ZERO; rows.len() * row_scales];
        let mut at = 0;
        let mut row = rows.start;
        while row < rows.end {
            let weight = &self.weights[row / self.rows_each];
            let within = row % self.rows_each;
            let count = (rows.end - row).min(self.rows_each - within);
            let within = within..within + count;
            let mut put = |bytes: &[u8]| {
                target.slice(at..at + bytes.len()).copy_from_slice(bytes);
                at += bytes.len();
            };
            if self.format.is_quantised() {
                let scales = &mut scales[(row - rows.start) * row_scales..][..count * row_scales];
                quantise_blocks(weight, within, self.format, scales, put)?;
            } else {
                write_blocks(weight, within, self.stride, &mut put)?;
            }
            row += count;
        }
        Ok(scales)
    }
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

/// Makes matrices on a device.
#[derive(Debug)]
pub(super) struct Transfer<'a> {
    way: Way,
    /// What is expected to be wished for next, in order.
    coming: VecDeque<Wish<'a>>,
    /// What has been made ahead of its wish.
    ready: VecDeque<(Wish<'a>, Matrix)>,
}

#[derive(Debug)]
enum Way {
    Staged(Staging),
    /// The host writes where the device reads.
    Direct,
}

impl<'a> Transfer<'a> {
    /// Expects the wishes of `coming`.
    pub(super) fn new(gpu: &Gpu, coming: Vec<Wish<'a>>) -> Self {
        Self {
            way: if gpu.shares_memory() {
                Way::Direct
            } else {
                Way::Staged(Staging::new(gpu))
            },
            coming: coming.into(),
            ready: VecDeque::new(),
        }
    }

    /// The matrix of `wish`. If it is one of those expected, the next ones are made with it.
    ///
    /// # Errors
    /// Values that no model has, or the device failed.
    pub(super) async fn matrix(
        &mut self,
        gpu: &Gpu,
        wish: Wish<'a>,
    ) -> Result<Matrix, UploadError> {
        if self.ready.is_empty() {
            let wishes = self.next_wishes(wish.clone());
            let matrices = self.way.make(gpu, &wishes).await?;
            self.ready = wishes.into_iter().zip(matrices).collect();
        }
        match self.ready.pop_front() {
            Some((made, matrix)) if made.is_same(&wish) => Ok(matrix),
            _ => {
                // Another order than was announced: from here on one by one.
                self.coming.clear();
                self.ready.clear();
                let mut matrices = self.way.make(gpu, &[wish]).await?;
                matrices.pop().ok_or_else(nothing_made)
            }
        }
    }

    /// `wish` and what follows it, if that was announced.
    fn next_wishes(&mut self, wish: Wish<'a>) -> Vec<Wish<'a>> {
        let mut wishes = vec![wish];
        match self.coming.pop_front() {
            Some(first) if first.is_same(&wishes[0]) => {}
            _ => self.coming.clear(),
        }
        let mut bytes = wishes[0].bytes();
        while bytes < TOGETHER
            && let Some(next) = self.coming.pop_front()
        {
            bytes += next.bytes();
            wishes.push(next);
        }
        wishes
    }

    /// Waits until the device has everything.
    ///
    /// # Errors
    /// An error of the device.
    pub(super) async fn finish(self, gpu: &Gpu) -> Result<(), GpuError> {
        match self.way {
            Way::Staged(staging) => staging.finish().await,
            Way::Direct => gpu.finish("uploading weights").await,
        }
    }
}

impl Way {
    async fn make(&mut self, gpu: &Gpu, wishes: &[Wish<'_>]) -> Result<Vec<Matrix>, UploadError> {
        match self {
            Self::Direct => write_directly(gpu, wishes),
            Self::Staged(staging) => write_staged(gpu, staging, wishes).await,
        }
    }
}

/// Makes every part mapped and writes into it, each on a thread of its own.
fn write_directly(gpu: &Gpu, wishes: &[Wish<'_>]) -> Result<Vec<Matrix>, UploadError> {
    let mut parts: Vec<(usize, Range<usize>)> = wishes
        .iter()
        .enumerate()
        .flat_map(|(index, wish)| wish.parts(gpu).into_iter().map(move |rows| (index, rows)))
        .collect();
    // The largest first: the last to end is then a small one.
    parts.sort_by_key(|(index, rows)| std::cmp::Reverse(rows.len() * wishes[*index].row_bytes()));
    let made = parts
        .into_par_iter()
        .with_max_len(1)
        .map(|(index, rows)| Ok((index, write_part(gpu, &wishes[index], rows)?)))
        .collect::<Result<Vec<_>, UploadError>>()?;
    let mut matrices: Vec<Matrix> = wishes.iter().map(Wish::matrix).collect();
    for (index, part) in made {
        matrices[index].parts.push(part);
    }
    for matrix in &mut matrices {
        matrix.parts.sort_by_key(|part| part.first_row);
    }
    Ok(matrices)
}

fn write_part(gpu: &Gpu, wish: &Wish<'_>, rows: Range<usize>) -> Result<MatrixPart, UploadError> {
    let bytes = wish.format.part_bytes(rows.len(), wish.stride);
    let buffer = gpu.mapped_storage(wish.label(), bytes)?;
    let mut view = match buffer.slice(..).get_mapped_range_mut() {
        Ok(view) => view,
        Err(error) => {
            gpu.check("uploading weights")?; // most often there was no room
            return Err(failed(error.to_string()).into());
        }
    };
    let scales = wish.write(rows.clone(), &mut view.slice(..))?;
    if wish.format.is_quantised() {
        let scales = grouped_scales(&scales, wish.format.row_scales(wish.stride));
        let bytes: &[u8] = bytemuck::cast_slice(&scales);
        let behind = rows.len() * wish.row_bytes();
        view.slice(behind..behind + bytes.len())
            .copy_from_slice(bytes);
    }
    drop(view);
    buffer.unmap();
    Ok(MatrixPart {
        buffer,
        first_row: rows.start,
        rows: rows.len(),
    })
}

/// Writes chunks of all matrices through the ring.
async fn write_staged(
    gpu: &Gpu,
    staging: &mut Staging,
    wishes: &[Wish<'_>],
) -> Result<Vec<Matrix>, UploadError> {
    let mut matrices = Vec::with_capacity(wishes.len());
    let mut writes = Vec::new();
    let mut sources = Vec::new();
    for wish in wishes {
        let [rows, columns] = wish.shape();
        let matrix = gpu.weight_matrix(wish.label(), wish.format, rows, columns)?;
        let rows_a_chunk = (Staging::CHUNK / wish.row_bytes().max(1)).max(1);
        for part in &matrix.parts {
            for first in (0..part.rows).step_by(rows_a_chunk) {
                let count = rows_a_chunk.min(part.rows - first);
                writes.push(StagedWrite {
                    target: part.buffer.clone(),
                    offset: (first * wish.row_bytes()) as u64,
                    bytes: count * wish.row_bytes(),
                });
                let first = part.first_row + first;
                sources.push((wish, first..first + count));
            }
        }
        matrices.push(matrix);
    }
    let scales: Vec<Mutex<Vec<f16>>> = sources.iter().map(|_| Mutex::default()).collect();
    let fill = |index: usize, mut target: wgpu::WriteOnly<'_, [u8]>| {
        let (wish, rows) = &sources[index];
        let made = wish.write(rows.clone(), &mut target)?;
        *scales[index].lock().unwrap_or_else(PoisonError::into_inner) = made;
        Ok::<_, UploadError>(())
    };
    staging.write_all(&writes, fill).await?;
    let scales = scales
        .into_iter()
        .map(|scales| scales.into_inner().unwrap_or_else(PoisonError::into_inner));
    write_scales(staging, &matrices, scales).await?;
    Ok(matrices)
}

/// Puts the scales of quantised matrices behind their values; `chunks` are those of all parts, one after another.
async fn write_scales(
    staging: &mut Staging,
    matrices: &[Matrix],
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
                    target: part.buffer.clone(),
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

fn nothing_made() -> UploadError {
    failed("a matrix was not made".into()).into()
}

fn failed(message: String) -> GpuError {
    GpuError::Internal {
        doing: "uploading weights".into(),
        message,
    }
}

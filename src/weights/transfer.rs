//! How matrices reach the device: several at a time, converted on all cores.
//!
//! Where the device is the CPU, the host writes into the buffers themselves: there every copy costs twice, and what takes
//! longest, the first touch of fresh memory, happens on as many threads as there are. Elsewhere bytes go through
//! [`Staging`].

use std::collections::VecDeque;
use std::ops::Range;

use rayon::prelude::*;

use crate::gpu::{Gpu, GpuError, Matrix, MatrixPart, StagedWrite, Staging, WeightFormat, round_up};

use super::{Format, UploadError, Weight};

/// Bytes converted at a time before they are copied into mapped memory: small enough for a core's cache.
const BLOCK: usize = 256 << 10;

/// Bytes of matrices that are made together: enough for many cores to share evenly, little enough for an executor.
const TOGETHER: u64 = 512 << 20;

/// A matrix to be made on the device: tensors of equal shape, stacked by rows.
#[derive(Debug, Clone)]
pub(super) struct Wish<'a> {
    weights: Vec<Weight<'a>>,
    rows_each: usize,
    /// Columns, padded to a multiple of 8.
    stride: usize,
}

impl<'a> Wish<'a> {
    pub(super) fn new(weights: &[Weight<'a>]) -> Self {
        let [rows_each, columns] = weights.first().map_or([0, 0], Weight::matrix);
        Self {
            weights: weights.to_vec(),
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
        let [rows, _] = self.shape();
        (rows * self.row_bytes()).next_multiple_of(16) as u64
    }

    /// Bytes on the device if the linear layers were stored in `bits` a value, with a scale of two bytes to 32 values;
    /// embeddings and the Q-Former in 8.
    pub(super) fn quantised_bytes(&self, bits: u64) -> u64 {
        let [rows, columns] = self.shape();
        let name = self.label();
        let is_layer = |parts: [&str; 2]| parts.iter().all(|part| name.contains(part));
        let bits = if name.contains("embed_positions") || columns % 32 != 0 {
            return self.bytes();
        } else if is_layer(["vision_model.", ".layers."])
            || is_layer(["language_model.", ".layers."])
            || is_layer(["language_model.", ".block."])
        {
            bits
        } else if is_layer(["qformer.", ".layer."]) || name.starts_with("language_model.") {
            8
        } else {
            return self.bytes();
        };
        let blocks = (rows * columns / 32) as u64;
        blocks * (32 * bits / 8 + 2)
    }

    fn row_bytes(&self) -> usize {
        self.stride * 2
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
        names(self) == names(other)
    }

    /// Row ranges of the parts that the matrix is split into.
    fn parts(&self, gpu: &Gpu) -> Vec<Range<usize>> {
        let [rows, columns] = self.shape();
        let each = gpu.rows_per_part(WeightFormat::F16, rows, columns);
        (0..rows)
            .step_by(each)
            .map(|first| first..rows.min(first + each))
            .collect()
    }

    /// Converts `rows` of the stacked matrix into `target`, from its start.
    fn write(
        &self,
        rows: Range<usize>,
        mut target: wgpu::WriteOnly<'_, [u8]>,
    ) -> Result<(), UploadError> {
        let mut at = 0;
        let mut row = rows.start;
        while row < rows.end {
            let weight = &self.weights[row / self.rows_each];
            let within = row % self.rows_each;
            let count = (rows.end - row).min(self.rows_each - within);
            write_blocks(weight, within..within + count, self.stride, |bytes| {
                target.slice(at..at + bytes.len()).copy_from_slice(bytes);
                at += bytes.len();
            })?;
            row += count;
        }
        Ok(())
    }
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
    let mut matrices: Vec<Matrix> = wishes
        .iter()
        .map(|wish| {
            let [rows, columns] = wish.shape();
            Matrix {
                format: WeightFormat::F16,
                parts: Vec::new(),
                rows,
                columns,
            }
        })
        .collect();
    for (index, part) in made {
        matrices[index].parts.push(part);
    }
    for matrix in &mut matrices {
        matrix.parts.sort_by_key(|part| part.first_row);
    }
    Ok(matrices)
}

fn write_part(gpu: &Gpu, wish: &Wish<'_>, rows: Range<usize>) -> Result<MatrixPart, UploadError> {
    let bytes = rows.len() * wish.row_bytes();
    let buffer = gpu.mapped_storage(wish.label(), bytes as u64)?;
    let mut view = match buffer.slice(..).get_mapped_range_mut() {
        Ok(view) => view,
        Err(error) => {
            gpu.check("uploading weights")?; // most often there was no room
            return Err(failed(error.to_string()).into());
        }
    };
    wish.write(rows.clone(), view.slice(..))?;
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
        let matrix = gpu.matrix(wish.label(), rows, columns)?;
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
    let fill = |index: usize, target: wgpu::WriteOnly<'_, [u8]>| {
        let (wish, rows) = &sources[index];
        wish.write(rows.clone(), target)
    };
    staging.write_all(&writes, fill).await?;
    Ok(matrices)
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

//! A tensor that the model asked for: where its values come from, and their conversion to what the
//! device reads.

use std::ops::Range;

use half::f16;

use crate::gpu::WeightFormat;
use crate::platform::parallel::*;

use super::dtype::{Format, SourceFormat, check_f16, convert_elements};
use super::error::WeightsError;
use super::quant::quantise;
use super::quantised::QuantisedTensor;
use super::spec::matrix_shape;
use super::view::TensorView;

/// Values put in order, or quantised, at a time: little enough for a core's cache.
const STEP: usize = 1 << 14;

/// A tensor the model asked for, under its canonical name, in the shape asked for. It borrows the
/// mapping.
#[derive(Clone, Debug)]
pub struct Weight<'a> {
    name: String,
    shape: Vec<usize>,
    parts: Vec<Part<'a>>,
}

/// Consecutive elements of a [`Weight`].
#[derive(Clone, Debug)]
pub enum Part<'a> {
    /// A stored tensor of floats.
    Stored {
        /// Where it lies.
        view: TensorView<'a>,
        /// Its element type.
        format: SourceFormat,
    },
    /// So many zeros, stored nowhere: the keys' part of a bias.
    Zeros(usize),
    /// Blocks of small integers.
    Quantised(QuantisedTensor<'a>),
}

impl Part<'_> {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        match self {
            Part::Stored { view, .. } => view.elements(),
            Part::Zeros(count) => *count,
            Part::Quantised(tensor) => tensor.elements(),
        }
    }
}

impl<'a> Weight<'a> {
    /// The tensor `name` of `shape`, made of `parts`.
    pub(super) fn new(name: &str, shape: &[usize], parts: Vec<Part<'a>>) -> Self {
        Self {
            name: name.into(),
            shape: shape.to_vec(),
            parts,
        }
    }

    /// Canonical name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Dimensions, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.parts.iter().map(Part::elements).sum()
    }

    /// Bytes as stored on disk.
    pub fn stored_bytes(&self) -> usize {
        self.views().map(|view| view.stored_bytes()).sum()
    }

    /// What it is made of, one after the other.
    pub fn parts(&self) -> &[Part<'a>] {
        &self.parts
    }

    /// The stored tensors it is made of: one, or two where q and v biases are stored apart.
    pub fn views(&self) -> impl Iterator<Item = TensorView<'a>> {
        self.parts
            .iter()
            .flat_map(|part| match part {
                Part::Stored { view, .. } => [Some(*view), None],
                Part::Zeros(_) => [None, None],
                Part::Quantised(tensor) => [Some(tensor.values), Some(tensor.scales)],
            })
            .flatten()
    }

    /// The stored blocks, if that is what the tensor is stored as.
    pub fn quantised(&self) -> Option<QuantisedTensor<'a>> {
        match self.parts.as_slice() {
            [Part::Quantised(tensor)] => Some(*tensor),
            _ => None,
        }
    }

    /// The tensor as a matrix `[rows, columns]`: a vector is one row, a convolution kernel has a
    /// row an output channel.
    pub fn matrix(&self) -> [usize; 2] {
        matrix_shape(&self.shape)
    }

    /// Converts `rows` of [`Weight::matrix`] into `target`, each row `stride` elements after the
    /// one before, the gap after each row filled with zeros (so that a kernel may read rows in
    /// whole blocks). `target` must hold `rows.len() * stride` elements of `format`; bytes beyond
    /// are left alone.
    ///
    /// # Errors
    /// A value that is NaN, infinite or beyond the format's range (named, with tensor and file):
    /// such a model would only answer nonsense. Rows or a target that do not fit.
    pub fn write_rows(
        &self,
        rows: Range<usize>,
        format: Format,
        target: &mut [u8],
        stride: usize,
    ) -> Result<(), WeightsError> {
        let [row_count, columns] = self.matrix();
        let usage = |problem: String| WeightsError::Usage {
            tensor: self.name.clone(),
            problem,
        };
        if rows.start > rows.end || rows.end > row_count || stride < columns {
            return Err(usage(format!(
                "rows {rows:?} at a stride of {stride} asked of [{row_count}, {columns}]"
            )));
        }
        let needed = rows
            .len()
            .checked_mul(stride)
            .and_then(|elements| elements.checked_mul(format.size()));
        let length = target.len();
        let Some(target) = needed.and_then(|needed| target.get_mut(..needed)) else {
            return Err(usage(format!(
                "rows {rows:?} at a stride of {stride} do not fit {length} bytes"
            )));
        };
        if stride == columns {
            return self.write_elements(rows.start * columns..rows.end * columns, format, target);
        }
        for (row, target) in rows.zip(target.chunks_exact_mut(stride * format.size())) {
            let (values, padding) = target.split_at_mut(columns * format.size());
            self.write_elements(row * columns..(row + 1) * columns, format, values)?;
            padding.fill(0);
        }
        Ok(())
    }

    /// `rows` of [`Weight::matrix`] as they are stored, where that is what [`Weight::write_rows`]
    /// would make of them in f16 at this `stride`: no conversion, no padding. The values are
    /// checked all the same.
    ///
    /// # Errors
    /// A value that is NaN or infinite.
    pub(super) fn f16_rows(
        &self,
        rows: Range<usize>,
        stride: usize,
    ) -> Result<Option<&'a [u8]>, WeightsError> {
        let [_, columns] = self.matrix();
        let [Part::Stored { view, format }] = self.parts.as_slice() else {
            return Ok(None);
        };
        let row_bytes = columns * 2;
        let stored = match format {
            SourceFormat::F16 if stride == columns && view.strides.is_none() => {
                view.bytes.get(rows.start * row_bytes..rows.end * row_bytes)
            }
            _ => None,
        };
        let Some(stored) = stored else {
            return Ok(None);
        };
        match check_f16(stored) {
            Ok(()) => Ok(Some(stored)),
            Err(bad) => Err(view.bad_value(rows.start * columns, bad)),
        }
    }

    /// The whole tensor as f32 values on the heap: for small ones (biases, norms) and tests, not
    /// for matrices.
    ///
    /// # Errors
    /// A value that is NaN or infinite.
    pub fn to_f32(&self) -> Result<Vec<f32>, WeightsError> {
        let mut values = vec![0f32; self.elements()];
        self.write_elements(
            0..values.len(),
            Format::F32,
            bytemuck::cast_slice_mut(&mut values),
        )?;
        // `write_elements` writes little-endian bytes; on little-endian hosts this changes nothing.
        values
            .iter_mut()
            .for_each(|value| *value = f32::from_bits(u32::from_le(value.to_bits())));
        Ok(values)
    }

    /// `rows` of [`Weight::matrix`] quantised to `format`: their values, `rows.len() * columns *
    /// bits / 8` bytes, and their scales, a 32nd of as many. They are those of the f16 values,
    /// whatever type is stored; what is stored in `format` is copied. On all cores.
    ///
    /// # Errors
    /// As [`Weight::write_rows`].
    pub fn quantise_rows(
        &self,
        rows: Range<usize>,
        format: WeightFormat,
        values: &mut [u8],
        scales: &mut [f16],
    ) -> Result<(), WeightsError> {
        let [_, columns] = self.matrix();
        let (row_bytes, row_scales) = (format.row_bytes(columns), format.row_scales(columns));
        if let Some(stored) = self.quantised().filter(|stored| stored.format == format) {
            let stored_values = &stored.values.bytes[rows.start * row_bytes..rows.end * row_bytes];
            values.copy_from_slice(stored_values);
            scales.copy_from_slice(&stored.scales_of(rows, row_scales)?);
            return Ok(());
        }
        let step = (STEP / columns.max(1)).max(1);
        values
            .par_chunks_mut((step * row_bytes).max(1))
            .zip(scales.par_chunks_mut((step * row_scales).max(1)))
            .enumerate()
            .try_for_each(|(index, (values, scales))| {
                let first = rows.start + index * step;
                let here = first..rows.end.min(first + step);
                let mut bytes = vec![0; here.len() * columns * 2];
                self.write_rows(here, Format::F16, &mut bytes, columns)?;
                let halves: Vec<f16> = bytes
                    .chunks_exact(2)
                    .map(|b| f16::from_le_bytes([b[0], b[1]]))
                    .collect();
                quantise(format, &halves, values, scales);
                Ok(())
            })
    }

    /// Converts the elements of a flat range, part by part, into `target`, which they fill.
    ///
    /// # Errors
    /// As [`Weight::write_rows`].
    pub(crate) fn write_elements(
        &self,
        range: Range<usize>,
        format: Format,
        target: &mut [u8],
    ) -> Result<(), WeightsError> {
        let mut rest = target;
        let mut part_start = 0;
        for part in &self.parts {
            let part_end = part_start + part.elements();
            let from = range.start.max(part_start);
            let to = range.end.min(part_end);
            if from < to {
                let (out, after) = rest.split_at_mut((to - from) * format.size());
                write_part(part, from - part_start..to - part_start, format, out)?;
                rest = after;
            }
            part_start = part_end;
        }
        Ok(())
    }
}

fn write_part(
    part: &Part,
    range: Range<usize>,
    format: Format,
    out: &mut [u8],
) -> Result<(), WeightsError> {
    let (view, source_format) = match part {
        Part::Stored { view, format } => (view, format),
        Part::Zeros(_) => {
            out.fill(0);
            return Ok(());
        }
        Part::Quantised(tensor) => return tensor.write_elements(range, format, out),
    };
    if let Some(source) = view.row_major(range.clone()) {
        return convert_elements(*source_format, source, format, out)
            .map_err(|bad| view.bad_value(range.start, bad));
    }
    let mut block = vec![0; STEP.min(range.len()) * source_format.size()];
    for (first, out) in range
        .clone()
        .step_by(STEP)
        .zip(out.chunks_mut(STEP * format.size()))
    {
        let source = &mut block[..out.len() / format.size() * source_format.size()];
        view.copy(first, source);
        convert_elements(*source_format, source, format, out)
            .map_err(|bad| view.bad_value(first, bad))?;
    }
    Ok(())
}

/// The values of `view`, which must be floats in `shape`.
pub(super) fn stored<'a>(view: TensorView<'a>, shape: &[usize]) -> Result<Part<'a>, WeightsError> {
    if view.shape != shape {
        return Err(view.bad_shape(shape));
    }
    match SourceFormat::of(view.dtype) {
        Some(format) => Ok(Part::Stored { view, format }),
        None => Err(view.bad_type()),
    }
}

//! Matrices that a checkpoint stores as blocks of small integers, as `convert` writes them, and quantising
//! those that it stores as floats.

use std::ops::Range;

use crate::platform::parallel::*;
use half::f16;
use safetensors::Dtype;

use crate::gpu::{QUANT_BLOCK, WeightFormat};

use super::checkpoint::{Checkpoint, TensorView};
use super::dtype::{Format, SourceFormat, convert_elements};
use super::error::WeightsError;
use super::names::Weight;
use super::quant::{dequantise, quantise};

/// The scales of the matrix `NAME` are the tensor `NAME.scales`.
pub const SCALES: &str = ".scales";

/// A matrix stored as blocks of small integers: the tensor `NAME` and, beside it, `NAME.scales`.
#[derive(Clone, Copy, Debug)]
pub struct QuantisedTensor<'a> {
    /// q8 or q4.
    pub format: WeightFormat,
    /// `[rows, columns · bits / 8]` bytes, as they go to the device.
    pub values: TensorView<'a>,
    /// `[rows, columns / 32]` f16.
    pub scales: TensorView<'a>,
}

impl QuantisedTensor<'_> {
    /// The scales of `rows`, of which each has `blocks`.
    ///
    /// # Errors
    /// A scale that is NaN or infinite, named.
    pub fn scales_of(&self, rows: Range<usize>, blocks: usize) -> Result<Vec<f16>, WeightsError> {
        let first = rows.start * blocks;
        let bytes = &self.scales.bytes[first * 2..rows.end * blocks * 2];
        let scales: Vec<f16> = bytes
            .chunks_exact(2)
            .map(|b| f16::from_le_bytes([b[0], b[1]]))
            .collect();
        match scales.iter().position(|scale| !scale.is_finite()) {
            None => Ok(scales),
            Some(bad) => Err(WeightsError::BadValue {
                file: self.scales.file.into(),
                tensor: self.scales.name.into(),
                index: first + bad,
                value: scales[bad].to_f64(),
                problem: "not a finite number",
            }),
        }
    }

    /// Number of values.
    pub(super) fn elements(&self) -> usize {
        self.values.bytes.len() * 8 / self.format.bits()
    }

    /// Converts the elements of a flat range into `out`, which they fill.
    pub(super) fn write_elements(
        &self,
        range: Range<usize>,
        format: Format,
        out: &mut [u8],
    ) -> Result<(), WeightsError> {
        let blocks = range.start / QUANT_BLOCK..range.end.div_ceil(QUANT_BLOCK);
        let block_bytes = self.format.row_bytes(QUANT_BLOCK);
        let scales = self.scales_of(blocks.clone(), 1)?;
        let mut values = vec![0.0; blocks.len() * QUANT_BLOCK];
        let bytes = &self.values.bytes[blocks.start * block_bytes..blocks.end * block_bytes];
        dequantise(self.format, bytes, &scales, &mut values);
        let first = range.start - blocks.start * QUANT_BLOCK;
        let values = &values[first..first + range.len()];
        let bytes: Vec<u8> = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        convert_elements(SourceFormat::F32, &bytes, format, out).map_err(|bad| {
            WeightsError::BadValue {
                file: self.values.file.into(),
                tensor: self.values.name.into(),
                index: range.start + bad.index,
                value: bad.value,
                problem: "beyond the range it is converted to",
            }
        })
    }
}

impl Weight<'_> {
    /// `rows` of [`Weight::matrix`] quantised to `format`: their values, `rows.len() * columns * bits / 8` bytes, and
    /// their scales, a 32nd of as many. They are those of the f16 values, whatever type is stored; what is stored in
    /// `format` is copied. On all cores.
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
        /// Values converted and quantised at a time: little enough for a core's cache.
        const STEP: usize = 1 << 14;
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
}

impl Checkpoint {
    /// The formats that this checkpoint's matrices have on a device where they are stored as `asked`.
    pub fn formats(&self, asked: WeightFormat) -> Vec<WeightFormat> {
        let has = |dtype| self.tensors().any(|tensor| tensor.dtype == dtype);
        let q4 = asked == WeightFormat::Q4 || has(Dtype::U8);
        let q8 = asked.is_quantised() || has(Dtype::I8);
        let found = [
            (true, WeightFormat::F16),
            (q8, WeightFormat::Q8),
            (q4, WeightFormat::Q4),
        ];
        found
            .into_iter()
            .filter_map(|(used, format)| used.then_some(format))
            .collect()
    }

    /// The matrix of `shape` whose values are `values`; its scales lie under a name made of theirs.
    pub(super) fn quantised_tensor<'a>(
        &'a self,
        values: TensorView<'a>,
        format: WeightFormat,
        shape: &[usize],
    ) -> Result<QuantisedTensor<'a>, WeightsError> {
        let bad = |problem: String| WeightsError::Quantised {
            file: values.file.into(),
            tensor: values.name.into(),
            found: format!("{:?}", values.dtype),
            problem,
        };
        let &[rows, columns] = shape else {
            return Err(bad(format!(
                "config.json asks for a tensor of shape {shape:?}"
            )));
        };
        if !columns.is_multiple_of(QUANT_BLOCK) {
            return Err(bad(format!(
                "its rows of {columns} values are no blocks of 32"
            )));
        }
        let stored_columns = format.row_bytes(columns);
        if values.shape != [rows, stored_columns] {
            return Err(WeightsError::Shape {
                file: values.file.into(),
                tensor: values.name.into(),
                expected: vec![rows, stored_columns],
                found: values.shape.to_vec(),
            });
        }
        let name = format!("{}{SCALES}", values.name);
        let scales = self.get(&name).ok_or_else(|| {
            bad(format!(
                "there is no {name:?}: other programs' quantised weights are not read"
            ))
        })?;
        if scales.dtype != Dtype::F16 || scales.shape != [rows, format.row_scales(columns)] {
            return Err(bad(format!(
                "{name:?} is {:?} {:?} where F16 {:?} belongs",
                scales.dtype,
                scales.shape,
                [rows, format.row_scales(columns)]
            )));
        }
        Ok(QuantisedTensor {
            format,
            values,
            scales,
        })
    }
}

/// The format of a matrix whose values are stored as `dtype`; `None` for floats.
pub(super) fn quantised_format(dtype: Dtype) -> Option<WeightFormat> {
    match dtype {
        Dtype::I8 => Some(WeightFormat::Q8),
        Dtype::U8 => Some(WeightFormat::Q4),
        _ => None,
    }
}

//! Matrices that a checkpoint stores as blocks of small integers, as `convert` writes them.

use std::ops::Range;

use half::f16;
use safetensors::Dtype;

use crate::gpu::{QUANT_BLOCK, WeightFormat};

use super::dtype::{BadElement, Format, SourceFormat, convert_elements};
use super::error::WeightsError;
use super::quant::dequantise;
use super::view::TensorView;

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

impl<'a> QuantisedTensor<'a> {
    /// The matrix of `shape` whose values are `values`, in `format`.
    ///
    /// # Errors
    /// Shapes or scales that do not fit.
    pub(super) fn new(
        format: WeightFormat,
        values: TensorView<'a>,
        scales: Option<TensorView<'a>>,
        shape: &[usize],
    ) -> Result<Self, WeightsError> {
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
        let stored = [rows, format.row_bytes(columns)];
        if values.shape != stored {
            return Err(values.bad_shape(&stored));
        }
        let name = format!("{}{SCALES}", values.name);
        let scales = scales.filter(|scales| scales.strides.is_none() && values.strides.is_none());
        let scales = scales.ok_or_else(|| {
            bad(format!(
                "there is no {name:?}: other programs' quantised weights are not read"
            ))
        })?;
        let expected = [rows, format.row_scales(columns)];
        if scales.dtype != Dtype::F16 || scales.shape != expected {
            return Err(bad(format!(
                "{name:?} is {:?} {:?} where F16 {expected:?} belongs",
                scales.dtype, scales.shape
            )));
        }
        Ok(Self {
            format,
            values,
            scales,
        })
    }

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
            Some(index) => {
                let value = scales[index].to_f64();
                Err(self.scales.bad_value(first, BadElement { index, value }))
            }
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
        convert_elements(SourceFormat::F32, &bytes, format, out)
            .map_err(|bad| self.values.bad_value(range.start, bad))
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

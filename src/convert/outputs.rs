//! The tensors of the result: what each is made of, and how it is stored.

use safetensors::Dtype;

use crate::gpu::WeightFormat;
use crate::weights::{Format, SCALES, TensorSpec, Weight, format_of};

use super::error::ConvertError;

/// A tensor of the result.
pub struct Output<'t> {
    /// Name in the result.
    pub name: String,
    /// Element type in the result.
    pub dtype: Dtype,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// The model's tensor that it is, or is half of.
    pub weight: &'t Weight<'t>,
    /// What of it is stored.
    pub encoding: Encoding,
}

/// What of a tensor is stored.
#[derive(Clone, Copy)]
pub enum Encoding {
    /// Its elements.
    Plain,
    /// Their values as [`crate::weights::quantise`] has them.
    Values(WeightFormat),
    /// The scales of these values.
    Scales(WeightFormat),
}

impl<'t> Output<'t> {
    /// Bytes in the result.
    pub fn bytes(&self) -> u64 {
        let elements: u64 = self.shape.iter().map(|&size| size as u64).product();
        elements * (self.dtype.bitsize() / 8) as u64
    }

    /// The tensor `spec`, stored as `weight`, in `format`; without one as it is stored, or f32
    /// where its parts differ.
    fn plain(
        spec: &TensorSpec,
        weight: &'t Weight<'t>,
        format: Option<Format>,
    ) -> Result<Self, ConvertError> {
        if let Some(stored) = weight.quantised() {
            return Err(stored.values.bad_type().into());
        }
        let mut dtypes = weight.views().map(|view| view.dtype);
        let dtype = match (format, dtypes.next()) {
            (Some(Format::F16), _) => Dtype::F16,
            (None, Some(first)) if dtypes.all(|dtype| dtype == first) => first,
            _ => Dtype::F32,
        };
        Ok(Self {
            name: spec.name.clone(),
            dtype,
            shape: spec.shape.clone(),
            weight,
            encoding: Encoding::Plain,
        })
    }

    /// The tensor as two, values and scales in blocks of small integers, where it is a matrix that
    /// `asked` is for.
    fn in_blocks(self, spec: &TensorSpec, asked: WeightFormat) -> Vec<Self> {
        let format = format_of(spec, asked);
        let dtype = match format {
            WeightFormat::F16 => return vec![self],
            WeightFormat::Q8 => Dtype::I8,
            WeightFormat::Q4 => Dtype::U8,
        };
        let [rows, columns] = self.weight.matrix();
        vec![
            Self {
                name: format!("{}{SCALES}", self.name),
                dtype: Dtype::F16,
                shape: vec![rows, format.row_scales(columns)],
                encoding: Encoding::Scales(format),
                ..self
            },
            Self {
                name: self.name,
                dtype,
                shape: vec![rows, format.row_bytes(columns)],
                encoding: Encoding::Values(format),
                ..self
            },
        ]
    }
}

/// The result's tensors in `format` (`None`: each as it is stored), before any is quantised.
///
/// # Errors
/// A tensor that is stored quantised.
pub fn outputs<'t>(
    tensors: &'t [(TensorSpec, Weight<'t>)],
    format: Option<Format>,
) -> Result<Vec<Output<'t>>, ConvertError> {
    let tensors = tensors.iter();
    tensors
        .map(|(spec, weight)| Output::plain(spec, weight, format))
        .collect()
}

/// `outputs`, which are those of `tensors`, with the matrices that `asked` is for in blocks of
/// small integers.
pub fn quantised<'t>(
    outputs: Vec<Output<'t>>,
    tensors: &[(TensorSpec, Weight<'_>)],
    asked: WeightFormat,
) -> Vec<Output<'t>> {
    let outputs = outputs.into_iter().zip(tensors);
    outputs
        .flat_map(|(output, (spec, _))| output.in_blocks(spec, asked))
        .collect()
}

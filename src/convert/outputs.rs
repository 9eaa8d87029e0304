//! The tensors of the result: what each is made of, and how it is stored.

use safetensors::Dtype;

use crate::gpu::WeightFormat;
use crate::weights::{Format, Part, SCALES, TensorSpec, TensorView, Weight, format_of};

use super::error::ConvertError;

/// A tensor of the result.
#[derive(Debug)]
pub struct Output<'a> {
    /// Name in the result.
    pub name: String,
    /// Element type in the result.
    pub dtype: Dtype,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// What it is made of, one after the other.
    pub pieces: Vec<Piece<'a>>,
}

/// Consecutive elements of an [`Output`].
#[derive(Clone, Copy, Debug)]
pub enum Piece<'a> {
    /// A stored tensor.
    Stored(TensorView<'a>),
    /// So many zeros.
    Zeros(usize),
    /// A matrix's values as [`crate::weights::quantise`] has them.
    QuantisedValues(TensorView<'a>, WeightFormat),
    /// Their scales.
    Scales(TensorView<'a>, WeightFormat),
}

impl<'a> Output<'a> {
    /// Bytes in the result.
    pub fn bytes(&self) -> u64 {
        let elements: u64 = self.shape.iter().map(|&size| size as u64).product();
        elements * (self.dtype.bitsize() / 8) as u64
    }

    /// The tensor `spec`, stored as `weight`, in `format`; without one as it is stored, or f32
    /// where its parts differ.
    fn new(
        spec: &TensorSpec,
        weight: &Weight<'a>,
        format: Option<Format>,
    ) -> Result<Self, ConvertError> {
        let piece = |part: &Part<'a>| match part {
            Part::Stored { view, .. } => Ok(Piece::Stored(*view)),
            Part::Zeros(count) => Ok(Piece::Zeros(*count)),
            Part::Quantised(tensor) => Err(tensor.values.bad_type()),
        };
        let pieces: Vec<Piece> = weight.parts().iter().map(piece).collect::<Result<_, _>>()?;
        let mut dtypes = weight.views().map(|view| view.dtype);
        let first = dtypes.next();
        let dtype = match (format, first) {
            (Some(Format::F16), _) => Dtype::F16,
            (None, Some(first)) if dtypes.all(|dtype| dtype == first) => first,
            _ => Dtype::F32,
        };
        Ok(Self {
            name: spec.name.clone(),
            dtype,
            shape: spec.shape.clone(),
            pieces,
        })
    }

    /// The tensor as two, values and scales in blocks of small integers, where it is a matrix that
    /// `asked` is for.
    fn in_blocks(self, spec: &TensorSpec, asked: WeightFormat) -> Vec<Self> {
        let (&[rows, columns], &[Piece::Stored(view)]) =
            (self.shape.as_slice(), self.pieces.as_slice())
        else {
            return vec![self];
        };
        let format = format_of(spec, asked);
        let dtype = match format {
            WeightFormat::F16 => return vec![self],
            WeightFormat::Q8 => Dtype::I8,
            WeightFormat::Q4 => Dtype::U8,
        };
        vec![
            Self {
                name: format!("{}{SCALES}", self.name),
                dtype: Dtype::F16,
                shape: vec![rows, format.row_scales(columns)],
                pieces: vec![Piece::Scales(view, format)],
            },
            Self {
                name: self.name,
                dtype,
                shape: vec![rows, format.row_bytes(columns)],
                pieces: vec![Piece::QuantisedValues(view, format)],
            },
        ]
    }
}

/// The result's tensors in `format` (`None`: each as it is stored), before any is quantised.
///
/// # Errors
/// A tensor that is stored quantised.
pub fn outputs<'a>(
    tensors: &[(TensorSpec, Weight<'a>)],
    format: Option<Format>,
) -> Result<Vec<Output<'a>>, ConvertError> {
    let tensors = tensors.iter();
    tensors
        .map(|(spec, weight)| Output::new(spec, weight, format))
        .collect()
}

/// `outputs`, which are those of `tensors`, with the matrices that `asked` is for in blocks of
/// small integers.
pub fn quantised<'a>(
    outputs: Vec<Output<'a>>,
    tensors: &[(TensorSpec, Weight<'a>)],
    asked: WeightFormat,
) -> Vec<Output<'a>> {
    let outputs = outputs.into_iter().zip(tensors);
    outputs
        .flat_map(|(output, (spec, _))| output.in_blocks(spec, asked))
        .collect()
}

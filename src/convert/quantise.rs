//! Quantising: the result's matrices in blocks of small integers.

use std::path::Path;

use safetensors::Dtype;

use crate::gpu::WeightFormat;
use crate::model::Blip2Config;
use crate::weights::{SCALES, format_of};

use super::plan::{Output, Part};
use super::{ConvertError, ConvertOptions};

/// Refuses a checkpoint that is quantised, and options that contradict each other.
pub fn check(
    config: &Blip2Config,
    file: &Path,
    options: &ConvertOptions,
) -> Result<(), ConvertError> {
    if let Some(format) = config.quantised {
        return Err(ConvertError::refused(
            file,
            format!("says that the weights are quantised already ({format})"),
            "convert the f16 (or f32) checkpoint that they were made from",
        ));
    }
    if options.quant.is_some() && options.format == Some(crate::weights::Format::F32) {
        return Err(ConvertError::refused(
            file,
            "is to be quantised and to be f32",
            "leave out `dtype` or `quant`",
        ));
    }
    Ok(())
}

/// `tensors` with the matrices that `asked` is for as two tensors each: values and scales.
pub fn in_blocks(tensors: Vec<Output<'_>>, asked: WeightFormat) -> Vec<Output<'_>> {
    tensors
        .into_iter()
        .flat_map(|tensor| {
            let (&[rows, columns], [Part::Stored(view)]) =
                (tensor.shape.as_slice(), tensor.parts.as_slice())
            else {
                return vec![tensor];
            };
            let format = format_of(&tensor.spec, asked);
            let dtype = match format {
                WeightFormat::F16 => return vec![tensor],
                WeightFormat::Q8 => Dtype::I8,
                WeightFormat::Q4 => Dtype::U8,
            };
            let view = *view;
            vec![
                Output {
                    name: format!("{}{SCALES}", tensor.name),
                    dtype: Dtype::F16,
                    shape: vec![rows, format.row_scales(columns)],
                    spec: tensor.spec.clone(),
                    parts: vec![Part::Scales(view, format)],
                },
                Output {
                    name: tensor.name,
                    dtype,
                    shape: vec![rows, format.row_bytes(columns)],
                    spec: tensor.spec,
                    parts: vec![Part::QuantisedValues(view, format)],
                },
            ]
        })
        .collect()
}

//! Which matrices quantised weights are for, chosen by what they cost in captions and answers
//! (docs/quantisation.md).

use crate::gpu::{QUANT_BLOCK, WeightFormat};

use super::spec::{Component, Role, TensorSpec, matrix_shape};

/// How `asked` stores a matrix.
///
/// The layers of the vision and the language model, which are nearly all of a model, are stored as
/// asked; those of the Q-Former, which all of the image has to pass, in q8 at least. Tables and the
/// output matrix (in q8 it alone costs half a percent of CIDEr in the demo world), the first and
/// the last projections stay f16, and so do rows that are no whole number of blocks.
#[must_use]
pub fn format_of(tensor: &TensorSpec, asked: WeightFormat) -> WeightFormat {
    let [_, columns] = matrix_shape(&tensor.shape);
    if !asked.is_quantised() || !columns.is_multiple_of(QUANT_BLOCK) || tensor.role != Role::Layer {
        return WeightFormat::F16;
    }
    match tensor.component {
        Component::Vision | Component::LanguageModel => asked,
        Component::QFormer => WeightFormat::Q8,
        Component::QueryTokens
        | Component::TextEmbeddings
        | Component::LanguageProjection
        | Component::RetrievalHeads => WeightFormat::F16,
    }
}

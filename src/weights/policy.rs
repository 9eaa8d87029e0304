//! Which matrices quantised weights are for, chosen by what they cost in captions and answers (README, "Smaller").

use crate::gpu::{QUANT_BLOCK, WeightFormat};

/// Tables of the language model, and its output matrix: in q8 it alone costs half a percent of CIDEr in the demo world.
const KEPT: [&str; 5] = [
    ".embed_tokens.",
    ".embed_positions.",
    ".shared.",
    ".lm_head.",
    ".relative_attention_bias.",
];

/// How `asked` stores the matrix of the canonical name `name`, whose rows have `columns` values.
///
/// The linear layers of the vision and the language model, which are nearly all of a model, are stored as asked; the
/// Q-Former, which all of the image has to pass, in q8 at least; the token embedding and the output matrix, tables of
/// positions, the first and the last projections in f16, and so are rows that are no whole number of blocks.
#[must_use]
pub fn format_of(name: &str, columns: usize, asked: WeightFormat) -> WeightFormat {
    if !asked.is_quantised() || !columns.is_multiple_of(QUANT_BLOCK) || !name.ends_with(".weight") {
        return WeightFormat::F16;
    }
    if name.starts_with("vision_model.encoder.") {
        asked
    } else if name.starts_with("qformer.encoder.") {
        WeightFormat::Q8
    } else if name.starts_with("language_model.")
        && !KEPT.into_iter().any(|part| name.contains(part))
    {
        asked
    } else {
        WeightFormat::F16
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use WeightFormat::{F16, Q4, Q8};

    #[test]
    fn layers_are_as_asked_and_what_is_sensitive_is_not() {
        let opt = "language_model.model.decoder";
        for (name, columns, q8, q4) in [
            ("vision_model.encoder.layers.3.mlp.fc1.weight", 1408, Q8, Q4),
            (
                "vision_model.encoder.layers.3.mlp.fc1.weight",
                1416,
                F16,
                F16,
            ),
            (
                "vision_model.embeddings.patch_embedding.weight",
                608,
                F16,
                F16,
            ),
            (
                "qformer.encoder.layer.0.output_query.dense.weight",
                3072,
                Q8,
                Q8,
            ),
            ("language_projection.weight", 768, F16, F16),
            ("embeddings.word_embeddings.weight", 768, F16, F16),
            (
                &format!("{opt}.layers.0.self_attn.q_proj.weight"),
                2560,
                Q8,
                Q4,
            ),
            (&format!("{opt}.embed_tokens.weight"), 2560, F16, F16),
            (&format!("{opt}.embed_positions.weight"), 2560, F16, F16),
            ("language_model.lm_head.weight", 2560, F16, F16),
            ("language_model.shared.weight", 2048, F16, F16),
            (
                "language_model.encoder.block.0.layer.0.SelfAttention.q.weight",
                2048,
                Q8,
                Q4,
            ),
            (
                "language_model.encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
                32,
                F16,
                F16,
            ),
        ] {
            assert_eq!(format_of(name, columns, F16), F16, "{name}");
            assert_eq!(format_of(name, columns, Q8), q8, "{name}");
            assert_eq!(format_of(name, columns, Q4), q4, "{name}");
        }
    }
}

//! From LAVIS's and mmpretrain's tensor names to those of transformers.
//!
//! What differs between revisions of transformers, and the projections' names that [`crate::weights::aliases`] knows,
//! is left to it. Names as in LAVIS's `blip2_opt.py`, `blip2_qformer.py`, `eva_vit.py` and `Qformer.py`, and as
//! in mmpretrain's `blip2_caption.py`, `blip2_retriever.py`, `beit.py` and its `eva_to_mmpretrain.py`.

use super::kind::{Family, Kind, Task};

/// What becomes of a stored tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is this tensor of the model, if the model has one of that name.
    Tensor(String),
    /// It is left out, for a reason.
    LeftOut(&'static str),
}

/// Tensors that belong to training or to other uses: (part of the name, reason).
const LEFT_OUT: [(&str, &str); 6] = [
    (
        "Qformer.cls.",
        "the Q-Former's word predictions, for training",
    ),
    (
        "multimodal_backbone.cls.",
        "the Q-Former's word predictions, for training",
    ),
    (
        "data_preprocessor.",
        "mmpretrain's pixel mean and deviation",
    ),
    ("position_ids", "numbers that count up"),
    ("num_batches_tracked", "a count of training"),
    ("temp", "the temperature of training"),
];

/// Beginnings of names: (LAVIS or mmpretrain, transformers).
const BEGINNINGS: [(&str, &str); 10] = [
    ("ln_vision.", "vision_model.post_layernorm."),
    ("ln_vision_backbone.", "vision_model.post_layernorm."),
    ("Qformer.bert.", "qformer."),
    ("multimodal_backbone.bert.", "qformer."),
    ("opt_model.", "language_model."),
    ("t5_model.", "language_model."),
    ("text_backbone.", "language_model."),
    ("t5_proj.", "language_projection."),
    ("text_neck.fc.", "text_projection."),
    ("multimodal_head.fc.", "itm_head."),
];

/// Parts of a vision transformer's names. mmpretrain's are the more specific and come first.
const VISION_PARTS: [(&str, &str); 13] = [
    ("cls_token", "embeddings.class_embedding"),
    ("pos_embed", "embeddings.position_embedding"),
    ("patch_embed.projection.", "embeddings.patch_embedding."),
    ("patch_embed.proj.", "embeddings.patch_embedding."),
    ("blocks.", "encoder.layers."),
    ("layers.", "encoder.layers."),
    (".ffn.layers.0.0.", ".mlp.fc1."),
    (".ffn.layers.1.", ".mlp.fc2."),
    (".norm1.", ".layer_norm1."),
    (".norm2.", ".layer_norm2."),
    (".ln1.", ".layer_norm1."),
    (".ln2.", ".layer_norm2."),
    (".attn.", ".self_attn."),
];

/// What a tensor of a BLIP-2 file of this kind is.
pub fn of_model(name: &str, kind: Kind) -> Fate {
    if let Some((_, reason)) = LEFT_OUT.iter().find(|(part, _)| is_part(name, part)) {
        return Fate::LeftOut(reason);
    }
    if kind.family == Family::HuggingFace {
        return Fate::Tensor(name.to_owned());
    }
    for prefix in ["visual_encoder.", "vision_backbone."] {
        if let Some(rest) = name.strip_prefix(prefix) {
            return of_vision(rest);
        }
    }
    if let Some(rest) = name.strip_prefix("vision_neck.fc.") {
        let projection = match kind.task {
            Task::Generation => "language_projection",
            Task::Retrieval => "vision_projection",
        };
        return Fate::Tensor(format!("{projection}.{rest}"));
    }
    let renamed = BEGINNINGS
        .iter()
        .find_map(|(from, to)| name.strip_prefix(from).map(|rest| format!("{to}{rest}")));
    // Both attentions of a layer hold their matrices in a module `self`.
    Fate::Tensor(
        renamed
            .unwrap_or_else(|| name.to_owned())
            .replace("attention.self.", "attention.attention."),
    )
}

/// What a tensor of EVA-CLIP's vision transformer is, in LAVIS's names or mmpretrain's.
pub fn of_vision(name: &str) -> Fate {
    let reason = match name.split('.').next() {
        Some("norm" | "fc_norm" | "head") => {
            "of the classifier that the vision transformer once had"
        }
        Some("mask_token" | "lm_head") => "for training the vision transformer",
        _ if name.contains("relative_position_index") => "numbers that count up",
        _ => "",
    };
    if !reason.is_empty() {
        return Fate::LeftOut(reason);
    }
    let mut name = name.to_owned();
    for (from, to) in VISION_PARTS {
        let bound_to_start = !from.starts_with('.');
        if bound_to_start && !name.starts_with(from) {
            continue;
        }
        name = name.replacen(from, to, 1);
    }
    Fate::Tensor(format!(
        "vision_model.{}",
        name.replace(".self_attn.proj.", ".self_attn.projection.")
    ))
}

/// What a tensor of a language model's own checkpoint is; another BLIP-2 folder lends its own.
pub fn of_language_model(name: &str) -> Fate {
    let bare = name.strip_prefix("model.").unwrap_or(name);
    let others = [
        "vision_model.",
        "qformer.",
        "query_tokens",
        "language_projection.",
    ];
    if others.iter().any(|other| bare.starts_with(other)) {
        return Fate::LeftOut("not of the language model");
    }
    match bare.strip_prefix("language_model.") {
        Some(rest) => Fate::Tensor(format!("language_model.{rest}")),
        None => Fate::Tensor(format!("language_model.{name}")),
    }
}

/// Whether `part` is the name, its beginning (where it ends in a dot), or its last component.
fn is_part(name: &str, part: &str) -> bool {
    match part.strip_suffix('.') {
        Some(_) => name.starts_with(part),
        None => {
            name == part
                || name
                    .strip_suffix(part)
                    .is_some_and(|rest| rest.ends_with('.'))
        }
    }
}

/// The number of the block of the vision transformer that a tensor of the model belongs to.
pub fn vision_block(canonical: &str) -> Option<usize> {
    let rest = canonical.strip_prefix("vision_model.encoder.layers.")?;
    rest.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAVIS: Kind = Kind {
        family: Family::Lavis,
        task: Task::Generation,
    };

    fn of(name: &str, family: Family, task: Task) -> String {
        match of_model(name, Kind { family, task }) {
            Fate::Tensor(name) => name,
            Fate::LeftOut(reason) => panic!("{name}: {reason}"),
        }
    }

    #[test]
    fn names_become_those_of_transformers() {
        for (lavis, mmpretrain, expected) in [
            ("query_tokens", "query_tokens", "query_tokens"),
            (
                "visual_encoder.cls_token",
                "vision_backbone.cls_token",
                "vision_model.embeddings.class_embedding",
            ),
            (
                "visual_encoder.pos_embed",
                "vision_backbone.pos_embed",
                "vision_model.embeddings.position_embedding",
            ),
            (
                "visual_encoder.patch_embed.proj.bias",
                "vision_backbone.patch_embed.projection.bias",
                "vision_model.embeddings.patch_embedding.bias",
            ),
            (
                "visual_encoder.blocks.12.norm1.weight",
                "vision_backbone.layers.12.ln1.weight",
                "vision_model.encoder.layers.12.layer_norm1.weight",
            ),
            (
                "visual_encoder.blocks.0.norm2.bias",
                "vision_backbone.layers.0.ln2.bias",
                "vision_model.encoder.layers.0.layer_norm2.bias",
            ),
            (
                "visual_encoder.blocks.3.attn.qkv.weight",
                "vision_backbone.layers.3.attn.qkv.weight",
                "vision_model.encoder.layers.3.self_attn.qkv.weight",
            ),
            (
                "visual_encoder.blocks.3.attn.q_bias",
                "vision_backbone.layers.3.attn.q_bias",
                "vision_model.encoder.layers.3.self_attn.q_bias",
            ),
            (
                "visual_encoder.blocks.3.attn.proj.bias",
                "vision_backbone.layers.3.attn.proj.bias",
                "vision_model.encoder.layers.3.self_attn.projection.bias",
            ),
            (
                "visual_encoder.blocks.38.mlp.fc1.weight",
                "vision_backbone.layers.38.ffn.layers.0.0.weight",
                "vision_model.encoder.layers.38.mlp.fc1.weight",
            ),
            (
                "visual_encoder.blocks.38.mlp.fc2.weight",
                "vision_backbone.layers.38.ffn.layers.1.weight",
                "vision_model.encoder.layers.38.mlp.fc2.weight",
            ),
            (
                "ln_vision.weight",
                "ln_vision_backbone.weight",
                "vision_model.post_layernorm.weight",
            ),
            (
                "Qformer.bert.encoder.layer.2.attention.self.query.weight",
                "multimodal_backbone.bert.encoder.layer.2.attention.self.query.weight",
                "qformer.encoder.layer.2.attention.attention.query.weight",
            ),
            (
                "Qformer.bert.encoder.layer.2.crossattention.self.key.bias",
                "multimodal_backbone.bert.encoder.layer.2.crossattention.self.key.bias",
                "qformer.encoder.layer.2.crossattention.attention.key.bias",
            ),
            (
                "Qformer.bert.encoder.layer.2.output_query.LayerNorm.bias",
                "multimodal_backbone.bert.encoder.layer.2.output_query.LayerNorm.bias",
                "qformer.encoder.layer.2.output_query.LayerNorm.bias",
            ),
            (
                "opt_model.model.decoder.layers.1.fc1.weight",
                "text_backbone.model.decoder.layers.1.fc1.weight",
                "language_model.model.decoder.layers.1.fc1.weight",
            ),
            (
                "opt_proj.weight",
                "vision_neck.fc.weight",
                "language_projection.weight",
            ),
        ] {
            if lavis != "opt_proj.weight" {
                assert_eq!(of(lavis, Family::Lavis, Task::Generation), expected);
            } else {
                assert!(crate::weights::aliases(expected).contains(&lavis.to_owned()));
            }
            assert_eq!(
                of(mmpretrain, Family::Mmpretrain, Task::Generation),
                expected
            );
        }
        for (mmpretrain, expected) in [
            ("vision_neck.fc.bias", "vision_projection.bias"),
            ("text_neck.fc.bias", "text_projection.bias"),
            ("multimodal_head.fc.bias", "itm_head.bias"),
        ] {
            assert_eq!(
                of(mmpretrain, Family::Mmpretrain, Task::Retrieval),
                expected
            );
        }
    }

    #[test]
    fn what_only_training_needs_is_left_out() {
        for name in [
            "temp",
            "Qformer.cls.predictions.bias",
            "multimodal_backbone.cls.predictions.decoder.weight",
            "Qformer.bert.embeddings.position_ids",
            "visual_encoder.head.weight",
            "visual_encoder.norm.bias",
            "visual_encoder.mask_token",
        ] {
            assert!(matches!(of_model(name, LAVIS), Fate::LeftOut(_)), "{name}");
        }
        assert!(matches!(of_model("attempt", LAVIS), Fate::Tensor(_)));
    }

    #[test]
    fn blocks_are_counted() {
        assert_eq!(
            vision_block("vision_model.encoder.layers.39.mlp.fc1.bias"),
            Some(39)
        );
        assert_eq!(vision_block("qformer.encoder.layer.3.x"), None);
    }
}

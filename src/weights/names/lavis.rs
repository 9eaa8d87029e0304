//! LAVIS's names, as in its `blip2_opt.py`, `blip2_t5.py`, `blip2_qformer.py`, `eva_vit.py` and
//! `Qformer.py`.

/// What its vision transformer's names begin with; a file of that alone (`eva_vit_g.pth`) has them
/// without.
pub(super) const VISION: &str = "visual_encoder.";

/// (name, canonical), in the order in which they are replaced; `^` binds to the start of the name.
pub(super) const NAMES: [(&str, &str); 18] = [
    (
        "^visual_encoder.cls_token",
        "vision_model.embeddings.class_embedding",
    ),
    (
        "^visual_encoder.pos_embed",
        "vision_model.embeddings.position_embedding",
    ),
    (
        "^visual_encoder.patch_embed.proj.",
        "vision_model.embeddings.patch_embedding.",
    ),
    ("^visual_encoder.blocks.", "vision_model.encoder.layers."),
    ("^visual_encoder.", "vision_model."),
    (".norm1.", ".layer_norm1."),
    (".norm2.", ".layer_norm2."),
    (".attn.proj.", ".self_attn.projection."),
    (".attn.", ".self_attn."),
    ("^ln_vision.", "vision_model.post_layernorm."),
    ("^Qformer.bert.", "qformer."),
    ("attention.self.", "attention.attention."),
    ("^opt_model.", "language_model."),
    ("^t5_model.", "language_model."),
    ("^opt_proj.", "language_projection."),
    ("^t5_proj.", "language_projection."),
    ("^vision_proj.", "vision_projection."),
    ("^text_proj.", "text_projection."),
];

/// (beginning of a name, why such tensors are left out).
pub(super) const LEFT_OUT: [(&str, &str); 6] = [
    (
        "Qformer.cls.",
        "the Q-Former's word predictions, for training",
    ),
    ("visual_encoder.norm.", CLASSIFIER),
    ("visual_encoder.fc_norm.", CLASSIFIER),
    ("visual_encoder.head.", CLASSIFIER),
    ("visual_encoder.mask_token", PRETRAINING),
    ("visual_encoder.lm_head.", PRETRAINING),
];

const CLASSIFIER: &str = "of the classifier that the vision transformer once had";
const PRETRAINING: &str = "for training the vision transformer";

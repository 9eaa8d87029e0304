//! mmpretrain's names, as in its `blip2_caption.py`, `blip2_retriever.py`, `beit.py` and
//! `eva_to_mmpretrain.py`.

/// What its vision transformer's names begin with.
pub(super) const VISION: &str = "vision_backbone.";

/// (name, canonical), in the order in which they are replaced; `^` binds to the start of the name.
/// What the vision neck projects to depends on the task: [`neck`].
pub(super) const NAMES: [(&str, &str); 17] = [
    (
        "^vision_backbone.cls_token",
        "vision_model.embeddings.class_embedding",
    ),
    (
        "^vision_backbone.pos_embed",
        "vision_model.embeddings.position_embedding",
    ),
    (
        "^vision_backbone.patch_embed.projection.",
        "vision_model.embeddings.patch_embedding.",
    ),
    ("^vision_backbone.layers.", "vision_model.encoder.layers."),
    ("^vision_backbone.", "vision_model."),
    (".ffn.layers.0.0.", ".mlp.fc1."),
    (".ffn.layers.1.", ".mlp.fc2."),
    (".ln1.", ".layer_norm1."),
    (".ln2.", ".layer_norm2."),
    (".attn.proj.", ".self_attn.projection."),
    (".attn.", ".self_attn."),
    ("^ln_vision_backbone.", "vision_model.post_layernorm."),
    ("^multimodal_backbone.bert.", "qformer."),
    ("attention.self.", "attention.attention."),
    ("^text_backbone.", "language_model."),
    ("^text_neck.fc.", "text_projection."),
    ("^multimodal_head.fc.", "itm_head."),
];

/// (name, canonical) of what the queries are projected by: towards the language model, or the
/// common space.
pub(super) fn neck(is_retrieval: bool) -> (&'static str, &'static str) {
    let projection = if is_retrieval {
        "vision_projection."
    } else {
        "language_projection."
    };
    ("^vision_neck.fc.", projection)
}

/// (beginning of a name, why such tensors are left out).
pub(super) const LEFT_OUT: [(&str, &str); 7] = [
    (
        "multimodal_backbone.cls.",
        "the Q-Former's word predictions, for training",
    ),
    (
        "data_preprocessor.",
        "mmpretrain's pixel mean and deviation",
    ),
    ("vision_backbone.norm.", CLASSIFIER),
    ("vision_backbone.fc_norm.", CLASSIFIER),
    ("vision_backbone.head.", CLASSIFIER),
    ("vision_backbone.mask_token", PRETRAINING),
    ("vision_backbone.lm_head.", PRETRAINING),
];

const CLASSIFIER: &str = "of the classifier that the vision transformer once had";
const PRETRAINING: &str = "for training the vision transformer";

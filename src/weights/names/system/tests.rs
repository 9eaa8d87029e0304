use super::*;

fn of(name: &str, family: Family, task: Task) -> String {
    match (Kind { family, task }).canonical(name) {
        Name::Tensor(name) => name,
        Name::LeftOut(reason) => panic!("{name}: {reason}"),
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
        assert_eq!(of(lavis, Family::Lavis, Task::Generation), expected);
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
    for (family, name) in [
        (Family::HuggingFace, "temp"),
        (Family::Lavis, "Qformer.cls.predictions.bias"),
        (
            Family::Mmpretrain,
            "multimodal_backbone.cls.predictions.decoder.weight",
        ),
        (Family::Lavis, "Qformer.bert.embeddings.position_ids"),
        (Family::Lavis, "visual_encoder.head.weight"),
        (Family::Lavis, "visual_encoder.norm.bias"),
        (Family::Mmpretrain, "vision_backbone.mask_token"),
    ] {
        let task = Task::Generation;
        let canonical = Kind { family, task }.canonical(name);
        assert!(matches!(canonical, Name::LeftOut(_)), "{name}");
    }
    assert_eq!(of("attempt", Family::Lavis, Task::Generation), "attempt");
}

#[test]
fn a_vision_transformer_alone_has_its_systems_names() {
    for (file, name) in [
        (["blocks.0.norm1.bias"], "blocks.3.attn.proj.bias"),
        (["layers.0.ln1.bias"], "layers.3.attn.proj.bias"),
    ] {
        let expected = "vision_model.encoder.layers.3.self_attn.projection.bias";
        let found = names_of_vision(None, &file)(name);
        assert_eq!(found, Name::Tensor(expected.into()), "{name}");
    }
    let lent = names_of_vision(
        Some(Kind {
            family: Family::Lavis,
            task: Task::Generation,
        }),
        &[],
    );
    assert!(matches!(lent("opt_proj.bias"), Name::LeftOut(_)));
}

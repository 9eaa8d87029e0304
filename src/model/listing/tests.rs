use std::collections::BTreeSet;
use std::path::Path;

use sha2::{Digest, Sha256};

use super::*;
use crate::gpu::WeightFormat::{self, F16, Q4, Q8};
use crate::model::config::LanguageConfig;
use crate::weights::{Component, Role, format_of};

fn config(json: &str) -> Blip2Config {
    Blip2Config::from_json(json.as_bytes(), Path::new("config.json")).unwrap()
}

/// The tensors that a configuration tells.
fn tensors(config: &Blip2Config) -> Vec<TensorSpec> {
    config.tensors(None).unwrap()
}

fn parameters(tensors: &[TensorSpec]) -> u64 {
    tensors.iter().map(TensorSpec::elements).sum()
}

fn parameters_of(tensors: &[TensorSpec], component: Component) -> u64 {
    let those = tensors
        .iter()
        .filter(|tensor| tensor.component == component);
    those.map(TensorSpec::elements).sum()
}

/// blip2-opt-2.7b; all that is left out is transformers' default, for the vision transformer and Q-Former.
fn opt_2_7b(vocabulary: usize) -> Blip2Config {
    config(&format!(
        r#"{{"model_type": "blip-2", "architectures": ["Blip2ForConditionalGeneration"], "text_config": {{
            "model_type": "opt", "hidden_size": 2560, "num_hidden_layers": 32, "num_attention_heads": 32,
            "ffn_dim": 10240, "vocab_size": {vocabulary}, "word_embed_proj_dim": 2560}}}}"#
    ))
}

#[test]
fn names_and_shapes_are_those_transformers_writes() {
    let generation = include_str!("../../../tests/data/transformers/generation_tensors.txt");
    let generation_config = include_str!("../../../tests/data/transformers/generation_config.json");
    let retrieval = include_str!("../../../tests/data/transformers/retrieval_tensors.txt");
    let retrieval_config = include_str!("../../../tests/data/transformers/retrieval_config.json");
    for (written, json) in [
        (generation, generation_config),
        (retrieval, retrieval_config),
    ] {
        let tensors = tensors(&config(json));
        let ours: BTreeSet<String> = tensors
            .iter()
            .map(|tensor| {
                let shape: Vec<String> = tensor.shape.iter().map(usize::to_string).collect();
                format!("{} {}", tensor.name, shape.join(","))
            })
            .collect();
        assert_eq!(ours.len(), tensors.len(), "a name occurs twice");
        let theirs: BTreeSet<String> = written.lines().map(String::from).collect();
        assert_eq!(ours, theirs);
    }
}

/// Counts of the models instantiated in transformers 5.23.
#[test]
fn parameter_counts_of_the_published_models() {
    let generation = tensors(&opt_2_7b(50304));
    for (component, parameters) in [
        (Component::Vision, 985_952_256),
        (Component::QueryTokens, 24_576),
        (Component::QFormer, 105_137_664),
        (Component::LanguageProjection, 1_968_640),
        (Component::LanguageModel, 2_651_678_720),
        (Component::TextEmbeddings, 0),
    ] {
        assert_eq!(parameters_of(&generation, component), parameters);
    }
    assert_eq!(parameters(&generation), 3_744_761_856);
    let shorter = tensors(&opt_2_7b(50272));
    assert_eq!(
        parameters_of(&shorter, Component::LanguageModel),
        2_651_596_800
    );

    let retrieval = tensors(&config(
        r#"{"model_type": "blip-2", "architectures": ["Blip2ForImageTextRetrieval"],
            "qformer_config": {"vocab_size": 30523, "use_qformer_text_input": true}}"#,
    ));
    assert_eq!(parameters_of(&retrieval, Component::QFormer), 161_825_280);
    assert_eq!(
        parameters_of(&retrieval, Component::TextEmbeddings),
        23_834_880
    );
    assert_eq!(parameters(&retrieval), 1_172_032_258);
    let all = Component::ALL.map(|component| parameters_of(&retrieval, component));
    assert_eq!(all.iter().sum::<u64>(), parameters(&retrieval));
}

#[test]
fn untied_heads_and_missing_qkv_biases_show() {
    let mut config = opt_2_7b(50272);
    let count = tensors(&config).len();
    config.vision.qkv_bias = false;
    assert_eq!(tensors(&config).len(), count - 39);
    if let Head::Generation(LanguageConfig::Opt(opt)) = &mut config.head {
        opt.tie_word_embeddings = false;
    }
    assert_eq!(
        tensors(&config).last().unwrap().name,
        "language_model.lm_head.weight"
    );
}

/// Flan-T5-XL and -XXL as published, with output matrices of their own.
#[test]
fn parameter_counts_of_flan_t5() {
    for (sizes, parameters) in [
        ([2048, 5120, 32], 2_849_757_184),
        ([4096, 10240, 64], 11_135_332_352),
    ] {
        let [width, inner, heads] = sizes;
        let config = config(&format!(
            r#"{{"model_type": "blip-2", "architectures": ["Blip2ForConditionalGeneration"], "text_config": {{
                "model_type": "t5", "d_model": {width}, "d_ff": {inner}, "num_heads": {heads}, "num_layers": 24,
                "feed_forward_proj": "gated-gelu", "tie_word_embeddings": false}}}}"#
        ));
        let tensors = tensors(&config);
        assert_eq!(
            parameters_of(&tensors, Component::LanguageModel),
            parameters
        );
    }
}

/// Files of `convert` have the tensors in this order, and indexes of images are recognised by it.
#[test]
fn the_order_is_that_of_files_and_indexes_made_before() {
    for (folder, expected) in [
        ("tiny", "fa774763b93adfcb"),
        ("tiny-t5", "ed91731dc71287d9"),
        ("tiny-itm", "6c58b0c3937e56c8"),
    ] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/data")
            .join(folder);
        let tensors = tensors(&Blip2Config::open(&folder).unwrap());
        let names: Vec<&str> = tensors.iter().map(|tensor| tensor.name.as_str()).collect();
        let hash = Sha256::digest(names.join("\n"));
        let hash: String = hash[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hash, expected, "{folder:?}: {names:#?}");
    }
}

#[test]
fn layers_are_as_asked_and_what_is_sensitive_is_not() {
    let retrieval = r#"{"model_type": "blip-2", "architectures": ["Blip2ForImageTextRetrieval"]}"#;
    let t5 = r#"{"model_type": "blip-2", "architectures": ["Blip2ForConditionalGeneration"], "text_config": {
        "model_type": "t5", "d_model": 2048, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": false}}"#;
    let all: Vec<TensorSpec> = [opt_2_7b(50272), config(retrieval), config(t5)]
        .iter()
        .flat_map(tensors)
        .collect();
    let opt = "language_model.model.decoder";
    for (name, q8, q4) in [
        ("vision_model.encoder.layers.3.mlp.fc1.weight", Q8, Q4),
        ("vision_model.embeddings.patch_embedding.weight", F16, F16),
        ("qformer.encoder.layer.0.output_query.dense.weight", Q8, Q8),
        ("language_projection.weight", F16, F16),
        ("vision_projection.weight", F16, F16),
        ("embeddings.word_embeddings.weight", F16, F16),
        (&format!("{opt}.layers.0.self_attn.q_proj.weight"), Q8, Q4),
        (&format!("{opt}.embed_tokens.weight"), F16, F16),
        (&format!("{opt}.embed_positions.weight"), F16, F16),
        ("language_model.lm_head.weight", F16, F16),
        ("language_model.shared.weight", F16, F16),
        (
            "language_model.encoder.block.0.layer.0.SelfAttention.q.weight",
            Q8,
            Q4,
        ),
        (
            "language_model.encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
            F16,
            F16,
        ),
    ] {
        let tensor = all.iter().find(|tensor| tensor.name == name).expect(name);
        let formats = WeightFormat::ALL.map(|asked| format_of(tensor, asked));
        assert_eq!(formats, [F16, q8, q4], "{name}");
    }
    // Rows that are no whole number of blocks.
    let odd = TensorSpec {
        name: "odd".into(),
        shape: vec![8, 1416],
        component: Component::Vision,
        role: Role::Layer,
    };
    assert_eq!(format_of(&odd, Q8), F16);
}

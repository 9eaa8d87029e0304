use std::collections::BTreeSet;
use std::path::Path;

use super::*;

fn config(json: &str) -> Blip2Config {
    Blip2Config::from_json(json.as_bytes(), Path::new("config.json")).unwrap()
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
        let tensors = config(json).tensors();
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
    let generation = opt_2_7b(50304);
    assert_eq!(generation.parameters_of(Component::Vision), 985_952_256);
    assert_eq!(generation.parameters_of(Component::QueryTokens), 24_576);
    assert_eq!(generation.parameters_of(Component::QFormer), 105_137_664);
    assert_eq!(
        generation.parameters_of(Component::LanguageProjection),
        1_968_640
    );
    assert_eq!(
        generation.parameters_of(Component::LanguageModel),
        2_651_678_720
    );
    assert_eq!(generation.parameters_of(Component::TextEmbeddings), 0);
    assert_eq!(generation.parameters(), 3_744_761_856);
    assert_eq!(generation.f16_bytes(), 7_489_523_712);
    assert_eq!(
        opt_2_7b(50272).parameters_of(Component::LanguageModel),
        2_651_596_800
    );

    let retrieval = config(
        r#"{"model_type": "blip-2", "architectures": ["Blip2ForImageTextRetrieval"],
            "qformer_config": {"vocab_size": 30523, "use_qformer_text_input": true}}"#,
    );
    assert_eq!(retrieval.parameters_of(Component::QFormer), 161_825_280);
    assert_eq!(
        retrieval.parameters_of(Component::TextEmbeddings),
        23_834_880
    );
    assert_eq!(retrieval.parameters(), 1_172_032_258);
    let all: u64 = Component::ALL
        .iter()
        .map(|&component| retrieval.parameters_of(component))
        .sum();
    assert_eq!(all, retrieval.parameters());
}

#[test]
fn untied_heads_and_missing_qkv_biases_show() {
    let mut config = opt_2_7b(50272);
    let count = config.tensors().len();
    config.vision.qkv_bias = false;
    assert_eq!(config.tensors().len(), count - 39);
    if let Head::Generation(LanguageConfig::Opt(opt)) = &mut config.head {
        opt.tie_word_embeddings = false;
    }
    assert_eq!(
        config.tensors().last().unwrap().name,
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
        assert_eq!(config.parameters_of(Component::LanguageModel), parameters);
    }
}

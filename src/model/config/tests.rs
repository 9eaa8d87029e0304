use serde_json::json;

use super::*;

/// The configuration of Salesforce/blip2-opt-2.7b as first published: old style, no image token.
fn published() -> Value {
    json!({
        "architectures": ["Blip2ForConditionalGeneration"],
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "model_type": "blip-2",
        "num_query_tokens": 32,
        "qformer_config": {
            "attention_probs_dropout_prob": 0.1, "classifier_dropout": null, "cross_attention_frequency": 2,
            "encoder_hidden_size": 1408, "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "hidden_size": 768,
            "intermediate_size": 3072, "layer_norm_eps": 1e-12, "max_position_embeddings": 512,
            "model_type": "blip_2_qformer", "num_attention_heads": 12, "num_hidden_layers": 12, "pad_token_id": 0,
            "position_embedding_type": "absolute", "vocab_size": 30522
        },
        "text_config": {
            "_name_or_path": "facebook/opt-2.7b", "_remove_final_layer_norm": false, "activation_function": "relu",
            "architectures": ["OPTForCausalLM"], "bos_token_id": 2, "do_layer_norm_before": true,
            "eos_token_id": 50118, "ffn_dim": 10240, "hidden_size": 2560, "max_position_embeddings": 2048,
            "model_type": "opt", "num_attention_heads": 32, "num_hidden_layers": 32, "pad_token_id": 1,
            "prefix": "</s>", "torch_dtype": "float16", "vocab_size": 50272, "word_embed_proj_dim": 2560
        },
        "use_decoder_only_language_model": true,
        "vision_config": {
            "hidden_act": "gelu", "hidden_size": 1408, "image_size": 224, "intermediate_size": 6144,
            "layer_norm_eps": 1e-6, "model_type": "blip_2_vision_model", "num_attention_heads": 16,
            "num_channels": 3, "num_hidden_layers": 39, "patch_size": 14, "projection_dim": 512, "qkv_bias": true
        }
    })
}

fn parse(config: &Value) -> Result<Blip2Config, ConfigError> {
    Blip2Config::from_json(
        config.to_string().as_bytes(),
        Path::new("folder/config.json"),
    )
}

/// [`published`] with the value at a path like `/text_config/ffn_dim` set.
fn with(path: &str, value: Value) -> Value {
    let mut config = published();
    let (section, field) = path.rsplit_once('/').unwrap();
    config.pointer_mut(section).unwrap()[field] = value;
    config
}

#[test]
fn the_published_configuration() {
    let config = parse(&published()).unwrap();
    assert_eq!(
        (
            config.vision.head_dim(),
            config.vision.tokens(),
            config.vision.patch_elements()
        ),
        (88, 257, 588)
    );
    assert_eq!(config.vision.layer_norm_eps, 1e-6);
    assert!(config.vision.qkv_bias);
    assert_eq!(
        (config.qformer.head_dim(), config.qformer.layer_norm_eps),
        (64, 1e-12)
    );
    assert!(config.qformer.has_cross_attention(10) && !config.qformer.has_cross_attention(11));
    let Some(LanguageConfig::Opt(opt)) = config.language_model() else {
        panic!("OPT");
    };
    assert_eq!(
        (
            opt.head_dim(),
            opt.ffn_dim,
            opt.position_rows(),
            opt.vocab_size
        ),
        (80, 10240, 2050, 50272)
    );
    assert_eq!(
        (
            opt.bos_token_id,
            opt.pad_token_id,
            opt.eos_token_ids.as_slice()
        ),
        (2, 1, &[50118][..])
    );
    assert_eq!(opt.activation_function, Activation::Relu);
    assert!(opt.tie_word_embeddings);
    assert_eq!(
        (config.num_query_tokens, config.image_token_index),
        (32, None)
    );
}

#[test]
fn new_revisions_add_an_image_token() {
    for name in ["/image_token_index", "/image_token_id"] {
        assert_eq!(
            parse(&with(name, json!(50265))).unwrap().image_token_index,
            Some(50265)
        );
    }
    let config = parse(&with("/text_config/vocab_size", json!(50304))).unwrap();
    assert_eq!(config.language_model().unwrap().vocab_size(), 50304);
    assert_eq!(
        parse(&with("/image_token_index", Value::Null))
            .unwrap()
            .image_token_index,
        None
    );
    let config = parse(&with("/vision_config/image_size", json!([364, 364]))).unwrap();
    assert_eq!(config.vision.tokens(), 677);
    let config = parse(&with("/text_config/eos_token_id", json!([2, 50118]))).unwrap();
    assert_eq!(config.language_model().unwrap().eos_token_ids(), [2, 50118]);
}

/// The defaults are those of transformers 5.23's classes.
#[test]
fn absent_fields_have_transformers_defaults() {
    let bare = json!({"model_type": "blip-2"});
    let config = parse(&bare).unwrap();
    let published = parse(&published()).unwrap();
    assert_eq!(config.vision, published.vision);
    assert_eq!(config.qformer, published.qformer);
    let Some(LanguageConfig::Opt(opt)) = config.language_model() else {
        panic!("OPT");
    };
    assert_eq!(
        (
            opt.hidden_size,
            opt.num_hidden_layers,
            opt.num_attention_heads,
            opt.ffn_dim
        ),
        (768, 12, 12, 3072)
    );
    assert_eq!((opt.vocab_size, opt.max_position_embeddings), (50272, 2048));
    assert_eq!(
        (
            opt.bos_token_id,
            opt.pad_token_id,
            opt.eos_token_ids.as_slice()
        ),
        (2, 1, &[2][..])
    );
    assert_eq!(
        (config.num_query_tokens, config.image_token_index),
        (32, None)
    );
    let retrieval =
        json!({"model_type": "blip-2", "architectures": ["Blip2ForImageTextRetrieval"]});
    assert_eq!(
        parse(&retrieval).unwrap().head,
        Head::Retrieval {
            embedding_size: 256
        }
    );
}

#[test]
fn retrieval_models_are_told_by_class_or_text_branch() {
    let config = parse(&with(
        "/architectures",
        json!(["Blip2ForImageTextRetrieval"]),
    ))
    .unwrap();
    assert!(config.language_model().is_none());
    let mut by_branch = published();
    by_branch["architectures"] = Value::Null;
    assert!(parse(&by_branch).unwrap().language_model().is_some());
    by_branch["qformer_config"]["use_qformer_text_input"] = json!(true);
    assert_eq!(
        parse(&by_branch).unwrap().head,
        Head::Retrieval {
            embedding_size: 256
        }
    );
    // What a retrieval file says of a language model does not matter.
    let mut without = with("/text_config/model_type", json!("t5"));
    without["architectures"] = json!(["Blip2ForImageTextRetrieval"]);
    assert!(parse(&without).is_ok());
}

#[test]
fn bad_values_are_named_with_file_field_and_remedy() {
    for (path, value, says) in [
        ("/model_type", json!("llava"), "only \"blip-2\""),
        ("/model_type", json!("instructblip"), "InstructBLIP"),
        ("/model_type", json!("opt"), "language model alone"),
        ("/model_type", json!(2), "must be a string"),
        (
            "/architectures",
            json!(["LlavaForConditionalGeneration"]),
            "Blip2ForConditionalGeneration",
        ),
        ("/architectures", json!("Blip2Model"), "list of class names"),
        ("/architectures", json!([]), "list of class names"),
        ("/num_query_tokens", json!(0), "from 1 to"),
        ("/num_query_tokens", json!(32.5), "whole number"),
        ("/num_query_tokens", json!(1u64 << 40), "from 1 to"),
        ("/image_token_index", json!(-1), "token id"),
        ("/vision_config", json!([]), "must be an object"),
        ("/vision_config/hidden_size", json!("1408"), "whole number"),
        ("/vision_config/hidden_size", json!(1412), "multiples of 8"),
        ("/vision_config/hidden_size", json!(u64::MAX), "from 1 to"),
        ("/vision_config/hidden_size", json!(-8), "from 1 to"),
        (
            "/vision_config/intermediate_size",
            json!(6140),
            "multiples of 8",
        ),
        ("/vision_config/num_hidden_layers", json!(0), "from 1 to"),
        (
            "/vision_config/num_hidden_layers",
            json!(1_000_000),
            "from 1 to",
        ),
        (
            "/vision_config/num_attention_heads",
            json!(15),
            "does not divide hidden_size 1408",
        ),
        (
            "/vision_config/num_attention_heads",
            json!(128),
            "heads of 11 elements",
        ),
        (
            "/vision_config/patch_size",
            json!(15),
            "does not divide image_size 224",
        ),
        ("/vision_config/patch_size", json!(0), "from 1 to"),
        ("/vision_config/image_size", json!([224, 448]), "square"),
        (
            "/vision_config/image_size",
            json!(["a", "a"]),
            "whole number",
        ),
        (
            "/vision_config/image_size",
            json!(1_000_000_006),
            "from 1 to",
        ),
        (
            "/vision_config/hidden_act",
            json!("swoosh"),
            "unknown activation",
        ),
        (
            "/vision_config/layer_norm_eps",
            json!("1e-6"),
            "between 0 and 1",
        ),
        ("/vision_config/layer_norm_eps", json!(0), "between 0 and 1"),
        ("/vision_config/qkv_bias", json!("yes"), "true or false"),
        ("/vision_config/num_channels", json!(4), "RGB"),
        (
            "/qformer_config/num_attention_heads",
            json!(7),
            "does not divide hidden_size 768",
        ),
        (
            "/qformer_config/cross_attention_frequency",
            json!(0),
            "from 1 to",
        ),
        (
            "/qformer_config/position_embedding_type",
            json!("relative_key"),
            "absolute",
        ),
        (
            "/qformer_config/hidden_act",
            json!(["gelu"]),
            "must be a string",
        ),
        ("/text_config/model_type", json!("llama"), "only \"opt\""),
        (
            "/text_config/do_layer_norm_before",
            json!(false),
            "OPT-350m",
        ),
        ("/text_config/enable_bias", json!(false), "without biases"),
        (
            "/text_config/layer_norm_elementwise_affine",
            json!(false),
            "without parameters",
        ),
        (
            "/text_config/_remove_final_layer_norm",
            json!(true),
            "final layer norm",
        ),
        ("/text_config/word_embed_proj_dim", json!(512), "narrower"),
        ("/text_config/ffn_dim", json!(10242), "multiples of 8"),
        (
            "/text_config/activation_function",
            json!("relu2"),
            "unknown activation",
        ),
        (
            "/text_config/bos_token_id",
            json!(50272),
            "outside the vocabulary",
        ),
        ("/text_config/eos_token_id", json!([2, "3"]), "token id"),
        ("/text_config/vocab_size", json!(null), ""),
    ] {
        let config = with(path, value.clone());
        if says.is_empty() {
            parse(&config).unwrap();
            continue;
        }
        let text = parse(&config).expect_err(path).to_string();
        let field = path[1..].replace('/', ".");
        assert!(
            text.starts_with(&format!("folder/config.json: {field} is ")),
            "{text}"
        );
        assert!(text.contains(says), "{text} does not say {says}");
        assert!(!text.contains('\n') && text.len() < 300, "{text}");
        if !value.is_array() {
            assert!(
                text.contains(&value.to_string()),
                "{text} does not show {value}"
            );
        }
    }
}

#[test]
fn files_that_are_no_configuration_are_named() {
    for bad in ["", "{", "[]", "3", "\u{0}", "{\"model_type\": NaN}"] {
        let text = Blip2Config::from_json(bad.as_bytes(), Path::new("x/config.json"))
            .unwrap_err()
            .to_string();
        assert!(
            text.starts_with("x/config.json: is not a configuration") && !text.contains('\n'),
            "{text}"
        );
    }
    assert!(
        parse(&json!({}))
            .unwrap_err()
            .to_string()
            .contains("model_type is absent")
    );
    assert!(parse(&json!({"qformer_config": {}})).is_ok());
    let long = parse(&with("/model_type", json!("é\n".repeat(500))))
        .unwrap_err()
        .to_string();
    assert!(
        long.contains('…') && !long.contains('\n') && long.len() < 300,
        "{long}"
    );
}

#[test]
fn opens_beside_a_file_or_in_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let text = Blip2Config::open(folder.path()).unwrap_err().to_string();
    assert!(text.contains("config.json: cannot be read"), "{text}");
    std::fs::write(folder.path().join("config.json"), published().to_string()).unwrap();
    std::fs::write(folder.path().join("weights.safetensors"), "").unwrap();
    let expected = parse(&published()).unwrap();
    assert_eq!(Blip2Config::open(folder.path()).unwrap(), expected);
    assert_eq!(
        Blip2Config::open(folder.path().join("weights.safetensors")).unwrap(),
        expected
    );
}

#[test]
fn heads_wider_than_the_kernels_hold_are_refused() {
    // 768 / 6 is 128, which they hold.
    assert!(parse(&with("/qformer_config/num_attention_heads", json!(6))).is_ok());
    let error = parse(&with("/text_config/num_attention_heads", json!(16))).unwrap_err();
    let message = error.to_string();
    assert!(
        message.contains("text_config.num_attention_heads is 16"),
        "{message}"
    );
    assert!(
        message.contains("160") && message.contains("128"),
        "{message}"
    );
}

/// The configuration of blip2-flan-t5-xl's language model.
fn flan_t5() -> Value {
    with(
        "/text_config",
        json!({
            "model_type": "t5", "d_model": 2048, "d_kv": 64, "d_ff": 5120, "num_layers": 24,
            "num_decoder_layers": 24, "num_heads": 32, "vocab_size": 32128, "relative_attention_num_buckets": 32,
            "feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu", "tie_word_embeddings": false,
            "decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0
        }),
    )
}

#[test]
fn encoder_decoders() {
    let t5_of = |config: &Value| match parse(config).unwrap().head {
        Head::Generation(LanguageConfig::T5(t5)) => t5,
        other => panic!("{other:?}"),
    };
    let t5 = t5_of(&flan_t5());
    assert_eq!((t5.inner_size(), t5.num_decoder_layers), (2048, 24));
    assert_eq!(
        (t5.relative_attention_max_distance, t5.layer_norm_epsilon),
        (128, 1e-6)
    );
    assert_eq!((t5.decoder_start_token_id, t5.prompt_end()), (0, 1));
    // LAVIS's conversions say which GELU; without that it is the tanh approximation.
    assert_eq!(t5.dense_act_fn, Activation::GeluErf);
    assert!(!t5.tie_word_embeddings && !t5.scale_decoder_outputs);
    let mut config = flan_t5();
    let text = config["text_config"].as_object_mut().unwrap();
    for field in ["dense_act_fn", "tie_word_embeddings", "num_decoder_layers"] {
        text.remove(field);
    }
    let t5 = t5_of(&config);
    assert_eq!(t5.dense_act_fn, Activation::GeluTanh);
    assert!(t5.tie_word_embeddings && t5.scale_decoder_outputs);
    assert_eq!(t5.num_decoder_layers, 24);
    // As transformers 5 writes it, which ties whatever was read.
    config["text_config"]["scale_decoder_outputs"] = json!(false);
    assert!(!t5_of(&config).scale_decoder_outputs);
    for (field, value, says) in [
        ("feed_forward_proj", json!("relu"), "T5 v1.1"),
        ("feed_forward_proj", json!("gated-silu"), "gated-gelu"),
        ("dense_act_fn", json!("silu"), "unknown activation"),
        ("d_kv", json!(6), "multiple of 4"),
        ("d_kv", json!(132), "at most 128"),
        ("d_model", json!(2044), "multiples of 8"),
        ("d_ff", json!(2044), "multiples of 8"),
        ("relative_attention_num_buckets", json!(6), "multiple of 4"),
        ("relative_attention_max_distance", json!(16), "half of"),
        ("decoder_start_token_id", json!(32128), "vocabulary"),
        ("eos_token_id", json!(40000), "vocabulary"),
    ] {
        let mut config = flan_t5();
        config["text_config"]
            .as_object_mut()
            .unwrap()
            .remove("dense_act_fn");
        config["text_config"][field] = value;
        let message = parse(&config).unwrap_err().to_string();
        assert!(
            message.contains(&format!("text_config.{field}")),
            "{message}"
        );
        assert!(message.contains(says), "{message}");
    }
}

use super::*;
use crate::model::Blip2Config;
use crate::model::config::Head;
use crate::weights::{Checkpoint, Kind};

const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data");

fn data(name: &str) -> PathBuf {
    Path::new(DATA).join(name)
}

/// Tensors of published sizes, without values: names as in the result.
fn views(image_tokens: usize, projection: usize) -> Vec<(String, Vec<usize>)> {
    [
        (
            "vision_model.embeddings.position_embedding",
            vec![1, image_tokens, 1408],
        ),
        ("vision_model.embeddings.class_embedding", vec![1, 1, 1408]),
        ("query_tokens", vec![1, 32, 768]),
        (
            "qformer.encoder.layer.11.output_query.LayerNorm.bias",
            vec![768],
        ),
        ("language_projection.weight", vec![projection, 768]),
        ("embeddings.word_embeddings.weight", vec![30523, 768]),
        (
            "language_model.model.decoder.embed_tokens.weight",
            vec![50272, projection],
        ),
    ]
    .map(|(name, shape)| (name.to_owned(), shape))
    .to_vec()
}

/// A file of f16 tensors of these shapes, all of it a hole but the header.
fn sparse(folder: &Path, views: &[(String, Vec<usize>)]) -> PathBuf {
    let mut header = Map::new();
    let mut end = 0;
    for (name, shape) in views {
        let start = end;
        end += 2 * shape.iter().product::<usize>();
        let tensor = json!({"dtype": "F16", "shape": shape, "data_offsets": [start, end]});
        header.insert(name.clone(), tensor);
    }
    let header = Value::from(header).to_string();
    let path = folder.join("lavis_pretrained.safetensors");
    let start = [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat();
    std::fs::write(&path, &start).unwrap();
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_len((start.len() + end) as u64).unwrap();
    path
}

/// Decides with these tensors and a language model's folder of this configuration.
fn decide_with(
    task: Task,
    views: &[(String, Vec<usize>)],
    llm: Option<Value>,
    parts: &CheckpointParts,
) -> Result<(Config, Vec<String>), ConvertError> {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = Checkpoint::open(sparse(folder.path(), views)).unwrap();
    let t5 = llm.as_ref().is_some_and(|json| json["model_type"] == "t5");
    let llm = llm.map(|json| {
        std::fs::write(folder.path().join("config.json"), json.to_string()).unwrap();
        folder.path().to_path_buf()
    });
    let kind = Kind {
        family: Family::Lavis,
        task,
    };
    let gathered = Gathered::of(kind, checkpoint, llm);
    let tokenizer = match task {
        Task::Generation if t5 => data("tiny-t5"),
        Task::Generation => data("tiny"),
        Task::Retrieval => data("convert/micro-itm"),
    };
    decide(&gathered, parts, &tokenizer)
}

/// What facebook/opt-2.7b's config.json says, as far as it matters.
fn opt(width: usize) -> Value {
    json!({
        "model_type": "opt", "hidden_size": width, "num_hidden_layers": 32, "num_attention_heads": 32,
        "ffn_dim": 4 * width, "vocab_size": 50272, "max_position_embeddings": 2048, "word_embed_proj_dim": width,
        "eos_token_id": 2, "bos_token_id": 2, "pad_token_id": 1, "do_layer_norm_before": true,
    })
}

fn parsed(config: &Config) -> Blip2Config {
    Blip2Config::from_json(config.text().as_bytes(), &config.file).unwrap()
}

#[test]
fn published_models_need_no_config() {
    let options = CheckpointParts::default();
    for (tokens, pixels, width) in [(257, 224, 2560), (677, 364, 4096)] {
        let views = views(tokens, width);
        let (config, _) =
            decide_with(Task::Generation, &views, Some(opt(width)), &options).unwrap();
        let config = parsed(&config);
        assert_eq!(
            (config.vision.image_size, config.vision.num_hidden_layers),
            (pixels, 39)
        );
        assert_eq!(
            (config.vision.head_dim(), config.vision.intermediate_size),
            (88, 6144)
        );
        assert_eq!(
            (config.qformer.num_hidden_layers, config.qformer.head_dim()),
            (12, 64)
        );
        assert_eq!(config.num_query_tokens, 32);
        // The tiny tokenizer's `<image>` and line break.
        assert_eq!(config.image_token_index, Some(400));
        let decoder = config.language_model().unwrap();
        assert_eq!(
            (decoder.hidden_size(), decoder.vocab_size()),
            (width, 50272)
        );
        assert_eq!(decoder.eos_token_ids(), [202]);
    }
    let (config, _) = decide_with(Task::Retrieval, &views(257, 1), None, &options).unwrap();
    let config = parsed(&config);
    assert_eq!(
        config.head,
        Head::Retrieval {
            embedding_size: 256
        }
    );
    assert_eq!(config.qformer.vocab_size, 30523);
}

#[test]
fn tables_decide_what_a_given_config_says_otherwise() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.json");
    let text = json!({
        "model_type": "blip-2", "vision_config": {"image_size": 224}, "qformer_config": {},
        "text_config": opt(2560), "image_token_index": 50265,
    });
    let text = text.to_string().replace("50272", "50304");
    std::fs::write(&file, text).unwrap();
    let options = CheckpointParts {
        config: Some(file),
        ..CheckpointParts::default()
    };
    let (config, notes) = decide_with(Task::Generation, &views(677, 2560), None, &options).unwrap();
    let config = parsed(&config);
    assert_eq!(config.vision.image_size, 364);
    assert_eq!(config.language_model().unwrap().vocab_size(), 50272);
    assert!(
        notes
            .iter()
            .any(|note| note.contains("vision_config.image_size is 364")),
        "{notes:?}"
    );
    assert!(
        notes
            .iter()
            .any(|note| note.contains("text_config.vocab_size is 50272")),
        "{notes:?}"
    );
}

#[test]
fn sizes_that_do_not_fit_are_named() {
    let options = CheckpointParts::default();
    let refused = |views: &[(String, Vec<usize>)], llm: Option<Value>, parts: &[&str]| {
        let error = decide_with(Task::Generation, views, llm, &options)
            .unwrap_err()
            .to_string();
        for part in parts {
            assert!(error.contains(part), "{part:?} is missing: {error}");
        }
    };
    let wrong = [
        "4096 wide",
        "lavis_pretrained.safetensors",
        "2560 wide",
        "`llm`",
        "facebook/opt-2.7b",
    ];
    refused(&views(257, 2560), Some(opt(4096)), &wrong);
    refused(
        &views(257, 2560),
        None,
        &["holds its language model", "`config`"],
    );
    let mut narrow = views(257, 2560);
    narrow[1].1 = vec![1, 1, 1024];
    refused(
        &narrow,
        Some(opt(2560)),
        &["1024 wide", "published", "`config`"],
    );
}

#[test]
fn t5_is_configured_as_lavis_runs_it() {
    let llm = json!({"model_type": "t5", "d_model": 2048, "eos_token_id": 1, "pad_token_id": 0,
        "decoder_start_token_id": 0, "dense_act_fn": "gelu_new", "feed_forward_proj": "gated-gelu"});
    let options = CheckpointParts::default();
    let (config, _) =
        decide_with(Task::Generation, &views(257, 2048), Some(llm), &options).unwrap();
    assert_eq!(
        config.get("text_config", "dense_act_fn"),
        Some(&json!("gelu"))
    );
    assert_eq!(config.get("text_config", "eos_token_id"), Some(&json!(1)));
    assert_eq!(
        config.fields["use_decoder_only_language_model"],
        json!(false)
    );
}

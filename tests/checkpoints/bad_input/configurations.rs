//! Checkpoints: configurations and tokenizers.

use serde_json::{Value, json};

use super::{Spoil, accepted, half, refused};
use crate::cli_support::{BOAT, HOUSE, ModelCopy, caption, plain_captions};

#[test]
fn configurations() {
    const CONFIG: &str = "config.json";
    refused(|model| model.remove(&[CONFIG]), &[CONFIG, "cannot be read"]);
    refused(
        |model| model.write(CONFIG, "{\"model_type\": "),
        &[CONFIG, "not a configuration"],
    );
    refused(
        |model| model.write(CONFIG, ""),
        &[CONFIG, "not a configuration"],
    );
    refused(
        |model| model.write(CONFIG, [0xFF, 0xFE, 0]),
        &[CONFIG, "not a configuration"],
    );
    refused(|model| model.write(CONFIG, "[]"), &[CONFIG, "no object"]);
    let deep: Spoil = |model| model.write(CONFIG, "{\"a\":".repeat(100_000));
    refused(deep, &[CONFIG, "not a configuration"]);
    refused(
        |model| model.set(CONFIG, "/vision_config/num_attention_heads", 5.into()),
        &[CONFIG, "vision_config.num_attention_heads is 5"],
    );
    refused(
        |model| model.set(CONFIG, "/text_config/num_attention_heads", 7.into()),
        &[CONFIG, "text_config.num_attention_heads is 7"],
    );
    refused(
        |model| model.set(CONFIG, "/qformer_config/num_attention_heads", 0.into()),
        &[CONFIG, "qformer_config.num_attention_heads is 0"],
    );
    refused(
        |model| model.set(CONFIG, "/model_type", "llava".into()),
        &[CONFIG, "model_type is \"llava\"", "blip2-opt-2.7b"],
    );
    refused(
        |model| model.set(CONFIG, "/text_config/model_type", "t5".into()),
        &[CONFIG, "text_config.feed_forward_proj", "T5"],
    );
    refused(
        |model| model.set(CONFIG, "/text_config/hidden_size", "wide".into()),
        &[
            CONFIG,
            "text_config.hidden_size is \"wide\"",
            "whole number",
        ],
    );
    refused(
        |model| model.set(CONFIG, "/text_config/hidden_size", json!(-48)),
        &[CONFIG, "text_config.hidden_size is -48"],
    );
    refused(
        |model| model.set(CONFIG, "/text_config/vocab_size", json!(1e30)),
        &[CONFIG, "text_config.vocab_size"],
    );
    refused(
        |model| model.set(CONFIG, "/vision_config", "none".into()),
        &[CONFIG, "vision_config", "object"],
    );
    refused(
        |model| model.set(CONFIG, "/vision_config/patch_size", 13.into()),
        &[CONFIG, "vision_config.patch_size is 13"],
    );
    refused(
        |model| model.set(CONFIG, "/vision_config/hidden_act", "mish".into()),
        &[CONFIG, "vision_config.hidden_act is \"mish\""],
    );
    refused(
        |model| model.set(CONFIG, "/num_query_tokens", json!(8.5)),
        &[CONFIG, "num_query_tokens is 8.5"],
    );
    // More queries than the decoder has positions: nothing could ever be generated.
    refused(
        |model| model.set(CONFIG, "/num_query_tokens", json!(100)),
        &["query_tokens", "[1, 8, 24]", "[1, 100, 24]"],
    );
}

#[test]
fn a_retrieval_model_cannot_caption() {
    let model = ModelCopy::new();
    let class = json!(["Blip2ForImageTextRetrieval"]);
    model.set("config.json", "/architectures", class);
    caption(model.path(), &[HOUSE])
        .exits(1)
        .one_error(&["retrieval model", "generative"]);
}

#[test]
fn generation_configurations() {
    const FILE: &str = "generation_config.json";
    accepted(|model| model.set(FILE, "/bos_token_id", Value::Null));
    refused(
        |model| model.write(FILE, "{"),
        &[FILE, "not a JSON object", "defaults"],
    );
    refused(
        |model| model.write(FILE, "[2]"),
        &[FILE, "not a JSON object"],
    );
    refused(
        |model| model.set(FILE, "/num_beams", "five".into()),
        &[FILE, "`num_beams`", "remove the field"],
    );
    refused(
        |model| model.set(FILE, "/eos_token_id", json!(["</s>"])),
        &[FILE, "`eos_token_id`"],
    );
    refused(
        |model| model.set(FILE, "/top_k", json!(-1)),
        &[FILE, "`top_k`"],
    );
    let folder: Spoil = |model| {
        model.remove(&[FILE]);
        std::fs::create_dir(model.file(FILE)).unwrap();
    };
    refused(folder, &[FILE, "cannot be read"]);

    // A value of the right type that cannot be used is the file's fault, not the command line's.
    refused(
        |model| model.set(FILE, "/num_beams", 0.into()),
        &[FILE, "num_beams"],
    );
    refused(
        |model| {
            model.set(FILE, "/do_sample", json!(true));
            model.set(FILE, "/temperature", json!(0.0));
        },
        &[FILE, "temperature"],
    );
    refused(
        |model| model.set(FILE, "/bad_words_ids", json!([3])),
        &[FILE, "`bad_words_ids`"],
    );
}

/// Rules of a checkpoint are obeyed on the device; what is passed over is named once, a neutral value not.
#[test]
fn generation_settings_are_obeyed_or_named() {
    let model = ModelCopy::new();
    const FILE: &str = "generation_config.json";
    model.set(FILE, "/temperature", json!(0.0));
    model.set(FILE, "/guidance_scale", json!(1.0));
    let run = caption(model.path(), &[HOUSE]).exits(0);
    assert!(run.stderr.is_empty(), "{run:#?}");
    let plain = &plain_captions()[0]["tokens"];
    assert_eq!(run.json()[0]["tokens"], *plain);
    let tokens: Vec<u64> = plain
        .as_array()
        .unwrap()
        .iter()
        .map(|t| t.as_u64().unwrap())
        .collect();

    let said = |field: &str, value: Value, flags: &[&str]| {
        let model = ModelCopy::new();
        model.set(FILE, &format!("/{field}"), value);
        let line = caption(model.path(), &[flags, &[HOUSE]].concat())
            .exits(0)
            .one_json();
        let tokens = line["tokens"].as_array().unwrap().clone();
        tokens
            .iter()
            .map(|token| token.as_u64().unwrap())
            .collect::<Vec<_>>()
    };
    let beams = ["--beams", "3"];
    for flags in [&[][..], &beams[..]] {
        let greedy_or_best = said("use_cache", json!(true), flags);
        let [first, second] = [greedy_or_best[0], greedy_or_best[1]];
        let without = said("bad_words_ids", json!([[first, second]]), flags);
        assert!(
            without.windows(2).all(|pair| pair != [first, second]),
            "{without:?}"
        );
        assert_ne!(
            said("begin_suppress_tokens", json!([first]), flags)[0],
            first
        );
        let ended = said(
            "forced_eos_token_id",
            json!(2),
            &[flags, &["--max-new-tokens", "2"]].concat(),
        );
        assert_eq!(ended.len(), 2);
        assert_eq!(ended[1], 2);
        let pushed = said("sequence_bias", json!([[[88], 1000.0]]), flags);
        assert!(pushed.iter().all(|&token| token == 88), "{pushed:?}");
    }
    // A decoder that begins with a prompt has no first token to force: as in transformers nothing is, and said.
    let no_effect = ModelCopy::new();
    no_effect.set(FILE, "/forced_bos_token_id", json!(77));
    no_effect.set(FILE, "/decoder_start_token_id", json!(7));
    let run = caption(no_effect.path(), &[HOUSE]).exits(0);
    assert_eq!(run.json()[0]["tokens"], *plain);
    run.says(&["passed over: forced_bos_token_id"]);
    for field in ["bad_words_ids", "sequence_bias", "forced_eos_token_id"] {
        let value = match field {
            "sequence_bias" => json!([[[9_999], 1.0]]),
            "bad_words_ids" => json!([[3, 9_999]]),
            _ => json!(9_999),
        };
        let model = ModelCopy::new();
        model.set(FILE, &format!("/{field}"), value);
        caption(model.path(), &[HOUSE])
            .exits(1)
            .one_error(&[FILE, field, "token 9999"]);
    }
    // A draw from the tokens as probable as the best is greedy.
    let coldest = said("min_p", json!(1.0), &["--sample", "--top-k", "0"]);
    assert_eq!(coldest, tokens);

    model.set(FILE, "/guidance_scale", json!(1.5));
    model.set(FILE, "/exponential_decay_length_penalty", json!([5, 1.1]));
    let run = caption(model.path(), &[HOUSE, BOAT]).exits(0);
    assert_eq!(run.stderr.len(), 1, "{run:#?}");
    run.says(&[FILE, "exponential_decay_length_penalty, guidance_scale"]);

    let model = ModelCopy::new();
    model.set(
        "preprocessor_config.json",
        "/size",
        json!({"height": 28, "width": 28}),
    );
    let run = caption(model.path(), &[HOUSE])
        .exits(0)
        .says(&["preprocessor_config.json", "`size`"]);
    assert_eq!(run.json()[0]["tokens"], *plain);
}

/// Ids that no token has reach no memory, and change nothing: shaders run without bounds checks.
#[test]
fn ids_outside_the_vocabulary() {
    let model = ModelCopy::new();
    const FILE: &str = "generation_config.json";
    model.set(FILE, "/eos_token_id", json!([4_000_000_000u32, 202, 500]));
    model.set(FILE, "/pad_token_id", json!(4_000_000_000u32));
    model.set(FILE, "/suppress_tokens", json!([4_000_000_000u32, 408]));
    model.set("config.json", "/image_token_index", json!(4_000_000_000u32));
    let lines = caption(model.path(), &[HOUSE, BOAT]).exits(0).json();
    for (ours, plain) in lines.iter().zip(plain_captions()) {
        assert_eq!(ours["tokens"], plain["tokens"]);
    }
    let flags = [
        "--beams",
        "3",
        "--repetition-penalty",
        "1.3",
        "--min-new-tokens",
        "2",
    ];
    caption(model.path(), &[&flags[..], &[HOUSE, BOAT]].concat()).exits(0);
    // More end tokens than any published model has.
    model.set(
        FILE,
        "/eos_token_id",
        json!([301, 302, 303, 304, 305, 306, 202]),
    );
    let line = caption(model.path(), &[HOUSE]).exits(0).one_json();
    assert_eq!(line["tokens"], plain_captions()[0]["tokens"]);
}

#[test]
fn preprocessor_configurations() {
    const FILE: &str = "preprocessor_config.json";
    // BLIP-2's defaults serve where there is none.
    accepted(|model| model.remove(&[FILE]));
    refused(
        |model| model.write(FILE, "{,}"),
        &[FILE, "not valid JSON", "again"],
    );
    refused(|model| model.write(FILE, "7"), &[FILE, "not valid JSON"]);
    refused(
        |model| model.set(FILE, "/size", json!({"height": 42})),
        &[FILE, "`size`", "shortest_edge"],
    );
    refused(
        |model| model.set(FILE, "/size", json!({"height": 0, "width": 0})),
        &[FILE, "`size`"],
    );
    refused(
        |model| model.set(FILE, "/image_mean", json!([0.5, 0.5])),
        &[FILE, "`image_mean`", "red, green and blue"],
    );
    refused(
        |model| model.set(FILE, "/image_std", json!([0.0, 0.5, 0.5])),
        &[FILE, "`image_std`"],
    );
    refused(
        |model| model.set(FILE, "/resample", 1.into()),
        &[
            FILE,
            "`resample`",
            "1 (lanczos) is not supported",
            "bicubic",
        ],
    );
    refused(
        |model| model.set(FILE, "/do_resize", "no".into()),
        &[FILE, "`do_resize`"],
    );
    // The model takes square images of its own size, whatever sides the file would leave.
    for size in [
        json!({"shortest_edge": 42}),
        json!({"height": 84, "width": 42}),
    ] {
        let model = ModelCopy::new();
        model.set(FILE, "/size", size);
        let line = caption(model.path(), &[HOUSE]).exits(0).one_json();
        assert_eq!(line["tokens"], plain_captions()[0]["tokens"]);
    }
}

#[test]
fn tokenizers() {
    const BPE: [&str; 2] = ["vocab.json", "merges.txt"];
    // Either layout will do alone.
    accepted(|model| model.remove(&BPE));
    accepted(|model| model.remove(&["tokenizer.json"]));
    refused(
        |model| model.remove(&["tokenizer.json", "vocab.json", "merges.txt"]),
        &[
            "no tokenizer here",
            "tokenizer.json",
            "vocab.json",
            "merges.txt",
        ],
    );
    refused(
        |model| model.remove(&["tokenizer.json", "merges.txt"]),
        &["merges.txt", "missing", "vocab.json"],
    );
    refused(
        |model| model.write("tokenizer.json", "{"),
        &["tokenizer.json", "again"],
    );
    refused(
        |model| model.write("tokenizer.json", "{}"),
        &["tokenizer.json", "again"],
    );
    refused(
        |model| {
            let bytes = std::fs::read(model.file("tokenizer.json")).unwrap();
            model.write("tokenizer.json", half(&bytes));
        },
        &["tokenizer.json", "again"],
    );
    refused(
        |model| {
            model.remove(&["tokenizer.json"]);
            model.write("vocab.json", "{\"a\": \"b\"}");
        },
        &["vocab.json", "again"],
    );
    refused(
        |model| {
            model.remove(&["tokenizer.json"]);
            model.write("merges.txt", "one word\nand three words\n");
        },
        &["merges.txt", "again"],
    );
    // Ids that the model has no row for.
    let model = ModelCopy::new();
    model.set("tokenizer.json", "/model/vocab/a", 5000.into());
    caption(model.path(), &["--prompt", "a", HOUSE])
        .exits(1)
        .one_error(&["5000", "408", "tokenizer"]);
}

/// Editors and shells of Windows put marks in front, or write UTF-16 altogether.
#[test]
fn files_of_any_known_encoding_are_read() {
    const FILES: [&str; 4] = [
        "config.json",
        "generation_config.json",
        "preprocessor_config.json",
        "tokenizer.json",
    ];
    let marked: fn(&str) -> Vec<u8> = |text| [b"\xEF\xBB\xBF", text.as_bytes()].concat();
    let utf_16: fn(&str) -> Vec<u8> = |text| {
        let words = std::iter::once(0xFEFF).chain(text.encode_utf16());
        words.flat_map(u16::to_le_bytes).collect()
    };
    for encode in [marked, utf_16] {
        let model = ModelCopy::new();
        for name in FILES.iter().filter(|name| model.file(name).exists()) {
            let text = std::fs::read_to_string(model.file(name)).unwrap();
            model.write(name, encode(&text));
        }
        let line = caption(model.path(), &[HOUSE]).exits(0).one_json();
        assert_eq!(line["tokens"], plain_captions()[0]["tokens"]);
    }
    refused(
        |model| model.write("config.json", b"{\"model_type\": \"bl\xEFp\"}"),
        &["config.json", "byte 0xef in line 1; it may be Latin-1"],
    );
}

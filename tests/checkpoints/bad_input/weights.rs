//! Checkpoints: paths and weights.

use std::path::Path;

use serde_json::{Value, json};

use super::{Spoil, accepted, half, refused};
use crate::cli_support::{HOUSE, ModelCopy, Safetensors, TINY, caption, plain_captions, run};

const WEIGHTS: &str = "model.safetensors";
const FC1: &str = "language_model.model.decoder.layers.1.fc1.weight";

#[test]
fn model_paths() {
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().display().to_string();
    for (path, parts) in [
        ("/nowhere/blip2", &["/nowhere/blip2", "config.json"][..]),
        (HOUSE, &["config.json"]),
        (empty.as_str(), &[&empty, "config.json"]),
    ] {
        caption(path, &[HOUSE]).exits(1).one_error(parts);
        run(["inspect", path]).exits(1).one_error(parts);
    }
    // The file of the weights itself will do.
    let file = Path::new(TINY).join(WEIGHTS);
    let line = caption(file, &[HOUSE]).exits(0).one_json();
    assert_eq!(line["tokens"], plain_captions()[0]["tokens"]);
}

#[test]
fn weights_that_are_not_whole() {
    refused(
        |model| model.remove(&[WEIGHTS]),
        &["no weights here", WEIGHTS],
    );
    refused(
        |model| {
            model.remove(&[WEIGHTS]);
            model.write("pytorch_model.bin", "PK");
        },
        &["pytorch_model.bin", "no file that torch.save wrote"],
    );
    refused(
        |model| model.write(WEIGHTS, ""),
        &[WEIGHTS, "empty", "again"],
    );
    refused(
        |model| model.write(WEIGHTS, "short"),
        &[WEIGHTS, "too short"],
    );
    refused(
        |model| {
            model.write(
                WEIGHTS,
                "version https://git-lfs.github.com/spec/v1\noid sha256:0",
            )
        },
        &[WEIGHTS, "git lfs pull"],
    );
    refused(
        |model| {
            let bytes = std::fs::read(model.file(WEIGHTS)).unwrap();
            model.write(WEIGHTS, half(&bytes));
        },
        &[WEIGHTS, "truncated", "again"],
    );
    refused(
        |model| {
            let bytes = std::fs::read(model.file(WEIGHTS)).unwrap();
            model.write(WEIGHTS, &bytes[..bytes.len() - 1]);
        },
        &[WEIGHTS, "truncated", "again"],
    );
    refused(
        |model| {
            let bytes = std::fs::read(model.file(WEIGHTS)).unwrap();
            model.write(WEIGHTS, &bytes[..100]);
        },
        &[WEIGHTS, "truncated", "again"],
    );
    refused(
        |model| {
            std::fs::remove_file(model.file(WEIGHTS)).unwrap();
            std::fs::create_dir(model.file(WEIGHTS)).unwrap();
        },
        &["no weights here"],
    );
}

/// Replaces the header, its length included.
fn with_header(model: &ModelCopy, header: &[u8]) {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header);
    bytes.extend([0; 64]);
    model.write(WEIGHTS, bytes);
}

#[test]
fn headers_that_were_tampered_with() {
    refused(
        |model| {
            let mut bytes = std::fs::read(model.file(WEIGHTS)).unwrap();
            bytes[..8].copy_from_slice(&u64::MAX.to_le_bytes());
            model.write(WEIGHTS, bytes);
        },
        &[WEIGHTS, "header of 18446744073709551615 bytes"],
    );
    refused(
        |model| with_header(model, b"not JSON"),
        &[WEIGHTS, "header", "not JSON"],
    );
    refused(
        |model| with_header(model, b"\xFF\xFE{}"),
        &[WEIGHTS, "header"],
    );
    refused(|model| with_header(model, b"[1, 2]"), &[WEIGHTS, "header"]);
    refused(|model| with_header(model, b"{}"), &[WEIGHTS, "header"]);
    let nothing: Spoil =
        |model| model.write(WEIGHTS, [&[2u8, 0, 0, 0, 0, 0, 0, 0][..], b"{}"].concat());
    refused(nothing, &["no tensors", "again"]);
    let deep: Spoil = |model| with_header(model, "[".repeat(100_000).as_bytes());
    refused(deep, &[WEIGHTS, "header"]);
    refused(
        |model| {
            with_header(
                model,
                br#"{"a":{"dtype":"F16","shape":[2],"data_offsets":[0,"x"]}}"#,
            )
        },
        &[WEIGHTS, "header"],
    );
    refused(
        |model| {
            with_header(
                model,
                br#"{"a":{"dtype":"F99","shape":[2],"data_offsets":[0,4]}}"#,
            )
        },
        &[WEIGHTS, "header", "F99"],
    );
    refused(
        |model| {
            with_header(
                model,
                br#"{"a":{"dtype":"F16","shape":[18446744073709551615,2],"data_offsets":[0,4]}}"#,
            )
        },
        &[WEIGHTS, "header"],
    );
    refused(
        |model| {
            with_header(
                model,
                br#"{"a":{"dtype":"F16","shape":[2],"data_offsets":[8,4]}}"#,
            )
        },
        &[WEIGHTS, "header"],
    );
    refused(
        |model| {
            model.tamper(|file| file.header[FC1]["data_offsets"][1] = json!(1u64 << 40));
        },
        &[WEIGHTS, FC1, "reaches to byte 1099511627776", "again"],
    );
    refused(
        |model| model.tamper(|file| file.header[FC1]["shape"] = json!([72, 41])),
        &[WEIGHTS, "header"],
    );
}

#[test]
fn tensors_that_are_not_the_models() {
    refused(
        |model| model.tamper(|file| file.remove(FC1)),
        &[FC1, "is missing", "config.json"],
    );
    refused(
        |model| {
            model.tamper(|file| {
                let info = file.header.remove("query_tokens").unwrap();
                file.header.insert("other_tokens".into(), info);
            });
        },
        &["query_tokens", "is missing"],
    );
    refused(
        |model| model.tamper(|file| file.header[FC1]["shape"] = json!([36, 96])),
        &[WEIGHTS, FC1, "[36, 96]", "[72, 48]"],
    );
    refused(
        |model| model.tamper(|file| file.header[FC1]["shape"] = json!([1, 72, 48])),
        &[WEIGHTS, FC1, "[1, 72, 48]", "[72, 48]"],
    );
    refused(
        |model| model.tamper(|file| file.header[FC1]["dtype"] = "I16".into()),
        &[WEIGHTS, FC1, "I16", "F16, BF16, F32"],
    );
    // Another model's weights: the first tensor that does not fit.
    refused(
        |model| model.set("config.json", "/text_config/ffn_dim", 80.into()),
        &[WEIGHTS, "fc1", "[72", "[80", "config.json"],
    );
    refused(
        |model| model.set("config.json", "/vision_config/num_hidden_layers", 4.into()),
        &["vision_model.encoder.layers.3", "is missing"],
    );
}

fn put_f16(file: &mut Safetensors, tensor: &str, element: usize, bits: u16) {
    let at = file.range(tensor).start + 2 * element;
    file.data[at..at + 2].copy_from_slice(&bits.to_le_bytes());
}

#[test]
fn weights_that_are_not_numbers() {
    const NAN: u16 = 0x7E00;
    const INFINITY: u16 = 0x7C00;
    refused(
        |model| model.tamper(|file| put_f16(file, FC1, 7, NAN)),
        &[WEIGHTS, FC1, "NaN", "element 7", "intact"],
    );
    refused(
        |model| model.tamper(|file| put_f16(file, FC1, 0, INFINITY)),
        &[WEIGHTS, FC1, "inf", "element 0"],
    );
    let norm: Spoil = |model| {
        model.tamper(|file| put_f16(file, "vision_model.post_layernorm.weight", 3, NAN));
    };
    refused(
        norm,
        &[
            WEIGHTS,
            "vision_model.post_layernorm.weight",
            "NaN",
            "element 3",
        ],
    );
}

/// Splits the weights in two shards with an index, which `change` may spoil.
fn shard(model: &ModelCopy, change: impl FnOnce(&mut Value)) {
    let mut map = serde_json::Map::new();
    let whole = Safetensors::read(&model.file(WEIGHTS));
    for (number, name) in ["a.safetensors", "b.safetensors"].into_iter().enumerate() {
        let mut header = serde_json::Map::new();
        let mut data = Vec::new();
        for (tensor, info) in &whole.header {
            let text = tensor.starts_with("language_model");
            if tensor == "__metadata__" || text != (number == 1) {
                continue;
            }
            let start = data.len();
            data.extend(&whole.data[whole.range(tensor)]);
            let mut info = info.clone();
            info["data_offsets"] = json!([start, data.len()]);
            header.insert(tensor.clone(), info);
            map.insert(tensor.clone(), name.into());
        }
        Safetensors { header, data }.write(&model.file(name));
    }
    let mut index = json!({"metadata": {}, "weight_map": map});
    change(&mut index);
    model.write("model.safetensors.index.json", index.to_string());
    model.remove(&[WEIGHTS]);
}

#[test]
fn shards() {
    const INDEX: &str = "model.safetensors.index.json";
    accepted(|model| shard(model, |_| {}));
    refused(
        |model| {
            shard(model, |_| {});
            model.remove(&["b.safetensors"]);
        },
        &[INDEX, "b.safetensors", "missing", "download"],
    );
    refused(
        |model| {
            shard(model, |index| {
                index["weight_map"][FC1] = "a.safetensors".into()
            })
        },
        &["a.safetensors", FC1, "download"],
    );
    refused(
        |model| {
            shard(model, |index| {
                index["weight_map"][FC1] = "../x.safetensors".into()
            })
        },
        &[INDEX, "../x.safetensors", "plain file name"],
    );
    refused(
        |model| shard(model, |index| index["weight_map"] = json!({})),
        &[INDEX, "no tensor"],
    );
    refused(
        |model| shard(model, |index| index["weight_map"] = json!([1])),
        &[INDEX, "not a shard index"],
    );
    refused(
        |model| {
            shard(model, |_| {});
            model.write(INDEX, "{");
        },
        &[INDEX, "not a shard index", "again"],
    );
    refused(
        |model| {
            shard(model, |_| {});
            let bytes = std::fs::read(model.file("b.safetensors")).unwrap();
            model.write("b.safetensors", half(&bytes));
        },
        &["b.safetensors", "truncated", "again"],
    );
}

/// Adds a tensor of two numbers.
fn add_tensor(weights: &mut Safetensors, name: &str) {
    let start = weights.data.len();
    weights.data.extend([0; 8]);
    let tensor = json!({"dtype": "F32", "shape": [2], "data_offsets": [start, start + 8]});
    weights.header.insert(name.into(), tensor);
}

/// An adapter would change the model: to pass over it is to give another model's texts.
#[test]
fn adapters_are_refused_by_name() {
    const CONFIG: &str = "adapter_config.json";
    let config =
        json!({"peft_type": "LORA", "base_model_name_or_path": "Salesforce/blip2-opt-2.7b"});
    let beside: Spoil = |model| model.write(CONFIG, "{\"peft_type\": \"LORA\"}");
    refused(beside, &[CONFIG, "LORA", "merge_and_unload"]);
    refused(
        |model| model.write(CONFIG, ""),
        &[CONFIG, "merge_and_unload"],
    );
    let model = ModelCopy::new();
    model.write(CONFIG, config.to_string());
    let out = model.file("converted.npy");
    let out = out.to_str().unwrap();
    let model_path = model.path().to_str().unwrap();
    for command in [
        &["inspect", model_path][..],
        &["convert", model_path, out],
        &["vqa", HOUSE, "what?", "--model", model_path],
        &["embed", "image", HOUSE, "--out", out, "--model", model_path],
    ] {
        run(command)
            .exits(1)
            .one_error(&[CONFIG, "LORA, of Salesforce/blip2-opt-2.7b"]);
    }
    // An adapter alone.
    model.remove(&["config.json", WEIGHTS]);
    model.write("adapter_model.safetensors", "");
    caption(model.path(), &[HOUSE])
        .exits(1)
        .one_error(&[CONFIG, "merge_and_unload"]);
    // Its weights without it, or a link that leads nowhere; the weights named themselves.
    refused(
        |model| model.write("adapter_model.bin", "x"),
        &["adapter_model.bin", "merge_and_unload"],
    );
    let model = ModelCopy::new();
    model.write(CONFIG, "{}");
    caption(model.file(WEIGHTS), &[HOUSE])
        .exits(1)
        .one_error(&[CONFIG]);
    #[cfg(unix)]
    refused(
        |model| std::os::unix::fs::symlink("gone", model.file(CONFIG)).unwrap(),
        &[CONFIG, "merge_and_unload"],
    );
    // In a folder of its own it is nobody's; it is named.
    let model = ModelCopy::new();
    std::fs::create_dir(model.file("default")).unwrap();
    model.write("default/adapter_config.json", "{}");
    caption(model.path(), &[HOUSE])
        .exits(0)
        .says(&["default", "which is not applied"]);
    // Its weights in the model's file, or alone.
    let unmerged: Spoil = |model| {
        model.tamper(|weights| {
            add_tensor(
                weights,
                "language_model.model.decoder.layers.0.self_attn.q_proj.lora_A.default.weight",
            );
        });
    };
    refused(unmerged, &[WEIGHTS, "q_proj.lora_A", "merge_and_unload"]);
}

#[test]
fn blocks_that_are_not_run_are_named() {
    let model = ModelCopy::new();
    model.set("config.json", "/vision_config/num_hidden_layers", json!(2));
    let said = [
        "tensors are no part of the model",
        "vision_model.encoder.layers.2.",
    ];
    caption(model.path(), &[HOUSE]).exits(0).says(&said);
}

#[test]
fn tensors_that_are_left_over_are_named_in_every_command() {
    let model = ModelCopy::new();
    model.tamper(|weights| {
        for number in 0..7 {
            add_tensor(weights, &format!("language_model.extra.{number}"));
        }
    });
    let said = [
        "7 tensors are no part of the model",
        "language_model.extra.0",
        "and 2 more",
    ];
    let line = caption(model.path(), &[HOUSE])
        .exits(0)
        .says(&said)
        .one_json();
    assert_eq!(line["tokens"], plain_captions()[0]["tokens"]);
    let path = model.path().to_str().unwrap();
    run(["vqa", HOUSE, "what?", "--model", path])
        .exits(0)
        .says(&said);
    let out = model.file("stages");
    let out = out.to_str().unwrap();
    run(["stages", HOUSE, "--out", out, "--model", path])
        .exits(0)
        .says(&said);
}

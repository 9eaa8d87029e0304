//! Which tensors, types and files a conversion writes.

use std::path::{Path, PathBuf};

use blip2_wgpu::convert::{Conversion, ConvertError, ConvertOptions, Family, Task, convert};
use blip2_wgpu::weights::{Checkpoint, Format};
use safetensors::Dtype;

use super::{data, generative, retrieval, same_model, with_t5};
use crate::cli_support::{Safetensors, run};

/// Converts into a folder of its own.
fn converted(
    input: &Path,
    options: &ConvertOptions,
) -> Result<(tempfile::TempDir, PathBuf, Conversion), ConvertError> {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let mut steps = Vec::new();
    let conversion = convert(input, &out, options, &mut |done, total| {
        steps.push((done, total))
    })?;
    assert_eq!(steps.last(), Some(&(conversion.bytes, conversion.bytes)));
    let entries = std::fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(entries, 1, "nothing but the result");
    Ok((folder, out, conversion))
}

fn cases() -> [(&'static str, ConvertOptions, Family, Task, &'static str); 8] {
    use {Family::*, Task::*};
    let f16 = |options| ConvertOptions {
        format: Some(Format::F16),
        ..options
    };
    [
        (
            "lavis_pretrained.pth",
            generative(true, true),
            Lavis,
            Generation,
            "micro",
        ),
        (
            "lavis_caption.pth",
            f16(generative(false, true)),
            Lavis,
            Generation,
            "micro",
        ),
        ("lavis_flant5.pth", with_t5(), Lavis, Generation, "micro-t5"),
        (
            "mmpretrain_caption.pth",
            generative(false, true),
            Mmpretrain,
            Generation,
            "micro",
        ),
        (
            "micro",
            ConvertOptions::default(),
            HuggingFace,
            Generation,
            "micro",
        ),
        (
            "lavis_retrieval.pth",
            retrieval(false),
            Lavis,
            Retrieval,
            "micro-itm",
        ),
        (
            "mmpretrain_retrieval.pth",
            retrieval(false),
            Mmpretrain,
            Retrieval,
            "micro-itm",
        ),
        (
            "micro-itm",
            ConvertOptions::default(),
            HuggingFace,
            Retrieval,
            "micro-itm",
        ),
    ]
}

#[test]
fn converted_checkpoints_are_bit_by_bit_those_they_were_made_from() {
    for (input, options, family, task, expected) in cases() {
        let (_folder, out, conversion) = converted(&data(input), &options).unwrap();
        assert_eq!(
            (conversion.kind.family, conversion.kind.task),
            (family, task),
            "{input}"
        );
        assert_eq!(conversion.shards, 1);
        assert!(
            conversion.unknown.is_empty(),
            "{input}: {:?}",
            conversion.unknown
        );
        same_model(&out, &data(expected));
        let again = |name: &str| std::fs::read_to_string(out.join(name)).unwrap();
        let json = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
        let settings = [
            "preprocessor_config.json",
            "processor_config.json",
            "generation_config.json",
        ];
        for name in &settings[..if task == Task::Generation { 3 } else { 2 }] {
            let theirs = std::fs::read_to_string(data(expected).join(name)).unwrap();
            assert_eq!(json(&again(name)), json(&theirs), "{input}: {name}");
        }
    }
}

#[test]
fn the_first_stage_takes_its_vision_transformer_from_elsewhere() {
    let (_folder, out, conversion) =
        converted(&data("lavis_stage1.pth"), &retrieval(true)).unwrap();
    assert_eq!(conversion.kind.task, Task::Retrieval);
    let (ours, itm, eva) = (
        Checkpoint::open(&out).unwrap(),
        Checkpoint::open(data("micro-itm")).unwrap(),
        Checkpoint::open(data("micro")).unwrap(),
    );
    for tensor in ours.tensors() {
        // The fixture's vision transformer is the generative model's; its last norm is the checkpoint's own.
        let from = match tensor.name.starts_with("vision_model.")
            && !tensor.name.contains("post_layernorm")
        {
            true => &eva,
            false => &itm,
        };
        assert!(
            from.get(tensor.name).unwrap().bytes == tensor.bytes,
            "{}",
            tensor.name
        );
    }
    let reason = |name: &str| {
        let found = conversion
            .left_out
            .iter()
            .find(|(stored, _)| stored == name);
        found.map(|(_, reason)| reason.as_str()).unwrap_or_default()
    };
    assert!(reason("temp").contains("temperature"));
    assert!(reason("Qformer.cls.predictions.decoder.weight").contains("word predictions"));
    assert!(reason("blocks.2.mlp.fc1.weight").contains("beyond the 2 blocks"));
    assert!(reason("head.weight").contains("classifier"));
}

#[test]
fn element_types_stay_unless_asked_for() {
    let dtypes = |format| {
        let options = ConvertOptions {
            format,
            ..generative(false, true)
        };
        let (_folder, out, _) = converted(&data("lavis_caption.pth"), &options).unwrap();
        let config = std::fs::read_to_string(out.join("config.json")).unwrap();
        let config: serde_json::Value = serde_json::from_str(&config).unwrap();
        let checkpoint = Checkpoint::open(&out).unwrap();
        let dtype = |name: &str| checkpoint.tensor(name).unwrap().dtype;
        let bias = "vision_model.encoder.layers.0.self_attn.qkv.bias"; // of two tensors
        let words = "language_model.model.decoder.embed_tokens.weight"; // of --llm, in f16
        (
            dtype("query_tokens"),
            dtype(bias),
            dtype(words),
            config["torch_dtype"].clone(),
        )
    };
    assert_eq!(
        dtypes(None),
        (Dtype::F32, Dtype::F32, Dtype::F16, "float32".into())
    );
    assert_eq!(
        dtypes(Some(Format::F16)),
        (Dtype::F16, Dtype::F16, Dtype::F16, "float16".into())
    );
    assert_eq!(
        dtypes(Some(Format::F32)),
        (Dtype::F32, Dtype::F32, Dtype::F32, "float32".into())
    );
}

#[test]
fn large_models_are_split_into_shards() {
    let options = ConvertOptions {
        shard_bytes: 20_000,
        ..generative(true, true)
    };
    let (_folder, out, conversion) = converted(&data("lavis_pretrained.pth"), &options).unwrap();
    assert_eq!(conversion.shards, 3);
    assert!(!out.join("model.safetensors").exists());
    let shards: Vec<_> = (1..=3)
        .map(|n| out.join(format!("model-{n:05}-of-00003.safetensors")))
        .collect();
    for shard in &shards {
        let tensors = Checkpoint::open(shard).unwrap();
        assert!(tensors.total_bytes() <= 20_000);
    }
    same_model(&out, &data("micro"));
}

/// A folder with a language model in safetensors, names from `model.decoder.`, and a head that is `head` times the
/// token embedding.
fn opt_with_head(head: f32) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let micro = Checkpoint::open(data("micro")).unwrap();
    let prefix = "language_model.";
    let mut tensors: Vec<(String, Vec<usize>, Vec<u8>)> = micro
        .tensors()
        .filter_map(|view| {
            Some((
                view.name.strip_prefix(prefix)?.to_owned(),
                view.shape.to_vec(),
                view.bytes.to_vec(),
            ))
        })
        .collect();
    let words = tensors
        .iter()
        .find(|(name, ..)| name.ends_with("embed_tokens.weight"))
        .unwrap()
        .clone();
    let scaled = words.2.chunks(2).flat_map(|b| {
        let value = half::f16::from_le_bytes([b[0], b[1]]).to_f32() * head;
        half::f16::from_f32(value).to_le_bytes()
    });
    tensors.push(("lm_head.weight".into(), words.1, scaled.collect()));
    let views = tensors.iter().map(|(name, shape, bytes)| {
        (
            name,
            safetensors::tensor::TensorView::new(Dtype::F16, shape.clone(), bytes).unwrap(),
        )
    });
    let file = folder.path().join("model.safetensors");
    std::fs::write(file, safetensors::serialize(views, None).unwrap()).unwrap();
    for name in [
        "config.json",
        "vocab.json",
        "merges.txt",
        "tokenizer_config.json",
        "special_tokens_map.json",
    ] {
        std::fs::copy(data("opt").join(name), folder.path().join(name)).unwrap();
    }
    folder
}

#[test]
fn a_tied_head_is_dropped_and_another_kept() {
    for (scale, kept) in [(1.0, false), (2.0, true)] {
        let llm = opt_with_head(scale);
        let mut options = generative(true, true);
        options.parts.llm = Some(llm.path().into());
        let (_folder, out, conversion) =
            converted(&data("lavis_pretrained.pth"), &options).unwrap();
        let head = Checkpoint::open(&out)
            .unwrap()
            .get("language_model.lm_head.weight")
            .is_some();
        assert_eq!(head, kept);
        assert!(conversion.unknown.is_empty());
        if !kept {
            same_model(&out, &data("micro"));
        }
    }
}

#[test]
fn older_revisions_of_transformers_get_todays_names() {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(data("micro")).unwrap() {
        let file = entry.unwrap().path();
        std::fs::copy(&file, folder.path().join(file.file_name().unwrap())).unwrap();
    }
    let file = folder.path().join("model.safetensors");
    let mut tensors = Safetensors::read(&file);
    tensors.header = tensors
        .header
        .into_iter()
        .map(|(name, info)| match name.as_str() {
            "__metadata__" => (name, info),
            _ => (
                format!(
                    "module.{}",
                    name.replace("qformer.layernorm.", "qformer.embeddings.layernorm.")
                ),
                info,
            ),
        })
        .collect();
    let extra = tensors.header["module.language_projection.bias"].clone();
    tensors.header.remove("module.language_projection.bias");
    tensors
        .header
        .insert("module.language_projection.bias".into(), extra);
    tensors.write(&file);
    let (_folder, out, _) = converted(folder.path(), &ConvertOptions::default()).unwrap();
    same_model(&out, &data("micro"));
}

#[test]
fn tensors_of_no_known_use_are_listed() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["config.json", "tokenizer.json", "preprocessor_config.json"] {
        std::fs::copy(data("micro").join(name), folder.path().join(name)).unwrap();
    }
    let file = folder.path().join("model.safetensors");
    let mut tensors = Safetensors::read(&data("micro/model.safetensors"));
    let end = tensors.data.len();
    tensors.data.extend([0; 4]);
    let info = serde_json::json!({"dtype": "F16", "shape": [2], "data_offsets": [end, end + 4]});
    tensors.header.insert("adapter.weight".into(), info);
    tensors.write(&file);
    let out = folder.path().join("out");
    let run = run([
        "convert".as_ref(),
        folder.path().as_os_str(),
        out.as_os_str(),
        "--json".as_ref(),
    ])
    .exits(0);
    assert_eq!(
        run.one_json()["unknown"],
        serde_json::json!(["adapter.weight"])
    );
    assert_eq!(run.one_json()["family"], "Hugging Face");
    run.says(&["1 tensors are no part of the model", "adapter.weight"]);
    same_model(&out, &data("micro"));
}

#[test]
fn what_is_left_over_is_said_of_the_file_that_has_it() {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(data("micro")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    let file = folder.path().join("model.safetensors");
    let mut tensors = Safetensors::read(&file);
    let end = tensors.data.len();
    tensors.data.extend([0; 4]);
    let info = serde_json::json!({"dtype": "F16", "shape": [2], "data_offsets": [end, end + 4]});
    let name = "language_model.model.decoder.layers.0.extra.weight";
    tensors.header.insert(name.into(), info);
    tensors.write(&file);
    let house = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/house.png");
    let run = run([
        "caption".as_ref(),
        house.as_ref(),
        "--max-new-tokens=1".as_ref(),
        "--model".as_ref(),
        data("lavis_pretrained.pth").as_os_str(),
        "--vit".as_ref(),
        data("eva_vit.pth").as_os_str(),
        "--llm".as_ref(),
        folder.path().as_os_str(),
        "--config".as_ref(),
        data("micro/config.json").as_os_str(),
    ]);
    let said = format!("warn: {}: 1 tensors are no part", file.display());
    run.exits(0).says(&[&said, "layers.0.extra.weight"]);
}

#[test]
fn other_checkpoints_lend_their_parts() {
    let mut options = generative(false, false);
    options.parts.vit = Some(data("lavis_caption.pth"));
    options.parts.llm = Some(data("micro"));
    options.format = Some(Format::F16);
    let (_folder, out, conversion) = converted(&data("lavis_pretrained.pth"), &options).unwrap();
    assert!(conversion.unknown.is_empty(), "{:?}", conversion.unknown);
    same_model(&out, &data("micro"));
}

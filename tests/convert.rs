//! `convert` on checkpoints in the names and containers of LAVIS, mmpretrain and transformers. They were made from
//! `tests/data/convert/micro` and `micro-itm` by `weights-tools/make_foreign.py`, so converting gives these again.

mod cli_support;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use blip2_wgpu::convert::{Conversion, ConvertError, ConvertOptions, Family, Task, convert};
use blip2_wgpu::model::Blip2Config;
use blip2_wgpu::weights::{Checkpoint, Format};
use cli_support::{HOUSE, Run, Safetensors, caption, run};
use safetensors::Dtype;

fn data(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests/data/convert", name]
        .iter()
        .collect()
}

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

/// Options for the generative fixtures.
fn generative(vit: bool, llm: bool) -> ConvertOptions {
    ConvertOptions {
        vit: vit.then(|| data("eva_vit.pth")),
        llm: llm.then(|| data("opt")),
        config: Some(data("micro/config.json")),
        ..ConvertOptions::default()
    }
}

/// Options for the retrieval fixtures.
fn retrieval(vit: bool) -> ConvertOptions {
    ConvertOptions {
        vit: vit.then(|| data("eva_vit.pth")),
        config: Some(data("micro-itm/config.json")),
        tokenizer: Some(data("micro-itm")),
        ..ConvertOptions::default()
    }
}

fn cases() -> [(&'static str, ConvertOptions, Family, Task, &'static str); 7] {
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

/// Fails unless both folders have the same tensors, bit by bit, and the same configuration.
#[track_caller]
fn same_model(out: &Path, expected: &Path) {
    let (ours, theirs) = (
        Checkpoint::open(out).unwrap(),
        Checkpoint::open(expected).unwrap(),
    );
    let names = |checkpoint: &Checkpoint| checkpoint.names().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(names(&ours), names(&theirs));
    for (a, b) in ours.tensors().zip(theirs.tensors()) {
        assert_eq!((a.dtype, a.shape), (b.dtype, b.shape), "{}", a.name);
        assert!(a.bytes == b.bytes, "{} differs", a.name);
    }
    assert_eq!(
        Blip2Config::open(out).unwrap(),
        Blip2Config::open(expected).unwrap()
    );
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
        let options = ConvertOptions {
            llm: Some(llm.path().into()),
            ..generative(true, true)
        };
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

/// Runs `convert INPUT OUT ARGUMENTS`, paths among the arguments being fixtures'.
fn convert_run(input: &Path, out: &Path, arguments: &[&str]) -> Run {
    let arguments = arguments
        .iter()
        .map(|argument| match argument.strip_prefix('@') {
            Some(fixture) => data(fixture).into_os_string(),
            None => argument.into(),
        });
    let start = ["convert".into(), input.into(), out.into()];
    run(start.into_iter().chain(arguments))
}

const LAVIS: [&str; 6] = [
    "--vit",
    "@eva_vit.pth",
    "--llm",
    "@opt",
    "--config",
    "@micro/config.json",
];

#[test]
fn a_converted_checkpoint_captions_and_answers_as_its_original() {
    let folder = tempfile::tempdir().unwrap();
    let answer = |model: &Path| {
        let arguments = ["vqa", HOUSE, "what is this?", "--json", "--model"].map(OsStr::new);
        run(arguments.into_iter().chain([model.as_os_str()]))
            .exits(0)
            .one_json()
    };
    let expected_answer = answer(&data("micro"));
    let expected = caption(data("micro"), &[HOUSE]).exits(0).one_json();
    for (number, (input, arguments)) in [
        ("lavis_pretrained.pth", &LAVIS[..]),
        ("lavis_caption.pth", &LAVIS[2..]), // in f32, equal values
        ("mmpretrain_caption.pth", &LAVIS[2..]),
    ]
    .into_iter()
    .enumerate()
    {
        let out = folder.path().join(number.to_string());
        let run = convert_run(&data(input), &out, arguments).exits(0);
        assert!(
            run.stdout.contains("generative checkpoint, 113 tensors"),
            "{run:#?}"
        );
        run.says(&["left out: ", "position_ids"]);
        let ours = caption(&out, &[HOUSE]).exits(0).one_json();
        assert_eq!(ours, expected, "{input}");
        assert_eq!(answer(&out), expected_answer, "{input}");
        let inspected =
            cli_support::run(["inspect".as_ref(), out.as_os_str(), "--json".as_ref()]).exits(0);
        assert_eq!(
            inspected.one_json()["unused_tensors"],
            serde_json::json!([])
        );
    }
}

/// `convert` of bytes fails with one line that holds `parts`, and leaves nothing.
#[track_caller]
fn refused(name: &str, bytes: &[u8], arguments: &[&str], parts: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join(name);
    std::fs::write(&input, bytes).unwrap();
    refused_in(&folder, &input, arguments, parts);
}

#[track_caller]
fn refused_in(folder: &tempfile::TempDir, input: &Path, arguments: &[&str], parts: &[&str]) {
    let before = std::fs::read_dir(folder.path()).unwrap().count();
    let out = folder.path().join("out");
    let run = convert_run(input, &out, arguments)
        .exits(1)
        .one_error(parts);
    assert_eq!(run.stdout, "");
    assert_eq!(
        std::fs::read_dir(folder.path()).unwrap().count(),
        before,
        "nothing is left"
    );
}

#[test]
fn files_that_cannot_be_read_are_refused() {
    let good = std::fs::read(data("lavis_pretrained.pth")).unwrap();
    let legacy = std::fs::read(data("lavis_caption.pth")).unwrap();
    refused(
        "half.pth",
        &good[..good.len() / 2],
        &LAVIS,
        &["half.pth", "cut off or damaged", "download"],
    );
    refused(
        "half.pth",
        &legacy[..legacy.len() / 2],
        &LAVIS,
        &["half.pth", "ends inside storage", "download"],
    );
    refused("empty.pth", b"", &LAVIS, &["empty.pth", "is empty"]);
    let image = std::fs::read(HOUSE).unwrap();
    refused(
        "image.pth",
        &image,
        &LAVIS,
        &["image.pth", "no file that torch.save wrote"],
    );
    refused(
        "list.pkl",
        b"\x80\x02].",
        &LAVIS,
        &["list.pkl", "not one of PyTorch's"],
    );
    refused(
        "lfs.pth",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00",
        &LAVIS,
        &["Git LFS pointer"],
    );

    // A pickle that would run a command in PyTorch: refused by name, and nothing of it happens.
    let proof = tempfile::tempdir().unwrap().path().join("ran");
    let at = legacy
        .windows(11)
        .position(|w| w == b"ccollection")
        .unwrap();
    let command = format!("touch {}", proof.display());
    let mut evil = legacy[..at].to_vec();
    evil.extend(b"cposix\nsystem\nX");
    evil.extend((command.len() as u32).to_le_bytes());
    evil.extend(command.as_bytes());
    evil.extend(b"\x85R0");
    evil.extend(&legacy[at..]);
    refused(
        "evil.pth",
        &evil,
        &LAVIS,
        &["evil.pth", "asks for posix.system", "nothing of it was run"],
    );
    assert!(!proof.exists());

    let folder = tempfile::tempdir().unwrap();
    refused_in(
        &folder,
        Path::new("no/such.pth"),
        &LAVIS,
        &["no/such.pth", "check the path"],
    );
    refused_in(&folder, folder.path(), &LAVIS, &["has no weights"]);
    std::fs::write(folder.path().join("a.pth"), &good).unwrap();
    refused_in(
        &folder,
        folder.path(),
        &LAVIS,
        &["name a file of it", "a.pth"],
    );
}

#[test]
fn parts_that_are_missing_name_the_option_that_supplies_them() {
    let folder = tempfile::tempdir().unwrap();
    let generative = data("lavis_pretrained.pth");
    let refused = |input: &Path, arguments: &[&str], parts: &[&str]| {
        refused_in(&folder, input, arguments, parts)
    };
    refused(
        &generative,
        &[],
        &[
            "lavis_pretrained.pth",
            "vision transformer",
            "LAVIS",
            "--vit FILE",
            "eva_vit_g.pth",
        ],
    );
    refused(&generative, &LAVIS[..2], &["language model", "--llm DIR"]);
    refused(
        &data("mmpretrain_caption.pth"),
        &[],
        &["language model", "mmpretrain", "--llm DIR"],
    );
    refused(
        &generative,
        &LAVIS[..4],
        &["none of a published model's", "--config"],
    );
    refused(
        &data("lavis_retrieval.pth"),
        &[],
        &["no tokenizer", "vocab.txt", "--tokenizer DIR"],
    );
    let tokenizer = [&LAVIS[..], &["--tokenizer", "@reader"]].concat();
    refused(&generative, &tokenizer, &["reader", "has no tokenizer"]);
    refused(
        &data("micro/model.safetensors"),
        &["--config", "@nothing.json"],
        &["nothing.json", "cannot be read"],
    );
}

#[test]
fn files_of_other_models_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |input: &str, arguments: &[&str], parts: &[&str]| {
        refused_in(&folder, &data(input), arguments, parts)
    };
    refused("eva_vit.pth", &[], &["vision transformer alone", "--vit"]);
    refused("opt", &[], &["language model alone", "--llm"]);
    refused("reader/zip.pth", &[], &["no Q-Former", "brain"]);
    // Swapped, or of another size.
    let swapped = [
        "--vit",
        "@opt",
        "--llm",
        "@opt",
        "--config",
        "@micro/config.json",
    ];
    refused(
        "lavis_pretrained.pth",
        &swapped,
        &["opt", "has no vision transformer", "--vit FILE"],
    );
    let no_language = [
        "--vit",
        "@eva_vit.pth",
        "--llm",
        "@reader/zip.pth",
        "--config",
        "@micro/config.json",
    ];
    refused(
        "lavis_pretrained.pth",
        &no_language,
        &["zip.pth", "no language model", "--llm DIR"],
    );
    let other_llm = [
        "--vit",
        "@eva_vit.pth",
        "--llm",
        "@../tiny",
        "--config",
        "@micro/config.json",
        "--tokenizer",
        "@micro",
    ];
    refused("lavis_pretrained.pth", &other_llm, &["shape"]);
    let other_config = [&LAVIS[..4], &["--config", "@../tiny/config.json"]].concat();
    refused(
        "lavis_pretrained.pth",
        &other_config,
        &["language model 40 wide", "trained with one 8 wide"],
    );
    let retrieval = [
        "--config",
        "@micro/config.json",
        "--tokenizer",
        "@micro-itm",
    ];
    refused(
        "lavis_retrieval.pth",
        &retrieval,
        &["lacks", "language_projection"],
    );
}

#[test]
fn a_result_that_exists_or_cannot_be_written_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("there");
    std::fs::create_dir(&out).unwrap();
    let input = data("lavis_pretrained.pth");
    convert_run(&input, &out, &LAVIS)
        .exits(1)
        .one_error(&["there", "exists already"]);
    assert_eq!(std::fs::read_dir(&out).unwrap().count(), 0);
    let out = folder.path().join("no/such/out");
    convert_run(&input, &out, &LAVIS)
        .exits(1)
        .one_error(&["no/such", "cannot be written"]);
    convert_run(&input, Path::new("/"), &LAVIS).exits(1);
}

#[test]
fn values_that_the_type_cannot_hold_are_named() {
    let mut bytes = std::fs::read(data("lavis_caption.pth")).unwrap();
    // The last storage of the old format ends the file.
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&1e6f32.to_le_bytes());
    let f16 = [&LAVIS[2..], &["--dtype", "f16"]].concat();
    refused(
        "large.pth",
        &bytes,
        &f16,
        &["large.pth", "1000000", "beyond the range"],
    );
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("large.pth");
    std::fs::write(&input, &bytes).unwrap();
    convert_run(&input, &folder.path().join("out"), &LAVIS[2..]).exits(0);
    convert_run(&input, &folder.path().join("o2"), &["--dtype", "f8"]).exits(2);
}

#[test]
fn other_checkpoints_lend_their_parts() {
    let options = ConvertOptions {
        vit: Some(data("lavis_caption.pth")),
        llm: Some(data("micro")),
        format: Some(Format::F16),
        ..generative(false, false)
    };
    let (_folder, out, conversion) = converted(&data("lavis_pretrained.pth"), &options).unwrap();
    assert!(conversion.unknown.is_empty(), "{:?}", conversion.unknown);
    same_model(&out, &data("micro"));
}

#[test]
fn an_index_of_pytorchs_shards_is_read_with_care() {
    let refused = |index: &str, parts: &[&str]| {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("pytorch_model.bin.index.json"), index).unwrap();
        refused_in(&folder, folder.path(), &LAVIS, parts);
    };
    refused("[]", &["index.json", "no JSON object"]);
    refused("{}", &["names no shards"]);
    refused(
        r#"{"weight_map": {"a": "../x.bin"}}"#,
        &["../x.bin", "not a plain file name"],
    );
    refused(
        r#"{"weight_map": {"a": "x.bin"}}"#,
        &["x.bin", "cannot be read"],
    );
}

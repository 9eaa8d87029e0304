//! `inspect` and `parity`.

use std::path::Path;

use serde_json::{Value, json};

use crate::cli_support::{DUMP, HOUSE, ModelCopy, Safetensors, TINY, caption, run};
use crate::keys;

/// A tiny checkpoint with a T5.
const TINY_T5: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/tiny-t5");

#[test]
fn inspect_counts_parameters_and_bytes() {
    let report = run(["inspect", TINY, "--json"]).exits(0).one_json();
    assert_eq!(report["model"], TINY);
    let parameters = report["parameters"].as_u64().unwrap();
    let components = report["components"].as_object().unwrap();
    let sum: u64 = components
        .values()
        .map(|count| count.as_u64().unwrap())
        .sum();
    assert_eq!(sum, parameters);
    // The tiny checkpoint is in f16, two bytes an element.
    assert_eq!(report["file_bytes"], parameters * 2);
    for key in [
        "gpu_weight_bytes",
        "gpu_activation_bytes",
        "gpu_cache_bytes",
    ] {
        assert!(report[key].as_u64() > Some(0), "{key}: {report:?}");
    }
    assert!(report["gpu_weight_bytes"].as_u64().unwrap() >= parameters * 2);
    assert_eq!(report["unused_tensors"], json!([]));
    assert!(report["adapter"].is_string());

    let text = run(["inspect", TINY, "--tensors"]).exits(0).stdout;
    for words in [
        "ViT",
        "Q-Former",
        "OPT",
        "vocabulary 408",
        "parameters",
        "query_tokens",
    ] {
        assert!(text.contains(words), "{text}");
    }

    // A tensor too many is no failure, but is shown.
    let model = ModelCopy::new();
    model.tamper(|file| {
        let end = file.data.len();
        let info = json!({"dtype": "F16", "shape": [2], "data_offsets": [end, end + 4]});
        file.header.insert("ema.shadow".into(), info);
        file.data.extend([0; 4]);
    });
    let report = run(["inspect", "--json", model.path().to_str().unwrap()]).exits(0);
    assert_eq!(report.one_json()["unused_tensors"], json!(["ema.shadow"]));
    caption(model.path(), &[HOUSE]).exits(0).one_json();
}

/// Its configuration, as transformers 5 writes it, says that the output matrix is the embedding; the file has both.
#[test]
fn inspect_counts_an_output_matrix_that_only_the_file_tells_of() {
    let report = run(["inspect", TINY_T5, "--json"]).exits(0).one_json();
    assert_eq!(report["config"]["text_config"]["tie_word_embeddings"], true);
    let parameters = report["parameters"].as_u64().unwrap();
    assert_eq!(report["file_bytes"], parameters * 2);
    let text = run(["inspect", TINY_T5, "--tensors"]).exits(0).stdout;
    assert!(text.contains("language_model.lm_head.weight"), "{text}");
}

/// A dump with fewer prompts, for speed, changed further by `change`.
fn small_dump(folder: &Path, change: impl FnOnce(&mut Value, &mut Safetensors)) -> String {
    let mut dump = Safetensors::read(Path::new(DUMP));
    let text = dump.header["__metadata__"]["blip2_reference"]
        .as_str()
        .unwrap();
    let mut reference: Value = serde_json::from_str(text).unwrap();
    reference["prompts"].as_array_mut().unwrap().truncate(1);
    reference["prompts"][0]["beams"] = json!({});
    change(&mut reference, &mut dump);
    dump.header["__metadata__"]["blip2_reference"] = reference.to_string().into();
    let file = folder.join("dump.safetensors");
    dump.write(&file);
    file.display().to_string()
}

fn flip_a_byte(file: &mut Safetensors, tensor: &str, byte: usize) {
    let start = file.range(tensor).start;
    file.data[start + byte] ^= 0x40;
}

#[test]
fn parity_passes_on_the_committed_dump() {
    let rows = run(["parity", TINY, DUMP, "--json"]).exits(0).json();
    for row in &rows {
        assert_eq!(
            keys(row),
            ["max_error", "note", "pass", "relative_error", "stage"]
        );
        assert_eq!(row["pass"], true, "{row:?}");
    }
    for stage in [
        "vit.embeddings",
        "vit.block.2",
        "vit.output",
        "qformer.layer.3",
        "projection",
        "prompt.0.opt.layer.2",
        "prompt.0.logits",
        "prompt.0.greedy",
        "prompt.1.greedy",
        "prompt.2.greedy",
        "prompt.0.beams.3",
        "prompt.0.beams.5",
    ] {
        let name = format!("image 1, {stage}");
        assert!(
            rows.iter().any(|row| row["stage"] == name.as_str()),
            "{name}"
        );
    }
}

#[test]
fn parity_takes_dumps_of_retrieval_models() {
    let data = |name: &str| format!("{}/tests/data/{name}", env!("CARGO_MANIFEST_DIR"));
    let (model, dump) = (data("tiny-itm"), data("tiny_itm_dump.safetensors"));
    let rows = run(["parity", &model, &dump, "--json"]).exits(0).json();
    assert!(rows.iter().all(|row| row["pass"] == true), "{rows:#?}");
    for stage in [
        "image 1, vit.output",
        "image 0, qformer.output",
        "image 1, image_embeds",
        "text.4.embeddings",
        "text.4.output",
        "text.3.text_embeds",
        "pair.1.4.itm",
        "pair.0.2.itc",
    ] {
        assert!(rows.iter().any(|row| row["stage"] == stage), "{stage}");
    }
    // Each kind of dump with the other kind of model.
    let swapped = run(["parity", TINY, &dump]).exits(1);
    swapped.one_error(&["tiny", "generative"]);
    run(["parity", &model, DUMP])
        .exits(1)
        .one_error(&["tiny-itm", "retrieval"]);
    // A dump whose pictures do not lie beside it.
    let folder = tempfile::tempdir().expect("a folder");
    let moved = folder.path().join("moved.safetensors");
    std::fs::copy(data("itm-vit-g_dump.safetensors"), &moved).expect("copied");
    let moved = moved.to_str().expect("UTF-8");
    run(["parity", &model, moved])
        .exits(1)
        .one_error(&["house.png"]);
}

#[test]
fn parity_fails_where_something_differs() {
    let folder = tempfile::tempdir().unwrap();
    let good = small_dump(folder.path(), |_, _| {});
    let table = run(["parity", TINY, &good]).exits(0).stdout;
    assert!(table.contains("pass") && !table.contains("FAIL"), "{table}");

    // Other weights: what comes before them still passes.
    let model = ModelCopy::new();
    model.tamper(|file| flip_a_byte(file, "vision_model.encoder.layers.1.mlp.fc1.weight", 41));
    let rows = run(["parity", model.path().to_str().unwrap(), &good, "--json"])
        .exits(1)
        .json();
    let passes = |stage: &str| {
        let row = rows.iter().find(|row| row["stage"] == stage);
        row.unwrap_or_else(|| panic!("no {stage}"))["pass"] == true
    };
    assert!(passes("image 0, vit.block.0"));
    assert!(!passes("image 0, vit.block.1"));

    // Another dump: one stage, and other tokens.
    let bad = small_dump(folder.path(), |reference, dump| {
        flip_a_byte(dump, "qformer.layer.2", 3);
        reference["prompts"][0]["greedy"][0]["tokens"][0] = 5.into();
    });
    let table = run(["parity", TINY, &bad]).exits(1).stdout;
    let failed: Vec<_> = table.lines().filter(|line| line.contains("FAIL")).collect();
    assert_eq!(failed.len(), 2, "{table}");
    assert!(failed[0].contains("image 0, qformer.layer.2"), "{table}");
    assert!(failed[1].contains("image 0, prompt.0.greedy"), "{table}");
}

type ChangeDump = fn(&mut Value, &mut Safetensors);

#[test]
fn parity_names_what_is_wrong_with_a_dump() {
    let folder = tempfile::tempdir().unwrap();
    let cases: [(ChangeDump, i32, &[&str]); 8] = [
        (
            |reference, _| reference["image_size"] = 70.into(),
            1,
            &["dump.safetensors", "pixel_values"],
        ),
        (
            |reference, _| reference["image_size"] = "big".into(),
            1,
            &["dump.safetensors", "metadata"],
        ),
        (
            |reference, _| reference["max_new_tokens"] = 0.into(),
            1,
            &["dump.safetensors", "max_new_tokens"],
        ),
        (
            |reference, _| reference["max_new_tokens"] = 900.into(),
            1,
            &["dump.safetensors", "positions", "64"],
        ),
        (
            |reference, _| reference["prompts"][0]["prompt"] = "another".into(),
            1,
            &["dump.safetensors", "another", "tokenizer"],
        ),
        (
            |_, dump| dump.remove("pixel_values"),
            1,
            &["dump.safetensors", "pixel_values", "missing"],
        ),
        (
            |_, dump| dump.header["pixel_values"]["shape"] = json!([1, 6, 42, 42]),
            1,
            &["dump.safetensors", "pixel_values"],
        ),
        (
            |reference, _| {
                reference["prompts"][0]["beams"] = json!({"77": [[{"tokens": [1], "score": 0.0}]]})
            },
            1,
            &["dump.safetensors", "num_beams", "77"],
        ),
    ];
    for (change, code, parts) in cases {
        let dump = small_dump(folder.path(), change);
        run(["parity", TINY, &dump]).exits(code).one_error(parts);
    }
    for (file, parts) in [
        (
            "/nowhere.safetensors",
            &["/nowhere.safetensors", "reference_dump.py"][..],
        ),
        (HOUSE, &["house.png", "reference_dump.py"]),
        (
            concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/tests/data/tiny/model.safetensors"
            ),
            &["blip2_reference"],
        ),
    ] {
        run(["parity", TINY, file]).exits(1).one_error(parts);
    }
}

//! What a converted checkpoint says: the captions, answers and scores of the one it was made from.

use std::ffi::OsStr;
use std::path::Path;

use serde_json::{Map, Value};

use super::{LAVIS, convert_run, data};
use crate::cli_support::{BOAT, HOUSE, Run, Safetensors, caption, run};

const T5: [&str; 6] = [
    "--vit",
    "@eva_vit.pth",
    "--llm",
    "@t5",
    "--config",
    "@micro-t5/config.json",
];

const RETRIEVAL: [&str; 4] = [
    "--config",
    "@micro-itm/config.json",
    "--tokenizer",
    "@micro-itm",
];

/// The answer of `model` to a question about the house.
fn answer(model: &Path) -> Map<String, Value> {
    let arguments = ["vqa", HOUSE, "what is this?", "--json", "--model"].map(OsStr::new);
    run(arguments.into_iter().chain([model.as_os_str()]))
        .exits(0)
        .one_json()
}

/// Nothing in the folder that the model has no use for.
fn nothing_unused(model: &Path) {
    let inspected = run(["inspect".as_ref(), model.as_os_str(), "--json".as_ref()]).exits(0);
    assert_eq!(
        inspected.one_json()["unused_tensors"],
        serde_json::json!([])
    );
}

#[test]
fn a_converted_checkpoint_captions_and_answers_as_its_original() {
    let folder = tempfile::tempdir().unwrap();
    let mut cases = vec![
        ("lavis_pretrained.pth", &LAVIS[..], "micro", 113),
        ("lavis_caption.pth", &LAVIS[2..], "micro", 113), // in f32, equal values
        ("mmpretrain_caption.pth", &LAVIS[2..], "micro", 113),
        ("lavis_flant5.pth", &T5[..], "micro-t5", 129),
    ];
    let mut said = Vec::new();
    while let Some((_, _, original, _)) = cases.first().copied() {
        let (these, others): (Vec<_>, Vec<_>) =
            cases.into_iter().partition(|case| case.2 == original);
        cases = others;
        let original = data(original);
        let expected = caption(&original, &[HOUSE, BOAT]).exits(0).json();
        let expected_answer = answer(&original);
        for (input, arguments, _, tensors) in these {
            let out = folder.path().join(input);
            let run = convert_run(&data(input), &out, arguments).exits(0);
            let kind = format!("generative checkpoint, {tensors} tensors");
            assert!(run.stdout.contains(&kind), "{run:#?}");
            run.says(&["left out: ", "position_ids"]);
            let ours = caption(&out, &[HOUSE, BOAT]).exits(0).json();
            assert_eq!(ours, expected, "{input}");
            assert_eq!(answer(&out), expected_answer, "{input}");
            nothing_unused(&out);
        }
        said.extend(expected);
    }
    // Not texts that any weights would give.
    assert_ne!(said[0]["tokens"], said[1]["tokens"]);
    assert_ne!(said[0]["tokens"], said[2]["tokens"]);
}

const TEXTS: [&str; 3] = [
    "a boat on the water",
    "A Dog, running: on the GRASS?",
    "hill",
];

/// `match` of both pictures with all texts, and `retrieve` in both directions among them.
fn scores(model: &Path, folder: &Path) -> Vec<Map<String, Value>> {
    let texts = folder.join("texts.txt");
    std::fs::write(&texts, TEXTS.join("\n")).unwrap();
    let images = folder.join("pictures");
    std::fs::create_dir_all(&images).unwrap();
    for (file, name) in [(HOUSE, "house.png"), (BOAT, "boat.png")] {
        std::fs::copy(file, images.join(name)).unwrap();
    }
    let shared = [
        OsStr::new("--json"),
        OsStr::new("--model"),
        model.as_os_str(),
    ];
    let json = |arguments: &[&OsStr]| -> Vec<Map<String, Value>> {
        let run: Run = run(arguments.iter().copied().chain(shared));
        run.exits(0).json()
    };
    let mut all =
        json(&["match", HOUSE, BOAT, "--text", TEXTS[0], TEXTS[1], TEXTS[2]].map(OsStr::new));
    assert_eq!(all.len(), 2 * TEXTS.len());
    for direction in ["i2t", "t2i"] {
        let found = json(&[
            OsStr::new("retrieve"),
            OsStr::new("--images"),
            images.as_os_str(),
            OsStr::new("--texts"),
            texts.as_os_str(),
            OsStr::new("--direction"),
            OsStr::new(direction),
        ]);
        assert_eq!(found.len(), 2 * TEXTS.len(), "{direction}");
        all.extend(found);
    }
    all
}

/// `micro-itm` with the vision transformer of `micro`, but its own last norm: what LAVIS's stage 1 is with `--vit`.
fn with_another_vision_transformer(folder: &Path) {
    std::fs::create_dir(folder).unwrap();
    for file in std::fs::read_dir(data("micro-itm")).unwrap() {
        let file = file.unwrap().path();
        std::fs::copy(&file, folder.join(file.file_name().unwrap())).unwrap();
    }
    let mut ours = Safetensors::read(&folder.join("model.safetensors"));
    let other = Safetensors::read(&data("micro/model.safetensors"));
    let vision =
        |name: &&String| name.starts_with("vision_model.") && !name.contains("post_layernorm");
    for name in other.header.keys().filter(vision) {
        let bytes = &other.data[other.range(name)];
        let place = ours.range(name);
        ours.data[place].copy_from_slice(bytes);
    }
    ours.write(&folder.join("model.safetensors"));
}

#[test]
fn a_converted_retrieval_checkpoint_scores_as_its_original() {
    let folder = tempfile::tempdir().unwrap();
    let mixed = folder.path().join("mixed");
    with_another_vision_transformer(&mixed);
    let stage1 = [&RETRIEVAL[..], &["--vit", "@eva_vit.pth"]].concat();
    let mut different = Vec::new();
    for (original, cases) in [
        (
            data("micro-itm"),
            vec![
                ("lavis_retrieval.pth", &RETRIEVAL[..]),
                ("mmpretrain_retrieval.pth", &RETRIEVAL[..]),
            ],
        ),
        (mixed.clone(), vec![("lavis_stage1.pth", &stage1[..])]),
    ] {
        let expected = scores(&original, folder.path());
        for (input, arguments) in cases {
            let out = folder.path().join(input);
            convert_run(&data(input), &out, arguments).exits(0);
            assert_eq!(scores(&out, folder.path()), expected, "{input}");
            nothing_unused(&out);
        }
        different.push(expected);
    }
    assert_ne!(different[0], different[1], "the weights decide");
}

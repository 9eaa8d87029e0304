//! What a converted checkpoint says, and one that is opened where it lies: the captions, answers and scores of the one it was
//! made from.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use serde_json::{Map, Value};

use super::{LAVIS, convert_run, data, expanded};
use crate::cli_support::{BOAT, HOUSE, Run, Safetensors, run};

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

/// What names a model on the command line.
type Model = Vec<OsString>;

/// A folder that is opened as it is.
fn folder_of(path: &Path) -> Model {
    vec!["--model".into(), path.into()]
}

/// A checkpoint file, opened with the parts it lacks.
fn file_of(input: &str, arguments: &[&str]) -> Model {
    let model = ["--model".into(), data(input).into_os_string()];
    model.into_iter().chain(expanded(arguments)).collect()
}

/// Runs `arguments --json` on `model`.
fn run_on(model: &Model, arguments: &[&str]) -> Run {
    let arguments = arguments.iter().chain(&["--json"]).map(OsString::from);
    run(arguments.chain(model.iter().cloned()))
}

/// The captions of both pictures, and the answer to a question about the house.
fn said_by(model: &Model) -> Vec<Map<String, Value>> {
    let mut said = run_on(model, &["caption", HOUSE, BOAT]).exits(0).json();
    said.push(
        run_on(model, &["vqa", HOUSE, "what is this?"])
            .exits(0)
            .one_json(),
    );
    said
}

/// Nothing that the model has no use for, but in a file a block of the vision transformer that it does not run.
fn nothing_unused(model: &Model) {
    let inspect = [OsString::from("inspect"), "--json".into()];
    let inspected = run(inspect.into_iter().chain(model[1..].iter().cloned())).exits(0);
    let unused = inspected.one_json()["unused_tensors"].clone();
    let unused: Vec<String> = serde_json::from_value(unused).unwrap();
    let is_file = model[1].to_string_lossy().ends_with(".pth");
    let beyond = |name: &String| is_file && name.starts_with("vision_model.encoder.layers.2.");
    assert!(unused.iter().all(beyond), "{model:?}: {unused:?}");
}

#[test]
fn a_checkpoint_captions_and_answers_as_its_original() {
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
        let expected = said_by(&folder_of(&data(original)));
        for (input, arguments, _, tensors) in these {
            let out = folder.path().join(input);
            let run = convert_run(&data(input), &out, arguments).exits(0);
            let kind = format!("generative checkpoint, {tensors} tensors");
            assert!(run.stdout.contains(&kind), "{run:#?}");
            run.says(&["left out: ", "position_ids"]);
            for model in [folder_of(&out), file_of(input, arguments)] {
                assert_eq!(said_by(&model), expected, "{model:?}");
                nothing_unused(&model);
            }
        }
        said.extend(expected);
    }
    // Not texts that any weights would give.
    assert_ne!(said[0]["tokens"], said[1]["tokens"]);
    assert_ne!(said[0]["tokens"], said[3]["tokens"]);
}

const TEXTS: [&str; 3] = [
    "a boat on the water",
    "A Dog, running: on the GRASS?",
    "hill",
];

/// `match` of both pictures with all texts, and `retrieve` in both directions among them.
fn scores(model: &Model, folder: &Path) -> Vec<Map<String, Value>> {
    let texts = folder.join("texts.txt");
    std::fs::write(&texts, TEXTS.join("\n")).unwrap();
    let images = folder.join("pictures");
    std::fs::create_dir_all(&images).unwrap();
    for (file, name) in [(HOUSE, "house.png"), (BOAT, "boat.png")] {
        std::fs::copy(file, images.join(name)).unwrap();
    }
    let json = |arguments: &[&OsStr]| -> Vec<Map<String, Value>> {
        let shared = model.iter().map(OsString::as_os_str);
        let arguments = arguments.iter().copied().chain([OsStr::new("--json")]);
        run(arguments.chain(shared)).exits(0).json()
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
fn a_retrieval_checkpoint_scores_as_its_original() {
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
        let expected = scores(&folder_of(&original), folder.path());
        for (input, arguments) in cases {
            let out = folder.path().join(input);
            convert_run(&data(input), &out, arguments).exits(0);
            for model in [folder_of(&out), file_of(input, arguments)] {
                assert_eq!(scores(&model, folder.path()), expected, "{model:?}");
                nothing_unused(&model);
            }
        }
        different.push(expected);
    }
    assert_ne!(different[0], different[1], "the weights decide");
}

#[test]
fn image_features_of_a_file_are_those_of_its_original() {
    let folder = tempfile::tempdir().unwrap();
    let features = |model: &Model, name: &str| {
        let out = folder.path().join(name);
        let arguments = ["embed", "image", HOUSE, "--kind", "qformer", "--out"];
        let arguments = arguments.map(OsString::from).into_iter();
        run(arguments
            .chain([out.clone().into()])
            .chain(model.iter().cloned()))
        .exits(0);
        std::fs::read(out).unwrap()
    };
    let file = file_of("lavis_pretrained.pth", &LAVIS);
    let expected = features(&folder_of(&data("micro")), "folder.npy");
    assert_eq!(features(&file, "file.npy"), expected);
}

#[test]
fn what_a_file_lacks_is_named_before_it_is_opened() {
    let lacking = |arguments: &[&str]| {
        let model = file_of("lavis_pretrained.pth", arguments);
        run_on(&model, &["caption", HOUSE]).exits(1)
    };
    lacking(&[]).one_error(&["lavis_pretrained.pth", "vision transformer", "--vit FILE"]);
    lacking(&LAVIS[..2]).one_error(&["the language model", "--llm DIR"]);
    lacking(&LAVIS[..4]).one_error(&["none of a published model's", "--config"]);
    let retrieval = file_of("lavis_retrieval.pth", &RETRIEVAL);
    run_on(&retrieval, &["caption", HOUSE])
        .exits(1)
        .one_error(&["lavis_retrieval.pth", "this is a retrieval model"]);
    // The demo model lacks nothing.
    run(["caption", HOUSE, "--llm", "opt"])
        .exits(2)
        .one_error(&["--llm", "--model"]);
}

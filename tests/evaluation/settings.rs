//! What binds a run of `eval` to its folder: model, questions and images; and what of a dataset is run and measured.

use std::path::{Path, PathBuf};

use crate::cli_support::{BOAT, HOUSE, Run, TINY, run};
use serde_json::{Value, json};

const TINY_ITM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/tiny-itm");

/// A folder with `images`, the house as 1 and the boat as 2, and what a test puts beside them.
struct World(tempfile::TempDir);

impl World {
    fn new() -> Self {
        let world = Self(tempfile::tempdir().expect("a temporary folder"));
        std::fs::create_dir(world.path("images")).expect("a folder");
        std::fs::copy(HOUSE, world.path("images/house.png")).expect("copied");
        std::fs::copy(BOAT, world.path("images/boat.png")).expect("copied");
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, value: &Value) {
        std::fs::write(self.path(name), value.to_string()).expect("written");
    }

    fn json(&self, name: &str) -> Value {
        let text = std::fs::read_to_string(self.path(name)).expect(name);
        serde_json::from_str(&text).expect("JSON")
    }

    /// Both images with the captions given.
    fn captions(&self, name: &str, house: &[&str], boat: &[&str]) {
        let mut annotations = Vec::new();
        for (image, captions) in [(1, house), (2, boat)] {
            for caption in captions {
                let id = annotations.len();
                annotations.push(json!({"id": id, "image_id": image, "caption": caption}));
            }
        }
        let images =
            json!([{"id": 1, "file_name": "house.png"}, {"id": 2, "file_name": "boat.png"}]);
        self.write(name, &json!({"images": images, "annotations": annotations}));
    }

    /// `eval TASK --images images --OPTION FILE … --out OUT`, paths below the folder.
    fn eval(&self, task: &[&str], files: &[(&str, &str)], more: &[&str]) -> Run {
        let mut arguments: Vec<String> = vec!["eval".into()];
        arguments.extend(task.iter().map(|&part| part.to_owned()));
        for (option, file) in files {
            arguments.push((*option).to_owned());
            arguments.push(self.path(file).display().to_string());
        }
        arguments.extend(more.iter().map(|&part| part.to_owned()));
        run(arguments)
    }

    fn caption(&self, model: impl AsRef<Path>, out: &str, more: &[&str]) -> Run {
        let model = model.as_ref().to_str().expect("UTF-8").to_owned();
        let files = [
            ("--images", "images"),
            ("--annotations", "truth.json"),
            ("--out", out),
        ];
        self.eval(
            &["caption"],
            &files,
            &[&["--model", &model][..], more].concat(),
        )
    }

    /// The tiny checkpoint in a folder of this name, with the last byte of its weights changed by `change`.
    fn model(&self, name: &str, change: u8) -> PathBuf {
        let folder = self.path(name);
        std::fs::create_dir_all(&folder).expect("a folder");
        for entry in std::fs::read_dir(TINY).expect("the tiny checkpoint") {
            let file = entry.expect("an entry").path();
            let mut bytes = std::fs::read(&file).expect("read");
            let name = file.file_name().expect("a name");
            if name == "model.safetensors" {
                let last = bytes.len() - 2;
                bytes[last] ^= change;
            }
            std::fs::write(folder.join(name), bytes).expect("written");
        }
        folder
    }
}

#[test]
fn a_run_goes_on_with_the_same_model_truth_and_images_alone() {
    let world = World::new();
    world.captions("truth.json", &["a house"], &["a boat"]);
    let tiny = world.model("one/tiny", 0);
    world.caption(&tiny, "out", &["--limit", "1"]).exits(0);
    // Another model of the same name.
    let other = world.model("two/tiny", 1);
    let refused = |run: Run, parts: &[&str]| {
        run.exits(1)
            .one_error(&[&["predictions.jsonl", "another --out"], parts].concat());
    };
    refused(
        world.caption(&other, "out", &[]),
        &["another model", "tiny", "other content"],
    );
    // Another truth of the same name.
    world.captions("truth.json", &["a house"], &["a ship"]);
    refused(
        world.caption(&tiny, "out", &[]),
        &["another annotations", "truth.json"],
    );
    world.captions("truth.json", &["a house"], &["a boat"]);
    // Other images.
    std::fs::create_dir(world.path("others")).expect("a folder");
    let files = [
        ("--images", "others"),
        ("--annotations", "truth.json"),
        ("--out", "out"),
        ("--model", "one/tiny"),
    ];
    refused(world.eval(&["caption"], &files, &[]), &["images", "others"]);
    // The same model elsewhere, and more of the dataset.
    let copy = world.model("copy", 0);
    world.caption(&copy, "out", &[]).exits(0);
    assert_eq!(
        world.json("out/results.json").as_array().map(Vec::len),
        Some(2)
    );
    // So with questions.
    let question = |text: &str| {
        let question =
            json!({"question_id": 7, "image_id": 1, "image": "house.png", "question": text});
        world.write("q.json", &json!([question]));
    };
    let vqa = || {
        let files = [
            ("--images", "images"),
            ("--questions", "q.json"),
            ("--out", "vqa"),
            ("--model", "one/tiny"),
        ];
        world.eval(&["vqa"], &files, &[])
    };
    question("what is it?");
    vqa()
        .exits(0)
        .says(&["q.json", "no metrics", "results.json"]);
    question("where is it?");
    refused(vqa(), &["another questions", "q.json"]);
}

#[test]
fn shards_within_a_limit_merge_and_may_be_empty() {
    let world = World::new();
    world.captions("truth.json", &["a house"], &["a boat"]);
    let limited =
        |out: &str, shard: &str| world.caption(TINY, out, &["--limit", "1", "--shard", shard]);
    limited("a", "1/2").exits(0);
    limited("b", "2/2").exits(0).says(&["nothing to do"]);
    let merge = |parts: &[&str], truth: &str, out: &str| {
        let parts: Vec<String> = parts
            .iter()
            .map(|part| world.path(part).display().to_string())
            .collect();
        let parts: Vec<&str> = [
            &["merge"],
            &parts.iter().map(String::as_str).collect::<Vec<_>>()[..],
        ]
        .concat();
        world.eval(
            &parts,
            &[
                ("--images", "images"),
                ("--annotations", truth),
                ("--out", out),
            ],
            &[],
        )
    };
    merge(&["a", "b"], "truth.json", "whole").exits(0);
    assert_eq!(
        world.json("whole/results.json").as_array().map(Vec::len),
        Some(1)
    );
    // Into the same folder: anew.
    merge(&["b", "a"], "truth.json", "whole").exits(0);
    // With another model, another limit, or by another truth: refused.
    let other = world.model("tiny", 1);
    world
        .caption(&other, "c", &["--limit", "1", "--shard", "2/2"])
        .exits(0);
    merge(&["a", "c"], "truth.json", "m1")
        .exits(1)
        .one_error(&["c", "another model", "one run"]);
    world.caption(TINY, "d", &["--shard", "2/2"]).exits(0);
    merge(&["a", "d"], "truth.json", "m2")
        .exits(1)
        .one_error(&["d", "--limit", "one run"]);
    world.captions("other.json", &["a hut"], &["a boat"]);
    merge(&["a", "b"], "other.json", "m3").exits(1).one_error(&[
        "other annotations",
        "truth.json",
        "other.json",
    ]);
    world.caption(TINY, "e", &["--limit", "0"]).exits(2);
}

#[test]
fn a_start_that_fails_does_not_claim_the_folder() {
    let world = World::new();
    world.captions("truth.json", &["a house"], &["a boat"]);
    world.caption(TINY_ITM, "out", &[]).exits(1);
    world.caption(TINY, "out", &["--image-size", "57"]).exits(2);
    world.caption(TINY, "out", &["--limit", "1"]).exits(0);
}

#[test]
fn images_without_captions_are_left_out_of_the_metrics() {
    let world = World::new();
    world.captions("truth.json", &["a house"], &[]);
    let run = world.caption(TINY, "some", &["--json"]).exits(0);
    let run = run.says(&["warn: ", "truth.json", "image 2", "leave it out"]);
    assert_eq!(
        world.json("some/results.json").as_array().map(Vec::len),
        Some(2)
    );
    let alone = world
        .caption(TINY, "alone", &["--json", "--limit", "1"])
        .exits(0);
    assert_eq!(run.one_json(), alone.one_json());
    // COCO's test files: no captions at all.
    world.captions("truth.json", &[], &[]);
    for name in ["empty", "test"] {
        let run = world.caption(TINY, name, &["--json"]).exits(0);
        assert_eq!(run.stdout, "");
        run.says(&["truth.json", "no metrics", "results.json"]);
        assert_eq!(
            world
                .json(&format!("{name}/results.json"))
                .as_array()
                .map(Vec::len),
            Some(2)
        );
        assert!(!world.path(name).join("metrics.json").exists());
        let images = world.json("truth.json")["images"].clone();
        world.write(
            "truth.json",
            &json!({"info": {}, "images": images, "categories": []}),
        );
    }
}

#[test]
fn questions_without_answers_are_left_out_of_the_accuracy() {
    let world = World::new();
    let question = |id: usize, answers: Value| {
        let mut question = json!({
            "question_id": id,
            "image": "house.png",
            "question": "what is it?",
        });
        if !answers.is_null() {
            question["answer"] = answers;
        }
        question
    };
    let files = |list: &'static str| {
        [
            ("--images", "images"),
            ("--annotations", list),
            ("--out", list.trim_end_matches(".json")),
        ]
    };
    let more = ["--model", TINY, "--json"];
    // LAVIS's lists of VQAv2 and of GQA, whichever item lacks its answer.
    for answers in [json!(["house", "a house"]), json!("house")] {
        for gap in 0..2 {
            let of = |id| match id == gap {
                true => Value::Null,
                false => answers.clone(),
            };
            let list: Vec<Value> = (0..3).map(|id| question(id, of(id))).collect();
            world.write("some.json", &json!(list));
            let answered = list.iter().filter(|it| it.get("answer").is_some());
            let whole: Vec<Value> = answered.cloned().collect();
            world.write("whole.json", &json!(whole));
            let _ = std::fs::remove_dir_all(world.path("some"));
            let _ = std::fs::remove_dir_all(world.path("whole"));
            let some = world.eval(&["vqa"], &files("some.json"), &more).exits(0);
            let name = format!("question_id {gap}");
            let some = some.says(&["warn: ", "some.json", &name, "leave it out"]);
            let whole = world.eval(&["vqa"], &files("whole.json"), &more).exits(0);
            assert_eq!(some.one_json(), whole.one_json());
        }
    }
    // No answer at all: a test split.
    let list: Vec<Value> = (0..2).map(|id| question(id, Value::Null)).collect();
    world.write("test.json", &json!(list));
    let run = world.eval(&["vqa"], &files("test.json"), &more).exits(0);
    assert_eq!(run.stdout, "");
    run.says(&["test.json", "no metrics", "results.json"]);

    let mut list = list;
    list[1]["image"] = json!(" ");
    world.write("blank.json", &json!(list));
    let run = world.eval(&["vqa"], &files("blank.json"), &more).exits(1);
    run.says(&["blank.json", "question_id 1", "image", "is empty"]);
}

#[test]
fn pictures_are_named_by_path_and_id() {
    let world = World::new();
    world.captions("truth.json", &["a house"], &["a boat"]);
    let boat = std::fs::read(BOAT).expect("read");
    std::fs::write(world.path("images/boat.png"), &boat[..boat.len() / 2]).expect("written");
    let files = [
        ("--images", "images"),
        ("--annotations", "truth.json"),
        ("--out", "out"),
    ];
    let run = world
        .eval(&["retrieval"], &files, &["--model", TINY_ITM])
        .exits(1);
    run.says(&["error: ", "images/boat.png", "image 2"]);
    // One that lies elsewhere is not opened.
    std::fs::copy(BOAT, world.path("secret.png")).expect("copied");
    for name in [
        "../secret.png".to_owned(),
        world.path("secret.png").display().to_string(),
    ] {
        let images = json!([{"id": 5, "file_name": name}]);
        world.write("out.json", &json!({"images": images, "annotations": []}));
        let files = [
            ("--images", "images"),
            ("--annotations", "out.json"),
            ("--out", "o"),
        ];
        let run = world
            .eval(&["caption"], &files, &["--model", TINY])
            .exits(1);
        run.says(&["out.json", "image 5", "secret.png", "is not in", "--images"]);
    }
}

#[test]
fn gqa_is_asked_in_order_and_handed_in_as_its_server_takes_it() {
    let world = World::new();
    let question =
        |image: &str| json!({"imageId": image, "question": "what is it?", "answer": "house"});
    // Not in the order of their ids.
    let text = format!(
        "{{\"201\": {}, \"0102\": {}, \"03\": {}}}",
        question("house"),
        question("boat"),
        question("house")
    );
    std::fs::write(world.path("gqa.json"), text).expect("written");
    for name in ["house", "boat"] {
        let images = world.path("images");
        std::fs::copy(
            images.join(name).with_extension("png"),
            images.join(name).with_extension("jpg"),
        )
        .expect("copied");
    }
    let files = [
        ("--images", "images"),
        ("--annotations", "gqa.json"),
        ("--out", "out"),
    ];
    let run = world
        .eval(
            &["vqa"],
            &files,
            &["--model", TINY, "--limit", "2", "--json"],
        )
        .exits(0);
    let results = world.json("out/results.json");
    let ids: Vec<&Value> = results
        .as_array()
        .expect("a list")
        .iter()
        .map(|item| &item["questionId"])
        .collect();
    assert_eq!(ids, ["201", "0102"]);
    assert!(results[0]["prediction"].is_string());
    // `score` reads what it hands in.
    let [truth, file] =
        ["gqa.json", "out/results.json"].map(|name| world.path(name).display().to_string());
    let score = [
        "score",
        "vqa",
        "--annotations",
        &truth,
        "--results",
        &file,
        "--json",
        "--allow-incomplete",
    ];
    assert_eq!(run_quiet(&score).one_json(), run.one_json());
}

fn run_quiet(arguments: &[&str]) -> Run {
    run([arguments, &["--quiet"]].concat()).exits(0)
}

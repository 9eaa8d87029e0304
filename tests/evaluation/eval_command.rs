//! `eval` on the real program with the demo model and scenes of its world: resumed, in shards, with files missing.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::cli_support::{Run, run};
use serde_json::{Value, json};

const SCENES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/demo");
const COUNT: usize = 7;

/// A dataset of some scenes, in COCO's and VQAv2's layouts.
struct Dataset(tempfile::TempDir);

impl Dataset {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let text = std::fs::read_to_string(format!("{SCENES}/demo.json")).expect("scenes");
        let scenes: Vec<Value> = serde_json::from_str(&text).expect("a list");
        let mut captions = json!({"images": [], "annotations": []});
        let (mut questions, mut annotations) =
            (json!({"questions": []}), json!({"annotations": []}));
        let push = |list: &mut Value, item: Value| list.as_array_mut().expect("a list").push(item);
        std::fs::create_dir(folder.path().join("images")).expect("a folder");
        for (id, scene) in scenes.iter().take(COUNT).enumerate() {
            let name = format!("made_{id:012}.png");
            let from = format!("{SCENES}/{}", scene["image"].as_str().expect("a name"));
            std::fs::copy(from, folder.path().join("images").join(&name)).expect("copied");
            push(
                &mut captions["images"],
                json!({"id": id, "file_name": name}),
            );
            push(
                &mut captions["annotations"],
                json!({"id": id, "image_id": id, "caption": scene["caption"]}),
            );
            let question =
                json!({"question_id": 100 + id, "image_id": id, "question": scene["question"]});
            push(&mut questions["questions"], question);
            let answers: Vec<Value> = (1..=10)
                .map(|k| json!({"answer": scene["answer"], "answer_id": k}))
                .collect();
            let annotation = json!({"question_id": 100 + id, "image_id": id, "question_type": scene["type"],
                "answer_type": "other", "answers": answers});
            push(&mut annotations["annotations"], annotation);
        }
        for (name, value) in [
            ("captions", captions),
            ("questions", questions),
            ("annotations", annotations),
        ] {
            std::fs::write(
                folder.path().join(name).with_extension("json"),
                value.to_string(),
            )
            .expect("written");
        }
        Self(folder)
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    /// `eval caption` into the folder `out`.
    #[track_caller]
    fn caption(&self, out: &str, more: &[&str]) -> Run {
        let (images, annotations, out) = (
            self.path("images"),
            self.path("captions.json"),
            self.path(out),
        );
        let arguments = [
            "eval",
            "caption",
            "--images",
            &images,
            "--annotations",
            &annotations,
            "--out",
            &out,
            "--json",
            "--quiet",
        ];
        run([&arguments[..], more].concat())
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.0.path().join(name))
            .unwrap_or_else(|error| panic!("{name}: {error}"))
    }
}

/// A dataset with a whole run of captions in `whole`.
fn captioned() -> &'static Dataset {
    static DATASET: OnceLock<Dataset> = OnceLock::new();
    DATASET.get_or_init(|| {
        let dataset = Dataset::new();
        dataset.caption("whole", &[]).exits(0);
        dataset
    })
}

fn results(dataset: &Dataset, name: &str) -> Value {
    serde_json::from_str(&dataset.read(name)).expect("JSON")
}

#[test]
fn a_run_leaves_results_metrics_and_a_report() {
    let dataset = captioned();
    let official = results(dataset, "whole/results.json");
    let list = official.as_array().expect("a list");
    assert_eq!(list.len(), COUNT);
    assert!(
        list.iter()
            .all(|item| item["image_id"].is_u64() && item["caption"].is_string())
    );
    // The slice's captions are what this model says.
    let metrics = results(dataset, "whole/metrics.json");
    assert!(
        metrics["Bleu_4"].as_f64().is_some_and(|bleu| bleu > 0.99),
        "{metrics}"
    );
    let report = dataset.read("whole/report.html");
    assert_eq!(report.matches("data:image/jpeg;base64,").count(), COUNT);
    for part in ["CIDEr", "1.1110", "a small red diamond"] {
        assert!(report.contains(part), "{part}");
    }
    // `score` says the same of the results file.
    let (annotations, file) = (
        dataset.path("captions.json"),
        dataset.path("whole/results.json"),
    );
    let scored = run([
        "score",
        "caption",
        "--annotations",
        &annotations,
        "--results",
        &file,
        "--json",
    ]);
    assert_eq!(Value::Object(scored.exits(0).one_json()), metrics);
}

#[test]
fn a_run_that_was_cut_goes_on_and_ends_the_same() {
    let dataset = captioned();
    let whole = dataset.read("whole/predictions.jsonl");
    std::fs::create_dir_all(dataset.path("cut")).expect("a folder");
    let file = PathBuf::from(dataset.path("cut/predictions.jsonl"));
    let cut = whole.len() * 2 / 3;
    std::fs::write(&file, &whole.as_bytes()[..cut]).expect("written");
    dataset.caption("cut", &[]).exits(0);
    let sorted = |text: &str| {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let again = dataset.read("cut/predictions.jsonl");
    assert_eq!(sorted(&again), sorted(&whole));
    // What was whole is kept as it was.
    let kept = whole[..cut].rfind('\n').expect("a line") + 1;
    assert_eq!(again[..kept], whole[..kept]);
    assert_eq!(
        dataset.read("cut/results.json"),
        dataset.read("whole/results.json")
    );
}

#[test]
fn predictions_that_are_empty_or_unknown_are_named() {
    let dataset = captioned();
    let whole = dataset.read("whole/predictions.jsonl");
    let again = |name: &str, change: &dyn Fn(&mut Value)| {
        std::fs::create_dir_all(dataset.path(name)).expect("a folder");
        let lines = whole.lines().map(|line| {
            let mut line: Value = serde_json::from_str(line).expect("JSON");
            if line["image_id"] == 3 {
                change(&mut line);
            }
            format!("{line}\n")
        });
        let file = Path::new(&dataset.path(name)).join("predictions.jsonl");
        std::fs::write(file, lines.collect::<String>()).expect("written");
        let [images, annotations, out] =
            ["images", "captions.json", name].map(|name| dataset.path(name));
        run([
            "eval",
            "caption",
            "--images",
            &images,
            "--annotations",
            &annotations,
            "--out",
            &out,
            "--json",
        ])
    };
    // Empty: a warning, and wrong.
    let empty = again("empty", &|line| line["caption"] = json!(" ")).exits(0);
    assert_eq!(empty.stderr.len(), 1, "{empty:#?}");
    let empty = empty.says(&[
        "warn: ",
        "predictions.jsonl",
        "image_id 3",
        "empty caption",
        "wrong",
    ]);
    let cider =
        |scores: &serde_json::Map<String, Value>| scores["CIDEr"].as_f64().expect("a score");
    let best = results(dataset, "whole/metrics.json");
    assert!(cider(&empty.one_json()) < cider(best.as_object().expect("scores")) - 0.1);
    // `score` says so of the results, whether that is allowed or not.
    let [annotations, file] =
        ["captions.json", "empty/results.json"].map(|name| dataset.path(name));
    let score = [
        "score",
        "caption",
        "--annotations",
        &annotations,
        "--results",
        &file,
        "--json",
    ];
    let parts = ["results.json", "image_id 3", "empty", "wrong"];
    let strict = run(score).exits(1).one_error(&parts);
    let allowed = run([&score[..], &["--allow-incomplete"]].concat()).exits(0);
    let allowed = allowed.says(&[&["warn: "], &parts[..]].concat());
    assert_eq!(strict.one_json(), allowed.one_json());
    assert_eq!(strict.one_json(), empty.one_json());
    // For an image that is not there: named, and the others are measured.
    let unknown = again("unknown", &|line| line["image_id"] = json!(999)).exits(1);
    let unknown = unknown.says(&["predictions.jsonl", "image_id 999", "captions.json"]);
    assert!(cider(&unknown.one_json()) > 1.0);
    // No text, or twice.
    for (name, value, part) in [
        ("odd", json!(7), "no string"),
        ("null", Value::Null, "no string"),
    ] {
        let run = again(name, &|line| line["caption"] = value.clone()).exits(1);
        run.one_error(&["predictions.jsonl", "line ", "image_id 3", part]);
    }
    let run = again("twice", &|line| line["image_id"] = json!(2)).exits(1);
    run.one_error(&["predictions.jsonl", "image_id 2", "again"]);
}

#[test]
fn a_run_with_other_options_does_not_go_on() {
    let dataset = captioned();
    dataset
        .caption("whole", &["--beams", "2"])
        .exits(1)
        .one_error(&["predictions.jsonl", "--beams", "another --out"]);
}

#[test]
fn shards_merge_into_the_whole() {
    let dataset = captioned();
    dataset.caption("parts", &["--shard", "1/2"]).exits(0);
    dataset.caption("other", &["--shard", "2/2"]).exits(0);
    let (images, annotations) = (dataset.path("images"), dataset.path("captions.json"));
    let merge = |parts: &[&str], out: &str| {
        let parts: Vec<String> = parts.iter().map(|part| dataset.path(part)).collect();
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let out = dataset.path(out);
        let rest = [
            "--images",
            &images,
            "--annotations",
            &annotations,
            "--out",
            &out,
            "--json",
            "--quiet",
        ];
        run([&["eval", "merge"], &parts[..], &rest[..]].concat())
    };
    merge(&["parts", "other"], "merged").exits(0);
    assert_eq!(
        dataset.read("merged/results.json"),
        dataset.read("whole/results.json")
    );
    assert_eq!(
        dataset.read("merged/metrics.json"),
        dataset.read("whole/metrics.json")
    );
    merge(&["parts"], "half")
        .exits(1)
        .one_error(&["captions.json", "item 1", "2 others"]);
    // What is for answers is not for captions, and these have no splits.
    let out = dataset.path("idle");
    let flags = ["--rules", "lavis", "--split", "test", "--out", &out];
    let truth = ["--images", &images, "--annotations", &annotations];
    let parts = ["parts", "other"].map(|part| dataset.path(part));
    let merged = run([
        &["eval", "merge", &parts[0], &parts[1]],
        &truth[..],
        &flags[..],
    ]
    .concat());
    let merged = merged.exits(0).says(&[
        "warn: --rules: no effect on captions",
        "warn: --split: no effect on",
    ]);
    assert_eq!(merged.stderr.len(), 2, "{merged:#?}");
    merge(&["images"], "none")
        .exits(1)
        .one_error(&["images", "predictions"]);
    dataset.caption("x", &["--shard", "3/2"]).exits(2);
}

#[test]
fn images_that_are_gone_are_named_and_the_others_done() {
    let dataset = Dataset::new();
    let image = |id: usize| Path::new(&dataset.path("images")).join(format!("made_{id:012}.png"));
    std::fs::remove_file(image(2)).expect("removed");
    std::fs::write(image(4), b"no picture").expect("written");
    let run = dataset.caption("out", &[]).exits(1).says(&[
        "captions.json",
        "image 2",
        "made_000000000004.png",
    ]);
    assert_eq!(run.stderr.len(), 2, "{run:#?}");
    assert_eq!(
        results(&dataset, "out/results.json")
            .as_array()
            .map(Vec::len),
        Some(COUNT - 2)
    );
    // Put back, they alone are done.
    for id in [2, 4] {
        std::fs::copy(format!("{SCENES}/scene_{id:02}.png"), image(id)).expect("copied");
    }
    dataset.caption("out", &[]).exits(0);
    assert_eq!(
        results(&dataset, "out/results.json"),
        results(captioned(), "whole/results.json")
    );
}

#[test]
fn questions_are_answered_and_scored() {
    let dataset = Dataset::new();
    let [images, annotations, questions, out, blind] = [
        "images",
        "annotations.json",
        "questions.json",
        "out",
        "blind",
    ]
    .map(|name| dataset.path(name));
    let common = [
        "eval",
        "vqa",
        "--images",
        &images,
        "--questions",
        &questions,
        "--json",
        "--quiet",
    ];
    let scored = run([&common[..], &["--annotations", &annotations, "--out", &out]].concat())
        .exits(0)
        .one_json();
    assert_eq!(scored["overall"], 100.0);
    let official = results(&dataset, "out/results.json");
    assert_eq!(official[0], json!({"question_id": 100, "answer": "red"}));
    // A test split has questions alone: there is a file to hand in.
    run([&common[..], &["--out", &blind, "--limit", "3"]].concat()).exits(0);
    assert_eq!(
        results(&dataset, "blind/results.json")
            .as_array()
            .map(Vec::len),
        Some(3)
    );
    run([
        "eval",
        "vqa",
        "--images",
        &images,
        "--annotations",
        &annotations,
        "--out",
        &out,
    ])
    .exits(1)
    .says(&["annotations.json", "question_id 100", "--questions"]);
    run(["eval", "vqa", "--images", &images, "--out", &out]).exits(2);
}

#[test]
fn retrieval_is_ranked_in_shards_and_goes_on() {
    let dataset = Dataset::new();
    let [images, annotations] = ["images", "captions.json"].map(|name| dataset.path(name));
    let retrieval = |out: &str, more: &[&str]| {
        let out = dataset.path(out);
        let arguments = [
            "eval",
            "retrieval",
            "--images",
            &images,
            "--annotations",
            &annotations,
            "--out",
            &out,
            "--json",
            "--quiet",
        ];
        run([&arguments[..], more].concat())
    };
    let whole = retrieval("whole", &[]).exits(0).one_json();
    assert_eq!(whole.keys().collect::<Vec<_>>(), ["i2t", "mean", "t2i"]);
    assert_eq!(whole["i2t"]["Recall@10"], 100.0); // seven candidates
    let found = results(&dataset, "whole/results.json");
    assert_eq!(found.as_array().map(Vec::len), Some(2 * COUNT));
    assert_eq!(found[0]["query"], "image 0");

    // Recall by `score` of the scores that the finds have.
    let rank = |query: &Value| query["found"]["rank"].as_u64().expect("a place");
    let hits = found
        .as_array()
        .expect("a list")
        .iter()
        .take(COUNT)
        .filter(|query| rank(query) == 0)
        .count();
    let recall = (10_000.0 * hits as f64 / COUNT as f64).round() / 100.0;
    assert_eq!(whole["i2t"]["Recall@1"], recall);

    retrieval("one", &["--shard", "1/2"]).exits(0);
    retrieval("two", &["--shard", "2/2"]).exits(0);
    let (one, two, merged) = (
        dataset.path("one"),
        dataset.path("two"),
        dataset.path("merged"),
    );
    let all = [
        "--images",
        &images,
        "--annotations",
        &annotations,
        "--out",
        &merged,
        "--json",
        "--quiet",
    ];
    run([&["eval", "merge", &one, &two][..], &all].concat()).exits(0);
    assert_eq!(
        dataset.read("merged/results.json"),
        dataset.read("whole/results.json")
    );
    assert_eq!(
        dataset.read("merged/metrics.json"),
        dataset.read("whole/metrics.json")
    );

    // Cut, and gone on with.
    let text = dataset.read("whole/predictions.jsonl");
    std::fs::write(
        dataset.path("whole/predictions.jsonl"),
        &text[..text.len() / 2],
    )
    .expect("written");
    retrieval("whole", &[]).exits(0);
    assert_eq!(results(&dataset, "whole/results.json"), found);
}

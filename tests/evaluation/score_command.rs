//! `score` on the real program: the contract's keys, exit codes, and every way in which files can be wrong.

use std::path::{Path, PathBuf};

use crate::cli_support::{Run, run};
use serde_json::{Value, json};

fn data(name: &str) -> String {
    format!("{}/tests/data/eval/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn read(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(data(name)).expect("a file")).expect("JSON")
}

#[track_caller]
fn score(arguments: &[&str]) -> Run {
    run([&["score"], arguments, &["--json"]].concat())
}

/// A folder to put spoilt files into.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary folder"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes a JSON file; gives its path.
    fn file(&self, name: &str, value: &Value) -> String {
        std::fs::write(self.path(name), value.to_string()).expect("written");
        self.path(name).display().to_string()
    }
}

// --- what it prints ---

#[test]
fn captions_print_pycocoevalcaps_names() {
    let [annotations, results] = ["captions.json", "captions_results.json"].map(data);
    let files = [
        "caption",
        "--annotations",
        &annotations,
        "--results",
        &results,
    ];
    let expected = &read("captions_expected.json")["scores"];
    // One prediction is empty: it counts as wrong, is named, and is a failure unless allowed.
    let strict =
        score(&files)
            .exits(1)
            .one_error(&["captions_results.json", "image_id 22", "empty"]);
    let allowed = score(&[&files[..], &["--allow-incomplete"]].concat()).exits(0);
    for printed in [strict.one_json(), allowed.one_json()] {
        assert_eq!(printed.len(), 6);
        for (name, value) in &printed {
            let (value, expected) = (
                value.as_f64().expect("a number"),
                expected[name].as_f64().expect("a number"),
            );
            assert!(
                (value - expected).abs() < 1e-4,
                "{name}: {value} {expected}"
            );
        }
    }
}

#[test]
fn answers_print_the_vqa_tools_names_under_each_rule() {
    let [annotations, results, questions] = [
        "vqa_annotations.json",
        "vqa_results.json",
        "vqa_questions.json",
    ]
    .map(data);
    let expected = read("vqa_expected.json");
    for rules in ["vqa", "lavis", "mmpretrain"] {
        let printed = score(&[
            "vqa",
            "--annotations",
            &annotations,
            "--results",
            &results,
            "--questions",
            &questions,
            "--rules",
            rules,
            "--allow-incomplete",
        ])
        .exits(0)
        .one_json();
        assert_eq!(
            printed.keys().collect::<Vec<_>>(),
            ["overall", "perAnswerType", "perQuestionType"]
        );
        let overall = expected[rules]["overall"].as_f64().expect("a number");
        assert!(
            (printed["overall"].as_f64().expect("a number") - overall).abs() <= 0.01,
            "{rules}"
        );
        if rules != "mmpretrain" {
            assert_eq!(
                printed["perAnswerType"], expected[rules]["perAnswerType"],
                "{rules}"
            );
            assert_eq!(
                printed["perQuestionType"], expected[rules]["perQuestionType"],
                "{rules}"
            );
        }
    }
    // The tool's rules are the default.
    let default = score(&[
        "vqa",
        "--annotations",
        &annotations,
        "--results",
        &results,
        "--allow-incomplete",
    ]);
    assert_eq!(default.one_json()["overall"], expected["vqa"]["overall"]);
}

#[test]
fn gqa_and_retrieval() {
    let printed = score(&[
        "vqa",
        "--annotations",
        &data("gqa.json"),
        "--results",
        &data("gqa_results.json"),
    ]);
    assert_eq!(printed.exits(0).one_json()["overall"], 80.0);
    let files = [
        "retrieval",
        "--scores",
        &data("i2t.npy"),
        "--annotations",
        &data("karpathy.json"),
    ]
    .map(str::to_owned);
    let files: Vec<&str> = files.iter().map(String::as_str).collect();
    let printed = score(&files).exits(0).one_json();
    assert_eq!(printed["i2t"]["Recall@1"], 53.85);
    assert_eq!(printed["t2i"]["Recall@5"], 75.86);
    // The other direction's own scores, as LAVIS has them: texts × images.
    let printed = score(&[&files[..], &["--scores-t2i", &data("t2i.npy")]].concat())
        .exits(0)
        .one_json();
    assert_eq!(printed["t2i"]["Recall@1"], 20.69);
    assert_eq!(printed["mean"], 70.65);
}

#[test]
fn a_square_matrix_of_the_texts_has_its_rows_named() {
    let folder = Folder::new();
    // Of two images with a text each, in f64; the second text finds the first image.
    let npy = |name: &str, values: [f64; 4]| {
        let header = "{'descr': '<f8', 'fortran_order': False, 'shape': (2, 2), }";
        let header = format!("{header:<117}\n");
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((header.len() as u16).to_le_bytes());
        bytes.extend(header.as_bytes());
        bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        std::fs::write(folder.path(name), bytes).expect("written");
        folder.path(name).display().to_string()
    };
    let scores = npy("i2t.npy", [9.0, 1.0, 2.0, 3.0]);
    let of_texts = npy("t2i.npy", [9.0, 1.0, 8.0, 3.0]); // texts × images
    let annotations = folder.file("list.json", &json!([0, 1]));
    let files = [
        "retrieval",
        "--scores",
        &scores,
        "--annotations",
        &annotations,
    ];
    let with_texts = |rows: &[&str]| {
        let arguments = [&files[..], &["--scores-t2i", &of_texts], rows].concat();
        score(&arguments)
    };
    with_texts(&[]).exits(1).one_error(&[
        "t2i.npy",
        "2 × 2",
        "--t2i-rows images",
        "--t2i-rows texts",
    ]);
    for (rows, recall) in [("texts", 50.0), ("images", 100.0)] {
        let printed = with_texts(&["--t2i-rows", rows]).exits(0).one_json();
        assert_eq!(printed["t2i"]["Recall@1"], recall, "{rows}");
    }
    with_texts(&["--t2i-rows", "captions"]).exits(2);
    score(&[&files[..], &["--t2i-rows", "texts"]].concat()).exits(2);

    // Where the shape does tell, it and the flag must agree.
    let of_texts = data("t2i.npy");
    let (scores, annotations) = (data("i2t.npy"), data("karpathy.json"));
    let files = [
        "retrieval",
        "--scores",
        &scores,
        "--scores-t2i",
        &of_texts,
        "--annotations",
        &annotations,
    ];
    let said = |rows| score(&[&files[..], &["--t2i-rows", rows]].concat());
    let printed = said("texts").exits(0).one_json();
    assert_eq!(printed["t2i"]["Recall@1"], 20.69);
    said("images")
        .exits(1)
        .one_error(&["t2i.npy", "29 × 13", "13 images", "same split"]);
}

#[test]
fn each_items_scores_can_be_kept() {
    let folder = Folder::new();
    let details = folder.path("details.jsonl");
    let [annotations, results] = ["captions.json", "captions_results.json"].map(data);
    let path = details.display().to_string();
    score(&[
        "caption",
        "--annotations",
        &annotations,
        "--results",
        &results,
        "--allow-incomplete",
        "--details",
        &path,
    ])
    .exits(0);
    let text = std::fs::read_to_string(details).expect("details");
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    assert_eq!(lines.len(), 11);
    assert!(
        lines
            .iter()
            .all(|line| line["image_id"].is_i64() && line["CIDEr"].is_f64())
    );
}

// --- what is wrong with files ---

/// Takes each field of item `index` of a section away, and gives it a wrong type; hands over each spoilt file with the
/// field's name.
fn spoil(
    whole: &Value,
    section: Option<&str>,
    index: usize,
    fields: &[&str],
    mut check: impl FnMut(&Value, &str),
) {
    for field in fields {
        for wrong in [None, Some(json!({"not": "this"})), Some(Value::Null)] {
            let mut spoilt = whole.clone();
            let list = match section {
                Some(section) => &mut spoilt[section],
                None => &mut spoilt,
            };
            let item = list[index].as_object_mut().expect("an item");
            match wrong {
                None => drop(item.remove(*field)),
                Some(wrong) => drop(item.insert((*field).to_owned(), wrong)),
            }
            check(&spoilt, field);
        }
    }
}

#[test]
fn each_field_of_caption_files_that_is_missing_or_wrong_is_named() {
    let folder = Folder::new();
    let (annotations, results) = (read("captions.json"), read("captions_results.json"));
    let sections: [(&str, &[&str]); 2] = [
        ("images", &["id"]),
        ("annotations", &["id", "image_id", "caption"]),
    ];
    for (section, fields) in sections {
        spoil(&annotations, Some(section), 3, fields, |spoilt, field| {
            let file = folder.file("truth.json", spoilt);
            score(&[
                "caption",
                "--annotations",
                &file,
                "--results",
                &data("captions_results.json"),
            ])
            .exits(1)
            .one_error(&["truth.json", &format!("{section}[3]"), field]);
        });
        let mut without = annotations.clone();
        without.as_object_mut().expect("an object").remove(section);
        let file = folder.file("truth.json", &without);
        score(&[
            "caption",
            "--annotations",
            &file,
            "--results",
            &data("captions_results.json"),
        ])
        .exits(1)
        .one_error(&["truth.json"]);
    }
    spoil(
        &results,
        None,
        2,
        &["image_id", "caption"],
        |spoilt, field| {
            let file = folder.file("mine.json", spoilt);
            score(&[
                "caption",
                "--annotations",
                &data("captions.json"),
                "--results",
                &file,
            ])
            .exits(1)
            .one_error(&["mine.json", "item 2", field]);
        },
    );
    let karpathy = json!([{"image": "a_1.png", "caption": ["a cat"]}, {"image": "a_2.png", "caption": ["a dog"]}]);
    spoil(
        &karpathy,
        None,
        1,
        &["image", "caption"],
        |spoilt, field| {
            let file = folder.file("truth.json", spoilt);
            score(&[
                "caption",
                "--annotations",
                &file,
                "--results",
                &data("captions_results.json"),
            ])
            .exits(1)
            .one_error(&["truth.json", "item 1", field]);
        },
    );
    let flickr = json!({"images": [
        {"filename": "1.jpg", "imgid": 0, "split": "test", "sentences": [{"raw": "a cat"}]},
        {"filename": "2.jpg", "imgid": 1, "split": "test", "sentences": [{"raw": "a dog"}]},
    ]});
    spoil(
        &flickr,
        Some("images"),
        1,
        &["filename", "imgid", "split", "sentences"],
        |spoilt, field| {
            let file = folder.file("truth.json", spoilt);
            score(&[
                "caption",
                "--annotations",
                &file,
                "--results",
                &data("captions_results.json"),
            ])
            .exits(1)
            .one_error(&["truth.json", "images[1]", field]);
        },
    );
}

#[test]
fn each_field_of_question_files_that_is_missing_or_wrong_is_named() {
    let folder = Folder::new();
    let results = data("vqa_results.json");
    let annotations = read("vqa_annotations.json");
    let fields = [
        "question_id",
        "image_id",
        "question_type",
        "answer_type",
        "answers",
    ];
    spoil(
        &annotations,
        Some("annotations"),
        4,
        &fields,
        |spoilt, field| {
            let file = folder.file("truth.json", spoilt);
            score(&["vqa", "--annotations", &file, "--results", &results])
                .exits(1)
                .one_error(&["truth.json", "annotations[4]", field]);
        },
    );
    for (wrong, part) in [
        (json!([{"no": 1}]), "answers[0].answer is missing"),
        (json!([{"answer": 5}]), "answers[0].answer is a number"),
        (json!(["red"]), "answers[0] is a string"),
        (json!([]), "answers is empty"),
    ] {
        let mut spoilt = annotations.clone();
        spoilt["annotations"][4]["answers"] = wrong;
        let file = folder.file("truth.json", &spoilt);
        score(&["vqa", "--annotations", &file, "--results", &results])
            .exits(1)
            .one_error(&["truth.json", "question_id 7004", part]);
    }
    spoil(
        &read("vqa_questions.json"),
        Some("questions"),
        4,
        &["question_id", "image_id", "question"],
        |spoilt, field| {
            let file = folder.file("asked.json", spoilt);
            score(&[
                "vqa",
                "--annotations",
                &data("vqa_annotations.json"),
                "--results",
                &results,
                "--questions",
                &file,
            ])
            .exits(1)
            .one_error(&["asked.json", "questions[4]", field]);
        },
    );
    spoil(
        &read("gqa.json"),
        None,
        2,
        &["question_id", "question", "image"],
        |spoilt, field| {
            let file = folder.file("truth.json", spoilt);
            score(&[
                "vqa",
                "--annotations",
                &file,
                "--results",
                &data("gqa_results.json"),
            ])
            .exits(1)
            .one_error(&["truth.json", "item 2", field]);
        },
    );
    spoil(
        &read("vqa_results.json"),
        None,
        5,
        &["question_id", "answer"],
        |spoilt, field| {
            let file = folder.file("mine.json", spoilt);
            score(&[
                "vqa",
                "--annotations",
                &data("vqa_annotations.json"),
                "--results",
                &file,
            ])
            .exits(1)
            .one_error(&["mine.json", "item 5", field]);
        },
    );
}

#[test]
fn ids_given_twice_or_unknown_or_without_result_are_named() {
    let folder = Folder::new();
    let (annotations, results) = (read("captions.json"), read("captions_results.json"));
    let truth = data("captions.json");
    let mine = |change: &dyn Fn(&mut Vec<Value>)| {
        let mut spoilt = results.clone();
        change(spoilt.as_array_mut().expect("a list"));
        folder.file("mine.json", &spoilt)
    };
    // Twice: refused.
    let file = mine(&|list| list.push(json!({"image_id": 10, "caption": "another"})));
    score(&["caption", "--annotations", &truth, "--results", &file])
        .exits(1)
        .one_error(&["mine.json", "image_id 10", "too"]);
    for (section, part) in [
        ("images", "images[11] (id 3)"),
        ("annotations", "annotations["),
    ] {
        let mut spoilt = annotations.clone();
        let list = spoilt[section].as_array_mut().expect("a list");
        list.push(list[0].clone());
        let file = folder.file("truth.json", &spoilt);
        score(&[
            "caption",
            "--annotations",
            &file,
            "--results",
            &data("captions_results.json"),
        ])
        .exits(1)
        .one_error(&["truth.json", part, "once"]);
    }
    // Unknown, or none: named, and the others are scored.
    let full = |caption: &str| json!({"image_id": 22, "caption": caption});
    let file = mine(&|list| {
        list.retain(|item| item["image_id"] != 22);
        list.extend([
            full("a street"),
            json!({"image_id": 999, "caption": "a ghost"}),
        ]);
    });
    let unknown = score(&[
        "caption",
        "--annotations",
        &truth,
        "--results",
        &file,
        "--allow-incomplete",
    ]);
    assert!(
        unknown
            .exits(1)
            .one_error(&["mine.json", "image_id 999", "captions.json"])
            .one_json()["CIDEr"]
            .is_f64()
    );
    let file = mine(&|list| {
        list.retain(|item| item["image_id"] != 22 && item["image_id"] != 3);
        list.push(full("a street"));
    });
    let missing = score(&["caption", "--annotations", &truth, "--results", &file]);
    assert!(
        missing
            .exits(1)
            .one_error(&["mine.json", "image_id 3", "no result"])
            .one_json()["CIDEr"]
            .is_f64()
    );
    score(&[
        "caption",
        "--annotations",
        &truth,
        "--results",
        &file,
        "--allow-incomplete",
    ])
    .exits(0);
    // Nothing fits, or nothing is there.
    let file = mine(&|list| *list = vec![json!({"image_id": 999, "caption": "a ghost"})]);
    score(&[
        "caption",
        "--annotations",
        &truth,
        "--results",
        &file,
        "--allow-incomplete",
    ])
    .exits(1)
    .says(&["nothing in it"]);
    let file = mine(&|list| list.clear());
    score(&["caption", "--annotations", &truth, "--results", &file])
        .exits(1)
        .one_error(&["mine.json", "no result in it"]);
}

#[test]
fn files_that_are_something_else_are_named() {
    let folder = Folder::new();
    let write = |name: &str, bytes: &[u8]| {
        std::fs::write(folder.path(name), bytes).expect("written");
        folder.path(name).display().to_string()
    };
    for (bytes, part) in [
        (&b"[{\"image_id\": 1, \"cap"[..], "not valid JSON"),
        (b"", "not valid JSON"),
        (b"[\0]\0", "UTF-16"),
        (b"[\"\xe9\"]", "Latin-1"),
        (b"{\"images\": [{\"id\": 1}]}", "no caption"),
        (b"5", "a number"),
        (
            b"{\"images\": 5, \"annotations\": []}",
            "\"images\" is no list",
        ),
        (b"[5]", "item 0"),
        (b"[]", "no image"),
    ] {
        let file = write("odd.json", bytes);
        score(&[
            "caption",
            "--annotations",
            &file,
            "--results",
            &data("captions_results.json"),
        ])
        .exits(1)
        .one_error(&["odd.json", part]);
    }
    score(&[
        "caption",
        "--annotations",
        "gone.json",
        "--results",
        &data("captions_results.json"),
    ])
    .exits(1)
    .one_error(&["gone.json", "cannot be read"]);
    for (scores, part) in [
        (write("odd.npy", b"hello"), "not a numpy"),
        (data("t2i.npy"), "29 × 13"),
    ] {
        score(&[
            "retrieval",
            "--scores",
            &scores,
            "--annotations",
            &data("karpathy.json"),
        ])
        .exits(1)
        .one_error(&[
            Path::new(&scores)
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or_default(),
            part,
        ]);
    }
    let list = write("list.json", b"[0, 1, \"two\"]");
    score(&[
        "retrieval",
        "--scores",
        &data("i2t.npy"),
        "--annotations",
        &list,
    ])
    .exits(1)
    .one_error(&["list.json", "item 2"]);
    run(["score", "vqa", "--annotations", "a"]).exits(2);
    run([
        "score",
        "vqa",
        "--annotations",
        "a",
        "--results",
        "b",
        "--rules",
        "mine",
    ])
    .exits(2);
}

#[test]
fn a_file_without_end_is_refused_unread() {
    let files = Folder::new();
    let huge = files.path("huge.json");
    let file = std::fs::File::create(&huge).expect("a file");
    file.set_len(3 << 30).expect("a hole");
    let (huge, results) = (huge.display().to_string(), data("captions_results.json"));
    for (annotations, results) in [(&huge, &results), (&data("captions.json"), &huge)] {
        let arguments = [
            "caption",
            "--annotations",
            annotations,
            "--results",
            results,
        ];
        score(&arguments)
            .exits(1)
            .one_error(&[&huge, "more than 2048 MiB"]);
    }
}

//! The contract of `vqa`: keys, order, pairs files, what is asked about what, and what cannot be asked.

use std::fmt::Write;
use std::path::PathBuf;

use crate::cli_support::{BOAT, HOUSE, Run, TINY, command, finish_with_stdin, run};
use serde_json::{Map, Value, json};

type Object = Map<String, Value>;

const WHAT: &str = "what is this?";
const RED: &str = "is it red?";

/// `vqa --model TINY --json ARGUMENTS`
fn arguments<'a>(arguments: &[&'a str]) -> Vec<&'a str> {
    [&["vqa", "--model", TINY, "--json"], arguments].concat()
}

#[track_caller]
fn vqa(flags: &[&str]) -> Run {
    run(arguments(flags))
}

/// Image and question of each line.
fn asked(lines: &[Object]) -> Vec<(&str, &str)> {
    lines
        .iter()
        .map(|line| {
            let image = line["image"].as_str().expect("an image");
            (image, line["question"].as_str().expect("a question"))
        })
        .collect()
}

fn tokens(lines: &[Object]) -> Vec<&Value> {
    lines.iter().map(|line| &line["tokens"]).collect()
}

/// A folder with a pairs file and two images in it.
struct Pairs {
    folder: tempfile::TempDir,
}

impl Pairs {
    fn new(lines: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(folder.path().join("pairs.jsonl"), lines).expect("written");
        for (name, image) in [("h.png", HOUSE), ("b.png", BOAT)] {
            std::fs::copy(image, folder.path().join(name)).expect("a copy");
        }
        Self { folder }
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("pairs.jsonl")
    }

    #[track_caller]
    fn run(&self, flags: &[&str]) -> Run {
        let file = self.file();
        vqa(&[&["--pairs", file.to_str().expect("UTF-8")], flags].concat())
    }
}

fn pair(image: &str, question: &str) -> String {
    json!({"image": image, "question": question}).to_string() + "\n"
}

// --- what is asked ---

#[test]
fn a_line_has_the_contracts_keys() {
    let lines = vqa(&[HOUSE, WHAT, RED, WHAT]).exits(0).json();
    assert_eq!(asked(&lines), [(HOUSE, WHAT), (HOUSE, RED), (HOUSE, WHAT)]);
    for line in &lines {
        let mut keys: Vec<_> = line.keys().map(String::as_str).collect();
        keys.sort_unstable();
        assert_eq!(
            keys,
            [
                "image",
                "num_tokens",
                "pred_answer",
                "question",
                "score",
                "tokens"
            ]
        );
        assert!(line["pred_answer"].is_string());
        assert!(line["score"].as_f64().expect("a number") < 0.0);
        let count = line["tokens"].as_array().expect("tokens").len();
        assert_eq!(line["num_tokens"], count);
    }
    assert_eq!(lines[0]["tokens"], lines[2]["tokens"]);
    assert_ne!(lines[0]["tokens"], lines[1]["tokens"]);

    let reference: Vec<Value> =
        serde_json::from_str(include_str!("../data/tiny_vqa.json")).unwrap();
    assert_eq!(reference[0]["question"], WHAT);
    assert_eq!(lines[0]["tokens"], reference[0]["tokens"]);
    assert_eq!(lines[0]["pred_answer"], reference[0]["text"]);
}

#[test]
fn text_lines_and_streams() {
    let flags = ["--model", TINY, HOUSE, WHAT, RED];
    let lines = vqa(&[HOUSE, WHAT, RED]).exits(0).json();
    let expected: String = lines.iter().fold(String::new(), |mut text, line| {
        let [image, question, answer] =
            ["image", "question", "pred_answer"].map(|key| line[key].as_str().expect("text"));
        writeln!(text, "{image}: {question} {answer}").expect("a string grows");
        text
    });
    let whole = run([&["vqa"], &flags[..]].concat()).exits(0);
    assert_eq!(whole.stdout, expected);
    assert!(whole.stderr.is_empty(), "{whole:#?}");
    let streamed = run([&["vqa", "--stream"], &flags[..]].concat()).exits(0);
    assert_eq!(streamed.stdout, expected);
}

#[test]
fn one_question_about_many_images() {
    let flags = ["--question", WHAT, HOUSE, BOAT, HOUSE, "--question", RED];
    let lines = vqa(&flags).exits(0).json();
    let expected = [HOUSE, BOAT, HOUSE].map(|image| [(image, WHAT), (image, RED)]);
    assert_eq!(asked(&lines), expected.as_flattened());
    for batch_size in ["1", "2"] {
        let again = vqa(&[&["--batch-size", batch_size], &flags[..]].concat());
        assert_eq!(tokens(&again.exits(0).json()), tokens(&lines));
    }
    // Standard input, with the questions after it.
    let command = command(arguments(&["-", WHAT]));
    let stdin = finish_with_stdin(command, &std::fs::read(BOAT).unwrap());
    let stdin = stdin.exits(0).one_json();
    assert_eq!(stdin["image"], "-");
    assert_eq!(stdin["tokens"], lines[2]["tokens"]);
}

#[test]
fn pairs_keep_their_order() {
    let absolute = pair(BOAT, RED);
    let pairs = Pairs::new(&format!(
        "{}{}\n{}{absolute}{}",
        pair("h.png", WHAT),
        pair("./b.png", RED),
        pair("h.png", RED),
        pair("h.png", WHAT).trim_end()
    ));
    let lines = pairs.run(&[]).exits(0).json();
    let expected = [
        ("h.png", WHAT),
        ("./b.png", RED),
        ("h.png", RED),
        (BOAT, RED),
        ("h.png", WHAT),
    ];
    assert_eq!(asked(&lines), expected);
    let all = tokens(&lines);
    assert_eq!((all[0], all[1]), (all[4], all[3]));
    let single = vqa(&[HOUSE, WHAT, RED]).exits(0).json();
    assert_eq!([all[0], all[2]], tokens(&single)[..]);
    for batch_size in ["1", "2"] {
        let again = pairs.run(&["--batch-size", batch_size]).exits(0).json();
        assert_eq!(tokens(&again), all);
    }
    // What is not beside the file is looked for from the working directory; so are the images of standard input.
    let text = pair("h.png", WHAT) + &pair("tests/data/boat.png", RED);
    let here = Pairs::new(&text).run(&[]).exits(0).json();
    assert_eq!(tokens(&here), [all[0], all[1]]);
    let mut command = command(arguments(&["--pairs", "-"]));
    command.current_dir(pairs.folder.path());
    let text = pair("h.png", WHAT);
    let stdin = finish_with_stdin(command, text.as_bytes()).exits(0);
    assert_eq!(stdin.one_json()["tokens"], *all[0]);
}

#[test]
fn presets_and_flags() {
    let reference: Vec<Value> =
        serde_json::from_str(include_str!("../data/tiny_vqa.json")).unwrap();
    for preset in ["lavis", "mmpretrain"] {
        let line = vqa(&["--preset", preset, HOUSE, WHAT]).exits(0).one_json();
        let expected = reference
            .iter()
            .find(|entry| entry["preset"] == preset)
            .expect("an answer");
        assert_eq!(expected["question"], WHAT);
        assert_eq!(line["tokens"], expected["tokens"], "{preset}");
        assert_eq!(line["question"], WHAT, "as it was asked");
    }
    let flags = [
        "--beams",
        "4",
        "--num-captions",
        "3",
        "--max-new-tokens",
        "5",
    ];
    let line = vqa(&[&flags[..], &[HOUSE, WHAT]].concat())
        .exits(0)
        .one_json();
    let answers = line["answers"].as_array().expect("answers");
    assert_eq!(answers.len(), 3);
    assert_eq!(answers[0]["text"], line["pred_answer"]);
    assert_eq!(answers[0]["score"], line["score"]);
    assert!(line["num_tokens"].as_u64() <= Some(5));

    let caption = [
        "caption",
        "--model",
        TINY,
        "--json",
        "--prompt",
        "a photo of",
        HOUSE,
    ];
    let caption = run(caption).exits(0).one_json();
    let line = vqa(&["--prompt", "a {}", HOUSE, "photo of"])
        .exits(0)
        .one_json();
    assert_eq!(line["tokens"], caption["tokens"]);
}

#[cfg(feature = "demo-model")]
#[test]
fn the_demo_model_answers() {
    let scene = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/scene_12.png");
    let ring = "what color is the ring?";
    let heart = "is the yellow heart below the yellow star?";
    let answers = run(["vqa", scene, ring, heart, "--quiet"]).exits(0);
    let expected = format!("{scene}: {ring} yellow\n{scene}: {heart} yes\n");
    assert_eq!(answers.stdout, expected);
}

// --- what cannot be asked ---

#[test]
fn wrong_usage_is_told_before_anything_is_loaded() {
    for (flags, part) in [
        (&["vqa"][..], "IMAGE"),
        (&["vqa", HOUSE], "no question"),
        (&["vqa", HOUSE, BOAT, WHAT], "--question"),
        (&["vqa", HOUSE, "gone.png", WHAT], "--question"),
        (
            &["vqa", HOUSE, env!("CARGO_MANIFEST_DIR"), WHAT],
            "--question",
        ),
        (&["vqa", "--question", WHAT], "IMAGE"),
        (&["vqa", "--pairs", "p.jsonl", HOUSE], "--pairs"),
        (
            &["vqa", "--pairs", "p.jsonl", "--question", WHAT],
            "--pairs",
        ),
        (&["vqa", "--prompt", "Answer:", HOUSE, WHAT], "{}"),
        (&["vqa", "--prompt", "{} {}", HOUSE, WHAT], "{}"),
        (&["vqa", "--preset", "other", HOUSE, WHAT], "other"),
        (
            &["vqa", "--model", TINY, "--num-captions", "2", HOUSE, WHAT],
            "num_return_sequences",
        ),
    ] {
        let run = run(flags).exits(2).says(&[part]);
        assert!(run.stdout.is_empty(), "{run:#?}");
    }
}

#[test]
fn missing_images_are_named_and_the_others_done() {
    let flags = ["--question", WHAT, "nowhere.png", BOAT];
    let run = vqa(&flags).exits(1).one_error(&["nowhere.png"]);
    assert_eq!(asked(&run.json()), [(BOAT, WHAT)]);
    vqa(&["nowhere.png", WHAT])
        .exits(1)
        .one_error(&["nowhere.png"]);

    let pairs = Pairs::new(&format!(
        "{}{}{}{}",
        pair("gone.png", WHAT),
        pair("h.png", WHAT),
        pair("pairs.jsonl", WHAT),
        pair("", RED),
    ));
    let run = pairs.run(&[]).exits(1).says(&["gone.png", "pairs.jsonl"]);
    assert_eq!(run.stderr.len(), 3, "{run:#?}");
    assert_eq!(asked(&run.json()), [("h.png", WHAT)]);
}

#[test]
fn malformed_pairs_are_named_with_their_line() {
    let pairs = Pairs::new(&format!(
        "not json\n{}{{\"image\": \"h.png\"}}\n{}[]\n{}",
        pair("h.png", WHAT),
        pair("h.png", "  "),
        pair("b.png", RED)
    ));
    let file = pairs.file().display().to_string();
    let run = pairs.run(&[]).exits(1);
    assert_eq!(run.stderr.len(), 4, "{run:#?}");
    for (line, part) in [
        (1, "no pair"),
        (3, "question"),
        (4, "empty"),
        (5, "no pair"),
    ] {
        let found = run
            .stderr
            .iter()
            .find(|text| text.contains(&format!("{file}, line {line}: ")))
            .unwrap_or_else(|| panic!("line {line}: {run:#?}"));
        assert!(found.contains(part), "{found}");
    }
    assert_eq!(asked(&run.json()), [("h.png", WHAT), ("b.png", RED)]);

    let empty = Pairs::new("\n\n");
    empty
        .run(&[])
        .exits(1)
        .one_error(&["pairs.jsonl", "has no pairs"]);
    vqa(&["--pairs", "nowhere.jsonl"])
        .exits(1)
        .one_error(&["nowhere.jsonl"]);
    let folder = pairs.folder.path().display().to_string();
    vqa(&["--pairs", &folder]).exits(1).one_error(&[&folder]);
}

#[test]
fn empty_questions_are_named_and_the_others_asked() {
    for empty in ["", "   ", "\t\n"] {
        let run = vqa(&[HOUSE, empty, RED]).exits(1).one_error(&["empty"]);
        assert_eq!(asked(&run.json()), [(HOUSE, RED)]);
    }
    vqa(&[HOUSE, ""]).exits(1).one_error(&["empty"]);
    let nothing_left = ["--preset", "mmpretrain", HOUSE, "?!", RED];
    let run = vqa(&nothing_left)
        .exits(1)
        .one_error(&["?!", "nothing is left"]);
    assert_eq!(asked(&run.json()), [(HOUSE, RED)]);
}

#[test]
fn long_questions_are_cut_with_a_warning() {
    let long = "why ".repeat(2_500);
    for preset in ["hf", "lavis"] {
        let run = vqa(&["--preset", preset, "--question", &long, HOUSE, BOAT]).exits(0);
        assert_eq!(run.json().len(), 2);
        assert_eq!(run.json()[0]["question"], long);
        assert_eq!(run.stderr.len(), 1, "{run:#?}");
        assert!(
            run.stderr[0].starts_with("warn: question \"why why"),
            "{run:#?}"
        );
        assert!(run.stderr[0].len() < 300, "{run:#?}");
        let quiet = vqa(&["--preset", preset, "--quiet", HOUSE, &long]).exits(0);
        assert!(quiet.stderr.is_empty(), "{quiet:#?}");
        assert_eq!(quiet.one_json()["tokens"], run.json()[0]["tokens"]);
    }
    let template = "a ".repeat(60) + "{}";
    vqa(&["--prompt", &template, HOUSE, WHAT])
        .exits(1)
        .one_error(&["64"]);
}

#[test]
fn emoji_zero_bytes_and_line_breaks() {
    let odd = "🐱\0\u{1b}[31m\nwhat?\u{202e}";
    let pairs = Pairs::new(&pair("h.png", odd));
    let line = pairs.run(&[]).exits(0).one_json();
    assert_eq!(line["question"], odd);
    let file = pairs.file();
    let plain = ["vqa", "--model", TINY, "--pairs", file.to_str().unwrap()];
    let plain = run(plain).exits(0);
    assert!(
        plain.stdout.starts_with("h.png: 🐱  [31m what?"),
        "{plain:#?}"
    );
    assert!(!plain.stdout.contains(['\0', '\u{1b}']), "{plain:#?}");
}

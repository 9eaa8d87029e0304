//! What `caption` prints.

use std::path::Path;

use serde_json::Value;

use crate::cli_support::{
    BOAT, DUMP, HOUSE, Safetensors, TINY, caption, caption_command, finish_with_stdin,
    plain_captions, run,
};
use crate::{column, keys, score, token_count};

#[test]
fn a_json_line_has_the_contracts_keys() {
    let lines = plain_captions();
    assert_eq!(column(lines, "image"), [HOUSE, BOAT]);
    for line in lines {
        assert_eq!(
            keys(line),
            ["image", "num_tokens", "pred_caption", "score", "tokens"]
        );
        assert!(line["pred_caption"].is_string());
        assert!(line["score"].as_f64().expect("a number") < 0.0);
        assert_eq!(line["num_tokens"], token_count(line));
    }
}

/// Tokens, texts and scores that transformers gives for these images, from the committed dump.
#[test]
fn captions_are_those_of_transformers() {
    let dump = Safetensors::read(Path::new(DUMP));
    let text = dump.header["__metadata__"]["blip2_reference"]
        .as_str()
        .expect("metadata");
    let reference: Value = serde_json::from_str(text).expect("JSON");
    let prompt = &reference["prompts"][0];
    assert_eq!(prompt["prompt"], "");
    let most = reference["max_new_tokens"].to_string();

    for (beams, expected) in [("1", &prompt["greedy"]), ("3", &prompt["beams"]["3"])] {
        let flags = ["--max-new-tokens", &most, "--beams", beams, HOUSE, BOAT];
        let lines = caption(TINY, &flags).exits(0).json();
        for (index, line) in lines.iter().enumerate() {
            let expected = match beams {
                "1" => &expected[index],
                _ => &expected[index][0],
            };
            assert_eq!(line["tokens"], expected["tokens"], "{line:?}");
            let difference = line["score"].as_f64().unwrap() - score(expected);
            assert!(difference.abs() < 1e-2, "{line:?} {expected}");
            let text = expected["text"].as_str().expect("a text");
            assert_eq!(line["pred_caption"], text.trim());
        }
    }
}

#[test]
fn tokens_leave_the_prompt_out() {
    let flags = ["--prompt", "a photo of", "--max-new-tokens", "3", HOUSE];
    let line = caption(TINY, &flags).exits(0).one_json();
    assert_eq!(line["num_tokens"], token_count(&line));
    assert!(token_count(&line) <= 3, "{line:?}");
    let text = line["pred_caption"].as_str().expect("a text");
    assert!(!text.starts_with("a photo of"), "{text}");
}

#[test]
fn text_lines_have_name_and_caption() {
    let lines = plain_captions();
    let expected: String = lines
        .iter()
        .map(|line| {
            let name = line["image"].as_str().unwrap();
            format!("{name}: {}\n", line["pred_caption"].as_str().unwrap())
        })
        .collect();
    let plain = run(["caption", "--model", TINY, HOUSE, BOAT]).exits(0);
    assert_eq!(plain.stdout, expected);
    assert!(plain.stderr.is_empty(), "{plain:#?}");
    // A stream shows the same in the end, with texts that are only known at the end too.
    let stream = run(["caption", "--model", TINY, "--stream", HOUSE, BOAT]).exits(0);
    assert_eq!(stream.stdout, expected);
    let beams = ["caption", "--model", TINY, "--beams", "3", HOUSE];
    let whole = run(beams).exits(0).stdout;
    assert!(
        whole.lines().count() == 1 && whole.len() > HOUSE.len() + 3,
        "{whole}"
    );
    assert_eq!(
        run([&beams[..], &["--stream"]].concat()).exits(0).stdout,
        whole
    );
}

#[test]
fn several_captions() {
    let flags = ["--beams", "4", "--num-captions", "3", HOUSE];
    let line = caption(TINY, &flags).exits(0).one_json();
    let captions = line["captions"].as_array().expect("captions");
    assert_eq!(captions.len(), 3);
    for pair in captions.windows(2) {
        assert!(score(&pair[0]) >= score(&pair[1]), "{captions:?}");
    }
    assert_eq!(captions[0]["text"], line["pred_caption"]);
    assert_eq!(captions[0]["score"], line["score"]);
    assert_eq!(
        keys(captions[0].as_object().expect("an object")),
        ["score", "text"]
    );

    let flags = [
        "caption",
        "--model",
        TINY,
        "--sample",
        "--num-captions",
        "3",
        HOUSE,
        BOAT,
    ];
    let whole = run(flags).exits(0).stdout;
    let from_house = whole.lines().filter(|line| line.starts_with(HOUSE)).count();
    assert_eq!((from_house, whole.lines().count()), (3, 6), "{whole}");
    let streamed = run([&flags[..], &["--stream"]].concat()).exits(0).stdout;
    assert_eq!(streamed, whole);
}

#[test]
fn inputs_keep_their_order_and_batches_change_nothing() {
    let expected = column(plain_captions(), "tokens");
    let images = [BOAT, HOUSE, HOUSE, BOAT, HOUSE];
    for batch_size in ["1", "2", "auto"] {
        let lines = caption(TINY, &[&["--batch-size", batch_size][..], &images].concat())
            .exits(0)
            .json();
        assert_eq!(column(&lines, "image"), images);
        for (line, image) in lines.iter().zip(images) {
            assert_eq!(line["tokens"], *expected[usize::from(image == BOAT)]);
        }
    }
}

#[test]
fn folders_globs_and_standard_input() {
    let root = tempfile::tempdir().unwrap();
    let at = |name: &str| root.path().join(name).display().to_string();
    for (name, image) in [
        ("b.png", HOUSE),
        ("a.PNG", BOAT),
        ("sub/deep/c.png", HOUSE),
        ("notes.txt", TINY),
        ("odd [1].png", BOAT),
        ("außer 日本.png", BOAT),
    ] {
        let file = root.path().join(name);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        if Path::new(image).is_dir() {
            std::fs::write(file, "not an image").unwrap();
        } else {
            std::fs::copy(image, file).unwrap();
        }
    }
    let folder = at("");
    let folder = folder.trim_end_matches('/');
    let glob = at("[ab].*");
    let command = caption_command(TINY, &[folder, "-", &glob, &at("odd [1].png")]);
    let lines = finish_with_stdin(command, &std::fs::read(BOAT).unwrap())
        .exits(0)
        .json();
    let sorted = [
        "a.PNG",
        "außer 日本.png",
        "b.png",
        "odd [1].png",
        "sub/deep/c.png",
    ]
    .map(at);
    let mut expected = sorted.to_vec();
    expected.extend(["-".into(), at("a.PNG"), at("b.png"), at("odd [1].png")]);
    let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
    assert_eq!(column(&lines, "image"), expected);
    let boat = &plain_captions()[1]["tokens"];
    assert_eq!(&lines[5]["tokens"], boat);
    assert_eq!(&lines[0]["tokens"], boat);
}

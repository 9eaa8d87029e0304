//! Results kept in files: lines and columns, images that fail or come twice, texts beside images.

use crate::cli_support::folder::Folder;
use crate::cli_support::{
    BOAT, HOUSE, TINY, caption_command, command, finish, finish_with_stdin, plain_captions,
};
use serde_json::Value;

// --- what is written ---

#[test]
fn lines_are_those_of_json() {
    let folder = Folder::new(4);
    let several = ["--beams", "3", "--num-captions", "2"];
    for flags in [&[][..], &several] {
        let json = [flags, &["--json", "--overwrite"]].concat();
        let both = folder.caption("r.jsonl", &json).exits(0);
        assert_eq!(folder.read("r.jsonl"), both.stdout);
        assert_eq!(both.lines().len(), 4);

        let flags = [flags, &["--overwrite"]].concat();
        assert_eq!(folder.caption("r.CSV", &flags).exits(0).stdout, "");
        let mut reader = csv::Reader::from_path(folder.path("r.CSV")).unwrap();
        let header: Vec<String> = reader
            .headers()
            .unwrap()
            .iter()
            .map(str::to_owned)
            .collect();
        let expected = "image,pred_caption,score,num_tokens,tokens,captions";
        let fields = if flags.len() > 1 { 6 } else { 5 };
        assert_eq!(header, expected.split(',').take(fields).collect::<Vec<_>>());
        let rows: Vec<_> = reader.records().map(Result::unwrap).collect();
        assert_eq!(rows.len(), 4);
        for (row, line) in rows.iter().zip(both.json()) {
            assert_eq!(line.len(), header.len());
            for (name, field) in header.iter().zip(row) {
                match &line[name] {
                    Value::String(text) => assert_eq!(field, text),
                    value => assert_eq!(serde_json::from_str::<Value>(field).unwrap(), *value),
                }
            }
        }
    }
}

#[cfg(unix)]
#[test]
fn names_that_need_quotes() {
    let folder = Folder::new(0);
    let names = [
        "a,b.png",
        "say \"hi\".png",
        "two\nlines.png",
        "z.png",
        "日本.png",
    ];
    for name in names {
        std::fs::copy(HOUSE, folder.path("images").join(name)).unwrap();
    }
    for out in ["r.csv", "r.jsonl"] {
        folder.caption(out, &[]).exits(0);
        folder.caption(out, &[]).exits(0).says(&["5 done already"]);
        let whole = folder.read(out);
        // In the middle of the name that is two lines.
        let middle = whole.find("two").unwrap() + 4;
        folder.write(out, &whole[..middle]);
        folder.caption(out, &[]).exits(0);
        assert_eq!(folder.read(out), whole);
    }
    let mut reader = csv::Reader::from_path(folder.path("r.csv")).unwrap();
    let images: Vec<_> = reader
        .records()
        .map(|row| row.unwrap()[0].to_owned())
        .collect();
    assert_eq!(images, names.map(|name| format!("images/{name}")));
}

#[test]
fn bad_images_are_passed_over_and_tried_again() {
    let folder = Folder::new(3);
    folder.write("images/01.png", "no image");
    let flags = ["--sidecar", "nowhere.png"];
    let first = folder.caption("r.jsonl", &flags).exits(1);
    let first = first.says(&[
        "error: nowhere.png: ",
        "error: images/01.png: ",
        "2 images captioned",
        ", 2 failed",
    ]);
    assert_eq!(first.stderr.len(), 3, "{first:#?}");
    assert_eq!(folder.images("r.jsonl"), ["images/00.png", "images/02.png"]);
    assert!(!folder.path("images/01.txt").exists());

    std::fs::copy(BOAT, folder.path("images/01.png")).unwrap();
    folder.caption("r.jsonl", &["--sidecar"]).exits(0);
    assert_eq!(
        folder.images("r.jsonl"),
        ["images/00.png", "images/02.png", "images/01.png"]
    );
    assert!(folder.path("images/01.txt").exists());
}

#[test]
fn an_image_given_twice_has_one_line() {
    let folder = Folder::new(2);
    let run = folder
        .caption("r.jsonl", &["images/01.png", "images"])
        .exits(0);
    run.says(&["2 images captioned", "3 given twice"]);
    assert_eq!(folder.images("r.jsonl"), ["images/00.png", "images/01.png"]);
}

#[test]
fn standard_input_has_a_line_once() {
    let folder = Folder::new(0);
    let out = folder.text("r.jsonl");
    let piped = |image: &str| {
        let command = caption_command(TINY, &["-", "--out", &out]);
        finish_with_stdin(command, &std::fs::read(image).unwrap())
    };
    piped(HOUSE).exits(0);
    assert_eq!(
        folder.lines("r.jsonl")[0]["tokens"],
        plain_captions()[0]["tokens"]
    );
    // It may be another image by now: neither skipped in silence nor a second line.
    piped(BOAT).exits(1).says(&["error: -: ", "standard input"]);
    assert_eq!(folder.images("r.jsonl"), ["-"]);
    let command = caption_command(TINY, &["-", "--sidecar"]);
    finish_with_stdin(command, &std::fs::read(BOAT).unwrap())
        .exits(1)
        .says(&["error: -: ", "--out"]);
}

// --- texts beside images ---

#[test]
fn texts_beside_images() {
    let folder = Folder::new(2);
    folder.write("images/00.txt", "mine\n");
    let run = |flags: &[&str]| {
        let mut command = command(["caption", "--model", TINY, "images"]);
        command.args(flags).current_dir(folder.path(""));
        finish(command)
    };
    let first = run(&["--sidecar"]).exits(0);
    assert_eq!(first.stdout, "");
    first.says(&["1 image captioned", "1 done already"]);
    assert_eq!(folder.read("images/00.txt"), "mine\n");
    let text = folder.read("images/01.txt");

    run(&["--sidecar=.txt", "--overwrite"]).exits(0);
    assert_ne!(folder.read("images/00.txt"), "mine\n");
    assert_eq!(folder.read("images/01.txt"), text);

    // What a power cut leaves of a file is no text; several captions are several lines.
    folder.write("images/00.txt", "");
    run(&["--sidecar", "--beams", "3", "--num-captions", "2"]).exits(0);
    assert_eq!(folder.read("images/00.txt").lines().count(), 2);

    run(&["--sidecar=caption", "--json"]).exits(0);
    assert_eq!(folder.read("images/01.caption"), text);
    assert!(!folder.path("r.jsonl").exists());
}

#[test]
fn a_text_is_one_images() {
    let folder = Folder::new(1);
    std::fs::copy(HOUSE, folder.path("images/00.bmp")).unwrap();
    std::fs::copy(HOUSE, folder.path("named.txt")).unwrap();
    let house = std::fs::read(HOUSE).unwrap();
    let flags = ["named.txt", "--sidecar", "--overwrite"];
    let run = folder.caption("r.jsonl", &flags).exits(1);
    run.says(&[
        "error: images/00.png: its text images/00.txt would be that of images/00.bmp too",
        "error: named.txt: its text would replace the image itself",
        "1 image captioned",
        "2 failed",
    ]);
    assert_eq!(std::fs::read(folder.path("named.txt")).unwrap(), house);
}

// --- answers ---

#[test]
fn answers_are_kept_and_resumed() {
    let folder = Folder::new(3);
    let pair = |image: &str, question: &str| {
        let pair = serde_json::json!({"image": image, "question": question});
        format!("{pair}\n")
    };
    let pairs = [
        pair("images/00.png", "what is it?"),
        pair("images/01.png", "what is it?"),
        pair("images/00.png", "is it, \"really\"?\nsay"),
        pair("images/gone.png", "where?"),
        pair("images/gone.png", "why?"),
        pair("images/00.png", "what is it?"),
        pair("images/02.png", "what is it?"),
    ];
    folder.write("pairs.jsonl", pairs.concat());
    let vqa = |flags: &[&str]| {
        let mut command = command(["vqa", "--model", TINY, "--pairs", "pairs.jsonl"]);
        command.args(flags).current_dir(folder.path(""));
        finish(command)
    };
    let first = vqa(&["--out", "a.jsonl", "--json"]).exits(1).says(&[
        "error: images/gone.png: ",
        "4 questions answered in ",
        " questions/s), 1 given twice, 2 failed",
    ]);
    assert_eq!(first.stderr.len(), 2, "{first:#?}");
    let whole = folder.read("a.jsonl");
    assert_eq!(first.stdout, whole);
    let asked = |line: &serde_json::Map<String, Value>| {
        [&line["image"], &line["question"]].map(|value| value.as_str().unwrap().to_owned())
    };
    let lines = folder.lines("a.jsonl");
    let third = ["images/00.png", "is it, \"really\"?\nsay"];
    assert_eq!(asked(&lines[2]), third);

    // Killed within the third line.
    let third_ends = whole.match_indices('\n').nth(2).unwrap().0;
    folder.write("a.jsonl", &whole[..third_ends - 9]);
    std::fs::copy(HOUSE, folder.path("images/gone.png")).unwrap();
    vqa(&["--out", "a.jsonl"]).exits(0).says(&[
        "warn: a.jsonl: the last line is torn",
        "resuming: 2 done already, 4 to go",
    ]);
    let resumed = folder.lines("a.jsonl");
    assert_eq!(resumed[..3], lines[..3]);
    assert_eq!(resumed.len(), 6);

    let csv = vqa(&["--out", "a.csv"]).exits(0);
    assert_eq!(csv.stdout, "");
    let mut reader = csv::Reader::from_path(folder.path("a.csv")).unwrap();
    let header: Vec<_> = reader.headers().unwrap().iter().collect();
    assert_eq!(header[..3], ["image", "question", "pred_answer"]);
    let rows: Vec<_> = reader.records().map(Result::unwrap).collect();
    assert_eq!((&rows[2][0], &rows[2][1]), (third[0], third[1]));
    vqa(&["--out", "a.csv"]).exits(0).says(&["6 done already"]);
    // Captions are no answers.
    folder
        .caption("a.jsonl", &[])
        .exits(1)
        .one_error(&["a.jsonl"]);
    vqa(&["--out", "a.jsonl", "--prompt", "{}"])
        .exits(1)
        .one_error(&["--prompt: not given then"]);
}

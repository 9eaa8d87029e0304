//! `caption --explain FILE` on the real program and the tiny checkpoint.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::{DynamicImage, GenericImageView};

use crate::cli_support::{BOAT, HOUSE, Run, TINY, caption, plain_captions, run};

/// A folder for what is written.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

/// The tiny retrieval checkpoint.
const TINY_ITM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/tiny-itm");

/// `caption IMAGES --explain FILE` in `folder`.
#[track_caller]
fn explain(folder: &Path, file: &str, images: &[&str]) -> Run {
    let path = folder.join(file);
    let path = path.to_str().expect("UTF-8");
    caption(TINY, &[images, &["--explain", path]].concat())
}

/// Names in a folder.
fn files(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("the folder");
    let name = |entry: std::io::Result<std::fs::DirEntry>| entry.expect("an entry").file_name();
    entries
        .map(|entry| name(entry).into_string().expect("UTF-8"))
        .collect()
}

/// The pictures of a kind that a page holds.
fn pictures(page: &str, kind: &str) -> Vec<DynamicImage> {
    let start = format!("data:image/{kind};base64,");
    let rest = page.split(&start).skip(1);
    rest.map(|rest| {
        let end = rest.find(['"', ')']).expect("an end");
        let bytes = STANDARD.decode(&rest[..end]).expect("base64");
        image::load_from_memory(&bytes).expect("a picture")
    })
    .collect()
}

#[test]
fn a_page_shows_every_image_and_word_and_holds_all_it_needs() {
    let folder = folder();
    let run = explain(folder.path(), "out.html", &[HOUSE, BOAT]).exits(0);
    // What is said about the images is what is said without the page.
    assert_eq!(run.json(), plain_captions());
    assert_eq!(files(folder.path()), ["out.html"]);
    let page = std::fs::read_to_string(folder.path().join("out.html")).expect("the page");
    assert!(page.starts_with("<!DOCTYPE html>") && page.ends_with("</html>\n"));
    assert!(!page.contains("http"), "something is elsewhere");
    assert_eq!(page.matches("<section>").count(), 2);
    assert!(page.contains(HOUSE) && page.contains(BOAT));
    assert!(page.contains("not that it caused the word"));

    let words: Vec<String> = plain_captions()
        .iter()
        .flat_map(|line| {
            line["pred_caption"]
                .as_str()
                .expect("a text")
                .split_whitespace()
        })
        .map(|word| {
            let word = word
                .replace('&', "&amp;")
                .replace('<', "&lt;")
                .replace('>', "&gt;");
            word.replace('"', "&quot;").replace('\'', "&#39;")
        })
        .collect();
    for word in &words {
        assert!(
            page.contains(&format!("<button type=button>{word}</button>")),
            "{word}"
        );
        assert!(page.contains(&format!("<b>{word}</b>")), "{word}");
    }
    // A map of 3 × 3 patches for all queries of each image, each of 8 queries, and twice for each word.
    let maps = pictures(&page, "png");
    assert_eq!(maps.len(), 2 * (1 + 8) + 2 * words.len());
    assert!(maps.iter().all(|map| map.dimensions() == (3, 3)));
    let brightest = |map: &DynamicImage| map.to_rgba8().pixels().map(|pixel| pixel[0]).max();
    assert!(maps.iter().any(|map| brightest(map) == Some(255)));
    let sizes: Vec<_> = pictures(&page, "jpeg")
        .iter()
        .map(|picture| picture.dimensions())
        .collect();
    let expected = [HOUSE, BOAT].map(|file| image::image_dimensions(file).expect("a picture"));
    assert_eq!(sizes, expected);
}

#[test]
fn pictures_are_upright_and_keep_their_shape() {
    let folder = folder();
    let turned = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/data/images/files/orientation_6.png"
    );
    let stored = image::image_dimensions(turned).expect("a picture");
    explain(folder.path(), "out.html", &[turned]).exits(0);
    let page = std::fs::read_to_string(folder.path().join("out.html")).expect("the page");
    let picture = &pictures(&page, "jpeg")[0];
    assert_eq!(picture.dimensions(), (stored.1, stored.0));
    assert_ne!(stored.0, stored.1);
    let shape = format!("aspect-ratio:{} / {}", stored.1, stored.0);
    assert!(page.contains(&shape), "{shape}");
}

#[test]
fn a_picture_shows_the_image_its_map_and_the_words() {
    let folder = folder();
    let run = explain(folder.path(), "out.PNG", &[HOUSE]).exits(0);
    assert_eq!(run.json(), plain_captions()[..1]);
    assert_eq!(files(folder.path()), ["out.PNG"]);
    let picture = image::open(folder.path().join("out.PNG"))
        .expect("a picture")
        .to_rgb8();
    assert!(picture.height() > 300 && picture.width() > 600);
    // Below the two large pictures, 300 pixels wide and 225 high: "eacion" twice.
    let text = picture
        .enumerate_pixels()
        .filter(|(_, y, _)| (240..285).contains(y));
    let ink = text
        .filter(|(_, _, pixel)| pixel.0.iter().all(|&value| value < 100))
        .count();
    assert!(ink > 50, "no text: {ink} dark pixels");
}

#[test]
fn wrong_usage_is_told_before_any_work() {
    let folder = folder();
    let several = explain(folder.path(), "out.png", &[HOUSE, BOAT]).exits(2);
    several.one_error(&["out.png", "2 are given", ".html"]);
    explain(folder.path(), "out.pdf", &[HOUSE])
        .exits(2)
        .says(&[".html", ".png"]);
    assert!(files(folder.path()).is_empty());
}

#[test]
fn a_file_that_cannot_be_written_is_told_before_any_work() {
    let folder = folder();
    for file in ["gone/out.html", "gone/out.png"] {
        let run = explain(folder.path(), file, &[HOUSE]).exits(1);
        assert_eq!(run.stdout, "", "work was done");
        run.one_error(&[file, "cannot be written", "check its folder"]);
    }
    std::fs::create_dir(folder.path().join("taken.html")).expect("made");
    let run = explain(folder.path(), "taken.html", &[HOUSE]).exits(1);
    run.one_error(&["taken.html", "cannot be written"]);
    assert_eq!(files(folder.path()), ["taken.html"]);
}

#[test]
fn a_bad_image_leaves_the_others_explained() {
    let folder = folder();
    let bad = folder.path().join("bad.jpg");
    std::fs::write(&bad, "no image").expect("written");
    let bad = bad.to_str().expect("UTF-8");
    explain(folder.path(), "out.html", &[bad, BOAT])
        .exits(1)
        .one_error(&["bad.jpg"]);
    let page = std::fs::read_to_string(folder.path().join("out.html")).expect("the page");
    assert_eq!(page.matches("<section>").count(), 1);
    // Nothing to show is no reason to replace what is there.
    explain(folder.path(), "out.html", &[bad])
        .exits(1)
        .one_error(&["bad.jpg"]);
    assert_eq!(
        std::fs::read_to_string(folder.path().join("out.html")).expect("the page"),
        page
    );
    assert_eq!(files(folder.path()).len(), 2);
}

/// A command with `--json` and `--explain FILE` in `folder`; its lines are those without `--explain`.
#[track_caller]
fn explain_as_well(folder: &Path, file: &str, arguments: &[&str]) {
    let path = folder.join(file);
    let path = path.to_str().expect("UTF-8");
    let plain = run(arguments).exits(0);
    let explained = run([arguments, &["--explain", path]].concat()).exits(0);
    assert_eq!(explained.json(), plain.json());
    assert!(!plain.json().is_empty());
}

#[test]
fn the_answers_to_questions_are_explained() {
    let folder = folder();
    let (what, red) = ("what is <this>?", "is it red?");
    let vqa = ["vqa", "--model", TINY, "--json", HOUSE, what, red];
    explain_as_well(folder.path(), "out.html", &vqa);
    let page = std::fs::read_to_string(folder.path().join("out.html")).expect("the page");
    // One image, one part, two texts.
    assert_eq!(page.matches("<section>").count(), 1);
    assert_eq!(page.matches("<div class=part>").count(), 1);
    assert_eq!(page.matches("<p class=text>").count(), 2);
    assert!(page.contains("<p class=text>what is &lt;this&gt;? "));
    assert!(page.contains("<p class=text>is it red? "));
    assert_eq!(pictures(&page, "jpeg").len(), 1);

    explain_as_well(folder.path(), "out.png", &vqa);
    image::open(folder.path().join("out.png")).expect("a picture");
    let two = [
        "vqa",
        "--model",
        TINY,
        HOUSE,
        BOAT,
        "--question",
        red,
        "--explain",
        "x.png",
    ];
    run(two).exits(2).says(&["2 are given"]);
}

#[test]
fn pairs_that_are_matched_are_explained() {
    let folder = folder();
    let texts = ["--text", "a boat", "a <dog>"];
    let model = ["match", "--model", TINY_ITM, "--json"];
    let both = [&model[..], &[HOUSE, BOAT], &texts].concat();
    explain_as_well(folder.path(), "out.html", &both);
    let page = std::fs::read_to_string(folder.path().join("out.html")).expect("the page");
    assert_eq!(page.matches("<section>").count(), 2);
    assert_eq!(page.matches("<div class=part>").count(), 4);
    assert!(page.contains("<p class=text>a &lt;dog&gt;: itm 0."));
    // For each pair the mean and 8 queries; no words.
    assert_eq!(pictures(&page, "png").len(), 4 * 9);
    assert!(!page.contains("By word: "));

    explain_as_well(
        folder.path(),
        "out.png",
        &[&model[..], &[HOUSE], &texts].concat(),
    );
    let picture = image::open(folder.path().join("out.png")).expect("a picture");
    assert!(picture.height() > 2 * 225, "{}", picture.height());
}

/// The report's place is taken while the image is read: its pair is scored all the same.
#[cfg(unix)]
#[test]
fn a_report_that_cannot_be_written_leaves_the_scores() {
    let folder = folder();
    let [report, pipe] = ["out.html", "house.png"].map(|name| folder.path().join(name));
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.expect("mkfifo").success());
    let [report_path, pipe_path] = [&report, &pipe].map(|path| path.to_str().expect("UTF-8"));
    let arguments = |image| {
        let model = [
            "match", "--model", TINY_ITM, "--json", "--text", "a boat", "a dog",
        ];
        [&model[..], &["--explain", report_path, image]].concat()
    };
    let explained = std::thread::scope(|scope| {
        let explained = scope.spawn(|| run(arguments(pipe_path)));
        // This waits until the program opens its image, which is after it has begun the report.
        let mut image = std::fs::File::options()
            .write(true)
            .open(&pipe)
            .expect("a pipe");
        std::fs::create_dir_all(report.join("in the way")).expect("a folder");
        let bytes = std::fs::read(HOUSE).expect("a picture");
        std::io::Write::write_all(&mut image, &bytes).expect("read by the program");
        drop(image);
        explained.join().expect("a run")
    });
    let explained = explained
        .exits(1)
        .one_error(&["out.html", "cannot be written"]);
    let plain = run([
        "match", "--model", TINY_ITM, "--json", HOUSE, "--text", "a boat", "a dog",
    ]);
    let scores = |run: &Run| -> Vec<_> {
        let lines = run.json().into_iter();
        lines
            .map(|line| {
                (
                    line["text"].clone(),
                    line["itm"].clone(),
                    line["itc"].clone(),
                )
            })
            .collect()
    };
    assert_eq!(scores(&explained), scores(&plain.exits(0)));
}

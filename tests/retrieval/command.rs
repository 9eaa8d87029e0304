//! `match`, `retrieve` and `embed` as a user runs them: keys, order, exit codes, what is said, and what is refused.

use std::path::{Path, PathBuf};

use crate::cli_support::{BOAT, HOUSE, Run, TINY, command, finish_with_stdin, run};
use safetensors::SafeTensors;
use serde_json::{Map, Value};

/// The tiny random retrieval checkpoint.
const TINY_ITM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/tiny-itm");

type Object = Map<String, Value>;

fn keys(object: &Object) -> Vec<&str> {
    let mut keys: Vec<_> = object.keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

fn text<'a>(line: &'a Object, key: &str) -> &'a str {
    line[key]
        .as_str()
        .unwrap_or_else(|| panic!("no {key}: {line:?}"))
}

fn number(line: &Object, key: &str) -> f64 {
    line[key]
        .as_f64()
        .unwrap_or_else(|| panic!("no {key}: {line:?}"))
}

/// Runs a command with `--model tiny-itm --json`.
#[track_caller]
fn itm(command: &str, arguments: &[&str]) -> Run {
    let shared = [command, "--model", TINY_ITM, "--json"];
    run([&shared[..], arguments].concat())
}

fn path(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// transformers' scores of house and boat with the dump's texts: texts, ITC, ITM logits.
fn reference() -> (Vec<String>, Vec<f32>, Vec<f32>) {
    let file = format!("{TINY_ITM}_dump.safetensors").replace("tiny-itm_dump", "tiny_itm_dump");
    let bytes = std::fs::read(file).expect("the dump");
    let (_, header) = SafeTensors::read_metadata(&bytes).expect("a header");
    let json = &header.metadata().as_ref().expect("metadata")["blip2_retrieval_reference"];
    let json: Value = serde_json::from_str(json).expect("JSON");
    let texts = json["texts"].as_array().expect("texts").iter();
    let texts = texts.map(|record| record["text"].as_str().expect("a text").to_owned());
    let file = SafeTensors::deserialize(&bytes).expect("tensors");
    let values = |name: &str| {
        let tensor = file.tensor(name).expect("a tensor");
        let (words, _) = tensor.data().as_chunks::<4>();
        words.iter().map(|&word| f32::from_le_bytes(word)).collect()
    };
    (texts.collect(), values("itc"), values("itm"))
}

/// A folder with images and a file of texts.
struct Photos {
    folder: tempfile::TempDir,
}

impl Photos {
    fn new(texts: &[u8]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(folder.path().join("photos")).expect("a folder");
        let photos = Self { folder };
        for (name, source) in [("a.png", HOUSE), ("b.png", BOAT)] {
            std::fs::copy(source, photos.image(name)).expect("copied");
        }
        std::fs::write(photos.texts(), texts).expect("written");
        photos
    }

    fn images(&self) -> PathBuf {
        self.folder.path().join("photos")
    }

    fn image(&self, name: &str) -> PathBuf {
        self.images().join(name)
    }

    fn texts(&self) -> PathBuf {
        self.folder.path().join("texts.txt")
    }

    fn index(&self) -> PathBuf {
        self.folder.path().join("photos.index")
    }

    /// Runs `retrieve` over the folder.
    #[track_caller]
    fn retrieve(&self, arguments: &[&str]) -> Run {
        let (images, texts) = (self.images(), self.texts());
        let own = ["--images", path(&images), "--texts", path(&texts)];
        itm("retrieve", &[&own[..], arguments].concat())
    }
}

// --- match ---

#[test]
fn match_prints_every_pair_with_transformers_scores() {
    let (texts, itc, logits) = reference();
    let mut arguments = vec![HOUSE, BOAT, "--text"];
    arguments.extend(texts.iter().map(String::as_str));
    let lines = itm("match", &arguments).exits(0).json();
    assert_eq!(lines.len(), 2 * texts.len());
    for (pair, line) in lines.iter().enumerate() {
        assert_eq!(keys(line), ["image", "itc", "itm", "text"]);
        assert_eq!(text(line, "image"), [HOUSE, BOAT][pair / texts.len()]);
        assert_eq!(text(line, "text"), texts[pair % texts.len()]);
        assert!(
            (number(line, "itc") - f64::from(itc[pair])).abs() < 1e-5,
            "{line:?}"
        );
        let [no, yes] = [logits[2 * pair], logits[2 * pair + 1]].map(f64::from);
        let probability = 1.0 / (1.0 + (no - yes).exp());
        assert!((number(line, "itm") - probability).abs() < 1e-5, "{line:?}");
    }
}

#[test]
fn match_goes_on_after_what_is_bad() {
    let photos = Photos::new(b"a boat\n\n a\0 hill \xF0\x9F\xA6\x8A\n");
    std::fs::write(photos.image("bad.png"), b"\x89PNG no").expect("written");
    let (images, texts) = (photos.images(), photos.texts());
    let arguments = [
        path(&images),
        "--text",
        "",
        "a cat",
        "--texts",
        path(&texts),
    ];
    let run = itm("match", &arguments).exits(1);
    let lines = run.json();
    let found: Vec<&str> = lines.iter().map(|line| text(line, "text")).collect();
    assert_eq!(found, ["a cat", "a boat", " a\0 hill 🦊"].repeat(2));
    let run = run.says(&[
        "bad.png",
        "texts.txt, line 2: the line is empty",
        "text \"\" is empty",
    ]);
    assert_eq!(run.stderr.len(), 3, "{run:#?}");
}

#[test]
fn match_reads_an_image_from_stdin_and_batches_as_it_likes() {
    let arguments = [
        "match", "--model", TINY_ITM, "--json", "-", BOAT, "--text", "a boat",
    ];
    let house = std::fs::read(HOUSE).expect("read");
    let piped = finish_with_stdin(command(arguments), &house)
        .exits(0)
        .json();
    let plain = itm(
        "match",
        &[HOUSE, BOAT, "--text", "a boat", "--batch-size", "1"],
    );
    let plain = plain.exits(0).json();
    assert_eq!(text(&piped[0], "image"), "-");
    for (a, b) in piped.iter().zip(&plain) {
        assert_eq!((&a["itm"], &a["itc"]), (&b["itm"], &b["itc"]));
    }
}

#[test]
fn a_long_text_is_cut_with_a_warning() {
    let long = "a red boat ".repeat(3400);
    let run = itm("match", &[HOUSE, "--text", &long]).exits(0);
    run.says(&["warn: ", "is cut to 64"]);
    let run = itm("match", &[HOUSE, "--preset", "lavis", "--text", &long]).exits(0);
    run.says(&["warn: ", "is cut to 32"]);
}

#[test]
fn match_says_what_it_needs() {
    itm("match", &[HOUSE]).exits(2).says(&["--text"]);
    itm("match", &["--text", "a"]).exits(2).says(&["IMAGE"]);
    let arguments = ["match", "--model", TINY, HOUSE, "--text", "a boat"];
    let run = run(arguments).exits(1);
    run.one_error(&["tiny", "generative model", "retrieval", "blip2-itm-vit-g"]);
}

// --- retrieve ---

#[test]
fn retrieve_ranks_both_ways() {
    let (texts, itc, logits) = reference();
    let photos = Photos::new(texts.join("\n").as_bytes());
    let score = |image: usize, text: usize| {
        let pair = image * texts.len() + text;
        f64::from(itc[pair]) + f64::from(logits[2 * pair + 1])
    };
    let images = ["a.png", "b.png"].map(|name| path(&photos.image(name)).to_owned());
    for (flags, queries, items) in [
        (&[][..], &images[..], &texts[..]),
        (&["--direction", "t2i"], &texts[..], &images[..]),
    ] {
        let lines = photos.retrieve(flags).exits(0).json();
        assert_eq!(lines.len(), queries.len() * items.len());
        for (query, lines) in lines.chunks(items.len()).enumerate() {
            let of = |item: usize| match flags.is_empty() {
                true => score(query, item),
                false => score(item, query),
            };
            let mut expected: Vec<usize> = (0..items.len()).collect();
            expected.sort_by(|&a, &b| of(b).total_cmp(&of(a)));
            for (rank, (line, item)) in lines.iter().zip(expected).enumerate() {
                assert_eq!(keys(line), ["itc", "item", "itm", "query", "rank", "score"]);
                assert_eq!(text(line, "query"), queries[query]);
                assert_eq!(text(line, "item"), items[item]);
                assert_eq!(line["rank"], rank + 1);
                assert!((number(line, "score") - of(item)).abs() < 1e-4, "{line:?}");
            }
        }
    }
    let best = photos
        .retrieve(&["--topk", "1", "--itc-only"])
        .exits(0)
        .json();
    assert_eq!(best.len(), 2);
    for line in &best {
        assert!(line["itm"].is_null(), "{line:?}");
        assert_eq!(line["score"], line["itc"]);
    }
}

#[test]
fn an_index_saves_the_encoding_and_is_refused_when_it_does_not_fit() {
    let photos = Photos::new(b"a boat\na hill\na yellow bus");
    let index = photos.index();
    let flags = ["--index", path(&index), "-v"];
    let plain = photos.retrieve(&[]).exits(0).stdout;
    let first = photos.retrieve(&flags).exits(0);
    assert_eq!(first.stdout, plain);
    first.says(&["0 images from the index, 2 encoded"]);
    let second = photos.retrieve(&flags).exits(0);
    assert_eq!(second.stdout, plain);
    second.says(&["2 images from the index, 0 encoded"]);
    // One more image: only that one is encoded. It is bad, and then it is not.
    std::fs::write(photos.image("c.png"), b"no image").expect("written");
    let run = photos.retrieve(&flags).exits(1);
    assert_eq!(run.stdout, plain);
    run.says(&["c.png", "2 images from the index, 0 encoded"]);
    std::fs::copy(HOUSE, photos.image("c.png")).expect("copied");
    photos
        .retrieve(&flags)
        .exits(0)
        .says(&["2 images from the index, 1 encoded"]);
    photos
        .retrieve(&flags)
        .exits(0)
        .says(&["3 images from the index, 0 encoded"]);

    // What does not fit: another image size, an image that changed, damage.
    let flags = ["--index", path(&index)];
    photos
        .retrieve(&[&flags[..], &["--image-size", "56"]].concat())
        .exits(1)
        .one_error(&["photos.index", "another model, image size or preset"]);
    std::fs::copy(BOAT, photos.image("c.png")).expect("copied");
    let run = photos.retrieve(&flags).exits(1);
    let run = run.one_error(&["photos.index", "c.png has changed", "delete the index"]);
    assert!(run.stdout.is_empty());
    let whole = std::fs::read(&index).expect("read");
    std::fs::write(&index, &whole[..whole.len() - 10]).expect("written");
    photos
        .retrieve(&flags)
        .exits(1)
        .one_error(&["photos.index", "not a usable index"]);
    std::fs::write(&index, b"").expect("written");
    photos
        .retrieve(&flags)
        .exits(1)
        .one_error(&["not a usable index"]);
    let nowhere = photos.folder.path().join("none/x.index");
    photos
        .retrieve(&["--index", path(&nowhere)])
        .exits(1)
        .one_error(&["x.index", "cannot be written"]);
    // Nothing unfinished is left lying about.
    assert_eq!(
        std::fs::read_dir(photos.folder.path())
            .expect("read")
            .count(),
        3
    );
}

#[test]
fn retrieve_names_what_is_bad() {
    let photos = Photos::new(b"\n \n");
    photos
        .retrieve(&[])
        .exits(1)
        .one_error(&["texts.txt", "no texts"]);
    std::fs::write(photos.texts(), b"a boat\n\xFF\n").expect("written");
    let twice = photos.image("a.png");
    let run = photos.retrieve(&["--images", path(&twice)]).exits(1);
    // The folder has both, and one of them is named once more.
    assert_eq!(run.json().len(), 2);
    run.says(&["a.png: given more than once", "line 2: not UTF-8"]);
    for topk in ["0", "513", "x"] {
        photos
            .retrieve(&["--topk", topk])
            .exits(2)
            .says(&["--topk"]);
    }
    photos
        .retrieve(&["--direction", "up"])
        .exits(2)
        .says(&["i2t"]);
    std::fs::remove_file(photos.texts()).expect("removed");
    photos
        .retrieve(&[])
        .exits(1)
        .one_error(&["texts.txt", "cannot be read"]);
}

// --- embed ---

#[test]
fn embed_writes_features_with_names() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("x.safetensors");
    for (model, kind, shape) in [
        (TINY_ITM, "itc", [2, 8, 24]),
        (TINY_ITM, "qformer", [2, 8, 24]),
        (TINY_ITM, "vit", [2, 10, 48]),
        (TINY, "qformer", [2, 8, 24]),
        (TINY, "vit", [2, 10, 48]),
    ] {
        let arguments = ["embed", "image", HOUSE, "none.png", BOAT, "--model", model];
        let more = ["--kind", kind, "--out", path(&out)];
        run([&arguments[..], &more].concat())
            .exits(1)
            .one_error(&["none.png"]);
        let bytes = std::fs::read(&out).expect("read");
        let file = SafeTensors::deserialize(&bytes).expect("safetensors");
        assert_eq!(file.tensor("features").expect("a tensor").shape(), shape);
        let (_, header) = SafeTensors::read_metadata(&bytes).expect("a header");
        let names = &header.metadata().as_ref().expect("metadata")["names"];
        assert_eq!(names, &serde_json::json!([HOUSE, BOAT]).to_string());
    }
    let out = folder.path().join("t.npy");
    let arguments = ["text", "a boat", "", "a hill", "--out", path(&out)];
    let run = itm("embed", &arguments).exits(1);
    assert_eq!(run.json().len(), 2);
    run.one_error(&["is empty"]);
    assert_eq!(std::fs::read(&out).expect("read").len(), 128 + 2 * 24 * 4);
    let names = std::fs::read_to_string(folder.path().join("t.names.json")).expect("read");
    assert_eq!(names, "[\"a boat\",\"a hill\"]\n");
}

#[test]
fn embed_says_what_it_needs() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("x.txt");
    let odd = itm("embed", &["image", HOUSE, "--out", path(&out)]).exits(2);
    odd.says(&[".safetensors or .npy"]);
    itm("embed", &["image", HOUSE]).exits(2).says(&["--out"]);
    let out = folder.path().join("none/x.npy");
    let nowhere = itm("embed", &["image", HOUSE, "--out", path(&out)]).exits(1);
    nowhere.one_error(&["x.npy", "cannot be written"]);
    let out = folder.path().join("x.npy");
    let arguments = [
        "embed",
        "image",
        HOUSE,
        "--model",
        TINY,
        "--out",
        path(&out),
    ];
    run(arguments)
        .exits(1)
        .one_error(&["generative model", "retrieval"]);
    assert!(!out.exists());
}

// --- the demo model ---

/// Without `--model`: the retrieval model that is part of the program, not the generative one.
#[test]
#[cfg(feature = "demo-model")]
fn the_demo_model_tells_scenes_apart() {
    let scene = |name: &str| format!("{}/tests/data/demo/{name}", env!("CARGO_MANIFEST_DIR"));
    let scenes = ["scene_00.png", "scene_02.png"].map(scene);
    let texts = ["a small red diamond", "a large orange triangle"];
    let arguments = [
        "match", "--json", "--quiet", &scenes[0], &scenes[1], "--text", texts[0], texts[1],
    ];
    let lines = run(arguments).exits(0).json();
    let itm: Vec<bool> = lines.iter().map(|line| number(line, "itm") > 0.5).collect();
    assert_eq!(itm, [true, false, false, true], "{lines:?}");
}

#[test]
fn texts_in_other_encodings_are_read_or_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("texts.txt");
    let scored = |bytes: &[u8]| {
        std::fs::write(&file, bytes).expect("written");
        itm("match", &[HOUSE, "--texts", path(&file)])
    };
    let plain = scored("a café\na house\n".as_bytes()).exits(0);
    let words = std::iter::once(0xFEFF).chain("a café\r\na house".encode_utf16());
    let utf_16: Vec<u8> = words.flat_map(u16::to_be_bytes).collect();
    assert_eq!(scored(&utf_16).exits(0).json(), plain.json());
    let latin_1 = scored(b"caf\xE9").exits(1);
    latin_1.says(&["texts.txt", "Latin-1", "save it as UTF-8"]);
    let without_mark: Vec<u8> = "a house"
        .encode_utf16()
        .flat_map(u16::to_le_bytes)
        .collect();
    scored(&without_mark).exits(1).says(&["texts.txt"]);
}

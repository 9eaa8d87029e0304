//! `stages`: what it writes, and what it says of two runs.

use std::path::Path;

use serde_json::{Value, json};

use crate::cli_support::{BOAT, HOUSE, Run, TINY, run};

/// A tiny checkpoint with a T5.
const TINY_T5: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/tiny-t5");

fn stages(model: &str, image: &str, out: &Path, more: &[&str]) -> Run {
    let out = out.to_str().expect("a path in UTF-8");
    let arguments = ["stages", image, "--model", model, "--out", out];
    run(arguments.iter().chain(more))
}

fn listing(folder: &Path) -> Value {
    let text = std::fs::read(folder.join("stages.json")).expect("a listing");
    serde_json::from_slice(&text).expect("JSON")
}

/// Names of the stages, in order.
fn names(listing: &Value) -> Vec<&str> {
    let stages = listing["stages"].as_array().expect("stages");
    stages
        .iter()
        .map(|stage| stage["name"].as_str().expect("a name"))
        .collect()
}

/// Fails unless each token is the likeliest by the logits of its own step: the first by the prompt's.
#[track_caller]
fn assert_logits_choose_the_tokens(folder: &Path) {
    let listing = listing(folder);
    let tokens = listing["tokens"].as_array().expect("tokens");
    assert!(tokens.len() > 1, "{tokens:?}");
    let logits = listing["stages"].as_array().expect("stages").iter();
    let logits: Vec<&Value> = logits
        .filter(|stage| stage["name"].as_str().expect("a name").ends_with("logits"))
        .collect();
    assert_eq!(logits.len(), tokens.len());
    for (step, (token, stage)) in tokens.iter().zip(logits).enumerate() {
        let name = match step {
            0 => "logits".to_owned(),
            step => format!("step.{step}.logits"),
        };
        assert_eq!(stage["name"], name);
        let bytes = std::fs::read(folder.join(stage["file"].as_str().expect("a file")));
        let bytes = bytes.expect("a stage");
        let (values, rest) = bytes[128..].as_chunks::<4>();
        assert!(rest.is_empty());
        let values = values.iter().map(|&value| f32::from_le_bytes(value));
        let best = (0_u64..)
            .zip(values)
            .max_by(|(_, a), (_, b)| a.total_cmp(b));
        assert_eq!(best.map(|(best, _)| best), token.as_u64(), "{name}");
    }
}

#[test]
fn a_run_is_written_and_compared_with_another() {
    let folder = tempfile::tempdir().expect("a folder");
    let [ours, theirs] = ["ours", "theirs"].map(|name| folder.path().join(name));
    let against = ["--against", ours.to_str().unwrap()];
    stages(TINY, HOUSE, &ours, &[]).exits(0);
    let listing_of_ours = listing(&ours);
    let said = |key: &str| listing_of_ours[key].as_str().expect("a text").to_owned();
    assert_eq!([said("model"), said("image")], [TINY, HOUSE]);
    assert!(!said("adapter").is_empty());
    let names = names(&listing_of_ours);
    for name in ["vit.block.0", "logits", "step.1.opt.layer.0"] {
        assert!(names.contains(&name), "{names:?}");
    }
    assert_logits_choose_the_tokens(&ours);
    // A file a stage, and the listing.
    let files = std::fs::read_dir(&ours).expect("a folder").count();
    assert_eq!(files, names.len() + 1);

    // The same again is the same bits; without subgroups other kernels serve.
    let same = stages(TINY, HOUSE, &theirs, &against).exits(0);
    assert!(same.stdout.contains("tokens"), "{}", same.stdout);
    assert!(!same.stdout.contains("FAIL"), "{}", same.stdout);
    for (file, number) in names.iter().zip(0..) {
        let file = format!("{number:03}.{file}.npy");
        let read = |folder: &Path| std::fs::read(folder.join(&file)).expect("a stage");
        assert_eq!(read(&ours), read(&theirs), "{file}");
    }
    let others = ["--disable", "subgroups", "--json"];
    let rows = stages(TINY, HOUSE, &theirs, &[&against[..], &others].concat()).exits(0);
    let rows = rows.json();
    assert_eq!(rows.len(), names.len() + 1);
    assert!(rows.iter().all(|row| row["pass"] == true), "{rows:?}");
    let stages_listed = listing_of_ours["stages"].as_array().expect("stages");
    for (row, stage) in rows.iter().zip(stages_listed) {
        let shape = format!("{} × {}", stage["shape"][0], stage["shape"][1]);
        assert_eq!(
            [&row["stage"], &row["note"]],
            [&stage["name"], &shape.into()]
        );
    }
    let options = &listing(&theirs)["options"];
    assert_eq!(
        *options,
        json!({"--disable": "subgroups", "--max-new-tokens": "8"})
    );

    // Another image is off from the first stage on; fewer tokens are fewer stages.
    let other = stages(TINY, BOAT, &theirs, &against).exits(1);
    let first = names[0];
    other.says(&[&format!("the first that is off: {first}")]);
    let fewer = ["--max-new-tokens", "1"];
    let fewer = stages(TINY, HOUSE, &theirs, &[&against[..], &fewer].concat()).exits(1);
    assert!(fewer.stdout.contains("only there"), "{}", fewer.stdout);
    // What the earlier, longer run left there is gone.
    let left = std::fs::read_dir(&theirs).expect("a folder").count();
    assert!(left < files, "{left} files");
}

#[test]
fn questions_and_other_decoders_have_stages() {
    let folder = tempfile::tempdir().expect("a folder");
    let question = ["--question", "what is it?"];
    stages(TINY_T5, HOUSE, folder.path(), &question).exits(0);
    let listing = listing(folder.path());
    let names = names(&listing);
    for name in ["t5.encoder.block.0", "logits", "step.1.t5.decoder.block.0"] {
        assert!(names.contains(&name), "{names:?}");
    }
    assert_logits_choose_the_tokens(folder.path());
}

#[test]
fn a_damaged_run_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let [ours, theirs] = ["ours", "theirs"].map(|name| folder.path().join(name));
    let against = ["--against", ours.to_str().unwrap()];
    stages(TINY, HOUSE, &theirs, &against)
        .exits(1)
        .one_error(&["stages.json", "blip2-wgpu stages"]);
    stages(TINY, HOUSE, &ours, &["--max-new-tokens", "2"]).exits(0);
    let listed = listing(&ours);
    let file = ours.join(listed["stages"][3]["file"].as_str().expect("a file"));
    let bytes = std::fs::read(&file).expect("a stage");
    std::fs::write(&file, &bytes[..bytes.len() - 4]).expect("room");
    stages(TINY, HOUSE, &theirs, &against)
        .exits(1)
        .one_error(&[file.to_str().unwrap(), "write the stages again"]);
    std::fs::remove_file(&file).expect("a file");
    stages(TINY, HOUSE, &theirs, &against)
        .exits(1)
        .one_error(&[file.to_str().unwrap(), "cannot be read"]);
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/tiny-itm");
    stages(model, HOUSE, &theirs, &[])
        .exits(1)
        .one_error(&["retrieval model", "use a generative"]);
}

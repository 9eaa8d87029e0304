//! Results kept in files: whatever ended a run, the next one makes them whole, each once, and no other file is touched.

use std::process::Stdio;
use std::time::Duration;

use crate::cli_support::folder::Folder;
use crate::cli_support::{BOAT, HOUSE, ModelCopy, TINY, caption, command, run};

/// Numbers that look random and are the same each time (Steele and others' SplitMix64).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % end as u64) as usize
    }
}

// --- stopping and resuming ---

/// Killed again and again, sometimes with the last line torn as by a power cut, and in the end all is as if nothing
/// had happened.
#[test]
fn kills_at_any_moment_lose_nothing_and_repeat_nothing() {
    let whole = Folder::new(40);
    whole.caption("r.jsonl", &[]).exits(0);
    let mut numbers = Numbers(7);
    for out in ["r.jsonl", "r.csv"] {
        let killed = Folder::new(40);
        let length = || std::fs::metadata(killed.path(out)).map_or(0, |file| file.len());
        for round in 0..7 {
            let mut command = command(["caption", "--model", TINY, "--batch-size", "2"]);
            command
                .args(["images", "--sidecar", "--out", out])
                .current_dir(killed.path(""))
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            let mut child = command.spawn().unwrap();
            // From before the first line to well into the run.
            let (start, wanted) = (length(), numbers.below(900) as u64);
            while round > 0 && length() < start + wanted && child.try_wait().unwrap().is_none() {
                std::thread::sleep(Duration::from_millis(1));
            }
            std::thread::sleep(Duration::from_millis(numbers.below(30) as u64));
            child.kill().unwrap();
            child.wait().unwrap();
            if round % 2 == 1 {
                let torn = length().saturating_sub(1 + numbers.below(40) as u64);
                let file = std::fs::OpenOptions::new()
                    .write(true)
                    .open(killed.path(out));
                file.unwrap().set_len(torn).unwrap();
            }
        }
        killed.caption(out, &["--sidecar"]).exits(0);
        let lines = whole.lines("r.jsonl");
        if out == "r.jsonl" {
            assert_eq!(killed.read(out), whole.read(out));
        } else {
            let mut reader = csv::Reader::from_path(killed.path(out)).unwrap();
            let images: Vec<_> = reader
                .records()
                .map(|row| row.unwrap()[0].to_owned())
                .collect();
            assert_eq!(images, whole.images("r.jsonl"));
        }
        for line in lines {
            let image = killed.path(line["image"].as_str().unwrap());
            let text = std::fs::read_to_string(image.with_extension("txt")).unwrap();
            assert_eq!(Some(text.trim_end()), line["pred_caption"].as_str());
        }
        let left = std::fs::read_dir(killed.path("images")).unwrap().flatten();
        let names: Vec<_> = left.map(|entry| entry.file_name()).collect();
        assert_eq!(names.len(), 80, "{names:?}");
    }
}

#[test]
fn what_is_there_is_not_done_again() {
    let folder = Folder::new(3);
    let first = folder.caption("r.jsonl", &[]).exits(0);
    let first = first.says(&["3 images captioned in ", " images/s)"]);
    assert_eq!(first.stdout, "");
    let written = folder.read("r.jsonl");
    let again = folder.caption("r.jsonl", &[]).exits(0);
    assert_eq!(again.stderr, ["0 images captioned, 3 done already"]);

    std::fs::copy(BOAT, folder.path("images/01b.png")).unwrap();
    folder
        .caption("r.jsonl", &[])
        .exits(0)
        .says(&["resuming: 3 done already, 1 to go", "1 image captioned"]);
    assert!(folder.read("r.jsonl").starts_with(&written));
    assert_eq!(folder.images("r.jsonl")[3], "images/01b.png");
    let quiet = folder.caption("r.jsonl", &["--quiet"]).exits(0);
    assert!(quiet.stderr.is_empty(), "{quiet:#?}");
}

/// A line cut off at any byte is dropped, and done again.
#[test]
fn torn_lines_go() {
    let folder = Folder::new(2);
    for out in ["r.jsonl", "r.csv"] {
        folder.caption(out, &[]).exits(0);
        let whole = folder.read(out);
        let last = whole.trim_end().rfind('\n').unwrap() + 1;
        for length in [last + 1, (last + whole.len()) / 2, whole.len() - 1] {
            folder.write(out, &whole[..length]);
            let torn = format!(
                "warn: {out}: the last line is torn ({} bytes)",
                length - last
            );
            folder
                .caption(out, &[])
                .exits(0)
                .says(&[&torn, "1 image captioned"]);
            assert_eq!(folder.read(out), whole, "{out} from byte {length}");
        }
        // The very first line too; then nothing is whole but the record beside it.
        let first = whole.find("images/").unwrap() + 3;
        folder.write(out, &whole[..first]);
        folder
            .caption(out, &[])
            .exits(0)
            .says(&["2 images captioned"]);
        assert_eq!(folder.read(out), whole);
    }
}

#[test]
fn other_options_are_refused() {
    let folder = Folder::new(2);
    folder
        .caption("r.jsonl", &["--max-new-tokens", "3"])
        .exits(0);
    let before = folder.read("r.jsonl");
    for (flags, parts) in [
        (
            &[][..],
            &["--max-new-tokens: \"3\" then, not given now"][..],
        ),
        (
            &["--max-new-tokens", "4", "--prompt", "a"],
            &["\"3\" then, \"4\" now", "--prompt: not given then"],
        ),
        (
            &["--max-new-tokens", "3", "--image-size", "70"],
            &["--image-size"],
        ),
        (
            &["--max-new-tokens", "3", "--preset", "lavis"],
            &["--preset"],
        ),
    ] {
        let run = folder.caption("r.jsonl", flags).exits(1);
        run.one_error(parts)
            .says(&["r.jsonl: begun with", "--overwrite"]);
        assert_eq!(folder.read("r.jsonl"), before);
    }
    // How fast it goes and what is shown does not matter.
    let same = ["--max-new-tokens", "3", "--batch-size", "1", "--stream"];
    folder.caption("r.jsonl", &same).exits(0);
    assert_eq!(folder.read("r.jsonl"), before);

    let fresh = folder.caption("r.jsonl", &["--overwrite"]).exits(0);
    fresh.says(&["2 images captioned"]);
    assert_ne!(folder.read("r.jsonl"), before);
    folder
        .caption("r.jsonl", &[])
        .exits(0)
        .says(&["2 done already"]);
}

#[test]
fn another_model_is_refused() {
    let folder = Folder::new(1);
    let model = ModelCopy::new();
    let out = folder.text("r.jsonl");
    let arguments = [HOUSE, "--out", &out];
    caption(TINY, &arguments).exits(0);
    // The same files elsewhere are the same model.
    caption(model.path(), &arguments)
        .exits(0)
        .says(&["1 done already"]);
    model.tamper(|file| {
        let middle = file.data.len() / 2;
        file.data[middle] ^= 1;
    });
    let moved = model.path().display().to_string();
    caption(model.path(), &arguments)
        .exits(1)
        .one_error(&["--model", &moved]);
    caption(model.path(), &[&arguments[..], &["--overwrite"]].concat()).exits(0);
    model.set("generation_config.json", "/max_length", 21.into());
    caption(model.path(), &arguments)
        .exits(1)
        .one_error(&["files of the model", "have changed"]);
}

#[test]
fn one_run_at_a_time() {
    let folder = Folder::new(1);
    let record = std::fs::File::create(folder.path("r.jsonl.run.json")).unwrap();
    if record.lock().is_err() {
        return; // a file system without locks
    }
    let refused = folder.caption("r.jsonl", &[]).exits(1);
    refused.one_error(&["r.jsonl: another run is writing to it"]);
    drop(record);
    folder.caption("r.jsonl", &[]).exits(0);
}

/// A file of such lines that has no record, as `--json > r.jsonl` leaves it.
#[test]
fn lines_without_a_record_are_gone_on_with() {
    let folder = Folder::new(2);
    folder.caption("r.jsonl", &[]).exits(0);
    let whole = folder.read("r.jsonl");
    std::fs::remove_file(folder.path("r.jsonl.run.json")).unwrap();
    folder.write("r.jsonl", &whole[..=whole.find('\n').unwrap()]);
    folder.caption("r.jsonl", &[]).exits(0).says(&[
        "warn: r.jsonl: there is no r.jsonl.run.json",
        "1 image captioned",
    ]);
    assert_eq!(folder.read("r.jsonl"), whole);
    folder.caption("r.jsonl", &["--beams", "2"]).exits(1);
}

// --- files that are not ours ---

#[test]
fn foreign_files_stay_as_they_are() {
    let folder = Folder::new(1);
    let csv = "image,pred_caption,score,num_tokens,tokens\n";
    let cases = [
        (
            "a.jsonl",
            b"Dear diary,\ntoday\n".to_vec(),
            "line 1 is no JSON object",
        ),
        ("b.jsonl", b"[1, 2]\n".to_vec(), "line 1 is no JSON object"),
        (
            "c.jsonl",
            b"{\"image\": \"a.png\"}\n".to_vec(),
            "line 1 lacks one of image, pred_caption",
        ),
        (
            "d.jsonl",
            b"{\"image\": 3, \"pred_caption\": \"a\"}\n".to_vec(),
            "line 1 lacks",
        ),
        ("e.jsonl", b"no line at all".to_vec(), "no whole line"),
        ("f.jsonl", b"\xFF\xFE\n".to_vec(), "UTF-8"),
        (
            "g.jsonl",
            b"{\"image\": \"a.png\", \"pred_caption\": \"a\"}\n\nnotes\n".to_vec(),
            "line 2 is no JSON object",
        ),
        (
            "h.csv",
            b"file,text\na.png,a\n".to_vec(),
            "its columns are not image,pred_caption,",
        ),
        ("i.csv", b"file,text".to_vec(), "no whole line"),
        (
            "j.csv",
            format!("{csv}a.png,a\n").into_bytes(),
            "line 2 has another number of fields",
        ),
        ("k.csv", b"file,text\n\xFF,a\n".to_vec(), "its columns"),
    ];
    for (name, bytes, part) in cases {
        folder.write(name, &bytes);
        for flags in [&[][..], &["--overwrite"]] {
            let run = folder.caption(name, flags).exits(1);
            let start = format!("error: {name}: not a results file of this command (");
            run.one_error(&[&start, part, "; it stays as it is"]);
            assert_eq!(std::fs::read(folder.path(name)).unwrap(), bytes);
        }
        assert!(!folder.path(&format!("{name}.run.json")).exists());
    }
}

#[test]
fn results_that_cannot_be_written_are_named() {
    let folder = Folder::new(1);
    std::fs::create_dir(folder.path("folder.jsonl")).unwrap();
    for (out, part) in [
        (
            "nowhere/r.jsonl",
            "nowhere/r.jsonl.run.json: cannot be written",
        ),
        ("folder.jsonl", "folder.jsonl: cannot be read"),
    ] {
        let run = folder.caption(out, &[]).exits(1);
        run.one_error(&[part, "; check the path"]);
    }
    for (arguments, part) in [
        (["--out", "captions.txt"], "--sidecar"),
        (["--out", "-"], ".jsonl or .csv"),
        (["--out", ".csv"], ".jsonl or .csv"),
        (["--sidecar=png", "--quiet"], "extension of images"),
        (["--sidecar=a/b", "--quiet"], "extension"),
    ] {
        let run = run([&["caption", HOUSE][..], &arguments].concat()).exits(2);
        run.says(&[part]);
    }
}

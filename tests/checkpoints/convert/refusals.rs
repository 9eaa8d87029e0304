//! What `convert` refuses, in words that name the file and what to do.

use std::path::Path;

use super::{LAVIS, convert_run, data};
use crate::cli_support::{HOUSE, run};

/// `convert` of bytes fails with one line that holds `parts`, and leaves nothing.
#[track_caller]
fn refused(name: &str, bytes: &[u8], arguments: &[&str], parts: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join(name);
    std::fs::write(&input, bytes).unwrap();
    refused_in(&folder, &input, arguments, parts);
}

#[track_caller]
fn refused_in(folder: &tempfile::TempDir, input: &Path, arguments: &[&str], parts: &[&str]) {
    let before = std::fs::read_dir(folder.path()).unwrap().count();
    let out = folder.path().join("out");
    let run = convert_run(input, &out, arguments)
        .exits(1)
        .one_error(parts);
    assert_eq!(run.stdout, "");
    assert_eq!(
        std::fs::read_dir(folder.path()).unwrap().count(),
        before,
        "nothing is left"
    );
}

#[test]
fn files_that_cannot_be_read_are_refused() {
    let good = std::fs::read(data("lavis_pretrained.pth")).unwrap();
    let legacy = std::fs::read(data("lavis_caption.pth")).unwrap();
    refused(
        "half.pth",
        &good[..good.len() / 2],
        &LAVIS,
        &["half.pth", "cut off or damaged", "download"],
    );
    refused(
        "half.pth",
        &legacy[..legacy.len() / 2],
        &LAVIS,
        &["half.pth", "ends inside storage", "download"],
    );
    refused("empty.pth", b"", &LAVIS, &["empty.pth", "is empty"]);
    let image = std::fs::read(HOUSE).unwrap();
    refused(
        "image.pth",
        &image,
        &LAVIS,
        &["image.pth", "no file that torch.save wrote"],
    );
    refused(
        "list.pkl",
        b"\x80\x02].",
        &LAVIS,
        &["list.pkl", "not one of PyTorch's"],
    );
    refused(
        "lfs.pth",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00",
        &LAVIS,
        &["Git LFS pointer"],
    );

    // A pickle that would run a command in PyTorch: refused by name, and nothing of it happens.
    let proof = tempfile::tempdir().unwrap().path().join("ran");
    let at = legacy
        .windows(11)
        .position(|w| w == b"ccollection")
        .unwrap();
    let command = format!("touch {}", proof.display());
    let mut evil = legacy[..at].to_vec();
    evil.extend(b"cposix\nsystem\nX");
    evil.extend((command.len() as u32).to_le_bytes());
    evil.extend(command.as_bytes());
    evil.extend(b"\x85R0");
    evil.extend(&legacy[at..]);
    refused(
        "evil.pth",
        &evil,
        &LAVIS,
        &["evil.pth", "asks for posix.system", "nothing of it was run"],
    );
    assert!(!proof.exists());

    let folder = tempfile::tempdir().unwrap();
    refused_in(
        &folder,
        Path::new("no/such.pth"),
        &LAVIS,
        &["no/such.pth", "check the path"],
    );
    refused_in(&folder, folder.path(), &LAVIS, &["has no weights"]);
    std::fs::write(folder.path().join("a.pth"), &good).unwrap();
    refused_in(
        &folder,
        folder.path(),
        &LAVIS,
        &["name a file of it", "a.pth"],
    );
}

#[test]
fn parts_that_are_missing_name_the_option_that_supplies_them() {
    let folder = tempfile::tempdir().unwrap();
    let generative = data("lavis_pretrained.pth");
    let refused = |input: &Path, arguments: &[&str], parts: &[&str]| {
        refused_in(&folder, input, arguments, parts)
    };
    refused(
        &generative,
        &[],
        &[
            "lavis_pretrained.pth",
            "vision transformer",
            "LAVIS",
            "--vit FILE",
            "eva_vit_g.pth",
        ],
    );
    refused(&generative, &LAVIS[..2], &["language model", "--llm DIR"]);
    refused(
        &data("mmpretrain_caption.pth"),
        &[],
        &["language model", "mmpretrain", "--llm DIR"],
    );
    refused(
        &generative,
        &LAVIS[..4],
        &["none of a published model's", "--config"],
    );
    refused(
        &data("lavis_retrieval.pth"),
        &[],
        &["no tokenizer", "vocab.txt", "--tokenizer DIR"],
    );
    let tokenizer = [&LAVIS[..], &["--tokenizer", "@reader"]].concat();
    refused(&generative, &tokenizer, &["reader", "has no tokenizer"]);
    refused(
        &data("micro/model.safetensors"),
        &["--config", "@nothing.json"],
        &["nothing.json", "cannot be read"],
    );
}

#[test]
fn files_of_other_models_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |input: &str, arguments: &[&str], parts: &[&str]| {
        refused_in(&folder, &data(input), arguments, parts)
    };
    refused("eva_vit.pth", &[], &["vision transformer alone", "--vit"]);
    refused("opt", &[], &["language model alone", "--llm"]);
    refused("reader/zip.pth", &[], &["no Q-Former", "brain"]);
    // Swapped, or of another size.
    let swapped = [
        "--vit",
        "@opt",
        "--llm",
        "@opt",
        "--config",
        "@micro/config.json",
    ];
    refused(
        "lavis_pretrained.pth",
        &swapped,
        &["opt", "has no vision transformer", "--vit FILE"],
    );
    let no_language = [
        "--vit",
        "@eva_vit.pth",
        "--llm",
        "@reader/zip.pth",
        "--config",
        "@micro/config.json",
    ];
    refused(
        "lavis_pretrained.pth",
        &no_language,
        &["zip.pth", "no language model", "--llm DIR"],
    );
    let other_llm = [
        "--vit",
        "@eva_vit.pth",
        "--llm",
        "@../tiny",
        "--config",
        "@micro/config.json",
        "--tokenizer",
        "@micro",
    ];
    refused("lavis_pretrained.pth", &other_llm, &["shape"]);
    let other_config = [&LAVIS[..4], &["--config", "@../tiny/config.json"]].concat();
    refused(
        "lavis_pretrained.pth",
        &other_config,
        &["language model 48 wide", "trained with one 8 wide"],
    );
    let retrieval = [
        "--config",
        "@micro/config.json",
        "--tokenizer",
        "@micro-itm",
    ];
    refused(
        "lavis_retrieval.pth",
        &retrieval,
        &["lacks", "language_projection"],
    );
}

#[test]
fn a_result_that_exists_or_cannot_be_written_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("there");
    std::fs::create_dir(&out).unwrap();
    let input = data("lavis_pretrained.pth");
    convert_run(&input, &out, &LAVIS)
        .exits(1)
        .one_error(&["there", "exists already"]);
    assert_eq!(std::fs::read_dir(&out).unwrap().count(), 0);
    let out = folder.path().join("no/such/out");
    convert_run(&input, &out, &LAVIS).exits(1).one_error(&[
        "no/such",
        "is no folder",
        "make it first",
    ]);
    convert_run(&input, Path::new("/"), &LAVIS).exits(1);
}

#[test]
fn values_that_the_type_cannot_hold_are_named() {
    let mut bytes = std::fs::read(data("lavis_caption.pth")).unwrap();
    // The last storage of the old format ends the file.
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&1e6f32.to_le_bytes());
    let f16 = [&LAVIS[2..], &["--dtype", "f16"]].concat();
    refused(
        "large.pth",
        &bytes,
        &f16,
        &["large.pth", "1000000", "beyond the range"],
    );
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("large.pth");
    std::fs::write(&input, &bytes).unwrap();
    convert_run(&input, &folder.path().join("out"), &LAVIS[2..]).exits(0);
    convert_run(&input, &folder.path().join("o2"), &["--dtype", "f8"]).exits(2);
}

#[test]
fn an_index_of_pytorchs_shards_is_read_with_care() {
    let refused = |index: &str, parts: &[&str]| {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("pytorch_model.bin.index.json"), index).unwrap();
        refused_in(&folder, folder.path(), &LAVIS, parts);
    };
    refused("[]", &["index.json", "no JSON object"]);
    refused("{}", &["names no shards"]);
    refused(
        r#"{"weight_map": {"a": "../x.bin"}}"#,
        &["../x.bin", "not a plain file name"],
    );
    refused(
        r#"{"weight_map": {"a": "x.bin"}}"#,
        &["x.bin", "cannot be read"],
    );
}

#[test]
fn what_a_stopped_conversion_left_is_removed() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let left = |process: &str| folder.path().join(format!("out.unfinished-{process}"));
    // No process has such a number; this one lives, and so do the numbers of other folders.
    let (gone, alive) = (left("4294967290"), left(&std::process::id().to_string()));
    let other = folder.path().join("other.unfinished-4294967290");
    for path in [&gone, &alive, &other] {
        std::fs::create_dir(path).unwrap();
        std::fs::write(path.join("model.safetensors"), "half").unwrap();
    }
    let lock = std::fs::File::create(alive.join(".lock")).unwrap();
    lock.lock().unwrap();
    let unlocked = left("1"); // lives, but does not hold the lock: its number went to another
    std::fs::create_dir(&unlocked).unwrap();
    std::fs::write(unlocked.join(".lock"), "").unwrap();
    let run = convert_run(&data("lavis_pretrained.pth"), &out, &LAVIS).exits(0);
    run.says(&["warn: ", "out.unfinished-4294967290: removed"]);
    assert_eq!(
        (unlocked.exists(), alive.exists(), other.exists()),
        (false, true, true)
    );
    #[cfg(target_os = "linux")]
    assert!(!gone.exists());
    assert!(!out.join(".lock").exists());
}

#[test]
fn a_folder_to_make_needs_one_to_lie_in() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("missing/out");
    let run = convert_run(&data("lavis_pretrained.pth"), &out, &LAVIS).exits(1);
    run.one_error(&["missing: is no folder", "make it first", "out"]);
}

#[test]
fn files_that_were_not_needed_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let run = convert_run(&data("lavis_caption.pth"), &out, &LAVIS).exits(0);
    let run = run.says(&["--vit", "eva_vit.pth: not used", "lavis_caption.pth"]);
    assert!(
        !run.stderr.iter().any(|line| line.contains("--llm")),
        "{run:#?}"
    );
}

#[test]
fn a_tokenizer_of_another_kind_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    // Its 81 ids fit into OPT's vocabulary.
    let bert = [&LAVIS[..], &["--tokenizer", "@micro-itm"]].concat();
    let micro_itm = data("micro-itm/tokenizer.json").display().to_string();
    refused_in(
        &folder,
        &data("lavis_pretrained.pth"),
        &bert,
        &[&micro_itm, "WordPiece", "needs BPE", "--tokenizer"],
    );
    let opt = [
        "--vit",
        "@eva_vit.pth",
        "--config",
        "@micro-itm/config.json",
        "--tokenizer",
        "@micro",
    ];
    refused_in(
        &folder,
        &data("lavis_retrieval.pth"),
        &opt,
        &["micro/tokenizer.json", "BPE", "needs WordPiece"],
    );
    // Every command that opens a model refuses it, too.
    for entry in std::fs::read_dir(data("micro")).unwrap() {
        let file = entry.unwrap().path();
        std::fs::copy(&file, folder.path().join(file.file_name().unwrap())).unwrap();
    }
    let ours = folder.path().join("tokenizer.json");
    std::fs::copy(data("micro-itm/tokenizer.json"), &ours).unwrap();
    let model = folder.path().to_str().unwrap();
    run(["caption", "--model", model, HOUSE])
        .exits(1)
        .one_error(&[ours.to_str().unwrap(), "WordPiece", "needs BPE"]);
}

#[test]
fn a_language_model_has_no_effect_on_retrieval() {
    let folder = tempfile::tempdir().unwrap();
    // A configuration that says something of a language model, as transformers' own do.
    let mut config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(data("micro-itm/config.json")).unwrap()).unwrap();
    config["text_config"] = serde_json::json!({"model_type": "opt", "vocab_size": 7});
    let file = folder.path().join("config.json");
    std::fs::write(&file, config.to_string()).unwrap();
    let common = [
        "--vit",
        "@eva_vit.pth",
        "--config",
        file.to_str().unwrap(),
        "--tokenizer",
        "@micro-itm",
    ];
    let input = data("lavis_retrieval.pth");
    let plain = folder.path().join("plain");
    let expected = convert_run(&input, &plain, &common).exits(0);
    // A language model, and a name that would have to be fetched.
    for (number, llm) in ["@opt", "some-one/never-asked-for"].into_iter().enumerate() {
        let out = folder.path().join(number.to_string());
        let run = convert_run(&input, &out, &[&common[..], &["--llm", llm]].concat()).exits(0);
        let (unused, rest): (Vec<&String>, Vec<&String>) =
            run.stderr.iter().partition(|line| line.contains("--llm"));
        assert!(
            unused.len() == 1 && unused[0].contains("not used"),
            "{run:#?}"
        );
        assert_eq!(rest, expected.stderr.iter().collect::<Vec<_>>());
        for entry in std::fs::read_dir(&plain).unwrap() {
            let theirs = entry.unwrap().path();
            let ours = out.join(theirs.file_name().unwrap());
            let same = std::fs::read(&ours).unwrap() == std::fs::read(&theirs).unwrap();
            assert!(same, "{}", ours.display());
        }
        let count = |folder: &Path| std::fs::read_dir(folder).unwrap().count();
        assert_eq!(count(&out), count(&plain));
    }
    // Nor does its tokenizer stand in for BERT's.
    let without = [&common[..4], &["--llm", "@micro-itm"]].concat();
    refused_in(
        &folder,
        &input,
        &without,
        &["no tokenizer", "--tokenizer DIR"],
    );
}

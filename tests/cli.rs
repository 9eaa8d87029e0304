//! The command line's contract, on the real program and the tiny checkpoint: keys, order, flags, exit codes, and
//! what goes to which stream.

mod cli_support;

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::Stdio;

use cli_support::{
    BOAT, DUMP, HOUSE, ModelCopy, Safetensors, TINY, cache, caption, caption_command, command,
    finish, finish_with_stdin, plain_captions, run,
};
use serde_json::{Map, Value, json};

type Object = Map<String, Value>;

fn keys(object: &Object) -> Vec<&str> {
    let mut keys: Vec<_> = object.keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

/// The value of `key` in each line.
fn column<'a>(lines: &'a [Object], key: &str) -> Vec<&'a Value> {
    lines.iter().map(|line| &line[key]).collect()
}

fn token_count(line: &Object) -> usize {
    line["tokens"].as_array().expect("tokens").len()
}

fn score(value: &Value) -> f64 {
    value["score"].as_f64().expect("a score")
}

/// Fails unless both have the same tokens and texts, and scores as near as another kernel variant gives them.
#[track_caller]
fn assert_same_captions(ours: &[Object], others: &[Object]) {
    for key in ["tokens", "pred_caption", "num_tokens"] {
        assert_eq!(column(ours, key), column(others, key));
    }
    for (a, b) in ours.iter().zip(others) {
        let (a, b) = (a["score"].as_f64().unwrap(), b["score"].as_f64().unwrap());
        assert!((a - b).abs() < 1e-2, "{a} {b}");
    }
}

// --- what caption prints ---

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

// --- generation flags ---

#[test]
fn lengths_and_penalties() {
    let plain = &plain_captions()[0];
    let tokens = |flags: &[&str]| {
        let line = caption(TINY, &[flags, &[HOUSE]].concat())
            .exits(0)
            .one_json();
        line["tokens"].as_array().expect("tokens").clone()
    };
    assert_eq!(
        tokens(&["--max-new-tokens", "2"]),
        plain["tokens"].as_array().unwrap()[..2]
    );
    let no_repeats = tokens(&[
        "--min-new-tokens",
        "12",
        "--max-new-tokens",
        "12",
        "--no-repeat-ngram",
        "1",
        "--repetition-penalty",
        "1.5",
    ]);
    assert_eq!(no_repeats.len(), 12);
    for (index, token) in no_repeats.iter().enumerate() {
        assert!(!no_repeats[..index].contains(token), "{no_repeats:?}");
    }
    let short = tokens(&["--beams", "3", "--length-penalty", "-1"]);
    let long = tokens(&["--beams", "3", "--length-penalty", "5", "--early-stopping"]);
    assert!(short.len() <= long.len(), "{short:?} {long:?}");
}

/// No number that a flag takes is too large to be dealt with.
#[test]
fn numbers_without_measure() {
    const MOST: &str = "18446744073709551615";
    let plain = &plain_captions()[0];
    let same = ["--no-repeat-ngram", MOST, "--batch-size", MOST, HOUSE];
    assert_eq!(
        caption(TINY, &same).exits(0).one_json()["tokens"],
        plain["tokens"]
    );
    // The coldest sampling is greedy.
    let cold = [
        "--sample",
        "--temperature",
        "1e-30",
        "--top-k",
        MOST,
        "--seed",
        MOST,
        HOUSE,
    ];
    assert_eq!(
        caption(TINY, &cold).exits(0).one_json()["tokens"],
        plain["tokens"]
    );
    for (flags, code, part) in [
        (&["--max-new-tokens", MOST][..], 1, "64"),
        (&["--sample", "--num-captions", MOST], 2, "1024"),
        (&["--repetition-penalty", "1e-300"], 2, "repetition_penalty"),
        (&["--sample", "--temperature", "nan"], 2, "temperature"),
    ] {
        caption(TINY, &[flags, &[HOUSE]].concat())
            .exits(code)
            .one_error(&[part]);
    }
}

#[test]
fn the_same_seed_gives_the_same_text() {
    let sample = |seed: &str, batch_size: &str| {
        let flags = [
            "--sample",
            "--seed",
            seed,
            "--temperature",
            "1.5",
            "--top-k",
            "50",
            "--top-p",
            "0.95",
            "--batch-size",
            batch_size,
            HOUSE,
            BOAT,
        ];
        caption(TINY, &flags).exits(0).json()
    };
    let first = sample("7", "2");
    assert_eq!(
        column(&first, "tokens"),
        column(&sample("7", "2"), "tokens")
    );
    assert_eq!(
        column(&first, "tokens"),
        column(&sample("7", "1"), "tokens")
    );
    assert_ne!(
        column(&first, "tokens"),
        column(&sample("8", "2"), "tokens")
    );
}

#[test]
fn presets_and_image_sizes() {
    // The default preset and the checkpoint's own size are no change.
    let defaults = ["--preset", "hf", "--image-size", "42", HOUSE, BOAT];
    assert_same_captions(&caption(TINY, &defaults).exits(0).json(), plain_captions());
    // LAVIS searches with five beams: flags win over that.
    let lavis = caption(TINY, &["--preset", "lavis", HOUSE])
        .exits(0)
        .one_json();
    assert!(token_count(&lavis) <= 30);
    let explicit = [
        "--preset",
        "lavis",
        "--max-new-tokens",
        "2",
        "--beams",
        "1",
        HOUSE,
    ];
    assert!(token_count(&caption(TINY, &explicit).exits(0).one_json()) <= 2);
    // mmpretrain's 364 pixels: positions interpolated from 3 × 3 to 26 × 26.
    let mmpretrain = ["--preset", "mmpretrain", "--max-new-tokens", "3", HOUSE];
    caption(TINY, &mmpretrain).exits(0).one_json();
    caption(TINY, &["--image-size", "70", HOUSE])
        .exits(0)
        .one_json();
}

#[test]
fn every_mode_of_the_device_gives_the_same() {
    let flags = ["--disable", "f16,subgroups,limits", HOUSE, BOAT];
    assert_same_captions(&caption(TINY, &flags).exits(0).json(), plain_captions());
    let mut checked = caption_command(TINY, &[HOUSE, BOAT]);
    checked
        .env("BLIP2_WGPU_DISABLE", "subgroups")
        .env("BLIP2_WGPU_CHECKED", "1");
    assert_same_captions(&finish(checked).exits(0).json(), plain_captions());
    run(["inspect", TINY, "--checked"]).exits(0);
}

// --- streams, exit codes, environment ---

#[test]
#[cfg(feature = "demo-model")]
fn without_a_model_the_demo_model_speaks_and_says_what_it_is() {
    const SCENE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/demo/scene_00.png");
    let plain = run(["caption", SCENE, "--json"])
        .exits(0)
        .says(&["demo model", "--model DIR"]);
    let caption = plain.one_json();
    assert_eq!(caption["pred_caption"], "a small red diamond");
    // By name, from another folder, and silent when asked to be.
    let folder = tempfile::tempdir().expect("a folder");
    let mut named = command(["caption", "--model", "demo", "--quiet", "--json", SCENE]);
    named.current_dir(folder.path());
    let named = finish(named).exits(0);
    assert!(named.stderr.is_empty(), "{named:#?}");
    assert_eq!(named.one_json()["tokens"], caption["tokens"]);
}

#[test]
#[cfg(not(feature = "demo-model"))]
fn without_a_model_and_without_the_demo_model_it_is_wrong_usage() {
    let error = ["--model", "BLIP2_WGPU_MODEL"];
    run(["caption", HOUSE]).exits(2).one_error(&error);
    run(["caption", "nowhere.png"]).exits(2).one_error(&error);
}

#[test]
fn wrong_usage_exits_with_2_and_says_what_to_do() {
    let with_model =
        |flags: &[&'static str]| [&["caption", "--model", TINY, HOUSE], flags].concat();
    let cases: Vec<(Vec<&str>, &[&str])> = vec![
        (vec![], &["Usage"]),
        (vec!["caption"], &["IMAGE"]),
        (vec!["paint", HOUSE], &["paint"]),
        (with_model(&["--colour"]), &["--colour"]),
        (
            with_model(&["--batch-size", "0"]),
            &["--batch-size", "1 or more", "auto"],
        ),
        (
            with_model(&["--batch-size", "many"]),
            &["--batch-size", "auto"],
        ),
        (
            with_model(&["--image-size", "71"]),
            &["71", "14", "for example 70"],
        ),
        (with_model(&["--image-size", "0"]), &["for example 14"]),
        (
            with_model(&["--image-size", "5000"]),
            &["4088", "for example 4088"],
        ),
        (
            with_model(&["--image-size", "4294967295"]),
            &["for example"],
        ),
        (
            with_model(&["--preset", "clip"]),
            &["clip", "lavis", "mmpretrain", "hf"],
        ),
        (
            with_model(&["--disable", "f16,fun"]),
            &["fun", "subgroups", "limits"],
        ),
        (with_model(&["--max-new-tokens", "-3"]), &["-3"]),
        (with_model(&["--beams", "three"]), &["three"]),
    ];
    for (arguments, parts) in cases {
        let run = run(&arguments).exits(2).says(parts);
        assert!(run.stdout.is_empty(), "{run:#?}");
    }
}

/// Values that only make sense, or not, beside those of the checkpoint.
#[test]
fn options_that_cannot_be_used_exit_with_2() {
    for (flags, parts) in [
        (&["--beams", "0"][..], &["num_beams", "0"][..]),
        (&["--beams", "33"], &["num_beams", "32"]),
        (
            &["--num-captions", "2"],
            &["num_return_sequences", "beams or sampling"],
        ),
        (
            &["--beams", "2", "--num-captions", "3"],
            &["num_return_sequences", "2 beams"],
        ),
        (
            &["--sample", "--temperature", "0"],
            &["temperature", "above 0"],
        ),
        (&["--top-p", "1.5"], &["top_p", "at most 1"]),
        (
            &["--min-new-tokens", "21"],
            &["min_new_tokens", "max_new_tokens"],
        ),
    ] {
        let run = caption(TINY, &[flags, &[HOUSE]].concat())
            .exits(2)
            .one_error(parts);
        assert!(run.stdout.is_empty(), "{run:#?}");
    }
}

#[test]
fn every_command_has_help_with_an_example() {
    for subcommand in ["caption", "devices", "inspect", "parity"] {
        let help = run([subcommand, "--help"]).exits(0);
        assert!(help.stdout.contains("Example"), "{help:#?}");
        assert!(help.stdout.contains("blip2-wgpu"), "{help:#?}");
        assert!(help.stderr.is_empty(), "{help:#?}");
    }
    let help = run(["--help"]).exits(0).stdout;
    for subcommand in ["caption", "devices", "inspect", "parity", "--adapter"] {
        assert!(help.contains(subcommand), "{help}");
    }
    assert!(
        run(["--version"])
            .exits(0)
            .stdout
            .contains(env!("CARGO_PKG_VERSION"))
    );
}

#[test]
fn quiet_and_verbose() {
    let quiet = caption(TINY, &["--quiet", HOUSE]).exits(0);
    assert!(quiet.stderr.is_empty(), "{quiet:#?}");
    quiet.one_json();
    // Failures are named all the same.
    caption(TINY, &["--quiet", "nowhere.png"])
        .exits(1)
        .one_error(&["nowhere.png"]);
    let verbose = caption(TINY, &["-v", HOUSE])
        .exits(0)
        .says(&["loaded", "ViT", "tokens"]);
    verbose.one_json();
    // No bar where stderr is no terminal: no control characters.
    let control = |line: &String| line.contains(char::is_control);
    assert!(!verbose.stderr.iter().any(control), "{verbose:#?}");
}

#[test]
fn the_environment_stands_in_for_flags() {
    let mut from_environment = command(["caption", "--json", HOUSE, BOAT]);
    from_environment
        .env("BLIP2_WGPU_MODEL", TINY)
        .env("BLIP2_WGPU_ADAPTER", "0");
    assert_same_captions(&finish(from_environment).exits(0).json(), plain_captions());
    // A flag wins.
    let mut flag = command(["inspect", TINY, "--adapter", "auto"]);
    flag.env("BLIP2_WGPU_ADAPTER", "nonsense");
    finish(flag).exits(0);
    let mut wrong = caption_command(TINY, &[HOUSE]);
    wrong.env("BLIP2_WGPU_DISABLE", "nonsense");
    finish(wrong)
        .exits(2)
        .one_error(&["nonsense", "f16, subgroups, limits"]);
}

#[test]
fn closed_streams_are_no_panic() {
    let mut command = command(["caption", "--model", TINY, "--json", "--batch-size", "1"]);
    command
        .args([HOUSE; 12])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut first = String::new();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    stdout.read_line(&mut first).unwrap();
    drop(stdout); // as `| head -1` does
    serde_json::from_str::<Object>(&first).unwrap();
    let mut stderr = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut stderr)
        .unwrap();
    assert!(child.wait().unwrap().success(), "{stderr}");
    assert!(
        !stderr.contains("panicked") && !stderr.contains("error: -"),
        "{stderr}"
    );

    // Nobody reads the errors.
    let mut command = caption_command(TINY, &["nowhere.png"]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    drop(child.stderr.take());
    assert_eq!(child.wait().unwrap().code(), Some(1));
}

#[cfg(target_os = "linux")]
#[test]
fn results_that_cannot_be_written_are_a_failure() {
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full");
    let mut command = command(["caption", "--model", TINY, HOUSE]);
    command.stdout(full.unwrap()).stderr(Stdio::piped());
    let output = command.spawn().unwrap().wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(
        stderr.contains("standard output: cannot be written"),
        "{stderr}"
    );
}

#[test]
fn a_cache_that_is_no_use_is_no_failure() {
    let folder = tempfile::tempdir().unwrap();
    let blocked = folder.path().join("file");
    std::fs::write(&blocked, "a file where a folder should be").unwrap();
    let mut command = caption_command(TINY, &[HOUSE, BOAT]);
    command.env("XDG_CACHE_HOME", &blocked);
    assert_same_captions(&finish(command).exits(0).json(), plain_captions());

    // Every file of a filled cache is spoilt.
    plain_captions();
    let ours = folder.path().join("blip2-wgpu");
    std::fs::create_dir(&ours).unwrap();
    for entry in std::fs::read_dir(cache().join("blip2-wgpu"))
        .unwrap()
        .flatten()
    {
        let bytes = std::fs::read(entry.path()).unwrap();
        let spoilt: Vec<u8> = bytes[..bytes.len() / 2]
            .iter()
            .map(|byte| byte ^ 0x5A)
            .collect();
        std::fs::write(ours.join(entry.file_name()), spoilt).unwrap();
    }
    let mut command = caption_command(TINY, &[HOUSE, BOAT]);
    command.env("XDG_CACHE_HOME", folder.path());
    assert_same_captions(&finish(command).exits(0).json(), plain_captions());
}

// --- adapters ---

fn adapters() -> Vec<Object> {
    run(["devices", "--json"]).exits(0).json()
}

#[test]
fn devices_lists_what_each_adapter_can_do() {
    let adapters = adapters();
    for (index, adapter) in adapters.iter().enumerate() {
        assert_eq!(adapter["index"], index);
        for key in [
            "name",
            "backend",
            "type",
            "driver",
            "f16",
            "subgroups",
            "cooperative_matrices",
            "max_binding_bytes",
            "max_buffer_bytes",
            "workgroup_bytes",
            "invocations",
            "matmul",
            "matvec",
            "attention",
            "preferred",
            "pipeline_cache",
            "timestamps",
        ] {
            assert!(adapter.contains_key(key), "{key}: {adapter:?}");
        }
        assert!(adapter["max_binding_bytes"].as_u64() >= Some(128 << 20));
    }
    let preferred = adapters
        .iter()
        .filter(|adapter| adapter["preferred"] == true);
    assert_eq!(preferred.count(), 1);
    let table = run(["devices"]).exits(0).stdout;
    for adapter in &adapters {
        assert!(table.contains(adapter["name"].as_str().unwrap()), "{table}");
    }
    for word in [
        "f16",
        "subgroups",
        "cooperative matrices",
        "binding",
        "workgroup",
        "auto",
    ] {
        assert!(table.contains(word), "{table}");
    }
}

#[test]
fn an_adapter_by_number_and_by_name() {
    let adapters = adapters();
    let last = adapters.len() - 1;
    let name = adapters[last]["name"].as_str().unwrap();
    let start: String = name.chars().take(4).collect();
    for choice in [last.to_string(), name.to_uppercase(), start] {
        let report = run(["inspect", TINY, "--json", "--adapter", &choice])
            .exits(0)
            .one_json();
        if choice == last.to_string() {
            assert_eq!(report["adapter"], name);
        }
    }
    for choice in ["nonsense", "99", "-1"] {
        caption(TINY, &[&format!("--adapter={choice}"), HOUSE])
            .exits(1)
            .one_error(&[
                choice,
                adapters[0]["name"].as_str().unwrap(),
                "blip2-wgpu devices",
            ]);
    }
}

#[cfg(target_os = "linux")]
#[test]
fn without_any_adapter_it_names_the_package() {
    for arguments in [
        &["devices"][..],
        &["caption", "--model", TINY, HOUSE],
        &["inspect", TINY],
        &["parity", TINY, DUMP],
    ] {
        let mut command = command(arguments);
        for variable in ["VK_DRIVER_FILES", "VK_ICD_FILENAMES"] {
            command.env(variable, "/nonexistent");
        }
        command.env_remove("BLIP2_WGPU_ADAPTER");
        let run = finish(command)
            .exits(1)
            .one_error(&["no GPU adapter", "install", "ulkan"]);
        assert!(run.stdout.is_empty(), "{run:#?}");
    }
}

// --- inspect and parity ---

#[test]
fn inspect_counts_parameters_and_bytes() {
    let report = run(["inspect", TINY, "--json"]).exits(0).one_json();
    assert_eq!(report["model"], TINY);
    let parameters = report["parameters"].as_u64().unwrap();
    let components = report["components"].as_object().unwrap();
    let sum: u64 = components
        .values()
        .map(|count| count.as_u64().unwrap())
        .sum();
    assert_eq!(sum, parameters);
    // The tiny checkpoint is in f16, two bytes an element.
    assert_eq!(report["file_bytes"], parameters * 2);
    for key in [
        "gpu_weight_bytes",
        "gpu_activation_bytes",
        "gpu_cache_bytes",
    ] {
        assert!(report[key].as_u64() > Some(0), "{key}: {report:?}");
    }
    assert!(report["gpu_weight_bytes"].as_u64().unwrap() >= parameters * 2);
    assert_eq!(report["unused_tensors"], json!([]));
    assert!(report["adapter"].is_string());

    let text = run(["inspect", TINY, "--tensors"]).exits(0).stdout;
    for words in [
        "ViT",
        "Q-Former",
        "OPT",
        "vocabulary 408",
        "parameters",
        "query_tokens",
    ] {
        assert!(text.contains(words), "{text}");
    }

    // A tensor too many is no failure, but is shown.
    let model = ModelCopy::new();
    model.tamper(|file| {
        let end = file.data.len();
        let info = json!({"dtype": "F16", "shape": [2], "data_offsets": [end, end + 4]});
        file.header.insert("ema.shadow".into(), info);
        file.data.extend([0; 4]);
    });
    let report = run(["inspect", "--json", model.path().to_str().unwrap()]).exits(0);
    assert_eq!(report.one_json()["unused_tensors"], json!(["ema.shadow"]));
    caption(model.path(), &[HOUSE]).exits(0).one_json();
}

/// A dump with fewer prompts, for speed, changed further by `change`.
fn small_dump(folder: &Path, change: impl FnOnce(&mut Value, &mut Safetensors)) -> String {
    let mut dump = Safetensors::read(Path::new(DUMP));
    let text = dump.header["__metadata__"]["blip2_reference"]
        .as_str()
        .unwrap();
    let mut reference: Value = serde_json::from_str(text).unwrap();
    reference["prompts"].as_array_mut().unwrap().truncate(1);
    reference["prompts"][0]["beams"] = json!({});
    change(&mut reference, &mut dump);
    dump.header["__metadata__"]["blip2_reference"] = reference.to_string().into();
    let file = folder.join("dump.safetensors");
    dump.write(&file);
    file.display().to_string()
}

fn flip_a_byte(file: &mut Safetensors, tensor: &str, byte: usize) {
    let start = file.range(tensor).start;
    file.data[start + byte] ^= 0x40;
}

#[test]
fn parity_passes_on_the_committed_dump() {
    let rows = run(["parity", TINY, DUMP, "--json"]).exits(0).json();
    for row in &rows {
        assert_eq!(
            keys(row),
            ["max_error", "note", "pass", "relative_error", "stage"]
        );
        assert_eq!(row["pass"], true, "{row:?}");
    }
    for stage in [
        "vit.embeddings",
        "vit.block.2",
        "vit.output",
        "qformer.layer.3",
        "projection",
        "prompt.0.opt.layer.2",
        "prompt.0.logits",
        "prompt.0.greedy",
        "prompt.1.greedy",
        "prompt.2.greedy",
        "prompt.0.beams.3",
        "prompt.0.beams.5",
    ] {
        let name = format!("image 1, {stage}");
        assert!(
            rows.iter().any(|row| row["stage"] == name.as_str()),
            "{name}"
        );
    }
}

#[test]
fn parity_fails_where_something_differs() {
    let folder = tempfile::tempdir().unwrap();
    let good = small_dump(folder.path(), |_, _| {});
    let table = run(["parity", TINY, &good]).exits(0).stdout;
    assert!(table.contains("pass") && !table.contains("FAIL"), "{table}");

    // Other weights: what comes before them still passes.
    let model = ModelCopy::new();
    model.tamper(|file| flip_a_byte(file, "vision_model.encoder.layers.1.mlp.fc1.weight", 41));
    let rows = run(["parity", model.path().to_str().unwrap(), &good, "--json"])
        .exits(1)
        .json();
    let passes = |stage: &str| {
        let row = rows.iter().find(|row| row["stage"] == stage);
        row.unwrap_or_else(|| panic!("no {stage}"))["pass"] == true
    };
    assert!(passes("image 0, vit.block.0"));
    assert!(!passes("image 0, vit.block.1"));

    // Another dump: one stage, and other tokens.
    let bad = small_dump(folder.path(), |reference, dump| {
        flip_a_byte(dump, "qformer.layer.2", 3);
        reference["prompts"][0]["greedy"][0]["tokens"][0] = 5.into();
    });
    let table = run(["parity", TINY, &bad]).exits(1).stdout;
    let failed: Vec<_> = table.lines().filter(|line| line.contains("FAIL")).collect();
    assert_eq!(failed.len(), 2, "{table}");
    assert!(failed[0].contains("image 0, qformer.layer.2"), "{table}");
    assert!(failed[1].contains("image 0, prompt.0.greedy"), "{table}");
}

type ChangeDump = fn(&mut Value, &mut Safetensors);

#[test]
fn parity_names_what_is_wrong_with_a_dump() {
    let folder = tempfile::tempdir().unwrap();
    let cases: [(ChangeDump, i32, &[&str]); 8] = [
        (
            |reference, _| reference["image_size"] = 70.into(),
            1,
            &["dump.safetensors", "pixel_values"],
        ),
        (
            |reference, _| reference["image_size"] = "big".into(),
            1,
            &["dump.safetensors", "metadata"],
        ),
        (
            |reference, _| reference["max_new_tokens"] = 0.into(),
            1,
            &["dump.safetensors", "max_new_tokens"],
        ),
        (
            |reference, _| reference["max_new_tokens"] = 900.into(),
            1,
            &["dump.safetensors", "positions", "64"],
        ),
        (
            |reference, _| reference["prompts"][0]["prompt"] = "another".into(),
            1,
            &["dump.safetensors", "another", "tokenizer"],
        ),
        (
            |_, dump| dump.remove("pixel_values"),
            1,
            &["dump.safetensors", "pixel_values", "missing"],
        ),
        (
            |_, dump| dump.header["pixel_values"]["shape"] = json!([1, 6, 42, 42]),
            1,
            &["dump.safetensors", "pixel_values"],
        ),
        (
            |reference, _| {
                reference["prompts"][0]["beams"] = json!({"77": [[{"tokens": [1], "score": 0.0}]]})
            },
            1,
            &["dump.safetensors", "num_beams", "77"],
        ),
    ];
    for (change, code, parts) in cases {
        let dump = small_dump(folder.path(), change);
        run(["parity", TINY, &dump]).exits(code).one_error(parts);
    }
    for (file, parts) in [
        (
            "/nowhere.safetensors",
            &["/nowhere.safetensors", "reference_dump.py"][..],
        ),
        (HOUSE, &["house.png", "reference_dump.py"]),
        (
            concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/tests/data/tiny/model.safetensors"
            ),
            &["blip2_reference"],
        ),
    ] {
        run(["parity", TINY, file]).exits(1).one_error(parts);
    }
}

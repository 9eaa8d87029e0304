//! Streams, exit codes, environment.

use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;

use crate::cli_support::{
    BOAT, HOUSE, TINY, cache, caption, caption_command, command, finish, plain_captions, run,
};
use crate::{Object, assert_same_captions};

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
fn a_model_in_the_environment_may_lie_in_the_users_folder() {
    let home = std::path::Path::new(TINY).parent().expect("a folder");
    for model in ["~/tiny", "$HOME/tiny", "${HOME}/tiny"] {
        let mut command = command(["caption", "--json", HOUSE]);
        command.env("HOME", home).env("BLIP2_WGPU_MODEL", model);
        let line = finish(command).exits(0).one_json();
        assert_eq!(line["tokens"], plain_captions()[0]["tokens"], "{model}");
    }
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
        (&["--sample", "--top-p", "1.5"], &["top_p", "at most 1"]),
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

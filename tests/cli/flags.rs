//! Flags and the variables that stand for them: what does nothing is said, and what is wrong is said by
//! the name that the user gave it.

use crate::cli_support::{BOAT, HOUSE, Run, TINY, command, finish, run};

fn with(arguments: &[&str], variables: &[(&str, &str)]) -> Run {
    let mut command = command(arguments);
    command.envs(variables.iter().copied());
    finish(command)
}

/// The lines that say that a flag does nothing.
fn idle(run: &Run) -> Vec<&str> {
    let lines = run.stderr.iter().map(String::as_str);
    lines.filter(|line| line.contains(": no effect")).collect()
}

#[test]
fn flags_that_do_nothing_get_a_line() {
    let data = |name: &str| format!("{}/tests/data/{name}", env!("CARGO_MANIFEST_DIR"));
    let [captions, results] =
        ["captions.json", "captions_results.json"].map(|name| data(&format!("eval/{name}")));
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out").display().to_string();
    let score = [
        "score",
        "caption",
        "--annotations",
        &captions,
        "--results",
        &results,
    ];
    let short = ["--max-new-tokens", "2"];
    let caption = ["caption", HOUSE, "--model", TINY];
    let caption = [&caption[..], &short].concat();
    let vqa = ["vqa", HOUSE, "what is it?", "--model", TINY];
    let vqa = [&vqa[..], &short].concat();
    for (arguments, flags) in [
        (
            [&score[..], &["--model", TINY, "--quant", "q8"]].concat(),
            "--model, --quant",
        ),
        (
            [&score[..], &["--adapter", "0", "--trace", &out]].concat(),
            "--adapter, --trace",
        ),
        ([&score[..], &["--split", "val"]].concat(), "--split"),
        (
            vec!["devices", "--model", TINY, "--memory", "1GB", "--quant=q8"],
            "--model, --quant, --memory",
        ),
        (vec!["inspect", TINY, "--model", BOAT], "--model"),
        ([&caption[..], &["--overwrite"]].concat(), "--overwrite"),
        (
            [&caption[..], &["--stream", "--beams", "2"]].concat(),
            "--stream",
        ),
        ([&caption[..], &["--stream", "--json"]].concat(), "--stream"),
        ([&vqa[..], &["--overwrite"]].concat(), "--overwrite"),
        (
            [&vqa[..], &["--stream", "--preset", "lavis"]].concat(),
            "--stream",
        ),
        (
            vec!["stages", HOUSE, "--model", TINY, "--out", &out, "--json"],
            "--json",
        ),
        (
            vec!["convert", TINY, "/no/such/folder/x", "--quant", "f16"],
            "--quant",
        ),
        (
            vec!["convert", "/no/such", &out, "--model", TINY],
            "--model",
        ),
        (vec!["parity", TINY, "/no/such", "--model", TINY], "--model"),
        (
            vec![
                "eval",
                "caption",
                "--images",
                "/no",
                "--annotations",
                "/no",
                "--out",
                &out,
                "--stream",
                "--num-captions",
                "2",
            ],
            "--stream, --num-captions",
        ),
    ] {
        let run = run(&arguments);
        let said = idle(&run);
        let start = format!("warn: {flags}: no effect ");
        assert!(
            said.len() == 1 && said[0].starts_with(&start),
            "{flags}: {run:#?}"
        );
    }
    // Where they do something nothing is said, and variables are for many commands.
    let jsonl = folder.path().join("c.jsonl").display().to_string();
    for arguments in [
        [&caption[..], &["--overwrite", "--out", &jsonl]].concat(),
        [&caption[..], &["--stream"]].concat(),
        score.to_vec(),
        vec!["devices", "--disable", "f16"],
    ] {
        let variables = [("BLIP2_WGPU_QUANT", "q8"), ("BLIP2_WGPU_MEMORY", "1GB")];
        let run = with(&arguments, &variables);
        assert!(idle(&run).is_empty(), "{run:#?}");
    }
}

#[test]
fn a_blank_variable_is_unset() {
    let names = [
        "MODEL", "ADAPTER", "DISABLE", "KERNEL", "QUANT", "MEMORY", "CHECKED",
    ];
    let names = names.map(|name| format!("BLIP2_WGPU_{name}"));
    for blank in ["", " "] {
        let variables: Vec<_> = names.iter().map(|name| (name.as_str(), blank)).collect();
        let run = with(&["caption", HOUSE, "--max-new-tokens", "2"], &variables).exits(0);
        assert!(run.stderr[0].starts_with("demo model"), "{run:#?}");
    }
}

#[test]
fn a_wrong_variable_is_named() {
    for (variable, value, code) in [
        ("BLIP2_WGPU_QUANT", "q9", 2),
        ("BLIP2_WGPU_MEMORY", "much", 2),
        ("BLIP2_WGPU_MEMORY", "1kB", 1),
        ("BLIP2_WGPU_CHECKED", "perhaps", 2),
        ("BLIP2_WGPU_DISABLE", "f16,f17", 2),
        ("BLIP2_WGPU_KERNEL", "linear=x", 2),
        ("BLIP2_WGPU_KERNEL", "linear", 2),
        ("BLIP2_WGPU_ADAPTER", "no-such", 1),
        ("BLIP2_WGPU_MODEL", "/no/such/model", 1),
        ("BLIP2_WGPU_MODEL", "~no-such-user/model", 2),
        ("BLIP2_WGPU_SHADERS", "/no/such/shaders", 1),
        ("XDG_CACHE_HOME", "~no-such-user", 2),
    ] {
        let arguments = ["caption", HOUSE, "--max-new-tokens", "2"];
        let run = with(&arguments, &[(variable, value)]);
        let text = run.stderr.join(" ");
        assert!(text.contains(variable), "{variable}={value}: {run:#?}");
        run.exits(code);
    }
    // The command line has another.
    let arguments = ["caption", HOUSE, "--quant", "q7"];
    let run = with(&arguments, &[("BLIP2_WGPU_QUANT", "q9")]).exits(2);
    let text = run.stderr.join(" ");
    assert!(
        text.contains("q7") && !text.contains("BLIP2_WGPU"),
        "{text}"
    );
}

#[test]
fn more_texts_than_there_are_name_the_flag() {
    run([
        "caption",
        HOUSE,
        "--model",
        TINY,
        "--beams",
        "1",
        "--num-captions",
        "3",
    ])
    .one_error(&["num_return_sequences", "--num-captions"]);
}

#[cfg(target_os = "linux")]
#[test]
fn drivers_are_quiet_wherever_folders_are_said_to_be() {
    for variables in [
        [("TMPDIR", "relative"), ("XDG_RUNTIME_DIR", "")],
        [("TMPDIR", ""), ("XDG_RUNTIME_DIR", "relative")],
        [("XDG_CACHE_HOME", "/dev/null"), ("TMPDIR", "")],
    ] {
        let arguments = ["caption", HOUSE, "--model", TINY, "--max-new-tokens", "2"];
        let run = with(&arguments, &variables).exits(0);
        assert!(run.stderr.is_empty(), "{variables:?}: {run:#?}");
    }
}

//! Generation flags.

use crate::cli_support::{
    BOAT, HOUSE, TINY, caption, caption_command, finish, plain_captions, run,
};
use crate::{assert_same_captions, column, token_count};

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
fn flags_that_change_nothing_are_named() {
    let warned = |flags: &[&str]| caption(TINY, &[flags, &[HOUSE]].concat()).exits(0).stderr;
    let draws = [
        "--temperature",
        "0.5",
        "--top-p",
        "0.9",
        "--top-k",
        "5",
        "--seed",
        "3",
    ];
    assert_eq!(
        warned(&draws),
        [
            "warn: --temperature, --top-k, --top-p, --seed: no effect where nothing is drawn; add --sample"
        ]
    );
    let beams = ["--length-penalty", "2", "--early-stopping"];
    assert_eq!(
        warned(&beams),
        ["warn: --length-penalty, --early-stopping: no effect without beams; add --beams N"]
    );
    assert_eq!(warned(&[&draws[..], &["--sample"]].concat()), [""; 0]);
    assert_eq!(warned(&[&beams[..], &["--beams", "2"]].concat()), [""; 0]);
    assert_eq!(
        warned(&[&beams[..], &["--preset", "lavis"]].concat()),
        [""; 0]
    );
    let streamed = warned(&["--stream", "--batch-size", "4"]);
    assert!(
        streamed[0].contains("--batch-size: no effect with --stream"),
        "{streamed:?}"
    );
    assert_eq!(warned(&[&draws[..], &["--quiet"]].concat()), [""; 0]);
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

//! `convert` on checkpoints in the names and containers of LAVIS, mmpretrain and transformers. They were made from
//! `tests/data/convert/micro`, `micro-t5` and `micro-itm` by `weights-tools/make_foreign.py`, so converting gives these again.

mod outputs;
mod refusals;
mod tensors;

use std::path::{Path, PathBuf};

use crate::cli_support::{Run, run};
use blip2_wgpu::convert::ConvertOptions;
use blip2_wgpu::model::Blip2Config;
use blip2_wgpu::weights::Checkpoint;

fn data(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests/data/convert", name]
        .iter()
        .collect()
}

/// Options for the generative fixtures.
fn generative(vit: bool, llm: bool) -> ConvertOptions {
    ConvertOptions {
        vit: vit.then(|| data("eva_vit.pth")),
        llm: llm.then(|| data("opt")),
        config: Some(data("micro/config.json")),
        ..ConvertOptions::default()
    }
}

/// Options for the Flan-T5 fixture, which LAVIS saves without vision transformer and language model.
fn with_t5() -> ConvertOptions {
    ConvertOptions {
        vit: Some(data("eva_vit.pth")),
        llm: Some(data("t5")),
        config: Some(data("micro-t5/config.json")),
        ..ConvertOptions::default()
    }
}

/// Options for the retrieval fixtures.
fn retrieval(vit: bool) -> ConvertOptions {
    ConvertOptions {
        vit: vit.then(|| data("eva_vit.pth")),
        config: Some(data("micro-itm/config.json")),
        tokenizer: Some(data("micro-itm")),
        ..ConvertOptions::default()
    }
}

/// Fails unless both folders have the same tensors, bit by bit, and the same configuration.
#[track_caller]
fn same_model(out: &Path, expected: &Path) {
    let (ours, theirs) = (
        Checkpoint::open(out).unwrap(),
        Checkpoint::open(expected).unwrap(),
    );
    let names = |checkpoint: &Checkpoint| checkpoint.names().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(names(&ours), names(&theirs));
    for (a, b) in ours.tensors().zip(theirs.tensors()) {
        assert_eq!((a.dtype, a.shape), (b.dtype, b.shape), "{}", a.name);
        assert!(a.bytes == b.bytes, "{} differs", a.name);
    }
    assert_eq!(
        Blip2Config::open(out).unwrap(),
        Blip2Config::open(expected).unwrap()
    );
}

/// Runs `convert INPUT OUT ARGUMENTS`, paths among the arguments being fixtures'.
fn convert_run(input: &Path, out: &Path, arguments: &[&str]) -> Run {
    let arguments = arguments
        .iter()
        .map(|argument| match argument.strip_prefix('@') {
            Some(fixture) => data(fixture).into_os_string(),
            None => argument.into(),
        });
    let start = ["convert".into(), input.into(), out.into()];
    run(start.into_iter().chain(arguments))
}

const LAVIS: [&str; 6] = [
    "--vit",
    "@eva_vit.pth",
    "--llm",
    "@opt",
    "--config",
    "@micro/config.json",
];

//! `bench kernels`, `bench model`, `--profile` and `--trace`: on the demo model and the least work.

use std::collections::BTreeMap;
use std::time::Instant;

use serde_json::{Map, Value};

use crate::cli_support::run;
use blip2_wgpu::gpu::{GpuOptions, Lane, Profiler};
use blip2_wgpu::image::{DecodePolicy, decode_file};
use blip2_wgpu::{Blip2, CaptionOptions, OpenOptions};

const SCENE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/scene_12.png");
const CAPTION: &str = "a white star, a yellow heart, a yellow star and a yellow ring";

fn keys(object: &Map<String, Value>) -> Vec<&str> {
    let mut keys: Vec<_> = object.keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

fn is_positive(value: &Value) -> bool {
    value.as_f64().is_some_and(|value| value > 0.0)
}

#[test]
fn bench_kernels_has_the_ceilings_and_every_wanted_kernel() {
    let lines = run(["bench", "kernels", "argmax", "--rounds", "1", "--json"])
        .exits(0)
        .json();
    let mut by_kernel: BTreeMap<&str, Vec<&Map<String, Value>>> = BTreeMap::new();
    for line in &lines {
        assert_eq!(
            keys(line),
            [
                "adapter",
                "ceiling",
                "driver",
                "gbytes_per_s",
                "gflops",
                "kernel",
                "median_ms",
                "shape",
                "share",
                "variant"
            ]
        );
        assert!(is_positive(&line["median_ms"]), "{line:?}");
        let kernel = line["kernel"].as_str().expect("a name");
        by_kernel.entry(kernel).or_default().push(line);
    }
    for (kernel, ceiling, unit) in [
        ("bench_copy", "copy", "gbytes_per_s"),
        ("bench_read", "read", "gbytes_per_s"),
        ("bench_multiply", "multiply", "gflops"),
    ] {
        let line = by_kernel[kernel][0];
        assert_eq!(line["ceiling"], ceiling);
        assert!(is_positive(&line[unit]));
        let share = line["share"].as_f64().expect("a share");
        assert!((share - 1.0).abs() < 1e-2, "{line:?}");
    }
    assert_eq!(by_kernel["argmax"].len(), 2);
    assert_eq!(by_kernel["argmax"][0]["ceiling"], "read");
    assert!(is_positive(&by_kernel["argmax"][0]["share"]));
    assert!(
        by_kernel
            .keys()
            .all(|kernel| kernel.starts_with("bench_") || *kernel == "argmax"),
        "{by_kernel:?}"
    );
}

#[test]
fn bench_model_has_load_ceilings_and_a_line_for_each_batch() {
    let lines = run([
        "bench",
        "model",
        "--model",
        "demo",
        "--image",
        SCENE,
        "--max-new-tokens",
        "4",
        "--batches",
        "1,3",
        "--rounds",
        "1",
        "--json",
    ])
    .exits(0)
    .json();
    let kinds: Vec<_> = lines.iter().map(|line| line["bench"].clone()).collect();
    assert_eq!(kinds, ["ceilings", "load", "batch", "batch"]);
    assert!(is_positive(&lines[0]["read_gbytes_per_s"]));
    assert!(is_positive(&lines[0]["multiply_gflops"]));
    assert!(is_positive(&lines[1]["seconds"]));
    for (line, batch) in lines[2..].iter().zip([1, 3]) {
        assert_eq!(
            keys(line),
            [
                "batch",
                "bench",
                "captions_per_s",
                "decode_gbytes_per_s",
                "decode_share",
                "encoder_gflops",
                "encoder_share",
                "first_token_ms",
                "images_per_s",
                "step_ms",
                "step_weight_bytes",
                "tokens_per_s"
            ]
        );
        assert_eq!(line["batch"], batch);
        for (key, value) in line {
            assert!(key == "bench" || is_positive(value), "{key}: {value}");
        }
        // At most one token of each text a step; fewer where one began later than the others.
        let (tokens, step) = (&line["tokens_per_s"], &line["step_ms"]);
        let expected = f64::from(batch) * 1e3 / step.as_f64().expect("milliseconds");
        let ratio = tokens.as_f64().expect("a rate") / expected;
        assert!((0.3..1.01).contains(&ratio), "{line:?}");
    }
}

#[test]
fn a_filter_that_fits_nothing_is_said() {
    let run = run(["bench", "kernels", "MATVEC", "nothing_like_it"]).exits(1);
    assert_eq!(run.stdout, "");
    run.says(&["no line contains", "MATVEC", "nothing_like_it", "matvec 1x"]);
}

/// What is suggested must be this command's to take, and enough.
#[test]
fn a_bench_that_does_not_fit_says_what_does() {
    let batches = ["bench", "model", "--model", "demo", "--batches", "1,8"];
    let small = |more: &[&str]| run([&batches[..], more].concat());
    let refused = small(&["--memory", "6MB"]).exits(1);
    let flag = "--batch-size".to_owned();
    assert!(!refused.stderr.concat().contains(&flag), "{refused:#?}");
    refused.says(&["not enough memory", "this fits: --batches "]);
}

#[test]
fn a_profile_shows_the_kernels_and_a_trace_opens() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let trace = folder.path().join("trace.json");
    let trace_name = trace.to_str().expect("a name in Unicode");
    let run = run([
        "caption",
        SCENE,
        "--model",
        "demo",
        "--profile",
        "--trace",
        trace_name,
    ])
    .exits(0);
    assert!(run.stdout.contains(CAPTION), "{run:#?}");
    let run = run.says(&[
        "kernel",
        "program",
        "dispatches",
        "total ms",
        "share",
        "layer_norm",
        "vit",
        "qformer",
        "prefill",
        "decode",
        "on the device",
        "on the host: ",
        "preprocess",
        "load",
    ]);
    drop(run);

    let text = std::fs::read(&trace).expect("a trace");
    let trace: Value = serde_json::from_slice(&text).expect("JSON");
    let events = trace["traceEvents"].as_array().expect("events");
    let mut lanes: BTreeMap<u64, String> = BTreeMap::new();
    let mut spans: BTreeMap<u64, Vec<(f64, f64, &Value)>> = BTreeMap::new();
    for event in events {
        let lane = event["tid"].as_u64().expect("a lane");
        if event["ph"] == "M" {
            let name = event["args"]["name"].as_str().expect("a name");
            lanes.insert(lane, name.into());
            continue;
        }
        assert_eq!(event["ph"], "X");
        let time = |key: &str| event[key].as_f64().expect("microseconds");
        assert!(time("ts") >= 0.0 && time("dur") >= 0.0, "{event}");
        let span = (time("ts"), time("ts") + time("dur"), event);
        spans.entry(lane).or_default().push(span);
    }
    assert!(spans.keys().eq(lanes.keys()), "every lane has a name");
    let lane = |name: &str| {
        let found = lanes.iter().find(|(_, other)| *other == name);
        &spans[found
            .unwrap_or_else(|| panic!("no lane {name} in {lanes:?}"))
            .0]
    };
    let phases: Vec<_> = lane("host")
        .iter()
        .map(|(.., event)| &event["name"])
        .collect();
    for phase in ["load", "ViT", "Q-Former", "prefill", "decode"] {
        assert!(
            phases.iter().any(|name| *name == phase),
            "{phase} in {phases:?}"
        );
    }
    for spans in spans.values() {
        assert_nested(spans);
    }
    let on_device = lane("GPU");
    let is_kernel = |event: &Value| event["cat"] == "kernel";
    assert!(on_device.iter().any(|(.., event)| is_kernel(event)));
    assert!(
        !is_kernel(on_device[0].2),
        "a program comes before its kernels"
    );
}

/// Fails unless the spans are in order of their starts, and each either ends before the next begins or holds it.
#[track_caller]
fn assert_nested(spans: &[(f64, f64, &Value)]) {
    const ROUNDING: f64 = 2e-3;
    let mut open: Vec<f64> = Vec::new();
    let mut last = 0.0;
    for &(start, end, event) in spans {
        assert!(start >= last, "{event} is out of order");
        last = start;
        while open
            .last()
            .is_some_and(|&outer| outer <= start + ROUNDING && outer < end)
        {
            open.pop();
        }
        if let Some(&outer) = open.last() {
            assert!(
                end <= outer + ROUNDING,
                "{event} ends after what it lies in"
            );
        }
        open.push(end);
    }
}

#[test]
fn a_trace_that_cannot_be_written_is_refused_before_anything_is_done() {
    let run = run([
        "caption",
        SCENE,
        "--model",
        "demo",
        "--trace",
        "/no/such/folder/trace.json",
    ]);
    assert_eq!(run.stdout, "");
    run.exits(1)
        .one_error(&["/no/such/folder/trace.json", "cannot be written"]);
}

/// The times of a caption's dispatches: all of them, and no more than the host waited.
#[test]
fn the_profile_of_a_caption_is_complete_and_plausible() {
    let profiler = Profiler::new(true);
    let options = OpenOptions {
        gpu: GpuOptions {
            profiler: Some(profiler.clone()),
            ..GpuOptions::default()
        },
        ..OpenOptions::default()
    };
    let image = decode_file(SCENE.as_ref(), DecodePolicy::hf()).expect("a picture");
    let mut model = pollster::block_on(Blip2::demo(options)).expect("a device with timestamps");
    let started = Instant::now();
    let before = profiler.elapsed().as_nanos() as u64;
    let captions = pollster::block_on(model.caption(&[image], &CaptionOptions::default()));
    let wall = started.elapsed();
    drop(model);
    assert_eq!(captions.expect("a caption")[0].text, CAPTION);
    assert_eq!(profiler.untimed(), 0);

    let events = profiler.events();
    let of_caption = events
        .iter()
        .filter(|event| event.lane == Lane::Device && event.is_kernel && event.start >= before);
    let spent: u64 = of_caption.map(|event| event.length).sum();
    assert!(spent > 0, "nothing was timed");
    assert!(
        u128::from(spent) <= wall.as_nanos(),
        "{spent} ns of {wall:?}"
    );

    let times = profiler.kernel_times();
    let ran = |program: &str, kernel: &str| {
        let found = times
            .iter()
            .find(|it| it.program == program && it.kernel.starts_with(kernel));
        found.unwrap_or_else(|| panic!("no {kernel} in {program}: {times:#?}"))
    };
    for (program, kernel) in [
        ("vit", "layer_norm"),
        ("vit", "mat"),
        ("vit", "attention"),
        ("qformer", "layer_norm"),
        ("qformer", "copy"),
        ("prefill", "embed_tokens"),
        ("prefill", "store_kv"),
        ("candidates", "top_k"),
        ("decode", "attention_cached"),
        ("decode", "mat"),
        ("greedy", "argmax"),
        ("greedy", "advance"),
    ] {
        assert!(ran(program, kernel).dispatches > 0);
    }
    // One pass of the decoder a step, one choice after each.
    assert_eq!(
        ran("greedy", "argmax").dispatches,
        ran("greedy", "advance").dispatches
    );
    assert_eq!(
        ran("decode", "embed_tokens").dispatches,
        ran("greedy", "argmax").dispatches
    );
}

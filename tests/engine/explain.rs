//! Attention against transformers' `output_attentions=True` (weights-tools/attention_dump.py), and `--explain`.

use blip2_wgpu::gpu::{Disabled, Gpu, GpuOptions};
use blip2_wgpu::task::{TextUse, WrittenText};
use blip2_wgpu::{Blip2, OpenOptions, Preset, Retriever};
use safetensors::SafeTensors;
use serde_json::Value;

use crate::common::{data, device, images, open};

const DUMP: &str = "tiny_attention.safetensors";

/// Measured 1.6e-6 at most.
const TOLERANCE: f64 = 5e-5;

/// The default device and the least one.
fn devices() -> [Gpu; 2] {
    let least = GpuOptions {
        disabled: Disabled {
            f16: true,
            subgroups: true,
            limits: true,
        },
        ..GpuOptions::default()
    };
    [GpuOptions::default(), least].map(|options| device(&options))
}

fn models() -> [Blip2; 2] {
    devices().map(|gpu| open(&gpu, None))
}

#[test]
fn attention_of_every_layer_equals_transformers() {
    let mut expected = Vec::new();
    for image in 0..2 {
        for layer in [0, 2] {
            expected.push(format!(
                "image {image}, qformer.layer.{layer}.cross_attention"
            ));
        }
        for (prompt, layer) in (0..2).flat_map(|prompt| (0..3).map(move |layer| (prompt, layer))) {
            expected.push(format!(
                "image {image}, prompt.{prompt}.opt.layer.{layer}.attention"
            ));
        }
    }
    expected.sort();
    for mut model in models() {
        let report = pollster::block_on(model.parity(&data(DUMP))).expect("the dump fits");
        let mut stages: Vec<_> = report.rows.iter().map(|row| row.stage.clone()).collect();
        stages.sort();
        assert_eq!(stages, expected);
        for row in &report.rows {
            assert!(row.pass && row.relative_error <= TOLERANCE, "{row:?}");
        }
    }
}

fn values(tensors: &SafeTensors, name: &str) -> Vec<f32> {
    let view = tensors.tensor(name).expect(name);
    let (values, _) = view.data().as_chunks::<4>();
    values
        .iter()
        .map(|&bytes| f32::from_le_bytes(bytes))
        .collect()
}

fn ids(value: &Value) -> Vec<u32> {
    let ids = value.as_array().expect("a list").iter();
    ids.map(|id| id.as_u64().expect("an id") as u32).collect()
}

#[track_caller]
fn assert_close(ours: &[f32], expected: &[f32], what: &str) {
    assert_eq!(ours.len(), expected.len(), "{what}");
    let squares = |values: &mut dyn Iterator<Item = f32>| -> f64 {
        values.map(|value| f64::from(value).powi(2)).sum()
    };
    let error = squares(&mut ours.iter().zip(expected).map(|(a, b)| a - b));
    let norm = squares(&mut expected.iter().copied());
    let relative = (error / norm).sqrt();
    assert!(relative <= TOLERANCE, "{what}: {relative:e}");
}

/// One pass over the finished text gives what transformers saw step by step while it generated.
#[test]
fn maps_of_queries_and_tokens_equal_transformers() {
    let bytes = std::fs::read(data(DUMP)).expect("the dump");
    let tensors = SafeTensors::deserialize(&bytes).expect("a dump");
    let (_, metadata) = SafeTensors::read_metadata(&bytes).expect("metadata");
    let text = &metadata.metadata().as_ref().expect("metadata")["blip2_reference"];
    let prompts: Value = serde_json::from_str(text).expect("JSON");
    let prompts = prompts["prompts"].as_array().expect("a list");
    let query_maps = values(&tensors, "explain.queries");
    for model in models() {
        for (image, pixels) in images().iter().enumerate() {
            let generated: Vec<_> = prompts
                .iter()
                .map(|p| ids(&p["generated"][image]))
                .collect();
            let texts: Vec<Vec<u32>> = prompts
                .iter()
                .map(|p| ids(&p["input_ids"])[8..].to_vec())
                .collect();
            let written: Vec<_> = texts
                .iter()
                .zip(&generated)
                .map(|(prompt, generated)| WrittenText { prompt, generated })
                .collect();
            let ours = pollster::block_on(model.explain(pixels, &written)).expect("explained");
            assert_eq!(ours.grid, 3);
            let expected = &query_maps[image * 8 * 9..][..8 * 9];
            assert_close(&ours.queries.concat(), expected, "queries");
            assert_eq!(ours.texts.len(), prompts.len());
            for (prompt, words) in ours.texts.iter().enumerate() {
                let name = format!("explain.image.{image}.prompt.{prompt}.tokens");
                let expected = values(&tensors, &name);
                assert_eq!(words.len(), [[6, 9], [1, 1]][image][prompt], "{words:?}");
                for word in words {
                    let mut mean = [0.0; 9];
                    for &token in &word.tokens {
                        for (patch, share) in expected[token * 9..].iter().zip(&mut mean) {
                            *share += patch / word.tokens.len() as f32;
                        }
                    }
                    assert_close(&word.patches, &mean, &word.text);
                }
            }
        }
    }
}

#[test]
fn texts_that_no_decoder_could_read_are_refused() {
    let model = open(&device(&GpuOptions::default()), None);
    let [house, _] = images();
    let explain = |prompt: &[u32], generated: &[u32]| {
        let text = WrittenText { prompt, generated };
        pollster::block_on(model.explain(&house, &[text]))
    };
    let refused = |prompt: &[u32], generated: &[u32], part: &str| {
        let message = explain(prompt, generated).expect_err(part).to_string();
        assert!(message.contains(part), "{message}");
    };
    refused(&[2], &[408], "token 408 of a vocabulary of 408");
    refused(&[9999], &[4], "token 9999");
    // 8 queries, a prompt of 1 and 56 tokens, the last of which is not read, are 64 positions.
    assert!(explain(&[2], &[4; 56]).is_ok());
    refused(&[2], &[4; 57], "65 positions");
    // Nothing written: nothing to explain but the queries.
    let silent = explain(&[2], &[]).expect("explained");
    assert_eq!((silent.texts, silent.queries.len()), (vec![vec![]], 8));
    // Without a prompt the first token is the last query's.
    assert_eq!(explain(&[], &[4]).expect("explained").texts.len(), 1);
}

/// What the queries look at while they read a text beside the image.
#[test]
fn maps_of_pairs_equal_transformers() {
    let bytes = std::fs::read(data("tiny_itm_attention.safetensors")).expect("the dump");
    let tensors = SafeTensors::deserialize(&bytes).expect("a dump");
    let texts = ["a boat", "A Dog, running: on the GRASS?"];
    for gpu in devices() {
        let options = OpenOptions {
            device: Some(gpu),
            ..OpenOptions::default()
        };
        let model = pollster::block_on(Retriever::open(data("tiny-itm"), options));
        let mut model = model.expect("the tiny checkpoint");
        let images = pollster::block_on(model.encode_images(&images())).expect("images");
        let texts = model.encode_texts(&texts, Preset::Hf, TextUse::Match);
        let texts = pollster::block_on(texts).expect("texts");
        let mut maps = Vec::new();
        for (image, features) in images.iter().enumerate() {
            for (number, text) in texts.iter().enumerate() {
                let ours = pollster::block_on(model.explain(features, text)).expect("explained");
                let name = format!("explain.image.{image}.text.{number}");
                let map = ours.queries.concat();
                assert_close(&map, &values(&tensors, &name), &name);
                assert_eq!((ours.grid, ours.texts.len()), (3, 0));
                maps.push(map);
            }
        }
        assert_ne!(maps[0], maps[1], "the text does not count");
        let mut other = images[0].clone();
        other.tokens.pop();
        let refused = pollster::block_on(model.explain(&other, &texts[0]));
        assert!(
            refused
                .expect_err("too few values")
                .to_string()
                .contains("an image of")
        );
        let mut long = texts[0].clone();
        long.tokens.resize(65, 2);
        pollster::block_on(model.explain(&images[0], &long)).expect_err("too many tokens");
    }
}

//! Every way of choosing tokens, end to end on the tiny checkpoint: against transformers where it is deterministic,
//! against itself where it draws.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, OnceLock};

use blip2_wgpu::generate::{EarlyStopping, GenerateError, GenerationOverrides};
use blip2_wgpu::gpu::GpuOptions;
use blip2_wgpu::{Blip2, Caption, CaptionOptions, Error};
use serde_json::Value;

use crate::common::{
    PROMPTS, assert_captions_close, beams, caption, caption_singly, data, device, images, open,
    options,
};

/// The one model of this binary.
fn model() -> MutexGuard<'static, Blip2> {
    static MODEL: OnceLock<Mutex<Blip2>> = OnceLock::new();
    MODEL
        .get_or_init(|| Mutex::new(open(&device(&GpuOptions::default()), None)))
        .lock()
        // One failing test must not fail the others: a model stays usable.
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

// ---- against transformers -------------------------------------------------------------------------------------------

#[test]
fn every_setting_equals_transformers() {
    let json = std::fs::read_to_string(data("tiny_generation.json")).expect("the file");
    let entries: Vec<Value> = serde_json::from_str(&json).expect("a list");
    // For each prompt all settings on one image, then on the other: both images make one call.
    let (house, boat): (Vec<_>, Vec<_>) = entries
        .into_iter()
        .partition(|entry| entry["image"] == "house.png");
    assert_eq!((house.len(), boat.len()), (57, 57));
    let mut model = model();
    let images = images();
    for (house, boat) in house.iter().zip(&boat) {
        assert_eq!(boat["image"], "boat.png");
        let (prompt, settings) = (&house["prompt"], &house["settings"]);
        assert_eq!((prompt, settings), (&boat["prompt"], &boat["settings"]));
        let prompt = prompt.as_str().expect("text");
        let captions = caption(&mut model, &images, &options(prompt, overrides(settings)));
        for (caption, entry) in captions.iter().zip([house, boat]) {
            let what = format!("{} {prompt:?} {settings}", entry["image"]);
            check_sequences(caption, &entry["sequences"], &what);
        }
    }
}

/// Every alternative of `caption` against transformers' `sequences`.
fn check_sequences(caption: &Caption, sequences: &Value, what: &str) {
    let expected = sequences.as_array().expect("a list");
    assert_eq!(caption.alternatives.len(), expected.len(), "{what}");
    for (ours, expected) in caption.alternatives.iter().zip(expected) {
        assert_eq!(ours.tokens, tokens(&expected["tokens"]), "{what}");
        let text = expected["text"].as_str().expect("text");
        assert_eq!(ours.text, text.trim(), "{what}");
        let score = expected.get("processed_score");
        let score = score.unwrap_or(&expected["score"]).as_f64();
        let score = score.expect("a number");
        let difference = (f64::from(ours.score) - score).abs();
        assert!(difference <= 2e-4, "{what}: score {} {score}", ours.score);
    }
}

fn tokens(list: &Value) -> Vec<u32> {
    let list = list.as_array().expect("a list");
    let token = |id: &Value| id.as_u64().expect("an id") as u32;
    list.iter().map(token).collect()
}

/// The options that transformers' `settings` name; an unknown one fails.
fn overrides(settings: &Value) -> GenerationOverrides {
    let mut overrides = GenerationOverrides::default();
    for (name, value) in settings.as_object().expect("an object") {
        let count = value.as_u64().map(|count| count as usize);
        let known = match name.as_str() {
            "max_new_tokens" => &mut overrides.max_new_tokens,
            "min_new_tokens" => &mut overrides.min_new_tokens,
            "num_beams" => &mut overrides.num_beams,
            "no_repeat_ngram_size" => &mut overrides.no_repeat_ngram_size,
            "num_return_sequences" => &mut overrides.num_return_sequences,
            "repetition_penalty" => {
                overrides.repetition_penalty = value.as_f64();
                continue;
            }
            "length_penalty" => {
                overrides.length_penalty = value.as_f64();
                continue;
            }
            "early_stopping" => {
                overrides.early_stopping = Some(match value {
                    Value::Bool(false) => EarlyStopping::False,
                    Value::Bool(true) => EarlyStopping::True,
                    _ => EarlyStopping::Never,
                });
                continue;
            }
            other => panic!("setting {other}"),
        };
        assert!(count.is_some(), "{name} is {value}");
        *known = count;
    }
    overrides
}

/// `generation` with at most so many tokens.
fn at_most(max_new_tokens: usize, generation: GenerationOverrides) -> GenerationOverrides {
    GenerationOverrides {
        max_new_tokens: Some(max_new_tokens),
        ..generation
    }
}

// ---- greedy and beams -----------------------------------------------------------------------------------------------

#[test]
fn a_batch_equals_one_at_a_time() {
    let mut model = model();
    let [house, boat] = images();
    let images = [house.clone(), boat, house];
    for num_beams in [1, 3] {
        for prompt in PROMPTS {
            let options = options(prompt, at_most(12, beams(num_beams)));
            let together = caption(&mut model, &images, &options);
            let singly = caption_singly(&mut model, &images, &options);
            let what = format!("{num_beams} beams, {prompt:?}");
            // 9 beams in a batch of 3 go through the kernels for many rows, 3 beams alone do not.
            assert_captions_close(&together, &singly, 1e-4, &what);
        }
    }
}

#[test]
fn more_images_than_a_batch_come_in_order() {
    let mut model = model();
    let [house, boat] = images();
    let images = [boat.clone(), house.clone(), house, boat.clone(), boat];
    let mut options = options("a photo of", beams(1));
    let expected = caption_singly(&mut model, &images, &options);
    options.batch_size = Some(2);
    let batched = caption(&mut model, &images, &options);
    assert_captions_close(&batched, &expected, 1e-4, "batches of 2");
    assert!(caption(&mut model, &[], &options).is_empty());
}

#[test]
fn every_number_of_beams_runs() {
    let mut model = model();
    let images = images();
    let greedy = caption(
        &mut model,
        &images,
        &options("", at_most(8, GenerationOverrides::default())),
    );
    for num_beams in 1..=10 {
        let generation = GenerationOverrides {
            num_return_sequences: Some(num_beams),
            ..at_most(8, beams(num_beams))
        };
        let captions = caption(&mut model, &images, &options("", generation));
        for (caption, greedy) in captions.iter().zip(&greedy) {
            assert_eq!(caption.alternatives.len(), num_beams);
            assert_eq!(caption.tokens, caption.alternatives[0].tokens);
            let scores: Vec<_> = caption.alternatives.iter().map(|text| text.score).collect();
            assert!(scores.is_sorted_by(|a, b| a >= b), "{scores:?}");
            let different: HashSet<_> = caption.alternatives.iter().map(|t| &t.tokens).collect();
            assert_eq!(
                different.len(),
                num_beams,
                "beams must not repeat each other"
            );
            if num_beams == 1 {
                assert_eq!(caption, greedy);
            }
        }
    }
}

// ---- sampling -------------------------------------------------------------------------------------------------------

/// Ten tokens drawn with `seed`.
fn drawn(seed: u64) -> GenerationOverrides {
    GenerationOverrides {
        do_sample: Some(true),
        seed: Some(seed),
        max_new_tokens: Some(10),
        ..GenerationOverrides::default()
    }
}

#[test]
fn a_seed_fixes_the_text() {
    let mut model = model();
    let images = images();
    let mut texts = HashSet::new();
    for seed in 0..4 {
        let options = options("", drawn(seed));
        let first = caption(&mut model, &images, &options);
        assert_eq!(first, caption(&mut model, &images, &options));
        // The same numbers are drawn whatever it is batched with.
        let singly = caption_singly(&mut model, &images, &options);
        assert_captions_close(&singly, &first, 1e-4, "drawn singly");
        texts.insert(first[1].tokens.clone());
    }
    assert!(texts.len() >= 3, "four seeds gave {texts:?}");
}

#[test]
fn drawing_among_one_token_is_greedy() {
    let mut model = model();
    let images = images();
    for prompt in PROMPTS {
        let greedy = at_most(10, beams(1));
        let greedy = caption(&mut model, &images, &options(prompt, greedy));
        let top_1 = GenerationOverrides {
            top_k: Some(1),
            ..drawn(1)
        };
        let cold = GenerationOverrides {
            temperature: Some(1e-5),
            ..drawn(2)
        };
        let cold_of_all = GenerationOverrides {
            top_k: Some(0),
            ..cold.clone()
        };
        let narrow = GenerationOverrides {
            top_p: Some(1e-6),
            ..drawn(3)
        };
        for generation in [top_1, cold, cold_of_all, narrow] {
            let what = format!("{generation:?}");
            let drawn = caption(&mut model, &images, &options(prompt, generation));
            assert_captions_close(&drawn, &greedy, 1e-4, &what);
        }
    }
}

#[test]
fn several_texts_are_drawn() {
    let mut model = model();
    let images = images();
    let three = GenerationOverrides {
        num_return_sequences: Some(3),
        ..drawn(7)
    };
    let captions = caption(&mut model, &images, &options("", three));
    let singles = caption(&mut model, &images, &options("", drawn(7)));
    for (caption, single) in captions.iter().zip(&singles) {
        let texts: HashSet<_> = caption.alternatives.iter().map(|text| &text.text).collect();
        assert_eq!(texts.len(), 3, "{texts:?}");
        // The first text's numbers do not depend on how many there are.
        assert_eq!(caption.tokens, single.tokens);
    }
}

// ---- streaming ------------------------------------------------------------------------------------------------------

/// Captions, and the pieces that were streamed, joined, of each image.
fn streamed(model: &mut Blip2, options: &CaptionOptions) -> (Vec<Caption>, [String; 2]) {
    let mut pieces = [String::new(), String::new()];
    let mut on_text = |image: usize, piece: &str| pieces[image].push_str(piece);
    let captions = pollster::block_on(model.caption_streaming(&images(), options, &mut on_text));
    (captions.expect("captions"), pieces)
}

#[test]
fn streamed_pieces_are_the_text() {
    let mut model = model();
    for prompt in PROMPTS {
        for generation in [at_most(10, beams(1)), drawn(11)] {
            let mut options = options(prompt, generation);
            for batch_size in [1, 2] {
                options.batch_size = Some(batch_size);
                let (captions, pieces) = streamed(&mut model, &options);
                for (caption, pieces) in captions.iter().zip(pieces) {
                    assert!(!caption.text.is_empty());
                    assert_eq!(pieces.trim(), caption.text);
                }
            }
        }
    }
    let (_, pieces) = streamed(&mut model, &options("", beams(2)));
    assert_eq!(
        pieces,
        ["", ""],
        "a beam search knows its text only at the end"
    );
}

// ---- lengths --------------------------------------------------------------------------------------------------------

#[test]
fn lengths_are_kept() {
    let mut model = model();
    let images = images();
    let long = caption(&mut model, &images, &options("", beams(1)));
    for length in [1, 2, 3, 9] {
        let short = caption(&mut model, &images, &options("", at_most(length, beams(1))));
        for (short, long) in short.iter().zip(&long) {
            let kept = length.min(long.tokens.len());
            assert_eq!(short.tokens, long.tokens[..kept]);
        }
        let beam = caption(&mut model, &images, &options("", at_most(length, beams(3))));
        assert!(beam.iter().all(|caption| caption.tokens.len() <= length));
    }
}

#[test]
fn no_new_tokens_is_refused() {
    let mut model = model();
    let options = options("", at_most(0, beams(1)));
    let refused = pollster::block_on(model.caption(&images(), &options));
    assert!(matches!(
        refused,
        Err(Error::Generate(GenerateError::Option {
            option: "max_new_tokens",
            ..
        }))
    ));
}

#[test]
fn all_positions_can_be_used_and_no_more() {
    // 64 positions: 8 queries, the start token, 55 new tokens.
    let mut model = model();
    let images = images();
    let plain = options("", beams(1));
    let before = caption(&mut model, &images, &plain);
    for num_beams in [1, 3] {
        let full = GenerationOverrides {
            min_new_tokens: Some(55),
            ..at_most(55, beams(num_beams))
        };
        let captions = caption(&mut model, &images, &options("", full));
        assert!(captions.iter().all(|caption| caption.tokens.len() == 55));
    }
    let options = options("", at_most(56, beams(1)));
    let expect = |result: Result<(), Error>| {
        let error = result.expect_err("65 positions");
        let Error::TooLong {
            needed,
            prompt,
            new,
            most,
        } = error
        else {
            panic!("{error}");
        };
        assert_eq!((needed, prompt, new, most), (65, 9, 56, 64));
    };
    expect(pollster::block_on(model.caption(&images, &options)).map(drop));
    expect(model.check_caption_options(&options));
    // The model is still good.
    assert_eq!(caption(&mut model, &images, &plain), before);
}

//! Models with T5: every stage and token of the tiny checkpoint against transformers, on every kind of device this
//! adapter can be; requests of all kinds side by side get what each gets alone.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use blip2_wgpu::generate::{GenerationOptions, GenerationOverrides};
use blip2_wgpu::gpu::{Disabled, Gpu, GpuOptions};
use blip2_wgpu::schedule::Request;
use blip2_wgpu::task::ParityReport;
use blip2_wgpu::text::{PromptMark, Tokenizer};
use blip2_wgpu::{Blip2, CaptionOptions, OpenOptions, Preset, Question, VqaOptions};

use crate::common::{beams, caption, data, device, images, options};
use crate::served::{Asked, Served, pixels, tokens};

/// Measured 3e-6 at most: a value rounded to f16 anywhere shows (5e-4).
const STAGE_TOLERANCE: f64 = 5e-5;

/// Scores are sums of up to 20 log-probabilities.
const SCORE_TOLERANCE: f64 = 2e-4;

/// The prompts of the dump.
const PROMPTS: [&str; 2] = ["a photo of", "Question: what is this? Answer:"];

fn folder() -> PathBuf {
    data("tiny-t5")
}

fn open(device: &Gpu) -> Blip2 {
    let options = OpenOptions {
        device: Some(device.clone()),
        ..OpenOptions::default()
    };
    pollster::block_on(Blip2::open(folder(), options)).expect("the tiny checkpoint")
}

fn report(model: &mut Blip2) -> ParityReport {
    let dump = data("tiny_t5_dump.safetensors");
    pollster::block_on(model.parity(&dump)).expect("the dump fits the checkpoint")
}

/// Every stage within tolerance, every token equal, and nothing left out.
fn check(report: &ParityReport) {
    for row in &report.rows {
        let is_tokens = ["greedy", "beams"]
            .iter()
            .any(|kind| row.stage.contains(kind));
        let good = if is_tokens {
            row.relative_error == 0.0 && row.max_error <= SCORE_TOLERANCE
        } else {
            row.relative_error <= STAGE_TOLERANCE
        };
        assert!(good && row.pass, "{row:?}");
    }
    let stacks = [
        "encoder.embeddings",
        "encoder.final_norm",
        "decoder.embeddings",
    ]
    .into_iter()
    .chain(["decoder.final_norm", "encoder.block.2", "decoder.block.1"])
    .map(|stage| format!("t5.{stage}"));
    let others = ["logits", "greedy", "beams.3", "beams.5"].map(String::from);
    for stage in stacks.chain(others) {
        for prompt in 0..PROMPTS.len() {
            let of_prompt = |image| format!("image {image}, prompt.{prompt}.{stage}");
            for stage in [of_prompt(0), of_prompt(1)] {
                let found = report.rows.iter().any(|row| row.stage == stage);
                assert!(found, "{stage} is missing");
            }
        }
    }
}

#[test]
fn equals_transformers() {
    check(&report(&mut open(&device(&GpuOptions::default()))));
}

#[test]
fn equals_transformers_on_lesser_devices() {
    let none = Disabled::default();
    for disabled in [
        Disabled { f16: true, ..none },
        Disabled {
            subgroups: true,
            ..none
        },
        Disabled {
            f16: true,
            subgroups: true,
            limits: true,
        },
    ] {
        let gpu = device(&GpuOptions {
            disabled,
            ..GpuOptions::default()
        });
        check(&report(&mut open(&gpu)));
    }
}

#[test]
fn checked_shaders_and_split_weights_compute_the_same_bits() {
    let expected = report(&mut open(&device(&GpuOptions::default())));
    for options in [
        GpuOptions {
            checked: true,
            ..GpuOptions::default()
        },
        GpuOptions {
            // The token embedding, the output matrix and the feed-forward blocks are larger.
            max_part_bytes: Some(1024),
            ..GpuOptions::default()
        },
    ] {
        assert_eq!(report(&mut open(&device(&options))), expected);
    }
}

#[test]
fn a_request_gets_what_it_gets_alone() {
    let mut served = Served::open(&folder(), &GpuOptions::default());
    let pixels = pixels(&folder());
    let tokenizer = Tokenizer::open(&folder(), PromptMark::Last(1)).expect("a tokenizer");
    let greedy = |max_new_tokens| GenerationOptions {
        max_new_tokens,
        eos_token_ids: vec![1],
        pad_token_id: Some(0),
        ..GenerationOptions::default()
    };
    let ways = [
        greedy(12),
        greedy(1),
        GenerationOptions {
            num_beams: 3,
            num_return_sequences: 2,
            ..greedy(9)
        },
        GenerationOptions {
            num_beams: 5,
            length_penalty: -1.0,
            ..greedy(6)
        },
        GenerationOptions {
            repetition_penalty: 1.5,
            no_repeat_ngram_size: 2,
            ..greedy(14)
        },
        GenerationOptions {
            do_sample: true,
            num_return_sequences: 3,
            seed: 5,
            ..greedy(8)
        },
    ]
    .map(Arc::new);
    let texts = [
        "",
        "a photo of",
        "Question: is there a dog in the picture? Answer:",
    ];
    let mut requests = Vec::new();
    for (number, options) in ways.iter().cycle().take(30).enumerate() {
        requests.push(Asked {
            image: Arc::clone(&pixels[number % 2]),
            request: Request {
                text: tokenizer.encode(texts[number % 7 % 3]).expect("ids"),
                history: vec![0],
                options: Arc::clone(options),
                stop: None,
            },
        });
    }
    let alone = served.alone(&requests);
    for batch in [3, 8] {
        let together = served.texts(&requests, batch);
        for (number, (ours, expected)) in together.iter().zip(&alone).enumerate() {
            assert_eq!(
                tokens(ours),
                tokens(expected),
                "request {number}, batch {batch}"
            );
        }
    }
}

/// Questions, image by image, as transformers 5.23's `generate` answers them: with 5 beams, at most 10 tokens and length
/// penalty −1 (LAVIS's `predict_answers`), with their scores; then greedily with repetition penalty 1.5 and no bigram
/// twice, at most 12 tokens.
const ANSWERS: [([u32; 10], f32, &[u32]); 4] = [
    (
        [45, 32, 46, 70, 13, 37, 46, 46, 46, 46],
        -90.50901,
        &[46, 70, 13, 37, 18, 46, 28, 68, 13, 50, 32, 16],
    ),
    (
        [45, 32, 46, 70, 13, 46, 46, 46, 46, 46],
        -123.72723,
        &[50, 45, 36, 74, 34, 67, 69, 13, 18, 11, 13, 28],
    ),
    (
        [13, 13, 46, 46, 46, 46, 46, 46, 46, 46],
        -87.83295,
        &[45, 32, 46, 70, 13, 18, 35, 28, 1],
    ),
    (
        [50, 62, 11, 46, 46, 46, 46, 46, 70, 13],
        -108.17079,
        &[45, 32, 46, 70, 3, 13, 24, 18, 35, 46, 28, 43],
    ),
];

#[test]
fn answers_equal_transformers() {
    let mut model = open(&device(&GpuOptions::default()));
    let questions = [
        (0, "What is this?"),
        (0, "Where is the boat on the water?"),
        (1, "What is this?"),
        (1, "Where is the boat on the water?"),
    ];
    // LAVIS lowers the questions' case itself.
    let ask = |lower: bool| {
        questions.map(|(image, text)| Question {
            image,
            text: if lower {
                text.to_lowercase()
            } else {
                text.into()
            },
        })
    };
    let lavis = VqaOptions {
        preset: Preset::Lavis,
        ..VqaOptions::default()
    };
    let answers = pollster::block_on(model.answer(&images(), &ask(false), &lavis));
    for (answer, (tokens, score, _)) in answers.expect("answers").iter().zip(&ANSWERS) {
        assert_eq!(answer.tokens, tokens);
        assert!((answer.score - score).abs() < 2e-3, "{answer:?}, {score}");
    }
    let penalised = VqaOptions {
        prompt: Some("Question: {} Short answer:".into()),
        generation: GenerationOverrides {
            max_new_tokens: Some(12),
            repetition_penalty: Some(1.5),
            no_repeat_ngram_size: Some(2),
            ..GenerationOverrides::default()
        },
        ..VqaOptions::default()
    };
    let answers = pollster::block_on(model.answer(&images(), &ask(true), &penalised));
    for (answer, (.., tokens)) in answers.expect("answers").iter().zip(&ANSWERS) {
        assert_eq!(answer.tokens, *tokens);
    }
}

#[test]
fn captions_without_a_prompt() {
    let mut model = open(&device(&GpuOptions::default()));
    let captions = caption(&mut model, &images(), &CaptionOptions::default());
    assert_eq!(
        captions,
        caption(&mut model, &images(), &options("", beams(1)))
    );
    for caption in captions {
        assert!(!caption.text.contains("</s>") && !caption.text.contains("<pad>"));
    }
}

#[test]
fn prompts_end_with_the_end_token() {
    let tokenizer = Tokenizer::open(&folder(), PromptMark::Last(1)).expect("a tokenizer");
    assert_eq!(tokenizer.encode("").expect("ids"), [1]);
    let ids = tokenizer.encode(" a  photo of\n").expect("ids");
    assert_eq!(ids.last(), Some(&1));
    assert_eq!(tokenizer.decode(&ids, true).expect("text"), "a photo of");
    assert_eq!(tokenizer.newline(), None);
    let message = Tokenizer::open(Path::new("nowhere"), PromptMark::Last(1))
        .expect_err("no files")
        .to_string();
    assert!(message.contains("put tokenizer.json"), "{message}");
}

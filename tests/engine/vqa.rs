//! Answers on the tiny checkpoint: those of transformers with each system's prompts and settings
//! (`weights-tools/vqa_reference.py`), whatever they are asked together with.

use std::sync::{Mutex, MutexGuard, OnceLock};

use blip2_wgpu::generate::GenerationOverrides;
use blip2_wgpu::gpu::{Gpu, GpuOptions};
use blip2_wgpu::image::Rgb8Image;
use blip2_wgpu::text::{PromptMark, Tokenizer};
use blip2_wgpu::{Answer, Blip2, Error, Preset, Question, VqaOptions};
use serde::Deserialize;

use crate::common::{beams, caption, data, device, image, images, open, options};

fn gpu() -> &'static Gpu {
    static GPU: OnceLock<Gpu> = OnceLock::new();
    GPU.get_or_init(|| device(&GpuOptions::default()))
}

/// The model that most tests share.
fn model() -> MutexGuard<'static, Blip2> {
    static MODEL: OnceLock<Mutex<Blip2>> = OnceLock::new();
    MODEL
        .get_or_init(|| Mutex::new(open(gpu(), None)))
        .lock()
        // One failing test must not fail the others: a model stays usable.
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn ask(image: usize, text: &str) -> Question {
    Question {
        image,
        text: text.into(),
    }
}

#[track_caller]
fn answer(
    model: &mut Blip2,
    images: &[Rgb8Image],
    questions: &[Question],
    options: &VqaOptions,
) -> Vec<Answer> {
    let answers = pollster::block_on(model.answer(images, questions, options)).expect("answers");
    assert_eq!(answers.len(), questions.len());
    answers
}

fn at_most(max_new_tokens: usize) -> VqaOptions {
    VqaOptions {
        generation: GenerationOverrides {
            max_new_tokens: Some(max_new_tokens),
            ..GenerationOverrides::default()
        },
        ..VqaOptions::default()
    }
}

/// An answer of transformers.
#[derive(Deserialize)]
struct Reference {
    preset: String,
    image: String,
    question: String,
    /// Before anything is cut.
    prompt_tokens: usize,
    tokens: Vec<u32>,
    text: String,
    score: f32,
}

#[test]
fn every_preset_equals_transformers() {
    let json = std::fs::read_to_string(data("tiny_vqa.json")).expect("the file");
    let references: Vec<Reference> = serde_json::from_str(&json).expect("a list");
    let settings = [
        ("hf", Preset::Hf, GenerationOverrides::default()),
        ("hf 5 beams", Preset::Hf, beams(5)),
        ("lavis", Preset::Lavis, GenerationOverrides::default()),
        (
            "mmpretrain",
            Preset::Mmpretrain,
            GenerationOverrides::default(),
        ),
    ];
    let mut whole = 0;
    for (name, preset, generation) in settings {
        let references: Vec<_> = references.iter().filter(|r| r.preset == name).collect();
        assert_eq!(references.len(), 8, "{name}");
        let questions: Vec<_> = references
            .iter()
            .map(|r| ask(usize::from(r.image == "boat.png"), &r.question))
            .collect();
        let options = VqaOptions {
            preset,
            generation,
            ..VqaOptions::default()
        };
        let mut model = open(gpu(), preset.vqa_image_size());
        let answers = answer(&mut model, &images(), &questions, &options);
        for (answer, reference) in answers.iter().zip(references) {
            let what = format!("{name}: {} {}", reference.image, reference.question);
            assert_eq!(answer.tokens, reference.tokens, "{what}");
            assert_eq!(answer.text, reference.text, "{what}");
            let difference = (answer.score - reference.score).abs();
            let most = 2e-4 * reference.score.abs().max(1.0);
            assert!(
                difference <= most,
                "{what}: {} {}",
                answer.score,
                reference.score
            );
            // LAVIS keeps 32 tokens of a prompt: one of the questions has more.
            let most = if preset == Preset::Lavis { 32 } else { 36 };
            let cut = reference.prompt_tokens.saturating_sub(most);
            assert_eq!(answer.prompt_tokens_cut, cut, "{what}");
            whole += usize::from(cut == 0);
        }
    }
    assert_eq!(whole, references.len() - 2);
}

#[test]
fn questions_asked_together_are_answered_as_if_alone() {
    let mut model = model();
    let [house, boat] = images();
    let images = [house.clone(), boat, house];
    // Out of order, one of them twice, one image twice; and more than are decoded together.
    let mut questions = vec![
        ask(1, "what is this?"),
        ask(0, "is it red?"),
        ask(1, "is it red?"),
        ask(2, "is it red?"),
        ask(1, "what is this?"),
    ];
    questions.extend((0..35).map(|number| ask(1, &format!("is it number {number}?"))));
    let options = at_most(6);
    let together = answer(&mut model, &images, &questions, &options);
    for (question, expected) in questions.iter().zip(&together).take(8) {
        let alone = ask(0, &question.text);
        let image = std::slice::from_ref(&images[question.image]);
        let alone = &answer(&mut model, image, &[alone], &options)[0];
        assert_eq!(alone.tokens, expected.tokens, "{question:?}");
        assert!((alone.score - expected.score).abs() < 1e-4, "{question:?}");
    }
    assert_eq!(together[0], together[4]);
    assert_eq!(together[1].tokens, together[3].tokens);
    assert_ne!(together[1].tokens, together[2].tokens);
    let last = answer(&mut model, &images, &questions[39..], &options);
    assert_eq!(last[0].tokens, together[39].tokens);
    assert!(answer(&mut model, &images, &[], &options).is_empty());
}

#[test]
fn a_prompt_of_ones_own() {
    let mut model = model();
    let house = [image("house.png")];
    let generation = at_most(8).generation;
    let vqa = VqaOptions {
        prompt: Some("a {} of".into()),
        ..at_most(8)
    };
    let answers = answer(&mut model, &house, &[ask(0, "photo")], &vqa);
    let captions = caption(&mut model, &house, &options("a photo of", generation));
    assert_eq!(answers[0].tokens, captions[0].tokens);
    assert_eq!(answers[0].score, captions[0].score);
}

/// A question too long loses its own end, not the template's.
#[test]
fn long_questions_are_cut() {
    let mut model = model();
    let house = [image("house.png")];
    let tokenizer = Tokenizer::open(&data("tiny"), PromptMark::First(2)).expect("a tokenizer");
    let template = tokenizer.encode("Question: Answer:").expect("ids").len();
    // 64 positions less 8 queries and the new tokens.
    let room = 64 - 8 - 8;
    let long = "a".to_owned() + &" a".repeat(4_999);
    let answers = answer(
        &mut model,
        &house,
        &[ask(0, &long), ask(0, "a a")],
        &at_most(8),
    );
    assert_eq!(answers[0].prompt_tokens_cut, template + 5_000 - room);
    assert_eq!(answers[1].prompt_tokens_cut, 0);
    let kept = format!("Question:{} Answer:", " a".repeat(room - template));
    let expected = caption(&mut model, &house, &options(&kept, at_most(8).generation));
    assert_eq!(answers[0].tokens, expected[0].tokens);

    // LAVIS takes the first 50 words and of the prompt the first 32 tokens.
    let lavis = VqaOptions {
        preset: Preset::Lavis,
        ..at_most(8)
    };
    let template = tokenizer
        .encode("Question: Short answer:")
        .expect("ids")
        .len();
    let answers = answer(&mut model, &house, &[ask(0, &long)], &lavis);
    assert_eq!(answers[0].prompt_tokens_cut, template + 5_000 - 32);

    // A template that leaves no room for any question is an error, as for captions.
    let mut options = at_most(8);
    options.prompt = Some(format!("{{}}{}", " a".repeat(room)));
    let error = model.check_vqa_options(&options).expect_err("too long");
    assert!(matches!(error, Error::TooLong { .. }), "{error}");
    let error = pollster::block_on(model.answer(&house, &[ask(0, "a")], &options));
    assert!(matches!(error, Err(Error::TooLong { .. })), "{error:?}");
}

#[test]
fn any_text_is_a_question() {
    let mut model = model();
    let house = [image("house.png")];
    let odd = [
        "🐱\0?",
        "</s><pad>",
        "\u{202E}?",
        "ünïcödé\r\n\tlines",
        "{}",
    ];
    let questions = odd.map(|text| ask(0, text));
    for preset in [Preset::Hf, Preset::Lavis] {
        let options = VqaOptions {
            preset,
            ..at_most(4)
        };
        for answer in answer(&mut model, &house, &questions, &options) {
            assert!(!answer.tokens.is_empty());
        }
    }
}

#[test]
fn pieces_make_up_the_answers() {
    let mut model = model();
    let questions = [
        ask(1, "what is this?"),
        ask(0, "is it red?"),
        ask(1, "why?"),
    ];
    let mut streamed = [const { String::new() }; 3];
    let answers = pollster::block_on(model.answer_streaming(
        &images(),
        &questions,
        &at_most(10),
        &mut |question, piece| streamed[question].push_str(piece),
    ))
    .expect("answers");
    let texts: Vec<_> = answers.iter().map(|answer| answer.text.as_str()).collect();
    assert_eq!(texts, streamed);
}

#[test]
fn what_cannot_be_asked_is_named() {
    let mut model = model();
    let house = [image("house.png")];
    let mut fails = |question: Question, options: &VqaOptions| {
        let error = pollster::block_on(model.answer(&house, &[question], options));
        error.expect_err("an error").to_string()
    };
    let options = VqaOptions::default();
    assert!(fails(ask(0, " "), &options).contains("empty"));
    assert!(fails(ask(1, "why?"), &options).contains("image 1 of 1"));
    let no_place = VqaOptions {
        prompt: Some("Answer:".into()),
        ..VqaOptions::default()
    };
    assert!(fails(ask(0, "why?"), &no_place).contains("{}"));
}

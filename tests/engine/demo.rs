//! The demo model on fifty scenes of its world: what the engine says is what transformers says, and it is true.
//!
//! The data come from `weights-tools/train/demo_slice.py`, which judges truth against the scenes' facts.

use blip2_wgpu::generate::GenerationOverrides;
use blip2_wgpu::image::{DecodePolicy, Rgb8Image, decode_file};
use blip2_wgpu::{Blip2, CaptionOptions, OpenOptions, Question, VqaOptions};
use serde::Deserialize;

/// A scene, and what transformers says of it in float32.
#[derive(Deserialize)]
struct Scene {
    image: String,
    caption: String,
    caption_true: bool,
    question: String,
    answer: String,
    answer_right: bool,
}

fn scenes() -> Vec<Scene> {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/demo/demo.json");
    serde_json::from_str(&std::fs::read_to_string(file).expect("a file")).expect("scenes")
}

fn picture(scene: &Scene) -> Rgb8Image {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/demo");
    decode_file(
        &std::path::Path::new(folder).join(&scene.image),
        DecodePolicy::hf(),
    )
    .expect("a picture")
}

fn at_most(max_new_tokens: usize) -> GenerationOverrides {
    GenerationOverrides {
        max_new_tokens: Some(max_new_tokens),
        ..GenerationOverrides::default()
    }
}

#[test]
fn captions_and_answers_are_those_of_transformers_and_true() {
    let scenes = scenes();
    assert_eq!(scenes.len(), 50);
    let images: Vec<_> = scenes.iter().map(picture).collect();
    let mut model =
        pollster::block_on(Blip2::demo(OpenOptions::default())).expect("the demo model");

    let options = CaptionOptions {
        generation: at_most(40),
        ..CaptionOptions::default()
    };
    let captions = pollster::block_on(model.caption(&images, &options)).expect("captions");
    for (caption, scene) in captions.iter().zip(&scenes) {
        assert_eq!(caption.text, scene.caption, "{}", scene.image);
    }
    let options = VqaOptions {
        generation: at_most(6),
        ..VqaOptions::default()
    };
    let questions: Vec<_> = scenes
        .iter()
        .enumerate()
        .map(|(image, scene)| Question {
            image,
            text: scene.question.clone(),
        })
        .collect();
    let answers = pollster::block_on(model.answer(&images, &questions, &options));
    for (answer, scene) in answers.expect("answers").iter().zip(&scenes) {
        let what = format!("{}: {}", scene.image, scene.question);
        assert_eq!(answer.text, scene.answer, "{what}");
    }

    let true_captions = scenes.iter().filter(|scene| scene.caption_true).count();
    let right_answers = scenes.iter().filter(|scene| scene.answer_right).count();
    assert!(
        true_captions >= 47,
        "{true_captions} of 50 captions are true"
    );
    assert!(
        right_answers >= 45,
        "{right_answers} of 50 answers are right"
    );
}

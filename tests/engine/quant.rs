//! Weights in eight and four bits: what they cost in captions, answers and features of the demo models, that `convert`
//! makes what loading makes, and what is refused.

use std::path::{Path, PathBuf};

use crate::cli_support::{Safetensors, run};
use blip2_wgpu::convert::{ConvertOptions, convert};
use blip2_wgpu::eval::{
    Benchmark, CaptionPair, GroundTruth, VqaRules, score_answers, score_captions,
};
use blip2_wgpu::generate::GenerationOverrides;
use blip2_wgpu::gpu::WeightFormat::{self, Q4, Q8};
use blip2_wgpu::image::Rgb8Image;
use blip2_wgpu::model::Blip2Config;
use blip2_wgpu::task::{ImageFeatures, TextUse};
use blip2_wgpu::{
    Blip2, Caption, CaptionOptions, OpenOptions, Preset, Question, Retriever, VqaOptions,
};
use serde::Deserialize;

/// The demo model as a folder.
const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/demo");

/// A matrix of the demo model that is quantised.
const MATRIX: &str = "vision_model.encoder.layers.0.mlp.fc1.weight";

fn stored_as(quant: Option<WeightFormat>) -> OpenOptions {
    OpenOptions {
        quant,
        ..OpenOptions::default()
    }
}

fn open(folder: &Path, quant: Option<WeightFormat>) -> Result<Blip2, blip2_wgpu::Error> {
    pollster::block_on(Blip2::open(folder, stored_as(quant)))
}

fn at_most(max_new_tokens: usize) -> GenerationOverrides {
    GenerationOverrides {
        max_new_tokens: Some(max_new_tokens),
        ..GenerationOverrides::default()
    }
}

fn captions(model: &mut Blip2, images: &[Rgb8Image]) -> Vec<Caption> {
    let options = CaptionOptions {
        generation: at_most(40),
        ..CaptionOptions::default()
    };
    pollster::block_on(model.caption(images, &options)).expect("captions")
}

/// A scene, five captions that are true of it, and questions with their answers.
#[derive(Deserialize)]
struct Truth {
    image: String,
    captions: Vec<String>,
    questions: Vec<(String, String)>,
}

/// The first `count` of the fifty scenes.
fn scenes(count: usize) -> (Vec<Truth>, Vec<Rgb8Image>) {
    let text = std::fs::read_to_string(crate::common::data("demo/truth.json")).expect("a file");
    let mut truth: Vec<Truth> = serde_json::from_str(&text).expect("scenes");
    truth.truncate(count);
    let picture = |scene: &Truth| crate::common::image(&format!("demo/{}", scene.image));
    let images = truth.iter().map(picture).collect();
    (truth, images)
}

/// CIDEr of the captions and accuracy of the answers in percent.
fn quality(quant: Option<WeightFormat>, truth: &[Truth], images: &[Rgb8Image]) -> [f64; 2] {
    let mut model = pollster::block_on(Blip2::demo(stored_as(quant))).expect("the demo model");
    let captions = captions(&mut model, images);
    assert!(captions.iter().all(|caption| !caption.text.is_empty()));
    let pairs: Vec<_> = captions
        .iter()
        .zip(truth)
        .map(|(caption, scene)| CaptionPair {
            candidate: caption.text.as_str(),
            references: scene.captions.iter().map(String::as_str).collect(),
        })
        .collect();

    let mut questions = Vec::new();
    let mut answers_wanted = Vec::new();
    for (image, scene) in truth.iter().enumerate() {
        for (text, answer) in &scene.questions {
            let text = text.clone();
            questions.push(Question { image, text });
            answers_wanted.push(GroundTruth {
                answers: vec![answer.clone(); 10],
                ..GroundTruth::default()
            });
        }
    }
    let options = VqaOptions {
        generation: at_most(6),
        ..VqaOptions::default()
    };
    let answers = pollster::block_on(model.answer(images, &questions, &options)).expect("answers");
    let answers = answers.iter().map(|answer| answer.text.as_str());
    let accuracy = score_answers(answers.zip(&answers_wanted), Benchmark::Vqa, VqaRules::Vqa);
    [score_captions(&pairs).cider, accuracy.overall]
}

#[test]
fn captions_and_answers_are_nearly_as_good_as_those_of_f16() {
    let (truth, images) = scenes(50);
    let [cider, accuracy] = quality(None, &truth, &images);
    assert!(cider > 5.0 && accuracy > 97.0, "{cider} {accuracy}");
    for (format, loss) in [(Q8, 0.005), (Q4, 0.02)] {
        let [quantised_cider, quantised_accuracy] = quality(Some(format), &truth, &images);
        println!(
            "{format}: CIDEr {quantised_cider:.4} of {cider:.4}, {quantised_accuracy:.2} % of {accuracy:.2} %"
        );
        assert!(
            quantised_cider >= (1.0 - loss) * cider,
            "{format}: CIDEr {quantised_cider} of {cider}"
        );
        assert!(
            quantised_accuracy >= (1.0 - loss) * accuracy,
            "{format}: {quantised_accuracy} % of {accuracy} % right"
        );
    }
}

/// `‖a − b‖ / ‖b‖`
fn relative_error(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let square = |value: f32| f64::from(value).powi(2);
    let error: f64 = a.iter().zip(b).map(|(a, b)| square(a - b)).sum();
    let norm: f64 = b.iter().map(|&b| square(b)).sum();
    (error / norm).sqrt()
}

/// What the retrieval demo model makes of eight scenes, and its scores of each with its first caption.
fn features(quant: Option<WeightFormat>) -> (Vec<ImageFeatures>, Vec<f32>) {
    let (truth, images) = scenes(8);
    let mut model =
        pollster::block_on(Retriever::demo(stored_as(quant))).expect("the retrieval model");
    let encoded = pollster::block_on(model.encode_images(&images)).expect("features");
    let texts: Vec<&String> = truth.iter().map(|scene| &scene.captions[0]).collect();
    let texts =
        pollster::block_on(model.encode_texts(&texts, Preset::Hf, TextUse::Match)).expect("texts");
    let pairs: Vec<(usize, usize)> = (0..8).map(|index| (index, index)).collect();
    let scores = pollster::block_on(model.match_pairs(&encoded, &texts, &pairs)).expect("scores");
    (encoded, scores.iter().map(|score| score.itc).collect())
}

#[test]
fn every_stage_of_the_image_side_stays_near_f16() {
    let (exact, exact_scores) = features(None);
    for (format, most) in [(Q8, 0.02), (Q4, 0.25)] {
        let (ours, scores) = features(Some(format));
        for (ours, exact) in ours.iter().zip(&exact) {
            for (stage, error) in [
                ("image tokens", relative_error(&ours.tokens, &exact.tokens)),
                ("queries", relative_error(&ours.queries, &exact.queries)),
                ("features", relative_error(&ours.features, &exact.features)),
            ] {
                println!("{format} {stage}: {error:.4}");
                assert!(error > 1e-6, "{format}: {stage} were not quantised");
                assert!(error < most, "{format}: {stage} are off by {error}");
            }
        }
        let error = relative_error(&scores, &exact_scores);
        assert!(error < most, "{format}: scores are off by {error}");
    }
}

#[test]
fn a_model_of_other_widths_is_quantised_where_rows_are_whole_blocks() {
    // T5 of the tiny checkpoint: the projections read 32 values, the feed-forward's output 48. OPT's have none.
    for (name, changes) in [("tiny-t5", true), ("tiny", false)] {
        let said = |quant| {
            let mut model = open(&crate::common::data(name), quant).expect("the tiny checkpoint");
            let options = CaptionOptions {
                generation: at_most(3), // before rounding can change a token
                ..CaptionOptions::default()
            };
            pollster::block_on(model.caption(&crate::common::images(), &options)).expect("captions")
        };
        let (exact, quantised) = (said(None), said(Some(Q8)));
        for (exact, quantised) in exact.iter().zip(&quantised) {
            assert_eq!(exact.score != quantised.score, changes, "{name}");
            assert!((quantised.score / exact.score - 1.0).abs() < 0.1, "{name}");
            assert_eq!(quantised.tokens, exact.tokens, "{name}");
        }
    }
}

/// The demo model converted to `quant`.
fn converted(quant: WeightFormat) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let out = folder.path().join("out");
    let options = ConvertOptions {
        quant: Some(quant),
        ..ConvertOptions::default()
    };
    convert(Path::new(DEMO), &out, &options, &mut |_, _| {}).expect("converted");
    (folder, out)
}

#[test]
fn convert_makes_what_loading_makes() {
    let (_, images) = scenes(4);
    let size = |folder: &Path| {
        let file = folder.join("model.safetensors");
        std::fs::metadata(file).expect("a file").len() as f64
    };
    for (format, most) in [(Q8, 0.62), (Q4, 0.45)] {
        let (_folder, out) = converted(format);
        let config = Blip2Config::open(&out).expect("a configuration");
        assert_eq!(config.quantised, Some(format));
        let part = size(&out) / size(Path::new(DEMO));
        assert!(part < most, "{format}: {part} of the f16 file");

        let loaded = captions(
            &mut open(Path::new(DEMO), Some(format)).expect("f16"),
            &images,
        );
        for quant in [None, Some(format)] {
            let stored = captions(&mut open(&out, quant).expect("quantised"), &images);
            assert_eq!(stored, loaded, "{format}: bit for bit");
        }
    }
}

#[test]
fn what_is_quantised_already_is_not_quantised_again() {
    let (folder, out) = converted(Q8);
    for quant in [Q4, WeightFormat::F16] {
        let error = open(&out, Some(quant)).expect_err("it is q8").to_string();
        assert!(error.contains("already (q8)"), "{error}");
        assert!(error.contains("leave `quant` out"), "{error}");
    }
    let again = folder.path().join("again");
    for quant in [Some(Q4), None] {
        let options = ConvertOptions {
            quant,
            ..ConvertOptions::default()
        };
        let error = convert(&out, &again, &options, &mut |_, _| {}).expect_err("it is q8");
        assert!(error.to_string().contains("already (q8)"), "{error}");
        assert!(!again.exists());
    }
}

#[test]
fn damaged_scales_are_named() {
    let (_folder, out) = converted(Q4);
    let file = out.join("model.safetensors");
    let whole = std::fs::read(&file).expect("a file");
    let scales = format!("{MATRIX}.scales");
    let spoilt = |change: &dyn Fn(&mut Safetensors), said: &str| {
        std::fs::write(&file, &whole).expect("written");
        let mut tensors = Safetensors::read(&file);
        change(&mut tensors);
        tensors.write(&file);
        let error = open(&out, None).expect_err(said).to_string();
        assert!(error.contains(said) && error.contains(MATRIX), "{error}");
        assert!(error.contains("model.safetensors"), "{error}");
    };
    spoilt(&|tensors| tensors.remove(&scales), "there is no");
    spoilt(
        &|tensors| {
            let at = tensors.range(&scales).start;
            tensors.data[at..at + 2].copy_from_slice(&[0x00, 0x7e]); // a NaN
        },
        "NaN at element 0",
    );
    spoilt(
        &|tensors| {
            let shape = &mut tensors.header[&scales]["shape"];
            let (rows, blocks) = (shape[0].clone(), shape[1].clone());
            *shape = serde_json::json!([blocks, rows]);
        },
        "where F16 [512, 4] belongs",
    );
    spoilt(
        &|tensors| tensors.header[MATRIX]["shape"] = serde_json::json!([256, 128]),
        "shape [256, 128]",
    );
}

#[test]
fn the_program_quantises_and_says_so() {
    let image = crate::common::data("demo/scene_00.png");
    let image = image.to_str().expect("a path");
    let results = tempfile::tempdir().expect("a temporary folder");
    let results = results.path().join("captions.jsonl");
    let results = results.to_str().expect("a path");
    run(["caption", image, "--out", results, "--quant", "q4"]).exits(0);
    // Other weights say other things: their lines may not stand in one file.
    let other = run(["caption", image, "--out", results]).exits(1);
    other.one_error(&["--quant", "q4"]);

    let bytes = |quant: &[&str]| {
        let arguments = ["inspect", DEMO, "--json"]
            .into_iter()
            .chain(quant.iter().copied());
        let line = run(arguments).exits(0).one_json();
        line["gpu_weight_bytes"].as_f64().expect("a number")
    };
    let (f16, q8, q4) = (
        bytes(&[]),
        bytes(&["--quant", "q8"]),
        bytes(&["--quant", "q4"]),
    );
    assert!(q8 < 0.65 * f16 && q4 < 0.75 * q8, "{f16} {q8} {q4}");
    run(["caption", image, "--quant", "q5"]).exits(2);
}

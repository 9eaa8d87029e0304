//! Metrics against the reference programs. tests/data/eval holds data of our own with what pycocoevalcap 1.2, the
//! VQA evaluation tool, LAVIS and mmpretrain make of it. BLIP2_WGPU_SHARED may name a folder of real data, which is
//! tested too where it is there.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use blip2_wgpu::eval::{
    Benchmark, CaptionData, CaptionPair, CaptionScores, DirectionRecall, QuestionData, Results,
    ScoreMatrix, VqaRules, normalize_answer, read_image_of_text, score_answers, score_captions,
    score_retrieval, score_tokens, tokenize,
};
use serde_json::{Value, json};

const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/eval");

fn ours(name: &str) -> PathBuf {
    Path::new(DATA).join(name)
}

fn read_json(file: &Path) -> Value {
    let text = std::fs::read(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    serde_json::from_slice(&text).expect("JSON")
}

/// A folder of the shared data, if there is any.
fn shared(folder: &str) -> Option<PathBuf> {
    let Some(root) = std::env::var_os("BLIP2_WGPU_SHARED") else {
        eprintln!("skipped: BLIP2_WGPU_SHARED is not set to the folder of real data");
        return None;
    };
    Some(Path::new(&root).join("data").join(folder))
}

/// Fails unless the two differ by at most `tolerance`.
#[track_caller]
fn assert_near(ours: f64, expected: &Value, tolerance: f64, what: &str) {
    let expected = expected
        .as_f64()
        .unwrap_or_else(|| panic!("no number for {what}"));
    assert!(
        (ours - expected).abs() <= tolerance,
        "{what}: {ours}, expected {expected}"
    );
}

// --- captions ---

/// Fails unless all scores are within 1e-4 of the expected ones, over all and of each image.
#[track_caller]
fn assert_scores(scores: &CaptionScores, expected: &Value) {
    for n in 0..4 {
        let name = format!("Bleu_{}", n + 1);
        assert_near(scores.bleu[n], &expected["scores"][&name], 1e-4, &name);
        let images = expected["per_image"][&name].as_array().expect("a list");
        for (image, expected) in scores.images.iter().zip(images) {
            assert_near(image.bleu[n], expected, 1e-4, &name);
        }
    }
    assert_near(scores.cider, &expected["scores"]["CIDEr"], 1e-4, "CIDEr");
    assert_near(
        scores.rouge_l,
        &expected["scores"]["ROUGE_L"],
        1e-4,
        "ROUGE_L",
    );
    for (name, own) in [
        (
            "CIDEr",
            scores
                .images
                .iter()
                .map(|image| image.cider)
                .collect::<Vec<_>>(),
        ),
        (
            "ROUGE_L",
            scores.images.iter().map(|image| image.rouge_l).collect(),
        ),
    ] {
        let images = expected["per_image"][name].as_array().expect("a list");
        assert_eq!(own.len(), images.len());
        for (index, (own, expected)) in own.iter().zip(images).enumerate() {
            assert_near(*own, expected, 1e-4, &format!("{name} of image {index}"));
        }
    }
}

/// Scores of results against COCO annotations, in the order of the images.
fn scores(annotations: &Path, results: &Path) -> CaptionScores {
    let data = CaptionData::read(annotations, "test").expect("annotations");
    let results = Results::read_captions(results).expect("results");
    let joined = results.join(data.images.iter().map(|image| &image.id), &data.file);
    assert!(joined.unknown.is_empty());
    let pairs = joined
        .texts
        .iter()
        .zip(data.captions())
        .map(|(text, references)| CaptionPair {
            candidate: text.expect("a result"),
            references,
        });
    score_captions(&pairs.collect::<Vec<_>>())
}

#[test]
fn tokens_equal_the_stanford_tokenizers() {
    let cases: Vec<(String, String)> =
        serde_json::from_value(read_json(&ours("ptb.json"))).expect("pairs");
    assert!(cases.len() > 200);
    let wrong: Vec<_> = cases
        .iter()
        .filter(|(text, tokens)| tokenize(text).join(" ") != *tokens)
        .collect();
    for (text, tokens) in &wrong {
        eprintln!(
            "{text}\n  expected {tokens}\n  got      {}",
            tokenize(text).join(" ")
        );
    }
    assert!(wrong.is_empty(), "{} of {}", wrong.len(), cases.len());
}

#[test]
fn caption_scores_equal_pycocoevalcaps() {
    let scores = scores(&ours("captions.json"), &ours("captions_results.json"));
    assert_scores(&scores, &read_json(&ours("captions_expected.json")));
}

#[test]
fn caption_scores_equal_pycocoevalcaps_on_coco() {
    let Some(folder) = shared("coco_caption") else {
        return;
    };
    let expected = read_json(&folder.join("fakecap126_expected.json"));
    let results = folder.join("fakecap126_results.json");
    assert_scores(
        &scores(&folder.join("fakecap126_annotations.json"), &results),
        &expected,
    );

    // The same from pycocoevalcap's own tokens, and our tokens against those.
    let tokens = read_json(&folder.join("fakecap126_ptb_tokenized.json"));
    let data = CaptionData::read(&folder.join("fakecap126_annotations.json"), "test")
        .expect("annotations");
    let results = Results::read_captions(&results).expect("results");
    let texts: BTreeMap<_, _> = results.texts.iter().cloned().collect();
    let words = |text: &Value| -> Vec<String> {
        text.as_str()
            .expect("a text")
            .split_whitespace()
            .map(str::to_owned)
            .collect()
    };
    let mut pairs = Vec::new();
    for (image, captions) in data.images.iter().zip(data.captions()) {
        let expected = &tokens[image.id.to_string()];
        let candidate = expected["hyp"]
            .as_array()
            .map_or(&expected["hyp"], |list| &list[0]);
        assert_eq!(
            tokenize(&texts[&image.id]),
            words(candidate),
            "{}",
            image.id
        );
        let references = expected["refs"].as_array().expect("a list");
        assert_eq!(captions.len(), references.len());
        for (caption, reference) in captions.iter().zip(references) {
            assert_eq!(tokenize(caption), words(reference), "{}", image.id);
        }
        pairs.push(CaptionPair {
            candidate: words(candidate),
            references: references.iter().map(words).collect(),
        });
    }
    assert_scores(&score_tokens(&pairs), &expected);
}

// --- questions ---

/// Fails unless accuracies are within 0.01 of the expected ones, in all tables there are.
#[track_caller]
fn assert_accuracies(
    annotations: &Path,
    results: &Path,
    rules: VqaRules,
    expected: &Value,
    per_question: &Value,
) {
    let data = QuestionData::read(annotations).expect("annotations");
    let results = Results::read_answers(results).expect("results");
    let joined = results.join(data.questions.iter().map(|(id, _)| id), &data.file);
    let truth = data
        .questions
        .iter()
        .map(|(_, question)| question.truth.as_ref().expect("answers"));
    let scores = score_answers(
        joined
            .texts
            .iter()
            .map(|text| text.expect("a result"))
            .zip(truth),
        data.benchmark,
        rules,
    );
    assert_near(scores.overall, &expected["overall"], 0.01, "overall");
    for (key, ours) in [
        ("perAnswerType", &scores.per_answer_type),
        ("perQuestionType", &scores.per_question_type),
    ] {
        let Some(table) = expected.get(key) else {
            continue;
        };
        assert_eq!(
            table.as_object().map(|table| table.len()),
            Some(ours.len()),
            "{key}"
        );
        for (name, accuracy) in ours {
            assert_near(*accuracy, &table[name], 0.01, name);
        }
    }
    for ((id, _), accuracy) in data.questions.iter().zip(&scores.questions) {
        assert_near(
            *accuracy,
            &per_question[id.to_string()],
            0.01,
            &id.to_string(),
        );
    }
}

#[test]
fn accuracies_equal_each_tools() {
    let expected = read_json(&ours("vqa_expected.json"));
    for (name, rules) in [
        ("vqa", VqaRules::Vqa),
        ("lavis", VqaRules::Lavis),
        ("mmpretrain", VqaRules::Mmpretrain),
    ] {
        let expected = &expected[name];
        let (annotations, results) = (ours("vqa_annotations.json"), ours("vqa_results.json"));
        assert_accuracies(
            &annotations,
            &results,
            rules,
            expected,
            &expected["per_question"],
        );
    }
}

#[test]
fn accuracies_equal_each_tools_on_vqav2() {
    let Some(folder) = shared("vqa") else { return };
    let expected = read_json(&folder.join("expected.json"));
    for case in expected["normalisation_cases"].as_array().expect("cases") {
        let text = case["in"].as_str().expect("a text");
        assert_eq!(
            normalize_answer(text),
            case["out"].as_str().expect("a text"),
            "{text}"
        );
    }
    for (name, rules) in [
        ("gt_vision_lab_head", VqaRules::Vqa),
        ("lavis", VqaRules::Lavis),
    ] {
        let expected = &expected[name];
        let (annotations, results) = (folder.join("annotations.json"), folder.join("results.json"));
        assert_accuracies(
            &annotations,
            &results,
            rules,
            &expected["accuracy"],
            &expected["per_question"],
        );
    }
}

#[test]
fn gqa_accuracy_equals_mmpretrains() {
    let data = QuestionData::read(&ours("gqa.json")).expect("questions");
    assert_eq!(data.benchmark, Benchmark::Gqa);
    let results = Results::read_answers(&ours("gqa_results.json")).expect("results");
    let joined = results.join(data.questions.iter().map(|(id, _)| id), &data.file);
    let truth = data
        .questions
        .iter()
        .map(|(_, question)| question.truth.as_ref().expect("an answer"));
    let scores = score_answers(
        joined
            .texts
            .iter()
            .map(|text| text.expect("a result"))
            .zip(truth),
        data.benchmark,
        VqaRules::default(),
    );
    assert_eq!(scores.overall, 80.0); // mmpretrain's functions on the same files
}

// --- retrieval ---

#[track_caller]
fn assert_recall(ours: &DirectionRecall, expected: &Value) {
    for (k, recall) in ours.recall.iter().enumerate() {
        assert_near(*recall, &expected[k], 1e-9, "recall");
    }
}

#[test]
fn recall_equals_laviss() {
    let expected = read_json(&ours("recall_expected.json"));
    let scores = ScoreMatrix::read(&ours("i2t.npy")).expect("float32, Fortran order");
    let of_texts = ScoreMatrix::read(&ours("t2i.npy"))
        .expect("float64, C order")
        .transposed();
    let image_of_text = read_image_of_text(&ours("karpathy.json"), "test").expect("a split");
    let one = score_retrieval(&scores, None, &image_of_text).expect("scores");
    assert_recall(&one.image_to_text, &expected["i2t"]);
    assert_recall(&one.text_to_image, &expected["t2i"]);
    let two = score_retrieval(&scores, Some(&of_texts), &image_of_text).expect("scores");
    assert_eq!(two.image_to_text, one.image_to_text);
    assert_recall(&two.text_to_image, &expected["t2i_of_its_own"]);
}

/// `eval_predictions.py` of allenai/aokvqa on the same file: 100 · (2/3 + 1 + 0) / 3.
#[test]
fn aokvqa_counts_equal_letters_and_leaves_difficult_questions_out() {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, value: Value| {
        let file = folder.path().join(name);
        std::fs::write(&file, value.to_string()).expect("written");
        file
    };
    let question = |id: &str, answers: [&str; 4], difficult: bool| {
        json!({"split": "val", "image_id": 9, "question_id": id, "question": "what?", "choices": ["a", "b"],
            "correct_choice_idx": 0, "direct_answers": answers, "difficult_direct_answer": difficult})
    };
    let questions = write(
        "aokvqa.json",
        json!([
            question("q1", ["sun", "sun", "The Sun", "moon"], false),
            question("q2", ["cat"; 4], false),
            question("q3", ["dog"; 4], false),
            question("q4", ["dog"; 4], true),
        ]),
    );
    let answers = write(
        "answers.json",
        json!({"q1": {"direct_answer": "sun", "multiple_choice": ""},
        "q2": {"direct_answer": "cat"}, "q3": {"direct_answer": "Dog"}, "q4": {"direct_answer": "dog"}}),
    );
    let data = QuestionData::read(&questions).expect("questions");
    assert_eq!(data.benchmark, Benchmark::Aokvqa);
    let results = Results::read_answers(&answers).expect("results");
    let joined = results.join(data.questions.iter().map(|(id, _)| id), &data.file);
    let texts = joined.texts.iter().map(|text| text.expect("a result"));
    let truth = data
        .questions
        .iter()
        .map(|(_, question)| question.truth.as_ref().expect("answers"));
    let scores = score_answers(texts.zip(truth), data.benchmark, VqaRules::Lavis);
    assert!(
        (scores.overall - 100.0 * (2.0 / 3.0 + 1.0) / 3.0).abs() < 1e-9,
        "{scores:?}"
    );
    assert_eq!(scores.questions.len(), 4);
}

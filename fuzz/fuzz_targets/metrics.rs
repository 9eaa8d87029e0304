//! Captions and answers, as datasets and results have them, on their way to a score.
#![no_main]

use blip2_wgpu::eval::{
    Benchmark, CaptionPair, GroundTruth, VqaRules, normalize_answer, score_answers, score_captions,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let texts: Vec<&str> = text.split('\0').collect();
    let Some((&candidate, references)) = texts.split_first() else {
        return;
    };
    let _ = normalize_answer(candidate);
    let references = match references {
        [] => vec![candidate],
        references => references.to_vec(),
    };
    let truth = GroundTruth {
        answers: references.iter().map(|text| text.to_string()).collect(),
        ..GroundTruth::default()
    };
    let rules = [VqaRules::Vqa, VqaRules::Lavis, VqaRules::Mmpretrain][text.len() % 3];
    for benchmark in [Benchmark::Vqa, Benchmark::Gqa, Benchmark::Aokvqa] {
        let _ = score_answers([(candidate, &truth)], benchmark, rules);
    }
    let scores = score_captions(&[CaptionPair {
        candidate,
        references,
    }]);
    assert!(scores.cider.is_finite() && (0.0..=1.0).contains(&scores.rouge_l));
});

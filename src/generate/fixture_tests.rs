//! Replays runs of transformers' `generate` (`tests/data/generate`, written by
//! `weights-tools/generate_fixtures.py`): equal tokens, scores within 1e-4.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::*;

#[derive(Deserialize)]
struct Searches {
    scale: f32,
    tables: Vec<Table>,
    cases: Vec<Case>,
}

/// A language model: logits after a sequence = `by_last[last id] + by_position[generated]`, scaled.
#[derive(Deserialize)]
struct Table {
    by_last: Vec<Vec<i32>>,
    by_position: Vec<Vec<i32>>,
}

#[derive(Debug, Deserialize)]
struct Case {
    table: usize,
    prompt: Vec<u32>,
    /// The prompt was given as embeddings: its ids are not in the sequence the processors see.
    embeddings: bool,
    options: Value,
    tokens: Vec<Vec<u32>>,
    scores: Vec<f32>,
    /// Steps until the search stopped, where known.
    steps: Option<usize>,
}

fn searches() -> Searches {
    serde_json::from_str(include_str!("../../tests/data/generate/search.json")).unwrap()
}

/// One case with its model, ready to run.
struct Replay<'a> {
    case: &'a Case,
    table: &'a Table,
    scale: f32,
    options: GenerationOptions,
    processors: ScoreProcessors,
}

impl<'a> Replay<'a> {
    fn new(searches: &'a Searches, case: &'a Case) -> Self {
        let json = case.options.to_string();
        let overrides = GenerationOverrides::from_json(&json, Path::new("case")).unwrap();
        let options = GenerationOptions::default().overlay(&overrides);
        options.validate().unwrap();
        Self {
            case,
            table: &searches.tables[case.table],
            scale: searches.scale,
            processors: ScoreProcessors::from_options(&options),
            options,
        }
    }

    /// Logits after the prompt and `generated`. `[vocabulary]`
    fn logits(&self, generated: &[u32]) -> Vec<f32> {
        let last = *generated.last().or(self.case.prompt.last()).unwrap();
        let by_last = &self.table.by_last[last as usize];
        let by_position = &self.table.by_position[generated.len()];
        let sums = by_last.iter().zip(by_position).map(|(a, b)| a + b);
        sums.map(|sum| sum as f32 * self.scale).collect()
    }

    fn process(&self, scores: &mut [f32], generated: &[u32]) {
        let prompt: &[u32] = if self.case.embeddings {
            &[]
        } else {
            &self.case.prompt
        };
        let history = [prompt, generated].concat();
        self.processors.apply(scores, &history, generated.len());
    }

    /// The texts, and the steps taken.
    fn greedy(&self) -> (Vec<Generated>, usize) {
        let mut row = Row::new(&self.options);
        while !row.is_done() {
            let mut scores = self.logits(row.tokens());
            self.process(&mut scores, row.tokens());
            log_softmax(&mut scores);
            let best = top_k(&scores, 1)[0];
            row.push(best.token, best.score);
        }
        let steps = row.tokens().len();
        (vec![row.finish()], steps)
    }

    fn beams(&self) -> (Vec<Generated>, usize) {
        let mut search = BeamSearch::new(&self.options).unwrap();
        while !search.is_done() {
            let alive = if search.generated() == 0 {
                1
            } else {
                search.num_beams()
            };
            let rows: Vec<Vec<Candidate>> = (0..alive)
                .map(|beam| {
                    let mut scores = self.logits(search.tokens(beam));
                    log_softmax(&mut scores);
                    self.process(&mut scores, search.tokens(beam));
                    top_k(&scores, search.candidates_per_beam())
                })
                .collect();
            let before: Vec<Vec<u32>> = (0..search.num_beams())
                .map(|b| search.tokens(b).to_vec())
                .collect();
            let steps = search.step(&rows).unwrap().to_vec();
            // What a caller reorders its KV cache by must be what the search believes.
            for (beam, step) in steps.iter().enumerate() {
                let expected = [&before[step.parent][..], &[step.token]].concat();
                assert_eq!(search.tokens(beam), expected);
            }
        }
        let steps = search.generated();
        (search.finish(), steps)
    }

    fn run(&self) -> (Vec<Generated>, usize) {
        if self.options.num_beams == 1 {
            self.greedy()
        } else {
            self.beams()
        }
    }
}

#[test]
fn greedy_and_beam_search_equal_transformers() {
    let searches = searches();
    assert!(searches.cases.len() > 300);
    let mut worst = 0.0f32;
    for case in &searches.cases {
        let (texts, steps) = Replay::new(&searches, case).run();
        let tokens: Vec<_> = texts.iter().map(|text| text.tokens.clone()).collect();
        assert_eq!(tokens, case.tokens, "{case:?}");
        assert!(
            case.steps.is_none_or(|s| s == steps),
            "{steps} steps in {case:?}"
        );
        for (text, expected) in texts.iter().zip(&case.scores) {
            let error = (text.score - expected).abs() / expected.abs().max(1.0);
            assert!(error <= 1e-4, "{} for {expected} in {case:?}", text.score);
            worst = worst.max(error);
        }
    }
    eprintln!(
        "{} searches, worst score error {worst:e}",
        searches.cases.len()
    );
}

#[derive(Deserialize)]
struct Warps {
    rows: Vec<Vec<Option<f32>>>,
    cases: Vec<WarpCase>,
}

#[derive(Debug, Deserialize)]
struct WarpCase {
    row: usize,
    temperature: f32,
    top_k: usize,
    top_p: f64,
    #[serde(default)]
    min_p: f64,
    #[serde(default = "one")]
    typical_p: f64,
    #[serde(default)]
    epsilon_cutoff: f64,
    #[serde(default)]
    eta_cutoff: f64,
    probabilities: Vec<f64>,
}

fn one() -> f64 {
    1.0
}

#[test]
fn sampling_distributions_equal_transformers() {
    let warps: Warps =
        serde_json::from_str(include_str!("../../tests/data/generate/warp.json")).unwrap();
    for case in &warps.cases {
        let warp = Warp {
            temperature: case.temperature,
            top_k: case.top_k,
            top_p: case.top_p,
            min_p: case.min_p,
            typical_p: case.typical_p,
            epsilon_cutoff: case.epsilon_cutoff,
            eta_cutoff: case.eta_cutoff,
        };
        let row: Vec<Candidate> = (0..)
            .zip(&warps.rows[case.row])
            .map(|(token, score)| Candidate {
                token,
                score: score.unwrap_or(f32::NEG_INFINITY),
            })
            .collect();
        let mut probabilities = vec![0.0; row.len()];
        for kept in warp.apply(&row) {
            probabilities[kept.token as usize] = kept.probability;
        }
        for (ours, theirs) in probabilities.iter().zip(&case.probabilities) {
            assert!(
                (ours - theirs).abs() < 1e-6,
                "{probabilities:?} for {case:?}"
            );
        }
    }
}

#[test]
fn one_row_at_the_first_step_is_as_good_as_all() {
    let searches = searches();
    let case = searches
        .cases
        .iter()
        .find(|c| c.options["num_beams"] == 5)
        .unwrap();
    let replay = Replay::new(&searches, case);
    let mut scores = replay.logits(&[]);
    log_softmax(&mut scores);
    let row = top_k(&scores, 10);
    let mut one = BeamSearch::new(&replay.options).unwrap();
    let mut all = one.clone();
    let steps = one.step(&[&row]).unwrap();
    assert_eq!(steps, all.step(&[&row; 5]).unwrap());
    assert!(steps.iter().all(|step| step.parent == 0));
}

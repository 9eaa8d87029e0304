//! Scores as `score` and `eval` print them.

use serde_json::{Map, Value, json};

use crate::eval::{
    Benchmark, CaptionScores, DirectionRecall, RECALL_AT, RetrievalScores, VqaRules, VqaScores,
};

use super::output::Output;

/// Failures named one by one; of more only the number is said.
const MOST_NAMED: usize = 20;

/// Says the first few of `problems`, and how many more there are.
pub fn name_each(problems: &[impl std::fmt::Display], say: &dyn Fn(&str)) {
    for problem in problems.iter().take(MOST_NAMED) {
        say(&problem.to_string());
    }
    if problems.len() > MOST_NAMED {
        say(&format!(
            "… and {} more of the kind",
            problems.len() - MOST_NAMED
        ));
    }
}

/// Caption scores, of an image or of all, under pycocoevalcap's names.
pub fn caption_json(bleu: [f64; 4], cider: f64, rouge_l: f64) -> Map<String, Value> {
    let named = bleu
        .iter()
        .enumerate()
        .map(|(n, bleu)| (format!("Bleu_{}", n + 1), json!(bleu)));
    named
        .chain([
            ("CIDEr".to_owned(), json!(cider)),
            ("ROUGE_L".to_owned(), json!(rouge_l)),
        ])
        .collect()
}

/// Caption scores under pycocoevalcap's names.
pub fn caption_scores_json(scores: &CaptionScores) -> Map<String, Value> {
    caption_json(scores.bleu, scores.cider, scores.rouge_l)
}

/// A percentage with two decimals.
pub fn percent(value: f64) -> Value {
    json!((value * 100.0).round() / 100.0)
}

/// Accuracies under the VQA evaluation tool's names.
pub fn vqa_scores_json(scores: &VqaScores) -> Map<String, Value> {
    let table = |types: &std::collections::BTreeMap<String, f64>| -> Value {
        let rounded = types
            .iter()
            .map(|(name, &accuracy)| (name.clone(), percent(accuracy)));
        Value::Object(rounded.collect())
    };
    Map::from_iter([
        ("overall".to_owned(), percent(scores.overall)),
        ("perAnswerType".to_owned(), table(&scores.per_answer_type)),
        (
            "perQuestionType".to_owned(),
            table(&scores.per_question_type),
        ),
    ])
}

/// Recall by direction.
pub fn retrieval_scores_json(scores: &RetrievalScores) -> Map<String, Value> {
    let direction = |recall: &DirectionRecall| {
        let at = RECALL_AT.iter().zip(recall.recall);
        let mut object: Map<String, Value> = at
            .map(|(k, value)| (format!("Recall@{k}"), percent(value)))
            .collect();
        object.insert("mean".to_owned(), percent(recall.mean));
        Value::Object(object)
    };
    Map::from_iter([
        ("i2t".to_owned(), direction(&scores.image_to_text)),
        ("t2i".to_owned(), direction(&scores.text_to_image)),
        ("mean".to_owned(), percent(scores.mean)),
    ])
}

/// Prints scores: an object on a line with `--json`, else a table with so many `decimals`, inner
/// tables indented.
pub fn print(scores: &Map<String, Value>, decimals: usize, output: &Output) {
    if output.json {
        output.line(&Value::Object(scores.clone()).to_string());
    } else {
        print_table(scores, "", decimals, output);
    }
}

fn print_table(scores: &Map<String, Value>, indent: &str, decimals: usize, output: &Output) {
    let width = scores.keys().map(String::len).max().unwrap_or(0);
    for (name, value) in scores {
        match value {
            Value::Object(inner) => {
                output.line(&format!("{indent}{name}"));
                print_table(inner, &format!("{indent}  "), decimals, output);
            }
            Value::Number(number) => {
                let number = number.as_f64().unwrap_or(f64::NAN);
                output.line(&format!("{indent}{name:width$}  {number:.decimals$}"));
            }
            other => output.line(&format!("{indent}{name:width$}  {other}")),
        }
    }
}

/// The rules that were asked for, or the usual; says where they change nothing.
pub fn rules_for(asked: Option<VqaRules>, benchmark: Benchmark, output: &Output) -> VqaRules {
    if asked.is_some() && !matches!(benchmark, Benchmark::Vqa | Benchmark::VizWiz) {
        output.warning("--rules: no effect; these questions have one set of rules only");
    }
    asked.unwrap_or_default()
}

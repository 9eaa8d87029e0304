//! VQA, GQA and A-OKVQA accuracy by the rules of the VQA evaluation tool, LAVIS and mmpretrain, which
//! differ.
//!
//! Antol et al. 2015: an answer is right as far as three of ten people gave it. All three leave
//! details of their code in the figure; those are kept and said where they are.

use std::collections::BTreeMap;

use super::contractions::with_apostrophes;
use super::questions::{Benchmark, DIFFICULT};

/// Whose rules to score by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum VqaRules {
    /// The VQA evaluation tool (GT-Vision-Lab/VQA): where all answers are the same word for word,
    /// nothing is normalised
    #[default]
    Vqa,
    /// LAVIS: the prediction always normalised, the true answers never fully
    Lavis,
    /// mmpretrain: all normalised, no answer left out: slightly higher
    Mmpretrain,
}

/// What people answered to a question.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GroundTruth {
    /// Their answers, ten in VQAv2.
    pub answers: Vec<String>,
    /// What the question begins with, or its kind.
    pub question_type: Option<String>,
    /// yes/no, number or other.
    pub answer_type: Option<String>,
}

/// Accuracy in percent, not rounded.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct VqaScores {
    /// Over all questions.
    pub overall: f64,
    /// By answer type.
    pub per_answer_type: BTreeMap<String, f64>,
    /// By question type.
    pub per_question_type: BTreeMap<String, f64>,
    /// Each question's own, in the order given.
    pub questions: Vec<f64>,
}

/// Scores predictions against what people answered.
fn score_vqa<'a>(
    answers: impl IntoIterator<Item = (&'a str, &'a GroundTruth)>,
    rules: VqaRules,
) -> VqaScores {
    let accuracies = answers.into_iter().map(|(prediction, truth)| {
        let accuracy = match rules {
            VqaRules::Vqa => by_vqa(prediction, &truth.answers),
            VqaRules::Lavis => by_lavis(prediction, &truth.answers),
            VqaRules::Mmpretrain => by_mmpretrain(prediction, &truth.answers),
        };
        (accuracy, truth)
    });
    tables(accuracies)
}

/// Scores predictions as `benchmark` has it; `rules` count for those in VQAv2's manner alone.
#[must_use]
pub fn score_answers<'a>(
    answers: impl IntoIterator<Item = (&'a str, &'a GroundTruth)>,
    benchmark: Benchmark,
    rules: VqaRules,
) -> VqaScores {
    match benchmark {
        Benchmark::Vqa | Benchmark::VizWiz => score_vqa(answers, rules),
        Benchmark::TextVqa => score_textvqa(answers),
        Benchmark::Gqa => score_gqa(answers),
        Benchmark::Aokvqa => score_aokvqa(answers),
    }
}

/// Scores GQA: the prediction is the answer or it is not. LAVIS and mmpretrain normalise alike
/// here.
fn score_gqa<'a>(answers: impl IntoIterator<Item = (&'a str, &'a GroundTruth)>) -> VqaScores {
    let normal = |text: &str| digits_and_articles(&punctuation(text));
    let accuracies = answers.into_iter().map(|(prediction, truth)| {
        let prediction = normal(prediction);
        let right = truth
            .answers
            .iter()
            .any(|answer| normal(answer) == prediction);
        (f64::from(u8::from(right)), truth)
    });
    tables(accuracies)
}

/// Scores TextVQA as MMF's evaluator does: the prediction and all answers normalised, even where these agree,
/// and marks before an `s` and between words told alike.
fn score_textvqa<'a>(answers: impl IntoIterator<Item = (&'a str, &'a GroundTruth)>) -> VqaScores {
    let normal = |text: &str| {
        let words = text
            .to_lowercase()
            .replace([',', '?'], "")
            .replace("'s", " 's");
        normalize_answer(&words)
    };
    let accuracies = answers.into_iter().map(|(prediction, truth)| {
        let answers: Vec<String> = truth.answers.iter().map(|answer| normal(answer)).collect();
        (leave_one_out(&normal(prediction), &answers), truth)
    });
    tables(accuracies)
}

/// Scores A-OKVQA's direct answers (allenai/aokvqa, `eval_predictions.py`; LAVIS does the same): equal texts
/// count, three make an answer right, difficult questions are left out of the mean.
fn score_aokvqa<'a>(answers: impl IntoIterator<Item = (&'a str, &'a GroundTruth)>) -> VqaScores {
    let mut accuracies = Vec::new();
    for (prediction, truth) in answers {
        let same = truth.answers.iter().filter(|answer| *answer == prediction);
        accuracies.push(((same.count() as f64 / 3.0).min(1.0), truth));
    }
    let is_judged = |truth: &GroundTruth| truth.answer_type.as_deref() != Some(DIFFICULT);
    let judged = accuracies.iter().copied();
    let judged = judged.filter(|(_, truth)| is_judged(truth));
    VqaScores {
        questions: accuracies
            .iter()
            .map(|(accuracy, _)| 100.0 * accuracy)
            .collect(),
        ..tables(judged)
    }
}

fn tables<'a>(accuracies: impl Iterator<Item = (f64, &'a GroundTruth)>) -> VqaScores {
    #[derive(Default)]
    struct Mean(f64, usize);
    impl Mean {
        fn add(&mut self, accuracy: f64) {
            self.0 += accuracy;
            self.1 += 1;
        }
        fn percent(&self) -> f64 {
            100.0 * self.0 / self.1.max(1) as f64
        }
    }
    let (mut overall, mut questions) = (Mean::default(), Vec::new());
    let (mut answer_types, mut question_types) = (BTreeMap::new(), BTreeMap::new());
    for (accuracy, truth) in accuracies {
        overall.add(accuracy);
        questions.push(100.0 * accuracy);
        for (types, name) in [
            (&mut answer_types, &truth.answer_type),
            (&mut question_types, &truth.question_type),
        ] {
            if let Some(name) = name {
                types
                    .entry(name.clone())
                    .or_insert_with(Mean::default)
                    .add(accuracy);
            }
        }
    }
    let percent = |types: BTreeMap<String, Mean>| {
        types
            .into_iter()
            .map(|(name, mean)| (name, mean.percent()))
            .collect()
    };
    VqaScores {
        overall: overall.percent(),
        per_answer_type: percent(answer_types),
        per_question_type: percent(question_types),
        questions,
    }
}

/// The evaluation tool since its commit a013f004: answers that all agree are compared as they are.
fn by_vqa(prediction: &str, answers: &[String]) -> f64 {
    let answers: Vec<String> = answers.iter().map(|answer| trimmed(answer)).collect();
    let prediction = trimmed(prediction);
    if all_equal(&answers) {
        return leave_one_out(&prediction, &answers);
    }
    let normal = |text: &String| digits_and_articles(&punctuation(text));
    leave_one_out(
        &normal(&prediction),
        &answers.iter().map(normal).collect::<Vec<_>>(),
    )
}

/// LAVIS's copy of an older version: of the true answers only punctuation is touched.
fn by_lavis(prediction: &str, answers: &[String]) -> f64 {
    let prediction = normalize_answer(prediction);
    if all_equal(answers) {
        return leave_one_out(&prediction, answers);
    }
    let answers: Vec<String> = answers.iter().map(|answer| punctuation(answer)).collect();
    leave_one_out(&prediction, &answers)
}

/// mmpretrain: the share of people who gave the answer, 0.3 being enough.
fn by_mmpretrain(prediction: &str, answers: &[String]) -> f64 {
    let prediction = normalize_answer(prediction);
    let same = answers
        .iter()
        .filter(|answer| normalize_answer(answer) == prediction)
        .count();
    let share = same as f64 / answers.len().max(1) as f64;
    (share / 0.3).min(1.0)
}

fn all_equal(answers: &[String]) -> bool {
    answers.windows(2).all(|pair| pair[0] == pair[1])
}

/// Mean over the people of how right the prediction is by the other people's answers. Each is one
/// by its place in the list; the tools take equal entries for one person, which the published
/// files' answer ids rule out.
fn leave_one_out(prediction: &str, answers: &[String]) -> f64 {
    let matches = answers
        .iter()
        .filter(|answer| *answer == prediction)
        .count();
    let accuracies = answers.iter().map(|answer| {
        let others = matches - usize::from(answer == prediction);
        (others as f64 / 3.0).min(1.0)
    });
    accuracies.sum::<f64>() / answers.len().max(1) as f64
}

/// An answer as it is compared: line breaks, punctuation, number words, articles and contractions
/// made alike.
#[must_use]
pub fn normalize_answer(answer: &str) -> String {
    digits_and_articles(&punctuation(&trimmed(answer)))
}

fn trimmed(answer: &str) -> String {
    answer.replace(['\n', '\t'], " ").trim().to_owned()
}

/// Punctuation that is taken out, in this order.
const PUNCTUATION: &str = ";/[]\"{}()=+\\_-><@`,?!";
/// Most periods taken out: the tools pass a flag where the count belongs, and the flag's value is
/// 32.
const MOST_PERIODS: usize = 32;

/// A mark beside a space anywhere, or any with a comma between digits in the text, is deleted;
/// others become spaces. Periods go unless a digit follows.
fn punctuation(text: &str) -> String {
    let characters: Vec<char> = text.chars().collect();
    let digit = |c: char| c.is_numeric();
    let comma_in_number = characters
        .windows(3)
        .any(|c| digit(c[0]) && c[1] == ',' && digit(c[2]));
    let mut out = text.to_owned();
    for mark in PUNCTUATION.chars() {
        let beside_space = characters
            .windows(2)
            .any(|c| c == [mark, ' '] || c == [' ', mark]);
        out = out.replace(
            mark,
            if beside_space || comma_in_number {
                ""
            } else {
                " "
            },
        );
    }
    let mut periods = 0;
    let mut after = out.chars().skip(1);
    out.chars()
        .filter(|&c| {
            let next = after.next();
            let goes = c == '.' && !next.is_some_and(digit) && periods < MOST_PERIODS;
            periods += usize::from(goes);
            !goes
        })
        .collect()
}

const NUMBERS: [(&str, &str); 12] = [
    ("none", "0"),
    ("zero", "0"),
    ("one", "1"),
    ("two", "2"),
    ("three", "3"),
    ("four", "4"),
    ("five", "5"),
    ("six", "6"),
    ("seven", "7"),
    ("eight", "8"),
    ("nine", "9"),
    ("ten", "10"),
];

/// Lower case, numbers as digits, no articles, contractions with their apostrophes.
fn digits_and_articles(text: &str) -> String {
    let lower = text.to_lowercase();
    let words = lower
        .split_whitespace()
        .filter(|word| !matches!(*word, "a" | "an" | "the"));
    let words = words.map(|word| {
        let number = NUMBERS.iter().find(|(name, _)| *name == word);
        number.map_or_else(
            || with_apostrophes(word).unwrap_or_else(|| word.to_owned()),
            |(_, digits)| (*digits).to_owned(),
        )
    });
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn truth(answers: &[(&str, usize)]) -> GroundTruth {
        let answers = answers
            .iter()
            .flat_map(|(answer, times)| vec![(*answer).to_owned(); *times]);
        GroundTruth {
            answers: answers.collect(),
            ..GroundTruth::default()
        }
    }

    fn score(prediction: &str, truth: &GroundTruth, rules: VqaRules) -> f64 {
        score_vqa([(prediction, truth)], rules).overall
    }

    /// MMF's evaluator, worked out by hand: VQAv2's tool would compare equal answers as they are.
    #[test]
    fn textvqa_normalises_answers_that_agree_too() {
        let truth = |answers: [&str; 10]| GroundTruth {
            answers: answers.map(str::to_owned).to_vec(),
            ..GroundTruth::default()
        };
        let (agreed, split) = (
            truth(["the Wolf's Head"; 10]),
            truth(["a", "ten", "10", "x", "x", "x", "x", "x", "x", "x"]),
        );
        let score = |prediction, truth| {
            score_answers([(prediction, truth)], Benchmark::TextVqa, VqaRules::Vqa).overall
        };
        assert_eq!(score("wolf's head", &agreed), 100.0);
        assert_eq!(score("wolf", &agreed), 0.0);
        // Two of ten: one other person for two of them, two others for eight.
        let expected = 100.0 * (2.0 * (1.0 / 3.0) + 8.0 * (2.0 / 3.0)) / 10.0;
        assert!((score("Ten", &split) - expected).abs() < 1e-9);
    }

    #[test]
    fn the_three_rules_differ_where_they_should() {
        use VqaRules::{Lavis, Mmpretrain, Vqa};
        let three = truth(&[("red", 3), ("blue", 7)]);
        for (rules, expected) in [(Vqa, 90.0), (Lavis, 90.0), (Mmpretrain, 100.0)] {
            assert!(
                (score("Red.", &three, rules) - expected).abs() < 1e-9,
                "{rules:?}"
            );
        }
        // All agree: the tool compares the prediction as it is.
        let unanimous = truth(&[("yes", 10)]);
        assert_eq!(score("Yes!", &unanimous, Vqa), 0.0);
        assert_eq!(score("Yes!", &unanimous, Lavis), 100.0);
        // LAVIS normalises the prediction to 2 and leaves the people's word.
        let words = truth(&[("two", 9), ("three", 1)]);
        assert_eq!(score("two", &words, Lavis), 0.0);
        assert_eq!(score("two", &words, Vqa), 100.0);
    }

    #[test]
    fn shares_are_of_as_many_answers_as_there_are() {
        // mmpretrain weighs an answer by count / len(answers), ten or not; 0.3 is enough.
        for (answers, expected) in [
            (truth(&[("red", 1), ("blue", 9)]), 100.0 / 3.0),
            (truth(&[("red", 1), ("blue", 4)]), 200.0 / 3.0),
            (truth(&[("red", 1), ("blue", 2)]), 100.0),
            (truth(&[("blue", 3)]), 0.0),
        ] {
            let score = score("red", &answers, VqaRules::Mmpretrain);
            assert!((score - expected).abs() < 1e-9, "{score}");
        }
    }

    #[test]
    fn normalisation() {
        for (text, expected) in [
            ("The Man", "man"),
            (" none\n", "0"),
            ("1,000", "1000"),
            ("red/white", "red white"),
            ("a.m.", "am"),
            ("3.5", "3.5"),
            ("over there,", "over there"),
            ("dont know", "don't know"),
            ("", ""),
        ] {
            assert_eq!(normalize_answer(text), expected, "{text}");
        }
    }

    #[test]
    fn gqa_is_right_or_wrong() {
        let truth = truth(&[("the table", 1)]);
        assert_eq!(
            score_gqa([("Table", &truth), ("chair", &truth)]).overall,
            50.0
        );
    }
}

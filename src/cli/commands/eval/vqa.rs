//! `blip2-wgpu eval vqa`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Map;

use crate::Error;
use crate::cli::shared::Shared;
use crate::cli::shared::output::Output;
use crate::cli::shared::scores::{rules_for, vqa_scores_json};
use crate::eval::{
    Benchmark, EvalError, Id, ListedQuestion, QuestionData, VqaRules, VqaScores, score_answers,
};
use crate::task::{Ask, VqaOptions, check_vqa_options};

use super::args::{PredictArgs, QuestionArgs};
use super::evaluation::{Dataset, Evaluation, Job, Measured, Outcome, thumbnail_of};
use super::image_folder::ImageFolder;
use super::predictions::ResultFields;
use super::report::{Figure, ReportItem};

/// mmpretrain's figure for blip2-opt-2.7b, zero-shot.
const PUBLISHED: f64 = 53.50;
const PUBLISHED_FOR: &str = "VQAv2, blip2-opt-2.7b zero-shot, as mmpretrain reports it";

/// Answers what is not answered yet, then measures.
pub async fn run(
    shared: &Shared,
    args: &PredictArgs<QuestionArgs>,
    output: &Output,
) -> Result<Outcome, Error> {
    let checkpoint = shared.check()?;
    let generation = &args.generation;
    let image_size = args.image_size.or(generation.preset.vqa_image_size());
    let options = Arc::new(generation.vqa_options());
    options.check_prompt()?;
    if let Some(path) = checkpoint {
        check_vqa_options(&shared.parts.open(path)?, &options)?;
    }
    let data = VqaDataset::read(&args.truth, None)?;
    rules_for(args.truth.rules, data.data.benchmark, output);
    let mut evaluation = Evaluation::open::<VqaDataset>(
        shared,
        (&args.data, args.part),
        &[
            ("annotations", args.truth.annotations.as_ref()),
            ("questions", args.truth.questions.as_ref()),
        ],
        image_size,
        args.part.with_limit(generation.given()),
        output,
    )?;
    let paths = data
        .data
        .questions
        .iter()
        .map(|(_, question)| question.image.as_slice());
    evaluation.folder.note(paths);
    let (jobs, mut all_well) = data.jobs(&evaluation, &options);
    all_well &= evaluation
        .predict(shared, generation, image_size, &jobs)
        .await?;
    Ok(evaluation.finish(&data)?.and(all_well))
}

/// VqaDataset, and whose rules to judge answers by.
pub struct VqaDataset {
    data: QuestionData,
    rules: VqaRules,
}

impl VqaDataset {
    /// The jobs of the questions that lack an answer, and whether each of them can be asked.
    fn jobs(&self, evaluation: &Evaluation<'_>, options: &Arc<VqaOptions>) -> (Vec<Job>, bool) {
        let output = evaluation.output;
        let (questions, listed_in) = (&self.data.questions, &self.data.file);
        let mut jobs = Vec::new();
        let mut all_well = true;
        let mut missing_images = Vec::new();
        let open = by_image(questions).into_iter();
        for index in open.filter(|&index| evaluation.lacks(index, &questions[index].0)) {
            let (id, question) = &questions[index];
            if let Err(error) = options.check_question(&question.text) {
                let file = listed_in.display();
                all_well = output.fail(&format!("{file}: question_id {id}: {error}"));
                continue;
            }
            match image_of(question, &evaluation.folder, listed_in) {
                Ok(image) => jobs.push(Job {
                    id: id.clone(),
                    image,
                    ask: Ask::Question {
                        question: question.text.clone(),
                        options: Arc::clone(options),
                    },
                }),
                // Said once an image, however many questions are about it.
                Err(error) => {
                    let error = error.to_string();
                    if missing_images.last() != Some(&error) {
                        output.error(&error);
                        missing_images.push(error);
                    }
                    all_well = false;
                }
            }
        }
        (jobs, all_well)
    }
}

impl Dataset for VqaDataset {
    type Truth = QuestionArgs;
    const TASK: &'static str = "vqa";
    const FIELDS: ResultFields = ResultFields::ANSWER;

    fn read(truth: &QuestionArgs, _: Option<usize>) -> Result<Self, Error> {
        Ok(Self {
            data: read(truth)?,
            rules: truth.rules.unwrap_or_default(),
        })
    }

    fn file(&self) -> &Path {
        &self.data.file
    }

    fn ids(&self) -> Vec<&Id> {
        self.data.questions.iter().map(|(id, _)| id).collect()
    }

    fn measure(&self, evaluation: &Evaluation<'_>) -> Measured {
        let data = &self.data;
        let questions = data.questions.iter().enumerate();
        let answered = questions.filter_map(|(index, (id, question))| {
            Some((id, question, evaluation.text(index, id)?))
        });
        let answered: Vec<_> = answered.collect();
        evaluation.report_empty(answered.iter().map(|&(id, _, text)| (id, text)));
        let all_known = evaluation.report_unknown(self);
        let (judged, unjudged): (Vec<_>, Vec<_>) =
            (answered.iter().copied()).partition(|(_, question, _)| question.truth.is_some());
        // A test split has no answers at all: there is nothing to measure, but something to hand
        // in.
        let measured = !judged.is_empty();
        if measured {
            let without = unjudged.iter().map(|(id, ..)| {
                EvalError::item(
                    &data.file,
                    format!("question_id {id}"),
                    "has no answer to be judged by; the metrics leave it out",
                )
            });
            evaluation.report_unjudged(&without.collect::<Vec<_>>());
        }
        let truths = judged
            .iter()
            .filter_map(|(_, question, text)| Some((*text, question.truth.as_ref()?)));
        let truths: Vec<_> = truths.collect();
        let scores = match measured {
            false => VqaScores::default(),
            true => score_answers(truths, data.benchmark, self.rules),
        };
        let mut order: Vec<usize> = (0..scores.questions.len()).collect();
        order.sort_by(|&a, &b| scores.questions[a].total_cmp(&scores.questions[b]));
        let shown = order.iter().take(evaluation.args.report_cases);
        let shown = shown.map(|&place| {
            let (id, question, text) = judged[place];
            let file = image_of(question, &evaluation.folder, &data.file);
            ReportItem {
                thumbnail: file.ok().and_then(|file| thumbnail_of(&file)),
                name: format!("question {id}"),
                question: Some(question.text.clone()),
                prediction: text.to_owned(),
                truth: tally(question),
                score: format!("{:.0} %", scores.questions[place]),
            }
        });
        let (title, fields) = match data.benchmark {
            Benchmark::Gqa => ("GQA", ResultFields::GQA),
            Benchmark::VizWiz => ("VizWiz", ResultFields::VIZWIZ),
            Benchmark::Aokvqa => ("A-OKVQA, direct answers", ResultFields::AOKVQA),
            Benchmark::TextVqa => ("TextVQA", ResultFields::ANSWER),
            Benchmark::Vqa => ("Visual question answering", ResultFields::ANSWER),
        };
        let (figures, metrics) = match measured {
            true => (figures(&scores, data.benchmark), vqa_scores_json(&scores)),
            false => (Vec::new(), Map::new()),
        };
        let ids = answered.iter().map(|&(id, ..)| id);
        Measured {
            title,
            items: answered.len(),
            figures,
            published_for: PUBLISHED_FOR,
            shown: shown.collect(),
            official: evaluation.predictions.official(fields, ids),
            decimals: 2,
            metrics,
            all_known,
        }
    }
}

fn read(args: &QuestionArgs) -> Result<QuestionData, EvalError> {
    let data = match (&args.annotations, &args.questions) {
        (Some(annotations), Some(questions)) => {
            QuestionData::read(annotations)?.with_questions(questions)?
        }
        (Some(file), None) | (None, Some(file)) => QuestionData::read(file)?,
        // clap asks for one of the two.
        (None, None) => QuestionData::default(),
    };
    match data
        .questions
        .iter()
        .find(|(_, question)| question.text.is_empty())
    {
        Some((id, _)) => Err(EvalError::item(
            &data.file,
            format!("question_id {id}"),
            "has no question; annotations of VQAv2 need --questions too",
        )),
        None => Ok(data),
    }
}

/// The questions' indices, those about one image together, images in the order in which they are
/// first asked about.
fn by_image(questions: &[(Id, ListedQuestion)]) -> Vec<usize> {
    let mut first = HashMap::new();
    let image = |question: &ListedQuestion| (question.image.clone(), question.image_id.clone());
    let mut order: Vec<(usize, usize)> = (questions.iter().enumerate())
        .map(|(index, (_, question))| (*first.entry(image(question)).or_insert(index), index))
        .collect();
    order.sort_unstable();
    order.into_iter().map(|(_, index)| index).collect()
}

fn image_of(
    question: &ListedQuestion,
    folder: &ImageFolder,
    file: &Path,
) -> Result<PathBuf, EvalError> {
    let paths: Vec<String> = question.image.iter().cloned().collect();
    let id = match (&question.image_id, &question.image) {
        (Some(id), _) => id.clone(),
        (None, Some(path)) => Id::new(path),
        (None, None) => Id::new(""),
    };
    folder.find(&paths, &id, file)
}

/// People's answers with how many gave each, the most frequent first.
fn tally(question: &ListedQuestion) -> Vec<String> {
    let mut counts: Vec<(&str, usize)> = Vec::new();
    for answer in question.truth.iter().flat_map(|truth| &truth.answers) {
        match counts.iter_mut().find(|(known, _)| known == answer) {
            Some((_, count)) => *count += 1,
            None => counts.push((answer, 1)),
        }
    }
    counts.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
    counts
        .iter()
        .map(|(answer, count)| format!("{answer} ({count})"))
        .collect()
}

fn figures(scores: &VqaScores, benchmark: Benchmark) -> Vec<Figure> {
    let figure = |name: String, value: f64| Figure {
        name,
        value: format!("{value:.2}"),
        published: None,
    };
    let mut figures = vec![figure("overall".into(), scores.overall)];
    figures[0].published = (benchmark == Benchmark::Vqa).then(|| format!("{PUBLISHED:.2}"));
    for table in [&scores.per_answer_type, &scores.per_question_type] {
        figures.extend(
            table
                .iter()
                .map(|(name, &accuracy)| figure(name.clone(), accuracy)),
        );
    }
    figures
}

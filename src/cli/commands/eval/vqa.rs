//! `blip2-wgpu eval vqa`.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::Error;
use crate::eval::{
    Case, EvalError, Figure, Id, ImageFolder, ListedQuestion, Predictions, QuestionData,
    ResultFields, VqaScores, score_gqa, score_vqa,
};
use crate::task::{Ask, VqaOptions, check_vqa_options};

use super::args::{DataArgs, PartArgs, QuestionArgs, VqaArgs};
use super::finish::{
    Measured, Outcome, finish, report_empty, report_missing, report_unknown, thumbnail_of,
};
use super::predict::{Job, run_jobs};
use super::{LIMIT, make_folder, settings, with_limit};
use crate::cli::shared::Shared;
use crate::cli::shared::output::Output;
use crate::cli::shared::scores::{name_each, vqa_scores_json};

/// mmpretrain's figure for blip2-opt-2.7b, zero-shot.
const PUBLISHED: f64 = 53.50;
const PUBLISHED_FOR: &str = "VQAv2, blip2-opt-2.7b zero-shot, as mmpretrain reports it";

/// Answers what is not answered yet, then measures; `false` if any question failed.
pub async fn run(shared: &Shared, args: &VqaArgs, output: &Output) -> Result<Outcome, Error> {
    // Wrong usage comes before anything a file could fail with.
    let checkpoint = shared.checkpoint()?;
    shared.gpu_options()?;
    let preset = args.generation.preset;
    let image_size = args.image_size.or(preset.vqa_image_size());
    let options = VqaOptions {
        prompt: args.generation.prompt.clone(),
        preset,
        generation: args.generation.overrides(),
        batch_size: args.generation.batch_size.0,
    };
    options.check_prompt()?;
    if let Some(path) = checkpoint {
        check_vqa_options(path, &options)?;
    }
    let data = read(&args.truth)?;
    let mut folder = ImageFolder::open(&args.data.images)?;
    make_folder(&args.data.out)?;
    let files = [
        ("annotations", &args.truth.annotations),
        ("questions", &args.truth.questions),
    ];
    let files = files.map(|(what, file)| Some((what, file.as_deref()?)));
    let settings = settings(
        "vqa",
        shared,
        &args.data.images,
        &files.into_iter().flatten().collect::<Vec<_>>(),
        image_size,
        with_limit(args.generation.given(), args.part.limit),
    )?;
    let file = args.part.file(&args.data.out, "predictions", "jsonl");
    let mut predictions = Predictions::open(&file, ResultFields::ANSWER, &settings, Some(LIMIT))?;

    let open = by_image(&data.questions).into_iter().filter(|&index| {
        args.part.has(index) && predictions.get(&data.questions[index].0).is_none()
    });
    let (jobs, mut all_well) = jobs(&data, open, &mut folder, &options, output);
    if !jobs.is_empty() {
        let mut model = shared
            .open(image_size, args.generation.work(), output)
            .await?;
        model.check_vqa_options(&options)?;
        all_well &= run_jobs(
            &mut model,
            &jobs,
            options.batch_size,
            &mut predictions,
            output,
        )
        .await?;
    }
    predictions.begin()?;
    let truth = Truth {
        args: &args.data,
        questions: &args.truth,
        part: &args.part,
        data: &data,
    };
    Ok(truth
        .measure(&mut folder, &settings, &predictions, output)?
        .and(all_well))
}

/// The jobs of the questions `open`, and whether each of them can be asked.
fn jobs(
    data: &QuestionData,
    open: impl Iterator<Item = usize>,
    folder: &mut ImageFolder,
    options: &VqaOptions,
    output: &Output,
) -> (Vec<Job>, bool) {
    let shared_options = Arc::new(options.clone());
    let mut jobs = Vec::new();
    let mut all_well = true;
    let mut missing_images = Vec::new();
    for (id, question) in open.map(|index| &data.questions[index]) {
        if let Err(error) = options.check_question(&question.text) {
            let file = data.file.display();
            output.error(&format!("{file}: question_id {id}: {error}"));
            all_well = false;
            continue;
        }
        match image_of(question, folder, &data.file) {
            Ok(image) => jobs.push(Job {
                id: id.clone(),
                image,
                ask: Ask::Question {
                    question: question.text.clone(),
                    options: Arc::clone(&shared_options),
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

/// Measures joined parts; `false` if a question has no answer.
pub fn finish_merged(
    args: &DataArgs,
    questions: &QuestionArgs,
    settings: &Map<String, Value>,
    predictions: &Predictions,
    output: &Output,
) -> Result<Outcome, Error> {
    let data = read(questions)?;
    let mut folder = ImageFolder::open(&args.images)?;
    let part = PartArgs::whole(settings);
    let ids = data.questions.iter().map(|(id, _)| id).enumerate();
    let missing = ids
        .filter(|(index, id)| part.has(*index) && predictions.get(id).is_none())
        .map(|(_, id)| id);
    let complete = report_missing(missing, &data.file, output);
    let truth = Truth {
        args,
        questions,
        part: &part,
        data: &data,
    };
    Ok(truth
        .measure(&mut folder, settings, predictions, output)?
        .and(complete))
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
        Some((id, _)) => Err(EvalError::Item {
            file: data.file.clone(),
            item: format!("question_id {id}"),
            problem: "has no question; annotations of VQAv2 need --questions too".into(),
        }),
        None => Ok(data),
    }
}

/// The questions' indices, those about one image together, images in the order in which they are first asked about.
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
    folder: &mut ImageFolder,
    file: &Path,
) -> Result<std::path::PathBuf, EvalError> {
    let paths: Vec<String> = question.image.iter().cloned().collect();
    let id = match (&question.image_id, &question.image) {
        (Some(id), _) => id.clone(),
        (None, Some(path)) => crate::eval::id_in_name(path),
        (None, None) => Id::new(""),
    };
    folder.find(&paths, &id, file)
}

/// A dataset and what of it to measure.
struct Truth<'a> {
    args: &'a DataArgs,
    questions: &'a QuestionArgs,
    part: &'a PartArgs,
    data: &'a QuestionData,
}

impl Truth<'_> {
    /// Scores what is answered of the part, and writes and prints it.
    fn measure(
        &self,
        folder: &mut ImageFolder,
        settings: &Map<String, Value>,
        predictions: &Predictions,
        output: &Output,
    ) -> Result<Outcome, Error> {
        let Self {
            args,
            questions,
            part,
            data,
        } = self;
        let mut answered = Vec::new();
        for (index, (id, question)) in data.questions.iter().enumerate() {
            let text = predictions.get(id).and_then(Value::as_str);
            if let (true, Some(text)) = (part.has(index), text) {
                answered.push((id, question, text));
            }
        }
        let said = answered.iter().map(|&(id, _, text)| (id, text));
        report_empty(predictions, said, output);
        let ids = data.questions.iter().map(|(id, _)| id);
        let all_known = report_unknown(predictions, ids, &data.file, output);
        let (judged, unjudged): (Vec<_>, Vec<_>) =
            (answered.iter().copied()).partition(|(_, question, _)| question.truth.is_some());
        // A test split has no answers at all: there is nothing to measure, but something to hand in.
        let measured = !judged.is_empty();
        if measured {
            let without = unjudged.iter().map(|(id, ..)| EvalError::Item {
                file: data.file.clone(),
                item: format!("question_id {id}"),
                problem: "has no answer to be judged by; the metrics leave it out".into(),
            });
            let without: Vec<_> = without.collect();
            name_each(&without, &|line| output.warning(line));
        }
        let truths = judged
            .iter()
            .filter_map(|(_, question, text)| Some((*text, question.truth.as_ref()?)));
        let truths: Vec<_> = truths.collect();
        let scores = match measured {
            false => VqaScores::default(),
            true if data.gqa => score_gqa(truths),
            true => score_vqa(truths, questions.rules),
        };
        let mut order: Vec<usize> = (0..scores.questions.len()).collect();
        order.sort_by(|&a, &b| scores.questions[a].total_cmp(&scores.questions[b]));
        let cases = order.iter().take(args.report_cases).map(|&place| {
            let (id, question, text) = judged[place];
            let file = image_of(question, folder, &data.file).ok();
            Case {
                thumbnail: file.and_then(|file| thumbnail_of(&file)),
                name: format!("question {id}"),
                question: Some(question.text.clone()),
                prediction: text.to_owned(),
                truth: tally(question),
                score: format!("{:.0} %", scores.questions[place]),
            }
        });
        let cases = cases.collect();
        let (title, fields) = match data.gqa {
            true => ("GQA", ResultFields::GQA),
            false => ("Visual question answering", ResultFields::ANSWER),
        };
        let (figures, metrics) = match measured {
            true => (figures(&scores, data.gqa), vqa_scores_json(&scores)),
            false => (Vec::new(), Map::new()),
        };
        let ids = answered.iter().map(|&(id, ..)| id);
        let measured = Measured {
            title: title.into(),
            dataset: data.file.clone(),
            items: answered.len(),
            wanted: part.count(data.questions.len()),
            figures,
            published_for: PUBLISHED_FOR,
            cases,
            official: predictions.official(fields, ids),
            decimals: 2,
            metrics,
        };
        Ok(finish(&args.out, part, settings, measured, output)?.and(all_known))
    }
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

fn figures(scores: &VqaScores, gqa: bool) -> Vec<Figure> {
    let figure = |name: String, value: f64| Figure {
        name,
        value: format!("{value:.2}"),
        published: None,
    };
    let mut figures = vec![figure("overall".into(), scores.overall)];
    figures[0].published = (!gqa).then(|| format!("{PUBLISHED:.2}"));
    for table in [&scores.per_answer_type, &scores.per_question_type] {
        figures.extend(
            table
                .iter()
                .map(|(name, &accuracy)| figure(name.clone(), accuracy)),
        );
    }
    figures
}

//! `blip2-wgpu score caption|vqa|retrieval`: measures results that are there already, by this program or another.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::Error;
use crate::eval::{
    CaptionData, CaptionPair, EvalError, Joined, QuestionData, Results, ScoreMatrix, VqaRules,
    read_image_of_text, score_answers, score_captions, score_retrieval,
};

use crate::cli::shared::output::Output;
use crate::cli::shared::scores::{
    caption_json, caption_scores_json, name_each, percent, print, retrieval_scores_json, rules_for,
    vqa_scores_json,
};
use crate::cli::shared::split::SplitArgs;

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// BLEU-1 to 4, CIDEr and ROUGE-L of captions, as pycocoevalcap computes them (fractions)
    #[command(
        after_help = "Example: blip2-wgpu score caption --annotations coco_karpathy_test_gt.json --results captions.json --json\n\n\
        Annotations: COCO's layout, LAVIS's Karpathy splits, or Karpathy's own dataset file.\n\
        Results: [{\"image_id\": 391895, \"caption\": \"a man riding a motorcycle\"}, …]"
    )]
    Caption(CaptionArgs),
    /// Accuracy of answers, overall and by answer and question type (percent)
    #[command(
        after_help = "Example: blip2-wgpu score vqa --annotations v2_mscoco_val2014_annotations.json --results answers.json --rules vqa\n\n\
        Annotations: VQAv2's, LAVIS's and mmpretrain's lists, or GQA's (there an answer is right or wrong as a whole).\n\
        Results: [{\"question_id\": 262148000, \"answer\": \"down\"}, …]"
    )]
    Vqa(VqaArgs),
    /// Recall at 1, 5 and 10 in both directions and its mean, from a matrix of scores (percent)
    #[command(
        after_help = "Example: blip2-wgpu score retrieval --scores i2t.npy --scores-t2i t2i.npy --annotations coco_karpathy_test.json\n\n\
        Rows are images and columns texts, in the order of the annotations: Karpathy's layouts, COCO's, or a plain list that\n\
        has the index of each text's image ([0, 0, 0, 0, 0, 1, …]). Of equal scores the higher index comes first, as in LAVIS.\n\
        The shape of --scores-t2i tells whether its rows are images or texts, except with as many texts as images: then\n\
        --t2i-rows has to."
    )]
    Retrieval(RetrievalArgs),
}

#[derive(Debug, clap::Args)]
pub struct CaptionArgs {
    /// The true captions
    #[arg(long, value_name = "FILE")]
    annotations: PathBuf,
    /// The captions to judge
    #[arg(long, value_name = "FILE")]
    results: PathBuf,
    #[command(flatten)]
    split: SplitArgs,
    #[command(flatten)]
    incomplete: IncompleteArgs,
}

#[derive(Debug, clap::Args)]
pub struct VqaArgs {
    /// People's answers
    #[arg(long, value_name = "FILE")]
    annotations: PathBuf,
    /// The answers to judge
    #[arg(long, value_name = "FILE")]
    results: PathBuf,
    /// The questions, to check that they belong to the annotations
    #[arg(long, value_name = "FILE")]
    questions: Option<PathBuf>,
    /// Whose rules to score by, vqa if not given (GQA, TextVQA and A-OKVQA have only one set)
    #[arg(long, value_enum)]
    rules: Option<VqaRules>,
    #[command(flatten)]
    incomplete: IncompleteArgs,
}

#[derive(Debug, clap::Args)]
struct IncompleteArgs {
    /// Results that are missing or empty are no failure (the missing are left out, the empty count
    /// as wrong)
    #[arg(long)]
    allow_incomplete: bool,
    /// Write each item's own scores to this file, a JSON object a line
    #[arg(long, value_name = "FILE")]
    details: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub struct RetrievalArgs {
    /// Scores of images × texts: a .npy of float32 or float64
    #[arg(long, value_name = "FILE.npy")]
    scores: PathBuf,
    /// Scores of the other direction, where re-ranking made them differ: images × texts, or texts ×
    /// images as LAVIS has it
    #[arg(long, value_name = "FILE.npy")]
    scores_t2i: Option<PathBuf>,
    /// What the rows of --scores-t2i are, where its shape does not tell (texts: LAVIS's matrix)
    #[arg(long, value_name = "images|texts", requires = "scores_t2i")]
    t2i_rows: Option<Rows>,
    /// Which text belongs to which image
    #[arg(long, value_name = "FILE")]
    annotations: PathBuf,
    #[command(flatten)]
    split: SplitArgs,
}

/// What a row of a matrix of scores is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Rows {
    Images,
    Texts,
}

/// Scores; `false` if results were missing, empty or for unknown items.
pub fn run(command: &Command, output: &Output) -> Result<bool, Error> {
    match command {
        Command::Caption(args) => caption(args, output),
        Command::Vqa(args) => vqa(args, output),
        Command::Retrieval(args) => retrieval(args, output),
    }
}

fn caption(args: &CaptionArgs, output: &Output) -> Result<bool, Error> {
    let results = Results::read_captions(&args.results)?;
    let data = CaptionData::read(&args.annotations, args.split.name())?;
    args.split.warn_if_idle(&args.annotations, output);
    let results = results.named_in(&data.images)?;
    if data.texts.is_empty() {
        let problem = "no caption in it to judge by; pass the annotations, not the images alone";
        return Err(EvalError::Empty {
            file: data.file,
            problem: problem.into(),
        }
        .into());
    }
    let joined = results.join(data.images.iter().map(|image| &image.id), &data.file);
    let all_well = report(&joined, &args.incomplete, output);
    let (mut ids, mut pairs) = (Vec::new(), Vec::new());
    for ((image, references), text) in data.images.iter().zip(data.captions()).zip(&joined.texts) {
        let Some(candidate) = *text else { continue };
        if references.is_empty() {
            return Err(no_captions(&data.file, &image.id).into());
        }
        ids.push(&image.id);
        pairs.push(CaptionPair {
            candidate,
            references,
        });
    }
    if pairs.is_empty() {
        return Err(nothing(&args.results, &args.annotations).into());
    }
    let scores = score_captions(&pairs);
    if let Some(file) = &args.incomplete.details {
        let lines = ids.iter().zip(&scores.images).map(|(id, image)| {
            let scores = caption_json(image.bleu, image.cider, image.rouge_l);
            with_id("image_id", id.to_json(), scores)
        });
        write_lines(file, lines)?;
    }
    print(&caption_scores_json(&scores), 4, output);
    Ok(all_well)
}

fn vqa(args: &VqaArgs, output: &Output) -> Result<bool, Error> {
    let results = Results::read_answers(&args.results)?;
    let mut data = QuestionData::read(&args.annotations)?;
    if let Some(questions) = &args.questions {
        data = data.with_questions(questions)?;
    }
    let joined = results.join(data.questions.iter().map(|(id, _)| id), &data.file);
    let all_well = report(&joined, &args.incomplete, output);
    let (mut ids, mut answers) = (Vec::new(), Vec::new());
    for ((id, question), text) in data.questions.iter().zip(&joined.texts) {
        let Some(truth) = &question.truth else {
            return Err(EvalError::Empty {
                file: data.file.clone(),
                problem: format!(
                    "question_id {id} has no answer; pass the annotations, not the questions alone"
                ),
            }
            .into());
        };
        if let Some(text) = *text {
            ids.push(id);
            answers.push((text, truth));
        }
    }
    if answers.is_empty() {
        return Err(nothing(&args.results, &args.annotations).into());
    }
    let scores = score_answers(
        answers,
        data.benchmark,
        rules_for(args.rules, data.benchmark, output),
    );
    if let Some(file) = &args.incomplete.details {
        let lines = ids.iter().zip(&scores.questions).map(|(id, &accuracy)| {
            let accuracy = Map::from_iter([("accuracy".to_owned(), percent(accuracy))]);
            with_id("question_id", id.to_json(), accuracy)
        });
        write_lines(file, lines)?;
    }
    print(&vqa_scores_json(&scores), 2, output);
    Ok(all_well)
}

fn retrieval(args: &RetrievalArgs, output: &Output) -> Result<bool, Error> {
    let image_of_text = read_image_of_text(&args.annotations, args.split.name())?;
    args.split.warn_if_idle(&args.annotations, output);
    let images = image_of_text.iter().max().map_or(0, |last| last + 1);
    let size = (images, image_of_text.len());
    let scores = matrix(&args.scores, size, Some(Rows::Images), &args.annotations)?;
    let by_text = args.scores_t2i.as_ref();
    let by_text = by_text
        .map(|file| matrix(file, size, args.t2i_rows, &args.annotations))
        .transpose()?;
    let with_text: HashSet<usize> = image_of_text.iter().copied().collect();
    if let Some(image) = (0..images).find(|image| !with_text.contains(image)) {
        return Err(EvalError::item(
            &args.annotations,
            format!("image {image} (counted from 0)"),
            "has no text to be found by; take the image out, or get the file anew",
        )
        .into());
    }
    let Some(scores) = score_retrieval(&scores, by_text.as_ref(), &image_of_text) else {
        return Err(EvalError::Empty {
            file: args.annotations.clone(),
            problem: "no text in it; check that it is the right file".into(),
        }
        .into());
    };
    print(&retrieval_scores_json(&scores), 2, output);
    Ok(true)
}

/// Reads scores of `size` (images, texts), whose `rows` are known, or told by their shape.
fn matrix(
    file: &Path,
    size: (usize, usize),
    rows: Option<Rows>,
    annotations: &Path,
) -> Result<ScoreMatrix, EvalError> {
    let matrix = ScoreMatrix::read(file)?;
    let found = (matrix.images(), matrix.texts());
    let by_texts = (size.1, size.0);
    let scores = format!("{} × {} scores", found.0, found.1);
    match rows {
        None if found == size && found == by_texts => Err(EvalError::item(
            file,
            scores,
            "do not tell whether their rows are images or texts; pass --t2i-rows images, or --t2i-rows texts if the \
             matrix is LAVIS's",
        )),
        None | Some(Rows::Images) if found == size => Ok(matrix),
        None | Some(Rows::Texts) if found == by_texts => Ok(matrix.transposed()),
        _ => Err(EvalError::item(
            file,
            scores,
            format!(
                "{} do not go with {}, which has {} images and {} texts; pass the files of the same split",
                match rows {
                    Some(Rows::Texts) => "with texts as rows",
                    Some(Rows::Images) => "with images as rows",
                    None => "",
                },
                annotations.display(),
                size.0,
                size.1
            ),
        )),
    }
}

/// Names what is wrong with the results; `false` if that counts as a failure. What is allowed to be
/// incomplete is a warning.
fn report(joined: &Joined<'_>, args: &IncompleteArgs, output: &Output) -> bool {
    let mut failures: Vec<&EvalError> = joined.unknown.iter().collect();
    let mut allowed: Vec<&EvalError> = Vec::new();
    match args.allow_incomplete {
        true => allowed.extend(&joined.incomplete),
        false => failures.extend(&joined.incomplete),
    }
    name_each(&failures, &|line| output.error(&line));
    name_each(&allowed, &|line| output.warning(line));
    failures.is_empty()
}

fn no_captions(file: &Path, id: &crate::eval::Id) -> EvalError {
    EvalError::item(
        file,
        format!("image {id}"),
        "has no caption to be judged by; get the file anew, or take the image out",
    )
}

fn nothing(results: &Path, annotations: &Path) -> EvalError {
    EvalError::Empty {
        file: results.into(),
        problem: format!(
            "nothing in it is for {}; pass the files of the same split",
            annotations.display()
        ),
    }
}

fn write_lines(file: &Path, lines: impl Iterator<Item = Value>) -> Result<(), EvalError> {
    let text: String = lines.map(|line| format!("{line}\n")).collect();
    std::fs::write(file, text).map_err(EvalError::write(file))
}

fn with_id(name: &str, id: Value, mut scores: Map<String, Value>) -> Value {
    scores.insert(name.to_owned(), id);
    Value::Object(scores)
}

//! `blip2-wgpu eval caption`.

use std::sync::Arc;

use serde_json::{Map, Value};

use crate::Error;
use crate::eval::{
    CaptionData, CaptionPair, Case, EvalError, Figure, ImageFolder, Predictions, ResultFields,
    score_captions,
};
use crate::task::{Ask, CaptionOptions, check_caption_options};

use super::args::{CaptionArgs, DataArgs, PartArgs, TruthArgs};
use super::finish::{
    Measured, Outcome, finish, report_empty, report_missing, report_unknown, thumbnail_of,
};
use super::predict::{Job, run_jobs};
use super::{LIMIT, make_folder, settings, with_limit};
use crate::cli::shared::Shared;
use crate::cli::shared::output::Output;
use crate::cli::shared::scores::{caption_scores_json, name_each};

/// mmpretrain's figures for blip2-opt-2.7b, zero-shot, on COCO's Karpathy split.
const PUBLISHED: [(&str, f64); 2] = [("Bleu_4", 0.3290), ("CIDEr", 1.1110)];
const PUBLISHED_FOR: &str = "COCO captions, blip2-opt-2.7b zero-shot, as mmpretrain reports them";

/// Captions what is not captioned yet, then measures; `false` if any image failed.
pub async fn run(shared: &Shared, args: &CaptionArgs, output: &Output) -> Result<Outcome, Error> {
    // Wrong usage comes before anything a file could fail with.
    let checkpoint = shared.checkpoint()?;
    shared.gpu_options()?;
    let preset = args.generation.preset;
    let image_size = args.image_size.or(preset.caption_image_size());
    let options = CaptionOptions {
        prompt: args.generation.prompt.clone(),
        preset,
        generation: args.generation.overrides(),
        batch_size: args.generation.batch_size.0,
    };
    if let Some(path) = checkpoint {
        check_caption_options(path, &options)?;
    }
    let data = CaptionData::read(&args.truth.annotations, &args.truth.split)?;
    let mut folder = ImageFolder::open(&args.data.images)?;
    make_folder(&args.data.out)?;
    let settings = settings(
        "caption",
        shared,
        &args.data.images,
        &[("annotations", &args.truth.annotations)],
        image_size,
        with_limit(args.generation.given(), args.part.limit),
    )?;
    let file = args.part.file(&args.data.out, "predictions", "jsonl");
    let mut predictions = Predictions::open(&file, ResultFields::CAPTION, &settings, Some(LIMIT))?;

    let ask = Ask::Caption(Arc::new(options.clone()));
    let open = (0..data.images.len())
        .filter(|&index| args.part.has(index) && predictions.get(&data.images[index].id).is_none());
    let (jobs, mut all_well) = jobs(&data, open, &mut folder, &ask, output);
    if !jobs.is_empty() {
        let mut model = shared
            .open(image_size, args.generation.work(), output)
            .await?;
        model.check_caption_options(&options)?;
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
        part: &args.part,
        data: &data,
    };
    Ok(truth
        .measure(&mut folder, &settings, &predictions, output)?
        .and(all_well))
}

/// The jobs of the images `open`, and whether each of them was found.
fn jobs(
    data: &CaptionData,
    open: impl Iterator<Item = usize>,
    folder: &mut ImageFolder,
    ask: &Ask,
    output: &Output,
) -> (Vec<Job>, bool) {
    let mut jobs = Vec::new();
    let mut all_well = true;
    for image in open.map(|index| &data.images[index]) {
        match folder.find(&image.paths, &image.id, &data.file) {
            Ok(file) => jobs.push(Job {
                id: image.id.clone(),
                image: file,
                ask: ask.clone(),
            }),
            Err(error) => {
                output.error(&error);
                all_well = false;
            }
        }
    }
    (jobs, all_well)
}

/// A dataset and what of it to measure.
struct Truth<'a> {
    args: &'a DataArgs,
    part: &'a PartArgs,
    data: &'a CaptionData,
}

/// Measures joined parts; `false` if an image has no caption.
pub fn finish_merged(
    args: &DataArgs,
    truth: &TruthArgs,
    settings: &Map<String, Value>,
    predictions: &Predictions,
    output: &Output,
) -> Result<Outcome, Error> {
    let data = CaptionData::read(&truth.annotations, &truth.split)?;
    let mut folder = ImageFolder::open(&args.images)?;
    let part = PartArgs::whole(settings);
    let ids = data.images.iter().map(|image| &image.id).enumerate();
    let missing = ids
        .filter(|(index, id)| part.has(*index) && predictions.get(id).is_none())
        .map(|(_, id)| id);
    let complete = report_missing(missing, &data.file, output);
    let truth = Truth {
        args,
        part: &part,
        data: &data,
    };
    Ok(truth
        .measure(&mut folder, settings, predictions, output)?
        .and(complete))
}

impl Truth<'_> {
    /// Scores what is predicted of the part, and writes and prints it.
    fn measure(
        &self,
        folder: &mut ImageFolder,
        settings: &Map<String, Value>,
        predictions: &Predictions,
        output: &Output,
    ) -> Result<Outcome, Error> {
        let Self { args, part, data } = self;
        let captions = data.captions();
        let mut said = Vec::new();
        let (mut indices, mut pairs, mut unjudged) = (Vec::new(), Vec::new(), Vec::new());
        for (index, image) in data.images.iter().enumerate() {
            let text = predictions.get(&image.id).and_then(Value::as_str);
            let (true, Some(candidate)) = (part.has(index), text) else {
                continue;
            };
            said.push((&image.id, candidate));
            if captions[index].is_empty() {
                unjudged.push(EvalError::Item {
                    file: data.file.clone(),
                    item: format!("image {}", image.id),
                    problem: "has no caption to be judged by; the metrics leave it out".into(),
                });
                continue;
            }
            indices.push(index);
            pairs.push(CaptionPair {
                candidate,
                references: captions[index].clone(),
            });
        }
        report_empty(predictions, said.iter().copied(), output);
        // A test split has no captions at all: there is nothing to measure, but something to hand in.
        if !data.texts.is_empty() {
            name_each(&unjudged, &|line| output.warning(line));
        }
        let ids = data.images.iter().map(|image| &image.id);
        let all_known = report_unknown(predictions, ids, &data.file, output);
        let scores = score_captions(&pairs);
        let mut order: Vec<usize> = (0..pairs.len()).collect();
        order.sort_by(|&a, &b| scores.images[a].cider.total_cmp(&scores.images[b].cider));
        let cases = order.iter().take(args.report_cases).map(|&place| {
            let cider = scores.images[place].cider;
            case(data, indices[place], &pairs[place], cider, folder)
        });
        let cases = cases.collect();
        let json = match pairs.is_empty() {
            false => caption_scores_json(&scores),
            true => Map::new(),
        };
        let measured = Measured {
            title: "Captions".into(),
            dataset: data.file.clone(),
            items: said.len(),
            wanted: part.count(data.images.len()),
            figures: json.iter().map(figure).collect(),
            published_for: PUBLISHED_FOR,
            cases,
            official: predictions.official(ResultFields::CAPTION, said.iter().map(|&(id, _)| id)),
            decimals: 4,
            metrics: json,
        };
        Ok(finish(&args.out, part, settings, measured, output)?.and(all_known))
    }
}

/// A picture of the report.
fn case(
    data: &CaptionData,
    index: usize,
    pair: &CaptionPair<&str>,
    cider: f64,
    folder: &mut ImageFolder,
) -> Case {
    let image = &data.images[index];
    let file = folder.find(&image.paths, &image.id, &data.file).ok();
    let truth = pair.references.iter().map(|&text| text.to_owned());
    Case {
        thumbnail: file.and_then(|file| thumbnail_of(&file)),
        name: format!("image {}", image.id),
        question: None,
        prediction: pair.candidate.to_owned(),
        truth: truth.collect(),
        score: format!("CIDEr {cider:.3}"),
    }
}

/// A metric beside the published one.
fn figure((name, value): (&String, &Value)) -> Figure {
    let published = PUBLISHED.iter().find(|(published, _)| published == name);
    Figure {
        name: name.clone(),
        value: format!("{:.4}", value.as_f64().unwrap_or(f64::NAN)),
        published: published.map(|(_, value)| format!("{value:.4}")),
    }
}

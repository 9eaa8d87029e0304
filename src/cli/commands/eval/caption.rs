//! `blip2-wgpu eval caption`.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::Error;
use crate::cli::shared::Shared;
use crate::cli::shared::output::Output;
use crate::cli::shared::scores::caption_scores_json;
use crate::eval::{CaptionData, CaptionPair, EvalError, Id, score_captions};
use crate::task::{Ask, check_caption_options};

use super::args::{PredictArgs, TruthArgs};
use super::evaluation::{Dataset, Evaluation, Job, Measured, Outcome, owned};
use super::predictions::ResultFields;
use super::report::{Figure, ReportItem};

/// mmpretrain's figures for blip2-opt-2.7b, zero-shot, on COCO's Karpathy split.
const PUBLISHED: [(&str, f64); 2] = [("Bleu_4", 0.3290), ("CIDEr", 1.1110)];
const PUBLISHED_FOR: &str = "COCO captions, blip2-opt-2.7b zero-shot, as mmpretrain reports them";

/// Captions what is not captioned yet, then measures.
pub async fn run(
    shared: &Shared,
    args: &PredictArgs<TruthArgs>,
    output: &Output,
) -> Result<Outcome, Error> {
    let checkpoint = shared.check()?;
    let generation = &args.generation;
    let image_size = args.image_size.or(generation.preset.caption_image_size());
    let options = Arc::new(generation.caption_options());
    if let Some(path) = checkpoint {
        check_caption_options(&shared.parts.open(path)?, &options)?;
    }
    let data = CaptionData::read(&args.truth.annotations, args.truth.split.name())?;
    args.truth
        .split
        .warn_if_idle(&args.truth.annotations, output);
    let mut evaluation = Evaluation::open::<CaptionData>(
        shared,
        (&args.data, args.part),
        &[("annotations", Some(&args.truth.annotations))],
        image_size,
        args.part.with_limit(generation.given()),
        output,
    )?;
    evaluation.folder.note(paths_of(&data));
    let mut jobs = Vec::new();
    let mut all_well = true;
    for (index, image) in data.images.iter().enumerate() {
        if !evaluation.lacks(index, &image.id) {
            continue;
        }
        match evaluation.folder.find(&image.paths, &image.id, &data.file) {
            Ok(file) => jobs.push(Job {
                id: image.id.clone(),
                image: file,
                ask: Ask::Caption(Arc::clone(&options)),
            }),
            Err(error) => all_well = output.fail(&error),
        }
    }
    all_well &= evaluation
        .predict(shared, generation, image_size, &jobs)
        .await?;
    Ok(evaluation.finish(&data)?.and(all_well))
}

impl Dataset for CaptionData {
    type Truth = TruthArgs;
    const TASK: &'static str = "caption";
    const FIELDS: ResultFields = ResultFields::CAPTION;

    fn read(truth: &TruthArgs, _: Option<usize>) -> Result<Self, Error> {
        Ok(Self::read(&truth.annotations, truth.split.name())?)
    }

    fn file(&self) -> &Path {
        &self.file
    }

    fn ids(&self) -> Vec<&Id> {
        self.images.iter().map(|image| &image.id).collect()
    }

    fn measure(&self, evaluation: &Evaluation<'_>) -> Measured {
        let captions = self.captions();
        let mut said = Vec::new();
        let (mut indices, mut pairs, mut unjudged) = (Vec::new(), Vec::new(), Vec::new());
        for (index, image) in self.images.iter().enumerate() {
            let Some(candidate) = evaluation.text(index, &image.id) else {
                continue;
            };
            said.push((&image.id, candidate));
            if captions[index].is_empty() {
                unjudged.push(EvalError::item(
                    &self.file,
                    format!("image {}", image.id),
                    "has no caption to be judged by; the metrics leave it out",
                ));
                continue;
            }
            indices.push(index);
            pairs.push(CaptionPair {
                candidate,
                references: captions[index].clone(),
            });
        }
        evaluation.report_empty(said.iter().copied());
        // A test split has no captions at all: there is nothing to measure, but something to hand
        // in.
        if !self.texts.is_empty() {
            evaluation.report_unjudged(&unjudged);
        }
        let all_known = evaluation.report_unknown(self);
        let scores = score_captions(&pairs);
        let cider = |place: usize| scores.images[place].cider;
        let mut order: Vec<usize> = (0..pairs.len()).collect();
        order.sort_by(|&a, &b| cider(a).total_cmp(&cider(b)));
        let shown = order.iter().take(evaluation.args.report_cases);
        let shown = shown.map(|&place| ReportItem {
            prediction: pairs[place].candidate.to_owned(),
            truth: owned(&pairs[place].references),
            score: format!("CIDEr {:.3}", cider(place)),
            ..evaluation.report_item(self, indices[place])
        });
        let shown = shown.collect();
        let metrics = match pairs.is_empty() {
            false => caption_scores_json(&scores),
            true => Map::new(),
        };
        let ids = said.iter().map(|&(id, _)| id);
        Measured {
            title: "Captions",
            items: said.len(),
            figures: metrics.iter().map(figure).collect(),
            published_for: PUBLISHED_FOR,
            shown,
            official: evaluation.predictions.official(Self::FIELDS, ids),
            decimals: 4,
            metrics,
            all_known,
        }
    }
}

/// The paths of each image.
pub fn paths_of(data: &CaptionData) -> impl Iterator<Item = &[String]> {
    data.images.iter().map(|image| image.paths.as_slice())
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

//! `blip2-wgpu eval caption`.

use std::path::PathBuf;

use serde_json::{Map, Value};

use crate::Error;
use crate::eval::{
    CaptionData, CaptionPair, Case, Figure, Id, ImageFolder, Predictions, ResultFields,
    score_captions,
};
use crate::gpu::GpuError;
use crate::image::{DecodePolicy, Rgb8Image, decode_file};
use crate::task::{Blip2, CaptionOptions, check_caption_options};

use super::super::score::caption_scores_json;
use super::finish::{Measured, finish};
use super::{CaptionArgs, DataArgs, PartArgs, make_folder, settings};
use crate::cli::Shared;
use crate::cli::output::Output;

/// Images captioned between two writes to the disk, unless --batch-size says otherwise.
const BATCH: usize = 8;

/// mmpretrain's figures for blip2-opt-2.7b, zero-shot, on COCO's Karpathy split.
const PUBLISHED: [(&str, f64); 2] = [("Bleu_4", 0.3290), ("CIDEr", 1.1110)];
const PUBLISHED_FOR: &str = "COCO captions, blip2-opt-2.7b zero-shot, as mmpretrain reports them";

/// Captions what is not captioned yet, then measures; `false` if any image failed.
pub(super) async fn run(
    shared: &Shared,
    args: &CaptionArgs,
    output: &Output,
) -> Result<bool, Error> {
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
    let data = CaptionData::read(&args.data.annotations, &args.data.split)?;
    let mut folder = ImageFolder::open(&args.data.images)?;
    make_folder(&args.data.out)?;
    let settings = settings("caption", shared, &args.data, &args.generation, image_size);
    let file = args.part.file(&args.data.out, "predictions", "jsonl");
    let mut predictions = Predictions::open(&file, ResultFields::CAPTION, &settings)?;

    let mut all_well = true;
    let mut pending: Vec<(Id, PathBuf)> = Vec::new();
    for (index, image) in data.images.iter().enumerate() {
        if !args.part.has(index) || predictions.get(&image.id).is_some() {
            continue;
        }
        match folder.find(&image.paths, &image.id, &data.file) {
            Ok(file) => pending.push((image.id.clone(), file)),
            Err(error) => {
                output.error(&error);
                all_well = false;
            }
        }
    }
    if !pending.is_empty() {
        let mut model = shared.open(image_size, output).await?;
        model.check_caption_options(&options)?;
        let bar = output.items(pending.len());
        for batch in pending.chunks(options.batch_size.unwrap_or(BATCH)) {
            let (ids, images) = decode_batch(batch, preset.decode_policy(), output);
            all_well &= ids.len() == batch.len();
            let captions = caption_batch(&mut model, &ids, &images, &options, output).await?;
            all_well &= captions.len() == ids.len();
            predictions.add(captions)?;
            bar.inc(batch.len() as u64);
        }
        bar.finish_and_clear();
        model.gpu().save_pipelines();
    }
    Ok(measure(
        &args.data,
        &args.part,
        &data,
        &mut folder,
        &settings,
        &predictions,
        output,
    )? && all_well)
}

/// Measures joined parts; `false` if an image has no caption.
pub(super) fn finish_merged(
    args: &DataArgs,
    settings: &Map<String, Value>,
    predictions: &Predictions,
    output: &Output,
) -> Result<bool, Error> {
    let data = CaptionData::read(&args.annotations, &args.split)?;
    let mut folder = ImageFolder::open(&args.images)?;
    let missing: Vec<_> = data
        .images
        .iter()
        .filter(|image| predictions.get(&image.id).is_none())
        .collect();
    if let Some(image) = missing.first() {
        output.error(&format!(
            "{}: image {} has no caption in any part, nor have {} others; they are left out",
            args.annotations.display(),
            image.id,
            missing.len() - 1
        ));
    }
    let part = PartArgs {
        limit: None,
        shard: None,
    };
    Ok(measure(
        args,
        &part,
        &data,
        &mut folder,
        settings,
        predictions,
        output,
    )? && missing.is_empty())
}

/// The images of a batch that can be read; each other one is reported.
fn decode_batch(
    batch: &[(Id, PathBuf)],
    policy: DecodePolicy,
    output: &Output,
) -> (Vec<Id>, Vec<Rgb8Image>) {
    let decoded = batch
        .iter()
        .filter_map(|(id, file)| match decode_file(file, policy) {
            Ok(image) => Some((id.clone(), image)),
            Err(error) => {
                output.error(&format!("image {id}: {error}"));
                None
            }
        });
    decoded.unzip()
}

/// Captions a batch; where it fails, each image by itself, so that one image's failure is its own.
async fn caption_batch(
    model: &mut Blip2,
    ids: &[Id],
    images: &[Rgb8Image],
    options: &CaptionOptions,
    output: &Output,
) -> Result<Vec<(Id, Value)>, Error> {
    match model.caption(images, options).await {
        Ok(captions) => {
            let texts = captions
                .into_iter()
                .map(|caption| Value::String(caption.text));
            Ok(ids.iter().cloned().zip(texts).collect())
        }
        // Without a device there is nothing left to try.
        Err(error @ Error::Gpu(GpuError::Lost { .. })) => Err(error),
        Err(error) if images.len() == 1 => {
            output.error(&format!("image {}: {error}", ids[0]));
            Ok(Vec::new())
        }
        Err(_) => {
            let mut done = Vec::new();
            for (id, image) in ids.iter().zip(images) {
                let (id, image) = (std::slice::from_ref(id), std::slice::from_ref(image));
                done.extend(Box::pin(caption_batch(model, id, image, options, output)).await?);
            }
            Ok(done)
        }
    }
}

/// Scores what is predicted of the part, and writes and prints it.
fn measure(
    args: &DataArgs,
    part: &PartArgs,
    data: &CaptionData,
    folder: &mut ImageFolder,
    settings: &Map<String, Value>,
    predictions: &Predictions,
    output: &Output,
) -> Result<bool, Error> {
    let captions = data.captions();
    let mut indices = Vec::new();
    let mut pairs = Vec::new();
    for (index, image) in data.images.iter().enumerate() {
        let text = predictions.get(&image.id).and_then(Value::as_str);
        if let (true, Some(candidate)) = (part.has(index), text) {
            indices.push(index);
            pairs.push(CaptionPair {
                candidate,
                references: captions[index].clone(),
            });
        }
    }
    let scores = score_captions(&pairs);
    let mut order: Vec<usize> = (0..pairs.len()).collect();
    order.sort_by(|&a, &b| scores.images[a].cider.total_cmp(&scores.images[b].cider));
    let cases = order.iter().take(args.report_cases).map(|&place| {
        let image = &data.images[indices[place]];
        let file = folder.find(&image.paths, &image.id, &data.file).ok();
        Case {
            thumbnail: file.and_then(|file| super::finish::thumbnail_of(&file)),
            name: format!("image {}", image.id),
            question: None,
            prediction: pairs[place].candidate.to_owned(),
            truth: pairs[place]
                .references
                .iter()
                .map(|&text| text.to_owned())
                .collect(),
            score: format!("CIDEr {:.3}", scores.images[place].cider),
        }
    });
    let json = caption_scores_json(&scores);
    let figures = json.iter().map(|(name, value)| {
        let published = PUBLISHED.iter().find(|(published, _)| published == name);
        Figure {
            name: name.clone(),
            value: format!("{:.4}", value.as_f64().unwrap_or(f64::NAN)),
            published: published.map(|(_, value)| format!("{value:.4}")),
        }
    });
    let measured = Measured {
        title: "Captions".into(),
        items: pairs.len(),
        figures: figures.collect(),
        published_for: PUBLISHED_FOR,
        cases: cases.collect(),
        official: predictions.official(indices.iter().map(|&index| &data.images[index].id)),
        decimals: 4,
        metrics: json,
    };
    finish(&args.out, part, settings, measured, output)
}

//! `blip2-wgpu caption IMAGE…`

mod plan;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use crate::Error;
use crate::task::{
    Ask, Blip2, Caption, CaptionOptions, Item, ItemEvent, RunOptions, check_caption_options,
};

use crate::cli::shared::Shared;
use crate::cli::shared::delivery::{Delivery, Finished, Kind, Summary};
use crate::cli::shared::explain::{ExplainFile, Explainer, parse_file};
use crate::cli::shared::generation::GenerationArgs;
use crate::cli::shared::inputs::{ImageInput, expand};
use crate::cli::shared::output::{Output, digits};
use crate::cli::shared::results::{
    Columns, EarlierResults, OutArgs, ResultsError, RunRecord, Sidecars, parse_extension,
};
use plan::Plan;

/// Describes images.
///
/// Example: blip2-wgpu caption photo.jpg holiday/ --model blip2-opt-2.7b --beams 5 --json
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  blip2-wgpu caption photo.jpg holiday/ --model blip2-opt-2.7b --beams 5 --json
  blip2-wgpu caption dataset/ --out captions.jsonl    results in a file; the same command again resumes it
  blip2-wgpu caption dataset/ --sidecar               dataset/a.jpg gets its caption in dataset/a.txt

Results files: lines come in input order, an image given twice (the same path as written) has one line, and an image \
that fails has none and is tried again by the next run. Beside captions.jsonl lies captions.jsonl.run.json, what its \
lines were made with: a run with another model or other options is refused. With --out or --sidecar nothing goes to \
stdout unless --json or --stream asks for it.")]
pub struct Args {
    /// Image files, folders (with all below them), globs, or - for stdin
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<std::ffi::OsString>,
    /// Side of the images in pixels, if not the checkpoint's
    #[arg(long, value_name = "PIXELS")]
    image_size: Option<u32>,
    #[command(flatten)]
    out: OutArgs,
    /// Write each caption to a file beside its image, as trainers read them; --sidecar alone is --sidecar=txt.
    /// Files that are there stay, unless --overwrite
    #[arg(
        long,
        value_name = "EXTENSION",
        help_heading = "Results",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "txt",
        value_parser = parse_extension
    )]
    sidecar: Option<String>,
    /// Also show where the model looks, for each image and each word of its first text: a page
    /// (.html, any number of images) or a picture (.png, one image)
    #[arg(long, value_name = "FILE", value_parser = parse_file)]
    explain: Option<ExplainFile>,
    #[command(flatten)]
    generation: GenerationArgs,
}

const KIND: Kind = Kind {
    item: "image",
    items: "images",
    finished: "captioned",
};

/// Captions every image; `false` if any failed.
pub async fn run(shared: &Shared, args: &Args, output: &Output) -> Result<bool, Error> {
    // Wrong usage comes before anything a file could fail with.
    let checkpoint = shared.checkpoint()?;
    shared.gpu_options()?;
    let (inputs, errors) = expand(&args.images);
    for error in &errors {
        output.error(error);
    }
    if inputs.is_empty() {
        return Ok(false);
    }
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
    let sidecars = args
        .sidecar
        .as_ref()
        .map(|extension| Sidecars::new(extension, args.out.overwrite));
    let earlier = match args.earlier_results(shared, checkpoint) {
        Ok(earlier) => earlier,
        Err(error) => return Ok(output.fail(&error)),
    };
    let keeps = earlier.is_some() || sidecars.is_some();
    let mut summary = Summary::new(KIND);
    summary.failed = errors.len();
    let plan = if keeps {
        Plan::new(inputs, earlier.as_ref(), sidecars.as_ref(), summary)
    } else {
        Plan::all(inputs, summary)
    };
    for error in &plan.errors {
        output.error(error);
    }
    EarlierResults::announce(earlier.as_ref(), &plan.summary, plan.images.len(), output);
    if plan.images.is_empty() {
        return Ok(plan.summary.failed == 0);
    }

    let explainer = args.explain.as_ref();
    let explainer = explainer.map(|file| Explainer::create(file, plan.images.len()));
    let mut explainer = explainer.transpose()?;

    let mut model = shared
        .open(image_size, args.generation.work(), output)
        .await?;
    model.check_caption_options(&options)?;
    let results = match earlier.map(EarlierResults::begin).transpose() {
        Ok(results) => results,
        Err(error) => return Ok(output.fail(&error)),
    };
    let print = !keeps || output.json || args.generation.stream;
    let mut delivery = Delivery::new(output, plan.keeps, results, print, plan.summary);
    let options = Arc::new(options);
    let asking = Asking {
        options: &options,
        stream: args.generation.stream,
        output,
    };
    let explain = explainer.as_mut();
    let flow = caption_all(&mut model, &plan.images, &asking, &mut delivery, explain).await;
    // Whatever stopped it, what was written stays.
    let all_done = delivery.end(flow)?;
    let mut explained = true;
    if let Some(explainer) = explainer {
        let images: Vec<_> = plan.images.iter().collect();
        explained = explainer
            .explain_all(&model, &images, preset.decode_policy(), output)
            .await?;
    }
    model.gpu().save_pipelines();
    Ok(all_done && explained)
}

impl Args {
    /// The results file as earlier runs left it, if one was asked for.
    fn earlier_results(
        &self,
        shared: &Shared,
        checkpoint: Option<&std::path::Path>,
    ) -> Result<Option<EarlierResults>, ResultsError> {
        let mut fields = vec!["pred_caption", "score", "num_tokens", "tokens"];
        if self.generation.several_texts() {
            fields.push("captions");
        }
        let record = || {
            let mut options = self.generation.given();
            options.extend(shared.given());
            if let Some(size) = self.image_size {
                options.insert("--image-size".into(), size.to_string());
            }
            RunRecord::new("caption", checkpoint, options)
        };
        EarlierResults::open(&self.out, Columns::new(&["image"], &fields), record)
    }
}

/// How captions are asked for.
struct Asking<'a> {
    options: &'a Arc<CaptionOptions>,
    stream: bool,
    output: &'a Output,
}

/// Captions all images and hands over each outcome as it is known. Breaks where the delivery does.
async fn caption_all(
    model: &mut Blip2,
    images: &[ImageInput],
    asking: &Asking<'_>,
    delivery: &mut Delivery<'_>,
    mut explainer: Option<&mut Explainer>,
) -> Result<ControlFlow<()>, Error> {
    let Asking {
        options,
        stream,
        output,
    } = *asking;
    let started = Instant::now();
    let run = RunOptions {
        batch_size: if stream { Some(1) } else { options.batch_size },
        pieces: stream,
    };
    let items = images.iter().map(|image| Item {
        image: image.to_source(),
        ask: Ask::Caption(Arc::clone(options)),
    });
    let mut events = model.run(items, run);
    while let Some(event) = events.next().await {
        let (item, outcome) = match event? {
            ItemEvent::Piece { item, text } => {
                delivery.piece(item, &intro(&images[item].name), &text);
                continue;
            }
            ItemEvent::Done { item, texts } => {
                if let Some(explainer) = &mut explainer {
                    explainer.push((item, item), Ask::Caption(Arc::clone(options)), &texts);
                }
                let caption = Caption::from_texts(texts.texts);
                (item, Ok(finished(&images[item].name, &caption)))
            }
            ItemEvent::Failed { item, error } if error.names_its_image() => {
                (item, Err(error.to_string()))
            }
            ItemEvent::Failed { item, error } => {
                (item, Err(format!("{}: {error}", images[item].name)))
            }
        };
        if delivery.finished(item, outcome).is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    drop(events);
    output.detail(&format!(
        "{} images in {:.2} s; {}",
        images.len(),
        started.elapsed().as_secs_f64(),
        model.timings()
    ));
    Ok(ControlFlow::Continue(()))
}

/// What stands before a caption on its line.
fn intro(name: &str) -> String {
    format!("{name}: ")
}

/// A caption as it is shown and kept.
fn finished(name: &str, caption: &Caption) -> Finished {
    let mut record = serde_json::json!({
        "image": name,
        "pred_caption": caption.text,
        "tokens": caption.tokens,
        "score": digits(caption.score),
        "num_tokens": caption.tokens.len(),
    });
    if caption.alternatives.len() > 1 {
        record["captions"] = caption
            .alternatives
            .iter()
            .map(|text| serde_json::json!({"text": text.text, "score": digits(text.score)}))
            .collect();
    }
    let texts = caption.alternatives.iter();
    Finished {
        record,
        intro: intro(name),
        texts: texts.map(|text| text.text.clone()).collect(),
    }
}

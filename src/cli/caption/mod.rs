//! `blip2-wgpu caption IMAGE…`

mod deliver;
mod plan;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use crate::Error;
use crate::task::{
    Ask, Blip2, Caption, CaptionOptions, Item, ItemEvent, RunOptions, check_caption_options,
};

use super::Shared;
use super::explain::{ExplainFile, Explainer, parse_file};
use super::generation::GenerationArgs;
use super::inputs::expand;
use super::output::Output;
use super::results::{
    Columns, EarlierResults, OutArgs, ResultsError, RunRecord, Sidecars, parse_extension,
};
use deliver::{Delivery, FIELDS, KEY, SEVERAL};
use plan::{Plan, Todo};

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
pub(super) struct Args {
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

/// Captions every image; `false` if any failed.
pub(super) async fn run(shared: &Shared, args: &Args, output: &Output) -> Result<bool, Error> {
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
    let earlier = match args.earlier_results(checkpoint) {
        Ok(earlier) => earlier,
        Err(error) => return Ok(fail(output, &error)),
    };
    let keeps = earlier.is_some() || sidecars.is_some();
    let plan = if keeps {
        Plan::new(inputs, earlier.as_ref(), sidecars.as_ref())
    } else {
        Plan::all(inputs)
    };
    for error in &plan.errors {
        output.error(error);
    }
    for warning in earlier.iter().flat_map(EarlierResults::warnings) {
        log::warn!("{warning}");
    }
    let summary = plan.summary(errors.len());
    if plan.todo.is_empty() {
        output.note(&summary.to_string());
        return Ok(summary.failed == 0);
    }
    if plan.done > 0 {
        let (done, left) = (plan.done, plan.todo.len());
        output.note(&format!("resuming: {done} done already, {left} to go"));
    }

    let explainer = args.explain.as_ref();
    let explainer = explainer.map(|file| Explainer::create(file, plan.todo.len()));
    let mut explainer = explainer.transpose()?;

    let mut model = shared.open(image_size, output).await?;
    model.check_caption_options(&options)?;
    let results = match earlier.map(EarlierResults::begin).transpose() {
        Ok(results) => results,
        Err(error) => return Ok(fail(output, &error)),
    };
    let print = !keeps || output.json || args.generation.stream;
    let mut delivery = Delivery::new(output, &plan.todo, results, print, summary);
    let stream = args.generation.stream;
    let options = Arc::new(options);
    let flow = caption_all(
        &mut model,
        &plan.todo,
        &options,
        stream,
        &mut delivery,
        explainer.as_mut(),
    )
    .await;
    // Whatever stopped it, what was written stays.
    let ended = delivery.end();
    let mut explained = true;
    if let (Some(explainer), Ok(ControlFlow::Continue(()))) = (explainer, &flow) {
        let images: Vec<_> = plan.todo.iter().map(|todo| &todo.input).collect();
        let policy = preset.decode_policy();
        explained = explainer
            .explain_all(&model, &images, policy, output)
            .await?;
    }
    model.gpu().save_pipelines();
    let flow = flow?;
    let summary = match ended {
        Ok(summary) => summary,
        Err(error) => return Ok(fail(output, &error)),
    };
    if keeps {
        output.note(&summary.to_string());
    }
    Ok(summary.failed == 0 && flow.is_continue() && explained)
}

impl Args {
    /// The results file as earlier runs left it, if one was asked for.
    fn earlier_results(
        &self,
        checkpoint: Option<&std::path::Path>,
    ) -> Result<Option<EarlierResults>, ResultsError> {
        let several = self
            .generation
            .num_captions()
            .is_some_and(|texts| texts > 1);
        let more = [&FIELDS[..], if several { &[SEVERAL] } else { &[] }].concat();
        let record = || {
            let mut options = self.generation.given();
            if let Some(size) = self.image_size {
                options.insert("--image-size".into(), size.to_string());
            }
            RunRecord::new("caption", checkpoint, options)
        };
        EarlierResults::open(&self.out, Columns::new(&KEY, &more), record)
    }
}

/// Reports what keeps the command from going on; `false` for `run` to return.
fn fail(output: &Output, error: &ResultsError) -> bool {
    output.error(error);
    false
}

/// Captions all images and hands over each outcome as it is known. Breaks where the delivery does.
async fn caption_all(
    model: &mut Blip2,
    todo: &[Todo],
    options: &Arc<CaptionOptions>,
    stream: bool,
    delivery: &mut Delivery<'_>,
    mut explainer: Option<&mut Explainer>,
) -> Result<ControlFlow<()>, Error> {
    let started = Instant::now();
    let run = RunOptions {
        batch_size: if stream { Some(1) } else { options.batch_size },
        pieces: stream,
    };
    let items = todo.iter().map(|todo| Item {
        image: todo.input.to_source(),
        ask: Ask::Caption(Arc::clone(options)),
    });
    let mut events = model.run(items, run);
    while let Some(event) = events.next().await {
        let (image, outcome) = match event? {
            ItemEvent::Piece { item, text } => {
                delivery.piece(item, &text);
                continue;
            }
            ItemEvent::Done { item, texts } => {
                if let Some(explainer) = &mut explainer {
                    explainer.push((item, item), Ask::Caption(Arc::clone(options)), &texts);
                }
                (item, Ok(Caption::from_texts(texts.texts)))
            }
            ItemEvent::Failed { item, error } if error.names_its_image() => {
                (item, Err(error.to_string()))
            }
            ItemEvent::Failed { item, error } => {
                (item, Err(format!("{}: {error}", todo[item].input.name)))
            }
        };
        if delivery.finished(image, outcome).is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    drop(events);
    delivery.output.detail(&format!(
        "{} images in {:.2} s; {}",
        todo.len(),
        started.elapsed().as_secs_f64(),
        model.timings()
    ));
    Ok(ControlFlow::Continue(()))
}

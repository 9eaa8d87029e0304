//! `blip2-wgpu caption IMAGE…`

mod deliver;
mod plan;

use std::ops::ControlFlow;

use crate::Error;
use crate::gpu::GpuError;
use crate::image::{ImageError, Rgb8Image, decode, decode_file};
use crate::task::{Blip2, Caption, CaptionOptions, check_caption_options};

use super::Shared;
use super::generation::GenerationArgs;
use super::inputs::{ImageInput, ImageSource, expand};
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

    let mut model = shared.open(image_size, output).await?;
    model.check_caption_options(&options)?;
    let results = match earlier.map(EarlierResults::begin).transpose() {
        Ok(results) => results,
        Err(error) => return Ok(fail(output, &error)),
    };
    let print = !keeps || output.json || args.generation.stream;
    let mut delivery = Delivery::new(output, &plan.todo, results, print, summary);
    let stream = args.generation.stream;
    let flow = caption_all(&mut model, &plan.todo, &options, stream, &mut delivery).await;
    // Whatever stopped it, what was written stays.
    let ended = delivery.end();
    model.gpu().save_pipelines();
    let flow = flow?;
    let summary = match ended {
        Ok(summary) => summary,
        Err(error) => return Ok(fail(output, &error)),
    };
    if keeps {
        output.note(&summary.to_string());
    }
    Ok(summary.failed == 0 && flow.is_continue())
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

/// Captions all images and hands over each outcome as it is known: the one place that knows how images become
/// captions. Breaks where the delivery does.
async fn caption_all(
    model: &mut Blip2,
    todo: &[Todo],
    options: &CaptionOptions,
    stream: bool,
    delivery: &mut Delivery<'_>,
) -> Result<ControlFlow<()>, Error> {
    let batch_size = if stream {
        1
    } else {
        model.caption_batch_size(options)
    };
    for first in (0..todo.len()).step_by(batch_size) {
        let batch = first..(first + batch_size).min(todo.len());
        let mut numbers = Vec::new();
        let mut images = Vec::new();
        for number in batch {
            match read(&todo[number].input, options) {
                Ok(image) => {
                    numbers.push(number);
                    images.push(image);
                }
                Err(error) => {
                    if delivery.finished(number, Err(error.to_string())).is_break() {
                        return Ok(ControlFlow::Break(()));
                    }
                }
            }
        }
        let started = std::time::Instant::now();
        let outcomes = caption_batch(model, &images, options, &mut |image, piece| {
            if stream {
                delivery.piece(numbers[image], piece);
            }
        })
        .await?;
        delivery.output.detail(&format!(
            "{} images in {:.2} s; {}",
            images.len(),
            started.elapsed().as_secs_f64(),
            model.timings()
        ));
        for (number, outcome) in numbers.into_iter().zip(outcomes) {
            let name = &todo[number].input.name;
            let outcome = outcome.map_err(|error| format!("{name}: {error}"));
            if delivery.finished(number, outcome).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// Captions `images`; where they fail together, each by itself, so that one image's failure is its own.
async fn caption_batch(
    model: &mut Blip2,
    images: &[Rgb8Image],
    options: &CaptionOptions,
    on_text: &mut (dyn FnMut(usize, &str) + Send),
) -> Result<Vec<Result<Caption, Error>>, Error> {
    match model.caption_streaming(images, options, on_text).await {
        Ok(captions) => Ok(captions.into_iter().map(Ok).collect()),
        // Without a device there is nothing left to try.
        Err(error @ Error::Gpu(GpuError::Lost { .. })) => Err(error),
        Err(error) if images.len() == 1 => Ok(vec![Err(error)]),
        Err(_) => {
            let mut outcomes = Vec::with_capacity(images.len());
            for image in images {
                let image = std::slice::from_ref(image);
                outcomes
                    .append(&mut Box::pin(caption_batch(model, image, options, on_text)).await?);
            }
            Ok(outcomes)
        }
    }
}

/// An image's pixels.
fn read(input: &ImageInput, options: &CaptionOptions) -> Result<Rgb8Image, ImageError> {
    let policy = options.preset.decode_policy();
    match &input.source {
        ImageSource::Path(path) => decode_file(path, policy),
        ImageSource::Bytes(bytes) => decode(bytes, &input.name, policy),
    }
}

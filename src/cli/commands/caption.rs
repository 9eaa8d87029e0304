//! `blip2-wgpu caption IMAGE…`

use std::sync::Arc;

use crate::Error;
use crate::cli::shared::Shared;
use crate::cli::shared::delivery::CAPTIONS;
use crate::cli::shared::inputs::images_of;
use crate::cli::shared::output::Output;
use crate::cli::shared::results::{Sidecars, parse_extension};
use crate::cli::shared::run::{Run, RunArgs};
use crate::task::{Ask, check_caption_options};

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
    #[command(flatten)]
    run: RunArgs,
    /// Write each caption to a file beside its image, as trainers read them; --sidecar alone is
    /// --sidecar=txt. Files that are there stay, unless --overwrite
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
}

impl Args {
    /// Whether captions go nowhere but to stdout.
    pub fn keeps_nothing(&self) -> bool {
        self.run.out.out.is_none() && self.sidecar.is_none()
    }
}

/// Captions every image; `false` if any failed.
pub async fn run(shared: &Shared, args: &Args, output: &Output) -> Result<bool, Error> {
    let checkpoint = shared.check()?;
    let (images, failed) = images_of(&args.images, output);
    if images.is_empty() {
        return Ok(false);
    }
    let generation = &args.run.generation;
    let options = Arc::new(generation.caption_options());
    if let Some(path) = checkpoint {
        check_caption_options(&shared.parts.open(path)?, &options)?;
    }
    let sidecar = args.sidecar.as_ref();
    let run = Run {
        shared,
        output,
        args: &args.run,
        kind: &CAPTIONS,
        image_size: args
            .run
            .image_size
            .or(generation.preset.caption_image_size()),
        items: (0..images.len())
            .map(|image| (image, Ask::Caption(Arc::clone(&options))))
            .collect(),
        images,
        failed,
        sidecars: sidecar.map(|extension| Sidecars::new(extension, args.run.out.overwrite)),
    };
    run.run(checkpoint).await
}

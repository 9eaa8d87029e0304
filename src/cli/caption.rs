//! `blip2-wgpu caption IMAGE…`

use crate::Error;
use crate::gpu::GpuError;
use crate::image::{Rgb8Image, decode, decode_file};
use crate::task::{Blip2, Caption, CaptionOptions, WrittenText, check_caption_options};

use super::Shared;
use super::explain::{ExplainFile, Page, Part, Report, parse_file};
use super::generation::GenerationArgs;
use super::inputs::{ImageInput, ImageSource, expand};
use super::output::Output;

/// Describes images.
///
/// Example: blip2-wgpu caption photo.jpg holiday/ --model blip2-opt-2.7b --beams 5 --json
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: blip2-wgpu caption photo.jpg holiday/ --model blip2-opt-2.7b --beams 5 --json"
)]
pub(super) struct Args {
    /// Image files, folders (with all below them), globs, or - for stdin
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<std::ffi::OsString>,
    /// Side of the images in pixels, if not the checkpoint's
    #[arg(long, value_name = "PIXELS")]
    image_size: Option<u32>,
    #[command(flatten)]
    generation: GenerationArgs,
    /// Also show where the model looks, for each image and each word of its first caption: a page
    /// (.html, any number of images) or a picture (.png, one image)
    #[arg(long, value_name = "FILE", value_parser = parse_file)]
    explain: Option<ExplainFile>,
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
    let report = args.explain.as_ref();
    let report = report.map(|file| Report::create(file, inputs.len()));
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
    let mut model = shared.open(image_size, output).await?;
    model.check_caption_options(&options)?;

    let mut all_done = errors.is_empty();
    let bar = output.items(inputs.len());
    let batch_size = if args.generation.stream {
        1
    } else {
        model.caption_batch_size(&options)
    };
    let mut captioner = Captioner {
        model: &mut model,
        options: &options,
        stream: args.generation.stream,
        report: report.transpose()?,
        output,
    };
    for inputs in inputs.chunks(batch_size) {
        let (names, images) = decode_all(inputs, &options, output);
        all_done &= images.len() == inputs.len();
        all_done &= captioner.batch(&names, &images).await?;
        bar.inc(inputs.len() as u64);
    }
    bar.finish_and_clear();
    if let Some(report) = captioner.report {
        report.finish()?;
    }
    model.gpu().save_pipelines();
    Ok(all_done)
}

/// The images that can be read; each other one is reported.
fn decode_all(
    inputs: &[ImageInput],
    options: &CaptionOptions,
    output: &Output,
) -> (Vec<String>, Vec<Rgb8Image>) {
    let policy = options.preset.decode_policy();
    let mut names = Vec::new();
    let mut images = Vec::new();
    for input in inputs {
        let decoded = match &input.source {
            ImageSource::Path(path) => decode_file(path, policy),
            ImageSource::Bytes(bytes) => decode(bytes, &input.name, policy),
        };
        match decoded {
            Ok(image) => {
                names.push(input.name.clone());
                images.push(image);
            }
            Err(error) => output.error(&error),
        }
    }
    (names, images)
}

/// Captions batches and prints them.
struct Captioner<'a> {
    model: &'a mut Blip2,
    options: &'a CaptionOptions,
    stream: bool,
    report: Option<Report>,
    output: &'a Output,
}

impl Captioner<'_> {
    /// Captions `images`; where a batch fails, each image by itself, so that one image's failure is its own.
    async fn batch(&mut self, names: &[String], images: &[Rgb8Image]) -> Result<bool, Error> {
        match self.caption(names, images).await {
            Ok(captions) => Ok(self.explain(names, images, &captions).await),
            // Without a device there is nothing left to try.
            Err(error @ Error::Gpu(GpuError::Lost { .. })) => Err(error),
            Err(error) if images.len() == 1 => {
                self.output.error(&format!("{}: {error}", names[0]));
                Ok(false)
            }
            Err(_) => {
                let mut all_done = true;
                for (name, image) in names.iter().zip(images) {
                    let (name, image) = (std::slice::from_ref(name), std::slice::from_ref(image));
                    all_done &= Box::pin(self.batch(name, image)).await?;
                }
                Ok(all_done)
            }
        }
    }

    /// Adds the images to the report, if there is one; `false` if any failed.
    async fn explain(
        &mut self,
        names: &[String],
        images: &[Rgb8Image],
        captions: &[Caption],
    ) -> bool {
        let mut all_done = true;
        for ((name, image), caption) in names.iter().zip(images).zip(captions) {
            if let Err(error) = self.explain_one((name, image), caption).await {
                self.output.error(&format!("{name}: {error}"));
                all_done = false;
            }
        }
        all_done
    }

    async fn explain_one(
        &mut self,
        (name, image): (&str, &Rgb8Image),
        caption: &Caption,
    ) -> Result<(), Error> {
        let Some(report) = &mut self.report else {
            return Ok(());
        };
        let text = WrittenText {
            prompt: &self.model.caption_prompt(self.options)?,
            generated: &caption.tokens,
        };
        let part = Part {
            explanation: self.model.explain(image, &[text]).await?,
            titles: vec![caption.text.clone()],
        };
        let parts = std::slice::from_ref(&part);
        report.add(&Page { name, image, parts })
    }

    async fn caption(
        &mut self,
        names: &[String],
        images: &[Rgb8Image],
    ) -> Result<Vec<Caption>, Error> {
        let Self {
            model,
            options,
            stream,
            output,
            ..
        } = self;
        let started = std::time::Instant::now();
        let mut streamed = false; // a stream has one image at a time
        let captions = model
            .caption_streaming(images, options, &mut |image, piece: &str| {
                if *stream && !output.json {
                    if !streamed {
                        output.text(&format!("{}: ", names[image]));
                        streamed = true;
                    }
                    output.text(piece);
                }
            })
            .await?;
        for (name, caption) in names.iter().zip(&captions) {
            if output.json {
                output.line(&json(name, caption).to_string());
                continue;
            }
            let mut texts = caption.alternatives.iter();
            if streamed {
                texts.next();
                output.line("");
            }
            for text in texts {
                output.line(&format!("{name}: {}", text.text));
            }
        }
        output.detail(&format!(
            "{} images in {:.2} s; {}",
            images.len(),
            started.elapsed().as_secs_f64(),
            model.timings()
        ));
        Ok(captions)
    }
}

/// A score with the digits that an f32 has, not those of the f64 it is written as.
fn digits(score: f32) -> Option<f64> {
    score.to_string().parse().ok()
}

fn json(name: &str, caption: &Caption) -> serde_json::Value {
    let mut line = serde_json::json!({
        "image": name,
        "pred_caption": caption.text,
        "tokens": caption.tokens,
        "score": digits(caption.score),
        "num_tokens": caption.tokens.len(),
    });
    if caption.alternatives.len() > 1 {
        line["captions"] = caption
            .alternatives
            .iter()
            .map(|text| serde_json::json!({"text": text.text, "score": digits(text.score)}))
            .collect();
    }
    line
}

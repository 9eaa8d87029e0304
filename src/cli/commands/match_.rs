//! `blip2-wgpu match IMAGE… --text T…`

use crate::Error;
use crate::task::{ImageFeatures, PairScore, Retriever, TextFeatures, TextUse};

use crate::cli::shared::Shared;
use crate::cli::shared::explain::{ExplainFile, ExplainWriter, Page, Part, parse_file};
use crate::cli::shared::inputs::images_of;
use crate::cli::shared::output::{Output, digits};
use crate::cli::shared::retrieval::{EncodeArgs, decode_all, encode_texts, texts_given};

/// Scores how well images and texts go together, every image with every text.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: blip2-wgpu match photo.jpg --text \"a cat\" \"a dog\" --model blip2-itm-vit-g --json"
)]
pub struct Args {
    /// Image files, folders (with all below them), globs, or - for stdin
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<std::ffi::OsString>,
    /// Texts to compare the images with
    #[arg(long = "text", value_name = "TEXT", num_args = 1.., required_unless_present = "texts")]
    text: Vec<String>,
    /// A file of texts, one a line
    #[arg(long, value_name = "FILE")]
    texts: Option<std::path::PathBuf>,
    #[command(flatten)]
    encode: EncodeArgs,
    /// Also show where the model looks in each image while it reads each text: a page (.html, any
    /// number of images) or a picture (.png, one image)
    #[arg(long, value_name = "FILE", value_parser = parse_file)]
    explain: Option<ExplainFile>,
}

/// Scores all pairs; `false` if any image or text failed.
pub async fn run(shared: &Shared, args: &Args, output: &Output) -> Result<bool, Error> {
    shared.check()?;
    let (texts, mut all_done) = texts_given(&args.text, args.texts.as_deref(), output);
    let (inputs, failed) = images_of(&args.images, output);
    all_done &= failed == 0;
    if inputs.is_empty() || texts.is_empty() {
        return Ok(false);
    }
    let report = args.explain.as_ref();
    let report = report.map(|file| ExplainWriter::create(file, inputs.len()));
    let mut report = report.transpose()?;
    let size = args.encode.image_size();
    let mut model = shared
        .open_retriever(size, args.encode.batch_size.0, output)
        .await?;
    let given = texts.len();
    let (texts, features) = encode_texts(
        &mut model,
        texts,
        args.encode.preset,
        TextUse::Match,
        output,
    )
    .await?;
    all_done &= texts.len() == given;
    if texts.is_empty() {
        return Ok(false);
    }
    let bar = output.items(inputs.len(), "images", true);
    for inputs in inputs.chunks(model.batch_size(args.encode.batch_size.0)) {
        let (names, images) = decode_all(inputs, args.encode.preset, output);
        all_done &= images.len() == inputs.len();
        let encoded = model.encode_batch(&images).await?;
        let scores = score(&mut model, &encoded, &features).await?;
        for (index, scores) in scores.chunks(texts.len()).enumerate() {
            for (text, score) in texts.iter().zip(scores) {
                print(&names[index], text, score, output);
            }
            // The scores are what was asked for: they are given whatever becomes of the report.
            let Some(some_report) = &mut report else {
                continue;
            };
            let titles: Vec<_> = texts.iter().zip(scores).map(title).collect();
            let name = &names[index];
            match explain(&model, &encoded[index], &features, titles).await {
                Err(error) => all_done = output.fail(&format!("{name}: {error}")),
                Ok(parts) => {
                    let image = &images[index];
                    let parts = &parts;
                    if let Err(error) = some_report.add(&Page { name, image, parts }) {
                        all_done = output.fail(&error);
                        report = None;
                    }
                }
            }
        }
        bar.inc(inputs.len() as u64);
    }
    bar.finish_and_clear();
    if let Some(Err(error)) = report.map(ExplainWriter::finish) {
        all_done = output.fail(&error);
    }
    model.gpu().save_pipelines();
    Ok(all_done)
}

/// Scores of every image with every text, those of the first image first.
async fn score(
    model: &mut Retriever,
    images: &[ImageFeatures],
    texts: &[TextFeatures],
) -> Result<Vec<PairScore>, Error> {
    let pairs: Vec<_> = (0..images.len())
        .flat_map(|image| (0..texts.len()).map(move |text| (image, text)))
        .collect();
    model.match_pairs(images, texts, &pairs).await
}

/// Where the queries look in an image while they read each text.
async fn explain(
    model: &Retriever,
    image: &ImageFeatures,
    texts: &[TextFeatures],
    titles: Vec<String>,
) -> Result<Vec<Part>, Error> {
    let mut parts = Vec::with_capacity(texts.len());
    for (text, title) in texts.iter().zip(titles) {
        parts.push(Part {
            explanation: model.explain(image, text).await?,
            titles: vec![title],
        });
    }
    Ok(parts)
}

/// The line above a text's map.
fn title((text, score): (&String, &PairScore)) -> String {
    format!("{text}: itm {:.4}, itc {:.4}", score.itm, score.itc)
}

fn print(name: &str, text: &str, score: &PairScore, output: &Output) {
    if !output.json {
        let (itm, itc) = (score.itm, score.itc);
        output.line(&format!("{name}: {text}: itm {itm:.4}, itc {itc:.4}"));
        return;
    }
    let line = serde_json::json!({
        "image": name,
        "text": text,
        "itm": digits(score.itm),
        "itc": digits(score.itc),
    });
    output.line(&line.to_string());
}

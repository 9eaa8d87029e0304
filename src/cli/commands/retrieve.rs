//! `blip2-wgpu retrieve --images DIR --texts FILE`

use std::collections::HashSet;

use clap::builder::TypedValueParser;

use crate::Error;
use crate::kernels::MAX_KEPT;
use crate::task::{
    Direction, Gallery, GalleryEvent, GalleryImage, GallerySource, RetrieveOptions, Retrieved,
    TextUse,
};

use crate::cli::shared::Shared;
use crate::cli::shared::inputs::images_of;
use crate::cli::shared::output::{Output, digits};
use crate::cli::shared::retrieval::{EncodeArgs, encode_texts, gallery_image, texts_of};

/// Finds the best texts for every image, or the best images for every text.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: blip2-wgpu retrieve --images photos/ --texts captions.txt --direction t2i --topk 10 \
                  --index photos.index --model blip2-itm-vit-g --json"
)]
pub struct Args {
    /// Image files, folders (with all below them), globs, or - for stdin
    #[arg(long, required = true, num_args = 1.., value_name = "DIR")]
    images: Vec<std::ffi::OsString>,
    /// A file of texts, one a line
    #[arg(long, value_name = "FILE")]
    texts: std::path::PathBuf,
    /// i2t: texts for every image; t2i: images for every text
    #[arg(long, value_enum, default_value_t)]
    direction: DirectionArg,
    /// Finds a query: those that ITC likes best, re-ranked by ITM
    #[arg(long, value_name = "K", default_value_t = 128, value_parser = clap::value_parser!(u16).range(1..=MAX_KEPT as i64).map(usize::from))]
    topk: usize,
    /// Rank by ITC alone, without the matching head
    #[arg(long)]
    itc_only: bool,
    /// Keep the images' features in this file, and take them from it the next time (about 1.5 MB an
    /// image at 224 pixels)
    #[arg(long, value_name = "FILE")]
    index: Option<std::path::PathBuf>,
    #[command(flatten)]
    encode: EncodeArgs,
}

/// [`Direction`] as it is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
enum DirectionArg {
    /// Texts for every image
    #[default]
    I2t,
    /// Images for every text
    T2i,
}

impl From<DirectionArg> for Direction {
    fn from(direction: DirectionArg) -> Self {
        match direction {
            DirectionArg::I2t => Self::ImageToText,
            DirectionArg::T2i => Self::TextToImage,
        }
    }
}

/// Searches; `false` if any image or text failed.
pub async fn run(shared: &Shared, args: &Args, output: &Output) -> Result<bool, Error> {
    shared.check()?;
    let (texts, mut all_done) = texts_of(&args.texts, output);
    let (inputs, failed) = images_of(&args.images, output);
    all_done &= failed == 0;
    let images = once_each(inputs.into_iter().map(gallery_image).collect());
    if images.is_empty() || texts.is_empty() {
        return Ok(false);
    }
    let size = args.encode.image_size();
    let mut model = shared
        .open_retriever(size, args.encode.batch_size.0, output)
        .await?;

    let started = std::time::Instant::now();
    let image_count = images.len();
    let bar = output.items(image_count, "images", false);
    let mut known = 0;
    let batch_size = model.batch_size(args.encode.batch_size.0);
    let mut gallery = Gallery::encode(
        &mut model,
        images,
        args.encode.preset.decode_policy(),
        args.index.as_deref(),
        batch_size,
        &mut |event| match event {
            GalleryEvent::Known(count) => {
                known = count;
                bar.inc(count as u64);
            }
            GalleryEvent::Encoded(count) => bar.inc(count as u64),
            GalleryEvent::Bad(error) => bar.suspend(|| output.error(error)),
        },
    )
    .await?;
    bar.finish_and_clear();
    output.detail(&format!(
        "{known} images from the index, {} encoded in {:.2} s",
        model.images_encoded(),
        started.elapsed().as_secs_f64()
    ));
    all_done &= gallery.len() == image_count;

    let given = texts.len();
    let (texts, features) = encode_texts(
        &mut model,
        texts,
        args.encode.preset,
        TextUse::Retrieve,
        output,
    )
    .await?;
    all_done &= texts.len() == given;
    if gallery.is_empty() || texts.is_empty() {
        return Ok(false);
    }
    let options = RetrieveOptions {
        direction: args.direction.into(),
        top_k: args.topk,
        rerank: !args.itc_only,
        batch_size: args.encode.batch_size.0,
    };
    let started = std::time::Instant::now();
    let queries = match options.direction {
        Direction::ImageToText => gallery.len(),
        Direction::TextToImage => texts.len(),
    };
    let bar = output.items(queries * args.topk, "pairs", true);
    let found = model
        .retrieve(&mut gallery, &features, &options, &mut |done, total| {
            bar.set_length(total as u64);
            bar.set_position(done as u64);
        })
        .await?;
    bar.finish_and_clear();
    output.detail(&format!(
        "{} images with {} texts, {} pairs matched in {:.2} s",
        gallery.len(),
        texts.len(),
        model.pairs_matched(),
        started.elapsed().as_secs_f64()
    ));
    for (query, finds) in found.iter().enumerate() {
        for (rank, find) in (1..).zip(finds) {
            let (query, item) = match options.direction {
                Direction::ImageToText => (gallery.name(query), &*texts[find.item]),
                Direction::TextToImage => (&*texts[query], gallery.name(find.item)),
            };
            print(query, rank, item, find, output);
        }
    }
    model.gpu().save_pipelines();
    Ok(all_done)
}

/// Each file once: found twice, an image would only take another's place among the finds.
fn once_each(images: Vec<GalleryImage>) -> Vec<GalleryImage> {
    let mut seen = HashSet::new();
    let is_new = |image: &GalleryImage| match &image.source {
        GallerySource::Bytes(_) => true,
        GallerySource::Path(path) => {
            let new = seen.insert(path.canonicalize().unwrap_or_else(|_| path.clone()));
            if !new {
                log::warn!("{}: given more than once, searched once", image.name);
            }
            new
        }
    };
    images.into_iter().filter(is_new).collect()
}

fn print(query: &str, rank: usize, item: &str, find: &Retrieved, output: &Output) {
    if !output.json {
        let score = find.score;
        output.line(&format!("{query}: {rank}. {item} ({score:.4})"));
        return;
    }
    let line = serde_json::json!({
        "query": query,
        "rank": rank,
        "item": item,
        "score": digits(find.score),
        "itc": digits(find.itc),
        "itm": find.itm.map(digits),
    });
    output.line(&line.to_string());
}

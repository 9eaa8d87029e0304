//! `blip2-wgpu embed image|text …`

use std::path::{Path, PathBuf};

use crate::Error;
use crate::files::arrays::{ArrayFormat, ArrayWriter};
use crate::task::{ImageFeatures, ImageFeaturizer, Preset, Retriever, TextFeatures, TextUse, Work};

use crate::cli::shared::Shared;
use crate::cli::shared::generation::{BatchSize, parse_batch_size};
use crate::cli::shared::inputs::images_of;
use crate::cli::shared::output::{Output, load_progress};
use crate::cli::shared::retrieval::{decode_all, encode_texts, image_size, texts_given};

/// Writes features of images or texts to a file.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: blip2-wgpu embed image photos/ --out photos.safetensors --kind itc --model blip2-itm-vit-g"
)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Features of images
    #[command(
        after_help = "Example: blip2-wgpu embed image photos/ --out photos.npy --kind qformer --model blip2-opt-2.7b"
    )]
    Image(ImageArgs),
    /// Features of texts
    #[command(
        after_help = "Example: blip2-wgpu embed text \"a cat\" \"a dog\" --out texts.safetensors --model blip2-itm-vit-g"
    )]
    Text(TextArgs),
}

#[derive(Debug, clap::Args)]
struct ImageArgs {
    /// Image files, folders (with all below them), globs, or - for stdin
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<std::ffi::OsString>,
    /// itc: queries in the common space [queries, width]; qformer: the Q-Former's output [queries,
    /// hidden]; vit: the image encoder's tokens [tokens, width]
    #[arg(long, value_enum, default_value_t)]
    kind: Kind,
    /// Side of the images in pixels, if not the checkpoint's
    #[arg(long, value_name = "PIXELS")]
    image_size: Option<u32>,
    /// Images at a time
    #[arg(long, value_name = "N|auto", default_value = "auto", value_parser = parse_batch_size)]
    batch_size: BatchSize,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, clap::Args)]
struct TextArgs {
    /// Texts
    #[arg(value_name = "TEXT", required_unless_present = "texts")]
    text: Vec<String>,
    /// A file of texts, one a line
    #[arg(long, value_name = "FILE")]
    texts: Option<PathBuf>,
    /// itc: a text in the common space [width]; qformer: the Q-Former's output at [CLS] [hidden]
    #[arg(long, value_enum, default_value_t)]
    kind: TextKind,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, clap::Args)]
struct OutputArgs {
    /// Where to: FILE.safetensors (tensor `features`, names in its metadata) or FILE.npy (names in
    /// FILE.names.json)
    #[arg(long, value_name = "FILE", value_parser = parse_out)]
    out: PathBuf,
    /// Whose defaults to follow: image size, how images are opened, how texts are cleaned and cut
    #[arg(long, value_enum, default_value_t)]
    preset: Preset,
}

fn parse_out(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    match ArrayFormat::of(&path) {
        Some(_) => Ok(path),
        None => Err("give a name that ends in .safetensors or .npy".into()),
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
enum Kind {
    /// In the common space of images and texts
    #[default]
    Itc,
    /// Of the Q-Former
    Qformer,
    /// Of the image encoder
    Vit,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
enum TextKind {
    /// In the common space of images and texts
    #[default]
    Itc,
    /// Of the Q-Former
    Qformer,
}

/// Writes the file; `false` if any image or text failed.
pub async fn run(shared: &Shared, args: &Args, output: &Output) -> Result<bool, Error> {
    shared.check()?;
    match &args.what {
        What::Image(args) => images(shared, args, output).await,
        What::Text(args) => texts(shared, args, output).await,
    }
}

/// A file that grows by a row an item.
struct Sink<'a> {
    writer: ArrayWriter,
    names: Vec<String>,
    shape: Vec<usize>,
    what: &'static str,
    kind: &'static str,
    output: &'a Output,
}

impl<'a> Sink<'a> {
    fn new<'n>(
        path: &Path,
        what: &'static str,
        kind: &'static str,
        names: impl Iterator<Item = &'n str>,
        output: &'a Output,
    ) -> Option<Self> {
        let format = ArrayFormat::of(path).unwrap_or(ArrayFormat::Safetensors);
        match ArrayWriter::new(path, format, names) {
            Ok(writer) => Some(Self {
                writer,
                names: Vec::new(),
                shape: Vec::new(),
                what,
                kind,
                output,
            }),
            Err(error) => {
                output.error(&error);
                None
            }
        }
    }

    /// Adds an item's features, `rows` of them (`None`: a vector).
    fn add(&mut self, name: &str, values: &[f32], rows: Option<usize>) -> bool {
        self.shape = match rows {
            Some(rows) => vec![rows, values.len() / rows.max(1)],
            None => vec![values.len()],
        };
        if let Err(error) = self.writer.add(values) {
            self.output.error(&error);
            return false;
        }
        if self.output.json {
            let row = self.writer.rows() - 1;
            let line = serde_json::json!({self.what: name, "row": row, "shape": self.shape});
            self.output.line(&line.to_string());
        }
        self.names.push(name.to_owned());
        true
    }

    fn finish(self) -> bool {
        let names: Vec<&str> = self.names.iter().map(String::as_str).collect();
        if names.is_empty() {
            return false;
        }
        let metadata = [("kind", self.kind), ("of", self.what)];
        let finished = self.writer.finish(&self.shape, &names, &metadata);
        if let Err(error) = &finished {
            self.output.error(error);
        }
        finished.is_ok()
    }
}

/// What encodes images: a whole retrieval checkpoint, or the image side of any.
enum Encoder {
    Retriever(Box<Retriever>),
    Featurizer(Box<ImageFeaturizer>),
}

impl Encoder {
    async fn open(shared: &Shared, args: &ImageArgs, output: &Output) -> Result<Self, Error> {
        let image_size = image_size(args.image_size, args.output.preset);
        let generative = match shared.checkpoint()? {
            Some(path) if args.kind != Kind::Itc => {
                let files = shared.parts.open(path)?;
                files.config().language_model().map(|_| path)
            }
            _ => None,
        };
        let Some(path) = generative else {
            let model = shared
                .open_retriever(image_size, args.batch_size.0, output)
                .await?;
            return Ok(Self::Retriever(Box::new(model)));
        };
        let work = Work {
            batch_size: args.batch_size.0,
            ..Work::default()
        };
        let options = shared.open_options(image_size, work)?;
        let mut progress = load_progress(output);
        let mut progress = |done, total| progress(done, total);
        let model = ImageFeaturizer::open(path, options, &mut progress).await?;
        Ok(Self::Featurizer(Box::new(model)))
    }

    fn batch_size(&self, asked: Option<usize>) -> usize {
        match self {
            Self::Retriever(model) => model.batch_size(asked),
            Self::Featurizer(model) => model.batch_size(asked),
        }
    }

    async fn encode(
        &mut self,
        images: &[crate::image::Rgb8Image],
    ) -> Result<Vec<ImageFeatures>, Error> {
        match self {
            Self::Retriever(model) => model.encode_batch(images).await,
            Self::Featurizer(model) => model.encode_batch(images).await,
        }
    }

    /// Rows of an image's features.
    fn rows(&self, kind: Kind) -> usize {
        let shapes = match self {
            Self::Retriever(model) => model.image_shapes(),
            Self::Featurizer(model) => model.image_shapes(),
        };
        match kind {
            Kind::Itc => shapes.features[0],
            Kind::Qformer => shapes.queries[0],
            Kind::Vit => shapes.tokens[0],
        }
    }

    fn save_pipelines(&self) {
        match self {
            Self::Retriever(model) => model.gpu().save_pipelines(),
            Self::Featurizer(model) => model.gpu().save_pipelines(),
        }
    }
}

async fn images(shared: &Shared, args: &ImageArgs, output: &Output) -> Result<bool, Error> {
    let (inputs, failed) = images_of(&args.images, output);
    if inputs.is_empty() {
        return Ok(false);
    }
    let mut all_done = failed == 0;
    let mut encoder = Encoder::open(shared, args, output).await?;
    let (kind, rows) = (args.kind, encoder.rows(args.kind));
    let kind_name = match kind {
        Kind::Itc => "itc",
        Kind::Qformer => "qformer",
        Kind::Vit => "vit",
    };
    let names = inputs.iter().map(|input| input.name.as_str());
    let Some(mut sink) = Sink::new(&args.output.out, "image", kind_name, names, output) else {
        return Ok(false);
    };
    let bar = output.items(inputs.len(), "items", false);
    for inputs in inputs.chunks(encoder.batch_size(args.batch_size.0)) {
        let (names, images) = decode_all(inputs, args.output.preset, output);
        all_done &= images.len() == inputs.len();
        for (name, features) in names.iter().zip(encoder.encode(&images).await?) {
            let values = match kind {
                Kind::Itc => features.features,
                Kind::Qformer => features.queries,
                Kind::Vit => features.tokens,
            };
            if !sink.add(name, &values, Some(rows)) {
                return Ok(false);
            }
        }
        bar.inc(inputs.len() as u64);
    }
    bar.finish_and_clear();
    encoder.save_pipelines();
    Ok(sink.finish() && all_done)
}

async fn texts(shared: &Shared, args: &TextArgs, output: &Output) -> Result<bool, Error> {
    let (texts, mut all_done) = texts_given(&args.text, args.texts.as_deref(), output);
    if texts.is_empty() {
        return Ok(false);
    }
    let preset = args.output.preset;
    let mut model = shared.open_retriever(None, None, output).await?;
    let given = texts.len();
    let (texts, features) =
        encode_texts(&mut model, texts, preset, TextUse::Retrieve, output).await?;
    all_done &= texts.len() == given;
    let names = texts.iter().map(String::as_str);
    let kind_name = match args.kind {
        TextKind::Itc => "itc",
        TextKind::Qformer => "qformer",
    };
    let Some(mut sink) = Sink::new(&args.output.out, "text", kind_name, names, output) else {
        return Ok(false);
    };
    for (text, TextFeatures { cls, features, .. }) in texts.iter().zip(&features) {
        let values = match args.kind {
            TextKind::Itc => features,
            TextKind::Qformer => cls,
        };
        if !sink.add(text, values, None) {
            return Ok(false);
        }
    }
    model.gpu().save_pipelines();
    Ok(sink.finish() && all_done)
}

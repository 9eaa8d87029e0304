//! Images and texts compared: features, contrastive scores (ITC), matching scores (ITM) and the search that joins them.

mod fingerprint;
mod gallery;
mod index;
mod rank;
mod text;

use std::path::Path;

use crate::platform::parallel::*;

use crate::Error;
use crate::gpu::{Gpu, WeightFormat};
use crate::image::{Preprocessor, Rgb8Image};
use crate::model::config::Head;
use crate::model::{Blip2Config, RetrievalModel};
use crate::schedule::{
    EncodedImage, ImageShapes, Matcher, MemoryPlan, RetrievalWorkload, itc_score,
};
use crate::text::BertTokenizer;
use crate::weights::{Checkpoint, Tensors};

use super::checkpoint::CheckpointFiles;
use super::open::open;
use super::{Explanation, OpenOptions, Preset};
use fingerprint::image_fingerprint;

pub use gallery::{Gallery, GalleryEvent, GalleryImage, GallerySource};
pub use index::IndexError;
#[cfg(feature = "fuzzing")]
pub use index::fuzz as fuzz_index;
pub use rank::{Direction, RetrieveOptions, Retrieved};
use text::Prepared;
pub use text::TextUse;

/// Images encoded together unless asked otherwise.
const DEFAULT_BATCH: usize = 8;

/// Tokens of a text that room is planned for.
const PLANNED_TOKENS: usize = 32;

/// What the model makes of an image: the image encoder's tokens, the Q-Former's queries, and those in the common space.
pub type ImageFeatures = EncodedImage;

/// A text as the model reads it, and what it makes of it.
#[derive(Debug, Clone, PartialEq)]
pub struct TextFeatures {
    /// Token ids, `[CLS]` first.
    pub tokens: Vec<u32>,
    /// The Q-Former's output at `[CLS]`, `[hidden]`.
    pub cls: Vec<f32>,
    /// That in the common space, `[embedding size]`, of length one.
    pub features: Vec<f32>,
}

/// How well an image and a text go together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PairScore {
    /// Probability of a match: softmax of the matching head's logits, class 1.
    pub itm: f32,
    /// The matching head's logits of "no match" and "match", means over the queries.
    pub itm_logits: [f32; 2],
    /// The greatest cosine of a query and the text.
    pub itc: f32,
}

impl PairScore {
    pub(super) fn new(itm_logits: [f32; 2], itc: f32) -> Self {
        let [no, yes] = itm_logits;
        Self {
            itm: 1.0 / (1.0 + (no - yes).exp()),
            itm_logits,
            itc,
        }
    }
}

/// A retrieval checkpoint on a device, with everything between files and scores.
///
/// ```no_run
/// # async fn example() -> Result<(), blip2_wgpu::Error> {
/// use blip2_wgpu::{OpenOptions, Preset, Retriever, image, task::TextUse};
///
/// let mut model = Retriever::open("blip2-itm-vit-g", OpenOptions::default()).await?;
/// let photo = image::decode_file("photo.jpg".as_ref(), image::DecodePolicy::hf())?;
/// let images = model.encode_images(&[photo]).await?;
/// let texts = ["a cat", "a dog"];
/// let texts = model.encode_texts(&texts, Preset::Hf, TextUse::Match).await?;
/// for score in model.match_pairs(&images, &texts, &[(0, 0), (0, 1)]).await? {
///     println!("{:.3} {:.3}", score.itm, score.itc);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Retriever {
    config: Blip2Config,
    pub(super) preprocessor: Preprocessor,
    tokenizer: BertTokenizer,
    checkpoint: Checkpoint,
    image_size: usize,
    quant: Option<WeightFormat>,
    pub(super) matcher: Matcher,
    /// Images at a time where none are asked for.
    batch: usize,
}

impl Retriever {
    /// Opens the checkpoint folder `path` on a device.
    ///
    /// # Errors
    /// No device; a file of the checkpoint that is missing, damaged or does not fit the others; a generative checkpoint;
    /// not enough memory.
    pub async fn open(path: impl AsRef<Path>, options: OpenOptions) -> Result<Self, Error> {
        Self::open_with_progress(path, options, &mut |_, _| {}).await
    }

    /// [`Retriever::open`] that reports the bytes of the checkpoint dealt with so far, and all of them.
    ///
    /// # Errors
    /// As [`Retriever::open`].
    pub async fn open_with_progress(
        path: impl AsRef<Path>,
        options: OpenOptions,
        progress: &mut (dyn FnMut(u64, u64) + Send),
    ) -> Result<Self, Error> {
        let files = options.open_files(path.as_ref())?;
        Self::load(files, options, progress).await
    }

    /// Opens the retrieval demo model that is part of the program: it knows drawings of coloured shapes and nothing of
    /// the real world.
    ///
    /// # Errors
    /// No device, or not enough memory.
    #[cfg(feature = "demo-model")]
    pub async fn demo(options: OpenOptions) -> Result<Self, Error> {
        let files = CheckpointFiles::demo(&crate::demo::RETRIEVAL, "demo/retrieval")?;
        Self::load(files, options, &mut |_, _| {}).await
    }

    /// Puts a checkpoint on its device.
    async fn load(
        files: CheckpointFiles,
        options: OpenOptions,
        progress: &mut (dyn FnMut(u64, u64) + Send),
    ) -> Result<Self, Error> {
        let embedding_size = embedding_size(&files)?;
        let tokenizer = files.bert_tokenizer()?;
        let load = |tensors: &Tensors, config: &Blip2Config, image_size| {
            RetrievalModel::load(tensors, config, embedding_size, image_size)
        };
        let plan = |gpu: &Gpu, model: &RetrievalModel, batch, weights| {
            let work = RetrievalWorkload {
                batch,
                texts: 1,
                tokens: PLANNED_TOKENS.min(model.text.max_positions()),
            };
            Ok(MemoryPlan::of_retrieval(gpu, model, weights, &work)?)
        };
        let opened = open(files, &options, DEFAULT_BATCH, load, plan, progress).await?;
        Ok(Self {
            config: opened.config,
            preprocessor: opened.preprocessor,
            tokenizer,
            checkpoint: opened.checkpoint,
            image_size: opened.image_size,
            quant: options.quant,
            matcher: Matcher::new(opened.gpu, opened.model),
            batch: opened.batch,
        })
    }

    /// The device.
    #[must_use]
    pub fn gpu(&self) -> &Gpu {
        self.matcher.gpu()
    }

    /// The checkpoint's configuration.
    #[must_use]
    pub fn config(&self) -> &Blip2Config {
        &self.config
    }

    /// Images that went through the image encoder so far.
    #[must_use]
    pub fn images_encoded(&self) -> usize {
        self.matcher.images_encoded()
    }

    /// Pairs that went through the matching head so far.
    #[must_use]
    pub fn pairs_matched(&self) -> usize {
        self.matcher.pairs_matched()
    }

    /// Images encoded at a time, if so many are `asked` for.
    #[must_use]
    pub fn batch_size(&self, asked: Option<usize>) -> usize {
        let most = self.matcher.max_images();
        asked.unwrap_or(self.batch).clamp(1, most)
    }

    /// A number that changes with anything that an image's features depend on. Reads all of the image side's weights.
    ///
    /// # Errors
    /// A checkpoint that can no longer be read.
    pub fn image_fingerprint(&self) -> Result<u64, Error> {
        image_fingerprint(
            &self.config,
            &self.checkpoint,
            &self.preprocessor,
            self.image_size,
            self.quant,
        )
    }

    /// Rows and columns of what an image becomes.
    #[must_use]
    pub fn image_shapes(&self) -> ImageShapes {
        self.matcher.image_shapes()
    }

    /// An image as the model takes it, `[3, size, size]`.
    fn pixels(&self, image: &Rgb8Image) -> Result<Vec<f32>, Error> {
        let profiler = self.gpu().profiler();
        let _phase = profiler.map(|it| it.worker_phase("preprocess"));
        Ok(self.preprocessor.apply(image)?)
    }

    /// Prepared images as one batch.
    pub(super) async fn encode_pixels(
        &mut self,
        pixels: &[impl AsRef<[f32]>],
    ) -> Result<Vec<ImageFeatures>, Error> {
        self.matcher.encode_images(pixels).await
    }

    /// Encodes `images` as one batch: at most [`Retriever::batch_size`] of as many as the device should take at a time.
    /// An image's features are the same in any batch.
    ///
    /// # Errors
    /// An image that cannot be prepared, no room on the device, or a failing device.
    pub async fn encode_batch(
        &mut self,
        images: &[Rgb8Image],
    ) -> Result<Vec<ImageFeatures>, Error> {
        let pixels = images
            .par_iter()
            .map(|image| self.pixels(image))
            .collect::<Result<Vec<_>, _>>()?;
        self.encode_pixels(&pixels).await
    }

    /// Encodes any number of images, a few at a time.
    ///
    /// # Errors
    /// As [`Retriever::encode_batch`].
    pub async fn encode_images(
        &mut self,
        images: &[Rgb8Image],
    ) -> Result<Vec<ImageFeatures>, Error> {
        let mut encoded = Vec::with_capacity(images.len());
        for images in images.chunks(self.batch_size(None)) {
            encoded.extend(self.encode_batch(images).await?);
        }
        Ok(encoded)
    }

    /// Cleans texts as `preset` does and encodes them; a text's features are the same in any batch. A text longer than
    /// what preset or model take is cut, with a warning to the log.
    ///
    /// # Errors
    /// An empty text, a tokenizer that fails, no room on the device, or a failing device.
    pub async fn encode_texts(
        &mut self,
        texts: &[impl AsRef<str>],
        preset: Preset,
        text_use: TextUse,
    ) -> Result<Vec<TextFeatures>, Error> {
        let mut ids = Vec::with_capacity(texts.len());
        for text in texts {
            ids.push(self.tokenize(text.as_ref(), preset, text_use)?);
        }
        let encoded = self.matcher.encode_texts(&ids).await?;
        Ok(ids
            .into_iter()
            .zip(encoded)
            .map(|(tokens, text)| TextFeatures {
                tokens,
                cls: text.cls,
                features: text.features,
            })
            .collect())
    }

    /// Errs if nothing is left of `text` after the clean-up of `preset`.
    ///
    /// # Errors
    /// [`Error::EmptyText`], or a tokenizer that fails.
    pub fn check_text(&self, text: &str, preset: Preset) -> Result<(), Error> {
        self.prepare(text, preset, TextUse::Match).map(drop)
    }

    /// A text's token ids as [`Retriever::encode_texts`] makes them.
    ///
    /// # Errors
    /// As [`Retriever::check_text`].
    pub fn tokenize(
        &self,
        text: &str,
        preset: Preset,
        text_use: TextUse,
    ) -> Result<Vec<u32>, Error> {
        let prepared = self.prepare(text, preset, text_use)?;
        let (kept, whole) = (prepared.ids.len(), prepared.whole);
        if kept < whole {
            let text = shown(text);
            log::warn!("text {text:?} has {whole} tokens and is cut to {kept}; shorten it");
        }
        Ok(prepared.ids)
    }

    fn prepare(&self, text: &str, preset: Preset, text_use: TextUse) -> Result<Prepared, Error> {
        let most = self.matcher.model().text.max_positions();
        let prepared = text::prepare(&self.tokenizer, text, preset, text_use, most)?;
        // [CLS] and [SEP] alone.
        if prepared.whole <= 2 {
            return Err(Error::EmptyText { text: shown(text) });
        }
        Ok(prepared)
    }

    /// Scores of pairs of an image and a text, each given by its place in `images` and `texts`. Pairs of one image that
    /// are asked for together share work; the result does not depend on it.
    ///
    /// # Errors
    /// A pair of what is not there, no room on the device, or a failing device.
    pub async fn match_pairs(
        &mut self,
        images: &[ImageFeatures],
        texts: &[TextFeatures],
        pairs: &[(usize, usize)],
    ) -> Result<Vec<PairScore>, Error> {
        let bad = |&&(image, text): &&(usize, usize)| image >= images.len() || text >= texts.len();
        if let Some((image, text)) = pairs.iter().find(bad) {
            let problem = format!(
                "pair ({image}, {text}) of {} images and {} texts",
                images.len(),
                texts.len()
            );
            return Err(Error::Request { problem });
        }
        let tokens: Vec<&[f32]> = images.iter().map(|image| &*image.tokens).collect();
        let ids: Vec<(usize, &[u32])> = pairs
            .iter()
            .map(|&(image, text)| (image, &*texts[text].tokens))
            .collect();
        let logits = self.matcher.match_pairs(&tokens, &ids).await?;
        Ok(pairs
            .iter()
            .zip(logits)
            .map(|(&(image, text), logits)| {
                let itc = itc_score(&images[image].features, &texts[text].features);
                PairScore::new(logits, itc)
            })
            .collect())
    }
}

impl Retriever {
    /// Where the queries look in `image` while they read `text` beside it, for the matching score of the two: the
    /// cross-attention of the joint pass.
    ///
    /// # Errors
    /// Features of another model, no room on the device, or a failing device.
    pub async fn explain(
        &self,
        image: &ImageFeatures,
        text: &TextFeatures,
    ) -> Result<Explanation, Error> {
        let attention = self.matcher.read_pair(&image.tokens, &text.tokens).await?;
        let image_tokens = self.matcher.model().vit.tokens();
        Ok(Explanation::new(&attention, image_tokens))
    }
}

/// Width of the common space, which only a retrieval checkpoint has.
fn embedding_size(files: &CheckpointFiles) -> Result<usize, Error> {
    match files.config().head {
        Head::Retrieval { embedding_size } => Ok(embedding_size),
        Head::Generation(_) => Err(Error::WrongKind {
            model: files.path().into(),
            is: "generative",
            task: "compare images with texts",
            needed: "retrieval (such as blip2-itm-vit-g)",
        }),
    }
}

/// A text for messages: its beginning, on one line.
fn shown(text: &str) -> String {
    const MOST: usize = 60;
    let line: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(MOST)
        .collect();
    if text.chars().nth(MOST).is_some() {
        line + "…"
    } else {
        line
    }
}

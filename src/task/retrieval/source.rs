//! A retrieval checkpoint's files: the small ones read and checked against each other, the tensors mapped.

use std::path::Path;

use crate::Error;
use crate::files::checksum::Checksum;
use crate::gpu::WeightFormat;
use crate::image::Preprocessor;
use crate::model::config::Head;
use crate::model::{Blip2Config, RetrievalModel};
use crate::text::BertTokenizer;
use crate::weights::{Checkpoint, Component, Tensors, WeightsError};

use super::super::source::{folder_of, run_size};

/// A retrieval checkpoint before it is on a device.
#[derive(Debug)]
pub(super) struct RetrievalSource {
    pub config: Blip2Config,
    pub tokenizer: BertTokenizer,
    pub preprocessor: Preprocessor,
    pub checkpoint: Checkpoint,
    pub image_size: usize,
    embedding_size: usize,
}

impl RetrievalSource {
    /// Reads the folder `path`, to run at `image_size` if that is not the checkpoint's own.
    pub(super) fn open(path: &Path, image_size: Option<u32>) -> Result<Self, Error> {
        let config = Blip2Config::open(path)?;
        let embedding_size = embedding_size(&config, path)?;
        let folder = folder_of(path);
        let side = run_size(&config, image_size)?;
        Self {
            tokenizer: BertTokenizer::open(&folder)?,
            preprocessor: Preprocessor::from_files(&folder, side as u32)?,
            checkpoint: Checkpoint::open(path)?,
            config,
            image_size: side,
            embedding_size,
        }
        .checked(image_size)
    }

    /// The demo model that is part of the program.
    #[cfg(feature = "demo-model")]
    pub(super) fn demo(image_size: Option<u32>) -> Result<Self, Error> {
        let files = &crate::demo::RETRIEVAL;
        let name = |file: &str| Path::new("demo/retrieval").join(file);
        let config = Blip2Config::from_json(files.config, &name("config.json"))?;
        let embedding_size = embedding_size(&config, Path::new("demo/retrieval"))?;
        let side = run_size(&config, image_size)?;
        let preprocessor = "demo/retrieval/preprocessor_config.json";
        Self {
            tokenizer: BertTokenizer::from_json(files.tokenizer, &name("tokenizer.json"))?,
            preprocessor: Preprocessor::from_json(
                files.preprocessor_config,
                preprocessor,
                side as u32,
            )?,
            checkpoint: Checkpoint::embedded("demo/retrieval/model.safetensors", files.weights)?,
            config,
            image_size: side,
            embedding_size,
        }
        .checked(image_size)
    }

    /// The parts fit each other: every tensor and token is there, images come in the size to run at.
    fn checked(mut self, asked_size: Option<u32>) -> Result<Self, Error> {
        self.tokenizer
            .check_embedding_rows(self.config.qformer.vocab_size)?;
        self.config.tensors(Some(&self.checkpoint))?;
        let side = self.image_size as u32;
        // Not 1×1: a size by the shortest edge leaves other images than square ones oblong.
        if asked_size.is_some() || self.preprocessor.output_size(1, 2) != (side, side) {
            self.preprocessor = self.preprocessor.with_size(side)?;
        }
        Ok(self)
    }

    /// The model of the checkpoint's tensors.
    pub(super) fn model(&self, tensors: &Tensors) -> Result<RetrievalModel, WeightsError> {
        RetrievalModel::load(tensors, &self.config, self.embedding_size, self.image_size)
    }
}

/// A number that changes with anything that an image's features depend on: configuration, image size, preprocessing,
/// and every byte of the tensors that images pass.
pub(super) fn image_fingerprint(
    config: &Blip2Config,
    checkpoint: &Checkpoint,
    preprocessor: &Preprocessor,
    image_size: usize,
    quant: Option<WeightFormat>,
) -> Result<u64, Error> {
    let mut hash = Checksum::default();
    let settings = format!(
        "{:?} {:?} {} {image_size} {preprocessor:?}",
        config.vision, config.qformer, config.num_query_tokens
    );
    hash.add(settings.as_bytes());
    // Not f16 by name: what is stored tells that apart already, and older indexes stay valid.
    if let Some(format) = quant.filter(|format| format.is_quantised()) {
        hash.add(format.name().as_bytes());
    }
    for spec in config.tensors(None)? {
        let of_images = match spec.component {
            Component::Vision | Component::QueryTokens | Component::QFormer => true,
            Component::RetrievalHeads => spec.name.starts_with("vision_projection."),
            Component::TextEmbeddings
            | Component::LanguageProjection
            | Component::LanguageModel => false,
        };
        if of_images {
            hash.add(spec.name.as_bytes());
            for view in checkpoint.weight(&spec.name, &spec.shape)?.views() {
                hash.add(view.bytes);
            }
        }
    }
    Ok(hash.value())
}

/// Width of the common space, which only a retrieval checkpoint has.
fn embedding_size(config: &Blip2Config, path: &Path) -> Result<usize, Error> {
    match config.head {
        Head::Retrieval { embedding_size } => Ok(embedding_size),
        Head::Generation(_) => Err(Error::WrongKind {
            model: path.into(),
            is: "generative",
            task: "compare images with texts",
            needed: "retrieval (such as blip2-itm-vit-g)",
        }),
    }
}

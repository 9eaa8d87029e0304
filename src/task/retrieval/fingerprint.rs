//! What tells whether two sets of image features were made alike.

use crate::Error;
use crate::files::checksum::Checksum;
use crate::gpu::WeightFormat;
use crate::image::Preprocessor;
use crate::model::Blip2Config;
use crate::weights::{Checkpoint, Component};

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

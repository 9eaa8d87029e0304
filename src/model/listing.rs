//! Every tensor a model is made of: what its `load` asks for.

use crate::weights::{Checkpoint, TensorSpec, WeightsError, list_tensors};

use super::config::Head;
use super::{Blip2Config, Blip2Model, RetrievalModel};

impl Blip2Config {
    /// Every tensor of the model, in the order an image passes them: see [`list_tensors`].
    ///
    /// # Errors
    /// A tensor that the `checkpoint` lacks, or has in another shape or type.
    pub fn tensors(
        &self,
        checkpoint: Option<&Checkpoint>,
    ) -> Result<Vec<TensorSpec>, WeightsError> {
        let size = self.vision.image_size;
        list_tensors(checkpoint, |tensors| match &self.head {
            Head::Generation(language) => Blip2Model::load(tensors, self, language, size).map(drop),
            Head::Retrieval { embedding_size } => {
                RetrievalModel::load(tensors, self, *embedding_size, size).map(drop)
            }
        })
    }

    /// Tensors of `checkpoint` that are no part of the model: it may be another's.
    ///
    /// # Errors
    /// As [`Blip2Config::tensors`].
    pub fn left_over<'c>(&self, checkpoint: &'c Checkpoint) -> Result<Vec<&'c str>, WeightsError> {
        let specs = self.tensors(Some(checkpoint))?;
        let names = specs.iter().map(|spec| spec.name.as_str());
        Ok(checkpoint.unused(names))
    }

    /// Whether a tensor belongs to a block of the vision transformer that the model does not run: LAVIS's and
    /// mmpretrain's files have one more.
    #[must_use]
    pub fn is_beyond_blocks(&self, name: &str) -> bool {
        let rest = name.strip_prefix("vision_model.encoder.layers.");
        let block = rest.and_then(|rest| rest.split('.').next()?.parse::<usize>().ok());
        block.is_some_and(|block| block >= self.vision.num_hidden_layers)
    }
}

#[cfg(test)]
mod tests;

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
}

#[cfg(test)]
mod tests;

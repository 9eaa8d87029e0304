//! BLIP-2 (Li et al., 2023) put together: image encoder → Q-Former → projection → language model.

use crate::gpu::{Activation, GpuError, ProgramBuilder};
use crate::kernels::{Activate, Linear, linear, tap};
use crate::weights::{Component, Tensors, WeightsError};

use super::config::LanguageConfig;
use super::layers::load_linear;
use super::{Blip2Config, LanguageModel, QFormer, Vit};

/// The generative model's weights on the device.
#[derive(Debug)]
pub struct Blip2Model {
    /// Image encoder.
    pub vit: Vit,
    /// Queries that read the image.
    pub qformer: QFormer,
    /// From the Q-Former's width to the language model's.
    pub language_projection: Linear,
    /// OPT or T5.
    pub language_model: LanguageModel,
}

impl Blip2Model {
    /// Takes all tensors of a generative model, for images of `image_size` pixels.
    ///
    /// # Errors
    /// A missing or misshapen tensor.
    pub fn load(
        tensors: &Tensors,
        config: &Blip2Config,
        language: &LanguageConfig,
        image_size: usize,
    ) -> Result<Self, WeightsError> {
        let projection = tensors.part(Component::LanguageProjection, "");
        let (width, query_width) = (language.hidden_size(), config.qformer.hidden_size);
        Ok(Self {
            vit: Vit::load(tensors, &config.vision, image_size)?,
            qformer: QFormer::load(tensors, &config.qformer, config.num_query_tokens)?,
            language_projection: load_linear(
                &projection,
                "language_projection",
                width,
                query_width,
            )?,
            language_model: LanguageModel::load(tensors, language)?,
        })
    }

    /// `image_tokens` `[batch · tokens, image width]` → rows for the language model `[batch · queries, its width]`.
    ///
    /// # Errors
    /// No room for the small state that the program needs.
    pub fn query_images(
        &self,
        program: &mut ProgramBuilder,
        image_tokens: &Activation,
        batch: usize,
    ) -> Result<Activation, GpuError> {
        let query_output = self.qformer.forward(program, image_tokens, batch)?;
        let visual = linear(
            program,
            &query_output,
            &self.language_projection,
            Activate::Identity,
        );
        tap(program, &visual, || "projection".into());
        Ok(visual)
    }
}

//! BLIP-2 (Li et al., 2023) put together: image encoder → Q-Former → projection → language model.

use crate::gpu::{Activation, GpuError, ProgramBuilder};
use crate::kernels::{Activate, Linear, linear, tap};
use crate::weights::{UploadError, Uploader};

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
    /// Uploads everything.
    ///
    /// # Errors
    /// A missing or misshapen tensor, or no room on the device.
    pub async fn load(
        uploader: &mut Uploader<'_>,
        config: &Blip2Config,
        language: &LanguageConfig,
        image_size: usize,
    ) -> Result<Self, UploadError> {
        let language_width = language.hidden_size();
        let query_width = config.qformer.hidden_size;
        Ok(Self {
            vit: Vit::load(uploader, &config.vision, image_size).await?,
            qformer: QFormer::load(uploader, &config.qformer, config.num_query_tokens).await?,
            language_projection: load_linear(
                uploader,
                "language_projection",
                language_width,
                query_width,
            )
            .await?,
            language_model: LanguageModel::load(uploader, language).await?,
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

//! BLIP-2's first stage (Li et al., 2023) put together: image and text to a common space, and pairs to a match.
//!
//! ```text
//! image ─ ViT ─┬─ Q-Former (queries) ─────── vision projection ─┐
//! text ────────┼─ Q-Former (text, [CLS]) ─── text projection ───┴─ cosine: image–text contrast (ITC)
//!              └─ Q-Former (queries + text) ─ matching head, mean over queries ─ image–text matching (ITM)
//! ```

use crate::gpu::{Activation, GpuError, ProgramBuilder};
use crate::kernels::{Activate, Linear, linear, mean_rows, normalize_rows, rows_of_groups, tap};
use crate::weights::{Component, Tensors, WeightsError};

use super::config::Blip2Config;
use super::layers::load_linear;
use super::qformer::{TextBranch, Texts};
use super::{QFormer, Vit};

/// The retrieval model's weights on the device.
#[derive(Debug)]
pub struct RetrievalModel {
    /// Image encoder.
    pub vit: Vit,
    /// Queries that read the image.
    pub qformer: QFormer,
    /// What the Q-Former needs to read text.
    pub text: TextBranch,
    /// From a query to the common space.
    pub vision_projection: Linear,
    /// From `[CLS]` to the common space.
    pub text_projection: Linear,
    /// Logits of "no match" and "match" from a query.
    pub itm_head: Linear,
}

impl RetrievalModel {
    /// Takes all tensors of a retrieval model, for images of `image_size` pixels; `embedding_size` is the width of the common
    /// space.
    ///
    /// # Errors
    /// A missing or misshapen tensor.
    pub fn load(
        tensors: &Tensors,
        config: &Blip2Config,
        embedding_size: usize,
        image_size: usize,
    ) -> Result<Self, WeightsError> {
        let width = config.qformer.hidden_size;
        let vit = Vit::load(tensors, &config.vision, image_size)?;
        let (qformer, text) =
            QFormer::load_with_text(tensors, &config.qformer, config.num_query_tokens)?;
        let heads = tensors.part(Component::RetrievalHeads, "");
        Ok(Self {
            vit,
            qformer,
            text,
            vision_projection: load_linear(&heads, "vision_projection", embedding_size, width)?,
            text_projection: load_linear(&heads, "text_projection", embedding_size, width)?,
            itm_head: load_linear(&heads, "itm_head", 2, width)?,
        })
    }

    /// Width of the common space.
    #[must_use]
    pub fn embedding_size(&self) -> usize {
        self.vision_projection.weight.rows
    }

    /// The Q-Former's output `[batch · queries, hidden]` in the common space: rows of length one.
    pub fn project_image(
        &self,
        program: &mut ProgramBuilder,
        query_output: &Activation,
    ) -> Activation {
        let projected = linear(
            program,
            query_output,
            &self.vision_projection,
            Activate::Identity,
        );
        let features = normalize_rows(program, &projected);
        tap(program, &features, || "image_embeds".into());
        features
    }

    /// Texts → the hidden state of each `[CLS]` `[batch, hidden]`, and that in the common space
    /// `[batch, embedding size]`, of length one.
    pub fn text_features(
        &self,
        program: &mut ProgramBuilder,
        texts: &Texts,
    ) -> (Activation, Activation) {
        let hidden = self.qformer.forward_text(program, &self.text, texts);
        // All rows are projected, of which one a text is wanted: a product of a few rows would take another kernel,
        // and a text alone get other bits than among others.
        let projected = linear(program, &hidden, &self.text_projection, Activate::Identity);
        let mut first = |x: &Activation| rows_of_groups(program, x, 0, 1, texts.batch());
        let (cls, projected) = (first(&hidden), first(&projected));
        let features = normalize_rows(program, &projected);
        tap(program, &features, || "text_embeds".into());
        (cls, features)
    }

    /// Logits of "no match" and "match" for every text with its image, `[texts, 2]`; inputs as
    /// [`QFormer::forward_pairs`].
    ///
    /// # Errors
    /// No room for the small state that the program needs.
    pub fn match_logits(
        &self,
        program: &mut ProgramBuilder,
        image_tokens: &Activation,
        images: usize,
        texts: &Texts,
    ) -> Result<Activation, GpuError> {
        let queries =
            self.qformer
                .forward_pairs(program, &self.text, image_tokens, images, texts)?;
        let logits = linear(program, &queries, &self.itm_head, Activate::Identity);
        let logits = mean_rows(program, &logits, texts.batch());
        tap(program, &logits, || "itm".into());
        Ok(logits)
    }
}

//! Every stage of the retrieval model for one image, text or pair, in the batches that [`Matcher`] would run them in,
//! and the attention of a pair.

use crate::Error;
use crate::gpu::{Activation, ActivationPool, GpuError, ProgramBuilder, Tap};
use crate::model::Texts;
use crate::schedule::attention::mean_over_layers;
use crate::schedule::programs::image::{ImageProgram, Keep};
use crate::schedule::timings::Timings;

use super::Matcher;
use super::images::check_pixels;
use super::matcher::padded;

impl Matcher {
    /// Runs one image (`[3, size, size]`) through ViT, Q-Former and projection; the stages are those of the image alone.
    ///
    /// # Errors
    /// An image of another size, no room on the device, or a failing device.
    pub(crate) async fn image_stages(&self, pixels: &[f32]) -> Result<Vec<Tap>, Error> {
        let (gpu, side) = (self.gpu(), self.image_side());
        check_pixels(side, pixels)?;
        let batch = side.least_batch();
        let pool = ActivationPool::default();
        let program = ImageProgram::record(gpu, side, batch, Keep::Stages, &pool)?;
        let mut timings = Timings::default();
        let images = vec![pixels; batch];
        program.run(gpu, &images, &mut timings, |_| {}).await?;
        let mut taps: Vec<Tap> = program.taps().cloned().collect();
        // All images of the batch are the same one: its rows come first.
        taps.iter_mut().for_each(|tap| tap.rows /= batch);
        Ok(taps)
    }

    /// Runs one text (ids, `[CLS]` first) through the Q-Former; rows after the text's are padding.
    ///
    /// # Errors
    /// As [`Matcher::encode_texts`].
    pub(crate) async fn text_stages(&self, text: &[u32]) -> Result<Vec<Tap>, Error> {
        let texts = self.one_text(text, 1)?;
        let mut program = ProgramBuilder::new(self.gpu(), "text stages").with_taps();
        self.model().text_features(&mut program, &texts);
        Ok(self.run_stages(program).await?)
    }

    /// Runs the queries over an image's tokens ([`super::EncodedImage::tokens`]) and one text (ids).
    ///
    /// # Errors
    /// As [`Matcher::match_pairs`].
    pub(crate) async fn pair_stages(
        &self,
        image_tokens: &[f32],
        text: &[u32],
    ) -> Result<Vec<Tap>, Error> {
        let (gpu, model) = (self.gpu(), self.model());
        let image = self.image_tokens(image_tokens)?;
        let batch = self.image_side().least_batch();
        let texts = self.one_text(text, batch)?;
        let mut program = ProgramBuilder::new(gpu, "pair stages").with_taps();
        model.match_logits(&mut program, &image, 1, &texts)?;
        let mut taps = self.run_stages(program).await?;
        taps.iter_mut().for_each(|tap| tap.rows /= batch);
        Ok(taps)
    }

    /// Cross-attention of the queries to an image's tokens ([`super::EncodedImage::tokens`]) while they read `text` (ids)
    /// beside it, `[queries, tokens]`: the mean over layers and heads.
    ///
    /// # Errors
    /// Another model's image, ids that the model does not have or too many, no room on the device, or a failing one.
    pub(crate) async fn read_pair(
        &self,
        image_tokens: &[f32],
        text: &[u32],
    ) -> Result<Vec<f32>, Error> {
        self.check_texts(&[text])?;
        let (gpu, model) = (self.gpu(), self.model());
        let image = self.image_tokens(image_tokens)?;
        let texts = Texts::new(gpu, 1, text.len(), model.qformer.queries())?;
        texts.write(gpu, [text]);
        let mut program = ProgramBuilder::new(gpu, "pair attention").with_attention_taps();
        let qformer = &model.qformer;
        qformer.forward_pairs(&mut program, &model.text, &image, 1, &texts)?;
        let program = program.finish(&ActivationPool::default())?;
        program.run(gpu);
        Ok(mean_over_layers(gpu, program.taps().iter()).await?)
    }

    /// An image's tokens on the device, if they are such.
    fn image_tokens(&self, values: &[f32]) -> Result<Activation, Error> {
        let vit = &self.model().vit;
        let (tokens, width) = (vit.tokens(), vit.hidden_size());
        if values.len() != tokens * width {
            let len = values.len();
            let problem = format!("an image of {len} values, not of {tokens} × {width}");
            return Err(Error::Request { problem });
        }
        let buffer = self.gpu().storage_with("image tokens", values)?;
        Ok(Activation::external(&buffer, tokens, width))
    }

    /// One text, `batch` times.
    fn one_text(&self, text: &[u32], batch: usize) -> Result<Texts, Error> {
        self.check_texts(&[text])?;
        let queries = self.model().qformer.queries();
        let texts = Texts::new(self.gpu(), batch, padded(text.len()), queries)?;
        texts.write(self.gpu(), [text]);
        Ok(texts)
    }

    async fn run_stages(&self, program: ProgramBuilder<'_>) -> Result<Vec<Tap>, GpuError> {
        let program = program.finish(&ActivationPool::default())?;
        program.run(self.gpu());
        self.gpu().finish("running all stages").await?;
        Ok(program.taps().to_vec())
    }
}

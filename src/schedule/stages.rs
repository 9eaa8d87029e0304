//! Every stage of the retrieval model for one image, text or pair, in the batches that [`Matcher`] would run them in.

use crate::Error;
use crate::gpu::{Activation, ActivationPool, GpuError, ProgramBuilder, Tap};
use crate::model::Texts;

use super::Matcher;
use super::images::ImageParts;
use super::matching::padded;

impl Matcher {
    /// Runs one image (`[3, size, size]`) through ViT, Q-Former and projection; the stages are those of the image alone.
    ///
    /// # Errors
    /// An image of another size, no room on the device, or a failing device.
    pub(crate) async fn image_stages(&self, pixels: &[f32]) -> Result<Vec<Tap>, Error> {
        let (gpu, model) = (self.gpu(), self.model());
        let size = 3 * model.vit.image_size() * model.vit.image_size();
        if pixels.len() != size {
            let problem = format!(
                "an image has {} values, the model takes {size}",
                pixels.len()
            );
            return Err(Error::Request { problem });
        }
        let batch = ImageParts::of(model).least_batch();
        let input = gpu.storage_with("pixels", &pixels.repeat(batch))?;
        let mut program = ProgramBuilder::new(gpu, "image stages").with_taps();
        let input = Activation::external(&input, batch, size);
        let tokens = model.vit.forward(&mut program, &input)?;
        let queries = model.qformer.forward(&mut program, &tokens, batch)?;
        model.project_image(&mut program, &queries);
        let mut taps = self.run_stages(program).await?;
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
        let (tokens, width) = (model.vit.tokens(), model.vit.hidden_size());
        if image_tokens.len() != tokens * width {
            let len = image_tokens.len();
            let problem = format!("an image of {len} values, not of {tokens} × {width}");
            return Err(Error::Request { problem });
        }
        let batch = ImageParts::of(model).least_batch();
        let texts = self.one_text(text, batch)?;
        let image = gpu.storage_with("image tokens", image_tokens)?;
        let image = Activation::external(&image, tokens, width);
        let mut program = ProgramBuilder::new(gpu, "pair stages").with_taps();
        model.match_logits(&mut program, &image, 1, &texts)?;
        let mut taps = self.run_stages(program).await?;
        taps.iter_mut().for_each(|tap| tap.rows /= batch);
        Ok(taps)
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

//! Captions.

use std::sync::Arc;

use crate::Error;
use crate::generate::{GenerationOptions, GenerationOverrides};
use crate::image::Rgb8Image;
use crate::text::Tokenizer;

use super::{Ask, Blip2, CheckpointFiles, ImageSource, Item, Preset, RunOptions, Text, Texts};

/// How to caption.
#[derive(Debug, Clone, Default)]
pub struct CaptionOptions {
    /// Text that the caption continues; `None` is the preset's.
    pub prompt: Option<String>,
    /// Whose defaults to follow.
    pub preset: Preset,
    /// Options that win over preset and checkpoint.
    pub generation: GenerationOverrides,
    /// Images at a time; `None` chooses, and takes fewer where the device has no room.
    pub batch_size: Option<usize>,
}

/// An image's caption.
#[derive(Debug, Clone, PartialEq)]
pub struct Caption {
    /// The best text, as in [`Text::text`].
    pub text: String,
    /// Its tokens.
    pub tokens: Vec<u32>,
    /// Its score.
    pub score: f32,
    /// All texts asked for, the best first.
    pub alternatives: Vec<Text>,
}

impl CaptionOptions {
    /// Preset and checkpoint under the options given.
    pub(super) fn generation(
        &self,
        checkpoint: &GenerationOptions,
        tokenizer: &Tokenizer,
    ) -> Result<GenerationOptions, Error> {
        let generation = self
            .preset
            .caption_options(checkpoint.clone(), tokenizer.newline())
            .overlay(&self.generation);
        generation.validate()?;
        Ok(generation)
    }
}

/// Checks `options` against the checkpoint folder `path` without loading it, which may take a while.
///
/// # Errors
/// Options that do not go together or with the checkpoint; a file of it that is missing or damaged.
pub fn check_caption_options(
    files: &CheckpointFiles,
    options: &CaptionOptions,
) -> Result<(), Error> {
    let (generation, tokenizer) = files.text_side()?;
    options.generation(&generation, &tokenizer)?;
    Ok(())
}

impl Blip2 {
    /// Captions `images`, in order.
    ///
    /// # Errors
    /// Options that do not go together, a prompt too long for the model, or a failing device.
    pub async fn caption(
        &mut self,
        images: &[Rgb8Image],
        options: &CaptionOptions,
    ) -> Result<Vec<Caption>, Error> {
        self.caption_streaming(images, options, &mut |_, _| {})
            .await
    }

    /// [`Blip2::caption`] that hands over the pieces of each image's first text as its tokens are chosen (greedy and
    /// sampling; a beam search knows its text only at the end and hands over nothing).
    ///
    /// # Errors
    /// As [`Blip2::caption`].
    pub async fn caption_streaming(
        &mut self,
        images: &[Rgb8Image],
        options: &CaptionOptions,
        on_text: &mut (dyn FnMut(usize, &str) + Send),
    ) -> Result<Vec<Caption>, Error> {
        let asked = Arc::new(options.clone());
        let items = images.iter().map(|image| Item {
            image: ImageSource::Decoded(Arc::new(image.clone())),
            ask: Ask::Caption(Arc::clone(&asked)),
        });
        let run = RunOptions {
            batch_size: options.batch_size,
            pieces: true,
        };
        let texts = self.run(items, run).collect(images.len(), on_text).await?;
        let caption = |texts: Texts| Caption::from_texts(texts.texts);
        Ok(texts.into_iter().map(caption).collect())
    }

    /// Checks `options` without running anything, so that a program can fail before it reads a thousand images.
    ///
    /// # Errors
    /// Options that do not go together, or a prompt too long for the model.
    pub fn check_caption_options(&self, options: &CaptionOptions) -> Result<(), Error> {
        let prompt = self.prompter().caption(options)?;
        self.handle
            .door
            .limits()
            .check_length(prompt.text.len(), &prompt.options)
    }
}

impl Caption {
    /// The texts of an image, the best first.
    #[must_use]
    pub fn from_texts(alternatives: Vec<Text>) -> Self {
        let best = Text::best(&alternatives);
        Self {
            text: best.text,
            tokens: best.tokens,
            score: best.score,
            alternatives,
        }
    }
}
